"""Names of new shards in a data set of MosaicML Streaming: in which split, and which of them no file has yet.

Knows nothing of what is in shards or in indexes.
"""

from __future__ import annotations

import errno
import itertools
import re
from collections.abc import Collection, Iterator

from shardfs import config
from shardfs.drivers.streaming_files import listing
from shardfs.drivers.streaming_index import key_of
from shardfs.drivers.streaming_settings import LEVELS
from shardfs.errors import BadSettingError, KeyExistsError, StorageError
from shardfs.model import Key
from shardfs.storage.base import Storage
from shardfs.storage.local import TEMPORARY

INDEX = "index.json"
_REVISION = re.compile(r"(?<=.)\.r([0-9]+)$")


def splits(storage: Storage) -> list[str]:
    """The directories with an index, as far as it matters here whatever that says; a `/` behind each but the root."""
    names = [listed.name for listed in listing(storage, INDEX)]
    return [name.removesuffix(INDEX) for name in names if name.rpartition("/")[2] == INDEX]


def new_place(storage: Storage, key: Key) -> tuple[str, str]:
    """The split that a new key belongs to, and its name in there: the innermost split around it, or its own directory
    where there is none. BadSettingError for what cannot be a key."""
    parts = key.split("/")
    if any(part.startswith(TEMPORARY) or part in ("", ".", "..") for part in parts) or "\0" in key:
        raise BadSettingError(f"key {key!r}: each part between slashes must be a name")
    if key_of(f"{key}.mds") != key or key.endswith(".mds") or len(parts[-1].encode()) > config.NAME_KEEP - 16:
        raise BadSettingError(f"key {key[:80]!r} cannot be the name of a shard: it is too long, or reads as a version")
    around = max((split for split in splits(storage) if key.startswith(split)), key=len, default=None)
    split = "".join(f"{part}/" for part in parts[:-1]) if around is None else around
    return split, key[len(split) :]


def revisions(storage: Storage, split: str, basename: str, kind: str = "mds") -> Iterator[str]:
    """Names for new versions of a shard, without its format, that no file has yet: `shard.00003.r2`, `.r3`..."""
    stem = basename.removesuffix(f".{kind}")
    found = _REVISION.search(stem)
    first = 2 if found is None else int(found[1]) + 1
    plain = _REVISION.sub("", stem)
    return _free(storage, split, (f"{plain}.r{number}" for number in itertools.count(first)), kind)


def successors(
    storage: Storage, split: str, stem: str, reserved: Collection[str] = (), kind: str = "mds"
) -> Iterator[str]:
    """Names for a new shard and, should it need several, those behind it: `shard.00007`, `shard.00008`..., but none of
    the keys that are `reserved`.

    KeyExistsError where the first is in use.
    """
    if not is_free(storage, split, stem, kind):
        raise KeyExistsError(f"{split}{stem} has a file in {storage.root} already, in the index or not")
    yield stem
    match = re.fullmatch(r"(.*?)([0-9]+)", stem)
    prefix, digits = (match[1], match[2]) if match else (stem + ".", "00000")
    later = (f"{prefix}{number:0{len(digits)}d}" for number in itertools.count(int(digits) + 1))
    yield from (stem for stem in _free(storage, split, later, kind) if split + stem not in reserved)


def _free(storage: Storage, split: str, stems: Iterator[str], kind: str) -> Iterator[str]:
    return (stem for stem in stems if is_free(storage, split, stem, kind))


def is_free(storage: Storage, split: str, stem: str, kind: str = "mds") -> bool:
    parts = ("",) if kind == "mds" else ("", ".meta")
    for part, codec in itertools.product(parts, ("", *LEVELS)):
        try:
            storage.stat(f"{split}{stem}.{kind}{part}{codec and '.' + codec}")
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        else:
            return False
    return True
