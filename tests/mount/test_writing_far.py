"""Writable mounts of stores in S3 servers, one that compares versions and one that does not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from shardfs import daemon, open_store
from shardfs.storage.urls import open_remote
from tests.conformance.trees import wait_for
from tests.mount.conftest import mount_point, mounting, run
from tests.mount.far import SYSTEMS, far, objects, words
from tests.mount.test_writing import run as tool
from tests.mount.test_writing import same, source, sync  # noqa: F401
from tests.servers import Server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120), pytest.mark.usefixtures("far_home")]


@pytest.fixture(params=["moto", "rclone"])
def server(request: pytest.FixtureRequest) -> Server:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.mark.parametrize("system", SYSTEMS)
def test_tools_make_edit_replace_and_remove_keys(server: Server, system: str, url: str, source: Path) -> None:  # noqa: F811
    free = words(server, "--driver", system, "--allow-delete", "--allow-overwrite")
    with mounting(url, *free) as path:
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
    with mounting(url, "--endpoint", server.endpoint) as path:
        assert (path / "a/000001.img.jpg").read_bytes() == (source / "000001.img.jpg").read_bytes()


def labels(sample: Any) -> int:
    """The label of a sample, whichever system has it."""
    value = sample["label"] if "label" in sample else json.loads(sample["json"])["label"]
    return int(value)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_end_of_a_mount_and_quiet_store_keys(moto: Server, system: str, url: str, source: Path) -> None:  # noqa: F811
    with mounting(url, *words(moto, "--driver", system, "--write-back", "0.3")) as path:
        tool("cp", "-r", source, path / "a")
        wait_for(lambda: open_remote(url, endpoint=moto.endpoint).list((".gz", ".mds", ".tar")) != [], 30)
        tool("cp", "-r", source, path / "b")
    assert open_store(url, **far(moto)).keys() == ["a", "b"]


def test_what_was_staged_outlives_a_killed_daemon(moto: Server, url: str, source: Path) -> None:  # noqa: F811
    with mount_point() as path:
        done = run("mount", url, path, *words(moto, "--driver", "squirrel"))
        assert done.returncode == 0, done.stderr
        tool("cp", "-r", source, path / "a")
        record = daemon.find(str(path))
        assert record is not None
        os.kill(record.pid, 9)
        wait_for(lambda: not Path(f"/proc/{record.pid}").exists())
    listed = run("staging", "list", url)
    assert "a" in listed.stdout.split()
    stored = run("staging", "recover", url, "--driver", "squirrel", "--endpoint", moto.endpoint)
    assert stored.returncode == 0, stored.stderr
    assert len(open_store(url, **far(moto)).get("a")) == 10
