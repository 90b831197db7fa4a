"""Samples as members of a tar. Knows nothing of storage or compression.

What is written is what webdataset 1.0.2 (tariterators.py) reads as the same sample under the same name: a name that it
would take apart otherwise is refused.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from shardfs import config, names
from shardfs.drivers.base import Cell, Files, NewRecord, Verbatim
from shardfs.drivers.tar_headers import ending, header, padding
from shardfs.drivers.webdataset_shards import member_name, plain_name, split
from shardfs.errors import BadSettingError
from shardfs.values import NO_SUFFIX, Buffer

_NUMBERS = frozenset(("cls", "cls2", "class", "count", "index", "inx", "id"))
"""Suffixes whose values the library's own writer (writer.py) makes texts of."""

_ITS_OWN = frozenset(("__url__", "__local_path__", "__bad__"))
"""Fields that the library adds to what it reads."""


def packed(records: Iterable[NewRecord]) -> Iterator[bytes | Buffer]:
    """A tar of these samples, piece by piece, a sample's members side by side. BadSettingError, with the sample's name,
    for what no tar can hold, and for two samples that would be read as one."""
    seen: set[str] = set()
    length = 0
    for number, record in enumerate(records):
        for piece in [record.data] if isinstance(record, Verbatim) else _sample(record.sample, number, seen):
            length += len(piece)
            yield piece
    yield ending(length)


def _sample(sample: Any, number: int, seen: set[str]) -> Iterator[bytes | Buffer]:
    files = sample if isinstance(sample, Files) else files_of(sample, number)
    own = {_name(files.key, suffix, isinstance(content, Cell)): content for suffix, content in files.files}
    called = {plain_name(split(name)[0]) for name in own}
    if len(called) != 1 or len(own) != len(files.files) or called & seen:
        raise BadSettingError(f"sample {files.key[:100]}: it, or a file of it, would stand there twice")
    seen |= called
    for name, content in own.items():
        if isinstance(content, Cell):
            yield content.data
            continue
        yield header(name, len(content))
        yield content
        yield padding(len(content))


def _name(key: str, suffix: str, stored: bool) -> str:
    """The member's name. One that would be read as another sample's, or as none, is written as it is shown."""
    if stored or faithful(key, suffix):
        return member_name(key, suffix)
    if not faithful(key, "x"):
        key = names.escape(key).replace(".", "%2E")
    if not faithful("x", suffix):
        suffix = names.own_suffix(suffix, config.NAME_MAX) or "%"
    if not faithful(key, suffix):
        raise BadSettingError(f"sample {key[:100]}: a tar cannot hold its file {suffix[:100]!r}")
    return member_name(key, suffix)


def files_of(sample: Any, number: int) -> Files:
    """The files of a sample as the library has it: `__key__`, and bytes by suffix. Without `__key__` it is called by
    its number. Texts are UTF-8, numbers the texts of them where the library has them so, arrays `.npy`, plain values
    `.json`. BadSettingError for what is none of this, and for names that the library would read as others."""
    if not isinstance(sample, Mapping):
        raise BadSettingError(f"sample {number}: a WebDataset sample is a dict of bytes by extension, and `__key__`")
    key = sample.get("__key__", f"{number:06d}")
    if not isinstance(key, str):
        raise BadSettingError(f"sample {number}: its `__key__` must be text")
    files = []
    for suffix, value in sample.items():
        if suffix == "__key__" or suffix in _ITS_OWN:
            continue
        if not isinstance(suffix, str) or not faithful(key, suffix):
            raise BadSettingError(f"sample {key[:100]}: it would not be read again under this name with {suffix!r}")
        files.append((suffix, _content(key, suffix, value)))
    if not files:
        raise BadSettingError(f"sample {key[:100]}: it has no field, and a tar has no sample without one")
    return Files(key, tuple(files))


def faithful(key: str, suffix: str) -> bool:
    """Whether the member is read again as this sample's, with this suffix."""
    return bool(key) and suffix != "" and split(member_name(key, suffix)) == (key, suffix)


def _content(key: str, suffix: str, value: Any) -> bytes | Buffer:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    kind = suffix.rpartition(".")[2].lower()
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if kind == "json" and isinstance(value, dict | list | int | float | None):
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
        except (TypeError, ValueError, RecursionError) as error:
            raise BadSettingError(f"sample {key[:100]}: {suffix} cannot be written as JSON: {error}") from error
    if kind in _NUMBERS and isinstance(value, int | np.integer):
        return str(int(value)).encode()
    if kind == "npy" and isinstance(value, np.ndarray) and not value.dtype.hasobject:
        file = io.BytesIO()
        np.save(file, value, allow_pickle=False)
        return file.getvalue()
    raise BadSettingError(f"sample {key[:100]}: {suffix} must be bytes, not {type(value).__name__}")


__all__ = ["NO_SUFFIX", "faithful", "files_of", "packed"]
