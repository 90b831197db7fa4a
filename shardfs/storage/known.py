"""What a store far away said last, kept on disk: its listings and small objects, for a mount that begins while the
store cannot be asked. Used with a warning, only as long as nothing was heard of it, and never for the bytes of shards.

    <root>/<hash of store and question>.json.zst     store, question, time of the answer, the answer

Files are renamed into place. Knows nothing of requests, nor of what the names mean.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from shardfs import config
from shardfs.errors import StorageError
from shardfs.model import Version
from shardfs.storage.base import Listed

log = logging.getLogger("shardfs")

_SILENT = (errno.ETIMEDOUT, errno.EIO, errno.ENETUNREACH)
"""With these a store was not asked, or gave no answer that means anything."""


def default_directory() -> Path | None:
    """Where it lies by default; None for who has no home."""
    base = config.base_directory("XDG_CACHE_HOME", "~/.cache")
    return None if base is None else base / "shardfs" / "known"


class Known:
    """Of one store. Thread-safe. An error of the disk means that nothing is kept, or known."""

    def __init__(self, root: Path, store: str) -> None:
        self._root = root
        self._store = store
        self._heard = False
        self._warned = False
        self._names: dict[str, Listed] = {}
        self._written: dict[str, int] = {}
        self._lock = threading.Lock()

    def listing(self, ask: Callable[[], list[Listed]]) -> list[Listed]:
        """What `ask` says is there, or said last. StorageError where nothing is known."""

        def taken(said: Any) -> list[Listed]:
            found = [Listed(name, size, mtime, Version(version)) for name, size, mtime, version in said]
            self._names.update((listed.name, listed) for listed in found)
            return found

        question = "list"
        try:
            found = ask()
        except StorageError as error:
            return taken(self._instead(question, error))
        self._heard = True
        if len(found) <= config.KNOWN_NAMES:
            new = hash((tuple(listed.name for listed in found), tuple(listed.version for listed in found)))
            self._keep(question, new, lambda: [(one.name, one.size, one.mtime_ns, one.version) for one in found])
        return found

    def stat(self, name: str, ask: Callable[[], Listed]) -> Listed:
        """What `ask` says of one object, or the last listing. StorageError."""
        try:
            return ask()
        except StorageError as error:
            known = self._names.get(name)
            if self._heard or known is None or error.errno not in _SILENT:
                raise
            return known

    def read(self, name: str, ask: Callable[[], bytes]) -> bytes:
        """What `ask` says is in a small object, or said last. StorageError."""
        try:
            data = ask()
        except StorageError as error:
            return base64.b64decode(self._instead(f"read\0{name}", error))
        if len(data) <= config.KNOWN_SMALL:
            self._keep(f"read\0{name}", hash(data), lambda: base64.b64encode(data).decode())
        return data

    def _instead(self, question: str, error: StorageError) -> Any:
        """The last answer in place of one that did not come. StorageError, that one, where there is none or it would
        take the place of what was heard since."""
        if self._heard or error.errno not in _SILENT:
            raise error
        try:
            with zstandard.open(self._path(question), "rb") as file:
                text = file.read(config.KNOWN_BYTES * 4 + 1)
            told = json.loads(text)
            if (told["store"], told["question"]) != (self._store, question):
                raise error
        except (OSError, ValueError, KeyError, TypeError, zstandard.ZstdError):
            raise error from None
        if not self._warned:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(told["time"]))
            log.warning("what is shown is what was known of the store at %s: %s", when, error)
        self._warned = True
        return told["answer"]

    def _keep(self, question: str, new: int, answer: Callable[[], Any]) -> None:
        """Keep an answer, unless it has the hash `new` that the last one had."""
        with self._lock:
            if self._written.get(question) == new:
                return  # a store that is listed every minute is not written down every minute
            self._written[question] = new
        text = json.dumps(answer()).encode()
        head = json.dumps({"store": self._store, "question": question, "time": int(time.time())})
        data = zstandard.compress(head[:-1].encode() + b', "answer": ' + text + b"}", 1)
        if len(data) > config.KNOWN_BYTES:
            return
        made = self._path(question).with_suffix(".new")
        try:
            self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
            _remove_old(made)
            with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(data)
            os.rename(made, self._path(question))
            self._thin()
        except FileExistsError:
            return  # another process is just writing the same
        except OSError as error:
            log.debug("what the store says is not kept: %s", error)
            with contextlib.suppress(OSError):
                os.unlink(made)

    def _thin(self) -> None:
        """Remove the oldest answers beyond KNOWN_FILES."""
        entries = list(os.scandir(self._root))
        if len(entries) > config.KNOWN_FILES:
            entries.sort(key=lambda entry: entry.stat().st_mtime_ns)
            for entry in entries[: len(entries) - config.KNOWN_FILES]:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)

    def _path(self, question: str) -> Path:
        text = f"{self._store}\0{question}".encode("utf-8", "surrogatepass")
        return self._root / f"{hashlib.sha256(text).hexdigest()[:32]}.json.zst"


def _remove_old(path: Path) -> None:
    """Remove what somebody who died has left, and nothing that is just written."""
    with contextlib.suppress(FileNotFoundError):
        if time.time_ns() - os.stat(path).st_mtime_ns > config.CACHE_ORPHAN_NS:
            os.unlink(path)
