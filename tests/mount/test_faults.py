"""The disks of a writable mount fail: one system call at a time, full, read-only, gone and back again.

What must hold each time: the call that failed says so with the right errno, nothing that was acknowledged is lost, and
once the cause is gone everything is stored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfs import open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import SECONDS, SlowStore, mount_point, run, sync
from tests.mount.crashing import (
    ONE_WORKER,
    Scene,
    Victim,
    assert_shown,
    assert_store_whole,
    injecting,
    need_strace,
    samples_of,
    stored,
    temporaries,
    victim,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

STRIDE = 1 if os.environ.get("SHARDFS_FAULTS") == "all" else 7
"""Of the calls that make anything durable, one in so many fails; SHARDFS_FAULTS=all: each."""

MOST = 60
"""Calls of one name in a scene, at most."""

OFF = ("--write-back", "off", "--allow-overwrite", "--no-index")


# --- one system call at a time ----------------------------------------------------------------------------------------


@pytest.mark.timeout(120 if STRIDE > 1 else 3000)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["fsync", "rename", "renameat", "linkat"])
def test_an_error_of_each_call_that_makes_anything_durable(tmp_path: Path, call: str, code: int) -> None:
    """Who asked hears of it, and asking again is enough."""
    need_strace()
    number, reached = 1 if code == errno.EIO else 1 + STRIDE // 2, True
    while reached:
        assert number < MOST
        folder = tmp_path / f"{number}"
        folder.mkdir()
        scene = Scene(folder)
        heard: list[tuple[str, int | None]] = []
        with victim(scene.store, folder, *OFF, script=ONE_WORKER) as mount:
            mount.start()
            name = errno.errorcode[code]
            with injecting(mount.pid, folder / "trace", f"{call}:error={name}:when={number}") as injection:
                scene.play(heard)
            reached = bool(injection.injected())
            if reached:
                (site,) = injection.injected()
                print(number, site, heard)
                assert heard in [[] if step is None else [(step, code)] for step in hearing(site)], f"{site}: {heard}"
            else:
                assert heard == []
            assert_store_whole(mount.store, scene.works)
            for work in scene.works:
                assert_shown(mount, work)
            assert_ends_well(mount, scene)
        number += STRIDE if reached else 0


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_an_error_of_each_write(tmp_path: Path, code: int) -> None:
    """Of the bytes, and of the journal: nothing is taken for written that is not."""
    need_strace()
    number, reached, name = 1, True, errno.errorcode[code]
    while reached:
        assert number < MOST
        folder = tmp_path / f"{number}"
        folder.mkdir()
        scene = Scene(folder)
        heard: list[tuple[str, int | None]] = []
        with victim(scene.store, folder, *OFF, script=ONE_WORKER) as mount:
            mount.start()
            expression = f"pwrite64:error={name}:when={number}"
            with injecting(mount.pid, folder / "trace", expression, traced="pwrite64") as injection:
                scene.play(heard)
            sites = injection.injected()
            reached = bool(sites)
            assert {error for _, error in heard} <= {code}, sites
            print(number, sites, heard)
            assert len(heard) <= len(sites), f"{sites}: {heard}"
            assert_store_whole(mount.store, scene.works)
            assert_ends_well(mount, scene)
        number += STRIDE if reached else 0


def assert_ends_well(mount: Victim, scene: Scene) -> None:
    """All is stored at the end of a mount, as it was meant, and the next one finds nothing left."""
    mount.end()
    assert mount.staged() == {}
    for work in scene.works:
        assert stored(mount.store, work.key) == samples_of(work.result)
    mount.start()
    assert sorted(os.listdir(mount.path)) == ["a", "b", "new"]
    mount.assert_tidy()
    mount.end()


def hearing(site: str) -> tuple[str | None, ...]:
    """Which step may hear of the failure of a call, None where nobody need: where the store has the key nevertheless,
    and where what is stored is removed from the staging area, which the next mount does again."""
    if ".shardfs-tmp-" in site:
        return ("seal",)
    if "data/N" in site:
        return ("write",)
    if site.endswith("ID/ID.gone") or site.endswith(("/store", " store")):
        return (None,)
    if site.endswith("staging/ID"):
        return (None, "mkdir", "write")
    if ".new" in site:
        return ("mkdir", "write")
    assert site.endswith(("ID/data", "ID/journal")), site
    return ("write", "seal")


# --- real disks -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted_disk(path: Path, *options: str) -> Iterator[Path]:
    """A small file system of its own."""
    path.mkdir(exist_ok=True)
    if os.geteuid():
        pytest.skip("NOT TESTED: mounting a tmpfs takes root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", path], check=True, timeout=SECONDS)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True, timeout=SECONDS)


def fill(disk: Path) -> None:
    """Take the last byte of a disk."""
    with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    with contextlib.suppress(OSError), open(disk / "filler", "ab", buffering=0) as file:
        while True:
            file.write(b"x")


@contextlib.contextmanager
def fails(code: int) -> Iterator[None]:
    with pytest.raises(OSError, match=r".") as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[code]


def make_store(path: Path) -> Path:
    """Two keys with two samples each."""
    opened = open_store(path, driver="squirrel")
    for key in ("a", "b"):
        opened.set([{"x": bytes([number]) * 100, "label": number} for number in range(2)], key)
    return path


def write_key(folder: Path, label: int = 7) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "000000.json").write_text(f'{{"label": {label}}}')


def test_a_full_staging_disk_is_told_at_the_write_and_all_else_works(tmp_path: Path) -> None:
    """Removing, sealing and setting aside need no byte that is not there."""
    store = make_store(tmp_path / "store")
    with mounted_disk(tmp_path / "disk", "size=8m") as disk, victim(store, tmp_path, *OFF, state=disk) as mount:
        mount.start(*OFF, "--allow-delete")
        for key in ("new", "gone", "moved.tmp"):
            write_key(mount.path / key)
        (mount.path / "a/000000.json").write_text('{"label": 70}')
        (mount.path / "b/000000.json").write_text('{"label": 70}')
        open_store(store).set([{"label": 99}], "b")
        fill(disk)
        with fails(errno.ENOSPC), open(mount.path / "new/000001.x.bin", "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        with contextlib.suppress(FileNotFoundError):
            (mount.path / "new/000001.x.bin").unlink()
        with fails(errno.ENOSPC):
            write_key(mount.path / "more")
        subprocess.run(["rm", "-r", mount.path / "gone"], check=True, timeout=SECONDS)
        sync(mount.path / "new")
        sync(mount.path / "a")
        os.rename(mount.path / "moved.tmp", mount.path / "moved")
        with fails(errno.ESTALE):
            sync(mount.path / "b")
        (aside,) = [name for name in os.listdir(mount.path) if name.startswith("b.conflict-")]
        assert (mount.path / aside / "000000.json").read_text() == '{"label": 70}'
        subprocess.run(["rm", "-r", mount.path / aside], check=True, timeout=SECONDS)
        assert stored(store, "new") == stored(store, "moved") == [{"label": 7}]
        assert stored(store, "a") == [{"x": bytes(100), "label": 70}, {"x": b"\1" * 100, "label": 1}]
        (disk / "filler").unlink()
        write_key(mount.path / "more")
        mount.end()
        assert stored(store, "more") == [{"label": 7}]
        assert mount.staged() == {}


@pytest.mark.parametrize("way", ["sync", "rename", "commit"])
def test_a_full_store_is_told_at_the_seal_and_nothing_is_lost(tmp_path: Path, way: str) -> None:
    with mounted_disk(tmp_path / "disk", "size=2m") as disk:
        store = make_store(disk / "store")
        with victim(store, tmp_path, *OFF) as mount:
            mount.start()
            place = mount.path / ("new.tmp" if way == "rename" else "new")
            write_key(place)
            (place / "000000.x.bin").write_bytes(os.urandom(1 << 20))
            fill(disk)
            for _ in range(2):
                seal_fails(mount, way, errno.ENOSPC)
                assert temporaries(store) == []
                assert (place / "000000.json").read_text() == '{"label": 7}'
                assert stored(store, "new") is None
            (disk / "filler").unlink()
            seal(mount, way)
            assert len(stored(store, "new") or []) == 1
            mount.end()
            assert mount.staged() == {}


def seal(mount: Victim, way: str) -> None:
    """Have `new` stored. OSError."""
    if way == "sync":
        sync(mount.path / "new")
    elif way == "rename":
        os.rename(mount.path / "new.tmp", mount.path / "new")
    else:
        done = run("commit", mount.path, "new")
        assert (done.returncode, done.stderr) == (0, "")


def seal_fails(mount: Victim, way: str, code: int) -> None:
    if way == "commit":
        done = run("commit", mount.path, "new")
        assert done.returncode == 1
        assert os.strerror(code) in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    else:
        with fails(code):
            seal(mount, way)


@pytest.mark.parametrize("new", ["new", "b"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_rename_of_which_it_cannot_be_told_whether_it_was_stored(
    slow_store: SlowStore, tmp_path: Path, new: str, kept: bool
) -> None:
    """The store has the key, and cannot say whether it will keep it. Asked again it can, or has lost it by then; both
    where the key is a new one and where it replaces another."""
    make_store(slow_store.source)
    before = (slow_store.source / f"{new}.gz").read_bytes() if new == "b" else None
    words = ("--driver", "squirrel", *OFF)
    with victim(slow_store.path, tmp_path) as mount:
        mount.start(*words)
        write_key(mount.path / "x.tmp")
        slow_store.fail("fsyncdir")
        for _ in range(2):
            with fails(errno.EIO):
                os.rename(mount.path / "x.tmp", mount.path / new)
            assert (mount.path / "x.tmp/000000.json").read_text() == '{"label": 7}'
        slow_store.recover("fsyncdir")
        if not kept:
            (slow_store.source / f"{new}.gz").unlink()
            if before is not None:
                (slow_store.source / f"{new}.gz").write_bytes(before)
        if kept or new != "b":
            os.rename(mount.path / "x.tmp", mount.path / new)
        else:
            wait_for(lambda: renamed(mount.path / "x.tmp", mount.path / new))
        wait_for(lambda: sorted(os.listdir(mount.path)) == sorted({"a", "b", new}))
        assert (mount.path / new / "000000.json").read_text() == '{"label": 7}\n'
        mount.end()
        assert mount.staged() == {}
        assert stored(slow_store.source, new) == [{"label": 7}]
        assert temporaries(slow_store.source) == []


def renamed(old: Path, new: Path) -> bool:
    """Replace a key of which the store has just got another version: that is ESTALE until the mount has seen it."""
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return (old / "000000.json").read_text() != '{"label": 7}'
    return True


@pytest.mark.parametrize("way", ["sync", "rename", "commit"])
def test_a_store_that_becomes_read_only_is_told_at_the_seal(tmp_path: Path, way: str) -> None:
    with mounted_disk(tmp_path / "disk", "size=8m") as disk:
        store = make_store(disk / "store")
        with victim(store, tmp_path, *OFF) as mount:
            mount.start()
            place = mount.path / ("new.tmp" if way == "rename" else "new")
            write_key(place)
            remount(disk, "ro")
            seal_fails(mount, way, errno.EROFS)
            assert (place / "000000.json").read_text() == '{"label": 7}'
            assert (mount.path / "a/000001.x.bin").read_bytes() == b"\1" * 100
            remount(disk, "rw")
            seal(mount, way)
            assert stored(store, "new") == [{"label": 7}]
            mount.end()


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True, timeout=SECONDS)


def test_a_store_that_is_writable_again_gets_by_itself_what_it_refused(tmp_path: Path) -> None:
    with mounted_disk(tmp_path / "disk", "size=8m") as disk:
        store = make_store(disk / "store")
        with victim(store, tmp_path, "--write-back", "0.2") as mount:
            mount.start()
            remount(disk, "ro")
            write_key(mount.path / "new")
            wait_for(lambda: "new is not sealed, and stays staged" in mount.said)
            assert (mount.path / "new/000000.json").read_text() == '{"label": 7}'
            remount(disk, "rw")
            wait_for(lambda: stored(store, "new") == [{"label": 7}])
            mount.end()
            assert mount.staged() == {}


def test_a_store_on_a_read_only_disk_is_not_mounted_for_writing(tmp_path: Path) -> None:
    """It was, and only the first seal said so."""
    with mounted_disk(tmp_path / "disk", "size=8m") as disk, mount_point() as path:
        store = make_store(disk / "store")
        remount(disk, "ro")
        for words in ((), ("-f",)):
            done = run("mount", "--rw", *words, store, path, XDG_STATE_HOME=str(tmp_path / "state"))
            assert done.returncode == 2, done.stderr
            assert done.stderr == (
                f"shardfs: {store} cannot be written to (Read-only file system): mount it without --rw\n"
            )
        assert not path.exists()
        assert run("mount", store, path).returncode == 0
        assert run("umount", path).returncode == 0


@pytest.mark.parametrize("instead", ["nothing", "an empty directory"])
def test_a_store_that_is_away_for_a_while(tmp_path: Path, instead: str) -> None:
    """As where a disk is unmounted, or a directory moved: nothing is written to whatever is there in its place."""
    store, away = make_store(tmp_path / "store"), tmp_path / "away"
    with victim(store, tmp_path, *OFF) as mount:
        mount.start()
        assert (mount.path / "a/000000.json").read_text()
        write_key(mount.path / "new")
        write_key(mount.path / "moved.tmp")
        (mount.path / "a/000000.json").write_text('{"label": 70}')
        store.rename(away)
        if instead != "nothing":
            store.mkdir()
        for _ in range(2):
            for key in ("new", "a"):
                with fails(errno.EIO):
                    sync(mount.path / key)
            with fails(errno.EIO):
                os.rename(mount.path / "moved.tmp", mount.path / "moved")
            done = run("commit", mount.path)
            assert done.returncode == 1
            assert sorted(line.split(":")[2].strip() for line in done.stderr.splitlines()) == ["a", "new"], done.stderr
        assert (mount.path / "new/000000.json").read_text() == '{"label": 7}'
        assert (mount.path / "moved.tmp/000000.json").read_text() == '{"label": 7}'
        assert (mount.path / "a/000000.json").read_text() == '{"label": 70}'
        assert not [name for name in os.listdir(mount.path) if "conflict" in name]
        if instead == "nothing":
            assert not store.exists()
        else:
            assert os.listdir(store) == []
            store.rmdir()
        away.rename(store)
        os.rename(mount.path / "moved.tmp", mount.path / "moved")
        mount.end()
        assert mount.staged() == {}
    assert stored(store, "new") == stored(store, "moved") == [{"label": 7}]
    assert stored(store, "a") == [{"x": bytes(100), "label": 70}, {"x": b"\1" * 100, "label": 1}]


def test_a_disk_that_is_unmounted_and_comes_back(tmp_path: Path) -> None:
    with mounted_disk(tmp_path / "real", "size=8m") as real:
        make_store(real / "store")
        (place := tmp_path / "store").mkdir()
        subprocess.run(["mount", "--bind", real / "store", place], check=True, timeout=SECONDS)
        with victim(place, tmp_path, "--write-back", "0.2") as mount:
            mount.start()
            assert (mount.path / "a/000000.json").read_text()
            subprocess.run(["umount", "-l", place], check=True, timeout=SECONDS)
            write_key(mount.path / "new")
            wait_for(lambda: "new is not sealed, and stays staged" in mount.said)
            assert os.listdir(place) == []
            subprocess.run(["mount", "--bind", real / "store", place], check=True, timeout=SECONDS)
            try:
                wait_for(lambda: stored(place, "new") == [{"label": 7}])
                mount.end()
                assert mount.staged() == {}
            finally:
                subprocess.run(["umount", "-l", place], check=True, timeout=SECONDS)


def test_a_mount_that_ends_while_its_store_is_away_keeps_what_was_written(tmp_path: Path) -> None:
    store, away = make_store(tmp_path / "store"), tmp_path / "away"
    with victim(store, tmp_path, *OFF) as mount:
        mount.start()
        write_key(mount.path / "new")
        store.rename(away)
        mount.end(1)  # something stays staged
        assert "new is not stored, and stays staged" in mount.said
        assert mount.staged() == {"new": "staged"}
        away.rename(store)
        mount.start()
        assert (mount.path / "new/000000.json").read_text() == '{"label": 7}'
        mount.end()
    assert stored(store, "new") == [{"label": 7}]
