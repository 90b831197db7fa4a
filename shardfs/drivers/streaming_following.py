"""What follows when shards have got into an index of a data set of MosaicML Streaming, or have not, or are to leave it.

A merged index comes first, those below it that have the same shards follow it. How shards are written and how an index
is replaced is the business of streaming_writing.py.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable

from shardfs.drivers.streaming_names import INDEX
from shardfs.drivers.streaming_order import check_numbers
from shardfs.drivers.streaming_writing import Described, Publication, basename_of
from shardfs.errors import NotWritableError, StaleShardError, StorageError
from shardfs.model import Key
from shardfs.storage.base import Storage
from shardfs.storage.local import LocalStorage

_PARTS = ("raw_data", "zip_data", "raw_meta", "zip_meta")
"""What an index calls the files of a shard."""


def published(publication: Publication) -> None:
    """Have the twins of a split say the same as it does. Errors of `Publication.publish`; NotWritableError where one
    has another version of what was replaced."""
    names = {publication.split + basename_of(shard) for shard in publication.made}
    for twin in publication.twins:
        _follow(publication, twin, names)


def _follow(publication: Publication, twin: str, names: set[str]) -> None:
    """Have one twin say the same of those shards, raw or stored files of which `names` has: in place of the one they
    replace, or behind all others. What it says already it says once."""
    split, replaces = publication.split, publication.replaces
    rest = twin[len(split) :]
    above = publication.read_index()[1]["shards"]
    wanted = [_below(shard, rest) for shard in above if any(split + name in names for name in _files_of(shard))]

    def edit(shards: list[Described]) -> list[Described]:
        there = [basename_of(shard) for shard in shards]
        made = [shard for shard in wanted if basename_of(shard) not in there]
        if replaces is None or not made:
            return [*shards, *made]
        old = replaces[len(twin) :]
        if old not in there:
            raise NotWritableError(f"{twin}{INDEX} has another version of {replaces} than {split}{INDEX} had")
        at = there.index(old)
        check_numbers(replaces, shards, at, made[0]["samples"])
        return [*shards[:at], *made, *shards[at + 1 :]]

    Publication(publication.storage, twin, temporary=publication.temporary).publish(edit)


def _files_of(shard: Described) -> list[str]:
    parts = [shard.get(part) for part in _PARTS]
    return [str(part.get("basename", "")) for part in parts if isinstance(part, dict)]


def _below(shard: Described, rest: str) -> Described:
    """What an index in a directory below says of a shard in there."""
    made = dict(shard)
    for part in _PARTS:
        if made.get(part) is not None:
            made[part] = {**made[part], "basename": made[part]["basename"].removeprefix(rest)}
    return made


def withdraw(storage: Storage, split: str, basename: str, key: Key) -> None:
    """Take a shard out of an index; its files stay. RenumberingError, StaleShardError if it is not there any more."""

    def edit(shards: list[Described]) -> list[Described]:
        names = [basename_of(shard) for shard in shards]
        if basename not in names:
            raise StaleShardError(f"{key} was replaced, or removed by somebody else")
        at = names.index(basename)
        check_numbers(key, shards, at, 0)
        return [*shards[:at], *shards[at + 1 :]]

    Publication(storage, split).publish(edit)


def settle(storage: Storage, noted: str, named: Callable[[], set[str]]) -> set[str]:
    """Clean up behind a publication that failed or whose process died, by the last text that its `note` was given. The
    files of it that indexes name, which are durable then. `named` lists the files that indexes name now;
    shards that none names are removed if they are what was written, but in stores far away, where an index that names
    them may still be on its way. StorageError."""
    told = json.loads(noted)
    split, marks = told["split"], told["files"]
    twins, replaces = told.get("twins", []), told.get("replaces")
    if not marks:  # it never came to a rename: that is known without asking the store
        for index in (split, *twins):
            storage.forget_temporary(f"{index}{INDEX}", told["temporary"])
        return set()
    for index in (split, *twins):
        storage.remove_temporary(f"{index}{INDEX}", told["temporary"])
    found: set[str] = set()
    for name, mark in marks.items():
        try:
            ours = storage.mark(name) == mark
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            continue
        if ours and name in named():
            found.add(name)
        elif ours and isinstance(storage, LocalStorage):
            storage.remove(name)
    if found:
        storage.sync(f"{split}{INDEX}")
    publication = Publication(storage, split, temporary=told["temporary"], replaces=replaces)
    for twin in twins if found else ():
        _follow(publication, twin, found)
    return found
