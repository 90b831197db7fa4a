"""A control socket served by a thread of the test process, for asking it from the test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import trio

from shardfs.control_server import Handlers, served


@contextlib.contextmanager
def serving(make: Handlers | Callable[[], Handlers], mountpoint: str = "/m") -> Iterator[None]:
    """While inside, `control.ask(mountpoint, ...)` reaches these handlers (or those made inside the trio run)."""
    ready: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []
    failed: list[BaseException] = []
    up = threading.Event()

    async def main() -> None:
        async with served(mountpoint, make if isinstance(make, dict) else make()):
            end = trio.Event()
            ready.append((trio.lowlevel.current_trio_token(), end))
            up.set()
            await end.wait()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        assert up.wait(20)
        assert ready, failed
        yield
    finally:
        for token, end in ready:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(end.set)
        thread.join(20)
        assert not thread.is_alive()
    assert not failed, failed
