"""The words behind `-o`, and sizes: text to values. Knows nothing of what is done with them."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shardfs import config
from shardfs.errors import BadSettingError

OURS = (
    *("ro", "rw", "allow_overwrite", "allow_delete", "single_writer", "write_back=", "size_limit="),
    *("allow_other", "nonempty", "no_index", "driver=", "memory=", "arrays=", "text="),
    *("refresh=", "endpoint=", "anonymous", "deadline=", "offline", "cache_dir=", "cache_size=", "min_free="),
    *("cache_raw=", "snapshot=", "metrics_addr=", "shutdown_timeout="),
)

# What mount(8) and fstab pass on to every helper: meant for them, or already so, or without meaning here.
HARMLESS = (
    "defaults _netdev auto noauto nofail user nouser users owner group async dev nodev suid nosuid exec noexec "
    "atime noatime diratime nodiratime relatime norelatime strictatime nostrictatime lazytime nolazytime "
    "iversion noiversion mand nomand silent loud default_permissions"
)
HARMLESS_BEGINNINGS = ("x-", "X-", "comment=", "uhelper=", "helper=", "user=")

ARRAYS = ("png", "npy")
TEXTS = ("json", "files")

_FLAGS = (
    *("allow_other", "nonempty", "no_index", "allow_overwrite", "allow_delete", "single_writer"),
    *("anonymous", "offline"),
)
_WITH_VALUES = (
    *("driver", "memory", "arrays", "text", "write_back", "size_limit", "refresh", "endpoint", "deadline"),
    *("cache_raw", "snapshot", "metrics_addr", "shutdown_timeout"),
)
_CACHE = ("cache_dir", "cache_size", "min_free")

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(slots=True)
class MountWords:
    """What `-o` asked for."""

    allow_other: bool = False
    nonempty: bool = False
    no_index: bool = False
    driver: str | None = None
    memory: str | None = None
    arrays: str | None = None
    text: str | None = None
    refresh: str | None = None
    endpoint: str | None = None
    anonymous: bool = False
    deadline: str | None = None
    offline: bool = False
    cache_dir: str | None = None
    cache_size: str | None = None
    min_free: str | None = None
    cache_raw: str | None = None
    snapshot: str | None = None
    rw: bool = False
    allow_overwrite: bool = False
    allow_delete: bool = False
    single_writer: bool = False
    write_back: str | None = None
    size_limit: str | None = None
    metrics_addr: str | None = None
    shutdown_timeout: str | None = None
    rw_by_default: bool = False
    """`rw` was said by mount(8), which always says one of ro and rw, and nothing else that speaks of writing."""


def parse_words(options: Sequence[str], from_mount8: bool = False) -> MountWords:
    """The words of all `-o`. BadSettingError names the one that is wrong, and what is nearest to it."""
    words = MountWords()
    asked: set[str] = set()
    for word in (word for option in options for word in option.split(",") if word):
        name, equals, value = word.partition("=")
        if word in _FLAGS:
            setattr(words, word, True)
        elif name in (*_WITH_VALUES, *_CACHE) and equals:
            setattr(words, name, value)
        elif word in ("ro", "rw"):
            words.rw, asked = word == "rw", asked | {word}
        elif word not in HARMLESS.split() and not word.startswith(HARMLESS_BEGINNINGS):
            raise BadSettingError(f"-o {word}: there is no such option; {_nearest(word)}")
    if len(asked) == 2:
        raise BadSettingError("-o ro,rw: choose one of the two")
    switches = words.allow_overwrite or words.allow_delete or words.single_writer
    asked_to_write = switches or words.write_back or words.size_limit or words.shutdown_timeout
    if words.rw and from_mount8 and not asked_to_write:
        words.rw, words.rw_by_default = False, True
    if words.arrays is not None and words.arrays not in ARRAYS:
        raise BadSettingError(f"-o arrays={words.arrays}: choose one of {' and '.join(ARRAYS)}")
    if words.text is not None and words.text not in TEXTS:
        raise BadSettingError(f"-o text={words.text}: choose one of {' and '.join(TEXTS)}")
    return words


def parse_write_back(text: str | None) -> float | None:
    """Seconds of quiet after which a key is stored; None for never (`off`, 0)."""
    if text is None:
        return config.WRITE_BACK
    if text.lower() == "off":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise BadSettingError(f"{text!r} is no time to wait: write seconds, like 5 or 0.5, or off")
    return seconds or None


def parse_refresh(text: str | None) -> float | None:
    """Seconds between looks at the store; infinity for `immutable` and `manual`; None: what fits the store."""
    if text is None:
        return None
    if text in ("immutable", "manual"):
        return math.inf
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise BadSettingError(f"--refresh {text}: write seconds, like 60 or 0.5, immutable or manual")
    return seconds


def parse_shutdown_timeout(text: str | None) -> float | None:
    """Seconds that the end of a mount waits for what was written; None: as config.SHUTDOWN_WAIT has it."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= config.SHUTDOWN_MOST:
        raise BadSettingError(f"--shutdown-timeout {text}: write seconds, 0 to {config.SHUTDOWN_MOST:.0f}")
    return seconds


def parse_cache_raw(text: str | None) -> str | None:
    """Which shards are kept decompressed; None: what fits the store."""
    if text is not None and text not in config.CACHE_RAW:
        raise BadSettingError(f"--cache-raw {text}: choose one of {', '.join(config.CACHE_RAW)}")
    return text


def store_options(arguments: argparse.Namespace, words: MountWords | None = None) -> dict[str, Any]:
    """What was said of a store far away, as `open_store` takes it."""
    endpoint = arguments.endpoint or (words.endpoint if words else None)
    made: dict[str, Any] = {} if endpoint is None else {"endpoint": endpoint}
    for flag in ("anonymous", "offline"):
        if getattr(arguments, flag) or (words is not None and getattr(words, flag)):
            made[flag] = True
    deadline = arguments.deadline if arguments.deadline is not None else (words.deadline if words else None)
    return made if deadline is None else {**made, "deadline": parse_deadline(deadline)}


def parse_deadline(text: str) -> float:
    """Seconds for what is asked of a store far away."""
    least, most = config.REMOTE_DEADLINE_LEAST, config.REMOTE_DEADLINE_MOST
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not least <= seconds <= most:
        raise BadSettingError(f"--deadline {text}: write seconds, {least:g} to {most:g}")
    return seconds


def cache_options(arguments: argparse.Namespace, words: MountWords | None = None) -> dict[str, Any]:
    """What was said of the cache on disk, as `open_store` takes it."""
    made: dict[str, Any] = {}
    given = {name: getattr(arguments, name) or getattr(words, name, None) for name in _CACHE}
    if given["cache_dir"] is not None:
        made["cache_dir"] = os.path.abspath(os.path.expanduser(given["cache_dir"]))
    if given["cache_size"] is not None:
        made["cache_size"] = 0 if given["cache_size"] == "0" else parse_size(given["cache_size"], _disk(made))
    if given["min_free"] is not None:
        made["min_free"] = 0 if given["min_free"] == "0" else parse_size(given["min_free"], _disk(made))
    return made


def _disk(made: dict[str, Any]) -> int:
    """Bytes of the disk that the cache lies on."""
    from shardfs.storage.disk_cache import default_directory, disk_bytes

    directory = made.get("cache_dir") or default_directory()
    return disk_bytes(directory) if directory is not None else 0


def style(arrays: str | None, text: str | None) -> str:
    """How samples are shown, as the layout takes it."""
    return (arrays or ARRAYS[0]) + (config.TEXT_FILES if text == "files" else "")


def _nearest(word: str) -> str:
    import difflib

    known = [option.rstrip("=") for option in OURS]
    near = difflib.get_close_matches(word.partition("=")[0], known, 1)
    if near:
        return f"did you mean {OURS[known.index(near[0])]}?"
    return f"known are: {', '.join(OURS)}"


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
        size = int((config.memory_available() if whole is None else whole) * number / 100)
    elif suffix == "b" and unit:
        size = int(number * 1000 ** "kmgt".index(unit) * 1000)
    else:
        size = int(number * _UNITS[unit])
    if size <= 0:
        raise BadSettingError(f"{text} is no size to work with; write it like 500M, 2G, 1.5GiB or 25%")
    return size
