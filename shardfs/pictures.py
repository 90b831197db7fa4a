"""Pictures stored as raw pixels (Pillow's mode, size and `tobytes()`), and the files that show them.

Knows nothing of the formats pictures lie in, but for the record that MDS makes of one. Needs Pillow only to give a
picture to Python; as a file it is made without.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shardfs import images
from shardfs.errors import DamagedShardError, MissingExtraError
from shardfs.values import Blob, Buffer, Content

if TYPE_CHECKING:
    from PIL.Image import Image

_HEADER = struct.Struct("<III")
_MODE_MAX = max(len(mode) for mode in images.BITS)


@dataclass(frozen=True, slots=True)
class Picture:
    """Pixels at `offset` in the raw bytes: `length` bytes, `height` rows of `width` pixels of Pillow's `mode`.

    The sides are not zero and fit the length: `parse` saw to that.
    """

    offset: int
    length: int
    mode: str
    width: int
    height: int

    def content(self, raw: Buffer, arrays: str) -> Content:
        """A PNG where PNG has the mode, made when it is read; else a TIFF whose pixels are the stored bytes."""
        if images.fits_png(self.width, self.height, self.mode):
            size = images.png_size(self.width, self.height, self.mode, f"pil:{self.mode}")
            return Content("png", size, render=lambda: self._png(raw))
        header = images.tiff_header(self.width, self.height, self.mode)
        return Content("tif", len(header) + self.length, header, self.offset)

    def _png(self, raw: Buffer) -> bytes:
        pixels = raw[self.offset : self.offset + self.length]
        return images.png(self.width, self.height, self.mode, pixels, f"pil:{self.mode}")

    def value(self, raw: Buffer) -> Image:
        """A PIL image. MissingExtraError without Pillow, DamagedShardError where this Pillow has no such mode."""
        try:
            from PIL import Image  # optional, and slow to import
        except ImportError as error:
            raise MissingExtraError("pictures need Pillow: pip install 'shardfs[images]'") from error
        pixels = bytes(raw[self.offset : self.offset + self.length])
        try:
            return Image.frombytes(self.mode, (self.width, self.height), pixels)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedShardError(f"Pillow makes no picture of mode {self.mode} ({error})", self.offset) from error


def parse(raw: Buffer, offset: int, length: int) -> Picture | Blob:
    """The picture in a `pil` record of `length` bytes at `offset`; as a Blob with a note what is none.

    Record (MDS): u32 width, u32 height, u32 length of the mode, the mode's name, pixels.
    """
    try:
        return _parse(raw, offset, length)
    except ValueError as error:
        return Blob(offset, length, "bin", f"pil: {error}")


def _parse(raw: Buffer, offset: int, length: int) -> Picture:
    if length < _HEADER.size:
        raise ValueError(f"{length} bytes are too few for a picture")
    width, height, mode_length = _HEADER.unpack_from(raw, offset)
    if mode_length > min(_MODE_MAX, length - _HEADER.size):
        raise ValueError(f"a mode whose name has {mode_length} bytes")
    pixels = offset + _HEADER.size + mode_length
    mode = str(raw[offset + _HEADER.size : pixels], "utf-8")
    left = length - _HEADER.size - mode_length
    row = images.row_bytes(width, mode)
    if not width or not height:
        raise ValueError(f"a picture of {width} x {height} pixels")
    if row * height != left:
        raise ValueError(f"{left} bytes for {width} x {height} pixels of mode {mode}")
    if not images.fits_png(width, height, mode):
        images.tiff_header(width, height, mode)  # ValueError where even TIFF has no room
    return Picture(pixels, left, mode, width, height)
