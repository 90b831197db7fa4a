"""A bounded trace of what the kernel asks of a mount: a line of JSON for each request, written behind its back.

The first line says of what, and since when; each other has `t` (seconds since then), `op`, `path` (of the mount's root;
null where it cannot be told any more), `offset`, `size`, `seconds` and `errno` (0: none); a last one with `end` says
why there are no more. Where nobody asks for a trace nothing of this is in the way of a request.

Adding costs the event loop two looks at the clock and a tuple; a thread makes lines of these and writes them. Knows
nothing of pyfuse3, nor of who plays a trace.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from shardfs import config, inodes
from shardfs.attributes import Attributes
from shardfs.errors import BadSettingError
from shardfs.tree import KeyTree
from shardfs.vfs import Vfs

log = logging.getLogger("shardfs")

FORMAT = 1

_Handler = Callable[..., Awaitable[Any]]
_Listed = tuple[bytes, Attributes, int]
_Readdir = Callable[[int, int], Awaitable[Iterator[_Listed]]]


class Request(NamedTuple):
    """One request that was answered."""

    begun: float
    """Of time.perf_counter()."""
    operation: str
    path: str | None
    offset: int
    size: int
    """Bytes that were asked for or given to be written; 0 for what has none."""
    seconds: float
    code: int


class Recorder:
    """Takes requests on the event loop and writes them to a file in a thread, until it has grown too large."""

    def __init__(self, path: Path, limit: int = config.TRACE_BYTES) -> None:
        """A new file, or an old one that is written over. BadSettingError where it cannot be made."""
        self.full = False
        self._limit = limit
        self._written = 0
        self._lost = 0
        self._waiting: deque[Request] = deque()
        self._ended = threading.Event()
        self._begun = perf_counter()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise BadSettingError(f"--trace {path}: {error.strerror}") from error
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._path = path

    def add(self, request: Request) -> None:
        """One request more. Never waits; on the event loop."""
        if self.full:
            return
        if len(self._waiting) >= config.TRACE_WAITING:
            self._lost += 1
        else:
            self._waiting.append(request)

    @contextlib.contextmanager
    def running(self, store: str, mountpoint: str) -> Iterator[None]:
        """Writes as long as the block lasts, and what is left at its end."""
        head = {"trace": FORMAT, "began": round(time.time(), 3), "store": store, "mountpoint": mountpoint}
        self._put([json.dumps(head)])
        writer = threading.Thread(target=self._write, name="trace", daemon=True)
        writer.start()
        try:
            yield
        finally:
            self._ended.set()
            writer.join()
            if not self.full:
                self._drain()
                self._end("unmounted")
            self._file.close()

    def _write(self) -> None:
        while not self._ended.wait(config.TRACE_EVERY) and not self.full:
            self._drain()

    def _drain(self) -> None:
        lines = [self._line(self._waiting.popleft()) for _ in range(len(self._waiting))]
        if not lines:
            return
        room = self._limit - self._written
        if sum(map(len, lines)) + len(lines) <= room:
            self._put(lines)
            return
        fitting = []
        for line in lines:
            room -= len(line) + 1
            if room < 0:
                break
            fitting.append(line)
        self._put(fitting)
        self._end("limit")
        log.warning("the trace %s has reached %d MiB, and has ended", self._path, self._limit >> 20)

    def _line(self, request: Request) -> str:
        path = "null" if request.path is None else json.dumps(request.path)
        return (
            f'{{"t":{request.begun - self._begun:.6f},"op":"{request.operation}","path":{path},'
            f'"offset":{request.offset},"size":{request.size},"seconds":{request.seconds:.6f},"errno":{request.code}}}'
        )

    def _put(self, lines: list[str]) -> None:
        if not lines or self.full:
            return
        data = ("\n".join(lines) + "\n").encode("ascii")
        try:
            self._file.write(data)
            self._written += len(data)
        except OSError as error:
            self.full = True
            self._waiting.clear()
            log.warning("the trace %s has ended: %s", self._path, error.strerror)

    def _end(self, why: str) -> None:
        self._put([json.dumps({"end": why, "lost": self._lost})])
        self.full = True
        self._waiting.clear()


def path_in(tree: KeyTree, inode: int) -> bytes | None:
    """The path of a directory of the tree; None for one that is none, or has gone."""
    parts: list[bytes] = []
    while inode != inodes.ROOT:
        directory = tree.directory(inode)
        if directory is None:
            return None
        parts.append(directory.name)
        inode = directory.parent
    return b"/".join(reversed(parts))


class Tracer:
    """Puts itself before the handlers of one mount, and finds out which paths they are asked for."""

    def __init__(self, vfs: Vfs, recorder: Recorder) -> None:
        self._vfs = vfs
        self._tree = vfs.tree
        self._recorder = recorder
        self._paths: dict[int, bytes] = {}
        """Inode number -> path, of what was looked up, made or worked out."""
        self._handles: dict[tuple[bool, int], bytes] = {}
        """(Whether of a directory, handle) -> path, where the handle is no inode number."""
        self._seen: set[int] = set()
        """Handles of directories of views all of whose names are known."""

    def attach(self, operations: object) -> None:
        """From now on what is asked of `operations` is recorded."""
        for name, describe in _DESCRIBED.items():
            setattr(operations, name, self._traced(name, getattr(operations, name), describe))
        vfs: Any = self._vfs
        vfs.readdir, vfs.view_listing = self._listing(vfs.readdir), self._view_listing(vfs.view_listing)

    def _listing(self, work: _Readdir) -> _Readdir:
        """The kernel takes attributes with names of a listing, and asks for these by their numbers then."""

        async def readdir(handle: int, start: int) -> Iterator[_Listed]:
            above, entries = self.handle(handle, directory=True), await work(handle, start)
            return entries if above is None or self._recorder.full else self._listed(above, entries)

        return readdir

    def _view_listing(self, work: Callable[[int], Any]) -> Callable[[int], Any]:
        """The same for a directory of a view, all of whose names are handed out at once, in another way."""

        def view_listing(handle: int) -> Any:
            found, above = work(handle), self._handles.get((True, handle))
            if found is not None and above is not None and handle not in self._seen and not self._recorder.full:
                self._seen.add(handle)
                for _ in islice(self._listed(above, found[0].entries(0)), config.TRACE_PATHS):
                    pass
            return found

        return view_listing

    def _listed(self, above: bytes, entries: Iterator[_Listed]) -> Iterator[_Listed]:
        for name, attributes, after in entries:
            self._know(attributes.inode, above + b"/" + name if above else name)
            yield name, attributes, after

    def _traced(self, name: str, work: _Handler, describe: _Describe) -> _Handler:
        recorder = self._recorder

        async def traced(*arguments: Any) -> Any:
            if recorder.full:
                return await work(*arguments)
            path, offset, size = describe(self, arguments)
            begun, code, result = perf_counter(), errno.EINTR, None
            try:
                result = await work(*arguments)
                code = 0
                return result
            except Exception as error:
                code = getattr(error, "errno", None) or errno.EIO
                raise
            finally:
                seconds = perf_counter() - begun
                if code == 0:
                    code = self._learn(name, arguments, path, result)
                text = None if path is None else os.fsdecode(path)
                recorder.add(Request(begun, name, text, offset, size, seconds, code))

        return traced

    def path_of(self, inode: int) -> bytes | None:
        """Where something is that the kernel knows by its number; None where that cannot be told."""
        known = self._paths.get(inode)
        if known is not None:
            return known
        if inode >= inodes.CONTROL:
            return None
        slot, file = inodes.slot_of(inode), inodes.file_of(inode)
        if not slot:
            return path_in(self._tree, inode)
        key = self._tree.slot(slot)
        table = None if key is None else self._vfs.cache.tables.known(key.entry)
        if key is None or table is None or file >= table.files or (key.moved and file in key.moved):
            return None
        if self._vfs.views.root is not None:  # it is shown elsewhere there
            return None
        above = path_in(self._tree, key.inode)
        return None if above is None else above + b"/" + table.name(file)

    def handle(self, number: int, directory: bool = False) -> bytes | None:
        """What was opened under a handle: for a stored file that is its inode number."""
        known = self._handles.get((directory, number))
        return self.path_of(number) if known is None and not directory else known

    def below(self, inode: int, name: bytes) -> bytes | None:
        """The path of a name in a directory."""
        above = self.path_of(inode)
        return None if above is None else above + b"/" + name if above else name

    def _learn(self, name: str, arguments: tuple[Any, ...], path: bytes | None, result: Any) -> int:
        """What an answer tells of paths; the errno that it stands for, as a name that is missing may be an answer."""
        if len(self._paths) >= config.TRACE_PATHS or name in ("rename", "unlink", "rmdir"):
            self._paths.clear()
        if name == "lookup":
            if not result.st_ino:
                return errno.ENOENT
            self._know(result.st_ino, path)
        elif name == "mkdir":
            self._know(result.st_ino, path)
        elif name == "create":
            self._know(result[1].st_ino, path)
            self._hold(False, result[0].fh, path)
        elif name in ("open", "opendir"):
            self._hold(name == "opendir", result.fh if name == "open" else result, path)
        elif name in ("release", "releasedir"):
            handle = (name == "releasedir", arguments[0])
            self._seen.discard(arguments[0])
            if handle[0] or not inodes.slot_of(handle[1]):
                self._handles.pop(handle, None)
        return 0

    def _know(self, inode: int, path: bytes | None) -> None:
        if path is not None and self._tree.directory(inode) is None:  # these can be moved, and are found anyway
            self._paths[inode] = path

    def _hold(self, directory: bool, handle: int, path: bytes | None) -> None:
        if path is not None and (directory or not inodes.slot_of(handle)):
            self._handles[directory, handle] = path


_Describe = Callable[[Tracer, tuple[Any, ...]], tuple[bytes | None, int, int]]
"""Path, offset and size of a request, from what the handler is given."""


def _named(tracer: Tracer, given: tuple[Any, ...]) -> tuple[bytes | None, int, int]:
    return tracer.below(given[0], given[1]), 0, 0


def _numbered(tracer: Tracer, given: tuple[Any, ...]) -> tuple[bytes | None, int, int]:
    return tracer.path_of(given[0]), 0, 0


def _opened(tracer: Tracer, given: tuple[Any, ...]) -> tuple[bytes | None, int, int]:
    return tracer.handle(given[0]), 0, 0


def _listed(tracer: Tracer, given: tuple[Any, ...]) -> tuple[bytes | None, int, int]:
    return tracer.handle(given[0], True), 0, 0


_DESCRIBED: dict[str, _Describe] = {
    "lookup": _named,
    "getattr": _numbered,
    "setattr": _numbered,
    "opendir": _numbered,
    "readdir": lambda tracer, given: (tracer.handle(given[0], True), given[1], 0),
    "releasedir": _listed,
    "open": _numbered,
    "create": _named,
    "read": lambda tracer, given: (tracer.handle(given[0]), given[1], given[2]),
    "write": lambda tracer, given: (tracer.handle(given[0]), given[1], len(given[2])),
    "release": _opened,
    "fsync": _opened,
    "fsyncdir": _listed,
    "mkdir": _named,
    "unlink": _named,
    "rmdir": _named,
    "rename": _named,
}
"""The operations that are recorded: not those that the kernel asks for once, nor what is never answered."""
