"""One sample as squirrel-core writes it, msgpack or a line of JSON; and a line of JSON as a value tree.

Facts of the format: what squirrel-core 0.20.2 writes and reads, found by running it. Knows nothing of shards, nor of
how msgpack is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from shardfs import config, values
from shardfs.errors import BadSettingError, DamagedShardError
from shardfs.values import Tree


def msgpack_record(sample: Any, number: int | str) -> bytes:
    """Sample `number` (or its name) as a msgpack object. BadSettingError for what has none."""
    try:
        return _packed(sample)
    except _REFUSED as error:
        why = _blamed(sample, _packed) or error
        raise BadSettingError(f"sample {number} cannot be written as msgpack: {why}") from error


_REFUSED = (TypeError, ValueError, OverflowError, RecursionError)


def _packed(value: Any) -> bytes:
    packed = msgpack.packb(value, use_bin_type=True, default=_numpy_map, buf_size=config.PACK)
    assert isinstance(packed, bytes)
    return packed


def _blamed(sample: Any, pack: Callable[[Any], object]) -> str | None:
    """Which field of a sample cannot be written, and why; None where it is none of them."""
    if isinstance(sample, dict):
        for name, value in sample.items():
            try:
                pack(value)
            except _REFUSED as error:
                return f"field {str(name)[:80]!r}: {error}"
    return None


def _numpy_map(value: Any) -> Any:
    """Arrays, numpy scalars and complex numbers as the maps that squirrel-core reads back (msgpack-numpy's form)."""
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError("an array of Python objects, which only a pickle could hold")
        structured = value.dtype.kind == "V"
        return {
            b"nd": True,
            b"type": value.dtype.descr if structured else value.dtype.str,
            b"kind": b"V" if structured else b"",
            b"shape": value.shape,
            b"data": value.tobytes("C"),
        }
    if isinstance(value, np.bool_ | np.number):
        return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}
    if isinstance(value, complex):
        return {b"complex": True, b"data": repr(value)}
    if isinstance(value, values.Pickle):
        return value.data
    raise TypeError(f"a value of type {type(value).__name__}")


def jsonl_line(sample: Any, number: int | str) -> bytes:
    """Sample `number` (or its name) as a line of JSON. BadSettingError for what has none."""
    try:
        return _dumped(sample).encode("ascii") + b"\n"
    except _REFUSED as error:
        raise BadSettingError(
            f"sample {number} cannot be written as JSON: {_blamed(sample, _dumped) or error}"
        ) from error


def _dumped(value: Any) -> str:
    return json.dumps(value, default=_json_numpy)


def line_cost(length: int) -> int:
    """What a line of JSON counts as: a value per four bytes, and the sample."""
    return length // 4 + config.JSON_LINES * (1 + config.SAMPLE_TOKENS)


def _json_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufUmM":
        return {"data": value.tolist(), "type": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _plain_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs) or ("data" in made and "type" in made and "shape" in made):
        raise ValueError("not a plain object")
    return made


_plain_decoder = json.JSONDecoder(object_pairs_hook=_plain_object)
"""Made once, where json.loads with a hook would make one for each line: a fifth of the time for a small line."""


def _plain_line(line: bytes) -> Tree:
    try:
        text = line.decode("utf-8")
        tree, end = _plain_decoder.raw_decode(text)
    except ValueError:
        return None
    return None if text[end:].strip(" \t\r\n") else tree


def parse_line(line: bytes, at: int) -> Tree:
    """The value tree of a line that begins at byte `at` of its shard. DamagedShardError."""
    if b'"shape"' not in line and line.count(b"[") + line.count(b"{") <= config.NESTING:
        # with so few brackets nothing is nested too deeply; what fails here is an array after all, or damage
        tree = _plain_line(line)
        if tree is not None:
            return tree
    try:
        tree = json.loads(line.decode("utf-8"), object_pairs_hook=lambda pairs: _json_object(pairs, at, len(line)))
    except RecursionError as error:
        raise DamagedShardError("nested too deeply", at) from error
    except ValueError as error:
        raise DamagedShardError(f"a line that is not JSON ({error})", at) from error
    if line.count(b"[") + line.count(b"{") > config.NESTING and _deeper(tree, config.NESTING):
        raise DamagedShardError(f"nested deeper than {config.NESTING} levels", at)
    return tree


def _deeper(tree: Tree, levels: int) -> bool:
    """True if lists and dicts are nested in more levels than so many."""
    if type(tree) is dict:
        tree = tree.values()
    elif type(tree) is not list:
        return False
    return levels == 0 or any(_deeper(item, levels - 1) for item in tree if type(item) is list or type(item) is dict)


def _json_object(pairs: list[tuple[str, Any]], at: int, length: int) -> Any:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise DamagedShardError("a field stands twice in one object", at)
    if "data" in made and "type" in made and "shape" in made:
        array = _json_array(made, length)
        return made if array is None else array
    return made


def _json_array(made: dict[str, Any], length: int) -> np.ndarray[Any, Any] | None:
    """The array that squirrel-core decodes any object with `data`, `type` and `shape` to; None for a look-alike.

    `length` is that of the line: a type like `<U1000000000` must not make one byte into gigabytes.
    """
    if not isinstance(made["type"], str) or not isinstance(made["shape"], list):
        return None
    try:
        dtype = values.safe_dtype(made["type"])
        # numpy takes the memory before it compares: for what the lists hold, not for what `shape` says
        if _leaves(made["data"]) * dtype.itemsize > config.JSON_ARRAY_FLOOR + 16 * length:
            return None
        array = np.array(made["data"], dtype=dtype)
        return array.reshape(values.checked_shape(made["shape"], dtype, array.nbytes))
    except (TypeError, ValueError, OverflowError, RecursionError, MemoryError):
        return None


def _leaves(data: Any) -> int:
    """Elements of the array that nested lists make, if they make one: numpy refuses lists of different lengths."""
    count = 1
    while isinstance(data, list):
        count *= len(data)
        data = data[0] if data else None
    return count
