"""mltraq itself: what it writes we show and read equal, and what shardfs.mltraq writes it reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from shardfs import open_store
from shardfs.mltraq import DataStore, DataStoreIO

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from mltraq_values import VALUES, describe_more  # noqa: E402
from test_interop import library, through_json  # noqa: E402

pytestmark = pytest.mark.timeout(300)


def test_the_library_reads_what_we_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both examples of its page on the data store among it."""
    monkeypatch.chdir(tmp_path)
    urls = {name: DataStoreIO.serialize_write(value, "values").url for name, value in VALUES.items()}
    ds = DataStore(a=VALUES["array"], c=123, inner=DataStore(d=[1, 2]))
    prefix = "self_managed/d65df69e-1175-44a5-be2f-2232765703b8"
    url_a = DataStoreIO.serialize_write(VALUES["array"], relative_path_prefix=prefix).url
    expected: dict[str, Any] = {urls[name]: value for name, value in VALUES.items()}
    expected |= {ds.to_url(): ds, url_a: VALUES["array"]}
    theirs = library("mltraq", tmp_path, "read", str(tmp_path), *expected)
    assert theirs == {url: through_json(describe_more(value)) for url, value in expected.items()}


def test_the_library_reads_a_directory_that_was_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `convert` and mounts write it: a serialised file for each sample."""
    monkeypatch.chdir(tmp_path)
    samples = [{"value": value, "name": name} for name, value in VALUES.items()]
    open_store(tmp_path / "mltraq.datastore", driver="mltraq").set(samples, "deep/prefix")
    urls = [f"file:///deep/prefix/{at:06d}" for at in range(len(samples))]
    theirs = library("mltraq", tmp_path, "read", str(tmp_path), *urls)
    expected = dict(zip(urls, samples, strict=True))
    assert theirs == {url: through_json(describe_more(value)) for url, value in expected.items()}


def test_we_read_what_the_library_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = library("mltraq", tmp_path, "experiment", str(tmp_path))
    store = open_store(f"mltraq+sqlite:///{tmp_path}/exp.db")
    (key, prefix) = store.keys()
    assert (key, prefix.partition("/")[0]) == ("my example", "self_managed")
    fields, run = store.get(key)
    assert fields == {"note": "hello"}
    assert {name: through_json(describe_more(value)) for name, value in run.items()} == said["fields"]
    assert len(store.get(prefix)) == 2
    assert DataStoreIO(run["url_a"]).read_deserialize().tolist() == [0.0] * 10
    assert DataStoreIO(run["url_b"]).read() == b"11111"


def test_experiments_that_share_a_table_are_told_apart(tmp_path: Path) -> None:
    """The library replaces the rows of the first one, and gives it those of the second."""
    library("mltraq", tmp_path, "experiment", str(tmp_path))
    library("mltraq", tmp_path, "clash", str(tmp_path))
    store = open_store(f"mltraq+sqlite:///{tmp_path}/exp.db")
    assert store.keys()[:2] == ["my example", "my-example"]
    assert store.get("my example")[:] == [{"note": "hello"}]
    assert store.get("my-example")[:] == [{}, {"number": 2.5}]


def test_pandas_and_arrow_go_both_ways(tmp_path: Path) -> None:
    found = library("mltraq", tmp_path, "both", str(tmp_path))
    assert found == {name: [True, True] for name in ("frame", "series", "table", "named series")}
