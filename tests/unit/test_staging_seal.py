"""Sealing a staged directory: what the seal reads stands still, and nothing done meanwhile is lost, also by a crash."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from shardfs import config
from shardfs.staging import ROOT, Snapshot, StagedDirectory
from tests.unit.test_staging import Place, data_files, get, names, place, put, refused

__all__ = ["place"]


def content(snapshot: Snapshot, name: bytes) -> bytes:
    (entry,) = [entry for entry in snapshot.entries if entry.name == name]
    return entry.read()


def numbered(snapshot: Snapshot) -> dict[int, int]:
    """The snapshot's entries as files 0, 1, 2, ... of the new version."""
    return {entry.id: number for number, entry in enumerate(snapshot.entries)}


def test_a_seal_that_took_everything_leaves_nothing(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"a", b"1")
    snapshot = directory.seal.begin("k", "token")
    assert (snapshot.key, snapshot.token, snapshot.base_version) == ("k", "token", None)
    assert content(snapshot, b"a") == b"1"
    assert not directory.seal.done("v2", numbered(snapshot), lambda base: None)
    assert (directory.finished, directory.base_version, names(directory)) == (True, "v2", [])
    assert data_files(place, directory) == []
    put(directory, b"late", b"x")
    assert not directory.finished
    place.again()
    assert names(place["k"]) == [b"late"]


def test_a_finished_one_is_gone_after_a_crash(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"a", b"1")
    snapshot = directory.seal.begin("k", "token")
    directory.seal.done("v2", numbered(snapshot), lambda base: None)
    place.again()
    assert place.area.reports() == []


def test_what_cannot_be_sealed(place: Place) -> None:
    directory = place.area.create("k")
    file = directory.create(ROOT, b"a")
    with refused(errno.EBUSY):
        directory.seal.begin("k", "t")
    file.close()
    with refused(errno.EINVAL):
        directory.seal.done("v", {}, lambda base: None)
    with refused(errno.EINVAL):
        directory.seal.failed()
    directory.seal.begin("k", "t")
    with refused(errno.EBUSY):
        directory.seal.begin("k", "t")
    with refused(errno.EBUSY):
        place.area.park(directory, "no")
    with refused(errno.EBUSY):
        place.area.rename(directory, "l", "key")
    with refused(errno.EINVAL):
        place.area.create("p.tmp", "plain").seal.begin("p", "t")


@pytest.mark.parametrize("crash", [False, True], ids=["runs on", "crashes before done"])
def test_what_is_done_while_a_seal_runs_stays_as_an_overlay(place: Place, crash: bool) -> None:
    directory = place.area.create("k", base_version="v1")
    for name in (b"kept", b"changed", b"cut", b"emptied", b"renamed", b"removed", b"replaced", b"opened"):
        put(directory, name, b"old " + name)
    directory.adopt(b"base renamed", 10, 4, 0o644, 0, 0, 1)
    snapshot = directory.seal.begin("k", "token")
    ids = {entry.name: entry.id for entry in snapshot.entries}
    with directory.open(ids[b"changed"], True) as file:
        file.pwrite(b"new", 0)
    directory.truncate(ids[b"cut"], 2)
    directory.truncate(ids[b"emptied"], 0)
    directory.rename(ROOT, b"renamed", ROOT, b"other name")
    directory.rename(ROOT, b"base renamed", ROOT, b"base other name")
    directory.unlink(ROOT, b"removed")
    put(directory, b"added", b"new")
    directory.rename(ROOT, b"added", ROOT, b"replaced")
    directory.hide(11)
    later = directory.adopt(b"adopted", 12, 4, 0o644, 0, 0, 1)
    opened = directory.open(ids[b"opened"], True)
    for entry in snapshot.entries:
        if entry.path is not None:
            assert content(snapshot, entry.name) == b"old " + entry.name, "what the seal reads stands still"
    if crash:
        opened.close()
        place.again()
        directory = place["k"]
        assert place.area.reports()[0].state == "sealing"
        found = directory.seal.snapshot
        assert found is not None
        assert (found.token, found.key) == ("token", "k")
        assert {entry.id for entry in found.entries} == set(ids.values())
        with directory.open(ids[b"opened"], True) as file:  # also what is written only after the crash
            file.pwrite(b"X", 0)
    numbers = numbered(snapshot)
    assert directory.seal.done("v2", numbers, lambda base: base + 100)
    if not crash:
        opened.pwrite(b"X", 0)
        opened.close()
    place.again()
    directory = place["k"]
    assert place.area.reports()[0].state == "staged"
    number = {name: numbers[ids[name]] for name in ids}
    hidden = {n for n in range(200) if directory.hides(n)}
    assert hidden == set(number.values()) - {number[b"kept"]} | {111, 112}
    stored = {e.name: e.base for e in directory.children() if e.base is not None}
    assert stored == {
        b"other name": number[b"renamed"],
        b"base other name": number[b"base renamed"],
        b"adopted": 112,
    }
    assert {e.name: get(directory, e.name) for e in directory.children() if e.base is None} == {
        b"changed": b"new changed",
        b"cut": b"ol",
        b"emptied": b"",
        b"replaced": b"new",
        b"opened": b"Xld opened",
    }
    assert directory.entry(later.id).name == b"adopted"
    assert len(data_files(place, directory)) == 5


def test_what_is_no_part_of_a_shard_stays(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"a", b"1")
    swap = put(directory, b".a.swp", b"2")
    snapshot = directory.seal.begin("k", "t")
    numbers = numbered(snapshot)
    del numbers[swap]
    assert directory.seal.done("v2", numbers, lambda base: None)
    assert names(directory) == [b".a.swp"]
    assert get(directory, b".a.swp") == b"2"


def test_what_became_a_part_of_another_file_hides_nothing(place: Place) -> None:
    """`cat.cls` is in `cat.json` by then, and its number may not take that file's other fields away."""
    directory = place.area.create("k")
    for name in (b"same.cls", b"changed.cls", b"moved.cls", b"removed.cls"):
        put(directory, name, b"1")
    snapshot = directory.seal.begin("k", "t")
    ids = {entry.name: entry.id for entry in snapshot.entries}
    with directory.open(ids[b"changed.cls"], True) as file:
        file.pwrite(b"2", 0)
    directory.rename(ROOT, b"moved.cls", ROOT, b"other.cls")
    directory.unlink(ROOT, b"removed.cls")
    assert directory.seal.done("v2", dict.fromkeys(ids.values()), lambda base: None)
    place.again()
    directory = place["k"]
    assert {entry.name: get(directory, entry.name) for entry in directory.children()} == {
        b"changed.cls": b"2",
        b"other.cls": b"1",
    }
    assert not directory.hides_any


def test_what_is_left_has_the_names_that_samples_have_now(place: Place) -> None:
    directory = place.area.create("k", base_version="v1")
    put(directory, b"5.json", b"old")
    snapshot = directory.seal.begin("k", "t")
    directory.rename(ROOT, put_new(directory, b".new", b"new"), ROOT, b"5.json")
    put(directory, b"6.json", b"later")
    put(directory, b"7.json", b"clash")
    new_names = {b"5.json": b"4.json", b"7.json": b"6.json"}
    assert directory.seal.done("v2", numbered(snapshot), lambda base: None, new_name=lambda n: new_names.get(n, n))
    place.again()
    directory = place["k"]
    found = [(entry.name.rpartition(b"~")[2], get(directory, entry.name)) for entry in directory.children()]
    assert found == [(b"4.json", b"new"), (b"6.json", b"later"), (b"6.json", b"clash")]
    assert len({entry.name for entry in directory.children()}) == 3, "no two of one name: that would be no journal"


def put_new(directory: StagedDirectory, name: bytes, data: bytes) -> bytes:
    put(directory, name, data)
    return name


@pytest.mark.parametrize("crash", [False, True])
def test_a_keepsake_is_there_after_a_crash(place: Place, crash: bool) -> None:
    put(directory := place.area.create("k"), b"a", b"1")
    directory.seal.begin("k", "", b"kept\0")
    directory.seal.set_token("later")
    if crash:
        place.again()
    found = place["k"].seal.snapshot
    assert found is not None
    assert (found.keepsake, found.token) == (b"kept\0", "later")


def test_what_is_done_without_the_disk_is_made_durable_later(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HEAP_FROM", 1_000_000)
    directory = place.area.create("k")
    for number in range(config.DOOMED_FILES + 10):
        put(directory, b"%d" % number, b"x")
    snapshot = directory.seal.begin("k", "t")
    put(directory, b"late", b"y")
    assert directory.seal.done("v2", numbered(snapshot), lambda base: None, durable=False)
    assert len(data_files(place, directory)) == config.DOOMED_FILES + 11
    directory.seal.commit()
    assert len(data_files(place, directory)) == 1
    place.again()
    assert names(place["k"]) == [b"late"]


def test_a_finished_directory_is_let_go_at_once_and_removed_later(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"a", b"1")
    snapshot = directory.seal.begin("k", "t")
    assert not directory.seal.done("v2", numbered(snapshot), lambda base: None, durable=False)
    place.area.withdraw(directory)
    assert place.area.find("k") is None
    with refused(errno.EBADF):
        directory.create(ROOT, b"late")
    assert (place.area.path / directory.id).is_dir()
    place.area.remove(directory)
    assert not [path for path in place.area.path.iterdir() if path.is_dir()]


def test_bytes_that_would_be_nowhere_stop_the_seal(place: Place) -> None:
    directory = place.area.create("k", base_version="v1")
    directory.adopt(b".hidden", 3, 4, 0o644, 0, 0, 1)
    directory.seal.begin("k", "t")
    with refused(errno.EINVAL):
        directory.seal.done("v2", {}, lambda base: None)
    assert directory.seal.snapshot is not None
    assert directory.base_version == "v1"
    directory.seal.failed()


def test_a_seal_that_failed_leaves_all_as_it_is(place: Place) -> None:
    directory = place.area.create("k")
    number = put(directory, b"a", b"1")
    put(directory, b"b", b"2")
    directory.seal.begin("k", "t")
    directory.truncate(number, 0)
    directory.unlink(ROOT, b"b")
    directory.seal.failed()
    directory.sync()
    assert (names(directory), get(directory, b"a")) == ([b"a"], b"")
    assert len(data_files(place, directory)) == 1
    place.again()
    assert place.area.reports()[0].state == "staged"
    assert directory.seal.snapshot is None


def test_the_token_can_be_known_late(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"a", b"1")
    directory.seal.begin("k", "")
    assert directory.seal.set_token("sha256:1234").token == "sha256:1234"
    place.again()
    found = place["k"].seal.snapshot
    assert found is not None
    assert found.token == "sha256:1234"
    place["k"].seal.failed()
    assert names(place["k"]) == [b"a"]


def test_a_removed_open_file_is_not_changed_for_the_seal(place: Place) -> None:
    directory = place.area.create("k")
    number = put(directory, b"a", b"1")
    snapshot = directory.seal.begin("k", "t")
    file = directory.open(number, True)
    directory.unlink(ROOT, b"a")
    file.pwrite(b"2", 0)
    assert content(snapshot, b"a") == b"1"
    assert directory.seal.done("v2", numbered(snapshot), lambda base: None)
    assert file.pread(9, 0) == b"2"
    file.close()
    directory.sync()
    assert data_files(place, directory) == []
    assert directory.hides(0)


def test_a_reader_from_before_a_seal_does_not_stand_in_for_the_file_after_it(place: Place) -> None:
    """Renamed while the seal ran, so its entry stays, with the stored shard's bytes; the reader has the old data."""
    directory = place.area.create("k")
    number = put(directory, b"a", b"old")
    snapshot = directory.seal.begin("k", "t")
    reader = directory.open(number, False)
    directory.rename(ROOT, b"a", ROOT, b"b")
    assert directory.seal.done("v2", numbered(snapshot), lambda base: None)
    directory.copy_up(number, [b"old"])
    with directory.open(number, True) as file:
        file.pwrite(b"new", 0)
    assert get(directory, b"b") == b"new"
    assert reader.pread(9, 0) == b"old"
    reader.close()
    assert get(directory, b"b") == b"new"
    place.again()
    assert get(place["k"], b"b") == b"new"
    assert place["k"].data_bytes == 3


def test_a_copy_under_way_when_the_file_gets_other_bytes_is_dropped(place: Place) -> None:
    directory = place.area.create("k", base_version="v1")
    entry = directory.adopt(b"a", 0, 6, 0o644, 0, 0, 1)

    def pieces() -> Iterator[bytes]:
        yield b"old"
        directory.truncate(entry.id, 0)
        with directory.open(entry.id, True) as file:
            file.pwrite(b"new", 0)
        yield b"old"

    directory.copy_up(entry.id, pieces())
    assert get(directory, b"a") == b"new"
    assert directory.data_bytes == 3
    assert len(data_files(place, directory)) == 1
