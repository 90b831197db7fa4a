"""The one door from the event loop to threads. Knows nothing of what runs in them.

Loads of small and of large shards have separate places, so that a key of a megabyte never queues behind one of half a
gigabyte. A load that only waits (for a store that is slow) lends its place to the next, so that none queues behind it.
"""

from __future__ import annotations

import contextlib
import threading
import time
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
        clock: list[int] = []

        def timed() -> T:
            clock.append(time.pthread_getcpuclockid(threading.get_ident()))
            return work()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_lend_while_idle, limiter, clock)
            try:
                return await trio.to_thread.run_sync(timed, limiter=limiter)
            except Exception as error:  # raised below: a nursery would make a group of it
                failure = error
            finally:
                nursery.cancel_scope.cancel()
        raise failure

    def soon(self, tell: Callable[[], None]) -> None:
        """Called in any thread: have the event loop call `tell` soon, unless it has ended."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(tell)

    def from_thread(self, tell: Callable[[int], None], value: int) -> None:
        """Called in a worker: have the event loop call `tell(value)` soon."""
        self._token.run_sync_soon(tell, value)


async def _lend_while_idle(limiter: trio.CapacityLimiter, clock: list[int]) -> None:
    """Let one more work in for as long as the thread whose CPU clock `clock` names makes no use of the CPU."""
    used: float | None = None
    lent = False
    try:
        while True:
            await trio.sleep(config.LEND_AFTER)
            if not clock:
                continue
            before = used
            used = time.clock_gettime(clock[0])
            idle = before is not None and used - before < config.LEND_AFTER / config.LEND_SHARE
            if idle != lent and (lent or limiter.total_tokens < config.WORKERS_LENT):
                limiter.total_tokens += 1 if idle else -1
                lent = idle
    finally:
        limiter.total_tokens -= lent
