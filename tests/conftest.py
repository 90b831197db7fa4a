"""What all tests share: nothing they do lands in the caches of the person who runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where indexes of these tests' stores go."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path))
        patch.setenv("XDG_STATE_HOME", str(path / "state"))
        patch.setenv("XDG_CONFIG_HOME", str(path / "config"))
        yield path
