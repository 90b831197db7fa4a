"""Turning staged keys into new versions in the store: when somebody asks for it, and by itself after some quiet.

Runs on the event loop; what takes its time runs in workers. One seal of a key at a time, whoever asks; a few keys at
once. What a seal leaves, and on every error all there was, stays staged. Knows nothing of FUSE, inodes or names; how a
seal is made is the business of seal_steps.

The moment a new version counts is one step on the loop, without an await in it: `Seal.done` gives the numbers of stored
files their new meaning, a directory of which nothing is left is let go, and `on_sealed` is called.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import trio

from shardfs import config, seal_steps
from shardfs.drivers.base import Driver
from shardfs.errors import (
    BadSampleError,
    BadSettingError,
    KeyExistsError,
    MissingKeyError,
    NotWritableError,
    ShardfsError,
    StagingError,
    StaleShardError,
    StorageError,
)
from shardfs.index import ShardTable
from shardfs.model import Entry, Key, Version
from shardfs.seal_steps import Places, Written
from shardfs.sealing import Base
from shardfs.shard_cache import ShardCache
from shardfs.staging import StagedDirectory, StagingArea
from shardfs.workers import Workers

log = logging.getLogger("shardfs")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A key that has a new version."""

    key: Key
    entry: Entry
    """Its new version."""
    table: ShardTable
    """What the new version holds; the cache has it, too."""
    numbers: Mapping[int, int]
    """Staged entry -> file in `table`. An entry that is neither here nor in `left` is part of another file: `cat.cls`
    of `cat.json`."""
    base_numbers: Mapping[int, int]
    """File of the old version -> file in `table`."""
    left: StagedDirectory | None
    """What stays staged, over the new version now: its entries keep their numbers, but may have other names where
    samples were renumbered. None if nothing does; then the staged directory is gone."""


@dataclass(slots=True, eq=False)
class _Work:
    """A seal under way, and what became of it."""

    staged: StagedDirectory
    begun: bool = False
    """True from when on it may not see what is changed."""
    done: trio.Event = field(default_factory=trio.Event)
    sealed: Sealed | None = None
    error: ShardfsError | None = None


@dataclass(slots=True, eq=False)
class _Waiting:
    """A key that is to be sealed by itself, or could not be."""

    staged: StagedDirectory
    since: float
    """When it was last changed, or seen with an open writer. All times are the loop's, in seconds."""
    changed: bool = True
    """False once a seal has begun that takes all there is."""
    written: bool = False
    """True if it had an open writer when it was last looked at."""
    trying: bool = False
    stuck: bool = False
    """True if trying again is of no use until something is changed."""
    delay: float = 0.0
    not_before: float = 0.0
    problem: str | None = None


class Sealer:
    """Seals the keys of one staging area. `arrays` is how shards are shown; `quiet` how many seconds without a change
    and without an open writer a key is sealed after by itself, None for never."""

    def __init__(
        self, driver: Driver, cache: ShardCache, area: StagingArea, arrays: str, quiet: float | None
    ) -> None:
        self._driver = driver
        self._cache = cache
        self._area = area
        self._arrays = arrays
        self._quiet = quiet
        self.on_sealed: Callable[[Sealed], None] = lambda sealed: None
        """Called on the event loop, in the step that makes the new version count, before `seal` returns."""
        self.on_parked: Callable[[StagedDirectory, str], None] = lambda staged, key: None
        """Called on the event loop with a directory that was set aside, and the key it had."""
        self._works: dict[str, _Work] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._nursery: trio.Nursery | None = None
        self._workers: Workers | None = None
        self._places: trio.CapacityLimiter | None = None
        self._wake: trio.Event | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keys are sealed only inside this block. It begins with what a crash has left half done, and takes up what was
        staged before; it ends when the seals under way have ended. StagingError if what is staged does not fit how
        shards are shown."""
        async with self._serving():
            for staged in self._area.directories():
                if staged.kind == "key" and staged.seal.snapshot is not None and staged.damage is None:
                    await self._settle_at_start(staged)
            for staged in self._area.directories():
                self.touched(staged)
            assert self._nursery is not None
            if self._quiet is not None:
                self._nursery.start_soon(self._timer, self._quiet)
            yield

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        self._workers = Workers()
        self._places = trio.CapacityLimiter(config.SEALS)
        how = f"{self._driver.name} {self._driver.reading} {self._arrays}"
        await self._workers.io(lambda: self._area.shown(how))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                self._nursery = None
                with trio.CancelScope(shield=True):
                    while self._works:
                        await next(iter(self._works.values())).done.wait()
                nursery.cancel_scope.cancel()

    async def _settle_at_start(self, staged: StagedDirectory) -> None:
        try:
            await self._settled(staged)
        except ShardfsError as error:
            self._failed(staged, error)
        except Exception:
            log.exception("settling %s", staged.key)

    # --- asking -------------------------------------------------------------------------------------------------

    def touched(self, staged: StagedDirectory) -> None:
        """Something was changed in a staged directory: its quiet begins anew."""
        waiting = self._waiting.get(staged.id)
        if waiting is None:
            if staged.kind != "key":
                return
            waiting = self._waiting[staged.id] = _Waiting(staged, 0.0)
            self._awake()
        elif waiting.stuck:
            waiting.stuck = False
            self._awake()
        waiting.since = trio.current_time()
        waiting.changed = True

    async def seal(self, staged: StagedDirectory) -> Sealed | None:
        """Have the store take what is staged now; None if there is nothing to take, or only an empty shard would be
        left. What fails is tried again by the timer.

        The store's own error: EBUSY while a file is open for writing or another program keeps the store; BadSampleError
        (EINVAL) for a file that does not parse; ESTALE if the store has another version than was staged over: then
        what was staged is set aside, and both are there; EIO for what is damaged or in doubt; and the driver's.
        """
        sealed: Sealed | None = None
        while True:
            work = self._works.get(staged.id) or self._start(staged)
            late = work.begun
            await work.done.wait()
            if not late and work.error is not None:
                raise work.error
            sealed = work.sealed or sealed
            if not late or (work.sealed is not None and work.sealed.left is None):
                return sealed

    async def seal_all(self) -> dict[str, ShardfsError]:
        """Seal all keys; the errors of those that failed, by key. Plain directories and those set aside stay."""
        errors: dict[str, ShardfsError] = {}

        async def one_by_one(chain: list[StagedDirectory]) -> None:
            for staged in chain:
                key = staged.key
                try:
                    await self.seal(staged)
                except ShardfsError as error:
                    errors[key] = error

        keys = [staged for staged in self._area.directories() if staged.kind == "key" and staged.parked is None]
        async with trio.open_nursery() as nursery:
            for chain in self._chains(keys):
                nursery.start_soon(one_by_one, chain)
        return errors

    def problems(self) -> dict[str, str]:
        """Keys whose last seal failed, and why."""
        return {found.staged.key: found.problem for found in self._waiting.values() if found.problem is not None}

    def _chains(self, keys: Iterable[StagedDirectory]) -> list[list[StagedDirectory]]:
        """Keys to be sealed one after the other, where the order in which new ones are stored is the one they get."""
        ordered = sorted(keys, key=lambda staged: staged.key)
        if not self._driver.appends:
            return [[staged] for staged in ordered]
        new = [staged for staged in ordered if staged.base_version is None]
        return [*([staged] for staged in ordered if staged.base_version is not None), *([new] if new else [])]

    # --- by itself ----------------------------------------------------------------------------------------------

    def _awake(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def _timer(self, quiet: float) -> None:
        while self._nursery is not None:
            self._wake = trio.Event()
            due, nearest = self._due(quiet)
            for chain in self._chains(due):
                self._nursery.start_soon(self._try, chain)
            with trio.move_on_at(nearest):
                await self._wake.wait()

    def _due(self, quiet: float) -> tuple[list[StagedDirectory], float]:
        """Keys that are to be sealed now, and when to look again."""
        now, nearest, due = trio.current_time(), float("inf"), []
        for waiting in list(self._waiting.values()):
            staged = waiting.staged
            if waiting.trying or waiting.stuck or not waiting.changed:
                continue
            if self._area.find(staged.key) is not staged:
                del self._waiting[staged.id]
                continue
            if staged.kind != "key" or self._refused(waiting):
                waiting.stuck = True
                continue
            when = max(waiting.since + quiet, waiting.not_before)
            if waiting.written or when <= now:
                waiting.written = staged.writers > 0
                if waiting.written:
                    # looked at more often then: nobody tells when it is closed
                    waiting.since, when = now, now + quiet / 4
            if when <= now:
                waiting.trying = True
                due.append(staged)
            else:
                nearest = min(nearest, when)
        return due, nearest

    def _refused(self, waiting: _Waiting) -> bool:
        """True, with one line in the log, for what is never sealed by itself."""
        staged = waiting.staged
        reason = staged.damage or staged.parked or staged.doubt
        if reason is not None and reason != waiting.problem:
            log.warning("%s is not sealed by itself: %s; see `shardfs staging list`", staged.key, reason)
            waiting.problem = reason
        return reason is not None

    async def _try(self, chain: list[StagedDirectory]) -> None:
        for staged in chain:
            with contextlib.suppress(ShardfsError):  # logged, and kept for `problems`
                work = self._works.get(staged.id) or self._start(staged)
                await work.done.wait()
            waiting = self._waiting.get(staged.id)
            if waiting is not None:
                waiting.trying = False
        self._awake()

    # --- one seal -----------------------------------------------------------------------------------------------

    def _start(self, staged: StagedDirectory) -> _Work:
        if self._nursery is None:
            raise StorageError("the mount is being ended")
        work = self._works[staged.id] = _Work(staged)
        self._nursery.start_soon(self._run, work)
        return work

    async def _run(self, work: _Work) -> None:
        staged = work.staged
        assert self._places is not None
        # not ended by cancellation: who waits may go away, and a half-done seal would only have to be settled
        with trio.CancelScope(shield=True):
            try:
                async with self._places:
                    if self._nursery is None:
                        raise StorageError("the mount is being ended")
                    work.sealed = await self._seal(work)
                self._succeeded(staged, work.sealed)
            except ShardfsError as error:
                work.error = error
                self._failed(staged, error)
            except Exception as error:
                text = f"sealing {staged.key}: {error or type(error).__name__}"
                if not isinstance(error, OSError | MemoryError):
                    log.exception("sealing %s", staged.key)
                code = error.errno if isinstance(error, OSError) else None
                work.error = StorageError(text, code or errno.EIO)
                self._failed(staged, work.error)
            finally:
                del self._works[staged.id]
                work.done.set()

    def _succeeded(self, staged: StagedDirectory, sealed: Sealed | None) -> None:
        waiting = self._waiting.get(staged.id)
        if waiting is None:
            return
        waiting.delay = waiting.not_before = 0.0
        waiting.stuck, waiting.problem = False, None
        if sealed is not None and sealed.left is not None:
            waiting.changed = True
        if not waiting.changed or (sealed is not None and sealed.left is None):
            del self._waiting[staged.id]
        self._awake()

    def _failed(self, staged: StagedDirectory, error: ShardfsError) -> None:
        """Remember why, and when to try again."""
        if staged.parked is not None or staged.kind != "key" or self._area.find(staged.key) is not staged:
            return
        waiting = self._waiting.setdefault(staged.id, _Waiting(staged, trio.current_time()))
        waiting.changed = True
        self._awake()
        if staged.writers and error.errno == errno.EBUSY:
            return  # no fault of anybody's
        if str(error) != waiting.problem:
            log.warning("%s is not sealed, and stays staged: %s", staged.key, error)
        waiting.problem = str(error)
        waiting.stuck = isinstance(error, BadSampleError | BadSettingError | NotWritableError)
        waiting.delay = min(max(2 * waiting.delay, config.SEAL_RETRY), config.SEAL_RETRY_MAX)
        waiting.not_before = trio.current_time() + waiting.delay

    async def _seal(self, work: _Work) -> Sealed | None:
        staged = work.staged
        before = await self._settled(staged) if staged.seal.snapshot is not None else None
        if before is not None and before.left is None:
            return before
        if staged.kind != "key" or staged.parked is not None:
            raise StagingError(f"{staged.key} is not to be sealed", errno.EINVAL)
        if staged.damage is not None or staged.doubt is not None:
            raise StagingError(f"{staged.key}: {staged.damage or staged.doubt}", errno.EIO)
        if staged.writers:
            raise StagingError(f"{staged.key}: a file is open for writing", errno.EBUSY)
        workers = self._working()
        waiting = self._waiting.get(staged.id)
        if waiting is not None:
            waiting.changed = False  # before it is looked at: what comes now counts again
        work.begun = True
        if await workers.io(lambda: seal_steps.nothing(staged)):
            return before
        key, version = Key(staged.key), staged.base_version
        try:
            return await self._sealed(staged, key, version) or before
        except (StaleShardError, MissingKeyError, KeyExistsError) as error:
            raise await self._parked(staged, key, version, error) from error

    async def _sealed(self, staged: StagedDirectory, key: Key, version: str | None) -> Sealed | None:
        workers, driver = self._working(), self._driver
        if version is None:
            size = staged.data_bytes
            written = await workers.cpu(lambda: seal_steps.write(driver, staged, None, None), size)
            return None if written is None else await self._finished(staged, written, None)
        # what is written has the format and the columns of the stored shard, so its records can stay as they are
        entry = replace(await self._cache.fresh_entry(key), version=Version(version))
        async with self._cache.pinned(entry) as loaded:
            base = Base(loaded.shard, loaded.table, self._arrays)
            size = staged.data_bytes + loaded.table.raw_bytes
            written = await workers.cpu(lambda: seal_steps.write(driver, staged, base, entry), size)
            return None if written is None else await self._finished(staged, written, base)

    async def _settled(self, staged: StagedDirectory) -> Sealed | None:
        """Find out how a seal ended that was left: None if the store does not have it."""
        written = await self._working().io(lambda: seal_steps.settle(self._driver, staged))
        if written is None:
            return None
        log.info("%s had been sealed already", staged.key)
        try:
            return await self._finished(staged, written, None)
        except StaleShardError:
            # replaced once more meanwhile, or bytes of the old version are gone with it: the next try says a conflict
            await self._working().io(staged.seal.failed)
            raise

    async def _finished(self, staged: StagedDirectory, written: Written, base: Base | None) -> Sealed:
        """The store has it: have the new shard at hand, and then make it count."""
        workers, entry, snapshot = self._working(), written.entry, written.snapshot
        table = (await self._cache.shard(entry)).table
        places = await workers.cpu(lambda: seal_steps.place(written, table), 0)
        for attempt in range(config.SEAL_RESCUES):
            try:
                return await self._counted(staged, written, places)
            except StagingError as error:
                if error.errno != errno.EINVAL or attempt == config.SEAL_RESCUES - 1:
                    raise
                await workers.io(lambda: seal_steps.rescue(staged, snapshot, places, base))
        raise AssertionError("unreachable")

    async def _counted(self, staged: StagedDirectory, written: Written, places: Places) -> Sealed:
        entry, snapshot, table = written.entry, written.snapshot, places.after
        numbers, old = places.numbers, places.base_numbers.get
        # from here to on_sealed nothing is awaited
        left = staged.seal.done(
            entry.version, numbers, old, entry.stored_bytes, new_name=places.new_name, durable=False
        )
        if not left:
            self._area.withdraw(staged)
        if snapshot.base_version is not None:
            self._cache.drop(replace(entry, version=Version(snapshot.base_version)))
        self._cache.tables.keep(entry, table)
        has_file = {number: file for number, file in numbers.items() if file is not None}
        sealed = Sealed(entry.key, entry, table, has_file, places.base_numbers, staged if left else None)
        self.on_sealed(sealed)
        try:
            await self._working().io(staged.seal.commit if left else lambda: self._area.remove(staged))
        except ShardfsError as error:
            log.warning("%s is in the store, but its staging could not be cleaned up: %s", entry.key, error)
        return sealed

    async def _parked(
        self, staged: StagedDirectory, key: Key, version: str | None, error: ShardfsError
    ) -> ShardfsError:
        """What to say of a store that has something else than was expected, and set the staged directory aside if it is
        the key that was changed."""
        workers = self._working()
        open_still = staged.seal.snapshot is not None
        if open_still or not await workers.io(lambda: seal_steps.is_conflict(self._driver, key, version)):
            return StorageError(str(error), errno.EBUSY) if isinstance(error, StaleShardError) else error
        name = await workers.io(lambda: self._area.park(staged, str(error)))
        self._waiting.pop(staged.id, None)
        log.warning("%s; what was staged is kept as %s", error, name)
        self.on_parked(staged, key)
        return StaleShardError(f"{error}; what was staged is kept as {name}")

    def _working(self) -> Workers:
        assert self._workers is not None
        return self._workers


def seal_now(driver: Driver, area: StagingArea, staged: StagedDirectory, arrays: str) -> Sealed | None:
    """Seal one key without a mount: see `Sealer.seal`."""
    errors: list[ShardfsError] = []

    async def main() -> Sealed | None:
        cache = ShardCache(driver, config.default_budget(), arrays)
        sealer = Sealer(driver, cache, area, arrays, None)
        async with cache.running(), sealer._serving():
            try:
                return await sealer.seal(staged)
            except ShardfsError as error:  # raised below: a nursery would make a group of it
                errors.append(error)
        return None

    sealed = trio.run(main)
    if errors:
        raise errors[0]
    return sealed
