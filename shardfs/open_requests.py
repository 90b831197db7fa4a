"""Opening files without a request: which file a read is of where no open of it has been asked for.

The kernel asks for no open and no close of a file any more once it was told that there is no such operation, and then
who reads again what is in its page cache asks for nothing at all. But a read comes without a handle then, and pyfuse3
hands nothing else of it to a handler: the inode number stands in the request only, as the kernel wrote it into the
buffer of the task that answers it. Where that buffer is, pyfuse3 keeps in the state of the task's coroutine. What that
looks like is compared with what it must hold before the task runs, and each request with what pyfuse3 has told of it;
nothing is ever written there. Where anything differs before the kernel was told, it is not told, and all goes the
ordinary way. `SHARDFS_STOCK_OPEN=1` in the environment compares.

Sources of the layouts: struct fuse_in_header, fuse_open_in and fuse_read_in of the kernel's include/uapi/linux/fuse.h
(unchanged since protocol 7.9), struct fuse_buf of libfuse 3, and what Cython makes of `_session_loop` of the pinned
pyfuse3 (a private name). Knows nothing of what is opened or read.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import gc
import logging
import os
import re
import struct
import sys
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from shardfs.errors import StorageError

log = logging.getLogger("shardfs")

STOCK = "SHARDFS_STOCK_OPEN"
"""Set to 1 in the environment, files are opened and closed by request; for comparing."""

_NAME = "_session_loop"

OLDEST = (5, 1)
"""The kernel's release from which on it is believed to remember that there are no opens: 3.15 began with it, and what
only looks like Linux says less than this."""

_OPEN, _READ = 14, 15
"""Numbers of operations."""

_REQUEST = struct.Struct("<4xI8xQ16xQQI")
"""Operation and inode number; of a read its handle, offset and size, of an opening its flags in the handle's lower
half. The buffer is longer than any of them."""

_HANDLE = 0xFFFFFFFF

_HEADER = 40
"""Bytes of the shortest request."""


class _Buffer(ctypes.Structure):
    """struct fuse_buf of libfuse 3: what a request was read into."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("memory", ctypes.c_uint64),
        ("descriptor", ctypes.c_int),
        ("position", ctypes.c_int64),
    ]


class _NewBuffer(ctypes.Structure):
    """The same of libfuse 3.17 and later."""

    _fields_ = [*_Buffer._fields_, ("room", ctypes.c_size_t)]


def _scope(buffer: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """What a session task of pyfuse3 3.5.0 on CPython keeps between its steps."""
    number, place = ctypes.c_int, ctypes.c_uint64
    fields = [("references", ctypes.c_ssize_t), ("type", place), ("buffer", buffer), ("max_tasks", number)]
    fields += [("min_tasks", number), ("name", place), ("nursery", place), ("result", number)]
    return type("_Scope", (ctypes.Structure,), {"_fields_": fields})


SCOPES = {ctypes.sizeof(each): each for each in (_scope(_Buffer), _scope(_NewBuffer))}
"""By size; which one it is depends on the libfuse that pyfuse3 was built for."""

_BUFFER = 16
"""Where the buffer is in each."""


_Bytes = ctypes.c_char * _REQUEST.size


class _Vector(ctypes.Structure):
    """struct iovec of readv(2)."""

    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class Task:
    """The buffer of one session task. Keeps the state that it is in."""

    def __init__(self, scope: object, proven: Callable[[], bool]) -> None:
        """`proven` says whether a request was found in the buffer of such a task before."""
        self._kept = scope
        self._proven = proven
        self._buffer = _Buffer.from_address(id(scope) + _BUFFER)
        self._where = ctypes.c_uint64.from_address(id(scope) + _BUFFER + _Buffer.memory.offset)
        self._place = 0
        self._view: Any = None

    def request(self) -> tuple[int, int, int, int, int] | None:
        """What is in it, as `_REQUEST` says; None where nothing can be read."""
        place = self._where.value
        if place != self._place:
            self._view, self._place = None, place
            whole = self._buffer.flags == 0 and self._buffer.size >= _HEADER
            if whole and (self._proven() or readable(place)):
                self._view = memoryview(_Bytes.from_address(place))
        return None if self._view is None else _REQUEST.unpack_from(self._view)


def readable(address: int) -> bool:
    """True if a request can be read at an address of this process, asked in a way that does no harm if it cannot."""
    if not address or address % 8:
        return False
    into = ctypes.create_string_buffer(_REQUEST.size)
    here = _Vector(ctypes.addressof(into), _REQUEST.size)
    there = _Vector(address, _REQUEST.size)
    read = _reading()
    if read is None:
        return False
    done = read(os.getpid(), ctypes.addressof(here), 1, ctypes.addressof(there), 1, 0)
    return bool(done == _REQUEST.size)


@functools.cache
def _reading() -> Callable[..., int] | None:
    """process_vm_readv(2)."""
    try:
        read = ctypes.CDLL(None).process_vm_readv
    except AttributeError:
        return None
    read.restype = ctypes.c_ssize_t
    number, place = ctypes.c_ulong, ctypes.c_void_p
    read.argtypes = [ctypes.c_int, place, number, place, number, number]
    return read


_TASK: ContextVar[Task | None] = ContextVar("task", default=None)


class OpenRequests:
    """Session tasks whose requests can be looked at. One for each mount."""

    def __init__(self, begin: Callable[..., Coroutine[Any, Any, None]]) -> None:
        """`begin(nursery, min_tasks, max_tasks)` makes pyfuse3's coroutine of a task, not begun."""
        self._begin = begin
        self._proven = False
        self.sound = True
        """False where a task did not look as it must: nothing is to rest on this then."""

    async def task(self, nursery: object, min_tasks: int, max_tasks: int) -> None:
        """In place of pyfuse3's session task: the same, looked at."""
        coroutine = self._begin(nursery, min_tasks, max_tasks)
        scope = examined(coroutine, nursery, min_tasks, max_tasks)
        if scope is None:
            self.sound = False
        _TASK.set(None if scope is None else Task(scope, self._is_proven))
        await coroutine

    def _is_proven(self) -> bool:
        return self._proven

    def is_open(self, inode: int, flags: int) -> bool:
        """True if the request that is being answered can be looked at, and is to open this file: the kernel may be told
        that there are no opens."""
        if not self.sound:
            return False
        task = _TASK.get()
        found = None if task is None else task.request()
        if found is None or found[:2] != (_OPEN, inode) or found[2] & _HANDLE != flags & _HANDLE:
            self.sound = False
            log.warning("files are opened by request: pyfuse3 is not what it is expected to be")
            return False
        self._proven = True
        return True

    def inode(self, offset: int, size: int) -> int:
        """The file that the read of so many bytes without a handle, which is being answered, is of. EIO."""
        task = _TASK.get()
        found = None if task is None else task.request()
        if found is None or found[0] != _READ or found[2:] != (0, offset, size):
            if self.sound:
                log.error("a read that cannot be looked at: mount again with %s=1 in the environment", STOCK)
            self.sound = False
            raise StorageError("a read of nobody knows which file", errno.EIO)
        return found[1]


def examined(coroutine: object, nursery: object, min_tasks: int, max_tasks: int) -> object | None:
    """The state of a task's coroutine that is not begun; None if it looks otherwise than expected."""
    found = None
    for kept in gc.get_referents(coroutine):
        scope = None if isinstance(kept, type) else SCOPES.get(type(kept).__basicsize__)
        if scope is None:
            continue
        fields: Any = scope.from_address(id(kept))
        empty = not any(bytes(fields.buffer))
        numbers = (fields.type, fields.min_tasks, fields.max_tasks, fields.nursery)
        if empty and numbers == (id(type(kept)), min_tasks, max_tasks, id(nursery)):
            found = kept
    return found


def install(pyfuse3: ModuleType) -> OpenRequests | None:
    """Look at pyfuse3's session tasks from now on; None where that is not wanted or not possible."""
    fit = sys.implementation.name == "cpython" and sys.byteorder == "little" and ctypes.sizeof(ctypes.c_void_p) == 8
    begin = getattr(getattr(pyfuse3, _NAME, None), "__wrapped__", None)
    if os.environ.get(STOCK) == "1" or not fit or not callable(begin) or release() < OLDEST:
        return None
    made = OpenRequests(begin)
    setattr(pyfuse3, _NAME, made.task)
    return made


def release() -> tuple[int, int]:
    """The kernel's, as far as two numbers tell it."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (0, 0) if found is None or os.uname().sysname != "Linux" else (int(found[1]), int(found[2]))
