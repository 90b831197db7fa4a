"""Squirrel stores: one `<key>.gz` or `<key>.zst` per shard, msgpack or JSON lines inside.

Facts of the format: what squirrel-core 0.20.2 writes and reads, found by running it. Samples stand back to back with
no count and no index; a store does not say which serializer made it, so each shard is recognised by its content.
"""

from __future__ import annotations

import contextlib
import secrets
import string
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from shardfs import compression, config, zstd_frames
from shardfs.drivers import leftovers
from shardfs.drivers.base import Grow, NewRecord, Note, ShardReader, Value
from shardfs.drivers.garbage import Garbage
from shardfs.drivers.key_files import KeyFiles, raw_size
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
    OverfullShardError,
)
from shardfs.model import Entry, Key, Version
from shardfs.storage.base import Reader, Storage

CODECS = {".gz": "gz", ".zst": "zstd"}
"""Compression by ending. Where a key has both files `.gz` is the one, as squirrel-core sees only that."""


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
        self._files = KeyFiles(storage, CODECS)

    def entries(self) -> list[Entry]:
        """All keys, sorted. Files with other endings are not shards and are passed over."""
        found: dict[str, Entry] = {}
        for listed in self.storage.list(tuple(CODECS)):
            entry = self._files.entry_of(listed)
            if entry.key not in found or listed.name.endswith(".gz"):
                found[entry.key] = entry
        return [found[key] for key in sorted(found)]

    def changed(self) -> bool:
        return self.storage.changed()

    def entry(self, key: Key) -> Entry:
        return self._files.entry(key)

    def objects(self, entry: Entry) -> list[tuple[str, Version]]:
        return self._files.objects(entry)

    def estimate(self, entry: Entry) -> int:
        return self._files.estimate(entry)

    def mark(self, entry: Entry) -> str:
        return self._files.mark(entry)

    def load(self, entry: Entry, grow: Grow) -> SquirrelShard:
        codec = self._codec(entry)
        with self._files.open(entry) as reader:
            expected = raw_size(reader, codec)
            raw = compression.decompress(codec, reader, reader.size, grow, inspect=self._refuse_bomb, expected=expected)
            stored = reader.size
        return SquirrelShard(raw, stored, self._format)

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """A large .zst shard of frames with a seek table; small ones are better loaded whole."""
        if raw_bytes <= config.LARGE_LOAD or self._codec(entry) != "zstd":
            return None
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(self._files.open(entry))
            table = zstd_frames.read_table(reader)
            if table is None or table.size != raw_bytes:
                return None
            stack.pop_all()  # the frames close it
            return FramedSquirrel(reader, table, self._format)

    def raw_name(self, entry: Entry) -> str | None:
        """See KeepsRaw."""
        return self._files.costly(entry)

    def over_raw(self, entry: Entry, reader: Reader) -> ShardReader:
        """See KeepsRaw."""
        return squirrel_in_place(reader, entry.stored_bytes, self._format)

    def _refuse_bomb(self, beginning: bytes, stored: int) -> None:
        """The beginning of a shard that compresses suspiciously well may hold no more than a shard of its size."""
        try:
            for _ in SquirrelShard(beginning, stored, self._format).records():
                pass
        except OverfullShardError:
            raise
        except DamagedShardError:
            pass  # it is cut off somewhere, of course; what else is wrong will show when all of it is there

    def _codec(self, entry: Entry) -> str:
        return CODECS[self._files.ending(entry.version)]

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        self._files.check_key(key)
        jsonl = self._format == "jsonl"
        records = (Value(sample, str(number)) for number, sample in enumerate(samples))
        write = self._writer(encoded(records, jsonl, strict=False), jsonl, self._ending)
        self._files.put(key, self._ending, write)

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        """See Driver. What replaces a shard has its format (`format_of`) and compression; a new one the driver's."""
        self._files.check_key(key)
        jsonl = (self._format if base is None else self.format_of(base)) == "jsonl"
        ending = self._ending if base is None else self._files.ending(base.version)
        write = self._writer(encoded(records, jsonl), jsonl, ending)
        return self._files.put_new(key, ending, write, base=base, note=note)

    def settle(self, key: Key, noted: str) -> Entry | None:
        return self._files.settle(key, noted)

    def format_of(self, entry: Entry) -> str:
        """`jsonl` or `msgpack`: what a shard is made of. Looks at its beginning only. Errors as `load`."""
        if self._format != "auto":
            return self._format
        with self._files.open(entry) as reader:
            return sniff(compression.beginning(self._codec(entry), reader, SNIFFED))

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

    def tidy(self) -> None:
        self.storage.remove_dead()

    def remove(self, key: Key) -> None:
        self._files.remove(key)

    def garbage(self) -> list[Garbage]:
        """See Collecting. A replaced shard is gone at once, so only unended writes are left."""
        return leftovers.leftovers(self.storage)

    def discard(self, found: Garbage) -> None:
        """See Collecting."""
        leftovers.discard(self.storage, found)


def random_key() -> Key:
    """A key as squirrel-core makes them when none is given: 16 of A-Z and 0-9."""
    return Key("".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(16)))


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


__all__ = ["CODECS", "SquirrelDriver", "random_key"]
