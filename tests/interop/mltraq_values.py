"""Values that mltraq's datastore can hold, and what they are as JSON. Runs in the real library's environment too."""

import datetime
import uuid

import numpy as np
from describe import describe

VALUES = {
    "array": np.arange(6.0).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "struct": np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", ">f8")]),
    "texts": np.array(["a", "日本"]),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(3.5),
    "none": None,
    "flags": [True, False],
    "ints": [0, 1, -1, 255, 65536, -(2**31), 2**63, 2**70, -(2**2038)],
    "floats": [0.1, -0.0, float("inf"), 1e300],
    "text": "naïve 漢字 😀 \x00",
    "bytes": b"\x00\xff" * 50_000,
    "shared": ["s" * 300] * 3,
    "tuple": (1, (2, "x")),
    "set": {1, "a", (2, 3)},
    "keys": {1: "int", (1, 2): "tuple", None: 0, "a": {"b": []}},
    "uuid": uuid.UUID(int=5),
    "time": np.datetime64("2024-01-02T03:04:05.123456", "us"),
}


def describe_more(value):
    """`describe` for what only mltraq has; dates by their text, however they are held."""
    if isinstance(value, dict):
        return ["dict", [[describe_more(key), describe_more(item)] for key, item in value.items()]]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [describe_more(item) for item in value]]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(repr(item) for item in value)]
    if isinstance(value, uuid.UUID):
        return ["uuid", value.hex]
    if isinstance(value, (np.datetime64, datetime.datetime)):
        return ["time", str(np.datetime64(value, "us"))]
    return describe(value)
