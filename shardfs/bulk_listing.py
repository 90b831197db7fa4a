"""Directory entries of one key, made by the hundred instead of one by one.

pyfuse3 has each entry of a listing reported by a call of its own, which is most of what `find` over a million files
costs. Here the first entry of each answer goes that way, and the rest are copies of it with other names and numbers,
written behind it into pyfuse3's own buffer. Where that buffer is, pyfuse3 keeps to itself: what its token and the first
entry look like in memory is compared with what they must hold, each time, and where anything differs nothing is touched
and all entries go the ordinary way. `SHARDFS_STOCK_LISTING=1` in the environment compares.

Source of the layout: struct fuse_direntplus of the kernel's include/uapi/linux/fuse.h (unchanged since protocol 7.9).
Knows nothing of how listings are asked for.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import numpy as np

from shardfs.index import ShardTable
from shardfs.views.columns import Entries

STOCK = "SHARDFS_STOCK_LISTING"

_Words = np.ndarray[Any, np.dtype[np.uint64]]

_WORDS = 19
_HEADER = 8 * _WORDS
_NODE, _INODE, _SIZE, _BLOCKS, _ATIME, _MTIME, _CTIME, _NANOSECONDS = 0, 5, 6, 7, 8, 9, 10, 11
_ENTRY_INODE, _NEXT, _NAME_LENGTH = 16, 17, 18
"""Where in an entry's header these stand, in words of 8 bytes; the type is the upper half of the last. Nanoseconds are
three half words, the mode behind them."""

_SMALLEST = _HEADER + 8
_BLOCK = 512


class _Token(ctypes.Structure):
    """A pyfuse3.ReaddirToken of CPython: the request, the buffer's begin, its end so far, and the bytes left."""

    _fields_ = [
        ("references", ctypes.c_ssize_t),
        ("type", ctypes.c_void_p),
        ("request", ctypes.c_uint64),
        ("begin", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("left", ctypes.c_uint64),
    ]


def entry_length(name: int) -> int:
    """Bytes of an entry with a name of so many bytes."""
    return (_HEADER + name + 7) & ~7


class Bulk:
    """Adds to listings. One for each mount."""

    def __init__(self) -> None:
        fit = sys.implementation.name == "cpython" and sys.byteorder == "little" and ctypes.sizeof(ctypes.c_void_p) == 8
        self.sound = fit and os.environ.get(STOCK) != "1"
        """False where listings are to be made the ordinary way."""

    def begin(self, token: Any) -> Answer | None:
        """To be called before the first entry is reported."""
        if not self.sound or type(token).__basicsize__ != ctypes.sizeof(_Token):
            self.sound = False
            return None
        fields = _Token.from_address(id(token))
        if not fields.request or fields.begin or fields.end or not 0 < fields.left < 1 << 30:
            self.sound = False
            return None
        return Answer(fields)


class Answer:
    """One answer to a readdir request. Holds no reference to the token: not to be kept."""

    def __init__(self, fields: _Token) -> None:
        self._fields = fields
        self._size = int(fields.left)
        self._template: _Words | None = None

    def check(self, name: bytes, inode: int, after: int) -> bool:
        """True if the first entry, just reported, is where and what it must be; False ends the bulk way."""
        fields, length = self._fields, entry_length(len(name))
        if not fields.begin or fields.end != fields.begin + length or fields.left != self._size - length:
            return False
        data = ctypes.string_at(fields.begin, length)
        words = np.frombuffer(data, np.uint64, _WORDS)
        numbers = (words[_NODE], words[_INODE], words[_ENTRY_INODE], words[_NEXT], words[_NAME_LENGTH] & 0xFFFFFFFF)
        if numbers != (inode, inode, inode, after, len(name)) or data[_HEADER : _HEADER + len(name)] != name:
            return False
        self._template = words
        return True

    def withhold(self) -> None:
        """Take the attributes out of the first entry: the kernel will ask for them if anybody wants them."""
        ctypes.c_uint64.from_address(self._fields.begin).value = 0

    def extend(self, table: ShardTable, first: int, first_inode: int, plus: bool) -> int:
        """Add as many of the files from number `first` on as there is room for; how many. With `plus` each comes with
        its attributes, and the kernel counts it as looked up."""
        assert self._template is not None
        made, count = pack(table, first, int(self._fields.left), self._template, first_inode, plus)
        self._add(made)
        return count

    @property
    def room(self) -> int:
        """Entries that there may be room for."""
        return int(self._fields.left) // _SMALLEST

    def add(self, entries: Entries, after: int, plus: bool) -> int:
        """Add as many of these as there is room for, of the first entry's type; how many. `after` is the offset behind
        the first of them."""
        assert self._template is not None
        made, count = pack_entries(entries, int(self._fields.left), self._template, after, plus)
        self._add(made)
        return count

    def _add(self, made: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        if made.nbytes:
            fields = self._fields
            ctypes.memmove(fields.end, made.ctypes.data, made.nbytes)
            fields.end += made.nbytes
            fields.left -= made.nbytes


def pack(
    table: ShardTable, first: int, room: int, template: _Words, first_inode: int, plus: bool
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
    """The entries of files from number `first` on that fit into `room` bytes, and how many these are.

    Inode numbers count from `first_inode`, which is file 0's; all else is as in `template`.
    """
    last = min(table.files, first + room // _SMALLEST)
    files = np.arange(first, last)
    columns = table.columns
    samples = np.searchsorted(columns["file_start"], files, "right") - 1
    suffix = columns["suffix"][first:last]
    suffix_starts = table.suffixes.starts.astype(np.int64)
    stem_starts, stem_lengths, stem_data = _stems(table, samples)
    suffix_lengths = np.diff(suffix_starts)[suffix]
    out, begins, count = _headers(stem_lengths + 1 + suffix_lengths, room, template, first + 1)
    if not count:
        return out, 0
    words, at, numbers = out.view(np.uint64), (begins - _HEADER) >> 3, files[:count] + first_inode
    sizes = None
    if plus:
        sizes = columns["length"][first : first + count] + table.prefix_sizes[columns["prefix"][first : first + count]]
    _number(words, at, numbers, sizes)
    _put(out, begins, stem_data, stem_starts[:count], stem_lengths[:count])
    begins = begins + stem_lengths[:count]
    out[begins] = ord(".")
    suffix_data = np.frombuffer(table.suffixes.data, np.uint8)
    _put(out, begins + 1, suffix_data, suffix_starts[suffix[:count]], suffix_lengths[:count])
    return out, count


def pack_entries(
    entries: Entries, room: int, template: _Words, after: int, plus: bool
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], int]:
    """The same of any entries of one type; `after` is the offset behind the first one."""
    lengths = np.fromiter(map(len, entries.names), np.int64, len(entries.names))
    out, begins, count = _headers(lengths, room, template, after)
    if not count:
        return out, 0
    words, at = out.view(np.uint64), (begins - _HEADER) >> 3
    _number(words, at, entries.inodes[:count], entries.sizes[:count] if plus else None)
    if plus:
        seconds, rest = np.divmod(entries.mtimes_ns[:count], 1_000_000_000)
        seconds, rest = seconds.astype(np.uint64), rest.astype(np.uint64)
        words[at + _ATIME] = words[at + _MTIME] = words[at + _CTIME] = seconds
        words[at + _NANOSECONDS] = rest | rest << np.uint64(32)
        words[at + _NANOSECONDS + 1] = rest | template[_NANOSECONDS + 1] >> np.uint64(32) << np.uint64(32)
    lengths = lengths[:count]
    data = np.frombuffer(b"".join(entries.names[:count]), np.uint8)
    _put(out, begins, data, np.cumsum(lengths) - lengths, lengths)
    return out, count


def _headers(
    names: np.ndarray[Any, Any], room: int, template: _Words, after: int
) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], np.ndarray[Any, Any], int]:
    """Entries with names of these lengths, as many as fit, all like `template` but for the offsets behind them; where
    each one's name is to stand."""
    lengths = (_HEADER + names + 7) & ~7
    ends = np.cumsum(lengths)
    count = int(np.searchsorted(ends, room, "right"))
    if not count:
        return np.empty(0, np.uint8), ends[:0], 0
    names, ends, lengths = names[:count], ends[:count], lengths[:count]
    out = np.zeros(int(ends[-1]), np.uint8)
    words, at = out.view(np.uint64), (ends - lengths) >> 3
    words[at[:, None] + np.arange(_WORDS)] = template
    words[at + _NEXT] = np.arange(after, after + count)
    words[at + _NAME_LENGTH] = names | int(template[_NAME_LENGTH] >> np.uint64(32)) << 32
    return out, ends - lengths + _HEADER, count


def _number(words: Any, at: Any, numbers: Any, sizes: Any) -> None:
    """Give entries their inode numbers; with sizes attributes, too."""
    words[at + _ENTRY_INODE] = numbers
    words[at + _NODE] = 0 if sizes is None else numbers
    if sizes is not None:
        words[at + _INODE] = numbers
        words[at + _SIZE] = sizes
        words[at + _BLOCKS] = (sizes + np.uint64(_BLOCK - 1)) // np.uint64(_BLOCK)


def _stems(table: ShardTable, samples: np.ndarray[Any, Any]) -> tuple[Any, Any, Any]:
    """Where each sample's name begins, how long it is, and the bytes they all are in."""
    if table.stems is not None:
        starts = table.stems.starts.astype(np.int64)
        return starts[samples], starts[samples + 1] - starts[samples], np.frombuffer(table.stems.data, np.uint8)
    powers = 10 ** np.arange(table.digits - 1, -1, -1, dtype=np.int64)
    digits = ((table.first_sample + samples)[:, None] // powers) % 10 + ord("0")
    starts = np.arange(len(samples)) * table.digits
    return starts, np.full(len(samples), table.digits), digits.astype(np.uint8).ravel()


def _put(out: Any, to: Any, data: Any, starts: Any, lengths: Any) -> None:
    """Copy a run of `data` to each place in `out`."""
    before = np.cumsum(lengths) - lengths
    run = np.arange(int(lengths.sum()))
    out[np.repeat(to - before, lengths) + run] = data[np.repeat(starts - before, lengths) + run]
