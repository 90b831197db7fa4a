"""Data sets of MosaicML Streaming (index.json version 2) from a local directory.

Knows where the index files lie, and which keys they give; what an index says is the business of streaming_index.py,
which of a shard's files are there that of streaming_files.py, what is inside them that of mds.py and text_rows.py, how
new shards get into a data set that of streaming_writing.py and text_writing.py. Source of all format facts: what
mosaicml-streaming 0.13.0 writes and reads, found by running it.

A *split* is a directory with an `index.json` of its own. Samples are numbered through a split.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shardfs.drivers import mds, text_writing
from shardfs.drivers.base import Grow, NewRecord, Note, ShardReader, Value
from shardfs.drivers.streaming_files import ENDINGS, ShardFiles, StreamingShard, identity_of, is_missing
from shardfs.drivers.streaming_index import FORMATS, BadIndexError, FileInfo, Place, by_key, key_of, parse_index
from shardfs.drivers.streaming_settings import codec_of, shard_limit
from shardfs.drivers.streaming_writing import (
    INDEX,
    Publication,
    basename_of,
    is_free,
    new_place,
    revisions,
    settle,
    splits,
    successors,
    template_columns,
)
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    KeyExistsError,
    MissingKeyError,
    NotWritableError,
    RenumberingError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key
from shardfs.storage.local import Listed, LocalStorage

INDEX_MAX = 256 << 20
"""Largest index read: half a million shards with a dozen columns each, and minutes of parsing already."""

ChooseColumns = Callable[[mds.Columns | None], mds.Columns]


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
    larger into several shards; without it a key is one shard, below 4 GiB. `compression` (`zstd`, `gz`, `bz2`, `br`,
    `snappy`, a level behind a colon, or `none`) and `format` (`mds`, `json`, `csv`, `tsv`) are those of new keys;
    without them these are like the shard before them, and uncompressed MDS in a new split. `problems` says after each
    listing what is not shown and why.
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
        format: str | None = None,
    ) -> None:
        self._storage = storage
        self._files = ShardFiles(storage, validate_hash)
        self._size_limit = shard_limit(size_limit)
        self._compression = compression
        codec_of(None if compression == "none" else compression)
        if format not in (None, *FORMATS[:-1]):
            raise BadSettingError(f"format {format!r}: use one of {', '.join(FORMATS[:-1])}")
        self._format = format
        self._scan: _Scan | None = None
        self.problems: list[str] = []

    def entries(self) -> list[Entry]:
        """All shards, split by split, in the order of their indexes. BadStoreError if no index is good."""
        files = {listed.name: listed for listed in self._storage.list((*ENDINGS, INDEX))}
        scan = self._rescan(files)
        return [self._entry(scan, key, files.get) for key in scan.places]

    def changed(self) -> bool:
        scan = self._scan
        if scan is None or self._storage.changed():
            return True
        return any(self._files.stat(name) != listed for name, listed in scan.indexes.items())

    def entry(self, key: Key) -> Entry:
        return self._entry(self._fresh(key), key, self._files.stat)

    def estimate(self, entry: Entry) -> int:
        return entry.stored_bytes if entry.raw_bytes is None else entry.raw_bytes

    def mark(self, entry: Entry) -> str:
        return self._files.mark(self._fresh(entry.key).places[entry.key], entry.version)

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
        raise NotWritableError("nothing is ever deleted from streaming data sets: whoever reads one may still need it")

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
        return self.entry(key) if {info.name for info in place.pairs[0] if info is not None} & published else None

    def _named(self) -> set[str]:
        """All files that indexes name now. A BadStoreError says that none is good, unless there is none."""
        indexes = {listed.name: listed for listed in self._storage.list((INDEX,))}
        if not any(name.rpartition("/")[2] == INDEX for name in indexes):
            return set()
        places = [place for split in self._rescan(indexes).splits.values() for place in split]
        return {info.name for place in places for pair in place.pairs for info in pair if info is not None}

    def _rewrite(self, key: Key, records: Iterable[NewRecord], base: Entry, note: Note | None) -> Entry:
        # all of them again: an index that has come since may have the shard too
        scan = self._rescan({listed.name: listed for listed in self._storage.list((INDEX,))})
        if key not in scan.places:
            raise StaleShardError(f"{key} is gone since it was changed here")
        place = scan.places[key]
        if any(
            other.raw.name == place.raw.name
            for name, split in scan.splits.items()
            for other in split
            if name != place.split + INDEX
        ):
            raise NotWritableError(f"{place.raw.name} is in two indexes, of which only one could be changed")
        self._check_current(key, base)
        publication = Publication(self._storage, place.split, note)
        basename = place.raw.name[len(place.split) :]
        shards = publication.read_index(INDEX_MAX)[1]["shards"]
        template = next((shard for shard in shards if basename_of(shard) == basename), None)
        if template is None:
            raise StaleShardError(f"{key} is gone from the index since it was changed here")
        stems = revisions(self._storage, place.split, basename, place.format)
        self._write_shards(publication, place.format, records, template, None, stems)
        (made,) = publication.made

        def edit(shards: list[Any]) -> list[Any]:
            self._check_current(key, base)
            at = [basename_of(shard) for shard in shards].index(basename)
            if made["samples"] != place.samples and at != len(shards) - 1:
                text = f"{key} has {place.samples} samples and would have {made['samples']}: those of the shards behind"
                raise RenumberingError(text + " it would all get other numbers")
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
            if key in {key_of(split + basename_of(shard), str(shard.get("format"))) for shard in shards}:
                raise KeyExistsError(f"{key} is in {self._storage.root} already")
            return [*shards, *publication.made]

        edit(shards)
        kind = self._format or (str(shards[-1].get("format")) if shards else "mds")
        if columns is not None:
            kind = "mds"
        template = next((shard for shard in reversed(shards) if shard.get("format") == kind), None)
        if is_free(self._storage, split, stem, kind):
            stems = successors(self._storage, split, stem, kind)
        else:  # what was written when somebody was interrupted before the index had it, or is about to be in it
            stems = revisions(self._storage, split, stem, kind)
        given = None
        if columns is not None:
            given = columns(None if template is None else template_columns(template))
        if self._compression is not None:
            template = {**(template or {}), "compression": None if self._compression == "none" else self._compression}
        self._write_shards(publication, kind, records, template, self._size_limit, stems, given)
        publication.publish(edit, INDEX_MAX)
        return self._published(key, publication)

    @staticmethod
    def _write_shards(publication: Publication, kind: str, *how: Any) -> None:
        try:
            if kind == "mds":
                publication.write_shards(*how)
            else:
                text_writing.write_shards(publication, kind, *how)
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

    def load(self, entry: Entry, grow: Grow) -> StreamingShard:
        """Fetch, check and decompress; see Driver. StorageError also if a demanded hash is not in the index."""
        scan = self._fresh(entry.key)
        place = scan.places[entry.key]
        self._check_identity(entry, place)
        if is_missing(entry.version):
            raise self._gone(scan, entry)
        try:
            return self._files.read(place, entry.version, grow)
        except DamagedShardError as error:
            error.key = entry.key
            raise
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            raise self._gone(scan, entry) from error

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """In place, where the raw file is there and no hash of the whole of it is to be checked."""
        place = self._fresh(entry.key).places[entry.key]
        self._check_identity(entry, place)
        return self._files.open(place, entry.version, raw_bytes)

    @staticmethod
    def _check_identity(entry: Entry, place: Place) -> None:
        if identity_of(entry.version) != place.identity:
            raise StaleShardError(f"the index says something else of {entry.key} since it was listed")

    def _gone(self, scan: _Scan, entry: Entry) -> StaleShardError | StorageError:
        """Why the file that an entry speaks of is not there: the shard's other file is by now, or none."""
        if not is_missing(self._entry(scan, entry.key, self._files.stat).version):
            return StaleShardError(f"{entry.key} lies in another file since it was listed")
        lost = [raw.name for raw, zipped in scan.places[entry.key].pairs if not self._is_there(raw, zipped)]
        # EIO and not ENOENT: the key is in the listing, it is the data set that is not whole
        return StorageError(f"neither {' nor '.join(lost)} nor a compressed form of it is in {self._storage.root}")

    def _is_there(self, *infos: FileInfo | None) -> bool:
        return any(info is not None and self._files.stat(info.name) is not None for info in infos)

    def _entry(self, scan: _Scan, key: Key, find: Callable[[str], Listed | None]) -> Entry:
        place = scan.places[key]
        return self._files.entry(place, key, scan.indexes[place.split + INDEX].mtime_ns, find)

    def _fresh(self, key: Key) -> _Scan:
        """A scan that has the key, by an index that has not changed since it was read. MissingKeyError."""
        scan = self._scan
        if scan is not None and key in scan.places:
            index = scan.places[key].split + INDEX
            if self._files.stat(index) == scan.indexes[index]:
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
                splits[listed.name] = parse_index(data, listed.name.removesuffix(INDEX))
            except (BadIndexError, StorageError) as error:
                problems.append(f"{listed.name}: {error}")
                if scan is not None and listed.name in scan.splits:
                    # it was good before: somebody is writing it, and its keys are not gone for that
                    splits[listed.name] = scan.splits[listed.name]
        if not splits:
            raise BadStoreError("; ".join(problems) or f"no {INDEX} in {self._storage.root} or below it")
        scan = _Scan(by_key(list(splits.values())), by_name, splits)
        self.problems = problems + self._files.doubts(list(scan.places.values()))
        self._scan = scan
        return scan
