"""The command line: parses it, calls one command, turns what that raises into one line and an exit status.

Imports no command before it runs, and nothing heavy at all: `shardfs --help` is answered by argparse alone.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from shardfs.commands import BROKEN_PIPE, INTERRUPTED, OK, USAGE, explain, mount8, tell
from shardfs.commands.arguments import COMMANDS, build_parser
from shardfs.errors import BadSettingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Prints at most one line for an error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if any("://" in word and ("@" in word or "?" in word) for word in words):
        from shardfs.commands.hiding import hide

        hide(words)
    if not (mount8.is_helper(sys.argv[0]) or mount8.is_its_form(words, COMMANDS)):
        return _main(words)
    try:
        helper = mount8.words_of(words)
    except BadSettingError as error:
        tell(str(error), 3)
        return mount8.BAD_USAGE
    return OK if helper is None else mount8.status_of(_main(helper, from_mount8=True))


def _main(words: list[str], from_mount8: bool = False) -> int:
    verbosity = 0
    try:
        parsed = _parsed(words if from_mount8 else _joined(words))
        parsed.from_mount8 = from_mount8
        if parsed.command == "bench":
            parsed.words, parsed.named = words, parsed.store  # of which it mounts a store
        verbosity = parsed.verbose
        return _run(parsed)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after an error
        return stop.code if isinstance(stop.code, int) else USAGE
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        status, text = explain(error, verbosity)
        tell(text, 3)
        try:
            sys.stdout.flush()
        except (OSError, AttributeError):  # it is the output that failed, or there is none
            _drop_output()
        return status


def _joined(words: list[str]) -> list[str]:
    """The words of a command line with `--size -4k` as one word: argparse would take the second for an option."""
    made: list[str] = []
    for word in words:
        if made[:1] == ["find"] and made[-1] == "--size" and word[:1] == "-" and word[1:2].isdigit():
            made[-1] = f"--size={word}"
        else:
            made.append(word)
    return made


def _parsed(words: list[str]) -> argparse.Namespace:
    """What the words say. For an option that there is not, the nearest one of the command is told."""
    parser = build_parser()
    parsed, unknown = parser.parse_known_args(words)
    if not unknown:
        return parsed
    from shardfs.commands.completion import commands_of
    from shardfs.commands.said import near, shown_url

    path = tuple(getattr(parsed, name) for name in ("command", "work") if hasattr(parsed, name))
    known = [
        one
        for command in commands_of(parser)
        if command.path == path
        for option in command.options
        for one in option.option_strings
    ]
    options = [word.partition("=")[0] for word in unknown if word.startswith("--")]
    meant = near(options[0], known) if options else None
    hint = "" if meant is None else f"; did you mean {meant}?"
    parser.error(f"unrecognized arguments: {' '.join(map(shown_url, unknown))}{hint}")


def _drop_output() -> None:
    """The interpreter flushes stdout once more at its end, and must not find there what failed before."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


_ROOMS = {"warm": "cache", "pin": "cache", "unpin": "cache", "ls": "look", "cat": "look", "info": "look"}
"""Commands that share a room; every other one has the room that is called like it."""


def _run(parsed: argparse.Namespace) -> int:
    """Do what a command says. Its code is imported only now: a command costs what it needs itself."""
    if hasattr(parsed, "settings"):
        from shardfs.commands.resolving import settle

        parsed.settled = settle(parsed)
    elif getattr(parsed, "mountpoint", None):
        from shardfs.commands.resolving import mount_point_of

        given = parsed.mountpoint
        parsed.mountpoint = mount_point_of(given) if isinstance(given, str) else [*map(mount_point_of, given)]
    if parsed.command == "completion":
        from shardfs.commands import completion

        return completion.run(parsed, build_parser())
    if parsed.command == "bench":
        from shardfs.commands import bench

        return bench.run(parsed, main)
    room = importlib.import_module(f"shardfs.commands.{_ROOMS.get(parsed.command, parsed.command)}")
    status: int = room.run(parsed)
    return status
