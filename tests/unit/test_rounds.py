"""Rounds: what the kernel knows something of is compared with the store, and no more than that, nor oftener."""

from __future__ import annotations

import gzip
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgpack
import pytest
import trio
from trio.testing import MockClock

from shardfs import config
from shardfs.commands.options import parse_refresh
from shardfs.drivers.base import Driver
from shardfs.drivers.snapshot import SnapshotDriver
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.drivers.suspects import suspects_of
from shardfs.drivers.union import UnionDriver
from shardfs.errors import StorageError
from shardfs.model import Entry, Key
from shardfs.opening import open_store
from shardfs.refresh import Refresh
from shardfs.rounds import compare
from shardfs.storage.local import LocalStorage
from shardfs.tree import KeyTree
from tests.conformance.webdataset_suite import written

KEYS = [f"k{number}" for number in range(10)]


def put(store: Path, key: str, size: int) -> None:
    """A shard, over what is there in place."""
    overwrite(store / f"{key}.gz", gzip.compress(msgpack.packb({"x": os.urandom(size)})))


def overwrite(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.pwrite(descriptor, data, 0)
    os.ftruncate(descriptor, len(data))
    os.close(descriptor)


class Counted(SquirrelDriver):
    """A Squirrel store that says how often it was looked at, and hangs or fails when it is told to."""

    def __init__(self, path: Path) -> None:
        super().__init__(LocalStorage(path))
        self.looks: list[int] = []
        self.hangs = threading.Event()
        self.hangs.set()
        self.fails = False

    def suspects(self, entries: Sequence[Entry]) -> list[Entry]:
        self.looks.append(len(entries))
        self.hangs.wait(30)
        if self.fails:
            raise StorageError("away")
        objects = [one for entry in entries for one in self.objects(entry)]
        outdated = self.storage.outdated(objects)  # type: ignore[attr-defined]
        return [entry for entry in entries if self.objects(entry)[0][0] in outdated]


class Watched:
    """A store with a tree of it, ten keys of which the kernel knows something, and what was superseded."""

    def __init__(self, path: Path, interval: float, known: int = len(KEYS)) -> None:
        for key in KEYS:
            put(path, key, 10)
        os.utime(path, (1, 1))  # else it might be so young that it is listed again
        self.path = path
        self.driver = Counted(path)
        self.tree = KeyTree(self.driver.entries())
        self.gone: list[str] = []
        self.refresh = Refresh(self.driver, self.tree, lambda key: self.gone.append(key.entry.key), interval)
        self.used = 0
        for directory in self.tree.slots[:known]:
            directory.lookups = 1
            self.tree.know(directory)

    def asked(self) -> int:
        """Requests so far: there is always one more."""
        self.used += 1
        return self.used

    def run(self, test: Callable[[], object], seconds: float) -> None:
        """Have some time pass, and then `test` be true."""

        async def main() -> None:
            async with self.refresh.running():
                await trio.sleep(seconds)
                test()

        trio.run(main, clock=MockClock(autojump_threshold=0.02))


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path, 1.0)


def test_what_nobody_asks_for_is_found_within_the_interval(watched: Watched) -> None:
    watched.refresh.requests = watched.asked
    before = watched.tree.current(Key("k3"))
    put(watched.path, "k3", 20)
    watched.run(lambda: None, 1.5)
    now = watched.tree.current(Key("k3"))
    assert watched.gone == ["k3"]
    assert before is not None
    assert now is not None
    assert before.superseded
    assert now.entry == watched.driver.entry(Key("k3"))
    assert not now.known


def test_nothing_is_looked_at_of_which_nothing_is_known(tmp_path: Path) -> None:
    watched = Watched(tmp_path, 1.0, known=0)
    watched.refresh.requests = watched.asked
    watched.run(lambda: None, 100)
    assert watched.driver.looks == []


def test_what_the_kernel_has_forgotten_is_known_no_more(watched: Watched) -> None:
    watched.refresh.requests = watched.asked
    for directory in watched.tree.slots[2:]:
        watched.tree.forget(directory, 1)
    watched.run(lambda: None, 1.5)
    assert watched.driver.looks == [2]


def test_a_mount_that_nobody_uses_has_few_rounds(watched: Watched) -> None:
    watched.run(lambda: None, 100.5)
    assert len(watched.driver.looks) == 100 // config.REFRESH_IDLE


@pytest.mark.parametrize("word", ["immutable", "manual"])
def test_immutable_and_manual_look_at_nothing(tmp_path: Path, word: str) -> None:
    watched = Watched(tmp_path, parse_refresh(word))
    watched.refresh.requests = watched.asked
    put(watched.path, "k3", 20)
    watched.run(lambda: None, 10_000)
    assert (watched.driver.looks, watched.gone) == ([], [])


def test_a_round_has_a_limit_and_no_key_is_left_out(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "REFRESH_CHECKS", 3)
    watched.refresh.requests = watched.asked
    for key in KEYS:
        put(watched.path, key, 20)
    watched.run(lambda: None, 4.5)
    assert watched.driver.looks == [3, 3, 3, 1]
    assert sorted(watched.gone) == KEYS


def test_a_store_that_hangs_has_one_round_waiting(watched: Watched) -> None:
    watched.refresh.requests = watched.asked
    watched.driver.hangs.clear()
    put(watched.path, "k3", 20)
    watched.run(lambda: None, 1000)  # which does not wait for it at the end, either
    assert len(watched.driver.looks) == 1
    watched.driver.hangs.set()
    watched.run(lambda: None, 1.5)
    assert watched.gone == ["k3"]


def test_a_store_that_fails_is_said_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.refresh.requests = watched.asked
    watched.driver.fails = True
    watched.run(lambda: None, 5.5)
    assert [record.getMessage() for record in caplog.records] == ["the store cannot be asked for changes: away"]
    watched.driver.fails = False
    watched.run(lambda: None, 1.5)
    watched.driver.fails = True
    watched.run(lambda: None, 5.5)
    assert len(caplog.records) == 2


def test_what_there_was_no_time_for_is_left_for_the_next_round(tmp_path: Path) -> None:
    class One(SquirrelDriver):
        def suspects(self, entries: Sequence[Entry]) -> list[Entry]:
            return list(entries)

    for key in KEYS:
        put(tmp_path, key, 10)
    driver = One(LocalStorage(tmp_path))
    entries = driver.entries()
    (tmp_path / "k0.gz").unlink()
    found = compare(driver, entries, 0.0)
    assert (found.differing, found.left) == ([(entries[0], None)], entries[1:])
    assert compare(driver, entries, 60.0).left == []


# --- what drivers tell ------------------------------------------------------------------------------------------------


def squirrel(path: Path) -> tuple[Driver, Path]:
    for key in ("a", "deep/b"):
        put(path, key, 10)
    return open_store(path, driver="squirrel").driver, path / "deep/b.gz"


def tars(path: Path) -> tuple[Driver, Path]:
    for key in ("a", "b"):
        written(path / f"{key}.tar", [{"__key__": key, "txt": b"text"}])
    return open_store(path, driver="webdataset").driver, path / "b.tar"


def data_set(path: Path) -> tuple[Driver, Path]:
    store = open_store(path, driver="streaming")
    store.set([{"x": 1}], "a")
    store.set([{"x": 2}], "b")
    name = json.loads((path / "index.json").read_text())["shards"][1]
    return store.driver, path / (name["zip_data"] or name["raw_data"])["basename"]


def union(path: Path) -> tuple[Driver, Path]:
    one, file = squirrel(path / "one")
    other, _ = tars(path / "other")
    return UnionDriver({"one": one, "other": other}), file


@pytest.mark.parametrize("made", [squirrel, tars, data_set, union])
def test_each_driver_tells_what_was_overwritten_in_place(
    tmp_path: Path, made: Callable[[Path], tuple[Driver, Path]]
) -> None:
    driver, file = made(tmp_path / "store")
    entries = driver.entries()
    assert suspects_of(driver, entries) == []
    overwrite(file, file.read_bytes())
    assert [entry.key for entry in suspects_of(driver, entries)] == [entries[-1 if "one" not in file.parts else 1].key]
    ((before, now),) = compare(driver, entries, 60.0).differing
    assert now is not None
    assert (before.key, before.version) != (now.key, now.version)
    assert suspects_of(SnapshotDriver(driver, entries), entries) == []
    file.unlink()
    assert [entry.key for entry in suspects_of(driver, entries)] == [before.key]
