"""What one staged directory is and holds, for looking only. Knows nothing of changes, which `directory` makes."""

from __future__ import annotations

import errno
import os

from shardfs.errors import StagingError
from shardfs.staging.contents import Contents
from shardfs.staging.ledger import Ledger
from shardfs.staging.sealing import Seal
from shardfs.staging.tree import ROOT, Kind, Node, StagedEntry


def refuse(code: int, name: bytes | int | str) -> StagingError:
    """What to raise for a name or an entry."""
    return StagingError(f"{name!r}: {os.strerror(code)}", code)


class DirectoryView:
    """A staged directory as it is now. Thread-safe; StagingError."""

    def __init__(self, ledger: Ledger, for_shard: bool) -> None:
        self._ledger = ledger
        self._tree = ledger.tree
        self._lock = ledger.lock
        self._contents = Contents(ledger, for_shard)
        self.seal = Seal(ledger, self._contents)
        """How it becomes a shard of the store."""

    # --- what it is ---------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """A random name, never used again in its area."""
        return self._tree.id

    @property
    def key(self) -> str:
        return self._tree.key

    @property
    def kind(self) -> Kind:
        return self._tree.kind

    @property
    def base_version(self) -> str | None:
        """The version of the stored shard it lies over; None if there was none."""
        return self._tree.base_version

    @property
    def created_ns(self) -> int:
        return self._tree.created_ns

    @property
    def data_bytes(self) -> int:
        """Bytes of all files that have theirs here."""
        return self._contents.reserve.data_bytes

    @property
    def writers(self) -> int:
        """Files that are open for writing, counted once for each opening."""
        return self._contents.writers

    @property
    def damage(self) -> str | None:
        """What is wrong with it on disk: then it can only be looked at, or discarded."""
        refusal = self._ledger.refusal
        return refusal[0] if refusal is not None and refusal[1] == errno.EIO else None

    @property
    def doubt(self) -> str | None:
        """Why what was not synced may be missing (the machine went down); None once it has been trusted."""
        return self._tree.doubt

    @property
    def parked(self) -> str | None:
        """Why it was set aside, never to be sealed by itself."""
        return self._tree.parked

    @property
    def finished(self) -> bool:
        """True if a seal has taken all there was and nothing came since: it can be discarded."""
        return self._tree.finished

    def hides(self, base: int) -> bool:
        """Whether a file of the stored shard is not to be seen: it was removed, or taken over into an entry."""
        return base in self._tree.hidden

    @property
    def hides_any(self) -> bool:
        """Whether it hides any file of the stored shard."""
        return bool(self._tree.hidden)

    # --- looking ------------------------------------------------------------------------------------------------

    def entry(self, number: int = ROOT) -> StagedEntry:
        """One entry, also one that was removed and is still open. ENOENT."""
        with self._lock:
            return self._view(self._node(number))

    def find(self, parent: int, name: bytes) -> StagedEntry | None:
        """The entry of a name. ENOENT and ENOTDIR are of `parent`."""
        with self._lock:
            node = self._children(parent).get(name)
            return None if node is None else self._view(node)

    def lacks_now(self, name: bytes) -> bool:
        """Whether the directory itself has no entry of that name; False where somebody has the lock."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            return name not in (self._tree.root.children or ())
        finally:
            self._lock.release()

    def children(self, parent: int = ROOT) -> list[StagedEntry]:
        """All entries of a directory, in the order of creation. ENOENT, ENOTDIR."""
        with self._lock:
            found = sorted(self._children(parent).values(), key=lambda node: node.id)
            return [self._view(node) for node in found]

    def names(self, parent: int = ROOT) -> list[bytes]:
        """The names of all entries of a directory, in the order of creation. ENOENT, ENOTDIR."""
        with self._lock:
            return [node.name for node in sorted(self._children(parent).values(), key=lambda node: node.id)]

    def itself(self) -> StagedEntry:
        """The directory itself, as an entry. Waits for nobody."""
        return self._tree.root.entry()

    def __len__(self) -> int:
        return len(self._tree.nodes)

    def _view(self, node: Node) -> StagedEntry:
        self._contents.refresh(node)
        return node.entry()

    def _node(self, number: int) -> Node:
        node = self._tree.node(number) or self._contents.removed(number)
        if node is None:
            raise refuse(errno.ENOENT, number)
        return node

    def _children(self, parent: int) -> dict[bytes, Node]:
        node = self._tree.node(parent)
        if node is None:
            raise refuse(errno.ENOENT, parent)
        if node.children is None:
            raise refuse(errno.ENOTDIR, node.name)
        return node.children

    def _named(self, parent: int, name: bytes) -> Node:
        node = self._children(parent).get(name)
        if node is None:
            raise refuse(errno.ENOENT, name)
        return node
