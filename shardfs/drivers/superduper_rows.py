"""Superduper's rows as records: each row's values, with references to what lies in the artifact store.

A record is a head (msgpack: the light values, and for each heavy one what it is and where) with the row's own bytes
behind it. It is made here, held in memory and read here again; nobody stores it. Knows nothing of databases.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import decimal
import json
import uuid
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from shardfs import config, values
from shardfs.drivers.linked import position
from shardfs.drivers.superduper_artifacts import BLOB, Objects, reference
from shardfs.drivers.superduper_types import UNKNOWN, ColumnType, TableInfo
from shardfs.errors import DamagedShardError
from shardfs.values import Buffer, Tree

_BYTES, _ARRAY, _LINK, _LINKED_ARRAY, _FOLDER, _BIG, _OTHER = range(1, 8)
"""Codes of msgpack's extension types in a head."""

_HEAD = 4
"""Bytes that say how long the head is."""


class Encoder:
    """Makes the records of one table. `objects` finds what rows refer to."""

    def __init__(self, table: TableInfo, objects: Objects) -> None:
        self._table = table
        self._objects = objects
        self._own = bytearray()

    def encode(self, row: dict[str, Any]) -> bytes:
        """One row as a record. DamagedShardError for a value that has no form here."""
        self._own.clear()
        columns = self._table.columns
        try:
            tree = {name: self._column(value, columns.get(name, UNKNOWN)) for name, value in row.items()}
            head = _pack(tree)
        except (RecursionError, ValueError, OverflowError, TypeError) as error:
            raise DamagedShardError(f"a row of {self._table.name} that no files can show: {error}") from error
        return b"".join((len(head).to_bytes(_HEAD, "little"), head, self._own))

    def _column(self, value: Any, kind: ColumnType) -> Any:
        if isinstance(value, str):
            return self._text(value, kind)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._bytes(bytes(value), kind)
        if kind.name == "bool" and type(value) is int and value in (0, 1):
            return bool(value)
        return self._value(value, kind, 0)

    def _text(self, text: str, kind: ColumnType) -> Any:
        if kind.light:
            return text
        found = self._referred(text, kind)
        if found is not None:
            return found
        if kind.json or _may_refer(text):
            return self._value(_parsed(text), kind, 0)
        if kind.base64:
            data = _from_base64(text)
            if data is not None:
                return self._bytes(data, kind)
        return text

    def _value(self, value: Any, kind: ColumnType, depth: int) -> Any:
        """A value inside a column, with references in it followed as deep as samples may be nested."""
        if isinstance(value, str):
            found = self._referred(value, kind)
            if found is not None:
                return found
            if depth < config.NESTING and _may_refer(value):
                inner = _parsed(value)
                return value if isinstance(inner, str) else self._value(inner, kind, depth + 1)
            return value
        if isinstance(value, dict):
            return {str(name): self._value(item, kind, depth + 1) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(item, kind, depth + 1) for item in value]
        if isinstance(value, bytes | bytearray | memoryview):
            return self._bytes(bytes(value), kind if depth == 0 else UNKNOWN)
        return value

    def _referred(self, text: str, kind: ColumnType) -> Any:
        """What a reference means; None for a text that is none, and where the store has nothing of that name."""
        found = reference(text)
        if found is None:
            return None
        if found[0] == BLOB:
            number = self._objects.blob(found[1])
            return None if number is None else self._linked(number, kind)
        folder = self._objects.folder(found[1])
        return None if folder is None else msgpack.ExtType(_FOLDER, _pack([folder.name, self._files(folder.files)]))

    def _files(self, files: tuple[tuple[str, int | None], ...]) -> list[Any]:
        sizes = self._objects.all
        return [
            [path.encode("utf-8", "surrogateescape"), number, 0 if number is None else sizes[number].size]
            for path, number in files
        ]

    def _linked(self, number: int, kind: ColumnType) -> msgpack.ExtType:
        size = self._objects.all[number].size
        array = kind.array(size)
        if array is not None:
            return msgpack.ExtType(_LINKED_ARRAY, _pack([number, size, array[0].str, list(array[1])]))
        return msgpack.ExtType(_LINK, _pack([number, size, kind.ext]))

    def _bytes(self, data: bytes, kind: ColumnType) -> msgpack.ExtType:
        """Bytes that are in the row itself."""
        at, array = len(self._own), kind.array(len(data))
        self._own += data
        if array is not None:
            return msgpack.ExtType(_ARRAY, _pack([at, array[0].str, list(array[1])]))
        ext = kind.ext
        if ext == "bin" or (ext == "png" and "pil_image" in kind.name):
            ext = values.extension_of(data[:300], len(data))
        return msgpack.ExtType(_BYTES, _pack([at, len(data), ext]))


def _may_refer(text: str) -> bool:
    """True for a text that may be JSON with a reference in it."""
    return text[:1] in ("{", "[") and "&:" in text and len(text) <= config.JSON_TEXT


def _parsed(text: str) -> Any:
    """What a JSON text says; the text itself where it is none, or too deep or too long to be shown as what it says."""
    if len(text) > config.JSON_TEXT:
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if _depth_fits(value) else text


def _depth_fits(value: Any) -> bool:
    level = [value]
    for _ in range(config.NESTING - 8):  # the sample's own levels, and those of what is parsed inside, come on top
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _pack(value: Any) -> bytes:
    packed = msgpack.packb(value, default=_other, unicode_errors="surrogatepass", strict_types=True)
    assert isinstance(packed, bytes)
    return packed


def _other(value: Any) -> msgpack.ExtType:
    """Values that msgpack has no form for."""
    if isinstance(value, int):
        return msgpack.ExtType(_BIG, str(int(value)).encode("ascii"))
    if isinstance(value, float):
        return msgpack.ExtType(_OTHER, _pack(["float", float(value)]))
    if isinstance(value, datetime.datetime):
        return msgpack.ExtType(_OTHER, _pack(["datetime", value.isoformat()]))
    if isinstance(value, datetime.date):
        return msgpack.ExtType(_OTHER, _pack(["date", value.isoformat()]))
    if isinstance(value, decimal.Decimal):
        return msgpack.ExtType(_OTHER, _pack(["decimal", str(value)]))
    if isinstance(value, uuid.UUID):
        return msgpack.ExtType(_OTHER, _pack(["uuid", str(value)]))
    return msgpack.ExtType(_OTHER, _pack(["text", str(value)]))


_MADE: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "decimal": decimal.Decimal,
    "uuid": uuid.UUID,
    "text": str,
}


def decode(record: Buffer, start: int = 0) -> Tree:
    """The value tree of a record that `Encoder` made; positions count from `start` before it."""
    length = int.from_bytes(record[:_HEAD], "little")
    base = start + _HEAD + length

    def leaf(code: int, data: bytes) -> Any:
        if code == _BIG:
            return int(data)
        body = _unpack(data)
        if code == _OTHER:
            return _MADE[body[0]](body[1])
        return _leaf(code, body, base)

    return _unpack(record[_HEAD : _HEAD + length], leaf)


def _leaf(code: int, body: list[Any], base: int) -> Any:
    """The heavy value that an extension type stands for."""
    if code == _BYTES:
        at, length, ext = body
        return values.Pickle(base + at, length) if ext == "pkl" else values.Blob(base + at, length, ext)
    if code == _ARRAY:
        at, dtype, shape = body
        return values.Array(base + at, np.dtype(dtype), tuple(shape))
    if code == _LINK:
        number, length, ext = body
        return values.Linked(position(number), length, ext)
    if code == _LINKED_ARRAY:
        number, length, dtype, shape = body
        return values.Linked(position(number), length, "npy", values.npy_header(np.dtype(dtype), tuple(shape)))
    name, files = body
    return values.Folder(
        tuple(
            (path.decode("utf-8", "surrogateescape"), 0 if number is None else position(number), size)
            for path, number, size in files
        ),
        name,
    )


def _unpack(data: bytes | Buffer, leaf: Callable[[int, bytes], Any] = msgpack.ExtType) -> Any:
    return msgpack.unpackb(
        data, ext_hook=leaf, unicode_errors="surrogatepass", strict_map_key=False, max_ext_len=1 << 31
    )
