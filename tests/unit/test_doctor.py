"""`shardfs doctor` on broken machines, each built as far as a user can build it."""

from __future__ import annotations

import contextlib
import gzip
import importlib.abc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from shardfs import cli, config, daemon
from shardfs.commands import doctor
from shardfs.commands.arguments import build_parser
from shardfs.examining import FAILURE, NOTE, OK, WARNING, Places

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(90)

Examined = dict[str, dict[str, Any]]
"""Check -> its worst finding."""


@pytest.fixture
def examined(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Examined]]:
    def run(*words: str | Path, **places: Any) -> tuple[int, Examined]:
        arguments = build_parser().parse_args(["doctor", "--json", *map(str, words)])
        status = doctor.run(arguments, Places(**places) if places else None)
        return status, worst(capsys.readouterr().out)

    return run


def worst(out: str) -> Examined:
    found: Examined = {}
    for one in json.loads(out):
        order = (OK, NOTE, WARNING, FAILURE)
        if one["check"] not in found or order.index(one["level"]) > order.index(found[one["check"]]["level"]):
            found[one["check"]] = one
        assert (one["fix"] is None) == (one["level"] == OK), one
    return found


def program(*words: str | Path, **environment: str) -> tuple[int, Examined]:
    """The real program, in an environment of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "shardfs", "doctor", "--json", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.returncode, worst(done.stdout)


def test_every_check_says_something(examined: Callable[..., tuple[int, Examined]]) -> None:
    status, found = examined()
    assert set(found) >= {
        *("kernel", "fuse", "fusermount3", "allow_other", "memory", "descriptors", "cache", "staging", "runtime"),
        *("clock", "mounts", "updatedb", "python", "images", "fast"),
    }
    levels = [one["level"] for one in found.values()]
    assert status == (5 if FAILURE in levels else 1 if WARNING in levels else 0)


def test_lines_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["doctor"])
    out, err = capsys.readouterr()
    assert "ok       kernel: Linux" in out
    assert err.startswith("shardfs: ")
    assert err.count("\n") == 1


def test_without_fusermount3(tmp_path: Path) -> None:
    status, found = program(PATH=str(tmp_path))
    assert found["fusermount3"]["level"] == (FAILURE if os.geteuid() else WARNING)
    assert found["fusermount3"]["fix"].startswith("apt install fuse3")
    assert status == (5 if os.geteuid() else 1)


def test_fusermount3_without_its_right(tmp_path: Path) -> None:
    made = tmp_path / "fusermount3"
    made.write_text("#!/bin/sh\n")
    made.chmod(0o755)
    _, found = program(PATH=str(tmp_path))
    assert found["fusermount3"]["level"] == (FAILURE if os.geteuid() else WARNING)
    assert found["fusermount3"]["fix"].startswith(f"chown root {made} && chmod u+s {made}")


def test_without_the_device(examined: Callable[..., tuple[int, Examined]], tmp_path: Path) -> None:
    status, found = examined(device=str(tmp_path / "fuse"))
    assert (status, found["fuse"]["level"]) == (5, FAILURE)
    assert "modprobe fuse" in found["fuse"]["fix"]
    assert "--device /dev/fuse --cap-add SYS_ADMIN" in found["fuse"]["fix"]


@pytest.mark.skipif(os.geteuid() != 0, reason="of root only it is asked what else it may")
def test_root_in_a_container_that_may_not_mount(examined: Callable[..., tuple[int, Examined]], tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tx\nCapEff:\t00000000a80425fb\n")  # what container engines leave by default
    (tmp_path / "device").touch()
    status, found = examined(status=str(tmp_path / "status"), device=str(tmp_path / "device"))
    assert (status, found["fuse"]["level"]) == (5, FAILURE)
    assert "CAP_SYS_ADMIN" in found["fuse"]["text"]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ('PRUNEFS = "NFS nfs tmpfs"\n', WARNING),
        ("PRUNE_BIND_MOUNTS = yes\n", WARNING),
        ('PRUNEFS="nfs fuse.shardfsx"\n', WARNING),
        ('PRUNEFS="nfs FUSE.shardfs tmpfs"\n', OK),
    ],
)
def test_updatedb(examined: Callable[..., tuple[int, Examined]], tmp_path: Path, text: str, level: str) -> None:
    """And what is said to be done about it works."""
    conf = tmp_path / "updatedb.conf"
    conf.write_text(text)
    _, found = examined(updatedb_conf=str(conf))
    assert found["updatedb"]["level"] == level
    if level == WARNING:
        subprocess.run(["sh", "-c", found["updatedb"]["fix"].removesuffix(" as root")], check=True, timeout=10)
        assert examined(updatedb_conf=str(conf))[1]["updatedb"]["level"] == OK
        assert all(word in conf.read_text() for word in text.replace('"', " ").split())


def test_allow_other(examined: Callable[..., tuple[int, Examined]], tmp_path: Path) -> None:
    conf = tmp_path / "fuse.conf"
    conf.write_text("#user_allow_other\n")
    _, found = examined(fuse_conf=str(conf))
    assert found["allow_other"]["level"] == NOTE
    subprocess.run(["sh", "-c", found["allow_other"]["fix"].removesuffix(" as root")], check=True, timeout=10)
    assert examined(fuse_conf=str(conf))[1]["allow_other"]["level"] == OK


def test_a_package_that_is_missing(tmp_path: Path) -> None:
    """By a hook in the way of every import, which the interpreter takes up before anything else."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('pyfuse3', 'isal'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}')\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    status, found = program(PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert (status, found["python"]["level"], found["fast"]["level"]) == (5, FAILURE, NOTE)
    assert "pip install 'shardfs[mount]'" in found["python"]["fix"]
    assert found["fast"]["fix"] == "pip install 'shardfs[fast]'"


def test_a_package_that_cannot_be_imported(
    examined: Callable[..., tuple[int, Examined]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyfuse3 that was compiled for another libfuse, for instance."""

    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "pyfuse3":
                raise ImportError("libfuse3.so.3: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "pyfuse3", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    status, found = examined()
    assert status == 5
    assert "libfuse3.so.3" in found["python"]["text"]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB with little left."""
    path = tmp_path / "full"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, timeout=10)
    if made.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        with contextlib.suppress(OSError), open(path / "filler", "wb") as file:
            file.write(b"\0" * (2 << 20))
        yield path
    finally:
        subprocess.run(["umount", path], check=True, timeout=10)


def test_disks_that_are_full(full_disk: Path) -> None:
    status, found = program("--cache-dir", full_disk / "cache", XDG_STATE_HOME=str(full_disk))
    assert status == 1
    for check, option in (("cache", "--cache-dir"), ("staging", "XDG_STATE_HOME")):
        assert found[check]["level"] == WARNING
        assert found[check]["text"].startswith(f"0 MiB are free at {full_disk}")
        assert option in found[check]["fix"]


def test_without_a_home() -> None:
    _, found = program(HOME="nowhere", XDG_CACHE_HOME="", XDG_STATE_HOME="")
    assert (found["cache"]["level"], found["staging"]["level"]) == (WARNING, WARNING)


def test_a_clock_that_is_wrong(examined: Callable[..., tuple[int, Examined]]) -> None:
    _, found = examined(clock=lambda: 12.0)
    assert (found["clock"]["level"], "1970-01-01" in found["clock"]["text"]) == (WARNING, True)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    (path / "a.gz").write_bytes(gzip.compress(msgpack.packb({"label": 1})))
    return path


def test_a_store(examined: Callable[..., tuple[int, Examined]], store: Path, tmp_path: Path) -> None:
    _, found = examined(store)
    assert (found["store"]["level"], found["latency"]["level"]) == (OK, OK)
    assert "1 keys, listed in" in found["store"]["text"]
    status, found = examined(tmp_path / "none")
    assert (found["store"]["level"], "latency" in found) == (FAILURE, False)
    assert status in (3, 5)


def test_a_store_of_the_future(examined: Callable[..., tuple[int, Examined]], store: Path) -> None:
    later = time.time() + 2 * config.CLOCK_AHEAD
    os.utime(store / "a.gz", (later, later))
    _, found = examined(store)
    assert found["clock"]["level"] == WARNING
    assert "younger than now" in found["clock"]["text"]


def test_a_shard_that_is_larger_than_the_memory(examined: Callable[..., tuple[int, Examined]], store: Path) -> None:
    os.truncate(store / "a.gz", config.default_budget())
    _, found = examined(store)
    assert (found["budget"]["level"], found["budget"]["fix"].startswith("mount with --memory")) == (WARNING, True)


@pytest.mark.skipif(not os.path.exists("/dev/fuse") or shutil.which("fusermount3") is None, reason="needs a real mount")
def test_a_mount_whose_process_has_died(store: Path, tmp_path: Path) -> None:
    """And what is said to be done about it works."""
    path = tmp_path / "mnt"
    environment = {"XDG_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(REPOSITORY)}
    (tmp_path / "run").mkdir(mode=0o700)
    words = [sys.executable, "-m", "shardfs"]
    everything = {**os.environ, **environment}
    subprocess.run([*words, "mount", store, path], check=True, env=everything, capture_output=True, timeout=60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", environment["XDG_RUNTIME_DIR"])
        record = daemon.find(str(path))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        assert daemon.wait_until_gone(record)
    done = subprocess.run([*words, "doctor", "--json"], env=everything, capture_output=True, text=True, timeout=60)
    (found,) = [one for one in json.loads(done.stdout) if one["text"].startswith(f"{path}: ")]
    assert (found["level"], found["text"]) == (WARNING, f"{path}: its process has died")
    fix = found["fix"].replace("shardfs", f"{sys.executable} -m shardfs", 1)
    subprocess.run(["sh", "-c", fix], check=True, env=everything, capture_output=True, timeout=60)
    assert daemon.mounted_at(str(path)) is None
