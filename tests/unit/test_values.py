"""Values: their files, their sizes, and the JSON of the light ones."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import math
import uuid
import zipfile
from typing import Any

import msgpack
import numpy as np
import pytest

from shardfs import config, light_json, values
from shardfs.errors import DamagedShardError
from shardfs.values import Array, Blob, Extension, Pickle


def rendered(content: values.Content, raw: bytes) -> bytes:
    """A file's bytes, whichever way it has them."""
    if content.render is not None:
        return content.render()
    return content.prefix + raw[content.offset : content.offset + content.size - len(content.prefix)]


def no_file(name: str) -> Any:
    raise AssertionError(name)


def there_and_back(value: Any) -> Any:
    text = light_json.json_bytes(light_json.to_json(value, light_json.no_lift, ("field",)))
    return light_json.from_json(json.loads(text), no_file)


# --- extensions -------------------------------------------------------------------------------------------------


def zip_of(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("head", "ext"),
    [
        (b"\xff\xd8\xff\xe0", "jpg"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"GIF89a", "gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", "wav"),
        (b"RIFF\0\0\0\0AVI LIST", "bin"),
        (b"BM\x1a\0\0\0" + bytes(20), "bmp"),
        (b"BM\x1b\0\0\0" + bytes(20), "bin"),
        (b"BMW", "bin"),
        (b"\0\0\0\x18ftypisom", "mp4"),
        (b"\0\0\0\x18ftypavif", "avif"),
        (b"\xff\xfb\x90\x00", "mp3"),
        (b"\xff\xff\xff\xff", "bin"),
        (bytes(257) + b"ustar", "tar"),
        (b"\x1f\x8b\x08", "gz"),
        (b"\x28\xb5\x2f\xfd", "zst"),
        (zip_of("a.npy"), "npz"),
        (zip_of("a.txt"), "zip"),
        (b"PK\3\4", "zip"),
        (b"\x93NUMPY\1\0", "bin"),
        (b"", "bin"),
        (b"\x80\x04N.", "bin"),
    ],
)
def test_bytes_get_their_extension_by_magic_number(head: bytes, ext: str) -> None:
    assert values.extension_of(head, len(head)) == ext


# --- arrays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.array(5.0),
        np.zeros((0, 3), ">i4"),
        np.arange(6, dtype="<u2").reshape(2, 3),
        np.array(["a", "日本"], "<U2"),
        np.array([(1, 2.0)], [("größe", "<i2"), ("b", ">f8")]),
        np.array([(1, [[1, 2]])], [("日本", "<i2"), ("sub", "<u1", (1, 2))]),
        np.array(["2024-01-01"], "M8[ns]"),
        np.zeros(2, [(f"field_with_a_long_name_{at:05d}", "<f8") for at in range(2000)]),
    ],
    ids=lambda array: f"{str(array.dtype)[:20]}{array.shape}",
)
def test_an_npy_header_is_what_numpy_reads(array: np.ndarray[Any, Any]) -> None:
    header = values.npy_header(array.dtype, array.shape)
    assert len(header) % 64 == 0
    read = np.load(io.BytesIO(header + array.tobytes()), allow_pickle=False, max_header_size=10**6)
    assert (read.dtype, read.shape) == (array.dtype, array.shape)
    assert read.tobytes() == array.tobytes()
    assert read.flags.c_contiguous


@pytest.mark.parametrize("spec", ["O", "|O", "object", "i4,O", (("a", "|O"),), "nonsense", "", 5, (1, 2), "(2,3)f8"])
def test_only_plain_memory_is_a_dtype(spec: Any) -> None:
    with pytest.raises(ValueError, match="dtype"):
        values.safe_dtype(spec)


def test_a_shape_must_fit_its_bytes_exactly() -> None:
    f8 = np.dtype("<f8")
    assert values.checked_shape([2, 3], f8, 48) == (2, 3)
    assert values.checked_shape([], f8, 8) == ()
    assert values.checked_shape([0, 1 << 40], f8, 0) == (0, 1 << 40)
    for shape, length in (
        ([2, 3], 47),
        ([2, 3], 49),
        ([-2, -3], 48),
        ([-1], 8),
        ([True], 8),
        ([1.0], 8),
        (["1"], 8),
        ("1", 8),
        (None, 8),
        ([1] * (config.NDIM + 1), 8),
        ([0, 1 << 62], 0),
        ([0, 1 << 40, 1 << 40], 0),
        ([1 << 70, 0], 0),
    ):
        with pytest.raises(ValueError, match="shape"):
            values.checked_shape(shape, f8, length)


@pytest.mark.parametrize(
    ("shape", "dtype", "ext"),
    [
        ((4, 5, 3), "u1", "png"),
        ((4, 5, 4), "u1", "png"),
        ((4, 5, 2), "u1", "npy"),
        ((1, 5, 3), "u1", "npy"),
        ((5, 1, 3), "u1", "npy"),
        ((4, 5), "u1", "npy"),
        ((4, 5, 3), "i1", "npy"),
        ((3, 4, 5), "u1", "npy"),
        ((0, 5, 3), "u1", "npy"),
    ],
)
def test_only_arrays_that_look_like_pictures_become_png(shape: tuple[int, ...], dtype: str, ext: str) -> None:
    array = np.zeros(shape, dtype)
    assert Array(0, array.dtype, shape).content(memoryview(array.tobytes()), "png").ext == ext
    assert values.content_of(array, memoryview(b""), "png").ext == ext
    assert values.content_of(array, memoryview(b""), "npy").ext == "npy"


# --- heavy leaves -----------------------------------------------------------------------------------------------


def test_a_reference_and_the_value_it_stands_for_have_the_same_file() -> None:
    array = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    raw = b"xx" + array.tobytes() + b"%PDF-1.7" + b"tail"
    view = memoryview(raw)
    for reference in (Array(2, array.dtype, array.shape), Blob(98, 8), Extension(3, 98, 8), Pickle(98, 8)):
        content = values.content_of(reference, view, "png")
        assert len(rendered(content, raw)) == content.size
        if not isinstance(reference, Pickle):
            inline = values.content_of(reference.value(view), view, "png")
            assert (inline.ext, inline.size) == (content.ext, content.size)
            assert rendered(inline, raw) == rendered(content, raw)


def test_arrays_given_to_python_are_read_only_views() -> None:
    raw = bytearray(np.arange(3, dtype="<i8").tobytes())
    array = Array(0, np.dtype("<i8"), (3,)).value(memoryview(raw))
    assert array.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 5


def test_a_pickle_stays_bytes() -> None:
    raw = b"..cos\nsystem\n(S'false'\ntR."
    value = values.to_python([Pickle(2, len(raw) - 2)], memoryview(raw), list)[0]
    assert type(value) is Pickle
    assert value.data == raw[2:]


def test_an_array_of_objects_gets_no_file() -> None:
    with pytest.raises(DamagedShardError, match="Python objects"):
        values.content_of(np.array([None]), memoryview(b""), "png")


def test_a_strided_array_is_written_in_c_order() -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3))[:, ::2]
    content = values.content_of(array, memoryview(b""), "png")
    data = rendered(content, b"")
    assert len(data) == content.size
    assert np.array_equal(np.load(io.BytesIO(data)), array)


def test_a_note_travels_with_the_content() -> None:
    assert Blob(0, 3, "bin", "why").content(memoryview(b"\xff\xd8\xff"), "png") == values.Content(
        "bin", 3, b"", 0, None, "why"
    )


# --- light values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**63),
        2**64 - 1,
        10**300,
        1.5,
        -0.0,
        1e-320,
        math.inf,
        -math.inf,
        "",
        "\ud800",
        "\u2028\0\x7f",
        [],
        {},
        (),
        set(),
        [[[]]],
        {"a": {"b": [1, {"c": None}]}},
        (1, (2, [3])),
        {1, 2, "x", None, b"bytes", (1, "y")},
        {frozenset({1}), frozenset({2, 3})},
        {(frozenset({1}), 2): 3},
        complex(1, -2),
        complex(0.0, math.inf),
        decimal.Decimal("1.10"),
        decimal.Decimal("-Infinity"),
        decimal.Decimal("1E+400"),
        datetime.datetime(2024, 2, 29, 1, 2, 3, 4),
        datetime.datetime(2024, 2, 29, tzinfo=datetime.timezone(datetime.timedelta(hours=-5))),
        datetime.datetime(1, 1, 1),
        datetime.date(999, 1, 1),
        datetime.time(10, 0),
        datetime.time(10, 0, 1, 5),
        msgpack.Timestamp(0, 999_999_999),
        msgpack.Timestamp(-(2**62), 0),
        uuid.UUID(int=5),
        {1: "int", 2.5: "float", None: "none", False: "bool"},
        {b"\xff": 1, (1, b"x"): 2},
        {"$float": "nan"},
        {"$esc": {"$esc": 1}},
        {"$file": "x.npy"},
        {"$": 0},
        {"$unknown": [1]},
        {"$map": []},
        {"$set": {"$tuple": [1]}},
        {"$a": 1, "b": 2},
        {"$fields": 1},
        {msgpack.ExtType(3, b"key"): 1},
        {msgpack.Timestamp(1, 2): complex(1, 1)},
    ],
    ids=lambda value: (
        "".join(sorted(repr(value))) if isinstance(value, set) else repr(value)
    ),  # the same in each process
)
def test_a_light_value_comes_back_out_of_its_json(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value) or isinstance(value, set | dict)


def test_nan_comes_back() -> None:
    assert math.isnan(there_and_back(math.nan))
    back = there_and_back({"a": [complex(math.nan, 1.0), decimal.Decimal("nan")]})
    assert math.isnan(back["a"][0].real)
    assert back["a"][1].is_nan()


@pytest.mark.parametrize(
    "value",
    [
        datetime.time(10, 0, tzinfo=datetime.timezone(datetime.timedelta(hours=-5))),
        datetime.time(10, 0, 0, 7, tzinfo=datetime.timezone(datetime.timedelta(hours=-5, minutes=-30))),
        datetime.time(10, 0, tzinfo=datetime.UTC),
    ],
    ids=str,
)
def test_regression_a_time_west_of_greenwich_is_no_datetime(value: datetime.time) -> None:
    assert there_and_back(value) == value


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [
        (np.int64(5), 5),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float16(0.5), 0.5),
        (np.float32("inf"), math.inf),
        (np.bool_(True), True),
        (np.complex64(1 + 2j), 1 + 2j),
        (np.str_("x"), "x"),
        (np.datetime64("2024-01-01T00:00:01"), datetime.datetime(2024, 1, 1, 0, 0, 1)),
        (np.datetime64("2024-01-01"), datetime.date(2024, 1, 1)),
        (np.datetime64("NaT"), None),
        (np.longdouble(0.25), 0.25),
    ],
    ids=repr,
)
def test_numpy_scalars_are_plain_values(scalar: Any, plain: Any) -> None:
    back = there_and_back(scalar)
    assert back == plain
    assert type(back) is type(plain)


@pytest.mark.parametrize(
    ("scalar", "plain"),
    [
        (np.timedelta64(90, "s"), 90),
        (np.timedelta64(-3, "ns"), -3),
        (np.timedelta64("NaT"), None),
        (np.longdouble("inf"), math.inf),
        (np.longdouble("-inf"), -math.inf),
        (np.clongdouble(1 + 2j), 1 + 2j),
    ],
    ids=repr,
)
def test_regression_scalars_python_has_no_type_for_do_not_damn_the_shard(scalar: Any, plain: Any) -> None:
    """msgpack-numpy writes timedelta64 (a np.number), long doubles that are infinite, and long complex numbers."""
    assert there_and_back(scalar) == plain


def test_subclasses_of_what_json_knows_are_what_they_derive_from() -> None:
    class Word(str):
        pass

    class Number(int):
        pass

    class Row(dict[str, int]):
        pass

    assert there_and_back([Word("a"), Number(3), Row(a=1)]) == ["a", 3, {"a": 1}]


def test_the_json_is_strict_and_one_line() -> None:
    data = light_json.json_bytes(light_json.to_json({"a\n": [math.nan, "\udc80", "é"]}, light_json.no_lift, ()))
    assert data == '{"a\\n": [{"$float": "nan"}, "\\udc80", "é"]}\n'.encode()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(data, parse_constant=refuse)


@pytest.mark.parametrize(
    "value",
    [object(), datetime.timedelta(1), range(3), {1: object()}, [np.array([1])]],
    ids=["object", "timedelta", "range", "dict", "list"],
)
def test_what_has_no_form_is_refused(value: Any) -> None:
    with pytest.raises(DamagedShardError):
        light_json.to_json(value, light_json.no_lift, ())


def test_an_array_cannot_be_the_name_of_a_field_or_in_a_set() -> None:
    for value in ({Array(0, np.dtype("u1"), (1,)): 1}, {1: 2, Pickle(0, 1): 3}):
        with pytest.raises(DamagedShardError, match="plain values"):
            light_json.to_json(value, lambda *_: "file", ())


@pytest.mark.parametrize(
    "document",
    [
        {"$float": "1"},
        {"$float": 1},
        {"$float": ["nan"]},
        {"$decimal": "x"},
        {"$decimal": {}},
        {"$uuid": "x"},
        {"$uuid": 1},
        {"$bytes": "*"},
        {"$bytes": 5},
        {"$timestamp": 1},
        {"$timestamp": [1, 2, 3]},
        {"$timestamp": [1, -2]},
        {"$datetime": ""},
        {"$datetime": ":"},
        {"$datetime": 5},
        {"$esc": []},
        {"$complex": [1]},
        {"$complex": ["a", "b"]},
        {"$tuple": 1},
        {"$set": [{}]},
        {"$map": [1]},
        {"$map": [[{}, 1]]},
        {"$ext": [1]},
        {"$ext": [1000, {"$bytes": ""}]},
        {"$ext": [1, 10**12]},
        {"$complex": [10**400, 0]},
        {"$nonsense": 1},
        {"$file": "missing"},
        {"$file": []},
    ],
    ids=json.dumps,
)
def test_a_tag_with_an_impossible_content_is_a_value_error(document: Any) -> None:
    with pytest.raises(ValueError, match=r".*"):
        light_json.from_json(document, {}.__getitem__)


def test_heavy_values_inside_light_ones_are_lifted_out_and_named() -> None:
    seen: list[tuple[Any, tuple[str, ...]]] = []

    def lift(value: Any, path: tuple[str, ...]) -> str:
        seen.append((value, path))
        return f"file{len(seen)}"

    made = light_json.to_json({"a": [b"x", 1, {"b": b"y"}], "c": (msgpack.ExtType(7, b"z"),), 5: b"w"}, lift, ("f",))
    assert [path for _, path in seen] == [("f", "0", "0"), ("f", "0", "2", "b"), ("f", "1", "0"), ("f", "2")]
    assert made["$map"][0][1] == [{"$file": "file1"}, 1, {"b": {"$file": "file2"}}]
    assert made["$map"][1][1] == {"$tuple": [{"$ext": [7, {"$file": "file3"}]}]}
    assert made["$map"][2] == [5, {"$file": "file4"}]
    files = {f"file{at}": data for at, data in enumerate((b"x", b"y", b"z", b"w"), 1)}
    assert light_json.from_json(made, files.__getitem__) == {
        "a": [b"x", 1, {"b": b"y"}],
        "c": (msgpack.ExtType(7, b"z"),),
        5: b"w",
    }
