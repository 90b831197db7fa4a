"""Values of a sample and the bytes of the files that show them.

A *value tree* is what a driver makes of one record: plain Python values, with the heavy leaves (arrays, bytes,
pictures, pickles) given as references into the shard's raw bytes, so that nothing large is copied. Each heavy leaf
knows its file: the extension, the exact size, and the content as *prefix + run of the raw bytes* or as something
rendered on demand. The light rest is light_json.py's.

Knows nothing of file names (names.py, layout.py), of shards or of drivers.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgpack
import numpy as np

from shardfs import config
from shardfs.errors import DamagedShardError, StorageError

Buffer = memoryview
"""A shard's raw bytes: one-dimensional, format `B`."""

Tree = Any
"""A value tree: None, bool, int, float, complex, str, list, tuple, dict, set, Decimal, datetime, Timestamp, UUID,
numpy scalars, bytes, ndarray, and the leaves of this module."""


@dataclass(frozen=True, slots=True)
class Content:
    """One file's bytes: `prefix` and then a run of the raw bytes, or, where `render` is given, what that returns."""

    ext: str
    size: int
    """Exact size of the whole file in bytes."""
    prefix: bytes = b""
    offset: int = 0
    render: Callable[[], bytes] | None = None
    note: str | None = None
    """Why the value is shown as mere bytes, where its declared encoding could not decode it."""


# --- extensions -------------------------------------------------------------------------------------------------

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "jpg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"II*\0", "tif"),
    (0, b"MM\0*", "tif"),
    (0, b"II+\0", "tif"),
    (0, b"MM\0+", "tif"),
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"\x1aE\xdf\xa3", "mkv"),
    (0, b"%PDF-", "pdf"),
    (0, b"PAR1", "parquet"),
    (0, b"ARROW1\0\0", "arrow"),
    (0, b"\x1f\x8b\x08", "gz"),
    (0, b"\x28\xb5\x2f\xfd", "zst"),
    (0, b"BZh", "bz2"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x89HDF\r\n\x1a\n", "h5"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (257, b"ustar", "tar"),
)
_TAR, _USTAR, _FTYP = 257, ord("u"), ord("f")


def extension_of(head: bytes, length: int) -> str:
    """Extension for `length` stored bytes that begin with `head` (300 bytes are enough), by magic number.

    Never `npy`: that one is for arrays. What is not recognised is `bin`.
    """
    for at, magic, ext in _MAGIC:
        if head[at : at + len(magic)] == magic:
            return ext
    if head[:4] == b"RIFF" and head[8:12] in (b"WEBP", b"WAVE"):
        return "webp" if head[8:12] == b"WEBP" else "wav"
    if head[:2] == b"BM" and len(head) >= 26 and int.from_bytes(head[2:6], "little") == length:
        return "bmp"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "avif" if brand == b"avif" else "heic" if brand in (b"heic", b"heix", b"mif1") else "mp4"
    if head[:4] == b"PK\3\4":
        name_length = int.from_bytes(head[26:28], "little")
        return "npz" if head[30 : 30 + name_length].endswith(b".npy") else "zip"
    if len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] >> 4 not in (0, 15):
        return "mp3"  # an MPEG-1/2 layer III frame without an ID3 tag
    return "bin"


_FIRST = frozenset((*(magic[0] for at, magic, _ in _MAGIC if at == 0), *b"RBP"))
"""First bytes of all that `extension_of` knows by its beginning."""


def extension_at(raw: Buffer, offset: int, length: int) -> str:
    """`extension_of` for `length` raw bytes from `offset` on; most are told by one of them."""
    if length > 4:
        first = raw[offset]
        if first == 0xFF and raw[offset + 1] == 0xD8 and raw[offset + 2] == 0xFF:
            return "jpg"
        if first not in _FIRST and raw[offset + 4] != _FTYP and (length <= _TAR or raw[offset + _TAR] != _USTAR):
            return "bin"
    return extension_of(bytes(raw[offset : offset + min(length, 300)]), length)


# --- arrays as files --------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def npy_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Header of the `.npy` file of a C-ordered array (format 1.0, or 3.0 for names outside latin-1).

    Source: numpy.lib.format's description of the file format; aligned to 64 bytes so that it can be mapped.
    """
    descr = np.lib.format.dtype_to_descr(dtype)
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    try:
        literal, version = text.encode("latin-1"), 1
    except UnicodeEncodeError:
        literal, version = text.encode("utf-8"), 3
    if len(literal) > 65_000:
        version = 3 if version == 3 else 2
    width = 2 if version == 1 else 4
    padding = -(8 + width + len(literal) + 1) % 64
    literal += b" " * padding + b"\n"
    return b"\x93NUMPY" + bytes((version, 0)) + len(literal).to_bytes(width, "little") + literal


@lru_cache(maxsize=1024)
def safe_dtype(spec: Any) -> np.dtype[Any]:
    """The numpy dtype of `spec` (text, or nested tuples of fields); ValueError for what is no plain memory layout."""
    try:
        dtype = np.dtype(list(spec) if isinstance(spec, tuple) else spec)
    except (TypeError, ValueError, SyntaxError, KeyError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a dtype: {str(spec)[:80]!r}") from error
    if dtype.hasobject:
        raise ValueError("an object dtype where plain memory is required")
    if dtype.subdtype is not None:
        raise ValueError(f"a dtype with a shape of its own: {str(spec)[:80]!r}")
    return dtype


def checked_shape(shape: Any, dtype: np.dtype[Any], length: int) -> tuple[int, ...]:
    """`shape` as a tuple of ints if it fits `length` bytes of `dtype` exactly; ValueError otherwise."""
    if not isinstance(shape, list | tuple) or len(shape) > config.NDIM:
        raise ValueError("not the shape of an array")
    dims = tuple(shape)
    if any(type(dim) is not int or dim < 0 for dim in dims):
        raise ValueError(f"not the shape of an array: {str(dims)[:80]}")
    if not dtype.itemsize or math.prod(dims) * dtype.itemsize != length:
        raise ValueError(f"{length} bytes for an array of {dtype} and shape {str(dims)[:80]}")
    if any(dim >= 1 << 62 for dim in dims) or math.prod(dim or 1 for dim in dims) * max(dtype.itemsize, 1) >= 1 << 63:
        raise ValueError(f"an impossible shape: {str(dims)[:80]}")
    return dims


def _is_picture(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    return (
        dtype == np.uint8
        and len(shape) == 3
        and shape[2] in (3, 4)
        and shape[0] > 1
        and shape[1] > 1
        and math.prod(shape) + shape[0] <= config.PNG_MAX
    )


# --- heavy leaves -----------------------------------------------------------------------------------------------


@dataclass(slots=True)  # as good as frozen, which would make the making of it, once a file, three times as long
class Blob:
    """Bytes as stored, at `offset` in the raw bytes; the extension by content unless `ext` says so."""

    offset: int
    length: int
    ext: str | None = None
    note: str | None = None

    def content(self, raw: Buffer, arrays: str) -> Content:
        ext = self.ext or extension_at(raw, self.offset, self.length)
        return Content(ext, self.length, b"", self.offset, None, self.note)

    def value(self, raw: Buffer) -> bytes:
        return bytes(raw[self.offset : self.offset + self.length])


@dataclass(slots=True)
class Named:
    """Bytes as stored, at `offset`, whose file the system names itself: `<sample>.<suffix>`, whatever they begin with.

    For systems that keep a value as a file, or that keep its extension. What cannot stand in a file's name is escaped,
    and two names in a sample that are alike are told apart, as of any other file.
    """

    offset: int
    length: int
    suffix: str

    def content(self, raw: Buffer, arrays: str) -> Content:
        return Content(self.suffix.rpartition(".")[2], self.length, b"", self.offset)

    def value(self, raw: Buffer) -> bytes:
        return bytes(raw[self.offset : self.offset + self.length])


NO_SUFFIX = "\0"
"""The suffix of a member without a dot, which no system's name can hold; shown as `%00`."""


@dataclass(slots=True)
class Members:
    """A sample that is nothing but files, each with a name of its system's: what a tar holds of one name.

    It is no dict: all its files are what they are, a `json` among them too, and nothing is merged into that.
    """

    key: str
    """The sample's own name."""
    files: list[Named]
    apart: bool = False
    """True for what the system's own library passes over."""


@dataclass(frozen=True, slots=True)
class Pickle:
    """A pickle as stored. It is never run: from Python it stays this object, whose `data` are its bytes."""

    offset: int
    length: int
    data: bytes = b""

    def content(self, raw: Buffer, arrays: str) -> Content:
        return Content("pkl", self.length, b"", self.offset)

    def value(self, raw: Buffer) -> Pickle:
        return Pickle(self.offset, self.length, bytes(raw[self.offset : self.offset + self.length]))


@dataclass(frozen=True, slots=True)
class Array:
    """A C-ordered array whose memory is at `offset` in the raw bytes; `shape` and `dtype` were checked against it."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def length(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def content(self, raw: Buffer, arrays: str) -> Content:
        if arrays == "png" and _is_picture(self.dtype, self.shape):
            return _array_png(self.shape, lambda: raw[self.offset : self.offset + self.length])
        header = npy_header(self.dtype, self.shape)
        return Content("npy", len(header) + self.length, header, self.offset)

    def value(self, raw: Buffer) -> np.ndarray[Any, Any]:
        """A read-only array over the raw bytes, which it keeps alive."""
        data = raw[self.offset : self.offset + self.length].toreadonly()
        return np.ndarray(self.shape, self.dtype, data)


@dataclass(frozen=True, slots=True)
class Extension:
    """An application's own msgpack type: its code, and its payload at `offset`."""

    code: int
    offset: int
    length: int

    def content(self, raw: Buffer, arrays: str) -> Content:
        return Content("bin", self.length, b"", self.offset)

    def value(self, raw: Buffer) -> msgpack.ExtType:
        return msgpack.ExtType(self.code, bytes(raw[self.offset : self.offset + self.length]))


def _elsewhere() -> StorageError:
    return StorageError("bytes of another object of the storage, which only its own file gives", errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Linked:
    """Bytes of another object of the storage, at `offset` in the shard's positions behind its own raw bytes: its file
    is `header` and these. Nothing of them is looked at for that."""

    offset: int
    length: int
    ext: str
    header: bytes = b""

    def content(self, raw: Buffer, arrays: str) -> Content:
        return Content(self.ext, len(self.header) + self.length, self.header, self.offset)

    def value(self, raw: Buffer) -> Any:
        raise _elsewhere()


@dataclass(frozen=True, slots=True)
class Folder:
    """Files with names and directories of their own: other objects of the storage, as in Linked.

    `files` has path (`/` between levels), offset and length of each, in the order of a walk through the directories; a
    path that ends in `/` says that an empty directory is there.
    """

    files: tuple[tuple[str, int, int], ...]
    name: str = ""
    """Where all of it lies, below the storage's root."""

    def value(self, raw: Buffer) -> Any:
        raise _elsewhere()


def _array_png(shape: tuple[int, ...], pixels: Callable[[], Any]) -> Content:
    from shardfs import images  # numpy-only, but a browser of texts never needs it

    mode = "RGB" if shape[2] == 3 else "RGBA"
    size = images.png_size(shape[1], shape[0], mode, "ndarray")
    return Content("png", size, render=lambda: images.png(shape[1], shape[0], mode, pixels(), "ndarray"))


def _inline_content(value: Any, arrays: str) -> Content:
    """Content of a value that is no reference: text, bytes, an ExtType or an array that was parsed out of text."""
    if isinstance(value, msgpack.ExtType):
        return Content("bin", len(value.data), render=lambda: bytes(value.data))
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return Content("txt", len(text), render=lambda: text)
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise DamagedShardError("an array of Python objects where plain memory is required")
        if arrays == "png" and _is_picture(value.dtype, value.shape):
            return _array_png(value.shape, lambda: np.ascontiguousarray(value).data.cast("B"))
        header = npy_header(value.dtype, value.shape)
        return Content("npy", len(header) + value.nbytes, render=lambda: header + value.tobytes("C"))
    data = bytes(value)
    return Content(extension_of(data[:300], len(data)), len(data), render=lambda: data)


def is_heavy(value: Any) -> bool:
    """True for a value that gets a file of its own. Decided by type, never by size."""
    return hasattr(value, "content") or isinstance(
        value, bytes | bytearray | memoryview | np.ndarray | msgpack.ExtType | Folder
    )


def is_file(value: Any) -> bool:
    """True for a heavy value that is nothing but its file; False for one whose JSON must say more (`$ext`)."""
    return is_heavy(value) and not isinstance(value, Extension | msgpack.ExtType)


def content_of(value: Any, raw: Buffer, arrays: str) -> Content:
    """The file of a heavy value. `arrays` is `png` (uint8 pictures become PNG) or `npy`."""
    if hasattr(value, "content"):
        result: Content = value.content(raw, arrays)
        return result
    return _inline_content(value, arrays)


def to_python(tree: Tree, raw: Buffer, sequence: type = list) -> Any:
    """The plain Python value of a tree: references resolved, lists as `sequence`."""
    if type(tree) is dict:
        return {key: to_python(value, raw, sequence) for key, value in tree.items()}
    if type(tree) is list:
        return sequence(to_python(value, raw, sequence) for value in tree)
    return tree.value(raw) if hasattr(tree, "content") else tree
