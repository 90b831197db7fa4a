"""bzip2, brotli and raw snappy: the compressions that MosaicML Streaming has besides gzip and zstd. Stored bytes to raw
bytes and back. Knows nothing of formats or stores, nor of how many raw bytes there may be: whoever takes them counts.

brotli needs the package `brotli`, snappy `cramjam` (both: the extra `codecs`). A raw snappy block says first how long
it is and cannot be taken in pieces: its stored bytes are held while it is decompressed. Source of the format facts:
what mosaicml-streaming 0.13.0 writes and reads, found by running it; snappy's format_description.txt for blocks.
"""

from __future__ import annotations

import bz2
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

from shardfs import config
from shardfs.errors import DamagedShardError, MissingExtraError

NAMES = ("bz2", "br", "snappy")

_PACKAGES = {"br": "brotli", "snappy": "cramjam"}
_VARINT = 5  # bytes of a length below 4 GiB


class Feed(Protocol):
    """Where stored bytes come from, and how many have."""

    count: int

    def read(self, count: int) -> bytes: ...


class Raw(Protocol):
    """Where raw bytes go; `check` and `expect` raise where they are too many for the stored ones."""

    size: int

    def add(self, piece: bytes | memoryview) -> None: ...

    def add_whole(self, size: int, write: Callable[[memoryview], object]) -> None: ...

    def check(self, used: int, behind: int = 0) -> None: ...

    def expect(self, size: int) -> None: ...


def missing(codec: str | None) -> str | None:
    """What to install before shards of this compression can be read or written; None where nothing is missing."""
    try:
        _package(codec or "")
    except MissingExtraError as error:
        return str(error)
    return None


def _package(codec: str) -> Any:
    name = _PACKAGES.get(codec)
    if name is None:
        return None
    try:
        found = importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{codec} needs the package {name}: pip install 'shardfs[codecs]'") from error
    if codec == "br" and not hasattr(found.Decompressor, "can_accept_more_data"):
        # an older one gives all that a few bytes ask for at once, whatever that comes to
        raise MissingExtraError("br needs the package brotli in version 1.2 or later: pip install -U 'shardfs[codecs]'")
    return found


def decompress(codec: str, source: Feed, raw: Raw) -> None:
    """All of `source` into `raw`, a megabyte at a time where the format has pieces. DamagedShardError for anything but
    what is complete, MissingExtraError."""
    {"bz2": _bunzip2, "br": _unbrotli, "snappy": _unsnap}[codec](source, raw)


def _bunzip2(source: Feed, raw: Raw) -> None:
    """Any number of streams one behind the other. No bytes at all are none."""
    pending, at = source.read(config.READ_SLICE), 0
    while pending:
        stream = bz2.BZ2Decompressor()
        while not stream.eof:
            given = b""
            if stream.needs_input:
                if at == len(pending):
                    pending, at = source.read(config.READ_SLICE), 0
                if not pending:
                    raise DamagedShardError("the bzip2 stream is cut off", raw.size)
                # what is left of it is copied at each stream's end
                given = pending[at : at + config.GZIP_FEED]
                at += len(given)
            try:
                raw.add(stream.decompress(given, config.COPY_SLICE))
            except OSError as error:
                raise DamagedShardError(f"the bzip2 stream is broken ({error})", raw.size) from error
            raw.check(source.count)
        at -= len(stream.unused_data)
        if at == len(pending):
            pending, at = source.read(config.READ_SLICE), 0


def _unbrotli(source: Feed, raw: Raw) -> None:
    brotli = _package("br")
    stream = brotli.Decompressor()
    ended = False
    while not stream.is_finished():
        given = b""
        if not ended and stream.can_accept_more_data():
            given = source.read(config.READ_SLICE)
            ended = not given
        try:
            piece = stream.process(given, output_buffer_limit=config.COPY_SLICE)
        except brotli.error as error:
            raise DamagedShardError(f"the brotli stream is broken ({error})", raw.size) from error
        if ended and not piece and not stream.is_finished():
            raise DamagedShardError("the brotli stream is cut off", raw.size)
        raw.add(piece)
        raw.check(source.count)
    if source.read(1):
        raise DamagedShardError("the brotli stream is broken: something stands behind it", raw.size)


def _unsnap(source: Feed, raw: Raw) -> None:
    cramjam = _package("snappy")
    stored = bytearray()
    size = None
    while piece := source.read(config.READ_SLICE):
        stored += piece
        if size is None and len(stored) >= _VARINT:
            size = _block_size(stored)
            raw.expect(size)
    size = _block_size(stored) if size is None else size
    raw.expect(size)
    try:
        raw.add_whole(size, lambda view: cramjam.snappy.decompress_raw_into(stored, view))
    except cramjam.DecompressionError as error:
        raise DamagedShardError(f"the snappy block is broken ({error})", 0) from error
    raw.check(source.count)


def _block_size(stored: bytearray) -> int:
    """The raw bytes that a snappy block says it has: seven bits a byte, the lowest first."""
    size = 0
    for at, byte in enumerate(stored[:_VARINT]):
        size |= (byte & 0x7F) << (7 * at)
        if byte < 0x80:
            return size
    raise DamagedShardError("the snappy block is cut off, or none", 0)


# --- writing ------------------------------------------------------------------------------------------------------


@contextmanager
def compressing(
    codec: str, file: BinaryIO, level: int | None, size: int | None
) -> Iterator[Callable[[bytes | memoryview], object]]:
    """Gives a function that compresses what it is called with into `file`; at the end of the block all is written.

    Without a level it is the library's: 9 for bzip2, 11 for brotli. snappy must know beforehand to which `size` the raw
    bytes will come. MissingExtraError.
    """
    if codec == "snappy":
        with _snapping(file, size) as put:
            yield put
        return
    stream: Any
    if codec == "bz2":
        stream = bz2.BZ2Compressor(9 if level is None else level)
        put, finish = stream.compress, stream.flush
    else:
        stream = _package("br").Compressor(quality=11 if level is None else level)
        put, finish = stream.process, stream.finish
    yield lambda piece: file.write(put(bytes(piece)))
    file.write(finish())


@contextmanager
def _snapping(file: BinaryIO, size: int | None) -> Iterator[Callable[[bytes | memoryview], object]]:
    """A block is its length and then pieces of 64 KiB at most, none of which looks back into the one before: so each is
    what it would be as a block of its own, and no more than one is held."""
    cramjam = _package("snappy")
    if size is None:
        raise ValueError("a snappy block begins with its length")
    file.write(_varint(size))
    pending = bytearray()
    put_so_far = 0

    def compress(piece: bytes | bytearray) -> None:
        block = bytes(cramjam.snappy.compress_raw(bytes(piece)))
        file.write(block[len(_varint(len(piece))) :])

    def put(piece: bytes | memoryview) -> None:
        nonlocal put_so_far
        put_so_far += len(piece)
        pending.extend(piece)
        whole = len(pending) - len(pending) % config.SNAPPY_PIECE
        for at in range(0, whole, config.SNAPPY_PIECE):
            compress(pending[at : at + config.SNAPPY_PIECE])
        del pending[:whole]

    yield put
    if pending:
        compress(pending)
    if put_so_far != size:
        raise ValueError(f"{put_so_far} bytes in a snappy block that says {size}")


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)
