"""Temporary files of writers that died: the same in every store that lies in a directory. Knows nothing of formats."""

from __future__ import annotations

from shardfs.drivers.garbage import Garbage
from shardfs.errors import StaleShardError
from shardfs.storage.base import Storage
from shardfs.storage.local import LocalStorage, touched_ns
from shardfs.storage.temporaries import is_ours


def leftovers(storage: Storage) -> list[Garbage]:
    """All temporary files of ours in a directory, whether somebody is still writing them or not. StorageError."""
    if not isinstance(storage, LocalStorage):
        return []
    return [
        Garbage(one.name, "unfinished", "a write that was not ended", one.size, touched_ns(one), one.version)
        for one in storage.list(("",), temporary=True)
        if is_leftover(one.name)
    ]


def is_leftover(name: str) -> bool:
    return is_ours(name.rpartition("/")[2])


def discard(storage: Storage, found: Garbage) -> None:
    """Remove one of them. StaleShardError if it has changed; StorageError, EBUSY while it is being written."""
    if not is_leftover(found.name) or not isinstance(storage, LocalStorage):
        raise StaleShardError(f"{found.name} is no temporary file")
    storage.discard(found.name, found.version)
