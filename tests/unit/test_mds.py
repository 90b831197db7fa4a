"""MDS shards: hand-made ones for each encoding and each kind of damage. The library's own are in test_streaming."""

from __future__ import annotations

import itertools
import json
import math
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfs import config, values
from shardfs.drivers import mds
from shardfs.errors import DamagedShardError
from shardfs.pictures import Picture

JPEG = b"\xff\xd8\xff\xe0 a picture"
PNG = b"\x89PNG\r\n\x1a\n another"


def shard_bytes(records: list[bytes], config_text: bytes = b"{}") -> bytes:
    """A raw shard, as the library writes it."""
    offsets = [4 + 4 * (len(records) + 1) + len(config_text)]
    for record in records:
        offsets.append(offsets[-1] + len(record))
    return struct.pack(f"<I{len(offsets)}I", len(records), *offsets) + config_text + b"".join(records)


def record(sizes: tuple[int | None, ...], *cells: bytes) -> bytes:
    variable = [len(cell) for size, cell in zip(sizes, cells, strict=True) if not size]
    return struct.pack(f"<{len(variable)}I", *variable) + b"".join(cells)


def shard_of(encodings: list[str], sizes: list[int | None], *rows: tuple[bytes, ...]) -> mds.MdsShard:
    names = tuple(f"c{at}" for at in range(len(encodings)))
    raw = shard_bytes([record(tuple(sizes), *cells) for cells in rows])
    return mds.MdsShard(raw, mds.columns(names, tuple(encodings), tuple(sizes)), len(rows), len(raw))


def cell(encoding: str, data: bytes, size: int | None = None) -> tuple[Any, Any]:
    """The leaf and the Python value of one cell."""
    shard = shard_of([encoding], [size], (data,))
    (found,) = shard.records()
    assert shard.tree(found.start, found.end) == found.tree or "nan" in str(found.tree)
    return found.tree["c0"], shard.sample(found.tree)["c0"]


def refused(encoding: str, data: bytes, size: int | None = None) -> str:
    """The note of a cell that cannot be decoded; its bytes are what was stored."""
    leaf, value = cell(encoding, data, size)
    assert isinstance(leaf, values.Blob), leaf
    assert value == data
    assert leaf.ext == "bin"
    assert leaf.note is not None
    assert leaf.note.startswith(f"{encoding}: ")
    return leaf.note


# --- encodings ----------------------------------------------------------------------------------------------------


def test_scalars_are_what_the_library_gives() -> None:
    for number in (0, -1, (1 << 63) - 1, -(1 << 63)):
        value = cell("int", struct.pack("<q", number), 8)[1]
        assert type(value) is int
        assert value == number
    for name in [
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "float32",
        "float64",
    ]:
        dtype = np.dtype(name)
        data = b"\x81\x82\x83\x84\x85\x86\x87\x88"[: dtype.itemsize]
        value = cell(name, data, dtype.itemsize)[1]
        assert type(value) is dtype.type
        assert value.tobytes() == data


def test_the_bits_of_a_nan_stay_what_they_are() -> None:
    data = struct.pack("<I", 0x7FA00001)
    assert cell("float32", data, 4)[1].tobytes() == data


def test_a_scalar_of_the_wrong_size_is_its_bytes() -> None:
    assert "4 bytes instead of 8" in refused("int", b"abcd", 4)
    assert "9 bytes instead of 8" in refused("int", b"123456789")
    assert "0 bytes instead of 8" in refused("int", b"")
    assert "2 bytes instead of 1" in refused("uint8", b"ab", 2)


def test_a_scalar_without_a_fixed_size_is_read_all_the_same() -> None:
    assert cell("int", struct.pack("<q", 5))[1] == 5
    assert cell("int", struct.pack("<q", 5), 0)[1] == 5  # the library takes 0 for "no fixed size"


def test_text_numbers() -> None:
    assert cell("str", "größe\0".encode())[1] == "größe\0"
    assert cell("str", b"")[1] == ""
    assert cell("str_int", b"-1" + b"0" * 40)[1] == -(10**40)
    assert cell("str_float", b"0.1")[1] == 0.1
    assert math.isnan(cell("str_float", b"nan")[1])
    value = cell("str_decimal", b"1.230")[1]
    assert type(value) is Decimal
    assert str(value) == "1.230"


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("str", b"\xff\xfe"),
        ("str", b"\xed\xa0\x80"),
        ("str_int", b"1.5"),
        ("str_int", b""),
        ("str_int", b"9" * 5000),
        ("str_float", b"one"),
        ("str_decimal", b"one"),
        ("str_decimal", b"\xff"),
        ("json", b"{'a': 1}"),
        ("json", b""),
        ("json", b"\xff"),
        ("json", b"[1] 2"),
        ("json", b"9" * 5000),
        ("float99", b"abc"),
        ("", b"abc"),
        ("ndarray:complex64", b"12345678"),
        ("ndarray:float32:0", b""),
        ("ndarray:float32:2,x", b"12345678"),
        ("ndarray:float32:", b"12345678"),
    ],
)
def test_what_an_encoding_cannot_decode_is_its_bytes_and_a_note(encoding: str, data: bytes) -> None:
    assert len(refused(encoding, data)) < 310


def test_json() -> None:
    text = b'{"a": [1, 2.5, null, true, "\\u00e9", NaN, -Infinity], "a b": {}}'
    value = cell("json", text)[1]
    assert value["a"][:5] == [1, 2.5, None, True, "é"]
    assert math.isnan(value["a"][5])
    assert value["a"][6] == -math.inf
    assert cell("json", b'"just text"')[1] == "just text"


def test_json_nested_too_deeply_is_its_bytes() -> None:
    def nested(depth: int) -> bytes:
        return b"[" * depth + b"]" * depth

    assert cell("json", nested(config.NESTING))[1] == json.loads(nested(config.NESTING))
    assert "nested deeper" in refused("json", nested(config.NESTING + 2))
    assert "nested deeper" in refused("json", b'{"a":' * 100 + b"1" + b"}" * 100)
    assert refused("json", nested(200_000))
    assert refused("json", b"[" * 5_000_000)
    # many brackets, but not deep
    wide = b"[" + b"[],{}," * 500 + b'"[[[["]'
    assert cell("json", wide)[1] == json.loads(wide)


def test_json_of_more_values_than_anyone_means_is_its_bytes() -> None:
    assert "memory" in refused("json", b"[" + b"[]," * (config.TOKEN_FLOOR + 1) + b"1]")


def test_a_pickle_is_kept_and_not_run() -> None:
    bomb = b"cos\nsystem\n(S'touch /tmp/shardfs-was-here'\ntR."
    leaf, value = cell("pkl", bomb)
    assert type(leaf) is values.Pickle
    assert type(value) is values.Pickle
    assert value.data == bomb
    assert leaf.content(memoryview(b""), "png").ext == "pkl"


@pytest.mark.parametrize(
    ("encoding", "data", "ext"),
    [
        ("bytes", b"", "bin"),
        ("bytes", b"anything", "bin"),
        ("bytes", JPEG, "jpg"),
        ("bytes", b"\x93NUMPY", "bin"),
        ("jpeg", JPEG, "jpg"),
        ("png", PNG, "png"),
        ("jpeg", PNG, "png"),
        ("png", b"RIFF....WEBPVP8 ", "webp"),
    ],
)
def test_files_are_verbatim_and_named_by_their_content(encoding: str, data: bytes, ext: str) -> None:
    shard = shard_of([encoding], [None], (data,))
    (found,) = shard.records()
    content = found.tree["c0"].content(shard.raw, "png")
    assert (content.ext, content.size, content.note) == (ext, len(data), None)
    assert shard.sample(found.tree) == {"c0": data}


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"text", b"\x1f\x8b\x08 gzip"])
def test_a_picture_column_with_no_picture_in_it_is_bytes_with_a_note(data: bytes) -> None:
    assert "no picture" in refused("jpeg", data)
    assert "no picture" in refused("png", data)


def array_bytes(array: np.ndarray[Any, Any], dtype: bool, shape: bool, width: int = 0) -> bytes:
    codes = dict(
        zip(
            ["u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8"],
            (8, 9, 16, 17, 18, 32, 33, 34, 64, 65, 66),
            strict=True,
        )
    )
    made = b"" if dtype else bytes((codes[array.dtype.str[1:]],))
    if not shape:
        made += bytes((array.ndim << 2 | width,)) + struct.pack(f"<{array.ndim}{'BHIQ'[width]}", *array.shape)
    return made + array.tobytes()


@pytest.mark.parametrize(
    "name", ["uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64"]
)
def test_arrays_of_each_type(name: str) -> None:
    array = np.arange(24, dtype=name).reshape(2, 3, 4)
    for width in range(4):
        for encoding, dtype, shape in (("ndarray", False, False), (f"ndarray:{name}", True, False)):
            leaf, value = cell(encoding, array_bytes(array, dtype, shape, width))
            assert type(leaf) is values.Array
            assert (value.dtype, value.shape) == (array.dtype, array.shape)
            assert (value == array).all()
            assert not value.flags.writeable
    value = cell(f"ndarray:{name}:2,3,4", array.tobytes(), array.nbytes)[1]
    assert (value.dtype, value.shape) == (array.dtype, array.shape)
    assert (value == array).all()


def test_arrays_are_views_of_the_shard() -> None:
    array = np.arange(1000, dtype="<f8")
    shard = shard_of(["str", "ndarray"], [None, None], (b"x", array_bytes(array, False, False, 1)))
    (found,) = shard.records()
    value = shard.sample(found.tree)["c1"]
    assert np.shares_memory(value, np.frombuffer(shard.raw, np.uint8))
    content = found.tree["c1"].content(shard.raw, "npy")
    assert content.ext == "npy"
    assert bytes(shard.raw[content.offset : content.offset + 8000]) == array.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        b"\x07\x04\x01a",  # no such type
        b"\x08\x04",  # the dimension is missing
        b"\x08\x05\x01",  # half of it is missing
        b"\x08\xff" + b"\xff" * 8,
        b"\x08\x04\x02a",  # an element is missing
        b"\x08\x04\x02abc",  # an element too many
        b"\x08\x04\x00",  # no elements
        b"\x08\x0b" + b"\0" * 8 + b"\xff" * 8,  # none, in an impossible shape
        b"\x08\x0b" + b"\xff" * 16,
        b"\x42\x04\x01abcdefg",
    ],
)
def test_arrays_whose_header_is_wrong(data: bytes) -> None:
    assert refused("ndarray", data).removeprefix("ndarray: "), "it says what is wrong"


def test_arrays_with_fixed_parts_that_do_not_fit() -> None:
    assert "no shape" in refused("ndarray:float32", b"")
    assert "4 bytes for an array of float32 and shape (2,)" in refused("ndarray:float32", b"\x04\x02abcd")
    assert "4 bytes for an array of float32 and shape (2,)" in refused("ndarray:float32:2", b"abcd", 4)


def pil(mode: bytes, width: int, height: int, pixels: bytes) -> bytes:
    return struct.pack("<III", width, height, len(mode)) + mode + pixels


def test_pictures() -> None:
    leaf, value = cell("pil", pil(b"RGB", 2, 1, b"abcdef"))
    assert type(leaf) is Picture
    assert (value.mode, value.size, value.tobytes()) == ("RGB", (2, 1), b"abcdef")
    assert "bytes for" in refused("pil", pil(b"RGB", 2, 1, b"abcde"))


def list_bytes(items: list[bytes], reserved: bool) -> bytes:
    made = struct.pack(f"<{len(items) + 1}I", len(items), *map(len, items)) + b"".join(items)
    return bytes(4) + made if reserved else made


@pytest.mark.parametrize("encoding", ["jpeg_array", "jpegarray", "list[jpeg]", "list[png]"])
@pytest.mark.parametrize("items", [[], [JPEG], [PNG, JPEG, b"GIF89a"]])
def test_lists_of_picture_files(encoding: str, items: list[bytes]) -> None:
    leaf, value = cell(encoding, list_bytes(items, encoding.startswith("list")))
    assert type(leaf) is list
    assert all(type(item) is values.Blob for item in leaf)
    assert value == items


def test_lists_of_pictures() -> None:
    leaf, value = cell("list[pil]", list_bytes([pil(b"L", 1, 1, b"a"), pil(b"RGB", 1, 1, b"abc")], True))
    assert [item.mode for item in leaf] == ["L", "RGB"]
    assert [item.tobytes() for item in value] == [b"a", b"abc"]


def test_one_bad_item_leaves_the_others() -> None:
    leaf, value = cell("list[pil]", list_bytes([pil(b"L", 1, 1, b"a"), b"junk"], True))
    assert type(leaf[0]) is Picture
    assert leaf[1].note
    assert value[1] == b"junk"
    leaf, _ = cell("list[jpeg]", list_bytes([b"junk", b"", JPEG], True))
    assert [item.ext for item in leaf] == ["bin", "bin", "jpg"]


@pytest.mark.parametrize("encoding", ["jpegarray", "list[jpeg]"])
def test_lists_whose_sizes_do_not_fit(encoding: str) -> None:
    front = bytes(4) if encoding.startswith("list") else b""
    for data in (
        b"",
        b"\0\0\0",
        struct.pack("<I", 1),
        struct.pack("<II", 1, 5) + b"abcd",
        struct.pack("<II", 1, 3) + b"abcd",
        struct.pack("<I", 0) + b"x",
        struct.pack("<I", (1 << 32) - 1) + b"x" * 40,
    ):
        assert refused(encoding, front + data).removeprefix(f"{encoding}: "), "it says what is wrong"


def test_a_list_whose_reserved_number_is_used_is_not_guessed_at() -> None:
    assert "reserved" in refused("list[jpeg]", struct.pack("<III", 1, 1, len(JPEG)) + JPEG)


# --- records ------------------------------------------------------------------------------------------------------


def test_a_bad_cell_leaves_the_rest_of_the_sample() -> None:
    shard = shard_of(["str", "int", "str"], [None, 8, None], (b"a", bytes(8), b"\xff"), (b"b", bytes(8), b"c"))
    first, second = (shard.sample(found.tree) for found in shard.records())
    assert first == {"c0": "a", "c1": 0, "c2": b"\xff"}
    assert second == {"c0": "b", "c1": 0, "c2": "c"}


def test_records_can_be_read_alone() -> None:
    shard = shard_of(["str", "json"], [None, None], *((f"{at}".encode(), b"[]") for at in range(50)))
    found = list(shard.records())
    assert [shard.tree(one.start, one.end) for one in reversed(found)] == [one.tree for one in reversed(found)]
    assert found[-1].end == len(shard.raw)
    assert all(one.end == other.start for one, other in itertools.pairwise(found))


def test_many_samples() -> None:
    """More than are held as Python numbers at a time."""
    count = 2 * (1 << 16) + 3
    array = np.zeros(count + 2, "<u4")
    array[0] = count
    array[1:] = 4 * (count + 2) + np.arange(count + 1)
    raw = array.tobytes() + (np.arange(count) % 251).astype(np.uint8).tobytes()
    shard = mds.MdsShard(raw, mds.columns(("n",), ("uint8",), (1,)), count, len(raw))
    assert [int(found.tree["n"]) for found in shard.records()] == [at % 251 for at in range(count)]


def test_no_samples_and_no_columns() -> None:
    assert list(shard_of(["str"], [None]).records()) == []
    shard = shard_of([], [], (), ())
    assert [shard.sample(found.tree) for found in shard.records()] == [{}, {}]


@pytest.mark.parametrize("sizes", [(6, 1), (4, 1), (0, 0), ((1 << 32) - 1, 6), (5, (1 << 32) - 1)])
def test_a_record_whose_parts_do_not_fill_it(sizes: tuple[int, int]) -> None:
    good = struct.pack("<II", 5, 1) + b"12345a"
    bad = struct.pack("<II", *sizes) + b"12345a"
    raw = shard_bytes([good, bad, good])
    shard = mds.MdsShard(raw, mds.columns(("a", "b"), ("str", "str"), (None, None)), 3, len(raw))
    records = shard.records()
    assert next(records).tree == {"a": "12345", "b": "a"}
    with pytest.raises(DamagedShardError, match="a record of 14 bytes") as caught:
        next(records)
    assert caught.value.offset == raw.index(bad, 20)


def test_a_record_too_short_for_its_sizes() -> None:
    raw = shard_bytes([b"1234567"])
    shard = mds.MdsShard(raw, mds.columns(("a", "b"), ("str", "str"), (None, None)), 1, len(raw))
    with pytest.raises(DamagedShardError, match="too few for the sizes"):
        next(shard.records())


# --- the table of positions ---------------------------------------------------------------------------------------


def with_offsets(*offsets: int, length: int = 40) -> bytes:
    return struct.pack(f"<{len(offsets) + 1}I", len(offsets) - 1, *offsets).ljust(length, b"\0")


ONE = mds.columns(("a",), ("bytes",), (None,))


@pytest.mark.parametrize(
    ("raw", "reason", "offset"),
    [
        (b"", "0 bytes are too few", 0),
        (b"\2\0\0\0", "4 bytes are too few", 0),
        (b"\2\0\0\0\0\0\0\0", "too few for the positions", 4),
        (with_offsets(16, 28), "1 samples where the index has 2", 0),
        (with_offsets(16, 28, 34, 40), "3 samples where the index has 2", 0),
        (with_offsets(12, 28, 40), "inside the table", 4),
        (with_offsets(0, 0, 0), "inside the table", 4),
        (with_offsets(16, 28, 39), "the last sample ends at 39", 12),
        (with_offsets(16, 28, 41), "the last sample ends at 41", 12),
        (with_offsets(28, 20, 40), "sample 0 ends before it begins", 4),
        (with_offsets(28, 44, 40), "sample 1 ends before it begins", 8),
        (with_offsets(28, (1 << 32) - 1, 40), "sample 1 ends before it begins", 8),
    ],
)
def test_a_table_that_is_not_sound(raw: bytes, reason: str, offset: int) -> None:
    with pytest.raises(DamagedShardError, match=reason) as caught:
        mds.MdsShard(raw, ONE, 2, len(raw))
    assert caught.value.offset == offset


def test_each_truncation_is_noticed() -> None:
    raw = shard_bytes([record((None,), b"abc"), record((None,), b"")])
    for length in range(len(raw)):
        with pytest.raises(DamagedShardError):
            mds.MdsShard(raw[:length], ONE, 2, len(raw))
    with pytest.raises(DamagedShardError):
        mds.MdsShard(raw + b"x", ONE, 2, len(raw))


def test_more_samples_than_stored_bytes_can_mean() -> None:
    count = config.TOKEN_FLOOR + 2000
    raw = struct.pack("<I", count) + struct.pack("<I", 4 * (count + 2)) * (count + 1)
    with pytest.raises(DamagedShardError, match="in earnest"):
        mds.MdsShard(raw, mds.columns((), (), ()), count, 100)
    assert mds.MdsShard(raw, mds.columns((), (), ()), count, 1000).raw == raw


def test_columns_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="two columns of one name"):
        mds.columns(("a", "a"), ("str", "int"), (None, 8))
    with pytest.raises(ValueError, match="different lengths"):
        mds.columns(("a", "b"), ("str",), (None, 8))
    for size in (-1, 1 << 32):
        with pytest.raises(ValueError, match="column size"):
            mds.columns(("a",), ("str",), (size,))


ENCODINGS = [
    *[
        "bytes",
        "str",
        "int",
        "str_int",
        "str_float",
        "str_decimal",
        "json",
        "pkl",
        "pil",
        "jpeg",
        "png",
        "ndarray",
        "jpeg_array",
        "list[pil]",
    ],
    *["list[jpeg]", "uint8", "float16", "ndarray:int16", "ndarray:int16:3,4", "what"],
]


@given(
    st.lists(st.sampled_from(ENCODINGS), min_size=1, max_size=4),
    st.lists(st.binary(max_size=60) | st.just(bytes(24)), min_size=4, max_size=4),
)
def test_whatever_the_cells_hold_the_sample_has_files_of_the_promised_size(
    encodings: list[str], cells: list[bytes]
) -> None:
    cells = cells[: len(encodings)]
    shard = shard_of(encodings, [None] * len(encodings), tuple(cells))
    (found,) = shard.records()
    shard.sample(found.tree)
    for leaf in found.tree.values():
        if values.is_heavy(leaf):
            content = leaf.content(shard.raw, "png")
            if content.render is not None:
                assert len(content.render()) == content.size
            assert content.offset + content.size - len(content.prefix) <= len(shard.raw) or content.render


@given(st.binary(max_size=80), st.integers(0, 3))
def test_any_bytes_are_a_shard_or_damaged(raw: bytes, samples: int) -> None:
    try:
        shard = mds.MdsShard(raw, ONE, samples, len(raw))
        total = sum(len(shard.sample(found.tree)["a"]) + 4 for found in shard.records())
    except DamagedShardError:
        return
    assert total <= len(raw)
