"""All views without a kernel."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from shardfs import inodes, table_building
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.index_db import IndexDb
from shardfs.light_where import Where
from shardfs.model import Entry, Inode, Key, Version
from shardfs.opening import open_store
from shardfs.tree import KeyDirectory
from shardfs.views import kept
from shardfs.views.columns import KeyFiles, Rests, all_files
from tests.conformance.trees import InProcessTree
from tests.conformance.view_suite import JPEG, VIEWS, ViewSuite, check_view, plain_files, write_mixed


def test_views_show_what_a_filter_lets_through(tmp_path: Path) -> None:
    write_mixed(tmp_path)
    with InProcessTree(tmp_path, where=Where("label = 'cat' or label = 7")) as tree:
        plain = plain_files(tree)
        for view in VIEWS:
            check_view(tree, view, plain)
        assert tree.names(".shardfs/views/by:label") == ["7", "cat"]
        assert len(tree.names(".shardfs/views/flat")) == len(plain) == 6


def test_columns_are_kept_for_the_next_mount(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", driver="squirrel")
    for key in ("a", "b"):
        store.set([{"__key__": f"{key}-{at}", "image": JPEG, "label": at % 2} for at in range(5)], key)

    def looked_at(*views: str) -> tuple[dict[str, bytes], int]:
        """Files of these views, and the shards whose light fields were asked for."""
        database = IndexDb(tmp_path / "cache" / "index.sqlite", "x")
        with contextlib.closing(database), InProcessTree(tmp_path / "store", database=database) as tree:
            found = {}
            for view in views:
                shown = tree.names(f".shardfs/views/{view}")
                for path in [f"{one}/{name}" for one in shown for name in tree.names(f".shardfs/views/{view}/{one}")]:
                    found[f"{view}/{path}"] = tree.read(f".shardfs/views/{view}/{path}")
            return found, tree.vfs.light.made + tree.vfs.light.indexed

    first, asked = looked_at("by:label")
    assert (len(first), asked) == (10, 2)
    assert looked_at("by:label") == (first, 0)
    assert looked_at("by:label", "by:__key__")[1] == 2
    store.set([{"__key__": "new", "image": JPEG, "label": 7}], "b")
    second, asked = looked_at("by:label")
    assert (set(second) - set(first), asked) == ({"by:label/7/b-new.jpg"}, 1)
    assert looked_at("by:label") == (second, 0)
    kept = list((tmp_path / "cache").glob("index.view-*"))
    assert len(kept) == 2
    for damage in (lambda data: data[:50], lambda data: data[:-1] + b"x", lambda data: b""):
        for path in kept:
            path.write_bytes(damage(path.read_bytes()))
        assert looked_at("by:label") == (second, 2)


@given(st.binary(max_size=200), st.integers(0, 10_000), st.booleans())
def test_what_is_kept_may_be_anything(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, cut: bool
) -> None:
    entry = Entry(Key("k"), Version("v"), 0, 5)
    key = KeyDirectory(Inode(10), inodes.ROOT, b"k", entry, 3)
    raw = b"".join(msgpack.packb({"image": JPEG, "n": number}) for number in range(4))
    table = table_building.build(SquirrelShard(raw, len(raw), "msgpack"), "png")
    files = KeyFiles.of_table(key, table, b"k-", all_files(table), Rests())
    path = tmp_path_factory.mktemp("kept") / "kept"
    kept.save(path, [(key, files, np.zeros(len(files), np.int32))], [()])
    packed = bytearray(zstandard.decompress(path.read_bytes()[4:]))
    packed[at % len(packed) : at % len(packed) + len(junk)] = junk
    if cut:
        del packed[at % len(packed) :]
    data = zstandard.compress(bytes(packed))
    path.write_bytes(zlib.crc32(data).to_bytes(4, "big") + data)
    found = kept.load(path, [key], lambda key: b"k-", Rests(), lambda path: 0)
    for one, groups in found.values():
        assert len(one) == len(groups)
        for place in range(len(one)):
            name = one.name(int(one.samples[place]), int(one.rest[place]))
            assert name.startswith(b"k-")
            one.find(b"000001", b"json")


class TestViewsInProcess(ViewSuite):
    @contextlib.contextmanager
    def serve(
        self, store: Path | str, *, view: str = "", heavy: str | None = None, **options: Any
    ) -> Iterator[InProcessTree]:
        with InProcessTree(store, **options) as tree:
            tree.vfs.views.show(view, heavy)
            yield tree
