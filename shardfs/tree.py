"""The directories above the samples: which keys there are and how they are reached. No shard is touched for it.

Knows nothing of what a shard holds, of FUSE or of caches. Numbers are given in the store's order, so that the same
listing gives the same inode numbers; a key that was replaced gets new ones, and its old ones answer until the kernel
has forgotten them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    entered: int = 0
    """Of these, the directory's own."""
    given: bytearray | None = None
    """One byte a file: 1 once the kernel was given its content unasked, or asked for it."""
    shared: object = None
    """What the vfs keeps of its files' attributes: all that they have in common."""
    asked: bool = False
    """True once a name in it was looked up since it was last opened for listing."""
    known: bool = False
    """True if the kernel may know something in it: names that it does not ask for again, or that there are none."""
    generated: bool = False
    """True if a view has given it, or what is made of it, inode numbers besides those of its slot."""
    checked: float = 0.0
    """When the store was last asked whether this is still its version."""
    held: bool = False
    """True while it is changed here: what the store says of it meanwhile is for the seal to find out."""
    overlay: Any = None
    """What is changed here and not in the store yet; the tree does not look into it."""
    moved: dict[int, Any] | None = None
    """Files of it whose inode numbers stand for what was made of them here, by their numbers; nor into this."""
    successor: Any = None
    """What a seal of ours has made of it; nor into this."""


@dataclass(slots=True)
class NewDirectory:
    """A directory of what the store knows nothing of: a key to be, or one with any names."""

    inode: Inode
    parent: Inode
    name: bytes
    key: str
    """The key it is to become; for one with any names, its path."""
    is_key: bool
    overlay: Any = None
    entered: int = 0
    """Lookups minus forgets of the directory."""


@dataclass(slots=True)
class Directory:
    """A directory that only leads to keys, or is empty."""

    inode: Inode
    parent: Inode
    name: bytes = b""
    path: tuple[str, ...] = ()
    children: dict[bytes, AnyDirectory] = field(default_factory=dict)
    mtime_ns: int = 0
    made: bool = False
    """True if it stays when it leads to nothing: it was made here, or the last key in it was removed here."""


AnyDirectory = KeyDirectory | NewDirectory | Directory


class KeyTree:
    """All directories of a mount."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.root = Directory(inodes.ROOT, inodes.ROOT)
        self._by_inode: dict[int, AnyDirectory] = {inodes.ROOT: self.root}
        self._ways: dict[tuple[str, ...], Directory] = {(): self.root}
        self._keys: dict[Key, KeyDirectory] = {}
        self._slots: dict[int, KeyDirectory] = {}
        self._known: dict[int, KeyDirectory] = {}
        self._begun: dict[str, NewDirectory] = {}
        self._waiting: dict[str, Entry] = {}
        self._inode_numbers = itertools.count(inodes.ROOT + 1)
        self._slot_numbers = itertools.count(1)
        self.stored_bytes = 0
        self.changes = 0
        """Rises with each key that comes, goes or gets another version."""
        self.retired = 0
        """Rises with each key that goes or gets another version."""
        self.update(entries)

    def update(self, entries: Iterable[Entry]) -> list[KeyDirectory]:
        """Take over a fresh listing; what was superseded by it. Names that were shown before stay what they are."""
        listed = list(entries)
        present = {entry.key for entry in listed}
        gone = [known for key, known in self._keys.items() if key not in present and not known.held]
        superseded = [self._retire(known) for known in gone]
        paths = [names.key_path(entry.key) for entry in listed]
        prefixes = {path[:depth] for path in paths for depth in range(1, len(path))}
        self._waiting = {entry.key: entry for entry in listed if entry.key in self._begun}
        for path, entry in zip(paths, listed, strict=True):
            known = self._keys.get(entry.key)
            if known is None:
                if entry.key not in self._begun:
                    self._add(path, entry, path in prefixes)
            elif known.held:
                continue
            elif known.entry.version != entry.version:
                superseded.append(self.replace(known, entry)[0])
        for directory in superseded:
            self._prune(directory.parent)
        return superseded

    def is_like(self, entries: Sequence[Entry]) -> bool:
        """In any thread: whether to take over a listing would change nothing."""
        keys = self._keys
        if len(keys) != len(entries) or self._waiting:
            return False
        found = (keys.get(entry.key) for entry in entries)
        pairs = zip(found, entries, strict=True)
        return all(known is not None and known.entry.version == entry.version for known, entry in pairs)

    def replace(self, known: KeyDirectory, entry: Entry) -> tuple[KeyDirectory, KeyDirectory]:
        """Give a key its new version: new numbers under the old name. The old directory, and the new one."""
        above = self._by_inode[known.parent]
        assert isinstance(above, Directory)
        self._retire(known)
        return known, self._place(above, known.name, entry)

    def retire(self, known: KeyDirectory) -> None:
        """A key's directory gives way to another that was made of it here."""
        self._retire(known)

    def remove(self, known: KeyDirectory) -> None:
        """The key is gone from the store."""
        self._retire(known)
        self._prune(known.parent)

    def _retire(self, known: KeyDirectory) -> KeyDirectory:
        known.superseded = True
        self.changes += 1
        self.retired += 1
        self.stored_bytes -= known.entry.stored_bytes
        del self._keys[known.entry.key]
        self._known.pop(known.slot, None)
        above = self._by_inode[known.parent]
        assert isinstance(above, Directory)
        del above.children[known.name]
        self.forget(known, 0)
        return known

    def _prune(self, inode: Inode) -> None:
        """Take away a directory that leads to no key any more, and those above it that then do not either."""
        directory = self._by_inode.get(inode)
        if isinstance(directory, Directory) and not (directory is self.root or directory.children or directory.made):
            above = self._by_inode[directory.parent]
            assert isinstance(above, Directory)
            del above.children[directory.name]
            del self._ways[directory.path]
            del self._by_inode[directory.inode]
            self._prune(above.inode)

    def forget(self, directory: KeyDirectory, count: int) -> None:
        """The kernel has dropped `count` references; with the last one a superseded key's numbers go."""
        directory.lookups -= count
        if directory.lookups <= 0 and not directory.generated:
            directory.known = False
            self._known.pop(directory.slot, None)
        if directory.superseded and directory.lookups <= 0:
            if self._by_inode.get(directory.inode) is directory:
                del self._by_inode[directory.inode]
            self._slots.pop(directory.slot, None)

    def know(self, directory: KeyDirectory) -> None:
        """The kernel may know something in a key from now on, until it has forgotten all of it."""
        if not (directory.known or directory.superseded):
            directory.known = True
            self._known[directory.slot] = directory

    def _add(self, path: tuple[str, ...], entry: Entry, is_prefix: bool) -> None:
        above = self._way(path[:-1], entry.mtime_ns)
        empty = above.children.get(path[-1].encode("utf-8"))
        if isinstance(empty, Directory) and not empty.children and not is_prefix:
            self.drop(empty)
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

    def _place(self, above: Directory, name: bytes, entry: Entry, inode: Inode | None = None) -> KeyDirectory:
        number = self.new_inode() if inode is None else inode
        made = KeyDirectory(number, above.inode, name, entry, next(self._slot_numbers))
        self._by_inode[made.inode] = made
        self._slots[made.slot] = made
        self._keys[entry.key] = made
        self.changes += 1
        self.stored_bytes += entry.stored_bytes
        above.children[name] = made
        above.mtime_ns = max(above.mtime_ns, entry.mtime_ns)
        return made

    # --- made here ----------------------------------------------------------------------------------------------

    def new_inode(self) -> Inode:
        """A number that nothing has had before."""
        return Inode(next(self._inode_numbers))

    def begun(self, key: str) -> NewDirectory | None:
        """The directory that is to become a key."""
        return self._begun.get(key)

    def way(self, path: tuple[str, ...]) -> Directory:
        """The directory a path leads to, made if need be, and to stay."""
        found = self._way(path, 0)
        found.made = True
        return found

    def make(self, above: Directory, name: bytes, mtime_ns: int) -> Directory:
        """An empty directory of a name that is free."""
        path = (*above.path, name.decode("utf-8"))
        made = Directory(self.new_inode(), above.inode, name, path, mtime_ns=mtime_ns, made=True)
        self._by_inode[made.inode] = self._ways[path] = above.children[name] = made
        return made

    def begin(self, above: Directory, name: bytes, key: str, is_key: bool, overlay: Any) -> NewDirectory:
        """A directory for what is staged under a key, or under a path: in place of an empty one, with its number."""
        empty = above.children.get(name)
        inode = self.new_inode() if empty is None else empty.inode
        if empty is not None:
            self.drop(empty)
        made = NewDirectory(inode, above.inode, name, key, is_key, overlay)
        self._by_inode[inode] = above.children[name] = made
        if is_key:
            self._begun[key] = made
        return made

    def succeed(self, known: KeyDirectory | NewDirectory, entry: Entry) -> KeyDirectory:
        """A key has the version that was made of it here: new numbers for its files, the old one for itself."""
        above = self._by_inode[known.parent]
        assert isinstance(above, Directory)
        if isinstance(known, KeyDirectory):
            known.lookups -= known.entered
            entered, known.entered = known.entered, 0
            self._retire(known)
        else:
            entered = known.entered
            self._forget_new(known)
            self._waiting.pop(known.key, None)
        made = self._place(above, known.name, entry, known.inode)
        made.lookups = made.entered = entered
        if entered:
            self.know(made)
        return made

    def drop(self, directory: AnyDirectory) -> None:
        """Take away a directory that was made here, or an empty one. What the store has under its key comes back."""
        above = self._by_inode[directory.parent]
        assert isinstance(above, Directory)
        del above.children[directory.name]
        above.made = True
        del self._by_inode[directory.inode]
        if isinstance(directory, Directory):
            del self._ways[directory.path]
        elif isinstance(directory, NewDirectory):
            self._forget_new(directory)
            entry = self._waiting.pop(directory.key, None)
            if entry is not None and directory.is_key:
                self._add(names.key_path(entry.key), entry, False)

    def _forget_new(self, directory: NewDirectory) -> None:
        if self._begun.get(directory.key) is directory:
            del self._begun[directory.key]

    def empty(self, directory: NewDirectory) -> Directory:
        """A directory has nothing staged any more, and its number."""
        above = self._by_inode[directory.parent]
        assert isinstance(above, Directory)
        path = (*above.path, directory.name.decode("utf-8", "surrogateescape"))
        made = Directory(directory.inode, directory.parent, directory.name, path, made=True)
        self._forget_new(directory)
        self._by_inode[made.inode] = self._ways[path] = above.children[made.name] = made
        return made

    def move(self, directory: AnyDirectory, above: Directory, name: bytes) -> None:
        """Give a directory that leads to nothing another name that is free. Its key stays as it is."""
        before = self._by_inode[directory.parent]
        assert isinstance(before, Directory)
        del before.children[directory.name]
        before.made = True
        directory.parent, directory.name = above.inode, name
        above.children[name] = directory
        if isinstance(directory, Directory):
            del self._ways[directory.path]
            directory.path = (*above.path, name.decode("utf-8", "surrogateescape"))
            self._ways[directory.path] = directory

    def call(self, directory: NewDirectory, key: str, is_key: bool) -> None:
        """It is to become another key, or none."""
        self._forget_new(directory)
        directory.key, directory.is_key = key, is_key
        if is_key:
            self._begun[key] = directory

    # --- looking ------------------------------------------------------------------------------------------------

    def directory(self, inode: int) -> AnyDirectory | None:
        """The directory with this inode number."""
        return self._by_inode.get(inode)

    def directories(self) -> list[AnyDirectory]:
        """All directories, those that were replaced and are still known to somebody among them."""
        return list(self._by_inode.values())

    def slot(self, number: int) -> KeyDirectory | None:
        """The key whose files' inode numbers have this slot."""
        return self._slots.get(number)

    def current(self, key: Key) -> KeyDirectory | None:
        """The directory that a key has now."""
        return self._keys.get(key)

    @property
    def known(self) -> list[KeyDirectory]:
        """The keys of which the kernel may know something."""
        return list(self._known.values())

    @property
    def slots(self) -> Sequence[KeyDirectory]:
        """All keys, in the order in which they came."""
        return list(self._keys.values())

    def path(self, directory: AnyDirectory) -> str:
        """The names that lead from the root to a directory."""
        parts = []
        while directory is not self.root:
            parts.append(directory.name.decode("utf-8", "surrogateescape"))
            directory = self._by_inode[directory.parent]
        return "/".join(reversed(parts))

    def walk(self, path: str) -> tuple[AnyDirectory | None, str]:
        """The directory a path inside the tree leads to, and what of the path is left (a file's name) behind it."""
        at: AnyDirectory = self.root
        parts = [part for part in path.split("/") if part]
        for depth, part in enumerate(parts):
            if not isinstance(at, Directory):
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
