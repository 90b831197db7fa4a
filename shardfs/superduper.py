"""Superduper's artifacts and documents in Python, without Superduper.

    store = open_store("superduper+sqlite:///data/db.sqlite?artifacts=/data/artifacts")
    document = store.get("my_collection")[0]
    document["x"]             # an Artifact: nothing of it is read yet
    document["x"].unpack()    # 'This is a test'
    document.unpack()         # the whole document, with all its artifacts
    insert(store, "my_collection", {"id": "new", "x": artifact("This is a test"), "d": file("./folder")})

`open_store(..., encodable="artifact")` has documents come with what their artifacts hold. Nothing that lies in a store
is ever run: a pickle of more than plain values stays a `values.Pickle` with its bytes.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardfs.drivers.garbage import Garbage
from shardfs.drivers.superduper import SuperduperDriver
from shardfs.drivers.superduper_python import EMPTY, Artifact, Document, FileArtifact, plain_pickle
from shardfs.errors import BadSettingError
from shardfs.model import Key
from shardfs.store import Store

_PROTOCOL = 4
"""Of the pickles written here: what `pickle.dumps` makes unasked in the Pythons that Superduper runs in, so that equal
values have equal ids whoever stores them."""


@dataclass(frozen=True, slots=True)
class NewArtifact:
    """A blob to be stored with the document that it is in."""

    data: bytes


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file, or a directory with all in it, to be stored with the document that it is in."""

    path: Path


def artifact(value: Any) -> NewArtifact:
    """A value for a column of `encodable='artifact'`: bytes as they are, plain values (None, bool, numbers, texts,
    lists, tuples, dicts, sets) as a pickle. BadSettingError for others: encode them as their DataType does, into
    bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return NewArtifact(bytes(value))
    try:
        data = pickle.dumps(value, _PROTOCOL)
        plain_pickle(data)
    except Exception as error:
        raise BadSettingError(f"a {type(value).__name__} is no plain value: give its bytes ({error})") from error
    return NewArtifact(data)


def lazy_artifact(value: Any) -> NewArtifact:
    """The same for a column of `encodable='lazy_artifact'`: the two are stored alike, and differ when they are read."""
    return artifact(value)


def file(path: str | os.PathLike[str]) -> NewFile:
    """A file or a directory for a column of `encodable='file'`; its content is copied into the artifact store."""
    return NewFile(Path(path))


def put(store: Store, value: NewArtifact | NewFile | bytes) -> str:
    """Store one artifact, durably, unless the store has it; its reference (`&:blob:<id>`, `&:file:<id>`). The id is
    made of the content. What is there is never written over. BadSettingError, StorageError, DamagedShardError."""
    driver = _driver(store)
    if isinstance(value, NewFile):
        return driver.put_file(value.path)
    return driver.put_bytes(value.data if isinstance(value, NewArtifact) else bytes(value))


def insert(store: Store, table: str, document: dict[str, Any]) -> None:
    """Add one row. Its artifacts are stored first and the row last: whoever sees the row finds them.

    Arrays fit columns of `array[...]` (and `numpy-...[...]`), dicts and lists JSON columns. MissingKeyError for a table
    that is not there, KeyExistsError for a primary id that is, BadSettingError for what a column cannot hold,
    StorageError. Nothing of Superduper runs: no listener hears of the row.
    """
    driver = _driver(store)
    row = {name: _stored(value, store) for name, value in document.items()}
    driver.insert(Key(table), row)


def _stored(value: Any, store: Store) -> Any:
    if isinstance(value, NewArtifact | NewFile):
        return put(store, value)
    if isinstance(value, Artifact | FileArtifact):
        raise BadSettingError(f"{value!r} is of a document that was read: give its content to artifact() or file()")
    if isinstance(value, dict):
        return {name: _stored(item, store) for name, item in value.items()}
    return [_stored(item, store) for item in value] if isinstance(value, list) else value


def orphans(store: Store) -> list[Garbage]:
    """The artifacts that nothing in the store's database refers to, as `shardfs gc` lists them. Changes nothing.
    BadStoreError for a directory of artifacts alone, StorageError."""
    return _driver(store).garbage()


def _driver(store: Store) -> SuperduperDriver:
    if not isinstance(store.driver, SuperduperDriver):
        raise BadSettingError(f"{store.url} is no store of Superduper")
    return store.driver


__all__ = [
    "EMPTY",
    "Artifact",
    "Document",
    "FileArtifact",
    "NewArtifact",
    "NewFile",
    "artifact",
    "file",
    "insert",
    "lazy_artifact",
    "orphans",
    "plain_pickle",
    "put",
]
