"""Telling the kernel what it must forget, on a thread of its own: never on the event loop, never in a handler.

The kernel takes a directory's lock for such a notice, and holds it for a request that only the loop can answer. Knows
nothing of pyfuse3: what tells is given as functions.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator

from shardfs import config, inodes
from shardfs.tree import KeyDirectory

log = logging.getLogger("shardfs")

Notice = tuple[KeyDirectory, int]


class Notices:
    """Makes the kernel forget superseded keys: their names, and the pages of their files.

    `forget_name(parent inode, name)` and `forget_pages(inode)` may raise OSError: for the kernel mostly says that it
    does not know what is to be forgotten.
    """

    def __init__(self, forget_name: Callable[[int, bytes], object], forget_pages: Callable[[int], object]) -> None:
        self._forget_name = forget_name
        self._forget_pages = forget_pages
        self._queue: queue.Queue[Notice | None] = queue.Queue(config.NOTICES)
        self._thread = threading.Thread(target=self._run, name="shardfs-notices", daemon=True)

    def superseded(self, key: KeyDirectory, files: int) -> None:
        """Queue a notice. Where there are too many, the kernel finds out by itself, within the refresh interval."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((key, files))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Notices are given inside this block."""
        self._thread.start()
        try:
            yield
        finally:
            with contextlib.suppress(queue.Full):
                self._queue.put_nowait(None)
            # it may wait for a request that nobody answers any more: the end of the mount frees it
            self._thread.join(config.NOTICE_WAIT)

    def _run(self) -> None:
        while (notice := self._queue.get()) is not None:
            key, files = notice
            with contextlib.suppress(OSError):
                self._forget_name(key.parent, key.name)
            for file in range(files):
                with contextlib.suppress(OSError):
                    self._forget_pages(inodes.file_inode(key.slot, file))
            log.debug("told the kernel to forget %s", key.entry.key)
