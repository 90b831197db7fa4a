"""A shard whose samples refer to other objects of the storage: its own raw bytes, and behind them those objects' bytes.

Positions are one space. The shard's own bytes begin at 0; the objects have `SPAN` positions each, in the order in which
they were given, from `BASE` on. So an object's position does not depend on the others' sizes, and an object is opened
when something of it is read, and not before. Knows nothing of what the objects are or who refers to them.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shardfs import config
from shardfs.errors import DamagedShardError, StaleShardError, StorageError
from shardfs.model import Version
from shardfs.storage.local import LocalStorage
from shardfs.storage.local_reader import LocalReader
from shardfs.values import Buffer

BITS = 40
SPAN = 1 << BITS
"""Positions of each object: none may be larger than a TiB."""

BASE = 1 << BITS
"""Where the first one begins: the shard's own bytes lie below."""

MOST = 1 << 22
"""Objects that one shard can refer to: positions have 64 bits, of which numpy's sums need some."""


@dataclass(frozen=True, slots=True)
class Object:
    """One other object of the storage, as it was when the shard was made."""

    name: str
    size: int
    version: Version
    sha1: str | None = None
    """What the hash of its bytes must be, where that is known."""


def position(number: int) -> int:
    """Where the object of this number begins."""
    return BASE + number * SPAN


class OpenObjects:
    """Objects that are held open, `most` at a time, for all shards of a driver together: each takes a descriptor."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: OrderedDict[tuple[int, int], LocalReader] = OrderedDict()
        self._owners = itertools.count()
        self._lock = threading.Lock()

    def owner(self) -> int:
        """A number for one shard."""
        return next(self._owners)

    def get(self, owner: int, number: int) -> LocalReader | None:
        """An object that is open; counts as a use."""
        with self._lock:
            reader = self._open.get((owner, number))
            if reader is not None:
                self._open.move_to_end((owner, number))
            return reader

    def keep(self, owner: int, number: int, reader: LocalReader) -> None:
        """Hold it open, in place of what was used longest ago: that is closed when the last read through it is done."""
        with self._lock:
            self._open[owner, number] = reader
            while len(self._open) > self._most:
                self._open.popitem(last=False)

    def drop(self, owner: int, number: int) -> None:
        with self._lock:
            self._open.pop((owner, number), None)


class LinkedObjects:
    """The positions behind a shard's own bytes. Holds no memory, and descriptors only in `held`.

    An object that has gone or was changed since is StaleShardError, never other bytes: `changed` is told first. One
    that is read whole at once anyway (config.LINKED_CHECKED bytes at most) is compared with its hash, where that is
    known, when it is opened.
    """

    def __init__(
        self, storage: LocalStorage, objects: Sequence[Object], held: OpenObjects, changed: Callable[[], None]
    ) -> None:
        self._storage = storage
        self._objects = objects
        self._changed = changed
        self._held = held
        self._owner = held.owner()

    @property
    def end(self) -> int:
        """The position behind all of them; 0 where there are none."""
        return position(len(self._objects)) if self._objects else 0

    def part(self, start: int, end: int) -> Buffer | None:
        """Bytes of one object that is open, and whose bytes are in the page cache; None else, and never an error."""
        number, offset = self.number_at(start), start - BASE & SPAN - 1
        reader = self._held.get(self._owner, number)
        try:
            return None if reader is None else reader.cached_at(offset, end - start)
        except (StaleShardError, StorageError):
            return None  # `fetch` says what is wrong

    def fetch(self, start: int, end: int) -> Buffer:
        """Bytes of one object. StaleShardError, DamagedShardError, StorageError."""
        number, offset = self.number_at(start), start - BASE & SPAN - 1
        reader = self._held.get(self._owner, number)
        try:
            if reader is None:
                reader = self._opened(number)
            return memoryview(reader.read_at(offset, end - start))
        except StaleShardError:
            self._held.drop(self._owner, number)
            self._changed()
            raise

    @staticmethod
    def number_at(offset: int) -> int:
        """The number of the object that a position is in."""
        return (offset - BASE) >> BITS

    def _opened(self, number: int) -> LocalReader:
        thing = self._objects[number]
        try:
            reader = self._storage.open(thing.name, thing.version)
        except StorageError as error:
            if error.errno in config.GONE:
                raise StaleShardError(f"{thing.name} is not in {self._storage.root} any more") from error
            raise
        known = thing.sha1 if thing.size <= config.LINKED_CHECKED else None
        if known and hashlib.sha1(reader.read_at(0, thing.size), usedforsecurity=False).hexdigest() != known:
            raise DamagedShardError(f"{thing.name} in {self._storage.root} does not hold what its SHA-1 is of")
        self._held.keep(self._owner, number, reader)
        return reader
