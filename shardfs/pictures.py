"""Pictures stored as raw pixels (Pillow's mode, size and `tobytes()`), and the files that show them.

Knows nothing of the formats pictures lie in, but for the record that MDS makes of one. Needs Pillow only to give a
picture to Python; as a file it is made without.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

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
        pillow = _pillow()
        pixels = bytes(raw[self.offset : self.offset + self.length])
        try:
            made: Image = pillow.frombytes(self.mode, (self.width, self.height), pixels)
            return made
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedShardError(f"Pillow makes no picture of mode {self.mode} ({error})", self.offset) from error


def _pillow() -> Any:
    """Pillow's Image module: optional, and slow to import. MissingExtraError."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pictures need Pillow: pip install 'shardfs[images]'") from error
    return Image


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


def pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of a file of a picture with three or four channels of 8 bits: uint8, (height, width, channels).

    ValueError for any other file. MissingExtraError without Pillow.
    """
    mode, width, height, made = _decoded(data)
    if mode not in ("RGB", "RGBA"):
        raise ValueError(f"a picture of mode {mode}, which is no array of three or four channels")
    return np.frombuffer(made, np.uint8).reshape(height, width, -1)


def record(data: bytes) -> bytes:
    """The record that `parse` reads, of a file of a picture; such a record itself stays what it is.

    Files that Picture makes give exactly what they were made from; of others Pillow tells the pixels, in full colour
    where they have a palette, which has no place in the record. ValueError for what is no picture, MissingExtraError
    where Pillow is needed and missing.
    """
    if isinstance(parse(memoryview(data), 0, len(data)), Picture):
        return data
    own = _own_png(data) or _own_tiff(data)
    mode, width, height, made = own or _decoded(data)
    return pack(mode, width, height, made)


def pack(mode: str, width: int, height: int, made: bytes) -> bytes:
    """A record out of what Pillow calls mode and size and what its `tobytes` gives."""
    return _HEADER.pack(width, height, len(mode)) + mode.encode("utf-8") + made


def _own_png(data: bytes) -> tuple[str, int, int, bytes] | None:
    if (images.read_mark(data) or "").partition(":")[0] not in ("pil", "ndarray"):
        return None
    width, height, mode, made = images.unpng(data)
    return mode, width, height, made


def _own_tiff(data: bytes) -> tuple[str, int, int, bytes] | None:
    """What a TIFF of `images.tiff_header` was made from: by its description, checked by making the header again."""
    mark = data[:4096].partition(b"shardfs pil:")[2].partition(b"\0")[0]
    mode = mark.decode("ascii", "replace")
    order = "<" if data[:2] == b"II" else ">"
    if mode not in images.BITS or len(data) < 34:
        return None
    width, height = (struct.unpack_from(order + "I", data, at)[0] for at in (18, 30))
    try:
        header = images.tiff_header(width, height, mode)
    except ValueError:
        return None
    whole = data.startswith(header) and len(data) == len(header) + images.row_bytes(width, mode) * height
    return (mode, width, height, data[len(header) :]) if whole else None


def _decoded(data: bytes) -> tuple[str, int, int, bytes]:
    pillow = _pillow()
    try:
        with pillow.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode == "P":  # the pixels alone would be numbers of colours that are told nowhere
                image = image.convert("RGBA" if "transparency" in image.info else "RGB")
            return image.mode, image.width, image.height, image.tobytes()
    except (OSError, ValueError, SyntaxError, ArithmeticError, struct.error, pillow.DecompressionBombError) as error:
        raise ValueError(f"no picture that Pillow can read ({error})") from error
