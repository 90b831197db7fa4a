"""What tests of writable mounts of stores in S3 servers share."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shardfs.storage.urls import open_remote
from tests.mount.conftest import mounting, sync
from tests.servers import Server

SYSTEMS = ("squirrel", "streaming", "webdataset")


def far(server: Server) -> dict[str, Any]:
    """How `open_store` reaches a server, without a cache."""
    return {"endpoint": server.endpoint, "cache_size": 0}


def words(server: Server, *more: str) -> list[str]:
    """What a mount is asked for that stores only what it is asked to."""
    alone = [] if server.compares else ["--single-writer"]
    return ["--rw", "--endpoint", server.endpoint, "--write-back", "off", *alone, *more]


def objects(server: Server, url: str) -> list[str]:
    return [listed.name for listed in open_remote(url, endpoint=server.endpoint).list(("",))]


@contextlib.contextmanager
def hosts(server: Server, url: str, count: int, folder: Path, *more: str) -> Iterator[list[Path]]:
    """Mounts of one store, each as on a machine of its own. They look for change often."""
    with contextlib.ExitStack() as stack:
        paths = []
        for number in range(count):
            home = {name: str(folder / f"{number}-{name}") for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
            asked = words(server, "--refresh", "0.2", *more)
            paths.append(stack.enter_context(mounting(url, *asked, **home)))
        yield paths


def text(path: Path) -> str:
    """What is in a file; nothing where it cannot be read just now."""
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def stored(key: Path) -> None:
    """Have a key stored, waiting for files that are just being closed."""
    while True:
        try:
            return sync(key)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
