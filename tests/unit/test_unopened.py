"""A tree of which the kernel opens files without a word: what is kept open, and what is let go."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from shardfs import config, open_store
from shardfs.errors import StaleShardError
from shardfs.vfs import Vfs, build_vfs

KEYS = config.CONTROL_READERS + 4


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = open_store(tmp_path / "store", driver="squirrel")
    for number in range(KEYS):
        made.set([{"x": os.urandom(100)}], f"k{number}")
    return tmp_path / "store"


def run(store: Path, work: Callable[[Vfs], Awaitable[None]]) -> None:
    async def main() -> None:
        made = build_vfs(open_store(store), budget=1 << 30, arrays="png", uid=0, gid=0)
        with trio.fail_after(30):
            async with made.running():
                made.without_opens()
                await work(made)

    trio.run(main)


async def inode_of(vfs: Vfs, *names: str) -> int:
    inode = 1
    for name in names:
        inode = (await vfs.lookup(inode, name.encode())).inode
    return inode


def held(store: Path) -> int:
    paths = []
    for number in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:
            continue  # the listing's own
    return sum(path.startswith(f"{store}/k") for path in paths)


def test_few_stored_shards_stay_open_and_forgotten_ones_do_not(store: Path) -> None:
    async def work(vfs: Vfs) -> None:
        numbers = [await inode_of(vfs, ".shardfs", "raw", f"k{number}") for number in range(KEYS)]
        for at, number in enumerate([*numbers, numbers[0]]):
            assert bytes(await vfs.read(number, 0, 1 << 20)) == (store / f"k{at % KEYS}.gz").read_bytes()
        assert held(store) == config.CONTROL_READERS
        for number in numbers:
            vfs.forget(number, 1)
        assert held(store) == 0
        assert bytes(await vfs.read(numbers[1], 3, 5)) == (store / "k1.gz").read_bytes()[3:8]

    run(store, work)


def test_what_is_open_of_a_replaced_shard_stays_and_its_name_is_to_be_forgotten(store: Path) -> None:
    async def work(vfs: Vfs) -> None:
        told: list[tuple[int, list[bytes]]] = []
        vfs.renamed = lambda directory, names: told.append((directory, list(names)))
        first, second = [await inode_of(vfs, ".shardfs", "raw", name) for name in ("k0", "k1")]
        before = (store / "k0.gz").read_bytes()
        assert bytes(await vfs.read(first, 0, 1 << 20)) == before
        for key in ("k0", "k1"):
            open_store(store).set([{"x": os.urandom(300)}], key)
        await vfs.refresh.everything()
        assert (await inode_of(vfs, ".shardfs", "raw"), [b"k0"]) in told
        assert all(names != [b"k1"] for _, names in told)
        assert bytes(await vfs.read(first, 0, 1 << 20)) == before
        with pytest.raises(StaleShardError):
            await vfs.read(second, 0, 10)

    run(store, work)


def test_a_state_of_a_document_that_may_be_open_is_kept(store: Path) -> None:
    async def work(vfs: Vfs) -> None:
        count = 0

        async def document() -> bytes:
            return b"%d" % count

        vfs.control.documents[b"count"] = document
        first = await inode_of(vfs, ".shardfs", "count")
        assert bytes(await vfs.read(first, 0, 100)) == b"0"
        for _ in range(config.CONTROL_STATES + 20):
            count += 1
            number = await inode_of(vfs, ".shardfs", "count")
            assert bytes(await vfs.read(number, 0, 100)) == b"%d" % count
            vfs.forget(number, 1)
        assert bytes(await vfs.read(first, 0, 100)) == b"0"
        vfs.forget(first, 1)
        with pytest.raises(StaleShardError):
            await vfs.read(first, 0, 100)

    run(store, work)
