"""The tree suite without a kernel."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.conformance.tree_suite import TreeSuite
from tests.conformance.trees import InProcessTree, Tree


class TestTreeInProcess(TreeSuite):
    def serve(self, store: Path | str, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(store, **options)
