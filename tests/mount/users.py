"""Users without rights, for tests: programs run as them in a mount namespace with a /dev/fuse and fuse.conf of its own.

Nothing outside of the namespace is changed. A Python that lies where only root may look is made visible in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shardfs.opening import open_store
from tests.mount.conftest import REPOSITORY, SECONDS, processes

USER, OTHER = 65534, 65533
"""nobody, as fusermount3 asks for a user's name; and somebody else."""

_PRELUDE = """
set -e
umask 022
mount -t tmpfs -o mode=755 none "$own"
if [ -n "$closed" ]; then
    mkdir "$own/base"
    mount --bind "$base" "$own/base"
    mount -t tmpfs -o mode=755 none "$closed"
    mkdir -p "$base"
    mount --bind "$own/base" "$base"
fi
mknod -m "$fuse_mode" "$own/fuse" c 10 229
mount --bind "$own/fuse" /dev/fuse
echo "$fuse_conf" >"$own/fuse.conf"
mount --bind "$own/fuse.conf" /etc/fuse.conf
set +e
rights() { setpriv --clear-groups --reuid "$1" --regid "$1" "${@:2}"; }
user() { rights "$user" "$@"; }
other() { rights "$other" env XDG_RUNTIME_DIR=/nowhere "$@"; }
shardfs() { "$python" -m shardfs "$@"; }
serving() {  # the process that serves a mount that was handed over
    for one in /proc/[0-9]*; do
        tr '\\0' ' ' 2>/dev/null <"$one/cmdline" | grep -q "shardfs .*$store /dev/fd/" && echo "${one#/proc/}"
    done
}
mnt="$at/mnt"
export -f shardfs
"""


@dataclass(frozen=True)
class World:
    """A directory of a user's, with a store that everybody may read."""

    path: Path
    store: Path

    def run(
        self, script: str, *, fuse_mode: str = "666", fuse_conf: str = "", seconds: float = SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a script of bash as root of the namespace. It has the functions `user` and `other` (a program as one of
        them) and, within `user bash -c`, `shardfs`; `$at` is the user's directory, `$mnt` in it is empty."""
        base = Path(sys.base_prefix).resolve()
        names = {
            "at": self.path / "home",
            "own": self.path / "own",
            "store": self.store,
            "python": sys.executable,
            "examples": REPOSITORY / "docs/examples/containers",
            "base": base,
            "closed": _closed(base) or "",
            "fuse_mode": fuse_mode,
            "fuse_conf": fuse_conf,
            "user": USER,
            "other": OTHER,
            "HOME": self.path / "home",
            "XDG_RUNTIME_DIR": self.path / "home/run",
            "PYTHONPATH": REPOSITORY,
            "LC_ALL": "C.UTF-8",
        }
        command = ["unshare", "--mount", "--propagation", "private", "bash", "-uc", _PRELUDE + script]
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={"PATH": os.environ["PATH"], **{name: str(value) for name, value in names.items()}},
            cwd="/",
        )


def _closed(path: Path) -> Path | None:
    """The uppermost directory on the way to a path into which only its owner may look."""
    for above in reversed((path, *path.parents)):
        if not above.stat().st_mode & stat.S_IXOTH:
            return above
    return None


@contextlib.contextmanager
def a_world() -> Iterator[World]:
    """One, with nothing of it left at the end."""
    path = Path(tempfile.mkdtemp(prefix="shardfs-users-")).resolve()
    try:
        path.chmod(0o755)
        store = path / "store"
        open_store(store, driver="squirrel").set([{"label": 1, "x": b"abc"}], "a")
        (store / "a.gz").chmod(0o644)
        (path / "own").mkdir()
        for folder in ("home", "home/mnt", "home/run"):
            (path / folder).mkdir(mode=0o700)
            os.chown(path / folder, USER, USER)
        (path / "home").chmod(0o755)
        yield World(path, store)
        for named in (path / "home/mnt", store):
            assert processes(named) == [], "a process is left"
    finally:
        shutil.rmtree(path)
