"""`shardfs index`: builds, checks, exports or imports the persistent index of a store."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from shardfs.commands import FAILED, OK, as_json, tell
from shardfs.commands.options import cache_options, store_options, style
from shardfs.commands.progress import Progress
from shardfs.errors import BadSettingError, StorageError
from shardfs.indexing import Report, build_all, open_database, publish
from shardfs.opening import open_store


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    if arguments.export_file and os.path.lexists(arguments.export_file):
        raise BadSettingError(f"{arguments.export_file} is there already: name a new file")
    if arguments.import_file and arguments.publish:
        raise BadSettingError("--publish is for an index that is made here, not for one that is taken over")
    jobs = (os.cpu_count() or 1) if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise BadSettingError(f"--jobs {jobs}: at least 1")
    store = open_store(arguments.store, arguments.driver, **store_options(arguments), **cache_options(arguments))
    arrays = style(arguments.arrays, arguments.text)
    database = open_database(store, arrays)
    if database is None:
        raise BadSettingError("there is no home to keep the index in: set HOME or XDG_CACHE_HOME")
    try:
        if arguments.import_file:
            return _told(
                arguments, {"index": str(database.path), "imported": database.take(Path(arguments.import_file))}
            )
        with Progress("indexing") as bar:
            report = build_all(
                store,
                database,
                arrays,
                jobs=jobs,
                check=arguments.check,
                light=arguments.light,
                progress=lambda report: bar.show(report.built + report.kept + len(report.failed), report.shards),
            )
        if not database.usable:
            raise StorageError(f"nothing was kept: the index {database.path} cannot be written to")
        written = {}
        if arguments.export_file:
            written["exported"] = database.export(Path(arguments.export_file))
        if arguments.publish:
            written["published"] = publish(store, database)
        return _result(arguments, report, str(database.path), written)
    finally:
        database.close()


def _result(arguments: argparse.Namespace, report: Report, path: str, written: dict[str, int]) -> int:
    facts: dict[str, object] = {
        "index": path,
        "shards": report.shards,
        "built": report.built,
        "kept": report.kept,
        "dropped": report.dropped,
        "failed": report.failed,
    }
    if arguments.check:
        facts["differing"] = report.differing
    facts |= written
    for key, reason in report.failed.items():
        tell(f"{key}: {reason}")
    for key in report.differing:
        tell(f"{key}: the index said something else than the shard, and was put right")
    _told(arguments, facts)
    return FAILED if report.failed or report.differing else OK


def _told(arguments: argparse.Namespace, facts: dict[str, object]) -> int:
    if arguments.json:
        print(as_json(facts))
    else:
        for name, value in facts.items():
            count = len(value) if isinstance(value, dict | list) else value
            print(f"{name:<10} {f'{count:,}' if isinstance(count, int) else count}")
    sys.stdout.flush()
    return OK
