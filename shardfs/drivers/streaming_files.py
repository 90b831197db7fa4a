"""The files of one shard of MosaicML Streaming: which of them are there, and their bytes, read and checked.

A shard is one file (MDS) or two (rows and their positions), and each may be there raw, compressed, or both: a raw file
of the right size is preferred, as the library prefers it; else the compressed one. Knows nothing of keys, of index
files, or of how shards get into a data set. Reading never writes into the data set and never deletes from it: the
library does both.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from shardfs import compression, other_codecs
from shardfs.drivers import mds, text_rows
from shardfs.drivers.base import Grow
from shardfs.drivers.hashes import HASHES, Hash, hasher
from shardfs.drivers.in_place import InPlace
from shardfs.drivers.streaming_index import FileInfo, Place
from shardfs.drivers.streaming_settings import codec_to_read
from shardfs.errors import BadSettingError, DamagedShardError, MissingExtraError, StorageError
from shardfs.model import Entry, Key, Version
from shardfs.raw_bytes import Whole
from shardfs.storage.base import Listed, Reader, Storage
from shardfs.storage.local import LocalStorage

StreamingShard = mds.MdsShard | text_rows.TextShard

ENDINGS = (".mds", ".json", ".csv", ".tsv", ".xsv", ".meta", ".zstd", ".gz", ".bz2", ".br", ".snappy")
"""Endings of the names that shards' files mostly have: basenames are free."""


@dataclass(frozen=True, slots=True)
class _Found:
    """One of a shard's files as it is there."""

    form: str
    """`raw`, `zip`, or `none` where neither is there."""
    listed: Listed


class ShardFiles:
    """Shards' files in a storage.

    `validate`: `auto` checks each file read against the fastest hash its index has, a name (`xxh64`, `sha1`...) demands
    that hash, `off` or None checks none. BadSettingError for another word, MissingExtraError for a demanded hash whose
    package is not installed.
    """

    def __init__(self, storage: Storage, validate: str | None = "auto") -> None:
        if validate not in (None, "off", "auto", *HASHES):
            raise BadSettingError(f"validate_hash {validate!r}: use auto, off or one of {', '.join(HASHES)}")
        self._storage = storage
        self._validate = None if validate == "off" else validate
        if self._validate not in (None, "auto") and hasher(str(self._validate)) is None:
            raise MissingExtraError(f"{self._validate} needs the package xxhash: pip install 'shardfs[hashes]'")

    def stat(self, name: str) -> Listed | None:
        """What the listing says of one file, looked up alone; None where there is none."""
        try:
            return self._storage.stat(name)
        except StorageError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def entry(self, place: Place, key: Key, mtime_ns: int, look: Callable[[str], Listed | None]) -> Entry:
        """What a listing says of a shard; `mtime_ns` is for one whose files are not there. `look` finds files."""
        found = [self._find(raw, zipped, mtime_ns, look) for raw, zipped in place.pairs]
        version = ".".join((place.identity, *(f"{part.form}.{_dotless(part.listed.version)}" for part in found)))
        stored = sum(part.listed.size for part in found)
        return Entry(
            key,
            Version(version),
            stored,
            max(part.listed.mtime_ns for part in found),
            place.raw.size,
            place.samples,
        )

    def _find(
        self, raw: FileInfo, zipped: FileInfo | None, mtime_ns: int, look: Callable[[str], Listed | None]
    ) -> _Found:
        listed = look(raw.name) or self._stat_odd(raw.name)
        if zipped is not None and (listed is None or listed.size != raw.size):
            compressed = look(zipped.name) or self._stat_odd(zipped.name)
            if compressed is not None:
                return _Found("zip", compressed)
        if listed is not None:
            return _Found("raw", listed)
        return _Found("none", Listed(raw.name, (zipped or raw).size, mtime_ns, Version("")))

    def _stat_odd(self, name: str) -> Listed | None:
        """Files that no listing has because of their names; those of stores far away have all names."""
        odd = isinstance(self._storage, LocalStorage) and not name.endswith(ENDINGS)
        return self.stat(name) if odd else None

    def mark(self, place: Place, version: Version) -> str:
        """A text that tells the stored content apart from others, see Driver. Includes what the index says: the
        samples' numbers depend on it."""
        marks = [
            self._storage.mark(zipped.name if form == "zip" and zipped else raw.name, Version(stored))
            for (raw, zipped), (form, stored) in zip(place.pairs, _parts(version), strict=True)
        ]
        return "-".join((place.identity, *marks))

    def objects(self, place: Place, version: Version) -> list[tuple[str, Version]]:
        """Name and version of each file that is read. Nothing for one that is not there."""
        return [
            (zipped.name if form == "zip" and zipped else raw.name, Version(stored))
            for (raw, zipped), (form, stored) in zip(place.pairs, _parts(version), strict=True)
            if form != "none"
        ]

    def read(self, place: Place, version: Version, grow: Grow) -> StreamingShard:
        """The shard as `entry` found it: fetched, checked, decompressed. StaleShardError, DamagedShardError,
        StorageError (also for a demanded hash that the index has not, and for a compression that cannot be read)."""
        wholes: list[Whole] = []
        stored = before = 0
        parts = list(zip(place.pairs, _parts(version), strict=True))
        for (raw, zipped), (form, file_version) in reversed(parts):  # positions first: they are few
            info, codec = (raw, None)
            if form == "zip" and zipped is not None:
                info, codec = zipped, _codec(place)

            def counted(held: int, before: int = before) -> None:
                grow(before + held)

            wholes.insert(0, self._whole(raw, info, codec, Version(file_version), counted))
            stored += info.size
            before += len(wholes[0])
        numbering = (place.first_sample, place.samples_through)
        if isinstance(place.columns, mds.Columns):
            return mds.MdsShard(wholes[0], place.columns, place.samples, stored, *numbering)
        return text_rows.TextShard(wholes[0], wholes[1], place.columns, place.samples, stored, *numbering)

    def _whole(self, raw: FileInfo, info: FileInfo, codec: str | None, version: Version, grow: Grow) -> Whole:
        """The raw bytes of one file, which `info` is in the form that is there."""
        chosen = self.hash_for(info)
        expected = raw.size

        def bounded(held: int) -> None:
            if held > expected:
                raise DamagedShardError(f"{info.name} holds more than the {expected} bytes its index says", expected)
            grow(held)

        with self._storage.open(info.name, version) as reader:
            if reader.size != info.size:
                raise DamagedShardError(f"{info.name} has {reader.size} bytes, its index says {info.size}")
            observe = chosen[1].update if chosen else None
            try:
                made = compression.decompress(codec, reader, reader.size, bounded, observe, expected=expected)
            except MissingExtraError as error:
                raise StorageError(f"{info.name}: {error}") from error
        if chosen and chosen[1].hexdigest() != info.hashes[chosen[0]].lower():
            raise DamagedShardError(f"{info.name} is not the file that its index has the {chosen[0]} hash of")
        if len(made) != expected:
            raise DamagedShardError(f"{info.name} holds {len(made)} bytes, its index says {expected}", len(made))
        return made

    def open(self, place: Place, version: Version, raw_bytes: int) -> InPlace | None:
        """In place, where the raw file is there and no hash of the whole of it is to be checked."""
        form, file_version = _parts(version)[0]
        if form != "raw" or raw_bytes != place.raw.size or self.hash_for(place.raw) is not None:
            return None
        reader = self._storage.open(place.raw.name, Version(file_version))
        # of another size: damaged, as `read` will say
        return InPlace(reader, place.columns.decode, place.columns.cells) if reader.size == raw_bytes else None

    def raw_name(self, place: Place, version: Version) -> str | None:
        """The compressed file of a shard's data, where decompressing it costs more than reading what comes out."""
        if _parts(version)[0][0] != "zip" or place.pairs[0][1] is None:
            return None
        return place.pairs[0][1].name if codec_to_read(place.compression or "") in compression.COSTLY else None

    @staticmethod
    def over_raw(place: Place, reader: Reader) -> InPlace:
        """A shard out of the raw bytes of its data, which were checked when they were kept."""
        return InPlace(reader, place.columns.decode, place.columns.cells)

    def hash_for(self, info: FileInfo) -> tuple[str, Hash] | None:
        """The hash to check a file against, by name, and a fresh one to do it with; None for none. StorageError."""
        if self._validate is None:
            return None
        if self._validate != "auto" and self._validate not in info.hashes:
            raise StorageError(f"the index has no {self._validate} hash of {info.name}, which validate_hash demands")
        for name in HASHES if self._validate == "auto" else (self._validate,):
            made = hasher(name) if name in info.hashes else None
            if made is not None:
                return name, made
        return None

    def doubts(self, places: list[Place]) -> list[str]:
        """What will not work, or not be checked, of these shards."""
        doubts = []
        codecs = {place.compression for place in places if place.compression is not None}
        for codec in sorted(codecs):
            known = codec_to_read(codec)
            lacking = other_codecs.missing(known)
            if known is None:
                doubts.append(f"compression {codec} is not supported here: such shards can be listed, but not read")
            elif lacking is not None:
                doubts.append(f"such shards can be listed, but not read: {lacking}")
        hashes = {name for place in places for pair in place.pairs for name in (pair[1] or pair[0]).hashes}
        if self._validate == "auto" and hashes and not any(hasher(name) for name in hashes):
            doubts.append(f"{', '.join(sorted(hashes))} hashes are not checked: pip install 'shardfs[hashes]'")
        return doubts


def listing(storage: Storage, *endings: str) -> list[Listed]:
    """A listing that is not the one which `changed` of a directory compares with. StorageError."""
    return storage.list(endings, aside=True) if isinstance(storage, LocalStorage) else storage.list(endings)


def identity_of(version: Version) -> str:
    """What of a version stands for the index's words on the shard."""
    return version.partition(".")[0]


def is_missing(version: Version) -> bool:
    """True for a shard of which a file was not there in any form."""
    return any(form == "none" for form, _ in _parts(version))


def _parts(version: Version) -> list[tuple[str, str]]:
    """Form and version of each file that a shard's version speaks of."""
    parts = version.split(".")[1:]
    versions = (part.replace("%2e", ".").replace("%25", "%") for part in parts[1::2])
    return list(zip(parts[::2], versions, strict=True))


def _dotless(version: str) -> str:
    """A file's version as a part of a shard's: an ETag may be any text."""
    return version.replace("%", "%25").replace(".", "%2e")


def _codec(place: Place) -> str:
    codec = codec_to_read(place.compression or "")
    if codec is None:
        raise StorageError(f"{place.raw.name} is compressed with {place.compression}, which is not supported here")
    return codec
