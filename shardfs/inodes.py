"""Inode numbers: directories from a counter, files by arithmetic. Pure; knows nothing of what the numbers stand for.

A file's number is `slot << 32 | file`; a slot belongs to one version of one key and is never used again, so no number
ever means other bytes than it did. Slot 0 is the directories'.
"""

from __future__ import annotations

from shardfs.model import Inode

ROOT = Inode(1)
_BITS = 32


def file_inode(slot: int, file: int) -> Inode:
    return Inode(slot << _BITS | file)


def slot_of(inode: int) -> int:
    return inode >> _BITS


def file_of(inode: int) -> int:
    return inode & ((1 << _BITS) - 1)
