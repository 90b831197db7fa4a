"""The process dies, at any moment; or there are two of them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shardfs.errors import StagingLockedError
from shardfs.staging import StagingArea
from tests.unit.staging_player import KEY, URL, Player, choose, visible

HERE = Path(__file__).resolve().parents[2]
ROUNDS = int(os.environ.get("SHARDFS_STAGING_KILLS", "20"))


def start(root: Path, seed: int) -> subprocess.Popen[bytes]:
    """Those of even seeds put small files into the heap from the first one on."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tests.unit.staging_player", str(root), str(seed), str(seed % 2 * 1000)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=HERE)


@pytest.mark.timeout(30 + 3 * ROUNDS)
def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """What is found is as after the last operation that was acknowledged, or as after the one that was under way."""
    for seed in range(ROUNDS):
        dice = random.Random(1000 + seed)
        root = tmp_path / str(seed)
        with start(root, seed) as child:
            assert child.stdout is not None
            try:
                done = len(child.stdout.read(dice.randrange(1, 1000)))  # and it goes on
            finally:
                child.send_signal(signal.SIGKILL)
            done += len(child.stdout.read()) - 1  # the first says that there is a directory
        player, choice = Player(None), random.Random(seed)
        for _ in range(done):
            choose(player, choice)(player)
        area = StagingArea.open(URL, root=root)
        try:
            before, states = dict(player.view), ["staged" if player.snapshot is None else "sealing"]
            choose(player, choice)(player)
            states.append("staged" if player.snapshot is None else "sealing")
            found = area.find(KEY)
            if found is None:  # a seal took everything, and the process died right behind it
                found = area.create(KEY, base_version=f"v{player.seals}")
            seen = visible(found, player.bases)
            assert seen in (before, player.view), f"seed {seed}, after {done} operations"
            assert found.state in states
            assert not [path for path in area.path.rglob("*") if path.name.endswith((".new", ".gone"))]
            left = {path.name for path in (area.path / found.id / "data").iterdir()} - {"heap"}
            assert left == {str(number) for number in found._ledger.data_numbers() if number > 0}
        finally:
            area.close()


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    with start(tmp_path, 1) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.read(1) == b"."
            with pytest.raises(StagingLockedError, match=f"process {child.pid} is writing to {URL}"):
                StagingArea.open(URL, root=tmp_path)
            looking = StagingArea.open(URL, root=tmp_path, read_only=True)
            assert [report.key for report in looking.reports()] == [KEY]
            looking.close()
            StagingArea.open("another store", root=tmp_path).close()
        finally:
            child.send_signal(signal.SIGKILL)
        child.wait()
    StagingArea.open(URL, root=tmp_path).close()
