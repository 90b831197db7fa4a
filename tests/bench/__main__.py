"""The command: chooses works and targets, makes what they need, measures in turn, prints tables.

Whatever it starts it ends, by number; a signal ends it the same way as an error does.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from tests.bench import machine, mounting, report, tools, works
from tests.bench.datasets import FULL, QUICK
from tests.bench.forms import Place, say
from tests.bench.goals import WORKS, Work
from tests.bench.targets import Target, Tools, command_target, folder_target, index_command, known_targets

_RUNS = 5
_QUICK_RUNS = 1
_LEFT_OUT_OF_QUICK = ("shardfs-zst", "shardfs-mdszst")
_INDEX_SECONDS = 600


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./run bench", description="Measures shardfs beside what it is compared with."
    )
    parser.add_argument("--quick", action="store_true", help="a twentieth of the data, one round: a test, not a figure")
    parser.add_argument(
        "--only", metavar="WORK,...", default="", help="works (small.find), sets (small) or kinds (find)"
    )
    parser.add_argument("--targets", metavar="NAME,...", default="", help="only these")
    parser.add_argument("--runs", type=int, metavar="N", help=f"rounds (default {_RUNS}, with --quick {_QUICK_RUNS})")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--data", metavar="DIR", help="where the data is kept (default: ~/.cache/shardfs-bench)")
    parser.add_argument(
        "--target", action="append", default=[], metavar="NAME=PATH", help="a directory with the loose files' tree"
    )
    parser.add_argument(
        "--target-cmd",
        action="append",
        default=[],
        metavar="NAME=CMD",
        help="a command that mounts in the foreground; {mnt}, {set}, {gz}, {zst}, {mds}, {loose}, ... are filled in",
    )
    parser.add_argument("--passthrough", metavar="CMD", help="use CMD SOURCE MOUNTPOINT instead of passthrough.c")
    parser.add_argument("--install-peers", action="store_true", help="install ratarmount for the benchmark, and end")
    parser.add_argument("--list", action="store_true", help="list works and targets, and end")
    return parser


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be measured, in this order."""

    data: Path
    quick: bool
    rounds: int
    cells: list[tuple[Work, list[Target]]]

    def place(self, work: Work) -> Place:
        sets = QUICK if self.quick else FULL
        return Place(sets[work.data], self.data / ("quick" if self.quick else "full") / work.data)


def _chosen_works(only: str) -> list[Work]:
    wanted = [word for word in only.split(",") if word]
    for word in wanted:
        if not any(word in (work.full_name, work.data, work.name) for work in WORKS):
            names = ", ".join(work.full_name for work in WORKS)
            raise SystemExit(f"bench: no work {word!r}; there are {names}, and the words before and after the dot")
    return [
        work for work in WORKS if not wanted or any(word in (work.full_name, work.data, work.name) for word in wanted)
    ]


def _plan(arguments: argparse.Namespace, data: Path) -> tuple[Plan, Tools]:
    found = tools.find_tools(data, arguments.passthrough)
    known = known_targets(found)
    try:
        extra = [folder_target(text) for text in arguments.target] + [
            command_target(text) for text in arguments.target_cmd
        ]
    except ValueError as error:
        raise SystemExit(f"bench: {error}") from error
    wanted = {word for word in arguments.targets.split(",") if word}
    if unknown := wanted - known.keys() - {target.name for target in extra}:
        raise SystemExit(f"bench: no target {', '.join(sorted(unknown))} here; there are {', '.join(known)}")
    cells = []
    for work in _chosen_works(arguments.only):
        targets = [known[name] for name in work.targets if name in known and (not wanted or name in wanted)]
        if arguments.quick and not wanted and work.data != "many":
            targets = [target for target in targets if target.name not in _LEFT_OUT_OF_QUICK]
        fitting = [target for target in extra if target.form == "loose" or work.data != "many"]
        cells.append((work, targets + ([] if work.kind == "remount" else fitting)))
    rounds = arguments.runs or (_QUICK_RUNS if arguments.quick else _RUNS)
    return Plan(data, arguments.quick, rounds, cells), found


def _prepare(plan: Plan, found: Tools, scratch: Path) -> None:
    """Make the data, ratarmount's indexes, and whatever shardfs keeps of a store that it has mounted before."""
    done: set[tuple[str, str]] = set()
    for work, targets in plan.cells:
        place = plan.place(work)
        if work.data != "many":
            place.make("loose")
        for target in targets:
            if (work.data, target.form) in done:
                continue
            done.add((work.data, target.form))
            place.make(target.form)
            if target.name.startswith("ratarmount") and (words := index_command(found, place, target.form)):
                subprocess.run(
                    words, check=True, timeout=_INDEX_SECONDS, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
                )
            if target.ours:
                with mounting.serving(target, place, scratch) as served:
                    subprocess.run(["find", str(served.root)], check=True, timeout=300, stdout=subprocess.DEVNULL)


def _measure(plan: Plan, bench: works.Bench) -> list[report.Record]:
    """Each work: all targets in turn, in the next round in reverse. Control-C ends it with what there is so far."""
    records: list[report.Record] = []
    total = plan.rounds * sum(len(targets) for _, targets in plan.cells)
    try:
        for work, targets in plan.cells:
            for number in range(1, plan.rounds + 1):
                for target in targets if number % 2 else reversed(targets):
                    load = os.getloadavg()[0]
                    passes = works.run(bench, work, target, plan.place(work))
                    records.append(report.Record(number, work.full_name, target.name, passes, load))
                    said = ", ".join(
                        f"{phase} {report.number(report.figure(work, passes[phase]))}"
                        for phase in work.passes
                        if phase in passes
                    )
                    said = said or f"FAILED: {passes['failed']['reason']}"
                    say(f"{len(records)}/{total} {work.full_name} {target.name}: {said} {work.unit}")
    except KeyboardInterrupt:
        say("interrupted: reporting what there is")
    return records


@contextlib.contextmanager
def _alone(data: Path) -> Iterator[None]:
    """No two benchmarks at once on the same data."""
    with (data / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another benchmark is running: waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _data_directory(given: str | None) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    data = Path(given) if given else Path(cache) / "shardfs-bench"
    data = data.resolve()
    if data.is_relative_to(machine.REPOSITORY):
        raise SystemExit(f"bench: {data} is inside the checkout; name another place with --data")
    data.mkdir(parents=True, exist_ok=True)
    return data


def _largest_shard_mib(plan: Plan) -> float:
    """Raw, of the set that memory is measured with: its samples are all alike."""
    data = (QUICK if plan.quick else FULL)["many"]
    return data.samples * len(data.files(data.sample(0, 0))[0]) / (1 << 20)


def _show_list(plan: Plan) -> None:
    for work, targets in plan.cells:
        threads = (
            f"{work.threads} threads, {'shuffled' if work.shuffled else 'in order'}" if work.kind == "read" else ""
        )
        print(f"{work.full_name:18}{work.unit:9}{threads:24}{' '.join(target.name for target in targets)}")


def main() -> int:
    arguments = _parser().parse_args()
    data = _data_directory(arguments.data)
    if arguments.install_peers:
        tools.install_peers(data)
        return 0
    plan, found = _plan(arguments, data)
    if arguments.list:
        _show_list(plan)
        return 0
    signal.signal(signal.SIGTERM, _terminated)
    if not machine.can_drop():
        say("not root: 'cold' means a fresh mount and stored files dropped from the page cache; there is no pass 'hot'")
    with _alone(data):
        facts = machine.facts(data)
        # beside the data, so that everything lies on one file system
        scratch = Path(tempfile.mkdtemp(prefix="run-", dir=data))
        try:
            _prepare(plan, found, scratch)
            bench = works.Bench(tools.client(data), scratch)
            records = _measure(plan, bench)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    results = report.Results(records)
    largest = _largest_shard_mib(plan)
    if arguments.json:
        judged = [asdict(verdict) for verdict in report.verdicts(results, largest)]
        document = {"machine": facts, "quick": plan.quick, "records": [asdict(one) for one in records], "goals": judged}
        Path(arguments.json).write_text(json.dumps(document, indent=1))
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), end="\n\n")
    print(report.tables(results, largest))
    return 1 if results.failures() else 0


if __name__ == "__main__":
    sys.exit(main())
