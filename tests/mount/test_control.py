"""Commands to running mounts: what they answer, and that whoever else uses the socket does not disturb them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from pathlib import Path

import pytest

from shardfs import config, control, daemon
from shardfs.errors import StorageError, UnknownCommandError
from tests.conformance.trees import wait_for
from tests.mount.conftest import mount_point, mounting, run

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]


def socket_path(mountpoint: Path) -> Path:
    (found,) = [
        path
        for folder in daemon.runtime_directories(os.geteuid())
        if (path := folder / (daemon.file_name(str(mountpoint)) + control.ENDING)).exists()
    ]
    return found


def answers(mountpoint: Path) -> bool:
    with contextlib.suppress(StorageError):  # too many clients, as long as it has not noticed that some have gone
        return control.ask(mountpoint, "ping")["pid"] > 0
    return False


def test_a_mount_tells_how_it_is_doing(tiny_store: Path) -> None:
    with mounting(tiny_store) as path:
        assert len(list((path / "a").iterdir())) == 6
        assert (path / "a/000001.x.bin").read_bytes() == b"\1" * 100
        done = run("status", path, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        said = json.loads(done.stdout)
        record = daemon.find(str(path))
        assert record is not None
        assert (said["mountpoint"], said["health"], said["mode"]) == (str(path), "serving", "ro")
        assert (said["store"], said["driver"], said["pid"]) == (str(tiny_store), "squirrel", record.pid)
        assert said["keys"] == 3
        assert said["cache"]["loads"] >= 1
        assert 0 < said["cache"]["used"] <= said["cache"]["budget"]
        assert said["staged"] is None
        shown = run("status", path)
        assert shown.returncode == 0
        assert shown.stdout.startswith(f"{path}: serving, ro, squirrel, {tiny_store}\n  process {record.pid}, for ")


def test_all_mounts_are_listed_with_those_that_are_silent_or_dead(tiny_store: Path) -> None:
    with mounting(tiny_store) as one, mounting(tiny_store) as two, mount_point(made=True) as three:
        assert run("mount", tiny_store, three).returncode == 0
        dead, silent = daemon.find(str(three)), daemon.find(str(two))
        assert dead is not None
        assert silent is not None
        os.kill(dead.pid, signal.SIGKILL)
        assert daemon.wait_until_gone(dead)
        os.kill(silent.pid, signal.SIGSTOP)
        try:
            done = run("status", "--json")
        finally:
            os.kill(silent.pid, signal.SIGCONT)
        assert done.returncode == 1
        health = {found["mountpoint"]: found["health"] for found in json.loads(done.stdout)}
        assert [health[str(path)] for path in (one, two, three)] == ["serving", "silent", "dead"]
        assert run("umount", three).returncode == 0
        assert str(three) not in run("status").stdout


def test_a_mount_whose_socket_is_elsewhere_is_not_called_dead(tiny_store: Path, tmp_path: Path) -> None:
    with mounting(tiny_store) as path:
        (tmp_path / "elsewhere").mkdir()
        done = run("status", path, "--json", XDG_RUNTIME_DIR=str(tmp_path / "elsewhere"))
        assert done.returncode == 1
        assert json.loads(done.stdout)["health"] == "unreachable"


def test_a_detached_mount_is_listed_until_it_ends(tiny_store: Path) -> None:
    with mount_point() as path:
        assert run("mount", tiny_store, path).returncode == 0
        record = daemon.find(str(path))
        assert record is not None
        with open(path / "a/000001.json", "rb"):
            assert run("umount", "--lazy", path).returncode == 0
            (said,) = [one for one in json.loads(run("status", "--json").stdout) if one["mountpoint"] == str(path)]
            assert (said["health"], said["pid"]) == ("detached", record.pid)
        assert daemon.wait_until_gone(record)


def test_a_read_only_mount_stores_nothing(tiny_store: Path) -> None:
    with mounting(tiny_store) as path:
        done = run("commit", path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"shardfs: {path} is mounted read-only: there is nothing to store\n"
        with pytest.raises(UnknownCommandError):
            control.ask(path, "commit")


def test_hostile_clients_do_not_disturb_a_mount(tiny_store: Path) -> None:
    with mounting(tiny_store) as path:
        ends = []
        for number in range(config.CONTROL_CLIENTS + 20):
            end = socket.socket(socket.AF_UNIX)
            end.connect(str(socket_path(path)))
            end.setblocking(False)
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it has had enough of it
                end.send((b"{" * 100, b"x" * 200_000, b"\0\n" * 1000, b"")[number % 4])
            ends.append(end)
        assert sorted(os.listdir(path)) == ["a", "b", "deep"]
        assert (path / "b/000002.x.bin").read_bytes() == b"\2" * 100
        for end in ends:
            end.close()
        wait_for(lambda: answers(path))


def test_the_socket_goes_with_its_mount(tiny_store: Path) -> None:
    with mounting(tiny_store) as path:
        found = socket_path(path)
        assert found.lstat().st_mode & 0o777 == 0o600
    assert not found.exists()


def test_a_client_that_stays_does_not_hold_the_end(tiny_store: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end, mounting(tiny_store) as path:
        end.connect(str(socket_path(path)))
        end.sendall(b'{"command": "pi')


def test_what_a_killed_daemon_left_is_taken_over(tiny_store: Path) -> None:
    with mount_point(made=True) as path:
        assert run("mount", tiny_store, path).returncode == 0
        record = daemon.find(str(path))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        assert daemon.wait_until_gone(record)
        assert socket_path(path).exists()
        assert run("mount", tiny_store, path).returncode == 0
        assert control.ask(path, "ping")["pid"] != record.pid
        assert run("umount", path).returncode == 0
