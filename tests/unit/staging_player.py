"""Plays random operations on a staged directory and on dicts, which say what it must be like after each of them.

As a program (`python -m tests.unit.staging_player ROOT SEED HEAP_FROM`) it plays until it is killed, and says after
each operation that it is done: whoever kills it plays the same on dicts alone, and compares.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardfs import config
from shardfs.staging import ROOT, StagedDirectory, StagingArea

URL = "file:///the/store"
KEY = "train/k"
NAMES = [b"%d" % number for number in range(8)]

View = dict[bytes, bytes]
"""What a mount would show: name -> bytes."""


def visible(directory: StagedDirectory, bases: dict[str, list[tuple[bytes, bytes]]]) -> View:
    """What is staged over its version of the stored shard."""
    base = bases[directory.base_version or ""]
    view = {name: data for number, (name, data) in enumerate(base) if not directory.hides(number)}
    for entry in directory.children():
        assert entry.name not in view, "a name that is there twice"
        if entry.base is not None:
            view[entry.name] = base[entry.base][1]
        else:
            with directory.open(entry.id, False) as file:
                view[entry.name] = file.pread(1 << 20, 0)
        assert entry.size == len(view[entry.name])
    return view


@dataclass
class Item:
    """Where the bytes of a name are."""

    place: str | int
    """`own` (staged), `taken` (an entry, bytes in the stored shard) or the number of a stored file."""
    sealing: bytes | None = None
    """The name of the entry when the seal began that runs now."""
    changed: bool = False
    """True if its bytes have changed since."""


class Player:
    """The dicts, and the staged directory that must be like them (or none, to know what must be)."""

    def __init__(self, directory: StagedDirectory | None) -> None:
        self.directory = directory
        first = [(name, b"stored " + name) for name in NAMES[:4]]
        self.bases = {"v0": first}
        self.version = "v0"
        self.view: View = dict(first)
        self.where = {name: Item(number) for number, (name, _) in enumerate(first)}
        self.snapshot: View | None = None
        self.snapshot_base: dict[int, bytes] = {}
        self.seals = 0

    def _id(self, name: bytes) -> int:
        assert self.directory is not None
        entry = self.directory.find(ROOT, name)
        assert entry is not None
        return entry.id

    def create(self, name: bytes) -> None:
        if self.directory is not None:
            self.directory.create(ROOT, name).close()
        self.view[name], self.where[name] = b"", Item("own")

    def write(self, name: bytes, data: bytes, offset: int, sync: bool) -> None:
        if self.directory is not None:
            with self.directory.open(self._id(name), True) as file:
                file.pwrite(data, offset)
                if sync:
                    file.fsync()
        old = self.view[name].ljust(offset, b"\0")
        self.view[name] = old[:offset] + data + old[offset + len(data) :]
        self._own(name)

    def _own(self, name: bytes) -> None:
        self.where[name].place, self.where[name].changed = "own", True

    def truncate(self, name: bytes, size: int) -> None:
        if self.directory is not None:
            self.directory.truncate(self._id(name), size)
        self.view[name] = self.view[name][:size].ljust(size, b"\0")
        self._own(name)

    def take(self, name: bytes) -> None:
        number = self.where[name].place
        assert isinstance(number, int)
        if self.directory is not None:
            self.directory.adopt(name, number, len(self.view[name]), 0o644, 0, 0, 1)
        self.where[name].place = "taken"

    def copy(self, name: bytes) -> None:
        if self.directory is not None:
            self.directory.copy_up(self._id(name), [self.view[name][:3], self.view[name][3:]])
        self._own(name)

    def rename(self, name: bytes, new: bytes) -> None:
        hides = self.where[new].place if new in self.where else None
        if self.directory is not None:
            self.directory.rename(ROOT, name, ROOT, new, hides if isinstance(hides, int) else None)
        if name != new:
            self.view[new], self.where[new] = self.view.pop(name), self.where.pop(name)

    def remove(self, name: bytes) -> None:
        number = self.where.pop(name).place
        if self.directory is not None:
            if isinstance(number, int):
                self.directory.hide(number)
            else:
                self.directory.unlink(ROOT, name)
        del self.view[name]

    def sync(self) -> None:
        if self.directory is not None:
            self.directory.sync()

    def begin(self) -> None:
        if self.directory is not None:
            snapshot = self.directory.seal.begin(KEY, "token")
            stored = {name for name, item in self.where.items() if isinstance(item.place, int)}
            assert {entry.name for entry in snapshot.entries} | stored == set(self.view)
        self.snapshot = dict(self.view)
        self.snapshot_base = {item.place: name for name, item in self.where.items() if isinstance(item.place, int)}
        for name, item in self.where.items():
            item.sealing, item.changed = (None if isinstance(item.place, int) else name), False

    def failed(self) -> None:
        if self.directory is not None:
            self.directory.seal.failed()
        self.snapshot = None

    def done(self) -> None:
        assert self.snapshot is not None
        self.seals += 1
        version = f"v{self.seals}"
        base = sorted(self.snapshot.items())
        self.bases[version] = base
        number = {name: at for at, (name, _) in enumerate(base)}
        olds = {old: number[name] for old, name in self.snapshot_base.items()}
        if self.directory is not None:
            snapshot = self.directory.seal.snapshot
            assert snapshot is not None
            for entry in snapshot.entries:
                if entry.path is not None and os.path.exists(entry.path):
                    assert entry.read() == self.snapshot[entry.name], "the seal read something else"
            self.directory.seal.done(version, {e.id: number[e.name] for e in snapshot.entries}, olds.get)
        self.version, self.snapshot = version, None
        for name, item in self.where.items():
            if isinstance(item.place, int):
                item.place = olds[item.place]
            elif item.sealing is not None and not item.changed:
                item.place = number[name] if item.sealing == name else "taken"
            item.sealing = None


def choose(player: Player, dice: random.Random) -> Callable[[Player], None]:
    """The next operation, which depends on the dice and on the dicts only."""
    name, other = dice.choice(NAMES), dice.choice(NAMES)
    kind, offset, size = dice.random(), dice.randrange(20), dice.randrange(40)
    data = dice.randbytes(dice.randrange(1, 30))
    sync = dice.random() < 0.1
    if kind < 0.03:
        return Player.sync
    if kind < 0.10:
        if player.snapshot is None:
            return Player.begin
        return Player.done if offset < 12 else Player.failed
    if name not in player.view:
        return lambda p: p.create(name)
    if isinstance(player.where[name].place, int):
        return (lambda p: p.take(name)) if size < 32 else (lambda p: p.remove(name))
    if kind < 0.25:
        return lambda p: p.remove(name)
    if kind < 0.45:
        return lambda p: p.rename(name, other)
    if player.where[name].place == "taken":
        return (lambda p: p.truncate(name, 0)) if size < 10 else (lambda p: p.copy(name))
    if kind < 0.6:
        return lambda p: p.truncate(name, size)
    return lambda p: p.write(name, data, offset, sync)


def main(root: str, seed: str, heap_from: str) -> None:
    config.HEAP_FROM = int(heap_from)
    area = StagingArea.open(URL, root=Path(root))
    player, dice = Player(area.create(KEY, base_version="v0")), random.Random(int(seed))
    os.write(1, b".")
    while True:
        choose(player, dice)(player)
        os.write(1, b".")


if __name__ == "__main__":
    main(*sys.argv[1:])
