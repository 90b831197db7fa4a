"""The units under systemd itself: PID 1 of namespaces, with a /etc, /run, /dev and control group of its own.

Runs with SHARDFS_ALL_FEATURES=1 only: not every machine lets a test do that. Nothing outside of the namespaces is
changed but for a control group, which is removed again.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfs.opening import open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import REPOSITORY, SECONDS

SYSTEMD = Path("/lib/systemd/systemd")
GROUPS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
TARGETS = (
    *("basic", "sysinit", "sockets", "timers", "paths", "slices", "shutdown", "local-fs", "local-fs-pre", "remote-fs"),
    *("remote-fs-pre", "network", "network-online", "umount", "multi-user", "final"),
)

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.environ.get("SHARDFS_ALL_FEATURES") != "1", reason="SHARDFS_ALL_FEATURES=1 runs it"),
    pytest.mark.skipif(os.geteuid() != 0 or not SYSTEMD.exists(), reason="needs root and systemd"),
]

BOOT = r"""
set -e
mount -t proc proc /proc
awk '$3 ~ /^fuse/ {print $2}' /proc/self/mounts | while read -r one; do umount -l "$one" || true; done
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys
mount -t tmpfs none "$at/own"
for one in /etc /usr/local/bin /usr/sbin; do
    mkdir -p "$at/own/upper$one" "$at/own/work$one"
    mount -t overlay overlay -o "lowerdir=$one,upperdir=$at/own/upper$one,workdir=$at/own/work$one" "$one"
done
printf '#!/bin/sh\nPYTHONPATH=%s exec %s -m shardfs "$@"\n' "$repository" "$python" >/usr/local/bin/shardfs
printf '#!%s\nimport sys\nsys.path.insert(0, "%s")\nfrom shardfs.cli import main\nsys.exit(main())\n' \
    "$python" "$repository" >/usr/local/bin/mount.shardfs
chmod 755 /usr/local/bin/shardfs /usr/local/bin/mount.shardfs
ln -s /usr/local/bin/mount.shardfs /usr/sbin/mount.shardfs
rm -f /etc/machine-id; : >/etc/machine-id; : >/etc/fstab
mkdir -p /etc/shardfs
printf 'STORE=%s\nMNT=%s\nOPTIONS=--rw\n' "$at/store" "$at/mnt" >/etc/shardfs/photos.conf
mount -t tmpfs -o mode=755 none /run
umount -l /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /run/dev; mount -t tmpfs -o mode=755 none /run/dev
for one in autofs null zero full random urandom tty fuse; do
    touch "/run/dev/$one"; mount --bind "/dev/$one" "/run/dev/$one"
done
mkdir /run/dev/pts /run/dev/shm; ln -s /proc/self/fd /run/dev/fd
mount --rbind /run/dev /dev
exec env -i container=test "SYSTEMD_UNIT_PATH=$at/units" "$systemd" --system --unit=basic.target --log-target=null
"""


class Machine:
    """A system that has only our units."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mnt = folder / "mnt"
        self.log = folder / "log"
        self.pid = 0

    def run(self, *words: str | Path, status: int | None = 0) -> str:
        """Run a program in it; what it says."""
        command = ["nsenter", "-t", str(self.pid), "-a", "env", "-i", f"PATH={os.environ['PATH']}", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        assert status in (None, done.returncode), done.stdout + done.stderr + self.log.read_text()
        return done.stdout + done.stderr

    def of(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "-P", name, unit).strip()


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    mounted = [path for path in map(Path, GROUPS) if (path / "cgroup.procs").exists()]
    if not mounted:
        pytest.skip("no control groups here")
    group = mounted[0] / f"shardfs-test-{os.getpid()}"
    folder = Path(tempfile.mkdtemp(prefix="shardfs-systemd-")).resolve()
    folder.chmod(0o755)
    made = Machine(folder)
    for name in ("own", "mnt", "units"):
        (folder / name).mkdir()
    made.log.touch()
    open_store(folder / "store", driver="squirrel").set([{"label": 1, "x": b"abc"}], "a")
    units(made)
    group.mkdir()
    enter = f"echo $$ >{shlex.quote(str(group / 'cgroup.procs'))}"
    boot = f"{enter}; exec unshare -pmfnuiC --kill-child bash -uc {shlex.quote(BOOT)}"
    names = {"at": folder, "repository": REPOSITORY, "python": sys.executable, "systemd": SYSTEMD}
    process = subprocess.Popen(
        ["bash", "-c", boot],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **{name: str(path) for name, path in names.items()}},
    )
    try:
        scope = group / "init.scope/cgroup.procs"
        wait_for(lambda: process.poll() is not None or (scope.exists() and scope.read_text() != ""))
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.skip(f"systemd cannot be started in namespaces here: {process.stderr.read().decode()}")
        made.pid = int(scope.read_text().split()[0])
        wait_for(lambda: "active" in made.run("systemctl", "is-active", "basic.target", status=None).split())
        yield made
    finally:
        if made.pid:
            os.kill(made.pid, signal.SIGKILL)
        process.kill()
        process.communicate()
        wait_for(lambda: removed(group))
        shutil.rmtree(folder)


def removed(group: Path) -> bool:
    """Whether a control group has gone with all below; processes that are just ending hold it."""
    for path in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


def units(machine: Machine) -> None:
    """Ours as they are, with what a test wants besides in drop-ins."""
    units, source = machine.folder / "units", REPOSITORY / "systemd"
    for target in TARGETS:
        shutil.copy(SYSTEMD.parent / f"system/{target}.target", units)
    shutil.copy(source / "shardfs@.service", units)
    beside = units / "shardfs@photos.service.d"
    beside.mkdir()
    for name in ("local", "writable"):
        shutil.copy(source / f"shardfs@{name}.conf", beside / f"{name}.conf")
    (beside / "test.conf").write_text(
        f"[Service]\nStandardOutput=append:{machine.log}\nStandardError=append:{machine.log}\nRestartSec=100ms\n"
        f"WatchdogSec=2\nEnvironment=XDG_STATE_HOME={machine.folder}/state XDG_CACHE_HOME={machine.folder}/cache\n"
    )
    name = str(machine.mnt).strip("/").replace("-", "\\x2d").replace("/", "-")
    for kind in ("mount", "automount"):
        text = (source / f"mnt-photos.{kind}").read_text()
        text = text.replace("/srv/photos", f"{machine.folder}/store").replace("/mnt/photos", str(machine.mnt))
        (units / f"{name}.{kind}").write_text(text)


def test_the_hardened_service_mounts_is_watched_and_stops(machine: Machine) -> None:
    """With all drop-ins that we ship: it mounts, writes, is mended after a crash and a hang, and stores at its stop."""
    unit = "shardfs@photos.service"
    machine.run("systemctl", "start", unit)
    assert machine.run("cat", machine.mnt / "a/000000.x.bin") == "abc"
    assert machine.of(unit, "StatusText").startswith("1 key, ")
    assert machine.of(unit, "ActiveState") == "active"
    rights = machine.run("grep", "-E", "^(CapBnd|NoNewPrivs|Seccomp):", f"/proc/{machine.of(unit, 'MainPID')}/status")
    assert rights.split() == ["CapBnd:", "0000000000200002", "NoNewPrivs:", "1", "Seccomp:", "2"]
    machine.run("sh", "-c", 'mkdir "$0/new" && echo {} >"$0/new/000000.json"', machine.mnt)
    first = machine.of(unit, "MainPID")
    machine.run("kill", "-KILL", first)
    wait_for(lambda: machine.of(unit, "ActiveState") == "active" and machine.of(unit, "MainPID") != first)
    assert machine.run("cat", machine.mnt / "new/000000.json") == "{}\n"
    second = machine.of(unit, "MainPID")
    machine.run("kill", "-STOP", second)
    wait_for(lambda: machine.of(unit, "ActiveState") == "active" and machine.of(unit, "MainPID") != second, SECONDS)
    assert machine.of(unit, "NRestarts") == "2"
    machine.run("systemctl", "stop", unit)
    assert (machine.of(unit, "ActiveState"), machine.of(unit, "Result")) == ("inactive", "success")
    assert (machine.folder / "store/new.gz").stat().st_mode & 0o777 == 0o644
    machine.run("mountpoint", "-q", machine.mnt, status=32)
    log = machine.log.read_text()
    assert log.count("shardfs: mounted ") == 3
    assert "Traceback" not in log
    assert "Operation not permitted" not in log


def test_an_automount_of_systemd(machine: Machine) -> None:
    """Somebody looks, and it is mounted by mount(8) and `mount.shardfs`."""
    unit = machine.run("systemd-escape", "--path", "--suffix=automount", machine.mnt).strip()
    machine.run("systemctl", "start", unit)
    mount = unit.replace(".automount", ".mount")
    assert machine.of(mount, "ActiveState") == "inactive"
    assert machine.run("cat", machine.mnt / "a/000000.x.bin") == "abc"
    assert machine.of(mount, "ActiveState") == "active"
    machine.run("systemctl", "stop", unit, mount)
    machine.run("mountpoint", "-q", machine.mnt, status=32)
