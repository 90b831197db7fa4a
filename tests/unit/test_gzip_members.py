"""Shards of gzip members: the same bytes whatever the threads, and ordinary gzip for everybody else."""

from __future__ import annotations

import gzip
import io
import random
import subprocess
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from isal import isal_zlib

from shardfs import compression, config, gzip_members, in_order

NOISE = random.Random(5).randbytes(300_000)
TEXT = " ".join(random.Random(6).choices([f"word{n}" for n in range(3000)], k=60_000)).encode()
DATA = TEXT + NOISE + TEXT


def written(pieces: Sequence[bytes], level: int | None = None) -> bytes:
    file = io.BytesIO()
    with compression.compressing("gz", file, level) as put:
        for piece in pieces:
            put(piece)
    return file.getvalue()


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def whole(stream: Any, data: bytes) -> bytes:
    made: bytes = stream.compress(data)
    return made + stream.flush()


def decompressed(stored: bytes) -> bytes:
    return bytes(memoryview(compression.decompress("gz", io.BytesIO(stored), len(stored))))


def members(stored: bytes) -> list[int]:
    """Raw bytes of each member."""
    found = []
    while stored:
        stream = zlib.decompressobj(wbits=31)
        found.append(len(stream.decompress(stored)))
        assert stream.eof
        stored = stream.unused_data
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(config, "GZIP_MEMBER", 50_000)
    return 50_000


@pytest.mark.parametrize("level", [None, 0, 1, 2, 3, 6, 9])
def test_everybody_reads_it(small: int, level: int | None, tmp_path: Path) -> None:
    stored = written(cut(DATA, 7_001), level)
    assert decompressed(stored) == gzip.decompress(stored) == DATA
    path = tmp_path / "a.gz"
    path.write_bytes(stored)
    with gzip.open(path) as file:
        assert file.read() == DATA
    subprocess.run(["gzip", "-t", str(path)], check=True, timeout=60)
    assert subprocess.run(["zcat", str(path)], check=True, timeout=60, capture_output=True).stdout == DATA


@pytest.mark.parametrize("codec", ["gz", "zstd"])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    small: int, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression.zstd_frames.FrameWriter.__init__, "__defaults__", (50_000,))
    made = set()
    for threads in (1, 2, 4):
        monkeypatch.setattr(in_order, "cores", lambda threads=threads: threads)
        file = io.BytesIO()
        with compression.compressing(codec, file) as put:
            for piece in cut(DATA, 9_999):
                put(piece)
        made.add(file.getvalue())
    assert len(made) == 1


def test_members_are_cut_by_size_alone_and_carry_neither_name_nor_time(small: int) -> None:
    made = {written(pieces) for pieces in ([DATA], cut(DATA, 1_000), cut(DATA, 49_999), cut(DATA, 50_000), [b"", DATA])}
    assert len(made) == 1
    (stored,) = made
    count, rest = divmod(len(DATA), small)
    assert members(stored) == [small] * count + [rest, 0]
    assert stored[:4] == b"\x1f\x8b\x08\x00"
    assert stored[4:8] == bytes(4)


@pytest.mark.parametrize("size", [0, 1, 49_999, 50_000])
def test_what_fits_into_one_member_is_one(small: int, size: int) -> None:
    assert members(written([DATA[:size]])) == [size]


def test_the_end_says_how_many_raw_bytes_there_are(small: int) -> None:
    stored = written([DATA])
    assert gzip_members.raw_size(stored) == gzip_members.raw_size(stored[-gzip_members.SIZE_MEMBER :]) == len(DATA)
    tail = stored[-compression.HINT_TAIL["gz"] :]
    assert compression.raw_size_hint("gz", len(stored), stored[:18], tail) == len(DATA)
    plain = gzip.compress(DATA)
    assert compression.raw_size_hint("gz", len(plain), plain[:18], plain[-gzip_members.SIZE_MEMBER :]) == len(DATA)
    assert gzip_members.raw_size(b"") == gzip_members.raw_size(b"abc") == 0


def test_the_member_that_says_so_is_an_ordinary_one(small: int) -> None:
    last = written([DATA])[-gzip_members.SIZE_MEMBER :]
    assert gzip.decompress(last) == b""
    assert decompressed(last) == b""


def test_sizes_by_level_are_what_they_are_asked_for(small: int) -> None:
    """isal takes over a level of zlib's only where its files are as small."""
    sizes = {level: len(written([TEXT], level)) for level in (None, *range(10))}
    zlibs = {level: sum(len(zlib.compress(piece, level)) for piece in cut(TEXT, small)) for level in range(10)}
    for level in range(1, 10):
        assert sizes[level] <= zlibs[level] * 1.02, level
    assert sizes[0] > len(TEXT)
    assert sizes[None] <= zlibs[6] * 1.15


@pytest.mark.parametrize("level", [None, 1])
def test_without_isal_it_is_zlib(level: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_members, "_igzip", lambda: None)
    assert gzip_members.encoder_for(level) == (zlib, 6 if level is None else level)
    assert decompressed(written([DATA], level)) == DATA


@pytest.mark.parametrize("level", [None, 1, 2, 3])
@pytest.mark.parametrize("data", [b"", b"x", NOISE, bytes(300_000), TEXT], ids=len)
def test_isal_compresses_as_its_twin_of_zlib_does(
    data: bytes, level: int | None, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another way, which is there in its newer versions and under a name that it does not promise."""
    monkeypatch.setattr(config, "GZIP_STORED", 2)
    at_once, again = written([data], level), written([data], level)
    assert at_once == again
    assert decompressed(at_once) == gzip.decompress(at_once) == data
    monkeypatch.delattr(isal_zlib, "_ParallelCompress")
    plain = written([data], level)
    assert decompressed(plain) == data
    assert abs(len(at_once) - len(plain)) <= 8 * len(members(plain)) + len(plain) / 1000


@pytest.mark.parametrize("level", [6, 7, 8, 9, 0])
def test_levels_from_6_on_are_zlibs_own(level: int) -> None:
    assert gzip_members.encoder_for(level) == (zlib, level)
    stored = written([TEXT[:5000]], level)
    assert stored == zlib.compress(TEXT[:5000], level, wbits=31)


def test_what_hardly_compresses_is_done_quickly_unless_a_level_is_asked_for() -> None:
    noise, text = NOISE[:200_000], TEXT[:200_000]
    module, level = gzip_members.encoder_for(None)
    assert written([noise]) == whole(zlib.compressobj(0, wbits=31), noise), "stored"
    size = len(whole(module.compressobj(level, wbits=31), text))
    assert abs(len(written([text])) - size) < 10 < len(whole(module.compressobj(level - 1, wbits=31), text)) - size
    assert written([noise], 6) == whole(zlib.compressobj(6, wbits=31), noise)
    for share in (0.1, 0.5):  # a few labels among pictures, and text among them
        pieces = (NOISE[at : at + 10_000] + TEXT[at : at + int(10_000 * share)] for at in range(0, 300_000, 10_000))
        mixed = b"".join(pieces)
        assert len(written([mixed])) < len(zlib.compress(mixed, 6)) * 1.05


@pytest.mark.parametrize("symbols", [250, 236, 200])
def test_a_member_that_hardly_became_smaller_is_stored_after_all(symbols: int) -> None:
    """As pictures are: they do shrink, by a thousandth to a hundredth, and all of it is slow to decode then."""
    raw = bytes(random.Random(symbols).choices(range(symbols), k=200_000))
    made = written([raw])
    assert len(zlib.compress(raw, 6)) < len(raw) * 0.9995
    if symbols == 200:
        assert len(made) < len(raw) * 0.97
    else:
        assert made == whole(zlib.compressobj(0, wbits=31), raw)
    assert decompressed(made) == gzip.decompress(made) == raw


@pytest.mark.parametrize("codec", ["gz", "zstd"])
def test_a_failure_while_writing_ends_the_threads(small: int, codec: str) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError("no space left")

    def write(file: io.BytesIO, error: type[Exception] | None) -> None:
        with compression.compressing(codec, file) as put:
            for _ in range(30):
                put(NOISE)
            if error is not None:
                raise error

    with pytest.raises(OSError, match="no space"):
        write(Full(), None)
    with pytest.raises(LookupError):
        write(io.BytesIO(), LookupError)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shardfs-compress")]


def test_a_level_that_is_none_is_refused_at_the_caller(small: int) -> None:
    with pytest.raises((ValueError, zlib.error)):
        written([DATA], 77)
