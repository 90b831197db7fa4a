"""Traces: what is written, with its limits, and what a replay makes of one, whoever has written it."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import stat
from pathlib import Path
from time import perf_counter

import pytest

from shardfs import cli, config
from shardfs.errors import BadSettingError
from shardfs.replaying import Player, Replay, Traced, lines_of
from shardfs.tracing import Recorder, Request


def line(op: str, path: str | None, at: float = 0.0, offset: int = 0, size: int = 0, code: int = 0) -> Traced:
    return Traced(at, op, path, offset, size, 0.001, code)


def played(root: Path, *lines: Traced) -> Replay:
    player = Player(root)
    try:
        return player.play(iter(lines))
    finally:
        player.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    (path / "a").mkdir(parents=True)
    (path / "a/one").write_bytes(b"0123456789")
    return path


def test_a_trace_that_was_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    recorder = Recorder(path)
    name = os.fsdecode(b'a/\xff"\n')
    with recorder.running("s3://bucket", "/mnt"):
        recorder.add(Request(perf_counter(), "read", name, 4096, 100, 0.25, 0))
        recorder.add(Request(perf_counter(), "lookup", None, 0, 0, 0.0, errno.ENOENT))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with open(path, "rb") as file:
        first, second = lines_of(file)
    assert first == Traced(first.at, "read", name, 4096, 100, 0.25, 0)
    assert (second.path, second.code) == (None, errno.ENOENT)
    head, *_, end = map(json.loads, path.read_text().splitlines())
    assert (head["store"], head["mountpoint"], end) == ("s3://bucket", "/mnt", {"end": "unmounted", "lost": 0})


def test_it_ends_at_its_limit_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(tmp_path / "trace", limit=2_000)
    with caplog.at_level(logging.WARNING), recorder.running("s", "/m"):
        for _ in range(100):
            recorder.add(Request(perf_counter(), "getattr", "a", 0, 0, 0.0, 0))
    assert "has reached" in caplog.text
    assert recorder.full
    lines = (tmp_path / "trace").read_text().splitlines()
    assert json.loads(lines[-1]) == {"end": "limit", "lost": 0}
    assert 1_800 < sum(map(len, lines[:-1])) + len(lines) <= 2_000
    before = len(lines)
    recorder.add(Request(perf_counter(), "getattr", "a", 0, 0, 0.0, 0))
    assert len((tmp_path / "trace").read_text().splitlines()) == before


def test_what_comes_too_fast_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "TRACE_WAITING", 3)
    monkeypatch.setattr(config, "TRACE_EVERY", 60.0)
    recorder = Recorder(tmp_path / "trace")
    with recorder.running("s", "/m"):
        for _ in range(10):
            recorder.add(Request(perf_counter(), "getattr", "a", 0, 0, 0.0, 0))
    _, *lines, end = (tmp_path / "trace").read_text().splitlines()
    assert (len(lines), json.loads(end)["lost"]) == (3, 7)


def test_a_trace_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "trace").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "trace", tmp_path / "no/trace"):
        with pytest.raises(BadSettingError, match="--trace"):
            Recorder(path)


def test_what_is_played(root: Path) -> None:
    outcome = played(
        root,
        line("lookup", "a"),
        line("lookup", "a/none", code=errno.ENOENT),
        line("getattr", ""),
        line("opendir", "a"),
        line("readdir", "a"),
        line("releasedir", "a"),
        line("open", "a/one"),
        line("read", "a/one", offset=2, size=4096),
        line("read", "a/one", offset=10, size=4096),
        line("release", "a/one"),
        line("read", "a/one", size=3),  # of one that was opened before the trace began
        line("release", "a/one"),
        line("unlink", "a/one"),
        line("write", "a/one", size=3),
        line("read", None, size=3),
    )
    assert outcome.played == {"lookup": 2, "getattr": 1, "opendir": 1, "open": 1, "read": 3, "release": 2}
    assert (outcome.implied, outcome.left_out) == (2, {"unlink": 1, "write": 1, "read": 1})
    assert (outcome.read_bytes, outcome.differing, outcome.whole) == (8 + 0 + 3, 0, True)
    assert (root / "a/one").read_bytes() == b"0123456789"


def test_what_ends_otherwise_is_told(root: Path) -> None:
    outcome = played(root, line("lookup", "a/two"), line("open", "a/one", code=errno.EIO), line("lookup", "a/one"))
    assert (outcome.differing, len(outcome.examples)) == (2, 2)
    assert outcome.examples[0] == "lookup a/two: ENOENT, was no error"


def test_paths_of_a_trace_do_not_lead_out_of_the_directory(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (root / "link").symlink_to(tmp_path / "secret")
    outcome = played(root, line("open", "../secret"), line("open", str(tmp_path / "secret")), line("open", "link"))
    assert outcome.left_out == {"open": 2}
    assert outcome.differing == 1
    assert "ELOOP" in outcome.examples[0]


def test_no_more_files_are_held_open_than_may_be(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "REPLAY_OPEN", 4)
    before = len(os.listdir("/proc/self/fd"))
    player = Player(root)
    player.play(iter([line("open", "a/one")] * 50))
    assert len(os.listdir("/proc/self/fd")) == before + 1 + 4
    player.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_at_the_pace_of_then_or_another_and_for_a_time(root: Path) -> None:
    now = 100.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(round(seconds, 6))
        now += seconds

    lines = [line("getattr", "a", at=at) for at in (0.0, 1.0, 4.0, 4.0)]
    player = Player(root, clock=lambda: now, sleep=sleep)
    assert player.play(iter(lines), speed=2.0).played == {"getattr": 4}
    assert slept == [0.5, 1.5]
    slept.clear()
    assert not player.play(iter(lines), speed=1.0, seconds=3.0).whole
    player.close()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"no trace\n",
        b'{"trace": 2}\n',
        b"[" * 100_000,
        b'{"trace": 1}\n{"t": 1}\n{"t": 1}\n',
        b'{"trace": 1}\n{"t":0,"op":"read","path":"a","offset":-1,"size":1,"seconds":0,"errno":0}\n',
        b'{"trace": 1}\n{"t":0,"op":"read","path":"a","offset":0,"size":1e400,"seconds":0,"errno":0}\n',
        b'{"trace": 1}\n{"t":0,"op":"read","path":"a\\u0000","offset":0,"size":1,"seconds":0,"errno":0}\n',
        b'{"trace": 1}\n' + b"x" * (1 << 20),
    ],
    ids=range(9),
)
def test_what_is_no_trace_is_told(text: bytes, root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(BadSettingError, match=r"trace"):
        list(lines_of(io.BytesIO(text)))


def test_one_whose_writer_died_is_played_up_to_there(root: Path) -> None:
    whole = '{"trace": 1}\n{"t":0,"op":"getattr","path":"a","offset":0,"size":0,"seconds":0,"errno":0}\n'
    assert len(list(lines_of(io.BytesIO((whole + whole.splitlines()[1][:30]).encode())))) == 1


def test_bad_usage_of_bench_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, status in (
        (["--speed", "2"], 2),
        (["--seconds", "0"], 2),
        (["--replay", "/nonexistent"], 2),
        (["--endpoint", "http://127.0.0.1:1"], 2),
        ([], 3),
    ):
        assert cli.main(["bench", str(tmp_path / "none"), *words]) == status, words
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "Traceback" not in err
