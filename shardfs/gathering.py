"""Samples whose files lie outside their records, made whole: their values with the bytes of those files in them.

For who copies samples into systems whose records hold everything. A blob becomes bytes, or the array or pickle that its
column says it is; a file becomes its bytes, a directory the bytes of a tar of it, and what that loses is told. Knows
nothing of which system has such samples, nor of where they go.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tarfile
from typing import Any, Protocol

import numpy as np

from shardfs import config, values
from shardfs.drivers.base import LinksFiles, Record, Shard
from shardfs.errors import DamagedShardError
from shardfs.values import Buffer, Tree

Change = tuple[str, str, str]
"""Field, what it was, what it is then."""


class LinkedShard(Shard, LinksFiles, Protocol):
    """A shard whose files lie elsewhere."""


class Gathered:
    """One sample: `tree`, whose positions are all in `raw`; and `changes`, each once.

    Raises DamagedShardError (also for a blob that is not what its hash is of, and for samples above
    config.GATHERED_SAMPLE bytes), StaleShardError, StorageError.
    """

    def __init__(self, shard: LinkedShard, record: Record) -> None:
        self._shard = shard
        self._raw = bytearray(shard.raw[record.start : record.end])
        self._changes: dict[Change, None] = {}
        own = shard.decode(memoryview(bytes(self._raw)))
        if type(own) is dict:
            self.tree: Tree = {name: self._value(str(name), item) for name, item in own.items()}
        else:
            self.tree = self._value("", own)
        self.raw: Buffer = memoryview(self._raw).toreadonly()

    @property
    def changes(self) -> list[Change]:
        return list(self._changes)

    def _value(self, field: str, value: Any) -> Tree:
        if isinstance(value, values.Linked):
            return self._linked(value)
        if isinstance(value, values.Folder):
            return self._folder(field, value)
        if type(value) is dict:
            return {name: self._value(field, item) for name, item in value.items()}
        return [self._value(field, item) for item in value] if type(value) is list else value

    def _linked(self, value: values.Linked) -> Tree:
        at = self._add(self._fetched(value.offset, value.length))
        if value.header:
            dtype, shape = _of_header(value.header)
            return values.Array(at, dtype, shape)
        if value.ext == "pkl":
            return values.Pickle(at, value.length)
        return values.Blob(at, value.length, value.ext)

    def _folder(self, field: str, folder: values.Folder) -> Tree:
        if len(folder.files) == 1 and "/" not in folder.files[0][0]:
            _, offset, length = folder.files[0]
            self._changes[field, "file", "bytes, without its name"] = None
            return values.Blob(self._add(self._fetched(offset, length)), length)
        data = self._tar(folder)
        self._changes[field, "directory", "bytes of a tar"] = None
        return values.Blob(self._add(data), len(data))

    def _tar(self, folder: values.Folder) -> bytes:
        """All files and empty directories, by path; headers say mode 0644, owner 0, time 0, so that equal directories
        are equal bytes."""
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
            for path, offset, length in sorted(folder.files):
                info = tarfile.TarInfo(path.rstrip("/"))
                if path.endswith("/"):
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(info)
                    continue
                info.size = length
                self._check_size(made.tell() + length)
                tar.addfile(info, io.BytesIO(self._fetched(offset, length)))
        return made.getvalue()

    def _fetched(self, offset: int, length: int) -> bytes:
        self._check_size(length)
        data = bytes(self._shard.fetch(offset, offset + length)) if length else b""
        thing = self._shard.object_at(offset)
        # who opens it compares it with its hash only where that costs next to nothing
        if thing.sha1 is not None and hashlib.sha1(data, usedforsecurity=False).hexdigest() != thing.sha1:
            raise DamagedShardError(f"{thing.name} does not hold what its SHA-1 is of")
        return data

    def _add(self, data: bytes) -> int:
        at = len(self._raw)
        self._raw += data
        return at

    def _check_size(self, more: int) -> None:
        if len(self._raw) + more > config.GATHERED_SAMPLE:
            raise DamagedShardError(
                f"a sample with files of more than {config.GATHERED_SAMPLE >> 20} MiB, too large for one record"
            )


def _of_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """What `values.npy_header` was made of."""
    width = 2 if header[6] == 1 else 4
    text = header[8 + width :].decode("utf-8" if header[6] == 3 else "latin-1")
    said = ast.literal_eval(text.strip())
    return np.lib.format.descr_to_dtype(said["descr"]), said["shape"]


__all__ = ["Gathered", "LinkedShard"]
