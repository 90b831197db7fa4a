"""Objects of stores that fsspec reaches (`hf://`, `ftp://`, `sftp://`, whatever it has a class for): only to be read.

fsspec knows no condition ("these bytes, if it is still that version"). So each object is looked at behind every read of
it: what was that version before and is that version after was it in between. Its classes keep what they heard of
directories, which is thrown away before each question; and most of them are not for several threads at once, so that
each request has one of a few instances for itself.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractFileSystem

from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    MissingExtraError,
    NotWritableError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Version
from shardfs.storage.base import Listed
from shardfs.storage.objects import PROBE
from shardfs.storage.requests import PASSING, PassingError, Requests, cleaned
from shardfs.storage.versions import INSTEAD, parse_version, version_of

_TAGS = ("ETag", "etag", "e_tag", "blob_id", "md5", "md5Hash", "checksum", "sha", "hash", "ino")
"""What stands for an object's content, by the names that fsspec's classes have for it."""
_TIMES = ("mtime", "LastModified", "last_modified", "modified", "updated", "modify", "created")
_PAGE = 1000
_PASSING_FROM = ("aiohttp", "httpx", "httpcore", "requests", "urllib3", "botocore", "ftplib", "fsspec", "paramiko")
"""Packages whose errors are of the network, where they have no status."""


def open_fsspec(
    url: str, shown: str, requests: Requests, *, endpoint: str | None, anonymous: bool, options: dict[str, Any]
) -> FsspecObjects:
    """Nothing is asked yet. BadStoreError for a protocol that fsspec does not have, MissingExtraError where it needs a
    package that is not installed, BadSettingError."""
    scheme = urlsplit(url).scheme
    if scheme == "hf":
        options = {**options, **({"endpoint": endpoint} if endpoint else {}), **({"token": False} if anonymous else {})}
    elif endpoint or anonymous:
        raise BadSettingError(f"{shown}: --endpoint and --anonymous are for s3://, gs://, az:// and hf://")
    kind: Any
    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise MissingExtraError(f"{shown}: {error}") from error
    except ValueError as error:
        raise BadStoreError(f"{shown}: nothing here opens {scheme}:// URLs") from error
    if "::" in url or not hasattr(kind, "_get_kwargs_from_urls"):
        raise BadStoreError(f"{shown}: nothing here opens such URLs")
    given = {**kind._get_kwargs_from_urls(url), **options}
    return FsspecObjects(
        lambda: kind(**given, skip_instance_cache=True), str(kind._strip_protocol(url)).rstrip("/"), requests, scheme
    )


class FsspecObjects:
    """Those below `root`, by instances of fsspec's class that `make` makes."""

    def __init__(self, make: Callable[[], Any], root: str, requests: Requests, scheme: str = "") -> None:
        self._make = make
        self._root = root
        self._requests = requests
        self._hub = scheme == "hf"
        self.ranges = scheme != "ftp"  # which breaks a transfer off for each, and its connection with it
        self._free: list[Any] = []
        self._lock = threading.Lock()

    @contextmanager
    def _one(self) -> Iterator[Any]:
        """An instance that nobody else uses; after an error it is not used again, as its connection may be half way in
        an answer."""
        try:
            with self._lock:
                made = self._free.pop() if self._free else None
            if made is None:
                made = self._make()
            yield made
        except (StorageError, StaleShardError, PassingError):
            raise
        except Exception as error:
            raise _understood(error, self._requests.where) from None  # it may show what was given
        self._requests.heard()
        with self._lock:
            self._free.append(made)

    def pages(self) -> Iterator[list[Listed]]:
        with self._one() as files:
            files.invalidate_cache()
            if _lists_at_once(files):
                again = {"refresh": True} if self._hub else {}
                listed = self._files(files.find(self._root, detail=True, **again).values())
                for at in range(0, len(listed), _PAGE):
                    yield listed[at : at + _PAGE]
                return
            # the walk that these have would leave out what cannot be listed, and who mirrors the mount delete his copy
            waiting = [self._root]
            while waiting:
                found = files.ls(waiting.pop(), detail=True)
                waiting += [str(about["name"]) for about in found if about["type"] == "directory"]
                yield self._files(found)

    def _files(self, found: Iterable[dict[str, Any]]) -> list[Listed]:
        return [self._listed(about) for about in found if about["type"] == "file"]

    def head(self, name: str) -> Listed:
        with self._one() as files:
            return self._looked_at(files, name)

    def _looked_at(self, files: Any, name: str) -> Listed:
        path = f"{self._root}/{name}"
        if self._hub:  # asks for just that file, where it has not heard of the directory that it is not in it
            try:
                about = files.info(path, refresh=True, expand_info=True)
            except FileNotFoundError:
                files.invalidate_cache()
                about = files.info(path, refresh=True, expand_info=True)
        else:
            files.invalidate_cache()
            about = files.info(path)
        if about["type"] != "file":
            raise FileNotFoundError(path)
        return self._listed(about)

    def _listed(self, about: dict[str, Any]) -> Listed:
        name = str(about["name"])
        above = f"{self._root}/"
        if not name.startswith(above) and not self._root.startswith("/"):
            name = name.lstrip("/")
        if not name.startswith(above):
            raise StorageError(f"{self._requests.where}: {name} is listed, which is not below it", errno.EIO)
        size = about.get("size")
        if size is None:
            raise StorageError(f"{self._requests.where}: the size of {name} is not told", errno.EOPNOTSUPP)
        mtime_ns = 0 if self._hub else _time(about)  # which its listing does not tell
        return Listed(name.removeprefix(above), int(size), mtime_ns, _version(int(size), mtime_ns, about))

    def get(self, name: str, version: Version, part: tuple[int, int] | None) -> memoryview:
        size = parse_version(version)[0]
        path = f"{self._root}/{name}"
        with self._one() as files:
            if self._hub:
                start, end = part or (0, size)
                data = memoryview(files.cat_file(path, start, end, size=size, cache_type="none"))
            elif part is None:
                data = memoryview(files.cat_file(path))
            else:
                data = memoryview(files.cat_file(path, *part))
            if self._looked_at(files, name).version != version:
                raise StaleShardError(f"{self._requests.where}/{name} was replaced since it was listed")
        self._requests.heard(len(data))
        return data

    def put(self, name: str, file: BinaryIO, condition: Any, mark: str | None) -> str | None:
        raise self._refusal()

    def told_mark(self, name: str) -> tuple[str | None, str | None]:
        raise self._refusal()

    def delete(self, name: str) -> None:
        raise self._refusal()

    def _refusal(self) -> StorageError:
        return StorageError(f"{self._requests.where} can only be read", NotWritableError.errno)

    def probe(self) -> object:
        return self.head(f"{PROBE}answers")


def _lists_at_once(files: Any) -> bool:
    """Whether fsspec's class has a way of its own to list all that is below a directory."""
    kind = type(files)
    if isinstance(files, AsyncFileSystem):
        return kind._find is not AsyncFileSystem._find
    return kind.find is not AbstractFileSystem.find


def _version(size: int, mtime_ns: int, about: dict[str, Any]) -> Version:
    tag = next((str(about[word]).strip('"') for word in _TAGS if about.get(word) not in (None, "")), None)
    if tag is None and mtime_ns:
        tag = f"{INSTEAD}{mtime_ns}"
    return version_of(size, mtime_ns, tag)


def _time(about: dict[str, Any]) -> int:
    """Nanoseconds; 0 where none is told."""
    given = next((about[word] for word in _TIMES if about.get(word) not in (None, "")), None)
    try:
        if isinstance(given, str):
            # FTP's (RFC 3659), and ISO 8601
            compact = given.partition(".")[0].isdigit()
            given = datetime.strptime(given[:14], "%Y%m%d%H%M%S") if compact else datetime.fromisoformat(given)
        if isinstance(given, datetime):
            given = (given if given.tzinfo else given.replace(tzinfo=UTC)).timestamp()
        return 0 if given is None else int(float(given) * 1e6) * 1000
    except (ValueError, TypeError, OverflowError):
        return 0


def _understood(error: Exception, where: str) -> Exception:
    """An error of fsspec, or of what it uses, as one of ours."""
    text = cleaned(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        if status in PASSING:
            return PassingError(text, answered=True)
        if status in (401, 403):
            return StorageError(f"{where}: the store refuses these credentials ({text})", errno.EACCES)
        if status != 404:
            return StorageError(f"{where}: {text}", errno.EIO)
    if isinstance(error, FileNotFoundError) or status == 404:
        return FileNotFoundError(text)
    if isinstance(error, PermissionError):
        return StorageError(f"{where}: the store refuses these credentials ({text})", errno.EACCES)
    if isinstance(error, NotImplementedError):
        return StorageError(f"{where}: stores of this kind cannot do that ({text})", errno.EOPNOTSUPP)
    if isinstance(error, OSError | EOFError | TimeoutError) or type(error).__module__.startswith(_PASSING_FROM):
        return PassingError(text, answered=False)
    return StorageError(f"{where}: {text}", errno.EIO)
