"""`shardfs find`: what of a store's tree fits some conditions, without a mount. Reads only shards in which a file may.

Paths, sizes and times are those that a mount shows. Knows nothing of what is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from shardfs import table_building
from shardfs.errors import DamagedShardError, ShardfsError
from shardfs.index import FolderTable, ShardTable
from shardfs.index_db import IndexDb
from shardfs.store import Store
from shardfs.tree import Directory, KeyDirectory, KeyTree

DIRECTORY, KEY, FILE = "d", "k", "f"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for; None fits all."""

    pattern: str | None = None
    """Of the whole path, where `*` takes `/`, too."""
    name: str | None = None
    """Of the last part of the path."""
    key: str | None = None
    """Of the key's path."""
    kinds: str = DIRECTORY + FILE
    """`d` (directories, keys among them), `k` (keys), `f` (files)."""
    size: tuple[int, int] | None = None
    """Bytes of a file, from the first to the second number, both included."""


@dataclass(frozen=True, slots=True)
class Found:
    """One entry that fits."""

    path: str
    kind: str
    """DIRECTORY (above a key, or inside one), KEY or FILE."""
    key: str | None
    sample: str | None
    size: int
    """Bytes: of a file its content, of a key what is stored, of another directory 0."""
    mtime_ns: int


class Finder:
    """Looks through one store. `failed` is told of keys that cannot be read; the search goes on."""

    def __init__(
        self,
        store: Store,
        wanted: Wanted,
        arrays: str,
        database: IndexDb | None,
        failed: Callable[[str, ShardfsError], None],
    ) -> None:
        self._store = store
        self._wanted = wanted
        self._arrays = arrays
        self._database = database
        self._failed = failed
        pattern = wanted.pattern or "*"
        self._begins = pattern[: min((pattern.find(sign) for sign in "*?[" if sign in pattern), default=len(pattern))]

    def found(self) -> Iterator[Found]:
        """What fits, in the order of the tree. Errors of the listing as the driver raises them."""
        yield from self._below(KeyTree(self._store.driver.entries()).root, "")

    def _below(self, directory: Directory, path: str) -> Iterator[Found]:
        for name, child in directory.children.items():
            below = path + name.decode("utf-8", "surrogateescape")
            if isinstance(child, KeyDirectory):
                yield from self._key(child, below)
            elif isinstance(child, Directory):
                found = Found(below, DIRECTORY, None, None, 0, child.mtime_ns)
                if DIRECTORY in self._wanted.kinds and self._wanted.key is None and self._fits(found):
                    yield found
                yield from self._below(child, f"{below}/")

    def _key(self, directory: KeyDirectory, path: str) -> Iterator[Found]:
        wanted, entry = self._wanted, directory.entry
        if wanted.key is not None and not fnmatchcase(path, wanted.key):
            return
        found = Found(path, KEY, entry.key, None, entry.stored_bytes, entry.mtime_ns)
        if (DIRECTORY in wanted.kinds or KEY in wanted.kinds) and self._fits(found):
            yield found
        inside = f"{path}/"
        if set(wanted.kinds) <= {KEY} or not (inside.startswith(self._begins) or self._begins.startswith(inside)):
            return
        try:
            table = self._table(directory)
        except ShardfsError as error:
            if isinstance(error, DamagedShardError):
                error.key = error.key or entry.key
            self._failed(entry.key, error)
            return
        if table.flat and FILE not in wanted.kinds:
            return
        yield from (
            self._folders(table, directory, path)
            if isinstance(table, FolderTable)
            else self._files(table, directory, inside)
        )

    def _files(self, table: ShardTable, directory: KeyDirectory, inside: str) -> Iterator[Found]:
        entry = directory.entry
        for name, size, _ in table.listing(0):
            text = name.decode("utf-8", "surrogateescape")
            found = Found(inside + text, FILE, entry.key, text.partition(".")[0], size, entry.mtime_ns)
            if self._fits(found):
                yield found

    def _folders(
        self, table: FolderTable, directory: KeyDirectory, path: str, folder: int | None = None
    ) -> Iterator[Found]:
        """The same for a key with directories inside: of one of these, or of the key itself."""
        entry, kinds = directory.entry, self._wanted.kinds
        sample = path.removeprefix(entry.key).strip("/").partition("/")[0].partition(".")[0]
        for name, number, _ in table.children(folder, 0):
            text = name.decode("utf-8", "surrogateescape")
            below, kind = f"{path}/{text}", DIRECTORY if table.is_folder(number) else FILE
            size = 0 if kind == DIRECTORY else table.size(number)
            found = Found(below, kind, entry.key, sample or text.partition(".")[0], size, entry.mtime_ns)
            if kind in kinds and self._fits(found):
                yield found
            if kind == DIRECTORY:
                yield from self._folders(table, directory, below, number)

    def _table(self, directory: KeyDirectory) -> ShardTable:
        driver, entry = self._store.driver, directory.entry
        table = None if self._database is None else self._database.get(entry, lambda: driver.mark(entry))
        if table is None:
            table = table_building.build(driver.load(entry, lambda _: None), self._arrays)
            if self._database is not None:
                self._database.put(entry, table, "")
        return table

    def _fits(self, found: Found) -> bool:
        wanted = self._wanted
        if wanted.name is not None and not fnmatchcase(found.path.rpartition("/")[2], wanted.name):
            return False
        if wanted.pattern is not None and not fnmatchcase(found.path, wanted.pattern):
            return False
        return wanted.size is None or (found.kind == FILE and wanted.size[0] <= found.size <= wanted.size[1])
