"""What a mount does when a command asks it to, by name: the handlers that `control_server` serves.

Arguments are checked here, as they come from outside; what is returned is plain values for JSON. Knows nothing of
sockets, nor of how a seal works.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from shardfs.control import error_as_json
from shardfs.control_server import Handler, Handlers
from shardfs.errors import BadSettingError, MissingKeyError, ShardfsError
from shardfs.light_fields import LightFields
from shardfs.model import Entry, Key
from shardfs.vfs import Vfs

if TYPE_CHECKING:  # a read-only mount has no use for them
    from shardfs.staging import StagedDirectory, StagingArea


class Sealed(Protocol):
    """What a seal has stored."""

    @property
    def key(self) -> str: ...

    @property
    def entry(self) -> Entry: ...

    @property
    def left(self) -> StagedDirectory | None:
        """What of the key is staged still."""


class Sealer(Protocol):
    """Who makes shards of staged directories."""

    async def seal(self, staged: StagedDirectory) -> Sealed | None:
        """Store what is staged of a key; None if there was nothing to store. ShardfsError: it stays staged."""

    async def seal_all(self, seconds: float | None = None) -> dict[str, ShardfsError]:
        """Store all that is to be stored by itself; the errors of those keys that stay staged."""


Stored = Callable[[str], Entry | None]
"""What the store has under a key now, as far as the mount knows."""

Changed = Mapping[str, list[dict[str, Any]]]
"""Keys -> what storing them made of types that the store has no word for, as `Sealer.changed` has it."""

Health = Callable[[], dict[str, Any]]
"""Whether a store far away answers, and what was asked of it."""

_NONE: Changed = {}


def metrics_handler(text: Callable[[], str]) -> Handler:
    """`metrics`: what `.shardfs/metrics` has, for who watches the mount without reading of it."""

    async def metrics(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"text": text()}

    return metrics


def handlers_of(vfs: Vfs, store: str, driver: str, health: Health | None = None) -> Handlers:
    """All that a mount of `vfs` can be asked for. `store` is its URL as anybody may see it, `health` what is to be told
    of one far away."""
    if not vfs.writable:
        return status_handlers(vfs, store, driver, health=health)
    from shardfs.writing import WritableVfs

    assert isinstance(vfs, WritableVfs)
    area, sealer = vfs.area, vfs.sealer

    def stored(key: str) -> Entry | None:
        found = vfs.tree.current(Key(key))
        return None if found is None else found.entry

    return {
        **status_handlers(
            vfs,
            store,
            driver,
            writable=True,
            area=area,
            changed=sealer.changed,
            problems=sealer.problems,
            health=health,
        ),
        **staging_handlers(
            sealer,
            area,
            vfs.calls.long,
            stored=stored,
            discard=vfs.discard,
            trusted=sealer.touched,
            changed=sealer.changed,
        ),
    }


# --- any mount --------------------------------------------------------------------------------------------------------


def status_handlers(
    vfs: Vfs,
    store: str,
    driver: str,
    *,
    writable: bool = False,
    area: StagingArea | None = None,
    changed: Changed = _NONE,
    problems: Callable[[], Mapping[str, str]] = dict,
    health: Health | None = None,
) -> Handlers:
    """`ping`, `status` and `refresh`; `area` is what is staged, for a writable mount, and `problems` why keys of that
    are not stored by themselves."""
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
            "loading": cache.loading,
            "light": _light(vfs.light),
            "far": None if health is None else health(),
            "staged": None if area is None else _reports(area, problems()),
            "changed": None if area is None else dict(changed),
        }

    async def refresh(arguments: dict[str, Any]) -> dict[str, Any]:
        return {"changed": await vfs.refresh.everything(), "keys": len(vfs.tree.slots)}

    return {"ping": ping, "status": status, "refresh": refresh}


def _light(light: LightFields) -> dict[str, Any]:
    """Shards whose light fields came out of the index, and that were read for them; and what is being made of them."""
    return {
        "indexed": light.indexed,
        "read": light.made,
        "making": [dataclasses.asdict(building) for building in light.buildings()],
    }


def _reports(area: StagingArea, problems: Mapping[str, str] = MappingProxyType({})) -> list[dict[str, Any]]:
    told = (dataclasses.replace(report, reason=report.reason or problems.get(report.key)) for report in area.reports())
    return [dataclasses.asdict(report) for report in told]


# --- writable mounts --------------------------------------------------------------------------------------------------


def commit_handler(
    sealer: Sealer, area: StagingArea, stored: Stored = lambda key: None, changed: Changed = _NONE
) -> Handler:
    """`commit`: seal the key of that name, or without one all that a seal by time would take, too.

    That nothing is staged for a key is an error only if the store has no such key, either. The answer lists what was
    `stored`, what `failed` and why, the key that had `nothing` to store, and all that is `staged` afterwards.
    """

    async def commit(arguments: dict[str, Any]) -> dict[str, Any]:
        key = arguments.get("key")
        outcome = await _seal_all(sealer, area, stored) if key is None else await _seal_one(sealer, area, stored, key)
        for one in outcome["stored"]:
            if found := changed.get(one["key"]):
                one["changed"] = found
        return {**outcome, "staged": _reports(area)}

    return commit


async def _seal_one(sealer: Sealer, area: StagingArea, stored: Stored, key: Any) -> dict[str, list[Any]]:
    if area.called(_text(key)) is None and stored(key) is not None:
        return {"stored": [], "failed": [], "nothing": [key]}
    directory = _staged(area, key)
    key = directory.key
    try:
        sealed = await sealer.seal(directory)
    except ShardfsError as error:
        return {"stored": [], "failed": [_failure(key, error)], "nothing": []}
    if sealed is None:
        return {"stored": [], "failed": [], "nothing": [key]}
    return {"stored": [_success(key, sealed.entry, sealed.left is not None)], "failed": [], "nothing": []}


async def _seal_all(sealer: Sealer, area: StagingArea, stored: Stored) -> dict[str, list[Any]]:
    before = [(one.id, one.key, one.base_version) for one in area.directories() if one.kind == "key"]
    failed = await sealer.seal_all()
    done = []
    for number, key, version in before:
        left = area.called(number)
        if key not in failed and (left is None or left.base_version != version):
            done.append(_success(key, stored(key), left is not None))
    return {"stored": done, "failed": [_failure(key, error) for key, error in failed.items()], "nothing": []}


def _success(key: str, entry: Entry | None, left: bool) -> dict[str, Any]:
    return {"key": key, "stored_bytes": None if entry is None else entry.stored_bytes, "left": left}


def _failure(key: str, error: ShardfsError) -> dict[str, Any]:
    return {"key": key, "error": error_as_json(error)}


def staging_handlers(
    sealer: Sealer,
    area: StagingArea,
    in_worker: Callable[[Callable[[], None]], Awaitable[None]],
    *,
    stored: Stored = lambda key: None,
    discard: Callable[[StagedDirectory], Awaitable[None]] | None = None,
    trusted: Callable[[StagedDirectory], None] = lambda directory: None,
    changed: Changed = _NONE,
) -> Handlers:
    """`commit` as above, and what settles what stays staged: `discard` and `trust`.

    `in_worker` does what waits for the disk. `discard` removes a staged directory from the area and from what the mount
    shows; without it the command is not offered. `trusted` is told of one that may be sealed again.
    """
    handlers = {"commit": commit_handler(sealer, area, stored, changed)}

    async def trust(arguments: dict[str, Any]) -> dict[str, Any]:
        directory = _staged(area, arguments.get("key"))
        await in_worker(directory.trust)
        trusted(directory)
        return {"trusted": directory.key}

    handlers["trust"] = trust
    if discard is not None:
        handlers["discard"] = _discard_handler(area, discard)
    return handlers


def _discard_handler(area: StagingArea, remove: Callable[[StagedDirectory], Awaitable[None]]) -> Handler:
    async def discard(arguments: dict[str, Any]) -> dict[str, Any]:
        directory = _staged(area, arguments.get("key"))
        key = directory.key
        await remove(directory)
        return {"discarded": key}

    return discard


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
