"""The process and its mount point as the operating system sees them: mount table, unmounting, background process,
readiness, who serves which mount point. Knows nothing of FUSE requests, stores or the event loop, and imports neither
pyfuse3 nor trio: what is here runs before the fork, and in processes that serve nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NoReturn

from shardfs.errors import MountError

log = logging.getLogger("shardfs")

FSTYPE = "fuse.shardfs"

ANSWER_SECONDS = 30.0
"""A new mount that has not answered statvfs by then is taken for broken. It needs a millisecond."""

GONE_SECONDS = 10.0
"""`shardfs umount` waits so long for the daemon to end."""

_DETACH = 2
_NOFOLLOW = 8
"""MNT_DETACH and UMOUNT_NOFOLLOW of umount2(2)."""


class MissingSystemError(MountError):
    """The system lacks what a mount needs (a device, a program, a package, a permission); the text says what to do."""

    errno = errno.ENOSYS


# --- the mount table --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mounted:
    """One line of the mount table."""

    path: str
    device: str
    """Its device's numbers, `major:minor`."""
    fstype: str
    source: str
    owner: int | None
    """Who mounted it, for a FUSE mount."""


def _unescape(field: str) -> str:
    plain = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), os.fsencode(field))
    return os.fsdecode(plain)


def mounts(table: str = "/proc/self/mountinfo") -> list[Mounted]:
    """All mounts this process can see, oldest first: of several on one path the last one is what is seen there."""
    found = []
    text = Path(table).read_bytes().decode("utf-8", "surrogateescape")
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 6 or len(right) < 3:
            continue
        owner = re.search(r"(?:^|,)user_id=(\d+)", right[2])
        found.append(
            Mounted(_unescape(left[4]), left[2], right[0], _unescape(right[1]), int(owner[1]) if owner else None)
        )
    return found


def mounted_at(path: str) -> Mounted | None:
    """What is mounted exactly at an absolute path without symbolic links, if anything is."""
    found = None
    for mounted in mounts():
        if mounted.path == path:
            found = mounted
    return found


def resolved(path: str | os.PathLike[str]) -> str:
    """An absolute path without symbolic links. Asks nothing of a mount at its end, which may be dead or hang."""
    above, name = os.path.split(os.path.abspath(path))
    candidate = os.path.join(os.path.realpath(above), name)
    return candidate if mounted_at(candidate) else os.path.realpath(candidate)


def unmount(path: str, lazy: bool = False) -> None:
    """Unmount what is at `path` (as `resolved` gives it). MountError says why it cannot be done.

    Root asks the kernel; others, and root without CAP_SYS_ADMIN, ask fusermount3.
    """
    if os.geteuid() == 0:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), _NOFOLLOW | (_DETACH if lazy else 0)) == 0:
            return
        code = ctypes.get_errno()
        if code != errno.EPERM:
            raise _not_unmounted(path, os.strerror(code), code == errno.EBUSY)
    import subprocess

    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False
        )
    except FileNotFoundError as error:
        raise MissingSystemError("fusermount3 is not installed; install the package fuse3") from error
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace").split()).removeprefix("fusermount3: ")
        raise _not_unmounted(path, said, "busy" in said)


def _not_unmounted(path: str, reason: str, busy: bool) -> MountError:
    if not busy:
        return MountError(f"cannot unmount {path}: {reason}")
    return MountError(
        f"{path} is in use (a program has a file open or its working directory there) and stays mounted; "
        "end that program, or detach the mount with --lazy"
    )


def repair(path: str) -> bool:
    """Detach what a shardfs daemon that died has left at `path`. True if there was something. MountError."""
    try:
        os.statvfs(path)  # not stat, which the kernel answers for a while by itself
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            return False
        mounted = mounted_at(path)
        if mounted is None or mounted.fstype != FSTYPE:
            what = "something" if mounted is None else f"{mounted.source} ({mounted.fstype})"
            raise MountError(
                f"{path} is a mount of {what} whose server has died; unmount it: fusermount3 -u -z {path}"
            ) from error
        unmount(path, lazy=True)
        return True
    return False


def prove(path: str, seconds: float = ANSWER_SECONDS) -> None:
    """Return once the mount at `path` answers. MountError if it does not, or not in time.

    Must not be called by the thread that serves the mount; the question is asked in a thread of its own, because nobody
    can be freed from a system call that the server never answers.
    """
    outcome: list[str] = []

    def ask() -> None:
        try:
            os.statvfs(path)
            mounted = mounted_at(path)
            outcome.append("" if mounted is not None and mounted.fstype == FSTYPE else "it is not in the mount table")
        except OSError as error:
            outcome.append(os.strerror(error.errno or errno.EIO))

    asking = threading.Thread(target=ask, name="prove", daemon=True)
    asking.start()
    asking.join(seconds)
    reason = outcome[0] if outcome else f"no answer within {seconds:.0f} s"
    if reason:
        raise MountError(f"the mount at {path} does not work: {reason}; mount with -f to see more")


def notify(state: str) -> None:
    """Tell systemd (sd_notify) in what state this service is, if it asked for that."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    import socket

    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        end.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


# --- who serves which mount point -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """Which process serves a mount point, as its daemon wrote it down."""

    pid: int
    started: int
    """The process's start, in clock ticks since boot: a pid alone may be another process's by now."""
    mountpoint: str
    store: str
    writable: bool = False


def _started(pid: int, corpse: bool = False) -> int | None:
    """Start of a process that runs; None if there is none, or (without `corpse`) only its corpse."""
    try:
        # the name in parentheses may hold anything, also a parenthesis
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if corpse or fields[0] not in "ZX" else None


def _directories(uid: int) -> Iterator[Path]:
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given.startswith("/"):
        yield Path(given, "shardfs")
    yield Path(f"/run/user/{uid}/shardfs")
    yield Path(f"/tmp/shardfs-{uid}")


def _is_ours(directory: Path, uid: int) -> bool:
    """True for a directory in which nobody else can have put anything: /tmp is everybody's."""
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


def _name(mountpoint: str) -> str:
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32] + ".json"


@contextlib.contextmanager
def recorded(mountpoint: str, store: str, writable: bool = False) -> Iterator[None]:
    """While inside, `find` tells that this process serves `mountpoint`."""
    uid = os.geteuid()
    record = Record(os.getpid(), _started(os.getpid()) or 0, mountpoint, store, writable)
    path: Path | None = None
    for directory in _directories(uid):
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700)
        if not _is_ours(directory, uid):
            continue
        try:
            temporary = directory / f".{record.pid}"
            temporary.write_text(json.dumps(asdict(record)), encoding="ascii")
            path = temporary.replace(directory / _name(mountpoint))
            break
        except OSError as error:
            log.debug("no record in %s: %s", directory, error)
    if path is None:
        log.warning("nowhere to note this process's number: shardfs umount will not wait for it")
    try:
        yield
    finally:
        if path is not None and _read(path, uid) == record:  # not that of a daemon that mounted here after us
            with contextlib.suppress(OSError):
                path.unlink()


def _read(path: Path, uid: int) -> Record | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            if os.fstat(descriptor).st_uid != uid:
                return None
            found = json.loads(file.read(1 << 16))
        record = Record(int(found["pid"]), int(found["started"]), str(found["mountpoint"]), str(found["store"]))
        return replace(record, writable=found.get("writable") is True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find(mountpoint: str, owner: int | None = None) -> Record | None:
    """The running process that serves `mountpoint` (as `resolved` gives it) for user `owner`, as far as is known."""
    uid = os.geteuid() if owner is None else owner
    for directory in _directories(uid):
        if not _is_ours(directory, uid):
            continue
        record = _read(directory / _name(mountpoint), uid)
        if record is not None and record.mountpoint == mountpoint and _started(record.pid) == record.started:
            return record
    return None


def leave_word(mountpoint: str, failed: dict[str, str], kept: dict[str, str]) -> None:
    """Note for who unmounts what was not stored, with the reasons: `hear_word` gives it."""
    uid = os.geteuid()
    for directory in _directories(uid):
        if _is_ours(directory, uid):
            with contextlib.suppress(OSError):
                (directory / _name(mountpoint)).with_suffix(".left").write_text(
                    json.dumps([failed, kept]), encoding="ascii"
                )
                return


def hear_word(mountpoint: str, owner: int | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """What a daemon that has ended did not store, and what it was not to store; told once."""
    uid = os.geteuid() if owner is None else owner
    for directory in _directories(uid):
        path = (directory / _name(mountpoint)).with_suffix(".left")
        if _is_ours(directory, uid) and path.exists():
            with contextlib.suppress(OSError, ValueError):
                failed, kept = json.loads(path.read_bytes())
                path.unlink()
                return dict(failed), dict(kept)
    return {}, {}


def wait_until_gone(record: Record, seconds: float = GONE_SECONDS) -> bool:
    """Wait for a process's end; False if it still runs after that time."""
    try:
        watched = os.pidfd_open(record.pid)
    except OSError:  # gone, or a kernel without this: then look now and again
        end = time.monotonic() + seconds
        while _started(record.pid) == record.started:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True
    try:
        # also what looks like a corpse is watched: other threads may still hold the mount when the first one has ended
        same = _started(record.pid, corpse=True) == record.started
        return not same or bool(select.select([watched], [], [], seconds)[0])
    finally:
        os.close(watched)


# --- the background process -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the background process ended before it was ready."""

    code: int
    text: str


Explain = Callable[[BaseException], tuple[int, str]]


def start(serve: Callable[[Callable[[], None]], None], explain: Explain, log_file: str | None) -> int | Failure:
    """Run `serve` in a background process. Returns that process's number once it says that it is ready, or why not.

    `serve` is given a function to call when the mount is there and its loop is about to run. Call this before anything
    starts a thread: a child has only the one that forked. What the child prints is seen until it is ready.
    """
    reading, writing = os.pipe()
    while min(reading, writing) < 3:  # standard descriptors were closed: these numbers become /dev/null in the child
        reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(serve, explain, log_file, writing)
    os.close(writing)
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


def _child(serve: Callable[[Callable[[], None]], None], explain: Explain, log_file: str | None, pipe: int) -> NoReturn:
    code = 1
    told = False

    def tell(message: bytes) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(pipe, message)
            os.close(pipe)

    def ready() -> None:
        _point(2, log_file)  # before telling: whoever reads our stderr to its end must not wait for the unmount
        tell(b"ready")

    try:
        os.setsid()
        os.chdir("/")
        _point(0, None)
        _point(1, None)
        # whatever the shell had open (a lock, a pipe) must not live as long as the mount
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > 2 and number != pipe:
                with contextlib.suppress(OSError):
                    os.close(number)
        os.environ.pop("NOTIFY_SOCKET", None)  # the service manager watches the parent
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
