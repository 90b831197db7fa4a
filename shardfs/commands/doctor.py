"""`shardfs doctor`: what keeps mounts from working here, and how each is mended."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from shardfs import config
from shardfs.commands import FAILED, OK, STORE, SYSTEM, as_json, one_line, tell
from shardfs.commands.options import cache_options, store_options
from shardfs.commands.screen import coloured, paint, width, wrapped
from shardfs.commands.tabular import number
from shardfs.examining import FAILURE, NOTE, WARNING, Finding, Places, examine
from shardfs.examining import OK as OKAY
from shardfs.examining_store import examine_store
from shardfs.storage.urls import is_far


def run(arguments: argparse.Namespace, places: Places | None = None) -> int:
    """`places` is for tests."""
    if sys.stdout is None:
        raise OSError("there is no standard output")
    cache = cache_options(arguments)
    machine = list(examine(places or _places(cache)))
    store: list[Finding] = []
    if arguments.store is not None:
        options = {**store_options(arguments), **(cache if is_far(arguments.store) else {})}
        store = list(examine_store(arguments.store, arguments.driver, options, writing=arguments.rw))
    found = [*machine, *store]
    if arguments.json:
        print(as_json([asdict(one) for one in found]))
    else:
        columns, colours = width(), coloured()
        for one in found:
            _print(one, columns, colours)
        levels = [one.level for one in found]
        tell(f"{number(levels.count(FAILURE), 'failure')}, {number(levels.count(WARNING), 'warning')}")
    sys.stdout.flush()
    if any(one.level == FAILURE for one in machine):
        return SYSTEM
    if any(one.level == FAILURE for one in store):
        return STORE
    return FAILED if any(one.level == WARNING for one in found) else OK


_COLOURS = {OKAY: "green", NOTE: "faint", WARNING: "yellow", FAILURE: "red"}


def _print(one: Finding, columns: int, colours: bool) -> None:
    """What was found; what is too wide goes on in the next line, but for what is to be copied."""
    first, *rest = wrapped(one_line(f"{one.check}: {one.text}"), columns, " " * 9)
    print(f"{paint(f'{one.level:<8}', _COLOURS[one.level], colours)} {first.lstrip()}")
    for line in rest:
        print(f"         {line.lstrip()}")
    if one.fix is not None:
        print(f"         fix: {one_line(one.fix)}")


def _places(cache: dict[str, object]) -> Places:
    directory, least = cache.get("cache_dir"), cache.get("min_free")
    return Places(
        cache=None if directory is None else Path(str(directory)),
        min_free=least if isinstance(least, int) else config.CACHE_MIN_FREE,
    )
