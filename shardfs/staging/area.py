"""All that is staged for one store, in one directory on local disk, with one owner at a time.

    $XDG_STATE_HOME/shardfs/staging/<store>/url      the store's URL, to be read by people
                                           /lock     held by the process that writes here
                                           /shown    how the mount showed stored shards
                                           /<id>/    a staged directory: journal, data/<number>, room

Names on disk are ours: those of users are in journals only. Knows nothing of stores but their URL.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from shardfs import config
from shardfs.errors import StagingError, StagingLockedError
from shardfs.staging import recovery
from shardfs.staging.directory import Over, StagedDirectory, State
from shardfs.staging.journal import sync_directory
from shardfs.staging.ledger import failed
from shardfs.staging.tree import Kind

log = logging.getLogger("shardfs")

_LOCK = "lock"
_URL = "url"
_SHOWN = "shown"


@dataclass(frozen=True, slots=True)
class Report:
    """What a list says of one staged directory."""

    id: str
    key: str
    kind: Kind
    state: State
    reason: str | None
    """Why it is in that state, where that is to be told."""
    files: int
    data_bytes: int
    """Bytes of the files that have theirs here."""
    created_ns: int
    """Nanoseconds since the epoch."""


def default_root() -> Path:
    """Where all areas lie. StagingError for who has no home."""
    base = config.base_directory("XDG_STATE_HOME", "~/.local/state")
    if base is None:
        raise StagingError("no home directory, and XDG_STATE_HOME is not set: nothing can be staged", errno.ENOENT)
    return base / "shardfs" / "staging"


def store_id(url: str) -> str:
    """The name of a store's area."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def staged_stores(root: Path | None = None) -> list[str]:
    """URLs of all stores that have an area, sorted. StagingError."""
    root = root or default_root()
    try:
        found = [path.read_bytes().decode("utf-8", "surrogatepass") for path in root.glob(f"*/{_URL}")]
    except OSError as error:
        raise failed(f"reading {root}", error) from error
    return sorted(url.removesuffix("\n") for url in found)


class StagingArea:
    """The staged directories of one store. Thread-safe; its methods raise StagingError."""

    def __init__(self, path: Path, lock: int, read_only: bool, for_shard: bool) -> None:
        """Use `open`."""
        self.path = path
        self.read_only = read_only
        self._lock_file = lock
        self._for_shard = for_shard
        self._lock = threading.RLock()
        # Both are replaced and never changed, so that looking waits for nobody.
        self._directories: dict[str, StagedDirectory] = {}
        self._keys: dict[str, StagedDirectory] = {}
        self._journals: OrderedDict[str, StagedDirectory] = OrderedDict()
        self._journals_lock = threading.Lock()
        self._newest: StagedDirectory | None = None
        """The last one of them."""

    @classmethod
    def open(
        cls, url: str, *, store_path: Path | None = None, read_only: bool = False, root: Path | None = None
    ) -> StagingArea:
        """Open the area of a store, made if need be, and recover what is in it.

        `store_path` is where the store lies, if that is a local directory: on the same disk, room is kept for the
        shards too. With `read_only` nothing is made, locked, cleaned up or changed, and another process may own it.
        StagingLockedError if one does; StagingError, ENOENT where there is none to look at.
        """
        path = (root or default_root()) / store_id(url)
        try:
            lock = -1 if read_only else _prepare(path, url)
            if read_only and not path.is_dir():
                raise StagingError(f"nothing is staged for {url}", errno.ENOENT)
            for_shard = store_path is not None and _device(store_path) == _device(path)
        except StagingError:
            raise
        except OSError as error:
            raise failed(f"opening {path}", error) from error
        area = cls(path, lock, read_only, for_shard)
        try:
            area._recover()
        except BaseException:
            area.close()
            raise
        return area

    def _recover(self) -> None:
        try:
            names = sorted(os.listdir(self.path))
        except OSError as error:
            raise failed(f"reading {self.path}", error) from error
        for name in names:
            path = self.path / name
            if name.endswith((recovery.NEW, recovery.GONE)):
                if not self.read_only:
                    shutil.rmtree(path, ignore_errors=True)
            elif name not in (_LOCK, _URL, _SHOWN) and path.is_dir():
                directory = StagedDirectory(recovery.load(path, not self.read_only), self._for_shard)
                if not self.read_only or path.is_dir():  # the owner may have removed it meanwhile
                    self._add(directory)
        if not self.read_only:
            for directory in list(self._directories.values()):
                if directory.replaces in self._directories and directory.replaces is not None:
                    self.discard(self._directories[directory.replaces])
                if directory.finished and directory.damage is None:
                    self.discard(directory)

    def _add(self, directory: StagedDirectory) -> None:
        directory.on_append(lambda: self._used(directory))
        self._publish({**self._directories, directory.id: directory})

    def _publish(self, directories: dict[str, StagedDirectory]) -> None:
        self._directories = directories
        self._keys = {directory.key: directory for directory in directories.values()}

    def _used(self, directory: StagedDirectory) -> None:
        """A journal was written to: close another one if too many are open. Called with that directory's lock held,
        so no other's may be waited for."""
        if self._newest is directory:
            return
        with self._journals_lock:
            self._newest = directory
            self._journals[directory.id] = directory
            self._journals.move_to_end(directory.id)
            if len(self._journals) > config.JOURNALS_OPEN:
                name, oldest = next(iter(self._journals.items()))
                if oldest.rest():
                    del self._journals[name]

    # --- looking ------------------------------------------------------------------------------------------------

    def directories(self) -> list[StagedDirectory]:
        """All staged directories, oldest first."""
        return sorted(self._directories.values(), key=lambda directory: (directory.created_ns, directory.id))

    def find(self, key: str) -> StagedDirectory | None:
        """The staged directory of a key or plain name; one that is damaged too. Waits for nothing."""
        return self._keys.get(key)

    def called(self, name: str) -> StagedDirectory | None:
        """The staged directory of a key or plain name, or else of that id: a damaged one may have lost its key."""
        found = self.find(name)
        return self._directories.get(name) if found is None else found

    def reports(self) -> list[Report]:
        """What there is, oldest first."""
        found = []
        for directory in self.directories():
            reason = directory.damage or directory.parked or directory.doubt
            found.append(
                Report(
                    directory.id,
                    directory.key,
                    directory.kind,
                    directory.state,
                    reason,
                    len(directory),
                    directory.data_bytes,
                    directory.created_ns,
                )
            )
        return found

    # --- changing -----------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.read_only:
            raise StagingError(f"{self.path} is opened for looking only", errno.EROFS)

    def shown(self, how: str) -> None:
        """Say in which way stored shards are shown from now on: it decides which files they have, and so what the
        numbers mean that staged directories know them by. EINVAL where something lies over a stored shard that was
        shown in another way."""
        self._check()
        path = self.path / _SHOWN
        try:
            before = path.read_text(encoding="utf-8").removesuffix("\n") if path.exists() else how
            over = [directory.key for directory in self.directories() if directory.base_version is not None]
            if before != how and over:
                raise StagingError(
                    f"{over[0]} was staged where shards are shown as {before!r}, not {how!r}: mount like that first",
                    errno.EINVAL,
                )
            path.write_text(how + "\n", encoding="utf-8")
        except StagingError:
            raise
        except OSError as error:
            raise failed(f"writing {path}", error) from error

    def shown_as(self) -> str | None:
        """What `shown` was told last; None if nothing ever was, or it cannot be read."""
        try:
            return (self.path / _SHOWN).read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, ValueError):
            return None

    def create(
        self, key: str, kind: Kind = "key", base_version: str | None = None, base_bytes: int = 0
    ) -> StagedDirectory:
        """A new staged directory, durable when this returns: over the stored shard of `base_version`, or for a new key.
        `base_bytes` is what that shard takes in the store: as much room is kept, for it will be written again. EEXIST,
        ENOSPC."""
        self._check()
        with self._lock:
            if self.find(key) is not None:
                raise StagingError(f"{key} is staged already", errno.EEXIST)
            ledger = recovery.make(self.path, secrets.token_hex(8), key, kind, base_version, base_bytes)
            directory = StagedDirectory(ledger, self._for_shard)
            self._add(directory)
            try:
                directory.keep_room()
            except StagingError:
                self.discard(directory)
                raise
            return directory

    def rename(
        self,
        directory: StagedDirectory,
        key: str,
        kind: Kind,
        replaces: StagedDirectory | None = None,
        over: Over | None = None,
    ) -> None:
        """Give a staged directory another key or name, and another kind; `replaces`, which has that key now, is
        discarded with it, both or neither. With `over` it lies over another version of the store then. EEXIST, EBUSY
        while a seal of either runs, EINVAL for directories in a key."""
        self._check()
        with self._lock:
            there = self.find(key)
            if there not in (None, directory, replaces):
                raise StagingError(f"{key} is staged already", errno.EEXIST)
            if replaces is not None and replaces.seal.snapshot is not None:
                raise StagingError(f"{key} is being sealed", errno.EBUSY)
            directory.set_key(key, kind, None if replaces is None else replaces.id, over)
            self._publish(self._directories)
            if replaces is not None:
                self.discard(replaces)

    def park(self, directory: StagedDirectory, reason: str) -> str:
        """Set a staged directory aside, under a name of its own, durably: it is never sealed by itself, and stays until
        it is renamed or discarded. The name."""
        self._check()
        with self._lock:
            name = f"{directory.key}.conflict-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            count, key = 1, name
            while self.find(key) is not None:
                count += 1
                key = f"{name}-{count}"
            directory.park(key, reason)
            self._publish(self._directories)
            return key

    def discard(self, directory: StagedDirectory) -> None:
        """Remove a staged directory and all that is in it, whatever its state."""
        self._check()
        with self._lock:
            directory.close(f"{directory.key} was discarded")
            gone = self._rename_away(directory)
            self._forget(directory)
        shutil.rmtree(gone, ignore_errors=True)  # what is left of it is removed at the next start

    def discard_empty(self, directory: StagedDirectory) -> bool:
        """Remove a staged directory if nothing is in it; whether it was removed."""
        self._check()
        if not directory.close_empty(f"nothing is staged for {directory.key}"):
            return False
        self.discard(directory)
        return True

    def withdraw(self, directory: StagedDirectory) -> None:
        """Let go of a directory that is finished, without touching the disk; `remove` must follow, or the next start
        does it."""
        self._check()
        with self._lock:
            assert directory.finished
            directory.close(f"{directory.key} is in the store", reap=False)
            self._forget(directory)

    def remove(self, directory: StagedDirectory) -> None:
        """Remove from the disk what was withdrawn."""
        self._check()
        shutil.rmtree(self._rename_away(directory), ignore_errors=True)

    def _rename_away(self, directory: StagedDirectory) -> Path:
        """Say on disk, durably, that a directory is nothing any more. StagingError."""
        path = self.path / directory.id
        gone = path.with_name(directory.id + recovery.GONE)
        try:
            if path.exists() or not gone.exists():  # else an earlier try came so far
                os.rename(path, gone)
            sync_directory(self.path)
        except OSError as error:
            raise failed(f"removing {path}", error) from error
        return gone

    def _forget(self, directory: StagedDirectory) -> None:
        self._publish({name: left for name, left in self._directories.items() if left is not directory})
        with self._journals_lock:
            self._journals.pop(directory.id, None)
            self._newest = None

    def sync(self) -> None:
        """Make everything durable; damaged directories are passed over."""
        self._check()
        for directory in self.directories():
            if directory.damage is None:
                directory.sync()

    def close(self) -> None:
        """End all use, and let others in. Everything stays as it is on disk."""
        with self._lock:
            for directory in self._directories.values():
                directory.close("the staging area is closed")
            self._publish({})
            self._journals.clear()
            if self._lock_file >= 0:
                os.close(self._lock_file)
                self._lock_file = -1
            self.read_only = True


def _device(path: Path) -> int:
    """The disk a path is on, or will be once it is made. OSError."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return os.stat(path).st_dev


def _prepare(path: Path, url: str) -> int:
    """Make an area and lock it; the lock's descriptor. OSError, StagingLockedError."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StagingLockedError(
                f"process {owner} is writing to {url}: end it, or its mount, first ({path} is locked)",
                int(owner) if owner.isdecimal() else None,
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        if not (path / _URL).exists():
            (path / _URL).write_bytes(url.encode("utf-8", "surrogatepass") + b"\n")
        sync_directory(path)
        sync_directory(path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
