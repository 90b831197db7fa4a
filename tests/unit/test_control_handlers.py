"""What a mount does when a command asks it to: the handlers, over a real staging area."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from shardfs.control import error_from_json
from shardfs.control_handlers import commit_handler, staging_handlers, status_handlers
from shardfs.errors import BadSampleError, BadSettingError, MissingKeyError, ShardfsError, StagingError
from shardfs.model import Entry, Key, Version
from shardfs.opening import open_store
from shardfs.sealer import Sealer
from shardfs.shard_cache import ShardCache
from shardfs.staging import ROOT, StagedDirectory, StagingArea
from shardfs.vfs import build_vfs
from shardfs.workers import Workers


@pytest.fixture
def area(tmp_path: Path) -> Iterator[StagingArea]:
    opened = StagingArea.open("file:///store", root=tmp_path / "staging")
    yield opened
    opened.close()


def stage(area: StagingArea, key: str, **files: bytes) -> StagedDirectory:
    directory = area.create(key)
    for name, content in files.items():
        with directory.create(ROOT, name.replace("_", ".").encode()) as file:
            file.pwrite(content, 0)
    return directory


@dataclass(frozen=True)
class Done:
    key: str
    entry: Entry
    left: StagedDirectory | None = None


@dataclass
class ScriptedSealer:
    """Seals as the real one does, as far as the area can tell: what is sealed is gone from it."""

    area: StagingArea
    errors: dict[str, ShardfsError] = field(default_factory=dict)

    async def seal(self, staged: StagedDirectory) -> Done | None:
        key = staged.key
        if key in self.errors:
            raise self.errors[key]
        if staged.kind != "key" or staged.parked is not None:
            raise StagingError(f"{key} is not to be sealed", errno.EINVAL)
        if not len(staged):
            return None
        entry = entry_of(key)
        self.area.discard(staged)
        return Done(key, entry)

    async def seal_all(self) -> dict[str, ShardfsError]:
        failed = {}
        for staged in self.area.directories():
            key = staged.key
            if staged.kind == "key" and staged.parked is None:
                try:
                    await self.seal(staged)
                except ShardfsError as error:
                    failed[key] = error
        return failed


def discarding(area: StagingArea) -> Callable[[StagedDirectory], Awaitable[None]]:
    async def discard(directory: StagedDirectory) -> None:
        directory.end("discarded")
        area.discard(directory)

    return discard


def entry_of(key: str) -> Entry:
    return Entry(Key(key), Version("new"), 1000 + len(key), 0)


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        with trio.fail_after(20):
            return await work()

    return trio.run(main)


def test_commit_of_one_key(area: StagingArea) -> None:
    stage(area, "a", x_txt=b"1")
    stage(area, "b", x_txt=b"2")
    commit = commit_handler(ScriptedSealer(area), area)
    said = run(lambda: commit({"key": "a"}))
    assert said["stored"] == [{"key": "a", "stored_bytes": 1001, "left": False}]
    assert (said["failed"], said["nothing"]) == ([], [])
    assert [report["key"] for report in said["staged"]] == ["b"]


def test_commit_of_all_tells_of_each(area: StagingArea) -> None:
    for key in ("a", "b", "dir/c", "empty"):
        stage(area, key, **({} if key == "empty" else {"x_txt": b"1"}))
    area.create("d.tmp", "plain")
    area.park(stage(area, "p", x_txt=b"1"), "the store has another one")
    sealer = ScriptedSealer(area, {"b": BadSampleError("x.txt", "no text")})
    said = run(lambda: commit_handler(sealer, area, entry_of)({}))
    assert [one["key"] for one in said["stored"]] == ["a", "dir/c"]
    assert [one["stored_bytes"] for one in said["stored"]] == [1001, 1005]
    (failed,) = said["failed"]
    assert failed["key"] == "b"
    error = error_from_json(failed["error"])
    assert isinstance(error, BadSampleError)
    assert (error.file, error.reason, error.errno) == ("x.txt", "no text", errno.EINVAL)
    left = [(report["key"].partition(".")[0], report["state"]) for report in said["staged"]]
    assert left == [("b", "staged"), ("empty", "staged"), ("d", "staged"), ("p", "parked")]


def test_commit_of_what_was_stored_already_is_no_error(area: StagingArea) -> None:
    """The seal by time may have been faster than the command."""
    commit = commit_handler(ScriptedSealer(area), area, lambda key: entry_of(key) if key == "there" else None)
    assert run(lambda: commit({"key": "there"}))["nothing"] == ["there"]
    with pytest.raises(MissingKeyError, match="nothing is staged for none"):
        run(lambda: commit({"key": "none"}))


def test_commit_of_what_cannot_be_sealed(area: StagingArea) -> None:
    area.create("d.tmp", "plain")
    stage(area, "empty")
    commit = commit_handler(ScriptedSealer(area), area)
    (failed,) = run(lambda: commit({"key": "d.tmp"}))["failed"]
    assert failed["error"]["errno"] == errno.EINVAL
    assert run(lambda: commit({"key": "empty"}))["nothing"] == ["empty"]


@pytest.mark.parametrize("key", ["", 7, ["a"], {"a": 1}, True])
def test_arguments_that_make_no_sense(area: StagingArea, key: Any) -> None:
    async def work() -> None:
        handlers = staging_handlers(ScriptedSealer(area), area, Workers().io, discard=discarding(area))
        for name in ("commit", "discard", "trust"):
            with pytest.raises(BadSettingError):
                await handlers[name]({"key": key})

    run(work)


def test_discard_and_trust_through_a_mount(area: StagingArea) -> None:
    trusted: list[StagedDirectory] = []
    stage(area, "a", x_txt=b"1")
    second = stage(area, "b", x_txt=b"1")
    number = second.id

    async def work() -> None:
        handlers = staging_handlers(
            ScriptedSealer(area), area, Workers().io, discard=discarding(area), trusted=trusted.append
        )
        assert await handlers["discard"]({"key": "a"}) == {"discarded": "a"}
        assert area.find("a") is None
        assert await handlers["trust"]({"key": "b"}) == {"trusted": "b"}
        assert await handlers["discard"]({"key": number}) == {"discarded": "b"}
        with pytest.raises(MissingKeyError):
            await handlers["discard"]({"key": "a"})

    run(work)
    assert trusted == [second]


def test_a_mount_that_cannot_discard_does_not_offer_it(area: StagingArea) -> None:
    async def work() -> None:
        assert sorted(staging_handlers(ScriptedSealer(area), area, Workers().io)) == ["commit", "trust"]

    run(work)


def test_what_is_being_written_is_not_discarded(area: StagingArea) -> None:
    directory = stage(area, "a", x_txt=b"1")

    async def work() -> None:
        handlers = staging_handlers(ScriptedSealer(area), area, Workers().io, discard=discarding(area))
        with (
            directory.create(ROOT, b"y.txt"),
            pytest.raises(ShardfsError, match="open for writing") as raised,
        ):
            await handlers["discard"]({"key": "a"})
        assert raised.value.errno == errno.EBUSY
        directory.seal.begin("a", "token")
        with pytest.raises(ShardfsError, match="being stored"):
            await handlers["discard"]({"key": "a"})

    run(work)
    assert area.find("a") is directory


def test_commit_by_the_real_sealer(tmp_path: Path, area: StagingArea) -> None:
    (tmp_path / "s").mkdir()
    store = open_store(tmp_path / "s", "squirrel")
    stage(area, "good", **{"000000_json": b'{"label": 1}'})
    stage(area, "bad", **{"000000_json": b"{"})
    open_still = stage(area, "open", **{"000000_json": b"{}"})

    async def work() -> tuple[dict[str, Any], dict[str, Any]]:
        cache = ShardCache(store.driver, 1 << 20, "png")
        sealer = Sealer(store.driver, cache, area, "png", None)
        async with cache.running(), sealer.running():
            commit = commit_handler(sealer, area, store.entry)
            with open_still.create(ROOT, b"000001.json"):
                return await commit({}), await commit({"key": "open"})

    everything, one = run(work)
    (stored,) = everything["stored"]
    assert stored == {"key": "good", "stored_bytes": store.entry("good").stored_bytes, "left": False}
    failed = {each["key"]: each["error"]["errno"] for each in everything["failed"]}
    assert failed == {"bad": errno.EINVAL, "open": errno.EBUSY}
    assert [each["error"]["errno"] for each in one["failed"]] == [errno.EBUSY]
    assert [report["key"] for report in one["staged"]] == ["bad", "open"]
    assert store.get("good")[0] == {"label": 1}


def test_status_says_what_the_cache_says(tmp_path: Path, area: StagingArea) -> None:
    (tmp_path / "s").mkdir()
    store = open_store(tmp_path / "s", "squirrel")
    store.set([{"x": b"1" * 100, "label": 1}], "k")
    stage(area, "a", x_txt=b"12345")

    async def work() -> dict[str, Any]:
        vfs = build_vfs(store, budget=1 << 20, arrays="png", uid=0, gid=0)
        async with vfs.running():
            handlers = status_handlers(vfs, "the-store", "squirrel", writable=True, area=area)
            assert await handlers["ping"]({}) == {"pid": os.getpid()}
            key = await vfs.lookup(1, b"k")
            await vfs.opendir(key.inode)
            said: dict[str, Any] = await handlers["status"]({})
            assert said["cache"]["used"] == vfs.cache.used > 0
            return said

    said = run(work)
    assert (said["store"], said["driver"], said["mode"], said["keys"]) == ("the-store", "squirrel", "rw", 1)
    assert (said["cache"]["budget"], said["cache"]["loads"], said["cache"]["shards"]) == (1 << 20, 1, 1)
    assert [(one["key"], one["files"], one["data_bytes"]) for one in said["staged"]] == [("a", 1, 5)]
