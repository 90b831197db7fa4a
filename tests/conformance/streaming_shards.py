"""Shards of MosaicML Streaming for tests, laid out as the library lays them out: MDS, JSON, CSV, TSV and XSV, raw or
compressed. Shares no code with what reads them."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import cramjam
import numpy as np
import zstandard

PACK: dict[str, Callable[[bytes], bytes]] = {
    "br": brotli.compress,
    "bz2": bz2.compress,
    "snappy": lambda data: bytes(cramjam.snappy.compress_raw(data)),
    "gz": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}
SEPARATORS = {"csv": ",", "tsv": "\t", "xsv": "||"}


def put(
    store: Path, key: str, samples: list[dict[str, Any]], form: str, compression: str | None, revision: str = ""
) -> Path:
    """Write a shard into the split that is its directory, behind the others there or, with a `revision` (`.r2`), in
    the place of the one that has its key, whose files go; the file that its samples are in."""
    path = store / f"{key}{revision}.{form}"
    path.parent.mkdir(parents=True, exist_ok=True)
    index = path.parent / "index.json"
    shards = json.loads(index.read_bytes())["shards"] if index.exists() else []
    raw, meta, described = _mds(samples) if form == "mds" else _rows(samples, form)
    shard: dict[str, Any] = {"compression": compression, "format": form, "hashes": [], "size_limit": None, "version": 2}
    shard |= {**described, "samples": len(samples)}
    made = path
    for part, name, data in (("data", path.name, raw), ("meta", f"{path.name}.meta", meta)):
        if data is None:
            continue
        shard[f"raw_{part}"] = {"basename": name, "bytes": len(data), "hashes": {}}
        shard[f"zip_{part}"] = None
        if compression is not None:
            name, data = f"{name}.{compression}", PACK[compression](data)
            shard[f"zip_{part}"] = {"basename": name, "bytes": len(data), "hashes": {}}
        (path.parent / name).write_bytes(data)
        made = path.parent / name if part == "data" else made
    before = f"{key.rpartition('/')[2]}.{form}"
    if revision:
        shards = [shard if other["raw_data"]["basename"] == before else other for other in shards]
    else:
        shards.append(shard)
    fresh = path.parent / "index.new"
    fresh.write_text(json.dumps({"version": 2, "shards": shards}, sort_keys=True))
    os.replace(fresh, index)
    if revision:
        for old in path.parent.glob(f"{before}*"):
            old.unlink()
    return made


def _mds(samples: list[dict[str, Any]]) -> tuple[bytes, None, dict[str, Any]]:
    columns = sorted(samples[0])
    encodings, sizes = zip(*(_encoding(samples[0][name]) for name in columns), strict=True)
    records = []
    for sample in samples:
        cells = [_cell(sample[name]) for name in columns]
        lengths = [len(cell) for cell, size in zip(cells, sizes, strict=True) if size is None]
        records.append(struct.pack(f"<{len(lengths)}I", *lengths) + b"".join(cells))
    described = {"column_names": columns, "column_encodings": list(encodings), "column_sizes": list(sizes)}
    text = json.dumps(described, sort_keys=True).encode()
    offsets = np.cumsum([4 + 4 * (len(records) + 1) + len(text), *map(len, records)])
    table = struct.pack(f"<I{len(offsets)}I", len(records), *offsets)
    return table + text + b"".join(records), None, described


def _encoding(value: Any) -> tuple[str, int | None]:
    if isinstance(value, int):
        return "int", 8
    if isinstance(value, np.ndarray):
        return f"ndarray:{value.dtype.name}:{','.join(map(str, value.shape))}", value.nbytes
    return ("str" if isinstance(value, str) else "bytes"), None


def _cell(value: Any) -> bytes:
    if isinstance(value, int):
        return struct.pack("<q", value)
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return value.encode() if isinstance(value, str) else bytes(value)


def _rows(samples: list[dict[str, Any]], form: str) -> tuple[bytes, bytes, dict[str, Any]]:
    columns = {name: type(samples[0][name]).__name__ for name in sorted(samples[0])}
    described: dict[str, Any] = {"newline": "\n"}
    if form == "json":
        described["columns"] = columns
        header = b""
        rows = [json.dumps(sample, sort_keys=True).encode() + b"\n" for sample in samples]
    else:
        separator = SEPARATORS[form]
        described |= {"column_names": list(columns), "column_encodings": list(columns.values())}
        described |= {"separator": separator} if form == "xsv" else {}
        header = separator.join(columns).encode() + b"\n"
        rows = [separator.join(str(sample[name]) for name in columns).encode() + b"\n" for sample in samples]
    offsets = np.cumsum([len(header), *map(len, rows)])
    meta = struct.pack(f"<I{len(offsets)}I", len(rows), *offsets) + json.dumps(described, sort_keys=True).encode()
    return header + b"".join(rows), meta, described
