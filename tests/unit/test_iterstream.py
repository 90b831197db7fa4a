"""Streams: order, bounded buffers, errors in their turn, and threads that end."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shardfs.errors import BadSettingError
from shardfs.iterstream import Composable, IterableSource


def counted(limit: int, taken: list[int]) -> Iterator[int]:
    """Numbers, and which of them have been taken."""
    for number in range(limit):
        taken.append(number)
        yield number


def test_steps_do_what_they_say() -> None:
    stream = IterableSource(range(10)).map(lambda x, by: x * by, by=3).filter(lambda x: x % 2 == 0)
    assert stream.collect() == [0, 6, 12, 18, 24]
    assert IterableSource([[1, 2], [], (3,)]).flatten().collect() == [1, 2, 3]
    assert IterableSource(range(7)).take(3).collect() == [0, 1, 2]
    assert IterableSource(range(3)).take(None).collect() == [0, 1, 2]


def test_a_stream_may_be_iterated_again() -> None:
    stream = IterableSource(lambda: iter([3, 1])).map(str)
    assert stream.collect() == stream.collect() == ["3", "1"]


def test_batches() -> None:
    assert IterableSource(range(5)).batched(2).collect() == [[0, 1], [2, 3]]
    assert IterableSource(range(5)).batched(2, drop_last_if_not_full=False).collect() == [[0, 1], [2, 3], [4]]
    assert IterableSource(range(4)).batched(2, sum).collect() == [1, 5]
    with pytest.raises(BadSettingError):
        IterableSource(()).batched(0)


def test_shuffling_loses_nothing_and_a_seed_repeats_it() -> None:
    first = IterableSource(range(1000)).shuffle(100, seed=7).collect()
    assert sorted(first) == list(range(1000))
    assert first != list(range(1000))
    assert first == IterableSource(range(1000)).shuffle(100, seed=7).collect()
    assert first == IterableSource(range(1000)).shuffle(100, rng=random.Random(7)).collect()
    assert IterableSource(range(5)).shuffle(1).collect() == [0, 1, 2, 3, 4]


def test_shuffling_holds_no_more_than_its_buffer() -> None:
    taken: list[int] = []
    stream = iter(IterableSource(counted(10_000, taken)).shuffle(50, initial=10, seed=0))
    next(stream)
    assert len(taken) <= 12
    for given in range(2, 500):
        next(stream)
        assert len(taken) - given <= 50


def test_async_map_keeps_the_order() -> None:
    gates = [threading.Event() for _ in range(4)]

    def wait(number: int) -> int:
        if number < 3:
            assert gates[number + 1].wait(20)  # each ends after the one behind it has begun
        gates[number].set()
        return number

    assert IterableSource(range(4)).async_map(wait, max_workers=4).collect() == [0, 1, 2, 3]


def test_async_map_takes_no_more_than_its_buffer_ahead() -> None:
    taken: list[int] = []
    stream = iter(IterableSource(counted(1000, taken)).async_map(str, buffer=3, max_workers=8))
    for given in range(50):
        assert next(stream) == str(given)
        assert len(taken) <= given + 3


def test_async_map_uses_threads_and_leaves_none() -> None:
    before = threading.active_count()
    barrier = threading.Barrier(2, timeout=20)
    stream = IterableSource(range(2)).async_map(lambda _: barrier.wait(), max_workers=2)
    assert sorted(stream.collect()) == [0, 1]  # both were there at once
    assert threading.active_count() == before


def test_what_a_worker_raises_comes_in_its_turn() -> None:
    ran: list[int] = []

    def fail(number: int) -> int:
        ran.append(number)
        if number == 5:
            raise LookupError("five")
        return number

    seen: list[int] = []
    stream = IterableSource(range(1000)).async_map(fail, buffer=4, max_workers=2).map(seen.append)
    with pytest.raises(LookupError, match="five"):
        stream.join()
    assert seen == [0, 1, 2, 3, 4]
    assert max(ran) < 5 + 5  # what had not begun was not begun


def test_what_the_source_raises_comes_after_what_was_before_it() -> None:
    def failing() -> Iterator[int]:
        yield from range(3)
        raise OSError("the source")

    seen: list[int] = []
    with pytest.raises(OSError, match="the source"):
        IterableSource(failing).async_map(int, buffer=100).map(seen.append).join()
    assert seen == [0, 1, 2]


def test_who_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    assert IterableSource(range(10_000)).async_map(str, max_workers=4).take(3).collect() == ["0", "1", "2"]
    assert threading.active_count() == before


def test_an_executor_of_ones_own_is_left_running() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert IterableSource("ab").async_map(str.upper, executor=pool).async_map(ord, executor=pool).collect() == [
            65,
            66,
        ]
        assert pool.submit(int, "3").result() == 3


@pytest.mark.parametrize("words", [{"buffer": 0}, {"max_workers": 0}])
def test_numbers_that_make_no_sense(words: dict[str, int]) -> None:
    with pytest.raises(BadSettingError, match="1 or more"):
        IterableSource(()).async_map(str, **words)


class Doubled(Composable):
    def __init__(self, times: int = 2) -> None:
        super().__init__()
        self.times = times

    def __iter__(self) -> Iterator[Any]:
        for item in self.source:  # type: ignore[union-attr]
            yield from [item] * self.times


def test_a_step_of_ones_own() -> None:
    def pairs(items: Iterator[int], by: int) -> Iterator[tuple[int, int]]:
        for item in items:
            yield item, by

    assert IterableSource([1]).to(pairs, by=4).collect() == [(1, 4)]
    assert IterableSource([1, 2]).compose(Doubled, 3).collect() == [1, 1, 1, 2, 2, 2]


def test_progress_goes_where_it_is_told() -> None:
    told = io.StringIO()
    assert IterableSource(range(3)).tqdm(file=told, total=3).collect() == [0, 1, 2]
    assert "3/3" in told.getvalue()


def test_join_lets_all_pass() -> None:
    passed: list[int] = []
    assert IterableSource(range(3)).map(passed.append).join() is None
    assert passed == [0, 1, 2]
