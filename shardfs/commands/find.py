"""`shardfs find`: names what of a store fits, without mounting it. One path a line on stdout, or a JSON object."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

from shardfs.commands import FAILED, OK, explain, tell
from shardfs.commands.options import cache_options, parse_size, store_options, style
from shardfs.errors import BadSettingError, ShardfsError
from shardfs.finding import DIRECTORY, FILE, KEY, Finder, Found, Wanted
from shardfs.indexing import open_database
from shardfs.opening import open_store

_KINDS = {DIRECTORY: "dir", KEY: "key", FILE: "file"}

_LARGEST = 1 << 63


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    wanted = Wanted(
        pattern=arguments.pattern,
        name=arguments.name,
        key=arguments.key,
        kinds=_kinds(arguments.type),
        size=None if arguments.size is None else parse_sizes(arguments.size),
    )
    store = open_store(arguments.store, arguments.driver, **store_options(arguments), **cache_options(arguments))
    arrays = style(arguments.arrays, arguments.text)
    status = OK

    def failed(key: str, error: ShardfsError) -> None:
        nonlocal status
        told, text = explain(error)
        status = status or told or FAILED
        sys.stdout.flush()
        tell(text)

    # names are UTF-8 on a mount, whatever the locale says
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="surrogateescape")
    database = None if arguments.no_index else open_database(store, arrays)
    with contextlib.nullcontext() if database is None else contextlib.closing(database):
        for found in Finder(store, wanted, arrays, database, failed).found():
            sys.stdout.write(_json(found) if arguments.json else found.path + ("\0" if arguments.print0 else "\n"))
    sys.stdout.flush()
    return status


def _json(found: Found) -> str:
    facts: dict[str, Any] = {
        "path": found.path,
        "type": _KINDS[found.kind],
        "key": found.key,
        "sample": found.sample,
        "size": found.size,
        "mtime_ns": found.mtime_ns,
    }
    return json.dumps(facts) + "\n"


def _kinds(given: str | None) -> str:
    """The letters of `--type`, with commas between them or not."""
    letters = DIRECTORY + FILE if given is None else given.replace(",", "")
    if not letters or set(letters) - {DIRECTORY, KEY, FILE}:
        raise BadSettingError(f"--type {given}: write d (directories), k (keys), f (files), or some of them")
    return letters


def parse_sizes(text: str) -> tuple[int, int]:
    """Bytes from and to, for `+1M` (more), `-1M` (less) or `100` (just that)."""
    sign, rest = (text[0], text[1:]) if text[:1] in ("+", "-") else ("", text)
    try:
        size = 0 if rest == "0" else parse_size(rest)
    except BadSettingError as error:
        raise BadSettingError(f"--size {text}: write bytes like 100, +1M (more) or -4k (less)") from error
    if "%" in rest:
        raise BadSettingError(f"--size {text}: write bytes like 100, +1M (more) or -4k (less)")
    return {"+": (size + 1, _LARGEST), "-": (0, size - 1), "": (size, size)}[sign]
