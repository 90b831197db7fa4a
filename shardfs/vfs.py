"""What the tree means: names, attributes, open files and their content. Knows nothing of FUSE.

Every method raises only errors that carry an `errno`. Directories above the keys answer at once, always; what is
inside a key waits until its shard is indexed. A read of a loaded shard answers without waiting.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardfs import config, inodes
from shardfs.attributes import About, Attributes, FileRun, StatFs
from shardfs.control_files import NAME as CONTROL_NAME
from shardfs.control_files import ControlFiles
from shardfs.drivers.base import Driver
from shardfs.errors import MissingKeyError, ShardfsError, StaleShardError, StorageError
from shardfs.gifts import Gifts
from shardfs.index import FolderTable, ShardTable
from shardfs.index_db import IndexDb
from shardfs.light_fields import LightFields
from shardfs.light_where import Where
from shardfs.listers import Listers, has_canary
from shardfs.model import Entry, Key
from shardfs.narrowing import Narrowing
from shardfs.outdated import Outdated, inner_names, while_known
from shardfs.read_ahead import ReadAhead
from shardfs.refresh import Refresh
from shardfs.shard_cache import Loaded, ShardCache
from shardfs.store import Store
from shardfs.tables import Identity
from shardfs.tree import AnyDirectory, Directory, KeyDirectory, KeyTree, NewDirectory
from shardfs.views.files import NAME as VIEWS_NAME
from shardfs.views.files import ViewFiles
from shardfs.views.gathered import Sources
from shardfs.views.places import Listing
from shardfs.whole_tables import WholeTables

WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND
"""Flags of open(2) of which each wants to change the file."""


@dataclass(frozen=True, slots=True)
class _OpenDirectory:
    directory: AnyDirectory
    table: ShardTable | None
    names: tuple[bytes, ...]
    plus: bool = True
    """Whether attributes are handed out with the names of a key's files."""
    folder: int | None = None
    """The directory inside the key, by its number in the table; None for the key's own."""


def _run(table: ShardTable, file: int, offset: int, size: int) -> tuple[bytes, int, int] | None:
    """What a read of `size` bytes at `offset` wants: the part of the file's prefix, and start and end of a run of raw
    bytes (empty where end <= start); None for a file that must be rendered."""
    run = table.slice_of(file)
    if run is None:
        return None
    prefix, start, length = run
    if not prefix:
        return prefix, start + offset, start + min(offset + size, length)
    head = len(prefix)
    return prefix[offset : offset + size], start + max(offset - head, 0), start + min(offset + size - head, length)


def _failure(text: str, code: int) -> StorageError:
    return StorageError(text, code)


class Vfs:
    """The file system over one store, read-only."""

    writable = False

    def __init__(self, driver: Driver, cache: ShardCache, uid: int, gid: int, read_ahead: bool = True) -> None:
        self.uid = uid
        self.gid = gid
        self.driver = driver
        self.cache = cache
        self.tree = KeyTree(driver.entries())
        self.superseded: Callable[[KeyDirectory, int], None] = lambda key, files: None
        """Told of each key that was replaced or has gone, with the number of its files that were shown: for making the
        kernel forget them."""
        self.loaded: Callable[[KeyDirectory, Loaded], None] = lambda key, loaded: None
        """Told of each key whose shard has just been loaded: for giving its files to the kernel before it asks."""
        self.cache.on_load = self._on_load
        self.read_ahead = ReadAhead()
        if read_ahead:
            self.cache.on_touch = self._on_touch
            self.cache.on_evict = self._on_evict
        self.refresh = Refresh(driver, self.tree, self._supersede)
        """Watches the store; its interval is also how long the kernel may believe what it says of keys."""
        narrowing = cache.tables.narrowing
        kept = None if narrowing is None else narrowing.columns
        self.light = LightFields(self._entry_now, cache.light, cache.tables.database, kept=kept)
        """The light fields of all samples, for who asks in a worker."""
        tables = WholeTables(self.tree, cache, self.light, self.refresh.listing, self.refresh.everything)
        self.control = ControlFiles(driver, self.tree, cache, tables)
        """What is below `.shardfs`; its documents are for the mount to add."""
        self.renamed: Callable[[int, Iterable[bytes]], None] = lambda directory, names: None
        """Told of names that may mean other files by now: for making the kernel forget them."""
        self.outdated: Callable[[Iterable[Outdated]], None] = lambda names: None
        """The same of names in many directories, which are made up when they are gone through, in any thread."""
        self.views = self._views()
        """The same samples in other shapes; which of them is at the root is for the mount to say."""
        self._handles: dict[int, _OpenDirectory] = {}
        self._gifts = Gifts()
        self._listers = Listers()
        self._numbers = itertools.count(1)
        self._opens = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve only inside this block: it owns the loads."""
        async with self.cache.running(), self.refresh.running(), self.control.tables.running():
            yield

    def _views(self) -> ViewFiles:
        sources = Sources(self.tree, self.cache, self.refresh, self.light, self._table)
        return ViewFiles(
            sources, self._content, self.control.raw, self.control.raw_ending, lambda: self.tree.root.mtime_ns
        )

    def _entry_now(self, key: str) -> Entry:
        """In any thread: the version that a key has now. MissingKeyError."""
        found = self.tree.current(Key(key))
        if found is None:
            raise MissingKeyError(f"no key {key!r}")
        return found.entry

    def _on_load(self, entry: Entry, loaded: Loaded) -> None:
        key = self.tree.current(entry.key)
        if key is not None and key.entry.version == entry.version:
            self.loaded(key, loaded)

    def _on_touch(self, entry: Entry) -> None:
        key = self.tree.current(entry.key)
        if key is None:
            return
        for slot in self.read_ahead.touch(key.slot):
            guess = self.tree.slot(slot)
            if guess is None or guess.superseded:
                continue
            table = self.cache.tables.known(guess.entry)
            size = table.raw_bytes if table is not None else guess.entry.raw_bytes or 4 * guess.entry.stored_bytes
            if self.cache.load_ahead(guess.entry, size):
                self.read_ahead.guessed(slot)

    def _on_evict(self, identity: Identity) -> None:
        key = self.tree.current(identity[0])
        if key is not None:
            self.read_ahead.evicted(key.slot)

    def _supersede(self, key: KeyDirectory) -> None:
        table = self.cache.tables.known(key.entry)
        if self._opens:
            self.cache.drop(key.entry)
        else:  # a path may lead to it until the kernel was told, and no open can say ESTALE
            self.cache.drop_soon(key.entry)
        self.superseded(key, 0 if table is None else table.numbers)
        names = self.views.supersede(key, table)
        if table is not None:
            names.append(inner_names(key, table))
        if names and (key.lookups > 0 or key.generated):
            self.outdated(while_known(key, itertools.chain.from_iterable(names)))
        held = self.control.held(key)
        if held is not None:
            self.renamed(held, [key.name])

    # --- names and attributes -----------------------------------------------------------------------------------

    def lacks_now(self, parent: int, name: bytes) -> bool:
        """Whether a directory has no such name, for now, where nothing has to be waited for to know."""
        return False

    def lookup_now(self, parent: int, name: bytes) -> tuple[Attributes, int, int] | None:
        """As `lookup` of a key's file, where nothing has to be waited for: what all files of the key have in common
        (one object for each key), the inode number and the size. None where something has, or the name is not there."""
        if parent >= inodes.VIEWS:
            found = self.views.lookup_now(parent, name)
            if found is not None:
                self._told(found[0], 1)
                return self._shared(found[0]), found[1], found[2]
            return None
        key = self.tree.directory(parent)
        if type(key) is not KeyDirectory or key.superseded or self.refresh.due(key):
            return None
        table = self.cache.tables.known(key.entry)
        file = None if table is None else table.find(name)
        if table is None or file is None:
            return None
        self._told(key, 1)
        key.asked = key.settled = True
        return self._shared(key), inodes.file_inode(key.slot, file), table.size(file)

    def _shared(self, key: KeyDirectory) -> Attributes:
        """Attributes of a key's first file, but for its size: one object for each key."""
        if key.shared is None:
            key.shared = self._file_attributes(key, 0, 0)
        assert isinstance(key.shared, Attributes)
        return key.shared

    async def lookup(self, parent: int, name: bytes, process: int = 0) -> Attributes:
        """Attributes of an entry, for a process (0: one that is not known); counts as a lookup of its inode.
        MissingKeyError (ENOENT)."""
        key = self.tree.slot(inodes.slot_of(parent))
        if key is not None:
            return await self._lookup_inside(key, inodes.file_of(parent), name)
        if self._in_views(parent) and (parent, name) != (inodes.ROOT, CONTROL_NAME):
            found = await self.views.lookup(parent, name)
            self.looked_up(found.inode)
            return found
        if parent >= inodes.CONTROL or (parent == inodes.ROOT and name == CONTROL_NAME):
            if name == VIEWS_NAME and self.control.is_top(parent):
                return self._views_directory()
            return await self.control.lookup(parent, name, process)
        directory = self._directory(parent)
        if isinstance(directory, Directory):
            return await self._lookup_directory(directory, name)
        assert isinstance(directory, KeyDirectory)
        return await self._lookup_inside(directory, None, name)

    def _in_views(self, inode: int) -> bool:
        """Whether it is a directory or file of a view; the root is, where it shows one."""
        return inode >= inodes.VIEWS or (inode == inodes.ROOT and self.views.root is not None)

    def _views_directory(self) -> Attributes:
        """The directory of all views, which are of stored samples only."""
        return self.views.top()

    async def _lookup_inside(self, key: KeyDirectory, folder: int | None, name: bytes) -> Attributes:
        """The same in a key's directory, or in one inside that."""
        await self._current(key)
        table = await self._table(key)
        self.tree.know(key)  # of a name that is missing, too
        if folder is not None and folder < table.files:
            raise _failure("not a directory", errno.ENOTDIR)
        number = table.find_in(folder, name) if isinstance(table, FolderTable) else table.find(name)
        if number is None:
            raise MissingKeyError(f"no entry {name!r}")
        key.lookups += 1
        key.asked = True
        return self._inside(key, table, number)

    async def _lookup_directory(self, directory: Directory, name: bytes) -> Attributes:
        below = directory.children.get(name)
        if isinstance(below, KeyDirectory):
            below = await self.refresh.key(below)
        if below is None:
            await self.refresh.listing()
            below = directory.children.get(name)
        if below is None:
            raise MissingKeyError(f"no entry {name!r}")
        self.looked_up(below.inode)
        return self._directory_attributes(below)

    def negative_timeout(self, parent: int) -> float:
        """Seconds for which a name that is missing in `parent` may be taken to stay missing."""
        if parent >= inodes.CONTROL:
            return 0.0
        inside = inodes.slot_of(parent) or isinstance(self.tree.directory(parent), KeyDirectory)
        return config.FOREVER if inside else self.refresh.interval

    async def getattr(self, inode: int) -> Attributes:
        """Attributes by inode. For a file in a shard whose table is gone this loads the shard again."""
        slot = self.tree.slot(inodes.slot_of(inode))
        if slot is None and inode >= inodes.VIEWS:
            return await self.views.getattr(inode)
        if slot is None and inode >= inodes.CONTROL:
            return await self.control.getattr(inode)
        if slot is None:
            return self._directory_attributes(self._directory(inode))
        table = await self._table(slot)
        number = inodes.file_of(inode)
        if number >= table.numbers:
            raise _failure("no such inode", errno.ESTALE)
        return self._inside(slot, table, number)

    async def about(self, inode: int) -> About | None:
        """What an inode is, for telling more of it than stat does; None for what is above the keys and below
        `.shardfs`. Errors as `getattr`."""
        key = self.tree.slot(inodes.slot_of(inode))
        if key is None:
            found = None if inode >= inodes.CONTROL else self._directory(inode)
            return About(found.entry.key, found.entry) if isinstance(found, KeyDirectory) else None
        return self._about_stored(key, await self._table(key), inodes.file_of(inode))

    @staticmethod
    def _about_stored(key: KeyDirectory, table: ShardTable, number: int) -> About:
        if number >= table.numbers:
            raise _failure("no such inode", errno.ESTALE)
        entry = key.entry
        if number >= table.files:
            return About(entry.key, entry)
        stem, suffix = table.stem(table.sample_of(number)), table.suffix(number)
        return About(entry.key, entry, table.size(number), stem, suffix, True, table, number)

    def looked_up(self, inode: int, count: int = 1) -> None:
        """Count entries of one key that a listing handed out together with their attributes."""
        key = self._key_of(inode)
        if key is not None and inode == key.inode:  # what is said of a directory is asked again after the interval
            key.lookups += count
            key.entered += count
        elif key is not None:
            self._told(key, count)
        elif inode >= inodes.CONTROL:
            self.control.looked_up(inode, count)

    def _told(self, key: KeyDirectory, count: int) -> None:
        """The kernel was told of files in a key, which it does not ask for again."""
        key.lookups += count
        if not key.known:
            self.tree.know(key)

    def forget(self, inode: int, count: int) -> None:
        """The kernel has dropped `count` lookups of an inode."""
        key = self._key_of(inode)
        if key is not None:
            if inode == key.inode:
                key.entered -= count
            self.tree.forget(key, count)
        elif inode >= inodes.CONTROL:
            self.control.looked_up(inode, -count)

    def _key_of(self, inode: int) -> KeyDirectory | None:
        """The key that a file belongs to, or that a directory is."""
        slot = inodes.slot_of(inode)
        found = self.tree.slot(slot) if slot else self.tree.directory(inode)
        return found if isinstance(found, KeyDirectory) else None

    def statfs(self) -> StatFs:
        """The store's size as it is stored; nothing is free."""
        blocks = -(-self.tree.stored_bytes // 4096)
        return StatFs(4096, blocks, len(self.tree.slots), config.NAME_MAX)

    def _directory(self, inode: int) -> AnyDirectory:
        directory = self.tree.directory(inode)
        if directory is None:
            raise _failure("no such directory", errno.ENOTDIR if inodes.slot_of(inode) else errno.ESTALE)
        return directory

    async def _current(self, key: KeyDirectory) -> None:
        """StaleShardError for a key that was replaced: the kernel then looks the name up again, and finds the new."""
        if not key.superseded and self.refresh.due(key):
            await self.refresh.key(key)
        if key.superseded:
            raise StaleShardError(f"{key.entry.key} was replaced since it was looked up")

    async def _table(self, key: KeyDirectory) -> ShardTable:
        try:
            table = await self.cache.table(key.entry)
        except MissingKeyError as error:  # of the key: for the kernel this must not mean that the file's name is free
            raise StaleShardError(f"{key.entry.key} is not in the store now") from error
        except StaleShardError:
            if key.settled or key.superseded:
                await self.refresh.key(key, now=True)
                raise
            # replaced since the listing, but nothing of the old version was ever shown: take the new one
            try:
                key.entry = await self.cache.fresh_entry(key.entry.key)
                table = await self.cache.table(key.entry)
            except MissingKeyError as error:
                raise StaleShardError(f"{key.entry.key} is gone from the store") from error
        key.settled = True
        return table

    def _directory_attributes(self, directory: AnyDirectory) -> Attributes:
        assert not isinstance(directory, NewDirectory)
        mtime = directory.entry.mtime_ns if isinstance(directory, KeyDirectory) else directory.mtime_ns
        mode = stat.S_IFDIR | 0o555
        lasting = self.refresh.interval
        if not self._opens and isinstance(directory, KeyDirectory):
            lasting = self.refresh.left(directory)  # nothing is asked when a file is opened: its path must lead to it
        return Attributes(directory.inode, mode, 0, mtime, 1, lasting, lasting)

    def _file_attributes(self, key: KeyDirectory, file: int, size: int) -> Attributes:
        inode = inodes.file_inode(key.slot, file)
        lasting = 0.0 if key.superseded else config.FOREVER  # the kernel was told to forget it, and will not be again
        return Attributes(inode, stat.S_IFREG | 0o444, size, key.entry.mtime_ns, 1, lasting, lasting)

    def _inside(self, key: KeyDirectory, table: ShardTable, number: int) -> Attributes:
        """Attributes of what has a number in a key's table: a file, or a directory."""
        if number < table.files:
            return self._file_attributes(key, number, table.size(number))
        inode = inodes.file_inode(key.slot, number)
        return Attributes(inode, stat.S_IFDIR | 0o555, 0, key.entry.mtime_ns, 1, config.FOREVER, config.FOREVER)

    # --- listings -----------------------------------------------------------------------------------------------

    async def opendir(self, inode: int, process: int = 0) -> int:
        """A handle for listing a directory, by a process (0: one that is not known). For a key this waits until its
        shard is indexed."""
        if self._in_views(inode):
            return await self.views.opendir(inode, process)
        if inode >= inodes.CONTROL:
            return self.control.opendir(inode)
        key = self.tree.slot(inodes.slot_of(inode))
        directory = self._directory(inode) if key is None else key
        if isinstance(directory, KeyDirectory):
            await self._current(directory)
            table = await self._table(directory)
            folder = None if key is None else inodes.file_of(inode)
            if folder is not None and folder < table.files:
                raise _failure("not a directory", errno.ENOTDIR)
            plus = not table.flat or self._listers.plus(process, directory, table)
            return self._handle(_OpenDirectory(directory, table, (), plus, folder))
        assert isinstance(directory, Directory)
        await self.refresh.listing()
        return self._handle(_OpenDirectory(directory, None, tuple(directory.children)))

    async def readdir(self, handle: int, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """Entries from offset `start` on, each with its attributes and the offset behind it."""
        opened = self._handles.get(handle)
        if opened is None and handle >= inodes.VIEWS:
            return self.views.entries(handle, start)
        if opened is None and handle >= inodes.CONTROL:
            return iter(await self.control.entries(handle, start))
        if opened is None:
            raise _failure("no such handle", errno.EBADF)
        return self._entries(opened, start)

    def files(self, handle: int) -> FileRun | None:
        """The same for a key's directory; None if the handle is of no key, or of one with directories inside."""
        opened = self._handles.get(handle)
        if opened is None or opened.table is None or not opened.table.flat:
            return None
        assert isinstance(opened.directory, KeyDirectory)
        key = opened.directory
        shared = self._file_attributes(key, 0, 0) if key.superseded else self._shared(key)
        return FileRun(shared, opened.table, opened.plus, has_canary(opened.table))

    def view_listing(self, handle: int) -> tuple[Listing, bool] | None:
        """The same for a directory of a view, and whether its names are to come with attributes."""
        return self.views.listing(handle) if handle >= inodes.VIEWS else None

    def handed_out(self, numbers: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
        """Count entries of many keys that a listing handed out together with their attributes."""
        slots, counts = np.unique(numbers >> np.uint64(inodes.BITS), return_counts=True)
        for slot, count in zip(slots.tolist(), counts.tolist(), strict=True):
            key = self.tree.slot(slot)
            if key is not None:
                self._told(key, count)

    def _entries(self, opened: _OpenDirectory, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        directory = opened.directory
        if isinstance(directory, KeyDirectory):
            assert opened.table is not None
            if isinstance(opened.table, FolderTable):
                for name, number, after in opened.table.children(opened.folder, start):
                    yield name, self._inside(directory, opened.table, number), after
                return
            for name, size, file in opened.table.listing(start):
                yield name, self._file_attributes(directory, file, size), file + 1
            return
        assert isinstance(directory, Directory)
        for at, name in enumerate(opened.names[start:], start):
            below = directory.children.get(name)
            if below is not None:  # else it has gone since the directory was opened
                yield name, self._directory_attributes(below), at + 1

    def releasedir(self, handle: int) -> None:
        if handle >= inodes.VIEWS:
            self.views.releasedir(handle)
        self._handles.pop(handle, None)

    # --- files --------------------------------------------------------------------------------------------------

    def without_opens(self) -> None:
        """From here on files are read that were never opened, and none is closed. What `open` would have said, `read`
        says then."""
        self._opens = False
        self._gifts = Gifts()
        self.control.without_opens()

    def open_now(self, inode: int, flags: int) -> int | None:
        """As `open`, where nothing has to be waited for; None where something has."""
        key = self.tree.slot(inode >> inodes.BITS)
        if key is None or key.superseded or flags & WRITING or self.refresh.due(key):
            return None
        self._gifts.opened(inode)
        return inode

    def gift(self, inode: int) -> bytes | memoryview | None:
        """The whole content of a file that is being opened, for giving it to the kernel before it asks; None unless it
        is small and at hand, and may be given (see gifts.py)."""
        key = self.tree.slot(inode >> inodes.BITS)
        loaded = None if key is None else self.cache.peek(key.entry)
        if key is None or loaded is None:
            return None
        table, file = loaded.table, inode & inodes.FILE_MASK
        if not 0 < table.size(file) <= config.GIFT or not self._gifts.due(inode, key, file, table.files):
            return None
        try:
            return self._part(loaded, file, 0, config.GIFT)
        except ShardfsError:
            return None  # said to the read that follows

    async def open(self, inode: int, flags: int) -> int:
        """A handle for reading, which is the inode number itself. EROFS for any way of writing."""
        if flags & WRITING:
            raise _failure("the file system is read-only", errno.EROFS)
        key = self.tree.slot(inodes.slot_of(inode))
        if key is None and inode >= inodes.VIEWS:
            return self.views.open(inode)
        if key is None and inode >= inodes.CONTROL:
            return await self.control.open(inode)
        if key is None:
            raise _failure("a directory", errno.EISDIR)
        await self._current(key)
        self._gifts.opened(inode)
        return inode

    def read_now(self, handle: int, offset: int, size: int) -> bytes | memoryview | None:
        """As `read`, where nothing has to be waited for; None where something has."""
        key = self.tree.slot(handle >> inodes.BITS)
        if key is None:
            return None
        loaded = self.cache.peek(key.entry)
        if loaded is None:
            return None
        try:
            return self._part(loaded, handle & inodes.FILE_MASK, offset, size)
        except StaleShardError:
            return None  # said again to `read`, which looks at the store then

    def _part(self, loaded: Loaded, file: int, offset: int, size: int) -> bytes | memoryview | None:
        """Part of a file whose bytes are at hand; None if they must be got or rendered first, and that takes time."""
        run = _run(loaded.table, file, offset, size)
        if run is None:
            data = self.cache.rendered_now(loaded, file)
            return data if data is None or (not offset and len(data) <= size) else data[offset : offset + size]
        prefix, start, end = run
        if end <= start:
            return prefix
        part = loaded.shard.part(start, end)
        if part is None:
            return None
        if loaded.partial and not loaded.raw:
            self.cache.counts.part_bytes += end - start
        return b"".join((prefix, part)) if prefix else part

    async def read(self, handle: int, offset: int, size: int) -> bytes | memoryview:
        """At most `size` bytes from `offset`; fewer only at the end of the file.

        The same bytes as ever for this handle, or ESTALE; EIO if the shard is damaged.
        """
        key = self.tree.slot(inodes.slot_of(handle))
        if key is None and handle >= inodes.VIEWS:
            return await self.views.read(handle, offset, size)
        if key is None and handle >= inodes.CONTROL:
            return await self.control.read(handle, offset, size)
        if key is None:
            raise StaleShardError("a file of a shard that was replaced")
        try:
            return await self._content(key, inodes.file_of(handle), offset, size)
        except StaleShardError:
            await self.refresh.key(key, now=True)
            raise

    async def _content(self, key: KeyDirectory, file: int, offset: int, size: int) -> bytes | memoryview:
        loaded = await self.cache.shard(key.entry)
        if file >= loaded.table.files:
            raise _failure("a directory", errno.EISDIR)
        key.settled = True
        answer = self._part(loaded, file, offset, size)
        if answer is not None:
            return answer
        run = _run(loaded.table, file, offset, size)
        if run is None:
            return memoryview(await self.cache.rendered(key.entry, loaded, file))[offset : offset + size]
        prefix, start, end = run
        part = await self.cache.fetched(key.entry, loaded, start, end)
        if loaded.partial and not loaded.raw:
            self.cache.counts.part_bytes += end - start
        return b"".join((prefix, part)) if prefix else part

    def release(self, handle: int) -> None:
        """A handle was closed for good."""
        if not self._opens:
            return  # of some that were opened before the kernel does not tell either
        if handle >= inodes.CONTROL:
            self.control.release(handle)
        else:
            self._gifts.released(handle)

    async def close(self, handle: int) -> None:
        """The same, where that may have to wait."""
        self.release(handle)

    def _handle(self, opened: _OpenDirectory) -> int:
        if len(self._handles) >= config.HANDLES:
            raise _failure("too many open directories", errno.EMFILE)
        number = next(self._numbers)
        self._handles[number] = opened
        return number


def build_vfs(
    store: Store,
    *,
    budget: int,
    arrays: str,
    uid: int,
    gid: int,
    database: IndexDb | None = None,
    read_ahead: bool = True,
    parts: bool = True,
    where: Where | None = None,
) -> Vfs:
    """The file system of a store, or of the samples that `where` is true for: lists its keys, touches no shard.
    StorageError, BadStoreError."""
    narrowing = None if where is None else Narrowing(where, arrays, database)
    cache = ShardCache(store.driver, budget, arrays, database, parts, narrowing=narrowing)
    return Vfs(store.driver, cache, uid, gid, read_ahead)
