"""docs/SEMANTICS.md, statement by statement: keys and directories, copying, conflicts, and what there is not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from shardfs import open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import mount_point, mounting
from tests.mount.conftest import run as shardfs
from tests.mount.semantics import (
    JPEG,
    WORDS,
    World,
    command,
    contents,
    fill,
    kill,
    label,
    labels,
    new_name,
    refused,
    stored_key,
    sync,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]


class TestKeysAndDirectories:
    def test_a_directory_becomes_a_key_with_its_first_file(self, world: World) -> None:
        key = world.mnt / world.name()
        key.mkdir()
        sync(key)
        command("touch", key / "000000.x.bin")
        sync(key)
        assert world.samples(key) == [{"x": b""}]
        empty = world.mnt / world.name()
        (empty / "deep").mkdir(parents=True)
        assert empty.name not in os.listdir(world.other)
        (empty / "deep").rmdir()
        empty.rmdir()

    def test_a_plain_directory_holds_anything(self, alone: Path) -> None:
        with mounting(alone, *WORDS) as path:
            for name in (".x", "x.tmp", "x.partial"):
                (path / name / "deep/deeper").mkdir(parents=True)
                (path / name / "no extension").write_text("any")
                (path / name / "deep/deeper/~").write_text("thing")
            assert shardfs("commit", path).returncode == 0
            assert sorted(os.listdir(path / "x.tmp")) == ["deep", "no extension"]
            for name in (".x", "x.tmp", "x.partial"):
                shutil.rmtree(path / name)
        assert open_store(alone).keys() == ["there"]

    def test_a_rename_that_cannot_be_stored_changes_nothing(self, world: World) -> None:
        key = world.mnt / world.name()
        plain = key.with_name(f"{key.name}.tmp")
        plain.mkdir()
        (plain / "000000.json").write_text("{")
        for _ in range(2):
            with refused(errno.EINVAL):
                os.rename(plain, key)
            assert contents(plain) == {"000000.json": b"{"}
            assert not key.exists()
        label(plain, 0, 3)
        os.rename(plain, key)
        assert labels(world.store, key) == [3]

    def test_temporary_names_are_no_part_of_samples(self, world: World) -> None:
        key = world.key()
        names = [".x", "x~", "x.tmp", "x.partial", "#x#", "4913", "sedAbC123"]
        for name in names:
            (key / name).write_text("for a while")
        sync(key)
        assert len(world.samples(key)) == 3
        assert set(names) < set(os.listdir(key))
        for name in names:
            assert (key / name).read_text() == "for a while"
            os.unlink(key / name)

    def test_what_did_not_change_keeps_its_stored_bytes(self, world: World) -> None:
        name = world.name()
        stored = {"a": np.arange(3, dtype=">f4"), "i": np.int16(3), "f": np.float32(0.1), "x": JPEG, "label": 1}
        opened = open_store(world.store)
        opened.set([stored], name)
        key = world.mnt / name
        wait_for(key.exists)
        document = json.loads((key / "000000.json").read_text())
        (key / "000000.json").write_text(json.dumps({**document, "label": 2}))
        sync(key)
        (sample,) = opened.get(name)
        assert sample["label"] == 2
        for field in ("a", "i", "f"):
            assert sample[field].dtype == stored[field].dtype  # type: ignore[attr-defined]
            assert sample[field].tobytes() == stored[field].tobytes()  # type: ignore[attr-defined]

    def test_what_is_not_stored_can_always_be_removed(self, world: World) -> None:
        key = world.key()
        fill(key, 5)
        command("rm", key / "000004.json", key / "000004.x.bin")
        new = world.mnt / world.name()
        new.mkdir()
        fill(new)
        command("rm", "-r", new)
        assert new.name not in os.listdir(world.mnt)

    def test_what_is_stored_is_removed_with_allow_delete_only(self, world: World, free: World) -> None:
        key = world.key()
        command("rm", "-r", key, status=1)
        assert len(os.listdir(key)) == 6
        key = free.key()
        command("rm", key / "000001.x.bin")
        sync(key)
        assert "x" not in free.samples(key)[1]
        command("rm", "-r", key)
        assert key.name not in list(open_store(free.store).keys())

    def test_a_stored_key_is_replaced_with_allow_overwrite_only(self, world: World, free: World) -> None:
        for here, allowed in ((world, False), (free, True)):
            key = here.key()
            plain = key.with_name(f"{key.name}.tmp")
            plain.mkdir()
            label(plain, 0, 9)
            command("mv", "-T", plain, key, status=0 if allowed else 1)
            assert labels(here.store, key) == ([9] if allowed else [0, 1, 2])
            assert plain.exists() is not allowed
            shutil.rmtree(plain, ignore_errors=True)
        assert contents(key) == {"000000.json": b'{"label": 9}\n'}

    def test_the_mode_and_times_of_a_stored_file_cannot_be_set(self, world: World) -> None:
        path = world.key() / "000001.json"
        before = path.stat()
        os.chmod(path, 0o600)
        os.chown(path, os.getuid(), os.getgid())
        os.utime(path, ns=(10**18, 10**18))
        after = path.stat()
        assert (after.st_mode, after.st_mtime_ns, after.st_ino) == (before.st_mode, before.st_mtime_ns, before.st_ino)
        assert json.loads(shardfs("status", world.mnt, "--json").stdout)["mode"] == "rw"

    def test_what_is_staged_can_be_discarded(self, world: World) -> None:
        key, state = world.key(), {"XDG_STATE_HOME": str(world.state)}
        before = contents(key)
        label(key, 1, 7)
        with open(key / "000001.json") as reader:
            assert shardfs("staging", "discard", world.store, key.name, "--yes", **state).returncode == 0
            assert reader.read() == '{"label": 7}\n'
        assert contents(key) == before
        new = world.mnt / world.name()
        new.mkdir()
        fill(new)
        assert shardfs("staging", "discard", world.store, new.name, "--yes", **state).returncode == 0
        assert not new.exists()


class TestCopyingAndRsync:
    def test_sizes_are_exact(self, world: World, tmp_path: Path) -> None:
        key = world.key()
        np.save(key / "000000.a.npy", np.arange(100))
        (key / "000001.json").write_text('{"label":   5}')
        for _ in range(2):
            for entry in os.scandir(key):
                assert entry.stat().st_size == len(Path(entry.path).read_bytes())
            sync(key)
        command("tar", "-C", key, "-cf", tmp_path / "all.tar", ".")
        shutil.copytree(key, tmp_path / "copy")
        assert contents(tmp_path / "copy") == contents(key)

    def test_the_second_rsync_wants_size_only_or_checksum(self, world: World, tmp_path: Path) -> None:
        source, key = tmp_path / "source", world.mnt / world.name()
        source.mkdir()
        fill(source)
        for path in source.iterdir():
            os.utime(path, (10**9, 10**9))
        command("rsync", "-a", f"{source}/", key)
        assert command("rsync", "-ai", f"{source}/", key) == ""
        sync(key)
        for option in ("--size-only", "--checksum"):
            said = command("rsync", "-a", "--stats", option, f"{source}/", key)
            assert "Number of regular files transferred: 0" in said
        assert "Number of regular files transferred: 6" in command("rsync", "-a", "--stats", f"{source}/", key)
        assert contents(key) == contents(source)

    def test_a_copy_of_a_mounted_key_has_the_same_files(self, world: World, tmp_path: Path) -> None:
        lines = tmp_path / "lines"
        open_store(lines, "squirrel-jsonl").set([{"n": n, "list": [n, "x"], "f": n / 3} for n in range(5)], "all")
        with mounting(lines, "--driver", "squirrel-jsonl") as source:
            key = world.mnt / world.name()
            command("cp", "-r", source / "all", key)
            done = shardfs("commit", world.mnt, key.name)
            assert done.returncode == 0
            (told,) = done.stderr.splitlines()[2:]
            assert told.split() == [key.name, "list", "list", "tuple", "5"]
            assert contents(key) == contents(source / "all")
            assert key.name in json.loads(shardfs("status", world.mnt, "--json").stdout)["changed"]


class TestConflicts:
    def test_one_process_writes_to_a_store(self, world: World, tmp_path: Path) -> None:
        done = shardfs("mount", "--rw", world.store, tmp_path / "mnt", XDG_STATE_HOME=str(world.state))
        assert (done.returncode, "is writing to" in done.stderr) == (6, True)
        with mounting(world.store) as another:
            assert sorted(os.listdir(another / "there")) == ["000000.json"]

    def test_a_conflict_keeps_both(self, world: World) -> None:
        key = world.key()
        label(key, 0, 77)
        open_store(world.store).set([{"label": 88}], key.name)
        with refused(errno.ESTALE):
            sync(key)
        wait_for(lambda: (key / "000000.json").read_text() == '{"label": 88}\n')
        (kept,) = world.mnt.glob(f"{key.name}.conflict-*")
        assert (kept / "000000.json").read_text() == '{"label": 77}\n'
        assert labels(world.store, key) == [88]
        shutil.rmtree(kept)

    @pytest.mark.parametrize("way", ["commit", "write-back", "umount"])
    def test_a_version_that_is_not_known_any_more_is_a_conflict_too(self, alone: Path, way: str) -> None:
        quiet = ("--rw", "--write-back", "1" if way == "write-back" else "off", "--no-index", "--log")
        with mount_point() as path:
            log = path.parent / "log"
            assert shardfs("mount", alone, path, *WORDS, "--no-index").returncode == 0
            key = path / "there"
            label(key, 0, 77)
            kill(path)
            assert shardfs("mount", alone, path, *quiet, log).returncode == 0
            open_store(alone).set([{"label": 88}], "there")  # before anybody has looked into it
            if way == "commit":
                for look in (lambda: sync(key), lambda: os.listdir(key)):
                    with refused(errno.ESTALE):
                        look()
                assert "there.conflict-" in shardfs("commit", path, "there").stderr
            if way == "umount":
                assert shardfs("umount", path).returncode == 4, "it stays mounted"
            wait_for(lambda: any(path.glob("there.conflict-*")))
            (kept,) = path.glob("there.conflict-*")
            assert (kept / "000000.json").read_text() == '{"label": 77}\n'
            wait_for(lambda: (key / "000000.json").read_text() == '{"label": 88}\n')
            shutil.rmtree(kept)
            assert shardfs("umount", path).returncode == 0
        assert labels(alone, key) == [88]

    def test_other_keys_are_no_conflict(self, world: World) -> None:
        key, other, opened = world.key(), world.key(), open_store(world.store)
        label(key, 0, 7)
        opened.set([{"label": 8}], other.name)
        opened.set([{"label": 9}], f"{other.name}-new")
        sync(key)
        assert labels(world.store, key) == [7, 1, 2]
        assert labels(world.store, other) == [8]

    def test_a_second_host_has_its_own_staging(self, alone: Path, tmp_path: Path) -> None:
        with (
            mounting(alone, *WORDS, XDG_STATE_HOME=str(tmp_path / "one")) as one,
            mounting(alone, *WORDS, XDG_STATE_HOME=str(tmp_path / "two")) as two,
        ):
            key = stored_key(one)
            there = two / key.name
            wait_for(there.exists)
            label(key, 0, 7)
            label(there, 0, 8)
            assert (there / "000000.json").read_text() == '{"label": 8}\n'
            sync(key)
            with refused(errno.ESTALE):
                sync(there)
            (kept,) = two.glob(f"{key.name}.conflict-*")
            assert (kept / "000000.json").read_text() == '{"label": 8}\n'
            shutil.rmtree(kept)
        assert labels(alone, key) == [7, 1, 2]


class TestWhatOtherFileSystemsDoAndThisOneDoesNot:
    def test_links_devices_and_pipes_are_not_made(self, world: World) -> None:
        key = world.key()
        for make in (
            lambda: os.symlink("x", key / "link"),
            lambda: os.link(key / "000000.json", key / "hard"),
            lambda: os.mkfifo(key / "fifo"),
        ):
            with refused(errno.EPERM):
                make()

    def test_extended_attributes_are_not_kept(self, world: World, tmp_path: Path) -> None:
        key = world.key()
        with refused(errno.EOPNOTSUPP):
            os.setxattr(key / "000000.json", "user.x", b"1")
        with refused(errno.EOPNOTSUPP):
            os.getxattr(key / "000000.json", "user.x")
        (tmp_path / "000003.json").write_text("{}")
        with contextlib.suppress(OSError):  # not everywhere is there a file system that has them
            os.setxattr(tmp_path / "000003.json", "user.x", b"1")
        command("cp", "-a", tmp_path / "000003.json", key)
        command("rsync", "-a", tmp_path / "000003.json", key)

    def test_blocks_are_not_allocated_ahead(self, world: World) -> None:
        path = world.key() / "000000.x.bin"
        with open(path, "r+b") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(4096)) == -1
            assert ctypes.get_errno() == errno.EOPNOTSUPP
            os.posix_fallocate(file.fileno(), 0, 4096)
        assert path.read_bytes() == bytes(4096)

    def test_ranges_are_copied_through_memory(self, world: World) -> None:
        key = world.key()
        with open(key / "000001.x.bin", "rb") as source, open(key / "000003.x.bin", "wb") as target:
            assert os.copy_file_range(source.fileno(), target.fileno(), 60, 10) == 60
        assert (key / "000003.x.bin").read_bytes() == b"\1" * 60
        command("cp", "--reflink=auto", key / "000002.x.bin", key / "000004.x.bin")
        assert (key / "000004.x.bin").read_bytes() == b"\2" * 100

    def test_reading_does_not_move_the_access_time(self, world: World) -> None:
        path = world.mnt / world.name() / "000000.x.bin"
        path.parent.mkdir()
        path.write_bytes(b"x")
        os.utime(path, ns=(10**18, 10**18))
        assert path.read_bytes() == b"x"
        assert path.stat().st_atime_ns == 10**18

    def test_a_file_has_no_shared_mapping_while_its_maker_writes_it(self, world: World) -> None:
        path = world.key() / "000003.x.bin"
        made = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.write(made, b"a" * 5000)
            with open(path, "rb") as file:
                assert file.read() == b"a" * 5000
                os.write(made, b"b" * 5000)
                assert file.read() == b"b" * 5000, "no page of it is kept"
                with contextlib.suppress(OSError), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    assert mapped[:] == b"a" * 5000 + b"b" * 5000
        finally:
            os.close(made)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            assert mapped[:] == b"a" * 5000 + b"b" * 5000

    def test_a_sync_of_a_key_holds_its_directory(self, world: World) -> None:
        """How long cannot be told apart from a machine that is busy: but all that waits goes on, and nothing fails."""
        key = world.mnt / new_name()
        key.mkdir()
        for number in range(60):
            (key / f"{number:06d}.x.bin").write_bytes(os.urandom(300_000))
        sealing = threading.Thread(target=sync, args=(key,))
        sealing.start()
        looked = 0
        while sealing.is_alive() or not looked:
            assert not (key / f"nothing{looked}").exists()
            assert (world.mnt / "there/000000.json").read_text() == '{"label": 0}\n'
            looked += 1
        sealing.join()
        assert len(world.samples(key)) == 60
