"""Which of many keys may have changed in their store: in one go, where that can be told without asking for each.

Knows nothing of what keys hold, nor of who wants to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardfs.drivers.base import Driver, StoresObjects, Suspects
from shardfs.errors import MissingKeyError, StaleShardError
from shardfs.model import Entry, Version
from shardfs.storage.base import Storage
from shardfs.storage.local import LocalStorage

Objects = Callable[[Entry], list[tuple[str, Version]]]
"""Name and version of each stored object of a version. MissingKeyError, StaleShardError: nothing is known of it."""


def suspects_of(driver: Driver, entries: Sequence[Entry]) -> list[Entry]:
    """Those of these entries that may not be what the store has now, besides what `Driver.changed` tells of: each is to
    be asked for. All of them, where nothing cheaper is known. StorageError."""
    if isinstance(driver, Suspects):
        return driver.suspects(entries)
    return outdated(driver.storage, entries, driver.objects) if isinstance(driver, StoresObjects) else list(entries)


def outdated(storage: Storage, entries: Sequence[Entry], objects_of: Objects) -> list[Entry]:
    """Those of these entries whose objects are not all as they were in a local directory; all of them elsewhere."""
    if not isinstance(storage, LocalStorage):
        return list(entries)
    objects = [_known(objects_of, entry) for entry in entries]
    changed = storage.outdated([one for of_one in objects for one in of_one or ()])
    return [
        entry
        for entry, of_one in zip(entries, objects, strict=True)
        if of_one is None or (changed and any(name in changed for name, _ in of_one))
    ]


def _known(objects_of: Objects, entry: Entry) -> list[tuple[str, Version]] | None:
    try:
        return objects_of(entry)
    except (MissingKeyError, StaleShardError):
        return None
