"""Watching a store for change: asked on use, a second apart at most, and never for longer than a tenth of a second; and
in rounds, for what the kernel knows and does not ask for.

Compares what the store says now with the tree, and puts the new in place of the old. Knows nothing of FUSE: who must be
told of superseded keys is given as a function.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from shardfs import config
from shardfs.drivers.base import Driver
from shardfs.errors import MissingKeyError, ShardfsError
from shardfs.model import Entry, Key
from shardfs.rounds import Rounds, compare
from shardfs.tree import KeyDirectory, KeyTree
from shardfs.workers import Workers

log = logging.getLogger("shardfs")

T = TypeVar("T")

_USE, _ROUND = "use", "round"


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
        self.requests: Callable[[], int] = lambda: 0
        """How many requests there were so far: whether the mount is used."""
        self.untold: Callable[[], int] = lambda: 0
        """How much of what `superseded` was called for is still to be said."""
        self._rounds = Rounds(tree)
        self._listed = 0.0
        self._compared = 0.0
        """When the last listing began that was compared with the tree."""
        self._asking: dict[Key | None, trio.Event] = {}
        self._nursery: trio.Nursery | None = None
        self._workers: Workers | None = None
        self._failing: set[str] = set()
        """What of it cannot be done: what is asked on use, or rounds."""
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
            nursery.start_soon(self._keep_comparing)
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
        self._take(entries, self._listed)
        return len(before ^ {(directory.entry.key, directory.entry.version) for directory in self._tree.slots})

    async def _keep_comparing(self) -> None:
        """The next round begins when the last one has ended: one that hangs is the only one that does."""
        assert self._workers is not None
        while math.isfinite(self.interval):
            await trio.sleep(self._rounds.pause(self.interval))
            if self._rounds.due(self.requests()):
                await self._guarded(_ROUND, self._round, self._workers)

    async def _round(self, workers: Workers) -> None:
        """Compare keys of which the kernel knows something with the store."""
        keys, begun = self._rounds.batch(), trio.current_time()
        if not keys:
            return
        await self._ask(None, self._list, math.inf)
        if self._compared >= begun or _USE in self._failing:
            return  # all keys were compared, or nothing can be
        for key in keys:
            key.checked = begun
        entries, seconds = [key.entry for key in keys], self.interval / config.REFRESH_SHARE
        found = await self._aside(workers, lambda: compare(self._driver, entries, seconds))
        self._rounds.again(found.left)
        for at, (before, entry) in enumerate(found.differing):
            if at % config.REFRESH_TAKEN == 0:
                await trio.lowlevel.checkpoint()
                while self.untold() > config.NOTICES // 2:
                    await trio.sleep(config.REFRESH_WAIT)
            known = self._tree.current(before.key)
            if known is not None and known.entry.version == before.version:  # else it was looked at since
                self._take_one(before.key, entry)
        if found.error is not None:
            raise found.error

    async def _aside(self, workers: Workers, work: Callable[[], T]) -> T:
        """Ask the store in a worker that the end of the mount does not wait for: nothing is written."""

        def timed() -> tuple[T, float]:
            begun = time.thread_time()
            return work(), time.thread_time() - begun

        found, seconds = await workers.aside(timed)
        self._rounds.spent(seconds)
        return found

    async def _ask(
        self,
        what: Key | None,
        work: Callable[[Workers], Awaitable[None]],
        patience: float = config.REFRESH_WAIT,
    ) -> None:
        """Have one question asked however many want to know, and wait for the answer only so long."""
        if self._nursery is None or self._workers is None:
            return
        if what not in self._asking:
            self._asking[what] = trio.Event()
            self._nursery.start_soon(self._run, what, work, self._workers)
        event = self._asking[what]
        with trio.move_on_after(patience):
            await event.wait()

    async def _run(self, what: Key | None, work: Callable[[Workers], Awaitable[None]], workers: Workers) -> None:
        try:
            await self._guarded(_USE, work, workers)
        finally:
            self._asking.pop(what).set()

    async def _guarded(self, what: str, work: Callable[[Workers], Awaitable[None]], workers: Workers) -> None:
        try:
            await work(workers)
            self._failing.discard(what)
        except (ShardfsError, OSError) as error:
            if what not in self._failing:  # once, until it works again: a store that is away is asked every second
                log.warning("the store cannot be asked for changes: %s", error)
            self._failing.add(what)
        except Exception:
            log.exception("asking the store for changes")

    async def _check(self, key: Key, workers: Workers) -> None:
        try:
            entry: Entry | None = await workers.aside(lambda: self._driver.entry(key))
        except MissingKeyError:
            entry = None
        self._take_one(key, entry)

    def _take_one(self, key: Key, entry: Entry | None) -> None:
        """Have a key be what the store says that it is; None: gone."""
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
        begun = trio.current_time()

        def look() -> tuple[bool, list[Entry] | None]:
            """Whether keys were listed, and what is to be taken in. That all is as it was is found out here and not on
            the event loop: there may be a million keys."""
            if not self._driver.changed():
                return False, None
            entries = self._driver.entries()
            if not self._tree.is_like(entries):
                return True, entries
            self._mark(begun)
            return True, None

        listed, entries = await self._aside(workers, look)
        if entries is not None:
            self._take(entries, begun)
        elif listed:
            self._tell_problems()
        if listed:
            self._compared = begun
            if self._listed >= 0:  # else keys have been expected meanwhile
                self._listed = max(self._listed, begun)

    def _take(self, entries: list[Entry], begun: float) -> None:
        self._tell_problems()
        gone = self._tree.update(entries)
        self._mark(begun)
        for directory in gone:
            self._superseded(directory)

    def _mark(self, begun: float) -> None:
        """All keys were compared with a listing that began then."""
        for directory in self._tree.slots:
            directory.checked = begun

    def _tell_problems(self) -> None:
        """Log what the last listing could not show, or not read or check: once, until it is in order again."""
        problems = list(self._driver.problems)
        for problem in problems:
            if problem not in self._told:
                log.warning("%s", problem)
        self._told = set(problems)
