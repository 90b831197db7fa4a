"""Calls of the staging area from the event loop: on the loop while its disk is quick, in a worker when it is not.

A hop to a thread and back costs 60 microseconds, two or three times what a create or a small write takes; so what only
touches the page cache is done on the loop. But a disk that cannot take what is written (the kernel then stops whoever
writes, up to 0.2 s at a time) must not stop readers: after one call that took long, all go to workers for a while. And
a directory whose lock somebody holds, a worker or a seal, is never waited for on the loop.

Knows nothing of what is called.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable, Hashable
from typing import TypeVar

import trio

from shardfs import config
from shardfs.errors import StagingError, StaleShardError
from shardfs.staging import StagedDirectory
from shardfs.workers import Workers

T = TypeVar("T")


class StagedCalls:
    """The way to one staging area. Its threads are its own: a disk that hangs does not take those that load shards."""

    def __init__(self) -> None:
        self._workers: Workers | None = None
        self._quick_from = 0.0
        self._locks: dict[Hashable, tuple[trio.Lock, list[None]]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Calls are made inside this block."""
        self._workers = Workers()
        yield

    async def quick(self, staged: StagedDirectory, work: Callable[[], T]) -> T:
        """Do what needs no more than the page cache. Raises what `work` does; ESTALE where a seal has taken the
        directory meanwhile: the kernel then looks again, and finds what it has become."""
        began = time.perf_counter()
        try:
            if began < self._quick_from or not staged.hold():
                return await self.long(work)
            try:
                return work()
            finally:
                staged.let_go()
                ended = time.perf_counter()
                if ended - began > config.STAGED_SLOW:
                    self._quick_from = ended + (ended - began) * config.STAGED_SLOW_SHARE
        except StagingError as error:
            if error.errno == errno.EBADF:
                raise StaleShardError(f"{staged.key} was just stored") from error
            raise

    async def patient(self, staged: StagedDirectory, work: Callable[[], T]) -> T:
        """Do what may have to wait for the disk. Errors as `quick`."""
        try:
            return await self.long(work)
        except StagingError as error:
            if error.errno == errno.EBADF:
                raise StaleShardError(f"{staged.key} was just stored") from error
            raise

    async def long(self, work: Callable[[], T]) -> T:
        """Do what waits for the disk."""
        if self._workers is None:
            raise StagingError("the mount is being ended", errno.EROFS)
        return await self._workers.io(work)

    @contextlib.asynccontextmanager
    async def alone(self, what: Hashable) -> AsyncIterator[None]:
        """Nobody else is in such a block for the same thing."""
        lock, users = self._locks.setdefault(what, (trio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._locks[what]
