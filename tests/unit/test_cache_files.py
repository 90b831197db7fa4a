"""A directory of cached files: one fetch however many want it, sound content, what goes and what stays."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import BinaryIO

import pytest

from shardfs import config
from shardfs.errors import BadSettingError, StorageError
from shardfs.storage.cache_files import CacheFiles
from shardfs.storage.descriptions import About, Summed

pytestmark = pytest.mark.timeout(60)


def about(name: str, version: str = "1") -> About:
    return About("store", name, version, "stored")


def keep(files: CacheFiles, name: str, data: bytes) -> Path | None:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return files.keep(about(name), len(data), write)


def use_again(files: CacheFiles, name: str) -> None:
    """Use a file as if it had come some time ago."""
    path = files.find(about(name))
    assert path is not None
    old = time.time_ns() - 2 * config.CACHE_AGAIN_NS
    os.utime(path, ns=(old, old))
    assert files.find(about(name)) == path


def names(files: CacheFiles) -> set[str]:
    return {entry.about.name for entry in files.entries()}


@pytest.fixture
def files(tmp_path: Path) -> CacheFiles:
    return CacheFiles(tmp_path / "cache", 1000, min_free=0)


def test_what_others_are_bringing_counts_for_the_limit(tmp_path: Path) -> None:
    """Four daemons held two shards more than the limit: each look at all files forgot what was on its way."""
    first, second = (CacheFiles(tmp_path / "cache", 1000, min_free=0) for _ in range(2))
    for name in ("a", "b"):
        keep(first, name, b"x" * 300)

    def write(file: BinaryIO) -> None:
        second.make_room(0, exactly=True)  # as anybody may
        keep(second, "d", b"x" * 300)
        file.write(b"x" * 300)

    assert first.keep(about("c"), 300, write) is not None
    assert sum(entry.size for entry in first.entries()) <= 1000
    assert {"c", "d"} <= names(first)


def test_what_a_dead_one_was_bringing_is_removed_in_time(files: CacheFiles) -> None:
    """Nobody ever did."""
    path = keep(files, "a", b"bytes")
    assert path is not None
    left = path.with_name(f"{'0' * 40}.123-456")
    left.write_bytes(b"x" * 500)
    files.make_room(0, exactly=True)
    assert left.exists()
    old = time.time_ns() - 2 * config.CACHE_ORPHAN_NS
    os.utime(left, ns=(old, old))
    files.make_room(0, exactly=True)
    assert not left.exists()
    assert path.exists()


def test_what_is_kept_is_found_by_name_and_version(files: CacheFiles) -> None:
    path = keep(files, "a", b"bytes")
    assert path is not None
    assert path.read_bytes() == b"bytes"
    assert files.find(about("a")) == path
    assert files.find(about("a", "2")) is None
    again = CacheFiles(files.root, 1000)
    assert again.find(about("a")) == path
    files.drop(about("a"))
    assert again.find(about("a")) is None


def test_what_writing_raises_keeps_nothing(files: CacheFiles) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise StorageError("reset")

    with pytest.raises(StorageError, match="reset"):
        files.keep(about("a"), 10, write)
    with pytest.raises(StorageError, match="4 bytes came"):
        files.keep(about("a"), 10, lambda file: file.write(b"half") and None)
    assert files.find(about("a")) is None
    assert [path for path in files.root.rglob("*") if path.is_file() and path.name not in ("lock", "size")] == []


def test_the_limit_is_held_and_used_files_stay(files: CacheFiles) -> None:
    keep(files, "used", b"x" * 300)
    use_again(files, "used")
    for number in range(20):
        keep(files, f"n{number}", b"x" * 200)
        assert sum(entry.size for entry in files.entries()) <= 1000
    assert "used" in names(files)
    assert "n19" in names(files)
    assert files.evicted == 17


def test_used_files_leave_room_for_new_ones(files: CacheFiles) -> None:
    for number in range(5):
        keep(files, f"old{number}", b"x" * 200)
        use_again(files, f"old{number}")
    keep(files, "new0", b"x" * 200)
    keep(files, "new1", b"x" * 200)
    assert {"new0", "new1"} & names(files)
    assert len([name for name in names(files) if name.startswith("old")]) == 4


def test_reading_more_than_fits_again_and_again_finds_a_part_of_it(tmp_path: Path) -> None:
    files = CacheFiles(tmp_path, 50 * 100, min_free=0)
    found = []
    for _ in range(4):
        found.append(0)
        for number in range(100):
            path = files.find(about(str(number)))
            if path is None:
                made = keep(files, str(number), b"x" * 100)
                assert made is not None
                old = time.time_ns() - 2 * config.CACHE_AGAIN_NS
                os.utime(made, ns=(old, old))
            else:
                found[-1] += 1
    assert found[0] == 0
    assert found[-1] >= 25  # the oldest first would find none


def test_what_is_pinned_stays_whatever_the_limit(files: CacheFiles) -> None:
    files.pin("store", "keep*")
    for number in range(8):
        keep(files, f"keep{number}", b"x" * 300)
    keep(files, "other", b"x" * 900)
    keep(files, "other2", b"x" * 900)
    assert {f"keep{number}" for number in range(8)} <= names(files)
    assert "other" not in names(files)
    assert files.clear() == 900
    assert len(names(files)) == 8
    files.unpin("store", "keep*")
    assert files.pins() == []
    with pytest.raises(BadSettingError, match="not pinned"):
        files.unpin("store", "keep*")
    files.make_room(0)
    assert sum(entry.size for entry in files.entries()) <= 1000


def test_one_file_larger_than_the_limit_is_kept_alone(files: CacheFiles) -> None:
    keep(files, "small", b"x" * 100)
    keep(files, "large", b"x" * 5000)
    assert names(files) == {"large"}


def test_a_disk_without_room_is_told_once_and_nothing_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = CacheFiles(tmp_path, 1000, min_free=1 << 60)
    assert keep(files, "a", b"x") is None
    assert keep(files, "b", b"x") is None
    assert len(caplog.records) == 1
    assert "stay free" in caplog.text


def test_a_cache_that_cannot_be_written_to_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no directory")
    files = CacheFiles(tmp_path / "file" / "cache", 1000)
    with files.bringing(about("a"), 1) as works:
        assert not works
    assert keep(files, "a", b"x") is None
    assert files.find(about("a")) is None
    assert len(caplog.records) == 1


def test_after_a_new_start_of_the_machine_content_is_looked_at(
    files: CacheFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = keep(files, "good", b"bytes"), keep(files, "bad", b"bytes")
    assert good is not None
    assert bad is not None
    bad.write_bytes(b"\0\0\0\0\0")  # as a file whose bytes were not on disk yet
    monkeypatch.setattr(config, "boot_id", lambda: "another")
    again = CacheFiles(files.root, 1000)
    assert again.find(about("good")) == good
    assert again.find(about("bad")) is None
    assert not bad.exists()
    assert json.loads(good.with_suffix(".about").read_text())["boot"] == "another"


def test_a_file_of_another_size_is_not_believed(files: CacheFiles) -> None:
    path = keep(files, "a", b"bytes")
    assert path is not None
    path.write_bytes(b"byt")
    assert CacheFiles(files.root, 1000).find(about("a")) is None


def test_what_the_system_takes_in_parts_is_written_and_summed_up_whole() -> None:
    taken = bytearray()

    class Slow:
        def write(self, data: memoryview, /) -> int:
            taken.extend(data[:3])
            return min(3, len(data))

    summed = Summed(Slow())
    assert (summed.write(b"0123456789"), summed.write(b""), summed.write(b"ab")) == (10, 0, 2)
    assert (bytes(taken), summed.size, summed.sum) == (b"0123456789ab", 12, zlib.crc32(b"0123456789ab"))


def test_what_is_left_of_a_cache_that_was_cleared_is_told(files: CacheFiles) -> None:
    """`status` went on telling what there had been."""
    keep(files, "a", b"x" * 300)
    keep(files, "b", b"x" * 200)
    files.pin("store", "b")
    assert (files.clear(), files.held()) == (300, 200)


def test_verify_finds_what_has_changed(files: CacheFiles) -> None:
    keep(files, "good", b"bytes")
    bad = keep(files, "bad", b"bytes")
    assert bad is not None
    bad.write_bytes(b"bytez")
    assert [entry.about.name for entry in files.verify()] == ["bad"]
    assert names(files) == {"good"}


def test_threads_bring_one_after_the_other(files: CacheFiles) -> None:
    brought: list[int] = []

    def bring(number: int) -> None:
        with files.bringing(about("a"), 30) as works:
            assert works
            if files.find(about("a")) is None:
                brought.append(number)
                keep(files, "a", b"bytes")

    threads = [threading.Thread(target=bring, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(brought) == 1
    assert list(files.root.rglob("*.lock")) == []


HOLD = """
import sys
from pathlib import Path
from shardfs.storage.cache_files import CacheFiles
from shardfs.storage.descriptions import About, Summed
with CacheFiles(Path(sys.argv[1]), 1000).bringing(About("store", "a", "1", "stored"), 10):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_dies_lets_go(files: CacheFiles) -> None:
    command = [sys.executable, "-c", HOLD, str(files.root)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StorageError) as raised, files.bringing(about("a"), 0.05):
            pass
        assert raised.value.errno == errno.ETIMEDOUT
    finally:
        process.kill()
        process.communicate()
    with files.bringing(about("a"), 5) as works:
        assert works


def _fill(root: Path, seed: int) -> None:
    files = CacheFiles(root, 20_000, min_free=0)
    for number in range(60):
        name = str((number * 7 + seed) % 40)
        data = name.encode() * 400
        with files.bringing(about(name), 30) as works:
            assert works
            path = files.find(about(name)) or keep(files, name, data)
        if path is not None:
            try:
                assert path.read_bytes() == data
            except FileNotFoundError:
                continue  # evicted by another process


def test_processes_share_a_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        pool.starmap(_fill, [(tmp_path, seed) for seed in range(4)])
    files = CacheFiles(tmp_path, 20_000)
    assert sum(entry.size for entry in files.entries()) <= 20_000
    assert files.verify() == []
