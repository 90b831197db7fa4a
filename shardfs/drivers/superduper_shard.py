"""One table of Superduper, read: its rows in memory, and behind them the artifacts that they refer to.

Knows nothing of how rows are got or of which version they are.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from shardfs import names
from shardfs.drivers.base import Record
from shardfs.drivers.linked import LinkedObjects, Object, OpenObjects
from shardfs.drivers.superduper_rows import decode
from shardfs.errors import DamagedShardError
from shardfs.storage.local import LocalStorage
from shardfs.values import Buffer, Tree

_OBJECT_BYTES = 400
"""Memory that an object takes which rows refer to: its name, size and version, and the place in a table of names."""


class Rows:
    """Records as they come in, and what they are called."""

    def __init__(self, primary_id: str) -> None:
        self.primary_id = primary_id
        self.raw = bytearray()
        self.starts = array("Q")
        self.names: list[str | None] = []

    def add(self, name: str | None, record: bytes) -> None:
        self.starts.append(len(self.raw))
        self.names.append(name)
        self.raw += record


class SuperduperShard:
    """A table. See drivers.base.Shard: its own raw bytes are the rows' records, the artifacts come behind (linked.py).

    `present` makes of a value tree what Python is given.
    """

    computes = False
    linked = True
    first_sample = 0
    samples_through = None

    def __init__(
        self,
        rows: Rows,
        objects: list[Object],
        storage: LocalStorage,
        held: OpenObjects,
        changed: Callable[[], None],
        present: Callable[[Tree, SuperduperShard], Any],
    ) -> None:
        self.raw: Buffer = memoryview(rows.raw).toreadonly()
        self.primary_id = rows.primary_id
        self.objects = objects
        self.storage = storage
        self._starts, self._names = rows.starts, rows.names
        self._linked = LinkedObjects(storage, objects, held, changed)
        self._present = present
        self.size = max(len(self.raw), self._linked.end)

    @property
    def held(self) -> int:
        return len(self.raw) + 8 * len(self._starts) + _OBJECT_BYTES * len(self.objects)

    def part(self, start: int, end: int) -> Buffer | None:
        return self.raw[start:end] if end <= len(self.raw) else self._linked.part(start, end)

    def fetch(self, start: int, end: int) -> Buffer:
        return self.raw[start:end] if end <= len(self.raw) else self._linked.fetch(start, end)

    def decode(self, record: Buffer) -> Tree:
        return decode(record)

    def expect(self) -> None:
        """Its rows are there; artifacts are opened when they are."""

    def cells(self, record: Buffer) -> Mapping[Any, Buffer] | None:
        return None

    def records(self) -> Iterator[Record]:
        for start, end in zip(self._starts, [*self._starts[1:], len(self.raw)], strict=True):
            yield Record(start, end, self.tree(start, end))

    def stems(self) -> list[str]:
        """The rows' primary ids; numbers where some have none, or two are alike."""
        made = [names.escape_sample(name) for name in self._names if name is not None]
        if len({*map(names.same_name, made)}) == len(self._names):
            return made
        digits = names.digits_for(len(self._names))
        return [names.sample_number(number, digits) for number in range(len(self._names))]

    def tree(self, start: int, end: int) -> Tree:
        return decode(self.raw[start:end], start)

    def sample(self, tree: Tree) -> Any:
        return self._present(tree, self)

    def digest(self) -> str:
        """A text that tells these rows and the state of all that they refer to from any other."""
        made = hashlib.blake2b(self.raw, digest_size=16)
        for thing in self.objects:
            made.update(f"{thing.name}\0{thing.version}\0".encode("utf-8", "surrogatepass"))
        return made.hexdigest()

    def mark(self) -> str:
        """The same for what is shown of them, wherever they lie."""
        made = hashlib.blake2b(self.raw, digest_size=16)
        for thing in self.objects:
            made.update(f"{thing.name}\0{thing.size}\0".encode("utf-8", "surrogatepass"))
        return made.hexdigest()

    def object_at(self, offset: int) -> Object:
        """The object that a position is in. DamagedShardError."""
        number = self._linked.number_at(offset)
        if not 0 <= number < len(self.objects):
            raise DamagedShardError("a position of no object", offset)
        return self.objects[number]
