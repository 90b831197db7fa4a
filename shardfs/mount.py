"""Serving a mount, from the checks of its mount point to its end: builds the parts, runs pyfuse3's loop, ends in order.

Knows nothing of arguments, of what is printed, or of whether this process was started in the background. Import it only
where a mount is served: it needs pyfuse3 and trio.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import pyfuse3
import trio

from shardfs import (
    __version__,
    config,
    daemon,
    handed_over,
    metering,
    metrics_server,
    mount_point,
    open_requests,
    request_loop,
    service,
)
from shardfs.control_documents import documents_of, settings_of
from shardfs.control_handlers import handlers_of, metrics_handler
from shardfs.control_server import Handlers, served
from shardfs.ending import End
from shardfs.errors import MountError
from shardfs.fuse import Operations
from shardfs.index_db import IndexDb
from shardfs.indexing import open_database
from shardfs.kernel_limits import raise_limits
from shardfs.light_where import Where
from shardfs.log_lines import kept_lines
from shardfs.narrowing import Narrowing
from shardfs.notices import Notices
from shardfs.raw_forms import raw_forms
from shardfs.shard_cache import ShardCache
from shardfs.storage.disk_cache import cache_files
from shardfs.store import Store
from shardfs.vfs import Vfs

if TYPE_CHECKING:  # a tenth of the imports, for writable mounts only
    from shardfs.staging import StagingArea
    from shardfs.writing import WritableVfs

log = logging.getLogger("shardfs")

MIN_TASKS = 16
"""Idle request tasks above this end again: enough for a burst of readers without making new ones each time."""

SWITCH_SECONDS = 0.0005
"""How long a decoding thread keeps the GIL from the event loop at a time: Python's 5 ms would be the loop's latency."""

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Parameters of mallopt(3)."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. `memory` is in bytes, None for the default budget; `arrays` is `png` or `npy`."""

    memory: int | None = None
    arrays: str = "png"
    allow_other: bool = False
    nonempty: bool = False
    index: bool = True
    """Keep what shards hold over mounts."""
    rw: bool = False
    """Let the tree be changed."""
    allow_overwrite: bool = False
    allow_delete: bool = False
    single_writer: bool = False
    """The user says that nobody else writes to a store far away."""
    write_back: float | None = config.WRITE_BACK
    """Seconds of quiet after which a key is stored; None for never."""
    cache_raw: str | None = None
    """Which shards that cost more to decompress than to read are kept decompressed (see config.CACHE_RAW)."""
    cache: dict[str, Any] = field(default_factory=dict)
    """Where, and how much at most, as `storage.disk_cache.cache_files` takes it."""
    refresh: float | None = None
    """Seconds between questions to the store whether something has changed there (inf: never by itself); None: what
    fits the store."""
    metrics: str | None = None
    """Where metrics are served over HTTP, as `metrics_server.listening` takes it; None: only in `.shardfs`."""
    shutdown_timeout: float | None = None
    """Seconds that the end waits for what was written to be stored; None for config.SHUTDOWN_WAIT."""
    trace: str | None = None
    """A file into which what the kernel asks is written; None: nothing is."""
    xattr: bool = False
    """Tell extended attributes."""
    view: str = ""
    """The view that the root shows, as `views.names.parse` takes it; nothing for the keys."""
    heavy: str | None = None
    """The heavy field that views show where there are several."""
    log_format: str = "plain"
    """How the lines of `.shardfs/log` look: one of log_formats.FORMATS."""
    where: Where | None = None
    """Which samples are shown; None: all."""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What was asked for, and where: for `.shardfs/config.json`."""


def serve(store: Store, mountpoint: str, options: MountOptions, ready: Callable[[], None]) -> None:
    """Mount `store` and serve it until it is unmounted or a signal (TERM, INT, HUP) ends it.

    A mount point that is not there is made, and removed at the end; one that is `/dev/fd/N` is a mount that somebody
    else has made, and takes away. `ready` is called, in the thread that serves, when the mount is there and its loop
    about to run: it must not touch the mount. MountError, MissingSystemError, and whatever listing the store raises;
    LeftStagedError if not all that was written could be stored. Signals are handled, so this must run in the main
    thread.
    """
    tune()
    place = _place(mountpoint, options.rw)
    path = place.path
    mount_point.check_apart(path, store.places)
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(kept_lines(options.log_format))
        area = stack.enter_context(contextlib.closing(_open_area(store, options))) if options.rw else None
        database = open_database(store, options.arrays) if options.index else None
        if database is not None:
            stack.callback(database.close)
        vfs = build(store, options, database, area)
        vfs.refresh.interval = options.refresh or (config.REMOTE_REFRESH if store.far else config.REFRESH)
        vfs.views.show(options.view, options.heavy)
        if place.descriptor is None:
            stack.enter_context(mount_point.prepared(path, options.nonempty))
        handlers = handlers_of(vfs, mount_point.source_name(store.url), store.driver.name, store.health)
        end = None if options.metrics is None else stack.enter_context(metrics_server.listening(options.metrics))
        operations, writable = _operations(vfs, options.xattr)
        vfs.refresh.requests = operations.meter.requests
        real = {} if end is None else {"metrics_addr": metrics_server.address_of(end)}
        settings = settings_of(vfs, options.settings, real)
        area, sealer = (vfs.area, vfs.sealer) if is_writable(vfs) else (None, None)
        telling = partial(metering.text_of, vfs, operations.meter, __version__, area, sealer)
        handlers = {**handlers, "metrics": metrics_handler(telling)}
        vfs.control.documents |= documents_of(path, handlers, vfs.cache.damage, settings, lines, telling)
        if options.trace is not None:
            name = mount_point.source_name(store.url)
            stack.enter_context(_traced(options.trace, vfs, operations, name, path))
        chosen = mount_point.fuse_options(store.url, options.rw, options.allow_other)
        patience = config.SHUTDOWN_WAIT if options.shutdown_timeout is None else options.shutdown_timeout
        line = partial(service.status_line, vfs, store.health, area)
        # a trace is to show what is opened; where the kernel would let files be cut off, that must be asked for
        unopened = not options.rw and options.trace is None and place.read_only
        made = _Made(vfs, operations, writable, place, chosen, store.url, handlers, patience, line, unopened)
        trio.run(_serve, made, lambda: metrics_server.served(end, telling), ready)


def _place(mountpoint: str, writable: bool) -> _Place:
    """Where to mount, or what was handed over. MountError, MissingSystemError."""
    descriptor = handed_over.descriptor_of(mountpoint)
    if descriptor is None:
        mount_point.check_system()
        return _Place(daemon.resolved(mountpoint), None, True, not writable)
    handed_over.check(descriptor)
    handed_over.check_rights(descriptor, writable)
    there = handed_over.mounted(descriptor)
    read_only = there is not None and "ro" in there.options
    return _Place(mountpoint if there is None else there.path, descriptor, there is not None, read_only)


def _open_area(store: Store, options: MountOptions) -> StagingArea:
    from shardfs.writable import open_area

    return open_area(store, options.single_writer)


def build(store: Store, options: MountOptions, database: IndexDb | None, area: StagingArea | None) -> Vfs:
    """The file system that is served; writable with `area`."""
    budget, read_ahead = options.memory or config.default_budget(), os.environ.get("SHARDFS_NO_READ_AHEAD") != "1"
    parts = os.environ.get("SHARDFS_NO_PARTS") != "1"
    raw = raw_forms(store.driver, store.identity, cache_files(**options.cache), options.cache_raw, store.far)
    narrowing = None if options.where is None else Narrowing(options.where, options.arrays, database)
    cache = ShardCache(store.driver, budget, options.arrays, database, parts, raw, narrowing)
    if store.deadline is not None:
        cache.patience = store.deadline + config.REMOTE_PATIENCE
    if area is None:
        return Vfs(store.driver, cache, os.geteuid(), os.getegid(), read_ahead)
    from shardfs.writable import build_writable
    from shardfs.writing import Allowed

    return build_writable(
        store.driver,
        cache,
        area,
        quiet=options.write_back,
        allowed=Allowed(options.allow_overwrite, options.allow_delete),
        uid=os.geteuid(),
        gid=os.getegid(),
        read_ahead=read_ahead,
    )


def tune() -> None:
    """Process-wide settings for serving: only for a process that does nothing else."""
    sys.setswitchinterval(SWITCH_SECONDS)
    _allow_descriptors()
    # Nothing here makes cycles by the thousand, and a listing of a million files makes objects by the million: the
    # collector would take a tenth of its time.
    gc.freeze()
    gc.enable()
    gc.set_threshold(100_000, 50, 100)
    with contextlib.suppress(AttributeError, OSError):  # musl has no mallopt
        libc = ctypes.CDLL(None)
        # A shard's buffer goes back to the system when it is freed, instead of staying as a hole in the heap: glibc
        # would raise this threshold to 32 MiB with the first shard that is freed, and the budget would mean nothing.
        libc.mallopt(_M_MMAP_THRESHOLD, 256 * 1024)
        # Each worker thread would get an arena of its own and keep its peak.
        libc.mallopt(_M_ARENA_MAX, 2)


def _allow_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.DESCRIPTORS if hard == resource.RLIM_INFINITY else min(config.DESCRIPTORS, hard)
    if resource.RLIM_INFINITY != soft < wanted:
        with contextlib.suppress(OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# --- serving ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a mount is, or is to be."""

    path: str
    """Of its mount point; `/dev/fd/N` for one that this process cannot see."""
    descriptor: int | None
    """Of a mount that was handed over."""
    seen: bool
    read_only: bool
    """Whether the kernel itself refuses whoever wants to change something."""

    @property
    def device(self) -> str | None:
        """Of what is mounted there, where it is ours to unmount."""
        return None if self.descriptor is not None else daemon.device_at(self.path)


@dataclass(frozen=True, slots=True)
class _Made:
    """What `_serve` puts to work."""

    vfs: Vfs
    operations: Operations
    writable: WritableVfs | None
    place: _Place
    options: set[str]
    """Those of libfuse."""
    url: str
    handlers: Handlers
    patience: float
    """Seconds that the end waits for what was written to be stored."""
    line: Callable[[], str]
    """How it is doing."""
    unopened: bool
    """Whether files may be opened without a request."""


def is_writable(vfs: Vfs) -> TypeGuard[WritableVfs]:
    """Whether it is a writable one, without importing that for one that is not."""
    return vfs.writable


def _operations(vfs: Vfs, xattr: bool) -> tuple[Operations, WritableVfs | None]:
    """The handlers of a mount, and its file system if that is a writable one."""
    xattrs = None
    if xattr:
        from shardfs.xattrs import Xattrs

        xattrs = Xattrs(vfs)
    if not is_writable(vfs):
        return Operations(vfs, prefills(), xattrs), None
    from shardfs.fuse_writing import WritableOperations

    return WritableOperations(vfs, prefills(), xattrs), vfs


@contextlib.contextmanager
def _traced(file: str, vfs: Vfs, operations: Operations, store: str, path: str) -> Iterator[None]:
    """While inside, what is asked of `operations` is written to a trace. Imported here: seldom is one asked for."""
    from shardfs.tracing import Recorder, Tracer

    recorder = Recorder(Path(file))
    Tracer(vfs, recorder).attach(operations)
    with recorder.running(store, path):
        yield


def _notices(made: _Made) -> Notices:
    """Who tells the kernel what has changed, and is told of it."""
    vfs, writable = made.vfs, made.writable
    notices = Notices(
        lambda parent, name: pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name)),
        lambda inode: pyfuse3.invalidate_inode(pyfuse3.InodeT(inode)),
        made.operations.prefill,
        lambda below: os.stat(os.path.join(made.place.path, below)),
    )
    vfs.superseded = notices.superseded
    vfs.renamed = notices.renamed
    vfs.outdated = notices.outdated
    vfs.refresh.untold = notices.waiting
    if writable is not None:
        # and no prefilling: what was read of a shard a moment ago may have been written over by now
        writable.emptied = notices.emptied
    elif prefills():
        vfs.loaded = notices.loaded
    return notices


def _attach(made: _Made) -> int | None:
    """Mount, or take over what was handed over. Returns the session's descriptor, if it can be told."""
    path, descriptor = made.place.path, made.place.descriptor
    if descriptor is None:
        return mount_point.attach(partial(pyfuse3.init, made.operations, path, made.options), path)
    mount_point.attach(partial(pyfuse3.init, made.operations, f"/dev/fd/{descriptor}", made.options), path)
    return descriptor


async def _serve(
    made: _Made, metrics: Callable[[], contextlib.AbstractAsyncContextManager[None]], ready: Callable[[], None]
) -> None:
    """Mount, serve, unmount. From the first line on signals wait their turn, so that none can leave a dead mount."""
    vfs, writable, path = made.vfs, made.writable, made.place.path
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        descriptor = _attach(made)
        device = made.place.device
        end = End(path, device, writable, made.patience)
        loop = None if descriptor is None else request_loop.install(pyfuse3, descriptor, vfs.cache.calm)
        log.debug("request loop: %s", "stock" if loop is None else "ours")
        made.operations.unopened = open_requests.install(pyfuse3) if made.unopened else None
        log.debug("opens: %s", "stock" if made.operations.unopened is None else "without a request")
        unmount = True
        try:
            with _recorded(made), end.bounded(), _notices(made).running():
                async with vfs.running(), _asked(made), metrics(), trio.open_nursery() as nursery:

                    def terminate() -> None:
                        end.begin()
                        pyfuse3.terminate()
                        if loop is not None:
                            loop.end()  # pyfuse3 wakes only one of the tasks that wait

                    nursery.start_soon(end.on_signal, signals, nursery.cancel_scope, terminate)
                    nursery.start_soon(service.tell, made.line)
                    _begin(made, ready)
                    try:
                        await pyfuse3.main(MIN_TASKS, config.MAX_TASKS)
                    except BaseException:
                        # After a fault of ours the mount stays, answering ENOTCONN: an empty directory in its place
                        # would make a mirroring rsync delete its copy. The next `shardfs mount` there repairs it.
                        unmount = nursery.cancel_scope.cancel_called
                        raise
                    await end.finish()
                    end.begin()
                    nursery.cancel_scope.cancel()
        finally:
            # once it was detached, another may be mounted there, and libfuse would unmount that
            pyfuse3.close(unmount=unmount and made.place.device == device)
    if made.place.device == device is not None:
        raise MountError(f"the kernel's connection of {path} was aborted; take the mount away: shardfs umount {path}")
    log.info("unmounted %s" if made.place.descriptor is None else "ended serving %s", path)
    end.check()


def _recorded(made: _Made) -> contextlib.AbstractContextManager[None]:
    if not made.place.seen:
        return contextlib.nullcontext()  # nobody could name it
    name = mount_point.source_name(made.url)
    return daemon.recorded(made.place.path, name, made.writable is not None, made.patience)


def _asked(made: _Made) -> contextlib.AbstractAsyncContextManager[None]:
    return served(made.place.path, made.handlers) if made.place.seen else contextlib.nullcontext()


def _begin(made: _Made, ready: Callable[[], None]) -> None:
    """Have `ready` called: now, or for a mount that nobody here could try, when the kernel has begun to ask."""
    if not made.place.seen:
        made.operations.begun = ready
        return
    ready()
    threading.Thread(target=raise_limits, args=(made.place.path,), name="limits", daemon=True).start()


def prefills() -> bool:
    """SHARDFS_NO_PREFILL=1 in the environment turns prefilling off, for comparing."""
    return os.environ.get("SHARDFS_NO_PREFILL") != "1"
