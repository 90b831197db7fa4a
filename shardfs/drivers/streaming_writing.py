"""New shards in a data set of MosaicML Streaming: files under new names, and then a new index.json that names them.

A shard's file is never written over: readers cache by name and do not look again. What has been written counts from
the rename of index.json on; before it, nobody sees it, and shards that were superseded stay for those who still read
them. Knows nothing of reading; encoding is the business of mds_writing.py. Source of all format facts: what
mosaicml-streaming 0.13.0 writes and reads, found by running it.

The index is read again and edited when all shards are written, and replaced under a lock of its directory (flock) if
it is still what was read: two writers of this kind lose nothing. In a store far away the index is put on the
condition that it is (If-Match). A program that writes index.json without that lock (the library's MDSWriter and
merge_index do, in place) can lose its own change or this one if it writes in the very moment between the look and the
rename; the shards of the loser are still there then, but not in the index.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

from shardfs import compression, config
from shardfs.drivers import mds, mds_writing
from shardfs.drivers.base import NewRecord, Note, Verbatim
from shardfs.drivers.hashes import HASHES, hasher
from shardfs.drivers.streaming_index import BadIndexError, parse_index
from shardfs.drivers.streaming_names import INDEX
from shardfs.drivers.streaming_settings import codec_of
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    MissingExtraError,
    ShardfsError,
    StaleShardError,
    StorageError,
)
from shardfs.storage.base import Listed, Storage
from shardfs.storage.local import LocalStorage, temporary_name

log = logging.getLogger("shardfs")


T = TypeVar("T")

Described = dict[str, Any]
"""One shard in an index."""


TOO_ALIKE = "too many samples so much alike for one key: they could not be read again"
"""Why shards are refused whose content would be taken for an attack when they are read."""


class _IndexMovedError(Exception):
    """The index is not what it was when it was read."""


@dataclass
class Publication:
    """Shards on their way into one split. `split` is its directory with a `/` behind it, or nothing; `note` is told of
    every file before it is there, as `Driver.write_records` says."""

    storage: Storage
    split: str
    note: Note | None = None
    made: list[Described] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)
    """Of what was written: name -> mark of its content."""
    temporary: str = field(default_factory=temporary_name)
    held: ExitStack = field(default_factory=ExitStack)
    """Keeps what was written from being taken for garbage until the index names it."""
    twins: list[str] = field(default_factory=list)
    """Splits below this one whose indexes are to have the same afterwards."""
    replaces: str | None = None
    """The shard that goes when these come."""
    index: bytes = b""
    """The index that named them first."""
    uncertain: bool = False
    """True while an index that was sent may still come to be there."""

    @property
    def local(self) -> bool:
        return isinstance(self.storage, LocalStorage)

    @property
    def scratch(self) -> str | None:
        """The directory for what is too large for memory: None for the system's own."""
        return str(self.storage.root) if self.local else None

    def begin(self) -> None:
        """To be called before anything is written."""
        self._note()

    def _note(self) -> None:
        if self.note is not None:
            told = {"split": self.split, "temporary": self.temporary, "files": self.marks}
            self.note(json.dumps({**told, "twins": self.twins, "replaces": self.replaces}))

    def read_index(self) -> tuple[Listed | None, Described]:
        """The index and what the listing says of it; an empty one where there is none.
        BadStoreError for a doubtful one."""
        name = self.split + INDEX
        try:
            listed = self.storage.stat(name)
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            return None, {"shards": [], "version": 2}
        data = self.storage.read(name, config.STREAMING_INDEX)
        try:
            parse_index(data, self.split)
        except BadIndexError as error:
            raise BadStoreError(f"{name}: {error}, so nothing is added to it") from error
        return listed, json.loads(data)

    def write_shards(
        self,
        records: Iterable[NewRecord],
        template: Described | None,
        limit: int | None,
        stems: Iterator[str],
        given: mds.Columns | None = None,
    ) -> None:
        """Write all records as shards with the settings of `template` (None: those of a new data set), a new one where
        `limit` bytes would be exceeded, called by `stems` in turn. Columns are those `given`, else the template's, else
        made for the first record. StorageError, EFBIG for 4 GiB in one."""
        self.begin()
        records = iter(records)
        first = next(records, None)
        if first is None:
            raise BadSettingError("no samples: an MDS shard without any is nothing that the library can read")
        known = template is not None and "column_names" in template
        made = given or (template_columns(template) if template is not None and known else _inferred(first))
        shard = _settings(template, made)
        description = mds_writing.description(shard)
        numbered = (_packed(record, made) for record in itertools.chain((first,), records))
        self.storage.make_directory(self.split)
        with ExitStack() as stack:
            raw = stack.enter_context(mds_writing.RawShard(description, self.scratch))
            for record in numbered:
                size = raw.size_with(len(record))
                if limit is not None and len(raw) and size > limit:
                    self._store(raw, shard, stems)
                    raw.__exit__()
                    raw = stack.enter_context(mds_writing.RawShard(description, self.scratch))
                    size = raw.size_with(len(record))
                if size > config.MDS_SHARD:
                    raise StorageError("4 GiB or more in one MDS shard, which has no room for them", errno.EFBIG)
                raw.add(record)
            self._store(raw, shard, stems)

    def _store(self, raw: mds_writing.RawShard, shard: Described, stems: Iterator[str]) -> None:
        raw_data, zip_data = self.put_free(stems, lambda stem: self.put(f"{stem}.mds", raw.pieces(), raw.size, shard))
        stored = raw_data["bytes"] if zip_data is None else zip_data["bytes"]
        if len(raw) * len(shard["column_names"]) > config.TOKEN_FLOOR + config.TOKENS_PER_STORED_BYTE * stored:
            raise BadSettingError(TOO_ALIKE)
        self.made.append({**shard, "samples": len(raw), "raw_data": raw_data, "zip_data": zip_data})

    def put_free(self, stems: Iterator[str], put: Callable[[str], T]) -> T:
        """What `put` gives for the first of these names that nobody else takes in the moment before; only one name will
        do for a new key. Errors of `put`."""
        for _ in range(config.INDEX_RACES):
            try:
                return put(next(stems))
            except StorageError as error:
                if error.errno != errno.EEXIST or self.replaces is None:
                    raise
        raise StaleShardError(f"others keep writing new versions of {self.replaces}")

    def put(
        self, basename: str, pieces: Iterable[bytes], size: int, shard: Described
    ) -> tuple[Described, Described | None]:
        """Write a file of `size` raw bytes, compressed as `shard` says; what an index says of it raw and compressed.
        BadSettingError for what would be taken for an attack when it is read, MissingExtraError, StorageError."""
        codec, level, ending = codec_of(shard["compression"])
        raw, stored = _Counted(shard["hashes"]), _Counted(shard["hashes"])

        def write(file: BinaryIO) -> None:
            stored.file = file
            with compression.compressing(codec, stored, level, size) as put:  # type: ignore[arg-type]
                for piece in pieces:
                    raw.write(piece)
                    put(piece)

        name = self.split + basename + ending

        def marked(mark: str) -> None:
            self.marks[name] = mark
            self._note()

        told = None if self.note is None else marked
        try:
            self._put(name, write, told)
        except StorageError as error:
            if error.errno == errno.EEXIST and self.marks.pop(name, None) is not None:
                self._note()  # what is there is another's, even if it should be the same
            raise
        self.files.append(name)
        if raw.size > compression.raw_limit(codec, stored.size):
            raise BadSettingError(TOO_ALIKE)
        return raw.described(basename), None if codec is None else stored.described(basename + ending)

    def _put(self, name: str, write: Callable[[BinaryIO], None], told: Note | None) -> None:
        if isinstance(self.storage, LocalStorage):
            held = self.held if len(self.made) < config.SHARDS_HELD else None
            self.storage.put(name, write, replace=False, temporary=self.temporary, marked=told, held=held)
        else:
            self.storage.put(name, write, replace=False, temporary=self.temporary, marked=told)

    def publish(self, edit: Callable[[list[Described]], list[Described]]) -> None:
        """Replace the index by one whose list of shards is what `edit` makes of it; whatever it raises, the shards are
        removed again. StaleShardError for an index that never holds still."""
        try:
            for attempt in range(config.INDEX_RACES if self.local else config.INDEX_RACES_FAR):
                if attempt and not self.local:
                    time.sleep(random.random() * min(config.INDEX_PAUSE * 2**attempt, 1.0))
                listed, index = self.read_index()
                there = self._is_in(index["shards"])  # then an attempt was thought to have failed, and had not
                if not there:
                    index["shards"] = edit(index["shards"])
                self.index = json.dumps(index, sort_keys=True).encode("ascii")
                try:
                    if not there:
                        self._replace(self.index, listed)
                    return
                except _IndexMovedError:
                    continue
            raise StaleShardError(f"{self.split}{INDEX} keeps changing while it is being replaced")
        except BaseException:
            self.abandon()
            raise
        finally:
            self.held.close()

    def _replace(self, data: bytes, listed: Listed | None) -> None:
        name = self.split + INDEX

        def write(file: BinaryIO) -> None:
            file.write(data)

        def check() -> None:
            try:
                now = self.storage.stat(name)
            except StorageError as error:
                if error.errno != errno.ENOENT:
                    raise
                now = None
            if now != listed:
                raise _IndexMovedError

        expected, new = None if listed is None else listed.version, listed is None
        try:
            self.storage.put(name, write, check=check, replace=not new, temporary=self.temporary, expected=expected)
        except StaleShardError as error:
            raise _IndexMovedError from error
        except StorageError as error:
            if error.errno == errno.EEXIST:
                raise _IndexMovedError from error
            self.uncertain = not self.local and error.errno not in (errno.EACCES, errno.EFBIG)
            raise

    def _is_in(self, shards: list[Any]) -> bool:
        made = {basename_of(shard) for shard in self.made}
        return bool(made) and made.issubset(map(basename_of, shards))

    def abandon(self) -> None:
        """Remove the shards, which were not published: whatever failed, only if the index there is now names none, and
        no index is on its way that would."""
        self.held.close()
        if self.uncertain:
            log.info("%s may stay without being named in %s%s", ", ".join(self.files), self.split, INDEX)
            return
        try:
            shards = self.read_index()[1]["shards"]
        except (ShardfsError, ValueError):
            return  # what nobody names does no harm, and what somebody names is all there is
        if not {shard["raw_data"]["basename"] for shard in self.made}.intersection(map(basename_of, shards)):
            for name in self.files:
                with contextlib.suppress(StorageError):  # gc finds it; what failed first is what the caller is told
                    self.storage.remove(name)
            self.files.clear()


def basename_of(shard: Any) -> str:
    """The raw file that an index has for a shard, relative to it; nothing for what has none."""
    raw = shard.get("raw_data") if isinstance(shard, dict) else None
    return str(raw.get("basename", "")) if isinstance(raw, dict) else ""


class _Counted:
    """What goes through it on the way to a file: how many bytes, and their hashes."""

    def __init__(self, hashes: list[str]) -> None:
        self.file: BinaryIO | None = None
        self.size = 0
        self._hashes = {}
        for name in hashes:
            made = hasher(name)
            if made is None and name in HASHES:
                raise MissingExtraError(f"{name} needs the package xxhash: pip install 'shardfs[hashes]'")
            if made is None:
                raise BadSettingError(f"the index has {name} hashes, which are not known here")
            self._hashes[name] = made

    def write(self, data: bytes) -> int:
        if self.file is not None:
            self.file.write(data)
        self.size += len(data)
        for made in self._hashes.values():
            made.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def described(self, basename: str) -> Described:
        hashes = {name: made.hexdigest() for name, made in self._hashes.items()}
        return {"basename": basename, "bytes": self.size, "hashes": hashes}


def template_columns(template: Mapping[str, Any]) -> mds.Columns:
    return mds.columns(*(tuple(template[f"column_{part}"]) for part in ("names", "encodings", "sizes")))


def _inferred(first: NewRecord) -> mds.Columns:
    if isinstance(first, Verbatim):
        raise BadSettingError("stored records without the columns of their data set")
    return mds_writing.infer(first.sample, first.name)


def _settings(template: Described | None, made: mds.Columns) -> Described:
    """What the index and the shard itself say of a new shard, besides its files."""
    old = template or {}
    return {
        "column_names": list(made.names),
        "column_encodings": list(made.encodings),
        "column_sizes": list(made.sizes),
        "compression": old.get("compression"),
        "format": "mds",
        "hashes": sorted(old.get("hashes") or []),
        "size_limit": old.get("size_limit"),
        "version": 2,
    }


def _packed(record: NewRecord, made: mds.Columns) -> bytes | memoryview:
    return record.data if isinstance(record, Verbatim) else mds_writing.record(made, record.sample, record.name)
