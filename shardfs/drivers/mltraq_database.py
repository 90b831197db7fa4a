"""The SQLite database of mltraq experiments, read and never written to.

    experiments(id_experiment, name, meta, fields, unsafe_pickle), and a table of runs for each experiment

Source of the format: what mltraq 0.1.165 writes, found by running it. `unsafe_pickle` is not even selected. Opening a
database can write beside it (a rollback, the files of a write-ahead log): `Database.snapshot` opens it in whichever way
does not, if need be a copy. Knows nothing of blobs' contents and of the datastore.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shardfs import config
from shardfs.errors import DamagedShardError, StaleShardError, StorageError

_WAL, _JOURNAL = "-wal", "-journal"


@dataclass(frozen=True, slots=True)
class Experiment:
    """One row of `experiments`, without its blobs."""

    id: str
    """32 hexadecimal digits."""
    name: str


@dataclass(frozen=True, slots=True)
class Row:
    """An experiment's blobs."""

    meta: bytes | None
    fields: bytes | None


class Database:
    """One database file. All methods may be called from several threads: each opens a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def state(self) -> str:
        """A text that is another one after each commit: of the file and its write-ahead log. StorageError."""
        try:
            parts = [_state(os.stat(self.path))]
            with contextlib.suppress(FileNotFoundError):
                log = os.stat(f"{self.path}{_WAL}")
                # its ctime says nothing: SQLite gives the log its owner whenever root opens it
                parts += [f"{log.st_ino:x}-{log.st_size:x}-{log.st_mtime_ns:x}"] if log.st_size else []
        except OSError as error:
            raise StorageError(f"looking at {self.path}: {error.strerror}", error.errno or errno.EIO) from error
        return "+".join(parts)

    def mtime_ns(self) -> int:
        """When the last commit was. StorageError."""
        try:
            times = [os.stat(self.path).st_mtime_ns]
            with contextlib.suppress(FileNotFoundError):
                log = os.stat(f"{self.path}{_WAL}")
                times += [log.st_mtime_ns] if log.st_size else []
        except OSError as error:
            raise StorageError(f"looking at {self.path}: {error.strerror}", error.errno or errno.EIO) from error
        return max(times)

    @contextlib.contextmanager
    def snapshot(self, state: str | None = None) -> Iterator[Snapshot]:
        """The database as it is at one moment, however long it is looked at; with `state`, as it was then, or
        StaleShardError. StorageError, EBUSY where another program keeps it; DamagedShardError for what is none."""
        try:
            with self._connection() as (connection, immutable):
                connection.execute("BEGIN")
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on nothing changes
                now = self.state()
                if state is not None and now != state:
                    raise StaleShardError(f"{self.path} was written to since it was listed")
                yield Snapshot(connection, now)
                if immutable and self.state() != now:
                    raise StaleShardError(f"{self.path} was written to while it was read")
        except sqlite3.Error as error:
            raise self._told(error) from error

    def _told(self, error: sqlite3.Error) -> Exception:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StorageError(f"{self.path} is kept by another program: {error}", errno.EBUSY)
        if code is not None and code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
            return StorageError(f"reading {self.path}: {error}")
        if code is not None and code & 0xFF == sqlite3.SQLITE_INTERRUPT:
            return DamagedShardError(f"{self.path} takes longer to read than any database of its size")
        return DamagedShardError(f"{self.path} is no sound database: {error}")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[tuple[sqlite3.Connection, bool]]:
        """A connection that writes nothing beside the database, and whether it takes the file for one that nobody
        changes. A log that nobody has in use, and a rollback to be made, are read in a copy."""
        how = self._how()
        if how is None:
            # in the copy SQLite may do what it must
            with self._copy() as path, self._connect(f"file:{quote(str(path))}", path) as connection:
                yield connection, False
            return
        with self._connect(f"file:{quote(str(self.path))}?{how}", self.path) as connection:
            yield connection, "immutable" in how

    def _how(self) -> str | None:
        """How to open the database so that nothing is written; None where it must be copied."""
        try:
            with open(self.path, "rb") as file:
                head = file.read(20)
        except OSError as error:
            raise StorageError(f"opening {self.path}: {error.strerror}", error.errno or errno.EIO) from error
        if head[18:20] == b"\2\2":  # a write-ahead log is kept: without one the file is all there is
            if not _size(f"{self.path}{_WAL}"):
                return "mode=ro&immutable=1"
            return "mode=ro&readonly_shm=1" if os.path.exists(f"{self.path}-shm") else None
        journal = f"{self.path}{_JOURNAL}"
        # one that a crash left is rolled back by the next who opens; one that is being written to is kept locked
        return None if _size(journal) and self._is_left(journal) else "mode=ro"

    def _is_left(self, journal: str) -> bool:
        try:
            with self._connect(f"file:{quote(str(self.path))}?mode=ro", self.path, wait=0.0) as connection:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
        return False

    @contextlib.contextmanager
    def _copy(self) -> Iterator[Path]:
        """A copy of the database and what belongs to it, taken while none of them changed."""
        before = self.state()
        size = _size(str(self.path)) + _size(f"{self.path}{_WAL}")
        if size > config.DATABASE_COPY:
            raise StorageError(f"{self.path} needs recovery, which would take a copy of {size} bytes", errno.EFBIG)
        with tempfile.TemporaryDirectory(prefix="shardfs-") as folder:
            copy = Path(folder) / "copy.db"
            shutil.copyfile(self.path, copy)
            for ending in (_WAL, _JOURNAL):
                with contextlib.suppress(FileNotFoundError):
                    shutil.copyfile(f"{self.path}{ending}", f"{copy}{ending}")
            if self.state() != before:
                raise StaleShardError(f"{self.path} was written to while it was copied")
            yield copy

    @contextlib.contextmanager
    def _connect(self, uri: str, path: Path, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        seconds = config.DATABASE_WAIT if wait is None else wait
        connection = sqlite3.connect(uri, uri=True, timeout=seconds, isolation_level=None, check_same_thread=False)
        try:
            # nothing in the file is run, and no cell can be larger than all of it
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("PRAGMA query_only=ON")
            limit = max(config.MIB, _size(str(path)) + _size(f"{path}{_WAL}"))
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(limit, (1 << 31) - 1))
            connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            until = time.monotonic() + config.DATABASE_TIME + limit / config.DATABASE_SPEED
            connection.set_progress_handler(lambda: int(time.monotonic() > until), 100_000)
            yield connection
        finally:
            connection.close()


class Snapshot:
    """A database at one moment. DamagedShardError for what a database of experiments does not have."""

    def __init__(self, connection: sqlite3.Connection, state: str) -> None:
        self._connection = connection
        self.state = state

    @property
    def connection(self) -> sqlite3.Connection:
        """For questions about the tables of other systems. Writing raises sqlite3.OperationalError."""
        return self._connection

    def _has_table(self, name: str) -> bool:
        asked = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ? COLLATE NOCASE"
        return self._connection.execute(asked, (name,)).fetchone() is not None

    def experiments(self) -> list[Experiment]:
        """All of them, by name. DamagedShardError where there is no such table."""
        if not self._has_table("experiments"):
            raise DamagedShardError("the database has no table of experiments")
        rows = self._connection.execute("SELECT id_experiment, name FROM experiments ORDER BY name").fetchall()
        return [Experiment(row[0], row[1]) for row in rows if isinstance(row[0], str) and isinstance(row[1], str)]

    def row(self, id_experiment: str) -> Row | None:
        asked = "SELECT meta, fields FROM experiments WHERE id_experiment = ?"
        found = self._connection.execute(asked, (id_experiment,)).fetchone()
        if found is None:
            return None
        return Row(*(item if isinstance(item, bytes) else None for item in found))

    def runs(self, table: str, id_experiment: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """The columns of an experiment's runs, and the rows one by one: id of the run first. Others whose names come
        to the same share the table. DamagedShardError where there is no such table: a persist that failed."""
        if not self._has_table(table):
            raise DamagedShardError(f"the table {table!r} of its runs is missing: it was not persisted to the end")
        name = table.replace('"', '""')
        head = self._connection.execute(f'SELECT * FROM "{name}" LIMIT 0')
        columns = [column[0] for column in head.description]
        if "id_experiment" not in columns or "id_run" not in columns:
            raise DamagedShardError(f"the table {table!r} is none of runs")
        chosen = [column for column in columns if column not in ("id_experiment", "id_run")]
        listed = ", ".join('"' + column.replace('"', '""') + '"' for column in ("id_run", *chosen))
        asked = f'SELECT {listed} FROM "{name}" WHERE id_experiment = ? ORDER BY rowid'
        return chosen, iter(self._connection.execute(asked, (id_experiment,)))


def table_of(name: str) -> str:
    """The table of the runs of an experiment called `name`, where its meta does not say it."""
    return re.sub("[^0-9a-zA-Z]+", "_", f"experiment_{name}").strip("_").lower()


def _state(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
