"""Plays a trace of a mount (`tracing`) over a directory: the same requests in the same order, by ordinary system calls.

Only what reads is played: names are looked up, directories listed, files opened, read past the kernel's pages, and
closed. What would change something is counted and left out. One request comes after the other, also where several were
under way at once when they were recorded. Knows nothing of mounts.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from shardfs import config
from shardfs.errors import BadSettingError

PLAYED = ("lookup", "getattr", "opendir", "open", "read", "release")
IMPLIED = ("readdir", "releasedir")
"""Done as a part of `opendir`, which lists the whole directory and closes it."""


@dataclass(frozen=True, slots=True)
class Traced:
    """One line of a trace."""

    at: float
    """Seconds since the trace began."""
    operation: str
    path: str | None
    offset: int
    size: int
    seconds: float
    code: int


@dataclass(slots=True)
class Replay:
    """What came of it."""

    played: dict[str, int] = field(default_factory=dict)
    """Operation -> how many were played."""
    implied: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    """The same of what was not: it changes something, or its path is not known."""
    read_bytes: int = 0
    recorded_seconds: float = 0.0
    """What the requests that were played took when they were recorded, one after the other."""
    seconds: float = 0.0
    """What they took now."""
    differing: int = 0
    """Of these, how many ended otherwise: with an error that there was not then, another, or none."""
    examples: list[str] = field(default_factory=list)
    """The first of those."""
    whole: bool = True
    """False if it was ended before the trace was."""


def lines_of(file: BinaryIO) -> Iterator[Traced]:
    """The requests of a trace. BadSettingError for what is none; a last line that is cut off ends it."""
    head = _object(file.readline(config.TRACE_LINE))
    if head is None or head.get("trace") != 1:
        raise BadSettingError("this is no trace that `shardfs mount --trace` has written")
    number = 1
    while line := file.readline(config.TRACE_LINE):
        number += 1
        said = _object(line)
        if said is not None and "end" in said:
            return
        found = None if said is None else _traced(said)
        if found is None and not line.endswith(b"\n") and len(line) < config.TRACE_LINE:
            return  # its writer died
        if found is None:
            raise BadSettingError(f"line {number} of the trace makes no sense")
        yield found


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _traced(said: dict[str, Any]) -> Traced | None:
    numbers = [said.get(name) for name in ("t", "seconds", "offset", "size", "errno")]
    path = said.get("path")
    if any(type(one) not in (int, float) or not 0 <= one < 1 << 62 for one in numbers):  # type: ignore[operator]
        return None
    if not isinstance(said.get("op"), str) or not (path is None or (isinstance(path, str) and "\0" not in path)):
        return None
    at, seconds, offset, size, code = numbers
    return Traced(float(at), said["op"], path, int(offset), int(size), float(seconds), int(code))  # type: ignore[arg-type]


class Player:
    """Plays requests over the directory `root`, and never leaves it."""

    def __init__(
        self, root: Path, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.outcome = Replay()
        self._root = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: OrderedDict[int, str] = OrderedDict()
        """Descriptor -> path, the oldest first."""
        self._by_path: dict[str, list[int]] = {}
        self._clock = clock
        self._sleep = sleep

    def close(self) -> None:
        for descriptor in self._open:
            os.close(descriptor)
        os.close(self._root)

    def play(self, requests: Iterator[Traced], speed: float | None = None, seconds: float | None = None) -> Replay:
        """All of them: as fast as they go, or at `speed` times the recorded pace; for no longer than `seconds`."""
        begun = self._clock()
        for one in requests:
            if seconds is not None and self._clock() - begun > seconds:
                self.outcome.whole = False
                break
            if speed is not None:
                early = begun + one.at / speed - self._clock()
                if early > 0:
                    self._sleep(early)
            self._one(one)
        return self.outcome

    def _one(self, one: Traced) -> None:
        outcome = self.outcome
        if one.operation in IMPLIED:
            outcome.implied += 1
            return
        if one.operation not in PLAYED or one.path is None or not _inside(one.path):
            outcome.left_out[one.operation] = outcome.left_out.get(one.operation, 0) + 1
            return
        begun = time.perf_counter()
        try:
            _WORKS[one.operation](self, one)
            code = 0
        except OSError as error:
            code = error.errno or errno.EIO
        outcome.seconds += time.perf_counter() - begun
        outcome.recorded_seconds += one.seconds
        outcome.played[one.operation] = outcome.played.get(one.operation, 0) + 1
        if code != one.code and one.operation != "release":
            outcome.differing += 1
            if len(outcome.examples) < config.NOTES_LOGGED:
                outcome.examples.append(f"{one.operation} {one.path}: {_told(code)}, was {_told(one.code)}")

    def look(self, one: Traced) -> None:
        os.stat(one.path or ".", dir_fd=self._root, follow_symlinks=False)

    def list(self, one: Traced) -> None:
        descriptor = os.open(one.path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
        try:
            with os.scandir(descriptor) as entries:
                for _ in entries:
                    pass
        finally:
            os.close(descriptor)

    def open(self, one: Traced) -> None:
        assert one.path is not None
        descriptor = self._opened(one.path)
        if len(self._open) >= config.REPLAY_OPEN:
            oldest, path = next(iter(self._open.items()))
            self._close(oldest, path)
        self._open[descriptor] = one.path
        self._by_path.setdefault(one.path, []).append(descriptor)

    def _opened(self, path: str) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:  # past the kernel's pages, so that each read is asked of whoever serves the directory
            return os.open(path, flags | os.O_DIRECT, dir_fd=self._root)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return os.open(path, flags, dir_fd=self._root)

    def read(self, one: Traced) -> None:
        assert one.path is not None
        there = self._by_path.get(one.path)
        descriptor = there[-1] if there else self._opened(one.path)
        try:
            size = min(one.size, config.COPY_SLICE)
            self.outcome.read_bytes += len(_read(descriptor, size, one.offset))
        finally:
            if not there:
                os.close(descriptor)

    def release(self, one: Traced) -> None:
        assert one.path is not None
        there = self._by_path.get(one.path)
        if there:
            self._close(there[-1], one.path)

    def _close(self, descriptor: int, path: str) -> None:
        del self._open[descriptor]
        left = self._by_path[path]
        left.remove(descriptor)
        if not left:
            del self._by_path[path]
        os.close(descriptor)


_WORKS: dict[str, Callable[[Player, Traced], None]] = {
    "lookup": Player.look,
    "getattr": Player.look,
    "opendir": Player.list,
    "open": Player.open,
    "read": Player.read,
    "release": Player.release,
}


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """As pread(2). On a disk, unlike on a mount, reading past the kernel's pages wants whole blocks: then it goes on
    through them."""
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            raise
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return os.pread(descriptor, size, offset)


def _inside(path: str) -> bool:
    """Whether a path of a trace, which anybody may have written, stays below the directory that it is played over."""
    return not path.startswith("/") and ".." not in path.split("/")


def _told(code: int) -> str:
    return errno.errorcode.get(code, str(code)) if code else "no error"
