"""The persistent index: what shards hold, kept over mounts, so that a remount lists and stats without touching one.

One SQLite file per store and way of reading it, a row per shard: its table, packed and compressed, under the key and the
shard's version. It is a cache: whatever is wrong with it is thrown away and made again, and several processes may use
one file at once. Knows nothing of mounts or of how tables are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from shardfs import config, index
from shardfs.index import ShardTable
from shardfs.model import Entry

log = logging.getLogger("shardfs")

FORMAT = 1
"""Raised whenever what a row means changes: rows of another format are as good as none."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (
    key TEXT PRIMARY KEY,
    version TEXT NOT NULL,
    samples INTEGER NOT NULL,
    files INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    data BLOB NOT NULL
) WITHOUT ROWID
"""


def default_path(store: str, reading: str) -> Path:
    """Where the index of a store lies: `reading` names all that decides what its shards are shown as."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(f"{FORMAT}\0{reading}\0{store}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Path(base) / "shardfs" / "index" / f"{name}.sqlite"


class IndexDb:
    """The index of one store, in a file. Thread-safe. Errors never leave it: a lookup that fails is a miss.

    With `read_only` the file is one that was published with a store: it is never written to.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self._read_only = read_only
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._broken = False

    def get(self, entry: Entry) -> ShardTable | None:
        """The table of exactly this version of a shard, if the index has it."""
        with self._connected() as connection:
            if connection is None:
                return None
            row = connection.execute(
                "SELECT data, crc FROM shards WHERE key = ? AND version = ?", (_text(entry.key), entry.version)
            ).fetchone()
        if row is None or zlib.crc32(row[0]) != row[1]:
            return None
        try:
            return index.unpack(zstandard.decompress(row[0], max_output_size=config.INDEX_ROW))
        except (ValueError, KeyError, TypeError, zstandard.ZstdError):
            return None

    def put(self, entry: Entry, table: ShardTable) -> None:
        """Keep the table of a shard, in place of what an older version had."""
        if self._read_only:
            return
        data = zstandard.compress(index.pack(table), config.INDEX_LEVEL)
        with self._connected() as connection:
            if connection is not None:
                connection.execute(
                    "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?, ?)",
                    (_text(entry.key), entry.version, table.samples, table.files, zlib.crc32(data), data),
                )

    def versions(self) -> dict[str, str]:
        """Key -> version of all shards the index has."""
        with self._connected() as connection:
            rows = [] if connection is None else connection.execute("SELECT key, version FROM shards").fetchall()
        return dict(rows)

    def drop(self, keys: list[str]) -> None:
        """Forget shards."""
        with self._connected() as connection:
            if connection is not None and not self._read_only:
                connection.executemany("DELETE FROM shards WHERE key = ?", [(_text(key),) for key in keys])

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._broken = True

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection | None]:
        """The open database, or None where there is none to be had; what fails inside is a miss and ends its use."""
        with self._lock:
            try:
                if self._connection is None and not self._broken:
                    self._connection = self._open()
                yield self._connection
            except sqlite3.Error as error:
                self._give_up(error)

    def _open(self) -> sqlite3.Connection | None:
        if self._read_only:
            uri = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
            return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return self._prepared()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.warning("the index %s is damaged (%s): it is made anew", self.path, error)
            for ending in ("", "-wal", "-shm"):
                Path(f"{self.path}{ending}").unlink(missing_ok=True)
            return self._prepared()
        except OSError as error:
            self._give_up(error)
            return None

    def _prepared(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=config.INDEX_WAIT, check_same_thread=False, isolation_level=None
        )
        try:
            # WAL: readers and one writer at once; NORMAL: a crash of the machine may lose rows, never the file
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_up(self, error: Exception) -> None:
        if not self._broken:
            log.warning("the index %s cannot be used (%s): this goes on without it", self.path, error)
        self._broken = True
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _text(key: str) -> str:
    """A key as SQLite takes it: names of files that are no UTF-8 hold lone surrogates."""
    return key.encode("utf-8", "surrogatepass").decode("utf-8", "backslashreplace")
