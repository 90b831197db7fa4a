"""How a line of the log looks: plain, as JSON, or as the journal of systemd takes it. Knows nothing of where lines go.

One record is one line, whatever a name or a message in it holds; a traceback has lines of its own, but in JSON.
"""

from __future__ import annotations

import json
import logging
import time

FORMATS = ("plain", "json")

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""Of syslog(3), which the journal takes at the beginning of a line as `<N>` (sd-daemon(3))."""


class PlainLines(logging.Formatter):
    """A line for people. `before` is as the logging module has it, with `%(message)s` at its end."""

    def __init__(self, before: str = "%(asctime)s %(process)d %(levelname)s %(message)s") -> None:
        super().__init__(before)

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _printable(record.message)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """An object in a line: `time` (UTC), `level`, `pid`, `message`, and `error` with the traceback where there is one.
    Texts are cut off behind `most` characters."""

    def __init__(self, most: int | None = None) -> None:
        super().__init__()
        self._most = most

    def format(self, record: logging.LogRecord) -> str:
        whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        made = {
            "time": f"{whole}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "pid": record.process,
            "message": record.getMessage()[: self._most],
        }
        if record.exc_info:
            made["error"] = self.formatException(record.exc_info)[: self._most]
        # names that are no UTF-8 hold lone surrogates
        return json.dumps(made, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")


class JournalLines(logging.Formatter):
    """The lines of another formatter, each with its priority, as the journal reads them from standard error."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).split("\n"))


def formatter(chosen: str, *, to_file: bool, journal: bool) -> logging.Formatter:
    """For one of FORMATS; `journal`: standard error is the journal's, which has times and process numbers itself."""
    if chosen == "json":
        made: logging.Formatter = JsonLines()
    elif to_file:
        made = PlainLines()
    else:
        made = PlainLines("%(message)s" if journal else "shardfs: %(message)s")
    return JournalLines(made) if journal and not to_file else made


def _printable(text: str) -> str:
    """A text with what is no character for people escaped: a name must not make a line of its own."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
