"""A shard walked from end to end, once, into the table of what it holds.

How its samples are called is decided here: by the driver, by a text of their own, or by numbers. Knows nothing of how
a table answers.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from shardfs import config, layout, names, shapes
from shardfs.drivers.base import LinksFiles, NamesSamples, Record, Shard
from shardfs.errors import DamagedShardError
from shardfs.index import RENDER, SLICE, Note, ShardTable, make_table, number_format
from shardfs.shapes import File
from shardfs.strings import GrowingStrings, Strings
from shardfs.values import Members

KEY_FIELD = "__key__"
"""A text field of this name, different in every sample of a shard, names the samples (WebDataset's convention)."""


class _Builder:
    """A table as it grows: unboxed arrays only."""

    def __init__(self, arrays: str) -> None:
        self._arrays = arrays
        self._shapes = shapes.shapes_for(arrays)
        self._file_start = array("I", [0])
        self._record_start = array("Q")
        self._record_end = array("Q")
        self._suffix = array("I")
        self._prefix = array("I")
        self._kind = array("B")
        self._offset = array("Q")
        self._length = array("Q")
        self._suffixes = GrowingStrings()
        self._prefixes = GrowingStrings()
        self._prefixes.number(b"")
        self.notes: list[Note] = []

    def add(self, record: Record, stem: bytes, shard: Shard) -> None:
        files = self._shapes.files(record.tree, shard.raw, len(stem))
        if files is None:
            files = self._laid_out(record, stem, shard)
        for suffix, prefix, rendered, offset, length in files:
            self._suffix.append(self._suffixes.number(suffix))
            self._prefix.append(self._prefixes.number(prefix) if prefix else 0)
            self._kind.append(RENDER if rendered else SLICE)
            self._offset.append(offset)
            self._length.append(length)
        self._record_start.append(record.start)
        self._record_end.append(record.end)
        self._file_start.append(len(self._suffix))

    def _laid_out(self, record: Record, stem: bytes, shard: Shard) -> list[File]:
        """The files of any sample, and its notes."""
        try:
            plans = layout.lay_out(record.tree, shard.raw, self._arrays, len(stem))
        except (RecursionError, ValueError, OverflowError) as error:
            raise DamagedShardError(f"a sample that no files can show: {error}", record.start) from error
        for plan in plans:
            note = plan.content.note
            if note is not None and len(self.notes) < config.ERRORS_KEPT:
                self.notes.append(Note(f"{stem.decode('utf-8')}.{plan.suffix}", note))
        return [shapes.file_of(plan.suffix, plan.content) for plan in plans]

    def table(self, shard: Shard, stems: Strings | None, first_sample: int, digits: int) -> ShardTable:
        columns: dict[str, np.ndarray[Any, Any]] = {
            "file_start": np.frombuffer(self._file_start, np.uint32).copy(),
            "record_start": np.frombuffer(self._record_start, np.uint64).copy(),
            "record_end": np.frombuffer(self._record_end, np.uint64).copy(),
            "suffix": np.frombuffer(self._suffix, np.uint32).copy(),
            "prefix": np.frombuffer(self._prefix, np.uint32).copy(),
            "kind": np.frombuffer(self._kind, np.uint8).copy(),
            "offset": np.frombuffer(self._offset, np.uint64).copy(),
            "length": np.frombuffer(self._length, np.uint64).copy(),
        }
        return make_table(
            linked=shard.linked if isinstance(shard, LinksFiles) else False,
            raw_bytes=shard.size,
            stems=stems,
            first_sample=first_sample,
            digits=digits,
            columns=columns,
            suffixes=self._suffixes.pack(),
            prefixes=self._prefixes.pack(),
            notes=(*self.notes, *(Note("", text) for text in getattr(shard, "notes", ()))),
        )


def build(shard: Shard, arrays: str) -> ShardTable:
    """Walk a shard from end to end and pack what it holds. All or nothing: DamagedShardError."""
    records = shard.records()
    if isinstance(shard, NamesSamples):
        return _called(shard, arrays, zip(records, shard.stems(), strict=True))
    first = next(records, None)
    if first is not None:
        records = chain((first,), records)  # each record is decoded once, which is most of the work
        if _own_name(first) is not None:
            try:
                return _called(shard, arrays, _by_own_names(records))
            except _UnnamedError:
                records = shard.records()
    digits = names.digits_for(shard.samples_through or 0)
    builder, count = _numbered(shard, arrays, digits, records)
    if shard.samples_through is None and names.digits_for(count) != digits:
        digits = names.digits_for(count)
        builder, _ = _numbered(shard, arrays, digits, shard.records())
    return builder.table(shard, None, shard.first_sample, digits)


def _numbered(shard: Shard, arrays: str, digits: int, records: Iterator[Record]) -> tuple[_Builder, int]:
    builder = _Builder(arrays)
    number = number_format(digits)
    count = 0
    for record in records:
        builder.add(record, number % (shard.first_sample + count), shard)
        count += 1
    return builder, count


def _called(shard: Shard, arrays: str, records: Iterable[tuple[Record, str]]) -> ShardTable:
    """The table of samples that are called otherwise than by numbers."""
    builder, packed = _Builder(arrays), GrowingStrings()
    for record, stem in records:
        encoded = stem.encode("utf-8")
        packed.number(encoded)
        builder.add(record, encoded, shard)
    return builder.table(shard, packed.pack(), 0, 0)


class _UnnamedError(Exception):
    """A sample has no name of its own, or another's."""


def _by_own_names(records: Iterator[Record]) -> Iterator[tuple[Record, str]]:
    """Samples with the names before the first dot of their files. Members have names that their driver keeps apart."""
    seen: set[str] = set()
    for record in records:
        own = _own_name(record)
        if own is None:
            raise _UnnamedError
        stem = names.escape_sample(own)
        if type(record.tree) is not Members:
            if names.same_name(stem) in seen:
                raise _UnnamedError
            seen.add(names.same_name(stem))
        yield record, stem


def _own_name(record: Record) -> str | None:
    if type(record.tree) is Members:
        return record.tree.key
    own = record.tree.get(KEY_FIELD) if type(record.tree) is dict else None
    return own if type(own) is str else None
