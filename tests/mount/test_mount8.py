"""mount(8), fstab and automounts, in mount namespaces in which /sbin has what an administrator would link there.

Nothing outside of the namespace is changed, and what is mounted in it goes with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.mount.conftest import REPOSITORY, SECONDS, mount_point, shardfs

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="mount(8) is root's"),
]

ENTRY = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from shardfs.cli import main
sys.exit(main())
"""
"""What pip makes of an entry of [project.scripts]."""

LINKED = """
mount -t tmpfs none "$over" && mkdir "$over/upper" "$over/work"
sbin=$(realpath /sbin)
mount -t overlay overlay -o "lowerdir=$sbin,upperdir=$over/upper,workdir=$over/work" "$sbin" || exit 77
ln -s "$bin/mount.shardfs" /sbin/mount.shardfs
ln -s "$bin/shardfs" /sbin/shardfs
mkdir "$at/one" "$at/two" "$at/never"
said() { "$@" 2>>"$at/stderr"; echo "$?"; }
"""
"""As `docs/OPERATIONS.md` has it, for a directory of programs that only this namespace sees."""


def in_namespace(folder: Path, script: str, **names: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell script as root of a mount namespace. `at`, `bin` and `over` are directories for it."""
    made = {"at": folder / "at", "bin": folder / "bin", "over": folder / "over"}
    for path in made.values():
        path.mkdir()
    for name in ("shardfs", "mount.shardfs"):
        (made["bin"] / name).write_text(ENTRY)
        (made["bin"] / name).chmod(0o755)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-uc", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, **{name: str(path) for name, path in {**made, **names}.items()}},
    )
    if done.returncode == 77:
        pytest.skip(f"this machine has no overlay mounts: {done.stderr}")
    return done


MOUNTED_TWICE = """
mount -t fuse.shardfs "$store" "$at/one" -o ro,_netdev,nofail,noauto,user,x-systemd.automount,memory=64M || exit
mount -v -t shardfs "$store" "$at/two" -o rw,_netdev,nofail,x-a=b,nosuid 2>"$at/verbose" || exit
ls "$at/one" "$at/two"
grep "$at/" /proc/self/mounts | cut -d ' ' -f 3
shardfs umount "$at/one" "$at/two"
said mount.shardfs "$store" "$at/one" -f
said mount.shardfs
said mount -t shardfs "$store" "$at/one" -o alow_other
said mount -t fuse.shardfs "$at/nowhere" "$at/one"
said mount.shardfs "$at/nowhere" "$at/one" -sn -o rw
ls "$at/one"
"""


def test_mount8_by_either_type_and_its_exit_statuses(tiny_store: Path, tmp_path: Path) -> None:
    done = in_namespace(tmp_path, LINKED + MOUNTED_TWICE, store=tiny_store)
    shown = ["a", "b", "deep"]
    at = tmp_path / "at"
    said = (at / "stderr").read_text() if (at / "stderr").exists() else ""
    assert done.stdout.split() == [
        *(f"{at}/one:", *shown, f"{at}/two:", *shown),
        *("fuse.shardfs", "fuse.shardfs"),
        *("0", "1", "1", "32", "32"),
    ], done.stderr + said
    assert "read-only" in (at / "verbose").read_text()
    assert said.count("no store at") == 2
    assert "did you mean allow_other" in said
    assert "usage: mount.shardfs STORE MNT" in said
    assert "Traceback" not in said + done.stderr


MOUNTED_BY_FSTAB = """
cat >"$at/fstab" <<END
# device       point          type           options                                     dump pass
$store         $at/one        shardfs        ro,_netdev,nofail,x-systemd.automount,x-b=c    0 0
$store         $at/two        fuse.shardfs   allow_other,arrays=npy,nofail                  0 0
$store         $at/never      shardfs        noauto,user                                    0 0
END
said mount -a -T "$at/fstab"
ls "$at/one" "$at/two" "$at/never"
said mount -a -T "$at/fstab"
said mount -T "$at/fstab" "$at/never"
ls "$at/never"
shardfs umount "$at/one" "$at/two" "$at/never"
echo "$at/nowhere $at/one shardfs defaults 0 0" >>"$at/fstab"
said mount -T "$at/fstab" --source "$at/nowhere"
sed -i 's/shardfs defaults/shardfs nofail/' "$at/fstab"
said mount -a -T "$at/fstab"
ls "$at/two"
shardfs umount "$at/one" "$at/two"
grep -c "$at/" /proc/self/mounts
"""


def test_an_fstab_of_its_own(tiny_store: Path, tmp_path: Path) -> None:
    done = in_namespace(tmp_path, LINKED + MOUNTED_BY_FSTAB, store=tiny_store)
    shown = ["a", "b", "deep"]
    at = tmp_path / "at"
    said = (at / "stderr").read_text() if (at / "stderr").exists() else ""
    assert done.stdout.split() == [
        *("0", f"{at}/never:", f"{at}/one:", *shown, f"{at}/two:", *shown),
        *("0", "0", *shown),
        *("32", "64", *shown, "0"),  # of several, some: the others are mounted, whatever stands before them
    ], done.stderr + said


AUTOMOUNTED = textwrap.dedent(
    """
    import ctypes, fcntl, os, select, struct, subprocess, sys
    path, command = sys.argv[1], sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    reading, writing = os.pipe()
    options = f"fd={writing},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
    if libc.mount(b"test", path.encode(), b"autofs", 0, options.encode()):
        sys.exit(77)
    os.close(writing)
    looks = subprocess.Popen(["ls", path], stdout=subprocess.PIPE, text=True, start_new_session=True)
    select.select([reading], [], [], 30)
    packet = os.read(reading, 512)
    token = int.from_bytes(packet[8:12], sys.byteorder)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    root = os.open("/dev/autofs", os.O_RDONLY)
    for line in open("/proc/self/mountinfo"):
        if f" {path} " in line and " autofs " in line:
            top = line.split()[2].split(":")
    name = path.encode() + b"\\0"
    device = os.makedev(int(top[0]), int(top[1]))
    def control(number, value, text=b""):
        size = 24 + len(text)
        given = bytearray(struct.pack("IIIiQ", 1, 0, size, value, device if text else token) + text)
        fcntl.ioctl(root, (3 << 30) | (24 << 16) | (0x93 << 8) | number, given)
        return struct.unpack_from("i", given, 12)[0]
    mounted = control(0x74, -1, name)
    control(0x76, mounted)
    print(done.returncode, *looks.communicate(timeout=20)[0].split())
    sys.stderr.write(done.stderr)
    subprocess.run([*command[:3], "umount", path], check=True)
    """
)
"""A manager of one automount: somebody looks, the command is run in the manager's process group as systemd runs
mount(8), and who looked is let go on. The ioctls are those of /dev/autofs (autofs_dev_ioctl): OPENMOUNT, READY."""


def test_an_automount_is_not_looked_into_by_who_mounts_it(tiny_store: Path) -> None:
    """It waited for itself: the mount point was looked into, and from a process group of its own, before the mount."""
    with mount_point(made=True) as path:
        words = [sys.executable, "-c", AUTOMOUNTED, str(path), *shardfs("mount", tiny_store, path)]
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", *words], capture_output=True, text=True, timeout=45
        )
        if done.returncode == 77:
            pytest.skip("this kernel mounts no autofs")
        assert done.stdout == "0 a b deep\n", done.stderr
