"""catalog.yaml of squirrel-core (the one in tests/data was written by it): read safely, its sources shown as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shardfs.browse import Browser
from shardfs.catalog import Source, read_catalog
from shardfs.errors import BadStoreError, MissingKeyError, NotWritableError, StorageError
from shardfs.opening import open_store

CATALOG = Path(__file__).parents[1] / "data" / "catalog" / "catalog.yaml"


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A catalog beside the stores that it names, and one that is not there."""
    open_store(tmp_path / "data/imgs", "squirrel").set([{"n": 1}], "a")
    open_store(tmp_path / "data/imgs2", "squirrel").set([{"n": 2}], "a")
    open_store(tmp_path / "data/imgs2", "squirrel").set([{"n": 3}], "b/c")
    open_store(tmp_path / "data/lines", "squirrel-jsonl").set([{"text": "x"}], "a")
    return Path(shutil.copy(CATALOG, tmp_path / "catalog.yaml"))


def test_what_the_library_wrote_is_read() -> None:
    assert read_catalog(CATALOG) == [
        Source("imgs", 1, "messagepack", "data/imgs", {}, {"owner": "me"}),
        Source("imgs", 2, "messagepack", "data/imgs2", {"protocol": "file"}, {}),
        Source("lines/en", 1, "jsonl", "data/lines", {}, {}),
        Source("table", 1, "csv", None, {}, {}),
    ]


def test_each_source_and_version_is_shown(catalog: Path) -> None:
    store = open_store(catalog, directory=catalog.parent)
    assert store.keys() == ["imgs/v1/a", "imgs/v2/a", "imgs/v2/b/c", "lines/en/v1/a"]
    assert list(store.get("imgs/v2/b/c")) == [{"n": 3}]
    assert b"".join(Browser(store).read("lines/en/v1/a/000000.json")) == b'{"text": "x"}\n'
    assert store.driver.problems == ["catalog.yaml: table/v1 is not shown: driver csv reads no store of shards"]
    assert store.places == [catalog.parent / "data" / name for name in ("imgs", "imgs2", "lines")]
    with pytest.raises(NotWritableError):
        store.set([1], "imgs/v1/new")
    with pytest.raises(NotWritableError):
        store.delete("imgs/v1/a")
    for key in ("imgs/v1/gone", "imgs/v3/a", "imgs"):
        with pytest.raises(MissingKeyError):
            store.get(key)


def test_relative_paths_count_from_where_the_program_runs(catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(catalog.parent)
    assert len(open_store(catalog).keys()) == 4


def test_a_source_that_is_not_there_leaves_the_others(catalog: Path) -> None:
    shutil.rmtree(catalog.parent / "data/imgs")
    store = open_store(catalog, directory=catalog.parent)
    assert store.keys() == ["imgs/v2/a", "imgs/v2/b/c", "lines/en/v1/a"]
    assert any("imgs/v1 is not shown: no store at" in problem for problem in store.driver.problems)


def test_a_source_that_goes_away_later_is_an_error_and_not_an_empty_directory(catalog: Path) -> None:
    store = open_store(catalog, directory=catalog.parent)
    shutil.rmtree(catalog.parent / "data/lines")
    (catalog.parent / "data/lines").write_text("no directory")
    with pytest.raises(StorageError):
        store.keys()


def test_changes_show(catalog: Path) -> None:
    store = open_store(catalog, directory=catalog.parent)
    store.keys()
    open_store(catalog.parent / "data/lines").set([1], "new")
    assert store.driver.changed()
    assert store.keys()[-1] == "lines/en/v1/new"


WRONG = {
    "code": "!!python/object/apply:os.system ['touch {marker}']",
    "code in a source": "sources: [!!python/object/apply:os.system ['touch {marker}']]",
    "no sources": "!YamlCatalog\nversion: 0.20.2\n",
    "not YAML": "sources: [",
    "no identifier": "sources:\n- !YamlSource {{driver_name: jsonl}}\n",
    "version": "sources:\n- !YamlSource {{identifier: a, driver_name: jsonl, version: 0}}\n",
    "twice": "sources:\n- !YamlSource {{identifier: a, driver_name: jsonl}}\n- {{identifier: a, driver_name: csv}}\n",
    "kwargs": "sources:\n- !YamlSource {{identifier: a, driver_name: jsonl, driver_kwargs: [1]}}\n",
    "deep": "[" * 5000,
    "binary": "\0\1",
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_catalog_is_told_in_one_line_and_never_run(case: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "c.yaml"
    path.write_text(WRONG[case].format(marker=marker))
    with pytest.raises(BadStoreError) as raised:
        open_store(path)
    assert "c.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["..", "a//b", "", "imgs"])
def test_names_that_cannot_be_directories_beside_the_others_are_not_shown(name: str, tmp_path: Path) -> None:
    open_store(tmp_path / "s", "squirrel").set([1], "k")
    path = tmp_path / "c.yaml"
    path.write_text(
        f"sources:\n- {{identifier: imgs/v1, driver_name: jsonl, driver_kwargs: {{url: {tmp_path}/s}}}}\n"
        f"- {{identifier: '{name}', driver_name: messagepack, driver_kwargs: {{url: {tmp_path}/s}}}}\n"
    )
    store = open_store(path)
    assert store.keys() == ["imgs/v1/v1/k"]
    assert len(store.driver.problems) == 1
