"""Which samples an SQL expression over light fields is true for.

SQLite reads and evaluates it, in a database in memory that holds the fields of one shard at a time and nothing else,
and in which nothing may be done but reading them and calling functions that compute. Knows nothing of shards, keys or
caches.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import re
import sqlite3
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from shardfs import config
from shardfs.errors import BadSettingError, StorageError
from shardfs.light_columns import MISSING, OMITTED, Light, LightColumns, Numbers

log = logging.getLogger("shardfs")

FUNCTIONS = frozenset(
    (
        *("abs", "sign", "round", "max", "min", "ceil", "ceiling", "floor", "trunc", "mod", "pow", "power", "sqrt"),
        *("exp", "ln", "log", "log10", "log2", "pi", "radians", "degrees", "sin", "cos", "tan", "asin", "acos", "atan"),
        *("atan2", "coalesce", "ifnull", "iif", "nullif", "typeof", "instr", "length", "lower", "upper", "trim"),
        *("ltrim", "rtrim", "substr", "substring", "replace", "like", "glob", "hex", "quote", "char", "unicode"),
        *("json", "json_extract", "json_type", "json_valid", "json_array_length", "->", "->>"),
    )
)
"""What may be called. Not what is different each time (`random`, `date('now')`): a sample that is shown once stays."""

_QUOTED = re.compile(r'"((?:[^"\0]|"")+)"')
"""Names in double quotes. SQLite takes one that no column has for a text: so there is a column for each, even for what
turns out to stand inside a text."""

_NO_COLUMN = re.compile("no such column: (.+)", re.DOTALL)

_NUMBER = "\u0001"
"""The column of samples' numbers, called as nobody calls a field."""

_LIMITS = (
    (sqlite3.SQLITE_LIMIT_LENGTH, config.WHERE_VALUE),
    (sqlite3.SQLITE_LIMIT_EXPR_DEPTH, config.WHERE_DEPTH),
    (sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, config.WHERE_PATTERN),
    (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
)


class Where:
    """One expression. Thread-safe. BadSettingError, in one line, for what is no expression over fields."""

    def __init__(self, text: str) -> None:
        self.text = text
        if not text.strip():
            raise BadSettingError("--where: write an SQL expression over light fields, like label = 'cat'")
        if len(text) > config.WHERE_LENGTH:
            raise BadSettingError(f"--where: {len(text):,} characters are more than {config.WHERE_LENGTH:,}")
        self.fields = _fields(text)
        """The fields that it speaks of, as it writes them."""

    def matches(self, columns: LightColumns) -> Numbers:
        """For each sample whether it is true (bool). NULL is not true, nor is what cannot be evaluated for a sample
        (`->` on a text that is no JSON). StorageError: it takes longer than config.WHERE_SECONDS."""
        found = [list(map(_bound, columns.column(meant(field, columns.names)))) for field in self.fields]
        with contextlib.closing(_Samples(self.fields)) as samples:
            samples.fill(zip(range(columns.samples), *found, strict=True))
            try:
                return np.array(samples.true(self.text), bool)
            except sqlite3.Error as error:
                log.debug("--where %s: %s: it is evaluated for each sample by itself", self.text, error)
            return np.array([samples.true_at(self.text, number) for number in range(columns.samples)], bool)


def meant(field: str, names: Iterable[str]) -> str:
    """The field that a name in an expression means: the one of that name, or one that differs in case only."""
    alike = [name for name in names if _folded(name) == _folded(field)]
    return field if field in alike or not alike else alike[0]


def _folded(name: str) -> str:
    """As SQLite compares names: A to Z only."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in name)


def _bound(value: Light) -> Any:
    """A value as SQLite takes it."""
    if value is MISSING or value is OMITTED:
        return None
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value


def _fields(text: str) -> tuple[str, ...]:
    """The fields that an expression speaks of: it is tried, with a column more for each that SQLite misses, and SQLite
    says which of them it would read. BadSettingError."""
    fields = {_folded(name): name for name in (found.replace('""', '"') for found in _QUOTED.findall(text))}
    while len(fields) <= config.WHERE_FIELDS:
        with contextlib.closing(_Samples(fields.values())) as samples:
            samples.fill([(number, *(None for _ in fields)) for number in range(2)])
            try:
                samples.true(text)
                return tuple(name for name in samples.read if name != _NUMBER)
            except (sqlite3.Error, sqlite3.Warning, ValueError, StorageError) as error:
                missing = _NO_COLUMN.fullmatch(str(error))
                if missing is None or samples.denied is not None:
                    raise _bad(text, samples.denied or _reason(error)) from error
                name = missing[1]
        if _folded(name) in fields:  # `a.b` is not looked for among the columns
            member = name.rpartition(".")[2]
            reason = (
                f"no field {name}: write \"{name}\" if its name has a dot, dict ->> '{member}' for a member of a dict"
            )
            raise _bad(text, reason)
        fields[_folded(name)] = name
    raise _bad(text, f"it speaks of more than {config.WHERE_FIELDS} fields")


def _bad(text: str, reason: str) -> BadSettingError:
    return BadSettingError(f"--where {text}: {reason}")


def _reason(error: Exception) -> str:
    """What SQLite says, without what stands around the expression here."""
    said = str(error).partition("\n")[0]
    if said.startswith('near ")"'):
        return "it ends too early, or has a ) too many"
    if "bindings supplied" in said:
        return "parameters (?, :name) have no values here"
    if said.startswith("unrecognized token"):
        return "a quote is not closed, or a character means nothing: texts stand in single quotes, names in double ones"
    return said


class _Samples:
    """The fields of some samples, in a database in memory in which nothing can be done that an expression needs not."""

    def __init__(self, fields: Iterable[str]) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.denied: str | None = None
        """What was asked for last that may not be."""
        self.read: dict[str, None] = {}
        """The columns that were read."""
        self._selects = 0
        self._deadline = time.monotonic() + config.WHERE_SECONDS
        for limit, most in _LIMITS:
            self._connection.setlimit(limit, most)
        named = ", ".join(['"\u0001" PRIMARY KEY', *('"' + name.replace('"', '""') + '"' for name in fields)])
        # without a rowid, which would be a name that no field could have
        self._connection.execute(f"CREATE TABLE samples ({named}) WITHOUT ROWID")

    def close(self) -> None:
        self._connection.close()

    def fill(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Samples with their numbers. From now on nothing may be done but evaluating."""
        rows = iter(rows)
        first = next(rows, None)
        if first is not None:
            insert = f"INSERT INTO samples VALUES ({', '.join('?' * len(first))})"
            self._connection.execute("BEGIN")
            self._connection.executemany(insert, itertools.chain((first,), rows))
            self._connection.execute("COMMIT")
            self.count = int(self._connection.execute("SELECT count(*) FROM samples").fetchone()[0])
        else:
            self.count = 0
        self._connection.set_progress_handler(lambda: int(time.monotonic() > self._deadline), 10_000)
        self._connection.set_authorizer(self._may)

    def true(self, text: str) -> list[bool]:
        """For each sample whether an expression is true. sqlite3.Error, StorageError."""
        rows = self._asked(f'SELECT (\n{text}\n) IS TRUE FROM samples ORDER BY "\u0001"')
        if len(rows) != self.count or any(len(row) != 1 for row in rows[:1]):
            self.denied = "it is no expression about one sample"
            raise sqlite3.OperationalError(self.denied)
        return [bool(row[0]) for row in rows]

    def true_at(self, text: str, number: int) -> bool:
        """The same for one sample; False where it cannot be evaluated. StorageError."""
        try:
            rows = self._asked(f'SELECT (\n{text}\n) IS TRUE FROM samples WHERE "\u0001" = {number:d}')
        except sqlite3.Error:
            return False
        return bool(rows and rows[0][0])

    def _asked(self, query: str) -> list[Any]:
        self._selects = 0
        try:
            return self._connection.execute(query).fetchall()
        except sqlite3.Error as error:
            if time.monotonic() > self._deadline:
                text = f"--where takes longer than {config.WHERE_SECONDS:.0f} s for the samples of one key"
                raise StorageError(text, errno.ETIMEDOUT) from error
            raise

    def _may(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        """The authorizer of the database, asked while a query is made ready."""
        if action == sqlite3.SQLITE_SELECT:
            self._selects += 1
            if self._selects == 1:
                return sqlite3.SQLITE_OK
            self.denied = "SELECT does not belong into it"
        elif action == sqlite3.SQLITE_READ and first == "samples":
            if second:
                self.read[second] = None
            return sqlite3.SQLITE_OK
        elif action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in FUNCTIONS:
            return sqlite3.SQLITE_OK
        elif action == sqlite3.SQLITE_FUNCTION:
            self.denied = f"the function {second} cannot be used in it"
        else:
            self.denied = "it is no expression"
        return sqlite3.SQLITE_DENY
