"""Keys and versions written down, mounted as they were, and as one hash."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from shardfs import cli
from shardfs.errors import BadSettingError, MissingKeyError, NotWritableError, StorageError
from shardfs.model import Key
from shardfs.opening import open_store
from shardfs.snapshots import at_snapshot, fingerprint, write_snapshot
from shardfs.store import Store
from tests.servers import Server

pytestmark = pytest.mark.timeout(60)


def local(folder: Path) -> Store:
    store = open_store(folder, "squirrel")
    for key in ("a", "b/c"):
        store.set([{"x": key}], key)
    return store


def far(moto: Server, name: str) -> Store:
    return open_store(f"s3://bucket/{name}", "squirrel", endpoint=moto.endpoint, cache_size=0)


def test_a_snapshot_has_the_keys_and_versions_it_was_taken_of(tmp_path: Path) -> None:
    store = local(tmp_path / "store")
    assert write_snapshot(store, tmp_path / "snapshot") == 2
    before = store.driver.entries()
    store.set([{"x": "later"}], "later")
    then = at_snapshot(open_store(tmp_path / "store"), tmp_path / "snapshot")
    assert then.driver.entries() == before
    assert list(then.get("a")) == [{"x": "a"}]
    assert not then.driver.changed()
    assert then.driver.problems == []
    assert then.identity == store.identity
    with pytest.raises(MissingKeyError):
        then.driver.entry(Key("later"))
    with pytest.raises(NotWritableError):
        then.set([{}], "a")


def test_what_was_replaced_or_removed_is_an_error_and_no_other_bytes(tmp_path: Path) -> None:
    store = local(tmp_path / "store")
    write_snapshot(store, tmp_path / "snapshot")
    store.set([{"x": "other"}], "a")
    store.delete("b/c")
    then = at_snapshot(open_store(tmp_path / "store", "squirrel"), tmp_path / "snapshot")
    assert "2 keys (a, b/c)" in then.driver.problems[0]
    for entry in then.driver.entries():
        with pytest.raises(StorageError, match="as the snapshot has it") as caught:
            then.driver.load(entry, lambda _: None)
        assert caught.value.errno == errno.ESTALE


def test_far_away(moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    store = far(moto, "one")
    store.set([{"x": "a"}], "a")
    store.set([{"x": "b"}], "b")
    write_snapshot(store, tmp_path / "snapshot")
    before = fingerprint(store)
    store.set([{"x": "other"}], "a")
    then = at_snapshot(far(moto, "one"), tmp_path / "snapshot")
    assert list(then.get("b")) == [{"x": "b"}]
    with pytest.raises(StorageError) as caught:
        then.driver.load(then.entry("a"), lambda _: None)
    assert caught.value.errno == errno.ESTALE
    assert fingerprint(then) == before != fingerprint(store)


def test_a_fingerprint_is_of_content(moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of a copy; another one for other bytes, another name, or a key more."""
    store = local(tmp_path / "store")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    made = fingerprint(store)
    assert fingerprint(open_store(tmp_path / "copy")) == made
    (tmp_path / "copy" / "a.gz").rename(tmp_path / "copy" / "z.gz")
    assert fingerprint(open_store(tmp_path / "copy")) != made
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("first", "second"):
        storage = far(moto, name).driver.storage  # type: ignore[attr-defined]
        data = (tmp_path / "store" / "a.gz").read_bytes()
        storage.put("a.gz", lambda file, data=data: file.write(data) and None)
    assert fingerprint(far(moto, "first")) == fingerprint(far(moto, "second"))
    assert fingerprint(far(moto, "first")) == fingerprint(
        open_store("s3://bucket/first", endpoint=moto.endpoint, cache_dir=tmp_path / "cache")
    )


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        '{"shardfs_snapshot": 2, "keys": []}',
        '{"shardfs_snapshot": 1, "keys": {}}',
        '{"shardfs_snapshot": 1, "store": "elsewhere", "driver": "squirrel", "keys": []}',
        "[" * 100_000,
    ],
)
def test_files_that_are_no_snapshot_of_the_store(tmp_path: Path, text: str) -> None:
    (tmp_path / "snapshot").write_text(text)
    with pytest.raises(BadSettingError):
        at_snapshot(local(tmp_path / "store"), tmp_path / "snapshot")


@pytest.mark.parametrize(
    "change", [{"key": ""}, {"version": 5}, {"stored_bytes": -1}, {"mtime_ns": True}, {"samples": "1"}]
)
def test_keys_that_are_none(tmp_path: Path, change: dict[str, object]) -> None:
    store = local(tmp_path / "store")
    write_snapshot(store, tmp_path / "snapshot")
    document = json.loads((tmp_path / "snapshot").read_text())
    document["keys"][0] |= change
    (tmp_path / "snapshot").write_text(json.dumps(document))
    with pytest.raises(BadSettingError):
        at_snapshot(store, tmp_path / "snapshot")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local(tmp_path / "store")
    file = tmp_path / "snapshot"
    words = ["info", str(tmp_path / "store")]
    assert cli.main([*words, "--snapshot", str(file), "--fingerprint"]) == 0
    said = capsys.readouterr()
    assert said.err == f"shardfs: 2 keys written to {file}\n"
    assert said.out == fingerprint(open_store(tmp_path / "store")) + "\n"
    assert cli.main([*words, "--snapshot", str(file)]) == 2  # it is there already
    assert cli.main([*words, "a", "--fingerprint"]) == 2
    assert capsys.readouterr().out == ""
