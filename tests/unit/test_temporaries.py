"""Unfinished writes: whose they are, and which of them a writer has left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from shardfs import config, open_store
from shardfs.storage import temporaries
from shardfs.storage.local import LocalStorage, temporary_name

HERE = Path(__file__).resolve().parents[2]

WRITER = """
import sys
from shardfs import open_store
def samples():
    yield {"x": 1}
    print("writing", flush=True)
    sys.stdin.read()
    yield {"x": 2}
open_store(sys.argv[1], driver="squirrel").set(samples(), sys.argv[2])
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    open_store(tmp_path / "store", driver="squirrel").set([{"x": 0}], "deep/a")
    return tmp_path / "store"


@pytest.fixture
def writer(store: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in the middle of writing the key `deep/new`."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", WRITER, str(store), "deep/new"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            yield process
        finally:
            process.kill()


def left(store: Path) -> list[str]:
    return [path.name for path in store.rglob("*") if path.name.startswith(temporaries.TEMPORARY)]


def tidied(store: Path) -> list[str]:
    """What is left after somebody has cleaned up who saw it all."""
    storage = LocalStorage(store)
    storage.list((".gz",))
    storage.remove_dead()
    return left(store)


def test_what_somebody_writes_stays_and_what_a_dead_one_left_goes(store: Path, writer: subprocess.Popen[bytes]) -> None:
    assert len(left(store)) == 1
    assert tidied(store) == left(store) != []
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(left(store)) == 1
    assert tidied(store) == []
    assert open_store(store).keys() == ["deep/a"]


def test_a_writer_that_was_looked_at_goes_on(store: Path, writer: subprocess.Popen[bytes]) -> None:
    tidied(store)
    writer.communicate(b"")
    assert writer.returncode == 0
    assert list(open_store(store).get("deep/new")) == [{"x": 1}, {"x": 2}]
    assert left(store) == []


def test_nothing_is_removed_of_which_it_is_not_known_whose_it_is(store: Path) -> None:
    """Names of an older release, of another machine, of another run of this one, until they are old; and no file of
    another kind ever."""
    ours = temporary_name()
    elsewhere = f"{temporaries.TEMPORARY}{'0' * 7}1-{'a' * 16}"
    for name in (elsewhere, temporaries.TEMPORARY + "a" * 16, temporaries.TEMPORARY + "x", ours):
        (store / name).write_bytes(b"x")
    (store / temporary_name()).mkdir()
    (store / temporary_name()).symlink_to(ours)
    os.mkfifo(store / temporary_name())
    before = set(left(store)) - {ours}
    assert set(tidied(store)) == before
    old = time.time() - config.TEMPORARY_AGE - 10
    for name in before:
        os.utime(store / name, (old, old), follow_symlinks=False)
    assert set(tidied(store)) == before - {elsewhere}


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away is root's")
def test_another_users_unfinished_write_stays(store: Path) -> None:
    name = temporary_name()
    (store / name).write_bytes(b"x")
    os.chown(store / name, 12345, 12345)
    assert tidied(store) == [name]


def test_a_file_that_is_cleaned_up_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = temporaries.fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not taken:
            taken.append(1)
            (name,) = os.listdir(tmp_path)
            directory = os.open(tmp_path, os.O_RDONLY)
            assert temporaries.remove_dead(directory, name)
            os.close(directory)
        real(descriptor, how)

    monkeypatch.setattr(temporaries.fcntl, "flock", flock)

    def write(file: BinaryIO) -> None:
        file.write(b"content")

    LocalStorage(tmp_path).put("a.gz", write)
    assert os.listdir(tmp_path) == ["a.gz"]
    assert (tmp_path / "a.gz").read_bytes() == b"content"


def test_reading_a_store_removes_nothing(store: Path) -> None:
    (store / temporary_name()).write_bytes(b"x")
    opened = open_store(store)
    assert opened.keys() == ["deep/a"]
    assert list(opened.get("deep/a")) == [{"x": 0}]
    assert len(left(store)) == 1
