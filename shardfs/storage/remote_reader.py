"""One opened object of a store far away: what of it is fetched when, and in which parts. Knows nothing of requests."""

from __future__ import annotations

import errno
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from types import TracebackType
from typing import Any, Protocol, Self

from shardfs import config
from shardfs.errors import CameDamagedError, StaleShardError, StorageError
from shardfs.model import Version
from shardfs.storage.etags import Etags
from shardfs.storage.requests import Requests


class Fetching(Protocol):
    """What gives the bytes: a RemoteStorage."""

    requests: Requests
    etags: Etags

    @property
    def deadline(self) -> float: ...

    @property
    def gives_ranges(self) -> bool: ...

    def size_of(self, version: Version) -> int: ...

    def etag_of(self, version: Version) -> str: ...

    def fetch(self, name: str, version: Version, start: int, end: int, until: float | None = None) -> memoryview: ...

    def fits(self, name: str, version: Version, digest: str, *, apart: bool = False) -> bool: ...

    def in_background(self, call: Callable[[], memoryview]) -> Future[memoryview]: ...


class RemoteReader:
    """One version of an object. What is read from beginning to end is fetched in parts, REMOTE_AHEAD at once; ranges
    are fetched as they are asked for, out of a part where that is at hand."""

    def __init__(self, storage: Fetching, name: str, version: Version) -> None:
        self._storage = storage
        self._name = name
        self._version = version
        self.size = storage.size_of(version)
        self._position = 0
        self._part_size = config.REMOTE_PART if storage.gives_ranges else max(self.size, 1)
        self._digest: Any = None
        """MD5 of what was read so far, where all of it is read in order and in several parts."""
        if self._count > 1 and storage.etags.told(storage.etag_of(version)) is not None:
            self._digest = hashlib.md5(usedforsecurity=False)
        self._parts: dict[int, Future[memoryview]] = {}
        self._fetching = threading.Lock()
        """Held while all of a small object is fetched."""
        self._left = storage.deadline
        """Seconds that reading from beginning to end may still wait: what its reader does in between is his own."""
        self._lock = threading.Lock()

    def read(self, count: int) -> bytes:
        data = self._at(self._position, count)
        self._passed(data)
        return bytes(data)

    def readinto(self, view: memoryview) -> int:
        data = self._at(self._position, len(view))
        view[: len(data)] = data
        self._passed(data)
        return len(data)

    def _passed(self, data: memoryview) -> None:
        """StorageError at the end, where what was read is not what it should be."""
        self._position += len(data)
        self._leave_behind()
        if self._digest is None or not data:
            return
        self._digest.update(data)
        if self._position == self.size:
            digest, self._digest = self._digest.hexdigest(), None
            if not self._storage.fits(self._name, self._version, digest, apart=True):
                raise CameDamagedError(f"{self._name} came damaged: its MD5 is not the one that the store says")

    def _at(self, position: int, count: int) -> memoryview:
        """What there is of `count` bytes from `position` in one part; the parts behind it are on their way then."""
        if position >= self.size or count <= 0:
            return memoryview(b"")
        first = position // self._part_size
        requests = self._storage.requests
        begun = requests.now()
        until = min(requests.until(), begun + self._left)
        for number in range(first, min(first + config.REMOTE_AHEAD, self._count)):
            self._part(number, until)
        try:
            data = self._result(first, self._part(first, until), until)
        finally:
            self._left -= requests.now() - begun
        start = position - first * self._part_size
        return data[start : start + count]

    @property
    def _count(self) -> int:
        return -(-self.size // self._part_size)

    def _part(self, number: int, until: float) -> Future[memoryview]:
        if self._count == 1:
            return self._only(until)
        with self._lock:
            known = self._parts.get(number)
            if known is None:
                start = number * self._part_size
                end = min(start + self._part_size, self.size)
                fetch = self._storage.fetch
                name, version = self._name, self._version
                known = self._storage.in_background(lambda: fetch(name, version, start, end, until))
                self._parts[number] = known
            return known

    def _only(self, until: float) -> Future[memoryview]:
        """All of a small object, fetched by who asks: another thread would take as long as the request."""
        if not self._fetching.acquire(timeout=max(0.0, until - self._storage.requests.now())):
            raise StorageError(f"{self._name}: another who reads it waits for too long", errno.ETIMEDOUT)
        try:
            known = self._parts.get(0)
            if known is None:
                known = Future()
                known.set_result(self._storage.fetch(self._name, self._version, 0, self.size, until))
                with self._lock:
                    self._parts[0] = known
            return known
        finally:
            self._fetching.release()

    def _result(self, number: int, part: Future[memoryview], until: float) -> memoryview:
        try:
            # it has its own end, and this is for one that has not begun by then
            return part.result(max(0.0, until - self._storage.requests.now()) + 0.5)
        except NotYetError as error:
            with self._lock:
                self._parts.pop(number, None)
            raise StorageError(f"{self._name}: a part of it did not come in time", errno.ETIMEDOUT) from error
        except BaseException:
            with self._lock:
                self._parts.pop(number, None)  # or a later reader would be told an error of long ago
            raise

    def _leave_behind(self) -> None:
        first = self._position // self._part_size
        with self._lock:
            for number in [number for number in self._parts if number < first]:
                self._parts.pop(number).cancel()

    def read_at(self, offset: int, count: int) -> bytes:
        if offset + count > self.size:
            raise StaleShardError(f"{self._name} has {self.size} bytes, and {offset + count} were asked for")
        number = offset // self._part_size
        start = offset - number * self._part_size
        until = self._storage.requests.until()
        with self._lock:
            part = self._parts.get(number)
        if part is None and self._count == 1:
            part = self._part(0, until)  # small ones are fetched once, whatever is asked of them
        if part is not None and start + count <= self._part_size:
            return bytes(self._result(number, part, until)[start : start + count])
        return bytes(self._storage.fetch(self._name, self._version, offset, offset + count, until))

    def cached_at(self, offset: int, count: int) -> memoryview | None:
        return None

    def advise(self) -> None:
        """Nothing: fetching all of it would take the network from who waits for a part."""

    def tail(self, count: int) -> bytes:
        count = min(count, self.size)
        return self.read_at(self.size - count, count)

    def close(self) -> None:
        with self._lock:
            for part in self._parts.values():
                part.cancel()
            self._parts.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
