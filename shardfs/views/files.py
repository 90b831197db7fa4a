"""Views as a file system sees them: names, attributes, listings and contents, by inode number.

Found by lookup below `.shardfs/views`, and one of them at the mount's root where that is asked for. Each lookup of a
view that was not looked at before makes a place for it; what is in it is made when somebody looks into it. Knows
nothing of FUSE.
"""

from __future__ import annotations

import errno
import itertools
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

from shardfs import config, inodes
from shardfs.attributes import Attributes
from shardfs.errors import BadSettingError, StaleShardError, StorageError
from shardfs.index import ShardTable
from shardfs.listers import Listers
from shardfs.model import Inode
from shardfs.outdated import Outdated
from shardfs.tree import KeyDirectory
from shardfs.views.gathered import Sources
from shardfs.views.mirrored import Hf, Tars
from shardfs.views.names import PLAIN, View, parse
from shardfs.views.numbers import Owner, Ranges
from shardfs.views.places import (
    INSIDE,
    KEY,
    LABEL_TEXTS,
    METADATA_FILE,
    Common,
    GatheredPlace,
    Listing,
    MirroredPlace,
    Place,
    Raw,
    RawName,
    missing,
)

NAME = b"views"
"""Of the directory below `.shardfs`."""

GATHERED = ("by", "flat", "yolo")

_ALL = Owner(0, -1, None)
"""Who has the number of the directory of all views."""

Content = Callable[[KeyDirectory, int, int, int], Awaitable[bytes | memoryview]]
"""Of a key's file, by its number in the table: from an offset on so many bytes, fewer only at its end."""


@dataclass(slots=True)
class _Asked:
    """Whether anybody asked for a name in a directory since it was listed."""

    asked: bool = False


@dataclass(slots=True)
class _Opened:
    listing: Listing
    plus: bool
    retired: int
    """How many keys had been superseded when it was made."""


class ViewFiles:
    """All views of one mount. `heavy` is the heavy field that they show where there are several."""

    def __init__(
        self, sources: Sources, content: Content, raw: Raw, raw_name: RawName, mtime: Callable[[], int]
    ) -> None:
        self.heavy: str | None = None
        self.root: Place | None = None
        """The view at the mount's root."""
        self._content = content
        self._mtime = mtime
        self._ranges = Ranges()
        self._common = Common(
            sources, self._ranges, Hf(lambda: self.heavy, sources), Tars(sources), raw, raw_name, sources.table
        )
        self._places: dict[int, Place] = {}
        self._by_view: dict[View, Place] = {}
        self._made: OrderedDict[int, GatheredPlace] = OrderedDict()
        self._handles: dict[int, _Opened] = {}
        self._numbers = itertools.count(int(inodes.VIEWS))
        self._listers = Listers()
        self._asked: OrderedDict[int, _Asked] = OrderedDict()

    def show(self, view: str, heavy: str | None) -> None:
        """Have a view at the mount's root (`` for none), and this field in all. Before anything is served."""
        self.heavy = heavy
        if view:
            self.root = self._place(parse(view), None)

    # --- names and attributes -----------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        """An entry of a view's directory, or of the directory of all views. MissingKeyError."""
        if parent == self.top().inode:
            return self._view(name).attributes()
        place, owner, offset = self._owner(parent)
        asked = self._asked.get(parent)
        if asked is not None:
            asked.asked = True
        found = await place.lookup(owner, offset, name)
        self._note(place)
        return found

    def lookup_now(self, parent: int, name: bytes) -> tuple[KeyDirectory, int, int] | None:
        """As `lookup` of a sample's own file where nothing has to be waited for: its key, inode number and size."""
        known = self._ranges.find(parent)
        if known is None:
            return None
        place = self._places.get(known[0].place)
        found = place.find_now(known[0], name) if isinstance(place, GatheredPlace) else None
        asked = self._asked.get(parent)
        if asked is not None:
            asked.asked = True
        return found

    def top(self) -> Attributes:
        """The directory of all views."""
        return self._common.directory(self._ranges.of(_ALL), self._mtime())

    def _view(self, name: bytes) -> Place:
        try:
            view = parse(name.decode("utf-8"))
        except (BadSettingError, UnicodeDecodeError) as error:
            raise missing(name) from error
        known = self._by_view.get(view)
        if known is None:
            if view.text != name.decode("utf-8"):
                raise missing(name)  # one name for each: a directory that has two would be moved from one to the other
            if len(self._by_view) >= config.VIEWS_KNOWN:
                raise StorageError(f"more than {config.VIEWS_KNOWN} views looked at", errno.EMFILE)
            known = self._by_view[view] = self._place(view, self.top().inode)
        return known

    def _place(self, view: View, above: int | None) -> Place:
        number, where = len(self._places) + 1, None if above is None else Inode(above)
        place: Place
        if view.kind in GATHERED:
            place = GatheredPlace(number, view, self._common, where, self.heavy)
        else:
            place = MirroredPlace(number, view, self._common, where)
        self._places[number] = place
        return place

    def _owner(self, inode: int) -> tuple[Place, Owner, int]:
        """Whose number it is, and which of its. ESTALE."""
        if inode == inodes.ROOT and self.root is not None:
            return self.root, Owner(self.root.number, 0, None), 0
        found = self._ranges.find(inode)
        place = None if found is None else self._places.get(found[0].place)
        if found is None or place is None:
            raise StaleShardError("something of a view that is there no more")
        return place, *found

    def _note(self, place: Place) -> None:
        """Let the columns of those views go that nobody has looked at for the longest time."""
        if isinstance(place, GatheredPlace) and place.gathered.shown is not None:
            self._made[place.number] = place
            self._made.move_to_end(place.number)
            while len(self._made) > config.VIEWS_MADE:
                self._made.popitem(last=False)[1].gathered.drop()

    async def getattr(self, inode: int) -> Attributes:
        """Attributes by number. ESTALE for what is there no more."""
        if inode == self.top().inode:
            return self.top()
        place, owner, offset = self._owner(inode)
        return await place.getattr(owner, offset)

    # --- listings -----------------------------------------------------------------------------------------------

    async def opendir(self, inode: int, process: int = 0) -> int:
        """A handle for listing a directory as it is now. ENOTDIR, ESTALE, and the errors of making what is in it."""
        if inode == self.top().inode:
            listing = Listing([(name.encode(), self._view(name.encode()).attributes()) for name in PLAIN])
            retired = self._common.sources.tree.retired
        else:
            place, owner, offset = self._owner(inode)
            retired = self._common.sources.tree.retired
            listing = await place.listing(owner, offset)
            self._note(place)
        if len(self._handles) >= config.HANDLES:
            raise StorageError("too many open directories", errno.EMFILE)
        asked = self._asked.pop(inode, None) or _Asked()
        self._asked[inode] = asked
        if len(self._asked) > config.LISTERS:
            self._asked.popitem(last=False)
        number = next(self._numbers)
        self._handles[number] = _Opened(listing, self._listers.plus(process, asked, listing), retired)
        return number

    def listing(self, handle: int) -> tuple[Listing, bool] | None:
        """What an open directory lists, and whether its names are to come with attributes; None for no such handle."""
        opened = self._handles.get(handle)
        if opened is None:
            return None
        if opened.retired != self._common.sources.tree.retired:
            return opened.listing.aged(), opened.plus
        return opened.listing, opened.plus

    def entries(self, handle: int, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        """Entries from offset `start` on. EBADF."""
        found = self.listing(handle)
        if found is None:
            raise StorageError("no such handle", errno.EBADF)
        return found[0].entries(start)

    def releasedir(self, handle: int) -> None:
        self._handles.pop(handle, None)

    # --- files --------------------------------------------------------------------------------------------------

    def open(self, inode: int) -> int:
        """A handle for reading what a view generates, which is the number itself. EISDIR, ESTALE."""
        place, owner, _ = self._owner(inode)
        if owner.kind not in (LABEL_TEXTS, METADATA_FILE) and not (owner.kind == KEY and place.view.kind == "wds"):
            raise StorageError("a directory", errno.EISDIR)
        self._common.key(owner.what)
        return inode

    async def read(self, handle: int, offset: int, size: int) -> bytes | memoryview:
        """At most `size` bytes from `offset`, fewer only at the end: the same for a handle as ever, or ESTALE; and the
        errors of reading the samples' files."""
        _, owner, number = self._owner(handle)
        key = self._common.key(owner.what)
        table = await self._common.table(key)
        if owner.kind == METADATA_FILE:
            shown = await self._common.hf.key(key, table)
            return memoryview(shown.metadata)[offset : offset + size]
        if owner.kind == LABEL_TEXTS:
            text = (await self._common.sources.labels(key, table))[number]
            return memoryview(text)[offset : offset + size]
        layout = await self._common.tars.layout(key, table)
        made: list[bytes | memoryview] = []
        for piece in layout.pieces(table, offset, offset + size):
            if piece.file < 0:
                made.append(piece.data)
            else:
                part = await self._content(key, piece.file, piece.offset, piece.size)
                if len(part) != piece.size:
                    raise StaleShardError("a file with another size than the table says")
                made.append(part)
        return b"".join(made)

    # --- changes ------------------------------------------------------------------------------------------------

    def supersede(self, key: KeyDirectory, table: ShardTable | None) -> list[Iterable[Outdated]]:
        """A key was replaced or has gone: its numbers mean nothing any more. The names that may mean other files by
        now, to be gone through in any thread; `table` says what the key held, where that is known."""
        slot, told = key.slot, []
        gone = []
        for place in self._places.values():
            gone += [Owner(place.number, kind, slot) for kind in (KEY, INSIDE, METADATA_FILE, LABEL_TEXTS)]
            told += place.outdated(key, table)
        if self._places:
            self._ranges.drop(gone)
        self._common.hf.drop(slot)
        self._common.tars.drop(slot)
        self._common.sources.label_texts.pop(slot, None)
        return told
