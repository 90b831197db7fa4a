"""Names in views mean one thing each; entries made by the hundred are those made one by one; tars are what tarfile
says they are."""

from __future__ import annotations

import io
import struct
import tarfile
from typing import Any

import msgpack
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardfs import bulk_listing, inodes, table_building
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.index import ShardTable
from shardfs.model import Entry, Inode, Key, Version
from shardfs.tree import KeyDirectory
from shardfs.views import columns
from shardfs.views.columns import Columns, Entries, KeyFiles, Rests, Rows
from shardfs.views.names import MISSING, KeyNames, View, directory_of, parse
from shardfs.views.numbers import Owner, Ranges
from shardfs.views.tars import TarLayout

keys = st.lists(
    st.text("ab/.-~%ü", min_size=1, max_size=8).filter(lambda key: "//" not in key), unique=True, max_size=8
)
stems = st.lists(st.text("ab-.~/é", min_size=1, max_size=6), unique=True, min_size=1, max_size=6)


def table_of(samples: list[dict[str, Any]]) -> tuple[ShardTable, bytes]:
    raw = b"".join(msgpack.packb(sample) for sample in samples)
    return table_building.build(SquirrelShard(raw, len(raw), "msgpack"), "png"), raw


def directory(key: str, slot: int) -> KeyDirectory:
    entry = Entry(Key(key), Version("v"), 0, 1_600_000_000_123_456_789 + slot)
    return KeyDirectory(Inode(slot + 10), inodes.ROOT, b"x", entry, slot)


@given(keys, st.data())
def test_the_name_of_a_file_of_many_keys_means_one_file(found: list[str], data: Any) -> None:
    known, rests, shown = KeyNames(), Rests(), {}
    parts = []
    for slot, key in enumerate(found, 1):
        own = data.draw(st.one_of(st.none(), stems))
        samples: list[dict[str, Any]] = [{"x": b"1", "y": b"22", "n": 1} for _ in own or range(3)]
        for sample, name in zip(samples, own or (), strict=False):
            sample["__key__"] = name
        table, _ = table_of(samples)
        prefix = known.name(key) + b"-"
        part = KeyFiles.of_table(directory(key, slot), table, prefix, columns.all_files(table), rests)
        parts.append(part)
    rows = Rows(Columns(parts), np.arange(sum(map(len, parts))), 1.0)
    for at in range(len(rows)):
        name, attributes = rows.entry(at)
        assert shown.setdefault(name, attributes.inode) == attributes.inode
        assert len(name) <= 255
        assert b"/" not in name
        head, _, rest = name.partition(b".")
        meant = [
            (part.inode(place), int(part.sizes[place]))
            for key, stem in known.splits(head)
            for part in [parts[found.index(key)]]
            for place in part.find(stem, rest)
        ]
        assert meant == [(attributes.inode, attributes.size)]
    assert len(shown) == len(rows)
    assert [known.name(key) for key in found] == [part.prefix[:-1] for part in parts]


@given(st.lists(st.one_of(st.text(max_size=5), st.integers(-3, 300), st.booleans(), st.floats(), st.none())))
def test_values_that_read_differently_are_different_directories(values: list[Any]) -> None:
    for value in values:
        name = directory_of(value)
        assert 0 < len(name) <= 255
        assert b"/" not in name
        assert not name.startswith(b".")
        assert (name == MISSING) == (value is None)
    texts = {value for value in values if type(value) is str}
    assert len({directory_of(value) for value in texts}) == len(texts)


@given(st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=1, max_size=8))
def test_a_view_has_one_name_that_is_understood(fields: list[str]) -> None:
    view = View("by", tuple(fields))
    assert parse(view.text) == view
    assert "/" not in view.text


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), max_size=40))
def test_numbers_are_given_once(steps: list[tuple[int, int, bool]]) -> None:
    ranges, ever, now = Ranges(), {}, {}
    for what, count, drop in steps:
        owner = Owner(1, 2, what)
        if drop:
            ranges.drop([owner])
            now.pop(what, None)
            continue
        first = ranges.of(owner, now.setdefault(what, count))
        for offset in range(now[what]):
            assert ranges.find(first + offset) == (owner, offset)
            ever.setdefault(first + offset, (what, offset, first))
            assert ever[first + offset] == (what, offset, first)
    for number, (what, _, first) in ever.items():
        if what not in now:
            assert ranges.find(number) is None or ranges.of(Owner(1, 2, what)) != first


@given(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=40), st.integers(0, 1 << 40), st.integers(0, 4 << 60)), max_size=30
    ),
    st.integers(160, 5_000),
    st.booleans(),
    st.integers(0, 1 << 40),
)
def test_bulk_entries_of_many_keys_are_those_made_one_by_one(
    found: list[tuple[bytes, int, int]], room: int, plus: bool, after: int
) -> None:
    def made(name: bytes, size: int, mtime: int, at: int) -> bytes:
        seconds, rest = divmod(mtime, 1_000_000_000)
        head = struct.pack("<QQQQII", 7 + at if plus else 0, 0, 86400, 86400, 0, 0)
        attributes = struct.pack("<QQQQQQIII", 7 + at, size, -(-size // 512), *[seconds] * 3, *[rest] * 3)
        attributes += struct.pack("<7I", 0o100444, 1, 12, 34, 0, 4096, 0)
        entry = head + attributes + struct.pack("<QQII", 7 + at, after + at, len(name), 8) + name
        return entry + bytes(-len(entry) % 8)

    columns_ = Entries(
        [name for name, _, _ in found],
        np.arange(7, 7 + len(found)).astype(np.uint64),
        np.array([size for _, size, _ in found], np.uint64),
        np.array([mtime for _, _, mtime in found], np.int64),
    )
    template = np.frombuffer(made(b"template", 3, 4, 0), np.uint64, 19)
    packed, count = bulk_listing.pack_entries(columns_, room, template, after, plus)
    data, at = packed.tobytes(), 0
    for number, (name, size, mtime) in enumerate(found[:count]):
        expected = made(name, size, mtime, number)
        got = data[at : at + len(expected)]
        assert (got if plus else got[:8] + got[128:]) == (expected if plus else expected[:8] + expected[128:])
        at += len(expected)
    assert at == len(data) <= room
    if count < len(found):
        assert at + len(made(*found[count], count)) > room


@given(
    st.lists(
        st.dictionaries(
            st.one_of(st.text("ab.", min_size=1, max_size=4), st.text("n", min_size=90, max_size=130)),
            st.binary(max_size=1200),
            min_size=1,
            max_size=3,
        ),
        min_size=1,
        max_size=6,
    ),
    st.data(),
)
def test_any_part_of_a_tar_is_that_part_of_it(samples: list[dict[str, bytes]], data: Any) -> None:
    table, raw = table_of(samples)
    layout = TarLayout(table)

    def part(start: int, end: int) -> bytes:
        made = []
        for piece in layout.pieces(table, start, end):
            if piece.file < 0:
                made.append(piece.data)
                continue
            run = table.slice_of(piece.file)
            assert run is not None
            content = run[0] + raw[run[1] : run[1] + run[2]]
            made.append(content[piece.offset : piece.offset + piece.size])
        return b"".join(made)

    whole = part(0, layout.size + 100)
    assert len(whole) == layout.size
    with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
        members = opened.getmembers()
        assert [member.name.encode() for member in members] == [name for name, _, _ in table.listing(0)]
        assert [member.size for member in members] == [size for _, size, _ in table.listing(0)]
    start = data.draw(st.integers(0, layout.size))
    end = data.draw(st.integers(start, layout.size + 10))
    assert part(start, end) == whole[start:end]
