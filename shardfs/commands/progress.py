"""A progress line on stderr, only on a terminal that can write it anew."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from shardfs.commands import tell
from shardfs.commands.screen import redraws, width

_EVERY = 0.1
_WIDTH = 30
_CLEAR = "\033[K"
"""Takes away what a longer line has left behind this one."""


def _span(seconds: float) -> str:
    """How long that is, to two units."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """`with Progress("indexing") as bar: bar.show(done, total)`. Silent where stderr is no such terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = redraws(sys.stderr)
        self._last = 0.0
        self._begun = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._shown or (done < total and now - self._last < _EVERY):
            return
        self._last = now
        left = (now - self._begun) / max(done, 1) * (total - done)
        figures = f"{done:,}/{total:,}, {_span(left)} left"
        # one column stays free: a cursor behind the last one would begin another line
        wide = max(0, min(_WIDTH, width() - len(self._what) - len(figures) - 5))
        filled = wide * done // max(total, 1)
        bar = f"[{'#' * filled}{'-' * (wide - filled)}] " if wide else ""
        print(f"\r{self._what} {bar}{figures}{_CLEAR}", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line on stderr, in the midst of it."""
        if self._shown and self._last:
            print(f"\r{_CLEAR}", end="", file=sys.stderr)
        tell(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._last:
            print(file=sys.stderr)
