"""`SquirrelStore`: shards under keys, in a directory of `<key>.gz`. Knows nothing of drivers or streams."""

from __future__ import annotations

import errno
import gzip
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from shardfs.drivers.key_files import check_key
from shardfs.drivers.squirrel import CODECS, random_key
from shardfs.errors import BadSettingError, MissingKeyError, StorageError
from shardfs.opening import local_path, open_store
from shardfs.squirrel.serializers import JsonlSerializer, SquirrelSerializer, hooked_line
from shardfs.storage.local import LocalStorage, temporary_name
from shardfs.store import Store

ENDING = ".gz"
"""squirrel-core gives it to the files of every serializer, and lists no others."""


class AbstractStore(ABC):
    """What a driver needs of a store; one of one's own may keep anything under its keys."""

    @abstractmethod
    def set(self, value: Any, key: Any = None, **kwargs: Any) -> Any:
        """Keep `value` under `key`."""

    @abstractmethod
    def get(self, key: Any, **kwargs: Any) -> Iterable[Any]:
        """What is kept under `key`."""

    @abstractmethod
    def keys(self, **kwargs: Any) -> Iterable[Any]:
        """All keys under which `get` has something."""


class SquirrelStore(AbstractStore):
    """Shards (lists of samples) under keys, in the directory `url`, which is made by the first `set`.

    With one of the two serializers of squirrel-core, reading and writing are shardfs's own: shards are checked, limits
    hold, `.zst` shards are read, too, and `set` replaces a shard all at once. Another serializer's methods are called
    with the path of a file. Thread-safe, and may be sent to other processes. `clean` removes all shards that are there.
    `storage_options` are those of squirrel-core, of which a local directory needs none.
    BadStoreError for a URL that is no local directory.
    """

    def __init__(self, url: str, serializer: SquirrelSerializer, clean: bool = False, **storage_options: Any) -> None:
        self.url = os.fspath(url).rstrip("/") or "/"
        self.serializer = serializer
        self.storage_options = storage_options
        self._path = local_path(self.url).absolute()
        self._open()
        if clean:
            for key in list(self.keys(nested=True)):
                self._remove(key)

    def _open(self) -> None:
        self._storage = LocalStorage(self._path)
        form = self.serializer.format
        self._own: Store | None = None if form is None else open_store(self._path, f"squirrel-{form}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_own", "_storage")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def set(self, value: Any, key: str | None = None, **kwargs: Any) -> str:
        """Store a list of samples, or one sample, as the shard `key`, and return that: random if none is given.

        Readers see the old shard or the new one. `kwargs` go to a serializer of one's own; squirrel-core's take none
        here. BadSettingError for a value that the format cannot hold, StorageError.
        """
        samples = value if isinstance(value, list) else [value]
        if self._own is not None:
            _refuse(kwargs)
            return self._own.set(samples, key)
        chosen = random_key() if key is None else key
        check_key(chosen, max(map(len, CODECS)))
        temporary = temporary_name()
        path = os.path.join(self._path, os.path.dirname(chosen), temporary)

        def write(file: BinaryIO) -> None:
            self.serializer.serialize_shard_to_file(samples, path, fs=Files(), **kwargs)

        self._storage.put(chosen + ENDING, write, temporary=temporary)
        return chosen

    def get(self, key: str, **kwargs: Any) -> Sequence[Any]:
        """The samples of a shard, in stored order; read by the time this returns, so that threads do it side by side.

        MissingKeyError at the call, DamagedShardError, StorageError. `kwargs` go to a serializer of one's own.
        """
        hook = self.serializer.deser_hook if isinstance(self.serializer, JsonlSerializer) else None
        if self._own is not None:
            _refuse(kwargs)
            samples = self._own.get(key)
            return samples if hook is None else [hooked_line(line, hook) for line in samples.records()]
        try:
            self._storage.stat(key + ENDING)  # a regular file, and none behind a symbolic link
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            raise MissingKeyError(f"no key {key!r} in {self.url}") from error
        path = os.path.join(self._path, key + ENDING)
        return list(self.serializer.deserialize_shard_from_file(path, fs=Files(), **kwargs))

    def keys(self, nested: bool = False, **kwargs: Any) -> Iterator[str]:
        """All keys, sorted; those in directories below (with `/`) only if `nested`."""
        _refuse(kwargs)
        if self._own is not None:
            found: Iterable[str] = self._own.keys()
        else:
            found = (listed.name.removesuffix(ENDING) for listed in self._storage.list((ENDING,)))
        return (key for key in found if nested or "/" not in key)

    def _remove(self, key: str) -> None:
        if self._own is not None:
            self._own.delete(key)
        else:
            self._storage.remove(key + ENDING)

    def __repr__(self) -> str:
        return f"<SquirrelStore {self.url} ({type(self.serializer).__name__})>"


class Files:
    """What a serializer of one's own is given as `fs`: opens files as fsspec's file systems do."""

    def open(self, path: str, mode: str = "rb", compression: str | None = None, **kwargs: Any) -> Any:
        """An opened file; with `compression="gzip"` what goes through it is compressed, or decompressed."""
        if compression is None:
            return open(path, mode, **kwargs)
        if compression != "gzip":
            raise BadSettingError(f"compression {compression!r}: only gzip, or none")
        binary = mode.replace("t", "").replace("b", "") + "b"
        packed = gzip.GzipFile(path, binary, **kwargs)
        return packed if "b" in mode else io.TextIOWrapper(packed, encoding="utf-8")


def _refuse(kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise BadSettingError(f"{', '.join(kwargs)}: no such argument is taken here")
