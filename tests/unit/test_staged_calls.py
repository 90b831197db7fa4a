"""Which calls of the staging area run on the event loop, and what they may believe."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from shardfs import config
from shardfs.errors import StaleShardError
from shardfs.staged_calls import StagedCalls
from shardfs.staging import ROOT, StagedDirectory, StagedFile, StagingArea

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[StagedDirectory]:
    area = StagingArea.open("file:///store", root=tmp_path)
    yield area.create("key")
    area.close()


def serve(work: Callable[[StagedCalls], Awaitable[None]]) -> None:
    async def main() -> None:
        calls = StagedCalls()
        async with calls.running():
            await work(calls)

    trio.run(main)


def test_a_quick_call_is_made_on_the_loop(staged: StagedDirectory) -> None:
    async def work(calls: StagedCalls) -> None:
        assert await calls.quick(staged, threading.get_ident) == threading.get_ident()

    serve(work)


def test_a_directory_that_somebody_works_in_stops_nobody_else(staged: StagedDirectory) -> None:
    begun, end = threading.Event(), threading.Event()

    def hold() -> None:
        with staged.held():
            begun.set()
            end.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    begun.wait(20)

    async def work(calls: StagedCalls) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(calls.quick, staged, lambda: staged.create(ROOT, b"file").close())
            for _ in range(20):  # the loop goes on
                await trio.sleep(0.005)
            end.set()
        assert staged.names() == [b"file"]

    serve(work)
    holder.join()


def test_after_a_slow_call_the_next_ones_go_to_workers_for_a_while(
    staged: StagedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "STAGED_SLOW", 0.05)
    monkeypatch.setattr(config, "STAGED_SLOW_SHARE", 5)

    async def work(calls: StagedCalls) -> None:
        await calls.quick(staged, lambda: time.sleep(0.06))
        assert await calls.quick(staged, threading.get_ident) != threading.get_ident()
        await trio.sleep(0.5)
        assert await calls.quick(staged, threading.get_ident) == threading.get_ident()

    serve(work)


def test_a_seal_between_a_call_and_its_turn_in_a_worker_is_noticed(staged: StagedDirectory) -> None:
    staged.create(ROOT, b"file").close()
    number = staged.children()[0].id

    async def work(calls: StagedCalls) -> None:
        begun, end = threading.Event(), threading.Event()

        def seal() -> None:
            with staged.held():
                begun.set()
                end.wait(20)
                staged.seal.begin("key", "token")
                staged.seal.done("v1", {number: 0}, {}.get)

        sealing = threading.Thread(target=seal)
        sealing.start()
        begun.wait(20)

        async def hide() -> None:
            with pytest.raises(StaleShardError):
                await calls.quick(staged, lambda: staged.hide(7))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hide)
            await trio.sleep(0.05)
            end.set()
        sealing.join()
        assert not staged.hides(7)

    serve(work)


def test_a_thousand_closes_are_waited_for_and_a_writer_is_not(staged: StagedDirectory) -> None:
    """The kernel sends 256 closes at once: the last of many came after all the time there was."""
    files = [staged.create(ROOT, b"%06d.bin" % number) for number in range(8)]
    calls = StagedCalls()

    async def close(*closed: StagedFile) -> None:
        for file in closed:
            await trio.sleep(config.SEAL_CLOSING * 0.9)
            await calls.closing(staged, file.close)

    async def main() -> None:
        async with calls.running(), trio.open_nursery() as nursery:
            nursery.start_soon(close, *files)
            nursery.start_soon(calls.closed, staged)  # two may wait
            await calls.closed(staged)
            assert staged.writers == 0
            assert trio.current_time() - began > 7 * config.SEAL_CLOSING * 0.9
            with staged.create(ROOT, b"000009.bin"):
                before = trio.current_time()
                await calls.closed(staged)
                assert trio.current_time() - before < 2 * config.SEAL_CLOSING

    clock = trio.testing.MockClock(autojump_threshold=0)
    began = clock.current_time()
    trio.run(main, clock=clock)


def test_who_goes_on_opening_and_closing_is_not_waited_for_for_ever(staged: StagedDirectory) -> None:
    calls = StagedCalls()

    async def go_on() -> None:
        for number in range(10_000):
            file = staged.create(ROOT, b"%06d.bin" % number)
            await trio.sleep(config.SEAL_CLOSING / 2)
            with staged.create(ROOT, b"%06d.x.bin" % number):
                await calls.closing(staged, file.close)
                await trio.sleep(config.SEAL_CLOSING / 2)

    async def main() -> None:
        async with calls.running(), trio.open_nursery() as nursery:
            nursery.start_soon(go_on)
            before = trio.current_time()
            await trio.sleep(0.01)
            await calls.closed(staged)
            assert trio.current_time() - before <= config.SEAL_CLOSING_MOST + 1
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
