"""The suite for any driver, run for the systems whose stores are no directories of files with one key each: Streaming,
whose samples are numbered through; mltraq, with rows that are only read and directories that are written file by file;
Superduper, with rows and the artifacts that they refer to."""

from __future__ import annotations

import os
import pickle
import sqlite3
import uuid
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shardfs.opening import open_store
from shardfs.store import Store
from tests.conformance import manifests, mltraq_stores, streaming_shards, superduper_stores
from tests.conformance.driver_suite import DriverSuite
from tests.conformance.trees import InProcessTree, Tree


class StreamingSuite(DriverSuite):
    """Data sets of MosaicML Streaming: new versions of a shard have a new name, which a new index says."""

    driver = "streaming"
    keeps_versions = True
    through_splits = True
    form: str
    compression: str | None = None

    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(store, driver=self.driver, **options)

    def put(self, store: Path, key: str, samples: list[dict[str, Any]]) -> Path:
        return streaming_shards.put(store, key, samples, self.form, self.compression)

    def replace(self, store: Path, key: str, samples: list[dict[str, Any]]) -> None:
        streaming_shards.put(store, key, samples, self.form, self.compression, ".r2")

    def opened(self, store: Path) -> Store:
        return open_store(store, self.driver, format=self.form if self.form != "xsv" else None)

    def touch(self, path: Path, time_ns: int) -> None:
        for file in path.parent.glob(f"{path.name.partition('.')[0]}.*"):  # rows and their positions
            os.utime(file, ns=(1, time_ns))


class TestMds(StreamingSuite):
    form = "mds"

    def samples(self, count: int, seed: int = 0, size: int = 500) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [
            {"array": rng.random(size // 8), "data": rng.bytes(300), "label": at, "t": f"té {at}"}
            for at in range(count)
        ]


class TestMdsZstd(TestMds):
    compression = "zstd"


class TestJson(StreamingSuite):
    form = "json"

    def samples(self, count: int, seed: int = 0, size: int = 500) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [{"n": at - 1, "t": f"té {rng.bytes(size // 2).hex()}", "x": at / 7} for at in range(count)]


class TestCsv(TestJson):
    form, compression = "csv", "gz"


class TestTsv(TestJson):
    form = "tsv"


class TestXsv(TestJson):
    form, compression = "xsv", "snappy"

    def prepare(self, store: Path) -> None:
        self.put(store, "a", self.samples(1))  # of whose separator the others are


def break_table(path: Path, table: str) -> None:
    """Make the first page of a table one that SQLite cannot read."""
    with closing(sqlite3.connect(path)) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with open(path, "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


class TestMltraqExperiments(DriverSuite):
    """An experiment's own fields are its first sample, its runs the others."""

    driver = "mltraq"
    writable = False

    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(f"mltraq+sqlite:///{store}/exp.db", **options)

    def opened(self, store: Path) -> Store:
        return open_store(f"mltraq+sqlite:///{store}/exp.db")

    def samples(self, count: int, seed: int = 0, size: int = 500) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [{"x": rng.random(size // 8), "n": at, "t": f"té {at}"} for at in range(count)]

    def stems(self, samples: list[dict[str, Any]], first: int = 0) -> list[str]:
        return ["experiment", *(str(uuid.UUID(int=at)) for at in range(1, len(samples)))]

    def put(self, store: Path, key: str, samples: list[dict[str, Any]]) -> Path:
        return self._put(store, key, samples, 0)

    def replace(self, store: Path, key: str, samples: list[dict[str, Any]]) -> None:
        self._put(store, key, samples, 1)

    def _put(self, store: Path, key: str, samples: list[dict[str, Any]], time: int) -> Path:
        made = mltraq_stores.Experiments(store)
        packed = [{**sample, "x": mltraq_stores.array(sample["x"])} for sample in samples]
        made.add_runs(key, packed[0], packed[1:], self.stems(samples)[1:], replace=time > 0)
        return made.path

    def damage(self, path: Path, key: str, part: float) -> None:
        break_table(path, f"experiment_{key}")


class TestMltraqDatastore(DriverSuite):
    """A datastore without its database: directories of serialised files."""

    driver = "mltraq"

    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(store, driver=self.driver, **options)

    def samples(self, count: int, seed: int = 0, size: int = 500) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [{"data": rng.bytes(size), "n": at, "t": f"té {at}"} for at in range(count)]

    def put(self, store: Path, key: str, samples: list[dict[str, Any]]) -> Path:
        folder = store / key
        folder.mkdir(parents=True, exist_ok=True)
        for stem, sample in zip(self.stems(samples), samples, strict=True):
            (folder / f".{stem}").write_bytes(pickle.dumps(sample, protocol=5))
            os.replace(folder / f".{stem}", folder / stem)
        return folder

    def replace(self, store: Path, key: str, samples: list[dict[str, Any]]) -> None:
        self.put(store, key, samples)

    def touch(self, path: Path, time_ns: int) -> None:
        for file in path.iterdir():
            os.utime(file, ns=(1, time_ns))

    def test_damage_is_eio_and_the_others_live(self, tmp_path: Path) -> None:
        """Nothing says that a file was serialised: what is left of one is shown as its bytes."""
        self.put(tmp_path, "good", self.samples(3))
        path = self.put(tmp_path, "bad", self.samples(3))
        whole = (path / "000001").read_bytes()
        os.truncate(path / "000001", len(whole) // 2)
        with self.serve(tmp_path) as tree:
            assert tree.names("bad") == [
                *("000000.data.bin", "000000.json", "000001.$value.bin", "000002.data.bin", "000002.json")
            ]
            assert tree.read("bad/000001.$value.bin") == whole[: len(whole) // 2]
            assert len(manifests.by_sample(manifests.key_files(tree, "good"))) == 3


class TestSuperduper(DriverSuite):
    driver = "superduper"
    writable = False
    fields: ClassVar = {"id": "str", "n": "int", "t": "str", "data": "bytes"}

    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        return InProcessTree(superduper_stores.url_of(store), **options)

    def opened(self, store: Path) -> Store:
        return open_store(superduper_stores.url_of(store), encodable="artifact")

    def samples(self, count: int, seed: int = 0, size: int = 500) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        return [{"id": f"s{at}", "n": at, "t": f"té {at}", "data": rng.bytes(size)} for at in range(count)]

    def stems(self, samples: list[dict[str, Any]], first: int = 0) -> list[str]:
        return [sample["id"] for sample in samples]

    def put(self, store: Path, key: str, samples: list[dict[str, Any]]) -> Path:
        made = superduper_stores.Made(store, self.fields, key)
        made.rows(self._rows(made, samples))
        return store / "db.sqlite"

    def replace(self, store: Path, key: str, samples: list[dict[str, Any]]) -> None:
        """As somebody does who cleans up behind himself: the old blobs go."""
        with closing(sqlite3.connect(store / "db.sqlite")) as database:
            old = [row[0] for row in database.execute(f'SELECT data FROM "{key}"')]
        made = superduper_stores.Made(store, self.fields, key)
        made.rows(self._rows(made, samples), replace=True)
        for reference in old:
            (made.artifacts / reference.rpartition(":")[2]).unlink()

    def _rows(self, made: superduper_stores.Made, samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**sample, "data": made.blob(uuid.uuid4().hex, sample["data"])} for sample in samples]

    def damage(self, path: Path, key: str, part: float) -> None:
        break_table(path, key)
