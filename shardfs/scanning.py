"""Tables and light fields of shards without a mount: out of the index, else by loading, one shard at a time.

Knows nothing of what they are for. Not thread-safe.
"""

from __future__ import annotations

from shardfs import light_reading, table_building
from shardfs.drivers.base import Driver
from shardfs.errors import DamagedShardError
from shardfs.index import ShardTable
from shardfs.index_db import IndexDb
from shardfs.light_columns import LightColumns
from shardfs.model import Entry
from shardfs.narrowing import Narrowing, narrowed


class Scan:
    """The shards of one store, or the samples of them that are shown. Errors as `Driver.load`."""

    def __init__(self, driver: Driver, database: IndexDb | None, arrays: str, narrowing: Narrowing | None) -> None:
        self._driver = driver
        self._database = database
        self._arrays = arrays
        self._narrowing = narrowing
        self._last: tuple[Entry, ShardTable, LightColumns] | None = None

    def table(self, entry: Entry) -> ShardTable:
        """What of a shard is shown."""
        whole = None if self._database is None else self._database.get(entry, lambda: self._driver.mark(entry))
        if whole is not None and self._narrowing is None:
            return whole
        table = whole if whole is not None else self._loaded(entry)[0]
        if self._narrowing is None:
            return table
        return narrowed(table, self._narrowing.shown(entry, self._whole_light(entry)))

    def light(self, entry: Entry) -> LightColumns:
        """The light fields of the samples that are shown."""
        columns = self._whole_light(entry)
        return columns if self._narrowing is None else self._narrowing.columns(entry, columns)

    def _whole_light(self, entry: Entry) -> LightColumns:
        columns = None if self._database is None else self._database.get_light(entry)
        return columns if columns is not None else self._loaded(entry)[1]

    def _loaded(self, entry: Entry) -> tuple[ShardTable, LightColumns]:
        if self._last is None or self._last[0] != entry:
            try:
                shard = self._driver.load(entry, lambda _: None)
                table = table_building.build(shard, self._arrays)
                columns = light_reading.of_reader(table, shard, self._arrays)
            except DamagedShardError as error:
                error.key = error.key or entry.key
                raise
            if self._database is not None:
                self._database.put(entry, table, "")
                self._database.put_light(entry, columns)
            self._last = (entry, table, columns)
        return self._last[1:]
