"""How the loop waits: a lone reader's next request is asked for for a moment, and nobody else pays for that."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
import trio

from shardfs import request_loop
from shardfs.request_loop import RequestLoop, Rhythm


def run(work: Callable[[RequestLoop, int], object], calm: bool = True) -> None:
    """With a pipe in place of the session: what is readable is a request."""
    reading, writing = os.pipe()

    async def main() -> None:
        with trio.fail_after(10):
            await work(RequestLoop(reading, lambda: calm), writing)  # type: ignore[misc]

    try:
        trio.run(main)
    finally:
        os.close(reading)
        os.close(writing)


def asked(loop: RequestLoop) -> list[int]:
    """Counts how often it looks, from now on."""
    counts = [0]
    poll = loop._poll

    class Counting:
        def poll(self, milliseconds: int) -> object:
            counts[0] += 1
            return poll.poll(milliseconds)

    loop._poll = Counting()  # type: ignore[assignment]
    return counts


@pytest.mark.parametrize("calm", [True, False])
def test_it_looks_a_bounded_number_of_times_and_then_sleeps(calm: bool) -> None:
    async def work(loop: RequestLoop, writing: int) -> None:
        loop._spins = request_loop.SPINS
        counts = asked(loop)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                assert await loop.wait()

            nursery.start_soon(wait)
            await trio.sleep(0.2)
            assert counts[0] == 1 + (request_loop.SPINS if calm else 0)
            os.write(writing, b"x")

    run(work, calm)


def test_a_crowd_is_not_looked_for() -> None:
    """Requests that are there at once, again and again, come from many: then the loop sleeps without looking longer."""

    async def work(loop: RequestLoop, writing: int) -> None:
        loop._spins = request_loop.SPINS
        os.write(writing, b"x")
        for _ in range(200):
            assert await loop.wait()
        os.read(loop._descriptor, 1)
        counts = asked(loop)
        with trio.move_on_after(0.1):
            await loop.wait()
        assert counts[0] == 1
        for _ in range(20):  # one reader again: soon it is looked for
            with trio.move_on_after(0.01):
                await loop.wait()
        assert counts[0] > request_loop.SPINS

    run(work)


def test_the_end_is_seen_by_who_waits_and_by_who_comes_later() -> None:
    async def work(loop: RequestLoop, writing: int) -> None:
        answers = []

        async def wait() -> None:
            answers.append(await loop.wait())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            await trio.sleep(0.05)
            loop.end()
        os.write(writing, b"x")
        assert [*answers, await loop.wait()] == [False] * 4

    run(work)


def test_others_have_their_turn_under_a_stream_of_requests() -> None:
    async def work(loop: RequestLoop, writing: int) -> None:
        os.write(writing, b"x")
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(10 * request_loop.FAIR):
                assert await loop.wait()
            nursery.cancel_scope.cancel()
        assert turns >= 7  # of 10: which of two runs first is by chance

    run(work)


def test_an_idle_loop_uses_no_processor() -> None:
    async def work(loop: RequestLoop, writing: int) -> None:
        before = time.process_time()
        with trio.move_on_after(0.5):
            await loop.wait()
        assert time.process_time() - before < 0.1

    run(work)


def test_what_others_have_to_do_is_never_slept_over() -> None:
    """Found on a mount: a task of the same turn waited for a second, as trio does not count it as runnable any more."""

    async def work(loop: RequestLoop, writing: int) -> None:
        begun = time.monotonic()
        for _ in range(10):
            done = trio.Event()
            async with trio.open_nursery() as nursery:

                async def other(done: trio.Event = done) -> None:
                    for _ in range(3):
                        await trio.lowlevel.checkpoint()
                    await trio.to_thread.run_sync(time.sleep, 0.001)
                    done.set()

                for _ in range(3):
                    nursery.start_soon(loop.wait)
                nursery.start_soon(other)
                await done.wait()
                nursery.cancel_scope.cancel()
        assert time.monotonic() - begun < 5

    old, request_loop.LONGEST = request_loop.LONGEST, 60.0
    try:
        run(work)
    finally:
        request_loop.LONGEST = old


def test_a_request_ends_the_loops_own_sleep_and_a_deadline_does() -> None:
    async def work(loop: RequestLoop, writing: int) -> None:
        with trio.move_on_after(0.05) as scope:
            await loop.wait()
        assert scope.cancelled_caught
        sleeps = []
        slept = loop._slept

        def counted(wake: float) -> bool:
            sleeps.append(wake)
            return slept(wake)

        loop._slept = counted  # type: ignore[method-assign]
        timer = threading.Timer(0.01, os.write, (writing, b"x"))
        timer.start()
        assert await loop.wait()
        timer.join()
        assert sleeps
        assert request_loop.trio_epoll() is not None

    run(work, calm=False)


def test_a_rhythm_is_learned_and_unlearned() -> None:
    rhythm = Rhythm()
    assert rhythm.soon()
    pattern = [True, True, False]
    for at in range(300):
        rhythm.met(pattern[at % 3])
    for at in range(300, 330):
        assert rhythm.soon() == pattern[at % 3]
        rhythm.met(pattern[at % 3])
    for _ in range(100):
        rhythm.met(False)
    assert not rhythm.soon()
