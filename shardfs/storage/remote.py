"""Objects in a store far away (S3, GCS, Azure, HTTP), through obstore. Knows nothing of what they mean.

A version is the object's size, time and ETag; every request for its bytes asks for just that, and what comes is
compared with it, as obstore itself takes a short body, or another page with status 200, for the object. Large objects
come in parts, a few at once. Servers that answer a range with all of the object are noticed, and asked for all of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import secrets
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, Self

import obstore

from shardfs import config
from shardfs.errors import StaleShardError, StorageError
from shardfs.model import Version
from shardfs.storage.base import Listed, Reader
from shardfs.storage.etags import Etags, md5
from shardfs.storage.requests import Requests, ShortBodyError
from shardfs.storage.written import Written

PROBE = ".shardfs-tmp-probe-"
"""Names that begin so were made to find out what a store can do; no listing of ours shows them."""

_MARK = "shardfs-mark"
"""Attribute by which a write tells itself apart: whether one whose answer was lost was done."""


_MODIFIED = "modified:"
"""Begins what stands for the ETag where a server has none."""


def version_of(size: int, mtime_ns: int, etag: str | None) -> Version:
    return Version(f"{size:x}-{mtime_ns:x}-{etag or ''}")


def parse_version(version: Version) -> tuple[int, int, str]:
    """Size, time in nanoseconds and ETag (empty: none) of a version."""
    size, mtime_ns, etag = version.split("-", 2)
    return int(size, 16), int(mtime_ns, 16), etag


class RemoteStorage:
    """The objects of an obstore store below its prefix. `root` is its URL, without secrets."""

    def __init__(self, store: Any, root: str, requests: Requests | None = None) -> None:
        self.root = root
        self.requests = requests or Requests(root)
        self.store = store
        self.names: Callable[[RemoteStorage, tuple[str, ...]], list[Listed]] | None = None
        """What gives the listing of a server that has none."""
        self.etags = Etags()
        self._written = Written()
        self._ranges = True
        self._pool = ThreadPoolExecutor(config.REMOTE_REQUESTS, "fetch")

    @property
    def deadline(self) -> float:
        return self.requests.deadline

    def size_of(self, version: Version) -> int:
        return parse_version(version)[0]

    def content_of(self, version: Version) -> str:
        size, mtime_ns, etag = parse_version(version)
        return f"{size:x}-{etag or mtime_ns}"

    # --- names --------------------------------------------------------------------------------------------------------

    def _listed(self, suffixes: tuple[str, ...]) -> list[Listed]:
        found: list[Listed] = []
        seen = 0
        for page in obstore.list(self.store, chunk_size=1000):
            seen += len(page)
            if seen > config.REMOTE_LISTED:
                raise StorageError(f"{self.root} has more than {config.REMOTE_LISTED} objects", errno.EFBIG)
            found += (_listed(meta) for meta in page if meta["path"].endswith(suffixes))
        return found

    def list(self, suffixes: tuple[str, ...]) -> list[Listed]:
        if self.names is not None:
            return self.names(self, suffixes)
        found = self.requests.run("listing", lambda: self._listed(suffixes))
        return sorted(found, key=lambda listed: listed.name)

    def changed(self) -> bool:
        return self.names is None  # nothing cheaper than a listing tells; how often that is asked for is up to who asks

    def stat(self, name: str) -> Listed:
        return self.requests.run(f"looking at {name}", lambda: _listed(obstore.head(self.store, name)))

    # --- bytes --------------------------------------------------------------------------------------------------------

    def open(self, name: str, version: Version | None = None) -> Reader:
        """Without a version it is asked for; with one nothing is, until something is read."""
        if version is None:
            version = self.stat(name).version
        return self._written.open(name, version) or RemoteReader(self, name, version)

    def at_hand(self, name: str, version: Version) -> bool:
        return False

    def read(self, name: str, limit: int) -> bytes:
        for attempt in range(config.REMOTE_RETRIES):
            listed = self.stat(name)
            if listed.size > limit:
                raise StorageError(f"{self.root}/{name} has {listed.size} bytes, over {limit}", errno.EFBIG)
            try:
                return self.fetch(name, listed.version, 0, listed.size)
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

    def fetch(self, name: str, version: Version, start: int, end: int, until: float | None = None) -> bytes:
        """The bytes of one version from `start` to `end`, in one request. StaleShardError, StorageError."""
        size, _, etag = parse_version(version)
        if start >= end:
            return b""

        def attempt() -> bytes:
            if (start == 0 and end == size) or not self._ranges:
                return self._whole(name, size, etag)[start:end]
            try:
                return self._get(name, size, etag, (start, end))
            except obstore.exceptions.GenericError as error:
                if "non-partial response" not in str(error):
                    raise
                self._ranges = False
                return self._whole(name, size, etag)[start:end]

        return self.requests.run(f"reading {name}", attempt, until=until)

    def _whole(self, name: str, size: int, etag: str) -> bytes:
        data = self._get(name, size, etag, None)
        if self.etags.told(etag) is not None and not self.fits(name, size, etag, md5(data)):
            raise ShortBodyError("its MD5 is not the one that the store says")
        return data

    def fits(self, name: str, size: int, etag: str, digest: str) -> bool:
        """Whether all of an object, with this MD5, is what its ETag stands for, as far as that tells."""

        def again() -> str:
            if size < 2 or not self._ranges:
                return md5(self._get(name, size, etag, None))
            half = size // 2
            made = hashlib.md5(self._get(name, size, etag, (0, half)), usedforsecurity=False)
            made.update(self._get(name, size, etag, (half, size)))
            return made.hexdigest()

        return self.etags.fits(etag, digest, again)

    def _get(self, name: str, size: int, etag: str, part: tuple[int, int] | None) -> bytes:
        options: Any = {}
        if part is not None:
            options["range"] = part
        if etag and not etag.startswith(("W/", _MODIFIED)):
            options["if_match"] = etag
        result = obstore.get(self.store, name, options=options)
        meta = result.meta
        if (meta["size"], _tag(meta)) != (size, etag):
            raise StaleShardError(f"{self.root}/{name} was replaced since it was listed")
        data = bytes(result.bytes())
        expected = size if part is None else part[1] - part[0]
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
            check()
            mode = "overwrite" if replace else "create"
            condition: Any = mode if expected is None else {"e_tag": parse_version(expected)[2]}
            if condition != "overwrite" and size > config.REMOTE_CONDITIONAL:
                most = f"{config.REMOTE_CONDITIONAL >> 20} MiB in one request, which a condition needs"
                raise StorageError(f"{name} has {size} bytes, and {self.root} is given at most {most}", errno.EFBIG)
            # not the content's alone: another may write the same
            own = f"{mark}-{secrets.token_hex(8)}"
            etag = self._put(name, file, condition, own)
            listed = self.stat(name)
            if etag and parse_version(listed.version)[2] != etag and self._told_mark(name)[0] != own:
                listed = Listed(name, size, listed.mtime_ns, version_of(size, listed.mtime_ns, etag))
            if listed.size != size:
                raise StaleShardError(f"{self.root}/{name} was replaced as soon as it was written")
            if marked is not None:  # who keeps an account of what he writes will look at it
                self._written.keep(name, listed.version, file, size)
        return listed

    def _put(self, name: str, file: BinaryIO, condition: Any, mark: str) -> str | None:
        """The ETag of what was put there, as far as the store tells."""
        tries = 0

        def attempt() -> str | None:
            nonlocal tries
            tries += 1
            file.seek(0)
            try:
                made = obstore.put(
                    self.store,
                    name,
                    file,
                    mode=condition,
                    attributes={_MARK: mark},
                    chunk_size=config.REMOTE_UPLOAD_PART,
                )
                return made["e_tag"]
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
                # an earlier attempt, whose answer was lost, may have been what put it there
                told, etag = (None, None) if tries == 1 else self._told_mark(name)
                if told != mark:
                    raise
                return etag

        return self.requests.run(f"writing {name}", attempt)

    def _told_mark(self, name: str) -> tuple[str | None, str | None]:
        """The mark that was written with an object, and its ETag."""
        found = obstore.get(self.store, name, options={"head": True})
        attributes: dict[str, Any] = found.attributes
        return attributes.get(_MARK), found.meta["e_tag"]

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
        obstore.put(self.store, name, b"2", mode=condition)

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
        self.requests.run(f"removing {name}", lambda: obstore.delete(self.store, name))

    @property
    def gives_ranges(self) -> bool:
        """False once the server was found to answer a range with all of the object."""
        return self._ranges

    def in_background(self, call: Callable[[], bytes]) -> Future[bytes]:
        return self._pool.submit(call)


class RemoteReader:
    """One version of an object. What is read from beginning to end is fetched in parts, REMOTE_AHEAD at once; ranges
    are fetched as they are asked for, out of a part where that is at hand."""

    def __init__(self, storage: RemoteStorage, name: str, version: Version) -> None:
        self._storage = storage
        self._name = name
        self._version = version
        self.size = parse_version(version)[0]
        self._position = 0
        self._part_size = config.REMOTE_PART if storage.gives_ranges else max(self.size, 1)
        self._digest: Any = None
        """MD5 of what was read so far, where all of it is read in order and in several parts."""
        if self._count > 1 and storage.etags.told(parse_version(version)[2]) is not None:
            self._digest = hashlib.md5(usedforsecurity=False)
        self._parts: dict[int, Future[bytes]] = {}
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
            if not self._storage.fits(self._name, self.size, parse_version(self._version)[2], digest):
                raise StorageError(f"{self._name} came damaged: its MD5 is not the one that the store says")

    def _at(self, position: int, count: int) -> memoryview:
        """What there is of `count` bytes from `position` in one part; the parts behind it are on their way then."""
        if position >= self.size or count <= 0:
            return memoryview(b"")
        first = position // self._part_size
        wanted = [self._part(number) for number in range(first, min(first + config.REMOTE_AHEAD, self._count))]
        data = self._result(first, wanted[0])
        start = position - first * self._part_size
        return memoryview(data)[start : start + count]

    @property
    def _count(self) -> int:
        return -(-self.size // self._part_size)

    def _part(self, number: int) -> Future[bytes]:
        with self._lock:
            known = self._parts.get(number)
            if known is None:
                start = number * self._part_size
                end = min(start + self._part_size, self.size)
                fetch = self._storage.fetch
                name, version, until = self._name, self._version, self._storage.requests.until()
                known = self._storage.in_background(lambda: fetch(name, version, start, end, until))
                self._parts[number] = known
            return known

    def _result(self, number: int, part: Future[bytes]) -> bytes:
        try:
            return part.result()
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
        with self._lock:
            part = self._parts.get(number)
        if part is None and self._count == 1:
            part = self._part(0)  # small ones are fetched once, whatever is asked of them
        if part is not None and start + count <= self._part_size:
            return self._result(number, part)[start : start + count]
        return self._storage.fetch(self._name, self._version, offset, offset + count)

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


def _mark(file: BinaryIO) -> str:
    made = hashlib.blake2b(digest_size=16)
    file.seek(0)
    while piece := file.read(1 << 20):
        made.update(piece)
    return made.hexdigest()


def _listed(meta: Any) -> Listed:
    mtime_ns = int(meta["last_modified"].timestamp() * 1e9)
    return Listed(meta["path"], meta["size"], mtime_ns, version_of(meta["size"], mtime_ns, _tag(meta)))


def _tag(meta: Any) -> str:
    """The ETag; of a server that has none the time, which every answer has then."""
    return meta["e_tag"] or f"{_MODIFIED}{int(meta['last_modified'].timestamp())}"
