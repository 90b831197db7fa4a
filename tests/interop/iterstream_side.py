"""Runs both examples of squirrel-core's page on stores, with the library's classes or with ours:
`iterstream_side.py squirrel|shardfs FOLDER`. Writes FOLDER/one and FOLDER/two, then reads the stores whose directories
are named on standard input, one a line, in both ways. Descriptions on stdout."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import numpy as np
from describe import describe

if sys.argv[1] == "squirrel":
    from squirrel.driver import MessagepackDriver
    from squirrel.iterstream import IterableSource
    from squirrel.serialization import MessagepackSerializer
    from squirrel.store import SquirrelStore
else:
    from shardfs.iterstream import IterableSource
    from shardfs.squirrel import MessagepackDriver, MessagepackSerializer, SquirrelStore

_rng = np.random.RandomState(11)


def get_sample(i):
    return {
        "image": _rng.random_sample((3, 3, 3)),
        "label": _rng.choice([1, 2]),
        "metadata": {"key": i},
    }


N_SAMPLES, N_SHARDS = 100, 10
samples = [get_sample(i) for i in range(N_SAMPLES)]
shards = [samples[i : i + 10] for i in range(N_SHARDS)]


def main():
    folder = sys.argv[2]
    msg_store = SquirrelStore(url=f"{folder}/one", serializer=MessagepackSerializer())
    for i, shard in enumerate(shards):
        msg_store.set(shard, key=f"shard_{i}")
    assert len(list(msg_store.keys())) == N_SHARDS

    store = MessagepackDriver(f"{folder}/two").store
    IterableSource(shards).async_map(store.set).join()
    assert len(list(store.keys())) == 10
    assert len(IterableSource(store.keys()).async_map(store.get).flatten().collect()) == 100

    said = {}
    for line in sys.stdin.read().splitlines():
        store = MessagepackDriver(line).store
        keys = sorted(store.keys())
        one_by_one = [describe(sample) for key in keys for sample in store.get(key)]
        side_by_side = IterableSource(keys).async_map(store.get).flatten().map(describe).collect()
        assert one_by_one == side_by_side
        said[line] = one_by_one
    json.dump(said, sys.stdout)


main()
