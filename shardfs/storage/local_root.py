"""Directories below a root, by descriptors.

A path is walked component by component with O_NOFOLLOW, so that no symbolic link in a data set can lead out of it; only
the root itself may be one. Knows nothing of what is in files, nor of listing them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from shardfs.errors import StorageError
from shardfs.storage.local_reader import reason

PASSED_OVER = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM))
"""What opening a directory below the root may say without failing the whole listing."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LocalRoot:
    """The root, at an absolute path; it need not be there before `make`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None

    def open_directory(self, path: str, make: bool = False) -> int:
        """A descriptor of a directory below the root; with `make` it is made where it is missing. StorageError."""
        descriptor = self._open_root()
        for part in path.split("/") if path else ():
            try:
                if make:
                    _make_directory(part, descriptor)
                below = os.open(part, _DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                raise self.error(f"opening {path}", error) from error
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    @contextlib.contextmanager
    def parent(self, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory that holds `name`, and the last component of `name`. StorageError."""
        check_name(self.path, name)
        path, _, last = name.rpartition("/")
        descriptor = self.open_directory(path, make)
        try:
            yield descriptor, last
        finally:
            os.close(descriptor)

    def make(self, what: str) -> None:
        """Make the root for `what`, durably, unless it has been there: should it be gone by now, a new one would be no
        part of that store. StorageError."""
        if self._identity is not None:
            return
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in missing:  # a directory is on disk once the one above it is
                descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise self.error(f"making {what}", error) from error

    def error(self, what: str, error: OSError) -> StorageError:
        """An error of the system as one of ours, which says where it was."""
        return StorageError(f"{what} in {self.path}: {reason(error)}", error.errno or errno.EIO)

    def _open_root(self) -> int:
        """A descriptor of the root. One that was opened before and is gone, or is another, empty directory now (a disk
        that was unmounted), is no empty storage, and none to write to: StorageError."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            if self._identity is not None and error.errno in PASSED_OVER:
                raise StorageError(f"{self.path} is gone: {reason(error)}") from error
            raise self.error("opening", error) from error
        status = os.fstat(descriptor)
        identity = (status.st_dev, status.st_ino)
        if self._identity is not None and identity != self._identity and not os.listdir(descriptor):
            os.close(descriptor)
            raise StorageError(f"{self.path} is another directory than it was, and empty")
        self._identity = identity
        return descriptor


def status_of(directory: int, name: str) -> os.stat_result | None:
    """The status of a regular file in a directory; None for anything else, also if it has just gone.
    StorageError."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"looking at {name}: {reason(error)}", error.errno or errno.EIO) from error
    return status if stat.S_ISREG(status.st_mode) else None


def check_name(root: Path, name: str) -> None:
    """StorageError, EINVAL, for what is no path to a file below the root: `..`, empty parts, what cannot be a name."""
    try:
        known = not {"", ".", ".."}.intersection(name.split("/")) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        known = False
    if not known:
        raise StorageError(f"not a name in {root}: {name!r}", errno.EINVAL)


def _make_directory(name: str, above: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, dir_fd=above)
        os.fsync(above)
