"""How a file that is written gets its name, with others who do the same at the same time. Knows nothing of contents."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from shardfs import config
from shardfs.errors import StorageError


@contextlib.contextmanager
def locked(directory: int) -> Iterator[None]:
    """Keeps other writers of this kind out of a directory. Where it cannot be locked (NFS wants it open for writing,
    and nothing opens a directory so) they are only as far apart as a check and a rename. StorageError, EBUSY, where
    somebody keeps it locked: they need milliseconds, but others may hold the same lock for their own ends."""
    until = time.monotonic() + config.LOCK_WAIT
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise StorageError("the directory is locked by another program", errno.EBUSY) from error
            time.sleep(0.005)
        except OSError:
            yield
            return
    try:
        yield
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)


_NO_LINKS = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV))
"""What making a hard link says on a file system that has none."""


def rename(directory: int, old: str, new: str, replace: bool) -> None:
    """Give a file its name. Without `replace` FileExistsError where there is one of that name already; os.rename
    cannot say that, a link can."""
    if not replace:
        try:
            os.link(old, new, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with contextlib.suppress(FileNotFoundError):
                os.stat(new, dir_fd=directory, follow_symlinks=False)
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from error
        else:
            os.unlink(old, dir_fd=directory)
            return
    os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)
