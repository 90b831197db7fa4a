"""mltraq stores for tests: databases of experiments and their datastores, row by row as the library lays them out."""

from __future__ import annotations

import io
import pickle
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shardfs.opening import open_store
from shardfs.store import Store

ID = "93c2937971d948a284ecf2852f494fb2"
RUN = "f3e5c0d43823449e96c4d4b904171683"


def dumps(value: Any) -> bytes:
    return pickle.dumps(value, protocol=5)


def packed(kind: str, value: Any) -> dict[str, Any]:
    return {"DATAPAK-0": kind, "value": value}


def array(value: np.ndarray[Any, Any]) -> dict[str, Any]:
    """An array as the library has it in its pickles."""
    return packed("numpy.ndarray-0", npy(value))


def meta(table: str, serialised: tuple[str, ...] = (), **types: str) -> bytes:
    columns = packed("mltraq.Bunch-0", {"types": types, "serialized": list(serialised), "non_serialized": []})
    runs = packed("mltraq.Bunch-0", {"count": 1, "table_name": table, "columns": columns})
    return dumps(packed("mltraq.Bunch-0", {"runs": runs}))


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """An array as mltraq packs it."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


class Experiments:
    """A database and its datastore, as mltraq lays them out."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "exp.db"
        self.datastore = folder / "mltraq.datastore"
        self.datastore.mkdir(parents=True, exist_ok=True)
        with self.writing() as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS experiments (id_experiment CHAR(32) PRIMARY KEY, name VARCHAR UNIQUE,"
                " meta BLOB, fields BLOB, unsafe_pickle BLOB)"
            )

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are committed at the end, when it is closed."""
        with closing(self.connect()) as database, database:
            yield database

    def add(
        self,
        name: str = "e",
        cells: dict[str, Any] | None = None,
        *,
        id_experiment: str = ID,
        table: str = "experiment_e",
        fields: bytes | None = None,
        serialised: tuple[str, ...] | None = None,
        run: str | None = RUN,
        **types: str,
    ) -> None:
        """One experiment with one run; cells that are bytes are blobs unless `serialised` says which are."""
        cells = cells or {}
        blobs = tuple(cell for cell, value in cells.items() if isinstance(value, bytes))
        said = meta(table, blobs if serialised is None else serialised, **types)
        with self.writing() as database:
            row = (id_experiment, name, said, dumps({}) if fields is None else fields, b"not to be touched")
            database.execute("INSERT INTO experiments VALUES (?, ?, ?, ?, ?)", row)
            columns = "".join(f', "{cell}"' for cell in cells)
            database.execute(f'CREATE TABLE IF NOT EXISTS "{table}" (id_experiment CHAR(32), id_run CHAR(32){columns})')
            marks = ", ?" * len(cells)
            database.execute(f'INSERT INTO "{table}" VALUES (?, ?{marks})', (id_experiment, run, *cells.values()))

    def add_runs(
        self, name: str, fields: dict[str, Any], runs: list[dict[str, Any]], ids: list[str], replace: bool = False
    ) -> None:
        """An experiment with these fields and runs, in one commit; `replace`: in the place of the one of that name."""
        own, table = uuid.uuid5(uuid.NAMESPACE_URL, name).hex, f"experiment_{name}"
        blobs = tuple(cell for cell, value in fields.items() if not isinstance(value, str | int))
        columns = "".join(f', "{cell}"' for cell in fields)
        with self.writing() as database:
            if replace:
                database.execute("DELETE FROM experiments WHERE id_experiment = ?", (own,))
                database.execute(f'DROP TABLE "{table}"')
            row = (own, name, meta(table, blobs), dumps(fields), b"not to be touched")
            database.execute("INSERT INTO experiments VALUES (?, ?, ?, ?, ?)", row)
            database.execute(f'CREATE TABLE "{table}" (id_experiment CHAR(32), id_run CHAR(32){columns})')
            for run, said in zip(ids, runs, strict=True):
                cells = [dumps(value) if cell in blobs else value for cell, value in said.items()]
                marks = ", ?" * len(cells)
                database.execute(f'INSERT INTO "{table}" VALUES (?, ?{marks})', (own, run.replace("-", ""), *cells))

    def open(self) -> Store:
        return open_store(f"mltraq+sqlite:///{self.path}")

    def file(self, name: str, data: bytes) -> str:
        path = self.datastore / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return f"file:///{name}"
