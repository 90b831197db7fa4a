"""Threads and their places: who computes keeps one, who only waits lends it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable

import pytest
import trio

from shardfs import config
from shardfs.workers import Workers


def run(test: Callable[[Workers], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            await test(Workers())

    trio.run(main)


def test_loads_that_wait_for_storage_lend_their_places() -> None:
    """Two shards on a disk that hung stopped the first read of every other key."""

    async def test(workers: Workers) -> None:
        gate = threading.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(5 * config.WORKERS_CPU):
                nursery.start_soon(workers.cpu, lambda: gate.wait(20), 1)
            assert await workers.cpu(lambda: "answered", 1) == "answered"
            gate.set()
        assert workers._small.total_tokens == config.WORKERS_CPU, "every place was given back"

    run(test)


def test_no_more_than_so_many_places_are_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "WORKERS_LENT", 4)
    monkeypatch.setattr(config, "LEND_AFTER", 0.01)
    running: list[int] = []

    async def test(workers: Workers) -> None:
        gate = threading.Event()

        def wait() -> None:
            running.append(1)
            gate.wait(20)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(workers.cpu, wait, 1)
            while len(running) < 4:
                await trio.sleep(0.01)
            await trio.sleep(0.1)
            assert len(running) == 4
            gate.set()
        assert len(running) == 8

    run(test)


def test_loads_that_compute_keep_their_places() -> None:
    async def test(workers: Workers) -> None:
        ended: list[float] = []

        def compute() -> None:
            while time.thread_time() - began() < 0.3:
                sum(range(1000))
            ended.append(time.monotonic())

        local = threading.local()

        def began() -> float:
            if not hasattr(local, "at"):
                local.at = time.thread_time()
            return float(local.at)

        began_last: list[float] = []
        async with trio.open_nursery() as nursery:
            for _ in range(config.WORKERS_CPU):
                nursery.start_soon(workers.cpu, compute, 1)
            await trio.sleep(0.01)
            await workers.cpu(lambda: began_last.append(time.monotonic()), 1)
        assert began_last[0] >= min(ended)

    run(test)


def test_what_work_raises_is_raised_as_it_is() -> None:
    async def test(workers: Workers) -> None:
        def fail() -> None:
            raise ValueError("as it is")

        with pytest.raises(ValueError, match="as it is"):
            await workers.cpu(fail, 1)

    run(test)


def test_work_goes_on_to_its_end_when_it_is_cancelled() -> None:
    async def test(workers: Workers) -> None:
        gate, ended = threading.Event(), []

        def work() -> None:
            gate.wait(20)
            ended.append(1)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(workers.cpu, work, 1)
                await trio.sleep(0.02)
                scope.cancel()
                gate.set()
        assert ended == [1]
        assert workers._small.total_tokens == config.WORKERS_CPU

    run(test)


@pytest.mark.parametrize("way", ["io", "cpu"])
def test_work_that_fails_leaves_nothing_behind(way: str) -> None:
    """Each load of a damaged shard left its raw bytes in memory, held by the traceback of what it raised."""

    class Held:
        pass

    async def test(workers: Workers) -> None:
        seen: list[weakref.ref[Held]] = []

        def fail() -> None:
            held = Held()
            seen.append(weakref.ref(held))
            try:
                raise ValueError("inside")
            except ValueError as error:
                raise OSError("outside") from error

        kept: OSError | None = None
        try:
            await (workers.io(fail) if way == "io" else workers.cpu(fail, 1))
        except OSError as error:
            kept = error
        assert kept is not None
        assert isinstance(kept.__cause__, ValueError)
        assert [ref() for ref in seen] == [None]

    gc.disable()  # in a mount it comes seldom
    try:
        run(test)
    finally:
        gc.enable()


def test_what_failing_work_was_about_is_let_go() -> None:
    """A reader that was stale kept its descriptor and all its frames until the collector came."""

    class Reader:
        def fetch(self) -> None:
            raise OSError("stale")

    async def test(workers: Workers) -> None:
        async def read() -> weakref.ref[Reader]:
            reader = Reader()
            with pytest.raises(OSError, match="stale"):
                await workers.cpu(lambda: reader.fetch(), 1)
            return weakref.ref(reader)

        assert (await read())() is None

    gc.disable()
    try:
        run(test)
    finally:
        gc.enable()
