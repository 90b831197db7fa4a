"""A staged directory's tree and its journal, changed together: a record is written, and then it is true.

What is durable when is decided here. Data files whose entries are gone wait until the record that says so is on disk:
else power loss could bring the entry back, and not its bytes. Knows nothing of what operations are allowed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from shardfs import config
from shardfs.errors import StagingError
from shardfs.staging.heap import Heap, Run, is_in_heap, offset_of
from shardfs.staging.journal import Journal, sync_directory
from shardfs.staging.room import Room
from shardfs.staging.tree import FORMAT, Tree, pack

log = logging.getLogger("shardfs")

JOURNAL = "journal"
DATA = "data"
HEAP = "heap"
"""In `data`: the file of many files."""
ROOM = "room"

IN_HEAP = 0
"""Stands for the heap among the numbers of data files that are not on disk."""


T = TypeVar("T")

_FULL = (errno.ENOSPC, errno.EDQUOT)


def failed(what: str, error: OSError) -> StagingError:
    """An error of the operating system as one of ours, with its errno."""
    return StagingError(f"{what}: {error.strerror or error}", error.errno or errno.EIO)


class Ledger:
    """One staged directory's state on disk. All but `commit` and `sync_data` is called with `lock` held."""

    def __init__(self, path: Path, tree: Tree, journal: Journal | None) -> None:
        """`journal` is None for a directory that may only be looked at."""
        self.path = path
        self._data = f"{path / DATA}/"
        self.heap = Heap(self._data + HEAP)
        self.tree = tree
        self.lock = threading.RLock()
        self.room = Room(path / ROOM)
        self.refusal: tuple[str, int] | None = None
        """Why nothing may be changed, with the errno; None if it may."""
        self.on_append: Callable[[], None] = lambda: None
        self.unsynced = set() if tree.clean else {max(number, IN_HEAP) for number in self.data_numbers()}
        """Data files with bytes that may not be on disk; IN_HEAP for the heap."""
        self.new_files = False
        """True if the directory of the data files has names that may not be on disk."""
        self.settled = tree.next_data
        """Data files below this number were on disk when the tree was last clean."""
        self.doomed: list[int | Run] = []
        """Data files, and runs of the heap, that are needed no more."""
        self._doomed_bytes = 0
        self._puts_off = False
        self._journal = journal
        self._dirt_durable = False
        """True if the journal on disk says that the tree is not clean."""
        self._compact_at = 0
        self._plan_compaction()

    @property
    def journal(self) -> Journal:
        self.check()
        assert self._journal is not None
        return self._journal

    def check(self) -> None:
        """StagingError where nothing may be changed."""
        if self.refusal is not None:
            raise StagingError(*self.refusal)

    # --- records ------------------------------------------------------------------------------------------------

    def record(self, *fields: Any, relief: bool = False) -> None:
        """Write a record and do what it says, or neither. With `relief` the room set aside is used on a full disk.
        StagingError."""
        if self.journal.untrusted:
            self.compact(must=True)  # so that one error of the disk is not the end of a seal, or of all removing
        record = list(fields)
        payload = pack(record)
        try:
            self._append(payload, relief)
        except OSError as error:
            raise failed(f"the journal {self.journal.path}", error) from error
        self.tree.do(record)
        if self.journal.records >= self._compact_at and not self._puts_off:
            self.compact()
        self.on_append()

    def _append(self, payload: bytes, relief: bool) -> None:
        try:
            self.journal.append(payload)
        except OSError as error:
            if error.errno not in _FULL or not relief or not self.room.size:
                raise
            self.room.shrink(max(0, self.room.size - config.STAGED_SPARE))
            self.journal.append(payload)

    def waits(self, number: int) -> bool:
        """Whether `before_change` would wait for the disk; of a data file, not of a run of the heap."""
        return number < self.settled and not self._dirt_durable

    def before_change(self, number: int) -> None:
        """To be called before bytes of a data file change in place: what is on disk then no longer says that all of
        it is as it should be. StagingError."""
        if self.waits(number):
            if self.tree.clean:
                self.record("dirty")
            self._sync_journal()
            self._dirt_durable = True

    # --- durability ---------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make all records so far durable, and remove the data of removed files. StagingError."""
        with self.lock:
            journal = self.journal
            if journal.untrusted:
                self.compact(must=True)
            try:
                if self.new_files:
                    self.sync_names()
                if not self.unsynced and not self.tree.clean:
                    self.record("clean", relief=True)
                    self.settled, self._dirt_durable = self.tree.next_data, False
                doomed, self.doomed, self._doomed_bytes = self.doomed, [], 0
                descriptor = os.dup(journal.descriptor())
            except OSError as error:
                raise failed(f"the disk of {self.path}", error) from error
        try:
            os.fsync(descriptor)  # not under the lock: others need not wait for the disk
        except OSError as error:
            with self.lock:
                journal.untrusted = True
                self.doomed += doomed
            raise failed(f"the disk of {self.path}", error) from error
        finally:
            os.close(descriptor)
        self._unlink(doomed)

    def _sync_journal(self) -> None:
        if self.journal.untrusted:
            self.compact(must=True)  # durable by itself; the fsync of a file that failed before would seem to succeed
            return
        try:
            os.fsync(self.journal.descriptor())
        except OSError as error:
            self.journal.untrusted = True
            raise failed(f"the disk of {self.path}", error) from error

    def doom(self, number: int, size: int) -> None:
        """A data file is needed no more, by the records so far."""
        if self.refusal is not None:
            return
        if number == IN_HEAP:
            return
        if is_in_heap(number):
            self.doomed.append(self.heap.drop(number))
        else:
            self.unsynced.discard(number)
            self.doomed.append(number)
        self._doomed_bytes += size
        if len(self.doomed) > config.DOOMED_FILES or self._doomed_bytes > config.DOOMED_BYTES:
            self.reap()

    @contextlib.contextmanager
    def putting_off(self) -> Iterator[None]:
        """Nothing inside this block waits for the disk: space is freed by the next `commit`, and the journal made
        shorter at a later record."""
        self._puts_off = True
        try:
            yield
        finally:
            self._puts_off = False

    def reap(self) -> bool:
        """Free the space of removed files now; True if there was any. A failure is left for the next time."""
        if not self.doomed or self._puts_off:
            return False
        try:
            self._sync_journal()
        except StagingError as error:
            log.warning("removed files keep their space for now: %s", error)
            return False
        doomed, self.doomed, self._doomed_bytes = self.doomed, [], 0
        self._unlink(doomed)
        return True

    def _unlink(self, numbers: Iterable[int | Run]) -> None:
        runs = []
        for number in numbers:
            if isinstance(number, tuple):
                runs.append(number)
                continue
            with contextlib.suppress(OSError):  # found as nobody's, and removed, at the next recovery
                os.unlink(self.data_path(number))
        if runs:
            with self.lock, contextlib.suppress(OSError):
                if self.refusal is None:
                    self.heap.free(runs)

    # --- data files ---------------------------------------------------------------------------------------------

    def data_path(self, number: int) -> str:
        return f"{self._data}{number}"  # a Path costs more than opening the file

    def where(self, number: int) -> tuple[str, int | None]:
        """The file on disk that has the bytes of a data file, and where they begin if they are a part of it."""
        if is_in_heap(number):
            return self.heap.path, offset_of(number)
        return self.data_path(number) if number else os.devnull, None

    def data_numbers(self) -> set[int]:
        """Data files, and runs of the heap, that entries have."""
        return {node.data for node in self.tree.nodes.values() if node.data}

    def uses_heap(self) -> bool:
        """Whether a new file is to have its bytes in the heap."""
        if self.tree.next_id <= config.HEAP_FROM or self.tree.form != FORMAT:
            return False
        try:
            if not self.heap.is_known:
                self.new_files = True
            return self.heap.usable()
        except OSError:
            return False  # a file of its own, then, will say what is wrong

    def new_data(self) -> tuple[int, int]:
        """(number, descriptor) of a new, empty data file. StagingError."""
        self.check()
        number = self.tree.next_data
        path, flags = self.data_path(number), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = self.retried(lambda: os.open(path, flags, 0o600))
        self.tree.next_data += 1
        self.new_files = True
        self.unsynced.add(number)
        return number, descriptor

    def unmake(self, number: int, descriptor: int) -> None:
        """Take back a data file that no record speaks of."""
        os.close(descriptor)
        self.unsynced.discard(number)
        self._unlink([number])

    def sync_data(self, number: int) -> None:
        """Make the bytes of one data file durable, or of the heap. OSError."""
        if number == IN_HEAP:
            with self.lock:
                descriptor, end = os.dup(self.heap.descriptor()), self.heap.closed()
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            with self.lock:
                self.heap.reached(end)
            return
        descriptor = os.open(self.data_path(number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_names(self) -> None:
        """Make the names of all data files durable. OSError."""
        sync_directory(self.path / DATA)
        self.new_files = False

    def retried(self, action: Callable[[], T]) -> T:
        """Do what may fail on a full disk, once more if removed files still had space. StagingError."""
        try:
            try:
                return action()
            except OSError as error:
                if error.errno not in _FULL or not self.reap():
                    raise
                return action()
        except StagingError:
            raise
        except OSError as error:
            raise failed(f"the disk of {self.path}", error) from error

    # --- compaction ---------------------------------------------------------------------------------------------

    def _plan_compaction(self) -> None:
        described = len(self.tree.nodes) + len(self.tree.hidden)
        written = 0 if self._journal is None else self._journal.records
        self._compact_at = max(config.JOURNAL_RATIO * described + config.JOURNAL_SLACK, written + config.JOURNAL_SLACK)

    def compact(self, must: bool = False) -> None:
        """Write the journal anew, as short as it can be. Put off while a seal runs, and where the disk does not allow
        it; with `must` done even then, or StagingError."""
        if self.tree.seal is not None and not must:
            return
        try:
            self.journal.rewrite(self.tree.records())
        except OSError as error:
            if must:
                raise failed(f"the journal {self.journal.path}", error) from error
            log.warning("the journal %s stays long: %s", self.journal.path, error)
        else:
            self.tree.form = FORMAT
        self._plan_compaction()

    def close(self) -> None:
        """Give descriptors back."""
        self.heap.close()
        if self._journal is not None:
            self._journal.close()


def fill(descriptor: int, pieces: Iterable[bytes | memoryview]) -> int:
    """Write pieces one after the other from a file's beginning; the number of bytes. OSError."""
    at = 0
    for piece in pieces:
        view = memoryview(piece).cast("B")
        while view:
            written = os.pwrite(descriptor, view, at)
            at += written
            view = view[written:]
    return at
