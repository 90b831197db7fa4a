"""Extended attributes on real mounts: read as any program reads them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shardfs import open_store
from tests.conformance.trees import fails as refused
from tests.mount.conftest import mounting, run

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

LONG = "n" * 300


def attributes(path: Path) -> dict[str, str]:
    return {
        name.removeprefix("user.shardfs."): os.getxattr(path, name).decode()
        for name in os.listxattr(path)
        if name.startswith("user.shardfs.")
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def figure(path: Path, name: str) -> float:
    lines = (path / ".shardfs/metrics").read_text().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xattrs") / "store"
    made = open_store(path, driver="squirrel")
    rng = np.random.default_rng(0)
    sample = {
        "photo": b"\xff\xd8\xff\xe0" + bytes(2000),
        "pixels": rng.integers(0, 255, (20, 30, 3), np.uint8),
        "vector": rng.normal(size=(4, 5)).astype(np.float32),
        "label": 3,
        LONG: b"long",
        "A": b"one",
        "a": b"two",
    }
    for key in ("a/b", "second"):
        made.set([sample, {**sample, "label": 4}], key)
    return path


@pytest.fixture(scope="module")
def mount(store: Path) -> Iterator[Path]:
    with mounting(store, "--xattr", "--rw", "--write-back", "off", "--allow-delete") as path:
        yield path


def test_a_mount_without_the_option_is_asked_once(tiny_store: Path) -> None:
    with mounting(tiny_store) as path:
        for _ in range(3):
            with refused(errno.EOPNOTSUPP):
                os.getxattr(path / "a/000000.x.bin", "user.shardfs.key")
            with refused(errno.EOPNOTSUPP):
                os.listxattr(path / "a/000000.x.bin")
        for operation in ("getxattr", "listxattr"):
            assert figure(path, f'shardfs_requests_total{{operation="{operation}"}}') == 1


def test_each_file_tells_what_it_is(mount: Path, store: Path) -> None:
    key = mount / "a/b"
    common = {"key": "a/b", "cached": "memory", "pinned": "no"}
    version = attributes(key)["etag"]
    assert attributes(key) == {"key": "a/b", "cached": "no", "pinned": "no", "etag": version}, "nothing was loaded"
    for name, field, kind in (
        ("000001.json", None, "light"),
        ("000001.photo.jpg", "photo", "bytes"),
        ("000001.pixels.png", "pixels", "picture"),
        ("000001.vector.npy", "vector", "array float32 (4, 5)"),
        ("000001.A.bin", "A", "bytes"),
        ("000001.a~2.bin", "a", "bytes"),
    ):
        file = key / name
        more = {} if field is None else {"field": field}
        told = {**common, **more, "sample": "000001", "type": kind, "etag": version, "sha256": digest(file)}
        assert attributes(file) == told, name
    (cut,) = [path for path in key.iterdir() if path.name.startswith("000000.nnn")]
    assert attributes(cut)["field"] == LONG
    assert version.startswith(f"{(store / 'a/b.gz').stat().st_ino:x}-")
    assert os.listxattr(mount) == os.listxattr(mount / "a") == os.listxattr(mount / ".shardfs") == []
    with refused(errno.ENODATA):
        os.getxattr(key, "user.shardfs.sha256")
    with refused(errno.ENODATA):
        os.getxattr(key, "user.other")


def test_a_hash_is_made_once(mount: Path) -> None:
    file = mount / "second/000000.photo.jpg"
    first = os.getxattr(file, "user.shardfs.sha256")
    served, hits = (figure(mount, name) for name in ("shardfs_served_bytes_total", HITS))
    for _ in range(3):
        assert os.getxattr(file, "user.shardfs.sha256") == first
    assert figure(mount, HITS) == hits
    assert figure(mount, "shardfs_served_bytes_total") - served < 100_000, "the metrics alone are read"


HITS = 'shardfs_cache_hits_total{tier="memory"}'


@pytest.mark.skipif(shutil.which("getfattr") is None, reason="the package attr is not installed")
def test_getfattr_shows_them(mount: Path) -> None:
    done = subprocess.run(
        ["getfattr", "-d", "-m", "-", "000001.json"], cwd=mount / "a/b", capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert 'user.shardfs.key="a/b"\n' in done.stdout
    assert f'user.shardfs.sha256="{digest(mount / "a/b/000001.json")}"\n' in done.stdout


def test_what_is_staged_tells_so(mount: Path) -> None:
    """Also after it was changed again, whose hash is another; and the stored rest of the key tells what it did."""
    key = mount / "second"
    version = attributes(key)["etag"]
    file = key / "000000.json"
    for label in (7, 8):
        file.write_text(json.dumps({"label": label}))
        told = {"key": "second", "sample": "000000", "type": "light", "cached": "staged", "pinned": "no"}
        assert attributes(file) == {**told, "etag": version, "sha256": digest(file)}
    assert attributes(key / "000001.json")["cached"] == "memory"
    (mount / "new").mkdir()
    (mount / "new/cat.npy").write_bytes(b"\x93NUMPY")
    told = {"key": "new", "sample": "cat", "field": "npy", "type": "array", "cached": "staged", "pinned": "no"}
    assert attributes(mount / "new/cat.npy") == {**told, "sha256": digest(mount / "new/cat.npy")}
    assert attributes(mount / "new") == {"key": "new", "cached": "staged", "pinned": "no"}
    (mount / "x.tmp").mkdir()
    (mount / "x.tmp/README").write_bytes(b"what")
    told = {"type": "bytes", "cached": "staged", "pinned": "no", "sha256": digest(mount / "x.tmp/README")}
    assert attributes(mount / "x.tmp/README") == told
    shutil.rmtree(mount / "x.tmp")
    shutil.rmtree(mount / "new")
    assert run("commit", mount, "second").returncode == 0
    assert attributes(file)["etag"] == attributes(key)["etag"] != version
    assert attributes(file)["sha256"] == digest(file)
    assert attributes(file)["cached"] == "memory"


def test_none_can_be_set_and_copies_go_on(mount: Path, tmp_path: Path) -> None:
    file = mount / "a/b/000000.json"
    with refused(errno.EOPNOTSUPP):
        os.setxattr(file, "user.shardfs.key", b"other")
    with refused(errno.EOPNOTSUPP):
        os.removexattr(file, "user.shardfs.key")
    subprocess.run(["cp", "-a", file, tmp_path / "copy"], check=True, timeout=30)
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
