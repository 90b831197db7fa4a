"""Bytes under names in a local directory. Knows nothing of what they mean.

No symbolic link is followed below the root (local_root.py walks the paths); only regular files are listed or opened, so
that a FIFO named like a shard hangs nobody. Reading never writes. Writing is: temporary file in the same directory,
fsync, rename, fsync of the directory.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from shardfs import config
from shardfs.errors import BadStoreError, StaleShardError, StorageError
from shardfs.model import Version
from shardfs.storage import renaming, temporaries
from shardfs.storage.base import Listed as Listed
from shardfs.storage.local_reader import LocalReader
from shardfs.storage.local_root import PASSED_OVER, LocalRoot, check_name, status_of
from shardfs.storage.temporaries import TEMPORARY, temporary_name

log = logging.getLogger("shardfs")

Listing = list[Listed]
Names = list[str]


def version_of(status: os.stat_result) -> Version:
    """What tells one content of a file from another."""
    # ctime too: mtime can be set back, as `cp -p` and `rsync -t` do to what they overwrite in place
    return Version(f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}")


def _await_write(descriptor: int) -> None:
    """Wait for the end of a write into an opened file that had begun when its times were looked at.

    They change when a write begins, and not again at its end: what is read in its middle would be taken for the new
    content. Looking for data takes the lock that a write holds, on ext4, btrfs and tmpfs; on XFS reading does.
    """
    with contextlib.suppress(OSError):  # there is none, or the file system cannot tell
        os.lseek(descriptor, 0, os.SEEK_DATA)


def _settled_mtime(status: os.stat_result) -> int:
    """A directory's mtime; -1 while it is so young that another change might still get the same one."""
    young = time.time_ns() - status.st_mtime_ns < 50_000_000
    return -1 if young else status.st_mtime_ns


class LocalStorage:
    """A directory. `root` may itself be a symbolic link; nothing below it is followed.

    Raises BadStoreError if `root` exists and is no directory. A root that does not exist is an empty storage until
    something is put.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()
        if os.path.exists(self.root) and not os.path.isdir(self.root):
            raise BadStoreError(f"{self.root} is no directory")
        self._seen: dict[str, int] = {}
        self._unfinished: list[str] = []
        self._root = LocalRoot(self.root)

    def list(self, suffixes: tuple[str, ...], *, temporary: bool = False, aside: bool = False) -> list[Listed]:
        """All regular files whose name ends in one of `suffixes`, at any depth, sorted by name; with `temporary` the
        unfinished writes. A listing made `aside` is none that `changed` compares with. StorageError."""
        found: list[Listed] = []
        seen: dict[str, int] = {}
        unfinished: list[str] = []
        pending = [""]
        while pending:
            prefix = pending.pop()
            try:
                descriptor = self._root.open_directory(prefix.rstrip("/"))
            except StorageError as error:
                if error.errno == errno.ENOENT or (prefix and error.errno in PASSED_OVER):
                    continue  # gone or replaced since its name was read, or not ours to read, as a lost+found is
                raise
            try:
                seen[prefix] = _settled_mtime(os.fstat(descriptor))
                pending.extend(self._scan(descriptor, prefix, suffixes, found, unfinished, temporary))
            except OSError as error:
                raise self._root.error(f"listing {prefix or '.'}", error) from error
            finally:
                os.close(descriptor)
        if not (temporary or aside):
            self._seen = seen
        self._unfinished = unfinished
        return sorted(found, key=lambda listed: listed.name)

    def files_in(self, directory: str) -> Listing:
        """The regular files right in one directory below the root, sorted by name. StorageError."""
        found: Listing = []
        descriptor = self._root.open_directory(directory)
        try:
            for _ in self._scan(descriptor, f"{directory}/" if directory else "", ("",), found, []):
                pass
        except OSError as error:
            raise self._root.error(f"listing {directory}", error) from error
        finally:
            os.close(descriptor)
        return sorted(found, key=lambda listed: listed.name)

    def _scan(
        self,
        descriptor: int,
        prefix: str,
        suffixes: tuple[str, ...],
        found: Listing,
        unfinished: Names,
        temporary: bool = False,
    ) -> Iterator[str]:
        """Adds the files of one directory, and gives the directories in it. OSError."""
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    yield name + "/"
                    continue
                ours = entry.name.startswith(TEMPORARY)
                if ours:
                    unfinished.append(name)
                if ours == temporary and name.endswith(suffixes):
                    status = status_of(descriptor, entry.name)
                    if status is not None:
                        found.append(Listed(name, status.st_size, status.st_mtime_ns, version_of(status)))

    def changed(self) -> bool:
        """True if a name may have come, gone or been replaced since the last `list`. Costs a stat per directory.

        A file that was overwritten in place does not show here. StorageError.
        """
        if not self._seen:
            return True
        for prefix, mtime_ns in self._seen.items():
            try:
                status = os.stat(self.root / prefix)
            except FileNotFoundError:
                return True
            except OSError as error:
                raise self._root.error(f"looking at {prefix or '.'}", error) from error
            if status.st_mtime_ns != mtime_ns:
                return True
        return False

    def stat(self, name: str) -> Listed:
        """What the listing says of one file. StorageError with ENOENT where there is no regular file of that name."""
        with self._root.parent(name) as (descriptor, last):
            status = status_of(descriptor, last)
        if status is None:
            raise StorageError(f"no such file: {name}", errno.ENOENT)
        return Listed(name, status.st_size, status.st_mtime_ns, version_of(status))

    def outdated(self, objects: Sequence[tuple[str, Version]]) -> set[str]:
        """The names of those of these files that are not there in this version now, or cannot be looked at: a look at
        each of a directory's files by its one descriptor, which is a fifth of what `stat` of each takes."""
        found: set[str] = set()
        by_directory: dict[str, list[tuple[str, Version]]] = {}
        for name, version in objects:
            by_directory.setdefault(name.rpartition("/")[0], []).append((name, version))
        for path, files in by_directory.items():
            try:
                descriptor = self._root.open_directory(path)
            except StorageError:  # which it is, is said to who looks at each
                found.update(name for name, _ in files)
                continue
            try:
                found.update(name for name, version in files if self._differs(descriptor, name, version))
            finally:
                os.close(descriptor)
        return found

    @staticmethod
    def _differs(directory: int, name: str, version: Version) -> bool:
        try:
            status = os.stat(name.rpartition("/")[2], dir_fd=directory, follow_symlinks=False)
        except (OSError, ValueError):
            return True
        return version_of(status) != version or not stat.S_ISREG(status.st_mode)

    def open(self, name: str, version: Version | None = None) -> LocalReader:
        """Open one file for reading; with `version`, exactly that content or StaleShardError. StorageError."""
        descriptor = self._open(name)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or (version is not None and version_of(status) != version):
            os.close(descriptor)
            if stat.S_ISREG(status.st_mode):
                raise StaleShardError(f"{self.root / name} was replaced since it was listed")
            raise StorageError(f"{self.root / name} is no regular file", errno.EINVAL)
        _await_write(descriptor)
        return LocalReader(descriptor, str(self.root / name), status)

    def at_hand(self, name: str, version: Version) -> bool:
        return True

    def mark(self, name: str, version: Version | None = None) -> str:
        """A hash of one file's whole content. Less would not do: parts may change and size and ends stay."""
        with self.open(name, version) as reader:
            return _mark(reader)

    def _open(self, name: str) -> int:
        with self._root.parent(name) as (directory, last):
            try:
                # O_NONBLOCK: opening a FIFO must not wait for somebody to write into it
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                return os.open(last, flags, dir_fd=directory)
            except OSError as error:
                raise self._root.error(f"opening {name}", error) from error

    @contextlib.contextmanager
    def directory(self, path: str, make: bool = False) -> Iterator[int]:
        """A descriptor of a directory below the root; with `make` it is made where it is missing. StorageError."""
        check_name(self.root, path)
        if make:
            self._root.make(path)
        descriptor = self._root.open_directory(path, make)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def remove_directory(self, path: str) -> None:
        """Remove all files right in a directory, and it if nothing else is in it, durably. StorageError."""
        for listed in self.files_in(path):
            self.remove(listed.name)
        with self._root.parent(path) as (above, last):
            try:
                os.rmdir(last, dir_fd=above)
                os.fsync(above)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise self._root.error(f"removing {path}", error) from error

    def read(self, name: str, limit: int) -> bytes:
        """A whole small file. StorageError, EFBIG above `limit` bytes."""
        with self.open(name) as reader:
            if reader.size > limit:
                raise StorageError(f"{self.root / name} has {reader.size} bytes, over {limit}", errno.EFBIG)
            pieces = []
            while piece := reader.read(1 << 20):
                pieces.append(piece)
            return b"".join(pieces)

    def make_directory(self, path: str) -> None:
        """Make a directory below the root (nothing: the root itself), durably, unless it is there. StorageError."""
        self._root.make(path or "the directory")
        os.close(self._root.open_directory(path.rstrip("/"), make=True))

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
        held: ExitStack | None = None,
    ) -> Listed:
        """Make `name` hold what `write` writes into a new file (which it may also read), all or nothing, durably;
        directories are made. What the listing says of it then. StorageError, EEXIST without `replace` where there is
        such a name.

        `check` is called when all is written and only the rename is left; between the two no other writer of this kind
        changes anything in that directory. With `expected` the name must hold that version then: StaleShardError.
        `marked` is called before both with what `mark` will say of the content. An exception of any of them leaves the
        old content and passes on. While it is written, and until `held` is closed, `discard` leaves the file alone.
        `temporary` (made by `temporary_name`) is the name until then: who knows it can clean up behind a process that
        died, with `remove_temporary`.
        """
        check_name(self.root, name)
        self._root.make(f"the directory of {name}")
        with self._root.parent(name, make=True) as (directory, last):
            temporary = temporary or temporary_name()
            try:
                descriptor = temporaries.create(directory, temporary)  # held until it has its name
                with open(descriptor, "w+b") as file:
                    if held is not None:
                        held.callback(os.close, os.dup(descriptor))
                    written = self._written(file, directory, temporary, write, marked)
                    with renaming.locked(directory):
                        check()
                        self._check_expected(directory, last, name, expected)
                        renaming.rename(directory, temporary, last, replace)
                        status = os.stat(last, dir_fd=directory, follow_symlinks=False)
                os.fsync(directory)
                if status.st_ino != written.st_ino and (status.st_size, status.st_mtime_ns) != (
                    written.st_size,
                    written.st_mtime_ns,
                ):
                    raise StaleShardError(f"{name} was replaced as soon as it was written")
                return Listed(name, status.st_size, status.st_mtime_ns, version_of(status))
            except BaseException as error:
                with contextlib.suppress(OSError):  # what failed is what the caller is told, and not this
                    os.unlink(temporary, dir_fd=directory)
                if isinstance(error, OSError) and not isinstance(error, StorageError):
                    raise self._root.error(f"writing {name}", error) from error
                raise

    def _written(
        self,
        file: BinaryIO,
        directory: int,
        temporary: str,
        write: Callable[[BinaryIO], None],
        marked: Callable[[str], None] | None,
    ) -> os.stat_result:
        write(file)
        file.flush()
        if marked is None:
            os.fsync(file.fileno())
        else:
            from concurrent.futures import ThreadPoolExecutor  # here: who only reads never needs it

            with ThreadPoolExecutor(1, "shardfs-mark") as pool:  # the disk takes about as long as the mark
                mark = pool.submit(self._mark_of, directory, temporary)
                os.fsync(file.fileno())
            marked(mark.result())
        return os.fstat(file.fileno())

    def _check_expected(self, directory: int, last: str, name: str, expected: Version | None) -> None:
        if expected is not None:
            status = status_of(directory, last)
            if status is None or version_of(status) != expected:
                raise StaleShardError(f"{name} was replaced in {self.root} meanwhile")

    def _mark_of(self, directory: int, name: str) -> str:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        with LocalReader(descriptor, str(self.root / name), os.fstat(descriptor)) as reader:
            return _mark(reader)

    def remove_dead(self) -> None:
        """Remove the unfinished writes that the last `list` came across, those of which it is known that they are this
        user's and that nobody goes on with them."""
        unfinished, self._unfinished = self._unfinished, []
        for name in unfinished:
            try:
                with self._root.parent(name) as (directory, last):
                    if temporaries.remove_dead(directory, last):
                        log.info("removed %s, which a writer that died had left in %s", name, self.root)
            except (OSError, StorageError) as error:
                log.info("%s in %s stays: %s", name, self.root, error)

    def remove_temporary(self, beside: str, temporary: str) -> None:
        """Remove what a `put` of the file `beside` left under its temporary name, if anything. StorageError."""
        if not temporary.startswith(TEMPORARY) or "/" in temporary:
            raise StorageError(f"not a temporary name: {temporary!r}", errno.EINVAL)
        try:
            self.remove(f"{beside.rpartition('/')[0]}/{temporary}".lstrip("/"))
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise

    def forget_temporary(self, beside: str, temporary: str) -> None:
        """The same, if it can be done now: else it is left to `remove_dead`."""
        try:
            self.remove_temporary(beside, temporary)
        except StorageError as error:
            log.info("%s may be left: %s", temporary, error)

    def sync(self, name: str) -> None:
        """Make a file that is there durable, and its name. StorageError."""
        with self._root.parent(name) as (directory, last):
            try:
                descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                os.fsync(directory)
            except OSError as error:
                raise self._root.error(f"syncing {name}", error) from error

    def remove(self, name: str) -> None:
        """Remove one file, durably. StorageError, ENOENT where there is none."""
        with self._root.parent(name) as (directory, last):
            try:
                os.unlink(last, dir_fd=directory)
                os.fsync(directory)
            except OSError as error:
                raise self._root.error(f"removing {name}", error) from error

    def discard(self, name: str, version: Version, check: Callable[[], None] = lambda: None) -> None:
        """Remove a file that is still this version, durably. `check` is called right before that, and what it raises
        keeps the file. StaleShardError; StorageError, EBUSY for one that a writer of this kind has not ended with."""
        with self._root.parent(name) as (directory, last), open(self._open(name), "rb") as file:
            if version_of(os.fstat(file.fileno())) != version:
                raise StaleShardError(f"{name} is another file than it was")
            if not temporaries.unheld(file.fileno()):
                raise StorageError(f"{name} is just being written", errno.EBUSY)
            check()
            try:
                os.unlink(last, dir_fd=directory)
                os.fsync(directory)
            except OSError as error:
                raise self._root.error(f"removing {name}", error) from error


def touched_ns(listed: Listed) -> int:
    """When a file was last written, renamed or given other attributes, as far as a listing tells: its later time."""
    return max(int(part, 16) for part in listed.version.split("-")[2:])


def _mark(reader: LocalReader) -> str:
    made = hashlib.blake2b(digest_size=16)
    while piece := reader.read(config.READ_SLICE):
        made.update(piece)
    return made.hexdigest()


__all__ = ["TEMPORARY", "Listed", "LocalStorage", "temporary_name"]
