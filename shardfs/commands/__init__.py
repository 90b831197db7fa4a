"""What all commands share: exit statuses, and how an error becomes one line. Knows nothing of any one command.

Each command is a module here with `run(arguments) -> exit status`, imported only when it runs.
"""

from __future__ import annotations

import errno
import os
import sys

OK, FAILED, USAGE, STORE, MOUNTPOINT, SYSTEM, BUSY = range(7)
INTERRUPTED, BROKEN_PIPE = 130, 141

EXIT_STATUS = {
    OK: "all went well",
    FAILED: "something failed while working: a damaged shard, a path that is not there, a key that was not stored",
    USAGE: "the command line makes no sense",
    STORE: "the store is missing, or it is unclear what it is",
    MOUNTPOINT: "the mount point cannot be used, or not be unmounted, or its mount does not answer",
    SYSTEM: "the system lacks something: /dev/fuse, a package, a permission",
    BUSY: "a file is open for writing, or another process has what is staged: try again later",
    INTERRUPTED: "interrupted (Ctrl-C)",
    BROKEN_PIPE: "nobody reads the output any more",
}


def explain(error: BaseException, verbosity: int = 0) -> tuple[int, str]:
    """Exit status and one line for an error. With -vv an unexpected one also prints its traceback."""
    from shardfs.errors import (  # here: `shardfs --help` needs none of these
        BadSettingError,
        BadStoreError,
        MissingExtraError,
        MissingSystemError,
        MountError,
        ShardfsError,
    )

    status_of: tuple[tuple[type[BaseException], int], ...] = (
        (BadStoreError, STORE),
        (BadSettingError, USAGE),
        (MissingExtraError, SYSTEM),
        (MissingSystemError, SYSTEM),
        (MountError, MOUNTPOINT),
        (KeyboardInterrupt, INTERRUPTED),
    )
    error = unwrapped(error)
    for kind, status in status_of:
        if isinstance(error, kind):
            return status, one_line(str(error) or "interrupted")
    if isinstance(error, ShardfsError):
        return BUSY if error.errno == errno.EBUSY else FAILED, one_line(str(error))
    if isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        return FAILED, one_line(reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}")
    if isinstance(error, MemoryError):
        return FAILED, "out of memory"
    if verbosity >= 2:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
        return FAILED, one_line(f"unexpected {type(error).__name__}: {error}")
    return FAILED, one_line(f"unexpected {type(error).__name__}: {error} (a bug in shardfs; -vv shows where)")


def unwrapped(error: BaseException) -> BaseException:
    """The one error in groups of one, which each nursery makes of what passes through it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def one_line(text: str) -> str:
    """A text without line breaks and other control characters: what is in it may come from a store."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def as_json(value: object, indent: int | None = 2) -> str:
    """JSON that is valid whatever is in it: names that are no UTF-8 hold lone surrogates, which are escaped."""
    import json

    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", "backslashreplace").decode("utf-8")


def tell(text: str, priority: int = 6) -> None:
    """One line on stderr; `priority` (of syslog: 3 an error, 6 information) is for the journal, if it reads there."""
    if sys.stderr is not None:
        print(f"<{priority}>{text}" if under_journal() else f"shardfs: {text}", file=sys.stderr, flush=True)


def under_journal() -> bool:
    """Whether standard error goes to the journal of systemd: what it set there for a service may since be elsewhere."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not device.isdecimal() or not inode.isdecimal():
        return False
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (int(device), int(inode))
