"""Views that show the files of all keys in few directories: `by`, `flat` and `yolo`.

Each key's files are columns, made once for each version of it out of its table and its light fields; what the
directories hold is an order of all of these, so that there is no object for a file, nor for a sample. Made in workers,
when somebody first looks; made anew, with the columns of all keys that are still the same, when keys have come, gone or
been replaced. Knows nothing of FUSE, nor of what numbers directories have.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path as FilePath

import numpy as np
import trio

from shardfs import config
from shardfs.errors import DamagedShardError, MissingKeyError, ShardfsError, StaleShardError, StorageError
from shardfs.index import ShardTable
from shardfs.light_fields import LightFields
from shardfs.model import Inode
from shardfs.refresh import Refresh
from shardfs.shard_cache import ShardCache
from shardfs.tree import KeyDirectory, KeyTree
from shardfs.views import columns as columns_of
from shardfs.views import kept, texts
from shardfs.views.columns import Chosen, Columns, KeyFiles, Numbers, Rests
from shardfs.views.names import BY, KeyNames, View, directory_of

log = logging.getLogger("shardfs")

Path = tuple[bytes, ...]
"""Names of directories, from the view's own down."""

IMAGES, LABELS = (b"images",), (b"labels",)


@dataclass(slots=True)
class Sources:
    """What views are made of."""

    tree: KeyTree
    cache: ShardCache
    refresh: Refresh
    light: LightFields
    table: Callable[[KeyDirectory], Awaitable[ShardTable]]
    """The table of a key's version. ESTALE where the store has another, and the errors of `ShardCache.table`."""
    names: KeyNames = field(default_factory=KeyNames)
    label_texts: dict[int, texts.Texts] = field(default_factory=dict)
    """Generated label texts, by slot, oldest first: config.VIEW_TEXTS bytes of them at most."""

    @property
    def room(self) -> int:
        """Bytes of text that may be made for one key."""
        return max(config.VIEW_TEXTS, self.cache.budget // config.CONTROL_SHARE)

    async def values(
        self, key: KeyDirectory, table: ShardTable, fields: Callable[[Sequence[str]], Sequence[str]]
    ) -> dict[str, list[object]]:
        """The values of those light fields that `fields` picks, whole also where the index leaves long ones out."""
        cache, entry = self.cache, key.entry
        found = await cache.in_worker(lambda: self.light.columns(entry))
        check(table, found.samples)
        picked = fields(found.names)
        if not texts.lacking(found, picked):
            return await cache.in_worker(lambda: texts.filled(found, picked, table, None, cache.arrays), found.nbytes)
        async with cache.pinned(entry) as loaded:
            reader, shown = loaded.shard, loaded.table
            return await cache.in_worker(lambda: texts.filled(found, picked, shown, reader, cache.arrays), shown.nbytes)

    async def labels(self, key: KeyDirectory, table: ShardTable) -> texts.Texts:
        """The label texts of a key's samples."""
        known = self.label_texts.pop(key.slot, None)
        if known is None:
            values = await self.values(key, table, lambda names: [name for name in texts.LABELS if name in names])
            room = texts.Room(self.room)
            known = await self.cache.in_worker(
                lambda: texts.Texts(texts.labels(values, table.samples, room)), table.nbytes
            )
        self.label_texts[key.slot] = known
        while sum(one.nbytes for one in self.label_texts.values()) > config.VIEW_TEXTS and len(self.label_texts) > 1:
            del self.label_texts[next(iter(self.label_texts))]
        return known


def check(table: ShardTable, samples: int) -> None:
    """Light fields and a table that are of two versions: the store was changed in between."""
    if samples != table.samples:
        raise StaleShardError("the light fields are those of another version")


@dataclass(slots=True)
class _Part:
    """What a view shows of one key."""

    files: KeyFiles
    groups: Numbers
    """For each file the number of its directory."""


class Gathered:
    """One such view. `base` gives the number of the first of a key's generated files, of which there may be so many."""

    def __init__(
        self, view: View, heavy: str | None, sources: Sources, base: Callable[[KeyDirectory, int], Inode]
    ) -> None:
        self._view = view
        self._heavy = heavy
        self._sources = sources
        self._base = base
        self._parts: dict[int, _Part | None] = {}
        self._rests = Rests()
        self._paths: dict[Path, int] = {}
        self._texts: dict[str, int] = {}
        """The directories of values that are texts, by number."""
        self._lock = trio.Lock()
        self._index: Index | None = None
        self._changes = -1
        self._saved = float("-inf")

    def now(self) -> Index | None:
        """What is shown, if that is known and right."""
        return self._index if self._changes == self._sources.tree.changes else None

    @property
    def shown(self) -> Index | None:
        """What was shown last, right or not."""
        return self._index

    async def index(self) -> Index:
        """What is shown, made if need be. EFBIG for what is too much, and the errors of what a shard is read for; but
        one that is damaged is left out, and said to be (as for who looks into its directory)."""
        found = self.now()
        if found is not None:
            return found
        async with self._lock:
            while (found := self.now()) is None:
                self._index, self._changes = await self._made()
            return found

    def drop(self) -> None:
        """Give the memory back: it is made again when somebody asks."""
        self._index, self._changes = None, -1
        self._parts.clear()

    async def _made(self) -> tuple[Index, int]:
        """What is to be shown, and which state of the tree it is of."""
        tree = self._sources.tree
        # by their names: in which order they came says when they were written
        changes, keys = tree.changes, sorted(tree.slots, key=lambda key: key.entry.key)
        for key in keys:
            self._sources.names.name(key.entry.key)  # in their order, whichever is asked for first
        lacking = [key for key in keys if key.slot not in self._parts]
        if lacking and not self._parts:
            await self._take_kept(lacking)
            lacking = [key for key in lacking if key.slot not in self._parts]
        building = self._sources.light.begin(f"the view {self._view.text}", len(lacking))
        try:
            waiting = iter(lacking)
            while batch := list(islice(waiting, config.VIEW_BATCH)):
                for key, part in zip(batch, await self._known(batch), strict=True):
                    self._parts[key.slot] = part if part is not None else await self._loaded(key)
                    building.done += 1
        finally:
            self._sources.light.end(building)
        slots = {key.slot for key in keys}
        self._parts = {slot: part for slot, part in self._parts.items() if slot in slots}
        parts = [part for key in keys if (part := self._parts.get(key.slot)) is not None]
        if sum(len(part.files) for part in parts) > config.VIEW_FILES:
            raise StorageError(f"a view of more than {config.VIEW_FILES} files", errno.EFBIG)
        paths = self._paths
        index = await self._sources.cache.in_worker(lambda: Index(parts, paths), 1)
        if lacking and time.monotonic() - self._saved >= config.VIEW_KEEPING:
            self._saved = time.monotonic()
            await self._keep(keys)
        return index, changes

    def _kept_in(self) -> FilePath | None:
        """The file that has this view's columns for the next mount; None where they are not kept: the texts of `yolo`
        have numbers of this mount, and what a filter shows is not all."""
        tables = self._sources.cache.tables
        if tables.database is None or tables.narrowing is not None or self._view.kind == "yolo":
            return None
        return kept.path_beside(tables.database.path, self._view.text, self._heavy)

    async def _take_kept(self, keys: list[KeyDirectory]) -> None:
        path, entries = self._kept_in(), [key.entry for key in keys]
        if path is None:
            return
        found = await self._sources.cache.in_worker(
            lambda: kept.load(path, keys, self._prefix, self._rests, self._number)
        )
        for key, entry in zip(keys, entries, strict=True):
            if key.slot in found and key.entry is entry:
                self._parts[key.slot] = _Part(*found[key.slot])
                key.settled = True

    async def _keep(self, keys: list[KeyDirectory]) -> None:
        path = self._kept_in()
        parts = [(key, part.files, part.groups) for key in keys if (part := self._parts.get(key.slot)) is not None]
        if path is not None:
            await self._sources.cache.in_worker(lambda: kept.save(path, parts, list(self._paths)))

    async def _known(self, keys: list[KeyDirectory]) -> list[_Part | None]:
        """Parts of those keys whose tables are known; None for the others. In one go: to go to a worker for each costs
        as much as to make it."""
        if self._view.kind == "yolo":
            return [None] * len(keys)
        entries = [key.entry for key in keys]
        tables = [self._sources.cache.tables.known(entry) for entry in entries]

        def work() -> list[_Part | None]:
            made: list[_Part | None] = []
            for key, held in zip(keys, tables, strict=True):
                table = self._sources.cache.tables.looked_up(key.entry) if held is None else held
                try:
                    made.append(None if table is None else self._part(key, table))
                except ShardfsError:  # said again where it is looked at by itself
                    made.append(None)
            return made

        found = await self._sources.cache.in_worker(work)
        for at, (key, entry) in enumerate(zip(keys, entries, strict=True)):
            if key.entry is not entry:  # nothing of it had been shown, and it was replaced meanwhile
                found[at] = None
            key.settled = key.settled or found[at] is not None
        return found

    async def _loaded(self, key: KeyDirectory) -> _Part | None:
        """The part of one key, whose shard is read for it where it must be; None for one that shows nothing."""
        cache = self._sources.cache
        try:
            table = await self._sources.table(key)
            if self._view.kind == "yolo":
                return await self._yolo(key, table)
            return await cache.in_worker(lambda: self._part(key, table))
        except DamagedShardError as error:
            log.warning("%s is not in the view %s: %s", key.entry.key, self._view.text, error)
            return None
        except (MissingKeyError, StaleShardError):
            await self._sources.refresh.key(key, now=True)
            if not key.superseded:
                raise
            return None

    def _part(self, key: KeyDirectory, table: ShardTable) -> _Part:
        """In a worker."""
        if self._view.kind != BY:
            files = self._files(key, table, columns_of.all_files(table))
            return _Part(files, np.full(len(files), self._number(()), np.int32))
        heavy = self._heavy
        chosen = columns_of.first_files(table) if heavy is None else columns_of.field_files(table, heavy)
        files = self._files(key, table, chosen)
        light = self._sources.light.columns(key.entry)
        check(table, light.samples)
        combined = np.zeros(light.samples, np.int64)
        paths: list[Path] = [()]
        for name in self._view.fields:
            codes, distinct = light.coded(name)
            if len(self._view.fields) == 1:
                groups = np.array(self._numbers(distinct), np.int32)
                return _Part(files, groups[codes][files.samples])
            unique, combined = np.unique(combined * len(distinct) + codes, return_inverse=True)
            shown = list(map(directory_of, distinct))
            paths = [(*paths[both // len(shown)], shown[both % len(shown)]) for both in unique.tolist()]
        groups = np.array([self._number(path) for path in paths], np.int32)
        return _Part(files, groups[combined][files.samples])

    def _numbers(self, values: list[object]) -> list[int]:
        """The numbers of the directories of these values: most come again with each key."""
        found = [self._texts.get(value) if type(value) is str else None for value in values]
        for at, number in enumerate(found):
            if number is None:
                value = values[at]
                number = found[at] = self._number((directory_of(value),))
                if type(value) is str and len(self._texts) < config.VIEW_DIRECTORIES:
                    self._texts[value] = number
        return [number for number in found if number is not None]

    def _files(self, key: KeyDirectory, table: ShardTable, chosen: Chosen) -> KeyFiles:
        return KeyFiles.of_table(key, table, self._prefix(key), chosen, self._rests)

    def _prefix(self, key: KeyDirectory) -> bytes:
        return self._sources.names.name(key.entry.key) + b"-"

    async def _yolo(self, key: KeyDirectory, table: ShardTable) -> _Part:
        """Pictures, and beside them texts: the samples' own `.txt` files, else made of light fields."""
        found = await self._sources.labels(key, table)
        heavy = self._heavy
        pictures = columns_of.first_files(table, True) if heavy is None else columns_of.field_files(table, heavy)
        own = columns_of.text_files(table, texts.LABELS)
        both = Chosen(
            np.concatenate((pictures.files, own.files)),
            np.concatenate((pictures.samples, own.samples)),
            np.concatenate((pictures.rest, own.rest + len(pictures.rests))),
            [*pictures.rests, *own.rests],
        )
        files = self._files(key, table, both)
        covered = set(own.samples.tolist())
        made = [at for at in range(len(found)) if found.has(at) and at not in covered]
        if made:
            sizes = np.array([found.size(at) for at in made], np.uint64)
            base = self._base(key, table.samples)
            files.add_made(base, np.array(made, np.uint32), sizes, b"txt")
        groups = np.full(len(files), self._number(LABELS), np.int32)
        groups[: len(pictures.files)] = self._number(IMAGES)
        return _Part(files, groups)

    def _number(self, path: Path) -> int:
        known = self._paths.get(path)
        if known is None:
            if len(self._paths) >= config.VIEW_DIRECTORIES:
                raise StorageError(
                    f"the view {self._view.text} has more than {config.VIEW_DIRECTORIES} directories", errno.EFBIG
                )
            known = self._paths.setdefault(path, len(self._paths))
        return known


class Index:
    """What a view shows at one time. Immutable."""

    def __init__(self, parts: Sequence[_Part], paths: dict[Path, int]) -> None:
        self.columns = Columns([part.files for part in parts])
        joined = [part.groups for part in parts]
        self._groups = np.concatenate(joined) if joined else np.zeros(0, np.int32)
        for part, start, end in zip(parts, self.columns.starts, self.columns.starts[1:], strict=False):
            part.groups = self._groups[start:end]
        self._order = np.argsort(self._groups, kind="stable").astype(np.uint32)
        counts = np.bincount(self._groups, minlength=len(paths)) if len(self._groups) else np.zeros(len(paths), int)
        self._starts = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=self._starts[1:])
        self._slots = {part.files.slot: at for at, part in enumerate(parts)}
        self._paths = list(paths)
        self._leaves = {path: number for path, number in paths.items() if number < len(counts) and counts[number]}
        self._children: dict[Path, dict[bytes, None]] = {}
        for path in sorted(self._leaves):
            for depth in range(len(path)):
                self._children.setdefault(path[:depth], {})[path[depth]] = None

    def __len__(self) -> int:
        """Files."""
        return len(self.columns)

    @property
    def nbytes(self) -> int:
        return self.columns.nbytes + self._groups.nbytes + self._order.nbytes

    def children(self, path: Path) -> dict[bytes, None]:
        """The names of the directories in one, in their order; none for what is none, or has files."""
        return self._children.get(path, {})

    def order(self, path: Path) -> Numbers | None:
        """The places of the files in a directory, in their order; None for one that has none."""
        number = self._leaves.get(path)
        return None if number is None else self._order[self._starts[number] : self._starts[number + 1]]

    def find(self, path: Path, slot: int, stem: bytes, rest: bytes) -> tuple[int, int] | None:
        """Inode number and size of a key's file in a directory, by what its name consists of."""
        number, at = self._leaves.get(path), self._slots.get(slot)
        if number is None or at is None:
            return None
        key, start = self.columns.keys[at], int(self.columns.starts[at])
        for position in key.find(stem, rest):
            if self._groups[start + position] == number:
                return key.inode(position), int(key.sizes[position])
        return None

    def groups(self, slot: int) -> list[tuple[int, Path]]:
        """The directories that have files of a key, each with its number."""
        at = self._slots.get(slot)
        if at is None:
            return []
        start, end = self.columns.starts[at : at + 2]
        return [(number, self._paths[number]) for number in np.unique(self._groups[start:end]).tolist()]

    def names(self, slot: int, number: int) -> Iterator[bytes]:
        """The names of a key's files in one of these."""
        at = self._slots[slot]
        key, start = self.columns.keys[at], int(self.columns.starts[at])
        for position in np.flatnonzero(self._groups[start : start + len(key)] == number).tolist():
            yield key.name(int(key.samples[position]), int(key.rest[position]))
