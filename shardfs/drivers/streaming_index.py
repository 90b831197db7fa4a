"""The index.json of MosaicML Streaming, version 2: what it says of each MDS shard, and the keys that gives.

Pure: bytes in, frozen values out. Knows nothing of storage, of which files are there, or of what is inside a shard.
Strict, because everything above believes it: a doubtful index is refused with the reason. Source of all format facts:
what mosaicml-streaming 0.13.0 writes and reads, found by running it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from shardfs import names
from shardfs.drivers import mds
from shardfs.model import Key

_FORMATS = ("mds", "json", "csv", "tsv", "xsv")
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
    raw: FileInfo
    zip: FileInfo | None
    compression: str | None
    columns: mds.Columns
    samples: int
    first_sample: int
    samples_through: int
    """Samples of the whole split."""
    identity: str
    """Stands for all that the index says of this shard: another text, another version."""


class BadIndexError(ValueError):
    """What is wrong with an index."""


def _need(record: Any, name: str, kind: type, what: str) -> Any:
    value = record.get(name)
    if type(value) is not kind:
        raise BadIndexError(f"{what}: {name} is {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return "missing" if value is None else f"{value!r}"[:60]


def parse_index(data: bytes, split: str) -> tuple[list[Place], Counter[str]]:
    """The MDS shards of one index in its order, and how many there are of each other format.

    These count in the numbering of samples all the same. `split` is the index's directory with a `/` behind it, or
    nothing. BadIndexError.
    """
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
    through, first, places, others = sum(counts), 0, [], Counter[str]()
    for number, (record, samples) in enumerate(zip(index["shards"], counts, strict=True)):
        kind = record.get("format")
        if kind not in _FORMATS:
            raise BadIndexError(f"shard {number} has the unknown format {_shown(kind)}")
        if kind == "mds":
            places.append(_parse_shard(record, f"shard {number}", split, samples, first, through))
        else:
            others[kind] += 1
        first += samples
    return places, others


def _parse_shard(record: dict[str, Any], what: str, split: str, samples: int, first: int, through: int) -> Place:
    zipped = record.get("zip_data")
    codec = record.get("compression")
    if codec is not None and type(codec) is not str:
        raise BadIndexError(f"{what}: compression is {_shown(codec)}")
    if (codec is None) != (zipped is None):
        raise BadIndexError(f"{what}: compression is {_shown(codec)} but zip_data is {_shown(zipped)}")
    lists = [_need(record, f"column_{part}", list, what) for part in ("names", "encodings", "sizes")]
    if not all(type(text) is str for text in (*lists[0], *lists[1])):
        raise BadIndexError(f"{what}: a column's name or encoding is no text")
    if not all(size is None or type(size) is int for size in lists[2]):
        raise BadIndexError(f"{what}: a column's size is no number")
    try:
        columns = mds.columns(*map(tuple, lists))
    except ValueError as error:
        raise BadIndexError(f"{what}: {error}") from error
    # File names show only how many digits the samples' numbers have: a data set that grows keeps its old versions.
    # (A key that is added must not be a conflict for all who are just changing another.)
    text = json.dumps([record, split, first, names.digits_for(through)], sort_keys=True)
    return Place(
        split=split,
        raw=_parse_file(_need(record, "raw_data", dict, what), split, what),
        zip=None if zipped is None else _parse_file(_need(record, "zip_data", dict, what), split, what),
        compression=codec,
        columns=columns,
        samples=samples,
        first_sample=first,
        samples_through=through,
        identity=hashlib.blake2b(text.encode("ascii"), digest_size=10).hexdigest(),
    )


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


def key_of(raw_name: str) -> str:
    """Split and basename, without the format and without the revision that a rewritten shard has in its name."""
    directory, slash, last = raw_name.rpartition("/")
    stem = _REVISION.sub("", last.removesuffix(".mds"))
    return directory + slash + (stem if stem.strip(".") else last)


def by_key(splits: Iterable[list[Place]]) -> dict[Key, Place]:
    """Keys for all shards. The order decides who keeps a key that two shards want: the other gets a number behind it.

    A merged index names the files of its sub-directories, which still have their own: each shard is shown once, as
    the first split (the outer one) has it, even if the other has another version.
    """
    shown: dict[str, str] = {}
    places: list[Place] = []
    for split in splits:
        places += [place for place in split if shown.setdefault(key_of(place.raw.name), place.split) == place.split]
    taken = {key_of(place.raw.name) for place in places}
    used: dict[str, int] = {}
    found: dict[Key, Place] = {}
    for place in places:
        plain = key = key_of(place.raw.name)
        number = used.get(plain, 0) + 1
        while number > 1 and (key := f"{plain}-{number}") in taken:
            number += 1
        used[plain] = number
        taken.add(key)
        found[Key(key)] = place
    return found
