"""The works: what is done to a served target, and the figures that gives. Knows nothing of rounds, tables or goals."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import machine, writes
from tests.bench.forms import Place
from tests.bench.goals import MEMORY_BUDGET_MIB, MEMORY_WORK, Work
from tests.bench.mounting import NotServedError, Served, serving
from tests.bench.targets import Target

Figures = dict[str, Any]
"""Of one pass: seconds, and what was done in them."""
Passes = dict[str, Figures]

_LISTING_SECONDS = 60.0
_SPACES = 8
"""Bytes by which a `.json` may differ: see `_same`."""
_MORE_SECONDS = 30.0
"""What a helper may take beyond the time it was given for its work."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all works share."""

    client: list[str]
    scratch: Path
    """A directory for lists and mount points that is removed at the end."""


class FailedError(Exception):
    """A work gave no figures or wrong ones; the text says why."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One work on one target: what the functions below are given."""

    bench: Bench
    work: Work
    target: Target
    place: Place
    served: Served

    def spent(self) -> float:
        """Seconds of processor that the target's processes have used."""
        if self.served.pid is None:
            return 0.0
        used = machine.usage(self.served.pid)
        return used.user + used.system


def run(bench: Bench, work: Work, target: Target, place: Place) -> Passes:
    """Do the work once, on a fresh and cold mount. The figures of each pass, or `{"failed": {"reason": ...}}`."""
    try:
        if target.library is not None:
            return {"cold": _library(work, target, place)}
        limited = ("--memory", f"{MEMORY_BUDGET_MIB}M") if work.full_name == MEMORY_WORK else ()
        with serving(target, place, bench.scratch, limited) as served:
            cell = Cell(bench, work, target, place, served)
            passes = {**_KINDS, **writes.KINDS}[work.kind](cell)
            if served.pid is not None:
                used = machine.usage(served.pid)
                passes["daemon"] = {"user": used.user, "system": used.system, "peak_mib": used.peak_mib}
            if work.kind not in writes.KINDS:  # they look for themselves at what they have written
                _compare(cell)
            return passes
    except (FailedError, NotServedError, OSError, ValueError, subprocess.SubprocessError) as error:
        return {"failed": {"reason": str(error)[-300:]}}


def _command(words: list[str], seconds: float, cwd: Path | None = None) -> str:
    """Standard output of a command, which is killed when it takes too long. FailedError."""
    done = subprocess.run(
        words,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        raise FailedError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout


def _compare(cell: Cell) -> None:
    """Some files are compared with what they must hold; the rest are counted. FailedError."""
    data, layout = cell.place.data, cell.target.layout(cell.place)
    for shard, number in {(0, 0), (data.shards // 2, data.samples // 2), (data.shards - 1, data.samples - 1)}:
        contents = data.files(data.sample(shard, number))
        for path, content in zip(layout.paths(data, shard, number), contents, strict=True):
            if not _same((cell.served.root / path).read_bytes(), content, path):
                raise FailedError(f"{path} holds something else than it should")


def _same(found: bytes, wanted: bytes, path: str) -> bool:
    """Of `.json` it is the values that count: how they are spaced may differ between versions that are compared."""
    if path.endswith(".json"):
        return bool(json.loads(found) == json.loads(wanted))
    return found == wanted


# --- kinds of work ---------------------------------------------------------------------------------------------------


def _read(cell: Cell) -> Passes:
    """Files of a list: cold, again (warm), stat of each, and with the page cache alone emptied (hot)."""
    work, passes = cell.work, {}
    layout = cell.target.layout(cell.place)
    lines, files, size = cell.place.list_file(cell.bench.scratch, layout, work.shuffled)
    for phase in work.passes:
        if phase == "hot":
            if cell.served.pid is None or not machine.can_drop():
                continue
            _refill(cell)
        found = _client(cell, "stat" if phase == "stat" else "read", lines)
        passes[phase] = found
        if found["files"] == files and abs(found["bytes"] - size) > _SPACES * files:
            raise FailedError(f"{phase}: {found['bytes']} bytes instead of {size}")
        if found["files"] < files and phase == "cold":  # too slow: the passes that follow read what this one did
            kept = lines.read_text().splitlines(keepends=True)[: found["files"]]
            lines = lines.with_name("part")
            lines.write_text("".join(kept))
            found["part"] = found["files"] / files
            files = -1
    return passes


def _client(cell: Cell, mode: str, lines: Path, threads: int | None = None) -> Figures:
    chunk = str(len(cell.place.data.suffixes()))
    patience = cell.target.patience
    before = cell.spent()
    words = [*cell.bench.client, mode, str(cell.served.root), str(lines), str(threads or cell.work.threads), chunk]
    found: Figures = json.loads(_command([*words, str(patience)], patience + _MORE_SECONDS))
    found["daemon_cpu"] = cell.spent() - before
    if found["errors"]:
        raise FailedError(f"{found['errors']} of {found['files']} files fail, the first: {found['first_error']}")
    return found


def _refill(cell: Cell) -> None:
    """Empty the page cache, then fill it with what the daemon reads from, so that only the way through FUSE is left."""
    machine.drop_pages()
    form = cell.target.refill or cell.target.form
    stored = cell.place.path(form)
    if form == "loose":
        lines, _, _ = cell.place.list_file(cell.bench.scratch, cell.place.layout(form), False)
        _command([*cell.bench.client, "read", str(stored), str(lines), "8", "1", "60"], 60 + _MORE_SECONDS)
        return
    for file in [stored] if stored.is_file() else sorted(stored.rglob("*")):
        if file.is_file():
            file.read_bytes()


def _listing(cell: Cell) -> Passes:
    """find or ls -lR over everything, cold and again."""
    data, passes = cell.place.data, {}
    files = data.shards * data.samples * len(data.suffixes())
    find = cell.work.name == "find"
    script = "find . -type f | wc -l" if find else "ls -lRn . | grep -c ^-"
    for phase in cell.work.passes:
        before, begun = cell.spent(), time.perf_counter()
        try:
            words = ["timeout", "-k", "5", str(_LISTING_SECONDS), "sh", "-c", script]
            counted = int(_command(words, _LISTING_SECONDS + _MORE_SECONDS, cell.served.root))
        except FailedError:
            if time.perf_counter() - begun < _LISTING_SECONDS:
                raise
            passes[phase] = {"seconds": _LISTING_SECONDS, "files": files, "stopped": True}
            break
        took = time.perf_counter() - begun
        if counted != files:
            raise FailedError(f"{phase}: {counted} files listed instead of {files}")
        passes[phase] = {"seconds": took, "files": files, "daemon_cpu": cell.spent() - before}
    return passes


def _first(cell: Cell) -> Passes:
    """From the start of the mount command: mount, list of the root, files of the first sample of the middle shard."""
    data = cell.place.data
    mounted = time.perf_counter() - cell.served.begun
    os.listdir(cell.served.root)
    listed = time.perf_counter() - cell.served.begun
    for path in cell.target.layout(cell.place).paths(data, data.shards // 2, 0):
        (cell.served.root / path).read_bytes()
    seconds = time.perf_counter() - cell.served.begun
    return {"cold": {"seconds": seconds, "mounted": mounted, "listed": listed, "daemon_cpu": cell.spent()}}


def _remount(cell: Cell) -> Passes:
    """From the start of the mount command to the end of `ls -l` of a shard."""
    data = cell.place.data
    shard = cell.served.root / cell.target.layout(cell.place).key.format(data.shards // 2)
    mounted = time.perf_counter() - cell.served.begun
    lines = _command(["ls", "-ln", str(shard)], _LISTING_SECONDS).count("\n")
    seconds = time.perf_counter() - cell.served.begun
    if lines < data.samples:
        raise FailedError(f"ls -l shows {lines} lines instead of {data.samples}")
    return {"cold": {"seconds": seconds, "mounted": mounted, "daemon_cpu": cell.spent()}}


def _dd(cell: Cell) -> Passes:
    """Large files, each by dd from its begin to its end, cold and again."""
    layout, passes = cell.target.layout(cell.place), {}
    lines, _, size = cell.place.list_file(cell.bench.scratch, layout, False, f".{cell.place.data.suffix}")
    for phase in cell.work.passes:
        before, begun = cell.spent(), time.perf_counter()
        for path in lines.read_text().splitlines():
            words = ["dd", f"if={cell.served.root / path}", "of=/dev/null", "bs=1M", "status=none"]
            _command(words, _LISTING_SECONDS)
        took = time.perf_counter() - begun
        passes[phase] = {"seconds": took, "bytes": size, "daemon_cpu": cell.spent() - before}
    return passes


def _library(work: Work, target: Target, place: Place) -> Figures:
    """A whole epoch by the library itself, in one process; or the time until that process has its first sample."""
    assert target.library is not None
    machine.make_cold(place.path(target.form))
    found: Figures = json.loads(_command(target.library(place), target.patience * 2))
    wanted = place.data.shards * place.data.samples
    if found["samples"] != wanted:
        raise FailedError(f"{found['samples']} samples instead of {wanted}")
    if work.kind == "first":
        found["seconds"] = found["first"]
    return found


_KINDS: dict[str, Callable[[Cell], Passes]] = {
    "read": _read,
    "listing": _listing,
    "first": _first,
    "remount": _remount,
    "dd": _dd,
}
