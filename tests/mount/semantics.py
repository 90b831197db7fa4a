"""What the tests of docs/SEMANTICS.md share: mounts that many of them use, each test with keys of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shardfs import daemon, open_store
from tests.conformance.trees import fails
from tests.mount.conftest import mounting, sync

JPEG = b"\xff\xd8\xff\xe0"
refused = fails  # in the words of docs/SEMANTICS.md
WORDS = ("--rw", "--write-back", "off")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class World:
    """A store with a writable mount, and what else looks at it."""

    store: Path
    state: Path
    mnt: Path
    """Stores only when it is asked to, and removes and replaces nothing."""
    other: Path
    """A read-only mount of the same store."""

    def key(self) -> Path:
        """A new stored key of three samples with two files each."""
        return stored_key(self.mnt)

    def name(self) -> str:
        """The name of a key that is not there."""
        return new_name()

    def samples(self, key: Path) -> list[dict[str, object]]:
        return samples(self.store, key)


def new_name() -> str:
    return f"key{next(_numbers)}"


def stored_key(mnt: Path) -> Path:
    """A new key, stored through a mount."""
    key = mnt / new_name()
    key.mkdir()
    fill(key)
    sync(key)
    return key


def fill(folder: Path, samples: int = 3) -> None:
    for number in range(samples):
        (folder / f"{number:06d}.x.bin").write_bytes(bytes([number]) * 100)
        label(folder, number, number)


def label(folder: Path, number: int, value: object) -> None:
    (folder / f"{number:06d}.json").write_text(json.dumps({"label": value}) + "\n")


def labels(store: Path, key: Path) -> list[object]:
    return [sample["label"] for sample in samples(store, key)]


def samples(store: Path, key: Path) -> list[dict[str, object]]:
    """What a library reads."""
    return list(open_store(store).get(key.name))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def command(*words: str | Path, status: int = 0) -> str:
    """Both outputs of a program."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=30)
    assert done.returncode == status, f"{words}: {done.returncode}: {done.stderr}"
    return done.stdout + done.stderr


def a_store(path: Path) -> Path:
    """A Squirrel store of one key."""
    open_store(path, driver="squirrel").set([{"label": 0}], "there")
    return path


@contextlib.contextmanager
def a_world(folder: Path, *words: str) -> Iterator[World]:
    """A store in a new directory, mounted for writing, with more words for `shardfs mount`, and for reading."""
    store, state = a_store(folder / "store"), folder / "state"
    with mounting(store, *WORDS, *words, XDG_STATE_HOME=str(state)) as mnt, mounting(store) as other:
        yield World(store, state, mnt, other)


def kill(path: Path) -> None:
    """End a daemon without a word, and take its mount away."""
    record = daemon.find(str(path))
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    assert daemon.wait_until_gone(record)
    daemon.unmount(str(path), lazy=True)
