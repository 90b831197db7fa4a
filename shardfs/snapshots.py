"""Which keys a store has, and in which versions: written down, read again, and as one hash. Knows nothing of mounts.

A snapshot is a JSON document:

    {"shardfs_snapshot": 1, "store": "<what the store is called>", "driver": "<its driver>",
     "keys": [{"key": ..., "version": ..., "stored_bytes": ..., "mtime_ns": ..., "raw_bytes": ..., "samples": ...}]}

Versions are what the storage tells contents apart by: ETag, size and time far away, the same for everybody; for files
of this machine inode, size and times, which a copy of them has not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from shardfs import config
from shardfs.drivers.base import StoresObjects
from shardfs.drivers.snapshot import SnapshotDriver
from shardfs.errors import BadSettingError
from shardfs.model import Entry, Key, Version
from shardfs.storage.disk_cache import Remote
from shardfs.store import Store

_FORMAT = 1
_TOLD = 5
_TEXTS, _NUMBERS, _HINTS = ("key", "version"), ("stored_bytes", "mtime_ns"), ("raw_bytes", "samples")


def write_snapshot(store: Store, path: Path) -> int:
    """Write what `store` has now into a new file; the number of keys. BadSettingError where it cannot be written,
    StorageError, BadStoreError."""
    entries = store.driver.entries()
    document = {
        "shardfs_snapshot": _FORMAT,
        "store": store.identity,
        "driver": store.driver.name,
        "keys": [dataclasses.asdict(entry) for entry in entries],
    }
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=0) + "\n")  # ASCII: keys may hold lone surrogates
    except OSError as error:
        raise BadSettingError(f"--snapshot {path}: {error.strerror}") from error
    return len(entries)


def at_snapshot(store: Store, path: Path) -> Store:
    """`store` with just the keys and versions of a snapshot. BadSettingError for a file that is none of this store."""
    document = _read(path)
    if (document.get("store"), document.get("driver")) != (store.identity, store.driver.name):
        raise BadSettingError(
            f"--snapshot {path} is of {document.get('store')} ({document.get('driver')}), "
            f"not of {store.identity} ({store.driver.name})"
        )
    entries = [_entry(path, told) for told in document["keys"]]
    if len({entry.key for entry in entries}) != len(entries):
        raise BadSettingError(f"--snapshot {path} has a key twice")
    now = {entry.key: entry.version for entry in store.driver.entries()}
    driver = SnapshotDriver(store.driver, entries)
    other = [entry.key for entry in entries if now.get(entry.key) != entry.version]
    if other:
        told = f"{', '.join(other[:_TOLD])}{', ...' if len(other) > _TOLD else ''}"
        driver.problems.append(f"not in the store any more as the snapshot has them: {len(other)} keys ({told})")
    return Store(store.url, driver, store.place, store.places, store.identity)


def _read(path: Path) -> dict[str, Any]:
    try:
        if os.stat(path).st_size > config.SNAPSHOT:
            raise BadSettingError(f"--snapshot {path} is larger than {config.SNAPSHOT} bytes")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise BadSettingError(f"--snapshot {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadSettingError(f"--snapshot {path} is no JSON") from error
    known = isinstance(document, dict) and document.get("shardfs_snapshot") == _FORMAT
    if not known or not isinstance(document.get("keys"), list):
        raise BadSettingError(f"--snapshot {path} is no snapshot: shardfs info STORE --snapshot FILE makes one")
    return dict(document)


def _entry(path: Path, told: Any) -> Entry:
    told = told if isinstance(told, dict) else {}
    good = (
        all(isinstance(told.get(name), str) and told[name] for name in _TEXTS)
        and all(type(told.get(name)) is int and told[name] >= 0 for name in _NUMBERS)
        and all(told.get(name) is None or (type(told[name]) is int and told[name] >= 0) for name in _HINTS)
    )
    if not good:
        raise BadSettingError(f"--snapshot {path} has a key that is none: {json.dumps(told)[:200]}")
    numbers = {name: told.get(name) for name in (*_NUMBERS, *_HINTS)}
    return Entry(Key(told["key"]), Version(told["version"]), **numbers)


def fingerprint(store: Store) -> str:
    """One hash over all keys and what they hold, the same wherever it is made of the same objects.

    Of a store far away what it says of them is enough (ETag and size, or the time where there is no ETag); of files of
    this machine all that is stored is read. StorageError, StaleShardError, BadStoreError.
    """
    made = hashlib.blake2b(digest_size=16)
    for entry in sorted(store.driver.entries(), key=lambda entry: entry.key):
        made.update(f"{entry.key}\0{_content(store, entry)}\0".encode("utf-8", "surrogatepass"))
    return made.hexdigest()


def _content(store: Store, entry: Entry) -> str:
    driver = store.driver
    if not store.far or not isinstance(driver, StoresObjects):
        return driver.mark(entry)
    storage = driver.storage
    parts = []
    for name, version in driver.objects(entry):
        parts += [name, storage.content_of(version) if isinstance(storage, Remote) else version]
    return "\0".join(parts)
