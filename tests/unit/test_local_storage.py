"""A local directory as a storage: nothing but regular files below the root, whole writes, exact versions."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from shardfs.errors import BadStoreError, StaleShardError, StorageError
from shardfs.storage import local
from shardfs.storage.local import TEMPORARY, LocalStorage, temporary_name


def writing(data: bytes) -> Callable[[BinaryIO], None]:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return write


def names_in(storage: LocalStorage, *endings: str) -> list[str]:
    return [listed.name for listed in storage.list(endings or (".gz",))]


def tree_of(path: Path) -> set[str]:
    return {str(found.relative_to(path)) for found in path.rglob("*")}


# --- listing ----------------------------------------------------------------------------------------------------


def test_files_are_listed_sorted_at_any_depth(tmp_path: Path) -> None:
    for name in ("b.gz", "a.gz", "sub/c.gz", "sub/deep/er/d.gz", "x.gz/inside.gz", "other.txt", ".gz", ".h/e.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    listed = LocalStorage(tmp_path).list((".gz",))
    assert [found.name for found in listed] == [
        ".gz",
        ".h/e.gz",
        "a.gz",
        "b.gz",
        "sub/c.gz",
        "sub/deep/er/d.gz",
        "x.gz/inside.gz",
    ]
    status = (tmp_path / "a.gz").stat()
    assert (listed[2].size, listed[2].mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_only_regular_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "real.gz").write_bytes(b"x")
    (tmp_path / "link.gz").symlink_to("real.gz")
    (tmp_path / "dangling.gz").symlink_to("nowhere")
    (tmp_path / "dir.gz").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo.gz")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.gz"))
        storage = LocalStorage(tmp_path)
        assert names_in(storage) == ["real.gz"]
        for name in ("link.gz", "dangling.gz", "dir.gz", "fifo.gz", "socket.gz", "loop/real.gz"):
            with pytest.raises(StorageError):
                storage.open(name)
            with pytest.raises(StorageError):
                storage.stat(name)


def test_unfinished_writes_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}1234.gz").write_bytes(b"x")
    assert names_in(LocalStorage(tmp_path)) == []


def test_a_root_that_is_not_there_is_empty_and_one_that_is_a_file_is_refused(tmp_path: Path) -> None:
    assert names_in(LocalStorage(tmp_path / "none")) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadStoreError, match="no directory"):
        LocalStorage(tmp_path / "file")


def test_the_root_may_be_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.gz").write_bytes(b"x")
    (tmp_path / "root").symlink_to("real")
    assert names_in(LocalStorage(tmp_path / "root")) == ["a.gz"]


def test_names_that_are_no_text_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \n.gz")
    (tmp_path / name).write_bytes(b"x")
    storage = LocalStorage(tmp_path)
    assert names_in(storage) == [name]
    assert storage.read(name, 10) == b"x"


def test_regression_a_directory_that_vanishes_while_listing_does_not_fail_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b.gz").write_bytes(b"x")
    real = os.scandir

    def scandir(descriptor: int) -> object:
        if (tmp_path / "a").exists():
            found = list(real(descriptor))
            (tmp_path / "a").rmdir()
            (tmp_path / "a").symlink_to("nowhere")

            class Entries(list):  # type: ignore[type-arg]
                def __enter__(self) -> object:
                    return self

                def __exit__(self, *_: object) -> None: ...

            return Entries(found)
        return real(descriptor)

    monkeypatch.setattr(local.os, "scandir", scandir)
    assert names_in(LocalStorage(tmp_path)) == ["b.gz"]


# --- reading ----------------------------------------------------------------------------------------------------


def test_a_file_is_read_in_pieces_and_its_tail_at_any_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with LocalStorage(tmp_path).open("a") as reader:
        assert reader.size == 10
        assert reader.read(4) == b"0123"
        assert reader.tail(3) == b"789"
        assert reader.tail(100) == b"0123456789"
        assert reader.read(100) == b"456789"
        assert reader.read(100) == b""


def test_a_file_is_read_into_a_buffer_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    buffer = bytearray(7)
    with LocalStorage(tmp_path).open("a") as reader:
        assert (reader.readinto(memoryview(buffer)), bytes(buffer)) == (7, b"0123456")
        assert (reader.readinto(memoryview(buffer)), bytes(buffer[:3])) == (3, b"789")
        assert reader.readinto(memoryview(buffer)) == 0
        with (tmp_path / "a").open("ab") as grown:
            grown.write(b"x")
        assert reader.readinto(memoryview(buffer)) == 1
        with pytest.raises(StaleShardError):
            reader.readinto(memoryview(buffer))
    with pytest.raises(StorageError, match="reading"):
        reader.readinto(memoryview(buffer))


def test_any_part_of_a_file_is_read_whatever_was_read_before(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with LocalStorage(tmp_path).open("a") as reader:
        assert reader.read(4) == b"0123"
        assert reader.read_at(2, 5) == b"23456"
        assert reader.read_at(3, 0) == b""
        with pytest.raises(StaleShardError):
            reader.read_at(8, 5)
        assert reader.read(2) == b"45"


def test_a_part_that_comes_in_short_reads_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    real = os.pread
    monkeypatch.setattr(local.os, "pread", lambda descriptor, count, at: real(descriptor, min(count, 3), at))
    with LocalStorage(tmp_path).open("a") as reader:
        assert reader.read_at(1, 8) == b"12345678"


def test_a_part_of_a_file_that_was_written_to_is_stale(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with LocalStorage(tmp_path).open("a") as reader:
        assert reader.read_at(0, 1) == b"0"
        os.truncate(tmp_path / "a", 5)
        for offset in (0, 8):
            with pytest.raises(StaleShardError):
                reader.read_at(offset, 2)


def test_a_read_after_closing_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    reader = LocalStorage(tmp_path).open("a")
    reader.close()
    reader.close()
    with pytest.raises(StorageError) as caught:
        reader.read(1)
    assert caught.value.errno == errno.EBADF


def test_another_version_than_the_listed_one_is_stale(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a.gz", writing(b"one"))
    version = storage.stat("a.gz").version
    with storage.open("a.gz", version) as reader:
        assert reader.read(9) == b"one"
    storage.put("a.gz", writing(b"two"))
    with pytest.raises(StaleShardError):
        storage.open("a.gz", version)
    assert storage.stat("a.gz").version != version


def test_a_file_replaced_while_open_is_read_as_it_was(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a.gz", writing(b"one"))
    with storage.open("a.gz") as reader:
        storage.put("a.gz", writing(b"two"))
        assert reader.read(9) == b"one"
        assert reader.read(9) == b""


def test_regression_a_file_written_to_while_it_is_read_does_not_end_well(tmp_path: Path) -> None:
    """squirrel-core overwrites in place: old and new bytes were taken for one content."""
    path = tmp_path / "a.gz"
    path.write_bytes(b"one" * 10)
    with LocalStorage(tmp_path).open("a.gz") as reader:
        assert reader.read(15) == b"one" * 5
        with path.open("r+b") as file:
            file.write(b"two" * 10)
        os.utime(path, ns=(0, 12345))
        assert reader.read(100) == b"two" * 5
        with pytest.raises(StaleShardError, match="changed while"):
            reader.read(1)


def test_a_whole_small_file_is_read_and_a_large_one_refused(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes(b"{}")
    storage = LocalStorage(tmp_path)
    assert storage.read("index.json", 2) == b"{}"
    with pytest.raises(StorageError) as caught:
        storage.read("index.json", 1)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("none", errno.ENOENT),
        ("none/deeper", errno.ENOENT),
        ("file/below", errno.ENOTDIR),
        ("dir", errno.ENOENT),
        ("", errno.EINVAL),
        ("..", errno.EINVAL),
        ("../secret", errno.EINVAL),
        ("dir/../../secret", errno.EINVAL),
        ("dir/./x", errno.EINVAL),
    ],
)
def test_what_is_not_there_has_its_errno(tmp_path: Path, name: str, code: int) -> None:
    root = tmp_path / "root"
    (root / "dir").mkdir(parents=True)
    (root / "file").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"secret")
    with pytest.raises(StorageError) as caught:
        LocalStorage(root).stat(name)
    assert caught.value.errno == code


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300, "x" * 300 + "/y", "/abs", "a//b", "sub//a", "/"])
@pytest.mark.parametrize("call", ["stat", "open", "put", "remove"])
def test_regression_what_can_be_no_name_is_a_storage_error(tmp_path: Path, name: str, call: str) -> None:
    """ValueError, UnicodeEncodeError and bare OSErrors came out; `/a` and `a//b` were other names of `a` and `a/b`."""
    (tmp_path / "sub").mkdir()
    for file in ("abs", "sub/a"):
        (tmp_path / file).write_bytes(b"x")
    storage = LocalStorage(tmp_path)
    before = tree_of(tmp_path)
    with pytest.raises(StorageError) as caught:
        storage.put(name, writing(b"")) if call == "put" else getattr(storage, call)(name)
    assert caught.value.errno in (errno.EINVAL, errno.ENAMETOOLONG)
    assert tree_of(tmp_path) == before


# --- writing ----------------------------------------------------------------------------------------------------


def test_a_put_makes_directories_and_leaves_nothing_else(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "new/store")
    storage.put("train/part/a.gz", writing(b"content"))
    assert storage.read("train/part/a.gz", 100) == b"content"
    assert tree_of(tmp_path / "new/store") == {"train", "train/part", "train/part/a.gz"}


def test_a_put_that_fails_leaves_the_old_content_and_no_file(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a.gz", writing(b"old"))

    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        storage.put("a.gz", fail)
    assert storage.read("a.gz", 100) == b"old"
    assert tree_of(tmp_path) == {"a.gz"}


def test_a_put_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    rename, fsync = os.rename, os.fsync

    def renaming(*arguments: object, **others: object) -> None:
        calls.append("rename")
        rename(*arguments, **others)  # type: ignore[arg-type]

    def syncing(descriptor: int) -> None:
        calls.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    monkeypatch.setattr(local.os, "rename", renaming)
    monkeypatch.setattr(local.os, "fsync", syncing)
    LocalStorage(tmp_path).put("a.gz", writing(b"x"))
    assert calls == ["file", "rename", "directory"]
    calls.clear()
    LocalStorage(tmp_path / "new").put("sub/a.gz", writing(b"x"))
    # regression: the entries of new directories were not made durable
    assert calls == ["directory", "directory", "file", "rename", "directory"]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_a_failing_disk_is_a_storage_error_and_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    storage = LocalStorage(tmp_path)
    storage.put("a.gz", writing(b"old"))
    monkeypatch.setattr(local.os, failing, fail)
    with pytest.raises(StorageError, match="No space left") as caught:
        storage.put("a.gz", writing(b"new"))
    assert caught.value.errno == errno.ENOSPC
    assert tree_of(tmp_path) == {"a.gz"}
    assert (tmp_path / "a.gz").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["link/a.gz", "link/new/a.gz", "../outside/new/a.gz", "a/../../outside/new/a.gz"])
def test_regression_a_put_makes_nothing_outside_of_the_root(tmp_path: Path, name: str) -> None:
    """Directories were made through symbolic links and `..` before the name was refused."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError):
        LocalStorage(tmp_path / "root").put(name, writing(b"x"))
    assert tree_of(tmp_path / "outside") == set()
    assert tree_of(tmp_path / "root") <= {"link", "a"}


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"untouched")
    (tmp_path / "a.gz").symlink_to("target")
    LocalStorage(tmp_path).put("a.gz", writing(b"new"))
    assert (tmp_path / "target").read_bytes() == b"untouched"
    assert not (tmp_path / "a.gz").is_symlink()


def test_a_directory_in_the_place_of_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "a.gz").mkdir()
    storage = LocalStorage(tmp_path)
    with pytest.raises(StorageError):
        storage.put("a.gz", writing(b"x"))
    with pytest.raises(StorageError):
        storage.remove("a.gz")
    assert tree_of(tmp_path) == {"a.gz"}


def test_what_was_removed_is_gone(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("sub/a.gz", writing(b"x"))
    storage.remove("sub/a.gz")
    assert names_in(storage) == []
    with pytest.raises(StorageError) as caught:
        storage.remove("sub/a.gz")
    assert caught.value.errno == errno.ENOENT


# --- changes ----------------------------------------------------------------------------------------------------


def test_a_change_of_names_shows_and_quiet_does_not(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert storage.changed()
    storage.put("sub/a.gz", writing(b"x"))
    for path in (tmp_path / "sub", tmp_path):
        os.utime(path, ns=(10**18, 10**18))  # long ago: nothing else can have happened at that moment
    storage.list((".gz",))
    assert not storage.changed()
    storage.put("sub/b.gz", writing(b"x"))
    assert storage.changed()
    storage.list((".gz",))
    (tmp_path / "sub/a.gz").unlink()
    (tmp_path / "sub/b.gz").unlink()
    (tmp_path / "sub").rmdir()
    assert storage.changed()


def test_a_directory_that_may_not_be_read_is_passed_over() -> None:
    """A lost+found in the root of a disk made the whole store unreadable for everybody but root."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        (root / "a.gz").write_bytes(b"1")
        (root / "lost+found").mkdir(mode=0o700)
        (root / "lost+found/b.gz").write_bytes(b"1")
        if os.geteuid() != 0:
            (root / "lost+found").chmod(0)
        become = os.geteuid() == 0
        try:
            if become:
                os.seteuid(65534)
            names = [listed.name for listed in LocalStorage(root).list((".gz",))]
        finally:
            if become:
                os.seteuid(0)
            (root / "lost+found").chmod(0o700)
    assert names == ["a.gz"]


@pytest.mark.parametrize("empty", [False, True], ids=["gone", "another, empty one"])
def test_regression_a_root_that_vanished_is_not_made_anew(tmp_path: Path, empty: bool) -> None:
    """What is written to the mount point of a disk that was unmounted is out of sight once it is mounted again."""
    storage = LocalStorage(tmp_path / "root")
    storage.put("a", lambda file: file.write(b"1") and None)
    (tmp_path / "root").rename(tmp_path / "away")
    if empty:
        (tmp_path / "root").mkdir()
    for change in (lambda: storage.put("b/c", lambda file: None), lambda: storage.make_directory("d")):
        with pytest.raises(StorageError) as caught:
            change()
        assert caught.value.errno == errno.EIO
    assert (tmp_path / "root").exists() == empty
    assert not empty or not list((tmp_path / "root").iterdir())
    if empty:
        (tmp_path / "root").rmdir()
    (tmp_path / "away").rename(tmp_path / "root")
    storage.put("b/c", lambda file: None)


def test_what_a_dead_writer_left_is_removed_by_its_name(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    name, marks = temporary_name(), []
    storage.put("a/b", lambda file: file.write(b"1") and None, temporary=name, marked=marks.append)
    assert marks == [storage.mark("a/b")]
    (tmp_path / "a" / name).write_bytes(b"half")
    storage.remove_temporary("a/b", name)
    storage.remove_temporary("a/b", name)
    storage.remove_temporary("nowhere/b", name)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    for odd in ("b", f"../{name}", f"{name}/b"):
        with pytest.raises(StorageError):
            storage.remove_temporary("a/b", odd)
    storage.sync("a/b")


def test_a_mark_that_cannot_be_kept_ends_the_write(tmp_path: Path) -> None:
    def full(mark: str) -> None:
        raise StorageError("the journal", errno.ENOSPC)

    with pytest.raises(StorageError, match="the journal"):
        LocalStorage(tmp_path).put("a", lambda file: None, marked=full)
    assert list(tmp_path.iterdir()) == []
