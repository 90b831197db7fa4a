"""All samples of a store as one table: JSON lines, or Parquet with typed columns.

A row is a sample: its key, its name, the paths and sizes of its files, and its light fields. Goes from shard to shard,
and holds a few thousand samples at a time. Synchronous, for workers. Knows nothing of where shards and their light
fields come from, nor of what is written to.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from shardfs import config
from shardfs.errors import BadSettingError, DamagedShardError, MissingSystemError
from shardfs.index import ShardTable
from shardfs.light_columns import MISSING, OMITTED, JsonText, Light, LightColumns
from shardfs.model import Entry

if TYPE_CHECKING:
    import pyarrow as pa

OWN = ("key", "sample", "paths", "sizes", "omitted")
"""Columns that every table has (the last one: names of fields whose values are too large to be kept here)."""

FORMATS = ("jsonl", "parquet")

NO_PYARROW = "samples.parquet needs pyarrow: pip install 'shardfs[parquet]'"


class Sink(Protocol):
    """What a table is written to."""

    def write(self, data: bytes, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Shown:
    """One key of a tree."""

    entry: Entry
    path: str
    """Of its directory, from the root of the tree."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the rows come from. Both functions raise what `Driver.load` raises."""

    keys: Sequence[Shown]
    table: Callable[[Entry], ShardTable]
    light: Callable[[Entry], LightColumns]
    step: Callable[[], None] = lambda: None
    """Called behind each key; what it raises ends the work."""
    damaged: Callable[[Entry, DamagedShardError], None] | None = None
    """Told of each key that is left out because it cannot be read; without it that is an error."""


def write(source: Source, format: str, sink: Sink) -> None:
    """Write a whole table. BadSettingError, MissingSystemError (no pyarrow), what the functions of `source` raise, and
    the sink."""
    if format == "parquet":
        _write_parquet(source, sink)
        return
    for block in _blocks(source):
        sink.write(block.lines())


@dataclass(frozen=True, slots=True)
class _Block:
    """Some samples of one key, in order."""

    key: str
    names: list[str]
    starts: list[int]
    """Where the files of each sample begin in the next two, and where the last one's end."""
    paths: list[str]
    sizes: list[int]
    light: LightColumns

    def lines(self) -> bytes:
        """As lines of JSON."""
        encode = json.encoder.encode_basestring
        begin = f'{{"key": {encode(self.key)}, "sample": '
        paths, sizes = list(map(encode, self.paths)), self.sizes
        parts = [
            [
                f'{begin}{encode(name)}, "paths": [{", ".join(paths[at:end])}], "sizes": {sizes[at:end]}'
                for name, (at, end) in zip(self.names, pairwise(self.starts), strict=True)
            ],
            *(self._members(name, shown) for name, shown in called(self.light.names).items()),
            _omitted_members(self.omitted()),
        ]
        text = "".join(["".join((*pieces, "}\n")) for pieces in zip(*parts, strict=True)])
        return text.encode("utf-8", "backslashreplace")

    def _members(self, name: str, shown: str) -> list[str]:
        """`, "name": value` for each sample that has the field, and nothing for others."""
        begin = f", {json.encoder.encode_basestring(shown)}: "
        codes, distinct = self.light.coded(name)
        texts = ["" if value is MISSING or value is OMITTED else begin + json_of(value) for value in distinct]
        return [texts[code] for code in codes.tolist()]

    def omitted(self) -> list[list[str] | None]:
        """For each sample the fields that are too large to be kept here, if there are any."""
        found: list[list[str] | None] = [None] * len(self.names)
        for name, shown in called(self.light.names).items():
            if "omitted" in self.light.kinds(name):
                for at, value in enumerate(self.light.column(name)):
                    if value is OMITTED:
                        found[at] = [*(found[at] or []), shown]
        return found


def _omitted_members(found: list[list[str] | None]) -> list[str]:
    return ["" if names is None else f', "omitted": {json.dumps(names, ensure_ascii=False)}' for names in found]


def called(names: Sequence[str]) -> dict[str, str]:
    """What light fields are called in a table: as they are, or with `~2` where the table has such a column."""
    taken, made = {*names, *OWN}, {}
    for name in names:
        shown, count = name, 2
        while shown in OWN or (shown != name and shown in taken):
            shown = f"{name}~{count}"
            count += 1
        taken.add(shown)
        made[name] = shown
    return made


def json_of(value: Light) -> str:
    """A light value as JSON; null for a float that is no number, as JSON has none."""
    if isinstance(value, JsonText):
        return str(value)
    if isinstance(value, str):
        return json.encoder.encode_basestring(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "null"
    return "null" if value is None else "true" if value is True else "false" if value is False else str(value)


def _blocks(source: Source) -> Iterator[_Block]:
    for shown in source.keys:
        entry = shown.entry
        try:
            table, light = source.table(entry), source.light(entry)
            if table.samples != light.samples:
                raise DamagedShardError("its light fields are of another number of samples")
        except DamagedShardError as error:
            if source.damaged is None:
                error.key = error.key or entry.key
                raise
            source.damaged(entry, error)
        else:
            for first in range(0, table.samples, config.TABLE_ROWS):
                yield _block(shown, table, light, first)
        source.step()


def _block(shown: Shown, table: ShardTable, light: LightColumns, first: int) -> _Block:
    last = min(first + config.TABLE_ROWS, table.samples)
    starts = table.columns["file_start"][first : last + 1].tolist()
    files = list(islice(table.listing(starts[0]), starts[-1] - starts[0]))
    begin = f"{shown.path}/"
    return _Block(
        shown.entry.key,
        [table.stem(sample).decode("utf-8") for sample in range(first, last)],
        [start - starts[0] for start in starts],
        [begin + name.decode("utf-8", "surrogateescape") for name, _, _ in files],
        [size for _, size, _ in files],
        light.taken(np.arange(first, last)),
    )


# --- Parquet ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Field:
    """What the values of a field are, in all shards."""

    kinds: set[str]
    largest: int = 0
    """The largest absolute value of its ints."""

    def type(self) -> str:
        """`bool`, `int`, `float`, `text` where all values are that, `json` where they are not."""
        kinds = self.kinds - {"missing", "null", "omitted"}
        if kinds == {"int", "float"} and self.largest <= 1 << 53:  # a double holds these exactly
            return "float"
        return kinds.pop() if len(kinds) == 1 else "json" if kinds else "text"


def _write_parquet(source: Source, sink: Sink) -> None:
    """Twice through all light fields: first for their types."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingSystemError(NO_PYARROW) from error
    fields, omitted = _fields_of(source)
    types = {name: field.type() for name, field in fields.items()}
    schema = _schema(pa, types, omitted)
    rows = 0
    batches: list[Any] = []
    with pq.ParquetWriter(_Whole(sink), schema, compression="zstd", compression_level=1) as writer:
        for block in _blocks(source):
            batches.append(_batch(pa, block, schema, types))
            rows += len(block.names)
            if rows >= config.TABLE_GROUP:
                writer.write_table(pa.Table.from_batches(batches, schema))
                batches, rows = [], 0
        if batches:
            writer.write_table(pa.Table.from_batches(batches, schema))


class _Whole:
    """A sink as pyarrow wants a file that is written from its beginning to its end."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.closed = False

    def write(self, data: Any) -> int:
        taken = bytes(data)
        self._sink.write(taken)
        return len(taken)

    def flush(self) -> None:
        """Nothing is held here."""

    def close(self) -> None:
        self.closed = True

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def _fields_of(source: Source) -> tuple[dict[str, _Field], bool]:
    """All light fields with what their values are, and whether any value was too large."""
    fields: dict[str, _Field] = {}
    omitted = False
    for shown in source.keys:
        try:
            light = source.light(shown.entry)
        except DamagedShardError:
            if source.damaged is None:
                raise
            continue  # told of when the rows are written
        for name in light.names:
            field = fields.setdefault(name, _Field(set()))
            field.kinds |= light.kinds(name)
            field.largest = max(field.largest, light.largest(name))
            omitted = omitted or "omitted" in field.kinds
        if len(fields) > config.TABLE_FIELDS:
            raise BadSettingError(
                f"more than {config.TABLE_FIELDS:,} different light fields: take the table as JSON lines"
            )
        source.step()
    return fields, omitted


def _schema(pa: Any, types: dict[str, str], omitted: bool) -> pa.Schema:
    own = [
        pa.field(
            "key", pa.string()
        ),  # no dictionary: pyarrow does not sort by one; Parquet stores it as one all the same
        pa.field("sample", pa.string()),
        pa.field("paths", pa.list_(pa.string())),
        pa.field("sizes", pa.list_(pa.int64())),
    ]
    kinds = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string(), "json": pa.string()}
    shown = called(list(types))
    light = [
        pa.field(_text(shown[name]), kinds[kind], metadata={"shardfs": "json"} if kind == "json" else None)
        for name, kind in types.items()
    ]
    return pa.schema([*own, *light, *([pa.field("omitted", pa.list_(pa.string()))] if omitted else [])])


def _batch(pa: Any, block: _Block, schema: Any, types: dict[str, str]) -> pa.RecordBatch:
    count, starts = len(block.names), pa.array(block.starts, pa.int32())
    columns: list[Any] = [
        pa.repeat(_text(block.key), count),
        pa.array(block.names, pa.string()),
        pa.ListArray.from_arrays(starts, pa.array(list(map(_text, block.paths)), pa.string())),
        pa.ListArray.from_arrays(starts, pa.array(block.sizes, pa.int64())),
    ]
    for name, kind in types.items():
        codes, distinct = block.light.coded(name)
        values = [_typed(value, kind) for value in distinct]
        columns.append(pa.array([values[code] for code in codes.tolist()], schema.field(len(columns)).type))
    if len(columns) < len(schema):
        columns.append(pa.array(block.omitted(), pa.list_(pa.string())))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _typed(value: Light, kind: str) -> Any:
    """A value for a column of one type."""
    if value is MISSING or value is OMITTED or value is None:
        return None
    if kind == "json":
        return _text(json_of(value))
    return float(value) if kind == "float" else _text(value) if kind == "text" else value


def _text(text: str) -> str:
    """A text that is UTF-8: JSON may hold lone surrogates, and names of files too."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
