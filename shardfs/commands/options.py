"""What settings are made of: text to values, and values to what opens a store. Knows nothing of where it was said."""

from __future__ import annotations

import argparse
import math
import os
import re
from typing import Any

from shardfs.errors import BadSettingError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_write_back(text: str) -> float | None:
    """Seconds of quiet after which a key is stored; None for never (`off`, 0)."""
    if text.lower() == "off":
        return None
    return _seconds(text, 0, 1e9, f"{text!r} is no time to wait: write seconds, like 5 or 0.5, or off") or None


def parse_refresh(text: str) -> float:
    """Seconds between looks at the store; infinity for `immutable` and `manual`."""
    if text in ("immutable", "manual"):
        return math.inf
    return _seconds(text, 1e-9, 1e9, "write seconds, like 60 or 0.5, immutable or manual")


def parse_deadline(text: str) -> float:
    """Seconds for what is asked of a store far away."""
    from shardfs import config

    least, most = config.REMOTE_DEADLINE_LEAST, config.REMOTE_DEADLINE_MOST
    return _seconds(text, least, most, f"write seconds, {least:g} to {most:g}")


def parse_shutdown_timeout(text: str) -> float:
    """Seconds that the end of a mount waits for what was written to be stored."""
    from shardfs import config

    return _seconds(text, 0, config.SHUTDOWN_MOST, f"write seconds, 0 to {config.SHUTDOWN_MOST:.0f}")


def _seconds(text: str, least: float, most: float, advice: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= most:
        raise BadSettingError(advice)
    return seconds


def parse_path(text: str) -> str:
    """An absolute path: a mount in the background works in /."""
    return os.path.abspath(os.path.expanduser(text))


def parse_patterns(text: str) -> tuple[str, ...]:
    """Patterns of keys, white space between them."""
    patterns = tuple(text.split())
    if not patterns:
        raise BadSettingError("write a pattern, like 'train/*'")
    return patterns


def parse_disk_size(text: str) -> str:
    """A size, 0 or a share of a disk that is not known yet: `cache_options` makes bytes of it."""
    if text != "0":
        parse_size(text, 1 << 40)
    return text


def store_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said of a store far away, as `open_store` takes it."""
    made: dict[str, Any] = {} if arguments.endpoint is None else {"endpoint": arguments.endpoint}
    made |= {flag: True for flag in ("anonymous", "offline") if getattr(arguments, flag)}
    return made if arguments.deadline is None else {**made, "deadline": arguments.deadline}


def cache_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said of the cache on disk, as `open_store` takes it."""
    made: dict[str, Any] = {}
    if arguments.cache_dir is not None:
        made["cache_dir"] = arguments.cache_dir
    for name in ("cache_size", "min_free"):
        said = getattr(arguments, name, None)
        if said is not None:
            made[name] = 0 if said == "0" else parse_size(said, _disk(made))
    return made


def _disk(made: dict[str, Any]) -> int:
    """Bytes of the disk that the cache lies on."""
    from shardfs.storage.disk_cache import default_directory, disk_bytes

    directory = made.get("cache_dir") or default_directory()
    return disk_bytes(directory) if directory is not None else 0


def style(arrays: str, text: str) -> str:
    """How samples are shown, as the layout takes it."""
    from shardfs import config

    return arrays + (config.TEXT_FILES if text == "files" else "")


def parse_size(text: str, whole: int | None = None) -> int:
    """Bytes: `1000000`, `500M`, `1.5GiB`, `2G` (all binary), `500MB` (decimal), `25%` of the memory there is, or of
    `whole` bytes."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:(%)|([kmgt]?)(i?b)?)", text.strip().lower())
    if found is None:
        raise BadSettingError(f"{text!r} is no size; write it like 500M, 2G, 1.5GiB or 25%")
    number, percent, unit, suffix = float(found[1]), found[2], found[3] or "", found[4]
    if percent:
        if number > 100:
            raise BadSettingError(f"{text} is more than there is")
        size = int((_memory() if whole is None else whole) * number / 100)
    elif suffix == "b" and unit:
        size = int(number * 1000 ** "kmgt".index(unit) * 1000)
    else:
        size = int(number * _UNITS[unit])
    if size <= 0:
        raise BadSettingError(f"{text} is no size to work with; write it like 500M, 2G, 1.5GiB or 25%")
    return size


def parse_view(text: str) -> str:
    """A view, under the one name that it has."""
    from shardfs.views.names import parse

    return parse(text).text


def _memory() -> int:
    from shardfs import config  # here: `shardfs --help` needs nothing of it

    return config.memory_available()
