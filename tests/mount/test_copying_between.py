"""`cp -r` out of a mount of one system into a mount of another: the same files in the same order, and what changed is
told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs import open_store
from tests.conformance.tree_suite import case_paths
from tests.mount.conftest import mounting, run

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

JPEG = b"\xff\xd8\xff\xe0jpeg"
Files = list[list[tuple[str, Any]]]


def shown(folder: Path) -> Files:
    """Each sample's files, in the order of the samples; a .json by what it says."""
    found: dict[str, list[tuple[str, Any]]] = {}
    for path in sorted(folder.iterdir()):
        stem, _, suffix = path.name.partition(".")
        data = path.read_bytes()
        found.setdefault(stem, []).append((suffix, json.loads(data) if suffix == "json" else data))
    return list(found.values())


def copied(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True, timeout=50)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def empty_store(path: Path, driver: str, **options: Any) -> Path:
    open_store(path, driver, **options).set([{"n": 0}], "there")
    return path


def light() -> list[dict[str, Any]]:
    return [
        {
            "n": at,
            "x": at / 3,
            "big": 2**60 + at,
            "none": None,
            "text": f"\u00e4 {at}",
            "list": [at, [at]],
            "d": {"k": 1},
        }
        for at in range(12)
    ]


def heavy() -> list[dict[str, Any]]:
    return [
        {**sample, "pic": JPEG + bytes([at]), "a": np.arange(at + 1, dtype=np.float32), "t": bytes([at]) * at}
        for at, sample in enumerate(light())
    ]


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_mds_into_msgpack(state: Path, compression: str) -> None:
    source = case_paths("streaming", "mds_zstd_hash_splits")[0]
    target = empty_store(state / "store", "squirrel", compression=compression)
    words = ("--rw", "--write-back", "off", "--driver", "squirrel")
    with mounting(source) as one, mounting(target, *words) as two:
        keys = [path for path in sorted(one.rglob("*")) if path.is_dir() and any(p.is_file() for p in path.iterdir())]
        assert len(keys) > 1
        for number, key in enumerate(keys):
            copied(key, two / f"k{number}")
        before = [shown(key) for key in keys]
        assert [shown(two / f"k{number}") for number in range(len(keys))] == before
        assert run("commit", two).returncode == 0
        assert [shown(two / f"k{number}") for number in range(len(keys))] == before
    assert open_store(target).keys() == [*(f"k{number}" for number in range(len(keys))), "there"]


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_msgpack_into_msgpack(state: Path, compression: str) -> None:
    open_store(state / "source", "squirrel").set(heavy(), "all")
    target = empty_store(state / "store", "squirrel", compression=compression)
    with mounting(state / "source") as one, mounting(target, "--rw", "--write-back", "off") as two:
        copied(one / "all", two / "all")
        assert run("commit", two, "all").returncode == 0
        assert shown(two / "all") == shown(one / "all")
    assert [sample["n"] for sample in open_store(target).get("all")] == list(range(12))


def test_msgpack_and_mds_into_json_lines(state: Path) -> None:
    open_store(state / "source", "squirrel").set(light(), "all")
    target = empty_store(state / "store", "squirrel-jsonl")
    words = ("--rw", "--write-back", "off", "--driver", "squirrel-jsonl")
    with mounting(state / "source") as one, mounting(target, *words) as two:
        copied(one / "all", two / "all")
        assert run("commit", two, "all").returncode == 0
        assert shown(two / "all") == shown(one / "all")
    assert list(open_store(target, "squirrel-jsonl").get("all")) == light()


def test_json_lines_into_msgpack_and_what_it_has_no_word_for_is_told(state: Path) -> None:
    open_store(state / "source", "squirrel-jsonl").set(light(), "all")
    target = empty_store(state / "store", "squirrel")
    with (
        mounting(state / "source", "--driver", "squirrel-jsonl") as one,
        mounting(target, "--rw", "--write-back", "off") as two,
    ):
        copied(one / "all", two / "all")
        done = run("commit", two)
        assert done.returncode == 0
        said = done.stderr.splitlines()
        assert said[0] == "shardfs: what the store has no word for, and what it has become:"
        assert [line.split() for line in said[1:]] == [
            ["key", "field", "was", "is", "samples"],
            ["all", "list", "list", "tuple", "12"],
        ]
        wanted = [{"field": "list", "was": "list", "is": "tuple", "samples": 12}]
        assert json.loads(run("status", two, "--json").stdout)["changed"] == {"all": wanted}
        assert "all: field list: list is tuple in the store (12 samples)" in (two.parent / "log").read_text()
        assert shown(two / "all") == shown(one / "all")
        (two / "all/000000.json").write_text('{"n": 7}')
        said_as_json = json.loads(run("commit", two, "--json").stdout)
        assert [one["key"] for one in said_as_json["stored"]] == ["all"]
        assert "changed" not in said_as_json["stored"][0], "an edit takes the types that are stored"


def test_bytes_into_json_lines_are_refused_with_sample_field_and_reason(state: Path) -> None:
    open_store(state / "source", "squirrel").set(heavy(), "all")
    target = empty_store(state / "store", "squirrel-jsonl")
    words = ("--rw", "--write-back", "off", "--driver", "squirrel-jsonl")
    with mounting(state / "source") as one, mounting(target, *words) as two:
        copied(one / "all", two / "all")
        done = run("commit", two, "all")
        assert done.returncode == 1
        assert "000000" in done.stderr
        assert "'pic'" in done.stderr
        assert "bytes" in done.stderr
        assert shown(two / "all") == shown(one / "all"), "it stays staged"
        subprocess.run(["rm", "-r", two / "all"], check=True, timeout=30)
