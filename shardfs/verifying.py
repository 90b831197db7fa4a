"""Reading a whole store to see whether it is sound, without a mount. Knows nothing of what is printed.

Each shard is fetched whole, compared with its hashes and checksums where it has such, decompressed, and each of its
samples is decoded and laid out as a mount would. What a value means (whether a JPEG shows anything) is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from shardfs import config, table_building
from shardfs.drivers.base import Driver, Shard
from shardfs.errors import DamagedShardError, MissingKeyError, ShardfsError, StaleShardError
from shardfs.index import FolderTable, ShardTable
from shardfs.model import Entry


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be."""

    key: str
    file: str | None
    """The file that shows the bytes of a cell that cannot be decoded; empty: something of the shard is not shown; None:
    it is the whole shard."""
    reason: str
    damaged: bool = True
    """False where the shard could not be got: what it holds is not known."""
    offset: int | None = None
    """Byte of the shard's raw bytes, where that is known."""


@dataclass(slots=True)
class Report:
    """What came of it."""

    shards: int = 0
    """Shards to be read."""
    sound: int = 0
    bad: int = 0
    """Shards with findings."""
    gone: int = 0
    """Shards that were removed meanwhile."""
    samples: int = 0
    files: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    untold: int = 0
    """More findings of the same shards: config.NOTES_LOGGED of each are listed."""


@dataclass(frozen=True, slots=True)
class _Looked:
    entry: Entry | None
    samples: int = 0
    files: int = 0
    raw_bytes: int = 0
    findings: tuple[Finding, ...] = ()
    untold: int = 0


def verify(
    driver: Driver, entries: Sequence[Entry], arrays: str, *, jobs: int, progress: Callable[[Report], None]
) -> Report:
    """Read shards, `jobs` at a time; `progress` is called in this thread after each. Holds so many shards in memory."""
    report, waiting = Report(len(entries)), list(reversed(entries))
    with ThreadPoolExecutor(jobs, "shardfs-verify") as pool:
        running: set[Future[_Looked]] = set()
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.add(pool.submit(_look, driver, waiting.pop(), arrays))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    _note(report, future.result())
                    progress(report)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    report.findings.sort(key=lambda one: (one.key, one.file or ""))
    return report


def _note(report: Report, looked: _Looked) -> None:
    if looked.entry is None:
        report.gone += 1
        return
    report.bad += bool(looked.findings)
    report.sound += not looked.findings
    report.samples += looked.samples
    report.files += looked.files
    report.stored_bytes += looked.entry.stored_bytes
    report.raw_bytes += looked.raw_bytes
    report.findings += looked.findings
    report.untold += looked.untold


def _look(driver: Driver, entry: Entry, arrays: str) -> _Looked:
    try:
        try:
            shard = driver.load(entry, lambda _: None)
        except StaleShardError:  # replaced since the listing
            entry = driver.entry(entry.key)
            shard = driver.load(entry, lambda _: None)
        table = table_building.build(shard, arrays)
        _read_all(shard, table)
    except MissingKeyError:
        return _Looked(None)
    except DamagedShardError as error:
        return _Looked(entry, findings=(Finding(entry.key, None, error.reason, offset=error.offset),))
    except (ShardfsError, OSError, MemoryError, RecursionError) as error:
        text = str(error) or type(error).__name__
        return _Looked(entry, findings=(Finding(entry.key, None, text, damaged=False),))
    told = tuple(Finding(entry.key, note.file, note.reason) for note in table.notes[: config.NOTES_LOGGED])
    return _Looked(entry, table.samples, table.files, shard.size, told, len(table.notes) - len(told))


def _read_all(shard: Shard, table: ShardTable) -> None:
    """Have every byte fetched: of what is read in place only heads have been looked at so far."""
    for at in range(0, shard.size, config.COPY_SLICE):
        shard.fetch(at, min(at + config.COPY_SLICE, shard.size))
    if not isinstance(table, FolderTable):
        return
    for file in range(table.files):  # which may be objects of their own
        _, start, length = table.slice_of(file) or (b"", 0, 0)
        for at in range(start, start + length if start >= shard.size else start, config.COPY_SLICE):
            shard.fetch(at, min(at + config.COPY_SLICE, start + length))
