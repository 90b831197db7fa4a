"""`shardfs status`: every mount of this user, or one, and what each says of itself. Waits for none that is silent."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from typing import Any

from shardfs import config, control, daemon
from shardfs.commands import FAILED, OK, as_json, one_line, tell
from shardfs.commands.tabular import age, number, size
from shardfs.errors import MountError, ShardfsError

_SERVING, _DETACHED, _SILENT, _DEAD, _ELSEWHERE = "serving", "detached", "silent", "dead", "unreachable"


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    found = [_of(path) for path in _paths(arguments.mountpoint)]
    if arguments.json:
        print(as_json(found if arguments.mountpoint is None else found[0]))
    else:
        print("\n\n".join(map(_block, found)), end="\n" if found else "")
        if not found:
            tell("nothing is mounted")
    sys.stdout.flush()
    return OK if all(one["health"] in (_SERVING, _DETACHED) for one in found) else FAILED


def _paths(mountpoint: str | None) -> list[str]:
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


def _of(path: str) -> dict[str, Any]:
    """What is known of one mount: what it says, or why it says nothing."""
    mounted = daemon.mounted_at(path)
    there = mounted is not None and mounted.fstype == daemon.FSTYPE
    record = daemon.find(path, mounted.owner if mounted is not None and there else None)
    facts: dict[str, Any] = {"mountpoint": path, "health": _SERVING, "reason": None}
    if record is not None:
        facts |= {"pid": record.pid, "store": record.store}
    elif mounted is not None:
        facts["store"] = mounted.source
    if not there:
        return {**facts, "health": _DETACHED, "reason": "it ends when nobody uses it and all is stored"}
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


def _block(one: dict[str, Any]) -> str:
    """The same for people: a line of what it is, and one for each matter."""
    words = [str(one[name]) for name in ("health", "mode", "driver", "store") if one.get(name)]
    lines = [f"{one['mountpoint']}: {', '.join(words)}"]
    if one["reason"]:
        lines.append(f"  {one['reason']}")
    if "cache" in one:
        cache = one["cache"]
        lines.append(
            f"  process {one['pid']}, for {age(one['since_ns'], time.time_ns())}; {number(one['keys'], 'key')}"
        )
        lines.append(
            f"  memory {size(cache['used'])} of {size(cache['budget'])}, {number(cache['shards'], 'shard')}; "
            f"{number(cache['hits'], 'hit')}, {cache['misses']:,} missed, {cache['loads']:,} loaded, "
            f"{cache['opened']:,} opened, {cache['evictions']:,} evicted, {cache['failures']:,} failed"
        )
    for making in (one.get("light") or {}).get("making", ()):
        lines.append(f"  making {making['what']}: {making['done']:,} of {number(making['of'], 'shard')}")
    if one.get("far"):
        lines += _far(one["far"])
    if one.get("staged"):
        files = sum(report["files"] for report in one["staged"])
        held = sum(report["data_bytes"] for report in one["staged"])
        staged = f"{number(len(one['staged']), 'key')}, {number(files, 'file')}, {size(held)}"
        lines.append(f"  staged: {staged} (shardfs staging list)")
        told = [report for report in one["staged"] if report.get("reason")]
        lines += [one_line(f"  {report['key']}: {report['reason']}") for report in told[: config.NOTES_LOGGED]]
    return "\n".join(_printable(line) for line in lines)


def _far(far: dict[str, Any]) -> list[str]:
    """How the store far away is doing, in lines."""
    state = "answers"
    if far["offline"]:
        state = "is not asked: --offline"
    elif not far["answers"]:
        state = f"has not answered for {age(int(far['since'] * 1e9), time.time_ns())}: {far['error']}"
    lines = [
        f"  the store {state}",
        f"  {number(far['requests'], 'request')}, {far['repeats']:,} repeated, {far['hedged']:,} asked twice; "
        f"{size(far['bytes'])} fetched",
    ]
    if far.get("cache"):
        cache = far["cache"]
        held = "" if cache["bytes"] is None else f" {size(cache['bytes'])};"
        lines.append(
            f"  cache on disk:{held} {number(cache['hits'], 'hit')}, {cache['misses']:,} missed, "
            f"{cache['evictions']:,} evicted"
        )
    return lines


def _printable(line: str) -> str:
    """A line with its indentation, and nothing in it that a terminal would obey."""
    indent = line[: len(line) - len(line.lstrip(" "))]
    return indent + one_line(line)
