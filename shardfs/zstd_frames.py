"""Shards as many zstd frames with a table of where they are, so that one sample of a huge shard costs one frame.

The form is the zstd seekable format (contrib/seekable_format in the zstd repository, version 0.1.0): frames one after
the other, then a skippable frame with two or three u32 for each (stored size, raw size, lower half of the raw bytes'
XXH64), the number of frames, flags and a magic number. To everything else it is ordinary zstd with something to skip at
its end.
Knows nothing of what the raw bytes mean.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import numpy as np
import zstandard

from shardfs import config
from shardfs.errors import DamagedShardError
from shardfs.in_order import Filling, InOrder
from shardfs.raw_bytes import RawBytes
from shardfs.values import Buffer

_HEADER = struct.Struct("<II")
"""Of the skippable frame: magic, bytes that follow."""
_FOOTER = struct.Struct("<IBI")
"""Frames, flags, magic."""
_SKIPPABLE = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1
_CHECKSUMS = 0x80
_RESERVED = 0x7C
"""Flags that must not be set; the lowest two mean nothing."""
_LEAST = 8
"""Stored bytes of the smallest frame, a skippable one; zstd's own have 9."""
_JOINED = 16
"""Frames out of which `part` makes one run at most: there may be a million small ones in a megabyte."""


class FrameWriter:
    """Writes records into `file` as frames, and at the end the table.

    A record of up to `target` bytes lies in one frame; a larger one begins a frame and is cut into frames of `target`
    bytes, of which the last may take what follows. The table takes 17 bytes and 8 a frame; what fits into one frame has
    none, as it would say no more than the frame's own header: tiny shards, and empty ones, are as any zstd writer makes
    them. Frames carry their content's size and checksum. They are compressed in threads, and the same whatever the
    number of these; used in a `with` block, at whose end the threads do.
    """

    def __init__(self, file: BinaryIO, level: int, target: int = config.FRAME_TARGET) -> None:
        self._file = file
        self._level = level
        self._target = target
        self._pending = Filling(target)
        self._flushed = False
        self._frames: list[tuple[int, int]] = []
        self._spare: list[Filling] = []
        self._compressors: list[zstandard.ZstdCompressor] = []
        self._order = InOrder(self._compressed, self._write)

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._order.close()

    def put(self, record: bytes | Buffer) -> None:
        """One record, in the order of calls."""
        if self._pending.size and self._pending.size + len(record) > self._target:
            self._flush()
        if len(record) <= self._target:
            self._pending.add(record)
            return
        view = memoryview(record)
        for at in range(0, len(record), self._target):
            self._pending.add(view[at : at + self._target])
            if self._pending.size == self._target:
                self._flush()

    def _flush(self) -> None:
        self._flushed = True
        self._order.put(self._pending)
        self._pending = self._spare.pop() if self._spare else Filling(self._target)

    def _compressed(self, filling: Filling) -> tuple[bytes, Filling]:
        try:
            compressor = self._compressors.pop()  # each is for one thread at a time
        except IndexError:
            compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=True, write_content_size=True)
        stored = compressor.compress(filling.raw)
        self._compressors.append(compressor)
        return stored, filling

    def _write(self, frame: tuple[bytes, Filling]) -> None:
        stored, filling = frame
        self._frames.append((len(stored), filling.size))
        self._file.write(stored)
        filling.size = 0
        self._spare.append(filling)

    def finish(self) -> None:
        """Write what is left. Once, after the last record."""
        if self._pending.size or not self._flushed:
            self._flush()
        self._order.finish()
        self._order.close()
        if len(self._frames) > 1:
            sizes = np.array(self._frames, "<u4").tobytes()
            self._file.write(_HEADER.pack(_SKIPPABLE, len(sizes) + _FOOTER.size))
            self._file.write(sizes + _FOOTER.pack(len(self._frames), 0, _SEEKABLE))


@dataclass(frozen=True, slots=True)
class SeekTable:
    """Where frames are: frame `i` takes the stored bytes `stored[i]` to `stored[i + 1]`, and the raw ones alike."""

    stored: Sequence[int]
    raw: Sequence[int]
    checksums: Sequence[int] | None
    nbytes: int

    @property
    def size(self) -> int:
        """Raw bytes of all frames."""
        return self.raw[-1]


def table_length(stored: int, tail: bytes) -> int | None:
    """Bytes of the seek table, its frame's header included, at the end of a file of `stored` bytes that ends with
    `tail`; None where that is no seek table or too large a one."""
    if len(tail) < _FOOTER.size:
        return None
    frames, flags, magic = _FOOTER.unpack_from(tail, len(tail) - _FOOTER.size)
    length = _HEADER.size + frames * _width(flags) + _FOOTER.size
    if magic != _SEEKABLE or flags & _RESERVED or length > config.FRAME_TABLE or length + frames * _LEAST > stored:
        return None
    return int(length)


def _width(flags: int) -> int:
    return 12 if flags & _CHECKSUMS else 8


def seek_table(stored: int, tail: bytes) -> SeekTable | None:
    """The seek table of a file of `stored` bytes that ends with `tail`; None where there is none that fits it.

    It is believed only if its frames fill the file exactly, and none is empty or larger than config.FRAME_MAX.
    """
    length = table_length(stored, tail)
    if length is None or length > len(tail):
        return None
    table = memoryview(tail)[len(tail) - length :]
    if _HEADER.unpack_from(table) != (_SKIPPABLE, length - _HEADER.size):
        return None
    width = _width(table[-5])
    sizes = np.frombuffer(table[_HEADER.size : -_FOOTER.size], "<u4").reshape(-1, width // 4)
    if not len(sizes) or sizes[:, 0].min() < _LEAST or not sizes[:, 1].all() or sizes[:, :2].max() > config.FRAME_MAX:
        return None
    ends = np.zeros((2, len(sizes) + 1), np.uint64)
    np.cumsum(sizes[:, :2].T, axis=1, dtype=np.uint64, out=ends[:, 1:])
    if ends[0, -1] + length != stored:
        return None
    checksums = np.ascontiguousarray(sizes[:, 2]) if width == 12 else None
    nbytes = ends.nbytes + (0 if checksums is None else checksums.nbytes)
    # as memoryviews: their items are plain integers, and `bisect` finds among them in a microsecond
    return SeekTable(ends[0].data, ends[1].data, None if checksums is None else checksums.data, nbytes)


def raw_size_hint(stored: int, tail: bytes) -> int:
    """About how many raw bytes a file's seek table speaks of; 0 where it has none. Only as good as the table's last
    rows where `tail` does not hold all of it."""
    length = table_length(stored, tail)
    if length is None:
        return 0
    width = _width(tail[-5])
    rows = min(length - _HEADER.size, len(tail)) - _FOOTER.size
    sizes = np.frombuffer(tail, "<u4", rows // width * width // 4, len(tail) - _FOOTER.size - rows // width * width)
    totals = sizes.reshape(-1, width // 4)[:, :2].sum(axis=0, dtype=np.uint64).tolist()
    return 0 if not totals[0] else int(totals[1]) * (stored - length) // int(totals[0])


class Stored(Protocol):
    """An opened file, as storage offers it."""

    size: int

    def read_at(self, offset: int, count: int) -> bytes: ...

    def advise(self) -> None: ...


def read_table(file: Stored) -> SeekTable | None:
    """The seek table of an opened file; None where it has none. StorageError, StaleShardError."""
    if file.size < _FOOTER.size:
        return None
    length = table_length(file.size, file.read_at(file.size - _FOOTER.size, _FOOTER.size))
    return None if length is None else seek_table(file.size, file.read_at(file.size - length, length))


class _Pending:
    """A frame that some thread is decompressing; `data` is None still when it could not."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.data: bytes | None = None


Refill = Callable[[int, int], None]


class Frames:
    """The raw bytes of one file with a seek table: what of a ShardReader has to do with bytes. Thread-safe.

    Keeps decompressed frames, the last used ones, of up to `limit` bytes together and at least one. The file is held
    open, and closes itself: any thread may still be reading when a cache lets go of this object.
    """

    computes = True

    def __init__(self, file: Stored, table: SeekTable, limit: int) -> None:
        self._file = file
        self._table = table
        self.limit = limit
        self._frames: OrderedDict[int, bytes] = OrderedDict()
        self._frame_bytes = 0
        self._pending: dict[int, _Pending] = {}
        self._lock = threading.Lock()  # held for microseconds: `part` takes it on the event loop
        self._last = -2
        self._row = 0
        self._ahead = 0
        self.size = table.size
        self.refill: Refill = lambda start, end: None
        """Told, in any thread, which raw bytes a reader who goes from frame to frame will want next: to be given to
        `hold`."""

    @property
    def held(self) -> int:
        return self._frame_bytes + self._table.nbytes

    def part(self, start: int, end: int) -> Buffer | None:
        """A slice of one frame is not copied; parts of several are, if they are few bytes."""
        runs = self._runs(start, end)
        if len(runs) > 1 and (len(runs) > _JOINED or end - start > config.COPY_SLICE):
            return None
        with self._lock:
            if any(frame not in self._frames for frame in runs):
                return None
            held = [self._used(frame) for frame in runs]
        self._follow(runs)
        parts = [self._within(frame, data, start, end) for frame, data in zip(runs, held, strict=True)]
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def fetch(self, start: int, end: int) -> Buffer:
        """See ShardReader. A frame that several threads want is decompressed once."""
        runs = self._runs(start, end)
        self._follow(runs)
        if len(runs) == 1:
            return self._within(runs[0], self._frame(runs[0]), start, end)
        joined = RawBytes(min(end, self.size) - start if runs else 0)
        for frame in runs:
            part = self._within(frame, self._frame(frame), start, end)
            for at in range(0, len(part), config.COPY_SLICE):
                joined.add(part[at : at + config.COPY_SLICE])
        return memoryview(joined.whole()).toreadonly()

    def hold(self, start: int, end: int) -> None:
        """Decompress the frames of a range of raw bytes, to have them at hand. In a worker; errors as `fetch`."""
        for frame in self._runs(start, end):
            self._frame(frame)

    def _follow(self, runs: range) -> None:
        """See whether frames are read in a row. Called by many threads: what one spoils is a guess."""
        if not runs:
            return
        first, last, before = runs[0], runs[-1], self._last
        self._last = last
        if not before <= first <= before + 1:
            self._row, self._ahead = 0, 0
        elif last > before:
            self._row += 1
        begin = max(self._ahead, last + 1)
        stop = min(last + 1 + config.FRAMES_AHEAD, len(self._table.raw) - 1)
        if self._row >= config.FRAMES_SURE and begin < stop and begin <= last + 1 + config.FRAMES_AHEAD // 2:
            self._ahead = stop
            for frame in range(begin, stop):
                self.refill(self._table.raw[frame], self._table.raw[frame + 1])

    def expect(self) -> None:
        """Has the file read ahead, if it is not too large; decompresses nothing."""
        if self._file.size <= config.ADVISE_LIMIT:
            self._file.advise()

    def _runs(self, start: int, end: int) -> range:
        """The frames that hold a range of raw bytes."""
        raw = self._table.raw
        start, end = max(start, 0), min(end, self.size)
        return range(bisect_right(raw, start) - 1, bisect_right(raw, end - 1)) if start < end else range(0)

    def _within(self, frame: int, data: bytes, start: int, end: int) -> Buffer:
        """What of a frame lies in a range of raw bytes."""
        base = self._table.raw[frame]
        return memoryview(data)[max(start - base, 0) : end - base]

    def _used(self, frame: int) -> bytes:
        self._frames.move_to_end(frame)
        return self._frames[frame]

    def _frame(self, frame: int) -> bytes:
        while True:
            with self._lock:
                if frame in self._frames:
                    return self._used(frame)
                pending = self._pending.get(frame)
                mine = pending is None
                if pending is None:
                    pending = self._pending[frame] = _Pending()
            if mine:
                return self._decompress_for_all(frame, pending)
            pending.done.wait()
            if pending.data is not None:
                return pending.data
            # the other thread failed: this one finds out for itself why, and raises an error of its own

    def _decompress_for_all(self, frame: int, pending: _Pending) -> bytes:
        try:
            pending.data = self._decompressed(frame)
        finally:
            dropped: list[bytes] = []  # freeing megabytes takes longer than the lock may be held
            with self._lock:
                del self._pending[frame]
                if pending.data is not None:
                    self._keep(frame, pending.data, dropped)
            pending.done.set()
        return pending.data

    def _keep(self, frame: int, data: bytes, dropped: list[bytes]) -> None:
        # room first: whoever asks for `held` meanwhile must not find more than the limit
        while self._frames and self._frame_bytes + len(data) > self.limit:
            dropped.append(self._frames.popitem(last=False)[1])
            self._frame_bytes -= len(dropped[-1])
        self._frames[frame] = data
        self._frame_bytes += len(data)

    def _decompressed(self, frame: int) -> bytes:
        table = self._table
        offset, raw_offset = table.stored[frame], table.raw[frame]
        size = table.raw[frame + 1] - raw_offset
        stored = self._file.read_at(offset, table.stored[frame + 1] - offset)
        try:
            # looked at first: zstandard takes the memory that the frame claims, whatever is the most it may
            claimed = zstandard.get_frame_parameters(stored)
            if claimed.content_size not in (size, zstandard.CONTENTSIZE_UNKNOWN):
                raise DamagedShardError(f"a zstd frame of {claimed.content_size} bytes, not {size}", raw_offset)
            decompressor = zstandard.ZstdDecompressor(max_window_size=config.ZSTD_WINDOW)
            data = decompressor.decompress(stored, max_output_size=size, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DamagedShardError(f"a zstd frame is broken ({error})", raw_offset) from error
        if len(data) != size:
            raise DamagedShardError(f"a zstd frame of {len(data)} bytes, not {size}", raw_offset)
        # the frame's own checksum, which has been compared, is the one the table has
        checksum = int.from_bytes(stored[-4:], "little") if claimed.has_checksum else None
        if table.checksums is not None and checksum not in (None, table.checksums[frame]):
            raise DamagedShardError("a zstd frame is not the one its seek table has the checksum of", raw_offset)
        return data
