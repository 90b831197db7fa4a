"""Data sets of MosaicML Streaming (index.json version 2) in any storage.

Which keys the index files give is the business of streaming_scan.py, what an index says that of streaming_index.py,
which of a shard's files are there that of streaming_files.py, what is inside them that of mds.py and text_rows.py, how
new shards get into a data set that of streaming_writing.py and text_writing.py. Source of all format facts: what
mosaicml-streaming 0.13.0 writes and reads, found by running it.

A *split* is a directory with an `index.json` of its own. Samples are numbered through a split.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from shardfs.drivers import mds, mds_writing, streaming_garbage, streaming_order, text_writing
from shardfs.drivers.base import Grow, NewRecord, Note, ShardReader, Value
from shardfs.drivers.garbage import Garbage
from shardfs.drivers.numbered import Standing
from shardfs.drivers.streaming_files import ENDINGS, ShardFiles, StreamingShard, identity_of, is_missing
from shardfs.drivers.streaming_following import published, settle, withdraw
from shardfs.drivers.streaming_index import FileInfo, Place, key_of, parse_index
from shardfs.drivers.streaming_names import INDEX, is_free, new_place, revisions, splits, successors
from shardfs.drivers.streaming_scan import Scan, Scanner
from shardfs.drivers.streaming_settings import codec_of, shard_format, shard_limit
from shardfs.drivers.streaming_writing import Publication, basename_of, template_columns
from shardfs.drivers.suspects import outdated
from shardfs.errors import (
    BadStoreError,
    DamagedShardError,
    KeyExistsError,
    MissingKeyError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key, Version
from shardfs.storage.base import Listed, Reader, Storage
from shardfs.storage.local import LocalStorage

ChooseColumns = Callable[[mds.Columns | None], mds.Columns]
RowColumns = Mapping[str, str]
"""Of a shard of rows: encodings by name."""


class StreamingDriver:
    """A data set of MosaicML Streaming in any storage.

    `validate_hash`: `auto` checks each file read against the fastest hash its index has, a name (`xxh64`, `sha1`...)
    demands that hash, `off` or None checks none. `size_limit` (bytes, or a text as `64mb`) splits a new key that is
    larger into several shards; without it a key is one shard, below 4 GiB. `compression` (`zstd`, `gz`, `bz2`, `br`,
    `snappy`, a level behind a colon, or `none`) and `format` (`mds`, `json`, `csv`, `tsv`, `xsv`, the first time with
    its separator as in `xsv:||`) are those of new keys; without them these are like the shard before them, and
    uncompressed MDS in a new split. `problems` says after each listing what is not shown and why.
    BadSettingError for other words, MissingExtraError for a demanded hash whose package is not installed.
    """

    name = "streaming"
    writable = True
    appends = True
    reading = ""

    def __init__(
        self,
        storage: Storage,
        *,
        validate_hash: str | None = "auto",
        size_limit: int | str | None = None,
        compression: str | None = None,
        format: str | None = None,
    ) -> None:
        self.storage = storage
        self._local = isinstance(storage, LocalStorage)
        self._files = ShardFiles(storage, validate_hash)
        self._size_limit = shard_limit(size_limit)
        self._compression = compression
        codec_of(None if compression == "none" else compression)
        self.format, self.separator = shard_format(format)
        self._scanner = Scanner(storage, self._files)
        self._told: Scan | None = None
        self.problems = self._scanner.problems
        self.reserved: Callable[[], Collection[str]] = tuple
        self.beginning = False

    def entries(self) -> list[Entry]:
        """All shards, split by split, in the order of their indexes. BadStoreError if no index is good, or none there
        (unless the data set is `beginning`)."""
        # far away a listing of all costs no more, and what it does not have need not be looked for one by one
        endings = (*ENDINGS, INDEX) if self._local else ("",)
        files = {listed.name: listed for listed in self.storage.list(endings)}
        nothing = not any(name.endswith((*ENDINGS, INDEX)) for name in files)
        if nothing and self.beginning and self._scanner.last is None:
            return []
        scan = self._told = self._scanner.rescan(files)
        return [self._entry(scan, key, files.get) for key in scan.places]

    def changed(self) -> bool:
        scan = self._scanner.last
        if scan is None or scan is not self._told or self.storage.changed():
            return True
        return any(self._files.stat(name) != listed for name, listed in scan.indexes.items())

    def entry(self, key: Key) -> Entry:
        return self._entry(self._scanner.fresh(key), key, self._files.stat)

    def suspects(self, entries: Sequence[Entry]) -> list[Entry]:
        """See Suspects. The indexes are not looked at again for each: of these `changed` tells."""
        places = {} if self._scanner.last is None else self._scanner.last.places

        def objects(entry: Entry) -> list[tuple[str, Version]]:
            place = places.get(entry.key)
            if place is None or place.identity != identity_of(entry.version):
                raise StaleShardError(f"{entry.key} is another shard in the index now")
            return self._files.objects(place, entry.version)

        return outdated(self.storage, entries, objects)

    def estimate(self, entry: Entry) -> int:
        return entry.stored_bytes if entry.raw_bytes is None else entry.raw_bytes

    def objects(self, entry: Entry) -> list[tuple[str, Version]]:
        """See StoresObjects."""
        return self._files.objects(self._scanner.where(entry), entry.version)

    def mark(self, entry: Entry) -> str:
        return self._files.mark(self._scanner.fresh(entry.key).places[entry.key], entry.version)

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
        return not splits(self.storage)

    def tidy(self) -> None:
        self.storage.remove_dead()

    def remove(self, key: Key) -> None:
        """See Driver. Takes the last key of a split out of the index: its files stay, for those who still read them.
        RenumberingError for any other that has samples."""
        place, twins = self._scanner.places(key)
        for one in (place, *twins):
            streaming_order.check_last(key, one)
        for one in (place, *twins):
            withdraw(self.storage, one.split, one.raw.name[len(one.split) :], key)

    def standing(self, key: Key) -> Standing:
        """See NumberedThrough."""
        place = self._scanner.fresh(key).places[key]
        scan = self._scanner.all()
        return streaming_order.standing(scan.splits, scan.places.get(key, place))

    def first_number(self, key: Key) -> int:
        """See NumberedThrough."""
        return streaming_order.first_number(self._scanner.all().splits, new_place(self.storage, key)[0])

    def key_before(self, key: Key) -> Key | None:
        """See NumberedThrough."""
        split, _ = new_place(self.storage, key)
        scan = self._scanner.all()
        return streaming_order.key_before(scan.splits, split, scan.places)

    def garbage(self) -> list[Garbage]:
        """See Collecting."""
        return streaming_garbage.garbage(self.storage)

    def discard(self, found: Garbage) -> None:
        """See Collecting."""
        streaming_garbage.discard(self.storage, found)

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        """See Driver. A new key becomes the last shard of its split, with the columns, compression and hashes of the
        one before it. The first of a split has columns that hold all its samples if `records` can be gone through more
        than once, else those of its first sample. A changed one keeps its own and gets a new file; RenumberingError
        where it has another number of samples than before and is not the last one."""
        return self._append(key, records, note) if base is None else self._rewrite(key, records, base, note)

    def settle(self, key: Key, noted: str) -> Entry | None:
        """See Driver. The store has it if the index names a file that was written, and the file is what was written."""
        found = settle(self.storage, noted, self._scanner.named)
        if not found:
            return None
        place = self._scanner.fresh(key).places[key]
        return self.entry(key) if {info.name for info in place.pairs[0] if info is not None} & found else None

    def _rewrite(self, key: Key, records: Iterable[NewRecord], base: Entry, note: Note | None) -> Entry:
        try:
            place, twins = self._scanner.places(key)
        except MissingKeyError as error:
            raise StaleShardError(f"{key} is gone since it was changed here") from error
        self._check_current(key, base)
        publication = Publication(self.storage, place.split, note, replaces=place.raw.name)
        publication.twins = [twin.split for twin in twins]
        basename = place.raw.name[len(place.split) :]
        shards = publication.read_index()[1]["shards"]
        template = next((shard for shard in shards if basename_of(shard) == basename), None)
        if template is None:
            raise StaleShardError(f"{key} is gone from the index since it was changed here")
        stems = revisions(self.storage, place.split, basename, place.format)
        self._write_shards(publication, place.format, records, template, None, stems)
        (made,) = publication.made

        def edit(shards: list[Any]) -> list[Any]:
            self._check_current(key, base)
            for twin in twins if made["samples"] != place.samples else ():
                streaming_order.check_last(key, twin)
            at = [basename_of(shard) for shard in shards].index(basename)
            streaming_order.check_numbers(key, shards, at, made["samples"])
            return [*shards[:at], made, *shards[at + 1 :]]

        publication.publish(edit)
        published(publication)
        return self._published(key, publication)

    def append(self, key: Key, records: Iterable[NewRecord], columns: ChooseColumns | RowColumns) -> Entry:
        """`write_records` for a new key: in MDS with what `columns` makes of those of the shard before it, in the
        driver's format of rows with `columns` as they are."""
        return self._append(key, records, None, columns)

    def _append(
        self,
        key: Key,
        records: Iterable[NewRecord],
        note: Note | None,
        columns: ChooseColumns | RowColumns | None = None,
    ) -> Entry:
        inner, stem = new_place(self.storage, key)
        split, twins = streaming_order.outermost(self._scanner.all().splits, inner)
        stem = inner[len(split) :] + stem
        publication = Publication(self.storage, split, note, twins=twins)
        shards = publication.read_index()[1]["shards"]

        def edit(shards: list[Any]) -> list[Any]:
            if key in {key_of(split + basename_of(shard), str(shard.get("format"))) for shard in shards}:
                raise KeyExistsError(f"{key} is in {self.storage.root} already")
            return [*shards, *publication.made]

        edit(shards)
        kind = self.format or (str(shards[-1].get("format")) if shards else "mds")
        if callable(columns):
            kind = "mds"
        template = next((shard for shard in reversed(shards) if shard.get("format") == kind), None)
        if is_free(self.storage, split, stem, kind):
            stems = successors(self.storage, split, stem, self.reserved(), kind)
        else:  # what was written when somebody was interrupted before the index had it, or is about to be in it
            stems = revisions(self.storage, split, stem, kind)
        before = None if template is None or kind != "mds" else template_columns(template)
        given: Any = columns(before) if callable(columns) else columns
        if kind == "mds" and before is None and given is None and not isinstance(records, Iterator):
            given = mds_writing.columns_for(records)
        if self._compression is not None:
            template = {**(template or {}), "compression": None if self._compression == "none" else self._compression}
        if self.separator is not None and kind == "xsv":
            template = {**(template or {}), "separator": self.separator}
        self._write_shards(publication, kind, records, template, self._size_limit, stems, given)
        publication.publish(edit)
        published(publication)
        return self._published(key, publication)

    @staticmethod
    def _write_shards(publication: Publication, kind: str, *how: Any) -> None:
        try:
            if kind == "mds":
                publication.write_shards(*how)
            else:
                text_writing.write_shards(publication, kind, *how)
        except BaseException:
            publication.abandon()
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
        """What was written, also where somebody has replaced it in the next moment: that it was there counts."""
        name = publication.split + basename_of(publication.made[0])
        with contextlib.suppress(MissingKeyError):
            entry, now = self.entry(key), self._scanner.fresh(key).places[key]
            if now.raw.name == name:
                return entry
        place = next(place for place in parse_index(publication.index, publication.split) if place.raw.name == name)
        self._scanner.keep(place)
        return self._files.entry(place, key, time.time_ns(), self._files.stat)

    def load(self, entry: Entry, grow: Grow) -> StreamingShard:
        """Fetch, check and decompress; see Driver. StorageError also if a demanded hash is not in the index."""
        place = self._scanner.where(entry)
        if is_missing(entry.version):
            raise self._gone(place, entry)
        try:
            return self._files.read(place, entry.version, grow)
        except DamagedShardError as error:
            error.key = entry.key
            raise
        except StorageError as error:
            if error.errno != errno.ENOENT:
                raise
            raise self._gone(place, entry) from error

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """In place, where the raw file is there and no hash of the whole of it is to be checked."""
        return self._files.open(self._scanner.where(entry), entry.version, raw_bytes)

    def raw_name(self, entry: Entry) -> str | None:
        """See KeepsRaw."""
        place = None if self._scanner.last is None else self._scanner.last.places.get(entry.key)
        if place is None or place.identity != identity_of(entry.version):
            return None
        return self._files.raw_name(place, entry.version)

    def over_raw(self, entry: Entry, reader: Reader) -> ShardReader:
        """See KeepsRaw."""
        return self._files.over_raw(self._scanner.where(entry), reader)

    def _gone(self, place: Place, entry: Entry) -> StaleShardError | StorageError:
        """Why the file that an entry speaks of is not there: the shard's other file is by now, or none."""
        scan = self._scanner.last
        current = None if scan is None else scan.places.get(entry.key)
        if scan is None or current is None or current.identity != place.identity:
            return StaleShardError(f"{entry.key} was replaced since it was listed, and its file is gone")
        if not is_missing(self._entry(scan, entry.key, self._files.stat).version):
            return StaleShardError(f"{entry.key} lies in another file since it was listed")
        lost = [raw.name for raw, zipped in place.pairs if not self._is_there(raw, zipped)]
        # EIO and not ENOENT: the key is in the listing, it is the data set that is not whole
        return StorageError(f"neither {' nor '.join(lost)} nor a compressed form of it is in {self.storage.root}")

    def _is_there(self, *infos: FileInfo | None) -> bool:
        return any(info is not None and self._files.stat(info.name) is not None for info in infos)

    def _entry(self, scan: Scan, key: Key, find: Callable[[str], Listed | None]) -> Entry:
        place = scan.places[key]
        return self._files.entry(place, key, scan.indexes[place.split + INDEX].mtime_ns, find)
