"""Stores in which a key is one file, called as the key with an ending that says how it is compressed: which file a key
has, its versions, how it is replaced all at once, and how a write ended that nobody saw the end of.

Knows nothing of what is in the files, nor of which endings there are. The ending is part of a version: the same key may
move from one to another.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO

from shardfs import compression, config
from shardfs.drivers.base import Note
from shardfs.errors import BadSettingError, KeyExistsError, MissingKeyError, StaleShardError, StorageError
from shardfs.model import Entry, Key, Version
from shardfs.storage.base import Listed, Reader, Storage
from shardfs.storage.local import TEMPORARY, temporary_name

ABSENT = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENAMETOOLONG))
"""Errors that say that there is no such file, or can be none."""

Write = Callable[[BinaryIO], None]
"""What puts a shard into a file."""


class KeyFiles:
    """The files of keys in a storage. `codecs`: compression by ending, None for raw files; of several
    files that one key has the one whose ending stands first counts. A driver's own word will do for a compression that
    the driver undoes by itself."""

    def __init__(self, storage: Storage, codecs: Mapping[str, str | None]) -> None:
        self._storage = storage
        self._codecs = codecs

    # --- which file -------------------------------------------------------------------------------------------------

    def ending(self, name: str) -> str:
        """The ending of a file's name, or of a version."""
        return next(ending for ending in self._codecs if name.endswith(ending))

    def key_of(self, name: str) -> Key:
        return Key(name.removesuffix(self.ending(name)))

    def entry_of(self, listed: Listed) -> Entry:
        """What a listing says of a file, as that of its key."""
        ending = self.ending(listed.name)
        raw = listed.size if self._codecs[ending] is None else None
        return Entry(self.key_of(listed.name), Version(f"{listed.version}{ending}"), listed.size, listed.mtime_ns, raw)

    def entry(self, key: Key, endings: Iterable[str] = ()) -> Entry:
        """The listing of one key, fresh; with `endings`, only if it has a file of these. MissingKeyError."""
        for ending in endings or self._codecs:
            try:
                return self.entry_of(self._storage.stat(key + ending))
            except StorageError as error:
                if error.errno not in ABSENT:
                    raise
        raise MissingKeyError(f"no key {key!r} in {self._storage.root}")

    def name(self, entry: Entry) -> str:
        """The file of the version that an entry speaks of."""
        return entry.key + self.ending(entry.version)

    def codec(self, entry: Entry) -> str | None:
        return self._codecs[self.ending(entry.version)]

    def version(self, entry: Entry) -> Version:
        """The file's own version."""
        return Version(entry.version.removesuffix(self.ending(entry.version)))

    # --- reading ----------------------------------------------------------------------------------------------------

    def objects(self, entry: Entry) -> list[tuple[str, Version]]:
        """See StoresObjects."""
        return [(self.name(entry), self.version(entry))]

    def mark(self, entry: Entry) -> str:
        return self._storage.mark(self.name(entry), self.version(entry))

    def open(self, entry: Entry) -> Reader:
        """The file, just that version of it. StaleShardError also where it is gone; StorageError."""
        try:
            return self._storage.open(self.name(entry), self.version(entry))
        except StorageError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            raise StaleShardError(f"{entry.key} is gone since it was listed") from error

    def estimate(self, entry: Entry) -> int:
        """Raw bytes that decompressing will give, as far as can be told cheaply. StaleShardError, StorageError."""
        codec = self.codec(entry)
        assert codec is not None
        if not self._storage.at_hand(self.name(entry), self.version(entry)):
            return entry.stored_bytes * config.REMOTE_RATIO  # to look would cost as much as to fetch
        with self.open(entry) as reader:
            return raw_size(reader, codec)

    def costly(self, entry: Entry) -> str | None:
        """The file's name, where decompressing it costs more than reading what comes out: see KeepsRaw."""
        return self.name(entry) if self.codec(entry) in compression.COSTLY else None

    # --- writing ----------------------------------------------------------------------------------------------------

    def check_key(self, key: str) -> None:
        """BadSettingError for what cannot be a key of a store in a directory."""
        check_key(key, max(map(len, self._codecs)))

    def put(self, key: Key, ending: str, write: Write) -> None:
        """Have what `write` writes in the key's file, in the place of whatever it had. StorageError."""
        self._storage.put(key + ending, write)
        self._remove_others(key, ending)

    def put_new(self, key: Key, ending: str, write: Write, *, base: Entry | None, note: Note | None) -> Entry:
        """The same in the place of `base`, or as a new key: see `Driver.write_records`. StaleShardError,
        KeyExistsError, StorageError."""
        noted = {"file": key + ending, "temporary": temporary_name()}
        if note is not None:
            note(json.dumps(noted))
        try:
            listed = self._storage.put(
                key + ending,
                write,
                check=lambda: self._check_current(key, base),
                replace=base is not None,
                expected=None if base is None else self.version(base),
                temporary=noted["temporary"],
                marked=None if note is None else lambda mark: note(json.dumps({**noted, "mark": mark})),
            )
        except (StaleShardError, KeyExistsError, StorageError) as error:
            refused = not isinstance(error, StorageError) or error.errno == errno.EEXIST
            if refused and note is not None:
                note(json.dumps(noted))  # what is there is another's, even if it should be the same
            if base is None and refused and isinstance(error, StorageError):
                raise KeyExistsError(f"{key} is in {self._storage.root} already") from error
            raise
        self._remove_others(key, ending)
        return self.entry_of(listed)

    def settle(self, key: Key, noted: str) -> Entry | None:
        """See Driver. The store has it if the key has the content that was about to be given its name, whoever did."""
        told = json.loads(noted)
        if "mark" not in told:  # it never came to the rename: that is known without asking the store
            self._storage.forget_temporary(told["file"], told["temporary"])
            return None
        self._storage.remove_temporary(told["file"], told["temporary"])
        try:
            entry = self.entry(key)
        except MissingKeyError:
            return None
        name = self.name(entry)
        if name != told["file"] or self.mark(entry) != told.get("mark"):
            return None
        self._storage.sync(name)
        self._remove_others(key, self.ending(name))
        return entry

    def remove(self, key: Key) -> None:
        """Remove a key, in each form that it has. MissingKeyError, StorageError."""
        self.entry(key)
        self._remove_others(key, None)

    def _check_current(self, key: Key, base: Entry | None) -> None:
        try:
            now = self.entry(key)
        except MissingKeyError:
            if base is None:
                return
            raise StaleShardError(f"{key} has been removed since it was changed here") from None
        if base is None:
            raise KeyExistsError(f"{key} is in {self._storage.root} already")
        if now.version != base.version:
            raise StaleShardError(f"{key} was replaced in the store since it was changed here")

    def _remove_others(self, key: Key, ending: str | None) -> None:
        """The key's older form in another compression, if it had one."""
        for other in self._codecs:
            if other == ending:
                continue
            try:
                self._storage.stat(key + other)
            except StorageError as error:
                if error.errno not in ABSENT:
                    raise
                continue
            self._storage.remove(key + other)


def check_key(key: str, ending: int) -> None:
    """BadSettingError for what cannot be a key of a store in a directory, whose files' endings have up to so many
    bytes."""
    parts = key.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in key or parts[-1].startswith(TEMPORARY):
        raise BadSettingError(f"key {key!r}: each part between slashes must be a name")
    try:
        longest = max(len(os.fsencode(part)) for part in parts)
    except UnicodeEncodeError as error:
        raise BadSettingError(f"key {key!r} cannot be the name of a file") from error
    if longest > config.NAME_MAX - ending:
        raise BadSettingError(f"key {key[:40]!r}...: a part is longer than {config.NAME_MAX - ending} bytes")


def raw_size(reader: Reader, codec: str) -> int:
    """A hint of the raw bytes in an opened file."""
    tail = reader.tail(compression.HINT_TAIL[codec])
    return compression.raw_size_hint(codec, reader.size, reader.read_at(0, min(18, reader.size)), tail)


__all__ = ["ABSENT", "KeyFiles", "check_key", "raw_size"]
