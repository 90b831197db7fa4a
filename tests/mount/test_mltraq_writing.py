"""Writing into the datastore of mltraq experiments through a mount."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from shardfs.mltraq import DataStoreIO
from tests.conformance.trees import fails, wait_for
from tests.mount.conftest import mount_point, run, sync

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

DATA = Path(__file__).parent.parent / "data/mltraq"
Mounted = Callable[..., AbstractContextManager[Path]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A copy of a fixture, whose datastore has a directory of its owner's own."""
    shutil.copytree(DATA / "datastoreio", tmp_path / "copy")
    return tmp_path / "copy"


def url_of(store: Path) -> str:
    return f"mltraq+sqlite:///{store / 'exp.db'}"


def commit(path: Path) -> None:
    subprocess.run(["sync", str(path)], check=True, timeout=30)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_files_are_stored_under_their_own_names(store: Path, mounted: Mounted) -> None:
    """Raw ones as they are, .npy and .json as values that the library's interface reads."""
    datastore = store / "mltraq.datastore"
    array = np.arange(6.0).reshape(2, 3)
    with mounted(url_of(store), "--rw", XDG_STATE_HOME=str(store / "state")) as path:
        (path / "fresh/below").mkdir(parents=True)
        (path / "fresh/below/cat.jpg").write_bytes(b"\xff\xd8\xff of a cat")
        (path / "fresh/below/cat.weights.npy").write_bytes(npy(array))
        (path / "fresh/below/note.json").write_text('{"a": [1, 2.5, null], "b": {"$tuple": [1]}}')
        before = {file: (path / "fresh/below" / file).read_bytes() for file in os.listdir(path / "fresh/below")}
        commit(path / "fresh/below")
        assert sorted(os.listdir(path / "fresh/below")) == sorted(before)
        for name in ("cat.jpg", "cat.weights.npy"):
            assert (path / "fresh/below" / name).read_bytes() == before[name]
    assert (datastore / "fresh/below/cat.jpg").read_bytes() == b"\xff\xd8\xff of a cat"
    assert sorted(os.listdir(datastore / "fresh/below")) == ["cat.jpg", "cat.weights.npy", "note.json"]
    got = DataStoreIO("file:///fresh/below/cat.weights.npy", datastore=datastore).read_deserialize()
    assert np.array_equal(got, array)
    value = DataStoreIO("file:///fresh/below/note.json", datastore=datastore).read_deserialize()
    assert value == {"a": [1, 2.5, None], "b": (1,)}


def test_a_directory_that_is_there_gets_more_files_and_keeps_its_own(store: Path, mounted: Mounted) -> None:
    prefix = "self_managed/ca3141aa-eb9e-46f7-9ad6-ba32a593a02b"
    folder = store / "mltraq.datastore" / prefix
    before = {file.name: (file.read_bytes(), file.stat().st_ino) for file in folder.iterdir()}
    with mounted(url_of(store), "--rw", "--allow-delete", XDG_STATE_HOME=str(store / "state")) as path:
        shown = {name: (path / prefix / name).read_bytes() for name in os.listdir(path / prefix)}
        (path / prefix / "new.txt").write_text("new")
        commit(path / prefix)
        assert {name: (path / prefix / name).read_bytes() for name in os.listdir(path / prefix)} == {
            **shown,
            "new.txt": b"new",
        }
        assert {name: (folder / name).read_bytes() for name in before} == {
            name: data for name, (data, _) in before.items()
        }
        assert {name: (folder / name).stat().st_ino for name in before} == {
            name: ino for name, (_, ino) in before.items()
        }
        (path / prefix / "new.txt").write_text("newer")
        os.rename(path / prefix / "new.txt", path / prefix / "other.txt")
        os.unlink(path / prefix / "aaf538b05c3447cea1680a50c1e27478.$value.bin")
        commit(path / prefix)
        assert (path / prefix / "other.txt").read_text() == "newer"
    assert sorted(os.listdir(folder)) == sorted({*before, "other.txt"} - {"aaf538b05c3447cea1680a50c1e27478"})
    assert (folder / "other.txt").read_text() == "newer"


def test_a_part_of_a_stored_file_is_not_changed_by_itself(store: Path, mounted: Mounted) -> None:
    datastore = store / "mltraq.datastore"
    name = DataStoreIO.serialize_write({"a": np.arange(3), "b": 1}, "own", datastore=datastore).url.rpartition("/")[2]
    stored = (datastore / "own" / name).read_bytes()
    state = {"XDG_STATE_HOME": str(store / "state")}
    with mounted(url_of(store), "--rw", "--allow-delete", "--write-back", "off", **state) as path:
        (path / "own" / f"{name}.json").write_text('{"b": 2}')
        with fails(errno.EINVAL):
            sync(path / "own")
        assert (datastore / "own" / name).read_bytes() == stored
        for file in (f"{name}.a.npy", f"{name}.json"):
            os.unlink(path / "own" / file)
        (path / "own/kept.json").write_text('{"b": 2}')
        commit(path / "own")
        assert os.listdir(path / "own") == ["kept.json"]
    assert os.listdir(datastore / "own") == ["kept.json"]


def test_experiments_are_read_only_and_say_so(store: Path, mounted: Mounted) -> None:
    with mounted(url_of(store), "--rw", "--allow-delete", XDG_STATE_HOME=str(store / "state")) as path:
        before = (store / "exp.db").read_bytes()
        run = "1ed62e3a-7dc3-400b-a40c-c227419f5808.json"
        for change in (
            lambda: (path / "io/new.json").write_text("{}"),
            lambda: (path / "io" / run).write_text("{}"),
            lambda: os.unlink(path / "io" / run),
            lambda: os.rename(path / "io" / run, path / "io/x.json"),
        ):
            with fails(errno.EROFS):
                change()
        # and so is the directory of an experiment, which the library wipes
        os.mkdir(path / "93c29379-71d9-48a2-84ec-f2852f494fb2")
        with fails(errno.EROFS):
            (path / "93c29379-71d9-48a2-84ec-f2852f494fb2/a.txt").write_text("lost")
        os.rmdir(path / "93c29379-71d9-48a2-84ec-f2852f494fb2")
        log = (path.parent / "log").read_text()
        assert "io is an experiment" in log
        assert "id of an experiment" in log
        assert json.loads((path / "io" / run).read_bytes())["url_list"]
        assert (store / "exp.db").read_bytes() == before


def test_a_copy_of_a_directory_shows_the_same(store: Path, mounted: Mounted) -> None:
    """`cp -r` into a plain directory, and its rename, store all of it at once; values stay values."""
    datastore = store / "mltraq.datastore"
    value = {"image": np.arange(60, dtype="u1").reshape(4, 5, 3), "inner": {"x": np.arange(3), "raw": b"\1\2"}, "n": 1}
    DataStoreIO.serialize_write(value, "own", datastore=datastore)
    with mounted(url_of(store), "--rw", XDG_STATE_HOME=str(store / "state")) as path:
        shutil.copytree(path / "own", path / "copy.tmp", copy_function=shutil.copyfile)
        os.rename(path / "copy.tmp", path / "copy")
        shown = {name: (path / "own" / name).read_bytes() for name in os.listdir(path / "own")}
        assert {name: (path / "copy" / name).read_bytes() for name in os.listdir(path / "copy")} == shown
    (stem,) = {name.partition(".")[0] for name in shown}
    got = DataStoreIO(f"file:///copy/{stem}.json", datastore=datastore).read_deserialize()
    assert (got["n"], got["inner"]["raw"], got["inner"]["x"].tolist()) == (1, b"\1\2", [0, 1, 2])


def test_a_file_without_an_extension_or_that_does_not_parse_is_told(store: Path, mounted: Mounted) -> None:
    state = {"XDG_STATE_HOME": str(store / "state")}
    with mounted(url_of(store), "--rw", "--write-back", "off", **state) as path:
        (path / "p").mkdir()
        for name, data in (
            ("README", b"x"),
            ("a%20b.txt", b"x"),
            ("x.npy", b"no array"),
            ("x.json", b"{"),
            ("y.json", b"[1]"),
        ):
            (path / "p" / name).write_bytes(data)
            with fails(errno.EINVAL):
                sync(path / "p")
            assert not (store / "mltraq.datastore/p").exists() or os.listdir(store / "mltraq.datastore/p") == []
            os.unlink(path / "p" / name)


def test_a_directory_is_removed_with_its_last_file(store: Path, mounted: Mounted) -> None:
    state = {"XDG_STATE_HOME": str(store / "state")}
    with mounted(url_of(store), "--rw", "--allow-delete", **state) as path:
        shutil.rmtree(path / "undefined")
        assert not (store / "mltraq.datastore/undefined").exists()
        assert "undefined" not in os.listdir(path)


def test_a_conflict_is_set_aside(store: Path, mounted: Mounted) -> None:
    datastore = store / "mltraq.datastore"
    state = {"XDG_STATE_HOME": str(store / "state")}
    with mounted(url_of(store), "--rw", "--write-back", "off", **state) as path:
        (path / "undefined/mine.txt").write_text("mine")
        DataStoreIO.write(b"theirs", datastore=datastore)
        with fails(errno.ESTALE):
            sync(path / "undefined")
        (aside,) = [name for name in os.listdir(path) if name.startswith("undefined.conflict-")]
        assert (path / aside / "mine.txt").read_text() == "mine"
        shutil.rmtree(path / aside)
        assert len(os.listdir(datastore / "undefined")) == 2


def test_a_relative_url_is_mounted_and_the_library_may_go_on_writing(store: Path) -> None:
    """A mount in the background has another working directory; a commit is seen a moment later."""
    with mount_point() as path:
        done = run("mount", "mltraq+sqlite:///exp.db", path, cwd=store)
        assert done.returncode == 0, done.stderr
        assert sorted(os.listdir(path)) == ["io", "self_managed", "undefined"]
        assert (path / "io/experiment.json").read_bytes() == b"{}\n"
        with sqlite3.connect(store / "exp.db") as database:
            database.execute("UPDATE experiments SET name = 'a new name'")
        database.close()
        wait_for(lambda: sorted(os.listdir(path)) == ["a new name", "self_managed", "undefined"])
        assert (path / "a new name/experiment.json").read_bytes() == b"{}\n"
        DataStoreIO.write(b"new", "undefined", datastore=store / "mltraq.datastore")
        wait_for(lambda: len(os.listdir(path / "undefined")) == 2)
        assert run("umount", path).returncode == 0
