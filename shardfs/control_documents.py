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
