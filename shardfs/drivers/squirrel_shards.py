"""The inside of a Squirrel shard: raw bytes to records, records to value trees. Knows nothing of keys or of files.

Facts of the format: what squirrel-core 0.20.2 writes and reads, found by running it. Samples stand back to back with
no count and no index; a store does not say which serializer made it, so each shard is recognised by its content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from shardfs import config, values, zstd_frames
from shardfs.drivers.base import InMemory, Record
from shardfs.drivers.in_place import InPlace
from shardfs.drivers.squirrel_records import line_cost, parse_line
from shardfs.drivers.squirrel_writing import cells
from shardfs.errors import OverfullShardError
from shardfs.msgpack_spans import ArrayHead, Walker, light_records, quick_record
from shardfs.raw_bytes import Whole
from shardfs.storage.base import Reader
from shardfs.values import Buffer, Tree


class SquirrelShard(InMemory):
    """The raw bytes of one shard: msgpack objects back to back, or one JSON text a line."""

    first_sample = 0
    samples_through = None

    def __init__(self, raw: bytes | Whole, stored: int, format: str = "auto") -> None:
        self.raw: Buffer = memoryview(raw).toreadonly()
        self._limit = value_limit(stored)
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
        return line_cost(length)

    def tree(self, start: int, end: int) -> Tree:
        if self.format == "jsonl":
            return parse_line(bytes(self.raw[start:end]), start)
        return Walker(self.raw[:end], self._limit).read(start)[0]

    def decode(self, record: Buffer) -> Tree:
        return _decode(record, self.format, self._limit, self._heads)

    def cells(self, record: Buffer) -> Mapping[Any, Buffer] | None:
        return None if self.format == "jsonl" else cells(record, self._limit)

    def sample(self, tree: Tree) -> Any:
        # squirrel-core unpacks arrays as tuples; JSON has lists only
        return values.to_python(tree, self.raw, list if self.format == "jsonl" else tuple)


class FramedSquirrel(zstd_frames.Frames):
    """A shard of frames, of which only those are decompressed that are asked for; and the first ones before anything
    else, to tell msgpack from JSON."""

    def __init__(
        self,
        file: zstd_frames.Stored,
        table: zstd_frames.SeekTable,
        format: str = "auto",
        limit: int = config.FRAMES_HELD,
    ) -> None:
        super().__init__(file, table, limit)
        self._values = value_limit(file.size)
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

    def cells(self, record: Buffer) -> Mapping[Any, Buffer] | None:
        return None if self.format == "jsonl" else cells(record, self._values)


def squirrel_in_place(reader: Reader, stored: int, format: str) -> InPlace:
    """A shard of `stored` bytes, out of a file of its raw bytes. Reads their beginning to tell its format."""
    told = sniff(reader.read_at(0, min(SNIFFED, reader.size))) if format == "auto" else format
    limit, heads = value_limit(stored), dict[str, ArrayHead]()
    return InPlace(
        reader,
        lambda record: _decode(record, told, limit, heads),
        lambda record: None if told == "jsonl" else cells(record, limit),
    )


def _decode(record: Buffer, format: str, limit: int, heads: dict[str, ArrayHead]) -> Tree:
    if format == "jsonl":
        return parse_line(bytes(record), 0)
    tree = quick_record(record)
    return Walker(record, limit, heads).read(0)[0] if tree is None else tree


def value_limit(stored: int) -> int:
    """Values that a shard of so many stored bytes may hold."""
    return config.TOKEN_FLOOR + config.TOKENS_PER_STORED_BYTE * stored


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
