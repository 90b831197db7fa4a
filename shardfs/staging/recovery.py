"""A staged directory made, and found again after whatever happened to the process or the machine.

Nothing that was acknowledged is dropped: a torn last record was not; what is damaged is kept, and only looked at.
Knows nothing of locks, nor of other staged directories.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from pathlib import Path

from shardfs import config
from shardfs.errors import StagingError
from shardfs.staging import journal
from shardfs.staging.heap import NOTHING, offset_of
from shardfs.staging.journal import Journal
from shardfs.staging.ledger import DATA, HEAP, IN_HEAP, JOURNAL, Ledger, failed
from shardfs.staging.tree import Kind, Tree

log = logging.getLogger("shardfs")

NEW = ".new"
GONE = ".gone"
"""Behind the names of staged directories that are being made or removed; what is left of them is nothing."""

_LOST = "the machine went down: what was written and not synced may be missing"
_MISSING = "files of it are missing from its disk: they are shown empty"


def make(area: Path, name: str, key: str, kind: Kind, base_version: str | None, base_bytes: int) -> Ledger:
    """A new staged directory, all or nothing, durable. StagingError."""
    tree = Tree()
    tree.id, tree.key, tree.kind = name, key, kind
    tree.base_version, tree.base_bytes = base_version, base_bytes
    tree.created_ns = tree.root.mtime_ns = tree.root.atime_ns = time.time_ns()
    tree.boot = config.boot_id()
    new, path = area / (name + NEW), area / name
    try:
        try:
            (new / DATA).mkdir(parents=True, mode=0o700)
            new.chmod(0o700)
            tree.clean = True
            made = Journal.create(new / JOURNAL, tree.records())
            journal.sync_directory(new)
            os.rename(new, path)
            journal.sync_directory(area)
        except OSError:
            for made_so_far in (new, path):  # the last step fails when it has its name
                shutil.rmtree(made_so_far, ignore_errors=True)
            raise
    except OSError as error:
        raise failed(f"making {path}", error) from error
    return Ledger(path, tree, Journal(path / JOURNAL, made.records, made.size))


def load(path: Path, writable: bool) -> Ledger:
    """A staged directory as it is on disk. StagingError where the disk cannot be read or written."""
    try:
        return _load(path, writable)
    except StagingError:
        raise
    except OSError as error:
        raise failed(f"reading {path}", error) from error


def _load(path: Path, writable: bool) -> Ledger:
    tree = Tree()
    tree.id = path.name
    try:
        scanned = journal.scan(path / JOURNAL)
    except FileNotFoundError:
        scanned = journal.Scanned([], 0, 0, "it has no journal")
    damage = _replay(tree, scanned)
    sizes = _data_files(path)
    missing = _take_sizes(tree, sizes)
    heap = _heap_size(path)
    if damage is not None:
        log.error("the staged directory %s is damaged: %s", path, damage)
        ledger = Ledger(path, tree, None)
        ledger.refusal = (f"{path} is damaged: {damage}", errno.EIO)
        ledger.heap.read_only = True
    elif not writable:
        ledger = Ledger(path, tree, None)
        ledger.refusal = (f"{path} is opened for looking only", errno.EROFS)
        ledger.heap.read_only = True
    else:
        ledger = Ledger(path, tree, Journal(path / JOURNAL, len(scanned.payloads), scanned.end))
        _settle(ledger, scanned, sizes, missing, heap)
    return ledger


def _replay(tree: Tree, scanned: journal.Scanned) -> str | None:
    """Do what all records say; what is wrong, if anything is."""
    if not scanned.payloads:
        return scanned.damage or "its journal is empty"
    for number, payload in enumerate(scanned.payloads):
        try:
            tree.apply(payload)
        except Exception as error:  # whatever a wrong record makes of it
            return f"record {number} of its journal makes no sense: {error!r}"
    return scanned.damage


def _data_files(path: Path) -> dict[int, os.stat_result]:
    """Number -> status, of all data files."""
    found = {}
    # who only looks may find things gone that were there a moment ago
    with contextlib.suppress(FileNotFoundError), os.scandir(path / DATA) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.name.isdigit():
                    found[int(entry.name)] = entry.stat(follow_symlinks=False)
    return found


def _heap_size(path: Path) -> int | None:
    """Bytes of the file of many files; None if there is none."""
    try:
        return os.stat(path / DATA / HEAP).st_size
    except FileNotFoundError:
        return None


def _take_sizes(tree: Tree, sizes: dict[int, os.stat_result]) -> list[int]:
    """Give each file the size its data really have; the numbers of data files that are missing."""
    missing = []
    for node in tree.nodes.values():
        if node.data is None or node.data <= NOTHING:
            continue
        status = sizes.get(node.data)
        if status is None:
            missing.append(node.data)
            node.size = 0
        else:
            node.size, node.mtime_ns = status.st_size, status.st_mtime_ns
    return missing


def _settle_heap(ledger: Ledger, size: int | None) -> bool:
    """Find what of the heap is in use, and doom the rest; whether some of it is missing."""
    runs = {
        node.data: node.size for node in ledger.tree.nodes.values() if node.data is not None and node.data < NOTHING
    }
    seal = ledger.tree.seal
    if seal is not None:  # what it took stays until it has ended, as a hole would not show that it is one
        for place in seal.places.values():
            if place.data is not None and place.data < NOTHING:
                runs.setdefault(place.data, place.size)
    if size is None and not runs:
        return False
    ledger.doomed += ledger.heap.found(size or 0, runs)
    end = max((offset_of(number) + length for number, length in runs.items()), default=0)
    if size is not None and size >= end:
        return False
    ledger.heap.reach(end)  # what is missing reads as zeros
    ledger.new_files = True
    ledger.unsynced.add(IN_HEAP)
    return True


def _settle(
    ledger: Ledger, scanned: journal.Scanned, sizes: dict[int, os.stat_result], missing: list[int], heap: int | None
) -> None:
    """Clean up behind whoever died here, and note what may be lost."""
    tree, path = ledger.tree, ledger.path
    if scanned.size > scanned.end:
        ledger.journal.cut()
    (path / (JOURNAL + journal.NEW)).unlink(missing_ok=True)
    boot = config.boot_id()
    (path / DATA).mkdir(mode=0o700, exist_ok=True)
    for number in missing:
        os.close(os.open(ledger.data_path(number), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        ledger.new_files = True
        ledger.unsynced.add(number)
    lost = _settle_heap(ledger, heap)
    doubt = _MISSING if missing else _LOST if lost else _LOST if tree.boot != boot and not tree.clean else None
    if doubt is not None and tree.doubt is None:
        log.warning("the staged directory %s: %s", path, doubt)
        ledger.record("doubt", doubt)
    if tree.boot != boot:
        ledger.record("boot", boot)
    tree.next_data = max([tree.next_data, *(number + 1 for number in sizes)])
    # a seal that has begun is settled by asking the store, so what only its snapshot has is not needed
    for number in sizes.keys() - ledger.data_numbers():
        ledger.doom(number, 0)
    ledger.reap()
    ledger.close()
