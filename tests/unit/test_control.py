"""Commands through a mount's socket: what comes through, and what clients and daemons may do to one another."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from shardfs import config, control, control_server, daemon
from shardfs.control_server import Handlers
from shardfs.errors import (
    BadSampleError,
    BadSettingError,
    DamagedShardError,
    KeyExistsError,
    MissingExtraError,
    MissingKeyError,
    MissingSystemError,
    MountError,
    NotWritableError,
    OverfullShardError,
    RenumberingError,
    ShardfsError,
    StagingError,
    StagingLockedError,
    StaleShardError,
    StorageError,
    UnknownCommandError,
)
from tests.unit.control_serving import serving

NOBODY = 65534

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "shardfs"


def socket_path(runtime: Path, mountpoint: str = "/m") -> Path:
    return runtime / (daemon.file_name(mountpoint) + control.ENDING)


async def echo(arguments: dict[str, Any]) -> Any:
    return arguments


async def fail(arguments: dict[str, Any]) -> Any:
    raise ValueError("a bug")


def raising(error: BaseException) -> Handlers:
    async def handler(arguments: dict[str, Any]) -> Any:
        raise error

    return {"do": handler}


@contextlib.contextmanager
def client(runtime: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(20)
        with control.directory(runtime, os.geteuid()) as short:  # paths of pytest are longer than a socket's may be
            end.connect(f"{short}/{socket_path(runtime).name}")
        yield end


def answered(end: socket.socket) -> Any:
    with end.makefile("rb") as file:
        return json.loads(file.readline())


# --- what comes through -----------------------------------------------------------------------------------------------


def test_arguments_and_answers_come_through() -> None:
    value = {"key": "a/b", "odd": "\udcff \u2028 ключ\n", "list": [1, 2.5, None, True], "deep": {"x": {"y": []}}}
    with serving({"echo": echo}):
        assert control.ask("/m", "echo", value) == value
        assert control.ask("/m", "echo") == {}


@pytest.mark.parametrize(
    "error",
    [
        BadSampleError("000001.json", "no JSON: line 1"),
        BadSettingError("no such key"),
        DamagedShardError("cut off", 17, "k"),
        DamagedShardError("cut off"),
        OverfullShardError(3),
        KeyExistsError("k is there"),
        MissingExtraError("install it"),
        MissingKeyError("no k"),
        MissingSystemError("no device"),
        MountError("busy"),
        NotWritableError("read-only"),
        RenumberingError("it would renumber"),
        ShardfsError("any"),
        StagingError("full", errno.ENOSPC),
        StagingLockedError("locked", 123),
        StaleShardError("changed"),
        StorageError("no answer", errno.ETIMEDOUT),
        UnknownCommandError("what?"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_raised_as_they_were(error: ShardfsError) -> None:
    with serving(raising(error)), pytest.raises(type(error)) as raised:
        control.ask("/m", "do")
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)
    assert raised.value.errno == error.errno
    names = ("file", "reason", "key", "offset", "pid")
    assert [getattr(raised.value, name, "-") for name in names] == [getattr(error, name, "-") for name in names]


@pytest.mark.parametrize(
    "said",
    [
        None,
        {},
        {"kind": "SystemExit", "errno": 5, "text": "x"},
        {"kind": ["MountError"], "errno": "5", "text": 7, "fields": []},
        {"kind": "BadSampleError", "errno": True, "text": "x", "fields": {"file": 3, "__class__": "x", "args": "x"}},
        {"kind": "DamagedShardError", "text": "cut off", "fields": {}},
    ],
)
def test_an_error_that_makes_no_sense_is_an_error_all_the_same(said: Any) -> None:
    made = control.error_from_json(said)
    assert isinstance(made, ShardfsError)
    assert made.errno == errno.EIO
    assert isinstance(str(made), str)


def test_a_bug_in_a_command_is_an_error_and_the_mount_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with serving({"fail": fail, "echo": echo}):
        with pytest.raises(StorageError, match="unexpected ValueError: a bug"):
            control.ask("/m", "fail")
        assert control.ask("/m", "echo", {"x": 1}) == {"x": 1}
    assert "a bug" in caplog.text


def test_an_answer_that_is_no_json_is_an_error() -> None:
    async def handler(arguments: dict[str, Any]) -> Any:
        return {1, 2}

    with serving({"do": handler}), pytest.raises(StorageError, match="TypeError"):
        control.ask("/m", "do")


def test_an_answer_beyond_the_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(arguments: dict[str, Any]) -> Any:
        return "x" * 2000

    monkeypatch.setattr(config, "CONTROL_REPLY", 1000)
    with serving({"do": handler}), pytest.raises(StorageError, match="too large") as raised:
        control.ask("/m", "do")
    assert raised.value.errno == errno.EMSGSIZE


def test_errors_of_the_system_keep_their_errno() -> None:
    error = OSError(errno.ENOSPC, "full")
    with serving(raising(error)), pytest.raises(StorageError, match="full") as raised:
        control.ask("/m", "do")
    assert raised.value.errno == errno.ENOSPC


def test_a_command_nobody_knows() -> None:
    with serving({"echo": echo}), pytest.raises(UnknownCommandError, match="'frob'"):
        control.ask("/m", "frob")


# --- the socket -------------------------------------------------------------------------------------------------------


def test_only_the_user_can_reach_the_socket_and_it_goes(runtime: Path) -> None:
    before = os.umask(0)
    try:
        with serving({"echo": echo}):
            found = socket_path(runtime).lstat()
            assert found.st_mode & 0o777 == 0o600
            assert runtime.stat().st_mode & 0o777 == 0o700
            assert [path.name for path in runtime.iterdir()] == [socket_path(runtime).name]
    finally:
        os.umask(before)
    assert list(runtime.iterdir()) == []


def test_no_mount() -> None:
    with pytest.raises(MountError, match="no shardfs mount at /m"):
        control.ask("/m", "ping")
    with serving({"echo": echo}), pytest.raises(MountError, match="no shardfs mount at /n"):
        control.ask("/n", "ping")


def test_what_a_dead_daemon_left_is_replaced(runtime: Path) -> None:
    runtime.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as end, control.directory(runtime, os.geteuid()) as short:
        end.bind(f"{short}/{socket_path(runtime).name}")
    with pytest.raises(MountError, match="no shardfs mount"):
        control.ask("/m", "echo")
    (runtime / f".{os.getpid()}{control.ENDING}").touch()
    with serving({"echo": echo}):
        assert control.ask("/m", "echo", {"x": 1}) == {"x": 1}
    assert list(runtime.iterdir()) == []


def test_the_end_of_an_older_daemon_leaves_the_later_ones_socket(runtime: Path) -> None:
    async def first(arguments: dict[str, Any]) -> Any:
        return "first"

    async def second(arguments: dict[str, Any]) -> Any:
        return "second"

    with contextlib.ExitStack() as later:
        with serving({"do": first}):
            assert control.ask("/m", "do") == "first"
            later.enter_context(serving({"do": second}))
        assert control.ask("/m", "do") == "second"
    assert list(runtime.iterdir()) == []


def test_a_runtime_directory_with_a_longer_path_than_a_socket_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path.joinpath(*["a-rather-long-name"] * 10)
    deep.mkdir(parents=True)
    assert len(str(deep)) > 150
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    with serving({"echo": echo}):
        assert control.ask("/m", "echo", {"x": 1}) == {"x": 1}
        assert socket_path(deep / "shardfs").exists()


def test_a_mount_without_a_place_for_its_socket_lives_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(daemon, "runtime_directories", lambda uid, make=False: iter(()))
    with serving({"echo": echo}), pytest.raises(MountError, match="no shardfs mount"):
        control.ask("/m", "echo")
    assert "nowhere for a socket" in caplog.text


def test_a_directory_that_others_can_write_to_is_not_believed(runtime: Path) -> None:
    with serving({"echo": echo}):
        runtime.chmod(0o777)
        with pytest.raises(MountError, match="no shardfs mount"):
            control.ask("/m", "echo")


# --- hostile clients --------------------------------------------------------------------------------------------------


def works() -> bool:
    return bool(control.ask("/m", "echo", {"x": 1}) == {"x": 1})


@pytest.mark.parametrize(
    "said",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b"nonsense\n",
        b"\xff\xfe\n",
        b'{"command": 7}\n',
        b'{"command": "echo", "arguments": [1]}\n',
        b"[" * 60_000 + b"\n",
        b'{"command": "echo", "arguments": {"x": ' + b"9" * 10_000 + b"}}\n",
    ],
    ids=range(9),
)
def test_what_is_no_request_is_told_so(runtime: Path, said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with serving({"echo": echo}), client(runtime) as end:
        end.sendall(said)
        assert answered(end)["error"]["kind"] == "BadSettingError"
        end.sendall(control.request("echo", {"still": "here"}))
        assert answered(end) == {"answer": {"still": "here"}}
        assert works()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_half_a_line_and_gone(runtime: Path) -> None:
    with serving({"echo": echo}):
        for said in (b"", b"{", b'{"command": "echo"'):
            with client(runtime) as end:
                end.sendall(said)
        assert works()


def test_a_line_without_end_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CONTROL_REQUEST", 1000)
    with serving({"echo": echo}), client(runtime) as end:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                end.sendall(b"x" * 1000)
        with contextlib.suppress(ConnectionResetError):  # told once by the system, before what was said
            end.recv(0)
        assert "no end" in answered(end)["error"]["text"]
        assert works()


def test_several_requests_at_once(runtime: Path) -> None:
    with serving({"echo": echo}), client(runtime) as end:
        end.sendall(b"".join(control.request("echo", {"number": number}) for number in range(100)))
        with end.makefile("rb") as file:
            assert [json.loads(file.readline())["answer"]["number"] for _ in range(100)] == list(range(100))


def test_a_line_that_comes_byte_by_byte(runtime: Path) -> None:
    with serving({"echo": echo}), client(runtime) as end:
        for byte in control.request("echo", {"x": 1}):
            end.sendall(bytes([byte]))
        assert answered(end) == {"answer": {"x": 1}}


def test_silent_clients_are_let_go(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CONTROL_IDLE", 0.1)
    with serving({"echo": echo}), client(runtime) as silent, client(runtime) as slow:
        slow.sendall(b"{")
        assert silent.recv(10) == b""
        assert slow.recv(10) == b""
        assert works()


def test_who_takes_no_answer_is_let_go(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def much(arguments: dict[str, Any]) -> Any:
        return "x" * 8_000_000

    monkeypatch.setattr(config, "CONTROL_IDLE", 0.2)
    with serving({"echo": echo, "much": much}), client(runtime) as end:
        end.sendall(control.request("much", {}))
        assert works()
        hung_up = select.poll()
        hung_up.register(end, 0)
        assert hung_up.poll(20_000), "the server did not let go"
        assert works()


def test_more_clients_than_are_served_are_told_so(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CONTROL_CLIENTS", 3)
    with serving({"echo": echo}):
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                end = stack.enter_context(client(runtime))
                end.sendall(control.request("echo", {}))
                assert answered(end) == {"answer": {}}
            for _ in range(20):
                with pytest.raises(StorageError, match="try again") as raised:
                    control.ask("/m", "echo")
                assert raised.value.errno == errno.EBUSY
            end.sendall(control.request("echo", {"served": True}))
            assert answered(end) == {"answer": {"served": True}}
        for _ in range(100):
            with contextlib.suppress(StorageError):  # until the server has noticed that they are gone
                assert works()
                break
        else:
            pytest.fail("places are not given back")


def test_a_command_goes_on_when_its_client_has_gone(runtime: Path) -> None:
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    async def slow(arguments: dict[str, Any]) -> Any:
        begun.set()
        await trio.to_thread.run_sync(go.wait, 20)
        ended.set()

    with serving({"echo": echo, "slow": slow}):
        with client(runtime) as end:
            end.sendall(control.request("slow", {}))
            assert begun.wait(20)
        assert works()
        go.set()
        assert ended.wait(20)
        assert works()


def test_a_mount_that_does_not_answer_in_time() -> None:
    go = threading.Event()

    async def slow(arguments: dict[str, Any]) -> Any:
        await trio.to_thread.run_sync(go.wait, 20)

    with serving({"slow": slow}):
        with pytest.raises(MountError, match="does not answer") as raised:
            control.ask("/m", "slow", seconds=0.05)
        assert raised.value.errno == errno.ETIMEDOUT
        go.set()


# --- hostile daemons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", "ended before it answered"),
        (b'{"answer": 1}', "ended before it answered"),
        (b"nonsense\n", "makes no sense"),
        (b"[]\n", "makes no sense"),
        (b"7\n", "makes no sense"),
        (b"{}\n", "makes no sense"),
        (b"x" * 100_000, "no end"),
    ],
    ids=range(7),
)
def test_answers_that_are_none(runtime: Path, monkeypatch: pytest.MonkeyPatch, said: bytes, told: str) -> None:
    monkeypatch.setattr(config, "CONTROL_REPLY", 10_000)
    runtime.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        with control.directory(runtime, os.geteuid()) as short:
            listening.bind(f"{short}/{socket_path(runtime).name}")
        listening.listen()

        def serve() -> None:
            end, _ = listening.accept()
            with end, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                end.recv(1 << 16)
                end.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(MountError, match=told):
            control.ask("/m", "ping")
        thread.join(20)


# --- other users ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user can go into: those of pytest are closed."""
    path = Path(tempfile.mkdtemp(prefix="shardfs-test-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def as_nobody(script: str, *words: str | Path) -> subprocess.Popen[str]:
    """Run a script as another user, which becomes one only when it runs: a user may have no way to this Python."""
    become = f"import os, socket, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    return subprocess.Popen(
        [sys.executable, "-c", become + script, *map(str, words)], stdout=subprocess.PIPE, text=True, cwd="/"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_other_users_are_refused(
    shared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where, against all that is done about it, they come to the socket."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shared))
    script = """
end = socket.socket(socket.AF_UNIX)
try: end.connect(sys.argv[1])
except PermissionError: print("no way"); sys.exit()
print(end.makefile("rb").readline().decode(), end="")
"""
    asked: list[str] = []

    async def record(arguments: dict[str, Any]) -> Any:
        asked.append("!")

    with serving({"ping": record, "echo": echo}):
        path = socket_path(shared / "shardfs")
        assert as_nobody(script, path).communicate(timeout=20)[0] == "no way\n"
        (shared / "shardfs").chmod(0o755)
        assert as_nobody(script, path).communicate(timeout=20)[0] == "no way\n"
        path.chmod(0o666)
        said = json.loads(as_nobody(script, path).communicate(timeout=20)[0])
        assert said["error"]["errno"] == errno.EPERM
        (shared / "shardfs").chmod(0o700)
        assert works()
    assert asked == []
    assert f"user {NOBODY}" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_a_link_to_somebody_elses_socket_is_not_talked_to(shared: Path, runtime: Path) -> None:
    """A user could have root send its requests to any socket of the machine."""
    script = """
listening = socket.socket(socket.AF_UNIX)
listening.bind(sys.argv[1]); listening.listen(); print("up", flush=True)
end, _ = listening.accept()
print(repr(end.recv(100)))
"""
    (shared / "theirs").mkdir()
    os.chown(shared / "theirs", NOBODY, NOBODY)
    process = as_nobody(script, shared / "theirs" / "socket")
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        runtime.mkdir(mode=0o700)
        socket_path(runtime).symlink_to(shared / "theirs" / "socket")
        with pytest.raises(MountError, match="no shardfs mount"):
            control.ask("/m", "ping")
        assert process.stdout.readline() == "b''\n"
    finally:
        process.kill()
        process.communicate()


def test_shutdown_ends_clients(runtime: Path) -> None:
    with contextlib.ExitStack() as stack:
        with serving({"echo": echo}):
            end = stack.enter_context(client(runtime))
            assert works()
        assert end.recv(10) == b""


def test_what_is_served_is_let_go_with_the_block(runtime: Path) -> None:
    """An error inside goes through as it is, and takes the socket with it."""

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            async with control_server.served("/m", {"echo": echo}):
                raise ValueError("inside")

    trio.run(main)
    assert list(runtime.iterdir()) == []
