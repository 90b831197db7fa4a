"""What any driver's stores must be, whatever their format: the suite that a new driver's tests are a subclass of.

A subclass says how the format's own library writes a shard, which samples the format can hold, and how a tree is
served; see docs/FORMATS.md. Where a system is another kind of store (numbers that go on through several shards, keys
that are directories or tables, nothing that can be written), it says so by the other hooks; no test is left out for
it. What is particular to a format has suites of its own.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from shardfs import layout, names
from shardfs.drivers.base import Driver, Note, Value, WritesFiles
from shardfs.errors import KeyExistsError, MissingKeyError, NotWritableError, StaleShardError
from shardfs.model import Entry, Key
from shardfs.opening import open_store
from shardfs.store import Store
from tests.conformance import manifests
from tests.conformance.trees import Tree, fails, wait_for


def equal(one: Any, other: Any) -> bool:
    """Equal values, arrays among them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        ours, theirs = np.asarray(one), np.asarray(other)
        return ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    return bool(one == other)


class DriverSuite:
    """Tests of a driver, each with a store of its own."""

    driver: str
    """What `--driver` calls it."""

    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        """A tree over a store: `trees.InProcessTree`, or a real mount of it."""
        raise NotImplementedError

    def samples(self, count: int, seed: int = 0, size: int = 500) -> list[dict[str, Any]]:
        """Samples that the format holds and gives back equal, other ones for each seed; the first file that is no .json
        has about `size` bytes, which cannot be compressed."""
        raise NotImplementedError

    def put(self, store: Path, key: str, samples: list[dict[str, Any]]) -> Path:
        """Write a shard as the format's own library does; the file that it is in."""
        raise NotImplementedError

    # --- where a system is another kind of store ------------------------------------------------------------------

    writable = True
    """False where no key can be written: then each way of it must be refused, and change nothing."""
    keeps_versions = False
    """True where a shard that is replaced here stays readable for those who have begun to read it."""
    through_splits = False
    """True where samples are numbered through all shards of a directory, in the order in which these were put."""

    def stems(self, samples: list[dict[str, Any]], first: int = 0) -> list[str]:
        """What the samples are called: numbers from `first`, unless the format has names for them."""
        digits = names.digits_for(first + len(samples))
        return [names.sample_number(first + at, digits) for at in range(len(samples))]

    def opened(self, store: Path) -> Store:
        return open_store(store, self.driver)

    def prepare(self, store: Path) -> None:
        """Put what must be there before a first key can be written."""

    def replace(self, store: Path, key: str, samples: list[dict[str, Any]]) -> None:
        """Put other samples in the place of a key's, all at once."""
        fresh = store.parent / "fresh"
        made = self.put(fresh, key, samples)
        os.replace(made, store / made.relative_to(fresh))

    def touch(self, path: Path, time_ns: int) -> None:
        """Give what `put` has written another time."""
        os.utime(path, ns=(1, time_ns))

    def damage(self, path: Path, key: str, part: float) -> None:
        """Leave only a part of the shard that `put` has written."""
        os.truncate(path, int(path.stat().st_size * part) | 1)

    def put_records(
        self, driver: Driver, key: Key, records: Iterable[Value], stems: list[str], base: Entry | None, note: Note
    ) -> Entry:
        """Write a key as the seal of a mount does: as records or, where keys are directories, file by file."""
        if not isinstance(driver, WritesFiles):
            return driver.write_records(key, records, base=base, note=note)
        files = ((record.name, driver.serialised(record.sample)) for record in records)
        gone = (driver.file_names(base) if base else frozenset()) - set(stems)
        return driver.write_files(key, files, gone, base=base, note=note)

    # --- reading --------------------------------------------------------------------------------------------------

    def test_keys_are_directories_of_samples(self, tmp_path: Path) -> None:
        first: dict[str, int] = {}
        for number, key in enumerate(("b", "a", "deep/er/c")):
            self.put(tmp_path, key, self.samples(3 + number, number))
            first[key] = 3 if self.through_splits and key == "a" else 0
        (tmp_path / "README.md").write_text("not a shard")
        with self.serve(tmp_path) as tree:
            assert sorted(tree.names("")) == ["a", "b", "deep"]
            assert tree.names("deep/er") == ["c"]
            for number, key in enumerate(("b", "a", "deep/er/c")):
                files = manifests.by_sample(manifests.key_files(tree, key))
                expected = self.samples(3 + number, number)
                assert list(files) == self.stems(expected, first[key])
                for sample, (stem, by_suffix) in zip(expected, files.items(), strict=True):
                    assert equal(self.read_back(stem, by_suffix), sample)

    def read_back(self, stem: str, files: dict[str, bytes]) -> Any:
        """The sample that the files of a stem are, given by what stands behind it."""
        return layout.read_back(files)

    def test_sizes_are_exact_and_any_part_is_the_same_bytes(self, tmp_path: Path) -> None:
        rng = random.Random(1)
        self.put(tmp_path, "k", self.samples(4))
        with self.serve(tmp_path, budget=1) as tree:
            for name, data in manifests.key_files(tree, "k").items():
                assert tree.stat(f"k/{name}").size == len(data)
                for _ in range(10):
                    offset, size = rng.randrange(len(data) + 10), rng.choice((1, 100, 4096))
                    assert tree.read(f"k/{name}", offset, size) == data[offset : offset + size]

    def test_modes_times_and_missing_names(self, tmp_path: Path) -> None:
        path = self.put(tmp_path, "k", self.samples(2))
        self.touch(path, 1_600_000_000_123_456_789)
        with self.serve(tmp_path) as tree:
            for name in tree.names("k"):
                found = tree.stat(f"k/{name}")
                assert (stat.S_IMODE(found.mode), found.mtime_ns) == (0o444, 1_600_000_000_123_456_789)
            for name in ("x", "k/999999.json", "k/x", "x/y"):
                with fails(errno.ENOENT):
                    tree.stat(name)

    def test_inode_numbers_are_unique_and_stable(self, tmp_path: Path) -> None:
        for number in range(3):
            self.put(tmp_path, f"k{number}", self.samples(5, number))
        with self.serve(tmp_path, budget=1) as tree:  # each key evicts the others
            seen: dict[str, int] = {}
            for _ in range(2):
                for key in tree.names(""):
                    for path in [key, *(f"{key}/{name}" for name in tree.names(key))]:
                        ino = tree.stat(path).ino
                        assert seen.setdefault(path, ino) == ino
            assert len(set(seen.values())) == len(seen) > 3

    # --- trouble --------------------------------------------------------------------------------------------------

    def test_damage_is_eio_and_the_others_live(self, tmp_path: Path) -> None:
        self.put(tmp_path, "good", self.samples(3))
        for number, part in enumerate((0.02, 0.3, 0.7)):
            self.damage(self.put(tmp_path, f"bad{number}", self.samples(30)), f"bad{number}", part)
        with self.serve(tmp_path) as tree:
            assert sorted(tree.names("")) == ["bad0", "bad1", "bad2", "good"]
            for number in range(3):
                with fails(errno.EIO):
                    tree.names(f"bad{number}")
            assert len({name.partition(".")[0] for name in tree.names("good")}) == 3

    def test_a_shard_that_was_replaced_is_the_new_one_and_never_a_mixture(self, tmp_path: Path) -> None:
        store = tmp_path / "store"
        self.put(store, "k", self.samples(3, 0, 300_000))
        with self.serve(store, budget=1) as tree:
            files = manifests.key_files(tree, "k")
            self.put(store, "another", self.samples(1))
            name = next((name for name in files if not name.endswith(".json")), next(iter(files)))
            opened = tree.open(f"k/{name}")
            assert opened.read_at(0, 10) == files[name][:10]
            self.replace(store, "k", self.samples(3, 1, 300_000))
            wait_for(lambda: _first(tree, self, "k", self.samples(3, 1, 300_000)[0]))
            wait_for(lambda: _first(tree, self, "another", self.samples(1)[0]))  # and takes the place of `k` in memory
            with fails(errno.ESTALE):
                opened.read_at(200_000, 10)
            opened.close()

    def test_the_store_is_never_written_to(self, tmp_path: Path) -> None:
        for key in ("a", "d/b"):
            self.put(tmp_path, key, self.samples(3))
        before = _all_files(tmp_path)
        with self.serve(tmp_path) as tree:
            for key in ("a", "d/b"):
                manifests.key_files(tree, key)
        assert _all_files(tmp_path) == before

    # --- in Python ------------------------------------------------------------------------------------------------

    def test_a_store_in_python(self, tmp_path: Path) -> None:
        self.put(tmp_path, "d/k", self.samples(4))
        store = self.opened(tmp_path)
        assert store.keys() == ["d/k"]
        assert equal(list(store.get("d/k")), self.samples(4))
        for key in ("x", "d", "d/k/x", "../k", "", "k" * 300):
            _fails_with(MissingKeyError, lambda key=key: store.get(key))
        if not self.writable:
            return
        store.set(self.samples(3, 2), "d/k")
        store.set(self.samples(2, 1), "d/new")
        assert sorted(store.keys()) == ["d/k", "d/new"]
        assert equal(list(store.get("d/new")), self.samples(2, 1))
        assert equal(list(store.get("d/k")), self.samples(3, 2))
        store.delete("d/new")
        assert store.keys() == ["d/k"]

    def test_what_cannot_be_written_is_refused_and_not_changed(self, tmp_path: Path) -> None:
        self.put(tmp_path, "k", self.samples(2))
        driver = self.opened(tmp_path).driver
        if self.writable:
            assert driver.writable
            return
        before, entry = _all_files(tmp_path), driver.entry(Key("k"))
        records = list(self._records(1, 1))
        for work in (
            lambda: driver.write(Key("k"), self.samples(1, 1)),
            lambda: driver.write_records(Key("k"), records, base=entry),
            lambda: self.put_records(driver, Key("k"), records, [], entry, _tell_nobody),
            lambda: driver.remove(Key("k")),
        ):
            _fails_with(NotWritableError, work)
        assert _all_files(tmp_path) == before
        assert driver.entry(Key("k")) == entry

    def test_records_are_written_all_or_nothing_and_settled(self, tmp_path: Path) -> None:
        if not self.writable:
            return
        self.prepare(tmp_path)
        driver = self.opened(tmp_path).driver
        key, told = Key("k"), [""]

        def write(count: int, seed: int, base: Entry | None) -> Entry:
            stems = self.stems(self.samples(count, seed))
            return self.put_records(driver, key, self._records(count, seed), stems, base, told.append)

        entry = write(3, 0, None)
        assert driver.settle(key, told[-1]) == entry == driver.entry(key)
        _fails_with(KeyExistsError, lambda: write(3, 1, None))
        newer = write(2, 1, entry)
        assert newer.version != entry.version
        _fails_with(StaleShardError, lambda: write(2, 1, entry))
        if self.keeps_versions:
            assert len(list(driver.load(entry, lambda _: None).records())) == 3
        else:
            _fails_with(StaleShardError, lambda: driver.load(entry, lambda _: None))
        before = _all_files(tmp_path)
        failing = self._failing()
        _fails_with(ZeroDivisionError, lambda: self.put_records(driver, key, failing, ["0"], newer, told.append))
        assert driver.settle(key, told[-1]) is None
        assert _all_files(tmp_path) == before

    def _records(self, count: int, seed: int) -> Iterator[Value]:
        samples = self.samples(count, seed)
        yield from (Value(sample, stem) for sample, stem in zip(samples, self.stems(samples), strict=True))

    def _failing(self) -> Iterator[Value]:
        yield from self._records(1, 2)
        raise ZeroDivisionError


def _tell_nobody(noted: str) -> None:
    """Nothing is to be settled."""


def _fails_with(kind: type[Exception], work: Callable[[], Any]) -> None:
    try:
        work()
    except kind:
        return
    raise AssertionError(f"this should raise {kind.__name__}")


def _first(tree: Tree, suite: DriverSuite, key: str, sample: Any) -> bool:
    """Whether the first sample of a key is this one by now."""
    try:
        files = manifests.by_sample(manifests.key_files(tree, key))
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.ENOENT):
            raise
        return False
    return equal(suite.read_back(*next(iter(files.items()))), sample)


def _all_files(folder: Path) -> list[tuple[str, int, bytes]]:
    return [
        (str(path), path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()
    ]
