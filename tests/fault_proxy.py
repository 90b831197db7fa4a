"""A proxy on loopback that does to a server's answers what networks and broken servers do. HTTP/1.1, in trio.

It runs in a thread of the test, which says at any time what goes wrong from then on, and how often. Each connection
carries requests one after the other; what is done to a request is decided when it has come in.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import trio

PAGE = b"<html><head><title>Sign in</title></head><body><p>Welcome to this network.</p></body></html>\n"

FAULTS = (
    *("refuse", "black-hole", "latency", "drip", "reset", "reset-mid-body", "early-end"),
    *("status", "flip", "short", "page"),
)


@dataclass
class Fault:
    """What is done to requests. `times` of them (None: all); `seconds` for latency, `status` for a status; `only` says
    which requests are meant, by method and target."""

    kind: str
    times: int | None = None
    seconds: float = 0.0
    status: int = 503
    headers: bytes = b""
    only: Callable[[str, str], bool] = lambda method, target: True


@dataclass
class FaultProxy:
    """`endpoint` is where clients go. `requests` are method and target of all that came so far."""

    upstream: str
    endpoint: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    _fault: Fault | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _token: trio.lowlevel.TrioToken | None = None
    _scope: trio.CancelScope | None = None
    _connections: trio.Event | None = None
    _listener: trio.SocketListener | None = None
    _address: tuple[str, int] = ("127.0.0.1", 0)

    # --- for the test, in any thread ------------------------------------------------------------------------------

    def fail(self, kind: str, times: int | None = None, **more: object) -> None:
        """From now on this goes wrong. Refusing cuts the connections that are open, too."""
        assert kind in FAULTS, kind
        with self._lock:
            self._fault = Fault(kind, times, **more)  # type: ignore[arg-type]
        if kind == "refuse":
            self._on_loop(self._refuse)

    def heal(self) -> None:
        """From now on nothing goes wrong. Connections that hang are closed."""
        with self._lock:
            refused = self._fault is not None and self._fault.kind == "refuse"
            self._fault = None
        self._on_loop(self._listen if refused else self._cut)

    def _take(self, method: str, target: str) -> Fault | None:
        """What is to be done to this request."""
        with self._lock:
            self.requests.append((method, target))
            fault = self._fault
            if fault is None or not fault.only(method, target):
                return None
            if fault.times is not None:
                if fault.times <= 0:
                    return None
                fault.times -= 1
            return fault

    def _on_loop(self, work: Callable[[], object]) -> None:
        assert self._token is not None

        async def call() -> None:
            result = work()
            if hasattr(result, "__await__"):
                await result  # type: ignore[misc]

        trio.from_thread.run(call, trio_token=self._token)

    # --- on the loop ----------------------------------------------------------------------------------------------

    async def _refuse(self) -> None:
        """Close the port: whoever comes is refused by the kernel."""
        self._cut()
        if self._listener is not None:
            await self._listener.aclose()
            self._listener = None

    async def _listen(self) -> None:
        made = trio.socket.socket()
        made.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
        await made.bind(self._address)
        made.listen(128)
        self._address = made.getsockname()
        self._listener = trio.SocketListener(made)
        self._nursery.start_soon(self._accept, self._listener)

    def _cut(self) -> None:
        """End all connections."""
        if self._connections is not None:
            self._connections.set()
        self._connections = trio.Event()

    async def _accept(self, listener: trio.SocketListener) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                self._nursery.start_soon(self._serve, await listener.accept())

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection of a client."""
        group = self._connections
        assert group is not None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, group, nursery.cancel_scope)
                with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                    await self._talk(stream)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    @staticmethod
    async def _watch(cut: trio.Event, connection: trio.CancelScope) -> None:
        await cut.wait()
        connection.cancel()

    async def _talk(self, stream: trio.SocketStream) -> None:
        host = urlsplit(self.upstream)
        reader = _Reader(stream)
        server: trio.SocketStream | None = None
        try:
            while True:
                head, body = await reader.message()
                method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ", 2)
                fault = self._take(method, target)
                if fault is not None and await self._instead(fault, stream):
                    return
                if server is None:
                    server = await trio.open_tcp_stream(str(host.hostname), int(host.port or 80))
                    answers = _Reader(server)
                await server.send_all(head + body)
                answer, content = await answers.message(answer_to=method)
                if fault is not None:
                    await self._spoilt(fault, stream, answer, content)
                    if fault.kind != "flip":
                        return
                else:
                    await stream.send_all(answer + content)
        finally:
            if server is not None:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(server)

    async def _instead(self, fault: Fault, stream: trio.SocketStream) -> bool:
        """What is done in place of asking the server; True if that is all."""
        if fault.kind == "black-hole":
            await trio.sleep_forever()
        if fault.kind == "latency":
            await trio.sleep(fault.seconds)
        if fault.kind == "reset":
            _reset(stream)
            return True
        if fault.kind == "status":
            text = b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"
            head = f"HTTP/1.1 {fault.status} Busy\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n"
            await stream.send_all(head.encode() + fault.headers + b"Connection: close\r\n\r\n" + text)
            return True
        if fault.kind == "page":
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(PAGE)}\r\n"
            head += "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: close\r\n\r\n"
            await stream.send_all(head.encode() + PAGE)
            return True
        return False

    async def _spoilt(self, fault: Fault, stream: trio.SocketStream, head: bytes, body: bytes) -> None:
        """The server's answer, damaged."""
        half = len(body) // 2
        if fault.kind == "latency":
            await stream.send_all(head + body)
        elif fault.kind == "drip":
            await stream.send_all(head)
            for at in range(len(body)):
                await stream.send_all(body[at : at + 1])
                await trio.sleep(fault.seconds)
        elif fault.kind == "reset-mid-body":
            await stream.send_all(head + body[:half])
            await trio.sleep(0.05)  # else the kernel drops with the connection what the client has not read
            _reset(stream)
        elif fault.kind == "early-end":
            await stream.send_all(head + body[:half])
        elif fault.kind == "flip":
            spot = min(7, len(body) - 1)
            flipped = body[:spot] + bytes((body[spot] ^ 1,)) + body[spot + 1 :] if body else body
            await stream.send_all(head + flipped)
        elif fault.kind == "short" and not body:
            await stream.send_all(head)
        elif fault.kind == "short":
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length:")]
            lines.insert(1, f"Content-Length: {half}".encode())
            await stream.send_all(b"\r\n".join(lines) + body[:half])

    async def _run(self, ready: threading.Event) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._scope = nursery.cancel_scope
            self._cut()
            await self._listen()
            self.endpoint = f"http://127.0.0.1:{self._address[1]}"
            self._token = trio.lowlevel.current_trio_token()
            ready.set()
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    if self._listener is not None:
                        await self._listener.aclose()


def _reset(stream: trio.SocketStream) -> None:
    """Let closing it be a reset."""
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


class _Reader:
    """HTTP messages from a connection, each as its head and its body."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._held = b""

    async def _more(self) -> None:
        data = await self._stream.receive_some(1 << 18)
        if not data:
            raise EOFError
        self._held += data

    async def message(self, answer_to: str | None = None) -> tuple[bytes, bytes]:
        """EOFError at the end of the connection."""
        while b"\r\n\r\n" not in self._held:
            await self._more()
        head, _, self._held = self._held.partition(b"\r\n\r\n")
        head += b"\r\n\r\n"
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
        if answer_to == "HEAD" or head.startswith((b"HTTP/1.1 204", b"HTTP/1.1 304")):
            return head, b""
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            return head, await self._chunked()
        size = int(fields.get(b"content-length", b"0"))
        pieces = [self._held]
        came = len(self._held)
        while came < size:
            data = await self._stream.receive_some(1 << 18)
            if not data:
                raise EOFError
            pieces.append(data)
            came += len(data)
        whole = b"".join(pieces)
        self._held = whole[size:]
        return head, whole[:size]

    async def _chunked(self) -> bytes:
        """A chunked body, as it came."""
        while b"0\r\n\r\n" not in self._held:
            await self._more()
        body, end, self._held = self._held.partition(b"0\r\n\r\n")
        return body + end


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy before the server at a URL, with nothing wrong yet."""
    proxy, ready = FaultProxy(upstream), threading.Event()
    thread = threading.Thread(target=trio.run, args=(proxy._run, ready), name="fault proxy")
    thread.start()
    try:
        assert ready.wait(20), "the proxy did not start"
        yield proxy
    finally:
        token, scope = proxy._token, proxy._scope
        assert token is not None
        assert scope is not None
        token.run_sync_soon(scope.cancel)
        thread.join(20)
        assert not thread.is_alive(), "the proxy did not end"
