"""`shardfs cache`, `warm`, `pin` and `unpin`: what is kept on disk of stores far away. Knows nothing of mounts.

A mount that runs shares the directory: it finds what was fetched here, and misses what was removed.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shardfs import config
from shardfs.commands import FAILED, OK, as_json, explain, tell
from shardfs.commands.options import cache_options, store_options
from shardfs.commands.progress import Progress
from shardfs.commands.tabular import number, size, table
from shardfs.drivers.base import StoresObjects
from shardfs.errors import BadSettingError, ShardfsError
from shardfs.model import Entry, Key
from shardfs.opening import open_store
from shardfs.storage.cache_files import Cached, CacheFiles
from shardfs.storage.disk_cache import DiskCache, default_directory, default_size
from shardfs.store import Store


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    work = {"cache": _cache, "warm": _warm, "pin": _pin, "unpin": _pin}[arguments.command]
    status = work(arguments)
    sys.stdout.flush()
    return status


def _cache(arguments: argparse.Namespace) -> int:
    works = {"info": _info, "prune": _prune, "clear": _clear, "verify": _verify}
    return works[arguments.work](arguments, _files(arguments))


def _files(arguments: argparse.Namespace) -> CacheFiles:
    given = cache_options(arguments)
    directory = Path(given["cache_dir"]) if "cache_dir" in given else default_directory()
    if directory is None:
        raise BadSettingError("there is no home to keep a cache in: set HOME or XDG_CACHE_HOME, or give --cache-dir")
    return CacheFiles(directory, given.get("cache_size", default_size(directory)))


def _info(arguments: argparse.Namespace, files: CacheFiles) -> int:
    entries = files.entries()
    stores: dict[str, list[Cached]] = {}
    for entry in entries:
        stores.setdefault(entry.about.store, []).append(entry)
    facts: dict[str, Any] = {
        "directory": str(files.root),
        "bytes": sum(entry.size for entry in entries),
        "limit": files.limit,
        "stores": [_facts(store, found) for store, found in sorted(stores.items())],
        "pins": [{"store": store, "keys": glob.removesuffix(".*")} for store, glob in sorted(files.pins())],
    }
    if arguments.json:
        print(as_json(facts))
        return OK
    print(f"{facts['directory']}: {size(facts['bytes'])} of {size(facts['limit'])}")
    if stores:
        rows = [
            (size(one["bytes"]), f"{one['files']:,}", size(one["pinned_bytes"]), one["store"])
            for one in facts["stores"]
        ]
        print(table(("size", "files", "pinned", "store"), rows, right=(0, 1, 2)))
    for pin in facts["pins"]:
        print(f"pinned: {pin['keys']} of {pin['store']}")
    return OK


def _facts(store: str, found: list[Cached]) -> dict[str, Any]:
    return {
        "store": store,
        "files": len(found),
        "bytes": sum(entry.size for entry in found),
        "pinned_bytes": sum(entry.size for entry in found if entry.pinned),
    }


def _prune(arguments: argparse.Namespace, files: CacheFiles) -> int:
    if not files.root.is_dir():
        return OK
    removed = files.make_room(0, exactly=True)
    tell(f"removed {size(removed)}; the cache may hold {size(files.limit)}")
    return OK


def _clear(arguments: argparse.Namespace, files: CacheFiles) -> int:
    store = None if arguments.store is None else _open(arguments).identity
    removed = files.clear(store)
    tell(f"removed {size(removed)}" + (": what is pinned stays" if files.pins() else ""))
    return OK


def _verify(arguments: argparse.Namespace, files: CacheFiles) -> int:
    bad = files.verify()
    if arguments.json:
        print(as_json([{"store": one.about.store, "name": one.about.name, "size": one.size} for one in bad]))
    for one in bad:
        tell(f"{one.about.name} of {one.about.store} was not what it should be, and has been removed")
    return FAILED if bad else OK


# --- warm and pin -----------------------------------------------------------------------------------------------------


def _open(arguments: argparse.Namespace) -> Store:
    options = {**store_options(arguments), **cache_options(arguments)}
    store = open_store(arguments.store, getattr(arguments, "driver", None), **options)
    if not store.far:
        raise BadSettingError(f"{arguments.store} is on this machine: only stores far away are kept in a cache")
    return store


def _cache_of(store: Store) -> tuple[DiskCache, StoresObjects]:
    driver = store.driver
    if not isinstance(driver, StoresObjects) or not isinstance(driver.storage, DiskCache):
        raise BadSettingError(f"{store.url} is opened without a cache (its size is 0, or there is no home)")
    return driver.storage, driver


def _warm(arguments: argparse.Namespace) -> int:
    store = _open(arguments)
    cache, driver = _cache_of(store)
    chosen = _chosen(store, _patterns(arguments))
    fetched = failed = 0

    def fetch(entry: Entry) -> int:
        return sum(cache.size_of(version) for name, version in driver.objects(entry) if cache.warm(name, version))

    with Progress("warming") as bar, ThreadPoolExecutor(arguments.jobs or config.REMOTE_AHEAD) as pool:
        futures = [(entry, pool.submit(fetch, entry)) for entry in chosen]
        try:
            for done, (entry, future) in enumerate(futures, 1):
                try:
                    fetched += future.result()
                except ShardfsError as error:
                    failed += 1
                    bar.say(f"{entry.key}: {explain(error)[1]}")
                bar.show(done, len(chosen))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if arguments.json:
        print(as_json({"keys": len(chosen), "fetched_bytes": fetched, "failed": failed}))
    else:
        others = f"; {number(failed, 'key')} not" if failed else ""
        tell(f"{number(len(chosen) - failed, 'key')} in the cache, {size(fetched)} of it fetched now{others}")
    return FAILED if failed else OK


def _patterns(arguments: argparse.Namespace) -> list[str]:
    patterns = list(arguments.keys)
    if arguments.from_file is not None:
        try:
            text = sys.stdin.read() if arguments.from_file == "-" else Path(arguments.from_file).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no text in UTF-8"
            raise BadSettingError(f"--from {arguments.from_file}: {reason}") from error
        patterns += [line.strip() for line in text.splitlines() if line.strip()]
    return patterns or ["*"]


def _chosen(store: Store, patterns: list[str]) -> list[Entry]:
    """The entries whose keys fit one of the patterns. BadSettingError for a pattern that fits none."""
    entries = store.driver.entries()
    chosen: dict[Key, Entry] = {}
    for pattern in patterns:
        found = {entry.key: entry for entry in entries if fnmatch.fnmatchcase(entry.key, pattern)}
        if not found and pattern != "*":
            raise BadSettingError(f"{store.url} has no key that {pattern} fits")
        chosen.update(found)
    return list(chosen.values())


def _pin(arguments: argparse.Namespace) -> int:
    store = _open(arguments)
    files = _cache_of(store)[0].files
    for pattern in arguments.keys:
        try:
            (files.pin if arguments.command == "pin" else files.unpin)(store.identity, f"{pattern}.*")
        except OSError as error:
            raise BadSettingError(f"{files.root}: {os.strerror(error.errno or 0)}") from error
    return OK
