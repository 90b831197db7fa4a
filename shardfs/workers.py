"""The one door from the event loop to threads. Knows nothing of what runs in them.

Loads of small and of large shards have separate places, so that a key of a megabyte never queues behind one of half a
gigabyte. A load that only waits (for a store that is slow) lends its place to the next, so that none queues behind it.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, TypeVar

import trio

from shardfs import config
from shardfs.errors import StorageError

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
        done = await trio.to_thread.run_sync(_Done, work, limiter=self._io)
        del work
        return done.result()

    async def aside(self, work: Callable[[], T]) -> T:
        """The same for what need not be awaited: it is given up by cancellation, and its thread ends when it will."""
        done = await trio.to_thread.run_sync(_Done, work, limiter=self._io, abandon_on_cancel=True)
        return done.result()

    async def cpu(self, work: Callable[[], T], size: int) -> T:
        """Run something that computes over `size` bytes. Not ended by cancellation."""
        limiter = self._large if size > config.LARGE_LOAD else self._small
        clock: list[int] = []

        def timed(work: Callable[[], T]) -> _Done[T]:
            clock.append(time.pthread_getcpuclockid(threading.get_ident()))
            return _Done(work)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_lend_while_idle, limiter, clock)
            try:
                done = await trio.to_thread.run_sync(timed, work, limiter=limiter)
            finally:
                nursery.cancel_scope.cancel()
        del work
        return done.result()

    def soon(self, tell: Callable[[], None]) -> None:
        """Called in any thread: have the event loop call `tell` soon, unless it has ended."""
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(tell)

    def asked(self, work: Callable[[], Awaitable[T]]) -> T:
        """Called in a thread that is not the event loop's: what `work` gives there, however long that takes, or what it
        raises. StorageError once the loop is ending."""
        try:
            return trio.from_thread.run(work, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as error:
            raise StorageError("the mount is being ended") from error

    def from_thread(self, tell: Callable[[int], None], value: int) -> None:
        """Called in a worker: have the event loop call `tell(value)` soon."""
        self._token.run_sync_soon(tell, value)


class _Done(Generic[T]):
    """What became of some work, which is done here and now.

    An error knows all that the functions it came through had in hand, which may be a shard's raw bytes, and trio keeps
    it where it is known to itself: both would stay until the garbage collector comes, which is seldom. So errors
    pass through this in place of trio, and their functions have nothing in hand any more.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._value: T
        self._error: Exception | None = None
        try:
            self._value = work()
        except Exception as error:
            self._error = error
            _let_go(error)

    def result(self) -> T:
        """What it gave, or what it raised. Once."""
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            raise error
        finally:
            del error


def _let_go(error: BaseException) -> None:
    """Clear what the functions of an error, and of those behind it, had in hand."""
    cleared: list[BaseException] = []
    behind: BaseException | None = error
    while behind is not None and not any(behind is known for known in cleared):  # two may name one another
        cleared.append(behind)
        _clear(behind.__traceback__)
        behind = behind.__cause__ or behind.__context__


def _clear(at: TracebackType | None) -> None:
    """Let go of what the functions had in hand, those apart that are still running. An error that was raised before may
    have come through coroutines, which clearing would end."""
    while at is not None:
        if not at.tb_frame.f_code.co_flags & inspect.CO_COROUTINE:
            with contextlib.suppress(RuntimeError):  # still running
                at.tb_frame.clear()
        at = at.tb_next


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
