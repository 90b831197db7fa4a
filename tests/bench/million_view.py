"""A view of a million samples by a label of a thousand, measured: `python -m tests.bench.million_view`.

The benchmark's set `many` (1,000 shards of 1,000 light samples, zst), shown by `--view by:label`. Each round mounts it
twice with the index that `shardfs index --light` makes: once when nobody has looked at the view before, and once more
(what the first mount has made is kept beside the index). Each time: seconds of the mount command, of the first listing
of one label's directory, and of `find -type f` over everything, twice; processor time of the daemon in each, and its
peak of memory. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import machine
from tests.bench.datasets import FULL, QUICK
from tests.bench.forms import Place, say

_SECONDS = 1800
_LABEL = "500"
_MOUNTS = ("first", "again")
_BUDGET_MIB = 256
_LISTED = 1.0
_FOUND = 300_000
_REST_MIB = 200
"""What is wanted: seconds at most, entries a second at least, and MiB of memory at most beside the budget."""


class Mounted:
    """The view of a store, served. `cache` holds its index."""

    def __init__(self, store: Path, cache: Path) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="million-")) / "mnt"
        self._environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
        words = ["mount", str(store), str(self.path), "--view", "by:label", "--memory", f"{_BUDGET_MIB}M"]
        begun = time.perf_counter()
        self._shardfs(*words)
        self.seconds = time.perf_counter() - begun
        self.pid = int(json.loads((self.path / ".shardfs" / "status.json").read_text())["pid"])

    def _shardfs(self, *words: str) -> None:
        program = [sys.executable, "-m", "shardfs", *words]
        subprocess.run(program, check=True, timeout=_SECONDS, env=self._environment, cwd=machine.REPOSITORY)

    def timed(self, work: Callable[[], int], wanted: int) -> dict[str, float]:
        """Seconds, and the daemon's processor time, of what must count so many files."""
        before, begun = machine.usage(self.pid), time.perf_counter()
        files = work()
        took, after = time.perf_counter() - begun, machine.usage(self.pid)
        if files != wanted:
            raise SystemExit(f"bench: {files} files instead of {wanted}")
        return {
            "seconds": took,
            "daemon_cpu": after.user + after.system - before.user - before.system,
            "files": files,
        }

    def found(self) -> int:
        done = subprocess.run(
            "find . -type f | wc -l", shell=True, cwd=self.path, capture_output=True, check=True, timeout=_SECONDS
        )
        return int(done.stdout)

    def end(self) -> None:
        words = [sys.executable, "-m", "shardfs", "umount", str(self.path)]
        subprocess.run(words, timeout=_SECONDS, env=self._environment, cwd=machine.REPOSITORY)
        machine.unmount(self.path)  # where that failed; on a busy machine the process may end a little later
        if not machine.is_mounted(self.path):
            shutil.rmtree(self.path.parent)


def once(store: Path, cache: Path, files: int, labelled: int) -> dict[str, Any]:
    """One cold mount: all its figures."""
    machine.make_cold(store)
    mounted = Mounted(store, cache)
    try:
        label = mounted.path / _LABEL
        figures: dict[str, Any] = {"mount": mounted.seconds}
        figures["listing"] = mounted.timed(lambda: len(os.listdir(label)), labelled)
        figures["find"] = mounted.timed(mounted.found, files)
        figures["find again"] = mounted.timed(mounted.found, files)
        figures["peak_mib"] = machine.usage(mounted.pid).peak_mib
        return figures
    finally:
        mounted.end()


def index(store: Path, kept: Path) -> None:
    """The index of the store with its light fields, once."""
    if kept.exists():
        return
    say("indexing")
    begun = time.perf_counter()
    making = kept.with_name("making")
    shutil.rmtree(making, ignore_errors=True)
    words = [sys.executable, "-m", "shardfs", "index", "--light", str(store)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(making)}
    subprocess.run(words, check=True, capture_output=True, timeout=_SECONDS, env=environment, cwd=machine.REPOSITORY)
    making.rename(kept)
    say(f"indexed in {time.perf_counter() - begun:.0f} s")


def _lines(records: list[dict[str, dict[str, Any]]]) -> list[str]:
    made = [f"{'mount':8}{'what':14}{'seconds':>9}{'entries/s':>12}{'daemon s':>10}"]
    for which in _MOUNTS:
        rounds = [one[which] for one in records]
        made.append(f"{which:8}{'mount':14}{statistics.median(one['mount'] for one in rounds):9.2f}")
        for what in ("listing", "find", "find again"):
            seconds = statistics.median(one[what]["seconds"] for one in rounds)
            rate = statistics.median(one[what]["files"] / one[what]["seconds"] for one in rounds)
            spent = statistics.median(one[what]["daemon_cpu"] for one in rounds)
            made.append(f"{which:8}{what:14}{seconds:9.2f}{rate:12,.0f}{spent:10.2f}")
        peak = statistics.median(one["peak_mib"] for one in rounds)
        made.append(f"{which:8}{'peak, MiB':14}{peak:9.0f}  (wanted: below {_BUDGET_MIB} + {_REST_MIB})")
    return [*made, f"wanted: a listing in {_LISTED:.0f} s, {_FOUND:,} entries a second"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.million_view", description="Measures a large view.")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the samples: a test, not a figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", metavar="DIR", help="where the data is kept (default: ~/.cache/shardfs-bench)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    arguments = parser.parse_args()
    root = Path(arguments.data or os.path.expanduser("~/.cache/shardfs-bench")).resolve()
    data, kind = ((QUICK if arguments.quick else FULL)["many"], "quick" if arguments.quick else "full")
    place = Place(data, root / kind / data.name)
    store = place.make("zst")
    kept = place.root / "index"
    index(store, kept)
    labels = [sample["label"] for shard in range(data.shards) for sample in data.shard(shard)]
    records: list[dict[str, dict[str, Any]]] = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory(prefix="million-", dir=place.root) as cache:
            shutil.copytree(kept, cache, dirs_exist_ok=True)
            found = {which: once(store, Path(cache), len(labels), labels.count(int(_LABEL))) for which in _MOUNTS}
        records.append(found)
        say(f"round {number + 1}: {json.dumps(found)}")
    facts = {**machine.facts(root), "samples": len(labels), "load at the end": os.getloadavg()[0]}
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"machine": facts, "records": records}, indent=1))
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), end="\n\n")
    print("\n".join(_lines(records)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
