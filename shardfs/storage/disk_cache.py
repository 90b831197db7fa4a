"""A storage whose objects are kept on this machine's disk once they were fetched. Knows nothing of what they mean.

An object is fetched whole, by one thread of one process, checked, and read from the file from then on; where the disk
does not take it, it is read from afar as without a cache. Listings, marks and all that changes something go through.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from shardfs import config
from shardfs.errors import CameDamagedError, StorageError
from shardfs.model import Version
from shardfs.storage.base import Listed, Reader, Storage
from shardfs.storage.cache_files import CacheFiles
from shardfs.storage.descriptions import About, Summed
from shardfs.storage.local_reader import LocalReader

log = logging.getLogger("shardfs")


@runtime_checkable
class Remote(Storage, Protocol):
    """A storage far away, whose versions say how large an object is."""

    @property
    def deadline(self) -> float:
        """Seconds after which an operation ends."""

    def operation(self) -> AbstractContextManager[float]:
        """What this thread does inside has one deadline together; gives its end, in time.monotonic()."""

    def health(self) -> dict[str, Any]:
        """Whether the store answers, and what was asked of it."""

    def size_of(self, version: Version) -> int:
        """Bytes of an object of that version."""

    def content_of(self, version: Version) -> str:
        """What of a version stands for the content alone, and not for when or where it was stored, as far as can be."""

    def compares(self) -> bool:
        """See Conditional."""


def default_directory() -> Path | None:
    """Where cached files lie, of all stores; None for who has no home."""
    base = config.base_directory("XDG_CACHE_HOME", "~/.cache")
    return None if base is None else base / "shardfs" / "shards"


def default_size(directory: Path) -> int:
    """Bytes that the cache may fill: a share of the disk it lies on."""
    return disk_bytes(directory) * config.CACHE_SHARE // 100


def disk_bytes(directory: str | os.PathLike[str]) -> int:
    """Bytes of the disk that a directory lies on, or will."""
    place = Path(directory).absolute()
    while not place.exists():
        place = place.parent
    status = os.statvfs(place)
    return status.f_blocks * status.f_frsize


def cached(
    inner: Remote,
    store: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int | None = None,
    min_free: int = config.CACHE_MIN_FREE,
) -> Storage:
    """`inner` with a cache in `cache_dir` (by default the one of this user), `cache_size` bytes at most (by default a
    tenth of the disk; 0: none); `min_free` bytes of the disk stay free. `store` is what it is called in the cache."""
    files = cache_files(cache_dir=cache_dir, cache_size=cache_size, min_free=min_free)
    return inner if files is None else DiskCache(inner, files, store)


def cache_files(
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    cache_size: int | None = None,
    min_free: int = config.CACHE_MIN_FREE,
) -> CacheFiles | None:
    """The directory of cached files itself, as `cached` has it; None where nothing is to be kept."""
    directory = default_directory() if cache_dir is None else Path(cache_dir)
    if cache_size == 0 or directory is None:
        return None
    return CacheFiles(directory, default_size(directory) if cache_size is None else cache_size, min_free)


class DiskCache:
    """`inner` with its objects kept in `files`; `store` is what it is called there."""

    def __init__(self, inner: Remote, files: CacheFiles, store: str) -> None:
        self.inner = inner
        self.files = files
        self.store = store

    def operation(self) -> AbstractContextManager[float]:
        return self.inner.operation()

    def health(self) -> dict[str, Any]:
        """As that of the store, and what the cache has of it."""
        files = self.files
        kept = {"hits": files.hits, "misses": files.misses, "evictions": files.evicted, "bytes": files.held()}
        return {**self.inner.health(), "cache": kept}

    def size_of(self, version: Version) -> int:
        return self.inner.size_of(version)

    def content_of(self, version: Version) -> str:
        return self.inner.content_of(version)

    @property
    def deadline(self) -> float:
        return self.inner.deadline

    def compares(self) -> bool:
        return self.inner.compares()

    @property
    def root(self) -> object:
        return self.inner.root

    def list(self, suffixes: tuple[str, ...]) -> list[Listed]:
        return self.inner.list(suffixes)

    def changed(self) -> bool:
        return self.inner.changed()

    def stat(self, name: str) -> Listed:
        return self.inner.stat(name)

    def at_hand(self, name: str, version: Version) -> bool:
        return self.files.find(self._about(name, version)) is not None

    def open(self, name: str, version: Version | None = None) -> Reader:
        """Out of the cache, where the object is fetched to first if need be. StorageError, StaleShardError."""
        with self.inner.operation() as end:
            return self._opened_until(name, version, end)

    def _opened_until(self, name: str, version: Version | None, end: float) -> Reader:
        if version is None:
            version = self.inner.stat(name).version
        about = self._about(name, version)
        reader = self._found(about, name)
        if reader is not None:
            return reader
        self.files.misses += 1
        with self.files.bringing(about, max(0.0, end - time.monotonic())) as works:
            if works:
                reader = self._found(about, name) or self._brought(about, name, version)
        return reader or self.inner.open(name, version)

    def _found(self, about: About, name: str) -> LocalReader | None:
        path = self.files.find(about)
        reader = None if path is None else _opened(path, name)
        if reader is not None:
            self.files.hits += 1
        return reader

    def _brought(self, about: About, name: str, version: Version) -> LocalReader | None:
        size = self.inner.size_of(version)

        def write(file: Summed) -> None:
            with self.inner.open(name, version) as source, memoryview(bytearray(config.CACHE_COPY)) as piece:
                while count := source.readinto(piece):
                    file.write(piece[:count])

        try:
            path = self.files.keep(about, size, write)
        except CameDamagedError as error:
            log.warning("%s; it is fetched once more", error)
            path = self.files.keep(about, size, write)
        return None if path is None else _opened(path, name)

    def has(self, name: str, version: Version) -> bool:
        """As `at_hand`, without counting that as a use."""
        return self.files.has(self._about(name, version))

    def pinned(self, name: str) -> bool:
        """Whether an object of that name stays in the cache whatever its limit. OSError."""
        return self.files.is_pinned(self.store, name, self.files.pins())

    def warm(self, name: str, version: Version) -> bool:
        """Fetch an object into the cache; False if it was there. StorageError, ENOSPC where it cannot be kept."""
        if self.at_hand(name, version):
            return False
        self.open(name, version).close()
        if not self.at_hand(name, version):
            raise StorageError(f"{name} cannot be kept in the cache", errno.ENOSPC)
        return True

    def mark(self, name: str, version: Version | None = None) -> str:
        if version is None or not self.at_hand(name, version):
            return self.inner.mark(name, version)
        made = hashlib.blake2b(digest_size=16)  # as RemoteStorage has it
        with self.open(name, version) as reader:
            while piece := reader.read(config.READ_SLICE):
                made.update(piece)
        return made.hexdigest()

    def read(self, name: str, limit: int) -> bytes:
        return self.inner.read(name, limit)

    def make_directory(self, path: str) -> None:
        self.inner.make_directory(path)

    def put(
        self,
        name: str,
        write: Callable[[BinaryIO], None],
        *,
        check: Callable[[], None] = lambda: None,
        replace: bool = True,
        temporary: str | None = None,
        marked: Callable[[str], None] | None = None,
        expected: Version | None = None,
    ) -> Listed:
        return self.inner.put(
            name, write, check=check, replace=replace, temporary=temporary, marked=marked, expected=expected
        )

    def remove_temporary(self, beside: str, temporary: str) -> None:
        self.inner.remove_temporary(beside, temporary)

    def forget_temporary(self, beside: str, temporary: str) -> None:
        self.inner.forget_temporary(beside, temporary)

    def remove_dead(self) -> None:
        self.inner.remove_dead()

    def sync(self, name: str) -> None:
        self.inner.sync(name)

    def remove(self, name: str) -> None:
        self.inner.remove(name)

    def _about(self, name: str, version: Version) -> About:
        return About(self.store, name, version, "stored")


def _opened(path: Path, name: str) -> LocalReader | None:
    """The file of a cached object; None if it was evicted just now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENOENT:
            log.warning("%s cannot be read from the cache on disk: %s", name, error.strerror)
        return None
    return LocalReader(descriptor, name, os.fstat(descriptor))
