"""A progress line on stderr, on a terminal only."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_EVERY = 0.1
_WIDTH = 30


class Progress:
    """`with Progress("indexing") as bar: bar.show(done, total)`. Silent where stderr is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._last = 0.0
        self._begun = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._shown or (done < total and now - self._last < _EVERY):
            return
        self._last = now
        filled = _WIDTH * done // max(total, 1)
        left = (now - self._begun) / max(done, 1) * (total - done)
        bar = "#" * filled + "-" * (_WIDTH - filled)
        print(f"\r{self._what} [{bar}] {done}/{total}, {left:.0f} s left ", end="", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown and self._last:
            print(file=sys.stderr)
