"""What a mount shows when a seal has ended, and when it begins with what earlier ones left staged.

A key keeps its directory over a seal of ours, so that whoever works in it goes on. Knows nothing of how a seal is made.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from shardfs import config, names
from shardfs.attributes import Attributes
from shardfs.drivers.base import Driver
from shardfs.drivers.numbered import NumberedThrough
from shardfs.index import ShardTable
from shardfs.model import Entry, Key
from shardfs.overlaid import DIRECTORY_MODE, FILE_MODE, OverlaidVfs
from shardfs.overlay import Overlay, Ref, Sealing, overlay_of
from shardfs.shard_cache import ShardCache
from shardfs.staging import StagedDirectory, StagedFile, StagingArea
from shardfs.tree import Directory, KeyDirectory, NewDirectory

log = logging.getLogger("shardfs")


class Sealed(Protocol):
    """What a seal tells when it has ended."""

    @property
    def key(self) -> Key: ...
    @property
    def entry(self) -> Entry: ...
    @property
    def table(self) -> ShardTable: ...
    @property
    def numbers(self) -> Mapping[int, int]: ...
    @property
    def base_numbers(self) -> Mapping[int, int]: ...
    @property
    def left(self) -> StagedDirectory | None: ...


class SettledVfs(OverlaidVfs):
    """A file system whose staged directories become keys."""

    def __init__(
        self, driver: Driver, cache: ShardCache, uid: int, gid: int, area: StagingArea, read_ahead: bool = True
    ) -> None:
        super().__init__(driver, cache, uid, gid, read_ahead)
        self.area = area
        self._splits = isinstance(driver, NumberedThrough)

    # --- after a seal -------------------------------------------------------------------------------------------

    def sealed(self, done: Sealed) -> None:
        """A seal has put a version of a key into the store, and the staged directory holds only what is left."""
        before: KeyDirectory | NewDirectory | None = self.tree.begun(done.key) or self.tree.current(done.key)
        overlay = overlay_of(before)
        if before is None or overlay is None:
            return  # it was begun by an earlier mount, and is not shown yet
        replaced = self.tree.current(done.key)
        if replaced is not None and replaced is not before:
            self.tree.retire(replaced)
            self._supersede(replaced)
        table, overlay.table = overlay.table, done.table
        fresh = self.tree.succeed(before, done.entry)
        fresh.settled = True
        self.refresh.seen(fresh)
        if self._splits:
            self.refresh.expect()  # it may have become several
        if isinstance(before, KeyDirectory):
            before.successor = Sealing(fresh, done.base_numbers, table)
            if before.lookups > 0:
                self._tell(before, fresh, table)
        left: set[int] = set()
        if done.left is not None:
            left = {entry.id for entry in done.left.children()}
            overlay.staged, overlay.directory = done.left, fresh
            fresh.overlay, fresh.held = overlay, True
        self._end(overlay, left, done)
        log.info("%s is stored", done.key)

    def _end(self, overlay: Overlay, left: set[int], done: Sealed) -> None:
        """The entries that are not left are staged no more."""
        opened = {opened.ref: opened.file for opened in self._files.values() if opened.file is not None}
        for number, ref in list(overlay.refs.items()):
            if number in left:
                continue
            file, stored = opened.get(ref), done.numbers.get(number)
            if ref.removed and (file is not None or ref.kept is not None or ref.gone is not None):
                del overlay.refs[number]
                overlay.origins.pop(number, None)
                continue  # it was not stored, and may be written to still
            size = 0 if stored is None else done.table.size(stored)
            self._ended(ref, file, size, done.entry.mtime_ns)

    def _ended(self, ref: Ref, file: StagedFile | None, size: int, mtime_ns: int, directory: bool = False) -> None:
        """An entry is staged no more; `file` is an opening of it."""
        del ref.overlay.refs[ref.entry]
        ref.overlay.origins.pop(ref.entry, None)
        if file is not None:
            size, mtime_ns = file.size_and_mtime()
        mode = DIRECTORY_MODE if directory else FILE_MODE
        ref.last = Attributes(ref.inode, mode, size, mtime_ns, 1, 0.0, 0.0)
        self.let_go(ref)

    def _tell(self, before: KeyDirectory, fresh: KeyDirectory, table: ShardTable | None) -> None:
        """The names that the kernel may have of a key's stored files, by `table`, mean other files now."""
        if table is None:
            return
        if table.files <= config.NAMES_TOLD:
            self.renamed(fresh.inode, (table.name(file) for file in range(table.files)))
            return
        above = self.tree.directory(fresh.parent)
        assert isinstance(above, Directory)
        self.emptied(above.inode, fresh.name, "/".join((*above.path, os.fsdecode(fresh.name))))
        # those that somebody has open stay when their directory is forgotten
        self.renamed(fresh.inode, [table.name(file) for file in self._gifts.files(before.slot)])

    async def nothing_left(self, staged: StagedDirectory) -> None:
        """What was made in a stored key was removed again: the key is the store's alone, and follows it."""
        key = self.tree.current(Key(staged.key))
        if key is None:
            return
        async with self.calls.alone(key.inode):
            overlay = overlay_of(key)
            if overlay is None or overlay.staged is not staged:
                return
            if await self.calls.long(lambda: self.area.discard_empty(staged)):
                key.overlay, key.held, key.checked = None, False, float("-inf")

    def parked(self, staged: StagedDirectory, key: str) -> None:
        """A staged directory that was a key's was set aside under another name: it is shown there from now on, and the
        key as the store has it."""
        candidates: tuple[KeyDirectory | NewDirectory | None, ...] = (self.tree.begun(key), self.tree.current(Key(key)))
        for directory in candidates:
            overlay = overlay_of(directory)
            if directory is None or overlay is None or overlay.staged is not staged:
                continue
            directory.overlay = None
            if isinstance(directory, NewDirectory):
                self.tree.drop(directory)
            else:
                directory.held = False
                directory.checked = float("-inf")
            self.show(staged, overlay)

    def discarded(self, staged: StagedDirectory) -> None:
        """What was staged is nothing any more: a key is shown as the store has it, and what is no key is gone. Who has
        one of the files open for reading keeps it."""
        for directory in self.tree.directories():
            overlay = overlay_of(directory)
            if overlay is None or overlay.staged is not staged:
                continue
            assert isinstance(directory, KeyDirectory | NewDirectory)
            if isinstance(directory, KeyDirectory):
                # new numbers, as after a seal: the old ones stood for what was written
                fresh, table = self.tree.succeed(directory, directory.entry), overlay.table
                if table is not None:
                    directory.successor = Sealing(fresh, {file: file for file in range(table.files)}, table)
                    self._tell(directory, fresh, table)
            else:
                self.tree.drop(directory)
                self.renamed(directory.parent, (directory.name,))
            opened = {opened.ref: opened.file for opened in self._files.values() if opened.file is not None}
            for ref in list(overlay.refs.values()):
                if not ref.removed or ref in opened:
                    entry = staged.entry(ref.entry)
                    self._ended(ref, opened.get(ref), entry.size, entry.mtime_ns, entry.directory)
            log.info("what was staged for %s was discarded", staged.key)

    # --- what is staged already ---------------------------------------------------------------------------------

    async def show_all(self) -> None:
        """Show what earlier mounts left staged. What was made over a version that the store does not have any more is
        set aside."""
        for staged in self.area.directories():
            if staged.damage is not None:
                log.error("the staged directory %s is damaged, and not shown: %s", staged.key, staged.damage)
                continue
            if staged.kind == "key" and staged.parked is None:
                current = self.tree.current(Key(staged.key))
                if (None if current is None else current.entry.version) != staged.base_version:
                    reason = f"{staged.key} was changed in the store since it was changed here"
                    await self.calls.long(partial(self.area.park, staged, reason))
                    log.error("%s; what was written is kept as %s", reason, staged.key)
                elif current is not None and await self.calls.long(partial(self.area.discard_empty, staged)):
                    continue
                elif current is not None:
                    current.overlay, current.held, current.settled = Overlay(staged, current), True, True
                    log.info("%s has changes that are not stored yet", staged.key)
                    continue
            self.show(staged)

    def show(self, staged: StagedDirectory, overlay: Overlay | None = None) -> NewDirectory:
        """A directory of its own for something staged."""
        is_key = staged.kind == "key"
        path = names.key_path(staged.key) if is_key else tuple(staged.key.split("/"))
        above: Directory = self.tree.way(path[:-1])
        name, count = path[-1].encode("utf-8", "surrogateescape"), 1
        while isinstance(there := above.children.get(name), KeyDirectory | NewDirectory) or (
            isinstance(there, Directory) and there.children
        ):
            count += 1
            name = f"{path[-1]}~{count}".encode("utf-8", "surrogateescape")
        made = self.tree.begin(above, name, staged.key, is_key, None)
        if overlay is None:
            overlay = Overlay(staged, made)
        overlay.directory, made.overlay = made, overlay
        log.info("%s is staged, and not stored yet", staged.key)
        return made
