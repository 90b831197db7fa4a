"""Squirrel stores: one `<key>.gz` or `<key>.zst` per shard, msgpack or JSON lines inside.

Facts of the format: what squirrel-core 0.20.2 writes and reads, found by running it. Samples stand back to back with
no count and no index; a store does not say which serializer made it, so each shard is recognised by its content.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import string
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from shardfs import compression, config, zstd_frames
from shardfs.drivers import leftovers
from shardfs.drivers.base import Grow, NewRecord, Note, ShardReader, Value
from shardfs.drivers.garbage import Garbage
from shardfs.drivers.squirrel_shards import (
    SNIFFED,
    FramedSquirrel,
    SquirrelShard,
    sniff,
    squirrel_in_place,
    value_limit,
)
from shardfs.drivers.squirrel_writing import Encoded, encoded
from shardfs.errors import (
    BadSettingError,
    DamagedShardError,
    KeyExistsError,
    MissingKeyError,
    OverfullShardError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key, Version
from shardfs.storage.base import Listed, Reader, Storage
from shardfs.storage.local import TEMPORARY, temporary_name

CODECS = {".gz": "gz", ".zst": "zstd"}
"""Compression by ending. Where a key has both files `.gz` is the one, as squirrel-core sees only that."""

_ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG))
"""Errors that say that there is no such file, or can be none."""


class SquirrelDriver:
    """A Squirrel store in any storage.

    `format` is `auto` (by content), `msgpack` or `jsonl`: how shards are read, and what is written (`auto` writes
    msgpack). `compression` (`gz` or `zst`) and `level` say how shards are written. BadSettingError for other words.
    """

    name = "squirrel"
    writable = True
    appends = False

    def __init__(
        self, storage: Storage, *, format: str = "auto", compression: str = "gz", level: int | None = None
    ) -> None:
        if format not in ("auto", "msgpack", "jsonl"):
            raise BadSettingError(f"format {format!r}: use auto, msgpack or jsonl")
        if "." + compression not in CODECS:
            raise BadSettingError(f"compression {compression!r}: use gz or zst")
        self.problems: list[str] = []
        self.reading = format
        self.storage = storage
        self._format = format
        self._ending = "." + compression
        self._level = level

    def entries(self) -> list[Entry]:
        """All keys, sorted. Files with other endings are not shards and are passed over."""
        found: dict[str, Entry] = {}
        for listed in self.storage.list(tuple(CODECS)):
            entry = _entry(listed)
            if entry.key not in found or listed.name.endswith(".gz"):
                found[entry.key] = entry
        return [found[key] for key in sorted(found)]

    def changed(self) -> bool:
        return self.storage.changed()

    def entry(self, key: Key) -> Entry:
        for ending in CODECS:
            try:
                return _entry(self.storage.stat(key + ending))
            except StorageError as error:
                if error.errno not in _ABSENT:
                    raise
        raise MissingKeyError(f"no key {key!r} in {self.storage.root}")

    def objects(self, entry: Entry) -> list[tuple[str, Version]]:
        return [(self._stored(entry)[0], _file_version(entry))]

    def estimate(self, entry: Entry) -> int:
        name, codec = self._stored(entry)
        if not self.storage.at_hand(name, _file_version(entry)):
            return entry.stored_bytes * config.REMOTE_RATIO  # to look would cost as much as to fetch
        with self._open(entry) as reader:
            return _raw_size(reader, codec)

    def mark(self, entry: Entry) -> str:
        return self.storage.mark(self._stored(entry)[0], _file_version(entry))

    def load(self, entry: Entry, grow: Grow) -> SquirrelShard:
        codec = self._stored(entry)[1]
        with self._open(entry) as reader:
            expected = _raw_size(reader, codec)
            raw = compression.decompress(codec, reader, reader.size, grow, inspect=self._refuse_bomb, expected=expected)
            stored = reader.size
        return SquirrelShard(raw, stored, self._format)

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """A large .zst shard of frames with a seek table; small ones are better loaded whole."""
        if raw_bytes <= config.LARGE_LOAD or self._stored(entry)[1] != "zstd":
            return None
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(self._open(entry))
            table = zstd_frames.read_table(reader)
            if table is None or table.size != raw_bytes:
                return None
            stack.pop_all()  # the frames close it
            return FramedSquirrel(reader, table, self._format)

    def raw_name(self, entry: Entry) -> str | None:
        """See KeepsRaw."""
        name, codec = self._stored(entry)
        return name if codec in compression.COSTLY else None

    def over_raw(self, entry: Entry, reader: Reader) -> ShardReader:
        """See KeepsRaw."""
        return squirrel_in_place(reader, entry.stored_bytes, self._format)

    def _open(self, entry: Entry) -> Reader:
        try:
            return self.storage.open(self._stored(entry)[0], _file_version(entry))
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            raise StaleShardError(f"{entry.key} is gone since it was listed") from error

    def _refuse_bomb(self, beginning: bytes, stored: int) -> None:
        """The beginning of a shard that compresses suspiciously well may hold no more than a shard of its size."""
        try:
            for _ in SquirrelShard(beginning, stored, self._format).records():
                pass
        except OverfullShardError:
            raise
        except DamagedShardError:
            pass  # it is cut off somewhere, of course; what else is wrong will show when all of it is there

    def _stored(self, entry: Entry) -> tuple[str, str]:
        """File name and codec of the version that `entry` speaks of."""
        ending = entry_ending(entry)
        return entry.key + ending, CODECS[ending]

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        check_key(key)
        jsonl = self._format == "jsonl"
        records = (Value(sample, str(number)) for number, sample in enumerate(samples))
        write = self._writer(encoded(records, jsonl, strict=False), jsonl, self._ending)
        self.storage.put(key + self._ending, write)
        self._remove_others(key, self._ending)

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        """See Driver. What replaces a shard has its format (`format_of`) and compression; a new one the driver's."""
        check_key(key)
        jsonl = (self._format if base is None else self.format_of(base)) == "jsonl"
        ending = self._ending if base is None else entry_ending(base)
        write = self._writer(encoded(records, jsonl), jsonl, ending)
        noted = {"file": key + ending, "temporary": temporary_name()}
        if note is not None:
            note(json.dumps(noted))
        try:
            listed = self.storage.put(
                key + ending,
                write,
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
        name = self._stored(entry)[0]
        if name != told["file"] or self.mark(entry) != told.get("mark"):
            return None
        self.storage.sync(name)
        self._remove_others(key, "." + name.rpartition(".")[2])
        return entry

    def format_of(self, entry: Entry) -> str:
        """`jsonl` or `msgpack`: what a shard is made of. Looks at its beginning only. Errors as `load`."""
        if self._format != "auto":
            return self._format
        with self._open(entry) as reader:
            return sniff(compression.beginning(self._stored(entry)[1], reader, SNIFFED))

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

    def _writer(self, records: Iterable[Encoded], jsonl: bool, ending: str) -> Callable[[BinaryIO], None]:
        """What puts records into a file. BadSettingError for what could not be read again."""
        codec = CODECS[ending]

        def write(file: BinaryIO) -> None:
            most = size = 0
            with compression.compressing(codec, file, self._level) as put:
                for record, most_values in records:
                    most += most_values
                    size += len(record)
                    put(record)
            stored = file.tell()
            overfull = most > value_limit(stored) * (config.JSON_LINES if jsonl else 1)
            if size > compression.raw_limit(codec, stored) or (overfull and (jsonl or _is_overfull(file, codec, size))):
                raise BadSettingError("too many samples so much alike for one key: they could not be read again")

        return write

    def _remove_others(self, key: Key, ending: str) -> None:
        """The key's older form in the other compression, if it had one."""
        for other in CODECS:
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
        self.entry(key)
        for ending in CODECS:
            self._remove_quietly(key + ending)

    def garbage(self) -> list[Garbage]:
        """See Collecting. A replaced shard is gone at once, so only unended writes are left."""
        return leftovers.leftovers(self.storage)

    def discard(self, found: Garbage) -> None:
        """See Collecting."""
        leftovers.discard(self.storage, found)


def _entry(listed: Listed) -> Entry:
    key, _, ending = listed.name.rpartition(".")
    # the ending is part of the version: the same key may move from .gz to .zst
    return Entry(Key(key), Version(f"{listed.version}.{ending}"), listed.size, listed.mtime_ns)


def entry_ending(entry: Entry) -> str:
    """`.gz` or `.zst`: what the file of a key ends in."""
    return "." + entry.version.rpartition(".")[2]


def _file_version(entry: Entry) -> Version:
    return Version(entry.version.rpartition(".")[0])


def check_key(key: str) -> None:
    """BadSettingError for what cannot be a key of a store in a directory."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in key or parts[-1].startswith(TEMPORARY):
        raise BadSettingError(f"key {key!r}: each part between slashes must be a name")
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError as error:
        raise BadSettingError(f"key {key!r} cannot be the name of a file") from error
    if longest > config.NAME_MAX - 4:
        raise BadSettingError(f"key {key[:40]!r}...: a part is longer than {config.NAME_MAX - 4} bytes")


def random_key() -> Key:
    """A key as squirrel-core makes them when none is given: 16 of A-Z and 0-9."""
    return Key("".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(16)))


def _raw_size(reader: Reader, codec: str) -> int:
    """A hint of the raw bytes in an opened file."""
    tail = reader.tail(compression.HINT_TAIL[codec])
    return compression.raw_size_hint(codec, reader.size, reader.read_at(0, min(18, reader.size)), tail)


def _is_overfull(file: BinaryIO, codec: str, size: int) -> bool:
    """Whether a shard of msgpack that has been written holds too many values, where it might: they are counted only
    now, as its readers count them. `size` is its number of raw bytes."""
    stored = file.tell()
    file.seek(0)
    raw = compression.decompress(codec, file, stored, expected=size)
    file.seek(stored)
    try:
        for _ in SquirrelShard(raw, stored, "msgpack").records():
            pass
    except OverfullShardError:
        return True
    return False


__all__ = ["CODECS", "SquirrelDriver", "check_key", "random_key"]
