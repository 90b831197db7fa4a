"""The adapter with pyfuse3's own types, a made-up file system behind it and no mount."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

pyfuse3 = pytest.importorskip("pyfuse3")

from shardfs.attributes import Attributes, FileRun, StatFs  # noqa: E402
from shardfs.errors import (  # noqa: E402
    DamagedShardError,
    MissingExtraError,
    MissingKeyError,
    StaleShardError,
    StorageError,
)
from shardfs.fuse import Operations, errno_of  # noqa: E402
from shardfs.fuse_writing import WritableOperations  # noqa: E402
from shardfs.index import ShardTable  # noqa: E402
from shardfs.vfs import Vfs  # noqa: E402

CTX = cast(Any, SimpleNamespace(uid=0, gid=0, pid=0, umask=0))
FILE = Attributes(
    inode=(3 << 32) | 7,
    mode=stat.S_IFREG | 0o444,
    size=1025,
    mtime_ns=1_700_000_000_123_456_789,
    nlink=1,
    entry_timeout=86_400.0,
    attr_timeout=60.0,
)
FOLDER = Attributes(2, stat.S_IFDIR | 0o555, 0, -1, 1, 1.0, 1.0)


class MadeUpVfs:
    """A directory (1) with `file`; `wrong` is raised by every method instead, if it is set."""

    uid, gid = 12, 34

    def __init__(self) -> None:
        self.wrong: BaseException | None = None
        self.negative = 5.0
        self.data: Any = b"0123456789"
        self.calls: list[tuple[Any, ...]] = []
        self.shared: Attributes | None = None

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.wrong is not None:
            raise self.wrong

    async def lookup(self, parent: int, name: bytes, process: int = 0) -> Attributes:
        self._note("lookup", parent, name)
        if name != b"file":
            raise MissingKeyError("no such name")
        return FILE

    def negative_timeout(self, parent: int) -> float:
        return self.negative

    async def getattr(self, inode: int) -> Attributes:
        self._note("getattr", inode)
        return FOLDER if inode == 1 else FILE

    async def opendir(self, inode: int, process: int = 0) -> int:
        self._note("opendir", inode)
        return 40

    async def readdir(self, handle: int, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        self._note("readdir", handle, start)
        return ((f"{at}".encode(), self._numbered(at), at + 1) for at in range(start, 4))

    def lacks_now(self, parent: int, name: bytes) -> bool:
        return False

    def lookup_now(self, parent: int, name: bytes) -> None:
        return None

    def files(self, handle: int) -> FileRun | None:
        return None if self.shared is None else FileRun(self.shared, cast(ShardTable, self), True, True)

    def view_listing(self, handle: int) -> None:
        return None

    def listing(self, start: int) -> Iterator[tuple[bytes, int, int]]:
        return ((f"{at}".encode(), at * 1000, at) for at in range(start, 4))

    def gift(self, inode: int) -> bytes | None:
        return None

    @staticmethod
    def _numbered(at: int) -> Attributes:
        return Attributes(100 + at, FILE.mode, at, 0, 1, 1.0, 1.0)

    def looked_up(self, inode: int, count: int = 1) -> None:
        self._note("looked_up", inode, count)

    def releasedir(self, handle: int) -> None:
        self._note("releasedir", handle)

    def open_now(self, inode: int, flags: int) -> int | None:
        return None

    def read_now(self, handle: int, offset: int, size: int) -> bytes | None:
        return None

    async def open(self, inode: int, flags: int) -> int:
        self._note("open", inode, flags)
        return 41

    async def read(self, handle: int, offset: int, size: int) -> Any:
        self._note("read", handle, offset, size)
        return self.data if not isinstance(self.data, bytes) else self.data[offset : offset + size]

    def release(self, handle: int) -> None:
        self._note("release", handle)

    def forget(self, inode: int, count: int) -> None:
        self._note("forget", inode, count)

    def statfs(self) -> StatFs:
        self._note("statfs")
        return StatFs(4096, 10, 3, 255)


@pytest.fixture
def vfs() -> MadeUpVfs:
    return MadeUpVfs()


@pytest.fixture
def operations(vfs: MadeUpVfs) -> Operations:
    return Operations(cast(Vfs, vfs))


def ask(work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    return trio.run(work, *args)


def refused(work: Callable[..., Awaitable[Any]], *args: Any) -> str:
    """The name of the errno with which a handler refuses."""
    with pytest.raises(pyfuse3.FUSEError) as refusal:
        ask(work, *args)
    return errno.errorcode[refusal.value.errno]


# --- what is converted ------------------------------------------------------------------------------------------------


def test_attributes_become_an_entry(operations: Operations) -> None:
    entry = ask(operations.lookup, 1, b"file", CTX)
    assert type(entry) is pyfuse3.EntryAttributes
    assert (entry.st_ino, entry.st_mode, entry.st_nlink) == (FILE.inode, 0o100444, 1)
    assert (entry.st_uid, entry.st_gid) == (12, 34)
    assert (entry.st_size, entry.st_blocks, entry.st_blksize) == (1025, 3, 131072)
    assert entry.st_mtime_ns == entry.st_atime_ns == entry.st_ctime_ns == FILE.mtime_ns
    assert (entry.entry_timeout, entry.attr_timeout) == (86_400.0, 60.0)
    assert entry.generation == 0


def test_each_answer_has_its_own_values(operations: Operations) -> None:
    """The entry is one object, filled anew: nothing of the answer before may stay in it."""
    ask(operations.getattr, FILE.inode, CTX)
    folder = ask(operations.getattr, 1, CTX)
    assert (folder.st_ino, folder.st_mode, folder.st_size, folder.st_blocks) == (2, 0o40555, 0, 0)
    assert folder.st_mtime_ns == folder.st_ctime_ns == folder.st_atime_ns == -1
    assert (folder.entry_timeout, folder.attr_timeout) == (1.0, 1.0)
    assert ask(operations.getattr, FILE.inode, CTX).st_mtime_ns == FILE.mtime_ns


def test_a_missing_name_may_be_remembered(operations: Operations, vfs: MadeUpVfs) -> None:
    entry = ask(operations.lookup, 1, b"other", CTX)
    assert (entry.st_ino, entry.entry_timeout) == (0, 5.0)
    assert ask(operations.lookup, 1, b"file", CTX).st_ino == FILE.inode
    vfs.negative = 0.0
    assert refused(operations.lookup, 1, b"other", CTX) == "ENOENT"


def test_what_storage_cannot_find_is_not_remembered(operations: Operations, vfs: MadeUpVfs) -> None:
    vfs.wrong = StorageError("gone for now", errno.ENOENT)
    assert refused(operations.lookup, 1, b"file", CTX) == "ENOENT"


def test_open_keeps_the_page_cache(operations: Operations, vfs: MadeUpVfs) -> None:
    info = ask(operations.open, FILE.inode, os.O_RDONLY, CTX)
    assert type(info) is pyfuse3.FileInfo
    assert (info.fh, info.keep_cache, info.direct_io, info.nonseekable) == (41, True, False, False)
    assert ask(operations.opendir, 1, CTX) == 40
    ask(operations.release, 41)
    ask(operations.releasedir, 40)
    assert vfs.calls == [("open", FILE.inode, os.O_RDONLY), ("opendir", 1), ("release", 41), ("releasedir", 40)]


def test_read(operations: Operations, vfs: MadeUpVfs) -> None:
    assert ask(operations.read, 41, 2, 3) == b"234"
    vfs.data = memoryview(b"abc")
    assert bytes(ask(operations.read, 41, 0, 3)) == b"abc"


def test_statfs(operations: Operations) -> None:
    found = ask(operations.statfs, CTX)
    assert type(found) is pyfuse3.StatvfsData
    assert (found.f_bsize, found.f_frsize, found.f_blocks, found.f_files, found.f_namemax) == (4096, 4096, 10, 3, 255)
    assert (found.f_bfree, found.f_bavail, found.f_ffree, found.f_favail) == (0, 0, 0, 0)


def test_listing_counts_only_what_the_kernel_took(
    operations: Operations, vfs: MadeUpVfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[bytes, int, int, int]] = []

    def reply(token: object, name: bytes, entry: Any, after: int) -> bool:
        if len(taken) == 2:
            return False
        taken.append((name, entry.st_ino, entry.st_size, after))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    ask(operations.readdir, 40, 1, None)
    assert taken == [(b"1", 101, 1, 2), (b"2", 102, 2, 3)]
    assert vfs.calls == [("readdir", 40, 1), ("looked_up", 101, 1), ("looked_up", 102, 1)]


def test_files_of_one_key_share_all_but_name_number_and_size(
    operations: Operations, vfs: MadeUpVfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    vfs.shared = Attributes(5 << 32, FILE.mode, 0, FILE.mtime_ns, 1, 9.0, 8.0)
    taken: list[tuple[Any, ...]] = []

    def reply(token: object, name: bytes, entry: Any, after: int) -> bool:
        if len(taken) == 2:
            return False
        timeouts = (entry.entry_timeout, entry.attr_timeout)
        taken.append(
            (name, entry.st_ino, entry.st_size, entry.st_blocks, entry.st_mode, entry.st_mtime_ns, timeouts, after)
        )
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    ask(operations.readdir, 40, 1, None)
    assert taken == [
        (b"1", (5 << 32) + 1, 1000, 2, FILE.mode, FILE.mtime_ns, (9.0, 8.0), 2),
        (b"2", (5 << 32) + 2, 2000, 4, FILE.mode, FILE.mtime_ns, (9.0, 8.0), 3),
    ]
    assert vfs.calls == [("looked_up", 5 << 32, 2)]


def test_a_listing_that_fails_half_way_counts_nothing(
    operations: Operations, vfs: MadeUpVfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def readdir(handle: int, start: int) -> Iterator[tuple[bytes, Attributes, int]]:
        def entries() -> Iterator[tuple[bytes, Attributes, int]]:
            yield b"0", FILE, 1
            raise DamagedShardError("half way")

        return entries()

    monkeypatch.setattr(vfs, "readdir", readdir)
    monkeypatch.setattr(pyfuse3, "readdir_reply", lambda *_: True)
    assert refused(operations.readdir, 40, 0, None) == "EIO"
    assert vfs.calls == []


def test_a_real_token_without_room_takes_nothing(operations: Operations, vfs: MadeUpVfs) -> None:
    ask(operations.readdir, 40, 0, pyfuse3.ReaddirToken())
    assert vfs.calls == [("readdir", 40, 0)]


# --- what is refused --------------------------------------------------------------------------------------------------

ENTRY, FIELDS = cast(Any, None), cast(Any, None)


@pytest.mark.parametrize(
    ("name", "args", "code"),
    [
        ("write", (41, 0, b"x"), "EROFS"),
        ("create", (1, b"n", 0o644, os.O_WRONLY, CTX), "EROFS"),
        ("mkdir", (1, b"n", 0o755, CTX), "EROFS"),
        ("mknod", (1, b"n", 0o644, 0, CTX), "EROFS"),
        ("unlink", (1, b"file", CTX), "EROFS"),
        ("rmdir", (1, b"dir", CTX), "EROFS"),
        ("symlink", (1, b"n", b"target", CTX), "EROFS"),
        ("link", (FILE.inode, 1, b"n", CTX), "EROFS"),
        ("rename", (1, b"file", 1, b"n", 0, CTX), "EROFS"),
        ("setattr", (FILE.inode, ENTRY, FIELDS, None, CTX), "EROFS"),
        ("setxattr", (FILE.inode, b"user.n", b"v", CTX), "EROFS"),
        ("removexattr", (FILE.inode, b"user.n", CTX), "EROFS"),
        ("getxattr", (FILE.inode, b"user.n", CTX), "ENOSYS"),
        ("listxattr", (FILE.inode, CTX), "ENOSYS"),
        ("flush", (41,), "ENOSYS"),
        ("readlink", (FILE.inode, CTX), "EINVAL"),
    ],
)
def test_what_a_read_only_mount_refuses(
    operations: Operations, vfs: MadeUpVfs, name: str, args: tuple[Any, ...], code: str
) -> None:
    assert refused(getattr(operations, name), *args) == code
    assert vfs.calls == []


def test_what_succeeds_without_doing_anything(operations: Operations, vfs: MadeUpVfs) -> None:
    assert ask(operations.fsync, 41, True) is None
    assert ask(operations.fsyncdir, 40, False) is None
    assert ask(operations.access, FILE.inode, os.R_OK, CTX) is True
    assert vfs.calls == []


def test_no_lookups_of_dots_and_every_handler_is_ours() -> None:
    assert Operations.supports_dot_lookup is False
    assert Operations.enable_writeback_cache is False
    theirs = {name for name, value in vars(pyfuse3.Operations).items() if inspect.iscoroutinefunction(value)}
    assert theirs - set(vars(Operations)) <= {"poll"}, "pyfuse3's own handlers answer ENOSYS"


def test_a_writable_mount_answers_everything_that_changes_something() -> None:
    refusing = {
        *("setattr", "create", "write", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link"),
        *("setxattr", "removexattr", "fsync", "fsyncdir", "release", "statfs"),
    }
    assert refusing <= set(vars(WritableOperations)), "what is inherited answers EROFS"


# --- errors -----------------------------------------------------------------------------------------------------------

HANDLERS: list[tuple[str, tuple[Any, ...]]] = [
    ("lookup", (1, b"file", CTX)),
    ("getattr", (1, CTX)),
    ("opendir", (1, CTX)),
    ("readdir", (40, 0, None)),
    ("releasedir", (40,)),
    ("open", (FILE.inode, 0, CTX)),
    ("read", (41, 0, 1)),
    ("release", (41,)),
    ("statfs", (CTX,)),
]


@pytest.mark.parametrize(("name", "args"), HANDLERS)
@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (DamagedShardError("bad", 7, "k"), "EIO"),
        (StaleShardError("replaced"), "ESTALE"),
        (StorageError("slow", errno.ETIMEDOUT), "ETIMEDOUT"),
        (PermissionError(errno.EACCES, "no"), "EACCES"),
        (OSError("without a number"), "EIO"),
        (MissingExtraError("install xxhash"), "EIO"),
        (StorageError("a success that is none", 0), "EIO"),
        (StorageError("the kernel's own", 512), "EIO"),
        (pyfuse3.FUSEError(errno.EAGAIN), "EAGAIN"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_deliberate_errors_become_their_errno(
    operations: Operations,
    vfs: MadeUpVfs,
    caplog: pytest.LogCaptureFixture,
    name: str,
    args: tuple[Any, ...],
    wrong: Exception,
    code: str,
) -> None:
    vfs.wrong = wrong
    assert refused(getattr(operations, name), *args) == code
    assert caplog.records == [], "whoever found it has logged it"


@pytest.mark.parametrize(("name", "args"), HANDLERS)
@pytest.mark.parametrize(
    "wrong",
    [
        NotImplementedError("later"),
        ValueError("?"),
        KeyError("k"),
        AssertionError(),
        MemoryError(),
        RecursionError(),
        ExceptionGroup("several", [ValueError(1), OSError(2, "x")]),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_unexpected_errors_are_eio_and_one_traceback(
    operations: Operations,
    vfs: MadeUpVfs,
    caplog: pytest.LogCaptureFixture,
    name: str,
    args: tuple[Any, ...],
    wrong: Exception,
) -> None:
    caplog.set_level(logging.DEBUG, "shardfs")
    vfs.wrong = wrong
    for _ in range(3):
        assert refused(getattr(operations, name), *args) == "EIO"
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 1
    assert told[0].exc_info is not None
    assert told[0].exc_info[1] is wrong
    assert name in told[0].getMessage()


@pytest.mark.parametrize("data", ["text", None, 7, [b"x"]])
def test_a_wrong_type_from_read_is_eio(operations: Operations, vfs: MadeUpVfs, data: Any) -> None:
    """pyfuse3's loop, and the mount with it, would end."""
    vfs.data = data
    assert refused(operations.read, 41, 0, 1) == "EIO"


@pytest.mark.parametrize("wrong", [ValueError("?"), StaleShardError("x"), pyfuse3.FUSEError(errno.EIO)])
def test_forget_never_raises_and_forgets_the_rest(operations: Operations, vfs: MadeUpVfs, wrong: Exception) -> None:
    vfs.wrong = wrong
    assert ask(operations.forget, [(5, 1), (6, 2)]) is None
    assert vfs.calls == [("forget", 5, 1), ("forget", 6, 2)]


def test_stacktrace_never_raises(operations: Operations, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> None:
        raise ValueError("?")

    monkeypatch.setattr(pyfuse3.Operations, "stacktrace", broken)
    operations.stacktrace()
    operations.init()


def test_cancellation_passes(operations: Operations, vfs: MadeUpVfs, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(handle: int, offset: int, size: int) -> bytes:
        await trio.sleep_forever()
        return b""

    monkeypatch.setattr(vfs, "read", read)

    async def main() -> bool:
        with trio.move_on_after(0.01) as scope:
            await operations.read(41, 0, 1)
        return scope.cancelled_caught

    assert trio.run(main)


def test_errno_of() -> None:
    assert errno_of(OSError(errno.ENOENT, "x")) == errno.ENOENT
    assert errno_of(OSError()) == errno.EIO
    assert errno_of(OSError(-5, "x")) == errno.EIO
    assert errno_of(OSError(errno.ENOSYS, "x")) == errno.EIO
    assert errno_of(ValueError()) == errno.EIO
