"""A mount under a service manager: what it is told when, what it hears from a loop that hangs, stop, crash and restart.

The manager is played by a socket and by signals; the environment is what systemd gives a `Type=notify` service.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfs.opening import open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import SECONDS, is_mounted, mount_point, run, shardfs

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

END = 15.0

WATCHDOG = 0.6
"""Seconds: what the manager wants."""


class Manager:
    """One end of a notify socket, and what came there: each line with its time."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[tuple[float, str]] = []
        self._end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._end.bind("\0" + address[1:] if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while said := self._end.recv(4096):
            now = time.monotonic()
            self.heard += [(now, line) for line in said.decode().split("\n")]

    def close(self) -> None:
        self._end.shutdown(socket.SHUT_RDWR)
        self._thread.join(END)
        self._end.close()

    def lines(self, name: str) -> list[str]:
        return [line for _, line in list(self.heard) if line.startswith(f"{name}=")]

    def times(self, name: str) -> list[float]:
        return [at for at, line in list(self.heard) if line.startswith(f"{name}=")]

    def start(self, store: Path, path: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
        """`ExecStart=`; without waiting for anything."""
        given = {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": f"{WATCHDOG * 1e6:.0f}", **environment}
        command = shardfs("mount", "-f", store, path, *words)
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **given}
        )


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.close()


@contextlib.contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """What is left of a service at the end of a test is killed."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=END)


def test_ready_when_it_answers_with_signs_of_life_and_its_state(tiny_store: Path, manager: Manager) -> None:
    """One mount from its start to its stop: READY is not said before `ls` works, signs of life come while nobody asks
    anything and while many do, none from a loop that stands still, and STOPPING at the end."""
    with mount_point() as path:
        process = manager.start(tiny_store, path)
        with ended(process):
            wait_for(lambda: bool(manager.lines("READY")) or process.poll() is not None)
            assert sorted(os.listdir(path)) == ["a", "b", "deep"]
            wait_for(lambda: bool(manager.lines("STATUS")))
            assert re.fullmatch(r"STATUS=3 keys, 0 bytes of [0-9.]+ [GM]iB loaded", manager.lines("STATUS")[0])
            assert_lives(manager)
            with reading(path) as rounds:
                assert_lives(manager)
                assert rounds
            os.kill(process.pid, signal.SIGSTOP)
            wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            before = len(manager.times("WATCHDOG"))
            threading.Event().wait(3 * WATCHDOG)
            assert len(manager.times("WATCHDOG")) <= before + 1, "somebody else gives the signs of life"
            os.kill(process.pid, signal.SIGCONT)
            assert_lives(manager)
            assert manager.lines("STOPPING") == []
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(END) == 0
            assert manager.lines("READY") == ["READY=1"]
            assert manager.lines("STOPPING") == ["STOPPING=1"]
            assert int(manager.lines("EXTEND_TIMEOUT_USEC")[0].partition("=")[2]) >= 30e6
            assert not is_mounted(path)


def assert_lives(manager: Manager) -> None:
    """Signs of life come from now on, each in time."""
    before = len(manager.times("WATCHDOG"))
    wait_for(lambda: len(manager.times("WATCHDOG")) >= before + 3)
    times = manager.times("WATCHDOG")[before:]
    gaps = [late - early for early, late in itertools.pairwise(times)]
    assert max(gaps) < WATCHDOG, gaps


@contextlib.contextmanager
def reading(path: Path) -> Iterator[list[int]]:
    """Four threads that ask the daemon as fast as they can."""
    rounds: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            descriptor = os.open(path / "a/000001.x.bin", os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            rounds.append(len(os.read(descriptor, 200)))
            os.close(descriptor)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(rounds) > 100)
        yield rounds
    finally:
        stop.set()
        for thread in threads:
            thread.join(END)


def test_a_service_of_a_writable_mount_stops_crashes_and_restarts(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ExecStop=` stores first. After a kill the mount point answers with an error, and never as an empty directory;
    the next start mends it and has what was staged, and so does umount."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store = tmp_path / "store"
    open_store(store, driver="squirrel").set([{"label": 1}], "a")
    words = ("--rw", "--write-back", "off")
    with mount_point(made=True) as path:
        first = manager.start(store, path, *words)
        with ended(first):
            wait_for(lambda: len(manager.lines("READY")) == 1)
            (path / "new").mkdir()
            (path / "new/000000.json").write_text('{"label": 7}')
            first.kill()
            first.wait(END)
        for _ in range(2):
            with pytest.raises(OSError, check=lambda error: error.errno in (errno.ENOTCONN, errno.ECONNABORTED)):
                os.listdir(path)
        second = manager.start(store, path, *words)
        with ended(second):
            wait_for(lambda: len(manager.lines("READY")) == 2)
            assert (path / "new/000000.json").read_text() == '{"label": 7}'
            wait_for(lambda: any(line.endswith(", 1 staged") for line in manager.lines("STATUS")))
            stopped = run("umount", path)
            assert (stopped.returncode, stopped.stderr) == (0, "")
            assert second.wait(END) == 0
            assert "STATUS=storing what was written" in manager.lines("STATUS")
        assert list(open_store(store).get("new")) == [{"label": 7}]
        third = manager.start(store, path, *words)
        with ended(third):
            wait_for(lambda: len(manager.lines("READY")) == 3)
            third.kill()
            third.wait(END)
        mended = run("umount", path)
        assert (mended.returncode, mended.stderr) == (0, "")
        assert os.listdir(path) == []


def test_a_failure_to_start_is_not_ready(tmp_path: Path, manager: Manager) -> None:
    with mount_point() as path:
        process = manager.start(tmp_path / "nowhere", path)
        _, said = process.communicate(timeout=END)
        assert process.returncode == 3
        assert said.startswith("shardfs: no store at")
        assert manager.heard == []


def test_a_mount_in_the_background_says_nothing(tiny_store: Path, manager: Manager) -> None:
    """The manager watches the process that it started, and that has ended by then."""
    with mount_point() as path:
        assert run("mount", tiny_store, path, NOTIFY_SOCKET=manager.address).returncode == 0
        assert subprocess.run(shardfs("umount", path), timeout=SECONDS).returncode == 0
        assert manager.heard == []
