"""Staged directories against what they must be like: dicts for keys and seals, a real directory for plain ones."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shardfs import config
from shardfs.staging import ROOT, StagedDirectory, StagingArea
from tests.unit.staging_player import KEY, NAMES, URL, Player, choose, visible

STEPS = settings(
    max_examples=int(os.environ.get("SHARDFS_STAGING_RUNS", "25")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class Keys(RuleBasedStateMachine):
    """A key over a stored shard: operations, seals, and the process dying anywhere between."""

    @initialize(heap_from=st.sampled_from((0, 0, 1000)))
    def begin(self, heap_from: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(config, "HEAP_FROM", heap_from)
        self.root = Path(tempfile.mkdtemp())
        self.area = StagingArea.open(URL, root=self.root)
        self.player = Player(self.area.create(KEY, base_version="v0"))

    def teardown(self) -> None:
        if hasattr(self, "area"):
            self.area.close()
            shutil.rmtree(self.root)
            self.patch.undo()

    @rule(seed=st.integers(0, 1 << 20))
    def play(self, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(3):
            choose(self.player, dice)(self.player)

    @rule()
    def open_again(self) -> None:
        self.area.close()
        self.area = StagingArea.open(URL, root=self.root)
        found = self.area.find(KEY)
        if found is None:  # a seal took all there was
            assert not any(isinstance(item.place, str) for item in self.player.where.values())
            found = self.area.create(KEY, base_version=self.player.version)
        self.player.directory = found

    @precondition(lambda self: self.player.snapshot is not None)
    @rule()
    def settle(self) -> None:
        self.player.done()

    @invariant()
    def like_the_dicts(self) -> None:
        directory = self.player.directory
        assert directory is not None
        assert visible(directory, self.player.bases) == self.player.view
        own = sum(len(self.player.view[name]) for name, item in self.player.where.items() if item.place == "own")
        assert directory.data_bytes == own


class Trees(RuleBasedStateMachine):
    """A plain directory beside a real one: the same calls, the same errors, the same tree."""

    paths = st.lists(st.sampled_from(NAMES[:3]), min_size=1, max_size=3)

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.real = os.fsencode(self.root / "real")
        os.mkdir(self.real)
        self.area = StagingArea.open(URL, root=self.root)
        self.directory = self.area.create("k.tmp", "plain")

    def teardown(self) -> None:
        if hasattr(self, "area"):
            self.area.close()
            shutil.rmtree(self.root)

    def both(self, staged: Callable[[], object], real: Callable[[], object]) -> None:
        codes = []
        for action in (staged, real):
            try:
                action()
                codes.append(0)
            except OSError as error:
                codes.append(error.errno or -1)
        assert codes[0] == codes[1]

    def parent(self, path: list[bytes]) -> int:
        number = ROOT
        for name in path[:-1]:
            entry = self.directory.find(number, name)
            if entry is None:
                raise FileNotFoundError(2, "no such directory")
            number = entry.id
        self.directory.children(number)  # ENOTDIR, as the kernel has it before the file system is asked
        return number

    def file(self, path: list[bytes]) -> int:
        entry = self.directory.find(self.parent(path), path[-1])
        if entry is None:
            raise FileNotFoundError(2, "no such file")
        return entry.id

    def at(self, path: list[bytes]) -> bytes:
        return b"/".join((self.real, *path))

    @rule(path=paths, data=st.binary(min_size=1, max_size=9), offset=st.integers(0, 9))
    def create(self, path: list[bytes], data: bytes, offset: int) -> None:
        def staged() -> None:
            with self.directory.create(self.parent(path), path[-1]) as file:
                file.pwrite(data, offset)

        def real() -> None:
            descriptor = os.open(self.at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.pwrite(descriptor, data, offset)
            os.close(descriptor)

        self.both(staged, real)

    @rule(path=paths)
    def mkdir(self, path: list[bytes]) -> None:
        self.both(lambda: self.directory.mkdir(self.parent(path), path[-1]), lambda: os.mkdir(self.at(path)))

    @rule(path=paths)
    def rmdir(self, path: list[bytes]) -> None:
        self.both(lambda: self.directory.rmdir(self.parent(path), path[-1]), lambda: os.rmdir(self.at(path)))

    @rule(path=paths)
    def unlink(self, path: list[bytes]) -> None:
        self.both(lambda: self.directory.unlink(self.parent(path), path[-1]), lambda: os.unlink(self.at(path)))

    @rule(path=paths, size=st.integers(0, 12))
    def truncate(self, path: list[bytes], size: int) -> None:
        self.both(lambda: self.directory.truncate(self.file(path), size), lambda: os.truncate(self.at(path), size))

    @rule(path=paths, new=paths)
    def rename(self, path: list[bytes], new: list[bytes]) -> None:
        if path[: len(new)] == new != path:
            return  # over a directory that it is in: the kernel refuses that itself, whatever the file system
        self.both(
            lambda: self.directory.rename(self.parent(path), path[-1], self.parent(new), new[-1]),
            lambda: os.rename(self.at(path), self.at(new)),
        )

    @rule()
    def open_again(self) -> None:
        self.area.close()
        self.area = StagingArea.open(URL, root=self.root)
        found = self.area.find("k.tmp")
        assert found is not None
        self.directory = found

    @invariant()
    def like_the_real_one(self) -> None:
        assert self.staged_tree(self.directory, ROOT) == self.real_tree(self.real)

    def staged_tree(self, directory: StagedDirectory, number: int) -> dict[bytes, object]:
        tree: dict[bytes, object] = {}
        for entry in directory.children(number):
            if entry.directory:
                tree[entry.name] = self.staged_tree(directory, entry.id)
            else:
                with directory.open(entry.id, False) as file:
                    tree[entry.name] = file.pread(1000, 0)
        return tree

    def real_tree(self, path: bytes) -> dict[bytes, object]:
        with os.scandir(path) as entries:
            return {
                entry.name: self.real_tree(entry.path) if entry.is_dir() else Path(os.fsdecode(entry.path)).read_bytes()
                for entry in entries
            }


TestKeys = Keys.TestCase
TestKeys.settings = STEPS
TestTrees = Trees.TestCase
TestTrees.settings = STEPS


@pytest.mark.parametrize("seed", range(3))
def test_long_runs_with_journals_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(config, "JOURNAL_SLACK", 30)
    monkeypatch.setattr(config, "DOOMED_FILES", 5)
    with contextlib.closing(StagingArea.open(URL, root=tmp_path, store_path=tmp_path)) as area:
        player, dice = Player(area.create(KEY, base_version="v0")), random.Random(seed)
        for step in range(400):
            choose(player, dice)(player)
            if step % 7 == 0:
                assert player.directory is not None
                assert visible(player.directory, player.bases) == player.view
