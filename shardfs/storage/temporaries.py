"""Files that are being written under temporary names: whose they are, and which of them nobody writes any more.

A writer holds a lock of its file from its making to its end, so that a file without one is a dead writer's; on the same
machine, for another one may have locks of its own. Knows nothing of what files hold, nor of how they are written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from pathlib import Path

from shardfs import config
from shardfs.errors import StorageError

TEMPORARY = ".shardfs-tmp-"
"""Names that begin so are unfinished writes; no listing shows them."""

_OURS = re.compile(re.escape(TEMPORARY) + r"(?:([0-9a-f]{8})-)?[0-9a-f]{16}")
_UNKNOWN = "0" * 8


def _machine() -> str:
    """What is different for each run of each machine, in eight letters."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return _UNKNOWN
    return hashlib.blake2b(boot, digest_size=4).hexdigest()


def temporary_name() -> str:
    """A name for a file that is still being written, from which this run of this machine can be told."""
    return f"{TEMPORARY}{_machine()}-{secrets.token_hex(8)}"


def is_ours(name: str) -> bool:
    """Whether a file's name is one that `temporary_name` gives, or has given before it told of the machine."""
    return _OURS.fullmatch(name) is not None


def unheld(file: int) -> bool:
    """True if no writer on this machine holds an open file, by whatever name; none can then until it is closed.
    StorageError, EOPNOTSUPP, where files cannot be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        text = "files cannot be locked there, so it cannot be known whether somebody is just writing them"
        raise StorageError(text, errno.EOPNOTSUPP) from error
    return True


def create(directory: int, name: str) -> int:
    """A new file under a temporary name, open for reading and writing and held for as long as that is open. OSError."""
    while True:
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=directory)
        try:
            with contextlib.suppress(OSError):  # no locks here: then nobody takes an unlocked file for a dead one's
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody cleaned up between its making and its lock


def remove_dead(directory: int, name: str) -> bool:
    """Remove an unfinished write of this user's if nobody writes it any more: if it was begun in this run of this
    machine and nobody holds it, or if nobody has touched it for a day. False if it stays. OSError."""
    ours = _OURS.fullmatch(name)
    descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if ours is None or ours[1] is None or not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        here = ours[1] == _machine() != _UNKNOWN
        if not here and time.time() - status.st_mtime < config.TEMPORARY_AGE:
            return False
        try:
            if not unheld(descriptor):
                return False
        except StorageError:  # no locks here
            return False
        if os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino != status.st_ino:
            return False
        os.unlink(name, dir_fd=directory)
        os.fsync(directory)
        return True
    finally:
        os.close(descriptor)
