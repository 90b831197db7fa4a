"""Commands on stores in an S3 server: looking, indexing, converting, gc, and what is staged for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardfs import cli
from shardfs.commands.staging import staged_url
from shardfs.drivers.base import StoresObjects
from shardfs.opening import open_store
from shardfs.staging import StagingArea
from shardfs.storage.urls import open_remote
from shardfs.store import Store
from shardfs.writable import open_area
from tests.servers import Server

pytestmark = pytest.mark.timeout(90)

SYSTEMS = ("squirrel", "streaming", "webdataset")
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(moto: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Say:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def run(*words: str | Path, far: bool = True) -> tuple[int, str, str]:
        status = cli.main([str(word) for word in (*words, *(["--endpoint", moto.endpoint] if far else []))])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def url(say: Say, request: pytest.FixtureRequest) -> str:
    return "s3://bucket/" + "".join(c if c.isalnum() else "-" for c in request.node.name)


def made(url: str, system: str, moto: Server) -> Store:
    """Three keys of two samples each."""
    store = open_store(url, system, endpoint=moto.endpoint, cache_size=0)
    if system == "streaming":
        store.driver.beginning = True  # type: ignore[attr-defined]
    for number, key in enumerate(("a", "b", "train/c")):
        name = "__key__" if system == "webdataset" else "id"
        store.set([{name: f"{number}{at}", "data": bytes([number, at]) * 50} for at in range(2)], key)
    return store


@pytest.mark.parametrize("system", SYSTEMS)
def test_looking_and_indexing(system: str, url: str, moto: Server, say: Say) -> None:
    made(url, system, moto)
    assert say("ls", url) == (0, "a\nb\ntrain\n", "")
    status, out, _ = say("ls", "-l", url, "train/c")
    assert status == 0
    name = next(line.split()[-1] for line in out.splitlines() if "data" in line)
    assert say("cat", url, f"train/c/{name}")[1].encode("latin-1") in (bytes([2, 0]) * 50, bytes([2, 1]) * 50)
    assert json.loads(say("info", url, "a", "--json")[1])["samples"] == 2
    status, out, err = say("index", url, "--json")
    assert (status, json.loads(out)["shards"], json.loads(out)["failed"]) == (0, 3, {}), err


@pytest.mark.parametrize(
    ("system", "target"), [("squirrel", "streaming"), ("streaming", "webdataset"), ("webdataset", "squirrel")]
)
def test_converting_from_and_to(system: str, target: str, url: str, moto: Server, say: Say, tmp_path: Path) -> None:
    source = made(f"{url}/from", system, moto)
    for source_url, target_url in (
        (source.url, f"{url}/to"),
        (source.url, tmp_path / "here"),
        (tmp_path / "here", f"{url}/back"),
    ):
        words = ["convert", source_url, target_url, "--driver", target, "--json"]
        status, out, err = say(*words)
        assert status == 0, err
        assert json.loads(out)["converted"] == 3
        assert json.loads(say(*words)[1])["kept"] == 3  # it goes on where it stopped
    trees = [
        json.loads(say("ls", store, "train/c", "--json", far=isinstance(store, str))[1])
        for store in (f"{url}/to", tmp_path / "here", f"{url}/back")
    ]
    sizes = [[(one["name"], one["size"]) for one in tree] for tree in trees]
    assert sizes[0] == sizes[1] == sizes[2] != []


def test_converting_into_itself_and_options_for_nothing_far_away(
    url: str, moto: Server, say: Say, tmp_path: Path
) -> None:
    made(url, "squirrel", moto)
    for target in (url, f"{url}/in", url.replace("s3://", "s3a://") + "/"):
        status, out, err = say("convert", url, target, "--driver", "squirrel")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert "lies in it" in err
    open_store(tmp_path / "store", "squirrel").set([{"a": 1}], "k")
    status, _, err = say("convert", tmp_path / "store", tmp_path / "other", "--driver", "squirrel")
    assert (status, err.count("\n")) == (2, 1)
    assert "--endpoint" in err
    assert not (tmp_path / "other").exists()


def test_gc_lists_and_removes_nothing(url: str, moto: Server, say: Say) -> None:
    store = made(url, "streaming", moto)
    store.set([{"id": "x", "data": b"new"}] * 2, "a")
    storage = open_remote(url, endpoint=moto.endpoint)
    before = storage.list(("",))
    status, out, err = say("gc", url, "--older-than", "0", "--json")
    assert status == 0
    (found,) = json.loads(out)["garbage"]
    assert (found["name"], found["kind"]) == ("a.mds", "superseded")
    status, out, err = say("gc", url, "--yes", "--older-than", "0")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "removes nothing from stores far away" in err
    assert storage.list(("",)) == before
    made(f"{url}-squirrel", "squirrel", moto)
    status, _, err = say("gc", f"{url}-squirrel")
    assert (status, "a list and no more" in err) == (0, True)


def test_what_is_staged_is_found_without_saying_the_endpoint_again(url: str, moto: Server, say: Say) -> None:
    store = made(url, "squirrel", moto)
    area = open_area(store)
    area.create("new").create(0, b"0.json", 0o644, 0, 0).close()
    area.close()
    status, out, _ = say("staging", "list", url, far=False)
    assert (status, "new" in out) == (0, True)
    assert staged_url(url) == staged_url(url, moto.endpoint) == store.identity
    assert staged_url(url, "http://elsewhere") != store.identity
    assert say("staging", "discard", url, "new", "--yes", far=False)[0] == 0
    StagingArea.open(store.identity).close()


def test_objects_are_the_files_of_a_shard(url: str, moto: Server, say: Say) -> None:
    driver: Any = made(url, "streaming", moto).driver
    assert isinstance(driver, StoresObjects)
    assert [name for entry in driver.entries() for name, _ in driver.objects(entry)] == [
        "a.mds",
        "b.mds",
        "train/c.mds",
    ]
    for entry in driver.entries():
        for name, version in driver.objects(entry):
            assert driver.storage.stat(name).version == version
