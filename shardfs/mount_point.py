"""The mount point of a mount: what must be so before it can be made, making it, and saying why it cannot be.

Knows nothing of what is served there, nor of pyfuse3: what mounts is given as a function.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator

from shardfs import daemon
from shardfs.errors import MissingSystemError, MountError

log = logging.getLogger("shardfs")

_AUTOMOUNT = "autofs"
"""What waits at a path for somebody to look at it, and has it mounted then."""

_NO_RIGHT = ("Operation not permitted", "Permission denied", "user_allow_other", "device not found", "No such device")
"""What libfuse or fusermount3 says when it is the system that refuses, not the mount point."""


def check_system() -> None:
    """MissingSystemError, saying what to do, where this process could not mount anything."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as error:
        raise MissingSystemError(
            "/dev/fuse is missing: load the kernel module (modprobe fuse); "
            "in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
        ) from error
    except OSError as error:
        raise MissingSystemError(
            f"/dev/fuse cannot be opened ({os.strerror(error.errno or errno.EIO)}): "
            "let this user read and write it; in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
        ) from error
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MissingSystemError("mounting as a user needs fusermount3: install the package fuse3")


def check_apart(path: str, places: Iterable[str | os.PathLike[str]]) -> None:
    """MountError if one of mount point and local store would lie in the other; `places` are where its files are."""
    for place in places:
        _check_apart(path, os.path.realpath(place))


def _check_apart(path: str, where: str) -> None:
    if path == where or path.startswith(where.rstrip("/") + "/"):
        raise MountError(f"mount point {path} lies inside the store {where}: mount elsewhere")
    if where.startswith(path.rstrip("/") + "/"):
        raise MountError(f"the store {where} lies inside the mount point {path} and would be hidden: mount elsewhere")


@contextlib.contextmanager
def prepared(path: str, nonempty: bool) -> Iterator[None]:
    """A mount point fit for use; one that is made here is removed at the end if it is empty by then. MountError."""
    mounted = daemon.mounted_at(path)
    if mounted is not None and mounted.fstype == _AUTOMOUNT:
        yield  # whoever looks into it waits until it is mounted: for us
        return
    if daemon.repair(path):
        log.warning("detached what a daemon that died had left at %s", path)
    mounted = daemon.mounted_at(path)
    if mounted is not None and mounted.fstype == daemon.FSTYPE:
        raise MountError(f"{path} is mounted already ({mounted.source}); unmount it: shardfs umount {path}")
    made = False
    try:
        os.mkdir(path)
        made = True
    except FileExistsError:
        _check_directory(path, nonempty)
    except FileNotFoundError as error:
        above = os.path.dirname(path)
        reason = "no directory can be made there" if os.path.isdir(above) else f"{above} is not there"
        raise MountError(f"cannot make {path}: {reason}") from error
    except OSError as error:
        raise MountError(f"cannot make mount point {path}: {os.strerror(error.errno or errno.EIO)}") from error
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # still mounted, or somebody put something in it
                os.rmdir(path)


def _check_directory(path: str, nonempty: bool) -> None:
    try:
        with os.scandir(path) as entries:
            empty = next(entries, None) is None
    except NotADirectoryError as error:
        raise MountError(f"mount point {path} is not a directory") from error
    except OSError as error:
        raise MountError(f"cannot look into mount point {path}: {os.strerror(error.errno or errno.EIO)}") from error
    if not empty and not nonempty:
        raise MountError(f"mount point {path} is not empty: choose another, or hide what is there with -o nonempty")


def fuse_options(url: str, writable: bool, allow_other: bool) -> set[str]:
    """What libfuse is given. Without max_read, which breaks the mount."""
    chosen = {
        f"fsname={source_name(url)}",
        "subtype=shardfs",
        "rw" if writable else "ro",  # ro also keeps reads from marking atime stale, which costs a GETATTR per stat
        "nosuid",  # both are fusermount3's default and not the kernel's, when root mounts
        "nodev",
    }
    if allow_other:
        chosen.add("allow_other")
    # allow_other without it would let anybody in anywhere. Where nobody but root gets in, modes forbid nothing, and to
    # look at that of a directory the kernel would ask for it after each change there: a request for each new file
    if allow_other or not writable or os.geteuid() != 0:
        chosen.add("default_permissions")
    return chosen


def source_name(url: str) -> str:
    """A store's URL as the mount table shows it: no credentials, and nothing that libfuse takes for its own."""
    scheme, separator, rest = url.partition("://")
    if separator:
        authority, slash, path = rest.partition("?")[0].partition("/")
        url = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
    return "".join(c if " " < c < "\x7f" and c not in ",\\" else _percent(c) for c in url)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


def attach(init: Callable[[], object], path: str) -> int | None:
    """Have `init` mount at `path`, with libfuse's own complaint on stderr made into one MountError.

    Returns the session's descriptor, which pyfuse3 keeps to itself, if it can be told.
    """
    before = fuse_descriptors()
    said = os.memfd_create("libfuse")
    saved = os.dup(2)
    try:
        os.dup2(said, 2)
        try:
            init()
        finally:
            os.dup2(saved, 2)
            reason = _reason(os.pread(said, 4096, 0))
    except RuntimeError as error:
        raise _mount_error(path, reason or str(error)) from error
    finally:
        os.close(saved)
        os.close(said)
    if reason:
        log.warning("%s", reason)
    made = fuse_descriptors() - before
    return made.pop() if len(made) == 1 else None


def fuse_descriptors() -> set[int]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            if os.readlink(f"/proc/self/fd/{number}") == "/dev/fuse":
                found.add(int(number))
    return found


def _reason(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
    return "; ".join(line.removeprefix("fuse: ").removeprefix("fusermount3: ") for line in lines if line)


def _mount_error(path: str, reason: str) -> MountError:
    if "user_allow_other" in reason:
        return MissingSystemError("allow_other needs the line user_allow_other in /etc/fuse.conf, which root can add")
    if "mountpoint" not in reason and any(words in reason for words in _NO_RIGHT):
        return MissingSystemError(
            f"mounting on {path} is not permitted here ({reason}); "
            "in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
        )
    return MountError(f"cannot mount on {path}: {reason}")
