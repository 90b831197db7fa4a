"""Which files of a shard a view shows, and under which names: columns out of a shard's table, no object per file.

`chosen` and the functions beside it say which files are shown; `KeyFiles` holds them for one key, and `Rows` lists any
of many keys' in any order. Pure; knows nothing of directories, light fields or mounts.
"""

from __future__ import annotations

import stat
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from shardfs import config, names
from shardfs.attributes import Attributes
from shardfs.index import RENDER, ShardTable
from shardfs.model import Inode
from shardfs.strings import Strings, number_of, sorted_numbers
from shardfs.tree import KeyDirectory

Numbers = np.ndarray[Any, np.dtype[Any]]

IMAGES = frozenset((b"bmp", b"dng", b"gif", b"heic", b"jpeg", b"jpg", b"mpo", b"png", b"tif", b"tiff", b"webp"))
"""Extensions of pictures, by which a field is preferred where none was named."""

_SECONDARY = frozenset((b"cls", b"cls2", b"class", b"id", b"index", b"txt", b"text", b"json", b"jsn"))
"""Extensions of what stands beside the thing itself in WebDataset's samples: shown where there is nothing else."""

_PICTURE, _HEAVY, _BESIDE, _LIGHT = range(4)


class Entries(NamedTuple):
    """A run of a listing: what is different for each entry."""

    names: list[bytes]
    inodes: Numbers
    """uint64, as all of these."""
    sizes: Numbers
    mtimes_ns: Numbers

    @staticmethod
    def alike(names: list[bytes], first: int, mtime_ns: int) -> Entries:
        """Directories of one age, with numbers that follow one another."""
        count = len(names)
        numbers = np.arange(count, dtype=np.uint64) + np.uint64(first)
        return Entries(names, numbers, np.zeros(count, np.uint64), np.full(count, mtime_ns, np.int64))


@dataclass(frozen=True, slots=True)
class Chosen:
    """Files of one table: their numbers there, each with its sample's, and what their names are behind the sample's
    first dot: a number in `rests`."""

    files: Numbers
    samples: Numbers
    rest: Numbers
    rests: list[bytes]


def extension(suffix: bytes) -> bytes:
    """The last part of a file's name: `jpg` of `image.jpg` and of `jpg`."""
    return suffix.rpartition(b"/")[2].rpartition(b".")[2]


def flat_suffixes(table: ShardTable) -> list[bytes]:
    """The suffixes of a table as they are in one directory: a file of a directory inside the key has `%2F` in its name
    for each `/`, told apart from one that is called so."""
    shown = list(table.suffixes)
    if table.flat and b"/" not in table.suffixes.data:
        return shown
    taken = {suffix for suffix in shown if b"/" not in suffix}
    for at, suffix in enumerate(shown):
        if b"/" in suffix:
            plain = made = suffix.replace(b"/", b"%2F")
            count = 1
            while made in taken:
                count += 1
                made = b"%s~%d" % (plain, count)
            taken.add(made)
            shown[at] = made
    return shown


def all_files(table: ShardTable) -> Chosen:
    """Every file of a table."""
    files = np.arange(table.files, dtype=np.uint32)
    files = files[_no_folders(table)]
    return Chosen(files, _samples(table, files), table.columns["suffix"][files], flat_suffixes(table))


def heavy_files(table: ShardTable) -> Chosen:
    """Every file but the `.json` of light fields, and a member of that name."""
    keep = np.array([suffix != b"json" for suffix in table.suffixes] or [True], bool)
    files = np.flatnonzero(keep[table.columns["suffix"]] & _no_folders(table)).astype(np.uint32)
    return Chosen(files, _samples(table, files), table.columns["suffix"][files], flat_suffixes(table))


def field_files(table: ShardTable, field: str) -> Chosen:
    """The files of one field: `<sample>.jpg` of `<sample>.<field>.jpg`, `<sample>.0.jpg` of a list's first."""
    stem = names.escape(field).encode("utf-8")
    rests = []
    for suffix in flat_suffixes(table):
        same = suffix == stem or (b"." not in suffix and suffix == extension(stem))
        rests.append(suffix if same else suffix.removeprefix(stem + b".") if suffix.startswith(stem + b".") else b"")
    wanted = np.array([bool(rest) for rest in rests] or [False], bool)
    files = np.flatnonzero(wanted[table.columns["suffix"]] & _no_folders(table)).astype(np.uint32)
    return Chosen(files, _samples(table, files), table.columns["suffix"][files], rests)


def first_files(table: ShardTable, pictures: bool = False) -> Chosen:
    """One file of each sample: the first picture, else the first other file, else what stands beside such, else its
    `.json`. With `pictures` only these."""
    ranks = np.array([_rank(suffix) for suffix in table.suffixes] or [_LIGHT], np.uint64)
    rank = ranks[table.columns["suffix"]]
    light = (table.columns["kind"] == RENDER) & (rank == _BESIDE)
    rank[light] = _LIGHT
    starts = table.columns["file_start"].astype(np.int64)
    some = np.flatnonzero(np.diff(starts))
    files = np.zeros(0, np.uint32)
    if len(some):
        places = np.arange(table.files, dtype=np.uint64)
        rank[~_no_folders(table)] = _LIGHT
        best = np.minimum.reduceat(rank << np.uint64(32) | places, starts[some])
        if pictures:
            best = best[best >> np.uint64(32) == _PICTURE]
        files = (best & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    rests = [extension(suffix) or b"bin" for suffix in table.suffixes]
    return Chosen(files, _samples(table, files), table.columns["suffix"][files], rests)


def text_files(table: ShardTable, fields: Sequence[str]) -> Chosen:
    """The first file of each sample that is the text of one of these fields: `labels.txt`, or a member `txt`."""
    wanted = {b"txt", *(names.escape(field).encode("utf-8") + b".txt" for field in fields)}
    keep = np.array([suffix in wanted for suffix in table.suffixes] or [False], bool)
    files = np.flatnonzero(keep[table.columns["suffix"]]).astype(np.uint32)
    samples, first = np.unique(_samples(table, files), return_index=True)
    files = files[first]
    return Chosen(files, samples, np.zeros(len(files), np.uint32), [b"txt"])


def _rank(suffix: bytes) -> int:
    ext = extension(suffix).lower()
    return _PICTURE if ext in IMAGES else _BESIDE if ext in _SECONDARY else _HEAVY


def _no_folders(table: ShardTable) -> Numbers:
    """False for what only says that there is an empty directory."""
    files = np.array([not suffix.endswith(b"/") for suffix in table.suffixes] or [True], bool)
    shown: Numbers = files[table.columns["suffix"]]
    return shown


def _samples(table: ShardTable, files: Numbers) -> Numbers:
    found = np.searchsorted(table.columns["file_start"], files, "right") - 1
    return found.astype(np.uint32)


class Rests:
    """What follows the samples in the names of a view, each once."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self.texts: list[bytes] = []

    def number(self, text: bytes) -> int:
        known = self._numbers.get(text)
        if known is None:
            known = self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return known

    def numbers(self, texts: Sequence[bytes]) -> Numbers:
        return np.fromiter(map(self.number, texts), np.uint32, len(texts))


class KeyFiles:
    """Files that a view shows of one key, in their order: `<prefix><sample>.<rest>`."""

    def __init__(
        self,
        key: KeyDirectory,
        stems: Strings | None,
        digits: int,
        first: int,
        samples: int,
        prefix: bytes,
        rests: Rests,
    ) -> None:
        """Of a key with so many samples, called by `stems` or by numbers of so many digits from `first` on. No files
        yet: see `fill`."""
        self.slot = key.slot
        self.mtime_ns = key.entry.mtime_ns
        self.prefix = prefix
        self.stems = stems
        self.digits, self.first, self.all_samples = digits, first, samples
        self.rests = rests
        self.files: Numbers = np.zeros(0, np.uint32)
        """Numbers of the files in the table; of what is made for a sample, the sample's."""
        self.samples = self.sizes = self.rest = self.files
        self.base: Inode | None = None
        """The number of what is made for the first sample, where anything is."""
        self.made: Numbers | None = None
        """True where a file is made for its sample, and is none of the table."""
        self._by_stem: memoryview | None = None
        self._rising = True
        self._form = b"%s%%0%dd.%%s" % (prefix.replace(b"%", b"%%"), digits)

    @staticmethod
    def of_table(key: KeyDirectory, table: ShardTable, prefix: bytes, chosen: Chosen, rests: Rests) -> KeyFiles:
        """The chosen files of a table."""
        made = KeyFiles(key, table.stems, table.digits, table.first_sample, table.samples, prefix, rests)
        longest = table.digits if table.stems is None else int(np.diff(table.stems.starts).max(initial=0))
        room = config.NAME_MAX - len(prefix) - longest - 1
        numbers = np.zeros(len(chosen.rests) or 1, np.uint32)
        used = np.flatnonzero(np.bincount(chosen.rest, minlength=len(numbers)))
        numbers[used] = rests.numbers([_fitted(chosen.rests[number], room) for number in used.tolist()])
        lengths = table.columns["length"][chosen.files]
        sizes = lengths + table.prefix_sizes[table.columns["prefix"][chosen.files]]
        made.fill(table.same_as(chosen.files), chosen.samples, sizes, numbers[chosen.rest])
        return made

    def fill(self, files: Numbers, samples: Numbers, sizes: Numbers, rest: Numbers) -> None:
        """These are the files: a number, the sample, the size and what follows the sample's name, for each."""
        self.files, self.samples = files, _narrow(samples)
        self.sizes, self.rest = _narrow(sizes), _narrow(rest)
        self._rising = bool(np.all(self.samples[1:] >= self.samples[:-1]))

    def __len__(self) -> int:
        return len(self.files)

    @property
    def nbytes(self) -> int:
        stems = 0 if self.stems is None else self.stems.nbytes + 4 * len(self.stems)
        return stems + self.rest.nbytes + self.files.nbytes + self.samples.nbytes + self.sizes.nbytes

    def add_made(self, base: Inode, samples: Numbers, sizes: Numbers, rest: bytes) -> None:
        """Files of these samples that are none of the table, behind the others."""
        before, count = len(self.files), len(samples)
        self.base, self._rising = base, False
        self.made = np.arange(before + count) >= before
        self.files = np.concatenate((self.files, samples.astype(np.uint32)))
        self.samples = _narrow(np.concatenate((self.samples, samples)))
        self.sizes = _narrow(np.concatenate((self.sizes, sizes)))
        self.rest = _narrow(np.concatenate((self.rest, np.full(count, self.rests.number(rest)))))

    def inode(self, position: int) -> int:
        file = int(self.files[position])
        if self.made is not None and self.base is not None and self.made[position]:
            return self.base + file
        return self.slot << 32 | file

    def name(self, sample: int, rest: int) -> bytes:
        """The name of a file, by its sample and the number of what follows that."""
        if self.stems is None:
            return self._form % (self.first + sample, self.rests.texts[rest])
        return b"%s%s.%s" % (self.prefix, self.stems[sample], self.rests.texts[rest])

    def find(self, stem: bytes, rest: bytes) -> list[int]:
        """Positions of the files of that name without the prefix."""
        sample = self._sample(stem)
        if sample is None:
            return []
        found: list[int] = []
        if self._rising:
            numbers = self.samples.data  # its items are plain integers: found in a microsecond, where numpy takes ten
            low = bisect_left(numbers, sample)
            places: Sequence[int] = range(low, bisect_right(numbers, sample, low))
        else:
            places = np.flatnonzero(self.samples == sample).tolist()
        for at in places:
            if self.rests.texts[self.rest[at]] == rest:
                found.append(at)
        return found

    def _sample(self, stem: bytes) -> int | None:
        if self.stems is not None:
            if self._by_stem is None:
                self._by_stem = sorted_numbers(self.stems).data
            return number_of(self.stems, self._by_stem, stem)
        if len(stem) != self.digits or not stem.isdigit():
            return None
        sample = int(stem) - self.first
        return sample if 0 <= sample < self.all_samples else None


def _fitted(rest: bytes, room: int) -> bytes:
    """What follows a sample's name, cut so that it fits; its extension stays where that is a short one."""
    if len(rest) <= room:
        return rest
    stem, dot, ext = rest.rpartition(b".")
    if not stem or len(ext) > config.EXTENSION_MAX:
        stem, dot, ext = rest, b"", b""
    cut = names.shorten(stem.decode("utf-8", "surrogateescape"), room - len(dot + ext))
    return cut.encode("utf-8", "surrogateescape") + dot + ext


def _narrow(numbers: Numbers) -> Numbers:
    """The same in the smallest type that holds them: there are millions."""
    most = int(numbers.max(initial=0))
    return numbers.astype(np.uint8 if most < 1 << 8 else np.uint16 if most < 1 << 16 else np.min_scalar_type(most))


class Columns:
    """The files of many keys, one key behind the other: columns over all of them, parts of which are the keys'."""

    def __init__(self, keys: Sequence[KeyFiles]) -> None:
        self.keys = keys
        self.starts = np.zeros(len(keys) + 1, np.int64)
        np.cumsum([len(key) for key in keys], out=self.starts[1:])
        self._slots = np.array([key.slot for key in keys], np.uint64) << np.uint64(32)
        self._bases = np.array([key.base or 0 for key in keys], np.uint64)
        self._mtimes = np.array([key.mtime_ns for key in keys], np.int64)
        self.files = _joined([key.files for key in keys])
        self.samples = _joined([key.samples for key in keys])
        self.sizes = _joined([key.sizes for key in keys])
        self.rest = _joined([key.rest for key in keys])
        self.made = None
        if any(key.made is not None for key in keys):
            self.made = _joined([np.zeros(len(key), bool) if key.made is None else key.made for key in keys])
        for key, (start, end) in zip(keys, pairwise(self.starts.tolist()), strict=True):
            key.files, key.samples = self.files[start:end], self.samples[start:end]
            key.sizes, key.rest = self.sizes[start:end], self.rest[start:end]

    def __len__(self) -> int:
        return len(self.files)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, the names of samples not counted."""
        return self.files.nbytes + self.samples.nbytes + self.sizes.nbytes + self.rest.nbytes

    def owners(self, places: Numbers) -> Numbers:
        """Which of the keys each file is of."""
        found: Numbers = np.searchsorted(self.starts, places, "right") - 1
        return found

    def entries(self, places: Numbers) -> Entries:
        """The files at these places, without an object for each but its name."""
        owners, keys = self.owners(places), self.keys
        files = self.files[places].astype(np.uint64)
        numbers = files | self._slots[owners]
        if self.made is not None:
            numbers = np.where(self.made[places], files + self._bases[owners], numbers)
        samples, rest = self.samples[places].tolist(), self.rest[places].tolist()
        made = [keys[key].name(at, by) for key, at, by in zip(owners.tolist(), samples, rest, strict=True)]
        return Entries(made, numbers, self.sizes[places].astype(np.uint64), self._mtimes[owners])


def _joined(parts: list[Numbers]) -> Numbers:
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


class Rows:
    """A listing of files out of columns, in any order."""

    def __init__(self, columns: Columns, order: Numbers, lasting: float) -> None:
        """`lasting`: for how many seconds a name may be believed."""
        self._columns = columns
        self._order = order
        self._lasting = lasting

    def __len__(self) -> int:
        return len(self._order)

    def entry(self, at: int) -> tuple[bytes, Attributes]:
        """One of them, with its attributes."""
        (name,), numbers, sizes, mtimes = self.batch(at, at + 1)
        return name, file_attributes(int(numbers[0]), int(sizes[0]), int(mtimes[0]), self._lasting)

    def batch(self, first: int, last: int) -> Entries:
        """Those from `first` to `last`."""
        return self._columns.entries(self._order[first:last])


def rows_of(key: KeyFiles, lasting: float) -> Rows:
    """All of one key's."""
    return Rows(Columns([key]), np.arange(len(key)), lasting)


def file_attributes(inode: int, size: int, mtime_ns: int, lasting: float) -> Attributes:
    """Of a file that stays what it is; its name may be believed for so many seconds."""
    return Attributes(inode, stat.S_IFREG | 0o444, size, mtime_ns, 1, lasting, config.FOREVER)


Choose = Callable[[ShardTable], Chosen]
