"""Data sets of MosaicML Streaming on a real mount: what is there, what is damaged, and what is said of what cannot be
read."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from shardfs import open_store
from tests.conformance.trees import fails, wait_for

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

Mounted = Callable[..., AbstractContextManager[Path]]

FORMS = [("mds", "br:4"), ("json", "snappy"), ("csv", "bz2"), ("tsv", "gz"), ("mds", "zstd"), ("json", "none")]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A data set whose shards have all formats and compressions, three samples each."""
    root = tmp_path / "set"
    for at, (form, compression) in enumerate(FORMS):
        store = open_store(root, driver="streaming", format=form, compression=compression)
        store.set([sample(3 * at + number) for number in range(3)], f"shard.{at:05d}")
    return root


def sample(at: int) -> dict[str, Any]:
    return {"n": at, "t": f"täxt {at}", "x": at / 4}


def test_shards_of_all_formats_and_compressions_beside_one_another(mixed: Path, mounted: Mounted) -> None:
    before = {path: path.read_bytes() for path in mixed.iterdir()}
    with mounted(mixed) as path:
        assert sorted(os.listdir(path)) == [f"shard.{at:05d}" for at in range(len(FORMS))]
        found = sorted(path.glob("*/*"))
        assert [file.name for file in found] == [f"{at:06d}.json" for at in range(3 * len(FORMS))]
        for at, file in enumerate(found):
            assert json.loads(file.read_bytes()) == sample(at)
            assert file.stat().st_size == len(file.read_bytes())
        raw = path / ".shardfs/raw"
        assert sorted(os.listdir(raw)) == ["shard.00000", "shard.00004"], "rows of text are two objects each"
        assert (raw / "shard.00000").read_bytes() == before[mixed / "shard.00000.mds.br"]
        assert (raw / "shard.00004").read_bytes() == before[mixed / "shard.00004.mds.zstd"]
        lines = [json.loads(line) for line in (path / ".shardfs/index/shard.00001.jsonl").read_text().splitlines()]
        assert lines == [{"sample": f"{at:06d}", "light": sample(at)} for at in range(3, 6)]
    assert {path: path.read_bytes() for path in mixed.iterdir()} == before


def test_damage_in_either_file_is_eio_for_its_key_alone(mixed: Path, mounted: Mounted, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for name in ("shard.00001.json.meta.snappy", "shard.00002.csv.bz2", "shard.00005.json.meta"):
        os.truncate(mixed / name, (mixed / name).stat().st_size - 1)
    with mounted(mixed, "--log", str(log), "--no-index") as path:
        for at in (1, 2, 5):
            with fails(errno.EIO):
                os.listdir(path / f"shard.{at:05d}")
        for at in (0, 3, 4):
            assert len(os.listdir(path / f"shard.{at:05d}")) == 3
    said = log.read_text()
    for name in ("shard.00001.json.meta.snappy", "shard.00002.csv.bz2", "shard.00005.json.meta"):
        assert said.count(f"{name} has ") == 1


def test_a_missing_package_is_told_in_the_log_and_the_rest_works(mixed: Path, mounted: Mounted, tmp_path: Path) -> None:
    stubs, log = tmp_path / "stubs", tmp_path / "log"
    stubs.mkdir()
    for name in ("brotli", "cramjam"):
        (stubs / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    paths = os.pathsep.join([str(stubs), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    with mounted(mixed, "--log", str(log), "--no-index", PYTHONPATH=paths.rstrip(os.pathsep)) as path:
        for at in range(len(FORMS)):
            if at < 2:
                with fails(errno.EIO):
                    os.listdir(path / f"shard.{at:05d}")
            else:
                assert len(os.listdir(path / f"shard.{at:05d}")) == 3
        wait_for(lambda: log.read_text().count("pip install 'shardfs[codecs]'") >= 4)
    lines = log.read_text().splitlines()
    for codec, package in (("br", "brotli"), ("snappy", "cramjam")):
        text = f"{codec} needs the package {package}: pip install 'shardfs[codecs]'"
        assert sum(f"can be listed, but not read: {text}" in line for line in lines) == 1


def test_shards_that_come_with_a_problem_are_told_when_they_come(mixed: Path, mounted: Mounted, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with mounted(mixed, "--log", str(log)) as path:
        assert log.read_text() == ""
        index = json.loads((mixed / "index.json").read_bytes())
        for number in range(2):
            (mixed / f"more{number}").mkdir()
            (mixed / f"more{number}" / "index.json").write_text("{" if number else json.dumps(index))
        wait_for(lambda: "more0" in os.listdir(path) and "more1/index.json: no JSON" in log.read_text())
        for _ in range(2):  # and not again
            (mixed / "more0" / "other").mkdir(exist_ok=True)
            os.listdir(path)
        assert log.read_text().count("more1/index.json: no JSON") == 1


@pytest.mark.parametrize("form", ["json", "csv", "tsv"])
def test_rows_can_be_changed_and_added(form: str, mounted: Mounted, tmp_path: Path) -> None:
    root = tmp_path / "set"
    store = open_store(root, driver="streaming", format=form, compression="zstd")
    for at in range(2):
        store.set([sample(3 * at + number) for number in range(3)], f"shard.{at:05d}")
    with mounted(root, "--rw") as path:
        changed = sample(1) | {"t": "changed"}
        (path / "shard.00000" / "000001.json").write_text(json.dumps(changed))
        (path / "shard.00001" / "000006.json").write_text(json.dumps(sample(6)))
        for key in ("shard.00000", "shard.00001"):
            sync(path / key)
        with pytest.raises(PermissionError):
            (path / "shard.00000" / "000003.json").write_text(json.dumps(sample(3)))
        (path / "shard.00001" / "000005.json").write_text(json.dumps(sample(5) | {"n": "no number"}))
        with pytest.raises(OSError, match="Invalid argument"):
            sync(path / "shard.00001")
        (path / "shard.00001" / "000005.json").write_text(json.dumps(sample(5)))
    store = open_store(root)
    assert [row for key in store for row in store.get(key)] == [sample(0), changed, *map(sample, range(2, 7))]
    ending = f".{form}.meta.zstd"
    assert sorted(file.name for file in root.glob(f"*.r2{ending}")) == [f"shard.0000{at}.r2{ending}" for at in range(2)]


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
