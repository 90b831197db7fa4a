"""docs/SEMANTICS.md, statement by statement: stores far away."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardfs import open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import mounting, run
from tests.mount.conftest import sync as fsync
from tests.mount.far import SYSTEMS, far, hosts, objects, stored, text, words
from tests.mount.test_writing import refused, sync
from tests.mount.test_writing import run as tool
from tests.servers import Server, nginx_server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120), pytest.mark.usefixtures("far_home")]

WRITERS, TIMES = map(int, os.environ.get("SHARDFS_TEST_COUNTER", "4x5").split("x"))
"""How many mounts count how often each: the full run is 8x25."""


class TestStoresFarAway:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_a_seal_is_put_on_a_condition(self, moto: Server, system: str, url: str, tmp_path: Path) -> None:
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

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_of_two_who_make_a_key_the_first_has_it(self, moto: Server, system: str, url: str, tmp_path: Path) -> None:
        with hosts(moto, url, 2, tmp_path, "--driver", system) as (one, two):
            for number, path in enumerate((one, two)):
                (path / "k.tmp").mkdir()
                (path / "k.tmp/000000.json").write_text(json.dumps({"n": number}) + "\n")
            os.rename(one / "k.tmp", one / "k")
            with refused(errno.EEXIST):
                os.rename(two / "k.tmp", two / "k")
            tool("rm", "-r", two / "k.tmp")
            wait_for(lambda: text(two / "k/000000.json") == '{"n": 0}\n')

    def test_two_who_add_keys_to_a_data_set_lose_none(self, moto: Server, url: str, tmp_path: Path) -> None:
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
    def test_what_sync_says_is_what_became_of_it(self, moto: Server, system: str, url: str, tmp_path: Path) -> None:
        """Nothing is lost and nothing counted twice: what `fsync` of the key said is what became of it."""
        store = open_store(url, driver=system, **far(moto))
        if system == "streaming":
            store.driver.beginning = True  # type: ignore[attr-defined]
        store.set([{"n": 0}], "k")
        with hosts(moto, url, WRITERS, tmp_path, "--driver", system) as paths, ThreadPoolExecutor(WRITERS) as pool:
            lost = [done.result() for done in [pool.submit(count, path / "k", TIMES) for path in paths]]
        assert store.get("k")[0]["n"] == WRITERS * TIMES
        print(f"{WRITERS} mounts, {TIMES} times each, {sum(lost)} conflicts", file=sys.stderr)

    @pytest.mark.parametrize("place", ["far", "here"])
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_who_writes_the_same_as_another_has_not_written_it(
        self, moto: Server, system: str, place: str, url: str, tmp_path: Path
    ) -> None:
        """Regression: the loser looked whether the store had what it had been about to store, and found the other's."""
        store = url if place == "far" else str(tmp_path / "store")
        with contextlib.ExitStack() as stack:
            if place == "far":
                one, two = stack.enter_context(hosts(moto, url, 2, tmp_path, "--driver", system))
            else:
                asked = ["--rw", "--write-back", "off", "--driver", system]
                one, two = (
                    stack.enter_context(mounting(store, *asked, XDG_STATE_HOME=str(tmp_path / name)))
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

    def test_a_server_without_conditions_is_refused(self, rclone: Server, url: str, tmp_path: Path) -> None:
        for more in (["--rw"], ["-o", "rw"]):
            done = run("mount", url, tmp_path / "mnt", *more, "--driver", "squirrel", "--endpoint", rclone.endpoint)
            assert done.returncode == 2
            assert done.stderr.count("\n") == 1
            assert "--single-writer" in done.stderr
        assert objects(rclone, url) == []
        with mounting(url, "-o", "rw,single_writer", "--driver", "squirrel", "--endpoint", rclone.endpoint) as path:
            (path / "k").mkdir()

    def test_a_web_server_can_only_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "files").mkdir()
        with nginx_server(tmp_path / "files", tmp_path / "nginx") as server:
            for more in ([], ["--single-writer"]):
                done = run("mount", server.endpoint, tmp_path / "mnt", "--rw", "--driver", "squirrel", *more)
                assert done.returncode == 2
                assert done.stderr.count("\n") == 1
                assert "can only be read" in done.stderr

    def test_who_may_not_write_is_told_at_once(self, rclone: Server, url: str, tmp_path: Path) -> None:
        wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
        done = run("mount", url, tmp_path / "mnt", *words(rclone)[:3], "--driver", "squirrel", **wrong)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "cannot be written to" in done.stderr

    def test_what_others_store_is_shown_after_the_refresh(self, moto: Server, url: str) -> None:
        store = open_store(url, "squirrel", **far(moto))
        store.set([{"n": 1}], "a")
        with mounting(url, *words(moto, "--refresh", "manual")) as path:
            assert text(path / "a/000000.json") == '{"n": 1}\n'
            store.set([{"n": 2}], "a")
            store.set([{"n": 3}], "b")
            assert os.listdir(path) == ["a"]
            assert run("refresh", path).returncode == 0
            wait_for(lambda: text(path / "b/000000.json") == '{"n": 3}\n')
            wait_for(lambda: text(path / "a/000000.json") == '{"n": 2}\n')


def count(key: Path, times: int) -> int:
    """Add one so often; how often somebody else was faster."""
    lost = 0
    for _ in range(times):
        while not counted(key):
            lost += 1
    return lost


def counted(key: Path) -> bool:
    """Add one to what is read through the file that is written: reading and writing are over the same version."""
    number = -1
    try:
        with open(key / "000000.json", "r+b", buffering=0) as file:
            number = json.loads(file.read())["n"]
            data = json.dumps({"n": number + 1}).encode() + b"\n"
            os.pwrite(file.fileno(), data, 0)
            os.ftruncate(file.fileno(), len(data))
        stored(key)
        return True
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.ENOENT):
            error.add_note((key.parent.parent / "log").read_text())
            raise
        for parked in key.parent.glob("k.conflict-*"):
            shutil.rmtree(parked)
        wait_for(lambda: text(key / "000000.json") != json.dumps({"n": number}) + "\n")
        return False


def test_single_writer_is_for_writable_mounts_of_stores_far_away(tmp_path: Path) -> None:
    open_store(tmp_path / "store", "squirrel").set([{"a": 1}], "k")
    for more in (["--single-writer"], ["--rw", "--single-writer"], ["-o", "rw,single_writer"]):
        done = run("mount", tmp_path / "store", tmp_path / "mnt", *more)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
