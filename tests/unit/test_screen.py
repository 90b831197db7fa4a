"""What commands show on a terminal of few columns, and in a pipe: progress on the first only, and nothing too wide."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import msgpack
import pytest

from shardfs.commands.progress import _span

REPOSITORY = Path(__file__).parents[2]
COLUMNS = 50


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    for number in range(4):
        (path / f"key{number}.gz").write_bytes(gzip.compress(msgpack.packb({"label": number})))
    (path / "key2.gz").write_bytes(b"no gzip")
    return path


def on_terminal(*words: str | Path, term: str = "xterm") -> tuple[int, str]:
    """Exit status, and what came on a terminal of COLUMNS columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "shardfs", *map(str, words)], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**environment, "PYTHONPATH": str(REPOSITORY), "TERM": term},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # EIO: the last one has closed it
        while piece := os.read(ours, 1 << 16):
            said += piece
    os.close(ours)
    return process.wait(20), said.decode()


@pytest.mark.parametrize("command", ["verify", "convert"])
def test_progress_on_a_terminal_and_nothing_of_it_in_a_pipe(store: Path, tmp_path: Path, command: str) -> None:
    def words(name: str) -> tuple[str | Path, ...]:
        target = (tmp_path / name, "--driver", "webdataset", "--keep-going") if command == "convert" else ()
        return (command, store, *target)

    status, shown = on_terminal(*words("first"))
    assert status == 1
    bars = [part for part in re.split(r"[\r\n]", shown) if "ing [" in part]
    assert bars, shown
    assert "4/4" in bars[-1]
    for bar in bars:
        assert bar.endswith("\x1b[K"), "the rest of a longer line would stay"
        assert len(bar.removesuffix("\x1b[K")) < COLUMNS
    done = subprocess.run(
        [sys.executable, "-m", "shardfs", *map(str, words("second"))],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert not set("\r\x1b") & set(done.stdout + done.stderr)


def test_nothing_is_written_anew_on_a_terminal_that_cannot(store: Path) -> None:
    """TERM=dumb, as in Emacs' shell: there were bars one behind the other, and codes between them."""
    status, shown = on_terminal("verify", store, term="dumb")
    assert status == 1
    assert "\x1b" not in shown
    assert [line for line in shown.replace("\r\n", "\n").split("\n") if "\r" in line or "ing [" in line] == []


def test_figures_are_such_as_people_read(store: Path) -> None:
    (store / "long.gz").write_bytes(gzip.compress(msgpack.packb({"label": 1}) * 1_234))
    _, shown = on_terminal("info", store, "long")
    told = dict(re.findall(r"^([a-z ]+?)  +(.*?)\r?$", shown, re.MULTILINE))
    assert told["samples"] == "1,234"
    assert told["raw bytes"] == "9.6 KiB (9,872 bytes)"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", told["mtime"])


def test_colours_are_for_terminals(store: Path) -> None:
    status, shown = on_terminal("doctor", store)
    assert status in (0, 1, 5)
    assert "\x1b[32mok      \x1b[0m kernel" in shown
    plain = re.sub(r"\x1b\[\d+m", "", shown)
    wide = [line for line in plain.splitlines() if len(line) > COLUMNS and " fix: " not in line]
    assert all(len(line.split()) <= 2 for line in wide), "only what is one word is wider"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (125, "2 min"), (7_300, "2 h 2 min")])
def test_how_long_it_takes(seconds: float, said: str) -> None:
    assert _span(seconds) == said
