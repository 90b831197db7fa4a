"""The life of a mount: made, refused, used, ended in every way there is, and what is left of it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfs import daemon
from shardfs.opening import open_store
from tests.mount.conftest import SECONDS, is_mounted, mount_point, processes, run, shardfs

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

END = 15.0


def background(store: Path, path: Path, *words: str) -> daemon.Record:
    """Mount in the background; which process serves."""
    done = run("mount", store, path, *words)
    assert done.returncode == 0, done.stderr
    record = daemon.find(str(path))
    assert record is not None
    return record


def assert_ended(record: daemon.Record, path: Path, made: bool = True) -> None:
    """The daemon has gone by itself, and has left nothing."""
    assert daemon.wait_until_gone(record, END), "the daemon still runs"
    assert not is_mounted(path)
    assert path.exists() is not made
    if not made:
        assert os.listdir(path) == []
    assert daemon.find(str(path)) is None
    assert processes(path) == []


def one_line(text: str) -> str:
    assert re.fullmatch(r"shardfs: [^\n]+\n", text), text
    return text


@contextlib.contextmanager
def foreground(store: Path, path: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """`shardfs mount -f`, once it has said that it is ready."""
    process = subprocess.Popen(
        shardfs("mount", "-f", store, path, *words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("shardfs: mounted "), line + process.stderr.read()
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(END)
        process.stdout.close()
        process.stderr.close()


# --- mount and umount -------------------------------------------------------------------------------------------------


def test_mount_and_umount(tiny_store: Path) -> None:
    with mount_point() as path:
        done = run("mount", tiny_store, path)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr == f"shardfs: mounted {tiny_store} on {path}; unmount with: shardfs umount {path}\n"
        assert sorted(os.listdir(path)) == ["a", "b", "deep"]
        assert (path / "deep/c/000002.json").read_text() == '{"label": 2, "key": "deep/c"}\n'
        assert (path / "a/000001.x.bin").read_bytes() == b"\1" * 100
        record = daemon.find(str(path))
        assert record is not None
        assert record.store == str(tiny_store)
        ended = run("umount", path)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
        assert processes(path) == [], "umount waits for the daemon"
        assert_ended(record, path)


def test_mount_options_in_the_mount_table(tiny_store: Path) -> None:
    with mount_point() as path:
        background(tiny_store, path)
        (line,) = [text for text in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path} " in text]
        left, right = line.split(" - ")
        assert {"ro", "nosuid", "nodev"} <= set(left.split()[5].split(","))
        fstype, source, last = right.split()
        assert (fstype, source) == ("fuse.shardfs", str(tiny_store))
        assert "default_permissions" in last
        assert "allow_other" not in last
        assert run("umount", path).returncode == 0


def test_roots_own_writable_mount_looks_at_no_modes(tiny_store: Path) -> None:
    for words, looks in ((("--rw",), os.geteuid() != 0), (("--rw", "--allow-other"), True)):
        with mount_point() as path:
            background(tiny_store, path, *words)
            (line,) = [text for text in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path} " in text]
            assert ("default_permissions" in line.split(" - ")[1].split()[2].split(",")) is looks
            assert run("umount", path).returncode == 0


def test_allow_other_on_request(tiny_store: Path) -> None:
    with mount_point() as path:
        background(tiny_store, path, "--allow-other")
        (line,) = [text for text in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path} " in text]
        assert {"allow_other", "default_permissions"} <= set(line.split(" - ")[1].split()[2].split(","))
        assert run("umount", path).returncode == 0


def test_a_given_directory_is_kept(tiny_store: Path) -> None:
    with mount_point(made=True) as path:
        record = background(tiny_store, path)
        assert run("umount", path).returncode == 0
        assert_ended(record, path, made=False)


def test_relative_paths_and_odd_names(tiny_store: Path) -> None:
    with mount_point(made=True) as above:
        name = 'm nt\t"ü\\,x'
        done = run("mount", os.path.relpath(tiny_store, above), name, cwd=above)
        assert done.returncode == 0, done.stderr
        assert sorted(os.listdir(above / name)) == ["a", "b", "deep"]
        words = shlex.split(done.stderr.rpartition("unmount with: ")[2])
        assert words == ["shardfs", "umount", name]
        ended = run("umount", name, cwd=above)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert os.listdir(above) == []


def test_a_store_with_an_odd_name(tiny_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "störe, with\\all sorts%20 of"
    shutil.copytree(tiny_store, store)
    with mount_point() as path:
        background(store, path)
        assert sorted(os.listdir(path)) == ["a", "b", "deep"]
        assert run("umount", path).returncode == 0


def test_umount_of_several_goes_on_after_a_failure(tiny_store: Path, tmp_path: Path) -> None:
    with mount_point() as one, mount_point() as two:
        background(tiny_store, one)
        background(tiny_store, two)
        done = run("umount", one, tmp_path, two)
        assert (done.returncode, done.stderr) == (4, f"shardfs: nothing is mounted on {tmp_path}\n")
        assert not is_mounted(one)
        assert not is_mounted(two)


def test_the_caller_is_not_held_by_the_daemon(tiny_store: Path) -> None:
    """Descriptors the shell had open (a lock, a pipe) must not live as long as the mount."""
    with mount_point() as path:
        reading, writing = os.pipe()
        done = subprocess.run(
            shardfs("mount", tiny_store, path), capture_output=True, timeout=SECONDS, pass_fds=[writing]
        )
        os.close(writing)
        assert done.returncode == 0
        with open(reading, "rb") as pipe:
            assert pipe.read() == b"", "the end of the pipe is seen while the mount lives"
        assert is_mounted(path)
        record = daemon.find(str(path))
        assert record is not None
        assert os.readlink(f"/proc/{record.pid}/cwd") == "/"
        assert {os.readlink(f"/proc/{record.pid}/fd/{number}") for number in range(3)} == {"/dev/null"}
        assert os.getsid(record.pid) == record.pid
        assert run("umount", path).returncode == 0


def test_closed_standard_descriptors(tiny_store: Path) -> None:
    with mount_point() as path:
        command = f"exec {shlex.join(shardfs('mount', tiny_store, path))} <&- >&- 2>&-"
        assert subprocess.run(["sh", "-c", command], timeout=SECONDS).returncode == 0
        assert len(os.listdir(path)) == 3
        assert run("umount", path).returncode == 0


def test_log_file(tiny_store: Path, tmp_path: Path) -> None:
    with mount_point() as path:
        record = background(tiny_store, path, "--log", str(tmp_path / "log"), "-v")
        os.kill(record.pid, signal.SIGTERM)
        assert_ended(record, path)
        lines = (tmp_path / "log").read_text().splitlines()
        assert any("ending on SIGTERM" in line for line in lines)
        assert all(f" {record.pid} " in line for line in lines)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [[], ["-f"]], ids=["background", "foreground"])
@pytest.mark.parametrize(
    ("store", "mountpoint", "words", "status", "said"),
    [
        ("nowhere", "mnt", [], 3, "no store at"),
        ("empty", "mnt", [], 3, "driver"),
        ("store", "no/mnt", [], 4, "no is not there"),
        ("store", "file", [], 4, "not a directory"),
        ("store", "full", [], 4, "not empty"),
        ("store", "store/mnt", [], 4, "inside the store"),
        ("store", "store", [], 4, "inside the store"),
        ("store", "link", [], 4, "inside the store"),
        ("store", ".", [], 4, "would be hidden"),
        ("store", "mnt", ["-o", "allow_delete"], 2, "give -o rw, too"),
        ("store", "mnt", ["-o", "alow_other"], 2, "did you mean allow_other"),
        ("store", "mnt", ["--memory", "much"], 2, "'much' is no size"),
        ("store", "mnt", ["--driver", "none"], 2, "no driver 'none'"),
        ("store", "mnt", ["--log", "/nowhere/log"], 1, "/nowhere/log: No such file or directory"),
    ],
)
def test_refused(
    tiny_store: Path,
    tmp_path: Path,
    store: str,
    mountpoint: str,
    words: list[str],
    status: int,
    said: str,
    extra: list[str],
) -> None:
    shutil.copytree(tiny_store, tmp_path / "store")
    for name in ("empty", "full/one"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("store/deep")
    before = sorted(tmp_path.rglob("*"))
    done = run("mount", store, mountpoint, *words, *extra, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert said in one_line(done.stderr)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is made"
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_nonempty_on_request(tiny_store: Path) -> None:
    with mount_point(made=True) as path:
        (path / "hidden").touch()
        background(tiny_store, path, "-o", "nonempty")
        assert not (path / "hidden").exists()
        assert run("umount", path).returncode == 0
        assert (path / "hidden").exists()


def test_mounted_already(tiny_store: Path) -> None:
    with mount_point() as path:
        background(tiny_store, path)
        again = run("mount", tiny_store, path)
        assert again.returncode == 4
        assert "is mounted already" in one_line(again.stderr)
        assert len(os.listdir(path)) == 3
        assert run("umount", path).returncode == 0


def test_umount_refuses_what_is_no_shardfs(tmp_path: Path) -> None:
    for where, said in (
        (tmp_path, "nothing is mounted on"),
        (Path("/proc"), "no shardfs"),
        (tmp_path / "x", "nothing"),
    ):
        done = run("umount", where)
        assert done.returncode == 4
        assert said in one_line(done.stderr)
    assert os.path.ismount("/proc")


def test_without_pyfuse3(tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyfuse3.py").write_text("raise ImportError('libfuse3.so.3: no such file')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ['PYTHONPATH']}")
    with mount_point() as path:
        done = run("mount", tiny_store, path)
        assert done.returncode == 5
        assert "pip install 'shardfs[mount]'" in one_line(done.stderr)
        assert "libfuse3.so.3" in done.stderr
        assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace")
@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("mount -t tmpfs none /dev && mknod /dev/null c 1 3", "modprobe fuse"),
        ("mount --bind /dev/full /dev/fuse", "cannot mount on"),
    ],
    ids=["no /dev/fuse", "another device"],
)
def test_without_a_working_dev_fuse(tiny_store: Path, prepare: str, said: str) -> None:
    with mount_point() as path:
        command = f"{prepare} && exec {shlex.join(shardfs('mount', tiny_store, path))}"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", command], capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode in (4, 5), done.stderr
        assert said in one_line(done.stderr)
        assert not path.exists()


# --- ends -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_daemon(tiny_store: Path, number: signal.Signals) -> None:
    with mount_point() as path:
        record = background(tiny_store, path)
        assert len(os.listdir(path / "a")) == 6
        os.kill(record.pid, number)
        assert_ended(record, path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_foreground(tiny_store: Path, number: signal.Signals) -> None:
    with mount_point() as path, foreground(tiny_store, path) as process:
        record = daemon.find(str(path))
        assert record is not None
        assert record.pid == process.pid
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=END)
        assert (process.returncode, out, err) == (0, "", "")
        assert not is_mounted(path)
        assert not path.exists()


def test_a_signal_ends_a_mount_in_use(tiny_store: Path) -> None:
    """With files open and a working directory in it, the mount is detached; who had them gets errors, nobody hangs."""
    with mount_point() as path:
        record = background(tiny_store, path)
        held = os.open(path / "a/000001.json", os.O_RDONLY)
        try:
            os.kill(record.pid, signal.SIGTERM)
            assert_ended(record, path)
            with pytest.raises(OSError, match=r"not connected|connection abort"):
                os.statvfs(held)
        finally:
            with contextlib.suppress(OSError):  # closing asks the server, too
                os.close(held)


@pytest.mark.parametrize("command", [["umount"], ["fusermount3", "-u"]])
def test_plain_unmounting_ends_the_daemon(tiny_store: Path, command: list[str]) -> None:
    with mount_point() as path:
        record = background(tiny_store, path)
        assert len(os.listdir(path / "b")) == 6
        subprocess.run([*command, path], check=True, timeout=SECONDS)
        assert_ended(record, path)


def test_plain_unmounting_ends_the_foreground_with_success(tiny_store: Path) -> None:
    with mount_point() as path, foreground(tiny_store, path) as process:
        subprocess.run(["umount", path], check=True, timeout=SECONDS)
        out, err = process.communicate(timeout=END)
        assert (process.returncode, out, err) == (0, "", "")
        assert not path.exists()


def test_busy_stays_and_lazy_detaches(tiny_store: Path) -> None:
    with mount_point() as path:
        record = background(tiny_store, path)
        with open(path / "a/000001.json", "rb") as held:
            done = run("umount", path)
            assert done.returncode == 4
            assert "is in use" in one_line(done.stderr)
            assert len(os.listdir(path)) == 3
            done = run("umount", "--lazy", path)
            assert done.returncode == 0
            assert "ends when nobody uses it" in one_line(done.stderr)
            assert not is_mounted(path)
            assert held.read() == b'{"label": 1, "key": "a"}\n', "who has it open can read on"
        assert_ended(record, path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a mount namespace")
def test_a_mount_that_another_mount_namespace_has_a_copy_of_is_told_of(tiny_store: Path) -> None:
    """Whoever makes one meanwhile (a container, a service) keeps the daemon going, and it seemed to hang."""
    with mount_point() as path:
        record = background(tiny_store, path)
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec cat"]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            done = run("umount", path)
            assert done.returncode == 0
            assert f"process {other.pid} has it" in one_line(done.stderr)
            assert not is_mounted(path)
            here = Path(f"/proc/{other.pid}/root/{path}/a/000001.json")
            assert here.read_text() == '{"label": 1, "key": "a"}\n', "there it is still served"
            other.stdin.close()
        assert_ended(record, path)


def test_a_mount_that_is_in_use_for_a_moment_is_unmounted(tiny_store: Path) -> None:
    with mount_point() as path:
        record = background(tiny_store, path)
        held = open(path / "a/000001.json", "rb")  # noqa: SIM115 - closed by the timer
        timer = threading.Timer(0.7, held.close)
        timer.start()
        done = run("umount", path)
        timer.join()
        assert (done.returncode, done.stderr) == (0, "")
        assert_ended(record, path)


def test_a_killed_daemons_mount_point_is_repaired(tiny_store: Path) -> None:
    with mount_point(made=True) as path:
        record = background(tiny_store, path)
        os.kill(record.pid, signal.SIGKILL)
        assert daemon.wait_until_gone(record, END)
        with pytest.raises(OSError, match="not connected"):
            os.listdir(path)
        again = background(tiny_store, path)
        assert len(os.listdir(path)) == 3
        assert run("umount", path).returncode == 0
        assert_ended(again, path, made=False)


def test_umount_of_a_killed_daemons_mount_point(tiny_store: Path) -> None:
    with mount_point(made=True) as path:
        record = background(tiny_store, path)
        os.kill(record.pid, signal.SIGKILL)
        assert daemon.wait_until_gone(record, END)
        done = run("umount", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert os.listdir(path) == []


SERVE = """
import sys, time
from shardfs import config, mount
from shardfs.opening import open_store
store, path = open_store(sys.argv[1]), sys.argv[2]
"""
HANGING = """
def load(entry, grow):
    open(path + ".loading", "w").close()
    time.sleep(3600)
store.driver.load = load
config.END_SECONDS = config.DRAIN_SECONDS = 0.5
"""
FAULTY = """
async def read(self, fh, off, size):
    return "what pyfuse3 does not expect"
mount.Operations.read = read
mount.prefills = lambda: False  # or the file is given with its opening, and never read
"""
END_SERVE = "mount.serve(store, path, mount.MountOptions(index=False), lambda: print('up', flush=True))"


@contextlib.contextmanager
def serving(store: Path, path: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """A server with something wrong in it."""
    command = [sys.executable, "-c", SERVE + script + END_SERVE, str(store), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_storage_that_hangs_does_not_hold_the_end(tiny_store: Path) -> None:
    with mount_point(made=True) as path, serving(tiny_store, path, HANGING) as process:
        os.mkfifo(f"{path}.loading")
        failed: list[int | None] = []

        def read() -> None:
            try:
                os.listdir(path / "a")
            except OSError as error:
                failed.append(error.errno)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        Path(f"{path}.loading").read_bytes()  # a FIFO: waits until the load has begun
        os.kill(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=END)
        assert process.returncode == 1
        assert "still hangs" in err
        reader.join(END)
        assert failed, "the reader was answered"
        assert not is_mounted(path)


def test_a_fault_of_ours_leaves_no_empty_directory(tiny_store: Path) -> None:
    """An empty directory where the data was would make a mirroring rsync delete its copy: errors are right here."""
    with mount_point(made=True) as path:
        with serving(tiny_store, path, FAULTY) as process:
            with pytest.raises(OSError, match=r".") as failure:
                (path / "a/000001.json").read_bytes()
            assert failure.value.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
            process.wait(END)
            assert process.returncode != 0
        with pytest.raises(OSError, match="not connected"):
            os.listdir(path)
        background(tiny_store, path)
        assert len(os.listdir(path)) == 3
        assert run("umount", path).returncode == 0


# --- service managers -------------------------------------------------------------------------------------------------


def test_the_form_that_mount8_uses(tiny_store: Path) -> None:
    with mount_point() as path:
        done = run(tiny_store, path, "-o", "rw,dev,suid,_netdev,x-systemd.automount")
        assert done.returncode == 0, done.stderr
        assert "read-only" in done.stderr
        assert len(os.listdir(path)) == 3
        assert run("umount", path).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mount(8) is root's")
def test_mount8_itself(tiny_store: Path, tmp_path: Path) -> None:
    program = tmp_path / "shardfs"  # named with its path, because mount(8) sets a PATH of its own
    program.write_text(f'#!/bin/sh\nexec {shlex.join(shardfs())} "$@"\n')
    program.chmod(0o755)
    with mount_point(made=True) as path:
        words = ["mount", "-t", "fuse", "-o", "nofail,x-foo=bar,memory=64M", f"{program}#{tiny_store}", str(path)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        assert len(os.listdir(path)) == 3
        assert run("umount", path).returncode == 0


def test_a_catalog_is_mounted_with_all_its_sources(tmp_path: Path) -> None:
    """In the background, too, where relative paths of its sources count from where the command was given."""
    for source in ("one", "two"):
        open_store(tmp_path / "data" / source, "squirrel").set([{"name": source}], "k")
    (tmp_path / "sources.yaml").write_text(
        "!YamlCatalog\nsources:\n"
        "- !YamlSource {identifier: words, driver_name: messagepack, driver_kwargs: {url: data/one}}\n"
        "- !YamlSource {identifier: words, driver_name: messagepack, driver_kwargs: {url: data/two}, version: 2}\n"
        "- !YamlSource {identifier: table, driver_name: csv, driver_kwargs: {path: t.csv}}\n"
    )
    with mount_point() as path:
        done = run("mount", "sources.yaml", path, "--log", tmp_path / "log", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert sorted(os.listdir(path / "words")) == ["v1", "v2"]
        assert json.loads((path / "words" / "v2" / "k" / "000000.json").read_text()) == {"name": "two"}
        assert os.listdir(path) == ["words"]
        assert "table/v1 is not shown: driver csv reads no store of shards" in (tmp_path / "log").read_text()
        assert run("umount", path).returncode == 0


def test_a_mount_point_inside_a_source_of_a_catalog_is_refused(tmp_path: Path) -> None:
    open_store(tmp_path / "data", "squirrel").set([1], "k")
    (tmp_path / "c.yaml").write_text(
        f"sources:\n- {{identifier: a, driver_name: messagepack, driver_kwargs: {{url: {tmp_path}/data}}}}\n"
    )
    done = run("mount", tmp_path / "c.yaml", tmp_path / "data" / "mnt")
    assert done.returncode != 0
    assert "lies inside the store" in done.stderr
    assert not (tmp_path / "data" / "mnt").exists()
