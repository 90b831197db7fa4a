"""Puts a writable file system together: what is staged, what seals it, and the tree above both."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from urllib.parse import urlsplit

from shardfs.drivers.base import Driver, Tidying
from shardfs.drivers.numbered import NumberedThrough
from shardfs.errors import BadSettingError, StorageError
from shardfs.sealer import Sealer
from shardfs.shard_cache import ShardCache
from shardfs.staging import StagingArea
from shardfs.storage.base import Conditional
from shardfs.storage.urls import only_read
from shardfs.store import Store
from shardfs.writing import Allowed, WritableVfs


def open_area(store: Store, single_writer: bool = False) -> StagingArea:
    """What is staged for a store, for this process alone. `single_writer`: the user says that nobody else writes there.
    BadSettingError for a store that cannot be written, and as `check_conditions`."""
    if not store.driver.writable:
        raise BadSettingError(f"{store.url} ({store.driver.name}) can only be read here: mount it without --rw")
    path = None if store.place is None else Path(os.path.realpath(store.place))
    if path is not None:
        _check_writable(store.url, path)
    check_conditions(store, single_writer)
    # the same store must have the same area, however it is called
    url = Path(store.identity).as_uri() if "://" not in store.identity else store.identity
    return StagingArea.open(url, store_path=path)


def check_conditions(store: Store, single_writer: bool) -> None:
    """BadSettingError where two writers of a store far away could lose each other's keys, unless the user says that
    there is one; and for who says so of a store that is not far away. Writes to the store, and removes it again.
    StorageError where it does not answer."""
    storage = getattr(store.driver, "storage", None)
    if not store.far or not isinstance(storage, Conditional):
        if single_writer:
            raise BadSettingError(f"--single-writer is for object stores far away, and {store.url} is none")
        return
    if only_read(store.url):
        why = "is a web server, which" if urlsplit(store.url).scheme in ("http", "https") else "is of a kind that"
        raise BadSettingError(f"{store.url} {why} can only be read: mount it without --rw")
    if single_writer:
        return
    try:
        compares = storage.compares()
    except StorageError as error:
        if error.errno == errno.ETIMEDOUT:
            raise
        raise BadSettingError(f"{store.url} cannot be written to ({error}): mount it without --rw") from error
    if not compares:
        raise BadSettingError(
            f"{store.url}: the server ignores conditions (If-Match, If-None-Match), so two writers could lose each "
            "other's keys; if nobody else writes there, say --single-writer"
        )


def _check_writable(url: str, path: Path) -> None:
    """BadSettingError where nothing can be written, so that it is said before anything is."""
    there = next(above for above in (path, *path.parents) if above.exists())
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        code = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
        raise BadSettingError(f"{url} cannot be written to ({os.strerror(code)}): mount it without --rw")


def build_writable(
    driver: Driver,
    cache: ShardCache,
    area: StagingArea,
    *,
    quiet: float | None,
    allowed: Allowed,
    uid: int,
    gid: int,
    read_ahead: bool = True,
) -> WritableVfs:
    """A file system over a store, with what is staged for it in `area`. A key is stored after `quiet` seconds without a
    change; None: only when that is asked for. StorageError, BadStoreError."""
    if isinstance(driver, NumberedThrough):
        driver.beginning = True
        driver.reserved = lambda: {staged.key for staged in area.directories() if staged.kind == "key"}
    sealer = Sealer(driver, cache, area, cache.arrays, quiet)
    vfs = WritableVfs(driver, cache, uid, gid, area, sealer, allowed, read_ahead)
    if isinstance(driver, Tidying):
        driver.tidy()
    sealer.on_sealed = vfs.sealed
    sealer.on_parked = vfs.parked
    sealer.on_nothing = vfs.nothing_left
    sealer.closed = vfs.calls.closed
    return vfs
