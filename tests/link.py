"""A network between a client and a server on loopback: a TCP proxy in a process of its own, which delays and counts.

    python -m tests.link PORT TARGET_PORT DELAY RATE    bytes that come in leave again DELAY seconds later, each way;
                                                        from the server at most RATE of them a second (0: no limit)

A connection that begins with `STATS` is answered with what was counted so far, as JSON. All connections share the rate.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
_PIECE = 256 * 1024
_WAITING = 256
"""Pieces under way in one direction of a connection."""
_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")


@dataclass(frozen=True)
class Counted:
    """What has passed so far."""

    down: int
    """Bytes from the server."""
    up: int
    requests: list[str]
    """Method and path of each, in their order."""

    def gets(self, ending: str) -> list[str]:
        """The paths, without queries, of objects that were asked for whose name ends so; once for each time."""
        asked = (line.partition(" ")[2].partition("?")[0] for line in self.requests if line.startswith("GET "))
        return [path for path in asked if path.endswith(ending)]


@dataclass(frozen=True)
class Link:
    """A proxy that answers at `endpoint`."""

    endpoint: str
    port: int

    def counted(self) -> Counted:
        with socket.create_connection(("127.0.0.1", self.port), 20) as asking:
            asking.sendall(b"STATS")
            answer = b""
            while piece := asking.recv(1 << 16):
                answer += piece
        return Counted(**json.loads(answer))


@contextlib.contextmanager
def link(endpoint: str, delay: float = 0.0, rate: float = 0.0) -> Iterator[Link]:
    """A proxy in front of the server at `endpoint` (http://127.0.0.1:PORT), ended with the block; `rate` in bytes a
    second, from the server."""
    from tests.servers import free_port, running

    port = free_port()
    target = endpoint.rpartition(":")[2]
    command = [sys.executable, "-m", "tests.link", str(port), target, str(delay), str(rate)]
    with running(command, port, PYTHONPATH=str(REPOSITORY)):
        yield Link(f"http://127.0.0.1:{port}", port)


class _Proxy:
    def __init__(self, target: int, delay: float, rate: float) -> None:
        self._target = target
        self._delay = delay
        self._rate = rate
        self._busy_until = 0.0
        """When the last byte that is under way from the server has left it."""
        self._counted: dict[str, Any] = {"down": 0, "up": 0, "requests": []}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(_PIECE)
        if first == b"STATS":
            writer.write(json.dumps(self._counted).encode())
            writer.close()
            return
        if not first:
            writer.close()
            return
        far, to = await asyncio.open_connection("127.0.0.1", self._target, limit=4 * _PIECE)
        await asyncio.gather(self._pass("up", reader, to, first), self._pass("down", far, writer, b""))

    async def _pass(self, way: str, source: asyncio.StreamReader, to: asyncio.StreamWriter, first: bytes) -> None:
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING)
        loop = asyncio.get_running_loop()

        async def leave() -> None:
            while True:
                due, piece = await waiting.get()
                if due:
                    await asyncio.sleep(max(0.0, due - loop.time()))
                if not piece:
                    to.close()
                    return
                to.write(piece)
                await to.drain()

        leaving = asyncio.ensure_future(leave())
        piece = first or await self._read(source)
        while piece:
            self._counted[way] += len(piece)
            if way == "up":
                found = _REQUEST.findall(piece)
                self._counted["requests"] += [f"{method.decode()} {path.decode()}" for method, path in found]
            await waiting.put((self._due(way, len(piece)), piece))
            piece = await self._read(source)
        await waiting.put((self._due(way, 0), b""))
        with contextlib.suppress(OSError):
            await leaving

    def _due(self, way: str, size: int) -> float:
        """When a piece that has just come may leave; 0.0: at once."""
        if not self._delay and not (self._rate and way == "down"):
            return 0.0
        now = asyncio.get_running_loop().time()
        if self._rate and way == "down":
            now = self._busy_until = max(now, self._busy_until) + size / self._rate
        return now + self._delay

    @staticmethod
    async def _read(source: asyncio.StreamReader) -> bytes:
        try:
            return await source.read(_PIECE)
        except OSError:
            return b""


async def _main(port: int, target: int, delay: float, rate: float) -> None:
    proxy = _Proxy(target, delay, rate)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=4 * _PIECE, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
