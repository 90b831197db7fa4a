"""Work that a few threads do at once, whose results are taken in the order in which it was given.

For work that leaves the GIL alone, like compressing, with buffers to gather it in. Holds a few pieces of work at once,
whatever is given. Knows nothing of what is worked on.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from shardfs import config

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Given = TypeVar("Given")
Made = TypeVar("Made")


class Filling:
    """Bytes that are gathered in a buffer of `room` bytes. It is there to be emptied and filled again: memory that is
    taken anew costs as much time as copying into it."""

    __slots__ = ("_memory", "size")

    def __init__(self, room: int) -> None:
        self._memory = np.empty(room, np.uint8).data
        self.size = 0

    def add(self, piece: bytes | bytearray | memoryview) -> None:
        """More bytes, which must find room."""
        behind = self.size + len(piece)
        self._memory[self.size : behind] = piece
        self.size = behind

    @property
    def raw(self) -> memoryview:
        return self._memory[: self.size]


class InOrder(Generic[Given, Made]):
    """`work` is called in threads with what `put` is given, `take` with its results, in the thread that calls `put`.

    One piece alone is worked on by the caller, and so is everything on a single core: threads are started with the
    second piece. What `work` raises is raised by a later `put` or by `finish`. To be closed in every case, which ends
    the threads.
    """

    def __init__(self, work: Callable[[Given], Made], take: Callable[[Made], object], threads: int = 0) -> None:
        self._work = work
        self._take = take
        self._threads = threads or cores()
        self._first: list[Given] = []
        self._pool: ThreadPoolExecutor | None = None
        self._running: deque[Future[Made]] = deque()

    def put(self, piece: Given) -> None:
        """One more piece; waits where threads + config.WORK_AHEAD of them are not done yet."""
        if self._threads == 1:
            self._take(self._work(piece))
            return
        if self._pool is None:
            if not self._first:
                self._first.append(piece)
                return
            self._start()
        self._submit(piece)

    def _start(self) -> None:
        from concurrent.futures import ThreadPoolExecutor  # here: small shards never need it

        self._pool = ThreadPoolExecutor(self._threads, "shardfs-compress")
        self._submit(self._first.pop())

    def _submit(self, piece: Given) -> None:
        assert self._pool is not None
        running = self._running
        while running and (running[0].done() or len(running) >= self._threads + config.WORK_AHEAD):
            self._take(running.popleft().result())
        running.append(self._pool.submit(self._work, piece))

    def finish(self) -> None:
        """Takes all results that are left."""
        while self._first:
            self._take(self._work(self._first.pop()))
        while self._running:
            self._take(self._running.popleft().result())

    def close(self) -> None:
        """Ends the threads; what is not done then is dropped. May be called again."""
        self._first.clear()
        self._running.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def cores() -> int:
    """Threads that work at once: cores this process may use, config.WORK_THREADS at most."""
    return max(1, min(len(os.sched_getaffinity(0)), config.WORK_THREADS))
