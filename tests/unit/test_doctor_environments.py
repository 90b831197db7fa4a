"""`shardfs doctor` in environments that are broken in earnest: each is built, and the real program runs in it.

`test_doctor` has more of them: fusermount3 that is missing or has lost its right, disks that are full, no home,
packages that are missing, a clock that is wrong, a shard larger than the memory, a mount whose process has died.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from shardfs import config
from shardfs.examining import FAILURE, NOTE, OK, WARNING
from tests.fault_proxy import fault_proxy
from tests.servers import CREDENTIALS, SECRET, rclone_server

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(90)

Examined = dict[str, dict[str, Any]]
"""Check -> its worst finding."""


def doctor(*words: str | Path, shell: str = "", user: str = "", **environment: str) -> tuple[int, Examined]:
    """The real program, behind a `shell` script that makes its environment, in a mount namespace of its own."""
    command = [sys.executable, "-m", "shardfs", "doctor", "--json", *map(str, words)]
    if shell:
        script = f"set -e; {shell}; exec {user} {shlex.join(command)}"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if not done.stdout and ("unshare" in done.stderr or "setpriv" in done.stderr):
        pytest.skip(f"no such environment can be made here: {done.stderr.strip()}")
    assert done.stderr == ""
    found: Examined = {}
    for one in json.loads(done.stdout):
        order = (OK, NOTE, WARNING, FAILURE)
        assert (one["fix"] is None) == (one["level"] == OK), one
        if one["check"] not in found or order.index(one["level"]) > order.index(found[one["check"]]["level"]):
            found[one["check"]] = one
    return done.returncode, found


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="root only makes such an environment")


@root_only
@pytest.mark.parametrize(
    ("shell", "user", "told", "fix"),
    [
        ("mount -t tmpfs none /dev", "", "is missing", "modprobe fuse"),
        ("mount --bind /dev/null /dev/fuse", "", "something else", "mknod /dev/fuse c 10 229"),
        ("true", "setpriv --bounding-set=-sys_admin", "CAP_SYS_ADMIN", "--cap-add SYS_ADMIN"),
        (
            "mount -t tmpfs none /dev && mknod -m 600 /dev/fuse c 10 229",
            "setpriv --bounding-set=-all --reuid=65534 --clear-groups",
            "Permission denied",
            "chmod 666 /dev/fuse",
        ),
    ],
    ids=["no device", "another device", "no right to mount", "a device for root only"],
)
def test_fuse(shell: str, user: str, told: str, fix: str) -> None:
    home = {"HOME": "/nonexistent", "XDG_CONFIG_HOME": ""}  # the tests' own are closed to other users
    status, found = doctor(shell=shell, user=user, PYTHONDONTWRITEBYTECODE="1", **home)
    assert (status, found["fuse"]["level"]) == (5, FAILURE)
    assert told in found["fuse"]["text"]
    assert fix in found["fuse"]["fix"]


@root_only
def test_files_of_the_system_that_do_not_speak_of_mounts(tmp_path: Path) -> None:
    """Both in a copy of /etc that the program alone sees."""
    etc = tmp_path / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore=lambda folder, names: [] if folder == "/etc" else names)
    (etc / "fuse.conf").write_text("# user_allow_other\nmount_max = 10\n")
    (etc / "updatedb.conf").write_text('PRUNEFS = "nfs tmpfs"\n')
    status, found = doctor(shell=f"mount --bind {etc} /etc")
    assert (found["allow_other"]["level"], found["updatedb"]["level"]) == (NOTE, WARNING)
    assert status in (1, 5)
    assert found["allow_other"]["fix"] == "echo user_allow_other >> /etc/fuse.conf as root"
    fixes = [found[check]["fix"].removesuffix(" as root") for check in ("allow_other", "updatedb")]
    _, found = doctor(shell=f"mount --bind {etc} /etc; {'; '.join(fixes)}")
    assert (found["allow_other"]["level"], found["updatedb"]["level"]) == (OK, OK)


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[str]:
    """A shell command that joins a new cgroup with a limit of memory."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    first = {controllers: path for _, controllers, path in lines}
    path, file, joining = f"/sys/fs/cgroup/memory{first.get('memory', '')}", "memory.limit_in_bytes", "tasks"
    if "memory" not in first:
        path, file, joining = f"/sys/fs/cgroup{first.get('', '')}", "memory.max", "cgroup.procs"
    group = Path(path) / f"shardfs-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / file).write_text(str(limit))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no cgroup can be made here: {error}")
    try:
        yield f"echo $$ > {group / joining}"
    finally:
        group.rmdir()


@root_only
def test_a_cgroup_that_leaves_little_memory() -> None:
    limit = config.MEMORY_LOW // 2
    with memory_group(limit) as join:
        status, found = doctor(shell=join)
    assert found["memory"]["level"] == WARNING
    assert found["memory"]["text"].startswith(f"{limit >> 20} MiB, of ")
    assert "--memory" in found["memory"]["fix"]
    assert status in (1, 5)


def test_few_descriptors() -> None:
    few = config.DESCRIPTORS - 1
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n {few}; exec {sys.executable} -m shardfs doctor --json"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    (found,) = [one for one in json.loads(done.stdout) if one["check"] == "descriptors"]
    assert (found["level"], f"{few} files only" in found["text"]) == (WARNING, True)
    assert "ulimit -Hn" in found["fix"]


@root_only
def test_a_store_that_cannot_be_written_to(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    _tar(store / "a.tar", 10)
    status, found = doctor(store, "--rw", shell=f"mount --bind {store} {store}; mount -o remount,ro,bind {store}")
    assert (status, found["writing"]["level"]) == (3, FAILURE)
    assert "read-only" in found["writing"]["text"]
    assert doctor(store, "--rw")[1]["writing"]["level"] == OK


# --- stores far away --------------------------------------------------------------------------------------------------


def _tar(path: Path, size: int) -> None:
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("000.bin")
        member.size = size
        tar.addfile(member, io.BytesIO(os.urandom(size)))


@contextlib.contextmanager
def web_server(folder: Path, ahead: float) -> Iterator[str]:
    """A server whose clock is wrong by so many seconds."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(folder))

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate(time.time() + ahead if timestamp is None else timestamp, usegmt=True)

        def log_message(self, format: str, *words: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("ahead", "way"), [(1_000.0, "ahead of"), (-1_000.0, "behind")])
def test_a_server_whose_clock_is_wrong(tmp_path: Path, ahead: float, way: str) -> None:
    _tar(tmp_path / "a.tar", 100)
    with web_server(tmp_path, ahead) as url:
        _, found = doctor(f"{url}/a.tar")
    assert found["store clock"]["level"] == WARNING
    assert way in found["store clock"]["text"]
    assert "set-ntp true" in found["store clock"]["fix"]
    assert (found["store"]["level"], found["throughput"]["level"]) == (OK, OK)


@pytest.mark.parametrize(("method", "seconds", "check"), [("HEAD", 0.25, "latency"), ("GET", 0.5, "throughput")])
def test_a_line_that_is_slow(tmp_path: Path, method: str, seconds: float, check: str) -> None:
    _tar(tmp_path / "a.tar", 300)
    with web_server(tmp_path, 0) as url, fault_proxy(url) as proxy:
        proxy.fail("latency", seconds=seconds, only=lambda asked, target: asked == method)
        _, found = doctor(f"{proxy.endpoint}/a.tar", XDG_CACHE_HOME=str(tmp_path / "cache"))
    levels = {name: found[name]["level"] for name in ("latency", "throughput", "store clock")}
    assert levels == {"latency": OK, "throughput": OK, "store clock": OK} | {check: WARNING}
    assert found[check]["fix"].startswith("fetch ahead: shardfs warm http://127.0.0.1")


def test_a_server_that_ignores_conditions_and_one_that_refuses_credentials(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    _tar(tmp_path / "bucket/a.tar", 100)
    environment = {**CREDENTIALS, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with rclone_server(tmp_path) as server:
        words = ("s3://bucket", "--endpoint", server.endpoint)
        status, found = doctor(*words, "--rw", **environment)
        assert (found["conditions"]["level"], found["credentials"]["level"]) == (WARNING, OK)
        assert "--single-writer" in found["conditions"]["fix"]
        assert status in (1, 5), [one for one in found.values() if one["level"] == FAILURE]
        assert [path.name for path in (tmp_path / "bucket").iterdir()] == ["a.tar"], "it has left something there"
        assert doctor(*words, **environment)[1]["conditions"]["level"] == NOTE

        status, found = doctor(*words, **{**environment, "AWS_SECRET_ACCESS_KEY": f"not {SECRET}"})
        assert (status, found["credentials"]["level"]) == (3, FAILURE)
        assert "export AWS_ACCESS_KEY_ID" in found["credentials"]["fix"]
        assert "store" not in found
