"""Disk space for the shard that a staged directory will become: so ENOSPC comes at the write, not at the seal."""

from __future__ import annotations

import contextlib

from shardfs import config
from shardfs.errors import StagingError
from shardfs.staging.ledger import Ledger, failed


class Reserve:
    """The room of one staged directory. Called with the ledger's lock held."""

    def __init__(self, ledger: Ledger, for_shard: bool) -> None:
        """`for_shard`: the store is on this disk, so the shard will need room here."""
        self._ledger = ledger
        self._for_shard = for_shard
        self._lent = False
        self.data_bytes = 0
        """Bytes of all files in the directory that have theirs here."""
        self.count()

    def count(self) -> None:
        """Count the data anew."""
        self.data_bytes = sum(node.size for node in self._ledger.tree.nodes.values() if node.data is not None)

    def _need(self) -> int:
        shard = self._ledger.tree.base_bytes + self.data_bytes if self._for_shard else 0
        return config.STAGED_SPARE + shard

    def grow(self, growth: int) -> None:
        """Keep room for `growth` bytes of data more. StagingError, ENOSPC: nothing has changed."""
        need = self._need() + growth if self._for_shard else config.STAGED_SPARE
        if need > self._ledger.room.size and not self._lent:
            self._ledger.retried(lambda: self._ledger.room.grow(need, self._for_shard))

    def fit(self) -> None:
        """Give back what is far more than needed."""
        kept = self._need() + config.ROOM_STEP_MAX
        if self._ledger.room.size > 2 * kept:
            with contextlib.suppress(OSError):  # it stays reserved, which harms nothing
                self._ledger.room.shrink(kept)

    def lend(self) -> None:
        """Free the room of the shard, right before it is written. StagingError."""
        with self._ledger.lock:
            self._lent = True
            try:
                self._ledger.room.shrink(config.STAGED_SPARE)
            except OSError as error:
                raise failed(f"the disk of {self._ledger.path}", error) from error

    def take_back(self) -> None:
        """Keep room again, as far as there is any: what is staged is staged already."""
        self._lent = False
        with contextlib.suppress(StagingError):
            self.grow(0)
