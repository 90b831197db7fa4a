"""Writes MDS data sets, raw or zstd, of samples with bytes, text, integers and arrays.

A writer of the benchmark's own, so that its data needs no other library. Fact of the format: what
mosaicml-streaming 0.13.0 reads; a shard is `u32 n, u32 offset[n+1], config, records`, a record a `u32` size for each
column without a fixed size and then all columns' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from tests.bench.datasets import Sample

_LEVEL = 3


def _encoding(value: Any) -> tuple[str, int | None]:
    """A column's encoding by its first value, and its fixed size."""
    if isinstance(value, bytes):
        return "bytes", None
    if isinstance(value, str):
        return "str", None
    if isinstance(value, int):
        return "int", 8
    assert isinstance(value, np.ndarray)
    return f"ndarray:{value.dtype.name}:{','.join(map(str, value.shape))}", value.nbytes


def _encode(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        return struct.pack("<q", value)
    return bytes(value.tobytes())


def _record(sample: Sample, names: list[str], sizes: list[int | None]) -> bytes:
    cells = [_encode(sample[name]) for name in names]
    lengths = [len(cell) for cell, size in zip(cells, sizes, strict=True) if size is None]
    return struct.pack(f"<{len(lengths)}I", *lengths) + b"".join(cells)


def write(folder: Path, shards: Iterable[Iterator[Sample]], compressed: bool) -> None:
    """A data set in `folder`, which must be empty, with one MDS shard for each of `shards`."""
    described = []
    for number, samples in enumerate(shards):
        first = next(samples)
        names = sorted(first)
        encodings, sizes = zip(*(_encoding(first[name]) for name in names), strict=True)
        info: dict[str, Any] = {
            "column_encodings": list(encodings),
            "column_names": names,
            "column_sizes": list(sizes),
            "compression": f"zstd:{_LEVEL}" if compressed else None,
            "format": "mds",
            "hashes": [],
            "size_limit": 1 << 30,
            "version": 2,
        }
        records = [_record(first, names, list(sizes)), *(_record(sample, names, list(sizes)) for sample in samples)]
        raw = _shard(records, json.dumps(info, sort_keys=True).encode())
        info |= {"samples": len(records), "zip_data": None}
        info["raw_data"] = {"basename": f"shard.{number:05d}.mds", "bytes": len(raw), "hashes": {}}
        stored = info["raw_data"]
        if compressed:
            raw = zstandard.ZstdCompressor(level=_LEVEL).compress(raw)
            stored = info["zip_data"] = {"basename": f"shard.{number:05d}.mds.zstd", "bytes": len(raw), "hashes": {}}
        (folder / stored["basename"]).write_bytes(raw)
        described.append(info)
    (folder / "index.json").write_text(json.dumps({"shards": described, "version": 2}, sort_keys=True))


def _shard(records: list[bytes], config: bytes) -> bytes:
    begin = 4 + 4 * (len(records) + 1) + len(config)
    offsets = np.cumsum([begin, *map(len, records)]).astype("<u4")
    return b"".join([struct.pack("<I", len(records)), offsets.tobytes(), config, *records])
