"""One target being served on a fresh mount point, cold; nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench import machine
from tests.bench.forms import Place
from tests.bench.targets import Target

_MOUNT_SECONDS = 60.0
_END_SECONDS = 20.0
_LOOK_SECONDS = 0.001


class NotServedError(Exception):
    """A target could not be mounted; the text is the end of what it said."""


@dataclass(frozen=True, slots=True)
class Served:
    """`begun` is when its command was started, `pid` its process (None for a plain directory)."""

    root: Path
    begun: float
    pid: int | None


@contextlib.contextmanager
def serving(target: Target, place: Place, scratch: Path, words: tuple[str, ...] = ()) -> Iterator[Served]:
    """Serve with cold caches. `words` are added to the command. NotServedError."""
    if target.folder is not None:
        machine.make_cold(place.path(target.form))
        yield Served(target.folder(place), time.perf_counter(), None)
        return
    assert target.serve is not None
    mountpoint = Path(tempfile.mkdtemp(prefix="mnt-", dir=scratch)).resolve()
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(scratch), "XDG_CACHE_HOME": str(scratch.parent / "cache")}
    environment["XDG_STATE_HOME"] = str(scratch / "state")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    with (scratch / "log").open("w+b") as log, contextlib.ExitStack() as stack:
        stack.callback(_remove, mountpoint)
        machine.make_cold(place.path(target.form))
        begun = time.perf_counter()
        process = subprocess.Popen(
            [*target.serve(place, mountpoint), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=machine.REPOSITORY,
            start_new_session=True,
        )
        stack.callback(_end, process, mountpoint)
        while not machine.is_mounted(mountpoint):
            if process.poll() is not None or time.perf_counter() - begun > _MOUNT_SECONDS:
                log.seek(0)
                said = log.read()[-300:].decode(errors="replace").strip()
                raise NotServedError(f"{target.name} does not mount {place.data.name}: {said or 'no reason given'}")
            time.sleep(_LOOK_SECONDS)
        yield Served(mountpoint, begun, process.pid)


def _end(process: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """Unmount; the process ends by itself then, or is made to. Only this process, by its number."""
    machine.unmount(mountpoint)
    for stop in (None, process.terminate, process.kill):
        if stop is not None:
            stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
            break
    machine.unmount(mountpoint)


def _remove(mountpoint: Path) -> None:
    if not machine.is_mounted(mountpoint):
        with contextlib.suppress(OSError):
            mountpoint.rmdir()
