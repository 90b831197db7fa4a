"""Several files as one step, and steps of two writers of which one has failed in the midst of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shardfs.drivers.mltraq import MltraqDriver
from shardfs.errors import StaleShardError, StorageError
from shardfs.model import Key
from shardfs.storage import together
from shardfs.storage.local import LocalStorage

K = Key("k")


class Died(BaseException):
    pass


def left(storage: LocalStorage, put: list[tuple[str, bytes]]) -> str:
    """A step whose writer has died just when it counted; its name."""
    name = together.token()

    def ready() -> None:
        raise Died

    with pytest.raises(Died):
        together.change(storage, "d", name, put, [], check=lambda: None, ready=ready)
    return name


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_step_that_was_left_is_made_before_the_next_is_looked_at(tmp_path: Path) -> None:
    """Regression: it was made later, over what another had written and been told was stored."""
    storage, seen = LocalStorage(tmp_path), []
    name = left(storage, [("a", b"first")])

    def check() -> None:
        seen.append((tmp_path / "d/a").read_bytes())

    together.change(storage, "d", together.token(), [("a", b"second")], [], check=check, ready=lambda: None)
    assert seen == [b"first"]
    assert together.settle(storage, "d", name, ready=True)
    assert together.settle(storage, "d", name, ready=True)
    assert files(tmp_path / "d") == {"a": b"second"}


@pytest.mark.parametrize("heard", [True, False])
def test_a_step_that_counts_is_made_whether_its_writer_heard_of_it_or_not(tmp_path: Path, heard: bool) -> None:
    storage = LocalStorage(tmp_path)
    name = left(storage, [("a", b"first")])
    assert together.settle(storage, "d", name, ready=heard)
    assert files(tmp_path / "d") == {"a": b"first"}


def test_a_step_that_does_not_count_yet_is_nobodys_business(tmp_path: Path) -> None:
    storage, name = LocalStorage(tmp_path), together.token()

    def check() -> None:
        together.change(LocalStorage(tmp_path), "e", together.token(), [("a", b"x")], [], check=lambda: None,
                        ready=lambda: None)  # fmt: skip
        raise StaleShardError("changed")

    with pytest.raises(StaleShardError):
        together.change(storage, "d", name, [("a", b"first")], [], check=check, ready=lambda: None)
    assert not together.settle(storage, "d", name, ready=False)
    assert files(tmp_path / "d") == {}


def test_who_writes_the_same_as_another_whose_disk_has_failed_has_not_written_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two who put the same bytes over one version the first has stored them, although he was told otherwise."""

    def driver() -> MltraqDriver:
        return MltraqDriver(LocalStorage(tmp_path))

    first = driver()
    first.write_files(K, [("a", b"old")], [], base=None, note=lambda text: None)
    base, notes = first.entry(K), list[str]()
    rename = os.rename

    def fails(source: str, target: str, **where: int) -> None:
        if target == "a":
            raise OSError(errno.EIO, "the network has failed")
        rename(source, target, **where)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(StorageError):
        first.write_files(K, [("a", b"new")], [], base=base, note=notes.append)
    monkeypatch.undo()
    second = driver()
    with pytest.raises(StaleShardError):
        second.write_files(K, [("a", b"new")], [], base=base, note=lambda text: None)
    entry = driver().settle(K, notes[-1])
    assert entry is not None
    assert entry == second.entry(K)
    assert files(tmp_path / "k") == {"a": b"new"}
