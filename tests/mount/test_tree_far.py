"""The tree suite on a real mount of a store in an S3 server, with a cache on disk and without."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import obstore
import pytest

from shardfs.opening import open_store
from shardfs.storage.urls import open_remote
from tests.conformance.tree_suite import TreeSuite
from tests.conformance.trees import MountedTree, Tree, wait_for
from tests.servers import Server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

_numbers = itertools.count()


class TestTreeFar(TreeSuite):
    cache = ("--cache-size", "100M")

    @pytest.fixture(autouse=True)
    def _mounts(self, mounted: Callable[..., AbstractContextManager[Path]], moto: Server, tmp_path: Path) -> None:
        self.mounted = mounted
        self.moto = moto
        self.folder = tmp_path

    @contextlib.contextmanager
    def serve(
        self, store: Path, *, driver: str | None = None, budget: int = 64 << 20, arrays: str = "png"
    ) -> Iterator[Any]:
        if isinstance(store, str):
            pytest.skip("a URL of this machine")
        url = f"s3://bucket/{next(_numbers)}"
        far = open_remote(url, endpoint=self.moto.endpoint)
        for path in sorted(store.rglob("*")):
            if path.is_file() and not path.is_symlink():
                obstore.put(far.store, str(path.relative_to(store)), path)
        arrays, _, text = arrays.partition("+")
        words = ["--arrays", arrays, "--text", "files" if text else "json", "--memory", str(budget), *self.words]
        driven = ["--driver", driver] if driver else []
        with self.mounted(url, *words, *driven) as path:
            tree: Tree = MountedTree(path)
            yield tree

    # These change the store's directory, or look at its times; what is far away has other times, and is changed below.
    test_modes_times_and_links = None  # type: ignore[assignment]
    test_shard_replaced_before_it_was_touched_shows_the_new_one = None  # type: ignore[assignment]
    test_shard_replaced_while_open_is_estale_and_never_other_bytes = None  # type: ignore[assignment]
    test_changes_of_the_store_appear = None  # type: ignore[assignment]
    test_shard_overwritten_in_place_is_noticed = None  # type: ignore[assignment]
    test_store_is_never_written_to = None  # type: ignore[assignment]

    # mltraq's database is one of this machine; its directory need not be.
    test_mltraq_fixture_is_right_file_by_file = None  # type: ignore[assignment]

    def test_time_and_mode(self, tmp_path: Path) -> None:
        url, where = self.far("times")
        store = open_store(url, "squirrel", **where)
        store.set([{"a": b"x"}], "k")
        with self.mounted(url, *self.words) as path:
            found = os.stat(path / "k" / "000000.a.bin")
            assert (found.st_mode, found.st_nlink) == (0o100444, 1)
            assert found.st_mtime_ns == store.entry("k").mtime_ns

    def test_nothing_is_written_to_the_store(self, tmp_path: Path) -> None:
        url, where = self.far("unwritten")
        open_store(url, "squirrel", **where).set([{"a": b"x"}], "k")
        storage = open_remote(url, endpoint=self.moto.endpoint)
        before = storage.list(("",))
        with self.mounted(url, *self.words) as path:
            assert (path / "k" / "000000.a.bin").read_bytes() == b"x"
        assert storage.list(("",)) == before

    def test_changes_appear_and_old_bytes_never_mix_with_new(self, tmp_path: Path) -> None:
        url, where = self.far("changes")
        store = open_store(url, "squirrel", **where)
        old, new = b"old" * 400_000, b"new" * 400_000
        store.set([{"a": old}], "k")
        store.set([{"a": b"1"}], "gone")
        with self.mounted(url, *self.words, "--refresh", "0.3", "--memory", "1M") as path:
            name = path / "k" / "000000.a.bin"
            with open(name, "rb", buffering=0) as file:
                assert os.pread(file.fileno(), 3, 0) == b"old"
                store.set([{"a": new}, {"a": b"2"}], "k")
                store.set([{"a": b"1"}], "new")
                store.delete("gone")
                wait_for(lambda: sorted(os.listdir(path)) == ["k", "new"])
                wait_for(lambda: len(os.listdir(path / "k")) == 2)
                assert name.read_bytes() == new
                try:
                    assert os.pread(file.fileno(), 3, 600_000) == b"old"
                except OSError as error:
                    if error.errno != errno.ESTALE:
                        raise

    def far(self, name: str) -> tuple[str, dict[str, Any]]:
        """The URL of a new store, and how to open it without a cache."""
        return f"s3://bucket/{name}-{next(_numbers)}", {"endpoint": self.moto.endpoint, "cache_size": 0}

    @property
    def words(self) -> list[str]:
        place = ["--endpoint", self.moto.endpoint, "--cache-dir", str(self.folder / "cache"), "--min-free", "0"]
        return [*place, *self.cache]


@pytest.mark.skipif(os.environ.get("SHARDFS_ALL_FEATURES") != "1", reason="SHARDFS_ALL_FEATURES=1 runs it: a minute")
class TestTreeFarUncached(TestTreeFar):
    cache = ("--cache-size", "0")
