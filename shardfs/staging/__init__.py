"""Staged shards on local disk: what is written and not yet in the store, safe from the death of process and machine.

Plain and synchronous. Knows nothing of what names mean, of samples or formats, nor of how a seal encodes. From the top:
`area` (all of a store, one owner), `copying` (out of it), `directory` over `view` (one staged key: names), `recovery`,
`sealing` (its states), `contents` (bytes), `opened` (openings of files), `reserve` and `room` (disk space), `ledger`
(tree and journal together), `heap` (many files in one), `tree` (pure state), `journal`.
"""

from __future__ import annotations

from shardfs.staging.area import Report, StagingArea, staged_stores
from shardfs.staging.copying import Copied, copy_out
from shardfs.staging.directory import Over, StagedDirectory, State
from shardfs.staging.opened import StagedFile
from shardfs.staging.sealing import Seal, Snapshot, SnapshotEntry
from shardfs.staging.tree import ROOT, Kind, StagedEntry

__all__ = [
    "ROOT",
    "Copied",
    "Kind",
    "Over",
    "Report",
    "Seal",
    "Snapshot",
    "SnapshotEntry",
    "StagedDirectory",
    "StagedEntry",
    "StagedFile",
    "StagingArea",
    "State",
    "copy_out",
    "staged_stores",
]
