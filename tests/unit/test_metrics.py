"""Counters, histograms and their text; the list of damage; the last lines of the log."""

from __future__ import annotations

import logging

import pytest

from shardfs import config
from shardfs.damage import DamageList
from shardfs.log_lines import LogLines, kept_lines
from shardfs.metrics import BOUNDS, Family, Latency, Meter, exposition, family


def test_buckets_hold_what_took_no_longer_than_their_bound() -> None:
    seen = Latency()
    for seconds in (0.0, BOUNDS[0], 0.0005, BOUNDS[1], 0.05, BOUNDS[-1], 11.0, 1e9):
        seen.add(seconds)
    expected = [sum(s <= bound for s in (0.0, 0.0001, 0.0005, 0.001, 0.05, 10.0, 11.0, 1e9)) for bound in BOUNDS]
    assert seen.buckets() == [*expected, 8]
    assert seen.seconds == 0.0 + 0.0001 + 0.0005 + 0.001 + 0.05 + 10.0 + 11.0 + 1e9


def test_the_text_is_what_prometheus_reads() -> None:
    meter = Meter()
    meter.operations["read"].add(0.5)
    meter.failed("read", "EIO")
    families = [family("keys", "gauge", "Keys.", 3), Family("odd", "counter", "a\nb", [({"what": 'q"\\\n'}, 1.5)])]
    lines = exposition(families, meter, "p").splitlines()
    assert 'p_requests_total{operation="read"} 1' in lines
    assert 'p_errors_total{operation="read",errno="EIO"} 1' in lines
    assert 'p_request_seconds_bucket{operation="read",le="0.1"} 0' in lines
    assert 'p_request_seconds_bucket{operation="read",le="1.0"} 1' in lines
    assert 'p_request_seconds_bucket{operation="read",le="+Inf"} 1' in lines
    assert lines[-6:] == [
        *("# HELP p_keys Keys.", "# TYPE p_keys gauge", "p_keys 3"),
        *("# HELP p_odd a\\nb", "# TYPE p_odd counter", 'p_odd{what="q\\"\\\\\\n"} 1.5'),
    ]


def test_damage_is_counted_and_bounded() -> None:
    found = DamageList()
    for _ in range(3):
        found.note("a", "1", "bad", offset=5)
    found.note("a", "1", "cell", file="000000.x.bin")
    assert [(one.file, one.count, one.offset) for one in found] == [(None, 3, 5), ("000000.x.bin", 1, None)]
    for number in range(config.ERRORS_KEPT):
        found.note(f"k{number}", "1", "bad")
    assert (len(found), found.dropped) == (config.ERRORS_KEPT, 2)


def test_the_log_is_bounded() -> None:
    lines = LogLines()
    for number in range(config.LOG_LINES + 5):
        lines.handle(logging.LogRecord("x", logging.ERROR, "", 1, f"line {number} " + "y" * 5000, None, None))
    text = lines.text().decode()
    assert text.count("\n") == config.LOG_LINES
    assert max(map(len, text.splitlines())) == config.LOG_LINE
    assert f"line {config.LOG_LINES + 4} " in text
    assert "line 4 " not in text


def test_keeping_lines_does_not_silence_who_has_set_up_no_logging(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, root.handlers = root.handlers, []
    try:
        with kept_lines() as lines:
            logging.getLogger("shardfs").error("it still hangs")
        assert root.handlers == []
    finally:
        root.handlers = before
    assert b"ERROR it still hangs" in lines.text()
    assert capsys.readouterr().err == "it still hangs\n"
