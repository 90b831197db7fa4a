"""Light fields of all samples: the same out of the index, out of a shard, and after packing."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs import config, light_lines, light_reading, table_building
from shardfs.errors import DamagedShardError, MissingKeyError
from shardfs.index_db import IndexDb
from shardfs.indexing import build_all, open_database
from shardfs.light_columns import MISSING, OMITTED, JsonText, LightColumns
from shardfs.light_fields import LightFields
from shardfs.opening import open_store
from shardfs.store import Store
from tests.conformance.superduper_stores import url_of
from tests.conformance.trees import InProcessTree

DATA = Path(__file__).parents[1] / "data"

SAMPLES: list[dict[str, Any]] = [
    {"label": "cat", "n": 1, "x": 0.5, "ok": True, "image": b"\xff\xd8\xff" + b"x" * 20},
    {"label": "dog", "n": -3, "x": 2, "ok": False, "tags": ["a", 1]},
    {"label": None, "n": 2**63, "x": math.inf, "meta": {"w": 3, "deep": {"at": [None]}}},
    {"n": np.int16(7), "x": np.float32(0.25), "long": "y" * (config.LIGHT_VALUE + 1), "label": "cat"},
    {"label": JsonText("cat").upper(), "mask": np.zeros((2, 3), np.int16), "boxes": {"a": np.ones(3), "n": 1}},
]


def make(path: Path, samples: list[Any], keys: int = 1) -> Store:
    store = open_store(path, driver="squirrel")
    for key in range(keys):
        store.set(samples, f"k{key}")
    return store


def columns_of(store: Store, key: str = "k0") -> LightColumns:
    shard = store.driver.load(store.entry(key), lambda _: None)
    return light_reading.of_reader(table_building.build(shard, "png"), shard, "png")


def test_values_are_those_of_the_samples(tmp_path: Path) -> None:
    columns = columns_of(make(tmp_path / "s", SAMPLES))
    assert columns.names == ("label", "n", "x", "ok", "tags", "meta", "long", "boxes")
    assert columns.column("label") == ["cat", "dog", None, "cat", "CAT"]
    assert columns.column("n") == [1, -3, str(2**63), 7, MISSING]
    assert columns.column("x") == [0.5, 2, math.inf, 0.25, MISSING]
    assert columns.column("ok") == [True, False, MISSING, MISSING, MISSING]
    assert columns.column("tags")[1] == '["a", 1]'
    assert type(columns.column("tags")[1]) is JsonText
    assert columns.column("meta")[2] == '{"w": 3, "deep": {"at": [null]}}'
    assert columns.column("long") == [MISSING] * 3 + [OMITTED, MISSING]
    assert columns.column("boxes")[4] == '{"a": {"$file": "boxes.a.npy"}, "n": 1}'
    assert columns.column("nowhere") == [MISSING] * 5
    assert columns.rows(("n", "label"))[1] == (-3, "dog")
    assert columns.rows(()) == [()] * 5
    assert columns.kinds("n") == {"int", "json", "missing"}


def test_records_are_fetched_many_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fetch was of one record, and may be a request to a store far away."""
    store = make(tmp_path / "s", SAMPLES * 20)
    shard = store.driver.load(store.entry("k0"), lambda _: None)
    table, fetch, asked = table_building.build(shard, "png"), shard.fetch, []

    def watched(start: int, end: int) -> Any:
        asked.append(end - start)
        return fetch(start, end)

    shard.fetch = watched  # type: ignore[method-assign]
    found = light_reading.of_reader(table, shard, "png").pack()
    assert asked == [table.raw_bytes]
    for limit in (1, 1000):
        asked.clear()
        monkeypatch.setattr(config, "LIGHT_FETCH", limit)
        assert light_reading.of_reader(table, shard, "png").pack() == found
        assert len(asked) > 10
        assert sum(asked) == table.raw_bytes


def test_packing_gives_the_same_back(tmp_path: Path) -> None:
    columns = columns_of(make(tmp_path / "s", SAMPLES))
    again = LightColumns.unpack(columns.pack())
    assert again.pack() == columns.pack()
    for name in columns.names:
        assert again.column(name) == columns.column(name)
        assert [type(value) for value in again.column(name)] == [type(value) for value in columns.column(name)]


@pytest.mark.parametrize("at", range(3))
def test_what_was_packed_by_nobody_is_refused(tmp_path: Path, at: int) -> None:
    packed = columns_of(make(tmp_path / "s", SAMPLES)).pack()
    broken = [packed[:-3], b"\x93\xcf" + packed[2:], packed.replace(b"label", b"lab")][at]
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever it is, the index takes it for a miss
        LightColumns.unpack(broken)


def test_coded_values_are_the_same_and_each_there_once(tmp_path: Path) -> None:
    columns = columns_of(make(tmp_path / "s", SAMPLES * 3))
    for name in (*columns.names, "nowhere"):
        codes, distinct = columns.coded(name)
        assert [distinct[code] for code in codes.tolist()] == columns.column(name)
        assert len(distinct) == len({(type(value), value) for value in distinct})


def test_some_samples_of_columns_are_those_samples(tmp_path: Path) -> None:
    columns = columns_of(make(tmp_path / "s", SAMPLES))
    for samples in ([], [0], [1, 3], [0, 2, 4], [4]):
        taken = columns.taken(np.array(samples, np.int64))
        assert taken.samples == len(samples)
        for name in columns.names:
            assert taken.column(name) == [columns.column(name)[at] for at in samples]


def test_what_json_has_no_word_for_is_text_where_it_has_one(tmp_path: Path) -> None:
    builder = light_reading.Builder("png")
    number = uuid.UUID(int=5)
    sample = {"day": datetime.date(2024, 2, 3), "id": number, "cost": decimal.Decimal("1.50"), "c": 1j, "t": (1, 2)}
    builder.add(sample, memoryview(b""))
    builder.add("alone", memoryview(b""))
    builder.add({"huge": 1 << 60_000, "large": 1 << 70}, memoryview(b""))
    columns = builder.columns()
    assert columns.rows(("day", "id", "cost")) == [("2024-02-03", str(number), "1.50"), (MISSING,) * 3, (MISSING,) * 3]
    assert columns.rows(("huge", "large"))[2] == (OMITTED, str(1 << 70))
    assert columns.column("c")[0] == '{"$complex": [0.0, 1.0]}'
    assert columns.column("t")[0] == '{"$tuple": [1, 2]}'
    assert columns.column("$value") == [MISSING, "alone", MISSING]


def stores() -> Iterator[str]:
    """Of every system what its own library wrote."""
    for system in ("squirrel", "streaming"):
        yield from (str(path) for path in sorted((DATA / system).iterdir()))
    yield from (f"mltraq+sqlite:///{path}/exp.db" for path in sorted((DATA / "mltraq").iterdir()))
    yield from (url_of(path) for path in sorted((DATA / "superduper").iterdir()))


def plain(value: Any) -> Any:
    """A member of a `.json` as it is as a light field: what is text there but for its tag is one here."""
    if type(value) is dict and len(value) == 1:
        ((tag, body),) = value.items()
        if tag in ("$datetime", "$uuid", "$decimal"):
            return body
        if tag == "$float":
            return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[body]
    return value


def test_of_every_system_they_are_what_the_json_says() -> None:
    compared = 0
    for url in stores():
        store = open_store(url)
        for entry in store.driver.entries():
            try:
                shard = store.driver.load(entry, lambda _: None)
                table = table_building.build(shard, "png")
            except DamagedShardError:
                continue
            columns = light_reading.of_reader(table, shard, "png")
            for at, line in enumerate(light_lines.render(table, shard, "png").splitlines()):
                said = json.loads(line)["light"]
                explained = said.pop("$fields", {})
                said = said["$esc"] if set(said) == {"$esc"} else said
                for name, value in said.items():
                    if name in explained:  # no text in the sample: left out
                        continue
                    (found,) = columns.rows((name,))[at]
                    if found is OMITTED:
                        assert len(json.dumps(value)) > config.LIGHT_VALUE
                        continue
                    shown = json.loads(found) if isinstance(found, JsonText) else found
                    assert repr(shown) == repr(plain(value)), (url, entry.key, at, name)
                    compared += 1
    assert compared > 1_000


def test_members_of_tars_that_say_what_they_hold_are_light(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", driver="webdataset")
    store.set(
        [
            {"__key__": "a", "jpg": b"\xff\xd8\xff", "cls": b"3", "json": b'{"w": 7, "cls": 9, "in": {"x": [1]}}'},
            {"__key__": "b", "txt": "ein Bär".encode(), "cls": b"cat", "json": b"{broken", "l.cls": b"1"},
            {"__key__": "c", "json": b"[1, 2]", "txt": b"\xff\xfe"},
        ],
        "k0",
    )
    columns = columns_of(store)
    assert columns.column("cls") == [3, "cat", MISSING]
    assert columns.column("w") == [7, MISSING, MISSING]
    assert columns.column("in")[0] == '{"x": [1]}'
    assert columns.column("txt") == [MISSING, "ein Bär", MISSING]
    assert columns.column("l.cls") == [MISSING, 1, MISSING]
    assert columns.column("json") == [MISSING, MISSING, "[1, 2]"]
    assert "jpg" not in columns.names


def test_fields_without_end_are_left_out() -> None:
    builder = light_reading.Builder("png")
    for at in range(config.LIGHT_FIELDS + 10):
        builder.add({f"f{at}": at}, memoryview(b""))
    columns = builder.columns()
    assert len(columns.names) == config.LIGHT_FIELDS
    assert columns.left_out == 10


def database_of(store: Store) -> Any:
    database = open_database(store, "png")
    assert database is not None
    return database


def test_a_mount_makes_them_once_and_finds_them_in_the_index_then(tmp_path: Path) -> None:
    store = make(tmp_path / "s", SAMPLES, keys=3)
    database = database_of(store)
    assert database.versions(light=True) == {}
    with InProcessTree(tmp_path / "s", database=database) as tree:
        light = tree.vfs.light
        with ThreadPoolExecutor(4) as pool:  # waiting for one another, too
            rows = list(pool.map(lambda _: light.values("k1", ("label", "n")), range(8)))
        assert all(found == rows[0] for found in rows)
        assert rows[0][:2] == [("cat", 1), ("dog", -3)]
        assert (light.made, light.indexed) == (1, 0)
        assert list(database.versions(light=True)) == ["k1"]
        with pytest.raises(MissingKeyError):
            light.values("nowhere", ("label",))
    with InProcessTree(tmp_path / "s", database=database) as tree:
        assert tree.vfs.light.values("k1", ("label", "n")) == rows[0]
        assert (tree.vfs.light.made, tree.vfs.light.indexed) == (0, 1)
        assert tree.vfs.cache.counts.loads == 0
        store.set(SAMPLES[:1], "k1")
        tree.ask(lambda: tree.vfs.refresh.everything())
        assert tree.vfs.light.values("k1", ("label",)) == [("cat",)]
    database.close()


def test_an_exported_index_takes_them_along_and_a_replaced_shard_makes_them_anew(tmp_path: Path) -> None:
    store = make(tmp_path / "s", SAMPLES, keys=3)
    database = database_of(store)
    assert build_all(store, database, "png", jobs=1).built == 3
    assert database.versions(light=True) == {}
    assert build_all(store, database, "png", jobs=1, light=True).built == 3
    assert build_all(store, database, "png", jobs=1, light=True).kept == 3
    database.export(tmp_path / "exported")
    os.utime(tmp_path / "s/k1.gz")  # another version, of the same content
    store.set(SAMPLES[:2], "k2")
    other = IndexDb(tmp_path / "other", "squirrel auto png")
    assert other.take(tmp_path / "exported") == 3
    light = [other.get_light(entry, lambda: store.driver.mark(entry)) for entry in store.driver.entries()]  # noqa: B023
    assert [None if found is None else found.samples for found in light] == [5, 5, None]
    report = build_all(store, other, "png", jobs=1, light=True)
    assert (report.built, report.kept) == (1, 2)
    assert build_all(store, other, "png", jobs=1, light=True, check=True).differing == []
    other.put_light(store.entry("k0"), LightColumns(5, {}), "")
    assert build_all(store, other, "png", jobs=1, light=True, check=True).differing == ["k0"]
    store.delete("k0")
    assert build_all(store, other, "png", jobs=1, light=True).dropped == 1
    assert sorted(other.versions(light=True)) == ["k1", "k2"]
    published = IndexDb(tmp_path / "exported", "squirrel auto png", read_only=True)
    carried = IndexDb(tmp_path / "third", "squirrel auto png", published=published)
    entry = store.entry("k1")
    assert carried.get_light(entry, lambda: store.driver.mark(entry)) is not None
    for one in (database, other, carried):
        one.close()


def test_the_end_of_a_mount_ends_who_waits(tmp_path: Path) -> None:
    store = make(tmp_path / "s", SAMPLES)
    with InProcessTree(store.url) as tree:
        light = tree.vfs.light
    with pytest.raises(OSError, match="being ended"):
        light.values("k0", ("label",))


def test_memory_is_bounded_and_the_newest_stays() -> None:
    made = []

    def make_one(entry: Any) -> LightColumns:
        made.append(entry.key)
        builder = light_reading.Builder("png")
        for at in range(1000):
            builder.add({"n": at * 10**12}, memoryview(b""))
        return builder.columns()

    from shardfs.model import Entry, Key, Version

    light = LightFields(lambda key: Entry(Key(key), Version("1"), 0, 0), make_one, None, budget=50_000)
    for _ in range(2):
        for key in "abcdefgh":
            assert light.values(key, ("n",))[2] == (2 * 10**12,)
        assert light.used <= 50_000
    light.columns("h")
    assert len(made) == 16
    assert threading.active_count() < 50
