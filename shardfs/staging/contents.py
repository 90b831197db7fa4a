"""The bytes of staged files: data files under numbers, open files, room for the shard they will become.

A data file that a running seal reads is never changed: the first change copies it. Bytes go to the file system when
they are written, so an acknowledged write survives the death of this process. Knows nothing of names.

Small files of a directory that has many are in a heap, and only ever grow there, at their end: any other change gives
them a data file of their own first. What is opened for writing while it is empty comes to be there by its first write.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator

from shardfs import config
from shardfs.errors import StagingError
from shardfs.staging.clock import now_ns
from shardfs.staging.heap import NOTHING, is_in_heap, offset_of
from shardfs.staging.ledger import IN_HEAP, Ledger, failed, fill
from shardfs.staging.opened import Open, StagedFile
from shardfs.staging.reserve import Reserve
from shardfs.staging.room import allocate
from shardfs.staging.tree import Node


class Contents:
    """All data files of one staged directory. Thread-safe by the ledger's lock."""

    def __init__(self, ledger: Ledger, for_shard: bool) -> None:
        """`for_shard`: keep room on this disk for the shard too."""
        self._ledger = ledger
        self._lock = ledger.lock
        self.reserve = Reserve(ledger, for_shard)
        self._open: dict[int, Open] = {}
        self._without: set[Open] = set()
        """Open files without a data file of their own, those that are in the directory no more too."""
        self._late: set[int] = set()
        """Runs of the heap that are needed by nobody but who has them open."""
        self.pinned: frozenset[int] = frozenset()
        """Data files that a running seal reads."""
        self._refused: set[int] = set()
        """Data files whose bytes the disk once failed to take."""

    @property
    def writers(self) -> int:
        """Openings for writing of files that are in the directory (not of removed ones). Waits for nobody: the event
        loop asks, and whoever has the lock may be copying."""
        return sum(opened.writers for opened in list(self._open.values()) if opened.linked)

    def has_writers(self, node: Node) -> bool:
        opened = self._open.get(node.id)
        return opened is not None and opened.writers > 0

    def removed(self, number: int) -> Node | None:
        """The entry of that number if it is no longer in the directory, but open."""
        opened = self._open.get(number)
        return None if opened is None or opened.linked else opened.node

    # --- sealing ------------------------------------------------------------------------------------------------

    def unpin(self) -> None:
        """No seal reads data files any more."""
        used = {opened.number for opened in self._open.values()} | self._ledger.data_numbers()
        pinned, self.pinned = self.pinned, frozenset()
        held = {opened.number for opened in self._without}
        for number in sorted(pinned - used):
            self._doom(number, 0, held)

    def reattach(self, before: set[int]) -> None:
        """The tree has entries anew, of the same numbers; `before` are the data files they had."""
        nodes = self._ledger.tree.nodes
        for number, opened in list(self._open.items()):
            node = nodes.get(number)
            if node is not None and node.data == opened.number:
                opened.node, node.touched = node, True
                continue
            opened.linked = False
            if node is not None:  # its bytes are the stored shard's now: who opens it next gets other ones
                del self._open[number]
        self.pinned |= before
        self.unpin()
        self.reserve.count()

    # --- opening ------------------------------------------------------------------------------------------------

    def open(self, node: Node, writing: bool, descriptor: int = -1) -> StagedFile:
        """Open a file that has its bytes here; `descriptor` where there is one already. StagingError."""
        opened = self._open.get(node.id)
        if opened is None:
            number = node.data
            assert number is not None
            if descriptor < 0 and number > NOTHING:
                # a damaged or foreign area is only looked at
                flags = os.O_RDWR if self._ledger.refusal is None else os.O_RDONLY
                path = self._ledger.data_path(number)
                descriptor = self._ledger.retried(lambda: os.open(path, flags | os.O_CLOEXEC))
            opened = self._open[node.id] = Open(node, number, descriptor)
            if number <= NOTHING:
                self._without.add(opened)
        opened.handles += 1
        opened.writers += writing
        return StagedFile(self, opened, writing)

    def release(self, opened: Open, writing: bool) -> None:
        """One opening less; the last one of a removed file removes its bytes."""
        with self._lock:
            opened.handles -= 1
            opened.writers -= writing
            if opened.handles:
                return
            if opened.descriptor >= 0:
                os.close(opened.descriptor)
            if self._open.get(opened.node.id) is opened:
                del self._open[opened.node.id]
            self._without.discard(opened)
            if opened.number in self._late or (not opened.linked and opened.number not in self.pinned):
                self._doom(opened.number, opened.node.size)

    def _doom(self, number: int, size: int, held: set[int] | None = None) -> None:
        """A data file is needed no more by the directory. A run of the heap, unlike a file, goes from under who has it
        open: it stays until nobody has. `held` are the runs that somebody has open, if that was found out."""
        if is_in_heap(number):
            if number in (held if held is not None else {opened.number for opened in self._without}):
                self._late.add(number)
                return
            self._late.discard(number)
            if number not in self._ledger.heap.sizes:
                return  # that was said before
        self._ledger.doom(number, self._ledger.heap.sizes.get(number, size))

    def close(self) -> None:
        """The directory is of no more use. Files that are open can be read, and are closed by whoever opened them: a
        descriptor closed under a reader could by then be another file's."""
        for opened in self._open.values():
            opened.linked = False
        for opened in list(self._without):
            # what is in no directory may be written to still, by who has it open
            with contextlib.suppress(OSError):  # else that fails
                if opened.removed and opened.writers:
                    self._set_apart(opened)
                elif is_in_heap(opened.number) and opened.descriptor < 0:
                    opened.descriptor = os.dup(self._ledger.heap.descriptor())

    def _set_apart(self, opened: Open) -> None:
        """Give a file without a name its bytes in a file without a name. OSError."""
        descriptor = os.open(self._ledger.path, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fill(descriptor, self._pieces(opened))
        except BaseException:
            os.close(descriptor)
            raise
        self._has_own(opened, self._ledger.tree.next_data, descriptor)
        self._ledger.tree.next_data += 1

    def _has_own(self, opened: Open, number: int, descriptor: int) -> None:
        """An open file has a data file of its own from now on, under the descriptor it had, if it had one."""
        if opened.descriptor < 0:
            opened.descriptor = descriptor
        else:
            os.dup2(descriptor, opened.descriptor, inheritable=False)
            os.close(descriptor)
        opened.number = number
        self._without.discard(opened)

    # --- the heap ---------------------------------------------------------------------------------------------------

    def read_heap(self, opened: Open, size: int, offset: int, flags: int = 0) -> bytes | None:
        """Part of a file without a data file; None if it has one by now. StagingError."""
        with self._lock:
            number, heap = opened.number, self._ledger.heap
            size = max(0, min(size, opened.node.size - offset))
            if number > NOTHING:
                return None
            if not size or number == NOTHING:
                return b""
            try:
                if opened.descriptor < 0 and not heap.is_open:
                    self._ledger.on_append()  # the same count of descriptors
                descriptor = opened.descriptor if opened.descriptor >= 0 else heap.descriptor()
                data, at = bytearray(size), offset_of(number) + offset
                count = os.preadv(descriptor, [data], at, flags)
                while 0 < count < size and (more := os.pread(descriptor, size - count, at + count)):
                    data[count : count + len(more)] = more
                    count += len(more)
            except OSError as error:
                raise failed("reading a staged file", error) from error
            return bytes(data[:count])

    def read_heap_now(self, opened: Open, size: int, offset: int) -> bytes | None:
        """The same, if that needs no waiting; None if it does."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            return self.read_heap(opened, size, offset, os.RWF_NOWAIT)
        except StagingError:
            return None  # most often EAGAIN; what else it is, `pread` says
        finally:
            self._lock.release()

    def _fits(self, opened: Open, offset: int, size: int) -> bool:
        """Whether a write goes into the heap: to where the file ends."""
        number, end = opened.number, opened.node.size
        if number > NOTHING or offset != end or end + size > config.HEAP_FILE or not opened.linked:
            return False
        if number == NOTHING:
            return not end and self._ledger.heap.is_known
        return number not in self.pinned and self._ledger.heap.holds(number)

    def _append(self, opened: Open, data: bytes | memoryview) -> int:
        node, heap, size = opened.node, self._ledger.heap, len(data)
        number = opened.number or heap.place()
        before = node.size

        def put() -> int:
            heap.put(number, before, data)
            return 0

        try:
            self._ledger.retried(put)
            self._ledger.record("content", node.id, number, before + size, now_ns())
        except StagingError:
            with contextlib.suppress(OSError):  # it is written over, or found to be nobody's
                heap.unput(number, before)
            raise
        heap.keep(number, before + size)
        opened.number = number
        self.reserve.data_bytes += size
        self._ledger.unsynced.add(IN_HEAP)
        return size

    def refresh(self, node: Node) -> None:
        """Take over the mtime that writing has given a data file."""
        if node.touched and node.data is not None and node.data > NOTHING:
            node.touched = False
            with contextlib.suppress(FileNotFoundError):  # of a removed file, nobody asks
                node.mtime_ns = os.stat(self._ledger.data_path(node.data)).st_mtime_ns

    def set_mtime(self, node: Node) -> None:
        """Have the data file say what the entry says: after a crash, it is asked."""
        if node.data is not None and node.data > NOTHING:
            try:
                os.utime(self._ledger.data_path(node.data), ns=(node.atime_ns, node.mtime_ns))
            except (OSError, OverflowError) as error:
                raise StagingError(f"setting a time: {error}", errno.EINVAL) from error

    # --- changing -----------------------------------------------------------------------------------------------

    def waits(self, opened: Open, offset: int, size: int) -> bool:
        """Whether a write must wait for the disk first: to copy what a seal reads, or what is in the heap, or to say
        durably that not all is on disk any more."""
        number = opened.number
        if number <= NOTHING:
            return is_in_heap(number) and not self._fits(opened, offset, size)
        return number in self.pinned or self._ledger.waits(number)

    def _check(self, opened: Open) -> None:
        """Whether its bytes may be changed: those of a removed file may as long as it is open, also when all of the
        directory has been stored or removed since."""
        if not opened.removed:
            self._ledger.check()

    def _before_change(self, opened: Open) -> None:
        if opened.number <= NOTHING or opened.number in self.pinned:
            self._copy(opened)
        elif not opened.removed or self._ledger.refusal is None:
            self._ledger.before_change(opened.number)

    def _pieces(self, opened: Open) -> Iterator[bytes]:
        for at in range(0, opened.node.size, config.STAGED_COPY):
            if opened.number > NOTHING:
                yield os.pread(opened.descriptor, config.STAGED_COPY, at)
            else:
                yield self.read_heap(opened, config.STAGED_COPY, at) or b""

    def _copy(self, opened: Open, durable: bool = False) -> None:
        """Give a file that a seal reads, or that is in the heap, a data file of its own, under the same descriptor."""
        node, before = opened.node, opened.number
        number, descriptor = self._ledger.new_data()
        # bytes that were promised to be durable must not come to lie in a file that is not
        durable = durable or before > NOTHING or (before < NOTHING and self._ledger.heap.is_synced(before))
        try:
            fill(descriptor, self._pieces(opened))
            if before <= NOTHING:
                with contextlib.suppress(OSError, OverflowError):  # a time that this file system does not have
                    os.utime(descriptor, ns=(node.atime_ns, node.mtime_ns))
            if durable:
                os.fsync(descriptor)
                self._ledger.sync_names()
            if opened.linked:
                self._ledger.record("content", node.id, number, node.size)
                node.touched = True
        except StagingError:
            self._ledger.unmake(number, descriptor)
            raise
        except OSError as error:
            self._ledger.unmake(number, descriptor)
            raise failed(f"the disk of {self._ledger.path}", error) from error
        self._has_own(opened, number, descriptor)
        if is_in_heap(before) and before not in self.pinned:
            self._doom(before, 0)

    def write(self, opened: Open, data: bytes | memoryview, offset: int) -> int:
        with self._lock:
            self._check(opened)
            node = opened.node
            size = len(data)
            if not size:
                return 0
            growth = max(0, offset + size - node.size)
            if growth and opened.linked:
                self.reserve.grow(growth)
            if self._fits(opened, offset, size):
                return self._append(opened, data)
            self._before_change(opened)
            descriptor, written = opened.descriptor, 0

            def put() -> int:
                nonlocal written
                while written < size:
                    written += os.pwrite(descriptor, data[written:] if written else data, offset + written)
                return 0

            try:
                self._ledger.retried(put)
            except StagingError:
                if growth and written:
                    os.ftruncate(descriptor, node.size)
                raise
            self._grown(opened, growth)
            return size

    def _grown(self, opened: Open, growth: int) -> None:
        opened.node.size += growth
        opened.node.touched = True
        if opened.linked:
            self.reserve.data_bytes += growth
        self._ledger.unsynced.add(opened.number)

    def resize(self, opened: Open, size: int) -> None:
        with self._lock:
            self._check(opened)
            growth = size - opened.node.size
            if growth > 0 and opened.linked:
                self.reserve.grow(growth)
            if not size and opened.linked and (opened.number in self.pinned or is_in_heap(opened.number)):
                self.empty(opened.node)
                return
            self._before_change(opened)
            descriptor = opened.descriptor

            def cut() -> int:
                os.ftruncate(descriptor, size)
                return 0

            self._ledger.retried(cut)
            self._grown(opened, growth)
            if opened.linked:
                self.reserve.fit()

    def allocate(self, opened: Open, offset: int, length: int) -> None:
        with self._lock:
            self._check(opened)
            growth = max(0, offset + length - opened.node.size)
            if growth and opened.linked:
                self.reserve.grow(growth)
            self._before_change(opened)
            descriptor = opened.descriptor

            def make() -> int:
                if not allocate(descriptor, offset, length) and growth:
                    os.ftruncate(descriptor, offset + length)
                return 0

            try:
                self._ledger.retried(make)
            except StagingError:
                os.ftruncate(descriptor, opened.node.size)
                raise
            self._grown(opened, growth)

    def empty(self, node: Node) -> None:
        """Give a file that has its bytes elsewhere (in the stored shard, in a seal that runs) a new, empty data file.
        StagingError."""
        opened = self._open.get(node.id)
        number, descriptor = self._ledger.new_data()
        before, data = (0, NOTHING) if node.data is None else (node.size, node.data)
        try:
            self._ledger.record("content", node.id, number, 0)
        except StagingError:
            self._ledger.unmake(number, descriptor)
            raise
        self.reserve.data_bytes -= before
        node.touched = True
        if opened is not None:
            self._has_own(opened, number, descriptor)
        else:
            os.close(descriptor)
        if is_in_heap(data) and data not in self.pinned:
            self._doom(data, 0)

    def fill(self, node: Node, pieces: Iterable[bytes | memoryview]) -> None:
        """Give a file of the stored shard its bytes here, durably, before a record says so. Not under the lock: it may
        take long. StagingError, EIO if they are not as many as they should be."""
        with self._lock:
            self._ledger.check()
            self.reserve.grow(node.size)
            number, descriptor = self._ledger.new_data()
        size = node.size
        try:
            length = fill(descriptor, pieces)
            if length != size:
                raise StagingError(f"a stored file gave {length} bytes in place of {size}", errno.EIO)
            os.utime(descriptor, ns=(node.atime_ns, node.mtime_ns))
            os.fsync(descriptor)
            with self._lock:
                self._ledger.sync_names()
                current = self._ledger.tree.nodes.get(node.id)
                if current is None or current.base is None:  # it is gone, or another was faster
                    self._ledger.unmake(number, descriptor)
                    return
                self._ledger.record("content", node.id, number, size)
                self._ledger.unsynced.discard(number)
                self.reserve.data_bytes += size
                os.close(descriptor)
        except BaseException as error:
            with self._lock:
                self._ledger.unmake(number, descriptor)
            if isinstance(error, OSError) and not isinstance(error, StagingError):
                raise failed(f"the disk of {self._ledger.path}", error) from error
            raise

    def dropped(self, node: Node) -> None:
        """A file is no longer in the directory; its bytes stay as long as it is open, or a seal reads them."""
        number = node.data
        if number is None:
            return
        self.reserve.data_bytes -= node.size
        opened = self._open.get(node.id)
        if opened is not None:
            opened.linked, opened.removed = False, True
        elif number not in self.pinned:
            self._doom(number, node.size)
        self.reserve.fit()

    # --- durability ---------------------------------------------------------------------------------------------

    def _renew(self, opened: Open) -> None:
        """Write the bytes of a file anew that the disk has failed to take: the kernel tells of that once, and another
        fsync would succeed without them. Memory has them still, or reading them fails, too."""
        number = opened.number
        self._copy(opened, durable=True)
        self._refused.discard(number)
        if number > NOTHING and number not in self.pinned:
            self._ledger.doom(number, 0)

    def _is_refused(self, number: int | None) -> bool:
        return number in self._refused or (number is not None and is_in_heap(number) and IN_HEAP in self._refused)

    def _renew_all(self) -> None:
        self._refused &= self._ledger.data_numbers() | {opened.number for opened in self._open.values()} | {IN_HEAP}
        for node in [node for node in self._ledger.tree.nodes.values() if self._is_refused(node.data)]:
            file = self.open(node, False)
            try:
                self._renew(self._open[node.id])
            finally:
                file.close()
        self._refused.discard(IN_HEAP)

    def fsync(self, opened: Open) -> None:
        with self._lock:
            self._check(opened)
            if self._is_refused(opened.number):
                self._renew(opened)
            number, heap = max(opened.number, IN_HEAP), self._ledger.heap
            descriptor = -1
            if opened.number != NOTHING:
                own = opened.descriptor if opened.descriptor >= 0 else heap.descriptor()
                descriptor = os.dup(own)
            end = heap.closed() if opened.number < NOTHING else 0
            waiting = number in self._ledger.unsynced and opened.number != NOTHING
            # taken out before: a write that comes meanwhile puts it in again
            if waiting:
                self._ledger.unsynced.discard(number)
        try:
            if descriptor >= 0:
                os.fsync(descriptor)
        except OSError as error:
            with self._lock:
                self._refused.add(number)
                if waiting:
                    self._ledger.unsynced.add(number)
            raise failed(f"the disk of {self._ledger.path}", error) from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if number == IN_HEAP and descriptor >= 0:
            with self._lock:
                heap.reached(end)
        if not opened.removed or self._ledger.refusal is None:
            self._ledger.commit()

    def sync(self) -> None:
        """Make all bytes and all records durable. StagingError."""
        with self._lock:
            self._ledger.check()
            if self._refused:
                self._renew_all()
            waiting, self._ledger.unsynced = self._ledger.unsynced, set()
        done = set()
        number = 0
        try:
            for number in sorted(waiting):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    self._ledger.sync_data(number)
                done.add(number)
        except OSError as error:
            with self._lock:
                self._refused.add(number)
            raise failed(f"the disk of {self._ledger.path}", error) from error
        finally:
            with self._lock:
                self._ledger.unsynced |= waiting - done
        self._ledger.commit()
