"""What Python is given for Superduper's rows: documents, with an object for each artifact, read when it is asked.

Nothing that lies in a store is run: of pickles only those of plain values are read (`pickle_spans`), any other stays
the bytes that it is. Knows nothing of databases or of how rows are stored.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shardfs import config, pickle_spans, values
from shardfs.errors import DamagedShardError, StaleShardError, StorageError
from shardfs.storage.local import LocalStorage
from shardfs.values import Tree

if TYPE_CHECKING:
    from shardfs.drivers.linked import Object
    from shardfs.drivers.superduper_shard import SuperduperShard

ENCODABLE = ("lazy_artifact", "artifact")
"""What `encodable` can be: artifacts as objects, or as what they hold."""


class _Empty:
    """Stands for what was not read yet."""

    def __repr__(self) -> str:
        return "<EMPTY>"


EMPTY = _Empty()


class Artifact:
    """A blob of the artifact store that a document refers to. Nothing of it is read before `unpack` or `read`.

    `id` is its name there, `size` its bytes, `ext` the extension of the file that shows it, `path` where it lies. `x`
    is what `unpack` gave last, EMPTY before.
    """

    def __init__(self, storage: LocalStorage, thing: Object, ext: str, header: bytes) -> None:
        self._storage = storage
        self._thing = thing
        self._header = header
        self.id = thing.name.rpartition("/")[2]
        self.size = thing.size
        self.ext = ext
        self.path: Path = storage.root / thing.name
        self.x: Any = EMPTY

    def read(self) -> bytes:
        """The blob's bytes, compared with its SHA-1 where its id is that. StaleShardError for one that was changed
        since the document was read, DamagedShardError, StorageError."""
        thing = self._thing
        try:
            with self._storage.open(thing.name, thing.version) as reader:
                data = reader.read_at(0, thing.size)
        except StorageError as error:
            if error.errno in config.GONE:
                raise StaleShardError(f"{thing.name} is not in {self._storage.root} any more") from error
            raise
        if thing.sha1 is not None and hashlib.sha1(data, usedforsecurity=False).hexdigest() != thing.sha1:
            raise DamagedShardError(f"{thing.name} in {self._storage.root} does not hold what its SHA-1 is of")
        return data

    def unpack(self) -> Any:
        """What the blob holds: an array, JSON, the plain values of a pickle; its bytes for all else. A pickle of more
        than plain values is a `values.Pickle`, which has its bytes as `data`. Errors as `read`."""
        self.x = decoded(self.read(), self.ext, self._header)
        return self.x

    def __repr__(self) -> str:
        return f"Artifact(id={self.id!r}, ext={self.ext!r}, size={self.size}, x={_short(self.x)})"


class FileArtifact:
    """A file or a directory of the artifact store that a document refers to; `id` is its name there. Nothing is copied:
    `path` is where it lies in the store, for reading only, and so is what `unpack` gives."""

    def __init__(self, storage: LocalStorage, folder: values.Folder) -> None:
        entries = {path.partition("/")[0] for path, _, _ in folder.files}
        self.id = folder.name.rpartition("/")[2]
        self.path: Path = storage.root / folder.name / (entries.pop() if len(entries) == 1 else "")
        self.files: list[str] = [path for path, _, _ in folder.files if not path.endswith("/")]
        """Paths of all files, below the directory of its id."""

    def unpack(self) -> str:
        """The path, as Superduper itself gives it."""
        return str(self.path)

    def __repr__(self) -> str:
        return f"FileArtifact(id={self.id!r}, path={str(self.path)!r})"


class Document(dict[str, Any]):
    """A row: its columns by name, an Artifact or a FileArtifact for what lies in the artifact store."""

    def unpack(self) -> dict[str, Any]:
        """The row with each artifact in it unpacked, however deep it is. Errors as Artifact.unpack."""
        made: dict[str, Any] = unpacked(dict(self))
        return made


def unpacked(value: Any) -> Any:
    """A value with what is in it unpacked."""
    if isinstance(value, Artifact | FileArtifact):
        return value.unpack()
    if isinstance(value, dict):
        return {name: unpacked(item) for name, item in value.items()}
    return [unpacked(item) for item in value] if isinstance(value, list) else value


def lazy(tree: Tree, shard: SuperduperShard) -> Document:
    """A row with its artifacts unread."""
    return Document({name: _value(item, shard) for name, item in tree.items()})


def eager(tree: Tree, shard: SuperduperShard) -> Document:
    """A row with its artifacts unpacked."""
    return Document(lazy(tree, shard).unpack())


def _value(tree: Tree, shard: SuperduperShard) -> Any:
    if isinstance(tree, dict):
        return {name: _value(item, shard) for name, item in tree.items()}
    if isinstance(tree, list):
        return [_value(item, shard) for item in tree]
    if isinstance(tree, values.Linked):
        return Artifact(shard.storage, shard.object_at(tree.offset), tree.ext, tree.header)
    if isinstance(tree, values.Folder):
        return FileArtifact(shard.storage, tree)
    if isinstance(tree, values.Pickle):
        return decoded(bytes(shard.raw[tree.offset : tree.offset + tree.length]), "pkl", b"")
    return tree.value(shard.raw) if hasattr(tree, "content") else tree


_PICKLE = re.compile(rb"\x80[\x02-\x05]")


def decoded(data: bytes, ext: str, header: bytes) -> Any:
    """What bytes hold by the extension that they are shown with; where that says nothing, a pickle of plain values is
    what it holds, too."""
    if header:
        return np.lib.format.read_array(io.BytesIO(header + data), allow_pickle=False, max_header_size=len(header))
    if ext == "json":
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return data
    if ext not in ("pkl", "bin") or not _PICKLE.match(data):
        return data
    try:
        return plain_pickle(data)
    except pickle_spans.PickleRefusedError:
        return values.Pickle(0, len(data), data) if ext == "pkl" else data


def plain_pickle(data: bytes) -> Any:
    """The value of a pickle of plain values. `pickle_spans.PickleRefusedError` for any other; nothing is run."""
    raw = memoryview(data)
    steps = pickle_spans.Steps(config.TOKEN_FLOOR + config.TOKENS_PER_STORED_BYTE * len(data))
    return _copied(pickle_spans.read(raw, 0, len(data), steps), raw, steps, 0)


def _copied(value: Any, raw: memoryview, steps: pickle_spans.Steps, depth: int) -> Any:
    """The same free of `raw`. One list that is in many places is copied into each: `steps` bounds that."""
    steps.value(value, depth)
    if isinstance(value, values.Blob):
        return bytes(raw[value.offset : value.offset + value.length])
    if isinstance(value, dict):
        return {
            _copied(key, raw, steps, depth + 1): _copied(item, raw, steps, depth + 1) for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_copied(item, raw, steps, depth + 1) for item in value)
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


__all__ = ["EMPTY", "ENCODABLE", "Artifact", "Document", "FileArtifact", "decoded", "eager", "lazy", "plain_pickle"]
