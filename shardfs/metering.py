"""What the metrics of a mount are: the requests' own, and the figures that its parts keep of themselves.

Read when somebody asks, and without waiting; nothing here is in the way of a request. Knows nothing of who asks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shardfs.metrics import Family, Meter, exposition, family
from shardfs.storage.disk_cache import DiskCache
from shardfs.storage.requests import Requests
from shardfs.vfs import Vfs

if TYPE_CHECKING:
    from shardfs.changing import Sealing
    from shardfs.staging import StagingArea

PREFIX = "shardfs"


def text_of(
    vfs: Vfs, meter: Meter, version: str, area: StagingArea | None = None, sealer: Sealing | None = None
) -> str:
    """All metrics of a mount; `area` and `sealer` are those of a writable one."""
    families = [
        *_process(version),
        *_tiers(vfs),
        *_loads(vfs),
        *_bytes(vfs, meter),
        *_store(vfs),
        *_staging(area, sealer),
    ]
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


@dataclass(frozen=True, slots=True)
class _Tier:
    """One place in which what was got or made is kept. None: there is no such figure."""

    name: str
    bytes: int | None
    limit: int | None = None
    items: int | None = None
    hits: int | None = None
    misses: int | None = None
    evictions: int | None = None


def _tiers(vfs: Vfs) -> Iterator[Family]:
    tiers = [*_in_memory(vfs), *_on_disk(vfs)]

    def each(name: str, kind: str, text: str, value: Callable[[_Tier], int | None]) -> Family:
        found = [({"tier": tier.name}, figure) for tier in tiers if (figure := value(tier)) is not None]
        return Family(name, kind, text, found)

    yield family("keys", "gauge", "Keys that the mount shows.", len(vfs.tree.slots))
    yield each("cache_limit_bytes", "gauge", "What may be kept; memory is for rendered, too.", lambda tier: tier.limit)
    yield each("cache_bytes", "gauge", "What is kept, or reserved.", lambda tier: tier.bytes)
    yield each("cache_items", "gauge", "Shards, rendered files, tables that are kept.", lambda tier: tier.items)
    yield each("cache_hits_total", "counter", "Uses of what was kept.", lambda tier: tier.hits)
    yield each("cache_misses_total", "counter", "Uses of what was not.", lambda tier: tier.misses)
    yield each("cache_evictions_total", "counter", "What gave way to others.", lambda tier: tier.evictions)
    indexed = vfs.cache.tables.indexed
    yield family("tables_indexed_total", "counter", "Tables taken from the persistent index.", indexed)
    yield family("damaged", "gauge", "Damaged shards and samples that errors.jsonl lists.", len(vfs.cache.damage))


def _in_memory(vfs: Vfs) -> Iterator[_Tier]:
    cache, counts, tables = vfs.cache, vfs.cache.counts, vfs.cache.tables
    rendered = cache.rendered_bytes
    yield _Tier(
        *("memory", cache.used - rendered, cache.budget, len(cache), counts.hits, counts.misses, counts.evictions)
    )
    yield _Tier(
        "rendered",
        rendered,
        items=cache.rendered_files,
        hits=counts.rendered_hits,
        misses=counts.rendered_misses,
        evictions=counts.rendered_evictions,
    )
    yield _Tier("tables", tables.used, tables.budget, len(tables), evictions=tables.evictions)


def _on_disk(vfs: Vfs) -> Iterator[_Tier]:
    """The cache on disk: of stored shards for a store far away, of raw ones where those are kept."""
    storage, counts = getattr(vfs.driver, "storage", None), vfs.cache.counts
    stored = storage.files if isinstance(storage, DiskCache) else None
    raw = None if vfs.cache.raw is None else vfs.cache.raw.files
    files = stored or raw
    if files is None:
        return
    evicted = sum(each.evicted for each in (stored, raw) if each is not None)
    if stored is None:
        yield _Tier("disk", files.held(), files.limit, hits=counts.raw, evictions=evicted)
        return
    hits = stored.hits + counts.raw
    yield _Tier("disk", files.held(), files.limit, hits=hits, misses=stored.misses, evictions=evicted)


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


def _bytes(vfs: Vfs, meter: Meter) -> Iterator[Family]:
    counts, requests = vfs.cache.counts, _requests(vfs)
    got = counts.loaded_bytes + counts.part_bytes if requests is None else requests.fetched
    told = meter.served + meter.given
    yield family("served_bytes_total", "counter", "Bytes that reads were answered with.", meter.served)
    yield family("given_bytes_total", "counter", "Bytes of files given to the kernel before it asked.", meter.given)
    yield family("store_bytes_total", "counter", "Bytes of shards that came from the store.", got)
    yield family("decoded_bytes_total", "counter", "Raw bytes of shards that were loaded whole.", counts.decoded_bytes)
    amplified = round(got / told, 6) if told else 0
    yield family("read_amplification", "gauge", "Bytes from the store for each byte served or given.", amplified)


def _requests(vfs: Vfs) -> Requests | None:
    """What asks a store far away, where it is that."""
    storage = getattr(vfs.driver, "storage", None)
    found = getattr(storage.inner if isinstance(storage, DiskCache) else storage, "requests", None)
    return found if isinstance(found, Requests) else None


def _store(vfs: Vfs) -> Iterator[Family]:
    """Requests to a store far away."""
    requests = _requests(vfs)
    if requests is not None:
        yield family("store_requests_total", "counter", "Requests to the store, repeated ones too.", requests.asked)
        yield family("store_retries_total", "counter", "Requests that were repeated.", requests.repeated)


def _staging(area: StagingArea | None, sealer: Sealing | None) -> Iterator[Family]:
    if area is None or sealer is None:
        return
    staged = area.directories()
    yield family("staged", "gauge", "Keys and directories that are staged.", len(staged))
    yield family("staged_bytes", "gauge", "Bytes of their files.", sum(each.data_bytes for each in staged))
    yield family("seals_total", "counter", "Keys that were stored.", sealer.stored)
    yield family("seal_failures_total", "counter", "Times that a key could not be stored.", sealer.failures)
