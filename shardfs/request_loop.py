"""How the event loop waits for the next FUSE request: by asking first and sleeping only when there is none.

pyfuse3's own wait costs a trio hop for each request, three quarters of the time of a small read. This one replaces the
module-level `_wait_fuse_readable` of the pinned pyfuse3 (a private name: `install` leaves everything as it is where the
name is not there). Knows nothing of what requests are.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
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

FAIR = 64
"""Requests answered in a row before other tasks (loads that ended, signals) get their turn."""


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
        if self._at_once < _CROWD and self._calm():
            poll = self._poll.poll
            for _ in range(self._spins):
                if poll(0):
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

    def _asked_to_end(self) -> bool:
        return self._ended


def install(pyfuse3: ModuleType, descriptor: int, calm: Callable[[], bool]) -> RequestLoop | None:
    """Replace pyfuse3's wait on the session's `descriptor`; None where that is not wanted or not possible. `calm` as in
    RequestLoop."""
    if os.environ.get(STOCK) == "1" or not callable(getattr(pyfuse3, _NAME, None)):
        return None
    loop = RequestLoop(descriptor, calm)
    setattr(pyfuse3, _NAME, loop.wait)
    return loop
