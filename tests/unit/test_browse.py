"""The tree without a mount."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs import config
from shardfs.browse import Browser
from shardfs.errors import DamagedShardError, MissingKeyError
from shardfs.opening import open_store
from shardfs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = open_store(tmp_path, driver="squirrel")
    made.set([{"image": np.zeros((2, 3, 3), "u1"), "label": 3, "blob": b"%PDF-x"}, {"label": 4}], "train/a")
    made.set([{"big": bytes(3 * config.COPY_SLICE + 5), "array": np.arange(3)}], "b")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    return made


def test_directories_keys_and_files_are_listed(store: Store) -> None:
    browser = Browser(store)
    assert [(line.name, line.kind) for line in browser.list()] == [("b", "key"), ("bad", "key"), ("train", "dir")]
    assert [(line.name, line.kind) for line in browser.list("/train/")] == [("a", "key")]
    assert browser.list("train")[0].size == store.entry("train/a").stored_bytes
    files = browser.list("train/a")
    assert [line.name for line in files] == ["000000.image.png", "000000.blob.pdf", "000000.json", "000001.json"]
    assert {line.mtime_ns for line in files} == {store.entry("train/a").mtime_ns}
    assert browser.list("train/a/000000.json") == [files[2]]


def test_every_file_is_read_as_long_as_it_is_listed(store: Store) -> None:
    for arrays in ("png", "npy"):
        browser = Browser(store, arrays)
        for key in ("train/a", "b"):
            for line in browser.list(key):
                pieces = list(browser.read(f"{key}/{line.name}"))
                assert sum(map(len, pieces)) == line.size
                assert all(len(piece) <= config.COPY_SLICE for piece in pieces)
    assert b"".join(Browser(store).read("train/a/000000.json")) == b'{"label": 3}\n'
    assert b"".join(Browser(store).read("b/000000.big.bin")) == bytes(3 * config.COPY_SLICE + 5)


def test_facts_about_a_store_a_directory_a_key_and_a_file(store: Store) -> None:
    browser = Browser(store)
    whole = browser.info()
    assert (whole["driver"], whole["keys"], whole["samples"], whole["writable"]) == ("squirrel", 3, None, True)
    assert whole["stored_bytes"] == sum(store.entry(key).stored_bytes for key in store)
    assert browser.info("train") == {"path": "train", "kind": "dir", "entries": 1}
    key = browser.info("train/a")
    assert (key["key"], key["samples"], key["files"], key["undecoded"]) == ("train/a", 2, 4, [])
    assert key["file_bytes"] == sum(line.size for line in browser.list("train/a"))
    file = browser.info("train/a/000000.image.png")
    assert (file["kind"], file["sample"], file["rendered"]) == ("file", "000000", True)
    assert browser.info("b/000000.big.bin")["rendered"] is False


@pytest.mark.parametrize(
    "path",
    ["none", "train/none", "train/a/none", "train/a/000000.json/x", "train/a/000002.json", "..", "b/../b", "\udcff"],
)
def test_what_is_not_there_is_a_missing_key(store: Store, path: str) -> None:
    browser = Browser(store)
    calls: list[Any] = [browser.list, browser.read, browser.info]
    for call in calls:
        with pytest.raises(MissingKeyError):
            call(path)


@pytest.mark.parametrize("path", ["", "train", "train/a"])
def test_a_directory_cannot_be_read(store: Store, path: str) -> None:
    with pytest.raises(MissingKeyError, match="directory"):
        Browser(store).read(path)


def test_a_damaged_shard_is_told_by_its_key_and_others_stay_readable(store: Store) -> None:
    browser = Browser(store)
    for call in (browser.list, browser.info):
        with pytest.raises(DamagedShardError, match="'bad'"):
            call("bad")
    with pytest.raises(DamagedShardError, match="not gzip"):
        browser.read("bad/000000.json")
    assert len(browser.list("b")) == 2


def test_names_that_are_no_text_are_found(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.gz")
    (tmp_path / name).write_bytes(gzip.compress(b"\x01"))
    browser = Browser(open_store(tmp_path))
    (line,) = browser.list()
    assert line.name == "caf%ED%B3%A9"
    assert [file.name for file in browser.list(line.name)] == ["000000.json"]
