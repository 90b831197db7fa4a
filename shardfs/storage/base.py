"""What a storage offers: bytes under names, wherever they are. Knows nothing of what they mean.

Plain and synchronous; any number of threads may use one storage at once. Names are relative to the storage's root, `/`
between levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Protocol, Self, runtime_checkable

from shardfs.model import Version


@dataclass(frozen=True, slots=True)
class Listed:
    """One stored object."""

    name: str
    """Path relative to the root, `/` between levels."""
    size: int
    mtime_ns: int
    version: Version


class Reader(Protocol):
    """One stored object of one version, opened. What it gives is of that version, or an error."""

    size: int

    def read(self, count: int) -> bytes:
        """The next bytes, up to `count`; none at the end. StorageError, StaleShardError."""

    def readinto(self, view: memoryview) -> int:
        """Fills the beginning of `view` with the next bytes, as `read`, and returns how many; 0 at the end."""

    def read_at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes from `offset`, whatever was read before. For any number of threads at once.

        StaleShardError where the object has another content by now, StorageError.
        """

    def cached_at(self, offset: int, count: int) -> memoryview | None:
        """The same where it is at hand without any waiting; None where it is not. On the event loop."""

    def advise(self) -> None:
        """Told that all of it may be wanted soon; returns before it is there."""

    def tail(self, count: int) -> bytes:
        """The last bytes, up to `count`; a hint, of which nobody checks the version."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Storage(Protocol):
    """Objects under names."""

    @property
    def root(self) -> object:
        """What it is called in messages."""

    def list(self, suffixes: tuple[str, ...]) -> list[Listed]:
        """All objects whose name ends in one of `suffixes`, at any depth, sorted by name. StorageError."""

    def changed(self) -> bool:
        """True if a name may have come, gone or been replaced since the last `list`; cheap. StorageError."""

    def stat(self, name: str) -> Listed:
        """What the listing says of one object. StorageError, ENOENT where there is none of that name."""

    def open(self, name: str, version: Version | None = None) -> Reader:
        """Open one object for reading; with `version`, exactly that content or StaleShardError. StorageError."""

    def at_hand(self, name: str, version: Version) -> bool:
        """Whether the bytes of that version can be read without asking another machine for them."""

    def mark(self, name: str, version: Version | None = None) -> str:
        """A hash of one object's whole content, the same on every machine and storage that has it."""

    def read(self, name: str, limit: int) -> bytes:
        """A whole small object. StorageError, EFBIG above `limit` bytes."""

    def make_directory(self, path: str) -> None:
        """Make a directory below the root (nothing: the root itself), durably, unless it is there or there is no such
        thing in this storage. StorageError."""

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
        """Make `name` hold what `write` writes into a new file (which it may also read), all or nothing, durably.
        What the listing says of it then. StorageError, EEXIST without `replace` where there is such a name.

        `check` is called when all is written and only the naming is left. With `expected` the name must still hold that
        version: StaleShardError. `marked` is called before with what `mark` will say of the content. An exception of
        any of them leaves the old content and passes on. `temporary` (made by `temporary_name`) is the name that parts
        of it may have until then: who knows it can clean up behind a process that died, with `remove_temporary`.
        """

    def remove_temporary(self, beside: str, temporary: str) -> None:
        """Remove what a `put` of the object `beside` left under its temporary name, if anything. StorageError."""

    def forget_temporary(self, beside: str, temporary: str) -> None:
        """The same, if it can be done now: else it is left to `remove_dead`."""

    def remove_dead(self) -> None:
        """Remove unfinished writes that the last `list` came across and of which it is known that nobody goes on with
        them. What cannot be removed stays."""

    def sync(self, name: str) -> None:
        """Make an object that is there durable, and its name. StorageError."""

    def remove(self, name: str) -> None:
        """Remove one object, durably. StorageError, ENOENT where there is none."""


@runtime_checkable
class Conditional(Protocol):
    """A Storage far away, whose `put` is as atomic as the store lets it be."""

    def compares(self) -> bool:
        """Whether the store keeps to conditions (`replace=False`, `expected`), tried out with an object of its own. If
        not, whoever writes last wins. StorageError."""
