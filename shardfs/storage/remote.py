"""Objects in a store far away (S3, GCS, Azure, HTTP), through obstore. Knows nothing of what they mean.

A version is the object's size, time and ETag; every request for its bytes asks for just that, and what comes is
compared with it, as obstore itself takes a short body, or another page with status 200, for the object. Large objects
come in parts, a few at once. Servers that answer a range with all of the object are noticed, and asked for all of it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import io
import secrets
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, BinaryIO

import obstore

from shardfs import config
from shardfs.errors import StaleShardError, StorageError
from shardfs.model import Version
from shardfs.storage.base import Listed, Reader
from shardfs.storage.etags import Etags, md5
from shardfs.storage.known import Known
from shardfs.storage.remote_reader import RemoteReader
from shardfs.storage.requests import Progress, Requests, ShortBodyError, understood
from shardfs.storage.threads import Threads
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

    def __init__(
        self,
        store: Any,
        root: str,
        requests: Requests | None = None,
        known: Known | None = None,
        tagged: bool = False,
        patient: Callable[[], Any] | None = None,
    ) -> None:
        """`known` is what was heard of the store before. With `tagged` the store gives every object an ETag: what has
        none comes from somebody else. `patient` makes the same store, for large bodies that are sent: a client knows
        only how long nothing came."""
        self.root = root
        self.requests = requests or Requests(root)
        self._known = known
        self._tagged = tagged
        self._patient = functools.cache(patient or (lambda: store))
        self.store = store
        self.names: Callable[[RemoteStorage, tuple[str, ...]], list[Listed]] | None = None
        """What gives the listing of a server that has none."""
        self.etags = Etags()
        self._written = Written()
        self._ranges = True
        self.requests.probe = lambda: obstore.head(store, f"{PROBE}answers")
        self._pool = Threads(config.REMOTE_REQUESTS, "fetch")

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
        for page in obstore.list(self.store, chunk_size=1000):
            progress.at = self.requests.now()
            self.requests.heard()
            seen += len(page)
            if seen > config.REMOTE_LISTED:
                raise StorageError(f"{self.root} has more than {config.REMOTE_LISTED} objects", errno.EFBIG)
            found += (_listed(meta) for meta in page if meta["path"].endswith(suffixes))
        if not seen and self._tagged:
            self._check_empty()
        return found

    def _check_empty(self) -> None:
        """ShortBodyError unless the store says twice that there is nothing, and so of an object that cannot be there:
        any page of HTML with status 200, of a proxy that wants a password, reads as a listing of nothing."""
        if any(obstore.list(self.store, chunk_size=1)):
            raise ShortBodyError("what came was no listing")
        try:
            obstore.head(self.store, f"{PROBE}{secrets.token_hex(8)}")
        except Exception as error:
            if understood(error, "") is None:
                raise
        else:
            raise ShortBodyError("what came is no listing")

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
        def attempt() -> Listed:
            meta = obstore.head(self.store, name)
            if self._tagged and not meta["e_tag"]:
                raise ShortBodyError("what came is no answer of the store")
            return _listed(meta)

        return self.requests.run(f"looking at {name}", attempt)

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

        return self.requests.run(f"reading {name}", attempt, until=until, hedge=True)

    def _whole(self, name: str, size: int, etag: str) -> bytes:
        data = self._get(name, size, etag, None)
        if self.etags.told(etag) is not None and not self.fits(name, size, etag, md5(data)):
            raise ShortBodyError("its MD5 is not the one that the store says")
        return data

    def fits(self, name: str, size: int, etag: str, digest: str, *, apart: bool = False) -> bool:
        """Whether all of an object, with this MD5, is what its ETag stands for, as far as that tells. `apart` is for
        who is not in the midst of a request."""

        def again() -> str:
            if size < 2 or not self._ranges:
                return md5(self._get(name, size, etag, None))
            half = size // 2
            made = hashlib.md5(self._get(name, size, etag, (0, half)), usedforsecurity=False)
            made.update(self._get(name, size, etag, (half, size)))
            return made.hexdigest()

        ask = (lambda: self.requests.run(f"checking {name}", again)) if apart else again
        return self.etags.fits(etag, digest, ask)

    def _get(self, name: str, size: int, etag: str, part: tuple[int, int] | None) -> bytes:
        options: Any = {}
        if part is not None:
            options["range"] = part
        if etag and not etag.startswith(("W/", _MODIFIED)):
            options["if_match"] = etag
        result = obstore.get(self.store, name, options=options)
        self.requests.heard()
        meta = result.meta
        tag = _tag(meta)
        if self._tagged and not meta["e_tag"]:
            raise ShortBodyError("what came is no answer of the store")
        if etag and tag == etag and meta["size"] != size:
            raise ShortBodyError(f"{meta['size']} bytes are offered where there should be {size}")
        if (meta["size"], tag) != (size, etag):
            raise StaleShardError(f"{self.root}/{name} was replaced since it was listed")
        data = bytes(result.bytes())
        self.requests.heard(len(data))
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
            # nobody in the kernel waits for it as for a read, and a large one takes its time
            until = self.requests.until() + size / config.REMOTE_SLOWEST
            etag = self._put(name, file, condition, own, until)
            listed = self.stat(name)
            if etag and parse_version(listed.version)[2] != etag and self._told_mark(name)[0] != own:
                listed = Listed(name, size, listed.mtime_ns, version_of(size, listed.mtime_ns, etag))
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
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            try:
                made = obstore.put(
                    self.store if size <= config.REMOTE_SMALL_PUT else self._patient(),
                    name,
                    file,
                    mode=condition,
                    attributes={_MARK: mark},
                    chunk_size=config.REMOTE_UPLOAD_PART,
                )
                return _quoted(made["e_tag"])
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
                # an earlier attempt, whose answer was lost, may have been what put it there
                told, etag = (None, None) if tries == 1 else self._told_mark(name)
                if told != mark:
                    raise
                return etag

        return self.requests.run(f"writing {name}", attempt, until=until)

    def _told_mark(self, name: str) -> tuple[str | None, str | None]:
        """The mark that was written with an object, and its ETag."""
        found = obstore.get(self.store, name, options={"head": True})
        attributes: dict[str, Any] = found.attributes
        return attributes.get(_MARK), _quoted(found.meta["e_tag"])

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
        return self._pool.start(call)


def _mark(file: BinaryIO) -> str:
    made = hashlib.blake2b(digest_size=16)
    file.seek(0)
    while piece := file.read(1 << 20):
        made.update(piece)
    return made.hexdigest()


def _listed(meta: Any) -> Listed:
    # whole seconds, as Last-Modified has no more: some servers list milliseconds, and an object must have one version
    mtime_ns = int(meta["last_modified"].timestamp()) * 1_000_000_000
    return Listed(meta["path"], meta["size"], mtime_ns, version_of(meta["size"], mtime_ns, _tag(meta)))


def _tag(meta: Any) -> str:
    """The ETag; of a server that has none the time, which every answer has then."""
    return _quoted(meta["e_tag"]) or f"{_MODIFIED}{int(meta['last_modified'].timestamp())}"


def _quoted(etag: str | None) -> str | None:
    """An ETag in its quotation marks, which some servers leave out in listings."""
    return etag if not etag or etag.endswith('"') else f'"{etag}"'
