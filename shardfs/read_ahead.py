"""Which shards will be wanted next: seen from the order in which shards are first touched. Pure state, no I/O.

Recognised are runs with a fixed step (one key after the other, every k-th, backwards) and block-wise shuffling (a
window of neighbouring keys in any order, which moves on). A guess that was not used counts against guessing.
"""

from __future__ import annotations

import itertools
from collections import deque

from shardfs import config


class ReadAhead:
    """Guesses over slots, which are numbered in the order of the keys."""

    def __init__(self) -> None:
        self._touched: deque[int] = deque(maxlen=config.READ_AHEAD_SEEN)
        self._guessed: set[int] = set()
        self.used = 0
        """Guesses that were touched."""
        self.wasted = 0
        """Guesses that were evicted untouched."""

    def touch(self, slot: int) -> list[int]:
        """A shard was touched that was not before (or not for long): the slots to load now, most likely first."""
        if slot in self._guessed:
            self._guessed.discard(slot)
            self.used += 1
        if slot in self._touched:
            return []
        self._touched.append(slot)
        if self.wasted > config.READ_AHEAD_WASTE + self.used // 4:
            return []
        return [guess for guess in self._next() if guess > 0 and guess not in self._touched][: config.READ_AHEAD]

    def guessed(self, slot: int) -> None:
        """A guess was taken up."""
        self._guessed.add(slot)

    def evicted(self, slot: int) -> None:
        """A shard left the cache."""
        if slot in self._guessed:
            self._guessed.discard(slot)
            self.wasted += 1

    def _next(self) -> list[int]:
        seen = list(self._touched)
        if len(seen) < config.READ_AHEAD_SURE:
            return []
        last = seen[-config.READ_AHEAD_SURE :]
        steps = {after - before for before, after in itertools.pairwise(last)}
        if len(steps) == 1:
            (step,) = steps
            return [last[-1] + step * ahead for ahead in range(1, config.READ_AHEAD + 1)]
        return self._window(seen)

    @staticmethod
    def _window(seen: list[int]) -> list[int]:
        """Neighbours in any order: what is missing among them, and what follows them."""
        recent = seen[-config.READ_AHEAD_WINDOW :]
        low, high = min(recent), max(recent)
        if len(recent) < config.READ_AHEAD_WINDOW or high - low >= 2 * len(recent):
            return []
        gaps = [slot for slot in range(low, high) if slot not in seen]
        return [*gaps, high + 1, high + 2]
