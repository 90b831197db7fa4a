"""zlib and isal must agree on what is a whole gzip stream: every cut and many flipped bits, with both."""

from __future__ import annotations

import gzip
import io
import random
import zlib
from types import ModuleType

import pytest
from isal import isal_zlib

from shardfs import compression, gunzip
from shardfs.errors import DamagedShardError

DATA = random.Random(3).randbytes(3_000) + b"shard" * 2_000
MEMBER = gzip.compress(DATA, 6, mtime=0)


def outcome(stored: bytes) -> bytes | None:
    """The raw bytes, or None for a stream that is refused."""
    try:
        return bytes(compression.decompress("gz", io.BytesIO(stored), len(stored)))
    except DamagedShardError:
        return None


@pytest.fixture(params=[zlib, isal_zlib], ids=["zlib", "isal"])
def _inflate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    twin: ModuleType = request.param
    monkeypatch.setattr(gunzip, "inflate", twin)


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
