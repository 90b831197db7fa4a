"""One opening of a staged file, and what all openings of a file share. Knows nothing of where bytes lie."""

from __future__ import annotations

import errno
import os
from typing import Protocol

from shardfs.errors import StagingError
from shardfs.staging.heap import NOTHING
from shardfs.staging.ledger import failed
from shardfs.staging.tree import Node


class Bytes(Protocol):
    """Where the bytes of open files are. StagingError."""

    def read_heap(self, opened: Open, size: int, offset: int) -> bytes | None: ...
    def read_heap_now(self, opened: Open, size: int, offset: int) -> bytes | None: ...
    def waits(self, opened: Open, offset: int, size: int) -> bool: ...
    def write(self, opened: Open, data: bytes | memoryview, offset: int) -> int: ...
    def resize(self, opened: Open, size: int) -> None: ...
    def allocate(self, opened: Open, offset: int, length: int) -> None: ...
    def fsync(self, opened: Open) -> None: ...
    def release(self, opened: Open, writing: bool) -> None: ...


class Open:
    """A file that is open, however many have it open."""

    __slots__ = ("descriptor", "handles", "linked", "node", "number", "removed", "writers")

    def __init__(self, node: Node, number: int, descriptor: int) -> None:
        self.node = node
        self.number = number
        """Of its data file; zero or less while its bytes are in the heap, or there are none."""
        self.descriptor = descriptor
        """Of its data file, or below zero: the heap's own is used, until the directory is closed."""
        self.handles = 0
        self.writers = 0
        self.linked = True
        self.removed = False
        """True once it was removed from the directory, while that was in use."""


class StagedFile:
    """One opening of a staged file. Its methods raise StagingError, with the disk's errno; EBADF once closed."""

    def __init__(self, contents: Bytes, opened: Open, writing: bool) -> None:
        self._contents = contents
        self._opened: Open | None = opened
        self.writing = writing
        self.id = opened.node.id

    def _file(self, change: bool = False) -> Open:
        if self._opened is None or (change and not self.writing):
            raise StagingError("not open for this", errno.EBADF)
        return self._opened

    def pread(self, size: int, offset: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer only at the end of the file."""
        opened = self._file()
        if opened.number <= NOTHING and (found := self._contents.read_heap(opened, size, offset)) is not None:
            return found
        try:
            data = os.pread(opened.descriptor, size, offset)
            while len(data) < size and (more := os.pread(opened.descriptor, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise failed("reading a staged file", error) from error
        return data

    def pread_now(self, size: int, offset: int) -> bytes | None:
        """The same, if that needs no waiting for the disk; None if it does."""
        opened = self._file()
        if opened.number <= NOTHING:
            return self._contents.read_heap_now(opened, size, offset)
        descriptor = opened.descriptor
        try:
            end = os.fstat(descriptor).st_size
            data = bytearray(max(0, min(size, end - offset)))
            count = os.preadv(descriptor, [data], offset, os.RWF_NOWAIT) if data else 0
        except OSError:
            return None  # most often EAGAIN; what else it is, `pread` says
        return bytes(data) if count == len(data) else None

    def waits(self, offset: int, size: int) -> bool:
        """Whether writing so many bytes there must wait for the disk first."""
        return self._contents.waits(self._file(), offset, size)

    def size_and_mtime(self) -> tuple[int, int]:
        """Its length in bytes, and when it was changed last, in nanoseconds since the epoch."""
        opened = self._file()
        if opened.number <= NOTHING:
            return opened.node.size, opened.node.mtime_ns
        status = os.fstat(opened.descriptor)
        return status.st_size, status.st_mtime_ns

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write all of `data` at `offset`, in bytes. ENOSPC: the file is as long as it was."""
        return self._contents.write(self._file(change=True), data, offset)

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long. ENOSPC, EFBIG."""
        self._contents.resize(self._file(change=True), size)

    def fallocate(self, offset: int, length: int) -> None:
        """Make room on disk for a run of the file, which grows to hold it. ENOSPC: the file is as long as it was."""
        self._contents.allocate(self._file(change=True), offset, length)

    def fsync(self) -> None:
        """Make the file's bytes, its name, and all that was done in its directory before, durable."""
        self._contents.fsync(self._file())

    def close(self) -> None:
        """Give it back; what was written is kept. A second time does nothing."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            self._contents.release(opened, self.writing)

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
