"""A directory of files as the files of a key whose system stores each by itself.

What was written is stored under its own name: a `.npy` and a `.json` as the value that they are, serialised as the
system does it (a `.json` with the files that it names), anything else as its bytes. A stored file may be shown as
several (a dict with arrays in it); these can be read, and removed together, but not changed one by one. Knows layout
and tables; nothing of staging or of how files are stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardfs import layout, light_json, names, reading_back, sealing
from shardfs.errors import BadSampleError
from shardfs.index import ShardTable
from shardfs.sealing import Base, Changed, Placed, Source, Stored

Files = Sequence[tuple[bytes, Source]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a key's files."""

    names: tuple[str, ...]
    """Those that are written."""
    gone: tuple[str, ...]
    """Stored ones that are removed."""
    contents: Callable[[], Iterator[tuple[str, bytes]]]
    """Name and content of each that is written, one at a time. BadSampleError, and what reading and `serialised`
    raise."""
    left: int
    """Files that the key has then."""


def plan(files: Files, base: Base | None, stored: frozenset[str], serialised: Callable[[Any], bytes]) -> Plan:
    """What these files, which are all that a key is to have, mean for the `stored` ones. BadSampleError for a name that
    cannot be a file's, and for a change to a part of a stored file."""
    shown = {name: source for name, source in files if not sealing.is_temporary(name)}
    table = None if base is None else base.table
    kept: set[str] = set()
    written: dict[str, bytes] = {}  # by the name they are stored under
    for name, source in shown.items():
        if isinstance(source, Stored) and table is not None and table.name(source.file) == name:
            kept.add(_holder(name, stored))
            continue
        target = _own_name(name)
        if target not in stored and table is not None and table.find(name) is not None:
            text = f"it is a part of {_holder(name, stored)}, which is stored as one file: write that anew"
            raise BadSampleError(name.decode("utf-8"), text)
        written[target] = name
    if table is not None:
        _check_parts(table, shown, stored, kept, written)
    used = _named_by_json(written, shown, base)
    final = {target: name for target, name in written.items() if name not in used}
    gone = sorted(stored - kept - final.keys())

    def contents() -> Iterator[tuple[str, bytes]]:
        for target, name in final.items():
            yield target, _content(name, shown, base, serialised)

    return Plan(tuple(final), tuple(gone), contents, len((stored | final.keys()) - set(gone)))


def placed(files: Files, after: ShardTable) -> Placed:
    """Where the files of a plan are in the table of what was stored: under their own names."""
    shown = [name for name, _ in files if not sealing.is_temporary(name)]
    stems = {name.partition(b".")[0] for name in shown}
    return Placed({name: after.find(name) for name in shown}, {stem: stem for stem in stems})


def _own_name(name: bytes) -> str:
    """The stored name of a file that is shown as `name`. BadSampleError for one that would be shown under another."""
    try:
        text = name.decode("utf-8")
        stem, _, suffix = text.partition(".")
        own, rest = names.unescape(stem), names.unescape(suffix)
        sound = bool(suffix) and not suffix.endswith(".") and "/" not in own + rest and "\0" not in own + rest
        if sound and names.escape_sample(own) == stem and names.own_suffix(rest, len(name)) == suffix:
            return f"{own}.{rest}"
    except ValueError as error:
        raise BadSampleError(name.decode("utf-8", "backslashreplace"), "a name that means another one") from error
    raise BadSampleError(text, "a file needs an extension, and `~` and `%` have a meaning")


def _holder(name: bytes, stored: frozenset[str]) -> str:
    """The stored file that is shown as `name`, or as several of which this is one."""
    stem, _, suffix = name.decode("utf-8").partition(".")
    own = reading_back.field_name(stem)
    direct = f"{own}.{reading_back.field_name(suffix)}"
    if direct in stored:
        return direct
    return own if own in stored else f"{own}.json"


def _check_parts(
    table: ShardTable,
    shown: Mapping[bytes, Source],
    stored: frozenset[str],
    kept: set[str],
    written: Mapping[str, bytes],
) -> None:
    """BadSampleError where some of the files that one stored file is shown as were removed, and others not."""
    for file in range(table.files):
        name = table.name(file)
        if name not in shown:
            holder = _holder(name, stored)
            if holder in kept and holder not in written:
                text = f"it is a part of {holder}, which is stored as one file: all of that can be removed"
                raise BadSampleError(name.decode("utf-8"), text)


def _named_by_json(written: Mapping[str, bytes], shown: Mapping[bytes, Source], base: Base | None) -> set[bytes]:
    """Files that become part of the `.json` that names them."""
    used: set[bytes] = set()
    for name in written.values():
        stem, _, suffix = name.partition(b".")
        if suffix == b"json":
            document = _read(shown[name], base)
            used |= {stem + b"." + part.encode("utf-8") for part in _named(document)}
    return used


def _named(document: bytes) -> set[str]:
    """The files that a `.json` names; none where it does not parse, which is told when it is read."""
    found: set[str] = set()

    def note(name: Any) -> None:
        found.add(str(name))

    try:
        parsed = json.loads(document)
        if isinstance(parsed, dict):
            for value in parsed.values():
                light_json.from_json(value, note)
    except (ValueError, RecursionError):
        return set()
    return found


def _content(
    name: bytes, shown: Mapping[bytes, Source], base: Base | None, serialised: Callable[[Any], bytes]
) -> bytes:
    """What is stored for a written file."""
    data = _read(shown[name], base)
    stem, _, suffix = name.decode("utf-8").partition(".")
    if suffix == layout.JSON:
        parts = {part: stem.encode("utf-8") + b"." + part.encode("utf-8") for part in _named(data)}
        files = {part: _read(shown[of], base) for part, of in parts.items() if of in shown}
        return _serialised(name, reading_back.read({layout.JSON: data, **files}, stem).value, serialised)
    if suffix.rpartition(".")[2] == "npy":
        try:
            value = reading_back.file_value(suffix, data)
        except ValueError as error:
            raise BadSampleError(name.decode("utf-8"), str(error)[:300]) from error
        return _serialised(name, value, serialised)
    return data


def _serialised(name: bytes, value: Any, serialised: Callable[[Any], bytes]) -> bytes:
    try:
        return serialised(value)
    except ValueError as error:
        raise BadSampleError(name.decode("utf-8"), str(error)) from error


def _read(source: Source, base: Base | None) -> bytes:
    if isinstance(source, Changed):
        return bytes(source.read())
    assert base is not None
    return base.content(source.file)
