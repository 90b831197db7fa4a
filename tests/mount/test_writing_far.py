"""Writable mounts of stores in S3 servers: what tools write is stored, two writers lose nothing, and a server that
could not see to that is refused."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shardfs import open_store
from shardfs.storage.urls import open_remote
from tests.conformance.trees import wait_for
from tests.mount.conftest import mounting, run
from tests.mount.test_writing import refused, same, source, sync  # noqa: F401
from tests.mount.test_writing import run as tool
from tests.servers import Server, moto_server, nginx_server, rclone_server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

SYSTEMS = ("squirrel", "streaming", "webdataset")
WRITERS, TIMES = map(int, os.environ.get("SHARDFS_TEST_COUNTER", "4x5").split("x"))
"""How many mounts count how often each: the full run is 8x25."""


@pytest.fixture(scope="module")
def moto() -> Iterator[Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "bucket").mkdir()
    with rclone_server(folder) as server:
        yield server


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest) -> Server:
    """One that compares, and one that does not."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moto: Server) -> None:
    for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    return "s3://bucket/" + "".join(c if c.isalnum() else "-" for c in request.node.name)


def far(server: Server) -> dict[str, Any]:
    return {"endpoint": server.endpoint, "cache_size": 0}


def words(server: Server, *more: str) -> list[str]:
    """What a mount is asked for that stores only what it is asked to."""
    alone = ["--single-writer"] if server.endpoint not in _comparing else []
    return ["--rw", "--endpoint", server.endpoint, "--write-back", "off", *alone, *more]


_comparing: set[str] = set()


@pytest.fixture(autouse=True)
def _knows(moto: Server) -> None:
    _comparing.add(moto.endpoint)


def objects(server: Server, url: str) -> list[str]:
    return [listed.name for listed in open_remote(url, endpoint=server.endpoint).list(("",))]


# --- what tools do --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_tools_make_edit_replace_and_remove_keys(server: Server, system: str, url: str, source: Path) -> None:  # noqa: F811
    free = words(server, "--driver", system, "--allow-delete", "--allow-overwrite")
    with mounting(url, *free) as path:  # type: ignore[arg-type]
        tool("cp", "-r", source, path / "a")
        assert objects(server, url) == []
        sync(path / "a")
        same(source, path / "a")
        (path / "a/000003.json").write_text('{"label": 33}\n')
        tool("sed", "-i", "s/4/44/", path / "a/000004.json")
        sync(path / "a")
        tool("cp", "-r", source, path / "b.tmp")
        tool("mv", "-T", path / "b.tmp", path / "b")
        tool("cp", "-r", path / "b", path / "c.tmp")
        os.rename(path / "c.tmp", path / "b")
        tool("cp", "-r", source, path / "gone")
        sync(path / "gone")
        tool("rm", "-r", path / "gone")
        tool("rsync", "-a", f"{source}/", path / "by-rsync")
    store = open_store(url, **far(server))
    assert store.keys() == (["a", "b", "by-rsync"])
    assert [labels(sample) for sample in store.get("a")] == [0, 1, 2, 33, 44, 5, 6, 7, 8, 9]
    assert len(store.get("b")) == len(store.get("by-rsync")) == 10
    with mounting(url, "--endpoint", server.endpoint) as path:  # type: ignore[arg-type]
        assert (path / "a/000001.img.jpg").read_bytes() == (source / "000001.img.jpg").read_bytes()


def labels(sample: Any) -> int:
    """The label of a sample, whichever system has it."""
    value = sample["label"] if "label" in sample else json.loads(sample["json"])["label"]
    return int(value)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_end_of_a_mount_and_quiet_store_keys(moto: Server, system: str, url: str, source: Path) -> None:  # noqa: F811
    with mounting(url, *words(moto, "--driver", system)[:3], "--driver", system, "--write-back", "0.3") as path:  # type: ignore[arg-type]
        tool("cp", "-r", source, path / "a")
        wait_for(lambda: open_remote(url, endpoint=moto.endpoint).list((".gz", ".mds", ".tar")) != [], 30)
        tool("cp", "-r", source, path / "b")
    assert open_store(url, **far(moto)).keys() == ["a", "b"]


def test_what_was_staged_outlives_a_killed_daemon(moto: Server, url: str, source: Path) -> None:  # noqa: F811
    from shardfs import daemon
    from tests.mount.conftest import mount_point

    with mount_point() as path:
        done = run("mount", url, path, *words(moto, "--driver", "squirrel"))  # type: ignore[arg-type]
        assert done.returncode == 0, done.stderr
        tool("cp", "-r", source, path / "a")
        record = daemon.find(str(path))
        assert record is not None
        os.kill(record.pid, 9)
        wait_for(lambda: not Path(f"/proc/{record.pid}").exists())
    listed = run("staging", "list", url)  # type: ignore[arg-type]
    assert "a" in listed.stdout.split()
    stored = run("staging", "recover", url, "--driver", "squirrel", "--endpoint", moto.endpoint)  # type: ignore[arg-type]
    assert stored.returncode == 0, stored.stderr
    assert len(open_store(url, **far(moto)).get("a")) == 10


# --- two writers ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hosts(server: Server, url: str, count: int, folder: Path, *more: str) -> Iterator[list[Path]]:
    """Mounts of one store, each as on a machine of its own. They look for change often."""
    with contextlib.ExitStack() as stack:
        paths = []
        for number in range(count):
            home = {name: str(folder / f"{number}-{name}") for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
            asked = words(server, "--refresh", "0.2", *more)
            paths.append(stack.enter_context(mounting(url, *asked, **home)))  # type: ignore[arg-type]
        yield paths


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_loser_of_two_hosts_gets_estale_and_both_are_kept(
    moto: Server, system: str, url: str, tmp_path: Path
) -> None:
    with hosts(moto, url, 2, tmp_path, "--driver", system) as (one, two):
        (one / "k").mkdir()
        (one / "k/000000.json").write_text('{"n": 0}\n')
        sync(one / "k")
        wait_for(lambda: (two / "k/000000.json").exists())
        (two / "k/000000.json").write_text('{"n": 2}\n')
        (one / "k/000000.json").write_text('{"n": 1}\n')
        sync(one / "k")
        with refused(errno.ESTALE):
            fsync(two / "k")
        wait_for(lambda: (two / "k/000000.json").read_text() == '{"n": 1}\n')
        (parked,) = [path for path in two.iterdir() if path.name.startswith("k.conflict-")]
        assert (parked / "000000.json").read_text() == '{"n": 2}\n'
        tool("rm", "-r", parked)


@pytest.mark.parametrize("place", ["far", "here"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_who_writes_the_same_as_another_has_not_written_it(
    moto: Server, system: str, place: str, url: str, tmp_path: Path
) -> None:
    """Regression: the loser looked whether the store had what it had been about to store, and found the other's."""
    store = url if place == "far" else str(tmp_path / "store")
    with contextlib.ExitStack() as stack:
        if place == "far":
            one, two = stack.enter_context(hosts(moto, url, 2, tmp_path, "--driver", system))
        else:
            asked = ["--rw", "--write-back", "off", "--driver", system]
            one, two = (
                stack.enter_context(mounting(store, *asked, XDG_STATE_HOME=str(tmp_path / name)))  # type: ignore[arg-type]
                for name in ("one", "two")
            )
        (one / "k").mkdir()
        (one / "k/000000.json").write_text('{"n": 0}\n')
        sync(one / "k")
        wait_for(lambda: (two / "k/000000.json").exists())
        for path in (one, two):
            (path / "k/000000.json").write_text('{"n": 1}\n')
        sync(one / "k")
        with refused(errno.ESTALE):
            fsync(two / "k")
        for parked in two.glob("k.conflict-*"):
            shutil.rmtree(parked)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_second_of_two_hosts_that_make_a_key_gets_an_error(
    moto: Server, system: str, url: str, tmp_path: Path
) -> None:
    with hosts(moto, url, 2, tmp_path, "--driver", system) as (one, two):
        for number, path in enumerate((one, two)):
            (path / "k.tmp").mkdir()
            (path / "k.tmp/000000.json").write_text(json.dumps({"n": number}) + "\n")
        os.rename(one / "k.tmp", one / "k")
        with refused(errno.EEXIST):
            os.rename(two / "k.tmp", two / "k")
        tool("rm", "-r", two / "k.tmp")
        wait_for(lambda: text(two / "k/000000.json") == '{"n": 0}\n')


def test_two_hosts_that_add_keys_to_one_data_set_lose_none(moto: Server, url: str, tmp_path: Path) -> None:
    """Each seal replaces index.json, which the other has just read."""

    def add(path: Path, name: str) -> None:
        for number in range(5):
            folder = path / f"{name}.{number}.tmp"
            folder.mkdir()
            (folder / "000000.json").write_text(json.dumps({"n": f"{name}.{number}"}) + "\n")
            os.rename(folder, path / f"{name}.{number}")

    with hosts(moto, url, 2, tmp_path, "--driver", "streaming") as (one, two), ThreadPoolExecutor() as pool:
        for done in [pool.submit(add, one, "one"), pool.submit(add, two, "two")]:
            done.result()
    store = open_store(url, **far(moto))
    names = {f"{host}.{number}" for host in ("one", "two") for number in range(5)}
    assert set(store.keys()) == names
    assert {str(store.get(key)[0]["n"]) for key in names} == names


@pytest.mark.parametrize("system", SYSTEMS[:2])
@pytest.mark.timeout(3600 if WRITERS * TIMES > 50 else 120)
def test_a_counter_that_mounts_count_up_ends_exactly(moto: Server, system: str, url: str, tmp_path: Path) -> None:
    """Nothing is lost and nothing counted twice: what `fsync` of the key said is what became of it."""
    store = open_store(url, driver=system, **far(moto))
    if system == "streaming":
        store.driver.beginning = True  # type: ignore[attr-defined]
    store.set([{"n": 0}], "k")
    with hosts(moto, url, WRITERS, tmp_path, "--driver", system) as paths, ThreadPoolExecutor(WRITERS) as pool:
        lost = [done.result() for done in [pool.submit(count, path / "k", TIMES) for path in paths]]
    assert store.get("k")[0]["n"] == WRITERS * TIMES
    print(f"{WRITERS} mounts, {TIMES} times each, {sum(lost)} conflicts", file=sys.stderr)


def count(key: Path, times: int) -> int:
    """Add one so often; how often somebody else was faster."""
    lost = 0
    for _ in range(times):
        while not counted(key):
            lost += 1
    return lost


def counted(key: Path) -> bool:
    """Add one to what is read through the file that is written: reading and writing are over the same version."""
    try:
        with open(key / "000000.json", "r+b", buffering=0) as file:
            number = json.loads(file.read())["n"]
            data = json.dumps({"n": number + 1}).encode() + b"\n"
            os.pwrite(file.fileno(), data, 0)
            os.ftruncate(file.fileno(), len(data))
        while True:
            try:
                fsync(key)
                return True
            except OSError as error:
                if error.errno != errno.EBUSY:  # its file is just being closed
                    raise
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.ENOENT):
            error.add_note((key.parent.parent / "log").read_text())
            raise
        for parked in key.parent.glob("k.conflict-*"):
            shutil.rmtree(parked)
        shown = json.dumps({"n": number}) + "\n" if "number" in locals() else ""
        with contextlib.suppress(TimeoutError, AssertionError):  # somebody may have written the same again
            wait_for(lambda: text(key / "000000.json") != shown, 5)
        return False


def text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_a_server_that_ignores_conditions_is_refused_in_one_line(rclone: Server, url: str, tmp_path: Path) -> None:
    for more in (["--rw"], ["-o", "rw"]):
        done = run("mount", url, tmp_path / "mnt", *more, "--driver", "squirrel", "--endpoint", rclone.endpoint)  # type: ignore[arg-type]
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "--single-writer" in done.stderr
    assert objects(rclone, url) == []
    with mounting(url, "-o", "rw,single_writer", "--driver", "squirrel", "--endpoint", rclone.endpoint) as path:  # type: ignore[arg-type]
        (path / "k").mkdir()


def test_single_writer_is_for_writable_mounts_of_stores_far_away(tmp_path: Path) -> None:
    open_store(tmp_path / "store", "squirrel").set([{"a": 1}], "k")
    for more in (["--single-writer"], ["--rw", "--single-writer"], ["-o", "rw,single_writer"]):
        done = run("mount", tmp_path / "store", tmp_path / "mnt", *more)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_a_web_server_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    with nginx_server(tmp_path / "files", tmp_path / "nginx") as server:
        for more in ([], ["--single-writer"]):
            done = run("mount", server.endpoint, tmp_path / "mnt", "--rw", "--driver", "squirrel", *more)  # type: ignore[arg-type]
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
            assert "can only be read" in done.stderr


def test_credentials_that_may_not_write_are_told_of(rclone: Server, url: str, tmp_path: Path) -> None:
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
    done = run("mount", url, tmp_path / "mnt", *words(rclone)[:3], "--driver", "squirrel", **wrong)  # type: ignore[arg-type]
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot be written to" in done.stderr
