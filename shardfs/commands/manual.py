"""The manual page, out of the parsers: every command, option and exit status, in man(7)'s own language.

Pure: takes the parser of the whole command line and gives a text. Knows nothing of any one command.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from shardfs.commands import EXIT_STATUS

_ENVIRONMENT = {
    "SHARDFS_<NAME>": "the setting NAME of a mount, as in SHARDFS_MEMORY=2G or SHARDFS_RW=1",
    "XDG_CONFIG_HOME": "where shardfs/config.toml lies (default: ~/.config)",
    "XDG_CACHE_HOME": "where the index, and what is kept of stores far away, lies (default: ~/.cache)",
    "XDG_STATE_HOME": "where what is not stored yet, and the log, lies (default: ~/.local/state)",
    "XDG_RUNTIME_DIR": "where the sockets of mounts lie",
    "NO_COLOR": "set to anything: no colours on a terminal",
    "COLUMNS": "how wide what is shown may be, where it is no terminal (default: 80)",
}

_FSTAB = "\\fISTORE\\fR \\fIMNT\\fR [\\-sfnv] [\\-o \\fIOPT\\fR,...]"
"""What mount(8) calls for a line of fstab."""

_FILES = {
    "$XDG_CONFIG_HOME/shardfs/config.toml": "settings for all mounts, and in sections [mount.NAME] for each: "
    "shardfs config shows what comes of them",
    "MNT/.shardfs/status.json": "how a mount is doing; metrics, errors.jsonl, config.json and log are beside it",
    "/etc/fuse.conf": "user_allow_other lets users give --allow-other",
}


def page(parser: argparse.ArgumentParser, version: str) -> str:
    """The whole page for the command line of `parser`. Says nothing of the day on which it was made, so that the same
    parsers give the same page."""
    lines = [
        '.\\" made by tools/manual.py out of the parsers: change those',
        f'.TH SHARDFS 1 "" "shardfs {version}" "User Commands"',
        ".SH NAME",
        "shardfs \\- mount a store of sharded samples as directories and files",
        ".SH SYNOPSIS",
        *_synopses(parser),
        ".SH DESCRIPTION",
        _text(parser.description or ""),
        ".SH OPTIONS",
        *_options(parser),
        ".SH COMMANDS",
    ]
    for path, help_text, inside in commands(parser):
        if not _below(inside):
            lines += _command(path, help_text, inside)
    lines += [".SH EXIT STATUS", *_pairs({str(status): meaning for status, meaning in EXIT_STATUS.items()})]
    lines += [".SH ENVIRONMENT", *_pairs(_ENVIRONMENT), ".SH FILES", *_pairs(_FILES)]
    lines += [".SH SEE ALSO", ".BR fusermount3 (1),", ".BR mount.fuse3 (8),", ".BR systemd.mount (5)"]
    return "\n".join(lines) + "\n"


def commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, argparse.ArgumentParser]]:
    """Every command and work of a command: its words, its help, its parser."""
    for action in _below(parser):
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, inside in action.choices.items():
            yield (*path, name), helps.get(name, ""), inside
            yield from commands(inside, (*path, name))


def _below(parser: argparse.ArgumentParser) -> list[argparse._SubParsersAction[argparse.ArgumentParser]]:
    return [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]


def _synopses(parser: argparse.ArgumentParser) -> list[str]:
    made = []
    for path, _, inside in commands(parser):
        if not _below(inside):
            made += [f".B shardfs {_escaped(' '.join(path))}", *_arguments(inside), ".br"]
    return [*made, f".B mount.shardfs {_FSTAB}"]


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    """`[OPTION...] STORE [KEY...]` of one command."""
    words = ["[\\fIOPTION\\fR]..."]
    for action in parser._actions:
        if action.option_strings or isinstance(action, argparse._SubParsersAction):
            continue
        name = f"\\fI{_escaped(_value(action))}\\fR"
        words.append({"?": f"[{name}]", "*": f"[{name}]...", "+": f"{name}..."}.get(str(action.nargs), name))
    return [" ".join(words)]


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def _command(path: tuple[str, ...], help_text: str, parser: argparse.ArgumentParser) -> list[str]:
    made = [f".SS shardfs {_escaped(' '.join(path))}", ".PP", f".B shardfs {_escaped(' '.join(path))}"]
    made += [*_arguments(parser), ".PP", _text(parser.description or _sentence(help_text))]
    for action in parser._actions:
        if not action.option_strings and action.help:
            made += [".TP", f"\\fI{_escaped(_value(action))}\\fR", _text(_expanded(action))]
    return made + _options(parser)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    made = []
    for action in parser._actions:
        if not action.option_strings or isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
            continue
        names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in action.option_strings)
        value = "" if action.nargs == 0 else f" \\fI{_escaped(_value(action))}\\fR"
        made += [".TP", names + value, _text(_expanded(action))]
    return made


def _expanded(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _pairs(pairs: dict[str, str]) -> list[str]:
    return [line for name, text in pairs.items() for line in (".TP", f"\\fB{_escaped(name)}\\fR", _text(text))]


def _text(text: str) -> str:
    """A paragraph: nothing in it is taken for a request."""
    escaped = _escaped(" ".join(text.split()))
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escaped(text: str) -> str:
    return (
        text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("~", "\\(ti").replace("^", "\\(ha")
    )
