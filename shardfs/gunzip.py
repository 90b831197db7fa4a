"""gzip streams: stored bytes to raw bytes. Knows nothing of shards, nor of how many raw bytes there may be: whoever
takes them counts.

isal's reader puts them right where they are to lie and lets go of the GIL once for a megabyte. The twins of zlib, which
are there without it, make an object of each piece: they ask for the GIL with each doubling of its memory, hundreds of
times for a shard, and two threads that decompress then wait for one another more than they gain.
"""

from __future__ import annotations

import gzip
import importlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

from shardfs import config
from shardfs.errors import DamagedShardError


class Feed(Protocol):
    """Where stored bytes come from, and how many have."""

    count: int

    def read(self, count: int) -> bytes: ...

    def readinto(self, view: memoryview) -> int: ...


class Raw(Protocol):
    """Where raw bytes go; `check` raises where they are too many for the stored ones."""

    size: int

    def add(self, piece: bytes | memoryview) -> None: ...

    def fill(self, readinto: Callable[[memoryview], int]) -> int: ...

    def check(self, used: int, behind: int = 0) -> None: ...


def _fastest_inflate() -> Any:
    """isal's twin of zlib where it is installed: 2 times faster, and it refuses what zlib refuses."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib


inflate = _fastest_inflate()

_BEGINS = (b"\x1f\x8b", b"\x1f")
"""How each member begins; one byte is one that is cut off."""

_NOT_GZIP = "not gzip"
_CUT_OFF = "the gzip stream is cut off"
_BEHIND = "the gzip stream is broken: what stands behind it is none"


def decompress(source: Feed, raw: Raw) -> None:
    """Any number of gzip members, and zero padding behind them, put into `raw`. No bytes at all are no members.

    `raw` is checked after each megabyte at the latest, with at most config.GZIP_BUFFER more stored bytes than were
    needed so far. DamagedShardError.
    """
    # not a name that isal promises, but what its own igzip is made of
    reader = getattr(inflate, "_GzipReader", None)
    if reader is None:
        _by_pieces(source, raw)
    else:
        _in_place(reader, source, raw)


class _Filling:
    """A source that leaves no room in what it is to fill but at its end: isal looks back into its buffer by as many
    bytes as it holds back, which a shorter one might not have."""

    def __init__(self, source: Feed) -> None:
        self._source = source
        self.begins: bytes | None = None
        """The first two bytes."""

    def read(self, count: int) -> bytes:
        """By this isal tells a file from bytes; it calls the other one."""
        return self._source.read(count)

    def readinto(self, view: memoryview) -> int:
        if len(view) > config.GZIP_BUFFER:
            raise OverflowError  # a header has not fitted into twice as much, which newer versions try
        size = 0
        while size < len(view) and (count := self._source.readinto(view[size:])):
            size += count
        if self.begins is None:
            self.begins = bytes(view[: min(size, 2)])
        return size


def _in_place(make: Callable[[_Filling, int], Any], source: Feed, raw: Raw) -> None:
    feed = _Filling(source)
    reader = make(feed, config.GZIP_BUFFER)
    try:
        while raw.fill(reader.readinto):
            raw.check(source.count)
    except (gzip.BadGzipFile, EOFError, OverflowError, inflate.error) as error:
        raise DamagedShardError(_reason(feed, error), raw.size) from error


def _reason(feed: _Filling, error: Exception) -> str:
    if feed.begins not in _BEGINS:
        return _NOT_GZIP
    if isinstance(error, EOFError):
        # a few bytes behind a member may be the beginning of another as well as of anything else
        return f"{_CUT_OFF}, or broken behind its end"
    if isinstance(error, OverflowError):
        return f"the gzip stream is broken: a header of more than {config.GZIP_BUFFER >> 10} KiB"
    return f"the gzip stream is broken ({error})"


def _by_pieces(source: Feed, raw: Raw) -> None:
    pending = memoryview(source.read(config.READ_SLICE))
    first = True
    while pending:
        if bytes(pending[:2]) not in _BEGINS:
            raise DamagedShardError(_NOT_GZIP if first else _BEHIND, raw.size)
        stream = inflate.decompressobj(wbits=31)
        while not stream.eof:
            if not pending and not (pending := memoryview(source.read(config.READ_SLICE))):
                raise DamagedShardError(_CUT_OFF, raw.size)
            given = pending[: config.GZIP_FEED]
            try:
                piece = stream.decompress(given, config.COPY_SLICE)
            except inflate.error as error:
                raise DamagedShardError(f"the gzip stream is broken ({error})", raw.size) from error
            left = len(stream.unused_data) if stream.eof else len(stream.unconsumed_tail)
            pending = pending[len(given) - left :]
            raw.add(piece)
            raw.check(source.count - len(pending))
        first = False
        pending = _behind_padding(pending, source)


def _behind_padding(pending: memoryview, source: Feed) -> memoryview:
    """What follows a member, without the zeros in front of it; empty at the end."""
    while True:
        rest = bytes(pending[: config.GZIP_FEED])
        kept = len(rest.lstrip(b"\0"))
        pending = pending[len(rest) - kept :]
        if kept:
            return pending
        if not pending and not (pending := memoryview(source.read(config.READ_SLICE))):
            return pending
