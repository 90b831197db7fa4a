"""Squirrel stores and drivers in Python: both examples of squirrel-core's own page, and what it lets one extend."""

from __future__ import annotations

import gzip
import json
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs import squirrel
from shardfs.errors import BadSettingError, BadStoreError, DamagedShardError, MissingKeyError
from shardfs.iterstream import Composable, IterableSource
from shardfs.opening import open_store
from shardfs.squirrel import (
    AbstractStore,
    JsonlDriver,
    JsonlSerializer,
    MapDriver,
    MessagepackDriver,
    MessagepackSerializer,
    SquirrelSerializer,
    SquirrelStore,
    StoreDriver,
)


def get_sample(i: int) -> dict[str, Any]:
    return {
        "image": np.random.random((3, 3, 3)),
        "label": np.random.choice([1, 2]),
        "metadata": {"key": i},
    }


N_SAMPLES, N_SHARDS = 100, 10
samples = [get_sample(i) for i in range(N_SAMPLES)]
shards = [samples[i : i + 10] for i in range(N_SHARDS)]


def test_the_first_example_shards_one_after_the_other() -> None:
    tmpdir = tempfile.TemporaryDirectory()
    store = SquirrelStore(url=tmpdir.name, serializer=MessagepackSerializer())
    driver = MessagepackDriver(tmpdir.name)
    assert isinstance(driver.store, SquirrelStore)
    for i, shard in enumerate(shards):
        store.set(shard, key=f"shard_{i}")
    assert len(list(store.keys())) == N_SHARDS
    seen = {}
    for key in store.keys():  # noqa: SIM118 a store of the library is no mapping
        for sample in store.get(key):
            seen[key] = sample
            break
    tmpdir.cleanup()
    assert sorted(seen) == [f"shard_{i}" for i in range(N_SHARDS)]
    for i in range(N_SHARDS):
        got = seen[f"shard_{i}"]
        assert np.array_equal(got["image"], samples[i]["image"])
        assert got["label"] == samples[i]["label"]
        assert type(got["label"]) is type(samples[i]["label"])
        assert got["metadata"] == {"key": i}


def test_the_second_example_shards_side_by_side() -> None:
    tmpdir = tempfile.TemporaryDirectory()
    store = MessagepackDriver(tmpdir.name).store
    # no keys are given: random ones are made
    IterableSource(shards).async_map(store.set).join()
    assert len(list(store.keys())) == 10
    got = IterableSource(store.keys()).async_map(store.get).flatten().collect()
    tmpdir.cleanup()
    assert len(got) == 100
    want = sorted(sample["metadata"]["key"] for shard in shards for sample in shard)
    assert sorted(sample["metadata"]["key"] for sample in got) == want


def test_what_is_written_is_what_a_store_opened_otherwise_has(tmp_path: Path) -> None:
    SquirrelStore(str(tmp_path / "m"), MessagepackSerializer()).set([{"a": np.int16(3), "b": b"x"}], "k")
    SquirrelStore(str(tmp_path / "j"), JsonlSerializer()).set([{"a": 3}], "k")
    assert list(open_store(tmp_path / "m").get("k")) == [{"a": np.int16(3), "b": b"x"}]
    assert gzip.decompress((tmp_path / "j" / "k.gz").read_bytes()) == b'{"a": 3}\n'
    assert list(JsonlDriver(str(tmp_path / "j")).get("k")) == [{"a": 3}]


def test_one_sample_is_a_shard_of_one(tmp_path: Path) -> None:
    store = SquirrelStore(str(tmp_path), MessagepackSerializer())
    key = store.set({"a": 1})
    assert list(store.get(key)) == [{"a": 1}]
    store.set((1, 2), "tuple")
    assert list(store.get("tuple")) == [(1, 2)]


def test_keys_below_directories_only_when_nested(tmp_path: Path) -> None:
    store = SquirrelStore(f"{tmp_path}/", MessagepackSerializer())
    store.set([1], "a")
    store.set([1], "b/c")
    assert list(store.keys()) == ["a"]
    assert list(store.keys(nested=True)) == ["a", "b/c"]


def test_clean_removes_shards_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    SquirrelStore(str(tmp_path), MessagepackSerializer()).set([1], "a/b")
    assert list(SquirrelStore(str(tmp_path), MessagepackSerializer(), clean=True).keys(nested=True)) == []
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_errors_are_raised_at_the_call(tmp_path: Path) -> None:
    store = SquirrelStore(str(tmp_path), MessagepackSerializer())
    with pytest.raises(MissingKeyError):
        store.get("nothing")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    with pytest.raises(DamagedShardError):
        store.get("bad")
    with pytest.raises(BadSettingError, match="sample 0"):
        store.set([object()], "k")
    with pytest.raises(BadStoreError):
        SquirrelStore("gs://bucket/store", MessagepackSerializer())
    with pytest.raises(BadSettingError, match="use_list"):
        store.get("bad", use_list=True)


def test_an_error_of_a_worker_reaches_who_iterates(tmp_path: Path) -> None:
    store = SquirrelStore(str(tmp_path), MessagepackSerializer())
    store.set([1, 2], "a")
    stream = iter(IterableSource(["a", "gone"]).async_map(store.get).flatten())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(MissingKeyError, match="gone"):
        next(stream)


def test_stores_work_in_other_processes(tmp_path: Path) -> None:
    store = SquirrelStore(str(tmp_path), MessagepackSerializer())
    for at in range(3):
        store.set([{"at": at, "array": np.arange(at)}], f"k{at}")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        got = IterableSource(store.keys()).async_map(store.get, executor=pool).flatten().collect()
    assert [sample["at"] for sample in got] == [0, 1, 2]
    assert np.array_equal(got[2]["array"], np.arange(2))
    assert list(pickle.loads(pickle.dumps(store)).keys()) == ["k0", "k1", "k2"]


# --- drivers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def driver(tmp_path: Path) -> MessagepackDriver:
    made = MessagepackDriver(str(tmp_path))
    for at in range(5):
        made.store.set([{"n": at * 10 + number} for number in range(10)], f"k{at}")
    return made


def numbers(stream: Iterable[dict[str, int]]) -> list[int]:
    return [sample["n"] for sample in stream]


@pytest.mark.parametrize("max_workers", [None, 1, 3])
def test_get_iter_streams_all_samples_in_order(driver: MessagepackDriver, max_workers: int | None) -> None:
    assert numbers(driver.get_iter(max_workers=max_workers)) == list(range(50))
    assert [len(shard) for shard in driver.get_iter(flatten=False, max_workers=max_workers)] == [10] * 5
    assert numbers(driver.get_iter(keys_iterable=["k3"])) == list(range(30, 40))


def test_get_iter_shuffles_keys_and_items(driver: MessagepackDriver) -> None:
    by_key = numbers(driver.get_iter(shuffle_key_buffer=5, key_shuffle_kwargs={"seed": 1}))
    assert sorted(by_key) == list(range(50))
    assert by_key != list(range(50))
    assert all(by_key[at : at + 10] == list(range(by_key[at], by_key[at] + 10)) for at in range(0, 50, 10))
    mixed = numbers(driver.get_iter(shuffle_item_buffer=20, item_shuffle_kwargs={"seed": 1, "initial": 20}))
    assert sorted(mixed) == list(range(50))
    assert mixed[:10] != list(range(10))


class Reversed(Composable):
    def __iter__(self) -> Iterator[Any]:
        return reversed(list(super().__iter__()))


def first(items: Iterator[str], count: int) -> Iterator[str]:
    for _ in range(count):
        yield next(items)


def test_hooks_for_keys(driver: MessagepackDriver) -> None:
    assert numbers(driver.get_iter(key_hooks=[Reversed, partial(first, count=1)])) == list(range(40, 50))
    with pytest.raises(BadSettingError, match="hook 3"):
        driver.get_iter(key_hooks=[3])


# --- what one may extend ----------------------------------------------------------------------------------------------


class Texts(SquirrelSerializer):
    """A line a sample, opened through `fs` as the library's own serializers do."""

    def serialize(self, obj: str) -> bytes:
        return obj.encode() + b"\n"

    def deserialize(self, obj: bytes) -> str:
        return obj.decode().removesuffix("\n")

    def serialize_shard_to_file(self, obj: list[str], fp: str, fs: Any = None, mode: str = "wb", **kw: Any) -> None:
        with fs.open(fp, mode=mode, compression="gzip") as file:
            for sample in obj:
                if sample == "fail":
                    raise ValueError("cannot")
                file.write(self.serialize(sample))

    def deserialize_shard_from_file(self, fp: str, fs: Any = None, mode: str = "rb", **kw: Any) -> Iterable[str]:
        with fs.open(fp, mode=mode, compression="gzip") as file:
            for line in file:
                yield self.deserialize(line)


class Plain(SquirrelSerializer):
    """One that opens the file itself."""

    def serialize(self, obj: Any) -> str:
        return json.dumps(obj)

    def deserialize(self, obj: str) -> Any:
        return json.loads(obj)

    def serialize_shard_to_file(self, obj: list[Any], fp: str, **kw: Any) -> None:
        Path(fp).write_text(self.serialize(obj))

    def deserialize_shard_from_file(self, fp: str, **kw: Any) -> Iterable[Any]:
        return self.deserialize(Path(fp).read_text())


def test_a_serializer_of_ones_own(tmp_path: Path) -> None:
    store = SquirrelStore(str(tmp_path), Texts())
    store.set(["one", "two"], "k")
    assert store.get("k") == ["one", "two"]
    assert gzip.decompress((tmp_path / "k.gz").read_bytes()) == b"one\ntwo\n"
    assert StoreDriver(str(tmp_path), Texts()).get_iter().collect() == ["one", "two"]
    with pytest.raises(MissingKeyError):
        store.get("gone")


def test_a_serializer_that_fails_leaves_the_old_shard(tmp_path: Path) -> None:
    store = SquirrelStore(str(tmp_path), Texts())
    store.set(["one"], "k")
    with pytest.raises(ValueError, match="cannot"):
        store.set(["two", "fail"], "k")
    assert store.get("k") == ["one"]
    assert [path.name for path in tmp_path.iterdir()] == ["k.gz"]


def test_a_serializer_that_opens_files_itself(tmp_path: Path) -> None:
    store = SquirrelStore(str(tmp_path), Plain(), clean=True)
    store.set([1, {"a": 2}], "below/k")
    assert store.get("below/k") == [1, {"a": 2}]
    assert list(store.keys(nested=True)) == ["below/k"]
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["k.gz"]


def test_a_symbolic_link_is_no_shard_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("[1]")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "k.gz").symlink_to("../secret")
    with pytest.raises(MissingKeyError):
        SquirrelStore(str(tmp_path / "s"), Plain()).get("k")


def test_a_serializer_without_shards_says_so(tmp_path: Path) -> None:
    class Half(SquirrelSerializer):
        def serialize(self, obj: Any) -> Any:
            return obj

        def deserialize(self, obj: Any) -> Any:
            return obj

    with pytest.raises(NotImplementedError, match="Half"):
        SquirrelStore(str(tmp_path), Half()).set([1], "k")


def test_a_store_and_a_driver_of_ones_own() -> None:
    class Memory(AbstractStore):
        def __init__(self) -> None:
            self.held: dict[str, Any] = {}

        def set(self, value: Any, key: Any = None, **kwargs: Any) -> None:
            self.held[key] = value

        def get(self, key: Any, **kwargs: Any) -> Any:
            return self.held[key]

        def keys(self, **kwargs: Any) -> Any:
            return list(self.held)

    class MemoryDriver(StoreDriver):
        name = "memory"

        def __init__(self) -> None:
            super().__init__("", MessagepackSerializer())
            self._memory = Memory()

        @property
        def store(self) -> AbstractStore:
            return self._memory

    made = MemoryDriver()
    made.store.set([1, 2], "a")
    made.store.set([3], "b")
    assert made.get_iter(max_workers=2).collect() == [1, 2, 3]
    assert isinstance(made, MapDriver)


@pytest.mark.parametrize("serializer", [MessagepackSerializer(), JsonlSerializer()])
def test_serializers_by_themselves(serializer: SquirrelSerializer) -> None:
    sample = {"a": [1, 2], "b": np.arange(3, dtype="int32")}
    got = serializer.deserialize(serializer.serialize(sample))
    assert list(got["a"]) == [1, 2]
    assert np.array_equal(got["b"], sample["b"])
    assert got["b"].dtype == np.int32
    with pytest.raises(DamagedShardError):
        serializer.deserialize(b"")


def test_a_hook_for_json_objects(tmp_path: Path) -> None:
    JsonlDriver(str(tmp_path)).store.set([{"a": {"b": 1}}, {"a": 2}], "k")
    hooked = JsonlDriver(str(tmp_path), deser_hook=lambda made: {**made, "seen": True})
    assert list(hooked.get("k")) == [{"a": {"b": 1, "seen": True}, "seen": True}, {"a": 2, "seen": True}]


def test_all_names_are_there() -> None:
    assert all(hasattr(squirrel, name) for name in squirrel.__all__)
