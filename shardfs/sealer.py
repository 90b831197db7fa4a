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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import trio

from shardfs import config, seal_steps
from shardfs.drivers.base import Driver
from shardfs.drivers.numbered import NumberedThrough
from shardfs.errors import (
    KeyExistsError,
    MissingKeyError,
    ShardfsError,
    StagingError,
    StaleShardError,
    StorageError,
    UnaskedError,
)
from shardfs.index import ShardTable
from shardfs.model import Entry, Key, Version
from shardfs.seal_steps import Places, Written
from shardfs.sealing import Base
from shardfs.shard_cache import ShardCache
from shardfs.staging import StagedDirectory, StagingArea
from shardfs.workers import Workers
from shardfs.write_back import WriteBack

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
    asked: bool
    """False if it is made by itself, after some quiet."""
    begun: bool = False
    """True from when on it may not see what is changed."""
    done: trio.Event = field(default_factory=trio.Event)
    sealed: Sealed | None = None
    error: ShardfsError | None = None


async def _at_once() -> None:
    """Nothing is to be done first."""


async def _ignore(staged: StagedDirectory) -> None:
    """Nobody shows it, and nobody closes anything."""


class Sealer:
    """Seals the keys of one staging area. `arrays` is how shards are shown; `quiet` how many seconds without a change
    and without an open writer a key is sealed after by itself, None for never. StagingError, EINVAL, if something is
    staged over a shard that was shown in another way."""

    def __init__(self, driver: Driver, cache: ShardCache, area: StagingArea, arrays: str, quiet: float | None) -> None:
        area.shown(f"{driver.name} {driver.reading} {arrays}")
        self._driver = driver
        self._cache = cache
        self._area = area
        self._arrays = arrays
        self._quiet = quiet
        self.on_sealed: Callable[[Sealed], None] = lambda sealed: None
        """Called on the event loop, in the step that makes the new version count, before `seal` returns."""
        self.on_parked: Callable[[StagedDirectory, str], None] = lambda staged, key: None
        """Called on the event loop with a directory that was set aside, and the key it had."""
        self.on_nothing: Callable[[StagedDirectory], Awaitable[None]] = _ignore
        """Called with what there is nothing to be sealed of, over a stored shard."""
        self.closed: Callable[[StagedDirectory], Awaitable[None]] = _ignore
        """Waits for what is being closed in a directory; whether a file is open for writing is asked then."""
        self.changed: dict[str, list[dict[str, Any]]] = {}
        """Keys that were new -> what the last seal made of types that the store has no word for: `field`, `was`, `is`
        and the number of `samples`."""
        self.stored = 0
        """Seals that stored something, so far."""
        self.failures = 0
        self._works: dict[str, _Work] = {}
        self._unclean: list[tuple[StagedDirectory, bool]] = []
        self._waiting = WriteBack(area, driver.appends)
        self._nursery: trio.Nursery | None = None
        self._workers: Workers | None = None
        self._places: trio.CapacityLimiter | None = None
        self._wake: trio.Event | None = None

    @contextlib.asynccontextmanager
    async def running(self, prepare: Callable[[], Awaitable[None]] = _at_once) -> AsyncIterator[None]:
        """Keys are sealed only inside this block. It begins with what a crash has left half done; then it awaits
        `prepare`, and nothing is sealed by itself before that has ended; then it takes up what was staged before. It
        ends when the seals under way have ended."""
        async with self._serving():
            for staged in self._area.directories():
                if staged.kind == "key" and staged.seal.snapshot is not None and staged.damage is None:
                    await self._settle_at_start(staged)
            await prepare()
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
            await self._clean()
        except ShardfsError as error:
            self._waiting.failed(staged, error, trio.current_time())
        except Exception:
            log.exception("settling %s", staged.key)

    # --- asking -------------------------------------------------------------------------------------------------

    def touched(self, staged: StagedDirectory) -> None:
        """Something was changed in a staged directory: its quiet begins anew."""
        if self._waiting.touched(staged, trio.current_time()):
            self._awake()

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
            late = work.begun or not work.asked
            await work.done.wait()
            if work.error is not None and (not late or isinstance(work.error, StaleShardError)):
                raise work.error
            sealed = work.sealed or sealed
            if not late or (work.sealed is not None and work.sealed.left is None):
                return sealed

    async def seal_all(self, seconds: float | None = None) -> dict[str, ShardfsError]:
        """Seal all keys; the errors of those that failed, by key. Plain directories and those set aside stay. Keys that
        are not sealed within so many seconds have an error, ETIMEDOUT, too: their seals go on, or wait."""
        errors: dict[str, ShardfsError] = {}

        async def one(staged: StagedDirectory) -> None:
            key = waiting[staged.id]
            try:
                await self.seal(staged)
            except ShardfsError as error:
                errors[key] = error
            del waiting[staged.id]

        keys = [staged for staged in self._area.directories() if staged.kind == "key" and staged.parked is None]
        waiting = {staged.id: staged.key for staged in keys}
        with trio.move_on_after(float("inf") if seconds is None else seconds):
            if seconds != 0:  # else none is even begun
                await self._each(keys, one)
        late = {key: StorageError(f"not stored within {seconds:g} s", errno.ETIMEDOUT) for key in waiting.values()}
        return errors | late

    @property
    def at_work(self) -> bool:
        """Whether a seal is under way, or waits for its turn."""
        return bool(self._works)

    def problems(self) -> dict[str, str]:
        """Keys whose last seal failed, and why."""
        return self._waiting.problems()

    async def _each(self, keys: Iterable[StagedDirectory], seal: Callable[[StagedDirectory], Awaitable[None]]) -> None:
        """Seal keys; where new ones come behind the others, one by one in order of their names, and after the others:
        samples can be added to the last key only for as long as it is the last."""
        ordered = sorted(keys, key=lambda staged: staged.key)
        behind = []
        async with trio.open_nursery() as nursery:
            for staged in ordered:
                if self._driver.appends and staged.base_version is None:
                    behind.append(staged)
                else:
                    nursery.start_soon(seal, staged)
        for staged in behind:
            await seal(staged)

    # --- by itself ----------------------------------------------------------------------------------------------

    def _awake(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def _timer(self, quiet: float) -> None:
        while self._nursery is not None:
            self._wake = trio.Event()
            due, nearest = self._waiting.due(quiet, trio.current_time())
            if due:
                self._nursery.start_soon(self._each, due, self._try)
            with trio.move_on_at(nearest):
                await self._wake.wait()

    async def _try(self, staged: StagedDirectory) -> None:
        with contextlib.suppress(ShardfsError):  # logged, and kept for `problems`
            await self._sealed_by_itself(staged)
        if self._waiting.tried(staged):
            self._awake()

    # --- one seal -----------------------------------------------------------------------------------------------

    def _start(self, staged: StagedDirectory, asked: bool = True) -> _Work:
        if self._nursery is None:
            raise StorageError("the mount is being ended")
        work = self._works[staged.id] = _Work(staged, asked)
        self._nursery.start_soon(self._run, work)
        return work

    async def _run(self, work: _Work) -> None:
        staged = work.staged
        assert self._places is not None
        # not ended by cancellation: who waits may go away, and a half-done seal would only have to be settled
        with trio.CancelScope(shield=True):
            try:
                await self._behind(work)  # before it has a place, as another seal may have to have one
                async with self._places:
                    if self._nursery is None:
                        raise StorageError("the mount is being ended")
                    work.sealed = await self._seal(work)
                self.stored += work.sealed is not None
                self._waiting.succeeded(staged, work.sealed is not None and work.sealed.left is not None)
            except ShardfsError as error:
                work.error = error
            except Exception as error:
                text = f"sealing {staged.key}: {error or type(error).__name__}"
                if not isinstance(error, OSError | MemoryError):
                    log.exception("sealing %s", staged.key)
                code = error.errno if isinstance(error, OSError) else None
                work.error = StorageError(text, code or errno.EIO)
            finally:
                self.failures += work.error is not None
                if work.error is not None and self._nursery is not None:
                    self._waiting.failed(staged, work.error, trio.current_time())
                del self._works[staged.id]
                work.done.set()
                if work.sealed is None or work.sealed.left is not None:
                    self._awake()
            await self._clean()

    async def _behind(self, work: _Work) -> None:
        """Samples can be added to the last key of some stores only while it is the last: so what was added there, or
        taken away, is stored before a new key. If that fails, so does the new key."""
        staged, driver, problem = work.staged, self._driver, "all its samples were removed, and not the key"
        if staged.base_version is not None or not isinstance(driver, NumberedThrough):
            return
        try:
            last = await self._working().io(lambda: driver.key_before(Key(staged.key)))
        except ShardfsError:
            return  # the new key's own seal will say it
        before = None if last is None else self._area.find(last)
        if last is None or before is None or before.kind != "key" or before.base_version is None:
            return
        try:
            await (self.seal(before) if work.asked else self._sealed_by_itself(before))
        except ShardfsError as error:
            problem = str(error)
        if self._area.find(last) is not before or before.parked is not None or before.finished:
            return
        table = await self._cache.table(await self._cache.fresh_entry(last))
        if not await self._working().io(lambda: seal_steps.keeps_count(before, table)):
            text = f"{last}, behind which {staged.key} would come, has changes that could not be stored"
            raise StorageError(f"{text}: {problem}", errno.EBUSY)

    async def _sealed_by_itself(self, staged: StagedDirectory) -> None:
        work = self._works.get(staged.id) or self._start(staged, asked=False)
        await work.done.wait()
        if work.error is not None:
            raise work.error

    async def _seal(self, work: _Work) -> Sealed | None:
        staged = work.staged
        before = await self._settled(staged) if staged.seal.snapshot is not None else None
        if before is not None and before.left is None:
            return before
        if staged.kind != "key" or staged.parked is not None:
            raise StagingError(f"{staged.key} is not to be sealed", errno.EINVAL)
        if staged.damage is not None or staged.doubt is not None:
            raise StagingError(f"{staged.key}: {staged.damage or staged.doubt}", errno.EIO)
        await self.closed(staged)
        if staged.writers:
            raise StagingError(f"{staged.key}: a file is open for writing", errno.EBUSY)
        workers = self._working()
        work.begun = True
        self._waiting.begun(staged)  # before it is looked at: what comes now counts again
        if await workers.io(lambda: seal_steps.nothing(staged)):
            if staged.base_version is not None:
                await self.on_nothing(staged)
            return before
        key, version = Key(staged.key), staged.base_version
        try:
            return await self._sealed(work, key, version) or before
        except (StaleShardError, MissingKeyError, KeyExistsError) as error:
            raise await self._parked(staged, key, version, error) from error

    async def _sealed(self, work: _Work, key: Key, version: str | None) -> Sealed | None:
        workers, driver, staged = self._working(), self._driver, work.staged
        if version is None:
            await self._check_names(work, None)
            size = staged.data_bytes
            written = await workers.cpu(lambda: seal_steps.write(driver, staged, None, None), size)
            return None if written is None else await self._finished(staged, written, None)
        # what is written has the format and the columns of the stored shard, so its records can stay as they are
        entry = replace(await self._cache.fresh_entry(key), version=Version(version))
        async with self._cache.pinned(entry) as loaded:
            await self._check_names(work, loaded.table)
            base = Base(loaded.shard, loaded.table, self._arrays)
            size = staged.data_bytes + loaded.table.raw_bytes
            written = await workers.cpu(lambda: seal_steps.write(driver, staged, base, entry), size)
            return None if written is None else await self._finished(staged, written, base)

    async def _check_names(self, work: _Work, table: ShardTable | None) -> None:
        """UnaskedError where nobody has asked, and samples would have other names: whoever is still at work in the key,
        and has paused, would not know, and go on under names that mean others."""
        if work.asked or not await self._working().io(lambda: seal_steps.renames(self._driver, work.staged, table)):
            return
        raise UnaskedError(
            "samples would have other numbers then, which is done when asked for (`sync`, `shardfs commit`)"
        )

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
                return self._count(staged, written, places)
            except StagingError as error:
                if error.errno != errno.EINVAL or attempt == config.SEAL_RESCUES - 1:
                    raise
                await workers.io(lambda: seal_steps.rescue(staged, snapshot, places, base))
        raise AssertionError("unreachable")

    def _count(self, staged: StagedDirectory, written: Written, places: Places) -> Sealed:
        """Make a new version count: the one step. StagingError, EINVAL, where bytes must be rescued first."""
        entry, snapshot, table = written.entry, written.snapshot, places.after
        numbers, old = places.numbers, places.base_numbers.get
        left = staged.seal.done(
            entry.version, numbers, old, entry.stored_bytes, new_name=places.new_name, durable=False
        )
        if not left:
            self._area.withdraw(staged)
            self._waiting.gone(staged)
        if snapshot.base_version is not None:
            self._cache.drop(replace(entry, version=Version(snapshot.base_version)))
        self._cache.tables.keep(entry, table)
        has_file = {number: file for number, file in numbers.items() if file is not None}
        self._note_changes(entry.key, written)
        sealed = Sealed(entry.key, entry, table, has_file, places.base_numbers, staged if left else None)
        self.on_sealed(sealed)
        self._unclean.append((staged, left))
        return sealed

    def _note_changes(self, key: str, written: Written) -> None:
        self.changed.pop(key, None)
        if not written.changes:
            return
        while len(self.changed) >= config.CHANGES_KEPT:
            del self.changed[next(iter(self.changed))]
        self.changed[key] = [
            {"field": field, "was": was, "is": becomes, "samples": count}
            for (field, was, becomes), count in written.changes.items()
        ]
        for one in self.changed[key][: config.NOTES_LOGGED]:
            log.warning("%s: field %s: %s is %s in the store (%d samples)", key, *one.values())

    async def _clean(self) -> None:
        """Free what was sealed. Nobody waits for it: removing ten thousand files may take longer than sealing them."""
        while self._unclean:
            staged, left = self._unclean.pop()
            try:
                await self._working().io(staged.seal.commit if left else partial(self._area.remove, staged))
            except (ShardfsError, OSError) as error:
                if left and self._area.find(staged.key) is not staged:
                    continue  # sealed once more since, and gone
                log.warning("%s is in the store, but its staging could not be cleaned up: %s", staged.key, error)

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
        self._waiting.gone(staged)
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
