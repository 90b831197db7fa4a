"""What the documents below `.shardfs` of a mount say. None of them waits for the store.

Knows nothing of inode numbers, nor of how documents are read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from shardfs.control_files import Document
from shardfs.control_server import Handlers
from shardfs.damage import DamageList
from shardfs.log_lines import LogLines
from shardfs.storage.disk_cache import DiskCache
from shardfs.vfs import Vfs

Settings = Mapping[str, Mapping[str, Any]]
"""Name -> `value`, and `from` where it came: `flag`, `-o` or `default`."""


def documents_of(
    mountpoint: str,
    handlers: Handlers,
    damage: DamageList,
    settings: Settings,
    lines: LogLines,
    metrics: Callable[[], str],
) -> dict[bytes, Document]:
    """The documents of a mount, by name."""

    async def status() -> bytes:
        said = await handlers["status"]({})
        return _json({"mountpoint": mountpoint, "health": "serving", "reason": None, **said})

    async def errors() -> bytes:
        return b"".join(_json(dataclasses.asdict(one), indent=None) for one in damage)

    async def config() -> bytes:
        return _json(plain(settings))

    async def log() -> bytes:
        return lines.text()

    async def figures() -> bytes:
        return metrics().encode("utf-8", "backslashreplace")

    return {
        b"status.json": status,
        b"metrics": figures,
        b"errors.jsonl": errors,
        b"config.json": config,
        b"log": log,
    }


def settings_of(vfs: Vfs, given: Settings, real: Mapping[str, Any]) -> Settings:
    """What was asked for of a mount, with what it came to where that says more; `real` is added to that."""
    storage = getattr(vfs.driver, "storage", None)
    came = {"driver": vfs.driver.name, "memory": vfs.cache.budget, **real}
    if math.isfinite(vfs.refresh.interval):  # else it stays as it was said: immutable, or manual
        came["refresh"] = vfs.refresh.interval
    if isinstance(storage, DiskCache):
        files = storage.files
        came |= {"cache_dir": str(files.root), "cache_size": files.limit, "min_free": files.min_free}
    made = {name: dict(one) for name, one in given.items()}
    for name, value in came.items():
        made.setdefault(name, {"from": "default"})["value"] = value
    return made


def plain(value: Any) -> Any:
    """A value as JSON can say it: infinity, which has no number there, by its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: plain(inside) for name, inside in value.items()}
    return [plain(inside) for inside in value] if isinstance(value, list | tuple) else value


def _json(value: object, indent: int | None = 2) -> bytes:
    text = json.dumps(value, ensure_ascii=False, indent=indent) + "\n"
    return text.encode("utf-8", "backslashreplace")  # names that are no UTF-8 hold lone surrogates
