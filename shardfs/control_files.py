"""What is below `.shardfs` of a mount: documents about the mount, stored shards as they are, light fields by the shard,
tables of the whole store.

It is found by lookup, and never listed in the root, where whoever loads a data set takes each directory for a class. No
key can have its name: a leading dot is escaped.

A document is made when it is looked up, and each state of it has an inode number of its own: so its size is exact, and
who has looked at it opens just that. Documents wait for nothing but the event loop. Knows nothing of FUSE, nor of what
documents say.
"""

from __future__ import annotations

import errno
import itertools
import stat
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from shardfs import config, inodes, light_lines, names
from shardfs.attributes import Attributes
from shardfs.drivers.base import Driver, StoresObjects
from shardfs.errors import MissingKeyError, StaleShardError, StorageError
from shardfs.model import Inode, Version
from shardfs.shard_cache import ShardCache
from shardfs.stored_readers import Opener, StoredReaders
from shardfs.tree import AnyDirectory, Directory, KeyDirectory, KeyTree
from shardfs.whole_tables import WholeTables

NAME = b".shardfs"
RAW, INDEX, LINES = b"raw", b"index", b".jsonl"

Document = Callable[[], Awaitable[bytes]]
"""Makes the content of one document, without waiting for the store."""

_BITS = 56
_TOP, _STATE, _RAW_DIRECTORY, _RAW_FILE, _INDEX_DIRECTORY, _INDEX_FILE, _TABLE = range(7)
"""What a number stands for. Behind it: a counter, a directory of the tree, a slot, or a table's own number."""

_WHOLE = -1
"""The cache's number for the light fields of a whole shard, which is no file of its table."""


def _inode(kind: int, number: int) -> Inode:
    return Inode(inodes.CONTROL | kind << _BITS | number)


_LASTING = (_inode(_TOP, 0), _inode(_RAW_DIRECTORY, inodes.ROOT), _inode(_INDEX_DIRECTORY, inodes.ROOT))


def _meaning(inode: int) -> tuple[int, int]:
    inside = inode - inodes.CONTROL
    return inside >> _BITS, inside & ((1 << _BITS) - 1)


@dataclass(slots=True, eq=False)
class _State:
    """One state of a document, known to somebody under its number."""

    inode: Inode
    name: bytes
    process: int
    """Who looked at it first; 0: not known."""
    data: bytes
    made: float
    """When, of time.monotonic."""
    made_ns: int
    lookups: int = 0
    handles: int = 0
    taken: bool = False
    """True once somebody has opened it."""


@dataclass(slots=True)
class ControlFiles:
    """The tree below `.shardfs` of one mount."""

    driver: Driver
    tree: KeyTree
    cache: ShardCache
    tables: WholeTables
    documents: dict[bytes, Document] = field(default_factory=dict)
    """By name."""
    _begun: int = field(default_factory=time.time_ns)
    _states: OrderedDict[int, _State] = field(default_factory=OrderedDict)
    _latest: dict[bytes, _State] = field(default_factory=dict)
    _unopened: bool = False
    """True once nobody says any more what he opens: whatever the kernel knows may be open then."""
    _sizes: OrderedDict[int, int] = field(default_factory=OrderedDict)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _readers: StoredReaders = field(init=False)

    def __post_init__(self) -> None:
        self._readers = StoredReaders(self.cache)

    # --- names and attributes -----------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, process: int = 0) -> Attributes:
        """An entry of a directory below `.shardfs`, or of the root that itself; counts as a lookup. MissingKeyError."""
        if parent == inodes.ROOT:
            return self._directory(_inode(_TOP, 0))
        kind, number = _meaning(parent)
        if kind == _TOP:
            return await self._top(name, process)
        above = self._shown(kind, number)
        if kind == _RAW_DIRECTORY:
            return await self._attributes(_RAW_FILE, _RAW_DIRECTORY, above.children.get(name), name)
        if name.endswith(LINES) and isinstance(above.children.get(name.removesuffix(LINES)), KeyDirectory):
            return await self._attributes(
                _INDEX_FILE, _INDEX_DIRECTORY, above.children.get(name.removesuffix(LINES)), name
            )
        below = above.children.get(name)
        return await self._attributes(
            _INDEX_FILE, _INDEX_DIRECTORY, below if isinstance(below, Directory) else None, name
        )

    def without_opens(self) -> None:
        """From here on files are read that were never opened, and none is closed."""
        self._unopened = self.tables.unopened = True
        for state in self._states.values():
            state.handles = 0
        self._readers.without_opens()

    def is_top(self, inode: int) -> bool:
        """Whether it is `.shardfs` itself."""
        return inode == _inode(_TOP, 0)

    async def _top(self, name: bytes, process: int = 0) -> Attributes:
        if name in (RAW, INDEX):
            return self._directory(_inode(_RAW_DIRECTORY if name == RAW else _INDEX_DIRECTORY, inodes.ROOT))
        if name not in self.documents:
            number, size, made_ns = await self.tables.lookup(name)
            return self._file(_inode(_TABLE, number), size, made_ns)
        state = await self._state(name, process)
        state.lookups += 1
        return self._file(state.inode, len(state.data), state.made_ns)

    async def _attributes(self, file: int, folder: int, below: AnyDirectory | None, name: bytes) -> Attributes:
        """Of a directory of keys, or of what is shown of a key."""
        if isinstance(below, KeyDirectory) and (file != _RAW_FILE or self._object(below) is not None):
            size = below.entry.stored_bytes if file == _RAW_FILE else await self._size(below)
            below.generated = True
            self.tree.know(below)
            return self._file(_inode(file, below.slot), size, below.entry.mtime_ns)
        if not isinstance(below, Directory):
            raise MissingKeyError(f"no entry {name!r}")
        return self._directory(_inode(folder, below.inode))

    async def getattr(self, inode: int) -> Attributes:
        """Attributes by number. ESTALE for what is there no more."""
        kind, number = _meaning(inode)
        if kind == _STATE:
            state = self._known(inode)
            return self._file(state.inode, len(state.data), state.made_ns)
        if kind == _TABLE:
            return self._file(Inode(inode), *await self.tables.attributes(number))
        if kind in (_RAW_FILE, _INDEX_FILE):
            key = self._key(number)
            size = key.entry.stored_bytes if kind == _RAW_FILE else await self._size(key)
            return self._file(Inode(inode), size, key.entry.mtime_ns)
        if kind != _TOP:
            self._shown(kind, number)
        return self._directory(Inode(inode))

    def _directory(self, inode: Inode) -> Attributes:
        """Attributes of a directory. The kernel may believe for good what is said of the three that are always there:
        else finding them anew would wait for whoever holds the root, a rename that stores a key for instance."""
        seconds = config.FOREVER if inode in _LASTING else 0.0
        return Attributes(inode, stat.S_IFDIR | 0o555, 0, self._begun, 1, seconds, seconds)

    def _file(self, inode: Inode, size: int, mtime_ns: int) -> Attributes:
        return Attributes(inode, stat.S_IFREG | 0o444, size, mtime_ns, 1, 0.0, 0.0)

    def _shown(self, kind: int, number: int) -> Directory:
        """The directory of the tree whose keys are shown in one of ours."""
        found = self.tree.directory(number)
        if kind not in (_RAW_DIRECTORY, _INDEX_DIRECTORY):
            raise StorageError("not a directory", errno.ENOTDIR)
        if not isinstance(found, Directory):
            raise StaleShardError("a directory that leads to no key any more")
        return found

    def _key(self, slot: int) -> KeyDirectory:
        key = self.tree.slot(slot)
        if key is None or key.superseded:
            raise StaleShardError("a shard that was replaced")
        return key

    def _object(self, key: KeyDirectory) -> tuple[str, Version] | None:
        """Name and version of the one object that a shard is stored as, if it is one."""
        objects = self.driver.objects(key.entry) if isinstance(self.driver, StoresObjects) else []
        return objects[0] if len(objects) == 1 else None

    def raw(self, key: KeyDirectory) -> Attributes | None:
        """What is below `raw` for a key; None for one that is not one object."""
        if self._object(key) is None:
            return None
        return self._file(_inode(_RAW_FILE, key.slot), key.entry.stored_bytes, key.entry.mtime_ns)

    def raw_ending(self, key: KeyDirectory) -> bytes:
        """What the stored object's name has behind the key's: `.tar`, `.mds.zstd`; nothing where it is called otherwise
        altogether."""
        found = self._object(key)
        stored, own = (found[0] if found else "").rpartition("/")[2], key.entry.key.rpartition("/")[2]
        end = stored.removeprefix(own) if stored.startswith(own) else ""
        return names.escape(end[1:]).encode("utf-8").join((b".", b"")) if end.startswith(".") and end[1:] else b""

    async def _size(self, key: KeyDirectory) -> int:
        known = self._sizes.get(key.slot)
        if known is None:
            table = await self.cache.table(key.entry)
            known = await self.cache.in_worker(lambda: light_lines.size(table), table.nbytes)
            self._sizes[key.slot] = known
            if len(self._sizes) > config.CONTROL_SIZES:
                self._sizes.popitem(last=False)
        return known

    # --- states of documents ------------------------------------------------------------------------------------

    async def _state(self, name: bytes, process: int) -> _State:
        """What a document says now. A state that a process has looked at a moment ago and nobody has opened is what it
        gets again: who copies a file looks first, and takes another number for another file."""
        now = time.monotonic()
        for state in reversed(self._states.values()):
            if state.name == name and state.process == process and not state.taken:
                if now - state.made < config.CONTROL_LOOK:
                    return state
                break
        data = await self.documents[name]()
        last = self._latest.get(name)
        if last is not None and last.data == data and last.inode in self._states:
            return last
        made = _State(_inode(_STATE, next(self._numbers)), name, process, data, now, time.time_ns())
        self._make_room()
        self._states[made.inode] = self._latest[name] = made
        return made

    def _make_room(self) -> None:
        """Let the oldest states go that nobody has open: their numbers are ESTALE then, and are looked up again."""
        for inode in list(self._states):
            if len(self._states) < config.CONTROL_STATES:
                return
            state = self._states[inode]
            if not (state.handles or (self._unopened and state.lookups > 0)):
                del self._states[inode]
        if len(self._states) >= config.CONTROL_STATES:
            raise StorageError("too many open files below .shardfs", errno.EMFILE)

    def _known(self, inode: int) -> _State:
        state = self._states.get(inode)
        if state is None:
            raise StaleShardError("an earlier state of a document")
        return state

    def looked_up(self, inode: int, count: int) -> None:
        """Lookups that a listing has handed out; less than 0: that the kernel has forgotten."""
        state = self._states.get(inode)
        if state is not None:
            state.lookups += count
            self._let_go(state)
        elif _meaning(inode)[0] == _TABLE:
            self.tables.looked_up(_meaning(inode)[1], count)
        elif count < 0:
            self._readers.forgotten(inode)

    def _let_go(self, state: _State) -> None:
        seen = state.taken or time.monotonic() - state.made > config.CONTROL_LOOK
        if seen and state.lookups <= 0 and not state.handles and self._latest.get(state.name) is not state:
            self._states.pop(state.inode, None)

    # --- listings -----------------------------------------------------------------------------------------------

    def opendir(self, inode: int) -> int:
        """A handle, which is the number itself. ENOTDIR, ESTALE."""
        kind, number = _meaning(inode)
        if kind != _TOP:
            self._shown(kind, number)
        return inode

    async def entries(self, handle: int, start: int) -> list[tuple[bytes, Attributes, int]]:
        """Entries from offset `start` on, as `Vfs.readdir` gives them. Light fields have no size here: to tell it,
        whole shards may have to be read, and who wants it asks for it by name."""
        kind, number = _meaning(handle)
        if kind == _TOP:
            return await self._top_entries(start)
        above, made = self._shown(kind, number), []
        for at, (name, below) in enumerate(list(above.children.items())):
            if at < start:
                continue
            if isinstance(below, Directory):
                made.append((name, self._directory(_inode(kind, below.inode)), at + 1))
            elif isinstance(below, KeyDirectory) and kind == _INDEX_DIRECTORY:
                size = self._sizes.get(below.slot, 0)
                found = self._file(_inode(_INDEX_FILE, below.slot), size, below.entry.mtime_ns)
                if len(name) + len(LINES) <= config.NAME_MAX:
                    made.append((name + LINES, found, at + 1))
            elif isinstance(below, KeyDirectory) and self._object(below) is not None:
                found = self._file(_inode(_RAW_FILE, below.slot), below.entry.stored_bytes, below.entry.mtime_ns)
                made.append((name, found, at + 1))
        return made

    async def _top_entries(self, start: int) -> list[tuple[bytes, Attributes, int]]:
        made = []
        for at, name in enumerate([*self.documents, RAW, INDEX]):
            if at < start:
                continue
            if name in self.documents:
                state = await self._state(name, 0)
                made.append((name, self._file(state.inode, len(state.data), state.made_ns), at + 1))
            else:
                made.append((name, await self._top(name), at + 1))
        return made

    # --- files --------------------------------------------------------------------------------------------------

    async def open(self, inode: int) -> int:
        """A handle for reading, which is the number itself. ESTALE, EISDIR, EFBIG; of a stored object the errors of
        `Storage.open`."""
        kind, number = _meaning(inode)
        if kind == _STATE:
            state = self._known(inode)
            state.handles += 1
            state.taken = True
        elif kind == _TABLE:
            await self.tables.open(number)
        elif kind == _RAW_FILE:
            await self._readers.open(inode, lambda: self._opener(number))
        elif kind == _INDEX_FILE:
            await self._fitting(self._key(number))
        else:
            raise StorageError("a directory", errno.EISDIR)
        return inode

    async def _fitting(self, key: KeyDirectory) -> int:
        """Bytes of a key's light fields. EFBIG for more than may be held."""
        size = await self._size(key)
        if size * config.CONTROL_SHARE > self.cache.budget:
            raise StorageError(f"{size} bytes of light fields are too much for this mount's memory", errno.EFBIG)
        return size

    def _opener(self, slot: int) -> Opener:
        """What opens the object that a key is stored as. ESTALE for a key that was replaced."""
        found = self._object(self._key(slot))
        if found is None or not isinstance(self.driver, StoresObjects):
            raise StaleShardError("a shard that is not one object")
        storage, (name, version) = self.driver.storage, found
        return lambda: storage.open(name, version)

    def held(self, key: KeyDirectory) -> Inode | None:
        """The directory in which a key's stored object is shown, if that is open though nobody may have it open: who
        makes the kernel forget its name there has it closed."""
        shown = _inode(_RAW_FILE, key.slot) in self._readers
        return _inode(_RAW_DIRECTORY, key.parent) if self._unopened and shown else None

    async def read(self, handle: int, offset: int, size: int) -> bytes | memoryview:
        """At most `size` bytes from `offset`, fewer only at the end: the same for a handle as ever, or an error."""
        kind, number = _meaning(handle)
        if kind == _STATE:
            state = self._known(handle)
            state.taken = True
            return memoryview(state.data)[offset : offset + size]
        if kind == _TABLE:
            return await self.tables.read(number, offset, size)
        if kind == _RAW_FILE:
            return await self._readers.read(handle, offset, size, lambda: self._opener(number))
        if kind != _INDEX_FILE:
            raise StorageError("no such handle", errno.EBADF)
        key = self._key(number)
        async with self.cache.pinned(key.entry) as loaded:
            table, shard, arrays = loaded.table, loaded.shard, self.cache.arrays
            length = await self._fitting(key)
            whole = await self.cache.made(
                key.entry, loaded, _WHOLE, length, lambda: light_lines.render(table, shard, arrays)
            )
        return memoryview(whole)[offset : offset + size]

    def release(self, handle: int) -> None:
        """A handle was closed for good."""
        kind, number = _meaning(handle)
        if kind == _TABLE:
            self.tables.release(number)
        state = self._states.get(handle)
        if state is not None:
            state.handles -= 1
            self._let_go(state)
        if kind == _RAW_FILE:
            self._readers.release(handle)
