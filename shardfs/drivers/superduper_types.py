"""What Superduper's types say of a column's bytes: which file shows them, and what they are in Python.

Nothing of it is run: decoders are pickled functions, so a type is what its name, its shape and its media type say.
Source: what superduper-framework 0.3, 0.4, 0.5 and 0.10 write, found by running them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardfs import values

_ARRAY = re.compile(r"(?:array|vector)\[([A-Za-z0-9_]+):([0-9x]+)\]\Z")  # 0.10
_NUMPY = re.compile(r"numpy[-.]([A-Za-z0-9_]+)\[([0-9x]+)\]\Z")  # 0.2 to 0.5, superduper.ext.numpy

_LIGHT = frozenset(
    ("str", "int", "float", "bool", "date", "timestamp", "String", "Int64", "Int32", "Float64", "Boolean")
)
"""Types that are plain columns: a text in one is a text, whatever it says."""

_MEDIA = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/tiff": "tif",
    "image/bmp": "bmp",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/flac": "flac",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "video/mp4": "mp4",
    "application/pdf": "pdf",
    "application/json": "json",
    "application/gzip": "gz",
    "text/plain": "txt",
    "text/csv": "csv",
    "text/html": "html",
}
"""Extensions by media type."""

_NAMES = {
    "pickle": "pkl",
    "pickleencoder": "pkl",
    "pickle_encoder": "pkl",
    "pickle_lazy": "pkl",
    "pickle_serializer": "pkl",
    "dill": "pkl",
    "dillencoder": "pkl",
    "dill_encoder": "pkl",
    "dill_lazy": "pkl",
    "dill_serializer": "pkl",
    "torch": "pt",
    "torch_encoder": "pt",
    "torch_lazy": "pt",
    "torch_serializer": "pt",
}
"""Extensions by name of a type, where that is the library's own."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What stores of some releases have in common."""

    hashed: bool
    """True if blobs are named by the SHA-1 of their bytes."""
    mangled: bool
    """True if a reference to a file has its name, too, with `__` for each dot; documents have members more then."""
    open: bool
    """True if everybody may do everything with artifacts (mode 0777)."""


OLD = Layout(True, True, False)
"""0.2 and 0.3."""

MIDDLE = Layout(True, False, True)
"""0.4 and 0.5; and what fits all, where the release is not known."""

NEW = Layout(False, False, True)
"""0.10."""


@dataclass(frozen=True, slots=True)
class ColumnType:
    """What is known of a column."""

    name: str = ""
    """As the store says it: `array[float32:4x3]`, `pickle`, the identifier of a DataType."""
    encodable: str = ""
    """0.2 to 0.5: `encodable`, `artifact`, `lazy_artifact`, `file`, `native`; else empty."""
    media: str | None = None
    text: bool = False
    """True if bytes in the table may be base64 in a text."""
    dtype: str = ""
    """0.5: the type of an array's elements, where it is said, and its shape."""
    shape: tuple[int, ...] = ()

    @property
    def light(self) -> bool:
        """True for a plain column, in which nothing is a reference."""
        return self.name in _LIGHT and not self.encodable

    @property
    def json(self) -> bool:
        """True where a text is JSON."""
        return self.name in ("json", "filedict", "dict", "list")

    @property
    def base64(self) -> bool:
        """True where a text is bytes in base64."""
        return self.text and not self.light and not self.json and self.name not in ("", "file")

    @property
    def pickled(self) -> bool:
        return self.ext == "pkl"

    @property
    def ext(self) -> str:
        """The extension of the file that shows its bytes, by type, then by media type; `bin` where neither tells."""
        known = _NAMES.get(self.name) or _MEDIA.get((self.media or "").partition(";")[0].strip().lower())
        if known is None and "pil_image" in self.name:
            known = "png"
        if known is None and self.encodable:
            known = "pkl" if self.name.startswith(("pickle", "dill")) else None
        return known or "bin"

    def array(self, length: int) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
        """dtype and shape of an array of so many bytes, where the type's name says them and they fit."""
        match = _ARRAY.match(self.name) or _NUMPY.match(self.name)
        if match is None and not (self.dtype and self.shape):
            return None
        try:
            dtype = values.safe_dtype(self.dtype if match is None else match[1])
            shape = self.shape if match is None else tuple(int(part) for part in match[2].split("x"))
            if math.prod(shape) * dtype.itemsize != length:
                return None
            return dtype, values.checked_shape(shape, dtype, length)
        except ValueError:
            return None


UNKNOWN = ColumnType()


@dataclass(frozen=True, slots=True)
class TableInfo:
    """One table of rows."""

    name: str
    primary_id: str
    columns: dict[str, ColumnType]
    """What is known of its columns, by name."""
    schema: str = ""
    """0.2 to 0.5: the identifier of its schema."""


Component = tuple[str, str, str, dict[str, Any]]
"""A component of 0.2 to 0.5: id, type, identifier, and what it is made of; later versions behind earlier ones."""


def component_types(tables: list[str], components: list[Component]) -> list[TableInfo]:
    """What components say of tables: a table has a schema, a schema's fields have types. 0.2 to 0.5."""
    known = _Components(components)
    infos = []
    for name in tables:
        table = known.by_name.get(("table", name), {})
        fields = as_dict(known.meant(table.get("schema")).get("fields"))
        columns = {str(column): known.type_of(kind) for column, kind in fields.items()}
        reference = table.get("schema")
        schema = ":".join(reference.split(":")[3:-1]) if isinstance(reference, str) else ""
        infos.append(TableInfo(name, str(table.get("primary_id") or "id"), columns, schema))
    return infos


class _Components:
    def __init__(self, components: list[Component]) -> None:
        self.by_id = {number: made for number, _, _, made in components}
        self.by_name = {(kind, name): made for _, kind, name, made in components}

    def meant(self, value: Any) -> dict[str, Any]:
        """What a reference to a component means (`&:component:<type>:<identifier>:<uuid>`): that one, else the latest
        of its name."""
        if not isinstance(value, str):
            return as_dict(value)
        parts = value.split(":")
        if len(parts) < 5 or parts[:2] != ["&", "component"]:
            return {}
        return self.by_id.get(parts[-1]) or self.by_name.get((parts[2], ":".join(parts[3:-1])), {})

    def type_of(self, value: Any) -> ColumnType:
        if isinstance(value, str) and not value.startswith("&:component:"):
            return ColumnType(value.removeprefix("?").removeprefix("datatype:"))
        made = self.meant(value)
        named = ":".join(value.split(":")[3:-1]) if isinstance(value, str) else ""
        media = made.get("media_type")
        in_text = str(made.get("bytes_encoding", "Bytes")).lower() in ("str", "base64", "bytesencoding.base64")
        name = str(made.get("identifier") or named)
        encodable, dtype, shape = str(made.get("encodable") or "native"), made.get("dtype"), made.get("shape")
        dims = tuple(dim for dim in shape if type(dim) is int) if isinstance(shape, list | tuple) else ()
        text = str(media) if media else None
        return ColumnType(name, encodable, text, in_text, dtype if isinstance(dtype, str) else "", dims)


def as_dict(value: Any) -> dict[str, Any]:
    """A dict, an empty one for all else."""
    return value if isinstance(value, dict) else {}
