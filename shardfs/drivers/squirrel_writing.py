"""Samples as records of a Squirrel shard: msgpack objects, or lines of JSON. Knows nothing of storage or compression.

Facts of the format: what squirrel-core 0.20.2 writes and reads, found by running it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgpack
import numpy as np

from shardfs import config
from shardfs.drivers.base import Cell, NewRecord, Verbatim
from shardfs.drivers.squirrel_records import jsonl_line, line_cost, msgpack_record, parse_line
from shardfs.errors import BadSettingError, DamagedShardError
from shardfs.msgpack_spans import Walker
from shardfs.values import Buffer

Encoded = tuple[bytes | Buffer, int]
"""The bytes of a record, and how many values it counts as at most when it is read (config.py says of what)."""

_LIGHT = frozenset((type(None), bool, int, float, str))
_FLAT = _LIGHT | {bytes}
_TEXTS = frozenset((str,))
_ARRAY = 64
"""More values than an array counts as, besides its dimensions."""


def packed(records: Iterable[NewRecord], jsonl: bool) -> Iterator[bytes | Buffer]:
    """The bytes of each record. BadSettingError, with the sample's name, for what the format cannot hold."""
    return (data for data, _ in encoded(records, jsonl))


def encoded(records: Iterable[NewRecord], jsonl: bool, strict: bool = True) -> Iterator[Encoded]:
    """All records as they are written. BadSettingError, with the sample's name, for what the format cannot hold, and
    for what would be refused when it is read.

    `strict`: also for what JSON would write as something else. Verbatim records have been read before, and are not
    looked into.
    """
    encode = _line if jsonl else _object
    unended: bytes | None = None
    for record in records:
        if unended is not None:
            yield unended + b"\n", line_cost(len(unended) + 1)  # it was the last line, and is the last no more
            unended = None
        if not isinstance(record, Verbatim):
            yield encode(record.sample, record.name, strict)
        elif not jsonl:
            yield record.data, config.TOKENS_PER_RAW_BYTE * len(record.data)
        elif bytes(record.data[-1:]) == b"\n":
            yield record.data, line_cost(len(record.data))
        else:
            unended = bytes(record.data)
    if unended is not None:
        yield unended, line_cost(len(unended))


def _object(sample: Any, name: str, strict: bool) -> Encoded:
    data = _msgpack_with_cells(sample, name)
    most = _most_values(sample)
    if most is not None:
        return data, most + len(data) // config.TEXT_PER_TOKEN
    walker = Walker(memoryview(data), 1 << 62)
    try:
        walker.read(0)
    except DamagedShardError as error:
        raise BadSettingError(f"sample {name} could not be read again: {error.reason}") from error
    return data, (1 << 62) - walker.left


def _most_values(sample: Any) -> int | None:
    """What a sample counts as at most, besides its texts' lengths, where it is a map of texts to plain values, bytes
    and arrays of numbers: that can be read again whatever it holds. None for any other."""
    if type(sample) is not dict or not _TEXTS.issuperset(map(type, sample)):
        return None
    most = config.SAMPLE_TOKENS + 1 + len(sample) * (2 + config.FILE_TOKENS)
    if not _FLAT.issuperset(map(type, sample.values())):
        for value in sample.values():
            if type(value) not in _FLAT:
                if not (type(value) is np.ndarray or isinstance(value, np.generic)) or value.dtype.kind not in "biufc":
                    return None
                most += _ARRAY + value.ndim
    return most


def _line(sample: Any, name: str, strict: bool) -> Encoded:
    data: bytes
    if _is_json(sample, config.NESTING):
        data = jsonl_line(sample, name)
        return data, line_cost(len(data))
    if strict:
        _check_json(sample, name)
    data = jsonl_line(sample, name)
    try:
        parse_line(data, 0)
    except DamagedShardError as error:
        raise BadSettingError(f"sample {name} could not be read again: {error.reason}") from error
    return data, line_cost(len(data))


def _is_json(value: Any, levels: int) -> bool:
    """True for what is JSON as it stands, nested in no more levels than so many: it can be read again."""
    kind = type(value)
    if kind in _LIGHT:
        return True
    if kind is dict:
        if not _TEXTS.issuperset(map(type, value)):
            return False
        value = value.values()
    elif kind is not list and kind is not tuple:
        return False
    return levels > 0 and (_LIGHT.issuperset(map(type, value)) or all(_is_json(item, levels - 1) for item in value))


def _msgpack_with_cells(sample: Any, name: str) -> bytes:
    if type(sample) is not dict or not any(type(value) is Cell for value in sample.values()):
        return msgpack_record(sample, name)
    made = [msgpack.Packer().pack_map_header(len(sample))]
    for key, value in sample.items():
        made += [msgpack_record(key, name), value.data if type(value) is Cell else msgpack_record(value, name)]
    return b"".join(made)


def cells(record: Buffer, limit: int) -> Mapping[Any, Buffer] | None:
    """The bytes of each field's value in a msgpack record that is a plain map; None for any other."""
    code = record[0]
    if 0x80 <= code < 0x90:
        count, at = code & 0x0F, 1
    elif code in (0xDE, 0xDF):
        at = 3 if code == 0xDE else 5
        count = int.from_bytes(record[1:at], "big")
    else:
        return None
    walker = Walker(record, limit)
    found: dict[Any, Buffer] = {}
    for _ in range(count):
        key, at = walker.read(at)
        behind = walker.read(at)[1]
        found[_key(key, record)] = record[at:behind]
        at = behind
    return found


def _key(key: Any, record: Buffer) -> Any:
    """The name of a field as a tree has it."""
    if type(key) is list:
        return tuple(_key(item, record) for item in key)
    return key.value(record) if hasattr(key, "content") else key


def _check_json(value: Any, name: str) -> None:
    """BadSettingError for what json would write as something else without a word."""
    if isinstance(value, msgpack.ExtType | msgpack.Timestamp):
        raise BadSettingError(f"sample {name} cannot be written as JSON: a value of type {type(value).__name__}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise BadSettingError(f"sample {name} cannot be written as JSON: the field {key!r} is named by no text")
            _check_json(item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_json(item, name)
