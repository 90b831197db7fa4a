"""One staged directory: the names in it and what may be done with them.

Every change is checked, written to the journal, and then true: what was acknowledged survives the death of this
process. All methods are thread-safe and raise StagingError with the errno of the file system call they serve. Knows
nothing of what names mean, nor of how a shard is encoded.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from shardfs import config
from shardfs.errors import StagingError
from shardfs.staging.clock import now_ns
from shardfs.staging.heap import NOTHING
from shardfs.staging.opened import StagedFile
from shardfs.staging.tree import ROOT, Kind, Node, StagedEntry
from shardfs.staging.view import DirectoryView, refuse

State = Literal["staged", "sealing", "parked", "doubtful", "damaged"]

_FIXED = (b"", b".", b"..")


def _check_name(name: bytes) -> None:
    if len(name) > config.NAME_MAX:
        raise refuse(errno.ENAMETOOLONG, name)
    if name in _FIXED or b"/" in name or b"\0" in name:
        raise refuse(errno.EINVAL, name)


@dataclass(frozen=True, slots=True)
class Over:
    """A stored shard that a staged directory is put over, as if it had been made over it."""

    version: str | None
    """None: over none."""
    base_bytes: int = 0
    """As in StagingArea.create."""
    hidden: Iterable[int] = ()
    """Files of it that are not to be seen."""


class StagedDirectory(DirectoryView):
    """Files that are to become one shard, or a directory with any names. Made by StagingArea."""

    # --- making -------------------------------------------------------------------------------------------------

    def _check_new(self, parent: int, name: bytes) -> None:
        self._ledger.check()
        _check_name(name)
        if name in self._children(parent):
            raise refuse(errno.EEXIST, name)
        if len(self._tree.nodes) >= config.STAGED_ENTRIES:
            raise refuse(errno.ENOSPC, name)

    def create(self, parent: int, name: bytes, mode: int = 0o644, uid: int = 0, gid: int = 0) -> StagedFile:
        """Make a new, empty file and open it for writing. EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG, ENOSPC."""
        with self._lock:
            self._check_new(parent, name)
            # one without bytes yet has no file either: its first write says where they go
            data, descriptor = (NOTHING, -1) if self._ledger.uses_heap() else self._ledger.new_data()
            now = now_ns()
            node = Node(self._tree.next_id, parent, name, None, data, None, 0, mode, uid, gid, now, now)
            try:
                self._ledger.record("create", *node.fields())
            except StagingError:
                if descriptor >= 0:
                    self._ledger.unmake(data, descriptor)
                raise
            made = self._tree.nodes[node.id]
            made.touched = descriptor >= 0
            return self._contents.open(made, True, descriptor)

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755, uid: int = 0, gid: int = 0) -> StagedEntry:
        """Make a directory. EPERM in a key."""
        with self._lock:
            self._check_new(parent, name)
            if self._tree.kind == "key":
                raise refuse(errno.EPERM, name)
            now = now_ns()
            node = Node(self._tree.next_id, parent, name, {}, None, None, 0, mode, uid, gid, now, now)
            self._ledger.record("create", *node.fields())
            return node.entry()

    def adopt(self, name: bytes, base: int, size: int, mode: int, uid: int, gid: int, mtime_ns: int) -> StagedEntry:
        """Take over file number `base` of the stored shard, of `size` bytes, so that it can be changed. From now on the
        shard's own is hidden; the bytes stay there until `copy_up` or `truncate`. EEXIST as `create`, and if it is
        hidden already."""
        with self._lock:
            self._check_new(ROOT, name)
            if base in self._tree.hidden:
                raise refuse(errno.EEXIST, name)
            number = self._tree.next_id
            node = Node(number, ROOT, name, None, None, base, size, mode, uid, gid, mtime_ns, mtime_ns)
            self._ledger.record("entry", *node.fields())
            return node.entry()

    def hide(self, base: int) -> None:
        """Remove a file of the stored shard that was not taken over."""
        with self._lock:
            self._ledger.check()
            if base not in self._tree.hidden:
                self._ledger.record("hide", base, now_ns(), relief=True)

    def copy_up(self, number: int, pieces: Iterable[bytes | memoryview]) -> None:
        """Give a file taken over from the stored shard its bytes here, from pieces of any size; durable when this
        returns. Nothing to do if it has them (then `pieces` is not touched). ENOENT, ENOSPC; what `pieces` raises."""
        node = self._tree.nodes.get(number)
        if node is None:
            raise refuse(errno.ENOENT, number)
        if node.base is not None:
            self._contents.fill(node, pieces)

    def open(self, number: int, writing: bool) -> StagedFile:
        """Open a file that has its bytes here. EISDIR; EINVAL for one that must be copied up first."""
        with self._lock:
            node = self._tree.node(number)
            if node is None:
                raise refuse(errno.ENOENT, number)
            if writing:
                self._ledger.check()
            self._check_bytes(node)
            return self._contents.open(node, writing)

    @staticmethod
    def _check_bytes(node: Node) -> None:
        if node.children is not None:
            raise refuse(errno.EISDIR, node.name)
        if node.data is None:
            raise StagingError(f"{node.name!r} has its bytes in the stored shard: copy them up first", errno.EINVAL)

    # --- changing -----------------------------------------------------------------------------------------------

    def truncate(self, number: int, size: int) -> None:
        """Set a file's length, in bytes; to 0 also where its bytes are in the stored shard. EISDIR, EINVAL."""
        with self._lock:
            self._ledger.check()
            node = self._node(number)
            if not size and node.base is not None and node.data is None:
                self._contents.empty(node)
                return
            self._check_bytes(node)
            with self._contents.open(node, True) as file:
                file.truncate(size)

    def set_attributes(
        self,
        number: int,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        mtime_ns: int | None = None,
        atime_ns: int | None = None,
    ) -> StagedEntry:
        """Set those that are given; what it is like then. ENOENT."""
        with self._lock:
            node = self._node(number)
            if self._tree.node(number) is node:
                self._ledger.check()
            self._contents.refresh(node)
            given = (mode, uid, gid, mtime_ns, atime_ns)
            now = (node.mode, node.uid, node.gid, node.mtime_ns, node.atime_ns)
            values = tuple(old if new is None else new for new, old in zip(given, now, strict=True))
            if self._tree.node(number) is None:  # removed, but open: nobody will ask again once it is closed
                node.mode, node.uid, node.gid, node.mtime_ns, node.atime_ns = values
                return node.entry()
            self._ledger.record("attributes", number, *values)
            if mtime_ns is not None:
                self._contents.set_mtime(node)
            return node.entry()

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, hides: int | None = None
    ) -> StagedEntry:
        """Give an entry another name or place, over what has that name; `hides` is a file of the stored shard that has
        it. ENOENT, EISDIR and ENOTDIR where a file and a directory meet, ENOTEMPTY, EINVAL for a directory into itself,
        ENAMETOOLONG."""
        with self._lock:
            self._ledger.check()
            _check_name(new_name)
            over = self._children(new_parent).get(new_name)
            node = self._named(parent, name)
            if over is node:
                return self._view(node)
            if node.children is not None:
                self._check_outside(node, new_parent)
            if over is not None:
                self._check_replaceable(node, over)
            self._ledger.record("rename", node.id, new_parent, new_name, hides, now_ns(), relief=True)
            if over is not None:
                self._contents.dropped(over)
            return self._view(node)

    def _check_outside(self, node: Node, place: int) -> None:
        while place != ROOT:
            if place == node.id:
                raise refuse(errno.EINVAL, node.name)
            place = self._tree.nodes[place].parent

    @staticmethod
    def _check_replaceable(node: Node, over: Node) -> None:
        if over.children is not None and node.children is None:
            raise refuse(errno.EISDIR, over.name)
        if over.children is None and node.children is not None:
            raise refuse(errno.ENOTDIR, over.name)
        if over.children:
            raise refuse(errno.ENOTEMPTY, over.name)

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a file; whoever has it open keeps it. ENOENT, EISDIR."""
        with self._lock:
            self._ledger.check()
            node = self._named(parent, name)
            if node.children is not None:
                raise refuse(errno.EISDIR, name)
            self._ledger.record("remove", node.id, now_ns(), relief=True)
            self._contents.dropped(node)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory. ENOENT, ENOTDIR, ENOTEMPTY."""
        with self._lock:
            self._ledger.check()
            node = self._named(parent, name)
            if node.children is None:
                raise refuse(errno.ENOTDIR, name)
            if node.children:
                raise refuse(errno.ENOTEMPTY, name)
            self._ledger.record("remove", node.id, now_ns(), relief=True)

    def sync(self) -> None:
        """Make everything in it durable."""
        self._contents.sync()

    def trust(self) -> None:
        """Take it as it is after the machine went down: it may be sealed again."""
        with self._lock:
            if self._tree.doubt is not None:
                self._ledger.record("doubt", None)
        self.sync()

    # --- for the area -------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """The one word that says most of it."""
        if self.damage is not None:
            return "damaged"
        if self.parked is not None:
            return "parked"
        if self.seal.snapshot is not None:
            return "sealing"
        return "staged" if self.doubt is None else "doubtful"

    @property
    def replaces(self) -> str | None:
        """The staged directory whose place it took; to be discarded."""
        return self._tree.replaces

    def keep_room(self) -> None:
        """Reserve what the journal and the stored shard need. ENOSPC."""
        with self._lock:
            self._contents.reserve.grow(0)

    def set_key(self, key: str, kind: Kind, replaces: str | None, over: Over | None = None) -> None:
        """Call it otherwise; with `over` put it over another version with the same record, so that no death can come in
        between. EBUSY while a seal runs; EINVAL for a key with directories in it, and for `over` where entries have
        their bytes in a stored shard."""
        with self._lock:
            self._check_still()
            nodes = list(self._tree.nodes.values())
            if kind == "key" and any(node.children is not None for node in nodes):
                raise StagingError(f"{self.key}: a key has no directories in it", errno.EINVAL)
            if over is None:
                self._ledger.record("key", key, kind, replaces, relief=True)
                return
            if any(node.base is not None or node.children is not None for node in nodes):
                raise refuse(errno.EINVAL, self.key)
            for node in nodes:
                self._contents.refresh(node)
            before, entries = self._ledger.data_numbers(), [node.fields() for node in nodes]
            laid = [over.version, over.base_bytes, entries, sorted(over.hidden)]
            self._ledger.record("call", key, kind, replaces, *laid, relief=True)
            self._contents.reattach(before)

    def park(self, key: str, reason: str) -> None:
        """Set it aside under another name, durably. EBUSY while a seal runs."""
        with self._lock:
            self._check_still()
            self._ledger.record("park", key, reason, relief=True)
        self._ledger.commit()

    def _check_still(self) -> None:
        self._ledger.check()
        if self._tree.seal is not None:
            raise refuse(errno.EBUSY, self.key)

    def on_append(self, told: Callable[[], None]) -> None:
        """Have `told` called after each record, with the lock held."""
        self._ledger.on_append = told

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else changes anything, or looks, inside this block."""
        with self._lock:
            yield

    def hold(self) -> bool:
        """Have the lock, so that a call of another method waits for nobody; False if somebody else has it now."""
        return self._lock.acquire(blocking=False)

    def let_go(self) -> None:
        """Give it back."""
        self._lock.release()

    def rest(self) -> bool:
        """Give the journal's descriptor back until it is needed again; False if it is in use now."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._ledger.close()
        finally:
            self._lock.release()
        return True

    def close_empty(self, reason: str) -> bool:
        """The same where nothing is staged in it, in one step; False where something is."""
        with self._lock:
            if self._tree.nodes or self._tree.hidden or self._tree.seal is not None:
                return False
            self.close(reason)
            return True

    def end(self, reason: str) -> None:
        """Close it, for being discarded. EBUSY while a file is open for writing, or a seal runs."""
        with self._lock:
            if self.writers or self._tree.seal is not None:
                raise StagingError(f"{self.key}: a file is open for writing, or it is being stored", errno.EBUSY)
            self.close(reason, reap=False)

    def close(self, reason: str, *, reap: bool = True) -> None:
        """End all use of it; what is on disk stays. EBADF from then on. Without `reap` this does not touch the disk."""
        with self._lock:
            if self._ledger.refusal is None and reap:
                self._ledger.reap()
            self._ledger.refusal = (reason, errno.EBADF)
            self._contents.close()
            self._ledger.close()
