"""`shardfs mount`: decides between foreground and background, says when the mount is ready. Knows nothing of serving.

Until the fork nothing is imported that starts a thread: the store is opened in the process that serves it.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from shardfs import background, config, daemon, handed_over, sd_notify
from shardfs.commands import OK, explain, tell, under_journal
from shardfs.commands.effective import absolute_store, default_log, facts_of
from shardfs.commands.options import cache_options, store_options, style
from shardfs.commands.resolving import Settled
from shardfs.errors import BadSettingError, MissingSystemError, MountError
from shardfs.log_formats import LEVELS, formatter
from shardfs.storage.urls import is_far

NO_PYFUSE3 = (
    "mounting needs pyfuse3: pip install 'shardfs[mount]' "
    f"(to build it, Debian needs: apt install {config.DEBIAN_PACKAGES})"
)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, with absolute paths: the background process works in /."""

    store: str
    directory: str
    mountpoint: str
    remote: dict[str, Any]
    cache: dict[str, Any]
    values: Mapping[str, Any]
    """Each setting with the value that counts."""
    settings: dict[str, dict[str, Any]]
    """The same for people, and where it came from."""
    verbosity: int


def run(arguments: argparse.Namespace) -> int:
    settled: Settled = arguments.settled
    if settled.read_only_unasked:
        tell(f"mounting read-only, as mount(8) says rw unasked: to write, add write_back={config.WRITE_BACK:.0f}")
    request = _request(arguments, settled)
    if arguments.foreground:
        return _foreground(request, arguments.mountpoint)
    return _background(request, arguments.mountpoint)


def _request(arguments: argparse.Namespace, settled: Settled) -> Request:
    cache = cache_options(arguments)
    far = is_far(arguments.store)
    # of a store on this machine only raw bytes are kept, and only where that is asked for
    remote = store_options(arguments) | (cache if far or arguments.cache_raw in (None, "off") else {})
    return Request(
        store=absolute_store(arguments.store),
        directory=os.getcwd(),
        mountpoint=os.path.abspath(arguments.mountpoint),
        remote=remote,
        cache=cache,
        values={name: one.value for name, one in settled.holds.items()},
        settings=facts_of(arguments),
        verbosity=arguments.verbose,
    )


def _foreground(request: Request, shown: str) -> int:
    proved = _proved(request.mountpoint)

    def announce() -> None:
        try:
            if proved is not None:
                daemon.prove(*proved)
        except MountError as error:
            logging.getLogger("shardfs").error("%s", error)
            return
        say(_ready_text(request, shown))
        sd_notify.tell("READY=1")

    _log_to(request)
    say = tell
    if request.values["log_format"] == "json" and request.values["log"] is None:
        say = _log_always  # who reads JSON on stderr reads nothing else there
    try:
        # a thread: the mount cannot be asked by the thread that serves it
        _serve(request, lambda: threading.Thread(target=announce, name="announce", daemon=True).start())
    except Exception as error:
        if say is tell:
            raise
        status, text = explain(error, request.verbosity)
        say(text, 3)
        return status
    return OK


def _log_always(text: str, priority: int = 6) -> None:
    """As `tell`, as a line of the log whatever its level is."""
    log = logging.getLogger("shardfs")
    level = logging.ERROR if priority < 4 else logging.INFO
    log.handle(log.makeRecord(log.name, level, "", 0, text, (), None))


def _background(request: Request, shown: str) -> int:
    def serve(ready: Callable[[], None]) -> None:
        _log_to(request, default_log(request.mountpoint), in_background=True)
        _serve(request, ready)

    proved, descriptor = _proved(request.mountpoint), handed_over.descriptor_of(request.mountpoint)
    keep = () if descriptor is None else (descriptor,)
    started = background.start(serve, lambda error: explain(error, request.verbosity), request.values["log"], keep)
    if isinstance(started, background.Failure):
        tell(started.text, 3)
        return started.code
    try:
        if proved is not None:
            daemon.prove(*proved)
    except BaseException:
        background.end(started)
        raise
    tell(_ready_text(request, shown))
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


def _ready_text(request: Request, shown: str) -> str:
    from shardfs.storage.urls import without_secrets

    store = without_secrets(request.store) if "://" in request.store else request.store
    if handed_over.descriptor_of(request.mountpoint) is not None:
        return f"serving {store} on {shown}; whoever mounted it takes it away"
    return f"mounted {store} on {shown}; unmount with: shardfs umount {shlex.quote(shown)}"


def _serve(request: Request, ready: Callable[[], None]) -> None:
    gc.disable()  # until it serves: a tenth of the time that the imports take
    from shardfs.opening import open_store

    values = request.values
    where = None
    if values["where"] is not None:
        from shardfs.light_where import Where

        where = Where(values["where"])  # before the store is asked for anything
    store = open_store(
        request.store, values["driver"], directory=request.directory, **request.remote, **_driver_options(request)
    )
    if values["snapshot"] is not None:
        from shardfs.snapshots import at_snapshot

        store = at_snapshot(store, Path(values["snapshot"]))
    if values["keys"] is not None:
        store = store.choosing(values["keys"])
    try:
        from shardfs import mount
    except ImportError as error:
        raise MissingSystemError(f"{NO_PYFUSE3}: {error}") from error
    same = ("memory", "allow_other", "nonempty", "index", "rw", "allow_overwrite", "allow_delete", "single_writer")
    options = mount.MountOptions(
        **{name: values[name] for name in (*same, "write_back", "cache_raw", "refresh")},
        arrays=style(values["arrays"], values["text"]),
        cache=request.cache,
        metrics=values["metrics_addr"],
        shutdown_timeout=values["shutdown_timeout"],
        xattr=values["xattr"],
        trace=values["trace"],
        view=values["view"] or "",
        heavy=values["field"],
        log_format=values["log_format"],
        where=where,
        settings=request.settings,
    )
    mount.serve(store, request.mountpoint, options, ready)


def _driver_options(request: Request) -> dict[str, str]:
    """What the driver is asked for besides. BadSettingError, in the words of the command line, where it has no such."""
    limit, driver = request.values["size_limit"], request.values["driver"]
    if limit is None:
        return {}
    from shardfs.opening import driver_options

    if "size_limit" not in driver_options(request.store, driver, **request.remote):
        raise BadSettingError(f"--size-limit is for data sets whose keys can be split, and {request.store} is none")
    return {"size_limit": limit}


def _log_to(request: Request, default: Path | None = None, in_background: bool = False) -> None:
    """Log to the file that was asked for, or to one at `default` that is bounded, or to stderr where there is one."""
    handler: logging.Handler = logging.StreamHandler()
    path = request.values["log"]
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
    handler.setFormatter(formatter(request.values["log_format"], to_file=to_file, journal=under_journal()))
    logging.basicConfig(level=LEVELS[request.values["log_level"]], handlers=[handler])
