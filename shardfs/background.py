"""The background process: forked, cut off from its starter, and its word that it is ready. Knows nothing of mounts."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from shardfs import sd_notify

log = logging.getLogger("shardfs")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the background process ended before it was ready."""

    code: int
    text: str


Explain = Callable[[BaseException], tuple[int, str]]


def start(
    serve: Callable[[Callable[[], None]], None], explain: Explain, log_file: str | None, keep: Sequence[int] = ()
) -> int | Failure:
    """Run `serve` in a background process. Returns that process's number once it says that it is ready, or why not.

    `serve` is given a function to call when the mount is there and its loop is about to run. Call this before anything
    starts a thread: a child has only the one that forked. What the child prints is seen until it is ready. The
    descriptors in `keep` (above 2) are the child's from then on; of all others it has none.
    """
    reading, writing = os.pipe()
    while min(reading, writing) < 3:  # standard descriptors were closed: these numbers become /dev/null in the child
        reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(serve, explain, log_file, writing, keep)
    for number in (writing, *keep):
        os.close(number)
    try:
        with open(reading, "rb") as pipe:
            said = pipe.read()
    except KeyboardInterrupt:
        end(pid)
        raise
    if said == b"ready":
        return pid
    _, status = os.waitpid(pid, 0)
    try:
        code, text = json.loads(said)
    except ValueError:
        code = os.waitstatus_to_exitcode(status)
        text = f"the background process ended ({f'signal {-code}' if code < 0 else f'exit status {code}'}); try -f"
        return Failure(1, text)
    return Failure(code, text)


def end(pid: int) -> None:
    """End a background process of ours, and see it off."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def _child(
    serve: Callable[[Callable[[], None]], None],
    explain: Explain,
    log_file: str | None,
    pipe: int,
    keep: Sequence[int],
) -> NoReturn:
    code = 1
    told = False

    def tell(message: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(pipe, message)
            os.close(pipe)

    def ready() -> None:
        # not earlier: an automount holds up all but the process group of its manager, until it is mounted
        os.setsid()
        _point(2, log_file)  # before telling: whoever reads our stderr to its end must not wait for the unmount
        tell(b"ready")

    try:
        os.chdir("/")
        _point(0, None)
        _point(1, None)
        # whatever the shell had open (a lock, a pipe) must not live as long as the mount
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > 2 and number != pipe and number not in keep:
                with contextlib.suppress(OSError):
                    os.close(number)
        sd_notify.forget()  # the service manager watches the parent
        serve(ready)
        code = 0
    except BaseException as error:
        code, text = explain(error)
        if told:
            log.error("%s", text)
        tell(json.dumps([code, text]).encode())
    finally:
        # no way back into the caller's code; what it has registered for its exit is the parent's to do
        logging.shutdown()
        os._exit(code)


def _point(descriptor: int, path: str | None) -> None:
    """Make a standard descriptor /dev/null, or the log."""
    flags = os.O_RDWR if path is None else os.O_WRONLY | os.O_APPEND | os.O_CREAT
    opened = os.open(path or os.devnull, flags | os.O_CLOEXEC, 0o666)
    os.dup2(opened, descriptor)
    os.close(opened)
