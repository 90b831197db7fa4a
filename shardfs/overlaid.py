"""What the tree means where something is staged: the stored files that are still to be seen, and the staged ones.

Looking and reading only; `writing` changes things. A key with nothing staged is served as on a read-only mount, by the
same code. What is looked up in a key that is being changed is believed by the kernel for no time at all, as the next
seal may give it another number.

An inode number stands for one file for good: for a stored file of one version of a key (and what was made of it here,
if it was changed in place), or, out of a counter, for one staged entry. Once a seal has put an entry into the store,
its name has the number of the stored file; who has the old one open reads on what was written, and who opens that gets
ESTALE, upon which the kernel looks the name up again.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace

from shardfs import config, inodes
from shardfs.attributes import About, Attributes, FileRun
from shardfs.drivers.base import Driver
from shardfs.errors import MissingKeyError, StaleShardError, StorageError
from shardfs.index import ShardTable
from shardfs.overlay import ROOT, Listing, OpenFile, Overlay, Ref, Sealing, attributes_of, overlay_of, same_bytes
from shardfs.shard_cache import ShardCache
from shardfs.staged_calls import StagedCalls
from shardfs.staging import StagedDirectory, StagedEntry
from shardfs.tree import AnyDirectory, KeyDirectory, NewDirectory
from shardfs.vfs import WRITING, Vfs

FILE_MODE, DIRECTORY_MODE = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755

_Found = tuple[bytes, StagedEntry | None, tuple[int, int] | None, int]
"""Of a listing: name, staged entry, number and size of the stored file, offset behind it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A directory, for looking something up in it."""

    directory: AnyDirectory | None
    """None for one inside a staged directory."""
    overlay: Overlay | None
    entry: int = ROOT
    """Its number in the overlay's staged directory."""


class OverlaidVfs(Vfs):
    """A file system over one store, with what is staged for it."""

    def __init__(self, driver: Driver, cache: ShardCache, uid: int, gid: int, read_ahead: bool = True) -> None:
        super().__init__(driver, cache, uid, gid, read_ahead)
        self.calls = StagedCalls()
        self.emptied: Callable[[int, bytes, str], None] = lambda parent, name, path: None
        """Told of a directory all of whose names may: its parent's number, its name, and its path below the root."""
        self._refs: dict[int, Ref] = {}
        self._files: dict[int, OpenFile] = {}
        self._listings: dict[int, Listing] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.calls.running(), super().running():
            yield

    # --- what a number stands for -------------------------------------------------------------------------------

    def ref_of(self, inode: int) -> Ref | None:
        """The staged entry that an inode number stands for, or stood for until it was stored."""
        slot = inodes.slot_of(inode)
        if not slot:
            return self._refs.get(inode)
        key = self.tree.slot(slot)
        moved = None if key is None else key.moved
        return None if moved is None else moved.get(inodes.file_of(inode))

    def known(self, overlay: Overlay, entry: StagedEntry) -> Ref:
        """The number by which the kernel knows, or is to know, an entry."""
        ref = overlay.refs.get(entry.id)
        if ref is not None and self.ref_of(ref.inode) is ref:
            return ref  # else the kernel has forgotten all of the version that its number was of
        origin = overlay.origins.get(entry.id)
        if origin is None or self.tree.slot(origin[0].slot) is not origin[0]:
            ref = Ref(self.tree.new_inode(), overlay, entry.id)
            self._refs[ref.inode] = ref
        else:
            key, file = origin
            ref = Ref(inodes.file_inode(key.slot, file), overlay, entry.id)
            key.moved = key.moved if key.moved is not None else {}
            key.moved[file] = ref
        overlay.refs[entry.id] = ref
        return ref

    def place(self, inode: int) -> Place:
        """The directory with this number. ESTALE, ENOTDIR."""
        directory = self.tree.directory(inode)
        if inode >= inodes.CONTROL:
            raise StorageError("nothing below .shardfs can be changed", errno.EROFS)
        if directory is not None:
            if isinstance(directory, KeyDirectory) and directory.superseded:
                raise StaleShardError(f"{directory.entry.key} was replaced since it was looked up")
            return Place(directory, overlay_of(directory))
        ref = self.ref_of(inode)
        if ref is None:
            self._directory(inode)  # says which error it is
        assert ref is not None
        if ref.last is not None:
            raise StaleShardError("this directory was stored, or removed")
        return Place(None, ref.overlay, ref.entry)

    def check_still(self, place: Place) -> None:
        """ESTALE if a seal has made something else of a directory since it was looked at."""
        directory = place.directory
        if directory is not None and self.tree.directory(directory.inode) is not directory:
            raise StaleShardError("the directory was just stored")

    def looked_up(self, inode: int, count: int = 1) -> None:
        self._count(inode, count)

    def _count(self, inode: int, count: int) -> None:
        if inodes.slot_of(inode):
            super().looked_up(inode, count)
            return
        ref, directory = self._refs.get(inode), self.tree.directory(inode)
        if ref is not None:
            ref.lookups += count
        elif isinstance(directory, KeyDirectory):
            super().looked_up(inode, count)
        elif isinstance(directory, NewDirectory):
            directory.entered += count

    def forget(self, inode: int, count: int) -> None:
        ref = None if inodes.slot_of(inode) else self._refs.get(inode)
        if ref is not None:
            ref.lookups -= count
            self.let_go(ref)
        elif isinstance(directory := self.tree.directory(inode), NewDirectory):
            directory.entered -= count
        else:
            super().forget(inode, count)

    def let_go(self, ref: Ref) -> None:
        """Forget an entry that is staged no more, if the kernel has."""
        if ref.lookups > 0 or not (ref.removed or ref.last is not None):
            return
        self._refs.pop(ref.inode, None)
        if ref.overlay.refs.get(ref.entry) is ref:
            del ref.overlay.refs[ref.entry]

    # --- names and attributes -----------------------------------------------------------------------------------

    def lacks_now(self, parent: int, name: bytes) -> bool:
        # each file that is made is looked for first
        directory = self.tree.directory(parent)
        if type(directory) is not NewDirectory or directory.overlay is None:
            return False
        staged: StagedDirectory = directory.overlay.staged
        return staged.lacks_now(name)

    def lookup_now(self, parent: int, name: bytes) -> tuple[Attributes, int, int] | None:
        key = self.tree.directory(parent)
        if type(key) is KeyDirectory and key.overlay is not None:
            return None
        return super().lookup_now(parent, name)

    async def lookup(self, parent: int, name: bytes, process: int = 0) -> Attributes:
        place = None if parent >= inodes.CONTROL else self.place(parent)
        if place is None or place.overlay is None:
            return await super().lookup(parent, name, process)
        found = await self.find(place, name)
        if isinstance(found, StagedEntry):
            ref = self.known(place.overlay, found)
            self._count(ref.inode, 1)
            return attributes_of(ref.inode, found)
        if found is None:
            raise MissingKeyError(f"no entry {name!r}")
        key, (file, size) = place.directory, found
        assert isinstance(key, KeyDirectory)
        super().looked_up(inodes.file_inode(key.slot, file))
        key.asked = True
        return self._file_attributes(key, file, size)

    async def find(self, place: Place, name: bytes) -> StagedEntry | tuple[int, int] | None:
        """What has a name: an entry, or the number and the size of a stored file."""
        overlay, key = place.overlay, place.directory
        table = None
        if isinstance(key, KeyDirectory):
            table = await self._table(key)
            if key.superseded or (overlay is not None and key.overlay is not overlay):
                raise StaleShardError(f"{key.entry.key} was just stored")
            if overlay is not None:
                overlay.table = table
        if overlay is not None:
            staged = overlay.staged
            entry = await self.calls.quick(staged, lambda: staged.find(place.entry, name))
            if entry is not None:
                return entry
        file = None if table is None else table.find(name)
        if table is None or file is None or (overlay is not None and overlay.staged.hides(file)):
            return None
        return file, table.size(file)

    def negative_timeout(self, parent: int) -> float:
        directory = self.tree.directory(parent)
        return self.refresh.interval if isinstance(directory, KeyDirectory) and directory.overlay is None else 0.0

    async def getattr(self, inode: int) -> Attributes:
        ref = self.ref_of(inode)
        if ref is not None:
            return await self.ref_attributes(ref)
        key = self.tree.slot(inodes.slot_of(inode))
        if key is not None and isinstance(key.successor, Sealing) and key.successor.before is not None:
            file = inodes.file_of(inode)
            return self._file_attributes(key, file, key.successor.before.size(file))
        return await super().getattr(inode)

    async def ref_attributes(self, ref: Ref) -> Attributes:
        """What stat says of an entry now. ESTALE for one that is gone."""
        if ref.last is not None:
            return ref.last
        if ref.removed and ref.gone is not None:
            return attributes_of(ref.inode, ref.gone[0])
        staged = ref.overlay.staged
        return attributes_of(ref.inode, await self.calls.quick(staged, lambda: staged.entry(ref.entry), steady=False))

    async def about(self, inode: int) -> About | None:
        ref, directory = self.ref_of(inode), self.tree.directory(inode)
        if isinstance(directory, NewDirectory):
            return About(directory.key if directory.is_key else None, None, staged=True)
        if ref is None:
            return await super().about(inode)
        if ref.last is not None:
            raise StaleShardError("the file has been stored since it was looked up")
        staged, key = ref.overlay.staged, ref.overlay.directory
        entry = await self.calls.quick(staged, lambda: staged.entry(ref.entry), steady=False)
        stored = key.entry if isinstance(key, KeyDirectory) else None
        name = staged.key if staged.kind == "key" else None
        if entry.directory:
            return About(name, stored, staged=True)
        stem, dot, suffix = entry.name.partition(b".")
        if entry.base is not None and isinstance(key, KeyDirectory):  # taken over under another name or mode
            found = self._about_stored(key, await self._table(key), entry.base)
            return replace(found, stem=stem if dot else None, suffix=suffix)
        return About(name, stored, entry.size, stem if dot else None, suffix, True, staged=True)

    def _directory_attributes(self, directory: AnyDirectory) -> Attributes:
        overlay = overlay_of(directory)
        if overlay is not None:
            return attributes_of(directory.inode, overlay.staged.itself())
        assert not isinstance(directory, NewDirectory)
        return super()._directory_attributes(directory)._replace(mode=DIRECTORY_MODE)

    def _views_directory(self) -> Attributes:
        raise StorageError("views are of stored samples: mount the store a second time, without --rw", errno.EROFS)

    def _file_attributes(self, key: KeyDirectory, file: int, size: int) -> Attributes:
        found = super()._file_attributes(key, file, size)._replace(mode=FILE_MODE)
        if key.overlay is not None or key.superseded:
            return found._replace(entry_timeout=0.0, attr_timeout=0.0)
        return found

    # --- listings -----------------------------------------------------------------------------------------------

    async def opendir(self, inode: int, process: int = 0) -> int:
        place = None if inode >= inodes.CONTROL else self.place(inode)
        if place is None or place.overlay is None:
            return await super().opendir(inode, process)
        listing = Listing(inode, None)
        await self._begin(listing, place)
        handle = self._new_handle()
        self._listings[handle] = listing
        return handle

    async def _begin(self, listing: Listing, place: Place) -> None:
        table = await self._table(place.directory) if isinstance(place.directory, KeyDirectory) else None
        names: list[bytes] = []
        if place.overlay is not None:
            staged = place.overlay.staged
            names = await self.calls.quick(staged, lambda: staged.names(place.entry))
        listing.begin(table, names)

    def listed(self, handle: int) -> int:
        """The directory that a handle lists. EBADF."""
        listing, opened = self._listings.get(handle), self._handles.get(handle)
        if listing is None and opened is None:
            raise StorageError("no such handle", errno.EBADF)
        return listing.inode if listing is not None else opened.directory.inode if opened is not None else 0

    async def readdir(self, handle: int, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        listing, opened = self._listings.get(handle), self._handles.get(handle)
        if opened is not None and isinstance(opened.directory, KeyDirectory):
            # it was begun when nothing was staged; the offsets are the same
            listing = self._listings[handle] = Listing(opened.directory.inode, opened.table)
        if listing is None:
            return await super().readdir(handle, start)
        place = self.place(listing.inode)
        if not start and not listing.fresh:  # from the beginning again
            await self._begin(listing, place)
        listing.fresh = False
        return iter(await self._entries_of(listing, place, start))

    async def _entries_of(self, listing: Listing, place: Place, start: int) -> list[tuple[bytes, Attributes, int]]:
        """Some of the entries of a listing from offset `start` on; none where there are no more."""
        key, overlay = place.directory, place.overlay
        table = await self._table(key) if isinstance(key, KeyDirectory) else None
        staged = None if overlay is None else overlay.staged

        def gather() -> list[_Found]:
            found: list[_Found] = []
            for name, number, after in listing.names(start):
                entry = None if staged is None else staged.find(place.entry, name)
                if entry is not None:
                    found.append((name, entry, None, after))
                elif table is not None:
                    file = number if table is listing.table and number is not None else table.find(name)
                    if file is not None and (staged is None or not staged.hides(file)):
                        found.append((name, None, (file, table.size(file)), after))
                if len(found) >= config.STAGED_LISTED:
                    break
            return found

        try:
            found = gather() if staged is None else await self.calls.quick(staged, gather)
        except StaleShardError:
            if place.directory is None:
                return []  # the directory was removed
            raise
        made = []
        for name, entry, stored, after in found:
            if entry is not None and overlay is not None:
                made.append((name, attributes_of(self.known(overlay, entry).inode, entry), after))
            elif stored is not None and isinstance(key, KeyDirectory):
                made.append((name, self._file_attributes(key, *stored), after))
        return made

    def files(self, handle: int) -> FileRun | None:
        opened = self._handles.get(handle)
        key = None if opened is None else opened.directory
        if isinstance(key, KeyDirectory) and (key.overlay is not None or key.superseded or handle in self._listings):
            return None
        return super().files(handle)

    def releasedir(self, handle: int) -> None:
        self._listings.pop(handle, None)
        super().releasedir(handle)

    # --- files --------------------------------------------------------------------------------------------------

    def open_now(self, inode: int, flags: int) -> int | None:
        key = self.tree.slot(inode >> inodes.BITS)
        if key is None or key.overlay is not None or key.moved:
            return None
        return super().open_now(inode, flags)

    def gift(self, inode: int) -> bytes | memoryview | None:
        key = self.tree.slot(inode >> inodes.BITS)
        # what was changed here must not get its stored bytes back
        return None if key is None or key.overlay is not None or key.moved else super().gift(inode)

    async def open(self, inode: int, flags: int) -> int:
        """A handle. ESTALE for what a seal has given another number; EROFS once the mount ends."""
        ref = self.ref_of(inode)
        if ref is None:
            key = self.tree.slot(inodes.slot_of(inode))
            overlay = overlay_of(key)
            if overlay is not None and overlay.staged.hides(inodes.file_of(inode)):
                raise StaleShardError("the file was removed")
            return await super().open(inode, flags)
        if ref.last is not None:
            raise StaleShardError("the file has been stored since it was looked up")
        staged = ref.overlay.staged

        def look() -> OpenFile:
            entry = staged.entry(ref.entry)
            file = staged.open(ref.entry, False) if entry.base is None else None
            return OpenFile(ref, file, False)

        return self.add_file(await self.calls.quick(staged, look, steady=False))

    def add_file(self, opened: OpenFile) -> int:
        """A handle for an open file."""
        handle = self._new_handle()
        self._files[handle] = opened
        if opened.ref.direct:
            opened.direct = True
        if opened.direct and opened.writing:
            opened.ref.direct += 1
        return handle

    def is_direct(self, handle: int) -> bool:
        """Whether the kernel is to keep no pages for a handle."""
        opened = self._files.get(handle)
        return opened is not None and opened.direct

    def read_now(self, handle: int, offset: int, size: int) -> bytes | memoryview | None:
        key = self.tree.slot(handle >> inodes.BITS)
        if key is None:
            opened = self._files.get(handle)
            return None if opened is None or opened.file is None else opened.file.pread_now(size, offset)
        return None if key.moved or key.superseded else super().read_now(handle, offset, size)

    async def read(self, handle: int, offset: int, size: int) -> bytes | memoryview:
        opened = self._files.get(handle)
        if opened is not None:
            file = opened.file
            if file is not None:
                return await self.calls.long(lambda: file.pread(size, offset))
            return await self._read_entry(opened.ref, offset, size)
        ref = self.ref_of(handle)
        if ref is not None:
            return await self._read_entry(ref, offset, size)
        key, file_number = self.tree.slot(inodes.slot_of(handle)), inodes.file_of(handle)
        while key is not None and isinstance(sealing := key.successor, Sealing):
            after = self._same_file(key, file_number, sealing)
            if after is None:
                break
            key, file_number = sealing.key, after
        return await super().read(handle if key is None else inodes.file_inode(key.slot, file_number), offset, size)

    def _same_file(self, key: KeyDirectory, file: int, sealing: Sealing) -> int | None:
        """The number that an unchanged file has in the version that was made here, if that has its bytes still."""
        after, table = sealing.numbers.get(file), self.cache.tables.known(sealing.key.entry)
        if self.cache.peek(key.entry) is not None or after is None or sealing.before is None or table is None:
            return None
        if sealing.key.moved and after in sealing.key.moved:
            return None  # changed since
        return after if same_bytes(sealing.before, file, table, after) else None

    async def _read_entry(self, ref: Ref, offset: int, size: int) -> bytes | memoryview:
        """Part of a staged file, wherever its bytes are."""
        if ref.last is not None:
            raise StaleShardError("a file that was changed, and stored since")
        staged, kept, gone = ref.overlay.staged, ref.kept, ref.gone if ref.removed else None
        key = ref.overlay.directory if gone is None else gone[1]
        if kept is not None:
            return await self.calls.long(lambda: kept.pread(size, offset))

        def read() -> bytes | int:
            entry = staged.entry(ref.entry) if gone is None else gone[0]
            if entry.base is not None:
                return entry.base
            with staged.open(ref.entry, False) as file:
                return file.pread(size, offset)

        found = await self.calls.patient(staged, read, steady=False)
        if isinstance(found, bytes):
            return found
        if not isinstance(key, KeyDirectory):
            raise StaleShardError("a stored file whose key is not the store's any more")
        return await self._content(key, found, offset, size)

    async def table(self, key: KeyDirectory) -> ShardTable:
        """What a key's stored shard holds; errors as `lookup`."""
        return await self._table(key)

    def _new_handle(self) -> int:
        if len(self._handles) + len(self._files) + len(self._listings) >= config.HANDLES:
            raise StorageError("too many open files", errno.EMFILE)
        return next(self._numbers)


__all__ = ["WRITING", "OverlaidVfs", "Place"]
