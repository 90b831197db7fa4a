"""Test suites of others in a plain directory of a writable mount: fio, stress-ng, and CPython's own tests of files.

What cannot hold there is in `cpython_exclusions.txt`, test by test, and in `docs/SEMANTICS.md`, call by call.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardfs import open_store
from tests.mount.conftest import REPOSITORY, mounting

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
EXCLUSIONS = HERE / "cpython_exclusions.txt"
MODULES = (
    *("test_os", "test_shutil", "test_pathlib", "test_io", "test_fileio", "test_file", "test_mmap", "test_tempfile"),
    *("test_glob", "test_posix", "test_genericpath", "test_filecmp", "test_fcntl"),
)


@pytest.fixture(scope="module")
def mnt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A writable mount of a small store."""
    root = tmp_path_factory.mktemp("foreign")
    open_store(root / "store", driver="squirrel").set([{"x": b"one"}], "old")
    with mounting(root / "store", "--rw", "--write-back", "off", XDG_STATE_HOME=str(root / "state")) as path:
        yield path


@pytest.fixture
def plain(mnt: Path) -> Iterator[Path]:
    """A plain directory of it."""
    path = mnt / "x.tmp"
    path.mkdir()
    yield path
    shutil.rmtree(path)
    assert os.listdir(mnt) == ["old"]


# --- fio ------------------------------------------------------------------------------------------------------------

FIO = {
    "one_after_the_other": "ioengine=psync\nrw=write\nbs=64k\nnumjobs=2",
    "small_and_synced": "ioengine=sync\nrw=write\nbs=4k\nfsync=64",
    "anywhere_in_blocks_of_any_size": "ioengine=psync\nrw=randwrite\nbsrange=512-32k\nbs_unaligned=1\nnumjobs=2",
    "read_between_writes": "ioengine=psync\nrw=randrw\nbs=4k",
    "vectors": "ioengine=pvsync2\nrw=randwrite\nbs=16k",
    "many_at_once": "ioengine=libaio\niodepth=8\nrw=randwrite\nbs=4k",
    "past_the_page_cache": "ioengine=libaio\ndirect=1\niodepth=8\nrw=randwrite\nbs=4k",
    "io_uring": "ioengine=io_uring\niodepth=8\nrw=randwrite\nbs=8k",
    "mappings": "ioengine=mmap\nrw=randwrite\nbs=4k\nnumjobs=2",
    "one_mapping_from_its_beginning": "ioengine=mmap\nrw=write\nbs=16k",
}
"""Jobs, each of which reads back what it wrote and compares it with a checksum in each block."""


def fio(job: str, directory: Path) -> subprocess.CompletedProcess[str]:
    checks = "verify=crc32c\ndo_verify=1\nverify_fatal=1\nverify_state_save=0"
    text = f"[job]\ndirectory={directory}\nsize=2m\n{checks}\n{job}\n"
    words = ["fio", "--output-format=json", "-"]
    return subprocess.run(words, input=text, capture_output=True, text=True, timeout=60, cwd=directory)


@pytest.mark.parametrize("name", FIO)
def test_fio_reads_what_it_has_written(name: str, plain: Path, tmp_path: Path) -> None:
    done = fio(FIO[name], plain)
    if done.returncode and re.search("libaio|io_uring", FIO[name]) and fio(FIO[name], tmp_path).returncode:
        pytest.skip(f"this machine cannot do it in {tmp_path} either: {done.stderr.strip()}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    jobs = json.loads(done.stdout)["jobs"]
    assert [job["error"] for job in jobs] == [0] * len(jobs)
    for job in jobs:
        assert job["write"]["io_bytes"] > 0
        assert job["read"]["io_bytes"] >= job["write"]["io_bytes"], "not all of it was read back"


# --- stress-ng ------------------------------------------------------------------------------------------------------

STRESS = {
    **{"open": 500, "rename": 300, "dir": 30, "dirdeep": 50, "dirmany": 200, "dentry": 5, "filename": 8},
    **{"chmod": 10, "touch": 100, "utime": 100, "seek": 300, "fallocate": 2, "getdent": 200, "fstat": 200},
    **{"copy-file": 10, "sendfile": 100, "splice": 100, "flock": 200, "lockf": 200, "hdd": 50, "aio": 100},
}
"""Classes, and how many operations of each."""


@pytest.mark.parametrize("name", STRESS)
def test_stress_ng_finds_nothing_wrong(name: str, plain: Path) -> None:
    count = str(STRESS[name])
    words = ["stress-ng", "--quiet", "--verify", "--temp-path", str(plain), "--timeout", "10"]
    words += [f"--{name}", "2", f"--{name}-ops", count]
    if name == "hdd":
        words += ["--hdd-bytes", "4m"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=plain)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert os.listdir(plain) == []


# --- CPython --------------------------------------------------------------------------------------------------------


def suite(directory: Path) -> dict[str, tuple[str, str]]:
    """What came of each test with this as the working directory, and as the one for temporary files."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TMPDIR")}
    done = subprocess.run(
        [sys.executable, HERE / "cpython_suite.py", *MODULES],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=140,
        cwd=directory,
        env={**environment, "TMPDIR": str(directory)},
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    return {test: (outcome, why) for test, outcome, why in lines}


def exclusions() -> dict[str, str]:
    """Test -> what it needs that cannot be here."""
    lines = EXCLUSIONS.read_text().splitlines()
    return dict(line.split() for line in lines if line and not line.startswith("#"))


def test_cpython_s_own_tests_of_files_say_the_same_as_elsewhere(plain: Path, tmp_path: Path) -> None:
    if subprocess.run([sys.executable, "-c", "import test.test_os"], capture_output=True).returncode:
        pytest.skip("this Python came without its own tests")
    elsewhere, here = suite(tmp_path), suite(plain)
    assert len(here) > 1000
    assert set(here) == set(elsewhere)
    different = {test: here[test] for test in here if here[test][0] != elsewhere[test][0]}
    excluded = exclusions()
    assert {test: why for test, why in different.items() if test not in excluded} == {}
    passing = {test for test in excluded if test in here and test not in different}
    assert passing == set(), "these are excluded, and hold"
    if sys.version_info[:2] == (3, 11):  # whose tests the list names
        assert set(excluded) - set(here) == set(), "there are no such tests"


def _try(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return 0


def _listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def test_what_the_table_of_exclusions_says_is_so(plain: Path) -> None:
    file = plain / "file"
    file.write_bytes(b"x" * 5000)
    said = {
        "symlink": _try(lambda: os.symlink("file", plain / "link")),
        "link": _try(lambda: os.link(file, plain / "other")),
        "mkfifo": _try(lambda: os.mkfifo(plain / "fifo")),
        "socket": _try(lambda: _listen(plain / "socket")),
        "xattr": _try(lambda: os.setxattr(file, "user.x", b"x")),
        "O_TMPFILE": _try(lambda: os.close(os.open(plain, os.O_TMPFILE | os.O_RDWR))),
        "fallocate": _try(lambda: _allocate(file)),
    }
    text = (REPOSITORY / "docs/SEMANTICS.md").read_text().partition("## Test suites of others")[2]
    rows = re.findall(r"^\| `(\w+)`.*\| (E\w+) \|", text, re.MULTILINE)
    assert {call: getattr(errno, name) for call, name in rows} == said
    assert set(exclusions().values()) <= set(said)


def _allocate(path: Path) -> None:
    """fallocate(2) itself: posix_fallocate writes zeros where that is refused."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "r+b") as file:
        if libc.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(10_000)):
            raise OSError(ctypes.get_errno(), "fallocate")
