"""What the URL of a store far away means: which object store, at which endpoint, with which credentials.

Credentials come from where each cloud's own tools take them; none is ever part of what a storage is called. Knows
nothing of what is stored.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from shardfs import config
from shardfs.errors import BadSettingError, BadStoreError, MissingSystemError
from shardfs.storage.profiles import from_profile

if TYPE_CHECKING:
    from shardfs.storage.remote import RemoteStorage

SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "http", "https")
"""Schemes that obstore opens."""

_HERE = ("", "file")

_NO_FSSPEC = "stores other than s3://, gs://, az:// and http(s):// need fsspec: pip install 'shardfs[fsspec]'"

_MISSING = "stores far away need obstore: pip install 'shardfs[remote]'"

_DEADLINES = f"write seconds, {config.REMOTE_DEADLINE_LEAST:g} to {config.REMOTE_DEADLINE_MOST:g}"


def is_far(text: str) -> bool:
    """Whether this is the URL of a store on another machine: of an object store, or one that fsspec may know. Those
    with a `+` are of drivers."""
    scheme = urlsplit(text).scheme if "://" in text else ""
    return scheme not in _HERE and "+" not in scheme


def only_read(url: str) -> bool:
    """Whether nothing can be written to a store far away, whatever its server says."""
    return is_far(url) and urlsplit(url).scheme not in SCHEMES[:-2]


def without_secrets(url: str) -> str:
    """A URL as it may be shown: without what stands before an @, and without a query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def far_identity(url: str, endpoint: str | None) -> str:
    """The same text for the same store: buckets of one name at two servers are two stores."""
    shown = without_secrets(url)
    return shown if endpoint is None else f"{shown} at {without_secrets(endpoint)}"


def open_remote(
    url: str,
    *,
    endpoint: str | None = None,
    anonymous: bool = False,
    storage_options: dict[str, Any] | None = None,
    deadline: float = config.REMOTE_DEADLINE,
    offline: bool = False,
    known_dir: Path | None = None,
) -> RemoteStorage:
    """The storage at a URL. Nothing is asked of it yet.

    `endpoint` is the URL of an S3-compatible server, `anonymous` asks without credentials, `storage_options` are
    obstore's own settings for that store. An operation ends after `deadline` seconds, one way or the other; while
    `offline` nothing is asked. What the store says is kept in `known_dir`, for a time when it cannot be asked.
    BadSettingError, BadStoreError, MissingSystemError.
    """
    if urlsplit(url).scheme not in SCHEMES:
        return _open_other(
            url,
            endpoint=endpoint,
            anonymous=anonymous,
            options=dict(storage_options or {}),
            deadline=deadline,
            offline=offline,
            known_dir=known_dir,
        )
    try:
        from obstore.store import HTTPStore, from_url

        from shardfs.storage.known import Known
        from shardfs.storage.obstore_objects import ObstoreObjects
        from shardfs.storage.remote import RemoteStorage
        from shardfs.storage.requests import Requests, cleaned
    except ImportError as error:
        raise MissingSystemError(f"{_MISSING} ({error})") from error
    parts = urlsplit(url)
    shown = without_secrets(url)
    settings: Any = dict(storage_options or {})
    _check_deadline(deadline)
    known = None if known_dir is None else Known(known_dir, far_identity(url, endpoint))
    asking = Requests(shown, deadline=deadline, offline=offline)
    client = _client(deadline, settings.pop("client_options", {}))
    retries: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=deadline)}
    if parts.scheme in ("http", "https"):
        if endpoint or anonymous:
            raise BadSettingError(f"{shown}: --endpoint and --anonymous are for s3://, gs:// and az://")
        client["allow_http"] = parts.scheme == "http"
        made = HTTPStore.from_url(url.rstrip("/"), client_options=client, retry_config=retries)
        return RemoteStorage(ObstoreObjects(made, asking), shown, asking, known)
    if anonymous:
        settings["skip_signature"] = True
    if endpoint is not None:
        settings["endpoint"] = endpoint
        client["allow_http"] = client.get("allow_http", endpoint.startswith("http://"))
    if parts.scheme in ("s3", "s3a"):
        settings |= from_profile(settings)
    try:
        store = from_url(url, client_options=client, retry_config=retries, **settings)
    except Exception as error:  # obstore has an own class of errors here, and ValueErrors
        reason = " ".join(cleaned(str(error)).split())[:300]
        raise BadStoreError(f"{shown} cannot be opened: {reason}") from None  # it may show what was given
    sending: Any = {name: value for name, value in client.items() if name != "read_timeout"}
    sending["timeout"] = timedelta(seconds=deadline + config.REMOTE_UPLOAD_PART / config.REMOTE_SLOWEST)

    def patient() -> Any:
        return from_url(url, client_options=sending, retry_config=retries, **settings)

    return RemoteStorage(ObstoreObjects(store, asking, tagged=True, patient=patient), shown, asking, known)


def _client(deadline: float, given: dict[str, Any]) -> Any:
    """obstore's settings of one connection, of which those that were given win."""
    short = deadline / config.REMOTE_STALL_SHARE
    return {
        "connect_timeout": timedelta(seconds=min(config.REMOTE_CONNECT, short)),
        "read_timeout": timedelta(seconds=min(config.REMOTE_STALL, short)),
        "timeout": timedelta(seconds=deadline),
        **given,
    }


def _open_other(
    url: str,
    *,
    endpoint: str | None,
    anonymous: bool,
    options: dict[str, Any],
    deadline: float,
    offline: bool,
    known_dir: Path | None,
) -> RemoteStorage:
    """The same through fsspec, for reading."""
    try:
        from shardfs.storage.fsspec_objects import open_fsspec
        from shardfs.storage.known import Known
        from shardfs.storage.remote import RemoteStorage
        from shardfs.storage.requests import Requests
    except ImportError as error:
        raise MissingSystemError(f"{_NO_FSSPEC} ({error})") from error
    _check_deadline(deadline)
    shown = without_secrets(url)
    asking = Requests(shown, deadline=deadline, offline=offline)
    objects = open_fsspec(url, shown, asking, endpoint=endpoint, anonymous=anonymous, options=options)
    known = None if known_dir is None else Known(known_dir, far_identity(url, endpoint))
    return RemoteStorage(objects, shown, asking, known)


def _check_deadline(deadline: float) -> None:
    if not config.REMOTE_DEADLINE_LEAST <= deadline <= config.REMOTE_DEADLINE_MOST:
        raise BadSettingError(f"a deadline of {deadline:g} s: {_DEADLINES}")
