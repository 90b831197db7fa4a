"""`shardfs gc`: lists what in a store belongs to no key any more, and removes it where that is asked for.

What that is the store's driver knows; how old it must be, and what of it is left alone, is decided here.
"""

from __future__ import annotations

import argparse
import errno
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from shardfs import config
from shardfs.commands import FAILED, OK, as_json, one_line, tell
from shardfs.commands.options import cache_options, store_options
from shardfs.commands.tabular import age, size, table
from shardfs.drivers.garbage import Collecting, Garbage
from shardfs.errors import BadSettingError, ShardfsError, StaleShardError
from shardfs.storage.urls import is_far

KEPT = "nobody could tell there what somebody is just writing, or what an index above it names"
"""Why nothing is removed from a store far away."""

_HEAD = ("name", "kind", "size", "age", "what", "why")
_NUMBERS = (2, 3)


@dataclass(slots=True)
class _Found:
    """One thing, and what becomes of it."""

    garbage: Garbage
    kept: str | None
    """Why it is left alone; None if it is to be removed."""
    removed: bool = False
    error: str | None = None


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    from shardfs.opening import open_store

    oldest = config.GARBAGE_AGE if arguments.older_than is None else arguments.older_than
    if not 0 <= oldest < 1e10:
        raise BadSettingError(f"--older-than {oldest:g}: give seconds, 0 or more")
    store = open_store(arguments.store, arguments.driver, **store_options(arguments), **cache_options(arguments))
    if is_far(arguments.store) and arguments.yes:
        raise BadSettingError(f"gc removes nothing from stores far away: {KEPT}; without --yes it lists what it finds")
    driver = store.driver
    if not isinstance(driver, Collecting):
        raise BadSettingError(f"{store.url} ({driver.name}): stores of this kind have nothing that gc could know of")
    now_ns = time.time_ns()
    found = [_Found(one, _kept(one, now_ns, oldest, arguments.unnamed)) for one in driver.garbage()]
    if arguments.yes:
        for one in found:
            if one.kept is None:
                _remove(driver, one)
    _tell(arguments, found, now_ns)
    if is_far(arguments.store):
        tell(f"far away this is a list and no more: {KEPT}")
    sys.stdout.flush()
    return FAILED if any(one.error is not None for one in found) else OK


def _kept(one: Garbage, now_ns: int, oldest: float, unnamed: bool) -> str | None:
    """Why something is left alone, if it is."""
    if one.kind == "unnamed" and not unnamed:
        return "who wrote it may name it yet: --unnamed removes it"
    if now_ns - one.since_ns < oldest * 1e9:
        return f"younger than {oldest:g} s"
    return None


def _remove(driver: Collecting, one: _Found) -> None:
    try:
        driver.discard(one.garbage)
        one.removed = True
    except StaleShardError as error:
        one.kept = str(error)
    except ShardfsError as error:
        if error.errno == errno.EBUSY:
            one.kept = str(error)
        else:
            one.error = str(error)
            tell(one_line(f"{one.garbage.name}: {error}"))


def _tell(arguments: argparse.Namespace, found: list[_Found], now_ns: int) -> None:
    if arguments.json:
        print(as_json({"store": arguments.store, "garbage": [_facts(one) for one in found], **_sums(found)}))
        return
    rows = [
        (
            one_line(one.garbage.name),
            one.garbage.kind,
            size(one.garbage.size),
            age(one.garbage.since_ns, now_ns),
            _what(one),
            one_line(one.error or one.kept or one.garbage.reason),
        )
        for one in found
    ]
    if rows:
        print(table(_HEAD, rows, right=_NUMBERS))
    sums = _sums(found)
    if arguments.yes:
        tell(f"removed {sums['removed']} of {len(found)}, {size(sums['removed_bytes'])}")
    elif sums["removable"]:
        tell(f"{sums['removable']} of {len(found)} could be removed, {size(sums['removable_bytes'])}: say --yes")
    else:
        tell("there is nothing to remove")


def _what(one: _Found) -> str:
    if one.error is not None:
        return "failed"
    return "removed" if one.removed else "kept" if one.kept is not None else "removable"


def _facts(one: _Found) -> dict[str, Any]:
    facts = asdict(one.garbage)
    del facts["version"]
    return {**facts, "state": _what(one), "kept": one.kept, "error": one.error}


def _sums(found: list[_Found]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for what in ("removed", "removable", "kept"):
        sizes = [one.garbage.size for one in found if _what(one) == what]
        sums |= {what: len(sizes), f"{what}_bytes": sum(sizes)}
    return sums
