"""A sample as files, and files as a sample: DESIGN section "The tree", for one sample.

`lay_out` names the files and knows each one's exact size; `read_back` is its inverse. Knows nothing of shards' tables,
caches or mounts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardfs import config, images, light_json, names, values
from shardfs.values import Buffer, Content, Tree

JSON = "json"
FIELDS = "$fields"
VALUE = "$value"
ESCAPED = "$esc"


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One file of a sample."""

    suffix: str
    """Its name without `<sample>.`: `image.jpg`, `json`."""
    content: Content


def lay_out(tree: Tree, raw: Buffer, arrays: str, stem_bytes: int) -> list[FilePlan]:
    """The files of one sample, in the order of its fields, `json` last.

    `arrays` is `png` or `npy`, with config.TEXT_FILES behind it where each text field is to be a `.txt`; `stem_bytes`
    the length of the sample's name, which takes its share of 255 bytes.
    """
    return _Layout(raw, arrays, config.NAME_MAX - stem_bytes - 1).sample(tree)


class _Layout:
    """The state of laying out one sample: files so far, names taken, names that need explaining.

    A path begins with the field's name as it is in file names, escaped; the rest of it is plain text.
    """

    def __init__(self, raw: Buffer, arrays: str, room: int) -> None:
        self._raw = raw
        self._arrays = arrays.removesuffix(config.TEXT_FILES)
        self._text_files = arrays.endswith(config.TEXT_FILES)
        self._room = room
        self._files: list[FilePlan] = []
        self._taken: dict[str, int] = {JSON: 1}
        self._explained: dict[str, Any] = {}

    def sample(self, tree: Tree) -> list[FilePlan]:
        if type(tree) is values.Members:
            return [
                FilePlan(names.own_suffix(file.suffix, self._room), file.content(self._raw, self._arrays))
                for file in tree.files
            ]
        if type(tree) is dict:
            light = self._fields(tree)
        elif self._is_file(tree):
            self._add(tree, (VALUE,))
            return self._files
        else:
            light = {VALUE: light_json.to_json(tree, self._add, (VALUE,))}
        if self._explained:
            light[FIELDS] = self._explained
        if light or not self._files:
            data = light_json.json_bytes(light)
            self._files.append(FilePlan(JSON, Content(JSON, len(data), render=lambda: data)))
        return self._files

    def _fields(self, tree: dict[Any, Any]) -> dict[str, Any]:
        light: dict[str, Any] = {}
        unnamed: list[tuple[Any, Any]] = []
        for key, value in tree.items():
            if self._is_file(value):
                self._file_field(key, value)
            elif type(key) is str:
                light[key] = light_json.to_json(value, self._add, (names.escape(key[: config.NAME_MAX]),))
            else:
                unnamed.append((key, value))
        if unnamed:
            self._unnamed_fields(unnamed, light)
        if FIELDS in light or light_json.looks_tagged(light):
            return {ESCAPED: light}
        return light

    def _is_file(self, value: Any) -> bool:
        return values.is_file(value) or (self._text_files and isinstance(value, str))

    def _file_field(self, key: Any, value: Any) -> None:
        text = key if isinstance(key, str) else _display(key)
        field = names.escape(text[: config.NAME_MAX])
        suffix = self._add(value, (field,))
        folder = isinstance(value, values.Folder)
        shown = suffix.partition("/")[0] if folder else names.field_part(suffix)
        if not isinstance(key, str) or len(key) > config.NAME_MAX or shown != field:
            suffix = shown if folder else suffix
            self._explained[suffix] = light_json.to_json(key, light_json.no_lift, ())

    def _unnamed_fields(self, fields: list[tuple[Any, Any]], light: dict[str, Any]) -> None:
        """Light fields whose names are no text: shown under a text, and explained."""
        counts: dict[str, int] = {}
        for key, value in fields:
            shown = text = _display(key)
            # what is explained must mean one thing: no file may have the same name, those of the values below included
            while shown in light or names.same_name(shown) in self._taken or shown == FIELDS:
                counts[text] = counts.get(text, 1) + 1
                shown = f"{text}~{counts[text]}"
            self._taken[names.same_name(shown)] = 1
            light[shown] = light_json.to_json(value, self._add, (names.escape(shown),))
            self._explained[shown] = light_json.to_json(key, light_json.no_lift, ())

    def _add(self, value: Any, path: tuple[str, ...]) -> str:
        if isinstance(value, values.Folder):
            return self._add_folder(value, path)
        content = values.content_of(value, self._raw, self._arrays)
        if isinstance(value, values.Named):
            suffix = names.own_suffix(value.suffix, self._room)
        else:
            suffix = names.file_suffix(path[0], path[1:], content.ext, self._room)
        suffix = names.tell_apart(suffix, self._taken, self._room)
        self._files.append(FilePlan(suffix, content))
        return suffix

    def _add_folder(self, folder: values.Folder, path: tuple[str, ...]) -> str:
        """A directory of files that keep their own names. What is shown of it in JSON: the one entry in it, or it."""
        name = names.folder_name(path[0], path[1:], self._room)
        name = names.tell_folders_apart(name, self._taken, self._room)
        for inner, offset, length in folder.files:
            self._files.append(FilePlan(f"{name}/{inner}", Content("", length, b"", offset)))
        entries = {inner.partition("/")[0] for inner, _, _ in folder.files}
        return f"{name}/{entries.pop()}" if len(entries) == 1 else name


def _display(key: Any) -> str:
    """A text for the name of a field that is none."""
    return key[:100].decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)[:100]


def read_back(files: Mapping[str, bytes]) -> Any:
    """The sample that `lay_out` made these files of, given as suffix -> content.

    Values come back as they were, but numpy scalars as plain numbers. ValueError for what is no sample.
    """
    document = json.loads(files[JSON]) if JSON in files else {}
    if not isinstance(document, dict):
        raise ValueError("the .json of a sample holds an object")
    explained = document.pop(FIELDS, {})
    used: set[str] = {JSON}

    def file(name: str) -> Any:
        used.add(name)
        return file_value(name, files[name])

    if set(document) == {VALUE}:
        return light_json.from_json(document[VALUE], file)
    if set(document) == {ESCAPED}:
        document = document[ESCAPED]
    if not isinstance(document, dict) or not isinstance(explained, dict):
        raise ValueError("the .json of a sample holds its fields")
    sample: dict[Any, Any] = {}
    for name, value in document.items():
        own = name not in explained or name in files
        key = name if own else light_json.hashable(light_json.from_json(explained[name], file))
        sample[key] = light_json.from_json(value, file)
    for suffix, data in files.items():
        if suffix in used:
            continue
        stem = names.field_part(suffix)
        if stem == VALUE:
            return file_value(suffix, data)
        own = suffix not in explained
        key = names.unescape(stem) if own else light_json.hashable(light_json.from_json(explained[suffix], file))
        sample[key] = file_value(suffix, data)
    return sample


def file_value(suffix: str, data: bytes) -> Any:
    """The value a file's content stands for: an array for `.npy` and for a `.png` made of one, else its bytes.

    ValueError for a `.npy` that holds no array.
    """
    ext = suffix.rpartition(".")[2]
    if ext == "npy":
        try:
            return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False, max_header_size=len(data))
        except (EOFError, MemoryError, OverflowError) as error:
            raise ValueError(f"{suffix} holds no array") from error
    if ext == "png" and images.read_mark(data) == "ndarray":
        width, height, _, pixels = images.unpng(data)
        return np.frombuffer(pixels, np.uint8).reshape(height, width, -1)
    if ext == "txt":
        return data.decode("utf-8", "surrogatepass")
    if ext == "pkl":
        return values.Pickle(0, len(data), data)
    return data
