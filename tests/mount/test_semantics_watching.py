"""docs/SEMANTICS.md, statement by statement: what is seen of a shard that somebody overwrites in place, though nobody
opens a file. Names are asked for relative to directories that were opened before, so that the kernel need not ask."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from tests.conformance.trees import fails, wait_for
from tests.mount.conftest import SlowStore, mounting, run
from tests.mount.semantics import JPEG

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]

QUICK = ("--refresh", "0.2")
SAMPLES = 3
PLACES = {
    "flat": "a-000000.image.jpg",
    "yolo/images": "a-000000.jpg",
    "yolo/labels": "a-000000.txt",
    "hf/a": "000000.image.jpg",
    "tree/a/000000": "image.jpg",
}
"""Where the first picture of the key `a` is, and what is made of its labels: directory of each view, and name."""

ONCE = {"hf/a": errno.ESTALE, "tree/a/000000": errno.ESTALE}
"""What becomes of names in a directory that was the replaced key's own."""


def packed(size: int, label: str) -> bytes:
    """A shard of pictures of that many random bytes behind their beginning."""
    boxes = [[0, 0.5, 0.5, 0.1, 0.1]] * (size // 10)
    samples = [{"image": JPEG + os.urandom(size), "label": label, "labels": boxes} for _ in range(SAMPLES)]
    return gzip.compress(b"".join(map(msgpack.packb, samples)))


def overwrite(store: Path, key: str, size: int, label: str = "cat") -> int:
    """Write over a shard in place, longer than it was, in one write; the new size of a picture."""
    descriptor = os.open(store / f"{key}.gz", os.O_WRONLY | os.O_CREAT)
    os.pwrite(descriptor, packed(size, label), 0)
    os.close(descriptor)
    return len(JPEG) + size


def made(store: Path) -> Path:
    store.mkdir()
    for key in ("a", "b"):
        overwrite(store, key, 10)
    return store


@contextlib.contextmanager
def opened(*paths: Path) -> Iterator[list[int]]:
    """Directories, open."""
    with contextlib.ExitStack() as stack:
        numbers = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths]
        for number in numbers:
            stack.callback(os.close, number)
        yield numbers


def size_at(directory: int, name: str) -> int:
    """The size of a file in an open directory, or the errno, below 0."""
    try:
        return os.stat(name, dir_fd=directory).st_size
    except OSError as error:
        return -(error.errno or 0)


def content_at(directory: int, name: str) -> bytes:
    with open(name, "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=directory)) as file:
        return file.read()


def check_whole(path: Path) -> None:
    """stat, `ls -l`, and reading say the same of each file in a directory."""
    for entry in os.scandir(path):
        if entry.is_file():
            assert entry.stat().st_size == os.stat(entry.path).st_size == len(Path(entry.path).read_bytes()), entry.path


class TestWhatOthersWriteOverInPlace:
    def test_it_is_noticed_though_nobody_asks(self, tmp_path: Path) -> None:
        store = made(tmp_path / "store")
        with mounting(store, *QUICK) as path:
            views = path / ".shardfs/views"
            with opened(path / "a", *(views / place for place in PLACES)) as directories:
                names = ["000000.image.jpg", *PLACES.values()]
                before = [size_at(*one) for one in zip(directories, names, strict=True)]
                assert min(before) > 0
                size = overwrite(store, "a", 1000)
                for directory, name, old, place in zip(directories, names, before, ["", *PLACES], strict=True):
                    wait_for(lambda one=directory, name=name, old=old: size_at(one, name) != old)  # type: ignore[misc]
                    if place in ("", *ONCE):
                        assert size_at(directory, name) == -errno.ESTALE
                    elif place != "yolo/labels":
                        assert size_at(directory, name) == size == len(content_at(directory, name))
                    else:
                        assert size_at(directory, name) == len(content_at(directory, name)) > old
            for place in ("by:label/cat", *PLACES, "hf/b"):
                check_whole(views / place)
            check_whole(path / "a")
            tar = views / "wds/a.tar"
            assert tar.stat().st_size == len(tar.read_bytes()) > SAMPLES * size

    def test_a_name_moves_to_the_directory_of_its_new_label(self, tmp_path: Path) -> None:
        store, name = made(tmp_path / "store"), "a-000000.jpg"
        with mounting(store, "--view", "by:label", *QUICK) as path, opened(path / "cat") as (cat,):
            assert size_at(cat, name) > 0
            size = overwrite(store, "a", 1000, "dog")
            wait_for(lambda: size_at(cat, name) == -errno.ENOENT)
            assert (path / "dog" / name).stat().st_size == size == len((path / "dog" / name).read_bytes())
            assert name in os.listdir(cat)  # as it was when it was opened, and not to be believed by anybody
            assert size_at(cat, name) == -errno.ENOENT
            assert sorted(os.listdir(path / "cat")) == [f"b-00000{number}.jpg" for number in range(SAMPLES)]
            with opened(path / "dog") as (dog,):
                overwrite(store, "b", 1000, "dog")
                wait_for(lambda: size_at(cat, "b-000000.jpg") < 0)
                assert size_at(dog, "b-000000.jpg") == size
            wait_for(lambda: os.listdir(path) == ["dog"])
            check_whole(path / "dog")

    def test_who_works_in_a_key_is_told_estale(self, tmp_path: Path) -> None:
        store, name = made(tmp_path / "store"), "000000.image.jpg"
        with mounting(store, *QUICK) as path, opened(path / "a", path / "b") as (directory, other):
            assert size_at(directory, name) == size_at(other, name) == len(content_at(directory, name)) > 0
            assert size_at(directory, "000009.image.jpg") == -errno.ENOENT  # which the kernel remembers
            size = overwrite(store, "a", 1000)
            wait_for(lambda: size_at(directory, name) == -errno.ESTALE)
            with fails(errno.ESTALE):
                content_at(directory, name)
            assert size_at(other, name) > 0
            assert (path / "a" / name).stat().st_size == size

    def test_a_reader_has_old_bytes_or_estale(self, tmp_path: Path) -> None:
        store = made(tmp_path / "store")
        for number in range(3):
            overwrite(store, "a", 100_000 + 1000 * number)  # by more than gzip makes of a difference
        with mounting(store, *QUICK) as path, opened(path / "a") as (directory,):
            name = "000000.image.jpg"
            with open(path / "a" / name, "rb", buffering=0) as file:
                old, seen = content_at(directory, name), file.read(1000)
                overwrite(store, "a", 200_000)
                wait_for(lambda: size_at(directory, name) == -errno.ESTALE)
                with contextlib.suppress(OSError):
                    while piece := file.read(1000):
                        seen += piece
                assert old.startswith(seen)
                with contextlib.suppress(OSError):
                    assert os.fstat(file.fileno()).st_size == len(old)

    def test_immutable_notices_nothing(self, tmp_path: Path) -> None:
        """Until it is asked to: what another mount has noticed long ago."""
        store, name = made(tmp_path / "store"), "000000.image.jpg"
        with (
            mounting(store, *QUICK) as path,
            mounting(store, "--refresh", "immutable") as other,
            opened(path / "a", other / "a") as (directory, still),
        ):
            old = size_at(directory, name)
            assert size_at(still, name) == old
            overwrite(store, "a", 1000)
            wait_for(lambda: size_at(directory, name) != old)
            assert size_at(still, name) == old
            assert run("refresh", other).returncode == 0
            wait_for(lambda: size_at(still, name) == -errno.ESTALE)

    def test_a_store_that_hangs_stops_nobody(self, slow_store: SlowStore) -> None:
        for key in ("a", "b"):
            overwrite(slow_store.source, key, 10)
        name = "000000.image.jpg"
        with mounting(slow_store.path, *QUICK) as path, opened(path / "a", path / "b") as (directory, other):
            old = size_at(directory, name)
            assert size_at(other, name) == len(content_at(other, name)) == old
            slow_store.hold("stat")
            overwrite(slow_store.source, "a", 1000)
            wait_for(lambda: slow_store.waiting() > 0)
            for _ in range(5):
                assert size_at(directory, name) == size_at(other, name) == len(content_at(other, name)) == old
                assert len(os.listdir(path)) == 2
            assert slow_store.waiting() <= 3  # a round, and what was asked for on use: the listing and that key
            slow_store.go_on("stat")
            wait_for(lambda: size_at(directory, name) == -errno.ESTALE)
            assert size_at(other, name) == old
