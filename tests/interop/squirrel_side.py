"""Runs in squirrel-core's own environment: `write DIR FORMAT` or `dump DIR FORMAT` (descriptions on stdout)."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from describe import describe
from samples import JSONL, MSGPACK
from squirrel.serialization import JsonSerializer, MessagepackSerializer
from squirrel.store import SquirrelStore


def main():
    command, folder, form = sys.argv[1:]
    store = SquirrelStore(folder, JsonSerializer() if form == "jsonl" else MessagepackSerializer())
    if command == "write":
        store.set(JSONL if form == "jsonl" else MSGPACK, key="theirs")
    keys = sorted(store.keys())
    json.dump({key: [describe(sample) for sample in store.get(key)] for key in keys}, sys.stdout)


main()
