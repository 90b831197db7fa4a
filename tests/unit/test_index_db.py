"""The persistent index: right or a miss, whatever happens to the shards, to its file, or to one a store carries."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard

from shardfs import packing, table_building
from shardfs.commands import as_json
from shardfs.config import base_directory
from shardfs.index_db import PUBLISHED, IndexDb
from shardfs.indexing import build_all, open_database
from shardfs.opening import open_store
from shardfs.store import Store
from tests.conformance.trees import InProcessTree, fails, wait_for

READING = "squirrel auto png"


def make(path: Path, keys: int = 3) -> Store:
    store = open_store(path, driver="squirrel")
    for key in range(keys):
        store.set([{"i": at, "x": bytes([key]) * 50} for at in range(5)], f"k{key}")
    return store


def database_of(store: Store) -> IndexDb:
    database = open_database(store, "png")
    assert database is not None
    return database


def no_mark() -> str:
    raise AssertionError("the mark is not needed here")


def indexed(store: Store) -> IndexDb:
    database = database_of(store)
    assert build_all(store, database, "png", jobs=2).failed == {}
    return database


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    database = indexed(store)
    for entry in store.driver.entries():
        built = table_building.build(store.driver.load(entry, lambda _: None), "png")
        kept = database.get(entry, no_mark)
        assert kept is not None
        assert list(kept.listing(0)) == list(built.listing(0))
        assert packing.pack(kept) == packing.pack(built)
        assert [kept.slice_of(file) for file in range(kept.files)] == [
            built.slice_of(file) for file in range(built.files)
        ]
    database.close()


def test_building_resumes_and_drops_what_is_gone(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    first = database_of(store)
    assert build_all(store, first, "png", jobs=1).built == 3
    store.set([{"i": 1}], "new")
    store.delete("k0")
    report = build_all(store, first, "png", jobs=1)
    assert (report.built, report.kept, report.dropped) == (1, 2, 1)
    first.close()


def test_a_touched_or_copied_shard_is_recognised_by_its_content(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    database = indexed(store)
    os.utime(tmp_path / "s/k1.gz")
    shutil.copy(tmp_path / "s/k2.gz", tmp_path / "copy")
    os.replace(tmp_path / "copy", tmp_path / "s/k2.gz")
    report = build_all(store, database, "png", jobs=1)
    assert (report.built, report.kept) == (0, 3)
    database.close()


def mds_set(path: Path, samples: list[tuple[bytes, bytes]]) -> None:
    """An MDS set of one raw shard without hashes, whose index says the same for all samples of one total size."""
    config = b"{}"
    records = [struct.pack("<II", len(a), len(b)) + a + b for a, b in samples]
    offsets = [4 + 4 * (len(records) + 1) + len(config)]
    for record in records:
        offsets.append(offsets[-1] + len(record))
    raw = struct.pack(f"<I{len(offsets)}I", len(records), *offsets) + config + b"".join(records)
    path.mkdir(exist_ok=True)
    (path / "new").write_bytes(raw)
    os.replace(path / "new", path / "shard.00000.mds")
    data = {"basename": "shard.00000.mds", "bytes": len(raw), "hashes": {}}
    shard = {
        **{"version": 2, "format": "mds", "compression": None, "hashes": [], "size_limit": None},
        **{"column_names": ["a", "b"], "column_encodings": ["bytes", "bytes"], "column_sizes": [None, None]},
        **{"samples": len(records), "raw_data": data, "zip_data": None},
    }
    if not (path / "index.json").exists():
        (path / "index.json").write_text(as_json({"version": 2, "shards": [shard]}))


def test_a_shard_replaced_by_one_of_equal_size_and_ends_is_another_one(tmp_path: Path) -> None:
    """The mark was a hash of the ends: the old sizes were shown over the new bytes."""
    same = [(b"A" * 2000, b"B" * 2000)] * 10
    mds_set(tmp_path / "s", same)
    store = open_store(tmp_path / "s")
    database = indexed(store)
    mds_set(tmp_path / "s", [*same[:5], (b"A" * 500, b"B" * 3500), *same[6:]])
    assert build_all(store, database, "png", jobs=1).built == 1
    with InProcessTree(tmp_path / "s", database=database) as tree:
        assert tree.read("shard.00000/000005.a.bin") == b"A" * 500
        assert tree.read("shard.00000/000005.b.bin") == b"B" * 3500
    database.close()


def test_overwriting_in_place_with_the_old_times_is_noticed(tmp_path: Path) -> None:
    """Inode, size and mtime were all a version was made of."""
    store = open_store(tmp_path / "s", driver="squirrel", level=0)
    store.set([{"a": b"A" * 3000, "b": b"B" * 1000}], "k")
    path = tmp_path / "s/k.gz"
    before = path.stat()
    database = indexed(store)
    open_store(tmp_path / "t", driver="squirrel", level=0).set([{"a": b"C" * 1000, "b": b"D" * 3000}], "k")
    with open(path, "r+b") as file:
        file.write((tmp_path / "t/k.gz").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with InProcessTree(tmp_path / "s", database=database) as tree:
        assert tree.read("k/000000.a.bin") == b"C" * 1000
        assert tree.read("k/000000.b.bin") == b"D" * 3000
    database.close()


def test_a_remount_lists_without_touching_a_shard(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    database = indexed(store)
    with InProcessTree(tmp_path / "s", database=database) as tree:
        assert [len(tree.names(f"k{key}")) for key in range(3)] == [10, 10, 10]
        assert tree.stat("k1/000003.x.bin").size == 50
        assert tree.vfs.cache.counts.loads == 0
        assert tree.read("k1/000003.x.bin") == b"\1" * 50
        assert tree.vfs.cache.counts.loads == 1
    database.close()


def test_a_mount_fills_the_index(tmp_path: Path) -> None:
    store = make(tmp_path / "s", 1)
    database = database_of(store)
    with InProcessTree(tmp_path / "s", database=database) as tree:
        tree.names("k0")
        wait_for(lambda: len(database.versions()) == 1)
    assert database.get(store.entry("k0"), no_mark) is not None
    database.close()


# --- the file itself ----------------------------------------------------------------------------------------------


def test_a_damaged_file_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make(tmp_path / "s", 1)
    database = database_of(store)
    database.path.parent.mkdir(parents=True, exist_ok=True)
    database.path.write_bytes(b"this is no SQLite file at all" * 500)
    assert build_all(store, database, "png", jobs=1).built == 1
    assert "made anew" in caplog.text
    assert database.get(store.entry("k0"), no_mark) is not None
    database.close()


@pytest.mark.parametrize("where", ["/proc/shardfs", "/dev/null/x"])
def test_a_place_that_cannot_be_written_to_is_a_miss_and_one_warning(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The first use was an error, and a healthy key EIO."""
    store = make(tmp_path / "s", 1)
    database = IndexDb(Path(where) / "index.sqlite", READING)
    assert database.get(store.entry("k0"), no_mark) is None
    assert database.versions() == {}
    with InProcessTree(tmp_path / "s", database=database) as tree:
        assert tree.read("k0/000000.json") == b'{"i": 0}\n'
    assert caplog.text.count("goes on without it") == 1


def test_a_locked_file_is_a_miss(tmp_path: Path) -> None:
    store = make(tmp_path / "s", 1)
    database = indexed(store)
    database.close()
    with sqlite3.connect(database.path) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        late = database_of(store)
        assert late.get(store.entry("k0"), no_mark) is None
        other.rollback()
    other.close()
    late.close()


@pytest.mark.parametrize("damage", ["data", "crc", "text", "null"])
def test_a_damaged_row_is_a_miss(tmp_path: Path, damage: str) -> None:
    store = make(tmp_path / "s", 1)
    database = indexed(store)
    other = sqlite3.connect(database.path)
    broken: Any = {"data": b"\0" * 100, "crc": 7, "text": "text", "null": b""}[damage]
    other.execute(f"UPDATE shards SET {'crc' if damage == 'crc' else 'data'} = ?", (broken,))
    other.commit()
    other.close()
    assert database.get(store.entry("k0"), no_mark) is None
    database.close()


# --- published indexes --------------------------------------------------------------------------------------------


def publish(store: Store, path: Path) -> Path:
    database = indexed(store)
    assert database.export(path / PUBLISHED) == len(store)
    database.close()
    database.path.unlink()
    return path / PUBLISHED


def test_a_store_may_carry_its_index(tmp_path: Path) -> None:
    publish(make(tmp_path / "s"), tmp_path / "s")
    shutil.copytree(tmp_path / "s", tmp_path / "elsewhere")  # other inodes, other times
    store = open_store(tmp_path / "elsewhere")
    assert len(store) == 3, "the index itself is no shard"
    database = database_of(store)
    report = build_all(store, database, "png", jobs=1)
    assert (report.built, report.kept) == (0, 3)
    database.close()


def test_a_shard_that_is_not_the_published_one_is_read_for_its_mark_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index was asked for the table, and by the load again; each time the whole file was hashed."""
    store = make(tmp_path / "s", 1)
    publish(store, tmp_path / "s")
    store.set([{"i": 7}], "k0")
    with InProcessTree(tmp_path / "s", database=database_of(store)) as tree:
        driver = tree._opened.driver
        marks: list[Any] = []
        mark = driver.mark
        monkeypatch.setattr(driver, "mark", lambda entry: marks.append(entry) or mark(entry))
        assert tree.read("k0/000000.json") == b'{"i": 7}\n'
        assert len(marks) == 1


def test_what_was_shown_out_of_a_known_table_is_settled(tmp_path: Path) -> None:
    """A key whose table came from a load that nobody had asked for could be given other bytes under its old numbers."""
    make(tmp_path / "s", 1)
    with InProcessTree(tmp_path / "s") as tree:
        key = tree.vfs.tree.slots[0]
        tree.ask(tree.vfs.cache.shard, key.entry)
        assert not key.settled
        tree.stat("k0/000000.json")
        assert key.settled


def test_an_exported_index_can_be_taken_over(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    path = publish(store, tmp_path)
    database = database_of(store)
    assert database.take(path) == 3
    assert build_all(store, database, "png", jobs=1).kept == 3
    database.close()


def tamper(path: Path, statement: str, *values: Any) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement, values)
    connection.commit()
    connection.close()


def row_of(table: list[Any]) -> bytes:
    return zstandard.compress(msgpack.packb(table))


def hostile_rows() -> dict[str, bytes]:
    """What a published row may be made of."""
    bomb = zstandard.compress(b"\0" * (1 << 30))
    return {"bomb": bomb, "no table": row_of([1, 2, 3]), "strings": row_of([{}, 5, {}]), "nothing": row_of([])}


@pytest.mark.parametrize("what", ["bomb", "no table", "strings", "nothing"])
def test_a_hostile_row_is_a_miss(tmp_path: Path, what: str) -> None:
    store = make(tmp_path / "s", 1)
    path = publish(store, tmp_path / "s")
    data = hostile_rows()[what]
    tamper(path, "UPDATE shards SET data = ?, crc = ?", data, zlib.crc32(data))
    with InProcessTree(tmp_path / "s", database=database_of(store)) as tree:
        assert tree.read("k0/000000.json") == b'{"i": 0}\n'


def test_sizes_that_a_shard_cannot_have_are_a_miss(tmp_path: Path) -> None:
    store = make(tmp_path / "s", 1)
    table = table_building.build(store.driver.load(store.entry("k0"), lambda _: None), "png")
    for column, value in (("length", 1 << 60), ("offset", 1 << 40), ("record_end", 1 << 40)):
        changed = table.columns[column].copy()
        changed[0] = value
        before, table.columns[column] = table.columns[column], changed
        with pytest.raises(ValueError, match=r"outside the shard|larger than"):
            packing.unpack(packing.pack(table))
        table.columns[column] = before


def test_a_published_index_that_computes_is_refused(tmp_path: Path) -> None:
    store = make(tmp_path / "s", 1)
    path = publish(store, tmp_path / "s")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    tamper(path, "DROP TABLE about")
    tamper(path, f"CREATE VIEW about(identity) AS {endless}")
    with InProcessTree(tmp_path / "s", database=database_of(store)) as tree:
        assert tree.read("k0/000000.json") == b'{"i": 0}\n'


def test_a_published_index_behind_a_link_is_not_followed(tmp_path: Path) -> None:
    store = make(tmp_path / "s", 1)
    path = publish(store, tmp_path / "s")
    path.rename(tmp_path / "away")
    path.symlink_to(tmp_path / "away")
    database = database_of(store)
    assert build_all(store, database, "png", jobs=1).built == 1
    database.close()


# --- what else the review found -----------------------------------------------------------------------------------


def test_no_home_is_no_index_and_not_a_directory_called_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert base_directory("XDG_CACHE_HOME", "~/.cache") is None


def test_json_of_names_that_are_no_utf8_is_valid() -> None:
    assert as_json({"key": "a\udcff"}, None) == '{"key": "a\\udcff"}'


def test_a_store_that_goes_away_is_not_empty(tmp_path: Path) -> None:
    """A mirror of the mount would have been deleted."""
    make(tmp_path / "s")
    with InProcessTree(tmp_path / "s") as tree:
        (tmp_path / "s").rename(tmp_path / "away")
        seen = set()
        end_of_interval = [False]
        threading_wait(lambda: seen.add(tuple(sorted(tree.names("")))) or end_of_interval[0], 1.5)
        assert seen == {("k0", "k1", "k2")}
        (tmp_path / "s").mkdir()  # as a mount point whose disk was unmounted
        threading_wait(lambda: seen.add(tuple(sorted(tree.names("")))) or False, 1.5)
        assert seen == {("k0", "k1", "k2")}
        with fails(5):
            tree.read("k0/000000.json")


def threading_wait(look: Any, seconds: float) -> None:
    """Look again and again for so long: what is waited for here must not happen."""
    try:
        wait_for(look, seconds)
    except AssertionError:
        return


def test_an_index_that_is_being_written_does_not_take_its_keys_away(tmp_path: Path) -> None:
    mds_set(tmp_path / "s", [(b"a", b"b")])
    good = (tmp_path / "s/index.json").read_text()
    driver = open_store(tmp_path / "s").driver
    assert len(driver.entries()) == 1
    (tmp_path / "s/index.json").write_text(good[:20])
    assert [entry.key for entry in driver.entries()] == ["shard.00000"]
    assert any("index.json" in problem for problem in driver.problems)
    (tmp_path / "s/index.json").write_text(good)
    assert len(driver.entries()) == 1
    assert driver.problems == []


def test_a_directory_whose_last_key_has_gone_goes_too(tmp_path: Path) -> None:
    store = make(tmp_path / "s", 1)
    store.set([{"i": 1}], "train/a/b")
    with InProcessTree(tmp_path / "s") as tree:
        assert sorted(tree.names("")) == ["k0", "train"]
        store.delete("train/a/b")
        wait_for(lambda: tree.names("") == ["k0"])
        store.set([{"i": 2}], "train")
        wait_for(lambda: sorted(tree.names("")) == ["k0", "train"])
        assert tree.read("train/000000.json") == b'{"i": 2}\n'
