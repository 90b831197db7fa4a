"""Superduper stores for tests: small ones made row by row, and who opens files in them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent.parent / "data" / "superduper"
CASES = sorted(path.parent.name for path in DATA.glob("*/manifest.json"))

_OPENED, _IS_DIRECTORY = 0x20, 0x40000000


def url_of(folder: Path) -> str:
    """The URL of a store whose database and artifacts lie in one directory."""
    return f"superduper+sqlite://{folder}/db.sqlite?artifacts={folder}/artifacts"


def table_of(manifest: dict[str, Any]) -> str:
    """The one table of a fixture."""
    return str(manifest["references"][0]["path"][0])


class Made:
    """A store as release 0.10 has it, in a directory."""

    def __init__(self, folder: Path, fields: dict[str, str], name: str = "t", primary_id: str = "id") -> None:
        self.folder, self.name, self.fields = folder, name, fields
        self.artifacts = folder / "artifacts"
        self.artifacts.mkdir(parents=True, exist_ok=True)
        self.url = url_of(folder)
        with self.writing() as db:
            db.execute(
                'CREATE TABLE IF NOT EXISTS "Table" ("identifier" TEXT, "fields" TEXT, "primary_id" TEXT, "path" TEXT,'
                ' "version" INTEGER, "uuid" TEXT)'
            )
            if db.execute('SELECT 1 FROM "Table" WHERE identifier = ?', (name,)).fetchone() is not None:
                return  # it was made before
            row = (name, json.dumps(fields), primary_id, None, 0, f"uuid-{name}")
            db.execute('INSERT INTO "Table" VALUES (?, ?, ?, ?, ?, ?)', row)
            columns = ", ".join(f'"{column}"' for column in fields)
            db.execute(f'CREATE TABLE "{name}" ({columns})')

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.folder / "db.sqlite")
        try:
            with db:
                yield db
        finally:
            db.close()

    def row(self, **values: Any) -> None:
        named = ", ".join(f'"{column}"' for column in values)
        with self.writing() as db:
            places = ", ".join("?" for _ in values)
            db.execute(f'INSERT INTO "{self.name}" ({named}) VALUES ({places})', list(values.values()))

    def rows(self, rows: list[dict[str, Any]], replace: bool = False) -> None:
        """Add rows that have all columns, in one commit; `replace`: in the place of those that are there."""
        with self.writing() as db:
            if replace:
                db.execute(f'DELETE FROM "{self.name}"')
            places = ", ".join("?" for _ in self.fields)
            db.executemany(
                f'INSERT INTO "{self.name}" VALUES ({places})', [[row[name] for name in self.fields] for row in rows]
            )

    def blob(self, name: str, data: bytes) -> str:
        (self.artifacts / name).write_bytes(data)
        return f"&:blob:{name}"

    def file(self, name: str, files: dict[str, bytes]) -> str:
        """A file artifact; a path that ends in `/` is an empty directory."""
        for path, data in files.items():
            where = self.artifacts / name / path
            if path.endswith("/"):
                where.mkdir(parents=True)
            else:
                where.parent.mkdir(parents=True, exist_ok=True)
                where.write_bytes(data)
        return f"&:file:{name}"


class Opens:
    """Counts who opens files in some directories, by asking the kernel (inotify)."""

    def __init__(self, *folders: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for folder in folders:
            for where, _, _ in os.walk(folder):
                assert self._libc.inotify_add_watch(self._descriptor, os.fsencode(where), _OPENED) >= 0

    def files(self) -> list[str]:
        """Names of the files that were opened since this was last asked; directories do not count."""
        names = []
        while True:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return names
            at = 0
            while at < len(data):
                _, mask, _, length = struct.unpack_from("iIII", data, at)
                if not mask & _IS_DIRECTORY:
                    names.append(data[at + 16 : at + 16 + length].rstrip(b"\0").decode())
                at += 16 + length

    def close(self) -> None:
        os.close(self._descriptor)
