"""A Superduper artifact store in a local directory: which objects a reference means, and where they lie.

    <root>/<id>              a blob: bytes as their encoder made them
    <root>/<id>/<name>       a file, or a directory with whatever was in it

An id is an opaque name. Symbolic links are nowhere followed; what is neither a file nor a directory is not there. Knows
nothing of rows, types or databases. Source: what superduperdb 0.2 and superduper-framework 0.3 and 0.10 write.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardfs import config
from shardfs.drivers.linked import MOST, SPAN, Object
from shardfs.errors import OverfullShardError, StorageError
from shardfs.storage.local import TEMPORARY, LocalStorage, version_of
from shardfs.storage.local_reader import reason

BLOB, FILE = "&:blob:", "&:file:"

_SHA1 = re.compile(r"[0-9a-f]{40}\Z")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PASSED_OVER = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG))
_NAMED = 600
"""Characters of a reference: two names of 255 bytes and what stands between them."""


def reference(text: str) -> tuple[str, str] | None:
    """(BLOB or FILE, id) of a text that is a reference to an artifact; None for any other. The id is what stands behind
    the last colon: between, some versions have the file's name."""
    kind = text[:7]
    if kind not in (BLOB, FILE) or len(text) > _NAMED:
        return None
    name = text.rpartition(":")[2]
    return (kind, name) if is_id(name) else None


def is_id(name: str) -> bool:
    """Whether a name can be that of an artifact: one file name that leads nowhere else."""
    return 0 < len(name) <= config.NAME_MAX and name not in (".", "..") and not set(name) & {"/", "\0", ":"}


@dataclass(frozen=True, slots=True)
class Folder:
    """A file artifact: what lies in `<root>/<id>`. Paths in the order of a walk; of an empty directory with a `/` at
    its end and no object."""

    name: str
    """Where it lies below the root."""
    files: tuple[tuple[str, int | None], ...]
    """Path, and the number of its object."""


class Objects:
    """The objects that one shard refers to, numbered as they are met, each looked at once.

    `hashed` is true for stores whose blobs are named by their SHA-1. OverfullShardError where there are too many.
    """

    def __init__(self, storage: LocalStorage, hashed: bool) -> None:
        self._storage = storage
        self._hashed = hashed
        self._root = -1
        self.all: list[Object] = []
        self._blobs: dict[str, int | None] = {}
        self._folders: dict[str, Folder | None] = {}

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Objects can be looked for inside this block."""
        try:
            self._root = os.open(self._storage.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._root = -1
        except OSError as error:
            raise StorageError(f"opening {self._storage.root}: {reason(error)}", error.errno or errno.EIO) from error
        try:
            yield
        finally:
            if self._root >= 0:
                os.close(self._root)
            self._root = -1

    def blob(self, name: str) -> int | None:
        """The number of a blob by its id; None where there is none."""
        if name not in self._blobs:
            sha1 = name if self._hashed and _SHA1.match(name) else None
            self._blobs[name] = self._add(name, sha1, self._root, name)
            if self._blobs[name] is None:  # stores of 0.10 may keep them apart
                self._blobs[name] = self._look_below("blobs", name, sha1)
        return self._blobs[name]

    def folder(self, name: str) -> Folder | None:
        """A file artifact by its id; None where there is none, or nothing in it."""
        if name not in self._folders:
            self._folders[name] = self._folder(name) or self._folder(f"files/{name}")
        return self._folders[name]

    def _look_below(self, folder: str, name: str, sha1: str | None) -> int | None:
        below = _opened(folder, self._root)
        if below is None:
            return None
        try:
            return self._add(f"{folder}/{name}", sha1, below, name)
        finally:
            os.close(below)

    def _add(self, path: str, sha1: str | None, directory: int, name: str) -> int | None:
        status = _status(directory, name)
        if status is None or not stat.S_ISREG(status.st_mode) or status.st_size >= SPAN:
            return None
        if len(self.all) >= MOST:
            raise OverfullShardError()
        self.all.append(Object(path, status.st_size, version_of(status), sha1))
        return len(self.all) - 1

    def _folder(self, path: str) -> Folder | None:
        descriptor = _opened(path, self._root)
        if descriptor is None:
            return None
        files: list[tuple[str, int | None]] = []
        self._walk(descriptor, path, "", files, 0)
        return Folder(path, tuple(files)) if files else None

    def _walk(self, directory: int, path: str, inside: str, files: list[tuple[str, int | None]], depth: int) -> None:
        """What is in an opened directory, which is closed."""
        try:
            for name in sorted(os.listdir(directory)):
                status = _status(directory, name)
                if status is None or name.startswith(TEMPORARY):
                    continue
                if len(files) > config.FOLDER_FILES:
                    raise OverfullShardError()
                if stat.S_ISDIR(status.st_mode) and depth < config.NESTING:
                    below, before = _opened(name, directory), len(files)
                    if below is not None:
                        self._walk(below, f"{path}/{name}", f"{inside}{name}/", files, depth + 1)
                        if len(files) == before:
                            files.append((f"{inside}{name}/", None))
                    continue
                number = self._add(f"{path}/{name}", None, directory, name)
                if number is not None:
                    files.append((inside + name, number))
        except OSError as error:
            raise StorageError(f"listing {path}: {reason(error)}", error.errno or errno.EIO) from error
        finally:
            os.close(directory)


def _opened(path: str, root: int) -> int | None:
    """A descriptor of a directory, each part of the way without following a link; None where there is none."""
    if root < 0:
        return None
    descriptor = os.dup(root)
    for part in path.split("/"):
        try:
            below = os.open(part, _DIRECTORY, dir_fd=descriptor)
        except OSError as error:
            if error.errno in _PASSED_OVER:
                return None
            raise StorageError(f"opening {path}: {reason(error)}", error.errno or errno.EIO) from error
        except ValueError:  # a name that no directory can have
            return None
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def _status(directory: int, name: str) -> os.stat_result | None:
    if directory < 0:
        return None
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError as error:
        if error.errno in _PASSED_OVER:
            return None
        raise StorageError(f"looking at {name}: {reason(error)}", error.errno or errno.EIO) from error
    except ValueError:  # a name that no file can have
        return None


def listed(root: Path) -> tuple[list[str], list[str]]:
    """The ids of all blobs and of all file artifacts in a store, sorted. StorageError.

    Directories `blobs` and `files` in which artifacts are kept apart count as what they are, if they hold any.
    """
    blobs: set[str] = set()
    files: set[str] = set()
    for below, both in (("", True), ("blobs", False), ("files", False)):
        try:
            with os.scandir(root / below) as entries:
                for entry in entries:
                    if entry.name.startswith(TEMPORARY) or not is_id(entry.name):
                        continue
                    if entry.is_file(follow_symlinks=False) and (both or below == "blobs"):
                        blobs.add(entry.name)
                    elif entry.is_dir(follow_symlinks=False) and (both or below == "files"):
                        files.add(entry.name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise StorageError(f"listing {root / below}: {reason(error)}", error.errno or errno.EIO) from error
    return sorted(blobs), sorted(files - {"blobs", "files"})
