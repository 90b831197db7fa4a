"""Which samples of a key are shown, and a shard's table with just these: names and sizes as they are in the whole one,
so that whoever works on tables knows nothing of filters.

Plain and thread-safe. Knows nothing of how an expression is evaluated, nor of mounts.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from shardfs import config, light_reading
from shardfs.drivers.base import ShardReader
from shardfs.errors import ShardfsError
from shardfs.index import ShardTable, make_table
from shardfs.index_db import IndexDb
from shardfs.light_columns import LightColumns, Numbers
from shardfs.light_where import Where, meant
from shardfs.model import Entry, Key, Version
from shardfs.strings import Strings

log = logging.getLogger("shardfs")

Identity = tuple[Key, Version]


class Narrowing:
    """A filter over the samples of one store. `arrays` is how they are shown."""

    def __init__(
        self, where: Where, arrays: str, database: IndexDb | None, warn: Callable[[str], None] = log.warning
    ) -> None:
        """`warn` is told of fields that there seem not to be."""
        self._warn = warn
        self.where = where
        self._arrays = arrays
        self._database = database
        self._lock = threading.Lock()
        self._masks: OrderedDict[Identity, tuple[int, bytes]] = OrderedDict()
        self._bytes = 0
        self._known: set[str] = set()
        self._told: set[str] = set()

    def of_index(self, entry: Entry, table: ShardTable, mark: Callable[[], str]) -> ShardTable | None:
        """A shard's table with the samples that are shown, as far as the index tells which these are. In a worker.
        StorageError as `Where.matches`."""
        shown = self._remembered(entry)
        if shown is None:
            columns = None if self._database is None else self._database.get_light(entry, mark)
            if columns is None or columns.samples != table.samples:
                return None
            shown = self._evaluated(entry, columns)
        return narrowed(table, shown)

    def of_shard(self, entry: Entry, table: ShardTable, reader: ShardReader) -> ShardTable:
        """The same out of the shard itself, whose light fields go into the index then. In a worker. DamagedShardError,
        StorageError, and the errors of `fetch`."""
        shown = self._remembered(entry)
        if shown is None:
            columns = light_reading.of_reader(table, reader, self._arrays)
            shown = self._evaluated(entry, columns)
            if self._database is not None:
                try:
                    self._database.put_light(entry, columns)
                except (ShardfsError, OSError) as error:
                    log.debug("light fields of %s were not put into the index: %s", entry.key, error)
        return narrowed(table, shown)

    def columns(self, entry: Entry, columns: LightColumns) -> LightColumns:
        """The light fields of the samples that are shown, of those of all. StorageError as `Where.matches`."""
        return columns.taken(np.flatnonzero(self.shown(entry, columns)))

    def shown(self, entry: Entry, columns: LightColumns) -> Numbers:
        """For each sample of a shard with these light fields whether it is shown. StorageError as `Where.matches`."""
        shown = self._remembered(entry)
        return self._evaluated(entry, columns) if shown is None or len(shown) != columns.samples else shown

    def _remembered(self, entry: Entry) -> Numbers | None:
        with self._lock:
            found = self._masks.get((entry.key, entry.version))
            if found is None:
                return None
            self._masks.move_to_end((entry.key, entry.version))
        count, packed = found
        return np.unpackbits(np.frombuffer(packed, np.uint8), count=count).astype(bool)

    def _evaluated(self, entry: Entry, columns: LightColumns) -> Numbers:
        shown = self.where.matches(columns)
        packed = np.packbits(shown).tobytes()
        identity = (entry.key, entry.version)
        with self._lock:
            if identity not in self._masks:
                self._bytes += len(packed) + _MASK
            self._masks[identity] = (len(shown), packed)
            while self._bytes > config.WHERE_MASKS and len(self._masks) > 1:
                _, (_, oldest) = self._masks.popitem(last=False)
                self._bytes -= len(oldest) + _MASK
            self._hint(entry, columns)
        return shown

    def _hint(self, entry: Entry, columns: LightColumns) -> None:
        """Say once of a field that the first shard looked at knows nothing of it: it may be a slip of the pen."""
        for field in self.where.fields:
            if field in self._known or field in self._told or not columns.samples:
                continue
            if meant(field, columns.names) in columns.names:
                self._known.add(field)
            else:
                self._told.add(field)
                text = f"--where: no sample of {entry.key} has the light field {field!r}"
                self._warn(text + nearest(field, columns))


_MASK = 300
"""Bytes of memory that a mask takes besides its bits."""


def nearest(field: str, columns: LightColumns) -> str:
    """What may have been meant by a field that is not there, for a message."""
    import difflib

    near = difflib.get_close_matches(field, columns.names, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(map(repr, columns.names[:20])) or 'none'}"


def narrowed(table: ShardTable, shown: Numbers) -> ShardTable:
    """A table with just the samples that are shown, under the names that they have; the same one where all are."""
    if bool(shown.all()):
        return table
    samples = np.flatnonzero(shown)
    columns = table.columns
    counts = np.diff(columns["file_start"].astype(np.int64))
    files = np.repeat(shown, counts)
    starts = np.zeros(len(samples) + 1, np.uint32)
    np.cumsum(counts[samples], out=starts[1:])
    made: dict[str, np.ndarray[Any, Any]] = {"file_start": starts}
    for name in ("record_start", "record_end"):
        made[name] = columns[name][samples]
    for name in ("suffix", "prefix", "kind", "offset", "length"):
        made[name] = columns[name][files]
    stems = [table.stem(sample) for sample in samples.tolist()]
    ends = np.zeros(len(stems) + 1, np.uint64)
    np.cumsum([len(stem) for stem in stems], out=ends[1:])
    return make_table(
        linked=not table.flat,
        raw_bytes=table.raw_bytes,
        stems=Strings(b"".join(stems), ends),
        first_sample=0,
        digits=0,
        columns=made,
        suffixes=table.suffixes,
        prefixes=table.prefixes,
        notes=table.notes,
    )
