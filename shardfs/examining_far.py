"""What keeps a store far away from being used, or makes it slow: credentials, clocks, the line to it, conditions.

Reads; only `conditions`, which is asked for, puts an object of its own there and removes it again. Knows nothing of the
machine (`examining`), nor of what is printed.
"""

from __future__ import annotations

import email.utils
import errno
import os
import re
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from shardfs import config
from shardfs.drivers.base import StoresObjects
from shardfs.errors import ShardfsError, StorageError
from shardfs.examining import FAILURE, NOTE, OK, WARNING, Finding
from shardfs.model import Entry
from shardfs.storage.base import Conditional
from shardfs.storage.urls import without_secrets
from shardfs.store import Store

_S3, _GS, _AZ = ("s3", "s3a"), ("gs", "gcs"), ("az", "azure", "abfs", "abfss")

_VARIABLES = {
    _S3: ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    _GS: ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_KEY"),
    _AZ: ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_CLIENT_ID", "AZURE_STORAGE_SAS_KEY"),
}
"""Variables one of which says who asks, by the schemes of each cloud."""

_FILES = {
    _S3: ("~/.aws/credentials", "~/.aws/config"),
    _GS: ("~/.config/gcloud/application_default_credentials.json",),
    _AZ: ("~/.azure",),
}

_ROLE = re.compile(r"169\.254\.169\.254|metadata|credential", re.IGNORECASE)
"""Of the message where the machine's own role was asked for, for want of anything else, and there is none."""

_HOSTS = {_S3: "https://s3.amazonaws.com", _GS: "https://storage.googleapis.com"}


def refused(url: str, error: Exception, anonymous: bool) -> Finding | None:
    """The finding where it is the credentials of which a store fell short; None for any other error."""
    if not anonymous and has_credentials(url) is False and _ROLE.search(str(error)):
        text = "there are none in the environment, and this machine has no role of its own"
        return Finding("credentials", FAILURE, text, _right_ones(url, anonymous))
    if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM):
        return Finding("credentials", FAILURE, str(error), _right_ones(url, anonymous))
    return None


def _right_ones(url: str, anonymous: bool) -> str:
    cloud = _cloud(url)
    if cloud is None:
        return "give the user and password in the URL, as https://user:password@host/, or ask who runs the server"
    names = " and AWS_SECRET_ACCESS_KEY" if cloud == _S3 else ""
    first = f"export {_VARIABLES[cloud][0]}{names} of a user who may list and read it"
    others = "leave --anonymous out" if anonymous else "--anonymous for a store that is open to all"
    return f"{first}; {others}"


def _cloud(url: str) -> tuple[str, ...] | None:
    scheme = urlsplit(url).scheme
    return next((schemes for schemes in _VARIABLES if scheme in schemes), None)


def has_credentials(url: str) -> bool | None:
    """Whether something here says who asks; None where a store wants no such, or that cannot be told."""
    cloud = _cloud(url)
    if cloud is None:
        return None
    named = any(os.environ.get(name) for name in _VARIABLES[cloud])
    return named or any(Path(path).expanduser().exists() for path in _FILES[cloud])


def examine_credentials(url: str, anonymous: bool) -> Iterator[Finding]:
    """Of a store that has answered."""
    if anonymous:
        yield Finding("credentials", OK, "none are given (--anonymous), and none were asked for")
    elif has_credentials(url) is False:
        yield Finding("credentials", OK, "those of the machine's own role, or none: the store takes it")
    else:
        yield Finding("credentials", OK, "the store takes them")


def examine_clock(url: str, endpoint: str | None, clock: Callable[[], float] = time.time) -> Iterator[Finding]:
    """The store's clock beside this one: object stores refuse requests that are 15 minutes too early or too late."""
    where = _server(url, endpoint)
    if where is None:
        return
    try:
        there = server_time(where)
    except (OSError, ValueError) as error:
        text = f"{without_secrets(where)} does not tell its time: {_reason(error)}"
        yield Finding("store clock", NOTE, text, f"look at it by hand: curl -sI {shlex.quote(without_secrets(where))}")
        return
    ahead = there - clock()
    if abs(ahead) > config.CLOCK_AHEAD:
        way = "ahead of" if ahead > 0 else "behind"
        text = f"the store's clock is {abs(ahead):,.0f} s {way} this one: its answers and signatures are refused"
        yield Finding("store clock", WARNING, text, "timedatectl set-ntp true on whichever of the two is wrong")
    else:
        yield Finding("store clock", OK, f"the store's clock and this one are {abs(ahead):.0f} s apart")


def _server(url: str, endpoint: str | None) -> str | None:
    """The URL of a store's server; None where that cannot be told."""
    parts = urlsplit(url)
    if parts.scheme in ("http", "https"):
        return without_secrets(f"{parts.scheme}://{parts.netloc}/")
    given = endpoint or (os.environ.get("AWS_ENDPOINT_URL") if parts.scheme in _S3 else None)
    return given or next((host for schemes, host in _HOSTS.items() if parts.scheme in schemes), None)


def server_time(url: str) -> float:
    """What a web server says that it is, in seconds since the epoch. OSError, ValueError."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=config.STORE_CLOCK) as answer:
            said = answer.headers.get("Date")
    except urllib.error.HTTPError as error:  # whatever it thinks of the request
        said = error.headers.get("Date")
        error.close()
    if said is None:
        raise ValueError("its answers have no date")
    return email.utils.parsedate_to_datetime(said).timestamp()


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)


def examine_throughput(store: Store, entries: list[Entry]) -> Iterator[Finding]:
    """How fast the largest object comes: as much of it as fits into the time and the bytes that there are for that."""
    driver = store.driver
    largest = max(entries, key=lambda entry: entry.stored_bytes, default=None)
    if largest is None or not isinstance(driver, StoresObjects):
        return
    storage = driver.storage
    storage = getattr(storage, "inner", storage)  # not what the cache on disk has
    try:
        with storage.open(driver.objects(largest)[0][0]) as reader:  # whichever version it has by now
            got, begun = 0, time.monotonic()
            while got < config.THROUGHPUT_BYTES and time.monotonic() - begun < config.THROUGHPUT_SECONDS:
                piece = reader.read(config.READ_SLICE)
                got += len(piece)
                if not piece:
                    break
        seconds = max(time.monotonic() - begun, 1e-6)
    except (ShardfsError, OSError) as error:
        yield Finding("throughput", FAILURE, f"{error}", "see that this user may read every object of the store")
        return
    rate = got / seconds
    text = f"{got / 1e6:.1f} MB of one object in {seconds:.2f} s: {rate / 1e6:.1f} MB/s"
    # a small object is all latency, which is told of by itself
    if rate < config.THROUGHPUT_LOW and seconds > 2 * config.LATENCY_HIGH:
        fix = (
            f"fetch ahead: shardfs warm {shlex.quote(without_secrets(store.url))}" if store.far else "use a faster disk"
        )
        yield Finding("throughput", WARNING, text, fix)
    else:
        yield Finding("throughput", OK, text)


def examine_conditions(store: Store, tried: bool) -> Iterator[Finding]:
    """Whether two writers can lose each other's keys. With `tried` it is tried out."""
    storage = getattr(store.driver, "storage", None)
    if not store.driver.writable or not store.far or not isinstance(storage, Conditional):
        return
    if not tried:
        text = "whether the store compares versions before it replaces an object was not tried"
        yield Finding(
            "conditions", NOTE, text, "the same with --rw: it puts an object of its own there, and removes it"
        )
        return
    try:
        compares = storage.compares()
    except StorageError as error:
        fix = "let this user put and delete objects there, or mount it without --rw"
        yield Finding("conditions", FAILURE, f"it cannot be written to: {error}", fix)
        return
    if compares:
        yield Finding("conditions", OK, "the store compares versions before it replaces an object")
    else:
        text = "the store ignores conditions (If-Match, If-None-Match): two writers could lose each other's keys"
        yield Finding("conditions", WARNING, text, "mount it with --rw --single-writer, if nobody else writes there")
