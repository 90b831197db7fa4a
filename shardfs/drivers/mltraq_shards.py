"""The samples of one mltraq key as a shard: an experiment with its runs, or a directory of files.

The raw bytes of such a shard are records (see mltraq_records) whose cells are in memory, as SQLite gives them, and
whose files stay in the datastore (see mltraq_pieces): however much an experiment keeps there, opening it holds its rows
only. Knows nothing of how a key is found, nor of SQL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shardfs import compression, config, names, values
from shardfs.drivers import mltraq_datapak as datapak
from shardfs.drivers import mltraq_records as records
from shardfs.drivers.base import Grow, Record
from shardfs.drivers.mltraq_datastore import find
from shardfs.drivers.mltraq_pieces import Piece, Pieces, in_file, in_memory
from shardfs.drivers.mltraq_records import Draft
from shardfs.errors import OverfullShardError
from shardfs.pickle_spans import PickleRefusedError
from shardfs.storage.base import Listed, Storage
from shardfs.values import Buffer, Tree


class MltraqShard:
    """A shard as above. Immutable; what is in files is read when it is asked for, as it was when they were listed."""

    first_sample = 0
    samples_through = None
    computes = False

    def __init__(self, pieces: Pieces, starts: list[int], stems: list[str], stored: int) -> None:
        self._pieces = pieces
        self._starts = [*starts, pieces.size]
        self._begins = frozenset(starts)
        self._stems = stems
        self._stored = stored

    @property
    def raw(self) -> Buffer:
        return self._pieces.whole

    @property
    def size(self) -> int:
        return self._pieces.size

    @property
    def held(self) -> int:
        return self._pieces.held

    @property
    def samples(self) -> int:
        return len(self._stems)

    def stems(self) -> Iterable[str]:
        return self._stems

    def records(self) -> Iterator[Record]:
        """All samples. OverfullShardError where values are referred to again and again, so that all would take more
        than bytes of this number can hold in earnest."""
        left = _steps_in_all(self._stored)
        for number, start in enumerate(self._starts[:-1]):
            end = self._starts[number + 1]
            steps = records.steps_for(end - start)
            before = steps.left
            yield Record(start, end, records.tree(self.raw, start, end, steps))
            left -= before - max(steps.left, 0)
            if left < 0:
                raise OverfullShardError(start)

    def tree(self, start: int, end: int) -> Tree:
        return records.tree(self.raw, start, end)

    def sample(self, tree: Tree) -> Any:
        return values.to_python(tree, self.raw)

    def part(self, start: int, end: int) -> Buffer | None:
        return self._pieces.at_hand(start, end)

    def fetch(self, start: int, end: int) -> Buffer:
        """A whole record is given without reading the files in it; what is in one file, as its bytes."""
        return self._pieces.view(start, end) if start in self._begins else self._pieces.read(start, end)

    def decode(self, record: Buffer) -> Tree:
        return records.tree(record, 0, len(record))

    def cells(self, record: Buffer) -> Mapping[Any, Buffer] | None:
        return None

    def expect(self) -> None:
        """Its rows are there, and of its files nobody can tell which will be wanted."""


class Assembly:
    """A shard being put together, sample by sample."""

    def __init__(self, storage: Storage, grow: Grow) -> None:
        self._storage = storage
        self._grow = grow
        self._pieces: list[Piece] = []
        self._starts: list[int] = []
        self._stems: list[str] = []
        self._named: Counter[str] = Counter()
        self._size = 0
        self._held = 0
        self._unpacked = 0
        self._found: dict[str, tuple[Piece, list[tuple[str, str]]]] = {}
        self._spent = 0
        self.files: dict[str, Listed | str] = {}
        """What was referred to, by url; the reason where that is no file."""
        self._stored = 0

    def shard(self) -> MltraqShard:
        return MltraqShard(Pieces(self._storage, self._pieces), self._starts, self._stems, self._stored)

    def row(self, name: str, cells: Iterable[tuple[str, str, Any]]) -> None:
        """A sample of a database's row: name, form (see mltraq_records) and value of each cell."""
        draft, inside = Draft(), bytearray()
        wanted: list[tuple[str, str]] = []
        for cell, form, value in cells:
            if form not in (records.PICKLED, records.FIELDS, records.BYTES):
                draft.cells.append([cell, form, value])
                continue
            data, why = bytes(value), None
            self._stored += len(data)
            if form != records.BYTES:
                try:
                    data = self._plain(data)
                    wanted += self._references(memoryview(data))
                except PickleRefusedError as error:
                    why = str(error)[:300]
            draft.cells.append([cell, form, len(inside), len(data)] + ([] if form == records.BYTES else [why]))
            inside += data
        self._add(name, draft, inside, wanted)

    def directory(self, name: str, files: Iterable[tuple[str, Listed]]) -> None:
        """A sample of a directory's files: the suffix of each, and the file."""
        draft, pieces, wanted, at = Draft(), [], [], 0
        for suffix, file in files:
            serialised = suffix in ("", "json") or suffix.rpartition(".")[2] == "npy"
            serialised = serialised and self._looks_serialised(file)
            piece, inside = self._opened(file) if serialised else (in_file(file), [])
            self._stored += file.size
            draft.files.append([suffix, at, piece.length, serialised])
            pieces.append(piece)
            wanted += inside
            at += piece.length
        self._add(name, draft, bytearray(), wanted, pieces)

    def _add(
        self,
        name: str,
        draft: Draft,
        inside: bytearray,
        wanted: list[tuple[str, str]],
        pieces: list[Piece] | None = None,
    ) -> None:
        """A record: its head and cells, then the files, then what is referred to, each once."""
        pieces = list(pieces or ())
        at = len(inside) + sum(piece.length for piece in pieces)
        while wanted:
            kind, url = wanted.pop()
            if url in draft.urls:
                continue
            file = self._file_of(url)
            if isinstance(file, str):
                draft.urls[url] = file
                continue
            piece, more = (in_file(file), []) if kind == datapak.ARCHIVE_STORE else self._opened(file)
            draft.urls[url] = [at, piece.length]
            pieces.append(piece)
            wanted += more
            at += piece.length
        head = in_memory(draft.head() + bytes(inside))
        self._held += head.length
        self._grow(self._held)
        self._starts.append(self._size)
        self._size += head.length + at - len(inside)
        self._pieces += [head, *(piece for piece in pieces if piece.length)]
        self._stems.append(self._own_name(name))

    def _file_of(self, url: str) -> Listed | str:
        found = self.files.get(url)
        if found is None:
            try:
                found = find(self._storage, url)
            except datapak.UnresolvedError as error:
                found = str(error)
            self.files[url] = found
        return found

    def _own_name(self, name: str) -> str:
        """The sample's name in file names; two that are called the same are told apart."""
        stem = names.escape_sample(name)
        count = self._named[names.same_name(stem)] = self._named[names.same_name(stem)] + 1
        return stem if count == 1 else self._own_name_again(stem, count)

    def _own_name_again(self, stem: str, count: int) -> str:
        while names.same_name(f"{stem}~{count}") in self._named:
            count += 1
        self._named[names.same_name(f"{stem}~{count}")] = 1
        return f"{stem}~{count}"

    def _looks_serialised(self, file: Listed) -> bool:
        head = bytes(Pieces(self._storage, [in_file(file)]).read(0, min(8, file.size)))
        return datapak.is_serialised(head, file.size)

    def _opened(self, file: Listed) -> tuple[Piece, list[tuple[str, str]]]:
        """A file that holds a blob, and what it refers to. One that is compressed is held in memory."""
        known = self._found.get(file.name)
        if known is not None:
            return known
        raw = Pieces(self._storage, [in_file(file)])
        piece, wanted = in_file(file), []
        self._stored += file.size
        try:
            if file.size and datapak.is_compressed(bytes(raw.read(0, min(3, file.size)))):
                piece = in_memory(self._plain(bytes(raw.read(0, file.size))))
                self._held += piece.length
                self._grow(self._held)
                raw = Pieces(self._storage, [piece])
            wanted = self._references(raw.whole)
        except PickleRefusedError:
            pass  # it is no blob, or damaged: told where it is read
        self._found[file.name] = piece, wanted
        return piece, wanted

    def _plain(self, data: bytes) -> bytes:
        if not datapak.is_compressed(data):
            return data
        limit = compression.raw_limit("gz", self._stored) - self._unpacked
        made = datapak.plain(data, max(limit, 0))
        self._unpacked += len(made)
        return made

    def _references(self, raw: Buffer) -> list[tuple[str, str]]:
        """What a blob refers to. PickleRefusedError; OverfullShardError where looking for it takes too long in all."""
        if len(raw) <= config.PICKLE_WINDOW and not datapak.may_refer(bytes(raw[:])):
            return []
        steps = records.steps_for(len(raw))
        before = steps.left
        try:
            return datapak.references(raw, 0, len(raw), steps)
        finally:
            self._spent += before - max(steps.left, 0)
            if self._spent > _steps_in_all(self._stored):
                raise OverfullShardError()


def _steps_in_all(stored: int) -> int:
    """What reading so many stored bytes may cost in all: one record at its limit is shown, several are too much."""
    return 2 * config.TOKEN_FLOOR + config.TOKENS_PER_RAW_BYTE * stored


def run_cells(
    columns: list[str], row: tuple[Any, ...], kinds: Mapping[str, str], serialised: frozenset[str]
) -> Iterator[tuple[str, str, Any]]:
    """The cells of one run: name, form and value. `kinds` are the types that the experiment's meta says, by field."""
    for column, value in zip(columns, row, strict=True):
        kind = kinds.get(column)
        if isinstance(value, bytes):
            yield column, records.PICKLED if column in serialised else records.BYTES, value
        elif isinstance(value, str) and kind in ("datetime", "date", "time"):
            yield column, kind, value
        else:
            yield column, records.PLAIN, records.native(value, kind)


def grouped(files: Iterable[Listed]) -> dict[str, list[tuple[str, Listed]]]:
    """The files of a directory by what their names are up to the first dot, with the rest of the name."""
    found: dict[str, list[tuple[str, Listed]]] = {}
    for file in files:
        stem, suffix = split(file.name.rpartition("/")[2])
        found.setdefault(stem, []).append((suffix, file))
    return found


def split(name: str) -> tuple[str, str]:
    """A file's name as the name of its sample and the suffix behind that; a name that has no suffix is all stem."""
    stem, _, suffix = name.partition(".")
    return (stem, suffix) if stem and suffix and not suffix.endswith(".") else (name, "")


__all__ = ["Assembly", "MltraqShard", "grouped", "run_cells", "split"]
