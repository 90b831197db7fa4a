"""`shardfs status`: every mount of this user, or one, and what each says of itself. Waits for none that is silent."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shardfs import config, control, daemon
from shardfs.commands import FAILED, OK, as_json, one_line, tell
from shardfs.commands.screen import coloured, listed, paint, width, wrapped
from shardfs.commands.tabular import age, number, size
from shardfs.errors import MountError, ShardfsError

SERVING, DETACHED, _SILENT, _DEAD, _ELSEWHERE = "serving", "detached", "silent", "dead", "unreachable"


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    found = list(of_all(paths(arguments.mountpoint)).values())
    if arguments.json:
        print(as_json(found if arguments.mountpoint is None else found[0]))
    else:
        columns, colours = width(), coloured()
        blocks = ["\n".join(_block(one, columns, colours)) for one in found]
        print("\n\n".join(blocks), end="\n" if found else "")
        if not found:
            tell("nothing is mounted")
    sys.stdout.flush()
    return OK if all(one["health"] in (SERVING, DETACHED) for one in found) else FAILED


def paths(mountpoint: str | None) -> list[str]:
    """Where to look. MountError for a path at which no shardfs is mounted."""
    table = {mounted.path: mounted for mounted in daemon.mounts()}
    ours = {path for path, mounted in table.items() if mounted.fstype == daemon.FSTYPE and _may(mounted.owner)}
    if mountpoint is None:
        return sorted(ours | {record.mountpoint for record in daemon.records()})
    path = daemon.resolved(mountpoint)
    if path not in table or table[path].fstype != daemon.FSTYPE:
        raise MountError(f"no shardfs mount at {mountpoint}")
    if path not in ours:
        raise MountError(f"{mountpoint} was mounted by user {table[path].owner}: only that user and root can ask it")
    return [path]


def _may(owner: int | None) -> bool:
    return os.geteuid() in (0, owner)


def of_all(places: list[str]) -> dict[str, dict[str, Any]]:
    """What is known of each: several are asked at once, as each that is silent takes its time."""
    with ThreadPoolExecutor(config.CONTROL_ASKED) as pool:
        return dict(zip(places, pool.map(of, places), strict=True))


def of(path: str) -> dict[str, Any]:
    """What is known of one mount: what it says, or why it says nothing."""
    mounted = daemon.mounted_at(path)
    there = mounted is not None and mounted.fstype == daemon.FSTYPE
    record = daemon.find(path, mounted.owner if mounted is not None and there else None)
    facts: dict[str, Any] = {"mountpoint": path, "health": SERVING, "reason": None}
    if record is not None:
        facts |= {"pid": record.pid, "store": record.store}
    elif mounted is not None:
        facts["store"] = mounted.source
    if not there:
        return {**facts, "health": DETACHED, "reason": "it ends when nobody uses it and all is stored"}
    try:
        return {**facts, **control.ask(path, "status", seconds=config.CONTROL_STATUS)}
    except ShardfsError as error:
        return {**facts, **_unasked(path, error)}


def _unasked(path: str, error: ShardfsError) -> dict[str, str]:
    """What can be told of a mount that does not say it."""
    if error.errno == errno.ETIMEDOUT:
        return {"health": _SILENT, "reason": str(error)}
    trouble = daemon.trouble(path, config.CONTROL_STATUS)
    if trouble == os.strerror(errno.ENOTCONN):
        return {"health": _DEAD, "reason": "its process has died: unmount it, or mount there again"}
    if trouble:
        return {"health": _SILENT, "reason": trouble}
    return {
        "health": _ELSEWHERE,
        "reason": "it works, but its socket is not found: in another XDG_RUNTIME_DIR, perhaps",
    }


def _block(one: dict[str, Any], columns: int, colours: bool) -> list[str]:
    """The same for people: a line of what it is, and one for each matter; what is too wide goes on in the next."""
    words = [str(one[name]) for name in ("mode", "driver", "store") if one.get(name)]
    health = paint(one["health"], "green" if one["health"] in (SERVING, DETACHED) else "red", colours)
    lines = []
    if one["reason"]:
        lines.append(one["reason"])
    if "cache" in one:
        cache = one["cache"]
        lines += [
            f"process {one['pid']}, for {age(one['since_ns'], time.time_ns())}; {number(one['keys'], 'key')}",
            f"memory {size(cache['used'])} of {size(cache['budget'])}, {number(cache['shards'], 'shard')}; "
            f"{number(cache['hits'], 'hit')}, {cache['misses']:,} missed",
            f"shards: {cache['loads']:,} loaded, {cache['opened']:,} opened, {cache['evictions']:,} evicted, "
            f"{cache['failures']:,} failed",
        ]
    for making in (one.get("light") or {}).get("making", ()):
        lines.append(f"making {making['what']}: {making['done']:,} of {number(making['of'], 'shard')}")
    if one.get("loading"):
        keys = [one_line(key) for key in one["loading"]]
        lines.append(f"loading {listed(keys, max(columns - 10, 20), config.TOP_KEYS)}")
    if one.get("far"):
        lines += _far(one["far"])
    if one.get("staged"):
        files = sum(report["files"] for report in one["staged"])
        held = sum(report["data_bytes"] for report in one["staged"])
        staged = f"{number(len(one['staged']), 'key')}, {number(files, 'file')}, {size(held)}"
        lines.append(f"staged: {staged} (shardfs staging list)")
        told = [report for report in one["staged"] if report.get("reason")]
        lines += [f"{report['key']}: {report['reason']}" for report in told[: config.NOTES_LOGGED]]
    head = one_line(f"{one['mountpoint']}: ")
    rest = one_line(", ".join(["", *words])) if words else ""
    return [f"{head} {health}{rest}", *(part for line in lines for part in wrapped(one_line(line), columns, "  "))]


def _far(far: dict[str, Any]) -> list[str]:
    """How the store far away is doing, in lines."""
    state = "answers"
    if far["offline"]:
        state = "is not asked: --offline"
    elif not far["answers"]:
        state = f"has not answered for {age(int(far['since'] * 1e9), time.time_ns())}: {far['error']}"
    lines = [
        f"the store {state}",
        f"{number(far['requests'], 'request')}, {far['repeats']:,} repeated, {far['hedged']:,} asked twice; "
        f"{size(far['bytes'])} fetched",
    ]
    if far.get("cache"):
        cache = far["cache"]
        held = "" if cache["bytes"] is None else f" {size(cache['bytes'])};"
        lines.append(
            f"cache on disk:{held} {number(cache['hits'], 'hit')}, {cache['misses']:,} missed, "
            f"{cache['evictions']:,} evicted"
        )
    return lines
