"""The end of a mount, in order and within bounds: what was written is stored, requests under way end, the process goes.

Knows nothing of how a key is stored, nor of pyfuse3: what ends the loop is given as a function.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import trio

from shardfs import config, daemon, sd_notify
from shardfs.errors import LeftStagedError, MountError
from shardfs.mount_point import fuse_descriptors

if TYPE_CHECKING:
    from shardfs.writing import WritableVfs

log = logging.getLogger("shardfs")

LEFT_AT_ONCE = "what was written is not all stored, and is kept for the next mount: the store takes too long"


class End:
    """How one mount ends. To be made inside the trio run that serves it."""

    def __init__(self, path: str, device: str | None, writable: WritableVfs | None, seconds: float) -> None:
        """`device` is that of the mount at `path`, None for one that is not ours to unmount. What was written to
        `writable` may take `seconds` to be stored."""
        self._path = path
        self._device = device
        self._writable = writable
        self._seconds = seconds
        self._stored = trio.Event()
        self._failed: dict[str, str] = {}
        self._timer = self._bound(config.END_SECONDS)

    def _bound(self, seconds: float) -> threading.Timer:
        late = f"a request to the store still hangs {seconds:.0f} s after the end was asked for: giving it up"
        made = threading.Timer(seconds, self._give_up, [late])
        made.daemon = True
        return made

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """From `begin` on the block may take config.END_SECONDS before the process is ended, with exit status 1.

        Threads cannot be cancelled, and one may hang in a dead network mount for ever.
        """
        try:
            yield
        finally:
            self._timer.cancel()

    def begin(self) -> None:
        """Nothing more is to be stored: what is under way has the time that `bounded` gives it."""
        if not self._timer.is_alive():
            self._timer.start()

    async def finish(self) -> None:
        """Have what was written stored before the mount ends, once for whoever ends it; not for longer than was said,
        nor after a second signal, which cancels this. Staging is made for the death of the process: so where a seal
        hangs it ends right here, as the thread in which that hangs cannot be ended."""
        writable = self._writable
        if writable is None or writable.ending:
            if writable is not None:
                await self._stored.wait()
            return
        sd_notify.tell("STATUS=storing what was written")
        until, in_time = trio.current_time() + self._seconds, False
        kept: dict[str, str] = {}
        try:
            with trio.move_on_at(until + config.DRAIN_SECONDS):  # the disk of the staging area may hang, too
                self._failed, kept = await writable.finish(self._seconds)
                in_time = trio.current_time() < until
        finally:
            if not in_time:
                self._failed |= self._waiting(writable)
            self._tell_left(kept)
            self._stored.set()
            if not in_time and writable.sealer.at_work:
                self._give_up(LEFT_AT_ONCE)

    async def on_signal(
        self, signals: AsyncIterator[int], serving: trio.CancelScope, terminate: Callable[[], None]
    ) -> None:
        """Wait for a signal, and end in order; a second one ends at once. `terminate` ends the loop, `serving` is
        cancelled when requests under way had their time."""
        number = await anext(signals)
        log.info("ending on %s", signal.Signals(number).name)
        # the manager need not know of --shutdown-timeout: it waits for as long as this says
        longest = self._seconds + config.DRAIN_SECONDS + config.END_SECONDS
        sd_notify.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={longest * 1e6:.0f}")
        hurried = False
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                nonlocal hurried
                await anext(signals)
                hurried = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(hurry)
            await self.finish()
            nursery.cancel_scope.cancel()
        terminate()
        if not hurried:
            with trio.move_on_after(config.DRAIN_SECONDS):
                await anext(signals)
                hurried = True
        if hurried:
            self._timer.cancel()
            self._timer = self._bound(config.HURRY_SECONDS)
            self._timer.start()
        serving.cancel()

    def check(self) -> None:
        """LeftStagedError if not all that was written could be stored."""
        if self._failed:
            raise LeftStagedError(self._failed)

    def _waiting(self, writable: WritableVfs) -> dict[str, str]:
        """What is to be stored, and is staged still."""
        waiting = (staged for staged in writable.area.directories() if staged.kind == "key" and staged.parked is None)
        return {staged.key: "the mount was to end sooner" for staged in waiting if staged.key not in self._failed}

    def _tell_left(self, kept: dict[str, str]) -> None:
        """Say what was written and is not in the store."""
        for key, reason in (*self._failed.items(), *kept.items()):
            log.warning("%s is not stored, and stays staged: %s", key, reason)
        daemon.leave_word(self._path, self._failed, kept)

    def _give_up(self, reason: str) -> None:
        """End the process at once, with exit status 1, and say why."""
        log.error("%s", reason)
        with contextlib.suppress(MountError):
            if daemon.device_at(self._path) == self._device is not None:
                daemon.unmount(self._path, lazy=True)
        logging.shutdown()
        for number in fuse_descriptors():
            os.close(number)  # a thread that hangs in the kernel keeps all others open: nobody is to wait for those
        os._exit(1)
