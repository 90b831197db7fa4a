"""Plays a run of operations: for tests, and as a program for replaying one that failed, and for long ones.

A run is a seed and a count; what differs is said with the command that shows it again. `--shorten` leaves out what is
not needed for it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.model.operations import Dice, Operation
from tests.model.player import Player
from tests.model.systems import InProcess, Mounted, System

KINDS: dict[str, type[System]] = {"process": InProcess, "mount": Mounted}


class Failure(AssertionError):
    """A run in which something differed, and how to see it again."""


def attempt(kind: str, operations: list[Operation]) -> tuple[int, Exception] | None:
    """The number of the operation that something was wrong with, and what; None if all was well."""
    with tempfile.TemporaryDirectory(prefix="shardfs-model-", ignore_cleanup_errors=True) as folder:
        system = KINDS[kind](Path(folder).resolve())
        number, mask = 0, os.umask(0o022)
        try:
            player = Player(system)
            while number < len(operations):
                player.play(operations[number])
                number += 1
            player.end()
        except Exception as error:
            if isinstance(system, InProcess):
                with contextlib.suppress(Exception):
                    system.kill()
            return number, error
        finally:
            os.umask(mask)
            if isinstance(system, Mounted):
                system.wipe()
    return None


def run(kind: str, seed: int, count: int) -> int:
    """How many operations were played without a difference: all. Failure, with the command that shows it again."""
    operations = Dice(seed).operations(count)
    failed = attempt(kind, operations)
    if failed is not None:
        number, error = failed
        last = " ".join(map(str, operations[max(0, number - 3) : number + 1]))
        raise Failure(
            f"step {number} of seed {seed}: {type(error).__name__}: {error}\nafter {last}\nto see it again: "
            f".venv/bin/python -m tests.model.play --kind {kind} --seed {seed} --steps {count} --shorten"
        ) from error
    return len(operations)


def seeds(runs: int) -> list[int]:
    """One for each run, out of SHARDFS_MODEL_SEED or, without that, of nothing that was there before."""
    given = os.environ.get("SHARDFS_MODEL_SEED")
    first = random.SystemRandom().randrange(1 << 30) if given is None else int(given)
    print(f"SHARDFS_MODEL_SEED={first}", file=sys.stderr)
    return list(range(first, first + runs))


def shortened(kind: str, operations: list[Operation], seconds: float) -> list[Operation]:
    """Fewer operations after which something differs still."""
    end, size = time.monotonic() + seconds, max(1, len(operations) // 2)
    while time.monotonic() < end:
        at, before = 0, len(operations)
        while at < len(operations) and time.monotonic() < end:
            fewer = operations[:at] + operations[at + size :]
            failed = attempt(kind, fewer)
            if failed is None:
                at += size
            else:
                operations = fewer[: failed[0] + 1]
        if size == 1 and len(operations) == before:
            break
        size = max(1, size // 2)
    return operations


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.play", description=__doc__)
    parser.add_argument("--kind", choices=KINDS, default="process")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--steps", type=int, default=500, help="operations in a run")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--shorten", action="store_true", help="show the fewest operations that do it")
    given = parser.parse_args()
    began = time.monotonic()
    for seed in range(given.seed, given.seed + given.runs):
        operations = Dice(seed).operations(given.steps)
        failed = attempt(given.kind, operations)
        if failed is None:
            print(f"seed {seed}: {given.steps} steps, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            continue
        print(f"seed {seed}, step {failed[0]}: {failed[1]!r}", file=sys.stderr)
        operations = operations[: failed[0] + 1]
        if given.shorten:
            operations = shortened(given.kind, operations, 120)
            failed = attempt(given.kind, operations)
            print(*operations, "" if failed is None else repr(failed[1]), sep="\n")
        if failed is not None and given.shorten:
            raise failed[1]
        return 1
    seconds = time.monotonic() - began
    print(f"{given.runs} runs of {given.steps} from seed {given.seed}, {given.kind}: no difference, {seconds:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
