"""Lines of the log: plain, as JSON, and as the journal takes them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardfs import config
from shardfs.commands import under_journal
from shardfs.log_formats import JsonLines, formatter
from shardfs.log_lines import LogLines

REPOSITORY = Path(__file__).parents[2]


def record(message: str, level: int = logging.WARNING, *values: object, failed: bool = False) -> logging.LogRecord:
    info = None
    if failed:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord("shardfs", level, "", 1, message, values, info)


NASTY = "key \n<0>forged \x1b[31m\u2028 \udcff %s"


@pytest.mark.parametrize("chosen", ["plain", "json"])
@pytest.mark.parametrize(("to_file", "journal"), [(True, False), (False, False), (False, True), (True, True)])
def test_a_record_is_a_line_whatever_is_in_it(chosen: str, to_file: bool, journal: bool) -> None:
    text = formatter(chosen, to_file=to_file, journal=journal).format(record(NASTY, logging.ERROR, "bär"))
    assert "\n" not in text
    assert text.encode("utf-8")
    assert text.startswith("<3>") == (journal and not to_file)
    if chosen == "json":
        assert json.loads(text.removeprefix("<3>"))["message"].startswith("key \n<0>forged")
    else:
        assert text.endswith(r"key \n<0>forged \x1b[31m\u2028 \udcff bär")


def test_plain_lines_are_as_they_were() -> None:
    one = record("it %s", logging.ERROR, "hangs")
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.created))
    in_file = formatter("plain", to_file=True, journal=False).format(one)
    assert in_file == f"{stamp},{int(one.msecs):03d} {os.getpid()} ERROR it hangs"
    assert formatter("plain", to_file=False, journal=False).format(one) == "shardfs: it hangs"
    assert formatter("plain", to_file=False, journal=True).format(one) == "<3>it hangs"


def test_json_lines_hold_all_of_a_failure() -> None:
    one = record("it hangs", failed=True)
    made = json.loads(JsonLines().format(one))
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(one.created))
    assert (made["level"], made["pid"], made["message"]) == ("warning", os.getpid(), "it hangs")
    assert made["time"] == f"{stamp}.{int(one.msecs):03d}Z"
    assert made["error"].startswith("Traceback")
    assert made["error"].endswith("ValueError: two\nlines")


def test_each_line_of_a_traceback_has_its_priority() -> None:
    lines = formatter("plain", to_file=False, journal=True).format(record("it hangs", failed=True)).split("\n")
    assert len(lines) > 3
    assert all(line.startswith("<4>") for line in lines)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_priorities(level: int, priority: int) -> None:
    assert formatter("plain", to_file=False, journal=True).format(record("x", level)) == f"<{priority}>x"


def test_kept_lines_of_json_are_json_and_bounded() -> None:
    lines = LogLines("json")
    for number in range(config.LOG_LINES + 5):
        lines.handle(record(f"{number} \u2028" + "y" * 5000, failed=True))
    found = [json.loads(line) for line in lines.text().decode().split("\n")[:-1]]
    assert len(found) == config.LOG_LINES
    assert found[-1]["message"].startswith(f"{config.LOG_LINES + 4} ")
    assert max(len(one["message"]) for one in found) == config.LOG_LINE


def test_the_journal_is_known_by_where_stderr_goes(tmp_path: Path) -> None:
    """As systemd sets it: device and inode of the socket that is standard error. A shell may have put it elsewhere."""
    log = tmp_path / "stderr"
    for stream, begun in (("same", "<3>"), ("other", "shardfs: "), ("", "shardfs: "), ("1:x", "shardfs: ")):
        with open(log, "wb") as file:
            found = os.fstat(file.fileno())
            named = {"same": f"{found.st_dev}:{found.st_ino}", "other": f"{found.st_dev}:{found.st_ino + 1}"}
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JOURNAL_STREAM": named.get(stream, stream)}
            command = [sys.executable, "-m", "shardfs", "ls", str(tmp_path / "none")]
            done = subprocess.run(command, stderr=file, env=environment, timeout=60, check=False)
        assert done.returncode == 3
        assert log.read_text() == f"{begun}no store at {tmp_path / 'none'}\n"


def test_no_journal_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert not under_journal()
