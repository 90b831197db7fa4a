"""Counters and histograms of one process, and their text in the format that Prometheus reads. Plain and thread-safe.

Adding is a few operations on plain numbers, as it stands in the way of every request. Each operation has one writer
(the event loop); readers in other threads see whole numbers, of which some may be a moment younger than others. Knows
nothing of what is counted.
"""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter

BOUNDS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
"""Upper bounds of a latency's buckets, in seconds: a request answered from memory; a rendering; a small load; a load;
a large load, or a store far away; what somebody will complain about."""


class Latency:
    """Calls of one operation: how many, and how long those took that had to wait. One writer at a time."""

    __slots__ = ("count", "seconds", "slower")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.slower = [0] * len(BOUNDS)
        """Calls above each bound and not above the next."""

    def add(self, seconds: float) -> None:
        """One call ended that took so long."""
        self.count += 1
        self.waited(seconds)

    def waited(self, seconds: float) -> None:
        """A call that is counted already took so long. One of which this is not said took less than the first bound,
        and no part in the sum."""
        self.seconds += seconds
        if seconds > BOUNDS[0]:
            self.slower[bisect_left(BOUNDS, seconds) - 1] += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """`waited`, with the time that the block takes."""
        begun = perf_counter()
        try:
            yield
        finally:
            self.waited(perf_counter() - begun)

    def buckets(self) -> list[int]:
        """Calls that took no longer than each bound, and, last, all."""
        slower, count = list(self.slower), self.count
        return [count - sum(slower[at:]) for at in range(len(BOUNDS))] + [count]


class Meter:
    """What a mount's requests came to."""

    def __init__(self) -> None:
        self.operations: defaultdict[str, Latency] = defaultdict(Latency)
        """By name; made when one is first added to."""
        self.served = 0
        """Bytes that reads were answered with. One writer, as an operation has."""
        self.given = 0
        """Bytes of small files that the kernel was given before it asked."""
        self._errors: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def requests(self) -> int:
        """Requests so far."""
        return sum(seen.count for seen in self.operations.values())

    def gave(self, size: int) -> None:
        """The kernel was given so many bytes; called in any thread."""
        with self._lock:
            self.given += size

    def failed(self, operation: str, code: str) -> None:
        """An operation ended with an error, by its name (`ENOENT`)."""
        with self._lock:
            self._errors[operation, code] = self._errors.get((operation, code), 0) + 1

    def errors(self) -> dict[tuple[str, str], int]:
        """Errors so far, by operation and name."""
        with self._lock:
            return dict(self._errors)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its labels."""

    name: str
    kind: str
    """`counter` or `gauge`."""
    help: str
    samples: Iterable[tuple[Mapping[str, str], float]] = field(default_factory=list)


def family(name: str, kind: str, text: str, value: float) -> Family:
    """A metric without labels."""
    return Family(name, kind, text, [({}, value)])


def exposition(families: Iterable[Family], meter: Meter, prefix: str) -> str:
    """The text of all of them, the requests of a meter first: the text format's version 0.0.4."""
    lines = _requests(meter, prefix)
    for one in families:
        lines += _head(f"{prefix}_{one.name}", one.kind, one.help)
        lines += [_line(f"{prefix}_{one.name}", labels, value) for labels, value in one.samples]
    return "\n".join(lines) + "\n"


def _requests(meter: Meter, prefix: str) -> list[str]:
    name = f"{prefix}_request_seconds"
    operations = sorted(meter.operations.items())
    lines = _head(f"{prefix}_requests_total", "counter", "Requests of the kernel that were answered, by operation.")
    lines += [_line(f"{prefix}_requests_total", {"operation": each}, seen.count) for each, seen in operations]
    lines += _head(f"{prefix}_errors_total", "counter", "Requests that were answered with an error.")
    lines += [
        _line(f"{prefix}_errors_total", {"operation": each, "errno": code}, count)
        for (each, code), count in sorted(meter.errors().items())
    ]
    lines += _head(name, "histogram", "Seconds that a request took; one that was answered at once counts as 0.")
    for each, seen in operations:
        buckets, seconds = seen.buckets(), seen.seconds
        for bound, count in zip((*BOUNDS, "+Inf"), buckets, strict=True):
            lines.append(_line(f"{name}_bucket", {"operation": each, "le": str(bound)}, count))
        lines.append(_line(f"{name}_sum", {"operation": each}, seconds))
        lines.append(_line(f"{name}_count", {"operation": each}, buckets[-1]))
    return lines


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {_escaped(text)}", f"# TYPE {name} {kind}"]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text, quotes=True)}"' for label, text in labels.items())
    return f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"


def _escaped(text: str, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
