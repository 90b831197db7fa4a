"""A mount that somebody else has made: its mount point is `/dev/fd/N`, an open `/dev/fuse` that came with the process.

So a process without any rights can serve what a privileged one has mounted. Knows nothing of stores, nor of pyfuse3:
libfuse takes such a mount point by itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
from pathlib import Path

from shardfs import daemon
from shardfs.daemon import Mounted
from shardfs.errors import MountError

_DEVICE = "/dev/fuse"


def descriptor_of(mountpoint: str) -> int | None:
    """The descriptor that a mount point stands for; None for one that is a directory."""
    found = re.fullmatch(r"/dev/fd/([0-9]{1,6})", mountpoint)
    return None if found is None else int(found[1])


def check(descriptor: int) -> None:
    """MountError if this is no mount that can be served. From here on no child of this process inherits it."""
    named = f"/dev/fd/{descriptor}"
    if descriptor < 3:
        raise MountError(f"{named} is a standard descriptor: hand the mount over under a number above 2")
    try:
        what = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError as error:
        raise MountError(f"{named} is not open: who starts this must open /dev/fuse, mount, and pass it on") from error
    if what != _DEVICE:
        raise MountError(f"{named} is no {_DEVICE} but {what}")
    os.set_inheritable(descriptor, False)
    if (descriptor, select.POLLERR) in _polled(descriptor):
        raise MountError(f"nothing is mounted with {named}: mount(2) it first, with fd={descriptor} among its options")


def _polled(descriptor: int) -> list[tuple[int, int]]:
    poll = select.poll()
    poll.register(descriptor, 0)
    return poll.poll(0)


def mounted(descriptor: int) -> Mounted | None:
    """What it serves in the mount table; None where this process does not see that, as the mount is in another
    namespace, or the kernel (before 6.16) does not tell which it is."""
    with contextlib.suppress(OSError):
        said = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
        number = re.search(r"^fuse_connection:\s*([0-9]+)$", said, re.MULTILINE)
        if number is not None:
            for found in daemon.mounts():
                if found.device == f"0:{number[1]}":
                    return found
    return None


def check_rights(descriptor: int, writable: bool) -> None:
    """MountError where others could change what modes forbid them: who mounts chooses, and libfuse is not asked.

    Files that can only be read may be read by everybody, so that matters to writable mounts only.
    """
    if not writable:
        return
    found, named = mounted(descriptor), f"/dev/fd/{descriptor}"
    if found is None:
        raise MountError(f"{named}: this process does not see that mount and its options: only without --rw")
    if "allow_other" in found.options and "default_permissions" not in found.options:
        raise MountError(f"{found.path} is mounted with allow_other and without default_permissions: not with --rw")
