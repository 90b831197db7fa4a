"""Random access to the samples of one shard of MosaicML Streaming: what the readers of all formats have in common.

`Reader` is the library's class of that name, with its sizes and its ways of asking for samples; `FileReader` gets them
out of files, and keeps what it has loaded in a `Cache`. Knows nothing of index files, of keys, trees or mounts.
"""

from __future__ import annotations

import inspect
import operator
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, SupportsIndex

import numpy as np

from shardfs import config, values
from shardfs.drivers.streaming_files import ShardFiles, StreamingShard, is_missing
from shardfs.drivers.streaming_index import BadIndexError, Place, key_of, parse_shard
from shardfs.drivers.streaming_settings import bytes_to_int
from shardfs.errors import BadSettingError, BadStoreError, DamagedShardError, StaleShardError, StorageError
from shardfs.model import Key
from shardfs.storage.local import LocalStorage

_PARTS = ("meta", "data")
"""The library's order of a shard's files."""

_FILES = ("raw_meta", "raw_data", "zip_meta", "zip_data")
_DEFAULTS: Mapping[str, Any] = {
    "compression": None,
    "hashes": [],
    "size_limit": None,
    "zip_data": None,
    "zip_meta": None,
}
"""What an index need not say."""

_RETRIES = 3
"""Files that are replaced between being found and being opened are looked for again this often."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """What an index says of one file: its name below the split, its size in bytes, hex digests by hash name."""

    basename: str
    bytes: int
    hashes: Mapping[str, str]


class Cache:
    """Loaded shards of several readers, `limit` bytes of them: the one used longest ago is dropped first, and the
    newest kept whatever its size. Without a limit it is what mounts have, a quarter of the memory."""

    def __init__(self, limit: float | str | None = None) -> None:
        self.limit = config.default_budget() if limit is None else bytes_to_int(limit)
        self._shards: OrderedDict[Reader, StreamingShard] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def usage(self) -> int:
        """Bytes of memory that the loaded shards take."""
        with self._lock:
            return sum(shard.held for shard in self._shards.values())

    def get(self, reader: Reader) -> StreamingShard | None:
        """The shard of a reader if it is loaded; that counts as a use."""
        with self._lock:
            if reader in self._shards:
                self._shards.move_to_end(reader)
            return self._shards.get(reader)

    def keep(self, reader: Reader, shard: StreamingShard) -> None:
        with self._lock:
            self._shards[reader] = shard
            self._shards.move_to_end(reader)
            held = sum(kept.held for kept in self._shards.values())
            while held > self.limit and len(self._shards) > 1:
                held -= self._shards.popitem(last=False)[1].held

    def drop(self, reader: Reader) -> bool:
        """True if there was something to drop."""
        with self._lock:
            return self._shards.pop(reader, None) is not None


class Reader(ABC):
    """Random access to the samples of a shard.

    `dirname` is the data set's directory, `split` a directory in it with an index of its own (None or nothing: the
    root); `compression`, `hashes` and `samples` are the index's words; `size_limit` (bytes, or a text as `100kb`, None
    for none) is what the shard's writer went by, and only told here. BadSettingError (a ValueError) for a size that is
    none.
    """

    def __init__(
        self,
        dirname: str | os.PathLike[str],
        split: str | None,
        compression: str | None,
        hashes: Sequence[str],
        samples: int,
        size_limit: int | str | None,
    ) -> None:
        if size_limit:
            size_limit = bytes_to_int(size_limit)
            if size_limit < 0:
                raise BadSettingError(f"size_limit {size_limit}: no shard is that small")
        self.dirname = os.fspath(dirname)
        self.split = split or ""
        self.compression = compression
        self.hashes = list(hashes)
        self.samples = samples
        self.size_limit = size_limit
        self.file_pairs: list[tuple[FileInfo, FileInfo | None]] = []
        """The files of the shard, each raw and compressed."""

    @abstractmethod
    def decode_sample(self, data: bytes) -> Any:
        """The sample of a record: a dict of its columns. DamagedShardError."""

    @abstractmethod
    def get_sample_data(self, idx: int) -> bytes:
        """The record of a sample, as it is in the raw shard. IndexError, DamagedShardError, StorageError."""

    def get_item(self, idx: int) -> Any:
        """The sample of that number, from the end if it is negative. Errors as `get_sample_data`."""
        return self.decode_sample(self.get_sample_data(idx))

    def __getitem__(self, at: SupportsIndex | slice | Sequence[Any] | np.ndarray[Any, Any]) -> Any:
        """A sample; of a slice, a list or an array the list of what its members mean."""
        if isinstance(at, slice):
            return [self.get_item(idx) for idx in range(*at.indices(self.size))]
        if isinstance(at, list | tuple) or (isinstance(at, np.ndarray) and at.ndim):
            return [self[member] for member in at]
        return self.get_item(operator.index(at))  # type: ignore[arg-type]

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.samples

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[Any]:
        return (self.get_item(idx) for idx in range(self.size))

    def get_raw_size(self) -> int:
        """Bytes of the raw files, by the index."""
        return sum(raw.bytes for raw, _ in self.file_pairs)

    def get_zip_size(self) -> int | None:
        """Bytes of the compressed files, by the index; None if one has no compressed form."""
        sizes = [zipped.bytes for _, zipped in self.file_pairs if zipped is not None]
        return sum(sizes) if len(sizes) == len(self.file_pairs) else None

    def get_max_size(self) -> int:
        """Bytes of both, which a local copy takes while it is being decompressed."""
        return self.get_raw_size() + (self.get_zip_size() or 0)

    def get_persistent_size(self, keep_zip: bool) -> int:
        """Bytes that a local copy takes afterwards, with the compressed files or without."""
        return self.get_max_size() if self.compression and keep_zip else self.get_raw_size()

    def evict(self) -> int:
        """Drop what is loaded into memory, and nothing else: the data set's files stay. The bytes that this frees: the
        raw size of a shard that was loaded, else 0."""
        return 0

    def set_up_local(self, listing: set[str], safe_keep_zip: bool) -> int:
        """Bytes of the shard that are present, by a listing of all files below `dirname`/`split` (as paths that begin
        with these); 0 if it cannot be read from them. Compressed files beside raw ones count with `safe_keep_zip` only.
        Removes nothing, neither what is incomplete nor what seems superfluous: that may be all there is. What is
        brought into order is the cache: a loaded shard whose files are gone is dropped."""
        raw = [self._path(raw) in listing for raw, _ in self.file_pairs]
        zipped = [info is not None and self._path(info) in listing for _, info in self.file_pairs]
        if all(raw):
            return self.get_max_size() if all(zipped) and safe_keep_zip else self.get_raw_size()
        if not all(one or other for one, other in zip(raw, zipped, strict=True)):
            self.evict()
            return 0
        if all(zipped):
            return self.get_zip_size() or 0
        return sum(info.bytes for at, pair in enumerate(self.file_pairs) if (info := pair[not raw[at]]) is not None)

    def _path(self, info: FileInfo) -> str:
        return os.path.join(self.dirname, self.split, info.basename)

    def __repr__(self) -> str:
        names = ", ".join(self._path(raw) for raw, _ in self.file_pairs[-1:])
        return f"<{type(self).__name__} of {self.samples} samples in {names or self.dirname}>"


class FileReader(Reader):
    """A shard in files. `cache` is what its loaded form is kept in (without: one of its own), `validate_hash` what its
    files are checked against (`auto`: the fastest hash there is, the name of one that must be there, or `off`)."""

    format: ClassVar[str]

    def __init__(
        self,
        *common: Any,
        files: dict[str, Any],
        columns: dict[str, Any],
        cache: Cache | None,
        validate_hash: str | None,
    ) -> None:
        super().__init__(*common)
        for name, value in (*files.items(), *columns.items()):
            setattr(self, name, value)
        self.file_pairs = [(files[f"raw_{part}"], files[f"zip_{part}"]) for part in _PARTS if f"raw_{part}" in files]
        described = {name: None if info is None else asdict(info) for name, info in files.items()}
        obj = {
            **{"version": 2, "format": self.format, "compression": self.compression, "samples": self.samples},
            **described,
            **columns,
        }
        try:
            self._place: Place = parse_shard(obj, f"{self.split}/" if self.split else "")
        except BadIndexError as error:
            raise BadStoreError(str(error)) from error
        self._files = ShardFiles(LocalStorage(self.dirname), validate_hash)
        self._cache = Cache() if cache is None else cache
        self._loading = threading.Lock()

    @classmethod
    def from_json(cls, dirname: str | os.PathLike[str], split: str | None, obj: Mapping[str, Any], **how: Any) -> Any:
        """The reader of a shard as an index describes it. `how`: cache, validate_hash. BadStoreError,
        BadSettingError."""
        if obj.get("version") != 2 or obj.get("format") != cls.format:
            raise BadStoreError(f"a {obj.get('format')} shard of version {obj.get('version')}, not {cls.format} of 2")
        known = inspect.signature(cls).parameters
        words = {**_DEFAULTS, **{name: value for name, value in obj.items() if name not in ("dirname", "split")}}
        try:
            for name in _FILES:
                if words.get(name) is not None:
                    info = words[name]
                    words[name] = FileInfo(info["basename"], info["bytes"], info.get("hashes") or {})
            return cls(dirname, split, **{name: value for name, value in words.items() if name in known}, **how)
        except (TypeError, LookupError, AttributeError) as error:
            raise BadStoreError(f"no description of a {cls.format} shard ({error})") from error

    def get_sample_data(self, idx: int) -> bytes:
        """The record of a sample, as it is in the raw shard. IndexError, DamagedShardError, StorageError."""
        number = idx + self.size if idx < 0 else idx
        if not 0 <= number < self.size:
            raise IndexError(f"sample {idx} of {self.size}")
        shard = self._load()
        start, end = shard.bounds(number)
        return bytes(shard.raw[start:end])

    def decode_sample(self, data: bytes) -> Any:
        """The sample of a record: a dict of its columns, of JSON whatever the row says. Arrays are read-only; a cell
        that is not what its column says is its bytes. DamagedShardError."""
        view = memoryview(data).toreadonly()
        sample = values.to_python(self._place.columns.decode(view), view)
        if type(sample) is dict:
            return {name: value.data if type(value) is values.Pickle else value for name, value in sample.items()}
        return sample

    def evict(self) -> int:
        """See Reader."""
        return self.get_raw_size() if self._cache.drop(self) else 0

    def _load(self) -> StreamingShard:
        shard = self._cache.get(self)
        if shard is not None:
            return shard
        with self._loading:  # one load, however many ask
            shard = self._cache.get(self)
            if shard is None:
                shard = self._read()
                self._cache.keep(self, shard)
        return shard

    def _read(self) -> StreamingShard:
        key = Key(key_of(self._place.raw.name, self.format))
        for attempt in range(_RETRIES):
            entry = self._files.entry(self._place, key, 0, self._files.stat)
            if is_missing(entry.version):
                raise StorageError(f"{self!r} has neither its raw files nor its compressed ones")
            try:
                return self._files.read(self._place, entry.version, lambda _: None)
            except DamagedShardError as error:
                error.key = key
                raise
            except StaleShardError:
                if attempt == _RETRIES - 1:
                    raise
        raise AssertionError("unreachable")
