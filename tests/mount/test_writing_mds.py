"""Writable mounts of MDS data sets: samples are numbered through a split, so only its last key grows, or gets less."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from shardfs import daemon, open_store
from shardfs.cli import main
from shardfs.drivers.base import Value
from shardfs.model import Key
from tests.conformance.trees import wait_for
from tests.mount.conftest import mount_point, mounting
from tests.mount.conftest import run as shardfs

# those of any writable mount; their store and their files are the ones below
from tests.mount.test_writing import (  # noqa: F401
    free,
    mnt,
    refused,
    run,
    same,
    sync,
    test_a_file_that_was_removed_is_written_and_read_by_who_has_it_open,
    test_a_listing_names_every_file_once_while_files_are_removed,
    test_a_new_key_is_renamed_before_it_is_stored,
    test_a_second_writable_mount_of_a_store_is_refused,
    test_a_shared_mapping_is_written,
    test_a_signal_that_ends_the_daemon_stores_what_was_written,
    test_rsync_twice_copies_nothing_the_second_time,
    test_tar_extracts_into_a_key,
    test_what_cannot_be_in_a_store_is_refused,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]

RW = ("--rw", "--write-back", "off")
ALL = (*RW, "--allow-delete", "--allow-overwrite")


def sample(number: int) -> dict[str, Any]:
    return {"x": bytes([number]) * 100, "label": number, "key": "k"}


@pytest.fixture(params=["none", "zstd"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three keys with three samples each, with hashes in their index."""
    path = tmp_path / "store"
    made = open_store(path, driver="streaming", compression=request.param)
    for at, key in enumerate(("a", "b", "train/c")):
        made.set([sample(3 * at + number) for number in range(3)], key)
        if not at:
            hashed(path)
    return path


def hashed(path: Path) -> None:
    """Give the first shard of an index hashes: those behind it get them as well."""
    index = json.loads((path / "index.json").read_text())
    for part in ("raw_data", "zip_data"):
        data = index["shards"][0][part]
        name = None if data is None else path / data["basename"]
        if name is not None and name.exists():
            data["hashes"] = {"sha1": hashlib.sha1(name.read_bytes()).hexdigest()}
    index["shards"][0]["hashes"] = ["sha1"]
    (path / "index.json").write_text(json.dumps(index))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten samples, numbered from where the data set ends."""
    path = tmp_path / "source"
    path.mkdir()
    for number in range(9, 19):
        (path / f"{number:06d}.x.bin").write_bytes(os.urandom(20_000 + number))
        (path / f"{number:06d}.json").write_text(json.dumps({"key": "k", "label": number}) + "\n")
    return path


def labels(store: Path) -> dict[str, list[int]]:
    """All labels, as they are in the data set now, whose hashes are right."""
    opened = open_store(store, validate_hash="sha1")
    return {key: [one["label"] for one in opened.get(key)] for key in opened}


def index_of(store: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((store / "index.json").read_text())["shards"]
    return found


def files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.rglob("*.mds*")}


def label(value: int) -> str:
    return json.dumps({"key": "k", "label": value}) + "\n"


@contextlib.contextmanager
def says(path: Path, *words: str) -> Iterator[None]:
    """The log of a mount gets a line with all these words."""
    log = path.parent / "log"
    before = len(log.read_text()) if log.exists() else 0
    yield
    lines = log.read_text()[before:].splitlines()
    assert any(all(word in line for word in words) for line in lines), lines


# --- changing -------------------------------------------------------------------------------------------------------


def test_a_changed_sample_is_a_new_file_and_the_old_one_stays(mnt: Path, store: Path) -> None:  # noqa: F811
    before = files(store)
    with open(mnt / "a/000002.x.bin", "rb") as held, mounting(store, XDG_STATE_HOME=str(store.parent / "s")) as other:
        with open(other / "a/000001.json", "rb") as old:
            assert run("sed", "-i", 's/"label": 1/"label": 71/', mnt / "a/000001.json") == ""
            sync(mnt / "a")
            assert old.read() == b'{"key": "k", "label": 1}\n', "who has begun to read reads on"
            wait_for(lambda: json.loads((other / "a/000001.json").read_text())["label"] == 71)
        assert held.read() == sample(2)["x"]
    assert labels(store) == {"a": [0, 71, 2], "b": [3, 4, 5], "train/c": [6, 7, 8]}
    assert {name: data for name, data in files(store).items() if name in before} == before
    (made,) = set(files(store)) - set(before)
    assert made.startswith("a.r2.mds")


def test_tools_edit_labels_and_pictures_in_any_key(tmp_path: Path) -> None:
    store = tmp_path / "pictures"
    made = open_store(store, driver="streaming")
    picture = tmp_path / "one.jpg"
    PIL.Image.new("RGB", (40, 30), (200, 10, 10)).save(picture)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for key in ("train/shard.00000", "train/shard.00001", "val/shard.00000"):
        made.set([{"img": picture.read_bytes(), "emb": array, "n": n, "f": n / 2} for n in range(2)], key)
    with mounting(store, *RW, XDG_STATE_HOME=str(tmp_path / "s")) as path:
        first = path / "train/shard.00000"
        with PIL.Image.open(first / "000001.img.jpg") as opened:
            turned = opened.rotate(90, expand=True)
        turned.save(first / "000001.img.jpg")
        np.save(first / "000000.emb.npy", array + 1)
        run("vim", "-es", "-u", "NONE", "--cmd", "set nobackup writebackup backupcopy=no backupskip=", "-c",
            's/"n": 1/"n": 12/', "-c", "wq", first / "000001.json")  # fmt: skip
        run("sh", "-c", f"sed -i 's/0.5/7/' {path}/val/shard.00000/*.json")
        assert "stored train/shard.00000" in (said := shardfs("commit", path).stdout)
        assert "stored val/shard.00000" in said
        assert (first / "000001.img.jpg").read_bytes()[:2] == b"\xff\xd8"
    samples = list(open_store(store).get("train/shard.00000"))
    assert [(one["n"], type(one["n"])) for one in samples] == [(0, int), (12, int)]
    assert np.array_equal(samples[0]["emb"], array + 1)
    assert samples[0]["emb"].dtype == np.float32
    assert samples[0]["img"] == picture.read_bytes()
    assert [one["f"] for one in open_store(store).get("val/shard.00000")] == [0.0, 7.0]
    assert [one["n"] for one in open_store(store).get("train/shard.00001")] == [0, 1]


def test_a_value_that_its_column_cannot_hold_is_said_and_stays(mnt: Path, store: Path) -> None:  # noqa: F811
    (mnt / "a/000001.json").write_text('{"key": "k", "label": "one"}')
    with says(mnt, "000001", "column label is int", "one"):
        run("sync", mnt / "a", status=1)
    (mnt / "a/000001.json").write_text('{"key": "k"}')
    with says(mnt, "000001", "no label"):
        run("sync", mnt / "a", status=1)
    assert labels(store)["a"] == [0, 1, 2]
    (mnt / "a/000001.json").write_text(label(11))
    sync(mnt / "a")
    assert labels(store)["a"] == [0, 11, 2]


# --- new keys, more samples -------------------------------------------------------------------------------------------


def test_a_new_keys_samples_are_renumbered_when_they_are_stored(mnt: Path, store: Path, tmp_path: Path) -> None:  # noqa: F811
    mine = tmp_path / "mine"
    mine.mkdir()
    for number in (0, 1, 7):
        (mine / f"{number:06d}.x.bin").write_bytes(b"%d" % number)
        (mine / f"{number:06d}.json").write_text(label(50 + number))
    run("cp", "-r", mine, mnt / "train/d")
    same(mine, mnt / "train/d")
    with open(mnt / "train/d/000007.x.bin", "rb") as held:
        assert (mnt / "train/d/000001.json").read_text() == label(51)
        sync(mnt / "train/d")
        stems = ["000009", "000010", "000011"]
        assert sorted(os.listdir(mnt / "train/d")) == sorted(
            f"{stem}.{end}" for stem in stems for end in ("json", "x.bin")
        )
        with refused(errno.ENOENT):
            (mnt / "train/d/000001.json").read_text()
        assert (mnt / "train/d/000011.x.bin").read_bytes() == b"7"
        assert held.read() == b"7"
    assert labels(store)["train/d"] == [50, 51, 57]
    last = index_of(store)[-1]
    assert (last["samples"], last["hashes"], last["column_names"]) == (3, ["sha1"], ["key", "label", "x"])


def test_the_rename_of_a_temporary_directory_stores_it(mnt: Path, store: Path, source: Path) -> None:  # noqa: F811
    run("cp", "-r", source, mnt / "k.tmp")
    run("mv", "-T", mnt / "k.tmp", mnt / "k")
    assert labels(store)["k"] == list(range(9, 19))
    same(source, mnt / "k")
    with refused(errno.EEXIST):
        run("cp", "-r", source, mnt / "k.tmp")
        os.rename(mnt / "k.tmp", mnt / "k")
    shutil.rmtree(mnt / "k.tmp")


def test_samples_are_added_to_the_last_key_and_then_to_the_next(mnt: Path, store: Path) -> None:  # noqa: F811
    """What was added to the last key is stored before a new key, which would make it one in the middle."""
    for number in (9, 10):
        (mnt / f"train/c/{number:06d}.json").write_text(label(number))
        (mnt / f"train/c/{number:06d}.x.bin").write_bytes(b"more")
    (mnt / "d").mkdir()
    (mnt / "d/000000.json").write_text(label(11))
    (mnt / "d/000000.x.bin").write_bytes(b"next")
    sync(mnt / "d")
    assert labels(store) == {"a": [0, 1, 2], "b": [3, 4, 5], "train/c": [6, 7, 8, 9, 10], "d": [11]}
    assert sorted(os.listdir(mnt / "d")) == ["000011.json", "000011.x.bin"]
    with says(mnt, "train/c/000011.json", "new sample", "other numbers"), refused(errno.EPERM):
        (mnt / "train/c/000011.json").write_text(label(0))
    assert sorted(os.listdir(mnt / "train/c"))[-1] == "000010.x.bin"


def test_a_new_key_waits_in_vain_for_what_cannot_be_stored_before_it(mnt: Path, store: Path) -> None:  # noqa: F811
    (mnt / "train/c/000009.json").write_text(label(9))
    (mnt / "d").mkdir()
    (mnt / "d/000000.json").write_text(label(11))
    (mnt / "d/000000.x.bin").write_bytes(b"next")
    run("sync", mnt / "d", status=1)
    assert "train/c, behind which d would come" in shardfs("commit", mnt, "d").stderr
    assert list(labels(store)) == ["a", "b", "train/c"]
    (mnt / "train/c/000009.x.bin").write_bytes(b"the rest of it")
    sync(mnt / "d")
    assert labels(store)["train/c"] == [6, 7, 8, 9]
    assert labels(store)["d"] == [11]


def test_new_keys_come_in_the_order_of_their_names(store: Path, tmp_path: Path) -> None:
    with mounting(store, *RW, XDG_STATE_HOME=str(tmp_path / "s")) as path:
        for name in ("train/f", "train/d", "train/e"):
            (path / name).mkdir()
            (path / name / "000000.json").write_text(label(ord(name[-1])))
            (path / name / "000000.x.bin").write_bytes(b"x")
        assert shardfs("commit", path).returncode == 0
    assert list(labels(store)) == ["a", "b", "train/c", "train/d", "train/e", "train/f"]


@pytest.mark.parametrize("words", [("--size-limit", "64kb"), ("-o", "size_limit=64kb")])
def test_a_large_key_becomes_several(store: Path, source: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    with mounting(store, *RW, *words, XDG_STATE_HOME=str(tmp_path / "s")) as path:
        run("cp", "-r", source, path / "k.00000")
        (path / "k.00001").mkdir()
        (path / "k.00001/000000.json").write_text(label(100))
        (path / "k.00001/000000.x.bin").write_bytes(b"x")
        sync(path / "k.00000")
        names = ["a", "b", "k.00000", "k.00001", "k.00002", "k.00003", "k.00004", "train"]
        wait_for(lambda: sorted(os.listdir(path)) == names)
        found = {file.name: file.read_bytes() for key in path.glob("k.0000[0234]") for file in key.iterdir()}
        assert found == {file.name: file.read_bytes() for file in source.iterdir()}
        sync(path / "k.00001")
        assert sorted(os.listdir(path / "k.00001")) == ["000019.json", "000019.x.bin"]
    assert [one for key, found in labels(store).items() if key.startswith("k.") for one in found] == [
        *range(9, 19),
        100,
    ]
    assert all(shard["raw_data"]["bytes"] <= 64 << 10 for shard in index_of(store))


def test_an_empty_directory_becomes_a_data_set_with_splits(tmp_path: Path) -> None:
    store = tmp_path / "new"
    store.mkdir()
    assert shardfs("mount", store, tmp_path / "m", "--driver", "streaming").returncode == 3, "nothing to read"
    with mounting(store, *RW, "--driver", "streaming", XDG_STATE_HOME=str(tmp_path / "s")) as path:
        assert sorted(os.listdir(path)) == []
        for split in ("train", "val"):
            (path / split / "shard.00000").mkdir(parents=True)
            for number in range(2):
                at = path / split / f"shard.00000/{number:06d}"
                mixed = None if number else 0.5
                Path(f"{at}.json").write_text(json.dumps({"n": number, "text": "t", "list": [1, None], "mixed": mixed}))
                PIL.Image.new("RGB", (4, 4)).save(f"{at}.img.jpg")
        assert shardfs("commit", path).returncode == 0
    for split in ("train", "val"):
        (shard,) = index_of(store / split)
        assert dict(zip(shard["column_names"], shard["column_encodings"], strict=True)) == {
            "img": "jpeg",
            "list": "json",
            "mixed": "json",
            "n": "int",
            "text": "str",
        }
    assert [(one["n"], one["mixed"]) for one in open_store(store).get("val/shard.00000")] == [(0, 0.5), (1, None)]


@pytest.mark.parametrize("name", ["a.r2", "k.mds", "x" * 230])
def test_what_cannot_be_the_name_of_a_shard_is_refused_at_the_first_file(mnt: Path, name: str) -> None:  # noqa: F811
    (mnt / name).mkdir()
    with says(mnt, "cannot be a new key"), refused(errno.EINVAL):
        (mnt / name / "000000.json").write_text("{}")
    (mnt / name).rmdir()


# --- what would renumber ----------------------------------------------------------------------------------------------


def test_in_a_key_in_the_middle_nothing_comes_or_goes(free: Path, store: Path, source: Path) -> None:  # noqa: F811
    before, shown = labels(store), {path: path.read_bytes() for path in (free / "a").iterdir()}
    for change in (
        lambda: (free / "a/000009.json").write_text("{}"),
        lambda: (free / "a/cat.jpg").write_text("new"),
        lambda: (free / "a/000001.json").unlink(),
        lambda: (free / "a/000001.x.bin").unlink(),
        lambda: (free / "a/000001.json").rename(free / "a/000009.json"),
        lambda: (free / "a/000001.json").rename(free / "a/000002.json"),
        lambda: shutil.copy(source / "000009.json", free / "a/000009.json"),
    ):
        with says(free, "a/", "6 samples behind it", "other numbers"), refused(errno.EPERM):
            change()
    assert "not permitted" in run("rm", "-r", free / "a", status=1)
    assert {path: path.read_bytes() for path in (free / "a").iterdir()} == shown
    sync(free / "a")
    assert labels(store) == before


def test_what_programs_do_for_a_while_is_allowed_in_the_middle(free: Path, store: Path) -> None:  # noqa: F811
    (free / "a/.000001.json.swp").write_text("an editor's")
    (free / "a/000001.json").rename(free / "a/000001.json~")
    (free / "a/000001.json").write_text(label(12))
    (free / "a/000001.json~").unlink()
    (free / "a/sedAbCdEf").write_text(label(13))
    (free / "a/sedAbCdEf").rename(free / "a/000002.json")
    (free / "a/000000.x.bin").rename(free / "a/x.tmp")
    with refused(errno.EPERM):
        (free / "a/x.tmp").unlink()  # it has the only name of a stored file
    (free / "a/x.tmp").rename(free / "a/000000.x.bin")
    (free / "a/.000001.json.swp").unlink()
    sync(free / "a")
    assert labels(store)["a"] == [0, 12, 13]


def test_the_last_key_gets_less_and_goes(free: Path, store: Path) -> None:  # noqa: F811
    run("rm", free / "train/c/000007.json", free / "train/c/000007.x.bin")
    sync(free / "train/c")
    assert labels(store)["train/c"] == [6, 8]
    assert sorted(os.listdir(free / "train/c")) == ["000006.json", "000006.x.bin", "000007.json", "000007.x.bin"]
    run("rm", "-r", free / "train/c")
    assert labels(store) == {"a": [0, 1, 2], "b": [3, 4, 5]}
    run("rm", "-r", free / "b")  # which is the last one now
    assert labels(store) == {"a": [0, 1, 2]}
    assert {name.partition(".mds")[0] for name in files(store)} == {"a", "b", "c", "c.r2"}, "readers may need them"
    (free / "b").mkdir()
    (free / "b/000000.json").write_text(label(30))
    (free / "b/000000.x.bin").write_bytes(b"x")
    sync(free / "b")
    assert labels(store) == {"a": [0, 1, 2], "b": [30]}
    assert "b.r2.mds" in {name.removesuffix(".zstd") for name in files(store)}, "no name ever means another content"


def test_without_allow_delete_nothing_stored_is_removed(mnt: Path, store: Path) -> None:  # noqa: F811
    with says(mnt, "train/c/000008.json", "--allow-delete"), refused(errno.EPERM):
        (mnt / "train/c/000008.json").unlink()


def test_a_key_is_replaced_by_as_many_samples_or_is_the_last(free: Path, store: Path, source: Path) -> None:  # noqa: F811
    run("cp", "-r", free / "b", free / "b.tmp")
    run("sed", "-i", 's/"label": 4/"label": 44/', free / "b.tmp/000004.json")
    run("mv", "-T", free / "b.tmp", free / "b")
    assert labels(store)["b"] == [3, 44, 5]
    run("cp", "-r", source, free / "b.tmp")
    with says(free, "b has 3 samples and would have 10"), refused(errno.EPERM):
        os.rename(free / "b.tmp", free / "b")
    same(source, free / "b.tmp")
    run("mv", "-T", free / "b.tmp", free / "train/c")
    assert labels(store) == {"a": [0, 1, 2], "b": [3, 44, 5], "train/c": list(range(9, 19))}
    assert sorted(os.listdir(free / "train/c"))[0] == "000006.json"


# --- others -----------------------------------------------------------------------------------------------------------


def test_two_mounts_write_one_set(store: Path, tmp_path: Path) -> None:
    with (
        mounting(store, *ALL, XDG_STATE_HOME=str(tmp_path / "s1")) as one,
        mounting(store, *ALL, XDG_STATE_HOME=str(tmp_path / "s2")) as two,
    ):
        (one / "a/000000.json").write_text(label(100))
        (two / "a/000001.json").write_text(label(200))
        (two / "b/000003.json").write_text(label(300))
        sync(one / "a")
        assert "Stale" in run("sync", two / "a", status=1)
        sync(two / "b")
        assert labels(store) == {"a": [100, 1, 2], "b": [300, 4, 5], "train/c": [6, 7, 8]}
        (conflict,) = [name for name in os.listdir(two) if ".conflict-" in name]
        assert (two / conflict / "000001.json").read_text() == label(200)
        wait_for(lambda: (two / "a/000000.json").read_text() == label(100))
        shutil.rmtree(two / conflict)
        for path, number in ((one, 10), (two, 20)):
            (path / f"new.{number}").mkdir()
            (path / f"new.{number}/000000.json").write_text(label(number))
            (path / f"new.{number}/000000.x.bin").write_bytes(b"x")
            sync(path / f"new.{number}")
        wait_for(lambda: sorted(os.listdir(one / "new.20")) == ["000010.json", "000010.x.bin"])
        # it is in the middle by now, which is asked of the data set
        with refused(errno.EPERM):
            (one / "new.10/000099.json").write_text(label(1))
    assert labels(store) == {"a": [100, 1, 2], "b": [300, 4, 5], "train/c": [6, 7, 8], "new.10": [10], "new.20": [20]}


def test_a_program_that_adds_shards_meanwhile(mnt: Path, store: Path) -> None:  # noqa: F811
    (mnt / "a/000000.json").write_text(label(100))
    (mnt / "train/c/000009.json").write_text(label(9))
    (mnt / "train/c/000009.x.bin").write_bytes(b"x")
    other = open_store(store)
    other.driver.write_records(Key("z"), [Value({"x": b"", "label": 90, "key": "k"}, "0")], base=None)
    sync(mnt / "a")
    with says(mnt, "train/c has 3 samples and would have 4"):
        assert "not permitted" in run("sync", mnt / "train/c", status=1)
    assert labels(store) == {"a": [100, 1, 2], "b": [3, 4, 5], "train/c": [6, 7, 8], "z": [90]}
    (mnt / "train/c/000009.json").unlink()
    (mnt / "train/c/000009.x.bin").unlink()
    assert json.loads((mnt / "z/000009.json").read_text())["label"] == 90


@pytest.mark.parametrize("kept", [True, False])
def test_a_merged_set_and_the_indexes_that_it_was_merged_from(tmp_path: Path, kept: bool) -> None:
    store = tmp_path / "merged"
    for part in ("00", "01"):
        open_store(store / part, driver="streaming").set([sample(0)], "shard.00000")
    shards = []
    for part in ("00", "01"):
        for shard in index_of(store / part):
            shard["raw_data"]["basename"] = f"{part}/{shard['raw_data']['basename']}"
            shards.append(shard)
        if not kept:
            (store / part / "index.json").unlink()
    (store / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    with mounting(store, *RW, XDG_STATE_HOME=str(tmp_path / "s")) as path:
        (path / "00/shard.00000/000000.json").write_text(label(1))
        (path / "01/shard.00001").mkdir()
        (path / "01/shard.00001/000000.json").write_text(label(2))
        (path / "01/shard.00001/000000.x.bin").write_bytes(b"x")
        assert shardfs("commit", path).returncode == 0
        with says(path, "00/shard.00000/000002.json", "2 samples behind it"), refused(errno.EPERM):
            (path / "00/shard.00000/000002.json").write_text(label(1))
        assert (path / "01/shard.00001/000002.json").read_text() == label(2)
    names = [shard["raw_data"]["basename"] for shard in index_of(store)]
    assert names == ["00/shard.00000.r2.mds", "01/shard.00000.mds", "01/shard.00001.mds"]
    opened = open_store(store)
    assert [one["label"] for key in opened for one in opened.get(key)] == [1, 0, 2]
    if kept:
        assert [shard["raw_data"]["basename"] for shard in index_of(store / "00")] == ["shard.00000.r2.mds"]
        assert [shard["samples"] for shard in index_of(store / "01")] == [1, 1]


# --- by itself, and after death ---------------------------------------------------------------------------------------


def test_keys_are_stored_after_some_quiet(store: Path, source: Path, tmp_path: Path) -> None:
    with mounting(store, "--rw", "--write-back", "0.3", XDG_STATE_HOME=str(tmp_path / "s")) as path:
        run("cp", "-r", source, path / "k")
        run("sed", "-i", 's/"label": 1/"label": 71/', path / "a/000001.json")
        wait_for(lambda: labels(store).get("k") == list(range(9, 19)) and labels(store)["a"] == [0, 71, 2])
        same(source, path / "k")


def test_what_was_written_is_there_again_after_the_daemon_was_killed(store: Path, source: Path, tmp_path: Path) -> None:
    environment = {"XDG_STATE_HOME": str(tmp_path / "s")}
    with mount_point() as path:
        assert shardfs("mount", store, path, *RW, **environment).returncode == 0
        run("cp", "-r", source, path / "k")
        (path / "a/000001.json").write_text(label(71))
        (path / "train/c/000008.x.bin").write_bytes(b"changed")
        record = daemon.find(str(path))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{record.pid}").exists())
        run("fusermount3", "-u", path)
    with mounting(store, *RW, **environment) as again:
        same(source, again / "k")
        assert (again / "a/000001.json").read_text() == label(71)
        assert (again / "train/c/000008.x.bin").read_bytes() == b"changed"
        assert shardfs("commit", again).returncode == 0
    assert labels(store) == {"a": [0, 71, 2], "b": [3, 4, 5], "train/c": [6, 7, 8], "k": list(range(9, 19))}
    assert open_store(store).get("train/c")[2]["x"] == b"changed"


def test_gc_beside_a_mount_takes_what_its_readers_can_do_without(
    mnt: Path,  # noqa: F811
    store: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open(mnt / "a/000002.x.bin", "rb", buffering=0) as held:
        for value in (71, 72):
            (mnt / "a/000001.json").write_text(label(value))
            sync(mnt / "a")
        (mnt / "b/000003.json").write_text(label(33))
        assert main(["gc", str(store), "--older-than", "0", "--yes", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["removed"] == 2
        assert held.read() == sample(2)["x"], "it is the same in the new version"
        sync(mnt / "b")
    assert {name.partition(".mds")[0] for name in files(store)} == {"a.r3", "b", "b.r2", "c"}
    assert labels(store) == {"a": [0, 72, 2], "b": [33, 4, 5], "train/c": [6, 7, 8]}
