"""What of one store keeps it from being mounted here, or makes that slow. Reads a listing, and asks for one object.

Knows nothing of the machine (`examining`), nor of what is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from shardfs import config
from shardfs.drivers.base import StoresObjects
from shardfs.errors import ShardfsError
from shardfs.examining import FAILURE, NOTE, OK, WARNING, Finding
from shardfs.model import Entry
from shardfs.opening import open_store
from shardfs.store import Store


def examine_store(
    url: str, driver: str | None, options: dict[str, Any], clock: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """All checks of a store, the first of which says whether there are more."""
    begun = time.monotonic()
    try:
        store = open_store(url, driver, **options)
        entries = store.driver.entries()
    except (ShardfsError, OSError) as error:
        yield Finding("store", FAILURE, str(error), "mend what the message names; shardfs mount would say the same")
        return
    seconds = time.monotonic() - begun
    text = f"{url} ({store.driver.name}): {len(entries):,} keys, listed in {seconds:.2f} s"
    if seconds > config.LISTING_SLOW:
        yield Finding("store", WARNING, text, "mount with a longer --refresh, or --refresh manual")
    else:
        yield Finding("store", OK, text)
    for problem in store.driver.problems[: config.NOTES_LOGGED]:
        yield Finding("store", WARNING, f"not shown: {problem}", f"shardfs verify {url} tells all that is damaged")
    if not store.driver.writable:
        yield Finding("writing", NOTE, "it can only be read here", "mount it without --rw")
    yield from _times(entries, clock())
    yield from _sizes(entries)
    yield from _latency(store, entries)


def _times(entries: list[Entry], now: float) -> Iterator[Finding]:
    newest = max((entry.mtime_ns for entry in entries), default=0) / 1e9
    if newest > now + config.CLOCK_AHEAD:
        text = f"a shard is {newest - now:.0f} s younger than now: this clock is slow, or the store's is fast"
        yield Finding("clock", WARNING, text, "timedatectl set-ntp true, on both")


def _sizes(entries: list[Entry]) -> Iterator[Finding]:
    largest = max(entries, key=_raw, default=None)
    budget = config.default_budget()
    if largest is not None and _raw(largest) > budget:
        need, there = _raw(largest) >> 20, budget >> 20
        text = f"the shard {largest.key} takes about {need} MiB; the default budget is {there} MiB"
        yield Finding("budget", WARNING, text, f"mount with --memory {(_raw(largest) * 2 >> 20) + 1}M or more")


def _raw(entry: Entry) -> int:
    return entry.raw_bytes or entry.stored_bytes * config.REMOTE_RATIO


def _latency(store: Store, entries: list[Entry]) -> Iterator[Finding]:
    """How long the store takes to say something of one object: the median of three."""
    if not entries or not isinstance(store.driver, StoresObjects):
        return
    try:
        name, _ = store.driver.objects(entries[0])[0]
        taken = []
        for _ in range(3):
            begun = time.monotonic()
            store.driver.storage.stat(name)
            taken.append(time.monotonic() - begun)
    except (ShardfsError, OSError) as error:
        yield Finding("latency", FAILURE, f"{error}", "see that this user may read every object of the store")
        return
    text = f"{sorted(taken)[1] * 1000:.1f} ms until it says something of an object"
    if sorted(taken)[1] > config.LATENCY_HIGH:
        fix = f"fetch ahead: shardfs warm {store.url}" if store.far else "copy the store to a faster disk"
        yield Finding("latency", WARNING, text, fix)
    else:
        yield Finding("latency", OK, text)
