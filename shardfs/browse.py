"""The tree without a mount: what `shardfs ls`, `cat` and `info` show. Synchronous, one shard at a time.

The same names, sizes and bytes as a mount has, out of the same tables. Knows nothing of FUSE or of the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shardfs import config, table_building
from shardfs.drivers.base import Shard
from shardfs.errors import DamagedShardError, MissingKeyError
from shardfs.index import FolderTable, ShardTable
from shardfs.store import Store
from shardfs.tree import KeyDirectory, KeyTree


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a listing."""

    name: str
    kind: str
    """`dir`, `key` or `file`."""
    size: int
    """Bytes: of a file its content, of a key what is stored, of a directory 0."""
    mtime_ns: int


class Browser:
    """Looks into a store by path. Keeps the last shard it looked into."""

    def __init__(self, store: Store, arrays: str = "png") -> None:
        self._store = store
        self._arrays = arrays
        self._tree = KeyTree(store.driver.entries())
        self._open: tuple[int, Shard, ShardTable] | None = None

    def list(self, path: str = "") -> list[Listed]:
        """What is in a directory; for a file, the file itself. MissingKeyError, DamagedShardError, StorageError."""
        directory, rest = self._find(path)
        if not isinstance(directory, KeyDirectory):
            return [_listed(name, child) for name, child in directory.children.items()]
        _, table = self._shard(directory)
        mtime = directory.entry.mtime_ns
        if isinstance(table, FolderTable):
            return [*self._inside(table, rest, path, mtime)]
        if rest:
            file = self._file(table, rest, path)
            return [Listed(rest, "file", table.size(file), mtime)]
        return [Listed(name.decode("utf-8"), "file", size, mtime) for name, size, _ in table.listing(0)]

    def _inside(self, table: FolderTable, rest: str, path: str, mtime: int) -> Iterator[Listed]:
        """`list` of what is in a key with directories inside."""
        number = table.walk(rest.encode("utf-8", "surrogateescape")) if rest else None
        if rest and number is None:
            raise MissingKeyError(f"no {path.strip('/')} in {self._store.url}")
        if number is not None and not table.is_folder(number):
            yield Listed(rest, "file", table.size(number), mtime)
            return
        for name, child, _ in table.children(number, 0):
            folder = table.is_folder(child)
            text = name.decode("utf-8", "surrogateescape")
            yield Listed(text, "dir" if folder else "file", 0 if folder else table.size(child), mtime)

    def read(self, path: str) -> Iterator[bytes]:
        """The content of one file in pieces. Raises at the call: MissingKeyError, DamagedShardError, StorageError."""
        directory, rest = self._find(path)
        if not isinstance(directory, KeyDirectory) or not rest:
            raise MissingKeyError(f"{path or '/'} is a directory")
        shard, table = self._shard(directory)
        file = self._file(table, rest, path)
        run = table.slice_of(file)
        if run is None:
            return iter((table.render(file, shard, self._arrays),))
        return self._pieces(shard, *run)

    @staticmethod
    def _pieces(shard: Shard, prefix: bytes, start: int, length: int) -> Iterator[bytes]:
        if prefix:
            yield prefix
        for at in range(start, start + length, config.COPY_SLICE):
            yield bytes(shard.fetch(at, min(at + config.COPY_SLICE, start + length)))

    def info(self, path: str = "") -> dict[str, Any]:
        """Facts about the store, a directory, a key or a file, as plain values for JSON."""
        directory, rest = self._find(path)
        if isinstance(directory, KeyDirectory):
            return self._file_info(directory, rest, path) if rest else self._key_info(directory)
        if path.strip("/"):
            return {"path": path.strip("/"), "kind": "dir", "entries": len(directory.children)}
        keys = self._tree.slots
        samples = [key.entry.samples for key in keys]
        known = sum(count for count in samples if count is not None)
        made: dict[str, Any] = {
            "store": self._store.url,
            "driver": self._store.driver.name,
            "writable": self._store.driver.writable,
            "keys": len(keys),
            "stored_bytes": self._tree.stored_bytes,
            "samples": known if keys and None not in samples else None,
        }
        problems = self._store.driver.problems
        return {**made, "problems": list(problems)} if problems else made

    def _key_info(self, key: KeyDirectory) -> dict[str, Any]:
        shard, table = self._shard(key)
        others = [note.reason for note in table.notes if not note.file]
        return {
            "key": key.entry.key,
            "kind": "key",
            "stored_bytes": key.entry.stored_bytes,
            "raw_bytes": shard.size,
            "samples": table.samples,
            "files": table.files,
            "file_bytes": table.total_size(),
            "mtime_ns": key.entry.mtime_ns,
            "undecoded": [{"file": note.file, "reason": note.reason} for note in table.notes if note.file],
            **({"problems": others} if others else {}),
        }

    def _file_info(self, key: KeyDirectory, name: str, path: str) -> dict[str, Any]:
        _, table = self._shard(key)
        number = table.walk(name.encode("utf-8", "surrogateescape")) if isinstance(table, FolderTable) else None
        if isinstance(table, FolderTable) and number is not None and table.is_folder(number):
            return {"path": path.strip("/"), "kind": "dir", "entries": sum(1 for _ in table.children(number, 0))}
        file = self._file(table, name, path)
        return {
            "key": key.entry.key,
            "kind": "file",
            "name": name,
            "sample": table.stem(table.sample_of(file)).decode("utf-8"),
            "size": table.size(file),
            "rendered": table.slice_of(file) is None,
            "mtime_ns": key.entry.mtime_ns,
        }

    def _find(self, path: str) -> tuple[Any, str]:
        directory, rest = self._tree.walk(path)
        if directory is None:
            raise MissingKeyError(f"no {path.strip('/')} in {self._store.url}")
        return directory, rest

    def _file(self, table: ShardTable, name: str, path: str) -> int:
        encoded = name.encode("utf-8", "surrogateescape")
        file = table.walk(encoded) if isinstance(table, FolderTable) else table.find(encoded)
        if file is not None and file >= table.files:
            raise MissingKeyError(f"{path.strip('/')} is a directory")
        if file is None:
            raise MissingKeyError(f"no {path.strip('/')} in {self._store.url}")
        return file

    def _shard(self, key: KeyDirectory) -> tuple[Shard, ShardTable]:
        if self._open is None or self._open[0] != key.slot:
            try:
                shard = self._store.driver.load(key.entry, lambda _: None)
                self._open = (key.slot, shard, table_building.build(shard, self._arrays))
            except DamagedShardError as error:
                error.key = error.key or key.entry.key
                raise
        return self._open[1], self._open[2]


def _listed(name: bytes, child: Any) -> Listed:
    text = name.decode("utf-8")
    if isinstance(child, KeyDirectory):
        return Listed(text, "key", child.entry.stored_bytes, child.entry.mtime_ns)
    return Listed(text, "dir", 0, child.mtime_ns)
