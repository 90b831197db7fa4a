"""Directories of `.npz` files for shardfs: each file is a shard, and a row of its arrays is a sample.

`train/part-0.npz` with the arrays `image` (100, 32, 32, 3) and `label` (100,) is the key `train/part-0` with 100
samples, each of which has an image of (32, 32, 3) and a number. Knows nothing of file names, caches or mounts.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np

from shardfs import compression, values
from shardfs.drivers.base import Grow, InMemory, NewRecord, Note, Record, ShardReader, Value, Verbatim
from shardfs.drivers.key_files import KeyFiles
from shardfs.errors import BadSettingError, DamagedShardError
from shardfs.model import Entry, Key, Version
from shardfs.storage.base import Storage
from shardfs.values import Buffer, Tree

ENDING = ".npz"
_DAMAGE = (ValueError, KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What zipfile and numpy raise for files that are none of theirs."""

Columns = dict[str, np.ndarray[Any, Any]]


class NpzShard(InMemory):
    """A shard in memory. Its raw bytes are its rows, one after the other: a record is a row."""

    first_sample = 0
    samples_through = None

    def __init__(self, columns: Columns) -> None:
        self.names = list(columns)
        self.row = _row(columns)
        self._samples = len(next(iter(columns.values()))) if columns else 0
        rows = np.zeros(self._samples, self.row)
        for at, column in enumerate(columns.values()):
            rows[str(at)] = column
        self.raw: Buffer = memoryview(rows.tobytes())

    def records(self) -> Iterator[Record]:
        for start in range(0, len(self.raw), self.row.itemsize):
            yield Record(start, start + self.row.itemsize, self.tree(start, start + self.row.itemsize))

    def tree(self, start: int, end: int) -> Tree:
        return self._tree(start, self.raw[start:end])

    def decode(self, record: Buffer) -> Tree:
        return self._tree(0, record)

    def _tree(self, start: int, record: Buffer) -> Tree:
        """Arrays are told by where they lie, numbers and texts by what they are."""
        whole = np.frombuffer(record, self.row)[0]
        tree: dict[str, Any] = {}
        for at, name in enumerate(self.names):
            dtype, offset = self.row.fields[str(at)][:2]  # type: ignore[index]
            if dtype.shape or dtype.kind not in "biufcU":
                tree[name] = values.Array(start + offset, dtype.base, dtype.shape)
            else:
                tree[name] = str(whole[str(at)]) if dtype.kind == "U" else whole[str(at)]
        return tree

    def sample(self, tree: Tree) -> Any:
        return values.to_python(tree, self.raw)

    def fields(self, record: Buffer) -> dict[str, Any]:
        """The values of one whole record."""
        return dict(values.to_python(self.decode(record), record))


class NpzDriver:
    """`.npz` files in a directory, at any depth."""

    name = "npz"
    writable = True
    appends = False
    reading = ""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.files = KeyFiles(storage, {ENDING: "zip"})
        self.problems: list[str] = []

    # --- which keys there are -------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        return [self.files.entry_of(listed) for listed in self.storage.list((ENDING,))]

    def changed(self) -> bool:
        return self.storage.changed()

    def entry(self, key: Key) -> Entry:
        return self.files.entry(key)

    def objects(self, entry: Entry) -> list[tuple[str, Version]]:
        return self.files.objects(entry)

    def mark(self, entry: Entry) -> str:
        return self.files.mark(entry)

    def estimate(self, entry: Entry) -> int:
        return entry.stored_bytes

    # --- reading --------------------------------------------------------------------------------------------------

    def load(self, entry: Entry, grow: Grow) -> NpzShard:
        with self.files.open(entry) as reader:
            stored = reader.read_at(0, reader.size)
        return NpzShard(_read(stored, grow))

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        return None  # columns lie one behind the other: no row can be had without all of them

    # --- writing --------------------------------------------------------------------------------------------------

    def write(self, key: Key, samples: Iterable[Any]) -> None:
        self.files.check_key(key)
        records = (Value(sample, str(number)) for number, sample in enumerate(samples))
        self.files.put(key, ENDING, _writer(records, None))

    def write_records(
        self, key: Key, records: Iterable[NewRecord], *, base: Entry | None, note: Note | None = None
    ) -> Entry:
        self.files.check_key(key)
        before = None if base is None else self.load(base, lambda _: None)
        return self.files.put_new(key, ENDING, _writer(records, before), base=base, note=note)

    def settle(self, key: Key, noted: str) -> Entry | None:
        return self.files.settle(key, noted)

    def remove(self, key: Key) -> None:
        self.files.remove(key)


def _row(columns: Columns) -> np.dtype[Any]:
    """What a row is made of; one of nothing still takes a byte, so that each record is somewhere."""
    fields = [(str(at), column.dtype, column.shape[1:]) for at, column in enumerate(columns.values())]
    row = np.dtype(fields)
    return row if row.itemsize else np.dtype([*fields, ("none", "u1")])


def _read(stored: bytes, grow: Grow) -> Columns:
    """The arrays of a file; nothing in it is run. DamagedShardError."""
    try:
        with zipfile.ZipFile(io.BytesIO(stored)) as file:
            size = sum(info.file_size for info in file.infolist())
        if size > compression.raw_limit("gz", len(stored)):
            raise ValueError(f"{len(stored)} bytes that say they are {size}")
        grow(2 * size)
        with np.load(io.BytesIO(stored), allow_pickle=False) as file:
            columns = {name: np.asarray(file[name]) for name in file.files}
    except _DAMAGE as error:
        raise DamagedShardError(f"no .npz file of plain arrays: {error}") from error
    lengths = {column.shape[:1] for column in columns.values()}
    if len(lengths) > 1 or () in lengths:
        raise DamagedShardError("arrays of different lengths, or of none: no rows")
    return columns


def _writer(records: Iterable[NewRecord], before: NpzShard | None) -> Callable[[BinaryIO], None]:
    """What puts the records into a file. BadSettingError for what no arrays can hold."""

    def write(file: BinaryIO) -> None:
        samples = []
        for record in records:
            if isinstance(record, Verbatim):
                assert before is not None
                samples.append(("", before.fields(record.data)))
            else:
                samples.append((record.name, record.sample))
        np.savez(file, allow_pickle=False, **_columns(samples))

    return write


def _columns(samples: list[tuple[str, Any]]) -> Columns:
    if not samples:
        return {}
    names = list(samples[0][1]) if isinstance(samples[0][1], dict) else []
    made: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in names}
    for name, sample in samples:
        if not isinstance(sample, dict) or sorted(sample) != sorted(names) or not names:
            raise BadSettingError(f"sample {name} has other fields than the first one, or none")
        for field, value in sample.items():
            array = np.asarray(value)
            if array.dtype.kind not in "biufcU" or (array.dtype.kind == "U" and array.tolist() != value):
                raise BadSettingError(f"sample {name}: field {field} is a {type(value).__name__}: no array holds it")
            if made[field] and not _alike(made[field][0], array):
                raise BadSettingError(f"sample {name}: field {field} has another type or shape than in the first one")
            made[field].append(array)
    return {field: np.stack(arrays) for field, arrays in made.items()}


def _alike(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    texts = one.dtype.kind == other.dtype.kind == "U"
    return one.shape == other.shape and (texts or bool(one.dtype == other.dtype))
