"""Data sets and shards on a plain web server, which lists nothing: names from the URL, versions from HEAD."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardfs.errors import BadSettingError, BadStoreError, StaleShardError
from shardfs.model import Key
from shardfs.opening import open_store
from shardfs.storage.given import GivenNames, IndexedNames
from shardfs.store import Store
from shardfs.web_names import web_names
from tests.link import link
from tests.servers import Server, nginx_server

pytestmark = pytest.mark.timeout(60)

KINDS = {
    "etags": "",
    "times": "etag off;",
    "weak": "etag off; add_header ETag 'W/\"$sent_http_last_modified\"';",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module", params=KINDS)
def web(folder: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    os.chmod(folder, 0o755)
    with nginx_server(folder, tmp_path_factory.mktemp("nginx"), KINDS[request.param]) as server:
        yield server


def opened(url: str, driver: str | None = None, **options: Any) -> Store:
    return open_store(url, driver, cache_size=0, **options)


def tars(folder: Path, count: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        with tarfile.open(folder / f"shard-{number:03}.tar", "w") as tar:
            member = tarfile.TarInfo("one.bin")
            member.size = 10
            tar.addfile(member, io.BytesIO(b"%010d" % number))


def data_set(folder: Path, compression: str = "none") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    store = open_store(folder, "streaming", compression=compression)
    if not (folder / "index.json").exists():
        store.driver.beginning = True  # type: ignore[attr-defined]
        for number in range(3):
            store.set([{"x": number, "y": "text"}], f"shard.{number:05}")


def test_tars_by_braces(web: Server, folder: Path) -> None:
    tars(folder / "tars", 12)
    store = opened(f"{web.endpoint}/tars/shard-{{000..011}}.tar")
    assert store.keys() == [f"shard-{number:03}" for number in range(12)]
    assert store.get("shard-007")[0]["bin"] == b"0000000007"
    assert opened(f"{web.endpoint}/tars/shard-003.tar").keys() == ["shard-003"]
    assert not store.driver.changed()


def test_squirrel_shards_by_braces(web: Server, folder: Path) -> None:
    local = open_store(folder / "gz", "squirrel")
    for key in ("a", "b", "c"):
        local.set([{"x": key}], key)
    store = opened(f"{web.endpoint}/gz/{{a,c}}.gz")
    assert store.keys() == ["a", "c"]
    assert list(store.get("c")) == [{"x": "c"}]


def test_what_is_missing_is_told_by_name(web: Server, folder: Path) -> None:
    tars(folder / "few", 2)
    with pytest.raises(BadStoreError, match=r"shard-002.tar, shard-003.tar \(2 of 4\)"):
        opened(f"{web.endpoint}/few/shard-{{000..003}}.tar").keys()


@pytest.mark.parametrize("compression", ["none", "gz"])
def test_a_data_set_by_its_index(web: Server, folder: Path, compression: str) -> None:
    data_set(folder / f"set-{compression}", compression)
    store = opened(f"{web.endpoint}/set-{compression}/")
    assert store.driver.name == "streaming"
    assert store.keys() == [f"shard.{number:05}" for number in range(3)]
    assert [list(store.get(key)) for key in store] == [[{"x": number, "y": "text"}] for number in range(3)]
    assert not store.driver.changed()


def test_splits_are_found_by_their_usual_names_or_by_braces(web: Server, folder: Path) -> None:
    for split in ("train", "val", "extra"):
        data_set(folder / "splits" / split)
    assert {key.partition("/")[0] for key in opened(f"{web.endpoint}/splits")} == {"train", "val"}
    assert {key.partition("/")[0] for key in opened(f"{web.endpoint}/splits/{{val,extra}}/")} == {"val", "extra"}
    assert opened(f"{web.endpoint}/splits/extra/index.json").keys()[0] == "shard.00000"
    with pytest.raises(BadStoreError, match=r"other/index\.json"):
        opened(f"{web.endpoint}/splits/{{val,other}}/").keys()
    with pytest.raises(BadStoreError, match=r"index\.json"):
        opened(f"{web.endpoint}/nowhere/").keys()


def test_a_replaced_file_is_stale_and_never_other_bytes(web: Server, folder: Path) -> None:
    """By its ETag, or by the time where the server has none."""
    local = open_store(folder / "replaced", "squirrel")
    local.set([{"x": "old"}], "k")
    os.utime(folder / "replaced" / "k.gz", (1_000_000_000, 1_000_000_000))
    store = opened(f"{web.endpoint}/replaced/k.gz")
    entry = store.entry("k")
    assert list(store.get("k")) == [{"x": "old"}]
    local.set([{"x": "new"}], "k")
    with pytest.raises(StaleShardError):
        store.driver.load(entry, lambda _: None)
    assert store.entry("k").version != entry.version
    assert list(store.get("k")) == [{"x": "new"}]


def test_ranges_are_used_where_the_server_has_them(web: Server, folder: Path) -> None:
    big = folder / "big"
    big.mkdir(exist_ok=True)
    with tarfile.open(big / "a.tar", "w") as tar:
        for name in ("one.bin", "two.bin"):
            member = tarfile.TarInfo(name)
            member.size = 20_000_000
            tar.addfile(member, io.BytesIO(name.encode() * 3_000_000))
    with link(web.endpoint) as counting:
        store = opened(f"{counting.endpoint}/big/a.tar")
        shard = store.driver.load(store.entry("a"), lambda _: None)
        assert bytes(shard.fetch(512, 519)) == b"one.bin"
        assert counting.counted().down < 1_000_000


@pytest.mark.parametrize("url", ["s/{1..3}.bin", "s/{a.tar,b.gz}", "s/a.tar?X-Signature=1", "s/{a,a}.gz", "s/{a}.gz"])
def test_urls_that_name_no_shards(url: str) -> None:
    if url == "s/{1..3}.bin":  # directories, as far as can be told
        assert isinstance(web_names(f"http://host/{url}")[2], IndexedNames)
        return
    with pytest.raises(BadSettingError):
        web_names(f"http://host/{url}")


def test_names_that_urls_escape() -> None:
    directory, driver, names = web_names("https://user:pw@host/a%20b/{c,d%20e}/x.gz")
    assert (directory, driver) == ("https://user:pw@host/a%20b/", "squirrel")
    assert isinstance(names, GivenNames)
    assert names._names == ["c/x.gz", "d e/x.gz"]


def test_another_driver_than_the_names_are_for() -> None:
    with pytest.raises(BadSettingError, match="webdataset"):
        opened("http://127.0.0.1:1/a.tar", "squirrel")


def test_keys_that_were_not_named_are_not_there(web: Server, folder: Path) -> None:
    tars(folder / "tars", 12)
    store = opened(f"{web.endpoint}/tars/shard-{{000..001}}.tar")
    assert Key("shard-000") in store
