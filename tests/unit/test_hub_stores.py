"""`hf://`: a data set of the Hugging Face Hub, read through huggingface_hub from a server on loopback in its place.

The server answers the few questions that are asked, as the Hub's interface has them (huggingface_hub 2.4). The Hub
itself was never asked. huggingface_hub is none of `shardfs[fsspec]`'s, but of `dev`: where it is not, this is skipped.
"""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from shardfs import open_store
from shardfs.errors import StaleShardError, StorageError
from shardfs.storage.urls import open_remote

pytest.importorskip("huggingface_hub")
pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("default")]

REPOSITORY = "datasets/some/set"
COMMIT = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Repository `some/set`, whose only revision is `main`: the files of a directory."""

    root: Path
    asked: list[str]
    token: str | None = None
    busy = 0

    def log_message(self, *words: Any) -> None:
        """Nothing: `asked` has it."""

    def _entry(self, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.root))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "1" * 40, "size": 0}
        data = path.read_bytes()
        return {"type": "file", "path": name, "oid": hashlib.sha1(data).hexdigest(), "size": len(data)}

    def _say(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _say_json(self, said: Any) -> None:
        self._say(200, json.dumps(said).encode(), Content_Type="application/json")

    def _refuses(self) -> bool:
        self.asked.append(f"{self.command} {self.path}")
        if type(self).busy > 0:
            type(self).busy -= 1
            self._say(503, b"busy")
            return True
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            self._say(401, b"who are you", X_Error_Code="GatedRepo")
            return True
        return False

    def do_GET(self) -> None:
        if self._refuses():
            return
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        if path in (f"/api/{REPOSITORY}", f"/api/{REPOSITORY}/revision/main"):
            self._say_json({"id": "some/set", "sha": COMMIT, "siblings": [], "private": False, "tags": []})
        elif path.startswith(f"/api/{REPOSITORY}/tree/main"):
            folder = self.root / path.removeprefix(f"/api/{REPOSITORY}/tree/main").strip("/")
            deep = parse_qs(parts.query).get("recursive") == ["True"] or "recursive=true" in parts.query.lower()
            if not folder.is_dir():
                self._say(404, b"{}", X_Error_Code="EntryNotFound")
            else:
                self._say_json(
                    [self._entry(found) for found in sorted(folder.rglob("*") if deep else folder.iterdir())]
                )
        elif path.startswith(f"/{REPOSITORY}/resolve/main/"):
            self._file(self.root / path.removeprefix(f"/{REPOSITORY}/resolve/main/"))
        else:
            self._say(404, b"{}", X_Error_Code="RepoNotFound")

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._say(404, b"", X_Error_Code="EntryNotFound")
            return
        data = path.read_bytes()
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = data[int(first) : int(last) + 1]
            told = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self._say(206, part, Content_Range=told)
        else:
            self._say(200, data)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length).decode()
        if self._refuses():
            return
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        found = [self.root / name for name in ([asked] if isinstance(asked, str) else asked)]
        self._say_json([self._entry(path) for path in found if path.exists()])


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, type[Hub]]]:
    class Handler(Hub):
        root = tmp_path / "hub"
        asked: list[str] = []  # noqa: RUF012

    Handler.root.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("cache", [0, 100_000_000])
def test_a_data_set_of_the_hub_is_read(hub: tuple[str, type[Hub]], cache: int, tmp_path: Path) -> None:
    endpoint, handler = hub
    here = open_store(handler.root / "mds", "streaming")
    for number, key in enumerate(("train/shard.0", "train/shard.1")):
        here.set([{"x": bytes([number, at]) * 1000, "n": at} for at in range(3)], key)
    where: dict[str, Any] = {"cache_dir": tmp_path / "cache", "cache_size": cache, "min_free": 0}
    for url in (f"hf://{REPOSITORY}/mds", f"hf://{REPOSITORY}@main/mds"):
        far = open_store(url, endpoint=endpoint, **where)
        assert far.keys() == here.keys()
        assert [list(far.get(key)) for key in far] == [list(here.get(key)) for key in here]


def test_parts_and_versions(hub: tuple[str, type[Hub]]) -> None:
    endpoint, handler = hub
    data = bytes(range(256)) * 40_000
    (handler.root / "big").write_bytes(data)
    storage = open_remote(f"hf://{REPOSITORY}", endpoint=endpoint)
    (listed,) = storage.list(("big",))
    assert listed == storage.stat("big")
    with storage.open("big", listed.version) as reader:
        assert reader.read_at(5_000_003, 100) == data[5_000_003:5_000_103]
        (handler.root / "big").write_bytes(data[::-1])
        with pytest.raises(StaleShardError):
            reader.read_at(7, 10)
    with storage.open("big") as reader:
        assert reader.tail(5) == data[::-1][-5:]
    with pytest.raises(StorageError) as raised:
        storage.stat("no")
    assert raised.value.errno == errno.ENOENT
    (handler.root / "new").write_bytes(b"later")
    assert storage.read("new", 10) == b"later"


def test_a_token_is_sent_and_a_hub_that_is_busy_asked_again(
    hub: tuple[str, type[Hub]], monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, handler = hub
    (handler.root / "k").write_bytes(b"bytes")
    handler.token = "hf_s3cr3t"
    with pytest.raises(StorageError) as raised:
        open_remote(f"hf://{REPOSITORY}", endpoint=endpoint, anonymous=True, deadline=5).stat("k")
    assert raised.value.errno in (errno.EACCES, errno.ENOENT)
    storage = open_remote(f"hf://{REPOSITORY}", endpoint=endpoint, storage_options={"token": handler.token})
    assert storage.read("k", 10) == b"bytes"
    handler.busy = 2
    assert storage.read("k", 10) == b"bytes"
