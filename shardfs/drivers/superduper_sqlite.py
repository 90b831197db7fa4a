"""Superduper's tables in an SQLite file: which there are, of which types, and their rows. Never written to here.

Knows nothing of artifacts or files. Source: what superduperdb 0.2, superduper-framework 0.3 and 0.10 write.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardfs import config
from shardfs.drivers.mltraq_database import Database
from shardfs.drivers.superduper_insert import insert_sqlite, quoted
from shardfs.drivers.superduper_types import MIDDLE, NEW, OLD, ColumnType, Layout, TableInfo, as_dict, component_types
from shardfs.errors import BadStoreError, DamagedShardError, StorageError

_SYSTEM = frozenset(("COMPONENT", "JOB", "META", "PARENT_CHILD_ASSOCIATION", "ARTIFACT_RELATIONS"))
"""Tables of 0.2 to 0.5 that hold no rows of users."""


class SqliteTables:
    """The tables in one file. Thread-safe: each question opens the file anew."""

    kind = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        if not os.path.isfile(self.path):
            raise BadStoreError(f"no SQLite file at {self.path}")
        with open(self.path, "rb") as file:
            if file.read(16) not in (b"SQLite format 3\0", b""):
                raise BadStoreError(f"{self.path} is no SQLite file")
        self._database = Database(self.path)

    def state(self) -> str:
        """A text that is different after each change of any table, whoever made it. StorageError."""
        return f"{self._database.state()}-{self._changes()}"

    def _changes(self) -> str:
        """How often the file was changed, as its header says: two changes may come between two ticks of its clock."""
        try:
            with open(self.path, "rb") as file:
                return file.read(28)[24:].hex()
        except OSError as error:
            raise StorageError(f"opening {self.path}: {error.strerror}", error.errno or errno.EIO) from error

    @property
    def mtime_ns(self) -> int:
        return self._database.mtime_ns()

    @property
    def size(self) -> int:
        """Bytes of the file and of its log."""
        total = 0
        for ending in ("", "-wal"):
            with contextlib.suppress(OSError):
                total += os.stat(f"{self.path}{ending}").st_size
        return total

    def tables(self) -> tuple[list[TableInfo], Layout]:
        """All tables with rows of users, in the order of their making;
        and which layout the store has."""
        with self._database.snapshot() as snapshot:
            connection = snapshot.connection
            query = (
                "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            )
            made = dict(connection.execute(query).fetchall())
            # a virtual table's rows are made by code, and come from wherever that takes them
            present = [
                name
                for name, sql in made.items()
                if not name.startswith("sqlite_") and not str(sql).upper().startswith("CREATE VIRTUAL")
            ]
            columns = {name: _columns(connection, name) for name in present}
            if "Table" in columns and {"identifier", "fields", "primary_id"} <= set(columns["Table"]):
                return self._new(connection, columns), NEW
            if "COMPONENT" in columns and {"type_id", "dict", "identifier"} <= set(columns["COMPONENT"]):
                return self._old(connection, columns), MIDDLE if "uuid" in columns["COMPONENT"] else OLD
            return [TableInfo(name, "id", {}) for name in present], NEW

    @staticmethod
    def _new(connection: sqlite3.Connection, columns: dict[str, list[str]]) -> list[TableInfo]:
        """0.10: a row of `Table` for each; those of users have no class behind them."""
        query = 'SELECT identifier, fields, primary_id, path, version FROM "Table" ORDER BY version'
        infos: dict[str, TableInfo] = {}
        system = {"Table"}
        for name, fields, primary_id, path, _ in connection.execute(query).fetchall():
            if path:
                system.add(name)
                continue
            named = {str(column): ColumnType(str(kind), text=True) for column, kind in _object(fields).items()}
            infos[name] = TableInfo(name, str(primary_id or "id"), named)
        return [infos.get(name) or TableInfo(name, "id", {}) for name in columns if name not in system]

    @staticmethod
    def _old(connection: sqlite3.Connection, columns: dict[str, list[str]]) -> list[TableInfo]:
        """0.2 to 0.5: components, each with a JSON text that says what it is made of."""
        query = "SELECT id, identifier, version, type_id, dict FROM COMPONENT ORDER BY version"
        components = [
            (str(number), str(kind), str(name), _object(text))
            for number, name, _, kind, text in connection.execute(query).fetchall()
        ]
        return component_types([name for name in columns if name not in _SYSTEM], components)

    def rows(self, table: TableInfo) -> Iterator[dict[str, Any]]:
        """All rows as they are stored, in the order in which they came. StorageError, DamagedShardError."""
        limit = max(config.BOMB_FLOOR, config.BOMB_RATIO["gz"] * self.size)
        with self._database.snapshot() as snapshot:
            cursor = snapshot.connection.execute(f"SELECT * FROM {quoted(table.name)}")
            names = [str(column[0]) for column in cursor.description]
            held = 0
            for row in cursor:
                held += sum(len(value) for value in row if isinstance(value, str | bytes)) + len(row)
                if held > limit:
                    raise DamagedShardError(f"{table.name} holds more than its file can hold in earnest")
                yield dict(zip(names, row, strict=True))

    def texts(self) -> Iterator[str]:
        """All texts, and all bytes as if they were, in all tables: for finding what is referred to. StorageError."""
        with self._database.snapshot() as snapshot:
            connection = snapshot.connection
            names = [str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in names:
                for row in connection.execute(f"SELECT * FROM {quoted(name)}"):
                    for value in row:
                        if isinstance(value, str | bytes):
                            yield value if isinstance(value, str) else value.decode("latin-1")

    def insert(self, table: TableInfo, row: dict[str, Any], layout: Layout) -> None:
        """See insert_sqlite."""
        insert_sqlite(self.path, table, row)


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [str(row[1]) for row in connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall()]


def _object(text: Any) -> dict[str, Any]:
    """A JSON object in a text; an empty one for what is none."""
    try:
        return as_dict(json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return {}


__all__ = ["SqliteTables"]
