"""Several stores as one, each below a name of its own, to be read. Knows nothing of what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from shardfs.drivers.base import Driver, Grow, ReadOnly, Shard, ShardReader
from shardfs.drivers.suspects import suspects_of
from shardfs.errors import MissingKeyError
from shardfs.model import Entry, Key


class UnionDriver(ReadOnly):
    """The keys of all `members`, each behind its member's name and a `/`. The names are not prefixes of one another."""

    why = "several stores that are shown as one can only be read here: open the one that you mean"
    name = "union"

    def __init__(self, members: Mapping[str, Driver], problems: Iterable[str] = ()) -> None:
        self._members = dict(members)
        self._own_problems = list(problems)
        self.problems = list(self._own_problems)
        self.reading = " ".join(f"{name}:{driver.name}:{driver.reading}" for name, driver in self._members.items())

    def entries(self) -> list[Entry]:
        found: list[Entry] = []
        problems = list(self._own_problems)
        for name, driver in self._members.items():
            found += (_below(name, entry) for entry in driver.entries())
            problems += (f"{name}: {problem}" for problem in driver.problems)
        self.problems = problems
        return found

    def changed(self) -> bool:
        return any(driver.changed() for driver in self._members.values())

    def entry(self, key: Key) -> Entry:
        for name, driver in self._members.items():
            if key.startswith(name + "/"):
                return _below(name, driver.entry(Key(key[len(name) + 1 :])))
        raise MissingKeyError(f"no key {key!r}: it begins with none of {', '.join(self._members) or 'no names'}")

    def suspects(self, entries: Sequence[Entry]) -> list[Entry]:
        """See Suspects."""
        found: set[Key] = set()
        for name, driver in self._members.items():
            own = [self._member(entry)[1] for entry in entries if entry.key.startswith(name + "/")]
            found.update(_below(name, entry).key for entry in (suspects_of(driver, own) if own else ()))
        return [entry for entry in entries if entry.key in found]

    def estimate(self, entry: Entry) -> int:
        driver, own = self._member(entry)
        return driver.estimate(own)

    def mark(self, entry: Entry) -> str:
        driver, own = self._member(entry)
        return driver.mark(own)

    def load(self, entry: Entry, grow: Grow) -> Shard:
        driver, own = self._member(entry)
        return driver.load(own, grow)

    def open(self, entry: Entry, raw_bytes: int) -> ShardReader | None:
        driver, own = self._member(entry)
        return driver.open(own, raw_bytes)

    def _member(self, entry: Entry) -> tuple[Driver, Entry]:
        for name, driver in self._members.items():
            if entry.key.startswith(name + "/"):
                return driver, replace(entry, key=Key(entry.key[len(name) + 1 :]))
        raise MissingKeyError(f"no key {entry.key!r}")


def _below(name: str, entry: Entry) -> Entry:
    return replace(entry, key=Key(f"{name}/{entry.key}"))
