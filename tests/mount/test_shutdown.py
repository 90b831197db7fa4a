"""SIGTERM: what can be stored is stored within --shutdown-timeout, the rest stays staged, and the exit status tells.

A store that hangs while something is stored is in test_crash.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from shardfs import daemon
from shardfs.opening import open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import SECONDS, SlowStore, is_mounted, processes, run
from tests.mount.crashing import Victim, stored, victim
from tests.mount.test_crash import OFF, hanging_seal

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]


ALL = pytest.mark.skipif(os.environ.get("SHARDFS_ALL_FEATURES") != "1", reason="SHARDFS_ALL_FEATURES=1 runs it")


def a_store(path: Path) -> Path:
    open_store(path, driver="squirrel").set([{"label": 1}], "a")
    return path


def write(mount: Victim, key: str, text: str) -> None:
    (mount.path / key).mkdir()
    (mount.path / key / "000000.json").write_text(text)


def terminate(mount: Victim) -> None:
    os.kill(mount.pid, signal.SIGTERM)


def assert_nothing_hangs(path: Path) -> None:
    """The mount has gone, and nobody waits for it in a system call that no signal ends."""
    assert not is_mounted(path)
    for pid in processes(path):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state != "D", pid


def test_what_cannot_be_stored_stays_and_the_exit_status_tells(tmp_path: Path) -> None:
    """One key is stored, one cannot be; the next mount has that, and with it mended ends with success. With a timeout
    of 0 nothing is stored, and nothing is lost."""
    with victim(a_store(tmp_path / "store"), tmp_path, *OFF) as mount:
        mount.start()
        write(mount, "good", '{"label": 7}')
        write(mount, "bad", "{")
        terminate(mount)
        assert mount.wait() == 1
        assert "shardfs: not stored: bad: 000000.json: " in mount.said
        assert mount.said.endswith("; it stays staged for the next mount\n")
        assert_nothing_hangs(mount.path)
        assert mount.staged() == {"bad": "staged"}
        mount.start("--shutdown-timeout", "0", *OFF)
        (mount.path / "bad/000000.json").write_text('{"label": 8}')
        terminate(mount)
        assert mount.wait() == 1
        assert "bad is not stored, and stays staged" in mount.said
        assert mount.staged() == {"bad": "staged"}
        mount.start("-o", "shutdown_timeout=20", *OFF)
        assert (mount.path / "bad/000000.json").read_text() == '{"label": 8}'
        record = daemon.find(str(mount.path))
        assert record is not None
        assert record.patience == 20
        mount.end()
    assert stored(mount.store, "good") == [{"label": 7}]
    assert stored(mount.store, "bad") == [{"label": 8}]


def test_the_timeout_bounds_a_store_that_hangs(slow_store: SlowStore, tmp_path: Path) -> None:
    """A first key is stored; the second one hangs, and is staged when the process ends a second later."""
    began: list[float] = []

    def end(mount: Victim) -> None:
        began.append(time.monotonic())
        terminate(mount)

    with hanging_seal(slow_store, tmp_path, "", end, "--shutdown-timeout", "1") as mount:
        wait_for(mount.gone)
        assert 1 <= time.monotonic() - began[0] < 8
        assert_nothing_hangs(mount.path)


@pytest.mark.parametrize("writable", [pytest.param(False, id="ro", marks=ALL), pytest.param(True, id="rw")])
def test_a_second_signal_leaves_readers_of_a_store_that_hangs(
    slow_store: SlowStore, tmp_path: Path, writable: bool
) -> None:
    """Who reads what does not come is let go with an error at once, and nobody is left in D."""
    open_store(slow_store.source, driver="squirrel").set([{"label": 1, "x": bytes(100_000)}], "a")
    with victim(slow_store.path, tmp_path, *OFF) as mount:
        if writable:
            mount.start("--driver", "squirrel", *OFF)
            write(mount, "new", '{"label": 7}')
        else:
            mount.start("--driver", "squirrel", rw=False)
        slow_store.hold("a.gz")
        reader = subprocess.Popen(["cat", mount.path / "a/000000.json"], stderr=subprocess.PIPE)
        try:
            wait_for(lambda: slow_store.asked("a.gz") > 0)
            began = time.monotonic()
            terminate(mount)
            wait_for(lambda: "ending on SIGTERM" in mount.said)
            if writable:  # what was written is not in the way of what hangs
                wait_for(lambda: stored(slow_store.source, "new") is not None)
            terminate(mount)
            assert reader.wait(SECONDS) == 1
            wait_for(mount.gone)
            assert time.monotonic() - began < 8
            assert_nothing_hangs(mount.path)
        finally:
            reader.kill()
            reader.communicate()
            slow_store.go_on("a.gz")
        assert mount.wait() in (0, 1)
        assert run("umount", mount.path).returncode == 4, "nothing is mounted"
