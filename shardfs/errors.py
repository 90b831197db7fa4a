"""Every deliberate error, with the errno a file system shows for it. Knows nothing of FUSE or of formats."""

from __future__ import annotations

import errno
from errno import EIO, ENOENT

__all__ = [
    "BadSampleError",
    "BadSettingError",
    "BadStoreError",
    "CameDamagedError",
    "DamagedShardError",
    "KeyExistsError",
    "LeftStagedError",
    "MissingExtraError",
    "MissingFileError",
    "MissingKeyError",
    "MissingSystemError",
    "MountError",
    "NotWritableError",
    "OverfullShardError",
    "RenumberingError",
    "ShardfsError",
    "StagingError",
    "StagingLockedError",
    "StaleShardError",
    "StorageError",
    "UnknownCommandError",
]


class ShardfsError(Exception):
    """Base of all errors raised on purpose; `errno` is what a file system call reports."""

    errno: int = errno.EIO


class BadSettingError(ShardfsError, ValueError):
    """A setting, option or argument that makes no sense; the text names it and says what to do."""

    errno = errno.EINVAL


class BadSampleError(ShardfsError, ValueError):
    """A file that cannot be read back into its sample: `file` is its name, `reason` says what is wrong with it."""

    errno = errno.EINVAL

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = file
        self.reason = reason


class BadStoreError(ShardfsError, ValueError):
    """A store that is missing, unclear or broken as a whole (a data set's index, a directory that is none)."""

    errno = errno.EINVAL


class MissingExtraError(ShardfsError, ImportError):
    """An optional package is needed for this and is not installed; the text says what to install."""

    errno = errno.ENOSYS


class MissingKeyError(ShardfsError, KeyError):
    """The store has no such key."""

    errno = errno.ENOENT

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "no such key"


class KeyExistsError(ShardfsError, FileExistsError):
    """The store has such a key already, and what was to be stored is no new version of it."""

    errno = errno.EEXIST

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "the key exists"


class NotWritableError(ShardfsError, PermissionError):
    """This store, or this format, can only be read here."""

    errno = errno.EROFS

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "not writable"


class RenumberingError(NotWritableError):
    """A change that would give samples of other shards other numbers, where all share one numbering."""

    errno = errno.EPERM


class UnaskedError(ShardfsError):
    """A key that is stored when somebody asks for that, and not by itself."""

    errno = errno.EAGAIN


class StorageError(ShardfsError, OSError):
    """Bytes could not be fetched or put; `errno` is that of the operating system where there is one."""

    errno: int

    def __init__(self, text: str, code: int = EIO) -> None:
        super().__init__(text)
        self.errno = code

    def __str__(self) -> str:
        return str(self.args[0])


class CameDamagedError(StorageError):
    """What was fetched is not what the store has: another try may go better."""


class MissingFileError(StorageError, FileNotFoundError):
    """There is no such file."""

    def __init__(self, text: str) -> None:
        super().__init__(text, ENOENT)


class StaleShardError(ShardfsError):
    """The store no longer has the version of the shard that was asked for."""

    errno = errno.ESTALE


class MountError(ShardfsError):
    """A mount could not be made or ended; the text says what to do."""


class MissingSystemError(MountError):
    """The system lacks what a mount needs (a device, a program, a package, a permission); the text says what to do."""

    errno = errno.ENOSYS


class LeftStagedError(ShardfsError):
    """A mount has ended, and these keys could not be stored (key -> reason); what was written to them stays staged."""

    def __init__(self, failed: dict[str, str]) -> None:
        first, reason = next(iter(failed.items()))
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        super().__init__(f"not stored: {first}: {reason}{more}; it stays staged for the next mount")
        self.failed = failed


class UnknownCommandError(MountError):
    """A mount was asked for something that it does not offer: it is read-only, or of another release."""

    errno = errno.ENOSYS


class DamagedShardError(ShardfsError):
    """A shard whose bytes are not what its format allows.

    `offset` is a position in the shard's raw (decompressed) bytes, or None where none is known; `key` is filled in
    by whoever knows it.
    """

    errno = errno.EIO

    def __init__(self, reason: str, offset: int | None = None, key: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset
        self.key = key

    def __str__(self) -> str:
        where = "" if self.offset is None else f" at byte {self.offset}"
        what = "shard" if self.key is None else f"shard {self.key!r}"
        return f"{what} is damaged{where}: {self.reason}"


class OverfullShardError(DamagedShardError):
    """A shard that holds more values than its stored bytes can hold in earnest: made to keep its reader busy."""

    def __init__(self, offset: int | None = None) -> None:
        super().__init__("more values than stored bytes of this number can hold in earnest", offset)


class StagingError(StorageError):
    """A staged directory does not allow this, or its disk failed; `errno` is what a file system call reports."""


class StagingLockedError(StagingError):
    """Another process has this store's staging area open; the text says which, `pid` too where it is known."""

    def __init__(self, text: str, pid: int | None = None) -> None:
        super().__init__(text, errno.EBUSY)
        self.pid = pid
