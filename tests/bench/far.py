"""Stores far away, measured: `python -m tests.bench.far`. Servers, and the network between, are on loopback.

    amplification   bytes that come from the server for an epoch, in the order of shards and shuffled, as a share of the
                    shards' own; the cache on disk holds all
    throughput      a cold epoch by eight readers beside obstore alone, which fetches the same objects eight at a time,
                    and beside the same store on this disk
    tars            the same for a WebDataset, whose shards need no decompression
    network         the same epochs, and obstore, behind a network of 1 Gbit/s (125 MB/s)
    rclone          shuffled samples of 4 KB, beside what squirrel-core does over `rclone mount`: the shard for each
    raw             two epochs of shuffled files out of the same store on this machine, with memory for a quarter of it:
                    gzip shards kept decompressed in the cache on disk (--cache-raw always), and not
    latency         shards behind a network that takes 30 ms each way: first byte, epoch, and `shardfs warm`

nginx is the server. In each round what is compared takes its turn, in the next in reverse; ratios are taken within
rounds, and their median is told. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from shardfs import open_store
from tests.bench import machine
from tests.bench.forms import say
from tests.link import link
from tests.servers import nginx_server

_READERS = 8
_SECONDS = 600
_RCLONE_SECONDS = 10.0
_RAW_SECONDS = 20.0
"""After so long the slow one of a pair is stopped; its rate counts."""


@dataclass(frozen=True)
class Stored:
    """A Squirrel store in a directory that the server serves."""

    folder: Path
    shards: int
    samples: int
    suffix: str = "gz"
    """`tar`: a WebDataset, which is not compressed."""

    @property
    def pattern(self) -> str:
        """What names its shards behind its directory's URL."""
        return f"{self.folder.name}/{{0000..{self.shards - 1:04}}}.{self.suffix}"

    @property
    def files(self) -> list[str]:
        """One for each sample, in the order of shards."""
        return [f"{shard:04}/{sample:06}.x.bin" for shard in range(self.shards) for sample in range(self.samples)]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.glob(f"*.{self.suffix}"))


def make(folder: Path, shards: int, samples: int, size: int) -> Stored:
    """Noise, which no compression makes smaller, from a seed."""
    if not (folder / ".done").exists():
        store = open_store(folder, "squirrel", level=1)
        for shard in range(shards):
            rng = random.Random(shard)
            store.set([{"x": b"noise: " + rng.randbytes(size)} for _ in range(samples)], f"{shard:04}")
        (folder / ".done").touch()
    return Stored(folder, shards, samples)


def blocks_of(stored: Stored) -> str:
    """What a gzip shard's first block is (RFC 1951, 3.2.3), behind a header without further fields."""
    with open(stored.folder / "0000.gz", "rb") as file:
        head = file.read(11)
    if head[3]:
        return "unknown, as its header has more fields"
    return ("stored as it is", "fixed codes", "Huffman codes", "damaged")[head[10] >> 1 & 3]


def make_tars(folder: Path, like: Stored) -> Stored:
    """The same samples as a WebDataset's tars."""
    if not (folder / ".done").exists():
        folder.mkdir(exist_ok=True)
        store = open_store(like.folder, "squirrel")
        for shard in range(like.shards):
            with tarfile.open(folder / f"{shard:04}.tar", "w") as tar:
                for sample, one in enumerate(store.get(f"{shard:04}")):
                    member = tarfile.TarInfo(f"{sample:06}.x.bin")
                    member.size = len(one["x"])
                    tar.addfile(member, io.BytesIO(one["x"]))
        (folder / ".done").touch()
    return Stored(folder, like.shards, like.samples, "tar")


# --- mounts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Where the data is served, and where scratch files go."""

    endpoint: str
    scratch: Path

    @contextlib.contextmanager
    def mounted(self, url: str, *words: str, cache: Path | None = None) -> Iterator[tuple[Path, float]]:
        """A mount with a cache and an index of its own unless `cache` is given, and when its command was started."""
        own = cache or Path(tempfile.mkdtemp(dir=self.scratch))
        path = Path(tempfile.mkdtemp(dir=self.scratch)) / "mnt"
        begun = time.perf_counter()
        self.shardfs("mount", url, str(path), "--log", str(path.with_name("log")), *words, cache=own)
        try:
            yield path, begun
        finally:
            self.shardfs("umount", str(path))
            if cache is None:
                shutil.rmtree(own)

    def shardfs(self, *words: str, cache: Path | None = None) -> None:
        where = {} if cache is None else {"XDG_CACHE_HOME": str(cache)}
        command = [sys.executable, "-m", "shardfs", *words]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            cwd=machine.REPOSITORY,
            env={**os.environ, **where},
        )
        if done.returncode != 0:
            raise SystemExit(f"bench: shardfs {words[0]}: {done.stderr.strip()}")


def read_all(root: Path, files: list[str], readers: int = _READERS) -> int:
    """Bytes of all files, each reader taking a run of them."""

    def run(part: list[str]) -> int:
        return sum(len((root / name).read_bytes()) for name in part)

    step = -(-len(files) // (readers * 4))
    with ThreadPoolExecutor(readers) as pool:
        return sum(pool.map(run, [files[at : at + step] for at in range(0, len(files), step)]))


def shuffled(files: list[str], seed: int) -> list[str]:
    made = list(files)
    random.Random(seed).shuffle(made)
    return made


# --- what is measured -------------------------------------------------------------------------------------------------


def amplification(bench: Bench, stored: Stored, number: int) -> dict[str, float]:
    found = {}
    for name, files in (("order", stored.files), ("shuffled", shuffled(stored.files, number))):
        with link(bench.endpoint) as counting:
            with bench.mounted(f"{counting.endpoint}/{stored.pattern}", "--memory", "64M") as (root, _):
                read_all(root, files)
            counted = counting.counted()
        found[f"{name}, bytes fetched / bytes of shards"] = counted.down / stored.bytes
        found[f"{name}, GETs / shards"] = len(counted.gets(f".{stored.suffix}")) / stored.shards
    return found


def throughput(bench: Bench, stored: Stored, number: int) -> dict[str, float]:
    turns: dict[str, Callable[[], float]] = {
        "obstore alone": lambda: _alone(bench.endpoint, stored),
        "shardfs": lambda: _epoch(bench, stored, f"{bench.endpoint}/{stored.pattern}"),
        "shardfs without a cache": lambda: _epoch(
            bench, stored, f"{bench.endpoint}/{stored.pattern}", "--cache-size", "0"
        ),
        "shardfs, the same store on this disk": lambda: _epoch(bench, stored, str(stored.folder)),
    }
    return _compared(turns, number)


def network(bench: Bench, kinds: dict[str, Stored], number: int, rate: float) -> dict[str, float]:
    """As `throughput`; `rate` in bytes a second."""
    found = {}
    for name, stored in kinds.items():
        with link(bench.endpoint, rate=rate) as slow:
            url = f"{slow.endpoint}/{stored.pattern}"
            turns: dict[str, Callable[[], float]] = {
                "obstore alone": lambda end=slow.endpoint, of=stored: _alone(end, of),  # type: ignore[misc]
                "shardfs": lambda url=url, of=stored: _epoch(bench, of, url),  # type: ignore[misc]
            }
            found.update({f"{name}: {what}": value for what, value in _compared(turns, number).items()})
    return found


def _compared(turns: dict[str, Callable[[], float]], number: int) -> dict[str, float]:
    """The rate of each, in bytes a second, and its share of the first's; every other round in reverse."""
    names = list(turns) if number % 2 else list(reversed(turns))
    rates = {name: turns[name]() for name in names}
    first, *others = turns
    found = {f"{name}, MB/s": rates[name] / 1e6 for name in turns}
    return {**found, **{f"{name} / {first}": rates[name] / rates[first] for name in others}}


def _alone(endpoint: str, stored: Stored) -> float:
    """Bytes a second of obstore fetching all shards, some at a time."""
    import obstore
    from obstore.store import HTTPStore

    machine.make_cold(stored.folder)
    store: Any = HTTPStore.from_url(f"{endpoint}/{stored.folder.name}", client_options={"allow_http": True})
    begun = time.perf_counter()

    def fetch(shard: int) -> int:
        return len(bytes(obstore.get(store, f"{shard:04}.{stored.suffix}").bytes()))

    with ThreadPoolExecutor(_READERS) as pool:
        size = sum(pool.map(fetch, range(stored.shards)))
    return size / (time.perf_counter() - begun)


def _epoch(bench: Bench, stored: Stored, url: str, *words: str) -> float:
    """Bytes of shards a second, of reading all files of a mount in their order."""
    machine.make_cold(stored.folder)
    with bench.mounted(url, *words) as (root, _):
        begun = time.perf_counter()
        read_all(root, stored.files)
        return stored.bytes / (time.perf_counter() - begun)


def rclone(bench: Bench, stored: Stored, number: int) -> dict[str, float]:
    files = shuffled(stored.files, number)

    def ours() -> float:
        with bench.mounted(f"{bench.endpoint}/{stored.pattern}") as (root, _):
            begun = time.perf_counter()
            read_all(root, files, 1)
            return len(files) / (time.perf_counter() - begun)

    def theirs() -> float:
        with _rclone_mount(bench) as root:
            begun = time.perf_counter()
            done = 0
            for name in files:
                shard, sample = name.partition("/")[0], int(name.partition("/")[2].partition(".")[0])
                with gzip.open(root / stored.folder.name / f"{shard}.gz") as file:
                    for at, one in enumerate(msgpack.Unpacker(file)):
                        if at == sample:
                            len(one["x"])
                            break
                done += 1
                if time.perf_counter() - begun > _RCLONE_SECONDS:
                    break
            return done / (time.perf_counter() - begun)

    turns = [("shardfs", ours), ("rclone mount and the library", theirs)]
    rates = {name: turn() for name, turn in (turns if number % 2 else reversed(turns))}
    found = {f"{name}, samples/s": rates[name] for name, _ in turns}
    return {**found, "shardfs / rclone mount and the library": rates["shardfs"] / rates[turns[1][0]]}


@contextlib.contextmanager
def _rclone_mount(bench: Bench) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=bench.scratch))
    cache = Path(tempfile.mkdtemp(dir=bench.scratch))
    program = Path(sys.executable).with_name("rclone")
    command = [str(program), "mount", ":http:", str(path), "--http-url", bench.endpoint, "--vfs-cache-mode", "full"]
    process = subprocess.Popen(
        [*command, "--read-only", "--cache-dir", str(cache)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RCLONE_CONFIG": "/dev/null"},
    )
    try:
        end = time.monotonic() + 20
        while not machine.is_mounted(path):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("bench: rclone does not mount")
            time.sleep(0.05)
        yield path
    finally:
        process.terminate()
        process.wait(20)
        machine.unmount(path)


def raw(bench: Bench, stored: Stored, number: int) -> dict[str, float]:
    memory = str(stored.bytes // 4)
    found: dict[str, float] = {}

    def epochs(name: str, *words: str) -> None:
        with bench.mounted(str(stored.folder), "--memory", memory, *words) as (root, _):
            for epoch in (1, 2):
                rate, done = _for_a_while(root, shuffled(stored.files, 10 * number + epoch))
                found[f"{name}, epoch {epoch}, MB/s"] = rate / 1e6
                found[f"{name}, epoch {epoch}, share read"] = done

    turns = [("kept raw", ("--cache-raw", "always")), ("not kept", ())]
    for name, words in turns if number % 2 else reversed(turns):
        epochs(name, *words)
    made = {f"kept / not, epoch {epoch}": found[f"kept raw, epoch {epoch}, MB/s"] for epoch in (1, 2)}
    ratios = {name: value / found[f"not kept, {name[-7:]}, MB/s"] for name, value in made.items()}
    return {**dict(sorted(found.items())), **ratios}


def _for_a_while(root: Path, files: list[str]) -> tuple[float, float]:
    """Bytes a second, and the share of the files that were read until it was stopped."""
    begun = time.perf_counter()
    size = done = 0
    step = _READERS * 8
    for at in range(0, len(files), step):
        size += read_all(root, files[at : at + step])
        done += len(files[at : at + step])
        if time.perf_counter() - begun > _RAW_SECONDS:
            break
    return size / (time.perf_counter() - begun), done / len(files)


def latency(bench: Bench, stored: Stored, number: int, delay: float) -> dict[str, float]:
    found = {}
    with link(bench.endpoint, delay) as far:
        url = f"{far.endpoint}/{stored.pattern}"
        with bench.mounted(url) as (root, begun):
            mounted = time.perf_counter()
            (root / stored.files[len(stored.files) // 2]).read_bytes()
            found["mount command, s"] = mounted - begun
            found["first byte after it, s"] = time.perf_counter() - mounted
            again = time.perf_counter()
            read_all(root, stored.files)
            found["epoch, s"] = time.perf_counter() - again
            found["epoch, MB/s"] = stored.bytes / 1e6 / found["epoch, s"]
        cache = Path(tempfile.mkdtemp(dir=bench.scratch))
        again = time.perf_counter()
        bench.shardfs("warm", url, cache=cache)
        found["warm, s"] = time.perf_counter() - again
        found["warm, MB/s"] = stored.bytes / 1e6 / found["warm, s"]
        found["bare link, MB/s"] = _alone(far.endpoint, stored) / 1e6
    return found


# --- the command ------------------------------------------------------------------------------------------------------

_WORKS = ("amplification", "throughput", "tars", "network", "rclone", "raw", "latency")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.far", description="Measures stores far away.")
    parser.add_argument("--mib", type=int, default=1024, help="size of the shards of 11 MB (default: 1024)")
    parser.add_argument("--quick", action="store_true", help="64 MiB, one round: a test, not a figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=0.03, help="seconds each way, for `latency` (default: 0.03)")
    parser.add_argument(
        "--rate", type=float, default=125e6, help="bytes a second, for `network` (default: 125e6, 1 Gbit/s)"
    )
    parser.add_argument("--only", default="", metavar="WORK,...", help=", ".join(_WORKS))
    parser.add_argument("--data", metavar="DIR", help="where the data is kept (default: ~/.cache/shardfs-bench/far)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    mib, rounds = (64, 1) if arguments.quick else (arguments.mib, arguments.rounds)
    data = Path(arguments.data or os.path.expanduser("~/.cache/shardfs-bench/far")).resolve()
    chosen = [work for work in _WORKS if not arguments.only or work in arguments.only.split(",")]
    say(f"making {mib} MiB of shards in {data}")
    large = make(data / f"large{mib}", max(2, mib * (1 << 20) // 11_000_000), 100, 110_000)
    tars = make_tars(data / f"tars{mib}", large)
    small = make(data / f"small{mib}", max(2, mib // 16), 1000, 4000)
    scratch = Path(tempfile.mkdtemp(prefix="far-", dir=data))
    records: dict[str, list[dict[str, float]]] = {work: [] for work in chosen}
    try:
        with nginx_server(data, scratch / "nginx", "autoindex on;") as server:
            bench = Bench(server.endpoint, scratch)
            works: dict[str, Callable[[int], dict[str, float]]] = {
                "amplification": lambda number: amplification(bench, large, number),
                "throughput": lambda number: throughput(bench, large, number),
                "tars": lambda number: throughput(bench, tars, number),
                "network": lambda number: network(bench, {"gzip": large, "tars": tars}, number, arguments.rate),
                "rclone": lambda number: rclone(bench, small, number),
                "raw": lambda number: raw(bench, large, number),
                "latency": lambda number: latency(bench, large, number, arguments.delay),
            }
            for number in range(1, rounds + 1):
                for work in chosen:
                    records[work].append(works[work](number))
                    say(f"round {number}, {work}: {records[work][-1]}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    facts = {
        **machine.facts(data),
        "noise in gzip shards": blocks_of(large),
        "MiB": mib,
        "rounds": rounds,
        "load at the end": os.getloadavg()[0],
    }
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"machine": facts, "records": records}, indent=1))
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), end="\n\n")
    for work, found in records.items():
        for name in found[0]:
            values = sorted(one[name] for one in found)
            print(f"{work:14} {name:45} {statistics.median(values):10.3f}   ({values[0]:.3f} to {values[-1]:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
