"""Uncompressed shards read where they lie, without being loaded. Knows nothing of what is in them, or of indexes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shardfs import config
from shardfs.storage.base import Reader
from shardfs.values import Buffer, Tree


class InPlace:
    """A shard whose raw bytes are a file's. Holds the file open, and no memory.

    What others wrote into the file since it was opened is StaleShardError, and never served.
    """

    computes = False
    held = 0

    def __init__(
        self,
        reader: Reader,
        decode: Callable[[Buffer], Tree],
        cells: Callable[[Buffer], Mapping[Any, Buffer] | None],
    ) -> None:
        self._reader = reader
        self._decode = decode
        self._cells = cells
        self._waited = 0
        self.size = reader.size

    def part(self, start: int, end: int) -> Buffer | None:
        return self._reader.cached_at(start, end - start)

    def fetch(self, start: int, end: int) -> Buffer:
        self._waited += 1
        if self._waited == config.ADVISE_AFTER:
            self.expect()
        return memoryview(self._reader.read_at(start, end - start))

    def decode(self, record: Buffer) -> Tree:
        return self._decode(record)

    def cells(self, record: Buffer) -> Mapping[Any, Buffer] | None:
        return self._cells(record)

    def expect(self) -> None:
        if self.size <= config.ADVISE_LIMIT:
            self._reader.advise()
