"""zlib and isal must agree on what is a whole gzip stream: every cut and many flipped bits, with each way they
are used."""

from __future__ import annotations

import errno
import gzip
import io
import random
import tracemalloc
import zlib
from types import SimpleNamespace
from typing import Any

import pytest
from isal import isal_zlib

from shardfs import compression, config, gunzip
from shardfs.errors import DamagedShardError, StorageError

DATA = random.Random(3).randbytes(3_000) + b"shard" * 2_000
MEMBER = gzip.compress(DATA, 6, mtime=0)


def outcome(stored: bytes) -> bytes | None:
    """The raw bytes, or None for a stream that is refused."""
    try:
        return bytes(compression.decompress("gz", io.BytesIO(stored), len(stored)))
    except DamagedShardError:
        return None


OLD_ISAL = SimpleNamespace(decompressobj=isal_zlib.decompressobj, error=isal_zlib.error)
"""One that has no reader which puts raw bytes into their place."""


@pytest.fixture(params=[zlib, isal_zlib, OLD_ISAL], ids=["zlib", "isal", "old isal"])
def _inflate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gunzip, "inflate", request.param)


@pytest.mark.usefixtures("_inflate")
def test_whole_streams() -> None:
    assert outcome(MEMBER) == DATA
    assert outcome(MEMBER * 3) == DATA * 3
    assert outcome(MEMBER + b"\0" * 5_000 + MEMBER + b"\0") == DATA * 2
    assert outcome(b"") == b""


@pytest.mark.usefixtures("_inflate")
def test_every_cut_is_refused() -> None:
    for cut in range(1, len(MEMBER)):
        assert outcome(MEMBER[:cut]) is None, cut
        if cut % 97 == 0:
            assert outcome(MEMBER + MEMBER[:cut]) is None, cut


@pytest.mark.usefixtures("_inflate")
def test_flipped_bits_are_refused_or_without_effect() -> None:
    rng = random.Random(4)
    for _ in range(1_000):
        at = rng.randrange(10, len(MEMBER))  # the header's time, name and system carry nothing
        flipped = bytearray(MEMBER)
        flipped[at] ^= 1 << rng.randrange(8)
        assert outcome(bytes(flipped)) in (None, DATA), at


@pytest.mark.usefixtures("_inflate")
def test_what_follows_must_be_gzip_too() -> None:
    assert outcome(MEMBER + b"garbage") is None
    assert outcome(b"not gzip at all, and long enough to be looked at") is None
    assert outcome(b"\x1f") is None


@pytest.mark.usefixtures("_inflate")
@pytest.mark.parametrize("buffer", [1_000, 4_096, config.GZIP_BUFFER])
def test_wherever_a_buffer_ends_the_bytes_are_the_same(buffer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "GZIP_BUFFER", buffer)
    for level in (0, 1, 9):
        for lead in range(60):
            stored = gzip.compress(DATA[:lead], level, mtime=0) + gzip.compress(DATA, level, mtime=0) * 2 + bytes(lead)
            assert outcome(stored) == DATA[:lead] + DATA * 2


def named(length: int) -> bytes:
    """A stream with a name of so many bytes in its header."""
    return b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * length + b"\0" + gzip.compress(b"data", mtime=0)[10:]


@pytest.mark.usefixtures("_inflate")
def test_names_are_skipped() -> None:
    assert outcome(named(100_000)) == b"data"


def test_a_name_that_is_longer_than_the_buffer_is_told_and_takes_no_memory() -> None:
    stored = named(5 * config.GZIP_BUFFER)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedShardError, match="broken: a header of more than 512 KiB"):
            compression.decompress("gz", io.BytesIO(stored), len(stored))
        assert tracemalloc.get_traced_memory()[1] < 4 * config.MIB
    finally:
        tracemalloc.stop()


def test_regression_the_gil_is_asked_for_once_a_megabyte() -> None:
    """It was for each 16 KiB and each doubling of that, and two threads that decompressed waited for one another."""
    stored, told, reads = gzip.compress(DATA * 800, 1), list[int](), list[int]()
    raw = compression.decompress("gz", _Counted(stored, reads), len(stored), told.append, expected=len(DATA) * 800)
    assert len(raw) == len(DATA) * 800
    assert len(told) == -(-len(raw) // config.COPY_SLICE)
    assert len(reads) <= len(stored) / config.GZIP_BUFFER + 3


class _Counted(io.BytesIO):
    def __init__(self, data: bytes, reads: list[int]) -> None:
        super().__init__(data)
        self._reads = reads

    def readinto(self, view: Any) -> int:
        self._reads.append(len(view))
        return super().readinto(view)


def test_what_a_source_raises_goes_to_the_caller() -> None:
    class Breaks(io.BytesIO):
        def readinto(self, view: Any) -> int:
            if self.tell():
                raise StorageError("the disk is gone", errno.EIO)
            return super().readinto(view[:100])

    with pytest.raises(StorageError, match="gone"):
        compression.decompress("gz", Breaks(MEMBER), len(MEMBER))
