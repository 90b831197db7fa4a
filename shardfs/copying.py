"""A sample's value as a copy of its files would be read back, without making the files; and what that changes.

What `layout` makes of a tree and `reading_back` of the files again is a value in plain types: numpy scalars are plain
numbers, a picture that lies as pixels is the bytes of the file that shows it, a field stays where it is whatever its
file is called. `copied` gives the same at once. Knows nothing of shards, drivers or stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np

from shardfs import light_json
from shardfs.pictures import Picture
from shardfs.values import Array, Blob, Buffer, Pickle, Tree

_PLAIN = frozenset((type(None), bool, int, float, str))
_SIMPLE = _PLAIN | {Blob, Array, bytes}


def copied(tree: Tree, raw: Buffer) -> Any:
    """The value that a copy of the files of `tree` would have: arrays are views of `raw`, all else is free of it."""
    kind = type(tree)
    if kind in _PLAIN:
        return tree
    if kind is dict:
        return {name if type(name) is str else copied(name, raw): copied(item, raw) for name, item in tree.items()}
    if kind is list:
        return [copied(item, raw) for item in tree]
    if kind is Picture:
        return _file(tree, raw)
    if hasattr(tree, "content"):
        return tree.value(raw)
    if isinstance(tree, msgpack.ExtType | msgpack.Timestamp):
        return tree
    if isinstance(tree, tuple | set | frozenset):
        return kind(copied(item, raw) for item in tree)
    if isinstance(tree, bytes):  # before numpy's scalars, one of which is bytes
        return bytes(tree)
    if isinstance(tree, np.generic):
        return copied(light_json.plain_number(tree), raw)
    return tree


def _file(picture: Picture, raw: Buffer) -> bytes:
    content = picture.content(raw, "npy")
    if content.render is not None:
        return content.render()
    return content.prefix + bytes(raw[content.offset : content.offset + content.size - len(content.prefix)])


def changes(tree: Tree, lists: tuple[str, str], pickles: bool) -> list[tuple[str, str, str]]:
    """What copying a sample makes something else of: field, what it was, what it is then; each once.

    `lists` are the types of sequences for who reads the one store and the other; `pickles` is True where the other
    keeps pickles apart from bytes.
    """
    if type(tree) is not dict:
        tree = {"": tree}
    elif _SIMPLE.issuperset(map(type, tree.values())) and not any(_noted(value) for value in tree.values()):
        return []
    found = {(str(name), *change): None for name, value in tree.items() for change in _changes(value, lists, pickles)}
    return list(found)


def _noted(value: Any) -> bool:
    return type(value) is Blob and value.note is not None


def _changes(value: Tree, lists: tuple[str, str], pickles: bool) -> Iterator[tuple[str, str]]:
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is dict:
        for item in value.values():
            yield from _changes(item, lists, pickles)
    elif kind is list:
        if lists[0] != lists[1]:
            yield lists
        for item in value:
            yield from _changes(item, lists, pickles)
    elif kind is Picture:
        yield f"pixels of mode {value.mode}", "bytes of a picture's file"
    elif kind is Pickle and not pickles:
        yield "pickle", "bytes"
    elif _noted(value):
        yield "a cell that its column cannot hold", "bytes"
    elif isinstance(value, np.generic) and not isinstance(value, bytes):
        yield f"numpy {value.dtype.name}", type(light_json.plain_number(value)).__name__
    elif isinstance(value, tuple) and not isinstance(value, msgpack.ExtType | msgpack.Timestamp):
        if lists[1] != "tuple":
            yield "tuple", lists[1]
        for item in value:
            yield from _changes(item, lists, pickles)
