"""Renames: of files within a key, of files and directories within a plain directory, and of whole staged directories.

What would have to copy anything is EXDEV, and then `mv` copies. Giving a plain directory the name of a key stores it,
before the rename is answered; if that fails nothing has changed, and the rename can be made again.
"""

from __future__ import annotations

import errno
import os

from shardfs import inodes
from shardfs.control_files import NAME as CONTROL_NAME
from shardfs.errors import KeyExistsError, ShardfsError, StaleShardError, StorageError
from shardfs.numbering import refuse
from shardfs.overlaid import Place
from shardfs.overlay import Overlay, overlay_of
from shardfs.sealing import is_temporary
from shardfs.staging import Kind, Over, StagedEntry
from shardfs.tree import AnyDirectory, Directory, KeyDirectory, NewDirectory
from shardfs.writing import WritableVfs, is_plain

NOREPLACE = 1
"""RENAME_NOREPLACE of renameat2(2)."""


async def rename(vfs: WritableVfs, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
    """Give a file or directory another name or place. EINVAL for exchanging two."""
    vfs.check_open()
    if flags & ~NOREPLACE:
        raise StorageError("names cannot be exchanged", errno.EINVAL)
    if (inodes.ROOT, CONTROL_NAME) in ((parent, name), (new_parent, new_name)):
        raise StorageError(".shardfs cannot be renamed, or replaced", errno.EROFS)
    source, target = vfs.place(parent), vfs.place(new_parent)
    if isinstance(source.directory, Directory) and isinstance(target.directory, Directory):
        async with vfs.calls.alone("rename"):
            await _Directories(vfs, source.directory, name, target.directory, new_name).rename(flags)
        return
    is_key = isinstance(target.directory, KeyDirectory) or (target.overlay and target.overlay.staged.kind == "key")
    if isinstance(source.directory, Directory) and is_key:
        refuse(f"{os.fsdecode(name)}: a key has no directories in it (`mv -T` renames a directory)", errno.EPERM)
    same = source.directory is target.directory if source.overlay is None else source.overlay is target.overlay
    if not same or isinstance(source.directory, Directory) or isinstance(target.directory, Directory):
        raise StorageError("this would have to be copied", errno.EXDEV)
    await _rename_entry(vfs, source, name, target, new_name, flags)


async def _rename_entry(
    vfs: WritableVfs, source: Place, name: bytes, target: Place, new_name: bytes, flags: int
) -> None:
    """Within one key, or one plain directory."""
    key = source.directory
    found, over = await vfs.find(source, name), await vfs.find(target, new_name)
    if found is None:
        raise StorageError(f"no entry {name!r}", errno.ENOENT)
    if over is not None and flags & NOREPLACE:
        raise StorageError(f"{os.fsdecode(new_name)} is there", errno.EEXIST)
    if name == new_name and source.entry == target.entry:
        return
    overlay = source.overlay
    if isinstance(key, KeyDirectory):
        await vfs.numbering.check_name(key, await vfs.table(key), new_name)
        if not is_temporary(new_name):
            await _check_sample(vfs, key, overlay, name, found, new_name)
        overlay = await vfs.overlay(key)
        ref = vfs.known(overlay, found) if isinstance(found, StagedEntry) else await vfs.adopt(key, found[0])
        if is_temporary(new_name):
            await vfs.bring(ref)  # it will be no part of the next version, which could not have its bytes
    assert overlay is not None
    vfs.check_still(source)
    staged, hides = overlay.staged, over[0] if isinstance(over, tuple) else None
    keep = vfs.keeping(overlay, over)

    def renamed() -> None:
        keep()
        staged.rename(source.entry, name, target.entry, new_name, hides)

    await vfs.calls.patient(staged, renamed)
    if isinstance(over, StagedEntry):
        vfs.dropped(overlay, over.id)
    vfs.touched(staged)


async def _check_sample(
    vfs: WritableVfs,
    key: KeyDirectory,
    overlay: Overlay | None,
    name: bytes,
    found: StagedEntry | tuple[int, int],
    new_name: bytes,
) -> None:
    """EPERM where a stored file is not to be given to another sample. To a temporary name it may be moved, and back:
    that is how editors replace files."""
    if await vfs.numbering.closed(key) is None:
        return
    of = name
    if isinstance(found, StagedEntry) and overlay is not None:
        origin, file = overlay.origins.get(found.id, (key, found.base))
        of = name if file is None or origin is not key else (await vfs.table(key)).name(file)
    stem = new_name.partition(b".")[0]
    if stem not in (name.partition(b".")[0], of.partition(b".")[0]):
        await vfs.check_removable(key, overlay, name, found)


class _Directories:
    """One rename of a directory that is no part of a staged one."""

    def __init__(self, vfs: WritableVfs, above: Directory, name: bytes, to: Directory, new_name: bytes) -> None:
        self._vfs = vfs
        self._tree = vfs.tree
        self._above, self._name = above, name
        self._to, self._new_name = to, new_name

    async def rename(self, flags: int) -> None:
        source, target = self._above.children.get(self._name), self._to.children.get(self._new_name)
        if source is None:
            raise StorageError(f"no entry {self._name!r}", errno.ENOENT)
        if source is target:
            return
        if target is not None and flags & NOREPLACE:
            raise StorageError(f"{os.fsdecode(self._new_name)} is there", errno.EEXIST)
        if isinstance(source, KeyDirectory) or (isinstance(source, Directory) and source.children):
            raise StorageError("a stored key would have to be copied", errno.EXDEV)
        await self._let_go(target)
        self._check(target)
        path = "/".join((*self._to.path, os.fsdecode(self._new_name)))
        plain = is_plain(self._new_name)
        key = path if plain else self._vfs.key_of((*self._to.path, os.fsdecode(self._new_name)))
        if not plain:
            self._vfs.check_changeable(key)
        if isinstance(source, NewDirectory):
            overlay = overlay_of(source)
            assert overlay is not None
            staged = overlay.staged
            if staged.base_version is not None and not self._is_open(overlay, key):
                raise StorageError("stored bytes would have to be copied", errno.EXDEV)
            if plain or len(staged):
                await self._call(source, overlay, key, "plain" if plain else "key", target)
                return
        if isinstance(target, KeyDirectory):
            refuse(f"{target.entry.key} is stored, and an empty directory is no key", errno.EEXIST)
        if isinstance(source, NewDirectory):
            await self._vfs.calls.long(lambda: self._vfs.area.discard(staged))
            source = self._tree.empty(source)
        await self._make_way(target)
        self._tree.move(source, self._to, self._new_name)
        if plain:
            fresh = await self._vfs.calls.long(lambda: self._vfs.stage(key, "plain"))
            begun = self._tree.begin(self._to, self._new_name, key, False, None)
            begun.overlay = Overlay(fresh, begun)

    async def _let_go(self, target: AnyDirectory | None) -> None:
        """A stored key in which something was made and removed again has nothing staged that would be in the way."""
        overlay = overlay_of(target)
        if not isinstance(target, KeyDirectory) or overlay is None or not self._vfs.allowed.overwrite:
            return
        await self._vfs.nothing_left(overlay.staged)

    def _check(self, target: AnyDirectory | None) -> None:
        """Whether what has the new name may be replaced."""
        if isinstance(target, Directory) and target.children:
            raise StorageError("not empty", errno.ENOTEMPTY)
        overlay = overlay_of(target)
        if isinstance(target, NewDirectory) and overlay is not None and len(overlay.staged):
            raise StorageError("not empty", errno.ENOTEMPTY)
        if isinstance(target, KeyDirectory):
            if not self._vfs.allowed.overwrite:
                refuse(f"{target.entry.key} is stored: replacing it needs --allow-overwrite", errno.EEXIST)
            if overlay is not None:
                refuse(f"{target.entry.key} has changes that are not stored yet", errno.EBUSY)

    async def _emptied(self, target: NewDirectory) -> Directory | None:
        """An empty directory that has the new name, with nothing staged in it: it goes when the rename has come to its
        end, and stays where that fails. None for one that can hold nothing without being staged: it goes now."""
        if not target.is_key:
            await self._make_way(target)
            return None
        await self._discard(target)
        return self._tree.empty(target)

    async def _discard(self, directory: NewDirectory) -> None:
        """What is staged for an empty directory goes."""
        overlay = overlay_of(directory)
        assert overlay is not None
        staged = overlay.staged
        await self._vfs.calls.long(lambda: self._vfs.area.discard(staged))

    async def _make_way(self, target: AnyDirectory | None) -> None:
        """Take away an empty directory that has the new name."""
        if isinstance(target, NewDirectory):
            await self._discard(target)
        if isinstance(target, NewDirectory | Directory):
            self._tree.drop(target)

    async def _call(
        self, source: NewDirectory, overlay: Overlay, key: str, kind: Kind, target: AnyDirectory | None
    ) -> None:
        """Give a staged directory another key, or another path; store it where it becomes a key."""
        vfs, staged = self._vfs, overlay.staged
        if isinstance(target, KeyDirectory):
            await vfs.numbering.check_change(target)
        elif kind == "key":
            await vfs.numbering.check_key(key)
        before, before_kind = staged.key, staged.kind
        if isinstance(target, NewDirectory):
            target = await self._emptied(target)
        again = kind == "key" and self._is_open(overlay, key)
        if again:
            before, before_kind = "/".join((*self._above.path, os.fsdecode(self._name))), "plain"
        else:
            over = await self._over(target) if kind == "key" and isinstance(target, KeyDirectory) else None
            await vfs.calls.patient(staged, lambda: vfs.area.rename(staged, key, kind, over=over))
            self._tree.call(source, key, kind == "key")
        if kind == "key" and (again or before_kind == "plain" or isinstance(target, KeyDirectory)):
            try:
                if await vfs.sealer.seal(staged) is None and isinstance(target, KeyDirectory):
                    refuse(f"{key} is stored, and nothing in the directory is part of a sample", errno.EEXIST)
            except ShardfsError as error:
                await self._undo(overlay, before, before_kind)
                if isinstance(error, StaleShardError | KeyExistsError) and not isinstance(target, KeyDirectory):
                    refuse(f"{key} is in the store by now", errno.EEXIST)
                raise
            except BaseException:
                await self._undo(overlay, before, before_kind)
                raise
        if isinstance(target, Directory):
            self._tree.drop(target)
        now = self._above.children.get(self._name)
        assert now is not None
        self._tree.move(now, self._to, self._new_name)
        vfs.touched(staged)

    def _is_open(self, overlay: Overlay, key: str) -> bool:
        """Whether an earlier try has left it open if the store has the directory: then it has that key already, though
        not in the mount, and the store is asked again."""
        staged = overlay.staged
        return staged.seal.snapshot is not None and staged.key == key and is_plain(self._name)

    async def _over(self, target: KeyDirectory) -> Over:
        """What a new key replaces: nothing of that is to be seen."""
        table, entry = await self._vfs.table(target), target.entry
        return Over(entry.version, entry.stored_bytes, range(table.files))

    async def _undo(self, overlay: Overlay, key: str, kind: Kind) -> None:
        """All is as before, also where the seal has set the directory aside meanwhile. Where it cannot be told now
        whether the store has it, it stays that key, under the name it had: the next try asks again."""
        staged = overlay.staged
        if staged.seal.snapshot is not None:
            return
        over = None if staged.base_version is None else Over(None)
        await self._vfs.calls.long(lambda: self._vfs.area.rename(staged, key, kind, over=over))
        now = overlay.directory
        assert isinstance(now, NewDirectory)
        self._tree.call(now, key, kind == "key")
        if self._above.children.get(self._name) is not now:
            self._tree.move(now, self._above, self._name)
