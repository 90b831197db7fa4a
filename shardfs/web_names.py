"""What the URL of a web server names, which lists nothing: shards one by one, or the indexes of a data set.

`https://host/train-{000..099}.tar` (or `.tar.gz`, `.gz`, ...) are just these shards; any other URL is a directory (or,
with braces, several) with the index.json of a MosaicML Streaming data set, and without braces the usual splits below
it are looked for, too. Knows nothing of requests.
"""

from __future__ import annotations

from urllib.parse import unquote, urlsplit, urlunsplit

from shardfs import config
from shardfs.drivers.squirrel import CODECS
from shardfs.drivers.streaming_index import BadIndexError, parse_index
from shardfs.drivers.webdataset import ENDINGS
from shardfs.errors import BadSettingError
from shardfs.patterns import expand
from shardfs.storage.given import GivenNames, IndexedNames

SPLITS = ("train", "val", "validation", "valid", "test", "eval", "dev")
"""Directories that are looked for below a data set whose splits nobody has named."""

_INDEX = "index.json"


def web_names(url: str) -> tuple[str, str, GivenNames | IndexedNames]:
    """The URL of the directory that all names lie in, the driver for them, and the names. BadSettingError."""
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise BadSettingError("URLs with a query cannot be opened: whoever has it could not be told from who has not")
    paths = expand(parts.path)
    base = parts.path.partition("{")[0] if "{" in parts.path else parts.path
    shards = [path for path in paths if path.endswith((*ENDINGS, *CODECS))]
    if shards:
        return _shards(url, paths, base)
    directories = [path.removesuffix(_INDEX).rstrip("/") for path in paths]
    root = base[: base.rfind("/") + 1] if "{" in parts.path else f"{directories[0]}/"
    below = [unquote(directory[len(root) :].strip("/")) for directory in directories]
    required = "{" in parts.path or parts.path.endswith(f"/{_INDEX}")
    below += [] if required else list(SPLITS)
    indexes = [f"{directory}/{_INDEX}" if directory else _INDEX for directory in below]
    names = IndexedNames(indexes, _named, config.STREAMING_INDEX, required=required)
    return urlunsplit((parts.scheme, parts.netloc, root, "", "")), "streaming", names


def _shards(url: str, paths: list[str], base: str) -> tuple[str, str, GivenNames]:
    parts = urlsplit(url)
    tars = [path.endswith(tuple(ENDINGS)) for path in paths]
    if any(tars) and not all(tars):
        raise BadSettingError(f"{url} names tars and others: open each kind by itself")
    if not all(path.endswith((*ENDINGS, *CODECS)) for path in paths):
        raise BadSettingError(f"{url} names files that are no shards (*.tar, *.tar.gz, *.tgz, *.tar.zst, *.gz, *.zst)")
    root = base[: base.rfind("/") + 1]
    names = [unquote(path[len(root) :]) for path in paths]
    if len(set(names)) != len(names):
        raise BadSettingError(f"{url} names a shard twice")
    made = urlunsplit((parts.scheme, parts.netloc, root, "", ""))
    return made, "webdataset" if all(tars) else "squirrel", GivenNames(names)


def _named(data: bytes, directory: str) -> list[tuple[str, ...]]:
    """Each file of an index: compressed, and raw where that is not there."""
    try:
        places = parse_index(data, f"{directory}/" if directory else "")
    except BadIndexError as error:
        raise ValueError(str(error)) from error
    pairs = [pair for place in places for pair in place.pairs]
    return [(raw.name,) if zipped is None else (zipped.name, raw.name) for raw, zipped in pairs]
