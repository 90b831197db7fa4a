"""The driver of docs/FORMATS.md, installed as a package of its own, on real mounts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conformance import example_package
from tests.conformance.driver_suite import equal
from tests.conformance.npz_suite import NpzSuite
from tests.conformance.trees import MountedTree, Tree
from tests.mount.conftest import REPOSITORY

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_package.install(tmp_path_factory.mktemp("site"))


class TestNpzMounted(NpzSuite):
    @pytest.fixture(autouse=True)
    def _mounts(
        self,
        mounted: Callable[..., AbstractContextManager[Path]],
        installed: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.mounted = mounted
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed), str(REPOSITORY)]))
        monkeypatch.syspath_prepend(str(installed))

    @contextlib.contextmanager
    def serve(self, store: Path, *, budget: int = 64 << 20, rw: bool = False) -> Iterator[Any]:
        with self.mounted(store, "--driver", "npz", "--memory", str(budget), *(["--rw"] if rw else [])) as path:
            tree: Tree = MountedTree(path)
            yield tree

    def test_editing_and_adding_with_ordinary_tools(self, tmp_path: Path) -> None:
        self.put(tmp_path, "k", self.samples(3))
        expected = self.samples(3)
        with self.serve(tmp_path, rw=True) as tree:
            label = tree.path / "k/000001.json"
            label.write_text(json.dumps({**json.loads(label.read_text()), "label": 5}))
            subprocess.run(["sync", tree.path / "k"], check=True, timeout=30)
            (tree.path / "new").mkdir()
            for at in range(2):
                np.save(tree.path / f"new/{at}.x.npy", np.full((2, 2), at))
                (tree.path / f"new/{at}.json").write_text(json.dumps({"y": at / 2}))
            subprocess.run(["sync", tree.path / "new"], check=True, timeout=30)
            assert sorted(tree.names("new")) == [f"{at}.{name}" for at in range(2) for name in ("json", "x.npy")]
            assert json.loads(tree.read("k/000001.json"))["label"] == 5
        expected[1]["label"] = 5
        with np.load(tmp_path / "k.npz", allow_pickle=False) as stored:
            for name in stored.files:
                assert equal(stored[name], np.stack([sample[name] for sample in expected])), name
        with np.load(tmp_path / "new.npz", allow_pickle=False) as stored:
            assert stored["y"].tolist() == [0, 0.5]
            assert stored["x"].tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]

    def test_what_no_array_holds_is_refused_at_the_sync(self, tmp_path: Path) -> None:
        with self.serve(tmp_path, rw=True) as tree:
            (tree.path / "new").mkdir()
            (tree.path / "new/1.jpg").write_bytes(b"\xff\xd8\xff bytes")
            done = subprocess.run(["sync", tree.path / "new"], capture_output=True, text=True, timeout=30)
            assert done.returncode != 0
            assert "Invalid argument" in done.stderr
            (tree.path / "new/1.jpg").unlink()
        assert list(tmp_path.iterdir()) == []
