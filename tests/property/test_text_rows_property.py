"""Rows of text come back as they were written, or are refused; and a row that is read has no other cells than its
text."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shardfs.drivers import text_rows, text_writing
from shardfs.errors import BadSettingError, DamagedShardError
from shardfs.values import Blob

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "str": st.text(st.characters(exclude_categories=()), max_size=8)
    | st.sampled_from(["a|", "||", "|", "\n", "\r", ",", "\t"]),
    "int": st.integers(-(10**30), 10**30),
    "float": st.floats(),
}
NAMES = st.text('ab|,\t é"{}', max_size=3)
COLUMNS = st.dictionaries(NAMES, st.sampled_from(sorted(VALUES)), max_size=4)
KINDS = st.sampled_from([("json", ""), ("csv", ","), ("tsv", "\t"), ("xsv", "||"), ("xsv", "é"), ("xsv", " ; ")])
NEWLINES = st.sampled_from(["\n", "\r\n", "<br>", "|"])
ROWS = st.binary(max_size=20) | st.text("1.5ax|,\té\n<br>\r", max_size=20).map(str.encode)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    return type(one) is type(other) and one == other and repr(one) == repr(other)


@given(KINDS, NEWLINES, COLUMNS, st.data())
def test_rows_come_back_or_are_refused(kind: tuple[str, str], newline: str, columns: dict[str, str], data: Any) -> None:
    if kind[0] == "json":
        newline = "\n"  # the writer has no other
    made = text_rows.columns(kind[0], tuple(columns), tuple(columns.values()), kind[1], newline)
    sample = {name: data.draw(VALUES[encoding]) for name, encoding in columns.items()}
    try:
        row = text_writing.row(made, sample, "0")
    except BadSettingError:
        assert kind[0] != "json", "JSON holds all of these"
        return
    tree = made.split(memoryview(b"before" + row + b"behind"), 6, 6 + len(row))
    assert set(tree) == set(sample)
    assert all(same(tree[name], sample[name]) for name in sample)
    if kind[0] == "json":
        assert json.loads(row) == tree or any(isinstance(value, float) and math.isnan(value) for value in tree.values())


@given(KINDS, NEWLINES, COLUMNS, st.binary(max_size=20) | st.text("1.5ax|,\té\n<br>\r", max_size=20).map(str.encode))
def test_any_bytes_are_a_row_or_damage(
    kind: tuple[str, str], newline: str, columns: dict[str, str], row: bytes
) -> None:
    made = text_rows.columns(kind[0], tuple(columns), tuple(columns.values()), kind[1], newline)
    raw = memoryview(b"xx" + row)
    try:
        tree = made.split(raw, 2, len(raw))
    except DamagedShardError:
        return
    if kind[0] == "json":
        assert repr(tree) == repr(json.loads(row))
        return
    cells = row.decode()[: -len(newline)].split(kind[1])
    for (name, value), cell in zip(tree.items(), cells, strict=bool(columns)):
        if isinstance(value, Blob):
            assert columns[name] != "str"
            assert bytes(raw[value.offset : value.offset + value.length]) == cell.encode()
        elif columns[name] == "str":
            assert value == cell
