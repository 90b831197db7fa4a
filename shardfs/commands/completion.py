"""`shardfs completion`: what makes a shell complete commands and options, generated from the parser.

Knows nothing of any one command. Names are completed as files, and keys are not: a shell asks too often for that.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from shardfs.commands import OK

ZSH = (
    "(( $+functions[compdef] )) || { autoload -U compinit && compinit -u }",
    "autoload -U +X bashcompinit && bashcompinit",
)
"""What zsh needs first: its own completion, where ~/.zshrc has not begun it, and bash's on top of that."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command, or one work of a command."""

    path: tuple[str, ...]
    help: str
    below: tuple[str, ...]
    """Its works."""
    options: tuple[argparse.Action, ...]


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    made = {"bash": _bash, "zsh": _zsh, "fish": _fish}[arguments.shell](list(commands_of(parser)))
    print("\n".join(made))
    sys.stdout.flush()
    return OK


def commands_of(parser: argparse.ArgumentParser, path: tuple[str, ...] = (), text: str = "") -> Iterator[Command]:
    """The parser itself, under the empty path, and all that is below it."""
    works = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    options = tuple(action for action in parser._actions if action.option_strings)
    yield Command(path, text, tuple(name for work in works for name in work.choices), options)
    for work in works:
        helps = {choice.dest: choice.help or "" for choice in work._choices_actions}
        for name, inside in work.choices.items():
            yield from commands_of(inside, (*path, name), helps.get(name, ""))


def _words(command: Command) -> str:
    return " ".join((*command.below, *(one for option in command.options for one in option.option_strings)))


def _bash(commands: list[Command]) -> list[str]:
    """Words of the longest path of commands that the line begins with; behind an option with choices, these."""
    cases = [f"        {shlex.quote(' '.join(one.path))}) words={shlex.quote(_words(one))} ;;" for one in commands]
    nested = "|".join(shlex.quote(one.path[0]) for one in commands if len(one.path) == 1 and one.below)
    chosen: dict[str, str] = {}
    for command in commands:
        for option in command.options:
            for name in option.option_strings if option.choices else ():
                chosen[name] = " ".join(map(str, option.choices or ()))
    choices = [f"        {shlex.quote(name)}) words={shlex.quote(words)} ;;" for name, words in sorted(chosen.items())]
    return [
        "# shardfs: completion for bash",
        "_shardfs() {",
        '    local word="${COMP_WORDS[COMP_CWORD]}" path="" words="" at=1',
        "    COMPREPLY=()",
        '    if (( COMP_CWORD > 1 )); then path="${COMP_WORDS[1]}"; at=2; fi',
        '    case "$path" in',
        f'        {nested}) if (( COMP_CWORD > 2 )); then path="$path ${{COMP_WORDS[2]}}"; fi ;;',
        "    esac",
        '    case "$path" in',
        *cases,
        "    esac",
        '    case "${COMP_WORDS[COMP_CWORD-1]}" in',
        *choices,
        "    esac",
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))',
        "}",
        "complete -o bashdefault -o default -F _shardfs shardfs",
    ]


def _zsh(commands: list[Command]) -> list[str]:
    return ["# zsh runs what is bash's", *ZSH, *_bash(commands)]


def _fish(commands: list[Command]) -> list[str]:
    made = ["# shardfs: completion for fish"]
    for command in commands:
        seen = " && ".join(f"__fish_seen_subcommand_from {part}" for part in command.path)
        if command.below:
            here = f"{seen} && " if seen else ""
            condition = f"{here}not __fish_seen_subcommand_from {' '.join(command.below)}"
            for name in command.below:
                (text,) = [one.help for one in commands if one.path == (*command.path, name)]
                made.append(f"complete -c shardfs -f -n {_quoted(condition)} -a {name} -d {_quoted(text)}")
        for option in command.options if command.path else ():
            made.append(f"complete -c shardfs -n {_quoted(seen)}{_fish_option(option)}")
    return made


def _fish_option(option: argparse.Action) -> str:
    made = ""
    for name in option.option_strings:
        made += f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
    if option.nargs != 0:
        made += " -r"
    if option.choices:
        made += f" -f -a {_quoted(' '.join(map(str, option.choices)))}"
    return f"{made} -d {_quoted((option.help or '').replace('%%', '%'))}"


def _quoted(text: str) -> str:
    """A text for fish, where a backslash inside single quotes escapes the two."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
