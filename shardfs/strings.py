"""Many byte strings in one buffer, each known by its number: no object for each. Knows nothing of what they say."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Strings:
    """Byte strings by number: one buffer and where each begins."""

    data: bytes
    starts: np.ndarray[Any, np.dtype[np.uint64]]

    def __getitem__(self, number: int) -> bytes:
        return self.data[int(self.starts[number]) : int(self.starts[number + 1])]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[bytes]:
        starts = self.starts.tolist()
        return (self.data[start:end] for start, end in pairwise(starts))

    @property
    def nbytes(self) -> int:
        return len(self.data) + self.starts.nbytes


class GrowingStrings:
    """Such strings while they come in, each different one once."""

    def __init__(self) -> None:
        self._numbers: dict[str | bytes, int] = {}
        self._data = bytearray()
        self._starts = array("Q", [0])

    def number(self, text: str | bytes) -> int:
        """One and the same kind of text each time: the number goes by what is given, not by its bytes."""
        known = self._numbers.get(text)
        if known is None:
            known = self._numbers[text] = len(self._numbers)
            self._data += text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
            self._starts.append(len(self._data))
        return known

    def pack(self) -> Strings:
        return Strings(bytes(self._data), np.frombuffer(self._starts, np.uint64).copy())


def sorted_numbers(strings: Strings) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The numbers of all in the order of the texts, for `number_of`."""
    return np.array(sorted(range(len(strings)), key=strings.__getitem__), dtype=np.uint32)


def number_of(strings: Strings, order: memoryview, text: bytes) -> int | None:
    """The number of a text among others, by the numbers of all in the order of the texts (`sorted_numbers`)."""
    at = bisect_left(order, text, key=strings.__getitem__)
    return order[at] if at < len(order) and strings[order[at]] == text else None
