"""What is below `.shardfs` of a real mount, looked at with ordinary tools."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import msgpack
import pytest

from tests.conformance.trees import wait_for
from tests.mount.conftest import SlowStore, mounting, run

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

DOCUMENTS = {"status.json", "metrics", "errors.jsonl", "config.json", "log"}


def packed(*samples: object) -> bytes:
    return gzip.compress(b"".join(msgpack.packb(sample) for sample in samples))


def test_it_is_found_and_never_listed(tiny_store: Path) -> None:
    for words in ((), ("--rw",)):
        with mounting(tiny_store, *words) as path:
            assert sorted(os.listdir(path)) == ["a", "b", "deep"]
            assert (path / ".shardfs").is_dir()
            assert set(os.listdir(path / ".shardfs")) == {*DOCUMENTS, "raw", "index"}
            assert sorted(os.listdir(path / ".shardfs/raw")) == ["a", "b", "deep"]
            assert sorted(os.listdir(path)) == ["a", "b", "deep"]
            found = [(path / ".shardfs" / name).stat().st_ino for name in ("raw", "index", "status.json")]
            keys = [entry.stat().st_ino for folder in (path, path / "a") for entry in os.scandir(folder)]
            assert len({*found, *keys}) == len(found) + len(keys)


def test_sizes_are_exact_for_every_tool(tiny_store: Path, tmp_path: Path) -> None:
    with mounting(tiny_store) as path:
        assert (path / "a/000001.x.bin").read_bytes() == b"\1" * 100
        for name in DOCUMENTS:
            file = path / ".shardfs" / name
            with open(file, "rb") as opened:
                assert os.fstat(opened.fileno()).st_size == len(opened.read())
        shutil.copytree(path / ".shardfs", tmp_path / "copied")
        subprocess.run(["cp", "-r", path / ".shardfs", tmp_path / "by-cp"], check=True, timeout=30)
        made = subprocess.run(["tar", "-C", path, "-c", ".shardfs"], check=True, capture_output=True, timeout=30)
        assert made.stderr == b""
        listed = subprocess.run(["tar", "-t"], input=made.stdout, check=True, capture_output=True, timeout=30).stdout
        assert b".shardfs/index/deep/c.jsonl" in listed.split()
        for place in ("copied", "by-cp"):
            assert json.loads((tmp_path / place / "status.json").read_text())["health"] == "serving"


def test_the_status_is_what_the_command_says(tiny_store: Path) -> None:
    with mounting(tiny_store) as path:
        assert len(os.listdir(path / "a")) == 6
        said = json.loads(run("status", path, "--json").stdout)
        assert json.loads((path / ".shardfs/status.json").read_text()) == said


def test_a_document_tells_of_what_has_just_happened(tiny_store: Path) -> None:
    """Also to who has listed it a moment before; and what was opened before stays what it was."""
    with mounting(tiny_store, "--no-index") as path:
        subprocess.run(["ls", "-l", path / ".shardfs"], check=True, capture_output=True, timeout=30)
        with open(path / ".shardfs/status.json") as before:
            assert (path / "b/000002.x.bin").read_bytes() == b"\2" * 100
            after = subprocess.run(["cat", path / ".shardfs/status.json"], capture_output=True, timeout=30).stdout
            assert json.loads(after)["cache"]["loads"] == json.loads(before.read())["cache"]["loads"] + 1


def test_damage_is_listed_once_with_its_count(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "good.gz").write_bytes(packed({"label": 1}))
    (store / "bad.gz").write_bytes(packed({"label": 1, "x": b"1" * 100})[:-12])
    with mounting(store) as path:
        assert (path / ".shardfs/errors.jsonl").read_bytes() == b""
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output"):
                os.listdir(path / "bad")
        (line,) = (path / ".shardfs/errors.jsonl").read_text().splitlines()
        found = json.loads(line)
        assert (found["key"], found["file"], found["count"]) == ("bad", None, 3)
        assert found["version"]
        assert (path / ".shardfs/log").read_text().count(found["reason"]) == 1, "one line for a shard, not for a read"
        assert (path / ".shardfs/raw/bad").read_bytes() == (store / "bad.gz").read_bytes()
        with pytest.raises(OSError, match="Input/output"):
            (path / ".shardfs/index/bad.jsonl").read_bytes()
        assert (path / ".shardfs/index/good.jsonl").read_text() == '{"sample":"000000","light":{"label": 1}}\n'


def test_settings_say_where_they_came_from(tiny_store: Path) -> None:
    with mounting(tiny_store, "--memory", "300M", "-o", "refresh=7,arrays=npy") as path:
        found = json.loads((path / ".shardfs/config.json").read_text())
    assert found["memory"] == {"value": 300 << 20, "from": "flag"}
    assert found["refresh"] == {"value": 7.0, "from": "-o"}
    assert found["arrays"] == {"value": "npy", "from": "-o"}
    assert found["text"] == {"value": "json", "from": "default"}
    assert found["driver"] == {"value": "squirrel", "from": "default"}
    assert found["store"] == {"value": str(tiny_store)}


def test_stored_shards_are_there_as_they_are(tiny_store: Path) -> None:
    with mounting(tiny_store) as path:
        for key in ("a", "b", "deep/c"):
            shown, stored = path / ".shardfs/raw" / key, tiny_store / f"{key}.gz"
            assert shown.stat().st_size == stored.stat().st_size
            assert shown.read_bytes() == stored.read_bytes()
        with open(path / ".shardfs/raw/a", "rb") as opened:
            opened.seek(10)
            assert opened.read(5) == (tiny_store / "a.gz").read_bytes()[10:15]
            opened.seek(1 << 30)
            assert opened.read(5) == b""


def test_light_fields_of_a_shard_are_one_file(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    samples = [{"__key__": f'ü"{at}', "label": at, "text": "x" * at} for at in range(500)]
    (store / "a.gz").write_bytes(packed(*samples, {"__key__": "last", "x": b"1"}))
    with mounting(store) as path:
        file = path / ".shardfs/index/a.jsonl"
        text = file.read_bytes()
        assert len(text) == file.stat().st_size
        lines = [json.loads(line) for line in text.splitlines()]
        assert len(lines) == 501
        for line in lines[::100]:
            assert json.loads((path / "a" / f"{line['sample']}.json").read_text()) == line["light"]
        assert lines[499]["light"]["text"] == "x" * 499


def test_light_fields_that_are_too_much_for_the_memory_are_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "a.gz").write_bytes(packed(*({"text": "x" * 10_000} for _ in range(200))))
    with mounting(store, "--memory", "3M") as path:
        assert (path / ".shardfs/index/a.jsonl").stat().st_size > 2_000_000
        with pytest.raises(OSError, match="File too large"):
            (path / ".shardfs/index/a.jsonl").read_bytes()


def test_nothing_below_it_can_be_changed(tiny_store: Path, tmp_path: Path) -> None:
    """Nor be put in its place; as root too, whom modes do not keep out."""
    with mounting(tiny_store, "--rw", "--allow-delete", "--allow-overwrite") as path:
        own = path / ".shardfs"
        (path / "k.tmp").mkdir()
        for work in (
            lambda: (own / "new").write_bytes(b""),
            lambda: (own / "status.json").write_bytes(b""),
            lambda: (own / "raw/a").unlink(),
            lambda: (own / "new").mkdir(),
            lambda: own.rmdir(),
            lambda: own.rename(path / "other"),
            lambda: (path / "k.tmp").rename(own),
            lambda: (own / "log").rename(path / "k.tmp/log"),
            lambda: (path / "k.tmp").rename(own / "k"),
            lambda: own.chmod(0o777),
        ):
            with pytest.raises(OSError):  # noqa: PT011 - EROFS, EACCES, EEXIST or ENOENT
                work()
        assert set(os.listdir(own)) == {*DOCUMENTS, "raw", "index"}
        os.sync()
        (path / "k.tmp").rmdir()


def test_what_is_stored_here_is_there_with_its_new_content(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "a.gz").write_bytes(packed({"label": 1}))
    with mounting(store, "--rw") as path:
        (path / "new").mkdir()
        (path / "new/000000.json").write_text('{"label": 5}')
        (path / "a/000000.json").write_text('{"label": 2}')
        assert not (path / ".shardfs/raw/new").exists()
        assert run("commit", path).returncode == 0
        assert (path / ".shardfs/raw/new").read_bytes() == (store / "new.gz").read_bytes()
        assert (path / ".shardfs/raw/a").read_bytes() == (store / "a.gz").read_bytes()
        assert json.loads((path / ".shardfs/index/a.jsonl").read_text())["light"] == {"label": 2}
        text = (path / ".shardfs/metrics").read_text().splitlines()
        assert "shardfs_seals_total 2" in text


def test_documents_wait_for_no_store(slow_store: SlowStore) -> None:
    (slow_store.source / "a.gz").write_bytes(packed(*({"x": os.urandom(1000)} for _ in range(100))))
    with mounting(slow_store.path, "--refresh", "manual") as path:
        assert os.listdir(path) == ["a"]
        slow_store.hold("a.gz")
        reader = threading.Thread(target=lambda: os.listdir(path / "a"))
        reader.start()
        wait_for(lambda: slow_store.asked("a.gz") > 0)
        for name in DOCUMENTS:
            with open(path / ".shardfs" / name, "rb") as opened:
                assert os.fstat(opened.fileno()).st_size == len(opened.read())
        assert json.loads((path / ".shardfs/status.json").read_text())["cache"]["misses"] == 1
        assert reader.is_alive()
        slow_store.go_on("a.gz")
        reader.join(20)
        assert not reader.is_alive()
