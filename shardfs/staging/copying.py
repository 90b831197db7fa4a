"""Staged files copied into a plain directory, whatever state they are in: the way out that is always there.

Changes nothing in the staging area. A file that cannot be copied stops no other. Knows nothing of stores: the bytes of
stored files come from a function.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shardfs import config
from shardfs.errors import BadSettingError, ShardfsError, StorageError
from shardfs.staging.directory import StagedDirectory
from shardfs.staging.tree import ROOT, StagedEntry


@dataclass(slots=True)
class Copied:
    """What came of it."""

    files: int = 0
    size: int = 0
    """Bytes."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Files that could not be copied, and why."""


Stored = Callable[[StagedEntry], Iterable[bytes | memoryview]]
"""Gives the bytes of an entry that has them in the stored shard; ShardfsError where it cannot."""


def copy_out(directory: StagedDirectory, target: Path, stored: Stored) -> Copied:
    """Copy all entries into `target`, which is made, or empty. BadSettingError where it is not; StorageError where it
    cannot be written to."""
    top = os.fsencode(target)
    try:
        _make_empty(top)
    except OSError as error:
        raise StorageError(f"{target}: {error.strerror or error}", error.errno or errno.EIO) from error
    copied = Copied()
    pending: list[tuple[int, bytes]] = [(ROOT, top)]
    while pending:
        number, place = pending.pop()
        for entry in directory.children(number):
            path = os.path.join(place, entry.name)
            shown = os.fsdecode(os.path.relpath(path, top))
            try:
                if entry.name in (b"", b".", b"..") or b"/" in entry.name or b"\0" in entry.name:
                    raise StorageError("no file can have this name")  # a damaged journal may say anything
                if entry.directory:
                    os.mkdir(path)
                    pending.append((entry.id, path))
                    continue
                copied.size += _copy(entry, path, _pieces(directory, entry, stored))
                copied.files += 1
            except (ShardfsError, OSError) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise StorageError(f"{target}: {error.strerror or error}", error.errno) from error
                copied.left_out.append((shown, str(error)))
    return copied


def _make_empty(path: bytes) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        if os.listdir(path):
            raise BadSettingError(f"{os.fsdecode(path)} is not empty: name a new directory") from None


def _pieces(directory: StagedDirectory, entry: StagedEntry, stored: Stored) -> Iterator[bytes | memoryview]:
    if entry.base is not None:
        yield from stored(entry)
        return
    with directory.open(entry.id, writing=False) as file:
        at = 0
        while piece := file.pread(config.STAGED_COPY, at):
            at += len(piece)
            yield piece


def _copy(entry: StagedEntry, path: bytes, pieces: Iterator[bytes | memoryview]) -> int:
    """Make one file; its size in bytes. Nothing of it is left where that fails."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    size = 0
    try:
        with open(os.open(path, flags, 0o600), "wb") as file:
            for piece in pieces:
                size += file.write(piece)
            file.flush()
            os.fchmod(file.fileno(), entry.mode & 0o777)
            with contextlib.suppress(OSError, OverflowError):  # a time that this file system does not have
                os.utime(file.fileno(), ns=(entry.atime_ns, entry.mtime_ns))
    except FileExistsError:
        raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return size
