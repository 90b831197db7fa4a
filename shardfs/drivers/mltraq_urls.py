"""The URL of an mltraq store: which database, and which datastore belongs to it. Knows nothing of what is in them."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

from shardfs.errors import BadSettingError, BadStoreError

SCHEME = "mltraq+"
DATASTORE = "mltraq.datastore"
"""What the library calls the datastore unless it is told otherwise; in its working directory."""


def places_of(url: str, datastore: str | None) -> tuple[Path, Path]:
    """Database and datastore of a URL."""
    path, query = _database_path(url)
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name != "datastore" or not value:
            raise BadStoreError(f"{url}: the one option of such a URL is datastore=DIRECTORY")
        datastore = datastore or value
    directory = Path(datastore).expanduser() if datastore else path.parent / DATASTORE
    if datastore and not directory.is_dir():
        raise BadStoreError(f"{directory} is no directory: it is to be the datastore of {path}")
    return path, directory


def identity(path: Path, directory: Path) -> str:
    return f"{SCHEME}sqlite:///{os.path.realpath(path)}?datastore={quote(os.path.realpath(directory))}"


def _database_path(url: str) -> tuple[Path, str]:
    """The database of `mltraq+sqlite:///PATH`, and the query.

    SQLAlchemy has a path behind three slashes relative and one behind four absolute; other URLs have it absolute behind
    three. Whichever is there is meant.
    """
    text, _, query = url.removeprefix(SCHEME).partition("?")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("sqlite", "sqlite+pysqlite") or not rest.startswith("/") or len(rest) < 2:
        raise BadStoreError(f"{url}: use mltraq+sqlite:///PATH, and ?datastore=DIRECTORY behind it")
    found: list[Path] = []
    for read in (_as_it_is, unquote):
        relative, absolute = Path(read(rest[1:])), Path("/" + read(rest).lstrip("/"))
        for path in (relative,) if rest.startswith("/./") else (relative, absolute):
            if path.is_file() and not any(os.path.samefile(path, other) for other in found):
                found.append(path)
        if found:
            break
    if not found:
        raise BadStoreError(f"no database at {rest.lstrip('/') if rest[1:2] != '/' else rest[1:]}")
    if len(found) > 1:
        raise BadSettingError(f"{url} could mean {found[0]} or {found[1]}: write four slashes or a path with ./")
    return found[0].absolute(), query


def _as_it_is(text: str) -> str:
    return text
