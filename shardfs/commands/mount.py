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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from shardfs import background, config, daemon
from shardfs.commands import OK, explain, tell
from shardfs.commands.options import cache_options, store_options, style
from shardfs.commands.resolving import Settled
from shardfs.commands.said import FILE, shown_url
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
    far = arguments.store.partition("://")[0] in SCHEMES
    # of a store on this machine only raw bytes are kept, and only where that is asked for
    remote = store_options(arguments) | (cache if far or arguments.cache_raw in (None, "off") else {})
    return Request(
        store=absolute_store(arguments.store),
        directory=os.getcwd(),
        mountpoint=os.path.abspath(arguments.mountpoint),
        remote=remote,
        cache=cache,
        values={name: one.value for name, one in settled.holds.items()},
        settings=settings_of(arguments, settled),
        verbosity=arguments.verbose,
    )


def settings_of(arguments: argparse.Namespace, settled: Settled) -> dict[str, dict[str, Any]]:
    """Each setting of a mount, its value, and where it came from; with them what is mounted, and where."""
    shown = {
        "store": shown_url(absolute_store(arguments.store)),
        "mountpoint": daemon.resolved(arguments.mountpoint),
    }
    places = {
        name: {"value": value, **({"from": FILE, "where": settled.places[name]} if name in settled.places else {})}
        for name, value in shown.items()
    }
    return {**places, **settled.facts()}


def absolute_store(text: str) -> str:
    """The same store from whatever directory it is opened. BadStoreError, BadSettingError for a URL of no driver."""
    if "://" not in text:
        return os.path.abspath(os.path.expanduser(text))
    if "+" not in text.partition("://")[0]:
        return text
    from shardfs.opening import absolute_url  # what drivers are there is not to be known for any other

    return absolute_url(text)


def _foreground(request: Request, shown: str) -> int:
    path = daemon.resolved(request.mountpoint)

    def announce() -> None:
        try:
            daemon.prove(path)
        except MountError as error:
            logging.getLogger("shardfs").error("%s", error)
            return
        _say_ready(request, shown)
        daemon.notify("READY=1")

    _log_to(request.values["log"], request.verbosity)
    # a thread: the mount cannot be asked by the thread that serves it
    _serve(request, lambda: threading.Thread(target=announce, name="announce", daemon=True).start())
    return OK


def _background(request: Request, shown: str) -> int:
    def serve(ready: Callable[[], None]) -> None:
        _log_to(request.values["log"], request.verbosity, default_log(request.mountpoint), in_background=True)
        _serve(request, ready)

    started = background.start(serve, lambda error: explain(error, request.verbosity), request.values["log"])
    if isinstance(started, background.Failure):
        tell(started.text)
        return started.code
    try:
        daemon.prove(daemon.resolved(request.mountpoint))
    except BaseException:
        background.end(started)
        raise
    _say_ready(request, shown)
    return OK


def _say_ready(request: Request, shown: str) -> None:
    from shardfs.storage.urls import without_secrets

    store = without_secrets(request.store) if "://" in request.store else request.store
    tell(f"mounted {store} on {shown}; unmount with: shardfs umount {shlex.quote(shown)}")


def _serve(request: Request, ready: Callable[[], None]) -> None:
    gc.disable()  # until it serves: a tenth of the time that the imports take
    from shardfs.opening import open_store

    values = request.values
    store = open_store(
        request.store, values["driver"], directory=request.directory, **request.remote, **_driver_options(request)
    )
    if values["snapshot"] is not None:
        from shardfs.snapshots import at_snapshot

        store = at_snapshot(store, Path(values["snapshot"]))
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
        view=values["view"] or "",
        heavy=values["field"],
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
