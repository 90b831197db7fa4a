"""The inside of a WebDataset shard: the members of a tar as samples. Knows nothing of keys, of where a tar lies, or of
how one is written.

Which members are a sample, and what their fields are called, is what webdataset 1.0.2 makes of them (tariterators.py:
`base_plus_ext`, `tar_file_iterator`), but that members of one sample need not stand side by side here, nor are
extensions made lower case in the tree. What the library passes over is a file with the suffix NO_SUFFIX.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shardfs import config, zstd_frames
from shardfs.drivers.base import InMemory, Kept, Record
from shardfs.drivers.in_place import InPlace
from shardfs.drivers.tar_headers import Member, Read, listing
from shardfs.errors import DamagedShardError, NotWritableError
from shardfs.raw_bytes import Whole
from shardfs.storage.base import Reader
from shardfs.values import NO_SUFFIX, Buffer, Members, Named, Tree

_HERE = re.compile(r"(\./+)+")
_META = re.compile(r"__[^/]*__($|/)")
"""Members that the library takes for remarks of its own."""


def split(name: str) -> tuple[str, str]:
    """A member's name as that of its sample and its suffix; NO_SUFFIX for one that the library passes over."""
    dot = -1 if _META.match(name) else _dot(name)
    return (name, NO_SUFFIX) if dot < 0 else (name[:dot], name[dot + 1 :])


def _dot(name: str) -> int:
    """The place of the dot that divides a name; -1 where the library finds none.

    What its regular expression says (a path, or nothing; some letters but dots; a dot; some letters but slashes), in a
    time that grows no faster than the name: the path ends at a slash of the first line, behind which there is no other
    dot. So it is the first dot behind the last slash, unless that begins the name or follows `a.b/` at once.
    """
    dot = name.find(".", name.rfind("/") + 1)
    if dot <= 0:
        return -1
    other = name.rfind(".", 0, dot)
    newline = name.find("\n")
    end = dot - 1 if newline < 0 else min(newline, dot - 1)
    return dot if other < 0 or name.rfind("/", 0, end) > other else -1


def member_name(key: str, suffix: str) -> str:
    """The inverse of `split`."""
    return key if suffix == NO_SUFFIX else f"{key}.{suffix}"


def plain_name(key: str) -> str:
    """A sample's name without the `./` that tar puts in front: what names the sample here."""
    here = _HERE.match(key)
    return key if here is None else key[here.end() :] or key


@dataclass(slots=True)
class Sample:
    """The members of one sample."""

    key: str
    """As in the tar, with the `./` that it may have in front."""
    members: dict[str, Member] = field(default_factory=dict)
    """By suffix, in their order."""

    @property
    def first(self) -> Member:
        return next(iter(self.members.values()))


@dataclass(frozen=True, slots=True)
class Samples:
    """What is in a tar."""

    by_name: dict[str, Sample]
    """By their names without `./`, in the order of their first members."""
    size: int
    """Bytes of memory that all this takes, about."""
    notes: list[str]
    unkept: str | None
    """Why the tar cannot be written anew without losing something of it."""


def samples(read: Read, size: int) -> Samples:
    """The samples of a tar of `size` bytes. DamagedShardError, and the errors of `read`."""
    found = listing(read, size)
    by_name: dict[str, Sample] = {}
    for member in found.members:
        key, suffix = split(member.name)
        name = plain_name(key)
        sample = by_name.get(name)
        if sample is None:
            sample = by_name[name] = Sample(key)
        if suffix in sample.members:
            found.note(f"{member.name[:200]} stands twice: the last one is shown")
        sample.members[suffix] = member
    size = len(found.members) * config.TAR_MEMBER + sum(len(member.name) for member in found.members)
    return Samples(by_name, size, found.notes, found.unkept)


def _tree(name: str, sample: Sample) -> Members:
    files = [Named(member.offset, member.length, suffix) for suffix, member in sample.members.items()]
    return Members(name, files, apart=all(file.suffix == NO_SUFFIX for file in files))


class _Contents:
    """What all forms of a shard have in common: the samples, found when they are first asked for. Thread-safe."""

    first_sample = 0
    samples_through = None

    def __init__(self, size: int) -> None:
        self._bytes = size
        self._lock = threading.Lock()
        self._known: Samples | None = None

    def _bytes_at(self, start: int, end: int) -> Buffer:
        """The bytes of the tar from `start` to `end`. A method: a function kept here would keep the shard, too, whose
        memory must be free as soon as nobody uses it."""
        raise NotImplementedError

    @property
    def samples(self) -> Samples:
        with self._lock:
            if self._known is None:
                self._known = samples(self._bytes_at, self._bytes)
            return self._known

    def walk(self) -> int:
        """Find the samples; the bytes of memory that they take. DamagedShardError, and the errors of `fetch`."""
        return self.samples.size

    @property
    def _walked(self) -> int:
        """Bytes of memory that the samples take, once they are known."""
        known = self._known
        return 0 if known is None else known.size

    @property
    def notes(self) -> list[str]:
        """What is not shown, or not as one would think; for who has walked the records."""
        return self.samples.notes

    def records(self) -> Iterator[Record]:
        """A record is the run of a sample's first member; its tree has positions in the whole tar."""
        for name, sample in self.samples.by_name.items():
            first = sample.first
            yield Record(first.start, first.end, _tree(name, sample))

    def tree(self, start: int, end: int) -> Tree:
        name = self._by_start[start]
        return _tree(name, self.samples.by_name[name])

    @cached_property
    def _by_start(self) -> dict[int, str]:
        return {sample.first.start: name for name, sample in self.samples.by_name.items()}

    def sample(self, tree: Tree) -> Any:
        """As webdataset gives it, not decoded: suffixes in lower case, unless two of them are alike then."""
        stored = self.samples.by_name[tree.key]
        files = [file for file in tree.files if file.suffix != NO_SUFFIX and not stored.members[file.suffix].link]
        lower = len({file.suffix.lower() for file in files}) == len(files)
        contents = {
            file.suffix.lower() if lower else file.suffix: bytes(self._bytes_at(file.offset, file.offset + file.length))
            for file in files
        }
        return {"__key__": stored.key, **contents}

    def kept(self, sample: int) -> Kept:
        """See `base.KeptFiles`."""
        self.check_kept()
        stored = self._in_order[sample]
        return Kept(stored.key, [(suffix, one.start, one.end) for suffix, one in stored.members.items()])

    def check_kept(self) -> None:
        """See `base.KeptFiles`."""
        if self.samples.unkept is not None:
            raise NotWritableError(f"a tar like this is not changed here: {self.samples.unkept}")

    @cached_property
    def _in_order(self) -> list[Sample]:
        return list(self.samples.by_name.values())


def _refuse(record: Buffer) -> Tree:
    """Stands where a sample would be read out of its record, which a tar's are not: all their files are slices."""
    raise DamagedShardError("no file of a tar is rendered")


def _no_cells(record: Buffer) -> None:
    return None


class TarShard(InMemory, _Contents):
    """A tar in memory."""

    def __init__(self, raw: bytes | Whole) -> None:
        self.raw: Buffer = memoryview(raw).toreadonly()
        _Contents.__init__(self, len(self.raw))

    @property
    def held(self) -> int:
        return len(self.raw) + self._walked

    def _bytes_at(self, start: int, end: int) -> Buffer:
        return self.raw[start:end]

    def decode(self, record: Buffer) -> Tree:
        return _refuse(record)


class TarInPlace(InPlace, _Contents):
    """A tar that is not compressed, read where it lies. It is a whole shard, of which nothing is in memory: `raw` is
    empty."""

    raw: Buffer = memoryview(b"")

    def __init__(self, reader: Reader) -> None:
        InPlace.__init__(self, reader, _refuse, _no_cells)
        _Contents.__init__(self, reader.size)

    @property
    def held(self) -> int:  # type: ignore[override]
        return self._walked

    def _bytes_at(self, start: int, end: int) -> Buffer:
        # not by `fetch`, which has the whole tar read ahead when much is asked of it
        return memoryview(self._reader.read_at(start, end - start))


class FramedTar(zstd_frames.Frames, _Contents):
    """A tar in zstd frames, of which only those are decompressed that are asked for."""

    def __init__(self, file: zstd_frames.Stored, table: zstd_frames.SeekTable, limit: int = config.FRAMES_HELD) -> None:
        zstd_frames.Frames.__init__(self, file, table, limit)
        _Contents.__init__(self, table.size)

    @property
    def held(self) -> int:
        return super().held + self._walked

    def _bytes_at(self, start: int, end: int) -> Buffer:
        return self.fetch(start, end)

    def decode(self, record: Buffer) -> Tree:
        return _refuse(record)

    def cells(self, record: Buffer) -> Mapping[Any, Buffer] | None:
        return None
