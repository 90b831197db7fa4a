"""Mounts and the processes that serve them, as the operating system sees them: mount table, unmounting, readiness, who
serves which mount point. Knows nothing of FUSE requests, stores or the event loop, and imports neither pyfuse3 nor
trio: what is here runs before the fork, and in processes that serve nothing.
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
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from shardfs import config
from shardfs.errors import MissingSystemError, MountError

log = logging.getLogger("shardfs")

FSTYPE = "fuse.shardfs"

_DETACH = 2
_NOFOLLOW = 8
"""MNT_DETACH and UMOUNT_NOFOLLOW of umount2(2)."""


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
    read_only: bool = False
    options: tuple[str, ...] = ()
    """What its file system was told."""


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
        user = int(owner[1]) if owner else None
        read_only = "ro" in left[5].split(",")
        told = tuple(right[2].split(","))
        found.append(Mounted(_unescape(left[4]), left[2], right[0], _unescape(right[1]), user, read_only, told))
    return found


def mounted_at(path: str) -> Mounted | None:
    """What is mounted exactly at an absolute path without symbolic links, if anything is."""
    found = None
    for mounted in mounts():
        if mounted.path == path:
            found = mounted
    return found


def device_at(path: str) -> str | None:
    """The device of what is mounted at `path`: no two mounts have the same at a time."""
    found = mounted_at(path)
    return None if found is None else found.device


def resolved(path: str | os.PathLike[str]) -> str:
    """An absolute path without symbolic links. Asks nothing of a mount at its end, which may be dead or hang."""
    above, name = os.path.split(os.path.abspath(path))
    candidate = os.path.join(os.path.realpath(above), name)
    return candidate if mounted_at(candidate) else os.path.realpath(candidate)


def unmount(path: str, lazy: bool = False) -> None:
    """Unmount what is at `path` (as `resolved` gives it). MountError says why it cannot be done.

    One that is in use may be so for a moment only: it is tried again for config.UNMOUNT_BUSY seconds.
    """
    until = time.monotonic() + config.UNMOUNT_BUSY
    while (reason := _refused(path, lazy)) is not None:
        if "busy" not in reason:
            raise MountError(f"cannot unmount {path}: {reason}")
        if time.monotonic() >= until:
            raise MountError(
                f"{path} is in use (a program has a file open or its working directory there) and stays mounted; "
                "end that program, or detach the mount with --lazy"
            )
        time.sleep(config.UNMOUNT_AGAIN)


def _refused(path: str, lazy: bool) -> str | None:
    """Unmount it, or why that cannot be done. Root asks the kernel; others, and root without CAP_SYS_ADMIN, ask
    fusermount3."""
    if os.geteuid() == 0:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), _NOFOLLOW | (_DETACH if lazy else 0)) == 0:
            return None
        code = ctypes.get_errno()
        if code != errno.EPERM:
            return "busy" if code == errno.EBUSY else os.strerror(code)
    import subprocess

    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=False
        )
    except FileNotFoundError as error:
        raise MissingSystemError("fusermount3 is not installed; install the package fuse3") from error
    if not done.returncode:
        return None
    said = " ".join(done.stderr.decode("utf-8", "replace").split()).removeprefix("fusermount3: ")
    return said or "fusermount3 failed"


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


def prove(path: str, fstype: str = FSTYPE, seconds: float = config.MOUNT_ANSWER) -> None:
    """Return once the mount at `path` answers. MountError if it does not, or not in time.

    The kernel has found `.shardfs` then: to find it later it would wait for whoever holds the root, which a rename that
    stores a key does for as long as that takes.
    """
    reason = trouble(path, seconds, fstype, find=".shardfs")
    if reason:
        raise MountError(f"the mount at {path} does not work: {reason}; mount with -f to see more")


def trouble(path: str, seconds: float, fstype: str = FSTYPE, find: str = "") -> str:
    """What is wrong with the mount at `path`; nothing if it answers in time. With `find` that name is looked up, too.

    Must not be called by the thread that serves the mount; the question is asked in a thread of its own, because nobody
    can be freed from a system call that the server never answers.
    """
    outcome: list[str] = []

    def ask() -> None:
        try:
            os.statvfs(path)
            if find:
                os.stat(os.path.join(path, find))
            mounted = mounted_at(path)
            outcome.append("" if mounted is not None and mounted.fstype == fstype else "it is not in the mount table")
        except OSError as error:
            outcome.append(os.strerror(error.errno or errno.EIO))

    asking = threading.Thread(target=ask, name="prove", daemon=True)
    asking.start()
    asking.join(seconds)
    return outcome[0] if outcome else f"no answer within {seconds:.0f} s"


# --- who serves which mount point -------------------------------------------------------------------------------------

_ENDING = ".json"
_WORD = ".left"


@dataclass(frozen=True, slots=True)
class Record:
    """Which process serves a mount point, as its daemon wrote it down."""

    pid: int
    started: int
    """The process's start, in clock ticks since boot: a pid alone may be another process's by now."""
    mountpoint: str
    store: str
    writable: bool = False
    patience: float = config.SHUTDOWN_WAIT
    """Seconds that its end waits for what was written to be stored."""


def _started(pid: int, corpse: bool = False) -> int | None:
    """Start of a process that runs; None if there is none, or (without `corpse`) only its corpse."""
    try:
        # the name in parentheses may hold anything, also a parenthesis
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if corpse or fields[0] not in "ZX" else None


def is_ours(found: os.stat_result, uid: int) -> bool:
    """True for the status of a directory in which nobody but `uid` can have put anything: /tmp is everybody's."""
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


def runtime_directories(uid: int, make: bool = False) -> Iterator[Path]:
    """Where a user's daemons may have their records and sockets, the first choice first: those that are there and in
    which nobody else can have put anything. With `make` one that is missing is made when its turn comes."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    own = [Path(given, "shardfs")] if given.startswith("/") else []
    # a service of root's has no session, so neither the first nor the second
    of_root = [Path("/run/shardfs")] if uid == 0 else []
    for directory in (*own, Path(f"/run/user/{uid}/shardfs"), *of_root, Path(f"/tmp/shardfs-{uid}")):
        try:
            if make:
                with contextlib.suppress(OSError):
                    directory.mkdir(mode=0o700)
            found = directory.lstat()
        except OSError:
            continue
        if is_ours(found, uid):
            yield directory


def file_name(mountpoint: str) -> str:
    """What the files of a mount point's daemon are called, without their ending."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32]


@contextlib.contextmanager
def recorded(
    mountpoint: str, store: str, writable: bool = False, patience: float = config.SHUTDOWN_WAIT
) -> Iterator[None]:
    """While inside, `find` tells that this process serves `mountpoint`."""
    uid = os.geteuid()
    record = Record(os.getpid(), _started(os.getpid()) or 0, mountpoint, store, writable, patience)
    path: Path | None = None
    for directory in runtime_directories(uid, make=True):
        try:
            temporary = directory / f".{record.pid}"
            temporary.write_text(json.dumps(asdict(record)), encoding="ascii")
            path = temporary.replace(directory / (file_name(mountpoint) + _ENDING))
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
        found = json.loads(_content(path, uid, 1 << 16))
        pid, started, writable = int(found["pid"]), int(found["started"]), found.get("writable") is True
        patience = float(found.get("patience", config.SHUTDOWN_WAIT))
        return Record(pid, started, str(found["mountpoint"]), str(found["store"]), writable, patience)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content(path: Path, uid: int, limit: int) -> bytes:
    """What a daemon of a user has written. OSError, also for what is somebody else's, a link or no file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if os.fstat(descriptor).st_uid != uid:
            raise PermissionError(errno.EPERM, "it is somebody else's", str(path))
        return file.read(limit)


def find(mountpoint: str, owner: int | None = None) -> Record | None:
    """The running process that serves `mountpoint` (as `resolved` gives it) for user `owner`, as far as is known."""
    uid = os.geteuid() if owner is None else owner
    for directory in runtime_directories(uid):
        record = _read(directory / (file_name(mountpoint) + _ENDING), uid)
        if record is not None and record.mountpoint == mountpoint and _started(record.pid) == record.started:
            return record
    return None


def records(owner: int | None = None) -> list[Record]:
    """All running processes that serve a mount for user `owner`, as far as is known, by mount point."""
    uid = os.geteuid() if owner is None else owner
    found: dict[str, Record] = {}
    for directory in runtime_directories(uid):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            for path in directory.glob(f"*{_ENDING}"):
                record = _read(path, uid)
                if record is not None and _started(record.pid) == record.started:
                    found.setdefault(record.mountpoint, record)
    return [found[mountpoint] for mountpoint in sorted(found)]


def leave_word(mountpoint: str, failed: dict[str, str], kept: dict[str, str]) -> None:
    """Note for who unmounts what was not stored, with the reasons: `hear_word` gives it."""
    if not failed and not kept:
        return
    for directory in runtime_directories(os.geteuid()):
        with contextlib.suppress(OSError):
            temporary = directory / f".{os.getpid()}{_WORD}"
            temporary.write_text(json.dumps([failed, kept]), encoding="ascii")
            temporary.replace(directory / (file_name(mountpoint) + _WORD))
            return


def hear_word(mountpoint: str, owner: int | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """What a daemon that has ended did not store, and what it was not to store; told once."""
    uid = os.geteuid() if owner is None else owner
    for directory in runtime_directories(uid):
        path = directory / (file_name(mountpoint) + _WORD)
        try:
            failed, kept = json.loads(_content(path, uid, config.CONTROL_REPLY))
            path.unlink()
            return dict(failed), dict(kept)
        except (OSError, ValueError, TypeError):
            continue
    return {}, {}


def held_elsewhere(device: str) -> int | None:
    """A process in another mount namespace that has a mount of `device` (`major:minor`), of those that this user may
    look at. A namespace begins with a copy of all mounts, each of which keeps its daemon as long as there is one."""
    looked_at = {os.readlink("/proc/self/ns/mnt")}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            space = os.readlink(f"/proc/{name}/ns/mnt")
            if space in looked_at:
                continue
            looked_at.add(space)
            if any((one.device, one.fstype) == (device, FSTYPE) for one in mounts(f"/proc/{name}/mountinfo")):
                return int(name)
    return None


def wait_until_gone(record: Record, seconds: float = config.MOUNT_GONE) -> bool:
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
