"""The handlers of a writable mount: converts types and errors, decides nothing, as `fuse` does for reading.

None that has something to do may answer ENOSYS, which the kernel would remember: a `sync` that it takes for done is
none. `flush` has nothing to do: no write is held back, each was told how it ended, and pages that were written through
a mapping are sent by the kernel before it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from pyfuse3 import EntryAttributes, FileInfo, RequestContext, SetattrFields, StatvfsData

from shardfs import inodes, moving
from shardfs.attributes import Attributes
from shardfs.fuse import Operations, handler, refuse, statvfs_of
from shardfs.writing import Change, WritableVfs

if TYPE_CHECKING:
    from shardfs.xattrs import Xattrs


class WritableOperations(Operations):
    """The handlers of one writable mount."""

    def __init__(self, vfs: WritableVfs, gifts: bool = True, xattrs: Xattrs | None = None) -> None:
        super().__init__(vfs, gifts, xattrs)
        self._writable = vfs
        # what is staged may change in the store's hands when it is sealed, so its pages go with each opening
        self._staged_info = FileInfo(keep_cache=False, direct_io=False)
        self._direct_info = FileInfo(keep_cache=False, direct_io=True)

    def _fill(self, attributes: Attributes) -> EntryAttributes:
        entry = super()._fill(attributes)
        entry.st_uid = self._vfs.uid if attributes.uid < 0 else attributes.uid
        entry.st_gid = self._vfs.gid if attributes.gid < 0 else attributes.gid
        if attributes.atime_ns is not None:
            entry.st_atime_ns = attributes.atime_ns
        return entry

    @handler
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        return statvfs_of(await self._writable.space())

    # --- files -----------------------------------------------------------------------------------------------------

    def _opened(self, handle: int) -> FileInfo:
        info = self._info if inodes.slot_of(handle) else self._staged_info
        if info is self._staged_info and self._writable.is_direct(handle):
            info = self._direct_info
        info.fh = handle
        return info

    @handler
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        handle, attributes = await self._writable.create(parent_inode, name, mode, flags, ctx.uid, ctx.gid)
        return self._opened(handle), self._fill(attributes)

    @handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._writable.write(fh, off, buf)

    @handler
    async def release(self, fh: int) -> None:
        await self._writable.close(fh)

    @handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._writable.fsync(fh)

    @handler
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._writable.fsyncdir(fh)

    @handler
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        # asked without default_permissions only, and so by root, for whom all else is allowed
        if not mode & os.X_OK:
            return True
        found = (await self._vfs.getattr(inode)).mode
        return not stat.S_ISREG(found) or bool(found & 0o111)

    # --- attributes and names --------------------------------------------------------------------------------------

    @handler
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        change = Change(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
        )
        return self._fill(await self._writable.setattr(inode, change, fh))

    @handler
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._fill(await self._writable.mkdir(parent_inode, name, mode, ctx.uid, ctx.gid))

    @handler
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._writable.unlink(parent_inode, name)

    @handler
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._writable.rmdir(parent_inode, name)

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
        await moving.rename(self._writable, parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # --- what a sample cannot hold ---------------------------------------------------------------------------------

    @handler
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        refuse(errno.EPERM)

    @handler
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        refuse(errno.EPERM)

    @handler
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        refuse(errno.EPERM)

    @handler
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        refuse(errno.EOPNOTSUPP)

    @handler
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        refuse(errno.EOPNOTSUPP)
