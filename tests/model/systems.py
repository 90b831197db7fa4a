"""What the operations are done to: a writable file system in this process, or the same behind the kernel.

Both have the calls of the operating system, as far as operations need them, and raise OSError. Where the file system in
this process lacks what the kernel does for it (finding out what is in the way of a rename, appending), that is here.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import errno
import mmap
import os
import signal
import stat as modes
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from shardfs import config, control, daemon
from shardfs.moving import rename
from shardfs.shard_cache import ShardCache
from shardfs.writing import Change
from tests.unit.writing_player import Mount

NOREPLACE = 1


@dataclass(frozen=True, slots=True)
class Status:
    """Of stat(2)."""

    directory: bool
    size: int
    mode: int
    mtime_ns: int


class System(abc.ABC):
    """A mount of a store, with changes staged in a directory of its own."""

    def __init__(self, root: Path) -> None:
        self.store = root / "store"
        self.state = root / "state"

    @abc.abstractmethod
    def open(self, path: str, flags: int, mode: int = 0o644) -> int: ...
    @abc.abstractmethod
    def close(self, handle: int) -> None: ...
    @abc.abstractmethod
    def pread(self, handle: int, size: int, offset: int) -> bytes: ...
    @abc.abstractmethod
    def pwrite(self, handle: int, data: bytes, offset: int) -> int: ...
    @abc.abstractmethod
    def mapped(self, handle: int) -> bytes: ...
    @abc.abstractmethod
    def ftruncate(self, handle: int, size: int) -> None: ...
    @abc.abstractmethod
    def fstat(self, handle: int) -> Status: ...
    @abc.abstractmethod
    def fsync(self, handle: int) -> None: ...
    @abc.abstractmethod
    def fsync_directory(self, path: str) -> None: ...
    @abc.abstractmethod
    def stat(self, path: str) -> Status: ...
    @abc.abstractmethod
    def listdir(self, path: str) -> list[str]: ...
    @abc.abstractmethod
    def truncate(self, path: str, size: int) -> None: ...
    @abc.abstractmethod
    def rename(self, path: str, new: str, exclusive: bool) -> None: ...
    @abc.abstractmethod
    def unlink(self, path: str) -> None: ...
    @abc.abstractmethod
    def mkdir(self, path: str) -> None: ...
    @abc.abstractmethod
    def rmdir(self, path: str) -> None: ...
    @abc.abstractmethod
    def chmod(self, path: str, mode: int) -> None: ...
    @abc.abstractmethod
    def set_time(self, path: str, mtime_ns: int) -> None: ...
    @abc.abstractmethod
    def commit(self) -> dict[str, int]:
        """Store all keys: the errno of each that failed."""

    @abc.abstractmethod
    def evict(self) -> None:
        """Let no bytes stay at hand that can be got again."""

    @abc.abstractmethod
    def start(self) -> None: ...
    @abc.abstractmethod
    def stop(self) -> None:
        """Store all keys, and end."""

    @abc.abstractmethod
    def kill(self) -> None:
        """End without having done anything first."""


class InProcess(System):
    """No kernel."""

    def start(self) -> None:
        self._mount = Mount(self.store, self.state, delete=True, overwrite=True)
        self._vfs = self._mount.vfs
        self._flags: dict[int, tuple[int, int]] = {}
        self._handles: dict[int, int] = {}

    def stop(self) -> None:
        self._mount.ask(self._vfs.finish, config.SHUTDOWN_WAIT)
        self._mount.close()

    def kill(self) -> None:
        self._flags = {}
        self._mount.close()

    def _split(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        inode = self._mount.inode(above)
        if not modes.S_ISDIR(self._mount.ask(self._vfs.getattr, inode).mode):
            raise NotADirectoryError(errno.ENOTDIR, above)
        return inode, name.encode()

    def _kind(self, above: int, name: bytes) -> bool | None:
        """Whether a name is a directory's; None for no name."""
        try:
            return modes.S_ISDIR(self._mount.ask(self._vfs.lookup, above, name).mode)
        except FileNotFoundError:
            return None

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        above, name = self._split(path)
        kind = self._kind(above, name)
        if kind is None and flags & os.O_CREAT:
            handle, found = self._mount.ask(self._vfs.create, above, name, mode, flags, 1, 2)
            inode = found.inode
        else:
            if kind is not None and flags & os.O_CREAT and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, path)
            inode = self._mount.inode(path)
            if kind:
                raise IsADirectoryError(errno.EISDIR, path)
            handle = self._mount.ask(self._vfs.open, inode, flags & ~(os.O_CREAT | os.O_EXCL))
        number = next(number for number in range(len(self._flags) + 1) if number not in self._flags)
        self._flags[number] = inode, flags
        self._handles[number] = int(handle)
        return number

    def close(self, handle: int) -> None:
        if self._flags.pop(handle, None) is not None:  # else it was opened before a kill
            self._mount.ask(self._vfs.close, self._handles.pop(handle))

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return self._mount.read_at(self._handles[handle], offset, size)

    def mapped(self, handle: int) -> bytes:
        pages = range(0, self.fstat(handle).size, mmap.PAGESIZE)
        return b"".join(self.pread(handle, mmap.PAGESIZE, at) for at in pages)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        _, flags = self._flags[handle]
        if not flags & os.O_ACCMODE:
            raise OSError(errno.EBADF, "not open for writing")
        if flags & os.O_APPEND:
            offset = self.fstat(handle).size
        return int(self._mount.ask(self._vfs.write, self._handles[handle], offset, data)) if data else 0

    def ftruncate(self, handle: int, size: int) -> None:
        inode, flags = self._flags[handle]
        if not flags & os.O_ACCMODE:
            raise OSError(errno.EINVAL, "not open for writing")
        self._mount.ask(self._vfs.setattr, inode, Change(size=size), self._handles[handle])

    @staticmethod
    def _status(found: object) -> Status:
        mode, size, mtime_ns = (getattr(found, name) for name in ("mode", "size", "mtime_ns"))
        return Status(modes.S_ISDIR(mode), size, modes.S_IMODE(mode), mtime_ns)

    def fstat(self, handle: int) -> Status:
        return self._status(self._mount.ask(self._vfs.getattr, self._flags[handle][0]))

    def stat(self, path: str) -> Status:
        above, name = self._split(path) if path else (0, b"")
        inode = self._mount.ask(self._vfs.lookup, above, name).inode if path else self._mount.inode("")
        return self._status(self._mount.ask(self._vfs.getattr, inode))

    def fsync(self, handle: int) -> None:
        self._mount.ask(self._vfs.fsync, self._handles[handle])

    def fsync_directory(self, path: str) -> None:
        if not self.stat(path).directory:
            raise NotADirectoryError(errno.ENOTDIR, path)
        self._mount.sync(path)

    def listdir(self, path: str) -> list[str]:
        if not self.stat(path).directory:
            raise NotADirectoryError(errno.ENOTDIR, path)
        handle = self._mount.ask(self._vfs.opendir, self._mount.inode(path))
        found, at = list[str](), 0
        try:
            # a few at a time, as where the kernel has room for no more
            while batch := list(self._mount.ask(self._vfs.readdir, handle, at))[:3]:
                found += [name.decode() for name, _, _ in batch]
                at = batch[-1][2]
            return found
        finally:
            self._vfs.releasedir(handle)

    def truncate(self, path: str, size: int) -> None:
        if self.stat(path).directory:
            raise IsADirectoryError(errno.EISDIR, path)
        self._mount.truncate(path, size)

    def rename(self, path: str, new: str, exclusive: bool) -> None:
        (above, name), (to, new_name) = self._split(path), self._split(new)
        kind, target = self._kind(above, name), self._kind(to, new_name)
        if kind is None:
            raise FileNotFoundError(errno.ENOENT, path)
        if exclusive and target is not None:
            raise FileExistsError(errno.EEXIST, new)
        if new.startswith(path + "/"):
            raise OSError(errno.EINVAL, "into itself")
        if path.startswith(new + "/"):
            raise OSError(errno.ENOTEMPTY, "over what it is in")
        if target is not None and kind != target:
            raise OSError(errno.EISDIR if target else errno.ENOTDIR, "of another kind")
        self._mount.ask(rename, self._vfs, above, name, to, new_name, NOREPLACE if exclusive else 0)

    def _expected(self, path: str, directory: bool) -> tuple[int, bytes]:
        above, name = self._split(path)
        kind = self._kind(above, name)
        if kind is None:
            raise FileNotFoundError(errno.ENOENT, path)
        if kind != directory:
            raise OSError(errno.EISDIR if kind else errno.ENOTDIR, path)
        return above, name

    def unlink(self, path: str) -> None:
        self._mount.ask(self._vfs.unlink, *self._expected(path, False))

    def mkdir(self, path: str) -> None:
        above, name = self._split(path)
        if self._kind(above, name) is not None:
            raise FileExistsError(errno.EEXIST, path)
        self._mount.ask(self._vfs.mkdir, above, name, 0o755, 1, 2)

    def rmdir(self, path: str) -> None:
        self._mount.ask(self._vfs.rmdir, *self._expected(path, True))

    def _change(self, path: str, change: Change) -> None:
        above, name = self._split(path)
        inode = self._mount.ask(self._vfs.lookup, above, name).inode
        self._mount.ask(self._vfs.setattr, inode, change, None)

    def chmod(self, path: str, mode: int) -> None:
        self._change(path, Change(mode=mode))

    def set_time(self, path: str, mtime_ns: int) -> None:
        self._change(path, Change(mtime_ns=mtime_ns, atime_ns=mtime_ns))

    def commit(self) -> dict[str, int]:
        return {key: error.errno for key, error in self._mount.ask(self._vfs.sealer.seal_all).items()}

    def evict(self) -> None:
        cache: ShardCache = self._vfs.cache

        async def drop() -> None:
            for key in self._vfs.tree.slots:
                table = cache.tables.known(key.entry)
                cache.drop(key.entry)
                if table is not None:  # an eviction leaves what is known of a shard
                    cache.tables.keep(key.entry, table)
            await trio.lowlevel.checkpoint()

        self._mount.ask(drop)


class Mounted(System):
    """The real program, and the kernel."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.path = root / "mnt"
        self.log = root / "log"
        self._runtime = root / "run"
        self._libc = ctypes.CDLL(None, use_errno=True)

    def start(self) -> None:
        self._runtime.mkdir(exist_ok=True)
        words = (
            "--rw",
            "--write-back",
            "off",
            "--allow-delete",
            "--allow-overwrite",
            "--memory",
            "64K",
            "--driver",
            "squirrel",
        )
        command = [sys.executable, "-m", "shardfs", "mount", *words, "--log", self.log, self.store, self.path]
        environment = {**os.environ, "XDG_STATE_HOME": str(self.state), "XDG_CACHE_HOME": str(self.state / "cache")}
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, env=environment
        )
        assert done.returncode == 0, done.stderr
        record = daemon.find(str(self.path))
        assert record is not None
        self._record = record

    def _end(self, number: int) -> None:
        os.kill(self._record.pid, number)
        assert daemon.wait_until_gone(self._record, 30)
        said = self.log.read_text()
        assert "unexpected" not in said, said[-3000:]

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def wipe(self) -> None:
        """Leave nothing, whatever has happened."""
        with contextlib.suppress(OSError):
            os.kill(self._record.pid, signal.SIGKILL)
        while daemon.mounted_at(str(self.path)) is not None:
            daemon.unmount(str(self.path), lazy=True)

    def _at(self, path: str) -> str:
        return f"{self.path}/{path}"

    def open(self, path: str, flags: int, mode: int = 0o644) -> int:
        return os.open(self._at(path), flags, mode)

    def close(self, handle: int) -> None:
        os.close(handle)

    def pread(self, handle: int, size: int, offset: int) -> bytes:
        return os.pread(handle, size, offset)

    def pwrite(self, handle: int, data: bytes, offset: int) -> int:
        return os.pwrite(handle, data, offset)

    def mapped(self, handle: int) -> bytes:
        if not os.fstat(handle).st_size:
            return b""
        with mmap.mmap(handle, 0, prot=mmap.PROT_READ) as found:
            return bytes(found)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    @staticmethod
    def _status(found: os.stat_result) -> Status:
        mode = found.st_mode
        return Status(modes.S_ISDIR(mode), found.st_size, modes.S_IMODE(mode), found.st_mtime_ns)

    def fstat(self, handle: int) -> Status:
        return self._status(os.fstat(handle))

    def stat(self, path: str) -> Status:
        return self._status(os.stat(self._at(path)))

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    @contextlib.contextmanager
    def _directory(self, path: str) -> Iterator[int]:
        handle = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield handle
        finally:
            os.close(handle)

    def fsync_directory(self, path: str) -> None:
        with self._directory(path) as handle:
            os.fsync(handle)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(self._at(path))

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def rename(self, path: str, new: str, exclusive: bool) -> None:
        if not exclusive:
            os.rename(self._at(path), self._at(new))
        elif self._libc.renameat2(-100, os.fsencode(self._at(path)), -100, os.fsencode(self._at(new)), NOREPLACE):
            raise OSError(ctypes.get_errno(), "renameat2")

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def mkdir(self, path: str) -> None:
        os.mkdir(self._at(path), 0o755)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def set_time(self, path: str, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(mtime_ns, mtime_ns))

    def commit(self) -> dict[str, int]:
        said = control.ask(self.path, "commit", {}, seconds=60)
        return {one["key"]: control.error_from_json(one["error"]).errno for one in said["failed"]}

    def evict(self) -> None:
        for folder, _, names in os.walk(self.path):
            for name in names:
                with contextlib.suppress(OSError):  # of a file whose key is not the store's any more
                    handle = os.open(f"{folder}/{name}", os.O_RDONLY)
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(handle)
