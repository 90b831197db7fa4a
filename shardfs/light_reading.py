"""The light fields of a shard out of the shard: from each sample's value, or from its files.

What is light is what stands in the `.json` of a sample (or in its `.txt` files), and, where samples are files by
themselves, the small ones whose names say what they hold. Knows nothing of keys, indexes, caches or mounts.
"""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from shardfs import config, layout, light_json, names, values
from shardfs.drivers.base import ShardReader
from shardfs.errors import DamagedShardError
from shardfs.index import RENDER, ShardTable
from shardfs.light_columns import (
    IS_FALSE,
    IS_FLOAT,
    IS_INT,
    IS_JSON,
    IS_NULL,
    IS_OMITTED,
    IS_TEXT,
    IS_TRUE,
    MISSING,
    OMITTED,
    Column,
    JsonText,
    Light,
    LightColumns,
    Numbers,
)
from shardfs.strings import Strings
from shardfs.values import Buffer, Tree

_LARGEST = 1 << 63
_PLAIN = frozenset((type(None), str, bool, int, float))

_NUMBERS = frozenset(("cls", "cls2", "class", "count", "index", "inx", "id"))
_TEXTS = frozenset(("txt", "text", "transcript"))
_JSONS = frozenset(("json", "jsn"))
"""Members of WebDataset shards by the end of their names, as webdataset 0.2's basic decoders take them."""


def of_reader(table: ShardTable, reader: ShardReader, arrays: str) -> LightColumns:
    """The light fields of the samples of a table, wherever the bytes of its shard are. DamagedShardError, and the
    errors of `fetch`.

    What is light is in a file that is rendered. A sample without one has none, but for those that are files by
    themselves, which are taken by their names.
    """
    builder = Builder(arrays)
    columns = table.columns
    records = _Records(table, reader)
    rendered = np.concatenate(([0], np.cumsum(columns["kind"] == RENDER)))[columns["file_start"]]
    by_name = {number: name for number, name in enumerate(_names(table)) if name is not None}
    for sample, some in enumerate(np.diff(rendered).tolist()):
        if some:
            record = records[sample]
            builder.add(reader.decode(record), record)
        else:
            builder.add_files(_members(table, sample, reader, by_name) if by_name else {})
    return builder.columns()


class _Records:
    """The records of a shard, fetched some at a time: each fetch may be a request to a store far away."""

    def __init__(self, table: ShardTable, reader: ShardReader) -> None:
        self._starts, self._ends = table.columns["record_start"].tolist(), table.columns["record_end"].tolist()
        self._reader = reader
        self._begin = self._end = 0
        self._piece: Buffer = memoryview(b"")

    def __getitem__(self, sample: int) -> Buffer:
        start, end = self._starts[sample], self._ends[sample]
        if not self._begin <= start <= end <= self._end:
            stop = end
            for next_end in islice(self._ends, sample + 1, None):
                if not stop <= next_end <= start + config.LIGHT_FETCH:
                    break
                stop = next_end
            self._piece = self._reader.fetch(start, stop)
            self._begin, self._end = start, stop
        return self._piece[start - self._begin : end - self._begin]


def _names(table: ShardTable) -> Iterator[str | None]:
    """The field that a file of each of a table's suffixes holds; None where it is no light one."""
    for suffix in table.suffixes:
        name = names.unescape(suffix.decode("utf-8", "surrogateescape"))
        light = name.rpartition(".")[2] in _NUMBERS | _TEXTS | _JSONS and b"/" not in suffix
        yield name if light else None


def _members(table: ShardTable, sample: int, reader: ShardReader, by_name: dict[int, str]) -> dict[str, Light]:
    """The light ones among a sample's files, and what its `json` says; a file goes before what that calls the same.

    A file that is not what its name says is left out, as it is of no use to whoever goes by that.
    """
    found: dict[str, Light] = {}
    said: dict[str, Light] = {}
    files = table.columns["file_start"]
    for file in range(int(files[sample]), int(files[sample + 1])):
        name = by_name.get(int(table.columns["suffix"][file]))
        run = None if name is None else table.slice_of(file)
        if name is None or run is None:
            continue
        ending = name.rpartition(".")[2]
        if run[2] > (config.LIGHT_JSON if ending in _JSONS else config.LIGHT_VALUE):
            found[name] = OMITTED
            continue
        try:
            text = bytes(reader.fetch(run[1], run[1] + run[2])).decode("utf-8")
            if ending in _NUMBERS:
                found[name] = _number(text)
            elif ending in _TEXTS:
                found[name] = text
            else:
                value = json.loads(text)
                if name in _JSONS and isinstance(value, dict):
                    said |= {key: _of_json(member) for key, member in value.items()}
                else:
                    found[name] = _of_json(value)
        except (ValueError, RecursionError):
            continue
    return {**{key: value for key, value in said.items() if key not in found}, **found}


class _Growing:
    """A column as it grows: unboxed arrays only, and each text once."""

    def __init__(self, samples: int) -> None:
        self.kinds = array("B", bytes(samples))
        self.ints = array("q")
        self.floats = array("d")
        self.codes = array("I")
        self.texts: dict[tuple[int, bytes], int] = {}

    def column(self, samples: int) -> Column:
        self.kinds.extend(bytes(samples - len(self.kinds)))
        data = b"".join(text for _, text in self.texts)
        starts = np.zeros(len(self.texts) + 1, np.uint64)
        np.cumsum([len(text) for _, text in self.texts], out=starts[1:])
        return Column(
            np.frombuffer(self.kinds, np.uint8).copy(),
            _narrowed(np.frombuffer(self.ints, np.int64), ("|i1", "<i2", "<i4")),
            np.frombuffer(self.floats, np.float64).copy(),
            _narrowed(np.frombuffer(self.codes, np.uint32), ("|u1", "<u2")),
            Strings(data, starts),
        )


def _narrowed(numbers: Numbers, dtypes: Iterable[str]) -> Numbers:
    """In the first type that holds them all."""
    if len(numbers):
        least, most = int(numbers.min()), int(numbers.max())
        for dtype in dtypes:
            if np.iinfo(dtype).min <= least and most <= np.iinfo(dtype).max:
                return numbers.astype(dtype)
    return numbers.copy()


class _HeavyInsideError(Exception):
    """A light value holds a heavy one: only the layout knows how its file is called."""


class Builder:
    """Columns as they grow, a sample at a time."""

    def __init__(self, arrays: str) -> None:
        self._arrays = arrays
        self._growing: dict[str, _Growing] = {}
        self._samples = 0
        self._bytes = 0
        self._left_out: set[str] = set()

    def add(self, tree: Tree, raw: Buffer) -> None:
        """The next sample; `raw` is what the positions in its tree count in. DamagedShardError."""
        if type(tree) is dict:
            for key, value in tree.items():
                if type(key) is not str:
                    continue
                if type(value) in _PLAIN:  # what nearly all are
                    self._add(key, value)
                elif not values.is_file(value):
                    self._add(key, self._light(key, value, tree, raw))
        elif not values.is_file(tree):
            self._add(layout.VALUE, self._light(layout.VALUE, tree, tree, raw))
        self._samples += 1

    def add_files(self, found: dict[str, Light]) -> None:
        """The next sample, whose light fields are these."""
        for name, value in found.items():
            self._add(name, value)
        self._samples += 1

    def columns(self) -> LightColumns:
        """What was added."""
        columns = {name: growing.column(self._samples) for name, growing in self._growing.items()}
        return LightColumns(self._samples, columns, len(self._left_out))

    def _light(self, key: str, value: Any, tree: Tree, raw: Buffer) -> Light:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, np.generic):
            return self._light(key, light_json.plain_number(value), tree, raw)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, datetime.datetime | datetime.date | datetime.time):
            return value.isoformat()
        if isinstance(value, uuid.UUID | decimal.Decimal | str):
            return str(value)
        try:
            return _json(light_json.to_json(value, _no_file, (key,)))
        except _HeavyInsideError:
            return self._laid_out(key, tree, raw)
        except (RecursionError, ValueError, OverflowError) as error:
            raise DamagedShardError(f"a light value that has no JSON: {error}") from error

    def _laid_out(self, key: str, tree: Tree, raw: Buffer) -> Light:
        """A field as the sample's `.json` has it. Its files are named as for a sample's number of SAMPLE_DIGITS."""
        for plan in layout.lay_out(tree, raw, self._arrays, config.SAMPLE_DIGITS):
            if plan.suffix == layout.JSON and plan.content.render is not None:
                said = json.loads(plan.content.render())
                if set(said) == {layout.ESCAPED}:
                    said = said[layout.ESCAPED]
                return _json(said[key]) if key in said else MISSING
        return MISSING

    def _add(self, name: str, value: Light) -> None:
        growing = self._growing.get(name)
        if growing is None:
            if len(self._growing) >= config.LIGHT_FIELDS or len(name) > config.LIGHT_NAME:
                if len(self._left_out) < config.LIGHT_FIELDS:
                    self._left_out.add(name[: config.LIGHT_NAME])
                return
            growing = self._growing[name] = _Growing(self._samples)
        kinds = growing.kinds
        if len(kinds) < self._samples:
            kinds.extend(bytes(self._samples - len(kinds)))
        kind = type(value)
        if kind is str:
            kinds.append(self._text(growing, IS_TEXT, value))
        elif kind is int:
            if -_LARGEST <= value < _LARGEST:
                kinds.append(IS_INT)
                growing.ints.append(value)
            elif value.bit_length() > 3 * config.LIGHT_VALUE:  # before it is written with digits, which takes long
                kinds.append(IS_OMITTED)
            else:
                kinds.append(self._text(growing, IS_JSON, str(value)))
        elif kind is float:
            kinds.append(IS_FLOAT)
            growing.floats.append(value)
        elif kind is JsonText:
            kinds.append(self._text(growing, IS_JSON, value))
        else:
            kinds.append(
                IS_NULL if value is None else IS_TRUE if value is True else IS_FALSE if value is False else IS_OMITTED
            )

    def _text(self, growing: _Growing, kind: int, text: str) -> int:
        """The kind of what is kept of a text."""
        if len(text) > config.LIGHT_VALUE:
            return IS_OMITTED
        encoded = text.encode("utf-8", "surrogatepass")
        code = growing.texts.get((kind, encoded))
        if code is None:
            if len(encoded) > config.LIGHT_VALUE or self._bytes + len(encoded) > config.LIGHT_SHARD:
                return IS_OMITTED
            code = growing.texts[kind, encoded] = len(growing.texts)
            self._bytes += len(encoded) + 4
        growing.codes.append(code)
        return kind


def _json(value: Any) -> JsonText:
    return JsonText(light_json.json_bytes(value)[:-1].decode("utf-8"))


def _no_file(value: Any, path: tuple[str, ...]) -> str:
    raise _HeavyInsideError


def _number(text: str) -> Light:
    """A label as webdataset reads it, an int; one that is a name stays that."""
    try:
        value = int(text)
    except ValueError:
        return text.strip()
    return value


def _of_json(value: Any) -> Light:
    if type(value) is dict or type(value) is list:
        return JsonText(json.dumps(value, ensure_ascii=False))
    return value
