"""One seal, step by step: a staged directory's files into the store, and what is left of them then.

Plain and synchronous; each step is for a worker. Knows nothing of when a key is sealed, of caches or of mounts. In
their order:

1. `write` takes a snapshot, encodes it and has the driver store it. Before the store is touched, and before what was
   written can be seen there, the driver's note goes into the staging journal as the seal's token.
2. `place` says which files of the new shard the staged ones and the old shard's have become.
3. `Seal.done` of the staged directory keeps what was changed meanwhile; `rescue` where that needs bytes that only the
   old shard has.

Whoever dies in between leaves a seal that has begun, and a write that fails may have reached the store all the same.
`settle` has the driver look, by the token: for Squirrel, whether the key has the content whose hash was noted; for MDS,
whether an index names a file that was noted, with that hash. Then the seal goes on at step 2, else all is as before.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import zstandard

from shardfs import config, copying, keeping, packing, sealing
from shardfs.drivers.base import Driver, KeepsFiles, NewRecord, Note, Value, WritesFiles
from shardfs.drivers.numbered import NumberedThrough
from shardfs.errors import MissingKeyError, ShardfsError, StaleShardError
from shardfs.index import ShardTable
from shardfs.model import Entry, Key
from shardfs.sealing import Base, Changed, Source, Stored
from shardfs.staging import Snapshot, StagedDirectory

log = logging.getLogger("shardfs")


@dataclass(frozen=True, slots=True)
class Written:
    """A snapshot that is in the store."""

    entry: Entry
    """The key as the store has it since."""
    snapshot: Snapshot
    before: ShardTable | None
    """What the stored shard held that the key was staged over."""
    file_by_file: bool = False
    """True where files have kept their names."""
    changes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Of a new key: field, type by its files, type in the store where that is another one -> number of samples."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything went."""

    numbers: Mapping[int, int | None]
    """Staged entry -> its file in the new shard; None if that has it in another file, together with others."""
    base_numbers: Mapping[int, int]
    """File of the old shard -> file of the new one."""
    stems: Mapping[bytes, bytes]
    """Samples' names -> those in the new shard."""
    after: ShardTable
    behind: int
    """A number that is behind all samples there were and are."""

    def new_name(self, name: bytes) -> bytes:
        """What a file is called that kept its name while its sample got another one. A name that meant no sample, and
        would now mean one, becomes one that still means none."""
        stem, dot, suffix = name.partition(b".")
        new = self.stems.get(stem)
        if new is None:
            if not dot or self.after.find_sample(stem) is None or not stem.isdigit():
                return name
            new = b"%0*d" % (max(self.after.digits, config.SAMPLE_DIGITS), self.behind + int(stem))
        return new + dot + suffix


def nothing(staged: StagedDirectory) -> bool:
    """True if all there is are names that never become part of a sample."""
    return not staged.hides_any and all(sealing.is_temporary(entry.name) for entry in staged.children())


def keeps_count(staged: StagedDirectory, table: ShardTable) -> bool:
    """True if the key would have as many samples as the stored shard it is staged over, whose table that is."""
    names = [name for name, _, number in table.listing(0) if not staged.hides(number)]
    names += [entry.name for entry in staged.children() if not sealing.is_temporary(entry.name)]
    return len({name.partition(b".")[0] for name in names}) == table.samples


def renames(driver: Driver, staged: StagedDirectory, table: ShardTable | None) -> bool:
    """Whether samples would have other names in the store than they are staged under, over what has that table.
    BadSampleError; errors of `NumberedThrough.first_number`."""
    if isinstance(driver, KeepsFiles | WritesFiles):
        return False
    first = driver.first_number(Key(staged.key)) if isinstance(driver, NumberedThrough) and table is None else 0
    files: list[tuple[bytes, Source]] = []
    if table is not None:
        kept = (number for _, _, number in table.listing(0) if not staged.hides(number))
        files += [(table.name(number), Stored(table.sample_of(number), number)) for number in kept]
    files += [(entry.name, Changed(bytes, entry.size)) for entry in staged.children()]
    return sealing.renames(files, table, first)


def write(driver: Driver, staged: StagedDirectory, base: Base | None, base_entry: Entry | None) -> Written | None:
    """Store what is staged now, over `base`; None if that would be a shard without samples: nothing has changed then.

    After an error it is as if the seal had not begun; or `staged.seal.snapshot` is still there, and it can only be told
    later (by `settle`) whether the store has it. Errors of `Seal.begin`, `sealing.seal` and `Driver.write_records`.
    """
    table = None if base is None else base.table
    if base is not None:
        _bring_temporary(staged, base)
    snapshot = staged.seal.begin(staged.key, "", None if table is None else _keepsake(table))

    def note(text: str) -> None:
        staged.seal.set_token(text)

    try:
        files, changed = _files(snapshot, table), Counter[tuple[str, str, str]]()
        if isinstance(driver, WritesFiles):
            entry = _write_files(driver, Key(snapshot.key), files, base, base_entry, note)
        else:
            made = sealing.seal(files, base, isinstance(driver, KeepsFiles))
            records: Iterable[NewRecord] = made
            entry = None
            if base is None and not isinstance(driver, KeepsFiles):
                records = _Told(made, copying.rules_between("files", _form_of(driver)), changed)
            if len(made):
                entry = driver.write_records(Key(snapshot.key), records, base=base_entry, note=note)
        if entry is None:
            staged.seal.failed()
            return None
    except BaseException as error:
        try:
            written = settle(driver, staged, table)
        except ShardfsError as trouble:
            log.warning("%s: it cannot be told now whether the store has it: %s", snapshot.key, trouble)
            written = None
        if written is None:
            raise
        log.warning("%s is in the store, although writing it failed: %s", snapshot.key, error)
        return written
    return Written(entry, snapshot, table, isinstance(driver, WritesFiles), changed)


def _write_files(
    driver: WritesFiles, key: Key, files: keeping.Files, base: Base | None, base_entry: Entry | None, note: Note
) -> Entry | None:
    """Store the files of a key that is a directory; None if none would be left."""
    stored = frozenset() if base_entry is None else driver.file_names(base_entry)
    plan = keeping.plan(files, base, stored, driver.serialised)
    if not plan.left:
        return None
    return driver.write_files(key, plan.contents(), plan.gone, base=base_entry, note=note)


class _Told:
    """The same records, as often as they are asked for; what the store has no word for is counted as they are taken."""

    def __init__(self, made: Iterable[NewRecord], rules: copying.Rules, changed: Counter[tuple[str, str, str]]) -> None:
        self._made = made
        self._rules = rules
        self._changed = changed

    def __iter__(self) -> Iterator[NewRecord]:
        self._changed.clear()
        for record in self._made:
            if isinstance(record, Value):
                self._changed.update(copying.changes(record.sample, self._rules))
            yield record


def _form_of(driver: Driver) -> str:
    if driver.appends:
        return "mds"
    return "jsonl" if driver.reading == "jsonl" else "msgpack"


def settle(driver: Driver, staged: StagedDirectory, before: ShardTable | None = None) -> Written | None:
    """How a seal ended that has begun and was left: None if the store does not have it, and all is as if it had not
    begun. Errors of `Driver.settle`: then it is still open."""
    snapshot = staged.seal.snapshot
    assert snapshot is not None
    entry = None
    if snapshot.token:
        try:
            entry = driver.settle(Key(snapshot.key), snapshot.token)
        except MissingKeyError as error:
            log.warning("%s is not in the store: %s", snapshot.key, error)
    if entry is not None:
        if before is None and snapshot.keepsake is not None:
            before = packing.unpack(zstandard.ZstdDecompressor().decompress(snapshot.keepsake))
        if before is not None or snapshot.base_version is None:
            return Written(entry, snapshot, before, isinstance(driver, WritesFiles))
        log.warning("%s is in the store, but what changed since cannot be told: all of it stays staged", snapshot.key)
    staged.seal.failed()
    return None


def place(written: Written, after: ShardTable) -> Places:
    """Where the files of a snapshot are in the shard that was made of it, which has the table `after`."""
    snapshot, before = written.snapshot, written.before
    files = _files(snapshot, before)
    where = keeping.placed(files, after) if written.file_by_file else sealing.placed(files, before, after)
    entries = {entry.name: entry.id for entry in snapshot.entries}
    numbers: dict[int, int | None] = {}
    base_numbers: dict[int, int] = {}
    for name, source in files:
        if name not in where.numbers:
            continue
        number = where.numbers[name]
        if name in entries:
            numbers[entries[name]] = number
        elif number is not None and isinstance(source, Stored):
            base_numbers[source.file] = number
    behind = after.first_sample + after.samples + (0 if before is None else before.samples) + len(entries)
    return Places(numbers, base_numbers, where.stems, after, behind)


def rescue(staged: StagedDirectory, snapshot: Snapshot, places: Places, base: Base | None) -> None:
    """Bring here what only the old shard has, of what was changed since the snapshot. StaleShardError without it."""
    names = {entry.id: entry.name for entry in snapshot.entries}
    for entry in staged.children():
        if entry.base is None:
            continue
        if entry.id in places.numbers:
            needed = places.numbers[entry.id] is None and entry.name != names[entry.id]
        else:
            needed = entry.base not in places.base_numbers
        if needed:
            if base is None:
                raise StaleShardError(f"{staged.key}: only the shard that was replaced has {entry.name!r}")
            staged.copy_up(entry.id, [base.content(entry.base)])


def is_conflict(driver: Driver, key: Key, base_version: str | None) -> bool:
    """Whether the store has something else of a key than it was staged over. StorageError, BadStoreError."""
    try:
        version: str | None = driver.entry(key).version
    except MissingKeyError:
        version = None
    return version != base_version


def _bring_temporary(staged: StagedDirectory, base: Base) -> None:
    """A file of the stored shard that was given a temporary name (`000000.json~`) is no part of the new one."""
    for entry in staged.children():
        if entry.base is not None and sealing.is_temporary(entry.name):
            staged.copy_up(entry.id, [base.content(entry.base)])


def _keepsake(table: ShardTable) -> bytes:
    """The old shard's names, without which nobody could tell after a crash what became of its files."""
    return zstandard.compress(packing.pack(table), config.INDEX_LEVEL)


def _files(snapshot: Snapshot, table: ShardTable | None) -> list[tuple[bytes, Source]]:
    """All files of the shard to be: the stored ones that are still to be seen, then the staged ones."""
    files: list[tuple[bytes, Source]] = []
    if table is not None:
        hidden = snapshot.hidden
        files += [
            (name, Stored(table.sample_of(number), number))
            for name, _, number in table.listing(0)
            if number not in hidden
        ]
    for entry in snapshot.entries:
        if entry.path is not None:
            files.append((entry.name, Changed(entry.read, entry.size)))
        elif entry.base is not None and table is not None:
            files.append((entry.name, Stored(table.sample_of(entry.base), entry.base)))
    return files
