"""The suite of Superduper's tree on a real mount, and tools that walk through directories inside a key."""

from __future__ import annotations

import contextlib
import filecmp
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.superduper_stores import DATA, Made, url_of
from tests.conformance.superduper_suite import SuperduperSuite
from tests.conformance.trees import MountedTree, Tree, wait_for
from tests.mount.conftest import run

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

Mounted = Callable[..., AbstractContextManager[Path]]


class TestSuperduperMounted(SuperduperSuite):
    @pytest.fixture(autouse=True)
    def _mounts(self, mounted: Mounted) -> None:
        self.mounted = mounted

    @contextlib.contextmanager
    def serve(self, store: Path | str, *, driver: str | None = None, budget: int = 64 << 20) -> Iterator[Any]:
        driven = ["--driver", driver] if driver else []
        with self.mounted(store, "--memory", str(budget), *driven) as path:
            tree: Tree = MountedTree(path)
            yield tree


def test_find_ls_tar_and_cp_see_one_tree(mounted: Mounted, tmp_path: Path) -> None:
    with mounted(url_of(DATA / "0.10.0")) as mnt:
        found = subprocess.run(
            ["find", ".", "-type", "f"], cwd=mnt, capture_output=True, text=True, check=True, timeout=50
        )
        listed = subprocess.run(["ls", "-R", "-l"], cwd=mnt, capture_output=True, text=True, check=True, timeout=50)
        packed = subprocess.run(["tar", "cf", "-", "."], cwd=mnt, capture_output=True, check=True, timeout=50)
        subprocess.run(["tar", "xf", "-"], cwd=tmp_path, input=packed.stdout, check=True, timeout=50)
        files = found.stdout.split("\n")[:-1]
        assert len(files) == 4 * (7 + 1 + 3 + 2)
        assert listed.stdout.count("\n-r--r--r--") == len(files)
        for name in files:
            assert filecmp.cmp(mnt / name, tmp_path / name, shallow=False), name


def test_a_row_that_is_gone_is_gone_inside_a_working_directory_too(mounted: Mounted, tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"id": "str", "d": "file"})
    made.row(id="r", d=made.file("f", {"box/a": b"a"}))
    made.row(id="other")
    with mounted(made.url) as mnt:
        assert (mnt / "t/r.d/box/a").read_bytes() == b"a"
        with made.writing() as db:
            db.execute("DELETE FROM t WHERE id = 'r'")
        wait_for(lambda: sorted(path.name for path in (mnt / "t").iterdir()) == ["other.json"])
        assert not (mnt / "t/r.d/box/a").exists()


def test_writable_mounts_are_refused_in_one_line(tmp_path: Path) -> None:
    made = Made(tmp_path / "s", {"id": "str"})
    done = run("mount", "--rw", made.url, tmp_path / "mnt")
    assert done.returncode != 0
    assert "superduper" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "mnt").exists()
