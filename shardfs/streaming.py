"""MosaicML Streaming's readers: the samples of a data set from Python, shard by shard, by the library's own names.

    from shardfs.streaming import readers

    for reader in readers("/data/mds", "train"):
        print(reader.size, reader.get_raw_size(), reader[0], reader[-2:])

Classes, arguments, attributes and sizes are the library's. Three things are not: nothing in the data set is ever
written or deleted (the *cache* is the shards that are loaded into memory, and `evict` frees those); files are checked
against their sizes and hashes; and pictures and pickles are given as their bytes, the latter never run. A shard is
loaded whole when a sample of it is first wanted. Readers may be used by several threads at once.

Knows nothing of keys, trees or mounts.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from shardfs import config
from shardfs.drivers.streaming_index import BadIndexError, parse_index
from shardfs.drivers.streaming_names import INDEX, splits
from shardfs.drivers.streaming_settings import bytes_to_int
from shardfs.errors import BadStoreError, StorageError
from shardfs.storage.local import LocalStorage
from shardfs.streaming_readers import Cache, FileInfo, FileReader, Reader

__all__ = [
    "CSVReader",
    "Cache",
    "FileInfo",
    "JSONReader",
    "MDSReader",
    "Reader",
    "TSVReader",
    "XSVReader",
    "bytes_to_int",
    "reader_from_json",
    "readers",
]


class MDSReader(FileReader):
    """A shard of MDS. `column_sizes` has None for columns of no fixed size."""

    format = "mds"
    column_names: list[str]
    column_encodings: list[str]
    column_sizes: list[int | None]
    raw_data: FileInfo
    zip_data: FileInfo | None

    def __init__(
        self,
        dirname: str | os.PathLike[str],
        split: str | None,
        column_encodings: list[str],
        column_names: list[str],
        column_sizes: list[int | None],
        compression: str | None,
        hashes: Sequence[str],
        raw_data: FileInfo,
        samples: int,
        size_limit: int | str | None,
        zip_data: FileInfo | None,
        *,
        cache: Cache | None = None,
        validate_hash: str | None = "auto",
    ) -> None:
        columns = {"column_encodings": column_encodings, "column_names": column_names, "column_sizes": column_sizes}
        files = {"raw_data": raw_data, "zip_data": zip_data}
        common = (dirname, split, compression, hashes, samples, size_limit)
        super().__init__(*common, files=files, columns=columns, cache=cache, validate_hash=validate_hash)


class JSONReader(FileReader):
    """A shard of JSON lines. `columns` are names and encodings (`str`, `int`, `float`)."""

    format = "json"
    columns: dict[str, str]
    newline: str
    raw_data: FileInfo
    raw_meta: FileInfo
    zip_data: FileInfo | None
    zip_meta: FileInfo | None

    def __init__(
        self,
        dirname: str | os.PathLike[str],
        split: str | None,
        columns: dict[str, str],
        compression: str | None,
        hashes: Sequence[str],
        newline: str,
        raw_data: FileInfo,
        raw_meta: FileInfo,
        samples: int,
        size_limit: int | str | None,
        zip_data: FileInfo | None,
        zip_meta: FileInfo | None,
        *,
        cache: Cache | None = None,
        validate_hash: str | None = "auto",
    ) -> None:
        said = {"columns": columns, "newline": newline}
        files = {"raw_data": raw_data, "raw_meta": raw_meta, "zip_data": zip_data, "zip_meta": zip_meta}
        common = (dirname, split, compression, hashes, samples, size_limit)
        super().__init__(*common, files=files, columns=said, cache=cache, validate_hash=validate_hash)


class XSVReader(FileReader):
    """A shard of rows whose cells stand between separators."""

    format = "xsv"
    column_names: list[str]
    column_encodings: list[str]
    newline: str
    separator: str
    raw_data: FileInfo
    raw_meta: FileInfo
    zip_data: FileInfo | None
    zip_meta: FileInfo | None

    def __init__(
        self,
        dirname: str | os.PathLike[str],
        split: str | None,
        column_encodings: list[str],
        column_names: list[str],
        compression: str | None,
        hashes: Sequence[str],
        newline: str,
        raw_data: FileInfo,
        raw_meta: FileInfo,
        samples: int,
        separator: str,
        size_limit: int | str | None,
        zip_data: FileInfo | None,
        zip_meta: FileInfo | None,
        *,
        cache: Cache | None = None,
        validate_hash: str | None = "auto",
    ) -> None:
        said = {
            "column_encodings": column_encodings,
            "column_names": column_names,
            "newline": newline,
            "separator": separator,
        }
        files = {"raw_data": raw_data, "raw_meta": raw_meta, "zip_data": zip_data, "zip_meta": zip_meta}
        common = (dirname, split, compression, hashes, samples, size_limit)
        super().__init__(*common, files=files, columns=said, cache=cache, validate_hash=validate_hash)


class _OwnSeparator(XSVReader):
    """A format whose name says what the separator is, so that the index does not."""

    def __init__(
        self,
        dirname: str | os.PathLike[str],
        split: str | None,
        column_encodings: list[str],
        column_names: list[str],
        compression: str | None,
        hashes: Sequence[str],
        newline: str,
        raw_data: FileInfo,
        raw_meta: FileInfo,
        samples: int,
        size_limit: int | str | None,
        zip_data: FileInfo | None,
        zip_meta: FileInfo | None,
        **how: Any,
    ) -> None:
        rows = (column_encodings, column_names, compression, hashes, newline, raw_data, raw_meta, samples)
        super().__init__(dirname, split, *rows, self.separator, size_limit, zip_data, zip_meta, **how)


class CSVReader(_OwnSeparator):
    """A shard of rows with commas, without any quoting."""

    format = "csv"
    separator = ","


class TSVReader(_OwnSeparator):
    """A shard of rows with tabs, without any quoting."""

    format = "tsv"
    separator = "\t"


_READERS: dict[str, type[FileReader]] = {
    kind.format: kind for kind in (MDSReader, JSONReader, XSVReader, CSVReader, TSVReader)
}


def reader_from_json(
    dirname: str | os.PathLike[str], split: str | None, obj: Mapping[str, Any], **how: Any
) -> FileReader:
    """The reader of a shard as an index describes it, of any format. `how`: cache, validate_hash. BadStoreError."""
    kind = _READERS.get(str(obj.get("format")))
    if kind is None:
        raise BadStoreError(f"a shard of the unknown format {obj.get('format')!r}")
    made: FileReader = kind.from_json(dirname, split, obj, **how)
    return made


def readers(
    dirname: str | os.PathLike[str],
    split: str | None = None,
    *,
    validate_hash: str | None = "auto",
    cache_limit: int | str | None = None,
) -> list[FileReader]:
    """A reader for each shard of a split, in its order; `split` is a directory with an index of its own (None: the
    root).

    Together they hold `cache_limit` bytes of loaded shards (or a text as `2gb`; without it a quarter of the memory),
    and one at least. `validate_hash`: `auto` checks files against the fastest hash there is, a name demands that hash,
    `off` checks none. BadStoreError for an index that is missing or broken, StorageError.
    """
    storage = LocalStorage(dirname)
    prefix = f"{split.rstrip('/')}/" if split else ""
    try:
        data = storage.read(prefix + INDEX, config.STREAMING_INDEX)
        parse_index(data, prefix)
    except BadIndexError as error:
        raise BadStoreError(f"{prefix}{INDEX}: {error}") from error
    except StorageError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        there = ", ".join(repr(found.rstrip("/")) for found in splits(storage)) or "none"
        raise BadStoreError(f"no {prefix}{INDEX} in {storage.root}; splits there are: {there}") from error
    cache = Cache(cache_limit)
    shards = json.loads(data)["shards"]
    how = {"cache": cache, "validate_hash": validate_hash}
    return [reader_from_json(dirname, prefix.rstrip("/"), shard, **how) for shard in shards]
