"""The configuration file: settings for all mounts, and under `[mount.NAME]` what to mount where, and how.

Knows nothing of what else says something of a setting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shardfs import config
from shardfs.commands.options import parse_path
from shardfs.commands.said import FILE, Said, nearest, shown_url
from shardfs.commands.settings import BY_NAME
from shardfs.errors import BadSettingError

MOUNTS = "mount"
PLACES = ("store", "mountpoint")
"""What a section of a mount says besides settings."""

_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?")
_LINE = re.compile(r"\s*((?:[\w-]+|\"[^\"]*\"|'[^']*')(?:\s*\.\s*(?:[\w-]+|\"[^\"]*\"|'[^']*'))*)\s*=")
_PART = re.compile(r"[\w-]+|\"[^\"]*\"|'[^']*'")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file that was read, or one that is not there."""

    path: Path | None
    """Where it is, or would be; None for who has no home."""
    there: bool = False
    tables: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The mounts that have a section."""
        return sorted(self.tables.get(MOUNTS, {}))

    def for_all(self) -> list[Said]:
        """What is said for all mounts. BadSettingError."""
        known = [*BY_NAME, MOUNTS]
        given = {name: value for name, value in self.tables.items() if name != MOUNTS}
        return [self._said((name,), value, known) for name, value in given.items()]

    def of(self, name: str) -> list[Said]:
        """What `[mount.NAME]` says of settings. BadSettingError."""
        known = [*BY_NAME, *PLACES]
        section = self._section(name)
        given = {setting: value for setting, value in section.items() if setting not in PLACES}
        return [self._said((MOUNTS, name, setting), value, known) for setting, value in given.items()]

    def place(self, name: str, what: str) -> str | None:
        """The `store` or `mountpoint` of a mount, from wherever it is used. BadSettingError."""
        value = self._section(name).get(what)
        if value is None:
            return None
        path = (MOUNTS, name, what)
        if not isinstance(value, str) or not value:
            raise BadSettingError(f"{self.shown(path)}: write it as text, in quotes")
        if "://" in value:
            return value
        return self._whole(path, value)

    def called(self, name: str) -> bool:
        """Whether there is a section for a mount of this name."""
        return name in self.tables.get(MOUNTS, {})

    def no_such(self, name: str) -> str:
        """What to tell of a name without a section."""
        if self.path is None:
            return f"there is no home, and so no configuration that says what {name} is"
        if not self.there:
            return f"{name}: there is no {self.path} that says what it is"
        names = ", ".join(self.names)
        hint = nearest(name, self.names) if names else "it has none"
        return f"{self.path} has no [{MOUNTS}.{name}]; {hint}"

    def shown(self, path: tuple[str, ...]) -> str:
        """What has this path, and where it stands."""
        name = f"[{'.'.join(path)}]" if len(path) == 2 else path[-1]
        return f"{name} ({self.where(path)})"

    def where(self, path: tuple[str, ...]) -> str:
        """File, line and section of what has this path."""
        line = next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)
        section = f", [{'.'.join(path[:-1])}]" if len(path) > 2 else ""
        return f"{self.path}{'' if line is None else f', line {line}'}{section}"

    def _section(self, name: str) -> dict[str, Any]:
        section = self.tables.get(MOUNTS, {}).get(name)
        if not isinstance(section, dict):
            raise BadSettingError(self.no_such(name) if section is None else f"{self.path}: write [{MOUNTS}.{name}]")
        return section

    def _said(self, path: tuple[str, ...], value: Any, known: Iterable[str]) -> Said:
        name = path[-1]
        if name not in BY_NAME:
            raise BadSettingError(f"{self.shown(path)}: there is no such setting; {nearest(name, known)}")
        setting, where = BY_NAME[name], self.where(path)
        shown = f"{name} = {shown_url(str(value).lower() if isinstance(value, bool) else value)} ({where})"
        if setting.switch != isinstance(value, bool) or not isinstance(value, str | int | float):
            advice = "true or false, without quotes" if setting.switch else "it as text, in quotes"
            raise BadSettingError(f"{name} ({where}): write {advice}")
        text: str | bool = value if isinstance(value, bool) else str(value)
        if setting.parse is parse_path:
            text = self._whole(path, str(value))
        return Said(setting, text, FILE, shown, where, for_all=len(path) == 1)

    def _whole(self, path: tuple[str, ...], value: str) -> str:
        """A path that means the same wherever a command is run."""
        whole = os.path.expanduser(value)
        if not os.path.isabs(whole):
            raise BadSettingError(f"{self.shown(path)}: write the whole path, beginning with / or ~, and not {value}")
        return whole


def config_path() -> Path | None:
    """Where the file is looked for."""
    base = config.base_directory("XDG_CONFIG_HOME", "~/.config")
    return None if base is None else base / "shardfs" / "config.toml"


def read_config_file(path: Path | None = None) -> ConfigFile:
    """The user's own configuration file, or the one at `path`. BadSettingError says what is wrong with it, and where;
    settings are looked at when they are asked for."""
    place = path or config_path()
    if place is None:
        return ConfigFile(None)
    try:
        with open(place, "rb") as file:
            held = file.read(config.CONFIG_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ConfigFile(place)
    except OSError as error:
        raise BadSettingError(f"{place} cannot be read: {error.strerror}") from error
    if len(held) > config.CONFIG_FILE:
        raise BadSettingError(f"{place} has more than {config.CONFIG_FILE} bytes: that is no configuration")
    import tomllib  # here: most users have no such file

    try:
        text = held.decode("utf-8")
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSettingError(f"{place} is no TOML: {error}") from error
    mounts = tables.get(MOUNTS, {})
    if not isinstance(mounts, dict):
        raise BadSettingError(f"{place}: {MOUNTS} is for sections, [{MOUNTS}.NAME]")
    return ConfigFile(place, True, tables, _lines(text))


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Lines of what is said, by path: for people, so that a text over several lines may lead astray."""
    found: dict[tuple[str, ...], int] = {}
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header, begun = _HEADER.fullmatch(line), _LINE.match(line)
        path: tuple[str, ...] = ()
        if header:
            path = section = _path(header[1])
        elif begun:
            path = (*section, *_path(begun[1]))
        for end in range(1, len(path) + 1):
            found.setdefault(path[:end], number)
    return found


def _path(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))
