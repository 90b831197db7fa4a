"""A writable file system against a dict: any changes, with seals, new mounts and evictions between, and no kernel."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from shardfs import open_store
from shardfs.errors import ShardfsError
from shardfs.model import Key
from shardfs.writing import Change
from tests.conformance.trees import wait_for
from tests.unit.writing_player import KEYS, STEPS, KeysAsDicts, Mount

NAMES = [f"{stem:06d}.{field}.bin" for stem in range(4) for field in "fg"]


class Writing(KeysAsDicts):
    """Keys are dicts of names and bytes."""

    keys, names = st.sampled_from(KEYS), st.sampled_from(NAMES)
    contents = st.binary(max_size=300).map(lambda data: b"text " + data.hex().encode())

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        open_store(self.root / "store", driver="squirrel").set([{"f": b"one"}, {"f": b"two", "g": b"three"}], "old")
        self.model = {"old": {"000000.f.bin": b"one", "000001.f.bin": b"two", "000001.g.bin": b"three"}}
        self.mount = self._mounted()

    def _mounted(self) -> Mount:
        return Mount(self.root / "store", self.root / "state", delete=True, overwrite=True)

    @rule(key=keys, name=names, data=contents)
    def write(self, key: str, name: str, data: bytes) -> None:
        self._key(key)[name] = data
        self.mount.write(f"{key}/{name}", data)

    @rule(key=keys, name=names, data=contents, offset=st.integers(0, 400))
    def write_in_the_middle(self, key: str, name: str, data: bytes, offset: int) -> None:
        files = self._key(key)
        before = files.get(name, b"text ")
        if name not in files:
            self.mount.write(f"{key}/{name}", before)
        files[name] = before.ljust(offset, b"\0")[:offset] + data + before[offset + len(data) :]
        self.mount.write(f"{key}/{name}", data, offset, 0)

    @rule(key=keys, name=names, size=st.integers(0, 400))
    def truncate(self, key: str, name: str, size: int) -> None:
        files = self.model.get(key, {})
        if name in files:
            self.mount.truncate(f"{key}/{name}", size)
            files[name] = files[name][:size].ljust(size, b"\0")

    @rule(key=keys, name=names)
    def unlink(self, key: str, name: str) -> None:
        files = self.model.get(key, {})
        if files.pop(name, None) is not None:
            self.mount.unlink(f"{key}/{name}")

    @rule(key=keys, name=names, new=names)
    def rename(self, key: str, name: str, new: str) -> None:
        files = self.model.get(key, {})
        if name in files:
            files[new] = files.pop(name)
            self.mount.rename(f"{key}/{name}", f"{key}/{new}")

    @rule(key=keys)
    def remove(self, key: str) -> None:
        if key in self.model:
            for name in self.model.pop(key):
                self.mount.unlink(f"{key}/{name}")
            self.mount.rmdir(key)

    @rule(key=keys, files=st.dictionaries(names, contents, min_size=1, max_size=3))
    def replace(self, key: str, files: dict[str, bytes]) -> None:
        self._replace(key, files)

    def _replace(self, key: str, files: dict[str, bytes]) -> None:
        self._key(key)
        temporary = self._plain(key, files)
        try:
            self.mount.rename(temporary, key)
            self.model[key] = self._sealed(files)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):  # staged files are in the way
                raise
            self._removed(temporary, files)

    def _sealed(self, files: dict[str, bytes]) -> dict[str, bytes]:
        """What a seal makes of files."""
        return renumbered(files)

    @rule(key=keys)
    def seal(self, key: str) -> None:
        if self.model.get(key):
            self.mount.sync(key)
            self.model[key] = self._sealed(self.model[key])


def renumbered(files: dict[str, bytes]) -> dict[str, bytes]:
    """What a seal makes of names."""
    stems = sorted({name.partition(".")[0] for name in files})
    return {f"{stems.index(name.partition('.')[0]):06d}.{name.partition('.')[2]}": data for name, data in files.items()}


TestWriting = Writing.TestCase
TestWriting.settings = STEPS
TestWriting.pytestmark = [pytest.mark.timeout(110)]  # type: ignore[attr-defined]


def test_what_the_kernel_has_forgotten_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with Mount(tmp_path / "store", tmp_path / "state") as mount:
        mount.mkdir("key")
        mount.mkdir("x.tmp")
        for number in range(20):
            handle, found = mount.ask(mount.vfs.create, mount.inode("key"), b"f%d" % number, 0o644, os.O_CREAT, 1, 2)
            mount.ask(mount.vfs.write, handle, 0, b"text")
            mount.unlink(f"key/f{number}")
            assert mount.read_at(handle, 0, 10) == b"text"
            assert mount.ask(mount.vfs.getattr, found.inode).size == 4
            mount.ask(mount.vfs.close, handle)
            mount.vfs.forget(found.inode, 1)
        mount.mkdir("x.tmp/sub")
        inode = mount.inode("x.tmp/sub")
        mount.rmdir("x.tmp/sub")
        mount.vfs.forget(inode, 2)
        assert mount.vfs._refs == {}
        assert mount.vfs._files == {}


@pytest.fixture
def free(tmp_path: Path) -> Iterator[Mount]:
    """A store of one key with two samples, and a mount that allows everything."""
    open_store(tmp_path / "store", driver="squirrel").set([{"f": b"one"}, {"f": b"two"}], "old")
    with Mount(tmp_path / "store", tmp_path / "state", delete=True, overwrite=True) as mount:
        yield mount


def test_a_refused_rename_of_an_empty_plain_directory_leaves_it_plain(free: Mount) -> None:
    free.mkdir("x.tmp")
    with pytest.raises(FileExistsError):
        free.rename("x.tmp", "old")
    free.write("x.tmp/000007.f.bin", b"x")
    free.sync("x.tmp")
    assert free.names("x.tmp") == ["000007.f.bin"], "it was stored, as a key of that name"
    free.mkdir("x.tmp/sub")


def test_a_directory_without_a_sample_replaces_no_stored_key(free: Mount) -> None:
    free.mkdir("x.tmp")
    free.write("x.tmp/.swp", b"x")
    with pytest.raises(FileExistsError):
        free.rename("x.tmp", "old")
    assert free.names("x.tmp") == [".swp"]
    assert free.names("old") == ["000000.f.bin", "000001.f.bin"]
    free.mkdir("x.tmp/sub")


@pytest.mark.parametrize("over", [False, True])
def test_who_reads_a_stored_file_goes_on_when_it_is_changed_and_removed(free: Mount, over: bool) -> None:
    handle, inode = free.open("old/000000.f.bin"), free.inode("old/000000.f.bin")
    free.write("old/000000.f.bin", b"changed")
    if over:
        free.write("old/note~", b"other")
        free.rename("old/note~", "old/000000.f.bin")
    else:
        free.unlink("old/000000.f.bin")
    assert free.read_at(handle, 0, 100) == b"changed"
    assert free.ask(free.vfs.getattr, inode).size == 7
    free.sync("old")
    assert free.read_at(handle, 0, 100) == b"changed"
    assert free.ask(free.vfs.getattr, inode).size == 7
    free.ask(free.vfs.close, handle)
    with pytest.raises(OSError, match=r".") as gone:
        free.read_at(handle, 0, 100)
    assert gone.value.errno == errno.ESTALE


@pytest.mark.parametrize("end", ["sync", "rmdir"])
def test_a_removed_file_is_written_to_after_its_directory_has_gone(free: Mount, end: str) -> None:
    path = "old" if end == "sync" else "x.tmp"
    if end == "rmdir":
        free.mkdir(path)
    free.write(f"{path}/note~", b"note")
    handle, inode = free.open(f"{path}/note~", os.O_RDWR), free.inode(f"{path}/note~")
    free.unlink(f"{path}/note~")
    if end == "sync":
        free.write("old/000001.f.bin", b"other")
        free.sync("old")
    else:
        free.rmdir(path)
    assert free.ask(free.vfs.write, handle, 2, b"TES and more") == 12
    assert free.ask(free.vfs.setattr, inode, Change(size=5), handle).size == 5
    free.ask(free.vfs.fsync, handle)
    assert free.read_at(handle, 0, 100) == b"noTES"
    assert free.ask(free.vfs.getattr, inode).size == 5
    free.ask(free.vfs.close, handle)


def test_a_key_in_which_a_file_was_made_and_removed_again_can_be_replaced(free: Mount) -> None:
    free.write("old/000007.f.bin", b"x")
    free.unlink("old/000007.f.bin")
    free.mkdir("x.tmp")
    free.write("x.tmp/000000.f.bin", b"new")
    free.rename("x.tmp", "old")
    assert free.names("old") == ["000000.f.bin"]
    assert free.read("old/000000.f.bin") == b"new"


@pytest.mark.parametrize("how", ["sync", "mount"])
def test_a_key_in_which_a_file_was_made_and_removed_again_follows_the_store(tmp_path: Path, how: str) -> None:
    store = open_store(tmp_path / "store", driver="squirrel")
    store.set([{"f": b"one"}], "old")
    mount = Mount(tmp_path / "store", tmp_path / "state")
    try:
        mount.write("old/000007.f.bin", b"x")
        mount.unlink("old/000007.f.bin")
        if how == "sync":
            mount.sync("old")
        else:
            mount.close()
            mount = Mount(tmp_path / "store", tmp_path / "state")
        store.set([{"f": b"another"}], "old")
        wait_for(lambda: mount.ask(mount.vfs.getattr, mount.inode("old/000000.f.bin")).size == 7)
        assert mount.read("old/000000.f.bin") == b"another"
    finally:
        mount.close()


def test_a_seal_that_is_asked_for_before_a_close_was_heard_of_waits_for_that(free: Mount) -> None:
    handle = free.open("old/000000.f.bin", os.O_WRONLY | os.O_TRUNC)
    free.ask(free.vfs.write, handle, 0, b"new")

    async def both() -> dict[Key, ShardfsError]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close_later)
            return await free.vfs.sealer.seal_all()  # type: ignore[return-value]

    async def close_later() -> None:
        while not free.vfs.sealer._works:  # type: ignore[attr-defined]
            await trio.lowlevel.checkpoint()
        await free.vfs.close(handle)

    assert free.ask(both) == {}
    assert list(open_store(free.store).get("old")) == [{"f": b"new"}, {"f": b"two"}]


def test_a_key_that_is_replaced_while_a_change_of_it_begins_can_be_changed(tmp_path: Path) -> None:
    """Regression: something was staged over the version that had just gone, shown nowhere, and in the way for ever."""
    store = open_store(tmp_path / "store", driver="streaming")
    store.set([{"f": b"one"}], "old")
    with Mount(tmp_path / "store", tmp_path / "state", system="streaming") as mount:
        numbering = mount.vfs.numbering
        check = numbering.check_change

        async def replaced(key: Any) -> None:
            await check(key)
            numbering.check_change = check  # type: ignore[method-assign]
            store.set([{"f": b"another"}], "old")
            await mount.vfs.refresh.everything()

        numbering.check_change = replaced  # type: ignore[method-assign]
        with pytest.raises(OSError, match="was replaced") as caught:
            mount.write("old/000000.f.bin", b"late")
        assert caught.value.errno == errno.ESTALE
        mount.write("old/000000.f.bin", b"mine")
        mount.sync("old")
    assert store.get("old")[0]["f"] == b"mine"
