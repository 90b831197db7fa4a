"""`shardfs convert`: copies the keys of one store into another, of another format if so wished."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import Any
from urllib.parse import urlsplit

from shardfs.commands import FAILED, OK, as_json, one_line, tell
from shardfs.commands.options import cache_options, store_options
from shardfs.commands.progress import Progress
from shardfs.commands.tabular import size
from shardfs.converting import Report, convert_all
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.errors import BadSettingError, BadStoreError
from shardfs.in_order import cores
from shardfs.opening import detect_url, local_path, open_store
from shardfs.storage.local import LocalStorage
from shardfs.storage.urls import is_far
from shardfs.store import Store

_SAME = {"s3a": "s3", "gcs": "gs", "azure": "az", "abfs": "az", "abfss": "az"}
"""Schemes that mean the same object stores."""

_COMPRESSION = re.compile(r"(none|gz|zst|zstd|bz2|br|snappy)(?::([0-9]{1,2}))?")

_NO_TARGETS = ("mltraq", "superduper")
"""Systems whose stores are not made of shards that are written as a whole."""


def run(arguments: argparse.Namespace) -> int:
    if sys.stdout is None:
        raise OSError("there is no standard output")
    jobs = cores() if arguments.jobs is None else arguments.jobs
    if jobs < 1:
        raise BadSettingError(f"--jobs {jobs}: at least 1")
    _check_target(arguments.target, arguments.driver)
    source = open_store(arguments.source, arguments.from_driver, **_where(arguments, arguments.source))
    _check_apart(source, arguments.target)
    target = _open_target(arguments)
    with Progress("converting") as bar:
        report = convert_all(
            source.driver,
            target.driver,
            keys=arguments.keys,
            jobs=jobs,
            keep_going=arguments.keep_going,
            progress=lambda report: bar.show(report.done, report.keys),
        )
    for problem in source.driver.problems:
        tell(one_line(problem))
    if not report.keys:
        raise BadSettingError(f"{arguments.source} has no key that --keys {arguments.keys} fits")
    return _result(arguments, target, report)


def _check_target(target: str, driver: str | None) -> None:
    """Before anything of it is opened."""
    scheme = urlsplit(target).scheme if "://" in target else ""
    if driver in _NO_TARGETS or "+" in scheme:
        what = driver or scheme.partition("+")[0]
        raise BadSettingError(f"{what} cannot be converted into: use squirrel, squirrel-jsonl, streaming or webdataset")


def _where(arguments: argparse.Namespace, store: str) -> dict[str, Any]:
    """How one of the two stores is reached, which is said of whichever is far away. BadSettingError if none is."""
    made = {**store_options(arguments), **cache_options(arguments)}
    if made and not is_far(arguments.source) and not is_far(arguments.target):
        said = ", ".join(f"--{name.replace('_', '-')}" for name in made)
        raise BadSettingError(f"{said}: for stores far away, and neither of the two is")
    return made if is_far(store) else {}


def _check_apart(source: Store, target: str) -> None:
    """The source is never written to, also not by a target that lies in it; and no store is to show another's files."""
    if is_far(target):
        places, there = [_far_path(url) for url in (source.url,) if is_far(url)], _far_path(target)
    else:
        places, there = [os.path.realpath(place) for place in source.places], os.path.realpath(local_path(target))
        storage = getattr(source.driver, "storage", None)
        if isinstance(storage, LocalStorage):  # a database's artifacts may lie apart from it
            places.append(os.path.realpath(storage.root))
    if any(os.path.commonpath([place, there]) in (place, there) for place in places):
        raise BadSettingError(f"{source.url} and {target}: one is the other, or lies in it; name another directory")


def _far_path(url: str) -> str:
    """Object store, bucket and prefix as a path. Both stores are at the same endpoint, as one can be said."""
    parts = urlsplit(url)
    return os.path.normpath(f"/{_SAME.get(parts.scheme, parts.scheme)}/{parts.netloc.rpartition('@')[2]}/{parts.path}")


def _open_target(arguments: argparse.Namespace) -> Store:
    """The store to write to: what lies there already must be of the same kind."""
    target, driver, compression = arguments.target, arguments.driver, arguments.compression
    where = _where(arguments, target)
    try:
        found = detect_url(target, **where)
    except BadStoreError as error:
        if driver is None:
            raise BadSettingError(f"{target} is no store yet: say with --driver what it is to become") from error
        found = None
    if found is not None and driver is not None and found != _kind(driver):
        raise BadStoreError(f"{target} is a {found} store already, so no {driver} store can be made there")
    chosen = driver or found
    assert chosen is not None
    options = {**_options(chosen, compression), **_format(chosen, arguments.format)}
    store = open_store(target, chosen, **where, **options)
    if driver is None and arguments.format is None and isinstance(store.driver, SquirrelDriver):
        entries = store.driver.entries()
        if entries and store.driver.format_of(entries[0]) == "jsonl":  # as what is there
            return open_store(target, "squirrel-jsonl", **where, **options)
    return store


def _kind(driver: str) -> str:
    return driver.partition("-")[0]


def _options(driver: str, compression: str | None) -> dict[str, Any]:
    """What `--compression` means to a driver. BadSettingError for a word that it has not."""
    if compression is None:
        return {}
    match = _COMPRESSION.fullmatch(compression)
    if match is None:
        raise BadSettingError(
            f"--compression {compression}: use gz, zst or none, for streaming also bz2, br or snappy; with a level as "
            "in zst:9 if need be"
        )
    codec, level = match[1], match[2]
    if _kind(driver) in ("squirrel", "webdataset"):
        if codec not in ("gz", "zst", "zstd", "none") or (codec == "none" and _kind(driver) == "squirrel"):
            raise BadSettingError(f"--compression {codec}: {_kind(driver)}'s shards are gz or zst")
        return {"compression": codec.removesuffix("d"), "level": None if level is None else int(level)}
    codec = "zstd" if codec == "zst" else codec
    return {"compression": codec if level is None else f"{codec}:{level}"}


def _format(driver: str, format: str | None) -> dict[str, Any]:
    """What `--format` means to a driver. BadSettingError for a word that it has not."""
    if format is None:
        return {}
    if driver == "streaming":
        return {"format": format}  # the driver says which it has
    if driver == "squirrel" and format in ("msgpack", "jsonl"):
        return {"format": format}
    known = {"streaming": "mds, json, csv, tsv and xsv", "squirrel": "msgpack and jsonl"}.get(driver)
    raise BadSettingError(f"--format {format}: {driver} has {known or 'no formats to choose from'}")


def _result(arguments: argparse.Namespace, target: Store, report: Report) -> int:
    _tell_changes(report)
    for key, reason in report.failed.items():
        tell(one_line(f"{key}: {reason}"))
    left = report.keys - report.done
    if left:
        tell(f"{left} keys were not tried after that; --keep-going tries them, and the same command goes on from here")
    facts: dict[str, object] = {
        "source": arguments.source,
        "target": target.url,
        "driver": target.driver.name,
        "keys": report.keys,
        "converted": report.converted,
        "kept": report.kept,
        "samples": report.samples,
        "stored_bytes": report.stored_bytes,
        "failed": report.failed,
        "changed": [
            {"field": name, "was": was, "is": becomes, "samples": count}
            for (name, was, becomes), count in report.changes.items()
        ],
    }
    if arguments.json:
        print(as_json(facts))
    else:
        for name, value in facts.items():
            print(f"{name.removesuffix('_bytes'):<12} {_plain(name, value)}")
    sys.stdout.flush()
    return FAILED if report.failed else OK


def _plain(name: str, value: object) -> str:
    if isinstance(value, int):
        return size(value) if name.endswith("_bytes") else f"{value:,}"
    return f"{len(value):,}" if isinstance(value, dict | list) else one_line(str(value))


def _tell_changes(report: Report) -> None:
    """A table of the types that the target does not have, on stderr."""
    if not report.changes:
        return
    rows = [("FIELD", "WAS", "IS", "SAMPLES")]
    rows += [(one_line(name), was, becomes, str(count)) for (name, was, becomes), count in report.changes.items()]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    tell("what the target has no word for, and what it has become:")
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
        print("  ".join(("", *cells, row[3])), file=sys.stderr)
    sys.stderr.flush()
