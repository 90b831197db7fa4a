"""Raw bytes of a shard while they come in, however many they turn out to be. Knows nothing of where they come from.

Large ones lie in an anonymous mapping of their own with huge pages, where the kernel has them: memory is taken as it
is written to, a longer mapping is made of a shorter one without a copy, and all of it goes back to the system with the
last view of it.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable

import numpy as np

from shardfs import config

Whole = bytearray | mmap.mmap
"""Raw bytes that are complete; to be read through a memoryview."""

_BEHIND = 4096
"""Room for what comes behind the bytes that are expected, if only to find out that it is nothing."""

_SMALL = 16 * 1024
"""A copy of fewer bytes is done before another thread could be let in."""


class RawBytes:
    """Bytes that are put one behind the other. `expected` is how many there will be in all: a hint, and 0 for none."""

    def __init__(self, expected: int = 0) -> None:
        self._data: Whole = bytearray()
        self._piece = bytearray()
        self._piece_size = min(expected + _BEHIND, config.COPY_SLICE) if expected else config.COPY_SLICE
        self.size = 0
        """Bytes so far."""
        if expected >= config.MAPPED_RAW:
            # a hint that the system has no memory for was none
            with contextlib.suppress(OSError):
                self._data = _mapping(expected + 2 * config.COPY_SLICE, expected // config.HUGE_PAGE * config.HUGE_PAGE)

    def add(self, piece: bytes | memoryview) -> None:
        """More bytes, at the end."""
        behind = self.size + len(piece)
        data = self._with_room(behind)
        if isinstance(data, bytearray):
            data += piece
        elif len(piece) < _SMALL:
            data[self.size : behind] = piece
        else:
            # numpy copies without the GIL, which the pages' first touch would be made to wait with: other threads that
            # decompress go on meanwhile
            np.frombuffer(data, np.uint8)[self.size : behind] = np.frombuffer(piece, np.uint8)
        self.size = behind

    def fill(self, readinto: Callable[[memoryview], int]) -> int:
        """Lets `readinto` write up to config.COPY_SLICE more bytes and return how many; so does this."""
        data = self._with_room(self.size + config.COPY_SLICE)
        if isinstance(data, bytearray):
            if not self._piece:
                self._piece = bytearray(self._piece_size)
            with memoryview(self._piece) as view:
                count = readinto(view)
                self.add(view[:count])
            return count
        with memoryview(data) as whole, whole[self.size : self.size + config.COPY_SLICE] as view:
            count = readinto(view)
        self.size += count
        return count

    def add_whole(self, size: int, write: Callable[[memoryview], object]) -> None:
        """Lets `write` fill `size` more bytes, all at once. Where it raises they are there, and mean nothing."""
        behind = self.size + size
        data = self._with_room(behind)
        if isinstance(data, bytearray):
            data += bytes(size)
        with memoryview(data) as whole, whole[self.size : behind] as view:
            write(view)
        self.size = behind

    def _with_room(self, size: int) -> Whole:
        """What holds the bytes, where there is room for `size` of them in a mapping."""
        if isinstance(self._data, bytearray):
            if size >= config.MAPPED_RAW:
                mapped = _mapping(_longer(size), _longer(size))
                for at in range(0, self.size, config.COPY_SLICE):
                    mapped[at : min(at + config.COPY_SLICE, self.size)] = self._data[at : at + config.COPY_SLICE]
                self._data = mapped
        elif size > len(self._data):
            self._data = _resized(self._data, _longer(size))
        return self._data

    def piece(self, start: int, end: int) -> bytes:
        """A copy of some of them."""
        return bytes(self._data[start : min(end, self.size)])

    def whole(self, dropped: int = 0) -> Whole:
        """All of them but the last `dropped`. Nothing can be added any more."""
        size = self.size - dropped
        data = self._data
        if isinstance(data, bytearray):
            del data[size:]
        elif size:
            data = _resized(data, size)
        else:
            data = bytearray()
        return data


def _longer(size: int) -> int:
    """The length for a mapping of so many bytes, and perhaps more to come. What is never written to costs no memory,
    but counts where the system promises no more than it has."""
    return size + size // 8 + 4 * config.COPY_SLICE


def _mapping(size: int, huge: int) -> mmap.mmap:
    """A mapping of `size` bytes or some more, with huge pages for the first `huge` of them."""
    # the kernel (6.12) has only those begin at a huge page that are as long as some of them; with another beginning
    # the first bytes would be in small ones
    length = -(-size // config.HUGE_PAGE) * config.HUGE_PAGE
    mapped = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _advise(mapped, huge)
    return mapped


def _resized(mapped: mmap.mmap, size: int) -> mmap.mmap:
    """A mapping made longer or shorter: by the kernel, without a copy, or else anew. The kernel makes none longer that
    is of two kinds of pages, and does not always take advice to make them one kind."""
    if size > len(mapped):
        _advise(mapped, len(mapped))
    try:
        mapped.resize(size)
    except OSError:
        made, kept = _mapping(size, size), min(size, len(mapped))
        for at in range(0, kept, config.COPY_SLICE):
            end = min(at + config.COPY_SLICE, kept)
            made[at:end] = mapped[at:end]
        return made
    return mapped


def _advise(mapped: mmap.mmap, huge: int) -> None:
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages has small ones
            mapped.madvise(mmap.MADV_HUGEPAGE, 0, huge)
