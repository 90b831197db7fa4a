"""Serving a mount, from the checks of its mount point to its end: builds the parts, runs pyfuse3's loop, ends in order.

Knows nothing of arguments, of what is printed, or of whether this process was started in the background. Import it only
where a mount is served: it needs pyfuse3 and trio.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import pyfuse3
import trio

from shardfs import __version__, config, daemon, metering, metrics_server, request_loop
from shardfs.control_documents import documents_of, settings_of
from shardfs.control_handlers import handlers_of, metrics_handler
from shardfs.control_server import Handlers, served
from shardfs.errors import MissingSystemError, MountError
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

DRAIN_SECONDS = 2.0
"""Requests under way may end by themselves for so long after a signal; then their callers get an error."""

END_SECONDS = 10.0
"""A thread that hangs in storage by then is given up, so that the mount goes and the service manager need not kill."""

SWITCH_SECONDS = 0.0005
"""How long a decoding thread keeps the GIL from the event loop at a time: Python's 5 ms would be the loop's latency."""

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Parameters of mallopt(3)."""

_NO_RIGHT = ("Operation not permitted", "Permission denied", "user_allow_other", "device not found", "No such device")
"""What libfuse or fusermount3 says when it is the system that refuses, not the mount point."""


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

    A mount point that is not there is made, and removed at the end. `ready` is called, in the thread that serves, when
    the mount is there and its loop about to run: it must not touch the mount. MountError, MissingSystemError, and
    whatever listing the store raises. Signals are handled, so this must run in the main thread.
    """
    tune()
    check_system()
    path = daemon.resolved(mountpoint)
    check_apart(path, store)
    with contextlib.ExitStack() as stack:
        lines = stack.enter_context(kept_lines(options.log_format))
        area = stack.enter_context(contextlib.closing(_open_area(store, options))) if options.rw else None
        database = open_database(store, options.arrays) if options.index else None
        if database is not None:
            stack.callback(database.close)
        vfs = build(store, options, database, area)
        vfs.refresh.interval = options.refresh or (config.REMOTE_REFRESH if store.far else config.REFRESH)
        vfs.views.show(options.view, options.heavy)
        stack.enter_context(prepared(path, options.nonempty))
        handlers = handlers_of(vfs, source_name(store.url), store.driver.name, store.health)
        end = None if options.metrics is None else stack.enter_context(metrics_server.listening(options.metrics))
        operations, writable = _operations(vfs, options.xattr)
        real = {} if end is None else {"metrics_addr": metrics_server.address_of(end)}
        settings = settings_of(vfs, options.settings, real)
        area, sealer = (vfs.area, vfs.sealer) if is_writable(vfs) else (None, None)
        telling = partial(metering.text_of, vfs, operations.meter, __version__, area, sealer)
        handlers = {**handlers, "metrics": metrics_handler(telling)}
        vfs.control.documents |= documents_of(path, handlers, vfs.cache.damage, settings, lines, telling)
        if options.trace is not None:
            stack.enter_context(_traced(options.trace, vfs, operations, source_name(store.url), path))
        made = _Made(vfs, operations, writable, path, fuse_options(store, options), store.url, handlers)
        trio.run(_serve, made, lambda: metrics_server.served(end, telling), ready)


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


# --- before mounting --------------------------------------------------------------------------------------------------


def check_system() -> None:
    """MissingSystemError, saying what to do, where this process could not mount anything."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as error:
        raise MissingSystemError(
            "/dev/fuse is missing: load the kernel module (modprobe fuse); "
            "in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
        ) from error
    except OSError as error:
        raise MissingSystemError(
            f"/dev/fuse cannot be opened ({os.strerror(error.errno or errno.EIO)}): "
            "let this user read and write it; in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
        ) from error
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MissingSystemError("mounting as a user needs fusermount3: install the package fuse3")


def check_apart(path: str, store: Store) -> None:
    """MountError if one of mount point and local store would lie in the other."""
    for place in store.places:
        _check_apart(path, os.path.realpath(place))


def _check_apart(path: str, where: str) -> None:
    if path == where or path.startswith(where.rstrip("/") + "/"):
        raise MountError(f"mount point {path} lies inside the store {where}: mount elsewhere")
    if where.startswith(path.rstrip("/") + "/"):
        raise MountError(f"the store {where} lies inside the mount point {path} and would be hidden: mount elsewhere")


@contextlib.contextmanager
def prepared(path: str, nonempty: bool) -> Iterator[None]:
    """A mount point fit for use; one that is made here is removed at the end if it is empty by then. MountError."""
    if daemon.repair(path):
        log.warning("detached what a daemon that died had left at %s", path)
    mounted = daemon.mounted_at(path)
    if mounted is not None and mounted.fstype == daemon.FSTYPE:
        raise MountError(f"{path} is mounted already ({mounted.source}); unmount it: shardfs umount {path}")
    made = False
    try:
        os.mkdir(path)
        made = True
    except FileExistsError:
        _check_directory(path, nonempty)
    except FileNotFoundError as error:
        above = os.path.dirname(path)
        reason = "no directory can be made there" if os.path.isdir(above) else f"{above} is not there"
        raise MountError(f"cannot make {path}: {reason}") from error
    except OSError as error:
        raise MountError(f"cannot make mount point {path}: {os.strerror(error.errno or errno.EIO)}") from error
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # still mounted, or somebody put something in it
                os.rmdir(path)


def _check_directory(path: str, nonempty: bool) -> None:
    try:
        with os.scandir(path) as entries:
            empty = next(entries, None) is None
    except NotADirectoryError as error:
        raise MountError(f"mount point {path} is not a directory") from error
    except OSError as error:
        raise MountError(f"cannot look into mount point {path}: {os.strerror(error.errno or errno.EIO)}") from error
    if not empty and not nonempty:
        raise MountError(f"mount point {path} is not empty: choose another, or hide what is there with -o nonempty")


def fuse_options(store: Store, options: MountOptions) -> set[str]:
    """What libfuse is given. Without max_read, which breaks the mount."""
    chosen = {
        f"fsname={source_name(store.url)}",
        "subtype=shardfs",
        "rw" if options.rw else "ro",  # ro also keeps reads from marking atime stale, which costs a GETATTR per stat
        "nosuid",  # both are fusermount3's default and not the kernel's, when root mounts
        "nodev",
        "default_permissions",  # allow_other without it would let anybody in anywhere
    }
    return chosen | {"allow_other"} if options.allow_other else chosen


def source_name(url: str) -> str:
    """A store's URL as the mount table shows it: no credentials, and nothing that libfuse takes for its own."""
    scheme, separator, rest = url.partition("://")
    if separator:
        authority, slash, path = rest.partition("?")[0].partition("/")
        url = f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"
    return "".join(c if " " < c < "\x7f" and c not in ",\\" else _percent(c) for c in url)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))


# --- serving ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Made:
    """What `_serve` puts to work."""

    vfs: Vfs
    operations: Operations
    writable: WritableVfs | None
    path: str
    options: set[str]
    """Those of libfuse."""
    url: str
    handlers: Handlers


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


async def _serve(
    made: _Made, metrics: Callable[[], contextlib.AbstractAsyncContextManager[None]], ready: Callable[[], None]
) -> None:
    """Mount, serve, unmount. From the first line on signals wait their turn, so that none can leave a dead mount."""
    vfs, operations, writable, path = made.vfs, made.operations, made.writable, made.path
    options, url, handlers = made.options, made.url, made.handlers
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        descriptor = init(operations, path, options)
        device = _device(path)
        loop = None if descriptor is None else request_loop.install(pyfuse3, descriptor, vfs.cache.calm)
        log.debug("request loop: %s", "stock" if loop is None else "ours")
        notices = Notices(
            lambda parent, name: pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name)),
            lambda inode: pyfuse3.invalidate_inode(pyfuse3.InodeT(inode)),
            operations.prefill,
            lambda below: os.stat(os.path.join(path, below)),
        )
        vfs.superseded = notices.superseded
        vfs.renamed = notices.renamed
        if writable is not None:
            # and no prefilling: what was read of a shard a moment ago may have been written over by now
            writable.emptied = notices.emptied
        elif prefills():
            vfs.loaded = notices.loaded
        unmount = True
        try:
            with (
                daemon.recorded(path, source_name(url), writable is not None),
                _hanging_ends(path, device) as (ending, give_up),
                notices.running(),
            ):
                async with vfs.running(), served(path, handlers), metrics(), trio.open_nursery() as nursery:
                    stored = trio.Event()

                    def terminate() -> None:
                        ending()
                        pyfuse3.terminate()
                        if loop is not None:
                            loop.end()  # pyfuse3 wakes only one of the tasks that wait

                    async def finish() -> None:
                        if writable is not None:
                            await _stored(writable, path, stored, give_up)

                    nursery.start_soon(_end_on_signal, signals, nursery.cancel_scope, finish, terminate)
                    ready()
                    threading.Thread(target=raise_limits, args=(path,), name="limits", daemon=True).start()
                    try:
                        await pyfuse3.main(MIN_TASKS, config.MAX_TASKS)
                    except BaseException:
                        # After a fault of ours the mount stays, answering ENOTCONN: an empty directory in its place
                        # would make a mirroring rsync delete its copy. The next `shardfs mount` there repairs it.
                        unmount = nursery.cancel_scope.cancel_called
                        raise
                    await finish()
                    ending()
                    nursery.cancel_scope.cancel()
        finally:
            # once it was detached, another may be mounted there, and libfuse would unmount that
            pyfuse3.close(unmount=unmount and _device(path) == device)
    if _device(path) == device is not None:
        raise MountError(f"the kernel's connection of {path} was aborted; take the mount away: shardfs umount {path}")
    log.info("unmounted %s", path)


def _device(path: str) -> str | None:
    """The device of what is mounted at `path`: no two mounts have the same at a time."""
    mounted = daemon.mounted_at(path)
    return None if mounted is None else mounted.device


async def _stored(writable: WritableVfs, path: str, stored: trio.Event, give_up: Callable[[str], None]) -> None:
    """Have what was written stored before the mount ends, once for whoever ends it; not for longer than SHUTDOWN_WAIT,
    nor after a second signal, which cancels this. Staging is made for the death of the process: so where a seal hangs
    it ends right here, as the thread in which that hangs cannot be ended."""
    if writable.ending:
        await stored.wait()
        return
    until, in_time = trio.current_time() + config.SHUTDOWN_WAIT, False
    try:
        with trio.move_on_at(until + DRAIN_SECONDS):  # the disk of the staging area may hang, too
            _tell_left(path, *await writable.finish())
            in_time = trio.current_time() < until
    finally:
        stored.set()
        if not in_time and writable.sealer.at_work:
            give_up("what was written is not all stored, and is kept for the next mount: the store takes too long")


def _tell_left(path: str, failed: dict[str, str], kept: dict[str, str]) -> None:
    """Say what was written and is not in the store."""
    for key, reason in (*failed.items(), *kept.items()):
        log.warning("%s is not stored, and stays staged: %s", key, reason)
    daemon.leave_word(path, failed, kept)


async def _end_on_signal(
    signals: AsyncIterator[int],
    serving: trio.CancelScope,
    finish: Callable[[], Awaitable[None]],
    terminate: Callable[[], None],
) -> None:
    number = await anext(signals)
    log.info("ending on %s", signal.Signals(number).name)
    daemon.notify("STOPPING=1")
    async with trio.open_nursery() as nursery:

        async def hurry() -> None:
            await anext(signals)
            nursery.cancel_scope.cancel()

        nursery.start_soon(hurry)
        await finish()
        nursery.cancel_scope.cancel()
    terminate()
    with trio.move_on_after(DRAIN_SECONDS):
        await anext(signals)  # a second one: at once
    serving.cancel()


def prefills() -> bool:
    """SHARDFS_NO_PREFILL=1 in the environment turns prefilling off, for comparing."""
    return os.environ.get("SHARDFS_NO_PREFILL") != "1"


@contextlib.contextmanager
def _hanging_ends(path: str, device: str | None) -> Iterator[tuple[Callable[[], None], Callable[[str], None]]]:
    """Bounds the end: from the call of the first function of what this gives, the block may take END_SECONDS before the
    process is ended. The second one ends it at once, with exit status 1, and says why.

    Threads cannot be cancelled, and one may hang in a dead network mount for ever.
    """

    def give_up(reason: str) -> None:
        log.error("%s", reason)
        with contextlib.suppress(MountError):
            if _device(path) == device is not None:
                daemon.unmount(path, lazy=True)
        logging.shutdown()
        for number in _fuse_descriptors():
            os.close(number)  # a thread that hangs in the kernel keeps all others open: nobody is to wait for those
        os._exit(1)

    late = f"a request to the store still hangs {END_SECONDS:.0f} s after the end was asked for: giving it up"
    timer = threading.Timer(END_SECONDS, give_up, [late])
    timer.daemon = True

    def begin() -> None:
        if not timer.is_alive():
            timer.start()

    try:
        yield begin, give_up
    finally:
        timer.cancel()


def init(operations: Operations, path: str, options: set[str]) -> int | None:
    """pyfuse3.init, with libfuse's own complaint on stderr made into one MountError.

    Returns the session's descriptor, which pyfuse3 keeps to itself, if it can be told.
    """
    before = _fuse_descriptors()
    said = os.memfd_create("libfuse")
    saved = os.dup(2)
    try:
        os.dup2(said, 2)
        try:
            pyfuse3.init(operations, path, options)
        finally:
            os.dup2(saved, 2)
            reason = _reason(os.pread(said, 4096, 0))
    except RuntimeError as error:
        raise _mount_error(path, reason or str(error)) from error
    finally:
        os.close(saved)
        os.close(said)
    if reason:
        log.warning("%s", reason)
    made = _fuse_descriptors() - before
    return made.pop() if len(made) == 1 else None


def _fuse_descriptors() -> set[int]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            if os.readlink(f"/proc/self/fd/{number}") == "/dev/fuse":
                found.add(int(number))
    return found


def _reason(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines()]
    return "; ".join(line.removeprefix("fuse: ").removeprefix("fusermount3: ") for line in lines if line)


def _mount_error(path: str, reason: str) -> MountError:
    if "user_allow_other" in reason:
        return MissingSystemError("allow_other needs the line user_allow_other in /etc/fuse.conf, which root can add")
    if "mountpoint" not in reason and any(words in reason for words in _NO_RIGHT):
        return MissingSystemError(
            f"mounting on {path} is not permitted here ({reason}); "
            "in a container start it with --device /dev/fuse --cap-add SYS_ADMIN"
        )
    return MountError(f"cannot mount on {path}: {reason}")
