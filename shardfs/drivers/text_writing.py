"""JSON, CSV, TSV and XSV, the text formats of MosaicML Streaming: samples to rows, rows to shards of two files. The
inverse of text_rows.py.

Knows nothing of index files or of what names are free; files are written by streaming_writing.py. Source of all format
facts: what mosaicml-streaming 0.13.0 writes and reads, found by running it. What its reader would not give back as it
was is refused: the formats have no quoting.
"""

from __future__ import annotations

import errno
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from shardfs import config
from shardfs.drivers.base import Cell, NewRecord, Verbatim
from shardfs.drivers.spooled import SpooledRecords
from shardfs.drivers.streaming_writing import TOO_ALIKE, Described, Publication
from shardfs.drivers.text_columns import KINDS, encoding_of, is_a
from shardfs.drivers.text_rows import Columns, columns, least_cost, row_cost, value_limit
from shardfs.errors import BadSettingError, StorageError

_REFUSED = (ValueError, TypeError, OverflowError)
_encoder = json.JSONEncoder(sort_keys=True)
"""Made once, where json.dumps would make one for each row."""


def write_shards(
    publication: Publication,
    kind: str,
    records: Iterable[NewRecord],
    template: Described | None,
    limit: int | None,
    stems: Iterator[str],
    given: Mapping[str, str] | None = None,
) -> None:
    """Write all records as shards of that format with the settings of `template` (None, or one without columns: those
    of a new data set), a new one where the rows would exceed `limit` bytes, called by `stems` in turn. Columns are
    those `given` (encodings by name), else the template's, else made for the first record. BadSettingError,
    StorageError: EFBIG for 4 GiB in one."""
    publication.begin()
    records = iter(records)
    first = next(records, None)
    if first is None:
        raise BadSettingError("no samples: a shard without any is nothing that the library can read")
    shard = _settings(kind, template, first, given)
    made = _columns(shard)
    publication.storage.make_directory(publication.split)
    with ExitStack() as stack:
        rows = stack.enter_context(_Rows(made, publication.scratch))
        for record in itertools.chain((first,), records):
            data = record.data if isinstance(record, Verbatim) else row(made, record.sample, record.name)
            if limit is not None and len(rows) and rows.size + len(data) > limit:
                _store(publication, rows, shard, made, stems)
                rows.__exit__()
                rows = stack.enter_context(_Rows(made, publication.scratch))
            if len(made.header) + rows.size + len(data) > config.MDS_SHARD:
                raise StorageError(f"4 GiB or more in one {kind} shard, which has no room for them", errno.EFBIG)
            rows.add(data)
        _store(publication, rows, shard, made, stems)


def _store(publication: Publication, rows: _Rows, shard: Described, made: Columns, stems: Iterator[str]) -> None:
    described: Described = {**shard, "samples": len(rows)}
    meta = rows.positions() + json.dumps(shard, sort_keys=True).encode("ascii")
    size = len(made.header) + rows.size

    def put(stem: str) -> tuple[str, tuple[Described, Described | None]]:
        name = f"{stem}.{made.format}"
        return name, publication.put(name, rows.pieces(), size, shard)

    basename, (described["raw_data"], described["zip_data"]) = publication.put_free(stems, put)
    described["raw_meta"], described["zip_meta"] = publication.put(f"{basename}.meta", (meta,), len(meta), shard)
    stored = sum((described[f"zip_{part}"] or described[f"raw_{part}"])["bytes"] for part in ("data", "meta"))
    if max(rows.cost, least_cost(made, len(rows), size)) > value_limit(stored):
        raise BadSettingError(TOO_ALIKE)
    publication.made.append(described)


class _Rows:
    """The rows of a shard as they come. Closed at the end of a `with` block."""

    def __init__(self, made: Columns, directory: str | None) -> None:
        self._columns = made
        self._header = made.header
        self._rows = SpooledRecords(directory)
        self.cost = 0
        """What reading them costs, see text_rows."""

    def __len__(self) -> int:
        return len(self._rows)

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *error: object) -> None:
        self._rows.close()

    @property
    def size(self) -> int:
        """Bytes of the rows alone."""
        return self._rows.size

    def add(self, data: bytes | memoryview) -> None:
        self._rows.add(data)
        self.cost += row_cost(self._columns, bytes(data))

    def pieces(self) -> Iterator[bytes]:
        """The file of rows from its beginning, a megabyte at a time."""
        if self._header:
            yield self._header
        yield from self._rows.pieces()

    def positions(self) -> bytes:
        """The beginning of the other file."""
        return self._rows.positions(len(self._header))


# --- settings -----------------------------------------------------------------------------------------------------


def _settings(kind: str, template: Described | None, first: NewRecord, given: Mapping[str, str] | None) -> Described:
    """What the index and the file of positions say of a new shard, besides its files."""
    old = template or {}
    shard: Described = {
        "compression": old.get("compression"),
        "format": kind,
        "hashes": sorted(old.get("hashes") or []),
        "newline": old.get("newline", "\n"),
        "size_limit": old.get("size_limit"),
        "version": 2,
    }
    if kind == "json":
        return {**shard, "columns": dict(given or old.get("columns") or _inferred(first))}
    if kind == "xsv":
        if "separator" not in old:
            raise BadSettingError("a new data set of xsv needs a separator: say it with the format, as xsv:||")
        shard["separator"] = old["separator"]
    if "column_names" in old and not given:
        return {**shard, **{part: old[part] for part in ("column_names", "column_encodings")}}
    found = dict(given or _inferred(first))
    return {**shard, "column_names": list(found), "column_encodings": list(found.values())}


def _columns(shard: Described) -> Columns:
    if shard["format"] == "json":
        if shard["newline"].strip(" \t\r\n"):
            raise BadSettingError(
                f"rows of JSON that end in {shard['newline']!r} could not be read, by the library neither"
            )
        declared = shard["columns"]
        return columns("json", tuple(declared), tuple(declared.values()), None, shard["newline"])
    made = columns(
        shard["format"],
        tuple(shard["column_names"]),
        tuple(shard["column_encodings"]),
        shard.get("separator"),
        shard["newline"],
    )
    for name in made.names:
        if made.separator in name or made.newline in name:
            raise BadSettingError(
                f"column {name!r} has a separator or a newline in its name, which {made.format} has not"
            )
    return made


def _inferred(first: NewRecord) -> dict[str, str]:
    """The columns of a new data set, by its first sample. BadSettingError."""
    if isinstance(first, Verbatim):
        raise BadSettingError("stored records without the columns of their data set")
    sample, name = first.sample, first.name
    if not isinstance(sample, Mapping) or not sample or not all(isinstance(field, str) for field in sample):
        raise BadSettingError(f"sample {name} has no fields named by texts, which would be its data set's columns")
    made = {}
    for field in sorted(sample):
        encoding = encoding_of(sample[field])
        if encoding is None:
            kind = type(sample[field]).__name__
            raise BadSettingError(f"sample {name}: field {field} is a {kind}, and columns are text, int or float")
        made[field] = encoding
    return made


# --- rows ---------------------------------------------------------------------------------------------------------


def row(made: Columns, sample: Any, name: str) -> bytes:
    """The row of a sample, whose fields must be exactly the columns. BadSettingError that says which sample, which
    column and why."""
    if not isinstance(sample, Mapping):
        raise BadSettingError(f"sample {name} is a {type(sample).__name__}: a row is made of columns")
    missing = [column for column in made.names if column not in sample]
    odd = [field for field in sample if field not in made.names]
    if missing or odd:
        what = "no " + ", ".join(missing[:5]) if missing else "a field " + ", ".join(map(repr, odd[:5]))
        raise BadSettingError(f"sample {name} has {what}, its data set has the columns {', '.join(made.names)}")
    values = {}
    for column, encoding in zip(made.names, made.encodings, strict=True):
        try:
            values[column] = _value(made, encoding, sample[column])
        except _REFUSED as error:
            raise BadSettingError(f"sample {name}: column {column} is {encoding}: {str(error)[:300]}") from error
    if made.format == "json":
        text = _encoder.encode(values)
    else:
        text = made.separator.join(values.values())
        if text.split(made.separator) != list(values.values()) and values:
            raise BadSettingError(f"sample {name}: a value that ends as a separator begins would be read as another")
    return (text + made.newline).encode("utf-8")


def _value(made: Columns, encoding: str, value: Any) -> Any:
    """The value as JSON writes it, or its text in XSV. ValueError."""
    if isinstance(value, Cell):
        raise ValueError("a stored cell of another format")
    if encoding not in KINDS:
        raise ValueError("an encoding that is not known here")
    kinds = (*KINDS["float"], *KINDS["int"]) if encoding == "float" else KINDS[encoding]
    if not is_a(value, kinds):
        raise ValueError(f"the value is {type(value).__name__} {str(value)[:60]!r}")
    make: Callable[[Any], Any] = {"str": str, "int": int, "float": float}[encoding]
    plain = make(value)
    if encoding == "float" and plain != value and plain == plain:
        raise ValueError(f"{value} is no float")
    if made.format == "json":
        return plain
    text = str(plain)
    if made.separator in text or made.newline in text:
        raise ValueError(f"{text[:60]!r} has a separator or a newline in it, for which {made.format} has no escape")
    text.encode("utf-8")  # a lone surrogate has no UTF-8
    return text
