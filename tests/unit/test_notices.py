"""What is told to the kernel, and by which thread."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from shardfs import config, notices, table_building
from shardfs.inodes import ROOT
from shardfs.model import Inode
from shardfs.notices import Notices
from shardfs.opening import open_store
from shardfs.shard_cache import Loaded
from shardfs.tree import KeyDirectory


class Hasty(Notices):
    """What is put into the queue is done before whoever put it there goes on: so it is where threads are unlucky."""

    def _put(self, work: Any) -> bool:
        put = super()._put(work)
        patience = time.monotonic() + 5
        while work is not None and self._queue.unfinished_tasks and time.monotonic() < patience and not self.done:
            time.sleep(0.001)
        return put

    done = 0

    def _fill(self, key: KeyDirectory, loaded: Loaded) -> None:
        super()._fill(key, loaded)
        self.done = 1


def test_prefills_that_ended_at_once_are_no_reason_to_make_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that began before it was counted counted for ever, and with the second nothing was prefilled any more."""
    monkeypatch.setattr(notices, "memory_is_short", lambda size: False)
    store = open_store(tmp_path, "squirrel")
    store.set([{"data": b"x" * 10}], "k")
    entry = store.entry("k")
    shard = store.driver.load(entry, lambda _: None)
    loaded = Loaded(shard, table_building.build(shard, "png"))
    key = KeyDirectory(Inode(2), ROOT, b"k", entry, 1, lookups=config.PREFILL_KNOWN + 1)
    given: list[int] = []
    told = Hasty(lambda parent, name: None, lambda inode: None, lambda inode, data: given.append(inode))
    with told.running():
        for _ in range(2 * config.PREFILLS):
            told.done = 0
            told.loaded(key, loaded)
    assert len(given) == 2 * config.PREFILLS
