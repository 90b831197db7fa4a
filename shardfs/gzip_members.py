"""Shards as many gzip members, compressed at once, and how many raw bytes they hold together.

A gzip file of several members is an ordinary one (RFC 1952, 2.2): every reader gives what is in them one behind the
other. What the trailer of the last one says of the size is true of that member only, so behind several members there is
one more that is empty, with the size of all in an extra field of its header (subfield `SF`, 8 bytes, little-endian):
readers that do not know of it skip it. Knows nothing of what the raw bytes mean.
"""

from __future__ import annotations

import importlib
import zlib
from functools import cache, partial
from typing import Any, BinaryIO

from shardfs import config
from shardfs.in_order import Filling, InOrder
from shardfs.values import Buffer

_HEAD = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + b"\x0c\0" + b"SF\x08\0"
"""Magic, deflate, a header with an extra field, neither time nor system; length of the field; its subfield's head."""
_LAST_BLOCK = b"\x03\0"
"""Nothing, deflated."""
_TAIL = _LAST_BLOCK + bytes(8)
"""The same, and the check value and size of nothing."""
_PLAIN_HEAD = b"\x1f\x8b\x08" + bytes(6) + b"\xff"
"""Magic, deflate, no extra field, neither time nor system."""

_LARGER = 8
_SLACK = 4096
"""Room for what grows while it is compressed: deflate makes noise larger by a few bytes for each of its blocks."""

SIZE_MEMBER = len(_HEAD) + 8 + len(_TAIL)
"""Stored bytes of the member that says how many raw bytes there are."""

_GZIP = 31
"""zlib's word for a gzip header and trailer around a window of 32 KiB."""


def raw_size(tail: bytes) -> int:
    """Raw bytes of the file that ends with `tail` (SIZE_MEMBER bytes are enough), as its end says; a hint, 0 for none.
    Where one program appended to what another wrote it is wrong."""
    last = tail[-SIZE_MEMBER:]
    if len(last) == SIZE_MEMBER and last.startswith(_HEAD) and last.endswith(_TAIL):
        return int.from_bytes(last[len(_HEAD) : len(_HEAD) + 8], "little")
    return int.from_bytes(tail[-4:], "little") if len(tail) >= 4 else 0


@cache
def _igzip() -> Any:
    """isal's twin of zlib, which compresses several times as fast, at four levels; None where it is not installed."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return None


def encoder_for(level: int | None) -> tuple[Any, int]:
    """What compresses for a level (None: the default), and at which level of its own.

    The default is isal's highest, or without isal zlib's 6. A level that somebody asked for is one of zlib's: isal does
    it where it makes files as small as zlib does at that level, else zlib. So 4 to 9 are always zlib's.
    """
    igzip = _igzip()
    if igzip is not None:
        if level is None:
            return igzip, config.IGZIP_DEFAULT
        if level in config.IGZIP_LEVELS:
            return igzip, config.IGZIP_LEVELS[level]
    return zlib, config.GZIP_DEFAULT if level is None else level


class _OneCall:
    """isal's compressor for one thread at a time, which lets go of the GIL once for a member.

    Its twin of zlib gives what it has made piece by piece and asks for the GIL at each, hundreds of times for a shard:
    threads then wait for one another. This one is not a name that isal promises, but what its igzip has for threads.
    It makes deflate blocks that end at a byte, and no last one.
    """

    def __init__(self, module: Any, room: int) -> None:
        self._make = partial(module._ParallelCompress, room + room // _LARGER + _SLACK)
        self._levels: dict[int, Any] = {}

    def member(self, raw: memoryview, level: int) -> list[bytes]:
        """`raw` as a member, at a level of isal's."""
        if level not in self._levels:
            self._levels[level] = self._make(level)
        blocks, check = self._levels[level].compress_and_crc(raw, b"")
        return [_PLAIN_HEAD, blocks, _LAST_BLOCK + check.to_bytes(4, "little") + len(raw).to_bytes(4, "little")]


_UNEVEN = 7919

_LOOKED_AT = 2 * config.GZIP_PROBES * config.GZIP_PROBE
"""Raw bytes of the smallest member of which it is asked whether it is worth compressing."""

_STORED = zlib, 0
"""What stores as it is: isal's level 0 is none, it makes noise larger."""


def _in_slices(module: Any, level: int, raw: memoryview) -> list[bytes]:
    """One member as a twin of zlib makes it, in pieces."""
    stream = module.compressobj(level, wbits=_GZIP)
    slices = range(0, len(raw), config.GZIP_SLICE)
    return [*(stream.compress(raw[at : at + config.GZIP_SLICE]) for at in slices), stream.flush()]


class MemberWriter:
    """Writes raw bytes into `file` as members of config.GZIP_MEMBER of them each, whatever the pieces they come in.

    Headers carry neither name nor time: equal raw bytes make equal files, whatever the number of threads. Used in a
    `with` block, at whose end the threads do.
    """

    def __init__(self, file: BinaryIO, level: int | None) -> None:
        self._file = file
        self._room = config.GZIP_MEMBER
        self._pending = Filling(self._room)
        self._spare: list[Filling] = []
        self._idle: list[_OneCall] = []
        """What the threads compress with, while they do not."""
        self._size = 0
        self._members = 0
        self._module, self._level = encoder_for(level)
        self._choose = level is None
        self._order = InOrder(self._compressed, self._write)

    def __enter__(self) -> MemberWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._order.close()

    def put(self, piece: bytes | Buffer) -> None:
        """More raw bytes."""
        self._size += len(piece)
        view, at = memoryview(piece), 0
        while len(view) - at >= self._room - self._pending.size:
            behind = at + self._room - self._pending.size
            self._pending.add(view[at:behind])
            self._flush()
            at = behind
        self._pending.add(view[at:])

    def _flush(self) -> None:
        self._members += 1
        self._order.put(self._pending)
        self._pending = self._spare.pop() if self._spare else Filling(self._room)

    def _compressed(self, filling: Filling) -> tuple[list[bytes], Filling]:
        raw = filling.raw
        if not self._choose or len(raw) < _LOOKED_AT:
            return self._member(self._module, self._level, raw), filling
        if not self._shrinks(raw):
            return _in_slices(*_STORED, raw), filling
        made = self._member(self._module, self._level, raw)
        if sum(map(len, made)) >= config.GZIP_WORTH * len(raw):
            made = _in_slices(*_STORED, raw)
        return made, filling

    def _member(self, module: Any, level: int, raw: memoryview) -> list[bytes]:
        """One member, in pieces."""
        if not hasattr(module, "_ParallelCompress"):
            return _in_slices(module, level, raw)
        try:
            compressor = self._idle.pop()
        except IndexError:  # not asked before: another thread may take the last one meanwhile
            compressor = _OneCall(module, self._room)
        made = compressor.member(raw, level)
        self._idle.append(compressor)
        return made

    def _shrinks(self, raw: memoryview) -> bool:
        """Whether samples from all over a member become smaller at all."""
        size, step = config.GZIP_PROBE, len(raw) // config.GZIP_PROBES
        # at uneven distances: samples of one size would show the same of themselves over and over
        starts = (at * step + at * at * _UNEVEN % (step - size) for at in range(config.GZIP_PROBES))
        probe = b"".join(raw[start : start + size] for start in starts)
        return len(self._module.compress(probe, 1)) < len(probe)

    def _write(self, member: tuple[list[bytes], Filling]) -> None:
        pieces, filling = member
        for piece in pieces:
            self._file.write(piece)
        filling.size = 0
        self._spare.append(filling)

    def finish(self) -> None:
        """Write what is left. Once, after the last piece."""
        if self._pending.size or not self._members:
            self._flush()
        self._order.finish()
        self._order.close()
        if self._members > 1:
            self._file.write(_HEAD + self._size.to_bytes(8, "little") + _TAIL)
