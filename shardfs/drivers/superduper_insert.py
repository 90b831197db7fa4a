"""New rows in Superduper's tables: what each column holds for a value, and how a row gets into a database.

Knows nothing of where artifacts lie. What a row must look like is what superduperdb 0.2 and superduper-framework 0.3
and 0.10 read; nothing of the library runs, so no listener or job of it is started by a row that comes this way.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from shardfs import config
from shardfs.drivers.superduper_types import UNKNOWN, ColumnType, Layout, TableInfo
from shardfs.errors import BadSettingError, KeyExistsError, StorageError

_VALIDATION = 0.05
"""Share of rows that become `valid` and not `train`: the library's own, up to 0.5."""

_FOLD = "_fold"


def fold() -> str:
    return "valid" if random.random() < _VALIDATION else "train"


def cell(value: Any, kind: ColumnType, where: str, native: bool) -> Any:
    """What a database holds for a value: references are texts already. `native`: a database that has dicts and lists.
    BadSettingError for what the column cannot hold."""
    if isinstance(value, np.ndarray):
        return _array(value, kind, where, native)
    if isinstance(value, np.generic):
        return cell(value.item(), kind, where, native)
    if isinstance(value, dict | list | tuple):
        if native:
            return list(value) if isinstance(value, tuple) else value
        try:
            return json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise BadSettingError(f"{where}: {error}") from error
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return base64.b64encode(data).decode("ascii") if kind.text and not native else data
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BadSettingError(f"{where}: a {type(value).__name__}, which no column holds; use artifact() or file()")


def _array(value: np.ndarray[Any, Any], kind: ColumnType, where: str, native: bool) -> Any:
    fitting = kind.array(value.nbytes)
    if fitting is None or fitting != (value.dtype, value.shape):
        raise BadSettingError(f"{where}: an array of {value.dtype} and shape {value.shape} in a column of {kind.name}")
    return cell(value.tobytes("C"), kind, where, native)


def insert_sqlite(path: Path, table: TableInfo, row: dict[str, Any]) -> None:
    """Add one row, durably. KeyExistsError where its primary id is taken; BadSettingError, StorageError."""
    name = quoted(table.name)
    try:
        connection = sqlite3.connect(path, timeout=config.DATABASE_WAIT, isolation_level=None)
        with contextlib.closing(connection):
            columns = [str(found[1]) for found in connection.execute(f"PRAGMA table_info({name})").fetchall()]
            unknown = [column for column in row if column not in columns]
            if unknown:
                raise BadSettingError(f"{table.name} has no column {unknown[0]!r}; it has: {', '.join(columns)}")
            if _FOLD in columns:
                row = {_FOLD: fold(), **row}
            cells = [cell(value, table.columns.get(column, UNKNOWN), column, False) for column, value in row.items()]
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("BEGIN IMMEDIATE")
            taken = f"SELECT 1 FROM {name} WHERE {quoted(table.primary_id)} = ?"
            if connection.execute(taken, (row[table.primary_id],)).fetchone() is not None:
                raise KeyExistsError(f"{table.name} has a row {row[table.primary_id]!r}")
            places = ", ".join("?" for _ in row)
            named = ", ".join(quoted(column) for column in row)
            connection.execute(f"INSERT INTO {name} ({named}) VALUES ({places})", cells)
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise StorageError(f"writing to {path}: {error}") from error


def insert_document(collection: Any, table: TableInfo, row: dict[str, Any], layout: Layout) -> None:
    """The same for a MongoDB collection; documents of 0.2 and 0.3 have some members more."""
    made = {column: cell(value, table.columns.get(column, UNKNOWN), column, True) for column, value in row.items()}
    if layout.mangled:
        made = {_FOLD: fold(), **made, "_schema": table.schema, "_builds": {}, "_files": {}, "_blobs": {}}
    if collection.find_one({table.primary_id: row[table.primary_id]}) is not None:
        raise KeyExistsError(f"{table.name} has a row {row[table.primary_id]!r}")
    collection.insert_one(made)


def quoted(name: str) -> str:
    """A name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'
