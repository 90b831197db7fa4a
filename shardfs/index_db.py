"""The persistent index: what shards hold, kept over mounts, so that a remount lists and stats without touching one.

One SQLite file per store and way of reading it, a row per shard: its table, packed and compressed, under the key, the
shard's version, and a mark of its content that is the same on every machine. It is a cache: whatever is wrong with it
is thrown away and made again, and several processes may use one file at once. Knows nothing of mounts or of how tables
are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import zstandard

from shardfs import config, packing
from shardfs.errors import BadSettingError, ShardfsError
from shardfs.index import ShardTable
from shardfs.light_columns import LightColumns
from shardfs.model import Entry

log = logging.getLogger("shardfs")

T = TypeVar("T")

FORMAT = 2
"""Raised whenever a row means something else, or a shard is shown as other files or sizes than before."""

PUBLISHED = ".shardfs-index.sqlite"
"""Name under which an exported index lies in a store's root."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (
    key TEXT PRIMARY KEY,
    version TEXT NOT NULL,
    mark TEXT NOT NULL,
    samples INTEGER NOT NULL,
    files INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    data BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS about (identity TEXT PRIMARY KEY) WITHOUT ROWID;
"""

_LIGHT_SCHEMA = """
CREATE TABLE IF NOT EXISTS light (
    key TEXT PRIMARY KEY,
    version TEXT NOT NULL,
    mark TEXT NOT NULL,
    crc INTEGER NOT NULL,
    data BLOB NOT NULL
) WITHOUT ROWID;
"""
"""Light fields are asked for by few, so they lie beside the rows, and an index without any has no such table."""

_Row = tuple[str, str, int, bytes]


def default_path(store: str, reading: str) -> Path | None:
    """Where the index of a store lies: `reading` names all that decides what its shards are shown as. None for who has
    no home."""
    base = config.base_directory("XDG_CACHE_HOME", "~/.cache")
    if base is None:
        return None
    name = hashlib.sha256(f"{FORMAT}\0{reading}\0{store}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return base / "shardfs" / "index" / f"{name}.sqlite"


def name_of(key: str) -> str:
    """A key as SQLite takes it: names of files that are no UTF-8 hold lone surrogates."""
    return key.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")


class IndexDb:
    """The index of one store, in a file. Thread-safe. Errors never leave its lookups: one that fails is a miss.

    `reading` must be the same for all who use one file. With `read_only` the file is one that was published, and is
    never written to; `published` is asked for what the own file does not have. With `far`, versions are the same on
    every machine, and looking at a shard's content would mean fetching it: so rows are known by their version only.
    """

    def __init__(
        self,
        path: Path,
        reading: str,
        *,
        read_only: bool = False,
        published: IndexDb | None = None,
        far: bool = False,
    ) -> None:
        self.path = path
        self._identity = f"{FORMAT} {reading}"
        self._read_only = read_only
        self._published = published
        self._far = far
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._broken = False
        self._deadline = 0.0

    def get(self, entry: Entry, mark: Callable[[], str]) -> ShardTable | None:
        """The table of exactly this shard, if the index has it: by its version, or by `mark()` of its content.

        `mark` may raise ShardfsError and OSError for a shard that cannot be looked at; that is a miss too.
        """
        row = self._row(entry)
        if row is not None and row[0] == entry.version:
            return _unpacked(row)
        if self._far:
            return self._carried(entry)
        seen: str | None = None
        for found in (row, None if self._published is None else self._published._row(entry)):
            if found is None or not found[1]:
                continue
            if seen is None:
                try:
                    seen = mark()
                except (ShardfsError, OSError):
                    return None
            if found[1] == seen:
                table = _unpacked(found)
                if table is not None:
                    self.put(entry, table, seen)
                return table
        return None

    def _carried(self, entry: Entry) -> ShardTable | None:
        """What the published index has of exactly this version, taken over."""
        row = None if self._published is None else self._published._row(entry)
        table = None if row is None or row[0] != entry.version else _unpacked(row)
        if row is not None and table is not None:
            self.put(entry, table, row[1])
        return table

    def _row(self, entry: Entry) -> _Row | None:
        row: _Row | None = None
        with self._connected() as connection:
            if connection is not None:
                query = "SELECT version, mark, crc, data FROM shards WHERE key = ?"
                row = connection.execute(query, (name_of(entry.key),)).fetchone()
        return row

    def put(self, entry: Entry, table: ShardTable, mark: str) -> None:
        """Keep the table of a shard, in place of what an older version had."""
        if self._read_only:
            return
        data = zstandard.compress(packing.pack(table), config.INDEX_LEVEL)
        with self._connected() as connection:
            if connection is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (name_of(entry.key), entry.version, mark, table.samples, table.files, zlib.crc32(data), data),
                )

    def get_light(self, entry: Entry, mark: Callable[[], str] = lambda: "") -> LightColumns | None:
        """The light fields of exactly this shard, if the index has them: as `get`, and without `mark` only where a row
        of the shard tells that its content is the same."""
        row = self._light_row(entry)
        if row is not None and row[0] == entry.version:
            return _unpacked_light(row)
        carried = None if self._published is None else self._published._light_row(entry)
        seen = None if self._far else self._seen(entry)
        for found in (row, carried):
            if found is None:
                continue
            if found[0] != entry.version:
                if self._far or not found[1]:
                    continue
                try:
                    seen = seen or mark()
                except (ShardfsError, OSError):
                    return None
                if found[1] != seen:
                    continue
            columns = _unpacked_light(found)
            if columns is not None:
                self.put_light(entry, columns, found[1])
            return columns
        return None

    def _seen(self, entry: Entry) -> str | None:
        """The mark of a shard's content, where its row in the present version has one."""
        row = self._row(entry)
        return row[1] or None if row is not None and row[0] == entry.version else None

    def _light_row(self, entry: Entry) -> _Row | None:
        row: _Row | None = None
        with self._connected() as connection:
            if connection is not None and _has_light(connection):
                query = "SELECT version, mark, crc, data FROM light WHERE key = ?"
                row = connection.execute(query, (name_of(entry.key),)).fetchone()
        return row

    def put_light(self, entry: Entry, columns: LightColumns, mark: str = "") -> None:
        """Keep the light fields of a shard, in place of what an older version had. Without a mark, that of the shard's
        row."""
        if self._read_only:
            return
        data = zstandard.compress(columns.pack(), config.INDEX_LEVEL)
        mark = mark or self._seen(entry) or ""
        with self._connected() as connection:
            if connection is not None:
                connection.execute(_LIGHT_SCHEMA)
                connection.execute(
                    "INSERT OR REPLACE INTO light VALUES (?, ?, ?, ?, ?)",
                    (name_of(entry.key), entry.version, mark, zlib.crc32(data), data),
                )

    def versions(self, light: bool = False) -> dict[str, str]:
        """`name_of(key)` -> version, of all shards the index has; `light`: of those whose light fields it has."""
        versions: dict[str, str] = {}
        with self._connected() as connection:
            if connection is not None and (not light or _has_light(connection)):
                rows = connection.execute(f"SELECT key, version FROM {'light' if light else 'shards'}")
                versions = dict(rows.fetchall())
        return versions

    def drop(self, names: list[str]) -> None:
        """Forget shards, by the names that `versions` gives."""
        with self._connected() as connection:
            if connection is not None and not self._read_only:
                for table in ("shards", "light") if _has_light(connection) else ("shards",):
                    connection.executemany(f"DELETE FROM {table} WHERE key = ?", [(name,) for name in names])

    def export(self, path: Path) -> int:
        """Write the index into a new file, for publishing; the number of shards in it. OSError, BadSettingError."""
        if path.exists():
            raise BadSettingError(f"{path} is there already: name a new file")
        count = None
        with self._connected() as connection:
            if connection is not None:
                connection.execute("VACUUM INTO ?", (str(path),))
                count = int(connection.execute("SELECT count(*) FROM shards").fetchone()[0])
        if count is None:
            raise BadSettingError(f"the index {self.path} could not be written to {path}")
        return count

    def take(self, path: Path) -> int:
        """Take over all rows of an exported index; their number. BadSettingError for what is none of this store."""
        other = IndexDb(path, self._identity.partition(" ")[2], read_only=True)
        taken = None
        try:
            with other._connected() as connection:
                if connection is not None:
                    taken = self._copied(connection, "shards", 7)
                    if _has_light(connection):
                        self._copied(connection, "light", 5)
        finally:
            other.close()
        if taken is None:
            raise BadSettingError(f"{path} is no index of this kind of store and way of showing it")
        return taken

    def _copied(self, source: sqlite3.Connection, table: str, columns: int) -> int:
        """Have all rows of another index's table that this one has not; how many there were."""
        rows, count = source.execute(f"SELECT * FROM {table}"), 0
        while batch := rows.fetchmany(100):
            count += len(batch)
            with self._connected() as connection:
                if connection is not None:
                    connection.executescript(_LIGHT_SCHEMA if table == "light" else _SCHEMA)
                    marks = ", ".join("?" * columns)
                    connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", batch)
        return count

    @property
    def usable(self) -> bool:
        """False once the file has turned out to be of no use."""
        return not self._broken

    def close(self) -> None:
        """End the use of the file; later lookups miss."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._broken = True
        if self._published is not None:
            self._published.close()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection | None]:
        """The open database, or None where there is none to be had; what fails inside is a miss and ends its use."""
        with self._lock:
            try:
                if self._connection is None and not self._broken:
                    self._connection = self._opened()
            except (sqlite3.Error, OSError) as error:
                self._give_up(str(error))
            try:
                if self._connection is not None:
                    self._deadline = time.monotonic() + config.INDEX_WAIT
                yield self._connection
            except (sqlite3.Error, OSError) as error:
                self._give_up(str(error))

    def _opened(self) -> sqlite3.Connection | None:
        self._deadline = time.monotonic() + config.INDEX_WAIT
        if self._read_only:
            connection = self._connect(f"{self.path.absolute().as_uri()}?mode=ro&immutable=1")
            _refuse_programs(connection)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = self._prepared()
        identities = {row[0] for row in connection.execute("SELECT identity FROM about")}
        if identities != {self._identity}:
            connection.close()
            self._give_up("it is of another format, or for another way of showing the store")
            return None
        return connection

    def _connect(self, uri: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri, uri=True, timeout=config.INDEX_WAIT, check_same_thread=False, isolation_level=None
        )
        connection.execute("PRAGMA trusted_schema = OFF")
        if self._read_only:  # what is published may be made to keep us busy for ever
            connection.set_progress_handler(lambda: int(time.monotonic() > self._deadline), 10_000)
        return connection

    def _prepared(self) -> sqlite3.Connection:
        """The own file, made if need be; a damaged one is made anew."""
        for attempt in (1, 2):
            connection = self._connect(self.path.absolute().as_uri())
            try:
                # WAL: readers and one writer at once; NORMAL: a crash of the machine may lose rows, never the file
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.executescript(_SCHEMA)
                connection.execute("INSERT OR IGNORE INTO about VALUES (?)", (self._identity,))
                return connection
            except sqlite3.DatabaseError as error:
                connection.close()
                if attempt == 2 or isinstance(error, sqlite3.OperationalError):
                    raise
                log.warning("the index %s is damaged (%s): it is made anew", self.path, error)
                for ending in ("", "-wal", "-shm"):
                    Path(f"{self.path}{ending}").unlink(missing_ok=True)
        raise AssertionError("unreachable")

    def _give_up(self, reason: str) -> None:
        if not self._broken:
            log.warning("the index %s cannot be used (%s): this goes on without it", self.path, reason)
        self._broken = True
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _refuse_programs(connection: sqlite3.Connection) -> None:
    """A published index holds two or three plain tables and nothing that computes. sqlite3.DatabaseError."""
    found = {tuple(row) for row in connection.execute("SELECT type, name FROM sqlite_master").fetchall()}
    if found - {("table", "light")} != {("table", "shards"), ("table", "about")}:
        raise sqlite3.DatabaseError("it holds something else than an index")


def _has_light(connection: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'light'"
    return connection.execute(query).fetchone() is not None


def _unpacked(row: _Row) -> ShardTable | None:
    """The table in a row; None for whatever is wrong with it: the row may be anybody's."""
    return _made(row, config.INDEX_ROW, packing.unpack)


def _unpacked_light(row: _Row) -> LightColumns | None:
    return _made(row, config.LIGHT_ROW, LightColumns.unpack)


def _made(row: _Row, limit: int, unpack: Callable[[bytes], T]) -> T | None:
    try:
        _, _, crc, data = row
        if zlib.crc32(data) != crc:
            return None
        with zstandard.ZstdDecompressor(max_window_size=config.ZSTD_WINDOW).stream_reader(data) as stream:
            packed = stream.read(limit + 1)
        return unpack(packed) if len(packed) <= limit else None
    except Exception as error:
        log.debug("a row of the index is damaged: %s", error)
        return None
