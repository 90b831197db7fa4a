"""Names in a key's own directory that mean nothing any more once the key has been replaced: for who works in there.

Made up when they are gone through, in any thread, out of what never changes. Knows nothing of who is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardfs.index import FolderTable, ShardTable
from shardfs.tree import KeyDirectory

Outdated = tuple[int, bytes]
"""The number of a directory, and a name in it."""


def inner_names(key: KeyDirectory, table: ShardTable) -> Iterator[Outdated]:
    """What was in the directory of a key. Nothing once the kernel has forgotten that: nobody works there."""
    listed = table.children(None, 0) if isinstance(table, FolderTable) else table.listing(0)
    for name, _, _ in listed:
        if key.entered <= 0:
            return
        yield key.inode, name


def while_known(key: KeyDirectory, names: Iterable[Outdated]) -> Iterator[Outdated]:
    """These, until the kernel has forgotten all of the key."""
    for one in names:
        if key.lookups <= 0 and not key.generated:
            return
        yield one
