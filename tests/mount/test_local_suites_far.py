"""The suites of stores on this machine, run once more over stores on S3 servers.

    suite                                             moto     rclone
    ------------------------------------------------  -------  -------
    test_tree_far (the tree suite, cache on disk)      always   -
    test_systems_far (golden trees of Streaming, tars)  always   -
    test_writing_far (tools make, edit, replace keys)  always   always
    test_semantics_far (conflicts, conditions)         always   always
    all that is in SUITES below                        here     here, with --single-writer

What runs always is in each run of the tests; what runs here, with SHARDFS_ALL_FEATURES=1 only, as it takes most of an
hour. `tests/far_exclusions.txt` has each test that is left out, with the reason. Whole suites are left out where their
store cannot be on an object server (mltraq, Superduper: a database, and a directory that is changed in place), which
are about the disks of this machine (crashes, faults, temporary files), or which know nothing of stores.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount.conftest import REPOSITORY

SUITES = {
    # reading
    "unit/test_tree_in_process.py": 50,
    "unit/test_webdataset_in_process.py": 8,
    "unit/test_driver_suite.py": 35,
    "unit/test_store.py": 40,
    "unit/test_squirrel.py": 180,
    "unit/test_streaming.py": 190,
    "unit/test_text_rows.py": 250,
    "unit/test_webdataset.py": 60,
    "mount/test_tools.py": 10,
    "mount/test_listing.py": 7,
    "mount/test_streaming.py": 6,
    # writing
    "unit/test_mds_writing.py": 120,
    "unit/test_sealer.py": 55,
    "unit/test_sealer_mds.py": 7,
    "unit/test_model.py": 4,
    "unit/test_writing_model.py": 12,
    "unit/test_writing_mds_model.py": 2,
    "unit/test_webdataset_model.py": 1,
    "mount/test_writing.py": 37,
    "mount/test_writing_mds.py": 60,
    "mount/test_webdataset_mounted.py": 10,
    "mount/test_semantics.py": 25,
    "mount/test_semantics_rules.py": 24,
    "mount/test_semantics_errors.py": 17,
    "mount/test_semantics_mds.py": 18,
    "mount/test_copying_between.py": 6,
    "mount/test_model_mounted.py": 4,
}
"""Suites, and how many of their tests must pass at least."""

pytestmark = [
    pytest.mark.mount,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.environ.get("SHARDFS_ALL_FEATURES") != "1", reason="SHARDFS_ALL_FEATURES=1 runs it"),
]


@pytest.mark.parametrize("server", ["moto", "rclone"])
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_passes_far_away(server: str, suite: str, tmp_path: Path) -> None:
    words = ["-q", "-p", "tests.far_plugin", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "far")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(REPOSITORY / "tests" / suite)], cwd=REPOSITORY, text=True,
        capture_output=True, timeout=1700, env={**os.environ, "SHARDFS_TESTS_FAR": server},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert (int(passed[1]) if passed else 0) >= SUITES[suite], done.stdout[-2000:]
