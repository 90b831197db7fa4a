"""How files come to be staged: new ones, and stored ones that are taken over to be changed; and writing to them.

The first change in a key makes a staged directory over it; a sealer makes a shard of that again. Knows nothing of how.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shardfs import config, inodes, names
from shardfs.attributes import Attributes
from shardfs.drivers.base import Driver, WritesFiles
from shardfs.errors import ShardfsError, StaleShardError, StorageError
from shardfs.model import Key
from shardfs.numbering import Numbering, refuse
from shardfs.overlay import ROOT, OpenFile, Overlay, Ref, attributes_of, overlay_of
from shardfs.settling import Sealed, SettledVfs
from shardfs.shard_cache import Loaded, ShardCache
from shardfs.staging import Kind, StagedDirectory, StagedEntry, StagingArea
from shardfs.tree import AnyDirectory, Directory, KeyDirectory, NewDirectory
from shardfs.vfs import WRITING


class Sealing(Protocol):
    """What makes shards of staged directories."""

    @property
    def changed(self) -> Mapping[str, list[dict[str, Any]]]: ...

    def problems(self) -> dict[str, str]: ...
    def running(self, prepare: Callable[[], Awaitable[None]] = ...) -> contextlib.AbstractAsyncContextManager[None]: ...
    def touched(self, staged: StagedDirectory) -> None: ...
    async def seal(self, staged: StagedDirectory) -> Sealed | None: ...
    async def seal_all(self, seconds: float | None = None) -> dict[str, ShardfsError]: ...
    @property
    def at_work(self) -> bool: ...
    @property
    def stored(self) -> int: ...
    @property
    def failures(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be done to what is stored, beyond editing and adding."""

    overwrite: bool = False
    """Replace a stored key by renaming a directory over it."""
    delete: bool = False
    """Remove stored files, and keys."""


class ChangingVfs(SettledVfs):
    """A file system whose files can be made, opened for writing, and written to."""

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
        self.sealer = sealer
        self.allowed = allowed
        self.ending = False
        self.numbering = Numbering(driver, self.calls)

    def sealed(self, done: Sealed) -> None:
        super().sealed(done)
        self.numbering.changed()

    def check_open(self) -> None:
        """EROFS once the mount ends."""
        if self.ending:
            raise StorageError("the mount is being ended", errno.EROFS)

    def touched(self, staged: StagedDirectory) -> None:
        """Something was changed: its quiet begins anew, unless a seal has just taken all there was."""
        if self.area.find(staged.key) is staged:
            self.sealer.touched(staged)

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
                self.check_changeable(key.entry.key)
                await self._current(key)
                await self.numbering.check_change(key)
                table = await self._table(key)  # what is staged over it is of this version for good
                if key.superseded:  # while it was asked for: what is staged now would be shown nowhere
                    raise StaleShardError(f"{key.entry.key} was replaced")
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

    def check_changeable(self, key: str) -> None:
        """EROFS for a key that the driver will not write."""
        why = self.driver.refused(Key(key)) if isinstance(self.driver, WritesFiles) else None
        if why is not None:
            refuse(why, errno.EROFS)

    async def _begin_key(self, directory: Directory) -> NewDirectory:
        """An empty directory becomes a key."""
        async with self.calls.alone(directory.inode):
            now = self.tree.directory(directory.inode)
            if isinstance(now, NewDirectory):
                return now
            if now is not directory or directory.children:
                raise StaleShardError("the directory has just become something else")
            key = self.key_of(directory.path)
            self.check_changeable(key)
            await self.numbering.check_key(key)
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
            await self.numbering.check_name(directory, await self._table(directory), name)
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
            if directory.superseded:
                raise StaleShardError(f"{directory.entry.key} was just stored")
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
            # Who makes a file only to write it reads nothing back, and maps nothing: pages would be filled for nobody,
            # as the next to open it gets new ones. Whoever opens it meanwhile does without pages, too.
            direct = flags & os.O_ACCMODE == os.O_WRONLY
            return staged.entry(file.id), OpenFile(Ref(0, overlay, file.id), file, True, direct)

        entry, opened = await self.calls.quick(staged, make)
        ref = self.known(overlay, entry)
        self.looked_up(ref.inode)
        self.touched(staged)
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
            call = self.calls.patient if empty else self.calls.quick
            file = await call(staged, opened, steady=False)
        self.touched(staged)
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
        base = (await self.calls.quick(staged, lambda: staged.entry(ref.entry), steady=False)).base
        if base is None:
            return
        if not isinstance(key, KeyDirectory):
            raise StaleShardError("a stored file whose key is not the store's any more")
        async with self.cache.pinned(key.entry) as loaded:
            pieces = _pieces(loaded, base, self.cache.arrays)
            await self.calls.long(lambda: staged.copy_up(ref.entry, pieces))

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write all of `data`. ENOSPC, EBADF."""
        self.check_open()
        opened = self._files.get(handle)
        if opened is None or opened.file is None or not opened.writing:
            raise StorageError("not open for writing", errno.EBADF)
        file, staged = opened.file, opened.ref.overlay.staged
        if file.waits(offset, len(data)):
            count = await self.calls.patient(staged, lambda: file.pwrite(data, offset), steady=False)
        else:
            count = await self.calls.quick(staged, lambda: file.pwrite(data, offset), steady=False)
        self.touched(staged)
        return count

    def keeping(self, overlay: Overlay, found: object) -> Callable[[], None]:
        """What to call, in a worker, right before an entry is removed, if it is one: who opened the stored file before
        that was changed has nothing but its number, and who opened one that has its bytes in the store still, nothing
        but the entry; both go on reading."""
        ref = overlay.refs.get(found.id) if isinstance(found, StagedEntry) else None
        if ref is None:
            return lambda: None
        kept, staged, key, is_open = ref, overlay.staged, overlay.directory, self._gifts.is_open(ref.inode)

        def keep() -> None:
            entry = staged.entry(kept.entry)
            if entry.base is not None:
                kept.gone = entry, key
            elif is_open:
                kept.kept = staged.open(kept.entry, False)

        return keep

    async def close(self, handle: int) -> None:
        """A handle was closed for good."""
        opened = self._files.pop(handle, None)
        if opened is None:
            self.release(handle)
            ref = self.ref_of(handle)
            if ref is not None and ref.kept is not None and not self._gifts.is_open(handle):
                kept, ref.kept = ref.kept, None
                await self.calls.quick(ref.overlay.staged, kept.close, steady=False)
        elif opened.file is not None:
            file, staged = opened.file, opened.ref.overlay.staged
            if opened.direct and opened.writing:
                opened.ref.direct -= 1
            await self.calls.closing(staged, file.close)
            if opened.writing and opened.ref.last is None:
                self.touched(staged)


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
