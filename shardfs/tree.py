"""The directories above the samples: which keys there are and how they are reached. No shard is touched for it.

Knows nothing of what a shard holds, of FUSE or of caches. Numbers are given in the store's order, so that the same
listing gives the same inode numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shardfs import inodes, names
from shardfs.model import Entry, Inode


@dataclass(slots=True)
class KeyDirectory:
    """The directory of one key: a shard, not yet touched."""

    inode: Inode
    parent: Inode
    entry: Entry
    slot: int
    settled: bool = False
    """True once something of this version was shown: from then on it is this version or ESTALE."""
    lookups: int = 0
    """Lookups minus forgets of the files in it."""


@dataclass(slots=True)
class Directory:
    """A directory that only leads to keys."""

    inode: Inode
    parent: Inode
    children: dict[bytes, KeyDirectory | Directory] = field(default_factory=dict)
    mtime_ns: int = 0


class KeyTree:
    """All directories of a mount."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.root = Directory(inodes.ROOT, inodes.ROOT)
        self._by_inode: dict[int, KeyDirectory | Directory] = {inodes.ROOT: self.root}
        self._slots: list[KeyDirectory] = []
        self.stored_bytes = 0
        listed = [(names.key_path(entry.key), entry) for entry in entries]
        prefixes = {path[:depth] for path, _ in listed for depth in range(1, len(path))}
        for path, entry in listed:
            self._add(path, entry, path in prefixes)

    def _next(self) -> Inode:
        return Inode(len(self._by_inode) + 1)

    def _add(self, path: tuple[str, ...], entry: Entry, is_prefix: bool) -> None:
        above = self.root
        above.mtime_ns = max(above.mtime_ns, entry.mtime_ns)
        for part in path[:-1]:
            below = above.children.get(part.encode("utf-8"))
            if not isinstance(below, Directory):
                below = Directory(self._next(), above.inode)
                self._by_inode[below.inode] = below
                above.children[part.encode("utf-8")] = below
            below.mtime_ns = max(below.mtime_ns, entry.mtime_ns)
            above = below
        made = KeyDirectory(self._next(), above.inode, entry, len(self._slots) + 1)
        self._by_inode[made.inode] = made
        self._slots.append(made)
        self.stored_bytes += entry.stored_bytes
        above.children[_free_name(path[-1], above, is_prefix)] = made

    def directory(self, inode: int) -> KeyDirectory | Directory | None:
        """The directory with this inode number."""
        return self._by_inode.get(inode)

    def slot(self, number: int) -> KeyDirectory | None:
        """The key whose files' inode numbers have this slot."""
        return self._slots[number - 1] if 0 < number <= len(self._slots) else None

    @property
    def slots(self) -> Sequence[KeyDirectory]:
        """All keys, in the store's order."""
        return self._slots

    def walk(self, path: str) -> tuple[KeyDirectory | Directory | None, str]:
        """The directory a path inside the tree leads to, and what of the path is left (a file's name) behind it."""
        at: KeyDirectory | Directory = self.root
        parts = [part for part in path.split("/") if part]
        for depth, part in enumerate(parts):
            if isinstance(at, KeyDirectory):
                return at, "/".join(parts[depth:])
            below = at.children.get(part.encode("utf-8", "surrogateescape"))
            if below is None:
                return None, "/".join(parts[depth:])
            at = below
        return at, ""


def _free_name(name: str, above: Directory, is_prefix: bool) -> bytes:
    """The name of a key's directory: a key that is also the way to other keys leaves the plain name to the way."""
    made, count = name, 2
    while (is_prefix and made == name) or made.encode("utf-8") in above.children:
        made = f"{name}~{count}"
        count += 1
    return made.encode("utf-8")
