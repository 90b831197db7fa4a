"""A plugin of pytest that has tests of stores on this machine run on an S3 server: `-p tests.far_plugin`, with
SHARDFS_TESTS_FAR=moto or =rclone in the environment.

The server's bucket is the directory that holds the tests' own: a store at `<tmp_path>/store` is
`s3://bucket/.../store` for who mounts it or opens it in this process, and remains a directory for who looks what is in
it, or writes there as another program would. So no test has to know. `tests/mount/test_local_suites_far.py` says which
suites run so, and what is left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import shardfs
from shardfs import opening
from shardfs.drivers.webdataset import ENDINGS
from shardfs.store import Store
from tests.servers import Server, directory_server, rclone_server

HOW = os.environ.get("SHARDFS_TESTS_FAR", "")
SLOWER = 5
"""So many times as long may a test take as on this machine's disk: a request to these servers takes milliseconds."""
REFRESH = "0.2"
"""Seconds: a test that waits for a change waits for one on this machine."""


_DATA = Path(__file__).parent / "data"
"""Stores of the real libraries, which are served as copies."""
_PLACES = ("--log", "--cache-dir", "--snapshot")
"""Options whose value is a path that means no store."""


class Far:
    """The server, once there is one."""

    def __init__(self) -> None:
        self.root: Path | None = None
        self.bucket = "bucket"
        self.server: Server | None = None
        self.open_here = opening.open_store

    def url(self, given: object) -> str | None:
        """The URL of a store, for what is the path of a directory below `root`, or of one that is not there yet."""
        text = os.fspath(given) if isinstance(given, str | os.PathLike) else ""
        if self.root is None or "://" in text or "/shardfs-test-" in text:
            return None  # the last are mount points
        if os.path.isfile(text) and not text.endswith(tuple(ENDINGS)):
            return None
        if text.startswith(f"{_DATA}/") and os.path.isdir(text):
            copy = self.root / "data" / os.path.relpath(text, _DATA)
            if not copy.exists():
                shutil.copytree(text, copy)
            text = str(copy)
        if not text.startswith(f"{self.root}/"):
            return None
        return f"s3://{self.bucket}/{os.path.relpath(text, self.root)}"

    def words(self, words: Sequence[object]) -> list[object]:
        """A command line with its store far away, where that is one of them."""
        at = next((at for at in range(1, len(words)) if words[at - 1] not in _PLACES and self.url(words[at])), None)
        if at is None or words[0] not in ("mount", "staging"):
            return list(words)
        assert self.server is not None
        if words[0] == "staging":  # where only one store of that URL is staged for, its endpoint need not be said
            more = ["--endpoint", self.server.endpoint] if words[1] == "recover" and "--to" not in words else []
            more += ["--single-writer"] if more and not self.server.compares else []
            return [*words[:at], self.url(words[at]), *words[at + 1 :], *more]
        more = ["--endpoint", self.server.endpoint, "--min-free", "0"]
        if "--refresh" not in words:
            more += ["--refresh", REFRESH]
        if not self.server.compares and any(str(word).startswith(("--rw", "rw")) for word in words):
            more += ["--single-writer"]
        return [*words[:at], self.url(words[at]), *words[at + 1 :], *more]

    def open_store(self, url_or_path: Any, driver: str | None = None, **options: Any) -> Store:
        url = self.url(url_or_path)
        if url is None:
            return self.open_here(url_or_path, driver, **options)
        assert self.server is not None
        return self.open_here(url, driver, endpoint=self.server.endpoint, cache_size=0, **options)


FAR = Far()


def exclusions() -> dict[str, set[str]]:
    """`file.py::test`, or `file.py::Class::test` -> the servers that it is left out with."""
    found: dict[str, set[str]] = {}
    for line in (Path(__file__).parent / "far_exclusions.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            servers, _, name = line.partition(" ")
            found[name.strip()] = {"moto", "rclone"} if servers == "both" else {servers}
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left_out = exclusions()
    for item in items:
        name = f"{item.path.name}::{item.nodeid.partition('::')[2]}"
        if HOW in left_out.get(name.partition("[")[0], ()) or HOW in left_out.get(name, ()):
            item.add_marker(pytest.mark.skip(reason="tests/far_exclusions.txt says why"))
        own = item.get_closest_marker("timeout")
        seconds = own.args[0] if own is not None and own.args else float(item.config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(SLOWER * seconds), append=False)


def pytest_configure(config: pytest.Config) -> None:
    # before any module of tests takes it from there
    shardfs.open_store = opening.open_store = FAR.open_store  # type: ignore[assignment]


@pytest.fixture(scope="session", autouse=True)
def _server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    base = tmp_path_factory.getbasetemp().resolve()
    with contextlib.ExitStack() as stack:
        if HOW == "moto":
            FAR.server = stack.enter_context(directory_server(base))
        else:
            # what it knows of directories it would believe for minutes
            FAR.server = stack.enter_context(rclone_server(base.parent, "--dir-cache-time", "1ms"))
            FAR.bucket = base.name
        FAR.root = base
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in FAR.server.environment.items():
            patch.setenv(name, value)
        (base / "tmp").mkdir()
        patch.setattr(tempfile, "tempdir", str(base / "tmp"))
        yield
        FAR.root = None
