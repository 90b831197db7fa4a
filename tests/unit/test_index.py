"""Tables of what shards hold: the same names, sizes and bytes as laying out each sample gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

from shardfs import config, layout, packing, table_building
from shardfs.drivers.base import Record
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.errors import DamagedShardError
from shardfs.index import ShardTable
from shardfs.values import Blob, Buffer


def shard_of(samples: list[Any]) -> SquirrelShard:
    raw = b"".join(msgpack.packb(sample, default=_numpy) for sample in samples)
    return SquirrelShard(raw, len(raw), "msgpack")


def _numpy(value: Any) -> Any:
    return {
        b"nd": True,
        b"type": value.dtype.str,
        b"kind": b"",
        b"shape": value.shape,
        b"data": value.tobytes(),
    }


def content(table: ShardTable, shard: SquirrelShard, file: int) -> bytes:
    run = table.slice_of(file)
    if run is None:
        return table.render(file, shard, "png")
    prefix, offset, length = run
    return prefix + bytes(shard.raw[offset : offset + length])


SAMPLES: list[Any] = [
    {"label": 1, "image": np.zeros((2, 3, 3), "u1"), "data": b"\xff\xd8\xff\xe0jpeg"},
    {"label": 2},
    {},
    b"just bytes",
    {"a": [b"x", {"b": np.arange(3.0)}], "a.0": b"y", b"\xff": 5},
    [1, 2],
    {"only": np.zeros((0, 2))},
]


def test_a_table_says_what_laying_out_each_sample_says() -> None:
    shard = shard_of(SAMPLES)
    table = table_building.build(shard, "png")
    assert (table.samples, table.raw_bytes) == (len(SAMPLES), len(shard.raw))
    listed = list(table.listing(0))
    assert [number for _, _, number in listed] == list(range(table.files))
    at = 0
    for number, record in enumerate(shard.records()):
        plans = layout.lay_out(record.tree, shard.raw, "png", 6)
        files = {}
        for plan in plans:
            name = f"{number:06d}.{plan.suffix}".encode()
            assert listed[at] == (name, plan.content.size, at)
            assert (table.name(at), table.size(at), table.find(name), table.sample_of(at)) == (
                name,
                plan.content.size,
                at,
                number,
            )
            assert table.record_of(at) == (record.start, record.end)
            data = content(table, shard, at)
            assert len(data) == plan.content.size
            files[plan.suffix] = data
            at += 1
        expected = SAMPLES[number]
        back = layout.read_back(files)
        if isinstance(expected, dict) and not any(isinstance(value, np.ndarray | list) for value in expected.values()):
            assert back == expected
    assert at == table.files
    assert table.total_size() == sum(size for _, size, _ in listed)


def test_a_listing_goes_on_from_any_file() -> None:
    shard = shard_of([{"a": b"x", "n": at} for at in range(1500)])
    table = table_building.build(shard, "png")
    whole = list(table.listing(0))
    assert len(whole) == 3000
    for start in (1, 511, 512, 513, 1024, 2999, 3000, 5000):
        assert list(table.listing(start)) == whole[start:]


def test_a_shard_with_no_samples_has_an_empty_table() -> None:
    table = table_building.build(shard_of([]), "png")
    assert (table.samples, table.files, table.total_size(), list(table.listing(0))) == (0, 0, 0, [])
    assert table.find(b"000000.json") is None


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b".",
        b"000000",
        b"000000.",
        b"000000.jpg",
        b"00000.json",
        b"0000000.json",
        b"000007.json",
        b"-00001.json",
        b"+00000.json",
        b"00000 .json",
        ("\u0660" * 6 + ".json").encode(),
        b"000000.JSON",
        b"\xff.json",
        b"000000.json\0",
    ],
)
def test_names_that_are_not_there_are_not_found(name: bytes) -> None:
    assert table_building.build(shard_of(SAMPLES), "png").find(name) is None


def test_samples_with_keys_of_their_own_are_named_by_them() -> None:
    keys = ["n01/440.x", "b", "", "é", "x" * 300, "000001"]
    shard = shard_of([{"__key__": key, "image": b"\xff\xd8\xff\xe0"} for key in keys])
    table = table_building.build(shard, "png")
    stems = [table.stem(at).decode() for at in range(table.samples)]
    assert stems[:4] == ["n01%2F440%2Ex", "b", "%", "é"]
    assert stems[5] == "000001"
    assert all(table.find(f"{stem}.image.jpg".encode()) == 2 * at for at, stem in enumerate(stems))
    assert table.find(b"c.image.jpg") is None
    assert table.find(b"zzz.image.jpg") is None


@pytest.mark.parametrize(
    "samples",
    [
        [{"__key__": "a"}, {"__key__": "a"}],
        [{"__key__": "a"}, {"__key__": "A"}],
        [{"__key__": "a"}, {"other": 1}],
        [{"other": 1}, {"__key__": "a"}],
        [{"__key__": 5}],
        [{"__key__": b"a"}],
        [["__key__"]],
    ],
    ids=repr,
)
def test_keys_that_do_not_tell_samples_apart_are_fields_like_others(samples: list[Any]) -> None:
    table = table_building.build(shard_of(samples), "png")
    assert [table.stem(at) for at in range(table.samples)] == [b"%06d" % at for at in range(len(samples))]


def test_damage_anywhere_is_damage_of_the_whole() -> None:
    raw = msgpack.packb({"a": 1}) * 3 + b"\xc1"
    with pytest.raises(DamagedShardError) as caught:
        table_building.build(SquirrelShard(raw, len(raw), "msgpack"), "png")
    assert caught.value.offset == len(raw) - 1


class _Through:
    """A shard whose samples are numbered through a split, as Streaming's are."""

    raw: Buffer = memoryview(b"abc")
    size = 3
    first_sample = 1_999_999
    samples_through = 2_000_001

    def records(self) -> Iterator[Record]:
        yield from (Record(at, at + 1, self.tree(at, at + 1)) for at in range(2))

    def tree(self, start: int, end: int) -> Any:
        return {"x": Blob(start, 1, "bin", f"cell {start}"), "n": start}

    def sample(self, tree: Any) -> Any:
        return tree


def test_samples_numbered_through_a_split_have_its_width() -> None:
    table = table_building.build(_Through(), "png")
    assert [name for name, _, _ in table.listing(0)] == [
        b"1999999.x.bin",
        b"1999999.json",
        b"2000000.x.bin",
        b"2000000.json",
    ]
    assert table.find(b"2000000.json") == 3
    assert table.find(b"2000001.json") is None
    assert [(note.file, note.reason) for note in table.notes] == [
        ("1999999.x.bin", "cell 0"),
        ("2000000.x.bin", "cell 1"),
    ]


def test_a_shard_that_needs_more_digits_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SAMPLE_DIGITS", 1)
    table = table_building.build(shard_of([{"n": at} for at in range(11)]), "png")
    assert [table.stem(at) for at in (0, 10)] == [b"00", b"10"]


def test_a_file_rendered_from_another_shard_is_damage_and_no_other_content() -> None:
    shard, other = shard_of([{"n": 1}, {"n": 2}]), shard_of([{"n": 1234567}])
    table = table_building.build(shard, "png")
    with pytest.raises(DamagedShardError):
        table.render(0, other, "png")


def test_only_small_files_of_small_samples_are_rendered_at_once() -> None:
    shard = shard_of([{"n": 1}, {"t": "x" * (config.INLINE_RENDER + 1)}, {"n": 1, "b": bytes(config.INLINE_RECORD)}])
    table = table_building.build(shard, "png")
    small, long, beside = (table.find(b"%06d.json" % at) for at in range(3))
    assert small is not None
    assert long is not None
    assert beside is not None
    assert [table.renders_fast(file) for file in (small, long, beside)] == [True, False, False]


@pytest.mark.parametrize("samples", [[], SAMPLES, [{"__key__": f"k{at}", "b": b"x" * at} for at in range(50)]], ids=len)
def test_a_packed_table_is_the_same_when_unpacked(samples: list[Any]) -> None:
    table = table_building.build(shard_of(samples), "png")
    again = packing.unpack(packing.pack(table))
    assert list(again.listing(0)) == list(table.listing(0))
    assert [again.record_of(file) for file in range(again.files)] == [table.record_of(at) for at in range(table.files)]
    assert [again.slice_of(file) for file in range(again.files)] == [table.slice_of(at) for at in range(table.files)]
    assert (again.notes, again.samples, again.raw_bytes, again.nbytes) == (
        table.notes,
        table.samples,
        table.raw_bytes,
        table.nbytes,
    )


def test_a_file_takes_few_bytes_of_table() -> None:
    samples = [{"image": b"\xff\xd8\xff\xe0" + bytes(at % 7), "label": at} for at in range(2000)]
    table = table_building.build(shard_of(samples), "png")
    assert table.files == 4000
    assert table.nbytes / table.files < 45
