"""A mount of a store in an S3 server behind a proxy that does what networks do: right bytes or the documented errno,
by the deadline, and a mount that works again when the store does."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from shardfs.opening import open_store
from shardfs.storage.cache_files import CacheFiles
from tests.conformance.trees import wait_for
from tests.fault_proxy import FAULTS, FaultProxy, fault_proxy
from tests.mount.conftest import is_mounted, mount_point, processes, run, sync
from tests.servers import Server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

LONG = os.environ.get("SHARDFS_LONG_FAULTS") == "1"
"""The store is away for a minute, with the deadline that mounts have by default."""
ALL = os.environ.get("SHARDFS_ALL_FEATURES") == "1"
DEADLINE = 2.0
SLACK = 4.0
"""Seconds beyond the deadline: what a mount adds to it (config.REMOTE_PATIENCE), and a busy machine."""
KEYS = 12
DOCUMENTS = ("status.json", "metrics", "errors.jsonl", "config.json", "log")
ALLOWED = (errno.ETIMEDOUT, errno.EIO, errno.EACCES)

Mounted = Callable[..., AbstractContextManager[Path]]


def content(number: int) -> bytes:
    return bytes([number]) * 200_000


@pytest.fixture(scope="module")
def moto(moto: Server) -> Server:
    """With a store in it."""
    store = open_store("s3://bucket/far", "squirrel", endpoint=moto.endpoint, cache_size=0)
    for number in range(KEYS):
        store.set([{"a": content(number), "label": number}], f"k{number:02}")
    return moto


@pytest.fixture
def proxy(moto: Server) -> Iterator[FaultProxy]:
    with fault_proxy(moto.endpoint) as made:
        yield made


def words(proxy: FaultProxy, folder: Path, kept: bool, deadline: float = DEADLINE) -> list[str]:
    size = "100M" if kept else "0"
    place = ["--cache-dir", str(folder / "cache"), "--cache-size", size, "--min-free", "0"]
    return ["--endpoint", proxy.endpoint, "--deadline", f"{deadline:g}", "--no-index", *place]


def read(path: Path, number: int) -> bytes:
    return (path / f"k{number:02}" / "000000.a.bin").read_bytes()


def tried(path: Path, number: int) -> int | None:
    """The errno of reading a key's file; None for right bytes."""
    try:
        found = read(path, number)
    except OSError as error:
        return error.errno
    assert found == content(number)
    return None


def clean(folder: Path) -> None:
    assert CacheFiles(folder / "cache", 1 << 40).verify() == []
    left = {path.name for path in (folder / "cache").glob("??/*")}
    assert all(name.endswith((".data", ".about")) for name in left), left


@pytest.mark.parametrize("kept", [False, True])
def test_every_fault_ends_in_right_bytes_or_an_error_in_time(
    proxy: FaultProxy, mounted: Mounted, tmp_path: Path, kept: bool
) -> None:
    # without reading ahead, or what is asked for would be there already
    with mounted("s3://bucket/far", *words(proxy, tmp_path, kept), SHARDFS_NO_READ_AHEAD="1") as path:
        for number, kind in enumerate(FAULTS):
            proxy.fail(kind, seconds={"latency": 0.1, "drip": 0.05}.get(kind, 0))
            begun = time.monotonic()
            code = tried(path, number)
            assert time.monotonic() - begun < DEADLINE + SLACK
            assert (code is None) == (kind == "latency"), (kind, code)
            assert code is None or code in ALLOWED, (kind, code)
            proxy.heal()
            wait_for(lambda number=number: tried(path, number) is None)  # type: ignore[misc]
        assert sorted(os.listdir(path)) == [f"k{number:02}" for number in range(KEYS)]
    clean(tmp_path)


def test_documents_answer_while_readers_a_seal_and_a_rename_wait_for_the_store(
    moto: Server, proxy: FaultProxy, mounted: Mounted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename holds the directory `.shardfs` is in, and nobody has looked for that before."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    open_store("s3://bucket/busy", "squirrel", endpoint=moto.endpoint, cache_size=0).set([{"a": 1}], "k")
    more = ["--rw", "--write-back", "off", "--refresh", "0.2", "--metrics-addr", "127.0.0.1:0"]
    with mounted("s3://bucket/busy", *words(proxy, tmp_path, kept=True, deadline=30), *more) as path:
        for name in ("new", "x.tmp"):
            (path / name).mkdir()
            (path / name / "000000.json").write_text('{"a": 1}')
        proxy.fail("black-hole")
        waiting = [
            threading.Thread(target=os.listdir, args=(path / "k",)),
            threading.Thread(target=os.rename, args=(path / "x.tmp", path / "y")),
            threading.Thread(target=sync, args=(path / "new",)),
        ]
        for number, thread in enumerate(waiting):
            before = len(proxy.requests)
            thread.start()
            wait_for(lambda seen=before: len(proxy.requests) > seen)  # type: ignore[misc]
            assert all(one.is_alive() for one in waiting[: number + 1])
        begun = time.monotonic()
        said = {name: (path / ".shardfs" / name).read_bytes() for name in DOCUMENTS}
        assert json.loads(said["status.json"])["health"] == "serving"
        assert {one["key"] for one in json.loads(said["status.json"])["staged"]} == {"new", "y"}
        where = json.loads(said["config.json"])["metrics_addr"]["value"]
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=10) as answer:
            assert b"\nshardfs_staged 2\n" in answer.read()
        assert b"\nshardfs_staged 2\n" in said["metrics"]
        assert set(DOCUMENTS) <= set(os.listdir(path / ".shardfs"))
        assert time.monotonic() - begun < SLACK
        assert all(one.is_alive() for one in waiting)
        proxy.heal()
        for thread in waiting:
            thread.join(20)
            assert not thread.is_alive()
        assert sorted(os.listdir(path)) == ["k", "new", "y"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("system", ["squirrel", *(["streaming"] if ALL else [])])
def test_a_seal_in_every_fault_is_stored_in_the_end_and_whole(
    system: str, proxy: FaultProxy, moto: Server, mounted: Mounted, tmp_path: Path
) -> None:
    """By the deadline there is success or an error; what is staged stays, and is stored once the store is back."""
    url = f"s3://bucket/sealed-{system}"
    more = ["--rw", "--write-back", "off", "--driver", system]
    home = {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    kinds = [kind for kind in FAULTS if ALL or kind in ("black-hole", "page")]
    with mounted(url, *words(proxy, tmp_path, True), *more, **home) as path:
        for number, kind in enumerate(kinds):
            key = path / f"k{number:02}"
            key.mkdir()
            (key / "000000.a.bin").write_bytes(content(number))
            proxy.fail(kind, seconds={"latency": 0.1, "drip": 0.05}.get(kind, 0))
            begun = time.monotonic()
            code = sealed(key)
            # the key is looked for, its shard is put, and then looked at or, of a data set, its index is put
            assert time.monotonic() - begun < 4 * DEADLINE + SLACK
            assert code is None or code in ALLOWED, (kind, code)
            assert kind != "latency" or code is None
            (name,) = os.listdir(key)  # of a data set another one, once it is stored
            assert (key / name).read_bytes() == content(number)
            proxy.heal()
            wait_for(lambda key=key: sealed(key) is None, 40)  # type: ignore[misc]
    store = open_store(url, system, endpoint=moto.endpoint, cache_size=0)
    assert [list(store.get(key)) for key in sorted(store)] == [[{"a": content(at)}] for at in range(len(kinds))]
    clean(tmp_path)


def sealed(key: Path) -> int | None:
    """The errno of storing a key; None where it is stored."""
    try:
        sync(key)
    except OSError as error:
        return error.errno
    return None


@pytest.mark.timeout(400 if LONG else 120)
@pytest.mark.parametrize("kept", [False, True])
def test_a_store_that_is_cut_off_for_a_while(proxy: FaultProxy, mounted: Mounted, tmp_path: Path, kept: bool) -> None:
    deadline, away = (60.0, 60.0) if LONG else (DEADLINE, 3.0)
    more = ["--memory", "1M", "--refresh", "1"]
    with mounted("s3://bucket/far", *words(proxy, tmp_path, kept, deadline), *more) as path:
        codes: set[int | None] = set()
        longest: list[float] = [0.0]
        wrong: list[BaseException] = []
        stop = threading.Event()

        def reader(first: int) -> None:
            number = first
            while not stop.is_set():
                begun = time.monotonic()
                try:
                    codes.add(tried(path, number % KEYS))
                except BaseException as error:
                    wrong.append(error)
                    return
                longest[0] = max(longest[0], time.monotonic() - begun)
                number += 5
                stop.wait(0.01)

        readers = [threading.Thread(target=reader, args=(first,)) for first in range(8)]
        for one in readers:
            one.start()
        for kind in ("black-hole", "refuse"):
            proxy.fail(kind)
            stop.wait(away / 2)  # it is time itself that must pass here
        proxy.heal()
        wait_for(lambda: all(tried(path, number) is None for number in range(KEYS)), 40)
        stop.set()
        for one in readers:
            one.join(deadline + SLACK)
        assert not any(one.is_alive() for one in readers)
        assert wrong == []
        assert codes <= {None, *ALLOWED}
        assert longest[0] < 2 * (deadline + SLACK)  # opening and reading are two operations
    clean(tmp_path)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


def test_a_killed_reader_goes_at_the_deadline(proxy: FaultProxy, mounted: Mounted, tmp_path: Path) -> None:
    with mounted("s3://bucket/far", *words(proxy, tmp_path, True)) as path:
        before = len(proxy.requests)
        proxy.fail("black-hole")
        cat = subprocess.Popen(
            ["cat", str(path / "k00" / "000000.a.bin")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda: len(proxy.requests) > before)
        cat.send_signal(signal.SIGKILL)
        begun = time.monotonic()
        assert cat.wait(DEADLINE + SLACK) == -signal.SIGKILL
        assert time.monotonic() - begun < DEADLINE + SLACK
        assert all(_state(pid) != "D" for pid in processes(path))


def test_unmounting_while_the_store_is_silent(proxy: FaultProxy, tmp_path: Path) -> None:
    with mount_point() as path:
        done = run("mount", "s3://bucket/far", path, *words(proxy, tmp_path, False), "--log", tmp_path / "log")
        assert done.returncode == 0, done.stderr
        proxy.fail("black-hole")
        assert tried(path, 0) == errno.ETIMEDOUT
        ended = run("umount", path)
        assert ended.returncode == 0, ended.stderr
        assert not is_mounted(path)
        wait_for(lambda: processes(path) == [])


def status(path: Path) -> dict[str, Any]:
    said = run("status", path, "--json")
    assert said.returncode == 0, said.stderr
    return dict(json.loads(said.stdout)["far"])


def test_status_tells_how_the_store_is(proxy: FaultProxy, mounted: Mounted, tmp_path: Path) -> None:
    with mounted("s3://bucket/far", *words(proxy, tmp_path, True, 1.0)) as path:
        assert tried(path, 0) is None
        told = status(path)
        assert (told["answers"], told["error"]) == (True, None)
        assert told["requests"] > 0
        assert told["bytes"] > 0
        assert (told["cache"]["misses"], told["cache"]["evictions"]) == (1, 0)
        proxy.fail("black-hole")
        wait_for(lambda: tried(path, 1) == errno.ETIMEDOUT and not status(path)["answers"], 40)
        begun = time.monotonic()
        assert tried(path, 2) in ALLOWED
        assert tried(path, 3) in ALLOWED
        assert tried(path, 0) is None  # what is at hand is not asked for
        assert time.monotonic() - begun < 5
        said = run("status", path).stdout
        assert "has not answered for" in said
        assert "cache on disk" in said
        proxy.heal()
        wait_for(lambda: tried(path, 1) is None)
        assert status(path)["answers"]


def test_offline(proxy: FaultProxy, mounted: Mounted, tmp_path: Path) -> None:
    with mounted("s3://bucket/far", *words(proxy, tmp_path, True)) as path:
        assert tried(path, 0) is None
    before = len(proxy.requests)
    for how in (["--offline"], ["-o", "offline,deadline=3"]):
        with mounted("s3://bucket/far", *words(proxy, tmp_path, True), *how) as path:
            assert len(os.listdir(path)) == KEYS
            assert tried(path, 0) is None
            assert tried(path, 1) == errno.ENETUNREACH
            assert status(path)["offline"]
            assert "--offline" in run("status", path).stdout
    assert len(proxy.requests) == before


def test_a_mount_that_begins_while_the_store_is_silent(proxy: FaultProxy, mounted: Mounted, tmp_path: Path) -> None:
    with mounted("s3://bucket/far", *words(proxy, tmp_path, True)) as path:
        assert len(os.listdir(path)) == KEYS
    proxy.fail("refuse")
    log = tmp_path / "log"
    with mounted("s3://bucket/far", *words(proxy, tmp_path, True, 1.0), "--log", str(log), "--refresh", "0.5") as path:
        assert len(os.listdir(path)) == KEYS
        assert "what was known of the store at" in log.read_text()
        proxy.heal()
        wait_for(lambda: tried(path, 4) is None)
    proxy.fail("refuse")
    elsewhere = words(proxy, tmp_path / "other", True, 1.0)
    failed = run("mount", "s3://bucket/far", tmp_path / "m", *elsewhere)
    assert failed.returncode != 0
    assert len(failed.stderr.strip().splitlines()) == 1
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("given", ["0", "x", "-o deadline=0"])
def test_a_deadline_that_makes_no_sense_is_one_line(given: str, tmp_path: Path) -> None:
    said = given.split() if given.startswith("-o") else ["--deadline", given]
    done = run("mount", "s3://bucket/far", tmp_path / "m", *said)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)


def test_credentials_are_nowhere_to_be_seen(moto: Server, tmp_path: Path) -> None:
    """Not in the log, the process list, the mount table, what is printed, or status: from URLs and the environment."""
    log = tmp_path / "log"
    host = moto.endpoint.removeprefix("http://")
    with mount_point() as path:  # nothing there can be listed
        url = f"http://user:s3cr3t@{host}/bucket/x?token=s3cr3t"
        done = run("mount", url, path, "--driver", "squirrel", "--deadline", "1", "-vv", "--log", log)
        assert done.returncode != 0
        assert "s3cr3t" not in done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    with mount_point() as path:
        done = run(
            "mount", "s3://bucket/far", path, "--endpoint", moto.endpoint.replace("://", "://user:s3cr3t@"),
            "--cache-dir", tmp_path / "cache", "-vv", "--log", log, AWS_SECRET_ACCESS_KEY="t0ps3cret",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert tried(path, 0) is None
        lists = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in processes(path)]
        assert lists
        texts = [
            *lists, done.stdout, done.stderr, log.read_text(), Path("/proc/self/mountinfo").read_text(),
            run("status", path).stdout, run("status", path, "--json").stdout,
        ]  # fmt: skip
        assert "s3cr3t" not in "\n".join(texts)
        assert "t0ps3cret" not in "\n".join(texts)
        assert run("umount", path).returncode == 0


def test_a_command_ends_at_the_deadline_and_its_process_with_it(proxy: FaultProxy, tmp_path: Path) -> None:
    """A request of obstore cannot be ended: its thread must not keep the process."""
    proxy.fail("drip", seconds=0.1)
    begun = time.monotonic()
    done = run("ls", "s3://bucket/far", "--endpoint", proxy.endpoint, "--deadline", "2", "--cache-size", "0",
               XDG_CACHE_HOME=str(tmp_path))  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert time.monotonic() - begun < 2 + SLACK
