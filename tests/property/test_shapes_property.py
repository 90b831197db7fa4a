"""The quick ways through a shard against the full one: the same tables, the same bytes, the same errors."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardfs import config, light_json, msgpack_spans, shapes, table_building, values
from shardfs.drivers import squirrel_records
from shardfs.drivers.base import Shard
from shardfs.drivers.mds import MdsShard, columns
from shardfs.drivers.squirrel_records import msgpack_record
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.drivers.tar_headers import header, padding
from shardfs.drivers.webdataset_shards import TarShard
from shardfs.errors import DamagedShardError
from shardfs.msgpack_spans import Walker
from shardfs.sealing import is_temporary
from tests.property.test_round_trip_property import arrays, hostile_names, samples

RELAXED = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
ways = st.sampled_from(["png", "npy", "png+text", "npy+text"])


class NoShapes:
    """What has no shape for anything."""

    def files(self, *_: Any) -> None:
        return None

    def json(self, *_: Any) -> None:
        return None


def full_way(patch: pytest.MonkeyPatch) -> None:
    """Turns all quick ways off."""
    patch.setattr(shapes, "shapes_for", lambda _: NoShapes())
    patch.setattr(Walker, "_fields", lambda *_: None)
    patch.setattr(Walker, "_inner", lambda walker, _, at: walker._value(at, 1))
    patch.setattr(msgpack_spans, "_is_flat", lambda *_: False)
    patch.setattr(squirrel_records, "_plain_line", lambda _: None)
    patch.setattr(light_json, "_encode", light_json._encoder.encode)
    patch.setattr(config, "LONG_TEXT", 1 << 60)
    patch.setattr(
        values,
        "extension_at",
        lambda raw, at, length: values.extension_of(bytes(raw[at : at + min(length, 300)]), length),
    )


def outcome(make: Callable[[], Shard], how: str) -> Any:
    """All that a mount can learn of a shard."""
    try:
        shard = make()
        table = table_building.build(shard, how)
    except DamagedShardError as error:
        return type(error), error.reason, error.offset
    contents = []
    for file in range(table.files):
        if table.slice_of(file) is None:
            contents.append((table.render(file, shard, how), table.render_now(file, shard, how)))
    names = [name for name, _, _ in table.listing(0)]
    raw_columns = {name: column.tobytes() for name, column in table.columns.items()}
    return names, raw_columns, table.suffixes.data, table.prefixes.data, table.notes, contents


def assert_same(make: Callable[[], Shard], how: str) -> Any:
    quick = outcome(make, how)
    with pytest.MonkeyPatch.context() as patch:
        full_way(patch)
        assert outcome(make, how) == quick
    return quick


def of_msgpack(raw: bytes) -> Callable[[], Shard]:
    return lambda: SquirrelShard(raw, len(raw), "msgpack")


# --- samples of one shape, nearly ---------------------------------------------------------------------------------

extensions = st.sampled_from(["bin", "jpg", "JPG", "npy", "png", "txt", "pdf", "json", "Bin", "npz", "bin.bin"])
field_names = extensions | st.text(st.sampled_from("abAB.~é"), max_size=3) | hostile_names | st.text(max_size=40)
long_texts = st.sampled_from(["x", "\n", "abcdef gh\n", 'a"b\\c\n\r\t\b\f', "é日\x7f", "\x1fabc"]).map(
    lambda part: part * 2100
)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=60) | st.sampled_from(["", '"', "\\"]) | long_texts
heads = st.sampled_from(
    [
        *(b"", b"\xff", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xfb\x90\0", b"\0\0\0\x20ftypavif", b"RIFF0000WAVE"),
        *(b"PK\3\4" + bytes(30), b"\x89PNG\r\n\x1a\n", b"BM\x1a\0\0\0" + bytes(20), b"f" * 9, bytes(257) + b"ustar"),
    ]
)
blobs = st.builds(lambda head, tail: head + tail, heads, st.binary(max_size=30) | st.just(bytes(70_000)))
kinds: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**64 - 1) | st.integers(-40, 140),
    "float": st.floats(),
    "text": texts,
    "bytes": blobs,
    "bool": st.booleans(),
    "none": st.none(),
    "array": arrays().filter(lambda array: array.dtype.itemsize > 0),
    "one array": st.builds(lambda byte: np.full((2, 3, 3), byte, np.uint8), st.integers(0, 255)),
    "numbers": st.lists(st.integers(0, 9) | st.floats(), max_size=4),
    "inside": st.dictionaries(field_names, st.integers() | blobs, max_size=2),
    "scalar": st.sampled_from([np.float32(1.5), np.float64("nan"), np.int8(-3), np.bool_(True), 2 + 3j]),
    "extension": st.sampled_from([msgpack.Timestamp(5, 6), msgpack.ExtType(5, b"x")]),
}


@st.composite
def alike(draw: st.DrawFn, names: st.SearchStrategy[Any] = field_names) -> list[Any]:
    """Samples whose fields have the same names and kinds, with one other among them now and then."""
    fields = draw(st.dictionaries(names, st.sampled_from(sorted(kinds)), max_size=7))
    if draw(st.integers(0, 4)) == 0:
        fields = {"__key__": "text", **fields}
    made: list[Any] = [
        {name: draw(kinds[kind]) for name, kind in fields.items()} for _ in range(draw(st.integers(1, 5)))
    ]
    if draw(st.integers(0, 4)) == 0:
        made.insert(draw(st.integers(0, len(made))), draw(samples))
    return made


def packed(written: list[Any]) -> bytes:
    """As msgpack, without what cannot be written."""
    records = []
    for sample in written:
        try:
            records.append(msgpack_record(sample, 0))
        except ValueError:
            continue
    return b"".join(records)


@settings(RELAXED, max_examples=300)
@given(alike(), ways)
@example([{"a": b"", "A": b"", "a.bin": 1}] * 2, "png")
@example([{"a.bin": b"", "a": b""}, {"$x": 1}, {"$x": 1, "b": b""}, {"$fields": 1}], "png")
@example([{"x" * 250: b"", "n": 1}, {"x" * 240: b"\0" * 9, "n": 1}, {"x" * 236: b"PAR1", "n": 1}], "npy")
@example([{"t": "a", "n": float("nan")}, {"t": "a", "n": 1.0}], "png+text")
@example([{"__key__": "a" * 200, "x" * 100: b"", "n": 1}, {"__key__": "b", "x" * 100: b"", "n": 1}], "png")
@example([{b"a": 1, "b": 2}, {1: 2}, {}, b"", 5], "png")
@example([{"jpg": b"\xff\xd8\xff", "JPG": b"\xff\xd8\xff", "bin": b""}, {"jpg": b"", "bin": b"\xff\xd8\xff"}], "png")
@example([{"npy": np.zeros(3), "txt": "a", "json": 1}, {"npy": b"", "png": np.zeros((2, 2, 3), "u1")}], "png+text")
def test_a_table_and_its_files_do_not_depend_on_the_way(written: list[Any], how: str) -> None:
    assert_same(of_msgpack(packed(written)), how)


@RELAXED
@given(alike(), ways, st.data())
def test_damage_is_the_same_damage_at_the_same_place(written: list[Any], how: str, data: st.DataObject) -> None:
    raw = bytearray(packed(written))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        kind = data.draw(st.sampled_from(["cut", "flip", "insert", "twice"]))
        if kind == "cut":
            del raw[at:]
        elif kind == "flip" and at < len(raw):
            raw[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "insert":
            raw[at:at] = data.draw(st.binary(max_size=4))
        elif kind == "twice":
            raw[at:at] = raw[max(0, at - 6) : at]
    assert_same(of_msgpack(bytes(raw)), how)


@RELAXED
@given(alike(), st.integers(0, 120))
def test_too_many_values_are_too_many_at_the_same_place(written: list[Any], limit: int) -> None:
    raw = packed(written)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "TOKEN_FLOOR", limit)
        patch.setattr(config, "TOKENS_PER_STORED_BYTE", 0)
        assert_same(of_msgpack(raw), "png")


@RELAXED
@given(alike(), st.integers(0, 400))
def test_a_walker_reads_and_counts_the_same(written: list[Any], limit: int) -> None:
    def walked(raw: bytes) -> list[Any]:
        walker, at, seen = Walker(memoryview(raw), limit), 0, []
        try:
            while at < len(raw):
                tree, at = walker.read(at)
                seen.append((repr(tree), at, walker.left))
        except DamagedShardError as error:
            seen.append((type(error), error.reason, error.offset))
        return seen

    raw = packed(written)
    quick = walked(raw)
    with pytest.MonkeyPatch.context() as patch:
        full_way(patch)
        assert walked(raw) == quick


light_kinds = ("int", "float", "text", "bool", "none")
light = st.dictionaries(field_names, st.sampled_from(light_kinds), max_size=20).flatmap(
    lambda fields: st.lists(st.fixed_dictionaries({name: kinds[kind] for name, kind in fields.items()}), max_size=30)
)


@RELAXED
@given(light, alike(), light, st.sampled_from([1, 20, 200, 1 << 16]), st.integers(0, 40), st.binary(max_size=3), ways)
def test_light_samples_in_a_row_do_not_depend_on_the_way(
    before: list[Any], between: list[Any], after: list[Any], piece: int, run: int, put: bytes, how: str
) -> None:
    raw = packed([*before, *between, *after]) + put
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "LIGHT_PIECE", piece)
        patch.setattr(config, "LIGHT_RUN", run)
        assert_same(of_msgpack(raw), how)


def test_no_raw_byte_counts_as_more_than_the_limit_of_light_samples_says() -> None:
    costly = [
        b"\xc4\0",
        b"\x05",
        b"\x80",
        b"\xc7\0\x05",
        b"\xd4\x05a",
        b"\x81\xc4\0\xc4\0",
        b"\x92\xc4\0\xc4\0",
        b"\xa0",
    ]
    for raw in costly:
        walker = Walker(memoryview(raw), 1000)
        walker.read(0)
        assert 1000 - walker.left <= config.TOKENS_PER_RAW_BYTE * len(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x82\xa1a\x01\xa1a\x02",  # a field that stands twice
        b"\x82\xa1a\x01\xa1a\x91\xc1",
        b"\x81\xa1a\xa5abc",  # cut off in a text, bytes, a number, a name
        b"\x81\xa1a\xc4\x05abc",
        b"\x81\xa1a\xcb\0\0",
        b"\x81\xa5a",
        b"\x81\xa1\xff\x01",  # no UTF-8
        b"\x81\xa1a\xa1\xff",
        b"\x81\xa1a\xc1",
        b"\x8f\xa1a\x01",
    ],
    ids=repr,
)
def test_a_small_record_that_is_damaged_is_the_same_damage(raw: bytes) -> None:
    whole = b"\x81\xa1a\x01"
    assert assert_same(of_msgpack(whole + raw), "png")[0] is DamagedShardError


@pytest.mark.parametrize("own", ["", "k" * 60])
def test_names_about_as_long_as_can_be_do_not_depend_on_the_way(own: str) -> None:
    for length in (*range(180, 256), 300):
        sample: dict[str, Any] = {"x" * length: b"PAR1", "n": 1}
        written = [{"__key__": own, **sample}] if own else [sample]
        assert_same(of_msgpack(packed(written)), "png")


def test_the_head_of_an_array_is_not_taken_for_another_field_or_past_the_end() -> None:
    one = {"x": np.arange(6, dtype="<f4").reshape(2, 3), "n": 1}
    other = {"x": np.arange(6, dtype="<i4").reshape(3, 2), "y": np.arange(6, dtype="<f4").reshape(2, 3)}
    raw = packed([one, one, other, one, other])
    names = assert_same(of_msgpack(raw), "png")[0]
    assert len(names) == 2 * 5
    for cut in range(len(raw) - 60, len(raw)):
        assert_same(of_msgpack(raw[:cut]), "png")


# --- JSON lines and MDS -------------------------------------------------------------------------------------------

json_fields = st.dictionaries(
    field_names | st.sampled_from(["data", "type", "shape"]),
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.lists(st.integers(0, 9), max_size=3),
    max_size=5,
)
json_texts = st.recursive(json_fields, lambda inner: inner | st.lists(inner, max_size=2), max_leaves=3)


@RELAXED
@given(st.lists(json_texts, max_size=4), ways, st.binary(max_size=3), st.integers(0, 1 << 16))
@example([{"data": [1], "type": "<i4", "shape": [1]}], "png", b"", 0)
@example([{"a": 1}, {"a": "\udc80"}], "png", b"\xff", 3)
def test_json_lines_do_not_depend_on_the_way(written: list[Any], how: str, put: bytes, place: int) -> None:
    raw = bytearray(b"".join(json.dumps(sample).encode() + b"\n" for sample in written))
    at = place % (len(raw) + 1)
    raw[at:at] = put
    assert_same(lambda: SquirrelShard(bytes(raw), len(raw), "jsonl"), how)


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": 1} x',
        b' {"a": 1}\t',
        b"[" * 65 + b"]" * 65,
        b'{"a": "' + b"[" * 70 + b'"}',
        b"{",
        b"5",
    ],
    ids=repr,
)
def test_odd_lines_do_not_depend_on_the_way(line: bytes) -> None:
    raw = b'{"a": 1}\n' + line + b"\n"
    assert_same(lambda: SquirrelShard(raw, len(raw), "jsonl"), "png")


cells = {
    "int": st.binary(min_size=8, max_size=8) | st.binary(max_size=9),
    "str": texts.map(str.encode) | st.binary(max_size=9),
    "bytes": blobs,
    "jpeg": blobs,
    "float32": st.binary(min_size=4, max_size=4),
    "ndarray:uint8:2,2,3": st.binary(min_size=12, max_size=12) | st.binary(max_size=3),
    "json": json_fields.map(lambda fields: json.dumps(fields).encode()),
}


@RELAXED
@given(st.data(), ways)
def test_mds_columns_do_not_depend_on_the_way(data: st.DataObject, how: str) -> None:
    fields = data.draw(st.dictionaries(field_names, st.sampled_from(sorted(cells)), max_size=5))
    plan = columns(tuple(fields), tuple(fields.values()), (None,) * len(fields))
    records = []
    for _ in range(data.draw(st.integers(0, 3))):
        row = [data.draw(cells[encoding]) for encoding in fields.values()]
        records.append(struct.pack(f"<{len(row)}I", *map(len, row)) + b"".join(row))
    table = np.cumsum([4 + 4 * (len(records) + 1), *map(len, records)]).astype("<u4").tobytes()
    raw = struct.pack("<I", len(records)) + table + b"".join(records)
    assert_same(lambda: MdsShard(raw, plan, len(records), len(raw)), how)


tar_names = st.text("ab.~%/é$#", min_size=1, max_size=12) | st.sampled_from(["a.tmp", "a.partial", "a.b.tmp", "a.#"])


@RELAXED
@given(st.lists(st.tuples(tar_names | st.just("a." + "b" * 300), st.binary(max_size=5)), max_size=6), ways)
def test_tars_do_not_depend_on_the_way(written: list[tuple[str, bytes]], how: str) -> None:
    raw = b"".join(
        header(name.strip("/") or "x", len(content)) + content + padding(len(content)) for name, content in written
    )
    names = assert_same(lambda: TarShard(raw), how)[0]
    assert len(set(names)) == len(names)
    assert not any(is_temporary(name) or b"/" in name or len(name) > config.NAME_MAX for name in names)


# --- parts --------------------------------------------------------------------------------------------------------

any_text = st.text(st.characters(codec=None), max_size=30)


@RELAXED
@given(
    st.text(st.sampled_from('a"\\\n\t\0\x1fé日\ud800'), max_size=80), st.text(st.sampled_from("aé日 "), max_size=5000)
)
@example("\n", "x" * 5000)
@example("\b\f", "x" * 5000)
@example("\ud800", "x" * 5000)
def test_a_long_text_is_the_json_of_json_and_has_its_size(odd: str, even: str) -> None:
    text = even + odd + even
    expected = json.dumps(text, ensure_ascii=False)
    assert light_json._long_text(text) == expected
    size = len(expected.encode("utf-8", "backslashreplace"))
    assert light_json._long_size(text) == light_json.text_size(text) == size
    assert light_json.json_bytes({text: text, "n": [text]}) == (
        json.dumps({text: text, "n": [text]}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    )


@RELAXED
@given(heads, st.binary(max_size=300), st.integers(0, 5))
def test_an_extension_is_the_same_wherever_the_bytes_stand(head: bytes, tail: bytes, before: int) -> None:
    data = head + tail
    raw = memoryview(b"\xff" * before + data + b"ftyp" * 80)
    assert values.extension_at(raw, before, len(data)) == values.extension_of(data[:300], len(data))


def test_shapes_are_forgotten_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SHAPES", 3)
    known = shapes.Shapes("png")
    for number in range(20):
        assert known.files({f"f{number}": 1}, memoryview(b""), 6) == [
            ("json", b"", True, 0, len(json.dumps({f"f{number}": 1})) + 1)
        ]
        assert len(known._known) <= 3
