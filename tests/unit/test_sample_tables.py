"""Tables of whole stores: a row for each sample that is shown, of exact size, and what it was for who has it open."""

from __future__ import annotations

import errno
import io
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardfs import config, sample_tables
from shardfs.cli import main
from shardfs.indexing import open_database
from shardfs.light_where import Where
from shardfs.opening import open_store
from shardfs.store import Store
from tests.conformance.trees import InProcessTree, fails

SAMPLES: list[Any] = [
    {"label": "cat", "n": 1, "x": 0.5, "key": "own", "tags": ["a"], "image": b"\xff\xd8\xff" + b"x" * 9},
    {"label": "dög", "n": 2, "x": 3, "mixed": "text", "image": b"\xff\xd8\xff" + b"x" * 5},
    {"label": None, "n": 3, "x": math.nan, "mixed": 7, "long": "y" * (config.LIGHT_VALUE + 1)},
    {"ok": True, "arr": np.arange(3)},
]
TABLES = [".shardfs/samples.jsonl", ".shardfs/samples.parquet"]


def make(path: Path) -> Store:
    store = open_store(path, driver="squirrel")
    store.set(SAMPLES, "a")
    store.set([{"label": "bird", "n": 4, "x": 1.5}], "b/one")
    store.set([{"label": 'q"\n', "n": -5}], "b")
    return store


def rows(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def parquet(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def test_a_row_is_a_sample_with_its_files_and_light_fields(tmp_path: Path) -> None:
    make(tmp_path / "s")
    with InProcessTree(tmp_path / "s") as tree:
        data = tree.read(TABLES[0])
        found = rows(data)
        assert found[0] == {
            **{"key": "a", "sample": "000000", "paths": ["a/000000.image.jpg", "a/000000.json"]},
            **{"sizes": [12, tree.stat("a/000000.json").size]},
            **{"label": "cat", "n": 1, "x": 0.5, "key~2": "own", "tags": ["a"]},
        }
        assert found[1]["label"] == "dög"
        assert found[2] == {**found[2], "label": None, "x": None, "mixed": 7, "omitted": ["long"]}
        assert "long" not in found[2]
        assert found[3]["paths"] == ["a/000003.arr.npy", "a/000003.json"]
        assert [row["key"] for row in found] == ["a"] * 4 + ["b", "b/one"]
        assert {row["key"]: row["paths"][0].rpartition("/")[0] for row in found} == {
            "a": "a",
            "b": "b~2",
            "b/one": "b/one",
        }
        for row in found:
            assert row["sizes"] == [tree.stat(path).size for path in row["paths"]]
        assert duckdb_count(tmp_path, data) == (6, 4 - 5 + 6)


def duckdb_count(folder: Path, data: bytes) -> tuple[int, int]:
    (folder / "samples.jsonl").write_bytes(data)
    found = duckdb.sql(f"SELECT count(*), sum(n) FROM '{folder}/samples.jsonl'").fetchall()
    return found[0][0], int(found[0][1])


def test_parquet_has_typed_columns_where_all_values_are_of_one_type(tmp_path: Path) -> None:
    make(tmp_path / "s")
    with InProcessTree(tmp_path / "s") as tree:
        table = parquet(tree.read(TABLES[1]))
        same = rows(tree.read(TABLES[0]))
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds["label"] == "string"
    assert (kinds["n"], kinds["x"], kinds["ok"]) == ("int64", "double", "bool")
    assert (kinds["mixed"], kinds["tags"], kinds["omitted"]) == ("string", "string", "list<element: string>")
    assert table.schema.field("mixed").metadata[b"shardfs"] == b"json"
    assert table.column("mixed").to_pylist()[:3] == [None, '"text"', "7"]
    assert table.column("tags").to_pylist()[0] == '["a"]'
    assert table.column("x").to_pylist()[1] == 3.0
    assert math.isnan(table.column("x").to_pylist()[2])
    assert table.column("key~2").to_pylist()[0] == "own"
    for name in ("key", "sample", "paths", "sizes", "label", "n"):
        assert table.column(name).to_pylist() == [row.get(name) for row in same]


@pytest.mark.parametrize("path", TABLES)
def test_sizes_are_exact_and_equal_states_have_one_number(tmp_path: Path, path: str) -> None:
    make(tmp_path / "s")
    with InProcessTree(tmp_path / "s") as tree:
        first = tree.stat(path)
        data = tree.read(path)
        assert len(data) == first.size > 0
        assert tree.read(path, first.size) == b""
        assert tree.read(path, 10, 20) == data[10:30]
        assert tree.stat(path).ino == first.ino
        assert path.rpartition("/")[2] not in tree.names(".shardfs")
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: tree.read(path), range(8))) == {data}


@pytest.mark.parametrize("path", TABLES)
def test_it_is_made_anew_when_the_store_changes_and_who_has_it_open_keeps_it(tmp_path: Path, path: str) -> None:
    store = make(tmp_path / "s")
    with InProcessTree(tmp_path / "s") as tree:
        before = tree.read(path)
        opened = tree.open(path)
        number = tree.stat(path).ino
        store.set([{"label": "new", "n": 1}], "c")
        store.set([{"label": "other"}], "b/one")
        tree.ask(lambda: tree.vfs.refresh.everything())
        after = tree.read(path)
        assert tree.stat(path).ino != number
        assert after != before
        assert b"other" in after or parquet(after).column("label").to_pylist()[-2:] == ["other", "new"]
        assert opened.read_at(0, 1 << 20) == before
        opened.close()
        held = tree.vfs.control.tables
        tree.ask(no_wait(lambda: held.looked_up(number & 0xFFFF, -100)))
        with fails(errno.ESTALE):
            tree.ask(tree.vfs.getattr, number)


def no_wait(work: Callable[[], None]) -> Callable[[], Any]:
    async def done() -> None:
        work()

    return done


def test_with_a_filter_it_has_what_the_tree_has(tmp_path: Path) -> None:
    make(tmp_path / "s")
    with InProcessTree(tmp_path / "s", where=Where("n >= 2")) as tree:
        found = rows(tree.read(TABLES[0]))
        assert [(row["key"], row["sample"]) for row in found] == [("a", "000001"), ("a", "000002"), ("b/one", "000000")]
        assert parquet(tree.read(TABLES[1])).column("n").to_pylist() == [2, 3, 4]


def test_a_damaged_key_is_left_out_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "s")
    path = tmp_path / "s/b/one.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with InProcessTree(tmp_path / "s") as tree:
        for table in TABLES:
            assert tree.stat(table).size > 0
        assert len(rows(tree.read(TABLES[0]))) == 5
        assert len(parquet(tree.read(TABLES[1]))) == 5
    assert "samples.jsonl is without 1 keys that cannot be read: b/one" in caplog.text


def test_one_that_is_too_large_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "s")
    monkeypatch.setattr(config, "TABLE_BYTES", 300)
    with InProcessTree(tmp_path / "s") as tree:
        with fails(errno.EFBIG):
            tree.stat(TABLES[0])
        monkeypatch.setattr(config, "TABLE_BYTES", 1 << 20)
        assert tree.stat(TABLES[0]).size > 300, "the next one who asks has it made again"
    assert "samples.jsonl cannot be made" in caplog.text
    assert not list((tmp_path / "s").glob("**/table-*"))


def test_without_pyarrow_there_is_no_parquet_and_a_reason_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path / "s")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with InProcessTree(tmp_path / "s") as tree:
        with fails(errno.ENOENT):
            tree.stat(TABLES[1])
        with fails(errno.ENOENT):
            tree.stat(".shardfs/samples.csv")
        assert tree.stat(TABLES[0]).size > 0
    assert caplog.text.count("pip install 'shardfs[parquet]'") == 1


def test_progress_is_told_while_it_is_made(tmp_path: Path) -> None:
    make(tmp_path / "s")
    with InProcessTree(tmp_path / "s") as tree:
        seen = []
        columns = tree.vfs.light.columns

        def watched(key: Any) -> Any:
            seen.append([(one.what, one.done, one.of) for one in tree.vfs.light.buildings()])
            return columns(key)

        tree.vfs.light.columns = watched  # type: ignore[method-assign]
        tree.read(TABLES[0])
        assert seen == [[("samples.jsonl", at, 3)] for at in range(3)]
        assert tree.vfs.light.buildings() == []


def test_rows_are_made_in_bounded_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "s")
    with InProcessTree(tmp_path / "s") as tree:
        whole = tree.read(TABLES[0]), parquet(tree.read(TABLES[1])).to_pylist()
    monkeypatch.setattr(config, "TABLE_ROWS", 3)
    monkeypatch.setattr(config, "TABLE_GROUP", 2)
    with InProcessTree(tmp_path / "s") as tree:
        assert tree.read(TABLES[0]) == whole[0]
        in_groups = tree.read(TABLES[1])
        assert repr(parquet(in_groups).to_pylist()) == repr(whole[1])
        assert pq.ParquetFile(io.BytesIO(in_groups)).num_row_groups > 1


def test_fields_that_are_called_as_columns_are_told_apart() -> None:
    names = ["key", "sizes~2", "sizes", "label", "key~2"]
    assert sample_tables.called(names) == {
        "key": "key~3",
        "sizes~2": "sizes~2",
        "sizes": "sizes~3",
        "label": "label",
        "key~2": "key~2",
    }


def test_the_command_writes_what_a_mount_shows(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    store = make(tmp_path / "s")
    with InProcessTree(tmp_path / "s") as tree:
        shown = tree.read(TABLES[0])
    assert main(["table", str(tmp_path / "s")]) == 0
    assert capsysbinary.readouterr().out == shown
    database = open_database(store, "png")
    assert database is not None
    assert len(database.versions(light=True)) == 3
    database.close()
    words = ["table", str(tmp_path / "s"), "--where", "n > 1", "--keys", "b*", "--keys", "nothing"]
    assert main([*words, "-o", str(tmp_path / "t.parquet")]) == 0
    assert parquet((tmp_path / "t.parquet").read_bytes()).column("n").to_pylist() == [4]
    assert main([*words, "-o", str(tmp_path / "t.parquet")]) == 2
    assert main(["table", str(tmp_path / "s"), "--where", "n >"]) == 2
    assert main(["table", str(tmp_path / "s"), "--keys", "zzz"]) == 2
    said = capsysbinary.readouterr().err.decode().splitlines()
    assert len(said) == 3
    assert "--where n >: it ends too early" in said[1]
    path = tmp_path / "s/a.gz"
    path.write_bytes(path.read_bytes()[:-20])
    assert main(["table", str(tmp_path / "s")]) == 1
    out, err = capsysbinary.readouterr()
    assert [row["key"] for row in rows(out)] == ["b", "b/one"]
    assert "a is left out" in err.decode()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["s", "t.parquet"]
