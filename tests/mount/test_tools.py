"""Ordinary tools on a mount: what each says is compared with what is true of the same samples as loose files."""

from __future__ import annotations

import filecmp
import json
import mmap
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import duckdb
import numpy as np
import PIL.Image
import pytest
import webdataset

from shardfs import open_store
from shardfs.browse import Browser
from tests.conformance.tree_suite import case_paths

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]

KEYS = ("a", "b", "deep/c")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Squirrel store of three keys with 25 samples of five files each."""
    path = tmp_path_factory.mktemp("tools") / "store"
    rng = np.random.default_rng(3)
    with PIL.Image.open(case_paths("streaming", "mds_jpeg_file_passthrough")[0] / "src/0.jpg") as image:
        assert image.size == (40, 30)
    photo = (case_paths("streaming", "mds_jpeg_file_passthrough")[0] / "src/0.jpg").read_bytes()
    opened = open_store(path, driver="squirrel")
    for at, key in enumerate(KEYS):
        samples = [
            {
                "photo": photo,
                "pixels": rng.integers(0, 255, (31, 17, 3), dtype=np.uint8),
                "matrix": rng.normal(size=(200, 100)),
                "blob": rng.bytes(9000),
                "label": number,
                "text": f"needle {at} {number}",
            }
            for number in range(25)
        ]
        opened.set(samples, key)
    return path


@pytest.fixture
def loose(store: Path, tmp_path: Path) -> Path:
    """The same files, written out by the mountless reader."""
    browser = Browser(open_store(store))
    for key in KEYS:
        folder = tmp_path / "loose" / key
        folder.mkdir(parents=True)
        for listed in browser.list(key):
            (folder / listed.name).write_bytes(b"".join(browser.read(f"{key}/{listed.name}")))
    return tmp_path / "loose"


@pytest.fixture
def mnt(store: Path, mounted: Callable[..., AbstractContextManager[Path]]) -> Iterator[Path]:
    with mounted(store) as path:
        yield path


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def assert_equal_trees(one: Path, two: Path) -> None:
    names = [sorted(str(path.relative_to(top)) for path in top.rglob("*")) for top in (one, two)]
    assert names[0] == names[1]
    files = [name for name in names[0] if (one / name).is_file()]
    assert len(files) == 3 * 25 * 5
    equal, different, errors = filecmp.cmpfiles(one, two, files, shallow=False)
    assert (len(equal), different, errors) == (len(files), [], [])


def test_find_and_ls(mnt: Path, loose: Path) -> None:
    assert sorted(run("find", ".", cwd=mnt).split()) == sorted(run("find", ".", cwd=loose).split())
    assert sorted(run("find", ".", "-type", "f", "-printf", "%s %p\n", cwd=mnt).splitlines()) == sorted(
        run("find", ".", "-type", "f", "-printf", "%s %p\n", cwd=loose).splitlines()
    )
    columns = [
        [line.split()[4] for line in run("ls", "-lR", cwd=top).splitlines() if line[:1] == "-"] for top in (mnt, loose)
    ]
    assert columns[0] == columns[1]


def test_du_counts_every_byte(mnt: Path, loose: Path) -> None:
    total = sum(path.stat().st_size for path in loose.rglob("*") if path.is_file())
    apparent = int(run("du", "-sb", mnt).split()[0])
    assert apparent == total
    assert int(run("du", "-s", "--block-size=1", mnt).split()[0]) >= total


def test_cp_rsync_and_tar_copy_everything(mnt: Path, loose: Path, tmp_path: Path) -> None:
    run("cp", "-r", mnt, tmp_path / "cp")
    assert_equal_trees(tmp_path / "cp", loose)
    run("rsync", "-a", f"{mnt}/", tmp_path / "rsync")
    assert_equal_trees(tmp_path / "rsync", loose)
    assert run("rsync", "-ani", f"{mnt}/", tmp_path / "rsync") == "", "a second rsync finds nothing to do"
    run("tar", "-C", mnt, "-cf", tmp_path / "all.tar", ".")
    (tmp_path / "tar").mkdir()
    run("tar", "-C", tmp_path / "tar", "-xf", tmp_path / "all.tar")
    assert_equal_trees(tmp_path / "tar", loose)


def test_grep_finds_what_is_there(mnt: Path) -> None:
    found = run("grep", "-rl", 'needle 1 7"', mnt).split()
    assert found == [str(mnt / "b/000007.json")]


def test_file_recognises_the_files(mnt: Path) -> None:
    kinds = {
        ext: run("file", "-b", mnt / f"a/000000.{ext}") for ext in ("photo.jpg", "pixels.png", "matrix.npy", "json")
    }
    assert kinds["photo.jpg"].startswith("JPEG image data")
    assert "PNG image data, 17 x 31, 8-bit/color RGB" in kinds["pixels.png"]
    assert "NumPy" in kinds["matrix.npy"]
    assert "JSON" in kinds["json"]


def test_pillow_and_numpy_open_the_files(mnt: Path, store: Path) -> None:
    samples = open_store(store).get("b")
    for number in (0, 24):
        with PIL.Image.open(mnt / f"b/{number:06d}.pixels.png") as image:
            assert np.array_equal(np.asarray(image), samples[number]["pixels"])
        with PIL.Image.open(mnt / f"b/{number:06d}.photo.jpg") as image:
            image.load()
            assert image.size == (40, 30)
        assert np.array_equal(np.load(mnt / f"b/{number:06d}.matrix.npy"), samples[number]["matrix"])
        mapped = np.load(mnt / f"b/{number:06d}.matrix.npy", mmap_mode="r")
        assert isinstance(mapped, np.memmap)
        assert np.array_equal(mapped[150:], samples[number]["matrix"][150:])
        del mapped


def test_mmap_shared_and_private(mnt: Path, store: Path) -> None:
    expected = open_store(store).get("a")[3]["blob"]
    with open(mnt / "a/000003.blob.bin", "rb") as file:
        for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            with mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as mapped:
                assert mapped[:] == expected


def test_jq_and_duckdb_query_the_light_fields(mnt: Path) -> None:
    labels = run("jq", ".label", *sorted((mnt / "a").glob("*.json")))
    assert labels.split() == [str(number) for number in range(25)]
    rows = duckdb.sql(f"select count(*), sum(label), count(distinct text) from read_json_auto('{mnt}/*/*.json')")
    assert rows.fetchall() == [(50, 2 * sum(range(25)), 50)]


# webdataset leaves the tar it read open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tar_of_a_key_is_a_webdataset_shard(mnt: Path, store: Path, tmp_path: Path) -> None:
    run("tar", "--sort=name", "-C", mnt / "a", "-cf", tmp_path / "x.tar", ".")
    read = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False))
    samples = open_store(store).get("a")
    assert len(read) == len(samples) == 25
    for number, (got, sample) in enumerate(zip(read, samples, strict=True)):
        assert got["__key__"].rpartition("/")[2] == f"{number:06d}"
        assert json.loads(got["json"]) == {"label": number, "text": sample["text"]}
        assert got["blob.bin"] == sample["blob"]
        assert got["photo.jpg"] == sample["photo"]
        assert sorted(name for name in got if not name.startswith("__")) == [
            *("blob.bin", "json", "matrix.npy", "photo.jpg", "pixels.png")
        ]


def test_df_answers(mnt: Path, store: Path) -> None:
    size, free = run("df", "--block-size=1", "--output=size,avail", mnt).splitlines()[1].split()
    stored = sum(path.stat().st_size for path in store.rglob("*.gz"))
    assert stored <= int(size) < stored + 4096
    assert int(free) == 0


def test_every_way_of_changing_something_is_refused(mnt: Path) -> None:
    file = mnt / "a/000000.json"
    attempts: list[Callable[[], object]] = [
        lambda: file.write_bytes(b"x"),
        lambda: (mnt / "a/new").write_bytes(b"x"),
        lambda: (mnt / "new").mkdir(),
        lambda: file.unlink(),
        lambda: (mnt / "a").rmdir(),
        lambda: file.rename(mnt / "a/other"),
        lambda: os.chmod(file, 0o600),
        lambda: os.utime(file),
        lambda: os.truncate(file, 0),
        lambda: os.symlink("x", mnt / "link"),
        lambda: os.link(file, mnt / "a/hard"),
        lambda: shutil.rmtree(mnt / "a"),
        lambda: os.mkfifo(mnt / "fifo"),
        lambda: os.setxattr(file, "user.x", b"1"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError, match="Read-only file system"):
            attempt()
    assert file.exists()
