"""Compressed streams: whole ones come out, all others are refused, bombs early."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import random
import re
import sys
import tracemalloc
import zlib
from typing import Any

import brotli
import cramjam
import pytest
import zstandard

from shardfs import compression, config, other_codecs
from shardfs.errors import BadSettingError, DamagedShardError, MissingExtraError
from shardfs.values import Buffer

NOISE = random.Random(1).randbytes(5000)
DATA = [b"", b"x", NOISE[:500], b"y" * 3_000_000, NOISE * 3, bytes(range(256)) * 20, NOISE + b"z" * 200_000 + NOISE]


def decompressed(codec: str | None, stored: bytes, **options: Any) -> bytes:
    return bytes(compression.decompress(codec, io.BytesIO(stored), len(stored), **options))


def zstd(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def gz(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


# --- whole streams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", DATA, ids=len)
@pytest.mark.parametrize("level", [0, 1, 9])
def test_gzip_comes_out_whole(data: bytes, level: int) -> None:
    assert decompressed("gz", gz(data, level)) == data


@pytest.mark.parametrize("data", DATA, ids=len)
@pytest.mark.parametrize("level", [1, 3, 19])
def test_zstd_comes_out_whole(data: bytes, level: int) -> None:
    assert decompressed("zstd", zstd(data, level=level)) == data
    assert decompressed("zstd", zstd(data, level=level, write_content_size=False, write_checksum=True)) == data


def test_no_compression_gives_what_is_stored() -> None:
    assert decompressed(None, NOISE * 1000) == NOISE * 1000


def test_no_bytes_are_no_samples() -> None:
    assert decompressed("gz", b"") == decompressed("zstd", b"") == decompressed(None, b"") == b""


def test_members_and_zero_padding_are_part_of_gzip() -> None:
    one, two = gz(b"one"), gz(b"two")
    assert decompressed("gz", one + two) == b"onetwo"
    assert decompressed("gz", one + bytes(200_000) + two + bytes(3_000_000)) == b"onetwo"
    assert decompressed("gz", one + gz(b"") + gz(b"") + two) == b"onetwo"


def test_frames_empty_frames_and_skippable_ones_are_part_of_zstd() -> None:
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    frames = [zstd(b"one"), zstd(b""), skippable, zstd(b""), zstd(b"two", write_content_size=False), skippable]
    assert decompressed("zstd", b"".join(frames)) == b"onetwo"


def test_a_header_with_name_comment_and_checksum_is_gzip() -> None:
    body = gz(b"data")[10:]
    header = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x02\0xy" + b"name\0" + b"comment\0"
    header += (zlib.crc32(header) & 0xFFFF).to_bytes(2, "little")
    assert decompressed("gz", header + body) == b"data"


def test_regression_half_a_million_empty_members_take_no_quadratic_time() -> None:
    """Behind each member zlib copies all input that is left, which was a megabyte each time."""
    assert decompressed("gz", gz(b"") * 500_000) == b""


def test_a_source_that_gives_a_byte_at_a_time_is_read_to_its_end() -> None:
    class Drops:
        def __init__(self, data: bytes) -> None:
            self._file = io.BytesIO(data)

        def read(self, count: int) -> bytes:
            return self._file.read(1)

    for codec, stored in (("gz", gz(NOISE) + gz(b"x") + bytes(9)), ("zstd", zstd(NOISE) + zstd(b"x"))):
        assert bytes(compression.decompress(codec, Drops(stored), len(stored))) == NOISE + b"x"
    with pytest.raises(DamagedShardError, match="cut off"):
        compression.decompress("gz", Drops(gz(NOISE)[:-1]), 0)


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x" * 400, NOISE[:300], NOISE[:200] + b"z" * 1000], ids=len)
def test_every_truncation_is_noticed(data: bytes) -> None:
    kinds = [
        ("gz", gz(data)),
        ("zstd", zstd(data)),
        ("zstd", zstd(data, write_content_size=False)),
        ("zstd", zstd(data, write_checksum=True)),
    ]
    for codec, stored in kinds:
        for length in range(1, len(stored)):
            with pytest.raises(DamagedShardError):
                decompressed(codec, stored[:length])


def test_regression_a_stored_zstd_block_cut_by_the_sentinels_length_is_noticed() -> None:
    """Without a checksum the block swallowed the sentinel's frame, which held its bytes literally, and seemed whole."""
    stored = zstd(NOISE, write_checksum=False)
    for cut in range(1, 200):
        with pytest.raises(DamagedShardError):
            decompressed("zstd", stored[:-cut])


@pytest.mark.parametrize("kept", range(1, 18))
def test_regression_a_second_zstd_frame_cut_inside_its_header_is_noticed(kept: int) -> None:
    """libzstd forgot the five bytes it had when the sentinel's whole frame came next, and all seemed well."""
    for size in (400, 70_000):
        with pytest.raises(DamagedShardError):
            decompressed("zstd", zstd(b"first") + zstd(b"x" * size)[:kept])


def test_every_flipped_bit_of_a_gzip_stream_is_noticed_or_harmless() -> None:
    stored, data = gz(NOISE[:60]), NOISE[:60]
    for at in range(len(stored) * 8):
        damaged = bytearray(stored)
        damaged[at // 8] ^= 1 << at % 8
        with contextlib.suppress(DamagedShardError):
            assert decompressed("gz", bytes(damaged)) == data  # a bit of the header's time, say


@pytest.mark.parametrize(
    ("codec", "stored", "reason"),
    [
        ("gz", b"this is no gzip", "not gzip"),
        ("gz", b"\x1f\x8b", "cut off"),
        ("gz", gz(b"x") + b"garbage", "broken"),
        ("gz", gz(b"x") + bytes(100) + b"g", "cut off|broken"),
        ("gz", gz(b"x")[:-8] + bytes(8), "broken"),
        ("gz", zstd(b"x"), "not gzip"),
        ("zstd", gz(b"x"), "broken"),
        ("zstd", b"no zstd frame", "broken"),
        ("zstd", zstd(b"x") + b"garbage", "broken"),
        ("zstd", zstd(b"x") + bytes(8), "broken"),
        ("zstd", zstd(NOISE, write_checksum=True)[:-4] + b"aaaa", "broken"),
    ],
)
def test_what_is_no_stream_is_told_why(codec: str, stored: bytes, reason: str) -> None:
    with pytest.raises(DamagedShardError, match=reason):
        decompressed(codec, stored)


def test_an_unknown_codec_is_a_bad_setting() -> None:
    with pytest.raises(BadSettingError, match="lz4"):
        decompressed("lz4", b"")


# --- bombs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["gz", "zstd", None])
def test_a_bomb_ends_at_the_limit(codec: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BOMB_FLOOR", 2 * config.MIB)
    zeros = bytes(20 * config.MIB)
    stored = {"gz": gz(zeros), "zstd": zstd(zeros), None: zeros}[codec]
    seen: list[int] = []
    source = io.BytesIO(stored)
    with pytest.raises(DamagedShardError, match="bomb"):
        compression.decompress(codec, source, 100, seen.append)
    assert seen[-1] <= 2 * config.MIB


def test_what_compresses_well_and_is_small_is_no_bomb() -> None:
    zeros = bytes(20 * config.MIB)
    assert decompressed("gz", gz(zeros, 9)) == zeros


def test_a_zstd_frame_that_wants_a_huge_window_is_refused() -> None:
    # magic, a descriptor without single segment, a window of 2^41 bytes, one raw last block of one byte
    frame = b"\x28\xb5\x2f\xfd\x00\xf8" + (1 << 3 | 1).to_bytes(3, "little") + b"x"
    with pytest.raises(DamagedShardError, match=r"[Ww]indow|memory|broken"):
        decompressed("zstd", frame)


def test_a_zstd_frame_that_claims_a_terabyte_takes_no_memory_for_it() -> None:
    for descriptor in (0xC0, 0xE0):  # eight bytes of content size; with and without a window of its own
        window = b"" if descriptor & 0x20 else b"\x00"
        block = (1 << 3 | 1).to_bytes(3, "little") + b"x"
        frame = b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + window + (1 << 40).to_bytes(8, "little") + block
        with pytest.raises(DamagedShardError):
            decompressed("zstd", frame)


def test_growth_and_stored_bytes_are_told_in_order() -> None:
    sizes: list[int] = []
    pieces: list[bytes] = []
    stored = gz(NOISE * 1000)

    def observe(piece: Buffer) -> None:
        pieces.append(bytes(piece))  # which is there only now

    raw = compression.decompress("gz", io.BytesIO(stored), len(stored), sizes.append, observe)
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(raw)
    assert b"".join(pieces) == stored


@pytest.mark.parametrize("codec", ["gz", "zstd"])
def test_the_beginning_of_what_seems_a_bomb_is_shown_once(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SUSPECT_SIZE", 2 * config.MIB)
    shown: list[tuple[int, int]] = []
    zeros, noise = bytes(8 * config.MIB), random.Random(2).randbytes(3 * config.MIB)
    for data in (zeros, noise, noise + zeros):
        stored = gz(data) if codec == "gz" else zstd(data)
        assert decompressed(codec, stored, inspect=lambda raw, used: shown.append((len(raw), used))) == data
    assert len(shown) == 1
    size, used = shown[0]
    assert 2 * config.MIB <= size < 8 * config.MIB
    assert 0 < used <= 10_000


# --- what is expected -------------------------------------------------------------------------------------------

LARGE = NOISE * 400 + bytes(300_000) + NOISE * 400


@pytest.mark.parametrize("codec", ["gz", "zstd", None])
@pytest.mark.parametrize("expected", [0, 1, len(LARGE) - 1, len(LARGE), len(LARGE) + 1, 50 * config.MIB, 1 << 62])
def test_whatever_is_expected_the_bytes_and_what_is_told_are_the_same(
    codec: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "MAPPED_RAW", 3 * config.MIB)
    stored = {"gz": gz(LARGE, 1), "zstd": zstd(LARGE, level=1), None: LARGE}[codec]
    sizes: list[int] = []
    pieces: list[bytes] = []
    raw = compression.decompress(
        codec,
        io.BytesIO(stored),
        len(stored),
        sizes.append,
        lambda piece: pieces.append(bytes(piece)),
        expected=expected,
    )
    assert memoryview(raw) == LARGE
    assert b"".join(pieces) == stored
    assert sizes == sorted(sizes)
    assert sizes[-1] == len(LARGE)
    for cut in (1, 4, 100):
        if codec is not None:
            with pytest.raises(DamagedShardError):
                decompressed(codec, stored[:-cut], expected=expected)


@pytest.mark.parametrize("codec", ["gz", "zstd", None])
def test_a_bomb_ends_at_the_limit_also_where_it_was_expected(
    codec: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "MAPPED_RAW", config.MIB)
    monkeypatch.setattr(config, "BOMB_FLOOR", 2 * config.MIB)
    zeros = bytes(20 * config.MIB)
    stored = {"gz": gz(zeros), "zstd": zstd(zeros), None: zeros}[codec]
    seen: list[int] = []
    with pytest.raises(DamagedShardError, match="bomb"):
        compression.decompress(codec, io.BytesIO(stored), 100, seen.append, expected=1 << 40)
    assert seen[-1] <= 2 * config.MIB


# --- sizes and writing ------------------------------------------------------------------------------------------


def test_size_hints_are_near_and_bounded() -> None:
    data = NOISE * 100
    for codec, stored in (("gz", gz(data)), ("zstd", zstd(data))):
        assert compression.raw_size_hint(codec, len(stored), stored[:18], stored[-4:]) == len(data)
    assert compression.raw_size_hint(None, 5, b"", b"") == 5
    assert compression.raw_size_hint("gz", 100, b"", b"\xff" * 4) == config.BOMB_FLOOR
    assert compression.raw_size_hint("gz", 2, b"", b"ab") == 2
    assert compression.raw_size_hint("gz", 14, b"no gzip at all", b"\xff" * 4) == 14
    huge = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little")
    assert compression.raw_size_hint("zstd", 100, huge, b"") == config.BOMB_FLOOR
    unknown = zstd(data, write_content_size=False)
    assert compression.raw_size_hint("zstd", len(unknown), unknown[:18], b"") == len(unknown)
    assert compression.raw_size_hint("zstd", 9, b"no zstd..", b"") == 9


@pytest.mark.parametrize("codec", ["gz", "zstd", None])
@pytest.mark.parametrize("pieces", [[], [b""], [b"a", b"", NOISE], [NOISE] * 50])
def test_what_is_compressed_comes_out_again_and_is_the_same_each_time(codec: str | None, pieces: list[bytes]) -> None:
    made = []
    for _ in range(2):
        file = io.BytesIO()
        with compression.compressing(codec, file) as put:
            for piece in pieces:
                put(piece)
        made.append(file.getvalue())
    assert made[0] == made[1]
    assert decompressed(codec, made[0]) == b"".join(pieces)


def test_an_unknown_codec_cannot_be_written() -> None:
    with pytest.raises(BadSettingError, match="lz4"), compression.compressing("lz4", io.BytesIO()):
        pass


# --- beginnings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "gz", "zstd"])
@pytest.mark.parametrize("data", DATA, ids=len)
def test_a_beginning_is_that_of_the_whole(codec: str | None, data: bytes) -> None:
    stored = {None: data, "gz": gz(data), "zstd": zstd(data)}[codec]
    for count in (0, 1, 300, len(data), len(data) + 1, len(data) + 10_000):
        assert compression.beginning(codec, io.BytesIO(stored), count) == data[:count]


@pytest.mark.parametrize("codec", ["gz", "zstd"])
def test_a_beginning_takes_no_more_of_a_bomb_than_is_wanted(codec: str) -> None:
    data = bytes(64 << 20)
    source = io.BytesIO({"gz": gz(data, 1), "zstd": zstd(NOISE * 400 + data)}[codec])
    tracemalloc.start()
    try:
        assert len(compression.beginning(codec, source, 1000)) == 1000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", ["gz", "zstd"])
def test_a_beginning_that_is_cut_off_is_damage(codec: str) -> None:
    stored = {"gz": gz(NOISE), "zstd": zstd(NOISE)}[codec]
    with pytest.raises(DamagedShardError):
        compression.beginning(codec, io.BytesIO(stored[: len(stored) // 2]), 6_000)


# --- the rare ones ----------------------------------------------------------------------------------------------

RARE: dict[str, Any] = {
    "bz2": bz2.compress,
    "br": lambda data: brotli.compress(data, quality=5),
    "snappy": lambda data: bytes(cramjam.snappy.compress_raw(data)),
}


@pytest.mark.parametrize("data", [*DATA, NOISE * 300 + bytes(30 * config.MIB)], ids=len)
@pytest.mark.parametrize("codec", RARE)
def test_the_rare_ones_come_out_whole(codec: str, data: bytes) -> None:
    assert decompressed(codec, RARE[codec](data)) == data


@pytest.mark.parametrize("codec", RARE)
@pytest.mark.parametrize("level", [None, 1, 9])
@pytest.mark.parametrize("data", DATA, ids=len)
def test_what_the_rare_ones_write_others_read(codec: str, level: int | None, data: bytes) -> None:
    file = io.BytesIO()
    with compression.compressing(codec, file, level, len(data)) as put:
        for at in range(0, len(data), 100_001):
            put(data[at : at + 100_001])
    read: dict[str, Any] = {
        "bz2": bz2.decompress,
        "br": brotli.decompress,
        "snappy": lambda stored: bytes(cramjam.snappy.decompress_raw(stored)),
    }
    assert read[codec](file.getvalue()) == data
    assert decompressed(codec, file.getvalue()) == data


def test_a_snappy_block_that_becomes_another_length_than_was_said_is_no_block() -> None:
    for size in (None, 4, 6):
        with (
            pytest.raises(ValueError, match="snappy block"),
            compression.compressing("snappy", io.BytesIO(), None, size) as put,
        ):
            put(b"12345")


def test_streams_behind_one_another_are_part_of_bzip2() -> None:
    one, two = bz2.compress(b"one"), bz2.compress(NOISE * 300)
    assert decompressed("bz2", one + two + one) == b"one" + NOISE * 300 + b"one"
    assert decompressed("bz2", b"") == b""
    assert decompressed("bz2", bz2.compress(b"") * 50_000) == b""


@pytest.mark.parametrize("data", [b"", b"x" * 400, NOISE[:300], NOISE[:200] + b"z" * 1000], ids=len)
@pytest.mark.parametrize("codec", RARE)
def test_every_truncation_of_the_rare_ones_is_noticed(codec: str, data: bytes) -> None:
    stored = RARE[codec](data)
    for length in range(codec == "bz2", len(stored)):
        with pytest.raises(DamagedShardError):
            decompressed(codec, stored[:length])


@pytest.mark.parametrize("codec", RARE)
def test_what_stands_behind_the_rare_ones_is_damage(codec: str) -> None:
    for behind in (b"x", b"garbage" * 300_000):
        with pytest.raises(DamagedShardError):
            decompressed(codec, RARE[codec](NOISE) + behind)


@pytest.mark.parametrize("codec", RARE)
def test_a_bomb_of_the_rare_ones_ends_at_the_limit(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BOMB_FLOOR", 2 * config.MIB)
    stored = RARE[codec](bytes(20 * config.MIB))
    seen: list[int] = [0]
    with pytest.raises(DamagedShardError, match="bomb"):
        compression.decompress(codec, io.BytesIO(stored), 100, seen.append)
    assert seen[-1] <= 2 * config.MIB


def test_a_snappy_block_that_claims_gigabytes_takes_no_memory_for_them() -> None:
    for claim in (b"\xff\xff\xff\xff\x0f", b"\xff\xff\xff\xff\x7f", b"\xff\xff\xff\xff\xff\x01"):
        tracemalloc.start()
        with pytest.raises(DamagedShardError):
            decompressed("snappy", claim + b"\x00x")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 10 * config.MIB


@pytest.mark.parametrize(("codec", "package"), [("br", "brotli"), ("snappy", "cramjam")])
def test_a_missing_package_is_told_with_what_to_install(
    codec: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = RARE[codec](b"x")
    assert other_codecs.missing(codec) is None
    monkeypatch.setitem(sys.modules, package, None)
    text = f"{codec} needs the package {package}: pip install 'shardfs[codecs]'"
    assert other_codecs.missing(codec) == text
    with pytest.raises(MissingExtraError, match=re.escape(text)):
        decompressed(codec, stored)
    with (
        pytest.raises(MissingExtraError, match=re.escape(text)),
        compression.compressing(codec, io.BytesIO(), None, 1) as put,
    ):
        put(b"x")
    assert other_codecs.missing("bz2") is None
    assert other_codecs.missing(None) is None
