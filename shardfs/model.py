"""The nouns that more than one room speaks of, frozen. Knows nothing of what is done with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

__all__ = ["Entry", "Inode", "Key", "Span", "Version"]

Key = NewType("Key", str)
"""The name of a shard in its store, `/` between levels: `train/shard.00003`."""

Version = NewType("Version", str)
"""An opaque text that is different for each content a key ever had (for local files: inode, size, mtime and ctime)."""

Inode = NewType("Inode", int)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store's listing says of one shard, without touching the shard."""

    key: Key
    version: Version
    stored_bytes: int
    """Size of what is stored (compressed where it is compressed), in bytes."""
    mtime_ns: int
    """Modification time of the stored shard, nanoseconds since the epoch."""
    raw_bytes: int | None = None
    """Size once decompressed, where the store's index or the shard's header says so; a hint, never trusted."""
    samples: int | None = None
    """Number of samples, where the store's index says so."""


@dataclass(frozen=True, slots=True)
class Span:
    """A run of a shard's raw bytes."""

    offset: int
    length: int
