"""Requests to an object store: how many at once, how often again, until when; and what their errors mean here.

Every operation has one deadline for all its attempts and all its waiting. A request of obstore cannot be ended, so each
runs in a thread of its own: who waits for it goes at the deadline, and the thread when the client's own time limits end
it. Errors that may pass (a server that is busy or restarts, a connection that ends, a body that is too short) are tried
again after a pause; all others are told at once. Knows nothing of names, shards or caches.
"""

from __future__ import annotations

import contextlib
import errno
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from shardfs import config
from shardfs.errors import StaleShardError, StorageError
from shardfs.storage.breaker import Breaker
from shardfs.storage.hedging import Hedging
from shardfs.storage.threads import Threads

T = TypeVar("T")


class ShortBodyError(Exception):
    """A body that is not as long as was said, or of another object than was asked for: to be asked for again."""


class RangesIgnoredError(Exception):
    """A server answered a range with all of the object."""


class PassingError(Exception):
    """A request came to nothing, and may succeed a little later. `answered` says whether the store has said so."""

    def __init__(self, text: str, answered: bool) -> None:
        super().__init__(text)
        self.answered = answered


class LateError(Exception):
    """The deadline came before an answer."""


class Progress:
    """Moves the end of an operation that is made of many answers, each of which may take the deadline."""

    def __init__(self) -> None:
        self.at = float("-inf")


class _Race(Generic[T]):
    """An attempt that is made once, or twice at the same time."""

    def __init__(self, attempt: Callable[[], T]) -> None:
        self._attempt = attempt
        self._answers: SimpleQueue[tuple[int, BaseException | None, T | None]] = SimpleQueue()
        self._entered = 0
        self.running = 0
        """Attempts that have not answered yet, as far as `answer` has told."""
        self.over = False
        """Nobody waits any more: what has not begun is not to begin."""

    def enter(self) -> Callable[[], None]:
        """One more attempt, to be called in another thread."""
        number = self._entered
        self._entered += 1
        self.running += 1

        def work() -> None:
            if self.over:
                return
            try:
                value = self._attempt()
            except BaseException as error:
                self._answers.put((number, error, None))
            else:
                self._answers.put((number, None, value))

        return work

    def answer(self, seconds: float) -> tuple[int, BaseException | None, T | None] | None:
        """The next one: which attempt, its error, its value. None if there is none in time."""
        try:
            answer = self._answers.get(timeout=seconds)
        except Empty:
            return None
        self.running -= 1
        return answer


class Requests:
    """The requests to one store. Thread-safe.

    `deadline` is in seconds. While `offline` nothing is asked at all. `sleep` and `now` are there for tests.
    """

    def __init__(
        self,
        where: str,
        *,
        deadline: float = config.REMOTE_DEADLINE,
        at_once: int = config.REMOTE_REQUESTS,
        offline: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.where = where
        self.deadline = deadline
        self.offline = offline
        self.asked = 0
        self.repeated = 0
        self.fetched = 0
        """Bytes of objects that came."""
        self.probe: Callable[[], object] = lambda: None
        """Asks for something small, whatever comes of it."""
        self.hedging = Hedging()
        self._places = threading.BoundedSemaphore(at_once)
        self._threads = Threads(max(at_once, config.REMOTE_THREADS), "request")
        self.breaker = Breaker(where, self._threads, self._answers, now)
        self._own = threading.local()
        self._lock = threading.Lock()
        self._sleep = sleep
        self.now = now

    # --- time ---------------------------------------------------------------------------------------------------------

    def until(self) -> float:
        """When (of `now`) an operation that begins now must have ended."""
        end: float | None = getattr(self._own, "end", None)
        return self.now() + self.deadline if end is None else end

    @contextlib.contextmanager
    def operation(self) -> Iterator[float]:
        """All that this thread asks for inside has one deadline together, whose end it gives."""
        outer: float | None = getattr(self._own, "end", None)
        self._own.end = end = self.until()
        try:
            yield end
        finally:
            self._own.end = outer

    # --- asking -------------------------------------------------------------------------------------------------------

    def run(
        self,
        what: str,
        attempt: Callable[[], T],
        *,
        until: float | None = None,
        again: bool = True,
        hedge: bool = False,
        progress: Progress | None = None,
    ) -> T:
        """What `attempt` returns, which is called in another thread, again while that may help. `until` (of `now`) is
        the operation's own end, where this is a part of it; without `again` one attempt must do. With `hedge` a second
        one may be made beside one that takes too long: for what changes nothing. StorageError, StaleShardError.
        """
        named = f"{what} in {self.where}"
        if self.offline:
            raise StorageError(f"{named}: nothing is asked of the store (--offline)", errno.ENETUNREACH)
        self.breaker.check(named)
        begun = self.now()
        end = self.until() if until is None else until
        tries = damaged = 0
        while True:
            try:
                done = self._attempt(named, attempt, end, hedge, progress)
            except Exception as error:
                self._note(error)
                meant = understood(error, named)
                if meant is None:
                    raise
                tries += 1
                damaged += isinstance(error, ShortBodyError)
                given_up = not passes(error) or tries > config.REMOTE_RETRIES or damaged > config.REMOTE_DAMAGED
                pause = self._pause(tries)
                late = isinstance(error, LateError) or (not given_up and self._left(end, progress) <= pause)
                if not again or given_up or late:
                    raise self._failed(begun, meant, late, tries) from error
                self._refused(named)
            else:
                self.breaker.heard()
                return done
            with self._lock:
                self.repeated += 1
            self._sleep(pause)

    def heard(self, size: int = 0) -> None:
        """The store has answered, whatever becomes of the rest of the answer, and so many bytes of an object came."""
        self.breaker.heard()
        with self._lock:
            self.fetched += size

    def _left(self, end: float, progress: Progress | None) -> float:
        """Seconds until an operation must have ended."""
        if progress is not None:
            end = max(end, min(progress.at + self.deadline, end + config.REMOTE_LISTING))
        return end - self.now()

    def _attempt(self, named: str, attempt: Callable[[], T], end: float, hedge: bool, progress: Progress | None) -> T:
        """One attempt, or two of which the first answer counts. LateError; what the attempt raised."""
        if not self._places.acquire(timeout=max(0.0, end - self.now())):
            raise LateError("no place for a request in time")
        race: _Race[T] = _Race(attempt)
        begun, hedges = self.now(), hedge
        failed: BaseException | None = None
        try:
            self._start(race)
            while race.running:
                left = self._left(end, progress)
                wait = min(left, begun + self.hedging.delay - self.now()) if hedges else left
                answer = race.answer(max(0.0, wait))
                if answer is None:
                    if self._left(end, progress) <= 0:
                        raise LateError(f"no answer within the deadline of {self.deadline:g} s")
                    hedges = False
                    if self.hedging.may():
                        self._start(race)
                    continue
                number, failed, value = answer
                if failed is None:
                    if hedge:
                        self.hedging.took(self.now() - begun)
                        self.hedging.won += number
                    return value  # type: ignore[return-value]
                if not isinstance(failed, Exception) or not passes(failed):
                    raise failed
                hedges = False  # an attempt that has ended is repeated after its pause, and not hedged
            assert failed is not None
            raise failed
        finally:
            race.over = True
            self._places.release()
            del race, failed

    def _start(self, race: _Race[T]) -> None:
        with self._lock:
            self.asked += 1
        self._threads.go(race.enter())

    # --- errors -------------------------------------------------------------------------------------------------------

    def _note(self, error: Exception) -> None:
        if type(error).__module__.startswith("obstore"):
            error.args = (cleaned(str(error)),)  # tracebacks show it
        if answered(error):
            self.breaker.heard()

    def _failed(
        self, begun: float, meant: StorageError | StaleShardError, late: bool, tries: int
    ) -> StorageError | StaleShardError:
        """What an operation ends with that had no success."""
        if late and isinstance(meant, StorageError):
            text = str(meant) if tries == 1 else f"{meant} (gave up after {tries} attempts)"
            meant = StorageError(text, errno.ETIMEDOUT)
        if isinstance(meant, StorageError) and meant.errno in (errno.ETIMEDOUT, errno.EIO):
            self.breaker.unheard(begun, meant)
        return meant

    def _refused(self, named: str) -> None:
        """StorageError if the store was found not to answer meanwhile."""
        if self.breaker.since is not None:
            raise self.breaker.refusal(named)

    def _answers(self) -> bool:
        """Whether the store answers at all."""
        try:
            self.probe()
        except Exception as error:
            return answered(error)
        return True

    @staticmethod
    def _pause(tries: int) -> float:
        longest: float = min(config.REMOTE_BACKOFF * 2 ** min(tries - 1, 16), config.REMOTE_BACKOFF_MOST)
        return longest * (0.5 + random.random() / 2)

    def told(self) -> dict[str, Any]:
        """For people who ask how it is."""
        return {
            **self.breaker.told(), "offline": self.offline, "requests": self.asked, "repeats": self.repeated,
            "hedged": self.hedging.asked, "hedges_won": self.hedging.won, "bytes": self.fetched,
        }  # fmt: skip


_STATUS = re.compile(r"status(?:\s*code)?:?\s*(\d{3})|\b(\d{3})\s+[A-Z][a-z]+", re.IGNORECASE)
_UNHEARD = re.compile(r"error sending request|operation timed out|\bdns\b|connect", re.IGNORECASE)
"""What is said of a connection that came to nothing."""
PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Status codes with which the same request may succeed later."""
_REFUSED = (401, 403)


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error of obstore speaks of; it has no field for that."""
    found = _STATUS.search(str(error))
    return int(found[1] or found[2]) if found else None


def answered(error: Exception) -> bool:
    """Whether an error is the store's own answer, and not the lack of one."""
    if isinstance(error, LateError):
        return False
    if isinstance(error, PassingError):
        return error.answered
    if type(error).__name__ != "GenericError" or status_of(error) is not None:
        return True
    return not _UNHEARD.search(str(error).split("Debug source:")[0])  # which tells how an answer ended, too


def passes(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ShortBodyError | PassingError):
        return True
    if type(error).__name__ != "GenericError":
        return False
    status = status_of(error)
    return status is None or status in PASSING


def is_condition(error: Exception) -> bool:
    """Whether a store refused because it has something else than the condition of the request said."""
    return type(error).__name__ in ("AlreadyExistsError", "PreconditionError")


def understood(error: Exception, what: str) -> StorageError | StaleShardError | None:
    """What an error of obstore is here; None for what is none of them."""
    kind = type(error).__name__
    if isinstance(error, ShortBodyError):
        return StorageError(f"{what}: {error}", errno.EIO)
    if isinstance(error, PassingError):
        return StorageError(f"{what}: {_short(error)}", errno.EIO)
    if isinstance(error, LateError):
        return StorageError(f"{what}: {error}", errno.ETIMEDOUT)
    if kind in ("NotFoundError", "FileNotFoundError") or isinstance(error, FileNotFoundError):
        return StorageError(f"{what}: not there", errno.ENOENT)
    # of a listing that is refused obstore makes a GenericError
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or status_of(error) in _REFUSED:
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
    """The beginning of obstore's text, in one line and without what could be a secret: queries of signed
    URLs, and what stands before an @."""
    text = " ".join(str(error).split("Debug source:")[0].split())
    return cleaned(text)[:300]


def cleaned(text: str) -> str:
    """A text without what could be a secret in its URLs: queries, and what stands before an @."""
    text = re.sub(r"://[^/\s\"']*@", "://", text)
    return re.sub(r"\?[^\s)\"',]+", "?...", text)
