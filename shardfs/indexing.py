"""Building and checking the persistent index of a whole store, without a mount. Knows nothing of what is printed."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from shardfs import config, light_reading, packing, table_building
from shardfs.drivers.base import Driver, StoresObjects
from shardfs.errors import DamagedShardError, NotWritableError, ShardfsError, StaleShardError, StorageError
from shardfs.index import ShardTable
from shardfs.index_db import PUBLISHED, IndexDb, default_path, name_of
from shardfs.light_columns import LightColumns
from shardfs.model import Entry
from shardfs.storage.base import Listed, Storage
from shardfs.storage.disk_cache import DiskCache
from shardfs.store import Store

log = logging.getLogger("shardfs")


@dataclass(slots=True)
class Report:
    """What came of indexing a store."""

    shards: int = 0
    built: int = 0
    """Shards that were read."""
    kept: int = 0
    """Shards that the index had in the present version."""
    differing: list[str] = field(default_factory=list)
    """Keys whose row says something else than the shard (found by checking only)."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> reason, of shards that could not be indexed."""
    dropped: int = 0
    """Rows of keys that the store no longer has."""


Progress = Callable[[Report], None]
"""Called, in one thread, after each shard."""


def open_database(store: Store, arrays: str) -> IndexDb | None:
    """The persistent index of a store, as its shards are shown with `arrays`; None for who has no home for it."""
    driver = store.driver
    reading = f"{driver.name} {driver.reading} {arrays}"
    path = default_path(store.identity, reading)
    if path is None:
        return None
    carried = _fetched(store, path) if store.far else _carried(store)
    published = None if carried is None else IndexDb(carried, reading, read_only=True)
    return IndexDb(path, reading, published=published, far=store.far)


def _carried(store: Store) -> Path | None:
    """The index that lies in a local store, if there is one."""
    carried = None if store.place is None else Path(os.path.realpath(store.place)) / PUBLISHED
    return carried if carried is not None and carried.is_file() and not carried.is_symlink() else None


def _fetched(store: Store, own: Path) -> Path | None:
    """The index that lies in a store far away, fetched beside our own unless that version is there already; None where
    there is none, or it cannot be had: all works without."""
    storage = store.driver.storage if isinstance(store.driver, StoresObjects) else None
    if isinstance(storage, DiskCache):
        storage = storage.inner  # it has a place of its own
    if storage is None:
        return None
    try:
        listed = storage.stat(PUBLISHED)
        if listed.size > config.INDEX_PUBLISHED:
            raise StorageError(f"{listed.size} bytes are more than an index may have", errno.EFBIG)
        name = hashlib.sha256(f"{storage.root}\0{listed.version}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
        target = own.with_name(f"{own.stem}-{name}.published")
        if not target.is_file():
            _fetch(storage, listed, target)
            for old in target.parent.glob(f"{own.stem}-*.published"):
                if old != target:
                    old.unlink(missing_ok=True)
        return target
    except (ShardfsError, OSError) as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
            log.warning("the index that lies in %s is not used: %s", storage.root, error)
        return None


def _fetch(storage: Storage, listed: Listed, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".fetched-", delete=False) as file:
        try:
            with storage.open(listed.name, listed.version) as reader:
                while piece := reader.read(config.REMOTE_PART):
                    file.write(piece)
            os.rename(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


def publish(store: Store, database: IndexDb) -> int:
    """Put the index into the store itself, where every other machine finds it; its shards. NotWritableError,
    StorageError, BadSettingError."""
    if not isinstance(store.driver, StoresObjects) or not store.driver.writable:
        raise NotWritableError(f"{store.url} is not written to here: export the index, and put it there as {PUBLISHED}")
    with tempfile.TemporaryDirectory(prefix="shardfs-index-") as folder:
        made = Path(folder) / "index"
        count = database.export(made)

        def write(file: BinaryIO) -> None:
            with open(made, "rb") as source:
                shutil.copyfileobj(source, file, config.READ_SLICE)

        store.driver.storage.put(PUBLISHED, write)
    return count


def build_all(
    store: Store,
    database: IndexDb,
    arrays: str,
    *,
    jobs: int,
    check: bool = False,
    light: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Bring the index up to date, `jobs` shards at a time. Resumes: what it has in the present version is kept.

    With `check` every shard is read and compared with its row, and the row is replaced where it differs; with `light`
    the light fields of samples are kept, too.
    """
    entries = store.driver.entries()
    versions = database.versions()
    with_light = database.versions(light=True) if light else versions
    report = Report(len(entries))
    named_only = getattr(store.driver, "partial", False)  # then the store may have other keys, whose rows are good
    gone = set() if named_only else set(versions) - {name_of(entry.key) for entry in entries}
    database.drop(sorted(gone))
    report.dropped = len(gone)
    named = [(entry, name_of(entry.key)) for entry in reversed(entries)]
    waiting = [
        entry
        for entry, name in named
        if check or versions.get(name) != entry.version or with_light.get(name) != entry.version
    ]
    report.kept = len(entries) - len(waiting)
    with ThreadPoolExecutor(jobs, "shardfs-index") as pool:
        running: set[Future[tuple[Entry, str]]] = set()
        while waiting or running:
            while waiting and len(running) <= jobs:
                running.add(pool.submit(_one, store.driver, database, waiting.pop(), arrays, check, light))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                _note(report, future)
                if progress is not None:
                    progress(report)
    return report


class _FailedError(Exception):
    """A shard that could not be indexed: its key and why."""


def _one(driver: Driver, database: IndexDb, entry: Entry, arrays: str, check: bool, light: bool) -> tuple[Entry, str]:
    """Index one shard: `kept` if the index knows its content already, `built`, or `differs` from what it had."""

    def mark() -> str:
        return driver.mark(entry)

    try:
        known = None if check else database.get(entry, mark)
        if known is not None and (not light or database.get_light(entry, mark) is not None):
            return entry, "kept"
        try:
            shard = driver.load(entry, lambda _: None)
        except StaleShardError:  # replaced since the listing
            entry, known = driver.entry(entry.key), None
            shard = driver.load(entry, lambda _: None)
        table = table_building.build(shard, arrays) if known is None or known.raw_bytes != shard.size else known
        columns = light_reading.of_reader(table, shard, arrays) if light else None
    except DamagedShardError as error:
        error.key = entry.key
        raise _FailedError(entry.key, str(error)) from error
    except (ShardfsError, OSError) as error:
        raise _FailedError(entry.key, str(error)) from error
    content = driver.mark(entry)
    differs = check and _differs(database, entry, content, table, columns)
    if table is not known:
        database.put(entry, table, content)
    if columns is not None:
        database.put_light(entry, columns, content)
    return entry, "differs" if differs else "built"


def _differs(database: IndexDb, entry: Entry, content: str, table: ShardTable, columns: LightColumns | None) -> bool:
    """Whether the index has something else of a shard than it holds."""
    before = database.get(entry, lambda: content)
    if before is not None and packing.pack(before) != packing.pack(table):
        return True
    kept = None if columns is None else database.get_light(entry, lambda: content)
    return kept is not None and columns is not None and kept.pack() != columns.pack()


def _note(report: Report, future: Future[tuple[Entry, str]]) -> None:
    try:
        entry, outcome = future.result()
    except _FailedError as error:
        report.failed[error.args[0]] = error.args[1]
        return
    if outcome == "kept":
        report.kept += 1
        return
    report.built += 1
    if outcome == "differs":
        report.differing.append(entry.key)
