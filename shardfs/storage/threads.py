"""Calls in threads that nobody has to wait for: who gave up on one goes on, and the thread ends when the call does.

The threads are daemons: a call that hangs keeps no process from ending. Knows nothing of what is called.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from shardfs import config

T = TypeVar("T")


class Threads:
    """At most `most` threads, made as they are wanted and ended when they have had nothing to do for a while."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._begin()

    def _begin(self) -> None:
        self._work: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._some = threading.Condition()
        self._idle = self._count = 0
        self._process = os.getpid()

    def start(self, call: Callable[[], T]) -> Future[T]:
        """Have it called in a thread as soon as one is free. Returns at once."""
        future: Future[T] = Future()
        if self._process != os.getpid():
            self._begin()  # after a fork none of the threads is here
        with self._some:
            self._work.append((future, call))
            if self._idle < len(self._work) and self._count < self._most:
                self._count += 1
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
            else:
                self._some.notify()
        return future

    def _serve(self) -> None:
        while True:
            with self._some:
                self._idle += 1
                found = self._some.wait_for(lambda: self._work, config.REMOTE_THREAD_IDLE)
                self._idle -= 1
                if not found:
                    self._count -= 1
                    return
                future, call = self._work.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del future, call  # or an idle thread would hold what it did last
