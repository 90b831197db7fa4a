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
from shardfs.drivers.superduper_types import ColumnType, TableInfo
from shardfs.errors import BadStoreError, DamagedShardError, StorageError

_SYSTEM = frozenset(("COMPONENT", "JOB", "META", "PARENT_CHILD_ASSOCIATION", "ARTIFACT_RELATION"))
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

    def tables(self) -> tuple[list[TableInfo], bool]:
        """All tables with rows of users, in the order of their making; and whether blobs are named by their SHA-1 (up
        to 0.5 they are)."""
        with self._database.snapshot() as snapshot:
            connection = snapshot.connection
            query = (
                "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            )
            made = dict(connection.execute(query).fetchall())
            # a virtual table's rows are made by code, and come from wherever that takes them
            present = [name for name, sql in made.items() if not str(sql).upper().startswith("CREATE VIRTUAL")]
            columns = {name: _columns(connection, name) for name in present}
            if "Table" in columns and {"identifier", "fields", "primary_id"} <= set(columns["Table"]):
                return self._new(connection, columns), False
            if "COMPONENT" in columns and {"type_id", "dict", "identifier"} <= set(columns["COMPONENT"]):
                return self._old(connection, columns), True
            return [TableInfo(name, "id", {}) for name in present], False

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
        found: dict[tuple[str, str], dict[str, Any]] = {}
        by_id: dict[str, dict[str, Any]] = {}
        for number, name, _, kind, text in connection.execute(query).fetchall():
            by_id[str(number)] = found[str(kind), str(name)] = _object(text)
        infos = []
        for name in columns:
            if name in _SYSTEM:
                continue
            table = found.get(("table", name), {})
            schema = _component(table.get("schema"), by_id, found)
            fields = {
                str(column): _datatype(kind, by_id, found) for column, kind in _as_dict(schema.get("fields")).items()
            }
            infos.append(TableInfo(name, str(table.get("primary_id") or "id"), fields))
        return infos

    def rows(self, table: TableInfo) -> Iterator[dict[str, Any]]:
        """All rows as they are stored, in the order in which they came. StorageError, DamagedShardError."""
        limit = max(config.BOMB_FLOOR, config.BOMB_RATIO["gz"] * self.size)
        with self._database.snapshot() as snapshot:
            cursor = snapshot.connection.execute(f"SELECT * FROM {_quoted(table.name)}")
            names = [str(column[0]) for column in cursor.description]
            held = 0
            for row in cursor:
                held += sum(len(value) for value in row if isinstance(value, str | bytes)) + len(row)
                if held > limit:
                    raise DamagedShardError(f"{table.name} holds more than its file can hold in earnest")
                yield dict(zip(names, row, strict=True))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [str(row[1]) for row in connection.execute(f"PRAGMA table_info({_quoted(table)})").fetchall()]


def _object(text: Any) -> dict[str, Any]:
    """A JSON object in a text; an empty one for what is none."""
    try:
        return _as_dict(json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return {}


def _as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _component(value: Any, by_id: dict[str, Any], found: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """What a reference to a component means (`&:component:<type>:<identifier>:<uuid>`): that one, else the latest."""
    if not isinstance(value, str):
        return _as_dict(value)
    parts = value.split(":")
    if len(parts) < 4 or parts[:2] != ["&", "component"]:
        return {}
    by_name = found.get((parts[2], ":".join(parts[3:-1])), {})
    return _as_dict(by_id.get(parts[-1]) or by_name)


def _datatype(value: Any, by_id: dict[str, Any], found: dict[tuple[str, str], Any]) -> ColumnType:
    if isinstance(value, str) and not value.startswith("&:component:"):
        return ColumnType(value.removeprefix("?"))
    made = _component(value, by_id, found)
    name = str(value).split(":")[3] if isinstance(value, str) and value.count(":") >= 4 else ""
    encodable, media = made.get("encodable"), made.get("media_type")
    name = str(made.get("identifier") or name)
    in_text = str(made.get("bytes_encoding", "Bytes")).lower() in ("str", "base64")
    return ColumnType(name, str(encodable or "native"), str(media) if media else None, in_text)


__all__ = ["SqliteTables"]
