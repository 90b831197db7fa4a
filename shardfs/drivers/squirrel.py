"""Squirrel stores: one `<key>.gz` or `<key>.zst` per shard, msgpack or JSON lines inside.

Facts of the format: what squirrel-core 0.20.2 writes and reads, found by running it. Samples stand back to back with
no count and no index; a store does not say which serializer made it, so each shard is recognised by its content.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from shardfs import compression, config, values
from shardfs.drivers.base import Grow, InMemory, NewRecord, Record, ShardReader
from shardfs.drivers.squirrel_writing import _jsonl_line, _msgpack_record, cells, packed
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
from shardfs.msgpack_spans import Walker
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
            tail = reader.tail(4)
            return compression.raw_size_hint(codec, reader.size, reader.read(18), tail)

    def mark(self, entry: Entry) -> str:
        return self._storage.mark(self._stored(entry)[0], _file_version(entry))

    def load(self, entry: Entry, grow: Grow) -> SquirrelShard:
        codec = self._stored(entry)[1]
        with self._open(entry) as reader:
            raw = compression.decompress(codec, reader, reader.size, grow, inspect=self._refuse_bomb)
            stored = reader.size
        return SquirrelShard(raw, stored, self._format)

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        return None

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
        pack = _jsonl_line if self._format == "jsonl" else _msgpack_record
        records = (pack(sample, number) for number, sample in enumerate(samples))
        self._storage.put(key + self._ending, self._writer(records, self._format == "jsonl", self._ending))
        self._remove_others(key, self._ending)

    def write_records(self, key: Key, records: Iterable[NewRecord], *, base: Entry | None) -> Entry:
        """See Driver. What replaces a shard has its format (`format_of`) and compression; a new one the driver's."""
        _check_key(key)
        jsonl = (self._format if base is None else self.format_of(base)) == "jsonl"
        ending = self._ending if base is None else "." + base.version.rpartition(".")[2]
        write = self._writer(packed(records, jsonl), jsonl, ending)
        try:
            listed = self._storage.put(
                key + ending, write, check=lambda: self._check_current(key, base), replace=base is not None
            )
        except StorageError as error:
            if base is None and error.errno == errno.EEXIST:
                raise KeyExistsError(f"{key} is in {self._storage.root} already") from error
            raise
        self._remove_others(key, ending)
        return _entry(listed)

    def format_of(self, entry: Entry) -> str:
        """`jsonl` or `msgpack`: what a shard is made of. Looks at its beginning only. Errors as `load`."""
        if self._format != "auto":
            return self._format
        with self._open(entry) as reader:
            return sniff(compression.beginning(self._stored(entry)[1], reader, config.TOKEN_FLOOR + 1))

    def _check_current(self, key: Key, base: Entry | None) -> None:
        try:
            now = self.entry(key)
        except MissingKeyError:
            if base is None:
                return
            raise StaleShardError(f"{key} has been removed since it was changed here") from None
        if base is None:
            raise KeyExistsError(f"{key} is in {self._storage.root} already")
        if now.version != base.version:
            raise StaleShardError(f"{key} was replaced in the store since it was changed here")

    def _writer(self, records: Iterable[bytes | Buffer], jsonl: bool, ending: str) -> Callable[[BinaryIO], None]:
        """What puts records into a file. BadSettingError for what could not be read again."""

        def write(file: BinaryIO) -> None:
            with compression.compressing(CODECS[ending], file, self._level) as put:
                spent = 0
                for number, record in enumerate(records):
                    spent += _check_readable(record, number, jsonl)
                    put(record)
            if spent > _limit(file.tell()) * (config.JSON_LINES if jsonl else 1):
                raise BadSettingError("too many samples so much alike for one key: they could not be read again")

        return write

    def _remove_others(self, key: Key, ending: str) -> None:
        """The key's older form in the other compression, if it had one."""
        for other in CODECS:
            if other != ending:
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

    def __init__(self, raw: bytes | bytearray, stored: int, format: str = "auto") -> None:
        self._bytes = raw
        self.raw: Buffer = memoryview(raw).toreadonly()
        self._limit = _limit(stored)
        self.format = sniff(raw) if format == "auto" else format

    def records(self) -> Iterator[Record]:
        return self._lines() if self.format == "jsonl" else self._objects()

    def _objects(self) -> Iterator[Record]:
        walker = Walker(self.raw, self._limit)
        at, end = 0, len(self.raw)
        while at < end:
            tree, behind = walker.read(at)
            yield Record(at, behind, tree)
            at = behind

    def _lines(self) -> Iterator[Record]:
        at, end, left = 0, len(self._bytes), self._limit * config.JSON_LINES
        while at < end:
            newline = self._bytes.find(b"\n", at)
            behind = end if newline < 0 else newline + 1
            left -= self._cost(at, behind)
            if left < 0:
                raise OverfullShardError(at)
            if self._bytes[at:behind].strip():
                yield Record(at, behind, self.tree(at, behind))
            at = behind

    def _cost(self, at: int, behind: int) -> int:
        """What a line counts as, looked at before it is parsed; OverfullShardError for one that alone is too much.

        A list or a dict takes as much memory as several numbers or texts, of which there is one to a comma.
        """
        length = behind - at
        if length > self._limit:
            count = self._bytes.count
            opened = count(b"[", at, behind) + count(b"{", at, behind)
            inside = count(b",", at, behind) + count(b'"', at, behind)
            if max(opened, inside // 4, length // config.TEXT_PER_TOKEN) > self._limit:
                raise OverfullShardError(at)
        return _line_cost(length)

    def tree(self, start: int, end: int) -> Tree:
        if self.format == "jsonl":
            return _parse_line(bytes(self.raw[start:end]), start)
        return Walker(self.raw[:end], self._limit).read(start)[0]

    def decode(self, record: Buffer) -> Tree:
        if self.format == "jsonl":
            return _parse_line(bytes(record), 0)
        return Walker(record, self._limit).read(0)[0]

    def cells(self, record: Buffer) -> Mapping[Any, Buffer] | None:
        return None if self.format == "jsonl" else cells(record, self._limit)

    def sample(self, tree: Tree) -> Any:
        # squirrel-core unpacks arrays as tuples; JSON has lists only
        return values.to_python(tree, self.raw, list if self.format == "jsonl" else tuple)


def _limit(stored: int) -> int:
    """Values that a shard of so many stored bytes may hold."""
    return config.TOKEN_FLOOR + config.TOKENS_PER_STORED_BYTE * stored


def _line_cost(length: int) -> int:
    """What a line of JSON counts as: a value per four bytes, and the sample."""
    return length // 4 + config.JSON_LINES * (1 + config.SAMPLE_TOKENS)


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


def _parse_line(line: bytes, at: int) -> Tree:
    try:
        tree = json.loads(line.decode("utf-8"), object_pairs_hook=lambda pairs: _json_object(pairs, at, len(line)))
    except RecursionError as error:
        raise DamagedShardError("nested too deeply", at) from error
    except ValueError as error:
        raise DamagedShardError(f"a line that is not JSON ({error})", at) from error
    if line.count(b"[") + line.count(b"{") > config.NESTING and _deeper(tree, config.NESTING):
        raise DamagedShardError(f"nested deeper than {config.NESTING} levels", at)
    return tree


def _deeper(tree: Tree, levels: int) -> bool:
    """True if lists and dicts are nested in more levels than so many."""
    if type(tree) is dict:
        tree = tree.values()
    elif type(tree) is not list:
        return False
    return levels == 0 or any(_deeper(item, levels - 1) for item in tree if type(item) is list or type(item) is dict)


def _json_object(pairs: list[tuple[str, Any]], at: int, length: int) -> Any:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise DamagedShardError("a field stands twice in one object", at)
    if "data" in made and "type" in made and "shape" in made:
        array = _json_array(made, length)
        return made if array is None else array
    return made


def _json_array(made: dict[str, Any], length: int) -> np.ndarray[Any, Any] | None:
    """The array that squirrel-core decodes any object with `data`, `type` and `shape` to; None for a look-alike.

    `length` is that of the line: a type like `<U1000000000` must not make one byte into gigabytes.
    """
    if not isinstance(made["type"], str) or not isinstance(made["shape"], list):
        return None
    try:
        dtype = values.safe_dtype(made["type"])
        # numpy takes the memory before it compares: for what the lists hold, not for what `shape` says
        if _leaves(made["data"]) * dtype.itemsize > config.JSON_ARRAY_FLOOR + 16 * length:
            return None
        array = np.array(made["data"], dtype=dtype)
        return array.reshape(values.checked_shape(made["shape"], dtype, array.nbytes))
    except (TypeError, ValueError, OverflowError, RecursionError, MemoryError):
        return None


def _leaves(data: Any) -> int:
    """Elements of the array that nested lists make, if they make one: numpy refuses lists of different lengths."""
    count = 1
    while isinstance(data, list):
        count *= len(data)
        data = data[0] if data else None
    return count


def _check_readable(record: bytes | Buffer, number: int, jsonl: bool) -> int:
    """What a sample counts as. BadSettingError for one that would be written and then be refused when it is read."""
    try:
        if jsonl:
            _parse_line(bytes(record), 0)
            return _line_cost(len(record))
        walker = Walker(memoryview(record), 1 << 62)
        walker.read(0)
        return (1 << 62) - walker.left
    except DamagedShardError as error:
        raise BadSettingError(f"sample {number} could not be read again: {error.reason}") from error


__all__ = ["CODECS", "SquirrelDriver", "SquirrelShard", "_jsonl_line", "_msgpack_record", "random_key", "sniff"]
