"""Data sets of MosaicML Streaming (index.json version 2) with MDS shards, from a local directory.

Knows where the index files lie and which of a shard's two files is there; what an index says is the business of
streaming_index.py, what is inside a shard that of mds.py, how new shards get into a data set that of
streaming_writing.py. Reading never writes into the data set and never deletes from it: the library does both. Source of
all format facts: what mosaicml-streaming 0.13.0 writes and reads, found by running it.

A *split* is a directory with an `index.json` of its own. Samples are numbered through a split.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from shardfs import compression
from shardfs.drivers import mds, streaming_garbage, streaming_order
from shardfs.drivers.base import Grow, NewRecord, Note, ShardReader, Value
from shardfs.drivers.garbage import Garbage
from shardfs.drivers.hashes import HASHES, Hash, hasher
from shardfs.drivers.in_place import InPlace
from shardfs.drivers.numbered import Standing
from shardfs.drivers.streaming_index import BadIndexError, FileInfo, Place, by_key, key_of, parse_index
from shardfs.drivers.streaming_writing import (
    INDEX,
    Publication,
    basename_of,
    bytes_of,
    codec_of,
    is_free,
    new_place,
    revisions,
    settle,
    splits,
    successors,
    template_columns,
    withdraw,
)
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    KeyExistsError,
    MissingExtraError,
    MissingKeyError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key, Version
from shardfs.storage.local import Listed, LocalStorage

INDEX_MAX = 256 << 20
"""Largest index read: half a million shards with a dozen columns each, and minutes of parsing already."""

_ENDINGS = (".mds", ".zstd", ".gz", ".bz2", ".br", ".snappy", INDEX)
ChooseColumns = Callable[[mds.Columns | None], mds.Columns]

_COMPRESSION = re.compile(r"(zstd|gz)(?::[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class _Scan:
    """All shards of a data set, by key, and the index files they come from."""

    places: dict[Key, Place]
    indexes: dict[str, Listed]
    splits: dict[str, list[Place]]
    """What each good index says, by the index's name."""


class StreamingDriver:
    """A data set of MosaicML Streaming in a directory.

    `validate_hash`: `auto` checks each file read against the fastest hash its index has, a name (`xxh64`, `sha1`...)
    demands that hash, `off` or None checks none. `size_limit` (bytes, or a text as `64mb`) splits a new key that is
    larger into several shards; without it a key is one shard, below 4 GiB. `compression` (`zstd`, `gz`, a level behind
    a colon, or `none`) is that of new keys; without it they have the compression of the shard before them, or none in a
    new split. `problems` says after each listing what is not shown and why.
    BadSettingError for other words, MissingExtraError for a demanded hash whose package is not installed.
    """

    name = "streaming"
    writable = True
    appends = True
    reading = ""

    def __init__(
        self,
        storage: LocalStorage,
        *,
        validate_hash: str | None = "auto",
        size_limit: int | str | None = None,
        compression: str | None = None,
    ) -> None:
        if validate_hash not in (None, "off", "auto", *HASHES):
            raise BadSettingError(f"validate_hash {validate_hash!r}: use auto, off or one of {', '.join(HASHES)}")
        self._storage = storage
        self._size_limit = bytes_of(size_limit) or None
        self._compression = compression
        codec_of(None if compression == "none" else compression)
        self._validate = None if validate_hash == "off" else validate_hash
        if self._validate not in (None, "auto") and hasher(str(self._validate)) is None:
            raise MissingExtraError(f"{self._validate} needs the package xxhash: pip install 'shardfs[hashes]'")
        self._scan: _Scan | None = None
        self.problems: list[str] = []
        self.reserved: Callable[[], Collection[str]] = tuple
        self.beginning = False

    def entries(self) -> list[Entry]:
        """All shards, split by split, in the order of their indexes. BadStoreError if no index is good, or none there
        (unless the data set is `beginning`)."""
        files = {listed.name: listed for listed in self._storage.list(_ENDINGS)}
        if self.beginning and not files and self._scan is None:
            return []
        scan = self._rescan(files)
        return [self._entry(scan, key, files.get) for key in scan.places]

    def changed(self) -> bool:
        scan = self._scan
        if scan is None or self._storage.changed():
            return True
        return any(self._stat(name) != listed for name, listed in scan.indexes.items())

    def entry(self, key: Key) -> Entry:
        return self._entry(self._fresh(key), key, self._stat)

    def estimate(self, entry: Entry) -> int:
        return entry.stored_bytes if entry.raw_bytes is None else entry.raw_bytes

    def mark(self, entry: Entry) -> str:
        """Includes what the index says of the shard: the samples' numbers depend on it."""
        place = self._fresh(entry.key).places[entry.key]
        _, form, version = entry.version.split(".", 2)
        name = place.zip.name if form == "zip" and place.zip is not None else place.raw.name
        return f"{place.identity}-{self._storage.mark(name, Version(version))}"

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        """See Driver. A new key becomes the last shard of its split; what replaces one has its columns, and a new file.
        RenumberingError where the shards behind would get other numbers."""
        records = (Value(sample, str(number)) for number, sample in enumerate(samples))
        try:
            base = self.entry(key)
        except MissingKeyError:
            self._append(key, records, None)
        else:
            self._rewrite(key, records, base, None)

    def is_new(self) -> bool:
        """True for a directory without any index, which the first key makes a data set."""
        return not splits(self._storage)

    def remove(self, key: Key) -> None:
        """See Driver. Takes the last key of a split out of the index: its files stay, for those who still read them.
        RenumberingError for any other that has samples."""
        place = self._alone(key)
        withdraw(self._storage, place.split, place.raw.name[len(place.split) :], key, INDEX_MAX)

    def standing(self, key: Key) -> Standing:
        """See NumberedThrough."""
        place = self._fresh(key).places[key]
        scan = self._all()
        return streaming_order.standing(scan.splits, place.split + INDEX, key, place)

    def key_before(self, key: Key) -> Key | None:
        """See NumberedThrough."""
        split, _ = new_place(self._storage, key)
        scan = self._all()
        return streaming_order.key_before(scan.splits, split + INDEX, scan.places)

    def garbage(self) -> list[Garbage]:
        """See Collecting."""
        return streaming_garbage.garbage(self._storage, INDEX_MAX)

    def discard(self, found: Garbage) -> None:
        """See Collecting."""
        streaming_garbage.discard(self._storage, found, INDEX_MAX)

    def _all(self) -> _Scan:
        """A scan of all indexes as they are now."""
        listed = {listed.name: listed for listed in self._storage.list((INDEX,))}
        return self._rescan(listed) if listed or self._scan is not None else _Scan({}, {}, {})

    def _alone(self, key: Key) -> Place:
        """Where a key is that one index has only. MissingKeyError, NotWritableError."""
        # all of them again: an index that has come since may have the shard too
        scan = self._all()
        if key not in scan.places:
            raise MissingKeyError(f"no key {key!r} in {self._storage.root}")
        place = scan.places[key]
        streaming_order.check_alone(scan.splits, place.raw.name, place.split + INDEX, [place])
        return place

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        """See Driver. A new key becomes the last shard of its split, with the columns, compression and hashes of the
        one before it. A changed one keeps its own and gets a new file; RenumberingError where it has another number
        of samples than before and is not the last one."""
        return self._append(key, records, note) if base is None else self._rewrite(key, records, base, note)

    def settle(self, key: Key, noted: str) -> Entry | None:
        """See Driver. The store has it if the index names a file that was written, and the file is what was written."""
        published = settle(self._storage, noted, self._named)
        if not published:
            return None
        place = self._fresh(key).places[key]
        files = {place.raw.name} if place.zip is None else {place.raw.name, place.zip.name}
        return self.entry(key) if files & published else None

    def _named(self) -> set[str]:
        """All files that indexes name now. A BadStoreError says that none is good, unless there is none."""
        indexes = {listed.name: listed for listed in self._storage.list((INDEX,))}
        if not any(name.rpartition("/")[2] == INDEX for name in indexes):
            return set()
        places = [place for split in self._rescan(indexes).splits.values() for place in split]
        return {info.name for place in places for info in (place.raw, place.zip) if info is not None}

    def _rewrite(self, key: Key, records: Iterable[NewRecord], base: Entry, note: Note | None) -> Entry:
        try:
            place = self._alone(key)
        except MissingKeyError as error:
            raise StaleShardError(f"{key} is gone since it was changed here") from error
        self._check_current(key, base)
        publication = Publication(self._storage, place.split, note)
        basename = place.raw.name[len(place.split) :]
        shards = publication.read_index(INDEX_MAX)[1]["shards"]
        template = next((shard for shard in shards if basename_of(shard) == basename), None)
        if template is None:
            raise StaleShardError(f"{key} is gone from the index since it was changed here")
        stems = revisions(self._storage, place.split, basename)
        self._write_shards(publication, records, template, None, stems)
        (made,) = publication.made

        def edit(shards: list[Any]) -> list[Any]:
            self._check_current(key, base)
            at = [basename_of(shard) for shard in shards].index(basename)
            streaming_order.check_numbers(key, shards, at, made["samples"])
            return [*shards[:at], made, *shards[at + 1 :]]

        publication.publish(edit, INDEX_MAX)
        return self._published(key, publication)

    def append(self, key: Key, records: Iterable[NewRecord], columns: ChooseColumns) -> Entry:
        """`write_records` for a new key, whose columns are what `columns` makes of those of the shard before it."""
        return self._append(key, records, None, columns)

    def _append(
        self, key: Key, records: Iterable[NewRecord], note: Note | None, columns: ChooseColumns | None = None
    ) -> Entry:
        split, stem = new_place(self._storage, key)
        publication = Publication(self._storage, split, note)
        shards = publication.read_index(INDEX_MAX)[1]["shards"]

        def edit(shards: list[Any]) -> list[Any]:
            if key in {key_of(split + basename_of(shard)) for shard in shards}:
                raise KeyExistsError(f"{key} is in {self._storage.root} already")
            return [*shards, *publication.made]

        edit(shards)
        template = next((shard for shard in reversed(shards) if shard.get("format") == "mds"), None)
        if is_free(self._storage, split, stem):
            stems = successors(self._storage, split, stem, self.reserved())
        else:  # what was written when somebody was interrupted before the index had it, or is about to be in it
            stems = revisions(self._storage, split, stem)
        before = None if template is None else template_columns(template)
        given = None if columns is None else columns(before)
        if self._compression is not None:
            template = {**(template or {}), "compression": None if self._compression == "none" else self._compression}
        self._write_shards(publication, records, template, self._size_limit, stems, given)
        publication.publish(edit, INDEX_MAX)
        return self._published(key, publication)

    @staticmethod
    def _write_shards(publication: Publication, *how: Any) -> None:
        try:
            publication.write_shards(*how)
        except BaseException:
            publication.abandon(INDEX_MAX)
            raise

    def _check_current(self, key: Key, base: Entry) -> None:
        try:
            version = self.entry(key).version
        except (MissingKeyError, BadStoreError) as error:
            raise StaleShardError(f"{key} is gone since it was changed here") from error
        (identity, form, file), (old, old_form, old_file) = version.split(".", 2), base.version.split(".", 2)
        # the library may have decompressed the shard beside itself meanwhile: another file of the same content
        if identity != old or (form == old_form and file != old_file):
            raise StaleShardError(f"{key} was replaced in the data set since it was changed here")

    def _published(self, key: Key, publication: Publication) -> Entry:
        entry = self.entry(key)
        if self._fresh(key).places[key].raw.name != publication.split + basename_of(publication.made[0]):
            raise StaleShardError(f"{key} was replaced as soon as it was written")
        return entry

    def load(self, entry: Entry, grow: Grow) -> mds.MdsShard:
        """Fetch, check and decompress; see Driver. StorageError also if a demanded hash is not in the index."""
        scan = self._fresh(entry.key)
        place = scan.places[entry.key]
        identity, form, version = entry.version.split(".", 2)
        if identity != place.identity:
            raise StaleShardError(f"the index says something else of {entry.key} since it was listed")
        if form == "none":
            raise self._gone(scan, entry)
        info, codec = (place.zip, _codec(place)) if form == "zip" and place.zip else (place.raw, None)
        try:
            return self._read(place, info, codec, Version(version), grow)
        except DamagedShardError as error:
            error.key = entry.key
            raise
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            raise self._gone(scan, entry) from error

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """In place, where the raw file is there and no hash of the whole of it is to be checked."""
        identity, form, version = entry.version.split(".", 2)
        place = self._fresh(entry.key).places[entry.key]
        if identity != place.identity:
            raise StaleShardError(f"the index says something else of {entry.key} since it was listed")
        if form != "raw" or raw_bytes != place.raw.size or self._hash_for(place.raw) is not None:
            return None
        reader = self._storage.open(place.raw.name, Version(version))
        # of another size: damaged, as `load` will say
        return InPlace(reader, place.columns.decode, place.columns.cells) if reader.size == raw_bytes else None

    def _gone(self, scan: _Scan, entry: Entry) -> StaleShardError | StorageError:
        """Why the file that an entry speaks of is not there: the shard's other file is by now, or none."""
        if _form(self._entry(scan, entry.key, self._stat)) != "none":
            return StaleShardError(f"{entry.key} lies in another file since it was listed")
        # EIO and not ENOENT: the key is in the listing, it is the data set that is not whole
        return StorageError(
            f"neither {scan.places[entry.key].raw.name} nor a compressed form of it is in {self._storage.root}"
        )

    def _read(self, place: Place, info: FileInfo, codec: str | None, version: Version, grow: Grow) -> mds.MdsShard:
        chosen = self._hash_for(info)
        expected = place.raw.size

        def bounded(held: int) -> None:
            if held > expected:
                raise DamagedShardError(f"{info.name} holds more than the {expected} bytes its index says", expected)
            grow(held)

        with self._storage.open(info.name, version) as reader:
            if reader.size != info.size:
                raise DamagedShardError(f"{info.name} has {reader.size} bytes, its index says {info.size}")
            observe = chosen[1].update if chosen else None
            raw = compression.decompress(codec, reader, reader.size, bounded, observe, expected=expected)
        if chosen and chosen[1].hexdigest() != info.hashes[chosen[0]].lower():
            raise DamagedShardError(f"{info.name} is not the file that its index has the {chosen[0]} hash of")
        if len(raw) != expected:
            raise DamagedShardError(f"{info.name} holds {len(raw)} bytes, its index says {expected}", len(raw))
        numbering = (place.first_sample, place.samples_through)
        return mds.MdsShard(raw, place.columns, place.samples, info.size, *numbering)

    def _hash_for(self, info: FileInfo) -> tuple[str, Hash] | None:
        if self._validate is None:
            return None
        if self._validate != "auto" and self._validate not in info.hashes:
            raise StorageError(f"the index has no {self._validate} hash of {info.name}, which validate_hash demands")
        for name in HASHES if self._validate == "auto" else (self._validate,):
            made = hasher(name) if name in info.hashes else None
            if made is not None:
                return name, made
        return None

    def _stat(self, name: str) -> Listed | None:
        try:
            return self._storage.stat(name)
        except StorageError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def _entry(self, scan: _Scan, key: Key, find: Callable[[str], Listed | None]) -> Entry:
        """The raw file if it is there and whole, as the library prefers it; else the compressed one."""
        place = scan.places[key]
        form, listed = "raw", find(place.raw.name) or self._stat_odd(place.raw.name)
        if place.zip is not None and (listed is None or listed.size != place.raw.size):
            zipped = find(place.zip.name) or self._stat_odd(place.zip.name)
            form, listed = ("zip", zipped) if zipped is not None else (form, listed)
        if listed is None:
            size = place.raw.size if place.zip is None else place.zip.size
            form, listed = "none", Listed(place.raw.name, size, scan.indexes[place.split + INDEX].mtime_ns, Version(""))
        version = Version(f"{place.identity}.{form}.{listed.version}")
        return Entry(key, version, listed.size, listed.mtime_ns, place.raw.size, place.samples)

    def _stat_odd(self, name: str) -> Listed | None:
        """Files that no listing has because of their names: basenames are free."""
        return None if name.endswith(_ENDINGS) else self._stat(name)

    def _fresh(self, key: Key) -> _Scan:
        """A scan that has the key, by an index that has not changed since it was read. MissingKeyError."""
        scan = self._scan
        if scan is not None and key in scan.places:
            index = scan.places[key].split + INDEX
            if self._stat(index) == scan.indexes[index]:
                return scan
        if self._scan is not None or not self.is_new():
            scan = self._rescan({listed.name: listed for listed in self._storage.list((INDEX,))})
            if key in scan.places:
                return scan
        raise MissingKeyError(f"no key {key!r} in {self._storage.root}")

    def _rescan(self, files: dict[str, Listed]) -> _Scan:
        """Read the indexes among `files` again, unless all are those of the last scan."""
        indexes = [files[name] for name in sorted(files) if name.rpartition("/")[2] == INDEX]
        by_name = {listed.name: listed for listed in indexes}
        scan = self._scan
        if scan is not None and scan.indexes == by_name:
            return scan
        problems: list[str] = []
        splits: dict[str, list[Place]] = {}
        for listed in sorted(indexes, key=lambda listed: listed.name.removesuffix(INDEX)):
            try:
                data = self._storage.read(listed.name, INDEX_MAX)
                places, others = parse_index(data, listed.name.removesuffix(INDEX))
            except (BadIndexError, StorageError) as error:
                problems.append(f"{listed.name}: {error}")
                if scan is not None and listed.name in scan.splits:
                    # it was good before: somebody is writing it, and its keys are not gone for that
                    splits[listed.name] = scan.splits[listed.name]
                continue
            splits[listed.name] = places
            problems += [f"{listed.name}: {count} {kind} shards are not shown" for kind, count in others.items()]
        if not splits:
            raise BadStoreError("; ".join(problems) or f"no {INDEX} in {self._storage.root} or below it")
        scan = _Scan(by_key(list(splits.values())), by_name, splits)
        self.problems = problems + self._doubts(scan.places)
        self._scan = scan
        return scan

    def _doubts(self, places: dict[Key, Place]) -> list[str]:
        """What will not work, or not be checked, of the shards that are shown."""
        doubts = []
        codecs = {place.compression for place in places.values()}
        for codec in sorted(codec for codec in codecs if codec and not _COMPRESSION.fullmatch(codec)):
            doubts.append(f"compression {codec} is not supported here: such shards can be listed, but not read")
        hashes = {name for place in places.values() for name in (place.zip or place.raw).hashes}
        if self._validate == "auto" and hashes and not any(hasher(name) for name in hashes):
            doubts.append(f"{', '.join(sorted(hashes))} hashes are not checked: pip install 'shardfs[hashes]'")
        return doubts


def _form(entry: Entry) -> str:
    """Which file a version stands for: `raw`, `zip`, or `none` where neither was there."""
    return entry.version.split(".", 2)[1]


def _codec(place: Place) -> str:
    match = _COMPRESSION.fullmatch(place.compression or "")
    if match is None:
        raise StorageError(f"{place.raw.name} is compressed with {place.compression}, which is not supported here")
    return match[1]
