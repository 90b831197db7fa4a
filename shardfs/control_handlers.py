"""What a mount does when a command asks it to, by name: the handlers that `control_server` serves.

Arguments are checked here, as they come from outside; what is returned is plain values for JSON. Knows nothing of
sockets, nor of how a seal works.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

from shardfs.control import error_as_json
from shardfs.control_server import Handler, Handlers
from shardfs.errors import BadSettingError, MissingKeyError, ShardfsError, StaleShardError, StorageError
from shardfs.model import Entry
from shardfs.staging import StagedDirectory, StagingArea
from shardfs.vfs import Vfs
from shardfs.workers import Workers


class Sealed(Protocol):
    """What a seal has stored."""

    @property
    def key(self) -> str: ...

    @property
    def entry(self) -> Entry: ...

    @property
    def left(self) -> bool:
        """Whether something of the key is staged still."""


class Sealer(Protocol):
    """Who makes shards of staged directories."""

    async def seal(self, staged: StagedDirectory) -> Sealed | None:
        """Store what is staged of a key; None if there was nothing to store. ShardfsError: it stays staged."""


# --- any mount --------------------------------------------------------------------------------------------------------


def status_handlers(
    vfs: Vfs, store: str, driver: str, *, writable: bool = False, area: StagingArea | None = None
) -> Handlers:
    """`ping` and `status`. `store` is its URL as anybody may see it; `area` what is staged, for a writable mount."""
    begun = time.time_ns()

    async def ping(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid()}

    async def status(arguments: dict[str, Any]) -> dict[str, Any]:
        cache = vfs.cache
        return {
            "store": store,
            "driver": driver,
            "mode": "rw" if writable else "ro",
            "pid": os.getpid(),
            "since_ns": begun,
            "keys": len(vfs.tree.slots),
            "cache": {
                "budget": cache.budget,
                "used": cache.used,
                "shards": len(cache),
                **dataclasses.asdict(cache.counts),
            },
            "staged": None if area is None else _reports(area),
        }

    return {"ping": ping, "status": status}


def _reports(area: StagingArea) -> list[dict[str, Any]]:
    return [dataclasses.asdict(report) for report in area.reports()]


# --- writable mounts --------------------------------------------------------------------------------------------------


def commit_handler(sealer: Sealer, area: StagingArea, stored: Callable[[str], bool] = lambda key: False) -> Handler:
    """`commit`: seal the key of that name, or without one all that a seal by time would take, too.

    `stored` says whether the store has a key: then that nothing is staged for it is no error. The answer lists what was
    `stored`, what `failed` and why, keys that had `nothing` to store, and all that is `staged` afterwards.
    """

    async def commit(arguments: dict[str, Any]) -> dict[str, Any]:
        key = arguments.get("key")
        if key is None:
            wanted = [one for one in area.directories() if one.kind == "key" and one.parked is None]
        else:
            wanted = [] if area.called(_text(key)) is None and stored(key) else [_staged(area, key)]
        outcome: dict[str, list[Any]] = {"stored": [], "failed": [], "nothing": [] if wanted or key is None else [key]}
        for directory in wanted:
            await _commit(sealer, directory, outcome)
        return {**outcome, "staged": _reports(area)}

    return commit


async def _commit(sealer: Sealer, directory: StagedDirectory, outcome: dict[str, list[Any]]) -> None:
    key = directory.key
    try:
        sealed = await sealer.seal(directory)
    except ShardfsError as error:
        outcome["failed"].append({"key": key, "error": error_as_json(error)})
        return
    if sealed is None:
        outcome["nothing"].append(key)
        return
    entry = sealed.entry
    outcome["stored"].append(
        {"key": sealed.key, "stored_bytes": entry.stored_bytes, "version": entry.version, "left": sealed.left}
    )


def staging_handlers(
    sealer: Sealer,
    area: StagingArea,
    workers: Workers,
    stored: Callable[[str], bool] = lambda key: False,
    changed: Callable[[str], None] = lambda key: None,
) -> Handlers:
    """`commit` as above, and what settles what stays staged: `recover` (seal; set aside what the store has another
    version of by now), `discard`, `trust`. `changed` is told of each key that is not, or not only, staged any more."""

    async def recover(arguments: dict[str, Any]) -> dict[str, Any]:
        directory = _staged(area, arguments.get("key"))
        outcome: dict[str, list[Any]] = {"stored": [], "failed": [], "nothing": []}
        key = directory.key
        try:
            await _recover(directory, outcome)
        finally:
            changed(key)
        return outcome

    async def _recover(directory: StagedDirectory, outcome: dict[str, list[Any]]) -> None:
        await _commit(sealer, directory, outcome)
        failed = [one["error"] for one in outcome["failed"]]
        if failed and failed[0]["kind"] == StaleShardError.__name__:
            reason = failed[0]["text"]
            outcome["failed"][0]["parked"] = await workers.io(lambda: area.park(directory, reason))

    async def discard(arguments: dict[str, Any]) -> dict[str, Any]:
        directory = _staged(area, arguments.get("key"))
        if directory.writers:
            raise StorageError(f"{directory.key}: a file is open for writing", errno.EBUSY)
        key = directory.key
        await workers.io(lambda: area.discard(directory))
        changed(key)
        return {"discarded": key}

    async def trust(arguments: dict[str, Any]) -> dict[str, Any]:
        directory = _staged(area, arguments.get("key"))
        await workers.io(directory.trust)
        return {"trusted": directory.key}

    commit = commit_handler(sealer, area, stored)
    return {"commit": commit, "recover": recover, "discard": discard, "trust": trust}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise BadSettingError("a command without the name of a key")
    return value


def _staged(area: StagingArea, key: Any) -> StagedDirectory:
    """What is staged under a key, a plain name or the id of a staged directory. MissingKeyError."""
    found = area.called(_text(key))
    if found is None:
        raise MissingKeyError(f"nothing is staged for {key}")
    return found
