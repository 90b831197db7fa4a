"""Calls in threads that nobody has to wait for: who gave up on one goes on, and the thread ends when the call does.

The threads are daemons: a call that hangs keeps no process from ending. Knows nothing of what is called.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from shardfs import config

T = TypeVar("T")


class Threads:
    """At most `most` threads, made as they are wanted and ended when they have had nothing to do for a while."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._begin()

    def _begin(self) -> None:
        self._work: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = self._count = self._waiting = 0
        self._process = os.getpid()

    def start(self, call: Callable[[], T]) -> Future[T]:
        """Have it called in a thread as soon as one is free. Returns at once."""
        future: Future[T] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)

        self.go(work)
        return future

    def go(self, work: Callable[[], object]) -> None:
        """The same for what raises nothing, and itself tells whoever wants to know. For small requests the waiting for
        a Future would take as long as the request."""
        if self._process != os.getpid():
            self._begin()  # after a fork none of the threads is here
        with self._lock:
            self._waiting += 1
            if self._waiting > self._idle and self._count < self._most:
                self._count += 1
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
        self._work.put(work)

    def _serve(self) -> None:
        with self._lock:
            self._idle += 1
        while True:
            try:
                work = self._work.get(timeout=config.REMOTE_THREAD_IDLE)
            except Empty:
                with self._lock:
                    if self._waiting:
                        continue  # it is just being put
                    self._idle -= 1
                    self._count -= 1
                    return
            with self._lock:
                self._idle -= 1
                self._waiting -= 1
            work()
            del work  # or an idle thread would hold what it did last
            with self._lock:
                self._idle += 1
