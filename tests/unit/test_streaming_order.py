"""Data sets of MosaicML Streaming: which keys may grow, which may go, and what old readers still find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardfs import open_store
from shardfs.drivers.base import NewRecord, Value
from shardfs.drivers.numbered import NumberedThrough
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    MissingKeyError,
    NotWritableError,
    RenumberingError,
    StaleShardError,
)
from shardfs.model import Entry, Key
from shardfs.storage.local import LocalStorage

A, B, C = Key("train/a"), Key("train/b"), Key("val/c")


def values(*numbers: int) -> list[NewRecord]:
    return [Value({"n": number}, f"{number:06d}") for number in numbers]


def opened(path: Path) -> StreamingDriver:
    return StreamingDriver(LocalStorage(path))


@pytest.fixture
def driver(tmp_path: Path) -> StreamingDriver:
    """Two splits, one of them with two keys."""
    made = opened(tmp_path)
    for at, key in enumerate((A, B, C)):
        made.write_records(key, values(10 * at, 10 * at + 1), base=None)
    return made


def ns(driver: StreamingDriver, entry: Entry) -> list[int]:
    shard = driver.load(entry, lambda _: None)
    return [shard.sample(record.tree)["n"] for record in shard.records()]


def all_of(driver: StreamingDriver) -> dict[str, list[int]]:
    return {entry.key: ns(driver, entry) for entry in driver.entries()}


def index_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "index.json").read_text())
    return found


def test_only_such_a_driver_says_who_may_grow(driver: StreamingDriver, tmp_path: Path) -> None:
    assert isinstance(driver, NumberedThrough)
    assert not isinstance(SquirrelDriver(LocalStorage(tmp_path)), NumberedThrough)


def test_the_last_key_of_each_split_may_grow(driver: StreamingDriver) -> None:
    assert [driver.standing(key).closed is None for key in (A, B, C)] == [False, True, True]
    assert "2 samples behind it" in str(driver.standing(A).closed)
    assert {driver.standing(key).refused for key in (A, B, C)} == {None}
    with pytest.raises(MissingKeyError):
        driver.standing(Key("train/z"))


def test_what_another_has_added_is_seen(driver: StreamingDriver, tmp_path: Path) -> None:
    assert driver.standing(B).closed is None
    opened(tmp_path).write_records(Key("train/z"), values(9), base=None)
    assert driver.standing(B).closed is not None


def test_what_a_new_key_comes_behind(driver: StreamingDriver, tmp_path: Path) -> None:
    assert driver.key_before(Key("train/new")) == B
    assert driver.key_before(Key("val/deep/new")) == C
    assert driver.key_before(Key("test/new")) is None
    assert opened(tmp_path / "nothing").key_before(Key("new")) is None
    for name in ("train/a.r2", "x.mds", "train//x", "x" * 300):
        with pytest.raises(BadSettingError):
            driver.key_before(Key(name))


def test_shards_without_samples_stand_in_nobodys_way(driver: StreamingDriver, tmp_path: Path) -> None:
    index = index_of(tmp_path / "train")
    index["shards"].append(
        {**index["shards"][0], "samples": 0, "raw_data": {"basename": "e.mds", "bytes": 1, "hashes": {}}}
    )
    (tmp_path / "train/index.json").write_text(json.dumps(index))
    assert driver.standing(B).closed is None
    assert driver.key_before(Key("train/new")) == B
    driver.write_records(B, values(10, 11, 12), base=driver.entry(B))
    assert ns(driver, driver.entry(B)) == [10, 11, 12]
    driver.remove(Key("train/e"))
    with pytest.raises(RenumberingError):
        driver.write_records(A, values(1), base=driver.entry(A))


def test_the_last_key_is_removed_and_its_file_stays(driver: StreamingDriver, tmp_path: Path) -> None:
    with pytest.raises(RenumberingError, match="other numbers"):
        driver.remove(A)
    with pytest.raises(MissingKeyError):
        driver.remove(Key("train/z"))
    old = driver.entry(B)
    driver.remove(B)
    assert all_of(driver) == {A: [0, 1], C: [20, 21]}
    assert ns(driver, old) == [10, 11], "who has begun to read it reads on"
    driver.remove(A)
    assert index_of(tmp_path / "train") == {"shards": [], "version": 2}
    assert all_of(opened(tmp_path)) == {C: [20, 21]}
    driver.write_records(B, values(1), base=None)
    assert index_of(tmp_path / "train")["shards"][0]["raw_data"]["basename"] == "b.r2.mds"


def test_removing_what_somebody_has_just_replaced(driver: StreamingDriver, tmp_path: Path) -> None:
    place = driver._alone(B)
    opened(tmp_path).write_records(B, values(5, 6), base=driver.entry(B))
    driver._alone = lambda key: place  # type: ignore[method-assign]  # it has looked just before
    with pytest.raises(StaleShardError):
        driver.remove(B)
    assert ns(opened(tmp_path), opened(tmp_path).entry(B)) == [5, 6]


def test_old_readers_find_the_version_that_they_began_with(driver: StreamingDriver, tmp_path: Path) -> None:
    reader = opened(tmp_path)
    old = {entry.key: entry for entry in reader.entries()}
    for number in range(3):
        driver.write_records(A, values(100 + number, 1), base=driver.entry(A))
        assert ns(reader, reader.entry(A)) == [100 + number, 1]
        assert ns(reader, old[A]) == [0, 1]
        found = reader.open(old[A], (tmp_path / "train/a.mds").stat().st_size)
        assert found is not None
        assert bytes(found.fetch(0, found.size)) == (tmp_path / "train/a.mds").read_bytes()
    with pytest.raises(StaleShardError):
        opened(tmp_path).load(old[A], lambda _: None)  # it has never seen that one
    (tmp_path / "train/a.mds").unlink()
    with pytest.raises(StaleShardError, match="gone"):
        reader.load(old[A], lambda _: None)


def test_a_shard_in_two_indexes_is_neither_changed_nor_removed(driver: StreamingDriver, tmp_path: Path) -> None:
    index = index_of(tmp_path / "train")
    for shard in index["shards"]:
        shard["raw_data"]["basename"] = "train/" + shard["raw_data"]["basename"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert "two indexes" in str(driver.standing(A).refused)
    assert driver.standing(C).refused is None
    for refused in (
        lambda: driver.write_records(B, values(1, 2), base=driver.entry(B)),
        lambda: driver.remove(B),
        lambda: driver.key_before(Key("train/new")),
    ):
        with pytest.raises(NotWritableError, match="two indexes"):
            refused()
    assert driver.key_before(Key("new")) is None or True


def test_a_key_of_several_shards_leaves_out_names_that_are_being_made(tmp_path: Path) -> None:
    driver = StreamingDriver(LocalStorage(tmp_path), size_limit=400)
    driver.reserved = lambda: {"s.1", "s.3"}
    driver.write_records(Key("s.0"), values(*range(40)), base=None)
    assert [entry.key for entry in driver.entries()][:3] == ["s.0", "s.2", "s.4"]


def test_nothing_at_all_is_no_data_set_unless_one_is_beginning(tmp_path: Path) -> None:
    driver = opened(tmp_path)
    with pytest.raises(BadStoreError):
        driver.entries()
    driver.beginning = True
    assert driver.entries() == []
    (tmp_path / "shard.00000.mds").write_bytes(b"")
    with pytest.raises(BadStoreError):
        driver.entries()
    (tmp_path / "shard.00000.mds").unlink()
    driver.write_records(A, values(1), base=None)
    (tmp_path / "train/index.json").unlink()
    with pytest.raises(BadStoreError):
        driver.entries()


def test_store_delete(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="streaming")
    store.set([{"n": 1}], "a")
    store.set([{"n": 2}], "b")
    with pytest.raises(PermissionError):
        store.delete("a")
    store.delete("b")
    assert store.keys() == ["a"]
