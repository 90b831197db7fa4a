"""Medians, ratios pair by pair, goals met and missed, and the tables of them. Pure: records in, text out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.bench.goals import (
    FLOORS,
    GOALS,
    MEMORY_BUDGET_MIB,
    MEMORY_REST_MIB,
    MEMORY_SHARDS,
    MEMORY_WORK,
    WORKS,
    Goal,
    Work,
)


@dataclass(frozen=True, slots=True)
class Record:
    """One run of one work on one target. `passes` also has `daemon` (its use of the machine) or `failed`."""

    round: int
    work: str
    target: str
    passes: dict[str, dict[str, Any]]
    load: float
    """The machine's load average before it."""


def figure(work: Work, found: dict[str, Any]) -> float:
    """In the work's unit."""
    if work.unit == "ratio":
        return float(found["ratio"])
    seconds = max(float(found["seconds"]), 1e-9)
    if work.unit == "s":
        return seconds
    if work.unit == "files/s":
        return float(found["files"]) / seconds
    return float(found["bytes"]) / 1e6 / seconds


class Results:
    """Records by work, pass and target."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        self.works = {work.full_name: work for work in WORKS}

    def figures(self, work: str, phase: str, target: str) -> dict[int, float]:
        """By round."""
        chosen = self.works[work]
        return {
            record.round: figure(chosen, record.passes[phase])
            for record in self.records
            if record.work == work and record.target == target and phase in record.passes
        }

    def ratio(self, work: str, phase: str, target: str, other: str) -> list[float]:
        """How many times as fast as the other the target was, in each round that has both."""
        ours, theirs = self.figures(work, phase, target), self.figures(work, phase, other)
        slower_is_more = self.works[work].unit == "s"
        pairs = [(ours[number], theirs[number]) for number in ours if number in theirs]
        return [b / a if slower_is_more else a / b for a, b in pairs]

    def targets(self, work: str) -> list[str]:
        """In the order in which they were first measured."""
        return list(dict.fromkeys(record.target for record in self.records if record.work == work))

    def phases(self, work: str) -> list[str]:
        """That at least one target has."""
        found = {phase for record in self.records if record.work == work for phase in record.passes}
        return [phase for phase in self.works[work].passes if phase in found]

    def daemon(self, work: str, target: str, what: str) -> list[float]:
        """`user`, `system` or `peak_mib` in each round."""
        return [
            float(record.passes["daemon"][what])
            for record in self.records
            if record.work == work and record.target == target and "daemon" in record.passes
        ]

    def cpu_per_1000(self, work: str, phase: str, target: str) -> list[float]:
        """Seconds of the daemon's processor for 1,000 files, in each round."""
        found = []
        for record in self.records:
            passed = record.passes.get(phase, {})
            if record.work == work and record.target == target and passed.get("files") and "daemon_cpu" in passed:
                found.append(passed["daemon_cpu"] * 1000 / passed["files"])
        return found

    def failures(self) -> list[str]:
        return [
            f"{record.work} {record.target}, round {record.round}: {record.passes['failed']['reason']}"
            for record in self.records
            if "failed" in record.passes
        ]

    def partly(self, work: str, phase: str, target: str) -> bool:
        """Did time end before the work did, in some round?"""
        return any(
            "part" in record.passes.get(phase, {}) or "stopped" in record.passes.get(phase, {})
            for record in self.records
            if record.work == work and record.target == target
        )


# --- tables ----------------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits that count, or whole numbers."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _cell(value: float | None) -> str:
    return "" if value is None else number(value)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(cells: list[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def work_table(results: Results, work: str) -> list[str]:
    """A row for each target and pass: median, smallest and largest, speed against the floors, processor, memory."""
    unit = results.works[work].unit
    lines = [f"### {work} ({unit})", ""]
    lines += _head(
        ["target", "pass", "median", "range", *(f"x {floor}" for floor in FLOORS), "CPU s/1,000", "peak MiB"]
    )
    for phase in results.phases(work):
        for target in results.targets(work):
            found = list(results.figures(work, phase, target).values())
            if not found:
                continue
            mark = "~" if results.partly(work, phase, target) else ""
            ratios = [_cell(_median(results.ratio(work, phase, target, floor))) for floor in FLOORS]
            used = _cell(_median(results.cpu_per_1000(work, phase, target)))
            peak = results.daemon(work, target, "peak_mib")
            spread = f"{number(min(found))} - {number(max(found))}" if len(found) > 1 else ""
            middle = mark + number(statistics.median(found))
            lines.append(_row([target, phase, middle, spread, *ratios, used, _cell(max(peak)) if peak else ""]))
    return [*lines, ""]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal and what was found; `met` is None where it was not measured."""

    goal: str
    wanted: str
    found: str
    met: bool | None


def _verdict(results: Results, goal: Goal) -> Verdict:
    where = f"{goal.text} [{goal.work} {goal.phase}]"
    if not goal.other:
        value = _median(results.figures(goal.work, goal.phase, goal.subject).values())
        met = None if value is None else value <= goal.limit
        return Verdict(f"{where}: {goal.subject}", f"<= {goal.limit}", _cell(value), met)
    ratios = results.ratio(goal.work, goal.phase, goal.subject, goal.other)
    value = _median(ratios)
    partly = "<=" if results.partly(goal.work, goal.phase, goal.subject) else ""
    if results.partly(goal.work, goal.phase, goal.other) and results.works[goal.work].unit == "s":
        partly = ">="  # the other was stopped, so it would have taken longer still
    text = "" if value is None else f"{partly}{number(value)}"
    met = None if value is None else value >= goal.factor
    return Verdict(f"{where}: {goal.subject} / {goal.other}", f">= {goal.factor:g}", text, met)


def _memory_verdict(results: Results, largest_mib: float) -> Verdict:
    limit = MEMORY_BUDGET_MIB + MEMORY_SHARDS * largest_mib + MEMORY_REST_MIB
    peaks = results.daemon(MEMORY_WORK, "shardfs-zst", "peak_mib")
    text = f"peak memory at 1M files, budget {MEMORY_BUDGET_MIB} MiB, MiB [{MEMORY_WORK}]: shardfs-zst"
    return Verdict(text, f"<= {limit:.0f}", _cell(max(peaks, default=None)), max(peaks) <= limit if peaks else None)


def verdicts(results: Results, largest_mib: float) -> list[Verdict]:
    """What became of each goal. `largest_mib` is the raw size of the largest shard of the memory work."""
    return [*(_verdict(results, goal) for goal in GOALS), _memory_verdict(results, largest_mib)]


def goal_table(found: list[Verdict]) -> list[str]:
    """Those that were measured, and how many were not."""
    lines = ["### Goals", "", *_head(["goal", "wanted", "found", ""])]
    measured = [one for one in found if one.met is not None]
    lines += [_row([one.goal, one.wanted, one.found, "met" if one.met else "missed"]) for one in measured]
    return [*lines, "", f"{len(found) - len(measured)} goals were not measured.", ""]


def tables(results: Results, largest_mib: float) -> str:
    """All of it, as Markdown."""
    lines: list[str] = []
    for work in results.works:
        if results.phases(work):
            lines += work_table(results, work)
    lines += goal_table(verdicts(results, largest_mib))
    if failures := results.failures():
        lines += ["### Failures", "", *(f"- {failure}" for failure in failures), ""]
    lines.append("x: how many times as fast, median of the ratios within each round. ~: stopped before it was done.")
    return "\n".join(lines)
