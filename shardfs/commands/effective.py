"""What settings come to for a mount of a store on this machine, for people and for `config.json`: what nobody said has
the value that it will have. Asks nothing of the store.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

from shardfs import config, daemon
from shardfs.commands.options import cache_options
from shardfs.commands.resolving import Settled
from shardfs.commands.said import FILE, shown_url
from shardfs.storage.urls import is_far


def facts_of(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is mounted, where, and each setting: its `value`, where it came `from`, and what must be added to that to
    find it, without secrets. The value is None where the store alone can tell, or where it means nothing there."""
    settled: Settled = arguments.settled
    made: dict[str, dict[str, Any]] = {}
    store, mountpoint = arguments.store, getattr(arguments, "mountpoint", None)
    if store is not None:
        made["store"] = {"value": shown_url(absolute_store(store))}
    if mountpoint is not None:
        made["mountpoint"] = {"value": daemon.resolved(mountpoint)}
    for name, one in made.items():
        if name in settled.places:
            one |= {"from": FILE, "where": settled.places[name]}
    said = settled.facts()
    for name, value in _unsaid(arguments).items():
        if said[name]["value"] is None:
            said[name]["value"] = value
    for name, value in cache_options(arguments).items():
        said[name]["value"] = value
    return {**made, **said}


def _unsaid(arguments: argparse.Namespace) -> dict[str, Any]:
    """Values of what depends on the machine or the store, where nothing was said of it."""
    far = arguments.store is not None and is_far(arguments.store)
    made: dict[str, Any] = {
        "memory": config.default_budget(),
        "cache_raw": config.CACHE_RAW[0] if far else config.CACHE_RAW[-1],
        "refresh": config.REMOTE_REFRESH if far else config.REFRESH,
        "shutdown_timeout": config.SHUTDOWN_WAIT,
    }
    mountpoint = getattr(arguments, "mountpoint", None)
    if mountpoint is not None and not getattr(arguments, "foreground", False):
        log = default_log(os.path.abspath(mountpoint))
        made["log"] = None if log is None else str(log)
    if far:
        made["deadline"] = config.REMOTE_DEADLINE
    if far or arguments.cache_raw not in (None, "off"):
        from shardfs.storage.disk_cache import default_directory, default_size

        directory = cache_options(arguments).get("cache_dir") or default_directory()
        if directory is not None:
            made |= {"cache_dir": str(directory), "cache_size": default_size(Path(directory))}
        made["min_free"] = config.CACHE_MIN_FREE
    return made


def absolute_store(text: str) -> str:
    """The same store from whatever directory it is opened. BadStoreError, BadSettingError for a URL of no driver."""
    if "://" not in text:
        return os.path.abspath(os.path.expanduser(text))
    if "+" not in text.partition("://")[0]:
        return text
    from shardfs.opening import absolute_url  # what drivers are there is not to be known for any other

    return absolute_url(text)


def default_log(mountpoint: str) -> Path | None:
    """Where a mount in the background logs unless it is told: a file named after the mount point."""
    base = config.base_directory("XDG_STATE_HOME", "~/.local/state")
    if base is None:
        return None
    path = os.fsencode(mountpoint)
    name = os.fsdecode(path.strip(b"/").replace(b"/", b"-")[-150:])
    return base / "shardfs" / f"{name}-{hashlib.sha256(path).hexdigest()[:8]}.log"
