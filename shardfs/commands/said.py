"""What was said of settings on the command line, in `-o` and in the environment: each setting with the text and the
place. Knows nothing of which of them counts.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardfs.commands.settings import BY_NAME, OTHER_VARIABLES, PREFIX, SETTINGS, Setting
from shardfs.errors import BadSettingError

FLAG, WORD, VARIABLE, FILE, PRESET, DEFAULT = "flag", "-o", "environment", "file", "profile", "default"
"""Where a setting may come from, the first that has it counts; `file` are two, a section of a mount before what is said
for all."""

OURS = tuple(word for setting in SETTINGS for word in setting.words)
"""The words of `-o`."""

# What mount(8) and fstab pass on to every helper: meant for them, or already so, or without meaning here.
HARMLESS = (
    "defaults _netdev auto noauto nofail user nouser users owner group async dev nodev suid nosuid exec noexec "
    "atime noatime diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime "
    "iversion noiversion mand nomand silent loud default_permissions"
)
HARMLESS_BEGINNINGS = ("x-", "X-", "comment=", "uhelper=", "helper=", "user=")

_OF_SERVICES = re.compile(r"(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)$")
"""Ends of the variables that Kubernetes gives every container for each service: one of them may be called shardfs."""

_YES, _NO = ("1", "yes", "true", "on"), ("0", "no", "false", "off")


@dataclass(frozen=True, slots=True)
class Said:
    """One setting, as it was said in one place."""

    setting: Setting
    text: str | bool
    """A bool for a switch."""
    source: str
    shown: str
    """How it stands there, without secrets: `--memory 2G`, `memory = 2G (FILE, line 3)`."""
    where: str | None = None
    """What has to be added to `source` to find it."""
    for_all: bool = False
    """It was said for whatever mount there is, and so only counts where it fits."""


def from_flags(arguments: argparse.Namespace, taken: Sequence[str]) -> list[Said]:
    """What the command line itself says."""
    found = []
    for setting in (BY_NAME[name] for name in taken):
        given = getattr(arguments, setting.name)
        if given is not None:
            flag = setting.flag if given is not False else f"--no-{setting.flag[2:]}"
            found.append(Said(setting, given, FLAG, flag if setting.switch else f"{flag} {shown_url(given)}"))
    if "log_level" in taken and arguments.log_level is None and arguments.verbose:
        level = ("info", "debug")[min(arguments.verbose, 2) - 1]
        found.append(Said(BY_NAME["log_level"], level, FLAG, "-" + "v" * arguments.verbose))
    return found


def from_words(options: Sequence[str], from_mount8: bool = False) -> tuple[list[Said], bool]:
    """What all `-o` say, and whether `rw` was left out of it because mount(8) says that, or ro, of every mount.
    BadSettingError names the word that is wrong, and what is nearest to it."""
    found: dict[str, Said] = {}
    for word in (word for option in options for word in option.split(",") if word):
        said = _word(word)
        if said is None:
            continue
        before = found.setdefault(said.setting.name, said)
        if said.setting.switch and before.text != said.text:
            words = ",".join(reversed(said.setting.words))
            raise BadSettingError(f"-o {words}: choose one of the two")
        found[said.setting.name] = said
    rw = found.get("rw")
    asked_to_write = any(said.setting.needs == "rw" and said.text is not False for said in found.values())
    if from_mount8 and rw is not None and rw.text and not asked_to_write:
        del found["rw"]
        return list(found.values()), True
    return list(found.values()), False


def _word(word: str) -> Said | None:
    name, equals, value = word.partition("=")
    for setting in SETTINGS:
        if setting.switch and word in setting.words:
            return Said(setting, word == setting.name, WORD, f"-o {word}")
        if not setting.switch and name == setting.name and equals and value:
            return Said(setting, value, WORD, f"-o {name}={shown_url(value)}")
    if word in HARMLESS.split() or word.startswith(HARMLESS_BEGINNINGS):
        return None
    raise BadSettingError(f"-o {name}{equals}{shown_url(value)}: there is no such option; {nearest(name, OURS)}")


def from_variables(environment: Mapping[str, str]) -> list[Said]:
    """What `SHARDFS_*` say; an empty one says nothing. BadSettingError names a variable that means nothing."""
    names = {setting.variable: setting for setting in SETTINGS}
    found = []
    for variable, text in sorted(environment.items()):
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES or not text:
            continue
        if variable not in names:
            if _OF_SERVICES.search(variable):
                continue
            raise BadSettingError(f"{variable} in the environment is no setting; {_variable(variable, names)}")
        setting, shown = names[variable], f"{variable}={shown_url(text)}"
        value: str | bool = text
        if setting.switch:
            if text.lower() not in _YES + _NO:
                raise BadSettingError(f"{shown}: write 1 or 0")
            value = text.lower() in _YES
        found.append(Said(setting, value, VARIABLE, shown, variable))
    return found


def _variable(variable: str, names: Iterable[str]) -> str:
    off = PREFIX + variable.removeprefix(f"{PREFIX}NO_")
    return f"write {off}=0" if off in names else nearest(variable, names)


def nearest(word: str, known: Iterable[str]) -> str:
    """What was meant, most likely; else all that there is."""
    there = list(known)
    meant = near(word.replace("-", "_"), there)
    if meant is not None:
        return f"did you mean {meant}?"
    return f"known are: {', '.join(one for one in there if not one.startswith('no_'))}"


def near(word: str, known: Iterable[str]) -> str | None:
    """The word that is most like another, if one is."""
    plain = {one.rstrip("="): one for one in known}
    found = difflib.get_close_matches(word, plain, 1)
    return plain[found[0]] if found else None


def shown_url(text: object) -> str:
    """A text as anybody may see it: of a URL without a password, and without what is behind its question mark."""
    scheme, separator, rest = str(text).partition("://")
    authority, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}" if separator else str(text)


def in_order(said: Iterable[Said]) -> Iterator[Said]:
    """Of each setting what counts, the first that was said."""
    seen: set[str] = set()
    for one in said:
        if one.setting.name not in seen:
            seen.add(one.setting.name)
            yield one
