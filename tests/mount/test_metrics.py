"""Metrics of a real mount, against what was done to it, counted from outside."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path

import msgpack
import pytest

from shardfs import config
from tests.conformance.trees import wait_for
from tests.mount.conftest import mounting, run

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

PLAIN = {"SHARDFS_NO_READ_AHEAD": "1", "SHARDFS_NO_PREFILL": "1"}


def store_of(path: Path, keys: int, size: int = 100_000) -> Path:
    path.mkdir()
    for number in range(keys):
        samples = [{"x": os.urandom(size), "label": at} for at in range(4)]
        (path / f"k{number}.gz").write_bytes(gzip.compress(b"".join(map(msgpack.packb, samples)), 1))
    return path


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


def test_they_are_what_a_session_did(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", 3)
    (store / "bad.gz").write_bytes(b"no gzip at all")
    with mounting(store, "--no-index", "--metrics-addr", "127.0.0.1:0", "--memory", "1M", **PLAIN) as path:
        where = address(path)
        before = figures(where)

        def since(name: str) -> float:
            return figures(where).get(name, 0.0) - before.get(name, 0.0)

        for name in ("k0", "k1", "k0"):  # each is too large to stay beside another: loads, and evictions but for one
            for sample in range(4):
                with open(path / name / f"00000{sample}.x.bin", "rb") as opened:
                    assert len(opened.read()) == 100_000
        for name in ("one", "two", "three"):
            assert not (path / "k0" / name).exists()
        with pytest.raises(OSError, match="Input/output"):
            os.listdir(path / "bad")
        wait_for(lambda: since('shardfs_requests_total{operation="release"}') == 12)
        assert since('shardfs_requests_total{operation="open"}') == 12
        assert since('shardfs_errors_total{operation="lookup",errno="ENOENT"}') == 3
        assert since('shardfs_errors_total{operation="opendir",errno="EIO"}') == 1
        assert since("shardfs_load_failures_total") == 1
        assert since("shardfs_damaged") == 1
        loads = since("shardfs_loads_total")
        kept = figures(where)['shardfs_cache_items{tier="memory"}']
        assert since('shardfs_cache_evictions_total{tier="memory"}') == loads - 1 - kept >= 0
        now = figures(where)
        assert now["shardfs_keys"] == 4
        assert now['shardfs_cache_limit_bytes{tier="memory"}'] == 1 << 20
        assert now["shardfs_decode_seconds_total"] > 0
        assert 10 << 20 < now["shardfs_resident_bytes"] < 1 << 30
        for name in ("open", "lookup", "release"):
            label = f'operation="{name}"'
            total = now[f"shardfs_requests_total{{{label}}}"]
            assert now[f'shardfs_request_seconds_bucket{{{label},le="+Inf"}}'] == total
            assert now[f"shardfs_request_seconds_count{{{label}}}"] == total
            counts = [now[f'shardfs_request_seconds_bucket{{{label},le="{le}"}}'] for le in ("0.0001", "0.1", "10.0")]
            assert counts == sorted(counts)
        status = json.loads(run("status", path, "--json").stdout)["cache"]
        assert (status["loads"], status["evictions"]) == (
            now["shardfs_loads_total"],
            now['shardfs_cache_evictions_total{tier="memory"}'],
        )


def test_a_writable_mount_counts_what_it_stored(tmp_path: Path) -> None:
    with mounting(store_of(tmp_path / "store", 1), "--rw", "--write-back", "off", "--metrics-addr", "0") as path:
        where = address(path)
        (path / "new").mkdir()
        (path / "new/000000.json").write_text('{"label": 1}')
        (path / "wrong").mkdir()
        (path / "wrong/000000.json").write_text("{")
        assert figures(where)["shardfs_staged"] == 2
        assert run("commit", path, "new").returncode == 0
        assert run("commit", path, "wrong").returncode == 1
        now = figures(where)
        assert (now["shardfs_seals_total"], now["shardfs_seal_failures_total"], now["shardfs_staged"]) == (1, 1, 1)
        (path / "wrong/000000.json").write_text("{}")


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
