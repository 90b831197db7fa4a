"""`shardfs bench`: the few figures of a mount that a user wants, or a trace played over it.

A store is mounted for that on a directory of its own, with nothing kept from before; a mount is taken as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardfs import benching, config, control, daemon
from shardfs.commands import FAILED, OK, as_json, one_line
from shardfs.commands.arguments import add_bench
from shardfs.commands.tabular import number, size, table
from shardfs.errors import BadSettingError, ShardfsError
from shardfs.replaying import Player, Replay, lines_of
from shardfs.storage.urls import is_far, without_secrets

Main = Callable[[Sequence[str]], int]
"""Runs one command of the whole command line; its exit status."""


def run(arguments: argparse.Namespace, main: Main) -> int:
    """`main` is for mounting a store; `arguments.words` is what the command line was, `arguments.named` the store as it
    was said there."""
    if sys.stdout is None:
        raise OSError("there is no standard output")
    seconds = _number("--seconds", arguments.seconds)
    speed = _number("--speed", arguments.speed)
    if speed is not None and arguments.replay is None:
        raise BadSettingError("--speed is for --replay")
    if arguments.replay is not None:
        return _replay(arguments, main, speed, seconds)
    with _mounted(arguments, main) as (path, ours):
        before = _loads(path)
        figures = benching.measure(path, config.BENCH_SECONDS if seconds is None else seconds)
        after = _loads(path)
    loaded = None if before is None or after is None else after - before
    _tell(arguments, figures, loaded, ours)
    return OK


def _number(name: str, given: float | None) -> float | None:
    if given is not None and not 0 < given < 1e9:
        raise BadSettingError(f"{name} {given:g}: write a number above 0")
    return given


# --- where ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _mounted(arguments: argparse.Namespace, main: Main) -> Iterator[tuple[Path, bool]]:
    """The directory to measure, and whether it was mounted for that. BadSettingError."""
    where, others = arguments.named, _others(arguments)
    mounted = None if "://" in where else daemon.mounted_at(daemon.resolved(where))
    if mounted is not None and mounted.fstype == daemon.FSTYPE:
        for word in others:
            if word.startswith("--") and word != "--verbose":
                raise BadSettingError(f"{word.partition('=')[0]} is of a store, and {where} is mounted already")
        yield Path(daemon.resolved(where)), False
        return
    with tempfile.TemporaryDirectory(prefix="shardfs-bench-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "mnt"
        words = ["mount", where, str(path), "--no-index", f"--log={folder}/log", *others]
        if (
            is_far(arguments.store)
            and not arguments.offline
            and not any(word.startswith("--cache-dir") for word in others)
        ):
            words.append(f"--cache-dir={folder}/cache")  # which has nothing yet
        _run(main, words)
        try:
            yield path, True
        finally:
            _run(main, ["umount", str(path)])


def _others(arguments: argparse.Namespace) -> list[str]:
    """The words of the command line that are neither its own nor the store: they are for mounting it."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_bench(own)
    _, rest = own.parse_known_args(arguments.words[1:])
    rest.remove(arguments.named)
    return rest


def _run(main: Main, words: list[str]) -> None:
    """Run a command quietly; where it fails, say what it said, and end with its exit status."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = main(words)
    if status != OK:
        sys.stderr.write(said.getvalue())
        raise SystemExit(status)


def _loads(path: Path) -> int | None:
    """Shards that the mount has loaded or opened so far; None where it does not say."""
    try:
        cache = control.ask(path, "status", seconds=config.CONTROL_STATUS)["cache"]
        return int(cache["loads"] + cache["opened"])
    except (ShardfsError, KeyError, TypeError):
        return None


# --- what is told -----------------------------------------------------------------------------------------------------


def _tell(arguments: argparse.Namespace, figures: benching.Figures, loaded: int | None, ours: bool) -> None:
    facts: dict[str, Any] = {
        "where": without_secrets(arguments.store) if "://" in arguments.store else arguments.store,
        "mounted_for_this": ours,
        "keys": figures.keys,
        "loaded": loaded,
        "first_byte_seconds": _rounded(figures.first_byte, 6),
        "first_byte_seconds_worst": _rounded(max(figures.first_bytes, default=None), 6),
        "names_per_second": _rounded(figures.names_per_second, 1),
        "cold": _pass(figures.first),
        "warm": _pass(figures.again),
    }
    if arguments.json:
        print(as_json(facts))
    else:
        print(_text(facts))
    sys.stdout.flush()


def _pass(one: benching.Pass) -> dict[str, Any]:
    return {
        "files": one.files,
        "bytes": one.bytes,
        "seconds": round(one.seconds, 6),
        "files_per_second": _rounded(one.files_per_second, 1),
        "bytes_per_second": _rounded(one.bytes_per_second, 1),
    }


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _text(facts: dict[str, Any]) -> str:
    cold, warm = facts["cold"], facts["warm"]
    first = f"{facts['first_byte_seconds'] * 1000:.1f} ms"
    worst = f"{facts['first_byte_seconds_worst'] * 1000:.1f} ms"
    rows = [
        ("first byte", first, f"median of {number(facts['keys'], 'key')}; the slowest {worst}"),
        ("stat/s", _rate(facts["names_per_second"]), "names listed and looked at, as ls -l does"),
        ("files/s cold", _rate(cold["files_per_second"]), f"{number(cold['files'], 'file')}, read for the first time"),
        ("files/s warm", _rate(warm["files_per_second"]), f"{number(warm['files'], 'file')} of them, read again"),
        ("bytes/s cold", _amount(cold["bytes_per_second"]), f"{size(cold['bytes'])} in {cold['seconds']:.2f} s"),
        ("bytes/s warm", _amount(warm["bytes_per_second"]), f"{size(warm['bytes'])} in {warm['seconds']:.2f} s"),
    ]
    lines = [table(("figure", "value", "of"), rows, right=(1,))]
    if facts["loaded"] is not None and facts["loaded"] < facts["keys"]:
        warm_already = facts["keys"] - facts["loaded"]
        lines.append(f"{warm_already} of the {number(facts['keys'], 'key')} were in memory already: not all was cold")
    return "\n".join(lines)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _amount(value: float | None) -> str:
    return "-" if value is None else size(int(value))


# --- replaying --------------------------------------------------------------------------------------------------------


def _replay(arguments: argparse.Namespace, main: Main, speed: float | None, seconds: float | None) -> int:
    try:
        descriptor = os.open(arguments.replay, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BadSettingError(f"--replay {arguments.replay}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file, _mounted(arguments, main) as (path, _):
        player = Player(path)
        try:
            outcome = player.play(lines_of(file), speed, seconds)
        finally:
            player.close()
    if arguments.json:
        print(as_json(asdict(outcome)))
    else:
        print(_replayed(outcome))
    sys.stdout.flush()
    return FAILED if outcome.differing else OK


def _replayed(outcome: Replay) -> str:
    played = sum(outcome.played.values())
    lines = [f"{number(played, 'request')} played, {number(outcome.implied, 'other')} with them"]
    lines += [f"  {name:<8} {count:>12,}" for name, count in sorted(outcome.played.items())]
    lines.append(f"{size(outcome.read_bytes)} read; {outcome.seconds:.2f} s, recorded {outcome.recorded_seconds:.2f} s")
    if outcome.left_out:
        left = ", ".join(f"{name} {count:,}" for name, count in sorted(outcome.left_out.items()))
        lines.append(f"left out, as it changes something or has no path: {left}")
    if not outcome.whole:
        lines.append("ended by --seconds before the trace was")
    if outcome.differing:
        lines.append(f"{number(outcome.differing, 'request')} ended otherwise:")
        lines += [f"  {one_line(text)}" for text in outcome.examples]
    return "\n".join(lines)
