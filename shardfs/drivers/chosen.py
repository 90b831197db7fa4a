"""A store of which some keys are shown: those that fit one of several patterns.

Knows nothing of what the store is.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from shardfs.drivers.base import Driver, Grow, ReadOnly, Shard, ShardReader
from shardfs.errors import BadSettingError, MissingKeyError
from shardfs.model import Entry, Key

_OFFERED = ("storage", "objects", "raw_name", "over_raw", "identity", "suspects")
"""What some drivers have besides. As members of the instance, for who looks for them without calling anything."""


class ChosenDriver(ReadOnly):
    """The keys of `inner` that fit a pattern with `*` (which takes `/`, too), `?` and `[...]`, to be read. A list that
    nothing fits is a slip of the pen: BadSettingError, and the errors of `entries`."""

    why = "a selection of keys can only be read: open the store itself to write"
    partial = True
    """The store has other keys than are listed."""

    def __init__(self, inner: Driver, patterns: Sequence[str]) -> None:
        self._inner = inner
        self._patterns = tuple(patterns)
        self.name = inner.name
        self.reading = inner.reading
        for name in _OFFERED:
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))
        found = inner.entries()
        self.problems: list[str] = inner.problems
        if found and not any(self._fits(entry.key) for entry in found):
            named = ", ".join(patterns)
            raise BadSettingError(f"--keys {named}: no key fits, of {len(found):,} like {found[0].key}")
        self._listed: list[Entry] | None = found  # for who lists first: listing may take long

    def _fits(self, key: str) -> bool:
        return any(fnmatchcase(key, pattern) for pattern in self._patterns)

    def entries(self) -> list[Entry]:
        listed, self._listed = self._listed, None
        found = self._inner.entries() if listed is None else listed
        self.problems = self._inner.problems
        return [entry for entry in found if self._fits(entry.key)]

    def changed(self) -> bool:
        return self._inner.changed()

    def entry(self, key: Key) -> Entry:
        if not self._fits(key):
            raise MissingKeyError(f"no key {key!r} among those that are shown")
        return self._inner.entry(key)

    def estimate(self, entry: Entry) -> int:
        return self._inner.estimate(entry)

    def mark(self, entry: Entry) -> str:
        return self._inner.mark(entry)

    def load(self, entry: Entry, grow: Grow) -> Shard:
        return self._inner.load(entry, grow)

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        return self._inner.open(entry, raw_bytes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
