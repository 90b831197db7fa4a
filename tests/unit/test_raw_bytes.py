"""Raw bytes as they come in: the same whatever the hint was, and memory that goes back."""

from __future__ import annotations

import gc
import io
import mmap
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from shardfs import config, raw_bytes
from shardfs.raw_bytes import RawBytes

MIB = config.MIB


@pytest.fixture(autouse=True)
def _small_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MAPPED_RAW", 3 * MIB)


@pytest.mark.parametrize("expected", [0, 1, 70_000, 3 * MIB, 7 * MIB + 5, 40 * MIB])
@pytest.mark.parametrize("size", [0, 1, 70_000, 3 * MIB - 1, 3 * MIB, 7 * MIB + 5])
@pytest.mark.parametrize("filled", [True, False])
def test_what_comes_in_is_what_comes_out(expected: int, size: int, filled: bool) -> None:
    data = random.Random(size).randbytes(size)
    raw, source = RawBytes(expected), io.BytesIO(data)
    if filled:
        while raw.fill(source.readinto):
            pass
    else:
        while piece := source.read(300_000):
            raw.add(piece)
    assert raw.size == size
    assert raw.piece(0, 10) == data[:10]
    whole = memoryview(raw.whole())
    assert len(whole) == size
    assert whole == data


@pytest.mark.parametrize("size", [200, 5 * MIB])
def test_the_last_bytes_can_be_left_out(size: int) -> None:
    for dropped in (0, 100, size):
        raw = RawBytes(size)
        for _ in range(0, size, 100):
            raw.add(b"x" * 100)
        assert memoryview(raw.whole(dropped)) == b"x" * (raw.size - dropped)


def test_a_hint_that_no_memory_can_hold_does_no_harm() -> None:
    raw = RawBytes(1 << 60)
    raw.add(b"abc")
    assert raw.whole() == b"abc"


def resident() -> int:
    """Bytes of memory this process holds now."""
    # counted page by page; what /proc/self/status says is behind by some megabytes
    found = re.search(r"^Rss:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def test_a_mapping_takes_what_is_written_and_gives_it_back_with_its_last_view() -> None:
    gc.collect()
    before = resident()
    raw = RawBytes(1 << 30)
    fill: Callable[[memoryview], int] = io.BytesIO(b"x" * MIB).readinto
    for _ in range(64):
        raw.add(bytes(MIB))
    raw.fill(fill)
    whole = raw.whole()
    assert isinstance(whole, mmap.mmap)
    assert 60 * MIB < resident() - before < 80 * MIB
    last = memoryview(whole)[-5:]
    del raw, whole
    assert last == b"xxxxx"
    assert resident() - before > 60 * MIB
    del last
    assert resident() - before < 8 * MIB


def test_an_error_while_it_is_filled_leaves_it_as_it_was() -> None:
    def breaks(view: memoryview) -> int:
        view[:3] = b"abc"
        raise ValueError("broken")

    for expected in (0, 5 * MIB):
        raw = RawBytes(expected)
        raw.add(b"x")
        with pytest.raises(ValueError, match="broken"):
            raw.fill(breaks)
        raw.add(b"y" * 20 * MIB)  # regression: a view that was still held would not let a mapping grow
        assert memoryview(raw.whole()) == b"x" + b"y" * 20 * MIB


def test_a_kernel_without_huge_pages_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)
    assert len(raw_bytes._mapping(MIB, MIB)) >= MIB
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert len(raw_bytes._mapping(MIB, MIB)) >= MIB


@pytest.mark.parametrize("size", [3 * MIB + 5, 11 * MIB])
def test_a_mapping_that_the_kernel_does_not_resize_is_made_anew(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two kinds of pages, that is; whether it takes advice to make them one kind it is not bound to say. One that
    was to grow ended in "Bad address"."""
    monkeypatch.setattr(raw_bytes, "_advise", _last_pages_are_other_ones)
    data = random.Random(1).randbytes(size)
    raw = RawBytes(5 * MIB)
    for at in range(0, size, MIB):
        raw.add(data[at : at + MIB])
    assert memoryview(raw.whole()) == data


def _last_pages_are_other_ones(mapped: mmap.mmap, huge: int) -> None:
    mapped.madvise(mmap.MADV_DONTDUMP, 0, 2 * MIB)


def test_a_mapping_whose_size_is_known_takes_no_more_than_that() -> None:
    """Not another huge page for what is left behind the last whole one."""
    size = 2 * config.HUGE_PAGE + 100_000
    gc.collect()
    before = resident()
    made = []
    for _ in range(8):
        raw = RawBytes(size)
        while raw.size < size:
            raw.add(bytes(min(MIB, size - raw.size)))
        made.append(raw.whole())
    assert 8 * size - MIB < resident() - before < 8 * size + 2 * MIB
