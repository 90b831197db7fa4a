"""Sealing into MDS data sets: what comes before what, and keys that become several."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import trio

from shardfs.drivers.base import NewRecord
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import BadSampleError, RenumberingError, StorageError
from shardfs.model import Entry, Key
from shardfs.staging import ROOT
from shardfs.storage.local import LocalStorage
from tests.unit.test_sealer import PATIENCE, QUIET, World, line, mds, ns, put, refused, values  # noqa: F401
from tests.unit.test_staging import get, names


class SlowStreaming(StreamingDriver):
    """One whose writes stop when all records are there, until they may go on."""

    def __init__(self, storage: LocalStorage) -> None:
        super().__init__(storage, size_limit=400)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Callable[[str], None] | None = None
    ) -> Entry:
        def waiting() -> Iterator[NewRecord]:
            yield from records
            self.reached.set()
            assert self.go_on.wait(PATIENCE)

        return super().write_records(key, waiting(), base=base, note=note)


def keys(world: World) -> dict[str, list[int]]:
    return {entry.key: ns(world, entry.key) for entry in world.driver.entries()}


def test_a_new_key_waits_for_what_cannot_be_stored_before_it(mds: World) -> None:  # noqa: F811
    async def test() -> None:
        put(last := mds.over("shard.00001"), b"000006.json", b"{")
        put(new := mds.area.create("shard.00002"), b"000000.json", line(n=7, text=""))
        with refused(errno.EBUSY, StorageError):
            await mds.sealer.seal(new)
        with refused(errno.EINVAL, BadSampleError):
            await mds.sealer.seal(last)
        last.unlink(ROOT, b"000006.json")
        put(last, b"000006.json", line(n=6, text=""))
        await mds.sealer.seal(new)

    mds.run(test)
    assert keys(mds) == {"shard.00000": [0, 1, 2], "shard.00001": [3, 4, 5, 6], "shard.00002": [7]}


def test_a_change_that_keeps_the_count_stops_nothing(mds: World) -> None:  # noqa: F811
    async def test() -> None:
        await mds.edit(mds.over("shard.00001"), b"000004.json", b"{")
        put(new := mds.area.create("shard.00002"), b"000000.json", line(n=7, text=""))
        assert await mds.sealer.seal(new) is mds.sealed[-1]

    mds.run(test)
    assert keys(mds)["shard.00002"] == [7]


def test_an_emptied_key_stops_new_ones_until_it_is_removed(mds: World) -> None:  # noqa: F811
    async def test() -> None:
        last = mds.over("shard.00001")
        await mds.hide(last, b"000003.json", b"000004.json", b"000005.json")
        put(new := mds.area.create("shard.00002"), b"000000.json", line(n=7, text=""))
        with refused(errno.EBUSY, StorageError) as found:
            await mds.sealer.seal(new)
        assert "all its samples were removed" in str(found[0])
        mds.driver.remove(Key("shard.00001"))
        mds.area.discard(last)
        await mds.sealer.seal(new)

    mds.run(test)
    assert keys(mds) == {"shard.00000": [0, 1, 2], "shard.00002": [7]}


def test_a_slow_copy_into_a_new_key_does_not_go_on_under_others_numbers(mds: World) -> None:  # noqa: F811
    """It paused, was stored as 6 and 7, and what came then as 6 was written over what had come as 0."""

    async def test() -> None:
        put(new := mds.area.create("shard.00002"), b"000000.json", line(n=100, text=""))
        mds.sealer.touched(new)
        while not mds.sealer.problems():
            await trio.sleep(QUIET / 5)
        for number in range(1, 8):
            put(new, b"%06d.json" % number, line(n=100 + number, text=""))
            mds.sealer.touched(new)
        await trio.sleep(4 * QUIET)
        assert mds.sealed == []
        await mds.sealer.seal(new)

    mds.run(test, QUIET)
    assert keys(mds)["shard.00002"] == list(range(100, 108))


def test_by_time_a_new_key_waits_as_well(mds: World) -> None:  # noqa: F811
    async def test() -> None:
        put(last := mds.over("shard.00001"), b"000006.json", b"{")
        mds.sealer.touched(last)
        put(new := mds.area.create("shard.00002"), b"000007.json", line(n=7, text=""))
        mds.sealer.touched(new)
        with trio.fail_after(PATIENCE):
            while len(mds.sealer.problems()) < 2:
                await trio.sleep(QUIET / 5)
        assert "behind which shard.00002 would come" in mds.sealer.problems()["shard.00002"]
        last.unlink(ROOT, b"000006.json")
        put(last, b"000006.json", line(n=6, text=""))
        mds.sealer.touched(last)
        await mds.sealed_times(2)

    mds.run(test, QUIET)
    assert keys(mds) == {"shard.00000": [0, 1, 2], "shard.00001": [3, 4, 5, 6], "shard.00002": [7]}


def test_what_is_changed_while_a_key_becomes_several_is_kept(tmp_path: Path) -> None:
    StreamingDriver(LocalStorage(tmp_path / "store")).write_records(Key("shard.00000"), values(0, 3), base=None)
    driver = SlowStreaming(LocalStorage(tmp_path / "store"))
    world = World(tmp_path, driver)

    async def test() -> None:
        staged = world.area.create("shard.00001")
        for number in range(20):
            put(staged, b"%06d.json" % number, line(n=100 + number, text="t"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.sealer.seal, staged)
            await trio.to_thread.run_sync(lambda: driver.reached.wait(PATIENCE))
            staged.unlink(ROOT, b"000015.json")
            put(staged, b"000015.json", line(n=-1, text="t"))
            driver.go_on.set()
        (name,) = names(staged)
        assert get(staged, name) == line(n=-1, text="t")
        with refused(errno.EPERM, RenumberingError):
            await world.sealer.seal(staged)
        assert get(staged, name) == line(n=-1, text="t"), "in the key, and the log says why it is not stored"

    world.run(test)
    assert [n for found in list(keys(world).values())[1:] for n in found] == list(range(100, 120))
    assert len(keys(world)) == 3
    world.area.close()


@pytest.mark.parametrize("name", ["shard.00001.r2", "a.mds"])
def test_a_name_that_reads_as_a_version_is_told_by_the_seal_too(mds: World, name: str) -> None:  # noqa: F811
    async def test() -> None:
        put(new := mds.area.create(name), b"000000.json", line(n=7, text=""))
        with refused(errno.EINVAL):
            await mds.sealer.seal(new)
        assert names(new) == [b"000000.json"]

    mds.run(test)
