"""The command line of mount(8) and fstab: its words as ours, and our exit statuses as its. Knows nothing of mounting.

mount(8) starts `mount.shardfs` itself for the type shardfs, and `shardfs` through mount.fuse3 for fuse.shardfs.
"""

from __future__ import annotations

import os
from collections.abc import Container

from shardfs.commands import INTERRUPTED, OK, USAGE
from shardfs.errors import BadSettingError

USAGE_LINE = "mount.shardfs STORE MNT [-sfnv] [-o OPTION,...] [-t TYPE]"

BAD_USAGE, INTERRUPT, FAILURE = 1, 8, 32
"""Exit statuses of mount(8): wrong words, Ctrl-C, a mount that was not made for whatever reason."""

_IGNORED = "sn"
"""Sloppy, which unknown options are to be; no mtab, which nobody has any more."""


def status_of(status: int) -> int:
    """An exit status of ours as mount(8) has it."""
    return {OK: OK, USAGE: BAD_USAGE, INTERRUPTED: INTERRUPT}.get(status, FAILURE)


def is_helper(program: str) -> bool:
    """Whether the program was started under the name of a helper of mount(8)."""
    return os.path.basename(program).startswith("mount.")


def is_its_form(words: list[str], commands: Container[str]) -> bool:
    """Whether `shardfs` was started as mount.fuse3 does it: `STORE MNT -o ...`, and no command."""
    if len(words) < 3 or words[0].startswith("-") or words[1].startswith("-"):
        return False
    return words[0] not in commands and "-o" in words[2:]


def words_of(words: list[str]) -> list[str] | None:
    """The command line for words as mount(8) gives them; None where there is nothing to do. BadSettingError for what is
    not understood."""
    if words in (["-h"], ["--help"]):
        return ["mount", "--help"]
    if words in (["-V"], ["--version"]):
        return ["--version"]
    named, flags, options = [], set(), []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            named.append(word)
        elif word[:2] in ("-o", "-t", "-N"):
            value = word[2:] or next(rest, None)
            if value is None or word[1] == "N":
                raise BadSettingError(f"{word[:2]} is not understood; usage: {USAGE_LINE}")
            options += [value] if word[1] == "o" else []
        elif set(word[1:]) <= {*_IGNORED, "f", "v"}:
            flags |= set(word[1:])
        else:
            raise BadSettingError(f"{word} is not understood; usage: {USAGE_LINE}")
    if len(named) != 2:
        raise BadSettingError(f"a store and a mount point are wanted; usage: {USAGE_LINE}")
    if "f" in flags:  # do everything but mount: never our foreground
        return None
    made = ["mount", *named, *(["-v"] if "v" in flags else [])]
    return [*made, *(word for value in options for word in ("-o", value))]
