"""Directories of files back into shards: whatever was laid out comes back, and what did not change is not touched."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shardfs import layout, names, sealing, table_building, values
from shardfs.drivers.base import Value, Verbatim
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.drivers.squirrel_writing import packed
from shardfs.errors import BadSampleError, BadSettingError
from shardfs.reading_back import same
from shardfs.sealing import Base, Changed, Stored, is_temporary, seal
from tests.property.test_round_trip_property import leaves, msgpack_values, samples, texts

RELAXED = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def files_of(sample: Any, stem: str, how: str) -> list[tuple[bytes, sealing.Source]]:
    made: list[tuple[bytes, sealing.Source]] = []
    for plan in layout.lay_out(sample, memoryview(b""), how, len(stem.encode())):
        assert plan.content.render is not None
        data = plan.content.render()
        made.append((f"{stem}.{plan.suffix}".encode(), Changed(lambda data=data: data, len(data))))
    return made


def values_of(made: sealing.Seal) -> list[Any]:
    records = list(made.records())
    assert all(isinstance(record, Value) for record in records)
    return [record.sample for record in records if isinstance(record, Value)]


@settings(RELAXED, max_examples=300)
@given(st.lists(samples, max_size=3), st.sampled_from(["png", "npy", "png+text"]), st.randoms())
def test_samples_come_back_out_of_their_files_in_their_order(
    written: list[Any], how: str, chance: random.Random
) -> None:
    files = [file for at, sample in enumerate(written) for file in files_of(sample, f"{at:06d}", how)]
    assert not any(is_temporary(name) for name, _ in files)
    chance.shuffle(files)
    back = values_of(seal(files))
    assert len(back) == len(written)
    assert all(map(same, back, written))


@RELAXED
@given(st.lists(st.tuples(texts, st.dictionaries(texts, leaves, max_size=3)), max_size=3))
def test_samples_with_names_of_their_own_come_back(written: list[tuple[str, dict[str, Any]]]) -> None:
    expected = {names.escape_sample(key): {**sample, table_building.KEY_FIELD: key} for key, sample in written}
    files = [file for stem, sample in expected.items() for file in files_of(sample, stem, "png")]
    assert not any(is_temporary(name) for name, _ in files)
    made = seal(files)
    assert len(made) == len(expected)
    for record in made.records():
        assert isinstance(record, Value)
        assert same(record.sample, expected[record.name])


def shard_of(written: Sequence[Any], form: str) -> SquirrelShard:
    """Those of the samples that the format can hold, as a shard."""
    pieces: list[bytes] = []
    for sample in written:
        try:
            pieces += [bytes(piece) for piece in packed([Value(sample, "x")], form == "jsonl")]
        except BadSettingError:
            continue
    raw = b"".join(pieces)
    return SquirrelShard(raw, len(raw), form)


def opened(shard: SquirrelShard, how: str) -> tuple[Base, list[tuple[bytes, sealing.Source]]]:
    base = Base(shard, table_building.build(shard, how), how)
    table = base.table
    return base, [(table.name(file), Stored(table.sample_of(file), file)) for file in range(table.files)]


stored_samples = msgpack_values | st.dictionaries(
    texts.filter(str.isprintable),
    msgpack_values | hnp.arrays(hnp.integer_dtypes() | hnp.floating_dtypes(), hnp.array_shapes(min_side=0)),
    max_size=4,
)


@RELAXED
@given(st.lists(stored_samples, max_size=5), st.sampled_from(["msgpack", "jsonl"]), st.sampled_from(["png", "npy"]))
def test_what_nobody_changed_is_the_stored_bytes(written: list[Any], form: str, how: str) -> None:
    shard = shard_of(written, form)
    base, files = opened(shard, how)
    records = list(seal(files, base).records())
    assert all(isinstance(record, Verbatim) for record in records)
    assert b"".join(bytes(piece) for piece in packed(records, form == "jsonl")) == bytes(shard.raw)


@RELAXED
@given(
    st.lists(stored_samples, min_size=1, max_size=4),
    st.sampled_from(["msgpack", "jsonl"]),
    st.integers(0, 1 << 30),
)
def test_one_written_file_touches_one_record(written: list[Any], form: str, chosen: int) -> None:
    shard = shard_of(written, form)
    base, files = opened(shard, "png")
    if not files:
        return
    at = chosen % len(files)
    name, source = files[at]
    assert isinstance(source, Stored)
    content = base.content(source.file)
    # a file written again with what it held changes nothing
    files[at] = (name, Changed(lambda: content, len(content)))
    assert [type(record) for record in seal(files, base).records()] == [Verbatim] * base.table.samples
    # a new field changes its sample, and of that the new field
    files.append((base.table.stem(source.sample) + b".brand-new.txt", Changed(lambda: b"x", 1)))
    old_trees = [old.tree for old in shard.records()]
    if not isinstance(old_trees[source.sample], dict):
        with pytest.raises(BadSampleError, match="lone value"):
            list(seal(files, base).records())
        return
    for position, (record, old) in enumerate(zip(seal(files, base).records(), shard.records(), strict=True)):
        if position != source.sample:
            assert isinstance(record, Verbatim)
            assert bytes(record.data) == bytes(shard.raw[old.start : old.end])
            continue
        assert isinstance(record, Value)
        again = shard_of([record.sample], form)
        (new,) = again.records()
        assert [*old.tree, "brand-new"] == list(new.tree)
        before, after = shard.cells(shard.raw[old.start : old.end]), again.cells(again.raw)
        for field in old.tree:
            if before is not None and after is not None:
                assert bytes(before[field]) == bytes(after[field]), field
            assert same(values.to_python(old.tree[field], shard.raw), values.to_python(new.tree[field], again.raw))


@RELAXED
@given(hnp.arrays(hnp.integer_dtypes() | hnp.floating_dtypes(), ()).map(lambda array: array[()]))
def test_a_number_keeps_its_type_when_its_neighbour_is_edited(number: np.generic) -> None:
    base, _ = opened(shard_of([{"n": number, "label": np.int16(3)}], "msgpack"), "png")
    content = base.content(0).replace(b'"label": 3', b'"label": 4')
    (record,) = seal([(b"000000.json", Changed(lambda: content, len(content)))], base).records()
    assert isinstance(record, Value)
    (new,) = shard_of([record.sample], "msgpack").records()
    assert new.tree["label"] == 4
    assert new.tree["label"].dtype == np.int16
    if type(number) is np.float64:  # which is a Python float, and is written as one
        assert same(new.tree["n"], float(number))
    else:
        assert new.tree["n"].dtype == number.dtype
        assert new.tree["n"].tobytes() == number.tobytes()
