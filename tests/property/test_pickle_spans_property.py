"""Pickles read in place, with the standard library's as the oracle; and whatever else there is in their place."""

from __future__ import annotations

import math
import pickle
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from shardfs import pickle_spans
from shardfs.pickle_spans import PickleRefusedError, Steps
from shardfs.values import Blob

KEYS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**300), 2**300)
    | st.floats()
    | st.text(st.characters(), max_size=300)
    | st.binary(max_size=300),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner, inner)
        | st.tuples()
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
    ),
    max_leaves=12,
)


def plain(value: Any, raw: bytes) -> Any:
    """A tree with the bytes that it refers to."""
    if type(value) is Blob:
        return raw[value.offset : value.offset + value.length]
    if type(value) in (list, tuple):
        return type(value)(plain(item, raw) for item in value)
    if type(value) is dict:
        return {key: plain(item, raw) for key, item in value.items()}
    return value


def text(value: Any) -> str:
    """Equal for equal values of equal types; NaN is NaN."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value.hex()
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(text, value))})"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}({', '.join(sorted(map(text, value)))})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{text(key)}: {text(item)}" for key, item in value.items()) + "}"
    return f"{type(value).__name__} {value!r}"


@settings(max_examples=300, deadline=None)
@given(VALUES, st.sampled_from([4, 5]), st.binary(max_size=8))
@example([b"x" * 70_000, "y" * 70_000, "z" * 300], 5, b"")
@example({"a": [1, 2], "b": {}}, 5, b"\x80")
def test_plain_values_are_read_as_pickle_reads_them(value: Any, protocol: int, before: bytes) -> None:
    data = pickle.dumps(value, protocol)
    raw = before + data + before
    tree = pickle_spans.read(memoryview(raw), len(before), len(before) + len(data), Steps(1 << 20))
    assert text(plain(tree, raw)) == text(value)


@settings(max_examples=300, deadline=None)
@given(VALUES, st.data())
def test_damage_is_refused_or_is_a_value(value: Any, data: st.DataObject) -> None:
    raw = bytearray(pickle.dumps(value, 5))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(raw)))
    try:
        tree = pickle_spans.read(memoryview(raw), 0, end, Steps(1 << 20))
    except PickleRefusedError:
        return
    assert type(tree) in (type(None), bool, int, float, str, list, tuple, dict, set, frozenset, Blob)
