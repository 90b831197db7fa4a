"""Artifacts that nothing refers to: which there are, and taking one away. Superduper itself never removes any.

Knows nothing of databases but the texts in them.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shardfs.drivers.garbage import Garbage
from shardfs.drivers.superduper_artifacts import listed
from shardfs.errors import StaleShardError, StorageError
from shardfs.model import Version
from shardfs.storage.local import TEMPORARY, temporary_name, version_of
from shardfs.storage.local_reader import reason

_REFERENCE = re.compile(r"&:(?:blob|file):[^\s\"'\\,}\]]*")
_WORD = re.compile(r"[0-9A-Za-z_.\-]{8,}")
"""What an id looks like that the library makes. A text that has one in it, wherever, is taken to refer to it."""

REASON = "no row and no component refers to it"


def referred(texts: Iterable[str]) -> set[str]:
    """All that may be the id of an artifact in some texts: rather too much than too little."""
    found: set[str] = set()
    for text in texts:
        if "&:" in text:
            found.update(match.rpartition(":")[2] for match in _REFERENCE.findall(text))
        found.update(_WORD.findall(text))
    return found


@dataclass(frozen=True, slots=True)
class _Measured:
    size: int
    mtime_ns: int
    version: Version


def unreferenced(root: Path, needed: set[str]) -> list[Garbage]:
    """All artifacts of a store that are not among `needed`, and what writers of ours left unfinished. StorageError."""
    blobs, files = listed(root)
    found = []
    for name in (*blobs, *files):
        if name not in needed:
            where = _place(root, name)
            made = None if where is None else _measured(where)
            if where is not None and made is not None:
                path = str(where.relative_to(root))
                found.append(Garbage(path, "unnamed", REASON, made.size, made.mtime_ns, made.version))
    for entry in sorted(os.listdir(root)) if root.is_dir() else ():
        if entry.startswith(TEMPORARY):
            made = _measured(root / entry)
            if made is not None:
                text = "a writer began it, and did not finish"
                found.append(Garbage(entry, "unfinished", text, made.size, made.mtime_ns, made.version))
    return sorted(found, key=lambda one: one.name)


def _place(root: Path, name: str) -> Path | None:
    for path in (root / name, root / "blobs" / name, root / "files" / name):
        if os.path.lexists(path):
            return path
    return None


def _measured(path: Path) -> _Measured | None:
    """What a file, or all in a directory, comes to; None for what has just gone."""
    try:
        status = os.lstat(path)
        size, mtime, version = status.st_size, status.st_mtime_ns, version_of(status)
        if path.is_dir() and not path.is_symlink():
            size = 0
            for where, _, names in os.walk(path):
                for name in names:
                    below = os.lstat(os.path.join(where, name))
                    size, mtime = size + below.st_size, max(mtime, below.st_mtime_ns)
                    version = Version(f"{version}+{version_of(below)}") if len(version) < 4096 else version
        return _Measured(size, mtime, version)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"looking at {path}: {reason(error)}", error.errno or errno.EIO) from error


def discard(root: Path, found: Garbage) -> None:
    """Remove an artifact for good. StaleShardError if it is not what it was; StorageError."""
    path = root / found.name
    made = _measured(path)
    if made is None or made.version != found.version:
        raise StaleShardError(f"{found.name} was changed since it was looked at")
    aside = root / (found.name if found.name.startswith(TEMPORARY) else temporary_name())
    try:
        if aside != path:
            os.rename(path, aside)  # it goes as a whole, however much is in it
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            os.unlink(aside)
    except OSError as error:
        raise StorageError(f"removing {found.name}: {reason(error)}", error.errno or errno.EIO) from error
