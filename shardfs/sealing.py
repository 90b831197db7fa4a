"""A directory of files as the records of one shard: what a seal writes. The inverse of `table_building`.

`seal` groups a key's files into samples and gives them one after the other, each as the stored record where nothing of
it changed, else as a value to encode; it holds one sample's files at a time. Knows layout, tables and shards; nothing
of FUSE, of where changed files lie, or of how a store is written.

Which files are one sample: those whose names are equal up to the first dot. That part, the *stem*, is a sample's number
or its name; a name is kept in the sample as its `__key__`, a number is not. A key has numbers where its table has
(`ShardTable.stems` is None), and there a number is written with as many digits as the table's; a new key's numbers have
config.SAMPLE_DIGITS at least, so that a folder of `1.jpg`, `2.jpg` keeps its names. In a key whose samples have names,
any stem is one. A file without anything behind its stem is no part of a sample: BadSampleError.

Order: stored samples as they are stored, then new ones: numbers first, numerically, then names in order of their bytes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardfs import config, layout, names, reading_back
from shardfs.drivers.base import Cell, Files, KeptFiles, NewRecord, ShardReader, Value, Verbatim
from shardfs.errors import BadSampleError, StorageError
from shardfs.index import ShardTable
from shardfs.table_building import KEY_FIELD
from shardfs.values import Buffer

_TEMPORARY = re.compile(
    r"""\..*            # hidden ones: rsync's .name.XXXXXX, .nfs0000, .fuse_hidden, vim's .name.swp, emacs's .#name
        | .*~           # backups of editors
        | .*\.(tmp|partial)
        | \#.*\#        # emacs's unsaved changes
        | [0-9]{4,5}    # vim looks with 4913, 5036, ... whether it may write here
        | sed[A-Za-z0-9]{6}  # sed -i
    """,
    re.VERBOSE | re.DOTALL,
)


def is_temporary(name: bytes) -> bool:
    """True for a name that a program gives a file for a while, and that never becomes part of a sample:

    `.x` (so also `.nfs*`, `.name.swp` and rsync's `.name.XXXXXX`), `x~`, `x.tmp`, `x.partial`, `#x#`, vim's `4913` and
    the like (four or five digits, no dot), sed's `sedXXXXXX`. No name that a sample's file is shown under is one.
    """
    return _TEMPORARY.fullmatch(name.decode("utf-8", "replace")) is not None


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that is as the stored shard has it."""

    sample: int
    """The sample's position in the stored shard."""
    file: int
    """The file's number in its table."""


@dataclass(frozen=True, slots=True)
class Changed:
    """A file that was written."""

    read: Callable[[], Buffer | bytes]
    """Its whole content; called once at most for each record that is made."""
    size: int


Source = Stored | Changed


@dataclass(frozen=True, slots=True)
class Base:
    """The stored shard that the files were changed from: the table that names them, made with `arrays`, and its
    content."""

    reader: ShardReader
    table: ShardTable
    arrays: str
    verbatim: bool = True
    """False if what is written has another format than the stored shard: then every sample is encoded."""

    def content(self, file: int) -> bytes:
        run = self.table.slice_of(file)
        if run is None:
            return self.table.render(file, self.reader, self.arrays)
        prefix, offset, length = run
        return b"".join((prefix, self.reader.fetch(offset, offset + length)))

    def files(self, sample: int) -> range:
        starts = self.table.columns["file_start"]
        return range(int(starts[sample]), int(starts[sample + 1]))

    def suffix(self, file: int) -> str:
        return self.table.name(file).partition(b".")[2].decode("utf-8")

    def record(self, sample: int) -> Buffer:
        columns = self.table.columns
        return self.reader.fetch(int(columns["record_start"][sample]), int(columns["record_end"][sample]))


@dataclass(frozen=True, slots=True)
class _Group:
    """One sample to be."""

    stem: str
    number: int | None
    """Its number, if the stem is one."""
    stored: int | None
    """Position of the stored sample of that stem."""
    files: list[tuple[str, Source]]


class Seal:
    """The samples of a directory, in their order. Made by `seal`."""

    def __init__(self, groups: list[_Group], base: Base | None, as_files: bool = False) -> None:
        self._groups = groups
        self._base = base
        self._as_files = as_files
        self._named = base is not None and base.table.stems is not None

    def __len__(self) -> int:
        return len(self._groups)

    def __iter__(self) -> Iterator[NewRecord]:
        """All samples, as often as that is asked: who has to know all of them before the first is written may."""
        return self.records()

    def records(self) -> Iterator[NewRecord]:
        """All samples. BadSampleError for a file that does not parse; errors of `ShardReader.fetch` and of `read`."""
        return map(self._files if self._as_files else self._record, self._groups)

    def renamed(self, table: ShardTable) -> list[tuple[bytes, bytes | None]]:
        """Old and new name of each file whose name is another one now that the shard is stored and has `table`.

        None: there is no such file any more, its content is in another file of the sample (`cat.jpeg` is shown as
        `cat.jpeg.jpg`, as any field `jpeg` is). A name that is gone may be in use for another sample's file.
        """
        changes: list[tuple[bytes, bytes | None]] = []
        for sample, group in enumerate(self._groups):
            stem = table.stem(sample)
            for suffix, _ in group.files:
                tail = b"." + suffix.encode("utf-8")
                there = table.find(stem + tail) is not None
                if not there or stem != group.stem.encode("utf-8"):
                    changes.append((group.stem.encode("utf-8") + tail, stem + tail if there else None))
        return changes

    def _record(self, group: _Group) -> NewRecord:
        base = self._base
        origin = self._origin(group)
        if base is None or origin is None:
            contents = {suffix: bytes(self._content(source)) for suffix, source in group.files}
            return Value(self._with_key(reading_back.read(contents, group.stem), group).value, group.stem)
        record = base.record(origin)
        kept = group.stored == origin or (group.number is not None and not self._named)
        if base.verbatim and kept and self._untouched(group, origin, base):
            return Verbatim(record)
        before = {base.suffix(file): base.content(file) for file in base.files(origin)}
        contents = {
            suffix: before[base.suffix(source.file)]
            if isinstance(source, Stored) and source.sample == origin
            else bytes(self._content(source))
            for suffix, source in group.files
        }
        kept_files = frozenset(suffix for suffix, source in group.files if isinstance(source, Stored))
        sample = self._with_key(reading_back.read(contents, group.stem, kept_files), group)
        stem = base.table.stem(origin).decode("utf-8")
        cells = base.reader.cells(record) if base.verbatim else None
        stored = reading_back.Stored(base.reader.decode(record), record, before, stem, cells)
        value, unchanged = stored.restored(sample, contents, Cell)
        return Verbatim(record) if unchanged and base.verbatim else Value(value, group.stem)

    def _files(self, group: _Group) -> Value:
        """The sample for a driver that keeps files as they are, those that were not changed with all that stands around
        them in the store."""
        base, stored = self._base, {}
        key = reading_back.field_name(group.stem)
        if base is not None and group.stored is not None and isinstance(base.reader, KeptFiles):
            kept = base.reader.kept(group.stored)
            key = kept.key
            numbers = zip(base.files(group.stored), kept.members, strict=True)
            stored = {base.suffix(number): (number, *member) for number, member in numbers}
        files: list[tuple[str, bytes | Buffer | Cell]] = []
        places = {suffix: place for place, suffix in enumerate(stored)}
        for suffix, source in sorted(group.files, key=lambda file: places.get(file[0], len(places))):
            number, own, start, end = stored.get(suffix, (None, reading_back.field_name(suffix), 0, 0))
            if base is not None and isinstance(source, Stored) and source.file == number:
                files.append((own, Cell(bytes(base.reader.fetch(start, end)))))
            else:
                files.append((own, self._content(source)))
        return Value(Files(key, tuple(files)), group.stem)

    def _origin(self, group: _Group) -> int | None:
        """The stored sample that tells the types of this one: of the same name, else the one its files come from."""
        if group.stored is not None:
            return group.stored
        return next((source.sample for _, source in group.files if isinstance(source, Stored)), None)

    @staticmethod
    def _untouched(group: _Group, origin: int, base: Base) -> bool:
        if len(group.files) != len(base.files(origin)):
            return False
        return all(
            isinstance(source, Stored) and source.sample == origin and base.suffix(source.file) == suffix
            for suffix, source in group.files
        )

    def _content(self, source: Source) -> Buffer | bytes:
        if isinstance(source, Changed):
            return source.read()
        assert self._base is not None
        return self._base.content(source.file)

    def _with_key(self, sample: reading_back.Sample, group: _Group) -> reading_back.Sample:
        """The sample with its name in it, unless it is a number or is what the sample says of itself."""
        if group.number is not None and not self._named:
            return sample
        if not isinstance(sample.value, dict):
            file = f"{group.stem}.{group.files[0][0]}"
            raise BadSampleError(file, "a sample that is a lone value can have a number for its name only")
        own = sample.value.get(KEY_FIELD)
        if not isinstance(own, str) or names.escape_sample(own) != group.stem:
            key = reading_back.field_name(group.stem)
            value = {KEY_FIELD: key, **{name: item for name, item in sample.value.items() if name != KEY_FIELD}}
            return reading_back.Sample(value, sample.files)
        return sample


def seal(files: Sequence[tuple[bytes, Source]], base: Base | None = None, as_files: bool = False) -> Seal:
    """The samples that these files are, temporary ones left out. `base` is what the key has in the store, if it is not
    new. `as_files`: for a driver that keeps samples as files, which are not looked into. BadSampleError for a name that
    cannot be a sample's file, and for one that is given twice; NotWritableError for a base that cannot be kept;
    StorageError, EFBIG, for a file that no field can hold."""
    for name, source in files if not as_files else ():
        if isinstance(source, Changed) and source.size > config.VALUE_BYTES and not is_temporary(name):
            text = f"{os.fsdecode(name)} has {source.size} bytes, and no field can have more than {config.VALUE_BYTES}"
            raise StorageError(text, errno.EFBIG)
    if as_files and base is not None and isinstance(base.reader, KeptFiles):
        base.reader.check_kept()
    return Seal(_groups(files, None if base is None else base.table), base, as_files)


def renames(files: Sequence[tuple[bytes, Source]], table: ShardTable | None, first: int) -> bool:
    """Whether `seal` would give some of these samples other names. `table` is that of its base; a new shard's first
    sample has the number `first`. BadSampleError as `seal`."""
    groups = _groups(files, table)
    if all(group.number is None for group in groups) and (table is None or table.stems is not None):
        return False  # all have names of their own, and keep them
    start = first if table is None else table.first_sample
    return any(group.number != number for number, group in enumerate(groups, start))


def _groups(files: Sequence[tuple[bytes, Source]], table: ShardTable | None) -> list[_Group]:
    grouped: dict[str, dict[str, Source]] = {}
    for name, source in files:
        if is_temporary(name):
            continue
        stem, suffix = _split(name, isinstance(source, Stored))
        group = grouped.setdefault(stem, {})
        if suffix in group:
            raise BadSampleError(f"{stem}.{suffix}", "two files of one name")
        group[suffix] = source
    stored = _positions(table)
    number = _numbering(table)
    groups = [_Group(stem, number(stem), stored(stem), list(found.items())) for stem, found in grouped.items()]
    return sorted(groups, key=_order)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where files went that a shard was made of."""

    numbers: Mapping[bytes, int | None]
    """Their names -> the file of the new shard that has their field. None: it is in another one, together with others
    (`cat.cls` in `cat.json`), or not in this shard. Those that are no part of samples are not here."""
    stems: Mapping[bytes, bytes]
    """The samples' names -> what they are called in the new shard."""


def placed(files: Sequence[tuple[bytes, Source]], before: ShardTable | None, after: ShardTable) -> Placed:
    """Where the files of a seal went: `before` is the table of its base, `after` that of the shard that was made of
    them. BadSampleError as `seal`."""
    numbers: dict[bytes, int | None] = {}
    stems: dict[bytes, bytes] = {}
    starts = after.columns["file_start"]
    for sample, group in enumerate(_groups(files, before)):
        old = group.stem.encode("utf-8")
        there: dict[bytes, int] = {}
        if sample < after.samples:
            stems[old] = after.stem(sample)
            there = {after.suffix(file): file for file in range(int(starts[sample]), int(starts[sample + 1]))}
        fields = {suffix.rpartition(b".")[0] or suffix: file for suffix, file in there.items()}
        for text, _ in group.files:
            suffix = text.encode("utf-8")
            field = suffix.rpartition(b".")[0] or suffix
            number = there.get(suffix)
            if number is None and text != layout.JSON:
                number = fields.get(field)
            numbers[old + b"." + suffix] = number
    return Placed(numbers, stems)


def _split(name: bytes, stored: bool = False) -> tuple[str, str]:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadSampleError(name.decode("utf-8", "backslashreplace"), "a name that is not UTF-8") from error
    stem, _, suffix = text.partition(".")
    if not (stored or suffix.rpartition(".")[2]):
        raise BadSampleError(text, "a file without an extension, which tells no field and no type")
    return stem, suffix


def _order(group: _Group) -> tuple[int, int, bytes]:
    if group.stored is not None:
        return 0, group.stored, b""
    if group.number is not None:
        return 1, group.number, group.stem.encode("utf-8")
    return 2, 0, group.stem.encode("utf-8")


def _positions(table: ShardTable | None) -> Callable[[str], int | None]:
    """Which stored sample has a stem."""
    if table is None:
        return lambda stem: None
    if table.stems is not None:
        known = {stem: at for at, stem in enumerate(table.stems)}
        return lambda stem: known.get(stem.encode("utf-8"))

    def position(stem: str) -> int | None:
        if len(stem) != table.digits or not _is_number(stem):
            return None
        at = int(stem) - table.first_sample
        return at if 0 <= at < table.samples else None

    return position


def _numbering(table: ShardTable | None) -> Callable[[str], int | None]:
    """Which number a stem is, if it is one."""
    least = config.SAMPLE_DIGITS if table is None else table.digits

    def number(stem: str) -> int | None:
        fits = len(stem) == least or (len(stem) > least and (table is None or stem[0] != "0"))
        return int(stem) if fits and _is_number(stem) and len(stem) < 20 else None

    return (lambda stem: None) if table is not None and table.stems is not None else number


def _is_number(stem: str) -> bool:
    return stem.isascii() and stem.isdigit()


__all__ = [
    "Base",
    "Changed",
    "Placed",
    "Seal",
    "Source",
    "Stored",
    "Value",
    "Verbatim",
    "is_temporary",
    "placed",
    "renames",
    "seal",
]
