"""The cache of loaded shards, with a driver whose loads wait until they are told to go on."""

from __future__ import annotations

import contextlib
import gc
import gzip
import inspect
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from shardfs import config, zstd_frames
from shardfs.drivers.base import Driver, Grow, InMemory, NewRecord, Note, Record, Shard, ShardReader
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.errors import DamagedShardError, MissingKeyError, StaleShardError, StorageError
from shardfs.model import Entry, Key, Version
from shardfs.opening import open_store
from shardfs.shard_cache import Loaded, ShardCache
from shardfs.storage.local import LocalStorage
from shardfs.values import Array, Blob, Buffer

PATIENCE = 20  # seconds until a test that hangs is given up


class FakeShard(InMemory):
    """One sample: the shard's bytes as a file, a number, and, with `picture`, an array that must be rendered."""

    first_sample = 0
    samples_through = None

    def __init__(self, size: int, picture: bool, note: str | None) -> None:
        self.raw: Buffer = memoryview(bytes(size))
        self._picture = picture
        self._note = note
        self.rendering = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self._built = False

    def records(self) -> Iterator[Record]:
        yield Record(0, len(self.raw), self.tree(0, len(self.raw)))

    def tree(self, start: int, end: int) -> Any:
        if self._built:
            self.rendering.set()
            assert self.go_on.wait(PATIENCE)
        self._built = True
        if self._picture:
            import numpy as np

            return {"picture": Array(0, np.dtype("u1"), (2, len(self.raw) // 6, 3))}
        return {"number": 5, "bytes": Blob(0, len(self.raw), "bin", self._note)}

    def decode(self, record: Buffer) -> Any:
        return self.tree(0, len(record))

    def sample(self, tree: Any) -> Any:
        return tree


class Gate:
    """Where a load of one key waits, and says that it does."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    async def wait_reached(self) -> None:
        await trio.to_thread.run_sync(lambda: self.reached.wait(PATIENCE))
        assert self.reached.is_set()


class FakeDriver:
    """Shards of given sizes. A load of a key with a gate waits there, after it has told how far it has grown."""

    name = "fake"
    writable = False
    appends = False
    reading = "fake"

    def __init__(self, **sizes: int) -> None:
        self.problems: list[str] = []
        self.sizes = sizes
        self.estimates: dict[str, int] = {}
        self.errors: dict[str, BaseException] = {}
        self.gates: dict[str, Gate] = {}
        self.pictures: set[str] = set()
        self.notes: dict[str, str] = {}
        self.loads: list[str] = []
        self.estimated: list[str] = []
        self.on_load: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def gate(self, key: str) -> Gate:
        self.gates[key] = Gate()
        return self.gates[key]

    def entries(self) -> list[Entry]:
        return [self.entry(Key(key)) for key in self.sizes]

    def changed(self) -> bool:
        return False

    def entry(self, key: Key) -> Entry:
        if key not in self.sizes:
            raise MissingKeyError(key)
        return Entry(key, Version("1"), self.sizes[key], 0)

    def estimate(self, entry: Entry) -> int:
        self.estimated.append(entry.key)
        return self.estimates.get(entry.key, self.sizes[entry.key])

    def mark(self, entry: Entry) -> str:
        return entry.version

    def load(self, entry: Entry, grow: Grow) -> Shard:
        with self._lock:
            self.loads.append(entry.key)
            self.on_load()
        grow(self.sizes[entry.key])
        gate = self.gates.get(entry.key)
        if gate is not None:
            gate.reached.set()
            assert gate.open.wait(PATIENCE)
        if entry.key in self.errors:
            raise self.errors[entry.key]
        return FakeShard(self.sizes[entry.key], entry.key in self.pictures, self.notes.get(entry.key))

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        return None

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        raise NotImplementedError

    def settle(self, key: Key, noted: str) -> Entry | None:
        raise AssertionError("nothing is written")

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        raise NotImplementedError

    def remove(self, key: Key) -> None:
        raise NotImplementedError


async def until(condition: Callable[[], bool]) -> None:
    """Give the others their turn until something is so; estimates are made in threads, which nothing else tells of."""
    while not condition():
        await trio.lowlevel.checkpoint()


def a(key: str, version: str = "1") -> Entry:
    return Entry(Key(key), Version(version), 0, 0)


def run(test: Callable[[ShardCache], Awaitable[None]], driver: Driver, budget: int) -> ShardCache:
    """Run a test inside a running cache, in a loop of its own."""
    cache = ShardCache(driver, budget, "png")

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with cache.running():
                await test(cache)

    trio.run(main)
    return cache


@contextlib.asynccontextmanager
async def started(call: Callable[[], Awaitable[Any]], times: int = 1) -> AsyncIterator[list[Any]]:
    """Calls under way, that have got as far as they can; what they gave, or raised, is there behind the block."""
    results: list[Any] = []

    async def one() -> None:
        try:
            results.append(await call())
        except Exception as error:
            results.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(times):
            nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()
        yield results


def test_the_fake_has_the_methods_of_a_real_driver() -> None:
    for name, method in inspect.getmembers(Driver, inspect.isfunction):
        if not name.startswith("_"):
            theirs = list(inspect.signature(getattr(SquirrelDriver, name)).parameters)
            assert list(inspect.signature(getattr(FakeDriver, name)).parameters) == theirs
            assert list(inspect.signature(method).parameters) == theirs
    for name in Driver.__annotations__:
        assert hasattr(FakeDriver(), name)


# --- one load ---------------------------------------------------------------------------------------------------


def test_a_shard_is_loaded_once_however_many_wait() -> None:
    driver = FakeDriver(key=10)
    gate = driver.gate("key")

    async def test(cache: ShardCache) -> None:
        async with started(lambda: cache.shard(a("key")), 50) as results:
            await gate.wait_reached()
            assert cache.used == 10
            gate.open.set()
        assert driver.loads == ["key"]
        assert len({id(loaded) for loaded in results}) == 1
        assert cache.peek(a("key")) is results[0]
        assert (await cache.table(a("key"))).files == 2
        assert (cache.counts.loads, cache.counts.misses, cache.counts.hits) == (1, 50, 1)

    run(test, driver, 100)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (DamagedShardError("bad", 3), DamagedShardError),
        (StaleShardError("old"), StaleShardError),
        (MissingKeyError("gone"), MissingKeyError),
        (OSError(5, "disk"), StorageError),
        (MemoryError(), StorageError),
        (RecursionError("deep"), StorageError),
        (ZeroDivisionError("a bug"), StorageError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_told_to_every_waiter_and_forgotten(error: BaseException, seen: type[Exception]) -> None:
    driver = FakeDriver(key=10, other=10)
    driver.errors["key"] = error
    gate = driver.gate("key")

    async def test(cache: ShardCache) -> None:
        async with started(lambda: cache.table(a("key")), 5) as results:
            await gate.wait_reached()
            gate.open.set()
        assert [type(result) for result in results] == [seen] * 5
        assert cache.counts.failures == 1
        assert cache.used == 0
        with pytest.raises(seen):
            await cache.shard(a("key"))
        del driver.errors["key"]
        assert (await cache.shard(a("key"))).counted == 10
        assert driver.loads == ["key"] * 3

    run(test, driver, 100)


def test_a_reader_who_goes_away_does_not_take_the_load_from_others() -> None:
    driver = FakeDriver(key=10)
    gate = driver.gate("key")

    async def test(cache: ShardCache) -> None:
        async with started(lambda: cache.shard(a("key"))) as results:
            for _ in range(3):
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await cache.shard(a("key"))
                assert scope.cancelled_caught
            await gate.wait_reached()
            gate.open.set()
        assert isinstance(results[0], Loaded)
        assert driver.loads == ["key"]

    run(test, driver, 100)


def test_a_load_nobody_waits_for_any_more_is_still_kept() -> None:
    driver = FakeDriver(key=10)
    gate = driver.gate("key")

    async def test(cache: ShardCache) -> None:
        with trio.CancelScope() as scope:
            async with started(lambda: cache.shard(a("key"))):
                await gate.wait_reached()
                scope.cancel()
        gate.open.set()
        await cache.shard(a("key"))
        assert driver.loads == ["key"]

    run(test, driver, 100)


def test_versions_of_a_key_are_different_shards() -> None:
    driver = FakeDriver(key=10)

    async def test(cache: ShardCache) -> None:
        one, other = await cache.shard(a("key")), await cache.shard(a("key", "2"))
        assert one is not other
        assert cache.used == 20
        cache.drop(a("key"))
        assert cache.used == 10
        assert cache.peek(a("key")) is None
        assert cache.tables.known(a("key")) is None
        assert cache.peek(a("key", "2")) is other
        cache.drop(a("key"))
        assert cache.used == 10

    run(test, driver, 100)


def test_a_replaced_shard_is_stale_and_never_other_bytes(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="squirrel")
    for key in ("key", "other"):
        store.set([{"value": b"old"}], key)
    entry = store.entry("key")

    async def test(cache: ShardCache) -> None:
        table = await cache.table(entry)
        store.set([{"value": b"new"}], "key")
        loaded = await cache.shard(entry)  # still in memory: the old bytes
        assert b"old" in bytes(loaded.shard.raw)
        await cache.shard(store.entry("other"))  # evicts it
        with pytest.raises(StaleShardError):
            await cache.shard(entry)
        assert await cache.table(entry) is table
        store.delete("key")
        with pytest.raises(StaleShardError):  # regression: ENOENT instead, out of the estimate
            await cache.shard(entry)

    run(test, store.driver, 1)


# --- the budget -------------------------------------------------------------------------------------------------


def test_the_oldest_shards_go_first() -> None:
    driver = FakeDriver(a=10, b=10, c=10, d=10, e=20)

    async def test(cache: ShardCache) -> None:
        for key in "abc":
            await cache.shard(a(key))
        assert cache.peek(a("a")) is not None  # a use
        await cache.shard(a("d"))
        assert [key for key in "abcd" if cache.peek(a(key))] == ["a", "c", "d"]
        assert cache.counts.evictions == 1
        await cache.shard(a("e"))
        assert [key for key in "abcde" if cache.peek(a(key))] == ["d", "e"]
        assert cache.used == 30

    run(test, driver, 30)


def test_a_shard_that_is_larger_than_the_budget_is_kept_until_the_next() -> None:
    driver = FakeDriver(a=100, b=200)

    async def test(cache: ShardCache) -> None:
        for _ in range(3):
            for key, size in (("a", 100), ("b", 200)):
                loaded = await cache.shard(a(key))
                assert loaded.counted == size == cache.used
                assert cache.peek(a(key)) is loaded
        assert len(driver.loads) == 6

    run(test, driver, 50)


def test_readers_who_take_turns_go_on_with_a_budget_below_one_shard() -> None:
    driver = FakeDriver(**{f"key{at}": 100 for at in range(4)})

    async def test(cache: ShardCache) -> None:
        async def read(key: str) -> None:
            for _ in range(20):
                assert (await cache.shard(a(key))).counted == 100

        async with trio.open_nursery() as nursery:
            for key in driver.sizes:
                nursery.start_soon(read, key)
        assert cache.used == 100

    run(test, driver, 10)


@pytest.mark.parametrize("large", [0, config.LARGE_LOAD])
def test_concurrent_loads_never_reserve_more_than_the_budget(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LARGE_LOAD", large)
    driver = FakeDriver(**{f"key{at}": 30 + at for at in range(16)})
    cache = ShardCache(driver, 100, "png")
    seen: list[int] = []
    driver.on_load = lambda: seen.append(cache.used)

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with cache.running(), trio.open_nursery() as nursery:
                for key in driver.sizes:
                    nursery.start_soon(cache.shard, a(key))
                    await trio.testing.wait_all_tasks_blocked()
                    seen.append(cache.used)

    trio.run(main)
    assert sorted(driver.loads) == sorted(driver.sizes)
    assert max(seen) <= 100
    assert cache.used <= 100


def test_a_load_larger_than_the_budget_runs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LARGE_LOAD", 40)
    driver = FakeDriver(small=30, huge=500, other=30)
    gates = {key: driver.gate(key) for key in driver.sizes}

    async def test(cache: ShardCache) -> None:
        async with started(lambda: cache.shard(a("small"))):
            await gates["small"].wait_reached()
            async with started(lambda: cache.shard(a("huge"))):
                await until(lambda: cache._room._waiting == 500)
                assert cache.used == 30
                async with started(lambda: cache.shard(a("other"))):
                    await until(lambda: len(driver.estimated) == 3)
                    assert cache.used == 30
                    gates["small"].open.set()
                    await gates["huge"].wait_reached()
                    await until(lambda: cache.used == 500)  # and nothing beside it
                    assert driver.loads == ["small", "huge"]
                    gates["huge"].open.set()
                    gates["other"].open.set()
        assert cache.used == 30

    run(test, driver, 100)


def test_loads_that_would_fit_only_later_evict_nothing_before() -> None:
    driver = FakeDriver(hot=20, first=70, second=60)
    gate = driver.gate("first")

    async def test(cache: ShardCache) -> None:
        await cache.shard(a("hot"))
        async with started(lambda: cache.shard(a("first"))):
            await gate.wait_reached()
            async with started(lambda: cache.shard(a("second"))):
                await until(lambda: len(driver.estimated) == 3)
                await trio.testing.wait_all_tasks_blocked()
                assert cache.peek(a("hot")) is not None
                assert cache.used == 90
                gate.open.set()

    run(test, driver, 100)


def test_a_load_that_outgrows_its_estimate_takes_room_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "GROW_STEP", 5)
    driver = FakeDriver(old=30, key=80)
    driver.estimates["key"] = 10
    gate = driver.gate("key")

    async def test(cache: ShardCache) -> None:
        await cache.shard(a("old"))
        async with started(lambda: cache.shard(a("key"))):
            await gate.wait_reached()
            await until(lambda: cache.used == 85)  # what it holds and a step more
            assert cache.peek(a("old")) is None
            gate.open.set()
        assert cache.used == 80

    run(test, driver, 100)


def test_an_estimate_that_was_too_large_is_given_back() -> None:
    driver = FakeDriver(key=10, old=5)
    driver.estimates["key"] = 90

    async def test(cache: ShardCache) -> None:
        await cache.shard(a("old"))
        await cache.shard(a("key"))
        assert cache.used == 15

    run(test, driver, 100)


def test_a_failed_load_gives_its_room_back() -> None:
    driver = FakeDriver(bad=90, good=90)
    driver.errors["bad"] = DamagedShardError("bad")
    gate = driver.gate("bad")

    async def test(cache: ShardCache) -> None:
        async with started(lambda: cache.shard(a("bad"))):
            await gate.wait_reached()
            async with started(lambda: cache.shard(a("good"))) as results:
                await until(lambda: len(driver.estimated) == 2)
                assert driver.loads == ["bad"]
                gate.open.set()
        assert isinstance(results[0], Loaded)
        assert cache.used == 90

    run(test, driver, 100)


# --- small and large --------------------------------------------------------------------------------------------


def test_a_small_load_is_not_stuck_behind_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LARGE_LOAD", 10)
    driver = FakeDriver(**{f"large{at}": 50 for at in range(4)}, small=5)
    gates = [driver.gate(f"large{at}") for at in range(4)]

    async def test(cache: ShardCache) -> None:
        async with trio.open_nursery() as nursery:
            for at in range(4):
                nursery.start_soon(cache.shard, a(f"large{at}"))
            await until(lambda: len(driver.loads) >= config.WORKERS_CPU and cache.used == 200)
            await cache.shard(a("small"))  # though both workers for large loads are busy, and two wait
            for gate in gates:
                gate.open.set()

    run(test, driver, 1000)


def test_a_small_load_is_not_stuck_behind_a_large_one_that_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LARGE_LOAD", 10)
    driver = FakeDriver(first=60, second=60, small=5)
    gate = driver.gate("first")

    async def test(cache: ShardCache) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.shard, a("first"))
            await gate.wait_reached()
            nursery.start_soon(cache.shard, a("second"))
            await until(lambda: cache._room._waiting == 60)
            await cache.shard(a("small"))
            assert driver.loads == ["first", "small"]
            gate.open.set()

    run(test, driver, 100)


@pytest.mark.parametrize("size", [90, 100, 300])
def test_regression_small_loads_without_end_do_not_keep_a_large_one_out(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited for room that the next small load had already taken, for as long as there were some."""
    monkeypatch.setattr(config, "LARGE_LOAD", 40)
    driver = FakeDriver(large=size, **{f"small{at}": 40 for at in range(6)})
    gates = [driver.gate(f"small{at}") for at in range(6)]

    async def test(cache: ShardCache) -> None:
        loaded = trio.Event()

        async def load_large() -> None:
            await cache.shard(a("large"))
            loaded.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.shard, a("small0"))
            await gates[0].wait_reached()
            nursery.start_soon(load_large)
            await until(lambda: cache._room._waiting == size)
            for at in range(1, 6):
                nursery.start_soon(cache.shard, a(f"small{at}"))
            await until(lambda: len(driver.estimated) == 7)
            gates[0].open.set()
            await loaded.wait()  # all other small ones still wait at their gates, or behind it
            assert "small5" not in driver.loads
            for gate in gates:
                gate.open.set()

    run(test, driver, 100)


# --- rendered files ---------------------------------------------------------------------------------------------

PICTURE = 6 * 100_000


def test_rendered_files_are_kept_within_the_budget_and_go_first() -> None:
    driver = FakeDriver(picture=PICTURE, old=PICTURE, new=PICTURE)
    driver.pictures = {"picture"}

    async def test(cache: ShardCache) -> None:
        await cache.shard(a("old"))
        loaded = await cache.shard(a("picture"))
        data = await cache.rendered(a("picture"), loaded, 0)
        assert data[:4] == b"\x89PNG"
        assert cache.used == 2 * PICTURE + len(data)
        assert await cache.rendered(a("picture"), loaded, 0) is data
        await cache.shard(a("new"))
        assert cache.used == 3 * PICTURE  # the file went, not the shards
        assert await cache.rendered(a("picture"), loaded, 0) == data
        cache.drop(a("picture"))
        assert cache.used <= 2 * PICTURE

    run(test, driver, 3 * PICTURE + PICTURE // 2)


def test_regression_a_rendered_file_never_takes_its_own_shards_place() -> None:
    """With a budget for only one of them each read of 128 KiB loaded the shard and rendered the file once more."""
    driver = FakeDriver(picture=PICTURE)
    driver.pictures = {"picture"}

    async def test(cache: ShardCache) -> None:
        for _ in range(5):
            loaded = await cache.shard(a("picture"))
            assert len(await cache.rendered(a("picture"), loaded, 0)) > PICTURE
            assert cache.peek(a("picture")) is loaded
            assert cache.used == PICTURE
        assert driver.loads == ["picture"]

    run(test, driver, PICTURE + 1000)


def test_a_shard_is_not_evicted_while_something_is_rendered_from_it() -> None:
    driver = FakeDriver(picture=PICTURE, other=PICTURE, third=PICTURE)
    driver.pictures = {"picture"}

    async def test(cache: ShardCache) -> None:
        loaded = await cache.shard(a("picture"))
        shard: Any = loaded.shard
        shard.go_on.clear()
        async with started(lambda: cache.rendered(a("picture"), loaded, 0)) as results:
            await trio.to_thread.run_sync(lambda: shard.rendering.wait(PATIENCE))
            await cache.shard(a("other"))
            await cache.shard(a("third"))
            assert cache.peek(a("picture")) is loaded
            assert cache.peek(a("other")) is None
            shard.go_on.set()
        assert results[0][:4] == b"\x89PNG"
        assert loaded.pins == 0
        await cache.shard(a("other"))
        await cache.shard(a("third"))
        assert cache.peek(a("picture")) is None

    run(test, driver, PICTURE)


def test_a_small_rendered_file_is_not_kept() -> None:
    driver = FakeDriver(key=10)

    async def test(cache: ShardCache) -> None:
        loaded = await cache.shard(a("key"))
        assert await cache.rendered(a("key"), loaded, 1) == b'{"number": 5}\n'
        assert cache.rendered_now(loaded, 1) == b'{"number": 5}\n'
        assert cache.used == 10

    run(test, driver, 10_000)


# --- tables -----------------------------------------------------------------------------------------------------


def test_a_table_stays_known_when_its_shard_is_evicted() -> None:
    driver = FakeDriver(a=10, b=10)

    async def test(cache: ShardCache) -> None:
        table = await cache.table(a("a"))
        await cache.shard(a("b"))
        assert cache.peek(a("a")) is None
        assert await cache.table(a("a")) is table
        assert driver.loads == ["a", "b"]
        assert (await cache.shard(a("a"))).table is table

    run(test, driver, 10)


def test_tables_are_evicted_within_a_budget_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(**{f"key{at}": 10 for at in range(10)})

    async def size(cache: ShardCache) -> None:
        monkeypatch.setattr(config, "TABLE_FLOOR", 3 * (await cache.table(a("key0"))).nbytes)

    async def test(cache: ShardCache) -> None:
        for at in range(10):
            await cache.table(a(f"key{at}"))
            cache.tables.known(a("key0"))
        assert [at for at in range(10) if cache.tables.known(a(f"key{at}"))] == [0, 8, 9]
        monkeypatch.setattr(cache.tables, "_budget", 0)
        await cache.table(a("key1"))
        assert [at for at in range(10) if cache.tables.known(a(f"key{at}"))] == [1]  # never the newest

    run(size, driver, 80)
    run(test, driver, 80)


# --- beginning and end ------------------------------------------------------------------------------------------


def test_outside_of_running_nothing_is_loaded() -> None:
    driver = FakeDriver(key=10)
    cache = ShardCache(driver, 100, "png")

    async def main() -> None:
        for call in (cache.shard, cache.table):
            with pytest.raises(StorageError, match="being ended"):
                await call(a("key"))
        with pytest.raises(StorageError, match="being ended"):
            await cache.fresh_entry(Key("key"))
        async with cache.running():
            assert (await cache.fresh_entry(Key("key"))).key == "key"
            await cache.shard(a("key"))
        assert cache.peek(a("key")) is not None
        with pytest.raises(StorageError, match="being ended"):
            await cache.shard(a("other"))

    trio.run(main)


def test_the_end_waits_for_a_load_under_way_and_takes_those_that_wait() -> None:
    driver = FakeDriver(running=90, waiting=90)
    gate = driver.gate("running")
    cache = ShardCache(driver, 100, "png")

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with started(lambda: serve(cache)), started(lambda: cache.shard(a("running"))) as running:
                await gate.wait_reached()
                async with started(lambda: cache.shard(a("waiting"))) as waiting:
                    await until(lambda: len(driver.estimated) == 2)
                    ended.set()
                    await until(lambda: bool(waiting))
                    assert running == []
                    gate.open.set()
            assert type(waiting[0]) is StorageError
            assert isinstance(running[0], Loaded | StorageError)
            assert driver.loads == ["running"]

    ended = trio.Event()

    async def serve(cache: ShardCache) -> None:
        async with cache.running():
            await ended.wait()

    trio.run(main)
    assert cache.used <= 90


# --- what is logged ---------------------------------------------------------------------------------------------


def test_damage_is_logged_once_for_each_version_and_names_the_key(caplog: pytest.LogCaptureFixture) -> None:
    driver = FakeDriver(bad=10)
    driver.errors["bad"] = DamagedShardError("a flipped bit", 7)

    async def test(cache: ShardCache) -> None:
        for entry in (a("bad"), a("bad"), a("bad", "2")):
            with pytest.raises(DamagedShardError) as caught:
                await cache.shard(entry)
            assert caught.value.key == "bad"

    with caplog.at_level(logging.DEBUG, "shardfs"):
        cache = run(test, driver, 100)
    assert [record.getMessage() for record in caplog.records] == ["shard 'bad' is damaged at byte 7: a flipped bit"] * 2
    assert cache.counts.failures == 3


def test_regression_a_bug_in_a_driver_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Each of a thousand reads wrote the same traceback."""
    driver = FakeDriver(bad=10)
    driver.errors["bad"] = ZeroDivisionError("a bug")

    async def test(cache: ShardCache) -> None:
        for _ in range(3):
            with pytest.raises(StorageError, match="ZeroDivisionError: a bug"):
                await cache.shard(a("bad"))

    with caplog.at_level(logging.DEBUG, "shardfs"):
        cache = run(test, driver, 100)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert cache.counts.failures == 3


def test_cells_shown_as_bytes_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    driver = FakeDriver(key=10, other=10)
    driver.notes["key"] = "jpeg: no picture"

    async def test(cache: ShardCache) -> None:
        for key in ("key", "other", "key"):
            loaded = await cache.shard(a(key))
            assert [note.reason for note in loaded.table.notes] == (["jpeg: no picture"] if key == "key" else [])

    with caplog.at_level(logging.DEBUG, "shardfs"):
        run(test, driver, 10)
    assert [record.getMessage() for record in caplog.records] == [
        "key/000000.bytes.bin: shown as bytes: jpeg: no picture"
    ]


def test_a_damaged_shard_that_is_asked_for_again_and_again_takes_no_more_memory(tmp_path: Path) -> None:
    """The daemon grew by the shard's raw bytes with each attempt: the error's traceback held them, and the error held
    itself."""
    size = 32 << 20
    data = gzip.compress(b"\xc6" + size.to_bytes(4, "big") + os.urandom(1 << 20) * 32, 1)
    (tmp_path / "k.gz").write_bytes(data[:-1000])
    driver = SquirrelDriver(LocalStorage(tmp_path))
    (entry,) = driver.entries()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def main() -> None:
        cache = ShardCache(driver, 1 << 20, "png")
        with trio.fail_after(PATIENCE):
            async with cache.running():
                for attempt in range(8):
                    if attempt == 2:
                        before = resident()
                    with contextlib.suppress(DamagedShardError):
                        await cache.shard(entry)
        assert cache.counts.failures == 8
        assert resident() - before < 2 * size

    gc.disable()
    try:
        trio.run(main)
    finally:
        gc.enable()


def test_the_frames_of_one_shard_stay_within_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--memory 32M` one shard of 120 MB held them all."""
    frame, budget = 2_000, 10_000
    monkeypatch.setattr(config, "LARGE_LOAD", 5_000)
    monkeypatch.setattr(zstd_frames.FrameWriter.__init__, "__defaults__", (frame,))
    driver = SquirrelDriver(LocalStorage(tmp_path), compression="zst")
    for key in ("a", "b"):
        driver.write(Key(key), ({"data": os.urandom(900)} for _ in range(60)))
    first, second = driver.entries()

    async def main() -> None:
        cache = ShardCache(driver, budget, "png")
        with trio.fail_after(PATIENCE):
            async with cache.running():
                for entry in (first, second):
                    await cache.shard(entry)
                loaded = await cache.shard(first)
                assert loaded.partial
                for start in range(0, loaded.shard.size - frame, frame):
                    await cache.fetched(first, loaded, start, start + frame)
                    assert frame <= loaded.shard.held <= budget + 1_000, "frames, and the table of where they are"
                    assert cache.used == loaded.shard.held

    trio.run(main)
