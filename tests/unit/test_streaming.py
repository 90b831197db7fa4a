"""Data sets of MosaicML Streaming: the library's own against its manifests, hand-made ones for what can go wrong."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import xxhash

from shardfs import values
from shardfs.drivers import hashes
from shardfs.drivers.base import Driver, Record, Shard
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    MissingExtraError,
    MissingKeyError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key
from shardfs.opening import open_store
from shardfs.storage.local import LocalStorage
from tests.conformance.streaming_shards import PACK

DATA = Path(__file__).parent.parent / "data" / "streaming"
CASES = sorted(path.name for path in DATA.iterdir())


def quiet(_: int) -> None:
    """Nobody asks how much is held."""


def opened(root: Path, **options: Any) -> StreamingDriver:
    return StreamingDriver(LocalStorage(root), **options)


def keys(driver: StreamingDriver) -> list[str]:
    return [entry.key for entry in driver.entries()]


def samples_of(driver: StreamingDriver, key: str) -> list[Any]:
    shard = driver.load(driver.entry(Key(key)), quiet)
    return [shard.sample(record.tree) for record in shard.records()]


# --- the library's own data sets ----------------------------------------------------------------------------------


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_image(expected: dict[str, Any], value: Any) -> None:
    image = PIL.Image.open(io.BytesIO(value)) if isinstance(value, bytes) else value
    assert image.format == expected["format"]
    assert (image.mode, list(image.size)) == (expected["mode"], expected["size"])
    assert sha(image.tobytes()) == expected["pixels_sha256"]


def check_value(expected: dict[str, Any], value: Any, leaf: Any) -> None:
    """A decoded value against what the manifest says the library gives."""
    kind = expected["type"]
    if isinstance(leaf, values.Pickle):
        assert value.data.startswith(b"\x80")
        assert expected["type"] == "dict"  # what it would be, if it were run
    elif kind.startswith("PIL."):
        check_image(expected, value)
    elif kind == "list[image]":
        assert len(value) == len(expected["items"])
        for item, image in zip(expected["items"], value, strict=True):
            check_image(item, image)
    elif kind == "ndarray":
        assert type(value) is np.ndarray
        assert (value.dtype.name, list(value.shape)) == (expected["dtype"], expected["shape"])
        assert sha(value.tobytes()) == expected["sha256"]
    elif kind.startswith("numpy."):
        assert type(value).__name__ == value.dtype.name == expected["dtype"]
        assert (sha(value.tobytes()), str(value.item())) == (expected["sha256"], expected["value"])
    elif kind == "bytes":
        assert (len(value), sha(value)) == (expected["len"], expected["sha256"])
    elif kind == "str":
        assert sha(value.encode("utf-8")) == expected["sha256"]
    elif "json" in expected:
        assert type(value).__name__ == kind
        assert value == expected["json"]
        assert sha(json.dumps(value, sort_keys=True).encode()) == expected["sha256"]
    else:
        assert type(value) is {"int": int, "float": float, "Decimal": Decimal}[kind]
        assert str(value) == expected["value"]


def check_file(leaf: Any, shard: Shard, value: Any) -> None:
    """A heavy leaf's file: as long as it says, and what independent readers make of it is the value."""
    content = leaf.content(shard.raw, "png")
    assert content.note is None
    if content.render is not None:
        data = content.render()
    else:
        data = content.prefix + bytes(shard.raw[content.offset : content.offset + content.size - len(content.prefix)])
    assert len(data) == content.size
    if content.ext == "npy":
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        assert loaded.dtype == value.dtype
        assert np.array_equal(loaded, value)
    elif isinstance(value, bytes):
        assert data == value
    elif isinstance(value, PIL.Image.Image):
        with PIL.Image.open(io.BytesIO(data)) as image:
            assert (image.mode, image.size, image.tobytes()) == (value.mode, value.size, value.tobytes())
    else:
        assert content.ext == "pkl"


def check_sample(expected: dict[str, Any], shard: Shard, record: Record) -> int:
    data = bytes(shard.raw[record.start : record.end])
    assert (len(data), sha(data)) == (expected["encoded_len"], expected["encoded_sha256"])
    assert list(record.tree) == list(expected["values"])
    sample = shard.sample(record.tree)
    for name, leaf in record.tree.items():
        check_value(expected["values"][name], sample[name], leaf)
        for part, value in zip(leaf, sample[name], strict=True) if isinstance(leaf, list) else [(leaf, sample[name])]:
            if values.is_heavy(part):
                check_file(part, shard, value)
    return len(sample)


def meta_bytes(split: Path, shard: int) -> int:
    size = json.loads((split / "index.json").read_bytes())["shards"][shard]["raw_meta"]["bytes"]
    assert isinstance(size, int)
    return size


@pytest.mark.parametrize("case", CASES)
def test_each_sample_and_column_is_what_the_library_gives(case: str) -> None:
    manifest = json.loads((DATA / case / "manifest.json").read_text())
    driver: Driver = opened(DATA / case / "data")
    entries = {str(entry.key): entry for entry in driver.entries()}
    seen = columns = 0
    for split, truth in manifest["splits"].items():
        for number, sizes in enumerate(truth["shard_sizes"]):
            entry = entries.pop(f"{split}/shard.{number:05d}".lstrip("/"))
            assert entry.samples == sizes["samples"]
            assert entry.stored_bytes == (sizes["zip"] or sizes["raw"])
            held: list[int] = []
            shard = driver.load(entry, held.append)
            # formats of text have a file of positions beside, of which only the positions are kept
            assert entry.raw_bytes == len(shard.raw) == driver.estimate(entry)
            beside = 0 if case.startswith("mds") else meta_bytes(DATA / case / "data" / split, number)
            assert held[-1] == len(shard.raw) + beside == sizes["raw"]
            assert shard.samples_through == truth["num_samples"]
            expected = [sample for sample in truth["samples"] if sample["shard"] == number]
            assert [sample["index"] for sample in expected][:1] in ([], [shard.first_sample])
            for sample, record in zip(expected, shard.records(), strict=True):
                columns += check_sample(sample, shard, record)
                seen += 1
    assert entries == {}
    assert seen == sum(truth["num_samples"] for truth in manifest["splits"].values()) > 0
    assert columns >= 2 * seen


def test_passed_through_jpegs_are_the_files_they_came_from() -> None:
    case = DATA / "mds_jpeg_file_passthrough"
    images = [sample["image"] for sample in samples_of(opened(case / "data"), "shard.00000")]
    assert images == [(case / "src" / f"{number}.jpg").read_bytes() for number in range(3)]


# --- a small writer -----------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], None]


def mds_bytes(texts: list[str]) -> bytes:
    """A shard of one `str` column."""
    records = [struct.pack("<I", len(text.encode())) + text.encode() for text in texts]
    offsets = [4 + 4 * (len(records) + 1)]
    for record in records:
        offsets.append(offsets[-1] + len(record))
    return struct.pack(f"<I{len(offsets)}I", len(records), *offsets) + b"".join(records)


def hashes_of(data: bytes, names: tuple[str, ...]) -> dict[str, str]:
    return {name: getattr(xxhash if name.startswith("xxh") else hashlib, name)(data).hexdigest() for name in names}


def put_shard(
    split: Path, basename: str, texts: list[str], compression: str | None = None, hashes: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Write one shard, compressed if asked; what an index says of it."""
    raw = mds_bytes(texts)
    record: dict[str, Any] = {
        "version": 2,
        "format": "mds",
        "compression": compression,
        "hashes": list(hashes),
        "size_limit": None,
        "samples": len(texts),
        "column_names": ["t"],
        "column_encodings": ["str"],
        "column_sizes": [None],
        "raw_data": {"basename": basename, "bytes": len(raw), "hashes": hashes_of(raw, hashes)},
        "zip_data": None,
    }
    name, data = basename, raw
    if compression is not None:
        kind = compression.partition(":")[0]
        name, data = f"{basename}.{kind}", PACK[kind](raw)
        record["zip_data"] = {"basename": name, "bytes": len(data), "hashes": hashes_of(data, hashes)}
    (split / name).parent.mkdir(parents=True, exist_ok=True)
    (split / name).write_bytes(data)
    return record


def put_index(split: Path, records: list[dict[str, Any]]) -> None:
    split.mkdir(parents=True, exist_ok=True)
    (split / "index.json").write_text(json.dumps({"version": 2, "shards": records}, sort_keys=True))


def simple(root: Path, compression: str | None = None, hashes: tuple[str, ...] = ()) -> Entry:
    """A data set of one shard with one sample; its entry."""
    put_index(root, [put_shard(root, "shard.00000.mds", ["hello"], compression, hashes)])
    return opened(root).entry(Key("shard.00000"))


# --- keys, splits and numbering -----------------------------------------------------------------------------------


def test_splits_are_directories_with_an_index_however_deep(tmp_path: Path) -> None:
    for split in ("", "train", "val/hard/er"):
        put_index(tmp_path / split, [put_shard(tmp_path / split, "shard.00000.mds", [f"in {split}"])])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "shard.00000.mds").write_bytes(b"no index speaks of this")
    (tmp_path / "elsewhere" / "not-index.json").write_bytes(b"{}")
    driver = opened(tmp_path)
    assert keys(driver) == ["shard.00000", "train/shard.00000", "val/hard/er/shard.00000"]
    assert driver.problems == []
    assert samples_of(driver, "val/hard/er/shard.00000") == [{"t": "in val/hard/er"}]


def test_samples_are_numbered_through_a_split_over_empty_shards_and_other_formats(tmp_path: Path) -> None:
    records = [
        put_shard(tmp_path, f"shard.{at:05d}.mds", ["x"] * count, "gz:9") for at, count in enumerate([0, 3, 0, 4])
    ]
    rows = b'{"t": "a"}\n{"t": "b"}\n'
    meta = struct.pack("<4I", 2, 0, 11, 22) + b"{}"
    (tmp_path / "shard.00002.json").write_bytes(rows)
    (tmp_path / "shard.00002.json.meta").write_bytes(meta)
    records[2] = {
        "version": 2,
        "format": "json",
        "compression": None,
        "hashes": [],
        "samples": 2,
        "columns": {"t": "str"},
        "newline": "\n",
        "raw_data": {"basename": "shard.00002.json", "bytes": len(rows), "hashes": {}},
        "raw_meta": {"basename": "shard.00002.json.meta", "bytes": len(meta), "hashes": {}},
        "zip_data": None,
        "zip_meta": None,
    }
    put_index(tmp_path, records)
    driver = opened(tmp_path)
    assert keys(driver) == [f"shard.{at:05d}" for at in range(4)]
    assert driver.problems == []
    shards = [driver.load(entry, quiet) for entry in driver.entries()]
    assert [(shard.first_sample, shard.samples_through) for shard in shards] == [(0, 9), (0, 9), (3, 9), (5, 9)]
    assert [len(list(shard.records())) for shard in shards] == [0, 3, 2, 4]


@pytest.mark.parametrize(
    ("basename", "key"),
    [
        ("shard.00003.mds", "shard.00003"),
        ("shard.00003.r2.mds", "shard.00003"),
        ("shard.00003.r12.mds", "shard.00003"),
        ("00/shard.00003.mds", "00/shard.00003"),
        ("a/b.r1/shard.mds", "a/b.r1/shard"),
        ("plain", "plain"),
        ("plain.bin", "plain.bin"),
        (".mds", ".mds"),
        ("...r1.mds", "...r1.mds"),
        ("r1.mds", "r1"),
    ],
)
@pytest.mark.parametrize("compression", [None, *PACK])
def test_keys_come_from_basenames(tmp_path: Path, basename: str, key: str, compression: str | None) -> None:
    split = tmp_path / "train"
    put_index(split, [put_shard(split, basename, ["hello"], compression)])
    driver = opened(tmp_path)
    assert keys(driver) == [f"train/{key}"]
    assert samples_of(driver, f"train/{key}") == [{"t": "hello"}]


def test_equal_keys_are_told_apart(tmp_path: Path) -> None:
    names = ["s.mds", "s.r1.mds", "s-2.mds", "s.r2.mds"]
    put_index(tmp_path, [put_shard(tmp_path, name, [name]) for name in names])
    driver = opened(tmp_path)
    found = {key: samples_of(driver, key)[0]["t"] for key in keys(driver)}
    assert found == {"s": "s.mds", "s-3": "s.r1.mds", "s-2": "s-2.mds", "s-4": "s.r2.mds"}
    assert keys(opened(tmp_path)) == list(found)


def test_a_merged_index_shows_each_file_once_and_numbers_through(tmp_path: Path) -> None:
    merged = []
    for part in ("00", "01"):
        records = [put_shard(tmp_path / part, f"shard.{at:05d}.mds", [part, "x"]) for at in range(2)]
        put_index(tmp_path / part, records)
        for record in records:
            raw = record["raw_data"]
            merged.append(record | {"raw_data": raw | {"basename": f"{part}/{raw['basename']}"}})
    put_index(tmp_path, merged)
    (tmp_path / "01" / "more").mkdir()
    put_index(tmp_path / "01" / "more", [put_shard(tmp_path / "01" / "more", "shard.00000.mds", ["own"])])
    driver = opened(tmp_path)
    entries = driver.entries()
    assert [entry.key for entry in entries] == [
        *("00/shard.00000", "00/shard.00001", "01/shard.00000", "01/shard.00001", "01/more/shard.00000")
    ]
    shards = [driver.load(entry, quiet) for entry in entries]
    assert [shard.first_sample for shard in shards] == [0, 2, 4, 6, 0]
    assert [shard.samples_through for shard in shards] == [8, 8, 8, 8, 1]
    assert samples_of(driver, "01/shard.00000") == [{"t": "01"}, {"t": "x"}]


def test_symbolic_links_lead_nowhere(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    put_index(outside, [put_shard(outside, "shard.00000.mds", ["secret"])])
    record = put_shard(root, "linked/shard.00000.mds", ["secret"])
    shutil.rmtree(root / "linked")
    put_index(root, [record])
    (root / "linked").symlink_to(outside)
    driver = opened(root)
    (entry,) = driver.entries()
    assert entry.key == "linked/shard.00000"
    with pytest.raises(StorageError, match="neither"):
        driver.load(entry, quiet)


# --- broken indexes -----------------------------------------------------------------------------------------------


def set_raw(**changes: Any) -> Change:
    return lambda record: record["raw_data"].update(changes)


def set_record(**changes: Any) -> Change:
    return lambda record: record.update(changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *(
            (set_raw(basename=name), "no name inside")
            for name in ("../x", "/x", "a/../x", "a//x", "", ".", "x/", "a\0b")
        ),
        (set_raw(basename="\ud800"), "no file name"),
        (set_raw(basename=None), "basename is missing"),
        (set_raw(basename=5), "basename is 5"),
        (set_raw(bytes=-1), "bytes is -1"),
        (set_raw(bytes=1 << 50), "bytes is"),
        (set_raw(bytes="9"), "bytes is '9'"),
        (set_raw(bytes=True), "bytes is True"),
        (set_raw(hashes={"sha1": 5}), "hashes is"),
        (set_raw(hashes=[]), "hashes is"),
        (set_record(raw_data=None), "raw_data is missing"),
        (set_record(zip_data={"basename": "../x", "bytes": 1, "hashes": {}}, compression="zstd"), "no name inside"),
        (set_record(zip_data={"basename": "x", "bytes": 1}), "but zip_data"),
        (set_record(compression="zstd"), "but zip_data"),
        (set_record(compression=7), "compression is 7"),
        (set_record(samples=-1), "-1 samples"),
        (set_record(samples=1 << 32), "samples"),
        (set_record(samples=1.0), "samples is 1.0"),
        (set_record(version=1), "no version 2"),
        (set_record(format="parquet"), "unknown format 'parquet'"),
        (set_record(format=None), "unknown format"),
        (set_record(column_names=["t", "t"]), "different lengths"),
        (set_record(column_names=[5]), "no text"),
        (set_record(column_encodings=None), "column_encodings is missing"),
        (set_record(column_sizes=["8"]), "no number"),
        (set_record(column_sizes=[-8]), "column size"),
        (
            set_record(column_names=["t", "t"], column_encodings=["str", "str"], column_sizes=[None, None]),
            "two columns of one name",
        ),
    ],
)
def test_a_broken_index_is_refused_with_its_reason_and_other_splits_live(
    tmp_path: Path, change: Change, reason: str
) -> None:
    good = put_shard(tmp_path / "good", "shard.00000.mds", ["hello"])
    put_index(tmp_path / "good", [good])
    bad = put_shard(tmp_path / "bad", "shard.00000.mds", ["hello"])
    change(bad)
    put_index(tmp_path / "bad", [good, bad])
    driver = opened(tmp_path)
    assert keys(driver) == ["good/shard.00000"]
    (problem,) = driver.problems
    assert problem.startswith("bad/index.json: shard 1")
    assert reason in problem
    shutil.rmtree(tmp_path / "good")
    with pytest.raises(BadStoreError, match=r"bad/index\.json: shard 1"):
        opened(tmp_path).entries()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"version": 1, "shards": []}', '{"version": 2}', '{"version": 2, "shards": [5]}', "[" * 99999],
)
def test_what_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(BadStoreError, match=r"^index\.json: "):
        opened(tmp_path).entries()


def test_no_index_at_all_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(BadStoreError, match=r"no index\.json in"):
        opened(tmp_path).entries()
    put_index(tmp_path, [])
    assert opened(tmp_path).entries() == []


def test_an_index_that_was_mended_is_read_again(tmp_path: Path) -> None:
    put_index(tmp_path / "a", [put_shard(tmp_path / "a", "shard.00000.mds", ["hello"])])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "index.json").write_text("{")
    driver = opened(tmp_path)
    assert keys(driver) == ["a/shard.00000"]
    assert len(driver.problems) == 1
    put_index(tmp_path / "b", [put_shard(tmp_path / "b", "shard.00000.mds", ["new"])])
    assert samples_of(driver, "b/shard.00000") == [{"t": "new"}]
    assert driver.problems == []


# --- which file, which version ------------------------------------------------------------------------------------


def test_the_raw_file_is_preferred_if_it_is_whole(tmp_path: Path) -> None:
    zipped = simple(tmp_path, "zstd:7")
    raw = mds_bytes(["hello"])
    driver = opened(tmp_path)
    assert (zipped.stored_bytes, zipped.raw_bytes) == ((tmp_path / "shard.00000.mds.zstd").stat().st_size, len(raw))
    (tmp_path / "shard.00000.mds").write_bytes(raw)
    found = driver.entry(Key("shard.00000"))
    assert found.stored_bytes == len(raw)
    assert found.version != zipped.version
    assert found.mtime_ns == (tmp_path / "shard.00000.mds").stat().st_mtime_ns
    for entry in (zipped, found):  # both versions are still there
        assert [record.tree for record in driver.load(entry, quiet).records()] == [{"t": "hello"}]
    (tmp_path / "shard.00000.mds").write_bytes(raw[:-1])
    assert driver.entry(Key("shard.00000")) == zipped


def test_a_version_that_is_gone_is_stale(tmp_path: Path) -> None:
    entry = simple(tmp_path, "gz")
    driver = opened(tmp_path)
    (tmp_path / "shard.00000.mds").write_bytes(mds_bytes(["hello"]))
    (tmp_path / "shard.00000.mds.gz").unlink()
    with pytest.raises(StaleShardError, match="another file"):
        driver.load(entry, quiet)
    entry = driver.entry(Key("shard.00000"))
    (tmp_path / "new").write_bytes(mds_bytes(["HELLO"]))
    (tmp_path / "new").rename(tmp_path / "shard.00000.mds")
    with pytest.raises(StaleShardError, match="replaced"):
        driver.load(entry, quiet)
    entry = driver.entry(Key("shard.00000"))
    put_index(tmp_path, [put_shard(tmp_path, "shard.00000.mds", ["other", "samples"])])
    with pytest.raises(StaleShardError, match="the index says something else"):
        driver.load(entry, quiet)
    assert samples_of(driver, "shard.00000") == [{"t": "other"}, {"t": "samples"}]


def test_a_data_set_that_grows_keeps_the_versions_it_had(tmp_path: Path) -> None:
    first = put_shard(tmp_path, "shard.00000.mds", ["hello"] * 3)
    put_index(tmp_path, [first])
    driver = opened(tmp_path)
    (before,) = driver.entries()
    put_index(tmp_path, [first, put_shard(tmp_path, "shard.00001.mds", ["x"] * 5)])
    assert driver.entries()[0] == before
    put_index(tmp_path, [first, put_shard(tmp_path, "shard.00001.mds", ["x"] * 50)])
    assert driver.entries()[0] == before  # no name has changed
    put_index(tmp_path, [first, {**put_shard(tmp_path, "shard.00002.mds", ["x"]), "samples": 1_000_000}])
    assert driver.entries()[0].version != before.version  # numbers have seven digits now
    put_index(tmp_path, [put_shard(tmp_path, "shard.00001.mds", ["x"] * 5), first])
    assert driver.entry(Key("shard.00000")).version != before.version  # other numbers


def test_a_missing_file_is_listed_and_an_error_to_read(tmp_path: Path) -> None:
    entry = simple(tmp_path, "zstd")
    driver = opened(tmp_path)
    assert keys(driver) == ["shard.00000"]
    (tmp_path / "shard.00000.mds.zstd").rename(tmp_path / "away")
    (missing,) = driver.entries()
    assert (missing.key, missing.samples, missing.stored_bytes) == (entry.key, 1, entry.stored_bytes)
    for version in (entry, missing):
        with pytest.raises(StorageError, match=r"neither shard\.00000\.mds nor a compressed form") as caught:
            driver.load(version, quiet)
        assert caught.value.errno == errno.EIO
    (tmp_path / "away").rename(tmp_path / "shard.00000.mds.zstd")
    with pytest.raises(StaleShardError):
        driver.load(missing, quiet)


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    entry = simple(tmp_path)
    driver = opened(tmp_path)
    for key in ("shard.00001", "shard.00000.mds", "", "../shard.00000"):
        with pytest.raises(MissingKeyError):
            driver.entry(Key(key))
    put_index(tmp_path, [])
    with pytest.raises(MissingKeyError):
        driver.load(entry, quiet)


def test_reading_writes_nothing(tmp_path: Path) -> None:
    simple(tmp_path, "zstd")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
    for path in (*before, tmp_path):
        path.chmod(0o555 if path.is_dir() else 0o444)
    driver = opened(tmp_path)
    samples_of(driver, "shard.00000")
    driver.garbage()
    driver.standing(Key("shard.00000"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before
    tmp_path.chmod(0o755)


# --- damage -------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", hashes.HASHES)
@pytest.mark.parametrize("compression", [None, "gz"])
def test_a_flipped_byte_is_found_by_each_hash(tmp_path: Path, name: str, compression: str | None) -> None:
    simple(tmp_path, compression, (name,))
    path = tmp_path / ("shard.00000.mds" if compression is None else "shard.00000.mds.gz")
    for driver in (opened(tmp_path), opened(tmp_path, validate_hash=name)):
        assert samples_of(driver, "shard.00000") == [{"t": "hello"}]
    flip(path, -1 if compression is None else 4)  # of gzip the time, which no other check covers
    for driver in (opened(tmp_path), opened(tmp_path, validate_hash=name)):
        with pytest.raises(DamagedShardError, match=f"{name} hash") as caught:
            samples_of(driver, "shard.00000")
        assert caught.value.key == "shard.00000"
    for off in (None, "off"):
        assert len(samples_of(opened(tmp_path, validate_hash=off), "shard.00000")) == 1


def test_the_fastest_hash_there_is_is_checked(tmp_path: Path) -> None:
    simple(tmp_path, None, ("sha1", "sha256", "xxh64"))
    text = (tmp_path / "index.json").read_text()
    index = json.loads(text)
    index["shards"][0]["raw_data"]["hashes"]["sha1"] = "0" * 40
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert samples_of(opened(tmp_path), "shard.00000") == [{"t": "hello"}]
    with pytest.raises(DamagedShardError, match="sha1 hash"):
        samples_of(opened(tmp_path, validate_hash="sha1"), "shard.00000")
    with pytest.raises(StorageError, match="no md5 hash"):
        samples_of(opened(tmp_path, validate_hash="md5"), "shard.00000")


def test_without_xxhash_another_hash_is_checked_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simple(tmp_path / "both", None, ("sha1", "xxh64"))
    simple(tmp_path / "only", None, ("xxh64",))
    monkeypatch.setitem(sys.modules, "xxhash", None)
    flip(tmp_path / "both" / "shard.00000.mds", -1)
    flip(tmp_path / "only" / "shard.00000.mds", -1)
    with pytest.raises(DamagedShardError, match="sha1 hash"):
        samples_of(opened(tmp_path / "both"), "shard.00000")
    driver = opened(tmp_path / "only")
    assert samples_of(driver, "shard.00000") == [{"t": "helln"}]
    assert driver.problems == ["xxh64 hashes are not checked: pip install 'shardfs[hashes]'"]
    with pytest.raises(MissingExtraError, match=r"shardfs\[hashes\]"):
        opened(tmp_path, validate_hash="xxh64")


def test_hashes_may_be_written_in_capitals_and_unknown_ones_are_passed_over(tmp_path: Path) -> None:
    simple(tmp_path, None, ("sha1",))
    index = json.loads((tmp_path / "index.json").read_text())
    hashes = index["shards"][0]["raw_data"]["hashes"]
    hashes.update({"sha1": hashes["sha1"].upper(), "crc32": "00"})
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert samples_of(opened(tmp_path), "shard.00000") == [{"t": "hello"}]


@pytest.mark.parametrize("compression", [None, *PACK])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_damaged(tmp_path: Path, compression: str | None, change: int) -> None:
    simple(tmp_path, compression)
    path = next(path for path in tmp_path.iterdir() if path.name != "index.json")
    path.write_bytes((path.read_bytes() + b"x")[: path.stat().st_size + change])
    with pytest.raises(DamagedShardError, match="its index says"):
        samples_of(opened(tmp_path), "shard.00000")


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("texts", [["hello", "x"], ["hi"], ["x" * 5_000_000]])
def test_a_file_that_holds_another_amount_than_its_index_says(
    tmp_path: Path, compression: str, texts: list[str]
) -> None:
    """The hash is right, so the index speaks of this file: but what is inside is not what it says."""
    record = put_shard(tmp_path, "shard.00000.mds", texts, compression, ("sha1",))
    record["raw_data"]["bytes"] = len(mds_bytes(["hello"]))
    put_index(tmp_path, [record])
    held: list[int] = []
    driver = opened(tmp_path)
    with pytest.raises(DamagedShardError, match="index says") as caught:
        driver.load(driver.entry(Key("shard.00000")), held.append)
    assert caught.value.key == "shard.00000"
    assert max(held, default=0) <= record["raw_data"]["bytes"]


def test_a_broken_stream_and_a_broken_table_are_damage(tmp_path: Path) -> None:
    simple(tmp_path / "gz", "gz")
    flip(tmp_path / "gz" / "shard.00000.mds.gz", 0)
    with pytest.raises(DamagedShardError, match="gzip"):
        samples_of(opened(tmp_path / "gz"), "shard.00000")
    simple(tmp_path / "raw")
    flip(tmp_path / "raw" / "shard.00000.mds", 0)
    with pytest.raises(DamagedShardError, match="0 samples where the index has 1") as caught:
        samples_of(opened(tmp_path / "raw"), "shard.00000")
    assert (caught.value.key, caught.value.offset) == ("shard.00000", 0)


@pytest.mark.parametrize("codec", ["br11", "bz2:", "snappy:123", "zstd:", "gz:123", "lz4"])
def test_other_compressions_are_listed_but_not_read(tmp_path: Path, codec: str) -> None:
    record = put_shard(tmp_path, "shard.00000.mds", ["hello"], "gz")
    record["compression"] = codec
    put_index(tmp_path, [record])
    driver = opened(tmp_path)
    (entry,) = driver.entries()
    assert driver.problems == [f"compression {codec} is not supported here: such shards can be listed, but not read"]
    with pytest.raises(StorageError, match="not supported here"):
        driver.load(entry, quiet)
    (tmp_path / "shard.00000.mds").write_bytes(mds_bytes(["hello"]))
    assert samples_of(driver, "shard.00000") == [{"t": "hello"}]


@pytest.mark.parametrize(("codec", "package"), [("br", "brotli"), ("snappy", "cramjam")])
def test_a_compression_whose_package_is_missing_is_listed_and_told(
    tmp_path: Path, codec: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [put_shard(tmp_path, "a.mds", ["hello"], codec), put_shard(tmp_path, "b.mds", ["x"], "gz")]
    put_index(tmp_path, records)
    assert samples_of(opened(tmp_path), "a") == [{"t": "hello"}]
    monkeypatch.setitem(sys.modules, package, None)
    driver = opened(tmp_path)
    assert keys(driver) == ["a", "b"]
    text = f"{codec} needs the package {package}: pip install 'shardfs[codecs]'"
    assert driver.problems == [f"such shards can be listed, but not read: {text}"]
    with pytest.raises(StorageError, match=f"needs the package {package}") as caught:
        samples_of(driver, "a")
    assert caught.value.errno == errno.EIO
    assert samples_of(driver, "b") == [{"t": "x"}]
    with pytest.raises(MissingExtraError, match=f"needs the package {package}"):
        opened(tmp_path, compression=codec).write(Key("c"), [{"t": "x"}])


def test_one_damaged_shard_leaves_the_others(tmp_path: Path) -> None:
    put_index(tmp_path, [put_shard(tmp_path, f"shard.{at:05d}.mds", ["x"], "zstd", ("xxh64",)) for at in range(3)])
    flip(tmp_path / "shard.00001.mds.zstd", -1)
    driver = opened(tmp_path)
    with pytest.raises(DamagedShardError):
        samples_of(driver, "shard.00001")
    assert samples_of(driver, "shard.00000") == samples_of(driver, "shard.00002") == [{"t": "x"}]


def test_a_fifo_named_like_a_shard_hangs_nobody(tmp_path: Path) -> None:
    simple(tmp_path)
    driver = opened(tmp_path)
    (tmp_path / "shard.00000.mds").unlink()
    os.mkfifo(tmp_path / "shard.00000.mds")
    with pytest.raises(StorageError, match="neither"):
        samples_of(driver, "shard.00000")


# --- options ------------------------------------------------------------------------------------------------------


def test_options(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="validate_hash 'crc32'"):
        opened(tmp_path, validate_hash="crc32")
    with pytest.raises(BadSettingError, match="no option 'level'"):
        open_store(tmp_path, driver="streaming", level=3)
    for compression in ("lz4", "zstd:0", "zstd:23", "gz:10", "bz2:0", "br:12", "snappy:1", "zst"):
        with pytest.raises(BadSettingError, match=f"compression {compression} is none"):
            opened(tmp_path, compression=compression)
    for compression in (None, "none", "zstd:22", "gz:0", "bz2:9", "br:0", "br:11", "snappy"):
        opened(tmp_path, compression=compression)
    for format in ("xsv:", "xsv:a\nb", "csv:;", "parquet", ""):
        with pytest.raises(BadSettingError, match="format"):
            opened(tmp_path, format=format)
    driver = opened(tmp_path)
    assert (driver.name, driver.writable) == ("streaming", True)
