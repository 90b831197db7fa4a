"""What is done to a mount and to the model: each an `Operation`, drawn from a seed and from nothing else.

What an operation means where something is missing or in the way is no concern of this: the model says what must come of
it. So a run can be made shorter by leaving operations out, and what is left means something still.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass

DIRECTORIES = ("old", "new", "way", "way/deep", "x.tmp", "x.tmp/s", "x.tmp/s/t", "way/y.tmp", ".h")
KEYS = ("old", "new")
"""Those that another program stores, too."""

NAMES = (
    *(f"{stem:06d}.{field}.bin" for stem in range(4) for field in "fg"),
    *("000000.json", "000002.json", "note~", ".swp"),
)
SLOTS = 4
"""Files that are open at once."""

MODES = (0o600, 0o644, 0o755, 0o444)
TIMES = (1, 10**18, 10**18 + 7, 2 * 10**18)
FLAGS = (os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_APPEND)


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of the player, and what it is called with."""

    name: str
    words: tuple[object, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}{self.words}"


def content(number: int, size: int) -> bytes:
    """Bytes that tell where they were written: such as are shown as `.bin`."""
    pieces = [b"text "] + [b"%x:%d " % (number, at) for at in range(0, size, 8)]
    return b"".join(pieces)[:size]


class Dice:
    """Draws operations: of one run with few names, so that most of what they name is there."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        chosen = {"old", *self._random.sample(DIRECTORIES, self._random.randrange(1, 5))}
        above = {path.rpartition("/")[0] for path in chosen if "/" in path}
        above |= {path.rpartition("/")[0] for path in above if "/" in path}
        self._directories = sorted(chosen | above)
        self._names = self._random.sample(NAMES, self._random.randrange(2, 7))
        self._begun = False
        choices: tuple[tuple[int, Callable[[], Operation]], ...] = (
            (16, lambda: Operation("write_whole", (self._file(), *self._data(), self._rare(0.1)))),
            (8, lambda: Operation("write_at", (self._file(), self._offset(), *self._data()))),
            (5, lambda: Operation("append", (self._file(), *self._data()))),
            (5, lambda: Operation("truncate", (self._file(), self._offset()))),
            (2, lambda: Operation("empty", (self._file(),))),
            (7, lambda: Operation("rename", (*self._two_files(), self._rare(0.1)))),
            (5, lambda: Operation("rename", (self._directory(), self._directory(), self._rare(0.1)))),
            (6, lambda: Operation("unlink", (self._file(),))),
            (1, lambda: Operation("unlink", (self._directory(),))),
            (7, lambda: Operation("mkdir", (self._directory(),))),
            (3, lambda: Operation("rmdir", (self._directory(),))),
            (0.5, lambda: Operation("remove_all", (self._directory(),))),
            (2, lambda: Operation("fsync_file", (self._file(),))),
            (4, lambda: Operation("fsync_directory", (self._directory(),))),
            (2, lambda: Operation("chmod", (self._any(), self._random.choice(MODES)))),
            (2, lambda: Operation("set_time", (self._any(), self._random.choice(TIMES)))),
            (6, lambda: Operation("open_slot", (self._slot(), self._file(), self._random.choice(FLAGS)))),
            (5, lambda: Operation("read_slot", (self._slot(), self._offset(), self._size()))),
            (5, lambda: Operation("write_slot", (self._slot(), self._offset(), *self._data()))),
            (2, lambda: Operation("truncate_slot", (self._slot(), self._offset()))),
            (3, lambda: Operation("stat_slot", (self._slot(),))),
            (2, lambda: Operation("map_slot", (self._slot(),))),
            (1, lambda: Operation("fsync_slot", (self._slot(),))),
            (5, lambda: Operation("close_slot", (self._slot(),))),
            (4, lambda: Operation("listing", (self._directory(),))),
            (4, lambda: Operation("stat", (self._any(),))),
            (5, lambda: Operation("read", (self._file(),))),
            (4, lambda: Operation("read_part", (self._file(), self._offset(), self._size()))),
            (2, lambda: Operation("map", (self._file(),))),
            (5, lambda: Operation("compare")),
            (1, lambda: Operation("commit")),
            (1, lambda: Operation("evict")),
        )
        rare = (
            (3, lambda: Operation("remount")),
            (3, lambda: Operation("kill")),
            (1, lambda: Operation("store_elsewhere", (self._random.choice(KEYS), self._number()))),
            (1, lambda: Operation("remove_elsewhere", (self._random.choice(KEYS),))),
            (2, lambda: Operation("conflict", (self._random.choice(KEYS), self._number()))),
        )
        self._weights = [10 * weight for weight, _ in choices] + [weight for weight, _ in rare]
        self._makers = [maker for _, maker in choices] + [maker for _, maker in rare]

    def operations(self, count: int) -> list[Operation]:
        """The next ones."""
        first: list[Operation] = []
        if not self._begun:
            self._begun = True
            first = [Operation("mkdir", (path,)) for path in self._directories]
        return first + [self._random.choices(self._makers, self._weights)[0]() for _ in range(count - len(first))]

    def _rare(self, share: float) -> bool:
        return self._random.random() < share

    def _directory(self) -> str:
        return self._random.choice(DIRECTORIES if self._rare(0.05) else self._directories)

    def _name(self) -> str:
        return self._random.choice(NAMES if self._rare(0.05) else self._names)

    def _file(self) -> str:
        above = "" if self._rare(0.02) else self._directory() + "/"
        return above + self._name()

    def _two_files(self) -> tuple[str, str]:
        """Most often in one directory."""
        one = self._file()
        if self._rare(0.2):
            return one, self._file()
        above, slash, _ = one.rpartition("/")
        return one, above + slash + self._name()

    def _any(self) -> str:
        return self._file() if self._rare(0.7) else self._directory()

    def _slot(self) -> int:
        return self._random.randrange(SLOTS)

    def _number(self) -> int:
        return self._random.randrange(1 << 20)

    def _size(self) -> int:
        kind = self._random.random()
        if kind < 0.85:
            return self._random.randrange(300)
        return self._random.randrange(9000) if kind < 0.97 else self._random.randrange(300_000)

    def _offset(self) -> int:
        return 0 if self._rare(0.15) else self._size()

    def _data(self) -> tuple[int, int]:
        return self._number(), self._size()
