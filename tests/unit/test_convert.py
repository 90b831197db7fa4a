"""One store into another: the same files in the same order through either tree, and runs that are interrupted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from shardfs import cli
from shardfs.browse import Browser
from shardfs.converting import Report, convert_all
from shardfs.drivers.mds import MdsShard
from shardfs.drivers.streaming import StreamingDriver
from shardfs.opening import open_store
from shardfs.store import Store

DATA = Path(__file__).parents[1] / "data"
JPEG, PNG = b"\xff\xd8\xff\xe0jpeg", b"\x89PNG\r\n\x1a\nno more"

Files = list[list[tuple[str, Any]]]


def shown(store: Store, key: str) -> Files:
    """What the tree has for each sample of a key, in order: its files by what stands behind the sample's name. A .json
    is compared by what it says."""
    browser = Browser(store)
    made: dict[str, list[tuple[str, Any]]] = {}
    for line in browser.list(key):
        stem, _, suffix = line.name.partition(".")
        data = b"".join(browser.read(f"{key}/{line.name}"))
        assert len(data) == line.size
        made.setdefault(stem, []).append((suffix, json.loads(data) if suffix == "json" else data))
    return [sorted(files, key=lambda file: file[0]) for files in made.values()]


def convert(source: Store, target: Path, driver: str, **options: Any) -> tuple[Report, Store]:
    how = {name: options.pop(name) for name in ("keys", "jobs", "keep_going", "progress") if name in options}
    made = open_store(target, driver, **options)
    return convert_all(source.driver, made.driver, **{"jobs": 2, **how}), made


def samples(number: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(number)
    return [
        {
            "label": at,
            "score": float(rng.random()),
            "name": f"sample {at} ✓",
            "meta": {"tags": ["a", "b"], "n": None},
            "image": JPEG + bytes([at]) * 50,
            "mask": rng.integers(0, 255, (4, 5, 3), "u1"),
            "feature": rng.random((3, at + 1)).astype("f4"),
        }
        for at in range(7 + number)
    ]


@pytest.fixture
def squirrel(tmp_path: Path) -> Store:
    store = open_store(tmp_path / "squirrel", "squirrel")
    for number, key in enumerate(("a", "deep/b", "deep/c")):
        store.set(samples(number), key)
    return store


# --- what comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "none", "zstd", "gz:1", "bz2", "br:3", "snappy"])
def test_squirrel_to_mds_and_back_shows_the_same_files(
    squirrel: Store, tmp_path: Path, compression: str | None
) -> None:
    report, mds = convert(squirrel, tmp_path / "mds", "streaming", compression=compression)
    assert (report.keys, report.converted, report.kept, report.failed) == (3, 3, 0, {})
    assert report.samples == 7 + 8 + 9
    assert mds.keys() == squirrel.keys()
    again, back = convert(mds, tmp_path / "back", "squirrel", compression="zst")
    assert again.failed == {}
    for key in squirrel:
        assert shown(squirrel, key) == shown(mds, key) == shown(back, key)
    assert report.stored_bytes == sum(mds.entry(key).stored_bytes for key in mds)


@pytest.mark.parametrize(
    "case", ["mds_jpeg_file_passthrough", "mds_none_hash_splits", "mds_zstd_hash_splits", "mds_pkl"]
)
def test_fixtures_of_mds_become_squirrel_and_mds_again(case: str, tmp_path: Path) -> None:
    source = open_store(DATA / "streaming" / case / "data")
    report, squirrel = convert(source, tmp_path / "squirrel", "squirrel")
    assert report.failed == {}
    assert sorted(source.keys()) == squirrel.keys()
    _, mds = convert(squirrel, tmp_path / "mds", "streaming")
    for key in source:
        expected = shown(source, key)
        if case == "mds_pkl":  # a pickle in msgpack is bytes
            expected = [[(name.replace(".pkl", ".bin"), data) for name, data in files] for files in expected]
        assert shown(squirrel, key) == expected
        assert shown(mds, key) == expected


@pytest.mark.parametrize("case", ["csv_none", "json_none", "tsv_zstd"])
def test_rows_of_text_become_mds_and_squirrel(case: str, tmp_path: Path) -> None:
    source = open_store(DATA / "streaming" / case / "data")
    for driver in ("streaming", "squirrel", "squirrel-jsonl"):
        report, target = convert(source, tmp_path / driver, driver)
        assert (report.failed, report.samples, report.changes) == ({}, 25, Counter())
        assert target.keys() == source.keys()
        if driver == "streaming":  # where samples are numbered through
            assert [shown(target, key) for key in target] == [shown(source, key) for key in source]
        else:
            assert [list(target.get(key)) for key in target] == [list(source.get(key)) for key in source]


def test_all_encodings_of_mds_with_decimals_as_texts(tmp_path: Path) -> None:
    source = open_store(DATA / "streaming/mds_all_encodings/data")
    report, target = convert(source, tmp_path / "squirrel", "squirrel", keep_going=True)
    assert report.failed == {}
    assert report.changes["s_decimal", "Decimal", "text"] == report.samples == 8
    for key in source:
        for ours, theirs in zip(target.get(key), source.get(key), strict=True):
            assert ours["s_decimal"] == str(theirs["s_decimal"])
            assert set(ours) == set(theirs)


def test_what_json_lines_cannot_hold_leaves_nothing_behind(tmp_path: Path) -> None:
    source = open_store(DATA / "streaming/mds_all_encodings/data")
    report, _ = convert(source, tmp_path / "lines", "squirrel-jsonl", keep_going=True)
    assert set(report.failed) == set(source.keys())
    assert all("sample 00000" in why and "c_bytes" in why and "bytes" in why for why in report.failed.values())
    assert not (tmp_path / "lines").exists() or not list((tmp_path / "lines").iterdir())


def test_large_ints_of_json_lines_are_texts_in_msgpack(tmp_path: Path) -> None:
    source = open_store(tmp_path / "s", "squirrel-jsonl")
    source.set([{"n": 1, "big": 1 << 70}, {"n": 2, "big": 5}], "k")
    report, target = convert(source, tmp_path / "t", "squirrel")
    assert (report.failed, dict(report.changes)) == ({}, {("big", "int of more than 64 bits", "text"): 1})
    assert list(target.get("k")) == [{"n": 1, "big": str(1 << 70)}, {"n": 2, "big": 5}]


@pytest.mark.parametrize("case", sorted(path.name for path in (DATA / "streaming").glob("mds_*")))
def test_mds_to_mds_keeps_columns_and_bytes(case: str, tmp_path: Path) -> None:
    source = open_store(DATA / "streaming" / case / "data")
    report, target = convert(source, tmp_path / "mds", "streaming", compression="zstd")
    assert (report.failed, report.changes) == ({}, Counter())
    assert source.keys() == target.keys()
    for key in source:
        one, other = (store.driver.load(store.entry(key), lambda _: None) for store in (source, target))
        assert isinstance(one, MdsShard)
        assert isinstance(other, MdsShard)
        assert one.columns == other.columns
        assert [bytes(one.raw[found.start : found.end]) for found in one.records()] == [
            bytes(other.raw[found.start : found.end]) for found in other.records()
        ]


@pytest.mark.parametrize("case", ["msgpack_basic", "msgpack_types", "msgpack_objarray", "jsonl_basic", "jsonl_types"])
def test_squirrel_to_squirrel_of_the_same_form_keeps_every_byte(case: str, tmp_path: Path) -> None:
    source = open_store(DATA / "squirrel" / case / "store")
    form = "squirrel-jsonl" if case.startswith("jsonl") else "squirrel"
    report, target = convert(source, tmp_path, form, compression="zst")
    assert (report.failed, report.changes) == ({}, Counter())
    for key in source:
        one, other = (store.driver.load(store.entry(key), lambda _: None) for store in (source, target))
        assert bytes(one.raw) == bytes(other.raw)
        assert shown(source, key) == shown(target, key)


def test_json_lines_to_msgpack_and_mds(tmp_path: Path) -> None:
    source = open_store(DATA / "squirrel/jsonl_basic/store")
    report, msgpacked = convert(source, tmp_path / "m", "squirrel")
    assert report.failed == {}
    for key in source:
        assert shown(source, key) == shown(msgpacked, key)
    rows = open_store(tmp_path / "rows", "squirrel-jsonl")
    rows.set([{"n": at, "x": [at, {"y": None}], "big": at << 70} for at in range(5)], "rows")
    report, mds = convert(rows, tmp_path / "mds", "streaming")
    assert report.failed == {}
    assert columns_of(mds, "rows") == {"big": "str_int", "n": "int", "x": "json"}
    assert shown(rows, "rows") == shown(mds, "rows")


def test_samples_keep_their_names(tmp_path: Path) -> None:
    source = open_store(tmp_path / "s", "squirrel")
    source.set([{"__key__": "zebra", "x": b"1"}, {"__key__": "ant", "x": b"2"}], "k")
    _, mds = convert(source, tmp_path / "m", "streaming")
    assert [line.name for line in Browser(mds).list("k")] == ["zebra.x.bin", "zebra.json", "ant.x.bin", "ant.json"]


@pytest.mark.parametrize("jobs", [1, 4])
def test_a_data_set_has_its_shards_in_the_order_of_the_keys(tmp_path: Path, jobs: int) -> None:
    source = open_store(tmp_path / "s", "squirrel", level=1)
    sizes = [3000, 1, 500, 2, 1, 900, 3, 4, 1]
    for number, size in enumerate(sizes):
        source.set([{"n": number, "at": at} for at in range(size)], f"k{number}")
    _, mds = convert(source, tmp_path / "m", "streaming", jobs=jobs)
    assert mds.keys() == [f"k{number}" for number in range(len(sizes))]
    assert [sample["n"] for key in mds for sample in mds.get(key)] == [
        number for number, size in enumerate(sizes) for _ in range(size)
    ]


# --- columns ------------------------------------------------------------------------------------------------------


def columns_of(store: Store, key: str) -> dict[str, str]:
    shard = store.driver.load(store.entry(key), lambda _: None)
    assert isinstance(shard, MdsShard)
    return dict(zip(shard.columns.names, shard.columns.encodings, strict=True))


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        ([1, 2], "int"),
        ([1, 2.5], "json"),
        ([1, None, "x"], "json"),
        ([True, False], "json"),
        ([0.5, 1.5], "float64"),
        (["a", ""], "str"),
        ([JPEG, JPEG], "jpeg"),
        ([JPEG, PNG], "bytes"),
        ([PNG, PNG], "png"),
        ([b"", JPEG], "bytes"),
        ([[JPEG], [], [JPEG, JPEG]], "list[jpeg]"),
        ([[], [1]], "json"),
        ([[]], "json"),
        ([{"a": [1, None]}, []], "json"),
        ([np.arange(3), np.ones((2, 2))], "ndarray"),
        ([np.float32(1.5), np.float32(2)], "float64"),
    ],
    ids=str,
)
def test_a_column_holds_all_values_of_its_field(values: list[Any], encoding: str, tmp_path: Path) -> None:
    source = open_store(tmp_path / "s", "squirrel")
    source.set([{"f": value, "n": 1} for value in values], "k")
    report, mds = convert(source, tmp_path / "m", "streaming")
    assert report.failed == {}
    assert columns_of(mds, "k") == {"f": encoding, "n": "int"}
    assert shown(source, "k") == shown(mds, "k")


def test_columns_stay_what_they_are_from_shard_to_shard_where_they_can(tmp_path: Path) -> None:
    source = open_store(tmp_path / "s", "squirrel")
    for key, values in {"a": [JPEG, PNG], "b": [JPEG], "c": [JPEG]}.items():
        source.set([{"image": value, "n": None if key == "a" else 5} for value in values], key)
    _, mds = convert(source, tmp_path / "m", "streaming")
    assert {key: columns_of(mds, key) for key in mds} == {key: {"image": "bytes", "n": "json"} for key in "abc"}
    source.set([{"image": "a text", "n": 5}], "d")
    convert(source, tmp_path / "m", "streaming")
    assert columns_of(mds, "d") == {"image": "str", "n": "json"}


# --- what is told -------------------------------------------------------------------------------------------------


def test_what_the_target_has_no_word_for_is_counted_by_field(tmp_path: Path) -> None:
    source = open_store(tmp_path / "s", "squirrel")
    rows = [{"label": np.int64(at), "box": [at, 2], "x": at, "big": np.arange(3, dtype=">i4")} for at in range(4)]
    source.set(rows, "k")
    source.set(rows[:1], "l")
    report, mds = convert(source, tmp_path / "m", "streaming")
    assert dict(report.changes) == {
        ("label", "numpy int64", "int"): 5,
        ("box", "tuple", "list"): 5,
        ("big", "array of >i4", "array of <i4"): 5,
    }
    assert [sample["label"] for sample in mds.get("k")] == [0, 1, 2, 3]
    report, _ = convert(source, tmp_path / "j", "squirrel-jsonl")
    assert ("box", "tuple", "list") in report.changes
    report, _ = convert(mds, tmp_path / "back", "squirrel")
    assert dict(report.changes) == {("box", "list", "tuple"): 5}


def test_pictures_and_pickles_are_told(tmp_path: Path) -> None:
    case = open_store(DATA / "streaming/mds_pkl/data")
    report, _ = convert(case, tmp_path / "s", "squirrel")
    assert ("pickle", "bytes") in {(was, becomes) for _, was, becomes in report.changes}
    source = open_store(tmp_path / "pil", "streaming")
    source.set([{"picture": PIL.Image.new("L", (3, 2), 7)}], "k")
    report, squirrel = convert(source, tmp_path / "t", "squirrel")
    assert dict(report.changes) == {("picture", "pixels of mode L", "bytes of a picture's file"): 1}
    assert shown(source, "k") == shown(squirrel, "k")


@pytest.mark.parametrize(
    ("driver", "rows", "why"),
    [
        ("streaming", [{"a": 1}, {"a": 1, "b": 2}], "sample 000000 has no b"),
        ("streaming", [{"a": 1}, {"a": b"x"}], "field a is int in sample 000000 and bytes in sample 000001"),
        ("streaming", [{"a": 3 - 4j}], "sample 000000: field a is a complex"),
        ("streaming", [{"a": np.zeros((0, 2))}], r"sample 000000: column a is ndarray: .*\(0, 2\)"),
        ("streaming", [{"a": [np.arange(3)]}], "sample 000000: column a is json"),
        ("streaming", ["lone"], "sample 000000"),
        ("streaming", [], "no samples"),
        ("squirrel-jsonl", [{"ok": 1}, {"n": 1, "data": b"x"}], "sample 000001 .*field 'data'.* bytes"),
    ],
    ids=str,
)
def test_a_key_that_cannot_be_converted_is_told_with_sample_field_and_reason(
    driver: str, rows: list[Any], why: str, tmp_path: Path
) -> None:
    source = open_store(tmp_path / "s", "squirrel")
    for key, samples in {"a": [{"n": 1}], "b": rows, "c": [{"n": 2}]}.items():
        source.set(samples, key)
    report, target = convert(source, tmp_path / "t", driver, jobs=1)
    assert list(report.failed) == ["b"]
    assert re.search(why, report.failed["b"])
    assert "c" not in target or report.converted == 2
    report, target = convert(source, tmp_path / "t", driver, keep_going=True)
    assert (list(report.failed), sorted(target.keys())) == (["b"], ["a", "c"])
    assert leftovers(tmp_path / "t") == []


def leftovers(root: Path) -> list[str]:
    """Files that no key accounts for."""
    names = {path.name for path in root.rglob("*") if path.is_file()}
    keys = {
        key.rpartition("/")[2] for key in open_store(root, "squirrel" if "index.json" not in names else "streaming")
    }
    return sorted(name for name in names if name != "index.json" and name.split(".")[0] not in keys)


def test_a_damaged_key_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    source = open_store(DATA / "squirrel/msgpack_damaged/store")
    report, target = convert(source, tmp_path, "squirrel", compression="zst", keep_going=True)
    assert "ok" in target
    assert "bad_crc" in report.failed
    assert not any(key in target for key in report.failed)
    assert report.converted == len(target)
    assert report.converted + len(report.failed) == report.keys


# --- interrupted runs ---------------------------------------------------------------------------------------------


def test_what_the_target_has_is_not_written_again(squirrel: Store, tmp_path: Path) -> None:
    for driver in ("streaming", "squirrel"):
        report, target = convert(squirrel, tmp_path / f"to {driver}", driver, keys="deep/*")
        assert (report.keys, report.converted) == (2, 2)
        before = {entry.key: entry.version for entry in target.driver.entries()}
        report, target = convert(squirrel, tmp_path / f"to {driver}", driver)
        assert (report.keys, report.converted, report.kept) == (3, 1, 2)
        now = {entry.key: entry for entry in target.driver.entries()}
        assert sorted(now) == ["a", "deep/b", "deep/c"]
        if driver == "squirrel":
            assert all(now[key].version == version for key, version in before.items())


def test_a_shard_that_was_written_and_is_in_no_index_is_no_hindrance(squirrel: Store, tmp_path: Path) -> None:
    """Killed between the rename of a shard and that of the index, a run could not go on: the file's name was taken."""
    target = tmp_path / "mds"
    target.mkdir()
    (target / "a.mds").write_bytes(b"what an earlier run left")
    report, mds = convert(squirrel, target, "streaming")
    assert report.failed == {}
    assert shown(mds, "a") == shown(squirrel, "a")
    assert (target / "a.mds").read_bytes() == b"what an earlier run left"


def test_an_error_stops_the_others_and_leaves_whole_keys_only(tmp_path: Path) -> None:
    source = open_store(tmp_path / "s", "squirrel", level=1)
    for number in range(8):
        source.set([{"n": at} for at in range(2_000)], f"k{number}")
    (tmp_path / "s" / "k1.gz").write_bytes(b"damaged")
    for driver in ("squirrel", "streaming"):
        report, target = convert(source, tmp_path / driver, driver, jobs=3)
        assert list(report.failed) == ["k1"]
        assert report.converted == len(target.keys()) < 7
        assert leftovers(tmp_path / driver) == []
        assert all(len(target.get(key)) == 2_000 for key in target)


def run(*words: str | Path, **settings: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "shardfs", "convert", *map(str, words)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    )


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "this did not come true in time"
        threading.Event().wait(0.01)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("driver", ["squirrel", "streaming"])
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, how: int, driver: str) -> None:
    source, target = open_store(tmp_path / "s", "squirrel", level=1), tmp_path / "t"
    for number in range(30):
        source.set([{"n": number, "text": f"{at} " * 500} for at in range(300)], f"k{number:02d}")
    process = run(tmp_path / "s", target, "--driver", driver, "--jobs", "2")
    wait_for(lambda: (target / "k02.gz").exists() or (target / "k02.mds").exists() or process.poll() is not None)
    process.send_signal(how)
    process.communicate(timeout=60)
    if process.returncode != 0:  # else it was done already
        assert process.returncode == (130 if how == signal.SIGINT else -9)
    stopped = open_store(target, driver)
    done = stopped.keys()
    assert all(len(stopped.get(key)) == 300 for key in done)
    if how == signal.SIGINT:
        assert not list(target.glob(".shardfs-tmp-*"))
    again = run(tmp_path / "s", target, "--driver", driver, "--json")
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert json.loads(out)["kept"] == len(done)
    assert open_store(target).keys() == source.keys()
    for key in ("k00", "k15", "k29"):
        assert shown(open_store(target), key) == shown(source, key)


# --- the command --------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    status = cli.main(["convert", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_says_what_it_did(squirrel: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "squirrel", tmp_path / "mds"
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.rglob("*.gz")}
    status, out, err = command(capsys, source, target, "--driver", "streaming", "--compression", "zst:5", "--json")
    facts = json.loads(out)
    assert status == 0
    assert (facts["keys"], facts["converted"], facts["kept"], facts["samples"]) == (3, 3, 0, 24)
    assert (facts["driver"], facts["failed"]) == ("streaming", {})
    assert {"field": "meta", "was": "tuple", "is": "list", "samples": 24} in facts["changed"]
    lines = err.splitlines()
    assert lines[0] == "shardfs: what the target has no word for, and what it has become:"
    assert lines[1].split() == ["FIELD", "WAS", "IS", "SAMPLES"]
    assert ["meta", "tuple", "list", "24"] in [line.split() for line in lines]
    index = json.loads((target / "index.json").read_bytes())
    assert {shard["compression"] for shard in index["shards"]} == {"zstd:5"}
    status, out, err = command(capsys, source, target)
    assert (status, err) == (0, "")
    assert out.splitlines()[3:6] == ["keys         3", "converted    0", "kept         3"]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in source.rglob("*.gz")} == before


def test_a_failure_is_told_and_the_exit_status_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_store(tmp_path / "s", "squirrel")
    source.set([{"a": 1j}], "bad")
    source.set([{"a": 1}], "good")
    status, _, err = command(capsys, tmp_path / "s", tmp_path / "t", "--driver", "streaming", "--jobs", "1")
    assert status == 1
    assert err.splitlines()[0] == (
        "shardfs: bad: sample 000000: field a is a complex, which no column of an MDS shard holds"
    )
    assert "1 keys were not tried" in err
    status, out, _ = command(capsys, tmp_path / "s", tmp_path / "t", "--driver", "streaming", "--keep-going", "--json")
    assert (status, json.loads(out)["converted"], list(json.loads(out)["failed"])) == (1, 1, ["bad"])


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["{s}", "{s}"], 2, "one is the other"),
        (["{s}", "{s}/inside"], 2, "lies in it"),
        (["{s}", "{t}"], 2, "--driver"),
        (["{s}", "{t}", "--driver", "nothing"], 2, "no driver 'nothing'"),
        (["{s}", "{t}", "--driver", "squirrel", "--compression", "none"], 2, "gz or zst"),
        (["{s}", "{t}", "--driver", "squirrel", "--compression", "lz4"], 2, "lz4"),
        (["{s}", "{t}", "--driver", "streaming", "--format", "parquet"], 2, "use mds, json, csv, tsv, or xsv with"),
        (["{s}", "{t}", "--driver", "streaming", "--format", "xsv:"], 2, "xsv with its separator: xsv:||"),
        (["{s}", "{t}", "--driver", "squirrel", "--format", "csv"], 2, "squirrel has msgpack and jsonl"),
        (["{s}", "{t}", "--driver", "webdataset", "--format", "tar"], 2, "webdataset has no formats to choose from"),
        (["{s}", "{t}", "--driver", "squirrel", "--jobs", "0"], 2, "--jobs 0"),
        (["{s}", "{t}", "--driver", "squirrel", "--keys", "x*"], 2, "x*"),
        (["{s}", "{m}", "--driver", "squirrel"], 3, "is a streaming store already"),
        (["{t}", "{m}"], 3, "no store"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], status: int, text: str, squirrel: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(DATA / "streaming/mds_pkl/data", tmp_path / "m")
    places = {"s": tmp_path / "squirrel", "t": tmp_path / "t", "m": tmp_path / "m"}
    found, out, err = command(capsys, *(word.format(**places) for word in words))
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert text in err


def test_a_store_of_json_lines_gets_more_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_store(tmp_path / "s", "squirrel")
    source.set([{"a": 1}], "new")
    open_store(tmp_path / "t", "squirrel-jsonl").set([{"a": 0}], "old")
    assert command(capsys, tmp_path / "s", tmp_path / "t")[0] == 0
    assert open_store(tmp_path / "t", "squirrel-jsonl").get("new")[0] == {"a": 1}


def test_squirrels_formats_are_chosen_by_that_option_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_store(tmp_path / "s", "squirrel").set([{"a": 1}], "k")
    words = (tmp_path / "s", tmp_path / "t", "--driver", "squirrel", "--format", "jsonl")
    assert command(capsys, *words)[0] == 0
    assert open_store(tmp_path / "t", "squirrel-jsonl").get("k")[0] == {"a": 1}


# --- rows of Streaming --------------------------------------------------------------------------------------------

FITTING = [{"n": at, "x": at / 3 if at % 2 else at, "t": f"té {at} {chr(34)}", "big": 10**20 + at} for at in range(6)]


@pytest.mark.parametrize("form", ["json", "csv", "tsv", "xsv:||"])
def test_what_fits_becomes_rows_and_comes_back_equal(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_store(tmp_path / "s", "squirrel-jsonl")
    source.set(FITTING[:2], "train/a")
    open_store(tmp_path / "t", "streaming", format=form, compression="gz").set([{"n": 1}], "train/before")
    source.set(FITTING, "train/b")
    how = ("--driver", "streaming", "--format", form, "--compression", "zst:3")
    status, _, err = command(capsys, tmp_path / "s", tmp_path / "t", *how)
    assert (status, err.count("\n")) == (0, 3), err
    assert "x      int  float  4" in err
    target = open_store(tmp_path / "t")
    assert list(target.get("train/a")) == FITTING[:2]
    assert list(target.get("train/b")) == FITTING
    shards = json.loads((tmp_path / "t/train/index.json").read_bytes())["shards"]
    assert [(shard["format"], shard["compression"]) for shard in shards] == [
        *((form.partition(":")[0], codec) for codec in ("gz", "zstd:3", "zstd:3"))
    ]
    if form == "csv":  # a format of its own for each run, in one data set
        open_store(tmp_path / "s2", "squirrel-jsonl").set(FITTING, "train/c")
        assert command(capsys, tmp_path / "s2", tmp_path / "t", "--format", "json")[0] == 0
        assert list(open_store(tmp_path / "t").get("train/c")) == FITTING


def test_all_that_rows_cannot_hold_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = open_store(tmp_path / "s", "squirrel")
    odd = {"image": JPEG, "tags": ["a"], "yes": True, "none": None, "t": "a,b", "line": "a\nb", "n,m": 1, "kind": "x"}
    source.set([{**odd, "n": 1, "lost": 1}, {**odd, "n": 2, "kind": 1}], "a")
    source.set([{"n": 1}], "b")
    how = ("--driver", "streaming", "--format", "csv", "--keep-going")
    status, _, err = command(capsys, tmp_path / "s", tmp_path / "t", *how)
    assert status == 1
    (line,) = err.splitlines()
    for text in (
        "shardfs: a: sample 000000: field 'image' is a bytes, and columns of csv are text, int or float; ",
        "field 'tags' is a list,",
        "field 'yes' is a bool,",
        "field 'none' is a NoneType,",
        "field 't' has a separator or a newline in 'a,b', for which csv has no escape",
        "field 'line' has a separator",
        "field 'n,m' has a separator or a newline in its name",
        "field 'kind' is int and str, which no column holds",
        "field 'lost' is missing in 1 samples",
    ):
        assert text in line
    assert open_store(tmp_path / "t").keys() == ["b"]


def test_a_first_shard_of_xsv_needs_a_separator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_store(tmp_path / "s", "squirrel").set([{"n": 1}], "a")
    how = ("--driver", "streaming", "--format")
    status, _, err = command(capsys, tmp_path / "s", tmp_path / "t", *how, "xsv")
    assert (status, "needs a separator" in err) == (1, True)
    assert command(capsys, tmp_path / "s", tmp_path / "t", *how, "xsv: : ")[0] == 0
    open_store(tmp_path / "s", "squirrel").set([{"n": 2}], "b")
    assert command(capsys, tmp_path / "s", tmp_path / "t", *how, "xsv")[0] == 0  # as the one before
    assert [sample["n"] for key in ("a", "b") for sample in open_store(tmp_path / "t").get(key)] == [1, 2]


# --- data sets of Streaming, by Store.set -------------------------------------------------------------------------


def test_store_set_makes_a_data_set_and_replaces_keys_in_it(tmp_path: Path) -> None:
    store = open_store(tmp_path, "streaming", compression="zstd")
    assert "a" not in store
    store.set([{"n": 1}, {"n": 2}], "a")
    key = store.set([{"n": 3}])
    assert store.keys() == ["a", key]
    store.set([{"n": 5}, {"n": 6}], "a")
    assert [sample["n"] for each in open_store(tmp_path) for sample in store.get(each)] == [5, 6, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["a.mds.zstd", "a.r2.mds.zstd", f"{key}.mds.zstd", "index.json"]
    )
    with pytest.raises(PermissionError, match="other numbers"):
        store.set([{"n": 7}], "a")
    with pytest.raises(ValueError, match="column n is int"):
        store.set([{"n": "text"}], key)
    with pytest.raises(PermissionError, match="other numbers"):
        store.delete("a")
    assert [sample["n"] for sample in store.get("a")] == [5, 6]


def test_a_data_set_whose_index_is_broken_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text("{")
    store = open_store(tmp_path, "streaming")
    assert not StreamingDriver.is_new(store.driver)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"index\.json"):
        store.set([{"n": 1}], "a")
    assert (tmp_path / "index.json").read_text() == "{"
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
