"""`shardfs umount`: has a mount store what was written to it, ends it, and waits for the process that served it.

Removes nothing. What cannot be stored keeps the mount (it may be mended there, and who unmounts wants it stored);
with --force it stays staged on disk, for the next mount.
"""

from __future__ import annotations

import argparse
import os

from shardfs import config, daemon
from shardfs.commands import FAILED, OK, explain, one_line, storing, tell
from shardfs.commands.tabular import number
from shardfs.errors import MountError, ShardfsError, UnknownCommandError


def run(arguments: argparse.Namespace) -> int:
    status = OK
    for mountpoint in arguments.mountpoint:
        try:
            failed = _umount(mountpoint, arguments.lazy, arguments.force)
        except (ShardfsError, OSError) as error:
            failed, text = explain(error)
            tell(text)
        status = status or failed
    return status


def _umount(mountpoint: str, lazy: bool, force: bool) -> int:
    path = daemon.resolved(mountpoint)
    mounted = daemon.mounted_at(path)
    if mounted is None:
        raise MountError(f"nothing is mounted on {mountpoint}")
    if mounted.fstype != daemon.FSTYPE:
        raise MountError(f"what is mounted on {mountpoint} is no shardfs ({mounted.fstype}): unmount it with umount")
    if mounted.owner is not None and os.geteuid() not in (0, mounted.owner):
        raise MountError(f"{mountpoint} was mounted by user {mounted.owner}: only that user and root can unmount it")
    record = daemon.find(path, mounted.owner)
    told: set[str] = set()
    limit = None if record is None or not force else record.patience or config.CONTROL_ANSWER
    status = _store(mountpoint, limit, told) if record is not None and record.writable else OK
    daemon.hear_word(path, mounted.owner)  # of an earlier mount
    daemon.unmount(path, lazy)
    if record is None:
        return status
    gone = _gone(record, mounted.device, lazy, force, mountpoint)
    if gone or force:
        failed, kept = daemon.hear_word(path, mounted.owner)  # of what came between
        for key, reason in (*failed.items(), *kept.items()):
            if key not in told:
                tell(one_line(f"stays staged: {key}: {reason}"))
        status = status or (FAILED if failed else OK)
    if gone is not False:
        return status
    if lazy:
        tell(f"{mountpoint} is detached; its process {record.pid} ends when nobody uses it any more")
        return status
    raise MountError(
        f"{mountpoint} is unmounted, but its process {record.pid} still runs after {config.MOUNT_GONE:.0f} s"
    )


def _gone(record: daemon.Record, device: str, lazy: bool, force: bool, mountpoint: str) -> bool | None:
    """Whether a daemon has ended; None where it serves a copy of the mount elsewhere, as is told. One that may have
    something to store is waited for; with `force` only as long as it may take when its store hangs."""
    held = min(config.HELD_GONE, config.MOUNT_GONE)
    if daemon.wait_until_gone(record, config.DETACHED_GONE if lazy else held):
        return True
    if lazy:
        return False
    if (holder := daemon.held_elsewhere(device)) is not None:
        tell(
            f"{mountpoint} is unmounted here; process {holder} has it in a mount namespace of its own, "
            f"for which its process {record.pid} goes on"
        )
        return None
    if daemon.wait_until_gone(record, config.MOUNT_GONE - held):
        return True
    if not record.writable:
        return False
    tell(f"{mountpoint} is unmounted; its process {record.pid} is storing what was written")
    return daemon.wait_until_gone(record, record.patience if force else config.STORING_GONE)


def _store(mountpoint: str, patience: float | None, told: set[str]) -> int:
    """Have a writable mount store all; the exit status, and in `told` the keys that were spoken of. MountError if it is
    to stay mounted because of that, unless it is to end after so many seconds of `patience` in any case."""
    force = patience is not None
    kept = "it stays on disk, for the next mount"
    try:
        outcome = storing.commit(mountpoint, [], patience)
    except UnknownCommandError:  # of a release that has nothing to store
        return OK
    except ShardfsError as error:
        if not force:
            raise MountError(f"{error}; what was written to it cannot be stored: --force unmounts ({kept})") from error
        tell(f"{error}; if something was written to it and not stored, {kept}")
        return FAILED
    for line in storing.reasons(outcome):
        tell(line)
    failed = {key for key, _ in outcome.failed}
    told |= failed | {report["key"] for report in outcome.staged}
    kept_back = (storing.staying(report) for report in outcome.staged if report["key"] not in failed)
    staying = [line for line in kept_back if line is not None]
    for line in staying[: config.STAYING_TOLD]:
        tell(line)
    if len(staying) > config.STAYING_TOLD:
        tell(f"{len(staying) - config.STAYING_TOLD} more stay staged: shardfs staging list")
    if failed and not force:
        raise MountError(
            f"{mountpoint} stays mounted, as {number(len(failed), 'key')} could not be stored; "
            f"unmount with --force to leave that ({kept})"
        )
    return FAILED if failed else OK
