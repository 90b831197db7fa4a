"""Rounds: when the keys of which the kernel knows something are compared with the store, how many, and how.

What the kernel believes it does not ask for, so that nothing is looked at on use. Knows nothing of what becomes of keys
that are found to be others, nor of trio.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shardfs import config
from shardfs.drivers.base import Driver
from shardfs.drivers.suspects import suspects_of
from shardfs.errors import MissingKeyError, ShardfsError
from shardfs.model import Entry
from shardfs.tree import KeyDirectory, KeyTree


@dataclass(slots=True)
class Compared:
    """What a look at some keys has shown."""

    differing: list[tuple[Entry, Entry | None]] = field(default_factory=list)
    """What was compared, and what the store has: None for a key that has gone."""
    left: list[Entry] = field(default_factory=list)
    """For which there was no time."""
    error: Exception | None = None
    """The first of those that a key could not be looked at for."""


def compare(driver: Driver, entries: Sequence[Entry], seconds: float) -> Compared:
    """In a worker: compare keys with the store, besides what `Driver.changed` tells of. Where each must be asked for by
    itself, that many are that `seconds` suffice for. StorageError where nothing can be told at all."""
    suspects, found = suspects_of(driver, entries), Compared()
    until = time.monotonic() + seconds
    for at, entry in enumerate(suspects):
        try:
            now: Entry | None = driver.entry(entry.key)
        except MissingKeyError:
            now = None
        except (ShardfsError, OSError) as error:  # the others may be looked at all the same
            found.error = found.error or error
            now = entry
        if now is None or now.version != entry.version:
            found.differing.append((entry, now))
        if time.monotonic() >= until:
            found.left = suspects[at + 1 :]
            break
    return found


class Rounds:
    """Which keys are to be looked at next, and when."""

    def __init__(self, tree: KeyTree) -> None:
        self._tree = tree
        self._waiting: list[KeyDirectory] = []
        """Those that this time round have not been looked at."""
        self._requests = 0
        self._beats = 0
        self._spent = 0.0

    def pause(self, interval: float) -> float:
        """Seconds until the next beat: the interval, and longer where the last round took much of the processor."""
        return max(interval, config.REFRESH_LEAST, self._spent * (config.REFRESH_SHARE - 1))

    def due(self, requests: int) -> bool:
        """To be asked once for each beat, with the number of requests so far: whether it is one to look at keys. Of
        a mount that nobody uses one in config.REFRESH_IDLE is: who reads out of the page cache asks nothing."""
        self._beats += 1
        if requests == self._requests and self._beats < config.REFRESH_IDLE:
            return False
        self._requests, self._beats, self._spent = requests, 0, 0.0
        return True

    def spent(self, seconds: float) -> None:
        """A round took so much processor time."""
        self._spent += seconds

    def batch(self) -> list[KeyDirectory]:
        """The keys to be looked at now: config.REFRESH_CHECKS at most, and each once before any is a second time."""
        if not self._waiting:
            self._waiting = self._tree.known
        taken: list[KeyDirectory] = []
        while self._waiting and len(taken) < config.REFRESH_CHECKS:
            key = self._waiting.pop()
            if not (key.superseded or key.held):
                taken.append(key)
        return taken

    def again(self, left: Iterable[Entry]) -> None:
        """There was no time for these: they come first."""
        found = [self._tree.current(entry.key) for entry in left]
        self._waiting += [key for key in reversed(found) if key is not None]
