"""Stores that fsspec reaches: in its memory, and on an FTP server on loopback. Names, parts, versions, refusals.

None of this was ever tried against the real services behind `hf://`, `sftp://` and the others; `test_hub_stores.py`
asks a server of ours in the place of the Hugging Face Hub.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from shardfs import config, open_store
from shardfs.browse import Browser
from shardfs.cli import main
from shardfs.errors import BadSettingError, BadStoreError, MissingExtraError, StaleShardError, StorageError
from shardfs.storage import fsspec_objects
from shardfs.storage.urls import is_far, only_read, open_remote
from tests.conformance.webdataset_suite import SAMPLES, written
from tests.servers import Server, ftp_server

pytestmark = pytest.mark.timeout(60)
BIG = os.urandom(1 << 20) * 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of each system whose shards are files."""
    root = tmp_path_factory.mktemp("stores")
    for system in ("squirrel", "streaming"):
        store = open_store(root / system, system)
        for number, key in enumerate(("train/a", "train/b")):
            store.set([{"x": bytes([number, at]) * 3000, "label": 3 * number + at} for at in range(3)], key)
    (root / "webdataset").mkdir()
    written(root / "webdataset/a.tar", SAMPLES)
    (root / "plain").mkdir()
    (root / "plain/big").write_bytes(BIG)
    return root


@pytest.fixture(scope="module")
def ftp(folder: Path) -> Iterator[Server]:
    with ftp_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def memory(folder: Path) -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.put(f"{folder}/", "/stores", recursive=True)
    yield "memory://stores"
    files.rm("/stores", recursive=True)


@pytest.fixture(params=["memory", "ftp"])
def url(request: pytest.FixtureRequest) -> str:
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, str) else str(found.endpoint)


def everything(store: Any) -> dict[str, bytes]:
    browser = Browser(store)
    found = {}
    for key in store:
        for listed in browser.list(key):
            found[f"{key}/{listed.name}"] = b"".join(browser.read(f"{key}/{listed.name}"))
    return found


@pytest.mark.parametrize("cache", [0, 100_000_000])
@pytest.mark.parametrize("system", ["squirrel", "streaming", "webdataset"])
def test_a_store_has_the_files_that_it_has_here(
    url: str, folder: Path, system: str, cache: int, tmp_path: Path
) -> None:
    here = everything(open_store(folder / system))
    assert len(here) >= 6
    where: dict[str, Any] = {"cache_dir": tmp_path, "cache_size": cache, "min_free": 0}
    assert everything(open_store(f"{url}/{system}", **where)) == here
    assert everything(open_store(f"{url}/{system}", **where)) == here


def test_names_sizes_and_versions(url: str, folder: Path) -> None:
    storage = open_remote(f"{url}/squirrel")
    listed = storage.list((".gz", ".zst"))
    assert [one.name.partition(".")[0] for one in listed] == ["train/a", "train/b"]
    assert [one.size for one in listed] == [(folder / "squirrel" / one.name).stat().st_size for one in listed]
    assert listed[0] == storage.stat(listed[0].name)
    assert listed[0].mtime_ns > 1_700_000_000_000_000_000
    for name in ("no", "train"):
        with pytest.raises(StorageError) as raised:
            storage.stat(name)
        assert raised.value.errno == errno.ENOENT


def test_large_objects_come_in_parts_and_any_range_is_right(url: str) -> None:
    storage = open_remote(f"{url}/plain")
    before = storage.requests.asked
    with storage.open("big") as reader:
        assert reader.read_at(5_000_000, 1000) == BIG[5_000_000:5_001_000]
        assert reader.tail(7) == BIG[-7:]
        pieces = []
        while piece := reader.read(3_000_000):
            pieces.append(piece)
    assert b"".join(pieces) == BIG
    parts = 2 + -(-len(BIG) // config.REMOTE_PART)
    assert storage.requests.asked - before == 1 + (1 if url.startswith("ftp") else parts)  # FTP is asked for all of it


def test_a_replaced_object_is_stale_and_never_a_mixture() -> None:
    files = fsspec.filesystem("memory")
    files.pipe("/changing/big", BIG)
    storage = open_remote("memory://changing")
    version = storage.stat("big").version
    with storage.open("big", version) as reader:
        assert reader.read_at(0, 10) == BIG[:10]
        files.pipe("/changing/big", BIG[::-1])
        with pytest.raises(StaleShardError):
            reader.read_at(len(BIG) - 10, 10)
    with storage.open("big") as reader:
        assert reader.read(10) == BIG[::-1][:10]


def test_an_object_that_is_replaced_while_it_is_read_is_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    """No condition can be put on a read: what was read is looked at behind it."""
    files = fsspec.filesystem("memory")
    files.pipe("/racing/k", b"old")
    storage = open_remote("memory://racing")
    version = storage.stat("k").version
    cat = type(files).cat_file

    def late(self: Any, path: str, *part: Any, **more: Any) -> bytes:
        files.pipe("/racing/k", b"new")
        return cat(self, path, *part, **more)  # type: ignore[no-any-return]

    monkeypatch.setattr(type(files), "cat_file", late)
    with pytest.raises(StaleShardError):
        storage.open("k", version).read(3)


def test_a_directory_that_cannot_be_listed_is_an_error_and_not_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk of fsspec's own leaves it out; who mirrors the mount would delete his copy."""
    files = fsspec.filesystem("memory")
    files.pipe("/hidden/deep/k.gz", b"x")
    kind = type(files)
    monkeypatch.setattr(kind, "find", fsspec.spec.AbstractFileSystem.find)
    storage = open_remote("memory://hidden", deadline=0.6)
    assert [one.name for one in storage.list((".gz",))] == ["deep/k.gz"]
    ls = kind.ls

    def broken(self: Any, path: str, **more: Any) -> Any:
        if path.endswith("deep"):
            raise ConnectionResetError("reset")
        return ls(self, path, **more)

    monkeypatch.setattr(kind, "ls", broken)
    with pytest.raises(StorageError) as raised:
        storage.list((".gz",))
    assert raised.value.errno == errno.ETIMEDOUT
    assert storage.requests.repeated > 0


def test_a_server_that_is_gone_is_one_error_by_the_deadline(folder: Path, tmp_path: Path) -> None:
    with ftp_server(folder) as server:
        where: dict[str, Any] = {"cache_dir": tmp_path, "min_free": 0, "deadline": 1.0}
        store = open_store(f"{server.endpoint}/squirrel", **where)
        assert store.get("train/a")[0]["label"] == 0
    with pytest.raises(StorageError) as raised:
        store.get("train/b")
    assert raised.value.errno == errno.ETIMEDOUT
    store = open_store(f"{server.endpoint}/squirrel", **where, offline=True)
    assert store.keys() == ["train/a", "train/b"]
    assert store.get("train/a")[0]["label"] == 0


class _Status(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("https://user:s3cr3t@host/x?token=s3cr3t")
        self.status = status


@pytest.mark.parametrize(
    ("error", "code", "again"),
    [
        (_Status(503), errno.ETIMEDOUT, True), (_Status(403), errno.EACCES, False), (_Status(404), errno.ENOENT, False),
        (_Status(400), errno.EIO, False), (ConnectionResetError(), errno.ETIMEDOUT, True),
        (PermissionError(), errno.EACCES, False), (NotImplementedError(), errno.EOPNOTSUPP, False),
        (EOFError(), errno.ETIMEDOUT, True), (TypeError("a mistake"), errno.EIO, False),
    ],
)  # fmt: skip
def test_what_errors_of_others_are_here(
    error: Exception, code: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fsspec.filesystem("memory")

    def fails(*words: Any, **more: Any) -> Any:
        raise error

    monkeypatch.setattr(type(files), "info", fails)
    storage = open_remote("memory://none", deadline=0.6)
    with pytest.raises(StorageError) as raised:
        storage.stat("k")
    assert raised.value.errno == code
    assert (storage.requests.repeated > 0) is again
    assert "s3cr3t" not in str(raised.value) + repr(raised.value.__cause__)


def test_nothing_is_written(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = open_remote(f"{url}/squirrel")
    for call in (lambda: storage.put("k", lambda file: None), lambda: storage.remove(storage.list((".gz",))[0].name)):
        with pytest.raises(StorageError, match="can only be read") as raised:
            call()
        assert raised.value.errno == errno.EROFS
    assert only_read(url)
    if url.startswith("ftp"):
        assert main(["mount", "--rw", f"{url}/squirrel", str(tmp_path / "mnt")]) == 2
        said = capsys.readouterr().err
        assert ("can only be read" in said, said.count("\n")) == (True, 1)


def test_what_cannot_be_far_away_is_one_line(url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Regression: a TypeError, told as a bug."""
    cache = ["--cache-dir", str(tmp_path), "--min-free", "0"]
    assert main(["ls", f"{url}/plain", "--driver", "superduper", *cache]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_urls_that_nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_far("hf://datasets/a/b")
    assert not is_far("file:///x")
    assert not is_far("mltraq+sqlite:///x")
    for url in ("nosuch://x/y", "memory://a::ftp://b"):
        with pytest.raises(BadStoreError):
            open_remote(url)
    with pytest.raises(BadSettingError, match="--endpoint"):
        open_remote("ftp://host/x", endpoint="http://there")

    def missing(scheme: str) -> Any:
        raise ImportError("install huggingface_hub")

    monkeypatch.setattr(fsspec_objects.fsspec, "get_filesystem_class", missing)
    with pytest.raises(MissingExtraError, match="huggingface_hub"):
        open_remote("hf://datasets/a/b")


def test_times_of_all_kinds() -> None:
    expected = 1_767_225_600_000_000_000
    for given in ("20260101000000", "20260101000000.5", "2026-01-01T00:00:00+00:00", 1_767_225_600, 1_767_225_600.0):
        assert fsspec_objects._time({"modify": given}) == expected
    assert fsspec_objects._time({"modify": "yesterday"}) == fsspec_objects._time({}) == 0


def test_commands_on_such_a_store(ftp: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cache = ["--cache-dir", str(tmp_path), "--min-free", "0"]
    assert main(["ls", f"{ftp.endpoint}/squirrel", *cache]) == 0
    assert "train" in capsys.readouterr().out
    assert main(["info", f"{ftp.endpoint}/streaming", "--json", *cache]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["verify", f"{ftp.endpoint}/squirrel"]) == 0
