"""Frames with a seek table: what is written, tables that do not fit, and reading parts from many threads."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardfs import compression, config, zstd_frames
from shardfs.errors import DamagedShardError, StaleShardError, StorageError
from shardfs.storage.local import LocalStorage
from shardfs.zstd_frames import Frames, FrameWriter, SeekTable, read_table, seek_table

NOISE = random.Random(1).randbytes(300_000)


class Memory:
    """A stored file in memory that counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.reads: list[int] = []
        self.advised = False

    def read_at(self, offset: int, count: int) -> bytes:
        self.reads.append(offset)
        return self.data[offset : offset + count]

    def advise(self) -> None:
        self.advised = True


def framed(records: list[bytes], target: int = 1000, level: int = 3) -> bytes:
    file = io.BytesIO()
    writer = FrameWriter(file, level, target)
    for record in records:
        writer.put(record)
    writer.finish()
    return file.getvalue()


def table_of(sizes: list[tuple[int, ...]], **other: int) -> bytes:
    """A seek table as its format says, written here once more by hand."""
    flags = other.get("flags", 0x80 if sizes and len(sizes[0]) == 3 else 0)
    body = b"".join(struct.pack(f"<{len(row)}I", *row) for row in sizes)
    body += struct.pack("<IBI", other.get("frames", len(sizes)), flags, other.get("magic", 0x8F92EAB1))
    return struct.pack("<II", other.get("skippable", 0x184D2A5E), other.get("length", len(body))) + body


def sound(stored: bytes) -> SeekTable:
    table = seek_table(len(stored), stored)
    assert table is not None
    return table


def reader_of(stored: bytes, limit: int = 1 << 20) -> tuple[Frames, Memory]:
    file = Memory(stored)
    return Frames(file, sound(stored), limit), file


def decompressed(stored: bytes) -> bytes:
    return bytes(memoryview(compression.decompress("zstd", io.BytesIO(stored), len(stored))))


# --- writing ----------------------------------------------------------------------------------------------------


def test_records_below_the_target_are_never_cut_and_larger_ones_begin_a_frame() -> None:
    sizes = [400, 500, 101, 1000, 1, 999, 2500, 400, 101, 3000, 5]
    table = sound(framed([NOISE[:size] for size in sizes]))
    assert list(table.raw) == [0, 900, 1001, 2001, 3001, 4001, 5001, 5901, 6002, 7002, 8002, 9002, 9007]


def test_what_fits_into_one_frame_is_as_any_writer_makes_it() -> None:
    for records in ([], [b""], [b"a", b"b"], [NOISE[:1000]]):
        stored = framed(records)
        assert seek_table(len(stored), stored) is None
        assert stored == zstandard.ZstdCompressor(level=3, write_checksum=True).compress(b"".join(records))
        assert decompressed(stored) == b"".join(records)


def test_the_table_takes_17_bytes_and_8_a_frame() -> None:
    stored = framed([NOISE[:600]] * 5)
    assert len(stored) == sound(stored).stored[-1] + 17 + 5 * 8


def test_frames_carry_size_and_checksum() -> None:
    stored = framed([NOISE[:600]] * 5)
    table = sound(stored)
    for at in range(5):
        frame = zstandard.get_frame_parameters(stored[table.stored[at] :])
        assert (frame.content_size, frame.has_checksum) == (600, True)


def test_levels_are_zstandards() -> None:
    text = b"".join(b"%d " % number for number in range(50_000))
    assert len(framed([text], level=1)) > len(framed([text], 100_000)) > len(framed([text], 100_000, level=19))


def test_to_other_readers_it_is_ordinary_zstd(tmp_path: Path) -> None:
    records = [NOISE[:size] for size in (400, 700, 5000, 1, 0, 999)]
    stored, raw = framed(records), b"".join(records)
    assert decompressed(stored) == raw
    with zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True) as stream:
        assert stream.read() == raw
    command = shutil.which("zstd")
    if command is not None:
        (tmp_path / "a.zst").write_bytes(stored)
        done = subprocess.run([command, "-dc", tmp_path / "a.zst"], capture_output=True, timeout=30, check=True)
        assert done.stdout == raw


def test_a_table_that_is_damaged_is_skipped_and_one_that_is_cut_off_is_damage() -> None:
    stored = framed([NOISE[:600]] * 5)
    frames = sound(stored).stored[-1]
    for at in range(frames + 8, len(stored)):  # behind the header of the skippable frame
        damaged = stored[:at] + bytes([stored[at] ^ 0x55]) + stored[at + 1 :]
        assert decompressed(damaged) == NOISE[:600] * 5
    for length in range(frames + 1, len(stored)):
        with pytest.raises(DamagedShardError, match=r"cut off|broken"):
            decompressed(stored[:length])
    # without the whole of it, it is a file as other writers make them
    assert decompressed(stored[:frames]) == NOISE[:600] * 5


# --- tables -----------------------------------------------------------------------------------------------------

FRAME = zstandard.ZstdCompressor(write_checksum=True).compress(b"x" * 500)
SIZE = len(FRAME)


@pytest.mark.parametrize(
    "table",
    [
        table_of([]),
        table_of([(SIZE, 500)]),
        table_of([(SIZE, 500)] * 3),
        table_of([(SIZE + 1, 500), (SIZE, 500)]),
        table_of([(2 * SIZE, 1000), (0, 0)]),
        table_of([(2 * SIZE, 1000), (0, 5)]),
        table_of([(SIZE, 500), (SIZE, 0)]),
        table_of([(SIZE, 500), (SIZE, config.FRAME_MAX + 1)]),
        table_of([(SIZE, 500), (SIZE, 0xFFFFFFFF)]),
        table_of([(0xFFFFFFFF, 500), (SIZE * 2 + 1, 500)]),
        table_of([(SIZE, 500)] * 2, flags=0x80),
        table_of([(SIZE, 500)] * 2, flags=0x04),
        table_of([(SIZE, 500)] * 2, magic=0x8F92EAB2),
        table_of([(SIZE, 500)] * 2, skippable=0x184D2A5D),
        table_of([(SIZE, 500)] * 2, length=24),
        table_of([(SIZE, 500)] * 2, length=0),
        table_of([(SIZE, 500)] * 2, frames=1),
        table_of([(SIZE, 500)] * 2, frames=3),
        table_of([(SIZE, 500)] * 2, frames=0xFFFFFFFF),
        table_of([(SIZE, 500)] * 2)[8:],
        table_of([(SIZE, 500)] * 2) + b"\0",
        b"",
    ],
    ids=lambda table: table.hex()[-40:],
)
def test_a_table_that_does_not_fit_the_file_is_none(table: bytes) -> None:
    stored = FRAME * 2 + table
    assert seek_table(len(stored), stored) is None
    assert read_table(Memory(stored)) is None
    assert seek_table(len(table), table) is None
    hint = compression.raw_size_hint("zstd", len(stored), stored[:18], stored)
    assert len(stored) <= hint <= compression.raw_limit("zstd", len(stored))


def test_a_table_that_fits_is_read_from_the_end_of_the_file() -> None:
    for rows in ([(SIZE, 500)] * 2, [(SIZE, 500, int.from_bytes(FRAME[-4:], "little"))] * 2):
        stored = FRAME * 2 + table_of(rows)
        file = Memory(stored)
        table = read_table(file)
        assert table is not None
        assert (list(table.stored), list(table.raw), table.size) == ([0, SIZE, 2 * SIZE], [0, 500, 1000], 1000)
        assert min(file.reads) == 2 * SIZE
        assert Frames(file, table, 1000).fetch(499, 501) == b"xx"


def test_a_table_larger_than_the_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = framed([NOISE[:600]] * 5)
    monkeypatch.setattr(config, "FRAME_TABLE", 17 + 5 * 8 - 1)
    assert seek_table(len(stored), stored) is None


def test_the_hint_is_the_sum_of_the_table_or_judged_by_its_last_rows() -> None:
    stored = framed([NOISE[:600], bytes(600)] * 50)
    assert compression.raw_size_hint("zstd", len(stored), stored[:18], stored[-2000:]) == 60_000
    assert compression.raw_size_hint("zstd", len(stored), stored[:18], stored[-200:]) == pytest.approx(60_000, rel=0.2)
    # without rows it is the first frame's size, which is less than what is stored
    assert compression.raw_size_hint("zstd", len(stored), stored[:18], stored[-10:]) == len(stored)


# --- reading ----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.binary(max_size=60) | st.integers(0, 300).map(bytes), max_size=12),
    st.integers(1, 100),
    st.integers(0, 400),
    st.lists(st.tuples(st.integers(-5, 1500), st.integers(-5, 1500)), max_size=12),
)
def test_any_range_of_any_records_is_that_of_their_concatenation(
    records: list[bytes], target: int, limit: int, ranges: list[tuple[int, int]]
) -> None:
    stored, raw = framed(records, target), b"".join(records)
    assert decompressed(stored) == raw
    table = seek_table(len(stored), stored)
    if table is None:
        assert len(raw) <= target
        return
    reader = Frames(Memory(stored), table, limit)
    assert reader.size == len(raw)
    at = 0
    for record in records:
        if len(record) <= target:
            assert sum(at < edge < at + len(record) for edge in table.raw) == 0
        at += len(record)
    for start, end in ranges:
        expected = raw[max(start, 0) : max(end, 0)]
        part = reader.part(start, end)
        assert part is None or part == expected
        got = reader.fetch(start, end)
        assert got == expected
        assert got.readonly
        runs = reader._runs(start, end)
        if len(runs) <= 1 or (len(runs) <= 16 and table.raw[runs[-1] + 1] - table.raw[runs[0]] <= limit):
            assert reader.part(start, end) == expected
        assert reader.held - table.nbytes <= max(limit, target)


def test_a_part_is_given_only_of_frames_that_are_held_and_without_a_copy() -> None:
    reader, file = reader_of(framed([NOISE[:800], NOISE[800:1600], NOISE[1600:2400]]))
    assert reader.computes
    assert reader.part(0, 10) is None
    assert reader.fetch(5, 10) == NOISE[5:10]
    part, again = reader.part(0, 800), reader.part(700, 800)
    assert part is not None
    assert again is not None
    assert part == NOISE[:800]
    assert part.obj is again.obj
    assert reader.part(700, 900) is None
    reader.fetch(900, 901)
    assert reader.part(700, 900) == NOISE[700:900]
    assert reader.part(1600, 1600) == reader.fetch(9000, 9001) == b""
    assert len(file.reads) == 2


def test_what_was_used_last_is_held_and_no_more_than_the_limit() -> None:
    stored = framed([NOISE[at : at + 800] for at in range(0, 8000, 800)])
    reader, file = reader_of(stored, 2500)
    for frame in (0, 1, 2, 0, 3):
        reader.fetch(frame * 800, frame * 800 + 1)
    assert [reader.part(frame * 800, frame * 800 + 800) is not None for frame in range(5)] == [
        True,
        False,
        True,
        True,
        False,
    ]
    assert reader.held == 2400 + sound(stored).nbytes
    assert len(file.reads) == 4
    assert reader.fetch(0, 8000) == NOISE[:8000]
    assert reader.held == 2400 + sound(stored).nbytes


def test_the_newest_frame_is_held_whatever_the_limit() -> None:
    reader, file = reader_of(framed([NOISE[:800], NOISE[800:1600]]), 10)
    for _ in range(3):
        assert reader.fetch(0, 800) == NOISE[:800]
    assert len(file.reads) == 1
    reader.fetch(800, 801)
    assert reader.part(0, 1) is None


def test_many_frames_or_bytes_are_not_joined_on_the_event_loop() -> None:
    reader, _ = reader_of(framed([NOISE[:20_000]], 100))
    assert reader.fetch(0, 20_000) == NOISE[:20_000]
    assert reader.part(0, 1600) == NOISE[:1600]
    assert reader.part(0, 1601) is None
    large = bytes(config.COPY_SLICE)
    reader, _ = reader_of(framed([large, large], config.COPY_SLICE), 4 * config.COPY_SLICE)
    assert reader.fetch(0, 2 * config.COPY_SLICE) == large * 2
    assert reader.part(1, config.COPY_SLICE + 1) == large
    assert reader.part(0, config.COPY_SLICE + 1) is None


def test_two_threads_that_want_a_frame_decompress_it_once() -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Slow(Memory):
        def read_at(self, offset: int, count: int) -> bytes:
            inside.set()
            assert go_on.wait(30)
            return super().read_at(offset, count)

    stored = framed([NOISE[:800], NOISE[800:1600]])
    file = Slow(stored)
    reader = Frames(file, sound(stored), 10_000)
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(bytes(reader.fetch(0, 800)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert inside.wait(30)
    assert reader.part(0, 800) is None  # waits for nobody
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert got == [NOISE[:800]] * 4
    assert len(file.reads) == 1


def test_a_failure_is_everybodys_own_and_forgotten() -> None:
    class Fails(Memory):
        broken = True

        def read_at(self, offset: int, count: int) -> bytes:
            if self.broken:
                raise StorageError("the disk is broken")
            return super().read_at(offset, count)

    stored = framed([NOISE[:800], NOISE[800:1600]])
    file = Fails(stored)
    reader = Frames(file, sound(stored), 10_000)
    errors: list[StorageError] = []

    def fetch() -> None:
        try:
            reader.fetch(0, 800)
        except StorageError as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({id(error) for error in errors}) == 4
    file.broken = False
    assert reader.fetch(0, 800) == NOISE[:800]


def test_threads_that_hammer_a_reader_all_get_the_right_bytes() -> None:
    stored = framed([NOISE[at : at + 700] for at in range(0, 70_000, 700)])
    reader, _ = reader_of(stored, 20_000)
    wrong: list[Any] = []
    most = 20_000 + sound(stored).nbytes

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(1500):
                start = rng.randrange(70_000)
                end = min(start + rng.randrange(3000), 70_000)
                part = reader.part(start, end)
                got = part if part is not None else reader.fetch(start, end)
                if got != NOISE[start:end] or reader.held > most:
                    wrong.append((start, end, reader.held))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert reader.held == sum(map(len, reader._frames.values())) + sound(stored).nbytes
    assert reader._pending == {}


def test_the_file_is_closed_when_nobody_holds_the_reader(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(framed([NOISE[:800], NOISE[800:1600]]))
    file = LocalStorage(tmp_path).open("a")
    descriptor, table = file._descriptor, read_table(file)
    assert table is not None
    reader = Frames(file, table, 10_000)
    del file
    part = reader.fetch(0, 10)
    os.fstat(descriptor)
    del reader
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(descriptor)
    assert part == NOISE[:10]


def test_a_file_that_will_be_wanted_is_read_ahead_if_it_is_not_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, file = reader_of(framed([NOISE[:800], NOISE[800:1600]]))
    monkeypatch.setattr(config, "ADVISE_LIMIT", 100)
    reader.expect()
    assert not file.advised
    monkeypatch.setattr(config, "ADVISE_LIMIT", 10_000)
    reader.expect()
    assert file.advised
    assert file.reads == []


# --- damage -----------------------------------------------------------------------------------------------------


def test_each_flipped_bit_of_a_frame_is_damage_or_does_no_harm() -> None:
    stored = framed([NOISE[:50] + bytes(100)] * 2, 150)
    frames = sound(stored).stored[-1]
    for bit in range(frames * 8):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        reader, _ = reader_of(bytes(damaged))
        for start in (0, 150):
            with contextlib.suppress(DamagedShardError):
                assert reader.fetch(start, start + 150) == NOISE[:50] + bytes(100)


BOMB = zstandard.ZstdCompressor().compress(bytes(100 * config.MIB))
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100 * config.MIB))
CLAIMS = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x09\0\0x"
WINDOW = b"\x28\xb5\x2f\xfd\x00\xf8" + (1 << 3 | 1).to_bytes(3, "little") + b"x"
SKIPPABLE = b"\x50\x2a\x4d\x18" + struct.pack("<I", 500) + bytes(500)


@pytest.mark.parametrize(
    "frame",
    [BOMB, UNSIZED, CLAIMS, WINDOW, SKIPPABLE, FRAME + b"x", FRAME[:-1], FRAME[:-4] + b"aaaa", FRAME * 2, b"no frame"],
    ids=["bomb", "bomb without size", "claim", "window", "skippable", "more", "cut", "checksum", "two", "none"],
)
def test_a_frame_that_is_not_what_the_table_says_is_damage(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = zstandard.ZstdDecompressor

    class Decompressor:
        def __init__(self, **options: Any) -> None:
            self._real = real(**options)

        def decompress(self, data: bytes, max_output_size: int, **options: Any) -> bytes:
            claimed = zstandard.get_frame_parameters(data).content_size
            asked.append(max_output_size if claimed == zstandard.CONTENTSIZE_UNKNOWN else claimed)
            return self._real.decompress(data, max_output_size=max_output_size, **options)

    monkeypatch.setattr(zstandard, "ZstdDecompressor", Decompressor)
    stored = FRAME + frame + FRAME
    stored += table_of([(SIZE, 500), (len(frame), 500), (SIZE, 500)])
    reader, _ = reader_of(stored)
    for _ in range(2):
        with pytest.raises(DamagedShardError) as caught:
            reader.fetch(500, 501)
        assert caught.value.offset == 500
    assert max(asked, default=0) <= 500  # nobody takes memory for what a frame claims
    assert reader.fetch(0, 500) == reader.fetch(1000, 1500) == b"x" * 500


def test_sizes_that_add_up_and_are_wrong_are_damage() -> None:
    stored = framed([NOISE[:800], NOISE[800:1600]])
    table = sound(stored)
    first, second = table.stored[1], table.stored[2] - table.stored[1]
    for rows in ([(first - 1, 800), (second + 1, 800)], [(first, 700), (second, 900)]):
        reader, _ = reader_of(stored[: table.stored[2]] + table_of(rows))
        with pytest.raises(DamagedShardError):
            reader.fetch(0, 10)
        with pytest.raises(DamagedShardError):
            reader.fetch(1500, 1510)


def test_a_checksum_in_the_table_is_compared() -> None:
    checksum = int.from_bytes(FRAME[-4:], "little")
    reader, _ = reader_of(FRAME * 2 + table_of([(SIZE, 500, checksum), (SIZE, 500, checksum ^ 1)]))
    assert reader.fetch(0, 500) == b"x" * 500
    with pytest.raises(DamagedShardError, match="checksum"):
        reader.fetch(500, 1000)


def test_a_file_that_was_changed_is_stale_and_one_that_was_replaced_is_still_whole(tmp_path: Path) -> None:
    stored = framed([NOISE[:800], NOISE[800:1600]])
    for name in ("changed", "cut", "replaced"):
        (tmp_path / name).write_bytes(stored)
    readers = {}
    for name in ("changed", "cut", "replaced"):
        file = LocalStorage(tmp_path).open(name)
        table = read_table(file)
        assert table is not None
        readers[name] = Frames(file, table, 10_000)
    with (tmp_path / "changed").open("r+b") as changed:
        changed.write(b"x")
    os.utime(tmp_path / "changed", ns=(1, 1))
    os.truncate(tmp_path / "cut", 10)
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / "other").rename(tmp_path / "replaced")
    for name in ("changed", "cut"):
        with pytest.raises(StaleShardError):
            readers[name].fetch(0, 10)
    assert readers["replaced"].fetch(0, 10) == NOISE[:10]


def test_frames_are_taken_apart_by_the_settings_of_this_package() -> None:
    """One frame of what is written by default never is larger than what may be read for a sample."""
    assert config.FRAME_TARGET <= config.FRAME_MAX
    stored = framed([NOISE] * 8, config.FRAME_TARGET)
    assert sound(stored).size == 8 * len(NOISE)
    assert zstd_frames.raw_size_hint(len(stored), stored[-100:]) == 8 * len(NOISE)


# --- ahead ------------------------------------------------------------------------------------------------------


def refilled(stored: bytes) -> tuple[Frames, list[tuple[int, int]]]:
    reader, _ = reader_of(stored)
    told: list[tuple[int, int]] = []
    reader.refill = lambda start, end: told.append((start, end))
    return reader, told


def test_who_reads_frame_after_frame_has_the_next_ones_made_ready() -> None:
    reader, told = refilled(framed([NOISE[:20_000]]))
    raw = list(range(0, 20_001, 1000))
    for at in range(0, 20_000, 500):
        if reader.part(at, at + 500) is None:
            reader.fetch(at, at + 500)
        for start, end in told:
            reader.hold(start, end)
    assert sorted(set(told)) == sorted(told), "each once"
    assert {start for start, _ in told} == set(raw[config.FRAMES_SURE + 1 : -1])
    assert all(end - start == 1000 for start, end in told)
    assert reader.held <= 21_000 + 1000


def test_who_jumps_about_has_nothing_made_ready() -> None:
    reader, told = refilled(framed([NOISE[:100_000]]))
    for at in random.Random(3).sample(range(0, 100_000, 2000), 50):
        reader.fetch(at, at + 10)
    assert told == []
    for at in (0, 0, 10, 20, 30):  # within one frame
        reader.fetch(at, at + 10)
    assert told == []
