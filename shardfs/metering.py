"""What the metrics of a mount are: the requests' own, and the figures that its parts keep of themselves.

Read when somebody asks, and without waiting; nothing here is in the way of a request. Knows nothing of who asks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from shardfs.metrics import Family, Meter, exposition, family
from shardfs.storage.disk_cache import DiskCache
from shardfs.vfs import Vfs

if TYPE_CHECKING:
    from shardfs.changing import Sealing
    from shardfs.staging import StagingArea

PREFIX = "shardfs"


def text_of(
    vfs: Vfs, meter: Meter, version: str, area: StagingArea | None = None, sealer: Sealing | None = None
) -> str:
    """All metrics of a mount; `area` and `sealer` are those of a writable one."""
    families = [*_process(version), *_memory(vfs), *_tables(vfs), *_loads(vfs), *_store(vfs), *_staging(area, sealer)]
    return exposition(families, meter, PREFIX)


_BEGUN = time.time()


def _process(version: str) -> Iterator[Family]:
    yield Family("info", "gauge", "The release that serves the mount.", [({"version": version}, 1)])
    yield family("start_time_seconds", "gauge", "When it began, seconds since the epoch.", round(_BEGUN, 3))
    yield family("resident_bytes", "gauge", "Memory of the process.", resident())
    held = len(os.listdir("/proc/self/fd"))
    yield family("open_descriptors", "gauge", "Descriptors that the process has open.", held)


def resident() -> int:
    """Bytes of memory of this process that are in use now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _memory(vfs: Vfs) -> Iterator[Family]:
    cache = vfs.cache
    counts = cache.counts
    yield family("keys", "gauge", "Keys that the mount shows.", len(vfs.tree.slots))
    yield family("cache_budget_bytes", "gauge", "Memory that loaded shards and rendered files may take.", cache.budget)
    yield family("cache_bytes", "gauge", "Memory that they take, or have reserved.", cache.used)
    yield family("cache_shards", "gauge", "Shards in memory.", len(cache))
    yield family("cache_hits_total", "counter", "Uses of a shard that was in memory.", counts.hits)
    yield family("cache_misses_total", "counter", "Uses of one that was not.", counts.misses)
    yield family("cache_evictions_total", "counter", "Shards that gave way to others.", counts.evictions)
    yield family("rendered_bytes", "gauge", "Memory of rendered files, a part of cache_bytes.", cache.rendered_bytes)
    yield family("rendered_hits_total", "counter", "Uses of a rendered file that was kept.", counts.rendered_hits)
    yield family("rendered_misses_total", "counter", "Files rendered in a worker.", counts.rendered_misses)
    yield family("rendered_evictions_total", "counter", "Rendered files let go.", counts.rendered_evictions)
    yield family("damaged", "gauge", "Damaged shards and samples that errors.jsonl lists.", len(cache.damage))


def _tables(vfs: Vfs) -> Iterator[Family]:
    tables = vfs.cache.tables
    yield family("tables", "gauge", "Shards whose names and sizes are in memory.", len(tables))
    yield family("tables_bytes", "gauge", "Memory that these take.", tables.used)
    yield family("tables_evictions_total", "counter", "Of these, let go.", tables.evictions)
    yield family("tables_indexed_total", "counter", "Taken from the persistent index.", tables.indexed)


def _loads(vfs: Vfs) -> Iterator[Family]:
    counts, ahead = vfs.cache.counts, vfs.read_ahead
    yield family("loads_total", "counter", "Loads of a shard that began.", counts.loads)
    yield family("opened_total", "counter", "Shards opened for reading parts, in place of a load.", counts.opened)
    yield family("load_failures_total", "counter", "Loads and fetches that failed.", counts.failures)
    seconds = round(counts.decode_seconds, 6)
    yield family("decode_seconds_total", "counter", "Seconds that workers took for loading.", seconds)
    yield family("fetches_total", "counter", "Parts of shards that were got for a read.", counts.fetches)
    yield family("read_ahead_used_total", "counter", "Shards loaded ahead that were wanted.", ahead.used)
    yield family("read_ahead_wasted_total", "counter", "Shards loaded ahead in vain.", ahead.wasted)


def _store(vfs: Vfs) -> Iterator[Family]:
    """Requests to a store far away, and the cache on disk before it, where there are such."""
    storage = getattr(vfs.driver, "storage", None)
    if isinstance(storage, DiskCache):
        files = storage.files
        yield family("disk_cache_limit_bytes", "gauge", "Disk that the cache may fill.", files.limit)
        yield family("disk_cache_hits_total", "counter", "Objects found there.", files.hits)
        yield family("disk_cache_misses_total", "counter", "Objects fetched.", files.misses)
        storage = storage.inner
    requests = getattr(storage, "requests", None)
    if requests is not None:
        yield family("store_requests_total", "counter", "Requests to the store, repeated ones too.", requests.asked)
        yield family("store_retries_total", "counter", "Requests that were repeated.", requests.repeated)


def _staging(area: StagingArea | None, sealer: Sealing | None) -> Iterator[Family]:
    if area is None or sealer is None:
        return
    yield family("staged", "gauge", "Keys and directories that are staged.", len(area.directories()))
    yield family("seals_total", "counter", "Keys that were stored.", sealer.stored)
    yield family("seal_failures_total", "counter", "Times that a key could not be stored.", sealer.failures)
