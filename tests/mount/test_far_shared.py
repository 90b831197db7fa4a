"""Stores far away on real mounts: what is fetched and how often, by one daemon and by four with one cache on disk."""

from __future__ import annotations

import errno
import itertools
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from shardfs import daemon
from shardfs.opening import open_store
from shardfs.storage.cache_files import CacheFiles
from tests.conformance.trees import wait_for
from tests.link import Link, link
from tests.mount.conftest import mount_point, run, wipe
from tests.servers import Server, ftp_server, nginx_server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

Mounted = Callable[..., AbstractContextManager[Path]]
_numbers = itertools.count()


@pytest.fixture
def counting(moto: Server) -> Iterator[Link]:
    with link(moto.endpoint) as made:
        yield made


@pytest.fixture(autouse=True)
def _own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def filled(moto: Server, keys: int, size: int = 2000, samples: int = 3) -> str:
    url = f"s3://bucket/shared-{next(_numbers)}"
    store = open_store(url, "squirrel", endpoint=moto.endpoint, cache_size=0)
    for number in range(keys):
        rng = random.Random(number)
        store.set([{"x": rng.randbytes(size), "key": number} for _ in range(samples)], f"k{number:02}")
    return url


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_published_index_is_fetched_in_place_of_shards(
    mounted: Mounted, moto: Server, counting: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = filled(moto, 8)
    words = ["--endpoint", counting.endpoint, "--cache-dir", str(tmp_path / "cache"), "--min-free", "0"]
    done = run("index", url, "--publish", *words)
    assert done.returncode == 0, done.stderr
    assert "published  8" in done.stdout
    assert run("cache", "clear", "--cache-dir", str(tmp_path / "cache")).returncode == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    before = len(counting.counted().gets(".gz"))
    assert before == 8
    for again in range(2):
        with mounted(url, *words) as path:
            listed = subprocess.run(["ls", "-lR", path], capture_output=True, text=True, timeout=30, check=True).stdout
            assert listed.count("000000.x.bin") == 8
            assert len(counting.counted().gets(".gz")) == before
            assert len(counting.counted().gets(".sqlite")) == 1, f"fetched again by mount {again}"
    with mounted(url, *words) as path:
        assert (path / "k03" / "000001.json").read_bytes() == b'{"key": 3}\n'
    assert len(counting.counted().gets(".gz")) == before + 1


def test_an_index_that_was_published_before_a_shard_changed_says_nothing_of_it(
    mounted: Mounted, moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = filled(moto, 2)
    words = ["--endpoint", moto.endpoint, "--cache-dir", str(tmp_path / "cache"), "--min-free", "0"]
    assert run("index", url, "--publish", *words).returncode == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    open_store(url, "squirrel", endpoint=moto.endpoint, cache_size=0).set([{"y": b"new"}], "k01")
    with mounted(url, *words) as path:
        assert os.listdir(path / "k01") == ["000000.y.bin"]
        assert (path / "k01" / "000000.y.bin").read_bytes() == b"new"


def test_an_index_that_is_none_is_done_without(mounted: Mounted, moto: Server, tmp_path: Path) -> None:
    url = filled(moto, 1)
    storage = open_store(url, endpoint=moto.endpoint, cache_size=0).driver.storage  # type: ignore[attr-defined]
    storage.put(".shardfs-index.sqlite", lambda file: file.write(b"no database" * 1000) and None)
    with mounted(url, "--endpoint", moto.endpoint, "--cache-dir", str(tmp_path / "cache"), "--min-free", "0") as path:
        assert len(os.listdir(path / "k00")) == 6


def test_a_snapshot_shows_what_was_there_then(mounted: Mounted, moto: Server, tmp_path: Path) -> None:
    url = filled(moto, 3)
    words = ["--endpoint", moto.endpoint, "--cache-size", "0"]
    file = tmp_path / "snapshot"
    assert run("info", url, *words, "--snapshot", file).returncode == 0
    store = open_store(url, "squirrel", endpoint=moto.endpoint, cache_size=0)
    store.set([{"x": b"new"}], "k01")
    store.set([{"x": b"new"}], "later")
    log = tmp_path / "log"
    with mounted(url, *words, "--snapshot", str(file), "--log", str(log)) as path:
        assert sorted(os.listdir(path)) == ["k00", "k01", "k02"]
        assert len(contents(path / "k00")) == 6
        with pytest.raises(OSError, match="k01") as caught:
            os.listdir(path / "k01")
        assert caught.value.errno in (errno.ESTALE, errno.EIO)
        assert "as the snapshot has it" in log.read_text()
    done = run("mount", url, tmp_path / "mnt", *words, "--snapshot", file, "--rw")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_shards_on_a_web_server_by_braces(mounted: Mounted, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    store = open_store(folder, "squirrel")
    for number in range(4):
        store.set([{"x": b"bytes", "key": number}], f"k{number}")
    for above in (folder, *folder.parents):
        if tmp_path.parent in (above, *above.parents):
            above.chmod(0o755)
    with nginx_server(folder, tmp_path / "nginx") as server:
        words = ["--cache-dir", str(tmp_path / "cache"), "--min-free", "0"]
        with mounted(f"{server.endpoint}/k{{1..3}}.gz", *words) as path:
            assert sorted(os.listdir(path)) == ["k1", "k2", "k3"]
            assert (path / "k2" / "000000.json").read_bytes() == b'{"key": 2}\n'
        done = run("mount", f"{server.endpoint}/k{{3..5}}.gz", tmp_path / "mnt", *words)
        assert done.returncode != 0
        assert done.stderr.count("\n") == 1
        assert "k4.gz, k5.gz (2 of 3)" in done.stderr


def test_a_store_that_fsspec_reaches(mounted: Mounted, tmp_path: Path) -> None:
    """Of an FTP server: read, with the cache on disk and out of it, changed by another, and never written."""
    store = open_store(tmp_path / "files/store", "squirrel")
    for number in range(3):
        store.set([{"x": b"bytes" * 1000, "key": number}], f"deep/k{number}")
    with ftp_server(tmp_path / "files") as server:
        url = f"{server.endpoint}/store"
        words = ["--cache-dir", str(tmp_path / "cache"), "--min-free", "0", "--refresh", "0.3"]
        with mounted(url, *words) as path:
            assert sorted(os.listdir(path / "deep")) == ["k0", "k1", "k2"]
            assert (path / "deep/k2/000000.x.bin").read_bytes() == b"bytes" * 1000
            store.set([{"key": 3}], "deep/k3")
            wait_for(lambda: (path / "deep/k3").exists())
            assert (path / "deep/k3/000000.json").read_bytes() == b'{"key": 3}\n'
        done = run("mount", "--rw", url, tmp_path / "mnt", *words)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "can only be read" in done.stderr
    with mounted(url, *words, "--offline") as path:
        assert (path / "deep/k2/000000.json").read_bytes() == b'{"key": 2}\n'


def test_a_local_store_is_read_out_of_raw_bytes_where_that_is_asked_for(mounted: Mounted, tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", "squirrel")
    for number in range(4):
        store.set([{"x": os.urandom(400_000)} for _ in range(4)], f"k{number}")
    files = CacheFiles(tmp_path / "cache", 1 << 30, 0)
    words = ["--memory", "1M", "--cache-dir", str(tmp_path / "cache"), "--min-free", "0"]
    refused = run("mount", tmp_path / "store", tmp_path / "mnt", *words)
    assert refused.returncode == 2
    assert "on this machine" in refused.stderr
    with mounted(tmp_path / "store", *words, "-o", "cache_raw=always") as path:
        first = contents(path)

        def all_kept() -> bool:
            assert contents(path) == first
            return sum(entry.about.form == "raw" for entry in files.entries()) == 4

        wait_for(all_kept)
    assert run("cache", "verify", "--cache-dir", tmp_path / "cache").returncode == 0


def _reader(root: Path, seed: int, wanted: dict[str, bytes], rounds: int, wrong: list[str]) -> None:
    """Reads all files in an order of its own. What the daemon's death does to it is no finding."""
    names = list(wanted) * rounds
    random.Random(seed).shuffle(names)
    for name in names:
        try:
            found = (root / name).read_bytes()
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT):
                wrong.append(f"{name}: {error}")
            if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
                return
            continue
        if found != wanted[name]:
            wrong.append(f"{name}: other bytes")


def _four(stack: ExitStack, url: str, words: list[str], tmp_path: Path) -> list[tuple[Path, int]]:
    """Four daemons, with the numbers of their processes. An index each, so that none learns from another."""
    made = []
    for number in range(4):
        path = stack.enter_context(mount_point())
        done = run("mount", url, path, *words, "--no-index", "--log", tmp_path / f"log{number}")
        assert done.returncode == 0, done.stderr
        record = daemon.find(str(path))
        assert record is not None
        made.append((path, record.pid))
    return made


@pytest.mark.parametrize("limit", [None, 4])
def test_four_daemons_on_one_cache_and_the_death_of_one(
    limit: int | None, moto: Server, counting: Link, tmp_path: Path
) -> None:
    """One fetch of each shard, but for what the dead one was at; sound files; the limit held, within a shard."""
    url = filled(moto, 16, size=50_000)
    plain = open_store(url, endpoint=moto.endpoint, cache_size=0)
    size = max(entry.stored_bytes for entry in plain.driver.entries())
    wanted = {f"{key}/{number:06}.x.bin": sample["x"] for key in plain for number, sample in enumerate(plain.get(key))}
    cache = tmp_path / "cache"
    room = 1 << 30 if limit is None else limit * size
    words = ["--endpoint", counting.endpoint, "--cache-dir", str(cache), "--cache-size", str(room), "--min-free", "0"]
    words += ["--memory", "300K", "--cache-raw", "off"]
    wrong: list[str] = []
    most = 0
    with ExitStack() as stack:
        mounts = _four(stack, url, words, tmp_path)
        roots = enumerate(path for path, _ in mounts)
        readers = [threading.Thread(target=_reader, args=(root, seed, wanted, 3, wrong)) for seed, root in roots]
        for reader in readers:
            reader.start()
        wait_for(lambda: len(counting.counted().gets(".gz")) >= random.Random(os.getpid()).randrange(2, 10))
        victim, pid = mounts[0]
        os.kill(pid, signal.SIGKILL)
        while any(reader.is_alive() for reader in readers):
            most = max(most, sum(path.stat().st_size for path in cache.glob("*/*.data") if path.exists()))
            for reader in readers:
                reader.join(0.02)
        for path, _ in mounts[1:]:
            assert run("umount", path).returncode == 0
        wipe(victim)
    assert wrong == []
    fetched = counting.counted().gets(".gz")
    if limit is None:
        assert set(fetched) == {f"{url.removeprefix('s3:/')}/{key}.gz" for key in plain}
        assert len(fetched) <= 16 + 2, "more than the dead one was at was fetched twice"
    else:
        assert most <= room + size
    assert run("cache", "verify", "--cache-dir", cache).returncode == 0
    assert CacheFiles(cache, room, 0).entries()
