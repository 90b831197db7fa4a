"""The journal of a staged directory: cut off anywhere, damaged anywhere, on a disk that fails, after a power loss."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shardfs import config
from shardfs.errors import StagingError
from shardfs.staging import ROOT, StagedDirectory, StagingArea, recovery
from shardfs.staging.journal import Journal, scan
from shardfs.staging.room import Room
from shardfs.staging.tree import Tree
from tests.unit.test_staging import URL, Place, data_files, get, names, place, put, refused

__all__ = ["place"]


def journal_of(place: Place, directory: StagedDirectory) -> Path:
    return place.area.path / directory.id / "journal"


# --- the file of records --------------------------------------------------------------------------------------------


def test_every_cut_of_a_journal_gives_the_records_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    payloads = [b"one", b"", bytes(300), b"\xf5sj\n" * 5]
    journal = Journal.create(path, payloads[:2])
    ends = []
    for payload in payloads[2:]:
        journal.append(payload)
        ends.append(journal.size)
    journal.close()
    whole = path.read_bytes()
    ends = [16 + 3, 2 * 16 + 3, *ends]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        scanned = scan(path)
        count = sum(end <= cut for end in ends)
        assert (scanned.payloads, scanned.damage, scanned.size) == (payloads[:count], None, cut)
        assert scanned.end == ([0, *ends][count])


@pytest.mark.parametrize("tail", [bytes(5000), b"\xff" * 40, b"\xf5sj\n\xff\xff\xff\xff" + bytes(30)])
def test_what_is_no_record_behind_the_last_one_is_a_torn_tail(tmp_path: Path, tail: bytes) -> None:
    journal = Journal.create(tmp_path / "journal", [b"one"])
    (tmp_path / "journal").write_bytes((tmp_path / "journal").read_bytes() + tail)
    scanned = scan(tmp_path / "journal")
    assert (scanned.payloads, scanned.damage, scanned.end) == ([b"one"], None, journal.size)


def test_every_damaged_byte_in_the_middle_is_told_from_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal.create(path, [b"first", b"second", b"third"])
    whole = path.read_bytes()
    last = len(whole) - 16 - 5
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        scanned = scan(path)
        assert (scanned.damage is None) == (at >= last), at
        assert scanned.payloads == [b"first", b"second"][: 0 if at < 21 else 1 if at < 43 else 2]
    path.write_bytes(whole[:21] + whole[43:])
    assert scan(path).damage is not None, "a record that is missing"
    path.write_bytes(whole[:43] + whole[21:])
    assert scan(path).damage is not None, "a record that is there twice"


def test_a_record_that_does_not_fit_on_the_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.create(tmp_path / "journal", [b"one"])
    real, calls = os.pwrite, 0

    def half(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data[:7], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="full"):
            journal.append(b"two")
    assert scan(tmp_path / "journal").size == journal.size
    journal.append(b"three")
    journal.close()
    assert scan(tmp_path / "journal").payloads == [b"one", b"three"]


# --- power loss -----------------------------------------------------------------------------------------------------


State = dict[tuple[bytes, ...], tuple[int | None, int | None, int]]


def state_of(tree: Tree) -> State:
    """Path -> what has the bytes, and the mode."""
    return {tree.path(node): (node.data, node.base, node.mode) for node in tree.nodes.values()}


def steps() -> list[Callable[[StagedDirectory], object]]:
    """Operations of all kinds; none of them syncs."""

    def write(name: bytes) -> Callable[[StagedDirectory], object]:
        return lambda directory: put(directory, name, b"bytes of " + name)

    def number(directory: StagedDirectory, name: bytes) -> int:
        entry = directory.find(ROOT, name)
        assert entry is not None
        return entry.id

    return [
        write(b"a"),
        write(b"b"),
        lambda d: d.adopt(b"c", 4, 10, 0o644, 0, 0, 1),
        lambda d: d.rename(ROOT, b"a", ROOT, b"aa"),
        lambda d: d.set_attributes(number(d, b"b"), mode=0o600),
        lambda d: d.truncate(number(d, b"c"), 0),
        write(b"t"),
        lambda d: d.rename(ROOT, b"t", ROOT, b"b", hides=5),
        lambda d: d.unlink(ROOT, b"aa"),
        lambda d: d.hide(9),
        lambda d: d.seal.begin("k", "token") and None,
        write(b"late"),
        lambda d: d.seal.failed(),
    ]


@dataclass
class Cut:
    """A staged directory as it may lie on disk after the machine went down."""

    path: Path
    journal: bytes

    def at(self, size: int, target: Path) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.path, target)
        (target / "journal").write_bytes(self.journal[:size])
        return target


def test_every_cut_of_a_run_gives_the_state_after_one_of_its_operations(place: Place, tmp_path: Path) -> None:
    directory = place.area.create("k", base_version="v1")
    path = journal_of(place, directory)
    states: list[tuple[int, State]] = [(path.stat().st_size, {})]
    for step in steps():
        step(directory)
        states.append((path.stat().st_size, state_of(directory._tree)))
    cut = Cut(path.parent, path.read_bytes())
    scratch = tmp_path / "scratch"
    cut.at(len(cut.journal), scratch)
    for size in range(states[0][0], len(cut.journal) + 1):
        (scratch / "journal").write_bytes(cut.journal[:size])
        ledger = recovery.load(scratch, writable=size % 16 == 0)
        assert ledger.refusal is None or ledger.refusal[1] == errno.EROFS
        # a step may be more than one record: writing a new file's name is one state, its bytes come after
        below = max(at for at, (end, _) in enumerate(states) if end <= size)
        allowed = [state for _, state in states[below : below + 2]]
        assert state_of(ledger.tree) in allowed, size
        ledger.close()
        if size % 16 == 0:  # that one has tidied up
            cut.at(len(cut.journal), scratch)


def test_nothing_that_was_synced_is_missing_after_any_power_loss(place: Place, tmp_path: Path) -> None:
    """What is on disk at the least: the journal up to where it was last synced, each data file that was not removed
    yet. So a removal must be durable before the bytes go."""
    directory = place.area.create("k", base_version="v1")
    path = journal_of(place, directory)
    put(directory, b"precious", b"synced bytes")
    put(directory, b"other", b"synced too")
    directory.sync()
    durable = path.stat().st_size
    scratch = tmp_path / "scratch"

    def check() -> None:
        cut = Cut(path.parent, path.read_bytes())
        for size in range(durable, len(cut.journal) + 1, 3):
            ledger = recovery.load(cut.at(size, scratch), writable=True)
            assert ledger.tree.doubt is None
            found = {node.name: node for node in ledger.tree.nodes.values()}
            if b"precious" in found:
                assert Path(ledger.data_path(found[b"precious"].data or 0)).read_bytes() in (b"synced bytes", b"newer")
            ledger.close()

    put(directory, b"new", b"newer")
    directory.rename(ROOT, b"new", ROOT, b"precious")
    check()
    directory.unlink(ROOT, b"other")
    check()
    directory.unlink(ROOT, b"precious")
    check()
    assert len(data_files(place, directory)) == 3
    directory.sync()
    assert data_files(place, directory) == []


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Pretends, when called, that the machine has been started again."""
    runs = 0

    def restart() -> None:
        nonlocal runs
        runs += 1

    monkeypatch.setattr(config, "boot_id", lambda: f"run {runs}")
    return restart


def test_after_a_power_loss_what_was_not_synced_is_in_doubt(place: Place, machine: Callable[[], None]) -> None:
    clean, dirty, changed = (place.area.create(key) for key in ("clean", "dirty", "changed"))
    for directory in (clean, dirty, changed):
        number = put(directory, b"f", b"x")
        directory.sync()
    put(dirty, b"g", b"y")
    with changed.open(number, True) as file:  # no name changes: the journal is told all the same, durably
        file.pwrite(b"z", 0)
    place.again()
    assert {report.state for report in place.area.reports()} == {"staged"}, "a process that died loses nothing"
    machine()
    place.again()
    assert {r.key: r.state for r in place.area.reports()} == {
        "clean": "staged",
        "dirty": "doubtful",
        "changed": "doubtful",
    }
    place.again()
    with refused(errno.EIO):
        place["dirty"].seal.begin("dirty", "t")
    place["dirty"].trust()
    place["clean"].seal.begin("clean", "t")
    machine()
    place.again()
    assert {r.key: r.state for r in place.area.reports()} == {
        "clean": "sealing",
        "dirty": "staged",
        "changed": "doubtful",
    }


def test_a_change_in_place_is_in_doubt_even_if_only_its_bytes_reached_the_disk(
    place: Place, machine: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = place.area.create("k")
    number = put(directory, b"f", b"synced")
    directory.sync()
    path, real = journal_of(place, directory), os.fsync
    durable = path.stat().st_size

    def fsync(descriptor: int) -> None:
        nonlocal durable
        real(descriptor)
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(path):
            durable = os.fstat(descriptor).st_size

    monkeypatch.setattr(os, "fsync", fsync)
    put(directory, b"g", b"another record, that is not on disk")
    with directory.open(number, True) as file:
        file.pwrite(b"torn", 0)
    machine()
    place.area.close()
    os.truncate(path, durable)
    place.again()
    assert place.area.reports()[0].state == "doubtful"


def test_syncing_the_last_unsynced_file_leaves_no_doubt(place: Place, machine: Callable[[], None]) -> None:
    directory = place.area.create("k")
    with directory.create(ROOT, b"f") as file:
        file.pwrite(b"x", 0)
        file.fsync()
    directory.rename(ROOT, b"f", ROOT, b"g")
    with directory.open(file.id, True) as file:
        file.fsync()
    machine()
    place.again()
    assert place.area.reports()[0].state == "staged"


def test_data_that_is_missing_is_shown_empty_and_in_doubt(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"f", b"x")
    (place.area.path / directory.id / "data" / "1").unlink()
    place.again()
    assert get(place["k"], b"f") == b""
    report = place.area.reports()[0]
    assert report.state == "doubtful"
    assert "missing" in (report.reason or "")


# --- damage ---------------------------------------------------------------------------------------------------------


def test_a_damaged_directory_is_kept_shown_and_never_changed(place: Place) -> None:
    directory = place.area.create("k")
    for name in (b"a", b"b", b"c"):
        put(directory, name, b"bytes of " + name)
    place.area.create("healthy")
    path = journal_of(place, directory)
    data = bytearray(path.read_bytes())
    data[data.index(b"\xc4\x01b")] ^= 0xFF
    path.write_bytes(data)
    orphan = path.parent / "data" / "77"
    orphan.write_bytes(b"perhaps somebody's")
    for _ in range(2):
        place.again()
        directory = place["k"]
        report = next(report for report in place.area.reports() if report.key == "k")
        assert report.state == "damaged"
        assert "goes on at byte" in (report.reason or "")
        assert path.read_bytes() == data
        assert orphan.exists()
        assert (names(directory), get(directory, b"a")) == ([b"a"], b"bytes of a")
        for change in (
            lambda d: d.create(ROOT, b"x"),
            lambda d: d.unlink(ROOT, b"a"),
            lambda d: d.seal.begin("k", "t"),
            lambda d: place.area.rename(d, "l", "key"),
        ):
            with refused(errno.EIO):
                change(directory)
    put(place["healthy"], b"f", b"x")
    place.area.sync()
    place.area.discard(directory)
    assert not path.parent.exists()


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_a_directory_without_a_journal_is_kept(place: Place, content: bytes | None) -> None:
    directory = place.area.create("k")
    put(directory, b"f", b"x")
    path = journal_of(place, directory)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    place.again()
    (report,) = place.area.reports()
    assert (report.state, report.id) == ("damaged", directory.id)
    assert (path.parent / "data" / "1").read_bytes() == b"x"


def test_records_of_another_format_are_damage(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"f", b"x")
    path = journal_of(place, directory)
    scanned = scan(path)
    journal = Journal(path, len(scanned.payloads), scanned.end)
    journal.append(b"\x91\xa6future")
    journal.close()
    place.again()
    (report,) = place.area.reports()
    assert report.state == "damaged"
    assert "record 4 of its journal makes no sense" in (report.reason or "")


# --- a disk that fails ----------------------------------------------------------------------------------------------


def test_a_journal_that_could_not_be_synced_is_written_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = place.area.create("k")
    put(directory, b"f", b"x")
    journal, real = str(journal_of(place, directory)), os.fsync

    def fails(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(journal):  # and the one that takes its place
            raise OSError(errno.EIO, "the disk")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with refused(errno.EIO):
            directory.sync()
        with refused(errno.EIO):
            directory.create(ROOT, b"g")
    before = os.stat(journal).st_ino
    directory.sync()
    assert os.stat(journal).st_ino != before
    put(directory, b"g", b"y")
    place.again()
    assert names(place["k"]) == [b"f", b"g"]


def test_a_long_journal_is_written_anew(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "JOURNAL_SLACK", 50)
    directory = place.area.create("k", base_version="v1")
    directory.hide(3)
    directory.adopt(b"base", 4, 10, 0o644, 1, 2, 3)
    put(directory, b"kept", b"x")
    for number in range(300):
        put(directory, b"%d" % number, b"")
        directory.unlink(ROOT, b"%d" % number)
    before = (directory.children(), directory.entry(ROOT), directory.base_version, directory._tree.next_id)
    assert len(scan(journal_of(place, directory)).payloads) < 150
    place.again()
    directory = place["k"]
    assert before == (directory.children(), directory.entry(ROOT), directory.base_version, directory._tree.next_id)
    assert [directory.hides(number) for number in (3, 4, 5)] == [True, True, False]


def test_a_journal_stays_as_it_is_while_a_seal_runs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "JOURNAL_SLACK", 20)
    directory = place.area.create("k")
    kept = put(directory, b"kept", b"x")
    directory.seal.begin("k", "t")
    for number in range(60):
        put(directory, b"%d" % number, b"")
        directory.unlink(ROOT, b"%d" % number)
    assert len(scan(journal_of(place, directory)).payloads) > 100
    place.again()
    found = place["k"].seal.snapshot
    assert found is not None
    assert [entry.id for entry in found.entries] == [kept]


def test_children_are_written_after_their_parents(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory moved into a younger one: the journal written anew names the younger one first."""
    monkeypatch.setattr(config, "JOURNAL_SLACK", 5)
    directory = place.area.create("k.tmp", "plain")
    old = directory.mkdir(ROOT, b"old")
    put(directory, b"f", b"x", old.id)
    young = directory.mkdir(ROOT, b"young")
    directory.rename(ROOT, b"old", young.id, b"old")
    for _ in range(10):
        directory.set_attributes(young.id, mode=0o700)
    place.again()
    assert get(place["k.tmp"], b"f", old.id) == b"x"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() or os.system(f"mount -t tmpfs -o size=8m tmpfs {path} 2>/dev/null"):
        pytest.skip("mounting a tmpfs takes root")
    try:
        yield path
    finally:
        assert os.system(f"umount -l {path}") == 0


@pytest.mark.parametrize("same_disk", [False, True])
def test_a_full_disk_is_told_at_the_write(small_disk: Path, same_disk: bool) -> None:
    area = StagingArea.open(URL, root=small_disk / "state", store_path=small_disk if same_disk else None)
    directory = area.create("k")
    written = 0
    with directory.create(ROOT, b"f") as file:
        with refused(errno.ENOSPC):
            while True:
                file.pwrite(bytes([written % 251]) * 10_000, written)
                written += 10_000
        assert directory.entry(file.id).size == written
        with refused(errno.ENOSPC):
            file.truncate(written + (64 << 20)) if same_disk else file.fallocate(written, 64 << 20)
        assert directory.entry(file.id).size == written
    assert (3_500_000 if same_disk else 7_500_000) < written < (4_200_000 if same_disk else 8_400_000)
    area.close()
    area = StagingArea.open(URL, root=small_disk / "state", store_path=small_disk if same_disk else None)
    found = area.find("k")
    assert found is not None
    assert found.data_bytes == written
    snapshot = found.seal.begin("k", "token")
    if same_disk:
        (small_disk / "shard").write_bytes(bytes(written))  # what the seal has room for
        (small_disk / "shard").unlink()
    assert snapshot.entries[0].size == written
    found.seal.failed()
    for number in range(300):  # on a full disk still: names can be removed and changed
        found.rename(ROOT, b"f", ROOT, b"g%d" % number)
        found.rename(ROOT, b"g%d" % number, ROOT, b"f")
    found.unlink(ROOT, b"f")
    put(found, b"again", bytes(1_000_000))
    area.close()


def test_room_can_be_had_and_given_back(tmp_path: Path) -> None:
    room = Room(tmp_path / "room")
    room.grow(10_000_000, ahead=True)
    assert (tmp_path / "room").stat().st_blocks * 512 >= 11_000_000
    room.shrink(5_000)
    assert (tmp_path / "room").stat().st_size == Room(tmp_path / "room").size == 5_000
    room.shrink(6_000)
    assert room.size == 5_000


def test_a_failed_operation_of_the_disk_is_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StagingError) as caught:
        StagingArea.open(URL, root=tmp_path / "file")
    assert caught.value.errno == errno.ENOTDIR
