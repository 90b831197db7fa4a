"""Shards' compressions and their limits: stored bytes to raw bytes and back. Knows nothing of formats or stores.
zstd is here, gzip in gunzip.py and gzip_members.py, the rare ones in other_codecs.py.

What a compressed stream claims about its size is never believed: output is taken in small pieces and counted, so that
a bomb ends where the limits of config.py say and not where the memory does. All calls release the GIL while they work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import zstandard

from shardfs import config, gunzip, gzip_members, other_codecs, zstd_frames
from shardfs.errors import BadSettingError, DamagedShardError
from shardfs.raw_bytes import RawBytes, Whole
from shardfs.values import Buffer

Inspect = Callable[[bytes, int], None]
"""Shown the beginning of the raw bytes, and how many stored bytes it took, where that is suspiciously much."""


class Source(Protocol):
    """Where stored bytes come from."""

    def read(self, count: int) -> bytes:
        """The next `count` bytes at most; empty at the end."""


class _Raw(RawBytes):
    """Raw bytes as they grow, with their limit."""

    def __init__(self, limit: int, grow: Callable[[int], None], inspect: Inspect | None, expected: int) -> None:
        super().__init__(min(expected, limit))
        self._limit = limit
        self._grow = grow
        self._inspect = inspect

    def check(self, used: int, behind: int = 0) -> None:
        """To be called after each piece; `used` stored bytes were needed so far, and the last `behind` raw bytes are
        not to be counted."""
        size = max(self.size - behind, 0)
        if self._inspect is not None and size >= config.SUSPECT_SIZE:
            inspect, self._inspect = self._inspect, None
            if size > used * config.SUSPECT_RATIO:
                inspect(self.piece(0, size), used)
        self.expect(size)

    def expect(self, size: int) -> None:
        """To be called before so many raw bytes are there, where that is known. DamagedShardError if they are too
        many."""
        if size > self._limit:
            raise DamagedShardError(
                f"a decompression bomb: over {self._limit >> 20} MiB come out of so few stored bytes", size
            )
        self._grow(size)


class _Observed:
    """A source that shows each stored piece to somebody else, for hashing."""

    def __init__(self, source: Source, observe: Callable[[Buffer], object] | None) -> None:
        self._source = source
        self._readinto: Callable[[memoryview], int] | None = getattr(source, "readinto", None)
        self._observe = observe
        self.count = 0

    def read(self, count: int) -> bytes:
        data = self._source.read(min(count, config.READ_SLICE) if count >= 0 else config.READ_SLICE)
        self.count += len(data)
        if self._observe is not None and data:
            self._observe(memoryview(data))
        return data

    def readinto(self, view: memoryview) -> int:
        """The next bytes right into `view`, where the source can do that."""
        if self._readinto is None:
            data = self.read(len(view))
            view[: len(data)] = data
            return len(data)
        count = self._readinto(view[: config.READ_SLICE])
        self.count += count
        if self._observe is not None and count:
            with view[:count] as piece:
                self._observe(piece)
        return count


COSTLY = frozenset(("gz", "bz2"))
"""Codecs that decompress more slowly than a disk reads what comes out: 0.2 to 0.8 GB/s, and 30 MB/s. zstd makes 1 GB/s
and more."""


def raw_limit(codec: str | None, stored: int) -> int:
    """Raw bytes that so many stored bytes may become."""
    return max(config.BOMB_FLOOR, stored * config.BOMB_RATIO.get(codec or "", 1))


def decompress(
    codec: str | None,
    source: Source,
    stored: int,
    grow: Callable[[int], None] = lambda _: None,
    observe: Callable[[Buffer], object] | None = None,
    inspect: Inspect | None = None,
    expected: int = 0,
) -> Whole:
    """All raw bytes of a shard.

    `codec` is None, `gz`, `zstd` or one of other_codecs.NAMES; `stored` the number of stored bytes; `grow` is told the
    raw size so far after each piece (of a snappy block before it is made); `observe` sees the stored bytes in order,
    each piece only while it is called; `inspect` may look at the beginning of what seems a bomb, and raise; `expected`
    is a hint of how many raw bytes there will be, 0 for none.
    DamagedShardError for anything but complete streams, MissingExtraError.
    """
    raw = _Raw(raw_limit(codec, stored), grow, inspect, expected)
    return raw.whole(_decompress(codec, _Observed(source, observe), raw))


def _decompress(codec: str | None, observed: _Observed, raw: _Raw) -> int:
    """Puts all into `raw`. Returns how many bytes at its end are none of the shard's."""
    behind = 0
    if codec is None:
        while raw.fill(observed.readinto):
            raw.check(observed.count)
    elif codec == "gz":
        gunzip.decompress(observed, raw)
    elif codec == "zstd":
        behind = _unzstd(observed, raw)
    elif codec in other_codecs.NAMES:
        other_codecs.decompress(codec, observed, raw)
    else:
        raise BadSettingError(f"compression {codec!r} is not known here")
    return behind


_SENTINEL = bytes.fromhex("9f2c7d51e84ab6033d90c15f7e28a46b") * 8
"""Its frame does not hold it literally: a block that is stored as it is and cut off would swallow the frame and seem
whole."""
_SENTINEL_FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(_SENTINEL)


_ZSTD_HEADER = 18
"""Bytes in a zstd frame's header at most (RFC 8878, 3.1.1.1)."""


class _WithSentinel:
    """A source with one more frame behind its last byte: zstandard takes a frame that is cut off for a normal end,
    and only what it makes of the frame behind it tells.

    The sentinel comes together with the last bytes of the source: libzstd forgets the beginning of a header if a whole
    frame stands at the beginning of the next piece it is given.
    """

    def __init__(self, source: _Observed) -> None:
        self._source = source
        self._held = b""
        self._ended = False

    def read(self, count: int) -> bytes:
        while not self._ended:
            data = self._source.read(count)
            if not data:
                self._ended = True
                return self._held + _SENTINEL_FRAME
            data = self._held + data
            self._held = data[-_ZSTD_HEADER:]
            if len(data) > _ZSTD_HEADER:
                return data[:-_ZSTD_HEADER]
        return b""


def _unzstd(source: _Observed, raw: _Raw) -> int:
    """Any number of zstd frames. No bytes at all are no frames. Returns the number of bytes that the sentinel made."""
    feed = _WithSentinel(source)
    decompressor = zstandard.ZstdDecompressor(max_window_size=config.ZSTD_WINDOW)
    behind = len(_SENTINEL)
    try:
        with decompressor.stream_reader(feed, read_size=config.READ_SLICE, read_across_frames=True) as stream:  # type: ignore[arg-type]
            while raw.fill(stream.readinto):
                raw.check(source.count, behind)
    except zstandard.ZstdError as error:
        raise DamagedShardError(f"the zstd stream is broken ({error})", max(raw.size - behind, 0)) from error
    if raw.size < behind or raw.piece(raw.size - behind, raw.size) != _SENTINEL:
        raise DamagedShardError("the zstd stream is cut off", max(raw.size - behind, 0))
    return behind


HINT_TAIL = {"gz": gzip_members.SIZE_MEMBER, "zstd": config.FRAME_HINT}
"""Bytes at a file's end that say something of its raw size, by codec."""


class _EnoughError(Exception):
    """As many raw bytes as were wanted."""


def beginning(codec: str | None, source: Source, count: int) -> bytes:
    """The first `count` raw bytes at most, a megabyte more decompressed for them at most. DamagedShardError."""

    def stop(held: int) -> None:
        if held >= count:
            raise _EnoughError

    raw = _Raw(1 << 62, stop, None, count)
    behind = 0
    with contextlib.suppress(_EnoughError):
        behind = _decompress(codec, _Observed(source, None), raw)
    return raw.piece(0, min(count, raw.size - behind))


def raw_size_hint(codec: str | None, stored: int, head: bytes, tail: bytes) -> int:
    """About how many raw bytes will come out: from the first 18 and the last stored bytes, which should be `HINT_TAIL`
    of that codec. A hint, and bounded."""
    limit = raw_limit(codec, stored)
    if codec is None:
        return stored
    claimed = 0
    if codec == "gz":
        # what does not begin as gzip does claims nothing: making room for it would drive out what is sound
        claimed = gzip_members.raw_size(tail) if not head or head.startswith(b"\x1f\x8b") else 0
    elif codec == "zstd" and (claimed := zstd_frames.raw_size_hint(stored, tail)) == 0 and head:
        with contextlib.suppress(zstandard.ZstdError):
            size = zstandard.get_frame_parameters(head).content_size
            claimed = size if size < 1 << 62 else 0
    return min(max(claimed, stored), limit)


@contextlib.contextmanager
def compressing(
    codec: str | None, file: BinaryIO, level: int | None = None, size: int | None = None
) -> Iterator[Callable[[bytes | memoryview], object]]:
    """Gives a function that compresses what it is called with into `file`; at the end of the block all is written.

    One call a record: zstd shards are made of frames at whose ends no record is cut (see zstd_frames), gzip ones of
    members at whose ends any may be (see gzip_members, also for levels). zstd's level is 3 unless said otherwise. Both
    are compressed in threads and written by the caller's, and equal samples make equal bytes whatever their number.
    What `file` says of its position is behind what has been put, until the block ends. `size` is how many raw bytes
    there will be, which snappy must know. MissingExtraError.
    """
    if codec == "gz":
        with gzip_members.MemberWriter(file, level) as members:
            yield members.put
            members.finish()
    elif codec == "zstd":
        with zstd_frames.FrameWriter(file, 3 if level is None else level) as frames:
            yield frames.put
            frames.finish()
    elif codec is None:
        yield file.write
    elif codec in other_codecs.NAMES:
        with other_codecs.compressing(codec, file, level, size) as put:
            yield put
    else:
        raise BadSettingError(f"compression {codec!r} is not known here")
