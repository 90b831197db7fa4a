"""What a shard holds, packed: names, sizes and positions of all its files, 25 bytes a file and no object per file.

A table is built by walking a shard once (`build`) and then answers without it; only reading a file's content needs the
shard again. Knows nothing of inodes, caches or mounts.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import numpy as np

from shardfs import config, layout, names, shapes
from shardfs.drivers.base import LinksFiles, NamesSamples, Record, Shard, ShardReader
from shardfs.errors import DamagedShardError
from shardfs.folders import ROOT, Folders
from shardfs.shapes import File
from shardfs.values import Buffer, Members

KEY_FIELD = "__key__"
"""A text field of this name, different in every sample of a shard, names the samples (WebDataset's convention)."""

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


class _Packed:
    """Many short byte strings in one, each known by its number."""

    def __init__(self) -> None:
        self._numbers: dict[str | bytes, int] = {}
        self._data = bytearray()
        self._starts = array("Q", [0])

    def number(self, text: str | bytes) -> int:
        """One and the same kind of text each time: the number goes by what is given, not by its bytes."""
        known = self._numbers.get(text)
        if known is None:
            known = self._numbers[text] = len(self._numbers)
            self._data += text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
            self._starts.append(len(self._data))
        return known

    def pack(self) -> Strings:
        return Strings(bytes(self._data), np.frombuffer(self._starts, np.uint64).copy())


@dataclass(frozen=True, slots=True)
class Strings:
    """Byte strings by number: one buffer and where each begins."""

    data: bytes
    starts: np.ndarray[Any, np.dtype[np.uint64]]

    def __getitem__(self, number: int) -> bytes:
        return self.data[int(self.starts[number]) : int(self.starts[number + 1])]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[bytes]:
        starts = self.starts.tolist()
        return (self.data[start:end] for start, end in pairwise(starts))

    @property
    def nbytes(self) -> int:
        return len(self.data) + self.starts.nbytes


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
        self._number = _number(digits)
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


def _number(digits: int) -> bytes:
    """The format of samples' numbers."""
    return b"%%0%dd" % digits


def sorted_numbers(strings: Strings) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.array(sorted(range(len(strings)), key=strings.__getitem__), dtype=np.uint32)


def number_of(strings: Strings, order: memoryview, text: bytes) -> int | None:
    """The number of a text among others, by the numbers of all in the order of the texts (`sorted_numbers`)."""
    at = bisect_left(order, text, key=strings.__getitem__)
    return order[at] if at < len(order) and strings[order[at]] == text else None


class _Builder:
    """A table as it grows: unboxed arrays only."""

    def __init__(self, arrays: str) -> None:
        self._arrays = arrays
        self._shapes = shapes.shapes_for(arrays)
        self._file_start = array("I", [0])
        self._record_start = array("Q")
        self._record_end = array("Q")
        self._suffix = array("I")
        self._prefix = array("I")
        self._kind = array("B")
        self._offset = array("Q")
        self._length = array("Q")
        self._suffixes = _Packed()
        self._prefixes = _Packed()
        self._prefixes.number(b"")
        self.notes: list[Note] = []

    def add(self, record: Record, stem: bytes, shard: Shard) -> None:
        files = self._shapes.files(record.tree, shard.raw, len(stem))
        if files is None:
            files = self._laid_out(record, stem, shard)
        for suffix, prefix, rendered, offset, length in files:
            self._suffix.append(self._suffixes.number(suffix))
            self._prefix.append(self._prefixes.number(prefix) if prefix else 0)
            self._kind.append(RENDER if rendered else SLICE)
            self._offset.append(offset)
            self._length.append(length)
        self._record_start.append(record.start)
        self._record_end.append(record.end)
        self._file_start.append(len(self._suffix))

    def _laid_out(self, record: Record, stem: bytes, shard: Shard) -> list[File]:
        """The files of any sample, and its notes."""
        try:
            plans = layout.lay_out(record.tree, shard.raw, self._arrays, len(stem))
        except (RecursionError, ValueError, OverflowError) as error:
            raise DamagedShardError(f"a sample that no files can show: {error}", record.start) from error
        for plan in plans:
            note = plan.content.note
            if note is not None and len(self.notes) < config.ERRORS_KEPT:
                self.notes.append(Note(f"{stem.decode('utf-8')}.{plan.suffix}", note))
        return [shapes.file_of(plan.suffix, plan.content) for plan in plans]

    def table(self, shard: Shard, stems: Strings | None, first_sample: int, digits: int) -> ShardTable:
        columns: dict[str, np.ndarray[Any, Any]] = {
            "file_start": np.frombuffer(self._file_start, np.uint32).copy(),
            "record_start": np.frombuffer(self._record_start, np.uint64).copy(),
            "record_end": np.frombuffer(self._record_end, np.uint64).copy(),
            "suffix": np.frombuffer(self._suffix, np.uint32).copy(),
            "prefix": np.frombuffer(self._prefix, np.uint32).copy(),
            "kind": np.frombuffer(self._kind, np.uint8).copy(),
            "offset": np.frombuffer(self._offset, np.uint64).copy(),
            "length": np.frombuffer(self._length, np.uint64).copy(),
        }
        return make_table(
            linked=shard.linked if isinstance(shard, LinksFiles) else False,
            raw_bytes=shard.size,
            stems=stems,
            first_sample=first_sample,
            digits=digits,
            columns=columns,
            suffixes=self._suffixes.pack(),
            prefixes=self._prefixes.pack(),
            notes=(*self.notes, *(Note("", text) for text in getattr(shard, "notes", ()))),
        )


def build(shard: Shard, arrays: str) -> ShardTable:
    """Walk a shard from end to end and pack what it holds. All or nothing: DamagedShardError."""
    records = shard.records()
    if isinstance(shard, NamesSamples):
        return _called(shard, arrays, zip(records, shard.stems(), strict=True))
    first = next(records, None)
    if first is not None:
        records = chain((first,), records)  # each record is decoded once, which is most of the work
        if _own_name(first) is not None:
            try:
                return _called(shard, arrays, _by_own_names(records))
            except _UnnamedError:
                records = shard.records()
    digits = names.digits_for(shard.samples_through or 0)
    builder, count = _numbered(shard, arrays, digits, records)
    if shard.samples_through is None and names.digits_for(count) != digits:
        digits = names.digits_for(count)
        builder, _ = _numbered(shard, arrays, digits, shard.records())
    return builder.table(shard, None, shard.first_sample, digits)


def _numbered(shard: Shard, arrays: str, digits: int, records: Iterator[Record]) -> tuple[_Builder, int]:
    builder = _Builder(arrays)
    number = _number(digits)
    count = 0
    for record in records:
        builder.add(record, number % (shard.first_sample + count), shard)
        count += 1
    return builder, count


def _called(shard: Shard, arrays: str, records: Iterable[tuple[Record, str]]) -> ShardTable:
    """The table of samples that are called otherwise than by numbers."""
    builder, packed = _Builder(arrays), _Packed()
    for record, stem in records:
        encoded = stem.encode("utf-8")
        packed.number(encoded)
        builder.add(record, encoded, shard)
    return builder.table(shard, packed.pack(), 0, 0)


class _UnnamedError(Exception):
    """A sample has no name of its own, or another's."""


def _by_own_names(records: Iterator[Record]) -> Iterator[tuple[Record, str]]:
    """Samples with the names before the first dot of their files. Members have names that their driver keeps apart."""
    seen: set[str] = set()
    for record in records:
        own = _own_name(record)
        if own is None:
            raise _UnnamedError
        stem = names.escape_sample(own)
        if type(record.tree) is not Members:
            if names.same_name(stem) in seen:
                raise _UnnamedError
            seen.add(names.same_name(stem))
        yield record, stem


def _own_name(record: Record) -> str | None:
    if type(record.tree) is Members:
        return record.tree.key
    own = record.tree.get(KEY_FIELD) if type(record.tree) is dict else None
    return own if type(own) is str else None
