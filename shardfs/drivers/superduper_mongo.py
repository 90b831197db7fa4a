"""Superduper's tables in a MongoDB database: collections, their types, and their documents. Only asked, never written.

Works with any object that answers as pymongo's Database does. Knows nothing of artifacts or files. Source: what
superduperdb 0.2 and superduper-framework 0.3 and 0.10 write.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from shardfs import config
from shardfs.drivers.superduper_insert import insert_document
from shardfs.drivers.superduper_types import MIDDLE, NEW, OLD, ColumnType, Layout, TableInfo, as_dict, component_types
from shardfs.errors import BadSettingError, MissingExtraError, StorageError

_SYSTEM = frozenset(
    (
        "_meta",
        "_objects",
        "_jobs",
        "_parent_child_mappings",
        "_artifact_relations",
        "_cdc_tables",
        "fs.files",
        "fs.chunks",
    )
)
"""Collections of 0.2 to 0.5 that hold no documents of users, and those of GridFS."""

_PAUSE = 10
"""Whether anything was changed is asked for at most one part in this many of the time: all documents are read for
it."""


class MongoTables:
    """The collections of one database. Thread-safe, as pymongo is."""

    kind = "mongodb"

    def __init__(self, database: Any) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._state, self._due, self._seen = "", 0.0, 0
        self.size = 0
        """Bytes of all documents, as they were last read."""

    def state(self) -> str:
        """A hash of all documents. A database tells no more cheaply whether one was changed; it is asked anew when
        that is a small part of what is done. StorageError."""
        with self._lock:
            began = time.monotonic()
            if self._state and began < self._due:
                return self._state
            made = self._digest()
            took = time.monotonic() - began
            self._due = time.monotonic() + _PAUSE * took
            if made != self._state:
                self._state, self._seen = made, time.time_ns()
            return made

    def _digest(self) -> str:
        made, size = hashlib.blake2b(digest_size=16), 0
        with _told():
            for name in sorted(self._database.list_collection_names()):
                made.update(f"\0\0{name}\0".encode("utf-8", "surrogatepass"))
                for document in self._database[name].find({}).sort("_id", 1):
                    text = repr(document).encode("utf-8", "surrogatepass")
                    made.update(text)
                    size += len(text)
        self.size = size
        return made.hexdigest()

    @property
    def mtime_ns(self) -> int:
        """When a change was seen last: documents have no times."""
        return self._seen

    def tables(self) -> tuple[list[TableInfo], Layout]:
        """All collections with documents of users, by name; and which layout the store has."""
        with _told():
            names = sorted(name for name in self._database.list_collection_names() if not name.startswith("system."))
            if "Table" in names:
                return self._new(names), NEW
            components = list(self._database["_objects"].find({})) if "_objects" in names else []
        shown = [name for name in names if name not in _SYSTEM]
        layout = (MIDDLE if any("status" in made for made in components) else OLD) if components else NEW
        return component_types(shown, [_component(document) for document in components]), layout

    def _new(self, names: list[str]) -> list[TableInfo]:
        """0.10: a document of `Table` for each; those of users have no class behind them."""
        infos: dict[str, TableInfo] = {}
        system = {"Table", *_SYSTEM}
        for document in self._database["Table"].find({}).sort("version", 1):
            name = str(document.get("identifier"))
            if document.get("path"):
                system.add(name)
                continue
            named = {str(column): ColumnType(str(kind)) for column, kind in as_dict(document.get("fields")).items()}
            infos[name] = TableInfo(name, str(document.get("primary_id") or "id"), named)
        return [infos.get(name) or TableInfo(name, "id", {}) for name in names if name not in system]

    def rows(self, table: TableInfo) -> Iterator[dict[str, Any]]:
        """All documents, by `_id`. StorageError."""
        with _told():
            yield from self._database[table.name].find({}).sort("_id", 1)

    def texts(self) -> Iterator[str]:
        """All documents as texts: for finding what is referred to. StorageError."""
        with _told():
            for name in self._database.list_collection_names():
                for document in self._database[name].find({}):
                    yield repr(document)

    def insert(self, table: TableInfo, row: dict[str, Any], layout: Layout) -> None:
        """See insert_document."""
        with _told():
            insert_document(self._database[table.name], table, row, layout)
        with self._lock:
            self._due = 0.0


def _component(document: dict[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
    """(id, type, identifier, what it is made of) of a component; some versions have that under `dict`."""
    made = {**as_dict(document.get("dict")), **document}
    return str(made.get("uuid") or made.get("_id")), str(made.get("type_id")), str(made.get("identifier")), made


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of the database as ours."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("pymongo", "bson", "mongomock")):
            raise
        raise StorageError(f"the MongoDB database: {error}") from error


def open_database(server: str, path: str, settings: dict[str, str]) -> MongoTables:
    """`[USER:PASSWORD@]HOST[:PORT]`, `/DATABASE`, and settings of pymongo's. MissingExtraError, BadSettingError,
    StorageError."""
    try:
        import pymongo
    except ImportError as error:
        raise MissingExtraError("MongoDB needs the package pymongo: pip install 'shardfs[mongodb]'") from error
    name = path.strip("/")
    if not name or "/" in name:
        raise BadSettingError(f"{path!r}: name one database: superduper+mongodb://HOST/DATABASE?artifacts=DIR")
    query = f"?{urlencode(settings)}" if settings else ""
    with _told():
        client: Any = pymongo.MongoClient(
            f"mongodb://{server}/{name}{query}",
            serverSelectionTimeoutMS=int(config.DATABASE_WAIT * 1000),
            tz_aware=True,
        )
        try:
            client.admin.command("ping")
        except BaseException:
            client.close()
            raise
        made = MongoTables(client[name])
        weakref.finalize(made, client.close)
        return made


__all__ = ["MongoTables", "open_database"]
