"""MDS, the shard format of MosaicML Streaming: raw bytes to records, records to value trees.

Knows nothing of index files, storage, compression or hashes. Source of all format facts: what
mosaicml-streaming 0.13.0 writes and reads, found by running it. Integers are little-endian.

A shard is `u32 n, u32 offset[n+1], config, records`; a record is a `u32` size for each column without a fixed size and
then all columns' bytes. Any column may hold bytes that are not its encoding's (the library's writer lets them pass):
such a cell is shown as its bytes, with a note, and the rest of the shard is not touched by it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any

import numpy as np

from shardfs import config, pictures, values
from shardfs.drivers.base import InMemory, Record
from shardfs.errors import DamagedShardError
from shardfs.raw_bytes import Whole
from shardfs.values import Array, Blob, Buffer, Pickle, Tree

Decode = Callable[[Buffer, int, int], Tree]
"""The value of a cell at an offset and of a length in the raw bytes; ValueError and its kin where there is none."""

_U32 = struct.Struct("<I")
_I64 = struct.Struct("<q")
_OFFSETS_AT_ONCE = 1 << 16  # positions held as Python numbers at a time: a shard may have millions of samples
_COMMAS = 8 * config.TOKEN_FLOOR  # in one cell's JSON: a number in a list takes less than a list does
_PICTURES = frozenset(("jpg", "png", "gif", "tif", "webp", "bmp", "jp2", "avif", "heic"))
_UNDECODABLE = (ValueError, ArithmeticError, RecursionError, struct.error)


def _text(raw: Buffer, at: int, length: int) -> str:
    return str(raw[at : at + length], "utf-8")


def _int(raw: Buffer, at: int, length: int) -> int:
    if length != 8:
        raise ValueError(f"{length} bytes instead of 8")
    (value,) = _I64.unpack_from(raw, at)
    return int(value)


def _scalar(dtype: np.dtype[Any], raw: Buffer, at: int, length: int) -> Any:
    if length != dtype.itemsize:
        raise ValueError(f"{length} bytes instead of {dtype.itemsize}")
    # through the memory and not through a Python number: the bits of a NaN stay what they are
    return np.frombuffer(raw, dtype, 1, at)[0]


def _str_int(raw: Buffer, at: int, length: int) -> int:
    return int(_text(raw, at, length))


def _str_float(raw: Buffer, at: int, length: int) -> float:
    return float(_text(raw, at, length))


def _str_decimal(raw: Buffer, at: int, length: int) -> Decimal:
    return Decimal(_text(raw, at, length))


def parse_json(raw: Buffer, at: int, length: int) -> Any:
    """The value of a text of JSON. ValueError and its kin for what is none, or takes too much for what it says."""
    text = _text(raw, at, length)
    opened = text.count("[") + text.count("{")
    if length > config.TOKEN_FLOOR and (opened > config.TOKEN_FLOOR or text.count(",") > _COMMAS):
        raise ValueError("so many values that they would take many times their text's memory")
    value = json.loads(text)
    if opened > config.NESTING:
        _check_nesting(value)
    return value


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(config.NESTING + 1):
        level = [
            item
            for holder in level
            if isinstance(holder, list | dict)
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if not level:
            return
    raise ValueError(f"nested deeper than {config.NESTING} levels")


def _bytes(raw: Buffer, at: int, length: int) -> Blob:
    return Blob(at, length)


def _pickle(raw: Buffer, at: int, length: int) -> Pickle:
    return Pickle(at, length)


def picture_file(kind: str, raw: Buffer, at: int, length: int) -> Blob:
    """A file of a picture as stored. Another kind than the column's is fine: the library opens what Pillow can."""
    ext = values.extension_at(raw, at, length)
    if ext not in _PICTURES:
        return Blob(at, length, "bin", f"{kind}: no picture by its first bytes")
    return Blob(at, length, ext)


def _list_of(item: Decode, reserved: bool, raw: Buffer, at: int, length: int) -> list[Tree]:
    """`[u32 0] u32 count, u32 size[count], items`: the list of what `item` makes of each."""
    start = 4 if reserved else 0
    if length < start + 4:
        raise ValueError(f"{length} bytes are too few for a list")
    if reserved and _U32.unpack_from(raw, at)[0] != 0:
        raise ValueError("a list whose reserved first number is not 0")
    (count,) = _U32.unpack_from(raw, at + start)
    begin = start + 4 + 4 * count
    if begin > length or count > config.TOKEN_FLOOR:
        raise ValueError(f"a list of {count} items in {length} bytes")
    sizes = struct.unpack_from(f"<{count}I", raw, at + start + 4)
    if begin + sum(sizes) != length:
        raise ValueError(f"items of {sum(sizes)} bytes in a list that has {length - begin} for them")
    items, position = [], at + begin
    for size in sizes:
        items.append(item(raw, position, size))
        position += size
    return items


DTYPE_CODES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name).newbyteorder("<")
    for code, name in (
        *((8, "uint8"), (9, "int8"), (16, "uint16"), (17, "int16"), (18, "float16"), (32, "uint32"), (33, "int32")),
        *((34, "float32"), (64, "uint64"), (65, "int64"), (66, "float64")),
    )
}
DTYPES = {dtype.name: dtype for dtype in DTYPE_CODES.values()}


def _array(dtype: np.dtype[Any] | None, shape: tuple[int, ...] | None, raw: Buffer, at: int, length: int) -> Array:
    """`[u8 dtype] [u8 ndim << 2 | w, ndim numbers of 1 << w bytes] values`, without what the encoding fixes (1.5)."""
    end = at + length
    if dtype is None:
        if at >= end or raw[at] not in DTYPE_CODES:
            raise ValueError("no type of an array")
        dtype = DTYPE_CODES[raw[at]]
        at += 1
    if shape is None:
        if at >= end:
            raise ValueError("no shape of an array")
        ndim, width = raw[at] >> 2, raw[at] & 3
        at += 1
        if at + (ndim << width) > end:
            raise ValueError("no shape of an array")
        shape = struct.unpack_from(f"<{ndim}{'BHIQ'[width]}", raw, at)
        at += ndim << width
    # not zero and no more than the bytes there are: so no side can be impossible either
    if not 0 < math.prod(shape) * dtype.itemsize == end - at:
        raise ValueError(f"{end - at} bytes for an array of {dtype} and shape {str(shape)[:80]}")
    return Array(at, dtype, shape)


_FIXED: dict[str, Decode] = {
    "bytes": _bytes,
    "str": _text,
    "int": _int,
    "str_int": _str_int,
    "str_float": _str_float,
    "str_decimal": _str_decimal,
    "json": parse_json,
    "pkl": _pickle,
    "pil": pictures.parse,
    "jpeg": partial(picture_file, "jpeg"),
    "png": partial(picture_file, "png"),
    "ndarray": partial(_array, None, None),
    "jpeg_array": partial(_list_of, partial(picture_file, "jpeg"), False),
    "jpegarray": partial(_list_of, partial(picture_file, "jpeg"), False),
    "list[pil]": partial(_list_of, pictures.parse, True),
    "list[jpeg]": partial(_list_of, partial(picture_file, "jpeg"), True),
    "list[png]": partial(_list_of, partial(picture_file, "png"), True),
    **{name: partial(_scalar, dtype) for name, dtype in DTYPES.items()},
}


def _decoder(encoding: str) -> Decode:
    """What decodes an encoding; for an unknown one, something that says so of each cell."""
    known = _FIXED.get(encoding)
    if known is not None:
        return known
    name, _, rest = encoding.partition(":")
    dtype, _, dims = rest.partition(":")
    shape = tuple(int(dim) for dim in dims.split(",") if dim.isdecimal() and len(dim) < 20)
    fits = not dims or (len(shape) == dims.count(",") + 1 and math.prod(shape) > 0 and len(shape) <= config.NDIM)
    if name == "ndarray" and dtype in DTYPES and fits and (":" not in rest or dims):
        return partial(_array, DTYPES[dtype], shape if dims else None)
    return partial(_refuse, encoding)


def _refuse(encoding: str, raw: Buffer, at: int, length: int) -> Tree:
    raise ValueError("an encoding that is not known here")


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a shard, ready for splitting records. Made by `columns`."""

    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int | None, ...]
    """Bytes of each cell in a column; None where each record says it."""
    plan: tuple[tuple[str, str, int, Decode], ...]
    """Name, encoding, fixed size or -1, and decoder of each column."""
    lengths: struct.Struct
    """The sizes in front of a record."""
    fixed: int
    """Bytes of a record besides its cells of variable size: these sizes themselves, and all fixed cells."""

    def cells(self, record: Buffer) -> dict[str, Buffer]:
        """The bytes of each column in a record that `split` takes."""
        sizes, at = iter(self.lengths.unpack_from(record)), self.lengths.size
        found = {}
        for name, _, length, _ in self.plan:
            if length < 0:
                length = next(sizes)
            found[name] = record[at : at + length]
            at += length
        return found

    def split(self, raw: Buffer, start: int, end: int) -> dict[str, Tree]:
        """The tree of the record from `start` to `end`. DamagedShardError if its parts do not fill exactly that."""
        lengths = self.lengths
        if end - start < lengths.size:
            raise DamagedShardError(f"a record of {end - start} bytes, too few for the sizes of its columns", start)
        variable = lengths.unpack_from(raw, start)
        if self.fixed + sum(variable) != end - start:
            text = f"a record of {end - start} bytes whose columns have {self.fixed + sum(variable)}"
            raise DamagedShardError(text, start)
        sizes = iter(variable)
        at = start + lengths.size
        tree: dict[str, Tree] = {}
        for name, encoding, length, decode in self.plan:
            if length < 0:
                length = next(sizes)
            try:
                tree[name] = decode(raw, at, length)
            except _UNDECODABLE as error:
                tree[name] = Blob(at, length, "bin", f"{encoding}: {error}"[:300])
            at += length
        return tree

    def decode(self, record: Buffer) -> Tree:
        """The tree of one whole record."""
        return self.split(record, 0, len(record))


@lru_cache(maxsize=256)  # the shards of a split nearly always share one
def columns(names: tuple[str, ...], encodings: tuple[str, ...], sizes: tuple[int | None, ...]) -> Columns:
    """Columns from the three parallel lists of an index. A size of 0 counts as none, as it does in the library.

    ValueError for lists that do not fit together, and for two columns of one name.
    """
    if not len(names) == len(encodings) == len(sizes):
        raise ValueError("column_names, column_encodings and column_sizes of different lengths")
    if len(set(names)) != len(names):
        raise ValueError("two columns of one name")
    fixed = [size or None for size in sizes]
    if any(size is not None and not 0 < size < 1 << 32 for size in fixed):
        raise ValueError("an impossible column size")
    lengths = struct.Struct(f"<{fixed.count(None)}I")
    plan = tuple(
        (name, encoding, -1 if size is None else size, _decoder(encoding))
        for name, encoding, size in zip(names, encodings, fixed, strict=True)
    )
    total = lengths.size + sum(size for size in fixed if size is not None)
    return Columns(names, encodings, tuple(fixed), plan, lengths, total)


class MdsShard(InMemory):
    """One decompressed MDS shard. Immutable.

    `samples` is what the index says; `stored` the number of stored bytes the raw ones came from; the other two are
    the sample's numbering (see drivers.base.Shard). DamagedShardError where the table of positions is not sound.
    """

    def __init__(
        self,
        raw: bytes | Whole,
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
        limit = config.TOKEN_FLOOR + config.TOKENS_PER_STORED_BYTE * stored
        if samples * max(1, len(columns.names)) > limit:
            raise DamagedShardError(f"{samples} samples, more than {stored} stored bytes hold in earnest", 0)
        self._offsets = _offsets(self.raw, samples)

    def records(self) -> Iterator[Record]:
        """All samples in order. DamagedShardError for a record whose parts do not fill it."""
        raw, split = self.raw, self.columns.split
        for first in range(0, len(self._offsets) - 1, _OFFSETS_AT_ONCE):
            offsets = self._offsets[first : first + _OFFSETS_AT_ONCE + 1].tolist()
            start = offsets[0]
            for end in offsets[1:]:
                yield Record(start, end, split(raw, start, end))
                start = end

    def bounds(self, at: int) -> tuple[int, int]:
        """Where sample number `at` begins and ends."""
        return int(self._offsets[at]), int(self._offsets[at + 1])

    def tree(self, start: int, end: int) -> Tree:
        return self.columns.split(self.raw, start, end)

    def decode(self, record: Buffer) -> Tree:
        return self.columns.decode(record)

    def cells(self, record: Buffer) -> Mapping[Any, Buffer]:
        return self.columns.cells(record)

    def sample(self, tree: Tree) -> Any:
        """A dict of columns as the library gives it, but jpeg and png files stay bytes, and pickles are not run."""
        return values.to_python(tree, self.raw)


def _offsets(raw: Buffer, samples: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The n + 1 positions of records, checked: as many as the index says, rising, and filling the shard."""
    if len(raw) < 8:
        raise DamagedShardError(f"{len(raw)} bytes are too few for a shard", 0)
    (count,) = _U32.unpack_from(raw, 0)
    if count != samples:
        raise DamagedShardError(f"{count} samples where the index has {samples}", 0)
    table = 4 + 4 * (count + 1)
    if len(raw) < table:
        raise DamagedShardError(f"{len(raw)} bytes are too few for the positions of {count} samples", 4)
    offsets = np.frombuffer(raw, "<u4", count + 1, 4)
    if offsets[0] < table:
        raise DamagedShardError(f"the first sample at {offsets[0]}, inside the table of positions", 4)
    if offsets[-1] != len(raw):
        raise DamagedShardError(f"the last sample ends at {offsets[-1]}, the shard at {len(raw)}", table - 4)
    back = np.flatnonzero(offsets[1:] < offsets[:-1])
    if len(back):
        raise DamagedShardError(f"sample {back[0]} ends before it begins", int(4 + 4 * back[0]))
    return offsets
