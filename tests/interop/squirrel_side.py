"""Runs in squirrel-core's own environment: `write DIR FORMAT`, `dump DIR FORMAT` or, of .zst shards, `zst DIR FORMAT`
(descriptions on stdout)."""

import io
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import fsspec
from describe import describe
from samples import JSONL, MSGPACK
from squirrel.serialization import JsonSerializer, MessagepackSerializer
from squirrel.store import SquirrelStore


class Zstd:
    """Files of the one compression that the library does not ask for: it knows .gz alone."""

    def open(self, path, **how):
        with fsspec.open(path, **{**how, "compression": "zstd"}) as file:
            return io.BytesIO(file.read())  # what undoes zstd has no lines


def main():
    command, folder, form = sys.argv[1:]
    serializer = JsonSerializer() if form == "jsonl" else MessagepackSerializer()
    if command == "zst":
        shards = sorted(pathlib.Path(folder).glob("*.zst"))
        found = {path.stem: serializer.deserialize_shard_from_file(str(path), fs=Zstd()) for path in shards}
        json.dump({key: list(map(describe, samples)) for key, samples in found.items()}, sys.stdout)
        return
    store = SquirrelStore(folder, serializer)
    if command == "write":
        store.set(JSONL if form == "jsonl" else MSGPACK, key="theirs")
    keys = sorted(store.keys())
    json.dump({key: [describe(sample) for sample in store.get(key)] for key in keys}, sys.stdout)


main()
