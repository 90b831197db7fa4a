"""The tree suite on a real mount of a store in an S3 server, with a cache on disk and without."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import obstore
import pytest

from shardfs.storage.urls import open_remote
from tests.conformance.tree_suite import TreeSuite
from tests.conformance.trees import MountedTree, Tree
from tests.servers import Server, moto_server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

_numbers = itertools.count()


@pytest.fixture(scope="module")
def moto() -> Iterator[Server]:
    with moto_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


class TestTreeFar(TreeSuite):
    cache = ("--cache-size", "100M")

    @pytest.fixture(autouse=True)
    def _mounts(self, mounted: Callable[..., AbstractContextManager[Path]], moto: Server, tmp_path: Path) -> None:
        self.mounted = mounted
        self.moto = moto
        self.folder = tmp_path

    @contextlib.contextmanager
    def serve(
        self, store: Path, *, driver: str | None = None, budget: int = 64 << 20, arrays: str = "png"
    ) -> Iterator[Any]:
        url = f"s3://bucket/{next(_numbers)}"
        far = open_remote(url, endpoint=self.moto.endpoint)
        for path in sorted(store.rglob("*")):
            if path.is_file() and not path.is_symlink():
                obstore.put(far.store, str(path.relative_to(store)), path)
        arrays, _, text = arrays.partition("+")
        words = ["--arrays", arrays, "--text", "files" if text else "json", "--memory", str(budget), *self.cache]
        driven = ["--driver", driver] if driver else []
        place = ["--endpoint", self.moto.endpoint, "--cache-dir", str(self.folder / "cache"), "--min-free", "0"]
        with self.mounted(url, *words, *driven, *place) as path:
            tree: Tree = MountedTree(path)
            yield tree


class TestTreeFarUncached(TestTreeFar):
    cache = ("--cache-size", "0")
