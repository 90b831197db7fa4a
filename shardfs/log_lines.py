"""The last lines of the log, in memory and bounded. Knows nothing of who reads them."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator

from shardfs import config


class LogLines(logging.Handler):
    """A handler of the logging module that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=config.LOG_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():  # a traceback has many
            self._lines.append(line[: config.LOG_LINE])

    def text(self) -> bytes:
        """All lines, the oldest first."""
        with_ends = [line + "\n" for line in self._lines.copy()]
        return "".join(with_ends).encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def kept_lines() -> Iterator[LogLines]:
    """The lines that are logged inside this block. Where nobody has set up logging they go to stderr as before, for
    which the logging module only cares as long as there is no handler at all."""
    root, lines = logging.getLogger(), LogLines()
    added = [lines, *([logging.lastResort] if not root.handlers and logging.lastResort is not None else [])]
    for handler in added:
        root.addHandler(handler)
    try:
        yield lines
    finally:
        for handler in added:
            root.removeHandler(handler)
