"""A directory of cached files with a size limit, shared by threads and by processes. Knows nothing of what they hold.

    <root>/<2 hex>/<id>.data     the content
                  /<id>.about    what it is, its size and CRC-32, as a line of JSON, written before the content is
                                 there; its time is that of the last use (the content's own must not change under
                                 its readers), its mode says whether that was the first
                  /<id>.<pid>-<thread>  the content while it comes
                  /<id>.lock     while somebody brings it: flock, which dies with its owner
          /pins/<hash>           store and pattern of names that are to stay
          /lock                  flock, while room is made
          /size                  bytes of all files, or more: what was to be brought and was not counts until the next
                                 look at all of them, which is when the limit is reached

Everything is found by looking, so nothing has to be recovered after a death. A file is renamed into place when it is
complete; a machine that died may all the same have left it without its bytes, so what was brought under another boot is
compared with its CRC-32 when it is first used.

Which files go: first those that were used once, drawn at random, so that reading more than fits, again and again, keeps
a part of it (the oldest first would lose each one just before it is wanted); then those used again, oldest first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import random
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shardfs import config
from shardfs.errors import StorageError
from shardfs.storage.descriptions import About, Summed, about_of, beside, content_sum, describe, told_of
from shardfs.storage.pins import Pins, is_pinned

log = logging.getLogger("shardfs")

_USED_AGAIN = stat.S_IXUSR
"""Mode bit of the description of a file that was used after it was brought."""


_TEMPORARY = re.compile(r"[0-9a-f]{40}\.[0-9]+-[0-9]+")
"""A file that is being brought: as large as it will be, from the beginning."""


@dataclass(frozen=True, slots=True)
class Cached:
    """A cached file, as a look at the directory finds it."""

    about: About
    path: Path
    size: int
    used_ns: int
    again: bool
    pinned: bool


class CacheFiles:
    """The files below `root`, `limit` bytes at most, as long as `min_free` bytes of the disk stay free."""

    def __init__(self, root: Path, limit: int, min_free: int = config.CACHE_MIN_FREE) -> None:
        self.root = root
        self.limit = limit
        self.min_free = min_free
        self._pins = Pins(root / "pins")
        self.hits = self.misses = self.evicted = 0
        self._lock = threading.Lock()
        self._checked: set[str] = set()
        self._warned = False

    # --- one file -----------------------------------------------------------------------------------------------------

    def find(self, about: About) -> Path | None:
        """The file, marked as used now; None where it is not there, or not what it should be."""
        path = self._path(about.id)
        try:
            status = os.stat(path)
        except OSError:
            return None
        if about.id not in self._checked:
            if not self._is_sound(about, path, status.st_size):
                self._remove(path)
                return None
            self._checked.add(about.id)
        with contextlib.suppress(OSError):  # evicted meanwhile, or a disk that is read-only now
            about_path = beside(path)
            if time.time_ns() - status.st_mtime_ns > config.CACHE_AGAIN_NS:
                os.utime(about_path)
                os.chmod(about_path, 0o600 | _USED_AGAIN)
        return path

    def has(self, about: About) -> bool:
        """Whether the file is there, without looking into it or counting that as a use."""
        return self._path(about.id).exists()

    @contextlib.contextmanager
    def bringing(self, about: About, deadline: float) -> Iterator[bool]:
        """Held by one thread of one process at a time. Gives True if the file is to be brought, False where the cache
        cannot work. StorageError, ETIMEDOUT, if somebody else holds it for longer than `deadline` seconds."""
        path = self._path(about.id).with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = self._locked(path, deadline)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            self._warn(error)
            yield False
            return
        try:
            yield True
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(descriptor)

    @staticmethod
    def _locked(path: Path, deadline: float) -> int:
        end, pause = time.monotonic() + deadline, 0.001
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:
                    return descriptor
            except BlockingIOError:
                if time.monotonic() >= end:
                    os.close(descriptor)
                    raise StorageError("another process is bringing it for too long", errno.ETIMEDOUT) from None
                time.sleep(pause)
                pause = min(2 * pause, 0.05)
            os.close(descriptor)

    def keep(self, about: About, size: int, write: Callable[[Summed], None]) -> Path | None:
        """Keep what `write` writes, `size` bytes; None, and a warning once, where the disk does not take it. What
        `write` raises passes on, and nothing is kept."""
        path = self._path(about.id)
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._warn(error)
            return None
        try:
            os.ftruncate(descriptor, size)  # now, so that whoever makes room meanwhile sees what there will be
            self.make_room(size, mine=temporary)
        except OSError as error:
            os.close(descriptor)
            self._remove(temporary)
            self._warn(error)
            return None
        try:
            with open(descriptor, "wb", buffering=0) as file:
                summed = Summed(file)
                write(summed)
                if summed.size != size:
                    raise StorageError(f"{about.name}: {summed.size} bytes came where there should be {size}")
                describe(path, about, size, summed.sum)
            os.rename(temporary, path)
        except OSError as error:
            self._not_kept(temporary, size)
            if isinstance(error, StorageError):
                raise
            self._warn(error)
            return None
        except BaseException:
            self._not_kept(temporary, size)
            raise
        self._checked.add(about.id)
        return path

    def _not_kept(self, temporary: Path, size: int) -> None:
        self._remove(temporary)
        with contextlib.suppress(OSError), self._lock, self._room_lock():
            told = self._told_size()
            if told is not None:
                self._tell_size(max(0, told - size))

    def _is_sound(self, about: About, path: Path, size: int) -> bool:
        """Whether a file is what its description says; its bytes are looked at if the machine has started since."""
        told = told_of(path)
        if told is None or told["size"] != size or about_of(told) != about:
            return False
        if told["boot"] == config.boot_id():
            return True
        try:
            with open(path, "rb") as file:
                if content_sum(file) != told["crc"]:
                    return False
            describe(path, about, size, told["crc"])
        except OSError:
            return False
        return True

    def drop(self, about: About) -> None:
        """Remove one file, if it is there."""
        self._checked.discard(about.id)
        self._remove(self._path(about.id))

    def _path(self, id: str) -> Path:
        return self.root / id[:2] / f"{id}.data"

    def _remove(self, path: Path) -> None:
        for gone in (path, beside(path)):
            with contextlib.suppress(OSError):
                os.unlink(gone)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            log.warning("the cache on disk at %s cannot be used: %s", self.root, error.strerror or error)
        self._warned = True

    # --- all of them --------------------------------------------------------------------------------------------------

    def entries(self) -> list[Cached]:
        """All files, in no order. OSError where they cannot be listed."""
        pins = self.pins()
        found = []
        for path in self._data():
            told = told_of(path)
            try:
                status = os.stat(path)
                use = status if told is None else os.stat(beside(path))
            except OSError:
                continue
            if told is None:
                if time.time_ns() - status.st_mtime_ns > config.CACHE_ORPHAN_NS:
                    self._remove(path)
                continue
            about = about_of(told)
            pinned = is_pinned(pins, about.store, about.name)
            again = bool(use.st_mode & _USED_AGAIN)
            found.append(Cached(about, path, status.st_size, use.st_mtime_ns, again, pinned))
        return found

    def _folders(self) -> list[str]:
        try:
            return [entry.path for entry in os.scandir(self.root) if len(entry.name) == 2]
        except FileNotFoundError:
            return []

    def _data(self) -> Iterator[Path]:
        for folder in self._folders():
            with contextlib.suppress(FileNotFoundError):
                yield from (Path(entry.path) for entry in os.scandir(folder) if entry.name.endswith(".data"))

    def _coming(self, mine: Path | None) -> int:
        """Bytes of all files that are being brought, but for `mine`. What dead ones have left is removed."""
        size = 0
        for folder in self._folders():
            for entry in os.scandir(folder):
                if not _TEMPORARY.fullmatch(entry.name) or entry.path == str(mine):
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    size += status.st_size
                    if time.time_ns() - status.st_mtime_ns > config.CACHE_ORPHAN_NS:
                        os.unlink(entry.path)
                        size -= status.st_size
        return size

    def make_room(self, size: int, *, exactly: bool = False, mine: Path | None = None) -> int:
        """Remove files until `size` more bytes fit; returns how many bytes were removed. Never what is pinned. OSError.

        `mine` is the file that they will be in, if it is there already. With `exactly` all files are looked at,
        whatever was noted of them. Where nothing more can go, what is asked for is kept all the same, if the disk has
        room: one shard always is.
        """
        with self._lock, self._room_lock():
            told, free = self._told_size(), self._free()
            if not exactly and told is not None and told + size <= self.limit and free - size >= self.min_free:
                self._tell_size(told + size)
                return 0
            entries = self.entries()
            held = sum(entry.size for entry in entries) + self._coming(mine)
            wanted = max(held + size - self.limit, self.min_free + size - free)
            if wanted > 0 and len(entries) > config.CACHE_MANY:
                wanted += self.limit // config.CACHE_STEPS
            removed = 0
            for entry in _victims(entries, self.limit) if wanted > 0 else ():
                if removed >= wanted:
                    break
                self._remove(entry.path)
                self._checked.discard(entry.about.id)
                removed += entry.size
                self.evicted += 1
            self._tell_size(held - removed + size)
            if free + removed < self.min_free + size:
                left, kept = free >> 20, self.min_free >> 20
                raise OSError(errno.ENOSPC, f"the disk has {left} MiB left, of which {kept} MiB stay free")
            return removed

    def held(self) -> int | None:
        """Bytes of all files, of all stores, as far as that is known; never less than there are."""
        return self._told_size()

    def _told_size(self) -> int | None:
        """Bytes of all files, and of those that are being brought, as was last noted; never less than there are."""
        try:
            return int((self.root / "size").read_text())
        except (OSError, ValueError):
            return None

    def _tell_size(self, size: int) -> None:
        (self.root / "size").write_text(str(size))

    def _free(self) -> int:
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    @contextlib.contextmanager
    def _room_lock(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def clear(self, store: str | None = None) -> int:
        """Remove all files (of one store) that are not pinned; returns their bytes."""
        gone = [entry for entry in self.entries() if not entry.pinned and store in (None, entry.about.store)]
        for entry in gone:
            self._remove(entry.path)
            self._checked.discard(entry.about.id)
        self._count_anew()
        return sum(entry.size for entry in gone)

    def _count_anew(self) -> None:
        """Have `held` tell what there is, after files went that were not to make room."""
        with contextlib.suppress(OSError), self._lock, self._room_lock():
            self._tell_size(sum(entry.size for entry in self.entries()) + self._coming(None))

    def verify(self) -> list[Cached]:
        """Compare every file with its CRC-32; those that differ are removed, and returned."""
        bad = []
        for entry in self.entries():
            told = told_of(entry.path)
            try:
                with open(entry.path, "rb") as file:
                    sound = told is not None and told["size"] == entry.size and content_sum(file) == told["crc"]
            except FileNotFoundError:
                continue
            except OSError:
                sound = False
            if not sound:
                self._remove(entry.path)
                bad.append(entry)
        if bad:
            self._count_anew()
        return bad

    # --- what is to stay ----------------------------------------------------------------------------------------------

    def pin(self, store: str, glob: str) -> None:
        """See `Pins.add`. OSError."""
        self._pins.add(store, glob)

    def unpin(self, store: str, glob: str) -> None:
        """See `Pins.remove`. BadSettingError."""
        self._pins.remove(store, glob)

    @staticmethod
    def is_pinned(store: str, name: str, pins: list[tuple[str, str]]) -> bool:
        """Whether a file of a store is to stay, as `pins` has it."""
        return is_pinned(pins, store, name)

    def pins(self) -> list[tuple[str, str]]:
        """Store and pattern of each pin."""
        return self._pins.all()


def _victims(entries: list[Cached], limit: int) -> list[Cached]:
    """What may go, in the order in which it goes."""
    free = [entry for entry in entries if not entry.pinned]
    again = sorted((entry for entry in free if entry.again), key=lambda entry: entry.used_ns)
    once = [entry for entry in free if not entry.again]
    random.shuffle(once)
    # so much of the cache at most for what was used again: else what is new could not stay to be used again
    over = sum(entry.size for entry in again) - limit * config.CACHE_AGAIN_SHARE // 100
    first: list[Cached] = []
    while again and over > 0:
        first.append(again.pop(0))
        over -= first[-1].size
    return first + once + again
