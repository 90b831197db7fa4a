"""Views that show something for each key where the plain tree has its directory: `hf`, `tree`, `wds` and `raw`.

Says what is in the directory of a key, or what the file is like that stands for it. Knows nothing of FUSE, nor of the
directories above the keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from shardfs import config
from shardfs.folders import ROOT
from shardfs.index import FolderTable, ShardTable
from shardfs.tree import KeyDirectory
from shardfs.views import columns as columns_of
from shardfs.views import texts
from shardfs.views.columns import KeyFiles, Rests
from shardfs.views.gathered import Sources
from shardfs.views.tars import TarLayout

METADATA = b"metadata.jsonl"
TAR = b".tar"


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


class _Held(Generic[T]):
    """What was made for keys, by slot: config.VIEW_TEXTS bytes at most, and the newest in any case."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, T] = OrderedDict()
        self._bytes = 0

    def get(self, slot: int) -> T | None:
        found = self._held.get(slot)
        if found is not None:
            self._held.move_to_end(slot)
        return found

    def put(self, slot: int, made: T) -> None:
        self.drop(slot)
        self._held[slot] = made
        self._bytes += made.nbytes
        while self._bytes > config.VIEW_TEXTS and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self._bytes -= oldest.nbytes

    def drop(self, slot: int) -> None:
        gone = self._held.pop(slot, None)
        self._bytes -= 0 if gone is None else gone.nbytes


@dataclass(slots=True)
class HfKey:
    """The directory of a key in `hf`."""

    files: KeyFiles
    metadata: bytes

    @property
    def nbytes(self) -> int:
        return self.files.nbytes + len(self.metadata)


class Hf:
    """The pictures and other heavy files of a key, and a line for each sample in METADATA."""

    def __init__(self, heavy: Callable[[], str | None], sources: Sources) -> None:
        self._heavy = heavy
        self._sources = sources
        self._held: _Held[HfKey] = _Held()

    async def key(self, key: KeyDirectory, table: ShardTable) -> HfKey:
        """What is in a key's directory. The errors of `LightFields.columns`."""
        known = self._held.get(key.slot)
        if known is None:
            heavy = self._heavy()
            values = await self._sources.values(key, table, lambda names: names)

            def work() -> HfKey:
                files = self._files(key, table, heavy)
                return HfKey(files, texts.metadata(files, values, texts.Room(self._sources.room), heavy is not None))

            known = await self._sources.cache.in_worker(work, table.nbytes)
            self._held.put(key.slot, known)
        return known

    def names(self, key: KeyDirectory, table: ShardTable) -> Iterator[bytes]:
        """What is in a key's directory, whatever became of the key; to be gone through in any thread."""
        known, heavy = self._held.get(key.slot), self._heavy()

        def names() -> Iterator[bytes]:
            files = self._files(key, table, heavy) if known is None else known.files
            yield METADATA
            for sample, rest in zip(files.samples.tolist(), files.rest.tolist(), strict=True):
                yield files.name(sample, rest)

        return names()

    @staticmethod
    def _files(key: KeyDirectory, table: ShardTable, heavy: str | None) -> KeyFiles:
        chosen = columns_of.heavy_files(table)
        if heavy is not None:
            chosen = replace(columns_of.field_files(table, heavy), rests=columns_of.flat_suffixes(table))
        return KeyFiles.of_table(key, table, b"", chosen, Rests())

    def drop(self, slot: int) -> None:
        self._held.drop(slot)


class Tars:
    """Where the members of keys' tars lie."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._held: _Held[TarLayout] = _Held()
        self._sizes: dict[int, int] = {}

    def size(self, slot: int) -> int | None:
        """The size of a key's tar, if it was ever asked for."""
        return self._sizes.get(slot)

    async def layout(self, key: KeyDirectory, table: ShardTable) -> TarLayout:
        known = self._held.get(key.slot)
        if known is None:
            known = await self._sources.cache.in_worker(lambda: TarLayout(table), table.nbytes)
            self._held.put(key.slot, known)
            self._sizes[key.slot] = known.size
        return known

    def drop(self, slot: int) -> None:
        self._held.drop(slot)
        self._sizes.pop(slot, None)


# --- tree -------------------------------------------------------------------------------------------------------------

Child = tuple[bytes, int, bool]
"""Name of an entry of a sample's directory, its number in the table (of a directory: among the directories), and
whether it is a directory."""


def sample_children(table: ShardTable, sample: int) -> list[Child]:
    """What is in the directory of a sample: its files, called as their fields are. One whose name has no field part
    (`json`, `jpg`) is called as the sample, too."""
    start, end = (int(number) for number in table.columns["file_start"][sample : sample + 2])
    taken = {table.suffix(file) for file in range(start, end)}
    made: list[Child] = []
    behind = start
    for file in range(start, end):
        if file < behind:
            continue
        folder = table.folders.at(ROOT, file) if isinstance(table, FolderTable) else None
        suffix = table.suffix(file)
        if folder is not None and isinstance(table, FolderTable):
            made.append((suffix.partition(b"/")[0], folder, True))
            behind = table.folders.end(folder)
            continue
        plain = table.stem(sample) + b"." + suffix
        name = suffix if b"." in suffix or plain in taken else plain
        made.append((name, _own(table, file), False))
    return made


def folder_children(table: ShardTable, folder: int) -> list[Child]:
    """What is in a directory inside a sample's."""
    assert isinstance(table, FolderTable)
    found = table.children(table.files + folder, 0)
    return [
        (name, number - table.files, True) if number >= table.files else (name, number, False)
        for name, number, _ in found
    ]


def folders(table: ShardTable) -> int:
    """How many directories there are inside samples'."""
    return len(table.folders) if isinstance(table, FolderTable) else 0


def _own(table: ShardTable, file: int) -> int:
    return int(table.same_as(np.array([file], np.uint32))[0])
