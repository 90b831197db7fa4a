"""Puts a writable file system together: what is staged, what seals it, and the tree above both."""

from __future__ import annotations

from shardfs.drivers.base import Driver
from shardfs.sealer import Sealer
from shardfs.shard_cache import ShardCache
from shardfs.staging import StagingArea
from shardfs.writing import Allowed, WritableVfs


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
    sealer = Sealer(driver, cache, area, cache.arrays, quiet)
    vfs = WritableVfs(driver, cache, uid, gid, area, sealer, allowed, read_ahead)
    sealer.on_sealed = vfs.sealed
    sealer.on_parked = vfs.parked
    return vfs
