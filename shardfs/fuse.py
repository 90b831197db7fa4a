"""pyfuse3 <-> vfs: converts types and errors, decides nothing. Knows nothing of stores, shards or how a mount is made.

Three things a handler must never do, because each ends pyfuse3's loop and the mount with it, or is remembered by the
kernel for the mount's whole life: raise anything but FUSEError, return another type than pyfuse3 expects, and answer
ENOSYS by accident.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from shardfs.attributes import Attributes, FileRun, StatFs
from shardfs.bulk_listing import Bulk
from shardfs.errors import MissingKeyError, ShardfsError
from shardfs.listers import has_canary
from shardfs.metrics import Meter
from shardfs.open_requests import OpenRequests
from shardfs.vfs import Vfs
from shardfs.views.places import Listing

if TYPE_CHECKING:  # a mount without them has no use for it
    from shardfs.xattrs import Xattrs

log = logging.getLogger("shardfs")

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Operations")

BLOCK = 512
"""The unit of st_blocks, whatever st_blksize says."""

PREFERRED_READ = 128 * 1024
"""st_blksize: what cp and cat read at a time. The kernel asks for no more than this in one READ."""

_ERRNO_END = 512
"""The kernel refuses a reply with this errno or a larger one (they are its own), and the caller would hang."""

_PLACES_TOLD = 100
"""Tracebacks logged at most, one for each place in the code: a fault met by each read must not fill the disk."""


def errno_of(error: BaseException) -> int:
    """What the system call reports for a deliberate error. Never 0 (success), never ENOSYS (remembered for ever)."""
    code = getattr(error, "errno", None)
    if not isinstance(code, int) or not 0 < code < _ERRNO_END or code == errno.ENOSYS:
        return errno.EIO
    return code


def handler(
    work: Callable[Concatenate[S, P], Awaitable[R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """A handler that raises only FUSEError, and is counted and timed. Cancelled is no Exception and passes, as trio
    needs it."""
    name = work.__name__

    @functools.wraps(work)
    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        begun = perf_counter()
        try:
            return await work(self, *args, **kwargs)
        except FUSEError as error:
            self.meter.failed(name, _name_of(error.errno))
            raise
        except Exception as error:
            raise self.answered(name, error) from error
        finally:
            self.seen[name].add(perf_counter() - begun)

    return guarded


def quick_handler(
    work: Callable[Concatenate[S, P], Awaitable[R]],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The same for what a small read consists of: counted only, as timing would take a hundredth of it. Where it must
    wait it times that itself."""
    name = work.__name__

    @functools.wraps(work)
    async def guarded(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.seen[name].count += 1
        try:
            return await work(self, *args, **kwargs)
        except FUSEError as error:
            self.meter.failed(name, _name_of(error.errno))
            raise
        except Exception as error:
            raise self.answered(name, error) from error

    return guarded


def _name_of(code: int) -> str:
    return errno.errorcode.get(code, str(code))


def silent(work: Callable[Concatenate[Operations, P], None]) -> Callable[Concatenate[Operations, P], None]:
    """For what has nobody to answer: pyfuse3 does not expect even FUSEError from it."""

    @functools.wraps(work)
    def guarded(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            work(self, *args, **kwargs)
        except Exception as error:
            self.log_unexpected(work.__name__, error)

    return guarded


def refuse(code: int) -> NoReturn:
    """End a handler with an errno."""
    raise FUSEError(code)


def statvfs_of(found: StatFs) -> StatvfsData:
    """What statvfs(2) answers. Each block that is free is a file that may still be made."""
    answer = StatvfsData()
    answer.f_bsize = answer.f_frsize = found.block_size
    answer.f_blocks = found.blocks
    answer.f_bfree = answer.f_bavail = found.free
    answer.f_files = found.files + found.free
    answer.f_ffree = answer.f_favail = found.free
    answer.f_namemax = found.name_max
    return answer


class Operations(pyfuse3.Operations):
    """The handlers of one read-only mount.

    One EntryAttributes and one FileInfo are reused for all answers: pyfuse3 copies them before anything else can run,
    in `readdir_reply` as well as when a handler returns.
    """

    supports_dot_lookup = False  # nobody exports this over NFS, and `.` and `..` would need parents by inode
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, vfs: Vfs, gifts: bool = True, xattrs: Xattrs | None = None) -> None:
        """With `gifts` small files are given to the kernel when they are first opened. Without `xattrs` there are none,
        and the kernel never asks a second time."""
        super().__init__()
        self.begun: Callable[[], None] | None = None
        """Called when the kernel has begun to ask."""
        self.unopened: OpenRequests | None = None
        """Set before anything is served, where the kernel may be told that there are no opens."""
        self.meter = Meter()
        self.seen = self.meter.operations
        self._vfs = vfs
        self._gifts = gifts
        self._xattrs = xattrs
        self._bulk = Bulk()
        self._entry = EntryAttributes()
        self._entry.st_uid = vfs.uid
        self._entry.st_gid = vfs.gid
        self._entry.st_blksize = PREFERRED_READ
        # keep_cache: an inode number never means other bytes, so its pages stay good; no direct_io: it breaks mmap
        self._info = FileInfo(keep_cache=True, direct_io=False)
        self._filled: Attributes | None = None
        self._missing = EntryAttributes()
        self._missing.st_ino = 0  # with a timeout: "there is no such name, and you may remember it"
        self._told: set[tuple[str, int]] = set()

    def _fill(self, attributes: Attributes) -> EntryAttributes:
        entry = self._entry
        entry.st_ino = attributes.inode
        entry.st_mode = attributes.mode
        entry.st_nlink = attributes.nlink
        entry.st_size = attributes.size
        entry.st_blocks = -(-attributes.size // BLOCK)
        entry.entry_timeout = attributes.entry_timeout
        entry.attr_timeout = attributes.attr_timeout
        entry.st_mtime_ns = entry.st_atime_ns = entry.st_ctime_ns = attributes.mtime_ns
        self._filled = None
        return entry

    def _fill_file(self, shared: Attributes, inode: int, size: int) -> EntryAttributes:
        """The same for a file of a key, whose files differ in number and size only: nothing else is set for each."""
        entry = self._entry
        if self._filled is not shared:
            self._fill(shared)
            self._filled = shared
        entry.st_ino = inode
        entry.st_size = size
        entry.st_blocks = (size + BLOCK - 1) // BLOCK
        return entry

    def answered(self, name: str, error: Exception) -> FUSEError:
        """What the caller of an operation is told of an error, which is counted."""
        if isinstance(error, ShardfsError | OSError):  # said on purpose; whoever found it has logged it where due
            code = errno_of(error)
        else:
            code = errno.EIO
            self.log_unexpected(name, error)
        self.meter.failed(name, _name_of(code))
        return FUSEError(code)

    def log_unexpected(self, name: str, error: Exception) -> None:
        """Log a fault of ours: with its traceback the first time it comes from a place, as a line after that."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = ("", 0) if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        if place in self._told or len(self._told) >= _PLACES_TOLD:
            log.debug("%s: again %s: %s", name, type(error).__name__, error)
            return
        self._told.add(place)
        log.error("%s: unexpected %s, answered EIO", name, type(error).__name__, exc_info=error)

    # --- called by pyfuse3 outside any request ---------------------------------------------------------------------

    @silent
    def stacktrace(self) -> None:
        super().stacktrace()

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for inode, count in inode_list:
            self._forget(inode, count)

    @silent
    def _forget(self, inode: int, count: int) -> None:
        self._vfs.forget(inode, count)

    # --- names and attributes --------------------------------------------------------------------------------------

    @quick_handler
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        found = self._vfs.lookup_now(parent_inode, name)
        if found is not None:
            return self._fill_file(*found)
        try:
            with self.seen["lookup"].waiting():
                return self._fill(await self._vfs.lookup(parent_inode, name, ctx.pid))
        except (ShardfsError, OSError) as error:
            if errno_of(error) != errno.ENOENT:
                raise
            # only a name that the directory does not have: what storage says it cannot find may be there again soon
            timeout = self._vfs.negative_timeout(parent_inode) if isinstance(error, MissingKeyError) else 0.0
        if timeout <= 0:
            refuse(errno.ENOENT)
        self.meter.failed("lookup", "ENOENT")
        self._missing.entry_timeout = timeout
        return self._missing

    @handler
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._fill(await self._vfs.getattr(inode))

    @silent
    def init(self) -> None:
        if self.begun is not None:
            self.begun()

    @handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return statvfs_of(self._vfs.statfs())

    @handler
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        return True  # the kernel decides by itself (default_permissions) and does not ask

    @handler
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        refuse(errno.EINVAL)  # there are no symbolic links here

    # --- directories -----------------------------------------------------------------------------------------------

    @handler
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return await self._vfs.opendir(inode, ctx.pid)

    @handler
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        run = self._vfs.files(fh)
        if run is not None:
            self._reply_files(token, run, start_id)
            return
        view = self._vfs.view_listing(fh)
        if view is not None and start_id >= len(view[0].head):
            self._reply_view(token, *view, start_id)
            return
        accepted: list[int] = []
        for name, attributes, after in await self._vfs.readdir(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._fill(attributes), after):
                break
            accepted.append(attributes.inode)
        # counted last: an error above throws the whole answer away, and the kernel would never forget these
        for inode in accepted:
            self._vfs.looked_up(inode)

    def _reply_files(self, token: pyfuse3.ReaddirToken, run: FileRun, start: int) -> None:
        """Files of one key differ in name, number and size only: a million of them are listed, so nothing else is set
        for each, and all but the first are made in bulk where that can be done."""
        bulk = self._bulk.begin(token)
        first, reply, counted = run.shared.inode, pyfuse3.readdir_reply, 0
        for name, size, number in run.table.listing(start):
            if not reply(token, name, self._fill_file(run.shared, first + number, size), number + 1):
                break
            counted += 1
            if bulk is None:
                continue
            if not bulk.check(name, first + number, number + 1):
                self._bulk.sound = False
                bulk = None
                continue
            if not run.plus or (number == 0 and run.canary):
                bulk.withhold()
                counted -= 1
            more = bulk.extend(run.table, number + 1, first, run.plus)
            counted += more if run.plus else 0
            break
        if counted:
            self._vfs.looked_up(first, counted)

    def _reply_view(self, token: pyfuse3.ReaddirToken, listing: Listing, plus: bool, start: int) -> None:
        """The same of a view's many entries, which are of any keys: each brings its number and its time."""
        bulk, rows, accepted = self._bulk.begin(token), listing.rows, 0
        for name, attributes, after in listing.entries(start):
            assert rows is not None
            if not pyfuse3.readdir_reply(token, name, self._fill(attributes), after):
                break
            accepted += 1
            if bulk is None:
                continue
            if not bulk.check(name, attributes.inode, after):
                self._bulk.sound, bulk = False, None
                continue
            if not plus or (after == 1 and has_canary(listing)):
                bulk.withhold()
                accepted -= 1
            at = after - len(listing.head)
            entries = rows.batch(at, min(at + bulk.room, len(rows)))
            more = bulk.add(entries, after + 1, plus)
            if plus:
                self._vfs.handed_out(entries.inodes[:more])
            break
        if accepted:
            first = start - len(listing.head)
            assert rows is not None
            self._vfs.handed_out(rows.batch(first, first + accepted).inodes)

    @handler
    async def releasedir(self, fh: int) -> None:
        self._vfs.releasedir(fh)

    @handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Success: nothing is ever unwritten. Not ENOSYS, which the kernel would remember as success for ever."""

    # --- files -----------------------------------------------------------------------------------------------------

    @quick_handler
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        fh = self._vfs.open_now(inode, flags)
        if fh is None:
            with self.seen["open"].waiting():
                fh = await self._vfs.open(inode, flags)
        if self.unopened is not None and self.unopened.is_open(inode, flags):
            self._vfs.without_opens()
            refuse(errno.ENOSYS)  # on purpose: neither opens nor closes are asked for from here on
        self.give(inode)
        return self._opened(fh)

    def _opened(self, handle: int) -> FileInfo:
        self._info.fh = handle
        return self._info

    def give(self, inode: int) -> None:
        """Give the kernel the content of a file that is being opened, where that is due."""
        data = self._vfs.gift(inode) if self._gifts else None
        if data is not None:
            with contextlib.suppress(OSError):  # then it asks
                pyfuse3.notify_store(inode, 0, data)  # type: ignore[arg-type]
                self.meter.gave(len(data))

    def prefill(self, inode: int, data: bytes | memoryview) -> None:
        """Give the kernel the content of a file that it knows. OSError; never on the event loop."""
        pyfuse3.notify_store(pyfuse3.InodeT(inode), 0, data)  # type: ignore[arg-type]
        self.meter.gave(len(data))

    # pyfuse3 takes any contiguous buffer, though it declares bytes; a copy of each read is what this saves
    @quick_handler
    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:  # type: ignore[override]
        if not fh and self.unopened is not None:
            fh = self.unopened.inode(off, size)
        data = self._vfs.read_now(fh, off, size)
        if data is None:
            with self.seen["read"].waiting():
                data = await self._vfs.read(fh, off, size)
        if not isinstance(data, bytes | memoryview):
            raise TypeError(f"read gave {type(data).__name__}")
        self.meter.served += len(data)
        return data

    @handler
    async def flush(self, fh: int) -> None:
        refuse(errno.ENOSYS)  # nothing to flush, so the kernel need never ask again: half of open-read-close

    @quick_handler
    async def release(self, fh: int) -> None:
        self._vfs.release(fh)

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Success, for the same reason as fsyncdir."""

    # --- extended attributes: none unless they are asked for, as `ls -l` would ask for them file by file -----------

    @handler
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if self._xattrs is None:
            refuse(errno.ENOSYS)
        found = await self._xattrs.value(inode, name)
        if found is None:
            refuse(errno.ENODATA)
        return found

    @handler
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        if self._xattrs is None:
            refuse(errno.ENOSYS)
        return await self._xattrs.names(inode)

    @handler
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        refuse(errno.EROFS)

    @handler
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        refuse(errno.EROFS)

    # --- whatever would change something ---------------------------------------------------------------------------
    # The kernel refuses these on a mount with `ro`; a mount made by somebody else and handed over may lack it.

    @handler
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        refuse(errno.EROFS)

    @handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        refuse(errno.EROFS)

    @handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        refuse(errno.EROFS)

    @handler
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        refuse(errno.EROFS)

    @handler
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        refuse(errno.EROFS)

    @handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        refuse(errno.EROFS)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        refuse(errno.EROFS)

    @handler
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        refuse(errno.EROFS)

    @handler
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        refuse(errno.EROFS)

    @handler
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        refuse(errno.EROFS)
