"""The package as somebody has it who has no checkout: the wheel in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from shardfs import __version__
from tests.mount.conftest import REPOSITORY, mount_point

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]


def install(folder: Path) -> Path:
    """The programs of a wheel, made of this checkout; what it needs comes from the environment of the tests."""
    built, venv = folder / "built", folder / "venv"
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", built]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True, timeout=60)
    (wheel,) = built.iterdir()
    assert wheel.name == f"shardfs-{__version__}-py3-none-any.whl"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    # .pth files are not read in a place that is named by one: a checkout that is installed there is not seen
    place = venv / f"lib/python{sysconfig.get_python_version()}/site-packages"
    (place / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin/python", "--disable-pip-version-check"]
    words = ["install", "--no-index", "--no-deps", "--ignore-installed", wheel]
    subprocess.run([*pip, *words], check=True, capture_output=True, timeout=60)
    return venv / "bin"


def test_a_wheel_mounts_without_a_checkout(tiny_store: Path, tmp_path: Path) -> None:
    programs = install(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": f"{programs}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
    environment["XDG_RUNTIME_DIR"] = os.environ["XDG_RUNTIME_DIR"]

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        command = ["shardfs", *words]
        return subprocess.run(
            command, cwd=home, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )

    where = [programs / "python", "-c", "import shardfs; print(shardfs.__file__)"]
    found = subprocess.run(where, cwd=home, env=environment, check=True, capture_output=True, text=True, timeout=60)
    assert found.stdout.startswith(str(programs.parent))
    assert run("--version").stdout == f"shardfs {__version__}\n"
    assert (programs / "mount.shardfs").exists()
    page = programs.parent / "share/man/man1/shardfs.1"
    assert page.read_bytes() == (REPOSITORY / "docs/shardfs.1").read_bytes()
    with mount_point() as path:
        mounted = run("mount", tiny_store, path)
        assert mounted.returncode == 0, mounted.stderr
        assert sorted(os.listdir(path)) == ["a", "b", "deep"]
        told = run("status", path)
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout.startswith(f"{path}: serving, ro, squirrel, {tiny_store}\n")
        examined = run("doctor", tiny_store)
        assert examined.returncode in (0, 1, 5)
        assert "3 keys, listed in" in " ".join(examined.stdout.split())
        ended = run("umount", path)
        assert (ended.returncode, ended.stderr) == (0, "")
