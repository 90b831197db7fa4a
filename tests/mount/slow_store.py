"""A directory shown through FUSE, in which chosen files can be made to wait or to fail: a store that is slow or broken.

Run as a program: SOURCE MOUNTPOINT CONTROL. While `CONTROL/hold/NAME` exists every READ of NAME waits if it is for more
bytes than that file says; while `CONTROL/fail/NAME` exists it fails with EIO. The same holds of all FSYNCs for the NAME
`fsync`, and of those of the directory for `fail/fsyncdir`; all LOOKUPs and GETATTRs wait for the NAME `stat`.
`CONTROL/log` gets a line `open NAME`, `read NAME OFFSET SIZE` or `fsync` for each, and `stat` for those that wait.
Nothing is cached by the kernel. Flat: files of one directory only. Knows nothing of shards.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import trio

LOOK_AGAIN = 0.01


class SlowDirectory(pyfuse3.Operations):
    """The handlers. An inode number is the source file's own, so that a file that is replaced is another file."""

    def __init__(self, source: Path, control: Path) -> None:
        super().__init__()
        self._source = source
        self._hold = control / "hold"
        self._fail = control / "fail"
        self._log = open(control / "log", "a", buffering=1)  # noqa: SIM115  (as long as the process)
        self._names: dict[int, str] = {}
        self._opened: dict[int, str] = {}

    def _attributes(self, name: str) -> pyfuse3.EntryAttributes:
        try:
            found = os.stat(self._source / name)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = found.st_ino if name else pyfuse3.ROOT_INODE
        entry.st_mode = found.st_mode
        entry.st_nlink = found.st_nlink
        entry.st_size = found.st_size
        entry.st_mtime_ns, entry.st_ctime_ns, entry.st_atime_ns = found.st_mtime_ns, found.st_ctime_ns, 0
        entry.entry_timeout = entry.attr_timeout = 0
        if stat.S_ISREG(found.st_mode):
            self._names[found.st_ino] = name
        return entry

    def _held(self, name: str, size: int) -> bool:
        try:
            return size > int((self._hold / name).read_text() or 0)
        except FileNotFoundError:
            return False

    async def _looked(self) -> None:
        if self._held("stat", 1):
            self._log.write("stat\n")
            await self._released("stat", 1)

    async def _released(self, name: str, size: int) -> None:
        while self._held(name, size):
            await trio.sleep(LOOK_AGAIN)

    async def lookup(self, parent, name, ctx):  # type: ignore[no-untyped-def]
        await self._looked()
        return self._attributes(os.fsdecode(name))

    async def getattr(self, inode, ctx):  # type: ignore[no-untyped-def]
        await self._looked()
        return self._attributes("" if inode == pyfuse3.ROOT_INODE else self._names[inode])

    async def opendir(self, inode, ctx):  # type: ignore[no-untyped-def]
        return inode

    async def readdir(self, fh, start, token):  # type: ignore[no-untyped-def]
        for at, name in enumerate(sorted(os.listdir(self._source))[start:], start + 1):
            if not pyfuse3.readdir_reply(token, os.fsencode(name), self._attributes(name), at):
                return

    async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def]
        name = self._names[inode]
        descriptor = os.open(self._source / name, flags & os.O_ACCMODE)
        self._opened[descriptor] = name
        self._log.write(f"open {name}\n")
        return pyfuse3.FileInfo(fh=descriptor, direct_io=True)

    async def read(self, fh, offset, size):  # type: ignore[no-untyped-def]
        name = self._opened[fh]
        self._log.write(f"read {name} {offset} {size}\n")
        await self._released(name, size)
        if (self._fail / name).exists():
            raise pyfuse3.FUSEError(errno.EIO)
        return os.pread(fh, size, offset)

    async def create(self, parent, name, mode, flags, ctx):  # type: ignore[no-untyped-def]
        text = os.fsdecode(name)
        descriptor = os.open(self._source / text, flags & ~os.O_DIRECTORY | os.O_CREAT, mode)
        self._opened[descriptor] = text
        return pyfuse3.FileInfo(fh=descriptor, direct_io=True), self._attributes(text)

    async def write(self, fh, offset, data):  # type: ignore[no-untyped-def]
        return os.pwrite(fh, data, offset)

    async def fsync(self, fh, datasync):  # type: ignore[no-untyped-def]
        self._log.write("fsync\n")
        await self._released("fsync", 1)
        if (self._fail / "fsync").exists():
            raise pyfuse3.FUSEError(errno.EIO)

    async def fsyncdir(self, fh, datasync):  # type: ignore[no-untyped-def]
        await self.fsync(fh, datasync)
        if (self._fail / "fsyncdir").exists():
            raise pyfuse3.FUSEError(errno.EIO)

    async def link(self, inode, new_parent, new_name, ctx):  # type: ignore[no-untyped-def]
        text = os.fsdecode(new_name)
        try:
            os.link(self._source / self._names[inode], self._source / text)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        return self._attributes(text)

    async def rename(self, parent, name, new_parent, new_name, flags, ctx):  # type: ignore[no-untyped-def]
        os.rename(self._source / os.fsdecode(name), self._source / os.fsdecode(new_name))

    async def unlink(self, parent, name, ctx):  # type: ignore[no-untyped-def]
        try:
            os.unlink(self._source / os.fsdecode(name))
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error

    async def release(self, fh):  # type: ignore[no-untyped-def]
        del self._opened[fh]
        os.close(fh)


def main(source: str, mountpoint: str, control: str) -> None:
    operations = SlowDirectory(Path(source), Path(control))
    pyfuse3.init(operations, mountpoint, {"fsname=slow-store", "default_permissions"})
    try:
        trio.run(pyfuse3.main, 1, 1000)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
