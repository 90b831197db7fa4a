"""The index.json of MosaicML Streaming, version 2: what it says of each shard, and the keys that gives.

Pure: bytes in, frozen values out. Knows nothing of storage, of which files are there, or of what is inside a shard.
Strict, because everything above believes it: a doubtful index is refused with the reason. Source of all format facts:
what mosaicml-streaming 0.13.0 writes and reads, found by running it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from shardfs import names
from shardfs.drivers import mds, text_rows
from shardfs.model import Key

FORMATS = ("mds", *text_rows.FORMATS)
_REVISION = re.compile(r"(?<=.)\.r[0-9]+$")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What an index says of one file."""

    name: str
    """Path relative to the root of the data set."""
    size: int
    hashes: MappingProxyType[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """One shard in a split's index."""

    split: str
    """The split's directory with a `/` behind it, or nothing for the root."""
    format: str
    raw: FileInfo
    zip: FileInfo | None
    meta: tuple[FileInfo, FileInfo | None] | None
    """The file of positions that formats of text have beside the one of rows, raw and compressed."""
    compression: str | None
    columns: mds.Columns | text_rows.Columns
    samples: int
    first_sample: int
    samples_through: int
    """Samples of the whole split."""
    identity: str
    """Stands for all that the index says of this shard: another text, another version."""

    @property
    def pairs(self) -> tuple[tuple[FileInfo, FileInfo | None], ...]:
        """The files it is made of, data first, each raw and compressed."""
        data = (self.raw, self.zip)
        return (data,) if self.meta is None else (data, self.meta)


class BadIndexError(ValueError):
    """What is wrong with an index."""


def _need(record: Any, name: str, kind: type, what: str) -> Any:
    value = record.get(name)
    if type(value) is not kind:
        raise BadIndexError(f"{what}: {name} is {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value!r}"[:60]


def parse_index(data: bytes, split: str) -> list[Place]:
    """The shards of one index in its order. `split` is the index's directory with a `/` behind it, or nothing.
    BadIndexError."""
    try:
        index = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadIndexError(f"no JSON ({error})") from error
    if type(index) is not dict or index.get("version") != 2 or type(index.get("shards")) is not list:
        raise BadIndexError("not a version 2 index with a list of shards")
    counts = []
    for number, record in enumerate(index["shards"]):
        if type(record) is not dict or record.get("version") != 2:
            raise BadIndexError(f"shard {number} is no version 2 record")
        counts.append(_need(record, "samples", int, f"shard {number}"))
        if not 0 <= counts[-1] < 1 << 32:
            raise BadIndexError(f"shard {number} has {counts[-1]} samples")
    through, first, places = sum(counts), 0, []
    for number, (record, samples) in enumerate(zip(index["shards"], counts, strict=True)):
        places.append(_parse_shard(record, f"shard {number}", split, samples, first, through))
        first += samples
    return places


def parse_shard(record: dict[str, Any], split: str) -> Place:
    """One shard as an index describes it, alone: its samples are numbered from 0. BadIndexError."""
    if record.get("version") != 2:
        raise BadIndexError("the shard is no version 2 record")
    samples = _need(record, "samples", int, "the shard")
    if not 0 <= samples < 1 << 32:
        raise BadIndexError(f"the shard has {samples} samples")
    return _parse_shard(record, "the shard", split, samples, 0, samples)


def _parse_shard(record: dict[str, Any], what: str, split: str, samples: int, first: int, through: int) -> Place:
    kind = record.get("format")
    if kind not in FORMATS:
        raise BadIndexError(f"{what} has the unknown format {_shown(kind)}")
    codec = record.get("compression")
    if codec is not None and type(codec) is not str:
        raise BadIndexError(f"{what}: compression is {_shown(codec)}")
    # File names show only how many digits the samples' numbers have: a data set that grows keeps its old versions.
    # (A key that is added must not be a conflict for all who are just changing another.)
    text = json.dumps([record, split, first, names.digits_for(through)], sort_keys=True)
    raw, zipped = _parse_pair(record, "data", codec, split, what)
    return Place(
        split=split,
        format=kind,
        raw=raw,
        zip=zipped,
        meta=None if kind == "mds" else _parse_pair(record, "meta", codec, split, what),
        compression=codec,
        columns=_parse_columns(record, kind, what),
        samples=samples,
        first_sample=first,
        samples_through=through,
        identity=hashlib.blake2b(text.encode("ascii"), digest_size=10).hexdigest(),
    )


def _parse_pair(
    record: dict[str, Any], part: str, codec: str | None, split: str, what: str
) -> tuple[FileInfo, FileInfo | None]:
    """The raw and the compressed file of a shard's `data` or `meta`."""
    raw, zipped = f"raw_{part}", f"zip_{part}"
    if (codec is None) != (record.get(zipped) is None):
        raise BadIndexError(f"{what}: compression is {_shown(codec)} but {zipped} is {_shown(record.get(zipped))}")
    return (
        _parse_file(_need(record, raw, dict, what), split, what),
        None if codec is None else _parse_file(_need(record, zipped, dict, what), split, what),
    )


def _parse_columns(record: dict[str, Any], kind: str, what: str) -> mds.Columns | text_rows.Columns:
    if kind == "json":
        declared = _need(record, "columns", dict, what)
        lists = [list(declared), list(declared.values())]
    else:
        lists = [_need(record, f"column_{part}", list, what) for part in ("names", "encodings")]
    if not all(type(text) is str for text in (*lists[0], *lists[1])):
        raise BadIndexError(f"{what}: a column's name or encoding is no text")
    try:
        if kind == "mds":
            sizes = _need(record, "column_sizes", list, what)
            if not all(size is None or type(size) is int for size in sizes):
                raise BadIndexError(f"{what}: a column's size is no number")
            return mds.columns(*map(tuple, (*lists, sizes)))
        separator = _need(record, "separator", str, what) if kind == "xsv" else None
        return text_rows.columns(kind, *map(tuple, lists), separator, _need(record, "newline", str, what))
    except ValueError as error:
        if isinstance(error, BadIndexError):
            raise
        raise BadIndexError(f"{what}: {error}") from error


def _parse_file(record: dict[str, Any], split: str, what: str) -> FileInfo:
    basename = _need(record, "basename", str, what)
    size = _need(record, "bytes", int, what)
    hashes = record.get("hashes", {})
    if type(hashes) is not dict or not all(type(digest) is str for digest in hashes.values()):
        raise BadIndexError(f"{what}: hashes is {_shown(hashes)}")
    if not 0 <= size < 1 << 40:
        raise BadIndexError(f"{what}: bytes is {size}")
    if "\0" in basename or any(part in ("", ".", "..") for part in basename.split("/")):
        raise BadIndexError(f"{what}: {_shown(basename)} is no name inside the data set")
    try:
        os.fsencode(basename)
    except UnicodeEncodeError as error:
        raise BadIndexError(f"{what}: {_shown(basename)} is no file name") from error
    return FileInfo(split + basename, size, MappingProxyType(hashes))


def key_of(raw_name: str, format: str = "mds") -> str:
    """Split and basename, without the format and without the revision that a rewritten shard has in its name."""
    directory, slash, last = raw_name.rpartition("/")
    stem = _REVISION.sub("", last.removesuffix(f".{format}"))
    return directory + slash + (stem if stem.strip(".") else last)


def by_key(splits: Iterable[list[Place]]) -> dict[Key, Place]:
    """Keys for all shards. The order decides who keeps a key that two shards want: the other gets a number behind it.

    A merged index names the files of its sub-directories, which still have their own: each shard is shown once, as
    the first split (the outer one) has it, even if the other has another version.
    """
    shown: dict[tuple[str, str], str] = {}
    places: list[Place] = []
    for split in splits:
        places += [
            place
            for place in split
            if shown.setdefault((key_of(place.raw.name, place.format), place.format), place.split) == place.split
        ]
    taken = {key_of(place.raw.name, place.format) for place in places}
    used: dict[str, int] = {}
    found: dict[Key, Place] = {}
    for place in places:
        plain = key = key_of(place.raw.name, place.format)
        number = used.get(plain, 0) + 1
        while number > 1 and (key := f"{plain}-{number}") in taken:
            number += 1
        used[plain] = number
        taken.add(key)
        found[Key(key)] = place
    return found
