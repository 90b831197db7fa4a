"""Entries made by the hundred are, byte for byte, those made one by one."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import msgpack
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardfs import bulk_listing, table_building
from shardfs.bulk_listing import Answer, Bulk
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.index import ShardTable

FIRST = 7 << 32
ATTRIBUTES = (0o100444, 1, 12, 34, 0, 4096, 0)
"""Mode, links, user, group, device, block size, flags."""


def one_by_one(name: bytes, number: int, size: int, plus: bool) -> bytes:
    """An entry as libfuse packs it: fuse_entry_out, fuse_attr, fuse_dirent, the name, and zeros up to 8 bytes."""
    inode = FIRST + number
    head = struct.pack("<QQQQII", inode if plus else 0, 0, 86400, 86400, 0, 0)
    blocks = -(-size // 512)
    attributes = struct.pack("<QQQQQQIII7I", inode, size, blocks, 5, 6, 7, 8, 9, 10, *ATTRIBUTES)
    made = head + attributes + struct.pack("<QQII", inode, number + 1, len(name), 8) + name
    return made + bytes(-len(made) % 8)


def without_attributes(entry: bytes) -> bytes:
    """What of an entry the kernel looks at where the node is 0."""
    return entry[:8] + entry[128:]


fields = st.dictionaries(
    st.text("abcdefgé._-%", min_size=1, max_size=30),
    st.one_of(st.integers(0, 9), st.binary(max_size=600), st.text(max_size=5)),
    max_size=4,
)


@st.composite
def tables(draw: Any) -> ShardTable:
    samples = draw(st.lists(fields, min_size=1, max_size=40))
    if draw(st.booleans()):
        for at, sample in enumerate(samples):
            sample["__key__"] = draw(st.text("xyzü", max_size=12)) + str(at)
    raw = b"".join(msgpack.packb(sample) for sample in samples)
    return table_building.build(SquirrelShard(raw, len(raw), "msgpack"), "png")


@given(tables(), st.data())
def test_bulk_entries_are_those_made_one_by_one(table: ShardTable, data: Any) -> None:
    plus = data.draw(st.booleans())
    start = data.draw(st.integers(0, table.files - 1))
    room = data.draw(st.integers(160, 20_000))
    template = np.frombuffer(one_by_one(b"template", 3, 4, True), np.uint64, 19)
    made, count = bulk_listing.pack(table, start, room, template, FIRST, plus)
    expected = [one_by_one(name, number, size, plus) for name, size, number in table.listing(start)]
    fitting = 0
    while fitting < len(expected) and sum(map(len, expected[: fitting + 1])) <= room:
        fitting += 1
    # never more than there is room for; less only where names are so short that the count is bounded first
    assert count <= fitting
    assert count == fitting or count == min(len(expected), room // 160)
    at = 0
    for entry in expected[:count]:
        got = made[at : at + len(entry)].tobytes()
        assert (got if plus else without_attributes(got)) == (entry if plus else without_attributes(entry))
        at += len(entry)
    assert at == made.nbytes <= room


class MadeUpToken(bulk_listing._Token):
    """A token's memory, with a buffer of its own and a guard behind it."""


def answer_with(size: int, first: bytes) -> tuple[MadeUpToken, Any, Answer]:
    memory = ctypes.create_string_buffer(b"\xee" * (size + 64), size + 64)
    fields = MadeUpToken(request=1, left=size)
    answer = Answer(fields)
    address = ctypes.addressof(memory)
    ctypes.memmove(address, first, len(first))
    fields.begin, fields.end, fields.left = address, address + len(first), size - len(first)
    return fields, memory, answer


@given(tables(), st.integers(700, 9_000), st.booleans(), st.booleans())
def test_an_answer_is_filled_and_never_passed(table: ShardTable, size: int, plus: bool, held: bool) -> None:
    name, length, number = next(table.listing(0))
    first = one_by_one(name, number, length, True)
    fields, memory, answer = answer_with(size, first)
    assert answer.check(name, FIRST, 1)
    if held:
        answer.withhold()
    count = answer.extend(table, 1, FIRST, plus)
    used = fields.end - fields.begin
    assert used + fields.left == size
    assert memory.raw[used:] == b"\xee" * (size + 64 - used)
    assert memory.raw[:8] == (bytes(8) if held else struct.pack("<Q", FIRST))
    assert count <= table.files - 1
    if count < table.files - 1:
        assert fields.left < 160 + 256


@given(st.sampled_from(["begin", "end", "left", "name", "inode", "after"]))
def test_whatever_is_not_as_expected_ends_the_bulk_way(wrong: str) -> None:
    first = one_by_one(b"name.json", 0, 10, True)
    fields, _, answer = answer_with(4096, first)
    if wrong in ("begin", "end", "left"):
        setattr(fields, wrong, 0 if wrong == "begin" else getattr(fields, wrong) + 8)
    name = b"other.json" if wrong == "name" else b"name.json"
    assert not answer.check(name, FIRST + (wrong == "inode"), 1 + (wrong == "after"))


def test_what_is_no_token_is_not_touched() -> None:
    for other in (None, object(), "text", memoryview(bytes(100))):
        bulk = Bulk()
        assert bulk.begin(other) is None
        assert not bulk.sound
