"""WebDataset: one tar per shard, on a local directory; what is in one is webdataset_shards.py's business.

A key is a tar's name without `.tar`, `.tar.gz`, `.tgz` or `.tar.zst`. Tars that are not compressed are read where they
lie: of a tar only the headers are read to know what it holds, and each file is one read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO

from shardfs import compression, config, zstd_frames
from shardfs.drivers.base import Grow, NewRecord, Note, ShardReader, Value
from shardfs.drivers.key_files import ABSENT, KeyFiles, raw_size
from shardfs.drivers.webdataset_shards import FramedTar, TarInPlace, TarShard
from shardfs.drivers.webdataset_writing import packed
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    MissingKeyError,
    NotWritableError,
    StorageError,
)
from shardfs.model import Entry, Key, Version
from shardfs.storage.base import Listed, Reader, Storage

ENDINGS = {".tar": None, ".tar.gz": "gz", ".tgz": "gz", ".tar.zst": "zstd"}
"""Compression by ending. Where a key has several of these files the first here is the one."""

_WRITTEN = {"none": ".tar", "gz": ".tar.gz", "zst": ".tar.zst"}


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
        self._files = KeyFiles(storage, ENDINGS)
        self._only = None if only is None else {self._files.key_of(name): name for name in only}

    def entries(self) -> list[Entry]:
        """All keys: sorted, or in the order of `only`; there BadStoreError names what is missing."""
        if self._only is not None:
            return [self._named(name) for name in self._only.values()]
        found: dict[str, Listed] = {}
        problems: list[str] = []
        for listed in self.storage.list(tuple(ENDINGS)):
            key = self._files.key_of(listed.name)
            if not key or key.endswith("/"):
                problems.append(f"{listed.name} has no name before its ending: not shown")
                continue
            other = found.get(key)
            if other is not None:
                first, second = sorted(
                    (other, listed), key=lambda one: list(ENDINGS).index(self._files.ending(one.name))
                )
                problems.append(f"{second.name} is not shown: {first.name} has the same key")
                listed = first
            found[key] = listed
        self.problems = problems
        return [self._files.entry_of(found[key]) for key in sorted(found)]

    def _named(self, name: str) -> Entry:
        try:
            return self._files.entry_of(self.storage.stat(name))
        except StorageError as error:
            if error.errno not in ABSENT:
                raise
            raise BadStoreError(f"{self.storage.root}/{name}: there is no such tar") from error

    def changed(self) -> bool:
        return self._only is None and self.storage.changed()

    def entry(self, key: Key) -> Entry:
        if self._only is not None and key not in self._only:
            raise MissingKeyError(f"no key {key!r} among the tars that were named")
        return self._files.entry(key, [] if self._only is None else [self._files.ending(self._only[key])])

    def objects(self, entry: Entry) -> list[tuple[str, Version]]:
        return self._files.objects(entry)

    def estimate(self, entry: Entry) -> int:
        """Nothing for a tar that is not compressed, of which nothing is loaded."""
        return 0 if self._files.codec(entry) is None else self._files.estimate(entry)

    def mark(self, entry: Entry) -> str:
        return self._files.mark(entry)

    def load(self, entry: Entry, grow: Grow) -> TarShard | TarInPlace:
        codec = self._files.codec(entry)
        reader = self._files.open(entry)
        if codec is None:
            shard = TarInPlace(reader)
            grow(shard.walk())
            return shard
        with reader:
            expected = raw_size(reader, codec)
            return TarShard(compression.decompress(codec, reader, reader.size, grow, expected=expected))

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """A tar as it is, or a large one in zstd frames with a seek table; other compressed ones are loaded."""
        codec = self._files.codec(entry)
        if codec == "gz" or (codec == "zstd" and raw_bytes <= config.LARGE_LOAD):
            return None
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(self._files.open(entry))
            table = None if codec is None else zstd_frames.read_table(reader)
            if raw_bytes != (reader.size if codec is None else 0 if table is None else table.size):
                return None
            stack.pop_all()  # the shard closes it
            return TarInPlace(reader) if table is None else FramedTar(reader, table)

    def raw_name(self, entry: Entry) -> str | None:
        """See KeepsRaw."""
        return self._files.costly(entry)

    def over_raw(self, entry: Entry, reader: Reader) -> ShardReader:
        """See KeepsRaw."""
        return TarInPlace(reader)

    # --- writing --------------------------------------------------------------------------------------------------

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        self._check_writable(key)
        records = (Value(sample, str(number)) for number, sample in enumerate(samples))
        self._files.put(key, self._ending, self._writer(records, self._ending))

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        """See Driver. What replaces a shard has its compression; a new one the driver's."""
        self._check_writable(key)
        ending = self._ending if base is None else self._files.ending(base.version)
        return self._files.put_new(key, ending, self._writer(records, ending), base=base, note=note)

    def settle(self, key: Key, noted: str) -> Entry | None:
        return self._files.settle(key, noted)

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
        self._files.check_key(key)

    def tidy(self) -> None:
        self.storage.remove_dead()

    def remove(self, key: Key) -> None:
        self._check_writable(key)
        self._files.remove(key)


__all__ = ["ENDINGS", "WebDatasetDriver"]
