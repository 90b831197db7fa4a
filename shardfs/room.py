"""A budget of bytes: what is held, what is reserved for loads under way, and who may start next.

Runs on the event loop. Knows nothing of what the bytes are; who can give some back is given as a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from shardfs import config


@dataclass(slots=True, eq=False)
class Claim:
    """Bytes reserved for one load."""

    size: int = 0


class Room:
    """`budget` bounds `held` and all claims together. `evict(size)` is asked to bring `used` down to the budget less
    `size`, as far as it can.

    Small loads have a lane of their own, and large ones leave them a part of the budget: a key of a megabyte must not
    wait until a queue of large ones is through. Nor may small ones without end keep a large one out: while it waits
    they take only what it will leave.
    """

    def __init__(self, budget: int, evict: Callable[[int], None]) -> None:
        self.budget = budget
        self.held = 0
        self.reserved = 0
        self._evict = evict
        self._claims: set[Claim] = set()
        self._waiting = 0
        self._turns: dict[bool, trio.Lock] = {}
        self._changed: trio.Event | None = None

    @property
    def used(self) -> int:
        """Bytes held or reserved."""
        return self.held + self.reserved

    def start(self) -> None:
        """To be called inside the trio run in which it is used."""
        self._turns = {True: trio.Lock(), False: trio.Lock()}
        self._changed = trio.Event()

    async def reserve(self, claim: Claim, size: int) -> None:
        """Take room for a load: in turn, waiting for other loads to end where eviction is not enough."""
        small = size <= config.LARGE_LOAD
        async with self._turns[small]:
            self._waiting = self._waiting if small else size
            while not self._may_start(size, small):
                assert self._changed is not None
                await self._changed.wait()
            self._waiting = self._waiting if small else 0
            self._evict(size)
            claim.size = size
            self._claims.add(claim)
            self.reserved += size
        self.signal()

    def grow(self, claim: Claim, size: int) -> None:
        """A load needs `size` bytes in all; nothing for one that has ended. The budget may be passed: see `reserve`."""
        if claim not in self._claims or size <= claim.size:
            return
        self._evict(size - claim.size)
        self.reserved += size - claim.size
        claim.size = size

    def release(self, claim: Claim) -> None:
        """A load has ended. `signal` is due once what it holds by now is counted."""
        if claim in self._claims:
            self._claims.discard(claim)
            self.reserved -= claim.size

    def signal(self) -> None:
        """Let those that wait look again."""
        assert self._changed is not None
        self._changed.set()
        self._changed = trio.Event()

    def _may_start(self, size: int, small: bool) -> bool:
        """Whether a load fits beside those under way, once everything that can be is evicted."""
        if small and self._waiting:
            beside = sum(claim.size for claim in self._claims if claim.size <= config.LARGE_LOAD)
            if beside + size + self._waiting > self.budget:
                return False
        limit = self.budget if small else self.budget - self.budget // config.SMALL_SHARE
        return not self.reserved or self.reserved + size <= limit
