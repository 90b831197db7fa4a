"""Raw bytes of shards kept on disk: read in place of a load, never other bytes, within the limit, past what fails."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from shardfs.drivers.base import KeepsRaw
from shardfs.errors import BadSettingError
from shardfs.opening import open_store
from shardfs.raw_forms import RawForms, raw_forms
from shardfs.shard_cache import ShardCache
from shardfs.storage.cache_files import CacheFiles
from shardfs.store import Store
from shardfs.vfs import Vfs

pytestmark = pytest.mark.timeout(60)


def squirrel(folder: Path, keys: int = 4, *, zst: bool = False, jsonl: bool = False) -> Store:
    options = {"compression": "zst"} if zst else {}
    store = open_store(folder, "squirrel-jsonl" if jsonl else "squirrel", **options)
    for key in range(keys):
        samples = [{"x": "x" * number if jsonl else os.urandom(5000), "n": key} for number in range(20)]
        store.set(samples, f"k{key}")
    return open_store(folder)


def webdataset(folder: Path) -> Store:
    folder.mkdir()
    for key in range(4):
        with tarfile.open(folder / f"k{key}.tar.gz", "w:gz") as tar:
            for number in range(20):
                member = tarfile.TarInfo(f"{number:06d}.bin")
                member.size = 5000
                tar.addfile(member, io.BytesIO(os.urandom(5000)))
    return open_store(folder)


def streaming(folder: Path, codec: str, format: str = "mds") -> Store:
    folder.mkdir()
    store = open_store(folder, "streaming", compression=codec, format=format)
    store.driver.beginning = True  # type: ignore[attr-defined]
    for key in range(4):
        store.set([{"x": f"text {number}" * 100, "n": key} for number in range(20)], f"shard.{key:05d}")
    return open_store(folder)


MAKERS: dict[str, Callable[[Path], Store]] = {
    "msgpack": squirrel,
    "jsonl": lambda folder: squirrel(folder, jsonl=True),
    "tar.gz": webdataset,
    "mds.gz": lambda folder: streaming(folder, "gz"),
    "mds.bz2": lambda folder: streaming(folder, "bz2"),
    "json.gz": lambda folder: streaming(folder, "gz", "json"),
}


@pytest.fixture
def files(tmp_path: Path) -> CacheFiles:
    return CacheFiles(tmp_path / "cache", 100_000_000, min_free=0)


class Served:
    """A store as a mount has it, with a budget that holds one shard."""

    def __init__(self, store: Store, files: CacheFiles, when: str = "always", budget: int = 1) -> None:
        self.raw = raw_forms(store.driver, store.identity, files, when, far=False)
        self.cache = ShardCache(store.driver, budget, "png", None, raw=self.raw)
        self.vfs = Vfs(store.driver, self.cache, 0, 0, read_ahead=False)

    async def everything(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for key in self.vfs.tree.slots:
            table = await self.cache.table(key.entry)
            for name, size, file in table.listing(0):
                path = os.fsencode(key.entry.key) + b"/" + name
                handle = key.slot << 32 | file
                found[path] = bytes(await self.vfs.read(handle, 0, size + 1))
                assert len(found[path]) == size
            await self._written()
        return found

    async def _written(self) -> None:
        """Wait until nothing is being written: what is loaded meanwhile may be left for the next time."""
        while self.raw is not None and self.raw.busy:
            await trio.sleep(0.001)


def kept(files: CacheFiles) -> int:
    return sum(entry.about.form == "raw" for entry in files.entries())


@pytest.mark.parametrize("kind", MAKERS)
def test_shards_are_read_out_of_their_raw_bytes(kind: str, tmp_path: Path, files: CacheFiles) -> None:
    store = MAKERS[kind](tmp_path / "store")

    async def work() -> None:
        served = Served(store, files)
        async with served.vfs.running():
            first = await served.everything()
            assert kept(files) == 4
            assert await served.everything() == first
            assert (served.cache.counts.loads, served.cache.counts.raw) == (4, 4)
        plain = Served(store, files, "off")
        async with plain.vfs.running():
            assert await plain.everything() == first

    trio.run(work)
    assert files.verify() == []


def test_nothing_is_kept_where_reading_is_as_good(tmp_path: Path, files: CacheFiles) -> None:
    """zstd decompresses as fast as a disk reads."""
    store = squirrel(tmp_path / "store", zst=True)
    assert isinstance(store.driver, KeepsRaw)
    assert [store.driver.raw_name(entry) for entry in store.driver.entries()] == [None] * 4


def test_again_keeps_what_had_to_be_loaded_twice(tmp_path: Path, files: CacheFiles) -> None:
    store = squirrel(tmp_path / "store")

    async def work() -> None:
        served = Served(store, files, "again")
        async with served.vfs.running():
            await served.everything()
            assert served.cache.calm()
            assert kept(files) == 0
            await served.everything()
            assert kept(files) == 4

    trio.run(work)


def test_raw_bytes_that_cannot_be_read_are_done_without(tmp_path: Path, files: CacheFiles) -> None:
    """A file that somebody cut off while it was open, and one that was cut off before."""
    store = squirrel(tmp_path / "store", keys=2)

    async def work() -> None:
        served = Served(store, files)
        async with served.vfs.running():
            first = await served.everything()
            assert kept(files) == 2
            await served.everything()  # k1 is open now, out of its raw bytes or as it was loaded
            for entry in files.entries():
                os.truncate(entry.path, 10)
            assert await served.everything() == first

    trio.run(work)


def test_a_new_version_is_not_read_out_of_the_old_ones_bytes(tmp_path: Path, files: CacheFiles) -> None:
    store = squirrel(tmp_path / "store", keys=2)

    async def work() -> None:
        served = Served(store, files)
        async with served.vfs.running():
            await served.everything()
            assert kept(files) == 2
        store.set([{"x": b"new" * 1000}] * 20, "k0")
        served = Served(open_store(tmp_path / "store"), files)
        async with served.vfs.running():
            found = await served.everything()
        assert found[b"k0/000000.x.bin"] == b"new" * 1000

    trio.run(work)


def test_the_limit_holds_for_raw_bytes_too(tmp_path: Path) -> None:
    store = squirrel(tmp_path / "store", keys=8)
    files = CacheFiles(tmp_path / "cache", 450_000, min_free=0)  # four shards

    async def work() -> None:
        served = Served(store, files)
        async with served.vfs.running():
            first = await served.everything()
            for _ in range(3):
                assert await served.everything() == first
                assert sum(entry.size for entry in files.entries()) <= files.limit

    trio.run(work)
    assert files.entries()


def test_no_more_wait_than_may(tmp_path: Path, files: CacheFiles) -> None:
    store = squirrel(tmp_path / "store", keys=8)
    raw = RawForms(store.driver, files, "store", "always")
    entries = store.driver.entries()
    assert raw.admits(entries[0], 1000, 1 << 20)
    assert raw.admits(entries[0], 1000, 1 << 20)
    assert not raw.admits(entries[0], 1000, 1 << 20)
    raw.done(1000)
    assert not raw.admits(entries[0], 1 << 20, 1 << 20)
    raw.done(1000)
    assert not raw.busy
    assert raw.admits(entries[0], 1 << 20, 1)  # a single one always
    raw.done(1 << 20)
    assert not raw.admits(entries[0], files.limit, 1)
    raw.end()
    assert not raw.admits(entries[0], 1000, 1 << 20)


def test_what_is_kept_by_itself(tmp_path: Path, files: CacheFiles) -> None:
    """Nothing of a store on this machine, unless that is asked for."""
    driver = squirrel(tmp_path / "store").driver
    assert raw_forms(driver, "s", files, None, far=False) is None
    assert raw_forms(driver, "s", files, "off", far=True) is None
    assert raw_forms(driver, "s", None, "always", far=True) is None
    assert raw_forms(driver, "s", files, None, far=True) is not None
    with pytest.raises(BadSettingError):
        raw_forms(driver, "s", files, "sometimes", far=True)
