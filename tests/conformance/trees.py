"""The file system behaviour suite's two runners: the tree in this process, and the same on a real kernel mount.

Both offer the few calls that a user's tools make, with OSError for what fails, so that one suite says what both do.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import trio

from shardfs.attributes import Attributes
from shardfs.errors import ShardfsError
from shardfs.index_db import IndexDb
from shardfs.light_where import Where
from shardfs.opening import open_store
from shardfs.vfs import Vfs, build_vfs


@dataclass(frozen=True)
class Stat:
    """What the suite looks at of a stat."""

    ino: int
    mode: int
    size: int
    mtime_ns: int
    nlink: int

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Opened(Protocol):
    """A file held open."""

    def read_at(self, offset: int, size: int) -> bytes: ...

    def close(self) -> None: ...


class Tree(Protocol):
    """Paths are relative to the root, `` the root itself. Everything that fails raises OSError with its errno."""

    def names(self, path: str) -> list[str]: ...

    def stat(self, path: str) -> Stat: ...

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes: ...

    def open(self, path: str) -> Opened: ...


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Ask again until something has come true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not come true in time"
        threading.Event().wait(0.05)


@contextlib.contextmanager
def fails(code: int) -> Iterator[None]:
    """What stands inside must fail with this errno."""
    try:
        yield
    except OSError as error:
        if error.errno != code:
            raise
    else:
        raise AssertionError(f"this should fail with {errno.errorcode[code]}")


class _OpenedFile:
    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        os.close(self._descriptor)


class MountedTree:
    """A real mount."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, path: str) -> list[str]:
        return os.listdir(self.path / path)

    def stat(self, path: str) -> Stat:
        found = os.stat(self.path / path)
        return Stat(found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_nlink)

    def open(self, path: str) -> Opened:
        return _OpenedFile(self.path / path)

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        with open(self.path / path, "rb", buffering=0) as file:
            file.seek(offset)
            pieces = []
            while size is None or size > 0:
                piece = file.read(min(size, 1 << 20) if size is not None else 1 << 20)
                if not piece:
                    break
                pieces.append(piece)
                size = None if size is None else size - len(piece)
            return b"".join(pieces)


class _OpenedHandle:
    def __init__(self, tree: InProcessTree, path: str) -> None:
        self._tree = tree
        self._handle = tree._found(path, tree.vfs.open, os.O_RDONLY)

    def read_at(self, offset: int, size: int) -> bytes:
        return bytes(self._tree.ask(self._tree.vfs.read, self._handle, offset, size))

    def close(self) -> None:
        self._tree.vfs.release(self._handle)


class InProcessTree:
    """The file system without a kernel: an event loop in a thread of its own, asked from outside."""

    def __init__(
        self,
        store: Path | str,
        *,
        driver: str | None = None,
        budget: int = 64 << 20,
        arrays: str = "png",
        database: IndexDb | None = None,
        where: Where | None = None,
    ) -> None:
        self._opened = open_store(store, driver=driver)
        self._ready = threading.Event()
        self._settings = {
            "budget": budget,
            "arrays": arrays,
            "uid": os.getuid(),
            "gid": os.getgid(),
            "database": database,
            "where": where,
        }
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))

    async def _serve(self) -> None:
        self.vfs: Vfs = build_vfs(self._opened, **self._settings)  # type: ignore[arg-type]
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        async with self.vfs.running():
            self._ready.set()
            await self._stop.wait()

    def __enter__(self) -> InProcessTree:
        self._thread.start()
        assert self._ready.wait(30), "the event loop did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._token.run_sync_soon(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive(), "the event loop did not end"

    def ask(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Run a method of the vfs on its loop; its errors as the OSErrors that a system call would give."""
        try:
            return trio.from_thread.run(work, *args, trio_token=self._token)
        except (ShardfsError, OSError) as error:
            raise OSError(error.errno, str(error)) from error

    def _found(self, path: str, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Do something with what is at a path. Where that is ESTALE the names are looked up once more, as the kernel
        does."""
        try:
            return self.ask(work, self._inode(path), *args)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return self.ask(work, self._inode(path), *args)

    def _inode(self, path: str) -> int:
        inode = 1
        for part in [part for part in path.split("/") if part]:
            inode = self.ask(self.vfs.lookup, inode, os.fsencode(part)).inode
        return inode

    def names(self, path: str) -> list[str]:
        handle = self._found(path, self.vfs.opendir)
        try:
            return [os.fsdecode(name) for name, _, _ in self.ask(self.vfs.readdir, handle, 0)]
        finally:
            self.vfs.releasedir(handle)

    def stat(self, path: str) -> Stat:
        found: Attributes = self._found(path, self.vfs.getattr)
        return Stat(found.inode, found.mode, found.size, found.mtime_ns, found.nlink)

    def open(self, path: str) -> Opened:
        return _OpenedHandle(self, path)

    def read(self, path: str, offset: int = 0, size: int | None = None) -> bytes:
        handle = self._found(path, self.vfs.open, os.O_RDONLY)
        try:
            pieces = []
            while size is None or size > 0:
                piece = bytes(self.ask(self.vfs.read, handle, offset, min(size or 131072, 131072)))
                if not piece:
                    break
                pieces.append(piece)
                offset += len(piece)
                size = None if size is None else size - len(piece)
            return b"".join(pieces)
        finally:
            self.vfs.release(handle)
