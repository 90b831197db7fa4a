"""Many readers, little memory, large shards: right bytes, bounded memory, nobody waits for another's shard."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgpack
import pytest

from tests.bench import mds_writer

Mounted = Callable[..., AbstractContextManager[Path]]

pytestmark = [pytest.mark.mount, pytest.mark.timeout(180)]

MIB = 1 << 20

READER = """
import hashlib, json, os, random, sys
folder, truth, seed = sys.argv[1], json.load(open(sys.argv[2])), int(sys.argv[3])
names = sorted(truth)
random.Random(seed).shuffle(names)
wrong = []
for name in names[: int(sys.argv[4])]:
    with open(os.path.join(folder, name), "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() != truth[name]:
            wrong.append(name)
print(len(wrong))
"""


def daemon_pid(mount: Path) -> int:
    """The process that serves a mount: the one that was started with this mount point."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"mount" in words and os.fsencode(mount) in words:
                return int(folder.name)
    raise AssertionError(f"no process serves {mount}")


def peak_memory(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def write_shard(path: Path, samples: list[dict[str, object]], level: int = 1) -> int:
    """Write a shard and return its raw size."""
    raw = 0
    with gzip.open(path, "wb", compresslevel=level) as file:
        for sample in samples:
            packed = msgpack.packb(sample)
            raw += len(packed)
            file.write(packed)
    return raw


def test_sixteen_processes_under_a_tenth_of_the_store(tmp_path: Path, mounted: Mounted) -> None:
    rng = random.Random(5)
    truth, raw, largest = {}, 0, 0
    store = tmp_path / "store"
    store.mkdir()
    for key in range(40):
        samples = [{"x": rng.randbytes(30_000), "i": at} for at in range(200)]
        size = write_shard(store / f"k{key:02d}.gz", samples, level=0)
        raw, largest = raw + size, max(largest, size)
        for at, sample in enumerate(samples):
            truth[f"k{key:02d}/{at:06d}.x.bin"] = hashlib.sha256(sample["x"]).hexdigest()  # type: ignore[arg-type]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    budget = raw // 10
    with mounted(store, "--memory", str(budget)) as path:
        pid = daemon_pid(path)
        words = [sys.executable, "-c", READER, str(path), str(tmp_path / "truth.json")]
        readers = [subprocess.Popen([*words, str(seed), "40"], stdout=subprocess.PIPE, text=True) for seed in range(16)]
        answers = [reader.communicate(timeout=150)[0].strip() for reader in readers]
        assert answers == ["0"] * 16
        peak = peak_memory(pid)
    assert peak <= budget + 1.5 * largest + 150 * MIB, f"{peak / MIB:.0f} MiB for a budget of {budget / MIB:.0f}"


def test_a_loaded_key_answers_while_a_large_shard_loads(tmp_path: Path, mounted: Mounted) -> None:
    store = tmp_path / "store"
    store.mkdir()
    block = random.Random(1).randbytes(4000)
    write_shard(store / "small.gz", [{"x": block, "i": at} for at in range(100)])
    write_shard(store / "large.gz", [{"x": block, "i": at} for at in range(125_000)], level=0)
    with mounted(store, "--memory", "2G") as path:
        assert len(os.listdir(path / "small")) == 200
        loading = threading.Thread(target=os.listdir, args=(path / "large",))
        loading.start()
        waits = []
        while loading.is_alive():
            start = time.perf_counter()
            assert len(os.listdir(path / "small")) == 200
            waits.append(time.perf_counter() - start)
            loading.join(0.01)
        loading.join()
        assert len(waits) >= 10, "the large shard should take a while"
        print(f"{len(waits)} listings: median {statistics.median(waits) * 1e3:.1f} ms, worst {max(waits) * 1e3:.1f} ms")
        assert statistics.median(waits) < 0.1
        assert max(waits) < 1.0


READERS = """
import os, sys, threading
folder, keys, each = sys.argv[1], sys.argv[2].split(","), int(sys.argv[3])
good = []
def read(key):
    with open(os.path.join(folder, key, "000001.x.bin"), "rb") as file:
        good.append(len(file.read()))
threads = [threading.Thread(target=read, args=(key,)) for key in keys for _ in range(each)]
for thread in threads: thread.start()
print("started", flush=True)
for thread in threads: thread.join()
print(len(good), set(good))
"""


def test_other_keys_answer_while_200_readers_wait(tmp_path: Path, mounted: Mounted) -> None:
    store = tmp_path / "store"
    store.mkdir()
    block = random.Random(1).randbytes(20_000)
    for name in ("loaded", "fresh"):
        write_shard(store / f"{name}.gz", [{"x": block, "i": at} for at in range(20)])
    for key in range(20):
        write_shard(store / f"slow{key:02d}.gz", [{"x": block, "i": at} for at in range(2_500)], level=0)
    with mounted(store, "--memory", "300M") as path:
        os.listdir(path / "loaded")
        keys = ",".join(f"slow{key:02d}" for key in range(20))
        readers = subprocess.Popen(
            [sys.executable, "-c", READERS, str(path), keys, "10"], stdout=subprocess.PIPE, text=True
        )
        assert readers.stdout is not None
        assert readers.stdout.readline() == "started\n"
        waits = {}
        for what in ("", "loaded", "fresh"):
            start = time.perf_counter()
            assert os.listdir(path / what)
            waits[what] = time.perf_counter() - start
        still_waiting = readers.poll() is None
        out, _ = readers.communicate(timeout=120)
        assert out == "200 {20000}\n"
        assert still_waiting, "the readers should still be waiting when the others were answered"
        print({what: f"{wait * 1e3:.1f} ms" for what, wait in waits.items()})
        assert waits[""] < 0.5
        assert waits["loaded"] < 0.5
        assert waits["fresh"] < 2.0


def test_a_sample_over_100_mib(tmp_path: Path, mounted: Mounted) -> None:
    store = tmp_path / "store"
    store.mkdir()
    big = random.Random(2).randbytes(1 << 20) * 110
    write_shard(store / "k.gz", [{"x": big, "i": 1}], level=1)
    with mounted(store, "--memory", "16M") as path:
        file = path / "k/000000.x.bin"
        assert file.stat().st_size == len(big)
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        assert digest == hashlib.sha256(big).hexdigest()
        assert (path / "k/000000.json").read_text() == '{"i": 1}\n'


def test_more_shards_read_in_place_than_descriptors(tmp_path: Path, mounted: Mounted) -> None:
    """Each of these stays open for reading parts of it, of which the process may not have so many."""
    root = tmp_path / "set"
    root.mkdir()
    mds_writer.write(root, (iter([{"data": bytes([shard]) * 100}]) for shard in range(100)), False)
    with mounted(root) as mnt:
        resource.prlimit(daemon_pid(mnt), resource.RLIMIT_NOFILE, (64, 64))
        for _ in range(2):
            for shard in range(100):
                (name,) = os.listdir(mnt / f"shard.{shard:05d}")
                assert (mnt / f"shard.{shard:05d}" / name).read_bytes() == bytes([shard]) * 100
