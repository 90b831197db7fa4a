"""`shardfs staging`: what was written and is not stored yet, with a mount running or without.

Whoever holds the staging area of a store changes it: a mount that does is asked through its socket, else it is opened
here. Looking at it and copying out of it need neither.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardfs import config, control, daemon
from shardfs.commands import FAILED, OK, as_json, explain, one_line, tell, unwrapped
from shardfs.commands.effective import absolute_store
from shardfs.commands.options import cache_options, store_options, style
from shardfs.commands.storing import Outcome, reasons, result
from shardfs.commands.tabular import age, number, size, table
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    MissingExtraError,
    MissingKeyError,
    MountError,
    ShardfsError,
    StagingError,
    StagingLockedError,
    StaleShardError,
    UnknownCommandError,
)
from shardfs.model import Key
from shardfs.staging import Report, StagedDirectory, StagedEntry, StagingArea, copy_out, staged_stores
from shardfs.storage.urls import far_identity, is_far

if TYPE_CHECKING:
    from shardfs.drivers.base import Shard
    from shardfs.index import ShardTable

_HEAD = ("key", "state", "files", "size", "age", "reason")
_NUMBERS = (2, 3, 4)


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    # what is wrong with a staged directory is in its report, and told once
    logging.getLogger("shardfs").addHandler(logging.NullHandler())
    work = {"list": _list, "recover": _recover, "discard": _discard, "trust": _trust}[arguments.work]
    status = work(arguments)
    sys.stdout.flush()
    return status


def staged_url(store: str, endpoint: str | None = None) -> str:
    """The URL under which a store has its staging area: the given one, or another that means the same directory. Of one
    far away the endpoint need not be said where it is clear."""
    if is_far(store):
        return _far_url(store, endpoint)
    try:
        given = absolute_store(store)
    except (BadStoreError, BadSettingError):
        given = store  # what is staged is there although the store is gone
    place = _place(given)
    known = staged_stores()
    if given in known or place is None:
        return given
    return next((url for url in known if _place(url) == place), given)


def _far_url(store: str, endpoint: str | None) -> str:
    given, known = far_identity(store, endpoint), staged_stores()
    others = [url for url in known if url.partition(" at ")[0] == given]
    return given if given in known or endpoint is not None or len(others) != 1 else others[0]


def _place(url: str) -> str | None:
    from shardfs.opening import local_path  # here: a list of all needs nothing of it

    try:
        return os.path.realpath(local_path(url))
    except BadStoreError:
        return None


# --- list -------------------------------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> int:
    urls = staged_stores() if arguments.store is None else [staged_url(arguments.store)]
    status, found = OK, []
    for url in urls:
        try:
            found.append((url, _reports(url)))
        except StagingError as error:
            failed, text = explain(error)
            tell(text)
            status = status or failed
    if arguments.json:
        print(as_json([{"store": url, "staged": [dataclasses.asdict(one) for one in staged]} for url, staged in found]))
        return status
    found = [(url, staged) for url, staged in found if staged]
    for at, (url, staged) in enumerate(found):
        if arguments.store is None:
            print(("\n" if at else "") + one_line(url))
        print(_table(staged, time.time_ns()))
    if not found and status == OK:
        tell("nothing is staged" if arguments.store is None else f"nothing is staged for {arguments.store}")
    return status


def _reports(url: str) -> list[Report]:
    """What is staged for a store. StagingError."""
    try:
        area = StagingArea.open(url, read_only=True)
    except StagingError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    with contextlib.closing(area):
        return area.reports()


def _table(staged: Iterable[Report], now_ns: int) -> str:
    rows = [
        (
            one_line(one.key) or one.id,
            "plain" if one.kind == "plain" and one.state == "staged" else one.state,
            f"{one.files:,}",
            size(one.data_bytes),
            age(one.created_ns, now_ns),
            one_line(one.reason or ""),
        )
        for one in staged
    ]
    return table(_HEAD, rows, right=_NUMBERS)


# --- settling ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _looked_at(url: str, key: str) -> Iterator[tuple[StagingArea, StagedDirectory]]:
    """A staged directory and its area, for looking only. MissingKeyError, StagingError."""
    if url not in staged_stores():
        raise MissingKeyError(f"nothing is staged for {url}")
    with contextlib.closing(StagingArea.open(url, read_only=True)) as area:
        yield area, _called(area, key)


def _called(area: StagingArea, key: str) -> StagedDirectory:
    found = area.called(key)
    if found is None:
        raise MissingKeyError(f"nothing is staged for {key}")
    return found


def _settle(url: str, command: str, key: str | None, here: Callable[[StagingArea], Any], seconds: float | None) -> Any:
    """Do something to what is staged: by the mount that has it, else `here`. ShardfsError."""
    try:
        area = StagingArea.open(url, store_path=None if (place := _place(url)) is None else Path(place))
    except StagingLockedError as error:
        return _through_mount(error, command, key, seconds)
    with contextlib.closing(area):
        return here(area)


def _through_mount(locked: StagingLockedError, command: str, key: str | None, seconds: float | None) -> Any:
    mountpoint = next((record.mountpoint for record in daemon.records() if record.pid == locked.pid), None)
    if mountpoint is None:
        raise locked
    try:
        control.ask(mountpoint, "ping", seconds=config.CONTROL_ANSWER)
        return control.ask(mountpoint, command, {} if key is None else {"key": key}, seconds)
    except UnknownCommandError as error:
        raise MountError(
            f"the mount at {mountpoint} shows it: remove it there, or end that mount first: shardfs umount {mountpoint}"
        ) from error
    except MountError as error:
        raise MountError(
            f"{error}; its process {locked.pid} has what is staged: end that mount first: shardfs umount {mountpoint}"
        ) from error


def _discard(arguments: argparse.Namespace) -> int:
    url, key = staged_url(arguments.store), arguments.key
    with _looked_at(url, key) as (_, staged):
        held = f"{number(len(staged), 'file')}, {size(staged.data_bytes)}"
    if not arguments.yes and not _confirmed(
        f"remove what is staged for {one_line(key)} ({held}), which is nowhere else?"
    ):
        tell("nothing was removed")
        return FAILED
    _settle(url, "discard", key, lambda area: area.discard(_called(area, key)), config.CONTROL_ANSWER)
    print(one_line(f"discarded {key}: {held}"))
    return OK


def _confirmed(question: str) -> bool:
    """Whether the user says yes. BadSettingError where nobody can be asked."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise BadSettingError("removing cannot be undone: say --yes")
    print(f"shardfs: {question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _trust(arguments: argparse.Namespace) -> int:
    url, key = staged_url(arguments.store), arguments.key
    with _looked_at(url, key) as (_, staged):
        doubt = staged.doubt
    if doubt is None:
        tell(one_line(f"{key} is not in doubt"))
        return OK
    _settle(url, "trust", key, lambda area: _called(area, key).trust(), config.CONTROL_ANSWER)
    print(one_line(f"trusted {key}: it can be stored now"))
    return OK


# --- recover ----------------------------------------------------------------------------------------------------------


def _recover(arguments: argparse.Namespace) -> int:
    url, key = staged_url(arguments.store, arguments.endpoint), arguments.key
    if arguments.to is not None:
        if key is None:
            raise BadSettingError("--to needs a KEY: the files of one key go into one directory")
        return _copy(arguments, url, key)
    if url not in staged_stores():
        raise MissingKeyError(f"nothing is staged for {url}")
    outcome = _settle(url, "commit", key, lambda area: _seal(arguments, area, key), None)
    if isinstance(outcome, dict):  # of a mount
        answered, outcome = outcome, Outcome()
        outcome.add(answered)
    for one in outcome.stored:
        print(result(one))
    for line in reasons(outcome):
        tell(line)
    if not outcome.failed and not outcome.stored:
        tell("there is nothing to store")
    return int(outcome.status)


def _seal(arguments: argparse.Namespace, area: StagingArea, key: str | None) -> Outcome:
    """Store what is staged, without a mount: one key, or in their order all that a mount would."""
    try:
        from shardfs.sealer import seal_now
    except ImportError as error:
        raise MissingExtraError(f"storing needs trio: pip install 'shardfs[mount]': {error}") from error
    from shardfs.opening import open_store
    from shardfs.writable import check_conditions

    store = open_store(arguments.store, arguments.driver, **store_options(arguments), **cache_options(arguments))
    check_conditions(store, arguments.single_writer)
    driver = store.driver
    shown = _style(arguments, area)
    wanted = [_called(area, key)] if key is not None else _by_themselves(area)
    outcome = Outcome()
    for staged in wanted:
        name = staged.key
        try:
            sealed = seal_now(driver, area, staged, shown)
        except Exception as error:
            failure = unwrapped(error)
            if not isinstance(failure, ShardfsError):
                raise
            outcome.failed.append((name, failure))
            continue
        if sealed is None:
            outcome.nothing.append(name)
        else:
            left = sealed.left is not None
            outcome.stored.append({"key": name, "stored_bytes": sealed.entry.stored_bytes, "left": left})
    outcome.staged = [dataclasses.asdict(report) for report in area.reports()]
    return outcome


def _style(arguments: argparse.Namespace, area: StagingArea) -> str:
    """How samples were shown to who staged over them: as this command is told, else as the area has it noted."""
    noted = area.shown_as()
    if noted is not None and not any(map(arguments.settled.by_flag, ("arrays", "text"))):
        return noted.rpartition(" ")[2]
    return style(arguments.arrays, arguments.text)


def _by_themselves(area: StagingArea) -> list[StagedDirectory]:
    keys = [staged for staged in area.directories() if staged.kind == "key" and staged.parked is None]
    return sorted(keys, key=lambda staged: staged.key)


def _copy(arguments: argparse.Namespace, url: str, key: str) -> int:
    with _looked_at(url, key) as (area, staged):
        copied = copy_out(staged, Path(arguments.to), _Stored(arguments, staged, _style(arguments, area)))
    for name, reason in copied.left_out:
        tell(one_line(f"not copied: {name}: {reason}"))
    print(one_line(f"copied {key} to {arguments.to}: {number(copied.files, 'file')}, {size(copied.size)}"))
    return FAILED if copied.left_out else OK


class _Stored:
    """Files of the stored shard that a staged key lies over: those of its entries that were never changed. Loads the
    shard when it is first asked, and only in the version that was there then."""

    def __init__(self, arguments: argparse.Namespace, staged: StagedDirectory, shown: str) -> None:
        self._arguments = arguments
        self._staged = staged
        self._shown = shown
        self._loaded: tuple[Shard, ShardTable] | None = None

    def __call__(self, entry: StagedEntry) -> Iterator[bytes | memoryview]:
        shard, table = self._loaded = self._loaded or self._load()
        assert entry.base is not None
        if entry.base >= table.files or table.size(entry.base) != entry.size:
            raise StaleShardError("the stored shard has no such file: give --arrays and --text as the mount had them")
        run = table.slice_of(entry.base)
        if run is None:
            yield table.render(entry.base, shard, self._shown)
            return
        prefix, start, length = run
        yield prefix
        for at in range(start, start + length, config.COPY_SLICE):
            yield shard.fetch(at, min(at + config.COPY_SLICE, start + length))

    def _load(self) -> tuple[Shard, ShardTable]:
        from shardfs import table_building  # here: most that is staged needs no store
        from shardfs.opening import open_store

        where = {**store_options(self._arguments), **cache_options(self._arguments)}
        store = open_store(self._arguments.store, self._arguments.driver, **where)
        found = store.driver.entry(Key(self._staged.key))
        if found.version != self._staged.base_version:
            raise StaleShardError(f"its bytes were in the stored shard, which was replaced since: {found.key}")
        shard = store.driver.load(found, lambda _: None)
        return shard, table_building.build(shard, self._shown)
