"""Stored objects that somebody reads as they are: opened once for all who read one, and closed when nobody does.

Where nobody says when he is done, those that were read last stay open until their number is forgotten. Knows nothing of
what objects are, nor of how they are shown.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from shardfs import config
from shardfs.errors import StorageError
from shardfs.shard_cache import ShardCache
from shardfs.storage.base import Reader

Opener = Callable[[], Reader]
"""Opens an object, in a worker. The errors of `Storage.open`."""


@dataclass(slots=True)
class _Opened:
    """A stored object that is open."""

    reader: Reader
    handles: int = 0
    reading: int = 0


class StoredReaders:
    """Open objects, by number."""

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        """The one that was read last at the end."""
        self._counted = True

    def __contains__(self, number: int) -> bool:
        return number in self._opened

    def without_opens(self) -> None:
        """From here on objects are read that were never opened, and none is closed."""
        self._counted = False
        for opened in self._opened.values():
            opened.handles = 0

    async def open(self, number: int, opener: Callable[[], Opener]) -> None:
        """Count one who has an object open; `opener` is asked how, if nobody has. EMFILE, and its errors."""
        (await self._open(number, opener)).handles += 1

    async def _open(self, number: int, opener: Callable[[], Opener]) -> _Opened:
        opened = self._opened.get(number)
        if opened is not None:
            return opened
        work = opener()
        if len(self._opened) >= config.CONTROL_STATES:
            raise StorageError("too many open files below .shardfs", errno.EMFILE)
        reader = await self._cache.in_worker(work)
        opened = self._opened.get(number)
        if opened is None:
            opened = self._opened[number] = _Opened(reader)
        else:
            reader.close()  # somebody else was quicker
        return opened

    async def read(self, number: int, offset: int, size: int, opener: Callable[[], Opener]) -> bytes:
        """At most `size` bytes from `offset`, fewer only at the end. EBADF for what was to be opened and is not."""
        if self._counted and number not in self._opened:
            raise StorageError("no such handle", errno.EBADF)
        opened = await self._open(number, opener)
        count = min(size, opened.reader.size - offset)
        opened.reading += 1
        try:
            return b"" if count <= 0 else await self._cache.in_worker(lambda: opened.reader.read_at(offset, count))
        finally:
            opened.reading -= 1
            if self._counted:
                self._close(number, opened)
            elif number in self._opened:
                self._opened.move_to_end(number)
                for oldest in list(self._opened)[: max(0, len(self._opened) - config.CONTROL_READERS)]:
                    self._close(oldest, self._opened[oldest])

    def release(self, number: int) -> None:
        """One who had it open has closed it."""
        opened = self._opened.get(number)
        if opened is not None:
            opened.handles -= 1
            self._close(number, opened)

    def forgotten(self, number: int) -> None:
        """Nobody knows the number any more."""
        opened = self._opened.get(number)
        if opened is not None:
            self._close(number, opened)

    def _close(self, number: int, opened: _Opened) -> None:
        if opened.handles <= 0 and not opened.reading and self._opened.get(number) is opened:
            del self._opened[number]
            opened.reader.close()
