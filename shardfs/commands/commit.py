"""`shardfs commit`: has a mount store what was written to it. Exit status 0 only if all of it is in the store."""

from __future__ import annotations

import argparse
import sys

from shardfs import control, daemon
from shardfs.commands import OK, as_json, storing, tell
from shardfs.commands.storing import Outcome
from shardfs.errors import NotWritableError


def run(arguments: argparse.Namespace) -> int:
    mounted = daemon.mounted_at(daemon.resolved(arguments.mountpoint))
    if mounted is not None and mounted.fstype == daemon.FSTYPE and mounted.read_only:
        raise NotWritableError(f"{arguments.mountpoint} is mounted read-only: there is nothing to store")
    # as a shell completes a key below the mount point
    outcome = storing.commit(arguments.mountpoint, [key.rstrip("/") or key for key in arguments.key])
    if arguments.json:
        print(as_json(_facts(outcome)))
    else:
        for one in outcome.stored:
            print(storing.result(one))
        if (shown := storing.changed(outcome.stored)) is not None:
            tell("what the store has no word for, and what it has become:")
            print(shown, file=sys.stderr)
        for line in storing.reasons(outcome):
            tell(line)
        if outcome.status == OK and not outcome.stored:
            tell("there is nothing to store")
    if sys.stdout is not None:
        sys.stdout.flush()
    return outcome.status


def _facts(outcome: Outcome) -> dict[str, object]:
    failed = [{"key": key, **control.error_as_json(error)} for key, error in outcome.failed]
    return {"stored": outcome.stored, "failed": failed, "nothing": outcome.nothing, "staged": outcome.staged}
