"""Slow fetches, failing loads and readers that went away: whoever has nothing to do with them notices nothing.

The store lies on a file system of ours that holds up or fails READs of chosen files until it is told otherwise. So
"while a shard is slow" means: it will not come before everything else was answered.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from shardfs import compression, config, daemon
from tests.conformance.trees import wait_for
from tests.mount.conftest import SlowStore, run

Mounted = Callable[..., AbstractContextManager[Path]]

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

PROMPT = 3.0
"""Seconds in which whatever waits for nothing is answered, on a machine that is busy with other things as well."""

SAMPLES = 20
SIZE, LARGE = 5_000, 300_000
"""Of files: small ones fit into one READ, large ones are read ahead by the kernel, which has a limit for such READs."""

CLAIM = compression.HINT_TAIL["gz"]
"""READs of no more than this many bytes ask for the raw size; larger ones load the shard."""


def content(key: str, number: int, size: int = SIZE) -> bytes:
    return random.Random(f"{key} {number}").randbytes(size)


def write(folder: Path, *keys: str, size: int = SIZE) -> None:
    """A shard each, put in place at once; `size` is that of a file in it."""
    for key in keys:
        packed = b"".join(msgpack.packb({"x": content(key, number, size)}) for number in range(SAMPLES))
        (folder / "new").write_bytes(gzip.compress(packed, 1))
        (folder / "new").rename(folder / f"{key}.gz")


def read(mount: Path, key: str, number: int = 7, size: int = SIZE) -> bool:
    """True if a file has the right bytes; OSError as it comes."""
    return (mount / key / f"{number:06d}.x.bin").read_bytes() == content(key, number, size)


def error_of(work: Callable[..., Any], *arguments: Any) -> int | None:
    """The errno of what must fail."""
    try:
        work(*arguments)
    except OSError as error:
        return error.errno
    return None


def start(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Run something in a thread of its own that keeps nobody from ending."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def promptly(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of something that must not wait for what is slow: TimeoutError if it does."""
    return start(work, *arguments).result(PROMPT)


def serving_pid(mount: Path) -> int:
    record = daemon.find(str(mount))
    assert record is not None
    return record.pid


def state(pid: int) -> str:
    """One letter, as in ps: D is a wait that no signal ends, Z a process that has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# --- slow fetches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("above", [0, CLAIM], ids=["from the first byte", "once the load has begun"])
def test_others_are_answered_while_forty_readers_wait_for_twenty_slow_shards(
    slow_store: SlowStore, mounted: Mounted, above: int
) -> None:
    slow = [f"slow{number:02d}" for number in range(20)]
    files = [f"{key}.gz" for key in slow]
    write(slow_store.source, "fresh", "loaded", *slow)
    with mounted(slow_store.path, "--no-index") as mount:
        assert read(mount, "loaded")
        slow_store.hold(*files, above=above)
        waiting = [start(read, mount, key, number) for key in slow for number in (3, 11)]
        wait_for(lambda: sum(slow_store.asked(file) > 0 for file in files) >= config.WORKERS_CPU)
        assert len(promptly(os.listdir, mount)) == 22
        assert promptly(os.statvfs, mount).f_namemax == config.NAME_MAX
        assert promptly(read, mount, "loaded", 12)
        assert len(promptly(os.listdir, mount / "loaded")) == SAMPLES
        assert promptly(os.stat, mount / slow[-1]).st_size == 0, "the directory itself needs no shard"
        assert promptly(error_of, os.stat, mount / "no such key") == errno.ENOENT
        assert not any(reader.done() for reader in waiting)
        assert promptly(read, mount, "fresh"), "the first read of a key that is not slow"
        slow_store.go_on(*files)
        assert all(reader.result(PROMPT * 5) for reader in waiting)
        for file in files:
            size = (slow_store.source / file).stat().st_size
            assert slow_store.bytes_asked(file) < 1.5 * size, f"{file} was loaded more than once for its two readers"


def test_a_slow_shard_that_is_known_lists_and_stats_at_once(slow_store: SlowStore, mounted: Mounted) -> None:
    """Its table is in memory, its bytes are not: only reading waits."""
    write(slow_store.source, "other", "slow")
    with mounted(slow_store.path, "--no-index", "--memory", "1") as mount:
        assert read(mount, "slow", 1)
        assert read(mount, "other")  # takes its place
        slow_store.hold("slow.gz")
        waiting = start(read, mount, "slow", 8)
        asked = slow_store.asked("slow.gz")
        wait_for(lambda: slow_store.asked("slow.gz") > asked or waiting.done())
        assert len(promptly(os.listdir, mount / "slow")) == SAMPLES
        assert promptly(os.stat, mount / "slow/000009.x.bin").st_size == SIZE
        assert not waiting.done()
        slow_store.go_on("slow.gz")
        assert waiting.result(PROMPT)


needs_fusectl = pytest.mark.skipif(
    os.geteuid() != 0 and not os.path.exists("/sys/fs/fuse/connections"),
    reason="the kernel's limit cannot be raised here: fusectl is not mounted, and only root reaches it all the same",
)


@needs_fusectl
def test_reads_of_a_loaded_key_are_not_held_up_by_a_dozen_that_wait(slow_store: SlowStore, mounted: Mounted) -> None:
    """The kernel lets 12 READs through the page cache wait for a whole mount, and then sends no other, also when those
    who waited were killed. The limit is raised when a mount begins."""
    write(slow_store.source, "other", "slow", size=LARGE)
    with mounted(slow_store.path, "--no-index", "--memory", "1") as mount, contextlib.ExitStack() as stack:
        assert read(mount, "slow", 0, LARGE)
        assert read(mount, "other", 0, LARGE)  # takes its place
        slow_store.hold("slow.gz")
        files = [mount / f"slow/{number:06d}.x.bin" for number in range(1, 17)]
        readers = [stack.enter_context(reader_of(file)) for file in files]
        assert promptly(read, mount, "other", 1, LARGE)
        for reader in readers[1:]:
            reader.kill()
            reader.wait(PROMPT)
        assert promptly(read, mount, "other", 2, LARGE)
        slow_store.go_on("slow.gz")
        assert readers[0].wait(PROMPT) == 0
        assert all(promptly(read, mount, "slow", number, LARGE) for number in range(SAMPLES))


def test_a_store_that_goes_away_and_comes_back(slow_store: SlowStore, mounted: Mounted, tmp_path: Path) -> None:
    """What is loaded is served, the rest fails at once with an errno, and afterwards all is as before."""
    write(slow_store.source, "fresh", "loaded", "slow")
    with mounted(slow_store.path, "--no-index") as mount:
        assert read(mount, "loaded")
        slow_store.hold("slow.gz")
        waiting = start(error_of, read, mount, "slow")
        wait_for(lambda: slow_store.asked("slow.gz") > 0)
        slow_store.kill()
        assert waiting.result(PROMPT) not in (None, 0, errno.ENOENT), "an error, and not that the file is not there"
        assert sorted(promptly(os.listdir, mount)) == ["fresh", "loaded", "slow"]
        assert promptly(read, mount, "loaded", 3)
        assert promptly(error_of, read, mount, "fresh") not in (None, errno.ENOENT)
        slow_store.go_on("slow.gz")
        slow_store.serve()
        for key in ("fresh", "loaded", "slow"):
            assert promptly(read, mount, key, 5)


# --- failing loads ----------------------------------------------------------------------------------------------------


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "flipped byte"])
def test_sixteen_readers_of_a_damaged_shard_get_eio_and_the_repaired_one_is_served(
    slow_store: SlowStore, mounted: Mounted, how: str
) -> None:
    write(slow_store.source, "bad", "fresh", "good")
    damage(slow_store.source / "bad.gz", how)
    with mounted(slow_store.path, "--no-index") as mount:
        assert read(mount, "good")
        slow_store.hold("bad.gz", above=CLAIM)
        readers = [start(error_of, read, mount, "bad", number) for number in range(SAMPLES - 4)]
        wait_for(lambda: slow_store.asked("bad.gz") > 2)
        assert promptly(read, mount, "good", 1), "while the load is under way that will fail"
        slow_store.go_on("bad.gz")
        assert [reader.result(PROMPT) for reader in readers] == [errno.EIO] * 16
        assert promptly(error_of, os.listdir, mount / "bad") == errno.EIO
        assert promptly(read, mount, "good", 2)
        assert promptly(read, mount, "fresh")
        write(slow_store.source, "bad")
        errors: set[int | None] = set()

        def repaired() -> bool:
            try:
                assert read(mount, "bad"), "wrong bytes"
            except OSError as error:
                errors.add(error.errno)
                return False
            return True

        wait_for(repaired, config.REFRESH + PROMPT)
        assert errors <= {errno.EIO, errno.ESTALE}
        assert all(promptly(read, mount, "bad", number) for number in range(SAMPLES))


@pytest.mark.parametrize("known", [False, True], ids=["never loaded", "evicted"])
def test_a_storage_error_is_not_remembered(slow_store: SlowStore, mounted: Mounted, known: bool) -> None:
    write(slow_store.source, "k", "other")
    with mounted(slow_store.path, "--no-index", "--memory", "1") as mount:
        if known:
            assert read(mount, "k", 1)
        assert read(mount, "other")  # takes its place
        for _ in range(2):
            slow_store.fail("k.gz")
            readers = [start(error_of, read, mount, "k", number) for number in range(2, 18)]
            assert [reader.result(PROMPT) for reader in readers] == [errno.EIO] * 16
            assert promptly(read, mount, "other", 9)
            slow_store.recover("k.gz")
            assert promptly(read, mount, "k", 5), "the very next reader gets the bytes"
            assert all(promptly(read, mount, "k", number) for number in range(SAMPLES))
            for number in range(SAMPLES):  # so that the second round asks the daemon again, not the page cache
                forget_pages(mount / f"k/{number:06d}.x.bin")
            assert read(mount, "other", 10)


def forget_pages(file: Path) -> None:
    with open(file, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- readers that go away ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reader_of(file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that waits in a READ of a file: it has the file open, and only its bytes are missing."""
    with subprocess.Popen(["cat", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: waits_for_bytes(process.pid, file))
            yield process
        finally:
            process.kill()


def waits_for_bytes(pid: int, file: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/3") == str(file) and state(pid) == "D"
    except OSError:
        return False


def threads_and_descriptors(pid: int) -> tuple[int, int]:
    return len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd"))


@needs_fusectl
def test_killed_readers_leave_nothing_and_take_nothing_from_the_others(slow_store: SlowStore, mounted: Mounted) -> None:
    """Killed in a READ: they are gone at once, the load goes on for who is left, and nothing adds up."""
    write(slow_store.source, "other", "slow", size=LARGE)
    size = (slow_store.source / "slow.gz").stat().st_size
    with mounted(slow_store.path, "--no-index", "--memory", "1") as mount:
        assert read(mount, "slow", 0, LARGE)
        assert read(mount, "other", 0, LARGE)  # takes its place: the names are known, the bytes are not
        pid, before = serving_pid(mount), slow_store.bytes_asked("slow.gz")
        slow_store.hold("slow.gz")
        with reader_of(mount / "slow/000001.x.bin") as staying:
            threads, descriptors = threads_and_descriptors(pid)
            for number in range(40):
                with reader_of(mount / f"slow/{2 + number % 10:06d}.x.bin") as reader:
                    reader.kill()
                    reader.wait(PROMPT)
            now = threads_and_descriptors(pid)
            assert now[0] <= threads + config.WORKERS_IO, "threads add up"
            assert now[1] <= descriptors + 2, "descriptors add up"
            assert promptly(read, mount, "other", 3, LARGE)
            assert staying.poll() is None
            slow_store.go_on("slow.gz")
            assert staying.wait(PROMPT) == 0
        assert all(promptly(read, mount, "slow", number, LARGE) for number in range(SAMPLES))
        assert slow_store.bytes_asked("slow.gz") - before < 1.5 * size, "it was loaded once"
        wait_for(lambda: threads_and_descriptors(pid)[1] <= descriptors)


def test_readers_killed_while_a_key_is_first_loaded(slow_store: SlowStore, mounted: Mounted) -> None:
    """They wait for a LOOKUP, and the kernel lets nobody go who waits for that: they end with its answer, not before,
    and those who were not killed get their bytes."""
    write(slow_store.source, "other", "slow")
    size = (slow_store.source / "slow.gz").stat().st_size
    with mounted(slow_store.path, "--no-index") as mount:
        slow_store.hold("slow.gz", above=CLAIM)
        staying = [start(read, mount, "slow", number) for number in range(4)]
        killed = [subprocess.Popen(["cat", mount / "slow/000009.x.bin"], stdout=subprocess.DEVNULL) for _ in range(12)]
        try:
            wait_for(lambda: slow_store.asked("slow.gz") > 2)
            wait_for(lambda: all(state(reader.pid) in "SD" for reader in killed))
            for reader in killed:
                reader.kill()
            assert promptly(read, mount, "other")
            slow_store.go_on("slow.gz")
            assert all(reader.result(PROMPT) for reader in staying)
            for reader in killed:
                assert reader.wait(PROMPT) == -signal.SIGKILL
        finally:
            for reader in killed:
                reader.kill()
        assert all(promptly(read, mount, "slow", number) for number in range(SAMPLES))
        assert slow_store.bytes_asked("slow.gz") < 1.5 * size, "it was loaded once"


INTERRUPTED = """
import os, signal, sys
caught = []
signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
print("up", flush=True)
size = 0
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        size += len(file.read())
print(size, len(caught) > 0)
"""


@pytest.mark.parametrize("known", [False, True], ids=["in a lookup", "in a read"])
def test_interrupted_readers_go_on_waiting(slow_store: SlowStore, mounted: Mounted, known: bool) -> None:
    """The kernel tells the daemon of each signal (INTERRUPT), which answers nothing, mixes up nothing, and goes on."""
    write(slow_store.source, "other", "slow")
    with mounted(slow_store.path, "--no-index", "--memory", "1") as mount:
        if known:
            assert read(mount, "slow", 0)
        assert read(mount, "other")
        asked = slow_store.asked("slow.gz")
        slow_store.hold("slow.gz")
        words = [sys.executable, "-c", INTERRUPTED, *(str(mount / f"slow/{number:06d}.x.bin") for number in (3, 4))]
        readers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(8)]
        try:
            for reader in readers:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "up\n"
            wait_for(lambda: slow_store.asked("slow.gz") > asked)
            for _ in range(20):
                for reader in readers:
                    reader.send_signal(signal.SIGINT)
                assert promptly(read, mount, "other", 3)
                assert len(promptly(os.listdir, mount)) == 2
            assert all(reader.poll() is None for reader in readers)
            slow_store.go_on("slow.gz")
            for reader in readers:
                assert reader.communicate(timeout=PROMPT)[0] == "10000 True\n"
        finally:
            for reader in readers:
                reader.kill()
                reader.communicate()
        assert all(promptly(read, mount, "slow", number) for number in range(SAMPLES))


def test_regression_a_published_index_is_asked_once_however_many_list_a_key(
    slow_store: SlowStore, mounted: Mounted, tmp_path: Path
) -> None:
    """Its rows are believed for a hash of the whole shard, which each of 16 listings made for itself."""
    write(slow_store.source, "k", size=LARGE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "publisher"))
        done = run("index", slow_store.path, "--export", tmp_path / "exported")
        assert done.returncode == 0, done.stderr
        (tmp_path / "exported").rename(slow_store.source / ".shardfs-index.sqlite")
        before = slow_store.bytes_asked("k.gz")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
        with mounted(slow_store.path) as mount:
            slow_store.hold("k.gz")
            lists = [start(os.listdir, mount / "k") for _ in range(16)]
            wait_for(lambda: slow_store.bytes_asked("k.gz") > before)
            slow_store.go_on("k.gz")
            assert [len(listing.result(PROMPT * 5)) for listing in lists] == [SAMPLES] * 16
    assert slow_store.bytes_asked("k.gz") - before < 1.5 * (slow_store.source / "k.gz").stat().st_size
