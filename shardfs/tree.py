"""The directories above the samples: which keys there are and how they are reached. No shard is touched for it.

Knows nothing of what a shard holds, of FUSE or of caches. Numbers are given in the store's order, so that the same
listing gives the same inode numbers; a key that was replaced gets new ones, and its old ones answer until the kernel
has forgotten them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shardfs import inodes, names
from shardfs.model import Entry, Inode, Key


@dataclass(slots=True)
class KeyDirectory:
    """The directory of one key in one version: a shard, not yet touched."""

    inode: Inode
    parent: Inode
    name: bytes
    entry: Entry
    slot: int
    settled: bool = False
    """True once something of this version was shown: from then on it is this version or ESTALE."""
    superseded: bool = False
    """True once the key has another version, or is gone."""
    lookups: int = 0
    """Lookups minus forgets of the directory and of the files in it."""
    given: bytearray | None = None
    """One byte a file: 1 once the kernel was given its content unasked, or asked for it."""
    shared: object = None
    """What the vfs keeps of its files' attributes: all that they have in common."""
    asked: bool = False
    """True once a name in it was looked up since it was last opened for listing."""
    checked: float = 0.0
    """When the store was last asked whether this is still its version."""


@dataclass(slots=True)
class Directory:
    """A directory that only leads to keys."""

    inode: Inode
    parent: Inode
    name: bytes = b""
    path: tuple[str, ...] = ()
    children: dict[bytes, KeyDirectory | Directory] = field(default_factory=dict)
    mtime_ns: int = 0


class KeyTree:
    """All directories of a mount."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.root = Directory(inodes.ROOT, inodes.ROOT)
        self._by_inode: dict[int, KeyDirectory | Directory] = {inodes.ROOT: self.root}
        self._ways: dict[tuple[str, ...], Directory] = {(): self.root}
        self._keys: dict[Key, KeyDirectory] = {}
        self._slots: dict[int, KeyDirectory] = {}
        self._inode_numbers = itertools.count(inodes.ROOT + 1)
        self._slot_numbers = itertools.count(1)
        self.stored_bytes = 0
        self.update(entries)

    def update(self, entries: Iterable[Entry]) -> list[KeyDirectory]:
        """Take over a fresh listing; what was superseded by it. Names that were shown before stay what they are."""
        listed = list(entries)
        present = {entry.key for entry in listed}
        superseded = [self._retire(self._keys[key]) for key in list(self._keys) if key not in present]
        paths = [names.key_path(entry.key) for entry in listed]
        prefixes = {path[:depth] for path in paths for depth in range(1, len(path))}
        for path, entry in zip(paths, listed, strict=True):
            known = self._keys.get(entry.key)
            if known is None:
                self._add(path, entry, path in prefixes)
            elif known.entry.version != entry.version:
                superseded.append(self.replace(known, entry)[0])
        for directory in superseded:
            self._prune(directory.parent)
        return superseded

    def replace(self, known: KeyDirectory, entry: Entry) -> tuple[KeyDirectory, KeyDirectory]:
        """Give a key its new version: new numbers under the old name. The old directory, and the new one."""
        above = self._by_inode[known.parent]
        assert isinstance(above, Directory)
        self._retire(known)
        return known, self._place(above, known.name, entry)

    def remove(self, known: KeyDirectory) -> None:
        """The key is gone from the store."""
        self._retire(known)
        self._prune(known.parent)

    def _retire(self, known: KeyDirectory) -> KeyDirectory:
        known.superseded = True
        self.stored_bytes -= known.entry.stored_bytes
        del self._keys[known.entry.key]
        above = self._by_inode[known.parent]
        assert isinstance(above, Directory)
        del above.children[known.name]
        self.forget(known, 0)
        return known

    def _prune(self, inode: Inode) -> None:
        """Take away a directory that leads to no key any more, and those above it that then do not either."""
        directory = self._by_inode.get(inode)
        if isinstance(directory, Directory) and directory is not self.root and not directory.children:
            above = self._by_inode[directory.parent]
            assert isinstance(above, Directory)
            del above.children[directory.name]
            del self._ways[directory.path]
            del self._by_inode[directory.inode]
            self._prune(above.inode)

    def forget(self, directory: KeyDirectory, count: int) -> None:
        """The kernel has dropped `count` references; with the last one a superseded key's numbers go."""
        directory.lookups -= count
        if directory.superseded and directory.lookups <= 0:
            self._by_inode.pop(directory.inode, None)
            self._slots.pop(directory.slot, None)

    def _add(self, path: tuple[str, ...], entry: Entry, is_prefix: bool) -> None:
        above = self._way(path[:-1], entry.mtime_ns)
        self._place(above, _free_name(path[-1], above, is_prefix), entry)

    def _way(self, path: tuple[str, ...], mtime_ns: int) -> Directory:
        """The directory a path leads to, made if need be."""
        known = self._ways.get(path)
        if known is None:
            above = self._way(path[:-1], mtime_ns)
            name = _free_name(path[-1], above, False)
            known = Directory(Inode(next(self._inode_numbers)), above.inode, name, path)
            self._by_inode[known.inode] = known
            above.children[name] = known
            self._ways[path] = known
        elif path:
            self._way(path[:-1], mtime_ns)
        known.mtime_ns = max(known.mtime_ns, mtime_ns)
        return known

    def _place(self, above: Directory, name: bytes, entry: Entry) -> KeyDirectory:
        made = KeyDirectory(Inode(next(self._inode_numbers)), above.inode, name, entry, next(self._slot_numbers))
        self._by_inode[made.inode] = made
        self._slots[made.slot] = made
        self._keys[entry.key] = made
        self.stored_bytes += entry.stored_bytes
        above.children[name] = made
        above.mtime_ns = max(above.mtime_ns, entry.mtime_ns)
        return made

    def directory(self, inode: int) -> KeyDirectory | Directory | None:
        """The directory with this inode number."""
        return self._by_inode.get(inode)

    def slot(self, number: int) -> KeyDirectory | None:
        """The key whose files' inode numbers have this slot."""
        return self._slots.get(number)

    def current(self, key: Key) -> KeyDirectory | None:
        """The directory that a key has now."""
        return self._keys.get(key)

    @property
    def slots(self) -> Sequence[KeyDirectory]:
        """All keys, in the order in which they came."""
        return list(self._keys.values())

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
    """The name of a directory: a key that is also the way to other keys leaves the plain name to the way."""
    made, count = name, 2
    while (is_prefix and made == name) or made.encode("utf-8") in above.children:
        made = f"{name}~{count}"
        count += 1
    return made.encode("utf-8")
