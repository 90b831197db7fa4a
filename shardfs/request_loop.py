"""How the event loop waits for the next FUSE request: by asking first and sleeping only when there is none.

pyfuse3's own wait costs a trio hop for each request, three quarters of the time of a small read. This one replaces the
module-level `_wait_fuse_readable` of the pinned pyfuse3 (a private name: `install` leaves everything as it is where the
name is not there). Where nothing else is to be done it sleeps in the task itself, woken by requests and by whatever
trio waits for: handing the watch from task to task and back costs more than most requests. For that it must know trio's
own epoll, which is a private name, too; without it all sleep is trio's. Knows nothing of what requests are.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from time import perf_counter
from types import ModuleType

import trio

STOCK = "SHARDFS_STOCK_LOOP"
"""Set to 1 in the environment, pyfuse3's own wait stays; for comparing."""

_NAME = "_wait_fuse_readable"

NO_SPIN = "SHARDFS_NO_SPIN"
"""Set to 1, it sleeps as soon as there is no request; for comparing."""

SPINS = 60
"""How often a lone reader's next request is asked for before the sleep: 0.1 ms at most. Falling asleep and being woken
up takes both sides as long as the request itself."""

_SCALE = 1024
_CROWD = 3 * _SCALE // 4
_SHARE = 5
"""Above this share of requests that were there at once (a running mean, each counted for one part in 2 ** _SHARE) there
is more than one reader: they need the processor, and the next request is there soon anyway."""

LONGEST = 0.02
"""Seconds that the loop sleeps by itself: what trio has to do meanwhile is told by its epoll, and a longer sleep may as
well cost more."""

_LATE = 0.001
"""Seconds within which trio may call a deadline over that was not yet a moment before."""

SHORT = 0.00025
"""Seconds of sleep below which spinning would have met the request, or nearly."""

_PATTERN = 6
"""Waits that are remembered for guessing the next."""

FAIR = 64
"""Requests answered in a row before other tasks (loads that ended, signals) get their turn."""


class Rhythm:
    """Whether the next request is worth spinning for, by what became of the waits behind the same few before: who reads
    a file and then decodes it comes back soon after some of his requests and late after others."""

    def __init__(self) -> None:
        self._seen = 0
        self._counters = bytearray([2]) * (1 << _PATTERN)

    def soon(self) -> bool:
        """A guess."""
        return self._counters[self._seen] > 1

    def met(self, soon: bool) -> None:
        """What became of it."""
        at = self._seen
        count = self._counters[at] + (1 if soon else -1)
        if 0 <= count <= 3:
            self._counters[at] = count
        self._seen = (at << 1 | soon) & ((1 << _PATTERN) - 1)


class _Turns(trio.abc.Instrument):
    """Whether trio has only one task to run in a turn, which its statistics do not say: they are of the next turn."""

    def __init__(self) -> None:
        self.alone = False

    def after_io_wait(self, timeout: float) -> None:
        now = trio.lowlevel.current_statistics()
        self.alone = now.tasks_runnable <= 1 and now.seconds_to_next_deadline > _LATE


class RequestLoop:
    """The wait of all session tasks of one mount, and its end."""

    def __init__(self, descriptor: int, calm: Callable[[], bool] = lambda: False) -> None:
        """`calm` says whether the processors have nothing else to do for this mount."""
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self._calm = calm
        self._spins = SPINS if len(os.sched_getaffinity(0)) > 1 and os.environ.get(NO_SPIN) != "1" else 0
        self._at_once = 0
        self._rhythm = Rhythm()
        self._turns: _Turns | None = None
        self._asleep: select.poll | None = None
        self._one = trio.Lock()
        self._ended = False
        self._row = 0

    def end(self) -> None:
        """Let every task that waits, now or later, return False."""
        self._ended = True
        trio.lowlevel.notify_closing(self._descriptor)

    async def wait(self) -> bool:
        """True when a request can be read without blocking; False when the loop is to end.

        The poll is the very last thing before True: with anything awaited between, another task could take the
        request, and reading would then block the process with the GIL held.
        """
        self._row += 1
        if self._row >= FAIR:
            self._row = 0
            await trio.lowlevel.checkpoint()
        if self._asked_to_end():
            return False
        if self._poll.poll(0):
            self._at_once += (_SCALE - self._at_once) >> _SHARE
            return True
        self._at_once -= self._at_once >> _SHARE
        if self._turns is None:
            self._begin()
        wake = self._alone()
        if wake is None:
            await trio.lowlevel.checkpoint()
            if self._asked_to_end():
                return False
            wake = self._alone()
        if wake is not None and self._waited(wake):
            return True
        async with self._one:
            while True:
                if self._asked_to_end():
                    return False
                try:
                    await trio.lowlevel.wait_readable(self._descriptor)
                except trio.ClosedResourceError:
                    return False
                if self._poll.poll(0):
                    return True

    def _waited(self, wake: float) -> bool:
        """Wait here until there is a request, which is True, or something else for trio to do, in `wake` seconds at
        the latest."""
        begun = perf_counter()
        found = self._at_once < _CROWD and self._calm() and self._rhythm.soon() and self._spun()
        if found or self._slept(wake):
            self._rhythm.met(perf_counter() - begun < SHORT)
            return True
        return False

    def _spun(self) -> bool:
        poll = self._poll.poll
        return any(poll(0) for _ in range(self._spins))

    def _slept(self, wake: float) -> bool:
        if self._asleep is None:
            return False
        ready = self._asleep.poll(max(0.0, min(LONGEST, wake)) * 1000)
        return any(descriptor == self._descriptor for descriptor, _ in ready)

    def _begin(self) -> None:
        """What can be done inside the running trio loop only."""
        self._turns = _Turns()
        trio.lowlevel.add_instrument(self._turns)
        epoll = trio_epoll()
        if epoll is not None:
            self._asleep = select.poll()
            self._asleep.register(self._descriptor, select.POLLIN)
            self._asleep.register(epoll.fileno(), select.POLLIN)

    def _alone(self) -> float | None:
        """Seconds until trio has something to do by the clock; None where another task may run before that."""
        if self._turns is None or not self._turns.alone:
            return None
        now = trio.lowlevel.current_statistics()
        return None if now.tasks_runnable or now.run_sync_soon_queue_size else now.seconds_to_next_deadline

    def _asked_to_end(self) -> bool:
        return self._ended


def trio_epoll() -> select.epoll | None:
    """What the running trio loop waits with; None where it is not what it is known to be."""
    context = getattr(getattr(trio._core, "_run", None), "GLOBAL_RUN_CONTEXT", None)
    found = getattr(getattr(getattr(context, "runner", None), "io_manager", None), "_epoll", None)
    return found if isinstance(found, select.epoll) else None


def install(pyfuse3: ModuleType, descriptor: int, calm: Callable[[], bool]) -> RequestLoop | None:
    """Replace pyfuse3's wait on the session's `descriptor`; None where that is not wanted or not possible. `calm` as in
    RequestLoop."""
    if os.environ.get(STOCK) == "1" or not callable(getattr(pyfuse3, _NAME, None)):
        return None
    loop = RequestLoop(descriptor, calm)
    setattr(pyfuse3, _NAME, loop.wait)
    return loop
