"""Each thing that makes a mount fast, turned off: the tree is the same, and the thing is really off.

The whole tree suite runs with all of them on (`test_tree_mounted.py`). Here a part of it runs for each that is off, for
all off together, and over indexes of every origin; with SHARDFS_ALL_FEATURES=1 in the environment, all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shardfs import config, daemon
from tests.conformance import manifests
from tests.conformance.tree_suite import GOLDEN, TreeSuite, case_paths, golden_lines
from tests.conformance.trees import MountedTree, Tree, wait_for
from tests.mount.conftest import SlowStore, mounting, run
from tests.mount.test_stalls import SAMPLES, SIZE, content, read, write

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]

CASES = [("squirrel", "msgpack_basic"), ("streaming", "mds_zstd_hash_splits")]


@dataclass(frozen=True)
class Feature:
    """How a mount is made without something."""

    name: str
    words: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    without_isal: bool = False


STOCK_LOOP = Feature("stock loop", environment=(("SHARDFS_STOCK_LOOP", "1"),))
NO_PREFILL = Feature("no prefill", environment=(("SHARDFS_NO_PREFILL", "1"),))
NO_READ_AHEAD = Feature("no read-ahead", environment=(("SHARDFS_NO_READ_AHEAD", "1"),))
NO_INDEX = Feature("no index", words=("-o", "no_index"))
NO_SPIN = Feature("no spin", environment=(("SHARDFS_NO_SPIN", "1"),))
NO_PARTS = Feature("no parts", environment=(("SHARDFS_NO_PARTS", "1"),))
STOCK_LISTING = Feature("stock listing", environment=(("SHARDFS_STOCK_LISTING", "1"),))
STOCK_OPEN = Feature("stock open", environment=(("SHARDFS_STOCK_OPEN", "1"),))
NO_ISAL = Feature("no isal", without_isal=True)
SINGLE = (STOCK_LOOP, NO_SPIN, NO_PREFILL, NO_READ_AHEAD, NO_PARTS, STOCK_LISTING, STOCK_OPEN, NO_INDEX, NO_ISAL)
ALL_ON = Feature("all on")
ALL_OFF = Feature(
    "all off",
    tuple(word for feature in SINGLE for word in feature.words),
    tuple(setting for feature in SINGLE for setting in feature.environment),
    without_isal=True,
)


@pytest.fixture(scope="module")
def shims(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PYTHONPATH in which isal is a package that cannot be imported."""
    folder = tmp_path_factory.mktemp("shims")
    (folder / "isal").mkdir()
    (folder / "isal/__init__.py").write_text("raise ImportError('isal is not to be found in this test')")
    return folder


@contextlib.contextmanager
def mounted_with(feature: Feature, shims: Path, store: Path, *words: str, **environment: str) -> Iterator[Path]:
    """A mount of a store, made without something."""
    environment = {**dict(feature.environment), **environment}
    if feature.without_isal:
        environment["PYTHONPATH"] = f"{shims}{os.pathsep}{os.environ['PYTHONPATH']}"
    with mounting(store, *words, *feature.words, **environment) as path:
        yield path


def names(features: tuple[Feature, ...]) -> list[str]:
    return [feature.name.replace(" ", "-") for feature in features]


# --- the tree is the same -----------------------------------------------------------------------------------------


class Suite(TreeSuite):
    """The tree suite, on mounts made without something."""

    __test__ = False

    def __init__(self, mount: Callable[..., contextlib.AbstractContextManager[Path]]) -> None:
        self.mount = mount

    @contextlib.contextmanager
    def serve(self, store: Path, **options: Any) -> Iterator[Any]:
        arrays, _, text = str(options.get("arrays", "png")).partition("+")
        words = ["--memory", str(options.get("budget", 64 << 20)), "--arrays", arrays]
        words += ["--text", "files" if text else "json"]
        with self.mount(store, *words) as path:
            tree: Tree = MountedTree(path)
            yield tree


CHOSEN = (
    "test_any_part_of_a_file_is_the_same_bytes",
    "test_inode_numbers_are_unique_and_stable",
    "test_damaged_shard_is_eio_and_the_rest_works",
    "test_shard_replaced_while_open_is_estale_and_never_other_bytes",
)
"""What these features could get wrong: bytes, numbers, errors, and what is of which version."""

ON_A_DIRECTORY = tuple(
    name
    for name in vars(TreeSuite)
    if name.startswith("test_") and not name.endswith("file_by_file") and name != "test_fixture_has_the_golden_listing"
)
TESTS = ON_A_DIRECTORY if os.environ.get("SHARDFS_ALL_FEATURES") == "1" else CHOSEN


def check_fixture(path: Path, system: str, case: str) -> None:
    """A mounted fixture against its manifest and its golden listing."""
    tree = MountedTree(path)
    manifest = manifests.load_manifest(case_paths(system, case)[0])
    for key, shard in manifest.get("shards", {}).items():
        manifests.check_squirrel_key(tree, key, shard)
    for split, part in manifest.get("splits", {}).items():
        manifests.check_streaming_split(tree, split, part, manifest["columns"])
    assert golden_lines(tree) == (GOLDEN / f"{system}-{case}.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("system", "case"), CASES, ids=[case for _, case in CASES])
@pytest.mark.parametrize("feature", [*SINGLE, ALL_OFF], ids=names((*SINGLE, ALL_OFF)))
def test_fixtures_are_right_without(feature: Feature, shims: Path, system: str, case: str) -> None:
    with mounted_with(feature, shims, case_paths(system, case)[1]) as path:
        check_fixture(path, system, case)


@pytest.mark.parametrize("test", TESTS, ids=[test.removeprefix("test_") for test in TESTS])
@pytest.mark.parametrize("feature", [*SINGLE, ALL_OFF], ids=names((*SINGLE, ALL_OFF)))
def test_the_tree_behaves_the_same_without(feature: Feature, shims: Path, test: str, tmp_path: Path) -> None:
    paths: list[Path] = []

    @contextlib.contextmanager
    def mount(*words: Any) -> Iterator[Path]:
        with mounted_with(feature, shims, *words) as path:
            paths.append(path)
            yield path

    getattr(Suite(mount), test)(tmp_path)
    assert paths, "the suite has looked at mounts"
    assert not any(map(os.path.ismount, paths))


@pytest.mark.parametrize(("system", "case"), CASES, ids=[case for _, case in CASES])
def test_fixtures_are_right_over_a_warm_index(shims: Path, system: str, case: str, tmp_path: Path) -> None:
    store, cache = case_paths(system, case)[1], str(tmp_path)
    with mounted_with(ALL_ON, shims, store, XDG_CACHE_HOME=cache) as path:
        check_fixture(path, system, case)
        (kept,) = tmp_path.rglob("*.sqlite")
    before = kept.stat().st_mtime_ns
    with mounted_with(ALL_ON, shims, store, XDG_CACHE_HOME=cache) as path:
        check_fixture(path, system, case)
    assert kept.stat().st_mtime_ns == before, "nothing had to be put into the index again"


# --- it is really off ---------------------------------------------------------------------------------------------


def pid_of(path: Path) -> int:
    record = daemon.find(str(path))
    assert record is not None
    return record.pid


@pytest.mark.parametrize("feature", [ALL_ON, STOCK_LOOP, STOCK_OPEN], ids=names((ALL_ON, STOCK_LOOP, STOCK_OPEN)))
def test_the_loop_is_the_one_asked_for(feature: Feature, shims: Path, tiny_store: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with mounted_with(feature, shims, tiny_store, "--log", str(log), "-v", "-v") as path:
        assert len(os.listdir(path)) == 3
        assert f"request loop: {'stock' if feature is STOCK_LOOP else 'ours'}" in log.read_text()
        assert f"opens: {'stock' if feature is STOCK_OPEN else 'without a request'}" in log.read_text()


@pytest.mark.parametrize("feature", [ALL_ON, NO_ISAL], ids=names((ALL_ON, NO_ISAL)))
def test_isal_is_used_or_not(feature: Feature, shims: Path, tiny_store: Path) -> None:
    pytest.importorskip("isal")
    with mounted_with(feature, shims, tiny_store) as path:
        assert (path / "a/000001.x.bin").read_bytes() == b"\1" * 100
        used = "isal" in Path(f"/proc/{pid_of(path)}/maps").read_text()
        assert used is (feature is ALL_ON)


@pytest.mark.parametrize("feature", [ALL_ON, NO_PREFILL], ids=names((ALL_ON, NO_PREFILL)))
def test_prefilled_files_are_in_the_page_cache_or_not(feature: Feature, shims: Path, tmp_path: Path) -> None:
    """Of a key that is loaded when the kernel knows its names already: its table is kept, its shard was evicted."""
    for key in ("k", "other"):
        write(tmp_path, key)
    with mounted_with(feature, shims, tmp_path, "--no-index", "--memory", "1") as path:
        for number in range(SAMPLES):
            os.stat(path / f"k/{number:06d}.x.bin")
        assert read(path, "other")
        assert read(path, "k", 0)
        files = [path / f"k/{number:06d}.x.bin" for number in range(1, SAMPLES)]
        if feature is ALL_ON:
            wait_for(lambda: all(in_page_cache(file) for file in files))
        else:
            assert not any(in_page_cache(file) for file in files)
        assert all(read(path, "k", number) for number in range(SAMPLES)), "the same bytes from wherever they come"


def in_page_cache(file: Path) -> bool:
    """Whether the kernel has a small file's content, asked without making it fetch that."""
    with (
        open(file, "rb") as opened,
        mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped,
    ):
        pages = -(-len(mapped) // mmap.PAGESIZE)
        there = (ctypes.c_ubyte * pages)()
        view = ctypes.c_char.from_buffer(mapped)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            address = ctypes.c_void_p(ctypes.addressof(view))
            assert libc.mincore(address, ctypes.c_size_t(len(mapped)), there) == 0
        finally:
            del view
        return all(page & 1 for page in there)


@pytest.mark.parametrize("feature", [ALL_ON, NO_READ_AHEAD], ids=names((ALL_ON, NO_READ_AHEAD)))
def test_the_next_shard_is_loaded_ahead_or_not(feature: Feature, shims: Path, slow_store: SlowStore) -> None:
    keys = [f"k{number}" for number in range(config.READ_AHEAD_SURE + 2)]
    write(slow_store.source, *keys)
    ahead = f"{keys[config.READ_AHEAD_SURE]}.gz"
    with mounted_with(feature, shims, slow_store.path, "--no-index") as path:
        for key in keys[: config.READ_AHEAD_SURE]:
            assert read(path, key)
        if feature is ALL_ON:
            wait_for(lambda: slow_store.asked(ahead) > 0)
        assert read(path, keys[0], 1)
        assert slow_store.asked(ahead) > 0 or feature is not ALL_ON
        assert slow_store.asked(ahead) == 0 or feature is ALL_ON
        assert all(read(path, key, number) for key in keys for number in (0, 7)), "right bytes, also of what was ahead"


@pytest.mark.parametrize("origin", ["none", "earlier mount", "shardfs index"])
def test_with_an_index_names_come_without_the_shard(
    origin: str, shims: Path, slow_store: SlowStore, tmp_path: Path
) -> None:
    write(slow_store.source, "k")
    cache, words = str(tmp_path / "cache"), ["--no-index"] if origin == "none" else []
    if origin == "shardfs index":
        done = run("index", slow_store.path, XDG_CACHE_HOME=cache)
        assert done.returncode == 0, done.stderr
    else:
        with mounted_with(ALL_ON, shims, slow_store.path, *words, XDG_CACHE_HOME=cache) as path:
            assert read(path, "k")
    assert bool(rows(tmp_path / "cache")) is (origin != "none")
    before = slow_store.asked("k.gz")
    with mounted_with(ALL_ON, shims, slow_store.path, *words, XDG_CACHE_HOME=cache) as path:
        assert len(os.listdir(path / "k")) == SAMPLES
        assert (path / "k/000003.x.bin").stat().st_size == SIZE
        assert (slow_store.asked("k.gz") > before) is (origin == "none"), "only without an index it must be loaded"
        assert all(read(path, "k", number) for number in range(SAMPLES))


def test_an_index_published_with_the_store_is_used(shims: Path, tmp_path: Path) -> None:
    """What it says is taken once the shard's hash is found to be the same, and kept with that."""
    store, exported = tmp_path / "store", tmp_path / "exported"
    store.mkdir()
    write(store, "k")
    done = run("index", store, "--export", exported, XDG_CACHE_HOME=str(tmp_path / "publisher"))
    assert done.returncode == 0, done.stderr
    ((_, mark),) = rows(tmp_path / "publisher")
    exported.rename(store / ".shardfs-index.sqlite")
    for feature in (ALL_ON, NO_INDEX):
        cache = tmp_path / feature.name
        with mounted_with(feature, shims, store, XDG_CACHE_HOME=str(cache)) as path:
            assert os.listdir(path) == ["k"]
            assert all(read(path, "k", number) for number in range(SAMPLES))
        assert rows(cache) == ([("k", mark)] if feature is ALL_ON else []), "a table that is built here has no mark"


def rows(cache: Path) -> list[tuple[str, str]]:
    """Key and mark of all that an index below a cache directory has."""
    found = []
    for file in cache.rglob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(file)) as connection:
            found += connection.execute("SELECT key, mark FROM shards").fetchall()
    return found


def test_an_index_of_other_content_is_not_believed(shims: Path, tmp_path: Path) -> None:
    """A shard that was replaced between two mounts, by one of the same size and time."""
    store, cache = tmp_path / "store", str(tmp_path / "cache")
    store.mkdir()
    write(store, "k")
    before = (store / "k.gz").stat()
    with mounted_with(ALL_ON, shims, store, XDG_CACHE_HOME=cache) as path:
        assert read(path, "k")
    (store / "k.gz").rename(store / "gone.gz")
    write(store, "other", size=SIZE)
    (store / "other.gz").rename(store / "k.gz")
    os.utime(store / "k.gz", ns=(before.st_atime_ns, before.st_mtime_ns))
    with mounted_with(ALL_ON, shims, store, XDG_CACHE_HOME=cache) as path:
        for number in range(SAMPLES):
            assert (path / f"k/{number:06d}.x.bin").read_bytes() == content("other", number)
