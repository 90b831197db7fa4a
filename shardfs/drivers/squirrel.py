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
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from shardfs import compression, config, values, zstd_frames
from shardfs.drivers.base import Grow, InMemory, Record, ShardReader
from shardfs.drivers.squirrel_records import jsonl_line, msgpack_record, parse_line
from shardfs.errors import (
    BadSettingError,
    DamagedShardError,
    MissingKeyError,
    OverfullShardError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key, Version
from shardfs.msgpack_spans import ArrayHead, Walker, light_records, quick_record
from shardfs.raw_bytes import Whole
from shardfs.storage.local import TEMPORARY, Listed, LocalReader, LocalStorage
from shardfs.values import Buffer, Tree

CODECS = {".gz": "gz", ".zst": "zstd"}
"""Compression by ending. Where a key has both files `.gz` is the one, as squirrel-core sees only that."""

_ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG))
"""Errors that say that there is no such file, or can be none."""


class SquirrelDriver:
    """A Squirrel store on a local directory.

    `format` is `auto` (by content), `msgpack` or `jsonl`: how shards are read, and what is written (`auto` writes
    msgpack). `compression` (`gz` or `zst`) and `level` say how shards are written. BadSettingError for other words.
    """

    name = "squirrel"
    writable = True

    def __init__(
        self, storage: LocalStorage, *, format: str = "auto", compression: str = "gz", level: int | None = None
    ) -> None:
        if format not in ("auto", "msgpack", "jsonl"):
            raise BadSettingError(f"format {format!r}: use auto, msgpack or jsonl")
        if "." + compression not in CODECS:
            raise BadSettingError(f"compression {compression!r}: use gz or zst")
        self.problems: list[str] = []
        self.reading = format
        self._storage = storage
        self._format = format
        self._ending = "." + compression
        self._level = level

    def entries(self) -> list[Entry]:
        """All keys, sorted. Files with other endings are not shards and are passed over."""
        found: dict[str, Entry] = {}
        for listed in self._storage.list(tuple(CODECS)):
            entry = _entry(listed)
            if entry.key not in found or listed.name.endswith(".gz"):
                found[entry.key] = entry
        return [found[key] for key in sorted(found)]

    def changed(self) -> bool:
        return self._storage.changed()

    def entry(self, key: Key) -> Entry:
        for ending in CODECS:
            try:
                return _entry(self._storage.stat(key + ending))
            except StorageError as error:
                if error.errno not in _ABSENT:
                    raise
        raise MissingKeyError(f"no key {key!r} in {self._storage.root}")

    def estimate(self, entry: Entry) -> int:
        codec = self._stored(entry)[1]
        with self._open(entry) as reader:
            return _raw_size(reader, codec)

    def mark(self, entry: Entry) -> str:
        return self._storage.mark(self._stored(entry)[0], _file_version(entry))

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

    def _open(self, entry: Entry) -> LocalReader:
        try:
            return self._storage.open(self._stored(entry)[0], _file_version(entry))
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
        ending = "." + entry.version.rpartition(".")[2]
        return entry.key + ending, CODECS[ending]

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        _check_key(key)
        jsonl = self._format == "jsonl"
        pack = jsonl_line if jsonl else msgpack_record

        def write(file: BinaryIO) -> None:
            with compression.compressing(CODECS[self._ending], file, self._level) as put:
                spent = 0
                for number, sample in enumerate(samples):
                    record = pack(sample, number)
                    spent += _check_readable(record, number, jsonl)
                    put(record)
            if spent > _limit(file.tell()) * (config.JSON_LINES if jsonl else 1):
                raise BadSettingError("too many samples so much alike for one key: they could not be read again")

        self._storage.put(key + self._ending, write)
        for other in CODECS:  # the key's older form in the other compression, if it had one
            if other != self._ending:
                self._remove_quietly(key + other)

    def _remove_quietly(self, name: str) -> None:
        try:
            self._storage.stat(name)
        except StorageError as error:
            if error.errno not in _ABSENT:
                raise
            return
        self._storage.remove(name)

    def remove(self, key: Key) -> None:
        self.entry(key)
        for ending in CODECS:
            self._remove_quietly(key + ending)


def _entry(listed: Listed) -> Entry:
    key, _, ending = listed.name.rpartition(".")
    # the ending is part of the version: the same key may move from .gz to .zst
    return Entry(Key(key), Version(f"{listed.version}.{ending}"), listed.size, listed.mtime_ns)


def _file_version(entry: Entry) -> Version:
    return Version(entry.version.rpartition(".")[0])


def _check_key(key: str) -> None:
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


class SquirrelShard(InMemory):
    """The raw bytes of one shard: msgpack objects back to back, or one JSON text a line."""

    first_sample = 0
    samples_through = None

    def __init__(self, raw: bytes | Whole, stored: int, format: str = "auto") -> None:
        self.raw: Buffer = memoryview(raw).toreadonly()
        self._limit = _limit(stored)
        self._heads: dict[str, ArrayHead] = {}
        self.format = sniff(bytes(self.raw[:SNIFFED])) if format == "auto" else format

    def records(self) -> Iterator[Record]:
        return self._lines() if self.format == "jsonl" else self._objects()

    def _objects(self) -> Iterator[Record]:
        walker = Walker(self.raw, self._limit, self._heads)
        at, end = 0, len(self.raw)
        light = end * config.TOKENS_PER_RAW_BYTE <= self._limit
        while at < end:
            tree, behind = walker.read(at)
            yield Record(at, behind, tree)
            at = behind
            if light:
                count = 0
                for tree, behind in light_records(self.raw, at):
                    yield Record(at, behind, tree)
                    at = behind
                    count += 1
                light = count >= config.LIGHT_RUN

    def _lines(self) -> Iterator[Record]:
        left = self._limit * config.JSON_LINES
        for at, behind in _line_ends(self.raw):
            left -= self._cost(at, behind)
            if left < 0:
                raise OverfullShardError(at)
            line = bytes(self.raw[at:behind])
            if not line.isspace():
                yield Record(at, behind, parse_line(line, at))

    def _cost(self, at: int, behind: int) -> int:
        """What a line counts as, looked at before it is parsed; OverfullShardError for one that alone is too much.

        A list or a dict takes as much memory as several numbers or texts, of which there is one to a comma.
        """
        length = behind - at
        if length > self._limit:
            opened = inside = 0
            for piece in _pieces(self.raw[at:behind]):
                opened += piece.count(b"[") + piece.count(b"{")
                inside += piece.count(b",") + piece.count(b'"')
            if max(opened, inside // 4, length // config.TEXT_PER_TOKEN) > self._limit:
                raise OverfullShardError(at)
        return _line_cost(length)

    def tree(self, start: int, end: int) -> Tree:
        if self.format == "jsonl":
            return parse_line(bytes(self.raw[start:end]), start)
        return Walker(self.raw[:end], self._limit).read(start)[0]

    def decode(self, record: Buffer) -> Tree:
        return _decode(record, self.format, self._limit, self._heads)

    def sample(self, tree: Tree) -> Any:
        # squirrel-core unpacks arrays as tuples; JSON has lists only
        return values.to_python(tree, self.raw, list if self.format == "jsonl" else tuple)


class FramedSquirrel(zstd_frames.Frames):
    """A shard of frames, of which only those are decompressed that are asked for; and the first ones before anything
    else, to tell msgpack from JSON."""

    def __init__(
        self, reader: LocalReader, table: zstd_frames.SeekTable, format: str = "auto", limit: int = config.FRAMES_HELD
    ) -> None:
        super().__init__(reader, table, limit)
        self._values = _limit(reader.size)
        self._format = format
        self._heads: dict[str, ArrayHead] = {}

    @property
    def format(self) -> str:
        """`msgpack` or `jsonl`. Until something has been fetched this takes its time, and has the errors of `fetch`."""
        if self._format == "auto":
            self._format = sniff(bytes(super().fetch(0, SNIFFED)))
        return self._format

    def fetch(self, start: int, end: int) -> Buffer:
        if self._format == "auto":
            _ = self.format  # now, because `decode` is called on the event loop
        return super().fetch(start, end)

    def decode(self, record: Buffer) -> Tree:
        return _decode(record, self.format, self._values, self._heads)


def _decode(record: Buffer, format: str, limit: int, heads: dict[str, ArrayHead]) -> Tree:
    if format == "jsonl":
        return parse_line(bytes(record), 0)
    tree = quick_record(record)
    return Walker(record, limit, heads).read(0)[0] if tree is None else tree


def _raw_size(reader: LocalReader, codec: str) -> int:
    """A hint of the raw bytes in an opened file."""
    tail = reader.tail(compression.HINT_TAIL[codec])
    return compression.raw_size_hint(codec, reader.size, reader.read_at(0, min(18, reader.size)), tail)


def _limit(stored: int) -> int:
    """Values that a shard of so many stored bytes may hold."""
    return config.TOKEN_FLOOR + config.TOKENS_PER_STORED_BYTE * stored


def _line_cost(length: int) -> int:
    """What a line of JSON counts as: a value per four bytes, and the sample."""
    return length // 4 + config.JSON_LINES * (1 + config.SAMPLE_TOKENS)


def _pieces(raw: Buffer) -> Iterator[bytes]:
    """Copies to look for single bytes in, which a mapping does a byte at a time."""
    return (bytes(raw[at : at + config.COPY_SLICE]) for at in range(0, len(raw), config.COPY_SLICE))


def _line_ends(raw: Buffer) -> Iterator[tuple[int, int]]:
    """Where each line begins, and where it ends behind its newline."""
    at = base = 0
    for piece in _pieces(raw):
        found = piece.find(b"\n")
        while found >= 0:
            yield at, base + found + 1
            at = base + found + 1
            found = piece.find(b"\n", found + 1)
        base += len(piece)
    if at < base:
        yield at, base


SNIFFED = config.TOKEN_FLOOR + 2
"""Raw bytes at a shard's beginning that decide its format; `sniff` says the same of them as of all."""


def sniff(raw: bytes | bytearray) -> str:
    """`jsonl` or `msgpack`, by the first bytes; what could be both is JSON lines if its first line is JSON."""
    first = raw[:1]
    if first in (b"{", b"["):
        # as msgpack these are the lone integers 123 and 91: only real if the line is no JSON at all
        return "jsonl" if len(raw) > 4096 or b"\n" in raw or _is_json(raw) else "msgpack"
    if first and first in b'"-0123456789ntfNI \t':
        return "jsonl" if _is_json(raw) else "msgpack"
    return "msgpack"


def _is_json(raw: bytes | bytearray) -> bool:
    newline = raw.find(b"\n", 0, config.TOKEN_FLOOR)
    if newline < 0 and len(raw) > config.TOKEN_FLOOR:
        # a lone text or number of that length: too long to be parsed only for finding out
        return raw[:1] == b'"'
    try:
        json.loads(raw[: newline if newline >= 0 else len(raw)])
    except (ValueError, RecursionError):
        return False
    return True


def _check_readable(record: bytes, number: int, jsonl: bool) -> int:
    """What a sample counts as. BadSettingError for one that would be written and then be refused when it is read."""
    try:
        if jsonl:
            parse_line(record, 0)
            return _line_cost(len(record))
        walker = Walker(memoryview(record), 1 << 62)
        walker.read(0)
        return (1 << 62) - walker.left
    except DamagedShardError as error:
        raise BadSettingError(f"sample {number} could not be read again: {error.reason}") from error


__all__ = ["CODECS", "SquirrelDriver", "SquirrelShard", "random_key", "sniff"]
