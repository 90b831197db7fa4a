"""WebDataset: one tar per shard, on a local directory; what is in one is webdataset_shards.py's business.

A key is a tar's name without `.tar`, `.tar.gz`, `.tgz` or `.tar.zst`. Tars that are not compressed are read where they
lie: of a tar only the headers are read to know what it holds, and each file is one read.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from shardfs import compression, config, zstd_frames
from shardfs.drivers.base import Grow, NewRecord, Note, ShardReader, Value
from shardfs.drivers.webdataset_shards import FramedTar, TarInPlace, TarShard
from shardfs.drivers.webdataset_writing import packed
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    KeyExistsError,
    MissingKeyError,
    NotWritableError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key, Version
from shardfs.storage.base import Listed, Reader, Storage
from shardfs.storage.local import TEMPORARY, temporary_name

ENDINGS = {".tar": None, ".tar.gz": "gz", ".tgz": "gz", ".tar.zst": "zstd"}
"""Compression by ending. Where a key has several of these files the first here is the one."""

_WRITTEN = {"none": ".tar", "gz": ".tar.gz", "zst": ".tar.zst"}

_ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG))
"""Errors that say that there is no such file, or can be none."""


class WebDatasetDriver:
    """Tars in a directory.

    `compression` (`none`, `gz` or `zst`) and `level` say how new keys are written; what replaces a shard has its
    compression. With `only`, names of tars relative to the directory, exactly these are the store, in this order, and
    nothing is written. BadSettingError for other words.
    """

    name = "webdataset"
    appends = False
    keeps_files = True
    reading = ""

    def __init__(
        self,
        storage: Storage,
        *,
        compression: str = "none",
        level: int | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        if compression not in _WRITTEN:
            raise BadSettingError(f"compression {compression!r}: use none, gz or zst")
        self.problems: list[str] = []
        self.writable = only is None
        self.partial = only is not None
        """The directory may hold other keys than are listed."""
        self.storage = storage
        self._ending = _WRITTEN[compression]
        self._level = level
        self._only = None if only is None else {_key_of(name): name for name in only}

    def entries(self) -> list[Entry]:
        """All keys: sorted, or in the order of `only`; there BadStoreError names what is missing."""
        if self._only is not None:
            return [self._named(name) for name in self._only.values()]
        found: dict[str, Listed] = {}
        problems: list[str] = []
        for listed in self.storage.list(tuple(ENDINGS)):
            key = _key_of(listed.name)
            if not key or key.endswith("/"):
                problems.append(f"{listed.name} has no name before its ending: not shown")
                continue
            other = found.get(key)
            if other is not None:
                first, second = sorted((other, listed), key=lambda one: list(ENDINGS).index(_ending(one.name)))
                problems.append(f"{second.name} is not shown: {first.name} has the same key")
                listed = first
            found[key] = listed
        self.problems = problems
        return [_entry(found[key]) for key in sorted(found)]

    def _named(self, name: str) -> Entry:
        try:
            return _entry(self.storage.stat(name))
        except StorageError as error:
            if error.errno not in _ABSENT:
                raise
            raise BadStoreError(f"{self.storage.root}/{name}: there is no such tar") from error

    def changed(self) -> bool:
        return self._only is None and self.storage.changed()

    def entry(self, key: Key) -> Entry:
        if self._only is not None and key not in self._only:
            raise MissingKeyError(f"no key {key!r} among the tars that were named")
        for ending in ENDINGS if self._only is None else [_ending(self._only[key])]:
            try:
                return _entry(self.storage.stat(key + ending))
            except StorageError as error:
                if error.errno not in _ABSENT:
                    raise
        raise MissingKeyError(f"no key {key!r} in {self.storage.root}")

    def objects(self, entry: Entry) -> list[tuple[str, Version]]:
        return [(entry.key + _stored_ending(entry), _file_version(entry))]

    def estimate(self, entry: Entry) -> int:
        """Nothing for a tar that is not compressed, of which nothing is loaded."""
        codec = ENDINGS[_stored_ending(entry)]
        if codec is None:
            return 0
        if not self.storage.at_hand(entry.key + _stored_ending(entry), _file_version(entry)):
            return entry.stored_bytes * config.REMOTE_RATIO  # to look would cost as much as to fetch
        with self._open(entry) as reader:
            return _raw_size(reader, codec)

    def mark(self, entry: Entry) -> str:
        return self.storage.mark(entry.key + _stored_ending(entry), _file_version(entry))

    def load(self, entry: Entry, grow: Grow) -> TarShard | TarInPlace:
        codec = ENDINGS[_stored_ending(entry)]
        reader = self._open(entry)
        if codec is None:
            shard = TarInPlace(reader)
            grow(shard.walk())
            return shard
        with reader:
            expected = _raw_size(reader, codec)
            return TarShard(compression.decompress(codec, reader, reader.size, grow, expected=expected))

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """A tar as it is, or a large one in zstd frames with a seek table; other compressed ones are loaded."""
        codec = ENDINGS[_stored_ending(entry)]
        if codec == "gz" or (codec == "zstd" and raw_bytes <= config.LARGE_LOAD):
            return None
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(self._open(entry))
            table = None if codec is None else zstd_frames.read_table(reader)
            if raw_bytes != (reader.size if codec is None else 0 if table is None else table.size):
                return None
            stack.pop_all()  # the shard closes it
            return TarInPlace(reader) if table is None else FramedTar(reader, table)

    def raw_name(self, entry: Entry) -> str | None:
        """See KeepsRaw."""
        ending = _stored_ending(entry)
        return entry.key + ending if ENDINGS[ending] in compression.COSTLY else None

    def over_raw(self, entry: Entry, reader: Reader) -> ShardReader:
        """See KeepsRaw."""
        return TarInPlace(reader)

    def _open(self, entry: Entry) -> Reader:
        try:
            return self.storage.open(entry.key + _stored_ending(entry), _file_version(entry))
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            raise StaleShardError(f"{entry.key} is gone since it was listed") from error

    # --- writing --------------------------------------------------------------------------------------------------

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        self._check_writable(key)
        records = (Value(sample, str(number)) for number, sample in enumerate(samples))
        self.storage.put(key + self._ending, self._writer(records, self._ending))
        self._remove_others(key, self._ending)

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        """See Driver. What replaces a shard has its compression; a new one the driver's."""
        self._check_writable(key)
        ending = self._ending if base is None else _stored_ending(base)
        noted = {"file": key + ending, "temporary": temporary_name()}
        if note is not None:
            note(json.dumps(noted))
        try:
            listed = self.storage.put(
                key + ending,
                self._writer(records, ending),
                check=lambda: self._check_current(key, base),
                replace=base is not None,
                expected=None if base is None else _file_version(base),
                temporary=noted["temporary"],
                marked=None if note is None else lambda mark: note(json.dumps({**noted, "mark": mark})),
            )
        except (StaleShardError, KeyExistsError, StorageError) as error:
            refused = not isinstance(error, StorageError) or error.errno == errno.EEXIST
            if refused and note is not None:
                note(json.dumps(noted))  # what is there is another's, even if it should be the same
            if base is None and refused and isinstance(error, StorageError):
                raise KeyExistsError(f"{key} is in {self.storage.root} already") from error
            raise
        self._remove_others(key, ending)
        return _entry(listed)

    def settle(self, key: Key, noted: str) -> Entry | None:
        """See Driver. The store has it if the key has the content that was about to be given its name, whoever did."""
        told = json.loads(noted)
        if "mark" not in told:  # it never came to the rename: that is known without asking the store
            self.storage.forget_temporary(told["file"], told["temporary"])
            return None
        self.storage.remove_temporary(told["file"], told["temporary"])
        try:
            entry = self.entry(key)
        except MissingKeyError:
            return None
        name = key + _stored_ending(entry)
        if name != told["file"] or self.mark(entry) != told.get("mark"):
            return None
        self.storage.sync(name)
        self._remove_others(key, _stored_ending(entry))
        return entry

    def _check_current(self, key: Key, base: Entry | None) -> None:
        try:
            now = self.entry(key)
        except MissingKeyError:
            if base is None:
                return
            raise StaleShardError(f"{key} has been removed since it was changed here") from None
        if base is None:
            raise KeyExistsError(f"{key} is in {self.storage.root} already")
        if now.version != base.version:
            raise StaleShardError(f"{key} was replaced in the store since it was changed here")

    def _writer(self, records: Iterable[NewRecord], ending: str) -> Callable[[BinaryIO], None]:
        """What puts a tar into a file. BadSettingError for one that could not be read again."""
        codec = ENDINGS[ending]

        def write(file: BinaryIO) -> None:
            size = 0
            with compression.compressing(codec, file, self._level) as put:
                for piece in packed(records):
                    size += len(piece)
                    put(piece)
            if codec is not None and size > compression.raw_limit(codec, file.tell()):
                raise BadSettingError("samples so much alike that a compressed tar of them could not be read again")

        return write

    def _check_writable(self, key: Key) -> None:
        if not self.writable:
            raise NotWritableError("tars that were named one by one are only read: open their directory to write")
        _check_key(key)

    def _remove_others(self, key: Key, ending: str) -> None:
        """The key's older form in another compression, if it had one."""
        for other in ENDINGS:
            if other != ending:
                self._remove_quietly(key + other)

    def _remove_quietly(self, name: str) -> None:
        try:
            self.storage.stat(name)
        except StorageError as error:
            if error.errno not in _ABSENT:
                raise
            return
        self.storage.remove(name)

    def tidy(self) -> None:
        self.storage.remove_dead()

    def remove(self, key: Key) -> None:
        self._check_writable(key)
        self.entry(key)
        for ending in ENDINGS:
            self._remove_quietly(key + ending)


def _ending(name: str) -> str:
    return next(ending for ending in ENDINGS if name.endswith(ending))


def _key_of(name: str) -> Key:
    return Key(name.removesuffix(_ending(name)))


def _entry(listed: Listed) -> Entry:
    # the ending is part of the version: the same key may move from .tar to .tar.gz
    ending = _ending(listed.name)
    raw = listed.size if ENDINGS[ending] is None else None
    return Entry(_key_of(listed.name), Version(f"{listed.version}{ending}"), listed.size, listed.mtime_ns, raw)


def _stored_ending(entry: Entry) -> str:
    """The ending of the version that `entry` speaks of."""
    return _ending(entry.version)


def _file_version(entry: Entry) -> Version:
    return Version(entry.version.removesuffix(_ending(entry.version)))


def _check_key(key: str) -> None:
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in key or parts[-1].startswith(TEMPORARY):
        raise BadSettingError(f"key {key!r}: each part between slashes must be a name")
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError as error:
        raise BadSettingError(f"key {key!r} cannot be the name of a file") from error
    if longest > config.NAME_MAX - 8:
        raise BadSettingError(f"key {key[:40]!r}...: a part is longer than {config.NAME_MAX - 8} bytes")


def _raw_size(reader: Reader, codec: str) -> int:
    """A hint of the raw bytes in an opened file."""
    tail = reader.tail(compression.HINT_TAIL[codec])
    return compression.raw_size_hint(codec, reader.size, reader.read_at(0, min(18, reader.size)), tail)


__all__ = ["ENDINGS", "WebDatasetDriver"]
