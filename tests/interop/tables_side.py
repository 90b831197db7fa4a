"""Run in an environment of its own: what pandas, polars and pyarrow read out of a mount's tables, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas
import polars
import pyarrow
import pyarrow.dataset
import pyarrow.json


def rows(frame: Any) -> list[Any]:
    """The columns that all of them have a plain word for."""
    return [[row[name] for name in ("key", "sample", "label", "n")] for row in frame]


def read(folder: Path) -> dict[str, Any]:
    lines, parquet = str(folder / "samples.jsonl"), str(folder / "samples.parquet")
    found = {
        "pandas jsonl": pandas.read_json(lines, lines=True, dtype={"sample": str}).to_dict("records"),
        "pandas parquet": pandas.read_parquet(parquet).to_dict("records"),
        "polars jsonl": polars.read_ndjson(lines).to_dicts(),
        "polars parquet": polars.read_parquet(parquet).to_dicts(),
        "polars scan": polars.scan_parquet(parquet).filter(polars.col("n") >= 0).collect().to_dicts(),
        "pyarrow jsonl": pyarrow.json.read_json(lines).to_pylist(),
        "pyarrow data set": pyarrow.dataset.dataset(parquet).to_table().to_pylist(),
    }
    return {name: rows(frame) for name, frame in found.items()}


if __name__ == "__main__":
    print(json.dumps(read(Path(sys.argv[1]))))
