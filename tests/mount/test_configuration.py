"""A mount that is named in the configuration file: what it does, what it says of its settings, and its log."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from pathlib import Path

import msgpack
import pytest

from shardfs import config
from tests.conformance.trees import wait_for
from tests.mount.conftest import is_mounted, mount_point, run, shardfs

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]


def configured(tmp_path: Path, store: Path, path: Path, more: str = "") -> dict[str, str]:
    """The environment for a configuration with the mount `photos`."""
    (tmp_path / "shardfs").mkdir()
    text = f"memory = '300M'\nwrite_back = 7\n[mount.photos]\nstore = '{store}'\nmountpoint = '{path}'\n{more}"
    (tmp_path / "shardfs/config.toml").write_text(text)
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_a_mount_is_called_by_its_name(tiny_store: Path, tmp_path: Path) -> None:
    with mount_point() as path:
        more = "profile = 'train'\nrefresh = 5\narrays = 'png'\n"
        said = configured(tmp_path, tiny_store, path, more) | {"SHARDFS_TEXT": "files"}
        words = ("photos", "-o", "noatime,nonempty", "--refresh", "9")
        done = run("mount", *words, **said)
        assert (done.returncode, done.stderr.split(";")[0]) == (0, f"shardfs: mounted {tiny_store} on {path}")
        assert sorted(os.listdir(path)) == ["a", "b", "deep"]
        found = json.loads((path / ".shardfs/config.json").read_text())
        told = run("config", *words, "--json", **said)
        assert (told.returncode, told.stderr) == (0, "")
        foretold = json.loads(told.stdout)
        assert found.pop("driver") == {"value": "squirrel", "from": "default"}
        assert foretold.pop("driver") == {"value": None, "from": "default"}, "the store is not looked at"
        assert found == foretold
        file = tmp_path / "shardfs/config.toml"
        assert found["store"] == {"value": str(tiny_store), "from": "file", "where": f"{file}, line 4, [mount.photos]"}
        assert found["memory"] == {"value": 300 << 20, "from": "file", "where": f"{file}, line 1"}
        assert found["refresh"] == {"value": 9.0, "from": "flag"}
        assert found["nonempty"] == {"value": True, "from": "-o"}
        assert found["text"] == {"value": "files", "from": "environment", "where": "SHARDFS_TEXT"}
        assert found["arrays"]["where"] == f"{file}, line 8, [mount.photos]"
        assert found["cache_raw"] == {"value": "always", "from": "profile", "where": "train"}
        assert found["index"] == {"value": True, "from": "default"}
        assert found["write_back"]["value"] == config.WRITE_BACK, "7 is for mounts that write"
        asked = run("status", "photos", "--json", cwd=tmp_path, **said)
        assert json.loads(asked.stdout)["mountpoint"] == str(path)
        assert run("ls", "photos", **said).stdout == "a\nb\ndeep\n"
        ended = run("umount", "photos", cwd=tmp_path, **said)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert not is_mounted(path)


def test_the_log_in_json_under_a_service_manager(tmp_path: Path) -> None:
    """Standard error is the journal's; each line has its priority, and a damaged shard one line for all its reads."""
    store, log = tmp_path / "store", tmp_path / "stderr"
    store.mkdir()
    raw = b"".join(msgpack.packb({"label": number, "x": b"1" * 100}) for number in range(20))
    (store / "bad.gz").write_bytes(gzip.compress(raw)[:-12])
    with mount_point() as path, open(log, "wb") as stderr:
        found = os.fstat(stderr.fileno())
        said = configured(tmp_path, store, path, "log_format = 'json'\n")
        said["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
        process = subprocess.Popen(
            shardfs("mount", "-f", "photos"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **said},
        )
        try:
            wait_for(lambda: b"\n" in log.read_bytes() or process.poll() is not None)
            for _ in range(5):
                with pytest.raises(OSError, match="Input/output"):
                    os.listdir(path / "bad")
            (damage,) = map(json.loads, (path / ".shardfs/errors.jsonl").read_text().splitlines())
            assert damage["count"] == 5
            shown = [json.loads(line) for line in (path / ".shardfs/log").read_text().splitlines()]
            assert run("umount", path).returncode == 0
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(30)
    lines = log.read_text().splitlines()
    assert [line[:3] for line in lines] == ["<6>", "<3>"]
    ready, bad = (json.loads(line[3:]) for line in lines)
    assert ready["message"] == f"mounted {store} on {path}; unmount with: shardfs umount {path}"
    assert (bad["level"], damage["reason"] in bad["message"]) == ("error", True)
    assert shown == [ready, bad]
