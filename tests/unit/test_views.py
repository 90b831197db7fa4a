"""All views without a kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardfs.light_where import Where
from tests.conformance.trees import InProcessTree
from tests.conformance.view_suite import VIEWS, ViewSuite, check_view, plain_files, write_mixed


def test_views_show_what_a_filter_lets_through(tmp_path: Path) -> None:
    write_mixed(tmp_path)
    with InProcessTree(tmp_path, where=Where("label = 'cat' or label = 7")) as tree:
        plain = plain_files(tree)
        for view in VIEWS:
            check_view(tree, view, plain)
        assert tree.names(".shardfs/views/by:label") == ["7", "cat"]
        assert len(tree.names(".shardfs/views/flat")) == len(plain) == 6


class TestViewsInProcess(ViewSuite):
    @contextlib.contextmanager
    def serve(
        self, store: Path | str, *, view: str = "", heavy: str | None = None, **options: Any
    ) -> Iterator[InProcessTree]:
        with InProcessTree(store, **options) as tree:
            tree.vfs.views.show(view, heavy)
            yield tree
