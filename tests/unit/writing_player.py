"""What the models of writable mounts share: a file system in a thread of its own with no kernel, and keys as dicts."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shardfs import inodes, open_store
from shardfs.errors import ShardfsError
from shardfs.moving import rename
from shardfs.shard_cache import ShardCache
from shardfs.staging import StagingArea
from shardfs.tree import KeyDirectory
from shardfs.writable import build_writable
from shardfs.writing import Allowed, Change, WritableVfs

STEPS = settings(
    max_examples=int(os.environ.get("SHARDFS_WRITING_RUNS", "20")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

KEYS = ("old", "new", "way/deep")


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


class KeysAsDicts(RuleBasedStateMachine):
    """A mount, and each of its keys as a dict of names and bytes. Who inherits makes both in an `initialize`, and says
    how it mounts."""

    keys = st.sampled_from(KEYS)
    root: Path
    mount: Mount
    model: dict[str, dict[str, bytes]]

    def _mounted(self) -> Mount:
        raise NotImplementedError

    def _vanishes(self, key: str) -> bool:
        """Whether a key without files goes with its mount."""
        return True

    def _gone(self, key: str) -> None:
        del self.model[key]

    def teardown(self) -> None:
        if hasattr(self, "mount"):
            self.mount.close()
            shutil.rmtree(self.root)

    def _key(self, key: str) -> dict[str, bytes]:
        """The files of a key, whose directory is made if need be."""
        if key not in self.model:
            if "/" in key and "way" not in self.mount.names(""):
                self.mount.mkdir("way")
            if key.rpartition("/")[2] not in self.mount.names(key.rpartition("/")[0]):
                self.mount.mkdir(key)
            self.model[key] = {}
        return self.model[key]

    def _plain(self, key: str, files: dict[str, bytes]) -> str:
        """A plain directory with these files, to be renamed to a key."""
        temporary = f"{key.rpartition('/')[0]}/x.tmp".lstrip("/")
        self.mount.mkdir(temporary)
        for name, data in files.items():
            self.mount.write(f"{temporary}/{name}", data)
        return temporary

    def _removed(self, temporary: str, files: dict[str, bytes]) -> None:
        for name in files:
            self.mount.unlink(f"{temporary}/{name}")
        self.mount.rmdir(temporary)

    @rule(key=keys)
    def evict(self, key: str) -> None:
        self.mount.evict(key)

    @rule()
    def mount_again(self) -> None:
        self.mount.close()
        self.mount = self._mounted()
        for key in [key for key, files in self.model.items() if not files and self._vanishes(key)]:
            above, _, name = key.rpartition("/")
            if (above and above not in self.mount.names("")) or name not in self.mount.names(above):
                self._gone(key)  # an empty directory that was never a key

    @invariant()
    def like_the_dicts(self) -> None:
        if not hasattr(self, "mount"):
            return
        for key, files in self.model.items():
            assert sorted(self.mount.names(key)) == sorted(files), key
            for name, data in files.items():
                assert self.mount.read(f"{key}/{name}") == data, (key, name)
        shown = {name for name in self.mount.names("") if name != "way"}
        assert shown == {key for key in self.model if "/" not in key}
