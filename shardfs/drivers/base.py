"""What a driver offers: the interface between the systems' formats and everything above them.

A driver is plain and synchronous: no trio, no FUSE; its methods may be called from several threads at once. It knows
what one system's stores look like, where a key's bytes are and how a record becomes a value tree. It knows nothing of
file names, caches or mounts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from shardfs.drivers.linked import Object
from shardfs.errors import NotWritableError
from shardfs.model import Entry, Key, Version
from shardfs.storage.base import Reader, Storage
from shardfs.values import Buffer, Tree

Grow = Callable[[int], None]
"""Told how many raw bytes a load holds so far, so that room can be made for them; called from the loading thread."""


@dataclass(slots=True)  # as good as frozen, which would make the making of it, once a sample, three times as long
class Record:
    """One sample in a shard: its run of raw bytes and its value tree."""

    start: int
    end: int
    tree: Tree


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A record to be written: the raw bytes that a shard of the same format has for it already."""

    data: Buffer


@dataclass(frozen=True, slots=True)
class Value:
    """A record to be written: a sample to encode."""

    sample: Any
    """Plain Python, as the system's own library gives it; a field may be a Cell."""
    name: str
    """What its files are called before the first dot, for messages."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One field's bytes as a shard of the same columns has them, not to be encoded again."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Files:
    """The sample of a `Value` for a driver that keeps samples as files: nothing in them is looked at."""

    key: str
    """The sample's own name."""
    files: tuple[tuple[str, bytes | Buffer | Cell], ...]
    """Suffix and content of each; a Cell is a member's bytes as the stored shard has them, headers included."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored sample of a driver that keeps samples as files."""

    key: str
    """Its own name, as stored."""
    members: list[tuple[str, int, int]]
    """Suffix, start and end in the raw bytes (headers included) of each file, in the order of the sample's files."""


NewRecord = Verbatim | Value

Note = Callable[[str], None]
"""Given a text before a write changes anything in the store, and another before that can be seen there; durably kept
when it returns, the last one is what `Driver.settle` wants. What it raises ends the write."""


class ShardReader(Protocol):
    """Random access to the raw bytes of one version of a shard, wherever they are. `part` and `decode` are called on
    the event loop, `fetch` in any number of worker threads at once."""

    @property
    def size(self) -> int:
        """Raw bytes of the whole shard: all positions are below it. Behind a shard's own bytes there may be positions
        of other objects of the storage (see drivers/linked.py)."""

    @property
    def held(self) -> int:
        """Bytes of memory held for it now."""

    @property
    def computes(self) -> bool:
        """True if `fetch` decompresses, False if it only waits for storage."""

    def part(self, start: int, end: int) -> Buffer | None:
        """The raw bytes from `start` to `end`, where they are at hand; None where getting them may take its time."""

    def fetch(self, start: int, end: int) -> Buffer:
        """The same, however long it takes. DamagedShardError, StaleShardError, StorageError."""

    def decode(self, record: Buffer) -> Tree:
        """The value tree of one whole record; its positions count from the record's beginning."""

    def expect(self) -> None:
        """Told that the shard may be wanted soon. In a worker; returns before anything is there."""

    def cells(self, record: Buffer) -> Mapping[Any, Buffer] | None:
        """The bytes of each field of one whole record, by its name in the tree; None where the format has fields only
        as parts of a text, and for a record that is no dict."""


@runtime_checkable
class Refilled(Protocol):
    """A ShardReader that can have parts made ready: it tells `refill`, in any thread, which range of raw bytes will be
    wanted next, and `hold` makes it ready in a worker, with the errors of `fetch`."""

    refill: Callable[[int, int], None]
    limit: int
    """Bytes that it keeps ready at most, and what was asked for last in any case: may be set lower by who has less."""

    def hold(self, start: int, end: int) -> None: ...


@runtime_checkable
class KeepsFiles(Protocol):
    """A Driver whose samples are files with names of their own (`values.Members`): what is written are `Files`."""

    keeps_files: bool


@runtime_checkable
class KeptFiles(Protocol):
    """A ShardReader of such a driver."""

    def check_kept(self) -> None:
        """NotWritableError where the shard cannot be written anew without losing something; the errors of `fetch`."""

    def kept(self, sample: int) -> Kept:
        """The sample of that number. The errors of `check_kept`."""


@runtime_checkable
class NamesSamples(Protocol):
    """A Shard whose system names its samples itself."""

    def stems(self) -> Iterable[str]:
        """The part before the first dot of the names of each sample's files, in the order of samples; no two alike."""


@runtime_checkable
class StoresObjects(Protocol):
    """A Driver whose shards are objects of a storage."""

    storage: Storage

    def objects(self, entry: Entry) -> list[tuple[str, Version]]:
        """Name and version of each stored object that loading a shard reads."""


@runtime_checkable
class Suspects(Protocol):
    """A Driver that can tell of many keys at once which may have changed, cheaper than by asking for each."""

    def suspects(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those of these entries that may not be what the store has now; in their order. What `changed` tells of need
        not be among them. StorageError."""


@runtime_checkable
class KeepsRaw(Protocol):
    """A Driver some of whose shards cost more to decompress than to read, so that their raw bytes are worth keeping."""

    def raw_name(self, entry: Entry) -> str | None:
        """The name of the stored object that such a shard is in; None for one that is not kept raw. Touches nothing."""

    def over_raw(self, entry: Entry, reader: Reader) -> ShardReader:
        """Random access to such a shard whose table is known, out of the raw bytes that loading it gave. Takes the
        reader over. Errors as `load`."""


@runtime_checkable
class LinksFiles(Protocol):
    """A Shard whose files may lie outside its records: in objects of their own, which several samples may refer to."""

    linked: bool

    def object_at(self, offset: int) -> Object:
        """The object that a position is in. DamagedShardError."""


@runtime_checkable
class WritesFiles(Protocol):
    """A Driver some of whose keys are directories, in which each file is stored by itself (`keeping` says how)."""

    def refused(self, key: Key) -> str | None:
        """Why nothing of a key may be changed, or made under that name; None where it may. Touches no storage."""

    def file_names(self, entry: Entry) -> frozenset[str]:
        """The files that a key is stored as. StorageError."""

    def serialised(self, value: Any) -> bytes:
        """A value as a file of its own. BadSettingError for what has no form."""

    def write_files(
        self, key: Key, put: Iterable[tuple[str, bytes]], gone: Iterable[str], *, base: Entry | None, note: Note
    ) -> Entry:
        """Have files (name and content) in a key, and those `gone` no longer: `write_records` for such keys, with what
        that says of `base`, `note` and errors."""


class Shard(ShardReader, Protocol):
    """A fetched and decompressed shard: one buffer of raw bytes and the rules to read it. Immutable."""

    @property
    def raw(self) -> Buffer: ...

    @property
    def first_sample(self) -> int:
        """Number of the first sample (0, or its position in the split for systems that number through)."""

    @property
    def samples_through(self) -> int | None:
        """Samples that share one numbering (a whole split), for the width of the numbers; None: this shard's."""

    def records(self) -> Iterator[Record]:
        """All samples in order. Raises DamagedShardError, also after the last one when something is left over."""

    def tree(self, start: int, end: int) -> Tree:
        """The value tree of the one record that `records` gave at `start` to `end`."""

    def sample(self, tree: Tree) -> Any:
        """The plain Python value of a tree, as the system's own library would give it."""


class InMemory:
    """What a shard whose raw bytes are all in memory answers as a ShardReader."""

    raw: Buffer
    computes = False

    @property
    def size(self) -> int:
        return len(self.raw)

    @property
    def held(self) -> int:
        return len(self.raw)

    def part(self, start: int, end: int) -> Buffer:
        return self.raw[start:end]

    def fetch(self, start: int, end: int) -> Buffer:
        return self.raw[start:end]

    def expect(self) -> None:
        """It is there."""

    def cells(self, record: Buffer) -> Mapping[Any, Buffer] | None:
        return None


@runtime_checkable
class Tidying(Protocol):
    """A Driver that can clean up behind writers that died, where nobody has noted what they were about."""

    def tidy(self) -> None:
        """Remove unfinished writes that the last `entries` came across and of which it is known that nobody goes on
        with them. What cannot be removed stays."""


class ReadOnly:
    """What a Driver answers that nothing can be written through."""

    writable = False
    appends = False
    why: str
    """The reason, for messages."""

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        raise NotWritableError(self.why)

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        raise NotWritableError(self.why)

    def settle(self, key: Key, noted: str) -> Entry | None:
        raise NotWritableError(self.why)

    def remove(self, key: Key) -> None:
        raise NotWritableError(self.why)


class Driver(Protocol):
    """One system's store, opened."""

    name: str
    """Name by which `--driver` asks for it."""
    writable: bool
    appends: bool
    """True if a new key comes behind all others, whatever its name: so several are to be written in their order."""
    reading: str
    """All settings that decide what a shard is shown as, in one text."""
    problems: list[str]
    """What of the store cannot be shown, and why; filled by `entries`."""

    def entries(self) -> list[Entry]:
        """A fresh listing of all shards, in the store's order. Touches no shard. StorageError, BadStoreError."""

    def changed(self) -> bool:
        """Whether `entries` may now say something else of which keys there are; cheap. StorageError."""

    def entry(self, key: Key) -> Entry:
        """The listing of one key, fresh. MissingKeyError."""

    def estimate(self, entry: Entry) -> int:
        """Raw bytes that loading will hold, as far as can be told cheaply; a hint."""

    def mark(self, entry: Entry) -> str:
        """A short text that tells the stored content of a shard apart from others, the same on every machine that has
        it. Reads all that is stored, but decompresses and decodes nothing. StorageError, StaleShardError."""

    def load(self, entry: Entry, grow: Grow) -> Shard:
        """Fetch, check and decompress one shard: exactly the version `entry` speaks of.

        Raises StaleShardError when the store holds another version by now, MissingKeyError, DamagedShardError,
        StorageError.
        """

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """Random access to a shard of `raw_bytes` whose table is known, without loading it; None where the format (or
        what must be checked first) does not allow it. Errors as `load`."""

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        """Store `samples` under `key`, replacing what is there: all or nothing. NotWritableError, ValueError."""

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        """Store a shard of these records under `key`: all or nothing, durable when it returns.

        With `base`, it replaces that version, and the store must still hold it: StaleShardError otherwise, and nothing
        is changed. Without, `key` must be new: KeyExistsError. Verbatim records must come out of a shard of the format
        and columns that are written. Also raises what iterating `records` raises, BadSettingError for what the format
        cannot hold, NotWritableError, StorageError (EFBIG: too large for one shard). After an error the store
        may have the records all the same (a directory that could not be synced), and after the writer's death too:
        `settle` with the last text that `note` was given tells.
        """

    def settle(self, key: Key, noted: str) -> Entry | None:
        """How a write of `key` ended that failed, or whose process died: the key's entry if the store has just what was
        written, durably then; None if not. What such a write left behind is removed. StorageError, BadStoreError,
        StaleShardError: not settled, to be asked again. Not while the write is still going on."""

    def remove(self, key: Key) -> None:
        """Remove a key. MissingKeyError, NotWritableError."""
