"""`shardfs config`: each setting that a mount would have, its value, and where it came from. Mounts nothing."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

from shardfs.commands import OK, as_json, one_line, tell
from shardfs.commands.config_file import PLACES, ConfigFile, read_config_file
from shardfs.commands.effective import facts_of
from shardfs.commands.resolving import resolve
from shardfs.commands.said import FILE, PRESET, VARIABLE
from shardfs.commands.settings import SETTINGS
from shardfs.commands.tabular import size, table
from shardfs.errors import BadSettingError

_SIZES = ("memory", "cache_size", "min_free")


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    file = read_config_file()
    named = arguments.settled.name is not None
    if arguments.store is None:
        _check(file)
    elif not named and "/" not in arguments.store and not os.path.lexists(arguments.store):
        raise BadSettingError(f"{file.no_such(arguments.store)}; nor is there a store {arguments.store}")
    facts = facts_of(arguments)
    if arguments.json:
        print(as_json(facts))
    else:
        print(table(("setting", "value", "from"), [_row(name, one, file) for name, one in facts.items()]))
        _tell(file)
    sys.stdout.flush()
    return OK


def _check(file: ConfigFile) -> None:
    """The sections of all mounts make sense. BadSettingError."""
    for name in file.names:
        places = {what: file.place(name, what) for what in PLACES}
        store = places["store"]
        resolve(SETTINGS, [*file.of(name), *file.for_all()], [] if store is None else [store])


def _row(name: str, one: Mapping[str, Any], file: ConfigFile) -> tuple[str, str, str]:
    value = one["value"]
    if name in _SIZES and isinstance(value, int):
        value = size(value)
    elif isinstance(value, bool):
        value = "on" if value else "off"
    elif isinstance(value, list | tuple):
        value = " ".join(value)
    elif isinstance(value, float):
        value = f"{value:g}"
    came, where = one.get("from", "command line"), one.get("where", "")
    if came == FILE:
        came = where.removeprefix(f"{file.path}, ")
    elif came in (VARIABLE, PRESET):
        came = f"{came} {where}" if came == PRESET else where
    unused = one.get("unused")
    if unused is not None:
        came += f"; not used here: {unused.replace(f'{file.path}, ', '')}"
    home = os.path.expanduser("~")
    if isinstance(value, str) and value.startswith(f"{home}/"):
        value = value.replace(home, "~", 1)
    return name, one_line("-" if value is None else str(value)), one_line(came)


def _tell(file: ConfigFile) -> None:
    if file.path is not None:
        names = f"; it has {', '.join(file.names)}" if file.names else ""
        tell(one_line(f"the file is {file.path}{names}" if file.there else f"there is no {file.path}"))
