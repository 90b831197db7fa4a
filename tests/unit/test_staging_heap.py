"""Small files of one staged directory in one file on disk: they are like any others, whatever is done to them."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from shardfs import config
from shardfs.staging import ROOT, StagedDirectory, StagingArea, heap, recovery, tree
from tests.unit.test_staging import URL, Place, get, names, place, put, refused
from tests.unit.test_staging_journal import small_disk

__all__ = ["place", "small_disk"]


@pytest.fixture(autouse=True)
def from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HEAP_FROM", 0)


def data(place: Place, directory: StagedDirectory) -> set[str]:
    return set(os.listdir(place.area.path / directory.id / "data"))


def blocks(place: Place, directory: StagedDirectory) -> int:
    """Bytes of disk that the heap takes."""
    return os.stat(place.area.path / directory.id / "data" / "heap").st_blocks * 512


def test_a_directory_with_few_files_has_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HEAP_FROM", 3)
    directory = place.area.create("k")
    for number in range(5):
        put(directory, b"%d" % number, b"x")
    assert data(place, directory) == {"1", "2", "3", "heap"}


def test_many_files_are_one_file_and_are_there_again(place: Place) -> None:
    directory = place.area.create("k")
    files = {b"%d" % number: os.urandom(number * 997) for number in range(30)}
    for name, content in files.items():
        put(directory, name, content)
    before = {name: directory.find(ROOT, name) for name in files}
    assert data(place, directory) == {"heap"}
    for again in (False, True):
        if again:
            place.again()
            directory = place["k"]
        assert {name: get(directory, name) for name in files} == files
        assert {name: directory.find(ROOT, name) for name in files} == before, "times too"
        assert directory.data_bytes == sum(map(len, files.values()))
    looking = StagingArea.open(URL, root=place.root, read_only=True)
    found = looking.find("k")
    assert found is not None
    assert {name: get(found, name) for name in files} == files
    looking.close()


def test_what_does_more_than_grow_at_its_end_gets_a_file_of_its_own(place: Place) -> None:
    directory = place.area.create("k")
    with directory.create(ROOT, b"grows") as file:
        for at in range(0, 9000, 1000):
            file.pwrite(b"%04d" % at * 250, at)
            assert file.pread(4, at) == b"%04d" % at
        assert file.pread(10, 8998) == b"00", "no more than the file has"
        assert file.pread_now(4, 8000) in (b"8000", None)
    assert data(place, directory) == {"heap"}
    large = os.urandom(300_000)
    with directory.create(ROOT, b"large") as file:
        for at in range(0, 300_000, 50_000):
            file.pwrite(large[at : at + 50_000], at)
        assert file.pread(1 << 20, 0) == large
    put(directory, b"over", b"0123456789")
    entry = directory.find(ROOT, b"over")
    assert entry is not None
    with directory.open(entry.id, True) as file, directory.open(entry.id, False) as reader:
        file.pwrite(b"xx", 3)
        assert reader.pread(100, 0) == b"012xx56789"
    with directory.create(ROOT, b"hole") as file:
        file.pwrite(b"x", 5)
    with directory.create(ROOT, b"cut") as file:
        file.pwrite(b"0123456789", 0)
        file.truncate(4)
    with directory.create(ROOT, b"emptied") as file:
        file.pwrite(b"0123456789", 0)
        file.truncate(0)
        file.pwrite(b"new", 0)
    put(directory, b"again", b"x")
    with (
        directory.open(put(directory, b"between", b"y"), False),
        directory.open(directory.children()[6].id, True) as file,
    ):
        file.pwrite(b"z", 1)  # it is not the last one there any more
    for again in (False, True):
        if again:
            place.again()
            directory = place["k"]
        assert get(directory, b"large") == large
        assert get(directory, b"over") == b"012xx56789"
        assert (get(directory, b"hole"), get(directory, b"cut")) == (b"\0\0\0\0\0x", b"0123")
        assert (get(directory, b"emptied"), get(directory, b"again"), get(directory, b"between")) == (
            b"new",
            b"xz",
            b"y",
        )
        assert directory.data_bytes == sum(len(get(directory, name)) for name in names(directory))


def test_removed_files_give_their_space_back_and_nobody_elses(place: Place) -> None:
    directory = place.area.create("k")
    for number in range(20):
        put(directory, b"%d" % number, bytes([number + 1]) * 10_000)
    whole = blocks(place, directory)
    assert whole >= 20 * 10_000
    for number in range(0, 20, 2):
        directory.unlink(ROOT, b"%d" % number)
    assert blocks(place, directory) == whole, "not before the record of it is on disk"
    directory.sync()
    assert blocks(place, directory) <= whole - 10 * 8192
    kept = {b"%d" % number: bytes([number + 1]) * 10_000 for number in range(1, 20, 2)}
    assert {name: get(directory, name) for name in names(directory)} == kept
    place.area.close()  # what a death leaves: bytes that no record speaks of
    path = place.area.path / directory.id / "data" / "heap"
    with open(path, "ab") as file:
        file.write(b"?" * 100_000)
    place.again()
    directory = place["k"]
    assert blocks(place, directory) <= whole - 10 * 8192, "found as nobody's"
    put(directory, b"late", b"late")
    assert {name: get(directory, name) for name in names(directory)} == {**kept, b"late": b"late"}


def test_who_has_a_file_open_keeps_it(place: Place) -> None:
    """A hole, unlike an unlinked file, goes from under who reads it."""
    directory = place.area.create("k")
    read = directory.open(put(directory, b"read", b"r" * 5000), False)
    written = directory.create(ROOT, b"written")
    written.pwrite(b"w" * 5000, 0)
    empty = directory.create(ROOT, b"empty")
    stored = directory.open(put(directory, b"stored", b"s" * 5000), False)
    for name in (b"read", b"written", b"empty"):
        directory.unlink(ROOT, name)
    directory.sync()
    assert (read.pread(9000, 0), written.pread(9000, 0)) == (b"r" * 5000, b"w" * 5000)
    snapshot = directory.seal.begin("k", "t")
    assert not directory.seal.done("v1", {snapshot.entries[0].id: 0}, lambda base: None)
    put(directory, b"later", b"y" * 5000)
    directory.sync()
    assert (read.pread(9000, 0), stored.pread(9000, 0)) == (b"r" * 5000, b"s" * 5000)
    assert stored.size_and_mtime()[0] == 5000
    place.area.discard(directory)
    written.pwrite(b"more", 5000)
    empty.pwrite(b"more", 0)
    assert (read.pread(9000, 0), stored.pread(9000, 0)) == (b"r" * 5000, b"s" * 5000)
    assert (written.pread(9000, 0), empty.pread(9, 0)) == (b"w" * 5000 + b"more", b"more")
    for file in (read, written, empty, stored):
        file.close()


def test_what_a_seal_reads_stands_still_and_the_rest_is_left(place: Place) -> None:
    directory = place.area.create("k")
    last = None
    for name in (b"changed", b"emptied", b"empty", b"removed", b"kept", b"grown"):
        last = put(directory, name, b"" if name == b"empty" else b"old " + name)
    snapshot = directory.seal.begin("k", "t")
    ids = {entry.name: entry.id for entry in snapshot.entries}
    for name in (b"changed", b"empty"):
        with directory.open(ids[name], True) as file:
            file.pwrite(b"new", 0)
    directory.truncate(ids[b"emptied"], 0)
    directory.unlink(ROOT, b"removed")
    assert last is not None
    with directory.open(last, True) as file:
        file.pwrite(b"!", 9)
    put(directory, b"added", b"new")
    directory.sync()
    for entry in snapshot.entries:
        assert entry.read() == (b"" if entry.name == b"empty" else b"old " + entry.name)
    assert directory.seal.done("v1", {entry.id: at for at, entry in enumerate(snapshot.entries)}, lambda base: None)
    for again in (False, True):
        if again:
            place.again()
            directory = place["k"]
        left = {name: get(directory, name) for name in names(directory)}
        expected = {
            b"changed": b"newchanged"[:3] + b" changed",
            b"emptied": b"",
            b"empty": b"new",
            b"grown": b"old grown!",
        }
        assert left == {**expected, b"added": b"new"}
    with directory.create(ROOT, b"next") as file:
        file.pwrite(b"next", 0)
    assert get(directory, b"added") == b"new"


def test_a_seal_that_is_found_running_still_has_what_it_took(place: Place) -> None:
    """It became a hole, which reads as zeros where a file that is gone says so."""
    directory = place.area.create("k")
    number = put(directory, b"f", b"old" * 3000)
    directory.seal.begin("k", "t")
    with directory.open(number, True) as file:
        file.pwrite(b"new", 0)
    place.again()
    snapshot = place["k"].seal.snapshot
    assert snapshot is not None
    assert snapshot.entries[0].read() == b"old" * 3000
    place["k"].seal.failed()
    place["k"].sync()
    assert blocks(place, place["k"]) == 0
    assert get(place["k"], b"f") == b"new" + b"old" * 2999


def test_bytes_of_the_heap_that_the_disk_failed_to_take_are_written_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = place.area.create("k")
    files = {b"%d" % number: os.urandom(5000) for number in range(5)}
    ids = [put(directory, name, content) for name, content in files.items()]
    real = os.fsync

    def fails(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("/heap"):
            raise OSError(errno.EIO, "the disk")
        real(descriptor)

    with directory.open(ids[2], True) as file:
        with monkeypatch.context() as patch, refused(errno.EIO):
            patch.setattr(os, "fsync", fails)
            directory.sync()
        file.fsync()
        assert data(place, directory) >= {"1", "heap"}, "the file that was synced"
        directory.sync()
    assert len(data(place, directory)) == 6, "and all others"
    place.again()
    assert {name: get(place["k"], name) for name in files} == files


def test_nothing_of_the_heap_that_was_synced_is_missing_after_any_power_loss(place: Place, tmp_path: Path) -> None:
    """What is on disk at the least: the journal up to where it was last synced, and what was not freed of the heap."""
    directory = place.area.create("k")
    path = place.area.path / directory.id
    number = put(directory, b"precious", b"synced bytes")
    put(directory, b"other", b"other bytes")
    directory.sync()
    durable = (path / "journal").stat().st_size
    scratch = tmp_path / "scratch"
    allowed = {b"precious": (b"synced bytes", b"newced bytes"), b"other": (b"other bytes",)}

    def check() -> None:
        journal = (path / "journal").read_bytes()
        for size in range(durable, len(journal) + 1, 7):
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(path, scratch)
            (scratch / "journal").write_bytes(journal[:size])
            ledger = recovery.load(scratch, writable=True)
            assert ledger.tree.doubt is None
            for node in ledger.tree.nodes.values():
                where, offset = ledger.where(node.data or 0)
                found = Path(where).read_bytes()[offset or 0 :][: node.size]
                assert found in allowed[node.name]
            ledger.close()

    with directory.open(number, True) as file:
        file.pwrite(b"new", 0)
    check()
    directory.unlink(ROOT, b"other")
    check()
    directory.unlink(ROOT, b"precious")
    check()


def test_what_the_machine_lost_of_the_heap_is_in_doubt(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"a", b"a" * 5000)
    put(directory, b"b", b"b" * 5000)
    place.area.close()
    path = place.area.path / directory.id / "data" / "heap"
    os.truncate(path, 9000)
    place.again()
    assert place["k"].state == "doubtful"
    assert (get(place["k"], b"a"), get(place["k"], b"b")) == (b"a" * 5000, b"b" * 808 + bytes(4192))
    put(place["k"], b"c", b"c" * 5000)
    assert get(place["k"], b"b") == b"b" * 808 + bytes(4192), "nobody else's bytes"


def test_a_full_disk_is_told_at_the_write_and_keeps_nothing_of_it(small_disk: Path) -> None:
    area = StagingArea.open(URL, root=small_disk / "state")
    directory = area.create("k")
    content, count = os.urandom(100_000), 0
    with refused(errno.ENOSPC):
        while True:
            put(directory, b"%d" % count, content)
            count += 1
    assert count > 70
    (entry,) = [entry for entry in directory.children() if entry.size == 0]
    free = os.statvfs(small_disk)
    assert free.f_bavail * free.f_frsize < 100_000 + 4096
    used = os.stat(area.path / directory.id / "data" / "heap").st_blocks * 512
    assert used <= count * 102_400, "what could not be written whole takes no space"
    directory.unlink(ROOT, entry.name)
    directory.unlink(ROOT, b"0")
    put(directory, b"instead", content)
    area.close()
    area = StagingArea.open(URL, root=small_disk / "state")
    found = area.find("k")
    assert found is not None
    assert [get(found, name) for name in names(found)] == [content] * count
    area.close()


def test_a_journal_of_an_older_version_goes_on_with_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take what it does not know for lost."""
    with monkeypatch.context() as patch:
        patch.setattr(tree, "FORMAT", 1)
        directory = place.area.create("k")
        patch.setattr(config, "HEAP_FROM", 1000)
        put(directory, b"a", b"a")
    place.again()
    put(place["k"], b"b", b"b")
    assert data(place, place["k"]) == {"1", "2"}
    monkeypatch.setattr(config, "JOURNAL_SLACK", 0)
    place.again()
    for number in range(20):
        place["k"].hide(number)  # upon which the journal is written anew
    put(place["k"], b"c", b"c")
    place.again()
    assert [get(place["k"], name) for name in (b"a", b"b", b"c")] == [b"a", b"b", b"c"]
    assert data(place, place["k"]) == {"1", "2", "heap"}


def test_nothing_written_is_no_run(place: Place) -> None:
    directory = place.area.create("k")
    for name in (b"a", b"b"):
        with directory.create(ROOT, name) as file:
            assert file.pwrite(b"", 0) == file.pwrite(b"", 7) == 0
            assert directory.entry(file.id).size == 0
    put(directory, b"c", b"c")
    put(directory, b"d", b"d")
    place.again()
    assert [get(place["k"], name) for name in (b"a", b"b", b"c", b"d")] == [b"", b"", b"c", b"d"]


def test_a_disk_without_holes_has_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "punch", lambda descriptor, offset, length: False)
    directory = place.area.create("k")
    put(directory, b"f", b"x")
    assert data(place, directory) == {"1", "heap"}
    place.again()
    assert get(place["k"], b"f") == b"x"
