"""Sealing: staged keys into real stores, through a real staging area, while others change things, and processes die."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from shardfs import config
from shardfs.drivers.base import Driver, NewRecord, Value
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import BadSampleError, RenumberingError, ShardfsError, StagingError, StaleShardError, StorageError
from shardfs.model import Entry, Key
from shardfs.seal_steps import Places
from shardfs.sealer import Sealed, Sealer, seal_now
from shardfs.shard_cache import ShardCache
from shardfs.staging import ROOT, StagedDirectory, StagingArea
from shardfs.storage.local import TEMPORARY, LocalStorage
from tests.unit.sealing_player import KEY as PLAYED
from tests.unit.sealing_player import START, area_of, choose, driver_of, on_list, prepare, stored, visible
from tests.unit.test_staging import get, names, put

HERE = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("SHARDFS_SEAL_KILLS", "20"))
PATIENCE = 20
QUIET = 0.05
K = Key("k")

Test = Callable[[], Awaitable[None]]


class World:
    """A store, its staging area, and a sealer for it."""

    def __init__(self, path: Path, driver: Driver | None = None, arrays: str = "png") -> None:
        self.path = path
        self.store = path / "store"
        self.driver = driver or SquirrelDriver(LocalStorage(self.store))
        self.arrays = arrays
        self.area = StagingArea.open(str(self.store), root=path / "staging")
        self.sealed: list[Sealed] = []
        self.parked: list[tuple[StagedDirectory, str]] = []
        self._told = trio.Event()

    def run(self, test: Test, quiet: float | None = None) -> None:
        async def main() -> None:
            async with self.running(quiet):
                with trio.fail_after(PATIENCE):
                    await test()

        try:
            trio.run(main)
        except BaseExceptionGroup as group:  # the nurseries around a test that failed
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None

    @contextlib.asynccontextmanager
    async def running(
        self, quiet: float | None, prepare: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    ) -> AsyncIterator[None]:
        self.cache = ShardCache(self.driver, 1 << 24, self.arrays)
        self.sealer = Sealer(self.driver, self.cache, self.area, self.arrays, quiet)
        self.sealer.on_sealed = self._on_sealed
        self.sealer.on_parked = lambda staged, key: self.parked.append((staged, key))
        async with self.cache.running(), self.sealer.running(prepare):
            yield

    def _on_sealed(self, sealed: Sealed) -> None:
        self.sealed.append(sealed)
        self._told.set()
        self._told = trio.Event()

    async def sealed_times(self, count: int) -> None:
        while len(self.sealed) < count:
            await self._told.wait()

    def samples(self, key: str = K) -> list[Any]:
        shard = self.driver.load(self.driver.entry(Key(key)), lambda _: None)
        return [shard.sample(record.tree) for record in shard.records()]

    def over(self, key: str = K) -> StagedDirectory:
        entry = self.driver.entry(Key(key))
        return self.area.create(key, base_version=entry.version, base_bytes=entry.stored_bytes)

    async def edit(self, staged: StagedDirectory, name: bytes, data: bytes) -> int:
        """Change a stored file."""
        entry = self.driver.entry(Key(staged.key))
        table = await self.cache.table(entry)
        number = table.find(name)
        assert number is not None
        taken = staged.adopt(name, number, table.size(number), 0o644, 0, 0, 1)
        staged.truncate(taken.id, 0)
        with staged.open(taken.id, True) as file:
            file.pwrite(data, 0)
        self.sealer.touched(staged)
        return taken.id

    async def hide(self, staged: StagedDirectory, *found: bytes) -> None:
        table = await self.cache.table(self.driver.entry(Key(staged.key)))
        for name in found:
            number = table.find(name)
            assert number is not None
            staged.hide(number)

    def put(self, staged: StagedDirectory, name: bytes, data: bytes) -> int:
        number = put(staged, name, data)
        self.sealer.touched(staged)
        return number

    def left_over(self) -> list[str]:
        return [path.name for path in self.store.rglob("*") if path.name.startswith(TEMPORARY)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.area.close()


@pytest.fixture
def mds(tmp_path: Path) -> Iterator[World]:
    store = tmp_path / "store"
    driver = StreamingDriver(LocalStorage(store))
    for number in range(2):
        driver.write_records(Key(f"shard.{number:05d}"), values(3 * number, 3 * number + 3), base=None)
    made = World(tmp_path, driver)
    yield made
    made.area.close()


def values(start: int, end: int) -> list[NewRecord]:
    return [Value({"n": number, "text": f"t{number}"}, f"{number:06d}") for number in range(start, end)]


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def some(world: World, count: int = 4, key: str = K) -> Entry:
    return world.driver.write_records(Key(key), values(0, count), base=None)


def ns(world: World, key: str = K) -> list[int]:
    return [sample["n"] for sample in world.samples(key)]


@contextlib.contextmanager
def refused(code: int, kind: type[ShardfsError] = ShardfsError) -> Iterator[list[ShardfsError]]:
    found: list[ShardfsError] = []
    with pytest.raises(kind) as caught:
        yield found
    assert errno.errorcode[caught.value.errno] == errno.errorcode[code], str(caught.value)
    found.append(caught.value)


class SlowDriver(SquirrelDriver):
    """One whose writes stop when all records are there, until they may go on."""

    def __init__(self, storage: LocalStorage) -> None:
        super().__init__(storage)
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self.writes = 0

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Callable[[str], None] | None = None
    ) -> Entry:
        self.writes += 1

        def waiting() -> Iterator[NewRecord]:
            yield from records
            self.reached.set()
            assert self.go_on.wait(PATIENCE)

        return super().write_records(key, waiting(), base=base, note=note)

    async def wait_reached(self) -> None:
        await trio.to_thread.run_sync(lambda: self.reached.wait(PATIENCE))
        assert self.reached.is_set()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[World, SlowDriver]]:
    driver = SlowDriver(LocalStorage(tmp_path / "store"))
    made = World(tmp_path, driver)
    yield made, driver
    driver.go_on.set()
    made.area.close()


# --- one seal -------------------------------------------------------------------------------------------------------


def test_a_new_key(world: World) -> None:
    async def test() -> None:
        staged = world.area.create(K)
        photo, label = put(staged, b"cat.jpg", b"\xff\xd8\xffcat"), put(staged, b"cat.cls", b"7")
        sealed = await world.sealer.seal(staged)
        assert sealed is not None
        assert world.sealed == [sealed]
        assert (sealed.key, sealed.left, sealed.base_numbers) == (K, None, {})
        assert sealed.entry == world.driver.entry(K)
        assert world.cache.peek(sealed.entry) is not None
        assert world.cache.tables.known(sealed.entry) is sealed.table
        assert sealed.table.name(sealed.numbers[photo]) == b"cat.jpg"
        assert label not in sealed.numbers, "it is in cat.json, together with what else is light"
        assert world.samples() == [{"__key__": "cat", "jpg": b"\xff\xd8\xffcat", "cls": 7}]
        assert world.area.directories() == []
        assert world.sealer.problems() == {}

    world.run(test)
    assert [path.name for path in world.store.iterdir()] == ["k.gz"]
    assert not [path for path in world.area.path.iterdir() if path.is_dir()]


def test_an_edited_sample_leaves_the_others_byte_by_byte(world: World) -> None:
    some(world)
    before = stored_raw(world)

    async def test() -> None:
        staged = world.over()
        number = await world.edit(staged, b"000002.json", line(n=-2, text="t2"))
        sealed = await world.sealer.seal(staged)
        assert sealed is not None
        assert sealed.table.name(sealed.numbers[number]) == b"000002.json"
        assert sealed.base_numbers == {0: 0, 1: 1, 3: 3}

    world.run(test)
    after = stored_raw(world)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, True]
    assert ns(world) == [0, 1, -2, 3]


def stored_raw(world: World) -> list[bytes]:
    shard = world.driver.load(world.driver.entry(K), lambda _: None)
    return [bytes(shard.raw[record.start : record.end]) for record in shard.records()]


def test_samples_added(world: World) -> None:
    some(world)

    async def test() -> None:
        staged = world.over()
        put(staged, b"000005.json", line(n=5, text=""))
        put(staged, b"000004.json", line(n=4, text=""))
        assert await world.sealer.seal(staged) is not None

    world.run(test)
    assert ns(world) == [0, 1, 2, 3, 4, 5]


def test_samples_removed_renumber_the_rest(world: World) -> None:
    some(world, 6)

    async def test() -> None:
        staged = world.over()
        await world.hide(staged, b"000001.json", b"000003.json")
        number = await world.edit(staged, b"000005.json", line(n=50, text=""))
        added = put(staged, b"000009.json", line(n=9, text=""))
        sealed = await world.sealer.seal(staged)
        assert sealed is not None
        assert sealed.base_numbers == {0: 0, 2: 1, 4: 2}
        assert [sealed.table.name(sealed.numbers[one]) for one in (number, added)] == [b"000003.json", b"000004.json"]

    world.run(test)
    assert ns(world) == [0, 2, 4, 50, 9]


def test_a_large_shard_is_opened_and_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LARGE_LOAD", 1_000)
    world = World(tmp_path, SquirrelDriver(LocalStorage(tmp_path / "store"), compression="zst"))
    records = [Value({"n": at, "text": f"{at} " * 1_000}, "x") for at in range(600)]
    world.driver.write_records(K, records, base=None)
    before = stored_raw(world)

    async def test() -> None:
        table = await world.cache.table(entry := world.driver.entry(K))
        world.cache.drop(entry)
        world.cache.tables.keep(entry, table)
        staged = world.over()
        await world.edit(staged, b"000007.json", line(n=-7, text=""))
        sealed = await world.sealer.seal(staged)
        assert sealed is not None
        assert (world.cache.counts.opened, world.cache.counts.loads) == (1, 2), "the old one opened, the new one loaded"
        loaded = world.cache.peek(sealed.entry)
        assert loaded is not None
        assert loaded.pins == 0

    world.run(test)
    after = stored_raw(world)
    assert [at for at in range(600) if before[at] != after[at]] == [7]
    world.area.close()


def test_nothing_to_seal(world: World) -> None:
    some(world, 1)

    async def test() -> None:
        empty = world.area.create("new")
        put(empty, b".x.swp", b"")
        assert await world.sealer.seal(empty) is None
        assert names(empty) == [b".x.swp"]
        staged = world.over()
        assert await world.sealer.seal(staged) is None
        await world.hide(staged, b"000000.json")
        assert await world.sealer.seal(staged) is None, "never sealed empty"
        assert staged.state == "staged"
        assert staged.hides(0)

    world.run(test)
    assert ns(world) == [0]
    assert not (world.store / "new.gz").exists()


def test_mds_a_new_key_waits_for_what_is_added_to_the_last(mds: World) -> None:
    """Else that would be in the middle by then, and could never be stored."""

    async def test() -> None:
        put(new := mds.area.create("shard.00002"), b"000007.json", line(n=7, text=""))
        mds.sealer.touched(new)
        await trio.sleep(QUIET / 2)
        put(last := mds.over("shard.00001"), b"000006.json", line(n=6, text="t6"))
        mds.sealer.touched(last)
        await mds.sealed_times(2)
        assert [sealed.key for sealed in mds.sealed] == ["shard.00001", "shard.00002"]

    mds.run(test, QUIET)
    assert [ns(mds, entry.key) for entry in mds.driver.entries()] == [[0, 1, 2], [3, 4, 5, 6], [7]]


def test_a_file_only_the_old_shard_has_is_brought_here_when_it_is_taken_late(slow: tuple[World, SlowDriver]) -> None:
    """`000000.x.bin` gives way to the field x of a json that was written, and is renamed while that is stored."""
    world, driver = slow
    SquirrelDriver(LocalStorage(world.store)).write_records(K, [Value({"n": 1, "x": b"old"}, "0")], base=None)

    async def test() -> None:
        staged = world.over()
        await world.edit(staged, b"000000.json", line(n=2, x="new"))
        table = await world.cache.table(world.driver.entry(K))
        number = table.find(b"000000.x.bin")
        assert number is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.sealer.seal, staged)
            await driver.wait_reached()
            staged.adopt(b"000000.x.bin", number, 3, 0o644, 0, 0, 1)
            staged.rename(ROOT, b"000000.x.bin", ROOT, b"000000.y.bin")
            driver.go_on.set()
        assert get(staged, b"000000.y.bin") == b"old"
        await world.sealer.seal(staged)

    world.run(test)
    assert world.samples() == [{"n": 2, "x": "new", "y": b"old"}]


def test_a_stored_file_under_a_temporary_name_keeps_its_bytes(world: World) -> None:
    """The backup that an editor makes is no part of the new shard, and the old one is replaced."""
    some(world)

    async def test() -> None:
        staged = world.over()
        size = (await world.cache.table(world.driver.entry(K))).size(1)
        staged.adopt(b"000001.json", 1, size, 0o644, 0, 0, 1)
        staged.rename(ROOT, b"000001.json", ROOT, b"000001.json~")
        put(staged, b"000001.json", line(n=10, text=""))
        sealed = await world.sealer.seal(staged)
        assert sealed is not None
        assert sealed.left is staged
        assert get(staged, b"000001.json~") == line(n=1, text="t1")
        assert await world.sealer.seal(staged) is None

    world.run(test)
    assert ns(world) == [0, 10, 2, 3]


def test_mds_new_keys_come_in_the_order_of_their_names(mds: World) -> None:
    async def test() -> None:
        for number in (4, 2, 3):
            put(mds.area.create(f"shard.{number:05d}"), b"000000.json", line(n=10 * number, text=""))
        assert await mds.sealer.seal_all() == {}

    mds.run(test)
    assert [entry.key for entry in mds.driver.entries()] == [f"shard.{number:05d}" for number in range(5)]
    assert [ns(mds, entry.key) for entry in mds.driver.entries()] == [[0, 1, 2], [3, 4, 5], [20], [30], [40]]


def test_mds_a_changed_sample_and_one_more_at_the_end(mds: World) -> None:
    async def test() -> None:
        first, last = mds.over("shard.00000"), mds.over("shard.00001")
        await mds.edit(first, b"000001.json", line(n=-1, text="t1"))
        put(last, b"000006.json", line(n=6, text="t6"))
        for number in range(2, 6):
            put(mds.area.create(f"shard.{number:05d}"), b"000000.json", line(n=7, text=""))
        assert await mds.sealer.seal_all() == {}
        assert sorted(sealed.key for sealed in mds.sealed) == [f"shard.{number:05d}" for number in range(6)]

    mds.run(test)
    assert [ns(mds, f"shard.{number:05d}") for number in range(2)] == [[0, -1, 2], [3, 4, 5, 6]]
    assert (mds.store / "shard.00000.mds").exists(), "who still reads the old version finds it"


def test_mds_a_removed_sample_would_renumber_other_shards(mds: World) -> None:
    async def test() -> None:
        staged = mds.over("shard.00000")
        await mds.hide(staged, b"000001.json")
        with refused(errno.EPERM, RenumberingError):
            await mds.sealer.seal(staged)
        assert staged.state == "staged"
        assert list(mds.sealer.problems()) == ["shard.00000"]
        assert [path.name for path in sorted(mds.store.iterdir())] == [
            "index.json",
            "shard.00000.mds",
            "shard.00001.mds",
        ]

    mds.run(test)


def test_regression_mds_a_tenth_sample_is_no_conflict_for_who_changes_another_key(mds: World) -> None:
    """The version of every shard changed with the digits of the data set's size, although no name did."""

    async def test() -> None:
        staged = mds.over("shard.00000")
        await mds.edit(staged, b"000000.json", line(n=-5, text=""))
        mds.driver.write_records(Key("shard.00002"), values(6, 12), base=None)
        assert await mds.sealer.seal(staged) is not None

    mds.run(test)
    assert ns(mds, "shard.00000") == [-5, 1, 2]


# --- while things happen --------------------------------------------------------------------------------------------


def test_an_open_writer_is_ebusy_and_sealed_by_time_once_it_is_closed(world: World) -> None:
    async def test() -> None:
        staged = world.area.create(K)
        file = staged.create(ROOT, b"000000.json")
        file.pwrite(line(n=1), 0)
        world.sealer.touched(staged)
        with refused(errno.EBUSY):
            await world.sealer.seal(staged)
        await trio.sleep(4 * QUIET)
        assert world.sealed == []
        assert world.sealer.problems() == {}
        file.close()
        await world.sealed_times(1)

    world.run(test, QUIET)
    assert ns(world) == [1]


def test_by_time_no_sample_gets_another_number(world: World) -> None:
    """Somebody removes one after the other: with a pause in between, the next number would mean another sample."""
    world.driver.write_records(K, values(0, 4), base=None)

    async def test() -> None:
        staged = world.over()
        await world.hide(staged, b"000001.json")
        world.sealer.touched(staged)
        while not world.sealer.problems():
            await trio.sleep(QUIET / 5)
        assert "other numbers" in world.sealer.problems()["k"]
        await world.hide(staged, b"000003.json")
        world.sealer.touched(staged)
        assert await world.sealer.seal(staged) is not None, "whoever asks has it"
        assert world.sealer.problems() == {}

    world.run(test, QUIET)
    assert ns(world) == [0, 2]


def test_who_asks_does_not_hear_what_is_only_said_of_a_seal_by_time(world: World) -> None:
    world.driver.write_records(K, values(0, 4), base=None)

    async def test() -> None:
        staged = world.over()
        await world.hide(staged, b"000001.json")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.sealer._try, staged)
            while not world.sealer._works:
                await trio.lowlevel.checkpoint()
            assert await world.sealer.seal(staged) is not None

    world.run(test)
    assert ns(world) == [0, 2, 3]


def test_each_change_begins_the_quiet_anew(world: World) -> None:
    async def test() -> None:
        staged = world.area.create(K)
        for number in range(8):
            world.put(staged, b"%06d.json" % number, line(n=number))
            await trio.sleep(QUIET)
        assert world.sealed == []
        await world.sealed_times(1)

    world.run(test, 4 * QUIET)
    assert ns(world) == list(range(8))
    assert len(world.sealed) == 1


def test_what_was_staged_before_is_sealed_after_some_quiet(world: World) -> None:
    put(world.area.create(K), b"000000.json", line(n=1))
    world.run(lambda: world.sealed_times(1), QUIET)
    assert ns(world) == [1]


def test_nothing_is_sealed_by_itself_before_all_is_shown(world: World) -> None:
    """A mount that took longer than the quiet to show what was staged met a key that was stored meanwhile: it ended."""
    put(world.area.create(K), b"000000.json", line(n=1))

    async def prepare() -> None:
        await trio.sleep(6 * QUIET)
        assert world.sealed == []

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with world.running(QUIET, prepare):
                await world.sealed_times(1)

    trio.run(main)
    assert ns(world) == [1]


def test_what_is_changed_during_a_seal_is_in_the_next(slow: tuple[World, SlowDriver]) -> None:
    world, driver = slow
    some_by = SquirrelDriver(LocalStorage(world.store))
    some_by.write_records(K, values(0, 6), base=None)

    async def test() -> None:
        staged = world.over()
        await world.hide(staged, b"000001.json")
        five = await world.edit(staged, b"000005.json", line(n=50, text=""))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.sealer.seal, staged)
            await driver.wait_reached()
            staged.truncate(five, 0)
            with staged.open(five, True) as file:
                file.pwrite(line(n=500, text=""), 0)
            await world.edit(staged, b"000003.json", line(n=30, text=""))
            await world.hide(staged, b"000002.json")
            put(staged, b"000006.json", line(n=6, text=""))
            put(staged, b"000001.json", line(n=100, text=""))
            driver.go_on.set()
        assert ns(world) == [0, 2, 3, 4, 50]
        assert world.sealed[0].left is staged
        assert names(staged) == [b"000004.json", b"000002.json", b"000006.json", b"000013.json"], (
            "as they are called now"
        )
        assert (await world.sealer.seal(staged)) is not None
        assert ns(world) == [0, 30, 4, 500, 6, 100]
        assert world.area.directories() == []

    world.run(test)


def test_a_sample_that_has_another_name_once_stored_is_not_doubled(slow: tuple[World, SlowDriver]) -> None:
    """`cat.jpeg` becomes `cat.jpeg.jpg`, `cat.cls` a part of `cat.json`; both are written again while that happens."""
    world, driver = slow

    async def test() -> None:
        staged = world.area.create(K)
        photo, label = put(staged, b"cat.jpeg", b"\xff\xd8\xff1"), put(staged, b"cat.cls", b"1")
        put(staged, b"cat.txt", b"text")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.sealer.seal, staged)
            await driver.wait_reached()
            for number, data in ((photo, b"\xff\xd8\xff2"), (label, b"2")):
                staged.truncate(number, 0)
                with staged.open(number, True) as file:
                    file.pwrite(data, 0)
            driver.go_on.set()
        (sealed,) = world.sealed
        assert staged.hides(sealed.numbers[photo])
        assert names(staged) == [b"cat.jpeg", b"cat.cls"]
        await world.sealer.seal(staged)

    world.run(test)
    assert world.samples() == [{"__key__": "cat", "jpeg": b"\xff\xd8\xff2", "cls": 2, "txt": "text"}]


def test_two_callers_share_one_seal(slow: tuple[World, SlowDriver]) -> None:
    world, driver = slow

    async def test() -> None:
        staged = world.area.create(K)
        put(staged, b"000000.json", line(n=1))
        found: list[Sealed | None] = []

        async def seal() -> None:
            found.append(await world.sealer.seal(staged))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(seal)
            nursery.start_soon(seal)
            await driver.wait_reached()
            nursery.start_soon(seal)
            driver.go_on.set()
        assert len(found) == 3
        assert all(one is world.sealed[0] for one in found)
        assert driver.writes == 1

    world.run(test)


def test_who_asks_during_a_seal_has_his_own_change_sealed_too(slow: tuple[World, SlowDriver]) -> None:
    world, driver = slow

    async def test() -> None:
        staged = world.area.create(K)
        put(staged, b"000000.json", line(n=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.sealer.seal, staged)
            await driver.wait_reached()
            put(staged, b"000001.json", line(n=2))
            driver.go_on.set()
            assert await world.sealer.seal(staged) is world.sealed[-1]
            assert ns(world) == [1, 2]

    world.run(test)


def test_the_end_awaits_a_seal_under_way_and_begins_none(slow: tuple[World, SlowDriver]) -> None:
    world, driver = slow

    async def test() -> None:
        put(staged := world.area.create(K), b"000000.json", line(n=1))
        put(world.area.create("late"), b"000000.json", line(n=1))
        world.sealer.touched(staged)
        await driver.wait_reached()
        assert world.sealed == []
        threading.Timer(0.1, driver.go_on.set).start()

    world.run(test, QUIET)
    assert ns(world) == [1]
    late = world.area.find("late")
    assert late is not None

    async def outside() -> None:
        with refused(errno.EIO):
            await world.sealer.seal(late)

    trio.run(outside)


def test_a_caller_who_goes_away_does_not_end_the_seal(slow: tuple[World, SlowDriver]) -> None:
    world, driver = slow

    async def test() -> None:
        put(staged := world.area.create(K), b"000000.json", line(n=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.sealer.seal, staged)
            await driver.wait_reached()
            nursery.cancel_scope.cancel()
        driver.go_on.set()
        await world.sealed_times(1)

    world.run(test)
    assert ns(world) == [1]


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_file_that_does_not_parse_is_told_and_kept_until_it_is_changed(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "SEAL_RETRY", QUIET)

    async def test() -> None:
        staged = world.area.create(K)
        number = put(staged, b"000000.json", b"{no json")
        with refused(errno.EINVAL, BadSampleError) as found:
            await world.sealer.seal(staged)
        assert isinstance(found[0], BadSampleError)
        assert found[0].file == "000000.json"
        assert world.sealer.problems() == {K: str(found[0])}
        assert get(staged, b"000000.json") == b"{no json"
        await trio.sleep(5 * QUIET)
        assert len([record for record in caplog.records if "is not sealed" in record.message]) == 1
        staged.truncate(number, 0)
        with staged.open(number, True) as file:
            file.pwrite(line(n=1), 0)
        world.sealer.touched(staged)
        await world.sealed_times(1)
        assert world.sealer.problems() == {}

    world.run(test, QUIET)
    assert ns(world) == [1]
    assert world.left_over() == []


def test_a_store_that_vanishes_gets_nothing_in_its_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory is what is there once a disk is unmounted: a key written into it would be lost from sight."""
    monkeypatch.setattr(config, "SEAL_RETRY", QUIET)
    some(world)
    away = world.path / "away"

    async def test() -> None:
        staged, new = world.over(), world.area.create("new")
        await world.edit(staged, b"000001.json", line(n=10, text=""))
        world.put(new, b"000000.json", line(n=1))
        world.store.rename(away)
        for made in (False, True):
            if made:
                world.store.mkdir()
            assert {key: error.errno for key, error in (await world.sealer.seal_all()).items()} == {
                K: errno.EIO,
                "new": errno.EIO,
            }
            assert world.store.exists() == made
        assert list(world.store.iterdir()) == []
        assert sorted(world.sealer.problems()) == [K, "new"]
        assert world.parked == []
        world.store.rmdir()
        away.rename(world.store)
        await world.sealed_times(2)

    world.run(test, QUIET)
    assert (ns(world), ns(world, "new")) == ([0, 10, 2, 3], [1])


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("system", ["squirrel", "streaming"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(config, "SEAL_RETRY", QUIET)
    store = tmp_path / "store"
    with small_disk(store):
        storage = LocalStorage(store)
        driver: Driver = StreamingDriver(storage) if system == "streaming" else SquirrelDriver(storage)
        world = World(tmp_path, driver)
        some(world)
        number = driver.first_number(Key("new")) if isinstance(driver, StreamingDriver) else 0
        (store / "ballast").write_bytes(bytes(170_000))

        async def test() -> None:
            staged = world.area.create("new")
            world.put(staged, b"%06d.json" % number, line(n=1, text=random.Random(1).randbytes(100_000).hex()))
            with refused(errno.ENOSPC):
                await world.sealer.seal(staged)
            assert staged.state == "staged"
            assert world.left_over() == []
            (store / "ballast").unlink()
            await world.sealed_times(1)

        world.run(test, QUIET)
        assert ns(world, "new") == [1]
        world.area.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_store_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SEAL_RETRY", QUIET)
    store = tmp_path / "store"
    with small_disk(store):
        world = World(tmp_path)
        some(world)

        async def test() -> None:
            staged = world.over()
            subprocess.run(["mount", "-o", "remount,ro", store], check=True)
            await world.edit(staged, b"000000.json", line(n=10, text=""))
            with refused(errno.EROFS):
                await world.sealer.seal(staged)
            assert "ead-only" in world.sealer.problems()[K]
            subprocess.run(["mount", "-o", "remount,rw", store], check=True)
            await world.sealed_times(1)

        world.run(test, QUIET)
        assert ns(world) == [10, 1, 2, 3]
        world.area.close()


def test_tries_are_made_further_apart_each_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SEAL_RETRY", QUIET)
    tries: list[float] = []

    def fails(*arguments: Any, **others: Any) -> Entry:
        tries.append(trio.from_thread.run_sync(trio.current_time))
        raise StorageError("the disk", errno.EIO)

    monkeypatch.setattr(world.driver, "write_records", fails)

    async def test() -> None:
        world.put(world.area.create(K), b"000000.json", line(n=1))
        while len(tries) < 4:
            await trio.sleep(QUIET / 4)
        assert [later - before > (1 << at) * QUIET for at, (before, later) in enumerate(pairwise(tries))]

    world.run(test, QUIET)


def test_one_that_fails_does_not_hold_up_others(world: World) -> None:
    async def test() -> None:
        for number in range(6):
            world.put(world.area.create(f"bad{number}"), b"000000.json", b"{")
            world.put(world.area.create(f"good{number}"), b"000000.json", line(n=number))
        await world.sealed_times(6)
        assert sorted(sealed.key for sealed in world.sealed) == [f"good{number}" for number in range(6)]
        while len(world.sealer.problems()) < 6:
            await trio.sleep(QUIET)

    world.run(test, QUIET)


def test_what_is_not_sealed_by_time_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    put(doubtful := world.area.create("doubtful"), b"000000.json", line(n=1))
    doubtful._ledger.record("doubt", "the machine went down")
    put(parked := world.area.create("parked"), b"000000.json", line(n=1))
    world.area.park(parked, "set aside")
    put(world.area.create("plain.tmp", "plain"), b"000000.json", line(n=1))

    async def test() -> None:
        for _ in range(3):
            await trio.sleep(3 * QUIET)
            for staged in world.area.directories():
                world.sealer.touched(staged)
        assert world.sealed == []
        with refused(errno.EIO):
            await world.sealer.seal(doubtful)
        with refused(errno.EINVAL):
            await world.sealer.seal(parked)
        assert list(await world.sealer.seal_all()) == ["doubtful"]

    world.run(test, QUIET)
    said = [record.message for record in caplog.records if "by itself" in record.message]
    assert len(said) == 2
    assert len(world.area.directories()) == 3
    assert not world.store.exists()


# --- conflicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [False, True])
def test_a_key_that_another_replaced_is_set_aside(world: World, gone: bool) -> None:
    some(world)

    async def test() -> None:
        staged = world.over()
        await world.edit(staged, b"000001.json", line(n=10, text=""))
        other = SquirrelDriver(LocalStorage(world.store))
        if gone:
            other.remove(K)
        else:
            other.write(K, [{"n": 77}])
        with refused(errno.ESTALE, StaleShardError):
            await world.sealer.seal(staged)
        assert world.parked == [(staged, K)]
        assert staged.key.startswith("k.conflict-")
        assert staged.state == "parked"
        assert get(staged, b"000001.json") == line(n=10, text="")
        assert world.area.find(K) is None
        with refused(errno.EINVAL):
            await world.sealer.seal(staged)

    world.run(test, QUIET)
    assert [entry.key for entry in world.driver.entries()] == ([] if gone else [K])
    assert gone or ns(world) == [77]


def test_a_key_that_another_replaced_during_the_seal_is_set_aside(slow: tuple[World, SlowDriver]) -> None:
    world, driver = slow

    async def test() -> None:
        staged = world.area.create(K)
        put(staged, b"000000.json", line(n=1))
        async with trio.open_nursery() as nursery:

            async def seal() -> None:
                with refused(errno.ESTALE, StaleShardError):
                    await world.sealer.seal(staged)

            nursery.start_soon(seal)
            await driver.wait_reached()
            SquirrelDriver(LocalStorage(world.store)).write(K, [{"n": 77}])
            driver.go_on.set()
        assert staged.state == "parked"
        assert names(staged) == [b"000000.json"]

    world.run(test)
    assert ns(world) == [77]
    assert world.left_over() == []


def test_mds_a_conflict(mds: World) -> None:
    async def test() -> None:
        staged = mds.over("shard.00000")
        await mds.edit(staged, b"000001.json", line(n=10, text=""))
        other = StreamingDriver(LocalStorage(mds.store))
        entry = other.entry(Key("shard.00000"))
        other.write_records(Key("shard.00000"), values(70, 73), base=entry)
        put(new := mds.area.create("shard.00002"), b"000000.json", line(n=8, text=""))
        other.write_records(Key("shard.00002"), values(80, 81), base=None)
        for one in (staged, new):
            with refused(errno.ESTALE, StaleShardError):
                await mds.sealer.seal(one)
        assert [key for _, key in mds.parked] == ["shard.00000", "shard.00002"]

    mds.run(test)
    assert [ns(mds, entry.key) for entry in mds.driver.entries()] == [[70, 71, 72], [3, 4, 5], [80]]


# --- death ----------------------------------------------------------------------------------------------------------

_DIES = """
import os, sys
import shardfs.storage.renaming as renaming
import shardfs.storage.local as local
number, before = int(sys.argv[4]), sys.argv[5] == "before"
count, real = 0, renaming.rename

def rename(directory, old, new, replace):
    global count
    count += 1
    if count == number and before:
        os._exit(9)
    real(directory, old, new, replace)
    if count == number:
        os._exit(9)

renaming.rename = rename
from pathlib import Path
from shardfs.sealer import seal_now
from tests.unit.sealing_player import area_of, driver_of
root = Path(sys.argv[1])
area = area_of(root)
seal_now(driver_of(root, sys.argv[2]), area, area.find(sys.argv[3]), "png")
"""


@pytest.mark.parametrize("new", [False, True], ids=["changed", "new"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("system", "renames"), [("gz", 1), ("zst", 1), ("streaming", 2)])
def test_a_process_that_dies_at_a_rename(tmp_path: Path, system: str, renames: int, when: str, new: bool) -> None:
    for number in range(1, renames + 1):
        root = tmp_path / str(number)
        root.mkdir()
        prepare(root, system)
        key = Key("train/shard.00001") if new else PLAYED
        driver, area = driver_of(root, system), area_of(root)
        staged = area.create(key, base_version=None if new else driver.entry(key).version)
        put(staged, b"000004.json", b'{"n": 5}')
        area.close()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-c", _DIES, str(root), system, key, str(number), when]
        assert subprocess.run(command, env=environment, cwd=HERE, timeout=60).returncode == 9
        world = World(root, driver_of(root, system))
        found = world.area.find(key)
        assert found is not None
        assert found.state == "sealing"

        published = when == "after" and number == renames

        async def test(world: World = world, key: Key = key, published: bool = published) -> None:
            assert [sealed.key for sealed in world.sealed] == ([key] if published else [])
            assert world.left_over() == []
            assert unnamed(world) == set()
            if not published:
                assert await world.sealer.seal_all() == {}

        world.run(test)
        assert world.area.directories() == []
        assert ns(world, key) == ([5] if new else [*START, 5])
        world.area.close()


@pytest.mark.timeout(60 + 5 * ROUNDS)
@pytest.mark.parametrize("system", ["gz", "zst", "streaming"])
def test_a_killed_process_loses_and_doubles_nothing(tmp_path: Path, system: str) -> None:
    for seed in range(-(-ROUNDS // 3)):
        root = tmp_path / str(seed)
        root.mkdir()
        prepare(root, system)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-m", "tests.unit.sealing_player", str(root), system, str(seed)]
        dice = random.Random(2000 + seed)
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=HERE) as child:
            assert child.stdout is not None
            try:
                done = len(child.stdout.read(dice.randrange(2, 300)))  # and it goes on
            finally:
                child.send_signal(signal.SIGKILL)
            done += len(child.stdout.read()) - 1
        assert child.returncode == -signal.SIGKILL
        assert done > 0
        expected, play = START, random.Random(seed)
        for _ in range(done):
            expected = on_list(expected, choose(expected, play, True))
        acceptable = [expected, on_list(expected, choose(expected, play, True))]
        check_recovered(World(root, driver_of(root, system)), acceptable, f"seed {seed}, after {done} operations")
        shutil.rmtree(root)


def check_recovered(world: World, acceptable: list[list[int]], what: str) -> None:
    """One of these is there, staged or stored; and the same once all is stored. Nothing else is."""

    async def test() -> None:
        assert world.parked == []
        assert world.sealer.problems() == {}
        assert world.left_over() == []
        assert unnamed(world) == set()
        seen = visible(world.area.find(PLAYED), stored(world.driver))
        assert seen in acceptable, what
        assert await world.sealer.seal_all() == {}
        assert visible(world.area.find(PLAYED), stored(world.driver)) == seen

    world.run(test)
    assert all(names(staged) == [b".new"] for staged in world.area.directories())
    assert world.left_over() == []
    world.area.close()


def unnamed(world: World) -> set[str]:
    """Shards that no index names and that none did: later ones than the one it names."""
    if world.driver.name != "streaming":
        return set()
    shards = json.loads((world.store / "train/index.json").read_bytes())["shards"]
    named = {shard["raw_data"]["basename"] for shard in shards}
    revision = max(int(name.split(".r")[1].removesuffix(".mds")) if ".r" in name else 1 for name in named)
    later = {path.name for path in (world.store / "train").glob("*.r*") if int(path.stem.split(".r")[1]) > revision}
    return later - named


def test_a_write_that_fails_after_all_is_looked_for_in_the_store(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its own version would be a conflict the next time."""
    some(world)
    real = world.driver.write_records

    def fails(*arguments: Any, **others: Any) -> Entry:
        real(*arguments, **others)
        raise StorageError("syncing the directory: Input/output error", errno.EIO)

    async def test() -> None:
        staged = world.over()
        await world.edit(staged, b"000001.json", line(n=10, text=""))
        monkeypatch.setattr(world.driver, "write_records", fails)
        assert await world.sealer.seal(staged) is not None

    world.run(test)
    assert ns(world) == [0, 10, 2, 3]
    assert world.parked == []


def test_a_store_that_cannot_be_asked_is_asked_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SEAL_RETRY", QUIET)
    some(world)
    real, settle = world.driver.write_records, world.driver.settle

    def fails(*arguments: Any, **others: Any) -> Any:
        if others:
            real(*arguments, **others)
        raise StorageError("gone", errno.EIO)

    async def test() -> None:
        staged = world.over()
        await world.edit(staged, b"000001.json", line(n=10, text=""))
        monkeypatch.setattr(world.driver, "write_records", fails)
        monkeypatch.setattr(world.driver, "settle", fails)
        with refused(errno.EIO):
            await world.sealer.seal(staged)
        assert staged.state == "sealing"
        monkeypatch.setattr(world.driver, "settle", settle)
        await world.sealed_times(1)

    world.run(test, QUIET)
    assert ns(world) == [0, 10, 2, 3]


# --- without a mount ------------------------------------------------------------------------------------------------


def test_seal_now(world: World) -> None:
    put(staged := world.area.create(K), b"000000.json", line(n=1))
    sealed = seal_now(world.driver, world.area, staged, "png")
    assert sealed is not None
    assert ns(world) == [1]
    put(staged := world.area.create("bad"), b"README", b"")
    with refused(errno.EINVAL, BadSampleError):
        seal_now(world.driver, world.area, staged, "png")


def test_numbers_of_files_mean_nothing_where_shards_are_shown_otherwise(world: World) -> None:
    some(world)
    put(staged := world.over(), b"000004.json", line(n=4, text=""))

    async def nothing() -> None:
        return

    world.run(nothing)
    with refused(errno.EINVAL, StagingError):
        seal_now(world.driver, world.area, staged, "png+text")
    seal_now(world.driver, world.area, staged, "png")
    put(staged := world.over(), b"000005.json", line(n=5, text=""))
    assert names(staged) == [b"000005.json"]


def test_a_name_that_would_come_to_mean_another_sample_is_changed(world: World) -> None:
    async def test() -> None:
        some(world, 3)
        table = await world.cache.table(world.driver.entry(K))
        places = Places({}, {}, {b"000000": b"000000", b"000003": b"000002"}, table, 10)
        found = {
            name: places.new_name(name) for name in (b"000003.a.b", b"000002.json", b"000007.json", b"cat.jpg", b"x")
        }
        assert list(found.values()) == [b"000002.a.b", b"000012.json", b"000007.json", b"cat.jpg", b"x"]

    world.run(test)


def test_log_levels(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A seal that goes well says nothing."""
    caplog.set_level(logging.INFO, "shardfs")

    async def test() -> None:
        put(staged := world.area.create(K), b"000000.json", line(n=1))
        assert await world.sealer.seal(staged) is world.sealed[-1]

    world.run(test)
    assert caplog.records == []
