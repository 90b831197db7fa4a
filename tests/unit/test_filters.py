"""Filters in the tree: what does not match is nowhere, what does is what it was without."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs import table_building
from shardfs.drivers.chosen import ChosenDriver
from shardfs.errors import BadSettingError, MissingKeyError
from shardfs.indexing import open_database
from shardfs.light_where import Where
from shardfs.narrowing import narrowed
from shardfs.opening import open_store
from shardfs.store import Store
from tests.conformance.superduper_stores import url_of
from tests.conformance.trees import InProcessTree

DATA = Path(__file__).parents[1] / "data"

KEYS = ("a", "b/one", "empty")


def make(path: Path, driver: str = "squirrel") -> Store:
    store = open_store(path, driver=driver)
    for at, key in enumerate(KEYS):
        samples: list[Any] = [
            {"n": 10 * at + number, "label": "cat" if number % 3 else "dog", "x": bytes([at, number]) * 40}
            for number in range(12)
        ]
        if key == "empty":
            samples = [{"label": "bird", "x": b"z" * 30}]
        store.set(samples, key)
    return store


def all_files(tree: InProcessTree, path: str = "") -> dict[str, bytes]:
    found = {}
    for name in tree.names(path):
        below = f"{path}/{name}".strip("/")
        if tree.stat(below).is_dir:
            found |= all_files(tree, below)
        else:
            found[below] = tree.read(below)
            assert len(found[below]) == tree.stat(below).size
    return found


def light_of(name: str) -> str:
    """The `.json` of the sample that a file belongs to."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}.json"


@pytest.mark.parametrize("indexed", ["no index", "first mount", "index with light fields"])
@pytest.mark.parametrize("driver", ["squirrel", "streaming"])
def test_what_is_shown_is_what_matches_and_the_same_as_without(tmp_path: Path, driver: str, indexed: str) -> None:
    store = make_streaming(tmp_path / "s") if driver == "streaming" else make(tmp_path / "s", driver)
    with InProcessTree(tmp_path / "s", driver=driver) as tree:
        everything = all_files(tree)
    database = None if indexed == "no index" else open_database(store, "png")
    where = Where("label = 'dog'")
    if indexed == "index with light fields":
        with InProcessTree(tmp_path / "s", driver=driver, database=database, where=where) as tree:
            all_files(tree)
    with InProcessTree(tmp_path / "s", driver=driver, database=database, where=where) as tree:
        wanted = {
            name: data for name, data in everything.items() if json.loads(everything[light_of(name)])["label"] == "dog"
        }
        assert 8 <= len(wanted) < len(everything)
        keys = {os.path.dirname(name) for name in everything}
        if indexed == "index with light fields":
            for key in sorted(keys):
                tree.names(key)
            assert tree.vfs.cache.counts.loads == 0, "the index has all that listings need"
        assert all_files(tree) == wanted
        for name in everything.keys() - wanted.keys():
            with pytest.raises(OSError, match="no entry"):
                tree.stat(name)
        for key in keys:  # the same function for whoever asks for fields
            table = tree.ask(tree.vfs.cache.table, store.entry(key))
            assert [label for (label,) in tree.vfs.light.values(key, ("label",))] == ["dog"] * table.samples
            lines = tree.read(f".shardfs/index/{key}.jsonl").splitlines()
            assert len(lines) == table.samples
    if database is not None:
        with InProcessTree(tmp_path / "s", driver=driver, database=database) as tree:
            assert all_files(tree) == everything, "what the index has is of all samples"
        database.close()


def make_streaming(path: Path) -> Store:
    store = open_store(path, driver="streaming")
    for at in range(3):
        store.set(
            [
                {"n": at * 10 + number, "label": "cat" if number % 3 else "dog", "x": b"x" * number}
                for number in range(9)
            ],
            f"shard.{at:05d}",
        )
    return store


def test_a_key_without_matching_samples_is_an_empty_directory(tmp_path: Path) -> None:
    make(tmp_path / "s")
    with InProcessTree(tmp_path / "s", where=Where("label = 'dog'")) as tree:
        assert tree.names("") == ["a", "b", "empty"]
        assert tree.vfs.cache.counts.loads == 0, "listing the root costs nothing"
        assert tree.names("empty") == []
        assert tree.names("a") == [f"{at:06d}.{suffix}" for at in (0, 3, 6, 9) for suffix in ("x.bin", "json")]


@pytest.mark.parametrize("url", ["superduper", "webdataset", "mltraq"])
def test_a_table_of_some_samples_is_that_of_all_without_the_others(tmp_path: Path, url: str) -> None:
    """Where samples have names of their own, directories, and files that several of them refer to."""
    if url == "webdataset":
        store = open_store(tmp_path, driver="webdataset")
        store.set([{"__key__": f"s.{at}/x", "jpg": b"\xff\xd8\xff", "cls": b"%d" % at} for at in range(6)], "k")
    elif url == "mltraq":
        store = open_store(f"mltraq+sqlite:///{DATA}/mltraq/basic/exp.db")
    else:
        store = open_store(url_of(DATA / "superduper/0.10.0"))
    narrower = 0
    for entry in store.driver.entries():
        shard = store.driver.load(entry, lambda _: None)
        table = table_building.build(shard, "png")
        every = [(name, size, table.sample_of(file), file) for name, size, file in table.listing(0)]
        for at in range(table.samples):
            for shown in (np.arange(table.samples) == at, np.arange(table.samples) != at):
                some = narrowed(table, shown)
                narrower += some.samples < table.samples
                wanted = [(name, size) for name, size, sample, _ in every if shown[sample]]
                assert [(name, size) for name, size, _ in some.listing(0)] == wanted
                for name, _, sample, file in every:
                    found = some.find(name)
                    assert (found is not None) == bool(shown[sample])
                    if found is not None:
                        assert some.slice_of(found) == table.slice_of(file)
                        if some.slice_of(found) is None:
                            assert some.render(found, shard, "png") == table.render(file, shard, "png")
    assert narrower > 2


def test_a_filter_goes_with_the_store(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    with InProcessTree(tmp_path / "s", where=Where("n >= 10")) as tree:
        assert len(tree.names("a")) == 4
        store.set([{"n": at} for at in range(8, 13)], "a")
        tree.ask(lambda: tree.vfs.refresh.everything())
        assert tree.names("a") == ["000002.json", "000003.json", "000004.json"]
        assert json.loads(tree.read("a/000004.json")) == {"n": 12}


def test_a_field_that_no_sample_has_is_hinted_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "s")
    with InProcessTree(tmp_path / "s", where=Where("lable = 'dog' OR n < 0")) as tree:
        assert tree.names("a") == tree.names("b/one") == []
    assert [record.message for record in caplog.records if "lable" in record.message] == [
        "--where: no sample of a has the light field 'lable'; did you mean 'label'?"
    ]


def test_a_shard_that_is_damaged_is_that_with_a_filter_too(tmp_path: Path) -> None:
    make(tmp_path / "s")
    path = next((tmp_path / "s").glob("a.*"))
    path.write_bytes(path.read_bytes()[:-30])
    with InProcessTree(tmp_path / "s", where=Where("n = 1")) as tree:
        with pytest.raises(OSError, match="a"):
            tree.names("a")
        assert tree.names("b/one") == []


def test_keys_are_chosen_by_patterns_without_a_look_at_others(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    chosen = ChosenDriver(store.driver, ["b*", "nothing"])
    assert [entry.key for entry in chosen.entries()] == ["b/one"]
    assert [entry.key for entry in chosen.entries()] == ["b/one"]
    with pytest.raises(MissingKeyError):
        chosen.entry(store.entry("a").key)
    with pytest.raises(BadSettingError, match=r"--keys c\*, d: no key fits, of 3 like a"):
        ChosenDriver(store.driver, ["c*", "d"])
    store.set([{"n": 1}], "b/two")
    assert [entry.key for entry in chosen.entries()] == ["b/one", "b/two"]
    assert os.path.exists(tmp_path / "s/a.gz")
