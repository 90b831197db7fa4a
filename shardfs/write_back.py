"""Which staged keys are to be sealed by themselves, and when: after some quiet, and again after a failure.

The clock is given with each question, in seconds. Knows nothing of how a key is sealed, or of who waits.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass

from shardfs import config
from shardfs.errors import BadSampleError, BadSettingError, NotWritableError, ShardfsError, StagingError, UnaskedError
from shardfs.staging import StagedDirectory, StagingArea

log = logging.getLogger("shardfs")

_LASTING = BadSampleError | BadSettingError | NotWritableError
"""Why trying again is of no use before something is changed."""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A key that is to be sealed by itself, or could not be."""

    staged: StagedDirectory
    since: float
    """When it was last changed, or seen with an open writer."""
    changed: bool = True
    """False once a seal has begun that takes all there is."""
    written: bool = False
    """True if it had an open writer when it was last looked at."""
    trying: bool = False
    stuck: bool = False
    """True if trying again is of no use until something is changed."""
    delay: float = 0.0
    not_before: float = 0.0
    problem: str | None = None
    told: str | None = None
    """What the log says of why it is never sealed by itself."""


class WriteBack:
    """The keys of one staging area that wait for their seal. With `appends` a new key comes behind all others in the
    store, and waits until changes of those are stored that are just being made."""

    def __init__(self, area: StagingArea, appends: bool) -> None:
        self._area = area
        self._appends = appends
        self._waiting: dict[str, _Waiting] = {}

    def touched(self, staged: StagedDirectory, now: float) -> bool:
        """Something was changed in a staged directory. True if it may be due before whatever was."""
        waiting = self._waiting.get(staged.id)
        if waiting is None:
            if staged.kind != "key":
                return False
            self._waiting[staged.id] = _Waiting(staged, now)
            return True
        earlier = waiting.stuck or not waiting.changed
        waiting.since, waiting.changed, waiting.stuck = now, True, False
        return earlier

    def begun(self, staged: StagedDirectory) -> None:
        """A seal begins that takes all that is staged by now."""
        waiting = self._waiting.get(staged.id)
        if waiting is not None:
            waiting.changed = False

    def succeeded(self, staged: StagedDirectory, left: bool) -> None:
        """A seal is done; `left` if it has left something."""
        waiting = self._waiting.get(staged.id)
        if waiting is not None:
            waiting.delay = waiting.not_before = 0.0
            waiting.stuck, waiting.problem = False, None
            waiting.changed = waiting.changed or left
            if not waiting.changed:
                del self._waiting[staged.id]

    def gone(self, staged: StagedDirectory) -> None:
        """It is no longer there, or no longer to be sealed."""
        self._waiting.pop(staged.id, None)

    def failed(self, staged: StagedDirectory, error: ShardfsError, now: float) -> None:
        """Remember why, and when to try again."""
        if staged.parked is not None or staged.kind != "key" or self._area.find(staged.key) is not staged:
            return
        waiting = self._waiting.setdefault(staged.id, _Waiting(staged, now))
        # what was changed since it began, it has not seen
        seen, waiting.changed = not waiting.changed, True
        if error.errno == errno.EBUSY and isinstance(error, StagingError):
            return  # somebody writes, which is nobody's fault: it is looked at again anyway
        if str(error) != waiting.problem:
            log.warning("%s is not sealed, and stays staged: %s", staged.key, error)
        waiting.problem = str(error)
        # the numbers of a new key's samples depend on other keys, those of a stored one on itself alone
        unasked = isinstance(error, UnaskedError) and staged.base_version is not None
        waiting.stuck = seen and (unasked or isinstance(error, _LASTING))
        waiting.delay = min(max(2 * waiting.delay, config.SEAL_RETRY), config.SEAL_RETRY_MAX)
        waiting.not_before = now + waiting.delay

    def problems(self) -> dict[str, str]:
        """Keys whose last seal failed, or that are not sealed by themselves, and why."""
        return {found.staged.key: found.problem for found in self._waiting.values() if found.problem is not None}

    def due(self, quiet: float, now: float) -> tuple[list[StagedDirectory], float]:
        """Keys that are to be sealed now (each until `tried` is called for it), and when to look again."""
        nearest, found, held = float("inf"), [], False
        # changes of stored keys first: they decide whether new ones are held back
        for waiting in sorted(self._waiting.values(), key=lambda waiting: waiting.staged.base_version is None):
            if waiting.trying or waiting.stuck or not waiting.changed:
                continue
            if self._area.find(waiting.staged.key) is not waiting.staged:
                del self._waiting[waiting.staged.id]
            elif waiting.staged.kind != "key" or self._refused(waiting):
                waiting.stuck = True
            else:
                when = self._when(waiting, quiet, now)
                new = waiting.staged.base_version is None
                if when <= now and not (held and new):
                    waiting.trying = True
                    found.append(waiting.staged)
                    continue
                nearest = min(nearest, max(when, now + quiet / 4))
                # not by one that fails, or that somebody keeps open: that may be for ever
                held = held or (self._appends and not new and not waiting.written and waiting.problem is None)
        return found, nearest

    def tried(self, staged: StagedDirectory) -> bool:
        """A key that was due has been sealed, or not. True if it is still waiting."""
        waiting = self._waiting.get(staged.id)
        if waiting is not None:
            waiting.trying = False
        return waiting is not None

    @staticmethod
    def _when(waiting: _Waiting, quiet: float, now: float) -> float:
        when = max(waiting.since + quiet, waiting.not_before)
        if waiting.written or when <= now:
            waiting.written = waiting.staged.writers > 0
            if waiting.written:
                waiting.since = now
                return now + quiet / 4  # more often then: nobody tells when it is closed
        return when

    @staticmethod
    def _refused(waiting: _Waiting) -> bool:
        """True, with one line in the log, for what is never sealed by itself."""
        staged = waiting.staged
        reason = staged.damage or staged.parked or staged.doubt
        if reason is not None and reason != waiting.told:
            log.warning("%s is not sealed by itself: %s; see `shardfs staging list`", staged.key, reason)
            waiting.problem = waiting.told = reason
        return reason is not None
