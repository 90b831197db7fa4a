"""`shardfs ls`, `cat` and `info`: the tree without a mount. Data goes to stdout, messages to stderr."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from shardfs.browse import Browser, Listed
from shardfs.commands import OK, as_json, explain, tell
from shardfs.commands.options import cache_options, store_options, style
from shardfs.commands.tabular import number, size
from shardfs.errors import BadSettingError, ShardfsError
from shardfs.opening import open_store
from shardfs.store import Store

_KINDS = {"dir": "d", "key": "k", "file": "-"}


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments.store, arguments.driver, **store_options(arguments), **cache_options(arguments))
    if sys.stdout is None:
        raise OSError("there is no standard output")
    if arguments.command == "info" and (arguments.snapshot is not None or arguments.fingerprint):
        return _taken(store, arguments)
    browser = Browser(store, style(arguments.arrays, arguments.text))
    # names are UTF-8 on a mount, whatever the locale says
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="surrogateescape")
    work = {"ls": _ls, "cat": _cat, "info": _info}[arguments.command]
    status = work(browser, arguments)
    sys.stdout.flush()
    return status


def _ls(browser: Browser, arguments: argparse.Namespace) -> int:
    listed = browser.list(arguments.path)
    if arguments.json:
        rows = [
            json.dumps(
                {"name": one.name, "kind": one.kind, "size": one.size, "mtime_ns": one.mtime_ns}, ensure_ascii=False
            )
            for one in listed
        ]
        print("[" + ",\n ".join(rows) + "]")
        return OK
    if arguments.long:
        width = max((len(str(one.size)) for one in listed), default=1)
        for one in listed:
            print(_long(one, width))
        return OK
    for one in listed:
        print(one.name)
    return OK


def _long(one: Listed, width: int) -> str:
    return f"{_KINDS.get(one.kind, '?')} {one.size:>{width}} {_when(one.mtime_ns)} {one.name}"


def _when(mtime_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(mtime_ns // 1_000_000_000))


def _cat(browser: Browser, arguments: argparse.Namespace) -> int:
    """Like cat: what cannot be read is told of, and the rest goes on."""
    status = OK
    for path in arguments.path:
        try:
            for piece in browser.read(path):
                sys.stdout.buffer.write(piece)
        except ShardfsError as error:
            failed, text = explain(error)
            sys.stdout.flush()
            tell(text)
            status = status or failed
    return status


def _taken(store: Store, arguments: argparse.Namespace) -> int:
    """What stands for the whole store: its fingerprint on stdout, a snapshot in a file."""
    from shardfs.snapshots import fingerprint, write_snapshot

    if arguments.path:
        raise BadSettingError("--snapshot and --fingerprint are of a whole store: without PATH")
    facts: dict[str, Any] = {}
    if arguments.snapshot is not None:
        facts = {"snapshot": arguments.snapshot, "keys": write_snapshot(store, Path(arguments.snapshot))}
        tell(f"{number(facts['keys'], 'key')} written to {arguments.snapshot}")
    if arguments.fingerprint:
        facts["fingerprint"] = fingerprint(store)
    if arguments.json:
        print(as_json(facts))
    elif arguments.fingerprint:
        print(facts["fingerprint"])
    sys.stdout.flush()
    return OK


def _info(browser: Browser, arguments: argparse.Namespace) -> int:
    facts = browser.info(arguments.path)
    if arguments.json:
        print(as_json(facts))
        return OK
    labels = {name: name.removesuffix("_ns").replace("_", " ") for name in facts}
    width = max((len(label) for label in labels.values()), default=0)
    for name, value in facts.items():
        print(f"{labels[name]:<{width}}  {_plain(value, name)}")
    return OK


def _plain(value: Any, name: str = "") -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _figure(value, name)
    if isinstance(value, list | tuple):
        return "".join(f"\n  {_plain(item)}" for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(item)}" for name, item in value.items())
    return str(value)


def _figure(value: int, name: str) -> str:
    if name.endswith("_ns"):
        return _when(value)
    if name.endswith("bytes") or name == "size":
        return f"{value} bytes" if value < 1024 else f"{size(value)} ({value:,} bytes)"
    return f"{value:,}"
