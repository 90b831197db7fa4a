"""Guessing which shards are wanted next, and what the cache makes of the guesses."""

from __future__ import annotations

import random
from pathlib import Path

from shardfs import config
from shardfs.opening import open_store
from shardfs.read_ahead import ReadAhead
from tests.conformance.trees import InProcessTree, wait_for


def guesses(slots: list[int]) -> list[list[int]]:
    ahead = ReadAhead()
    return [ahead.touch(slot) for slot in slots]


def test_a_run_is_recognised_after_three() -> None:
    assert guesses([1, 2, 3, 4]) == [[], [], [4, 5], [5, 6]]


def test_a_stride_and_a_run_backwards() -> None:
    assert guesses([1, 9, 17])[-1] == [25, 33]
    assert guesses([9, 8, 7])[-1] == [6, 5]
    assert guesses([3, 2, 1])[-1] == [], "there is nothing before the first"


def test_neighbours_in_any_order_move_on() -> None:
    assert guesses([4, 1, 3, 6, 2, 5])[-1] == [7, 8]
    assert guesses([4, 1, 3, 7, 2, 5])[-1] == [6, 8]


def test_a_global_shuffle_is_left_alone() -> None:
    slots = random.Random(1).sample(range(1, 10_000), 60)
    assert not any(guesses(slots))


def test_touching_again_says_nothing_new() -> None:
    ahead = ReadAhead()
    for slot in (1, 2, 3):
        ahead.touch(slot)
    assert ahead.touch(3) == []


def test_waste_turns_it_down() -> None:
    ahead = ReadAhead()
    for slot in range(1, 4):
        ahead.touch(slot)
    for slot in range(100, 101 + config.READ_AHEAD_WASTE):
        ahead.guessed(slot)
        ahead.evicted(slot)
    assert ahead.wasted == config.READ_AHEAD_WASTE + 1
    assert ahead.touch(4) == []


def test_reading_in_order_loads_the_next_shards_before_they_are_asked_for(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="squirrel")
    for key in range(8):
        store.set([{"x": bytes([key]) * 1000}], f"k{key}")
    with InProcessTree(tmp_path) as tree:
        cache = tree.vfs.cache
        for key in range(4):
            assert tree.read(f"k{key}/000000.x.bin") == bytes([key]) * 1000
        wait_for(lambda: len(cache) >= 5)
        misses = cache.counts.misses
        assert tree.read("k4/000000.x.bin") == bytes([4]) * 1000
        assert cache.counts.misses == misses, "it should have been in memory"
        for key in range(5, 8):
            assert tree.read(f"k{key}/000000.x.bin") == bytes([key]) * 1000
        assert cache.counts.loads == 8, "each shard once"


def test_nothing_is_loaded_ahead_under_a_small_budget(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="squirrel")
    for key in range(6):
        store.set([{"x": bytes([key]) * 100_000}], f"k{key}")  # a thousandth of that is stored
    with InProcessTree(tmp_path, budget=250_000) as tree:
        for key in range(6):
            assert tree.read(f"k{key}/000000.x.bin", 0, 10) == bytes([key]) * 10
        assert tree.vfs.cache.counts.loads == 6
        assert tree.vfs.cache.counts.misses == 6
