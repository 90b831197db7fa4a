"""What a mount tells the service manager while it serves: that it lives, and in one line how it is doing.

Runs on the event loop and asks nothing of the mount: a sign of life that went through the kernel would wait for the
very loop that gives it, or be answered by the kernel while that hangs. Knows nothing of the protocol (`sd_notify`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import trio

from shardfs import config, sd_notify
from shardfs.vfs import Vfs

if TYPE_CHECKING:
    from shardfs.staging import StagingArea

_UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


async def tell(line: Callable[[], str]) -> None:
    """Give signs of life and the line of `status_line` until cancelled, if a service manager asked for either."""
    if not sd_notify.is_asked():
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_show, line)
        wanted = sd_notify.watchdog_seconds()
        if wanted is not None:
            # half of what is allowed, as sd_watchdog_enabled(3) has it: one may come late
            nursery.start_soon(_live, max(wanted / 2, config.WATCHDOG_LEAST))


async def _live(seconds: float) -> None:
    while True:
        sd_notify.tell("WATCHDOG=1")
        await trio.sleep(seconds)


async def _show(line: Callable[[], str]) -> None:
    shown = ""
    while True:
        now = line()
        if now != shown:
            sd_notify.tell(f"STATUS={now}")
            shown = now
        await trio.sleep(config.STATUS_EVERY)


def status_line(vfs: Vfs, health: Callable[[], Mapping[str, Any]] | None, area: StagingArea | None) -> str:
    """How a mount is doing, in one line without names: keys, memory, what is staged (of a writable one with `area`),
    and of a store far away (with `health`) whether it answers."""
    keys = len(vfs.tree.slots)
    parts = [f"{keys:,} key{'s' * (keys != 1)}", f"{_size(vfs.cache.used)} of {_size(vfs.cache.budget)} loaded"]
    if area is not None:
        parts.append(f"{len(area.directories()):,} staged")
    if health is not None:
        said = health()
        if not (said["answers"] or said["offline"]):
            parts.append("the store does not answer")
    if len(vfs.cache.damage):
        parts.append(f"{len(vfs.cache.damage):,} damaged")
    return ", ".join(parts)


def _size(number: int) -> str:
    for unit, size in _UNITS:
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"
