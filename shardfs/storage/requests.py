"""Requests to an object store: how many at once, how often again, until when; and what their errors mean here.

Every operation has one deadline for all its attempts. Errors that may pass (a server that is busy or restarts, a
connection that ends, a body that is too short) are tried again after a pause; all others are told at once. Knows
nothing of names, shards or caches.
"""

from __future__ import annotations

import errno
import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from shardfs import config
from shardfs.errors import StaleShardError, StorageError

T = TypeVar("T")


class ShortBodyError(Exception):
    """A body that is not as long as was said, or of another object than was asked for: to be asked for again."""


class Requests:
    """The requests to one store. Thread-safe.

    `sleep` and `now` are there for tests.
    """

    def __init__(
        self,
        where: str,
        *,
        deadline: float = config.REMOTE_DEADLINE,
        at_once: int = config.REMOTE_REQUESTS,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.where = where
        self.deadline = deadline
        self.asked = 0
        self.repeated = 0
        self._places = threading.BoundedSemaphore(at_once)
        self._sleep = sleep
        self._now = now

    def run(self, what: str, attempt: Callable[[], T], *, until: float | None = None, again: bool = True) -> T:
        """What `attempt` returns, tried again while that may help. `until` (of `now`) is the operation's own end, where
        this is a part of it; without `again` one attempt must do. StorageError, StaleShardError."""
        end = self._now() + self.deadline if until is None else until
        tries = 0
        while True:
            if not self._places.acquire(timeout=max(0.0, end - self._now())):
                raise StorageError(f"{what} in {self.where}: no place for a request in time", errno.ETIMEDOUT)
            try:
                self.asked += 1
                return attempt()
            except Exception as error:
                meant = understood(error, f"{what} in {self.where}")
                if meant is None:
                    raise
                tries += 1
                if not again or not passes(error) or tries > config.REMOTE_RETRIES:
                    raise meant from error
                pause = self._pause(tries)
                if self._now() + pause >= end:
                    raise StorageError(f"{meant} (gave up after {tries} attempts)", errno.ETIMEDOUT) from error
            finally:
                self._places.release()
            self.repeated += 1
            self._sleep(pause)

    def until(self) -> float:
        """When an operation that begins now must have ended."""
        return self._now() + self.deadline

    @staticmethod
    def _pause(tries: int) -> float:
        longest: float = min(config.REMOTE_BACKOFF * 2 ** (tries - 1), config.REMOTE_BACKOFF_MOST)
        return longest * (0.5 + random.random() / 2)


_STATUS = re.compile(r"status(?:\s*code)?:?\s*(\d{3})|\b(\d{3})\s+[A-Z][a-z]+", re.IGNORECASE)
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error of obstore speaks of; it has no field for that."""
    found = _STATUS.search(str(error))
    return int(found[1] or found[2]) if found else None


def passes(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ShortBodyError):
        return True
    if type(error).__name__ != "GenericError":
        return False
    status = status_of(error)
    return status is None or status in _PASSING


def understood(error: Exception, what: str) -> StorageError | StaleShardError | None:
    """What an error of obstore is here; None for what is none of them."""
    kind = type(error).__name__
    if isinstance(error, ShortBodyError):
        return StorageError(f"{what}: {error}", errno.EIO)
    if kind in ("NotFoundError", "FileNotFoundError") or isinstance(error, FileNotFoundError):
        return StorageError(f"{what}: not there", errno.ENOENT)
    if kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return StorageError(f"{what}: the store refuses these credentials ({_short(error)})", errno.EACCES)
    if kind == "PreconditionError":
        return StaleShardError(f"{what}: it was replaced meanwhile")
    if kind == "AlreadyExistsError":
        return StorageError(f"{what}: it is there already", errno.EEXIST)
    if isinstance(error, NotImplementedError):
        return StorageError(f"{what}: stores of this kind cannot do that", errno.EOPNOTSUPP)
    if not type(error).__module__.startswith("obstore"):
        return None
    timed_out = "timed out" in str(error).lower() or "TimedOut" in str(error)
    return StorageError(f"{what}: {_short(error)}", errno.ETIMEDOUT if timed_out else errno.EIO)


def _short(error: Exception) -> str:
    """The beginning of obstore's text, in one line and without what could be a secret: queries of signed URLs."""
    text = " ".join(str(error).split("Debug source:")[0].split())
    return re.sub(r"\?[^\s)\"']+", "?...", text)[:300]
