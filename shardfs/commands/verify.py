"""`shardfs verify`: reads every shard of a store, or some, and tells what is not as it should be."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from shardfs.commands import FAILED, OK, as_json, one_line, tell
from shardfs.commands.options import cache_options, store_options, style
from shardfs.commands.progress import Progress
from shardfs.commands.tabular import number, size
from shardfs.errors import BadSettingError, MissingKeyError
from shardfs.model import Entry
from shardfs.opening import open_store
from shardfs.storage.urls import is_far
from shardfs.verifying import Finding, Report, verify


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    jobs = (os.cpu_count() or 1) if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise BadSettingError(f"--jobs {jobs}: at least 1")
    # what lies in the cache on disk is not what lies in the store, so it is passed by unless it is asked for
    cached = any(map(arguments.settled.by_flag, ("cache_dir", "cache_size"))) or not is_far(arguments.store)
    options: dict[str, Any] = {**store_options(arguments), **cache_options(arguments)}
    options |= {} if cached else {"cache_size": 0}
    store = open_store(arguments.store, arguments.driver, **options)
    entries = _chosen(store.driver.entries(), arguments.keys)
    begun = time.monotonic()
    with Progress("verifying") as bar:
        report = verify(
            store.driver,
            entries,
            style(arguments.arrays, arguments.text),
            jobs=jobs,
            progress=lambda report: bar.show(report.sound + report.bad + report.gone, report.shards),
        )
    _tell(arguments, report, list(store.driver.problems), time.monotonic() - begun)
    sys.stdout.flush()
    return FAILED if report.findings or store.driver.problems else OK


def _chosen(entries: list[Entry], patterns: list[str]) -> list[Entry]:
    """Those that fit a pattern, or all. MissingKeyError for a pattern that nothing fits."""
    for pattern in patterns:
        if not any(fnmatchcase(entry.key, pattern) for entry in entries):
            raise MissingKeyError(f"no key fits {pattern}")
    return [entry for entry in entries if not patterns or any(fnmatchcase(entry.key, one) for one in patterns)]


def _tell(arguments: argparse.Namespace, report: Report, problems: list[str], seconds: float) -> None:
    if arguments.json:
        facts: dict[str, Any] = {"store": arguments.store, **asdict(report), "problems": problems}
        print(as_json({**facts, "seconds": round(seconds, 3)}))
        return
    for finding in report.findings:
        print(one_line(_line(finding)))
    if report.untold:
        print(f"and {report.untold:,} more of the same shards")
    for problem in problems:
        print(one_line(f"not shown: {problem}"))
    read = f"{number(report.samples, 'sample')}, {size(report.raw_bytes)}"  # of 80 columns
    outcome = f"{number(report.bad, 'shard')} of {report.shards:,} with findings" if report.bad else "all sound"
    tell(f"{number(report.shards, 'shard')}: {outcome}; {read}, {seconds:.1f} s")


def _line(finding: Finding) -> str:
    where = finding.key if not finding.file else f"{finding.key}/{finding.file}"
    at = "" if finding.offset is None else f" at byte {finding.offset}"
    if finding.file == "":
        return f"{where}: not shown: {finding.reason}"
    if finding.file is not None:
        return f"{where}: shown as bytes: {finding.reason}"
    return (
        f"{where}: damaged{at}: {finding.reason}" if finding.damaged else f"{where}: cannot be read: {finding.reason}"
    )
