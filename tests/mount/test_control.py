"""Commands to running mounts: what they answer, and that whoever else uses the socket does not disturb them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfs import config, control, daemon, open_store
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


# --- writable mounts --------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two keys of two samples each."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    opened = open_store(tmp_path / "store", driver="squirrel")
    for key in ("a", "train/b"):
        opened.set([{"label": number} for number in range(2)], key)
    return tmp_path / "store"


@pytest.fixture
def mnt(store: Path) -> Iterator[Path]:
    """A writable mount that stores only when it is asked to."""
    with mounting(store, "--rw", "--write-back", "off") as path:
        yield path


def labels(store: Path, key: str) -> list[object]:
    return [sample["label"] for sample in open_store(store).get(key)]


def write(path: Path, label: object) -> None:
    path.write_text(json.dumps({"label": label}))


def test_commit_stores_one_key_or_all(mnt: Path, store: Path) -> None:
    for key in ("a", "train/b"):
        write(mnt / key / "000001.json", 7)
    (mnt / "new").mkdir()
    write(mnt / "new/000000.json", 8)
    done = run("commit", mnt, "train/b/")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"stored train/b: \d+ B\n", done.stdout)
    assert (labels(store, "a"), labels(store, "train/b")) == ([0, 1], [0, 7])
    done = run("commit", mnt)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"stored a: \d+ B\nstored new: \d+ B\n", done.stdout)
    assert (labels(store, "a"), labels(store, "new")) == ([0, 7], [8])
    assert (mnt / "a/000001.json").read_text() == '{"label": 7}\n'
    done = run("commit", mnt, "a")
    assert (done.returncode, done.stderr) == (0, "shardfs: there is nothing to store\n")
    done = run("commit", mnt, "typo")
    assert (done.returncode, done.stderr) == (1, "shardfs: not stored: nothing is staged for typo\n")


def test_commit_with_a_file_open_is_busy_and_not_stuck(mnt: Path, store: Path) -> None:
    with open(mnt / "a/000000.json", "w") as file:
        file.write('{"label": 5}')
        file.flush()
        done = run("commit", mnt, "a")
        assert (done.returncode, done.stdout) == (6, "")
        assert re.fullmatch(r"shardfs: not stored: a: [^\n]*close what is open[^\n]*\n", done.stderr)
        assert labels(store, "a") == [0, 1]
    assert run("commit", mnt, "a").returncode == 0
    assert labels(store, "a") == [5, 1]


def test_commit_names_the_file_that_does_not_parse(mnt: Path, store: Path) -> None:
    (mnt / "a/000001.json").write_text('{"label": ')
    write(mnt / "train/b/000000.json", 3)
    done = run("commit", mnt, "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert [one["key"] for one in said["stored"]] == ["train/b"]
    (failed,) = said["failed"]
    assert (failed["key"], failed["errno"], failed["fields"]["file"]) == ("a", errno.EINVAL, "000001.json")
    assert [(one["key"], one["state"]) for one in said["staged"]] == [("a", "staged")]
    write(mnt / "a/000001.json", 4)
    assert run("commit", mnt, "a").returncode == 0
    assert labels(store, "a") == [0, 4]


def test_commit_over_a_version_of_somebody_else_keeps_both(mnt: Path, store: Path, tmp_path: Path) -> None:
    write(mnt / "a/000001.json", 4)
    open_store(store).set([{"label": 9}], "a")
    done = run("commit", mnt, "a")
    assert (done.returncode, done.stdout) == (1, "")
    found = re.fullmatch(r"shardfs: not stored: [^\n]* kept as (a\.conflict-\S+); [^\n]*\n", done.stderr)
    assert found is not None, done.stderr
    assert labels(store, "a") == [9]
    listed = run("staging", "list", store)
    assert re.search(rf"^{found[1]} +parked +1 ", listed.stdout, re.M), listed.stdout
    done = run("staging", "recover", store, found[1], "--to", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine/000001.json").read_text() == '{"label": 4}'
    shutil.rmtree(mnt / found[1])
    assert run("staging", "list", store).stdout == ""


def test_staging_commands_beside_a_mount(mnt: Path, store: Path) -> None:
    write(mnt / "a/000001.json", 4)
    shown = json.loads(run("status", mnt, "--json").stdout)
    assert (shown["mode"], [(one["key"], one["files"]) for one in shown["staged"]]) == ("rw", [("a", 1)])
    assert "staged: 1 key, 1 file, 12 B" in run("status", mnt).stdout
    assert re.search(r"^a +staged +1 +12 B ", run("staging", "list", f"file://{store}").stdout, re.M)
    assert run("staging", "trust", store, "a").stderr == "shardfs: a is not in doubt\n"
    done = run("staging", "recover", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("stored a: ")
    assert labels(store, "a") == [0, 4]


def discard(store: Path, key: str, *, busy: bool = False) -> None:
    done = run("staging", "discard", store, key, "--yes")
    if busy:
        assert (done.returncode, "open for writing" in done.stderr) == (6, True), (done.returncode, done.stderr)
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"discarded {key}: ")


def test_discard_through_a_mount_shows_what_is_stored_again(mnt: Path, store: Path) -> None:
    before = {path.name: path.read_bytes() for path in (mnt / "a").iterdir()}
    with open(mnt / "a/000000.json") as unchanged:
        write(mnt / "a/000001.json", 4)
        write(mnt / "a/000002.json", 5)
        os.rename(mnt / "a/000002.json", mnt / "a/000003.json")
        with open(mnt / "a/000001.json") as changed:
            for _ in range(2):  # the kernel has pages and names of all of it
                assert (mnt / "a/000001.json").read_text() == '{"label": 4}'
            discard(store, "a")
            assert changed.read() == '{"label": 4}', "who has it open keeps it"
            assert unchanged.read() == '{"label": 0}\n'
    assert {path.name: path.read_bytes() for path in (mnt / "a").iterdir()} == before
    assert not (mnt / "a/000003.json").exists()
    assert run("staging", "list", store).stdout == ""
    assert run("commit", mnt).stderr == "shardfs: there is nothing to store\n"
    write(mnt / "a/000001.json", 6)
    assert run("commit", mnt, "a").returncode == 0
    assert labels(store, "a") == [0, 6], "it can be changed and stored as before"


def test_discard_through_a_mount_removes_what_is_not_stored(mnt: Path, store: Path) -> None:
    (mnt / "new").mkdir()
    write(mnt / "new/000000.json", 8)
    (mnt / "x.tmp/deep").mkdir(parents=True)
    (mnt / "x.tmp/deep/file").write_text("any")
    assert sorted(os.listdir(mnt)) == ["a", "new", "train", "x.tmp"]
    inside = os.open(mnt / "x.tmp/deep", os.O_PATH)
    try:
        discard(store, "x.tmp")
        discard(store, "new")
        with pytest.raises(OSError, match="Stale"):
            os.listdir(f"/proc/self/fd/{inside}")
        assert os.fstat(inside).st_mode & 0o170000 == 0o040000
    finally:
        os.close(inside)
    assert sorted(os.listdir(mnt)) == ["a", "train"]
    assert run("staging", "list", store).stdout == ""
    (mnt / "new").mkdir()
    write(mnt / "new/000000.json", 9)
    assert run("commit", mnt, "new").returncode == 0
    assert labels(store, "new") == [9]


def test_what_is_open_for_writing_is_not_discarded_through_a_mount(mnt: Path, store: Path) -> None:
    with open(mnt / "a/000001.json", "w") as file:
        file.write('{"label": 4}')
        file.flush()
        discard(store, "a", busy=True)
    assert (mnt / "a/000001.json").read_text() == '{"label": 4}'
    discard(store, "a")
    assert (mnt / "a/000001.json").read_text() == '{"label": 1}\n'


def test_a_conflict_is_discarded_through_a_mount(mnt: Path, store: Path) -> None:
    write(mnt / "a/000001.json", 4)
    open_store(store).set([{"label": 9}], "a")
    assert run("commit", mnt, "a").returncode == 1
    (conflict,) = [name for name in os.listdir(mnt) if ".conflict-" in name]
    discard(store, conflict)
    wait_for(lambda: sorted(os.listdir(mnt)) == ["a", "train"])
    assert labels(store, "a") == [9]


def test_umount_stays_where_something_cannot_be_stored(store: Path) -> None:
    with mount_point() as path:
        assert run("mount", store, path, "--rw", "--write-back", "off").returncode == 0
        (path / "a/000001.json").write_text('{"label": ')
        write(path / "train/b/000000.json", 3)
        done = run("umount", path)
        assert done.returncode == 4
        first, second = done.stderr.splitlines()
        assert first.startswith("shardfs: not stored: a/000001.json: ")
        assert "stays mounted, as 1 key could not be stored; unmount with --force" in second
        assert labels(store, "train/b") == [3, 1], "what can be stored is"
        assert (path / "a/000001.json").read_text() == '{"label": '
        done = run("umount", "--force", path)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, "each is told of once"
        assert daemon.mounted_at(str(path)) is None
        assert run("mount", store, path, "--rw", "--write-back", "off").returncode == 0
        assert (path / "a/000001.json").read_text() == '{"label": ', "it is there again"
        write(path / "a/000001.json", 6)
        assert run("umount", path).stderr == ""
        assert labels(store, "a") == [0, 6]


def test_umount_of_a_writable_mount_that_hangs_needs_force(store: Path) -> None:
    with mount_point() as path:
        assert run("mount", store, path, "--rw", "--write-back", "off").returncode == 0
        write(path / "a/000001.json", 4)
        record = daemon.find(str(path))
        assert record is not None
        os.kill(record.pid, signal.SIGSTOP)
        try:
            done = run("umount", path)
        finally:
            os.kill(record.pid, signal.SIGCONT)
        assert done.returncode == 4
        assert "does not answer" in done.stderr
        assert "--force unmounts (it stays on disk, for the next mount)" in done.stderr
        assert run("umount", path).returncode == 0
        assert labels(store, "a") == [0, 4]


def test_a_daemon_that_was_killed_leaves_all_for_staging(store: Path) -> None:
    with mount_point(made=True) as path:
        assert run("mount", store, path, "--rw", "--write-back", "off").returncode == 0
        write(path / "a/000001.json", 4)
        record = daemon.find(str(path))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        assert daemon.wait_until_gone(record)
        assert run("umount", path).returncode == 0
        assert re.search(r"^a +staged ", run("staging", "list", store).stdout, re.M)
        done = run("staging", "recover", store, "a")
        assert (done.returncode, done.stderr) == (0, "")
        assert labels(store, "a") == [0, 4]
        assert run("staging", "list", store).stdout == ""


def test_refresh_shows_at_once_what_a_mount_was_told_not_to_look_for(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", "squirrel")
    store.set([{"a": 1}], "k")
    store.set([{"a": 1}], "gone")
    with mounting(tmp_path / "store", "--refresh", "manual") as path:
        assert sorted(os.listdir(path)) == ["gone", "k"]
        store.set([{"a": 2}, {"a": 3}], "k")
        store.set([{"a": 4}], "new")
        store.delete("gone")
        done = run("refresh", path, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == {"changed": 4, "keys": 2}  # gone, new, and both versions of k
        wait_for(lambda: sorted(os.listdir(path)) == ["k", "new"])
        assert json.loads((path / "k" / "000001.json").read_text()) == {"a": 3}
        assert run("refresh", path).stderr == "shardfs: 2 keys, 0 changes\n"
