"""The request loop, shardfs's own and pyfuse3's: idle it costs nothing, and it ends cleanly whatever ends it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from shardfs import daemon, kernel_limits
from tests.conformance.trees import wait_for
from tests.mount.conftest import SECONDS, is_mounted, mount_point, processes, shardfs
from tests.mount.test_lifecycle import END, FAULTY, foreground, serving

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

IDLE_SECONDS = 1.0
IDLE_SHARE = 0.05
"""Of one CPU, at most, while nobody asks anything: a loop that polls without sleeping takes all of it."""

AFTER_THE_END = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.EIO, errno.ENODEV}
"""What readers may be told once the mount ends: that it, or what was in it, is not there any more."""

BYTES = b"\1" * 100


@pytest.fixture(params=["ours", "stock"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which request loop the mounts of this test have."""
    monkeypatch.setenv("SHARDFS_STOCK_LOOP", "1" if request.param == "stock" else "0")
    return str(request.param)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def assert_idle(pid: int) -> None:
    before = cpu_seconds(pid)
    threading.Event().wait(IDLE_SECONDS)
    assert cpu_seconds(pid) - before <= IDLE_SHARE * IDLE_SECONDS, "the loop is busy while nobody asks anything"


class Readers:
    """Threads that read over and over until an error ends it. With `lasting` each has read something by now."""

    def __init__(self, path: Path, count: int, *, lasting: bool = True) -> None:
        self.errors: list[int | None] = []
        self.rounds = 0
        self._threads = [threading.Thread(target=self._run, args=(path,), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()
        if lasting:
            wait_for(lambda: self.rounds > 20 * count or bool(self.errors))
            assert self.errors == []

    def _run(self, path: Path) -> None:
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                while True:
                    for name in ("a/000001.x.bin", "b/000001.x.bin", "deep/c/000001.x.bin"):
                        assert self._read(name, folder) == BYTES
                        self.rounds += 1
            finally:
                os.close(folder)
        except OSError as error:
            self.errors.append(error.errno)

    @staticmethod
    def _read(name: str, folder: int) -> bytes:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=folder)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # ask the daemon, not the page cache
            return os.read(descriptor, 200)
        finally:
            os.close(descriptor)

    def assert_ended(self) -> None:
        for thread in self._threads:
            thread.join(END)
        assert not any(thread.is_alive() for thread in self._threads), "a reader hangs"
        assert len(self.errors) == len(self._threads), "a reader got wrong bytes"
        assert set(self.errors) <= AFTER_THE_END


def ask_a_lot(path: Path) -> None:
    """Many requests at once, so that the loop has many tasks by now."""
    asking = [
        threading.Thread(target=os.listdir, args=(path / key,)) for key in ("a", "b", "deep/c") for _ in range(40)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(END)


def assert_gone(process: subprocess.Popen[str], path: Path, status: int = 0, said: str = "") -> None:
    out, err = process.communicate(timeout=END)
    assert (process.returncode, out, err) == (status, "", said)
    assert not is_mounted(path)
    assert not path.exists(), "the mount point that mount made is still there"
    assert daemon.find(str(path)) is None
    assert processes(path) == []


def test_an_idle_mount_uses_no_cpu_and_ends_on_sigterm(tiny_store: Path, loop: str) -> None:
    with mount_point() as path, foreground(tiny_store, path) as process:
        assert (path / "a/000001.x.bin").read_bytes() == BYTES
        ask_a_lot(path)
        wait_for(lambda: len(os.listdir(f"/proc/{process.pid}/task")) < 100)
        assert_idle(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        assert_gone(process, path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_eight_threads_read(tiny_store: Path, loop: str, number: signal.Signals) -> None:
    with mount_point() as path, foreground(tiny_store, path) as process:
        readers = Readers(path, 8)
        os.kill(process.pid, number)
        assert_gone(process, path)
        readers.assert_ended()


@pytest.mark.parametrize("how", ["fusermount3", "umount", "shardfs umount"])
def test_unmounting_after_many_requests(tiny_store: Path, loop: str, how: str) -> None:
    command = {"fusermount3": ["fusermount3", "-u"], "umount": ["umount"], "shardfs umount": shardfs("umount")}[how]
    with mount_point() as path, foreground(tiny_store, path) as process:
        ask_a_lot(path)
        subprocess.run([*command, path], check=True, timeout=SECONDS)
        assert_gone(process, path)


def test_a_lazy_unmount_while_eight_threads_read_and_sigterm_then(tiny_store: Path, loop: str) -> None:
    """Who has a directory open reads on, and is let go when the daemon ends."""
    with mount_point() as path, foreground(tiny_store, path) as process:
        readers = Readers(path, 8)
        subprocess.run(["umount", "--lazy", path], check=True, timeout=SECONDS)
        assert not is_mounted(path)
        assert_still_reading(readers)
        assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
        assert_gone(process, path)
        readers.assert_ended()


def test_the_end_of_a_detached_mount_leaves_its_successor_alone(tiny_store: Path, loop: str) -> None:
    """It unmounted whatever was mounted at its path by then, and left an empty directory to a mount's users."""
    with mount_point(made=True) as path, foreground(tiny_store, path) as old:
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            subprocess.run(["umount", "--lazy", path], check=True, timeout=SECONDS)
            with foreground(tiny_store, path) as new:
                os.kill(old.pid, signal.SIGTERM)
                assert old.communicate(timeout=END) == ("", "")
                assert old.returncode == 0
                assert (path / "a/000001.x.bin").read_bytes() == BYTES
                record = daemon.find(str(path))
                assert record is not None
                assert record.pid == new.pid
                subprocess.run(["umount", path], check=True, timeout=SECONDS)
                assert new.wait(END) == 0
        finally:
            os.close(held)


def assert_still_reading(readers: Readers) -> None:
    before = readers.rounds
    wait_for(lambda: readers.rounds > before + 100 or bool(readers.errors))
    assert readers.errors == []


@pytest.mark.skipif(os.geteuid() != 0, reason="fusectl, where it is not mounted, is root's")
def test_an_aborted_connection_ends_the_loop(tiny_store: Path, loop: str) -> None:
    """As an administrator does it to a mount that hangs: every request fails, also those of the daemon itself."""
    with mount_point() as path, foreground(tiny_store, path) as process:
        readers = Readers(path, 8)
        mounted = daemon.mounted_at(str(path))
        assert mounted is not None
        with kernel_limits._fusectl() as folder:
            number = mounted.device.rpartition(":")[2]
            with open(os.open(f"{number}/abort", os.O_WRONLY, dir_fd=folder), "w") as abort:
                abort.write("1")
        readers.assert_ended()
        _, err = process.communicate(timeout=END)
        assert process.returncode == 4
        assert err.endswith(f"was aborted; take the mount away: shardfs umount {path}\n"), err
        assert error_of_listing(path) == errno.ENOTCONN, "as after any failure: not an empty directory"
        assert subprocess.run(shardfs("umount", path), timeout=SECONDS).returncode == 0
        assert not is_mounted(path)


BROKEN_LOOP = """
from shardfs import request_loop
whole, asked = request_loop.RequestLoop.wait, []
async def wait(self):
    asked.append(1)
    if len(asked) > 300:
        raise OSError(9, "the descriptor is gone")
    return await whole(self)
request_loop.RequestLoop.wait = wait
"""


@pytest.mark.parametrize("script", [FAULTY, BROKEN_LOOP], ids=["a handler's fault", "the loop's fault"])
def test_an_internal_error_while_eight_threads_read(tiny_store: Path, loop: str, script: str) -> None:
    """The process ends with a failure, nobody hangs, and the mount point says ENOTCONN until it is unmounted."""
    if loop == "stock" and script == BROKEN_LOOP:
        pytest.skip("that loop is not in use")
    with mount_point(made=True) as path:
        with serving(tiny_store, path, script) as process:
            readers = Readers(path, 8, lasting=False)
            readers.assert_ended()
            _, err = process.communicate(timeout=END)
            assert process.returncode not in (0, None)
            assert "Traceback" in err, "it says what was wrong"
        assert error_of_listing(path) == errno.ENOTCONN
        done = subprocess.run(shardfs("umount", path), capture_output=True, text=True, timeout=SECONDS)
        assert (done.returncode, done.stderr) == (0, "")
        assert not is_mounted(path)
        assert os.listdir(path) == []
        assert processes(path) == []


def error_of_listing(path: Path) -> int | None:
    try:
        os.listdir(path)
    except OSError as error:
        return error.errno
    return None
