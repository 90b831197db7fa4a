"""A writable file system against a dict: any changes, with seals, new mounts and evictions between, and no kernel."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shardfs import inodes, open_store
from shardfs.errors import ShardfsError
from shardfs.model import Key
from shardfs.moving import rename
from shardfs.shard_cache import ShardCache
from shardfs.staging import StagingArea
from shardfs.tree import KeyDirectory
from shardfs.writable import build_writable
from shardfs.writing import Allowed, Change, WritableVfs
from tests.conformance.trees import wait_for

STEPS = settings(
    max_examples=int(os.environ.get("SHARDFS_WRITING_RUNS", "20")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

KEYS = ("old", "new", "way/deep")
NAMES = [f"{stem:06d}.{field}.bin" for stem in range(4) for field in "fg"]


class Mount:
    """A file system in a thread of its own."""

    def __init__(
        self, store: Path, state: Path, quiet: float | None = None, system: str = "squirrel", **allowed: bool
    ) -> None:
        self._given = store, state, quiet, system, allowed
        self.store = store
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self._failure = error
            self._ready.set()

    async def _serve(self) -> None:
        store, state, quiet, system, allowed = self._given
        driver = open_store(store, driver=system).driver
        with contextlib.closing(StagingArea.open(store.as_uri(), store_path=store, root=state)) as area:
            cache = ShardCache(driver, 1 << 20, "png")
            self.vfs: WritableVfs = build_writable(
                driver, cache, area, quiet=quiet, allowed=Allowed(**allowed), uid=7, gid=8
            )
            self._token = trio.lowlevel.current_trio_token()
            self._end = trio.Event()
            async with self.vfs.running():
                self._ready.set()
                await self._end.wait()

    def ask(self, work: Callable[..., Awaitable[Any]], *words: Any) -> Any:
        async def asked() -> Any:
            try:
                return await work(*words)
            except ShardfsError as error:
                raise OSError(error.errno, str(error)) from error

        return trio.from_thread.run(asked, trio_token=self._token)

    def close(self) -> None:
        self._token.run_sync_soon(self._end.set)
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def inode(self, path: str) -> int:
        at = int(inodes.ROOT)
        for part in filter(None, path.split("/")):
            at = self.ask(self.vfs.lookup, at, part.encode()).inode
        return at

    def _split(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        return self.inode(above), name.encode()

    def names(self, path: str) -> list[str]:
        handle = self.ask(self.vfs.opendir, self.inode(path))
        found, at = [], 0
        try:
            while batch := list(self.ask(self.vfs.readdir, handle, at))[:3]:
                found += [name.decode() for name, _, _ in batch]
                for name, attributes, _ in batch:
                    assert self.ask(self.vfs.lookup, self.inode(path), name).inode == attributes.inode
                at = batch[-1][2]
            return found
        finally:
            self.vfs.releasedir(handle)

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        if flags & os.O_CREAT:
            try:
                self.inode(path)
            except FileNotFoundError:
                handle, _ = self.ask(self.vfs.create, *self._split(path), 0o644, flags, 1, 2)
                return int(handle)
        return int(self.ask(self.vfs.open, self.inode(path), flags & ~os.O_CREAT))

    def read(self, path: str) -> bytes:
        inode = self.inode(path)
        size = self.ask(self.vfs.getattr, inode).size
        handle = self.open(path)
        try:
            data = self.read_at(handle, 0, 1 << 20)
            assert len(data) == size
            return data
        finally:
            self.ask(self.vfs.close, handle)

    def read_at(self, handle: int, offset: int, size: int) -> bytes:
        async def read() -> bytes | memoryview:
            now = self.vfs.read_now(handle, offset, size)
            return await self.vfs.read(handle, offset, size) if now is None else now

        return bytes(self.ask(read))

    def write(self, path: str, data: bytes, offset: int = 0, flags: int = os.O_TRUNC) -> None:
        handle = self.open(path, os.O_CREAT | os.O_WRONLY | flags)
        assert self.ask(self.vfs.write, handle, offset, data) == len(data)
        self.ask(self.vfs.close, handle)

    def truncate(self, path: str, size: int) -> None:
        assert self.ask(self.vfs.setattr, self.inode(path), Change(size=size), None).size == size

    def unlink(self, path: str) -> None:
        self.ask(self.vfs.unlink, *self._split(path))

    def mkdir(self, path: str) -> None:
        self.ask(self.vfs.mkdir, *self._split(path), 0o755, 1, 2)

    def rmdir(self, path: str) -> None:
        self.ask(self.vfs.rmdir, *self._split(path))

    def rename(self, path: str, new: str, flags: int = 0) -> None:
        self.ask(rename, self.vfs, *self._split(path), *self._split(new), flags)

    def sync(self, path: str) -> None:
        handle = self.ask(self.vfs.opendir, self.inode(path))
        try:
            self.ask(self.vfs.fsyncdir, handle)
        finally:
            self.vfs.releasedir(handle)

    def evict(self, key: str) -> None:
        async def drop() -> None:
            directory = self.vfs.tree.current(key)  # type: ignore[arg-type]
            if isinstance(directory, KeyDirectory):
                self.vfs.cache.drop(directory.entry)

        self.ask(drop)


class Writing(RuleBasedStateMachine):
    """Keys are dicts of names and bytes."""

    keys, names = st.sampled_from(KEYS), st.sampled_from(NAMES)
    contents = st.binary(max_size=300).map(lambda data: b"text " + data.hex().encode())

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        open_store(self.root / "store", driver="squirrel").set([{"f": b"one"}, {"f": b"two", "g": b"three"}], "old")
        self.model: dict[str, dict[str, bytes]] = {
            "old": {"000000.f.bin": b"one", "000001.f.bin": b"two", "000001.g.bin": b"three"}
        }
        self.mount = self._mounted()

    def _mounted(self) -> Mount:
        return Mount(self.root / "store", self.root / "state", delete=True, overwrite=True)

    def teardown(self) -> None:
        if hasattr(self, "mount"):
            self.mount.close()
            shutil.rmtree(self.root)

    def _key(self, key: str) -> dict[str, bytes]:
        if key not in self.model:
            if "/" in key and "way" not in self.mount.names(""):
                self.mount.mkdir("way")
            if key.rpartition("/")[2] not in self.mount.names(key.rpartition("/")[0]):
                self.mount.mkdir(key)
            self.model[key] = {}
        return self.model[key]

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
        self._key(key)
        above = key.rpartition("/")[0]
        temporary = f"{above}/x.tmp".lstrip("/")
        self.mount.mkdir(temporary)
        for name, data in files.items():
            self.mount.write(f"{temporary}/{name}", data)
        try:
            self.mount.rename(temporary, key)
            self.model[key] = renumbered(files)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EBUSY):  # staged files are in the way
                raise
            for name in files:
                self.mount.unlink(f"{temporary}/{name}")
            self.mount.rmdir(temporary)

    @rule(key=keys)
    def seal(self, key: str) -> None:
        if self.model.get(key):
            self.mount.sync(key)
            self.model[key] = renumbered(self.model[key])

    @rule(key=keys)
    def evict(self, key: str) -> None:
        self.mount.evict(key)

    @rule()
    def mount_again(self) -> None:
        self.mount.close()
        self.mount = self._mounted()
        for key in [key for key, files in self.model.items() if not files]:
            if key.rpartition("/")[2] not in self.mount.names(key.rpartition("/")[0] if self._has_way(key) else ""):
                del self.model[key]  # an empty directory that was never a key

    def _has_way(self, key: str) -> bool:
        return "/" not in key or "way" in self.mount.names("")

    @invariant()
    def like_the_dicts(self) -> None:
        for key, files in self.model.items():
            assert sorted(self.mount.names(key)) == sorted(files), key
            for name, data in files.items():
                assert self.mount.read(f"{key}/{name}") == data, (key, name)
        shown = {name for name in self.mount.names("") if name != "way"}
        assert shown == {key for key in self.model if "/" not in key}


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
