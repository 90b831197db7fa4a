"""Superduper: tables of rows in a database, and the artifacts that rows refer to in a directory.

A key is a table, a sample a row. What a row refers to is shown as a file, or as a directory, and is opened when that
is: a listing reads rows and looks at sizes. Knows which version a table has and when that ends. Reading changes nothing
in the database or beside it, and nothing in the store.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from shardfs import config
from shardfs.drivers import superduper_garbage, superduper_python, superduper_writing
from shardfs.drivers.base import Grow, NewRecord, Note, ShardReader
from shardfs.drivers.garbage import Garbage
from shardfs.drivers.linked import OpenObjects
from shardfs.drivers.superduper_artifacts import BLOB, FILE, Objects, listed
from shardfs.drivers.superduper_mongo import open_database
from shardfs.drivers.superduper_rows import Encoder
from shardfs.drivers.superduper_shard import Rows, SuperduperShard
from shardfs.drivers.superduper_sqlite import SqliteTables
from shardfs.drivers.superduper_types import MIDDLE, Layout, TableInfo
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    MissingKeyError,
    NotWritableError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key, Version
from shardfs.storage.local import LocalStorage

ARTIFACTS = "artifacts"
"""The key of a store's artifacts where there is no database; and the directory beside a database that holds them."""

_RETRIES = 3
"""A database that is written to while it is read is read again this often."""

_SETTINGS = frozenset(("artifacts",))


class Tables(Protocol):
    """A database: see superduper_sqlite.py and superduper_mongo.py."""

    kind: str

    def state(self) -> str: ...

    @property
    def mtime_ns(self) -> int: ...

    @property
    def size(self) -> int: ...

    def tables(self) -> tuple[list[TableInfo], Layout]: ...

    def rows(self, table: TableInfo) -> Iterator[dict[str, Any]]: ...

    def texts(self) -> Iterator[str]: ...

    def insert(self, table: TableInfo, row: dict[str, Any], layout: Layout) -> None: ...


class NoTables:
    """A directory of artifacts without a database: one key, with each artifact as a sample."""

    kind = "artifacts"

    def __init__(self, root: Path) -> None:
        self._root = root

    def state(self) -> str:
        found = []
        for name in ("", "blobs", "files"):
            try:
                status = os.stat(self._root / name)
            except OSError as error:
                if not name:
                    raise BadStoreError(f"{self._root}: {error.strerror}") from error
                continue
            found.append(f"{status.st_ino:x}.{status.st_mtime_ns:x}.{status.st_ctime_ns:x}")
        return "+".join(found)

    @property
    def mtime_ns(self) -> int:
        return os.stat(self._root).st_mtime_ns

    @property
    def size(self) -> int:
        return 0

    def tables(self) -> tuple[list[TableInfo], Layout]:
        return [TableInfo(ARTIFACTS, "", {})], MIDDLE

    def rows(self, table: TableInfo) -> Iterator[dict[str, Any]]:
        blobs, files = listed(self._root)
        yield from ({"blob": BLOB + name} for name in blobs)
        yield from ({"file": FILE + name} for name in files)

    def texts(self) -> Iterator[str]:
        raise BadStoreError(f"{self._root}: which artifacts are needed only a database knows: name that, too")

    def insert(self, table: TableInfo, row: dict[str, Any], layout: Layout) -> None:
        raise NotWritableError(f"{self._root} has artifacts only: a row needs a database")


@dataclass(frozen=True, slots=True)
class _Known:
    """A table that was read: in which state of the database, what it was then, and the version that it has."""

    state: str
    digest: str
    version: Version


class SuperduperDriver:
    """Superduper's tables. `storage` holds the artifacts.

    `encodable` says what Python is given for an artifact: `lazy_artifact`, an object that is read when it is asked, or
    `artifact`, what it holds. BadSettingError for another word.
    """

    name = "superduper"
    writable = False
    appends = False
    reading = "superduper"

    def __init__(
        self, storage: LocalStorage, *, encodable: str = "lazy_artifact", tables: Tables | None = None
    ) -> None:
        if encodable not in superduper_python.ENCODABLE:
            raise BadSettingError(f"encodable {encodable!r}: use {' or '.join(superduper_python.ENCODABLE)}")
        if not isinstance(storage, LocalStorage):
            raise BadSettingError("artifacts of Superduper are read from a directory of this machine only")
        self.storage = storage
        self.database: Tables = NoTables(storage.root) if tables is None else tables
        self._eager = encodable == "artifact"
        self._token = secrets.token_hex(4)
        """Versions are of this process: rows kept over mounts are recognised by their content (`mark`)."""
        self._known: dict[Key, _Known] = {}
        self._ended: dict[Key, int] = {}
        self._listed: str | None = None
        self._held = OpenObjects(config.LINKED_OPEN)
        self._lock = threading.Lock()
        self.problems: list[str] = []

    @classmethod
    def open_url(
        cls, url: str, *, artifacts: str | None = None, encodable: str = "lazy_artifact"
    ) -> tuple[SuperduperDriver, Path | None]:
        """`superduper+sqlite:///PATH?artifacts=DIR` or `superduper+mongodb://HOST/DATABASE?artifacts=DIR`.

        Without `artifacts` these are in `artifacts` or `artifact_store` beside an SQLite file. BadSettingError,
        BadStoreError, MissingExtraError.
        """
        parts = urlsplit(url)
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()  # as messages may have it
        kind = parts.scheme.partition("+")[2]
        settings = dict(parse_qsl(parts.query, keep_blank_values=True))
        root = artifacts or settings.pop(ARTIFACTS, None)
        root = None if root is None else root.removeprefix("filesystem://")
        if root is not None and not Path(root).expanduser().is_dir():
            raise BadStoreError(f"{root} is no directory: it is to be the artifact store of {url}")
        if kind == "sqlite":
            for word in settings:
                raise BadSettingError(f"{url}: no setting {word!r}; there is: {', '.join(sorted(_SETTINGS))}")
            path = Path(unquote(parts.netloc + parts.path)).expanduser()
            made = SqliteTables(Path("/" + str(path).lstrip("/")) if path.is_absolute() else path)
            storage = LocalStorage(_beside(made.path) if root is None else Path(root).expanduser())
            return cls(storage, encodable=encodable, tables=made), made.path
        if kind != "mongodb":
            raise BadStoreError(f"{url}: superduper+sqlite:// and superduper+mongodb:// can be opened")
        if root is None:
            raise BadSettingError(f"{url}: say where the artifacts are: {url}?artifacts=DIR")
        database = open_database(parts.netloc, parts.path, settings)
        return cls(LocalStorage(Path(root).expanduser()), encodable=encodable, tables=database), None

    # --- which tables, in which version ---------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        state = self.database.state()
        tables, _ = self.database.tables()
        share = self.database.size // max(1, len(tables))
        made = [self._entry(Key(table.name), state, share) for table in tables]
        self._listed = state
        return made

    def changed(self) -> bool:
        return self._listed is None or self.database.state() != self._listed

    def suspects(self, entries: Sequence[Entry]) -> list[Entry]:
        """See Suspects: of the database's states `changed` tells; what is left are tables whose artifacts turned out to
        be others than rows were read with."""
        state = "" if self._listed is None else self._listed
        return [entry for entry in entries if entry.version != self._version(entry.key, state)]

    def entry(self, key: Key) -> Entry:
        state = self.database.state()
        tables, _ = self.database.tables()
        if all(table.name != key for table in tables):
            raise MissingKeyError(f"no key {key!r} in the database")
        return self._entry(key, state, self.database.size // len(tables))

    def _entry(self, key: Key, state: str, share: int) -> Entry:
        known = self._known.get(key)
        if known is not None and known.state != state:
            # another table may be all that was changed; who reads this one goes on undisturbed then
            with contextlib.suppress(DamagedShardError, StorageError):  # who reads it is told
                self._settle(key, state, self._read(key).digest())
        return Entry(key, self._version(key, state), share, self.database.mtime_ns)

    def _version(self, key: Key, state: str) -> Version:
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.state == state:
                return known.version
            return Version(f"{self._token}-{state}-{self._ended.get(key, 0)}")

    def _settle(self, key: Key, state: str, digest: str) -> Version:
        """The version of a table that was just read. What was read before is another one, if it was not the same."""
        with self._lock:
            known = self._known.get(key)
            if known is not None and known.digest == digest:
                version = known.version
            else:
                if known is not None and known.state == state:
                    self._ended[key] = self._ended.get(key, 0) + 1
                version = Version(f"{self._token}-{state}-{self._ended.get(key, 0)}")
            self._known[key] = _Known(state, digest, version)
            return version

    def _end(self, key: Key) -> None:
        """Something that a table refers to is not what it was: its version is over."""
        with self._lock:
            self._known.pop(key, None)
            self._ended[key] = self._ended.get(key, 0) + 1

    # --- reading --------------------------------------------------------------------------------------------------

    def estimate(self, entry: Entry) -> int:
        return entry.stored_bytes

    def mark(self, entry: Entry) -> str:
        """Of the rows, and the sizes of what they refer to: all that decides what is shown."""
        return self.load(entry, lambda _: None).mark()

    def load(self, entry: Entry, grow: Grow) -> SuperduperShard:
        for attempt in range(_RETRIES):
            state = self.database.state()
            shard = self._read(entry.key, grow)
            if self.database.state() == state:
                break
            if attempt == _RETRIES - 1:
                raise StaleShardError(f"the database of {entry.key} is written to without a pause")
        if self._settle(entry.key, state, shard.digest()) != entry.version:
            raise StaleShardError(f"{entry.key} was changed since it was listed")
        return shard

    def _read(self, key: Key, grow: Grow = lambda _: None) -> SuperduperShard:
        tables, layout = self.database.tables()
        table = next((table for table in tables if table.name == key), None)
        if table is None:
            raise MissingKeyError(f"no key {key!r} in the database")
        rows, objects = Rows(table.primary_id), Objects(self.storage, layout.hashed)
        encoder = Encoder(table, objects)
        with objects.looking():
            for row in self.database.rows(table):
                rows.add(_name(row, table.primary_id), encoder.encode(row))
                grow(len(rows.raw))
        present = superduper_python.eager if self._eager else superduper_python.lazy
        return SuperduperShard(rows, objects.all, self.storage, self._held, lambda: self._end(key), present)

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        return None  # rows are in memory; what they refer to never is

    # --- writing --------------------------------------------------------------------------------------------------

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        raise NotWritableError("tables of Superduper are not replaced here; shardfs.superduper.insert adds rows")

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        raise NotWritableError("tables of Superduper are not replaced here; shardfs.superduper.insert adds rows")

    def put_bytes(self, data: bytes) -> str:
        """Store a blob; the reference to it. See superduper_writing.put_bytes."""
        return superduper_writing.put_bytes(self.storage, data, self._layout())

    def put_file(self, path: Path) -> str:
        """Store a copy of a file or of a directory; the reference to it. See superduper_writing.put_file."""
        return superduper_writing.put_file(self.storage, path, self._layout())

    def _layout(self) -> Layout:
        return self.database.tables()[1]

    def insert(self, key: Key, row: dict[str, Any]) -> None:
        """Add a row of plain values and references, durably. MissingKeyError, KeyExistsError, BadSettingError,
        StorageError."""
        tables, layout = self.database.tables()
        table = next((table for table in tables if table.name == key), None)
        if table is None:
            raise MissingKeyError(f"no key {key!r} in the database")
        if not isinstance(row.get(table.primary_id), str | int):
            raise BadSettingError(f"a row of {key} needs a {table.primary_id!r}, which is a text or a number")
        self.database.insert(table, row, layout)

    def garbage(self) -> list[Garbage]:
        """See Collecting: artifacts that nothing in the database refers to. A database that is not this one may have
        rows that do."""
        return superduper_garbage.unreferenced(self.storage.root, superduper_garbage.referred(self.database.texts()))

    def discard(self, found: Garbage) -> None:
        if found.kind == "unnamed" and all(found.name != other.name for other in self.garbage()):
            raise StaleShardError(f"{found.name} is referred to by now")
        superduper_garbage.discard(self.storage.root, found)

    def settle(self, key: Key, noted: str) -> Entry | None:
        raise NotWritableError("tables of Superduper are not replaced here")

    def remove(self, key: Key) -> None:
        raise NotWritableError("tables of Superduper are not removed here")


def _beside(path: Path) -> Path:
    """Where the artifacts of a database are that nobody has named: as the library's settings have it unasked."""
    beside = [path.parent / name for name in (ARTIFACTS, "artifact_store")]
    return next((folder for folder in beside if folder.is_dir()), beside[0])


def _name(row: dict[str, Any], primary_id: str) -> str | None:
    """What the row is called: by its primary id; an artifact by its own."""
    if not primary_id:
        return next(str(value).rpartition(":")[2] for value in row.values())
    value = row.get(primary_id, row.get("_id"))
    if value is None or isinstance(value, dict | list | bytes | float):
        return None
    return str(value)


__all__ = ["ARTIFACTS", "SuperduperDriver"]
