"""Shards of a data set of MosaicML Streaming that no index names: what a rewritten shard leaves for its old readers.

A file is told by its name (`shard.00003.r2.mds.zstd` is a revision of `shard.00003`) and by how it begins, and only in
a directory of a data set, or below one. What an index names, here or in a directory above, is never told of: all of
them must be readable, or nothing is. Source of all format facts: what mosaicml-streaming 0.13.0 writes and reads, found
by running it.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shardfs import config
from shardfs.drivers import leftovers
from shardfs.drivers.garbage import Garbage, Kind
from shardfs.drivers.streaming_files import listing
from shardfs.drivers.streaming_index import BadIndexError, parse_index
from shardfs.errors import BadStoreError, NotWritableError, StaleShardError, StorageError
from shardfs.storage.base import Listed, Storage
from shardfs.storage.local import LocalStorage, touched_ns

INDEX = "index.json"
_SHARD = re.compile(r"(?P<stem>.*?[^/])(?:\.r(?P<revision>[0-9]{1,9}))?\.mds(?:\.(?P<codec>zstd|gz|bz2|br|snappy))?")
_ENDINGS = tuple(f".mds{codec}" for codec in ("", ".zstd", ".gz", ".bz2", ".br", ".snappy"))
_MAGIC = {"zstd": b"\x28\xb5\x2f\xfd", "gz": b"\x1f\x8b", "bz2": b"BZh"}


def garbage(storage: Storage) -> list[Garbage]:
    """All of it: see `Collecting`. BadStoreError, StorageError.

    Far away a shard is told by its name alone, and indexes above the store's URL are not known: nothing of what is told
    of there is to be removed without a look at those.
    """
    named, indexes = _named(storage)
    files = listing(storage, *_ENDINGS)
    shards = {listed.name: match for listed in files if (match := _SHARD.fullmatch(listed.name)) is not None}
    since_of = _since(storage)
    current = _current(files, shards, named, since_of)
    found = leftovers.leftovers(storage)
    for listed in files:
        match = shards.get(listed.name)
        index = _index_above(listed.name, indexes)
        if match is None or listed.name in named or index is None:
            continue
        if isinstance(storage, LocalStorage):
            _check_indexes(storage, listed.name, indexes)
            if not _is_shard(storage, listed, match["codec"]):
                continue
        kind, reason, since = _judged(match, current.get(match["stem"]), since_of(index))
        found.append(Garbage(listed.name, kind, reason, listed.size, max(since, since_of(listed)), listed.version))
    return sorted(found, key=lambda one: one.name)


def discard(storage: Storage, found: Garbage) -> None:
    """Remove what `garbage` told of, if that is still true: see `Collecting`. NotWritableError far away."""
    if not isinstance(storage, LocalStorage):
        raise NotWritableError(f"{storage.root} is far away, where nothing is removed")
    if leftovers.is_leftover(found.name):
        leftovers.discard(storage, found)
        return
    if _SHARD.fullmatch(found.name) is None:
        raise StaleShardError(f"{found.name} is no shard")

    def check() -> None:
        if found.name in _named(storage)[0]:
            raise StaleShardError(f"an index names {found.name} by now")

    storage.discard(found.name, found.version, check)


def _since(storage: Storage) -> Callable[[Listed], int]:
    """What tells when a file of a storage was last touched, nanoseconds since the epoch."""
    return touched_ns if isinstance(storage, LocalStorage) else lambda listed: listed.mtime_ns


def _judged(match: re.Match[str], current: tuple[int, str, int] | None, index_ns: int) -> tuple[Kind, str, int]:
    """What a shard that no index names is, why, and since when; `current` is the revision that an index names."""
    if current is None:
        return "unnamed", "no index names it, nor another version of it", index_ns
    revision, name, since = current
    if _revision(match) < revision:
        return "superseded", f"{name.rpartition('/')[2]} is in its place", since
    return "unfinished", "a new version that no index names", since


def _revision(match: re.Match[str]) -> int:
    return int(match["revision"] or 1)


def _current(
    files: list[Listed], shards: dict[str, re.Match[str]], named: set[str], since_of: Callable[[Listed], int]
) -> dict[str, tuple[int, str, int]]:
    """Of each shard the highest revision that an index names and that is there: its number, its file, since when."""
    current: dict[str, tuple[int, str, int]] = {}
    for listed in files:
        if listed.name in named and listed.name in shards:
            match = shards[listed.name]
            made = _revision(match), listed.name, since_of(listed)
            current[match["stem"]] = max(made, current.get(match["stem"], made))
    return current


def _named(storage: Storage) -> tuple[set[str], dict[str, Listed]]:
    """All files that indexes name, and the indexes by their directory with a `/` behind it. BadStoreError if there is
    none, or one that cannot be read."""
    named: set[str] = set()
    indexes: dict[str, Listed] = {}
    for listed in listing(storage, INDEX):
        split, _, last = listed.name.rpartition("/")
        if last == INDEX:
            split += "/" if split else ""
            indexes[split] = listed
            data = storage.read(listed.name, config.STREAMING_INDEX)
            named |= {split + name for name in _names_in(data, split, listed.name)}
    if not indexes:
        raise BadStoreError(f"no {INDEX} in {storage.root} or below it: nobody knows what is needed there")
    if isinstance(storage, LocalStorage):
        named.update(_names_above(storage.root))
    return named, indexes


def _names_in(data: bytes, split: str, what: str) -> Iterator[str]:
    try:
        parse_index(data, split)
    except BadIndexError as error:
        raise BadStoreError(f"{what}: {error}: so nobody knows what is needed") from error
    for shard in json.loads(data)["shards"]:
        yield from _basenames(shard)


def _basenames(shard: dict[str, Any]) -> Iterator[str]:
    """The files of a shard, of whatever format."""
    for part in shard.values():
        if isinstance(part, dict) and isinstance(part.get("basename"), str):
            yield part["basename"]


def _names_above(root: Path) -> Iterator[str]:
    """What merged indexes in the directories above name of this one, relative to it."""
    here = root.resolve()
    for above in here.parents:
        path = above / INDEX
        try:
            data = path.read_bytes()
            index = json.loads(data)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, RecursionError) as error:
            raise BadStoreError(f"{path} cannot be read ({error}): it may name shards below it") from error
        if not isinstance(index, dict) or index.get("version") != 2:
            continue  # something else's
        before = here.relative_to(above).as_posix() + "/"
        names = _names_in(data, "", str(path))
        yield from (name.removeprefix(before) for name in names if name.startswith(before))


def _index_above(name: str, indexes: dict[str, Listed]) -> Listed | None:
    """The innermost index that could name a file."""
    return next((indexes[split] for split in _splits_above(name) if split in indexes), None)


def _splits_above(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name + "/"
    yield ""


def _check_indexes(storage: LocalStorage, name: str, indexes: dict[str, Listed]) -> None:
    """BadStoreError where an index above a file is none that is read here: a link, for instance."""
    for split in _splits_above(name):
        if split not in indexes and (storage.root / split / INDEX).is_symlink():
            raise BadStoreError(f"{split}{INDEX} is a link, and not followed: so nobody knows what is needed")


def _is_shard(storage: LocalStorage, listed: Listed, codec: str | None) -> bool:
    """Whether a file begins as a shard does: a raw one with as many positions as it has samples, the last of which is
    its end. What has no such mark (brotli, snappy) is told by its name only."""
    try:
        with storage.open(listed.name, listed.version) as reader:
            if codec is not None:
                return bytes(reader.read_at(0, 4)).startswith(_MAGIC.get(codec, b""))
            samples = int.from_bytes(reader.read_at(0, 4), "little")
            last = 4 + 4 * samples
            if last + 4 > reader.size or samples > config.MDS_SHARD // 4:
                return False
            return int.from_bytes(reader.read_at(last, 4), "little") == reader.size
    except (StaleShardError, StorageError) as error:
        if isinstance(error, StorageError) and error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM):
            raise
        return False
