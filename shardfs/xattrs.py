"""Extended attributes of keys and files: what a mount knows of each, under `user.shardfs.*`. None of them can be set.

All come out of a shard's table, the caches and the staging area; only the hash reads the file, when it is asked for,
a slice at a time, and is remembered for what never changes. Knows nothing of FUSE, nor of what a listing says.
"""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
import trio

from shardfs import config, layout, names, reading_back
from shardfs.attributes import About
from shardfs.drivers.base import KeepsFiles, StoresObjects
from shardfs.errors import DamagedShardError, StorageError
from shardfs.model import Entry, Version
from shardfs.storage.base import Storage
from shardfs.storage.disk_cache import DiskCache
from shardfs.vfs import Vfs

PREFIX = b"user.shardfs."

MEMORY, DISK, STAGED, NOWHERE = b"memory", b"disk", b"staged", b"no"
"""Where the bytes of a file are: `staged` is the only copy, `no` that they would come from the store."""

LIGHT, ARRAY, PICTURE, TEXT, PICKLE, BYTES = b"light", b"array", b"picture", b"text", b"pickle", b"bytes"
"""What a file shows: the light fields of its sample, an array, pixels as an image, a text field, a pickle (never run),
or bytes as they are stored."""

_BY_EXTENSION = {b"json": LIGHT, b"npy": ARRAY, b"txt": TEXT, b"pkl": PICKLE}
_PIXELS = (b"png", b"tif")


class Xattrs:
    """The attributes of what is in one mount, by inode number."""

    def __init__(self, vfs: Vfs) -> None:
        self._vfs = vfs
        self._hashes: OrderedDict[int, bytes] = OrderedDict()
        self._hashing = trio.CapacityLimiter(config.XATTR_HASHING)
        self._values: dict[bytes, Callable[[int, About], Awaitable[bytes | None]]] = {
            b"key": self._key,
            b"sample": self._sample,
            b"field": self._field,
            b"type": self._type,
            b"cached": self._cached,
            b"pinned": self._pinned,
            b"sha256": self._sha256,
            b"etag": self._etag,
        }

    async def names(self, inode: int) -> list[bytes]:
        """The attributes that a file or directory has: none for what is above the keys. ESTALE, and the errors of
        loading its shard."""
        about = await self._vfs.about(inode)
        if about is None:
            return []
        has = [b"cached", b"pinned"]
        if about.key is not None:
            has.append(b"key")
        if about.entry is not None:
            has.append(b"etag")
        if about.is_file:
            has.append(b"type")
            if about.size <= config.XATTR_HASHED:
                has.append(b"sha256")
            if about.key is not None and about.stem is not None:
                has.append(b"sample")
                if _named(about):
                    has.append(b"field")
        return [PREFIX + name for name in self._values if name in has]

    async def value(self, inode: int, name: bytes) -> bytes | None:
        """One attribute; None where there is none of that name. Errors as `names`; of the hash also those of reading,
        and EFBIG for a file that is too large to hash."""
        make = self._values.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        about = None if make is None else await self._vfs.about(inode)
        return None if make is None or about is None else await make(inode, about)

    # --- what is known at once ----------------------------------------------------------------------------------

    async def _key(self, inode: int, about: About) -> bytes | None:
        return None if about.key is None else _text(about.key)

    async def _sample(self, inode: int, about: About) -> bytes | None:
        if about.key is None or about.stem is None:
            return None
        return _text(reading_back.field_name(about.stem.decode("utf-8", "surrogateescape")))

    async def _type(self, inode: int, about: About) -> bytes | None:
        if not about.is_file:
            return None
        extension = about.suffix.rpartition(b".")[2]
        if isinstance(self._vfs.driver, KeepsFiles):
            return BYTES
        if about.table is None or about.file is None:
            return _BY_EXTENSION.get(extension, BYTES)
        run = about.table.slice_of(about.file)
        if run is None:
            return PICTURE if extension in _PIXELS else _BY_EXTENSION.get(extension, BYTES)
        if extension == b"npy" and run[0]:
            return (ARRAY + b" " + _shape(run[0])).rstrip()
        return PICKLE if extension == b"pkl" else BYTES

    async def _etag(self, inode: int, about: About) -> bytes | None:
        return None if about.entry is None else _text(self._tag(about.entry))

    def _tag(self, entry: Entry) -> str:
        """The ETag of the one object that a shard is, where its store has such; else the version."""
        storage, objects = self._objects(entry)
        inner = storage.inner if isinstance(storage, DiskCache) else storage
        etag_of = getattr(inner, "etag_of", None)
        tag = etag_of(objects[0][1]) if etag_of is not None and len(objects) == 1 else ""
        return str(tag or entry.version)

    def _objects(self, entry: Entry) -> tuple[Storage | None, list[tuple[str, Version]]]:
        driver = self._vfs.driver
        return (driver.storage, driver.objects(entry)) if isinstance(driver, StoresObjects) else (None, [])

    # --- what is asked of a disk --------------------------------------------------------------------------------

    async def _cached(self, inode: int, about: About) -> bytes | None:
        cache, entry = self._vfs.cache, about.entry
        if about.staged:
            return STAGED
        if entry is None:
            return NOWHERE
        if cache.holds(entry):
            return MEMORY
        storage, objects = self._objects(entry)
        raw = cache.raw

        def kept() -> bool:
            if isinstance(storage, DiskCache) and objects and all(storage.has(*one) for one in objects):
                return True
            return raw is not None and raw.has(entry)

        return DISK if await cache.in_worker(kept) else NOWHERE

    async def _pinned(self, inode: int, about: About) -> bytes | None:
        entry = about.entry
        storage, objects = (None, []) if entry is None else self._objects(entry)
        if not isinstance(storage, DiskCache) or not objects:
            return b"no"
        pinned = await self._vfs.cache.in_worker(partial(_all_pinned, storage, objects))
        return b"yes" if pinned else b"no"

    # --- what reads the file ------------------------------------------------------------------------------------

    async def _field(self, inode: int, about: About) -> bytes | None:
        if about.key is None or not _named(about):
            return None
        told = about.suffix.partition(b"/")[0].decode("utf-8", "surrogateescape")
        if isinstance(self._vfs.driver, KeepsFiles):
            return _text(reading_back.field_name(told))
        if about.table is not None and "~" in told:  # shortened, or told apart: the json has the true name
            found = await self._explained(inode, about, told)
            if found is not None:
                return _text(found)
        return _text(reading_back.field_name(told if b"/" in about.suffix else names.field_part(told)))

    async def _explained(self, inode: int, about: About, told: str) -> str | None:
        """What the sample's json says of a file's name."""
        table, file = about.table, about.file
        assert table is not None
        assert file is not None
        light = table.find(table.stem(table.sample_of(file)) + b".json")
        if light is None or table.slice_of(light) is not None:
            return None
        said = json.loads(await self._whole(inode - file + light, table.size(light)))
        name = said.get(layout.FIELDS, {}).get(told) if isinstance(said, dict) else None
        return name if name is None or isinstance(name, str) else json.dumps(name, ensure_ascii=False)

    async def _whole(self, inode: int, size: int) -> bytes:
        if size > config.XATTR_JSON:
            raise StorageError("a json too large to look a name up in", errno.EFBIG)
        return bytes(await self._vfs.read(inode, 0, size))

    async def _sha256(self, inode: int, about: About) -> bytes | None:
        if not about.is_file:
            return None
        if about.size > config.XATTR_HASHED:
            raise StorageError(f"{about.size} bytes are too many to hash here", errno.EFBIG)
        async with self._hashing:
            known = self._hashes.get(inode)
            if known is not None:
                self._hashes.move_to_end(inode)
                return known
            made = await self._hashed(inode, about)
        if not about.staged:  # what is staged may change, and its inode number stays
            self._hashes[inode] = made
            if len(self._hashes) > config.XATTR_HASHES:
                self._hashes.popitem(last=False)
        return made

    async def _hashed(self, inode: int, about: About) -> bytes:
        made, offset = hashlib.sha256(), 0
        handle = await self._vfs.open(inode, os.O_RDONLY)
        try:
            while data := await self._vfs.read(handle, offset, config.XATTR_SLICE):
                offset += len(data)
                await self._vfs.cache.in_worker(partial(made.update, data), len(data))
        finally:
            await self._vfs.close(handle)
        if offset != about.size and not about.staged:
            raise DamagedShardError(f"{offset} bytes of a file that has {about.size}", key=about.key)
        return made.hexdigest().encode("ascii")


def _named(about: About) -> bool:
    """Whether a file shows one field, and not all that are light."""
    if about.table is None or about.file is None:
        return bool(about.suffix) and about.suffix != b"json"
    return bool(about.suffix) and not (about.suffix == b"json" and about.table.slice_of(about.file) is None)


def _all_pinned(storage: DiskCache, objects: list[tuple[str, Version]]) -> bool:
    return all(storage.pinned(name) for name, _ in objects)


def _shape(header: bytes) -> bytes:
    """`float32 (64,)` of the header of a `.npy` that `values.npy_header` has made; nothing of any other."""
    try:
        said = ast.literal_eval(header[header.index(b"{") :].decode("latin-1" if header[6] < 3 else "utf-8").strip())
        return f"{np.lib.format.descr_to_dtype(said['descr'])} {said['shape']}".encode()[: config.XATTR_VALUE]
    except (ValueError, SyntaxError, LookupError, TypeError, RecursionError, MemoryError):  # of an index from elsewhere
        return b""


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
