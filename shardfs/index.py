"""What a shard holds, packed: names, sizes and positions of all its files, 25 bytes a file and no object per file.

A table is built by walking a shard once (`table_building`) and then answers without it; only reading a file's content
needs the shard again. Knows nothing of inodes, caches or mounts.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardfs import config, layout, shapes
from shardfs.drivers.base import ShardReader
from shardfs.errors import DamagedShardError
from shardfs.folders import ROOT, Folders
from shardfs.strings import Strings, number_of, sorted_numbers
from shardfs.values import Buffer

SLICE, RENDER = 0, 1

_AT_ONCE = 512
"""Files whose names and sizes are taken out of the columns in one go: about what two readdir requests hold."""


@dataclass(frozen=True, slots=True)
class Note:
    """A cell that its declared encoding could not decode, shown as mere bytes; or something else of a shard that is not
    shown as one would think."""

    file: str
    """Nothing for what is said of no file."""
    reason: str


class ShardTable:
    """All files of one shard, by number: samples in order, each sample's files in the order of its fields."""

    flat = True
    """False where some of the files are in directories inside the key, or are one and the same (`FolderTable`)."""

    def __init__(
        self,
        *,
        raw_bytes: int,
        stems: Strings | None,
        first_sample: int,
        digits: int,
        columns: dict[str, np.ndarray[Any, Any]],
        suffixes: Strings,
        prefixes: Strings,
        notes: tuple[Note, ...],
    ) -> None:
        self.raw_bytes = raw_bytes
        self.stems = stems
        self.first_sample = first_sample
        self.digits = digits
        self.columns = columns
        self.suffixes = suffixes
        self.prefixes = prefixes
        # one number at a time comes out of a memoryview three times as fast as out of a numpy array
        self._file_start = columns["file_start"].data
        self._record_start = columns["record_start"].data
        self._record_end = columns["record_end"].data
        self._suffix = columns["suffix"].data
        self._prefix = columns["prefix"].data
        self._kind = columns["kind"].data
        self._offset = columns["offset"].data
        self._length = columns["length"].data
        self._number = number_format(digits)
        self.prefix_sizes = np.diff(prefixes.starts)
        self._prefix_size = self.prefix_sizes.data
        self._by_stem = None if stems is None else sorted_numbers(stems).data
        self.notes = notes
        self.samples = len(self._record_start)
        self.files = len(self._suffix)
        self.nbytes = (
            sum(column.nbytes for column in columns.values())
            + suffixes.nbytes
            + prefixes.nbytes
            + (0 if stems is None else stems.nbytes + 4 * len(stems))
        )

    @property
    def numbers(self) -> int:
        """How many inode numbers the table has: one for each file, and behind these one for each directory."""
        return self.files

    def stem(self, sample: int) -> bytes:
        """The part before the first dot of the names of a sample's files."""
        if self.stems is not None:
            return self.stems[sample]
        return self._number % (self.first_sample + sample)

    def sample_of(self, file: int) -> int:
        starts = self._file_start
        guess = file * self.samples // max(1, self.files)  # right where all samples have equally many files
        if starts[guess] <= file < starts[guess + 1]:
            return guess
        return bisect_right(starts, file) - 1

    def name(self, file: int) -> bytes:
        return self.stem(self.sample_of(file)) + b"." + self.suffixes[self._suffix[file]]

    def suffix(self, file: int) -> bytes:
        """The part of its name behind the first dot."""
        return self.suffixes[self._suffix[file]]

    def size(self, file: int) -> int:
        """Exact size of the file in bytes."""
        return self._prefix_size[self._prefix[file]] + self._length[file]

    def total_size(self) -> int:
        """Size of all files together in bytes."""
        return int(self.columns["length"].sum()) + int(self.prefix_sizes[self.columns["prefix"]].sum())

    def listing(self, start: int) -> Iterator[tuple[bytes, int, int]]:
        """(name, size, number) of each file from number `start` on."""
        suffixes = self.suffixes if len(self.suffixes) > _AT_ONCE else list(self.suffixes)
        for first in range(start, self.files, _AT_ONCE):
            last = min(first + _AT_ONCE, self.files)
            numbers = range(first, last)
            columns = self.columns
            samples = np.searchsorted(columns["file_start"], np.arange(first, last), "right") - 1
            sizes = columns["length"][first:last] + self.prefix_sizes[columns["prefix"][first:last]]
            before, stem = -1, b""
            for sample, suffix, size, file in zip(
                samples.tolist(), self._suffix[first:last].tolist(), sizes.tolist(), numbers, strict=True
            ):
                if sample != before:
                    before, stem = sample, self.stem(sample) + b"."
                yield stem + suffixes[suffix], size, file

    def find(self, name: bytes) -> int | None:
        """Number of the file of that name."""
        stem, dot, suffix = name.partition(b".")
        sample = self.find_sample(stem) if dot else None
        if sample is None:
            return None
        for file in range(self._file_start[sample], self._file_start[sample + 1]):
            if self.suffixes[self._suffix[file]] == suffix:
                return file
        return None

    def find_sample(self, stem: bytes) -> int | None:
        """The sample of that name."""
        if self.stems is not None and self._by_stem is not None:
            return number_of(self.stems, self._by_stem, stem)
        if len(stem) != self.digits or not stem.isdigit():
            return None
        sample = int(stem) - self.first_sample
        return sample if 0 <= sample < self.samples else None

    def same_as(self, files: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The numbers by which files are known: of those with the same bytes outside the rows, the first one's."""
        return files

    def slice_of(self, file: int) -> tuple[bytes, int, int] | None:
        """(prefix, offset, length): the file is the prefix and that run of raw bytes; None if it must be rendered."""
        if self._kind[file] == RENDER:
            return None
        return self.prefixes[self._prefix[file]], self._offset[file], self._length[file]

    def record_of(self, file: int) -> tuple[int, int]:
        """Start and end of the record that the file's sample is decoded from."""
        sample = self.sample_of(file)
        return self._record_start[sample], self._record_end[sample]

    def renders_fast(self, file: int) -> bool:
        """True if rendering the file takes so little that it may be done on the event loop."""
        return self._renders_fast(file, self.sample_of(file))

    def _renders_fast(self, file: int, sample: int) -> bool:
        return (
            self.size(file) <= config.INLINE_RENDER
            and self._record_end[sample] - self._record_start[sample] <= config.INLINE_RECORD
            and self._file_start[sample + 1] - self._file_start[sample] <= config.INLINE_FILES
        )

    def render(self, file: int, reader: ShardReader, arrays: str) -> bytes:
        """The content of a file that is no run of raw bytes; takes its time. DamagedShardError if the shard is not this
        table's, and the errors of `ShardReader.fetch`."""
        return self._render(file, self.sample_of(file), arrays, reader, reader.fetch(*self.record_of(file)))

    def render_now(self, file: int, reader: ShardReader, arrays: str) -> bytes | None:
        """The same where that is quickly done, and the raw bytes are at hand; None otherwise."""
        sample = self.sample_of(file)
        if not self._renders_fast(file, sample):
            return None
        record = reader.part(self._record_start[sample], self._record_end[sample])
        return None if record is None else self._render(file, sample, arrays, reader, record)

    def _render(self, file: int, sample: int, arrays: str, reader: ShardReader, record: Buffer) -> bytes:
        tree, stem_bytes, number = reader.decode(record), len(self.stem(sample)), file - self._file_start[sample]
        data = shapes.shapes_for(arrays).json(tree, stem_bytes, number)
        if data is None:
            content = layout.lay_out(tree, record, arrays, stem_bytes)[number].content
            data = content.render() if content.render is not None else b""
        if len(data) != self.size(file):
            start = self._record_start[sample]
            raise DamagedShardError("a file came out with another size than the index says", start)
        return data


class FolderTable(ShardTable):
    """A table with directories inside the key, or with files that have their bytes in common.

    Directories have the numbers behind the files'. `find` gives files with the same bytes outside the rows (a blob that
    several samples refer to) one number: the first one's. ValueError for names that no walk through directories gives.
    """

    flat = False

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.folders = Folders(self._file_start, self.columns["suffix"], list(self.suffixes))
        self._first_with = self._shared()
        self.nbytes += self.folders.nbytes + 4 * self.files

    def _shared(self) -> array[int]:
        """For each file the first one with the same bytes, where these are outside of all records."""
        own_bytes = int(self.columns["record_end"].max(initial=0))
        seen: dict[tuple[int, int, int], int] = {}
        made = array("I", range(self.files))
        outside = (self.columns["kind"] == SLICE) & (self.columns["offset"] >= own_bytes)
        for file in np.flatnonzero(outside).tolist():
            made[file] = seen.setdefault((self._offset[file], self._length[file], self._prefix[file]), file)
        return made

    @property
    def numbers(self) -> int:
        return self.files + len(self.folders)

    def find(self, name: bytes) -> int | None:
        file = super().find(name)
        return None if file is None else self._first_with[file]

    def same_as(self, files: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        same: np.ndarray[Any, Any] = np.frombuffer(self._first_with, np.uint32)[files]
        return same

    def is_folder(self, number: int) -> bool:
        return number >= self.files

    def find_in(self, folder: int | None, name: bytes) -> int | None:
        """The number of what has this name in a directory, by that one's number (None: the key's own)."""
        if folder is not None:
            child = self.folders.find(folder - self.files, name)
            return None if child is None else self._number_of(folder - self.files, child[1])
        file = None if b"/" in name else self.find(name)
        if file is not None:
            return file
        stem, dot, rest = name.partition(b".")
        sample = self.find_sample(stem) if dot else None
        if sample is None:
            return None
        below = self.folders.top(self._file_start[sample], self._file_start[sample + 1], rest)
        return None if below is None else self.files + below

    def _number_of(self, folder: int, first: int) -> int:
        below = self.folders.at(folder, first)
        return self._first_with[first] if below is None else self.files + below

    def children(self, folder: int | None, start: int) -> Iterator[tuple[bytes, int, int]]:
        """(name, number, offset behind it) of what is in a directory, from offset `start` on."""
        if folder is not None:
            for name, first, end in self.folders.children(folder - self.files, start):
                yield name, self._number_of(folder - self.files, first), end
            return
        behind = 0
        for name, _, file in self.listing(start):
            if file < behind:
                continue
            below = self.folders.at(ROOT, file)
            if below is None:
                yield name, self._first_with[file], file + 1
            else:
                behind = self.folders.end(below)
                yield name.partition(b"/")[0], self.files + below, behind

    def walk(self, path: bytes) -> int | None:
        """The number of what a path from the key's own directory leads to."""
        number: int | None = None
        for part in path.split(b"/"):
            if number is not None and not self.is_folder(number):
                return None
            number = self.find_in(number, part)
            if number is None:
                return None
        return number


def make_table(*, linked: bool, suffixes: Strings, **parts: Any) -> ShardTable:
    """A table of whichever kind these parts need. ValueError as for FolderTable."""
    kind = FolderTable if linked or b"/" in suffixes.data else ShardTable
    return kind(suffixes=suffixes, **parts)


def number_format(digits: int) -> bytes:
    """The format of samples' numbers."""
    return b"%%0%dd" % digits
