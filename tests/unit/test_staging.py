"""The staging area: what each operation does and refuses, and that it is still so when the area is opened again."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardfs import config
from shardfs.errors import StagingError
from shardfs.staging import ROOT, StagedDirectory, StagingArea, staged_stores
from shardfs.staging.area import store_id
from shardfs.staging.clock import now_ns

URL = "file:///data/store"


class Place:
    """An area that can be closed and opened again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.area = StagingArea.open(URL, root=root)

    def again(self) -> None:
        self.area.close()
        self.area = StagingArea.open(URL, root=self.root)

    def __getitem__(self, key: str) -> StagedDirectory:
        found = self.area.find(key)
        assert found is not None
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.area.close()


def put(directory: StagedDirectory, name: bytes, data: bytes, parent: int = ROOT) -> int:
    with directory.create(parent, name) as file:
        assert file.pwrite(data, 0) == len(data)
        return file.id


def get(directory: StagedDirectory, name: bytes, parent: int = ROOT) -> bytes:
    entry = directory.find(parent, name)
    assert entry is not None
    with directory.open(entry.id, False) as file:
        return file.pread(1 << 30, 0)


def names(directory: StagedDirectory, parent: int = ROOT) -> list[bytes]:
    return [entry.name for entry in directory.children(parent)]


def data_files(place: Place, directory: StagedDirectory) -> list[str]:
    return sorted(os.listdir(place.area.path / directory.id / "data"))


@contextlib.contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(StagingError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code]


# --- files ----------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_is_there_again(place: Place) -> None:
    directory = place.area.create("train/k\udcff", base_version="v1")
    put(directory, b"a\xff.jpg", b"hello")
    with directory.create(ROOT, b"b", mode=0o600, uid=7, gid=8) as file:
        assert file.pwrite(memoryview(b"12345"), 3) == 5
        assert file.pread(100, 0) == b"\0\0\0" + b"12345"
        assert file.pread(2, 4) == b"23"
        file.truncate(4)
        before = directory.entry(file.id)
    assert (before.size, before.mode, before.uid, before.gid) == (4, 0o600, 7, 8)
    place.again()
    directory = place["train/k\udcff"]
    assert names(directory) == [b"a\xff.jpg", b"b"]
    assert (get(directory, b"a\xff.jpg"), get(directory, b"b")) == (b"hello", b"\0\0\0" + b"1")
    assert directory.find(ROOT, b"b") == before
    assert (directory.base_version, directory.kind, directory.data_bytes) == ("v1", "key", 9)


def test_everything_on_disk_is_private_and_named_by_us(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"secret name", b"x")
    directory.sync()
    paths = [place.area.path, *place.area.path.rglob("*")]
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in paths if path.is_dir())
    assert not [path for path in paths if "secret" in path.name]
    assert place.area.path == place.root / store_id(URL)
    assert (place.area.path / "url").read_text() == URL + "\n"
    assert staged_stores(place.root) == [URL]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"there", errno.EEXIST),
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0", errno.EINVAL),
    ],
)
def test_names_that_cannot_be_made(place: Place, name: bytes, code: int) -> None:
    directory = place.area.create("k.tmp", "plain")
    put(directory, b"there", b"")
    with refused(code):
        directory.create(ROOT, name)
    with refused(code):
        directory.mkdir(ROOT, name)
    assert names(directory) == [b"there"]
    assert len(data_files(place, directory)) == 1


def test_a_removed_file_lives_as_long_as_it_is_open(place: Place) -> None:
    directory = place.area.create("k")
    file = directory.create(ROOT, b"f")
    file.pwrite(b"abc", 0)
    directory.unlink(ROOT, b"f")
    assert directory.find(ROOT, b"f") is None
    assert directory.writers == 0, "a removed file keeps nobody from sealing"
    assert directory.data_bytes == 0
    file.pwrite(b"def", 3)
    file.fsync()
    assert file.pread(10, 0) == b"abcdef"
    assert directory.entry(file.id).size == 6
    assert directory.set_attributes(file.id, mode=0o400).mode == 0o400
    directory.truncate(file.id, 1)
    assert file.pread(10, 0) == b"a"
    with refused(errno.ENOENT):
        directory.open(file.id, False)
    file.close()
    directory.sync()
    assert data_files(place, directory) == []
    with refused(errno.ENOENT):
        directory.entry(file.id)
    with refused(errno.EBADF):
        file.pread(1, 0)


def test_removed_data_waits_for_the_record_of_its_removal(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"f", b"abc")
    directory.unlink(ROOT, b"f")
    assert data_files(place, directory) == ["1"]
    put(directory, b"g", b"abc")
    directory.sync()
    assert data_files(place, directory) == ["2"]


def test_opening_refuses_what_cannot_be(place: Place) -> None:
    directory = place.area.create("k.tmp", "plain")
    sub = directory.mkdir(ROOT, b"d")
    with refused(errno.EISDIR):
        directory.open(sub.id, False)
    with refused(errno.EISDIR):
        directory.open(ROOT, False)
    with refused(errno.ENOENT):
        directory.open(99, False)
    number = put(directory, b"f", b"x")
    with refused(errno.ENOTDIR):
        directory.create(number, b"g")
    with refused(errno.ENOTDIR):
        directory.children(number)
    with directory.open(number, False) as file, refused(errno.EBADF):
        file.pwrite(b"y", 0)


def test_writers_are_counted(place: Place) -> None:
    directory = place.area.create("k")
    first = directory.create(ROOT, b"f")
    second = directory.open(first.id, True)
    third = directory.open(first.id, False)
    assert directory.writers == 2
    first.close()
    first.close()
    assert directory.writers == 1
    second.close()
    assert directory.writers == 0
    third.close()


def test_fallocate_grows_the_file(place: Place) -> None:
    directory = place.area.create("k")
    with directory.create(ROOT, b"f") as file:
        file.pwrite(b"ab", 0)
        file.fallocate(0, 10_000)
        assert directory.entry(file.id).size == 10_000
        assert file.pread(3, 0) == b"ab\0"
    assert directory.data_bytes == 10_000


def test_times_are_kept_until_something_is_written(place: Place) -> None:
    directory = place.area.create("k")
    number = put(directory, b"f", b"x")
    directory.set_attributes(number, mtime_ns=5_000_000_001, atime_ns=6, mode=0o640)
    place.again()
    entry = place["k"].entry(number)
    assert (entry.mtime_ns, entry.atime_ns, entry.mode) == (5_000_000_001, 6, 0o640)
    with place["k"].open(number, True) as file:
        file.pwrite(b"y", 0)
    after = place["k"].entry(number)
    assert after.mtime_ns > entry.mtime_ns
    place.again()
    assert place["k"].entry(number) == after
    root = place["k"].set_attributes(ROOT, mtime_ns=77)
    place.again()
    assert place["k"].entry(ROOT) == root


# --- directories and renames ----------------------------------------------------------------------------------------


def test_a_tree_of_directories(place: Place) -> None:
    directory = place.area.create(".k", "plain")
    a = directory.mkdir(ROOT, b"a")
    b = directory.mkdir(a.id, b"b")
    put(directory, b"f", b"1", b.id)
    with refused(errno.ENOTEMPTY):
        directory.rmdir(ROOT, b"a")
    with refused(errno.EISDIR):
        directory.unlink(ROOT, b"a")
    with refused(errno.ENOTDIR):
        directory.rmdir(b.id, b"f")
    with refused(errno.EINVAL):
        directory.rename(ROOT, b"a", b.id, b"a")
    directory.rename(a.id, b"b", ROOT, b"c")
    directory.rmdir(ROOT, b"a")
    place.again()
    directory = place[".k"]
    assert names(directory) == [b"c"]
    assert directory.find(ROOT, b"c") is not None
    assert get(directory, b"f", b.id) == b"1"


def test_a_key_has_no_directories(place: Place) -> None:
    directory = place.area.create("k")
    with refused(errno.EPERM):
        directory.mkdir(ROOT, b"d")
    plain = place.area.create("p.tmp", "plain")
    plain.mkdir(ROOT, b"d")
    with refused(errno.EINVAL):
        place.area.rename(plain, "p", "key")
    assert place.area.find("p") is None


def test_rename_over_what_is_there(place: Place) -> None:
    directory = place.area.create("k.tmp", "plain")
    old = put(directory, b"f", b"old")
    new = put(directory, b"f.tmp", b"new")
    reader = directory.open(old, False)
    assert directory.rename(ROOT, b"f.tmp", ROOT, b"f").id == new
    assert reader.pread(9, 0) == b"old"
    reader.close()
    assert (names(directory), get(directory, b"f")) == ([b"f"], b"new")
    assert directory.rename(ROOT, b"f", ROOT, b"f").id == new
    directory.mkdir(ROOT, b"d")
    with refused(errno.EISDIR):
        directory.rename(ROOT, b"f", ROOT, b"d")
    with refused(errno.ENOTDIR):
        directory.rename(ROOT, b"d", ROOT, b"f")
    with refused(errno.ENOENT):
        directory.rename(ROOT, b"none", ROOT, b"f")
    with refused(errno.ENAMETOOLONG):
        directory.rename(ROOT, b"f", ROOT, b"x" * 256)
    directory.mkdir(ROOT, b"e")
    directory.rename(ROOT, b"e", ROOT, b"d")
    directory.sync()
    assert len(data_files(place, directory)) == 1
    place.again()
    assert sorted(names(place["k.tmp"])) == [b"d", b"f"]


def test_numbers_are_never_used_again(place: Place) -> None:
    directory = place.area.create("k")
    seen = set()
    for _ in range(3):
        seen.add(put(directory, b"f", b""))
        directory.unlink(ROOT, b"f")
        place.again()
        directory = place["k"]
    assert len(seen) == 3


# --- over a stored shard --------------------------------------------------------------------------------------------


def test_a_file_of_the_stored_shard_is_taken_over_and_copied_up(place: Place) -> None:
    directory = place.area.create("k", base_version="v1")
    entry = directory.adopt(b"0.json", 5, 6, 0o644, 1, 1, 1_000_000_007)
    assert directory.hides(5)
    assert (entry.base, entry.size) == (5, 6)
    with refused(errno.EINVAL):
        directory.open(entry.id, True)
    with refused(errno.EINVAL):
        directory.truncate(entry.id, 3)
    with refused(errno.EEXIST):
        directory.adopt(b"other", 5, 6, 0o644, 1, 1, 1)
    directory.copy_up(entry.id, iter([b"abc", memoryview(b"def")]))
    after = directory.entry(entry.id)
    assert (after.base, after.size, after.mtime_ns) == (None, 6, 1_000_000_007)
    directory.copy_up(entry.id, (pytest.fail("not asked for") for _ in "x"))
    place.again()
    directory = place["k"]
    assert get(directory, b"0.json") == b"abcdef"
    assert directory.entry(entry.id) == after
    directory.unlink(ROOT, b"0.json")
    directory.hide(7)
    place.again()
    assert [place["k"].hides(base) for base in (4, 5, 6, 7)] == [False, True, False, True]


def test_a_copy_that_fails_changes_nothing(place: Place) -> None:
    directory = place.area.create("k", base_version="v1")
    entry = directory.adopt(b"f", 5, 6, 0o644, 1, 1, 1)
    with refused(errno.EIO):
        directory.copy_up(entry.id, [b"short"])

    def broken() -> Iterator[bytes]:
        yield b"abc"
        raise StagingError("the store", errno.ESTALE)

    with refused(errno.ESTALE):
        directory.copy_up(entry.id, broken())
    assert directory.entry(entry.id) == entry
    assert (data_files(place, directory), directory.data_bytes) == ([], 0)


def test_emptying_a_stored_file_needs_no_copy(place: Place) -> None:
    directory = place.area.create("k", base_version="v1")
    entry = directory.adopt(b"f", 5, 6, 0o644, 1, 1, 1)
    directory.truncate(entry.id, 0)
    with directory.open(entry.id, True) as file:
        file.pwrite(b"new", 0)
    place.again()
    assert get(place["k"], b"f") == b"new"
    assert place["k"].hides(5)


def test_a_rename_over_a_stored_file_hides_it(place: Place) -> None:
    directory = place.area.create("k", base_version="v1")
    put(directory, b"f.tmp", b"new")
    directory.rename(ROOT, b"f.tmp", ROOT, b"f", hides=3)
    place.again()
    assert place["k"].hides(3)
    assert get(place["k"], b"f") == b"new"


# --- the area -------------------------------------------------------------------------------------------------------


def test_a_temporary_directory_becomes_a_key(place: Place) -> None:
    directory = place.area.create("k.tmp", "plain")
    put(directory, b"f", b"x")
    place.area.rename(directory, "k", "key")
    assert place.area.find("k.tmp") is None
    place.again()
    assert (place["k"].kind, get(place["k"], b"f")) == ("key", b"x")
    with refused(errno.EEXIST):
        place.area.create("k")
    other = place.area.create("l.tmp", "plain")
    with refused(errno.EEXIST):
        place.area.rename(other, "k", "key")
    put(other, b"g", b"y")
    place.area.rename(other, "k", "key", replaces=place["k"])
    assert [report.key for report in place.area.reports()] == ["k"]
    place.again()
    assert names(place["k"]) == [b"g"]


def test_a_replacement_cut_short_is_finished(place: Place) -> None:
    old, new = place.area.create("k"), place.area.create("k.tmp", "plain")
    put(old, b"f", b"x")
    put(new, b"g", b"y")
    new.set_key("k", "key", old.id)  # and the process dies before the old one is discarded
    place.again()
    assert [(report.key, report.id) for report in place.area.reports()] == [("k", new.id)]


def test_parked_ones_stay_and_are_not_sealed(place: Place) -> None:
    directory = place.area.create("k", base_version="v1")
    put(directory, b"f", b"x")
    first = place.area.park(directory, "the stored shard has changed")
    assert first.startswith("k.conflict-")
    again = place.area.create("k")
    second = place.area.park(again, "once more")
    assert first != second
    place.again()
    report = place.area.reports()[0]
    assert (report.key, report.state, report.reason) == (first, "parked", "the stored shard has changed")
    assert (report.files, report.data_bytes, report.kind) == (1, 1, "key")
    with refused(errno.EINVAL):
        place[first].seal.begin("k", "t")
    place.area.rename(place[first], "k2", "key")
    assert place["k2"].seal.begin("k2", "t").key == "k2"


def test_discarding_leaves_nothing(place: Place) -> None:
    directory = place.area.create("k")
    file = directory.create(ROOT, b"f")
    file.pwrite(b"abc", 0)
    place.area.discard(directory)
    assert sorted(os.listdir(place.area.path)) == ["lock", "url"]
    assert file.pread(3, 0) == b"abc", "whoever has it open can still read"
    with refused(errno.EBADF):
        file.pwrite(b"x", 0)
    with refused(errno.EBADF):
        directory.create(ROOT, b"g")
    file.close()


def test_what_was_left_half_made_is_removed(place: Place) -> None:
    directory = place.area.create("k")
    put(directory, b"f", b"x")
    path = place.area.path
    (path / "0123.new" / "data").mkdir(parents=True)
    (path / "4567.gone").mkdir()
    (path / directory.id / "data" / "99").write_bytes(b"nobody's")
    (path / directory.id / "journal.new").write_bytes(b"half")
    place.again()
    assert sorted(os.listdir(path)) == sorted(["lock", "url", directory.id])
    assert data_files(place, place["k"]) == ["1"]
    assert not (path / directory.id / "journal.new").exists()
    put(place["k"], b"g", b"y")
    assert data_files(place, place["k"]) == ["1", "100"], "a number that was seen is not used again"


def test_looking_only(place: Place) -> None:
    with pytest.raises(StagingError, match="nothing is staged"):
        StagingArea.open("other", root=place.root, read_only=True)
    number = put(place.area.create("k"), b"f", b"abc")
    looking = StagingArea.open(URL, root=place.root, read_only=True)
    directory = looking.find("k")
    assert directory is not None
    assert get(directory, b"f") == b"abc"
    assert [report.state for report in looking.reports()] == ["staged"]
    for change in (
        lambda: directory.create(ROOT, b"g"),
        lambda: directory.truncate(number, 0),
        lambda: directory.open(number, True),
        lambda: directory.sync(),
        lambda: looking.create("l"),
        lambda: looking.discard(directory),
    ):
        with refused(errno.EROFS):
            change()
    looking.close()
    assert get(place["k"], b"f") == b"abc"


def test_few_descriptors_are_held(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "JOURNALS_OPEN", 4)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        put(place.area.create(f"k{number}"), b"f", b"x")
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    put(place["k0"], b"g", b"y")
    place.again()
    assert names(place["k0"]) == [b"f", b"g"]


def test_a_directory_holds_so_many_entries_and_no_more(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "STAGED_ENTRIES", 2)
    directory = place.area.create("k")
    put(directory, b"1", b"")
    put(directory, b"2", b"")
    with refused(errno.ENOSPC):
        directory.create(ROOT, b"3")


def test_room_for_the_shard_is_kept_where_the_store_is_on_the_same_disk(tmp_path: Path) -> None:
    area = StagingArea.open(URL, root=tmp_path, store_path=tmp_path / "not" / "made" / "yet")
    directory = area.create("k", base_version="v", base_bytes=3_000_000)
    room = area.path / directory.id / "room"
    assert room.stat().st_blocks * 512 >= 3_000_000
    put(directory, b"f", bytes(2_000_000))
    assert room.stat().st_blocks * 512 >= 5_000_000
    directory.seal.begin("k", "t")
    assert room.stat().st_size == config.STAGED_SPARE
    put(directory, b"g", bytes(2_000_000))
    directory.seal.failed()
    assert room.stat().st_blocks * 512 >= 7_000_000
    area.close()
    other = StagingArea.open("other", root=tmp_path)
    directory = other.create("k")
    put(directory, b"f", bytes(2_000_000))
    assert (other.path / directory.id / "room").stat().st_size == config.STAGED_SPARE
    other.close()


def test_many_threads_in_one_directory(place: Place) -> None:
    directory = place.area.create("k")
    stop = threading.Event()

    def work(worker: int) -> None:
        for number in range(60):
            name = b"%d-%d" % (worker, number)
            with directory.create(ROOT, name) as file:
                file.pwrite(name * 100, 0)
                if number % 20 == 0:
                    file.fsync()
            if number % 3 == 0:
                directory.unlink(ROOT, name)
            elif number % 3 == 1:
                directory.rename(ROOT, name, ROOT, name + b"!")

    def seal() -> None:
        while not stop.is_set():
            try:
                snapshot = directory.seal.begin("k", "t")
            except StagingError as error:
                if error.errno != errno.EBUSY:
                    raise
                continue
            for entry in snapshot.entries:
                assert len(entry.read()) == entry.size
            directory.seal.failed()

    with ThreadPoolExecutor(5) as pool:
        sealing = pool.submit(seal)
        working = [pool.submit(work, worker) for worker in range(4)]
        try:
            for future in working:
                future.result(60)
        finally:
            stop.set()
        sealing.result(60)
    place.again()
    found = place["k"]
    want = {b"%d-%d" % (w, n) + (b"!" if n % 3 == 1 else b"") for w in range(4) for n in range(60) if n % 3}
    assert set(names(found)) == want
    assert all(get(found, name) == name.rstrip(b"!") * 100 for name in want)


def test_the_time_of_a_new_file_is_not_behind_that_of_a_later_touch(tmp_path: Path) -> None:
    """Files in the heap were dated by a finer clock than the kernel's, by which `touch` came before the writing."""
    beside = tmp_path / "beside"
    for _ in range(20):
        before = now_ns()
        beside.touch()
        assert before <= beside.stat().st_mtime_ns
