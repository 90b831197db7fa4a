"""The metrics of a mount over HTTP, for programs that collect them. Knows nothing of what is in them.

One request a connection, `GET /metrics` and nothing else. Whatever a client does is between it and its own task here.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable

import trio

from shardfs import config
from shardfs.errors import BadSettingError, MountError

log = logging.getLogger("shardfs")

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What accepting a client may fail of for a while."""

_RETRY = 0.1


def listening(address: str) -> socket.socket:
    """A socket for `HOST:PORT`, `[HOST]:PORT` or a port of this machine alone. BadSettingError, MountError."""
    host, port = _parsed(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(config.METRICS_CLIENTS)
    except OSError as error:
        made.close()
        reason = os.strerror(error.errno or errno.EIO)
        raise MountError(f"metrics cannot be served at {address}: {reason}") from error
    if not ipaddress.ip_address(host).is_loopback:
        log.warning("metrics are served at %s, to whoever can reach it", address)
    return made


def address_of(end: socket.socket) -> str:
    """Where a socket listens, as `listening` takes it."""
    host, port = end.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = "127.0.0.1" if host in ("", "localhost") else host.strip("[]")
    try:
        ipaddress.ip_address(host)
        number = int(port) if port.isascii() and port.isdigit() else -1
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 16:
        raise BadSettingError(f"--metrics-addr {address}: write an address like 127.0.0.1:9464, or a port")
    return host, number


@contextlib.asynccontextmanager
async def served(end: socket.socket | None, text: Callable[[], str]) -> AsyncIterator[None]:
    """While inside, who connects to `end` gets what `text` says; nothing is served without `end`."""
    if end is None:
        yield
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_accept, trio.socket.from_stdlib_socket(end), text, nursery)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


async def _accept(end: trio.socket.SocketType, text: Callable[[], str], nursery: trio.Nursery) -> None:
    places = trio.Semaphore(config.METRICS_CLIENTS)
    while True:
        await places.acquire()  # who comes behind the last waits in the kernel's queue
        try:
            client, _ = await end.accept()
        except OSError as error:
            places.release()
            if error.errno not in _SHORT_OF:
                log.error("metrics are no longer served: %s", error)
                return
            await trio.sleep(_RETRY)
            continue
        nursery.start_soon(_client, client, text, places)


async def _client(end: trio.socket.SocketType, text: Callable[[], str], places: trio.Semaphore) -> None:
    try:
        with trio.move_on_after(config.METRICS_IDLE):
            async with trio.SocketStream(end) as stream:
                await stream.send_all(_answer(await _request(stream), text))
    except (trio.BrokenResourceError, OSError) as error:
        log.debug("a client of the metrics: %r", error)
    except Exception:
        log.exception("a client of the metrics")
    finally:
        places.release()


async def _request(stream: trio.SocketStream) -> bytes:
    """What a client says before the first empty line, or as much as it may."""
    said = bytearray()
    while b"\r\n\r\n" not in said and b"\n\n" not in said and len(said) < config.METRICS_REQUEST:
        more = await stream.receive_some(config.METRICS_REQUEST)
        if not more:
            break
        said += more
    return bytes(said)


def _answer(request: bytes, text: Callable[[], str]) -> bytes:
    words = request.split(b"\n", 1)[0].split()
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return _response("400 Bad Request", "no HTTP request\n")
    if words[0] not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", "metrics can only be read\n", "Allow: GET, HEAD\r\n")
    if words[1].partition(b"?")[0] != b"/metrics":
        return _response("404 Not Found", "there is /metrics only\n")
    return _response("200 OK", text(), head_only=words[0] == b"HEAD")


def _response(status: str, text: str, more: str = "", head_only: bool = False) -> bytes:
    body = text.encode("utf-8", "backslashreplace")
    head = f"HTTP/1.1 {status}\r\nContent-Type: {_TYPE}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n{more}\r\n".encode("ascii") + (b"" if head_only else body)
