"""Having a mount store what is staged, and telling what came of it: for `commit` and `umount` alike."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

from shardfs import config, control
from shardfs.commands import BUSY, FAILED, OK, one_line
from shardfs.commands.tabular import number, size, table
from shardfs.errors import BadSampleError, MissingKeyError, ShardfsError

_HINTS = {
    errno.EBUSY: "close what is open for writing and commit again",
    errno.ESTALE: "the store's own version is there, and `shardfs staging recover --to DIR` copies this one out",
}


@dataclass(slots=True)
class Outcome:
    """What became of the keys that were to be stored, from one answer or several."""

    stored: list[dict[str, Any]] = field(default_factory=list)
    """Each with `key`, `stored_bytes` (None if that is not known) and `left` (whether something of it is staged)."""
    failed: list[tuple[str, ShardfsError]] = field(default_factory=list)
    nothing: list[str] = field(default_factory=list)
    """Keys that had nothing to be stored."""
    staged: list[dict[str, Any]] = field(default_factory=list)
    """All that was staged in the end, as `staging list` has it."""

    @property
    def status(self) -> int:
        """The exit status that says it: BUSY only where trying again is all there is to do."""
        if not self.failed:
            return OK
        return BUSY if all(error.errno == errno.EBUSY for _, error in self.failed) else FAILED

    def add(self, said: dict[str, Any]) -> None:
        """Take in what a mount answered."""
        self.stored += said["stored"]
        self.failed += [(one["key"], control.error_from_json(one["error"])) for one in said["failed"]]
        self.nothing += said["nothing"]
        self.staged = said.get("staged", [])


def commit(mountpoint: str, keys: list[str], seconds: float | None = None) -> Outcome:
    """Have the mount store these keys, or without any all that is staged. A key that fails stops no other.

    Waits as long as that takes, once the mount has answered at all; with `seconds` no longer than those. MountError.
    """
    control.ask(mountpoint, "ping", seconds=config.CONTROL_ANSWER)
    outcome = Outcome()
    wanted: list[str | None] = [*keys] or [None]
    for key in wanted:
        try:
            outcome.add(control.ask(mountpoint, "commit", {} if key is None else {"key": key}, seconds=seconds))
        except ShardfsError as error:
            if key is None:
                raise
            outcome.failed.append((key, error))
    return outcome


def why(key: str, error: ShardfsError, state: str = "staged") -> str:
    """Why a key was not stored, and what can be done, in one line."""
    text = str(error)
    hint = _HINTS.get(error.errno, "it stays staged")
    if isinstance(error, BadSampleError):
        text, hint = f"{key}/{error.file}: {error.reason}", "mend or remove that file and commit again"
    elif isinstance(error, MissingKeyError):
        return one_line(text)
    elif state == "doubtful":
        hint = "look at it, and if it is whole: `shardfs staging trust`"
    elif state == "damaged":
        hint = "`shardfs staging recover --to DIR` copies what is left of it"
    named = text if text.startswith((f"{key}:", f"{key}/")) else f"{key}: {text}"
    return one_line(f"{named}; {hint}")


def reasons(outcome: Outcome) -> list[str]:
    """A line for each key that was not stored."""
    states = {one["key"]: one["state"] for one in outcome.staged}
    return [f"not stored: {why(key, error, states.get(key, 'staged'))}" for key, error in outcome.failed]


def result(one: dict[str, Any]) -> str:
    """What was stored of a key, in one line."""
    left = "; what was changed meanwhile, or belongs to no sample, is staged still" if one["left"] else ""
    held = "" if one["stored_bytes"] is None else f": {size(one['stored_bytes'])}"
    return one_line(f"stored {one['key']}{held}{left}")


def changed(stored: list[dict[str, Any]]) -> str | None:
    """A table of the types that the store has no word for, and what they became; None where there were none."""
    rows = [
        (one_line(one["key"]), one_line(found["field"]), found["was"], found["is"], f"{found['samples']:,}")
        for one in stored
        for found in one.get("changed", [])
    ]
    return table(("key", "field", "was", "is", "samples"), rows, right=(4,)) if rows else None


def staying(report: dict[str, Any]) -> str | None:
    """What stays staged under a name, and why, in one line; None where there is nothing to speak of."""
    plain = report["kind"] == "plain"
    if not (report["files"] or report["reason"] or plain):
        return None
    reason = report["reason"] or ("no key until it is renamed to one" if plain else "not files of any sample")
    held = f"{number(report['files'], 'file')}, {size(report['data_bytes'])}"
    return one_line(f"stays staged: {report['key'] or report['id']} ({held}): {reason}")
