"""Directories inside a key: against a dict of dicts as the model, and what hostile tables are refused for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardfs import packing
from shardfs.drivers.linked import position
from shardfs.index import RENDER, SLICE, FolderTable, ShardTable, make_table
from shardfs.strings import Strings

NAME = st.text("ab.~%é", min_size=1, max_size=3).filter(lambda name: name not in (".", ".."))
Model = dict[str, Any]


def strings(names: list[bytes]) -> Strings:
    return Strings(b"".join(names), np.cumsum([0, *map(len, names)]).astype(np.uint64))


def table_of(samples: list[list[tuple[bytes, int | None]]], linked: bool = True) -> ShardTable:
    """Each sample's files: suffix, and the object that it is of (None: a rendered one)."""
    files = [file for sample in samples for file in sample]
    names = sorted({suffix for suffix, _ in files})
    columns = {
        "file_start": np.cumsum([0, *map(len, samples)]).astype(np.uint32),
        "record_start": np.arange(len(samples), dtype=np.uint64) * 10,
        "record_end": np.arange(1, len(samples) + 1, dtype=np.uint64) * 10,
        "suffix": np.array([names.index(suffix) for suffix, _ in files], np.uint32),
        "prefix": np.zeros(len(files), np.uint32),
        "kind": np.array([RENDER if number is None else SLICE for _, number in files], np.uint8),
        "offset": np.array([0 if number is None else position(number) for _, number in files], np.uint64),
        "length": np.full(len(files), 3, np.uint64),
    }
    return make_table(
        linked=linked,
        raw_bytes=position(len(files) + 1),
        stems=strings([b"r%d" % at for at in range(len(samples))]),
        first_sample=0,
        digits=0,
        columns=columns,
        suffixes=strings(names),
        prefixes=strings([b""]),
        notes=(),
    )


def paths_of(model: Model, above: str = "") -> list[str]:
    found = []
    for name in sorted(model):
        inner = model[name]
        if inner is None:
            found.append(above + name)
        else:
            found += paths_of(inner, f"{above}{name}/") or [f"{above}{name}/"]
    return found


def tree_of(table: FolderTable, number: int | None = None) -> Model:
    """What the table says is in a directory, each entry found by its name, too."""
    made: Model = {}
    start = 0
    listed = list(table.children(number, 0))
    for name, child, after in listed:
        assert after > start
        start = after
        assert table.find_in(number, name) == child
        made[name.decode()] = tree_of(table, child) if table.is_folder(child) else None
    for cut in range(len(listed)):  # a listing goes on from any offset that it gave
        assert list(table.children(number, listed[cut][2])) == listed[cut + 1 :]
    return made


INNER: st.SearchStrategy[Any] = st.recursive(
    st.none(), lambda inner: st.dictionaries(NAME, inner, max_size=4), max_leaves=12
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(["d", "e.f", "g"]), INNER, max_size=3), min_size=1, max_size=3))
def test_any_tree_comes_back_as_it_is(samples: list[Model]) -> None:
    count = iter(range(10_000))
    made, expected = [], {}
    for at, fields in enumerate(samples):
        files: list[tuple[bytes, int | None]] = []
        for field, inner in fields.items():
            below = {"x": None, **inner} if isinstance(inner, dict) else {"x": None}
            expected[f"r{at}.{field}"] = below
            files += [(f"{field}/{path}".encode(), next(count)) for path in paths_of(below)]
        made.append([*files, (b"json", None)])
        expected[f"r{at}.json"] = None
    table = table_of(made)
    for one in (table, packing.unpack(packing.pack(table))):
        assert isinstance(one, FolderTable)
        assert tree_of(one) == expected
        assert one.find_in(None, b"r0.d/x") is None
        assert one.find_in(None, b"r9.d") is None


def test_flat_tables_are_of_the_plain_kind() -> None:
    table = table_of([[(b"x.bin", 0), (b"json", None)]], linked=False)
    assert type(table) is ShardTable
    assert type(packing.unpack(packing.pack(table))) is ShardTable
    assert table.numbers == 2


def test_files_of_one_object_have_one_number() -> None:
    table = table_of([[(b"x.bin", 5), (b"y.bin", 6)], [(b"x.bin", 6), (b"y.bin", 5), (b"z.bin", 6)]])
    assert [table.find(name) for name in (b"r0.x.bin", b"r0.y.bin", b"r1.x.bin", b"r1.y.bin", b"r1.z.bin")] == [
        0,
        1,
        1,
        0,
        1,
    ]


def test_a_path_leads_through_directories_only() -> None:
    table = table_of([[(b"d/a/b", 1), (b"d/c", 2), (b"json", None)]])
    assert isinstance(table, FolderTable)
    assert table.walk(b"r0.d/a/b") == 0
    assert table.walk(b"r0.json") == 2
    assert table.is_folder(table.walk(b"r0.d/a") or 0)
    for path in (b"r0.json/x", b"r0.d/c/x", b"r0.d/", b"", b"r0.d/a/c"):
        assert table.walk(path) is None


@pytest.mark.parametrize(
    "names",
    [
        [b"d/../x"],
        [b"d/./x"],
        [b"d//x"],
        [b"/x"],
        [b"d/.."],
        [b"d/x\0y"],
        [b"d/a/1", b"d/b", b"d/a/2"],
        [b"d/a", b"x.bin", b"d/b"],
    ],
)
def test_tables_that_no_walk_makes_are_refused(names: list[bytes]) -> None:
    """A published index may be anybody's."""
    with pytest.raises(ValueError, match=r"directory|nowhere"):
        table_of([[(name, at) for at, name in enumerate(names)]])
