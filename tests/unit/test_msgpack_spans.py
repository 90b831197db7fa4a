"""msgpack read in place, against what the msgpack library and msgpack-numpy make of the same bytes."""

from __future__ import annotations

import collections
import datetime
import decimal
import math
import os
import pickle
import struct
import uuid
from typing import Any

import msgpack
import numpy as np
import pytest

from shardfs import config, values
from shardfs.errors import DamagedShardError, OverfullShardError
from shardfs.msgpack_spans import Walker
from shardfs.values import Array, Blob, Extension, Pickle

LIMIT = 10_000


def read(raw: bytes, limit: int = LIMIT) -> Any:
    """The one object that `raw` holds, as Python has it."""
    tree, end = Walker(memoryview(raw), limit).read(0)
    assert end == len(raw)
    return values.to_python(tree, memoryview(raw), list)


def pack(value: Any) -> bytes:
    packed = msgpack.packb(value, use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def numpy_map(**changes: Any) -> bytes:
    """The map of an array of two float32, with parts replaced, or left out where None."""
    parts = {"nd": True, "type": "<f4", "kind": b"", "shape": [2], "data": bytes(8), **changes}
    return pack({key.encode(): value for key, value in parts.items() if value is not None})


# --- plain values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        *(sign * (1 << bits) - at for bits in (0, 5, 7, 8, 15, 16, 31, 32, 62) for sign in (1, -1) for at in (0, 1)),
        -(2**63),
        2**63,
        2**64 - 1,
        0.1,
        math.inf,
        "",
        *("x" * length for length in (31, 32, 255, 256, 65_535, 65_536)),
        "\0日本🎉",
        b"",
        *(b"x" * length for length in (255, 256, 65_535, 65_536)),
        [],
        *([0] * length for length in (15, 16, 65_535, 65_536)),
        {},
        *({f"{at}": at for at in range(length)} for length in (15, 16, 65_536)),
        {"a": {"b": [{"c": None}]}},
        {b"\xff": 1, 5: 2, 1.5: 3, None: 4, False: 5},
        msgpack.Timestamp(0, 0),
        msgpack.Timestamp(1 << 33, 5),
        msgpack.Timestamp(-1, 999_999_999),
        *(msgpack.ExtType(5, b"x" * length) for length in (0, 1, 2, 3, 4, 8, 15, 16, 17, 255, 256, 65_536)),
        msgpack.ExtType(127, b""),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_whatever_msgpack_writes_is_read_as_msgpack_reads_it(value: Any) -> None:
    raw = pack(value)
    mine = read(raw, 1_000_000)
    assert mine == value
    assert mine == msgpack.unpackb(raw, strict_map_key=False)
    assert repr(mine) == repr(value)


def test_float32_is_read() -> None:
    assert read(b"\xca" + struct.pack(">f", 0.1)) == struct.unpack(">f", struct.pack(">f", 0.1))[0]


def test_bytes_are_references_into_the_shard() -> None:
    raw = b"\xc0" + pack({"a": [b"hello"]})
    tree, end = Walker(memoryview(raw), LIMIT).read(1)
    assert end == len(raw)
    blob = tree["a"][0]
    assert type(blob) is Blob
    assert raw[blob.offset : blob.offset + blob.length] == b"hello"


def test_an_extension_is_a_reference_and_a_timestamp_a_value() -> None:
    assert type(Walker(memoryview(pack(msgpack.ExtType(5, b"xy"))), LIMIT).read(0)[0]) is Extension
    assert type(Walker(memoryview(pack(msgpack.Timestamp(5))), LIMIT).read(0)[0]) is msgpack.Timestamp


# --- arrays, scalars, complex -----------------------------------------------------------------------------------

_ARRAYS = [
    np.array(1.5),
    np.arange(6, dtype=">i4").reshape(2, 3),
    np.zeros((0, 3)),
    np.array([True, False]),
    np.array(["a", "日本"]),
    np.array([b"a", b"bc"]),
    np.array([1 + 2j], "c8"),
    np.array(["2024-01-01"], "M8[ns]"),
    np.array([(1, 2.0, b"x")], [("a", "<i2"), ("größe", ">f8"), ("c", "S3")]),
    np.array([((1, 2), [[3, 4]])], [("n", [("x", "<i4"), ("y", "<i4")]), ("s", "<u1", (1, 2))]),
    np.zeros(2, np.dtype([("a", "u1"), ("b", "<f8")], align=True)),
    np.zeros((1,) * 20, "<f2"),
    np.zeros(3, "V5"),
]


@pytest.mark.parametrize("array", _ARRAYS, ids=lambda array: f"{str(array.dtype)[:25]}{array.shape}")
def test_an_array_is_read_as_msgpack_numpy_reads_it(array: np.ndarray[Any, Any]) -> None:
    structured = array.dtype.kind == "V"
    kind = b"V" if structured else b""
    spec = array.dtype.descr if structured else array.dtype.str
    raw = numpy_map(type=spec, kind=kind, shape=array.shape, data=array.tobytes())
    back = read(raw)
    # np.dtype(descr) is what msgpack-numpy makes of it: padding becomes fields of its own
    expected = array.view(np.dtype(array.dtype.descr)) if structured else array
    assert (back.dtype, back.shape) == (expected.dtype, expected.shape)
    assert back.tobytes() == array.tobytes()


def test_an_array_of_an_older_writer_without_kind_is_read() -> None:
    assert read(numpy_map(kind=None)).tolist() == [0.0, 0.0]
    assert read(numpy_map(type=b"<f4")).dtype == np.float32


@pytest.mark.parametrize(
    "scalar",
    [np.int8(-3), np.uint64(2**64 - 1), np.float16(0.5), np.float32(0.1), np.bool_(True), np.complex128(1 - 2j)],
    ids=repr,
)
def test_a_numpy_scalar_keeps_its_type(scalar: Any) -> None:
    back = read(pack({b"nd": False, b"type": scalar.dtype.str, b"data": scalar.tobytes()}))
    assert (type(back), back) == (type(scalar), scalar)


def test_complex_numbers_are_read() -> None:
    assert read(pack({b"complex": True, b"data": "(1-2j)"})) == 1 - 2j
    assert read(pack({b"complex": True, b"data": b"nanj"})).imag != 0


@pytest.mark.parametrize("missing", ["type", "shape", "data"])
def test_a_map_that_lacks_a_part_of_an_array_stays_a_map(missing: str) -> None:
    back = read(numpy_map(**{missing: None}))
    assert type(back) is dict
    assert back[b"nd"] is True


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "|O"},
        {"type": "O", "kind": b""},
        {"type": [["a", "|O"]], "kind": b"V"},
        {"type": [["a", "<f4"], ["a", "<f4"]], "kind": b"V"},
        {"type": [["a", "<f4", [2, -1]]], "kind": b"V"},
        {"type": [["a"]], "kind": b"V"},
        {"type": ["a", "<f4"], "kind": b"V"},
        {"type": [[["title", "a"], "<f4"]], "kind": b"V"},
        {"type": [[5, "<f4"]], "kind": b"V"},
        {"type": "nonsense"},
        {"type": "<f4" * 1000},
        {"type": "V0", "shape": [1 << 40], "data": b""},
        {"type": "<U0", "shape": [5], "data": b""},
        {"type": 5},
        {"type": b"\xff"},
        {"type": "<f8"},
        {"type": "(2,)<f4", "shape": [1]},
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [1, -2]},
        {"shape": [2.0]},
        {"shape": [[2]]},
        {"shape": 2},
        {"shape": {}},
        {"shape": [1] * 65 + [2]},
        {"shape": [1 << 62, 0], "data": b""},
        {"shape": [2**64 - 1, 2**64 - 1]},
        {"data": bytes(7)},
        {"data": bytes(9)},
        {"data": "text"},
        {"data": 5},
        {"kind": b"O", "type": "|O", "data": b"no pickle"},
        {"kind": b"O", "type": "|O", "data": 5},
        {"kind": b"O", "type": "|O", "data": b""},
        {"nd": False, "type": "|O"},
        {"nd": False, "data": b"abc"},
        {"nd": False, "data": [1]},
        {"nd": False, "type": "V0"},
        {"nd": False, "type": "<U1", "data": b"\xff\xff\xff\xff"},
    ],
    ids=lambda changes: repr(changes)[:60],
)
def test_an_array_that_cannot_be_damns_the_shard(changes: dict[str, Any]) -> None:
    with pytest.raises(DamagedShardError):
        read(numpy_map(**changes))


def test_a_complex_number_that_is_none_damns_the_shard() -> None:
    for data in ("no number", 5, "1" * 2000, None):
        with pytest.raises(DamagedShardError):
            read(pack({b"complex": True, b"data": data}))


# --- pickles ----------------------------------------------------------------------------------------------------


def object_map(data: bytes) -> bytes:
    return numpy_map(kind=b"O", type="|O", shape=[1], data=data)


class _Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("protocol", range(6))
def test_an_array_of_plain_objects_is_shown_as_its_pickle(protocol: int) -> None:
    array = np.array([1, "a", None, [2.5], {"k": (b"x",)}, {1}, np.float32(2), np.arange(2), 1j], object)
    data = pickle.dumps(array, protocol)
    back = read(object_map(data))
    assert type(back) is Pickle
    assert back.data == data


@pytest.mark.parametrize("protocol", range(6))
def test_regression_plain_objects_whose_names_come_out_of_the_memo_are_no_attack(protocol: int) -> None:
    """From protocol 4 on a module's name is written once and fetched again; the check saw other names instead."""
    zone = datetime.UTC
    dates = [datetime.date(2024, 1, 1), datetime.datetime(2024, 1, 1, tzinfo=zone), datetime.timedelta(1)]
    others = [decimal.Decimal("1.5"), uuid.UUID(int=1), collections.OrderedDict(a=1), np.datetime64("2024-01-01")]
    data = pickle.dumps(np.array([*dates, *others], object), protocol)
    assert type(read(object_map(data))) is Pickle


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "call",
    [
        (os.system, "false"),
        (eval, "1"),
        (exec, "1"),
        (getattr, os, "system"),
        (print, "x"),
        (open, "x"),
        (np.load, "x"),
        (np.testing.assert_equal, 1, 1),
        (uuid.uuid1,),
        (collections.namedtuple, "x", "y"),
    ],
    ids=lambda call: call[0].__name__,
)
def test_a_pickle_that_calls_anything_else_damns_the_shard(protocol: int, call: Any) -> None:
    data = pickle.dumps(_Calls(*call), protocol) if call[0] is not getattr else b"c__builtin__\ngetattr\n."
    with pytest.raises(DamagedShardError, match="no data"):
        read(object_map(data))


@pytest.mark.parametrize(
    "data",
    [
        # the names on the stack are others than those pushed last
        b"\x80\x04\x8c\x02os\x94\x8c\x06system\x94\x8c\x05numpy\x8c\x05dtype00h\x00h\x01\x93.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x8c\x05numpy\x8c\x05dtype00\x93.",
        b"\x80\x04\x8c\x06system\x93.",
        b"\x80\x04\x93.",
        b"\x80\x02\x82\x01.",
        b"P1\n.",
        b"(ios\nsystem\n.",
        b"cos\nsystem\n.",
        b"c numpy\ndtype\n.",
        b"\x80\x04\x8c\x0dnumpy.testing\x8c\x09runstring\x93.",
        b"\x80\x04\x8c\x04uuid\x8c\x06_popen\x93.",
    ],
)
def test_a_pickle_that_hides_what_it_calls_damns_the_shard(data: bytes) -> None:
    with pytest.raises(DamagedShardError):
        read(object_map(data))


def test_regression_a_pickle_of_millions_of_opcodes_is_given_up() -> None:
    with pytest.raises(OverfullShardError):
        read(object_map(b"N" * (config.PICKLE_OPS + 5) + b"."))


# --- damage and limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        b"\xd9",
        b"\xd9\x05abc",
        b"\xdb\xff\xff\xff\xffabc",
        b"\xc6\xff\xff\xff\xffabc",
        b"\xdd\xff\xff\xff\xff\x00\x00",
        b"\xdf\xff\xff\xff\xff\x00\x00",
        b"\xc9\xff\xff\xff\xff\x05abc",
        b"\xdd\xff",
        b"\xcf\0\0\0",
        b"\xd8\x05abc",
        b"\xd4",
        b"\xa1\xff",
        b"\xa3\xed\xa0\x80",
        b"\x82\xa1a\x00",
        b"\x92\x00",
        b"\x82\xa1a\x00\xa1a\x01",
        b"\x82\xc4\x01a\x00\xc4\x01a\x01",
        b"\x81\x80\x00",
        b"\x81\x91\x80\x00",
        b"\x81" + numpy_map() + b"\x00",
        b"\x81\x91" + numpy_map() + b"\x00",
        b"\xd7\xff" + b"\xff" * 8,
        b"\xc7\x05\xff" + bytes(5),
        b"\xc7\x0c\xff\xff\xff\xff\xff" + bytes(8),
        b"\x81\xa1a\x82\xa1b\x00\xa1b\x00",
    ],
    ids=lambda raw: raw[:12].hex(),
)
def test_what_is_no_msgpack_damns_the_shard(raw: bytes) -> None:
    with pytest.raises(DamagedShardError) as caught:
        read(raw)
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(raw)


def test_a_list_as_the_name_of_a_field_is_a_tuple() -> None:
    assert read(b"\x81\x92\x01\x91\xc4\x01x\x05") == {(1, (b"x",)): 5}


def test_a_text_and_a_bytes_name_are_two_fields() -> None:
    assert read(b"\x82\xa1a\x00\xc4\x01a\x01") == {"a": 0, b"a": 1}


def test_regression_an_array_as_the_name_of_a_field_is_refused() -> None:
    """References to arrays and pickles can be hashed, so they slipped through as names."""
    for name in (numpy_map(), object_map(pickle.dumps(np.array([1], object)))):
        with pytest.raises(DamagedShardError, match="name of a field"):
            read(b"\x81" + name + b"\x00")


@pytest.mark.parametrize("code", [-2, -128])
def test_regression_an_extension_type_of_msgpacks_own_is_refused(code: int) -> None:
    """msgpack.ExtType takes no negative code, so Store.get raised a bare ValueError."""
    with pytest.raises(DamagedShardError, match="extension type"):
        read(b"\xd4" + struct.pack("b", code) + b"x")


def test_nesting_ends_at_its_limit() -> None:
    deepest = b"\x91" * (config.NESTING - 1) + b"\x90"
    assert repr(read(deepest)).count("[") == config.NESTING
    for deeper in (b"\x91" + deepest, b"\x91" * 100_000, b"\x81\xa1a" * 100_000, b"\x81" + deepest + b"\x00"):
        with pytest.raises(DamagedShardError, match="nested"):
            read(deeper)


def test_the_number_of_values_ends_at_its_limit() -> None:
    raw = b"\xdc\x00\x64" + b"\x00" * 100
    assert len(read(raw, 101 + config.SAMPLE_TOKENS)) == 100
    with pytest.raises(OverfullShardError):
        read(raw, 100 + config.SAMPLE_TOKENS)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xdc\x00\x64" + b"\xc4\x00" * 100,
        b"\xdc\x00\x64" + b"\xc7\x00\x05" * 100,
        b"\xda\x27\x10" + b"x" * 10_000,
        b"\x81\xc5\x27\x10" + b"x" * 10_000 + b"\x00",
    ],
    ids=["blobs", "extensions", "text", "bytes as a name"],
)
def test_regression_files_and_long_texts_count_as_several_values(raw: bytes) -> None:
    """A million empty bytes values took 700 MiB as files, and one text of 180 MiB with one emoji 2 GiB."""
    read(raw, 700)
    with pytest.raises(OverfullShardError):
        read(raw, 400)


def test_an_array_is_a_reference_with_its_shape_and_length() -> None:
    tree, _ = Walker(memoryview(numpy_map()), LIMIT).read(0)
    assert type(tree) is Array
    assert (tree.shape, tree.length) == ((2,), 8)
