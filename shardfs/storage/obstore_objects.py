"""Objects of S3, GCS, Azure and web servers, through obstore: each call one request. See `objects`."""

from __future__ import annotations

import errno
import functools
import io
import secrets
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import obstore

from shardfs import config
from shardfs.errors import StaleShardError, StorageError
from shardfs.model import Version
from shardfs.storage.base import Listed
from shardfs.storage.objects import PROBE
from shardfs.storage.requests import RangesIgnoredError, Requests, ShortBodyError, understood
from shardfs.storage.versions import INSTEAD, SECOND, is_strong, parse_version, quoted, version_of

_MARK = "shardfs-mark"
"""Attribute by which a write tells itself apart: whether one whose answer was lost was done."""


class ObstoreObjects:
    """Those of an obstore store below its prefix."""

    ranges = True

    def __init__(
        self,
        store: Any,
        requests: Requests,
        tagged: bool = False,
        patient: Callable[[], Any] | None = None,
    ) -> None:
        """With `tagged` the store gives every object an ETag: what has none comes from somebody else. `patient` makes
        the same store, for large bodies that are sent: a client knows only how long nothing came."""
        self.store = store
        self._requests = requests
        self._tagged = tagged
        self._patient = functools.cache(patient or (lambda: store))

    def pages(self) -> Iterator[list[Listed]]:
        any_came = False
        for page in obstore.list(self.store, chunk_size=1000):
            self._requests.heard()
            any_came = any_came or bool(page)
            yield [_listed(meta) for meta in page]
        if not any_came and self._tagged:
            self._check_empty()

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

    def head(self, name: str) -> Listed:
        meta = _named(lambda: obstore.head(self.store, name))
        if self._tagged and not meta["e_tag"]:
            raise ShortBodyError("what came is no answer of the store")
        return _listed(meta)

    def get(self, name: str, version: Version, part: tuple[int, int] | None) -> memoryview:
        size, _, etag = parse_version(version)
        options: Any = {}
        if part is not None:
            options["range"] = part
        if is_strong(etag):
            options["if_match"] = etag
        try:
            result = obstore.get(self.store, name, options=options)
        except obstore.exceptions.GenericError as error:
            if part is None or "non-partial response" not in str(error):
                raise
            raise RangesIgnoredError("a range was answered with all of the object") from error
        self._requests.heard()
        meta = result.meta
        tag = _tag(meta)
        if self._tagged and not meta["e_tag"]:
            raise ShortBodyError("what came is no answer of the store")
        if etag and tag == etag and meta["size"] != size:
            raise ShortBodyError(f"{meta['size']} bytes are offered where there should be {size}")
        if (meta["size"], tag) != (size, etag):
            raise StaleShardError(f"{self._requests.where}/{name} was replaced since it was listed")
        data = memoryview(result.bytes())
        self._requests.heard(len(data))
        return data

    def put(self, name: str, file: BinaryIO, condition: Any, mark: str | None) -> str | None:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        try:
            made = obstore.put(
                self.store if size <= config.REMOTE_SMALL_PUT else self._patient(),
                name,
                file,
                mode=condition,
                attributes=None if mark is None else {_MARK: mark},
                chunk_size=config.REMOTE_UPLOAD_PART,
            )
        except ValueError as error:
            raise StorageError(f"{name} is no name that an object can have ({error})", errno.EINVAL) from error
        return quoted(made["e_tag"])

    def told_mark(self, name: str) -> tuple[str | None, str | None]:
        found = obstore.get(self.store, name, options={"head": True})
        attributes: dict[str, Any] = found.attributes
        return attributes.get(_MARK), quoted(found.meta["e_tag"])

    def delete(self, name: str) -> None:
        obstore.delete(self.store, name)

    def probe(self) -> object:
        return obstore.head(self.store, f"{PROBE}answers")


def _named(ask: Callable[[], Any]) -> Any:
    """FileNotFoundError for a name that no object can have: obstore's error is not one of its own then."""
    try:
        return ask()
    except ValueError as error:
        raise FileNotFoundError(str(error)) from error


def _listed(meta: Any) -> Listed:
    mtime_ns = int(meta["last_modified"].timestamp()) * SECOND
    size, tag = meta["size"], _tag(meta)
    return Listed(meta["path"], size, mtime_ns, version_of(size, 0 if is_strong(tag) else mtime_ns, tag))


def _tag(meta: Any) -> str:
    """The ETag; of a server that has none the time, which every answer has then."""
    return quoted(meta["e_tag"]) or f"{INSTEAD}{int(meta['last_modified'].timestamp())}"
