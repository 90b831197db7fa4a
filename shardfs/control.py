"""How a command reaches the process that serves a mount: where its socket is, what is said there, and the asking.

A request is one line of JSON, `{"command": text, "arguments": {...}}`, the answer another: `{"answer": ...}` or
`{"error": {"kind", "errno", "text", "fields"}}`. Plain and synchronous. Knows nothing of what commands do, nor of trio:
the other end is `control_server`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from shardfs import config, daemon, errors
from shardfs.errors import MountError, ShardfsError, StorageError

ENDING = ".sock"

_CREDENTIALS = struct.Struct("=iII")
"""struct ucred of unix(7): process, user, group."""

_FIELDS = {"file": str, "reason": str, "key": str, "offset": int, "pid": int}
"""What errors have besides their text."""


# --- what is said -----------------------------------------------------------------------------------------------------


def request(command: str, arguments: dict[str, Any]) -> bytes:
    """The line that asks for a command."""
    return json.dumps({"command": command, "arguments": arguments}).encode("ascii") + b"\n"


def parse_request(line: bytes) -> tuple[str, dict[str, Any]]:
    """A command and its arguments. ValueError for what is no request."""
    try:
        said = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(said, dict) or not isinstance(said.get("command"), str):
        raise ValueError("no command in it")
    arguments = said.get("arguments", {})
    if not isinstance(arguments, dict):
        raise ValueError("its arguments are no object")
    return said["command"], arguments


def answer(value: Any) -> bytes:
    """The line that says what came of it. TypeError, ValueError for what is no JSON."""
    return json.dumps({"answer": value}).encode("ascii") + b"\n"


def refusal(error: ShardfsError) -> bytes:
    """The line that says why nothing came of it."""
    return json.dumps({"error": error_as_json(error)}).encode("ascii") + b"\n"


def error_as_json(error: ShardfsError) -> dict[str, Any]:
    """An error for the way through a socket: its class, errno and text, and what else it says of itself."""
    fields = {name: value for name, value in vars(error).items() if name in _FIELDS}
    return {"kind": type(error).__name__, "errno": error.errno, "text": str(error), "fields": fields}


def error_from_json(said: Any) -> ShardfsError:
    """The same error at the other end: of its class where that is one of ours, else a ShardfsError of its errno."""
    if not isinstance(said, dict):
        return StorageError("a mount gave an answer that makes no sense")
    kind = getattr(errors, str(said.get("kind")), None) if said.get("kind") in errors.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, ShardfsError)):
        kind = ShardfsError
    # not by its own constructor: each takes something else, and what they make of it is what was sent
    made: ShardfsError = kind.__new__(kind)
    made.args = (str(said.get("text", "")),)
    made.errno = code if type(code := said.get("errno")) is int else errno.EIO
    fields = said.get("fields")
    given: dict[str, Any] = fields if isinstance(fields, dict) else {}
    for name, wanted in _FIELDS.items():
        if name in given and (given[name] is None or type(given[name]) is wanted):
            setattr(made, name, given[name])
    try:
        str(made)
    except AttributeError:  # what its class speaks of was not sent
        return StorageError(str(said.get("text", "")), made.errno)
    return made


# --- where it is said -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def directory(path: Path, uid: int) -> Iterator[str]:
    """The short name, for as long as the block lasts, of a directory in which nobody but `uid` can have put anything.

    A socket's whole path may have 107 bytes, which a runtime directory of its own easily exceeds; and what is held open
    cannot be exchanged after it was looked at. OSError.
    """
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not daemon.is_ours(os.fstat(descriptor), uid):
            raise PermissionError(errno.EPERM, "others may write to it", str(path))
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class _Connected(Protocol):
    """A socket, of trio or not."""

    def getsockopt(self, level: int, name: int, size: int, /) -> bytes: ...


def peer(end: _Connected) -> int:
    """Who is at the other end: their user id. OSError."""
    _, uid, _ = _CREDENTIALS.unpack(end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return int(uid)


# --- asking -----------------------------------------------------------------------------------------------------------


def ask(
    mountpoint: str | os.PathLike[str],
    command: str,
    arguments: dict[str, Any] | None = None,
    seconds: float | None = config.CONTROL_ANSWER,
) -> Any:
    """Have the mount at `mountpoint` do something, and return what came of it.

    `seconds` bounds the wait for the answer; None waits as long as the process lives that serves the mount. Whatever
    the mount raised is raised here, as the ShardfsError it was; MountError where there is no mount, it has died, or it
    does not answer in time (then with errno ETIMEDOUT).
    """
    path = daemon.resolved(mountpoint)
    mounted = daemon.mounted_at(path)
    owner = os.geteuid() if mounted is None or mounted.owner is None else mounted.owner
    if os.geteuid() not in (0, owner):
        raise MountError(f"{path} was mounted by user {owner}: only that user and root can command it")
    limit = None if seconds is None else time.monotonic() + seconds
    try:
        end = _connected(path, owner, limit)
        if end is None:
            raise _unreachable(path, mounted)
        with end:
            _wait(end, limit)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may refuse before it listens
                end.sendall(request(command, arguments or {}))
            line = _line(end, limit)
    except (TimeoutError, BlockingIOError) as error:  # the second: so many ask that one more cannot even queue
        silent = MountError(f"the mount at {path} does not answer")
        silent.errno = errno.ETIMEDOUT
        raise silent from error
    except OSError as error:
        raise MountError(f"asking the mount at {path}: {error.strerror or error}") from error
    return _said(path, line)


def _unreachable(path: str, mounted: daemon.Mounted | None) -> MountError:
    if mounted is None or mounted.fstype != daemon.FSTYPE:
        return MountError(f"no shardfs mount at {path}")
    return MountError(f"the mount at {path} takes no commands: its process has died, or has nowhere for a socket")


_NOBODY = (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, PermissionError)
"""What connecting raises where nobody listens, or nobody who may."""


def _connected(path: str, owner: int, limit: float | None) -> socket.socket | None:
    """A connection to the process that serves `path`; None where none listens. OSError."""
    for place in daemon.runtime_directories(owner):
        with contextlib.ExitStack() as stack:
            end = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC))
            _wait(end, limit)
            with contextlib.suppress(*_NOBODY), directory(place, owner) as short:
                end.connect(f"{short}/{daemon.file_name(path)}{ENDING}")
                # in a directory of theirs a user may have put a link to anything that listens
                if peer(end) == owner:
                    stack.pop_all()
                    return end
    return None


def _wait(end: socket.socket, limit: float | None) -> None:
    """Bound the next step. TimeoutError where there is no time left."""
    if limit is not None:
        left = limit - time.monotonic()
        if left <= 0:
            raise TimeoutError
        end.settimeout(left)


def _line(end: socket.socket, limit: float | None) -> bytes:
    """What is said up to the end of the line, or up to the end. OSError."""
    said = bytearray()
    while not said.endswith(b"\n"):
        _wait(end, limit)
        more = end.recv(1 << 16)
        if not more:
            break
        said += more
        if len(said) > config.CONTROL_REPLY:
            raise OSError(errno.EMSGSIZE, "its answer has no end")
    return bytes(said)


def _said(path: str, line: bytes) -> Any:
    if not line.endswith(b"\n"):
        raise MountError(f"the mount at {path} ended before it answered")
    try:
        said = json.loads(line)
        if "error" not in said:
            return said["answer"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MountError(f"the mount at {path} gave an answer that makes no sense") from error
    raise error_from_json(said["error"])
