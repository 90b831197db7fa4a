"""Raw bytes of loaded shards kept on disk, where decompressing them again costs more than reading them.

They are files of the cache on disk, beside the stored form of what is far away, and share its limit, its pins and its
checks. What is to be kept is written by a worker while its shard is held in memory; whatever does not work is left out:
the shard is decompressed again then. Knows nothing of formats: the driver says which shards, and reads them in place.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict

from shardfs import config
from shardfs.drivers.base import Driver, KeepsRaw, ShardReader
from shardfs.errors import BadSettingError, ShardfsError, StaleShardError, StorageError
from shardfs.model import Entry, Key, Version
from shardfs.storage.cache_files import CacheFiles
from shardfs.storage.descriptions import About, Summed
from shardfs.storage.local_reader import LocalReader
from shardfs.values import Buffer

log = logging.getLogger("shardfs")


class _EndedError(Exception):
    """The mount ends: what is half written is not wanted any more."""


class _Kept(LocalReader):
    """A file of the cache. What is wrong with it is said to `read_at`, behind which the shard can be loaded instead."""

    def cached_at(self, offset: int, count: int) -> memoryview | None:
        try:
            return super().cached_at(offset, count)
        except (StaleShardError, StorageError):
            return None


class RawForms:
    """The raw bytes of one store's shards in `files`, under the name `store`. Its methods may be called in any thread,
    but `admits`, `done` and `busy`, which are the event loop's. BadSettingError for another word than those of
    config.CACHE_RAW."""

    def __init__(self, driver: Driver, files: CacheFiles, store: str, when: str) -> None:
        if when not in config.CACHE_RAW:
            raise BadSettingError(f"cache_raw {when!r}: use {', '.join(config.CACHE_RAW)}")
        self._driver = driver
        self.files = files
        self._store = store
        self._always = when == "always"
        self._seen: OrderedDict[tuple[Key, Version], None] = OrderedDict()
        self._count = self._bytes = 0
        self._ended = False

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """A shard whose raw bytes are kept, read in place; None where they are not. In a worker."""
        about = self._about(entry)
        path = None if about is None else self.files.find(about)
        if path is None or not isinstance(self._driver, KeepsRaw):
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # evicted just now, or a disk that fails: loading works without it
            return None
        reader = _Kept(descriptor, f"the raw bytes of {entry.key}", os.fstat(descriptor))
        if reader.size != raw_bytes:
            reader.close()
            return None
        try:
            return self._driver.over_raw(entry, reader)
        except ShardfsError as error:
            reader.close()
            log.debug("%s is not read from its raw bytes: %s", entry.key, error)
            return None

    def has(self, entry: Entry) -> bool:
        """Whether the raw bytes of a shard are kept. In a worker."""
        about = self._about(entry)
        return about is not None and self.files.has(about)

    def admits(self, entry: Entry, size: int, budget: int) -> bool:
        """Whether a shard of `size` raw bytes that was just loaded is to be kept; it counts until `done`. Never while
        as many wait to be written as may: they stay in memory until then, which has `budget` bytes for shards."""
        identity = (entry.key, entry.version)
        again = identity in self._seen
        self._seen[identity] = None
        self._seen.move_to_end(identity)
        if len(self._seen) > config.RAW_SEEN:
            self._seen.popitem(last=False)
        if self._ended or not (again or self._always) or self._about(entry) is None:
            return False
        if not size or size * config.RAW_LIMIT_SHARE > self.files.limit:
            return False
        beside = self._count < config.RAW_WAITING and (self._bytes + size) * config.RAW_BUDGET_SHARE <= budget
        if self._count and not beside:
            return False
        self._count += 1
        self._bytes += size
        return True

    def done(self, size: int) -> None:
        """A shard that was admitted has been written, or will not be."""
        self._count -= 1
        self._bytes -= size

    @property
    def busy(self) -> bool:
        """True while something waits to be written, or is written."""
        return self._count > 0

    def keep(self, entry: Entry, raw: Buffer) -> None:
        """Write the raw bytes of a loaded shard, unless they are there, or somebody else is at it. In a worker."""
        about = self._about(entry)
        if about is None:
            return
        view = memoryview(raw)

        def write(file: Summed) -> None:
            for start in range(0, len(view), config.CACHE_COPY):
                if self._ended:
                    raise _EndedError
                file.write(view[start : start + config.CACHE_COPY])

        try:
            with self.files.bringing(about, 0.0) as works:
                if works and self.files.find(about) is None:
                    self.files.keep(about, len(view), write)
        except (_EndedError, StorageError) as error:
            log.debug("the raw bytes of %s are not kept: %s", entry.key, error)

    def drop(self, entry: Entry) -> None:
        """Forget the raw bytes of a shard: they could not be read."""
        about = self._about(entry)
        if about is not None:
            self.files.drop(about)

    def end(self) -> None:
        """Nothing is written after this."""
        self._ended = True

    def _about(self, entry: Entry) -> About | None:
        name = self._driver.raw_name(entry) if isinstance(self._driver, KeepsRaw) else None
        return None if name is None else About(self._store, name, entry.version, "raw")


def raw_forms(driver: Driver, store: str, files: CacheFiles | None, when: str | None, far: bool) -> RawForms | None:
    """What keeps raw bytes of a store (`store` is its identity) in `files`; None where nothing does. BadSettingError.

    `when` is one of config.CACHE_RAW; None: what is far away `again`, as it is kept on disk anyhow, and what is here
    not at all, as reading fills nobody's disk unasked.
    """
    chosen = when or ("again" if far else "off")
    if chosen == "off" or files is None or not isinstance(driver, KeepsRaw):
        return None
    return RawForms(driver, files, store, chosen)


__all__ = ["RawForms", "raw_forms"]
