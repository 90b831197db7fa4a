"""A staged directory as a mount shows it: which inode numbers its entries have, and what stat says of them.

Knows nothing of stores, of what the kernel asks, nor of how anything comes to be staged.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from shardfs import config
from shardfs.attributes import Attributes
from shardfs.drivers.numbered import Standing
from shardfs.index import ShardTable
from shardfs.staging import ROOT, StagedDirectory, StagedEntry, StagedFile
from shardfs.tree import AnyDirectory, KeyDirectory, NewDirectory


@dataclass(slots=True, eq=False)
class Overlay:
    """A staged directory, and the directory of the mount in which it is seen."""

    staged: StagedDirectory
    directory: KeyDirectory | NewDirectory
    table: ShardTable | None = None
    """What the stored shard holds, once that was asked: a seal makes others forget it."""
    refs: dict[int, Ref] = field(default_factory=dict)
    """Entries the kernel was told of, by their numbers in the staged directory."""
    origins: dict[int, tuple[KeyDirectory, int]] = field(default_factory=dict)
    """Entry -> the file of the stored shard that it was taken over from: that file's inode number is the entry's."""
    standing: Standing | None = None
    asked: float = 0.0
    """What the driver has said of the stored key, and when."""


@dataclass(slots=True, eq=False)
class Ref:
    """An entry as the kernel knows it."""

    inode: int
    overlay: Overlay
    entry: int
    lookups: int = 0
    """Lookups minus forgets; those of numbers in a slot are counted by the slot."""
    removed: bool = False
    """True once it is in no directory any more: it lives on for who has it open."""
    kept: StagedFile | None = None
    """Its bytes once it was removed, for who had the stored file open before it was changed."""
    gone: tuple[StagedEntry, KeyDirectory | NewDirectory] | None = None
    """What it was like when it was removed, and the key whose shard has its bytes, where that has them still."""
    direct: int = 0
    """How many have it open that write past the page cache."""
    last: Attributes | None = None
    """What it was like in the end, once it is in the store: its name means another number from then on."""


@dataclass(slots=True, eq=False)
class OpenFile:
    """A file that was opened here."""

    ref: Ref
    file: StagedFile | None
    """None while its bytes are in the stored shard."""
    writing: bool
    direct: bool = False
    """True if the kernel keeps no pages for who has opened it."""


@dataclass(slots=True, eq=False)
class Sealing:
    """What became of a key's stored files in a version that was made here."""

    key: KeyDirectory
    numbers: Mapping[int, int]
    """File of the version before -> file of this one, with the same bytes."""
    before: ShardTable | None


@dataclass(slots=True, eq=False)
class Listing:
    """A listing of a directory with something staged: names as they were when it began, each looked up when it is its
    turn. So nothing is named twice or passed over, whatever is made and removed meanwhile."""

    inode: int
    table: ShardTable | None
    staged: tuple[bytes, ...] = ()
    known: frozenset[bytes] = frozenset()

    fresh: bool = True
    """True until the first name was given."""

    def begin(self, table: ShardTable | None, staged: list[bytes]) -> None:
        self.table = table
        self.staged = tuple(staged)
        self.known = frozenset(staged)

    def names(self, start: int) -> Iterator[tuple[bytes, int | None, int]]:
        """(name, number of the stored file, offset behind it) of each from offset `start` on."""
        files = 0 if self.table is None else self.table.files
        if self.table is not None and start < files:
            for name, _, file in self.table.listing(start):
                if name not in self.known:
                    yield name, file, file + 1
        for at in range(max(0, start - files), len(self.staged)):
            yield self.staged[at], None, files + at + 1


def overlay_of(directory: AnyDirectory | None) -> Overlay | None:
    """What is staged in a directory of the tree, if anything is."""
    if isinstance(directory, KeyDirectory | NewDirectory):
        overlay = directory.overlay
        assert overlay is None or isinstance(overlay, Overlay)
        return overlay
    return None


def attributes_of(inode: int, entry: StagedEntry) -> Attributes:
    """What stat says of a staged entry. Nobody changes it behind the kernel's back; but a file's name means another
    number from the next seal on, while a directory's stays. A directory within a plain one never comes to the store,
    and whatever changes it goes through the kernel, which then asks again: so a path that is forty directories deep
    needs not eighty requests, each time it is used."""
    kind, size = (stat.S_IFDIR, 0) if entry.directory else (stat.S_IFREG, entry.size)
    named, known = 0.0, config.REFRESH
    if entry.directory:
        named = known = config.REFRESH if entry.id == ROOT else config.FOREVER
    return Attributes(
        *(inode, kind | entry.mode, size, entry.mtime_ns, 1, named, known, entry.uid, entry.gid, entry.atime_ns)
    )


def same_bytes(before: ShardTable, old: int, after: ShardTable, new: int) -> bool:
    """Whether a file of two versions of a shard, that nobody changed between them, can be taken for the same."""
    one, two = before.slice_of(old), after.slice_of(new)
    if one is None or two is None:
        return False
    return one[0] == two[0] and one[2] == two[2]


__all__ = [
    "ROOT",
    "Listing",
    "OpenFile",
    "Overlay",
    "Ref",
    "Sealing",
    "attributes_of",
    "overlay_of",
    "same_bytes",
]
