"""One error of the disk under a staged directory: who asked hears of it, and asking again is enough."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shardfs import config
from shardfs.staging import ROOT, Over, StagedDirectory
from tests.unit.test_staging import Place, get, names, place, put, refused

__all__ = ["place"]

FailOnce = Callable[[], None]


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> FailOnce:
    """Called, it lets the next fsync of a journal end with EIO, which is how the kernel tells of lost pages: once."""
    real, waiting = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        if waiting[0] and os.readlink(f"/proc/self/fd/{descriptor}").endswith("/journal"):
            waiting[0] -= 1
            raise OSError(errno.EIO, "the disk")
        real(descriptor)

    def begin() -> None:
        waiting[0] += 1

    monkeypatch.setattr(os, "fsync", fsync)
    return begin


def journal_number(place: Place, directory: StagedDirectory) -> int:
    return os.stat(place.area.path / directory.id / "journal").st_ino


def test_a_seal_whose_beginning_could_not_be_synced_has_not_begun(place: Place, fail_once: FailOnce) -> None:
    """It had begun for good: no seal of the key, and no end of this one, until the process was started anew."""
    directory = place.area.create("k")
    put(directory, b"f", b"x")
    fail_once()
    with refused(errno.EIO):
        directory.seal.begin("k", "t")
    assert directory.seal.snapshot is None
    assert directory.state == "staged"
    snapshot = directory.seal.begin("k", "t")
    assert not directory.seal.done("v1", {snapshot.entries[0].id: 0}, lambda old: None)
    place.again()
    assert place.area.find("k") is None


def test_a_token_that_could_not_be_synced_is_no_end_of_the_seal(place: Place, fail_once: FailOnce) -> None:
    directory = place.area.create("k")
    put(directory, b"f", b"x")
    directory.seal.begin("k", "")
    fail_once()
    with refused(errno.EIO):
        directory.seal.set_token("noted")
    directory.seal.failed()
    assert directory.state == "staged"
    place.again()
    assert (place["k"].state, get(place["k"], b"f")) == ("staged", b"x")


def test_a_journal_that_is_written_anew_while_a_seal_runs_knows_the_seal(place: Place, fail_once: FailOnce) -> None:
    directory = place.area.create("k", base_version="v1")
    directory.hide(3)
    directory.adopt(b"base", 4, 10, 0o644, 1, 2, 3)
    kept = put(directory, b"kept", b"x")
    before = directory.seal.begin("k", "t", b"keepsake")
    fail_once()
    with refused(errno.EIO):
        directory.sync()
    number = journal_number(place, directory)
    put(directory, b"later", b"y")
    directory.hide(5)
    assert journal_number(place, directory) != number, "an fsync of the old one would seem to succeed"
    with directory.open(kept, True) as file:
        file.pwrite(b"changed", 0)
    place.again()
    found = place["k"].seal.snapshot
    assert found is not None
    assert (found.key, found.token, found.base_version, found.hidden) == ("k", "t", "v1", before.hidden)
    assert found.keepsake == b"keepsake"
    assert [(entry.id, entry.name, entry.base) for entry in found.entries] == [
        (entry.id, entry.name, entry.base) for entry in before.entries
    ]
    assert names(place["k"]) == [b"base", b"kept", b"later"]
    assert get(place["k"], b"kept") == b"changed"
    numbers = {entry.id: number for number, entry in enumerate(found.entries)}
    assert place["k"].seal.done("v2", numbers, lambda old: old + 10)
    assert names(place["k"]) == [b"kept", b"later"]
    assert place["k"].hides(15)


def test_a_change_in_place_is_noted_durably_also_after_an_error(place: Place, fail_once: FailOnce) -> None:
    """The second attempt took the fsync of a journal that had failed before for a success."""
    directory = place.area.create("k")
    number = put(directory, b"f", b"x")
    directory.sync()
    with directory.open(number, True) as file:
        fail_once()
        with refused(errno.EIO):
            file.pwrite(b"y", 0)
        journal = journal_number(place, directory)
        file.pwrite(b"z", 0)
        assert journal_number(place, directory) != journal
    assert get(directory, b"f") == b"z"


@pytest.fixture
def fail_directory(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Called, it lets the next fsync of that directory end with EIO: once."""
    real, waiting = os.fsync, []

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path in waiting:
            waiting.remove(path)
            raise OSError(errno.EIO, "the disk")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda path: waiting.append(str(path))


def test_a_directory_that_could_not_be_made_durably_is_not_there(
    place: Place, fail_directory: Callable[[Path], None]
) -> None:
    """It was left on disk, and the next start had two of that key."""
    fail_directory(place.area.path)
    with refused(errno.EIO):
        place.area.create("k")
    put(place.area.create("k"), b"f", b"x")
    place.again()
    assert [one.key for one in place.area.directories()] == ["k"]
    assert get(place["k"], b"f") == b"x"


def test_a_directory_that_could_not_be_removed_durably_is_removed_at_the_next_try(
    place: Place, fail_directory: Callable[[Path], None]
) -> None:
    directory = place.area.create("k")
    put(directory, b"f", b"x")
    fail_directory(place.area.path)
    with refused(errno.EIO):
        place.area.discard(directory)
    place.area.discard(directory)
    assert place.area.directories() == []
    place.again()
    assert place.area.directories() == []


def test_a_journal_whose_new_name_could_not_be_synced_is_written_anew(
    place: Place, fail_directory: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss the old one could be back: what was synced since in the new one would be lost."""
    monkeypatch.setattr(config, "JOURNAL_SLACK", 20)
    directory = place.area.create("k")
    fail_directory(place.area.path / directory.id)
    before = journal_number(place, directory)
    for _ in range(60):
        put(directory, b"f", b"")
        directory.unlink(ROOT, b"f")
        if journal_number(place, directory) != before:
            break
    after = journal_number(place, directory)
    assert after != before
    put(directory, b"kept", b"x")
    assert journal_number(place, directory) not in (before, after)
    place.again()
    assert names(place["k"]) == [b"kept"]


def data_number(place: Place, directory: StagedDirectory) -> str:
    (name,) = os.listdir(place.area.path / directory.id / "data")
    return name


@pytest.mark.parametrize("whole", [False, True], ids=["the file", "the directory"])
def test_bytes_that_the_disk_failed_to_take_are_written_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """The second fsync of a file always succeeds on Linux, with or without the pages that the first one lost."""
    directory = place.area.create("k")
    number = put(directory, b"f", b"x" * 3_000_000)
    real = os.fsync

    def fails(descriptor: int) -> None:
        if "/data/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "the disk")
        real(descriptor)

    with directory.open(number, True) as file:
        sync = directory.sync if whole else file.fsync
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fails)
            for _ in range(2):
                with refused(errno.EIO):
                    sync()
        before = data_number(place, directory)
        sync()
        after = data_number(place, directory)
        assert before != after
        file.pwrite(b"y", 0)
        sync()
        assert data_number(place, directory) == after, "once is enough"
    place.again()
    assert get(place["k"], b"f") == b"y" + b"x" * 2_999_999


def test_a_file_that_was_removed_is_written_anew_for_who_has_it_open(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = place.area.create("k")
    put(directory, b"kept", b"x")
    real = os.fsync

    def fails(descriptor: int) -> None:
        if "/data/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "the disk")
        real(descriptor)

    with directory.open(put(directory, b"f", b"bytes"), True) as file:
        directory.unlink(ROOT, b"f")
        with monkeypatch.context() as patch, refused(errno.EIO):
            patch.setattr(os, "fsync", fails)
            file.fsync()
        file.fsync()
        assert file.pread(10, 0) == b"bytes"
    directory.sync()
    assert len(os.listdir(place.area.path / directory.id / "data")) == 1


def test_a_directory_is_called_and_laid_over_a_shard_in_one_record(place: Place) -> None:
    """A death between two records left a new key where the store had one: the next mount set it aside as a conflict."""
    directory = place.area.create("k.tmp", "plain")
    put(directory, b"f", b"x")
    journal = place.area.path / directory.id / "journal"
    before = journal.read_bytes()
    place.area.rename(directory, "k", "key", over=Over("v7", 100, range(3)))
    whole = journal.read_bytes()
    assert whole.startswith(before)
    for cut in range(len(before), len(whole) + 1):
        place.area.close()
        journal.write_bytes(whole[:cut])
        place.again()
        (found,) = place.area.directories()
        over = [found.hides(number) for number in range(4)] == [True, True, True, False]
        expected = ("k", "v7", True) if cut == len(whole) else ("k.tmp", None, False)
        assert (found.key, found.base_version, over) == expected
        assert get(found, b"f") == b"x"
    place.area.rename(place["k"], "k.tmp", "plain", over=Over(None))
    place.again()
    assert (place["k.tmp"].base_version, place["k.tmp"].hides_any) == (None, False)


def test_what_lies_over_a_shard_is_laid_over_no_other(place: Place) -> None:
    directory = place.area.create("k", base_version="v1")
    directory.adopt(b"base", 4, 10, 0o644, 1, 2, 3)
    with refused(errno.EINVAL):
        place.area.rename(directory, "other", "key", over=Over("v2"))
    plain = place.area.create("p.tmp", "plain")
    plain.mkdir(ROOT, b"sub")
    with refused(errno.EINVAL):
        place.area.rename(plain, "p", "key", over=Over("v2"))
    assert sorted(one.key for one in place.area.directories()) == ["k", "p.tmp"]
