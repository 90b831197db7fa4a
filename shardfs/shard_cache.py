"""Loaded shards within a budget of bytes: one load however many wait, failures forgotten, the oldest evicted.

Runs on the event loop; loads run in workers, in a nursery of the cache's own, so that a reader who goes away does not
take a load from the others. Knows nothing of FUSE, inodes or names.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import trio

from shardfs import config, light_reading, table_building
from shardfs.damage import DamageList
from shardfs.drivers.base import Driver, InMemory, Refilled, ShardReader
from shardfs.errors import DamagedShardError, ShardfsError, StaleShardError, StorageError
from shardfs.index import ShardTable
from shardfs.index_db import IndexDb
from shardfs.light_columns import LightColumns
from shardfs.model import Entry, Key
from shardfs.narrowing import Narrowing
from shardfs.raw_forms import RawForms
from shardfs.room import Claim, Room
from shardfs.tables import Identity, Tables
from shardfs.values import Buffer
from shardfs.workers import Workers

log = logging.getLogger("shardfs")

T = TypeVar("T")


@dataclass(slots=True)
class Loaded:
    """A shard that can be read, and its table."""

    shard: ShardReader
    table: ShardTable
    partial: bool = False
    """True for one that was opened for reading parts, and not loaded."""
    raw: bool = False
    """True for one that was opened out of its raw bytes in the cache on disk."""
    pins: int = 0
    """Renderings and fetches under way; a pinned shard is not evicted."""
    counted: int = 0
    """Bytes of memory that the cache counts for it."""


@dataclass(slots=True)
class _Load:
    """A load under way, and what became of it."""

    entry: Entry
    wanted: bool = True
    """False while it is only a guess that somebody will ask for it."""
    indexed: bool = True
    """False once the persistent index is known not to have its table."""
    claim: Claim = field(default_factory=Claim)
    done: trio.Event = field(default_factory=trio.Event)
    loaded: Loaded | None = None
    error: ShardfsError | None = None


@dataclass(slots=True)
class CacheCounts:
    """What happened so far."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    opened: int = 0
    """Shards that were opened for reading parts, in place of a load."""
    raw: int = 0
    """Of these, out of their raw bytes in the cache on disk."""
    failures: int = 0
    evictions: int = 0
    rendered_hits: int = 0
    rendered_misses: int = 0
    rendered_evictions: int = 0
    fetches: int = 0
    """Raw bytes that were not at hand and were got for a read."""
    loaded_bytes: int = 0
    """Stored bytes of shards that were loaded whole."""
    decoded_bytes: int = 0
    """Raw bytes that these came to."""
    part_bytes: int = 0
    """Raw bytes that reads took out of shards that are open for reading parts."""
    decode_seconds: float = 0.0
    """Time that workers took for loading: fetching, decompressing and indexing, and waiting for each of these."""


class _NotWorthItError(Exception):
    """A guess that would take too much of the budget. Nobody waits for it: between this and the load's end nothing is
    awaited."""


def _no_refill(start: int, end: int) -> None:
    """For a shard that nobody reads any more."""


class ShardCache:
    """Shards of one driver. `budget` bounds the raw bytes of loaded shards and rendered files together, in bytes.

    The newest shard is never evicted, so a budget smaller than one shard still works. With `database` tables are kept
    over mounts.
    """

    def __init__(
        self,
        driver: Driver,
        budget: int,
        arrays: str,
        database: IndexDb | None = None,
        parts: bool = True,
        raw: RawForms | None = None,
        narrowing: Narrowing | None = None,
    ) -> None:
        """With `parts`, shards that their driver can read in parts are not loaded once their table is known, nor are
        those whose raw bytes `raw` has. `narrowing` says which samples are shown; without it all are."""
        self._driver = driver
        self._room = Room(budget, self._make_room)
        self.arrays = arrays
        """How samples are shown, as the layout takes it."""
        self._parts = parts
        self._raw = raw if parts else None
        self.tables = Tables(driver, max(config.TABLE_FLOOR, budget // config.TABLE_SHARE), database, narrowing)
        self._shards: OrderedDict[Identity, Loaded] = OrderedDict()
        self._rendered: OrderedDict[tuple[Identity, int], bytes] = OrderedDict()
        self._loads: dict[Identity, _Load] = {}
        self._told: OrderedDict[Identity, None] = OrderedDict()
        self._partial = 0
        self._workers: Workers | None = None
        self._nursery: trio.Nursery | None = None
        self.counts = CacheCounts()
        self.damage = DamageList()
        """What could not be loaded, or not all of it."""
        self.on_load: Callable[[Entry, Loaded], None] = lambda entry, loaded: None
        """Called on the event loop when a shard has been loaded and its waiters have been woken."""
        self.on_touch: Callable[[Entry], None] = lambda entry: None
        """Called when a shard is asked for that was not in memory, or that was loaded ahead and never asked for."""
        self.on_evict: Callable[[Identity], None] = lambda identity: None
        self._ahead: set[Identity] = set()
        self.patience = math.inf
        """Seconds that one who asks waits for a load, which goes on without him: then ETIMEDOUT."""

    def __len__(self) -> int:
        """Shards in memory."""
        return len(self._shards)

    @property
    def used(self) -> int:
        """Bytes held, or reserved for loads under way."""
        return self._room.used

    @property
    def rendered_bytes(self) -> int:
        """Bytes of rendered files, a part of `used`."""
        return sum(map(len, self._rendered.values()))

    @property
    def rendered_files(self) -> int:
        """Rendered files that are kept."""
        return len(self._rendered)

    @property
    def budget(self) -> int:
        """Bytes that may be held."""
        return self._room.budget

    @property
    def raw(self) -> RawForms | None:
        """What keeps raw bytes of shards on disk, where something does."""
        return self._raw

    def calm(self) -> bool:
        """True while nothing is being loaded."""
        return not self._loads

    @property
    def loading(self) -> list[Key]:
        """Keys of the shards that are being loaded, or wait for room; those who came first, and not all of too many."""
        return [key for key, _ in islice(self._loads, config.TOP_LOADING)]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The cache loads only inside this block. Its end waits for the threads of loads under way."""
        async with trio.open_nursery() as nursery:
            self._room.start()
            self._workers = Workers()
            self._nursery = nursery
            self.tables.start(nursery, self._workers)
            try:
                yield
            finally:
                self._nursery = None
                self.tables.end()
                if self._raw is not None:
                    self._raw.end()
                nursery.cancel_scope.cancel()

    def holds(self, entry: Entry) -> bool:
        """Whether all of a shard is in memory, without counting that as a use."""
        loaded = self._shards.get((entry.key, entry.version))
        return loaded is not None and not loaded.partial

    def peek(self, entry: Entry) -> Loaded | None:
        """The shard if it is in memory. Never waits; counts as a use."""
        identity = (entry.key, entry.version)
        loaded = self._shards.get(identity)
        if loaded is not None:
            self._shards.move_to_end(identity)
            self.counts.hits += 1
            if identity in self._ahead:
                self._ahead.discard(identity)
                self.on_touch(entry)
        return loaded

    async def shard(self, entry: Entry, *, indexed: bool = True) -> Loaded:
        """The shard, loaded if need be. DamagedShardError, StaleShardError, StorageError, MissingKeyError.

        With `indexed` false the persistent index was asked already: asking it may mean reading all that is stored.
        """
        loaded = self.peek(entry)
        if loaded is not None:
            return loaded
        self.counts.misses += 1
        identity = (entry.key, entry.version)
        load = self._loads.get(identity)
        if load is None:
            if self._nursery is None:
                raise StorageError("the mount is being ended")
            load = self._loads[identity] = _Load(entry, indexed=indexed)
            self._nursery.start_soon(self._run, load)
        load.wanted = True
        self._ahead.discard(identity)
        self.on_touch(entry)
        with trio.move_on_after(self.patience):
            await load.done.wait()
        if load.loaded is not None:
            return load.loaded
        if not load.done.is_set():
            raise StorageError(f"{entry.key} is not loaded in time; it goes on", errno.ETIMEDOUT)
        try:
            raise load.error or StorageError("the mount is being ended")
        finally:
            del load  # or the error would hold itself

    def load_ahead(self, entry: Entry, size: int) -> bool:
        """Load a shard of about `size` raw bytes that nobody has asked for yet, if that takes nothing from anybody."""
        identity = (entry.key, entry.version)
        if self._nursery is None or identity in self._shards or identity in self._loads:
            return False
        if len(self._loads) >= config.READ_AHEAD or size * config.READ_AHEAD_SHARE > self._room.budget:
            return False
        self._ahead.add(identity)
        load = self._loads[identity] = _Load(entry, wanted=False)
        self._nursery.start_soon(self._run, load)
        return True

    async def table(self, entry: Entry) -> ShardTable:
        """What the shard holds; the shard itself is loaded only if that is not known. Errors as `shard`."""
        loading = (entry.key, entry.version) in self._loads
        table = self.tables.known(entry) if loading else await self._kept(entry)
        return table if table is not None else (await self.shard(entry, indexed=False)).table

    async def _kept(self, entry: Entry) -> ShardTable | None:
        with trio.move_on_after(self.patience):
            return await self.tables.kept(entry)
        raise StorageError(f"what {entry.key} holds is not known in time; it is still asked for", errno.ETIMEDOUT)

    def drop(self, entry: Entry) -> None:
        """Forget a shard that the store no longer has: its bytes, its table, what was rendered of it."""
        identity = (entry.key, entry.version)
        self._ahead.discard(identity)
        if identity in self._shards:
            self._forget(identity)
        self.tables.drop(entry)
        for rendered in [name for name in self._rendered if name[0] == identity]:
            self._room.held -= len(self._rendered.pop(rendered))

    def drop_soon(self, entry: Entry) -> None:
        """The same, config.OLD_BYTES seconds later where its bytes are at hand: for who is reading them."""
        if self._nursery is None or (entry.key, entry.version) not in self._shards:
            self.drop(entry)
        else:
            self._nursery.start_soon(self._drop_late, entry)

    async def _drop_late(self, entry: Entry) -> None:
        await trio.sleep(config.OLD_BYTES)
        self.drop(entry)

    async def fresh_entry(self, key: Key) -> Entry:
        """What the store says of a key now. MissingKeyError, StorageError."""
        return await self.in_worker(lambda: self._driver.entry(key))

    async def in_worker(self, work: Callable[[], T], size: int | None = None) -> T:
        """Run something that computes over `size` bytes, or without that, something that waits for storage."""
        if self._workers is None:
            raise StorageError("the mount is being ended")
        return await (self._workers.io(work) if size is None else self._workers.cpu(work, size))

    def table_in_thread(self, entry: Entry) -> ShardTable:
        """`table`, called in a worker."""
        return self._from_worker(lambda: self.table(entry))

    def light(self, entry: Entry) -> LightColumns:
        """Called in a worker: the light fields of a shard, which is loaded for that within the budget. Errors as
        `shard`."""

        async def work() -> LightColumns:
            async with self.pinned(entry) as loaded:
                table, reader = loaded.table, loaded.shard
                return await self.in_worker(
                    lambda: light_reading.of_reader(table, reader, self.arrays), table.raw_bytes
                )

        return self._from_worker(work)

    def _from_worker(self, work: Callable[[], Awaitable[T]]) -> T:
        if self._workers is None:
            raise StorageError("the mount is being ended")
        return self._workers.asked(work)

    def rendered_now(self, loaded: Loaded, file: int) -> bytes | None:
        """The whole content of a file that must be rendered; None if that takes its time."""
        data = loaded.table.render_now(file, loaded.shard, self.arrays)
        if data is not None and loaded.partial and not loaded.raw:
            self._took_record(loaded.table, file)
        return data

    def _took_record(self, table: ShardTable, file: int) -> None:
        start, end = table.record_of(file)
        self.counts.part_bytes += end - start

    async def fetched(self, entry: Entry, loaded: Loaded, start: int, end: int) -> Buffer:
        """Raw bytes that are not at hand: in a worker, and kept within the budget where they are kept. Errors as
        `shard`."""
        identity = (entry.key, entry.version)
        assert self._workers is not None
        workers, reader = self._workers, loaded.shard
        self.counts.fetches += 1
        with self._pinning(identity, loaded):
            try:
                if reader.computes:
                    return await workers.cpu(lambda: reader.fetch(start, end), end - start)
                return await workers.io(lambda: reader.fetch(start, end))
            except ShardfsError as error:
                if not loaded.raw:
                    self._tell(identity, error)
                    raise
                self._give_up_raw(entry, loaded, error)
        return (await self.shard(entry)).shard.fetch(start, end)  # in memory now: nothing is waited for

    @contextlib.contextmanager
    def _pinning(self, identity: Identity, loaded: Loaded) -> Iterator[None]:
        """Not evicted inside this block. What it holds may have changed behind it: room is made for it, and counted."""
        loaded.pins += 1
        try:
            yield
        finally:
            loaded.pins -= 1
            if self._shards.get(identity) is loaded:
                self._make_room(max(0, loaded.shard.held - loaded.counted), identity)
                self._count(loaded)

    @contextlib.asynccontextmanager
    async def pinned(self, entry: Entry) -> AsyncIterator[Loaded]:
        """The shard, which is not evicted inside this block, for work that asks it itself. Errors as `shard`."""
        loaded = await self.shard(entry)
        with self._pinning((entry.key, entry.version), loaded):
            yield loaded

    def _refill(self, entry: Entry, loaded: Loaded, start: int, end: int) -> None:
        """Have a range made ready, if the shard is still here and that fits beside all that is held."""
        identity = (entry.key, entry.version)
        fits = self._room.used + end - start <= self._room.budget or loaded.counted > end - start
        if self._nursery is not None and self._shards.get(identity) is loaded and fits:
            self._nursery.start_soon(self._hold, identity, loaded, start, end)

    async def _hold(self, identity: Identity, loaded: Loaded, start: int, end: int) -> None:
        reader = loaded.shard
        assert self._workers is not None
        assert isinstance(reader, Refilled)
        hold = reader.hold
        with self._pinning(identity, loaded):
            try:
                await self._workers.cpu(lambda: hold(start, end), end - start)
            except (ShardfsError, OSError, MemoryError) as error:
                log.debug("%s was not made ready: %s", identity[0], error)  # who asks for it is told

    async def rendered(self, entry: Entry, loaded: Loaded, file: int) -> bytes:
        """The whole content of a file that must be rendered; in a worker, and kept within the budget."""
        table = loaded.table
        if loaded.partial and not loaded.raw and ((entry.key, entry.version), file) not in self._rendered:
            self._took_record(table, file)
        return await self.made(
            entry, loaded, file, table.size(file), lambda: table.render(file, loaded.shard, self.arrays)
        )

    async def made(self, entry: Entry, loaded: Loaded, file: int, size: int, make: Callable[[], bytes]) -> bytes:
        """The same for what `make` makes of a shard: `size` bytes, kept under the number `file`."""
        identity = (entry.key, entry.version)
        kept = self._rendered.get((identity, file))
        if kept is not None:
            self._rendered.move_to_end((identity, file))
            self.counts.rendered_hits += 1
            return kept
        self.counts.rendered_misses += 1
        assert self._workers is not None
        try:
            with self._pinning(identity, loaded):
                data = await self._workers.cpu(make, size)
        except (StaleShardError, StorageError) as error:
            if not loaded.raw:
                raise
            self._give_up_raw(entry, loaded, error)
            return await self.rendered(entry, await self.shard(entry), file)
        if len(data) > config.KEEP_RENDERED and (identity, file) not in self._rendered:
            self._keep_rendered(identity, file, data)
        return data

    def _give_up_raw(self, entry: Entry, loaded: Loaded, error: ShardfsError) -> None:
        """Raw bytes out of the cache on disk cannot be read: the shard is to be loaded instead."""
        log.warning("%s: its raw bytes in the cache on disk cannot be read: %s", entry.key, error)
        if self._raw is not None:
            self._raw.drop(entry)
        if self._shards.get((entry.key, entry.version)) is loaded:
            self._forget((entry.key, entry.version))

    def _keep_raw(self, entry: Entry, loaded: Loaded) -> None:
        """Have the raw bytes of a shard that was just loaded kept on disk, if they are to be: it stays until then."""
        size = loaded.shard.size
        if self._raw is None or self._nursery is None or loaded.partial:
            return
        if self._raw.admits(entry, size, self._room.budget):
            self._nursery.start_soon(self._write_raw, self._raw, entry, loaded)

    async def _write_raw(self, raw: RawForms, entry: Entry, loaded: Loaded) -> None:
        assert self._workers is not None
        workers, shard = self._workers, loaded.shard
        assert isinstance(shard, InMemory)
        try:
            with self._pinning((entry.key, entry.version), loaded):
                await workers.io(lambda: raw.keep(entry, shard.raw))
        finally:
            raw.done(shard.size)

    def _keep_rendered(self, identity: Identity, file: int, data: bytes) -> None:
        """Keep it for the next read; but not in place of its shard, which that read would load again in place of it."""
        shard = self._shards.get(identity)
        if self._room.reserved + (0 if shard is None else shard.counted) + len(data) <= self._room.budget:
            self._make_room(len(data), identity)
            self._rendered[identity, file] = data
            self._room.held += len(data)

    async def _run(self, load: _Load) -> None:
        identity = (load.entry.key, load.entry.version)
        try:
            load.loaded = await self._load(load)
        except _NotWorthItError:
            log.debug("%s is not loaded ahead: it is too large", load.entry.key)
        except ShardfsError as error:
            load.error = error
            self._tell(identity, error)
        except (OSError, MemoryError, RecursionError) as error:
            load.error = StorageError(f"loading {load.entry.key}: {error or type(error).__name__}")
            self._tell(identity, load.error)
        except Exception as error:
            self.counts.failures += 1
            self.damage.note(*identity, f"{type(error).__name__}: {error}")
            if identity not in self._told:
                self._remember(identity)
                log.exception("loading %s", load.entry.key)
            load.error = StorageError(f"loading {load.entry.key}: {type(error).__name__}: {error}")
        finally:
            if load.error is not None:
                load.error.__traceback__ = None  # which would hold the load, and with it the error
            self._room.release(load.claim)
            del self._loads[identity]
            if load.loaded is not None:
                self._keep(load.entry, load.loaded)
                self._keep_raw(load.entry, load.loaded)
            else:
                self._ahead.discard(identity)
            self._room.signal()
            load.done.set()
        if load.loaded is not None:
            self.on_load(load.entry, load.loaded)

    async def _load(self, load: _Load) -> Loaded:
        assert self._workers is not None
        workers, driver, entry = self._workers, self._driver, load.entry
        if await self.tables.answered(entry):
            load.indexed = False
        table, reader, raw, estimate = await workers.io(lambda: self._look(load, self.tables.known(entry)))
        if reader is not None and table is not None:
            loaded = Loaded(reader, table, partial=True, raw=raw)
            self.counts.opened += 1
            self.counts.raw += raw
            if isinstance(reader, Refilled):
                reader.limit = min(reader.limit, self._room.budget)
                reader.refill = lambda start, end: workers.soon(lambda: self._refill(entry, loaded, start, end))
            return loaded
        if not load.wanted and estimate * config.READ_AHEAD_SHARE > self._room.budget:
            raise _NotWorthItError
        self.counts.loads += 1
        await self._room.reserve(load.claim, estimate)
        asked = [estimate]

        def grow(size: int) -> None:  # in the worker
            if size > asked[0]:
                asked[0] = size + config.GROW_STEP
                workers.from_thread(lambda reached: self._room.grow(load.claim, reached), asked[0])

        def work() -> tuple[Loaded, ShardTable | None]:
            shard = driver.load(entry, grow)
            if table is not None and table.raw_bytes == shard.size:
                return Loaded(shard, table), None
            built = table_building.build(shard, self.arrays)
            shown = self.tables.shown(entry, built, shard)
            in_place = driver.open(entry, built.raw_bytes) if self._parts else None
            if in_place is None or in_place.computes:
                return Loaded(shard, shown), built
            return Loaded(in_place, shown, partial=True), built

        begun = time.perf_counter()
        try:
            loaded, built = await workers.cpu(work, estimate)
        finally:
            self.counts.decode_seconds += time.perf_counter() - begun
        self.counts.loaded_bytes += entry.stored_bytes
        self.counts.decoded_bytes += loaded.table.raw_bytes
        if built is not None:
            self.tables.publish(entry, built)
        return loaded

    def _look(self, load: _Load, table: ShardTable | None) -> tuple[ShardTable | None, ShardReader | None, bool, int]:
        """In a worker: what is known of a shard's content, a reader if none of it need be loaded (and whether that is
        one of raw bytes in the cache on disk), and else the raw bytes that loading will hold."""
        entry = load.entry
        if table is None and load.indexed:
            table = self.tables.looked_up(entry)
        reader = None if table is None or not self._parts else self._driver.open(entry, table.raw_bytes)
        kept = None if table is None or reader is not None or self._raw is None else self._raw
        if kept is not None and table is not None:
            reader = kept.open(entry, table.raw_bytes)
        if reader is None:
            return table, None, False, self._driver.estimate(entry)
        if not load.wanted:
            reader.expect()
        return table, reader, kept is not None, 0

    def _keep(self, entry: Entry, loaded: Loaded) -> None:
        identity = (entry.key, entry.version)
        self._make_room(loaded.shard.held)
        self._shards[identity] = loaded
        self._partial += loaded.partial
        self._count(loaded)
        self._close_some()
        self.tables.keep(entry, loaded.table)
        for note in loaded.table.notes[: config.NOTES_LISTED]:
            self.damage.note(*identity, note.reason, file=note.file)
        if identity not in self._told:
            for note in loaded.table.notes[: config.NOTES_LOGGED]:
                if note.file:
                    log.warning("%s/%s: shown as bytes: %s", identity[0], note.file, note.reason)
                else:
                    log.warning("%s: %s", identity[0], note.reason)
            if loaded.table.notes:
                self._remember(identity)

    def _make_room(self, size: int, spared: Identity | None = None) -> None:
        """Evict until `size` more bytes fit: rendered files first, then the oldest shards that nobody works on."""
        room = self._room
        while room.used + size > room.budget and self._rendered:
            _, data = self._rendered.popitem(last=False)
            room.held -= len(data)
            self.counts.rendered_evictions += 1
        for identity in list(self._shards):
            if room.used + size <= room.budget:
                break
            loaded = self._shards[identity]
            if loaded.counted and not loaded.pins and identity != spared:
                self._evict(identity)

    def _evict(self, identity: Identity) -> None:
        self._forget(identity)
        self.counts.evictions += 1
        self._ahead.discard(identity)
        self.on_evict(identity)

    def _forget(self, identity: Identity) -> None:
        loaded = self._shards.pop(identity)
        self._room.held -= loaded.counted
        self._partial -= loaded.partial
        if isinstance(loaded.shard, Refilled):
            loaded.shard.refill = _no_refill  # else the two would keep one another alive

    def _count(self, loaded: Loaded) -> None:
        """Count what a shard in the cache holds by now."""
        held = loaded.shard.held
        self._room.held += held - loaded.counted
        loaded.counted = held

    def _close_some(self) -> None:
        """Bound the shards that each hold a descriptor. The newest stays."""
        most = config.readers()
        for identity in list(self._shards)[:-1] if self._partial > most else ():
            loaded = self._shards[identity]
            if loaded.partial and not loaded.pins:
                self._evict(identity)
                if self._partial <= most:
                    break

    def _tell(self, identity: Identity, error: ShardfsError) -> None:
        """Log a failure, once per version of a shard."""
        self.counts.failures += 1
        if isinstance(error, StaleShardError):
            return  # no fault of anybody's: the store was changed
        if isinstance(error, DamagedShardError):
            error.key = identity[0]
        reason = error.reason if isinstance(error, DamagedShardError) else str(error)
        self.damage.note(*identity, reason, offset=getattr(error, "offset", None))
        if identity not in self._told:
            self._remember(identity)
            text = str(error)
            log.error("%s", text if identity[0] in text else f"{identity[0]}: {text}")

    def _remember(self, identity: Identity) -> None:
        self._told[identity] = None
        if len(self._told) > config.ERRORS_KEPT:
            self._told.popitem(last=False)
