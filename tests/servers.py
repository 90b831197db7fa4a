"""Real servers on loopback for tests: started on a free port, waited for, and ended by their process."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.trees import wait_for

KEY, SECRET = "test-key", "test-secret"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
_SIGNED = f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x"


@dataclass(frozen=True)
class Server:
    """A server that answers at `endpoint`; `environment` is what its clients need."""

    endpoint: str
    pid: int
    environment: dict[str, str] = field(default_factory=dict)
    compares: bool = True
    """Whether it keeps to conditions."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], port: int, **environment: str) -> Iterator[int]:
    """A server's process, from when it answers at `port` to the block's end."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )  # fmt: skip
    try:
        wait_for(lambda: _answers(port) or process.poll() is not None)
        assert process.poll() is None, f"{command[0]} ended at once"
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


@contextlib.contextmanager
def moto_server() -> Iterator[Server]:
    """S3 with ranges and conditions, in memory; it takes any credentials. It has a bucket `bucket`."""
    port = free_port()
    program = Path(sys.executable).with_name("moto_server")
    with running([str(program), "-H", "127.0.0.1", "-p", str(port)], port) as pid:
        made = Server(f"http://127.0.0.1:{port}", pid, CREDENTIALS)
        emptied(made)
        yield made


def emptied(server: Server) -> None:
    """Have a `moto_server` hold an empty bucket `bucket` and nothing else."""
    for path, method in (("/moto-api/reset", "POST"), ("/bucket", "PUT")):
        request = urllib.request.Request(server.endpoint + path, b"", {"Authorization": _SIGNED}, method=method)
        urllib.request.urlopen(request, timeout=20).close()


@contextlib.contextmanager
def directory_server(folder: Path) -> Iterator[Server]:
    """The same over a directory, which is its bucket `bucket`: see tests/moto_directory.py."""
    port = free_port()
    command = [sys.executable, "-m", "tests.moto_directory", str(port), str(folder)]
    with running(command, port, PYTHONPATH=str(Path(__file__).parents[1])) as pid:
        yield Server(f"http://127.0.0.1:{port}", pid, CREDENTIALS)


@contextlib.contextmanager
def rclone_server(folder: Path, *more: str) -> Iterator[Server]:
    """S3 over a directory, whose directories are its buckets. It checks credentials, but ignores conditions and answers
    ranges with status 200. `more` are words for its command line."""
    port = free_port()
    program = Path(sys.executable).with_name("rclone")
    command = [str(program), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}", str(folder)]
    command += more
    # no file of anybody's configuration, and none made
    with running(command, port, RCLONE_CONFIG="/dev/null") as pid:
        yield Server(f"http://127.0.0.1:{port}", pid, CREDENTIALS, compares=False)


@contextlib.contextmanager
def nginx_server(folder: Path, state: Path, more: str = "") -> Iterator[Server]:
    """A plain web server over a directory, with ranges and ETags and nothing that lists. `more` are settings of it."""
    port = free_port()
    state.mkdir(parents=True, exist_ok=True)
    (state / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {state}/pid; error_log {state}/error;\n"
        f"{'user root;' if os.geteuid() == 0 else ''}\n"
        "events { worker_connections 256; }\n"
        f"http {{ access_log {state}/access; client_body_temp_path {state}/body; proxy_temp_path {state}/proxy;\n"
        f"fastcgi_temp_path {state}/fastcgi; uwsgi_temp_path {state}/uwsgi; scgi_temp_path {state}/scgi;\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{ root {folder}; {more} }} }} }}\n"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    with running([program, "-c", str(state / "nginx.conf"), "-p", str(state)], port) as pid:
        yield Server(f"http://127.0.0.1:{port}", pid)


@contextlib.contextmanager
def ftp_server(folder: Path) -> Iterator[Server]:
    """FTP over a directory, for anybody."""
    port = free_port()
    program = Path(sys.executable).with_name("rclone")
    command = [str(program), "serve", "ftp", "--addr", f"127.0.0.1:{port}", "--dir-cache-time", "1ms", str(folder)]
    with running(command, port, RCLONE_CONFIG="/dev/null") as pid:
        yield Server(f"ftp://127.0.0.1:{port}", pid)
