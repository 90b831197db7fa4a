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
from shardfs.errors import ShardfsError, StagingError, StaleShardError
from shardfs.staging import StagedDirectory
from shardfs.workers import Workers

T = TypeVar("T")


class StagedCalls:
    """The way to one staging area. Its threads are its own: a disk that hangs does not take those that load shards."""

    def __init__(self) -> None:
        self._workers: Workers | None = None
        self._quick_from = 0.0
        self._closing: dict[str, trio.Event] = {}
        self._locks: dict[Hashable, tuple[trio.Lock, list[None]]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Calls are made inside this block."""
        self._workers = Workers()
        yield

    async def quick(self, staged: StagedDirectory, work: Callable[[], T], *, steady: bool = True) -> T:
        """Do what needs no more than the page cache. What is known of the directory at the call holds when `work` runs:
        ESTALE where a seal has come in between, upon which the kernel looks again. Not so without `steady`, for what
        means an open file or an entry's own number, which a seal does not touch. Raises what `work` does."""
        began = time.perf_counter()
        if began < self._quick_from or not staged.hold():
            return await self.patient(staged, work, steady=steady)
        try:
            return work()
        except StagingError as error:
            raise _looked_again(error) from error
        finally:
            staged.let_go()
            ended = time.perf_counter()
            if ended - began > config.STAGED_SLOW:
                self._quick_from = ended + (ended - began) * config.STAGED_SLOW_SHARE

    async def patient(self, staged: StagedDirectory, work: Callable[[], T], *, steady: bool = True) -> T:
        """The same for what may have to wait for the disk."""
        version = staged.base_version

        def checked() -> T:
            with staged.held():
                if steady and staged.base_version != version:  # numbers and names mean other files by now
                    raise StaleShardError(f"{staged.key} was just stored")
                return work()

        try:
            return await self.long(checked)
        except StagingError as error:
            raise _looked_again(error) from error

    async def closing(self, staged: StagedDirectory, work: Callable[[], None]) -> None:
        """Close a file: whoever asks for what no open file may disturb waits for it, by `closed`."""
        try:
            await self.quick(staged, work, steady=False)
        finally:
            told = self._closing.pop(staged.id, None)
            if told is not None:
                told.set()

    async def closed(self, staged: StagedDirectory) -> None:
        """Wait until no file of a directory is open for writing, as long as one after the other is closed.

        The kernel asks for a close when close(2) has returned, waits for no answer, and sends so many such requests at
        once, which others overtake: who closes a thousand files and then stores them must not hear that they are open.
        Nor must anybody wait for who has one open in earnest: none closed for config.SEAL_CLOSING seconds, or
        config.SEAL_CLOSING_MOST in all, and this returns all the same.
        """
        with trio.move_on_after(config.SEAL_CLOSING_MOST):
            while staged.writers:
                told = self._closing.setdefault(staged.id, trio.Event())
                with trio.move_on_after(config.SEAL_CLOSING):
                    await told.wait()
                if not told.is_set():
                    if not told.statistics().tasks_waiting and self._closing.get(staged.id) is told:
                        del self._closing[staged.id]
                    return

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


def _looked_again(error: StagingError) -> ShardfsError:
    """What to say of an entry, or of a directory, that is staged no more: it may be in the store by now."""
    return StaleShardError(str(error)) if error.errno in (errno.EBADF, errno.ENOENT) else error
