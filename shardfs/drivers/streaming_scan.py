"""Which shards a data set of MosaicML Streaming has, by the index files that it has now.

Reads an index again when it is another than it was, goes on with what was good while one is being written, and knows
where shards lay that were replaced meanwhile, for who has begun to read them. What an index says is the business of
streaming_index.py. Knows nothing of what is inside shards, nor of writing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shardfs import config
from shardfs.drivers import streaming_order
from shardfs.drivers.streaming_files import ShardFiles, identity_of, listing
from shardfs.drivers.streaming_index import BadIndexError, Place, by_key, parse_index
from shardfs.drivers.streaming_names import INDEX, splits
from shardfs.errors import BadStoreError, MissingKeyError, StaleShardError, StorageError
from shardfs.model import Entry, Key
from shardfs.storage.base import Listed, Storage
from shardfs.storage.local import LocalStorage


@dataclass(frozen=True, slots=True)
class Scan:
    """All shards of a data set, by key, and the index files they come from."""

    places: dict[Key, Place]
    indexes: dict[str, Listed]
    splits: dict[str, list[Place]]
    """What each good index says, by the index's name."""


class Scanner:
    """Scans of one data set, the last of which is kept. Thread-safe: a scan is never changed, only replaced."""

    def __init__(self, storage: Storage, files: ShardFiles) -> None:
        self._storage = storage
        self._local = isinstance(storage, LocalStorage)
        self._files = files
        self._before: Mapping[str, Place] = {}
        self.last: Scan | None = None
        self.problems: list[str] = []
        """What is not shown and why; the same list for good."""

    def fresh(self, key: Key) -> Scan:
        """A scan that has the key, by an index that has not changed since it was read. MissingKeyError."""
        scan = self.last
        if scan is not None and key in scan.places:
            index = scan.places[key].split + INDEX
            now = self._files.stat(index)
            if now == scan.indexes[index]:
                return scan
            if now is not None and not self._local:  # a listing of all would be many requests
                scan = self.rescan({**scan.indexes, index: now})
                if key in scan.places:
                    return scan
        if self.last is not None or splits(self._storage):
            scan = self.rescan({listed.name: listed for listed in listing(self._storage, INDEX)})
            if key in scan.places:
                return scan
        raise MissingKeyError(f"no key {key!r} in {self._storage.root}")

    def rescan(self, files: dict[str, Listed]) -> Scan:
        """Read the indexes among `files` again, unless all are those of the last scan."""
        indexes = [files[name] for name in sorted(files) if name.rpartition("/")[2] == INDEX]
        by_name = {listed.name: listed for listed in indexes}
        scan = self.last
        if scan is not None and scan.indexes == by_name:
            return scan
        problems: list[str] = []
        found: dict[str, list[Place]] = {}
        for listed in sorted(indexes, key=lambda listed: listed.name.removesuffix(INDEX)):
            try:
                data = self._storage.read(listed.name, config.STREAMING_INDEX)
                found[listed.name] = parse_index(data, listed.name.removesuffix(INDEX))
            except (BadIndexError, StorageError) as error:
                problems.append(f"{listed.name}: {error}")
                if scan is not None and listed.name in scan.splits:
                    # it was good before: somebody is writing it, and its keys are not gone for that
                    found[listed.name] = scan.splits[listed.name]
        if not found:
            raise BadStoreError("; ".join(problems) or f"no {INDEX} in {self._storage.root} or below it")
        before, scan = scan, Scan(by_key(list(found.values())), by_name, found)
        if before is not None:
            self._before = streaming_order.replaced(self._before, before.places, scan.places)
        self.problems[:] = problems + self._files.doubts(list(scan.places.values()))
        self.last = scan
        return scan

    def where(self, entry: Entry) -> Place:
        """Where the version lies that an entry speaks of: as the index has it or, for who has begun to read, had it
        before. MissingKeyError, StaleShardError."""
        identity, before, scan = identity_of(entry.version), self._before, self.last
        if not self._local and scan is not None:  # a request would tell what the file's own version tells, too
            known = scan.places.get(entry.key)
            if known is not None and known.identity == identity:
                return known
            if identity in before:
                return before[identity]
        try:
            place = self.fresh(entry.key).places[entry.key]
        except MissingKeyError:
            if identity not in before:
                raise
            return before[identity]
        if place.identity != identity and identity not in before:
            raise StaleShardError(f"the index says something else of {entry.key} since it was listed")
        return place if place.identity == identity else before[identity]

    def keep(self, place: Place) -> None:
        """Where a version lies that no index has named since it was written."""
        self._before = {**self._before, place.identity: place}

    def all(self) -> Scan:
        """A scan of all indexes as they are now."""
        files = listing(self._storage, INDEX)
        listed = {listed.name: listed for listed in files if listed.name.rpartition("/")[2] == INDEX}
        return self.rescan(listed) if listed or self.last is not None else Scan({}, {}, {})

    def places(self, key: Key) -> tuple[Place, list[Place]]:
        """Where a key is, in the index that is shown and in others that have it. MissingKeyError, NotWritableError."""
        # all of them again: an index that has come since may have the shard too
        scan = self.all()
        if key not in scan.places:
            raise MissingKeyError(f"no key {key!r} in {self._storage.root}")
        place = scan.places[key]
        return place, streaming_order.twins(scan.splits, place)

    def named(self) -> set[str]:
        """All files that indexes name now. A BadStoreError says that none is good, unless there is none."""
        indexes = {listed.name: listed for listed in listing(self._storage, INDEX)}
        if not any(name.rpartition("/")[2] == INDEX for name in indexes):
            return set()
        places = [place for split in self.rescan(indexes).splits.values() for place in split]
        return {info.name for place in places for pair in place.pairs for info in pair if info is not None}
