"""mltraq's interface to its datastore, without mltraq: `DataStore` and `DataStoreIO`.

What is written here the library reads, and the other way round. Where the library takes the place of the datastore from
an option, each call here takes it as `datastore`: a directory, or a `file:///` url as the library has it (relative to
the working directory, absolute with four slashes); without it, `mltraq.datastore` in the working directory. Nothing
that a file says is ever run, and no url leads out of the datastore.

    ds = DataStore()
    ds.a = np.zeros(10)
    url = ds.to_url("self_managed/first")
    DataStore.from_url(url).a

Source of the format: what mltraq 0.1.165 writes and reads, found by running it.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import shutil
import stat
import uuid
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from shardfs import config, pickle_spans
from shardfs.drivers import mltraq_datapak as datapak
from shardfs.drivers.mltraq_datastore import URL, check_prefix, find
from shardfs.errors import BadSettingError, MissingExtraError, MissingFileError, StorageError
from shardfs.pickle_spans import PickleRefusedError, Steps
from shardfs.storage.local import LocalStorage
from shardfs.values import Blob

DEFAULT_DATASTORE = "mltraq.datastore"
DEFAULT_PREFIX = "undefined"

Datastore = str | os.PathLike[str] | None


class Bunch(OrderedDict[Any, Any]):
    """A dictionary whose values can be accessed as attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)!r})"


class DataStore(Bunch):
    """A dictionary whose contents are stored outside of what holds it, where only a url is left of it.

    It may hold others, which are stored in files of their own.
    """

    def to_url(self, relative_path_prefix: str | None = None, *, datastore: Datastore = None) -> str:
        """Store the contents as one file, and return the url that leads to it. Errors as
        DataStoreIO.serialize_write."""
        return DataStoreIO.serialize_write(dict(self), relative_path_prefix, datastore=datastore).url

    @staticmethod
    def from_url(url: str, *, datastore: Datastore = None) -> DataStore:
        """The DataStore that a url leads to. Errors as DataStoreIO.read_deserialize."""
        return DataStore(DataStoreIO(url, datastore=datastore).read_deserialize(dict))


class DataStoreIO:
    """One file of a datastore, by its url."""

    __slots__ = ("_datastore", "url")

    def __init__(self, url: str, *, datastore: Datastore = None) -> None:
        self.url = url
        self._datastore = datastore

    def __repr__(self) -> str:
        return f"DataStoreIO({self.url!r})"

    @classmethod
    def write(cls, data: bytes, relative_path_prefix: str | None = None, *, datastore: Datastore = None) -> DataStoreIO:
        """Store bytes as they are, in a new file in the directory `relative_path_prefix` of the datastore.

        All or nothing, and durable. BadSettingError for a prefix that is the id of an experiment, whose directory is
        wiped whenever it is persisted, or that would lead out of the datastore; StorageError.
        """
        prefix = check_prefix(DEFAULT_PREFIX if relative_path_prefix is None else relative_path_prefix)
        if not isinstance(data, bytes | bytearray | memoryview):
            raise BadSettingError(f"a {type(data).__name__} is no bytes: use serialize_write")
        name = f"{prefix}/{uuid.uuid4().hex}"
        _storage(datastore).put(name, lambda file: _put(file, data))
        return cls(URL + name, datastore=datastore)

    @classmethod
    def serialize_write(
        cls, obj: Any, relative_path_prefix: str | None = None, *, datastore: Datastore = None
    ) -> DataStoreIO:
        """Store a value: None, bools, numbers, text, bytes, lists, tuples, dicts, sets, arrays, UUIDs, datetime64 of
        numpy, DataFrames, Series and Arrow tables, and DataStores, each in a file of its own. As `write`;
        BadSettingError also for what has no form, before anything is stored."""
        check_prefix(DEFAULT_PREFIX if relative_path_prefix is None else relative_path_prefix)

        def keep(value: Any) -> str | None:
            if not isinstance(value, DataStore):
                return None
            return value.to_url(relative_path_prefix, datastore=datastore)

        datapak.serialise(obj, lambda value: URL if isinstance(value, DataStore) else None)
        return cls.write(datapak.serialise(obj, keep), relative_path_prefix, datastore=datastore)

    def read(self) -> bytes:
        """The bytes of the file. MissingFileError (a FileNotFoundError), BadSettingError for a url that leads out of
        the datastore, StorageError."""
        storage = _storage(self._datastore)
        try:
            file = find(storage, self.url)
        except datapak.UnresolvedError as error:
            if "no such" in str(error):
                raise MissingFileError(f"{self.url}: {error}") from error
            raise BadSettingError(f"{self.url}: {error}") from error
        return storage.read(file.name, max(file.size, 1))

    def read_deserialize(self, expected_type: type | None = None) -> Any:
        """The value that was stored. As `read`; BadSettingError for bytes that are no serialised value, or one of
        another type than expected; MissingExtraError for pandas' and Arrow's without these packages."""
        value = _Reading(self._datastore).value_of(self.url, 0)
        if expected_type is not None and not isinstance(value, expected_type):
            raise BadSettingError(f"{self.url} holds a {type(value).__name__}, not a {expected_type.__name__}")
        return value

    @classmethod
    def delete(cls, relative_path_prefix: str, *, datastore: Datastore = None) -> None:
        """Remove the directory of a prefix and all that is in it; nothing where there is none. BadSettingError for a
        prefix as in `write`, StorageError."""
        path = _storage(datastore).root
        for part in check_prefix(relative_path_prefix).split("/"):
            path /= part
            try:
                if not stat.S_ISDIR(os.lstat(path).st_mode):
                    raise StorageError(f"{path} is no directory", errno.ENOTDIR)
            except FileNotFoundError:
                return
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise StorageError(f"removing {path}: {error.strerror}", error.errno or errno.EIO) from error


def _put(file: Any, data: bytes) -> None:
    file.write(data)


def _storage(datastore: Datastore) -> LocalStorage:
    text = os.fspath(DEFAULT_DATASTORE if datastore is None else datastore)
    if "://" in text:
        if not text.startswith(URL):
            raise BadSettingError(f"{text}: a datastore is a directory or a {URL} url")
        text = text[len(URL) :]
    return LocalStorage(Path(text).expanduser())


class _Reading:
    """Files of a datastore as the values that they stand for, one and all that it leads to: with one limit for all of
    them, as a file may refer to itself."""

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore
        self._steps = Steps(config.TOKEN_FLOOR)
        self._seen: set[str] = set()

    def value_of(self, url: str, depth: int) -> Any:
        data = DataStoreIO(url, datastore=self._datastore).read()
        try:
            data = datapak.plain(data, max(config.BOMB_FLOOR, len(data) * config.BOMB_RATIO["gz"]))
            if url not in self._seen:
                self._seen.add(url)
                self._steps.left += config.TOKENS_PER_RAW_BYTE * len(data)
            raw = memoryview(data)
            return self.value(raw, pickle_spans.read(raw, 0, len(data), self._steps), depth)
        except PickleRefusedError as error:
            raise BadSettingError(f"{url} holds no serialised value: {error}") from error

    def value(self, raw: memoryview, value: Any, depth: int) -> Any:
        self._steps.value(value, depth)
        kind = type(value)
        if kind is Blob:
            return value.value(raw)
        if kind in (list, tuple):
            return kind(self.value(raw, item, depth + 1) for item in value)
        if kind is not dict:
            return value
        if datapak.MAGIC in value:
            return self._packed(raw, value[datapak.MAGIC], value.get("value"), depth)
        return {key: self.value(raw, item, depth + 1) for key, item in value.items()}

    def _packed(self, raw: memoryview, kind: Any, value: Any, depth: int) -> Any:
        if kind == datapak.DATA_STORE and isinstance(value, str):
            return self._store(value, depth)
        if kind == datapak.ARCHIVE_STORE and isinstance(value, str):
            return DataStoreIO(value, datastore=self._datastore).read()
        if kind == "mltraq.Bunch-0" and isinstance(value, dict):
            return Bunch(self.value(raw, value, depth + 1))
        if kind == "mltraq.Sequence-0":
            return self.value(raw, value, depth + 1)
        if kind == "numpy.datetime64-0" and isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
            return np.datetime64(value, "us")
        if kind == "uuid.UUID-0" and isinstance(value, str):
            try:
                return uuid.UUID(hex=value)
            except ValueError as error:
                raise PickleRefusedError(f"a UUID that is none: {value[:80]!r}") from error
        if type(value) is not Blob:
            raise PickleRefusedError(f"{str(kind)[:80]!r}, which is no kind of value")
        data = value.value(raw)
        return data if kind == "mltraq.Archive-0" else _array_or_frame(str(kind), data)

    def _store(self, url: str, depth: int) -> DataStore:
        content = self.value_of(url, depth + 1)
        if not isinstance(content, dict):
            raise PickleRefusedError(f"a DataStore that is a {type(content).__name__}")
        return DataStore(content)


def _array_or_frame(kind: str, data: bytes) -> Any:
    if kind == "numpy.ndarray-0":
        if type(datapak.array(memoryview(data), 0, len(data))) is Blob:
            raise PickleRefusedError("an array whose bytes are none")
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False, max_header_size=config.NPY_HEAD)
    if kind not in ("pandas.DataFrame-0", "pandas.Series-0", "pyarrow.Table-0"):
        raise PickleRefusedError(f"{kind[:80]!r}, which is no kind of value")
    try:
        feather: Any = importlib.import_module("pyarrow.feather")
        if kind == "pyarrow.Table-0":
            return feather.read_table(io.BytesIO(data))
        importlib.import_module("pandas")
    except ImportError as error:
        raise MissingExtraError(f"a value of {kind} needs pandas and pyarrow: pip install pandas pyarrow") from error
    frame = feather.read_feather(io.BytesIO(data))
    return frame if kind == "pandas.DataFrame-0" else frame.iloc[:, 0]


__all__ = ["Bunch", "DataStore", "DataStoreIO"]
