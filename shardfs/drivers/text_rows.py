"""JSON, CSV, TSV and XSV, the text formats of MosaicML Streaming: raw bytes to rows, rows to value trees.

Knows nothing of index files, storage, compression or hashes. Source of all format facts: what mosaicml-streaming 0.13.0
writes and reads, found by running it.

A shard is two files: the rows, and beside them `u32 n, u32 offset[n+1], config` (little-endian), which says where each
row begins. A row of JSON is an object and a newline. XSV has a header line, and rows whose cells stand between
separators, without any quoting; CSV and TSV are XSV with a separator of their own. Lines are not looked for: a text may
hold what looks like one's end, the positions count. A row that is no row makes the shard a damaged one; a cell that is
not the number that its column says is shown as its bytes, with a note.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from shardfs import config, values
from shardfs.drivers.base import InMemory, Record
from shardfs.drivers.mds import parse_json
from shardfs.errors import DamagedShardError, OverfullShardError
from shardfs.raw_bytes import Whole
from shardfs.values import Blob, Buffer, Tree

FORMATS = ("json", "csv", "tsv", "xsv")
SEPARATORS = {"csv": ",", "tsv": "\t"}
"""Of the formats that have one of their own."""

_U32 = struct.Struct("<I")
_OFFSETS_AT_ONCE = 1 << 16  # positions held as Python numbers at a time: a shard may have millions of rows
_CELLS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a shard, ready for reading rows. Made by `columns`."""

    format: str
    names: tuple[str, ...]
    encodings: tuple[str, ...]
    separator: str
    """Nothing for JSON."""
    newline: str

    @property
    def header(self) -> bytes:
        """What stands before the first row."""
        if self.format == "json":
            return b""
        return (self.separator.join(self.names) + self.newline).encode("utf-8", "surrogatepass")

    def split(self, raw: Buffer, start: int, end: int) -> Tree:
        """The tree of the row from `start` to `end`. DamagedShardError for what is no row."""
        if self.format == "json":
            try:
                return parse_json(raw, start, end - start)
            except (ValueError, RecursionError) as error:
                raise DamagedShardError(f"a row that is no JSON ({error})"[:300], start) from error
        return self._cells(raw, start, end)

    def _cells(self, raw: Buffer, start: int, end: int) -> dict[str, Tree]:
        try:
            text = str(raw[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise DamagedShardError("a row that is no UTF-8", start + error.start) from error
        if not text.endswith(self.newline):
            raise DamagedShardError("a row without its newline", start)
        text = text[: -len(self.newline)]
        found = text.count(self.separator) + 1  # counted first: the parts of a long row take many times its memory
        if found != max(len(self.names), 1) or (text and not self.names):
            raise DamagedShardError(f"a row of {found} cells where there are {len(self.names)} columns", start)
        parts = text.split(self.separator)
        tree: dict[str, Tree] = {}
        for at, (name, encoding) in enumerate(zip(self.names, self.encodings, strict=True)):
            try:
                tree[name] = _CELLS[encoding](parts[at])
            except (ValueError, LookupError) as error:
                before = sum(len(part.encode()) + len(self.separator.encode()) for part in parts[:at])
                why = "an encoding that is not known here" if isinstance(error, LookupError) else str(error)
                tree[name] = Blob(start + before, len(parts[at].encode()), "bin", f"{encoding}: {why}"[:300])
        return tree

    def decode(self, record: Buffer) -> Tree:
        """The tree of one whole row."""
        return self.split(record, 0, len(record))

    def cells(self, record: Buffer) -> None:
        """Cells are parts of a text: none has bytes of its own that could be kept."""
        return


@lru_cache(maxsize=256)  # the shards of a split nearly always share one
def columns(
    format: str, names: tuple[str, ...], encodings: tuple[str, ...], separator: str | None, newline: str
) -> Columns:
    """Columns from what an index says. ValueError for what does not fit together, or could not be told apart."""
    if len(names) != len(encodings):
        raise ValueError("column_names and column_encodings of different lengths")
    if len(set(names)) != len(names):
        raise ValueError("two columns of one name")
    if format == "json":
        return Columns(format, names, encodings, "", newline)
    separator = SEPARATORS.get(format, separator)
    if not separator or not newline:
        raise ValueError("rows with nothing between the columns, or nothing behind them")
    return Columns(format, names, encodings, separator, newline)


def value_limit(stored: int) -> int:
    """Values that a shard of so many stored bytes may hold."""
    return config.TOKEN_FLOOR + config.TOKENS_PER_STORED_BYTE * stored


def least_cost(columns: Columns, rows: int, raw: int) -> int:
    """Values that so many rows of so many raw bytes in all count as, at least; those of XSV count as no more."""
    if columns.format == "json":
        return rows * (1 + config.SAMPLE_TOKENS) + raw // config.TEXT_PER_TOKEN
    # long names are names of files that must be cut, for each row anew
    long = sum(len(name) // config.TEXT_PER_TOKEN for name in columns.names if len(name) > config.NAME_MAX)
    return rows * max(1, len(columns.names) + long)


def row_cost(columns: Columns, row: bytes) -> int:
    """Values that a row of JSON counts as; 0 for one of XSV, whose cells are counted by their columns."""
    if columns.format != "json":
        return 0
    # there is a value to each comma, or to each bracket where there is none
    values = row.count(b",") + row.count(b"[") + row.count(b"{")
    return values + 1 + config.SAMPLE_TOKENS + len(row) // config.TEXT_PER_TOKEN


class TextShard(InMemory):
    """One decompressed shard of rows. Immutable.

    `raw` is the file of rows, `meta` the one of positions; `samples` is what the index says; `stored` the number of
    stored bytes that both came from; the other two are the samples' numbering (see drivers.base.Shard).
    DamagedShardError where the positions are not sound.
    """

    def __init__(
        self,
        raw: bytes | Whole,
        meta: bytes | Whole,
        columns: Columns,
        samples: int,
        stored: int,
        first_sample: int = 0,
        samples_through: int | None = None,
    ) -> None:
        self.raw: Buffer = memoryview(raw).toreadonly()
        self.columns = columns
        self.first_sample = first_sample
        self.samples_through = samples_through
        self._limit = value_limit(stored)
        if least_cost(columns, samples, len(self.raw)) > self._limit:
            raise OverfullShardError(0)
        self._offsets = _offsets(memoryview(meta), self.raw, samples, columns)

    @property
    def held(self) -> int:
        return len(self.raw) + self._offsets.nbytes

    def records(self) -> Iterator[Record]:
        """All rows in order. DamagedShardError for one that is none, or if they hold too much."""
        raw, split, left = self.raw, self.columns.split, self._limit
        for first in range(0, len(self._offsets) - 1, _OFFSETS_AT_ONCE):
            offsets = self._offsets[first : first + _OFFSETS_AT_ONCE + 1].tolist()
            start = offsets[0]
            for end in offsets[1:]:
                left -= row_cost(self.columns, bytes(raw[start:end]))
                if left < 0:
                    raise OverfullShardError(start)
                yield Record(start, end, split(raw, start, end))
                start = end

    def bounds(self, at: int) -> tuple[int, int]:
        """Where row number `at` begins and ends."""
        return int(self._offsets[at]), int(self._offsets[at + 1])

    def tree(self, start: int, end: int) -> Tree:
        return self.columns.split(self.raw, start, end)

    def decode(self, record: Buffer) -> Tree:
        return self.columns.decode(record)

    def sample(self, tree: Tree) -> Any:
        """What the library gives for a row; a cell that is not what its column says is bytes."""
        return values.to_python(tree, self.raw)


def _offsets(meta: Buffer, raw: Buffer, samples: int, columns: Columns) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The n + 1 positions of rows, checked: as many as the index says, rising, filling the file behind its header."""
    if len(meta) < 8:
        raise DamagedShardError(f"{len(meta)} bytes are too few for a file of positions")
    (count,) = _U32.unpack_from(meta, 0)
    if count != samples:
        raise DamagedShardError(f"{count} samples in the file of positions where the index has {samples}")
    if len(meta) < 4 + 4 * (count + 1):
        raise DamagedShardError(f"{len(meta)} bytes are too few for the positions of {count} samples")
    offsets = np.frombuffer(meta, "<u4", count + 1, 4).copy()  # the rest of the file is not needed any more
    if offsets[-1] != len(raw):
        raise DamagedShardError(f"the last row ends at {offsets[-1]}, the file at {len(raw)}")
    back = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(back):
        raise DamagedShardError(f"row {back[0]} ends before it begins")
    if raw[: offsets[0]] not in (columns.header, b""):
        raise DamagedShardError(f"{offsets[0]} bytes before the first row that are not its columns' names", 0)
    return offsets
