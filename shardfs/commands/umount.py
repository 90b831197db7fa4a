"""`shardfs umount`: ends a mount and waits for the process that served it. Removes nothing."""

from __future__ import annotations

import argparse
import os

from shardfs import daemon
from shardfs.commands import FAILED, OK, explain, one_line, tell
from shardfs.errors import MountError

_DETACHED_SECONDS = 1.0
"""A detached mount's daemon ends at once if nobody uses it, else with its last user: that is not waited for."""

_STORING_SECONDS = 86_400.0
"""Who interrupts the command ends nothing but the waiting."""


def run(arguments: argparse.Namespace) -> int:
    status = OK
    for mountpoint in arguments.mountpoint:
        try:
            status = _umount(mountpoint, arguments.lazy) or status
        except (MountError, OSError) as error:
            failed, text = explain(error)
            tell(text)
            status = status or failed
    return status


def _umount(mountpoint: str, lazy: bool) -> int:
    path = daemon.resolved(mountpoint)
    mounted = daemon.mounted_at(path)
    if mounted is None:
        raise MountError(f"nothing is mounted on {mountpoint}")
    if mounted.fstype != daemon.FSTYPE:
        raise MountError(f"what is mounted on {mountpoint} is no shardfs ({mounted.fstype}): unmount it with umount")
    if mounted.owner is not None and os.geteuid() not in (0, mounted.owner):
        raise MountError(f"{mountpoint} was mounted by user {mounted.owner}: only that user and root can unmount it")
    record = daemon.find(path, mounted.owner)
    daemon.hear_word(path, mounted.owner)  # of an earlier mount
    daemon.unmount(path, lazy)
    if record is None:
        return OK
    if _gone(record, lazy, mountpoint):
        failed, kept = daemon.hear_word(path, mounted.owner)
        for key, reason in (*failed.items(), *kept.items()):
            tell(one_line(f"{key} is not stored, and stays staged: {reason}"))
        return FAILED if failed else OK
    if lazy:
        tell(f"{mountpoint} is detached; its process {record.pid} ends when nobody uses it any more")
        return OK
    raise MountError(
        f"{mountpoint} is unmounted, but its process {record.pid} still runs after {daemon.GONE_SECONDS:.0f} s"
    )


def _gone(record: daemon.Record, lazy: bool, mountpoint: str) -> bool:
    """Whether a daemon has ended. One that may have something to store is waited for."""
    if daemon.wait_until_gone(record, _DETACHED_SECONDS if lazy else daemon.GONE_SECONDS):
        return True
    if lazy or not record.writable:
        return False
    tell(f"{mountpoint} is unmounted; its process {record.pid} is storing what was written")
    return daemon.wait_until_gone(record, _STORING_SECONDS)
