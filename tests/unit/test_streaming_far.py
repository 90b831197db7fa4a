"""Writing to a data set in an S3 server whose answers get lost, or that another writes to at the same time."""

from __future__ import annotations

import contextlib
import errno
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import obstore
import pytest

from shardfs.drivers.base import NewRecord, Value
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import StaleShardError, StorageError
from shardfs.model import Key
from shardfs.storage.remote import RemoteStorage
from shardfs.storage.urls import open_remote
from tests.servers import Server

pytestmark = pytest.mark.timeout(90)

K, L = Key("k"), Key("l")


@pytest.fixture
def opened(moto: Server, request: pytest.FixtureRequest) -> Callable[[], StreamingDriver]:
    """Drivers of one data set, each with a storage of its own."""
    url = "s3://bucket/" + "".join(c if c.isalnum() else "-" for c in request.node.name)
    return lambda: StreamingDriver(open_remote(url, endpoint=moto.endpoint))


def some(*numbers: int) -> list[NewRecord]:
    return [Value({"n": number}, str(number)) for number in numbers]


def numbers(driver: StreamingDriver, key: Key) -> list[int]:
    shard = driver.load(driver.entry(key), lambda held: None)
    return [shard.sample(record.tree)["n"] for record in shard.records()]


def replace(driver: StreamingDriver, number: int) -> None:
    driver.write_records(K, some(number), base=driver.entry(K))


def storage_of(driver: StreamingDriver) -> RemoteStorage:
    assert isinstance(driver.storage, RemoteStorage)
    return driver.storage


def names(driver: StreamingDriver) -> list[str]:
    return [listed.name for listed in driver.storage.list(("",))]


@contextlib.contextmanager
def in_the_moment_of(
    driver: StreamingDriver, name: str, act: Callable[[], object], behind: bool = False
) -> Iterator[None]:
    """Another acts while a driver puts the object `name` for the first time: right before that, or `behind` it."""
    storage, met = storage_of(driver), list[str]()
    put = storage._put

    def putting(at: str, *what: Any) -> str | None:
        result = put(at, *what) if behind else None
        if at == name and not met:
            met.append(at)
            act()
        return result if behind else put(at, *what)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_put", putting)
        yield
    assert met == [name]


@pytest.mark.parametrize("done", [True, False])
def test_an_index_whose_answer_never_came_is_settled(
    opened: Callable[[], StreamingDriver], monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    driver, notes = opened(), list[str]()
    driver.write_records(K, some(1), base=None)
    storage = storage_of(driver)
    put = storage._put

    def lost(name: str, *what: Any) -> str | None:
        if name == "index.json":
            if done:
                put(name, *what)
            raise StorageError("no answer", errno.ETIMEDOUT)
        return put(name, *what)

    monkeypatch.setattr(storage, "_put", lost)
    with pytest.raises(StorageError, match="no answer"):
        driver.write_records(K, some(2), base=driver.entry(K), note=notes.append)
    monkeypatch.undo()
    entry = opened().settle(K, notes[-1])
    assert (entry is not None) is done
    assert numbers(opened(), K) == [2 if done else 1]
    assert "k.r2.mds" in names(driver)  # also where the index is not there: it may be on its way
    late = opened()
    late.write_records(K, some(3), base=late.entry(K))
    assert numbers(opened(), K) == [3]


def test_an_answer_that_was_lost_on_the_way_is_no_conflict(
    opened: Callable[[], StreamingDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt finds the condition broken, by the first."""
    driver = opened()
    driver.write_records(K, some(1), base=None)
    put, times = obstore.put, dict[str, int]()

    def lost(store: Any, name: str, *what: Any, **how: Any) -> Any:
        times[name] = times.get(name, 0) + 1
        result = put(store, name, *what, **how)
        if times[name] == 1:
            raise obstore.exceptions.GenericError("connection reset")
        return result

    monkeypatch.setattr("shardfs.storage.obstore_objects.obstore.put", lost)
    driver.write_records(K, some(2), base=driver.entry(K))
    driver.write_records(L, some(3), base=None)
    monkeypatch.undo()
    assert times == {"k.r2.mds": 2, "index.json": 2 + 1, "l.mds": 2}
    assert numbers(opened(), K) == [2]
    assert numbers(opened(), L) == [3]


def test_a_shard_that_another_adds_in_the_moment_of_the_put_is_kept(
    opened: Callable[[], StreamingDriver],
) -> None:
    driver, other = opened(), opened()
    driver.write_records(K, some(1), base=None)
    with in_the_moment_of(driver, "index.json", lambda: other.write_records(L, some(7), base=None)):
        driver.write_records(K, some(2), base=driver.entry(K))
    assert (numbers(opened(), K), numbers(opened(), L)) == ([2], [7])


def test_a_shard_that_another_replaces_in_that_moment_is_stale_and_leaves_nothing(
    opened: Callable[[], StreamingDriver],
) -> None:
    """Also where the other writes the same, under the name that was just free."""
    driver, other, notes = opened(), opened(), list[str]()
    driver.write_records(K, some(1), base=None)
    base = driver.entry(K)
    with in_the_moment_of(driver, "k.r2.mds", lambda: replace(other, 2)), pytest.raises(StaleShardError):
        driver.write_records(K, some(2), base=base, note=notes.append)
    assert driver.settle(K, notes[-1]) is None
    assert names(driver) == ["index.json", "k.mds", "k.r2.mds"]
    assert json.loads(driver.storage.read("index.json", 10_000))["shards"][0]["raw_data"]["basename"] == "k.r2.mds"


def test_what_was_written_is_told_although_it_was_replaced_in_the_moment_after(
    opened: Callable[[], StreamingDriver],
) -> None:
    driver, other = opened(), opened()
    driver.write_records(K, some(1), base=None)
    with in_the_moment_of(driver, "index.json", lambda: replace(other, 3), behind=True):
        entry = driver.write_records(K, some(2), base=driver.entry(K))
    shard = driver.load(entry, lambda held: None)
    assert [shard.sample(record.tree)["n"] for record in shard.records()] == [2]
    assert numbers(opened(), K) == [3]


def test_threads_that_write_to_one_data_set_lose_none_where_conditions_are_ignored(
    rclone: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a mount seals two keys at a time; of two that replaced index.json at once one was lost."""
    for name, value in rclone.environment.items():
        monkeypatch.setenv(name, value)
    driver = StreamingDriver(open_remote("s3://bucket/threads", endpoint=rclone.endpoint))
    keys = [Key(f"k{number}") for number in range(4)]
    for key in keys:
        driver.write_records(key, some(0), base=None)

    storage, meeting = storage_of(driver), threading.Barrier(2, timeout=0.5)
    put = storage._put

    def met(name: str, *what: Any) -> str | None:
        if name == "index.json":
            with contextlib.suppress(threading.BrokenBarrierError):  # two at once: what must not be
                meeting.wait()
        return put(name, *what)

    monkeypatch.setattr(storage, "_put", met)

    def rewrite(key: Key) -> None:
        driver.write_records(key, some(2), base=driver.entry(key))

    with ThreadPoolExecutor(len(keys)) as pool:
        for done in [pool.submit(rewrite, key) for key in keys]:
            done.result()
    fresh = StreamingDriver(open_remote("s3://bucket/threads", endpoint=rclone.endpoint))
    assert [numbers(fresh, key) for key in keys] == [[2]] * len(keys)
