"""Work in threads whose results come in the order in which it was given."""

from __future__ import annotations

import threading

import pytest

from shardfs import config, in_order
from shardfs.in_order import InOrder


def compressing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shardfs-compress")]


def put_all(order: InOrder[int, int]) -> None:
    for piece in range(100):
        order.put(piece)


def test_results_come_in_order_however_long_each_takes() -> None:
    released = threading.Event()

    def work(piece: int) -> int:
        if piece == 0:
            assert released.wait(10)
        elif piece == 2:
            released.set()  # which needs another thread, while the first piece is still worked on
        return piece * 10

    taken: list[int] = []
    order = InOrder(work, taken.append, threads=3)
    for piece in range(3):
        order.put(piece)
    for piece in range(3, 50):
        order.put(piece)
    order.finish()
    order.close()
    assert taken == [piece * 10 for piece in range(50)]
    assert compressing_threads() == []


@pytest.mark.parametrize("threads", [1, 2])
def test_few_pieces_are_held_at_a_time(threads: int) -> None:
    given = 0
    most = 0

    def take(piece: int) -> None:
        nonlocal most
        most = max(most, given - piece)

    order = InOrder(lambda piece: piece, take, threads)
    for piece in range(200):
        given = piece
        order.put(piece)
    order.finish()
    order.close()
    assert most <= threads + config.WORK_AHEAD


def test_one_piece_alone_and_a_single_core_need_no_threads() -> None:
    names: list[str] = []

    def work(piece: int) -> int:
        names.append(threading.current_thread().name)
        return piece

    alone: InOrder[int, int] = InOrder(work, lambda _: None, threads=4)
    alone.put(1)
    alone.finish()
    single: InOrder[int, int] = InOrder(work, lambda _: None, threads=1)
    single.put(1)
    single.put(2)
    single.finish()
    assert set(names) == {threading.current_thread().name}


def test_what_a_thread_raises_is_raised_at_the_caller_and_the_threads_end() -> None:
    def work(piece: int) -> int:
        if piece == 3:
            raise LookupError("piece 3")
        return piece

    taken: list[int] = []
    order = InOrder(work, taken.append, threads=2)
    with pytest.raises(LookupError, match="piece 3"):
        put_all(order)
    order.close()
    assert taken == [0, 1, 2]
    assert compressing_threads() == []
    order.close()


def test_results_that_nobody_can_take_end_it_too() -> None:
    def take(piece: int) -> None:
        raise OSError("no space")

    order = InOrder(lambda piece: piece, take, threads=2)
    with pytest.raises(OSError, match="no space"):
        put_all(order)
    order.close()
    assert compressing_threads() == []


def test_no_more_threads_than_cores_or_than_make_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_order.os, "sched_getaffinity", lambda _: set(range(64)))
    assert in_order.cores() == config.WORK_THREADS
    monkeypatch.setattr(in_order.os, "sched_getaffinity", lambda _: {3})
    assert in_order.cores() == 1
