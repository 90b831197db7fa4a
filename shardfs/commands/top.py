"""`shardfs top`: what mounts do right now, again and again. Asks their sockets, and reads nothing of the mounts.

On a terminal each display takes the place of the last one; elsewhere they follow one another.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from shardfs import config, control
from shardfs.commands import FAILED, OK, as_json, one_line, tell
from shardfs.commands.screen import coloured, cut, height, listed, paint, redraws, width
from shardfs.commands.status import DETACHED, SERVING, of, paths
from shardfs.commands.tabular import number, size
from shardfs.errors import BadSettingError, ShardfsError
from shardfs.watching import Pace, Reading, pace, parse

_HOME, _REST, _LINE = "\033[H", "\033[J", "\033[K"


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    every = config.TOP_EVERY if arguments.delay is None else arguments.delay
    if not config.TOP_LEAST <= every < 1e9:
        raise BadSettingError(f"-d {every:g}: write seconds, {config.TOP_LEAST:g} or more")
    if arguments.times is not None and arguments.times < 1:
        raise BadSettingError(f"-n {arguments.times}: at least 1")
    times = 1 if arguments.once else arguments.times
    live = redraws(sys.stdout) and not arguments.json and times is None
    before = _readings(arguments.mountpoint)
    if not before and not live:
        tell("nothing is mounted")
        return OK
    time.sleep(every if arguments.delay is not None else min(every, config.TOP_FIRST))
    for shown in itertools.count(1):
        after = _readings(arguments.mountpoint)
        if arguments.json:
            _print_lines(before, after)
        else:
            _show(before, after, live, first=shown == 1)
        sys.stdout.flush()
        if times is not None and shown >= times:
            break
        before = after
        time.sleep(every)
    return OK if all(one.status["health"] in (SERVING, DETACHED) for one in after.values()) else FAILED


def _readings(mountpoint: str | None) -> dict[str, Reading]:
    """What each mount says now, or why it says nothing. MountError where there is none at `mountpoint`."""
    found = paths(mountpoint)
    with ThreadPoolExecutor(config.CONTROL_ASKED) as pool:  # each that is silent takes its time
        return dict(zip(found, pool.map(_reading, found), strict=True))


def _reading(path: str) -> Reading:
    status = of(path)
    text = ""
    if status["health"] == SERVING:
        try:
            text = control.ask(path, "metrics", seconds=config.CONTROL_STATUS)["text"]
        except ShardfsError as error:  # it has ended meanwhile, or is of an older release
            status |= {"reason": f"it tells no metrics: {error}"}
    return Reading(time.monotonic(), status, parse(text))


# --- what is shown ----------------------------------------------------------------------------------------------------


def _print_lines(before: dict[str, Reading], after: dict[str, Reading]) -> None:
    for path, one in after.items():
        print(as_json(_facts(one, _pace(before.get(path), one)), indent=None))


def _pace(before: Reading | None, after: Reading) -> Pace | None:
    return None if before is None or not after.figures else pace(before, after)


def _facts(one: Reading, found: Pace | None) -> dict[str, Any]:
    status, cache = one.status, one.status.get("cache") or {}
    made: dict[str, Any] = {
        "time": round(time.time(), 3),
        "mountpoint": status["mountpoint"],
        "health": status["health"],
        "reason": status.get("reason"),
        "seconds": None if found is None else round(found.seconds, 3),
        "requests_per_second": None if found is None else round(found.requests, 3),
        "errors_per_second": None if found is None else round(found.errors, 3),
        "operations": {} if found is None else {name: round(rate, 3) for name, rate in found.operations.items()},
        "bytes_per_second": None if found is None or found.bytes is None else round(found.bytes, 1),
        "hit_rate": None if found is None or found.hit_rate is None else round(found.hit_rate, 6),
        "latency_seconds": {} if found is None else {name: _number(value) for name, value in found.latency.items()},
        "loading": status.get("loading", []),
        "cache_bytes": cache.get("used"),
        "cache_budget": cache.get("budget"),
        "cache_shards": cache.get("shards"),
        "staged": _staged(status),
        "resident_bytes": _resident(one),
    }
    return made


def _number(value: float | None) -> float | str | None:
    return "inf" if value == math.inf else value


def _staged(status: Any) -> dict[str, int] | None:
    reports = status.get("staged")
    if reports is None:
        return None
    return {
        "keys": len(reports),
        "files": sum(report["files"] for report in reports),
        "bytes": sum(report["data_bytes"] for report in reports),
    }


def _resident(one: Reading) -> int | None:
    held = one.figures.get(("shardfs_resident_bytes", ()))
    return None if held is None else int(held)


def _show(before: dict[str, Reading], after: dict[str, Reading], live: bool, first: bool) -> None:
    columns, colours = width(), coloured()
    paces = ((one, _pace(before.get(path), one)) for path, one in after.items())
    lines = [line for one, found in paces for line in _block(one, found, columns, colours)]
    if not after:
        lines = ["nothing is mounted"]
    if live:
        room = height() - 1  # the cursor's line: one more, and what was shown first would be gone
        if len(lines) > room:
            lines = [*lines[: room - 1], f"... {len(lines) - room + 1} more lines: shardfs top MNT shows one mount"]
        begin = (_HOME + _REST) if first else _HOME
        sys.stdout.write(begin + "".join(f"{line}{_LINE}\n" for line in lines) + _REST)
    else:
        sys.stdout.write(("" if first else "\n") + "\n".join(lines) + "\n")


def _block(one: Reading, found: Pace | None, columns: int, colours: bool) -> list[str]:
    """The lines of one mount, none wider than `columns`."""
    status = one.status
    good = status["health"] in (SERVING, DETACHED)
    words = ", ".join(str(status[name]) for name in ("mode", "driver", "store") if status.get(name))
    mountpoint = cut(one_line(status["mountpoint"]), max(10, columns - len(status["health"]) - 2))
    head = f"{mountpoint}: {status['health']}"
    rest = cut(one_line(f", {words}"), max(0, columns - len(head))) if words else ""
    health = paint(status["health"], "green" if good else "red", colours)
    made = [f"{paint(mountpoint, 'bold', colours)}: {health}{rest}"]
    if status.get("reason"):
        made.append(cut(f"  {one_line(status['reason'])}", columns))
    if found is not None:
        made += [cut(line, columns) for line in _figures(one, found, columns)]
    return made


def _figures(one: Reading, found: Pace, columns: int) -> list[str]:
    status, cache = one.status, one.status["cache"]
    rate = "-" if found.bytes is None else f"{size(int(found.bytes))}/s"
    hits = "-" if found.hit_rate is None else f"{found.hit_rate:.1%}"
    spread = "  ".join(f"{name} {_latency(value)}" for name, value in found.latency.items())
    busiest = ", ".join(f"{name} {_rate(value)}" for name, value in list(found.operations.items())[:4])
    made = [
        f"  requests  {_rate(found.requests)}/s, errors {_rate(found.errors)}/s; read {rate}; hits {hits}",
        f"  latency   {spread}",
    ]
    if busiest:
        made.append(f"  a second  {busiest}")
    memory = f"{size(cache['used'])} of {size(cache['budget'])}, {number(cache['shards'], 'shard')}"
    held = _resident(one)
    made.append(f"  memory    {memory}" + ("" if held is None else f"; process {size(held)}"))
    loading = [one_line(key) for key in status.get("loading", [])]
    if loading:
        made.append(f"  loading   {listed(loading, columns - 12, config.TOP_KEYS)}")
    staged = _staged(status)
    if staged is not None and staged["keys"]:
        held_back = f"{number(staged['keys'], 'key')}, {number(staged['files'], 'file')}, {size(staged['bytes'])}"
        made.append(f"  staged    {held_back}")
    return made


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def _latency(seconds: float | None) -> str:
    """The step of the histogram."""
    if seconds is None:
        return "-"
    if seconds == math.inf:
        return "> 10 s"
    return f"<= {seconds * 1000:g} ms" if seconds < 1 else f"<= {seconds:g} s"
