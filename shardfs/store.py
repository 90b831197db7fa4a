"""The public `Store`: keys, and lists of samples under them. Usable without any mount, from several threads.

Knows nothing of how a store is recognised, nor of files, caches or FUSE.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload
from urllib.parse import urlsplit

import numpy as np

from shardfs.drivers.base import Driver, Shard
from shardfs.drivers.chosen import ChosenDriver
from shardfs.drivers.squirrel import random_key
from shardfs.errors import DamagedShardError, MissingKeyError, StaleShardError
from shardfs.model import Entry, Key
from shardfs.values import Members

Sample = Any
"""What the system's own library gives for one sample: mostly a dict of field name -> value."""

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
            if type(record.tree) is Members and record.tree.apart:
                continue  # the system's own library does not have it either
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

    def records(self) -> Iterator[bytes]:
        """The raw bytes of each sample, as the shard has them once it is decompressed."""
        return (bytes(self._shard.raw[start:end]) for start, end in zip(self._starts, self._ends, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # another process gets the samples and not the buffer

    def __repr__(self) -> str:
        return f"<{len(self)} samples>"


class Store:
    """A store of shards under keys. Made by `open_store`. Thread-safe.

    `url` is what it was opened by. `place` is the local directory or file that it lies in, None for one that lies
    elsewhere or in several places; `places` are all there are.
    """

    def __init__(
        self,
        url: str,
        driver: Driver,
        place: Path | None = None,
        places: Sequence[Path] = (),
        identity: str | None = None,
        health: Callable[[], dict[str, Any]] | None = None,
        deadline: float | None = None,
    ) -> None:
        self.url = url
        self.driver = driver
        self.place = place
        self._identity = identity
        self.health = health
        """For a store far away: whether it answers, and what was asked of it, as plain values."""
        self.deadline = deadline
        """Seconds after which what is asked of a store far away has ended."""
        self.places = [place] if place is not None else list(places)

    @property
    def identity(self) -> str:
        """The same text for the same store, however it was called: what its driver says, the resolved path of a local
        one, else the URL."""
        own: str | None = getattr(self.driver, "identity", self._identity)
        if own is not None:
            return own
        if self.place is None or "+" in urlsplit(self.url).scheme:
            return self.url
        return os.path.realpath(self.place)

    @property
    def far(self) -> bool:
        """True for a store that other machines must be asked for."""
        return self.place is None and not self.places

    def choosing(self, patterns: Sequence[str]) -> Store:
        """The same store with just the keys that fit one of these patterns (`*` takes `/`, too), to be read.
        BadSettingError where none fits, StorageError, BadStoreError."""
        driver = ChosenDriver(self.driver, patterns)
        return Store(self.url, driver, self.place, self.places, self.identity, self.health, self.deadline)

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
        data set a new key comes last in its split, and samples have the format and the columns of the shard before (the
        first one's are made for its first sample).
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
