"""New shards in a data set of MosaicML Streaming: files under new names, and then a new index.json that names them.

A shard's file is never written over: readers cache by name and do not look again. What has been written counts from
the rename of index.json on; before it, nobody sees it, and shards that were superseded stay for those who still read
them. Knows nothing of reading; encoding is the business of mds_writing.py. Source of all format facts: what
mosaicml-streaming 0.13.0 writes and reads, found by running it.

The index is read again and edited when all shards are written, and replaced under a lock of its directory (flock) if it
is still what was read: two writers of this kind lose nothing. A program that writes index.json without that lock (the
library's MDSWriter and merge_index do, in place) can lose its own change or this one if it writes in the very moment
between the look and the rename; the shards of the loser are still there then, but not in the index.
"""

from __future__ import annotations

import errno
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from shardfs import compression, config
from shardfs.drivers import mds, mds_writing
from shardfs.drivers.base import NewRecord, Note, Verbatim
from shardfs.drivers.hashes import HASHES, hasher
from shardfs.drivers.streaming_index import BadIndexError, key_of, parse_index
from shardfs.drivers.streaming_order import check_numbers
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    KeyExistsError,
    MissingExtraError,
    ShardfsError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Key
from shardfs.storage.local import TEMPORARY, Listed, LocalStorage, temporary_name

INDEX = "index.json"
_CODEC = re.compile(r"(zstd|gz)(?::([0-9]{1,2}))?")
_REVISION = re.compile(r"(?<=.)\.r([0-9]+)$")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(kb|mb|gb|b|)")

Described = dict[str, Any]
"""One shard in an index."""


def bytes_of(size: int | str | None) -> int | None:
    """A size as the library has them: a number of bytes, or a text as `64mb`. BadSettingError."""
    if size is None or isinstance(size, int):
        made = size
    else:
        match = _SIZE.fullmatch(size.lower().replace(" ", ""))
        if match is None:
            raise BadSettingError(f"size {size!r}: use bytes, or a number with kb, mb or gb")
        made = int(float(match[1]) * {"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}.get(match[2], 1))
    if made is not None and not 0 < made <= config.MDS_SHARD:
        raise BadSettingError(f"size {size!r}: a shard holds less than 4 GiB")
    return made


class _IndexMovedError(Exception):
    """The index is not what it was when it was read."""


@dataclass
class Publication:
    """Shards on their way into one split. `split` is its directory with a `/` behind it, or nothing; `note` is told of
    every file before it is there, as `Driver.write_records` says."""

    storage: LocalStorage
    split: str
    note: Note | None = None
    made: list[Described] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    marks: dict[str, str] = field(default_factory=dict)
    """Of what was written: name -> mark of its content."""
    temporary: str = field(default_factory=temporary_name)
    held: ExitStack = field(default_factory=ExitStack)
    """Keeps what was written from being taken for garbage until the index names it."""

    def _note(self) -> None:
        if self.note is not None:
            self.note(json.dumps({"split": self.split, "temporary": self.temporary, "files": self.marks}))

    def read_index(self, limit: int) -> tuple[Listed | None, Described]:
        """The index and what the listing says of it; an empty one where there is none.
        BadStoreError for a doubtful one."""
        name = self.split + INDEX
        try:
            listed = self.storage.stat(name)
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            return None, {"shards": [], "version": 2}
        data = self.storage.read(name, limit)
        try:
            parse_index(data, self.split)
        except BadIndexError as error:
            raise BadStoreError(f"{name}: {error}, so nothing is added to it") from error
        return listed, json.loads(data)

    def write_shards(
        self,
        records: Iterable[NewRecord],
        template: Described | None,
        limit: int | None,
        stems: Iterator[str],
        given: mds.Columns | None = None,
    ) -> None:
        """Write all records as shards with the settings of `template` (None: those of a new data set), a new one where
        `limit` bytes would be exceeded, called by `stems` in turn. Columns are those `given`, else the template's, else
        made for the first record. StorageError, EFBIG for 4 GiB in one."""
        self._note()
        records = iter(records)
        first = next(records, None)
        if first is None:
            raise BadSettingError("no samples: an MDS shard without any is nothing that the library can read")
        known = template is not None and "column_names" in template
        made = given or (template_columns(template) if template is not None and known else _inferred(first))
        shard = _settings(template, made)
        description = mds_writing.description(shard)
        numbered = (_packed(record, made) for record in itertools.chain((first,), records))
        self.storage.make_directory(self.split)
        with ExitStack() as stack:
            raw = stack.enter_context(mds_writing.RawShard(description, str(self.storage.root)))
            for record in numbered:
                size = raw.size_with(len(record))
                if limit is not None and len(raw) and size > limit:
                    self._store(raw, shard, next(stems))
                    raw.__exit__()
                    raw = stack.enter_context(mds_writing.RawShard(description, str(self.storage.root)))
                    size = raw.size_with(len(record))
                if size > config.MDS_SHARD:
                    raise StorageError("4 GiB or more in one MDS shard, which has no room for them", errno.EFBIG)
                raw.add(record)
            self._store(raw, shard, next(stems))

    def _store(self, raw: mds_writing.RawShard, shard: Described, stem: str) -> None:
        basename = f"{stem}.mds"
        codec, level, ending = codec_of(shard["compression"])
        raw_data, zip_data = _Counted(shard["hashes"]), _Counted(shard["hashes"])

        def write(file: BinaryIO) -> None:
            zip_data.file = file
            with compression.compressing(codec, zip_data, level) as put:  # type: ignore[arg-type]
                for piece in raw.pieces():
                    raw_data.write(piece)
                    put(piece)

        name = basename + ending

        def marked(mark: str) -> None:
            self.marks[self.split + name] = mark
            self._note()

        told = None if self.note is None else marked
        held = self.held if len(self.made) < config.SHARDS_HELD else None
        self.storage.put(self.split + name, write, replace=False, temporary=self.temporary, marked=told, held=held)
        self.files.append(self.split + name)
        self._check_readable(raw, shard, codec, raw_data.size, raw_data.size if codec is None else zip_data.size)
        described = {**shard, "samples": len(raw), "raw_data": raw_data.described(basename), "zip_data": None}
        if codec is not None:
            described["zip_data"] = zip_data.described(name)
        self.made.append(described)

    @staticmethod
    def _check_readable(raw: mds_writing.RawShard, shard: Described, codec: str | None, size: int, stored: int) -> None:
        """BadSettingError for a shard whose content would be taken for an attack when it is read."""
        values = len(raw) * len(shard["column_names"])
        if values > config.TOKEN_FLOOR + config.TOKENS_PER_STORED_BYTE * stored or size > compression.raw_limit(
            codec, stored
        ):
            raise BadSettingError("too many samples so much alike for one key: they could not be read again")

    def publish(self, edit: Callable[[list[Described]], list[Described]], limit: int) -> None:
        """Replace the index by one whose list of shards is what `edit` makes of it; whatever it raises, the shards are
        removed again. StaleShardError for an index that never holds still."""
        try:
            for _ in range(config.INDEX_RACES):
                listed, index = self.read_index(limit)
                index["shards"] = edit(index["shards"])
                data = json.dumps(index, sort_keys=True).encode("ascii")
                try:
                    self._replace(data, listed)
                    return
                except _IndexMovedError:
                    continue
            raise StaleShardError(f"{self.split}{INDEX} keeps changing while it is being replaced")
        except BaseException:
            self.abandon(limit)
            raise
        finally:
            self.held.close()

    def _replace(self, data: bytes, listed: Listed | None) -> None:
        name = self.split + INDEX

        def write(file: BinaryIO) -> None:
            file.write(data)

        def check() -> None:
            try:
                now = self.storage.stat(name)
            except StorageError as error:
                if error.errno != errno.ENOENT:
                    raise
                now = None
            if now != listed:
                raise _IndexMovedError

        try:
            self.storage.put(name, write, check=check, replace=listed is not None, temporary=self.temporary)
        except StorageError as error:
            if error.errno == errno.EEXIST:
                raise _IndexMovedError from error
            raise

    def abandon(self, limit: int) -> None:
        """Remove the shards, which were not published: whatever failed, only if the index there is now names none."""
        self.held.close()
        try:
            shards = self.read_index(limit)[1]["shards"]
        except (ShardfsError, ValueError):
            return  # what nobody names does no harm, and what somebody names is all there is
        if not {shard["raw_data"]["basename"] for shard in self.made}.intersection(map(basename_of, shards)):
            for name in self.files:
                self.storage.remove(name)
            self.files.clear()


def withdraw(storage: LocalStorage, split: str, basename: str, key: Key, limit: int) -> None:
    """Take a shard out of an index; its files stay. RenumberingError, StaleShardError if it is not there any more."""

    def edit(shards: list[Described]) -> list[Described]:
        names = [basename_of(shard) for shard in shards]
        if basename not in names:
            raise StaleShardError(f"{key} was replaced, or removed by somebody else")
        at = names.index(basename)
        check_numbers(key, shards, at, 0)
        return [*shards[:at], *shards[at + 1 :]]

    Publication(storage, split).publish(edit, limit)


def settle(storage: LocalStorage, noted: str, named: Callable[[], set[str]]) -> set[str]:
    """Clean up behind a publication that failed or whose process died, by the last text that its `note` was given. The
    files of it that indexes name, which are durable then. `named` lists the files that indexes name now;
    shards that none names are removed if they are what was written. StorageError."""
    told = json.loads(noted)
    split, marks = told["split"], told["files"]
    storage.remove_temporary(f"{split}{INDEX}", told["temporary"])
    published: set[str] = set()
    for name, mark in marks.items():
        try:
            ours = storage.mark(name) == mark
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            continue
        if ours and name in named():
            published.add(name)
        elif ours:
            storage.remove(name)
    if published:
        storage.sync(f"{split}{INDEX}")
    return published


def basename_of(shard: Any) -> str:
    """The raw file that an index has for a shard, relative to it; nothing for what has none."""
    raw = shard.get("raw_data") if isinstance(shard, dict) else None
    return str(raw.get("basename", "")) if isinstance(raw, dict) else ""


class _Counted:
    """What goes through it on the way to a file: how many bytes, and their hashes."""

    def __init__(self, hashes: list[str]) -> None:
        self.file: BinaryIO | None = None
        self.size = 0
        self._hashes = {}
        for name in hashes:
            made = hasher(name)
            if made is None and name in HASHES:
                raise MissingExtraError(f"{name} needs the package xxhash: pip install 'shardfs[hashes]'")
            if made is None:
                raise BadSettingError(f"the index has {name} hashes, which are not known here")
            self._hashes[name] = made

    def write(self, data: bytes) -> int:
        if self.file is not None:
            self.file.write(data)
        self.size += len(data)
        for made in self._hashes.values():
            made.update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def described(self, basename: str) -> Described:
        hashes = {name: made.hexdigest() for name, made in self._hashes.items()}
        return {"basename": basename, "bytes": self.size, "hashes": hashes}


def codec_of(text: str | None) -> tuple[str | None, int | None, str]:
    """Codec, level and file ending of an index's compression. BadSettingError for one that is not written here."""
    if text is None:
        return None, None, ""
    match = _CODEC.fullmatch(text)
    if match is None:
        raise BadSettingError(f"the index has compression {text}, which is not written here")
    return match[1], None if match[2] is None else int(match[2]), "." + match[1]


def template_columns(template: Mapping[str, Any]) -> mds.Columns:
    return mds.columns(*(tuple(template[f"column_{part}"]) for part in ("names", "encodings", "sizes")))


def _inferred(first: NewRecord) -> mds.Columns:
    if isinstance(first, Verbatim):
        raise BadSettingError("stored records without the columns of their data set")
    return mds_writing.infer(first.sample, first.name)


def _settings(template: Described | None, made: mds.Columns) -> Described:
    """What the index and the shard itself say of a new shard, besides its files."""
    old = template or {}
    return {
        "column_names": list(made.names),
        "column_encodings": list(made.encodings),
        "column_sizes": list(made.sizes),
        "compression": old.get("compression"),
        "format": "mds",
        "hashes": sorted(old.get("hashes") or []),
        "size_limit": old.get("size_limit"),
        "version": 2,
    }


def _packed(record: NewRecord, made: mds.Columns) -> bytes | memoryview:
    return record.data if isinstance(record, Verbatim) else mds_writing.record(made, record.sample, record.name)


def splits(storage: LocalStorage) -> list[str]:
    """The directories with an index, as far as it matters here whatever that says; a `/` behind each but the root."""
    names = [listed.name for listed in storage.list((INDEX,))]
    return [name.removesuffix(INDEX) for name in names if name.rpartition("/")[2] == INDEX]


def new_place(storage: LocalStorage, key: Key) -> tuple[str, str]:
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


def revisions(storage: LocalStorage, split: str, basename: str) -> Iterator[str]:
    """Names for new versions of a shard, without `.mds`, that no file has yet: `shard.00003.r2`, `.r3`..."""
    stem = basename.removesuffix(".mds")
    found = _REVISION.search(stem)
    first = 2 if found is None else int(found[1]) + 1
    plain = _REVISION.sub("", stem)
    return _free(storage, split, (f"{plain}.r{number}" for number in itertools.count(first)))


def successors(storage: LocalStorage, split: str, stem: str, reserved: Collection[str] = ()) -> Iterator[str]:
    """Names for a new shard and, should it need several, those behind it: `shard.00007`, `shard.00008`..., but none of
    the keys that are `reserved`.

    KeyExistsError where the first is in use.
    """
    if not is_free(storage, split, stem):
        raise KeyExistsError(f"{split}{stem} has a file in {storage.root} already, in the index or not")
    yield stem
    match = re.fullmatch(r"(.*?)([0-9]+)", stem)
    prefix, digits = (match[1], match[2]) if match else (stem + ".", "00000")
    later = (f"{prefix}{number:0{len(digits)}d}" for number in itertools.count(int(digits) + 1))
    yield from (stem for stem in _free(storage, split, later) if split + stem not in reserved)


def _free(storage: LocalStorage, split: str, stems: Iterator[str]) -> Iterator[str]:
    return (stem for stem in stems if is_free(storage, split, stem))


def is_free(storage: LocalStorage, split: str, stem: str) -> bool:
    for ending in ("", ".zstd", ".gz", ".bz2", ".br", ".snappy"):
        try:
            storage.stat(f"{split}{stem}.mds{ending}")
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
        else:
            return False
    return True
