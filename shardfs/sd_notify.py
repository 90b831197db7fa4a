"""What a process says to the service manager that started it, as sd_notify(3) has it: datagrams to a socket.

Knows nothing of mounts, and of systemd only this protocol, which other managers and container runtimes speak, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket

log = logging.getLogger("shardfs")

_SOCKET, _EVERY, _WHOM = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"


def is_asked() -> bool:
    """Whether somebody wants to be told."""
    return os.environ.get(_SOCKET, "").startswith(("/", "@"))


def tell(*states: str) -> None:
    """Say one or several of `READY=1`, `STATUS=...`, ..., in one datagram. Never waits, and what cannot be said is
    dropped: a manager that does not listen is no reason to stop.

    The socket's name is a path, or an abstract one behind an `@`.
    """
    address = os.environ.get(_SOCKET, "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    text = "\n".join(state.replace("\n", " ") for state in states)
    try:
        with socket.socket(socket.AF_UNIX, kind) as end:
            end.sendto(text.encode("utf-8", "backslashreplace"), address)
    except OSError as error:
        log.debug("the service manager does not hear %s: %s", text, error)


def watchdog_seconds() -> float | None:
    """How often it wants a `WATCHDOG=1` at least, in seconds; None where it wants none of this process."""
    if not is_asked():
        return None
    with contextlib.suppress(ValueError):
        if int(os.environ.get(_WHOM) or os.getpid()) == os.getpid():
            seconds = int(os.environ[_EVERY]) / 1e6 if _EVERY in os.environ else 0.0
            return seconds if seconds > 0 else None
    return None


def forget() -> None:
    """Let processes started from here on not speak for this one: a child has no part in what is said of it."""
    for name in (_SOCKET, _EVERY, _WHOM):
        os.environ.pop(name, None)
