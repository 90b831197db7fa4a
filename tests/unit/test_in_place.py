"""Raw MDS shards read where they lie: what is served, what is never served, and what it holds."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from shardfs import config, table_building
from shardfs.drivers.base import ShardReader
from shardfs.drivers.in_place import InPlace
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import StaleShardError
from shardfs.model import Entry, Key
from shardfs.shard_cache import ShardCache
from shardfs.storage.local import LocalStorage
from shardfs.storage.local_reader import LocalReader
from tests.bench import mds_writer


def samples(shards: int, each: int) -> list[list[dict[str, Any]]]:
    return [
        [{"data": bytes([shard, at]) * 3000, "label": at, "name": f"sample {at}"} for at in range(each)]
        for shard in range(shards)
    ]


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    root.mkdir()
    mds_writer.write(root, (iter(shard) for shard in samples(3, 20)), False)
    return root


def opened(root: Path) -> tuple[StreamingDriver, Entry, ShardReader]:
    driver = StreamingDriver(LocalStorage(root))
    entry = driver.entries()[0]
    reader = driver.open(entry, entry.raw_bytes or 0)
    assert isinstance(reader, InPlace)
    return driver, entry, reader


def drop_pages(path: Path) -> None:
    os.sync()
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def raw_file(root: Path) -> Path:
    return min(root.rglob("*.mds"))


def test_parts_are_those_of_the_loaded_shard(data_set: Path) -> None:
    driver, entry, reader = opened(data_set)
    shard = driver.load(entry, lambda _: None)
    assert reader.size == shard.size
    assert reader.held == 0
    for start, end in ((0, 1), (0, reader.size), (5, 5000), (reader.size - 7, reader.size), (100, 100)):
        assert reader.fetch(start, end) == shard.raw[start:end]
        assert reader.part(start, end) == shard.raw[start:end]
    table = table_building.build(shard, "png")
    for file in range(table.files):
        if table.slice_of(file) is None:
            assert table.render(file, reader, "png") == table.render(file, shard, "png")
            assert table.render_now(file, reader, "png") == table.render(file, shard, "png")


def test_cells_are_those_of_the_loaded_shard(data_set: Path) -> None:
    driver, entry, reader = opened(data_set)
    shard = driver.load(entry, lambda _: None)
    first = next(shard.records())
    cells = reader.cells(reader.fetch(first.start, first.end))
    assert cells is not None
    assert {name: bytes(cell) for name, cell in cells.items()} == {
        name: bytes(cell) for name, cell in shard.cells(shard.raw[first.start : first.end]).items()
    }
    assert bytes(cells["name"]) == b"sample 0"


def test_what_is_not_in_the_page_cache_is_not_waited_for(data_set: Path) -> None:
    _, _, reader = opened(data_set)
    drop_pages(raw_file(data_set))
    if reader.part(0, 4096) is not None:
        pytest.skip("this file system keeps its pages, or reads them at once")
    assert bytes(reader.fetch(0, 4096)) == raw_file(data_set).read_bytes()[:4096]
    assert reader.part(0, 4096) is not None


def test_a_view_is_never_written_to_while_somebody_holds_it(data_set: Path) -> None:
    _, _, reader = opened(data_set)
    whole = raw_file(data_set).read_bytes()
    size = config.SCRATCH_FLOOR + 1
    views = [(start, reader.part(start, start + size)) for start in range(0, 10 * config.SCRATCHES, 3)]
    for start, view in views:
        assert view == whole[start : start + size]


def test_a_shard_that_was_renamed_over_still_gives_the_old_bytes(data_set: Path) -> None:
    _, _, reader = opened(data_set)
    path = raw_file(data_set)
    before = path.read_bytes()
    other = path.with_suffix(".new")
    other.write_bytes(before[::-1])
    other.replace(path)
    assert reader.fetch(0, reader.size) == before
    assert reader.part(0, 10) == before[:10]


@pytest.mark.parametrize("change", ["overwritten", "truncated", "grown"])
def test_a_shard_that_is_written_to_is_stale_and_never_a_mixture(data_set: Path, change: str) -> None:
    _, _, reader = opened(data_set)
    path = raw_file(data_set)
    with path.open("r+b") as file:
        if change == "overwritten":
            file.seek(50)
            file.write(b"other")
        else:
            file.truncate(40 if change == "truncated" else reader.size + 1)
    with pytest.raises(StaleShardError):
        reader.fetch(0, 100)
    with pytest.raises(StaleShardError):
        reader.part(0, 30)


def test_a_file_that_a_hash_stands_for_is_loaded_and_checked(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "data"
    found = 0
    for number, position in enumerate(sorted(source.rglob("index.json"))):
        root = tmp_path / str(number)
        shutil.copytree(position.parent, root)
        driver = StreamingDriver(LocalStorage(root))
        for entry in driver.entries():
            place = driver._scanner.fresh(entry.key).places[entry.key]
            if place.raw.hashes and entry.version.split(".", 2)[1] == "raw":
                found += 1
                assert driver.open(entry, entry.raw_bytes or 0) is None
                unchecked = StreamingDriver(LocalStorage(root), validate_hash="off")
                assert unchecked.open(unchecked.entry(entry.key), entry.raw_bytes or 0) is not None
    assert found


def test_another_version_or_size_is_no_reader(data_set: Path) -> None:
    driver, entry, _ = opened(data_set)
    assert driver.open(entry, (entry.raw_bytes or 0) + 1) is None
    path = raw_file(data_set)
    path.write_bytes(path.read_bytes())
    with pytest.raises(StaleShardError):
        driver.open(entry, entry.raw_bytes or 0)


def test_a_closed_reader_gives_its_descriptor_back(data_set: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    readers = [opened(data_set)[2] for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) == before + 5
    readers.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_all_of_a_shard_is_read_ahead_once_it_is_used_as_a_whole(
    data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advised: list[int] = []
    monkeypatch.setattr(LocalReader, "advise", lambda reader: advised.append(reader.size))
    _, _, reader = opened(data_set)
    for at in range(config.ADVISE_AFTER + 3):
        reader.fetch(at, at + 1)
    assert advised == [reader.size]
    monkeypatch.setattr(config, "ADVISE_LIMIT", reader.size - 1)
    _, _, huge = opened(data_set)
    huge.expect()
    assert advised == [reader.size]


def run(root: Path, work: Callable[[ShardCache, list[Entry]], Any]) -> None:
    async def main() -> None:
        driver = StreamingDriver(LocalStorage(root))
        cache = ShardCache(driver, 1 << 30, "png")
        with trio.fail_after(20):
            async with cache.running():
                await work(cache, driver.entries())

    trio.run(main)


def test_the_cache_holds_no_memory_for_it_and_few_descriptors(data_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "READERS", 2)

    async def work(cache: ShardCache, entries: list[Entry]) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(2):
            for entry in entries:
                loaded = await cache.shard(entry)
                assert loaded.partial
                assert cache.used == 0
                piece = await cache.fetched(entry, loaded, 0, 100)
                assert piece == raw_file_of(data_set, entry).read_bytes()[:100]
        del loaded
        assert len(cache) == 2
        assert len(os.listdir("/proc/self/fd")) == before + 2
        assert (cache.counts.loads, cache.counts.opened) == (3, 3)

    run(data_set, work)


def raw_file_of(root: Path, entry: Entry) -> Path:
    (found,) = [path for path in root.rglob("*.mds") if str(path.relative_to(root)).startswith(entry.key)]
    return found


def test_a_stale_piece_is_told_to_its_reader_and_the_key_lives_on(data_set: Path) -> None:
    async def work(cache: ShardCache, entries: list[Entry]) -> None:
        loaded = await cache.shard(entries[0])
        path = raw_file_of(data_set, entries[0])
        path.write_bytes(path.read_bytes())
        with pytest.raises(StaleShardError):
            await cache.fetched(entries[0], loaded, 0, 10)
        assert not loaded.pins
        fresh = await cache.fresh_entry(Key(entries[0].key))
        again = await cache.shard(fresh)
        assert await cache.fetched(fresh, again, 0, 10) == path.read_bytes()[:10]

    run(data_set, work)


def test_without_parts_every_shard_is_loaded_whole(data_set: Path) -> None:
    async def main() -> None:
        driver = StreamingDriver(LocalStorage(data_set))
        cache = ShardCache(driver, 1 << 30, "png", parts=False)
        async with cache.running():
            for _ in range(2):
                for entry in driver.entries():
                    loaded = await cache.shard(entry)
                    assert not loaded.partial
                    assert loaded.shard.part(0, loaded.shard.size) == raw_file_of(data_set, entry).read_bytes()
                    cache.drop(entry)
                    cache.tables.keep(entry, loaded.table)
            assert (cache.counts.loads, cache.counts.opened) == (6, 0)

    trio.run(main)


def test_what_one_long_write_is_in_the_middle_of_is_not_taken_for_the_new_content(tmp_path: Path) -> None:
    """The file's times change when a write begins: who opened it then got the old end with the new beginning, and
    nothing ever said so."""
    size, path = 48 << 20, tmp_path / "shard"
    path.write_bytes(b"a" * size)
    storage, ended = LocalStorage(tmp_path), threading.Event()
    got: list[bytes] = []

    def read() -> None:
        before = storage.stat("shard").version
        while not ended.is_set():
            version = storage.stat("shard").version
            if version != before:
                with contextlib.suppress(StaleShardError), storage.open("shard", version) as reader:
                    got.append(reader.read_at(0, 1) + reader.read_at(size - 1, 1))
                    return

    for content in (b"b", b"a", b"b"):
        ended.clear()
        thread = threading.Thread(target=read)
        thread.start()
        descriptor = os.open(path, os.O_WRONLY)
        assert os.pwrite(descriptor, content * size, 0) == size
        os.close(descriptor)
        ended.set()
        thread.join()
    assert set(got) <= {b"aa", b"bb"}
