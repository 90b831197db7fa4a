"""Samples as records of a Squirrel shard: msgpack objects, or lines of JSON. Knows nothing of storage or compression.

Facts of the format: what squirrel-core 0.20.2 writes and reads, found by running it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgpack

from shardfs.drivers.base import Cell, NewRecord, Verbatim
from shardfs.drivers.squirrel_records import jsonl_line, msgpack_record
from shardfs.errors import BadSettingError
from shardfs.msgpack_spans import Walker
from shardfs.values import Buffer


def packed(records: Iterable[NewRecord], jsonl: bool) -> Iterator[bytes | Buffer]:
    """The bytes of each record. BadSettingError, with the sample's name, for what the format cannot hold."""
    unended: bytes | None = None
    for record in records:
        if unended is not None:
            yield unended + b"\n"  # the last line of the stored shard did without, and is the last no more
            unended = None
        if isinstance(record, Verbatim):
            if jsonl and bytes(record.data[-1:]) != b"\n":
                unended = bytes(record.data)
            else:
                yield record.data
        elif jsonl:
            _check_json(record.sample, record.name)
            yield jsonl_line(record.sample, record.name)
        else:
            yield _msgpack_with_cells(record.sample, record.name)
    if unended is not None:
        yield unended


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
