"""The last lines of the log, in memory and bounded. Knows nothing of who reads them."""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator

from shardfs import config
from shardfs.log_formats import JsonLines, PlainLines


class LogLines(logging.Handler):
    """A handler of the logging module that keeps what it is given."""

    def __init__(self, form: str = "plain") -> None:
        """`form` is one of `log_formats.FORMATS`."""
        super().__init__()
        self._lines: deque[str] = deque(maxlen=config.LOG_LINES)
        self._most = None if form == "json" else config.LOG_LINE  # what is cut off later is no JSON any more
        self.setFormatter(JsonLines(config.LOG_LINE) if form == "json" else PlainLines())

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).split("\n"):  # a traceback has many
            self._lines.append(line[: self._most])

    def text(self) -> bytes:
        """All lines, the oldest first."""
        with_ends = [line + "\n" for line in self._lines.copy()]
        return "".join(with_ends).encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def kept_lines(form: str = "plain") -> Iterator[LogLines]:
    """The lines that are logged inside this block. Where nobody has set up logging they go to stderr as before, for
    which the logging module only cares as long as there is no handler at all."""
    root, lines = logging.getLogger(), LogLines(form)
    added = [lines, *([logging.lastResort] if not root.handlers and logging.lastResort is not None else [])]
    for handler in added:
        root.addHandler(handler)
    try:
        yield lines
    finally:
        for handler in added:
            root.removeHandler(handler)
