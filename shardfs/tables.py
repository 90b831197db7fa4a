"""What shards hold, as far as that is known: tables in memory within a budget of bytes, and behind them the persistent
index.

Runs on the event loop; the index is asked in workers. Knows nothing of the shards' bytes, or of how tables are made.
"""

from __future__ import annotations

import logging
from collections import OrderedDict

import trio

from shardfs.drivers.base import Driver, ShardReader
from shardfs.errors import ShardfsError
from shardfs.index import ShardTable
from shardfs.index_db import IndexDb
from shardfs.model import Entry, Key, Version
from shardfs.narrowing import Narrowing
from shardfs.workers import Workers

log = logging.getLogger("shardfs")

Identity = tuple[Key, Version]


class Tables:
    """Tables of one driver's shards. `budget` is in bytes; the newest table is kept whatever its size."""

    def __init__(
        self, driver: Driver, budget: int, database: IndexDb | None, narrowing: Narrowing | None = None
    ) -> None:
        self._driver = driver
        self.narrowing = narrowing
        """Which samples are shown; None for all. Tables in memory are of these, those in the index of all."""
        self._budget = budget
        self.database = self._database = database
        """The persistent index, if there is one."""
        self._tables: OrderedDict[Identity, ShardTable] = OrderedDict()
        self._bytes = 0
        self._questions: dict[Identity, trio.Event] = {}
        self._workers: Workers | None = None
        self._nursery: trio.Nursery | None = None
        self.indexed = 0
        """Tables that came out of the index so far, for those who asked for nothing else."""
        self.evictions = 0

    def __len__(self) -> int:
        """Tables in memory."""
        return len(self._tables)

    @property
    def used(self) -> int:
        """Bytes of memory that they take."""
        return self._bytes

    @property
    def budget(self) -> int:
        """Bytes that they may take."""
        return self._budget

    def start(self, nursery: trio.Nursery, workers: Workers) -> None:
        """The index is asked only after this, and until `end`."""
        self._nursery, self._workers = nursery, workers

    def end(self) -> None:
        """No question begins after this."""
        self._nursery = None

    def known(self, entry: Entry) -> ShardTable | None:
        """What a shard holds, if that is in memory. Never waits; counts as a use."""
        identity = (entry.key, entry.version)
        table = self._tables.get(identity)
        if table is not None:
            self._tables.move_to_end(identity)
        return table

    def keep(self, entry: Entry, table: ShardTable) -> None:
        """Have it in memory, in place of the oldest ones."""
        self.drop(entry)
        self._tables[entry.key, entry.version] = table
        self._bytes += table.nbytes
        while self._bytes > self._budget and len(self._tables) > 1:
            _, oldest = self._tables.popitem(last=False)
            self._bytes -= oldest.nbytes
            self.evictions += 1

    def drop(self, entry: Entry) -> None:
        """Forget one, here and not in the index."""
        table = self._tables.pop((entry.key, entry.version), None)
        if table is not None:
            self._bytes -= table.nbytes

    async def kept(self, entry: Entry) -> ShardTable | None:
        """The table in memory or in the index, which is asked once however many wait: that may mean reading all that
        is stored. By a task of its own, so that a reader who goes away does not take the answer from the others."""
        table = self.known(entry)
        if table is not None or self._database is None or self._nursery is None:
            return table
        identity = (entry.key, entry.version)
        question = self._questions.get(identity)
        if question is None:
            question = self._questions[identity] = trio.Event()
            self._nursery.start_soon(self._ask, self._database, entry, question)
        await question.wait()
        return self.known(entry)

    async def _ask(self, database: IndexDb, entry: Entry, question: trio.Event) -> None:
        assert self._workers is not None
        try:
            table = await self._workers.io(lambda: self._look_up(database, entry))
            if table is not None:
                self.indexed += 1
                self.keep(entry, table)
        except Exception:  # a question that fails is a load, and no end of the mount
            log.exception("asking the index for %s", entry.key)
        finally:
            del self._questions[entry.key, entry.version]
            question.set()

    async def answered(self, entry: Entry) -> bool:
        """True, once it is answered, if the index is just being asked for a shard."""
        question = self._questions.get((entry.key, entry.version))
        if question is not None:
            await question.wait()
        return question is not None

    def looked_up(self, entry: Entry) -> ShardTable | None:
        """What the index has, in a worker. May mean reading all that is stored."""
        return None if self._database is None else self._look_up(self._database, entry)

    def _look_up(self, database: IndexDb, entry: Entry) -> ShardTable | None:
        def mark() -> str:
            return self._driver.mark(entry)

        table = database.get(entry, mark)
        if table is None or self.narrowing is None:
            return table
        try:
            return self.narrowing.of_index(entry, table, mark)
        except ShardfsError as error:
            log.debug("the filter for %s: %s", entry.key, error)  # said to who has it loaded then
            return None

    def shown(self, entry: Entry, table: ShardTable, reader: ShardReader) -> ShardTable:
        """In a worker: the table of a shard that was loaded, with the samples that are shown. Errors as
        `Narrowing.of_shard`."""
        return table if self.narrowing is None else self.narrowing.of_shard(entry, table, reader)

    def publish(self, entry: Entry, table: ShardTable) -> None:
        """Have a table, of all samples, put into the index, soon."""
        if self._database is not None and self._nursery is not None:
            self._nursery.start_soon(self._put, self._database, entry, table)

    async def _put(self, database: IndexDb, entry: Entry, table: ShardTable) -> None:
        def put() -> None:
            try:
                database.put(entry, table, "")  # a mark costs another reading: `shardfs index` makes them
            except (ShardfsError, OSError) as error:
                log.debug("%s was not put into the index: %s", entry.key, error)

        if self._workers is not None:
            await self._workers.io(put)
