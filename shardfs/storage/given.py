"""Objects of a server that lists nothing: the names are given, and each is looked at (HEAD) for its size and version.

Knows nothing of how the names came to be known, nor of how anything is read.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from shardfs import config
from shardfs.errors import BadStoreError, StorageError
from shardfs.storage.base import Listed

_TOLD = 5
_ABSENT = (errno.ENOENT, errno.ENOTDIR)


class Looks(Protocol):
    """What can be asked about one object."""

    @property
    def root(self) -> object: ...

    def stat(self, name: str) -> Listed: ...

    def read(self, name: str, limit: int) -> bytes: ...


def looked_at(storage: Looks, names: Iterable[str]) -> list[Listed | None]:
    """What the server says of each name; None where there is no such object. As many at once as a store takes."""

    def look(name: str) -> Listed | None:
        try:
            return storage.stat(name)
        except StorageError as error:
            if error.errno not in _ABSENT:
                raise
            return None

    with ThreadPoolExecutor(config.REMOTE_REQUESTS, "look") as pool:
        return list(pool.map(look, names))


class GivenNames:
    """Just these objects, all of which must be there: BadStoreError says which are not."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)

    def __call__(self, storage: Looks, suffixes: tuple[str, ...]) -> list[Listed]:
        names = [name for name in self._names if name.endswith(suffixes)]
        found = looked_at(storage, names)
        missing = [name for name, listed in zip(names, found, strict=True) if listed is None]
        if missing:
            told = f"{', '.join(missing[:_TOLD])}{', ...' if len(missing) > _TOLD else ''}"
            raise BadStoreError(f"{storage.root}: not there: {told} ({len(missing)} of {len(names)})")
        return sorted((listed for listed in found if listed is not None), key=lambda listed: listed.name)


Named = Callable[[bytes, str], list[tuple[str, ...]]]
"""Given an index and its directory: the names of each file that it speaks of, of which the first that is there is
wanted. ValueError for what is no index."""


class IndexedNames:
    """Indexes among `indexes` (all of them must be there if `required`, else one), and the objects that these name."""

    def __init__(self, indexes: Sequence[str], named: Named, limit: int, *, required: bool) -> None:
        self._indexes = list(indexes)
        self._named = named
        self._limit = limit
        self._required = required

    def __call__(self, storage: Looks, suffixes: tuple[str, ...]) -> list[Listed]:
        looked = looked_at(storage, self._indexes)
        found = [listed for listed in looked if listed is not None]
        if not found or (self._required and len(found) < len(self._indexes)):
            missing = [name for name, listed in zip(self._indexes, looked, strict=True) if listed is None]
            raise BadStoreError(f"{storage.root}: not there: {', '.join(missing)}")
        if suffixes != (self._indexes[0].rpartition("/")[2],):  # else nothing but indexes is wanted
            found += self._shards(storage, found)
        return sorted((listed for listed in found if listed.name.endswith(suffixes)), key=lambda listed: listed.name)

    def _shards(self, storage: Looks, indexes: list[Listed]) -> list[Listed]:
        wanted: list[tuple[str, ...]] = []
        for index in indexes:
            try:
                wanted += self._named(storage.read(index.name, self._limit), index.name.rpartition("/")[0])
            except (ValueError, StorageError):
                continue  # who reads the index says what is wrong with it
        found: list[Listed] = []
        while wanted:
            looked = looked_at(storage, [names[0] for names in wanted])
            found += (listed for listed in looked if listed is not None)
            wanted = [names[1:] for names, listed in zip(wanted, looked, strict=True) if listed is None and names[1:]]
        return found
