"""An S3 server (moto: ranges, conditions) whose bucket `bucket` is a directory: what is in it can be read, written and
removed as files, too, by whoever looks at the directory.

    python -m tests.moto_directory PORT DIRECTORY

Before each request the objects that it is about are made what the files are, and after it the files what the objects
are. One request at a time. Sizes, MD5s as ETags, and times are the files'; times in whole seconds, as S3 has them.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import run_simple

BUCKET = "bucket"
State = tuple[int, int, int]


class Directory:
    """The files below `root` and moto's objects of the same names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._backend: Any = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._backend.create_bucket(BUCKET, "us-east-1")
        self._known: dict[str, State] = {}
        """What each file was when its object was made of it, or it of its object."""

    @property
    def _objects(self) -> Any:
        return self._backend.buckets[BUCKET].keys

    def read_in(self, name: str) -> None:
        """Have the object be what the file is."""
        path = self.root / name
        try:
            state = _state(path)
        except OSError:  # also for names that no file can have
            state = None
        if state is None:
            self._known.pop(name, None)
            if name in self._objects:
                self._backend.delete_object(BUCKET, name)
        elif self._known.get(name) != state:
            made = self._backend.put_object(BUCKET, name, path.read_bytes())
            made.last_modified = datetime.fromtimestamp(int(path.stat().st_mtime), UTC).replace(tzinfo=None)
            self._known[name] = state

    def read_in_below(self, prefix: str) -> None:
        for name in [name for name in self._known if name.startswith(prefix)]:
            self.read_in(name)
        above = self.root / prefix.rpartition("/")[0]
        for folder, below, names in os.walk(above):
            # a mount of this server, of which it would ask itself
            below[:] = [name for name in below if not os.path.ismount(os.path.join(folder, name))]
            for name in names:
                self.read_in(str((Path(folder) / name).relative_to(self.root)))

    def write_out(self, name: str) -> None:
        """Have the file be what the object is."""
        path = self.root / name
        if name not in self._objects:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            self._known.pop(name, None)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(".shardfs-tmp-moto")  # no library takes it for a shard
        part.write_bytes(self._objects[name].value)
        os.rename(part, path)
        state = _state(path)
        assert state is not None
        self._known[name] = state

    def write_out_all(self) -> None:
        for name in [name for name in self._known if name not in self._objects]:
            self.write_out(name)


def _state(path: Path) -> State | None:
    """What tells one content of a file from another; None for what is none of ours."""
    if path.is_symlink() or not path.is_file():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class Application:
    """moto's, between looks at the directory."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._moto: Any = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, query = environ["REQUEST_METHOD"], parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        # the path as it was sent: in PATH_INFO bytes are latin-1, and an escaped slash is none any more
        path = unquote(environ["REQUEST_URI"].partition("?")[0])
        name = path.removeprefix(f"/{BUCKET}").removeprefix("/")
        with self._lock:
            if name:
                self._directory.read_in(name)
            elif method == "GET":
                self._directory.read_in_below(query.get("prefix", [""])[0])
            answer = list(self._moto(environ, start_response))
            if name and method in ("PUT", "POST", "DELETE"):
                self._directory.write_out(name)
            elif method == "POST":
                self._directory.write_out_all()
            return answer


def main(port: int, root: Path) -> None:
    run_simple("127.0.0.1", port, Application(Directory(root)), threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
