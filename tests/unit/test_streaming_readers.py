"""Readers of MosaicML Streaming's shards: the library's names and sizes, against the manifests it made."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs import open_store
from shardfs.drivers.streaming_settings import LEVELS, codec_of, codec_to_read, shard_limit
from shardfs.errors import BadSettingError, BadStoreError, DamagedShardError, StorageError
from shardfs.streaming import (
    Cache,
    CSVReader,
    FileInfo,
    JSONReader,
    MDSReader,
    Reader,
    TSVReader,
    XSVReader,
    bytes_to_int,
    reader_from_json,
    readers,
)

DATA = Path(__file__).parent.parent / "data" / "streaming"
CASES = sorted(path.name for path in DATA.iterdir())
CLASSES: dict[str, type[Reader]] = {
    "mds": MDSReader,
    "json": JSONReader,
    "csv": CSVReader,
    "tsv": TSVReader,
    "xsv": XSVReader,
}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def zipped(tmp_path: Path) -> Path:
    """A copy of a data set of compressed shards that may be damaged."""
    shutil.copytree(DATA / "mds_zstd_hash_splits" / "data", tmp_path / "set")
    return tmp_path / "set"


def everything(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


# --- what the library says of its own data sets -------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_readers_are_what_the_manifest_says(case: str) -> None:
    manifest = json.loads((DATA / case / "manifest.json").read_text())
    for split, truth in manifest["splits"].items():
        found = readers(DATA / case / "data", split)
        assert len(found) == truth["num_shards"]
        assert {type(reader) for reader in found} == {CLASSES[case.partition("_")[0]]}
        for number, (reader, sizes) in enumerate(zip(found, truth["shard_sizes"], strict=True)):
            assert reader.size == len(reader) == reader.samples == sizes["samples"]
            assert (reader.get_raw_size(), reader.get_zip_size()) == (sizes["raw"], sizes["zip"])
            assert reader.get_max_size() == sizes["max"]
            assert reader.get_persistent_size(keep_zip=True) == sizes["persistent_keep_zip"]
            assert reader.get_persistent_size(keep_zip=False) == sizes["persistent_no_zip"]
            expected = [sample for sample in truth["samples"] if sample["shard"] == number]
            for sample in expected:
                data = reader.get_sample_data(sample["index_in_shard"])
                assert (len(data), sha(data)) == (sample["encoded_len"], sample["encoded_sha256"])
                made = reader.decode_sample(data)
                assert list(made) == list(sample["values"])
                for name, value in made.items():
                    want = sample["values"][name]
                    if want["type"] in ("int", "float", "Decimal"):
                        assert str(value) == want["value"]
                    elif want["type"] == "str":
                        assert sha(value.encode()) == want["sha256"]


def test_samples_are_those_of_the_store() -> None:
    root = DATA / "mds_none_hash_splits" / "data"
    store = open_store(root)
    got = [sample for reader in readers(root, "train") for sample in reader]
    expected = [sample for key in store if key.startswith("train/") for sample in store.get(key)]
    assert len(got) == len(expected) > 0
    for one, other in zip(got, expected, strict=True):
        assert repr(one) == repr(other)


def test_pickles_are_bytes_and_never_run() -> None:
    (reader,) = readers(DATA / "mds_pkl" / "data")
    assert all(type(sample["p"]) is bytes and sample["p"][:1] == b"\x80" for sample in reader)


# --- indexing -----------------------------------------------------------------------------------------------------


def test_samples_by_number_slice_list_and_array() -> None:
    reader = readers(DATA / "json_none" / "data")[0]
    whole = list(reader)
    assert [sample["n"] for sample in whole] == [-3 + 7 * at for at in range(10)]
    assert reader[3] == reader.get_item(3) == whole[3]
    assert reader[-1] == reader.get_item(-1) == reader[np.int64(9)] == whole[9]
    for cut in (slice(2, 5), slice(None, None, -1), slice(-3, None), slice(5, 2), slice(0, 99, 4)):
        assert reader[cut] == whole[cut]
    assert reader[[0, -1, 4]] == reader[np.array([0, -1, 4])] == [whole[0], whole[9], whole[4]]
    assert reader[[[0, 1], [2]]] == [[whole[0], whole[1]], [whole[2]]]
    assert reader[[]] == []
    for wrong in (10, -11):
        with pytest.raises(IndexError):
            _ = reader[wrong]
    with pytest.raises(TypeError):
        _ = reader[1.5]  # type: ignore[index]


# --- the cache, and what is never deleted -------------------------------------------------------------------------


def test_evict_frees_what_is_loaded_and_deletes_nothing(zipped: Path) -> None:
    before = everything(zipped)
    reader = readers(zipped, "train")[0]
    assert reader.evict() == 0
    first = reader[0]
    assert reader.evict() == reader.get_raw_size() > 0
    assert reader.evict() == 0
    assert repr(reader[0]) == repr(first)
    assert everything(zipped) == before


def test_readers_of_a_split_share_a_cache_with_a_limit(zipped: Path) -> None:
    found = readers(zipped, "train", cache_limit="32kb")
    sizes = [reader.get_raw_size() for reader in found]
    assert sum(sizes) > 2 * 32_768 > 2 * max(sizes)
    for reader in found:
        _ = reader[0]
    freed = [reader.evict() for reader in found]
    kept = [size for size in freed if size]
    assert sum(kept) <= 32_768
    assert freed[-1] == sizes[-1], "the newest stays"
    assert freed[: len(freed) - len(kept)] == [0] * (len(freed) - len(kept)), "the oldest goes first"


def test_a_cache_smaller_than_a_shard_holds_one() -> None:
    cache = Cache(1)
    index = json.loads((DATA / "csv_none" / "data" / "index.json").read_bytes())
    found = [reader_from_json(DATA / "csv_none" / "data", None, shard, cache=cache) for shard in index["shards"]]
    assert [reader[0]["n"] for reader in found] == [-3, 144]
    assert [reader.evict() for reader in found] == [0, found[1].get_raw_size()]
    assert cache.usage == 0


def test_many_threads_load_a_shard_once(zipped: Path) -> None:
    reader = readers(zipped, "train")[0]
    opened = threading.Barrier(8)
    seen: list[str] = []

    def ask() -> None:
        opened.wait(10)
        seen.append(repr(reader[0]))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 8
    assert len(set(seen)) == 1


def described(root: Path, split: str) -> Any:
    return json.loads((root / split / "index.json").read_bytes())["shards"][0]


@pytest.mark.parametrize("case", ["json_none", "tsv_zstd", "mds_pkl", "mds_zstd_hash_splits"])
def test_what_is_present_is_told_for_each_state_and_nothing_is_deleted(case: str, tmp_path: Path) -> None:
    split = "train" if "splits" in case else ""
    shutil.copytree(DATA / case / "data", tmp_path / "set")
    root = tmp_path / "set"
    shard = described(root, split)
    pairs = [(shard[f"raw_{part}"], shard[f"zip_{part}"]) for part in ("meta", "data") if f"raw_{part}" in shard]
    infos = [info for pair in pairs for info in pair if info]
    before = everything(root)
    for count in range(len(infos) + 1):
        for chosen in itertools.combinations(infos, count):
            listing = {os.path.join(root, split, info["basename"]) for info in chosen}
            reader = reader_from_json(root, split, shard)
            raw = all(pair[0] in chosen for pair in pairs)
            packed = all(pair[1] in chosen for pair in pairs)
            for keep in (True, False):
                got = reader.set_up_local(listing, safe_keep_zip=keep)
                if raw:
                    assert got == reader.get_raw_size() + (reader.get_zip_size() or 0) * (packed and keep)
                elif packed:
                    assert got == reader.get_zip_size()
                else:
                    assert bool(got) == all(pair[0] in chosen or pair[1] in chosen for pair in pairs)
    assert everything(root) == before


def test_the_only_copy_is_kept_where_the_library_deletes_it(zipped: Path) -> None:
    """A compressed shard of which only the raw file is left: the library takes that for an unnatural state."""
    shard = described(zipped, "train")
    reader = reader_from_json(zipped, "train", shard)
    raw = zipped / "train" / shard["raw_data"]["basename"]
    driver = open_store(zipped).driver
    raw.write_bytes(driver.load(driver.entries()[0], lambda _: None).raw)
    (zipped / "train" / shard["zip_data"]["basename"]).unlink()
    listing = {str(path) for path in (zipped / "train").iterdir()}
    assert reader.set_up_local(listing, safe_keep_zip=True) == reader.get_raw_size() == raw.stat().st_size
    reader.evict()
    assert len(list(reader)) == reader.size


def test_a_loaded_shard_whose_files_are_gone_is_dropped(zipped: Path) -> None:
    reader = readers(zipped, "train")[0]
    _ = reader[0]
    assert reader.set_up_local(set(), safe_keep_zip=True) == 0
    assert reader.evict() == 0, "it was dropped"
    (zipped / "train" / described(zipped, "train")["zip_data"]["basename"]).unlink()
    with pytest.raises(StorageError, match="neither"):
        _ = reader[0]


# --- construction -------------------------------------------------------------------------------------------------


def test_the_librarys_arguments_mean_the_same() -> None:
    root = DATA / "mds_pkl" / "data"
    shard = described(root, "")
    info = FileInfo(**shard["raw_data"])
    columns = [shard[f"column_{part}"] for part in ("encodings", "names", "sizes")]
    reader = MDSReader(str(root), None, *columns, None, [], info, 3, "100kb", None)
    assert (reader.dirname, reader.split, reader.compression, reader.hashes) == (str(root), "", None, [])
    assert (reader.samples, reader.size_limit, reader.file_pairs) == (3, 102_400, [(info, None)])
    assert (reader.column_names, reader.raw_data, reader.zip_data) == (["i", "p"], info, None)
    assert [sample["i"] for sample in reader] == [0, 1, 2]
    again = MDSReader.from_json(root, "", shard)
    assert [sample["i"] for sample in again] == [0, 1, 2]
    for limit in (None, 0, "1mb", 5):
        made = MDSReader(root, "", *columns, None, [], info, 3, limit, None)
        assert made.size_limit == {None: None, 0: 0, "1mb": 1 << 20, 5: 5}[limit]
    for limit in (-1, "one", "1kib"):
        with pytest.raises(ValueError, match="size"):
            MDSReader(root, "", *columns, None, [], info, 3, limit, None)


def test_a_reader_of_ones_own_has_the_rest() -> None:
    """The class of the document is abstract: two methods make a reader."""

    class Counting(Reader):
        def get_sample_data(self, idx: int) -> bytes:
            return b"%d" % (idx % self.size)

        def decode_sample(self, data: bytes) -> Any:
            return {"n": int(data)}

    made = Counting("/nowhere", "train", None, [], 5, None)
    assert [sample["n"] for sample in made] == [0, 1, 2, 3, 4]
    assert made[[0, -1]] == [{"n": 0}, {"n": 4}]
    assert (made.get_raw_size(), made.get_max_size(), made.evict()) == (0, 0, 0)
    with pytest.raises(TypeError, match="abstract"):
        Reader("/nowhere", None, None, [], 5, None)  # type: ignore[abstract]


@pytest.mark.parametrize("case", ["csv_none", "json_none", "tsv_zstd"])
def test_readers_of_rows_have_the_indexs_words(case: str) -> None:
    root = DATA / case / "data"
    reader = readers(root)[0]
    assert isinstance(reader, CLASSES[case.partition("_")[0]])
    assert isinstance(reader, JSONReader) == case.startswith("json")
    if isinstance(reader, JSONReader):
        assert reader.columns == {"n": "int", "name": "str", "x": "float"}
    else:
        assert isinstance(reader, XSVReader)
        assert reader.separator == {"c": ",", "t": "\t"}[case[0]]
        assert (reader.column_names, reader.column_encodings) == (["n", "name", "x"], ["int", "str", "float"])
    shard = described(root, "")
    assert reader.newline == "\n"
    assert [[pair and pair.basename for pair in pairs] for pairs in reader.file_pairs] == [
        [shard[name] and shard[name]["basename"] for name in (f"raw_{part}", f"zip_{part}")]
        for part in ("meta", "data")
    ]


def test_words_that_are_none(tmp_path: Path) -> None:
    shard = described(DATA / "csv_none" / "data", "")
    for change in ({"version": 1}, {"format": "parquet"}, {"newline": ""}, {"samples": -1}, {"raw_meta": None}):
        with pytest.raises(BadStoreError):
            reader_from_json(tmp_path, None, {**shard, **change})
    for name in ("samples", "raw_data", "column_names"):
        with pytest.raises(BadStoreError):
            reader_from_json(tmp_path, None, {key: value for key, value in shard.items() if key != name})
    with pytest.raises(BadStoreError, match="not json of 2"):
        JSONReader.from_json(tmp_path, None, shard)
    with pytest.raises(BadStoreError, match="no name inside"):
        reader_from_json(tmp_path, None, {**shard, "raw_data": {"basename": "../x", "bytes": 1, "hashes": {}}})
    with pytest.raises(BadSettingError, match="validate_hash"):
        reader_from_json(tmp_path, None, shard, validate_hash="crc32")
    assert len(reader_from_json(tmp_path, None, {**shard, "more": 1})) == 21, "words of other tools do not matter"


def test_a_split_without_an_index_is_told_with_those_there_are(tmp_path: Path) -> None:
    root = DATA / "mds_none_hash_splits" / "data"
    for split in (None, "test"):
        with pytest.raises(BadStoreError, match="splits there are: 'train', 'val'"):
            readers(root, split)
    assert len(readers(root, "train/")) == len(readers(str(root), "train")) > 1
    (tmp_path / "index.json").write_text('{"version": 2, "shards": [{}]}')
    with pytest.raises(BadStoreError, match="shard 0"):
        readers(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 2, "shards": []}')
    assert readers(tmp_path) == []


def test_damage_is_told_and_hashes_are_checked(zipped: Path) -> None:
    shard = described(zipped, "train")
    path = zipped / "train" / shard["zip_data"]["basename"]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedShardError, match=r"train/shard\.00000"):
        _ = readers(zipped, "train")[0][0]
    with pytest.raises(StorageError, match="no md5 hash"):
        _ = readers(zipped, "train", validate_hash="md5")[0][0]
    with pytest.raises(DamagedShardError, match="too few"):
        readers(zipped, "train")[1].decode_sample(b"x")


def test_a_flipped_byte_of_a_raw_shard_is_found_by_its_hash(tmp_path: Path) -> None:
    shutil.copytree(DATA / "mds_none_hash_splits" / "data", tmp_path / "set")
    path = tmp_path / "set" / "val" / "shard.00000.mds"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedShardError, match="hash of"):
        _ = readers(tmp_path / "set", "val")[0][0]
    assert len(list(readers(tmp_path / "set", "val", validate_hash="off")[0])) == 5


# --- the library's words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((100, 100), (1.9, 1), ("100", 100), ("100b", 100), ("1kb", 1024), ("1.5KB", 1536), (" 10 mb ", 10 << 20)),
        *(("1gb", 1 << 30), ("0.5tb", 1 << 39), ("1pb", 1 << 50), ("1eb", 1 << 60), ("1zb", 1 << 70), ("1yb", 1 << 80)),
        *(("100kb", 102_400), (0, 0), ("0", 0)),
    ],
)
def test_sizes_are_the_librarys(text: Any, expected: int) -> None:
    assert bytes_to_int(text) == expected


@pytest.mark.parametrize(
    "text", ["1kib", "0.5b", "1.5", "", "kb", "b", "one", "1 000", "infkb", "nankb", "-5", float("inf")]
)
def test_texts_that_are_no_size(text: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        bytes_to_int(text)


def test_limits_of_shards_to_be_written() -> None:
    assert [shard_limit(size) for size in (None, 0, 1, "64mb")] == [None, None, 1, 64 << 20]
    for size in (-1, "4gb", 1 << 32):
        with pytest.raises(BadSettingError, match="less than 4 GiB"):
            shard_limit(size)


def test_compressions_are_the_librarys() -> None:
    assert codec_of(None) == (None, None, "")
    assert codec_of("snappy") == ("snappy", None, ".snappy")
    for codec, levels in LEVELS.items():
        assert codec_of(codec) == (codec, None, f".{codec}")
        for level in range(30):
            text = f"{codec}:{level}"
            assert codec_to_read(text) == codec, "whatever it was written with, it can be read"
            if level in levels:
                assert codec_of(text) == (codec, level, f".{codec}")
            else:
                with pytest.raises(BadSettingError, match=text):
                    codec_of(text)
    for text in ("", "zst", "gzip", "zstd:", "zstd:-1", "zstd:1.5", "ZSTD"):
        assert codec_to_read(text) is None
