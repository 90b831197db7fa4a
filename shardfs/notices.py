"""Telling the kernel what to forget and what to know, on a thread of its own: never on the event loop or in a handler.

The kernel takes a directory's or a page's lock for such a notice, and may hold it for a request that only the loop can
answer. Knows nothing of pyfuse3: what tells is given as functions.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shardfs import config, inodes
from shardfs.gifts import take
from shardfs.shard_cache import Loaded
from shardfs.tree import KeyDirectory

log = logging.getLogger("shardfs")


class Notices:
    """Makes the kernel forget superseded keys, and gives it the small files of freshly loaded ones.

    `forget_name(parent inode, name)`, `forget_pages(inode)` and `store(inode, content)` may raise OSError: mostly for a
    kernel that does not know what is spoken of.
    """

    def __init__(
        self,
        forget_name: Callable[[int, bytes], object],
        forget_pages: Callable[[int], object],
        store: Callable[[int, bytes | memoryview], object],
        look: Callable[[str], object] = lambda path: None,
    ) -> None:
        """`look(path)` looks something up in the mount itself, by its path below the root; it may raise OSError."""
        self._forget_name = forget_name
        self._forget_pages = forget_pages
        self._store = store
        self._look = look
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(config.NOTICES)
        self._waiting = threading.Semaphore(config.PREFILLS)
        self._thread = threading.Thread(target=self._run, name="shardfs-notices", daemon=True)
        self.filled = 0
        """Files given to the kernel so far."""

    def superseded(self, key: KeyDirectory, files: int) -> None:
        """Queue a notice. Where there are too many, the kernel finds out by itself, within the refresh interval."""
        self._put(lambda: self._forget(key, files))

    def waiting(self) -> int:
        """How many there are that the kernel has not been told yet."""
        return self._queue.qsize()

    def renamed(self, directory: int, names: Iterable[bytes]) -> None:
        """Queue that the names in a directory may mean other files by now."""
        self._put(lambda: self._forget_names(directory, names))

    def outdated(self, names: Iterable[tuple[int, bytes]]) -> None:
        """The same of names in many directories, each with the number of its own."""
        self._put(lambda: self._forget_outdated(names))

    def emptied(self, parent: int, name: bytes, path: str) -> None:
        """Queue that all names in a directory may."""
        self._put(lambda: self._forget_directory(parent, name, path))

    def loaded(self, key: KeyDirectory, loaded: Loaded) -> None:
        """Give the kernel the small files of a shard that has just been loaded, if it knows any of them.

        Few at a time: each waits with its shard in hand, beyond the budget.
        """
        if key.lookups <= config.PREFILL_KNOWN or not self._waiting.acquire(blocking=False):
            return
        # taken before it is queued: it may be done before this goes on
        if not self._put(lambda: self._fill(key, loaded)):
            self._waiting.release()

    def _put(self, work: Callable[[], None] | None) -> bool:
        """Queue something; False where there is no place for it."""
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            return False
        return True

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Notices are given inside this block."""
        self._thread.start()
        try:
            yield
        finally:
            self._put(None)
            # it may wait for a request that nobody answers any more: the end of the mount frees it
            self._thread.join(config.NOTICE_WAIT)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception:  # the next notice is due all the same
                log.exception("telling the kernel")

    def _forget(self, key: KeyDirectory, files: int) -> None:
        with contextlib.suppress(OSError):
            self._forget_name(key.parent, key.name)
        for file in range(files):
            with contextlib.suppress(OSError):
                self._forget_pages(inodes.file_inode(key.slot, file))
        log.debug("told the kernel to forget %s", key.entry.key)

    def _forget_names(self, directory: int, names: Iterable[bytes]) -> None:
        for name in names:
            with contextlib.suppress(OSError):
                self._forget_name(directory, name)

    def _forget_outdated(self, names: Iterable[tuple[int, bytes]]) -> None:
        for directory, name in names:
            with contextlib.suppress(OSError):
                self._forget_name(directory, name)

    def _forget_directory(self, parent: int, name: bytes, path: str) -> None:
        with contextlib.suppress(OSError):
            self._forget_name(parent, name)
            # who works in it had a directory without a name until somebody looks for it
            self._look(path)

    def _fill(self, key: KeyDirectory, loaded: Loaded) -> None:
        self._waiting.release()
        table, shard, unknown = loaded.table, loaded.shard, 0
        if memory_is_short(table.total_size()):
            return
        for file in range(table.files):
            run = table.slice_of(file)
            if run is None or run[2] > config.PREFILL_FILE:
                continue
            prefix, start, length = run
            part = shard.part(start, start + length)
            if part is None:
                continue  # not worth waiting for
            data = b"".join((prefix, part)) if prefix else part
            try:
                self._store(inodes.file_inode(key.slot, file), data)
                self.filled += 1
                take(key, file, table.files)
            except OSError as error:
                unknown += 1
                if error.errno != errno.ENOENT or unknown > config.PREFILL_UNKNOWN + self.filled:
                    return


def memory_is_short(size: int) -> bool:
    """True if `size` bytes more of page cache would have to be taken from somebody."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        available = int(text.split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return False
    return available < 4 * size + config.PREFILL_SPARE
