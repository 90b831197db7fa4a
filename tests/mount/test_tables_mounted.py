"""Filters and tables of whole stores on real mounts, by the tools that read them."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as dataset
import pyarrow.parquet as pq

from shardfs.opening import open_store
from tests.conformance.trees import wait_for
from tests.mount.conftest import SlowStore, mount_point, run

Mounted = Callable[..., AbstractContextManager[Path]]
LABELS = ("cat", "dog", "bird")


def make(path: Path, folder: str = "train/", keys: int = 4, samples: int = 50) -> Path:
    store = open_store(path, driver="squirrel")
    for key in range(keys):
        store.set(
            [
                {"n": key * samples + at, "label": LABELS[at % 3], "image": b"\xff\xd8\xff" + bytes([at]) * (at + 1)}
                for at in range(samples)
            ],
            f"{folder}{key}",
        )
    store.set([{"n": -1, "label": "cat"}], f"{folder}x" if not folder else "val/0")
    return path


def query(path: Path, text: str) -> list[Any]:
    return duckdb.connect().execute(text.replace("$", f"'{path}'")).fetchall()


def test_a_table_is_one_file_for_every_tool(tmp_path: Path, mounted: Mounted) -> None:
    store = make(tmp_path / "s")
    with mounted(store) as path:
        lines, parquet = path / ".shardfs/samples.jsonl", path / ".shardfs/samples.parquet"
        # by size first, as cp and dd do it, and without, as cat does
        size = os.stat(lines).st_size
        content = subprocess.run(["cat", lines], capture_output=True, check=True).stdout
        assert len(content) == size > 201 * 100
        for command in (
            ["cp", lines, tmp_path / "a"],
            ["rsync", lines, tmp_path / "b"],
            ["dd", f"if={lines}", f"of={tmp_path}/c"],
        ):
            subprocess.run(command, capture_output=True, check=True)
        assert [(tmp_path / name).read_bytes() for name in "abc"] == [content] * 3
        assert subprocess.run(["wc", "-l", lines], capture_output=True, check=True).stdout.split()[0] == b"201"
        assert query(lines, "SELECT label, count(*) FROM $ GROUP BY ALL ORDER BY ALL") == [
            ("bird", 64),
            ("cat", 69),
            ("dog", 68),
        ]
        assert query(parquet, "SELECT count(*), min(n), sum(n) FROM $") == [(201, -1, 19899)]
        row = query(parquet, "SELECT key, sample, paths, sizes FROM $ WHERE n = 107")[0]
        assert row[:2] == ("train/2", "000007")
        assert row[3] == [os.stat(path / name).st_size for name in row[2]]
        assert pq.read_table(parquet, memory_map=True).num_rows == 201
        assert dataset.dataset(parquet).to_table(columns=["label"]).column("label").to_pylist()[:3] == list(LABELS)
        with open(lines, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == content
        assert "samples.jsonl" not in os.listdir(path / ".shardfs")
        # replaced: who has it open keeps it, who opens it anew has the new one
        with open(lines, "rb") as kept:
            open_store(store).set([{"n": 5, "label": "fish"}], "val/0")
            assert run("refresh", path).returncode == 0
            wait_for(lambda: query(lines, "SELECT count(*) FROM $ WHERE label = 'fish'") == [(1,)])
            assert query(parquet, "SELECT count(*) FROM $ WHERE label = 'fish'") == [(1,)]
            assert kept.read() == content


def test_a_filtered_mount_shows_what_matches_and_nothing_else(tmp_path: Path, mounted: Mounted) -> None:
    store = make(tmp_path / "s")
    assert run("index", "--light", store).returncode == 0
    with mounted(store, "--where", "label = 'dog' AND n < 60", "--keys", "train/*", "--keys", "nothing") as path:
        assert sorted(os.listdir(path)) == ["train"]
        assert sorted(os.listdir(path / "train")) == ["0", "1", "2", "3"]
        found = {key: sorted(os.listdir(path / "train" / key)) for key in "0123"}
        assert [len(found[key]) for key in "0123"] == [34, 6, 0, 0]
        assert found["1"][:2] == ["000001.image.jpg", "000001.json"]
        for folder, _, names in os.walk(path):
            for name in names:
                file = Path(folder, name)
                assert len(file.read_bytes()) == file.stat().st_size
                if name.endswith(".json"):
                    assert json.loads(file.read_bytes())["label"] == "dog"
        assert not (path / "train/0/000000.json").exists()
        assert query(path / ".shardfs/samples.jsonl", "SELECT count(*), max(n) FROM $") == [(20, 57)]
        said = json.loads((path / ".shardfs/config.json").read_text())
        assert (said["where"]["value"], said["keys"]["value"]) == ("label = 'dog' AND n < 60", ["train/*", "nothing"])


def test_a_filter_that_makes_no_sense_is_one_line_at_mount_time(tmp_path: Path) -> None:
    store = make(tmp_path / "s")
    for words, said in (
        (("--where", "label = "), "--where label = : it ends too early, or has a ) too many"),
        (("--where", "random() > 0"), "--where random() > 0: the function random cannot be used in it"),
        (("--keys", "tests/*"), "--keys tests/*: no key fits, of 5 like train/0"),
        (("--rw", "--where", "n = 1"), "--where n = 1 cannot be together with --rw: leave one of the two out"),
        (("-o", "rw,keys=train/*"), "-o keys=train/* cannot be together with -o rw: leave one of the two out"),
    ):
        with mount_point() as path:
            done = run("mount", store, path, *words)
            assert (done.returncode, done.stderr.splitlines()) == (2, [f"shardfs: {said}"])


def test_a_table_that_is_being_made_keeps_nobody_else_waiting(
    tmp_path: Path, mounted: Mounted, slow_store: SlowStore
) -> None:
    make(slow_store.source, folder="")
    with mounted(slow_store.path, "--no-index") as path:
        slow_store.hold("2.gz")
        table = path / ".shardfs/samples.jsonl"
        sizes: list[int] = []
        waiting = threading.Thread(target=lambda: sizes.append(os.stat(table).st_size))
        waiting.start()
        try:
            wait_for(lambda: "making samples.jsonl: 2 of 5 shards" in run("status", path).stdout)
            status = json.loads((path / ".shardfs/status.json").read_text())
            assert status["light"]["making"] == [{"what": "samples.jsonl", "of": 5, "done": 2}]
            assert (path / "0/000001.json").exists()
            assert not sizes
        finally:
            slow_store.go_on("2.gz")
        waiting.join(30)
        assert sizes == [len(table.read_bytes())]
