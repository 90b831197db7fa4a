"""Which files may be given to the kernel before it asks, and that none is given twice. Pure state.

A gift waits, in the kernel, for a read of the same file that is under way, and the event loop, which alone can answer
that, would wait for the gift. So one is made only to the first who opens a file: where nobody else has it open, no read
of it can be under way, and its opener reads when the answer to the opening has come.
"""

from __future__ import annotations

from shardfs import inodes
from shardfs.tree import KeyDirectory


class Gifts:
    """Open handles of files, by inode number, and what was given."""

    def __init__(self) -> None:
        self._opened: dict[int, int] = {}

    def opened(self, inode: int) -> None:
        """A handle was handed out."""
        self._opened[inode] = self._opened.get(inode, 0) + 1

    def released(self, inode: int) -> None:
        """One was closed for good: no read through it is under way."""
        handles = self._opened.pop(inode, 0)
        if handles > 1:
            self._opened[inode] = handles - 1

    def is_open(self, inode: int) -> bool:
        """True while somebody has it open."""
        return inode in self._opened

    def files(self, slot: int) -> list[int]:
        """The files of a slot that are open."""
        return [inodes.file_of(inode) for inode in self._opened if inodes.slot_of(inode) == slot]

    def due(self, inode: int, key: KeyDirectory, file: int, files: int) -> bool:
        """True if a file that is being opened may be given now, and was never given or asked for; it counts as given
        from then on. `files` is the number of files of its key."""
        return self._opened.get(inode) == 1 and take(key, file, files)


def take(key: KeyDirectory, file: int, files: int) -> bool:
    """Mark a file as given; False if it was marked before."""
    if key.given is None:
        key.given = bytearray(files)
    if key.given[file]:
        return False
    key.given[file] = 1
    return True
