"""Where a request of the kernel is found in a task of pyfuse3, and that nothing else is taken for one."""

from __future__ import annotations

import contextvars
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from shardfs import open_requests
from shardfs.errors import StorageError
from shardfs.open_requests import OpenRequests, Task, examined

pyfuse3 = pytest.importorskip("pyfuse3")

INODE = 3 << 32 | 7


def header(operation: int, body: bytes) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), operation, 1, INODE, 0, 0, 0, 0, 0) + body


def reading(handle: int, offset: int, size: int) -> bytes:
    return header(15, struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0))


def opening(flags: int) -> bytes:
    return header(14, struct.pack("<II", flags, 0))


@pytest.fixture
def state() -> Iterator[tuple[object, object]]:
    """The state of one of pyfuse3's tasks that is not begun, and its nursery."""
    nursery = object()
    coroutine = pyfuse3._session_loop.__wrapped__(nursery, 1, 99)
    scope = examined(coroutine, nursery, 1, 99)
    assert scope is not None
    yield scope, nursery
    ctypes.memset(id(scope) + open_requests._BUFFER, 0, ctypes.sizeof(open_requests._Buffer))
    coroutine.close()


def put(scope: object, request: bytes, flags: int = 0) -> object:
    """Have a task hold a request, as libfuse does; the buffer is to be kept."""
    memory = ctypes.create_string_buffer(request, 4096)
    fields = open_requests._Buffer.from_address(id(scope) + open_requests._BUFFER)
    fields.size, fields.flags, fields.memory = len(request), flags, ctypes.addressof(memory)
    return memory


def within(task: Task | None, work: Callable[[], object]) -> object:
    def run() -> object:
        open_requests._TASK.set(task)
        return work()

    return contextvars.copy_context().run(run)


def test_what_pyfuse3_keeps_is_as_it_is_pinned(state: tuple[object, object]) -> None:
    scope, nursery = state
    coroutine = pyfuse3._session_loop.__wrapped__(nursery, 1, 99)
    assert examined(coroutine, nursery, 1, 98) is None
    assert examined(coroutine, nursery, 2, 99) is None
    assert examined(coroutine, object(), 1, 99) is None
    assert examined(scope, nursery, 1, 99) is None
    coroutine.close()


def test_the_file_of_a_read_is_the_one_of_the_request(state: tuple[object, object]) -> None:
    requests, task = OpenRequests(pyfuse3._session_loop.__wrapped__), Task(state[0], lambda: False)
    memory = put(state[0], reading(0, 4096, 128))
    assert within(task, lambda: requests.inode(4096, 128)) == INODE
    ctypes.memmove(memory, other := reading(0, 1 << 40, 1), len(other))  # type: ignore[arg-type]
    assert within(task, lambda: requests.inode(1 << 40, 1)) == INODE
    assert requests.sound


@pytest.mark.parametrize("request_", [reading(1, 0, 128), reading(0, 1, 128), reading(0, 0, 127), opening(0)])
def test_what_is_not_the_request_is_no_file(state: tuple[object, object], request_: bytes) -> None:
    requests, task, _ = OpenRequests(pyfuse3._session_loop.__wrapped__), Task(state[0], lambda: True), None
    memory = put(state[0], request_)
    with pytest.raises(StorageError) as failure:
        within(task, lambda: requests.inode(0, 128))
    assert failure.value.errno == errno.EIO
    assert not requests.sound
    assert memory


def test_the_kernel_is_told_for_the_right_request_only(state: tuple[object, object]) -> None:
    flags, begin = os.O_RDONLY | os.O_CLOEXEC, pyfuse3._session_loop.__wrapped__
    memory = put(state[0], opening(flags))
    for task, inode, wanted, right in (
        (Task(state[0], lambda: False), INODE, flags, True),
        (Task(state[0], lambda: False), INODE + 1, flags, False),
        (Task(state[0], lambda: False), INODE, flags | os.O_DIRECT, False),
        (None, INODE, flags, False),
    ):
        requests = OpenRequests(begin)
        assert within(task, lambda r=requests, i=inode, w=wanted: r.is_open(i, w)) is right  # type: ignore[misc]
        assert requests.sound is right
    kept = put(state[0], opening(flags), flags=2)  # in a pipe, and not in memory
    assert within(Task(state[0], lambda: False), lambda: OpenRequests(begin).is_open(INODE, flags)) is False
    assert memory is not kept


def test_memory_that_is_not_there_is_not_looked_at() -> None:
    buffer = ctypes.create_string_buffer(4096)
    assert open_requests.readable(ctypes.addressof(buffer) + 7 & ~7)
    for address in (0, 8, 1 << 46, ctypes.addressof(buffer) | 1):
        assert not open_requests.readable(address)


def test_it_is_left_out_where_it_cannot_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = ModuleType("pyfuse3")
    assert open_requests.install(fake) is None
    fake._session_loop = lambda *words: None  # type: ignore[attr-defined]
    assert open_requests.install(fake) is None
    fake._session_loop = type("Function", (), {"__wrapped__": print})()  # type: ignore[attr-defined]
    monkeypatch.setattr(open_requests, "OLDEST", (99, 0))
    assert open_requests.install(fake) is None
    monkeypatch.undo()
    made = open_requests.install(fake)
    assert made is not None
    assert fake._session_loop == made.task
    monkeypatch.setenv("SHARDFS_STOCK_OPEN", "1")
    assert open_requests.install(fake) is None
