"""The files of one sample as its value: for a seal, which also knows what the sample was before.

`read` takes what `layout.lay_out` makes, and what other programs call the files of a sample: folders of ordinary files
and WebDataset's names. `Stored` knows one stored sample, and gives what did not change its stored type. Knows nothing
of directories, shards or drivers.

The type of a file's value is that of its extension:

    npy                                    array
    png with a `shRD` chunk `ndarray`      array
    txt text transcript                    text, UTF-8
    cls cls2 index inx id                  int, where it is the text of one; else bytes
    pkl                                    values.Pickle: bytes that are never run
    anything else                          bytes

Texts and ints are as WebDataset's own decoders have them (webdataset 1.0.2, autodecode.py): there `.cls` is written
with `str` and read with `int`, so a loader of that data set has ints in its hands and bytes would be the odd thing. An
int that WebDataset would refuse to decode stays bytes, because nothing may be lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from shardfs import layout, light_json, names, pictures, values
from shardfs.errors import BadSampleError
from shardfs.values import Buffer, Tree

_TEXTS = frozenset(("txt", "text", "transcript"))
_INTS = frozenset(("cls", "cls2", "index", "inx", "id"))
_INT = re.compile(rb"\s*[+-]?[0-9]{1,4000}\s*")


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sample's files say."""

    value: Any
    files: Mapping[Any, str]
    """The file of each field that is a file of its own."""


def read(files: Mapping[str, bytes], stem: str, unchanged: frozenset[str] = frozenset()) -> Sample:
    """The sample of these files, given as what follows `<stem>.` -> content.

    Of two files that claim one field the one that was written wins over one of the `unchanged`: so a folder can be
    copied again over what a seal made of it, which shows its `cat.cls` in the json and a `cat.jpeg` as `cat.jpeg.jpg`.
    BadSampleError, which names the file, for what does not parse and for a field that two written files claim.
    """
    return _Reading(files, stem, unchanged).sample()


class _Reading:
    def __init__(self, files: Mapping[str, bytes], stem: str, unchanged: frozenset[str]) -> None:
        self._files = files
        self._stem = stem
        self._unchanged = unchanged
        self._used = {layout.JSON}

    def sample(self) -> Sample:
        try:
            return self._sample()
        except ValueError as error:
            if isinstance(error, BadSampleError):
                raise
            raise self._bad(layout.JSON, str(error)) from error
        except RecursionError as error:
            raise self._bad(layout.JSON, "nested too deeply") from error

    def _sample(self) -> Sample:
        document = self._document()
        explained = document.pop(layout.FIELDS, {})
        if set(document) == {layout.VALUE}:
            value = light_json.from_json(document[layout.VALUE], self._lifted)
            self._nothing_left()
            return Sample(value, {})
        if set(document) == {layout.ESCAPED}:
            document = document[layout.ESCAPED]
        if not isinstance(document, dict) or not isinstance(explained, dict):
            raise ValueError("it must hold the fields of a sample")
        sample: dict[Any, Any] = {}
        for name, light in document.items():
            own = name not in explained or name in self._files
            key = name if own else _key(explained[name], self._lifted)
            sample[key] = light_json.from_json(light, self._lifted)
        return self._file_fields(sample, explained)

    def _document(self) -> dict[str, Any]:
        if layout.JSON not in self._files:
            return {}
        document = json.loads(self._files[layout.JSON], object_pairs_hook=_object)
        if not isinstance(document, dict):
            raise ValueError("it must hold an object, the fields of a sample")
        return document

    def _lifted(self, name: Any) -> Any:
        if not isinstance(name, str) or name not in self._files:
            raise ValueError(f"it names the file {self._stem}.{str(name)[:200]}, which is not there")
        self._used.add(name)
        return self._file(name)

    def _file(self, suffix: str) -> Any:
        try:
            return file_value(suffix, self._files[suffix])
        except ValueError as error:
            raise self._bad(suffix, str(error)) from error

    def _file_fields(self, sample: dict[Any, Any], explained: dict[str, Any]) -> Sample:
        files: dict[Any, str] = {}
        for suffix in self._files:
            if suffix in self._used:
                continue
            field = names.field_part(suffix)
            if field == layout.VALUE and not sample:
                self._used.add(suffix)
                self._nothing_left()
                return Sample(self._file(suffix), {layout.VALUE: suffix})
            own = suffix not in explained
            key = field_name(field) if own else _key(explained[suffix], self._lifted)
            if key in sample:
                other = files.get(key, layout.JSON)
                if (suffix in self._unchanged) == (other in self._unchanged):
                    raise self._bad(suffix, f"{self._stem}.{other} has the field {str(key)[:80]!r} already")
                if suffix in self._unchanged:
                    continue
            sample[key] = self._file(suffix)
            files[key] = suffix
        return Sample(sample, files)

    def _nothing_left(self) -> None:
        for suffix in self._files:
            if suffix not in self._used:
                raise self._bad(suffix, "a field of a sample whose other files say that it is a lone value")

    def _bad(self, suffix: str, reason: str) -> BadSampleError:
        return BadSampleError(f"{self._stem}.{suffix}", reason[:300])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return made


def _key(explanation: Any, file: Callable[[str], Any]) -> Any:
    return light_json.hashable(light_json.from_json(explanation, file))


def field_name(name: str) -> str:
    """The field of a file name's part: unescaped where it is one of ours, else as it stands."""
    try:
        return names.unescape(name)
    except ValueError:
        return name


def file_value(suffix: str, data: bytes) -> Any:
    """The value of a file by its extension; ValueError where it is not what that says."""
    ext = suffix.rpartition(".")[2].lower()
    if ext in _INTS:
        return int(data) if _INT.fullmatch(data) else data
    if ext in _TEXTS:
        ext = "txt"
    try:
        return layout.file_value(f".{ext}", data)
    except ValueError:
        if ext == "png":
            return data  # it says that it was made of an array, but is none of ours any more
        raise


class Stored:
    """One stored sample: its value tree, its files' contents, and its fields' cells where the format has some.

    `record` is what the tree's references mean positions in; `files` what `lay_out` makes of the tree.
    """

    def __init__(
        self, tree: Tree, record: Buffer, files: Mapping[str, bytes], stem: str, cells: Mapping[str, Buffer] | None
    ) -> None:
        self._tree = tree
        self._record = record
        self._read = read(files, stem)
        self._cells = cells

    def restored(self, sample: Sample, contents: Mapping[str, bytes], cell: Callable[[bytes], Any]) -> tuple[Any, bool]:
        """The sample with the stored values and types in it, and whether it is the stored one in all its parts.

        A field that says what it said has its stored value, exactly (as a `cell` of its bytes where the format has
        cells); another one the stored type where that fits. Fields are in their stored order, new ones behind.
        """
        if type(self._tree) is not dict or not isinstance(sample.value, dict):
            if same(sample.value, self._read.value):
                return values.to_python(self._tree, self._record), True
            return fitted(sample.value, self._tree), False
        made: dict[Any, Any] = {}
        unchanged = len(sample.value) == len(self._tree)
        for key, old in self._tree.items():
            if key not in sample.value:
                unchanged = False
            elif same(sample.value[key], self._read.value.get(key)):
                made[key] = self._exactly(key, old, cell)
            else:
                unchanged = False
                file = sample.files.get(key)
                made[key] = _fitted_field(sample.value[key], old, file, b"" if file is None else contents[file])
        for key, new in sample.value.items():
            if key not in made:
                made[key] = new
        return made, unchanged

    def _exactly(self, key: Any, old: Tree, cell: Callable[[bytes], Any]) -> Any:
        if self._cells is not None:
            return cell(bytes(self._cells[key]))
        return values.to_python(old, self._record)


def _fitted_field(new: Any, old: Tree, file: str | None, data: bytes) -> Any:
    """A changed field as the type it had, where that fits; `file` is its file, if it is one, and `data` its content."""
    if file is None:
        return fitted(new, old)
    ext = file.rpartition(".")[2].lower()
    if isinstance(old, values.Named):
        return data
    if isinstance(old, values.Blob | bytes) and ext not in ("npy", "pkl"):
        return data  # bytes can be anything: a text, or a PNG that says it was made of an array
    if isinstance(old, values.Array | np.ndarray) and ext == "png" and isinstance(new, bytes):
        try:
            return pictures.pixels(new)  # an array that was shown as a picture, and has been through a program
        except ValueError:
            return new
    return new


def fitted(new: Any, old: Tree) -> Any:
    """A changed light value as the type it had, where that fits: numbers, and lists and dicts of them."""
    if isinstance(old, np.generic):
        return _fitted_scalar(new, old)
    if type(old) is float and type(new) is int:
        return float(new) if abs(new) <= 1 << 53 else new
    if type(old) is int and type(new) is float:
        return int(new) if new.is_integer() else new
    if type(old) is tuple and type(new) is list:
        return tuple(_fitted_items(new, old))
    if type(old) is type(new) is list or type(old) is type(new) is tuple:
        return type(old)(_fitted_items(new, old))
    if type(old) is dict and type(new) is dict:
        made = {key: fitted(new[key], item) for key, item in old.items() if key in new}
        return made | {key: item for key, item in new.items() if key not in made}
    return new


def _fitted_items(new: Any, old: Any) -> list[Any]:
    if len(new) == len(old):
        return [fitted(item, before) for item, before in zip(new, old, strict=True)]
    kinds = {type(item) for item in old}
    return [fitted(item, old[0]) for item in new] if len(kinds) == 1 else list(new)


def _fitted_scalar(new: Any, old: np.generic) -> Any:
    """A plain number as a numpy scalar of the type of `old`; as it is where that cannot hold it."""
    kinds: dict[str, tuple[type, ...]] = {"b": (bool,), "i": (int,), "u": (int,), "f": (int, float)}
    kinds |= {"c": (int, float, complex), "m": (int,)}
    if type(new) not in kinds.get(old.dtype.kind, ()):
        if type(new) is float and new.is_integer() and old.dtype.kind in "iu":
            return _fitted_scalar(int(new), old)
        return new
    try:
        with np.errstate(over="ignore"):
            made = np.array(new, old.dtype)[()]
    except (OverflowError, ValueError, TypeError):
        return new
    if old.dtype.kind == "f" and np.isinf(made) and abs(new) != float("inf"):
        return new
    return new if type(new) is int and made != new else made  # a float that would round it


def same(one: Any, other: Any) -> bool:
    """Equal in value and type, where NaN is NaN and 0.0 is not -0.0."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return len(one) == len(other) and all(key in other and same(item, other[key]) for key, item in one.items())
    if isinstance(one, list | tuple) and not isinstance(one, msgpack.ExtType | msgpack.Timestamp):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float | complex):
        return repr(one) == repr(other)
    if hasattr(one, "utcoffset"):
        return bool(one == other) and one.utcoffset() == other.utcoffset()
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and {(type(item), item) for item in one} == {(type(item), item) for item in other}
    return str(one) == str(other) if type(one).__name__ == "Decimal" else bool(one == other)
