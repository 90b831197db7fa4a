"""Many small files' bytes in one file on disk: one after the other, each in blocks of its own.

ext4 takes longer to make a file than to write 50 KB into it, and many times as long for a minute after files were
removed. So what is written from its beginning and stays small has no file of its own. Bytes are never written over: a
run that is needed no more becomes a hole, and its number is not used again. Knows nothing of entries, nor of what is
written down about them.
"""

from __future__ import annotations

import os

from shardfs import config
from shardfs.staging.room import punch

NOTHING = 0
"""The number of what has no bytes."""

Run = tuple[int, int]
"""Offset and length of a part of the file, in bytes."""


def is_in_heap(number: int) -> bool:
    """Whether a data file's number means a run of the heap, and no file: those are below zero."""
    return number < 0


def offset_of(number: int) -> int:
    """Where a run begins, in bytes."""
    return (-number - 1) * config.HEAP_BLOCK


def _number_at(offset: int) -> int:
    return -(offset // config.HEAP_BLOCK) - 1


def _up(offset: int) -> int:
    return -(-offset // config.HEAP_BLOCK) * config.HEAP_BLOCK


class Heap:
    """The file. Not thread-safe: its owner has a lock. OSError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1
        self.is_known = False
        """True once the file was found or made."""
        self._usable = True
        self.read_only = False
        self.end = 0
        """Where the next run begins."""
        self.synced = 0
        """All before this offset is on disk."""
        self._closed = 0
        """What begins before this offset gets no more bytes: it is on disk, or on its way there."""
        self.sizes: dict[int, int] = {}
        """Bytes of each run that is in use, by its number."""

    def descriptor(self) -> int:
        """The descriptor, opened if need be. FileNotFoundError where there is no file yet."""
        if self._descriptor < 0:
            flags = os.O_RDONLY if self.read_only else os.O_RDWR
            self._descriptor = os.open(self.path, flags | os.O_CLOEXEC)
        return self._descriptor

    @property
    def is_open(self) -> bool:
        return self._descriptor >= 0

    def close(self) -> None:
        """Give the descriptor back; the next use opens another."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def found(self, size: int, sizes: dict[int, int]) -> list[Run]:
        """Take up what is there: a file of `size` bytes, of which these runs are in use. The runs that are not."""
        self.is_known, self.sizes = size > 0, sizes
        gaps, at = [], 0
        for number in sorted(sizes, reverse=True):
            offset = offset_of(number)
            if offset > at:
                gaps.append((at, offset - at))
            at = max(at, _up(offset + sizes[number]))
        self.end = max(at, _up(size))
        if self.end > at:
            gaps.append((at, self.end - at))
        self.synced = self._closed = self.end  # it may be, and that may have been promised
        return gaps

    def usable(self) -> bool:
        """Whether bytes may be put here: not where the file system cannot take a part of a file back. Makes the file.
        OSError."""
        if not self.is_known:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o600)
            self._usable = punch(self._descriptor, 0, config.HEAP_BLOCK)
            self.is_known = True
        return self._usable

    def holds(self, number: int) -> bool:
        """Whether a run may get more bytes at its end."""
        size = self.sizes.get(number)
        return size is not None and _up(offset_of(number) + size) == self.end > self._closed

    def place(self) -> int:
        """The number that the next run gets."""
        return _number_at(self.end)

    def put(self, number: int, at: int, data: bytes | memoryview) -> None:
        """Write behind the first `at` bytes of a run. It counts once `keep` was called."""
        descriptor, offset, written = self.descriptor(), offset_of(number) + at, 0
        while written < len(data):
            written += os.pwrite(descriptor, data[written:] if written else data, offset + written)

    def unput(self, number: int, at: int) -> None:
        """Take back what was written behind the first `at` bytes of a run, and does not count. OSError."""
        end, start = os.fstat(self.descriptor()).st_size, _up(offset_of(number) + at)
        if start < end:
            punch(self.descriptor(), start, end - start)

    def keep(self, number: int, size: int) -> None:
        """A run, the last one, has so many bytes from now on."""
        self.sizes[number] = size
        self.end = _up(offset_of(number) + size)

    def closed(self) -> int:
        """Begin to put all on disk: how far that is, for `reached`. What is there gets no more bytes at its end, so
        that a run is on disk as a whole, or not promised to be."""
        self._closed = self.end
        return self.end

    def reached(self, offset: int) -> None:
        """All before this offset is on disk."""
        self.synced = max(self.synced, offset)

    def is_synced(self, number: int) -> bool:
        """Whether all of a run is on disk."""
        return offset_of(number) + self.sizes[number] <= self.synced

    def drop(self, number: int) -> Run:
        """A run is in use no more; what of the file is to be freed, once that is true on disk, too."""
        return offset_of(number), _up(self.sizes.pop(number))

    def free(self, runs: list[Run]) -> None:
        """Give the disk space of runs back. OSError."""
        joined: list[Run] = []
        for offset, length in sorted(runs):
            if joined and sum(joined[-1]) >= offset:
                before = joined.pop()
                offset, length = before[0], max(sum(before), offset + length) - before[0]
            joined.append((offset, length))
        for offset, length in joined:
            punch(self.descriptor(), offset, length)

    def reach(self, size: int) -> None:
        """Make the file as long as it was: what the machine lost on its way down reads as zeros."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
