"""MDS, the shard format of MosaicML Streaming: samples to records, records to raw bytes. The inverse of mds.py.

Knows nothing of index files, storage, compression or hashes. Source of all format facts: what mosaicml-streaming 0.13.0
writes and reads, found by running it.

Columns of a data set that has none yet, by the values of its first sample (`infer`):

    bytes of a JPEG, of a PNG       jpeg, png
    other bytes                     bytes
    text                            str
    int                             int; beyond 64 bits str_int
    float                           float64
    numpy number                    its own type
    Decimal                         str_decimal
    array of numbers                ndarray
    Pillow image, stored pickle     pil, pkl
    None, bool, list, dict          json
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np

from shardfs import config, images, pictures, values
from shardfs.drivers.base import Cell, NewRecord, Value
from shardfs.drivers.mds import DTYPE_CODES, DTYPES, Columns, columns, picture_file
from shardfs.drivers.spooled import SpooledRecords
from shardfs.errors import BadSettingError
from shardfs.values import Blob, Pickle

Encode = Callable[[Any], bytes]
"""A cell's bytes for a value; ValueError and its kin, with the reason, for one that the encoding cannot hold."""

_REFUSED = (ValueError, TypeError, ArithmeticError, RecursionError, struct.error)
_INT64 = range(-(1 << 63), 1 << 63)
_CODES = {dtype.name: code for code, dtype in DTYPE_CODES.items()}


def record(made: Columns, sample: Any, name: str) -> bytes:
    """The record of a sample, whose fields must be exactly the columns. A field that is a Cell is not encoded again.

    BadSettingError that says which sample, which column and why.
    """
    if not isinstance(sample, Mapping):
        raise BadSettingError(f"sample {name} is a {type(sample).__name__}: a row of an MDS shard is made of columns")
    missing = [column for column in made.names if column not in sample]
    odd = [field for field in sample if field not in made.names]
    if missing or odd:
        what = "no " + ", ".join(missing[:5]) if missing else "a field " + ", ".join(map(repr, odd[:5]))
        raise BadSettingError(f"sample {name} has {what}, its data set has the columns {', '.join(made.names)}")
    cells = []
    for column, encoding, size in zip(made.names, made.encodings, made.sizes, strict=True):
        value = sample[column]
        try:
            cell = value.data if type(value) is Cell else _cell(encoding, value)
            if len(cell) >= 1 << 32 or (size is not None and len(cell) != size):
                raise ValueError(f"{len(cell)} bytes instead of {size if size is not None else 'less than 4 GiB'}")
        except _REFUSED as error:
            raise BadSettingError(f"sample {name}: column {column} is {encoding}: {str(error)[:300]}") from error
        cells.append(cell)
    sizes = [len(cell) for cell, size in zip(cells, made.sizes, strict=True) if size is None]
    return b"".join((struct.pack(f"<{len(sizes)}I", *sizes), *cells))


def infer(sample: Any, name: str) -> Columns:
    """The columns of a new data set, by its first sample; see this module. BadSettingError."""
    if not isinstance(sample, Mapping) or not sample or not all(isinstance(field, str) for field in sample):
        raise BadSettingError(f"sample {name} has no fields named by texts, which would be its data set's columns")
    fields = sorted(sample)
    encodings = []
    for field in fields:
        encoding = _inferred(sample[field])
        if encoding is None:
            kind = type(sample[field]).__name__
            raise BadSettingError(f"sample {name}: field {field} is a {kind}, which no column of an MDS shard holds")
        encodings.append(encoding)
    return columns(tuple(fields), tuple(encodings), tuple(_size(encoding) for encoding in encodings))


class Survey:
    """Finds the columns that hold all samples it is shown.

    A field whose values have several encodings becomes `bytes` where all are bytes, `json` where JSON has all of them
    (an int and a float beside one another stay what they are), and is refused else.
    """

    def __init__(self) -> None:
        self._met: dict[str, dict[str, str]] = {}

    def add(self, sample: Any, name: str) -> None:
        """One more sample. BadSettingError for what no column holds."""
        if not isinstance(sample, Mapping) or not sample:
            raise BadSettingError(f"sample {name} has no fields, which would be the columns of an MDS shard")
        for field, value in sample.items():
            if not isinstance(field, str):
                raise BadSettingError(f"sample {name} has a field {field!r:.80}: a column is named by a text")
            encoding = _EMPTY if isinstance(value, list) and not value else _pictures(value) or _inferred(value)
            if encoding is None:
                kind = type(value).__name__
                raise BadSettingError(
                    f"sample {name}: field {field} is a {kind}, which no column of an MDS shard holds"
                )
            self._met.setdefault(field, {}).setdefault(encoding, name)

    def columns(self, before: Columns | None) -> Columns:
        """The columns, by name. Those of the shard `before` are kept where they hold the same. BadSettingError."""
        old = {} if before is None else dict(zip(before.names, before.encodings, strict=True))
        fields = sorted(self._met)
        encodings = tuple(self._encoding(field, self._met[field], old.get(field)) for field in fields)
        return columns(tuple(fields), encodings, tuple(_size(encoding) for encoding in encodings))

    @staticmethod
    def _encoding(field: str, met: dict[str, str], old: str | None) -> str:
        found = set(met) - {_EMPTY}
        if _EMPTY in met and not (len(found) == 1 and min(found).startswith("list[")):
            found.add("json")
        if old in _GENERAL and found <= _GENERAL[old] | {old}:
            return old
        if len(found) == 1:
            return found.pop()
        for general, special in _GENERAL.items():
            if found <= special | {general}:
                return general
        text = " and ".join(f"{encoding} in sample {name}" for encoding, name in met.items())
        raise BadSettingError(f"field {field} is {text}, and no column of an MDS shard holds these")


def columns_for(records: Iterable[NewRecord]) -> Columns | None:
    """The columns that hold all of these samples; None where there is none to tell. BadSettingError."""
    survey, found = Survey(), False
    for record in records:
        if isinstance(record, Value):
            survey.add(record.sample, record.name)
            found = True
    return survey.columns(None) if found else None


_EMPTY = "[]"
_GENERAL = {
    "bytes": frozenset(("jpeg", "png")),
    "str_int": frozenset(("int",)),
    "json": frozenset(("str", "int", "str_int", "float64")),
}
"""Encodings that hold what others hold, and give it back as it was."""


def _pictures(value: Any) -> str | None:
    """The encoding of a list of pictures of one kind."""
    if not isinstance(value, list) or not value or not all(type(item) is bytes for item in value):
        return None
    kinds = {_inferred(item) for item in value}
    return f"list[{kinds.pop()}]" if kinds in ({"jpeg"}, {"png"}) else None


def _inferred(value: Any) -> str | None:
    if isinstance(value, bytes):
        return {"jpg": "jpeg", "png": "png"}.get(values.extension_of(value[:300], len(value)), "bytes")
    if isinstance(value, np.generic):
        return value.dtype.name if value.dtype.name in DTYPES else None
    if isinstance(value, np.ndarray):
        return "ndarray" if value.dtype.name in DTYPES else None
    if value is None or isinstance(value, bool | list | dict):
        return "json"
    if isinstance(value, int):
        return "int" if value in _INT64 else "str_int"
    kinds: dict[type, str] = {str: "str", float: "float64", Decimal: "str_decimal", Pickle: "pkl"}
    return kinds.get(type(value), "pil" if hasattr(value, "tobytes") and hasattr(value, "mode") else None)


def _size(encoding: str) -> int | None:
    return 8 if encoding == "int" else DTYPES[encoding].itemsize if encoding in DTYPES else None


# --- cells --------------------------------------------------------------------------------------------------------


def _cell(encoding: str, value: Any) -> bytes:
    known = _FIXED.get(encoding)
    if known is not None:
        return known(value)
    name, _, rest = encoding.partition(":")
    dtype, _, dims = rest.partition(":")
    if name != "ndarray" or dtype not in DTYPES:
        raise ValueError("an encoding that is not known here, so only stored cells of it can be written")
    return _ndarray(dtype, tuple(map(int, dims.split(","))) if dims else None, value)


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"


def _need(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise ValueError(f"the value is {_shown(value)}")
    return value


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, Pickle):
        return value.data
    if _is_pixels(value):
        return _as_png(value)
    return bytes(_need(value, bytes, bytearray, memoryview))


def _is_pixels(value: Any) -> bool:
    """True for an array that the file of a picture was read back into, because it says that it was made of one."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (3, 4)


def _as_png(value: np.ndarray[Any, Any]) -> bytes:
    height, width, channels = value.shape
    return images.png(width, height, "RGB" if channels == 3 else "RGBA", np.ascontiguousarray(value), "ndarray")


def _int(value: Any) -> bytes:
    return struct.pack("<q", int(_need(value, int, np.integer)))


def _scalar(dtype: np.dtype[Any], value: Any) -> bytes:
    if isinstance(value, np.generic) and value.dtype.newbyteorder("<") == dtype:
        return bytes(value.astype(dtype).tobytes())  # the bits of a NaN stay what they are
    if dtype.kind == "f":
        number = float(_need(value, float, int, np.floating, np.integer))
        with np.errstate(over="ignore"):
            made = np.array(number, dtype)
        if np.isinf(made) and not math.isinf(number):
            raise ValueError(f"{number} is out of range")
        return made.tobytes()
    number = int(_need(value, int, np.integer))
    limits = np.iinfo(dtype)
    if not limits.min <= number <= limits.max:
        raise ValueError(f"{number} is out of range")
    return np.array(number, dtype).tobytes()


def _json(value: Any) -> bytes:
    _plain(value, config.NESTING)
    return json.dumps(value).encode("ascii")


def _plain(value: Any, levels: int) -> None:
    """ValueError for what json would refuse, or write as something else without a word."""
    if value is None or type(value) in (bool, int, float, str):
        return
    _need(value, list, dict)
    if type(value) not in (list, dict) or levels == 0:
        raise ValueError(f"JSON has no {type(value).__name__}, or not so deep")
    if isinstance(value, dict):
        for key in value:
            _need(key, str)
    for item in value.values() if isinstance(value, dict) else value:
        _plain(item, levels - 1)


def _pickle(value: Any) -> bytes:
    made: Pickle = _need(value, Pickle)
    return made.data


def _pil(value: Any) -> bytes:
    if isinstance(value, bytes):
        return pictures.record(value)
    if _is_pixels(value):
        return pictures.record(_as_png(value))
    if not (hasattr(value, "tobytes") and hasattr(value, "mode")):
        raise ValueError(f"the value is {_shown(value)}, and no picture")
    return pictures.pack(value.mode, value.width, value.height, value.tobytes())


def _picture(kind: str, value: Any) -> bytes:
    data = _bytes(value)
    leaf = picture_file(kind, memoryview(data), 0, len(data))
    if isinstance(leaf, Blob) and leaf.note is not None:
        raise ValueError("the file is no picture by its first bytes")
    return data


def _list_of(item: Encode, reserved: bool, value: Any) -> bytes:
    items = [item(one) for one in _need(value, list, tuple)]
    if not items and not reserved:
        raise ValueError("an empty list, which the library cannot read in this encoding")
    sizes = struct.pack(f"<{len(items) + 1}I", len(items), *map(len, items))
    return b"".join((bytes(4) if reserved else b"", sizes, *items))


def _ndarray(dtype: str | None, shape: tuple[int, ...] | None, value: Any) -> bytes:
    made = _need(value, np.ndarray)
    if made.dtype.name not in DTYPES or (dtype is not None and made.dtype.name != dtype):
        raise ValueError(f"the array is of {made.dtype}")
    if not made.ndim or not made.size:
        raise ValueError(f"the library stores no array of the shape {made.shape}")
    if shape is not None and made.shape != shape:
        raise ValueError(f"the array has the shape {made.shape}")
    head = b"" if dtype is not None else bytes((_CODES[made.dtype.name],))
    if shape is None:
        width = next(at for at in range(4) if max(made.shape) < 1 << (8 << at))
        head += bytes((made.ndim << 2 | width,)) + struct.pack(f"<{made.ndim}{'BHIQ'[width]}", *made.shape)
    return head + bytes(made.astype(made.dtype.newbyteorder("<"), copy=False).tobytes("C"))


_FIXED: dict[str, Encode] = {
    "bytes": _bytes,
    "str": lambda value: bytes(_need(value, str).encode("utf-8")),
    "int": _int,
    "str_int": lambda value: str(int(_need(value, int, np.integer))).encode("ascii"),
    "str_float": lambda value: str(float(_need(value, float, int, np.floating))).encode("ascii"),
    "str_decimal": lambda value: str(Decimal(_need(value, Decimal, int))).encode("ascii"),
    "json": _json,
    "pkl": _pickle,
    "pil": _pil,
    "jpeg": partial(_picture, "jpeg"),
    "png": partial(_picture, "png"),
    "ndarray": partial(_ndarray, None, None),
    "jpeg_array": partial(_list_of, partial(_picture, "jpeg"), False),
    "jpegarray": partial(_list_of, partial(_picture, "jpeg"), False),
    "list[pil]": partial(_list_of, _pil, True),
    "list[jpeg]": partial(_list_of, partial(_picture, "jpeg"), True),
    "list[png]": partial(_list_of, partial(_picture, "png"), True),
    **{name: partial(_scalar, dtype) for name, dtype in DTYPES.items()},
}


# --- shards -------------------------------------------------------------------------------------------------------


class RawShard:
    """A shard as it grows.

    `description` is the shard's own copy of its settings, UTF-8 JSON. Closed at the end of a `with` block.
    """

    def __init__(self, description: bytes, directory: str | None) -> None:
        self._description = description
        self._records = SpooledRecords(directory)
        self.add = self._records.add

    def __len__(self) -> int:
        return len(self._records)

    def __enter__(self) -> RawShard:
        return self

    def __exit__(self, *error: object) -> None:
        self._records.close()

    @property
    def size(self) -> int:
        """Bytes of the shard as it is."""
        return self._begin + self._records.size

    @property
    def _begin(self) -> int:
        """Where the first record begins: behind the table of positions and the description."""
        return 8 + 4 * len(self._records) + len(self._description)

    def size_with(self, length: int) -> int:
        """Bytes of the shard with one more record of that length."""
        return self.size + 4 + length

    def pieces(self) -> Iterator[bytes]:
        """The shard's raw bytes from its beginning, a megabyte at a time."""
        yield self._records.positions(self._begin) + self._description
        yield from self._records.pieces()


def description(shard: Mapping[str, Any]) -> bytes:
    """The copy that a shard has of its settings in the index."""
    columns_of = ("column_names", "column_encodings", "column_sizes")
    own = ("version", "format", "compression", "hashes", "size_limit", *columns_of)
    return json.dumps({name: shard[name] for name in own}, sort_keys=True).encode("ascii")
