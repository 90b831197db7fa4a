"""Views on a real mount, looked at with ordinary tools. Nearly all share one mount."""

from __future__ import annotations

import filecmp
import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from webdataset import tariterators

from shardfs.opening import open_store
from tests.conformance.tree_suite import write_msgpack
from tests.conformance.trees import MountedTree, Tree, wait_for
from tests.conformance.view_suite import JPEG, VIEWS, check_view, picture, plain_files, write_mixed
from tests.mount.conftest import mounting, run

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]


def write_many(store: Path) -> None:
    """Enough of one kind for listings of several requests, over several keys."""
    for key in range(2):
        write_msgpack(store / f"many/{key}.gz", [{"image": picture(at), "label": at % 3} for at in range(240)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A store, and a mount of it."""
    store = tmp_path_factory.mktemp("views") / "store"
    write_mixed(store)
    write_many(store)
    with mounting(store) as path:
        yield store, path


def output(*words: str | Path) -> bytes:
    done = subprocess.run([*map(str, words)], check=True, capture_output=True, timeout=50)
    assert done.stderr == b""
    return done.stdout


def test_every_view_is_what_it_is_without_a_kernel(place: tuple[Path, Path]) -> None:
    tree: Tree = MountedTree(place[1])
    assert not os.path.exists(place[1] / ".shardfs/views/nothing")
    plain = plain_files(tree)
    for view in VIEWS:
        check_view(tree, view, plain)


def test_names_are_listed_once_by_whoever_lists(place: tuple[Path, Path]) -> None:
    views = place[1] / ".shardfs/views"
    for view in VIEWS:
        walked = sorted(os.path.join(at, name) for at, folders, files in os.walk(views / view) for name in files)
        for _ in range(3):  # with attributes, and after that without
            found = output("find", views / view, "-type", "f").splitlines()
            assert sorted(map(os.fsdecode, found)) == walked, view
        listed = output("ls", "-lR", "--time-style=full-iso", views / view).decode("utf-8", "surrogateescape")
        assert sum(line.startswith("-r--r--r--") for line in listed.splitlines()) == len(walked)
    assert len(os.listdir(views / "by:label/1")) == 2 * 80
    sizes = output("find", views / "by:label/1", "-name", "many-1-*", "-printf", "%s %p %T@\n").decode().splitlines()
    for line in random.sample(sizes, 20):
        size, path, seconds = line.split()
        found = os.stat(path)
        assert (int(size), len(Path(path).read_bytes())) == (found.st_size, found.st_size)
        assert float(seconds) == pytest.approx(found.st_mtime, abs=1e-5)


def test_tars_are_read_by_whoever_reads_tars(place: tuple[Path, Path], tmp_path: Path) -> None:
    mount = place[1]
    for key in ("many/0", "named", "train/shard.00"):
        tar = mount / ".shardfs/views/wds" / f"{key}.tar"
        names = output("tar", "-tf", tar).decode().splitlines()
        assert names == os.listdir(mount / key)
        shutil.rmtree(tmp_path, ignore_errors=True)
        tmp_path.mkdir()
        output("tar", "-xf", tar, "-C", tmp_path)
        assert filecmp.cmpfiles(mount / key, tmp_path, names, shallow=False) == (names, [], [])
        whole = tar.read_bytes()
        assert len(whole) == tar.stat().st_size
        with open(tar, "rb") as opened:
            for _ in range(50):
                offset, size = random.randrange(len(whole)), random.choice((1, 512, 5000, 200_000))
                opened.seek(offset)
                assert opened.read(size) == whole[offset : offset + size]
        with tarfile.open(tar) as archive:
            assert archive.getnames() == names


def test_the_webdataset_library_reads_them(place: tuple[Path, Path]) -> None:
    with open(place[1] / ".shardfs/views/wds/many/1.tar", "rb") as stream:
        files = tariterators.tar_file_expander([{"url": "", "stream": stream}])
        samples = list(tariterators.group_by_keys(files))
    assert len(samples) == 240
    assert samples[7]["__key__"] == "000007"
    assert samples[7]["image.jpg"] == picture(7)


def test_files_share_their_pages_and_copies_are_whole(place: tuple[Path, Path], tmp_path: Path) -> None:
    views = place[1] / ".shardfs/views"
    (path,) = (views / "by:label/cat").glob("train-*")
    assert path.stat().st_ino == (place[1] / "train/shard.00/000000.image.jpg").stat().st_ino
    assert path.samefile(views / "tree/train/shard.00/000000/image.jpg")
    shutil.copytree(views / "by:label", tmp_path / "copy")
    output("cp", "-r", views / "tree/named", tmp_path / "by-cp")
    output("tar", "-C", views, "-cf", tmp_path / "by.tar", "yolo", "hf/named")
    assert sum(len(files) for _, _, files in os.walk(tmp_path / "copy")) == sum(
        len(files) for _, _, files in os.walk(views / "by:label")
    )
    assert sorted(os.listdir(tmp_path / "by-cp")) == ["%7Ee", "a-b", "c%2Ed"]
    for name in ("x", "by:label/new", "flat/x"):
        with pytest.raises(OSError, match="Read-only file system"):
            (views / name).mkdir()


def test_the_walk_of_a_folder_loader(tmp_path: Path) -> None:
    """Sorted directories as classes, sorted walk of each, an image for each file: as torchvision's ImageFolder does."""
    image = pytest.importorskip("PIL.Image")
    loose, store = tmp_path / "loose", tmp_path / "store"
    rng = np.random.default_rng(0)
    samples = []
    for number in range(12):
        made = io.BytesIO()
        image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(made, "JPEG")
        label = ("cat", "dog", "eel")[number % 3]
        samples.append({"image": made.getvalue(), "label": label})
        (loose / label).mkdir(parents=True, exist_ok=True)
        (loose / label / f"k-{number:06d}.jpg").write_bytes(made.getvalue())
    write_msgpack(store / "k.gz", samples)

    def loaded(root: Path) -> list[tuple[str, int, bytes]]:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        found = []
        for number, name in enumerate(classes):
            for folder, _, files in sorted(os.walk(root / name, followlinks=True)):
                for file in sorted(files):
                    with open(os.path.join(folder, file), "rb") as opened:
                        found.append((file, number, image.open(opened).convert("RGB").tobytes()))
        return found

    with mounting(store, "--view", "by:label") as path:
        assert loaded(path) == loaded(loose)
        assert sorted(os.listdir(path)) == ["cat", "dog", "eel"]
        assert (path / ".shardfs/status.json").exists()


def test_a_view_at_the_root_follows_the_store(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", driver="squirrel")
    store.set([{"image": JPEG, "label": "cat"}], "a")
    store.set([{"image": JPEG, "label": "cat"}], "b")
    for view, name in (("by:label", "cat/a-000000.jpg"), ("flat", "a-000000.image.jpg")):
        with mounting(tmp_path / "store", "-o", f"view={view}") as path:
            new = os.urandom(100)
            assert (path / name).stat().st_size < 100
            store.set([{"image": JPEG + new, "label": "cat"}], "a")
            wait_for(lambda path=path, name=name: (path / name).stat().st_size == len(JPEG) + 100)  # type: ignore[misc]
            assert (path / name).read_bytes() == JPEG + new
            store.set([{"image": JPEG, "label": "cat"}], "a")
            wait_for(lambda path=path, name=name: (path / name).stat().st_size == len(JPEG))  # type: ignore[misc]


def test_writing_and_views_do_not_go_together(tiny_store: Path, tmp_path: Path) -> None:
    done = run("mount", tiny_store, tmp_path / "mnt", "--rw", "--view", "flat")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--view flat cannot be together with --rw" in done.stderr
    done = run("mount", tiny_store, tmp_path / "mnt", "--view", "nothing")
    assert done.returncode == 2
    assert "there are by:FIELD[,FIELD]" in done.stderr
    with mounting(tiny_store, "--rw") as path:
        with pytest.raises(OSError, match="Read-only file system"):
            os.listdir(path / ".shardfs/views")
        assert (path / "a/000000.x.bin").exists()
