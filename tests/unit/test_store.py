"""The public Store: keys, samples, and how a store is recognised."""

from __future__ import annotations

import errno
import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from shardfs import store as store_module
from shardfs.drivers.base import Grow, Shard, ShardReader
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.errors import BadSettingError, BadStoreError, DamagedShardError, MissingKeyError, StaleShardError
from shardfs.model import Entry
from shardfs.opening import detect, local_path, open_store
from shardfs.storage.local import LocalStorage
from shardfs.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store", driver="squirrel")


def put(root: Path, name: str, raw: bytes) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(gzip.compress(raw))


# --- keys and samples -------------------------------------------------------------------------------------------


def test_a_store_holds_lists_of_samples_under_keys(store: Store) -> None:
    assert store.keys() == []
    assert store.set([{"a": 1}, {"a": 2}], "b/one") == "b/one"
    store.set([{"a": 3}], "a")
    assert store.keys() == list(store) == ["a", "b/one"]
    assert (len(store), "a" in store, "none" in store, 5 in store) == (2, True, False, False)
    assert list(store.get("b/one")) == [{"a": 1}, {"a": 2}]
    store.delete("a")
    assert store.keys() == ["b/one"]
    assert repr(store) == f"<Store {store.url} (squirrel)>"


def test_samples_are_a_sequence(store: Store) -> None:
    store.set(range(10), "key")
    samples = store.get("key")
    assert (samples[0], samples[-1], samples[2:5], samples[::-3]) == (0, 9, [2, 3, 4], [9, 6, 3, 0])
    assert (7 in samples, samples.index(7), next(reversed(samples)), len(samples)) == (True, 7, 9, 10)
    assert repr(samples) == "<10 samples>"
    for at in (10, -11):
        with pytest.raises(IndexError):
            samples[at]


def test_samples_outlive_their_shard(store: Store) -> None:
    store.set([np.arange(3), "x"], "key")
    samples = store.get("key")
    store.set(["other"], "key")
    assert samples[0].tolist() == [0, 1, 2]
    store.delete("key")
    assert samples[1] == "x"
    array = samples[0]
    del samples
    assert array.tolist() == [0, 1, 2]


@pytest.mark.parametrize("sample", [{"a": 1}, "text", b"bytes", bytearray(b"x"), np.arange(2), np.int64(5), 5, None])
def test_what_is_no_list_of_samples_is_one_sample(store: Store, sample: Any) -> None:
    store.set(sample, "key")
    assert len(store.get("key")) == 1


def test_any_other_iterable_is_the_list(store: Store) -> None:
    def samples() -> Iterator[int]:
        yield from (1, 2, 3)

    for made in (samples(), (1, 2, 3), range(1, 4), iter([1, 2, 3]), store.get(store.set([1, 2, 3], "three"))):
        store.set(made, "key")
        assert list(store.get("key")) == [1, 2, 3]


def test_without_a_key_a_free_one_is_made_and_returned(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = iter(["A" * 16, "A" * 16, "B" * 16])
    monkeypatch.setattr(store_module, "random_key", lambda: next(keys))
    assert store.set([1]) == "A" * 16
    assert store.set([2]) == "B" * 16
    assert [list(store.get(key)) for key in store] == [[1], [2]]


def test_a_failing_generator_leaves_nothing_and_its_error_passes(store: Store) -> None:
    def samples() -> Iterator[int]:
        yield 1
        raise LookupError("no more pictures")

    with pytest.raises(LookupError, match="no more pictures"):
        store.set(samples(), "key")
    assert store.keys() == []


@pytest.mark.parametrize("key", ["none", "", "../x", "x" * 300, "a\0b", "\ud800"])
def test_a_missing_key_is_a_key_error_at_the_call(store: Store, key: str) -> None:
    for call in (store.get, store.delete, store.entry):
        with pytest.raises(KeyError) as caught:
            call(key)
        assert isinstance(caught.value, MissingKeyError)
        assert caught.value.errno == errno.ENOENT
        assert "'" in str(caught.value)
    assert key not in store


def test_damage_shows_at_the_call_and_names_the_key(tmp_path: Path) -> None:
    put(tmp_path, "bad.gz", b"\x01\x02" + b"\xc1")
    put(tmp_path, "good.gz", b"\x01")
    store = open_store(tmp_path)
    with pytest.raises(DamagedShardError, match=r"shard 'bad' is damaged at byte 2: byte 0xc1"):
        store.get("bad")
    assert list(store.get("good")) == [1]


def test_regression_what_nests_deeply_does_not_end_in_a_recursion_error(tmp_path: Path) -> None:
    """JSON nested in 600 levels was parsed by C, and then met Python's own limit when a sample was asked for."""
    put(tmp_path, "a.gz", b"[" * 600 + b"]" * 600 + b"\n")
    with pytest.raises(DamagedShardError, match="nested"):
        open_store(tmp_path).get("a")


class _Replaced:
    """A Squirrel driver whose shard is replaced right after each of the first few look-ups."""

    def __init__(self, driver: SquirrelDriver, times: int) -> None:
        self._driver = driver
        self.left = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        return None

    def load(self, entry: Entry, grow: Grow) -> Shard:
        if self.left:
            self.left -= 1
            self._driver.write(entry.key, [f"version {self.left}"])
        return self._driver.load(entry, grow)


def test_a_key_replaced_while_it_is_looked_up_is_looked_up_again(tmp_path: Path) -> None:
    for times, fails in ((2, False), (3, True)):
        driver: Any = _Replaced(SquirrelDriver(LocalStorage(tmp_path)), times)
        store = Store("url", driver)
        store.set(["first"], "key")
        if fails:
            with pytest.raises(StaleShardError):
                store.get("key")
        else:
            assert list(store.get("key")) == ["version 0"]


def test_readers_see_the_old_shard_or_the_new_one_and_never_less(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="squirrel")
    store.set(["0"] * 1000, "key")
    stop = threading.Event()
    seen: list[set[Any]] = []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append({len(samples := store.get("key")), *samples})
            except StaleShardError:
                continue

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 60):
        store.set([str(number)] * 1000, "key")
    stop.set()
    reader.join()
    assert all(len(values) == 2 and 1000 in values for values in seen)


# --- opening ----------------------------------------------------------------------------------------------------


def test_a_store_is_opened_by_path_or_file_url(tmp_path: Path) -> None:
    root = tmp_path / "with space"
    put(root, "a.gz", b"\x01")
    url = root.as_uri()
    for where in (root, str(root), url, url.replace("file://", "file://localhost")):
        assert open_store(where).keys() == ["a"]
    assert open_store(url).url == url


@pytest.mark.parametrize("url", ["s3://bucket/x", "http://host/x", "file://otherhost/x", "gs://x"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(BadStoreError, match="local directories"):
        local_path(url)


def test_a_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/x") == tmp_path / "x"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a.gz"], "squirrel"),
        (["sub/deep/a.zst"], "squirrel"),
        (["a.gz", "readme.md", "notes.json"], "squirrel"),
        (["index.json"], "streaming"),
        (["train/index.json", "train/shard.00000.mds.gz"], "streaming"),
        (["myindex.json", "a.gz"], "squirrel"),
        (["a.tar"], "webdataset"),
        (["a.tar.gz", "b.gz"], "webdataset"),
    ],
)
def test_a_store_is_recognised_by_its_names(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        put(tmp_path, name, b"")
        if name.endswith("index.json"):
            (tmp_path / name).write_text(json.dumps({"version": 2, "shards": []}), encoding="utf-8")
    assert detect(tmp_path) == found


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "no shards that are recognised"),
        (["readme.md"], "no shards that are recognised"),
        (["shard.00000.mds.gz"], "without an index.json"),
    ],
)
def test_an_unclear_store_says_what_to_do(tmp_path: Path, names: list[str], reason: str) -> None:
    for name in names:
        put(tmp_path, name, b"")
    with pytest.raises(BadStoreError, match=reason):
        open_store(tmp_path)
    assert open_store(tmp_path, driver="squirrel").driver.name == "squirrel"


@pytest.mark.parametrize(
    ("text", "found"),
    [("{", "streaming"), ("[" * 100_000, "streaming"), ("[]", "squirrel"), ('{"version": 1}', "squirrel")],
)
def test_an_index_that_is_none(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "index.json").write_text(text, encoding="utf-8")
    put(tmp_path, "a.gz", b"")
    assert detect(tmp_path) == found


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadStoreError, match="no directory"):
        open_store(tmp_path / "file")
    for missing in (tmp_path / "none", tmp_path / ("x" * 300), "a\0b"):  # regression: bare OSErrors and ValueErrors
        with pytest.raises(BadStoreError, match="no store"):
            open_store(missing)


def test_drivers_and_their_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match=r"no driver 'energon'; known are: .*squirrel.*webdataset"):
        open_store(tmp_path, driver="energon")
    with pytest.raises(BadSettingError, match=r"no option 'formt'; it has: format, compression, level"):
        open_store(tmp_path, driver="squirrel", formt="jsonl")
    store = open_store(tmp_path, driver="squirrel-msgpack", compression="zst", level=1)
    store.set([1], "a")
    assert (tmp_path / "a.zst").exists()


def test_the_serializer_can_be_named(tmp_path: Path) -> None:
    put(tmp_path, "a.gz", b"1\n")
    assert list(open_store(tmp_path).get("a")) == [1]
    assert list(open_store(tmp_path, driver="squirrel-msgpack").get("a")) == [ord("1"), ord("\n")]
    assert list(open_store(tmp_path, driver="squirrel", format="jsonl").get("a")) == [1]


def test_what_another_program_wrote_with_msgpack_is_read(tmp_path: Path) -> None:
    put(tmp_path, "a.gz", b"".join(msgpack.packb({"i": at, "b": bytes(at)}) for at in range(5)))
    assert [sample["b"] for sample in open_store(tmp_path).get("a")] == [bytes(at) for at in range(5)]
