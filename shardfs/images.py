"""Pixels as PNG and TIFF files that lose nothing and whose sizes are known without rendering; and such PNGs read back.

Knows nothing of samples, shards or Pillow: a picture here is width, height, one of Pillow's mode names and the bytes
that Pillow's `Image.tobytes()` gives for it.

PNG (ISO/IEC 15948, deflate RFC 1951) is written with stored blocks only: compressing would cost 250 times as much and
make the size unknown. A private chunk `shRD` says what the picture was made from; its name marks it as unsafe to copy,
so a program that changes the pixels drops it. TIFF (revision 6.0) is for the modes PNG has no word for: a header, then
the pixels exactly as they are stored.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from shardfs import config

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

BITS: dict[str, int] = {
    "1": 1,
    **dict.fromkeys(("L", "P"), 8),
    **dict.fromkeys(("LA", "La", "PA", "I;16", "I;16L", "I;16B", "I;16N"), 16),
    **dict.fromkeys(("RGB", "YCbCr", "LAB", "HSV"), 24),
    **dict.fromkeys(("RGBA", "RGBa", "RGBX", "CMYK", "I", "F"), 32),
}
"""Bits of one pixel in `Image.tobytes()`, for each mode Pillow has; rows of mode 1 are padded to whole bytes."""

_PNG_FORMS = {"1": (1, 0), "L": (8, 0), "I;16": (16, 0), "RGB": (8, 2), "P": (8, 3), "LA": (8, 4), "RGBA": (8, 6)}
"""Bit depth and colour type (ISO/IEC 15948, 11.2.2) of each mode that PNG holds exactly."""

PNG_MODES = frozenset(_PNG_FORMS)

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK = 12  # length, type and checksum around each chunk's data
_STORED = 0xFFFF  # most bytes in a stored deflate block
_BLOCK = 5  # bytes in front of a stored block
_GREYS = bytes(level for level in range(256) for _ in "RGB")
_ZEROS = bytes(config.COPY_SLICE)
_TIFF_MAX = (1 << 32) - (1 << 16)  # offsets have 32 bits, and the header needs room


def row_bytes(width: int, mode: str) -> int:
    """Bytes in one row of pixels. ValueError for a mode that Pillow does not have."""
    if mode not in BITS:
        raise ValueError(f"unknown mode {mode[:20]!r}")
    return (width * BITS[mode] + 7) // 8


def fits_png(width: int, height: int, mode: str) -> bool:
    """True if `png` can hold such a picture: a mode that PNG has, no zero side, within its limits."""
    sides = 0 < width < 1 << 31 and 0 < height < 1 << 31
    return mode in PNG_MODES and sides and (row_bytes(width, mode) + 1) * height <= config.PNG_MAX


@dataclass(frozen=True, slots=True)
class _Frames:
    """How scanlines are cut into stored blocks.

    Blocks end where rows end, so that all of them can be laid out with array operations: a *unit* is as many whole
    rows as fit into one block, or one row over several blocks.
    """

    stride: int
    """Bytes in a scanline: the filter byte and a row."""
    rows: int
    """Rows in a unit."""
    blocks: int
    """Blocks in a unit."""
    units: int
    """Whole units in the picture; what is left over is one smaller unit of one block."""
    rest: int
    """Rows left over."""

    @classmethod
    def of(cls, width: int, height: int, mode: str) -> _Frames:
        stride = row_bytes(width, mode) + 1
        rows = max(1, min(height, _STORED // stride))
        return cls(stride, rows, -(-rows * stride // _STORED), height // rows, height % rows)

    @property
    def framed(self) -> int:
        """Bytes of all blocks together."""
        count = self.units * self.blocks + (self.rest > 0)
        return (self.units * self.rows + self.rest) * self.stride + count * _BLOCK


def png_size(width: int, height: int, mode: str, mark: str) -> int:
    """Exact length of what `png` gives, in bytes, by arithmetic. ValueError for what PNG cannot hold."""
    if not fits_png(width, height, mode):
        raise ValueError(f"no PNG for {width} x {height} pixels of mode {mode[:20]!r}")
    palette = _CHUNK + len(_GREYS) if mode == "P" else 0
    header = len(_SIGNATURE) + _CHUNK + 13 + _CHUNK + len(mark.encode("utf-8")) + palette
    stream = 2 + _Frames.of(width, height, mode).framed + 4
    return header + _CHUNK + stream + _CHUNK


def png(width: int, height: int, mode: str, pixels: Any, mark: str) -> bytes:
    """A PNG file of stored blocks.

    `pixels` is any buffer with exactly the bytes `Image.tobytes()` has for a picture of `mode`; `mark` becomes the
    content of the `shRD` chunk. A picture of mode P gets a palette of 256 greys, as the real one is not in the
    pixels. ValueError for what PNG cannot hold or a wrong number of bytes. Copies with the GIL released.
    """
    size = png_size(width, height, mode, mark)
    row = row_bytes(width, mode)
    source = np.frombuffer(pixels, np.uint8)
    if source.nbytes != row * height:
        raise ValueError(f"{source.nbytes} bytes for {width} x {height} pixels of mode {mode}")
    frames = _Frames.of(width, height, mode)
    sink = _blank(size)
    out: Bytes = np.frombuffer(sink.getbuffer(), np.uint8)
    at = _put(out, 0, _png_head(width, height, mode, mark))
    idat = at + 4
    at = _put(out, at, struct.pack(">I", 2 + frames.framed + 4) + b"IDAT\x78\x01")
    at, checksum = _put_blocks(out, at, source.reshape(height, row), frames, swap=mode == "I;16")
    at = _put(out, at, struct.pack(">I", checksum))
    at = _put(out, at, struct.pack(">I", zlib.crc32(out[idat:at].data)))
    _put(out, at, _chunk(b"IEND", b""))
    del out
    return sink.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_head(width: int, height: int, mode: str, mark: str) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, *_PNG_FORMS[mode], 0, 0, 0)
    head = _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"shRD", mark.encode("utf-8"))
    return head + _chunk(b"PLTE", _GREYS) if mode == "P" else head


def _put(out: Bytes, at: int, data: bytes) -> int:
    out[at : at + len(data)] = np.frombuffer(data, np.uint8)
    return at + len(data)


def _blank(size: int) -> io.BytesIO:
    """A buffer of `size` bytes to write into, whose `getvalue()` is then a bytes object without a further copy.

    Large ones are joined from pieces because `join` releases the GIL, which clearing memory does not.
    """
    if size <= len(_ZEROS):
        return io.BytesIO(bytes(size))
    whole, rest = divmod(size, len(_ZEROS))
    return io.BytesIO(b"".join([_ZEROS] * whole + [_ZEROS[:rest]]))


def _put_blocks(out: Bytes, at: int, rows: Bytes, frames: _Frames, swap: bool) -> tuple[int, int]:
    """Write all rows as blocks; where that ends, and the Adler-32 of the scanlines.

    One batch of about COPY_SLICE at a time goes through a small buffer of scanlines, so that checksum and copy each
    are one call per batch: a call per block would give the GIL away and wait for it 16 times per MiB.
    """
    unit = frames.rows * frames.stride
    batch = max(1, config.COPY_SLICE // unit)
    scan: Bytes = np.empty((min(batch * frames.rows, len(rows)), frames.stride), np.uint8)
    scan[:, 0] = 0
    checksum, last = 1, at
    for first, count in _batches(frames, batch):
        lines = scan[:count]
        piece = rows[first : first + count]
        lines[:, 1:] = piece.view("<u2").byteswap().view(np.uint8) if swap else piece
        checksum = zlib.adler32(lines.data, checksum)
        units = max(1, count // frames.rows)
        at, last = _put_units(out, at, lines.reshape(units, -1))
    out[last] = 1  # the final block
    return at, checksum


def _batches(frames: _Frames, batch: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each batch: whole units, then what is left over."""
    for unit in range(0, frames.units, batch):
        yield unit * frames.rows, min(batch, frames.units - unit) * frames.rows
    if frames.rest:
        yield frames.units * frames.rows, frames.rest


def _put_units(out: Bytes, at: int, units: Bytes) -> tuple[int, int]:
    """Write units (a row of the array each) as blocks; where that ends, and where the last block begins."""
    count, length = units.shape
    blocks = -(-length // _STORED)
    end = at + count * (length + blocks * _BLOCK)
    framed = out[at:end].reshape(count, -1)
    to, header = 0, 0
    for start in range(0, length, _STORED):
        stop = min(length, start + _STORED)
        header = to
        length_twice = struct.pack("<BHH", 0, stop - start, stop - start ^ _STORED)
        framed[:, to : to + _BLOCK] = np.frombuffer(length_twice, np.uint8)
        framed[:, to + _BLOCK : to + _BLOCK + stop - start] = units[:, start:stop]
        to += _BLOCK + stop - start
    return end, at + (count - 1) * framed.shape[1] + header


# --- reading back -----------------------------------------------------------------------------------------------


def _chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Type and data of each chunk, checksums verified. ValueError for what is no PNG, or cut off, or goes on."""
    if data[: len(_SIGNATURE)] != _SIGNATURE:
        raise ValueError("no PNG")
    at, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if at + _CHUNK > len(data) or end + 4 > len(data):
            raise ValueError("a PNG that is cut off")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError("a PNG with a wrong checksum")
        kind = bytes(data[at + 4 : at + 8])
        yield kind, data[at + 8 : end]
        at = end + 4
    if at != len(data):
        raise ValueError("bytes behind the end of a PNG")


def read_mark(data: Any) -> str | None:
    """The content of the `shRD` chunk of a PNG, if it has one in front of its pixels; None for any other bytes."""
    try:
        for kind, content in _chunks(memoryview(data).cast("B")):
            if kind == b"shRD":
                return str(content, "utf-8")
            if kind == b"IDAT":
                break
    except ValueError:
        pass
    return None


def unpng(data: Any) -> tuple[int, int, str, bytes]:
    """Width, height, mode and pixels (as `Image.tobytes()` has them) of a PNG that `png` made, however deflated.

    ValueError for anything else: other depths, filters, interlacing, transparency, a palette that is not `png`'s,
    chunks that `png` does not write, wrong checksums. Takes memory for config.PNG_MAX bytes of pixels at most.
    """
    header: bytes | None = None
    palette: bytes | None = None
    ended = False
    pieces: list[memoryview] = []
    for kind, content in _chunks(memoryview(data).cast("B")):
        if header is None and kind == b"IHDR" and len(content) == 13:
            header = bytes(content)
        elif header is None or kind not in (b"shRD", b"PLTE", b"IDAT", b"IEND") or ended:
            raise ValueError(f"not a PNG that was made here: chunk {kind!r}")
        elif kind == b"IDAT":
            pieces.append(content)
        elif kind == b"PLTE":
            palette = bytes(content)
        else:
            ended = kind == b"IEND"
    if header is None:
        raise ValueError("a PNG without a header")
    width, height, mode = _form_of(header, palette)
    return width, height, mode, _pixels(pieces, width, height, mode)


def _form_of(header: bytes, palette: bytes | None) -> tuple[int, int, str]:
    width, height, depth, colour, *others = struct.unpack(">IIBBBBB", header)
    for mode, form in _PNG_FORMS.items():
        if form == (depth, colour) and not any(others) and fits_png(width, height, mode):
            if palette != (_GREYS if mode == "P" else None):
                break
            return width, height, mode
    raise ValueError(f"not a PNG that was made here: {width} x {height} pixels, depth {depth}, colour type {colour}")


def _pixels(pieces: list[memoryview], width: int, height: int, mode: str) -> bytes:
    row = row_bytes(width, mode)
    lines = _inflate(pieces, height * (row + 1)).reshape(height, row + 1)
    if lines[:, 0].any():
        raise ValueError("not a PNG that was made here: filtered rows")
    sink = _blank(height * row)
    out: Bytes = np.frombuffer(sink.getbuffer(), np.uint8).reshape(height, row)
    step = max(1, config.COPY_SLICE // row)
    for first in range(0, height, step):
        piece = lines[first : first + step, 1:]
        if mode == "I;16":
            piece = np.ascontiguousarray(piece).view("<u2").byteswap().view(np.uint8)
        out[first : first + step] = piece
    del out
    return sink.getvalue()


def _inflate(pieces: list[memoryview], expected: int) -> Bytes:
    """Exactly `expected` bytes out of one zlib stream. ValueError for more, less, or a broken stream."""
    out: Bytes = np.empty(expected, np.uint8)
    stream = zlib.decompressobj()
    at = 0
    for piece in pieces:
        pending: Any = piece
        while pending and not stream.eof:
            # in slices, because what is not consumed is copied each time
            given, pending = pending[: config.COPY_SLICE], pending[config.COPY_SLICE :]
            while given and not stream.eof:
                try:
                    made = stream.decompress(given, config.COPY_SLICE)
                except zlib.error as error:
                    raise ValueError(f"a PNG whose pixels are damaged ({error})") from error
                if at + len(made) > expected:
                    raise ValueError("a PNG with more pixels than it says")
                at = _put(out, at, made)
                given = stream.unconsumed_tail
        if pending or stream.unused_data:
            raise ValueError("a PNG with bytes behind its pixels")
    if at != expected or not stream.eof:
        raise ValueError("a PNG with fewer pixels than it says")
    return out


# --- TIFF -------------------------------------------------------------------------------------------------------

_SHORT, _LONG, _RATIONAL, _ASCII = 3, 4, 5, 2
_ASSOCIATED_ALPHA, _ALPHA = 1, 2

_TIFF_FORMS: dict[str, tuple[int, int]] = {
    # photometric interpretation (TIFF 6.0, tag 262) and what the last sample is besides colour (tag 338; -1: colour)
    **dict.fromkeys(("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"), (1, -1)),
    **{"LA": (1, _ALPHA), "La": (1, _ASSOCIATED_ALPHA), "P": (3, -1), "PA": (3, _ALPHA)},
    **dict.fromkeys(("RGB", "HSV"), (2, -1)),  # TIFF knows no HSV: the three samples, shown as if they were colours
    **{"RGBA": (2, _ALPHA), "RGBa": (2, _ASSOCIATED_ALPHA), "RGBX": (2, 0)},
    **{"CMYK": (5, -1), "YCbCr": (6, -1), "LAB": (8, -1)},
}


@lru_cache(maxsize=1024)
def tiff_header(width: int, height: int, mode: str) -> bytes:
    """Everything of an uncompressed TIFF file that stands in front of the pixels; these follow as they are stored.

    ValueError for a mode that Pillow does not have, zero sides, and what is over TIFF's 4 GiB. The mode is recorded
    in ImageDescription as `shardfs pil:<mode>`. Little-endian, but for mode I;16B, whose pixels are not.
    """
    size = row_bytes(width, mode) * height
    if width < 1 or height < 1 or size > _TIFF_MAX:
        raise ValueError(f"no TIFF for {width} x {height} pixels of mode {mode}")
    order = ">" if mode == "I;16B" else "<"
    photometric, extra = _TIFF_FORMS[mode]
    depth = BITS[mode] if photometric == 1 and extra < 0 else 8
    samples = BITS[mode] // depth
    entries = [
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [depth] * samples),
        (259, _SHORT, [1]),  # not compressed
        (262, _SHORT, [photometric]),
        (270, _ASCII, f"shardfs pil:{mode}\0".encode("ascii")),
        (273, _LONG, [0]),  # where the pixels begin, known when all else is laid out
        (277, _SHORT, [samples]),
        (278, _LONG, [height]),
        (279, _LONG, [size]),
        *((tag, _RATIONAL, [1, 1]) for tag in (282, 283)),
        (296, _SHORT, [1]),  # pixels have a shape but no size
        (305, _ASCII, b"shardfs\0"),
    ]
    if photometric == 3:
        entries.append((320, _SHORT, [level * 257 for _ in "RGB" for level in range(256)]))
    if extra >= 0:
        entries.append((338, _SHORT, [extra]))
    if mode in ("I", "F"):
        entries.append((339, _SHORT, [2 if mode == "I" else 3]))  # signed, floating
    if mode == "YCbCr":
        entries.append((530, _SHORT, [1, 1]))  # the default would be chroma at half the resolution
    return _directory(order, entries)


def _directory(order: str, entries: list[tuple[int, int, Any]]) -> bytes:
    """The file header, its one directory, and the values that do not fit into that; padded to 16 bytes."""
    values_at = 8 + 2 + 12 * len(entries) + 4
    packed = [_field(order, kind, content) for _, kind, content in entries]
    outside = sum(len(data) + len(data) % 2 for data, _ in packed if len(data) > 4)
    total = -(-(values_at + outside) // 16) * 16
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory, values = struct.pack(order + "H", len(entries)), b""
    for (tag, kind, _), (data, count) in zip(entries, packed, strict=True):
        directory += struct.pack(order + "HHI", tag, kind, count)
        if tag == 273:
            directory += struct.pack(order + "I", total)
        elif len(data) <= 4:
            directory += data.ljust(4, b"\0")
        else:
            directory += struct.pack(order + "I", values_at + len(values))
            values += data + b"\0" * (len(data) % 2)
    return (mark + struct.pack(order + "I", 8) + directory + bytes(4) + values).ljust(total, b"\0")


def _field(order: str, kind: int, content: Any) -> tuple[bytes, int]:
    """A value's bytes, and how many of its type they are."""
    if kind == _ASCII:
        return content, len(content)
    data = struct.pack(f"{order}{len(content)}{'H' if kind == _SHORT else 'I'}", *content)
    return data, len(content) // 2 if kind == _RATIONAL else len(content)
