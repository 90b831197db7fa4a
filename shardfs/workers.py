"""The one door from the event loop to threads. Knows nothing of what runs in them.

Loads of small and of large shards have separate places, so that a key of a megabyte never queues behind one of half a
gigabyte.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

from shardfs import config

T = TypeVar("T")


class Workers:
    """Bounded thread work. Made and used inside one trio run."""

    def __init__(self) -> None:
        self._io = trio.CapacityLimiter(config.WORKERS_IO)
        self._small = trio.CapacityLimiter(config.WORKERS_CPU)
        self._large = trio.CapacityLimiter(config.WORKERS_CPU)
        self._token = trio.lowlevel.current_trio_token()

    async def io(self, work: Callable[[], T]) -> T:
        """Run something that waits for storage. Not ended by cancellation: the thread's end is awaited."""
        return await trio.to_thread.run_sync(work, limiter=self._io)

    async def cpu(self, work: Callable[[], T], size: int) -> T:
        """Run something that computes over `size` bytes. Not ended by cancellation."""
        limiter = self._large if size > config.LARGE_LOAD else self._small
        return await trio.to_thread.run_sync(work, limiter=limiter)

    def from_thread(self, tell: Callable[[int], None], value: int) -> None:
        """Called in a worker: have the event loop call `tell(value)` soon."""
        self._token.run_sync_soon(tell, value)
