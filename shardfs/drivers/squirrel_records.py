"""Samples as the bytes that squirrel-core writes for them: msgpack objects, lines of JSON.

Facts of the format: what squirrel-core 0.20.2 writes, found by running it. Knows nothing of shards or of reading.
"""

from __future__ import annotations

import json
from typing import Any

import msgpack
import numpy as np

from shardfs.errors import BadSettingError


def msgpack_record(sample: Any, number: int) -> bytes:
    try:
        packed = msgpack.packb(sample, use_bin_type=True, default=_numpy_map)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadSettingError(f"sample {number} cannot be written as msgpack: {error}") from error
    assert isinstance(packed, bytes)
    return packed


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
    raise TypeError(f"a value of type {type(value).__name__}")


def jsonl_line(sample: Any, number: int) -> bytes:
    try:
        return json.dumps(sample, default=_json_numpy).encode("ascii") + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise BadSettingError(f"sample {number} cannot be written as JSON: {error}") from error


def _json_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufUmM":
        return {"data": value.tolist(), "type": value.dtype.str, "shape": list(value.shape)}
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    raise TypeError(f"a value of type {type(value).__name__}")
