"""One sample of a mltraq store as a record: what it says, then the bytes that this is about; and the record as a tree.

    u32 length | msgpack {"cells" | "files", "urls"} | cells of the row | files that they refer to

This form is shardfs's own and is stored nowhere: the rows of a database and the files of a datastore are given the
shape of a shard by it. Positions in the head count from its end. Knows nothing of databases and directories.
"""

from __future__ import annotations

import datetime
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from shardfs import config, names
from shardfs.drivers import mltraq_datapak as datapak
from shardfs.errors import DamagedShardError
from shardfs.pickle_spans import PickleRefusedError, Steps
from shardfs.values import Blob, Buffer, Named, Tree

PLAIN, PICKLED, BYTES, FIELDS = "plain", "pickled", "bytes", "fields"
"""What a cell is: a value as it stands, a blob, bytes, or a blob whose members are the sample's fields."""

_U32 = struct.Struct("<I")
_DATES = {
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
}


@dataclass(slots=True)
class Draft:
    """A record to be: what will be in its head, and the bytes behind it as far as they are known."""

    cells: list[list[Any]] = field(default_factory=list)
    """`[name, PLAIN, value]`, or `[name, form, position, length, why it is no blob or None]`."""
    files: list[list[Any]] = field(default_factory=list)
    """`[suffix, position, length, whether it may be serialised]` of the files of a directory's sample."""
    urls: dict[str, Any] = field(default_factory=dict)
    """What each url means: `[position, length]`, or the reason why it is not followed."""

    def head(self) -> bytes:
        packed = msgpack.packb([self.cells, self.files, self.urls], unicode_errors="surrogatepass")
        assert isinstance(packed, bytes)
        return _U32.pack(len(packed)) + packed


def native(value: Any, kind: str | None) -> Any:
    """A cell that SQLite holds as it is, as the type that the experiment says it has: SQLite has none for some."""
    if kind == "bool" and type(value) is int and value in (0, 1):
        return bool(value)
    return value


def steps_for(length: int) -> Steps:
    """What a record of so many bytes may cost to read."""
    return Steps(config.TOKEN_FLOOR + config.TOKENS_PER_RAW_BYTE * length)


def tree(raw: Buffer, start: int, end: int, steps: Steps | None = None) -> Tree:
    """The value tree of the record from `start` to `end`. DamagedShardError for what was never written here."""
    size = _U32.unpack(bytes(raw[start : start + 4]))[0]
    head = bytes(raw[start + 4 : start + 4 + size])
    try:
        cells, files, urls = msgpack.unpackb(head, unicode_errors="surrogatepass", max_array_len=len(head))
        reading = _Reading(raw, start + 4 + size, urls, steps or steps_for(end - start))
        return reading.files(files) if files else reading.row(cells)
    except (ValueError, TypeError, LookupError) as error:
        raise DamagedShardError(f"a record whose head is not one: {error}", start) from error


class _Reading:
    def __init__(self, raw: Buffer, base: int, urls: dict[str, Any], steps: Steps) -> None:
        self._raw = raw
        self._base = base
        self._urls = urls
        self._steps = steps

    def _resolve(self, url: str) -> tuple[Buffer, int, int]:
        found = self._urls.get(url, "not looked for")
        if isinstance(found, str):
            raise datapak.UnresolvedError(found)
        start = self._base + found[0]
        return self._raw, start, start + found[1]

    def _blob(self, at: int, length: int, why: str | None = None) -> Tree:
        """The value of a blob; its bytes where it is none."""
        start = self._base + at
        # one that was made to take all there is leaves something to the others
        steps = Steps(self._steps.left // 2)
        before = steps.left
        try:
            if why is not None:
                raise PickleRefusedError(why)
            return datapak.decode(self._raw, start, start + length, self._resolve, steps)
        except PickleRefusedError as error:
            return Blob(start, length, "bin", str(error)[:300])
        finally:
            self._steps.left -= before - max(steps.left, 0)

    def row(self, cells: Iterable[list[Any]]) -> dict[Any, Tree]:
        made: dict[Any, Tree] = {}
        for name, form, *rest in cells:
            if form == PLAIN:
                made[name] = rest[0]
            elif form in _DATES:
                made[name] = _date(rest[0], form)
            elif form == BYTES:
                made[name] = Blob(self._base + rest[0], rest[1])
            elif form == FIELDS:
                value = self._blob(*rest)
                made |= value if type(value) is dict else {name: value}
            else:
                made[name] = self._blob(*rest)
        return made

    def files(self, files: list[list[Any]]) -> Tree:
        """The files of a directory that share a stem. One without an extension is the sample itself; one with, a field
        that is shown under the file's own name."""
        made: dict[Any, Tree] = {}
        for suffix, at, length, serialised in files:
            value = self._file(suffix, at, length, serialised)
            whole = suffix in ("", "json") and serialised
            if whole and type(value) is dict:
                made = {**value, **made}
            elif (whole or not suffix) and len(files) == 1:
                return value
            else:
                name = "$value" if whole or not suffix else names.field_part(suffix)
                made[suffix if name in made else name] = value
        return made

    def _file(self, suffix: str, at: int, length: int, serialised: bool) -> Tree:
        if not suffix:
            return self._whole(at, length) if serialised else Blob(self._base + at, length)
        if serialised and suffix == "json":
            return self._whole(at, length)
        if serialised:
            start = self._base + at
            npy = datapak.stored_npy(self._raw, start, start + length, self._steps)
            if npy is not None:
                return NamedArray(npy.offset, npy.length, suffix)
        return Named(self._base + at, length, suffix)

    def _whole(self, at: int, length: int) -> Tree:
        """A file that looks serialised: its value, or, as nothing says that it is one, just its bytes."""
        value = self._blob(at, length)
        if type(value) is Blob and value.note is not None and value.length == length:
            return Blob(value.offset, length)
        return value


class NamedArray(Named):
    """The `.npy` inside a blob, shown under the name of the file that holds it."""

    def value(self, raw: Buffer) -> Any:
        return datapak.Npy(self.offset, self.length).value(raw)


def _date(text: Any, form: str) -> Any:
    """A date of SQLAlchemy's, which SQLite holds as text; the text where it is none."""
    try:
        return _DATES[form](text)
    except (ValueError, TypeError):
        return text


__all__ = ["BYTES", "FIELDS", "PICKLED", "PLAIN", "Draft", "NamedArray", "native", "steps_for", "tree"]
