"""Puts a writable file system together: what is staged, what seals it, and the tree above both."""

from __future__ import annotations

import os
from pathlib import Path

from shardfs.drivers.base import Driver
from shardfs.drivers.numbered import NumberedThrough
from shardfs.errors import BadSettingError
from shardfs.sealer import Sealer
from shardfs.shard_cache import ShardCache
from shardfs.staging import StagingArea
from shardfs.store import Store
from shardfs.writing import Allowed, WritableVfs


def open_area(store: Store) -> StagingArea:
    """What is staged for a store, for this process alone. BadSettingError for a store that cannot be written."""
    if not store.driver.writable:
        raise BadSettingError(f"{store.url} ({store.driver.name}) can only be read here: mount it without --rw")
    path = None if store.place is None else Path(os.path.realpath(store.place))
    # the same store must have the same area, however it is called
    url = Path(store.identity).as_uri() if "://" not in store.identity else store.identity
    return StagingArea.open(url, store_path=path)


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
    sealer.on_sealed = vfs.sealed
    sealer.on_parked = vfs.parked
    return vfs
