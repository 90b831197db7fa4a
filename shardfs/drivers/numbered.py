"""What a driver adds whose samples are numbered through several keys: which of them may get more samples, or fewer.

There a key that is not the last keeps its number of samples, as those behind it would all get other names. Who changes
a store in small steps wants to know that at each step, and not when all of them are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from shardfs.model import Key


@dataclass(frozen=True, slots=True)
class Standing:
    """What may be done to a stored key; each is None where that may be done, else the reason why not."""

    refused: str | None = None
    """Why nothing of it can be changed."""
    closed: str | None = None
    """Why no sample can be added to it, or taken away."""


@runtime_checkable
class NumberedThrough(Protocol):
    """Such a driver."""

    reserved: Callable[[], Collection[str]]
    """Keys that somebody is just making, and that are not stored yet: one that needs several shards leaves them."""

    beginning: bool
    """True if a store that has nothing in it is one without keys yet, and not a mistake."""

    def standing(self, key: Key) -> Standing:
        """What may be done to a key, as the store is now. MissingKeyError, StorageError,
        BadStoreError."""

    def first_number(self, key: Key) -> int:
        """The number that the first sample of a new key of this name would have. Errors as `key_before`."""

    def key_before(self, key: Key) -> Key | None:
        """The stored key that a new one of this name would come right behind, if samples can still be added to that.
        BadSettingError for what cannot be a key, RenumberingError and NotWritableError where none can be added, errors
        as `standing`."""
