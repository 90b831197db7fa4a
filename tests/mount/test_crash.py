"""A writable mount is killed, at any moment: nothing that was acknowledged is lost, nothing is torn, nothing is left.

SHARDFS_KILLS says how often at random moments (200 take some minutes), SHARDFS_KILLS_SEED where the dice begin;
SHARDFS_FAULTS=all has a mount killed at every call that makes anything durable, and not at one in STRIDE of them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardfs import open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import SECONDS, SlowStore, is_mounted, mounting, shardfs, sync
from tests.mount.crashing import (
    GONE,
    MAIN,
    ONE_WORKER,
    Files,
    Scene,
    Victim,
    Work,
    assert_shown,
    assert_store_whole,
    files_of,
    injecting,
    need_strace,
    samples_of,
    stored,
    temporaries,
    victim,
    write_files,
)

KILLS = int(os.environ.get("SHARDFS_KILLS", "8"))
SEED = int(os.environ.get("SHARDFS_KILLS_SEED", "20"))

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60 + 10 * KILLS)]

WAYS = ("sync", "rename", "quiet", "commit")
"""How a seal is asked for: fsync of the directory, `mv -T`, by some quiet, `shardfs commit`."""

FORMS = {"gz": {}, "zst": {"compression": "zst"}, "jsonl": {"driver": "squirrel-jsonl"}}
"""How the shards of a store are written."""

QUIET = 0.3
"""Seconds after which a key is stored by itself, in rounds of that kind."""

STRIDE = 1 if os.environ.get("SHARDFS_FAULTS") == "all" else 7
"""Of the calls that make anything durable, one in so many is where a mount is killed; SHARDFS_FAULTS=all: each."""

CALLS = ("fsync", "rename", "renameat", "linkat")
MOST = 60
"""Calls of one name in a scene, at most."""

OFF = ("--write-back", "off", "--allow-overwrite", "--no-index")

LATEST = 0.9
"""Seconds after the beginning of a round until the kill, at most: a round has some three seals in that time."""


# --- at random moments ------------------------------------------------------------------------------------------------


class Writer:
    """Copies directories into one mount and has them sealed, one after the other, until the mount dies; and knows what
    it was told."""

    def __init__(self, mount: Victim, folder: Path, form: str, dice: random.Random) -> None:
        self.mount = mount
        self.form = form
        self.works: dict[str, Work] = {}
        self.seals = 0
        self._folder = folder
        self._dice = dice
        self._count = 0
        for key in ("a", "b"):
            self.works[key] = Work(key, None, self._files(), key, whole=True, sealed=True)
            opened = open_store(mount.store, driver="squirrel-jsonl" if form == "jsonl" else "squirrel")
            opened.set(samples_of(self.works[key].after), key)

    def _files(self) -> Files:
        self._count += 1
        return files_of(
            self._dice.randrange(3, 7), f"{self.form} {self._count}", self._dice, light=self.form == "jsonl"
        )

    def begin(self, way: str) -> Work:
        """What the next round of that kind wants to have made."""
        self._count += 1
        key = self._dice.choice(["a", "b", f"new{self._count}"])
        done = self.works.get(key)
        before = None if done is None else done.result
        after = self._files()
        whole = way == "rename" or before is None
        work = Work(key, before, after, f"{key}.tmp" if way == "rename" else key, whole=whole)
        self.works[key] = work
        return work

    def write(self, work: Work) -> None:
        """`cp -r`, and a file with an fsync. OSError of GONE once the mount is dead."""
        source = self._folder / f"source{self._count}"
        first, *others = sorted(work.after)
        write_files(source, {name: work.after[name] for name in others})
        place = self.mount.path / work.place
        place.mkdir(exist_ok=True)
        with open(place / first, "wb") as file:
            file.write(work.after[first])
            file.flush()
            os.fsync(file.fileno())
            work.synced.add(first)
        work.written.add(first)
        done = subprocess.run(["cp", "-rT", source, place], capture_output=True, text=True, timeout=SECONDS)
        if done.returncode == 0:
            work.written.update(others)
        else:
            self._dead(done.stderr)

    def seal(self, work: Work, way: str) -> None:
        """Have it sealed in that way, and note that it was."""
        if way == "sync":
            sync(self.mount.path / work.key)
        elif way == "rename":
            command = ["mv", "-T", self.mount.path / work.place, self.mount.path / work.key]
            self._run(*map(str, command))
        elif way == "commit":
            self._run(*shardfs("commit", self.mount.path, work.key))
        else:
            wait_for(lambda: self.mount.dead or stored(self.mount.store, work.key) == samples_of(work.result))
            if self.mount.dead:
                return
        work.sealed = True
        self.seals += 1

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            self._dead(done.stderr)

    def _dead(self, said: str) -> None:
        """What failed did so because the mount has died, or else this test fails."""
        wait_for(lambda: self.mount.dead, 5)
        raise OSError(min(GONE), said)

    def until_killed(self, way: str) -> None:
        """Write and seal until the mount is dead."""
        try:
            while not self.mount.dead:
                work = self.begin(way)
                self.write(work)
                self.seal(work, way)
        except OSError as error:
            if error.errno not in GONE:
                raise
            self.mount.wait()

    def finish(self) -> None:
        """Do again what was cut off."""
        for work in self.works.values():
            if not work.sealed:
                again(self.mount, work)


def again(mount: Victim, work: Work) -> None:
    """Do once more what a kill has cut off, after whatever became of it, as who had asked for it would."""
    place = mount.path / work.place
    if work.place != work.key and not place.exists() and (mount.path / work.key).exists() and work.written:
        place = mount.path / work.key  # it had been renamed already
    place.mkdir(exist_ok=True)
    write_files(place, work.after)
    if place.name != work.key:
        os.rename(place, mount.path / work.key)
    else:
        sync(place)
    work.sealed = True


def test_nothing_is_lost_by_kills_at_random_moments(tmp_path: Path) -> None:
    dice = random.Random(SEED)
    counted: Counter[str] = Counter()
    writers = []
    for form in FORMS:
        folder = tmp_path / form
        folder.mkdir()
        store = folder / "store"
        open_store(store, **FORMS[form], **({} if "driver" in FORMS[form] else {"driver": "squirrel"}))
        writers.append((form, store, folder))
    for number, (form, store, folder) in enumerate(writers):
        words = ("--driver", "squirrel-jsonl" if form == "jsonl" else "squirrel", "--allow-overwrite")
        with victim(store, folder, *words) as mount:
            writer = Writer(mount, folder, form, dice)
            mount.start(*words, "--write-back", "off")
            for kill in range(number, KILLS, len(writers)):
                way = WAYS[(kill // len(writers) + number) % len(WAYS)]
                one_kill(mount, writer, way, dice, counted, words)
            mount.end()
            assert mount.staged() == {}
            assert_store_whole(store, writer.works.values())
            counted["seals acknowledged"] += writer.seals
    print(f"{KILLS} kills: " + ", ".join(f"{count} {what}" for what, count in sorted(counted.items())))


def one_kill(
    mount: Victim, writer: Writer, way: str, dice: random.Random, counted: Counter[str], words: tuple[str, ...]
) -> None:
    """Write, kill, and look at what is there: in the store, and in the next mount."""
    mount.end()
    mount.start(*words, "--write-back", str(QUIET) if way == "quiet" else "off")
    failures: list[BaseException] = []

    def write() -> None:
        try:
            writer.until_killed(way)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    threading.Event().wait(dice.uniform(0.02, LATEST))
    mount.kill()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert failures == [], f"{way}: {failures}: {mount.said}"
    counted[f"while {way}"] += 1
    counted["left unfinished writes in the store"] += bool(list(mount.store.rglob(".shardfs-tmp-*")))
    for key, state in mount.staged().items():
        counted[f"left {state}"] += bool(key)
    assert_store_whole(mount.store, writer.works.values())
    mount.start(*words, "--write-back", "off")
    for work in writer.works.values():
        assert_shown(mount, work)
    mount.assert_tidy()
    assert_store_whole(mount.store, writer.works.values())
    writer.finish()
    for work in writer.works.values():
        assert stored(mount.store, work.key) == samples_of(work.result), work.key


# --- at each call -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120 if STRIDE > 1 else 3000)
@pytest.mark.parametrize("call", CALLS)
def test_a_kill_at_each_call_that_makes_anything_durable(tmp_path: Path, call: str) -> None:
    need_strace()
    number, reached, met, seen = 1, True, set(), set()
    while reached:
        assert number < MOST
        folder = tmp_path / f"{number}"
        folder.mkdir()
        scene = Scene(folder)
        with victim(scene.store, folder, *OFF, script=ONE_WORKER) as mount:
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
    assert {one.split()[0] for one in injection.calls()} == set(CALLS), "a call that is not tried"
    if STRIDE == 1:
        assert met == seen, "a call that nobody was killed at"


@pytest.mark.timeout(120 if STRIDE > 1 else 3000)
@pytest.mark.parametrize("call", ["fsync", "rename", "unlinkat", "pwrite64"])
def test_a_kill_while_it_cleans_up_after_a_kill(tmp_path: Path, call: str) -> None:
    """The first kill comes when the store has a key under both its names, temporary and own; the second while the next
    mount finds that out."""
    need_strace()
    number, reached = 1, True
    while reached:
        assert number < MOST
        folder = tmp_path / f"{number}"
        folder.mkdir()
        open_store(folder / "store", driver="squirrel").set([{"label": 1}], "a")
        with victim(folder / "store", folder, *OFF, script=ONE_WORKER) as mount:
            mount.start()
            (mount.path / "new").mkdir()
            (mount.path / "new/000000.json").write_text('{"label": 7}')
            with injecting(mount.pid, folder / "trace", "unlinkat:signal=KILL", traced="unlinkat"), dying(mount):
                sync(mount.path / "new")
            assert mount.dead
            assert len(temporaries(mount.store)) == 1
            assert mount.staged() == {"new": "sealing"}
            strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
            mount.start(under=[*strace, "-e", f"inject={call}:signal=KILL:when={number}", "--"])
            reached = mount.dead
            if reached:
                assert stored(mount.store, "new") == [{"label": 7}]
                mount.start()
                assert (mount.path / "new/000000.json").read_text() == '{"label": 7}\n'
                mount.assert_tidy()
                mount.end()
                assert mount.staged() == {}
        number += STRIDE if reached else 0


def test_a_writable_mount_cleans_up_behind_writers_that_died(tmp_path: Path) -> None:
    """Who writes into a store without a mount notes nowhere what it is about."""
    store = tmp_path / "store"
    script = """
import os, signal, sys
from shardfs import open_store
def samples():
    yield {"label": 1}
    os.kill(os.getpid(), signal.SIGKILL)
open_store(sys.argv[1], driver="squirrel").set(samples(), "deep/new")
"""
    open_store(store, driver="squirrel").set([{"label": 1}], "deep/a")
    assert subprocess.run([sys.executable, "-c", script, store]).returncode == -signal.SIGKILL
    assert len(temporaries(store)) == 1
    with mounting(store) as path:
        assert os.listdir(path / "deep") == ["a"]
    assert len(temporaries(store)) == 1, "reading removes nothing"
    with victim(store, tmp_path, *OFF) as mount:
        mount.start()
        assert temporaries(store) == []
        mount.end()


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
    assert set(os.listdir(mount.path)) <= {"a", "b", "new", "b.tmp"}
    for work in works:
        if not work.sealed:
            again(mount, work)
    mount.end()
    for work in works:
        assert stored(mount.store, work.key) == samples_of(work.result)
    assert mount.staged() == {}


# --- a store that hangs at the end ------------------------------------------------------------------------------------

HURRIED = """
from shardfs import config
config.SHUTDOWN_WAIT = config.MOUNT_GONE = 1.0
"""
PATIENT = """
from shardfs import config
config.SHUTDOWN_WAIT = 600.0
"""


@contextlib.contextmanager
def hanging_seal(
    slow_store: SlowStore, folder: Path, script: str, end: Callable[[Victim], object], *words: str
) -> Iterator[Victim]:
    """A mount with a key whose seal waits for the store's disk, once `end` has had the mount ended. Behind the block it
    must have gone, and the next mount has all."""
    open_store(slow_store.source, driver="squirrel").set([{"label": 1}], "a")
    with victim(slow_store.path, folder, *OFF, script=script) as mount:
        mount.start("--driver", "squirrel", *OFF, *words)
        (mount.path / "new").mkdir()
        (mount.path / "new/000000.json").write_text('{"label": 7}')
        slow_store.hold("fsync")
        end(mount)
        wait_for(lambda: slow_store.syncs() > 0)
        yield mount
        wait_for(mount.gone)
        assert not is_mounted(mount.path)
        assert mount.staged() == {"new": "sealing"}
        slow_store.go_on("fsync")
        assert mount.wait() == 1
        assert stored(slow_store.source, "new") is None, "what hung did not go on"
        assert "is kept for the next mount" in mount.said, mount.said
        mount.start("--driver", "squirrel", *OFF)
        assert (mount.path / "new/000000.json").read_text() == '{"label": 7}'
        assert temporaries(slow_store.source) == []
        mount.end()
    assert stored(slow_store.source, "new") == [{"label": 7}]


def terminate(mount: Victim) -> None:
    os.kill(mount.pid, signal.SIGTERM)


def unmount(mount: Victim) -> None:
    subprocess.run(["fusermount3", "-u", mount.path], check=True, timeout=SECONDS)


@pytest.mark.parametrize("end", [terminate, unmount])
def test_a_seal_that_hangs_holds_the_end_up_only_so_long(
    slow_store: SlowStore, tmp_path: Path, end: Callable[[Victim], object]
) -> None:
    with hanging_seal(slow_store, tmp_path, HURRIED, end) as mount:
        wait_for(mount.gone, 15)
        assert "new is not stored, and stays staged: not stored within 1 s" in mount.said


def test_a_second_signal_leaves_at_once(slow_store: SlowStore, tmp_path: Path) -> None:
    with hanging_seal(slow_store, tmp_path, PATIENT, terminate) as mount:
        assert not mount.gone()
        os.kill(mount.pid, signal.SIGTERM)
        wait_for(mount.gone, 5)


def test_umount_with_force_does_not_wait_for_a_store_that_hangs(slow_store: SlowStore, tmp_path: Path) -> None:
    said: list[subprocess.CompletedProcess[str]] = []

    def umount(mount: Victim) -> None:
        command = [sys.executable, "-c", HURRIED + MAIN, "umount", "--force", mount.path]
        said.append(subprocess.run(command, capture_output=True, text=True, timeout=SECONDS))

    with hanging_seal(slow_store, tmp_path, HURRIED, umount):
        (done,) = said
        assert done.returncode in (1, 4), done.stderr
        assert "not stored, it stays on disk, for the next mount" in done.stderr
        assert "stays staged: new: not stored within 1 s" in done.stderr


def test_a_signal_after_an_unmount_waits_for_what_is_being_stored(slow_store: SlowStore, tmp_path: Path) -> None:
    """It was taken for the second one, and what waited for its turn was not stored."""
    open_store(slow_store.source, driver="squirrel").set([{"label": 1}], "a")
    with victim(slow_store.path, tmp_path, *OFF, script=PATIENT) as mount:
        mount.start("--driver", "squirrel", *OFF)
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
