"""A few figures of a mounted directory as who reads it sees them: first byte, names, files and bytes a second.

Reads only, within a time. Some keys are read whole, the first time and again; what the first reading finds in the
mount's memory already is for the caller to tell. Knows nothing of stores, nor of the process that serves the mount.
"""

from __future__ import annotations

import os
import random
import stat
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from shardfs import config
from shardfs.errors import BadSettingError

_SHARES = (0.5, 0.15, 0.35)
"""Of the time: for reading the first time, for names, for reading again."""


@dataclass(slots=True)
class Pass:
    """One reading of some keys, file by file."""

    files: int = 0
    bytes: int = 0
    seconds: float = 0.0

    @property
    def files_per_second(self) -> float | None:
        return self.files / self.seconds if self.files and self.seconds else None

    @property
    def bytes_per_second(self) -> float | None:
        return self.bytes / self.seconds if self.bytes and self.seconds else None


@dataclass(slots=True)
class Figures:
    """What was measured; seconds, and bytes."""

    keys: int = 0
    """How many were read."""
    first_bytes: list[float] = field(default_factory=list)
    """For each key: from nothing to the first byte of its first file, its listing included."""
    first: Pass = field(default_factory=Pass)
    again: Pass = field(default_factory=Pass)
    """The same files once more, in the same order."""
    names: int = 0
    """Names listed and looked at with the keys loaded."""
    names_seconds: float = 0.0

    @property
    def first_byte(self) -> float | None:
        """The median."""
        return statistics.median(self.first_bytes) if self.first_bytes else None

    @property
    def names_per_second(self) -> float | None:
        return self.names / self.names_seconds if self.names and self.names_seconds else None


def measure(root: Path, seconds: float) -> Figures:
    """Some keys of the mount at `root`, for about so many seconds: what is being read is read to its end or to the end
    of the time. BadSettingError where there is no file. OSError for what cannot be read."""
    made = Figures()
    read: list[tuple[Path, list[str]]] = []
    end = time.monotonic() + seconds * _SHARES[0]
    for path, listing in _keys(root):
        now = time.monotonic()
        if made.keys >= config.BENCH_KEYS or now > end or made.first.bytes >= config.BENCH_BYTES:
            break
        done = _first(made, path, listing, min(end, now + seconds * _SHARES[0] / config.BENCH_LEAST))
        if done:
            made.keys += 1
            read.append((path, done))
    if not read:
        raise BadSettingError(f"{root} has no file to read")
    _look(made, [path for path, _ in read], time.monotonic() + seconds * _SHARES[1])
    _again(made, read, time.monotonic() + seconds * _SHARES[2])
    return made


@dataclass(slots=True)
class _Listing:
    """A directory in which files were found, and since when it is read."""

    names: list[str]
    begun: float


def _keys(root: Path) -> Iterator[tuple[Path, _Listing]]:
    """Directories with files, in an order that is always the same and begins anywhere; each is listed when it comes."""
    chance = random.Random(0)
    waiting = [root]
    while waiting:
        path = waiting.pop()
        begun = time.perf_counter()
        with os.scandir(path) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in islice(entries, config.BENCH_FILES)]
        files = [name for name, folder in found if not folder]
        if files:
            yield path, _Listing(files, begun)
        folders = [path / name for name, folder in found if folder]
        if not files:
            chance.shuffle(folders)
            waiting += folders[: config.BENCH_LISTED]


def _first(made: Figures, path: Path, listing: _Listing, end: float) -> list[str]:
    """Read a key for the first time; the names of those files of it that were read."""
    done: list[str] = []
    buffer = bytearray(config.COPY_SLICE)
    for name in listing.names:
        if done and (time.monotonic() > end or made.first.bytes >= config.BENCH_BYTES):
            break
        descriptor = os.open(path / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not done:
                os.pread(descriptor, 1, 0)
                made.first_bytes.append(time.perf_counter() - listing.begun)
            made.first.bytes += _drained(descriptor, buffer)
        finally:
            os.close(descriptor)
        done.append(name)
    made.first.files += len(done)
    made.first.seconds += time.perf_counter() - listing.begun
    return done


def _drained(descriptor: int, buffer: bytearray) -> int:
    count = 0
    while got := os.readv(descriptor, [buffer]):
        count += got
    return count


def _look(made: Figures, keys: list[Path], end: float) -> None:
    """As `ls -l` does."""
    begun = time.perf_counter()
    for path in keys:
        with os.scandir(path) as entries:
            for entry in islice(entries, config.BENCH_FILES):
                if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                    made.names += 1
        if time.monotonic() > end:
            break
    made.names_seconds = time.perf_counter() - begun


def _again(made: Figures, read: list[tuple[Path, list[str]]], end: float) -> None:
    buffer = bytearray(config.COPY_SLICE)
    begun = time.perf_counter()
    for path, names in read:
        for name in names:
            if made.again.files and time.monotonic() > end:
                break
            descriptor = os.open(path / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                made.again.bytes += _drained(descriptor, buffer)
            finally:
                os.close(descriptor)
            made.again.files += 1
    made.again.seconds = time.perf_counter() - begun
