"""WebDataset stores on real mounts: the suite of their tree, and ordinary tools that write them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from webdataset import tariterators

from shardfs import open_store
from tests.conformance.trees import MountedTree, Tree, wait_for
from tests.conformance.webdataset_suite import SAMPLES, WebDatasetSuite, members, written
from tests.mount.conftest import mount_point, mounting
from tests.mount.conftest import run as shardfs
from tests.mount.test_writing import run, same, sync

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]


class TestWebDatasetMounted(WebDatasetSuite):
    @pytest.fixture(autouse=True)
    def _mounts(self, mounted: Callable[..., AbstractContextManager[Path]]) -> None:
        self.mounted = mounted

    @contextlib.contextmanager
    def serve(self, store: Path, *, budget: int = 64 << 20) -> Iterator[Any]:
        with self.mounted(store, "--memory", str(budget)) as path:
            tree: Tree = MountedTree(path)
            yield tree


@pytest.fixture
def store(tmp_path: Path) -> Path:
    written(tmp_path / "store/a.tar", SAMPLES[:5])
    return tmp_path / "store"


@pytest.fixture
def mnt(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A writable mount that stores only when it is asked to."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with mounting(store, "--rw", "--write-back", "off", "--allow-delete") as path:
        yield path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files that a tar of samples may hold, whatever is in them."""
    path = tmp_path / "source"
    path.mkdir()
    for number in range(10):
        (path / f"im{number}.jpg").write_bytes(b"\xff\xd8\xff" + os.urandom(20_000))
        (path / f"im{number}.seg.png").write_bytes(os.urandom(1000))
        (path / f"im{number}.cls").write_text(str(number))
        (path / f"im{number}.json").write_text(json.dumps([number, "a list"], indent=1))
    return path


def library(path: Path) -> list[dict[str, Any]]:
    with open(path, "rb") as stream:
        files = tariterators.tar_file_expander([{"url": "", "stream": stream}])
        return [dict(sample) for sample in tariterators.group_by_keys(files)]


def test_a_copied_folder_is_a_tar_of_just_these_files(mnt: Path, store: Path, source: Path) -> None:
    run("cp", "-r", source, mnt / "new.tmp")
    run("mv", "-T", mnt / "new.tmp", mnt / "new")
    same(source, mnt / "new")
    assert members(store / "new.tar") == {path.name: path.read_bytes() for path in source.iterdir()}
    read = library(store / "new.tar")
    assert sorted(sample["__key__"] for sample in read) == [f"im{number}" for number in range(10)]
    assert all({"jpg", "seg.png", "cls", "json"} <= set(sample) for sample in read)
    listed = run("tar", "tvf", store / "new.tar").splitlines()
    assert len(listed) == 40
    assert all(line.startswith("-r--r--r-- 0/0") for line in listed)


def test_an_edited_sample_leaves_all_others_as_they_were(mnt: Path, store: Path) -> None:
    before = members(store / "a.tar")
    (mnt / "a/train%2Fim003.cls").write_bytes(b"77")
    (mnt / "a/new.txt").write_bytes(b"new")
    (mnt / "a/.hidden").write_bytes(b"no member")
    (mnt / "a/draft.jpg.tmp").write_bytes(b"no member")
    for name in os.listdir(mnt / "a"):
        if name.startswith("train%2Fim001."):
            (mnt / "a" / name).unlink()
    sync(mnt / "a")
    for name in (".hidden", "draft.jpg.tmp"):
        (mnt / "a" / name).unlink()
    expected = {name: data for name, data in before.items() if not name.startswith("train/im001.")}
    assert members(store / "a.tar") == expected | {"train/im003.cls": b"77", "new.txt": b"new"}
    assert (mnt / "a/train%2Fim003.cls").read_bytes() == b"77"
    owners = run("tar", "tvf", store / "a.tar")
    assert owners.count("bigdata/bigdata") == 4 * 3 - 1, "headers of what did not change are the library's"


def test_a_tar_with_a_link_is_never_changed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(b"content")
    os.link(tmp_path / "a.txt", tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("/etc/passwd")
    run("tar", "cf", store / "links.tar", "a.txt", "b.txt", "c.txt", cwd=tmp_path)
    before = (store / "links.tar").read_bytes()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with mount_point(made=True) as mnt:
        assert shardfs("mount", "--rw", "--write-back", "off", store, mnt).returncode == 0
        assert sorted(os.listdir(mnt / "links")) == ["a.txt", "b.txt"]
        assert (mnt / "links/b.txt").read_bytes() == b"content"
        (mnt / "links/a.txt").write_bytes(b"other")
        done = shardfs("commit", mnt, "links")
        assert done.returncode != 0
        assert "is not changed here: b.txt is a hard link" in done.stderr
        assert (mnt / "links/a.txt").read_bytes() == b"other", "what was written is kept"
        assert (store / "links.tar").read_bytes() == before
        assert shardfs("umount", "--force", mnt).returncode == 1
        wait_for(lambda: not os.path.ismount(mnt))


def test_named_tars_cannot_be_mounted_for_writing_and_a_missing_one_is_told(store: Path, tmp_path: Path) -> None:
    with mount_point() as point:
        done = shardfs("mount", "--rw", store / "a.tar", point)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "can only be read here" in done.stderr
        done = shardfs("mount", store / "{a,b}.tar", point)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)
        assert f"{store}/b.tar: there is no such tar" in done.stderr
    assert open_store(store / "a.tar").keys() == ["a"]


def test_a_name_that_is_no_field_is_refused(mnt: Path, store: Path) -> None:
    (mnt / "a/README").write_bytes(b"no extension")
    done = shardfs("commit", mnt, "a")
    assert done.returncode != 0
    assert "README: a file without an extension" in done.stderr
    (mnt / "a/README").unlink()
    sync(mnt / "a")
    assert len(members(store / "a.tar")) == 15
