"""`shardfs verify`: what is damaged is found in each kind of store, and nothing is that is not."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from shardfs import cli
from shardfs.opening import open_store
from tests.servers import Server

pytestmark = pytest.mark.timeout(90)
Said = tuple[int, str, str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*words: str | Path) -> Said:
        status = cli.main(["verify", *map(str, words)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Squirrel shards of four samples."""
    path = tmp_path / "store"
    made = open_store(path, "squirrel")
    for key in ("a", "b", "train/c"):
        made.set([{"label": at, "x": os.urandom(200)} for at in range(4)], key)
    return path


def test_a_sound_store(say: Callable[..., Said], store: Path) -> None:
    status, out, err = say(store)
    assert (status, out) == (0, "")
    assert err.startswith("shardfs: 3 shards: all sound; 12 samples, ")
    assert err.count("\n") == 1, "progress is for terminals"
    said = json.loads(say(store, "--json", "--jobs", "3")[1])
    assert (said["shards"], said["sound"], said["bad"], said["findings"]) == (3, 3, 0, [])
    assert said["stored_bytes"] == sum(file.stat().st_size for file in store.rglob("*.gz"))
    assert (said["samples"], said["files"]) == (12, 24)


def test_each_damaged_shard_is_named_with_the_reason(say: Callable[..., Said], store: Path) -> None:
    whole = (store / "a.gz").read_bytes()
    (store / "cut.gz").write_bytes(whole[:-20])
    (store / "flipped.gz").write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    (store / "wrong.gz").write_bytes(gzip.compress(msgpack.packb({"a": 1}) + b"\xc1"))
    status, out, err = say(store, "--jobs", "2")
    assert status == 1
    assert [line.partition(": damaged")[0] for line in out.splitlines()] == ["cut", "flipped", "wrong"]
    assert "at byte 4" in out.splitlines()[2]
    assert "3 shards of 6 with findings" in err
    found = json.loads(say(store, "--json")[1])["findings"]
    assert [(one["key"], one["damaged"], one["file"]) for one in found] == [
        (key, True, None) for key in ("cut", "flipped", "wrong")
    ]


def test_only_some_keys(say: Callable[..., Said], store: Path) -> None:
    (store / "bad.gz").write_bytes(b"no gzip")
    assert say(store, "a", "train/*")[0] == 0
    assert json.loads(say(store, "a", "train/*", "--json")[1])["shards"] == 2
    assert say(store, "b*")[0] == 1
    assert say(store, "none") == (1, "", "shardfs: no key fits none\n")
    assert say(store, "--jobs", "0")[0] == 2


def test_bytes_that_no_head_speaks_of_are_read_too(say: Callable[..., Said], tmp_path: Path) -> None:
    """A tar that is not compressed is read in place, of which a mount looks at the heads only."""
    with tarfile.open(tmp_path / "a.tar", "w") as made:
        about = tarfile.TarInfo("x.bin")
        about.size = 3 << 20
        made.addfile(about, io.BytesIO(os.urandom(about.size)))
    assert say(tmp_path)[0] == 0
    os.truncate(tmp_path / "a.tar", 2 << 20)
    status, out, _ = say(tmp_path)
    assert (status, out.startswith("a: damaged")) == (1, True)


def test_a_cell_that_cannot_be_decoded_is_told_with_its_file(say: Callable[..., Said], tmp_path: Path) -> None:
    made = open_store(tmp_path / "mds", "streaming", compression=None)
    made.set([{"label": at, "text": "some"} for at in range(3)], "shard.00000")
    (shard,) = (tmp_path / "mds").glob("*.mds")
    data = shard.read_bytes()
    assert data.count(b"some") == 3
    at = data.index(b"some")
    shard.write_bytes(data[:at] + b"\xff\xfe\xfd\xfc" + data[at + 4 :])
    status, out, _ = say(tmp_path / "mds")
    assert status == 1
    assert "shown as bytes" in out or "damaged" in out, out


def test_what_of_a_store_cannot_be_shown_counts(say: Callable[..., Said], tmp_path: Path) -> None:
    made = open_store(tmp_path / "mds", "streaming")
    made.set([{"label": 1}], "train/shard.00000")
    made.set([{"label": 1}], "test/shard.00000")
    (tmp_path / "mds/train/index.json").write_text("{")
    status, out, _ = say(tmp_path / "mds")
    assert (status, out.startswith("not shown: train/index.json")) == (1, True), out


def test_a_store_far_away_is_read_and_not_its_cache(
    say: Callable[..., Said], moto: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = open_store("s3://bucket/verify", "squirrel", endpoint=moto.endpoint, cache_size=0)
    for key in ("a", "b"):
        made.set([{"x": b"1" * 1000}], key)
    words = ("s3://bucket/verify", "--endpoint", moto.endpoint)
    assert say(*words)[0] == 0
    assert not (tmp_path / "cache/shardfs/shards").exists()
    monkeypatch.setenv("SHARDFS_CACHE_DIR", str(tmp_path / "of mounts"))
    assert say(*words)[0] == 0
    assert [path.name for path in (tmp_path / "of mounts").iterdir()] == ["known"], "what was listed, and no shard"
    assert say(*words, "--cache-dir", tmp_path / "other")[0] == 0
    assert (tmp_path / "other").exists()


def test_a_disk_that_fails_is_no_damage() -> None:
    """Told apart, as what a shard holds is not known then."""
    from shardfs.commands.verify import _line
    from shardfs.verifying import Finding

    assert _line(Finding("a", None, os.strerror(errno.EIO), damaged=False)) == "a: cannot be read: Input/output error"
