"""Both examples of squirrel-core's page under the real library and under ours, each reading what the other wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def side(python: str, classes: str, folder: Path, *stores: Path) -> dict[str, Any]:
    """What one side reads in stores, once it has written its own into `folder`."""
    command = [python, str(HERE / "iterstream_side.py"), classes, str(folder)]
    done = subprocess.run(
        command,
        input="\n".join(map(str, stores)),
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": str(HERE.parents[1]) if classes == "shardfs" else "",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


@pytest.mark.timeout(300)
def test_each_reads_what_the_other_wrote(tmp_path: Path) -> None:
    library = os.environ.get("SHARDFS_INTEROP_SQUIRREL")
    if not library:
        pytest.skip("SHARDFS_INTEROP_SQUIRREL is not set: use ./run interop")
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    stores = [folder / name for folder in (theirs, ours) for name in ("one", "two")]
    side(library, "squirrel", theirs)  # so that both have written when either reads
    by_us = side(sys.executable, "shardfs", ours, *stores)
    by_the_library = side(library, "squirrel", tmp_path / "again", *stores)
    assert by_us == by_the_library
    assert {len(samples) for samples in by_us.values()} == {100}
    one, two = (by_us[str(theirs / name)] for name in ("one", "two"))
    assert sorted(map(json.dumps, one)) == sorted(map(json.dumps, two)), "random keys: the same samples in any order"
    assert one == by_us[str(ours / "one")]
