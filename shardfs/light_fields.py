"""The light fields of a store's samples, shard by shard: out of memory, else out of the persistent index, else made
from the shard and put into the index.

Plain, synchronous and thread-safe; in a mount called in workers, never on the event loop. Knows nothing of how shards
are loaded, nor of what the values are for.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from shardfs import config
from shardfs.errors import ShardfsError
from shardfs.index_db import IndexDb
from shardfs.light_columns import MISSING, OMITTED, JsonText, Light, LightColumns
from shardfs.model import Entry, Key, Version

__all__ = ["MISSING", "OMITTED", "Building", "JsonText", "Light", "LightColumns", "LightFields"]

log = logging.getLogger("shardfs")

Identity = tuple[Key, Version]


@dataclass(slots=True, eq=False)
class Building:
    """Something that goes through the light fields of many shards, for `status`."""

    what: str
    """`the view by:label`."""
    of: int
    """Shards."""
    done: int = 0


class LightFields:
    """The light fields of one store.

    `entry_of` says what a key is now (MissingKeyError), `make` makes the light fields of a shard from the shard itself,
    with the errors of `Driver.load`. `kept` is what of the fields in the index is shown: it is given all the samples of
    a shard, and what `make` makes is of those that are shown.
    """

    def __init__(
        self,
        entry_of: Callable[[str], Entry],
        make: Callable[[Entry], LightColumns],
        database: IndexDb | None,
        *,
        kept: Callable[[Entry, LightColumns], LightColumns] | None = None,
        budget: int = config.LIGHT_HELD,
    ) -> None:
        self._entry_of = entry_of
        self._make = make
        self._database = database
        self._kept = kept
        self._budget = budget
        self._lock = threading.Lock()
        self._held: OrderedDict[Identity, LightColumns] = OrderedDict()
        self._bytes = 0
        self._making: dict[Identity, Future[LightColumns]] = {}
        self._places = threading.BoundedSemaphore(config.LIGHT_MADE)
        self._buildings: list[Building] = []
        self.indexed = 0
        """Shards whose fields came out of the index so far."""
        self.made = 0
        """Shards that were read for them."""

    def values(self, key: str | Entry, fields: tuple[str, ...]) -> list[tuple[Light, ...]]:
        """The values of these fields, a tuple for each sample that is shown of a key, in order. MISSING where a sample
        has no such field, OMITTED where its value is too large to be kept here. Errors as `columns`."""
        return self.columns(key).rows(fields)

    def columns(self, key: str | Entry) -> LightColumns:
        """All light fields of a key, of the version that it has now; of that of an entry where one is given.

        Made once however many wait. Takes as long as reading a shard. MissingKeyError, and the errors of `Driver.load`.
        """
        entry = key if isinstance(key, Entry) else self._entry_of(key)
        identity = (entry.key, entry.version)
        with self._lock:
            held = self._held.get(identity)
            if held is not None:
                self._held.move_to_end(identity)
                return held
            making = self._making.get(identity)
            mine = making is None
            if making is None:
                making = self._making[identity] = Future()
        if not mine:
            return making.result()
        try:
            columns = self._found(entry)
        except BaseException as error:
            with self._lock:
                del self._making[identity]
            making.set_exception(error)
            raise
        with self._lock:
            del self._making[identity]
            self._hold(identity, columns)
        making.set_result(columns)
        return columns

    def _found(self, entry: Entry) -> LightColumns:
        columns = None if self._database is None else self._database.get_light(entry)
        if columns is not None:
            self.indexed += 1
            return columns if self._kept is None else self._kept(entry, columns)
        with self._places:  # each may hold a shard
            columns = self._make(entry)
        self.made += 1
        if self._database is not None and self._kept is None:
            try:
                self._database.put_light(entry, columns)
            except (ShardfsError, OSError) as error:
                log.debug("light fields of %s were not put into the index: %s", entry.key, error)
        return columns

    def _hold(self, identity: Identity, columns: LightColumns) -> None:
        """With the lock held."""
        self._held[identity] = columns
        self._bytes += columns.nbytes
        while self._bytes > self._budget and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= oldest.nbytes

    @property
    def used(self) -> int:
        """Bytes of memory held."""
        return self._bytes

    # --- progress -------------------------------------------------------------------------------------------------

    def begin(self, what: str, of: int) -> Building:
        """Something begins that goes through `of` shards: it counts them in `done`, until it says `end`."""
        building = Building(what, of)
        with self._lock:
            self._buildings.append(building)
        return building

    def end(self, building: Building) -> None:
        with self._lock:
            self._buildings.remove(building)

    def buildings(self) -> list[Building]:
        """What is under way, for `status`."""
        with self._lock:
            return list(self._buildings)
