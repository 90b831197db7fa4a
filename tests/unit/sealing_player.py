"""Edits a key of a real store through a staging area while it is being sealed over and over, until it is killed.

`python -m tests.unit.sealing_player ROOT SYSTEM SEED` says after each operation that it is done: whoever kills it plays
the same on a list of values, and compares with what is staged and stored.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
from pathlib import Path

import trio

from shardfs import table_building
from shardfs.drivers.base import Driver, Value
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import StorageError
from shardfs.index import ShardTable
from shardfs.model import Key
from shardfs.sealer import Sealed, Sealer
from shardfs.sealing import Base, is_temporary
from shardfs.shard_cache import ShardCache
from shardfs.staging import ROOT, StagedDirectory, StagingArea
from shardfs.storage.local import LocalStorage

KEY = Key("train/shard.00000")
START = [0, 1, 2, 3]


def driver_of(root: Path, system: str) -> Driver:
    storage = LocalStorage(root / "store")
    return StreamingDriver(storage) if system == "streaming" else SquirrelDriver(storage, compression=system)


def prepare(root: Path, system: str) -> None:
    (root / "store").mkdir()
    driver_of(root, system).write_records(KEY, [Value({"n": value}, str(value)) for value in START], base=None)


def area_of(root: Path) -> StagingArea:
    return StagingArea.open(str(root / "store"), root=root / "staging")


def stored(driver: Driver) -> Base:
    shard = driver.load(driver.entry(KEY), lambda _: None)
    return Base(shard, table_building.build(shard, "png"), "png")


def named(staged: StagedDirectory | None, table: ShardTable) -> dict[bytes, int | None]:
    """All files of the key in the order of their samples -> number of the stored one, or None for a staged one."""
    found: dict[bytes, int | None] = {
        name: number for name, _, number in table.listing(0) if staged is None or not staged.hides(number)
    }
    for entry in () if staged is None else staged.children():
        assert entry.name not in found, "a file that is there twice"
        if not is_temporary(entry.name):
            found[entry.name] = None
    return dict(sorted(found.items()))


def visible(staged: StagedDirectory | None, base: Base) -> list[int]:
    """The values of all samples, as a mount would show them."""
    values = []
    for name, number in named(staged, base.table).items():
        if number is not None:
            data = base.content(number)
        else:
            assert staged is not None
            entry = staged.find(ROOT, name)
            assert entry is not None
            with staged.open(entry.id, False) as file:
                data = file.pread(1000, 0)
        values.append(json.loads(data)["n"])
    return values


class Player:
    """The key, staged over what is stored."""

    def __init__(self, area: StagingArea, table: ShardTable, version: str) -> None:
        self.area = area
        self.table = table
        self.version = version
        self.sealer: Sealer | None = None
        self.highest = table.first_sample + table.samples - 1

    def sealed(self, sealed: Sealed) -> None:
        self.table, self.version = sealed.table, sealed.entry.version

    def staged(self) -> StagedDirectory:
        found = self.area.find(KEY)
        return self.area.create(KEY, base_version=self.version) if found is None else found

    def put(self, at: int | None, value: int) -> None:
        """Change a sample, or add one; as careful programs do, by renaming a file over it."""
        staged = self.staged()
        names = named(staged, self.table)
        if at is None:
            # not one that was removed during a seal: what was the last sample could come before it then
            self.highest = max(self.highest, *(int(name[:6]) for name in names)) + 1
            name = b"%06d.json" % self.highest
        else:
            name = list(names)[at]
        with staged.create(ROOT, b".new") as file:
            file.pwrite(b'{"n": %d}' % value, 0)
        staged.rename(ROOT, b".new", ROOT, name, names.get(name))
        self.touched(staged)

    def remove(self, at: int) -> None:
        staged = self.staged()
        name, number = list(named(staged, self.table).items())[at]
        if number is None:
            staged.unlink(ROOT, name)
        else:
            staged.hide(number)
        self.touched(staged)

    def touched(self, staged: StagedDirectory) -> None:
        if self.sealer is not None:
            self.sealer.touched(staged)


def choose(values: list[int], dice: random.Random, removes: bool) -> tuple[str, int, int]:
    """The next edit of these values."""
    kind, at, value = dice.random(), dice.randrange(len(values)), dice.randrange(1_000_000)
    if kind < 0.2 and removes and len(values) > 2:
        return "remove", at, 0
    return ("add", 0, value) if kind < 0.45 and len(values) < 40 else ("put", at, value)


def on_list(values: list[int], edit: tuple[str, int, int]) -> list[int]:
    kind, at, value = edit
    if kind == "add":
        return [*values, value]
    return [*values[:at], *([value] if kind == "put" else []), *values[at + 1 :]]


async def play(root: Path, system: str, seed: int) -> None:
    driver, area, dice = driver_of(root, system), area_of(root), random.Random(seed)
    cache = ShardCache(driver, 1 << 24, "png")
    sealer = Sealer(driver, cache, area, "png", 0.02)
    player, values = Player(area, stored(driver).table, driver.entry(KEY).version), START
    player.sealer = sealer
    sealer.on_sealed = player.sealed
    async with cache.running(), sealer.running(), trio.open_nursery() as nursery:
        os.write(1, b".")

        async def seal_over_and_over() -> None:
            while True:
                staged = area.find(KEY)
                if staged is not None:
                    try:
                        await sealer.seal(staged)
                    except StorageError as error:
                        if error.errno != errno.EBUSY:  # just being written
                            raise
                await trio.sleep(0.001 * (seed % 10))

        nursery.start_soon(seal_over_and_over)
        while True:
            edit = choose(values, dice, True)
            values = on_list(values, edit)
            if edit[0] == "remove":
                player.remove(edit[1])
            else:
                player.put(edit[1] if edit[0] == "put" else None, edit[2])
            os.write(1, b".")
            await trio.sleep(0.0005)


if __name__ == "__main__":
    trio.run(play, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
