"""The real libraries, each in a virtual environment of its own: what they write we read equal, and what we write they
read equal. `./run interop` makes the environments and names them in the environment of this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardfs import open_store

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from describe import describe, opened  # noqa: E402
from samples import JSONL, MSGPACK  # noqa: E402


def library(name: str, folder: Path, *args: str) -> Any:
    """Run a script in a library's environment and return the JSON that it prints. Its temporary files go into
    `folder`: mosaicml-streaming leaves lock files behind."""
    python = os.environ.get(f"SHARDFS_INTEROP_{name.upper()}")
    if not python:
        pytest.skip(f"SHARDFS_INTEROP_{name.upper()} is not set: use ./run interop")
    script = str(HERE / f"{name}_side.py")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TMPDIR": str(folder)}
    done = subprocess.run([python, script, *args], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index("{") :])


def through_json(description: Any) -> Any:
    return json.loads(json.dumps(description))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["msgpack", "jsonl"])
def test_squirrel_core_and_we_read_each_other(tmp_path: Path, form: str) -> None:
    store = open_store(tmp_path, driver=f"squirrel-{form}")
    store.set(JSONL if form == "jsonl" else MSGPACK, "ours")
    library("squirrel", tmp_path, "write", str(tmp_path), form)
    theirs = library("squirrel", tmp_path, "dump", str(tmp_path), form)
    assert sorted(theirs) == store.keys() == ["ours", "theirs"]
    assert theirs["ours"] == theirs["theirs"], "what we wrote reads differently from what the library wrote"
    for key in store:
        mine = [through_json(describe(sample)) for sample in store.get(key)]
        assert mine == theirs[key], key


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["msgpack", "jsonl"])
def test_squirrel_core_finds_its_keys_beside_our_zstd_shards(tmp_path: Path, form: str) -> None:
    open_store(tmp_path, driver=f"squirrel-{form}", compression="zst").set([{"i": 1}], "z")
    open_store(tmp_path, driver=f"squirrel-{form}").set([{"i": 2}], "g")
    assert library("squirrel", tmp_path, "dump", str(tmp_path), form) == {
        "g": [["dict", [[["str", "i"], ["int", "2"]]]]]
    }
    assert open_store(tmp_path).keys() == ["g", "z"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("compression", "hashes"),
    [("none", "sha1,xxh64"), ("zstd", "none"), ("zstd:7", "xxh3_64"), ("gz", "md5"), ("gz:1", "none")],
)
def test_what_mosaicml_streaming_writes_we_read_equal(tmp_path: Path, compression: str, hashes: str) -> None:
    theirs = library("streaming", tmp_path, str(tmp_path / "set"), compression, hashes)
    store = open_store(tmp_path / "set")
    assert len(store) > 2, "the set should have several shards"
    for split, samples in theirs.items():
        mine = [sample for key in store if key.startswith(f"{split}/") for sample in store.get(key)]
        assert len(mine) == len(samples) > 0
        for got, expected in zip(mine, samples, strict=True):
            assert sorted(got) == sorted(expected)
            for name, value in got.items():
                assert through_json(describe(as_library(name, value))) == expected[name], name


def as_library(column: str, value: Any) -> Any:
    """jpeg and png are bytes from shardfs and images from the library."""
    if column in ("jpg", "png"):
        return opened(value)
    return [opened(item) for item in value] if column in ("jpgs", "pngs") else value
