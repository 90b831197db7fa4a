"""What views generate as text: `metadata.jsonl` of `hf`, label files of `yolo`. Synchronous, for workers.

Out of light fields and names of files. Sources: Hugging Face datasets 4, packaged_modules/folder_based_builder (a
column `file_name` is the picture, `X_file_name` the picture of column X, `X_file_names` a list of them; all files of
one data set must have the same columns); Ultralytics 8, data/utils.py (`labels` in place of `images` and `.txt` in
place of the extension; a line `class x y width height` or `class x1 y1 x2 y2 …` for each object, as parts of the
picture's size). Knows nothing of inode numbers, caches or mounts.
"""

from __future__ import annotations

import errno
import json
import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from shardfs import names
from shardfs.drivers.base import ShardReader
from shardfs.errors import StorageError
from shardfs.index import ShardTable
from shardfs.light_columns import MISSING, OMITTED, JsonText, Light, LightColumns
from shardfs.views.columns import KeyFiles

FILE_NAME, FILE_NAMES = "file_name", "file_names"

LABELS = ("labels", "label", "yolo", "txt")
"""Fields that hold the text of a label file, or a list of boxes; the first one that does is taken."""


_LABEL_LINES = re.compile(r"(?:[ \t]*\d+(?:[ \t]+[-+0-9.eE]+)+[ \t]*\r?(?:\n|\Z)|[ \t\r]*\n)*")
"""Lines of a class and numbers; none at all is a picture with nothing on it."""


class Texts:
    """Many texts by number, in one."""

    def __init__(self, texts: Sequence[bytes | None]) -> None:
        self._data = b"".join(text or b"" for text in texts)
        ends = array("Q", [0])
        for text in texts:
            ends.append(ends[-1] + len(text or b""))
        self._ends = ends
        self._missing = array("I", (at for at, text in enumerate(texts) if text is None))

    def __getitem__(self, number: int) -> bytes:
        return self._data[self._ends[number] : self._ends[number + 1]]

    def has(self, number: int) -> bool:
        """False for a number without a text."""
        at = bisect_left(self._missing, number)
        return at == len(self._missing) or self._missing[at] != number

    def size(self, number: int) -> int:
        return int(self._ends[number + 1] - self._ends[number])

    def __len__(self) -> int:
        return len(self._ends) - 1

    @property
    def nbytes(self) -> int:
        return len(self._data) + 8 * len(self._ends) + 4 * len(self._missing)


# --- values that the index does not keep ------------------------------------------------------------------------------


def lacking(columns: LightColumns, fields: Sequence[str]) -> bool:
    """True if the index has left out a value of one of these fields, as it is too long."""
    return any("omitted" in columns.kinds(field) for field in fields)


def filled(
    columns: LightColumns, fields: Sequence[str], table: ShardTable, reader: ShardReader | None, arrays: str
) -> dict[str, list[Light]]:
    """The values of these fields, those that the index leaves out from the samples' `.json` or members: with a reader.
    DamagedShardError, and the errors of `fetch`."""
    values = {field: columns.column(field) for field in fields}
    if reader is None:
        return values
    for sample in range(table.samples):
        long = [field for field in fields if values[field][sample] is OMITTED]
        if not long:
            continue
        for file in range(table.columns["file_start"][sample], table.columns["file_start"][sample + 1]):
            suffix, run = table.suffix(file), table.slice_of(file)
            if run is None and suffix == b"json":
                said = json.loads(table.render(file, reader, arrays))
                for field in long:
                    values[field][sample] = _light(said.get(field, MISSING))
            elif run is not None and suffix.decode("utf-8", "surrogateescape") in long:
                data = run[0] + bytes(reader.fetch(run[1], run[1] + run[2]))
                values[suffix.decode("utf-8", "surrogateescape")][sample] = data.decode("utf-8", "replace")
    return values


def _light(value: Any) -> Light:
    return JsonText(json.dumps(value, ensure_ascii=False)) if isinstance(value, list | dict) else value


# --- hf -------------------------------------------------------------------------------------------------------------


class Room:
    """Bytes of text that may be made."""

    def __init__(self, most: int) -> None:
        self._most = self._left = most

    def take(self, count: int) -> None:
        """EFBIG where there is no more: a short column may stand for texts of any length."""
        self._left -= count
        if self._left < 0:
            raise StorageError(
                f"more than {self._most} bytes of text, for one key: mount with more --memory", errno.EFBIG
            )


def metadata(key: KeyFiles, values: dict[str, list[Light]], room: Room, chosen: bool = False) -> bytes:
    """A line for each sample: the names of its files, then its light fields. Where all files of the key are of one
    field, that is called `file_name`.

    A sample without any of these files has no line, where others have or the field is `chosen`: the loader wants a
    picture for each. What has
    no JSON (no number, infinity) is null. A light field that is called as one of the files' is left out: it is
    in the sample's `.json`. EFBIG.
    """
    fields = [_field(rest) for rest in key.rests.texts]
    single = len({fields[rest] for rest in set(key.rest.tolist())}) <= 1
    lines, pointers = [], _pointers(key, fields, single)
    for sample in range(key.all_samples):
        said = pointers[sample]
        if not said and (chosen or len(key)):
            continue
        members = [f"{json.dumps(name)}: {text}" for name, text in said.items()]
        for name, column in values.items():
            value = column[sample]
            if value is not MISSING and value is not OMITTED and name not in said:
                members.append(f"{_quoted(name)}: {_json(value)}")
        lines.append("{" + ", ".join(members) + "}\n")
        room.take(len(lines[-1]))
    return "".join(lines).encode("utf-8", "backslashreplace")


def _field(rest: bytes) -> tuple[str, bool]:
    """The field that a file is of, and whether that is a list of files."""
    stem = names.field_part(rest.decode("utf-8", "surrogateescape"))
    above, dot, number = stem.rpartition(".")
    several = bool(dot) and number.isdigit()
    text = above if several else stem
    try:
        return names.unescape(text), several
    except ValueError:
        return text, several


def _pointers(key: KeyFiles, fields: list[tuple[str, bool]], single: bool) -> list[dict[str, str]]:
    made: list[dict[str, list[str]]] = [{} for _ in range(key.all_samples)]
    for sample, rest in zip(key.samples.tolist(), key.rest.tolist(), strict=True):
        name, several = fields[rest]
        end = FILE_NAMES if several else FILE_NAME
        own = made[sample].setdefault(end if single else f"{name}_{end}", [])
        own.append(_quoted(key.name(sample, rest).decode("utf-8", "surrogateescape")))
    return [
        {name: f"[{', '.join(found)}]" if name.endswith(FILE_NAMES) else found[0] for name, found in sample.items()}
        for sample in made
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(value: Light) -> str:
    if isinstance(value, JsonText):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return "null"
    return json.dumps(value, ensure_ascii=False)


# --- yolo -------------------------------------------------------------------------------------------------------------


def labels(values: dict[str, list[Light]], samples: int, room: Room) -> list[bytes | None]:
    """The label file of each sample, None where no field holds one. EFBIG."""
    made: list[bytes | None] = [None] * samples
    for field in LABELS:
        column = values.get(field)
        if column is not None:
            for sample, value in enumerate(column):
                if made[sample] is None:
                    text = made[sample] = label_text(value)
                    room.take(len(text or b""))
    return made


def label_text(value: Light) -> bytes | None:
    """A text of such lines as it is; a list of lists of numbers as such lines. None for anything else: a class or a
    caption is no label file."""
    if isinstance(value, JsonText):
        try:
            rows = json.loads(value)
        except ValueError:
            return None
        return _lines(rows)
    return value.encode() if isinstance(value, str) and _LABEL_LINES.fullmatch(value) else None


def _lines(rows: Any) -> bytes | None:
    if not isinstance(rows, list):
        return None
    made = []
    for row in rows:
        if not isinstance(row, list) or not row or not all(type(number) in (int, float) for number in row):
            return None
        if float(row[0]).is_integer():  # a class: float32 arrays make 3.0 of it
            row = [int(row[0]), *row[1:]]
        made.append(" ".join(map(repr, row)))
    return "".join(f"{line}\n" for line in made).encode()
