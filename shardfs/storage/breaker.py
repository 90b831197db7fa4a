"""Whether a store answers at all. Once several operations in a row had no answer, those that follow are refused at
once, so that not every reader waits for the whole deadline; one small request every few seconds finds out when it is
back.

Any answer counts, an error of the store's own, too. Knows nothing of what is asked.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from typing import Any

from shardfs import config
from shardfs.errors import StorageError
from shardfs.storage.threads import Threads

log = logging.getLogger("shardfs")


class Breaker:
    """Of one store. Thread-safe. `probe` asks it something small, and tells if it answers; `now` is for tests."""

    def __init__(
        self, where: str, threads: Threads, probe: Callable[[], bool], now: Callable[[], float] = time.monotonic
    ) -> None:
        self.where = where
        self.error: str | None = None
        """What the last operation that had no answer ended with."""
        self.since: float | None = None
        """When it stopped answering (time.time()); None while it answers, or is not known not to."""
        self._threads = threads
        self._probe = probe
        self._now = now
        self._lock = threading.Lock()
        self._heard: float | None = None
        self._failures = 0
        self._code = errno.EIO
        self._next = 0.0
        self._probing: Future[bool] | None = None

    def heard(self) -> None:
        """It has answered something just now."""
        self._heard = self._now()
        if self._failures == 0 and self.since is None:
            return
        with self._lock:
            again, self.since, self._failures = self.since is not None, None, 0
        if again:
            log.warning("%s answers again", self.where)

    def unheard(self, begun: float, error: StorageError) -> None:
        """An operation that began then ended for lack of an answer. Nothing, if another was answered meanwhile."""
        with self._lock:
            if self._heard is not None and self._heard >= begun:
                return
            self._failures += 1
            self.error, self._code = str(error), error.errno
            # one that has never answered is most likely not there: nothing speaks for waiting thrice
            enough = 1 if self._heard is None else config.BREAKER_FAILURES
            if self.since is not None or self._failures < enough:
                return
            self.since = time.time() - (self._now() - begun)
            self._next = self._now() + config.BREAKER_PROBE
            level = logging.WARNING if self._heard is not None else logging.INFO  # the error itself is told, too
        log.log(level, "%s does not answer: what is not at hand fails until it does (%s)", self.where, error)

    def check(self, what: str) -> None:
        """StorageError, with the errno that the last operation had, while the store does not answer."""
        if self.since is None:
            return
        probing = self._due()
        if probing is not None:
            try:
                if probing.result(config.BREAKER_WAIT):
                    self.heard()
            except NotYetError:
                probing.add_done_callback(self._late)
        if self.since is not None:
            raise self.refusal(what)

    def refusal(self, what: str) -> StorageError:
        since = time.strftime("%H:%M:%S", time.localtime(self.since))
        return StorageError(f"{what}: the store does not answer since {since} ({self.error})", self._code)

    def _due(self) -> Future[bool] | None:
        """A probe that has just been started, if it is time for one."""
        with self._lock:
            if self._now() < self._next or (self._probing is not None and not self._probing.done()):
                return None
            self._next = self._now() + config.BREAKER_PROBE
            self._probing = self._threads.start(self._probe)
            return self._probing

    def _late(self, probing: Future[bool]) -> None:
        if not probing.cancelled() and probing.exception() is None and probing.result():
            self.heard()

    def told(self) -> dict[str, Any]:
        """For people who ask how it is."""
        return {"answers": self.since is None, "since": self.since, "error": self.error}
