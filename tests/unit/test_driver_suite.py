"""The suite for any driver, without a kernel: for the one of docs/FORMATS.md and for those that shardfs brings."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from shardfs import cli
from shardfs.drivers.base import Value, Verbatim
from shardfs.errors import BadSettingError, DamagedShardError
from shardfs.model import Key
from shardfs.opening import open_store
from tests.conformance import example_package, webdataset_suite
from tests.conformance.driver_suite import DriverSuite, equal
from tests.conformance.npz_suite import NpzSuite
from tests.conformance.tree_suite import array
from tests.conformance.trees import InProcessTree, Tree


class TestSquirrel(DriverSuite):
    driver = "squirrel"

    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(store, driver=self.driver, **options)

    def samples(self, count: int, seed: int = 0, size: int = 500) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [
            {"x": rng.random(size // 8), "data": rng.bytes(300), "label": at, "t": f"té {at}"} for at in range(count)
        ]

    def put(self, store: Path, key: str, samples: list[dict[str, Any]]) -> Path:
        path = store / f"{key}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        packed = [msgpack.packb(sample, default=array) for sample in samples]
        path.write_bytes(gzip.compress(b"".join(packed)))
        return path


class TestWebDataset(DriverSuite):
    driver = "webdataset"

    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(store, driver=self.driver, **options)

    def samples(self, count: int, seed: int = 0, size: int = 500) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [{"__key__": f"s{at}", "bin": rng.bytes(size), "cls": str(at).encode()} for at in range(count)]

    def stems(self, samples: list[dict[str, Any]], first: int = 0) -> list[str]:
        return [sample["__key__"] for sample in samples]

    def read_back(self, stem: str, files: dict[str, bytes]) -> Any:
        return {"__key__": stem, **files}

    def put(self, store: Path, key: str, samples: list[dict[str, Any]]) -> Path:
        return webdataset_suite.written(store / f"{key}.tar", samples)


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    target = example_package.install(tmp_path_factory.mktemp("site"))
    monkeypatch.syspath_prepend(str(target))
    return target


@pytest.mark.usefixtures("installed")
class TestNpz(NpzSuite):
    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(store, driver=self.driver, **options)

    def test_edited_samples_among_those_that_stay(self, tmp_path: Path) -> None:
        """What a seal gives: records as they are stored, and new values beside them."""
        driver = open_store(tmp_path, "npz").driver
        entry = driver.write_records(Key("k"), (Value(sample, "s") for sample in self.samples(3)), base=None)
        shard = driver.load(entry, lambda _: None)
        stored = [Verbatim(shard.raw[record.start : record.end]) for record in shard.records()]
        edited = {**self.samples(3)[1], "label": 77, "name": "longer than the others"}
        driver.write_records(Key("k"), [stored[0], Value(edited, "000001"), stored[2]], base=entry)
        expected = [self.samples(3)[0], edited, self.samples(3)[2]]
        assert all(map(equal, open_store(tmp_path, "npz").get("k"), expected))

    @pytest.mark.parametrize(
        ("samples", "why"),
        [
            ([{"a": 1}, {"b": 1}], "sample 1 has other fields"),
            ([{}], "sample 0 has other fields than the first one, or none"),
            (["text"], "sample 0 has other fields"),
            ([{"a": b"bytes"}], "sample 0: field a is a bytes"),
            ([{"a": None}], "sample 0: field a is a NoneType"),
            ([{"a": "ends in \0"}], "sample 0: field a is a str"),
            ([{"a": 1}, {"a": 1.5}], "sample 1: field a has another type"),
            ([{"a": np.ones(2)}, {"a": np.ones(3)}], "sample 1: field a has another type or shape"),
        ],
        ids=str,
    )
    def test_what_no_arrays_hold_is_refused(self, samples: list[Any], why: str, tmp_path: Path) -> None:
        with pytest.raises(BadSettingError, match=why):
            open_store(tmp_path, "npz").set(samples, "k")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "arrays",
        [
            {"a": np.ones(2), "b": np.ones(3)},
            {"a": np.array(1.5)},
            {"a": np.array([{"a", "set"}, None])},
        ],
        ids=["lengths", "no rows", "objects"],
    )
    def test_files_that_are_no_rows_are_damaged(self, arrays: dict[str, Any], tmp_path: Path) -> None:
        np.savez(tmp_path / "k.npz", **arrays)
        with pytest.raises(DamagedShardError):
            open_store(tmp_path, "npz").get("k")

    def test_rows_of_nothing(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "none.npz", a=np.ones((0, 3)))
        np.savez(tmp_path / "empty.npz", a=np.ones((2, 0)))
        np.savez(tmp_path / "lone.npz")
        store = open_store(tmp_path, "npz")
        assert [list(store.get(key)) for key in ("none", "lone")] == [[], []]
        assert [sample["a"].shape for sample in store.get("empty")] == [(0,), (0,)]

    def test_the_command_line_knows_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.put(tmp_path / "store", "a/b", self.samples(2))
        assert cli.main(["ls", str(tmp_path / "store"), "a/b", "--driver", "npz"]) == 0
        assert "000001.image.png" in capsys.readouterr().out
        assert cli.main(["info", str(tmp_path / "store"), "--driver", "npz", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["driver"] == "npz"

    def test_converting_from_it_and_to_it(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.put(tmp_path / "store", "k", self.samples(3))
        words = ["convert", "--from-driver", "npz", str(tmp_path / "store"), str(tmp_path / "squirrel")]
        assert cli.main([*words, "--driver", "squirrel"]) == 0
        # a picture is a .png, which is an array again only where a picture of pixels is told from bytes
        assert equal(list(open_store(tmp_path / "squirrel").get("k")), self.samples(3))
        words = ["convert", str(tmp_path / "squirrel"), str(tmp_path / "again"), "--driver", "npz"]
        assert cli.main(words) == 0, capsys.readouterr().err
        assert equal(list(open_store(tmp_path / "again", "npz").get("k")), self.samples(3))


def test_a_driver_that_is_not_installed_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match="no driver 'npz'; known are: mltraq, squirrel,"):
        open_store(tmp_path, "npz")


def test_pip_installs_the_example_without_a_network(tmp_path: Path) -> None:
    """What `example_package.install` makes by hand is what pip makes."""
    shutil.copytree(example_package.EXAMPLE, tmp_path / "source")  # a build writes beside what it builds
    words = ["install", "--no-index", "--no-build-isolation", "--no-deps", "--target", str(tmp_path / "site")]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, str(tmp_path / "source")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    ours = example_package.install(tmp_path / "ours")
    for name in ("npz_driver.py", "shardfs_npz-0.1.0.dist-info/entry_points.txt"):
        assert (tmp_path / "site" / name).read_text().strip() == (ours / name).read_text().strip()
    np.savez(tmp_path / "k.npz", a=np.arange(3))
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(example_package.ROOT)])}
    command = [sys.executable, "-m", "shardfs", "cat", str(tmp_path), "k/000002.json", "--driver", "npz"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})
    assert (done.returncode, done.stdout) == (0, '{"a": 2}\n'), done.stderr
