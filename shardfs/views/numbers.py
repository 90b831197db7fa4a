"""Inode numbers of what only views have: directories and generated files. Pure state.

Each owner has a run of numbers, which is given once and never again to another, so that no number ever means something
else while the mount lives. Knows nothing of what owners are.
"""

from __future__ import annotations

import errno
from array import array
from bisect import bisect_left, bisect_right
from typing import Any, NamedTuple

from shardfs import config, inodes
from shardfs.errors import StorageError
from shardfs.model import Inode


class Owner(NamedTuple):
    """Who has numbers."""

    place: int
    """The number of a view at one place."""
    kind: int
    """What of it: see `files`."""
    what: Any
    """Which one: a slot, a directory of the tree, a path of names."""


class Ranges:
    """Runs of numbers from inodes.VIEWS on."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")
        self._owners: list[Owner] = []
        self._known: dict[Owner, int] = {}
        self._next = int(inodes.VIEWS)

    def __len__(self) -> int:
        return len(self._known)

    def of(self, owner: Owner, count: int = 1) -> Inode:
        """The first of an owner's `count` numbers. EMFILE where there are too many owners."""
        known = self._known.get(owner)
        if known is None:
            if len(self._known) >= config.VIEW_OWNERS:
                raise StorageError(f"more than {config.VIEW_OWNERS} directories and files of views", errno.EMFILE)
            known = self._known[owner] = self._next
            self._starts.append(known)
            self._next += max(count, 1)
            self._ends.append(known + count)
            self._owners.append(owner)
        return Inode(known)

    def known(self, owner: Owner) -> int | None:
        """The first of an owner's numbers; None for who has none."""
        return self._known.get(owner)

    def kinds(self, place: int, kind: int) -> list[Any]:
        """Which of one kind have numbers at a place."""
        return [owner.what for owner in self._known if (owner.place, owner.kind) == (place, kind)]

    def find(self, inode: int) -> tuple[Owner, int] | None:
        """Whose number this is, and which of its run; None for what was given to nobody, or taken back."""
        at = bisect_right(self._starts, inode) - 1
        if at < 0 or inode >= self._ends[at]:
            return None
        return self._owners[at], inode - self._starts[at]

    def drop(self, owners: list[Owner]) -> None:
        """Take numbers back, for good: they mean nothing from now on."""
        for owner in owners:
            start = self._known.pop(owner, None)
            if start is not None:
                self._ends[bisect_left(self._starts, start)] = start
        if len(self._owners) > 2 * len(self._known) + 64:  # to close the gaps takes as long as there are owners
            kept = [at for at, start in enumerate(self._starts) if self._known.get(self._owners[at]) == start]
            self._starts = array("Q", (self._starts[at] for at in kept))
            self._ends = array("Q", (self._ends[at] for at in kept))
            self._owners = [self._owners[at] for at in kept]
