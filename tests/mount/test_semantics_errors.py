"""docs/SEMANTICS.md, statement by statement: what each error means."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardfs import config, open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import mounting
from tests.mount.conftest import run as shardfs
from tests.mount.semantics import (
    WORDS,
    World,
    command,
    contents,
    fill,
    label,
    labels,
    refused,
    stored_key,
    sync,
)
from tests.unit.writing_player import Mount

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

EXCHANGE, HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    path = tmp_path / "small"
    path.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", path]).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def all_refused(code: int, *changes: Callable[[], object]) -> None:
    for change in changes:
        with refused(code):
            change()


class TestErrors:
    def test_erofs_means_that_nothing_may_be_changed(self, world: World, tmp_path: Path) -> None:
        there = world.other / "there"
        all_refused(
            errno.EROFS,
            lambda: (there / "000000.json").write_text("x"),
            lambda: (there / "000001.json").write_text("x"),
            lambda: (world.other / "new").mkdir(),
            lambda: (there / "000000.json").unlink(),
            lambda: os.rename(there, world.other / "z"),
            lambda: os.truncate(there / "000000.json", 0),
            lambda: os.chmod(there / "000000.json", 0o600),
            lambda: os.setxattr(there / "000000.json", "user.x", b"1"),
        )
        open_store(tmp_path / "store", driver="squirrel").set([{"label": 1}], "a")
        ending = Mount(tmp_path / "store", tmp_path / "state")
        try:
            ending.ask(ending.vfs.finish, config.SHUTDOWN_WAIT)
            with refused(errno.EROFS):
                ending.ask(ending.vfs.mkdir, 1, b"new", 0o755, 0, 0)
        finally:
            ending.close()

    def test_eperm_means_that_a_key_cannot_hold_it(self, world: World) -> None:
        key = world.key()
        before = contents(key)
        plain = world.mnt / f"{world.name()}.tmp"
        plain.mkdir()
        all_refused(
            errno.EPERM,
            lambda: (world.mnt / "file").write_text("x"),
            lambda: (key / "sub").mkdir(),
            lambda: os.symlink("x", key / "link"),
            lambda: os.link(key / "000000.json", key / "hard"),
            lambda: os.mkfifo(key / "fifo"),
            lambda: os.rename(plain, key / plain.name),
        )
        command("mv", plain, key, status=1)
        assert contents(key) == before
        plain.rmdir()

    def test_eperm_means_that_an_option_is_missing(self, world: World) -> None:
        key = world.key()
        label(key, 0, 5)
        os.rename(key / "000001.x.bin", key / "other.x.bin")
        all_refused(
            errno.EPERM,
            lambda: (key / "000000.json").unlink(),
            lambda: (key / "000000.x.bin").unlink(),
            lambda: (key / "other.x.bin").unlink(),
        )
        assert {"000000.json", "000000.x.bin", "other.x.bin"} <= set(os.listdir(key))
        os.rename(key / "other.x.bin", key / "000001.x.bin")
        sync(key)

    def test_eexist_means_that_the_store_has_it(self, world: World) -> None:
        key, plain = world.key(), world.mnt / f"{world.name()}.tmp"
        plain.mkdir()
        fill(plain, 1)
        all_refused(
            errno.EEXIST,
            lambda: os.rename(plain, key),
            lambda: key.mkdir(),
            lambda: os.open(key / "000000.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        )
        taken = world.mnt / world.name()
        assert not taken.exists()
        open_store(world.store).set([{"label": 9}], taken.name)
        for _ in range(2):
            with refused(errno.EEXIST):
                os.rename(plain, taken)
        assert labels(world.store, taken) == [9]
        assert len(contents(plain)) == 2
        shutil.rmtree(plain)

    def test_ebusy_means_that_somebody_still_writes(self, world: World) -> None:
        key, plain = world.key(), world.mnt / f"{world.name()}.tmp"
        plain.mkdir()
        with open(key / "000001.json", "w") as one, open(plain / "000000.json", "w") as two:
            for file in (one, two):
                file.write('{"label": 5}')
                file.flush()
            all_refused(errno.EBUSY, lambda: sync(key), lambda: os.rename(plain, plain.with_suffix("")))
            done = shardfs("staging", "discard", world.store, key.name, "--yes", XDG_STATE_HOME=str(world.state))
            assert done.returncode == 6, done.stderr
            assert shardfs("commit", world.mnt, key.name).returncode == 6
        sync(key)
        os.rename(plain, plain.with_suffix(""))
        assert labels(world.store, key) == [0, 5, 2]

    def test_ebusy_means_that_changes_are_in_the_way(self, free: World) -> None:
        key, plain = free.key(), free.mnt / f"{free.name()}.tmp"
        plain.mkdir()
        label(plain, 0, 9)
        label(key, 0, 7)
        with refused(errno.EBUSY):
            os.rename(plain, key)
        sync(key)
        os.rename(plain, key)
        assert labels(free.store, key) == [9]

    @pytest.mark.parametrize("name", ["000001.json", "000003.npy", "000003"])
    def test_einval_means_that_it_is_no_sample(self, world: World, name: str) -> None:
        key = world.key()
        (key / name).write_text("{")
        with refused(errno.EINVAL):
            sync(key)
        done = shardfs("commit", world.mnt, key.name)
        assert (done.returncode, f"{key.name}/{name}: " in done.stderr) == (1, True), done.stderr
        assert (key / name).read_text() == "{"
        label(key, 1, 5) if name == "000001.json" else os.unlink(key / name)
        sync(key)

    def test_einval_means_that_it_is_no_name(self, world: World) -> None:
        key = world.key()
        all_refused(errno.EINVAL, lambda: (world.mnt / "a~2").mkdir(), lambda: (world.mnt / "100%").mkdir())
        libc = ctypes.CDLL(None, use_errno=True)
        names = [os.fsencode(key / name) for name in ("000000.json", "000001.json")]
        assert libc.renameat2(HERE, names[0], HERE, names[1], EXCHANGE) == -1
        assert ctypes.get_errno() == errno.EINVAL

    def test_estale_means_that_the_store_has_another_version(self, world: World) -> None:
        key, opened = world.key(), open_store(world.store)
        label(key, 0, 7)
        opened.set([{"label": 8}], key.name)
        with refused(errno.ESTALE):
            sync(key)
        (kept,) = world.mnt.glob(f"{key.name}.conflict-*")
        shutil.rmtree(kept)
        wait_for(lambda: (key / "000000.json").read_text() == '{"label": 8}\n')
        inside = os.open(key, os.O_RDONLY | os.O_DIRECTORY)
        try:
            opened.set([{"label": 9}], key.name)
            wait_for(lambda: (key / "000000.json").read_text() == '{"label": 9}\n')
            with refused(errno.ESTALE):
                os.close(os.open("000001.json", os.O_RDONLY, dir_fd=inside))
        finally:
            os.close(inside)

    def test_exdev_means_that_it_would_have_to_be_copied(self, world: World) -> None:
        one, two = world.key(), world.key()
        all_refused(
            errno.EXDEV,
            lambda: os.rename(one / "000000.json", two / "000003.json"),
            lambda: os.rename(one, world.mnt / world.name()),
        )
        (one / "000003.x.bin").write_bytes(b"new")
        command("mv", one / "000003.x.bin", two / "000003.x.bin")
        assert (two / "000003.x.bin").read_bytes() == b"new"

    def test_enospc_means_that_the_staging_disk_is_full(self, alone: Path, small_disk: Path) -> None:
        with mounting(alone, *WORDS, XDG_STATE_HOME=str(small_disk)) as path:
            key = stored_key(path)
            (key / "000003.x.bin").write_bytes(b"before")
            held = 0
            with refused(errno.ENOSPC), open(key / "000003.x.bin", "r+b", buffering=0) as file:
                while True:
                    held += file.write(b"x" * 100_000)
            assert (key / "000003.x.bin").read_bytes() == b"x" * held
            os.unlink(key / "000003.x.bin")
            label(key, 1, 7)
            sync(key)
        assert labels(alone, key) == [0, 7, 2]

    def test_efbig_means_that_no_disk_has_such_files(self, world: World) -> None:
        key = world.key()
        with refused(errno.EFBIG):
            os.truncate(key / "000000.x.bin", 1 << 60)
        assert (key / "000000.x.bin").read_bytes() == bytes(100)

    def test_eio_means_that_stored_bytes_are_damaged(self, alone: Path) -> None:
        (alone / "bad.gz").write_bytes((alone / "there.gz").read_bytes()[:-9])
        with mounting(alone, *WORDS) as path:
            with refused(errno.EIO):
                os.listdir(path / "bad")
            with refused(errno.EIO):
                label(path / "bad", 0, 1)
            assert "bad" in (path.parent / "log").read_text()
            assert (path / "there/000000.json").read_text() == '{"label": 0}\n'

    def test_enotempty_means_that_there_are_files_in_it(self, world: World) -> None:
        key, new, plain = world.key(), world.mnt / world.name(), world.mnt / f"{world.name()}.tmp"
        for folder in (new, plain):
            folder.mkdir()
            fill(folder, 1)
        before = [contents(folder) for folder in (key, new, plain)]
        all_refused(
            errno.ENOTEMPTY,
            lambda: key.rmdir(),
            lambda: new.rmdir(),
            lambda: plain.rmdir(),
            lambda: os.rename(plain, new),
        )
        assert [contents(folder) for folder in (key, new, plain)] == before
        shutil.rmtree(plain)

    def test_enametoolong_means_over_255_bytes(self, world: World) -> None:
        key = world.key()
        before = os.listdir(key)
        all_refused(
            errno.ENAMETOOLONG,
            lambda: (key / ("x" * 252 + ".bin")).write_bytes(b""),
            lambda: (world.mnt / ("x" * 256)).mkdir(),
            lambda: os.rename(key / "000000.json", key / ("x" * 251 + ".json")),
        )
        longest = "x" * 251 + ".bin"
        (key / longest).write_bytes(b"")
        assert sorted(os.listdir(key)) == sorted([*before, longest])
        os.unlink(key / longest)

    def test_eopnotsupp_means_that_there_is_no_such_thing_here(self, world: World) -> None:
        key = world.key()
        libc = ctypes.CDLL(None, use_errno=True)
        with open(key / "000000.x.bin", "r+b") as file:
            assert libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(4096)) == -1
            assert ctypes.get_errno() == errno.EOPNOTSUPP
        all_refused(
            errno.EOPNOTSUPP,
            lambda: os.setxattr(key / "000000.json", "user.x", b"1"),
            lambda: os.getxattr(key / "000000.json", "user.x"),
            lambda: os.listxattr(key / "000000.json") or os.removexattr(key / "000000.json", "user.x"),
            lambda: os.setxattr(key / "000000.json", "system.posix_acl_access", b"\2\0\0\0"),
            lambda: os.open(key, os.O_TMPFILE | os.O_RDWR),
        )
