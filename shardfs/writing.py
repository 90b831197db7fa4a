"""What a change of the tree means: names, attributes and bytes of staged files, and what is refused and why.

The first change in a key makes a staged directory over it; a sealer makes a shard of that again. Renames are in
`moving`. Knows nothing of FUSE, nor of how a staged directory becomes a shard.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import NoReturn, Protocol

from shardfs import config, inodes, names
from shardfs.attributes import Attributes, StatFs
from shardfs.drivers.base import Driver
from shardfs.errors import ShardfsError, StaleShardError, StorageError
from shardfs.overlay import ROOT, OpenFile, Overlay, Ref, attributes_of, overlay_of
from shardfs.settling import SettledVfs
from shardfs.shard_cache import Loaded, ShardCache
from shardfs.staging import Kind, StagedDirectory, StagedEntry, StagingArea
from shardfs.tree import AnyDirectory, Directory, KeyDirectory, NewDirectory
from shardfs.vfs import WRITING

log = logging.getLogger("shardfs")

_PLAIN_ENDINGS = (b".tmp", b".partial")


class Sealing(Protocol):
    """What makes shards of staged directories."""

    def running(self) -> contextlib.AbstractAsyncContextManager[None]: ...
    def touched(self, staged: StagedDirectory) -> None: ...
    async def seal(self, staged: StagedDirectory) -> object: ...
    async def seal_all(self) -> dict[str, ShardfsError]: ...


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be done to what is stored, beyond editing and adding."""

    overwrite: bool = False
    """Replace a stored key by renaming a directory over it."""
    delete: bool = False
    """Remove stored files, and keys."""


@dataclass(frozen=True, slots=True)
class Change:
    """What setattr wants; None for what stays. `size` in bytes, times in nanoseconds since the epoch."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None


def is_plain(name: bytes) -> bool:
    """True for the name of a directory that is never a key: it may hold any names, and directories."""
    return name.startswith(b".") or name.endswith(_PLAIN_ENDINGS)


def refuse(text: str, code: int) -> NoReturn:
    """Say why something is not done."""
    log.warning("%s: %s", text, os.strerror(code))
    raise StorageError(text, code)


class WritableVfs(SettledVfs):
    """The file system over one store, for reading and writing."""

    def __init__(
        self,
        driver: Driver,
        cache: ShardCache,
        uid: int,
        gid: int,
        area: StagingArea,
        sealer: Sealing,
        allowed: Allowed,
        read_ahead: bool = True,
    ) -> None:
        super().__init__(driver, cache, uid, gid, area, read_ahead)
        self.driver = driver
        self.sealer = sealer
        self.allowed = allowed
        self.ending = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with super().running(), self.sealer.running():
            await self.show_all()
            yield

    async def finish(self) -> tuple[dict[str, str], dict[str, str]]:
        """Refuse changes from now on, and store all keys. What could not be stored, by key, and what is not to be, each
        with the reason."""
        self.ending = True
        failed = {key: str(error) for key, error in (await self.sealer.seal_all()).items()}
        kept = {}
        for report in await self.calls.long(self.area.reports):
            if report.key not in failed and (report.files or report.kind == "plain"):
                plain = "it is no key until it is renamed to one"
                kept[report.key] = plain if report.kind == "plain" else report.reason or "no sample has these files"
        return failed, kept

    def check_open(self) -> None:
        """EROFS once the mount ends."""
        if self.ending:
            raise StorageError("the mount is being ended", errno.EROFS)

    # --- where something is staged ------------------------------------------------------------------------------

    def stage(self, key: str, kind: Kind, version: str | None = None, size: int = 0) -> StagedDirectory:
        """A staged directory for a key, over a stored version; in a worker. What a seal has finished with is used again
        or taken away."""
        there = self.area.find(key)
        if there is not None and there.finished:
            if there.base_version == version and there.kind == kind:
                return there
            self.area.discard(there)
        return self.area.create(key, kind, version, size)

    async def overlay(self, key: KeyDirectory) -> Overlay:
        """What is staged over a stored key, begun if need be. ESTALE if it has been replaced."""
        self.check_open()
        async with self.calls.alone(key.inode):
            found = overlay_of(key)
            if found is None:
                await self._current(key)
                table = await self._table(key)  # what is staged over it is of this version for good
                entry, key.held = key.entry, True
                try:
                    staged = await self.calls.long(
                        lambda: self.stage(entry.key, "key", entry.version, entry.stored_bytes)
                    )
                except BaseException:
                    key.held = False
                    raise
                found = key.overlay = Overlay(staged, key, table)
            if key.superseded:
                raise StaleShardError(f"{key.entry.key} was replaced")
            return found

    def key_of(self, path: tuple[str, ...]) -> str:
        """The key that a path means. EINVAL where it cannot be one."""
        try:
            key = "/".join(names.unescape(part) for part in path)
            same = names.key_path(key) == path
        except ValueError:
            same = False
        if not same:
            refuse(f"{'/'.join(path)} cannot be the name of a key: `~` and `%` have a meaning", errno.EINVAL)
        return key

    async def _begin_key(self, directory: Directory) -> NewDirectory:
        """An empty directory becomes a key."""
        async with self.calls.alone(directory.inode):
            now = self.tree.directory(directory.inode)
            if isinstance(now, NewDirectory):
                return now
            if now is not directory or directory.children:
                raise StaleShardError("the directory has just become something else")
            key = self.key_of(directory.path)
            staged = await self.calls.long(lambda: self.stage(key, "key"))
            above = self.tree.directory(directory.parent)
            assert isinstance(above, Directory)
            made = self.tree.begin(above, directory.name, key, True, None)
            made.overlay = Overlay(staged, made)
            return made

    async def _room_for(self, parent: int, name: bytes) -> tuple[Overlay, int, AnyDirectory | None]:
        """Where a new file goes: EPERM where none can be."""
        self.check_open()
        place = self.place(parent)
        directory = place.directory
        if isinstance(directory, Directory):
            if directory is self.tree.root:
                refuse(
                    f"{os.fsdecode(name)}: files can be in keys only, not beside them: make a directory", errno.EPERM
                )
            if directory.children:
                refuse(f"{os.fsdecode(name)}: {'/'.join(directory.path)} leads to keys and is none", errno.EPERM)
            directory = await self._begin_key(directory)
        if isinstance(directory, KeyDirectory):
            return await self.overlay(directory), ROOT, directory
        if isinstance(directory, NewDirectory):
            overlay = overlay_of(directory)
            assert overlay is not None
            return overlay, ROOT, directory
        assert place.overlay is not None
        return place.overlay, place.entry, None

    # --- files --------------------------------------------------------------------------------------------------

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, uid: int, gid: int
    ) -> tuple[int, Attributes]:
        """Make a file and open it: handle and attributes, which count as a lookup."""
        overlay, at, directory = await self._room_for(parent, name)
        if isinstance(directory, KeyDirectory):
            file = (await self._table(directory)).find(name)
            if file is not None and not overlay.staged.hides(file):
                if flags & os.O_EXCL:
                    raise StorageError(f"{os.fsdecode(name)} is there", errno.EEXIST)
                found = await self.lookup(parent, name)
                return await self.open(found.inode, flags), found
        staged = overlay.staged

        def make() -> tuple[StagedEntry, OpenFile | None]:
            there = None if flags & os.O_EXCL else staged.find(at, name)
            if there is not None:
                return there, None
            file = staged.create(at, name, mode & 0o7777, uid, gid)
            return staged.entry(file.id), OpenFile(Ref(0, overlay, file.id), file, True)

        entry, opened = await self.calls.quick(staged, make)
        ref = self.known(overlay, entry)
        self.looked_up(ref.inode)
        self.sealer.touched(staged)
        if opened is None:
            return await self.open(ref.inode, flags), attributes_of(ref.inode, entry)
        opened.ref = ref
        return self.add_file(opened), attributes_of(ref.inode, entry)

    async def open(self, inode: int, flags: int) -> int:
        if not flags & WRITING or not flags & (os.O_ACCMODE | os.O_TRUNC):
            return await super().open(inode, flags & ~WRITING)
        self.check_open()
        ref = await self.changeable(inode)
        staged, empty = ref.overlay.staged, bool(flags & os.O_TRUNC)
        async with self.calls.alone((staged.id, ref.entry)):
            if not empty:
                await self.bring(ref)

            def opened() -> OpenFile:
                if empty:
                    staged.truncate(ref.entry, 0)
                return OpenFile(ref, staged.open(ref.entry, True), True)

            # emptying may have to wait for the disk, as a change in place
            file = await (self.calls.patient(staged, opened) if empty else self.calls.quick(staged, opened))
        self.sealer.touched(staged)
        return self.add_file(file)

    async def changeable(self, inode: int) -> Ref:
        """The staged entry of a file, taken over from the stored shard if need be. ESTALE, EISDIR."""
        ref = self.ref_of(inode)
        if ref is not None:
            if ref.last is not None:
                raise StaleShardError("the file was stored since it was looked up")
            return ref
        key = self.tree.slot(inodes.slot_of(inode))
        if key is None:
            raise StorageError("a directory", errno.EISDIR if self.tree.directory(inode) else errno.ESTALE)
        if key.superseded:
            raise StaleShardError(f"{key.entry.key} was replaced")
        return await self.adopt(key, inodes.file_of(inode))

    async def adopt(self, key: KeyDirectory, file: int) -> Ref:
        """Take a stored file over, bytes and all still in the shard."""
        overlay, table = await self.overlay(key), await self._table(key)
        staged, name, size = overlay.staged, table.name(file), table.size(file)
        async with self.calls.alone((staged.id, name)):
            ref = self.ref_of(inodes.file_inode(key.slot, file))
            if ref is not None:
                return ref
            if key.superseded or staged.hides(file):
                raise StaleShardError("the file was removed")
            mtime_ns = key.entry.mtime_ns
            entry = await self.calls.quick(
                staged, lambda: staged.adopt(name, file, size, 0o644, self.uid, self.gid, mtime_ns)
            )
            overlay.origins[entry.id] = key, file
            return self.known(overlay, entry)

    async def bring(self, ref: Ref) -> None:
        """Have a staged file's bytes in the staging area. ESTALE if the store does not have them any more."""
        staged, key = ref.overlay.staged, ref.overlay.directory
        base = (await self.calls.quick(staged, lambda: staged.entry(ref.entry))).base
        if base is None:
            return
        if not isinstance(key, KeyDirectory):
            raise StaleShardError("a stored file whose key is not the store's any more")
        loaded = await self.cache.shard(key.entry)
        loaded.pins += 1
        try:
            pieces = _pieces(loaded, base, self.cache.arrays)
            await self.calls.long(lambda: staged.copy_up(ref.entry, pieces))
        finally:
            loaded.pins -= 1

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write all of `data`. ENOSPC, EBADF."""
        self.check_open()
        opened = self._files.get(handle)
        if opened is None or opened.file is None or not opened.writing:
            raise StorageError("not open for writing", errno.EBADF)
        file, staged = opened.file, opened.ref.overlay.staged
        if file.waits():
            count = await self.calls.long(lambda: file.pwrite(data, offset))
        else:
            count = await self.calls.quick(staged, lambda: file.pwrite(data, offset))
        self.sealer.touched(staged)
        return count

    async def close(self, handle: int) -> None:
        """A handle was closed for good."""
        opened = self._files.pop(handle, None)
        if opened is None:
            self.release(handle)
        elif opened.file is not None:
            file, staged = opened.file, opened.ref.overlay.staged
            await self.calls.quick(staged, file.close)
            if opened.writing and opened.ref.last is None:
                self.sealer.touched(staged)

    async def fsync(self, handle: int) -> None:
        """Make what was written durable. Nothing is stored by it."""
        opened = self._files.get(handle)
        if opened is not None and opened.file is not None and opened.ref.last is None:
            await self.calls.long(opened.file.fsync)

    async def fsyncdir(self, handle: int) -> None:
        """Store a key: EBUSY while a file in it is open for writing, and whatever else the seal raises. Of any other
        directory: make durable what is staged in it."""
        place = self.place(self.listed(handle))
        if place.overlay is None:
            if isinstance(place.directory, Directory):
                await self.calls.long(self.area.sync)
            return
        staged = place.overlay.staged
        if place.directory is not None and staged.kind == "key" and staged.parked is None:
            await self.sealer.seal(staged)
        else:
            await self.calls.long(staged.sync)

    # --- attributes ---------------------------------------------------------------------------------------------

    async def setattr(self, inode: int, change: Change, handle: int | None) -> Attributes:
        """Change what is given. What a stored file has besides its bytes is no part of a sample: it is accepted, and
        forgotten."""
        self.check_open()
        ref = self.ref_of(inode)
        if change.size is not None:
            opened = None if handle is None else self._files.get(handle)
            ref = opened.ref if opened is not None else await self.changeable(inode)
            await self._resize(ref, opened, change.size)
        others = (change.mode, change.uid, change.gid, change.mtime_ns, change.atime_ns)
        if any(value is not None for value in others):
            directory = self.tree.directory(inode)
            overlay = overlay_of(directory) if ref is None else ref.overlay
            if (ref is not None and ref.last is None) or (directory is not None and overlay is not None):
                assert overlay is not None
                staged, entry = overlay.staged, ROOT if ref is None else ref.entry
                mode, *rest = others
                bits = None if mode is None else mode & 0o7777
                await self.calls.quick(staged, lambda: staged.set_attributes(entry, bits, *rest))
        return await self.getattr(inode)

    async def _resize(self, ref: Ref, opened: OpenFile | None, size: int) -> None:
        staged = ref.overlay.staged
        if opened is not None and opened.file is not None and opened.writing:
            file = opened.file
            await self.calls.patient(staged, lambda: file.truncate(size))
        else:
            if ref.last is not None:
                raise StaleShardError("the file was stored since it was looked up")
            async with self.calls.alone((staged.id, ref.entry)):
                if size:
                    await self.bring(ref)
                await self.calls.patient(staged, lambda: staged.truncate(ref.entry, size))
        self.sealer.touched(staged)

    # --- directories --------------------------------------------------------------------------------------------

    async def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Attributes:
        """Make a directory; counts as a lookup. EPERM in a key."""
        self.check_open()
        place = self.place(parent)
        above = place.directory
        if not isinstance(above, Directory):
            if place.overlay is None or (above is not None and place.overlay.staged.kind == "key"):
                refuse(f"{os.fsdecode(name)}: a key has no directories in it", errno.EPERM)
            overlay, staged = place.overlay, place.overlay.staged
            entry = await self.calls.quick(staged, lambda: staged.mkdir(place.entry, name, mode & 0o7777, uid, gid))
            ref = self.known(overlay, entry)
            self.looked_up(ref.inode)
            return attributes_of(ref.inode, entry)
        async with self.calls.alone((above.inode, name)):
            if name in above.children:
                raise StorageError(f"{os.fsdecode(name)} is there", errno.EEXIST)
            if len(name) > config.NAME_MAX:
                raise StorageError("too long a name", errno.ENAMETOOLONG)
            text = os.fsdecode(name)
            made: AnyDirectory
            if is_plain(name):
                path = "/".join((*above.path, text))
                staged = await self.calls.long(lambda: self.stage(path, "plain"))
                made = self.tree.begin(above, name, path, False, None)
                made.overlay = Overlay(staged, made)
            else:
                self.key_of((*above.path, text))
                made = self.tree.make(above, name, time.time_ns())
            self.looked_up(made.inode)
            return self._directory_attributes(made)

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a file. EPERM for one of a stored sample, unless that is allowed."""
        self.check_open()
        place = self.place(parent)
        key = place.directory
        if isinstance(key, Directory):
            raise StorageError(
                f"{os.fsdecode(name)} is no file", errno.EISDIR if name in key.children else errno.ENOENT
            )
        found = await self.find(place, name)
        if found is None:
            raise StorageError(f"no entry {name!r}", errno.ENOENT)
        if isinstance(key, KeyDirectory) and not self.allowed.delete:
            entry = found if isinstance(found, StagedEntry) else None
            await self._check_removable(key, place.overlay, name, entry)
        if isinstance(found, StagedEntry):
            assert place.overlay is not None
            overlay, staged = place.overlay, place.overlay.staged
            await self.calls.patient(staged, lambda: staged.unlink(place.entry, name))
            self.dropped(overlay, found.id)
        else:
            assert isinstance(key, KeyDirectory)
            file = found[0]
            staged = (await self.overlay(key)).staged
            await self.calls.quick(staged, lambda: staged.hide(file))
        self.sealer.touched(staged)

    def dropped(self, overlay: Overlay, number: int) -> None:
        """An entry is not in its directory any more; who has it open keeps it."""
        overlay.origins.pop(number, None)

    async def _check_removable(
        self, key: KeyDirectory, overlay: Overlay | None, name: bytes, entry: StagedEntry | None
    ) -> None:
        """EPERM for a name, or for the last name of a file, that the store has."""
        table = await self._table(key)
        stored = table.find(name) is not None
        if not stored and entry is not None and overlay is not None:
            origin = overlay.origins[entry.id][1] if entry.id in overlay.origins else entry.base
            if origin is not None and entry.base is not None:
                staged, first = overlay.staged, table.name(entry.base)
                stored = await self.calls.quick(staged, lambda: staged.find(ROOT, first)) is None
        if stored:
            refuse(f"{key.entry.key}/{os.fsdecode(name)} is stored: removing needs --allow-delete", errno.EPERM)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory; a stored key that was emptied, from the store."""
        self.check_open()
        place = self.place(parent)
        above = place.directory
        if not isinstance(above, Directory):
            if place.overlay is None or place.overlay.staged.kind == "key":
                raise StorageError(f"{os.fsdecode(name)} is no directory", errno.ENOTDIR)
            staged = place.overlay.staged
            await self.calls.patient(staged, lambda: staged.rmdir(place.entry, name))
            return
        async with self.calls.alone((above.inode, name)):
            directory = above.children.get(name)
            if directory is None:
                raise StorageError(f"no entry {name!r}", errno.ENOENT)
            if isinstance(directory, Directory):
                if directory.children:
                    raise StorageError("not empty", errno.ENOTEMPTY)
                self.tree.drop(directory)
                return
            overlay = overlay_of(directory)
            if overlay is not None and len(overlay.staged):
                raise StorageError("not empty", errno.ENOTEMPTY)
            if isinstance(directory, KeyDirectory):
                await self._remove_key(directory, overlay)
            else:
                assert overlay is not None
                staged = overlay.staged
                await self.calls.long(lambda: self.area.discard(staged))
                self.tree.drop(directory)

    async def _remove_key(self, key: KeyDirectory, overlay: Overlay | None) -> None:
        table = await self._table(key)
        staged = None if overlay is None else overlay.staged
        if any(staged is None or not staged.hides(file) for file in range(table.files)):
            raise StorageError("not empty", errno.ENOTEMPTY)
        if not self.allowed.delete:
            refuse(f"{key.entry.key} is stored: removing needs --allow-delete", errno.EPERM)
        entry = key.entry

        def remove() -> None:
            if self.driver.entry(entry.key).version != entry.version:
                raise StaleShardError(f"{entry.key} was replaced since it was emptied here")
            self.driver.remove(entry.key)
            if staged is not None:
                self.area.discard(staged)

        await self.calls.long(remove)
        above = self.tree.directory(key.parent)
        assert isinstance(above, Directory)
        above.made = True
        self.tree.remove(key)
        self._supersede(key)
        log.info("%s was removed from the store", entry.key)

    async def space(self) -> StatFs:
        """The store's size, and what is free for staging."""
        found, disk = self.statfs(), await self.calls.long(lambda: os.statvfs(self.area.path))
        free = disk.f_bavail * disk.f_frsize // found.block_size
        return StatFs(found.block_size, found.blocks + free, found.files, found.name_max, free)


def _pieces(loaded: Loaded, file: int, arrays: str) -> Iterator[bytes | memoryview]:
    """A stored file piece by piece, in a worker."""
    table, shard = loaded.table, loaded.shard
    run = table.slice_of(file)
    if run is None:
        yield table.render(file, shard, arrays)
        return
    prefix, start, length = run
    yield prefix
    for at in range(start, start + length, config.STAGED_COPY):
        yield memoryview(shard.fetch(at, min(at + config.STAGED_COPY, start + length)))
