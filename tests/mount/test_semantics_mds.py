"""docs/SEMANTICS.md, statement by statement: data sets of MosaicML Streaming, tars, and directories of mltraq's."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs import config, open_store
from shardfs.drivers.base import Value
from shardfs.model import Key
from tests.conformance.trees import wait_for
from tests.mount.conftest import mounting
from tests.mount.conftest import run as shardfs
from tests.mount.semantics import JPEG, WORDS, command, contents, new_name, refused, sync

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

ALL = ("--allow-delete", "--allow-overwrite")


@dataclass(frozen=True, slots=True)
class Splits:
    """A data set with a writable mount, in which each test has splits of its own."""

    store: Path
    mnt: Path

    def split(self, *keys: str) -> Path:
        """A new one with these keys of three samples each."""
        name = new_name()
        for at, key in enumerate(keys):
            made = [sample(3 * at + number) for number in range(3)]
            open_store(self.store, driver="streaming").set(made, f"{name}/{key}")
        if keys:
            wait_for((self.mnt / name / keys[-1]).exists)
        return self.mnt / name

    def labels(self, split: Path) -> dict[str, list[int]]:
        """What a library reads, by key."""
        opened = open_store(self.store / split.name)
        return {key: [one["label"] for one in opened.get(key)] for key in opened}

    def index(self, split: Path) -> list[dict[str, Any]]:
        return index_of(self.store / split.name)


def index_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((path / "index.json").read_text())["shards"]
    return found


def sample(number: int) -> dict[str, Any]:
    return {"x": bytes([number]) * 100, "label": number}


def label(folder: Path, number: int, value: object) -> None:
    (folder / f"{number:06d}.json").write_text(json.dumps({"label": value}) + "\n")


def add(folder: Path, *numbers: int) -> None:
    """Whole samples of a data set, each with its number for its label."""
    folder.mkdir(exist_ok=True, parents=True)
    for number in numbers:
        label(folder, number, number)
        (folder / f"{number:06d}.x.bin").write_bytes(b"x")


def is_refused(file: Path) -> bool:
    """Whether no such file can be made; it is not left."""
    try:
        file.write_text("{}")
    except PermissionError:
        return True
    file.unlink()
    return False


def log_of(mnt: Path) -> str:
    return (mnt.parent / "log").read_text()


@contextlib.contextmanager
def a_set(folder: Path, *words: str) -> Iterator[Splits]:
    store = folder / "store"
    open_store(store, driver="streaming").set([sample(0)], "there/a")
    with mounting(store, *WORDS, *words, XDG_STATE_HOME=str(folder / "state")) as mnt:
        yield Splits(store, mnt)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Splits]:
    """One for all tests, with all that is allowed."""
    with a_set(tmp_path_factory.mktemp("data"), *ALL) as made:
        yield made


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Splits]:
    """One that removes and replaces nothing."""
    with a_set(tmp_path_factory.mktemp("strict")) as made:
        yield made


class TestMdsDataSets:
    def test_a_new_key_comes_behind_all_others_of_its_split(self, data: Splits) -> None:
        split = data.split("m")
        add(split / "a", 0, 7)
        assert sorted(os.listdir(split / "a")) == ["000000.json", "000000.x.bin", "000007.json", "000007.x.bin"]
        sync(split / "a")
        assert sorted(os.listdir(split / "a")) == ["000003.json", "000003.x.bin", "000004.json", "000004.x.bin"]
        add(split / "z", 0)
        add(split / "b", 1)
        assert shardfs("commit", data.mnt).returncode == 0
        assert data.labels(split) == {"m": [0, 1, 2], "a": [0, 7], "b": [1], "z": [0]}
        assert [shard["raw_data"]["basename"][0] for shard in data.index(split)] == ["m", "a", "b", "z"]

    def test_the_last_key_takes_more_samples(self, data: Splits) -> None:
        split = data.split("a", "b")
        label(split / "b", 6, 6)
        add(split / "c", 0)
        with refused(errno.EBUSY):
            sync(split / "c")
        assert list(data.labels(split)) == ["a", "b"]
        (split / "b/000006.x.bin").write_bytes(b"the rest of it")
        sync(split / "c")
        assert data.labels(split) == {"a": [0, 1, 2], "b": [3, 4, 5, 6], "c": [0]}
        assert sorted(os.listdir(split / "c")) == ["000007.json", "000007.x.bin"]

    def test_in_any_other_key_samples_are_changed_only(self, data: Splits) -> None:
        split = data.split("a", "b")
        key, before = split / "a", contents(split / "a")
        for change in (
            lambda: label(key, 9, 9),
            lambda: (key / "cat.jpg").write_bytes(JPEG),
            lambda: (key / "000001.json").unlink(),
            lambda: (key / "000001.json").rename(key / "000002.json"),
        ):
            with refused(errno.EPERM):
                change()
        assert "3 samples behind it in its split would get other numbers" in log_of(data.mnt)
        assert contents(key) == before
        command("sed", "-i", "s/1/71/", key / "000001.json")
        (key / "000002.json").rename(key / "000002.json~")
        label(key, 2, 72)
        (key / "000002.json~").unlink()
        sync(key)
        assert data.labels(split) == {"a": [0, 71, 72], "b": [3, 4, 5]}

    def test_a_key_that_others_have_made_one_in_the_middle_is_eperm(self, data: Splits) -> None:
        split = data.split("a")
        add(split / "a", 3)
        other = open_store(data.store)
        other.driver.write_records(Key(f"{split.name}/z"), [Value({"x": b"", "label": 90}, "0")], base=None)
        with refused(errno.EPERM):
            sync(split / "a")
        assert (split / "a/000003.x.bin").read_bytes() == b"x"
        assert data.labels(split) == {"a": [0, 1, 2], "z": [90]}
        wait_for((split / "z").exists)
        wait_for(lambda: is_refused(split / "a/000004.json"))
        for name in ("000003.json", "000003.x.bin"):
            (split / "a" / name).unlink()

    def test_the_last_key_is_removed_with_allow_delete_only(self, data: Splits, strict: Splits) -> None:
        kept = strict.split("a")
        with refused(errno.EPERM):
            (kept / "a/000002.json").unlink()
        split = data.split("a", "b")
        for name in ("000004.json", "000004.x.bin"):
            (split / "b" / name).unlink()
        sync(split / "b")
        assert data.labels(split)["b"] == [3, 5]
        command("rm", "-r", split / "b")
        assert data.labels(split) == {"a": [0, 1, 2]}
        assert {path.name for path in (data.store / split.name).glob("b*")} == {"b.mds", "b.r2.mds"}

    def test_a_key_is_replaced_by_as_many_samples_with_allow_overwrite(self, data: Splits, strict: Splits) -> None:
        kept = strict.split("a")
        add(kept / "x.tmp", 0, 1, 2)
        with refused(errno.EEXIST):
            os.rename(kept / "x.tmp", kept / "a")
        shutil.rmtree(kept / "x.tmp")
        split = data.split("a", "b")
        add(split / "x.tmp", 0, 1, 2)
        os.rename(split / "x.tmp", split / "a")
        add(split / "x.tmp", 7, 8)
        with refused(errno.EPERM):
            os.rename(split / "x.tmp", split / "a")
        assert len(contents(split / "x.tmp")) == 4
        os.rename(split / "x.tmp", split / "b")
        assert data.labels(split) == {"a": [0, 1, 2], "b": [7, 8]}
        assert sorted(os.listdir(split / "b"))[0] == "000003.json"

    def test_a_changed_shard_is_a_new_file(self, data: Splits) -> None:
        split = data.split("a")
        file = data.store / split.name / "a.mds"
        before = file.read_bytes()
        for value in (70, 71):
            label(split / "a", 0, value)
            sync(split / "a")
        assert file.read_bytes() == before
        assert [shard["raw_data"]["basename"] for shard in data.index(split)] == ["a.r3.mds"]
        assert data.labels(split) == {"a": [71, 1, 2]}

    def test_a_shard_is_made_like_the_one_before_it(self, data: Splits) -> None:
        name = new_name()
        first = open_store(data.store / name, driver="streaming", compression="zstd")
        first.set([{"x": b"1", "label": np.int16(5)}], "a")
        index = json.loads((data.store / name / "index.json").read_text())
        stored = (data.store / name / "a.mds.zstd").read_bytes()
        index["shards"][0]["zip_data"]["hashes"] = {"sha1": hashlib.sha1(stored).hexdigest()}
        index["shards"][0]["hashes"] = ["sha1"]
        (data.store / name / "index.json").write_text(json.dumps(index))
        split = data.mnt / name
        wait_for((split / "a").exists)
        add(split / "b", 0)
        sync(split / "b")
        one, two = data.index(split)
        for same in ("column_names", "column_encodings", "compression", "hashes"):
            assert one[same] == two[same], same
        made = (data.store / name / two["zip_data"]["basename"]).read_bytes()
        assert two["zip_data"]["hashes"] == {"sha1": hashlib.sha1(made).hexdigest()}

    def test_the_first_shard_of_a_split_holds_what_its_samples_hold(self, data: Splits) -> None:
        key = data.split() / "a"
        key.mkdir(parents=True)
        for number, mixed in enumerate((None, 0.5)):
            value = {"n": number, "f": 0.5, "t": "text", "list": [1, None], "mixed": mixed}
            (key / f"{number:06d}.json").write_text(json.dumps(value))
            (key / f"{number:06d}.img.jpg").write_bytes(JPEG + b"content")
            np.save(key / f"{number:06d}.a.npy", np.arange(3))
        sync(key)
        (shard,) = data.index(key.parent)
        found = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
        assert found.pop("a").startswith("ndarray")
        assert found.pop("img") in ("bytes", "jpeg")
        assert found == {"n": "int", "f": "float64", "t": "str", "list": "json", "mixed": "json"}
        assert (shard["compression"], shard["hashes"]) == (None, [])

    def test_einval_means_that_a_sample_does_not_fit_its_columns(self, data: Splits) -> None:
        split = data.split("a")
        for wrong in ({"label": "one"}, {}, {"label": 1, "more": 2}):
            (split / "a/000001.json").write_text(json.dumps(wrong))
            with refused(errno.EINVAL):
                sync(split / "a")
        add(split / "x.tmp", 0)
        (split / "x.tmp/000000.y.bin").write_bytes(b"no such column")
        with refused(errno.EINVAL):
            os.rename(split / "x.tmp", split / "b")
        assert data.labels(split) == {"a": [0, 1, 2]}
        shutil.rmtree(split / "x.tmp")
        label(split / "a", 1, 71)
        sync(split / "a")

    def test_einval_means_that_a_shard_cannot_be_called_so(self, data: Splits) -> None:
        for name in ("a.r2", "k.mds", "x" * 230):
            key = data.mnt / "there" / name
            key.mkdir()
            with refused(errno.EINVAL):
                label(key, 0, 0)
            key.rmdir()

    def test_efbig_means_4_gib_in_one_shard(self, data: Splits, tmp_path: Path) -> None:
        """None of it is read, written or reserved: a hole, and a staging area on another disk than the store."""
        squirrel = tmp_path / "squirrel"
        open_store(squirrel, driver="squirrel").set([{"label": 0}], "there")
        shared = Path("/dev/shm")
        if shared.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("no second disk")
        state = shared / f"shardfs-{new_name()}-{os.getpid()}"
        try:
            for store in (data.store, squirrel):
                with mounting(store, *WORDS, XDG_STATE_HOME=str(state)) as mnt:
                    for place in (mnt / "there/new", mnt / "there/new.tmp"):
                        if store is squirrel:
                            place = mnt / place.name
                        add(place, 1)
                        with open(place / "000001.x.bin", "r+b") as file:
                            file.truncate(config.VALUE_BYTES + 1)
                        with refused(errno.EFBIG):
                            if place.suffix:
                                os.rename(place, place.with_suffix(""))
                            else:
                                sync(place)
                        assert (place / "000001.x.bin").stat().st_size == 1 << 32
                        shutil.rmtree(place)
        finally:
            shutil.rmtree(state)

    def test_a_size_limit_makes_several_keys_of_a_new_one(self, tmp_path: Path) -> None:
        with a_set(tmp_path, "--size-limit", "64kb") as data:
            split = data.mnt / "there"
            add(split / "k.00001", 0)
            key = split / "k.00000"
            key.mkdir()
            for number in range(1, 9):
                label(key, number, number)
                (key / f"{number:06d}.x.bin").write_bytes(os.urandom(20_000))
            sync(key)
            wait_for(lambda: sorted(os.listdir(split)) == ["a", "k.00000", "k.00001", "k.00002", "k.00003"])
            found = data.labels(split)
            assert found["k.00000"] + found["k.00002"] + found["k.00003"] == list(range(1, 9))
            last = split / "k.00003"
            for number in range(9, 13):
                label(last, number, number)
                (last / f"{number:06d}.x.bin").write_bytes(os.urandom(20_000))
            sync(last)
            assert len(data.labels(split)["k.00003"]) == len(found["k.00003"]) + 4
            sync(split / "k.00001")
            assert sorted(os.listdir(split / "k.00001")) == ["000013.json", "000013.x.bin"]

    def test_an_empty_directory_becomes_a_data_set(self, tmp_path: Path) -> None:
        store = tmp_path / "empty"
        store.mkdir()
        with mounting(store, *WORDS, "--driver", "streaming", XDG_STATE_HOME=str(tmp_path / "state")) as mnt:
            for split in ("train", "val"):
                add(mnt / split / "shard.00000", 0, 1)
            assert shardfs("commit", mnt).returncode == 0
        for split in ("train", "val"):
            assert [shard["samples"] for shard in index_of(store / split)] == [2]

    def test_a_merged_data_set_stays_merged(self, tmp_path: Path) -> None:
        store, shards = tmp_path / "merged", []
        for part in ("00", "01"):
            open_store(store / part, driver="streaming").set([sample(0)], "a")
            for shard in index_of(store / part):
                shard["raw_data"]["basename"] = f"{part}/{shard['raw_data']['basename']}"
                shards.append(shard)
        (store / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
        with mounting(store, *WORDS, XDG_STATE_HOME=str(tmp_path / "state")) as mnt:
            label(mnt / "00/a", 0, 7)
            add(mnt / "01/b", 0)
            assert shardfs("commit", mnt).returncode == 0
            names = [[shard["raw_data"]["basename"] for shard in index_of(store / part)] for part in ("", "00", "01")]
            assert names == [["00/a.r2.mds", "01/a.mds", "01/b.mds"], ["a.r2.mds"], ["a.mds", "b.mds"]]
            open_store(store / "01").set([sample(9)], "a")
            with refused(errno.EPERM):
                label(mnt / "01/a", 1, 7)
            assert "merge them anew" in log_of(mnt)

    def test_two_mounts_may_write_one_data_set(self, tmp_path: Path) -> None:
        store = tmp_path / "store"
        for at, key in enumerate(("a", "b")):
            open_store(store, driver="streaming").set([sample(at)], key)
        with (
            mounting(store, *WORDS, XDG_STATE_HOME=str(tmp_path / "one")) as one,
            mounting(store, *WORDS, XDG_STATE_HOME=str(tmp_path / "two")) as two,
        ):
            label(one / "a", 0, 10)
            label(two / "a", 0, 20)
            label(two / "b", 1, 21)
            sync(one / "a")
            with refused(errno.ESTALE):
                sync(two / "a")
            sync(two / "b")
            (kept,) = two.glob("a.conflict-*")
            assert json.loads((kept / "000000.json").read_text()) == {"label": 20}
            shutil.rmtree(kept)
        opened = open_store(store)
        assert [[one["label"] for one in opened.get(key)] for key in opened] == [[10], [21]]


class TestWebdatasetAndMltraq:
    def test_files_of_a_webdataset_key_stay_as_they_are(self, tmp_path: Path) -> None:
        store = tmp_path / "tars"
        open_store(store, driver="webdataset").set([{"jpg": JPEG, "__key__": "one"}], "there")
        files = {
            "cat.jpg": JPEG + b"content",
            "cat.cls": b"7",
            "cat.json": b'{\n  "a": [1, 2.50]\n}',
            "000007.txt": b"text",
        }
        with mounting(store, *WORDS, XDG_STATE_HOME=str(tmp_path / "state")) as mnt:
            (mnt / "new").mkdir()
            for name, data in files.items():
                (mnt / "new" / name).write_bytes(data)
            sync(mnt / "new")
            assert contents(mnt / "new") == files
            (mnt / "new/cat.cls").write_bytes(b"8")
            sync(mnt / "new")
            assert contents(mnt / "new") == files | {"cat.cls": b"8"}
        assert sorted(command("tar", "tf", store / "new.tar").split()) == sorted(files)

    def test_a_tar_that_holds_more_than_files_is_not_changed(self, tmp_path: Path) -> None:
        store = tmp_path / "tars"
        store.mkdir()
        (tmp_path / "a.txt").write_bytes(b"content")
        os.link(tmp_path / "a.txt", tmp_path / "b.txt")
        command("tar", "cf", store / "links.tar", "-C", tmp_path, "a.txt", "b.txt")
        before = (store / "links.tar").read_bytes()
        with mounting(store, *WORDS, XDG_STATE_HOME=str(tmp_path / "state")) as mnt:
            (mnt / "links/a.txt").write_bytes(b"other")
            with refused(errno.EROFS):
                sync(mnt / "links")
            assert (mnt / "links/a.txt").read_bytes() == b"other"
            assert "b.txt is a hard link" in shardfs("commit", mnt).stderr
            assert (store / "links.tar").read_bytes() == before
            state = {"XDG_STATE_HOME": str(tmp_path / "state")}
            assert shardfs("staging", "discard", store, "links", "--yes", **state).returncode == 0

    def test_files_of_an_mltraq_directory_are_stored_one_by_one(self, mltraq: Path, tmp_path: Path) -> None:
        with mounting(mltraq_url(mltraq), *WORDS, XDG_STATE_HOME=str(tmp_path / "state")) as mnt:
            stored = mltraq / "mltraq.datastore/fresh"
            (mnt / "fresh").mkdir()
            (mnt / "fresh/cat.jpg").write_bytes(JPEG)
            (mnt / "fresh/cat.json").write_text('{"a": ')
            with refused(errno.EINVAL):
                sync(mnt / "fresh")
            assert not stored.exists() or os.listdir(stored) == []
            (mnt / "fresh/cat.json").write_text('{"a": 1}')
            sync(mnt / "fresh")
            assert sorted(os.listdir(stored)) == ["cat.jpg", "cat.json"]
            assert (stored / "cat.jpg").read_bytes() == JPEG

    def test_experiments_are_not_changed(self, mltraq: Path, tmp_path: Path) -> None:
        with mounting(mltraq_url(mltraq), *WORDS, *ALL, XDG_STATE_HOME=str(tmp_path / "state")) as mnt:
            run = next((mnt / "io").iterdir())
            for change in (
                lambda: (mnt / "io/new.json").write_text("{}"),
                lambda: run.write_text("{}"),
                run.unlink,
                lambda: run.rename(mnt / "io/x.json"),
            ):
                with refused(errno.EROFS):
                    change()


@pytest.fixture
def mltraq(tmp_path: Path) -> Path:
    """A database with experiments, and its datastore."""
    shutil.copytree(Path(__file__).parent.parent / "data/mltraq/datastoreio", tmp_path / "mltraq")
    return tmp_path / "mltraq"


def mltraq_url(path: Path) -> str:
    return f"mltraq+sqlite:///{path / 'exp.db'}"
