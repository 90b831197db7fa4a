"""Samples of one shape: what their files have in common is worked out once.

A shape is the names of a sample's fields with the types of their values; the samples of a shard nearly all share one.
Where it is plain (texts as names, no two of which could be taken for one another, none too long), its files are named
without looking for clashes, and only sizes and positions are found anew for each sample. Whatever is not so plain is
refused here and is layout.py's, which says what all of it means: a file described here is what it says, too.

Knows nothing of shards' tables, caches or mounts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shardfs import config, layout, light_json, names, values
from shardfs.errors import DamagedShardError
from shardfs.values import Blob, Buffer, Content, Tree

_PLAIN = frozenset((type(None), bool, int, float, str))
_EXTENSION = 8
"""Bytes of an extension at most."""


File = tuple[str, bytes, bool, int, int]
"""One file of a sample as a table has it: suffix, prefix, whether it is rendered, offset, bytes behind the prefix."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Fields of the `.json`, by what decides how long it is: their names, and the bytes besides these values."""

    fixed: int
    ints: tuple[str, ...]
    floats: tuple[str, ...]
    bools: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """Samples of these fields and types, whose files are named after their fields."""

    files: tuple[tuple[str, str], ...]
    """Name, and name in file names, of each field that is a file."""
    light: tuple[str, ...]
    """Names of the others."""
    plain: Plain | None
    """What the size of these is made of; None if JSON has no word for some."""
    stem_bytes: int
    """Bytes that a sample's name may have at most, so that none of its files' names must be cut."""


def file_of(suffix: str, content: Content) -> File:
    head = len(content.prefix)
    return suffix, content.prefix, content.render is not None, content.offset, content.size - head


class _Unusual(Exception):
    """Something in the sample is not as plain as its shape."""


_REFUSED = (_Unusual, DamagedShardError, TypeError, ValueError, OverflowError, RecursionError)
"""What says that layout.py must look at a sample: it then raises the same, and knows the right words for it."""


class Shapes:
    """The shapes met so far, for one way of showing arrays and texts (see `layout.lay_out`). May be used by several
    threads at once."""

    def __init__(self, arrays: str) -> None:
        self._arrays = arrays.removesuffix(config.TEXT_FILES)
        self._text_files = arrays.endswith(config.TEXT_FILES)
        self._known: dict[tuple[Any, ...], Shape | None] = {}

    def files(self, tree: Tree, raw: Buffer, stem_bytes: int) -> list[File] | None:
        """The files of `layout.lay_out`, in its order; None for a sample that it must look at."""
        if type(tree) is values.Members:
            room = config.NAME_MAX - stem_bytes - 1
            return [(names.own_suffix(file.suffix, room), b"", False, file.offset, file.length) for file in tree.files]
        shape = self._shape(tree)
        if shape is None or stem_bytes > shape.stem_bytes:
            return None
        made: list[File] = []
        try:
            for key, stem in shape.files:
                value = tree[key]
                if type(value) is Blob and value.ext is None and value.note is None:
                    ext = values.extension_at(raw, value.offset, value.length)
                    suffix = ext if stem == ext else f"{stem}.{ext}"
                    made.append((suffix, b"", False, value.offset, value.length))
                else:
                    made.append(self._file(value, stem, raw))
            if shape.light or not made:
                made.append((layout.JSON, b"", True, 0, _json_size(shape, tree)))
        except _REFUSED:
            return None
        return made

    def json(self, tree: Tree, stem_bytes: int, number: int) -> bytes | None:
        """The sample's `.json`, which is its file of that number; None for a sample that layout.py must look at."""
        shape = self._shape(tree)
        if shape is None or stem_bytes > shape.stem_bytes or number != len(shape.files):
            return None
        if number and not shape.light:
            return None
        try:
            return light_json.json_bytes(_light(shape, tree))
        except _REFUSED:
            return None

    def _shape(self, tree: Tree) -> Shape | None:
        if type(tree) is not dict or len(tree) > config.SHAPE_FIELDS:
            return None
        form = (*tree, *map(type, tree.values()))
        try:
            return self._known[form]
        except KeyError:
            if not all(type(key) is str and len(key) <= config.NAME_MAX for key in tree):
                return None
            if sum(map(len, tree)) > config.SHAPE_NAMES:
                return None
        if len(self._known) >= config.SHAPES:
            self._known.clear()
        shape = self._known[form] = _plain_shape(tree, self._text_files)
        return shape

    def _file(self, value: Any, stem: str, raw: Buffer) -> File:
        content = values.content_of(value, raw, self._arrays)
        if content.note is not None or len(content.ext) > _EXTENSION:
            raise _Unusual
        return file_of(stem if stem == content.ext else f"{stem}.{content.ext}", content)


@lru_cache(maxsize=8)
def shapes_for(arrays: str) -> Shapes:
    """The shapes of all shards that are shown in this way."""
    return Shapes(arrays)


def _plain_shape(tree: dict[str, Any], text_files: bool) -> Shape | None:
    files: dict[str, str] = {}
    light: list[str] = []
    for key, value in tree.items():
        if isinstance(value, values.Folder | values.Named):
            return None  # its files are not named after the field
        if values.is_file(value) or (text_files and isinstance(value, str)):
            files[key] = names.escape(key)
        elif values.is_heavy(value) or key == layout.FIELDS:
            return None
        else:
            light.append(key)
    if light_json.looks_tagged(dict.fromkeys(light)):
        return None
    # names that differ here do so whatever the extensions, which hold no dot: nor does a name that is its extension
    if len({names.same_name(stem) for stem in files.values()}) != len(files):
        return None
    longest = max((len(stem.encode("utf-8")) for stem in files.values()), default=0)
    room = config.NAME_MAX - 1 - longest - 1 - _EXTENSION
    return Shape(tuple(files.items()), tuple(light), _plain(light, tree), room)


def _plain(light: list[str], tree: dict[str, Any]) -> Plain | None:
    if not all(type(tree[key]) in _PLAIN for key in light):
        return None
    fixed = len(light_json.json_bytes(dict.fromkeys(light))) - sum(4 for key in light if tree[key] is not None)
    ints, floats, bools, texts = (
        tuple(key for key in light if type(tree[key]) is kind) for kind in (int, float, bool, str)
    )
    return Plain(fixed, ints, floats, bools, texts)


def _json_size(shape: Shape, tree: dict[str, Any]) -> int:
    """Length of the `.json`, which is not made for it where that is cheaper."""
    plain = shape.plain
    if plain is None:
        return len(light_json.json_bytes(_light(shape, tree)))
    size = plain.fixed
    for key in plain.ints:
        size += len(repr(tree[key]))
    for key in plain.floats:
        value = tree[key]
        if value - value != 0.0:
            raise _Unusual  # no number
        size += len(repr(value))
    for key in plain.bools:
        size += 4 if tree[key] else 5
    for key in plain.texts:
        size += light_json.text_size(tree[key])
    return size


def _light(shape: Shape, tree: dict[str, Any]) -> dict[str, Any]:
    """What the `.json` says. _Unusual where a light value holds a heavy one."""
    if shape.plain is not None:
        return {key: tree[key] for key in shape.light} if shape.files else tree
    return {key: light_json.to_json(tree[key], _no_file, ()) for key in shape.light}


def _no_file(value: Any, path: tuple[str, ...]) -> str:
    raise _Unusual
