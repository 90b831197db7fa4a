"""All views without a kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conformance.trees import InProcessTree
from tests.conformance.view_suite import ViewSuite


class TestViewsInProcess(ViewSuite):
    @contextlib.contextmanager
    def serve(
        self, store: Path | str, *, view: str = "", heavy: str | None = None, **options: Any
    ) -> Iterator[InProcessTree]:
        with InProcessTree(store, **options) as tree:
            tree.vfs.views.show(view, heavy)
            yield tree
