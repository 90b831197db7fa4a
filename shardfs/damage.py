"""What of a store turned out to be damaged while it was used: shards, and samples in them. A bounded list.

Knows nothing of who finds it, nor of how it is told.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from shardfs import config


@dataclass(slots=True)
class Damage:
    """One thing that could not be shown, or not as it should be."""

    key: str
    version: str
    file: str | None
    """The file that shows the bytes of a cell as they are, as its declared encoding cannot decode them; empty:
    something of the shard is not shown; None: the whole shard cannot be read."""
    reason: str
    offset: int | None
    """Byte of the shard's raw bytes, where that is known."""
    first_ns: int
    """When it was found first, nanoseconds since the epoch."""
    count: int = 1
    """How often a load has met it."""


class DamageList:
    """The last config.ERRORS_KEPT of them."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, str, str | None], Damage] = OrderedDict()
        self.dropped = 0
        """Older ones that are in the log only."""

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Damage]:
        return iter(list(self._found.values()))

    def note(self, key: str, version: str, reason: str, *, file: str | None = None, offset: int | None = None) -> None:
        """Met again, or for the first time. Its reason is the last one."""
        known = self._found.get((key, version, file))
        if known is not None:
            known.count += 1
            known.reason, known.offset = reason, offset
            return
        self._found[key, version, file] = Damage(key, version, file, reason, offset, time.time_ns())
        if len(self._found) > config.ERRORS_KEPT:
            self._found.popitem(last=False)
            self.dropped += 1
