"""Objects of an S3 server kept on disk: fetched once, checked, read without the server, and never stale."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from shardfs.errors import StaleShardError, StorageError
from shardfs.opening import open_store
from shardfs.storage.cache_files import CacheFiles
from shardfs.storage.disk_cache import DiskCache, cached
from shardfs.storage.remote import RemoteStorage
from shardfs.storage.urls import open_remote
from tests.servers import Server

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def remote(moto: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> RemoteStorage:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    return open_remote(f"s3://bucket/{request.node.name}", endpoint=moto.endpoint)


def put(storage: Any, name: str, data: bytes) -> Any:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return storage.put(name, write)


def read(storage: Any, name: str, version: Any = None) -> bytes:
    with storage.open(name, version) as reader:
        pieces = []
        while piece := reader.read(1 << 20):
            pieces.append(piece)
        return b"".join(pieces)


def cache(remote: RemoteStorage, folder: Path, size: int = 100_000_000) -> DiskCache:
    made = cached(remote, "store", cache_dir=folder, cache_size=size, min_free=0)
    assert isinstance(made, DiskCache)
    return made


def test_an_object_is_fetched_once(remote: RemoteStorage, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 20
    listed = put(remote, "k", data)
    first = cache(remote, tmp_path)
    assert not first.at_hand("k", listed.version)
    assert read(first, "k", listed.version) == data
    before = remote.requests.asked
    assert first.at_hand("k", listed.version)
    assert read(first, "k", listed.version) == data
    assert read(cache(remote, tmp_path), "k", listed.version) == data
    assert remote.requests.asked == before


def test_a_new_version_is_fetched_anew(remote: RemoteStorage, tmp_path: Path) -> None:
    storage = cache(remote, tmp_path)
    old = put(remote, "k", b"old")
    assert read(storage, "k") == b"old"
    new = put(remote, "k", b"new")
    assert read(storage, "k", new.version) == b"new"
    assert read(storage, "k", old.version) == b"old"  # what a reader who began with it goes on with
    storage.files.clear()
    with pytest.raises(StaleShardError):
        read(storage, "k", old.version)


def test_the_mark_of_what_is_at_hand_asks_nobody(remote: RemoteStorage, tmp_path: Path) -> None:
    """`shardfs index` fetched each shard twice."""
    version = put(remote, "k", os.urandom(1 << 20)).version
    storage = cache(remote, tmp_path)
    wanted = remote.mark("k", version)
    assert storage.mark("k", version) == wanted
    read(storage, "k", version)
    before = remote.requests.asked
    assert storage.mark("k", version) == wanted
    assert remote.requests.asked == before


def test_threads_fetch_it_once(remote: RemoteStorage, tmp_path: Path) -> None:
    data = os.urandom(1 << 20)
    version = put(remote, "k", data).version
    storage = cache(remote, tmp_path)
    before = remote.requests.asked
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(read(storage, "k", version))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [data] * 8
    assert remote.requests.asked - before == 1


def _read_all(endpoint: str, prefix: str, folder: Path, seed: int) -> int:
    """Requests that one process made to read 20 objects in an order of its own."""
    remote = open_remote(f"s3://bucket/{prefix}", endpoint=endpoint)
    storage = cache(remote, folder)
    listed = remote.list((".gz",))
    before = remote.requests.asked
    random.Random(seed).shuffle(listed)
    for one in listed:
        assert read(storage, one.name, one.version) == one.name.encode() * 1000
    return remote.requests.asked - before


def test_processes_fetch_each_once(moto: Server, remote: RemoteStorage, tmp_path: Path) -> None:
    for number in range(20):
        put(remote, f"{number}.gz", f"{number}.gz".encode() * 1000)
    prefix = "test_processes_fetch_each_once"
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        asked = pool.starmap(_read_all, [(moto.endpoint, prefix, tmp_path, seed) for seed in range(4)])
    assert sum(asked) == 20
    assert CacheFiles(tmp_path, 1 << 40).verify() == []


def test_more_than_the_limit_is_read_right(remote: RemoteStorage, tmp_path: Path) -> None:
    storage = cache(remote, tmp_path, size=300_000)
    listed = [put(remote, f"{number}", os.urandom(100_000)) for number in range(8)]
    for _ in range(3):
        for one in listed:
            assert read(storage, one.name, one.version) == read(remote, one.name, one.version)
            assert sum(entry.size for entry in storage.files.entries()) <= 300_000


def test_a_disk_that_takes_nothing_is_read_past(remote: RemoteStorage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    storage = cache(remote, tmp_path / "file" / "below")
    listed = put(remote, "k", b"bytes")
    assert read(storage, "k", listed.version) == b"bytes"
    assert not storage.at_hand("k", listed.version)
    with pytest.raises(StorageError):
        storage.warm("k", listed.version)


def test_an_evicted_file_is_read_to_its_end(remote: RemoteStorage, tmp_path: Path) -> None:
    storage = cache(remote, tmp_path)
    data = os.urandom(1 << 20)
    version = put(remote, "k", data).version
    reader = storage.open("k", version)
    storage.files.clear()
    assert reader.read_at(1000, 10) == data[1000:1010]
    reader.close()


def test_a_store_is_read_without_its_server(
    moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: RemoteStorage
) -> None:
    """All that was read once, by entries that are known."""
    where = {"endpoint": moto.endpoint, "cache_dir": tmp_path, "cache_size": 10_000_000, "min_free": 0}
    store = open_store("s3://bucket/whole", "squirrel", **where)
    store.set([{"a": 1}], "k")
    assert list(store.get("k")) == [{"a": 1}]
    entry = store.entry("k")
    away = open_store("s3://bucket/whole", "squirrel", **where)
    monkeypatch.setattr(RemoteStorage, "fetch", None)
    assert away.driver.load(entry, lambda _: None).size == len(b"\x81\xa1a\x01")


def test_no_cache_where_its_size_is_0(remote: RemoteStorage, tmp_path: Path) -> None:
    assert cached(remote, "store", cache_dir=tmp_path, cache_size=0) is remote
