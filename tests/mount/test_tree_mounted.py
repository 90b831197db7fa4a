"""The tree suite on a real mount."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.tree_suite import TreeSuite
from tests.conformance.trees import MountedTree, Tree

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]


class TestTreeMounted(TreeSuite):
    @pytest.fixture(autouse=True)
    def _mounts(self, mounted: Callable[..., AbstractContextManager[Path]]) -> None:
        self.mounted = mounted

    @contextlib.contextmanager
    def serve(
        self, store: Path | str, *, driver: str | None = None, budget: int = 64 << 20, arrays: str = "png"
    ) -> Iterator[Any]:
        driven = ["--driver", driver] if driver else []
        arrays, _, text = arrays.partition("+")
        shown = ["--arrays", arrays, "--text", "files" if text else "json"]
        with self.mounted(store, "--memory", str(budget), *shown, *driven) as path:
            tree: Tree = MountedTree(path)
            yield tree
