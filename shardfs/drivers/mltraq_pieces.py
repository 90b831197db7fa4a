"""Runs of bytes in memory and in files of a datastore, one behind the other, as if they were one buffer.

The files stay where they are: what is read of them is read when it is asked for, out of the version that was listed.
Knows nothing of what is in them.
"""

from __future__ import annotations

import errno
import threading
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from typing import cast

from shardfs import config
from shardfs.errors import StaleShardError, StorageError
from shardfs.storage.base import Listed, Reader, Storage
from shardfs.values import Buffer


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes: `data` where it is in memory, else the whole of a file."""

    length: int
    data: Buffer | None = None
    file: Listed | None = None


def in_memory(data: bytes) -> Piece:
    return Piece(len(data), memoryview(data))


def in_file(file: Listed) -> Piece:
    return Piece(file.size, file=file)


class Pieces:
    """Answers what is asked of a memoryview of bytes (its length, one byte, a slice) without being one.

    For any number of threads. Reading has the errors of Storage.open, and StaleShardError for a file that is gone.
    """

    def __init__(self, storage: Storage, pieces: list[Piece]) -> None:
        self._storage = storage
        self._pieces = pieces
        self._ends = list(accumulate(piece.length for piece in pieces))
        self._readers: OrderedDict[str, Reader] = OrderedDict()
        self._lock = threading.Lock()
        self.size = self._ends[-1] if self._ends else 0
        self.held = sum(piece.length for piece in pieces if piece.data is not None)
        """Bytes of memory that they take."""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: int | slice) -> int | memoryview:
        if isinstance(at, slice):
            start, end, _ = at.indices(self.size)
            return self.read(start, max(start, end))
        return self.read(at, at + 1)[0]

    def read(self, start: int, end: int) -> memoryview:
        """The bytes from `start` to `end`."""
        made = []
        while start < end:
            number = bisect_right(self._ends, start)
            piece, base = self._pieces[number], self._ends[number] - self._pieces[number].length
            stop = min(end, self._ends[number])
            if piece.data is not None:
                made.append(piece.data[start - base : stop - base])
            else:
                assert piece.file is not None
                made.append(memoryview(self._reader(piece.file).read_at(start - base, stop - start)))
            start = stop
        return made[0] if len(made) == 1 else memoryview(b"".join(made))

    def at_hand(self, start: int, end: int) -> memoryview | None:
        """The same where it is in memory, or in the page cache of a file that is open; None elsewhere."""
        number = bisect_right(self._ends, start)
        if number >= len(self._pieces) or end > self._ends[number]:
            return None
        piece, base = self._pieces[number], self._ends[number] - self._pieces[number].length
        if piece.data is not None:
            return piece.data[start - base : end - base]
        assert piece.file is not None
        reader = self._readers.get(piece.file.name)
        return None if reader is None else reader.cached_at(start - base, end - start)

    def view(self, start: int, end: int) -> Buffer:
        """A part of them that is not read before it is looked at."""
        return cast(Buffer, _View(self, start, end))

    @property
    def whole(self) -> Buffer:
        return cast(Buffer, self)

    def _reader(self, file: Listed) -> Reader:
        with self._lock:
            reader = self._readers.get(file.name)
            if reader is not None:
                self._readers.move_to_end(file.name)
                return reader
        try:
            reader = self._storage.open(file.name, file.version)
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            raise StaleShardError(f"{file.name} is gone since it was listed") from error
        with self._lock:
            self._readers[file.name] = reader
            while len(self._readers) > config.DATASTORE_OPEN:
                self._readers.popitem(last=False)  # closed when its last reader is done with it
        return reader


class _View:
    """A part of pieces, with positions of its own."""

    def __init__(self, pieces: Pieces, start: int, end: int) -> None:
        self._pieces = pieces
        self._start = start
        self._size = end - start

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, at: int | slice) -> int | memoryview:
        if isinstance(at, slice):
            start, end, _ = at.indices(self._size)
            return self._pieces.read(self._start + start, self._start + max(start, end))
        return self._pieces.read(self._start + at, self._start + at + 1)[0]
