"""Mounts by users without rights: through fusermount3, in a user namespace, and on what somebody else has mounted."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.mount.users import World, a_world

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="other users are root's to play"),
]


ALL = pytest.mark.skipif(os.environ.get("SHARDFS_ALL_FEATURES") != "1", reason="SHARDFS_ALL_FEATURES=1 runs it")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with a_world() as made:
        yield made


def test_a_user_mounts_for_himself(world: World) -> None:
    """Through fusermount3. Without user_allow_other he is the only one who gets in, and that he cannot let others in is
    said in one line."""
    done = world.run(
        """
        user bash -c 'shardfs mount "$store" "$at/mnt"' 2>/dev/null
        echo "mounted $?"
        user cat "$mnt/a/000000.x.bin"; echo
        grep " $mnt " /proc/self/mounts | cut -d ' ' -f 3,4
        ls "$mnt" 2>&1 | grep -o "Permission denied"
        other ls "$mnt" 2>&1 | grep -o "Permission denied"
        rights "$other" "$python" -m shardfs umount "$mnt"; echo "other $?"
        user bash -c 'shardfs status "$at/mnt"' | head -1
        user bash -c 'shardfs umount "$at/mnt"'; echo "umount $?"
        user bash -c 'shardfs mount --allow-other "$store" "$at/mnt"'; echo "allow_other $?"
        user bash -c 'shardfs mount -f -o allow_other "$store" "$at/mnt"'; echo "foreground $?"
        """
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["mounted 0", "abc"], done.stderr
    assert lines[2].startswith("fuse.shardfs ro,nosuid,nodev,")
    assert "user_id=65534,group_id=65534,default_permissions" in lines[2]
    assert lines[3:6] == ["Permission denied", "Permission denied", "other 4"]
    assert "serving" in lines[6]
    assert lines[7:] == ["umount 0", "allow_other 5", "foreground 5"], done.stderr
    said = done.stderr.splitlines()
    refused = "shardfs: allow_other needs the line user_allow_other in /etc/fuse.conf, which root can add"
    assert said.count(refused) == 2
    assert [line for line in said if not line.startswith("shardfs: ")] == []


def test_a_user_lets_others_in(world: World) -> None:
    """With user_allow_other, as far as modes allow: others read, and write nothing."""
    done = world.run(
        """
        chown -R "$user" "$store"
        user bash -c 'shardfs mount --rw --allow-other "$store" "$at/mnt"' 2>/dev/null
        echo "mounted $?"
        other cat "$mnt/a/000000.x.bin"; echo
        other mkdir "$mnt/new" 2>&1 | grep -o "Permission denied"
        other sh -c 'echo >"$1"' sh "$mnt/a/000000.json" 2>&1 | grep -o "Permission denied"
        user bash -c 'mkdir "$at/mnt/new" && echo {} >"$at/mnt/new/000000.json"'
        user bash -c 'shardfs umount "$at/mnt"'; echo "umount $?"
        ls "$store"
        chown -R 0 "$store"
        """,
        fuse_conf="user_allow_other",
    )
    assert done.stdout.split("\n")[:-1] == [
        *("mounted 0", "abc", "Permission denied", "Permission denied", "umount 0", "a.gz", "new.gz")
    ], done.stderr
    os.unlink(world.store / "new.gz")


def test_a_user_who_may_not_is_told_why(world: World) -> None:
    """In one line each: where he may not open /dev/fuse, where fusermount3 gets no rights, and in what is not his."""
    done = world.run(
        """
        user setpriv --no-new-privs bash -c 'shardfs mount "$store" "$at/mnt"'; echo "$?"
        mkdir "$own/roots"
        user bash -c 'shardfs mount "$store" "$own/roots"'; echo "$?"
        user bash -c 'shardfs mount "$store" "$own/new"'; echo "$?"
        chmod 600 /dev/fuse
        user bash -c 'shardfs mount "$store" "$at/mnt"'; echo "$?"
        """
    )
    assert done.stdout.split() == ["5", "4", "4", "5"], done.stderr
    said = done.stderr.splitlines()
    assert len(said) == 4, done.stderr
    assert "mounting on" in said[0]
    assert "is not permitted here" in said[0]
    assert "cannot mount on" in said[1]
    assert "cannot make mount point" in said[2]
    assert "/dev/fuse cannot be opened (Permission denied)" in said[3]


def test_in_a_user_namespace(world: World) -> None:
    """Its root mounts by mount(2) in a mount namespace of its own, and is refused in one that is not."""
    done = world.run(
        """
        user unshare -Urm true || exit 77
        user unshare -Urm bash -c '
            shardfs mount --allow-other "$store" "$at/mnt" 2>/dev/null; echo "mounted $?"
            cat "$at/mnt/a/000000.x.bin"; echo
            stat -c %u "$at/mnt"
            shardfs umount "$at/mnt"; echo "umount $?"
            ls -A "$at/mnt"
        '
        user unshare -Ur bash -c 'shardfs mount "$store" "$at/mnt"'; echo "refused $?"
        """
    )
    if done.returncode == 77:
        pytest.skip(f"users make no namespaces here: {done.stderr}")
    assert done.stdout.splitlines() == ["mounted 0", "abc", "0", "umount 0", "refused 5"], done.stderr
    assert done.stderr.startswith("shardfs: mounting on ")
    assert "is not permitted here" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


# --- /dev/fd/N --------------------------------------------------------------------------------------------------------

UNSEEN = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
assert libc.unshare(0x20000) == 0
assert libc.mount(None, b"/", None, (1 << 14) | (1 << 18), None) == 0
assert libc.umount2(sys.argv[1].encode(), 2) == 0
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Puts a program into a mount namespace of its own, without what is mounted at a path. umount(8) would ask that mount,
which nobody serves yet."""

PARENT = (
    f"UNSEEN = {UNSEEN!r}"
    + r"""
import ctypes, os, signal, subprocess, sys
python, store, mnt, uid, how = sys.argv[1:6]
libc = ctypes.CDLL(None, use_errno=True)
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40000,user_id={uid},group_id={uid},allow_other"
if how != "careless":
    options += ",default_permissions"
if how != "unmounted":
    assert libc.mount(b"store", mnt.encode(), b"fuse.shardfs", 6 if "rw" in sys.argv[6:] else 7, options.encode()) == 0
words = [] if how == "background" else ["-f"]
if "rw" in sys.argv[6:] or how == "careless":
    words.append("--rw")
unseen = [python, "-c", UNSEEN, mnt]
command = ["setpriv", "--clear-groups", "--reuid", uid, "--regid", uid, "--bounding-set", "-all", "--no-new-privs"]
command += [python, "-m", "shardfs", "mount", *words, store, f"/dev/fd/{device}"]
if how.startswith("unseen"):
    command = unseen + command
ready, heard = os.pipe()
child = subprocess.Popen(command, pass_fds=[device], stderr=subprocess.PIPE, text=True)
line = child.stderr.readline()
print(line.replace(store, "STORE").replace(mnt, "MNT").replace(f"fd/{device}", "fd/N"), end="")
if line.startswith("shardfs: serving "):
    os.close(device)
    print(open(f"{mnt}/a/000000.x.bin").read(), os.stat(f"{mnt}/a").st_uid)
    if "rw" in sys.argv[6:]:
        os.mkdir(f"{mnt}/new")
        open(f"{mnt}/new/000000.json", "w").write("{}")
    if how == "background":
        print("started", child.wait(20))
        libc.umount2(mnt.encode(), 0)
    else:
        child.send_signal(signal.SIGTERM)
        print("ended", child.wait(20))
        try:
            os.listdir(mnt)
        except OSError as error:
            print(os.strerror(error.errno))
        libc.umount2(mnt.encode(), 2)
else:
    os.close(device)
    print("refused", child.wait(20))
    libc.umount2(mnt.encode(), 2)
rest = child.stderr.read()
print(rest, end="")
"""
)


def handed_over(world: World, how: str, *words: str) -> list[str]:
    """What a parent with all rights, and a child without any that serves its mount, have said."""
    (world.path / "parent.py").write_text(PARENT)
    script = f'"$python" "$at/../parent.py" "$python" "$store" "$mnt" "$user" {how} {" ".join(words)}'
    done = world.run(script)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_descriptor_of_a_mount_that_somebody_else_made(world: World) -> None:
    """A process without any right serves it. When it ends the mount stays, and answers with an error, until who made it
    takes it away."""
    assert handed_over(world, "foreground") == [
        "shardfs: serving STORE on /dev/fd/N; whoever mounted it takes it away",
        "abc 65534",
        "ended 0",
        "Transport endpoint is not connected",
    ]


@ALL
def test_a_descriptor_of_a_mount_that_cannot_be_seen(world: World) -> None:
    """In a mount namespace without it: as in a container beside the one that mounts."""
    assert handed_over(world, "unseen") == [
        "shardfs: serving STORE on /dev/fd/N; whoever mounted it takes it away",
        "abc 65534",
        "ended 0",
        "Transport endpoint is not connected",
    ]
    lines = handed_over(world, "unseen-writable", "rw")
    assert lines == [
        "shardfs: /dev/fd/N: this process does not see that mount and its options: only without --rw",
        "refused 4",
    ]


@ALL
def test_a_descriptor_in_the_background_and_for_writing(world: World) -> None:
    assert handed_over(world, "background")[1:] == ["abc 65534", "started 0"]
    for path in (world.store, world.store / "a.gz"):
        os.chown(path, 65534, 65534)
    assert handed_over(world, "foreground", "rw")[1:3] == ["abc 65534", "ended 0"]
    assert (world.store / "new.gz").exists()
    (world.store / "new.gz").unlink()
    assert handed_over(world, "careless") == [
        "shardfs: MNT is mounted with allow_other and without default_permissions: not with --rw",
        "refused 4",
    ]


@ALL
def test_descriptors_that_are_none(world: World) -> None:
    assert handed_over(world, "unmounted")[1:] == ["refused 4"]
    done = world.run(
        """
        user bash -c 'shardfs mount "$store" /dev/fd/99'; echo "$?"
        user bash -c 'shardfs mount "$store" /dev/fd/9' 9</dev/null; echo "$?"
        user bash -c 'shardfs mount "$store" /dev/fd/0'; echo "$?"
        """
    )
    assert done.stdout.split() == ["4", "4", "4"]
    assert [line.partition(": ")[2].partition(":")[0] for line in done.stderr.splitlines()] == [
        "/dev/fd/99 is not open",
        "/dev/fd/9 is no /dev/fuse but /dev/null",
        "/dev/fd/0 is a standard descriptor",
    ]


@ALL
def test_mount_fuse3_that_drops_its_rights(world: World) -> None:
    """`drop_privileges` of mount.fuse3: it mounts, gives up all rights, and starts us with /dev/fd/N."""
    done = world.run(
        """
        printf '#!/bin/sh\\nexec "%s" -m shardfs "$@"\\n' "$python" >"$own/shardfs"; chmod 755 "$own/shardfs"
        mount -t fuse "$own/shardfs#$store" "$mnt" -o ro,allow_other,setuid=nobody,drop_privileges 2>/dev/null
        status=$?
        echo "mounted $status"
        [ "$status" = 0 ] || exit 1
        cat "$mnt/a/000000.x.bin"; echo
        pid=$(serving)
        grep -E "^(Uid|CapEff|NoNewPrivs)" "/proc/$pid/status" | tr -s '\\t\\n' '  '; echo
        umount "$mnt"
        while [ -d "/proc/$pid" ]; do sleep 0.05; done
        """
    )
    assert done.stdout.splitlines() == [
        *("mounted 0", "abc", "Uid: 65534 65534 65534 65534 CapEff: 0000000000000000 NoNewPrivs: 1 ")
    ], done.stderr
