"""One local file held open for reading, and the memory that it is read into. Knows nothing of names and directories."""

from __future__ import annotations

import errno
import os
import sys
import threading
from types import TracebackType
from typing import Self

from shardfs import config
from shardfs.errors import StaleShardError, StorageError


def reason(error: OSError) -> str:
    """What the system calls it."""
    return error.strerror or str(error)


class _Idle(threading.local):
    """A thread's buffers for reads above SCRATCH_FLOOR, used again and again: fresh memory of that size costs as much
    as the read."""

    def __init__(self) -> None:
        self.buffers: list[bytearray] = []


_idle = _Idle()
_UNUSED = 3
"""References to a buffer without a view on it: the list's, the loop's and the call's own."""


def _scratch(count: int) -> memoryview:
    """Memory that nobody else looks at, for as long as a view on it lives."""
    if count <= config.SCRATCH_FLOOR or count > config.SCRATCH:
        return memoryview(bytearray(count))
    buffers = _idle.buffers
    for buffer in buffers:
        if sys.getrefcount(buffer) == _UNUSED:
            return memoryview(buffer)[:count]
    buffer = bytearray(config.SCRATCH)
    if len(buffers) < config.SCRATCHES:
        buffers.append(buffer)
    return memoryview(buffer)[:count]


class LocalReader:
    """A regular file held open. Reads with pread: a mapping would die by SIGBUS when somebody truncates the file.

    The end of the file is given only if it is still the same file: StaleShardError where it was written to meanwhile,
    as then what was read may be partly the old content and partly the new.
    """

    def __init__(self, descriptor: int, name: str, status: os.stat_result) -> None:
        self._descriptor = descriptor
        self._name = name
        self._position = 0
        self._status = status
        self.size = status.st_size
        self._tells = True

    def read(self, count: int) -> bytes:
        data = self._pread(count, self._position)
        self._position += len(data)
        if count and not data and self._changed(os.fstat(self._descriptor)):
            raise StaleShardError(f"{self._name} was changed while it was read")
        return data

    def _changed(self, now: os.stat_result) -> bool:
        before = self._status
        if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            return True
        # one that was replaced meanwhile has another ctime because it lost its name, and is still whole
        return now.st_nlink > 0 and now.st_ctime_ns != before.st_ctime_ns

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset`, whatever was read before. For any number of threads at once.

        StaleShardError where the file was written to since it was opened, StorageError.
        """
        data = self._pread(count, offset)
        while len(data) < count:
            more = self._pread(count - len(data), offset + len(data))
            if not more:
                break
            data += more
        if self._changed(os.fstat(self._descriptor)) or len(data) < count:
            raise StaleShardError(f"{self._name} was changed while it was read")
        return data

    def cached_at(self, offset: int, count: int) -> memoryview | None:
        """The same where all of it is in the page cache; None where it is not, or the file system cannot tell."""
        if not self._tells:
            return None
        buffer = _scratch(count)
        try:
            got = os.preadv(self._descriptor, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise self._failed(error) from error
            self._tells = False
            return None
        if got < count:
            return None
        if self._changed(os.fstat(self._descriptor)):
            raise StaleShardError(f"{self._name} was changed while it was read")
        return buffer

    def advise(self) -> None:
        """Have the kernel read the whole file into the page cache; returns before it is there."""
        for offset in range(0, self.size, config.ADVISE_STEP):
            os.posix_fadvise(self._descriptor, offset, config.ADVISE_STEP, os.POSIX_FADV_WILLNEED)

    def tail(self, count: int) -> bytes:
        count = min(count, self.size)
        return self._pread(count, self.size - count)

    def readinto(self, view: memoryview) -> int:
        """Fills the beginning of `view` with the next bytes, as `read`, and returns how many; 0 at the end."""
        try:
            count = os.preadv(self._descriptor, [view], self._position)
        except OSError as error:
            raise self._failed(error) from error
        self._position += count
        if len(view) and not count and self._changed(os.fstat(self._descriptor)):
            raise StaleShardError(f"{self._name} was changed while it was read")
        return count

    def _pread(self, count: int, offset: int) -> bytes:
        try:
            return os.pread(self._descriptor, count, offset)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(f"reading {self._name}: {reason(error)}", error.errno or errno.EIO)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
