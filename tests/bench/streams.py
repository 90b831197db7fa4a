"""What several threads gain in Python: `store.get` and `store.set` through iterstream, by 1 worker and by 2.

    python -m tests.bench.streams [--rounds 7] [--shards 16] [--times 3] [--json FILE]

Paired: in each round the works follow one another, in turns forwards and backwards, each in a process of its own;
what counts is the median of the rounds' ratios. Each goes `times` through the shards, so that it lasts a second and
more. The files are in the page cache. `set` compresses one shard by several threads as it is, so that is measured
against one core (the process is bound to it), with one worker and with two.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shardfs.iterstream import IterableSource
from shardfs.opening import open_store
from shardfs.store import Samples

_SAMPLES = 400
_WORDS = 4_000
"""Words of a text: 30 KB, as the arrays have."""


def arrays(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Pictures with some noise in their lower bits: 30 KB each, which gzip halves."""
    ramp = np.add.outer(np.arange(100), np.arange(100))[:, :, None] + np.arange(3)
    return [
        {"image": ((ramp + at) & 0xF0 | rng.integers(0, 8, ramp.shape)).astype("u1"), "label": at}
        for at in range(_SAMPLES)
    ]


def texts(rng: np.random.Generator) -> list[dict[str, Any]]:
    """30 KB of words each."""
    draw = random.Random(int(rng.integers(1 << 30)))
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randrange(3, 11))) for _ in range(3_000)]
    return [{"text": " ".join(draw.choices(words, k=_WORDS)), "label": at} for at in range(_SAMPLES)]


DATA: dict[str, Callable[[np.random.Generator], list[dict[str, Any]]]] = {"arrays": arrays, "texts": texts}


def get(folder: str, workers: int, times: int) -> float:
    """Seconds for all shards of a store, read, decompressed and checked, so many times."""
    store = open_store(folder)
    keys = store.keys() * times
    begun = time.perf_counter()
    found = sum(len(samples) for samples in IterableSource(keys).async_map(store.get, max_workers=workers))
    spent = time.perf_counter() - begun
    if found != _SAMPLES * len(keys):
        raise RuntimeError(f"{found} samples were read")
    return spent


def set_(folder: str, workers: int, kind: str, shards: int) -> float:
    """Seconds to store as many shards."""
    samples = DATA[kind](np.random.default_rng(5))
    with tempfile.TemporaryDirectory(dir=folder) as target:
        store = open_store(target, "squirrel")
        begun = time.perf_counter()
        IterableSource([samples] * shards).async_map(store.set, max_workers=workers).join()
        return time.perf_counter() - begun


def _bound(cores: int, work: Callable[..., float], words: tuple[Any, ...], done: Any) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    done.put(work(*words))


def measured(cores: int, work: Callable[..., float], *words: Any) -> float:
    """Seconds of a work in a process of its own, on so many cores."""
    context = multiprocessing.get_context("spawn")
    done = context.SimpleQueue()
    process = context.Process(target=_bound, args=(cores, work, words, done))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"a work ended with {process.exitcode}")
    return float(done.get())


def held(folder: str) -> float:
    """The part of the processor time of `get` in which no other thread can run Python: finding the records. The rest,
    reading and decompressing, lets others go on. Of the fastest of some runs, so that it hardly depends on the load."""
    store = open_store(folder)
    loaded, walked = [], []
    for entry in store.driver.entries():
        begun = time.thread_time()
        shard = store.driver.load(entry, lambda _: None)
        between = time.thread_time()
        Samples(shard)
        loaded.append(between - begun)
        walked.append(time.thread_time() - between)
    return min(walked) / (min(loaded) + min(walked))


def rounds_of(kind: str, store: Path, scratch: Path, rounds: int, shards: int, times: int) -> dict[str, list[float]]:
    shards *= times
    works: dict[str, tuple[Any, ...]] = {
        "get, 1 worker": (2, get, str(store), 1, times),
        "get, 2 workers": (2, get, str(store), 2, times),
        "set, 1 worker, 1 core": (1, set_, str(scratch), 1, kind, shards),
        "set, 1 worker, 2 cores": (2, set_, str(scratch), 1, kind, shards),
        "set, 2 workers, 2 cores": (2, set_, str(scratch), 2, kind, shards),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            found[name].append(measured(*works[name]))
    return found


RATIOS = {
    "get: 2 workers": ("get, 1 worker", "get, 2 workers"),
    "set: 1 worker on 2 cores": ("set, 1 worker, 1 core", "set, 1 worker, 2 cores"),
    "set: 2 workers on 2 cores": ("set, 1 worker, 1 core", "set, 2 workers, 2 cores"),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streams", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    words = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        print("this needs two cores", file=sys.stderr)
        return 1
    told: dict[str, Any] = {"load": os.getloadavg()[0]}
    print(f"load {told['load']:.1f} of {os.cpu_count()} cores at the beginning; times as fast: median (all rounds)")
    with tempfile.TemporaryDirectory(prefix="shardfs-bench-") as folder:
        for kind, make in DATA.items():
            store = open_store(Path(folder) / kind, "squirrel")
            for number in range(words.shards):
                store.set(make(np.random.default_rng(number)), f"shard-{number:03d}")
            found = rounds_of(kind, Path(folder) / kind, Path(folder), words.rounds, words.shards, words.times)
            told[kind] = found
            part = measured(2, held, str(Path(folder) / kind))
            print(f"{kind:<8} get: with the GIL            {part:.0%} of its processor time")
            for name, (one, two) in RATIOS.items():
                ratios = [slow / fast for slow, fast in zip(found[one], found[two], strict=True)]
                listed = " ".join(f"{ratio:.2f}" for ratio in ratios)
                seconds = f"{statistics.median(found[one]):.2f} s -> {statistics.median(found[two]):.2f} s"
                print(f"{kind:<8} {name:<28} {statistics.median(ratios):.2f}  ({listed})  {seconds}", flush=True)
    if words.json:
        Path(words.json).write_text(json.dumps(told), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
