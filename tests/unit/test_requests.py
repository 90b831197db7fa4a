"""Requests to an object store: again while that may help, until the deadline, and what their errors mean."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest
from obstore.exceptions import GenericError, NotFoundError, PermissionDeniedError, PreconditionError

from shardfs import config
from shardfs.errors import StaleShardError, StorageError
from shardfs.storage.requests import Progress, Requests, ShortBodyError, status_of
from shardfs.storage.threads import Threads

BUSY = "Generic S3 error: Server returned non-2xx status code: 503 Service Unavailable: slow down"


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.time = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def failing(*errors: Exception) -> Callable[[], str]:
    left = list(errors)

    def attempt() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return attempt


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def requests(clock: Clock) -> Requests:
    return Requests("s3://b", sleep=clock.sleep, now=clock.now)


def test_what_may_pass_is_asked_again_after_pauses_that_grow(requests: Requests, clock: Clock) -> None:
    errors = GenericError(BUSY), ShortBodyError("3 of 4"), GenericError("reset")
    assert requests.run("reading", failing(*errors)) == "done"
    assert (requests.asked, requests.repeated) == (4, 3)
    longest = [config.REMOTE_BACKOFF * 2**n for n in range(3)]
    assert all(most / 2 <= pause <= most for most, pause in zip(longest, clock.slept, strict=True))


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (NotFoundError("no"), errno.ENOENT),
        (PermissionDeniedError("no"), errno.EACCES),
        (GenericError("Server returned non-2xx status code: 400 Bad Request"), errno.EIO),
        # a listing that is refused was taken for a store that is silent, and what was known of it was shown
        (GenericError("Server returned non-2xx status code: 403 Forbidden: SignatureDoesNotMatch"), errno.EACCES),
        (GenericError("Server returned non-2xx status code: 401 Unauthorized"), errno.EACCES),
    ],
)
def test_what_will_not_pass_is_told_at_once(requests: Requests, clock: Clock, error: Exception, number: int) -> None:
    with pytest.raises(StorageError) as raised:
        requests.run("reading k", failing(error))
    assert raised.value.errno == number
    assert "reading k in s3://b" in str(raised.value)
    assert clock.slept == []


def test_a_condition_that_does_not_hold_is_a_stale_shard(requests: Requests) -> None:
    with pytest.raises(StaleShardError):
        requests.run("reading", failing(PreconditionError("412")))


def test_the_deadline_ends_it(clock: Clock) -> None:
    requests = Requests("s3://b", deadline=1.0, sleep=clock.sleep, now=clock.now)
    with pytest.raises(StorageError) as raised:
        requests.run("reading", failing(*[GenericError(BUSY)] * 100))
    assert raised.value.errno == errno.ETIMEDOUT
    assert clock.time <= 101.0


def test_a_part_has_the_end_of_its_operation(requests: Requests, clock: Clock) -> None:
    until = requests.until()
    clock.time = until - 0.01
    with pytest.raises(StorageError) as raised:
        requests.run("reading", failing(GenericError(BUSY)), until=until)
    assert raised.value.errno == errno.ETIMEDOUT


def test_no_more_requests_at_once_than_there_are_places() -> None:
    requests = Requests("s3://b", at_once=2, deadline=20)
    inside, most, lock, gate = 0, 0, threading.Lock(), threading.Barrier(2, timeout=15)

    def attempt() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        gate.wait()
        with lock:
            inside -= 1

    threads = [threading.Thread(target=requests.run, args=("reading", attempt)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2


def test_no_place_in_time_is_a_timeout() -> None:
    requests = Requests("s3://b", at_once=1, deadline=0.05)
    with pytest.raises(StorageError) as raised:
        requests.run("outer", lambda: requests.run("inner", lambda: None))
    assert raised.value.errno == errno.ETIMEDOUT


def test_an_operation_ends_for_its_caller_though_the_attempt_goes_on() -> None:
    requests = Requests("s3://b", deadline=0.1)
    gate = threading.Event()
    with pytest.raises(StorageError, match="deadline") as raised:
        requests.run("hanging", gate.wait)
    assert raised.value.errno == errno.ETIMEDOUT
    gate.set()


def test_what_one_thread_does_inside_has_one_deadline(clock: Clock) -> None:
    requests = Requests("s3://b", deadline=10.0, sleep=clock.sleep, now=clock.now)
    with requests.operation() as end:
        clock.time += 4
        assert requests.until() == end == 110.0
        with requests.operation() as inner:
            assert inner == end
    assert requests.until() == 114.0


def test_progress_moves_the_end() -> None:
    requests = Requests("s3://b", deadline=0.3)
    progress = Progress()
    gate = threading.Event()

    def pages() -> str:
        for _ in range(4):
            gate.wait(0.15)
            progress.at = requests.now()
        return "all"

    assert requests.run("listing", pages, progress=progress) == "all"
    with pytest.raises(StorageError):
        requests.run("listing", pages)


def test_damage_is_not_asked_for_again_and_again(requests: Requests, clock: Clock) -> None:
    with pytest.raises(StorageError) as raised:
        requests.run("reading", failing(*[ShortBodyError("3 of 4")] * 100))
    assert raised.value.errno == errno.EIO
    assert requests.asked == config.REMOTE_DAMAGED + 1


def test_offline_asks_nothing() -> None:
    requests = Requests("s3://b", offline=True)
    with pytest.raises(StorageError, match="--offline") as raised:
        requests.run("reading", failing())
    assert (raised.value.errno, requests.asked) == (errno.ENETUNREACH, 0)


def test_a_store_that_never_answered_is_given_up_after_one_operation(clock: Clock) -> None:
    requests = Requests("s3://b", deadline=10.0, sleep=clock.sleep, now=clock.now)
    requests.probe = failing(*[GenericError("error sending request")] * 3)
    with pytest.raises(StorageError):
        requests.run("reading", failing(*[GenericError("error sending request")] * 100))
    assert not requests.told()["answers"]
    asked = requests.asked
    clock.time += config.BREAKER_PROBE + 1
    with pytest.raises(StorageError, match="does not answer since"):
        requests.run("reading", failing())
    assert requests.asked == asked
    for _ in range(2):
        clock.time += config.BREAKER_PROBE + 1
        with pytest.raises(StorageError):
            requests.run("reading", failing())
    clock.time += config.BREAKER_PROBE + 1
    assert requests.run("reading", failing()) == "done"


def test_threads_are_bounded_and_come_back_in_a_child() -> None:
    threads = Threads(2, "test")
    gate = threading.Event()
    first = [threads.start(gate.wait) for _ in range(5)]
    assert threads._count == 2
    gate.set()
    assert all(future.result(20) for future in first)
    threads._process = -1  # as after a fork
    assert threads.start(lambda: 3).result(20) == 3


def test_errors_that_are_ours_pass_unchanged(requests: Requests, clock: Clock) -> None:
    with pytest.raises(ZeroDivisionError):
        requests.run("reading", failing(ZeroDivisionError()))
    assert clock.slept == []


def test_secrets_in_urls_are_not_told(requests: Requests) -> None:
    with pytest.raises(StorageError) as raised:
        requests.run("reading", failing(GenericError("status code: 400 url: http://h/k?X-Amz-Signature=abcdef more")))
    assert "abcdef" not in str(raised.value)


def test_status_is_found_in_the_text() -> None:
    assert status_of(GenericError(BUSY)) == 503
    assert status_of(GenericError("connection reset")) is None
