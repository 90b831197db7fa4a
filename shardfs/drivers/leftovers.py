"""Temporary files of writers that died: the same in every store that lies in a directory. Knows nothing of formats."""

from __future__ import annotations

import re

from shardfs.drivers.garbage import Garbage
from shardfs.errors import StaleShardError
from shardfs.storage.local import TEMPORARY, LocalStorage, touched_ns

_OURS = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{16}")


def leftovers(storage: LocalStorage) -> list[Garbage]:
    """All temporary files of ours, whether somebody is still writing them or not. StorageError."""
    return [
        Garbage(one.name, "unfinished", "a write that was not ended", one.size, touched_ns(one), one.version)
        for one in storage.list(("",), temporary=True)
        if is_leftover(one.name)
    ]


def is_leftover(name: str) -> bool:
    return _OURS.fullmatch(name.rpartition("/")[2]) is not None


def discard(storage: LocalStorage, found: Garbage) -> None:
    """Remove one of them. StaleShardError if it has changed; StorageError, EBUSY while it is being written."""
    if not is_leftover(found.name):
        raise StaleShardError(f"{found.name} is no temporary file")
    storage.discard(found.name, found.version)
