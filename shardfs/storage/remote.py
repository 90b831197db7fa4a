"""Objects in a store far away: names, bytes of one version, and writing under conditions. Knows nothing of what they
mean, nor of how a store is asked (`objects`).

A version is the object's size, time and ETag; every request for its bytes asks for just that, and what comes is
compared with it, as a short body, or another page with status 200, may be taken for the object. Large objects come in
parts, a few at once. Servers that answer a range with all of the object are noticed, and asked for all of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import secrets
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, BinaryIO

from shardfs import config
from shardfs.errors import StaleShardError, StorageError
from shardfs.model import Version
from shardfs.storage.alone import Alone
from shardfs.storage.base import Listed, Reader
from shardfs.storage.etags import Etags, md5
from shardfs.storage.known import Known
from shardfs.storage.objects import PROBE, Objects
from shardfs.storage.remote_reader import RemoteReader
from shardfs.storage.requests import (
    Progress,
    RangesIgnoredError,
    Requests,
    ShortBodyError,
    is_condition,
)
from shardfs.storage.threads import Threads
from shardfs.storage.versions import is_strong, parse_version, version_of
from shardfs.storage.written import Written


class RemoteStorage:
    """The objects of a store far away. `root` is its URL, without secrets."""

    def __init__(self, objects: Objects, root: str, requests: Requests, known: Known | None = None) -> None:
        """`known` is what was heard of the store before."""
        self.root = root
        self.objects = objects
        self.requests = requests
        self._known = known
        self.names: Callable[[RemoteStorage, tuple[str, ...]], list[Listed]] | None = None
        """What gives the listing of a server that has none."""
        self.etags = Etags()
        self._written = Written()
        self._alone = Alone()
        self._ranges = objects.ranges
        self.requests.probe = objects.probe
        self._pool = Threads(config.REMOTE_REQUESTS, "fetch")

    @property
    def store(self) -> Any:
        """obstore's own."""
        return self.objects.store  # type: ignore[attr-defined]

    @property
    def deadline(self) -> float:
        return self.requests.deadline

    def operation(self) -> AbstractContextManager[float]:
        """What this thread does inside has one deadline together. Gives its end, in time.monotonic()."""
        return self.requests.operation()

    def health(self) -> dict[str, Any]:
        """Whether the store answers, and what was asked of it, as plain values."""
        return self.requests.told()

    def size_of(self, version: Version) -> int:
        return parse_version(version)[0]

    def etag_of(self, version: Version) -> str:
        return parse_version(version)[2]

    def content_of(self, version: Version) -> str:
        size, mtime_ns, etag = parse_version(version)
        return f"{size:x}-{etag or mtime_ns}"

    # --- names --------------------------------------------------------------------------------------------------------

    def _listed(self, suffixes: tuple[str, ...], progress: Progress) -> list[Listed]:
        found: list[Listed] = []
        seen = 0
        for page in self.objects.pages():
            progress.at = self.requests.now()
            seen += len(page)
            if seen > config.REMOTE_LISTED:
                raise StorageError(f"{self.root} has more than {config.REMOTE_LISTED} objects", errno.EFBIG)
            found += (listed for listed in page if listed.name.endswith(suffixes))
        return found

    def _asked(self, suffixes: tuple[str, ...]) -> list[Listed]:
        if self.names is not None:
            return self.names(self, suffixes)
        progress = Progress()
        found = self.requests.run("listing", lambda: self._listed(suffixes, progress), progress=progress)
        return sorted(found, key=lambda listed: listed.name)

    def list(self, suffixes: tuple[str, ...]) -> list[Listed]:
        if self._known is None:
            return self._asked(suffixes)
        # all that there is, as who asks when it is silent may ask for other names
        return [one for one in self._known.listing(lambda: self._asked(("",))) if one.name.endswith(suffixes)]

    def changed(self) -> bool:
        return self.names is None  # nothing cheaper than a listing tells; how often that is asked for is up to who asks

    def stat(self, name: str) -> Listed:
        return self._head(name) if self._known is None else self._known.stat(name, lambda: self._head(name))

    def _head(self, name: str) -> Listed:
        return self.requests.run(f"looking at {name}", lambda: self.objects.head(name))

    # --- bytes --------------------------------------------------------------------------------------------------------

    def open(self, name: str, version: Version | None = None) -> Reader:
        """Without a version it is asked for; with one nothing is, until something is read."""
        if version is None:
            version = self.stat(name).version
        return self._written.open(name, version) or RemoteReader(self, name, version)

    def at_hand(self, name: str, version: Version) -> bool:
        return False

    def read(self, name: str, limit: int) -> bytes:
        return (
            self._small(name, limit)
            if self._known is None
            else self._known.read(name, lambda: self._small(name, limit))
        )

    def _small(self, name: str, limit: int) -> bytes:
        with self.requests.operation():
            for attempt in range(config.REMOTE_RETRIES):
                listed = self.stat(name)
                if listed.size > limit:
                    raise StorageError(f"{self.root}/{name} has {listed.size} bytes, over {limit}", errno.EFBIG)
                try:
                    return bytes(self.fetch(name, listed.version, 0, listed.size))
                except StaleShardError:  # any version will do
                    if attempt == config.REMOTE_RETRIES - 1:
                        raise
        raise AssertionError("unreachable")

    def mark(self, name: str, version: Version | None = None) -> str:
        made = hashlib.blake2b(digest_size=16)
        with self.open(name, version) as reader:
            while piece := reader.read(config.REMOTE_PART):
                made.update(piece)
            return made.hexdigest()

    def fetch(self, name: str, version: Version, start: int, end: int, until: float | None = None) -> memoryview:
        """The bytes of one version from `start` to `end`, in one request. StaleShardError, StorageError."""
        size = self.size_of(version)
        if start >= end:
            return memoryview(b"")

        def attempt() -> memoryview:
            if (start == 0 and end == size) or not self._ranges:
                return self._whole(name, version)[start:end]
            try:
                return self._get(name, version, (start, end))
            except RangesIgnoredError:
                self._ranges = False
                return self._whole(name, version)[start:end]

        return self.requests.run(f"reading {name}", attempt, until=until, hedge=True)

    def _whole(self, name: str, version: Version) -> memoryview:
        etag = self.etag_of(version)
        data = self._get(name, version, None)
        if self.etags.told(etag) is not None and not self.fits(name, version, md5(data)):
            raise ShortBodyError("its MD5 is not the one that the store says")
        return data

    def fits(self, name: str, version: Version, digest: str, *, apart: bool = False) -> bool:
        """Whether all of an object, with this MD5, is what its ETag stands for, as far as that tells. `apart` is for
        who is not in the midst of a request."""
        size, _, etag = parse_version(version)

        def again() -> str:
            if size < 2 or not self._ranges:
                return md5(self._get(name, version, None))
            half = size // 2
            made = hashlib.md5(self._get(name, version, (0, half)), usedforsecurity=False)
            made.update(self._get(name, version, (half, size)))
            return made.hexdigest()

        ask = (lambda: self.requests.run(f"checking {name}", again)) if apart else again
        return self.etags.fits(etag, digest, ask)

    def _get(self, name: str, version: Version, part: tuple[int, int] | None) -> memoryview:
        data = self.objects.get(name, version, part)
        expected = self.size_of(version) if part is None else part[1] - part[0]
        if len(data) != expected:
            raise ShortBodyError(f"{len(data)} bytes came where there should be {expected}")
        return data

    # --- writing ------------------------------------------------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        """Object stores have none."""

    def put(
        self,
        name: str,
        write: Callable[[BinaryIO], None],
        *,
        check: Callable[[], None] = lambda: None,
        replace: bool = True,
        temporary: str | None = None,
        marked: Callable[[str], None] | None = None,
        expected: Version | None = None,
    ) -> Listed:
        """See Storage. What is written is gathered in a temporary file of this machine; the condition is the store's
        own (If-None-Match, If-Match), where it has such: `compares` tells. EFBIG above REMOTE_CONDITIONAL bytes with
        one. What was written is what is returned, also where somebody has replaced it in the next moment."""
        with tempfile.TemporaryFile() as file:
            write(file)
            mark, size = _mark(file), file.tell()
            if marked is not None:
                marked(mark)
            mode = "overwrite" if replace else "create"
            condition: Any = mode if expected is None else {"e_tag": parse_version(expected)[2]}
            if condition != "overwrite" and size > config.REMOTE_CONDITIONAL:
                most = f"{config.REMOTE_CONDITIONAL >> 20} MiB in one request, which a condition needs"
                raise StorageError(f"{name} has {size} bytes, and {self.root} is given at most {most}", errno.EFBIG)
            # not the content's alone: another may write the same
            own = f"{mark}-{secrets.token_hex(8)}"
            # a server that ignores conditions still has this process keep to them
            with self._alone.with_name(name):
                check()
                # nobody in the kernel waits for it as for a read, and a large one takes its time
                until = self.requests.until() + size / config.REMOTE_SLOWEST
                etag = self._put(name, file, condition, own, until)
                listed = self.stat(name)
            if etag and parse_version(listed.version)[2] != etag and self.objects.told_mark(name)[0] != own:
                mtime_ns = 0 if is_strong(etag) else listed.mtime_ns
                listed = Listed(name, size, listed.mtime_ns, version_of(size, mtime_ns, etag))
            if listed.size != size:
                raise StaleShardError(f"{self.root}/{name} was replaced as soon as it was written")
            if marked is not None:  # who keeps an account of what he writes will look at it
                self._written.keep(name, listed.version, file, size)
        return listed

    def _put(self, name: str, file: BinaryIO, condition: Any, mark: str, until: float | None = None) -> str | None:
        """The ETag of what was put there, as far as the store tells."""
        tries = 0

        def attempt() -> str | None:
            nonlocal tries
            tries += 1
            try:
                return self.objects.put(name, file, condition, mark)
            except Exception as error:
                # an earlier attempt, whose answer was lost, may have been what put it there
                if tries == 1 or not is_condition(error):
                    raise
                told, etag = self.objects.told_mark(name)
                if told != mark:
                    raise
                return etag

        return self.requests.run(f"writing {name}", attempt, until=until)

    def compares(self) -> bool:
        """Whether the store keeps to conditions, tried out with an object of its own. StorageError."""
        name = f"{PROBE}{secrets.token_hex(8)}"
        try:
            self._put(name, io.BytesIO(b"1"), "create", name)
            for condition in ("create", {"e_tag": '"00000000000000000000000000000000"'}):
                try:
                    self.requests.run("trying out", partial(self._put_plainly, name, condition))
                except (StaleShardError, StorageError) as error:
                    if isinstance(error, StorageError) and error.errno != errno.EEXIST:
                        raise
                else:
                    return False
            return True
        finally:
            with contextlib.suppress(StorageError):
                self.remove(name)

    def _put_plainly(self, name: str, condition: Any) -> None:
        self.objects.put(name, io.BytesIO(b"2"), condition, None)

    def remove_temporary(self, beside: str, temporary: str) -> None:
        """Nothing has a name before all of it is there."""

    def forget_temporary(self, beside: str, temporary: str) -> None:
        """See `remove_temporary`."""

    def remove_dead(self) -> None:
        """See `remove_temporary`."""

    def sync(self, name: str) -> None:
        """A store that has answered has it."""

    def remove(self, name: str) -> None:
        self.stat(name)
        self.requests.run(f"removing {name}", lambda: self.objects.delete(name))

    @property
    def gives_ranges(self) -> bool:
        """False once the server was found to answer a range with all of the object."""
        return self._ranges

    def in_background(self, call: Callable[[], memoryview]) -> Future[memoryview]:
        return self._pool.start(call)


def _mark(file: BinaryIO) -> str:
    made = hashlib.blake2b(digest_size=16)
    file.seek(0)
    while piece := file.read(1 << 20):
        made.update(piece)
    return made.hexdigest()
