"""Watching a store for change: asked on use, a second apart at most, and never for longer than a tenth of a second.

Compares what the store says now with the tree, and puts the new in place of the old. Knows nothing of FUSE: who must be
told of superseded keys is given as a function.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import trio

from shardfs import config
from shardfs.drivers.base import Driver
from shardfs.errors import MissingKeyError, ShardfsError
from shardfs.model import Entry, Key
from shardfs.tree import KeyDirectory, KeyTree
from shardfs.workers import Workers

log = logging.getLogger("shardfs")


class Refresh:
    """Keeps a tree like its store. `superseded` is called for each key that was replaced or has gone."""

    def __init__(
        self,
        driver: Driver,
        tree: KeyTree,
        superseded: Callable[[KeyDirectory], None],
        interval: float = config.REFRESH,
    ) -> None:
        self._driver = driver
        self._tree = tree
        self._superseded = superseded
        self.interval = interval
        self._listed = 0.0
        self._asking: dict[Key | None, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._workers: Workers | None = None
        self._failed = False
        self._told: set[str] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The store is asked only inside this block."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._workers = Workers()
            self._listed = trio.current_time()
            for directory in self._tree.slots:
                directory.checked = self._listed
            self._tell_problems()
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    async def key(self, directory: KeyDirectory, *, now: bool = False) -> KeyDirectory | None:
        """What a key's directory is by now; None if the key has gone. `now` asks even if it was asked just before."""
        key = directory.entry.key
        if now or self.due(directory):
            directory.checked = trio.current_time()
            await self._ask(key, partial(self._check, key))
        return self._tree.current(key) if directory.superseded else directory

    def due(self, directory: KeyDirectory) -> bool:
        """True if the store was not asked about a key for long enough to ask it again."""
        return trio.current_time() - directory.checked >= self.interval

    def left(self, directory: KeyDirectory) -> float:
        """Seconds for which the store need not be asked about a key."""
        return max(0.0, directory.checked + self.interval - trio.current_time())

    def seen(self, directory: KeyDirectory) -> None:
        """The store is known to have a key's version now."""
        directory.checked = trio.current_time()

    def expect(self) -> None:
        """There may be keys that have just come: who lists next is not to wait for them."""
        self._listed = float("-inf")

    async def listing(self, *, now: bool = False) -> None:
        """Take in keys that have come or gone; `now` asks even if it was asked just before."""
        if now or trio.current_time() - self._listed >= self.interval:
            self._listed = trio.current_time()
            await self._ask(None, self._list)

    async def everything(self) -> int:
        """Compare all keys with the store now, however long that takes; how many have come, gone or been replaced.
        StorageError, BadStoreError: the store cannot be asked."""
        assert self._workers is not None
        self._listed = trio.current_time()
        before = {(directory.entry.key, directory.entry.version) for directory in self._tree.slots}
        entries = await self._workers.io(self._driver.entries)
        self._take(entries)
        return len(before ^ {(directory.entry.key, directory.entry.version) for directory in self._tree.slots})

    async def _ask(self, what: Key | None, work: Callable[[Workers], Awaitable[None]]) -> None:
        """Have one question asked however many want to know, and wait for the answer only so long."""
        if self._nursery is None or self._workers is None:
            return
        if what not in self._asking:
            self._asking[what] = trio.Event()
            self._nursery.start_soon(self._run, what, work, self._workers)
        event = self._asking[what]
        with trio.move_on_after(config.REFRESH_WAIT):
            await event.wait()

    async def _run(self, what: Key | None, work: Callable[[Workers], Awaitable[None]], workers: Workers) -> None:
        try:
            await work(workers)
            self._failed = False
        except (ShardfsError, OSError) as error:
            if not self._failed:  # once, until it works again: a store that is away is asked every second
                log.warning("the store cannot be asked for changes: %s", error)
            self._failed = True
        except Exception:
            log.exception("asking the store for changes")
        finally:
            self._asking.pop(what).set()

    async def _check(self, key: Key, workers: Workers) -> None:
        try:
            entry: Entry | None = await workers.io(lambda: self._driver.entry(key))
        except MissingKeyError:
            entry = None
        known = self._tree.current(key)
        if known is None or known.held or (entry is not None and entry.version == known.entry.version):
            return
        if entry is None:
            self._tree.remove(known)
        else:
            known, fresh = self._tree.replace(known, entry)
            fresh.checked = trio.current_time()
        self._superseded(known)

    async def _list(self, workers: Workers) -> None:
        entries = await workers.io(lambda: self._driver.entries() if self._driver.changed() else None)
        if entries is not None:
            self._take(entries)

    def _take(self, entries: list[Entry]) -> None:
        self._tell_problems()
        gone = self._tree.update(entries)
        for directory in self._tree.slots:
            directory.checked = self._listed
        for directory in gone:
            self._superseded(directory)

    def _tell_problems(self) -> None:
        """Log what the last listing could not show, or not read or check: once, until it is in order again."""
        problems = list(self._driver.problems)
        for problem in problems:
            if problem not in self._told:
                log.warning("%s", problem)
        self._told = set(problems)
