"""How a mount does between two moments, from what it says of itself: rates, shares, quantiles of latencies.

Pure: reads no clock and asks nobody. Knows nothing of sockets, nor of what is printed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

QUANTILES = (0.5, 0.95, 0.99)

_SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')
_LABEL = re.compile(r'([a-z]+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Reading:
    """What a mount said at one moment."""

    at: float
    """Seconds, of a clock that only goes forward."""
    status: Mapping[str, Any]
    figures: Mapping[tuple[str, tuple[str, ...]], float]
    """(Name, values of its labels) -> value of each metric."""


@dataclass(slots=True)
class Pace:
    """What a mount did in between, each a second; None where nothing tells."""

    seconds: float
    requests: float = 0.0
    errors: float = 0.0
    operations: dict[str, float] = field(default_factory=dict)
    """Requests a second by operation, the most frequent first."""
    bytes: float | None = None
    """Bytes that readers got."""
    hit_rate: float | None = None
    """Of uses of shards: the share that found theirs in memory."""
    latency: dict[str, float | None] = field(default_factory=dict)
    """`p50` and so on -> seconds that so many requests took at most, in the steps of the histogram (inf: more than its
    last); None without requests."""


def parse(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Metrics as a mount exposes them. What is no line of a metric is passed over."""
    found = {}
    for line in text.splitlines():
        matched = None if line.startswith("#") else _SAMPLE.fullmatch(line)
        if matched is None:
            continue
        try:
            value = float(matched[3])
        except ValueError:
            continue
        found[matched[1], tuple(value for _, value in _LABEL.findall(matched[2] or ""))] = value
    return found


def pace(before: Reading, after: Reading) -> Pace:
    """What happened between two readings of one mount; the later one alone where another process serves it by now."""
    same = before.status.get("pid") == after.status.get("pid")
    old: Mapping[tuple[str, tuple[str, ...]], float] = before.figures if same else {}
    seconds = max(after.at - before.at, 1e-9)
    made = Pace(seconds)

    def grown(name: str, labels: tuple[str, ...]) -> float:
        return max(0.0, after.figures[name, labels] - old.get((name, labels), 0.0))

    operations = {}
    for name, labels in after.figures:
        if name == "shardfs_requests_total":
            operations[labels[0]] = grown(name, labels)
        elif name == "shardfs_errors_total" and labels[-1] != "ENOENT":
            made.errors += grown(name, labels) / seconds
        elif name in ("shardfs_served_bytes_total", "shardfs_given_bytes_total"):
            made.bytes = (made.bytes or 0.0) + grown(name, labels) / seconds
    made.requests = sum(operations.values()) / seconds
    ordered = sorted(operations.items(), key=lambda item: -item[1])
    made.operations = {name: count / seconds for name, count in ordered if count}
    made.latency = _latency(after, grown)
    made.hit_rate = _hit_rate(before.status if same else {}, after.status)
    return made


def _latency(after: Reading, grown: Any) -> dict[str, float | None]:
    counts: dict[float, float] = {}
    for name, labels in after.figures:
        if name == "shardfs_request_seconds_bucket":
            bound = math.inf if labels[1] == "+Inf" else float(labels[1])
            counts[bound] = counts.get(bound, 0.0) + grown(name, labels)
    whole = counts.get(math.inf, 0.0)
    made: dict[str, float | None] = {}
    for part in QUANTILES:
        wanted = part * whole
        made[f"p{part * 100:.0f}"] = next(
            (bound for bound in sorted(counts) if whole and counts[bound] >= wanted), None
        )
    return made


def _hit_rate(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    then, now = before.get("cache") or {}, after.get("cache") or {}
    hits = now.get("hits", 0) - then.get("hits", 0)
    misses = now.get("misses", 0) - then.get("misses", 0)
    return hits / (hits + misses) if hits + misses > 0 else None
