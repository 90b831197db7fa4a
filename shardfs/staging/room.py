"""Disk space of files, by the run: kept aside in a file that holds nothing, to be given back when it is needed; and
holes. Knows nothing of what for."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shardfs import config

_UNSUPPORTED = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL))


def _find_fallocate() -> Callable[[int, int, int, int], int] | None:
    # Not os.posix_fallocate: where the file system has none, that of glibc writes into each block instead.
    library: Any = ctypes.CDLL(None, use_errno=True)
    function: Any = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    found: Callable[[int, int, int, int], int] = function
    return found


_fallocate = _find_fallocate()


_PUNCH_HOLE = 0x02 | 0x01
"""FALLOC_FL_PUNCH_HOLE, which needs FALLOC_FL_KEEP_SIZE (linux/falloc.h)."""


def allocate(descriptor: int, offset: int, length: int) -> bool:
    """Allocate disk blocks for a run of a file, which grows to hold it. False where the file system cannot. OSError:
    then the file may have grown by a part."""
    return _allocate(descriptor, 0, offset, length)


def punch(descriptor: int, offset: int, length: int) -> bool:
    """Free the disk blocks of a run of a file, which then reads as zeros. False where the file system cannot.
    OSError."""
    return _allocate(descriptor, _PUNCH_HOLE, offset, length)


def _allocate(descriptor: int, mode: int, offset: int, length: int) -> bool:
    if _fallocate is None:
        return False
    while _fallocate(descriptor, mode, offset, length):
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


class Room:
    """Disk space kept in one file. Not thread-safe: its owner has a lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._supported = True
        try:
            self.size = os.stat(path).st_size
        except FileNotFoundError:
            self.size = 0

    def grow(self, need: int, ahead: bool) -> None:
        """Keep at least `need` bytes; with `ahead` some more, where there are any. OSError, ENOSPC: nothing changed."""
        if need <= self.size or not self._supported:
            return
        more = min(max(need // config.ROOM_SHARE, config.ROOM_STEP), config.ROOM_STEP_MAX) if ahead else 0
        try:
            self._resize(need + more)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._resize(need)

    def shrink(self, size: int) -> None:
        """Give back what is over `size` bytes. OSError."""
        if size < self.size:
            self._resize(size)

    def _resize(self, size: int) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if size < self.size:
                os.ftruncate(descriptor, size)
            else:
                try:
                    self._supported = allocate(descriptor, self.size, size - self.size)
                except OSError:
                    os.ftruncate(descriptor, self.size)
                    raise
            self.size = size
        finally:
            os.close(descriptor)
