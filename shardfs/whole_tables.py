"""The tables of a whole store that a mount shows: made when they are first asked for, in a worker, into a file on disk
that has no name, and made anew when the store has changed.

Each state of one has a number of its own: so its size is exact, and who has it open reads just that. A lookup waits for
nothing, as it would keep all others below `.shardfs` waiting; who asks for the size, or opens it, waits until it is
made. Knows nothing of FUSE, nor of what a row says.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import logging
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import IO

import trio

from shardfs import config, sample_tables
from shardfs.errors import DamagedShardError, MissingKeyError, ShardfsError, StaleShardError, StorageError
from shardfs.light_fields import LightFields
from shardfs.model import Entry
from shardfs.sample_tables import Shown, Source
from shardfs.shard_cache import ShardCache
from shardfs.tree import KeyTree

log = logging.getLogger("shardfs")

NAMES = {f"samples.{format}".encode("ascii"): format for format in sample_tables.FORMATS}


@dataclass(slots=True, eq=False)
class _State:
    """One state of a table, known to somebody under its number."""

    number: int
    name: bytes
    changes: int
    """What the tree was when it was asked for."""
    made_ns: int
    file: IO[bytes] | None = None
    size: int = 0
    error: ShardfsError | None = None
    done: trio.Event = field(default_factory=trio.Event)
    begun: bool = False
    lookups: int = 0
    handles: int = 0


class WholeTables:
    """The tables of one mount. `fresh` lets the tree take in what has changed in the store; `all_fresh` for certain."""

    def __init__(
        self,
        tree: KeyTree,
        cache: ShardCache,
        light: LightFields,
        fresh: Callable[[], Awaitable[object]],
        all_fresh: Callable[[], Awaitable[object]],
    ) -> None:
        self._tree = tree
        self._cache = cache
        self._light = light
        self._fresh = fresh
        self._all_fresh = all_fresh
        self._states: OrderedDict[int, _State] = OrderedDict()
        self._latest: dict[bytes, _State] = {}
        self._last = 0
        self._nursery: trio.Nursery | None = None
        self._one = trio.Lock()
        """Held by the table that is being made: each holds some thousand samples, and what a library takes for it."""
        self._ending = threading.Event()
        self._told_missing = False
        self.unopened = False
        """True once nobody says any more what he opens: whatever the kernel knows may be open then."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tables are made only inside this block. Its end waits for a shard that is being read."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    yield
                finally:
                    self._nursery = None
                    self._ending.set()
                    nursery.cancel_scope.cancel()
        finally:
            for state in self._states.values():
                if state.file is not None:
                    state.file.close()

    async def lookup(self, name: bytes) -> tuple[int, int, int]:
        """The number of what a table is now, its size if it is made (else 0), and its time in nanoseconds; counts as a
        lookup. Waits for no shard. MissingKeyError."""
        if NAMES.get(name) == "parquet" and importlib.util.find_spec("pyarrow") is None:
            if not self._told_missing:
                log.warning("%s", sample_tables.NO_PYARROW)
            self._told_missing = True
            raise MissingKeyError(sample_tables.NO_PYARROW)
        if name not in NAMES:
            raise MissingKeyError(f"no entry {name!r}")
        await self._fresh()
        state = self._latest.get(name)
        # one that waits for its turn takes the tree as it is then
        if state is None or state.error is not None or (state.begun and state.changes != self._tree.changes):
            state = self._begin(name)
        state.lookups += 1
        return state.number, state.size, state.made_ns

    def _begin(self, name: bytes) -> _State:
        if self._nursery is None:
            raise StorageError("the mount is being ended")
        self._make_room()
        self._last += 1
        made = _State(self._last, name, self._tree.changes, time.time_ns())
        self._states[made.number] = self._latest[name] = made
        self._nursery.start_soon(self._make, made)
        return made

    def _make_room(self) -> None:
        """Let the oldest states go that nobody has open."""
        for state in list(self._states.values()):
            if len(self._states) < config.TABLE_STATES:
                return
            if not self._held(state) and state.done.is_set():
                self._drop(state)
        if len(self._states) >= config.TABLE_STATES:
            raise StorageError("too many tables are open", errno.EMFILE)

    def _held(self, state: _State) -> bool:
        """Whether somebody may have it open."""
        return bool(state.handles) or (self.unopened and state.lookups > 0)

    def _drop(self, state: _State) -> None:
        self._states.pop(state.number, None)
        if self._latest.get(state.name) is state:
            del self._latest[state.name]
        if state.file is not None:
            state.file.close()

    def looked_up(self, number: int, count: int) -> None:
        """Lookups that were handed out; less than 0: that the kernel has forgotten."""
        state = self._states.get(number)
        if state is not None:
            state.lookups += count
            self._let_go(state)

    def _let_go(self, state: _State) -> None:
        unused = state.lookups <= 0 and not state.handles and state.done.is_set()
        if unused and self._latest.get(state.name) is not state:
            self._drop(state)

    async def attributes(self, number: int) -> tuple[int, int]:
        """Exact size and time of a table, once it is made. ESTALE for one that was let go; why it could not be made:
        EFBIG, ENOSPC, or the error of a store that does not answer; ETIMEDOUT while it is still being made."""
        state = await self._done(number)
        return state.size, state.made_ns

    async def open(self, number: int) -> None:
        """For reading, once it is made. Errors as `attributes`."""
        state = await self._done(number)
        state.handles += 1

    async def read(self, number: int, offset: int, size: int) -> bytes | memoryview:
        """At most `size` bytes from `offset`, fewer only at the end: the same as ever for a number."""
        state = await self._done(number)
        file, count = state.file, min(size, state.size - offset)
        if file is None or count <= 0:
            return b""
        buffer = bytearray(count)
        with contextlib.suppress(OSError):  # not in the page cache, or nobody can tell
            if os.preadv(file.fileno(), [buffer], offset, os.RWF_NOWAIT) == count:
                return memoryview(buffer)
        state.handles += 1  # not let go while it is read
        try:
            return await self._cache.in_worker(lambda: os.pread(file.fileno(), count, offset))
        finally:
            self.release(number)

    def release(self, number: int) -> None:
        """A handle was closed for good."""
        state = self._states.get(number)
        if state is not None:
            state.handles -= 1
            self._let_go(state)

    async def _done(self, number: int) -> _State:
        state = self._states.get(number)
        if state is None:
            raise StaleShardError("an earlier state of a table")
        with trio.move_on_after(config.TABLE_PATIENCE):
            await state.done.wait()
        if not state.done.is_set():
            text = f"{state.name.decode()} is still being made: shardfs status says how far it is"
            raise StorageError(text, errno.ETIMEDOUT)
        if state.error is not None:
            raise StorageError(str(state.error), state.error.errno)  # one that is raised again would gather tracebacks
        return state

    # --- making ---------------------------------------------------------------------------------------------------

    async def _make(self, state: _State) -> None:
        try:
            async with self._one:
                state.begun = True
                await self._attempts(state)
        except ShardfsError as error:
            state.error = error
        except (OSError, MemoryError) as error:
            state.error = StorageError(f"{state.name.decode()}: {error}", getattr(error, "errno", None) or errno.EIO)
        except Exception as error:
            log.exception("making %s", state.name.decode())
            state.error = StorageError(f"{state.name.decode()}: {type(error).__name__}")
        finally:
            if state.error is None and state.file is None:
                state.error = StorageError("the mount is being ended")
            if state.error is not None and not self._ending.is_set():
                log.warning("%s cannot be made: %s", state.name.decode(), state.error)
            state.done.set()
            self._let_go(state)

    async def _attempts(self, state: _State) -> None:
        for attempt in range(_ATTEMPTS):
            state.changes = self._tree.changes
            keys = [Shown(key.entry, self._tree.path(key)) for key in self._tree.slots]
            try:
                state.file, state.size = await self._cache.in_worker(partial(self._written, state.name, keys))
                return
            except StaleShardError:
                if attempt == _ATTEMPTS - 1:
                    raise
            await self._all_fresh()

    def _written(self, name: bytes, keys: list[Shown]) -> tuple[IO[bytes], int]:
        """In a worker: the whole table in a file without a name."""
        format = NAMES[name]
        building = self._light.begin(name.decode("ascii"), len(keys) * (2 if format == "parquet" else 1))
        left_out: dict[str, None] = {}

        def step() -> None:
            building.done += 1
            if self._ending.is_set():
                raise StorageError("the mount is being ended")

        def damaged(entry: Entry, error: DamagedShardError) -> None:
            left_out[entry.key] = None

        file = tempfile.TemporaryFile(dir=_directory(), prefix="table-")  # noqa: SIM115 - it outlives this
        try:
            limit = config.TABLE_BYTES - sum(one.size for one in list(self._states.values()))
            sink = _Bounded(file, limit, name.decode("ascii"))
            table = self._cache.table_in_thread
            sample_tables.write(Source(keys, table, self._light.columns, step, damaged), format, sink)
            file.flush()
        except BaseException:
            file.close()
            raise
        finally:
            self._light.end(building)
        if left_out:
            told = ", ".join(list(left_out)[: config.NOTES_LOGGED])
            log.warning("%s is without %d keys that cannot be read: %s", name.decode(), len(left_out), told)
        return file, sink.size


_ATTEMPTS = 3
"""A shard that is replaced while a table is made has the whole table made anew, so often."""


def _directory() -> str | None:
    """Where tables lie: on disk, as what is called temporary is memory on many machines. None: there after all."""
    base = config.base_directory("XDG_CACHE_HOME", "~/.cache")
    if base is None:
        return None
    path = base / "shardfs" / "tables"
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    return str(path)


class _Bounded:
    """Writes into a file up to a limit, and while the disk has room left."""

    def __init__(self, file: IO[bytes], limit: int, name: str) -> None:
        self._file = file
        self._limit = limit
        self._name = name
        self._looked = -config.TABLE_LOOK
        self.size = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._limit:
            text = f"{self._name} takes more than {config.TABLE_BYTES} bytes with other tables: shardfs table writes it"
            raise StorageError(text, errno.EFBIG)
        if self.size - self._looked >= config.TABLE_LOOK:
            self._looked = self.size
            disk = os.fstatvfs(self._file.fileno())
            if disk.f_bavail * disk.f_frsize < config.CACHE_MIN_FREE + len(data):
                raise StorageError(f"{self._name} finds no room on the disk of the cache", errno.ENOSPC)
        self._file.write(data)
