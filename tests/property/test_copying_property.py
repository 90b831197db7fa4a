"""The short ways of writing: a copied sample is what its files would be read back as, and what is counted at most is
never less than what is counted."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardfs import table_building
from shardfs.copying import copied
from shardfs.drivers.base import Value
from shardfs.drivers.squirrel_shards import SquirrelShard, line_cost
from shardfs.drivers.squirrel_writing import encoded
from shardfs.errors import BadSettingError, DamagedShardError
from shardfs.msgpack_spans import Walker
from shardfs.reading_back import same
from shardfs.sealing import Changed, seal
from tests.property.test_round_trip_property import leaves, samples, texts
from tests.property.test_sealing_property import shard_of

RELAXED = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def read_back(shard: SquirrelShard) -> list[Any]:
    """All samples as the seal of a copy of their files has them."""
    table = table_building.build(shard, "npy")
    files = []
    for at in range(table.files):
        run = table.slice_of(at)
        data = table.render(at, shard, "npy") if run is None else run[0] + bytes(shard.raw[run[1] : run[1] + run[2]])
        files.append((table.name(at), Changed(lambda data=data: data, len(data))))  # type: ignore[misc]
    return [record.sample for record in seal(files).records() if isinstance(record, Value)]


@RELAXED
@given(st.lists(samples, max_size=3), st.sampled_from(["msgpack", "jsonl"]))
def test_a_copied_sample_is_what_its_files_are_read_back_as(written: list[Any], form: str) -> None:
    shard = shard_of(written, form)
    try:
        expected = read_back(shard)
    except DamagedShardError:
        return  # what no files can show is not copied by any tool either
    got = [copied(record.tree, shard.raw) for record in shard.records()]
    assert len(got) == len(expected)
    assert all(map(same, got, expected))
    heads = [copied(record.tree, shard.raw, whole=False) for record in shard.records()]
    assert [type(sample) for sample in heads] == [type(sample) for sample in got]


@settings(RELAXED, max_examples=500)
@given(samples | st.dictionaries(texts, leaves, max_size=20))
def test_what_is_counted_at_most_is_never_less_than_what_is_counted(sample: Any) -> None:
    for jsonl in (False, True):
        try:
            ((data, most),) = encoded([Value(sample, "x")], jsonl)
        except BadSettingError:
            continue
        if jsonl:
            assert most == line_cost(len(data))
        else:
            walker = Walker(memoryview(data), 1 << 62)
            _, behind = walker.read(0)
            assert behind == len(data)
            assert (1 << 62) - walker.left <= most
        (record,) = SquirrelShard(bytes(data), 1 << 40, "jsonl" if jsonl else "msgpack").records()
        assert (record.start, record.end) == (0, len(data))
