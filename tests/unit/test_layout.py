"""A sample as files, and files as a sample."""

from __future__ import annotations

import io
import json
from typing import Any

import msgpack
import numpy as np
import pytest

from shardfs import config, copying, layout, names, reading_back, values


def files_of(sample: Any, arrays: str = "png", raw: bytes = b"") -> dict[str, bytes]:
    """The files of a sample, each checked to be as long as planned."""
    files = {}
    for plan in layout.lay_out(sample, memoryview(raw), arrays, 6):
        content = plan.content
        data = (
            content.render()
            if content.render is not None
            else content.prefix + raw[content.offset :][: content.size - len(content.prefix)]
        )
        assert len(data) == content.size, plan.suffix
        assert plan.suffix not in files
        files[plan.suffix] = data
    return files


def document(sample: Any) -> Any:
    return json.loads(files_of(sample)["json"])


def test_heavy_fields_are_files_and_the_light_ones_share_one() -> None:
    files = files_of({"label": 3, "image": b"\xff\xd8\xff\xe0", "array": np.zeros(2, "f4"), "name": "x"})
    assert list(files) == ["image.jpg", "array.npy", "json"]
    assert files["json"] == b'{"label": 3, "name": "x"}\n'


def test_a_sample_without_light_fields_has_no_json() -> None:
    assert list(files_of({"a": b"x"})) == ["a.bin"]


def test_a_sample_without_any_field_is_an_empty_object() -> None:
    assert files_of({}) == {"json": b"{}\n"}
    assert layout.read_back({"json": b"{}\n"}) == {}


def test_what_is_no_dict_is_shown_as_the_field_value() -> None:
    assert files_of(5) == {"json": b'{"$value": 5}\n'}
    assert files_of([1, b"x"]) == {"$value.1.bin": b"x", "json": b'{"$value": [1, {"$file": "$value.1.bin"}]}\n'}
    assert files_of(b"%PDF-") == {"$value.pdf": b"%PDF-"}
    assert list(files_of(np.zeros((2, 2, 3), "u1"))) == ["$value.png"]


def test_uint8_pictures_are_png_unless_npy_is_asked_for() -> None:
    image = np.arange(24, dtype="u1").reshape(2, 4, 3)
    assert list(files_of({"a": image})) == ["a.png"]
    assert list(files_of({"a": image}, "npy")) == ["a.npy"]


def test_a_field_called_as_its_extension_says_it_once() -> None:
    """A folder of ordinary files, or WebDataset's names, looks the same when it has been stored."""
    photo = b"\xff\xd8\xff\xe0"
    sample = {"jpg": photo, "npy": np.zeros(2, "f4"), "bin": b"x", "pdf": b"x", "png": photo}
    files = files_of(sample)
    assert list(files) == ["jpg", "npy", "bin", "pdf.bin", "png.jpg"]
    assert layout.read_back({name: data for name, data in files.items() if name != "npy"}) == {
        name: value for name, value in sample.items() if name != "npy"
    }
    assert (layout.read_back(files)["npy"] == sample["npy"]).all()
    assert list(files_of({"JPG": photo})) == ["JPG.jpg"]
    assert list(files_of({"a": {"jpg": photo}})) == ["a.jpg.jpg", "json"]
    assert list(files_of({"txt": "a"}, "png+text")) == ["txt"]


def test_names_that_a_system_gives_its_files_are_theirs() -> None:
    named = values.Named
    assert list(files_of({"image": named(0, 1, "photo.jpg"), "jpg": named(1, 1, "jpg")}, raw=b"ab")) == [
        *("photo.jpg", "jpg", "json")
    ]
    files = files_of({"a": named(1, 2, "x/y.npy"), "n": 3, "b": named(0, 1, "json")}, raw=b"abc")
    assert files["x%2Fy.npy"] == b"bc", "whatever the bytes are"
    assert json.loads(files["json"]) == {"n": 3, "$fields": {"x%2Fy.npy": "a", "~2.json": "b"}}
    assert document({"l": [named(0, 0, "one.jpg"), named(0, 0, "ONE.jpg")]}) == {
        "l": [{"$file": "one.jpg"}, {"$file": "ONE~2.jpg"}]
    }


def test_what_a_copy_and_an_edit_make_of_a_file_that_its_system_named() -> None:
    npy = io.BytesIO()
    np.save(npy, np.arange(3))
    raw = memoryview(npy.getvalue() + b"text")
    size = len(npy.getvalue())
    tree = {
        "a": values.Named(0, size, "x.npy"),
        "b": values.Named(0, 3, "y.npy"),
        "t": values.Named(size, 4, "note.txt"),
    }
    copy = copying.copied(tree, raw)
    assert list(copy["a"]) == [0, 1, 2]
    assert copy["b"] == b"\x93NU", "no array, whatever its name says"
    assert copy["t"] == "text"
    files = files_of(tree, raw=bytes(raw))
    del tree["b"], files["y.npy"]
    stored = reading_back.Stored(tree, raw, files, "s", None)
    edited = files | {"note.txt": b"other"}
    value, unchanged = stored.restored(reading_back.read(edited, "s"), edited, bytes)
    assert (value, unchanged) == ({"a": npy.getvalue(), "t": b"other"}, False)


def test_regression_a_field_named_json_in_bytes_is_not_taken_for_a_text() -> None:
    sample = {b"json": 2, "a": b"x"}
    assert layout.read_back(files_of(sample)) == sample


def test_what_lies_inside_is_lifted_out() -> None:
    sample = {"boxes": [{"crop": b"\xff\xd8\xff\xe0", "at": [1, 2]}, {"crop": b"", "at": [3, 4]}]}
    files = files_of(sample)
    assert list(files) == ["boxes.0.crop.jpg", "boxes.1.crop.bin", "json"]
    assert json.loads(files["json"])["boxes"][0] == {"crop": {"$file": "boxes.0.crop.jpg"}, "at": [1, 2]}


def test_a_field_whose_file_would_be_another_fields_is_told_apart_and_explained() -> None:
    sample = {"a": {"b": b"inner"}, "a.b": b"outer", "A.B": b"upper"}
    files = files_of(sample)
    assert list(files) == ["a.b.bin", "a.b~2.bin", "A.B~3.bin", "json"]
    assert document(sample)["$fields"] == {"a.b~2.bin": "a.b", "A.B~3.bin": "A.B"}


def test_a_long_field_name_is_shortened_and_explained() -> None:
    sample = {"f" * 300: b"x"}
    (suffix, _) = files_of(sample)
    assert len("000000." + suffix) <= config.NAME_MAX
    assert document(sample) == {"$fields": {suffix: "f" * 300}}


@pytest.mark.parametrize(
    "sample",
    [
        {"$fields": 1},
        {"$fields": b"x"},
        {"$fields": {"a": 1}, b"b": 2},
        {"$value": 1},
        {"$value": b"x"},
        {"$value": 1, "b": 2},
        {"$esc": {"$esc": 1}},
        {"$esc": 1, b"k": b"x"},
        {b"$esc": 1},
        {"$float": "nan"},
        {"": 1},
        {"": b"x"},
        {".": b"x", "..": b"y", "a/b": b"z", "%": b"w", "~": b"v"},
        {"json": 1},
        {"json": b"x"},
        {"a.json": b"{}", "x": 1},
        {1: "one", "1": "text", b"1": "bytes"},
        {1: b"one", "1": b"text", b"1": b"bytes"},
        {b"a": b"x", "a.bin": 5},
        {None: 1, (1, b"x"): [b"y"], 2.5: {}},
        {msgpack.ExtType(3, b"k"): 1},
        {b"\xff" * 200: 1, b"\xff" * 201: 2, b"\xff" * 202: b"x"},
        {"A" * 244: b"upper", "a" * 244: b"lower"},
        {"f" * 300: b"x", "f" * 301: b"y", "F" * 300: b"z", "g" * 400: [b"v", 1]},
        {"__key__": "x", "jpg": b"\xff\xd8\xff\xe0"},
        {"x": msgpack.ExtType(5, b"payload")},
        {"t": (1, [2, (b"x",)]), "s": {1, 2}},
        [],
        [[b"x"]],
        (1, 2),
        None,
        "text",
        b"bytes",
        msgpack.ExtType(5, b"payload"),
        msgpack.Timestamp(1, 2),
    ],
    ids=lambda sample: repr(sample)[:60],
)
def test_a_sample_comes_back_out_of_its_files(sample: Any) -> None:
    files = files_of(sample)
    assert layout.read_back(files) == sample
    assert len({names.same_name(suffix) for suffix in files}) == len(files)
    assert all(len(f"000000.{suffix}".encode()) <= config.NAME_MAX for suffix in files)


@pytest.mark.parametrize(
    "sample",
    [{b"k": [b"lifted"], b"k.0.bin": 5}, {b"k.0.bin": 5, b"k": [b"lifted"]}, {1: [b"a", b"b"], "1.1.bin": 2, b"1": 3}],
    ids=repr,
)
def test_regression_a_name_that_is_explained_is_never_a_files_too(sample: Any) -> None:
    """A bytes field shown as `k.0.bin` came back as a text one when another field's value was lifted to that file."""
    assert layout.read_back(files_of(sample)) == sample


def test_regression_a_wide_structured_array_can_be_read_back() -> None:
    """numpy refuses headers over 10,000 characters unless told otherwise."""
    array = np.ones(3, [(f"field_{at:04d}_with_a_name", "<f4") for at in range(500)])
    back = layout.read_back(files_of({"a": array}))["a"]
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


def test_arrays_come_back_exactly() -> None:
    for array in (np.zeros((3, 2, 4), "u1"), np.array(1.5), np.zeros((0, 2), ">i2"), np.array(["é"])):
        back = layout.read_back(files_of({"a": array}))["a"]
        assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_a_png_that_is_no_array_stays_bytes() -> None:
    image = b"\x89PNG\r\n\x1a\n" + b"anything"
    assert layout.read_back(files_of({"a": image})) == {"a": image}


def test_a_pickle_is_shown_and_given_back_as_bytes_that_are_never_run() -> None:
    raw = b"cos\nsystem\n(S'false'\ntR."
    files = files_of({"p": values.Pickle(0, len(raw))}, raw=raw)
    assert files == {"p.pkl": raw}
    back = layout.read_back(files)["p"]
    assert type(back) is values.Pickle
    assert back.data == raw


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "5",
        '{"a": {"$file": "gone.bin"}}',
        '{"a": {"$tag": 1}}',
        "{",
        '{"a": {"$file": "json/../x"}}',
        '{"$fields": 5, "a": 1}',
        '{"$esc": [1]}',
        '{"$fields": {"a": {}}, "a": 1}',
    ],
)
def test_files_that_are_no_sample_are_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        layout.read_back({"json": text.encode()})


@pytest.mark.parametrize(
    "data", [b"", b"no array", b"\x93NUMPY", b"\x93NUMPY\1\0\5\0{}", b"PK\5\6" + bytes(18)], ids=repr
)
def test_an_npy_that_holds_no_array_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        layout.read_back({"a.npy": data})


def test_thousands_of_fields_with_names_alike_take_no_quadratic_time() -> None:
    sample: dict[Any, Any] = {b"\xff" * 100 + str(at).encode(): at for at in range(20_000)}
    assert layout.read_back(files_of(sample)) == sample


def test_a_very_long_name_costs_no_more_than_its_length() -> None:
    """Under each of 20,000 files the whole name would have been escaped and hashed again."""
    sample = {"top": {"/a" * 500_000: [b""] * 20_000}}
    suffixes = [plan.suffix for plan in layout.lay_out(sample, memoryview(b""), "png", 6)]
    assert len(set(suffixes)) == 20_001
