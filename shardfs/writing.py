"""What a change of the tree means: names, attributes and directories, what is removed, and what stores a key.

What is refused is said in the log, with the reason. Files are opened and written in `changing`, renamed in `moving`.
Knows nothing of FUSE, nor of how a staged directory becomes a shard.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from shardfs import config, inodes
from shardfs.attributes import Attributes, StatFs
from shardfs.changing import Allowed, ChangingVfs
from shardfs.control_files import NAME as CONTROL_NAME
from shardfs.errors import NotWritableError, StaleShardError, StorageError
from shardfs.numbering import refuse
from shardfs.overlay import ROOT, OpenFile, Overlay, Ref, attributes_of, overlay_of
from shardfs.staging import StagedDirectory, StagedEntry
from shardfs.tree import AnyDirectory, Directory, KeyDirectory

log = logging.getLogger("shardfs")

_PLAIN_ENDINGS = (b".tmp", b".partial")


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


class WritableVfs(ChangingVfs):
    """The file system over one store, for reading and writing."""

    writable = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with super().running(), self.sealer.running(self.show_all):
            yield

    async def finish(self, seconds: float) -> tuple[dict[str, str], dict[str, str]]:
        """Refuse changes from now on, and store all keys, within so many seconds. What could not be stored, by key, and
        what is not to be, each with the reason."""
        self.ending = True
        failed = {key: str(error) for key, error in (await self.sealer.seal_all(seconds)).items()}
        kept = {}
        for report in await self.calls.long(self.area.reports):
            if report.key not in failed and (report.files or report.kind == "plain"):
                plain = "it is no key until it is renamed to one"
                kept[report.key] = plain if report.kind == "plain" else report.reason or "no sample has these files"
        return failed, kept

    async def fsync(self, handle: int) -> None:
        """Make what was written durable. Nothing is stored by it."""
        opened = self._files.get(handle)
        if opened is not None and opened.file is not None and opened.ref.last is None:
            await self.calls.long(opened.file.fsync)

    async def fsyncdir(self, handle: int) -> None:
        """Store a key: EBUSY while a file in it is open for writing, and whatever else the seal raises. Of any other
        directory: make durable what is staged in it."""
        if handle >= inodes.CONTROL:
            return
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

    async def discard(self, staged: StagedDirectory) -> None:
        """Remove what is staged for a key, or in a plain directory, for good. EBUSY while a file in it is open for
        writing, or it is being stored."""
        await self.calls.closed(staged)
        await self.calls.long(lambda: staged.end(f"{staged.key} was discarded"))
        self.discarded(staged)
        await self.calls.long(lambda: self.area.discard(staged))

    # --- attributes ---------------------------------------------------------------------------------------------

    async def setattr(self, inode: int, change: Change, handle: int | None) -> Attributes:
        """Change what is given. What a stored file has besides its bytes is no part of a sample: it is accepted, and
        forgotten."""
        self.check_open()
        if inode >= inodes.CONTROL:
            self.place(inode)  # which refuses it
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
                await self.calls.quick(staged, lambda: staged.set_attributes(entry, bits, *rest), steady=False)
        return await self.getattr(inode)

    async def _resize(self, ref: Ref, opened: OpenFile | None, size: int) -> None:
        staged = ref.overlay.staged
        if opened is not None and opened.file is not None and opened.writing:
            file = opened.file
            await self.calls.patient(staged, lambda: file.truncate(size), steady=False)
        else:
            if ref.last is not None:
                raise StaleShardError("the file was stored since it was looked up")
            async with self.calls.alone((staged.id, ref.entry)):
                if size:
                    await self.bring(ref)
                await self.calls.patient(staged, lambda: staged.truncate(ref.entry, size), steady=False)
        self.touched(staged)

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
            if name in above.children or (above is self.tree.root and name == CONTROL_NAME):
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
        if isinstance(key, KeyDirectory):
            self.check_changeable(key.entry.key)
            await self.check_removable(key, place.overlay, name, found)
        self.check_still(place)
        if isinstance(found, StagedEntry):
            assert place.overlay is not None
            overlay, staged = place.overlay, place.overlay.staged
            keep = self.keeping(overlay, found)

            def remove() -> None:
                keep()
                staged.unlink(place.entry, name)

            await self.calls.patient(staged, remove)
            self.dropped(overlay, found.id)
        else:
            assert isinstance(key, KeyDirectory)
            file = found[0]
            staged = (await self.overlay(key)).staged
            self.check_still(place)
            await self.calls.quick(staged, lambda: staged.hide(file))
        self.touched(staged)

    def dropped(self, overlay: Overlay, number: int) -> None:
        """An entry is not in its directory any more; who has it open keeps it."""
        overlay.origins.pop(number, None)
        ref = overlay.refs.get(number)
        if ref is not None:
            ref.removed = True
            self.let_go(ref)

    async def check_removable(
        self, key: KeyDirectory, overlay: Overlay | None, name: bytes, found: StagedEntry | tuple[int, int]
    ) -> None:
        """EPERM for a name, or for the last name of a file, that the store has, unless that may be removed."""
        reason = await self.numbering.closed(key)
        if reason is None and self.allowed.delete:
            return
        reason = reason or "removing needs --allow-delete"
        table = await self._table(key)
        stored = table.find(name) is not None
        if not stored and isinstance(found, StagedEntry) and overlay is not None:
            of, file = overlay.origins.get(found.id, (key, found.base))
            if file is not None and of is key:
                staged, first = overlay.staged, table.name(file)
                stored = await self.calls.quick(staged, lambda: staged.find(ROOT, first)) is None
        if stored:
            refuse(f"{key.entry.key}/{os.fsdecode(name)} is stored, and cannot be removed: {reason}", errno.EPERM)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory; a stored key that was emptied, from the store."""
        self.check_open()
        place = self.place(parent)
        above = place.directory
        if not isinstance(above, Directory):
            if place.overlay is None or place.overlay.staged.kind == "key":
                raise StorageError(f"{os.fsdecode(name)} is no directory", errno.ENOTDIR)
            plain, found = place.overlay, await self.find(place, name)
            await self.calls.patient(plain.staged, lambda: plain.staged.rmdir(place.entry, name))
            if isinstance(found, StagedEntry):
                self.dropped(plain, found.id)
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

        try:
            await self.calls.long(remove)
        except NotWritableError as error:
            refuse(f"{entry.key} cannot be removed: {error}", errno.EPERM)
        above = self.tree.directory(key.parent)
        assert isinstance(above, Directory)
        above.made = True
        self.numbering.changed()
        self.tree.remove(key)
        self._supersede(key)
        log.info("%s was removed from the store", entry.key)

    async def space(self) -> StatFs:
        """The store's size, and what is free for staging."""
        found, disk = self.statfs(), await self.calls.long(lambda: os.statvfs(self.area.path))
        free = disk.f_bavail * disk.f_frsize // found.block_size
        return StatFs(found.block_size, found.blocks + free, found.files, found.name_max, free)


__all__ = ["Allowed", "Change", "WritableVfs", "is_plain"]
