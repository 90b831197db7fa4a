"""A store as it was when a snapshot of it was taken: just those keys, in just those versions, to be read.

Knows nothing of how a snapshot is written down, nor of what the store is.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from shardfs.drivers.base import Driver, Grow, ReadOnly, Shard, ShardReader
from shardfs.errors import MissingKeyError, StaleShardError, StorageError
from shardfs.model import Entry, Key

T = TypeVar("T")


class SnapshotDriver(ReadOnly):
    """The keys of `entries`, out of `inner`. A version that the store has no more is an error (ESTALE) that says so,
    and never other bytes. What else `inner` offers is offered, too."""

    why = "a snapshot can only be read: open the store itself to write"
    partial = True
    """The store may hold other keys than are listed."""

    def __init__(self, inner: Driver, entries: Iterable[Entry]) -> None:
        self._inner = inner
        self._entries = {entry.key: entry for entry in entries}
        self.name = inner.name
        self.reading = inner.reading
        self.problems: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def changed(self) -> bool:
        return False

    def suspects(self, entries: Sequence[Entry]) -> list[Entry]:
        """See Suspects: it says the same of all keys for good."""
        return []

    def entry(self, key: Key) -> Entry:
        if key not in self._entries:
            raise MissingKeyError(f"no key {key!r} in the snapshot")
        return self._entries[key]

    def estimate(self, entry: Entry) -> int:
        return self._as_it_was(entry, lambda: self._inner.estimate(entry))

    def mark(self, entry: Entry) -> str:
        return self._as_it_was(entry, lambda: self._inner.mark(entry))

    def load(self, entry: Entry, grow: Grow) -> Shard:
        return self._as_it_was(entry, lambda: self._inner.load(entry, grow))

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        return self._as_it_was(entry, lambda: self._inner.open(entry, raw_bytes))

    @staticmethod
    def _as_it_was(entry: Entry, work: Callable[[], T]) -> T:
        try:
            return work()
        except (StaleShardError, MissingKeyError) as error:
            text = f"{entry.key} is not in the store any more as the snapshot has it: {error}"
            raise StorageError(text, errno.ESTALE) from error
