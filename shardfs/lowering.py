"""Values that only some systems have, as the nearest that another has; and what became of which.

Knows nothing of shards and drivers: the form of the target's records is told by a word.
"""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from typing import Any

from shardfs import light_json, values

_SMALL = range(-(1 << 63), 1 << 64)
_TEXTS = (datetime.datetime, datetime.date, datetime.time, uuid.UUID)


class Lowering:
    """Makes values fit for records of one form (`msgpack`, `jsonl`, `mds` or `rows`), and remembers what it changed."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._columns = form in ("mds", "rows")
        self.changes: dict[tuple[str, str, str], None] = {}
        """Field, what it was, what it is then; each once."""

    def sample(self, value: Any) -> Any:
        """A sample. Dates and UUIDs become texts, sets lists; decimal numbers texts where no column is for them, and
        ints that msgpack has no room for; dicts with keys that JSON has no word for lists of pairs; and for columns,
        tuples lists, a lone value the field `value`, and dicts that hold arrays or bytes one field for each member,
        called `field.member`, as their files are."""
        if type(value) is not dict:
            lone = self._lowered("", value)
            return {"value": lone} if self._columns else lone
        made: dict[Any, Any] = {}
        for name, item in value.items():
            if self._form == "mds" and type(item) is dict and _holds_heavy(item) and type(name) is str:
                self._spread(name, item, made, value)
            else:
                made[name] = self._lowered(str(name), item)
        return made

    def loose(self, value: Any) -> Any:
        """The same for a sample that need not fit columns; where it has to, it stays what it is, to be refused if it
        does not."""
        return value if self._columns else self.sample(value)

    def _spread(self, name: str, value: dict[Any, Any], made: dict[Any, Any], sample: dict[Any, Any]) -> None:
        for key, item in value.items():
            path = f"{name}.{key}"
            if path in made or path in sample:
                path += "~"  # told as a field that not all have, or as it is
            if type(item) is dict and _holds_heavy(item):
                self._spread(path, item, made, sample)
            else:
                made[path] = self._lowered(path, item)
        self.changes[name, "dict", "a field for each member"] = None

    def _lowered(self, field: str, value: Any) -> Any:
        kind = type(value)
        if kind is tuple and self._columns:
            self.changes[field, "tuple", "list"] = None
            kind = list
        if kind is list or kind is tuple:
            return kind(self._lowered(field, item) for item in value)
        if kind is dict:
            return self._dict(field, value)
        if isinstance(value, _TEXTS):
            self.changes[field, kind.__name__, "text"] = None
            return str(value) if isinstance(value, uuid.UUID) else value.isoformat()
        if kind is Decimal and self._form != "mds":
            self.changes[field, "Decimal", "text"] = None
            return str(value)
        if kind in (set, frozenset):
            self.changes[field, "set", "list"] = None
            members = sorted(value, key=lambda item: light_json.json_bytes(light_json.to_json(item, _no_file, ())))
            return [self._lowered(field, item) for item in members]
        if kind is int and self._form == "msgpack" and value not in _SMALL:
            self.changes[field, "int of more than 64 bits", "text"] = None
            return str(value)
        return value

    def _dict(self, field: str, value: dict[Any, Any]) -> Any:
        made = {key: self._lowered(field, item) for key, item in value.items()}
        if self._form == "msgpack" or all(type(key) is str for key in value):
            return made
        self.changes[field, "dict with keys that are no text", "list of pairs"] = None
        return [[self._lowered(field, list(key) if type(key) is tuple else key), item] for key, item in made.items()]


def _holds_heavy(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_heavy, value.values()))
    return values.is_heavy(value)


def _no_file(value: Any, path: tuple[str, ...]) -> str:
    return str(value)
