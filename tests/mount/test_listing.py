"""Listings of keys through real mounts: names alone or with attributes, in bulk or one by one, all say the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from shardfs import bulk_listing, open_store

Mounted = Callable[..., AbstractContextManager[Path]]

KEYS = ("a", "b", "c", "d")
SAMPLES = 700


def names_and_sizes(key: str) -> dict[str, int]:
    """Each file of a key, and its size: from the samples that were stored."""
    found = {}
    for at in range(SAMPLES):
        stem = f"{at:06d}" if key in "ab" else f"{'n' * (at % 13)}{at}ü"
        found[f"{stem}.data.bin"] = at * 7 % 1000
        if at % 3:
            found[f"{stem}.a_longer_field.bin"] = at
        label = {"label": at} if key in "ab" else {"__key__": f"{'n' * (at % 13)}{at}ü", "label": at}
        found[f"{stem}.json"] = len(str(label).replace("'", '"').encode()) + 1
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("listing") / "store"
    made = open_store(root, "squirrel")
    for key in KEYS:
        samples = []
        for at in range(SAMPLES):
            sample: dict[str, object] = {} if key in "ab" else {"__key__": f"{'n' * (at % 13)}{at}ü"}
            sample |= {"data": b"\1" * (at * 7 % 1000), "label": at}
            if at % 3:
                sample["a_longer_field"] = b"\2" * at
            samples.append(sample)
        made.set(samples, key)
    return root


@pytest.fixture(params=["bulk", "one by one"])
def mnt(request: pytest.FixtureRequest, store: Path, mounted: Mounted) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "one by one":
            patch.setenv(bulk_listing.STOCK, "1")
        with mounted(store) as path:
            yield path


def listed(path: Path) -> dict[str, tuple[int, bool]]:
    with os.scandir(path) as entries:
        return {entry.name: (entry.inode(), entry.is_file(follow_symlinks=False)) for entry in entries}


def test_each_way_of_listing_says_the_same(mnt: Path) -> None:
    """The first key is listed with attributes, the next ones without: nobody asked for any. Then all are asked for."""
    before = {key: listed(mnt / key) for key in KEYS}
    for key in KEYS:
        expected = names_and_sizes(key)
        assert before[key].keys() == expected.keys()
        for name, size in expected.items():
            status = os.stat(mnt / key / name)
            assert before[key][name] == (status.st_ino, True)
            assert status.st_size == size
            assert status.st_blocks == -(-size // 512)
    assert {key: listed(mnt / key) for key in KEYS} == before


def test_who_asks_for_attributes_gets_them_with_the_next_listing(mnt: Path) -> None:
    """As `ls -lR` does: every file of a key is looked at before the next key is listed."""
    for _ in range(2):
        for key in random.Random(1).sample(KEYS, len(KEYS)):
            sizes = {entry.name: entry.stat().st_size for entry in os.scandir(mnt / key)}
            assert sizes == names_and_sizes(key)


def test_many_who_list_at_once_see_whole_directories(mnt: Path) -> None:
    """`find` and `ls -l` side by side, each a process of its own, so that both ways are taken at once."""
    code = "import os, sys; print(sum(len(os.listdir(k.path)) for _ in range(3) for k in os.scandir(sys.argv[1])))"
    commands = [[sys.executable, "-c", code, str(mnt)], ["sh", "-c", f"ls -lR {mnt} | grep -c '^-'"]] * 4
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    files = sum(len(names_and_sizes(key)) for key in KEYS)
    for at, process in enumerate(running):
        said, _ = process.communicate(timeout=60)
        assert int(said) == files * (1 if at % 2 else 3)


def test_a_listing_goes_on_where_it_was_left(mnt: Path) -> None:
    """A reader that takes a few names at a time, with a directory's handle rewound between."""
    descriptor = os.open(mnt / "c", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(descriptor) as entries:
            few = [next(entries).name for _ in range(10)]
        with os.scandir(descriptor) as entries:
            again = [entry.name for entry in entries]
    finally:
        os.close(descriptor)
    assert again[:10] == few
    assert set(again) == names_and_sizes("c").keys()
    assert len(again) == len(set(again))
