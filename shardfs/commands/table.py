"""`shardfs table`: all samples of a store as one table, without a mount."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from shardfs import sample_tables
from shardfs.commands import FAILED, OK, tell
from shardfs.commands.options import cache_options, store_options, style
from shardfs.commands.progress import Progress
from shardfs.errors import BadSettingError, DamagedShardError
from shardfs.index_db import IndexDb
from shardfs.indexing import build_all, open_database
from shardfs.light_where import Where
from shardfs.model import Entry
from shardfs.narrowing import Narrowing
from shardfs.opening import open_store
from shardfs.sample_tables import Shown, Source
from shardfs.scanning import Scan
from shardfs.store import Store
from shardfs.tree import KeyTree


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    where = None if arguments.where is None else Where(arguments.where)
    format = _format(arguments)
    store = open_store(arguments.store, arguments.driver, **store_options(arguments), **cache_options(arguments))
    if arguments.keys is not None:
        store = store.choosing(arguments.keys)
    arrays = style(arguments.arrays, arguments.text)
    database = open_database(store, arrays)
    failed: dict[str, str] = {}
    try:
        if database is not None:
            failed = _index(store, database, arrays)
        _write(store, database, arrays, where, format, arguments.output, failed)
    finally:
        if database is not None:
            database.close()
    for key, reason in failed.items():
        tell(f"{key} is left out: {reason}")
    return FAILED if failed else OK


def _format(arguments: argparse.Namespace) -> str:
    output = arguments.output
    if output is not None and os.path.lexists(output):
        raise BadSettingError(f"{output} is there already: name a new file")
    format: str = arguments.format or ("parquet" if (output or "").endswith(".parquet") else "jsonl")
    if format == "parquet" and output is None and sys.stdout.isatty():
        raise BadSettingError("a Parquet file is nothing to look at: name a file with -o")
    return format


def _index(store: Store, database: IndexDb, arrays: str) -> dict[str, str]:
    """Bring the index up to date, as what it has need not be read; keys that cannot be read, and why."""
    with Progress("indexing") as bar:
        report = build_all(
            store,
            database,
            arrays,
            jobs=os.cpu_count() or 1,
            light=True,
            progress=lambda report: bar.show(report.built + report.kept + len(report.failed), report.shards),
        )
    return report.failed


def _write(
    store: Store,
    database: IndexDb | None,
    arrays: str,
    where: Where | None,
    format: str,
    output: str | None,
    failed: dict[str, str],
) -> None:
    tree = KeyTree(store.driver.entries())
    keys = [Shown(key.entry, tree.path(key)) for key in tree.slots if key.entry.key not in failed]
    narrowing = None if where is None else Narrowing(where, arrays, database, tell)
    scan = Scan(store.driver, database, arrays, narrowing)

    def damaged(entry: Entry, error: DamagedShardError) -> None:
        failed[entry.key] = str(error)

    with _opened(output) as file:
        sample_tables.write(Source(keys, scan.table, scan.light, damaged=damaged), format, file)


@contextlib.contextmanager
def _opened(output: str | None) -> Iterator[BinaryIO]:
    """Where the table goes; a file has its name once it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = Path(f"{output}.unfinished-{os.getpid()}")
    try:
        with open(unfinished, "xb") as file:
            yield file
        os.link(unfinished, output)  # not over what somebody has put there meanwhile
    finally:
        unfinished.unlink(missing_ok=True)
