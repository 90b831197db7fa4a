"""What of one store keeps it from being mounted here, or makes that slow. Reads a listing, and asks for one object.

Knows nothing of the machine (`examining`), nor of what is printed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from shardfs import config
from shardfs.drivers.base import StoresObjects
from shardfs.errors import ShardfsError
from shardfs.examining import FAILURE, NOTE, OK, WARNING, Finding
from shardfs.examining_far import (
    examine_clock,
    examine_conditions,
    examine_credentials,
    examine_throughput,
    refused,
)
from shardfs.model import Entry
from shardfs.opening import open_store
from shardfs.storage.urls import is_far, without_secrets
from shardfs.store import Store


def examine_store(
    url: str,
    driver: str | None,
    options: dict[str, Any],
    clock: Callable[[], float] = time.time,
    writing: bool = False,
) -> Iterator[Finding]:
    """All checks of a store: one that cannot be opened has no more than its clock. With `writing` it is tried out what
    it does with conditions, by an object of its own that is removed again."""
    far = is_far(url)
    if far and not options.get("offline"):
        yield from examine_clock(url, options.get("endpoint"), clock)
    with contextlib.ExitStack() as stack:
        if far and not options.get("offline"):
            # what the store says now, and not what was heard of it before, or lies in the cache
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="shardfs-doctor-"))
            options = {**options, "cache_dir": place, "cache_size": 0}
        yield from _examine(url, driver, options, clock, writing, far)


def _examine(
    url: str, driver: str | None, options: dict[str, Any], clock: Callable[[], float], writing: bool, far: bool
) -> Iterator[Finding]:
    anonymous = bool(options.get("anonymous"))
    begun = time.monotonic()
    try:
        store = open_store(url, driver, **options)
        entries = store.driver.entries()
    except (ShardfsError, OSError) as error:
        fix = "mend what the message names; shardfs mount would say the same"
        found = refused(url, error, anonymous) if far else None
        yield found or Finding("store", FAILURE, str(error), fix)
        return
    if far:
        yield from examine_credentials(url, anonymous)
    seconds = time.monotonic() - begun
    text = f"{_shown(url)} ({store.driver.name}): {len(entries):,} keys, listed in {seconds:.2f} s"
    if seconds > config.LISTING_SLOW:
        yield Finding("store", WARNING, text, "mount with a longer --refresh, or --refresh manual")
    else:
        yield Finding("store", OK, text)
    for problem in store.driver.problems[: config.NOTES_LOGGED]:
        yield Finding(
            "store",
            WARNING,
            f"not shown: {problem}",
            f"shardfs verify {shlex.quote(_shown(url))} tells all that is damaged",
        )
    if not store.driver.writable:
        yield Finding("writing", NOTE, "it can only be read here", "mount it without --rw")
    elif not store.far:
        yield from _writing(store, writing)
    yield from examine_conditions(store, writing)
    yield from _times(entries, clock())
    yield from _sizes(entries)
    yield from _latency(store, entries)
    yield from examine_throughput(store, entries)


def _writing(store: Store, wanted: bool) -> Iterator[Finding]:
    """Whether this user may write to a store on this machine; a failure for who wants to."""
    if store.place is None:
        return
    place = os.path.realpath(store.place)
    if os.access(place, os.W_OK | os.X_OK, effective_ids=True):
        yield Finding("writing", OK, "this user may write to it")
        return
    reason = "its file system is read-only" if os.statvfs(place).f_flag & os.ST_RDONLY else "this user may not write"
    fix = f"chown it to this user ({shlex.quote(place)}), or mount it without --rw"
    yield Finding("writing", FAILURE if wanted else NOTE, f"it can only be read here: {reason}", fix)


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
        fix = (
            f"fetch ahead: shardfs warm {shlex.quote(without_secrets(store.url))}"
            if store.far
            else "copy the store to a faster disk"
        )
        yield Finding("latency", WARNING, text, fix)
    else:
        yield Finding("latency", OK, text)


def _shown(url: str) -> str:
    return without_secrets(url) if "://" in url else url
