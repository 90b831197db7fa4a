"""Columns for rows of JSON, CSV, TSV and XSV, found by the samples that are to be rows: which hold them all, or else
everything that they cannot hold.

Knows nothing of shards, of files, or of how a row is written: that is text_writing.py's business. Source of all format
facts: what mosaicml-streaming 0.13.0 writes and reads, found by running it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shardfs import config
from shardfs.drivers.text_rows import SEPARATORS
from shardfs.errors import BadSettingError

KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int, np.integer), "float": (float, np.floating)}
"""Encodings of columns, and what they hold."""


def encoding_of(value: Any) -> str | None:
    """The column that holds a value as it is; None for one that none holds, a bool among them."""
    return next((word for word, kinds in KINDS.items() if is_a(value, kinds)), None)


def is_a(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


class TextSurvey:
    """Finds the columns that hold all samples it is shown, as `mds_writing.Survey` does for MDS. `form` is the format,
    `separator` that of XSV.

    Where some values of a field are ints and others floats, the column is `float`: `changes` says so.
    """

    def __init__(self, form: str, separator: str | None) -> None:
        self._form = form
        self._between = () if form == "json" else (SEPARATORS.get(form, separator or "\n"), "\n")
        self._samples = 0
        self._met: dict[str, dict[str, int]] = {}
        self._refused: dict[str, str] = {}

    def add(self, sample: Any, name: str) -> None:
        """One more sample. What no column holds is told by `columns`, with all that others have of it."""
        self._samples += 1
        if not isinstance(sample, Mapping) or not sample:
            self._refuse("", f"sample {name} has no fields, which would be the columns of rows")
            return
        for field, value in sample.items():
            why = self._refusal(field, value)
            if why is not None:
                self._refuse(str(field), f"sample {name}: field {field!r:.80} {why}")
                continue
            met = self._met.setdefault(field, {})
            word = encoding_of(value)
            assert word is not None
            if word == "int" and not _is_float_too(value):
                word = "large int"
            met[word] = met.get(word, 0) + 1

    def _refuse(self, field: str, reason: str) -> None:
        if field in self._refused or len(self._refused) < config.COLUMNS_TOLD:
            self._refused.setdefault(field, reason)

    def _refusal(self, field: Any, value: Any) -> str | None:
        if not isinstance(field, str):
            return "is named by no text"
        if encoding_of(value) is None:
            return f"is a {type(value).__name__}, and columns of {self._form} are text, int or float"
        if any(mark in field for mark in self._between):
            return f"has a separator or a newline in its name, for which {self._form} has no escape"
        if self._between and isinstance(value, str):
            if any(mark in value for mark in self._between):
                return f"has a separator or a newline in {value[:40]!r}, for which {self._form} has no escape"
            if not _is_utf8(value):
                return f"has no UTF-8 in {value[:40]!r}"
        return None

    def columns(self) -> dict[str, str]:
        """Encodings by column, in order. BadSettingError that lists all fields for which there is none."""
        refused = dict(self._refused)
        made: dict[str, str] = {}
        for field, met in sorted(self._met.items()):
            if field in refused:
                continue
            missing = self._samples - sum(met.values())
            if missing:
                refused[field] = f"field {field!r:.80} is missing in {missing} samples, and each row has all columns"
            elif len(met) == 1:
                made[field] = next(iter(met)).removeprefix("large ")
            elif met.keys() <= {"int", "float"}:
                made[field] = "float"
            elif met.keys() <= {"int", "large int"}:
                made[field] = "int"
            else:
                refused[field] = f"field {field!r:.80} is {' and '.join(sorted(met))}, which no column holds"
        if refused:
            raise BadSettingError("; ".join(list(refused.values())[: config.COLUMNS_TOLD]))
        return made

    def changes(self) -> dict[tuple[str, str, str], int]:
        """Ints that become floats: field, what it was, what it is, and the number of samples."""
        return {
            (field, "int", "float"): met["int"] for field, met in self._met.items() if met.keys() == {"int", "float"}
        }


def _is_float_too(value: Any) -> bool:
    """Whether an int is the same number as a float."""
    try:
        return bool(float(value) == value)
    except OverflowError:
        return False


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
