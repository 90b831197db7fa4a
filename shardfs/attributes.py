"""What stat, df and listings say of what is mounted: nouns for the vfs and the adapter, of which it knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from shardfs.index import ShardTable
from shardfs.model import Entry


class Attributes(NamedTuple):
    """What stat says of one file or directory, and for how many seconds the kernel may believe it."""

    inode: int
    mode: int
    size: int
    mtime_ns: int
    nlink: int
    entry_timeout: float
    attr_timeout: float
    uid: int = -1
    """-1: whoever mounted; so of `gid`."""
    gid: int = -1
    atime_ns: int | None = None
    """None: the mtime."""


@dataclass(frozen=True, slots=True)
class StatFs:
    """What df says. Sizes in blocks of `block_size` bytes."""

    block_size: int
    blocks: int
    files: int
    name_max: int
    free: int = 0
    """Blocks that may still be written."""


@dataclass(frozen=True, slots=True)
class FileRun:
    """The files of a key, for listing them without an object per file."""

    shared: Attributes
    """What all of them have in common; the inode number is the first file's."""
    table: ShardTable
    plus: bool
    """False if names alone are to be handed out."""
    canary: bool
    """True if the first file is to be handed out without its attributes all the same."""


@dataclass(frozen=True, slots=True)
class About:
    """What a key's directory, or something in it, is."""

    key: str | None
    """None: in a directory that is to become no key as it is called."""
    entry: Entry | None
    """The shard as it is stored; None where there is none yet."""
    size: int = 0
    stem: bytes | None = None
    """The name of the file's sample; None for a directory, and for a file whose name has no dot."""
    suffix: bytes = b""
    """The part of the file's name behind its first dot."""
    is_file: bool = False
    table: ShardTable | None = None
    file: int | None = None
    """The stored file's number in the table; None where its bytes are staged."""
    staged: bool = False
    """Whether the bytes are staged here, and in no store yet."""
