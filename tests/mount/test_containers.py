"""What docs/CONTAINERS.md says, as far as namespaces on one machine can show it: mounts that reach another container,
and what a container must be allowed. The YAML on that page is checked in tests/unit/test_documents.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.mount.users import World, a_world

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(90),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces that share mounts are root's"),
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with a_world() as made:
        yield made


def test_a_sidecar_mounts_for_the_container_beside_it(world: World) -> None:
    """A volume that both share: mounts spread from the sidecar (Bidirectional), and to the other (HostToContainer).
    Each has a network of its own, and the other's user has no rights; the sidecar has SYS_ADMIN, and nothing else."""
    done = world.run(
        """
        mkdir "$own/volume"; mount -t tmpfs -o mode=755 none "$own/volume"; mount --make-shared "$own/volume"
        mkdir "$own/volume/data" "$own/seen"
        export volume="$own/volume/data"
        unshare --mount --net --propagation slave bash -uc '
            until [ -d "$volume/a" ]; do sleep 0.05; done
            setpriv --clear-groups --reuid "$other" cat "$volume/a/000000.x.bin"; echo
            echo >"$own/seen/read"
            while [ -d "$volume/a" ]; do sleep 0.05; done
            ls -A "$volume"; echo "gone"
        ' &
        unshare --mount --net --propagation unchanged \
            setpriv --bounding-set -all,+sys_admin --inh-caps -all --no-new-privs bash -uc '
            shardfs mount --allow-other "$store" "$volume"
            until [ -e "$own/seen/read" ]; do sleep 0.05; done
            grep CapEff /proc/self/status
            shardfs umount "$volume"; echo "umount $?"
        '
        wait
        """
    )
    assert sorted(done.stdout.split("\n")[:-1]) == sorted(["abc", "CapEff:\t0000000000200000", "umount 0", "gone"]), (
        done.stderr
    )
    assert done.stderr.startswith("shardfs: mounted ")
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_container_that_may_not_mount_is_told_what_it_needs(world: World) -> None:
    """Without SYS_ADMIN, and without the device: what to start the container with, in one line."""
    done = world.run(
        """
        mkdir "$own/empty"
        unshare --mount setpriv --bounding-set -all --inh-caps -all --no-new-privs \
            bash -c 'shardfs mount "$store" "$own/empty"'; echo "$?"
        umount /dev/fuse; mount -t tmpfs none /dev && mknod /dev/null c 1 3 && ln -s /proc/self/fd /dev/fd
        bash -c 'shardfs mount "$store" "$at/mnt"'; echo "$?"
        """
    )
    assert done.stdout.split() == ["5", "5"], done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.startswith("shardfs: ")
        assert line.endswith("in a container start it with --device /dev/fuse --cap-add SYS_ADMIN")


def test_a_container_without_rights_serves_what_another_mounts(world: World) -> None:
    """The scripts of docs/examples/containers, three containers: one with all rights that mounts, one without any that
    serves and does not see the mount, one that reads. When the second dies the mount goes, and the next is served."""
    done = world.run(
        """
        mkdir "$own/volume" "$own/socket" "$own/seen"
        mount -t tmpfs -o mode=755 none "$own/volume"; mount --make-shared "$own/volume"
        export volume="$own/volume/data" socket="$own/socket/fuse"
        unshare --mount --net --propagation unchanged "$python" "$examples/hand_over.py" "$socket" "$volume" &
        mounter=$!
        serve() {
            unshare --mount --net --propagation private bash -c 'umount -l "$own/volume" && exec "$@"' - \
                setpriv --clear-groups --reuid "$user" --regid "$user" --bounding-set -all --no-new-privs \
                "$python" "$examples/take_over.py" "$socket" "$python" -m shardfs mount -f "$store"
        }
        serve &
        until [ -e "$volume/.shardfs/status.json" ]; do sleep 0.05; done
        other cat "$volume/a/000000.x.bin"; echo
        pid=$(serving)
        grep CapEff "/proc/$pid/status"
        grep -c "$volume" "/proc/$pid/mountinfo"
        kill -9 "$pid"
        while mountpoint -q "$volume"; do sleep 0.05; done
        serve &
        until [ -e "$volume/.shardfs/status.json" ]; do sleep 0.05; done
        other cat "$volume/a/000000.x.bin"; echo
        kill "$mounter"; wait
        mountpoint -q "$volume" || echo gone
        """
    )
    assert done.stdout.split("\n")[:-1] == ["abc", "CapEff:\t0000000000000000", "0", "abc", "gone"], done.stderr
    assert done.stderr.count("shardfs: serving ") == 2, done.stderr
