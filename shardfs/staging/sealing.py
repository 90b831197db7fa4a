"""What a seal takes from a staged directory, and what is left when it is done.

The journal says "begun" before the store is touched and "done" after it, so that after a crash it is known what to ask
the store. Knows nothing of how a shard is encoded.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from typing import Any

from shardfs.errors import StagingError
from shardfs.staging.contents import Contents
from shardfs.staging.ledger import Ledger, failed
from shardfs.staging.tree import ROOT, Node, SealState, Tree


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """One file as it was when the seal began."""

    id: int
    name: bytes
    base: int | None
    """The file of the stored shard that has its bytes."""
    path: str | None
    """The file on disk that has them: never changed, and there until the seal ends. (After a crash it may be gone: what
    was recovered is settled by asking the store, and not sealed again.) None if `base` has them."""
    size: int
    """Bytes."""
    offset: int | None = None
    """Where in that file they begin, if they are a part of it. (Else they are all of it: after a crash `size` may be of
    a time before the last of them.)"""

    def read(self) -> bytes:
        """The bytes that `path` has. StagingError."""
        assert self.path is not None
        try:
            with open(self.path, "rb", buffering=0) as file:
                if self.offset is None:
                    return file.readall()
                file.seek(self.offset)
                return _all(file, self.size)
        except OSError as error:
            raise failed(f"reading {self.path}", error) from error


def _all(file: FileIO, size: int) -> bytes:
    """So many bytes, or as many as there are."""
    found = file.read(size)
    while len(found) < size and (more := file.read(size - len(found))):
        found += more
    return found


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A staged directory as it was when a seal began. With the stored shard's files that are not in `hidden`, its
    entries are the whole of the new shard."""

    key: str
    """The key the seal writes to."""
    token: str
    base_version: str | None
    entries: tuple[SnapshotEntry, ...]
    hidden: frozenset[int]
    """Files of the stored shard that are not to be seen any more: removed, or taken over into an entry."""
    keepsake: bytes | None
    """What `begin` was given to be had after a crash; None also where the disk was too full for it."""


def snapshot_of(seal: SealState, base_version: str | None, where: Callable[[int], tuple[str, int | None]]) -> Snapshot:
    """What the seal that has begun is of; `where` says where a data file lies."""
    entries = []
    for number, place in seal.places.items():
        path, offset = (None, None) if place.data is None else where(place.data)
        entries.append(SnapshotEntry(number, place.name, place.base, path, place.size, offset))
    return Snapshot(seal.key, seal.token, base_version, tuple(entries), seal.hidden, seal.keepsake)


def remaining(
    tree: Tree,
    contents: Contents,
    numbers: Mapping[int, int | None],
    base_number: Callable[[int], int | None],
    new_name: Callable[[bytes], bytes],
) -> tuple[list[list[Any]], list[int]]:
    """Entries (as fields of records) and hidden files that are left over the version a seal has made: see `Seal.done`.
    StagingError for an entry whose bytes would be nowhere.
    """
    seal = tree.seal
    assert seal is not None
    hidden = {new for old in tree.hidden - seal.hidden if (new := base_number(old)) is not None}
    entries: list[list[Any]] = []
    taken: set[tuple[int, bytes]] = set()
    for node in tree.nodes.values():
        place, number = seal.places.get(node.id), numbers.get(node.id)
        stored = False
        if place is None or node.id not in numbers:
            # came since, or is nothing that a shard holds
            number = None if node.base is None else base_number(node.base)
        elif (node.data, node.base) == (place.data, place.base) and not contents.has_writers(node):
            if (node.parent, node.name) == (place.parent, place.name):
                continue
            stored = number is not None
        if place is not None and number is not None and node.id in numbers:
            hidden.add(number)
        contents.refresh(node)
        name = new_name(node.name) if node.parent == ROOT else node.name
        if (node.parent, name) in taken:
            name = b"%d~%b" % (node.id, name)  # kept under an odd name, before it is lost
        taken.add((node.parent, name))
        entries.append(_kept(node, number, stored, name))
    gone = (numbers.get(number) for number in seal.places.keys() - tree.nodes.keys())
    hidden.update(number for number in gone if number is not None)
    return entries, sorted(hidden)


def _kept(node: Node, number: int | None, stored: bool, name: bytes) -> list[Any]:
    kept = Node.from_fields(node.fields())
    kept.name = name
    if stored:
        kept.data = None
    if kept.data is None and kept.children is None:
        if number is None:
            raise StagingError(f"{node.name!r} would have no bytes in the new version", errno.EINVAL)
        kept.base = number
    return kept.fields()


class Seal:
    """The seal of one staged directory. Thread-safe; its methods raise StagingError."""

    def __init__(self, ledger: Ledger, contents: Contents) -> None:
        self._ledger = ledger
        self._tree = ledger.tree
        self._lock = ledger.lock
        self._contents = contents
        self._snapshot: Snapshot | None = None
        if self._tree.seal is not None:
            # what it read before the crash tells what was changed since, so it must not be changed in place
            places = self._tree.seal.places.values()
            contents.pinned = frozenset(place.data for place in places if place.data is not None)
            self._snapshot = self._take()

    @property
    def snapshot(self) -> Snapshot | None:
        """What the seal is of that has begun and not ended, also before a crash; None if there is none."""
        return self._snapshot

    def _take(self) -> Snapshot:
        assert self._tree.seal is not None
        return snapshot_of(self._tree.seal, self._tree.base_version, self._ledger.where)

    def begin(self, key: str, token: str, keepsake: bytes | None = None) -> Snapshot:
        """Begin to seal what is there now, to be stored under `key`; durable when this returns.

        What the snapshot names does not change until `done` or `failed`; what is done to the directory meanwhile stays
        for the next seal. `token` (a random text, or a hash of what will be stored) is for telling after a crash
        whether the store has this seal's work; `keepsake` comes back in the snapshot after a crash, too, unless the
        disk is too full for it. The room kept for the shard is free from now on. EBUSY while a file is open for writing
        or another seal runs; EINVAL for a plain or parked directory; EIO for one in doubt.
        """
        tree = self._tree
        with self._lock:
            self._ledger.check()
            if tree.seal is not None or self._contents.writers:
                raise StagingError(f"{tree.key}: a seal runs, or a file is open for writing", errno.EBUSY)
            if tree.kind != "key" or tree.parked is not None:
                raise StagingError(f"{tree.key} is not to be sealed", errno.EINVAL)
            if tree.doubt is not None:
                raise StagingError(f"{tree.key}: {tree.doubt}", errno.EIO)
            try:
                self._ledger.record("seal", key, token, keepsake, relief=True)
            except StagingError:
                if keepsake is None:
                    raise
                self._ledger.record("seal", key, token, relief=True)
            self._contents.pinned = frozenset(self._ledger.data_numbers())
            self._snapshot = snapshot = self._take()
        try:
            self._ledger.commit()
            self._contents.reserve.lend()
        except StagingError:
            self.failed()
            raise
        return snapshot

    def set_token(self, token: str) -> Snapshot:
        """Take another token, durably: where it is known only once the shard is encoded, before the store is touched.
        The snapshot with it, in place of the one before."""
        with self._lock:
            self._check_running()
            self._ledger.record("token", token, relief=True)
            self._snapshot = snapshot = self._take()
        self._ledger.commit()
        return snapshot

    def done(
        self,
        version: str,
        numbers: Mapping[int, int | None],
        base_number: Callable[[int], int | None],
        base_bytes: int = 0,
        *,
        new_name: Callable[[bytes], bytes] = lambda name: name,
        durable: bool = True,
    ) -> bool:
        """The store has the snapshot, as `version`: drop what it held, keep what was changed since as an overlay over
        the new version, all or nothing, durably. True if anything is left, for the next seal to take.

        `numbers` says which file of the new version each entry of the snapshot (by its id) became: None for one that
        the version has in another file, together with others (what is done to it meanwhile changes nothing there); one
        that is not in it is no part of a shard, and stays. `base_number` says where a file of the old version is in the
        new one, `new_name` what a name means now where the seal has given samples other names: no two may become one.
        Times and owners set since are dropped: a store does not keep them. `base_bytes` as in StagingArea.create.
        EINVAL if no seal runs, or an entry's bytes would be nowhere: then nothing has changed.

        With `durable` false nothing waits for the disk: `commit` does, and must follow. Until then the machine may go
        down and forget that this was done.
        """
        with self._lock:
            self._check_running()
            entries, hidden = remaining(self._tree, self._contents, numbers, base_number, new_name)
            before = self._ledger.data_numbers()
            with self._ledger.putting_off():
                self._ledger.record("sealed", version, base_bytes, entries, hidden, relief=True)
                self._snapshot = None
                self._contents.reattach(before)
            left = not self._tree.finished
        if durable:
            self.commit()
        return left

    def commit(self) -> None:
        """Make durable what `done` did, and free what it left."""
        with self._lock:
            self._ledger.check()
            self._contents.reserve.take_back()
            self._contents.reserve.fit()
        self._ledger.commit()

    def failed(self) -> None:
        """The store does not have the snapshot: all is as if the seal had not begun."""
        with self._lock:
            self._check_running()
            self._ledger.record("unseal", relief=True)
            self._snapshot = None
            self._contents.unpin()
            self._contents.reserve.take_back()

    def _check_running(self) -> None:
        self._ledger.check()
        if self._tree.seal is None:
            raise StagingError(f"{self._tree.key}: no seal has begun", errno.EINVAL)
