"""The tree of a WebDataset store without a kernel."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.conformance.trees import InProcessTree, Tree
from tests.conformance.webdataset_suite import WebDatasetSuite


class TestWebDatasetInProcess(WebDatasetSuite):
    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(store, **options)
