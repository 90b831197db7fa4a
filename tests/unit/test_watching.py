"""What `shardfs top` makes of two readings of a mount, and lines that fit a terminal."""

from __future__ import annotations

import math

import pytest

from shardfs.commands.screen import cut, listed, wrapped
from shardfs.metrics import Meter, exposition, family
from shardfs.watching import Reading, pace, parse


def reading(meter: Meter, at: float, served: int, hits: int = 0, misses: int = 0, pid: int = 1) -> Reading:
    families = [
        family("served_bytes_total", "counter", "", served),
        family("given_bytes_total", "counter", "", 0),
        family("resident_bytes", "gauge", "", 5),
    ]
    status = {"pid": pid, "cache": {"hits": hits, "misses": misses}}
    return Reading(at, status, parse(exposition(families, meter, "shardfs")))


def test_rates_and_quantiles_are_of_what_came_between() -> None:
    meter = Meter()
    for seconds in (5.0, 5.0, 5.0):
        meter.operations["opendir"].add(seconds)
    before = reading(meter, 10.0, 1_000, hits=5, misses=5)
    for seconds in [0.00005] * 90 + [0.0005] * 6 + [0.5] * 4:
        meter.operations["read"].add(seconds)
    meter.failed("lookup", "ENOENT")
    meter.failed("read", "EIO")
    found = pace(before, reading(meter, 12.0, 5_000, hits=14, misses=6))
    assert (found.seconds, found.requests, found.errors, found.bytes) == (2.0, 50.0, 0.5, 2_000.0)
    assert found.operations == {"read": 50.0}
    assert found.hit_rate == 0.9
    assert found.latency == {"p50": 0.0001, "p95": 0.001, "p99": 1.0}


def test_nothing_happened_and_nothing_is_made_up() -> None:
    meter = Meter()
    found = pace(reading(meter, 1.0, 7), reading(meter, 2.0, 7))
    assert (found.requests, found.bytes, found.hit_rate, found.operations) == (0.0, 0.0, None, {})
    assert found.latency == {"p50": None, "p95": None, "p99": None}


def test_what_takes_longer_than_the_last_step() -> None:
    meter = Meter()
    meter.operations["read"].add(11.0)
    assert pace(reading(Meter(), 0.0, 0), reading(meter, 1.0, 0)).latency["p50"] == math.inf


def test_another_process_begins_at_nothing() -> None:
    meter, later = Meter(), Meter()
    for _ in range(100):
        meter.operations["read"].add(0.0)
    later.operations["read"].add(0.0)
    found = pace(reading(meter, 0.0, 900, hits=9), reading(later, 1.0, 10, hits=1, misses=1, pid=2))
    assert (found.requests, found.bytes, found.hit_rate) == (1.0, 10.0, 0.5)


def test_labels_with_quotes_and_lines_that_are_none() -> None:
    text = '# TYPE a gauge\na{x="1",y="q\\"},"} 2\nb 3\nc nonsense\n\nd{ 4\ne NaN\n'
    found = parse(text)
    assert (found["a", ("1", 'q\\"},')], found["b", ()], len(found)) == (2.0, 3.0, 3)


@pytest.mark.parametrize(
    ("names", "columns", "said"),
    [
        (["a", "b"], 80, "a, b"),
        (["a", "b", "c", "d", "e"], 80, "a, b, c, and 2 more"),
        (["aaaaaaaaaa", "bbbbbbbbbb", "c"], 24, "aaaaaaaaaa, and 2 more"),
        (["a" * 50], 20, "a" * 17 + "..."),
        ([], 80, ""),
    ],
)
def test_names_as_they_fit(names: list[str], columns: int, said: str) -> None:
    assert listed(names, columns, 3) == said
    assert len(said) <= columns


def test_lines_as_they_fit() -> None:
    assert cut("abcdef", 5) == "ab..."
    lines = wrapped("shards: " + ", ".join(["1,234 loaded"] * 9), 40, "  ")
    assert len(lines) > 2
    assert max(map(len, lines)) <= 40
    assert " ".join(" ".join(lines).split()) == "shards: " + ", ".join(["1,234 loaded"] * 9)
    path = "/a-very-long-path/" * 9
    assert wrapped(path, 40, "  ") == [f"  {path}"], "a path is left whole, for copying"
