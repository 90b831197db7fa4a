"""The unit file is one that systemd accepts."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

UNIT = Path(__file__).parents[2] / "systemd" / "shardfs@.service"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    assert shutil.which("systemd-analyze"), "install the package systemd: ./run test does"
    instance = tmp_path / "shardfs@photos.service"
    instance.write_text(UNIT.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(instance)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    complaints = [line for line in done.stderr.splitlines() if "shardfs" in line]
    assert (done.returncode, complaints) == (0, [])


def test_unit_says_ready_through_the_main_process() -> None:
    lines = UNIT.read_text().splitlines()
    assert "Type=notify" in lines
    assert any(line.startswith("ExecStart=") and " mount -f " in line for line in lines)
    assert any(line.startswith("ExecStop=") and " umount " in line for line in lines)
