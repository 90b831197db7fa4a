"""JSON, CSV, TSV and XSV shards of MosaicML Streaming: what is shown of hand-made ones, what is damage, what is
written. The library's own are in test_streaming.py and in the tree suite."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import cramjam
import numpy as np
import pytest
import xxhash
import zstandard

from shardfs import config, layout, table_building
from shardfs.drivers import hashes, text_rows, text_writing
from shardfs.drivers.base import NewRecord, Value, Verbatim
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    KeyExistsError,
    OverfullShardError,
    RenumberingError,
    ShardfsError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Key
from shardfs.opening import open_store
from shardfs.storage.local import LocalStorage

DATA = Path(__file__).parent.parent / "data" / "streaming"
TEXT_CASES = ["csv_none", "json_none", "tsv_zstd"]
PACK: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "zstd": zstandard.ZstdCompressor().compress,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "br": brotli.compress,
    "snappy": lambda data: bytes(cramjam.snappy.compress_raw(data)),
}
SEPARATORS = {"csv": ",", "tsv": "\t", "xsv": "||"}


def quiet(_: int) -> None:
    """Nobody asks how much is held."""


def opened(root: Path, **options: Any) -> StreamingDriver:
    return StreamingDriver(LocalStorage(root), **options)


def samples_of(driver: StreamingDriver, key: str = "shard.00000") -> list[Any]:
    shard = driver.load(driver.entry(Key(key)), quiet)
    return [shard.sample(record.tree) for record in shard.records()]


def info(root: Path, name: str, data: bytes, algos: tuple[str, ...]) -> dict[str, Any]:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(data)
    digests = {algo: getattr(xxhash if algo[0] == "x" else hashlib, algo)(data).hexdigest() for algo in algos}
    return {"basename": name, "bytes": len(data), "hashes": digests}


def put(
    root: Path,
    kind: str,
    rows: list[bytes],
    columns: dict[str, str],
    compression: str | None = None,
    algos: tuple[str, ...] = (),
    stem: str = "shard.00000",
    **changes: Any,
) -> dict[str, Any]:
    """Write the files of one shard of these rows, raw ones only if it is not compressed; what an index says of it."""
    record: dict[str, Any] = {
        "version": 2,
        "format": kind,
        "compression": compression,
        "hashes": list(algos),
        "size_limit": None,
        "samples": len(rows),
        "newline": "\n",
        "zip_data": None,
        "zip_meta": None,
    }
    header = b""
    if kind == "json":
        record["columns"] = columns
    else:
        record |= {"column_names": list(columns), "column_encodings": list(columns.values())}
        separator = changes.get("separator", SEPARATORS[kind])
        if kind == "xsv":
            record["separator"] = separator
        header = (separator.join(columns) + changes.get("newline", "\n")).encode()
    offsets = [len(header)]
    for row in rows:
        offsets.append(offsets[-1] + len(row))
    config = json.dumps(record, sort_keys=True).encode()
    meta = struct.pack(f"<I{len(offsets)}I", len(rows), *offsets) + config
    for part, data in (("data", header + b"".join(rows)), ("meta", meta)):
        name = f"{stem}.{kind}" + (".meta" if part == "meta" else "")
        record[f"raw_{part}"] = info(root, name, data, algos)
        if compression is not None:
            (root / name).unlink()
            codec = compression.partition(":")[0]
            record[f"zip_{part}"] = info(root, f"{name}.{codec}", PACK[codec](data), algos)
    return {**record, **changes}


def put_index(root: Path, *records: dict[str, Any]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "index.json").write_text(json.dumps({"version": 2, "shards": records}))


def one(root: Path, kind: str, rows: list[bytes], columns: dict[str, str], *how: Any, **changes: Any) -> dict[str, Any]:
    record = put(root, kind, rows, columns, *how, **changes)
    put_index(root, record)
    return record


COLUMNS = {"n": "int", "t": "str", "x": "float"}
CELLS = (("1", "a", "0.5"), ("2", "é", "1.5"))
ROWS = {
    "json": [b'{"n": 1, "t": "a", "x": 0.5}\n', '{"n": 2, "t": "é", "x": 1.5}\n'.encode()],
    **{kind: [sep.join(row).encode() + b"\n" for row in CELLS] for kind, sep in SEPARATORS.items()},
}
SAMPLES = [{"n": 1, "t": "a", "x": 0.5}, {"n": 2, "t": "é", "x": 1.5}]


# --- what is shown ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [*PACK, "zstd:9", "br:1"])
@pytest.mark.parametrize("kind", text_rows.FORMATS)
def test_each_format_and_compression_is_read(tmp_path: Path, kind: str, compression: str | None) -> None:
    one(tmp_path, kind, ROWS[kind], COLUMNS, compression)
    driver = opened(tmp_path)
    assert [entry.key for entry in driver.entries()] == ["shard.00000"]
    assert driver.problems == []
    assert samples_of(driver) == SAMPLES
    table = table_building.build(driver.load(driver.entry(Key("shard.00000")), quiet), "png")
    assert [(table.name(at), table.notes) for at in range(table.files)] == [(b"000000.json", ()), (b"000001.json", ())]


@pytest.mark.parametrize("kind", text_rows.FORMATS)
def test_empty_shards_and_empty_sets(tmp_path: Path, kind: str) -> None:
    one(tmp_path / "shard", kind, [], COLUMNS)
    assert samples_of(opened(tmp_path / "shard")) == []
    put_index(tmp_path / "set")
    driver = opened(tmp_path / "set")
    assert (driver.entries(), driver.problems) == ([], [])


def test_json_rows_are_whatever_json_gives(tmp_path: Path) -> None:
    values: list[Any] = [
        {"nested": {"a": [1, {"b": None}]}, "t": True},
        {"n": float("inf"), "big": 10**30},
        [1, 2],
        "lone",
        None,
        {},
        {"a/b": 1, "": 2, "$x": 3, "k": {"$y": 4}},
    ]
    rows = [json.dumps(value).encode() + b"\n" for value in values]
    rows += [b'  {"spaced" : 1}  \r\n', b'{"no": "newline"}', b'{"twice": 1, "twice": 2}\n']
    one(tmp_path, "json", rows, {"n": "int"})
    driver = opened(tmp_path)
    expected = [*values, {"spaced": 1}, {"no": "newline"}, {"twice": 2}]
    assert samples_of(driver) == expected
    shard = driver.load(driver.entry(Key("shard.00000")), quiet)
    table = table_building.build(shard, "png")
    read = [layout.read_back({"json": table.render(at, shard, "png")}) for at in range(table.files)]
    assert read == expected


def test_newlines_inside_rows_are_none_of_their_ends(tmp_path: Path) -> None:
    one(tmp_path, "json", [b'{"t":\n"a"}\n', b'\n{"t": "b"}\n'], {"t": "str"})
    assert samples_of(opened(tmp_path)) == [{"t": "a"}, {"t": "b"}]


@pytest.mark.parametrize(("separator", "newline"), [("|", "\n"), ("||", "\r\n"), (" ; ", "<br>"), ("é", "✓")])
def test_separators_and_newlines_may_be_any_text(tmp_path: Path, separator: str, newline: str) -> None:
    rows = [separator.join(row).encode() + newline.encode() for row in (("1", "a b", "0.5"), ("2", "", "nan"))]
    one(tmp_path, "xsv", rows, COLUMNS, separator=separator, newline=newline)
    found = samples_of(opened(tmp_path))
    assert found[0] == {"n": 1, "t": "a b", "x": 0.5}
    assert repr(found[1]) == repr({"n": 2, "t": "", "x": float("nan")})


@pytest.mark.parametrize("kind", ["csv", "tsv", "xsv"])
def test_a_cell_that_is_no_number_is_shown_as_its_bytes(tmp_path: Path, kind: str) -> None:
    cells = [("é", "one", "0.5", "1"), ("x", "2", "half", "?")]
    rows = [SEPARATORS[kind].join(row).encode() + b"\n" for row in cells]
    one(tmp_path, kind, rows, {"a": "str", "n": "int", "x": "float", "z": "date"})
    driver = opened(tmp_path)
    assert samples_of(driver) == [
        {"a": "é", "n": b"one", "x": 0.5, "z": b"1"},
        {"a": "x", "n": 2, "x": b"half", "z": b"?"},
    ]
    shard = driver.load(driver.entry(Key("shard.00000")), quiet)
    table = table_building.build(shard, "png")
    assert [note.file for note in table.notes] == ["000000.n.bin", "000000.z.bin", "000001.x.bin", "000001.z.bin"]
    assert "an encoding that is not known" in table.notes[1].reason
    at = table.find(b"000001.x.bin")
    assert at is not None
    cut = table.slice_of(at)
    assert cut is not None
    assert bytes(shard.raw[cut[1] : cut[1] + cut[2]]) == b"half"


def test_odd_column_names(tmp_path: Path) -> None:
    names = ["", " ", "$x", "..", "a/b", "é", "~", "json"]
    rows = [",".join(f"{row}{at}" for at in range(len(names))).encode() + b"\n" for row in "ab"]
    one(tmp_path, "csv", rows, dict.fromkeys(names, "str"))
    driver = opened(tmp_path)
    assert samples_of(driver)[1] == {name: f"b{at}" for at, name in enumerate(names)}
    shard = driver.load(driver.entry(Key("shard.00000")), quiet)
    table = table_building.build(shard, "png+text")
    files: dict[str, bytes] = {}
    for at in range(table.files):
        if table.name(at).startswith(b"000001."):
            files[table.suffix(at).decode()] = table.render(at, shard, "png+text")
    assert layout.read_back(files) == samples_of(driver)[1]


def test_a_column_of_names_names_the_samples(tmp_path: Path) -> None:
    one(tmp_path, "tsv", [b"cat.1\t1\n", b"dog/2\t2\n"], {"__key__": "str", "n": "int"})
    driver = opened(tmp_path)
    table = table_building.build(driver.load(driver.entry(Key("shard.00000")), quiet), "png")
    assert [table.name(at) for at in range(table.files)] == [b"cat%2E1.json", b"dog%2F2.json"]


def test_several_formats_in_one_index_and_the_same_name_twice(tmp_path: Path) -> None:
    records = [
        put(tmp_path, kind, ROWS[kind], COLUMNS, codec) for kind, codec in zip(text_rows.FORMATS, PACK, strict=False)
    ]
    put_index(tmp_path, *records)
    driver = opened(tmp_path)
    entries = driver.entries()
    assert [entry.key for entry in entries] == ["shard.00000", *(f"shard.00000-{at}" for at in (2, 3, 4))]
    assert [samples_of(driver, entry.key) for entry in entries] == [SAMPLES] * 4
    assert [driver.load(entry, quiet).first_sample for entry in entries] == [0, 2, 4, 6]


def test_a_merged_index_names_files_in_its_directories(tmp_path: Path) -> None:
    merged = []
    for part in ("00", "01"):
        record = one(tmp_path / part, "json", ROWS["json"], COLUMNS, "zstd")
        for name in ("raw_data", "raw_meta", "zip_data", "zip_meta"):
            record[name] = {**record[name], "basename": f"{part}/{record[name]['basename']}"}
        merged.append(record)
    put_index(tmp_path, *merged)
    driver = opened(tmp_path)
    assert [entry.key for entry in driver.entries()] == ["00/shard.00000", "01/shard.00000"]
    assert samples_of(driver, "01/shard.00000") == SAMPLES


# --- which files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["raw", "zip", "both", "raw data, zip meta", "zip data, raw meta"])
def test_each_file_is_read_raw_if_it_can_be(tmp_path: Path, kept: str) -> None:
    """A raw file that the library has put beside a compressed one, or that is all there is of it."""
    put(tmp_path, "csv", ROWS["csv"], COLUMNS)  # the raw ones
    one(tmp_path / "z", "csv", ROWS["csv"], COLUMNS, "gz")
    for file in (tmp_path / "z").iterdir():
        file.rename(tmp_path / file.name)
    put(tmp_path, "csv", ROWS["csv"], COLUMNS)
    raw, meta = tmp_path / "shard.00000.csv", tmp_path / "shard.00000.csv.meta"
    record = json.loads((tmp_path / "index.json").read_bytes())["shards"][0]
    meta.write_bytes(gzip.decompress((tmp_path / "shard.00000.csv.meta.gz").read_bytes()))
    assert (raw.stat().st_size, meta.stat().st_size) == (record["raw_data"]["bytes"], record["raw_meta"]["bytes"])
    gone = {
        "raw": ["shard.00000.csv.gz", "shard.00000.csv.meta.gz"],
        "zip": ["shard.00000.csv", "shard.00000.csv.meta"],
        "both": [],
        "raw data, zip meta": ["shard.00000.csv.gz", "shard.00000.csv.meta"],
        "zip data, raw meta": ["shard.00000.csv", "shard.00000.csv.meta.gz"],
    }[kept]
    for name in gone:
        (tmp_path / name).unlink()
    driver = opened(tmp_path)
    assert samples_of(driver) == SAMPLES
    entry = driver.entry(Key("shard.00000"))
    in_place = driver.open(entry, record["raw_data"]["bytes"])
    assert (in_place is None) == ("shard.00000.csv" in gone)


def test_a_raw_file_of_another_size_is_passed_over(tmp_path: Path) -> None:
    one(tmp_path, "json", ROWS["json"], COLUMNS, "zstd")
    for name in ("shard.00000.json", "shard.00000.json.meta"):
        (tmp_path / name).write_bytes(b"half of it")
    assert samples_of(opened(tmp_path)) == SAMPLES


@pytest.mark.parametrize("part", ["", ".meta"])
def test_a_shard_that_lacks_a_file_is_listed_and_eio(tmp_path: Path, part: str) -> None:
    one(tmp_path, "json", ROWS["json"], COLUMNS)
    driver = opened(tmp_path)
    (tmp_path / f"shard.00000.json{part}").unlink()
    (entry,) = driver.entries()
    with pytest.raises(StorageError, match=rf"neither shard.00000.json{part} nor a compressed form") as caught:
        driver.load(entry, quiet)
    assert caught.value.errno == errno.EIO


def test_positions_that_were_replaced_are_another_version(tmp_path: Path) -> None:
    one(tmp_path, "json", ROWS["json"], COLUMNS)
    driver = opened(tmp_path)
    entry = driver.entry(Key("shard.00000"))
    mark = driver.mark(entry)
    meta = tmp_path / "shard.00000.json.meta"
    data = meta.read_bytes()
    meta.unlink()
    meta.write_bytes(data)
    assert driver.entry(entry.key).version != entry.version
    assert driver.mark(driver.entry(entry.key)) == mark
    with pytest.raises(StaleShardError):
        driver.load(entry, quiet)
    meta.write_bytes(data[:-1] + b" ")
    assert driver.mark(driver.entry(entry.key)) != mark


def test_raw_rows_are_read_where_they_lie(tmp_path: Path) -> None:
    for kind in text_rows.FORMATS:
        one(tmp_path / kind, kind, ROWS[kind], COLUMNS)
        driver = opened(tmp_path / kind)
        entry = driver.entry(Key("shard.00000"))
        table = table_building.build(driver.load(entry, quiet), "png")
        reader = driver.open(entry, table.raw_bytes)
        assert reader is not None
        assert reader.held == 0
        assert [json.loads(table.render(at, reader, "png")) for at in range(2)] == SAMPLES


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hashes.HASHES)
@pytest.mark.parametrize("part", ["", ".meta"])
@pytest.mark.parametrize("compression", [None, "gz"])
def test_a_flipped_byte_in_either_file_is_found_by_each_hash(
    tmp_path: Path, name: str, part: str, compression: str | None
) -> None:
    one(tmp_path, "json", ROWS["json"], COLUMNS, compression, (name,))
    assert samples_of(opened(tmp_path, validate_hash=name)) == SAMPLES
    path = tmp_path / f"shard.00000.json{part}{'.gz' if compression else ''}"
    data = bytearray(path.read_bytes())
    data[4 if compression else 15] ^= 1  # of gzip the time, which no other check covers
    path.write_bytes(data)
    for driver in (opened(tmp_path), opened(tmp_path, validate_hash=name)):
        with pytest.raises(DamagedShardError, match=f"{name} hash"):
            samples_of(driver)


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("part", ["", ".meta"])
@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_damaged(tmp_path: Path, compression: str | None, part: str, change: int) -> None:
    one(tmp_path, "csv", ROWS["csv"], COLUMNS, compression)
    path = tmp_path / f"shard.00000.csv{part}{'.' + compression if compression else ''}"
    path.write_bytes((path.read_bytes() + b"x")[: path.stat().st_size + change])
    with pytest.raises(DamagedShardError, match="its index says"):
        samples_of(opened(tmp_path))


def meta_of(count: int, *offsets: int) -> bytes:
    return struct.pack(f"<I{len(offsets)}I", count, *offsets)


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        (b"", "too few"),
        (meta_of(2, 0, 29), "too few for the positions"),
        (meta_of(3, 0, 29, 59, 59), "3 samples in the file of positions where the index has 2"),
        (meta_of(2, 0, 29, 57), "the last row ends at 57"),
        (meta_of(2, 0, 60, 59), "row 1 ends before it begins"),
        (meta_of(2, 1, 29, 59), "1 bytes before the first row"),
        (meta_of(2, 0, 27, 59), "no JSON"),
        (meta_of(2, 0, 0, 59), "no JSON"),
    ],
)
def test_positions_that_are_not_sound(tmp_path: Path, meta: bytes, reason: str) -> None:
    record = put(tmp_path, "json", ROWS["json"], COLUMNS)
    assert record["raw_data"]["bytes"] == 59
    put_index(tmp_path, {**record, "raw_meta": info(tmp_path, "shard.00000.json.meta", meta, ())})
    with pytest.raises(DamagedShardError, match=reason) as caught:
        samples_of(opened(tmp_path))
    assert caught.value.key == ("shard.00000" if reason != "no JSON" else None)  # a row's is told by who walks them


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("json", b'{"n": 1', "no JSON"),
        ("json", b"\xff\n", "no JSON"),
        ("json", b'{"a": 1} {"b": 2}\n', "no JSON"),
        ("json", b"[" * 100 + b"]" * 100 + b"\n", "nested deeper"),
        ("json", b"[" * 100_000 + b"]" * 100_000 + b"\n", "no JSON"),
        ("csv", b"1,a\n", "2 cells where there are 3"),
        ("csv", b"1,a,0.5,4\n", "4 cells where there are 3"),
        ("csv", b"1,a,0.5", "without its newline"),
        ("csv", b"", "without its newline"),
        ("csv", b"1,\xff,0.5\n", "no UTF-8"),
        ("tsv", b"1\ta,0.5\n", "2 cells where there are 3"),
    ],
)
def test_a_row_that_is_none_makes_the_shard_damaged(tmp_path: Path, kind: str, row: bytes, reason: str) -> None:
    one(tmp_path, kind, [ROWS[kind][0], row], COLUMNS)
    with pytest.raises(DamagedShardError, match=reason) as caught:
        samples_of(opened(tmp_path))
    offset = caught.value.offset
    assert offset is not None
    assert offset >= len(ROWS[kind][0])


def test_a_header_of_other_columns_is_damage_and_none_at_all_is_not(tmp_path: Path) -> None:
    record = put(tmp_path, "csv", ROWS["csv"], COLUMNS)
    data = b"".join(ROWS["csv"])
    ends = [len(ROWS["csv"][0]), len(data)]
    for head, good in ((b"", True), (b"t,n,x\n", False), (b"n,t\n", False)):
        changed = {
            "raw_data": info(tmp_path, "shard.00000.csv", head + data, ()),
            "raw_meta": info(tmp_path, "m", meta_of(2, *(len(head) + at for at in (0, *ends))), ()),
        }
        put_index(tmp_path, {**record, **changed})
        if good:
            assert samples_of(opened(tmp_path)) == SAMPLES
        else:
            with pytest.raises(DamagedShardError, match="not its columns' names"):
                samples_of(opened(tmp_path))


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        ("json", [b""] * 30_000),
        ("json", [b"[" + b"[]," * 30_000 + b"0]\n"]),
        ("json", [b"[" + b"0," * 30_000 + b"0]\n"]),
        ("json", [b"[" * 60 + b"]" * 60 + b"\n"] * 3_000),
        ("json", [b'"' + b"x" * 3_000_000 + b'"\n']),
        ("csv", [b""] * 30_000),
    ],
)
def test_shards_that_hold_too_much_for_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rows: list[bytes]
) -> None:
    monkeypatch.setattr(config, "TOKEN_FLOOR", 1000)
    one(tmp_path, kind, rows, COLUMNS, "zstd")
    with pytest.raises(OverfullShardError):
        samples_of(opened(tmp_path))


def test_long_names_count_for_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "TOKEN_FLOOR", 1000)
    rows = [b"0\n"] * 5000
    one(tmp_path / "short", "csv", rows, {"a" * 200: "int"}, "gz")
    assert len(samples_of(opened(tmp_path / "short"))) == 5000
    one(tmp_path / "long", "csv", rows, {"a" * 9000: "int"}, "gz")
    with pytest.raises(OverfullShardError):
        samples_of(opened(tmp_path / "long"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"columns": None}, "columns is missing"),
        ({"columns": {"a": 1}}, "no text"),
        ({"newline": 1}, "newline is 1"),
        ({"raw_meta": None}, "raw_meta is missing"),
        ({"raw_meta": {"basename": "../x", "bytes": 1, "hashes": {}}}, "no name inside"),
        ({"compression": "zstd"}, "zip_data is missing"),
        ({"zip_meta": {"basename": "x", "bytes": 1, "hashes": {}}}, "zip_meta is"),
        ({"format": "csv"}, "column_names is missing"),
        ({"format": "csv", "column_names": ["a", "a"], "column_encodings": ["str"] * 2}, "two columns of one name"),
        ({"format": "csv", "column_names": ["a"], "column_encodings": []}, "different lengths"),
        ({"format": "csv", "column_names": ["a"], "column_encodings": ["str"], "newline": ""}, "nothing behind"),
        ({"format": "xsv", "column_names": ["a"], "column_encodings": ["str"]}, "separator is missing"),
        ({"format": "xsv", "column_names": [], "column_encodings": [], "separator": ""}, "nothing between"),
        ({"format": "parquet"}, "unknown format"),
    ],
)
def test_a_doubtful_index_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    record = put(tmp_path, "json", ROWS["json"], COLUMNS)
    put_index(tmp_path, {**record, **change})
    with pytest.raises(BadStoreError, match=reason):
        opened(tmp_path).entries()


def test_a_table_decodes_each_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, columns in (("plain", {"n": "int"}), ("named", {"__key__": "str", "n": "int"})):
        rows = [
            json.dumps({"__key__": f"k{at}", "n": at} if name == "named" else {"n": at}).encode() + b"\n"
            for at in range(50)
        ]
        one(tmp_path / name, "json", rows, columns)
        driver = opened(tmp_path / name)
        shard = driver.load(driver.entry(Key("shard.00000")), quiet)
        count = 0

        def counted(raw: Any, at: int, length: int, parse: Any = text_rows.parse_json) -> Any:
            nonlocal count
            count += 1
            return parse(raw, at, length)

        with monkeypatch.context() as patch:
            patch.setattr(text_rows, "parse_json", counted)
            table = table_building.build(shard, "png")
        assert (table.samples, count) == (50, 50)


# --- writing ------------------------------------------------------------------------------------------------------


def some(*numbers: int) -> list[NewRecord]:
    return [Value({"n": at, "t": f"text {at} é", "x": at / 4}, f"{at:06d}") for at in numbers]


def ns(driver: StreamingDriver) -> list[int]:
    return [sample["n"] for entry in driver.entries() for sample in samples_of(driver, entry.key)]


@pytest.mark.parametrize("case", TEXT_CASES)
def test_the_librarys_own_shards_come_out_byte_for_byte(case: str, tmp_path: Path) -> None:
    """Every file, from nothing but the samples; a data set that is new has no size limit in its settings."""
    theirs = DATA / case / "data"
    described = json.loads((theirs / "index.json").read_bytes())["shards"]
    kind = described[0]["format"]
    driver = opened(tmp_path, format=kind, compression=described[0]["compression"], size_limit=512)
    samples = [sample for entry in opened(theirs).entries() for sample in samples_of(opened(theirs), entry.key)]
    driver.write(Key("shard.00000"), samples)
    made = json.loads((tmp_path / "index.json").read_bytes())["shards"]
    assert [shard["samples"] for shard in made] == [shard["samples"] for shard in described]
    for mine, his in zip(made, described, strict=True):
        name = his["raw_data"]["basename"]
        one, other = ((root / name) for root in (tmp_path, theirs))
        if his["compression"] is None:
            assert one.read_bytes() == other.read_bytes()
            assert mine["raw_data"] == his["raw_data"]
            meta = (tmp_path / f"{name}.meta").read_bytes().replace(b'"size_limit": null', b'"size_limit": 512')
            assert meta == (theirs / f"{name}.meta").read_bytes()
        else:
            unpack = zstandard.ZstdDecompressor().decompressobj
            assert unpack().decompress(one.with_name(f"{name}.zstd").read_bytes()) == unpack().decompress(
                other.with_name(f"{name}.zstd").read_bytes()
            )
        assert set(mine) == set(his)


@pytest.mark.parametrize("case", TEXT_CASES)
def test_a_new_key_follows_the_last_shard(case: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / case / "data", tmp_path, dirs_exist_ok=True)
    store = open_store(tmp_path)
    last = list(store.get(store.keys()[-1]))
    assert store.set(last, "shard.00009") == "shard.00009"
    assert list(store.get("shard.00009")) == last
    described = json.loads((tmp_path / "index.json").read_bytes())["shards"]
    own = [{name: value for name, value in shard.items() if name[:3] not in ("raw", "zip")} for shard in described]
    assert own[-1] == own[-2]
    kind = case.partition("_")[0]
    assert {path.name for path in tmp_path.glob("shard.00009*")} == {
        f"shard.00009.{kind}{part}{'.zstd' if 'zstd' in case else ''}" for part in ("", ".meta")
    }
    with pytest.raises(KeyExistsError):
        store.driver.write_records(Key("shard.00009"), some(1), base=None)


@pytest.mark.parametrize("compression", ["none", "zstd:7", "gz:1", "bz2", "br:4", "snappy"])
@pytest.mark.parametrize("kind", ["json", "csv", "tsv"])
def test_a_data_set_from_nothing(kind: str, compression: str, tmp_path: Path) -> None:
    driver = opened(tmp_path, format=kind, compression=compression)
    driver.write_records(Key("train/shard.00000"), some(0, 1), base=None)
    driver = opened(tmp_path)  # from here on as the shard before
    driver.write_records(Key("train/shard.00001"), some(2), base=None)
    assert ns(driver) == [0, 1, 2]
    assert [driver.load(entry, quiet).first_sample for entry in driver.entries()] == [0, 2]
    codec = compression.partition(":")[0]
    ending = "" if codec == "none" else f".{codec}"
    assert {path.name for path in (tmp_path / "train").iterdir()} == {
        "index.json",
        *(f"shard.0000{at}.{kind}{part}{ending}" for at in range(2) for part in ("", ".meta")),
    }


def test_xsv_is_written_with_the_separator_that_is_there(tmp_path: Path) -> None:
    one(tmp_path, "xsv", ROWS["xsv"], COLUMNS, "gz", ("md5", "xxh64"), separator="||")
    driver = opened(tmp_path)
    driver.write(Key("b"), [{"n": 7, "t": "a|b, \t", "x": 2}])
    assert samples_of(opened(tmp_path, validate_hash="md5"), "b") == [{"n": 7, "t": "a|b, \t", "x": 2.0}]
    assert gzip.decompress((tmp_path / "b.xsv.gz").read_bytes()) == b"n||t||x\n7||a|b, \t||2.0\n"


def test_a_changed_shard_gets_new_files_and_the_old_ones_stay(tmp_path: Path) -> None:
    driver = opened(tmp_path, format="json")
    for at in range(3):
        driver.write_records(Key(f"shard.{at:05d}"), some(2 * at, 2 * at + 1), base=None)
    before = {path: path.read_bytes() for path in tmp_path.glob("shard*")}
    entry = driver.entry(Key("shard.00001"))
    shard = driver.load(entry, quiet)
    kept = [Verbatim(shard.raw[record.start : record.end]) for record in shard.records()]
    now = driver.write_records(entry.key, [*some(77), kept[1]], base=entry)
    assert now.version != entry.version
    assert ns(driver) == [0, 1, 77, 3, 4, 5]
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in tmp_path.glob("*r2*")} == {"shard.00001.r2.json", "shard.00001.r2.json.meta"}
    with pytest.raises(RenumberingError):
        driver.write_records(entry.key, some(1), base=driver.entry(entry.key))
    with pytest.raises(StaleShardError):
        driver.write_records(entry.key, some(1, 2), base=entry)
    with pytest.raises(BadSettingError, match="no samples"):
        driver.write(Key("new"), [])


def test_size_limit_counts_rows_and_splits(tmp_path: Path) -> None:
    row = len(text_writing.row(text_rows.columns("json", ("n",), ("int",), None, "\n"), {"n": 1}, "0"))
    driver = opened(tmp_path, format="json", size_limit=3 * row)
    driver.write(Key("shard.00000"), [{"n": at} for at in range(8)])
    assert [entry.samples for entry in driver.entries()] == [3, 3, 2]
    assert [entry.key for entry in driver.entries()] == [f"shard.{at:05d}" for at in range(3)]
    assert ns(driver) == list(range(8))


@pytest.mark.parametrize(
    ("kind", "column", "value", "why"),
    [
        ("csv", "t", "a,b", "a separator or a newline"),
        ("csv", "t", "a\nb", "a separator or a newline"),
        ("tsv", "t", "a\tb", "a separator or a newline"),
        ("csv", "t", "\ud800", "surrogates not allowed"),
        ("csv", "t", 5, "int '5'"),
        ("csv", "n", "5", "str '5'"),
        ("csv", "n", 5.0, "float"),
        ("csv", "n", True, "bool"),
        ("json", "n", True, "bool"),
        ("json", "n", None, "NoneType"),
        ("json", "t", b"x", "bytes"),
        ("json", "x", "1.5", "str"),
        ("json", "x", 2**53 + 1, "no float"),
        ("json", "t", ["x"], "list"),
        ("json", "x", np.zeros(2), "ndarray"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, kind: str, column: str, value: Any, why: str) -> None:
    driver = opened(tmp_path, format=kind)
    driver.write(Key("a"), [{"n": 1, "t": "x", "x": 0.5}])
    files = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(BadSettingError, match=f"sample 1: column {column} is ") as caught:
        driver.write(Key("b"), [{"n": 1, "t": "x", "x": 0.5}, {"n": 1, "t": "x", "x": 0.5, column: value}])
    assert why in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == files, "what was refused leaves nothing behind"


@pytest.mark.parametrize("sample", [{}, {"n": 1}, {"n": 1, "t": "", "x": 0.0, "y": 1}, 5, [1]])
def test_fields_must_be_the_columns(sample: Any) -> None:
    with pytest.raises(BadSettingError, match="sample 000007"):
        text_writing.row(
            text_rows.columns("csv", ("n", "t", "x"), ("int", "str", "float"), None, "\n"), sample, "000007"
        )


def test_values_whose_end_would_be_read_as_a_separator_are_refused() -> None:
    made = text_rows.columns("xsv", ("a", "b"), ("str", "str"), "||", "\n")
    # read from the left: the separator is found where it is
    assert text_writing.row(made, {"a": "x", "b": "|y"}, "0") == b"x|||y\n"
    with pytest.raises(BadSettingError, match="ends as a separator begins"):
        text_writing.row(made, {"a": "x|", "b": "y"}, "0")


@pytest.mark.parametrize("sample", [{"a": b"x"}, {"a": None}, {"a": True}, {"a": [1]}, {}, 5, {1: 2}])
def test_columns_of_a_new_data_set_are_text_and_numbers(tmp_path: Path, sample: Any) -> None:
    with pytest.raises(BadSettingError, match="sample 0"):
        opened(tmp_path, format="csv").write(Key("a"), [sample])
    assert list(tmp_path.iterdir()) == []


def test_column_names_that_csv_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="separator or a newline in its name"):
        opened(tmp_path, format="csv").write(Key("a"), [{"a,b": 1}])
    opened(tmp_path, format="tsv").write(Key("a"), [{"a,b": np.int64(1), "f": np.float32(0.5)}])
    assert samples_of(opened(tmp_path), "a") == [{"a,b": 1, "f": 0.5}]


def test_newlines_that_json_does_not_take_are_not_written(tmp_path: Path) -> None:
    one(tmp_path, "json", [], {"n": "int"}, newline="<br>")
    with pytest.raises(BadSettingError, match="could not be read"):
        opened(tmp_path).write(Key("b"), [{"n": 1}])


def test_a_format_may_change_from_key_to_key(tmp_path: Path) -> None:
    for at, kind in enumerate(("mds", "csv", "json", "mds")):
        opened(tmp_path, format=kind).write(Key(f"shard.{at:05d}"), [{"n": at}])
    opened(tmp_path).write(Key("shard.00004"), [{"n": 4}])
    assert ns(opened(tmp_path)) == [0, 1, 2, 3, 4]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == sorted(
        [".json", ".mds", ".csv", ".meta", ".json", ".meta", ".mds", ".mds"]
    )


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "TOKEN_FLOOR", 100)
    driver = opened(tmp_path, format="csv", compression="zstd")
    with pytest.raises(BadSettingError, match="could not be read again"):
        driver.write(Key("a"), [{f"c{at:03d}": "" for at in range(200)}] * 5000)
    assert list(tmp_path.iterdir()) == []


def test_four_gigabytes_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MDS_SHARD", 1000)
    with pytest.raises(StorageError) as caught:
        opened(tmp_path, format="json").write(Key("a"), [{"n": at} for at in range(1000)])
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("published", [True, False])
def test_settling_a_write_of_two_files(tmp_path: Path, published: bool) -> None:
    """After the death of the process both files are there: with the index they are the key, without it they go."""
    driver = opened(tmp_path, format="json", compression="gz")
    driver.write(Key("a"), [{"n": 1}])
    notes: list[str] = []

    entry = driver.write_records(Key("b"), [Value({"n": 2}, "0")], base=None, note=notes.append)
    assert set(json.loads(notes[-1])["files"]) == {"b.json.gz", "b.json.meta.gz"}
    if published:
        assert opened(tmp_path).settle(Key("b"), notes[-1]) == entry
        return
    index_file = json.loads((tmp_path / "index.json").read_bytes())
    put_index(tmp_path, *index_file["shards"][:1])
    assert opened(tmp_path).settle(Key("b"), notes[-1]) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json.gz", "a.json.meta.gz", "index.json"]


def test_a_file_of_either_kind_is_in_the_way_of_a_new_key(tmp_path: Path) -> None:
    (tmp_path / "a.json.meta.br").write_bytes(b"left by somebody")
    opened(tmp_path, format="json").write(Key("a"), [{"n": 1}])
    assert (tmp_path / "a.r2.json").exists()
    assert ns(opened(tmp_path)) == [1]
    with pytest.raises(ShardfsError):
        opened(tmp_path).write(Key("a.json/.."), [{"n": 1}])


def test_a_merged_index_and_the_ones_below_it_get_both_files(tmp_path: Path) -> None:
    merged = []
    for part in ("00", "01"):
        record = one(tmp_path / part, "json", ROWS["json"], COLUMNS, "gz")
        names = ("raw_data", "raw_meta", "zip_data", "zip_meta")
        merged.append(
            record | {name: {**record[name], "basename": f"{part}/{record[name]['basename']}"} for name in names}
        )
    put_index(tmp_path, *merged)
    driver = opened(tmp_path)
    driver.write_records(Key("01/shard.00000"), some(1, 2), base=driver.entry(Key("01/shard.00000")))
    driver.write_records(Key("01/shard.00001"), some(3), base=None)
    assert ns(driver) == [1, 2, 1, 2, 3]
    assert ns(opened(tmp_path / "01")) == [1, 2, 3]
    below = json.loads((tmp_path / "01" / "index.json").read_bytes())["shards"]
    assert [[shard[f"zip_{part}"]["basename"] for part in ("data", "meta")] for shard in below] == [
        ["shard.00000.r2.json.gz", "shard.00000.r2.json.meta.gz"],
        ["shard.00001.json.gz", "shard.00001.json.meta.gz"],
    ]
