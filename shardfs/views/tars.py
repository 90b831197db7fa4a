"""A tar of a shard's files that is nowhere stored: headers are computed, contents are the files' own.

Its size and the place of each member follow from the shard's table. Members are the files of the key's directory, under
their names and in their order, with the headers of `tar_headers.header`: the same whoever reads them and when. Knows
nothing of caches or mounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shardfs.drivers.tar_headers import BLOCK, ending, header
from shardfs.index import ShardTable
from shardfs.views.columns import all_files

_LONG, _LARGE = 100, 8 << 30
"""Names and sizes above these may need more than one block of header."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a tar: bytes that are given here, or part of a file."""

    data: bytes = b""
    file: int = -1
    """By its number in the table; -1 for none."""
    offset: int = 0
    size: int = 0


class TarLayout:
    """Where the members of a table's tar lie: 20 bytes a file."""

    def __init__(self, table: ShardTable) -> None:
        chosen = all_files(table)
        self._files = chosen.files
        suffix = table.columns["suffix"][self._files]
        sizes = table.columns["length"][self._files] + table.prefix_sizes[table.columns["prefix"][self._files]]
        if table.stems is None:
            stems = np.full(len(self._files), table.digits, np.int64)
        else:
            stems = np.diff(table.stems.starts).astype(np.int64)[chosen.samples]
        lengths = stems + 1 + np.diff(table.suffixes.starts).astype(np.int64)[suffix]
        heads = np.full(len(self._files), BLOCK, np.int64)
        for at in np.flatnonzero((lengths > _LONG) | (sizes >= _LARGE)).tolist():
            heads[at] = len(header(_name(table, int(self._files[at])), int(sizes[at])))
        self._heads = heads
        self._starts = np.zeros(len(self._files) + 1, np.int64)
        np.cumsum(heads + -(-sizes.astype(np.int64) // BLOCK) * BLOCK, out=self._starts[1:])
        self._ending = ending(int(self._starts[-1]))
        self.size = int(self._starts[-1]) + len(self._ending)
        """Bytes of the whole tar."""
        self.nbytes = self._starts.nbytes + heads.nbytes + self._files.nbytes

    def pieces(self, table: ShardTable, start: int, end: int) -> Iterator[Piece]:
        """What the bytes from `start` to `end` are made of, in order."""
        end = min(end, self.size)
        at = max(int(np.searchsorted(self._starts, start, "right")) - 1, 0)
        while at < len(self._files) and start < end:
            begin, behind = int(self._starts[at]), int(self._starts[at + 1])
            file, head = int(self._files[at]), int(self._heads[at])
            size = table.size(file)
            if start < begin + head:
                made = header(_name(table, file), size)[start - begin : end - begin]
                yield Piece(made)
                start += len(made)
            inside = start - begin - head
            if start < end and inside < size:
                count = min(size - inside, end - start)
                yield Piece(file=file, offset=inside, size=count)
                start += count
            if start < min(behind, end):
                yield Piece(bytes(min(behind, end) - start))
                start = min(behind, end)
            at += 1
        body = int(self._starts[-1])
        if body <= start < end:
            yield Piece(self._ending[start - body : end - body])


def _name(table: ShardTable, file: int) -> str:
    return table.name(file).decode("utf-8", "surrogateescape")
