"""Real mounts for tests: each is made by the real command line, and nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import gzip
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import msgpack
import pytest

from shardfs import daemon
from tests.conformance.trees import wait_for
from tests.far_plugin import FAR

if TYPE_CHECKING:
    from tests.mount.semantics import World
    from tests.servers import Server

REPOSITORY = Path(__file__).parents[2]
SECONDS = 60


@pytest.fixture(scope="session", autouse=True)
def _fuse_is_here() -> None:
    if os.environ.get("SHARDFS_NO_FUSE") == "1":
        pytest.skip("SHARDFS_NO_FUSE=1")
    if not os.path.exists("/dev/fuse"):
        pytest.fail("/dev/fuse is missing: tests of real mounts need it; SHARDFS_NO_FUSE=1 skips them")


@pytest.fixture(scope="session", autouse=True)
def runtime_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the daemons of these tests note their numbers, apart from those of real mounts."""
    path = tmp_path_factory.mktemp("runtime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(path))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.delenv("NOTIFY_SOCKET", raising=False)
        yield path


def shardfs(*words: str | Path) -> list[str]:
    """The command line of the real program."""
    return [sys.executable, "-m", "shardfs", *map(str, FAR.words(words))]


def sync(folder: Path) -> None:
    """fsync of a directory, as sync(1) does, with the error as it is: has a key stored."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def run(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the real program to its end."""
    return subprocess.run(
        shardfs(*words),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def processes(path: Path) -> list[int]:
    """All processes that have this path in their command line, without corpses."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if os.fsencode(path) in words:  # a corpse has no command line
                    found.append(int(folder.name))
    return found


def is_mounted(path: Path) -> bool:
    return daemon.mounted_at(str(path)) is not None


def wipe(path: Path) -> None:
    """Take away whatever a failed test has left at a mount point. Only what has this path, and only by number."""
    with contextlib.suppress(Exception):
        while is_mounted(path):
            daemon.unmount(str(path), lazy=True)
    for pid in processes(path):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def mount_point(made: bool = False) -> Iterator[Path]:
    """A path to mount on (`made`: that exists), with all traces of it gone at the end."""
    with tempfile.TemporaryDirectory(prefix="shardfs-test-", ignore_cleanup_errors=True) as folder:
        path = Path(folder).resolve() / "mnt"
        if made:
            path.mkdir()
        try:
            yield path
        finally:
            wipe(path)


@contextlib.contextmanager
def mounting(store: Path | str, *words: str, **environment: str) -> Iterator[Path]:
    """A mount in the background. Its end is checked: exit status, mount table, process, directory, log."""
    with mount_point() as path:
        log = path.parent / "log"
        done = run("mount", store, path, *words, *(() if "--log" in words else ("--log", str(log))), **environment)
        assert done.returncode == 0, done.stderr
        record = daemon.find(str(path))
        assert record is not None, "no record of the daemon"
        yield path
        said = log.read_text() if log.exists() else ""
        assert "unexpected" not in said, said
        ended = run("umount", path)
        if "in a mount namespace of its own" in ended.stderr and not daemon.wait_until_gone(record, 10):
            assert not is_mounted(path)
            return  # somebody on this machine has got a copy of the mount, and may keep it
        told = "" if "in a mount namespace of its own" in ended.stderr else ended.stderr
        assert (ended.returncode, told) == (0, ""), f"{ended.stderr}{said}"
        assert not is_mounted(path)
        assert not path.exists(), "the mount point that mount made is still there"
        assert daemon.find(str(path)) is None
        assert processes(path) == [], "the daemon still runs"


@pytest.fixture(scope="session")
def mounted() -> Callable[..., AbstractContextManager[Path]]:
    """`with mounted(store, *words_for_shardfs_mount, **environment) as path`."""
    return mounting


class SlowStore:
    """A store on a file system of ours (`slow_store.py`), whose files can be made to wait or to fail.

    `source` is the plain directory behind it, `path` where a mount finds the store.
    """

    def __init__(self, source: Path, path: Path, control: Path) -> None:
        self.source = source
        self.path = path
        self._control = control
        self._process: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Mount it, again after `kill`."""
        program = str(Path(__file__).with_name("slow_store.py"))
        command = [sys.executable, program, self.source, self.path, self._control]
        process = self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_for(lambda: is_mounted(self.path) or process.poll() is not None)
        assert process.poll() is None

    def kill(self) -> None:
        """End it as a crash would, and leave its mount point empty. Waits that were under way end with an error."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if is_mounted(self.path):
            daemon.unmount(str(self.path), lazy=True)

    def hold(self, *names: str, above: int = 0) -> None:
        """Let every READ of more than `above` bytes of these files wait from now on."""
        for name in names:
            new = self._control / name
            new.write_text(str(above))
            new.rename(self._control / "hold" / name)

    def go_on(self, *names: str) -> None:
        for name in names:
            (self._control / "hold" / name).unlink()

    def fail(self, *names: str) -> None:
        """Let every READ of these files end with EIO from now on."""
        for name in names:
            (self._control / "fail" / name).touch()

    def recover(self, *names: str) -> None:
        for name in names:
            (self._control / "fail" / name).unlink()

    def syncs(self) -> int:
        """FSYNCs so far, answered or not."""
        return sum(line == "fsync" for line in self._lines())

    def waiting(self) -> int:
        """LOOKUPs and GETATTRs that had to wait so far."""
        return sum(line == "stat" for line in self._lines())

    def asked(self, name: str) -> int:
        """READs of a file so far, answered or not."""
        return sum(line.startswith(f"read {name} ") for line in self._lines())

    def bytes_asked(self, name: str) -> int:
        """Bytes of a file that READs asked for so far: how often it was read, in a way."""
        size = (self.source / name).stat().st_size
        spans = [line.split()[2:] for line in self._lines() if line.startswith(f"read {name} ")]
        return sum(max(0, min(int(count), size - int(offset))) for offset, count in spans)

    def _lines(self) -> list[str]:
        return (self._control / "log").read_text().splitlines()


@pytest.fixture
def slow_store(tmp_path: Path) -> Iterator[SlowStore]:
    """An empty slow store; write shards into its `source`."""
    source, control = tmp_path / "slow-source", tmp_path / "slow-control"
    for folder in (source, control / "hold", control / "fail"):
        folder.mkdir(parents=True)
    with mount_point(made=True) as path:
        store = SlowStore(source, path, control)
        # whoever waits for it in a system call hears of no time limit: the end of the store frees them all
        limit = threading.Timer(SECONDS - 10, store.kill)
        limit.daemon = True
        limit.start()
        try:
            store.serve()
            yield store
        finally:
            limit.cancel()
            store.kill()


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Squirrel store of three keys with three samples of two files each."""
    path = tmp_path_factory.mktemp("tiny") / "store"
    (path / "deep").mkdir(parents=True)
    for key in ("a", "b", "deep/c"):
        with gzip.open(path / f"{key}.gz", "wb") as file:
            for number in range(3):
                file.write(msgpack.packb({"x": bytes([number]) * 100, "label": number, "key": key}))
    return path


# --- for the tests of writing to stores far away ----------------------------------------------------------------------


@pytest.fixture
def far_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moto: Server) -> None:
    """A machine of the test's own, with the credentials of the server."""
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """A store of the test's own, in any server."""
    return "s3://bucket/" + "".join(c if c.isalnum() else "-" for c in request.node.name)


# --- for the tests of docs/SEMANTICS.md -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all tests that change nothing but keys of their own."""
    from tests.mount.semantics import a_world

    with a_world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="session")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The same over another store, with all that is allowed."""
    from tests.mount.semantics import a_world

    with a_world(tmp_path_factory.mktemp("free"), "--allow-delete", "--allow-overwrite") as made:
        yield made


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store for a mount of the test's own."""
    from tests.mount.semantics import a_store

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return a_store(tmp_path / "store")
