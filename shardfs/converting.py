"""The keys of one store into another, of whatever format, without a mount. Knows nothing of what is printed.

Each sample is written as the seal of a copy of its files would write it: `copying` makes the value that would be read
back, so the files are the same, byte for byte and in the same order, through either store's tree. Python's own view of
a sample (`Store.get`) would not do: it has tuples where the tree has lists, and pictures as objects of Pillow. Where
both stores have records of one form these are copied as they are, with all their types.

A key is in the target when it is complete, and not before: a driver's `write_records` gives the file of a shard its
name last, and in a Streaming data set what counts is the index, which is replaced last. So a key that the target lists
needs no second look, and a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

from shardfs import config, names
from shardfs.copying import Rules, changes, copied, has_extension, read_members, rules_between, shown
from shardfs.drivers import mds, mds_writing
from shardfs.drivers.base import (
    Cell,
    Driver,
    Files,
    KeepsFiles,
    KeptFiles,
    LinksFiles,
    NamesSamples,
    NewRecord,
    Record,
    Shard,
    Value,
    Verbatim,
)
from shardfs.drivers.mltraq_experiments import EXPERIMENT
from shardfs.drivers.mltraq_shards import MltraqShard
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.drivers.squirrel_shards import SquirrelShard
from shardfs.drivers.streaming import ChooseColumns, RowColumns, StreamingDriver
from shardfs.drivers.text_columns import TextSurvey
from shardfs.errors import DamagedShardError, NotWritableError, ShardfsError, StaleShardError
from shardfs.gathering import Gathered, LinkedShard
from shardfs.lowering import Lowering
from shardfs.model import Entry, Key
from shardfs.reading_back import field_name
from shardfs.table_building import KEY_FIELD
from shardfs.values import Buffer, Members, Tree

Change = tuple[str, str, str]
"""Field, what it was in the source, what it is in the target."""


@dataclass(slots=True)
class Report:
    """What came of converting a store."""

    keys: int = 0
    converted: int = 0
    kept: int = 0
    """Keys that the target had already."""
    samples: int = 0
    """Samples that were written."""
    stored_bytes: int = 0
    """Bytes that their shards take in the target."""
    changes: Counter[Change] = field(default_factory=Counter)
    """What became of types that the target does not have, with the number of samples."""
    failed: dict[str, str] = field(default_factory=dict)
    """Key -> reason, of keys that could not be converted."""

    @property
    def done(self) -> int:
        return self.converted + self.kept + len(self.failed)


@dataclass(slots=True)
class _Copy:
    """A key on its way."""

    key: Key
    records: Iterator[NewRecord]
    columns: ChooseColumns | RowColumns | None = None
    """For a target with columns."""
    named: bool = False
    """Samples that are files have names of their own, and not the numbers that the target gives them."""
    samples: int = 0
    stored_bytes: int = 0
    changes: Counter[Change] = field(default_factory=Counter)


class _StoppedError(Exception):
    """Another key has failed, or somebody interrupts."""


def convert_all(
    source: Driver,
    target: Driver,
    *,
    keys: str = "*",
    jobs: int,
    keep_going: bool = False,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Copy all keys whose names the pattern `keys` fits (`*` takes `/` too) and that `target` does not have yet.

    `jobs` shards at a time are read, and written where their order does not matter: in a Streaming data set shards
    follow one another as their keys do in `source`. The first key that fails ends it (`Report.failed` says why) unless
    `keep_going`. BadStoreError, StorageError for a store that cannot be listed; what else fails is in the report.
    """
    chosen = [entry for entry in source.entries() if fnmatchcase(entry.key, keys)]
    there = _keys(target)
    report = Report(len(chosen), kept=sum(entry.key in there for entry in chosen))
    run = _Run(source, target)
    waiting = deque(entry for entry in chosen if entry.key not in there)
    with ThreadPoolExecutor(jobs, "shardfs-convert") as pool:
        try:
            for future, entry in _finished(pool, run.work, waiting, jobs, run.ordered):
                _note(report, run, entry, future)
                if report.failed and not keep_going:
                    run.stop.set()
                    waiting.clear()
                progress(report)
        except BaseException:
            run.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return report


def _keys(target: Driver) -> set[Key]:
    if isinstance(target, StreamingDriver) and target.is_new():
        return set()
    return {entry.key for entry in target.entries()}


def _finished(
    pool: ThreadPoolExecutor, work: Callable[[Entry], _Copy], waiting: deque[Entry], jobs: int, ordered: bool
) -> Iterator[tuple[Future[_Copy], Entry]]:
    """The work for each entry when it is done, a few at a time; in the entries' order if `ordered`."""
    running: dict[Future[_Copy], Entry] = {}
    while waiting or running:
        while waiting and len(running) <= jobs:
            entry = waiting.popleft()
            running[pool.submit(work, entry)] = entry
        done = [next(iter(running))] if ordered else wait(running, return_when=FIRST_COMPLETED).done
        for future in done:
            yield future, running.pop(future)


def _note(report: Report, run: _Run, entry: Entry, future: Future[_Copy]) -> None:
    try:
        copy = future.result()
        if run.ordered:
            run.write(copy)
    except _StoppedError:
        return
    except (ShardfsError, OSError) as error:
        if isinstance(error, DamagedShardError):
            error.key = None  # the report has it
        report.failed[entry.key] = str(error)
        return
    report.converted += 1
    report.samples += copy.samples
    report.stored_bytes += copy.stored_bytes
    report.changes += copy.changes


class _Run:
    """What all keys have in common."""

    def __init__(self, source: Driver, target: Driver) -> None:
        self._source = source
        self._target = target
        self.ordered = isinstance(target, StreamingDriver)
        self.stop = threading.Event()

    def work(self, entry: Entry) -> _Copy:
        """Read one key, and write it where the order does not matter."""
        copy = self._read(entry)
        if not self.ordered:
            self.write(copy)
        return copy

    def write(self, copy: _Copy) -> None:
        if self.stop.is_set():
            raise _StoppedError
        if isinstance(self._target, StreamingDriver) and copy.columns is not None:
            entry = self._target.append(copy.key, copy.records, copy.columns)
        else:
            entry = self._target.write_records(copy.key, copy.records, base=None)
        copy.stored_bytes = entry.stored_bytes

    def _read(self, entry: Entry) -> _Copy:
        if self.stop.is_set():
            raise _StoppedError
        try:
            shard = self._source.load(entry, lambda _: None)
        except StaleShardError:  # replaced since the listing
            shard = self._source.load(self._source.entry(entry.key), lambda _: None)
        form, wanted = _form(shard), _form_of(self._target)
        if form == wanted and form != "files":
            return self._verbatim(entry.key, shard)
        if wanted == "files":
            copy = _Copy(entry.key, iter(()))
            copy.records = self._files(copy, shard)
            return copy
        rules = rules_between(form, wanted)
        copy = _Copy(entry.key, iter(()), named=form == "files" and _are_named(shard, self.ordered))
        if isinstance(self._target, StreamingDriver):
            self._survey(copy, shard, wanted, rules)
            copy.records = self._values(copy, shard, None)
        else:
            copy.records = self._values(copy, shard, rules)
        return copy

    def _survey(self, copy: _Copy, shard: Shard, wanted: str, rules: Rules) -> None:
        """Look at all samples for the columns that hold them, and note what those change. BadSettingError."""
        assert isinstance(self._target, StreamingDriver)
        survey: mds_writing.Survey | TextSurvey = mds_writing.Survey()
        if wanted == "rows":
            survey = TextSurvey(str(self._target.format), self._target.separator)
        if _is_apart(shard, EXPERIMENT):
            copy.changes[EXPERIMENT, "the experiment's own fields", "nothing: they have no columns"] += 1
        for name, record in self._records(shard):
            lowering, found = Lowering(wanted), _found(shard, record)
            survey.add(_value(shard, found, name, copy, lowering, whole=False), name)
            copy.changes.update([*_changes(found.tree, rules), *found.changes, *lowering.changes])
        if isinstance(survey, TextSurvey):
            copy.columns = survey.columns()
            copy.changes.update(survey.changes())
        else:
            copy.columns = survey.columns

    def _verbatim(self, key: Key, shard: Shard) -> _Copy:
        runs = [(record.start, record.end) for record in shard.records()]  # all are looked at before any is written
        copy = _Copy(key, self._runs(shard, runs), samples=len(runs))
        if isinstance(shard, mds.MdsShard):
            columns = shard.columns
            copy.columns = lambda before: columns
        return copy

    def _runs(self, shard: Shard, runs: Iterable[tuple[int, int]]) -> Iterator[NewRecord]:
        for start, end in runs:
            if self.stop.is_set():
                raise _StoppedError
            yield Verbatim(shard.raw[start:end])

    def _values(self, copy: _Copy, shard: Shard, rules: Rules | None) -> Iterator[NewRecord]:
        """The samples to be encoded; they are counted as they are taken, and with `rules` their changes too."""
        for name, record in self._records(shard):
            copy.samples += 1
            lowering, found = Lowering(_form_of(self._target)), _found(shard, record)
            value = _value(shard, found, name, copy, lowering)
            if rules is not None:
                copy.changes.update([*_changes(found.tree, rules), *found.changes, *lowering.changes])
            yield Value(value, name)

    def _files(self, copy: _Copy, shard: Shard) -> Iterator[NewRecord]:
        """The samples as the files that show them; out of a shard of such files, with all that stands around them."""
        for at, (name, record) in enumerate(self._records(shard)):
            copy.samples += 1
            stored = _stored_files(shard, at, record)
            if stored is None:
                found = _found(shard, record)
                stored = _shown_files(found, name)
                copy.changes.update(found.changes)
            yield Value(stored, name)

    def _records(self, shard: Shard) -> Iterator[tuple[str, Record]]:
        """All samples with the names that they are shown under, as far as can be said before all are seen; without
        those that the target has no columns for."""
        digits = names.digits_for(shard.samples_through or 0)
        given = iter(shard.stems()) if isinstance(shard, NamesSamples) else None
        for at, record in enumerate(shard.records()):
            if self.stop.is_set():
                raise _StoppedError
            if type(record.tree) is Members:
                yield names.escape_sample(record.tree.key), record
                continue
            if given is not None:
                name = next(given)
                if not (isinstance(self._target, StreamingDriver) and _is_apart(shard, name)):
                    yield name, record
                continue
            own = record.tree.get(KEY_FIELD) if type(record.tree) is dict else None
            number = names.sample_number(shard.first_sample + at, digits)
            yield (names.escape_sample(own) if type(own) is str else number), record


@dataclass(frozen=True, slots=True)
class _Found:
    """A sample as it was found: a tree and the bytes that its positions are in."""

    tree: Tree
    raw: Buffer
    changes: list[Change] = field(default_factory=list)
    """What having them in one place has changed."""


def _found(shard: Shard, record: Record) -> _Found:
    if not isinstance(shard, LinksFiles):
        return _Found(record.tree, shard.raw)
    gathered = Gathered(cast(LinkedShard, shard), record)
    return _Found(gathered.tree, gathered.raw, gathered.changes)


def _value(shard: Shard, found: _Found, name: str, copy: _Copy, lowering: Lowering, whole: bool = True) -> Any:
    """A sample as a copy of its files would be read back, and as the target can hold it; with its name in it where the
    system has given it one."""
    tree = found.tree
    if type(tree) is Members:
        fields = read_members(tree, shard.fetch)
        if not copy.named or fields.get(KEY_FIELD) == tree.key:
            return fields
        return {KEY_FIELD: tree.key, **{name: value for name, value in fields.items() if name != KEY_FIELD}}
    value = copied(tree, found.raw, whole)
    if not isinstance(shard, NamesSamples):
        return lowering.loose(value)
    value = lowering.sample(value)
    if type(value) is not dict:
        lowering.changes["", "name of a lone value", "number"] = None
    elif KEY_FIELD not in value:
        return {KEY_FIELD: field_name(name), **value}
    return value


def _is_apart(shard: Shard, name: str) -> bool:
    """True for a sample that is of another kind than the rest: an experiment's own fields beside its runs."""
    return isinstance(shard, MltraqShard) and name == EXPERIMENT and shard.samples > 1


def _are_named(shard: Shard, through: bool) -> bool:
    """Whether samples are called otherwise than by numbers in their order, from 0 unless numbers go on `through`
    shards."""
    keys = [record.tree.key for record in shard.records()]
    first = int(keys[0]) if through and keys and keys[0].isdecimal() and len(keys[0]) < 20 else 0
    digits = config.SAMPLE_DIGITS if first else names.digits_for(len(keys))
    return keys != [names.sample_number(first + at, digits) for at in range(len(keys))]


def _changes(tree: Tree, rules: Rules) -> list[Change]:
    if type(tree) is not Members:
        return changes(tree, rules)
    return [("", "file without an extension", "left out") for file in tree.files if not has_extension(file)]


def _stored_files(shard: Shard, number: int, record: Record) -> Files | None:
    """The members of a sample as they are stored; None where that would not do."""
    if not isinstance(shard, KeptFiles):
        return None
    try:
        kept = shard.kept(number)
    except NotWritableError:  # a link, say: in a new shard its bytes stand for it
        contents = ((file.suffix, shard.fetch(file.offset, file.offset + file.length)) for file in record.tree.files)
        return Files(record.tree.key, tuple(contents))
    cells = ((suffix, Cell(bytes(shard.fetch(start, end)))) for suffix, start, end in kept.members)
    return Files(kept.key, tuple(cells))


def _shown_files(found: _Found, name: str) -> Files:
    files = tuple((field_name(suffix), data) for suffix, data in shown(found.tree, found.raw, name))
    return Files(field_name(name), files)


def _form(shard: Shard) -> str:
    """What records of a shard are: `msgpack`, `jsonl`, `mds`, `files`, or a word that is no other's."""
    if isinstance(shard, KeptFiles):
        return "files"
    if isinstance(shard, SquirrelShard):
        return shard.format
    return "mds" if isinstance(shard, mds.MdsShard) else type(shard).__name__


def _form_of(target: Driver) -> str:
    if isinstance(target, SquirrelDriver):
        return "jsonl" if target.reading == "jsonl" else "msgpack"
    if isinstance(target, KeepsFiles):
        return "files"
    if isinstance(target, StreamingDriver):
        return "mds" if target.format in (None, "mds") else "rows"
    return ""


__all__ = ["Report", "convert_all"]
