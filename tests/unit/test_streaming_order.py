"""Data sets of MosaicML Streaming: which keys may grow, which may go, and what old readers still find."""

from __future__ import annotations

import json
import os
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


def test_regression_what_was_looked_at_in_between_is_still_new_for_who_lists(
    driver: StreamingDriver, tmp_path: Path
) -> None:
    """A mount never showed a key of another mount, if it had asked for something else of the index just before."""
    driver.entries()
    opened(tmp_path).write_records(Key("train/z"), values(9), base=None)
    for path in (tmp_path, tmp_path / "train", tmp_path / "val"):
        os.utime(path, (1, 1))  # long enough ago for nobody to doubt it
    for look in (lambda: driver.standing(B), lambda: driver.entry(B), lambda: driver.key_before(Key("x"))):
        look()
        assert driver.changed()
    assert Key("train/z") in [entry.key for entry in driver.entries()]
    assert not driver.changed()


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
    places = driver._scanner.places(B)
    opened(tmp_path).write_records(B, values(5, 6), base=driver.entry(B))
    driver._scanner.places = lambda key: places  # type: ignore[method-assign]  # it has looked just before
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


# --- merged indexes ---------------------------------------------------------------------------------------------------


def merge(driver: StreamingDriver, path: Path, *parts: str) -> None:
    """An index of all shards of some splits, which keep their own, as the library's merge_index makes it."""
    shards = []
    for part in parts:
        for shard in index_of(path / part)["shards"]:
            data = {**shard["raw_data"], "basename": f"{part}/{shard['raw_data']['basename']}"}
            shards.append({**shard, "raw_data": data})
    (path / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
    driver.entries()


def names_of(path: Path) -> list[str]:
    return [shard["raw_data"]["basename"] for shard in index_of(path)["shards"]]


def test_what_is_done_to_a_merged_set_is_done_to_the_indexes_below(driver: StreamingDriver, tmp_path: Path) -> None:
    merge(driver, tmp_path, "train", "val")
    driver.write_records(A, values(7, 8), base=driver.entry(A))
    driver.write_records(C, values(20, 21, 22), base=driver.entry(C))
    assert names_of(tmp_path) == ["train/a.r2.mds", "train/b.mds", "val/c.r2.mds"]
    assert [names_of(tmp_path / part) for part in ("train", "val")] == [["a.r2.mds", "b.mds"], ["c.r2.mds"]]
    assert all_of(opened(tmp_path)) == {A: [7, 8], B: [10, 11], C: [20, 21, 22]}
    assert all_of(opened(tmp_path / "train")) == {"a": [7, 8], "b": [10, 11]}
    # b is the last below, and not the last above
    assert driver.standing(B).closed is not None
    with pytest.raises(RenumberingError):
        driver.write_records(B, values(1), base=driver.entry(B))
    # a new key comes behind all others above, whose numbers it has
    assert driver.key_before(Key("train/new")) == C
    driver.write_records(Key("train/new"), values(30), base=None)
    assert names_of(tmp_path)[-1] == "train/new.mds"
    assert names_of(tmp_path / "train") == ["a.r2.mds", "b.mds", "new.mds"]
    assert driver.load(driver.entry(Key("train/new")), lambda _: None).first_sample == 7
    driver.remove(Key("train/new"))
    assert names_of(tmp_path)[-1] == "val/c.r2.mds"
    assert names_of(tmp_path / "train") == ["a.r2.mds", "b.mds"]
    with pytest.raises(RenumberingError):
        driver.remove(B)


def test_the_last_above_that_is_not_the_last_below_keeps_its_samples(driver: StreamingDriver, tmp_path: Path) -> None:
    merge(driver, tmp_path, "val", "train")
    index = index_of(tmp_path)
    index["shards"].reverse()
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert names_of(tmp_path) == ["train/b.mds", "train/a.mds", "val/c.mds"]
    index["shards"].pop()
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert "2 samples" in str(driver.standing(A).closed)
    before = [names_of(tmp_path), names_of(tmp_path / "train")]
    for refused in (
        lambda: driver.write_records(A, values(1), base=driver.entry(A)),
        lambda: driver.remove(A),
    ):
        with pytest.raises(RenumberingError):
            refused()
    assert [names_of(tmp_path), names_of(tmp_path / "train")] == before
    driver.write_records(A, values(3, 4), base=driver.entry(A))
    assert [names_of(tmp_path), names_of(tmp_path / "train")] == [
        ["train/b.mds", "train/a.r2.mds"],
        ["a.r2.mds", "b.mds"],
    ]


def test_indexes_of_different_versions_of_a_shard_are_for_people(driver: StreamingDriver, tmp_path: Path) -> None:
    """Somebody has changed it through the directory below, where the index above is not seen."""
    merge(driver, tmp_path, "train")
    inside = opened(tmp_path / "train")
    inside.write_records(Key("a"), values(5, 6), base=inside.entry(Key("a")))
    assert all_of(driver) == {A: [0, 1], B: [10, 11], C: [20, 21]}, "shown once, as the outer index has it"
    assert "merge them anew" in str(driver.standing(A).refused)
    for refused in (
        lambda: driver.write_records(A, values(1, 2), base=driver.entry(A)),
        lambda: driver.remove(A),
    ):
        with pytest.raises(NotWritableError, match="merge them anew"):
            refused()
    driver.write_records(B, values(1, 2), base=driver.entry(B))
    assert names_of(tmp_path / "train") == ["a.r2.mds", "b.r2.mds"]


@pytest.mark.parametrize("new", [False, True])
def test_what_died_between_two_indexes_is_ended(tmp_path: Path, new: bool) -> None:
    driver = opened(tmp_path)
    for key in (A, B):
        driver.write_records(key, values(0, 1), base=None)
    merge(driver, tmp_path, "train")
    key = Key("train/n") if new else A
    notes: list[str] = []
    put = driver.storage.put

    def dies(name: str, *words: Any, **options: Any) -> Any:
        if name == "train/index.json":
            (tmp_path / "train" / options["temporary"]).write_bytes(b"half")
            raise KeyboardInterrupt
        return put(name, *words, **options)

    driver.storage.put = dies  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        driver.write_records(key, values(5, 6), base=None if new else driver.entry(key), note=notes.append)
    after = opened(tmp_path)
    assert ns(after, after.entry(key)) == [5, 6]
    assert names_of(tmp_path / "train") == ["a.mds", "b.mds"]
    for _ in range(2):
        assert after.settle(key, notes[-1]) == after.entry(key)
        assert names_of(tmp_path / "train") == (["a.mds", "b.mds", "n.mds"] if new else ["a.r2.mds", "b.mds"])
    assert [path.name for path in (tmp_path / "train").glob(".shardfs*")] == []


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
