"""What all tests share: nothing they do lands in the caches of the person who runs them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.servers import Server


@pytest.fixture(scope="session", autouse=True)
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where indexes of these tests' stores go."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(path))
        patch.setenv("XDG_STATE_HOME", str(path / "state"))
        patch.setenv("XDG_CONFIG_HOME", str(path / "config"))
        yield path


# --- servers ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def moto_process() -> Iterator[Server]:
    """The one S3 server of a run with ranges and conditions: starting one takes a second."""
    from tests.servers import moto_server

    with moto_server() as server:
        yield server


@pytest.fixture(scope="module")
def moto(moto_process: Server) -> Iterator[Server]:
    """That server, with nothing but an empty `bucket`, and its credentials in the environment."""
    from tests.servers import emptied

    emptied(moto_process)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moto_process.environment.items():
            patch.setenv(name, value)
        yield moto_process


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An S3 server that ignores conditions, with an empty `bucket`."""
    from tests.servers import rclone_server

    folder = tmp_path_factory.mktemp("rclone")
    (folder / "bucket").mkdir()
    with rclone_server(folder) as server:
        yield server
