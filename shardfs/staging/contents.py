"""The bytes of staged files: data files under numbers, open files, room for the shard they will become.

A data file that a running seal reads is never changed: the first change copies it. Bytes go to the file system when
they are written, so an acknowledged write survives the death of this process. Knows nothing of names.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable

from shardfs import config
from shardfs.errors import StagingError
from shardfs.staging.ledger import Ledger, failed, fill
from shardfs.staging.reserve import Reserve
from shardfs.staging.room import allocate
from shardfs.staging.tree import Node


class _Open:
    """A file that is open, however many have it open."""

    __slots__ = ("descriptor", "handles", "linked", "node", "number", "removed", "writers")

    def __init__(self, node: Node, number: int, descriptor: int) -> None:
        self.node = node
        self.number = number
        self.descriptor = descriptor
        self.handles = 0
        self.writers = 0
        self.linked = True
        self.removed = False
        """True once it was removed from the directory, while that was in use."""


class StagedFile:
    """One opening of a staged file. Its methods raise StagingError, with the disk's errno; EBADF once closed."""

    def __init__(self, contents: Contents, opened: _Open, writing: bool) -> None:
        self._contents = contents
        self._opened: _Open | None = opened
        self.writing = writing
        self.id = opened.node.id

    def _file(self, change: bool = False) -> _Open:
        if self._opened is None or (change and not self.writing):
            raise StagingError("not open for this", errno.EBADF)
        return self._opened

    def pread(self, size: int, offset: int) -> bytes:
        """At most `size` bytes from `offset` on; fewer only at the end of the file."""
        opened = self._file()
        try:
            data = os.pread(opened.descriptor, size, offset)
            while len(data) < size and (more := os.pread(opened.descriptor, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise failed("reading a staged file", error) from error
        return data

    def pread_now(self, size: int, offset: int) -> bytes | None:
        """The same, if that needs no waiting for the disk; None if it does."""
        descriptor = self._file().descriptor
        try:
            end = os.fstat(descriptor).st_size
            data = bytearray(max(0, min(size, end - offset)))
            count = os.preadv(descriptor, [data], offset, os.RWF_NOWAIT) if data else 0
        except OSError:
            return None  # most often EAGAIN; what else it is, `pread` says
        return bytes(data) if count == len(data) else None

    def waits(self) -> bool:
        """Whether the next change of its bytes must wait for the disk first."""
        return self._contents.waits(self._file().number)

    def status(self) -> os.stat_result:
        """What the disk says of it."""
        return os.fstat(self._file().descriptor)

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write all of `data` at `offset`, in bytes. ENOSPC: the file is as long as it was."""
        return self._contents.write(self._file(change=True), data, offset)

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long. ENOSPC, EFBIG."""
        self._contents.resize(self._file(change=True), size)

    def fallocate(self, offset: int, length: int) -> None:
        """Make room on disk for a run of the file, which grows to hold it. ENOSPC: the file is as long as it was."""
        self._contents.allocate(self._file(change=True), offset, length)

    def fsync(self) -> None:
        """Make the file's bytes, its name, and all that was done in its directory before, durable."""
        self._contents.fsync(self._file())

    def close(self) -> None:
        """Give it back; what was written is kept. A second time does nothing."""
        if self._opened is not None:
            opened, self._opened = self._opened, None
            self._contents.release(opened, self.writing)

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Contents:
    """All data files of one staged directory. Thread-safe by the ledger's lock."""

    def __init__(self, ledger: Ledger, for_shard: bool) -> None:
        """`for_shard`: keep room on this disk for the shard too."""
        self._ledger = ledger
        self._lock = ledger.lock
        self.reserve = Reserve(ledger, for_shard)
        self._open: dict[int, _Open] = {}
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
        for number in sorted(pinned - used):
            self._ledger.doom(number, 0)

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
            if descriptor < 0:
                # a damaged or foreign area is only looked at
                flags = os.O_RDWR if self._ledger.refusal is None else os.O_RDONLY
                path = self._ledger.data_path(number)
                descriptor = self._ledger.retried(lambda: os.open(path, flags | os.O_CLOEXEC))
            opened = self._open[node.id] = _Open(node, number, descriptor)
        opened.handles += 1
        opened.writers += writing
        return StagedFile(self, opened, writing)

    def release(self, opened: _Open, writing: bool) -> None:
        """One opening less; the last one of a removed file removes its bytes."""
        with self._lock:
            opened.handles -= 1
            opened.writers -= writing
            if opened.handles:
                return
            os.close(opened.descriptor)
            if self._open.get(opened.node.id) is opened:
                del self._open[opened.node.id]
            if not opened.linked and opened.number not in self.pinned:
                self._ledger.doom(opened.number, opened.node.size)

    def close(self) -> None:
        """The directory is of no more use. Files that are open can be read, and are closed by whoever opened them: a
        descriptor closed under a reader could by then be another file's."""
        for opened in self._open.values():
            opened.linked = False

    def refresh(self, node: Node) -> None:
        """Take over the mtime that writing has given a data file."""
        if node.touched and node.data is not None:
            node.touched = False
            with contextlib.suppress(FileNotFoundError):  # of a removed file, nobody asks
                node.mtime_ns = os.stat(self._ledger.data_path(node.data)).st_mtime_ns

    def set_mtime(self, node: Node) -> None:
        """Have the data file say what the entry says: after a crash, it is asked."""
        if node.data is not None:
            try:
                os.utime(self._ledger.data_path(node.data), ns=(node.atime_ns, node.mtime_ns))
            except (OSError, OverflowError) as error:
                raise StagingError(f"setting a time: {error}", errno.EINVAL) from error

    # --- changing -----------------------------------------------------------------------------------------------

    def waits(self, number: int) -> bool:
        """Whether a change of a data file in place must wait for the disk first: to copy what a seal reads, or to say
        durably that not all is on disk any more."""
        return number in self.pinned or self._ledger.waits(number)

    def _check(self, opened: _Open) -> None:
        """Whether its bytes may be changed: those of a removed file may as long as it is open, also when all of the
        directory has been stored or removed since."""
        if not opened.removed:
            self._ledger.check()

    def _before_change(self, opened: _Open) -> None:
        if opened.number in self.pinned:
            self._copy(opened)
        elif not opened.removed or self._ledger.refusal is None:
            self._ledger.before_change(opened.number)

    def _copy(self, opened: _Open) -> None:
        """Give a file that a seal reads a data file of its own, under the same descriptor."""
        node = opened.node
        number, descriptor = self._ledger.new_data()
        try:
            pieces = range(0, node.size, config.STAGED_COPY)
            fill(descriptor, (os.pread(opened.descriptor, config.STAGED_COPY, at) for at in pieces))
            # bytes that were promised to be durable must not come to lie in a file that is not
            os.fsync(descriptor)
            self._ledger.sync_names()
            if opened.linked:
                self._ledger.record("content", node.id, number, node.size)
        except OSError as error:
            self._ledger.unmake(number, descriptor)
            raise failed(f"the disk of {self._ledger.path}", error) from error
        os.dup2(descriptor, opened.descriptor, inheritable=False)
        os.close(descriptor)
        opened.number = number

    def write(self, opened: _Open, data: bytes | memoryview, offset: int) -> int:
        with self._lock:
            self._check(opened)
            node = opened.node
            size = len(data)
            growth = max(0, offset + size - node.size)
            if growth and opened.linked:
                self.reserve.grow(growth)
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

    def _grown(self, opened: _Open, growth: int) -> None:
        opened.node.size += growth
        opened.node.touched = True
        if opened.linked:
            self.reserve.data_bytes += growth
        self._ledger.unsynced.add(opened.number)

    def resize(self, opened: _Open, size: int) -> None:
        with self._lock:
            self._check(opened)
            growth = size - opened.node.size
            if growth > 0 and opened.linked:
                self.reserve.grow(growth)
            if not size and opened.linked and opened.number in self.pinned:
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

    def allocate(self, opened: _Open, offset: int, length: int) -> None:
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
        before = node.size if node.data is not None else 0
        try:
            self._ledger.record("content", node.id, number, 0)
        except StagingError:
            self._ledger.unmake(number, descriptor)
            raise
        self.reserve.data_bytes -= before
        node.touched = True
        if opened is not None:
            os.dup2(descriptor, opened.descriptor, inheritable=False)
            opened.number = number
        os.close(descriptor)

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
            self._ledger.doom(number, node.size)
        self.reserve.fit()

    # --- durability ---------------------------------------------------------------------------------------------

    def _renew(self, opened: _Open) -> None:
        """Write the bytes of a file anew that the disk has failed to take: the kernel tells of that once, and another
        fsync would succeed without them. Memory has them still, or reading them fails, too."""
        number = opened.number
        self._copy(opened)
        self._refused.discard(number)
        if number not in self.pinned:
            self._ledger.doom(number, 0)

    def _renew_all(self) -> None:
        self._refused &= self._ledger.data_numbers() | {opened.number for opened in self._open.values()}
        for node in [node for node in self._ledger.tree.nodes.values() if node.data in self._refused]:
            file = self.open(node, False)
            try:
                self._renew(self._open[node.id])
            finally:
                file.close()

    def fsync(self, opened: _Open) -> None:
        with self._lock:
            self._check(opened)
            if opened.number in self._refused:
                self._renew(opened)
            number, descriptor = opened.number, os.dup(opened.descriptor)
            waiting = number in self._ledger.unsynced
            # taken out before: a write that comes meanwhile puts it in again
            self._ledger.unsynced.discard(number)
        try:
            os.fsync(descriptor)
        except OSError as error:
            with self._lock:
                self._refused.add(number)
                if waiting:
                    self._ledger.unsynced.add(number)
            raise failed(f"the disk of {self._ledger.path}", error) from error
        finally:
            os.close(descriptor)
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
