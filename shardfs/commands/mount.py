"""`shardfs mount`: decides between foreground and background, says when the mount is ready. Knows nothing of serving.

Until the fork nothing is imported that starts a thread: the store is opened in the process that serves it.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import logging
import os
import shlex
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from shardfs import background, config, daemon, handed_over, sd_notify
from shardfs.commands import OK, explain, tell
from shardfs.commands.options import (
    ARRAYS,
    TEXTS,
    MountWords,
    cache_options,
    parse_cache_raw,
    parse_refresh,
    parse_shutdown_timeout,
    parse_size,
    parse_words,
    parse_write_back,
    store_options,
    style,
)
from shardfs.errors import BadSettingError, MissingSystemError, MountError
from shardfs.storage.urls import SCHEMES

NO_PYFUSE3 = (
    "mounting needs pyfuse3: pip install 'shardfs[mount]' "
    "(to build it, Debian needs: apt install fuse3 libfuse3-dev pkg-config gcc python3-dev)"
)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, with absolute paths: the background process works in /."""

    store: str
    directory: str
    remote: dict[str, Any]
    cache: dict[str, Any]
    cache_raw: str | None
    snapshot: str | None
    mountpoint: str
    driver: str | None
    memory: int | None
    arrays: str
    allow_other: bool
    nonempty: bool
    index: bool
    rw: bool
    allow_overwrite: bool
    allow_delete: bool
    single_writer: bool
    write_back: float | None
    refresh: float | None
    size_limit: str | None
    verbosity: int
    log_file: str | None
    metrics: str | None
    shutdown_timeout: float | None
    settings: dict[str, dict[str, Any]]
    """Each setting, and where it came from."""


def run(arguments: argparse.Namespace) -> int:
    words = parse_words(arguments.options, arguments.from_mount8)
    if words.rw_by_default:
        tell(f"mounting read-only, as mount(8) says rw unasked: to write, add write_back={config.WRITE_BACK:.0f}")
    request = _request(arguments, words)
    if arguments.foreground:
        return _foreground(request, arguments.mountpoint)
    return _background(request, arguments.mountpoint)


def _request(arguments: argparse.Namespace, words: MountWords) -> Request:
    rw = arguments.rw or words.rw
    allow_overwrite = arguments.allow_overwrite or words.allow_overwrite
    allow_delete = arguments.allow_delete or words.allow_delete
    single_writer = arguments.single_writer or words.single_writer
    write_back = arguments.write_back if arguments.write_back is not None else words.write_back
    size_limit = arguments.size_limit if arguments.size_limit is not None else words.size_limit
    shutdown = arguments.shutdown_timeout if arguments.shutdown_timeout is not None else words.shutdown_timeout
    if not rw:
        for asked, option in (
            (allow_overwrite, "--allow-overwrite"),
            (allow_delete, "--allow-delete"),
            (single_writer, "--single-writer"),
            (write_back is not None, "--write-back"),
            (size_limit is not None, "--size-limit"),
            (shutdown is not None, "--shutdown-timeout"),
        ):
            if asked:
                raise BadSettingError(f"{option} is for writable mounts: give --rw, too")
    cache = cache_options(arguments, words)
    cache_raw = parse_cache_raw(arguments.cache_raw or words.cache_raw)
    far = arguments.store.partition("://")[0] in SCHEMES
    # of a store on this machine only raw bytes are kept, and only where that is asked for
    remote = store_options(arguments, words) | (cache if far or cache_raw in (None, "off") else {})
    snapshot = arguments.snapshot or words.snapshot
    if rw and snapshot:
        raise BadSettingError("--snapshot is for reading: without --rw")
    memory = arguments.memory if arguments.memory is not None else words.memory
    return Request(
        store=absolute_store(arguments.store),
        directory=os.getcwd(),
        remote=remote,
        cache=cache,
        cache_raw=cache_raw,
        snapshot=None if snapshot is None else os.path.abspath(os.path.expanduser(snapshot)),
        refresh=parse_refresh(arguments.refresh or words.refresh),
        mountpoint=os.path.abspath(arguments.mountpoint),
        driver=arguments.driver or words.driver,
        memory=None if memory is None else parse_size(memory),
        arrays=style(arguments.arrays or words.arrays, arguments.text or words.text),
        allow_other=arguments.allow_other or words.allow_other,
        nonempty=words.nonempty,
        index=not (arguments.no_index or words.no_index),
        rw=rw,
        allow_overwrite=allow_overwrite,
        allow_delete=allow_delete,
        single_writer=single_writer,
        write_back=parse_write_back(write_back),
        size_limit=size_limit,
        verbosity=arguments.verbose,
        log_file=None if arguments.log is None else os.path.abspath(arguments.log),
        metrics=arguments.metrics_addr or words.metrics_addr,
        shutdown_timeout=parse_shutdown_timeout(shutdown),
        settings=settings_of(arguments, words),
    )


_NO_SETTINGS = ("command", "options", "from_mount8", "rw_by_default", "version")


def settings_of(arguments: argparse.Namespace, words: MountWords) -> dict[str, dict[str, Any]]:
    """Each setting of a mount as it was given, and where: `flag`, `-o`, or `default` for what was not (`value` is null
    then, or false, where the default depends on the machine or the store)."""
    made: dict[str, dict[str, Any]] = {}
    for name, given in sorted({**asdict(words), **vars(arguments)}.items()):
        said = getattr(words, name, None)
        if name in _NO_SETTINGS:
            continue
        if name in ("store", "mountpoint"):
            made[name] = {
                "value": daemon.resolved(given) if name == "mountpoint" else shown_store(absolute_store(given))
            }
        elif hasattr(arguments, name) and given:
            made[name] = {"value": given, "from": "flag"}
        elif said:
            made[name] = {"value": said, "from": "-o"}
        else:
            made[name] = {"value": _DEFAULTS.get(name, given), "from": "default"}
        if name == "endpoint" and made[name]["value"]:
            made[name]["value"] = shown_store(made[name]["value"])
    return made


_DEFAULTS = {
    "arrays": ARRAYS[0],
    "text": TEXTS[0],
    "write_back": config.WRITE_BACK,
    "shutdown_timeout": config.SHUTDOWN_WAIT,
}


def shown_store(text: str) -> str:
    """A store as anybody may see it, without a password in a URL or what is behind its question mark."""
    scheme, separator, rest = text.partition("://")
    authority, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}" if separator else text


def absolute_store(text: str) -> str:
    """The same store from whatever directory it is opened. BadStoreError, BadSettingError for a URL of no driver."""
    if "://" not in text:
        return os.path.abspath(os.path.expanduser(text))
    if "+" not in text.partition("://")[0]:
        return text
    from shardfs.opening import absolute_url  # what drivers are there is not to be known for any other

    return absolute_url(text)


def _foreground(request: Request, shown: str) -> int:
    proved = _proved(request.mountpoint)

    def announce() -> None:
        try:
            if proved is not None:
                daemon.prove(*proved)
        except MountError as error:
            logging.getLogger("shardfs").error("%s", error)
            return
        _say_ready(request, shown)
        sd_notify.tell("READY=1")

    _log_to(request.log_file, request.verbosity)
    # a thread: the mount cannot be asked by the thread that serves it
    _serve(request, lambda: threading.Thread(target=announce, name="announce", daemon=True).start())
    return OK


def _background(request: Request, shown: str) -> int:
    def serve(ready: Callable[[], None]) -> None:
        _log_to(request.log_file, request.verbosity, default_log(request.mountpoint), in_background=True)
        _serve(request, ready)

    proved, descriptor = _proved(request.mountpoint), handed_over.descriptor_of(request.mountpoint)
    keep = () if descriptor is None else (descriptor,)
    started = background.start(serve, lambda error: explain(error, request.verbosity), request.log_file, keep)
    if isinstance(started, background.Failure):
        tell(started.text)
        return started.code
    try:
        if proved is not None:
            daemon.prove(*proved)
    except BaseException:
        background.end(started)
        raise
    _say_ready(request, shown)
    return OK


def _proved(mountpoint: str) -> tuple[str, str] | None:
    """Where the mount is asked whether it answers, and its type; None for one that was handed over and cannot be seen
    from here."""
    descriptor = handed_over.descriptor_of(mountpoint)
    if descriptor is None:
        return daemon.resolved(mountpoint), daemon.FSTYPE
    handed_over.check(descriptor)
    found = handed_over.mounted(descriptor)
    return None if found is None else (found.path, found.fstype)


def _say_ready(request: Request, shown: str) -> None:
    from shardfs.storage.urls import without_secrets

    store = without_secrets(request.store) if "://" in request.store else request.store
    if handed_over.descriptor_of(request.mountpoint) is not None:
        tell(f"serving {store} on {shown}; whoever mounted it takes it away")
        return
    tell(f"mounted {store} on {shown}; unmount with: shardfs umount {shlex.quote(shown)}")


def _serve(request: Request, ready: Callable[[], None]) -> None:
    gc.disable()  # until it serves: a tenth of the time that the imports take
    from shardfs.opening import open_store

    store = open_store(
        request.store, request.driver, directory=request.directory, **request.remote, **_driver_options(request)
    )
    if request.snapshot is not None:
        from shardfs.snapshots import at_snapshot

        store = at_snapshot(store, Path(request.snapshot))
    try:
        from shardfs import mount
    except ImportError as error:
        raise MissingSystemError(f"{NO_PYFUSE3}: {error}") from error
    options = mount.MountOptions(
        memory=request.memory,
        arrays=request.arrays,
        allow_other=request.allow_other,
        nonempty=request.nonempty,
        index=request.index,
        rw=request.rw,
        allow_overwrite=request.allow_overwrite,
        allow_delete=request.allow_delete,
        single_writer=request.single_writer,
        write_back=request.write_back,
        cache=request.cache,
        cache_raw=request.cache_raw,
        refresh=request.refresh,
        metrics=request.metrics,
        shutdown_timeout=request.shutdown_timeout,
        settings=request.settings,
    )
    mount.serve(store, request.mountpoint, options, ready)


def _driver_options(request: Request) -> dict[str, str]:
    """What the driver is asked for besides. BadSettingError, in the words of the command line, where it has no such."""
    if request.size_limit is None:
        return {}
    from shardfs.opening import driver_options

    if "size_limit" not in driver_options(request.store, request.driver, **request.remote):
        raise BadSettingError(f"--size-limit is for data sets whose keys can be split, and {request.store} is none")
    return {"size_limit": request.size_limit}


def default_log(mountpoint: str) -> Path | None:
    """Where a mount in the background logs unless it is told: a file named after the mount point."""
    base = config.base_directory("XDG_STATE_HOME", "~/.local/state")
    if base is None:
        return None
    path = os.fsencode(mountpoint)
    name = os.fsdecode(path.strip(b"/").replace(b"/", b"-")[-150:])
    return base / "shardfs" / f"{name}-{hashlib.sha256(path).hexdigest()[:8]}.log"


def _log_to(path: str | None, verbosity: int, default: Path | None = None, in_background: bool = False) -> None:
    """Log to `path`, or to a file at `default` that is bounded, or to stderr where there is one."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        handler = logging.FileHandler(path, encoding="utf-8")
    elif in_background and default is None:
        handler = logging.NullHandler()
    elif default is not None:
        try:
            default.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handler = RotatingFileHandler(
                default, maxBytes=config.LOG_BYTES, backupCount=1, encoding="utf-8", delay=True
            )
        except OSError:
            handler = logging.NullHandler()  # a home that cannot be written to is no reason not to mount
    to_file = type(handler) is not logging.StreamHandler
    pattern = "%(asctime)s %(process)d %(levelname)s %(message)s" if to_file else "shardfs: %(message)s"
    logging.basicConfig(level=level, format=pattern, handlers=[handler])
