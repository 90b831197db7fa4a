"""Samples that both sides write. Runs in the real libraries' environments too."""

import numpy as np

_rng = np.random.RandomState(7)

MSGPACK = [
    {
        "image": _rng.randint(0, 255, (8, 9, 3)).astype("u1"),
        "mask": _rng.rand(4, 5) > 0.5,
        "feature": _rng.rand(3, 4).astype("f4"),
        "big_endian": np.arange(5, dtype=">i4"),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(20)[::3],
        "empty": np.zeros((0, 3)),
        "zero_dim": np.array(3.5),
        "text_array": np.array(["a", "bcd", "é"]),
        "struct": np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")]),
        "nested_struct": np.array([(1, (2, 3))], dtype=[("a", "<i4"), ("b", [("c", "<i2"), ("d", "<i8")])]),
        "complex_array": np.array([1 + 2j]),
        "scalars": [np.int8(-3), np.float32(1.5), np.bool_(True), np.complex64(1 + 2j), np.uint64(2**64 - 1)],
        "complex": 3 - 4j,
        "bytes": b"\x00\xff",
        "text": "naïve 漢字 😀 \x00",
        "none": None,
        "flags": [True, False],
        "ints": [0, 1, -1, 127, 128, -128, 2**31, -(2**31), 2**63, 2**64 - 1, -(2**63)],
        "floats": [0.1, -0.0, float("inf"), 1e300],
        "nested": {"a": {"b": [1, [2, {"c": b"x"}]]}, "": "empty", "with/slash": 1},
        "empties": [[], {}, "", b""],
    },
    {b"bytes key": 1, "text key": 2},
    [1, 2, {"in": "list"}],
    "lone text",
    5,
    None,
    b"lone bytes",
    np.arange(3),
    {},
]

JSONL = [
    {
        "feature": np.arange(6, dtype="f4").reshape(2, 3),
        "u1": np.arange(4, dtype="u1"),
        "bool": np.array([True, False]),
        "text_array": np.array(["a", "bcd"]),
        "zero_dim": np.array(3.5),
        "int": np.int64(7),
        "float": np.float32(1.5),
        "text": "naïve 漢字 😀",
        "list": [1, 2.5, None, True, "x", {"y": []}],
        "big": 2**70,
    },
    [1, 2],
    "lone text",
    5,
    None,
    {},
]
