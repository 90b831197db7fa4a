"""Streaming and WebDataset stores in an S3 server on real mounts, with a cache on disk and without: the trees that they
have on this machine, and how much is asked of the server for them."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest

from shardfs import cli
from shardfs.drivers.base import StoresObjects
from shardfs.opening import open_store
from shardfs.storage.urls import open_remote
from tests.conformance.tree_suite import GOLDEN, STREAMING, case_paths, golden_lines
from tests.conformance.trees import MountedTree, wait_for
from tests.conformance.webdataset_suite import SAMPLES, key_files, members, written
from tests.servers import Server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

Mounted = Callable[..., AbstractContextManager[Path]]
_numbers = itertools.count()


@pytest.fixture(params=["100M", "0"])
def words(request: pytest.FixtureRequest, moto: Server, tmp_path: Path) -> list[str]:
    """Where the store is, and how large the cache on disk."""
    place = ["--endpoint", moto.endpoint, "--cache-dir", str(tmp_path / "cache"), "--min-free", "0"]
    return [*place, "--cache-size", request.param]


def uploaded(folder: Path, moto: Server) -> str:
    """The URL of a store that holds the files of a directory."""
    url = f"s3://bucket/{next(_numbers)}"
    far = open_remote(url, endpoint=moto.endpoint)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            obstore.put(far.store, str(path.relative_to(folder)), path)
    return url


@pytest.mark.parametrize(("words", "case"), list(zip(itertools.cycle(["0", "100M"]), STREAMING)), indirect=["words"])
def test_a_data_set_far_away_has_the_tree_it_has_here(
    case: str, words: list[str], moto: Server, mounted: Mounted
) -> None:
    url = uploaded(Path(case_paths("streaming", case)[1]), moto)
    with mounted(url, *words) as path:
        lines = golden_lines(MountedTree(path))
    assert "".join(f"{line}\n" for line in lines) == (GOLDEN / f"streaming-{case}.txt").read_text()


def test_several_indexes_and_a_merged_one(words: list[str], moto: Server, mounted: Mounted, tmp_path: Path) -> None:
    for split in ("train", "val/deep"):
        store = open_store(tmp_path / "set", "streaming")
        store.driver.beginning = True  # type: ignore[attr-defined]
        for number in range(2):
            store.set([{"n": 10 * number + at} for at in range(3)], f"{split}/shard.{number}")
    url = uploaded(tmp_path / "set", moto)
    with mounted(url, *words) as path:
        assert sorted(os.listdir(path)) == ["train", "val"]
        assert sorted(os.listdir(path / "val/deep")) == ["shard.0", "shard.1"]
        assert json.loads((path / "val/deep/shard.1/000005.json").read_text()) == {"n": 12}


def test_tars_far_away_are_their_members(words: list[str], moto: Server, mounted: Mounted, tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.tar", SAMPLES)
    for ending in (".tar", ".tar.gz", ".tgz", ".tar.zst"):
        written(tmp_path / f"store/a/shard{ending.replace('.', '-')}{ending}", SAMPLES)
    url = uploaded(tmp_path / "store", moto)
    expected = {name.replace("/", "%2F"): data for name, data in members(plain).items()}
    with mounted(url, *words) as path:
        tree = MountedTree(path)
        names = tree.names("a")
        assert len(names) == 4
        for name in names:
            assert key_files(tree, f"a/{name}") == expected


def test_any_part_of_raw_shards_is_the_same_bytes(
    words: list[str], moto: Server, mounted: Mounted, tmp_path: Path
) -> None:
    """A remount knows the tables, and reads samples where they lie."""
    rng = random.Random(5)
    content = [rng.randbytes(size) for size in (1, 131_073, 3_000_000, 9_000_000)]
    open_store(tmp_path / "set", "streaming").set([{"b": data} for data in content], "shard.0")
    written(tmp_path / "tars/shard.tar", [{"__key__": f"{at}", "b": data} for at, data in enumerate(content)])
    for folder, names in (("set", "shard.0/{:06d}.b.bin"), ("tars", "shard/{}.b")):
        url = uploaded(tmp_path / folder, moto)
        for memory in ("64M", "1M"):
            with mounted(url, *words, "--memory", memory) as path:
                for _ in range(4):
                    at = rng.randrange(len(content))
                    start, size = rng.randrange(len(content[at])), rng.choice((1, 4096, 500_000))
                    with open(path / names.format(at), "rb") as file:
                        assert os.pread(file.fileno(), size, start) == content[at][start : start + size]


def test_a_data_set_that_is_rewritten_is_shown_and_open_files_keep_their_bytes(
    moto: Server, mounted: Mounted, words: list[str], tmp_path: Path
) -> None:
    url = f"s3://bucket/{next(_numbers)}"
    store = open_store(url, "streaming", endpoint=moto.endpoint, cache_size=0)
    store.driver.beginning = True  # type: ignore[attr-defined]
    store.set([{"a": b"old" * 400_000}], "k")
    with mounted(url, *words, "--refresh", "0.3", "--memory", "1M") as path:
        name = path / "k/000000.a.bin"
        with open(name, "rb", buffering=0) as file:
            assert os.pread(file.fileno(), 3, 0) == b"old"
            store.set([{"a": b"new" * 400_000}], "k")
            store.set([{"a": b"more"}], "l")
            wait_for(lambda: sorted(os.listdir(path)) == ["k", "l"])
            wait_for(lambda: name.read_bytes() == b"new" * 400_000)
            assert os.pread(file.fileno(), 3, 600_000) == b"old"  # its file is still there


def test_what_is_asked_for_to_look_at_a_data_set(moto: Server, tmp_path: Path) -> None:
    """Names that no ending tells are no requests of their own; a load is a request for its shard."""
    store = open_store(tmp_path / "set", "streaming", compression="zstd")
    for number in range(20):
        store.set([{"n": number}], f"part{number:02d}")
    index = json.loads((tmp_path / "set/index.json").read_text())
    for shard in index["shards"]:
        for part in ("raw_data", "zip_data"):
            old = shard[part]["basename"]
            shard[part]["basename"] = old.replace(".mds", "-mds").replace(".zstd", "-z")
            if (tmp_path / "set" / old).exists():
                os.rename(tmp_path / "set" / old, tmp_path / "set" / shard[part]["basename"])
    (tmp_path / "set/index.json").write_text(json.dumps(index))
    far = open_store(uploaded(tmp_path / "set", moto), endpoint=moto.endpoint, cache_size=0)
    driver = far.driver
    assert isinstance(driver, StoresObjects)
    requests: Any = driver.storage.requests  # type: ignore[attr-defined]
    before = requests.asked
    entries = driver.entries()  # type: ignore[attr-defined]
    assert len(entries) == 20
    assert requests.asked - before <= 3  # the listing, and the index: its size, and its bytes
    before = requests.asked
    assert all(driver.estimate(entry) == entry.raw_bytes for entry in entries)  # type: ignore[attr-defined]
    assert [name for entry in entries for name, _ in driver.objects(entry)] == [
        f"part{at:02d}-mds-z" for at in range(20)
    ]
    assert requests.asked == before
    driver.load(entries[3], lambda held: None)  # type: ignore[attr-defined]
    assert requests.asked == before + 1


def test_warm_fetches_all_files_of_a_data_set(
    moto: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], mounted: Mounted
) -> None:
    for form in ("mds", "json"):
        open_store(tmp_path / form, "streaming", format=form, compression="gz").set(
            [{"n": at, "t": f"text {at}"} for at in range(50)], "shard.0"
        )
        url = uploaded(tmp_path / form, moto)
        cache = ["--endpoint", moto.endpoint, "--cache-dir", str(tmp_path / "cache"), "--min-free", "0"]
        assert cli.main(["warm", url, *cache, "--json"]) == 0
        capsys.readouterr()
        assert cli.main(["cache", "info", "--cache-dir", str(tmp_path / "cache"), "--json"]) == 0
        stores = json.loads(capsys.readouterr().out)["stores"]
        assert [one["files"] for one in stores if one["store"].startswith(f"{url} at ")] == [1 if form == "mds" else 2]


def test_an_array_far_away(moto: Server, mounted: Mounted, words: list[str], tmp_path: Path) -> None:
    value = np.arange(12, dtype="<f4").reshape(3, 4)
    open_store(tmp_path / "set", "streaming").set([{"x": value}], "k")
    with mounted(uploaded(tmp_path / "set", moto), *words) as path:
        assert np.array_equal(np.load(path / "k/000000.x.npy"), value)
