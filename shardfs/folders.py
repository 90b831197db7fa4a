"""Directories inside a key: those that the names of a table's files have in them, behind the sample's first dot.

A directory's files are a run of the table's files (names come in the order of a walk through the tree), so a directory
is a few numbers here and no object. Pure; knows nothing of inodes, contents or mounts.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

ROOT = -1
"""The key's own directory."""

Child = tuple[bytes, int, int]
"""One entry of a directory: its name, the number of its first file, and the number behind its last. A file is a run of
one; so is a directory of one file, which `Folders.at` tells apart."""


class Folders:
    """The directories of one table, by number, each behind the one that it is in.

    `names` are the distinct file names without their samples', `/` between levels, and `suffix` has each file's number
    among them. A name that ends in `/` is no file, but says that an empty directory is there. ValueError for names that
    no walk gives.
    """

    def __init__(self, file_start: Sequence[int], suffix: np.ndarray[Any, Any], names: Sequence[bytes]) -> None:
        self._suffix = suffix.data
        self._names = names
        self._first, self._end = array("I"), array("I")
        self._parent = array("q")
        self._cut = array("I")
        """Bytes of the suffix that lead into a directory, its `/` included."""
        inside = np.array([b"/" in name for name in names], bool)
        self._build(np.flatnonzero(inside[suffix]).tolist(), file_start)
        self._known: tuple[int, dict[bytes, Child]] | None = None

    def __len__(self) -> int:
        return len(self._first)

    @property
    def nbytes(self) -> int:
        return 20 * len(self._first)

    def _build(self, files: list[int], file_start: Sequence[int]) -> None:
        opened: list[tuple[int, bytes]] = []
        seen: set[bytes] = set()
        before, behind = -2, 0
        cuts = {name: _cuts(name) for name in {self._name(file) for file in files}}
        for file in files:
            if file >= behind:  # another sample
                behind = file_start[bisect_right(file_start, file)]
                self._close(opened, 0, before + 1)
                seen.clear()
            elif file != before + 1:
                self._close(opened, 0, before + 1)
            name = self._name(file)
            depth = 0
            while depth < len(opened) and name.startswith(opened[depth][1]):
                depth += 1
            self._close(opened, depth, before + 1)
            for cut in cuts[name][depth:]:
                path = name[:cut]
                if path in seen:
                    raise ValueError("the files of a directory do not follow one another")
                seen.add(path)
                self._parent.append(opened[-1][0] if opened else ROOT)
                opened.append((len(self._first), path))
                self._first.append(file)
                self._end.append(file)
                self._cut.append(cut)
            before = file
        self._close(opened, 0, before + 1)

    def _close(self, opened: list[tuple[int, bytes]], depth: int, end: int) -> None:
        while len(opened) > depth:
            self._end[opened.pop()[0]] = end

    def _name(self, file: int) -> bytes:
        return self._names[self._suffix[file]]

    def parent(self, folder: int) -> int:
        """The directory that one is in; ROOT for the key's own."""
        return self._parent[folder]

    def at(self, folder: int, file: int) -> int | None:
        """The directory right inside `folder` that begins with a file; None where that is a file in it."""
        at = bisect_left(self._first, file)
        while at < len(self._first) and self._first[at] == file:
            if self._parent[at] == folder:
                return at
            at += 1
        return None

    def end(self, folder: int) -> int:
        """Number behind the last file of a directory."""
        return self._end[folder]

    def top(self, first: int, end: int, name: bytes) -> int | None:
        """The directory in the key's own, of one sample's files `first` to `end`, whose name ends so behind the
        sample's."""
        at = bisect_left(self._first, first)
        while at < len(self._first) and self._first[at] < end:
            if self._parent[at] == ROOT and self._name(self._first[at])[: self._cut[at] - 1] == name:
                return at
            at += 1
        return None

    def name(self, folder: int) -> bytes:
        """The name of a directory in the one that it is in; of one in the key's own without the sample's."""
        above = self._parent[folder]
        before = 0 if above == ROOT else self._cut[above]
        return self._name(self._first[folder])[before : self._cut[folder] - 1]

    def children(self, folder: int, start: int = 0) -> Iterator[Child]:
        """What is in a directory (not the key's own), from the file of number `start` on."""
        cut, file = self._cut[folder], max(start, self._first[folder])
        while file < self._end[folder]:
            name = self._name(file)[cut:]
            if b"/" in name:
                below = self.at(folder, file)
                assert below is not None
                yield name.partition(b"/")[0], file, self._end[below]
                file = self._end[below]
            else:
                if name:
                    yield name, file, file + 1
                file += 1

    def find(self, folder: int, name: bytes) -> Child | None:
        """An entry of a directory by name. The names of the one that was last asked for are kept."""
        known = self._known
        if known is None or known[0] != folder:
            known = self._known = (folder, {child[0]: child for child in self.children(folder)})
        return known[1].get(name)


def _cuts(name: bytes) -> list[int]:
    """Where each directory of a name ends. ValueError for parts that are no names."""
    *parts, last = name.split(b"/")
    if any(part in (b"", b".", b"..") or b"\0" in part for part in parts) or last in (b".", b"..") or b"\0" in last:
        raise ValueError("a path that leads nowhere")
    cuts, at = [], 0
    for part in parts:
        at += len(part) + 1
        cuts.append(at)
    return cuts
