"""A mount's tables as pandas, polars and pyarrow read them: the same rows, by one open each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shardfs import open_store

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from test_interop import library  # noqa: E402

pytestmark = pytest.mark.timeout(300)


def shardfs(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "shardfs", *words], check=True, timeout=60)


def test_every_library_reads_the_rows_that_are_there(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s", driver="squirrel")
    expected = []
    for key in ("a", "b/c"):
        samples = [{"label": f"läbel {at % 3}", "n": at, "x": b"x" * at, "more": {"at": [at]}} for at in range(100)]
        store.set(samples, key)
        expected += [[key, f"{at:06d}", sample["label"], sample["n"]] for at, sample in enumerate(samples)]
    path = str(tmp_path / "mnt")
    shardfs("mount", str(tmp_path / "s"), path)
    try:
        found = library("tables", tmp_path, f"{path}/.shardfs")
    finally:
        shardfs("umount", path)
    assert len(found) == 7
    for name, rows in found.items():
        assert rows == expected, name
