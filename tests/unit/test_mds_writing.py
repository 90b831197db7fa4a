"""MDS shards written: cells against what the library wrote, and data sets that grow and change."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from shardfs import config, table_building, values
from shardfs.drivers import mds, mds_writing, streaming_settings, streaming_writing
from shardfs.drivers.base import Cell, NewRecord, Value, Verbatim
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    KeyExistsError,
    RenumberingError,
    ShardfsError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key
from shardfs.sealing import Base, Source, Stored, seal
from shardfs.storage.local import LocalStorage
from tests.unit.test_sealing import changed, replaced

DATA = Path(__file__).parent.parent / "data" / "streaming"
CASES = sorted(path.name for path in DATA.iterdir() if path.name.startswith("mds_"))

Files = list[tuple[bytes, Source]]


def quiet(_: int) -> None:
    """Nobody asks how much is held."""


def opened(root: Path, **options: Any) -> StreamingDriver:
    return StreamingDriver(LocalStorage(root), **options)


def copy_of(case: str, tmp_path: Path) -> StreamingDriver:
    shutil.copytree(DATA / case / "data", tmp_path, dirs_exist_ok=True)
    return opened(tmp_path)


def laid_out(driver: StreamingDriver, entry: Entry, arrays: str = "png") -> tuple[mds.MdsShard, Base, Files]:
    shard = driver.load(entry, quiet)
    base = Base(shard, table_building.build(shard, arrays), arrays)
    table = base.table
    return shard, base, [(table.name(at), Stored(table.sample_of(at), at)) for at in range(table.files)]


def written_again(base: Base, files: Files) -> Files:
    made: Files = []
    for name, source in files:
        assert isinstance(source, Stored)
        made.append((name, changed(base.content(source.file))))
    return made


def contents(driver: StreamingDriver) -> list[Any]:
    samples = []
    for entry in driver.entries():
        shard = driver.load(entry, quiet)
        samples += [shard.sample(record.tree) for record in shard.records()]
    return samples


def some(*numbers: int) -> list[NewRecord]:
    return [Value({"n": number, "text": str(number)}, f"{number:06d}") for number in numbers]


def ns(driver: StreamingDriver) -> list[int]:
    return [sample["n"] for sample in contents(driver)]


# --- cells --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arrays", ["png", "npy", "png+text"])
def test_what_was_laid_out_is_encoded_into_the_same_bytes(case: str, arrays: str) -> None:
    """The library's own records, out of nothing but their files."""
    driver = opened(DATA / case)
    for entry in driver.entries():
        shard, base, files = laid_out(driver, entry, arrays)
        records = list(seal(written_again(base, files)).records())
        for record, old in zip(records, shard.records(), strict=True):
            assert isinstance(record, Value)
            made = mds_writing.record(shard.columns, record.sample, record.name)
            assert made == bytes(shard.raw[old.start : old.end])


@pytest.mark.parametrize("case", CASES)
def test_what_nobody_changed_is_verbatim_and_one_edit_touches_one_column(case: str) -> None:
    driver = opened(DATA / case)
    for entry in driver.entries():
        shard, base, files = laid_out(driver, entry)
        records = list(seal(files, base).records())
        for record, old in zip(records, shard.records(), strict=True):
            assert isinstance(record, Verbatim)
            assert bytes(record.data) == bytes(shard.raw[old.start : old.end])
        if not base.table.samples:
            continue
        name, source = next(file for file in files if not file[0].endswith(b".npy"))
        assert isinstance(source, Stored)
        edited = base.content(source.file) + (b"" if name.endswith(b".json") else b"more")
        if name.endswith(b".json"):
            document = json.loads(edited)
            field = next(iter(document))
            edited = json.dumps({**document, field: "other"}).encode()
        try:
            first, *others = seal(replaced(files, name, edited), base).records()
        except ShardfsError:
            assert name.endswith((b".png",))
            continue
        assert all(isinstance(record, Verbatim) for record in others)
        assert isinstance(first, Value)
        assert [type(value) is Cell for value in first.sample.values()].count(False) == 1


def encoded(encoding: str, value: Any) -> Any:
    """A value through one column and back."""
    made = mds.columns(("x",), (encoding,), (mds_writing._size(encoding),))
    data = mds_writing.record(made, {"x": value}, "000007")
    tree = made.split(memoryview(data), 0, len(data))["x"]
    assert getattr(tree, "note", None) is None, tree
    return values.to_python(tree, memoryview(data))


@pytest.mark.parametrize(
    ("encoding", "value"),
    [
        *(("bytes", b"\0"), ("str", "ü"), ("int", -5), ("int", 2**63 - 1), ("uint8", np.uint8(255))),
        *(("float16", np.float16(1.5)), ("float32", np.float32("inf")), ("str_int", 10**30), ("str_float", 0.1)),
        *(("str_decimal", Decimal("1.50")), ("json", {"a": [1, None, "é"]}), ("json", None)),
    ],
)
def test_values_come_back_out_of_their_cells(encoding: str, value: Any) -> None:
    back = encoded(encoding, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("shape", [(1,), (255,), (256, 1), (2, 3, 4), (1,) * 20])
@pytest.mark.parametrize("dtype", ["u1", ">i4", "f8"])
def test_arrays_come_back_whatever_their_byte_order(shape: tuple[int, ...], dtype: str) -> None:
    array = np.asfortranarray(np.arange(math.prod(shape)).reshape(shape).astype(dtype))
    for encoding in (
        "ndarray",
        f"ndarray:{array.dtype.name}",
        f"ndarray:{array.dtype.name}:{','.join(map(str, shape))}",
    ):
        assert np.array_equal(encoded(encoding, array), array)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "I;16", "F", "CMYK"])
def test_pictures_come_back_from_pillow_and_from_files(mode: str) -> None:
    image = PIL.Image.linear_gradient("L").resize((9, 5)).convert(mode if mode != "I;16" else "L")
    if mode == "I;16":
        image = PIL.Image.frombytes("I;16", (9, 5), bytes(range(90)))
    for given in (image, mds_writing._pil(image)):
        assert encoded("pil", given).tobytes() == image.tobytes()
    if mode in ("L", "RGB", "RGBA"):
        sink = io.BytesIO()
        image.save(sink, "PNG")
        back = encoded("pil", sink.getvalue())
        assert (back.mode, back.size, back.tobytes()) == (mode, image.size, image.tobytes())


def test_a_picture_with_a_palette_keeps_its_colours() -> None:
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    sink = io.BytesIO()
    image.save(sink, "PNG")
    assert encoded("pil", sink.getvalue()).tobytes() == bytes((10, 20, 30, 40, 50, 60))


@pytest.mark.parametrize(
    ("encoding", "value", "why"),
    [
        *(
            ("str", 5, "int '5'"),
            ("str", b"x", "bytes"),
            ("int", "5", "str"),
            ("int", 2**63, ""),
            ("int", 1.5, "float"),
        ),
        *(("uint8", 256, "out of range"), ("int16", 40000, "out of range"), ("float16", 1e9, "out of range")),
        *(("float32", "x", "str"), ("str_decimal", 1.5, "float"), ("json", {1: 2}, "int"), ("json", b"x", "bytes")),
        *(
            ("json", (1,), "tuple"),
            ("pkl", b"x", "bytes"),
            ("jpeg", b"text", "no picture"),
            ("pil", b"text", "picture"),
        ),
        *(
            ("ndarray", np.zeros((0, 3)), "shape"),
            ("ndarray", np.array(1.0), "shape"),
            ("ndarray", np.array([True]), "bool"),
        ),
        *(("ndarray:float32", np.zeros(2), "float64"), ("ndarray:float32:3", np.zeros(2, "f4"), "shape")),
        *(("jpeg_array", [], "empty list"), ("list[jpeg]", [b"x"], "no picture"), ("list[png]", b"x", "bytes")),
        ("made_up", 1, "not known"),
    ],
)
def test_what_does_not_fit_names_sample_column_and_reason(encoding: str, value: Any, why: str) -> None:
    with pytest.raises(BadSettingError, match=r"sample 000007: column x is") as caught:
        encoded(encoding, value)
    assert why in str(caught.value)


@pytest.mark.parametrize("sample", [{}, {"x": 1, "y": 2}, {"y": 2}, 5])
def test_fields_must_be_the_columns(sample: Any) -> None:
    with pytest.raises(BadSettingError, match="sample 000007"):
        mds_writing.record(mds.columns(("x",), ("int",), (8,)), sample, "000007")


def test_columns_of_a_new_data_set() -> None:
    sample = {
        "z": 1, "b": b"x", "j": b"\xff\xd8\xff", "t": "x", "f": 0.5, "u": np.uint16(3), "a": np.zeros(2),
        "n": None, "d": [1], "big": 2**70, "dec": Decimal(1), "p": values.Pickle(0, 1, b"."),
        "i": PIL.Image.new("L", (1, 1)),
    }  # fmt: skip
    made = mds_writing.infer(sample, "0")
    assert dict(zip(made.names, zip(made.encodings, made.sizes, strict=True), strict=True)) == {
        "a": ("ndarray", None), "b": ("bytes", None), "big": ("str_int", None), "d": ("json", None),
        "dec": ("str_decimal", None), "f": ("float64", 8), "i": ("pil", None), "j": ("jpeg", None),
        "n": ("json", None), "p": ("pkl", None), "t": ("str", None), "u": ("uint16", 2), "z": ("int", 8),
    }  # fmt: skip
    assert made.names == tuple(sorted(sample))
    for bad in ({}, {1: 2}, {"x": 1j}, {"x": np.array(["a"])}, 5):
        with pytest.raises(BadSettingError, match="sample 0"):
            mds_writing.infer(bad, "0")


# --- data sets ----------------------------------------------------------------------------------------------------


def test_a_data_set_from_nothing(tmp_path: Path) -> None:
    driver = opened(tmp_path / "set")
    first = driver.write_records(Key("train/shard.00000"), some(0, 1), base=None)
    second = driver.write_records(Key("train/shard.00001"), some(2), base=None)
    assert driver.entries() == [first, second]
    assert ns(driver) == [0, 1, 2]
    assert [driver.load(entry, quiet).first_sample for entry in driver.entries()] == [0, 2]
    names = sorted(path.name for path in (tmp_path / "set" / "train").iterdir())
    assert names == ["index.json", "shard.00000.mds", "shard.00001.mds"]
    with pytest.raises(KeyExistsError):
        driver.write_records(Key("train/shard.00001"), some(9), base=None)
    driver.write_records(Key("val/a"), some(5), base=None)
    assert [entry.key for entry in driver.entries()] == ["train/shard.00000", "train/shard.00001", "val/a"]


@pytest.mark.parametrize("case", [case for case in CASES if "hash" in case])
def test_a_new_key_follows_the_last_shard(case: str, tmp_path: Path) -> None:
    driver = copy_of(case, tmp_path)
    before = driver.entries()
    last = [entry for entry in before if entry.key.startswith("train/")][-1]
    _, base, files = laid_out(driver, last)
    before_files = {path: path.read_bytes() for path in tmp_path.rglob("*.mds*")}
    key = Key("train/shard.00777")
    entry = driver.write_records(key, seal(written_again(base, files)).records(), base=None)
    assert entry.samples == last.samples
    described = json.loads((tmp_path / "train" / "index.json").read_bytes())["shards"]
    assert {name: described[-1][name] for name in described[-1] if not name.endswith("data")} == {
        name: described[-2][name] for name in described[-2] if not name.endswith("data")
    }
    for part in ("raw_data", "zip_data"):
        info = described[-1][part]
        assert (info is None) == (described[-2][part] is None)
        path = info and tmp_path / "train" / info["basename"]
        if path and path.exists():
            data = path.read_bytes()
            assert len(data) == info["bytes"]
            assert set(info["hashes"]) == set(described[-1]["hashes"])
            for name, digest in info["hashes"].items():
                if not name.startswith("xxh"):
                    assert hashlib.new(name, data).hexdigest() == digest
    checked = opened(tmp_path, validate_hash=next(iter(described[-1]["hashes"]), "off"))
    again, old = checked.load(checked.entry(key), quiet), checked.load(checked.entry(last.key), quiet)
    for new, kept in zip(again.records(), old.records(), strict=True):
        assert bytes(again.raw[new.start : new.end]) == bytes(old.raw[kept.start : kept.end])
    for path, data in before_files.items():
        assert path.read_bytes() == data


def test_a_changed_shard_gets_a_new_file_and_the_old_one_stays(tmp_path: Path) -> None:
    driver = opened(tmp_path)
    for at in range(3):
        driver.write_records(Key(f"shard.{at:05d}"), some(2 * at, 2 * at + 1), base=None)
    old = (tmp_path / "shard.00001.mds").read_bytes()
    for number in (77, 78):
        entry = driver.entry(Key("shard.00001"))
        _, base, files = laid_out(driver, entry)
        edited = replaced(files, b"000003.json", b'{"n": %d, "text": "3"}' % number)
        now = driver.write_records(Key("shard.00001"), seal(edited, base).records(), base=entry)
        assert now != entry
        assert ns(driver) == [0, 1, 2, number, 4, 5]
    assert (tmp_path / "shard.00001.mds").read_bytes() == old
    assert sorted(path.name for path in tmp_path.glob("shard.00001*")) == [
        *("shard.00001.mds", "shard.00001.r2.mds", "shard.00001.r3.mds"),
    ]
    assert [entry.key for entry in driver.entries()] == ["shard.00000", "shard.00001", "shard.00002"]


def test_samples_come_and_go_in_the_last_shard_only(tmp_path: Path) -> None:
    driver = opened(tmp_path)
    for at in range(2):
        driver.write_records(Key(f"shard.{at:05d}"), some(2 * at, 2 * at + 1), base=None)
    files = sorted(path.name for path in tmp_path.iterdir())
    for wanted in (some(0), some(0, 1, 2)):
        with pytest.raises(RenumberingError, match="other numbers") as caught:
            driver.write_records(Key("shard.00000"), wanted, base=driver.entry(Key("shard.00000")))
        assert caught.value.errno == errno.EPERM
    assert sorted(path.name for path in tmp_path.iterdir()) == files, "what was refused leaves nothing behind"
    for wanted in (some(7, 8, 9), some(7)):
        driver.write_records(Key("shard.00001"), wanted, base=driver.entry(Key("shard.00001")))
        assert len(ns(driver)) == 2 + len(wanted)
    with pytest.raises(BadSettingError, match="no samples"):
        driver.write_records(Key("shard.00001"), [], base=driver.entry(Key("shard.00001")))


def test_a_large_key_is_several_shards(tmp_path: Path) -> None:
    driver = opened(tmp_path, size_limit="1kb")
    records = [Value({"n": at, "text": "x" * 100}, "x") for at in range(20)]
    entry = driver.write_records(Key("shard.00007"), records, base=None)
    entries = driver.entries()
    assert entries[0] == entry
    assert [item.key for item in entries] == [f"shard.{7 + at:05d}" for at in range(len(entries))]
    assert len(entries) > 2
    assert all(item.stored_bytes <= 1024 for item in entries)
    assert ns(driver) == list(range(20))
    driver.write_records(Key("cats"), records, base=None)
    assert [item.key for item in driver.entries()][len(entries) :][:3] == ["cats", "cats.00001", "cats.00002"]


@pytest.mark.parametrize(
    ("text", "expected"), [("64mb", 64 << 20), ("1.5kb", 1536), (100, 100), ("10", 10), (None, None)]
)
def test_sizes_are_those_of_the_library(text: Any, expected: int | None) -> None:
    assert streaming_settings.shard_limit(text) == expected


@pytest.mark.parametrize("text", ["x", "1tb", "4gb", -1, "1kib"])
def test_impossible_sizes_are_refused(text: Any) -> None:
    with pytest.raises(BadSettingError):
        streaming_settings.shard_limit(text)


def test_a_shard_that_is_too_large_is_efbig_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MDS_SHARD", 1000)
    with pytest.raises(StorageError) as caught:
        opened(tmp_path).write_records(Key("k"), some(*range(100)), base=None)
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_sample_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    driver = opened(tmp_path, size_limit=600)
    driver.write_records(Key("a"), some(1), base=None)  # the columns of all that follow
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(BadSettingError, match="sample bad: column n is int"):
        driver.write_records(Key("k"), [*some(*range(50)), Value({"n": "x", "text": ""}, "bad")], base=None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("key", ["../x", "a//b", "x.mds", "x.r2", ".", "", "a\0", "x" * 240, ".shardfs-tmp-x"])
def test_names_that_are_no_keys(key: str, tmp_path: Path) -> None:
    with pytest.raises(BadSettingError):
        opened(tmp_path).write_records(Key(key), some(1), base=None)


def test_a_shard_that_was_replaced_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    driver, other = opened(tmp_path), opened(tmp_path)
    driver.write_records(Key("k"), some(1), base=None)
    entry = driver.entry(Key("k"))

    def records() -> Iterator[NewRecord]:
        yield from some(2)
        other.write_records(Key("k"), some(3), base=other.entry(Key("k")))

    with pytest.raises(StaleShardError) as caught:
        driver.write_records(Key("k"), records(), base=entry)
    assert caught.value.errno == errno.ESTALE
    assert ns(driver) == [3]
    with pytest.raises(StaleShardError):
        driver.write_records(Key("k"), some(4), base=entry)


def test_keys_that_others_add_meanwhile_are_kept(tmp_path: Path) -> None:
    driver, other = opened(tmp_path), opened(tmp_path)
    driver.write_records(Key("a"), some(1), base=None)

    def records(key: str) -> Iterator[NewRecord]:
        yield from some(2)
        other.write_records(Key(key), some(3), base=None)

    driver.write_records(Key("c"), records("b"), base=None)
    assert [entry.key for entry in driver.entries()] == ["a", "b", "c"]
    with pytest.raises(KeyExistsError):
        driver.write_records(Key("d"), records("d"), base=None)
    assert ns(driver) == [1, 3, 2, 3]


def test_two_processes_add_keys_and_none_is_lost(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom shardfs.drivers.streaming import StreamingDriver\nfrom shardfs.drivers.base import Value\n"
        "from shardfs.storage.local import LocalStorage\n"
        "driver = StreamingDriver(LocalStorage(sys.argv[1]))\nsys.stdin.read(1)\n"
        "for at in range(15):\n"
        "    driver.write_records(f'{sys.argv[2]}{at:02d}', [Value({'n': at}, 'x')], base=None)\n"
    )
    opened(tmp_path).write_records(Key("first"), [Value({"n": 0}, "x")], base=None)
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], stdin=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    for process in running:
        process.communicate("x", timeout=60)
    assert [process.returncode for process in running] == [0, 0]
    assert len(ns(opened(tmp_path))) == 31


def test_an_index_that_has_come_above_is_seen_before_one_of_two_is_changed(tmp_path: Path) -> None:
    driver = opened(tmp_path)
    driver.write_records(Key("sub/a"), some(1), base=None)
    inner = json.loads((tmp_path / "sub" / "index.json").read_bytes())
    for shard in inner["shards"]:
        shard["raw_data"]["basename"] = "sub/" + shard["raw_data"]["basename"]
    (tmp_path / "index.json").write_text(json.dumps(inner))
    with pytest.raises(StaleShardError):  # it has other numbers there
        driver.write_records(Key("sub/a"), some(1), base=driver.entry(Key("sub/a")))
    driver.write_records(Key("sub/a"), some(1), base=driver.entry(Key("sub/a")))
    for path, name in ((tmp_path, "sub/a.r2.mds"), (tmp_path / "sub", "a.r2.mds")):
        (shard,) = json.loads((path / "index.json").read_bytes())["shards"]
        assert shard["raw_data"]["basename"] == name


def test_an_index_that_is_doubtful_is_not_touched(tmp_path: Path) -> None:
    driver = opened(tmp_path)
    driver.write_records(Key("a"), some(1), base=None)
    (tmp_path / "index.json").write_text('{"shards": [{}], "version": 2}')
    with pytest.raises(BadStoreError, match="shard 0"):
        driver.write_records(Key("b"), some(2), base=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mds", "index.json"]


def test_shards_that_an_index_names_are_never_removed(tmp_path: Path) -> None:
    """Whatever failed behind the rename of the index: it is there, and names them."""
    publication = streaming_writing.Publication(LocalStorage(tmp_path), "")
    publication.write_shards(some(1), None, None, iter(["a"]))
    publication.publish(lambda shards: [*shards, *publication.made])
    publication.abandon()
    assert ns(opened(tmp_path)) == [1]


def test_an_index_that_never_holds_still_is_given_up(tmp_path: Path) -> None:
    opened(tmp_path).write_records(Key("a"), some(1), base=None)
    publication = streaming_writing.Publication(LocalStorage(tmp_path), "")
    publication.write_shards(some(2), None, None, iter(["b"]))
    path = tmp_path / "index.json"

    def edit(shards: list[Any]) -> list[Any]:
        path.write_text(path.read_text() + " ")
        return [*shards, *publication.made]

    with pytest.raises(StaleShardError, match="keeps changing"):
        publication.publish(edit)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.mds", "index.json"]


def test_a_shard_that_the_library_decompressed_meanwhile_is_still_the_same(tmp_path: Path) -> None:
    shutil.copytree(DATA / "mds_zstd_hash_splits" / "data", tmp_path, dirs_exist_ok=True)
    driver = opened(tmp_path)
    entry = driver.entries()[0]
    shard, base, files = laid_out(driver, entry)
    (tmp_path / f"{entry.key}.mds").write_bytes(shard.raw)
    assert driver.entry(entry.key).version != entry.version
    driver.write_records(entry.key, seal(files, base).records(), base=entry)
    assert bytes(driver.load(driver.entry(entry.key), quiet).raw) == bytes(shard.raw)


def test_what_failed_is_told_and_not_that_its_shard_could_not_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(self: LocalStorage, name: str) -> None:
        raise StorageError(f"{name}: the disk is read-only by now", errno.EROFS)

    def edit(shards: list[Any]) -> list[Any]:
        raise KeyExistsError("somebody was faster")

    monkeypatch.setattr(LocalStorage, "remove", remove)
    made = streaming_writing.Publication(LocalStorage(tmp_path), "")
    made.write_shards([Value({"n": 1}, "0")], None, None, iter(["a"]))
    with pytest.raises(KeyExistsError):
        made.publish(edit)
