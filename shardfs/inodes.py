"""Inode numbers: directories from a counter, files by arithmetic. Pure; knows nothing of what the numbers stand for.

A file's number is `slot << 32 | file`; a slot belongs to one version of one key and is never used again, so no number
ever means other bytes than it did. Slot 0 is the directories'.
"""

from __future__ import annotations

from shardfs.model import Inode

ROOT = Inode(1)
BITS = 32
FILE_MASK = (1 << BITS) - 1


def file_inode(slot: int, file: int) -> Inode:
    return Inode(slot << BITS | file)


def slot_of(inode: int) -> int:
    return inode >> BITS


def file_of(inode: int) -> int:
    return inode & FILE_MASK


CONTROL = 1 << 62
"""Numbers from here on are those of what is below `.shardfs`: no slot ever comes so far."""

VIEWS = CONTROL | 1 << 61
"""And from here on those of views: of their directories, and of what they generate."""
