"""How a store is opened: what a path or URL means, and which driver it gets.

A path or a `file://` URL is a directory, and its content decides; `NAME+REST://...` is a URL that driver NAME opens by
itself. Knows nothing of what drivers do.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from shardfs.drivers.base import Driver
from shardfs.drivers.squirrel import CODECS
from shardfs.errors import BadSettingError, BadStoreError
from shardfs.storage.local import LocalStorage
from shardfs.store import Store

_BUILT_IN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "squirrel": ("shardfs.drivers.squirrel", "SquirrelDriver", {}),
    "squirrel-msgpack": ("shardfs.drivers.squirrel", "SquirrelDriver", {"format": "msgpack"}),
    "squirrel-jsonl": ("shardfs.drivers.squirrel", "SquirrelDriver", {"format": "jsonl"}),
    "streaming": ("shardfs.drivers.streaming", "StreamingDriver", {}),
    "superduper": ("shardfs.drivers.superduper", "SuperduperDriver", {}),
    "mltraq": ("shardfs.drivers.mltraq", "MltraqDriver", {}),
}


def open_store(url_or_path: str | os.PathLike[str], driver: str | None = None, **options: Any) -> Store:
    """Open a store: a local path, a `file://` URL, or a URL whose scheme begins with a driver's name and a `+`.

    `driver` names the system (`squirrel`, `squirrel-jsonl`, `streaming`, `mltraq`, `superduper`, or one that an
    installed package offers); without it the store's content decides, and an empty or unclear store needs it. `options`
    are the driver's own (squirrel: format, compression, level; streaming: validate_hash, size_limit, compression;
    superduper: encodable). Raises BadStoreError, BadSettingError.
    """
    text = os.fspath(url_or_path)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if "+" in scheme:
        return _open_url(text, scheme.partition("+")[0], driver, options)
    path = local_path(text)
    storage = LocalStorage(path)
    chosen = driver or detect(path)
    factory, preset = _factory(chosen)
    _check_options(chosen, factory, options, "storage")
    made: Driver = factory(storage, **{**preset, **options})
    return Store(text, made, path)


def _open_url(url: str, named: str, driver: str | None, options: dict[str, Any]) -> Store:
    """`NAME+REST://...`: the driver's `open_url(url, **options)` gives the driver, and the place where it is local."""
    if driver is not None and driver != named:
        raise BadSettingError(f"{url} is for the driver {named}, not {driver}")
    factory, preset = _factory(named)
    opener = getattr(factory, "open_url", None)
    if opener is None:
        raise BadStoreError(f"{url}: the driver {named} opens directories, not URLs")
    _check_options(named, opener, options, "url")
    made, place = opener(url, **{**preset, **options})
    return Store(url, made, place)


def driver_options(url_or_path: str | os.PathLike[str], driver: str | None = None) -> frozenset[str]:
    """The names of the options that `open_store` would take for this store. BadStoreError, BadSettingError."""
    text = os.fspath(url_or_path)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if "+" in scheme:
        made = getattr(_factory(scheme.partition("+")[0])[0], "open_url", lambda url: None)
    else:
        made = _factory(driver or detect(local_path(text)))[0]
    return frozenset(list(inspect.signature(made).parameters)[1:])


def _check_options(driver: str, factory: Any, options: dict[str, Any], first: str) -> None:
    known = [word for word in inspect.signature(factory).parameters if word not in (first, "tables")]
    for option in options:
        if option not in known:
            raise BadSettingError(f"driver {driver} has no option {option!r}; it has: {', '.join(known) or 'none'}")


def local_path(url_or_path: str | os.PathLike[str]) -> Path:
    """The directory that a path or a `file://` URL means. BadStoreError for other URLs."""
    text = os.fspath(url_or_path)
    if "://" not in text:
        return Path(text).expanduser()
    parts = urlsplit(text)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise BadStoreError(f"{text}: only local directories, file:// and a driver's own URLs can be opened")
    return Path(unquote(parts.path))


def _factory(name: str) -> tuple[Any, dict[str, Any]]:
    """What makes a driver of this name, and with which options. BadSettingError."""
    module, attribute, preset = _find_driver(name)
    return getattr(importlib.import_module(module), attribute), preset


def _find_driver(name: str) -> tuple[str, str, dict[str, Any]]:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    import importlib.metadata  # 30 ms, and only needed for drivers of other packages

    offered = {point.name: point for point in importlib.metadata.entry_points(group="shardfs.drivers")}
    if name not in offered:
        known = ", ".join(sorted({*_BUILT_IN, *offered}))
        raise BadSettingError(f"no driver {name!r}; known are: {known}")
    return offered[name].module, offered[name].attr, {}


def detect(path: Path) -> str:
    """The driver for what lies in a directory, by names alone. BadStoreError where that is missing or unclear."""
    if not os.path.exists(path):
        raise BadStoreError(f"no store at {path}")
    storage = LocalStorage(path)
    found = [listed.name for listed in storage.list(("index.json", ".tar", ".tar.gz", ".tar.zst", *CODECS))]
    indexes = [name for name in found if name.rpartition("/")[2] == "index.json"]
    if any(_is_streaming_index(path / name) for name in indexes):
        return "streaming"
    if any(".mds." in name for name in found):
        raise BadStoreError(f"{path} holds .mds shards without an index.json that says version 2")
    if any(name.endswith((".tar", ".tar.gz", ".tar.zst")) for name in found):
        raise BadStoreError(f"{path} holds .tar files, for which there is no driver; name one with --driver")
    if any(name.endswith(tuple(CODECS)) for name in found):
        return "squirrel"
    raise BadStoreError(f"{path} holds no shards that are recognised (index.json, *.gz, *.zst); name its --driver")


def _is_streaming_index(path: Path) -> bool:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True  # a broken index is the streaming driver's to explain
    return isinstance(document, dict) and document.get("version") == 2
