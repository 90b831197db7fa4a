"""mltraq: experiments in an SQLite database, with a datastore directory for what they keep outside it.

Each experiment is a key, its fields the sample `experiment`, each of its runs a sample under the run's id. Each
directory of the datastore that is no experiment's of this database (what DataStoreIO was told to use, what a replaced
experiment left) is a key, too, called as its path; its files are samples. Without a database all directories are.

Source of the format: what mltraq 0.1.165 writes and reads, found by running it. Experiments can only be read here;
directories can be written.
"""

from __future__ import annotations

import errno
import hashlib
import json
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardfs import config
from shardfs.drivers import mltraq_datapak as datapak
from shardfs.drivers.base import Grow, NewRecord, Note, ShardReader
from shardfs.drivers.mltraq_database import Database, Experiment
from shardfs.drivers.mltraq_datastore import check_prefix, directory_of, prefix_of
from shardfs.drivers.mltraq_experiments import assemble
from shardfs.drivers.mltraq_shards import Assembly, MltraqShard, grouped
from shardfs.drivers.mltraq_urls import identity, places_of
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    KeyExistsError,
    MissingKeyError,
    NotWritableError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Entry, Key, Version
from shardfs.pickle_spans import PickleRefusedError
from shardfs.storage import together
from shardfs.storage.base import Listed, Storage
from shardfs.storage.local import LocalStorage

BESIDE = "@datastore"
"""Behind the name of a directory that is called as an experiment is."""


@dataclass(frozen=True, slots=True)
class _Place:
    """What a key is: an experiment, with the directory that is named after its id, or just a directory."""

    directory: str
    experiment: Experiment | None = None


@dataclass(frozen=True, slots=True)
class _Scan:
    """Which keys there were."""

    state: str
    places: dict[Key, _Place]


class MltraqDriver:
    """An mltraq datastore and, if it was opened by a URL, the database that it belongs to. Thread-safe.

    A datastore far away can only be read, and all of it is listed whenever one of its directories is looked at.
    """

    name = "mltraq"
    appends = False
    reading = "mltraq"

    def __init__(self, storage: Storage) -> None:
        self.problems: list[str] = []
        self.writable = isinstance(storage, LocalStorage)
        self._storage = storage
        self._database: Database | None = None
        self.identity: str | None = None
        """What is the same text for the same database and datastore; None without a database."""
        self._scan: _Scan | None = None
        self._told: str | None = None
        """The state of the database that the last `entries` was of."""
        self._outside: OrderedDict[tuple[Key, str], tuple[str, ...]] = OrderedDict()
        self._open: weakref.WeakValueDictionary[tuple[Key, Version], MltraqShard] = weakref.WeakValueDictionary()

    @classmethod
    def open_url(cls, url: str, *, datastore: str | None = None) -> tuple[MltraqDriver, Path]:
        """`mltraq+sqlite:///PATH` with `?datastore=DIRECTORY`, by default `mltraq.datastore` beside the database; the
        option wins. BadStoreError for a URL of another form, and where there is no such database."""
        path, directory = places_of(url, datastore)
        made = cls(LocalStorage(directory))
        made._database = Database(path)
        made.identity = identity(path, directory)
        made.entries()  # what is no database of experiments is told now
        return made, directory.absolute()

    @classmethod
    def absolute_url(cls, url: str) -> str:
        """A URL of the same store that means it from any directory. BadStoreError as `open_url`."""
        return identity(*places_of(url, None))

    # --- keys ---------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """Experiments by name, then directories by path."""
        scan, files = self._rescan(aside=False)
        self._told = scan.state
        listed = ((key, place, files.get(place.directory, [])) for key, place in scan.places.items())
        return [self._entry(key, place, found, scan.state) for key, place, found in listed]

    def _rescan(self, aside: bool = True) -> tuple[_Scan, dict[str, list[Listed]]]:
        """Look for all keys again; `aside`: not for a listing, so that `changed` still has something to tell."""
        files: dict[str, list[Listed]] = {}
        storage = self._storage
        found = storage.list(("",), aside=aside) if isinstance(storage, LocalStorage) else storage.list(("",))
        for listed in found:
            files.setdefault(directory_of(listed.name), []).append(listed)
        state, experiments = self._experiments()
        places, problems = _places(experiments, files)
        self._scan = scan = _Scan(state, places)
        self.problems = problems
        return scan, files

    def changed(self) -> bool:
        if self._told is None or (self._database is not None and self._database.state() != self._told):
            return True
        return self._storage.changed()

    def entry(self, key: Key) -> Entry:
        place = self._place(key)
        state = "" if self._database is None else self._database.state()
        if place is None or (place.experiment is not None and self._scan is not None and self._scan.state != state):
            self._rescan()
            place = self._place(key)
        if place is None:
            raise MissingKeyError(f"no key {key!r} in {self._where()}")
        files = self._files(place.directory)
        if place.experiment is None and not files:
            raise MissingKeyError(f"no key {key!r} in {self._where()}")
        return self._entry(key, place, files, "" if self._database is None else self._database.state())

    def _place(self, key: Key) -> _Place | None:
        return None if self._scan is None else self._scan.places.get(key)

    def _where(self) -> str:
        return str(self._storage.root if self._database is None else self._database.path)

    def _experiments(self) -> tuple[str, list[Experiment]]:
        if self._database is None:
            return "", []
        for attempt in range(config.DATABASE_TRIES):
            try:
                with self._database.snapshot() as snapshot:
                    return snapshot.state, snapshot.experiments()
            except StaleShardError as error:
                if attempt == config.DATABASE_TRIES - 1:
                    raise StorageError(str(error), errno.EBUSY) from error
            except DamagedShardError as error:
                raise BadStoreError(f"{self._database.path}: {error.reason}") from error
        raise AssertionError("unreachable")

    def _files(self, directory: str) -> list[Listed]:
        """The files right in a directory; none where it is not there."""
        if not directory:
            return []
        try:
            if isinstance(self._storage, LocalStorage):
                return self._storage.files_in(directory)
            return [listed for listed in self._storage.list(("",)) if directory_of(listed.name) == directory]
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
                raise
            return []

    def _entry(self, key: Key, place: _Place, files: list[Listed], state: str) -> Entry:
        base = _digest([place.experiment.id, state] if place.experiment else [], files)
        outside = self._outside.get((key, base)) if place.experiment else None
        version = base if outside is None else f"{base}.{_digest([], map(self._listed, outside))}"
        times = [listed.mtime_ns for listed in files]
        if place.experiment is not None and self._database is not None:
            times.append(self._database.mtime_ns())
        return Entry(key, Version(version), sum(listed.size for listed in files), max(times, default=0))

    def _listed(self, name: str) -> Listed:
        try:
            return self._storage.stat(name)
        except StorageError:
            return Listed(name, 0, 0, Version("none"))

    # --- content ------------------------------------------------------------------------------------------------

    def estimate(self, entry: Entry) -> int:
        return config.MIB  # the rows; how many bytes they are is known when they have been read

    def mark(self, entry: Entry) -> str:
        shard = self.load(entry, lambda _: None)
        made = hashlib.blake2b(digest_size=16)
        for start in range(0, shard.size, config.READ_SLICE):
            made.update(shard.fetch(start, min(start + config.READ_SLICE, shard.size))[:])
        return made.hexdigest()

    def load(self, entry: Entry, grow: Grow) -> MltraqShard:
        place = self._place(entry.key)
        if place is None:
            self._rescan()
            place = self._place(entry.key)
        if place is None:
            raise StaleShardError(f"{entry.key} is gone since it was listed")
        files = self._files(place.directory)
        if place.experiment is None:
            shard = self._directory(entry, place, files, grow)
        else:
            shard = self._experiment(entry, place.experiment, files, grow)
        self._open[entry.key, entry.version] = shard
        return shard

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        """Files are always read where they are; the rows are read for it, unless they are in use."""
        shard = self._open.get((entry.key, entry.version)) or self.load(entry, lambda _: None)
        return shard if shard.size == raw_bytes else None

    def _directory(self, entry: Entry, place: _Place, files: list[Listed], grow: Grow) -> MltraqShard:
        if _digest([], files) != entry.version:
            raise StaleShardError(f"{entry.key} was changed since it was listed")
        assembly = Assembly(self._storage, grow)
        for stem, group in grouped(files).items():
            assembly.directory(stem, group)
        return assembly.shard()

    def _experiment(self, entry: Entry, experiment: Experiment, files: list[Listed], grow: Grow) -> MltraqShard:
        assert self._database is not None
        base, _, rest = entry.version.partition(".")
        state = self._database.state()
        if _digest([experiment.id, state], files) != base:
            raise StaleShardError(f"{entry.key} was changed since it was listed")
        assembly = Assembly(self._storage, grow)
        with self._database.snapshot(state) as snapshot:
            try:
                assemble(snapshot, experiment, assembly)
            except PickleRefusedError as error:
                raise DamagedShardError(str(error), key=entry.key) from error
        self._check_outside(entry, base, rest, assembly, prefix_of(experiment.id) + "/")
        return assembly.shard()

    def _check_outside(self, entry: Entry, base: str, rest: str, assembly: Assembly, own: str) -> None:
        """Files outside the experiment's directory are part of its version once it is known which they are: by the
        first load, which is then to be repeated."""
        names = {file.name if isinstance(file, Listed) else "" for file in assembly.files.values()}
        outside = tuple(sorted(name for name in names if name and not name.startswith(own)))
        if not outside:
            return
        self._outside[entry.key, base] = outside
        while len(self._outside) > config.DATASTORE_OUTSIDE:
            self._outside.popitem(last=False)
        if rest != _digest([], map(self._listed, outside)):
            raise StaleShardError(f"{entry.key} refers to files that are not in its own directory")

    # --- writing ------------------------------------------------------------------------------------------------

    def refused(self, key: Key) -> str | None:
        place = self._place(key)
        if place is not None and place.experiment is not None:
            return f"{key} is an experiment, whose rows are the library's to write; directories can be written"
        try:
            check_prefix(key if place is None else place.directory)
        except BadSettingError as error:
            return str(error)
        return None

    def _directory_for(self, key: Key) -> str:
        """The directory that a key is stored in. NotWritableError."""
        why = self.refused(key)
        if why is not None:
            raise NotWritableError(why)
        place = self._place(key)
        return key if place is None else place.directory

    def file_names(self, entry: Entry) -> frozenset[str]:
        return frozenset(file.name.rpartition("/")[2] for file in self._files(self._directory_for(entry.key)))

    def serialised(self, value: Any) -> bytes:
        return datapak.serialise(value)

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        """Each sample is a file, serialised and called by its number; whatever else the directory held is gone."""
        self._scan or self._rescan()
        directory = self._directory_for(key)
        numbered = [(f"{at:0{config.SAMPLE_DIGITS}d}", sample) for at, sample in enumerate(samples)]
        there = {file.name.rpartition("/")[2] for file in self._files(directory)}
        name = together.token()
        put = ((number, datapak.serialise(sample)) for number, sample in numbered)
        gone = there - {number for number, _ in numbered}
        together.change(self._local(), directory, name, put, gone, check=_nothing_to_do, ready=_nothing_to_do)

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        raise NotWritableError(f"{key}: a directory of {self.name} is written file by file, not as records")

    def write_files(
        self, key: Key, put: Iterable[tuple[str, bytes]], gone: Iterable[str], *, base: Entry | None, note: Note
    ) -> Entry:
        self._scan or self._rescan()
        directory = self._directory_for(key)
        noted = {"directory": directory, "name": together.token()}
        note(json.dumps(noted))

        def check() -> None:
            files = self._files(directory)
            if base is None and files:
                raise KeyExistsError(f"{key} is in {self._storage.root} already")
            if base is not None and _digest([], files) != base.version:
                raise StaleShardError(f"{key} was changed in the datastore since it was changed here")

        def ready() -> None:
            note(json.dumps({**noted, "ready": True}))

        together.change(self._local(), directory, noted["name"], put, gone, check=check, ready=ready)
        return self.entry(key)

    def settle(self, key: Key, noted: str) -> Entry | None:
        told = json.loads(noted)
        made = together.settle(self._local(), told["directory"], told["name"], told.get("ready", False))
        return self.entry(key) if made else None

    def remove(self, key: Key) -> None:
        """Remove the files of a directory, and it. Those below it stay."""
        self.entry(key)
        self._local().remove_directory(self._directory_for(key))

    def _local(self) -> LocalStorage:
        """NotWritableError for a datastore far away, where no directory can be locked."""
        if not isinstance(self._storage, LocalStorage):
            raise NotWritableError(f"{self._storage.root}: a datastore far away can only be read")
        return self._storage


def _nothing_to_do() -> None:
    pass


def _places(experiments: list[Experiment], files: dict[str, list[Listed]]) -> tuple[dict[Key, _Place], list[str]]:
    """All keys, and what cannot be shown."""
    places = {Key(found.name): _Place(prefix_of(found.id), found) for found in experiments}
    own = {place.directory for place in places.values()}
    for directory in sorted(files):
        if directory and directory not in own:
            key = directory
            while key in places:
                key += BESIDE
            places[Key(key)] = _Place(directory)
    loose = sum(not listed.name.startswith(".") for listed in files.get("", []))
    return places, [f"{loose} files right in the datastore are in no directory and are not shown"] if loose else []


def _digest(texts: list[str], files: Iterable[Listed]) -> str:
    made = hashlib.blake2b(digest_size=12)
    for text in [*texts, *(f"{listed.name}\0{listed.version}" for listed in files)]:
        made.update(text.encode("utf-8", "surrogateescape") + b"\n")
    return made.hexdigest()


__all__ = ["MltraqDriver"]
