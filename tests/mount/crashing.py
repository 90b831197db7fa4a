"""Mounts that are killed or whose disks fail, and what must be found afterwards: helpers of test_crash and test_faults.

A `Victim` is a writable mount in the foreground, killed and started again at will. `injecting` has strace end it, or
fail a system call of it, at a chosen place. What was acknowledged is written down by who writes, and compared here.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from shardfs import open_store
from shardfs.staging import StagingArea
from shardfs.staging.area import store_id
from tests.conformance.trees import wait_for
from tests.mount.conftest import SECONDS, is_mounted, shardfs, sync, wipe

JPEG = b"\xff\xd8\xff\xe0"
GONE = frozenset((errno.ENOTCONN, errno.ECONNABORTED))
"""What the callers of a mount hear whose process has died."""

STORING = ("rename", "renameat", "renameat2", "link", "linkat", "fsync", "fdatasync")
"""The system calls by which anything becomes durable, or has its name."""


ONE_WORKER = """
import trio
from shardfs import config, workers

config.WORKERS_LENT = 1
plain, shared = workers.Workers.__init__, []

def made(self):
    plain(self)
    shared or shared.append(trio.CapacityLimiter(1))
    self._io = self._small = self._large = shared[0]

workers.Workers.__init__ = made
"""
"""The program with all its work in one thread: strace counts the calls of each thread by itself."""


MAIN = """
import sys
from shardfs.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Victim:
    """A writable mount of `store` at `path`, with a staging area and a log of its own in `folder`. `script` is run
    in its process before the program."""

    def __init__(self, store: Path, folder: Path, *words: str, state: Path | None = None, script: str = "") -> None:
        self.store = store
        self.path = folder / "mnt"
        self.state = folder / "state" if state is None else state
        self.words = words
        self.script = script
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def said(self) -> str:
        return self.log.read_text()

    def start(self, *words: str, under: Iterable[str | Path] = (), rw: bool = True) -> None:
        """Mount, also over what a killed one has left; returns when it serves. `under` is a command that starts it, and
        may end it: then this returns, too."""
        writing = ["--rw"] if rw else []
        command = shardfs("mount", "-f", "-v", *writing, self.store, self.path, *(words or self.words))
        if self.script:
            command[1:3] = ["-c", self.script + MAIN]
        command = [*map(str, under), *command]
        environment = {**os.environ, "XDG_STATE_HOME": str(self.state)}
        before = self.log.stat().st_size if self.log.exists() else 0
        with open(self.log, "ab") as log:
            self._process = process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

        def serves() -> bool:
            return process.poll() is not None or b"shardfs: mounted " in self.log.read_bytes()[before:]

        wait_for(serves, SECONDS)
        assert under or process.poll() is None, self.said

    def kill(self) -> None:
        """As the kernel does when memory is short; the mount point stays, and is dead."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(SECONDS)

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit status."""
        assert self._process is not None
        return self._process.wait(seconds)

    @property
    def dead(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def gone(self) -> bool:
        """Whether it has ended, but for threads that no signal reaches as long as they hang in somebody's file system.
        It cannot be waited for as long as there are any."""
        return self.dead or Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"

    def end(self, status: int = 0) -> None:
        """End it in order, with everything stored (or the exit status that says that it is not)."""
        os.kill(self.pid, signal.SIGTERM)
        assert self.wait() == status, self.said
        assert not is_mounted(self.path)

    def close(self) -> None:
        """Leave nothing of it."""
        if not self.dead:
            self.kill()
        wipe(self.path)

    # --- what is on disk ---------------------------------------------------------------------------------------

    def area(self) -> Path:
        return self.state / "shardfs" / "staging" / store_id(self.store.resolve().as_uri())

    def staged(self) -> dict[str, str]:
        """Key or name -> state, of all that is staged and holds anything."""
        area = StagingArea.open(self.store.resolve().as_uri(), read_only=True, root=self.state / "shardfs" / "staging")
        try:
            return {report.key: report.state for report in area.reports() if report.files or report.state != "staged"}
        finally:
            area.close()

    def assert_tidy(self) -> None:
        """No temporary files in the store, and nothing in the staging area that no journal speaks of."""
        assert temporaries(self.store) == []
        assert [path for path in self.area().rglob("*") if path.name.endswith((".new", ".gone"))] == []
        area = StagingArea.open(self.store.resolve().as_uri(), read_only=True, root=self.state / "shardfs" / "staging")
        try:
            for staged in area.directories():
                data = {path.name for path in (self.area() / staged.id / "data").iterdir()} - {"heap"}
                numbers = {str(number) for number in staged._ledger.data_numbers() if number > 0}
                assert data == numbers, staged.key
        finally:
            area.close()


@contextlib.contextmanager
def victim(store: Path, folder: Path, *words: str, state: Path | None = None, script: str = "") -> Iterator[Victim]:
    """One that has not been started, with nothing of it left at the end."""
    made = Victim(store, folder, *words, state=state, script=script)
    try:
        yield made
    finally:
        made.close()


def temporaries(store: Path) -> list[str]:
    """Unfinished writes in a store."""
    return sorted(path.name for path in store.rglob(".shardfs-tmp-*"))


# --- contents ---------------------------------------------------------------------------------------------------------

Files = dict[str, bytes]
"""A key's files by name."""


def files_of(samples: int, mark: str, dice: Any, *, light: bool = False, size: int = 20_000) -> Files:
    """What programs write into a key: a picture and a label for each sample, all of which say `mark`. With `light`
    labels only, as JSON lines hold nothing else."""
    made: Files = {}
    for number in range(samples):
        label = {"label": number, "mark": mark, "text": "x" * dice.randrange(size // 10)}
        made[f"{number:06d}.json"] = json.dumps(label).encode() + b"\n"
        if not light:
            made[f"{number:06d}.img.jpg"] = JPEG + mark.encode() + dice.randbytes(dice.randrange(size))
    return made


def samples_of(files: Files) -> list[dict[str, Any]]:
    """The samples that a store has of such files."""
    made: dict[int, dict[str, Any]] = {}
    for name, data in sorted(files.items()):
        number, _, rest = name.partition(".")
        sample = made.setdefault(int(number), {})
        if rest == "json":
            sample.update(json.loads(data))
        else:
            sample[rest.partition(".")[0]] = data
    return [made[number] for number in sorted(made)]


def stored(store: Path, key: str) -> list[Any] | None:
    """What a store has under a key, read to its last byte; None without the key."""
    opened = open_store(store, driver="squirrel")
    return list(opened.get(key)) if key in opened.keys() else None  # noqa: SIM118  (a list of keys, not a dict)


def write_files(folder: Path, files: Files) -> None:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def same_bytes(name: str, one: bytes, two: bytes) -> bool:
    """Whether two contents of a file are the same to a store, which writes `.json` its own way."""
    if one == two or not name.endswith(".json"):
        return one == two
    try:
        return bool(json.loads(one) == json.loads(two))
    except ValueError:
        return False


# --- strace -----------------------------------------------------------------------------------------------------------


def need_strace() -> None:
    """Skip, and say so, where a program cannot be made to fail from outside."""
    if shutil.which("strace") is None:
        pytest.fail("strace is missing: these tests need it (the Debian package strace)")
    probe = [sys.executable, "-c", "import os; os.fsync(os.open('/tmp', os.O_RDONLY))"]
    inject = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=fsync", "-e", "inject=fsync:error=EIO"]
    done = subprocess.run([*inject, *probe], capture_output=True, text=True, timeout=SECONDS)
    if "Input/output error" not in done.stderr:
        reason = f"ptrace is not permitted here, so no disk can be made to fail: {done.stderr.strip()[-200:]}"
        print(f"NOT TESTED: {reason}", file=sys.stderr)
        pytest.skip(reason)


class Injection:
    """What strace does to a process, and what it saw."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def calls(self) -> list[str]:
        """Each call so far: its name, and the files it was about with all numbers and random ids taken out."""
        found = []
        for line in self._log.read_text(errors="replace").splitlines():
            called = re.match(r"\d+ +(\w+)\((.*)", line)
            if called is not None:
                found.append(f"{called[1]} {_site(called[2])}")
        return found

    def injected(self) -> list[str]:
        """The calls it was done to. A call that another thread's comes between is two lines of the log."""
        lines = self._log.read_text(errors="replace").splitlines()
        found = []
        begun: dict[str, str] = {}
        for line in lines:
            task, _, rest = line.partition(" ")
            called = re.match(r" *(\w+)\((.*)", rest)
            if called is not None:
                begun[task] = f"{called[1]} {_site(called[2])}"
            if "(INJECTED)" in line:
                found.append(begun[task])
        return found


def _site(arguments: str) -> str:
    arguments = re.sub(r'"(\\.|[^"\\])*"\.\.\.', "", arguments).replace("<unfinished ...>", "")
    paths = re.findall(r'<([^>]*)>|"([^"]*)"', arguments)
    names = ["/".join((a or b).split("/")[-2:]) for a, b in paths]
    names = [re.sub(r"^\d+/", "", name) for name in names]
    return " ".join(re.sub(r"[0-9a-f]{16}", "ID", re.sub(r"data/\d+", "data/N", name)) for name in names)


@contextlib.contextmanager
def injecting(pid: int, log: Path, *expressions: str, traced: str = ",".join(STORING)) -> Iterator[Injection]:
    """strace on a process and all its threads while inside, counting from here on. `expressions` as `-e inject=` has
    them; without any it only looks, at `traced`."""
    words = [word for expression in expressions for word in ("-e", f"inject={expression}")]
    command = ["strace", "-f", "-q", "-y", "-o", str(log), "-e", f"trace={traced}", *words, "-p", str(pid)]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: tracer.poll() is not None or _all_traced(pid, tracer.pid))
        assert tracer.poll() is None, tracer.stderr.read() if tracer.stderr else ""
        yield Injection(log)
    finally:
        if tracer.poll() is None:
            tracer.terminate()
        tracer.wait(SECONDS)
        assert tracer.stderr is not None
        tracer.stderr.close()


def _all_traced(pid: int, tracer: int) -> bool:
    for task in Path(f"/proc/{pid}/task").iterdir():
        if f"TracerPid:\t{tracer}\n" not in (task / "status").read_text():
            return False
    return True


# --- what was acknowledged --------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What one writer wants to have made of one key, and how far it has come."""

    key: str
    before: Files | None
    """What the store has; None for a new key."""
    after: Files
    """What it is to have."""
    place: str
    """The directory in the mount that it is written to: the key's, or one that is renamed to it."""
    whole: bool
    """True if `after` takes the place of all that was; else it lies over it."""
    written: set[str] = field(default_factory=set)
    """Files that are closed."""
    synced: set[str] = field(default_factory=set)
    """Files whose fsync has returned."""
    sealed: bool = False
    """True once somebody was told that the store has it."""

    def allowed(self, samples: list[Any] | None) -> bool:
        """Whether the store may have this by now."""
        before = None if self.before is None else samples_of(self.before)
        return samples == samples_of(self.result) or (samples == before and not self.sealed)

    @property
    def result(self) -> Files:
        return self.after if self.whole or self.before is None else {**self.before, **self.after}


def assert_store_whole(store: Path, works: Iterable[Work]) -> None:
    """Every key can be read to its end, and is as before or as it was to be."""
    known = {work.key: work for work in works}
    for key in open_store(store, driver="squirrel").keys():  # noqa: SIM118
        found = stored(store, key)
        assert key in known, f"{key} has come from nowhere"
        assert known[key].allowed(found), f"{key} is neither as before nor as it was to be: {found}"
    for work in known.values():
        assert work.allowed(stored(store, work.key)), work.key


def assert_shown(victim: Victim, work: Work) -> None:
    """What was written is in the mount: all that was closed, and of what was not some beginning or what was before."""
    folder = victim.path / work.place
    if work.place != work.key and not folder.exists():
        folder = victim.path / work.key
        moved = True
    else:
        moved = work.place == work.key
    assert not work.sealed or moved, f"{work.place} is still there, although it was stored"
    if not folder.exists():
        assert not work.written, f"{folder.name} is gone"
        return
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    before = {} if work.before is None or not moved else work.before
    for name in found.keys() | work.written | before.keys():
        data, old, new = found.get(name), before.get(name), work.after.get(name)
        if name in work.written or work.sealed:
            wanted = new if new is not None or work.whole else old
            right = data == wanted if data is None or wanted is None else same_bytes(name, data, wanted)
        elif data is None:
            right = old is None or work.whole
        else:
            right = (new is not None and new.startswith(data)) or (old is not None and same_bytes(name, data, old))
        assert right, f"{folder.name}/{name} is {data!r:.60}, not {new!r:.60} or {old!r:.60}: {work.written}"


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

    def play(self, heard: list[tuple[str, int | None]] | None = None) -> None:
        """All of it. With `heard` a step that fails is done again, and it and its errno are noted there."""
        for work in self.works:
            steps = [("mkdir", partial((self.mnt / work.place).mkdir, exist_ok=True))] if work.place != "a" else []
            steps += [("write", partial(self._write, work, name)) for name in sorted(work.after)]
            for what, step in [*steps, ("seal", partial(self._seal, work))]:
                for attempt in range(3):
                    try:
                        step()
                        break
                    except OSError as error:
                        if heard is None:
                            raise
                        heard.append((what, error.errno))
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
            sync(self.mnt / work.key)
        work.sealed = True
