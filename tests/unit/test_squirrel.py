"""Squirrel stores: the fixtures the real library wrote, the two serializers, and what is written here."""

from __future__ import annotations

import errno
import gc
import gzip
import hashlib
import json
import math
import mmap
import os
import random
import weakref
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import trio
import zstandard

from shardfs import compression, config, table_building
from shardfs.drivers import squirrel, squirrel_shards
from shardfs.drivers.base import Verbatim
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.errors import (
    BadSettingError,
    DamagedShardError,
    MissingKeyError,
    OverfullShardError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Key
from shardfs.opening import open_store
from shardfs.shard_cache import ShardCache
from shardfs.storage.local import TEMPORARY, LocalStorage
from shardfs.values import Pickle

FIXTURES = Path(__file__).parents[1] / "data/squirrel"
CASES = [
    (case.name, key)
    for case in sorted(FIXTURES.iterdir())
    for key in json.loads((case / "manifest.json").read_text(encoding="utf-8"))["shards"]
]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check(expected: dict[str, Any], got: Any, where: str) -> None:
    """A value against the manifest's tagged form, its type exactly."""
    kind = expected["t"]
    types = {"none": type(None), "bool": bool, "int": int, "float": float, "str": str, "bytes": bytes, "list": list}
    types |= {"tuple": tuple, "dict": dict, "complex": complex, "ext": msgpack.ExtType, "timestamp": msgpack.Timestamp}
    types |= {"ndarray": np.ndarray, "ndarray_object": Pickle}
    assert type(got) is (np.dtype(expected["dtype"]).type if kind == "npscalar" else types[kind]), where
    if kind == "dict":
        assert len(got) == len(expected["v"]), where
        for (wanted_key, wanted), (key, value) in zip(expected["v"], got.items(), strict=True):
            check(wanted_key, key, f"{where} key {key!r}")
            check(wanted, value, f"{where}[{key!r}]")
    elif kind in ("list", "tuple"):
        assert len(got) == len(expected["v"]), where
        for at, wanted in enumerate(expected["v"]):
            check(wanted, got[at], f"{where}[{at}]")
    elif kind == "ndarray":
        dtype = str(got.dtype.descr) if got.dtype.fields else got.dtype.str
        assert (dtype, list(got.shape)) == (expected["dtype"], expected["shape"]), where
        assert sha(got.tobytes("C")) == expected["sha256"], where
    elif kind == "ndarray_object":
        assert got.data[:2] == b"\x80\x02", where  # as stored, never run
    elif kind == "npscalar":
        assert (got.dtype.str, sha(got.tobytes())) == (expected["dtype"], expected["sha256"]), where
    elif kind == "bytes":
        assert (len(got), sha(got)) == (expected["len"], expected["sha256"]), where
    elif kind == "float":
        assert got.hex() == expected["v"] or (math.isnan(got) and expected["v"] == "nan") or str(got) == expected["v"]
    elif kind == "ext":
        assert (got.code, got.data.hex()) == (expected["code"], expected["hex"]), where
    elif kind == "timestamp":
        assert (got.seconds, got.nanoseconds) == (expected["s"], expected["ns"]), where
    else:
        wanted = {"none": lambda _: None, "int": int, "complex": complex}.get(kind, lambda value: value)
        assert got == wanted(expected.get("v")), where


def manifest(case: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((FIXTURES / case / "manifest.json").read_text(encoding="utf-8"))
    return made


@pytest.mark.parametrize("case", sorted({case for case, _ in CASES}))
def test_the_keys_of_a_fixture_are_those_the_library_lists(case: str) -> None:
    assert open_store(FIXTURES / case / "store").keys() == manifest(case)["keys_nested_true"]


@pytest.mark.parametrize(("case", "key"), CASES)
def test_a_shard_of_a_fixture_holds_what_its_manifest_says(case: str, key: str) -> None:
    shard = manifest(case)["shards"][key]
    store = open_store(FIXTURES / case / "store")
    if shard.get("expect") == "EIO":
        with pytest.raises(DamagedShardError) as caught:
            store.get(key)
        assert (caught.value.errno, caught.value.key) == (errno.EIO, key)
        return
    samples = store.get(key)
    assert len(samples) == shard["nsamples"]
    for at, expected in enumerate(shard["samples"]):
        check(expected, samples[at], f"{key}[{at}]")
    by_name = open_store(FIXTURES / case / "store", driver=f"squirrel-{manifest(case)['format']}")
    assert len(by_name.get(key)) == shard["nsamples"]


# --- keys -------------------------------------------------------------------------------------------------------


def put(root: Path, name: str, data: bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(data) if name.endswith(".zst") else gzip.compress(data))


def driver_of(root: Path, **options: Any) -> SquirrelDriver:
    return SquirrelDriver(LocalStorage(root), **options)


def test_keys_are_file_names_without_their_last_ending(tmp_path: Path) -> None:
    for name in ("a.gz", "foo.gz.gz", ".gz", ".hidden.gz", "sub/b.zst", "x.gz/c.gz", "two.gz", "two.zst"):
        put(tmp_path, name, b"\x01")
    (tmp_path / "readme.txt").write_bytes(b"")
    driver = driver_of(tmp_path)
    keys = [entry.key for entry in driver.entries()]
    assert keys == sorted(["a", "foo.gz", "", ".hidden", "sub/b", "x.gz/c", "two"])
    for entry in driver.entries():
        assert driver.entry(entry.key) == entry
        assert driver.load(entry, lambda _: None).sample(1) == 1


@pytest.mark.parametrize("key", ["none", "", "sub", "sub/", "../a", "/a", "a//b", "a/b", "a\0", "\ud800", "x" * 300])
def test_a_key_that_is_not_there_is_missing_whatever_it_looks_like(tmp_path: Path, key: str) -> None:
    put(tmp_path / "store", "a.gz", b"")
    put(tmp_path / "store", "sub/x.gz", b"")
    put(tmp_path, "a.gz", b"")
    driver = driver_of(tmp_path / "store")
    with pytest.raises(MissingKeyError):
        driver.entry(Key(key))
    with pytest.raises(MissingKeyError):
        driver.remove(Key(key))


def test_regression_a_storage_that_fails_is_not_a_missing_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stat(_: str) -> Any:
        raise StorageError("the disk is broken", errno.EIO)

    driver = driver_of(tmp_path)
    monkeypatch.setattr(driver.storage, "stat", stat)
    with pytest.raises(StorageError, match="broken"):
        driver.entry(Key("a"))


def test_what_was_replaced_or_removed_since_the_listing_is_stale(tmp_path: Path) -> None:
    put(tmp_path, "a.gz", b"\x01")
    put(tmp_path, "b.gz", b"\x01")
    driver = driver_of(tmp_path)
    replaced, removed = driver.entries()
    driver.write(Key("a"), [2])
    driver.remove(Key("b"))
    for entry in (replaced, removed):
        with pytest.raises(StaleShardError):
            driver.load(entry, lambda _: None)
        with pytest.raises(StaleShardError):  # regression: the estimate was another version's, or ENOENT
            driver.estimate(entry)


# --- msgpack or JSON lines --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "format"),
    [
        (b"", "msgpack"),
        (b'{"a": 1}\n', "jsonl"),
        (b'{"a": 1}', "jsonl"),
        (b"[1]\n[2]\n", "jsonl"),
        (b'"text"\n', "jsonl"),
        (b"-5\n", "jsonl"),
        (b"NaN\n", "jsonl"),
        (b"true\nfalse\nnull\n", "jsonl"),
        (b"Infinity", "jsonl"),
        (b'{"a": \n', "jsonl"),
        (b'{"cut off' + b"x" * 5000, "jsonl"),
        (b"\x81\xa1a\x01", "msgpack"),
        (b"\xde\x00\x01\xa1a\x01", "msgpack"),
        (b"\x00\x01\x02", "msgpack"),
        (b"0123", "msgpack"),
        (b"{", "msgpack"),
        (b"n", "msgpack"),
        (b'"', "msgpack"),
        (b"1" * 2_000_000, "msgpack"),
        (b'"' + b"x" * 2_000_000 + b'"', "jsonl"),
        (b"\xa1a", "msgpack"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_the_serializer_is_recognised_by_the_content(raw: bytes, format: str) -> None:
    assert squirrel_shards.sniff(raw) == format
    assert squirrel_shards.sniff(bytearray(raw)) == format


def shard_of(raw: bytes, format: str = "auto", stored: int | None = None) -> SquirrelShard:
    return SquirrelShard(raw, len(raw) if stored is None else stored, format)


def samples_of(raw: bytes, format: str = "auto", stored: int | None = None) -> list[Any]:
    shard = shard_of(raw, format, stored)
    return [shard.sample(shard.tree(record.start, record.end)) for record in shard.records()]


def test_json_lines_may_end_in_any_way_and_be_empty() -> None:
    assert samples_of(b'{"a": 1}\r\n\n  \n[2]\n"x"', "jsonl") == [{"a": 1}, [2], "x"]


def test_json_numbers_and_texts_come_as_json_has_them() -> None:
    got = samples_of(b'{"big": 1180591620717411303424, "inf": -Infinity, "e": 1e999, "lone": "\\ud800", "\xc3\xbc": 1}')
    assert got == [{"big": 2**70, "inf": -math.inf, "e": math.inf, "lone": "\ud800", "ü": 1}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b'[{"b": {"a": 1, "b": 1, "a": 2}}]', "twice"),
        (b"[" * 100_000, "nested|not JSON"),
        (b"[" * 65 + b"]" * 65, "nested"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested"),
        (b"1" * 5000, "not JSON"),
        (b"nul", "not JSON"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_line_that_is_no_sample_damns_the_shard(line: bytes, reason: str) -> None:
    raw = b'{"fine": 1}\n' + line + b"\n"
    with pytest.raises(DamagedShardError, match=reason) as caught:
        list(shard_of(raw, "jsonl").records())
    assert caught.value.offset == 12


def test_json_nests_as_deep_as_msgpack_does() -> None:
    deep = b"[" * config.NESTING + b"]" * config.NESTING
    assert repr(samples_of(deep + b"\n")).count("[") == config.NESTING + 1
    table_building.build(shard_of(deep + b"\n"), "png")
    assert samples_of(b'"' + b"[" * 1000 + b'"\n') == ["[" * 1000]
    assert samples_of(b"[" + b"[]," * 1000 + b"[]]\n") == [[[]] * 1001]


@pytest.mark.parametrize("array", [np.zeros((2, 0)), np.array(5.0), np.array(["é", "xy"]), np.arange(6, dtype=">i2")])
def test_an_object_with_data_type_and_shape_is_an_array(array: np.ndarray[Any, Any]) -> None:
    line = json.dumps({"a": {"data": array.tolist(), "type": array.dtype.str, "shape": list(array.shape)}}).encode()
    (sample,) = samples_of(line + b"\n")
    assert (sample["a"].dtype, sample["a"].shape) == (array.dtype, array.shape)
    assert np.array_equal(sample["a"], array)


@pytest.mark.parametrize(
    ("data", "type", "shape"),
    [
        ([1], "nonsense", [1]),
        ([1], "|O", [1]),
        ([1], 5, [1]),
        ([1], "<f4", 1),
        ([1], "<f4", [2]),
        ([1], "<f4", [-1]),
        ([1], "<f4", ["1"]),
        ([[1], [2, 3]], "<f4", [3]),
        (["x"], "<f4", [1]),
        ([None], "<i4", [1]),
        ({}, "<f4", []),
        ([1e400], "<i4", [1]),
        ([300], "|u1", [1]),
        ([""], "<U0", [1]),
        ([""], "<U1000000000", [1]),
        ([""] * 5000, "<U10000", [5000]),
    ],
    ids=repr,
)
def test_an_object_that_only_looks_like_an_array_stays_an_object(data: Any, type: str, shape: Any) -> None:
    sample = {"data": data, "type": type, "shape": shape}
    assert samples_of(json.dumps(sample).encode() + b"\n") == [sample]


def test_lists_are_tuples_in_msgpack_and_lists_in_json() -> None:
    assert samples_of(msgpack.packb({"a": [1, [2]]})) == [{"a": (1, (2,))}]
    assert samples_of(b'{"a": [1, [2]]}\n') == [{"a": [1, [2]]}]


@pytest.mark.parametrize(
    "line",
    [
        b"[" + b"0," * 4_500_000 + b"0]",
        b"[" + b"[]," * 1_100_000 + b"0]",
        b"[" + b"{}," * 1_100_000 + b"0]",
        b"[" + b'"",' * 1_500_000 + b"0]",
        b'"' + b"x" * 17_000_000 + b'"',
    ],
    ids=["numbers", "lists", "dicts", "texts", "text"],
)
def test_regression_a_line_that_would_fill_the_memory_is_refused_before_it_is_parsed(line: bytes) -> None:
    """One line of 190 MiB, 190 KB when compressed, took 2 GiB and more."""
    with pytest.raises(OverfullShardError):
        list(shard_of(line + b"\n", stored=1000).records())


@pytest.mark.parametrize(
    "raw",
    [b"0\n" * 1_000_000, b"\n" * 1_000_000, (b"[" + b"0," * 500_000 + b"0]\n") * 40],
    ids=["ints", "empty", "lists"],
)
def test_many_lines_together_end_at_a_limit_too(raw: bytes) -> None:
    with pytest.raises(OverfullShardError):
        list(shard_of(raw, "jsonl", stored=1000).records())


def test_a_shard_of_blank_pictures_in_json_is_no_attack() -> None:
    blank = json.dumps({"data": np.zeros((224, 224, 3), int).tolist(), "type": "|u1", "shape": [224, 224, 3]}).encode()
    raw = (blank + b"\n") * 8
    shard = shard_of(raw, stored=len(gzip.compress(raw, 9)))
    assert sum(1 for _ in shard.records()) == 8


def test_regression_a_shards_beginning_is_looked_at_when_it_seems_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fast gzip of a GiB of zeros compresses 1:230: below the bomb limit, and 76 million samples."""
    monkeypatch.setattr(config, "SUSPECT_SIZE", 3 * config.MIB)
    for name, raw in (("zeros", bytes(6 * config.MIB)), ("blank", msgpack.packb(bytes(6 * config.MIB)))):
        put(tmp_path, f"{name}.gz", raw)
    store = open_store(tmp_path)
    sizes: list[int] = []
    with pytest.raises(OverfullShardError):
        store.driver.load(store.entry("zeros"), sizes.append)
    assert sizes[-1] < 3 * config.MIB
    assert store.get("blank")[0] == bytes(6 * config.MIB)


# --- writing ----------------------------------------------------------------------------------------------------


WRITABLE = [
    {"a": 1, "b": [1.5, None, True, "é"], "c": {"d": b"\x00", b"bytes": 2}},
    np.arange(6, dtype=">i4").reshape(2, 3),
    np.float32(0.5),
    1 - 2j,
    {},
    None,
    msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(1, 2),
    np.array([(1, 2.0)], [("x", "<i2"), ("y", "<f8")]),
]


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_what_is_written_as_msgpack_is_read_again(tmp_path: Path, compression: str) -> None:
    store = open_store(tmp_path, driver="squirrel", compression=compression)
    store.set(WRITABLE, "sub/key")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == [f"key.{compression}"]
    for got, expected in zip(store.get("sub/key"), WRITABLE, strict=True):
        if isinstance(expected, np.ndarray):
            assert (got.dtype, got.tolist()) == (expected.dtype, expected.tolist())
        elif isinstance(expected, dict) and expected:
            assert got == {**expected, "b": tuple(expected["b"])}
        else:
            assert (type(got), got) == (type(expected), expected)


def test_what_is_written_as_json_is_read_again(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="squirrel-jsonl")
    array = np.array([[1.5, math.inf]], "<f4")
    store.set([{"a": array, "n": np.int8(3), "f": np.float64(0.5), "t": "\ud800é", "l": (1, 2)}, 5], "key")
    raw = gzip.decompress((tmp_path / "key.gz").read_bytes())
    assert raw.count(b"\n") == 2
    first, second = store.get("key")
    assert np.array_equal(first.pop("a"), array)
    assert first == {"n": 3, "f": 0.5, "t": "\ud800é", "l": [1, 2]}
    assert second == 5
    assert open_store(tmp_path).get("key")[1] == 5


def test_no_samples_are_a_shard_too(tmp_path: Path) -> None:
    for number, name in enumerate(("squirrel", "squirrel-jsonl")):
        store = open_store(tmp_path, driver=name)
        store.set([], f"key{number}")
        assert len(store.get(f"key{number}")) == 0


@pytest.mark.parametrize(
    ("driver", "value"),
    [
        *(("squirrel", value) for value in ({1, 2}, object(), 2**64, np.array([None]), {"a": {2}}, "\ud800")),
        *(("squirrel-jsonl", value) for value in ({1, 2}, b"x", 1j, np.bool_(1), {(1,): 2}, np.array([1j]))),
        *(("squirrel-jsonl", np.array(value)) for value in ([b"x"], [None], "2024-01-01T00:00:00.000000001Z")[:2]),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("squirrel") else type(value).__name__,
)
def test_a_value_that_the_format_cannot_hold_leaves_what_was_there(tmp_path: Path, driver: str, value: Any) -> None:
    store = open_store(tmp_path, driver=driver)
    store.set(["old"], "key")
    with pytest.raises(BadSettingError, match="sample 1"):
        store.set(["new", value], "key")
    assert list(store.get("key")) == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["key.gz"]


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("driver", "value"),
    [
        ("squirrel", nested(100)),
        ("squirrel-jsonl", nested(100)),
        ("squirrel-jsonl", {1: "a", "1": "b"}),
        ("squirrel-jsonl", np.zeros(2, [("a", "i4")])),
        ("squirrel", {b"nd": True, b"data": b"", b"shape": [1], b"type": "<f4"}),
        ("squirrel", {b"complex": True, b"data": "no number"}),
        ("squirrel", {1.0: "a", msgpack.Timestamp(1): "b", b"nd": False, b"type": "O", b"data": b""}),
    ],
    ids=["nested", "nested json", "names alike", "structured", "no array", "no number", "no scalar"],
)
def test_regression_a_sample_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, driver: str, value: Any
) -> None:
    store = open_store(tmp_path, driver=driver)
    with pytest.raises(BadSettingError, match="sample 0"):
        store.set([value], "key")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("driver", ["squirrel", "squirrel-jsonl"])
def test_regression_samples_that_compress_to_nothing_are_not_written_either(
    tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a million samples alike took 16 KB: fewer than a shard of so many values may have when it is read."""
    monkeypatch.setattr(config, "TOKEN_FLOOR", 20_000)
    store = open_store(tmp_path, driver=driver)
    store.set([{"label": 0}] * 3_000, "many")
    assert len(store.get("many")) == 3_000
    with pytest.raises(BadSettingError, match="alike"):
        store.set(({"label": 0} for _ in range(50_000)), "too many")
    assert store.keys() == ["many"]


def test_samples_that_might_be_too_many_are_counted_and_written_if_they_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts compress well, and by their bytes alone could be a hundred times the values that they are."""
    monkeypatch.setattr(config, "TOKEN_FLOOR", 2_000)
    counted = []
    is_overfull = squirrel._is_overfull
    monkeypatch.setattr(squirrel, "_is_overfull", lambda *how: counted.append(how) or is_overfull(*how))
    store = open_store(tmp_path, driver="squirrel")
    store.set([{"text": "to be or not to be " * 400, "other": [1]} for _ in range(40)], "texts")
    entry = store.entry("texts")
    shard = store.driver.load(entry, lambda _: None)
    assert counted == []
    records = [Verbatim(shard.raw[record.start : record.end]) for record in shard.records()]
    store.driver.write_records(Key("copy"), records, base=None)
    assert len(counted) == 1, "what is not looked into when it is written counts as much as its bytes may"
    assert list(store.get("copy")) == list(store.get("texts"))
    assert (tmp_path / "copy.gz").read_bytes() == (tmp_path / "texts.gz").read_bytes()


@pytest.mark.parametrize("driver", ["squirrel", "squirrel-jsonl"])
def test_regression_a_shard_that_would_be_taken_for_a_bomb_is_not_written(
    tmp_path: Path, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few long texts of one letter are few values: they were written, and then refused by whoever read them."""
    monkeypatch.setattr(config, "BOMB_FLOOR", 1 << 20)
    store = open_store(tmp_path, driver=driver, compression="zst")
    store.set([{"text": "x" * 100_000}] * 5, "few")
    assert len(store.get("few")) == 5
    with pytest.raises(BadSettingError, match="alike"):
        store.set([{"text": "x" * 1_000_000}] * 200, "many")
    assert store.keys() == ["few"]


@pytest.mark.parametrize(
    "key",
    ["", ".", "..", "a//b", "/a", "a/", "a/../b", "a\0", "x" * 252, "\ud800", f"{TEMPORARY}x", "sub/é" + "é" * 130],
)
def test_a_key_that_can_be_no_file_name_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(BadSettingError, match="key"):
        driver_of(tmp_path).write(Key(key), [1])
    assert list(tmp_path.iterdir()) == []


def test_the_longest_keys_and_those_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="squirrel")
    keys = ["x" * 251, os.fsdecode(b"caf\xe9"), ".hidden", "a b\n", "key.gz", "日" * 80]
    for key in keys:
        store.set([key.encode("utf-8", "surrogateescape")], key)
    assert store.keys() == sorted(keys)
    assert all(store.get(key)[0] == key.encode("utf-8", "surrogateescape") for key in keys)


def test_a_key_moves_to_the_other_compression(tmp_path: Path) -> None:
    gz, zst = (open_store(tmp_path, driver="squirrel", compression=word) for word in ("gz", "zst"))
    for store, other in ((gz, zst), (zst, gz), (gz, zst)):
        store.set([store.driver.name], "key")
        assert len(list(tmp_path.iterdir())) == 1
        assert other.get("key")[0] == "squirrel"


def test_of_two_files_the_gzip_is_the_key_and_both_are_removed(tmp_path: Path) -> None:
    put(tmp_path, "key.gz", b"\x01")
    put(tmp_path, "key.zst", b"\x02")
    store = open_store(tmp_path)
    assert list(store.get("key")) == [1]
    store.delete("key")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"format": "xml"}, {"compression": "lz4"}, {"compression": ""}])
def test_settings_that_are_none_are_refused(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(BadSettingError, match="use"):
        driver_of(tmp_path, **options)


def test_equal_samples_make_equal_files(tmp_path: Path) -> None:
    driver = driver_of(tmp_path)
    for key in ("a", "b"):
        driver.write(Key(key), WRITABLE)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_random_keys_are_as_the_library_makes_them() -> None:
    keys = {squirrel.random_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key) == 16 and key.isalnum() and key == key.upper() for key in keys)


# --- shards of frames -------------------------------------------------------------------------------------------


@pytest.fixture
def frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, and limits under which a shard of some kilobytes is large and has many frames."""
    monkeypatch.setattr(config, "LARGE_LOAD", 5_000)
    monkeypatch.setattr(compression.zstd_frames.FrameWriter.__init__, "__defaults__", (2_000,))
    return tmp_path


def framed_samples(driver: str) -> list[Any]:
    array = np.arange(900, dtype="<i4")
    samples: list[Any] = [{"id": at, "text": "x" * at, "list": [at] * 5} for at in range(100)]
    return [*samples, {"a": array if driver == "squirrel" else array.tolist(), "id": 100}, {"id": 101}]


@pytest.mark.parametrize("driver", ["squirrel", "squirrel-jsonl"])
def test_a_large_shard_of_frames_is_opened_and_all_records_are_the_same(frames: Path, driver: str) -> None:
    store = open_store(frames, driver=driver, compression="zst")
    samples = framed_samples(driver)
    store.set(samples, "key")
    got = list(store.get("key"))
    assert [sample["id"] for sample in got] == [sample["id"] for sample in samples]
    assert np.array_equal(got[100]["a"], samples[100]["a"])
    entry = store.entry("key")
    shard = store.driver.load(entry, lambda _: None)
    for reading in ("auto", driver.partition("-")[2] or "msgpack"):
        opened = driver_of(frames, format=reading).open(entry, shard.size)
        assert opened is not None
        assert (opened.size, opened.computes) == (shard.size, True)
        table = table_building.build(shard, "png")
        for file in range(table.files):
            if table.slice_of(file) is None:
                assert table.render(file, opened, "png") == table.render(file, shard, "png")
        for record in shard.records():
            data = opened.fetch(record.start, record.end)
            assert data == shard.part(record.start, record.end)
            tree = opened.decode(data)
            assert repr(tree) == repr(shard.decode(data))
        assert opened.part(0, 10) == shard.raw[:10]
    assert store.driver.estimate(entry) == shard.size


def test_only_large_zst_shards_with_a_table_that_fits_are_opened(frames: Path) -> None:
    samples = framed_samples("squirrel")
    driver = driver_of(frames, compression="zst")
    driver.write(Key("framed"), samples)
    driver.write(Key("small"), [1, 2])
    driver_of(frames, compression="gz").write(Key("gz"), samples)
    raw = bytes(driver.load(driver.entry(Key("framed")), lambda _: None).raw)
    put(frames, "plain.zst", raw)
    (frames / "cut.zst").write_bytes((frames / "framed.zst").read_bytes()[:-1])
    for key, size, opened in (
        ("framed", len(raw), True),
        ("framed", len(raw) - 1, False),
        ("framed", len(raw) + 1, False),
        ("small", 2, False),
        ("small", 10_000, False),
        ("gz", len(raw), False),
        ("plain", len(raw), False),
        ("cut", len(raw), False),
    ):
        assert (driver.open(driver.entry(Key(key)), size) is not None) == opened, (key, size)
    config_small = config.LARGE_LOAD
    assert len(raw) > config_small
    assert list(open_store(frames).get("plain"))[1] == samples[1] | {"list": (1,) * 5}
    with pytest.raises(DamagedShardError):
        driver.load(driver.entry(Key("cut")), lambda _: None)


def test_a_shard_of_frames_that_is_another_by_now_is_stale(frames: Path) -> None:
    driver = driver_of(frames, compression="zst", format="msgpack")  # so that no frame is held only to recognise it
    for key in ("replaced", "removed", "moved", "changed"):
        driver.write(Key(key), framed_samples("squirrel"))
    entries = {entry.key: entry for entry in driver.entries()}
    size = driver.load(entries[Key("replaced")], lambda _: None).size
    changed = driver.open(entries[Key("changed")], size)
    still = driver.open(entries[Key("replaced")], size)
    driver.write(Key("replaced"), framed_samples("squirrel"))
    driver.remove(Key("removed"))
    driver_of(frames, compression="gz").write(Key("moved"), [1])
    for key in ("replaced", "removed", "moved"):
        with pytest.raises(StaleShardError):
            driver.open(entries[Key(key)], size)
    os.truncate(frames / "changed.zst", 100)
    assert changed is not None
    with pytest.raises(StaleShardError):
        changed.fetch(size - 10, size)
    assert still is not None
    assert len(still.fetch(0, size)) == size  # the replaced file is whole as long as it is held open


def test_a_broken_frame_is_damage_when_it_is_asked_for(frames: Path) -> None:
    driver = driver_of(frames, compression="zst", format="msgpack")
    driver.write(Key("key"), framed_samples("squirrel"))
    size = driver.load(driver.entry(Key("key")), lambda _: None).size
    stored = bytearray((frames / "key.zst").read_bytes())
    stored[len(stored) // 2] ^= 1
    (frames / "key.zst").write_bytes(stored)
    opened = driver.open(driver.entry(Key("key")), size)
    assert opened is not None
    assert opened.fetch(0, 10)
    with pytest.raises(DamagedShardError):
        opened.fetch(0, size)


@pytest.mark.parametrize("line", [b'{"a": 1}', b"[1, 2]", b'"text"', b"12", b" 5", b"null", b"nothing", b'"' * 3])
@pytest.mark.parametrize("padding", [b"\n", b" " * 6_000 + b"\n", b"x" * 6_000])
def test_the_format_of_opened_frames_is_that_of_the_whole_shard(
    frames: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, padding: bytes
) -> None:
    monkeypatch.setattr(config, "TOKEN_FLOOR", 5_000)
    monkeypatch.setattr(squirrel_shards, "SNIFFED", 5_002)
    raw = line + padding + b"\n" + b"7\n" * 4_000
    with (frames / "key.zst").open("wb") as file, compression.compressing("zstd", file) as put_record:
        put_record(raw)
    opened = driver_of(frames).open(driver_of(frames).entry(Key("key")), len(raw))
    assert isinstance(opened, squirrel_shards.FramedSquirrel)
    assert opened.format == squirrel_shards.sniff(raw) == SquirrelShard(raw, len(raw)).format


def test_lines_are_found_across_the_pieces_they_are_looked_for_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "COPY_SLICE", 7)
    for raw in (b"", b"\n", b"1\n2", b"\n\n12345\n1234567\n" + b"[1, 2, 3, 4, 5, 6, 7, 8]\n" + b"0", b"1234567\n1\n"):
        shard = SquirrelShard(raw, len(raw), "jsonl")
        got = [bytes(shard.raw[record.start : record.end]) for record in shard.records()]
        assert got == [line for line in raw.splitlines(keepends=True) if line.strip()]


@pytest.mark.parametrize("format", ["msgpack", "jsonl"])
def test_a_shard_in_a_mapping_is_read_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    monkeypatch.setattr(config, "MAPPED_RAW", 10_000)
    for compression_word in ("gz", "zst"):
        store = open_store(tmp_path, driver="squirrel", format=format, compression=compression_word)
        samples: list[Any] = [{"id": at, "text": "x" * 50} for at in range(1_000)]
        store.set(samples, "key")
        shard = store.driver.load(store.entry("key"), lambda _: None)
        assert isinstance(shard.raw.obj, mmap.mmap)
        assert list(store.get("key")) == samples
        assert shard.size == store.driver.estimate(store.entry("key"))


def test_a_known_shard_of_frames_is_opened_by_the_cache_and_what_it_holds_is_counted(frames: Path) -> None:
    driver = driver_of(frames, compression="zst")
    for key in ("a", "b"):
        driver.write(Key(key), framed_samples("squirrel"))
    first, second = driver.entries()
    raw = bytes(driver.load(first, lambda _: None).raw)

    async def main() -> None:
        cache = ShardCache(driver, len(raw) + 1_000, "png")
        with trio.fail_after(20):
            async with cache.running():
                assert not (await cache.shard(first)).partial
                await cache.shard(second)  # takes the place of the first, whose table stays
                loaded = await cache.shard(first)
                assert loaded.partial
                assert (cache.counts.loads, cache.counts.opened) == (2, 1)
                assert await cache.fetched(first, loaded, 3_000, 3_100) == raw[3_000:3_100]
                assert loaded.counted == loaded.shard.held > 2_000
                assert cache.used <= len(raw) + 1_000
                assert loaded.shard.part(3_000, 3_100) == raw[3_000:3_100]

    trio.run(main)


def test_regression_an_opened_shard_holds_no_more_frames_than_it_may(frames: Path) -> None:
    """The limit of values had the name of the limit of frames, and took its place."""
    driver = driver_of(frames, compression="zst")
    driver.write(Key("key"), framed_samples("squirrel"))
    ((name, version),) = driver.objects(driver.entry(Key("key")))
    with driver.storage.open(name, version) as reader:
        table = compression.zstd_frames.read_table(reader)
        assert table is not None
        opened = squirrel_shards.FramedSquirrel(reader, table, limit=4_000)
        opened.fetch(0, opened.size)
        assert 2_000 < opened.held - table.nbytes <= 4_000


def test_a_shard_of_forty_megabytes_goes_round_and_is_opened_with_the_limits_as_they_are(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="squirrel", compression="zst", level=1)
    noise = np.random.default_rng(1).integers(0, 256, 4_500_000, np.uint8)
    samples = [{"id": at, "a": noise[at:] if at % 2 else noise[at : at + 1000]} for at in range(18)]
    store.set(samples, "key")
    for got, expected in zip(store.get("key"), samples, strict=True):
        assert got["id"] == expected["id"]
        assert np.array_equal(got["a"], expected["a"])
    entry = store.entry("key")
    shard = store.driver.load(entry, lambda _: None)
    assert isinstance(shard.raw.obj, mmap.mmap)
    opened = store.driver.open(entry, shard.size)
    assert opened is not None
    last = list(shard.records())[-1]
    assert opened.fetch(last.start, last.end) == shard.raw[last.start : last.end]
    assert opened.held < 8 * config.MIB
    assert store.driver.estimate(entry) == entry.stored_bytes > shard.size  # noise takes a little more than it is


def test_frames_are_made_ready_ahead_within_the_budget_and_go_with_their_shard(frames: Path) -> None:
    content = random.Random(5).randbytes(40_000)
    store = open_store(frames, "squirrel", compression="zst")
    store.set([{"data": content}], "k")

    async def main() -> None:
        cache = ShardCache(store.driver, 1 << 20, "png")
        with trio.fail_after(20):
            async with cache.running():
                entry = store.driver.entries()[0]
                cache.tables.keep(entry, table_building.build(store.driver.load(entry, lambda _: None), "png"))
                loaded = await cache.shard(entry)
                assert loaded.partial
                whole = bytes(store.driver.load(entry, lambda _: None).raw)
                at_hand = 0
                for at in range(0, 40_000, 500):
                    part = loaded.shard.part(at, at + 500)
                    at_hand += part is not None
                    assert (part or await cache.fetched(entry, loaded, at, at + 500)) == whole[at : at + 500]
                    while any(load.pins for load in [loaded]):
                        await trio.sleep(0.001)
                assert at_hand > 70, "80 parts of 20 frames, of which the first few had to be waited for"
                assert cache.used == loaded.counted >= 40_000
                gone = weakref.ref(loaded.shard)
                cache.drop(entry)
                del loaded, part
                assert cache.used == 0
                await trio.sleep(0.05)
                assert gone() is None, "no cycle keeps it until the collector comes"

    gc.disable()
    try:
        trio.run(main)
    finally:
        gc.enable()


def test_regression_frames_that_a_rendering_fetched_are_counted(frames: Path) -> None:
    store = open_store(frames, "squirrel", compression="zst")
    store.set([{"picture": np.zeros((60, 60, 3), "u1"), "noise": random.Random(1).randbytes(9_000)}], "k")

    async def main() -> None:
        cache = ShardCache(store.driver, 1 << 20, "png")
        with trio.fail_after(20):
            async with cache.running():
                entry = store.driver.entries()[0]
                cache.tables.keep(entry, table_building.build(store.driver.load(entry, lambda _: None), "png"))
                loaded = await cache.shard(entry)
                before = loaded.counted
                assert len(await cache.rendered(entry, loaded, 0)) == loaded.table.size(0)
                assert loaded.counted == loaded.shard.held > before

    trio.run(main)
