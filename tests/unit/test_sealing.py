"""A directory of files as samples: names, order, types, and what a file that does not parse says; and writing them."""

from __future__ import annotations

import datetime
import decimal
import errno
import fcntl
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import PIL.Image
import pytest
import webdataset

from shardfs import config, images, reading_back, table_building, values
from shardfs.drivers.base import Cell, Value, Verbatim
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.errors import BadSampleError, BadSettingError, KeyExistsError, StaleShardError, StorageError
from shardfs.model import Entry, Key
from shardfs.sealing import Base, Changed, Source, Stored, is_temporary, seal
from shardfs.storage.local import TEMPORARY, LocalStorage

DATA = Path(__file__).parent.parent / "data" / "squirrel"

Files = list[tuple[bytes, Source]]


def changed(data: bytes) -> Changed:
    return Changed(lambda: data, len(data))


def new(**files: bytes) -> Files:
    return [(name.encode(), changed(data)) for name, data in files.items()]


def read(files: dict[str, bytes]) -> list[Any]:
    records = list(seal(new(**files)).records())
    return [record.sample for record in records if isinstance(record, Value)]


def names_of(files: dict[str, bytes]) -> list[str]:
    return [record.name for record in seal(new(**files)).records() if isinstance(record, Value)]


def npy(array: np.ndarray[Any, Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (3, 2)) -> bytes:
    sink = io.BytesIO()
    PIL.Image.frombytes(mode, size, bytes(range(100, 100 + len(mode) * size[0] * size[1]))).save(sink, "PNG")
    return sink.getvalue()


def stored(samples: list[Any], arrays: str = "png") -> tuple[SquirrelShard, Base, Files]:
    raw = b"".join(msgpack.packb(sample, default=packed_numpy) for sample in samples)
    return laid_out(SquirrelShard(raw, len(raw), "msgpack"), arrays)


def laid_out(shard: SquirrelShard, arrays: str = "png") -> tuple[SquirrelShard, Base, Files]:
    base = Base(shard, table_building.build(shard, arrays), arrays)
    table = base.table
    return shard, base, [(table.name(at), Stored(table.sample_of(at), at)) for at in range(table.files)]


def packed_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        head: dict[bytes, Any] = {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape}
        return {**head, b"data": value.tobytes()}
    return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}


def replaced(files: Files, name: bytes, data: bytes) -> Files:
    assert name in dict(files)
    return [(old, changed(data) if old == name else source) for old, source in files]


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(".x", ".nfs0000000000a1", ".cat.jpg.Xy12Zz", "cat.jpg~", "cat.tmp", "cat.jpg.partial", "4913", "5036"),
        *("#a.json#", "sedAb12Cd", ".000000.json.swp", ".fuse_hidden0000001"),
    ],
)
def test_temporary_names_never_become_samples(name: str) -> None:
    assert is_temporary(name.encode())
    assert read({name: b"x", "000000.a.bin": b"y"}) == [{"a": b"y"}]


@pytest.mark.parametrize("name", ["cat.jpg", "4913.jpg", "000000.json", "x~2.jpg", "a.tmp.jpg", "sedan.jpg", "tmp.x"])
def test_ordinary_names_are_not_temporary(name: str) -> None:
    assert not is_temporary(name.encode())


@pytest.mark.parametrize("name", [b"README", b"cat.", b"\xff.jpg"])
def test_a_name_that_is_no_file_of_a_sample_is_refused(name: bytes) -> None:
    with pytest.raises(BadSampleError) as caught:
        seal([(name, changed(b""))])
    assert caught.value.errno == errno.EINVAL
    assert name.decode("utf-8", "backslashreplace") in str(caught.value)


def test_a_folder_of_ordinary_files() -> None:
    assert read({"dog.jpg": b"\xff\xd8\xffdog", "cat.jpg": b"\xff\xd8\xffcat"}) == [
        {"__key__": "cat", "jpg": b"\xff\xd8\xffcat"},
        {"__key__": "dog", "jpg": b"\xff\xd8\xffdog"},
    ]


def test_a_webdataset() -> None:
    picture_file = picture()
    files = {"n01.jpg": b"\xff\xd8\xff", "n01.cls": b"7", "n01.json": b'{"a": 1}', "n01.seg.png": picture_file}
    expected = {"__key__": "n01", "a": 1, "jpg": b"\xff\xd8\xff", "cls": 7, "seg": picture_file}
    assert read({**files, "n01.txt": "grün\n".encode()}) == [{**expected, "txt": "grün\n"}]


@pytest.mark.parametrize("ext", ["cls", "cls2", "index", "inx", "id", "txt", "text", "transcript"])
@pytest.mark.parametrize("data", [b"7", b"-3\n", b"007"])
def test_types_of_extensions_are_those_of_webdataset(ext: str, data: bytes) -> None:
    theirs = webdataset.autodecode.basichandlers(ext, data)
    assert reading_back.file_value(ext, data) == theirs
    assert type(reading_back.file_value(ext, data)) is type(theirs)


def test_a_class_that_is_no_number_stays_bytes() -> None:
    assert read({"n.cls": b"cat"}) == [{"__key__": "n", "cls": b"cat"}]


def test_numbers_are_not_kept_and_names_are() -> None:
    files = {"000001.json": b'{"a": 1}', "1.json": b"{}", "a%2Eb.json": b"{}", "50%.json": b"{}"}
    assert read(files) == [{"a": 1}, {"__key__": "1"}, {"__key__": "50%"}, {"__key__": "a.b"}]


def test_numbers_come_first_then_names() -> None:
    files = dict.fromkeys(["b.json", "000010.json", "a.json", "000009.json", "1000000.json"], b"{}")
    assert names_of(files) == ["000009", "000010", "1000000", "a", "b"]


def test_the_key_in_the_json_stays_where_it_is_the_files_name() -> None:
    assert read({"a.json": b'{"x": 1, "__key__": "a"}'}) == [{"x": 1, "__key__": "a"}]
    assert read({"b.json": b'{"x": 1, "__key__": "a"}'}) == [{"__key__": "b", "x": 1}]


# --- what files hold ----------------------------------------------------------------------------------------------


def test_types_by_extension() -> None:
    array = np.arange(6, dtype="<i2").reshape(2, 3)
    pixels = np.arange(24, dtype="u1").reshape(2, 4, 3)
    marked = images.png(4, 2, "RGB", pixels.tobytes(), "ndarray")
    files = {"a.npy": npy(array), "p.png": marked, "q.png": picture(), "t.txt": b"x", "z.xyz": b"?", "k.pkl": b"\x80."}
    (sample,) = read({f"000000.{name}": data for name, data in files.items()})
    assert np.array_equal(sample["a"], array)
    assert sample["a"].dtype == array.dtype
    assert np.array_equal(sample["p"], pixels)
    assert (sample["q"], sample["t"], sample["z"]) == (picture(), "x", b"?")
    assert sample["k"] == values.Pickle(0, 2, b"\x80.")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"000000.json": b"[1]"}, "000000.json: it must hold an object"),
        ({"000000.json": b"{"}, "000000.json"),
        ({"000000.json": b'{"a": 1, "a": 2}'}, "000000.json: a name stands twice"),
        ({"000000.json": b'{"a": {"$file": "b.npy"}}'}, r"000000.json: it names the file 000000.b.npy, which is not"),
        ({"000000.json": b'{"a": {"$file": 3}}'}, "000000.json"),
        ({"000000.json": b'{"a": {"$decimal": "x"}}'}, r"000000.json: tag \$decimal"),
        ({"000000.json": b"[" * 100_000}, "000000.json"),
        ({"000000.a.npy": b"\x93NUMPY"}, "000000.a.npy"),
        ({"000000.a.npy": npy(np.zeros(3))[:-1]}, "000000.a.npy"),
        ({"000000.a.txt": b"\xff"}, "000000.a.txt"),
        ({"000000.json": b'{"a": 1}', "000000.a.txt": b"x"}, "000000.a.txt: 000000.json has the field 'a' already"),
        ({"000000.a.jpg": b"", "000000.a.png": b""}, "000000.a.png: 000000.a.jpg has the field 'a' already"),
        ({"000000.json": b'{"$value": 5}', "000000.a.txt": b"x"}, "000000.a.txt: a field of a sample whose"),
        ({"x.json": b'{"$value": 5}'}, r"x.json: a sample that is a lone value"),
    ],
)
def test_what_does_not_parse_is_named(files: dict[str, bytes], named: str) -> None:
    with pytest.raises(BadSampleError, match=named) as caught:
        read(files)
    assert caught.value.errno == errno.EINVAL


def test_an_object_array_in_an_npy_file_is_not_run(tmp_path: Path) -> None:
    sink = io.BytesIO()
    np.save(sink, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(BadSampleError, match=r"000000\.a\.npy"):
        read({"000000.a.npy": sink.getvalue()})


# --- against the stored shard -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["msgpack_basic", "msgpack_types", "msgpack_objarray", "jsonl_basic", "jsonl_types"])
@pytest.mark.parametrize("arrays", ["png", "npy", "png+text"])
def test_each_fixture_is_verbatim_and_one_edit_touches_one_sample(case: str, arrays: str) -> None:
    driver = SquirrelDriver(LocalStorage(DATA / case / "store"))
    for entry in driver.entries():
        shard, base, files = laid_out(driver.load(entry, lambda _: None), arrays)
        records = list(seal(files, base).records())
        assert b"".join(bytes(record.data) for record in records if isinstance(record, Verbatim)) == bytes(shard.raw)
        edited = next((at for at, record in enumerate(shard.records()) if isinstance(record.tree, dict)), None)
        if edited is None:
            continue
        added = [*files, (base.table.stem(edited) + b".new.txt", changed(b"text"))]
        kinds = [type(record) for record in seal(added, base).records()]
        assert [at for at, kind in enumerate(kinds) if kind is Value] == [edited]


def test_unchanged_fields_of_a_changed_sample_are_their_stored_cells() -> None:
    pickled = {b"nd": True, b"type": "O", b"kind": b"O", b"shape": (1,), b"data": b"\x80\x04]\x8c\x01aa."}
    sample = {"label": 3, "half": np.float32(0.1), "objects": pickled, "image": b"\xff\xd8\xff"}
    _, base, files = stored([sample, {"label": 5}])
    document = json.loads(base.content(dict(files)[b"000000.json"].file))  # type: ignore[union-attr]
    document["label"] = 4
    edited = replaced(files, b"000000.json", json.dumps(document).encode())
    record, other = seal(edited, base).records()
    assert isinstance(other, Verbatim)
    assert isinstance(record, Value)
    assert list(record.sample) == ["label", "half", "objects", "image"]
    assert record.sample["label"] == 4
    assert record.sample["objects"] == Cell(msgpack.packb(pickled))
    assert record.sample["half"] == Cell(msgpack.packb(sample["half"], default=packed_numpy))


@pytest.mark.parametrize(
    ("old", "text", "expected"),
    [
        (np.int64(1), "2", np.int64(2)),
        (np.int8(1), "300", 300),
        (np.uint8(1), "2.0", np.uint8(2)),
        (np.float32(1), "0.5", np.float32(0.5)),
        (np.float32(1), "3", np.float32(3)),
        (np.float16(1), "1e9", 1e9),
        (np.bool_(True), "false", np.bool_(False)),
        (1.5, "2", 2.0),
        (3, "4.0", 4),
        (3, "4.5", 4.5),
        (3, '"x"', "x"),
        ([1.0, 2.0], "[3]", [3.0]),
        ({"a": 1.0, "b": 2}, '{"c": 1, "b": 3, "a": 2}', {"a": 2.0, "b": 3, "c": 1}),
        (3, '{"$decimal": "1.50"}', decimal.Decimal("1.50")),
        (3, '{"$datetime": "2024-01-02"}', datetime.date(2024, 1, 2)),
    ],
)
def test_a_changed_value_takes_the_stored_type_where_it_fits(old: Any, text: str, expected: Any) -> None:
    _, base, files = stored([{"x": old}])
    (record,) = seal(replaced(files, b"000000.json", f'{{"x": {text}}}'.encode()), base).records()
    assert isinstance(record, Value)
    assert record.sample["x"] == expected
    assert type(record.sample["x"]) is type(expected)
    if isinstance(expected, dict):
        assert json.dumps(record.sample["x"]) == json.dumps(expected)


def test_a_changed_array_has_the_type_its_file_says() -> None:
    _, base, files = stored([{"x": np.zeros(3, "f4")}])
    (record,) = seal(replaced(files, b"000000.x.npy", npy(np.ones(2, "i8"))), base).records()
    assert isinstance(record, Value)
    assert record.sample["x"].dtype == np.int64


def test_an_array_edited_as_a_picture_is_still_an_array() -> None:
    _, base, files = stored([{"x": np.zeros((2, 3, 3), "u1")}])
    (record,) = seal(replaced(files, b"000000.x.png", picture()), base).records()
    assert isinstance(record, Value)
    assert record.sample["x"].tobytes() == bytes(range(100, 118))
    (record,) = seal(replaced(files, b"000000.x.png", b"no picture"), base).records()
    assert isinstance(record, Value)
    assert record.sample["x"] == b"no picture"


def test_stored_bytes_stay_bytes_whatever_the_picture_says_of_itself() -> None:
    _, base, files = stored([{"x": picture()}])
    marked = images.png(4, 2, "RGB", bytes(24), "ndarray")
    (record,) = seal(replaced(files, b"000000.x.png", marked), base).records()
    assert isinstance(record, Value)
    assert record.sample["x"] == marked


def test_removing_a_sample_renumbers_and_says_so() -> None:
    _, base, files = stored([{"a": 1}, {"a": 2, "b": b"x"}, {"a": 3}])
    made = seal(files[1:], base)
    records = [bytes(record.data) for record in made.records() if isinstance(record, Verbatim)]
    assert [msgpack.unpackb(record)["a"] for record in records] == [2, 3]
    raw = b"".join(records)
    assert made.renamed(table_building.build(SquirrelShard(raw, 9, "msgpack"), "png")) == [
        (b"000001.b.bin", b"000000.b.bin"),
        (b"000001.json", b"000000.json"),
        (b"000002.json", b"000001.json"),
    ]


def test_renaming_a_sample_gives_it_a_name() -> None:
    _, base, files = stored([{"a": 1, "b": b"x"}, {"a": 2}])
    renamed = [(name.replace(b"000000", b"cat"), source) for name, source in files]
    first, second = seal(renamed, base).records()
    assert isinstance(first, Verbatim)  # of the second: numbers first
    assert isinstance(second, Value)
    assert second.sample["__key__"] == "cat"
    assert second.sample["a"] == Cell(b"\x01")


def test_renaming_a_sample_that_has_a_name_changes_it() -> None:
    _, base, files = stored([{"__key__": "dog", "a": 1}, {"__key__": "cat", "a": 2}])
    assert [type(record) for record in seal(files, base).records()] == [Verbatim, Verbatim]  # in their stored order
    renamed = [(name.replace(b"dog", b"000007"), source) for name, source in files]
    first, second = seal(renamed, base).records()
    assert isinstance(first, Verbatim)
    assert isinstance(second, Value)
    assert second.sample == {"__key__": "000007", "a": Cell(b"\x01")}


def test_a_file_moved_between_samples_changes_both() -> None:
    _, base, files = stored([{"x": b"1", "n": 1}, {"x": b"2", "n": 2}])
    moved = [
        (b"000001.x.bin" if name == b"000000.x.bin" else name, source)
        for name, source in files
        if name != b"000001.x.bin"
    ]
    first, second = seal(moved, base).records()
    assert isinstance(first, Value)
    assert isinstance(second, Value)
    assert first.sample == {"n": Cell(b"\x01")}
    assert second.sample == {"x": b"1", "n": Cell(b"\x02")}


def without(files: Files, name: str) -> Files:
    return [(own, source) for own, source in files if own != name.encode()]


def test_a_folder_copied_again_over_what_a_seal_made_of_it(tmp_path: Path) -> None:
    """Some names are others by then: `dog.jpeg` is shown as `dog.jpeg.jpg`, and `cat.cls` is a field of the json."""
    driver = SquirrelDriver(LocalStorage(tmp_path))
    folder = {"cat.jpg": b"\xff\xd8\xff1", "cat.cls": b"1", "dog.jpeg": b"\xff\xd8\xff2", "dog.cls": b"2"}
    driver.write_records(Key("k"), seal(new(**folder)).records(), base=None)
    shown = laid_out(driver.load(driver.entry(Key("k")), quiet))[2]
    assert [name for name, _ in shown] == [b"cat.jpg", b"cat.json", b"dog.jpeg.jpg", b"dog.json"]
    before = contents(driver, "k")
    sealed(driver, "k", lambda files: [*without(files, "cat.jpg"), *new(**folder)])
    assert contents(driver, "k") == before
    sealed(driver, "k", lambda files: [*new(**{**folder, "cat.cls": b"7"}), *without(files, "cat.jpg")])
    assert [sample["cls"] for sample in contents(driver, "k")] == [7, 2]


def test_samples_are_read_one_at_a_time() -> None:
    opened: list[str] = []

    def source(name: str) -> Changed:
        return Changed(lambda: (opened.append(name), b"x")[1], 1)

    records = seal([(f"{at:06d}.a.bin".encode(), source(str(at))) for at in range(5)]).records()
    assert opened == []
    next(records)
    next(records)
    assert opened == ["0", "1"]


# --- writing ------------------------------------------------------------------------------------------------------


def quiet(_: int) -> None:
    """Nobody asks how much is held."""


def contents(driver: SquirrelDriver, key: str) -> list[Any]:
    shard = driver.load(driver.entry(Key(key)), quiet)
    return [shard.sample(record.tree) for record in shard.records()]


def sealed(driver: SquirrelDriver, key: str, edit: Callable[[Files], Files]) -> Entry:
    entry = driver.entry(Key(key))
    _, base, files = laid_out(driver.load(entry, quiet))
    return driver.write_records(Key(key), seal(edit(files), base).records(), base=entry)


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("form", ["auto", "msgpack", "jsonl"])
def test_a_new_key_is_written_once_and_then_edited(tmp_path: Path, form: str, compression: str) -> None:
    driver = SquirrelDriver(LocalStorage(tmp_path), format=form, compression=compression)
    entry = driver.write_records(Key("a/b"), seal(new(**{"000000.json": b'{"n": 1}'})).records(), base=None)
    assert driver.entries() == [entry]
    with pytest.raises(KeyExistsError) as caught:
        driver.write_records(Key("a/b"), [Value({"n": 2}, "x")], base=None)
    assert caught.value.errno == errno.EEXIST
    assert contents(driver, "a/b") == [{"n": 1}]
    later = sealed(driver, "a/b", lambda files: [*files, (b"000001.json", changed(b'{"n": 5}'))])
    assert later == driver.entry(Key("a/b")) != entry
    assert contents(driver, "a/b") == [{"n": 1}, {"n": 5}]
    assert [path.name for path in (tmp_path / "a").iterdir()] == [f"b.{compression}"]


def test_a_changed_shard_keeps_its_format_and_compression(tmp_path: Path) -> None:
    shutil.copytree(DATA / "jsonl_basic" / "store", tmp_path, dirs_exist_ok=True)
    driver = SquirrelDriver(LocalStorage(tmp_path), compression="zst")
    before = contents(driver, "part_0")
    raw = bytes(driver.load(driver.entry(Key("part_0")), quiet).raw)
    sealed(driver, "part_0", lambda files: [*files, (b"999999.json", changed(b'{"new": true}'))])
    assert driver.format_of(driver.entry(Key("part_0"))) == "jsonl"
    shard = driver.load(driver.entry(Key("part_0")), quiet)
    assert bytes(shard.raw) == raw + b'{"new": true}\n'
    assert len(contents(driver, "part_0")) == len(before) + 1
    assert (tmp_path / "part_0.gz").exists()


def test_regression_a_last_line_without_a_newline_gets_one_when_samples_follow(tmp_path: Path) -> None:
    """The newline was a record of its own, which is no JSON: BadSettingError for a sound shard."""
    driver = SquirrelDriver(LocalStorage(tmp_path))
    (tmp_path / "k.gz").write_bytes(gzip.compress(b'{"n": 1}\n{"n": 2}'))
    sealed(driver, "k", lambda files: files)
    assert gzip.decompress((tmp_path / "k.gz").read_bytes()) == b'{"n": 1}\n{"n": 2}'
    sealed(driver, "k", lambda files: [*files, (b"000002.json", changed(b'{"n": 3}'))])
    assert gzip.decompress((tmp_path / "k.gz").read_bytes()) == b'{"n": 1}\n{"n": 2}\n{"n": 3}\n'


@pytest.mark.parametrize("form", ["msgpack", "jsonl"])
def test_a_shard_of_frames_is_changed_without_being_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(config, "LARGE_LOAD", 1_000)
    driver = SquirrelDriver(LocalStorage(tmp_path), compression="zst", format=form)
    key = Key("k")
    samples = [{"id": at, "text": f"{at}" * 500, "other": [at] * 600} for at in range(1_000)]
    driver.write(key, samples)
    entry = driver.entry(key)
    shard = driver.load(entry, quiet)
    opened = driver.open(entry, shard.size)
    assert opened is not None
    _, base, files = laid_out(shard)
    name, source = files[7]
    assert isinstance(source, Stored)
    content = base.content(source.file).replace(b'"id": 7', b'"id": -7')
    files[7] = (name, changed(content))
    framed = Base(opened, base.table, base.arrays)
    records = list(seal(files, framed).records())
    assert [type(record) for record in records[6:9]] == [Verbatim, Value, Verbatim]
    assert isinstance(records[7], Value)
    stored_cells = opened.cells(base.record(7))
    if form == "jsonl":
        assert stored_cells is None
    else:
        assert stored_cells is not None
        assert records[7].sample["other"] == Cell(bytes(stored_cells["other"]))
    later = driver.write_records(key, records, base=entry)
    expected = [*samples[:7], {**samples[7], "id": -7}, *samples[8:]]
    again = driver.load(later, quiet)
    for record, sample in zip(again.records(), expected, strict=True):
        got = again.sample(record.tree)
        assert {**got, "other": list(got["other"])} == sample
    assert driver.open(later, again.size) is not None  # it has frames again


def test_a_shard_that_was_replaced_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    driver = SquirrelDriver(LocalStorage(tmp_path))
    driver.write(Key("k"), [{"n": 1}])
    entry = driver.entry(Key("k"))

    def records() -> Any:
        yield Value({"n": 2}, "000000")
        driver.write(Key("k"), [{"n": 3}])  # after the first look: only one just before the rename sees it

    with pytest.raises(StaleShardError) as caught:
        driver.write_records(Key("k"), records(), base=entry)
    assert caught.value.errno == errno.ESTALE
    assert contents(driver, "k") == [{"n": 3}]
    driver.remove(Key("k"))
    with pytest.raises(StaleShardError):
        driver.write_records(Key("k"), [Value({"n": 2}, "000000")], base=entry)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    driver = SquirrelDriver(LocalStorage(tmp_path))
    for compression in ("gz", "zst"):
        other = SquirrelDriver(LocalStorage(tmp_path), compression=compression)

        def records(other: SquirrelDriver = other, key: str = compression) -> Any:
            yield Value({"n": 2}, "000000")
            other.write(Key(key), [{"n": 3}])

        with pytest.raises(KeyExistsError):
            driver.write_records(Key(compression), records(), base=None)
        assert contents(driver, compression) == [{"n": 3}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gz.gz", "zst.zst"]


def test_put_without_replacing_never_replaces(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(StorageError) as caught:
        storage.put("a", lambda file: file.write(b"new") and None, replace=False)
    assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
    listed = storage.put("b", lambda file: file.write(b"new") and None, replace=False)
    assert listed == storage.stat("b")


def test_two_writers_of_one_new_key_and_only_one_has_it(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom shardfs.drivers.squirrel import SquirrelDriver\nfrom shardfs.drivers.base import Value\n"
        "from shardfs.storage.local import LocalStorage\nfrom shardfs.errors import KeyExistsError\n"
        "driver = SquirrelDriver(LocalStorage(sys.argv[1]))\nwon = 0\nsys.stdin.read(1)\n"
        "for at in range(40):\n    try:\n"
        "        driver.write_records(f'k{at}', [Value({'n': int(sys.argv[2])}, 'x')], base=None)\n        won += 1\n"
        "    except KeyExistsError:\n        pass\nprint(won)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [
        subprocess.Popen([*command, str(at)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for at in range(2)
    ]
    wins = [int(process.communicate("x", timeout=60)[0]) for process in running]
    assert sum(wins) == 40
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(TEMPORARY)]


@pytest.mark.parametrize(
    ("form", "sample"),
    [
        ("msgpack", {"a": {1, 2}}),
        ("jsonl", {"a": b"x"}),
        ("jsonl", {1: "x"}),
        ("jsonl", {"a": msgpack.ExtType(3, b"")}),
    ],
)
def test_what_the_format_cannot_hold_names_the_sample(tmp_path: Path, form: str, sample: Any) -> None:
    driver = SquirrelDriver(LocalStorage(tmp_path), format=form)
    with pytest.raises(BadSettingError, match="sample n01"):
        driver.write_records(Key("k"), [Value(sample, "n01")], base=None)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_in_a_file_is_stored_as_bytes(tmp_path: Path) -> None:
    driver = SquirrelDriver(LocalStorage(tmp_path))
    driver.write_records(Key("k"), seal(new(**{"000000.a.pkl": b"cos\nsystem\n."})).records(), base=None)
    assert contents(driver, "k") == [{"a": b"cos\nsystem\n."}]


def test_a_directory_that_stays_locked_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LOCK_WAIT", 0.01)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(StorageError) as caught:
            SquirrelDriver(LocalStorage(tmp_path)).write_records(Key("k"), [Value({}, "x")], base=None)
    finally:
        os.close(descriptor)
    assert caught.value.errno == errno.EBUSY
    assert list(tmp_path.iterdir()) == []


def test_a_marked_png_that_is_none_of_ours_any_more_is_bytes() -> None:
    """Editing the sample's other fields would otherwise be refused because of it."""
    odd = images.png(4, 2, "RGB", bytes(24), "ndarray")[:-12]
    assert read({"000000.a.png": odd}) == [{"a": odd}]
