"""What is said to a service manager: where to, in how many datagrams, and how often it wants to hear."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardfs import sd_notify


@pytest.fixture
def end() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.settimeout(10)
        yield made


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_told_in_one_datagram(
    end: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    address = f"@shardfs@test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    end.bind("\0" + address[1:] if abstract else address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert sd_notify.is_asked()
    sd_notify.tell("READY=1", "STATUS=two\nlines, \udc80")
    assert end.recv(100) == b"READY=1\nSTATUS=two lines, \\udc80"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/notify", "@shardfs-nobody-listens"])
def test_who_does_not_listen_is_no_error(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    if address is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    sd_notify.tell("READY=1")
    assert sd_notify.is_asked() is (address or "").startswith(("/", "@"))


def test_a_manager_that_is_stopped_is_not_waited_for(
    end: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    for _ in range(10_000):  # far above net.unix.max_dgram_qlen
        sd_notify.tell("WATCHDOG=1")
    assert end.recv(100) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("every", "whom", "seconds"),
    [
        ("3000000", None, 3.0),
        ("3000000", "own", 3.0),
        ("3000000", "1", None),
        ("0", None, None),
        ("-1", None, None),
        ("soon", None, None),
        ("3000000", "me", None),
        (None, None, None),
    ],
)
def test_how_often(monkeypatch: pytest.MonkeyPatch, every: str | None, whom: str | None, seconds: float | None) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@x")
    for name, value in (("WATCHDOG_USEC", every), ("WATCHDOG_PID", str(os.getpid()) if whom == "own" else whom)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert sd_notify.watchdog_seconds() == seconds
    sd_notify.forget()
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    assert sd_notify.watchdog_seconds() is None
