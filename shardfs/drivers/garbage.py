"""What lies in a store and belongs to no key any more: the interface by which a driver tells of it, and removes it.

Knows nothing of any system, nor of how old something must be: `shardfs gc` decides that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from shardfs.model import Version

Kind = Literal["superseded", "unfinished", "unnamed"]
"""`superseded`: something newer is in its place. `unfinished`: a writer of ours began it, and died or is still at it.
`unnamed`: nothing names it, and nobody knows whether something will."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """One thing that could be removed."""

    name: str
    """What it is called in the store: for files the path relative to the root."""
    kind: Kind
    reason: str
    """Why it belongs to no key, in a few words."""
    size: int
    """Bytes that it takes."""
    since_ns: int
    """From when on it is garbage, at the latest; nanoseconds since the epoch."""
    version: Version
    """Stands for its content: another text, something else."""


@runtime_checkable
class Collecting(Protocol):
    """A driver whose stores can have garbage."""

    def garbage(self) -> list[Garbage]:
        """All of it, in order of names: only what is surely of this system's making, and what no key needs as the store
        is now. Readers of an older version may need it all the same, which `since_ns` is for. Changes nothing.
        BadStoreError, with the reason, where it cannot be known what is needed; StorageError."""

    def discard(self, found: Garbage) -> None:
        """Remove something that `garbage` has told of, durably, if that is still true: it is looked at once more.
        StaleShardError if it is not; StorageError, EBUSY for what somebody is just writing."""
