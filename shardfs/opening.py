"""How a store is opened: what a path or URL means, and which driver it gets.

A path or a `file://` URL is a directory, and its content decides, or it names tars one by one; `NAME+REST://...` is a
URL that driver NAME opens by itself. Knows nothing of what drivers do.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from shardfs import config
from shardfs.drivers.base import Driver
from shardfs.drivers.squirrel import CODECS
from shardfs.drivers.webdataset import ENDINGS
from shardfs.errors import BadSettingError, BadStoreError, ShardfsError, StorageError
from shardfs.patterns import expand
from shardfs.storage.base import Storage
from shardfs.storage.disk_cache import DiskCache, cached
from shardfs.storage.known import default_directory
from shardfs.storage.local import LocalStorage
from shardfs.storage.urls import far_identity, is_far, open_remote, without_secrets
from shardfs.store import Store

if TYPE_CHECKING:  # it needs obstore
    from shardfs.storage.remote import RemoteStorage

_BUILT_IN: dict[str, tuple[str, str, dict[str, Any]]] = {
    "squirrel": ("shardfs.drivers.squirrel", "SquirrelDriver", {}),
    "squirrel-msgpack": ("shardfs.drivers.squirrel", "SquirrelDriver", {"format": "msgpack"}),
    "squirrel-jsonl": ("shardfs.drivers.squirrel", "SquirrelDriver", {"format": "jsonl"}),
    "streaming": ("shardfs.drivers.streaming", "StreamingDriver", {}),
    "webdataset": ("shardfs.drivers.webdataset", "WebDatasetDriver", {}),
    "superduper": ("shardfs.drivers.superduper", "SuperduperDriver", {}),
    "mltraq": ("shardfs.drivers.mltraq", "MltraqDriver", {}),
}


REMOTE_OPTIONS = ("endpoint", "anonymous", "storage_options", "deadline", "offline")
CACHE_OPTIONS = ("cache_dir", "cache_size", "min_free")
"""Options of `open_store` that are for stores far away, whatever their driver."""

_CATALOG_DRIVERS = {"messagepack": "squirrel-msgpack", "jsonl": "squirrel-jsonl", "store_driver": "squirrel"}
"""squirrel-core's drivers whose sources are stores, by the names they have in a catalog."""


def open_store(
    url_or_path: str | os.PathLike[str],
    driver: str | None = None,
    *,
    directory: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Store:
    """Open a store: a local path, a `file://` URL, one far away (`s3://`, `gs://`, `az://`, `https://`), or a URL
    whose scheme begins with a driver's name and a `+`.

    A file that ends in `.yaml` is a catalog of squirrel-core: its sources are shown below `<identifier>/v<version>`, to
    be read. Relative paths in it count from `directory`, by default where the program runs.

    A path or URL of a tar, or of several with braces (`train/shard-{000..099}.tar`), means just these, for reading.
    `driver` names the system (`squirrel`, `squirrel-jsonl`, `streaming`, `webdataset`, `mltraq`, `superduper`, or one
    that an installed package offers); without it the store's content decides, and an empty or unclear store needs it.
    `options` are the driver's own (squirrel, webdataset: compression, level; squirrel: format; streaming:
    validate_hash, size_limit, compression, format; superduper: encodable), and for stores far away `endpoint`,
    `anonymous`, `storage_options`, `deadline` and `offline` (see `storage.urls.open_remote`), `cache_dir`, `cache_size`
    and `min_free` (see `storage.disk_cache.cached`). BadStoreError, BadSettingError.
    """
    text = os.fspath(url_or_path)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if "+" in scheme:
        return _open_url(text, scheme.partition("+")[0], driver, options)
    if is_far(text):
        return _open_remote(text, driver, options)
    path = local_path(text)
    for option in (*REMOTE_OPTIONS, *CACHE_OPTIONS):
        if option in options:
            raise BadSettingError(f"{text} is on this machine: {option} is for stores far away")
    if driver is None and path.suffix in (".yaml", ".yml") and path.is_file():
        return _open_catalog(text, path, Path(directory or os.getcwd()))
    tars = _named_tars(path)
    if tars is not None:
        if driver not in (None, "webdataset"):
            raise BadSettingError(f"{text} names tars, which the driver {driver} does not read")
        path, options = tars[0], {**options, "only": tars[1]}
    storage = LocalStorage(path)
    chosen = "webdataset" if tars is not None else driver or detect(path)
    factory, preset = _factory(chosen)
    _check_options(chosen, factory, options, "storage")
    made: Driver = factory(storage, **{**preset, **options})
    if tars is not None:
        made.entries()  # what is missing is to be told at once
    return Store(text, made, path)


def detect_url(url_or_path: str | os.PathLike[str], **where: Any) -> str:
    """The driver for what lies in a directory or below a URL; `where` is as `open_store` takes it. BadStoreError."""
    url = os.fspath(url_or_path)
    if not is_far(url):
        return detect(local_path(url))
    remote, named, _ = _opened(url, None, {name: where[name] for name in REMOTE_OPTIONS if name in where})
    return named or detect_in(remote, without_secrets(url))


def _named_tars(path: Path) -> tuple[Path, list[str]] | None:
    """The directory, and the names in it, of tars that a path names; None for a path that means a directory."""
    text = os.fspath(path)
    one = os.path.isfile(path)
    if not text.endswith(tuple(ENDINGS)) or not (one or ("{" in text and not os.path.isdir(path))):
        return None
    found = [text] if one else expand(text)
    root = os.path.abspath(os.path.dirname(text if one else text.partition("{")[0]))
    return Path(root), _each_once(text, [os.path.relpath(os.path.abspath(name), root) for name in found])


def _named_far_tars(url: str) -> tuple[str, list[str]] | None:
    """The same for a store that lists."""
    if not url.endswith(tuple(ENDINGS)):
        return None
    start = url.partition("{")[0].rfind("/") + 1
    return url[:start], _each_once(url, [unquote(name[start:]) for name in expand(url)])


def _each_once(text: str, names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise BadSettingError(f"{without_secrets(text) if '://' in text else text} names a tar twice")
    return names


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


def _open_remote(url: str, driver: str | None, options: dict[str, Any]) -> Store:
    settings = {name: options.pop(name) for name in REMOTE_OPTIONS if name in options}
    kept = {name: options.pop(name) for name in CACHE_OPTIONS if name in options}
    beside = kept.get("cache_dir")
    settings["known_dir"] = default_directory() if beside is None else Path(beside) / "known"
    remote, named, more = _opened(url, driver, settings)
    options = {**options, **more}
    storage = cached(remote, far_identity(url, settings.get("endpoint")), **kept)
    chosen = driver or named or detect_in(storage, without_secrets(url))
    factory, preset = _factory(chosen)
    _check_options(chosen, factory, options, "storage")
    made: Driver = factory(storage, **{**preset, **options})
    if more:
        made.entries()  # what is missing is to be told at once
    identity = far_identity(url, settings.get("endpoint"))
    health = storage.health if isinstance(storage, DiskCache) else remote.health
    return Store(without_secrets(url), made, identity=identity, health=health, deadline=remote.deadline)


def _opened(url: str, driver: str | None, settings: dict[str, Any]) -> tuple[RemoteStorage, str | None, dict[str, Any]]:
    """The storage at a URL, the driver for it where the URL says that, and options of it. BadSettingError."""
    if urlsplit(url).scheme not in ("http", "https"):
        tars = _named_far_tars(url)
        if tars is None:
            return open_remote(url, **settings), None, {}
        if driver not in (None, "webdataset"):
            raise BadSettingError(f"{without_secrets(url)} names tars, which the driver {driver} does not read")
        return open_remote(tars[0], **settings), "webdataset", {"only": tars[1]}
    from shardfs.web_names import web_names

    directory, named, names = web_names(url)
    if driver is not None and driver.partition("-")[0] != named:
        if named != "streaming":
            raise BadSettingError(f"{url} names shards for {named}, which the driver {driver} does not read")
        return open_remote(url, **settings), None, {}  # a server that lists (WebDAV)
    remote = open_remote(directory, **settings)
    remote.names = names
    return remote, named, {}


def _open_catalog(text: str, path: Path, directory: Path) -> Store:
    from shardfs.catalog import read_catalog
    from shardfs.drivers.union import UnionDriver

    members: dict[str, Driver] = {}
    places: list[Path] = []
    problems: list[str] = []
    for source in read_catalog(path):
        name = f"{source.identifier}/v{source.version}"
        try:
            if any(part in ("", ".", "..") for part in name.split("/")) or _overlaps(name, members):
                raise BadStoreError("a name that cannot stand beside the others as a directory")
            driver = _CATALOG_DRIVERS.get(source.driver_name)
            if driver is None or source.url is None:
                raise BadStoreError(f"driver {source.driver_name} reads no store of shards")
            url = source.url if "://" in source.url else os.path.join(directory, os.path.expanduser(source.url))
            store = open_store(url, driver)
            if store.place is not None and not store.place.is_dir():
                raise BadStoreError(f"no store at {store.place}")
        except ShardfsError as error:
            problems.append(f"{path.name}: {name} is not shown: {error}")
            continue
        members[name] = store.driver
        places += store.places
    return Store(text, UnionDriver(members, problems), places=places)


def _overlaps(name: str, others: Iterable[str]) -> bool:
    return any(f"{name}/".startswith(f"{other}/") or f"{other}/".startswith(f"{name}/") for other in others)


def absolute_url(url: str) -> str:
    """A driver's own URL so that it means the same from any directory, where the driver can say so. BadStoreError,
    BadSettingError."""
    factory, _ = _factory(urlsplit(url).scheme.partition("+")[0])
    absolute = getattr(factory, "absolute_url", None)
    return url if absolute is None else str(absolute(url))


def driver_options(url_or_path: str | os.PathLike[str], driver: str | None = None, **where: Any) -> frozenset[str]:
    """The names of the options that `open_store` would take for this store besides `where`, which says how it is
    reached. BadStoreError, BadSettingError."""
    text = os.fspath(url_or_path)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if "+" in scheme:
        made = getattr(_factory(scheme.partition("+")[0])[0], "open_url", lambda url: None)
    else:
        made = _factory(driver or detect_url(text, **where))[0]
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
        raise BadStoreError(
            f"{text}: what can be opened are local directories, file://, s3://, gs://, az:// and http(s):// URLs"
        )
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
    return detect_in(LocalStorage(path), str(path))


def detect_in(storage: Storage, place: str) -> str:
    """The same for what is in a storage that `place` is the name of."""
    found = [listed.name for listed in storage.list(("index.json", *ENDINGS, *CODECS))]
    indexes = [name for name in found if name.rpartition("/")[2] == "index.json"]
    if any(_is_streaming_index(storage, name) for name in indexes):
        return "streaming"
    if any(".mds." in name for name in found):
        raise BadStoreError(f"{place} holds .mds shards without an index.json that says version 2")
    if any(name.endswith(tuple(ENDINGS)) for name in found):
        return "webdataset"
    if any(name.endswith(tuple(CODECS)) for name in found):
        return "squirrel"
    raise BadStoreError(
        f"{place} holds no shards that are recognised (index.json, *.tar, *.gz, *.zst); name its --driver"
    )


def _is_streaming_index(storage: Storage, name: str) -> bool:
    try:
        document = json.loads(storage.read(name, config.DETECTED_INDEX))
    except (StorageError, ValueError, RecursionError):
        return True  # a broken index is the streaming driver's to explain
    return isinstance(document, dict) and document.get("version") == 2
