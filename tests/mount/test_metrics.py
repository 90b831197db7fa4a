"""Metrics of a real mount, against what was done to it, counted from outside."""

from __future__ import annotations

import gzip
import json
import mmap
import os
import re
import socket
import struct
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import msgpack
import numpy as np
import obstore
import pytest

from shardfs import __version__, config, open_store
from shardfs.storage.urls import open_remote
from tests.conformance.trees import wait_for
from tests.fault_proxy import fault_proxy
from tests.mount.conftest import mounting, run
from tests.servers import Server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

PLAIN = {"SHARDFS_NO_READ_AHEAD": "1", "SHARDFS_NO_PREFILL": "1"}


def store_of(path: Path, keys: int, size: int = 100_000) -> Path:
    path.mkdir()
    for number in range(keys):
        samples = [{"x": os.urandom(size), "label": at} for at in range(4)]
        (path / f"k{number}.gz").write_bytes(gzip.compress(b"".join(map(msgpack.packb, samples)), 1))
    return path


def content(store: Path, key: str, sample: int) -> bytes:
    with gzip.open(store / f"{key}.gz") as file:
        return [one["x"] for one in msgpack.Unpacker(file)][sample]  # type: ignore[no-any-return]


def address(path: Path) -> str:
    return str(json.loads((path / ".shardfs/config.json").read_text())["metrics_addr"]["value"])


def figures(where: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{where}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = answer.read().decode()
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            matched = re.fullmatch(r'([a-z_]+(?:\{(?:[a-z]+="[^"]*",?)*\})?) (\S+)', line)
            assert matched is not None, line
            assert matched[1] not in found
            found[matched[1]] = float(matched[2])
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == {
        re.sub(r"_(bucket|sum|count)$", "", name.partition("{")[0]) for name in found
    } | ({"shardfs_errors_total"} if "# TYPE shardfs_errors_total" in text else set())
    return found


@dataclass
class Session:
    """What is done to a mount, with a note of what that must come to. Every request goes past the kernel's own cache:
    a name is looked up once and believed for good, a read is made with O_DIRECT."""

    store: Path
    path: Path
    where: str
    opens: bool
    """Whether the kernel asks for opens and closes."""
    expected: Counter[str] = field(default_factory=Counter)
    _known: set[Path] = field(default_factory=set)
    _held: str = ""
    before: dict[str, float] = field(default_factory=dict)

    def begin(self) -> None:
        self.before = figures(self.where)

    def note(self, name: str, count: int = 1, **labels: str) -> None:
        inside = ",".join(f'{label}="{value}"' for label, value in labels.items())
        self.expected[f"shardfs_{name}" + (f"{{{inside}}}" if inside else "")] += count

    def request(self, operation: str, count: int = 1) -> None:
        self.note("requests_total", count, operation=operation)

    def touch(self, key: str) -> None:
        """The inside of a key is asked for: its shard is loaded, in place of the one that is in memory."""
        if self._held == key:
            return
        self.note("cache_misses_total", tier="memory")
        self.note("loads_total")
        self.note("store_bytes_total", (self.store / f"{key}.gz").stat().st_size)
        self.note("decoded_bytes_total", len(gzip.decompress((self.store / f"{key}.gz").read_bytes())))
        if self._held:
            self.note("cache_evictions_total", tier="memory")
        self._held = key

    def look(self, key: str, name: str) -> None:
        """Look a name up: in a key of which nothing is known yet that loads it."""
        for path in (self.path / key, self.path / key / name):
            if path not in self._known:
                self._known.add(path)
                self.request("lookup")
        if key not in {path.name for path in self._known if path.parent == self.path / "tables"}:
            self._known.add(self.path / "tables" / key)
            self.touch(key)

    def read(self, key: str, name: str, *sizes: int) -> bytes:
        """Open a file, read so many bytes one after the other, close it."""
        self.look(key, name)
        descriptor = os.open(self.path / key / name, os.O_RDONLY | os.O_DIRECT)
        self.request("open", int(self.opens))
        made = b""
        try:
            for size in sizes:
                if self._held == key:
                    self.note("cache_hits_total", tier="memory")
                self.touch(key)
                with mmap.mmap(-1, size) as buffer:
                    assert os.preadv(descriptor, [buffer], len(made)) == size
                    made += buffer[:]
                self.request("read")
                self.note("served_bytes_total", size)
        finally:
            os.close(descriptor)
            self.request("release", int(self.opens))
        return made

    def miss(self, key: str, name: str) -> None:
        """Ask for a name that is not there."""
        self.look(key, name)
        assert not (self.path / key / name).exists()
        self.note("errors_total", operation="lookup", errno="ENOENT")

    def damaged(self, key: str, times: int) -> None:
        """List a damaged shard, again and again: it is looked at anew each time, and told of once."""
        self.request("lookup")
        for _ in range(times):
            with pytest.raises(OSError, match="Input/output"):
                os.listdir(self.path / key)
            self.request("opendir")
            self.note("errors_total", operation="opendir", errno="EIO")
            self.note("cache_misses_total", tier="memory")
            self.note("loads_total")
            self.note("load_failures_total")
        self.note("damaged")

    def done(self) -> dict[str, float]:
        """What was counted here is what the mount counted, to the last one; gives what it says now."""
        counted = {name: value for name, value in self.expected.items() if value}

        def since() -> dict[str, float]:
            now = figures(self.where)
            return {name: now.get(name, 0.0) - self.before.get(name, 0.0) for name in {*counted, *now}}

        # the kernel tells of a close when the call has long returned
        wait_for(lambda: since().get(RELEASES, 0.0) == counted.get(RELEASES, 0))
        # these are not for counting from outside: what the process is, how long it took, what the loop waits for
        found = {name: value for name, value in since().items() if value and not UNCOUNTED.match(name)}
        assert found == {name: value for name, value in counted.items() if not UNCOUNTED.match(name)}
        return figures(self.where)


RELEASES = 'shardfs_requests_total{operation="release"}'
UNCOUNTED = re.compile(
    r"shardfs_(resident_bytes|open_descriptors|.*seconds.*|cache_(bytes|items)|read_amplification|requests_total.*(statfs|getattr))"
)
"""Gauges are asserted by themselves; seconds cannot be the same twice; the kernel asks for attributes as it likes."""


@pytest.mark.parametrize("opens", [True, False])
def test_they_are_what_a_session_did(tmp_path: Path, opens: bool) -> None:
    store = store_of(tmp_path / "store", 3)
    (store / "bad.gz").write_bytes(b"no gzip at all")
    words = ("--no-index", "--metrics-addr", "127.0.0.1:0", "--memory", "700K", "--refresh", "manual")
    with mounting(store, *words, **PLAIN, SHARDFS_STOCK_OPEN=str(int(opens))) as path:
        session = Session(store, path, address(path), opens)
        # the first open and close there are: the kernel asks no flush again, or none of the three
        os.close(os.open(path / ".shardfs/log", os.O_RDONLY))
        session.begin()
        for key in ("k0", "k1", "k0", "k2"):  # each is too large to stay beside another
            for sample in range(4):
                name = f"00000{sample}.x.bin"
                whole = session.read(key, name, 65536, 4096, 30_000, 100_000 - 65536 - 4096 - 30_000)
                assert whole == content(store, key, sample)
        for name in ("one", "two", "three"):
            session.miss("k2", name)
        session.damaged("bad", 3)
        now = session.done()
        assert now['shardfs_cache_items{tier="memory"}'] == 1
        assert now['shardfs_cache_bytes{tier="memory"}'] == len(gzip.decompress((store / "k2.gz").read_bytes()))
        assert now["shardfs_keys"] == 4
        assert now['shardfs_cache_limit_bytes{tier="memory"}'] == 700 << 10
        told = now["shardfs_store_bytes_total"] / now["shardfs_served_bytes_total"]
        assert now["shardfs_read_amplification"] == pytest.approx(told, abs=1e-5)
        assert now["shardfs_decode_seconds_total"] > 0
        assert 10 << 20 < now["shardfs_resident_bytes"] < 1 << 30
        for name in ("open", "lookup", "read", *(["release"] if opens else [])):
            check_histogram(now, name)
        status = json.loads(run("status", path, "--json").stdout)["cache"]
        assert (status["loads"], status["evictions"]) == (
            now["shardfs_loads_total"],
            now['shardfs_cache_evictions_total{tier="memory"}'],
        )


def check_histogram(now: dict[str, float], operation: str) -> None:
    label = f'operation="{operation}"'
    total = now[f"shardfs_requests_total{{{label}}}"]
    assert now[f'shardfs_request_seconds_bucket{{{label},le="+Inf"}}'] == total
    assert now[f"shardfs_request_seconds_count{{{label}}}"] == total
    counts = [now[f'shardfs_request_seconds_bucket{{{label},le="{le}"}}'] for le in ("0.0001", "0.1", "10.0")]
    assert counts == sorted(counts)


def directly(path: Path, *spans: tuple[int, int]) -> int:
    """Read (offset, size) of a file past the kernel's memory; the bytes that came."""
    descriptor, came = os.open(path, os.O_RDONLY | os.O_DIRECT), 0
    try:
        for offset, size in spans:
            with mmap.mmap(-1, size) as buffer:
                came += os.preadv(descriptor, [buffer], offset)
    finally:
        os.close(descriptor)
    return came


def test_parts_of_opened_shards_are_what_was_read_of_them(tmp_path: Path) -> None:
    """Of raw MDS, out of an index that was built before: no shard is loaded, and what comes from the store is what was
    asked for. What the process is, as /proc has it."""
    store = tmp_path / "mds"
    made = open_store(store, driver="streaming")
    for number in range(2):
        pixels = np.zeros((512, 512, 3), np.uint8)
        made.set([{"x": os.urandom(100_000), "label": at, "p": pixels} for at in range(3)], f"shard.{number:05}")
    *_, first, second, _ = struct.unpack("<4x4I", (store / "shard.00000.mds").read_bytes()[:20])
    assert run("index", store).returncode == 0
    with mounting(store, "--metrics-addr", "0", "--refresh", "manual", SHARDFS_NO_READ_AHEAD="1") as path:
        where = address(path)
        before = figures(where)
        spans = ((8192, 4096), (65536, 16384), (0, 12288))
        served = sum(directly(path / f"shard.{at:05}/{at * 3:06}.x.bin", *spans) for at in range(2))
        now = figures(where)
        since = {name: now[name] - before.get(name, 0) for name in now}
        assert since["shardfs_served_bytes_total"] == since["shardfs_store_bytes_total"] == served == 2 * 32768
        assert (since["shardfs_opened_total"], since["shardfs_tables_indexed_total"]) == (2, 2)
        assert since["shardfs_loads_total"] == since["shardfs_decoded_bytes_total"] == 0
        amplified = (
            now["shardfs_store_bytes_total"] / now["shardfs_served_bytes_total"]
        )  # what was read of .shardfs, too
        assert now["shardfs_read_amplification"] == pytest.approx(amplified, abs=1e-5)
        assert (now['shardfs_cache_items{tier="tables"}'], now['shardfs_cache_items{tier="memory"}']) == (2, 2)
        directly(path / "shard.00000/000001.p.png", (0, 8192), (524288, 8192), (65536, 4096))
        then, now = now, figures(where)  # it is made once, out of its sample
        assert now["shardfs_store_bytes_total"] - then["shardfs_store_bytes_total"] == second - first
        assert now['shardfs_cache_hits_total{tier="rendered"}'] == 2
        small = path / "shard.00000/000001.json"  # the kernel has it before it asks, or has asked for what it was given
        size, told = len(small.read_bytes()), ("shardfs_given_bytes_total", "shardfs_served_bytes_total")
        then, now = now, figures(where)
        assert sum(now[name] - then[name] for name in told) == size
        pid = json.loads(run("status", path, "--json").stdout)["pid"]
        wait_for(lambda: figures(where)["shardfs_open_descriptors"] == 1 + len(os.listdir(f"/proc/{pid}/fd")))
        assert [name for name in now if name.startswith("shardfs_info")] == [f'shardfs_info{{version="{__version__}"}}']
        assert abs(now["shardfs_start_time_seconds"] - os.stat(f"/proc/{pid}").st_ctime) < 30


def test_what_is_made_and_what_is_kept_on_disk(tmp_path: Path) -> None:
    """Pictures of pixels are made once and kept while there is room; a gzip shard that gave way comes out of the cache
    on disk, not out of the store."""
    store = tmp_path / "store"
    made = open_store(store, driver="squirrel")
    for key in ("k0", "k1"):
        made.set([{"p": np.zeros((512, 512, 3), np.uint8)} for _ in range(3)], key)
    words = ("--no-index", "--metrics-addr", "0", "--memory", "4M", "--refresh", "manual", "--cache-raw", "always")
    cache = tmp_path / "cache"
    with mounting(store, *words, "--cache-dir", str(cache), **PLAIN) as path:
        where = address(path)

        def told(name: str) -> float:
            return figures(where)[f"shardfs_{name}"]

        size = (path / "k0/000000.p.png").stat().st_size
        assert directly(path / "k0/000000.p.png", (0, 4096), (4096, 8192)) == 12288
        assert (told('cache_misses_total{tier="rendered"}'), told('cache_hits_total{tier="rendered"}')) == (1, 1)
        assert (told('cache_items{tier="rendered"}'), told('cache_bytes{tier="rendered"}')) == (1, size)
        stored = (store / "k0.gz").stat().st_size
        assert (told("loads_total"), told("store_bytes_total")) == (1, stored)
        directly(path / "k1/000000.p.png", (0, 4096))
        stored += (store / "k1.gz").stat().st_size
        assert (told("loads_total"), told("store_bytes_total")) == (2, stored)
        assert told('cache_evictions_total{tier="memory"}') == 1
        assert told('cache_hits_total{tier="disk"}') == 0
        wait_for(lambda: told('cache_bytes{tier="disk"}') == told("decoded_bytes_total"))  # it is written behind
        kept = sum(file.stat().st_size for file in cache.rglob("*.data"))
        assert told('cache_bytes{tier="disk"}') == kept > 2 * 3 * 512 * 512 * 3
        directly(path / "k0/000001.p.png", (0, 4096))
        assert (told("loads_total"), told("opened_total"), told("store_bytes_total")) == (2, 1, stored)
        assert told('cache_hits_total{tier="disk"}') == 1


def test_a_writable_mount_counts_what_it_stored(tmp_path: Path) -> None:
    words = ("--rw", "--write-back", "off", "--allow-delete", "--metrics-addr", "0", "--refresh", "manual")
    with mounting(store_of(tmp_path / "store", 1), *words, **PLAIN) as path:
        where = address(path)
        before = figures(where)
        (path / "new").mkdir()
        (path / "wrong").mkdir()
        for name, text in (("new/000000.json", '{"label": 1}'), ("new/000001.json", "7"), ("wrong/000000.json", "{")):
            descriptor = os.open(path / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            assert os.write(descriptor, text.encode()) == len(text)
            os.close(descriptor)
        with pytest.raises(FileExistsError):
            os.open(path / "new/000000.json", os.O_CREAT | os.O_EXCL)
        (path / "new/000001.json").unlink()
        now = figures(where)
        assert (now["shardfs_staged"], now["shardfs_staged_bytes"]) == (2, len('{"label": 1}') + len("{"))
        assert run("commit", path, "new").returncode == 0
        assert run("commit", path, "wrong").returncode == 1
        now = figures(where)
        assert (now["shardfs_seals_total"], now["shardfs_seal_failures_total"]) == (1, 1)
        assert (now["shardfs_staged"], now["shardfs_staged_bytes"], now["shardfs_keys"]) == (1, len("{"), 2)
        for operation, count in (("mkdir", 2), ("create", 3), ("write", 3), ("unlink", 1), ("fsyncdir", 0)):
            name = f'shardfs_requests_total{{operation="{operation}"}}'
            assert now.get(name, 0) - before.get(name, 0) == count, operation
        (path / "wrong/000000.json").write_text("{}")


def test_what_a_store_far_away_was_asked_for(moto: Server, tmp_path: Path) -> None:
    """Against what a proxy before the server has seen, and against what lies in the cache's directory."""
    with fault_proxy(moto.endpoint) as proxy:
        store = open_store("s3://bucket/session", "squirrel", endpoint=moto.endpoint, cache_size=0)
        for number in range(6):
            store.set([{"x": os.urandom(100_000)}], f"k{number}")
        sizes = {entry.key: entry.stored_bytes for entry in store.driver.entries()}
        cache = tmp_path / "cache"
        place = ["--endpoint", proxy.endpoint, "--cache-dir", cache, "--cache-size", "350K", "--min-free", "0"]
        words = ["--no-index", "--refresh", "manual", "--memory", "150K", "--metrics-addr", "127.0.0.1:0", "--xattr"]
        with mounting("s3://bucket/session", *map(str, place), *words, **PLAIN) as path:
            where = address(path)
            before, seen = figures(where), len(proxy.requests)
            assert before["shardfs_store_requests_total"] == seen
            proxy.fail("status", times=2, status=503, only=lambda method, target: "k3" in target)
            for number in (0, 0, 1, 2, 3, 4, 5, 5):
                assert len((path / f"k{number}/000000.x.bin").read_bytes()) == 100_000
            assert os.getxattr(path / "k5/000000.x.bin", "user.shardfs.cached") == b"memory"
            now = figures(where)

            def since(name: str) -> float:
                return now[name] - before[name]

            gets = [target for method, target in proxy.requests[seen:] if method == "GET" and ".gz" in target]
            assert len(gets) == 6 + 2
            assert since("shardfs_store_requests_total") == len(proxy.requests) - seen
            assert since("shardfs_store_retries_total") == 2
            assert since("shardfs_store_bytes_total") == sum(sizes.values())
            assert since("shardfs_served_bytes_total") == 6 * 100_000  # what was read twice the kernel has kept
            kept = [file.stat().st_size for file in cache.rglob("*.data")]
            assert since('shardfs_cache_misses_total{tier="disk"}') == 6
            assert since('shardfs_cache_evictions_total{tier="disk"}') == 6 - len(kept) == 3
            assert now['shardfs_cache_bytes{tier="disk"}'] == sum(kept)
            assert now['shardfs_cache_limit_bytes{tier="disk"}'] == 350 << 10
            assert since("shardfs_loads_total") == 6
            amplified = now["shardfs_store_bytes_total"] / now["shardfs_served_bytes_total"]
            assert now["shardfs_read_amplification"] == pytest.approx(amplified, abs=1e-5)
            where_kept = {key: os.getxattr(path / key, "user.shardfs.cached") for key in sizes}
            assert sorted(where_kept.values()) == [b"disk"] * 2 + [b"memory"] + [b"no"] * 3
            assert run("pin", "s3://bucket/session", "k[01]", *map(str, place)).returncode == 0
            pinned = {key for key in sizes if os.getxattr(path / key, "user.shardfs.pinned") == b"yes"}
            assert pinned == {"k0", "k1"}
            tag = obstore.head(open_remote("s3://bucket/session", endpoint=moto.endpoint).store, "k5.gz")["e_tag"]
            assert os.getxattr(path / "k5", "user.shardfs.etag").decode() == tag


def test_shards_that_are_loaded_ahead_are_counted_when_somebody_comes(tmp_path: Path) -> None:
    """From the third key in a row on, the next ones are loaded, two at once (beside the third itself: one); each time
    all that was begun is waited for."""
    with mounting(store_of(tmp_path / "store", 8, 1000), "--no-index", "--metrics-addr", "0") as path:
        where = address(path)

        def told(name: str) -> float:
            return figures(where)[name]

        for number, loaded in enumerate((1, 2, 4, 6, 7, 8, 8, 8)):
            assert (path / f"k{number}/000000.x.bin").stat().st_size == 1000
            assert len((path / f"k{number}/000000.x.bin").read_bytes()) == 1000
            wait_for(lambda loaded=loaded: told("shardfs_loads_total") == loaded)  # type: ignore[misc]
            assert told("shardfs_read_ahead_used_total") == max(0, number - 2)
        assert told("shardfs_read_ahead_wasted_total") == 0
        assert told('shardfs_cache_misses_total{tier="memory"}') == 3


def test_only_metrics_are_served_and_odd_clients_do_no_harm(tiny_store: Path) -> None:
    with mounting(tiny_store, "-o", "metrics_addr=127.0.0.1:0") as path:
        where = address(path)
        host, port = where.rsplit(":", 1)
        assert host == "127.0.0.1"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{where}/a", timeout=10)
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(urllib.request.Request(f"http://{where}/metrics", data=b"x"), timeout=10)
        ends = []
        for said in (b"", b"\0" * 20_000, b"GET /metrics", b"GET / HTTP/1.1\r\n"):
            end = socket.create_connection((host, int(port)), timeout=10)
            end.sendall(said)
            ends.append(end)
        assert len(ends) < config.METRICS_CLIENTS
        assert figures(where)["shardfs_keys"] == 3
        assert len(os.listdir(path / "a")) == 6
        for end in ends:
            end.close()


def test_an_address_that_cannot_be_had_is_said_and_nothing_is_mounted(tiny_store: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for address, status, words in (
            (f"127.0.0.1:{port}", 4, "Address already in use"),
            ("nowhere.invalid:80", 2, "write an address like 127.0.0.1:9464"),
            ("127.0.0.1:70000", 2, "write an address like"),
        ):
            done = run("mount", tiny_store, tmp_path / "mnt", "--metrics-addr", address)
            assert (done.returncode, done.stderr.count("\n")) == (status, 1)
            assert words in done.stderr
            assert not (tmp_path / "mnt").exists()
