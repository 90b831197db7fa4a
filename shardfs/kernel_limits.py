"""What the kernel allows one FUSE mount at a time, raised where this process may. Knows nothing of what is served.

Both limits hold for reads through the page cache, which is nearly all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from collections.abc import Iterator

from shardfs import config, daemon

log = logging.getLogger("shardfs")

CONNECTIONS = "/sys/fs/fuse/connections"
"""Where fusectl is mounted, if it is: systemd does that, a container mostly does not."""

_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
"""Numbers of system calls, the same on all machines that Python 3.11 is built for."""

_CLOEXEC, _CMD_CREATE = 1, 6


def raise_limits(path: str) -> None:
    """Raise the limits of the mount at `path`. Asks the mount, so call it in a thread while the mount is served."""
    with contextlib.suppress(OSError):
        os.statvfs(path)  # the kernel sets its own figures with the first answer
        mounted = daemon.mounted_at(path)
        if mounted is None:
            return
        _raise_background(mounted.device.rpartition(":")[2])
        with open(f"/sys/class/bdi/{mounted.device}/read_ahead_kb", "w") as file:
            file.write(str(config.READ_AHEAD_KB))


def _raise_background(connection: str) -> None:
    """Its number is the minor number of the mount's device. Whoever mounted may write there, not root only."""
    try:
        with _fusectl() as folder:
            for name in ("max_background", "congestion_threshold"):
                flags = os.O_WRONLY | os.O_CLOEXEC
                with open(os.open(f"{connection}/{name}", flags, dir_fd=folder), "w") as file:
                    file.write(str(config.BACKGROUND if name == "max_background" else config.BACKGROUND * 3 // 4))
    except OSError as error:
        log.info("a dozen reads that wait for slow shards hold up all others: max_background stays (%s)", error)


@contextlib.contextmanager
def _fusectl() -> Iterator[int]:
    """A descriptor of the root of fusectl: where it is mounted, or of a mount that nobody else sees. OSError."""
    if os.path.isdir(CONNECTIONS) and os.listdir(CONNECTIONS):
        descriptor = os.open(CONNECTIONS, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        descriptor = _mount_unseen()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _mount_unseen() -> int:
    context = _system_call(_FSOPEN, b"fusectl", _CLOEXEC)
    try:
        _system_call(_FSCONFIG, context, _CMD_CREATE, None, None, 0)
        return _system_call(_FSMOUNT, context, _CLOEXEC, 0)
    finally:
        os.close(context)


def _system_call(number: int, *arguments: int | bytes | None) -> int:
    ctypes.set_errno(0)
    result: int = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
