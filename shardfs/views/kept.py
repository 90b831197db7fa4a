"""The columns of a view over all keys in a file, so that the next mount need not make them again: beside the index, and
a cache as that is. Whatever is wrong with it is as if it were not there.

What is kept of a key counts for just the version, and the name in the view, that it was made of. Synchronous, for
workers. Knows nothing of how columns are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zstandard

from shardfs import config
from shardfs.strings import Strings
from shardfs.tree import KeyDirectory
from shardfs.views.columns import KeyFiles, Numbers, Rests

log = logging.getLogger("shardfs")

FORMAT = 1
"""Raised whenever a column means something else, or other files are shown than before."""

_KINDS = {"files": np.uint32, "samples": np.uint32, "sizes": np.uint64, "rest": np.uint32, "groups": np.uint32}

Kept = tuple[KeyFiles, Numbers]
"""A key's files, and for each the number of its directory."""


def path_beside(index: Path, view: str, heavy: str | None) -> Path:
    """Where the columns of a view lie."""
    said = f"{FORMAT}\0{view}\0{heavy or ''}\0{heavy is None}"
    name = hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return index.with_name(f"{index.stem}.view-{name}")


def save(
    path: Path, parts: Sequence[tuple[KeyDirectory, KeyFiles, Numbers]], paths: Sequence[tuple[bytes, ...]]
) -> None:
    """Keep columns, in place of what was there. What cannot be written is not kept."""
    heads = []
    for key, files, groups in parts:
        stems = None if files.stems is None else [files.stems.data, files.stems.starts.tobytes()]
        columns = [getattr(files, name).astype(kind).tobytes() for name, kind in list(_KINDS.items())[:4]]
        columns.append(groups.astype(np.uint32).tobytes())
        named = [_raw(key.entry.key), _raw(key.entry.version), files.prefix]
        heads.append([*named, files.digits, files.first, files.all_samples, stems, columns])
    rests = parts[0][1].rests.texts if parts else []
    packed = msgpack.packb([FORMAT, heads, rests, [list(one) for one in paths]])
    if len(packed) > config.VIEW_KEPT:
        return
    data = zstandard.compress(packed, config.INDEX_LEVEL)
    made = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        made.write_bytes(zlib.crc32(data).to_bytes(4, "big") + data)
        made.replace(path)
    except OSError as error:
        log.debug("the columns of a view were not kept: %s", error)
        with contextlib.suppress(OSError):
            made.unlink()


def load(
    path: Path,
    keys: Sequence[KeyDirectory],
    prefix: Callable[[KeyDirectory], bytes],
    rests: Rests,
    number: Callable[[tuple[bytes, ...]], int],
) -> dict[int, Kept]:
    """What is kept of these keys, by slot. `number` numbers a directory."""
    try:
        stored = path.read_bytes() if path.stat().st_size <= config.VIEW_KEPT else b""
        if zlib.crc32(stored[4:]) != int.from_bytes(stored[:4], "big") or not stored:
            return {}
        with zstandard.ZstdDecompressor(max_window_size=config.ZSTD_WINDOW).stream_reader(stored[4:]) as stream:
            packed = stream.read(config.VIEW_KEPT + 1)
        form, heads, texts, paths = msgpack.unpackb(packed, max_bin_len=len(packed))
        if form != FORMAT:
            return {}
        by_name = {(_raw(key.entry.key), _raw(key.entry.version)): key for key in keys}
        return dict(_restored(heads, by_name, prefix, rests, rests.numbers(texts), [*map(tuple, paths)], number))
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, zstandard.ZstdError) as error:
        log.debug("the columns of a view that were kept are of no use: %s", error)
        return {}


def _restored(
    heads: list[Any],
    by_name: dict[tuple[bytes, bytes], KeyDirectory],
    prefix: Callable[[KeyDirectory], bytes],
    rests: Rests,
    numbers: Numbers,
    paths: list[tuple[bytes, ...]],
    number: Callable[[tuple[bytes, ...]], int],
) -> Iterator[tuple[int, Kept]]:
    groups = np.array([number(path) for path in paths], np.int32)
    for name, version, own, digits, first, samples, stems, columns in heads:
        key = by_name.get((name, version))
        if key is None or prefix(key) != own:
            continue
        found = {kind: np.frombuffer(part, dtype) for (kind, dtype), part in zip(_KINDS.items(), columns, strict=True)}
        strings = None if stems is None else _strings(*stems)
        if not (0 <= int(digits) <= config.NAME_MAX and int(first) >= 0 and int(samples) >= 0):
            raise ValueError("impossible numbers")
        count = len(found["files"])
        if any(len(column) != count for column in found.values()):
            raise ValueError("columns of different lengths")
        if int(found["samples"].max(initial=0)) >= max(samples, 1) or (strings is not None and len(strings) != samples):
            raise ValueError("samples are missing")
        files = KeyFiles(key, strings, digits, first, samples, own, rests)
        files.fill(found["files"], found["samples"], found["sizes"], numbers[found["rest"]])
        yield key.slot, (files, groups[found["groups"]])


def _strings(data: bytes, starts: bytes) -> Strings:
    found = np.frombuffer(starts, np.uint64)
    if not len(found) or int(found[-1]) != len(data) or bool(np.any(found[1:] < found[:-1])):
        raise ValueError("names are missing")
    return Strings(data, found)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
