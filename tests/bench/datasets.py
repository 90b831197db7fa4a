"""What the benchmark reads: samples made from seeds, and the files that a mount shows for them.

Knows nothing of stores, archives or mounts. A sample is made from (set, shard, number) alone, so any form of a data set
can be made again at any time, and is the same on every machine.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

Sample = dict[str, Any]
"""One heavy field (bytes or array) and the light fields `id` and `label`; some sets have light fields only."""

_JPEG_HEAD = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_JPEG_END = b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class DataSet:
    """`make` gives the heavy field's value; None for a set without one."""

    name: str
    shards: int
    samples: int
    """In each shard."""
    field: str
    suffix: str
    """The heavy field's extension as a mount shows it."""
    make: Callable[[random.Random, DataSet], Any] | None
    elements: int = 0
    """Of an array."""

    def sample(self, shard: int, number: int) -> Sample:
        rng = random.Random(f"{self.name}/{shard}/{number}")
        heavy = {} if self.make is None else {self.field: self.make(rng, self)}
        return {**heavy, "id": f"{shard:04d}/{number:06d}", "label": rng.randrange(1000)}

    def shard(self, shard: int) -> Iterator[Sample]:
        return (self.sample(shard, number) for number in range(self.samples))

    def suffixes(self) -> list[str]:
        """What follows the sample's number in the names of its files, in listing order."""
        return ([] if self.make is None else [f".{self.field}.{self.suffix}"]) + [".json"]

    def files(self, sample: Sample) -> list[bytes]:
        """The contents of a sample's files, in the order of `suffixes`."""
        light = {name: value for name, value in sample.items() if name != self.field}
        text = json.dumps(light).encode() + b"\n"
        return ([] if self.make is None else [_content(sample[self.field])]) + [text]


def _content(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    buffer = io.BytesIO()
    np.save(buffer, value)
    return buffer.getvalue()


def _noise(rng: random.Random, _: DataSet) -> bytes:
    """What is no known kind of file: among many purely random ones some begin like one, and are named so."""
    return b"noise: " + rng.randbytes(rng.randint(3600, 4600))


def _noise_of_50_kb(rng: random.Random, _: DataSet) -> bytes:
    return b"noise: " + rng.randbytes(49_993)


def _jpeg(rng: random.Random, _: DataSet) -> bytes:
    """What is compressed already: gzip and zstd gain nothing on it."""
    return _JPEG_HEAD + rng.randbytes(rng.randint(80_000, 140_000)) + _JPEG_END


@cache
def _words() -> tuple[list[bytes], list[float]]:
    rng = random.Random("words")
    words = ["".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 9))).encode() for _ in range(2000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    return words, [sum(weights[: at + 1]) for at in range(len(words))]


def _prose(rng: random.Random, _: DataSet) -> bytes:
    """About 36 KB of words, as unevenly frequent as words are: gzip makes a third of it."""
    words, weights = _words()
    return b" ".join(rng.choices(words, cum_weights=weights, k=rng.randint(5500, 6500)))


def _floats(rng: random.Random, data: DataSet) -> Any:
    """float32 whose low 14 bits are zero: gzip and zstd make half of it."""
    values = np.random.default_rng(rng.randrange(1 << 32)).standard_normal(data.elements, dtype=np.float32)
    return (values.view(np.uint32) & np.uint32(0xFFFFC000)).view(np.float32)


_FULL = (
    DataSet("small", 50, 1000, "data", "bin", _noise),
    DataSet("images", 64, 100, "image", "jpg", _jpeg),
    DataSet("text", 80, 128, "text", "bin", _prose),
    DataSet("arrays", 4, 1, "array", "npy", _floats, 32 << 20),
    DataSet("writing", 1, 10_000, "data", "bin", _noise_of_50_kb),
    DataSet("many", 1000, 1000, "", "", None),
)
FULL = {data.name: data for data in _FULL}


def _quick(data: DataSet) -> DataSet:
    """A twentieth: fewer and smaller shards, so that there is still more than one of them."""
    if data.make is _floats:
        return replace(data, shards=2, elements=data.elements // 10)
    if data.shards == 1:
        return replace(data, samples=data.samples // 20)
    return replace(data, shards=data.shards // 10, samples=data.samples // 2)


QUICK = {data.name: _quick(data) for data in _FULL}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a kind of store names keys and samples; both give paths below the mount's root."""

    name: str
    key: str
    through: bool
    """Samples are numbered through all shards, and not within each."""

    def paths(self, data: DataSet, shard: int, number: int) -> list[str]:
        """The paths of one sample's files."""
        shown = shard * data.samples + number if self.through else number
        return [f"{self.key.format(shard)}/{shown:06d}{suffix}" for suffix in data.suffixes()]


SQUIRREL = Layout("squirrel", "shard_{:04d}", False)
MDS = Layout("mds", "shard.{:05d}", True)
