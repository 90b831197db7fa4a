"""WebDataset stores: what the real library, tar and the tree say of the same tars, read and written."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webdataset import autodecode, tariterators

from shardfs import config, patterns, table_building
from shardfs.browse import Browser
from shardfs.converting import convert_all
from shardfs.drivers.base import Files, KeepsFiles, KeptFiles, Value
from shardfs.drivers.webdataset import WebDatasetDriver
from shardfs.drivers.webdataset_shards import FramedTar, TarInPlace, TarShard, member_name, samples, split
from shardfs.drivers.webdataset_writing import faithful, packed
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    KeyExistsError,
    MissingKeyError,
    NotWritableError,
    StaleShardError,
)
from shardfs.model import Entry, Key
from shardfs.opening import detect, open_store
from shardfs.sealing import Base, Changed, Source, Stored, seal
from shardfs.storage.local import LocalStorage, temporary_name
from shardfs.store import Store
from tests.conformance.webdataset_suite import library

JPEG = b"\xff\xd8\xff\xe0"
_array = io.BytesIO()
np.save(_array, np.arange(3))
NPY = _array.getvalue()
PLAIN = {
    "cat.jpg": JPEG + b"cat",
    "cat.json": b'{"label": 3}',
    "cat.seg.png": b"pixels",
    "cat.cls": b"7",
    "dog.jpg": JPEG,
    "dog.txt": "größe".encode(),
    "sub/bird.jpg": b"",
    "sub/bird.npy": NPY,
}
RELAXED = settings(deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))


def quiet(_: int) -> None:
    """Nobody asks how much is held."""


def tar_of(files: dict[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mtime = len(content), 1000, 99
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def opened_tar(path: Path) -> tarfile.TarFile:
    data = path.read_bytes()
    if path.name.endswith(".zst"):
        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    elif path.name.endswith("gz"):
        data = gzip.decompress(data)
    return tarfile.open(fileobj=io.BytesIO(data))


def untar(path: Path) -> dict[str, bytes]:
    with opened_tar(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isreg()}  # type: ignore[union-attr]


def shown(store: Store, key: str) -> dict[str, bytes]:
    browser = Browser(store)
    return {line.name: b"".join(browser.read(f"{key}/{line.name}")) for line in browser.list(key)}


def put(root: Path, name: str, files: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = tar_of(files)
    if name.endswith("gz"):
        data = gzip.compress(data)
    elif name.endswith(".zst"):
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".tar.zst"])
def test_members_are_files_and_samples_are_the_librarys(tmp_path: Path, ending: str) -> None:
    path = put(tmp_path, f"train/shard-000{ending}", PLAIN)
    store = open_store(tmp_path)
    assert store.driver.name == "webdataset"
    assert store.keys() == ["train/shard-000"]
    assert shown(store, "train/shard-000") == {name.replace("/", "%2F"): data for name, data in PLAIN.items()}
    assert list(store.get("train/shard-000")) == library(path)
    assert store.get("train/shard-000")[0]["__key__"] == "cat"


member_names = st.lists(st.text("ab.A_é%", max_size=5), min_size=1, max_size=3).map("/".join) | st.sampled_from(
    ["__meta__", "__meta__/a.b", "__index__.json", ".hidden", "d/.x.jpg", "a.b/c", "a.b/c.d", "README", "x.", "x.JPG"]
)


@RELAXED
@given(st.lists(st.tuples(member_names, st.binary(max_size=5)), max_size=8))
def test_any_names_are_the_samples_that_the_library_has(
    tmp_path_factory: Any, members: list[tuple[str, bytes]]
) -> None:
    """Where members of a sample stand side by side and none stands twice, in which the two differ."""
    folder = tmp_path_factory.mktemp("any")
    usual = {name: data for name, data in sorted(members, key=lambda one: split(one[0])) if _is_usual(name)}
    if len({(split(name)[0], split(name)[1].lower()) for name in usual}) != len(usual):
        return
    path = put(folder, "k.tar", usual)
    store = open_store(folder)
    assert list(store.get("k")) == library(path)
    names = shown(store, "k")
    assert sorted(names.values()) == sorted(usual.values()), "each member is a file, also those it passes over"
    assert not any(name.startswith(".") or "/" in name for name in names)


def _is_usual(name: str) -> bool:
    parts = name.split("/")
    return bool(name) and name[0] != "/" and "" not in parts and not {".", ".."} & set(parts)


@settings(max_examples=500)
@given(st.text("ab./_\n", max_size=12))
def test_a_name_is_taken_apart_as_the_library_does_it(name: str) -> None:
    key, suffix = split(name)
    assert member_name(key, suffix) == name
    if not name.startswith("__"):
        expected = tariterators.base_plus_ext(name)
        assert (expected == (None, None) and suffix == "\0") or expected == (key, suffix)


@pytest.mark.timeout(20)
def test_regression_a_name_of_a_mebibyte_takes_no_quadratic_time(tmp_path: Path) -> None:
    for name in ("/a" * 250_000, "./" * 250_000 + "x", "a." * 250_000, "__" * 250_000, "a/" * 250_000 + ".x"):
        put(tmp_path, "k.tar", {name: b"1"})
        (shown_as,) = shown(open_store(tmp_path), "k")
        assert len(shown_as) <= config.NAME_MAX


def test_odd_members(tmp_path: Path) -> None:
    put(
        tmp_path,
        "k.tar",
        {
            "./a.jpg": b"1",
            "./a.JPG": b"2",
            "README": b"3",
            "x.": b"4",
            "a~b.txt~": b"5",
            "t.tmp": b"6",
            "n\udcffn.bin": b"7",
            "__meta__/info.json": b"8",
            ".hidden": b"9",
            "p%.a b": b"10",
        },
    )
    store = open_store(tmp_path)
    assert shown(store, "k") == {
        "a.jpg": b"1",
        "a.JPG": b"2",
        "README.%00": b"3",
        "x.": b"4",
        "a%7Eb.txt%7E": b"5",
        "t.%74mp": b"6",
        "n%ED%B3%BFn.bin": b"7",
        "__meta__%2Finfo%2Ejson.%00": b"8",
        "%2Ehidden.%00": b"9",
        "p%25.a b": b"10",
    }
    got = list(store.get("k"))
    assert got[0] == {"__key__": "./a", "jpg": b"1", "JPG": b"2"}, "in lower case the two would be one"
    assert [sample["__key__"] for sample in got[1:]] == ["x", "a~b", "t", "n\udcffn", "p%"]


def test_members_of_a_sample_need_not_stand_side_by_side(tmp_path: Path) -> None:
    put(tmp_path, "k.tar", {"a.jpg": b"1", "b.jpg": b"2", "a.cls": b"3", "b.cls": b"4"})
    store = open_store(tmp_path)
    assert list(shown(store, "k")) == ["a.jpg", "a.cls", "b.jpg", "b.cls"]
    assert list(store.get("k")) == [
        {"__key__": "a", "jpg": b"1", "cls": b"3"},
        {"__key__": "b", "jpg": b"2", "cls": b"4"},
    ]


def test_a_member_that_stands_twice_is_shown_once_and_noted(tmp_path: Path) -> None:
    put(tmp_path, "k.tar", [("a.txt", b"old"), ("b.txt", b""), ("./a.txt", b"new")])
    store = open_store(tmp_path)
    assert shown(store, "k") == {"a.txt": b"new", "b.txt": b""}
    assert Browser(store).info("k")["problems"] == ["./a.txt stands twice: the last one is shown"]


def test_a_tar_without_a_file_is_an_empty_key(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    subprocess.run(["tar", "cf", tmp_path / "links.tar", "link.txt"], cwd=tmp_path, check=True)
    (tmp_path / "zero.tar").write_bytes(b"")
    put(tmp_path, "empty.tar", {})
    store = open_store(tmp_path)
    for key in ("links", "zero", "empty"):
        assert (shown(store, key), list(store.get(key))) == ({}, [])
    assert Browser(store).info("links")["problems"] == ["link.txt is a symbolic link: not shown"]


def test_very_long_names_are_cut_and_still_different(tmp_path: Path) -> None:
    written = {f"{'k' * 200}{at}.{'s' * 300}{at}.jpg": str(at).encode() for at in range(3)}
    path = put(tmp_path, "k.tar", written)
    store = open_store(tmp_path)
    found = shown(store, "k")
    assert len(found) == 3
    assert all(len(name) <= config.NAME_MAX and name.endswith(".jpg") for name in found)
    assert list(found.values()) == list(written.values())
    assert list(store.get("k")) == library(path)


def test_a_damaged_tar_is_an_error_and_the_others_live(tmp_path: Path) -> None:
    path = put(tmp_path, "bad.tar", PLAIN)
    put(tmp_path, "good.tar", PLAIN)
    path.write_bytes(path.read_bytes()[: 1024 + 100])
    store = open_store(tmp_path)
    with pytest.raises(DamagedShardError, match="'bad' is damaged at byte 1024: the tar is cut off in"):
        store.get("bad")
    assert len(store.get("good")) == 3


def test_a_tar_is_read_by_headers_and_then_file_by_file(tmp_path: Path) -> None:
    put(tmp_path, "k.tar", {f"{at:03d}.bin": os.urandom(400_000) for at in range(20)})
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    entry = driver.entry(Key("k"))
    assert driver.estimate(entry) == 0
    before = _bytes_read()
    shard = driver.load(entry, quiet)
    assert isinstance(shard, TarInPlace)
    table = table_building.build(shard, "png")
    assert _bytes_read() - before < 500_000
    assert (shard.held, table.raw_bytes) == (20 * (config.TAR_MEMBER + 7), entry.stored_bytes), (
        "what was walked is counted"
    )
    assert (table.samples, table.files) == (20, 20)
    reader = driver.open(entry, table.raw_bytes)
    assert isinstance(reader, TarInPlace)
    assert reader.held == 0
    prefix, offset, length = table.slice_of(7) or (b"", 0, 0)
    before = _bytes_read()
    assert (prefix, len(reader.fetch(offset, offset + length))) == (b"", 400_000)
    assert _bytes_read() - before < 500_000


def _bytes_read() -> int:
    """What this process has asked the kernel for so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_tar_replaced_meanwhile_is_stale(tmp_path: Path) -> None:
    put(tmp_path, "k.tar", PLAIN)
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    entry = driver.entry(Key("k"))
    shard = driver.load(entry, quiet)
    put(tmp_path, "k.tar", {"a.txt": b"other"})
    with pytest.raises(StaleShardError):
        shard.sample(next(shard.records()).tree)
    with pytest.raises(StaleShardError):
        driver.load(entry, quiet)
    (tmp_path / "k.tar").unlink()
    with pytest.raises(StaleShardError):
        driver.open(driver.entries()[0] if driver.entries() else entry, entry.stored_bytes)


def test_a_large_zstd_tar_of_frames_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LARGE_LOAD", 1 << 20)
    written = [{"__key__": f"{at:03d}", "bin": os.urandom(200_000)} for at in range(20)]
    store = open_store(tmp_path, "webdataset", compression="zst")
    store.set(written, "k")
    entry = store.entry("k")
    shard = store.driver.load(entry, quiet)
    assert isinstance(shard, TarShard)
    table = table_building.build(shard, "png")
    reader = store.driver.open(entry, table.raw_bytes)
    assert isinstance(reader, FramedTar)
    _, offset, length = table.slice_of(3) or (b"", 0, 0)
    assert bytes(reader.fetch(offset, offset + length)) == written[3]["bin"]
    assert reader.held < 2_000_000
    assert store.driver.open(entry, table.raw_bytes + 1) is None
    assert library(tmp_path / "k.tar.zst") == written


def test_a_shard_that_nobody_uses_is_free_at_once(tmp_path: Path) -> None:
    """Not when the garbage is collected: the budget counts on it."""
    put(tmp_path, "a.tar", PLAIN)
    put(tmp_path, "b.tar.gz", PLAIN)
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    for key in "ab":
        shard = driver.load(driver.entry(Key(key)), quiet)
        table_building.build(shard, "png")
        gone = weakref.ref(shard)
        del shard
        assert gone() is None


def test_one_key_in_several_compressions(tmp_path: Path) -> None:
    for name in ("k.tgz", "k.tar", "k.tar.gz", ".tar", "other.tar"):
        put(tmp_path, name, {f"{name[:3]}.txt": name.encode()})
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    assert [entry.key for entry in driver.entries()] == ["k", "other"]
    assert len(driver.problems) == 3
    assert driver.entry(Key("k")).stored_bytes == (tmp_path / "k.tar").stat().st_size


# --- which tars -----------------------------------------------------------------------------------------------------


def test_stores_are_recognised(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tgz", "c.tar.gz", "d.tar.zst"):
        put(tmp_path / name[0], name, PLAIN)
        assert detect(tmp_path / name[0]) == "webdataset"


def test_braces_name_exactly_these_tars_in_their_order(tmp_path: Path) -> None:
    for at in range(4):
        put(tmp_path, f"train/shard-{at:03d}.tar", {"a.txt": str(at).encode()})
    store = open_store(f"{tmp_path}/train/shard-{{002..001}}.tar")
    assert store.keys() == ["shard-002", "shard-001"]
    assert [line.name for line in Browser(store).list()] == ["shard-002", "shard-001"]
    assert shown(store, "shard-001") == {"a.txt": b"1"}
    with pytest.raises(MissingKeyError, match="among the tars that were named"):
        store.get("shard-000")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    both = open_store(f"{tmp_path}/{{val,train}}/shard-{{000,003}}.tar")
    assert both.keys() == ["val/shard-000", "val/shard-003", "train/shard-000", "train/shard-003"]
    assert shown(both, "train/shard-003") == {"a.txt": b"3"}
    with pytest.raises(NotWritableError):
        store.set([{"a": b""}], "shard-001")
    one = open_store(tmp_path / "train/shard-003.tar")
    assert (one.keys(), shown(one, "shard-003")) == (["shard-003"], {"a.txt": b"3"})


def test_a_missing_tar_is_named(tmp_path: Path) -> None:
    put(tmp_path, "s-00.tar", PLAIN)
    with pytest.raises(BadStoreError, match=r"s-01\.tar: there is no such tar$"):
        open_store(tmp_path / "s-{00..03}.tar")
    with pytest.raises(BadSettingError, match="neither a range"):
        open_store(tmp_path / "s-{00}.tar")
    with pytest.raises(BadSettingError, match="does not read"):
        open_store(tmp_path / "s-{00..03}.tar", "squirrel")


@pytest.mark.parametrize("text", ["a", "a-{0..3}", "{00..12}x{3..1}", "{a,b}{08..11}", "{1..3}.tar", "x{a,b,c}y"])
def test_braces_are_those_of_the_braceexpand_package(text: str) -> None:
    assert patterns.expand(text) == list(webdataset.shardlists.expand_urls(text))


def test_braces_have_a_limit() -> None:
    for text in ("{0..99999999}", "{0..9999}{0..9999}", "{0..999999999999999999999}", "{a}", "{}"):
        with pytest.raises(BadSettingError):
            patterns.expand(text)


# --- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "gz", "zst"])
def test_what_is_set_is_read_equal_by_the_library_and_by_tar(tmp_path: Path, compression: str) -> None:
    store = open_store(tmp_path, "webdataset", compression=compression)
    written: list[dict[str, Any]] = [
        {"__key__": "cat", "jpg": JPEG, "json": b'{"a": 1}', "seg.png": b"x" * 1000},
        {"__key__": "sub/dog", "jpg": b"", "cls": b"3"},
        {"__key__": "k" * 200, "txt": "größe".encode()},
    ]
    store.set(written, "train/a")
    (path,) = (tmp_path / "train").iterdir()
    assert path.name == "a" + {"none": ".tar", "gz": ".tar.gz", "zst": ".tar.zst"}[compression]
    assert library(path) == written == list(store.get("train/a"))
    listed = subprocess.run(["tar", "tf", path], check=True, capture_output=True, text=True).stdout.split()
    assert listed == ["cat.jpg", "cat.json", "cat.seg.png", "sub/dog.jpg", "sub/dog.cls", f"{'k' * 200}.txt"]
    first = path.read_bytes()
    store.set(written, "train/a")
    assert path.read_bytes() == first, "nothing of when and by whom is in it"


def test_a_key_that_is_set_again_has_one_file(tmp_path: Path) -> None:
    put(tmp_path, "k.tgz", PLAIN)
    open_store(tmp_path, "webdataset", compression="zst").set([{"a": b"1"}], "k")
    assert [path.name for path in tmp_path.iterdir()] == ["k.tar.zst"]
    assert library(tmp_path / "k.tar.zst") == [{"__key__": "000000", "a": b"1"}]


def test_values_that_the_librarys_writer_takes(tmp_path: Path) -> None:
    sample = {"__key__": "a", "txt": "größe", "cls": 5, "json": {"b": [1, None]}, "npy": np.arange(3), "__url__": "x"}
    open_store(tmp_path, "webdataset").set([sample], "k")
    (read,) = map(autodecode.Decoder([]), library(tmp_path / "k.tar"))
    assert (read["txt"], read["cls"], read["json"]) == ("größe", 5, {"b": [1, None]})
    assert read["npy"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"__key__": "a"}, "no field"),
        ({"__key__": "a.b", "txt": b""}, "would not be read again"),
        ({"__key__": "", "txt": b""}, "would not be read again"),
        ({"__key__": "a", "": b""}, "would not be read again"),
        ({"__key__": "a", "x/y": b""}, "would not be read again"),
        ({"__key__": "__meta__", "txt": b""}, None),
        ({"__key__": "__meta__/a", "txt": b""}, "would not be read again"),
        ({"__key__": "a", "jpg": 5}, "must be bytes, not int"),
        ({"__key__": "a", "npy": np.array([{}])}, "must be bytes"),
        ({"__key__": "a", "json": {"x": {1, 2}}}, "cannot be written as JSON"),
        ({"__key__": 5, "txt": b""}, "must be text"),
        ([1], "is a dict"),
        ({"__key__": "a\ud800", "txt": b""}, "cannot be called"),
    ],
)
def test_what_no_tar_of_samples_can_hold(tmp_path: Path, sample: Any, reason: str | None) -> None:
    store = open_store(tmp_path, "webdataset")
    if reason is None:
        store.set([sample], "k")
        assert list(store.get("k")) == [sample]
        return
    with pytest.raises(BadSettingError, match=reason):
        store.set([sample], "k")
    assert store.keys() == []
    assert list(tmp_path.iterdir()) == []


def test_two_samples_of_one_name_are_refused(tmp_path: Path) -> None:
    for other in ({"__key__": "a", "txt": b""}, {"__key__": "a", "jpg": b""}, {"__key__": "./a", "jpg": b""}):
        with pytest.raises(BadSettingError, match="would stand there twice"):
            open_store(tmp_path, "webdataset").set([{"__key__": "a", "txt": b""}, other], "k")


def test_a_key_is_new_or_the_version_that_was_changed(tmp_path: Path) -> None:
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    records = [Value({"__key__": "a", "txt": b"1"}, "a")]
    entry = driver.write_records(Key("k"), records, base=None)
    assert driver.entries() == [entry]
    with pytest.raises(KeyExistsError):
        driver.write_records(Key("k"), records, base=None)
    driver.write(Key("k"), [{"__key__": "b", "txt": b"2"}])
    with pytest.raises(StaleShardError):
        driver.write_records(Key("k"), records, base=entry)
    driver.remove(Key("k"))
    with pytest.raises(StaleShardError):
        driver.write_records(Key("k"), records, base=entry)
    assert list(tmp_path.iterdir()) == []
    for key in ("", "a//b", "..", ".shardfs-tmp-x", "x" * 250):
        with pytest.raises(BadSettingError):
            driver.write_records(Key(key), records, base=None)


def test_settle_knows_what_the_store_has(tmp_path: Path) -> None:
    driver = WebDatasetDriver(LocalStorage(tmp_path), compression="gz")
    noted: list[str] = []
    entry = driver.write_records(Key("d/k"), [Value({"a": b"1"}, "0")], base=None, note=noted.append)
    assert driver.settle(Key("d/k"), noted[-1]) == entry
    assert driver.settle(Key("d/k"), noted[0]) is None
    assert driver.settle(Key("d/k"), noted[-1].replace('"mark": "', '"mark": "0')) is None
    temporary = json.loads(noted[0])["temporary"]
    (tmp_path / "d" / temporary).write_bytes(b"half")
    (tmp_path / "d/k.tar.gz").unlink()
    assert driver.settle(Key("d/k"), noted[-1]) is None
    assert list((tmp_path / "d").iterdir()) == []


# --- sealing --------------------------------------------------------------------------------------------------------


def laid_out(driver: WebDatasetDriver, entry: Entry) -> tuple[Base, list[tuple[bytes, Source]]]:
    shard = driver.load(entry, quiet)
    table = table_building.build(shard, "png")
    files = [(name, Stored(table.sample_of(at), at)) for name, _, at in table.listing(0)]
    return Base(shard, table, "png"), list(files)


def new(**files: bytes) -> list[tuple[bytes, Source]]:
    return [(name.encode(), Changed(lambda data=data: data, len(data))) for name, data in files.items()]  # type: ignore[misc]


def sealed(driver: WebDatasetDriver, files: list[tuple[bytes, Source]], base: Base | None, entry: Entry | None) -> Path:
    assert isinstance(driver, KeepsFiles)
    records = seal(files, base, as_files=True).records()
    written = driver.write_records(Key("k"), records, base=entry)
    return Path(driver.storage.root / driver.objects(written)[0][0])


def test_a_folder_becomes_a_tar_of_just_these_files(tmp_path: Path) -> None:
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    folder = {
        "b.json": b"[1, not json",
        "b.jpg": b"no jpeg",
        "a.npy": b"",
        "a.cls": b"x",
        ".hidden": b"",
        "a.jpg.tmp": b"",
    }
    path = sealed(driver, new(**folder), None, None)
    assert untar(path) == {"a.npy": b"", "a.cls": b"x", "b.json": b"[1, not json", "b.jpg": b"no jpeg"}
    assert list(untar(path)) == ["a.npy", "a.cls", "b.json", "b.jpg"], "samples in order, and their files as given"


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".tar.zst"])
def test_what_did_not_change_keeps_its_headers(tmp_path: Path, ending: str) -> None:
    written = {f"./{name}": data for name, data in PLAIN.items()} | {"README": b"r", "long" * 60: b"l"}
    put(tmp_path, f"k{ending}", written)
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    entry = driver.entry(Key("k"))
    base, files = laid_out(driver, entry)
    assert isinstance(base.reader, KeptFiles)
    path = sealed(driver, files, base, entry)
    assert untar(path) == written
    entry = driver.entry(Key("k"))
    base, files = laid_out(driver, entry)
    kept = [file for file in files if file[0] not in (b"cat.json", b"dog.txt")]
    path = sealed(driver, [*kept, *new(**{"cat.json": b"{}", "cow.txt": b"moo"})], base, entry)
    with opened_tar(path) as tar:
        owners = {info.name: (info.uid, info.mtime) for info in tar}
    assert owners["./cat.jpg"] == (1000, 99)
    assert owners["./cat.json"] == owners["cow.txt"] == (0, 0)
    assert list(owners)[:4] == ["./cat.jpg", "./cat.json", "./cat.seg.png", "./cat.cls"], "each in its place"
    assert "./dog.txt" not in owners
    assert len(owners) == len(PLAIN) + 2


def test_scattered_members_stand_side_by_side_when_they_are_written(tmp_path: Path) -> None:
    path = put(tmp_path, "k.tar", {"a.jpg": b"1", "b.jpg": b"2", "a.cls": b"3", "b.cls": b"4"})
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    entry = driver.entry(Key("k"))
    base, files = laid_out(driver, entry)
    sealed(driver, files, base, entry)
    assert list(untar(path).items()) == [("a.jpg", b"1"), ("a.cls", b"3"), ("b.jpg", b"2"), ("b.cls", b"4")]


def test_a_file_moved_to_another_sample_takes_its_bytes_along(tmp_path: Path) -> None:
    put(tmp_path, "k.tar", PLAIN)
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    entry = driver.entry(Key("k"))
    base, files = laid_out(driver, entry)
    moved = [(b"dog.seg.png" if name == b"cat.seg.png" else name, source) for name, source in files]
    path = sealed(driver, moved, base, entry)
    assert untar(path)["dog.seg.png"] == b"pixels"
    assert "cat.seg.png" not in untar(path)


def test_a_tar_that_cannot_be_written_without_loss_is_not_changed(tmp_path: Path) -> None:
    put(tmp_path, "k.tar", [("a.txt", b"old"), ("a.txt", b"new")])
    before = (tmp_path / "k.tar").read_bytes()
    driver = WebDatasetDriver(LocalStorage(tmp_path))
    entry = driver.entry(Key("k"))
    base, files = laid_out(driver, entry)
    with pytest.raises(NotWritableError, match="stands twice"):
        sealed(driver, [*files, *new(**{"b.txt": b""})], base, entry)
    assert (tmp_path / "k.tar").read_bytes() == before


@RELAXED
@given(st.dictionaries(st.text("ab.%~/é", min_size=1, max_size=8), st.binary(max_size=4), min_size=1, max_size=6))
def test_files_that_were_written_are_shown_again_as_they_were_called(
    tmp_path_factory: Any, members: dict[str, bytes]
) -> None:
    """Whatever a tar's members are called: what the tree shows of it, written as a new key, is shown the same."""
    folder = tmp_path_factory.mktemp("again")
    usual = {name: data for name, data in members.items() if _is_usual(name)}
    put(folder, "old.tar", usual)
    store = open_store(folder)
    before = shown(store, "old")
    files = [file for file in new(**before) if file[0].rpartition(b".")[2]]
    if not files:
        return
    sealed(store.driver, files, None, None)  # type: ignore[arg-type]
    assert shown(store, "k") == {name: data for name, data in before.items() if name.rpartition(".")[2]}


@given(st.text("ab./", max_size=9), st.text("ab./", max_size=5))
def test_a_member_written_under_a_name_is_found_under_it(key: str, suffix: str) -> None:
    if faithful(key, suffix):
        data = b"".join(packed([Value({"__key__": key, suffix: b"x"}, "")]))
        found = samples(lambda start, end: memoryview(data)[start:end], len(data))
        (sample,) = found.by_name.values()
        assert (sample.key, list(sample.members)) == (key, [suffix])


# --- converting -----------------------------------------------------------------------------------------------------


def converted(source: Store, target: Path, driver: str, **options: Any) -> tuple[Any, Store]:
    made = open_store(target, driver, **options)
    return convert_all(source.driver, made.driver, jobs=2), made


def plain_samples() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {
            "label": at,
            "jpg": JPEG + bytes([at]),
            "mask": rng.integers(0, 255, (4, 5, 3), "u1"),
            "npy": rng.random((3, at + 1)).astype("f4"),
            "meta": {"tags": ["a"], "crop": b"inner"},
        }
        for at in range(5)
    ]


def compared(files: dict[str, bytes]) -> dict[str, Any]:
    return {name: json.loads(data) if name.endswith("json") else data for name, data in files.items()}


def test_squirrel_to_webdataset_is_a_copy_of_its_files_and_back(tmp_path: Path) -> None:
    squirrel = open_store(tmp_path / "squirrel", "squirrel")
    squirrel.set(plain_samples(), "deep/a")
    report, tars = converted(squirrel, tmp_path / "tars", "webdataset", compression="zst")
    assert (report.failed, report.samples) == ({}, 5)
    files = shown(squirrel, "deep/a")
    assert shown(tars, "deep/a") == files
    assert sorted(files)[:4] == ["000000.jpg", "000000.json", "000000.mask.png", "000000.meta.crop.bin"]
    assert [sample["__key__"] for sample in library(tmp_path / "tars/deep/a.tar.zst")] == [
        f"{at:06d}" for at in range(5)
    ]
    report, back = converted(tars, tmp_path / "back", "squirrel")
    assert (report.failed, report.samples) == ({}, 5)
    assert compared(shown(back, "deep/a")) == compared(files)


def test_webdataset_to_mds_and_back(tmp_path: Path) -> None:
    flat = [{name: value for name, value in sample.items() if name != "meta"} for sample in plain_samples()]
    squirrel = open_store(tmp_path / "squirrel", "squirrel")
    squirrel.set(flat, "a")
    squirrel.set(flat, "b")
    _, tars = converted(squirrel, tmp_path / "tars", "webdataset")
    report, mds = converted(tars, tmp_path / "mds", "streaming")
    assert report.failed == {}
    assert compared(shown(mds, "a")) == compared(shown(squirrel, "a"))
    report, again = converted(mds, tmp_path / "again", "webdataset")
    assert report.failed == {}
    assert shown(again, "b") == shown(mds, "b")
    report, third = converted(again, tmp_path / "third", "streaming")
    assert report.failed == {}
    assert compared(shown(third, "b")) == compared(shown(mds, "b")), "numbers that go on are numbers again"


def test_webdataset_to_squirrel_reads_files_as_a_seal_would(tmp_path: Path) -> None:
    put(tmp_path / "tars", "k.tar", PLAIN | {"README": b"r"})
    report, squirrel = converted(open_store(tmp_path / "tars"), tmp_path / "squirrel", "squirrel")
    assert report.failed == {}
    cat, dog, bird, _ = squirrel.get("k")
    assert cat == {"__key__": "cat", "jpg": JPEG + b"cat", "label": 3, "seg": b"pixels", "cls": 7}
    assert dog == {"__key__": "dog", "jpg": JPEG, "txt": "größe"}
    assert (bird["__key__"], bird["npy"].tolist()) == ("sub/bird", [0, 1, 2])
    assert report.changes == {("", "file without an extension", "left out"): 1}


def test_converting_is_copying(tmp_path: Path) -> None:
    files = {name: data for name, data in PLAIN.items() if name != "dog.txt"} | {"x.pkl": b"\x80\x04.", "x.id": b"5x"}
    put(tmp_path / "tars", "k.tar", files)
    tars = open_store(tmp_path / "tars")
    _, converted_to = converted(tars, tmp_path / "one", "squirrel")
    copied_to = open_store(tmp_path / "two", "squirrel")
    copied_to.driver.write_records(Key("k"), seal(new(**shown(tars, "k"))).records(), base=None)
    assert shown(converted_to, "k") == shown(copied_to, "k")


def test_a_file_that_does_not_parse_fails_its_key_by_name(tmp_path: Path) -> None:
    put(tmp_path / "tars", "k.tar", {"a.json": b"[1, 2]", "a.jpg": b""})
    report, _ = converted(open_store(tmp_path / "tars"), tmp_path / "squirrel", "squirrel")
    assert list(report.failed) == ["k"]
    assert report.failed["k"].startswith("a.json: ")


def test_tars_are_copied_member_by_member(tmp_path: Path) -> None:
    path = put(tmp_path / "tars", "k.tar", {f"./{name}": data for name, data in PLAIN.items()} | {"README": b"r"})
    report, again = converted(open_store(tmp_path / "tars"), tmp_path / "again", "webdataset", compression="gz")
    assert (report.failed, report.samples) == ({}, 4)
    assert untar(tmp_path / "again/k.tar.gz") == untar(path)
    with tarfile.open(tmp_path / "again/k.tar.gz") as tar:
        assert {info.mtime for info in tar} == {99}
    linked = io.BytesIO(tar_of({"a.txt": b"1"}))
    with tarfile.open(fileobj=linked, mode="a") as tar:
        link = tarfile.TarInfo("b.txt")
        link.type, link.linkname = tarfile.LNKTYPE, "a.txt"
        tar.addfile(link)
    (tmp_path / "tars/k.tar").write_bytes(linked.getvalue())
    _, third = converted(open_store(tmp_path / "tars"), tmp_path / "third", "webdataset")
    assert untar(tmp_path / "third/k.tar") == {"a.txt": b"1", "b.txt": b"1"}
    assert again.keys() == third.keys()


def test_names_with_dots_are_written_so_that_they_are_one_sample(tmp_path: Path) -> None:
    squirrel = open_store(tmp_path / "squirrel", "squirrel")
    squirrel.set(
        [{"__key__": "a.b", "bin": b"1"}, {"__key__": "a.c", "bin": b"2"}, {"__key__": "d/e", "bin": b"3"}], "k"
    )
    report, _ = converted(squirrel, tmp_path / "tars", "webdataset")
    assert report.failed == {}
    assert [one["__key__"] for one in library(tmp_path / "tars/k.tar")] == ["a%2Eb", "a%2Ec", "d/e"]


# --- the command line -----------------------------------------------------------------------------------------------


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from shardfs import cli

    for at in range(3):
        put(tmp_path, f"data/s-{at}.tar", PLAIN)
    assert cli.main(["ls", str(tmp_path / "data/s-{1..2}.tar")]) == 0
    assert capsys.readouterr().out == "s-1\ns-2\n"
    assert cli.main(["ls", str(tmp_path / "data/s-{2..4}.tar")]) != 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "s-3.tar: there is no such tar" in error
    assert cli.main(["cat", str(tmp_path / "data"), "s-0/cat.json"]) == 0
    assert capsys.readouterr().out == '{"label": 3}'
    source, target = str(tmp_path / "data/s-{0..1}.tar"), str(tmp_path / "out")
    assert cli.main(["convert", source, target, "--driver", "webdataset", "--compression", "zst:3"]) == 0
    assert sorted(path.name for path in Path(target).iterdir()) == ["s-0.tar.zst", "s-1.tar.zst"]
    assert cli.main(["convert", target, str(tmp_path / "sq"), "--driver", "squirrel"]) == 0
    assert cli.main(["index", str(tmp_path / "data")]) == 0
    assert cli.main(["index", str(tmp_path / "data"), "--check"]) == 0
    capsys.readouterr()
    assert cli.main(["index", str(tmp_path / "data/s-{0..1}.tar"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 0, "regression: rows of tars that were not named went"


def test_a_seal_that_never_came_to_the_rename_is_settled_without_the_store(tmp_path: Path) -> None:
    """It stayed open where the store was away or read-only by then, and could be neither changed nor discarded."""
    driver = WebDatasetDriver(LocalStorage(tmp_path / "store"))
    driver.write_records(Key("k"), [Value(Files("cat", (("jpg", b"x"),)), "cat")], base=None)
    (tmp_path / "store").rename(tmp_path / "away")
    assert driver.settle(Key("k"), json.dumps({"file": "k.tar", "temporary": temporary_name()})) is None
