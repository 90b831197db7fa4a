"""The public `Store`: keys, and lists of samples under them. Usable without any mount, from several threads.

Knows how a store is recognised and which driver it gets; knows nothing of files, caches or FUSE.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload
from urllib.parse import unquote, urlsplit

import numpy as np

from shardfs.drivers.base import Driver, Shard
from shardfs.drivers.squirrel import CODECS, random_key
from shardfs.errors import BadSettingError, BadStoreError, DamagedShardError, MissingKeyError, StaleShardError
from shardfs.model import Entry, Key
from shardfs.storage.local import LocalStorage

Sample = Any
"""What the system's own library gives for one sample: mostly a dict of field name -> value."""

_BUILT_IN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "squirrel": ("shardfs.drivers.squirrel", "SquirrelDriver", {}),
    "squirrel-msgpack": ("shardfs.drivers.squirrel", "SquirrelDriver", {"format": "msgpack"}),
    "squirrel-jsonl": ("shardfs.drivers.squirrel", "SquirrelDriver", {"format": "jsonl"}),
    "streaming": ("shardfs.drivers.streaming", "StreamingDriver", {}),
}

_RETRIES = 3
"""A key that is replaced between listing and reading is looked up again this often."""


class Samples(Sequence[Sample]):
    """The samples of one shard, decoded one by one when asked for. Holds the shard's raw bytes while it lives.

    Arrays are read-only views of those bytes.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        starts, ends = array("Q"), array("Q")
        for record in shard.records():  # the whole walk, so that a damaged shard raises here and not halfway
            starts.append(record.start)
            ends.append(record.end)
        self._starts, self._ends = starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return self._shard.sample(self._shard.tree(self._starts[index], self._ends[index]))

    def __repr__(self) -> str:
        return f"<{len(self)} samples>"


class Store:
    """A store of shards under keys. Made by `open_store`. Thread-safe."""

    def __init__(self, url: str, driver: Driver) -> None:
        self.url = url
        self.driver = driver

    def keys(self) -> list[Key]:
        """The names of all shards now in the store, in its order. StorageError, BadStoreError."""
        return [entry.key for entry in self.driver.entries()]

    def get(self, key: str) -> Samples:
        """The samples of one shard, in stored order.

        Raises at the call: MissingKeyError (a KeyError), DamagedShardError, StorageError (an OSError).
        """
        for attempt in range(_RETRIES):
            entry = self.driver.entry(Key(key))
            try:
                return Samples(self.driver.load(entry, lambda _: None))
            except DamagedShardError as error:
                error.key = error.key or key
                raise
            except StaleShardError:
                if attempt == _RETRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def set(self, samples: Iterable[Sample], key: str | None = None) -> Key:
        """Store `samples` as one shard under `key`, replacing what is there, and return the key.

        Atomic and durable: readers see the old shard or the new one. Without a key a random one that is free is made.
        A dict, text, bytes or array is one sample; any other iterable is taken as the list of samples. In a Streaming
        data set a new key comes last in its split, and samples have the columns of the shard before (the first one's
        are made for its first sample).
        BadSettingError for a value that the format cannot hold, StorageError; NotWritableError, of which
        RenumberingError is for what would give the samples of other shards other numbers.
        """
        if isinstance(samples, dict | str | bytes | bytearray | memoryview | np.ndarray | np.generic) or not isinstance(
            samples, Iterable
        ):
            samples = [samples]
        chosen = Key(key) if key is not None else self._free_key()
        self.driver.write(chosen, samples)
        return chosen

    def _free_key(self) -> Key:
        while True:
            key = random_key()
            if key not in self:
                return key

    def delete(self, key: str) -> None:
        """Remove a shard. MissingKeyError, NotWritableError, StorageError."""
        self.driver.remove(Key(key))

    def entry(self, key: str) -> Entry:
        """What the listing says of one key. MissingKeyError."""
        return self.driver.entry(Key(key))

    def __len__(self) -> int:
        return len(self.driver.entries())

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        try:
            self.driver.entry(Key(str(key)))
        except MissingKeyError:
            return False
        return True

    def __repr__(self) -> str:
        return f"<Store {self.url} ({self.driver.name})>"


def open_store(url_or_path: str | os.PathLike[str], driver: str | None = None, **options: Any) -> Store:
    """Open a store: a local path or a `file://` URL.

    `driver` names the system (`squirrel`, `squirrel-jsonl`, `streaming`, or one that an installed package offers);
    without it the store's content decides, and an empty or unclear store needs it. `options` are the driver's own
    (squirrel: format, compression, level; streaming: validate_hash, size_limit, compression). Raises BadStoreError,
    BadSettingError.
    """
    path = local_path(url_or_path)
    storage = LocalStorage(path)
    chosen = driver or detect(path)
    module, name, preset = _find_driver(chosen)
    factory = getattr(importlib.import_module(module), name)
    known = [word for word in inspect.signature(factory).parameters if word != "storage"]
    for option in options:
        if option not in known:
            raise BadSettingError(f"driver {chosen} has no option {option!r}; it has: {', '.join(known) or 'none'}")
    made: Driver = factory(storage, **{**preset, **options})
    return Store(str(url_or_path), made)


def local_path(url_or_path: str | os.PathLike[str]) -> Path:
    """The directory that a path or a `file://` URL means. BadStoreError for other URLs."""
    text = os.fspath(url_or_path)
    if "://" not in text:
        return Path(text).expanduser()
    parts = urlsplit(text)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise BadStoreError(f"{text}: only local directories and file:// can be opened")
    return Path(unquote(parts.path))


def _find_driver(name: str) -> tuple[str, str, dict[str, Any]]:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    import importlib.metadata  # 30 ms, and only needed for drivers of other packages

    offered = {point.name: point for point in importlib.metadata.entry_points(group="shardfs.drivers")}
    if name not in offered:
        known = ", ".join(sorted({*_BUILT_IN, *offered}))
        raise BadSettingError(f"no driver {name!r}; known are: {known}")
    return offered[name].module, offered[name].attr, {}


def detect(path: Path) -> str:
    """The driver for what lies in a directory, by names alone. BadStoreError where that is missing or unclear."""
    if not os.path.exists(path):
        raise BadStoreError(f"no store at {path}")
    storage = LocalStorage(path)
    found = [listed.name for listed in storage.list(("index.json", ".tar", ".tar.gz", ".tar.zst", *CODECS))]
    indexes = [name for name in found if name.rpartition("/")[2] == "index.json"]
    if any(_is_streaming_index(path / name) for name in indexes):
        return "streaming"
    if any(".mds." in name for name in found):
        raise BadStoreError(f"{path} holds .mds shards without an index.json that says version 2")
    if any(name.endswith((".tar", ".tar.gz", ".tar.zst")) for name in found):
        raise BadStoreError(f"{path} holds .tar files, for which there is no driver; name one with --driver")
    if any(name.endswith(tuple(CODECS)) for name in found):
        return "squirrel"
    raise BadStoreError(f"{path} holds no shards that are recognised (index.json, *.gz, *.zst); name its --driver")


def _is_streaming_index(path: Path) -> bool:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # a broken index is the streaming driver's to explain
    return isinstance(document, dict) and document.get("version") == 2
