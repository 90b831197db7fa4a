"""Runs parts of CPython's own test suite where it is started, and prints what came of each test.

`python cpython_suite.py MODULE...` prints a line of JSON for each: its id, `ok`, `skip`, `xfail` or `bad`, and why.
Left out is what takes long and has little to do with files.
"""

from __future__ import annotations

import json
import sys
import unittest
from collections.abc import Iterator
from types import TracebackType
from typing import Any

SLOW = (
    *("SignalsTest", "test_daemon_threads", "test_slow_close_from_thread", "test_glob_many_open_files", "test_fork"),
    *("BufferedReaderTest", "BufferedWriterTest", "BufferedRWPairTest", "BufferedRandomTest", "TextIOWrapperTest"),
)

Failure = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class Report(unittest.TestResult):
    """One line for each test."""

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._said = "ok", ""

    def addError(self, test: unittest.TestCase, err: Failure) -> None:
        text = f"{(err[0] or Exception).__name__}: {err[1]}"
        if hasattr(test, "_testMethodName"):
            self._said = "bad", text
        else:  # what prepares a class or a module has failed, and none of its tests runs
            print(json.dumps([test.id(), "bad", text]), flush=True)

    addFailure = addError

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        if hasattr(test, "_testMethodName"):
            self._said = "skip", reason

    def addExpectedFailure(self, test: unittest.TestCase, err: Failure) -> None:
        self._said = "xfail", ""

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._said = "bad", "should have failed"

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addError(test, err)

    def stopTest(self, test: unittest.TestCase) -> None:
        print(json.dumps([test.id(), *self._said]), flush=True)


def cases(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """The tests of a suite."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from cases(test)
        elif not any(word in test.id() for word in SLOW):
            yield test


def main() -> None:
    loaded = unittest.defaultTestLoader.loadTestsFromNames([f"test.{name}" for name in sys.argv[1:]])
    unittest.TestSuite(cases(loaded)).run(Report())


if __name__ == "__main__":
    main()
