"""Tables as bytes, for keeping, and back. Whatever made the bytes, what comes back is a table that a shard can have.

Knows nothing of where they are kept.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from shardfs.index import SLICE, Note, ShardTable, make_table
from shardfs.strings import Strings

_RENDERED = 64
"""A rendered file is at most this many times as large as its shard: JSON escapes a byte with six, and has tags."""

_RISING = ("file_start", "record_start", "record_end", "offset")
"""Columns kept as differences: those compress to a tenth."""

_DTYPES = {
    "file_start": np.uint32,
    "record_start": np.uint64,
    "record_end": np.uint64,
    "suffix": np.uint32,
    "prefix": np.uint32,
    "kind": np.uint8,
    "offset": np.uint64,
    "length": np.uint64,
}


def pack(table: ShardTable) -> bytes:
    """A table as bytes, for keeping. `unpack` gives it back."""
    columns = {}
    for name, dtype in _DTYPES.items():
        column = table.columns[name]
        columns[name] = (np.diff(column, prepend=np.zeros(1, dtype)) if name in _RISING else column).tobytes()
    strings = {
        name: None if value is None else [value.data, np.diff(value.starts).astype(np.uint32).tobytes()]
        for name, value in (("stems", table.stems), ("suffixes", table.suffixes), ("prefixes", table.prefixes))
    }
    head = {
        "raw_bytes": table.raw_bytes,
        "first_sample": table.first_sample,
        "digits": table.digits,
        "linked": not table.flat,
        "notes": [[note.file, note.reason] for note in table.notes],
    }
    packed = msgpack.packb([head, strings, columns])
    assert isinstance(packed, bytes)
    return packed


def unpack(data: bytes) -> ShardTable:
    """The table that `pack` made this of. ValueError for what it never makes, as far as reading would go astray."""
    head, strings, packed = msgpack.unpackb(data, max_bin_len=len(data))
    columns: dict[str, np.ndarray[Any, Any]] = {}
    for name, dtype in _DTYPES.items():
        column = np.frombuffer(packed[name], dtype)
        columns[name] = np.cumsum(column, dtype=dtype) if name in _RISING else column
    files, samples = len(columns["suffix"]), len(columns["record_start"])
    lengths = {len(columns[name]) for name in ("prefix", "kind", "offset", "length")}
    if lengths != {files} or len(columns["record_end"]) != samples or len(columns["file_start"]) != samples + 1:
        raise ValueError("columns of different lengths")
    _check_positions(columns, head["raw_bytes"], files, samples)
    unpacked = {name: None if value is None else _strings(*value) for name, value in strings.items()}
    suffixes, prefixes = unpacked["suffixes"], unpacked["prefixes"]
    if suffixes is None or prefixes is None or int(columns["file_start"][-1]) != files:
        raise ValueError("parts are missing")
    if files and (int(columns["suffix"].max()) >= len(suffixes) or int(columns["prefix"].max()) >= len(prefixes)):
        raise ValueError("names are missing")
    return make_table(
        linked=bool(head.get("linked")),
        raw_bytes=head["raw_bytes"],
        stems=unpacked["stems"],
        first_sample=head["first_sample"],
        digits=head["digits"],
        columns=columns,
        suffixes=suffixes,
        prefixes=prefixes,
        notes=tuple(Note(file, reason) for file, reason in head["notes"]),
    )


def _check_positions(columns: dict[str, np.ndarray[Any, Any]], raw_bytes: int, files: int, samples: int) -> None:
    """ValueError for positions outside the shard, and for sizes that it cannot come to."""
    starts, ends = columns["record_start"], columns["record_end"]
    if type(raw_bytes) is not int or raw_bytes < 0:
        raise ValueError("an impossible size of a shard")
    if samples and (bool((starts > ends).any()) or int(ends.max()) > raw_bytes):
        raise ValueError("records outside the shard")
    if bool((np.diff(columns["file_start"].astype(np.int64)) < 0).any()):
        raise ValueError("samples out of order")
    slices = columns["kind"] == SLICE
    offset, length = columns["offset"][slices], columns["length"][slices]
    if len(length) and (int(length.max()) > raw_bytes or int((offset + length).max()) > raw_bytes):
        raise ValueError("files outside the shard")
    rendered = columns["length"][~slices]
    if len(rendered) and int(rendered.max()) > _RENDERED * raw_bytes + (1 << 20):
        raise ValueError("a rendered file larger than its shard can make it")


def _strings(data: bytes, lengths: bytes) -> Strings:
    starts = np.concatenate(([np.uint64(0)], np.cumsum(np.frombuffer(lengths, np.uint32), dtype=np.uint64)))
    if int(starts[-1]) != len(data):
        raise ValueError("strings of another length")
    return Strings(data, starts)
