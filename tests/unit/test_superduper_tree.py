"""The suite of Superduper's tree without a kernel."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tests.conformance.superduper_suite import SuperduperSuite
from tests.conformance.trees import InProcessTree, Tree


class TestSuperduperInProcess(SuperduperSuite):
    def serve(self, store: Path | str, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(store, **options)
