"""The light fields of one shard's samples, packed: a column for each field, and no object per sample.

Knows nothing of keys, indexes, caches or mounts, nor of where the values come from or what is done with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from shardfs.strings import Strings


class _Sentinel:
    """A value that no field can have."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


MISSING = _Sentinel("MISSING")
"""The sample has no such field."""
OMITTED = _Sentinel("OMITTED")
"""It has, and its value is larger than is kept here (config.LIGHT_VALUE, config.LIGHT_SHARD)."""


class JsonText(str):
    """A value that is no text, number, bool or None, as the JSON that the sample's `.json` has for it."""

    __slots__ = ()


Light = Any
"""None, bool, int (of 64 bits), float, str, JsonText, MISSING or OMITTED."""

IS_MISSING, IS_NULL, IS_FALSE, IS_TRUE, IS_INT, IS_FLOAT, IS_TEXT, IS_JSON, IS_OMITTED = range(9)
"""What a cell is. IS_MISSING is 0, as a column begins with the samples that came before it."""

_ALONE = {IS_MISSING: MISSING, IS_NULL: None, IS_FALSE: False, IS_TRUE: True, IS_OMITTED: OMITTED}

Numbers = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Column:
    """One field of all samples."""

    kinds: Numbers
    """uint8, one for each sample."""
    ints: Numbers
    floats: Numbers
    codes: Numbers
    """Each of these three has a number for each sample of its kind, in order; the last one's are those of texts."""
    texts: Strings

    @property
    def nbytes(self) -> int:
        parts = (self.kinds, self.ints, self.floats, self.codes)
        return sum(part.nbytes for part in parts) + self.texts.nbytes

    def decoded(self) -> list[Light]:
        """The texts by their numbers: each is of one kind only, a text or JSON."""
        found: list[Light] = [_decoded(text) for text in self.texts]
        kinds = self.kinds[(self.kinds == IS_TEXT) | (self.kinds == IS_JSON)]
        for code in np.unique(self.codes[kinds == IS_JSON]).tolist():
            found[code] = JsonText(found[code])
        return found

    def values(self) -> list[Light]:
        made: list[Light] = [MISSING] * len(self.kinds)
        for kind in np.unique(self.kinds).tolist():
            if kind in _ALONE:
                if kind != IS_MISSING:
                    for at in np.flatnonzero(self.kinds == kind).tolist():
                        made[at] = _ALONE[kind]
            elif kind in (IS_INT, IS_FLOAT):
                numbers = self.ints if kind == IS_INT else self.floats
                _put(made, self.kinds == kind, numbers.tolist())
        if len(self.codes):
            texts = self.decoded()
            _put(made, (self.kinds == IS_TEXT) | (self.kinds == IS_JSON), [texts[code] for code in self.codes.tolist()])
        return made

    def taken(self, samples: Numbers) -> Column:
        """Of these samples only: numbers, rising."""
        kept = np.zeros(len(self.kinds), bool)
        kept[samples] = True
        text = (self.kinds == IS_TEXT) | (self.kinds == IS_JSON)
        return Column(
            self.kinds[kept],
            self.ints[kept[self.kinds == IS_INT]],
            self.floats[kept[self.kinds == IS_FLOAT]],
            self.codes[kept[text]],
            self.texts,
        )


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:  # nothing that was packed here, but an index may be anybody's
        return text.decode("utf-8", "backslashreplace")


def _put(made: list[Light], where: Numbers, found: list[Light]) -> None:
    if len(found) == len(made):
        made[:] = found
        return
    for at, value in zip(np.flatnonzero(where).tolist(), found, strict=True):
        made[at] = value


class LightColumns:
    """The light fields of `samples` samples. Immutable."""

    def __init__(self, samples: int, columns: dict[str, Column], left_out: int = 0) -> None:
        self.samples = samples
        self._columns = columns
        self.left_out = left_out
        """Fields beyond config.LIGHT_FIELDS, which are not kept."""

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that any sample has, in the order in which they came."""
        return tuple(self._columns)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about."""
        return 1000 + sum(1000 + column.nbytes for column in self._columns.values())

    def column(self, name: str) -> list[Light]:
        """The values of one field, one for each sample."""
        found = self._columns.get(name)
        return [MISSING] * self.samples if found is None else found.values()

    def rows(self, fields: tuple[str, ...]) -> list[tuple[Light, ...]]:
        """The values of these fields, a tuple for each sample."""
        if not fields:
            return [()] * self.samples
        return list(zip(*map(self.column, fields), strict=True))

    def coded(self, name: str) -> tuple[Numbers, list[Light]]:
        """One field as the number of its value for each sample (uint32), and the values by number: each is there once,
        and so is MISSING. For who goes through many samples and few values."""
        found = self._columns.get(name)
        if found is None:
            return np.zeros(self.samples, np.uint32), [MISSING]
        codes = np.zeros(self.samples, np.uint32)
        distinct: list[Light] = []
        for kind in np.unique(found.kinds).tolist():
            where = found.kinds == kind
            if kind in _ALONE:
                codes[where] = len(distinct)
                distinct.append(_ALONE[kind])
                continue
            if kind in (IS_INT, IS_FLOAT):
                unique, numbers = np.unique(found.ints if kind == IS_INT else found.floats, return_inverse=True)
                own = unique.tolist()
            else:
                text = (found.kinds == IS_TEXT) | (found.kinds == IS_JSON)
                unique, numbers = np.unique(found.codes[where[text]], return_inverse=True)
                decoded = found.decoded()
                own = [decoded[code] for code in unique.tolist()]
            codes[where] = numbers + len(distinct)
            distinct += own
        return codes, distinct

    def kinds(self, name: str) -> frozenset[str]:
        """What the values of a field are: of `missing`, `null`, `bool`, `int`, `float`, `text`, `json`, `omitted`."""
        found = self._columns.get(name)
        return frozenset(("missing",)) if found is None else frozenset(_KINDS[kind] for kind in np.unique(found.kinds))

    def largest(self, name: str) -> int:
        """The largest absolute value of a field's ints; 0 where it has none."""
        found = self._columns.get(name)
        if found is None or not len(found.ints):
            return 0
        return max(int(found.ints.max()), -int(found.ints.min()))

    def taken(self, samples: Numbers) -> LightColumns:
        """Of these samples only: numbers, rising."""
        return LightColumns(
            len(samples), {name: column.taken(samples) for name, column in self._columns.items()}, self.left_out
        )

    # --- for keeping ----------------------------------------------------------------------------------------------

    def pack(self) -> bytes:
        """As bytes, for keeping. `unpack` gives it back."""
        packed = [[name.encode("utf-8", "surrogatepass"), *_packed(column)] for name, column in self._columns.items()]
        made = msgpack.packb([self.samples, self.left_out, packed])
        assert isinstance(made, bytes)
        return made

    @staticmethod
    def unpack(data: bytes) -> LightColumns:
        """What `pack` made this of. ValueError for what it never makes."""
        samples, left_out, packed = msgpack.unpackb(data, max_bin_len=len(data))
        if type(samples) is not int or type(left_out) is not int or samples < 0:
            raise ValueError("an impossible number of samples")
        columns = {name.decode("utf-8", "surrogatepass"): _unpacked(samples, *parts) for name, *parts in packed}
        return LightColumns(samples, columns, left_out)


_KINDS = ("missing", "null", "bool", "bool", "int", "float", "text", "json", "omitted")


def _packed(column: Column) -> list[Any]:
    numbers = [[part.dtype.str, part.tobytes()] for part in (column.kinds, column.ints, column.floats, column.codes)]
    return [*numbers, column.texts.data, np.diff(column.texts.starts).astype(np.uint32).tobytes()]


_DTYPES = (("|u1",), ("|i1", "<i2", "<i4", "<i8"), ("<f8",), ("|u1", "<u2", "<u4"))
"""What kinds, ints, floats and numbers of texts may be."""


def _unpacked(samples: int, kinds: Any, ints: Any, floats: Any, codes: Any, data: bytes, lengths: bytes) -> Column:
    parts: list[Numbers] = []
    for (dtype, part), known in zip((kinds, ints, floats, codes), _DTYPES, strict=True):
        if dtype not in known:
            raise ValueError("numbers of another type")
        parts.append(np.frombuffer(part, dtype))
    starts = np.concatenate(([np.uint64(0)], np.cumsum(np.frombuffer(lengths, np.uint32), dtype=np.uint64)))
    column = Column(parts[0], parts[1], parts[2], parts[3], Strings(data, starts))
    counts = np.bincount(column.kinds, minlength=IS_OMITTED + 1) if samples else np.zeros(IS_OMITTED + 1, np.int64)
    if len(column.kinds) != samples or len(counts) > IS_OMITTED + 1 or int(starts[-1]) != len(data):
        raise ValueError("columns of different lengths")
    found = (len(column.ints), len(column.floats), len(column.codes))
    if found != (counts[IS_INT], counts[IS_FLOAT], counts[IS_TEXT] + counts[IS_JSON]):
        raise ValueError("values are missing")
    if len(column.codes) and int(column.codes.max()) >= len(column.texts):
        raise ValueError("texts are missing")
    return column
