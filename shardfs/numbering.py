"""What a change would do to the numbers of samples, where those run through several keys: asked before it is made.

Elsewhere every answer is that nothing stands against it. What is not refused here may be refused by the seal all the
same: another program may have added a key by then. Knows nothing of FUSE, nor of how anything comes to be staged.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import NoReturn

from shardfs import config
from shardfs.drivers.base import Driver
from shardfs.drivers.numbered import NumberedThrough, Standing
from shardfs.errors import BadSettingError, MissingKeyError, NotWritableError, StaleShardError, StorageError
from shardfs.index import ShardTable
from shardfs.model import Key
from shardfs.overlay import overlay_of
from shardfs.sealing import is_temporary
from shardfs.staged_calls import StagedCalls
from shardfs.tree import KeyDirectory

log = logging.getLogger("shardfs")


def refuse(text: str, code: int) -> NoReturn:
    """Say why something is not done."""
    log.warning("%s: %s", text, os.strerror(code))
    raise StorageError(text, code)


class Numbering:
    """Asks a driver. What it says of a key that is being changed is believed for config.REFRESH seconds."""

    def __init__(self, driver: Driver, calls: StagedCalls) -> None:
        self._driver = driver if isinstance(driver, NumberedThrough) else None
        self._calls = calls

    async def _standing(self, key: KeyDirectory) -> Standing:
        driver, overlay = self._driver, overlay_of(key)
        if driver is None:
            return Standing()
        now = time.monotonic()
        if overlay is not None and overlay.standing is not None and now - overlay.asked < config.REFRESH:
            return overlay.standing
        try:
            found = await self._calls.long(lambda: driver.standing(key.entry.key))
        except MissingKeyError as error:
            if overlay is None:
                raise StaleShardError(f"{key.entry.key} is not in the store now") from error
            return Standing()  # the seal will say it
        if overlay is not None:
            overlay.standing, overlay.asked = found, now
        return found

    async def check_change(self, key: KeyDirectory) -> None:
        """EPERM for a stored key of which nothing can be changed."""
        reason = (await self._standing(key)).refused
        if reason is not None:
            refuse(f"{key.entry.key} cannot be changed: {reason}", errno.EPERM)

    async def closed(self, key: KeyDirectory) -> str | None:
        """Why no sample of a stored key can be removed; None where that is allowed."""
        return (await self._standing(key)).closed

    async def check_name(self, key: KeyDirectory, table: ShardTable, name: bytes) -> None:
        """EPERM for a new name that would make one more sample of a key that can have no more. `table` is of what is
        stored of it."""
        stem, dot, _ = name.partition(b".")
        if self._driver is None or not dot or is_temporary(name) or table.find_sample(stem) is not None:
            return
        reason = await self.closed(key)
        if reason is not None:
            refuse(f"{key.entry.key}/{os.fsdecode(name)} would be a new sample: {reason}", errno.EPERM)

    async def check_key(self, key: str) -> None:
        """EINVAL for what cannot be the name of a new key, EPERM for one that could not be added."""
        driver = self._driver
        if driver is None:
            return
        try:
            await self._calls.long(lambda: driver.key_before(Key(key)))
        except (BadSettingError, NotWritableError) as error:
            refuse(f"{key} cannot be a new key: {error}", _code(error))


def _code(error: BadSettingError | NotWritableError) -> int:
    return errno.EPERM if isinstance(error, NotWritableError) else errno.EINVAL
