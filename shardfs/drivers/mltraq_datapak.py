"""mltraq's DATAPAK: pickles of plain values in which a dict `{"DATAPAK-0": kind, "value": v}` stands for anything else.

Reads blobs as value trees, in place, and writes the ones that the library reads. Source of the format: what mltraq
0.1.165 writes and reads, found by running it. A dict of a user's that has the key `DATAPAK-0` looks the same; where it
is none of the kinds, or not as that kind is, it is shown as the dict it is. Knows nothing of databases and directories:
what a url means is told by a function.
"""

from __future__ import annotations

import ast
import io
import math
import pickle
import sys
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardfs import config, pickle_spans, values
from shardfs.errors import BadSettingError
from shardfs.pickle_spans import PickleRefusedError, Steps
from shardfs.values import Array, Blob, Buffer, Content, Tree

MAGIC = "DATAPAK-0"
DATA_STORE = "mltraq.DataStore-0"
ARCHIVE_STORE = "mltraq.ArchiveStore-0"
_ARROW = frozenset(("pandas.DataFrame-0", "pandas.Series-0", "pyarrow.Table-0"))
_ZLIB = b"C01"
_REFUSED = (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError, OverflowError, AttributeError)


class UnresolvedError(Exception):
    """A url that means no file which may be read; the text says why."""


Resolve = Callable[[str], tuple[Buffer, int, int]]
"""What a url of a DataStore or an ArchiveStore means: some bytes, and where in them its file is. UnresolvedError."""


def is_serialised(head: bytes, size: int) -> bool:
    """Whether `size` bytes that begin with `head` look like what the library serialises: nothing says which it is of a
    file that DataStoreIO wrote."""
    return head[:3] == _ZLIB or (head[:2] == b"\x80\x05" and (head[2:3] == b"\x95" or size < 16))


def plain(data: bytes, limit: int) -> bytes:
    """A blob without its compression, `limit` bytes at most. The library writes `C01` and zlib, and cannot read it.
    PickleRefusedError for what is broken, cut off or larger."""
    if data[:3] != _ZLIB:
        return data
    stream, made, fed = zlib.decompressobj(), bytearray(), memoryview(data)[3:]
    try:
        while fed and not stream.eof:
            made += stream.decompress(fed[: config.GZIP_FEED], config.COPY_SLICE)
            fed = fed[config.GZIP_FEED :]
            while stream.unconsumed_tail and not stream.eof and len(made) <= limit:
                made += stream.decompress(stream.unconsumed_tail, config.COPY_SLICE)
            if len(made) > limit:
                raise PickleRefusedError(f"over {limit >> 20} MiB come out of {len(data)} compressed bytes")
    except zlib.error as error:
        raise PickleRefusedError(f"its zlib stream is broken ({error})") from error
    if not stream.eof or stream.unused_data or fed:
        raise PickleRefusedError("its zlib stream is cut off, or something stands behind it")
    return bytes(made)


def is_compressed(head: bytes) -> bool:
    return head[:3] == _ZLIB


# --- reading ----------------------------------------------------------------------------------------------------------


def decode(raw: Buffer, start: int, end: int, resolve: Resolve, steps: Steps) -> Tree:
    """The value tree of the blob, not compressed, that fills `start` to `end` of `raw`. PickleRefusedError for what is
    none, and where the whole of it is a reference that cannot be followed."""
    value = pickle_spans.read(raw, start, end, steps)
    walk = _Walk(raw, resolve, steps)
    if type(value) is dict and value.get(MAGIC) in (DATA_STORE, ARCHIVE_STORE) and isinstance(value.get("value"), str):
        try:
            return walk.reference(value[MAGIC], value["value"], 0)
        except UnresolvedError as error:
            raise PickleRefusedError(f"{value['value'][:200]}: {error}") from error
    return walk.tree(value, 0)


def references(raw: Buffer, start: int, end: int, steps: Steps) -> list[tuple[str, str]]:
    """Kind and url of each reference in a blob, once. PickleRefusedError."""
    found: dict[tuple[str, str], None] = {}

    def walk(value: Any, depth: int) -> None:
        steps.value(value, depth)
        if type(value) is dict:
            kind, url = value.get(MAGIC), value.get("value")
            if kind in (DATA_STORE, ARCHIVE_STORE) and isinstance(url, str):
                found[kind, url] = None
            for item in value.values():
                walk(item, depth + 1)
        elif type(value) in (list, tuple):
            for item in value:
                walk(item, depth + 1)

    walk(pickle_spans.read(raw, start, end, steps), 0)
    return list(found)


def stored_npy(raw: Buffer, start: int, end: int, steps: Steps) -> Blob | None:
    """Where the `.npy` lies in a blob that is an array; None for any other."""
    try:
        value = pickle_spans.read(raw, start, end, steps)
    except PickleRefusedError:
        return None
    if type(value) is not dict or value.get(MAGIC) != "numpy.ndarray-0" or type(value.get("value")) is not Blob:
        return None
    npy: Blob = value["value"]
    return npy if type(array(raw, npy.offset, npy.length)) is not Blob else None


@dataclass(frozen=True, slots=True)
class Npy:
    """An array whose memory is not in C order: its `.npy` as stored."""

    offset: int
    length: int

    def content(self, raw: Buffer, arrays: str) -> Content:
        return Content("npy", self.length, b"", self.offset)

    def value(self, raw: Buffer) -> np.ndarray[Any, Any]:
        data = io.BytesIO(raw[self.offset : self.offset + self.length])
        array: np.ndarray[Any, Any] = np.lib.format.read_array(data, allow_pickle=False, max_header_size=self.length)
        return array


class _Walk:
    """One blob's plain values becoming a tree."""

    def __init__(self, raw: Buffer, resolve: Resolve, steps: Steps) -> None:
        self._raw = raw
        self._resolve = resolve
        self._steps = steps

    def tree(self, value: Any, depth: int) -> Tree:
        self._steps.value(value, depth)
        kind = type(value)
        if kind is list:
            return [self.tree(item, depth + 1) for item in value]
        if kind is dict:
            if MAGIC in value and len(value) == 2 and "value" in value:
                made = self._packed(value[MAGIC], value["value"], depth)
                if made is not None:
                    return made
            return {key: self.tree(item, depth + 1) for key, item in value.items()}
        if kind is tuple:
            return tuple(self.tree(item, depth + 1) for item in value)
        return value

    def _packed(self, kind: Any, value: Any, depth: int) -> Tree:
        """The value of a kind; None where it is none of the kinds, or not as they are."""
        if kind in (DATA_STORE, ARCHIVE_STORE) and type(value) is str:
            try:
                return self.reference(kind, value, depth + 1)
            except UnresolvedError:
                return None
        if kind == "mltraq.Bunch-0" and type(value) is dict and MAGIC not in value:
            return self.tree(value, depth + 1)
        if kind == "mltraq.Sequence-0" and type(value) is dict:
            return self._packed(value.get(MAGIC), value.get("value"), depth + 1) if depth < config.NESTING else None
        if kind == "numpy.datetime64-0" and type(value) is int and -(1 << 63) <= value < 1 << 63:
            return np.datetime64(value, "us")
        if kind == "uuid.UUID-0" and type(value) is str:
            try:
                return uuid.UUID(hex=value)
            except ValueError:
                return None
        if type(value) is not Blob:
            return None
        self._steps.value(value, depth)
        if kind == "numpy.ndarray-0":
            return array(self._raw, value.offset, value.length)
        if kind in _ARROW:
            return Blob(value.offset, value.length, "arrow")
        return Blob(value.offset, value.length, "tar") if kind == "mltraq.Archive-0" else None

    def reference(self, kind: str, url: str, depth: int) -> Tree:
        """What a url leads to; a file that is no blob is shown as its bytes. UnresolvedError."""
        raw, start, end = self._resolve(url)
        if kind == ARCHIVE_STORE:
            return Blob(start, end - start, "tar")
        inner = _Walk(raw, self._resolve, self._steps)
        try:
            self._steps.value(None, depth)
            return inner.tree(pickle_spans.read(raw, start, end, self._steps), depth)
        except PickleRefusedError as error:
            if self._steps.left < 0 and depth:
                raise  # nothing else can be read either
            return Blob(start, end - start, "bin", f"{url[:200]}: {error}")


def array(raw: Buffer, offset: int, length: int) -> Tree:
    """The leaf for the `.npy` of `length` bytes at `offset`; its bytes, with a note, where it is none."""
    try:
        dtype, fortran, shape, head = _npy_head(bytes(raw[offset : offset + min(length, config.NPY_HEAD)]))
        if math.prod(shape) * dtype.itemsize != length - head:
            raise ValueError(f"{length - head} bytes for an array of {dtype} and shape {str(shape)[:80]}")
        if fortran or not dtype.itemsize or dtype.subdtype is not None:
            return Npy(offset, length)
        return Array(offset + head, dtype, values.checked_shape(shape, dtype, length - head))
    except _REFUSED as error:
        return Blob(offset, length, "bin", f"numpy.ndarray: {error}"[:300])


def _npy_head(data: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...], int]:
    """Type, order and shape of a `.npy`, and the length of its head (see numpy.lib.format). ValueError and its kin."""
    if data[:6] != b"\x93NUMPY" or data[6:7] not in (b"\1", b"\2", b"\3"):
        raise ValueError("no .npy by its first bytes")
    width = 2 if data[6] == 1 else 4
    head = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if head > len(data):
        raise ValueError("the head of a .npy that is cut off")
    said = ast.literal_eval(data[8 + width : head].decode("utf-8" if data[6] == 3 else "latin-1"))
    if not isinstance(said, dict) or set(said) != {"descr", "fortran_order", "shape"}:
        raise ValueError("the head of a .npy that says something else")
    dtype = np.lib.format.descr_to_dtype(said["descr"])
    shape = said["shape"]
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    if not isinstance(shape, tuple) or len(shape) > config.NDIM or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("not the shape of an array")
    return dtype, bool(said["fortran_order"]), shape, head


# --- writing ----------------------------------------------------------------------------------------------------------


def serialise(value: Any, keep: Callable[[Any], str | None] = lambda value: None) -> bytes:
    """A blob that the library reads. `keep` is asked of each dict: the url of what it stored elsewhere, or None.

    Numbers of numpy become plain ones, a named Series loses its name (the library reads none). BadSettingError for what
    DATAPAK has no form for, with the reason.
    """
    try:
        return pickle.dumps(_encoded(value, keep, 0), protocol=5)
    except (RecursionError, pickle.PicklingError, OverflowError) as error:
        raise BadSettingError(f"this cannot be serialised: {error}") from error


def _encoded(value: Any, keep: Callable[[Any], str | None], depth: int) -> Any:
    if depth > config.NESTING:
        raise BadSettingError(f"values nested deeper than {config.NESTING} levels cannot be serialised")
    if isinstance(value, np.bool_ | np.number | np.str_ | np.bytes_):
        value = value.item()
    kind = type(value)
    if value is None or kind in (bool, float, str, bytes):
        return value
    if kind is int:
        if value.bit_length() > 255 * 8 - 1:
            raise BadSettingError("an int of more than 255 bytes cannot be serialised: the library would not read it")
        return value
    if isinstance(value, dict):
        return _encoded_dict(value, keep, depth)
    if kind in (list, tuple):
        return kind(_encoded(item, keep, depth + 1) for item in value)
    if kind is set:
        members = {_encoded_key(item) for item in value}
        return members
    return _packed(value)


def _encoded_dict(value: dict[Any, Any], keep: Callable[[Any], str | None], depth: int) -> dict[Any, Any]:
    url = keep(value)
    if url is not None:
        return {MAGIC: DATA_STORE, "value": url}
    if MAGIC in value:
        raise BadSettingError(f"a dict with the key {MAGIC} would be taken for something else")
    return {_encoded_key(key): _encoded(item, keep, depth + 1) for key, item in value.items()}


def _encoded_key(key: Any) -> Any:
    """A key of a dict or a member of a set: of plain values only."""
    if isinstance(key, np.bool_ | np.number | np.str_ | np.bytes_):
        key = key.item()
    if type(key) is tuple:
        return tuple(_encoded_key(item) for item in key)
    if key is None or type(key) in (bool, int, float, str, bytes):
        return key
    raise BadSettingError(f"a {type(key).__name__} as a key, or in a set, cannot be serialised")


def _packed(value: Any) -> dict[str, Any]:
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise BadSettingError("an array of Python objects cannot be serialised")
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return {MAGIC: "numpy.ndarray-0", "value": file.getvalue()}
    if isinstance(value, np.datetime64):
        return {MAGIC: "numpy.datetime64-0", "value": int(value.astype("M8[us]").astype(np.int64))}
    if isinstance(value, uuid.UUID):
        return {MAGIC: "uuid.UUID-0", "value": value.hex}
    kind = _arrow_kind(value)
    if kind is None:
        raise BadSettingError(f"a {type(value).__name__} cannot be serialised")
    return {MAGIC: kind, "value": _feather(value.to_frame(name=0) if kind == "pandas.Series-0" else value)}


def _arrow_kind(value: Any) -> str | None:
    """Which kind an object of pandas or pyarrow is; whoever has one has loaded the package."""
    pandas, pyarrow = sys.modules.get("pandas"), sys.modules.get("pyarrow")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        return "pandas.DataFrame-0"
    if pandas is not None and isinstance(value, pandas.Series):
        return "pandas.Series-0"
    return "pyarrow.Table-0" if pyarrow is not None and isinstance(value, pyarrow.Table) else None


def _feather(value: Any) -> bytes:
    import importlib

    feather = importlib.import_module("pyarrow.feather")
    file = io.BytesIO()
    feather.write_feather(value, file, compression="uncompressed")
    return file.getvalue()


__all__ = [
    "Npy",
    "Resolve",
    "UnresolvedError",
    "decode",
    "is_compressed",
    "is_serialised",
    "plain",
    "serialise",
]
