"""Names in views: of the views themselves, of keys that are made one name, of values as directories. Pure.

Knows nothing of tables, inode numbers or mounts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from shardfs import config, names
from shardfs.errors import BadSettingError

BY = "by"
PLAIN = ("flat", "tree", "hf", "yolo", "wds", "raw")
"""Views that need no field."""

MISSING = b"__missing__"
"""The directory of samples that have no such value, or null. A value that reads so is shown with `~2` behind it."""


@dataclass(frozen=True, slots=True)
class View:
    """What is asked for by `--view`, or by a name below `.shardfs/views`."""

    kind: str
    fields: tuple[str, ...] = ()
    """Of `by`: the light fields, outermost directory first."""

    @property
    def text(self) -> str:
        """As `parse` takes it: one text for each view."""
        fields = (names.escape(field).replace(",", "%2C").replace(":", "%3A") for field in self.fields)
        return f"{BY}:{','.join(fields)}" if self.fields else self.kind


def parse(text: str) -> View:
    """`by:FIELD[,FIELD]` or one of PLAIN. A colon does for a comma, as options of mount(8) cannot hold one; in a
    field's name these are `%2C` and `%3A`, and a slash is `%2F`. BadSettingError."""
    if text in PLAIN:
        return View(text)
    kind, colon, rest = text.partition(":")
    if kind != BY or not colon:
        raise BadSettingError(f"no such view; there are by:FIELD[,FIELD], {', '.join(PLAIN)}")
    try:
        fields = tuple(names.unescape(part) for part in rest.replace(":", ",").split(","))
    except ValueError as error:
        raise BadSettingError(f"view {text!r}: {error}") from error
    if not all(fields) or len(set(fields)) != len(fields) or len(fields) > config.VIEW_LEVELS:
        raise BadSettingError(f"view {text!r}: by: wants 1 to {config.VIEW_LEVELS} different fields, as by:label")
    return View(BY, fields)


def directory_of(value: Any) -> bytes:
    """The name of the directory of samples with this value of a light field, as `light_columns` gives it. Values that
    read the same (1 and "1") are one directory; what stands for no value is MISSING."""
    if type(value) is bool:
        text = "true" if value else "false"
    elif isinstance(value, str):
        text = value
    elif isinstance(value, int | float):
        text = repr(value)
    elif isinstance(value, list | dict):
        text = json.dumps(value, ensure_ascii=False)
    else:
        return MISSING
    made = names.shorten(names.escape(text), config.NAME_KEEP).encode("utf-8")
    return made + b"~2" if made == MISSING else made


class KeyNames:
    """What keys are called where all of them are in one directory: `train/shard.00003` is `train-shard-00003`.

    A sample's files are `<key>-<sample>.<…>` there, and the name of a sample may hold `-`, too. So no key's name may be
    another's with `-` and more behind it: one that would be gets `~2` at its end, as one does that is taken. Which
    that is goes by the order in which keys come; what was given once stays.
    """

    def __init__(self) -> None:
        self._by_key: dict[str, bytes] = {}
        self._keys: dict[bytes, str] = {}
        self._ways: set[bytes] = set()

    def name(self, key: str) -> bytes:
        """The name of a key, given now if it has none yet."""
        known = self._by_key.get(key)
        if known is not None:
            return known
        parts = (names.escape(part).replace(".", "-") for part in key.split("/"))
        plain = names.shorten("-".join(parts), config.VIEW_KEY)
        made, count = plain.encode("utf-8"), 1
        prefixes = _prefixes(made)
        clash = made in self._ways or any(prefix in self._keys for prefix in prefixes)
        while clash or made in self._keys:
            count += 1
            made, clash = f"{plain}~{count}".encode(), False
        self._by_key[key] = made
        self._keys[made] = key
        if count == 1:
            self._ways.update(prefixes)
        return made

    def splits(self, head: bytes) -> list[tuple[str, bytes]]:
        """What the part of a file's name before its first dot may mean: key and sample."""
        found = [(self._keys.get(head[:at]), head[at + 1 :]) for at in range(len(head)) if head[at] == ord("-")]
        return [(key, sample) for key, sample in found if key is not None]


def _prefixes(name: bytes) -> list[bytes]:
    return [name[:at] for at in range(len(name)) if name[at] == ord("-")]
