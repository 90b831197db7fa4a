"""The disks of a writable mount fail: one system call at a time, full, read-only, gone and back again.

What must hold each time: the call that failed says so with the right errno, nothing that was acknowledged is lost, and
once the cause is gone everything is stored.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfs import open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import SlowStore, is_mounted
from tests.mount.crashing import (
    GONE,
    ONE_WORKER,
    Victim,
    Work,
    assert_shown,
    assert_store_whole,
    files_of,
    injecting,
    need_strace,
    samples_of,
    stored,
    sync_directory,
    temporaries,
    victim,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

ALL = os.environ.get("SHARDFS_FAULTS") == "all"
"""Every single call, in place of one in STRIDE of them: some minutes."""

STRIDE = 1 if ALL else 7
MOST = 60
"""Calls of one name that the scene makes in one thread, at most."""

QUIET = ("--write-back", "off", "--allow-overwrite")


# --- one system call at a time ----------------------------------------------------------------------------------------


class Scene:
    """A small session that has every kind of seal: of a new key, of a stored one, of a directory that is renamed over
    a stored key. Each step can be done again after it failed."""

    def __init__(self, folder: Path) -> None:
        dice = random.Random(1)
        self.store = folder / "store"
        opened = open_store(self.store, driver="squirrel")
        old = {key: files_of(2, f"old {key}", dice, size=200) for key in ("a", "b")}
        for key, files in old.items():
            opened.set(samples_of(files), key)
        self.new = Work("new", None, files_of(1, "new", dice, size=200), "new", whole=True)
        edit = {"000001.json": b'{"label": 1, "mark": "edited"}\n'}
        self.edited = Work("a", old["a"], edit, "a", whole=False)
        self.over = Work("b", old["b"], files_of(1, "over", dice, size=200), "b.tmp", whole=True)
        self.works = [self.new, self.edited, self.over]
        self.mnt = folder / "mnt"

    def play(self, heard: list[int | None] | None = None) -> None:
        """All of it. With `heard` a step that fails is done again, and the error is noted there."""
        for work in self.works:
            steps = [lambda work=work: (self.mnt / work.place).mkdir(exist_ok=True)] if work.place != "a" else []
            steps += [lambda work=work, name=name: self._write(work, name) for name in sorted(work.after)]
            steps.append(lambda work=work: self._seal(work))
            for step in steps:
                for attempt in range(3):
                    try:
                        step()
                        break
                    except OSError as error:
                        if heard is None:
                            raise
                        heard.append(error.errno)
                        assert attempt < 2, "it fails although the cause is gone"

    def _write(self, work: Work, name: str) -> None:
        if name in work.synced:
            return
        work.written.discard(name)
        with open(self.mnt / work.place / name, "wb") as file:
            file.write(work.after[name])
            file.flush()
            os.fsync(file.fileno())
            work.synced.add(name)
        work.written.add(name)

    def _seal(self, work: Work) -> None:
        if work.place != work.key:
            os.rename(self.mnt / work.place, self.mnt / work.key)
        else:
            sync_directory(self.mnt / work.key)
        work.sealed = True


@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", ["fsync", "rename", "renameat", "linkat"])
def test_a_kill_at_each_call_that_makes_anything_durable(tmp_path: Path, call: str) -> None:
    need_strace()
    number, reached, met, seen = 1, True, set(), set()
    while reached:
        assert number < MOST
        folder = tmp_path / f"{number}"
        folder.mkdir()
        scene = Scene(folder)
        with victim(scene.store, folder, *QUIET, script=ONE_WORKER) as mount:
            mount.start()
            trace = folder / "trace"
            with injecting(mount.pid, trace, f"{call}:signal=KILL:when={number}") as injection, dying(mount):
                scene.play()
            reached = mount.dead
            seen |= {one for one in injection.calls() if one.startswith(f"{call} ")}
            if reached:
                met |= {injection.calls()[-1]}
                assert_after_a_kill(mount, scene.works)
        number += STRIDE if reached else 0
    if STRIDE == 1:
        assert met == {one for one in seen if "index" not in one}, "a call that nobody was killed at"


@contextlib.contextmanager
def dying(mount: Victim) -> Iterator[None]:
    """Where the mount may die."""
    try:
        yield
    except OSError as error:
        if error.errno not in GONE:
            raise
        mount.wait()


def assert_after_a_kill(mount: Victim, works: list[Work]) -> None:
    """Nothing is lost, nothing is torn, and once it is done again all is stored."""
    assert_store_whole(mount.store, works)
    mount.start()
    for work in works:
        assert_shown(mount, work)
    mount.assert_tidy()
    for work in works:
        again(mount, work)
    mount.end()
    for work in works:
        assert stored(mount.store, work.key) == samples_of(work.result)
    assert mount.staged() == {}


def again(mount: Victim, work: Work) -> None:
    """Do what was cut off."""
    if work.sealed:
        return
    place = mount.path / work.key
    if work.place != work.key and (mount.path / work.place).exists():
        place = mount.path / work.place
    elif work.whole and stored(mount.store, work.key) == samples_of(work.result):
        return
    elif work.place != work.key and not (mount.path / work.place).exists() and not work.written:
        place = mount.path / work.place
    place.mkdir(exist_ok=True)
    for name, data in work.after.items():
        (place / name).write_bytes(data)
    if place.name != work.key:
        os.rename(place, mount.path / work.key)
    else:
        sync_directory(place)
    work.sealed = True


@pytest.mark.timeout(600)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["fsync", "rename", "renameat", "linkat"])
def test_an_error_of_each_call_that_makes_anything_durable(tmp_path: Path, call: str, code: int) -> None:
    """Who asked hears of it, and asking again is enough."""
    need_strace()
    number, reached = 1, True
    while reached:
        assert number < MOST
        folder = tmp_path / f"{number}"
        folder.mkdir()
        scene = Scene(folder)
        heard: list[int | None] = []
        with victim(scene.store, folder, *QUIET, script=ONE_WORKER) as mount:
            mount.start()
            name = errno.errorcode[code]
            with injecting(mount.pid, folder / "trace", f"{call}:error={name}:when={number}") as injection:
                scene.play(heard)
            reached = bool(injection.injected())
            print(number, injection.injected(), heard)
            assert set(heard) <= {code}, f"{injection.injected()}: {mount.said}"
            assert_store_whole(mount.store, scene.works)
            for work in scene.works:
                assert_shown(mount, work)
            mount.end()
            assert mount.staged() == {}
            for work in scene.works:
                assert stored(mount.store, work.key) == samples_of(work.result)
            mount.start()
            mount.assert_tidy()
            mount.end()
        number += STRIDE if reached else 0


# --- a store that hangs at the end ------------------------------------------------------------------------------------

HURRIED = """
from shardfs import config
config.SHUTDOWN_WAIT = 1.0
"""
PATIENT = """
from shardfs import config
config.SHUTDOWN_WAIT = 600.0
"""


@contextlib.contextmanager
def hanging_seal(slow_store: SlowStore, folder: Path, script: str) -> Iterator[Victim]:
    """A mount with a key whose seal waits for the store's disk, and is asked for by the signal that ends it."""
    open_store(slow_store.source, driver="squirrel").set([{"label": 1}], "a")
    with victim(slow_store.path, folder, *QUIET, script=script) as mount:
        mount.start("--driver", "squirrel", *QUIET)
        (mount.path / "new").mkdir()
        (mount.path / "new/000000.json").write_text('{"label": 7}')
        slow_store.hold("fsync")
        os.kill(mount.pid, signal.SIGTERM)
        wait_for(lambda: slow_store.syncs() > 0)
        yield mount
        wait_for(mount.gone)
        assert not is_mounted(mount.path)
        assert mount.staged() == {"new": "sealing"}
        slow_store.go_on("fsync")
        assert mount.wait() == 1
        assert stored(slow_store.source, "new") is None, "what hung did not go on"
        assert "is kept for the next mount" in mount.said
        mount.start("--driver", "squirrel", *QUIET)
        assert (mount.path / "new/000000.json").read_text() == '{"label": 7}'
        assert temporaries(slow_store.source) == []
        mount.end()
    assert stored(slow_store.source, "new") == [{"label": 7}]


def test_a_seal_that_hangs_holds_the_end_up_only_so_long(slow_store: SlowStore, tmp_path: Path) -> None:
    with hanging_seal(slow_store, tmp_path, HURRIED) as mount:
        wait_for(mount.gone, 15)
        assert "new is not stored, and stays staged: not stored within 1.0 s" in mount.said


def test_a_second_signal_leaves_at_once(slow_store: SlowStore, tmp_path: Path) -> None:
    with hanging_seal(slow_store, tmp_path, PATIENT) as mount:
        assert not mount.gone()
        os.kill(mount.pid, signal.SIGTERM)
        wait_for(mount.gone, 5)


def test_a_signal_after_an_unmount_waits_for_what_is_being_stored(slow_store: SlowStore, tmp_path: Path) -> None:
    """It was taken for the second one, and what waited for its turn was not stored."""
    open_store(slow_store.source, driver="squirrel").set([{"label": 1}], "a")
    with victim(slow_store.path, tmp_path, *QUIET, script=PATIENT) as mount:
        mount.start("--driver", "squirrel", *QUIET)
        for number in range(5):
            (mount.path / f"new{number}").mkdir()
            (mount.path / f"new{number}/000000.json").write_text('{"label": 7}')
        slow_store.hold("fsync")
        subprocess.run(["fusermount3", "-u", mount.path], check=True, timeout=60)
        wait_for(lambda: slow_store.syncs() > 0)
        os.kill(mount.pid, signal.SIGTERM)
        wait_for(lambda: "ending on SIGTERM" in mount.said)
        slow_store.go_on("fsync")
        assert mount.wait() == 0
        assert mount.staged() == {}
    assert len(open_store(slow_store.source).keys()) == 6
