"""Real mounts looked at by `top`, `status` and `bench`, and recorded and played by `--trace` and `--replay`."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.trees import wait_for
from tests.mount.conftest import SlowStore, mounting, run, shardfs
from tests.mount.test_metrics import PLAIN, store_of

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]

COLUMNS = 80


def in_terminal(*words: str | Path, displays: int, **environment: str) -> tuple[int, str]:
    """What a command shows on a terminal of 80 columns until so many displays were begun, and its end by Ctrl-C."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    process = subprocess.Popen(
        shardfs(*words), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        with contextlib.suppress(OSError):  # EIO: it has ended
            while process.poll() is None and said.count(b"\x1b[H") < displays:
                said += os.read(ours, 1 << 16)
        process.send_signal(signal.SIGINT)
        return process.wait(20), said.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[a-zA-Z]", "", text)


def widest(text: str) -> int:
    return max(len(line) for line in plain(text).splitlines())


def lines_of(trace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trace.read_text().splitlines()]


def counted(trace: Path, *but: str) -> Counter[tuple[str, str | None, int]]:
    """Requests by operation, path and errno; of names below .shardfs and of the root none."""
    return Counter(
        (one["op"], one["path"], one["errno"])
        for one in lines_of(trace)[1:-1]
        if one["path"] and not one["path"].startswith(".shardfs") and one["op"] not in but
    )


def figures(path: Path) -> dict[str, int]:
    text = (path / ".shardfs/metrics").read_text()
    return {name: int(count) for name, count in re.findall(r'_requests_total\{operation="(\w+)"\} (\d+)', text)}


def test_a_session_is_recorded_and_played_again(tmp_path: Path) -> None:
    """What was asked is in the trace as the mount counted it; playing it asks the same of another mount."""
    store, first, second = store_of(tmp_path / "store", 3), tmp_path / "first", tmp_path / "second"
    with mounting(store, "--trace", str(first), "--no-index", **PLAIN) as path:
        for key in ("k0", "k1", "k0"):
            for name in sorted(os.listdir(path / key)):
                (path / key / name).read_bytes()
        with open(path / "k2/000001.x.bin", "rb") as file:
            file.seek(50_000)
            file.read(10)
        for name in ("one", "two"):
            assert not (path / "k0" / name).exists()
        before = figures(path)
        (path / ".shardfs/status.json").read_bytes()
    assert first.stat().st_mode & 0o777 == 0o600
    head, *lines, end = lines_of(first)
    assert (head["store"], head["mountpoint"], end) == (str(store), str(path), {"end": "unmounted", "lost": 0})
    assert [one["t"] for one in lines] == sorted(one["t"] for one in lines)
    recorded = Counter(one["op"] for one in lines)
    for name in ("open", "read", "opendir"):
        assert before[name] <= recorded[name] <= before[name] + 2, name  # and what looked at the metrics
    assert sum(one["size"] for one in lines if one["op"] == "read" and one["path"] == "k2/000001.x.bin") >= 10
    assert [one["path"] for one in lines if one["errno"] == 2] == ["k0/one", "k0/two"]

    with mounting(store, "--trace", str(second), "--no-index", **PLAIN) as path:
        done = run("bench", path, "--replay", first, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        played = json.loads(done.stdout)
    expected = Counter(one["op"] for one in lines if one["path"] is not None)
    assert played["played"] == {name: count for name, count in expected.items() if name in played["played"]}
    assert (played["left_out"], played["differing"], played["whole"]) == ({}, 0, True)
    assert played["implied"] == expected["readdir"] + expected["releasedir"]
    # the kernel asks for attributes when it will, and lists in as many answers as it likes
    its_own = ("getattr", "readdir", "lookup")
    assert counted(second, *its_own) == counted(first, *its_own)
    looked = {name for name in counted(second) if name[0] == "lookup"}
    assert looked >= {name for name in counted(first) if name[0] == "lookup"}


def test_paths_are_those_of_a_view_where_the_root_is_one(tmp_path: Path) -> None:
    """Files of a view have the numbers of stored files, and names come with listings of several kinds."""
    trace = tmp_path / "trace"
    with mounting(store_of(tmp_path / "store", 2), "--view", "by:label", "--trace", str(trace), **PLAIN) as path:
        names = {f"{folder}/{name}" for folder in os.listdir(path) for name in os.listdir(path / folder)}
        assert len(names) == 8
        for name in names:
            (path / name).stat()
            (path / name).read_bytes()
    _, *lines, _ = lines_of(trace)
    assert {one["path"] for one in lines if one["op"] == "open"} == names
    assert all(one["path"] is not None for one in lines)


def test_what_is_shown_of_a_mount_at_work(slow_store: SlowStore, tmp_path: Path) -> None:
    store_of(tmp_path / "made", 2)
    for path in (tmp_path / "made").iterdir():
        path.rename(slow_store.source / path.name)
    with mounting(slow_store.path, "--rw", "--write-back", "off", "--no-index", **PLAIN) as path:
        (path / "new").mkdir()
        (path / "new/000000.json").write_text('{"label": 1}')
        slow_store.hold("k1.gz")
        with subprocess.Popen(["ls", path / "k1"], stdout=subprocess.DEVNULL) as waiting:
            wait_for(lambda: json.loads(run("status", path, "--json").stdout)["loading"] == ["k1"])
            done = run("top", path, "-n", "2", "-d", "0.2", "--json")
            shown = run("top", path, "--once", COLUMNS=str(COLUMNS))
            status = run("status", path, COLUMNS=str(COLUMNS))
            slow_store.go_on("k1.gz")
            assert waiting.wait(30) == 0
        assert (done.returncode, done.stderr) == (0, "")
        last = [json.loads(line) for line in done.stdout.splitlines()][-1]
        assert len(done.stdout.splitlines()) == 2
        assert (last["mountpoint"], last["health"], last["loading"]) == (str(path), "serving", ["k1"])
        assert last["staged"] == {"keys": 1, "files": 1, "bytes": 12}
        assert last["resident_bytes"] > 10 << 20
        assert (shown.returncode, shown.stderr) == (0, "")
        for words in ("requests", "latency   p50", "memory", "loading   k1", "staged    1 key, 1 file"):
            assert words in shown.stdout
        assert "\x1b" not in shown.stdout + status.stdout
        assert widest(shown.stdout) <= COLUMNS
        assert max(map(len, status.stdout.splitlines()[1:])) <= COLUMNS  # the first has what is to be copied
        assert "loading k1" in status.stdout

        for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            ended, said = in_terminal("top", path, "-d", "0.1", displays=3, **environment)
            assert ended == 130
            assert ("\x1b[32m" in said) is coloured
            assert widest(said) <= COLUMNS
            assert said.count("\x1b[H") >= 3


def test_bench(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", 5)
    done = run("bench", store, "--seconds", "2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert (said["mounted_for_this"], said["keys"], said["loaded"] >= 5) == (True, 5, True)
    size = 5 * 4 * (100_000 + len('{"label": 0}\n'))
    assert (said["cold"]["files"], said["cold"]["bytes"]) == (5 * 4 * 2, size)
    assert (said["warm"]["files"], said["warm"]["bytes"]) == (5 * 4 * 2, size)
    assert 0 < said["first_byte_seconds"] <= said["first_byte_seconds_worst"]
    with mounting(store) as path:
        run("bench", path, "--seconds", "1")
        done = run("bench", path, "--seconds", "1", COLUMNS=str(COLUMNS))
        assert (done.returncode, done.stderr) == (0, "")
        assert "5 of the 5 keys were in memory already" in done.stdout
        assert widest(done.stdout) <= COLUMNS
        refused = run("bench", path, "--arrays", "npy")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
