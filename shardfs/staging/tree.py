"""What a staged directory holds, and how each record of its journal changes that. Pure: no disk, no clock.

The same `apply` serves an operation when it happens and again when the journal is read, so what is recovered is what
was. Whether an operation is allowed is checked by whoever makes the record. Knows nothing of where bytes lie.

A directory over a stored shard holds only what differs from it: its entries, and the numbers of the shard's files that
are not to be seen any more (removed, or taken over into an entry of its own).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgpack

from shardfs import config

FORMAT = 2
"""Raised whenever a record means something else. 2: numbers of data files that are zero or less (`heap`)."""

_FORMATS = (1, FORMAT)
"""Those that are understood."""

ROOT = 0
"""Number of the staged directory itself among its entries."""

Kind = Literal["key", "plain"]
"""What a staged directory is: a key to be (or one that is stored already), or a directory with any names."""


@dataclass(slots=True, unsafe_hash=True)
class StagedEntry:
    """What is known of one file or directory. Not to be changed; not frozen, as one is made with each request and that
    takes three times as long."""

    id: int
    """Never used again within its staged directory; rises in the order of creation; kept by a rename."""
    parent: int
    """Number of the directory it is in; ROOT for the staged directory itself."""
    name: bytes
    directory: bool
    base: int | None
    """The file of the stored shard that has its bytes; None if they are in a data file here (or it is a directory)."""
    size: int
    """Bytes."""
    mode: int
    """Permission bits only."""
    uid: int
    gid: int
    mtime_ns: int
    """Nanoseconds since the epoch, as is `atime_ns`."""
    atime_ns: int


@dataclass(slots=True, eq=False)
class Node:
    """One entry, as it changes."""

    id: int
    parent: int
    name: bytes
    children: dict[bytes, Node] | None
    data: int | None
    """The number of the data file that has its bytes; below zero it is a run of the heap, and 0 is nowhere: it is
    empty."""
    base: int | None
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    touched: bool = False
    """True if its data file knows the mtime better."""

    def entry(self) -> StagedEntry:
        return StagedEntry(
            self.id,
            self.parent,
            self.name,
            self.children is not None,
            self.base,
            self.size,
            self.mode,
            self.uid,
            self.gid,
            self.mtime_ns,
            self.atime_ns,
        )

    def fields(self) -> list[Any]:
        """All of it, for a record; `from_fields` reads them."""
        return [
            *(self.id, self.parent, self.name, self.children is not None, self.data, self.base, self.size),
            *(self.mode, self.uid, self.gid, self.mtime_ns, self.atime_ns),
        ]

    @classmethod
    def from_fields(cls, fields: list[Any]) -> Node:
        number, parent, name, directory, *rest = fields
        return cls(number, parent, name, {} if directory else None, *rest)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry was, and what had its bytes, when a seal began."""

    parent: int
    name: bytes
    data: int | None
    base: int | None
    size: int


@dataclass(slots=True)
class SealState:
    """A seal that has begun and is not known to have ended."""

    key: str
    token: str
    """What shows whether a version of the store is this seal's work; the caller's to choose."""
    places: dict[int, Place]
    hidden: frozenset[int]
    keepsake: bytes | None = None
    """What the caller wants to have after a crash."""


class Tree:
    """The state of one staged directory."""

    def __init__(self) -> None:
        self.form = FORMAT
        """What its journal says it is."""
        self.id = ""
        self.key = ""
        self.kind: Kind = "key"
        self.base_version: str | None = None
        self.base_bytes = 0
        self.created_ns = 0
        self.boot = ""
        """The run of the machine in which it was last written to."""
        self.clean = False
        """True if all was on disk when the last record was written."""
        self.doubt: str | None = None
        self.parked: str | None = None
        self.replaces: str | None = None
        self.finished = False
        """True if a seal took all there was, and nothing has come since."""
        self.seal: SealState | None = None
        self.next_id = ROOT + 1
        self.next_data = 1
        self.hidden: set[int] = set()
        self.root = Node(ROOT, ROOT, b"", {}, None, None, 0, 0o755, 0, 0, 0, 0)
        self.nodes: dict[int, Node] = {}
        self._apply = {
            name.removeprefix("_on_"): getattr(self, name) for name in dir(type(self)) if name.startswith("_on_")
        }

    # --- looking ------------------------------------------------------------------------------------------------

    def node(self, number: int) -> Node | None:
        return self.root if number == ROOT else self.nodes.get(number)

    def child(self, parent: int, name: bytes) -> Node | None:
        directory = self.node(parent)
        return None if directory is None or directory.children is None else directory.children.get(name)

    def path(self, node: Node) -> tuple[bytes, ...]:
        """The names that lead to an entry."""
        names = [node.name]
        while node.parent != ROOT:
            node = self.nodes[node.parent]
            names.append(node.name)
        return tuple(reversed(names))

    # --- changing -----------------------------------------------------------------------------------------------

    def apply(self, payload: bytes) -> None:
        """Do what a record says. ValueError, KeyError and their like for one that this format does not have."""
        self.do(msgpack.unpackb(payload, raw=False, strict_map_key=False, unicode_errors="surrogatepass"))

    def do(self, record: list[Any]) -> None:
        """The same, for a record that was not packed yet."""
        operation = record[0]
        if operation not in _CLEAN:
            self.clean = False
        self._apply[operation](*record[1:])

    def _on_head(self, form: int, fields: dict[str, Any]) -> None:
        if form not in _FORMATS:
            raise ValueError(f"its journal has format {form}, this release knows {FORMAT}")
        self.form = form
        for name in _HEAD:
            setattr(self, name, fields[name])

    def _on_create(self, *fields: Any) -> None:
        """A new file or directory."""
        self._on_entry(*fields)
        node = self.nodes[fields[0]]
        self._touch(node.parent, node.mtime_ns)

    def _touch(self, directory: int, now_ns: int) -> None:
        cast(Node, self.node(directory)).mtime_ns = now_ns

    def _on_entry(self, *fields: Any) -> None:
        """A file or directory as it is, or one taken over from the stored shard."""
        node = Node.from_fields(list(fields))
        self.next_id = max(self.next_id, node.id + 1)
        if node.data is not None:
            self.next_data = max(self.next_data, node.data + 1)
        self._attach(node)

    def _attach(self, node: Node) -> None:
        parent = self.node(node.parent)
        if parent is None or parent.children is None or node.id in self.nodes or node.name in parent.children:
            raise ValueError("a record puts an entry where none can be")
        parent.children[node.name] = node
        self.nodes[node.id] = node
        if node.base is not None:
            self.hidden.add(node.base)
        self.finished = False

    def _detach(self, node: Node) -> None:
        children = cast(Node, self.node(node.parent)).children
        assert children is not None
        del children[node.name]

    def _on_hide(self, base: int, now_ns: int = 0) -> None:
        """A file of the stored shard is gone."""
        self.hidden.add(base)
        self.finished = False
        if now_ns:
            self._touch(ROOT, now_ns)

    def _on_content(self, number: int, data: int, size: int, mtime_ns: int | None = None) -> None:
        """A file's bytes are in another data file from now on, or there are more of them in the heap."""
        node = self.nodes[number]
        node.data, node.base, node.size = data, None, size
        if mtime_ns is not None:
            node.mtime_ns = mtime_ns
        self.next_data = max(self.next_data, data + 1)

    def _on_remove(self, number: int, now_ns: int) -> None:
        node = self.nodes.pop(number)
        self._detach(node)
        self._touch(node.parent, now_ns)

    def _on_rename(self, number: int, parent: int, name: bytes, hides: int | None, now_ns: int) -> None:
        node = self.nodes[number]
        over = self.child(parent, name)
        if over is not None:
            self._on_remove(over.id, now_ns)
        self._touch(node.parent, now_ns)
        self._touch(parent, now_ns)
        if hides is not None:
            self.hidden.add(hides)
        self._detach(node)
        node.parent, node.name = parent, name
        children = cast(Node, self.node(parent)).children
        assert children is not None
        children[name] = node

    def _on_attributes(self, number: int, mode: int, uid: int, gid: int, mtime_ns: int, atime_ns: int) -> None:
        node = self.root if number == ROOT else self.nodes[number]
        node.mode, node.uid, node.gid, node.mtime_ns, node.atime_ns = mode, uid, gid, mtime_ns, atime_ns

    def _on_key(self, key: str, kind: Kind, replaces: str | None) -> None:
        self.key, self.kind, self.replaces, self.parked = key, kind, replaces, None

    def _on_call(
        self,
        key: str,
        kind: Kind,
        replaces: str | None,
        version: str | None,
        base_bytes: int,
        entries: list[list[Any]],
        hidden: list[int],
    ) -> None:
        """Another key, and another version of the store below it."""
        self._on_key(key, kind, replaces)
        self._on_sealed(version, base_bytes, entries, hidden)

    def _on_park(self, key: str, reason: str) -> None:
        self.key, self.parked = key, reason

    def _on_seal(self, key: str, token: str, keepsake: bytes | None = None) -> None:
        """A seal begins, of what is there now."""
        places = {n.id: Place(n.parent, n.name, n.data, n.base, n.size) for n in self.nodes.values()}
        self.seal = SealState(key, token, places, frozenset(self.hidden), keepsake)

    def _on_sealing(
        self, key: str, token: str, places: list[list[Any]], hidden: list[int], keepsake: bytes | None
    ) -> None:
        """A seal runs, of what was there when it began."""
        known = {number: Place(*place) for number, *place in places}
        self.seal = SealState(key, token, known, frozenset(hidden), keepsake)

    def _on_token(self, token: str) -> None:
        assert self.seal is not None
        self.seal.token = token

    def _on_unseal(self) -> None:
        self.seal = None

    def _on_sealed(self, version: str | None, base_bytes: int, entries: list[list[Any]], hidden: list[int]) -> None:
        """A seal is done: this is what is left, over the new version."""
        self.base_version, self.base_bytes, self.seal = version, base_bytes, None
        self.nodes, self.hidden, self.root.children = {}, set(hidden), {}
        for fields in entries:
            self._attach(Node.from_fields(fields))
        self.finished = not entries and not hidden

    def _on_clean(self) -> None:
        """All is on disk."""
        self.clean = True

    def _on_dirty(self) -> None:
        """Bytes that were on disk are being changed in place."""

    def _on_boot(self, boot: str) -> None:
        self.boot = boot

    def _on_doubt(self, reason: str | None) -> None:
        self.doubt = reason

    # --- as records ---------------------------------------------------------------------------------------------

    def records(self) -> Iterator[bytes]:
        """The shortest journal that gives this state."""
        yield pack(["head", FORMAT, {name: getattr(self, name) for name in _HEAD}])
        # parents before children, which a rename may have turned round
        pending = [self.root]
        while pending:
            directory = pending.pop()
            for node in (directory.children or {}).values():
                yield pack(["entry", *node.fields()])
                if node.children:
                    pending.append(node)
        shown = {node.base for node in self.nodes.values()}
        for base in sorted(self.hidden - shown):
            yield pack(["hide", base])
        root = self.root
        yield pack(["attributes", ROOT, root.mode, root.uid, root.gid, root.mtime_ns, root.atime_ns])
        seal = self.seal
        if seal is not None:
            places = [[n, p.parent, p.name, p.data, p.base, p.size] for n, p in seal.places.items()]
            yield pack(["sealing", seal.key, seal.token, places, sorted(seal.hidden), seal.keepsake])
        # at the end, for the records above have made these more than they are
        if self.clean:
            yield pack(["clean"])


_CLEAN = frozenset(("head", "clean", "boot", "doubt"))
"""Records that leave `clean` as it is."""

_HEAD = (
    *("id", "key", "kind", "base_version", "base_bytes", "created_ns", "boot", "clean", "doubt", "parked", "replaces"),
    *("finished", "next_id", "next_data"),
)


def pack(record: list[Any]) -> bytes:
    """A record as bytes. Names are bytes; keys are text, with whatever lone surrogates they have."""
    packed = msgpack.packb(record, unicode_errors="surrogatepass", buf_size=config.PACK_SMALL)
    assert isinstance(packed, bytes)
    return packed
