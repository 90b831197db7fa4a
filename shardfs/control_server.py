"""The socket of a mount, served on its event loop: who may ask, how much and how long. Knows nothing of what is asked.

Whatever a client does (half lines, endless ones, silence, going away) is between it and its own task here: the mount
does not notice. A command that has begun goes on to its end, also when its client has gone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from shardfs import config, control, daemon
from shardfs.errors import BadSettingError, ShardfsError, StorageError, UnknownCommandError

log = logging.getLogger("shardfs")

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
"""Does one command, by its arguments, and returns what JSON can say. Arguments come from outside: BadSettingError."""

Handlers = dict[str, Handler]

_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What accepting a client may fail of for a while."""

_RETRY = 0.1


@contextlib.asynccontextmanager
async def served(mountpoint: str, handlers: Handlers) -> AsyncIterator[None]:
    """While inside, `control.ask` reaches `handlers` by `mountpoint` (as `daemon.resolved` gives it).

    Its end waits for commands under way that cannot be cancelled. Where no socket can be made that is logged, and the
    mount lives without.
    """
    with contextlib.ExitStack() as stack:
        listening = _listening(mountpoint, stack)
        if listening is None:
            log.warning("nowhere for a socket: commands will not reach this mount")
            yield
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_Server(handlers, nursery).accept, trio.socket.from_stdlib_socket(listening))
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()


def _listening(mountpoint: str, stack: contextlib.ExitStack) -> socket.socket | None:
    """A socket that listens until the stack is unwound, in the first directory that takes one."""
    uid = os.geteuid()
    for place in daemon.runtime_directories(uid, make=True):
        try:
            return stack.enter_context(_bound(place, uid, daemon.file_name(mountpoint) + control.ENDING))
        except OSError as error:
            log.debug("no socket in %s: %s", place, error)
    return None


@contextlib.contextmanager
def _bound(place: Path, uid: int, name: str) -> Iterator[socket.socket]:
    """A listening socket under a name, in place of whatever a daemon that died has left there. OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as end:
        os.fchmod(end.fileno(), 0o600)  # taken over by the name: nobody gets in between making and chmod
        with control.directory(place, uid) as short:
            temporary = f"{short}/.{os.getpid()}{control.ENDING}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            end.bind(temporary)
            end.listen(128)
            made = os.lstat(temporary)
            os.rename(temporary, f"{short}/{name}")
        try:
            yield end
        finally:
            with contextlib.suppress(OSError), control.directory(place, uid) as short:
                found = os.lstat(f"{short}/{name}")
                if (found.st_dev, found.st_ino) == (made.st_dev, made.st_ino):  # not that of a later daemon
                    os.unlink(f"{short}/{name}")


@dataclass(slots=True)
class _Server:
    """Takes clients, and answers each in a task of its own."""

    handlers: Handlers
    nursery: trio.Nursery
    clients: int = 0

    async def accept(self, listening: trio.socket.SocketType) -> None:
        while True:
            try:
                end, _ = await listening.accept()
            except OSError as error:
                if error.errno not in _SHORT_OF:
                    log.error("commands no longer reach this mount: %s", error)
                    return
                await trio.sleep(_RETRY)
                continue
            self.clients += 1
            self.nursery.start_soon(self._client, end)

    async def _client(self, end: trio.socket.SocketType) -> None:
        try:
            async with trio.SocketStream(end) as stream:
                refused = self._refused(end)
                if refused is None:
                    await self._talk(stream)
                else:
                    await _say(stream, control.refusal(refused))
        except (trio.BrokenResourceError, trio.TooSlowError, OSError) as error:
            log.debug("a client of the mount's socket: %r", error)
        except Exception:
            log.exception("a client of the mount's socket")
        finally:
            self.clients -= 1

    def _refused(self, end: trio.socket.SocketType) -> ShardfsError | None:
        """Why a client is not served, if it is not."""
        uid = control.peer(end)
        if uid not in (0, os.geteuid()):
            log.warning("user %d asked this mount for something, and was refused", uid)
            return StorageError("only the user who mounted it and root can command a mount", errno.EPERM)
        if self.clients > config.CONTROL_CLIENTS:
            return StorageError(f"{config.CONTROL_CLIENTS} clients are being served: try again", errno.EBUSY)
        return None

    async def _talk(self, stream: trio.SocketStream) -> None:
        """Answer one request after the other until the client ends, is idle or makes no sense."""
        pending = bytearray()
        while True:
            line = await _line(stream, pending)
            if line is None:
                return
            if not line.endswith(b"\n"):
                await _say(stream, control.refusal(BadSettingError("a request that has no end")))
                return
            await _say(stream, await self._answer(line))

    async def _answer(self, line: bytes) -> bytes:
        try:
            command, arguments = control.parse_request(line)
        except ValueError as error:
            return control.refusal(BadSettingError(f"no request: {error}"))
        handler = self.handlers.get(command)
        if handler is None:
            return control.refusal(UnknownCommandError(f"this mount knows no command {command[:100]!r}"))
        try:
            said = control.answer(await handler(arguments))
            if len(said) > config.CONTROL_REPLY:
                raise StorageError("the answer is too large to be given", errno.EMSGSIZE)
            return said
        except ShardfsError as error:
            return control.refusal(error)
        except OSError as error:
            return control.refusal(StorageError(str(error), error.errno or errno.EIO))
        except Exception as error:
            log.exception("the command %s", command)
            return control.refusal(StorageError(f"unexpected {type(error).__name__}: {error}; see the mount's log"))


async def _line(stream: trio.SocketStream, pending: bytearray) -> bytes | None:
    """The next line, with its end; without, if that does not come soon enough in bytes; None if no line comes.

    `pending` holds what has come behind it. trio.TooSlowError for one that does not come soon enough in time.
    """
    searched = 0
    with trio.fail_after(config.CONTROL_IDLE):
        while (at := pending.find(b"\n", searched)) < 0:
            searched = len(pending)
            if searched > config.CONTROL_REQUEST:
                return bytes(pending)
            more = await stream.receive_some(config.CONTROL_REQUEST)
            if not more:
                return None
            pending += more
    line = bytes(pending[: at + 1])
    del pending[: at + 1]
    return line


async def _say(stream: trio.SocketStream, line: bytes) -> None:
    with trio.fail_after(config.CONTROL_IDLE):
        await stream.send_all(line)
