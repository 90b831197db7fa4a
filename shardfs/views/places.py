"""Views at their places: the directories of each, what is in them, and which numbers they have.

A place is where a view is found: at the mount's root or below `.shardfs/views`. A directory must not be in two places,
so each has numbers of its own; files have the same everywhere. Knows nothing of FUSE, nor of how contents are read.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from shardfs import config, inodes
from shardfs.attributes import Attributes
from shardfs.errors import MissingKeyError, StaleShardError, StorageError
from shardfs.index import ShardTable
from shardfs.model import Inode, Key
from shardfs.outdated import Outdated
from shardfs.tree import AnyDirectory, Directory, KeyDirectory
from shardfs.views.columns import Entries, Rows, file_attributes, rows_of
from shardfs.views.gathered import LABELS as LABEL_PATH
from shardfs.views.gathered import Gathered, Index, Path, Sources
from shardfs.views.mirrored import (
    METADATA,
    TAR,
    Child,
    Hf,
    Tars,
    folder_children,
    folders,
    sample_children,
)
from shardfs.views.names import View
from shardfs.views.numbers import Owner, Ranges

TOP, WAY, KEY, INSIDE, METADATA_FILE, GROUP, LABEL_TEXTS = range(7)
"""Kinds of owners of numbers: a view's own directory; one that leads to keys; a key's directory or tar; the directories
of its samples, and those inside them; its metadata; a directory of many keys' files; a key's label texts."""

Raw = Callable[[KeyDirectory], Attributes | None]
"""What is known of a key's stored object; None for a key that is not one object."""

RawName = Callable[[KeyDirectory], bytes]
"""What its stored name has behind the key's."""


class Listable(Protocol):
    """Many entries of a directory, without an object for each."""

    def __len__(self) -> int: ...

    def entry(self, at: int) -> tuple[bytes, Attributes]: ...

    def batch(self, first: int, last: int) -> Entries: ...


@dataclass(slots=True)
class Listing:
    """What is in a directory: a few entries, and many behind them."""

    head: list[tuple[bytes, Attributes]]
    rows: Listable | None = None

    @property
    def files(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def entries(self, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """Entries from offset `start` on, each with the offset behind it."""
        for at in range(start, len(self.head)):
            yield (*self.head[at], at + 1)
        for at in range(max(start - len(self.head), 0), self.files):
            assert self.rows is not None
            yield (*self.rows.entry(at), len(self.head) + at + 1)

    def aged(self) -> Listing:
        """The same of which nothing is to be believed: some of it may be others' by now, of which the kernel has been
        told already."""
        head = [(name, aged(attributes)) for name, attributes in self.head]
        return Listing(head, None if self.rows is None else AgedRows(self.rows))


def aged(attributes: Attributes) -> Attributes:
    return attributes._replace(entry_timeout=0.0, attr_timeout=0.0)


class AgedRows:
    """Entries of which nothing is to be believed."""

    def __init__(self, rows: Listable) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def entry(self, at: int) -> tuple[bytes, Attributes]:
        name, attributes = self._rows.entry(at)
        return name, aged(attributes)

    def batch(self, first: int, last: int) -> Entries:
        return self._rows.batch(first, last)


@dataclass(slots=True)
class Common:
    """What all places share."""

    sources: Sources
    ranges: Ranges
    hf: Hf
    tars: Tars
    raw: Raw
    raw_name: RawName
    table: Callable[[KeyDirectory], Awaitable[ShardTable]]
    """The table of a key that was not replaced since: else ESTALE."""

    @property
    def interval(self) -> float:
        return self.sources.refresh.interval

    def directory(self, inode: int, mtime_ns: int) -> Attributes:
        return Attributes(inode, stat.S_IFDIR | 0o555, 0, mtime_ns, 1, self.interval, self.interval)

    def key(self, slot: int) -> KeyDirectory:
        """A key by its slot. ESTALE where it was replaced."""
        key = self.sources.tree.slot(slot)
        if key is None or key.superseded:
            raise StaleShardError("a key that was replaced")
        return key


def missing(name: bytes) -> MissingKeyError:
    return MissingKeyError(f"no entry {name!r}")


def no_directory() -> StorageError:
    return StorageError("not a directory", errno.ENOTDIR)


def _in(directory: int, names: Iterable[bytes]) -> Iterator[Outdated]:
    for name in names:
        yield directory, name


class Place:
    """A view at one place. `above` is the directory it is in, None for the mount's root."""

    def __init__(self, number: int, view: View, common: Common, above: Inode | None) -> None:
        self.number = number
        self.view = view
        self.common = common
        self.above = above
        self.top = inodes.ROOT if above is None else common.ranges.of(Owner(number, TOP, None))

    def number_of(self, kind: int, what: object, count: int = 1) -> Inode:
        return self.common.ranges.of(Owner(self.number, kind, what), count)

    def number_for(self, kind: int, key: KeyDirectory, count: int = 1) -> Inode:
        """The same of what belongs to a key: the kernel may know it from now on."""
        key.generated = True
        self.common.sources.tree.know(key)
        return self.number_of(kind, key.slot, count)

    def attributes(self) -> Attributes:
        """Of the view's own directory."""
        return self.common.directory(self.top, self.common.sources.tree.root.mtime_ns)

    async def lookup(self, owner: Owner, offset: int, name: bytes) -> Attributes:
        """An entry of one of its directories. MissingKeyError, ENOTDIR, and the errors of making what is in it."""
        raise NotImplementedError

    async def listing(self, owner: Owner, offset: int) -> Listing:
        """What is in one of its directories, as it is now. ENOTDIR, ESTALE, and the errors of making it."""
        raise NotImplementedError

    async def getattr(self, owner: Owner, offset: int) -> Attributes:
        """Attributes by the number of what only views have."""
        raise NotImplementedError

    def outdated(self, key: KeyDirectory, table: ShardTable | None) -> list[Iterable[Outdated]]:
        """The names that may mean other files, or none, once a key has been replaced. What it held is known where it
        was in memory."""
        raise NotImplementedError


class GatheredPlace(Place):
    """`by`, `flat` or `yolo`."""

    def __init__(self, number: int, view: View, common: Common, above: Inode | None, heavy: str | None) -> None:
        super().__init__(number, view, common, above)
        self.gathered = Gathered(
            view, heavy, common.sources, lambda key, count: self.number_for(LABEL_TEXTS, key, count)
        )

    def _lasting(self, path: Path) -> float:
        """For how long a name in a directory may be believed: until it is said to be another file's, where that can be
        said in one word for the whole directory."""
        interval = self.common.interval
        return interval if self.top == inodes.ROOT and not path else max(interval, config.VIEW_LASTING)

    def _path(self, owner: Owner) -> Path:
        if owner.kind == TOP:
            return ()
        if owner.kind != GROUP:
            raise no_directory()
        path: Path = owner.what
        return path

    def find_now(self, owner: Owner, name: bytes) -> tuple[KeyDirectory, int, int] | None:
        """A file of a directory where nothing has to be waited for: key, inode number and size. None where something
        has, or where the file is none of the plain tree's, or its name is not to be believed for good."""
        index = self.gathered.now()
        if index is None or owner.kind != GROUP:
            return None
        found = self._find(index, owner.what, name)
        if found is None or found[1] >= inodes.CONTROL or self.common.sources.refresh.due(found[0]):
            return None
        return found

    def _find(self, index: Index, path: Path, name: bytes) -> tuple[KeyDirectory, int, int] | None:
        head, dot, rest = name.partition(b".")
        sources = self.common.sources
        for key, stem in sources.names.splits(head) if dot else ():
            known = sources.tree.current(Key(key))
            found = None if known is None else index.find(path, known.slot, stem, rest)
            if known is not None and found is not None:
                return known, *found
        return None

    async def lookup(self, owner: Owner, offset: int, name: bytes) -> Attributes:
        path, refresh = self._path(owner), self.common.sources.refresh
        for asked in (False, True):
            index = await self.gathered.index()
            if name in index.children(path):
                await refresh.listing()  # the kernel asks for directories again and again, and for files in them seldom
                index = await self.gathered.index()
            if name in index.children(path):
                return self._directory((*path, name))
            found = self._find(index, path, name)
            if found is not None:
                key, inode, size = found
                if refresh.due(key):
                    await refresh.key(key)
                if not key.superseded:
                    return file_attributes(inode, size, key.entry.mtime_ns, self._lasting(path))
            if not asked:
                await refresh.listing()
        raise missing(name)

    def _directory(self, path: Path) -> Attributes:
        return self.common.directory(self.number_of(GROUP, path), self.common.sources.tree.root.mtime_ns)

    async def listing(self, owner: Owner, offset: int) -> Listing:
        path = self._path(owner)
        await self.common.sources.refresh.listing()
        index = await self.gathered.index()
        children, order = index.children(path), index.order(path)
        if path and not children and order is None:
            raise StaleShardError("a directory that has nothing in it any more")
        rows = None if order is None else Rows(index.columns, order, self._lasting(path))
        return Listing([(name, self._directory((*path, name))) for name in children], rows)

    async def getattr(self, owner: Owner, offset: int) -> Attributes:
        if owner.kind != LABEL_TEXTS:
            return self.attributes() if owner.kind == TOP else self._directory(owner.what)
        key = self.common.key(owner.what)
        found = await self.common.sources.labels(key, await self.common.table(key))
        inode = self.number_of(LABEL_TEXTS, owner.what) + offset
        return file_attributes(inode, found.size(offset), key.entry.mtime_ns, self._lasting(LABEL_PATH))

    def outdated(self, key: KeyDirectory, table: ShardTable | None) -> list[Iterable[Outdated]]:
        index = self.gathered.shown
        if index is None:  # what was shown before is known no more: all directories, with what is in them
            return [self._words(path[0] for path in self.common.ranges.kinds(self.number, GROUP) if path)]
        groups = index.groups(key.slot)
        made: list[Iterable[Outdated]] = []
        for number, path in groups:
            inode = self.common.ranges.known(Owner(self.number, GROUP, path)) if path else self.top
            if inode is not None:
                made.append(_in(inode, index.names(key.slot, number)))
        if table is None or table.files > config.NAMES_TOLD:  # one by one that takes its time
            made.insert(0, self._words(path[0] for _, path in groups if path))
        return made

    def _words(self, names: Iterable[bytes]) -> list[Outdated]:
        """What says of all files in directories of these names, right in the view's own, that they may be others."""
        if self.above is not None:
            return [(self.above, self.view.text.encode("utf-8", "surrogateescape"))]
        return [(self.top, name) for name in sorted(set(names))]


class MirroredPlace(Place):
    """`hf`, `tree`, `wds` or `raw`: the directories above the keys are those of the plain tree."""

    def __init__(self, number: int, view: View, common: Common, above: Inode | None) -> None:
        super().__init__(number, view, common, above)
        self._shown: dict[int, tuple[int, dict[bytes, AnyDirectory]]] = {}

    def _way(self, owner: Owner) -> Directory:
        tree = self.common.sources.tree
        found = tree.root if owner.kind == TOP else tree.directory(owner.what)
        if owner.kind not in (TOP, WAY):
            raise no_directory()
        if not isinstance(found, Directory):
            raise StaleShardError("a directory that leads to no key any more")
        return found

    def _names(self, above: Directory) -> dict[bytes, AnyDirectory]:
        """What is in a directory above the keys, under the names that this view gives it."""
        changes = self.common.sources.tree.changes
        known = self._shown.get(above.inode)
        if known is None or known[0] != changes:
            known = self._shown[above.inode] = (changes, self._named(above))
        return known[1]

    def _named(self, above: Directory) -> dict[bytes, AnyDirectory]:
        if self.view.kind not in ("wds", "raw"):
            return dict(above.children)
        made: dict[bytes, AnyDirectory] = {
            name: below for name, below in above.children.items() if isinstance(below, Directory)
        }
        for name, below in above.children.items():
            if isinstance(below, KeyDirectory) and (self.view.kind == "wds" or self.common.raw(below) is not None):
                end = TAR if self.view.kind == "wds" else self.common.raw_name(below)
                shown, count = name + end, 1
                while shown in made or len(shown) > config.NAME_MAX:
                    count += 1
                    end = end if len(name + end) + 4 < config.NAME_MAX else b""
                    shown = b"%s~%d%s" % (name, count, end)
                made[shown] = below
        return made

    async def lookup(self, owner: Owner, offset: int, name: bytes) -> Attributes:
        if owner.kind in (KEY, INSIDE):
            return await self._inside(owner, offset, name)
        refresh, above = self.common.sources.refresh, self._way(owner)
        for asked in (False, True):
            below = self._names(above).get(name)
            if isinstance(below, KeyDirectory):
                below = await refresh.key(below)
            if below is not None:
                return await self._entry(below)
            if not asked:
                await refresh.listing()
        raise missing(name)

    async def _entry(self, below: AnyDirectory) -> Attributes:
        if isinstance(below, Directory):
            return self.common.directory(self.number_of(WAY, below.inode), below.mtime_ns)
        if not isinstance(below, KeyDirectory):
            raise StaleShardError("a key that is being made")
        found = self.common.raw(below) if self.view.kind == "raw" else None
        if found is not None:
            return found
        if self.view.kind == "wds":
            tar = await self.common.tars.layout(below, await self.common.table(below))
            return self._tar(below, tar.size)
        return self.common.directory(self.number_for(KEY, below), below.entry.mtime_ns)

    def _tar(self, key: KeyDirectory, size: int) -> Attributes:
        return file_attributes(self.number_for(KEY, key), size, key.entry.mtime_ns, self.common.interval)

    async def listing(self, owner: Owner, offset: int) -> Listing:
        if owner.kind in (KEY, INSIDE):
            return await self._inner_listing(owner, offset)
        above = self._way(owner)
        await self.common.sources.refresh.listing()
        made = []
        for name, below in self._names(above).items():
            if self.view.kind == "wds" and isinstance(below, KeyDirectory):
                made.append((name, self._tar_unasked(below)))
            else:
                made.append((name, await self._entry(below)))
        return Listing(made)

    def _tar_unasked(self, key: KeyDirectory) -> Attributes:
        """A tar in a listing. To know its size may mean to read the shard: where it is not known nothing of what is
        said here may be believed, and who wants to know it asks by name."""
        size = self.common.tars.size(key.slot)
        if size is not None:
            return self._tar(key, size)
        return aged(self._tar(key, 0))

    async def getattr(self, owner: Owner, offset: int) -> Attributes:
        if owner.kind == TOP:
            return self.attributes()
        if owner.kind == WAY:
            return await self._entry(self._way(owner))
        key = self.common.key(owner.what)
        if owner.kind == KEY:
            return await self._entry(key)
        if owner.kind == METADATA_FILE:
            return await self._metadata(key)
        return self.common.directory(self.number_of(INSIDE, key.slot) + offset, key.entry.mtime_ns)

    # --- below a key ------------------------------------------------------------------------------------------------

    async def _metadata(self, key: KeyDirectory) -> Attributes:
        shown = await self.common.hf.key(key, await self.common.table(key))
        inode = self.number_for(METADATA_FILE, key)
        return file_attributes(inode, len(shown.metadata), key.entry.mtime_ns, config.FOREVER)

    async def _inside(self, owner: Owner, offset: int, name: bytes) -> Attributes:
        if self.view.kind == "wds":
            raise no_directory()
        key = self.common.key(owner.what)
        table = await self.common.table(key)
        if owner.kind == INSIDE:
            for found, number, folder in self._children(table, offset):
                if found == name:
                    return self._child(key, table, number, folder)
            raise missing(name)
        if self.view.kind == "tree":
            sample = table.find_sample(name)
            if sample is None:
                raise missing(name)
            return self.common.directory(self._first_inside(key, table) + sample, key.entry.mtime_ns)
        if name == METADATA:
            return await self._metadata(key)
        files = (await self.common.hf.key(key, table)).files
        stem, dot, rest = name.partition(b".")
        for at in files.find(stem, rest) if dot else ():
            return file_attributes(files.inode(at), int(files.sizes[at]), key.entry.mtime_ns, config.FOREVER)
        raise missing(name)

    async def _inner_listing(self, owner: Owner, offset: int) -> Listing:
        if self.view.kind == "wds":
            raise no_directory()
        key = self.common.key(owner.what)
        table = await self.common.table(key)
        if owner.kind == INSIDE:
            found = self._children(table, offset)
            return Listing([(name, self._child(key, table, number, folder)) for name, number, folder in found])
        if self.view.kind == "tree":
            return Listing([], SampleRows(self.common, key, table, self._first_inside(key, table)))
        shown = await self.common.hf.key(key, table)
        return Listing([(METADATA, await self._metadata(key))], rows_of(shown.files, config.FOREVER))

    def _first_inside(self, key: KeyDirectory, table: ShardTable) -> Inode:
        return self.number_for(INSIDE, key, table.samples + folders(table))

    def _children(self, table: ShardTable, offset: int) -> list[Child]:
        if offset < table.samples:
            return sample_children(table, offset)
        return folder_children(table, offset - table.samples)

    def _child(self, key: KeyDirectory, table: ShardTable, number: int, folder: bool) -> Attributes:
        if folder:
            inode = self._first_inside(key, table) + table.samples + number
            return self.common.directory(inode, key.entry.mtime_ns)
        inode = inodes.file_inode(key.slot, number)
        return file_attributes(inode, table.size(number), key.entry.mtime_ns, config.FOREVER)

    # --- when a key is replaced -------------------------------------------------------------------------------------

    def outdated(self, key: KeyDirectory, table: ShardTable | None) -> list[Iterable[Outdated]]:
        ranges = self.common.ranges
        above = self.top if key.parent == inodes.ROOT else ranges.known(Owner(self.number, WAY, key.parent))
        own, inside = (ranges.known(Owner(self.number, kind, key.slot)) for kind in (KEY, INSIDE))
        end = TAR if self.view.kind == "wds" else b""
        made: list[Iterable[Outdated]] = [] if above is None else [[(above, key.name + end)]]
        if self.view.kind == "hf" and own is not None and table is not None:
            made.append(_in(own, self.common.hf.names(key, table)))
        if self.view.kind == "tree" and inside is not None and table is not None:
            made.append(self._inner_names(table, inside))
        return made

    def _inner_names(self, table: ShardTable, first: int) -> Iterator[Outdated]:
        for offset in range(table.samples + folders(table)):
            for name, _, _ in self._children(table, offset):
                yield first + offset, name


class SampleRows:
    """The directories of a key's samples."""

    def __init__(self, common: Common, key: KeyDirectory, table: ShardTable, first: Inode) -> None:
        self._common = common
        self._key = key
        self._table = table
        self._first = first

    def __len__(self) -> int:
        return self._table.samples

    def entry(self, at: int) -> tuple[bytes, Attributes]:
        return self._table.stem(at), self._common.directory(self._first + at, self._key.entry.mtime_ns)

    def batch(self, first: int, last: int) -> Entries:
        samples = range(first, min(last, len(self)))
        return Entries.alike([self._table.stem(at) for at in samples], self._first + first, self._key.entry.mtime_ns)
