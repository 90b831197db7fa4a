"""Loaders that know only files read the same from a view as from loose files: the real packages, in an environment of
their own (`./run interop` makes it), and rsync and rclone. docs/LOADERS.md has their versions."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shardfs import open_store
from tests.mount.conftest import mounting

sys.path.insert(0, str(Path(__file__).parent))

from test_interop import library

SHARDS, SAMPLES, LABELS = 3, 12, ("bird", "cat", "dog")


@dataclass(frozen=True)
class Sample:
    key: str
    name: str
    label: str
    id: int
    jpg: bytes
    boxes: str


@dataclass(frozen=True)
class World:
    """The same samples below a mount, and as loose files made of the values by this test alone."""

    mount: Path
    loose: Path
    samples: list[Sample]

    def view(self, name: str) -> Path:
        return self.mount / ".shardfs" / "views" / name


def _picture(number: int) -> bytes:
    rng = random.Random(number)
    image = Image.frombytes("RGB", (8, 8), rng.randbytes(192)).resize((64, 48), Image.Resampling.BICUBIC)
    made = io.BytesIO()
    image.save(made, "JPEG", quality=90)
    return made.getvalue()


def _samples() -> list[Sample]:
    made = []
    for shard in range(SHARDS):
        for number in range(SAMPLES):
            id = shard * SAMPLES + number
            label = LABELS[(7 * id) % len(LABELS)]
            boxes = "" if id % 5 == 0 else f"{id % 3} 0.5 0.5 0.25 {0.1 + id / 100:.2f}\n"
            made.append(Sample(f"part-{shard}", f"{number:06}", label, id, _picture(id), boxes))
    return made


def _lay(loose: Path, samples: list[Sample]) -> None:
    """What each view should show, as files."""
    for one in samples:
        name = f"{one.key}-{one.name}.jpg"
        for place in ("by", f"by/{one.label}", "flat", "yolo/images", "yolo/labels", f"hf/{one.key}"):
            (loose / place).mkdir(parents=True, exist_ok=True)
        (loose / "by" / one.label / name).write_bytes(one.jpg)
        (loose / "flat" / name).write_bytes(one.jpg)
        (loose / "yolo/images" / name).write_bytes(one.jpg)
        (loose / "yolo/labels" / name.replace(".jpg", ".txt")).write_text(one.boxes)
        (loose / "hf" / one.key / f"{one.name}.jpg").write_bytes(one.jpg)
        with (loose / "hf" / one.key / "metadata.jsonl").open("a") as lines:
            said = {"file_name": f"{one.name}.jpg", "label": one.label, "id": one.id, "labels": one.boxes}
            lines.write(json.dumps(said) + "\n")
    with (loose / "samples.jsonl").open("w") as lines:
        for one in samples:
            lines.write(json.dumps({"key": one.key, "sample": one.name, "label": one.label, "id": one.id}) + "\n")
    (loose / "wds").mkdir()
    for key in sorted({one.key for one in samples}):
        with tarfile.open(loose / "wds" / f"{key}.tar", "w") as tar:
            for one in (one for one in samples if one.key == key):
                light = json.dumps({"label": one.label, "id": one.id, "labels": one.boxes}) + "\n"
                for name, data in (("jpg", one.jpg), ("json", light.encode())):
                    member = tarfile.TarInfo(f"{one.name}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("loaders")
    samples = _samples()
    store = open_store(folder / "store", "squirrel")
    for key in sorted({one.key for one in samples}):
        rows = [
            {"jpg": one.jpg, "label": one.label, "id": one.id, "labels": one.boxes} for one in samples if one.key == key
        ]
        store.set(rows, key)
    loose = folder / "loose"
    _lay(loose, samples)
    with mounting(folder / "store") as mount:
        yield World(mount, loose, samples)


def both(world: World, tmp_path: Path, name: str, view: Path, loose: Path, *words: str) -> list[Any]:
    """What a loader finds in a view, after it was compared with what it finds in the loose files."""
    seen = library("loaders", tmp_path, name, str(view), *words)
    expected = library("loaders", tmp_path, name, str(loose), *words)
    assert seen == expected
    assert seen["samples"], "nothing was read"
    found: list[Any] = seen["samples"]
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("workers", ["0", "2", "4"])
def test_torchvision_image_folder(world: World, tmp_path: Path, workers: str) -> None:
    found = both(world, tmp_path, "torchvision", world.view("by:label"), world.loose / "by", workers)
    named = {(path, label) for path, label, _, again in found if label == again}
    assert named == {(f"{one.label}/{one.key}-{one.name}.jpg", one.label) for one in world.samples}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["timm", "keras"])
def test_folder_readers(world: World, tmp_path: Path, name: str) -> None:
    found = both(world, tmp_path, name, world.view("by:label"), world.loose / "by")
    assert {path for path, *_ in found} == {f"{one.label}/{one.key}-{one.name}.jpg" for one in world.samples}


@pytest.mark.timeout(300)
def test_hugging_face_imagefolder_takes_directories_for_labels(world: World, tmp_path: Path) -> None:
    found = both(world, tmp_path, "datasets", world.view("by:label"), world.loose / "by", "imagefolder")
    assert sorted(row["label"] for row in found) == sorted(one.label for one in world.samples)


@pytest.mark.timeout(300)
def test_hugging_face_imagefolder_reads_the_metadata(world: World, tmp_path: Path) -> None:
    # directories come in the order in which the file system lists them
    seen = library("loaders", tmp_path, "datasets", str(world.view("hf")), "imagefolder")["samples"]
    loose = library("loaders", tmp_path, "datasets", str(world.loose / "hf"), "imagefolder")["samples"]
    found = sorted(seen, key=lambda row: row["id"])
    assert found == sorted(loose, key=lambda row: row["id"])
    told = sorted((row["id"], row["label"], row["labels"] or "") for row in found)
    assert told == sorted((one.id, one.label, one.boxes) for one in world.samples)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["webdataset", "wids"])
def test_webdataset_and_wids_read_the_tars(world: World, tmp_path: Path, name: str) -> None:
    found = both(world, tmp_path, name, world.view("wds"), world.loose / "wds")
    assert [key.rpartition("/")[2] for key, _ in found] == [one.name for one in world.samples]


@pytest.mark.timeout(300)
def test_yolo_finds_the_labels(world: World, tmp_path: Path) -> None:
    found = both(world, tmp_path, "yolo", world.view("yolo"), world.loose / "yolo")
    expected = sorted((f"{one.key}-{one.name}.jpg", one.boxes) for one in world.samples)
    assert [(name, boxes) for name, _, boxes in found] == expected


@pytest.mark.timeout(300)
def test_ffmpeg_reads_a_view_as_frames(world: World, tmp_path: Path) -> None:
    found = both(world, tmp_path, "ffmpeg", world.view("flat"), world.loose / "flat")
    assert len(found) == len(world.samples)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", ["duckdb", "polars", "pandas", "pyarrow"])
def test_tables_are_one_open(world: World, tmp_path: Path, name: str, form: str) -> None:
    found = library("loaders", tmp_path, name, str(world.mount / ".shardfs" / f"samples.{form}"))["samples"]
    assert found == [[one.key, one.name, one.label, one.id] for one in world.samples]


@pytest.mark.timeout(300)
def test_hugging_face_json_reads_the_table(world: World, tmp_path: Path) -> None:
    found = library("loaders", tmp_path, "datasets", str(world.mount / ".shardfs/samples.jsonl"), "json")["samples"]
    assert [(row["key"], row["sample"], row["label"], row["id"]) for row in found] == [
        (one.key, one.name, one.label, one.id) for one in world.samples
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tool", ["rsync", "rclone"])
def test_copies_of_a_view(world: World, tmp_path: Path, tool: str) -> None:
    program = shutil.which(tool) or str(Path(sys.executable).with_name(tool))
    if not Path(program).exists():
        pytest.skip(f"{tool} is not installed")
    source, target = world.view("by:label"), tmp_path / "copy"
    words = ["-a", f"{source}/", f"{target}/"] if tool == "rsync" else ["copy", str(source), str(target)]
    subprocess.run([program, *words], check=True, timeout=100, stdin=subprocess.DEVNULL, capture_output=True)
    loose = world.loose / "by"
    names = sorted(path.relative_to(loose) for path in loose.rglob("*"))
    assert sorted(path.relative_to(target) for path in target.rglob("*")) == names
    for name in names:
        if (loose / name).is_file():
            assert (target / name).read_bytes() == (loose / name).read_bytes()
