"""The records of a shard that is being written: in a temporary file, in memory while they are few, and where each ends.

Every format of MosaicML Streaming has their number and these positions somewhere, as little-endian 32-bit integers
(found by running mosaicml-streaming 0.13.0). Knows nothing of what records are.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile

import numpy as np

from shardfs import config


class SpooledRecords:
    """Records one behind the other. The file is made in `directory`, or where the system has temporary ones."""

    def __init__(self, directory: str | None) -> None:
        self._ends = array("Q")
        self._file = SpooledTemporaryFile(config.SPOOL, dir=directory)  # noqa: SIM115
        self.size = 0
        """Bytes of all of them together."""

    def __len__(self) -> int:
        return len(self._ends)

    def add(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self.size += len(data)
        self._ends.append(self.size)

    def positions(self, begin: int) -> bytes:
        """How many there are, and the n + 1 positions of their bounds where the first begins at `begin`."""
        offsets = np.concatenate(([np.uint64(0)], np.frombuffer(self._ends, np.uint64))) + np.uint64(begin)
        return struct.pack("<I", len(self._ends)) + offsets.astype("<u4").tobytes()

    def pieces(self) -> Iterator[bytes]:
        """Their bytes from the beginning, a megabyte at a time."""
        self._file.seek(0)
        while piece := self._file.read(config.READ_SLICE):
            yield piece

    def close(self) -> None:
        self._file.close()
