"""A sample's value as a copy of its files would be read back, without making the files; and what that changes.

What `layout` makes of a tree and `reading_back` of the files again is a value in plain types: numpy scalars are plain
numbers, a picture that lies as pixels is the bytes of the file that shows it, a field stays where it is whatever its
file is called. `copied` gives the same at once. Knows nothing of shards, drivers or stores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from shardfs import config, layout, light_json, names, reading_back
from shardfs.errors import DamagedShardError
from shardfs.pictures import Picture
from shardfs.values import NO_SUFFIX, Array, Blob, Buffer, Members, Named, Pickle, Tree

_PLAIN = frozenset((type(None), bool, int, float, str))
_PNG, _TIF = b"\x89PNG\r\n\x1a\n", b"II*\0"
_HEAD = 300
"""Bytes that tell what a file is."""


def copied(tree: Tree, raw: Buffer, whole: bool = True) -> Any:
    """The value that a copy of the files of `tree` would have: arrays are views of `raw`, all else is free of it.

    Without `whole` bytes are only as many as tell what they are: for who looks at types.
    """
    kind = type(tree)
    if kind in _PLAIN:
        return tree
    if kind is dict:
        made = {}
        for name, item in tree.items():
            made[name if type(name) is str else copied(name, raw)] = copied(item, raw, whole)
        return made
    if kind is list:
        return [copied(item, raw, whole) for item in tree]
    if kind is Blob:
        return bytes(raw[tree.offset : tree.offset + (tree.length if whole else min(tree.length, _HEAD))])
    if kind is Picture:
        return _file(tree, raw, whole)
    if kind is Named:
        return _named(tree, raw)
    if hasattr(tree, "content"):
        return tree.value(raw)
    return _inline(tree, raw, whole)


def _file(picture: Picture, raw: Buffer, whole: bool) -> bytes:
    content = picture.content(raw, "npy")
    if not whole:
        return _PNG if content.ext == "png" else _TIF
    if content.render is not None:
        return content.render()
    return content.prefix + bytes(raw[content.offset : content.offset + content.size - len(content.prefix)])


def _inline(tree: Tree, raw: Buffer, whole: bool) -> Any:
    if isinstance(tree, msgpack.ExtType | msgpack.Timestamp):
        return tree
    if isinstance(tree, tuple | set | frozenset):
        return type(tree)(copied(item, raw, whole) for item in tree)
    if isinstance(tree, bytes):  # before numpy's scalars, one of which is bytes
        return bytes(tree)
    if isinstance(tree, np.generic):
        return copied(light_json.plain_number(tree), raw)
    return tree


def shown(tree: Tree, raw: Buffer, stem: str) -> list[tuple[str, bytes]]:
    """The files of a sample called `stem`, as a mount with no other settings shows them: suffix and content."""
    made = []
    for plan in layout.lay_out(tree, raw, "png", len(stem.encode("utf-8"))):
        content = plan.content
        end = content.offset + content.size - len(content.prefix)
        data = content.prefix + bytes(raw[content.offset : end]) if content.render is None else content.render()
        if len(data) != content.size:
            raise DamagedShardError(f"file {plan.suffix} of sample {stem} has {len(data)} bytes of {content.size}")
        made.append((plan.suffix, data))
    return made


def has_extension(file: Named) -> bool:
    """False for a file of `Members` whose name tells no field, so that a copy of it is no part of a sample."""
    return file.suffix != NO_SUFFIX and file.suffix.rpartition(".")[2] != ""


def read_members(sample: Members, fetch: Callable[[int, int], Buffer]) -> dict[Any, Any]:
    """The fields of a sample that is files only, as a seal of copies of them would have them; those without an
    extension are left out. BadSampleError for a file that does not parse."""
    stem = names.escape_sample(sample.key)
    room = config.NAME_MAX - len(stem.encode("utf-8")) - 1
    contents = {
        names.own_suffix(file.suffix, room): bytes(fetch(file.offset, file.offset + file.length))
        for file in sample.files
        if has_extension(file)
    }
    value = reading_back.read(contents, stem).value
    return value if isinstance(value, dict) else {layout.VALUE: value}


def _named(tree: Named, raw: Buffer) -> Any:
    """What the file's extension says it is; its bytes where it is not that."""
    try:
        return reading_back.file_value(tree.suffix, tree.value(raw))
    except ValueError:
        return tree.value(raw)


@dataclass(frozen=True, slots=True)
class Rules:
    """What of a value's type the one who writes it cannot keep."""

    sequence: str
    """What a list is for who reads the source: `list` or `tuple`."""
    becomes: str
    """What it is for who reads the target."""
    pickles: bool
    """The target keeps pickles apart from bytes."""
    little_endian: bool
    """The target's arrays are all little-endian."""


_SEQUENCES = {"msgpack": "tuple"}
"""What the system's own library makes of a list, where that is no list."""


def rules_between(source: str, target: str) -> Rules:
    """What values of one form lose in another: `msgpack`, `jsonl`, `mds`, or another word for what has plain lists."""
    mds = target == "mds"
    return Rules(_SEQUENCES.get(source, "list"), _SEQUENCES.get(target, "list"), mds, mds)


def changes(tree: Tree, rules: Rules) -> list[tuple[str, str, str]]:
    """What copying a sample makes something else of: field, what it was, what it is then; each once."""
    fields = tree.items() if type(tree) is dict else [("", tree)]
    found: dict[tuple[str, str, str], None] = {}
    for name, value in fields:
        if type(value) not in _PLAIN:
            for was, becomes in _changes(value, rules):
                found[str(name), was, becomes] = None
    return list(found)


def _changes(value: Tree, rules: Rules) -> Iterator[tuple[str, str]]:
    kind = type(value)
    if kind is Blob:
        if value.note is not None:
            yield "a cell that its column cannot hold", "bytes"
    elif kind is Array or kind is np.ndarray:
        if rules.little_endian and value.dtype.byteorder == ">":
            yield f"array of {value.dtype.str}", f"array of {value.dtype.newbyteorder('<').str}"
    elif kind is dict or kind is list:
        if kind is list and rules.sequence != rules.becomes:
            yield rules.sequence, rules.becomes
        for item in value.values() if kind is dict else value:
            if type(item) not in _PLAIN:
                yield from _changes(item, rules)
    elif kind is Picture:
        yield f"pixels of mode {value.mode}", "bytes of a picture's file"
    elif kind is Pickle:
        if not rules.pickles:
            yield "pickle", "bytes"
    elif isinstance(value, np.generic) and not isinstance(value, bytes):
        yield f"numpy {value.dtype.name}", type(light_json.plain_number(value)).__name__
    elif kind is tuple:
        if rules.becomes != "tuple":
            yield "tuple", rules.becomes
        for item in value:
            yield from _changes(item, rules)
