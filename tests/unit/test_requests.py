"""Requests to an object store: again while that may help, until the deadline, and what their errors mean."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest
from obstore.exceptions import GenericError, NotFoundError, PermissionDeniedError, PreconditionError

from shardfs import config
from shardfs.errors import StaleShardError, StorageError
from shardfs.storage.requests import Requests, ShortBodyError, status_of

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
