"""The first minute: makes two small stores, mounts both, looks at them with ordinary tools and unmounts them.

The photographs are drawn here, so nothing is downloaded. `--keep` leaves the mounts for looking around.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import zstandard

from shardfs import open_store

SHARDFS = [sys.executable, "-m", "shardfs"]
LABELS = ("hill", "lake", "moon")


def photograph(number: int, label: str, size: tuple[int, int] = (240, 160)) -> PIL.Image.Image:
    """A small landscape: sky, hills, and a lake or a moon; different for each number."""
    rng = np.random.default_rng(number)
    width, height = size
    sky = np.linspace(rng.integers(60, 120), rng.integers(180, 250), height)[:, None]
    pixels = np.stack([sky * 0.8, sky * 0.9, sky], axis=2).repeat(width, axis=1)
    pixels += rng.normal(0, 4, pixels.shape)
    image = PIL.Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = PIL.ImageDraw.Draw(image)
    for layer in range(3):
        base = height * (0.5 + 0.15 * layer)
        waves = np.cumsum(rng.normal(0, 2.5, width))
        points = [(x, base + waves[x] - waves.mean()) for x in range(width)]
        green = 110 - 28 * layer
        draw.polygon([(0, height), *points, (width, height)], fill=(green // 2, green, green // 2))
    if label == "lake":
        draw.ellipse((width * 0.3, height * 0.8, width * 0.8, height * 0.95), fill=(90, 140, 190))
    if label == "moon":
        draw.ellipse((width * 0.7, height * 0.1, width * 0.82, height * 0.28), fill=(250, 245, 220))
    return image


def jpeg(image: PIL.Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def make_squirrel(path: Path) -> None:
    """A Squirrel store of three shards: photographs as pixels and as JPEG, arrays and labels."""
    store = open_store(path, driver="squirrel")
    rng = np.random.default_rng(0)
    for shard in range(3):
        samples = []
        for at in range(20):
            number, label = shard * 20 + at, LABELS[at % 3]
            image = photograph(number, label)
            samples.append(
                {
                    "photo": jpeg(image),
                    "pixels": np.asarray(image.resize((60, 40))),
                    "embedding": rng.normal(size=64).astype(np.float32),
                    "label": LABELS.index(label),
                    "name": f"{label} {number}",
                    "camera": {"model": "pinhole", "iso": 100 * (1 + at % 4), "tags": [label, "demo"]},
                }
            )
        store.set(samples, f"shard_{shard}")


def make_mds(path: Path) -> None:
    """A MosaicML Streaming (MDS) set: split `train` of two zstd shards, as its writer lays them out."""
    split = path / "train"
    split.mkdir(parents=True)
    columns = {"image": "jpeg", "label": "int", "name": "str"}
    shards = []
    for number in range(2):
        records = []
        for at in range(12):
            label = LABELS[at % 3]
            photo, name = jpeg(photograph(1000 + number * 12 + at, label)), f"{label} {at}".encode()
            sizes = struct.pack("<II", len(photo), len(name))
            records.append(sizes + photo + struct.pack("<q", LABELS.index(label)) + name)
        shards.append(_mds_shard(split, number, columns, records))
    (split / "index.json").write_text(json.dumps({"version": 2, "shards": shards}, sort_keys=True))


def _mds_shard(split: Path, number: int, columns: dict[str, str], records: list[bytes]) -> dict[str, object]:
    layout: dict[str, object] = {
        "version": 2,
        "format": "mds",
        "compression": "zstd",
        "hashes": [],
        "size_limit": 1 << 26,
        "column_names": list(columns),
        "column_encodings": list(columns.values()),
        "column_sizes": [8 if encoding == "int" else None for encoding in columns.values()],
    }
    config = json.dumps(layout, sort_keys=True).encode()
    offsets = np.cumsum([4 + 4 * (len(records) + 1) + len(config), *map(len, records)]).astype("<u4")
    raw = struct.pack("<I", len(records)) + offsets.tobytes() + config + b"".join(records)
    packed = zstandard.compress(raw)
    name = f"shard.{number:05d}.mds"
    (split / f"{name}.zstd").write_bytes(packed)
    sizes = {"raw_data": (name, raw), "zip_data": (f"{name}.zstd", packed)}
    files = {part: {"basename": base, "bytes": len(data), "hashes": {}} for part, (base, data) in sizes.items()}
    return {**layout, "samples": len(records), **files}


def say(text: str = "") -> None:
    print(text, flush=True)


def show(folder: Path, command: str, lines: int = 8) -> None:
    """Run a command line in the demo's folder as a person would, and show it with the beginning of what it prints."""
    say(f"\n$ {command}")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120, cwd=folder)
    out = (done.stdout + done.stderr).splitlines()
    for line in out[:lines]:
        say(line)
    if len(out) > lines:
        say(f"... {len(out) - lines} more lines")
    if done.returncode:
        raise SystemExit(f"demo: this failed with exit status {done.returncode}: {command}")


def look(folder: Path) -> None:
    show(folder, "ls photos landscapes")
    show(folder, "ls -l photos/shard_0", 9)
    show(folder, "find photos landscapes -type f | wc -l")
    show(folder, "ls landscapes/train/shard.00001", 6)
    if shutil.which("jq"):
        show(folder, "jq -c '[.name, .camera.iso]' photos/shard_1/00000[0-3].json")
    else:
        show(folder, f"{sys.executable} -m json.tool photos/shard_1/000003.json")
    say("\nThe pictures are pictures, the arrays are arrays (Python, on the mounted files):")
    for path in (folder / "photos/shard_2/000007.photo.jpg", folder / "photos/shard_2/000007.pixels.png"):
        with PIL.Image.open(path) as image:
            image.load()
            say(f"  {path.name}: {image.format} {image.size[0]}x{image.size[1]}")
    embedding = np.load(folder / "photos/shard_2/000007.embedding.npy", mmap_mode="r")
    say(f"  000007.embedding.npy: {embedding.dtype} {embedding.shape}, memory-mapped")


def show_cache(point: Path) -> None:
    """The first touch fetches and decompresses a shard; after that its files come from memory."""
    times = []
    for number in range(10):
        start = time.perf_counter()
        (point / f"shard_0/{number:06d}.photo.jpg").read_bytes()
        times.append((time.perf_counter() - start) * 1e3)
    rest = sorted(times[1:])[len(times) // 2]
    say(f"\nThe cache at work: the first file of a shard took {times[0]:.1f} ms, each further one {rest:.1f} ms.")


def mount(folder: Path, store: str, point: str) -> None:
    say(f"\n$ shardfs mount {store} {point}")
    subprocess.run([*SHARDFS, "mount", store, point], check=True, timeout=60, cwd=folder)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the stores and the mounts")
    keep = parser.parse_args().keep
    folder = Path(tempfile.mkdtemp(prefix="shardfs-demo-"))
    say(f"Making a Squirrel store and a MosaicML Streaming set in {folder}, and working there")
    make_squirrel(folder / "store-squirrel")
    make_mds(folder / "store-mds")
    points = {"store-squirrel": "photos", "store-mds": "landscapes"}
    mounted: list[str] = []
    try:
        for store, point in points.items():
            mount(folder, store, point)
            mounted.append(point)
        show_cache(folder / "photos")
        look(folder)
    finally:
        if keep and len(mounted) == len(points):
            say(f"\nStill mounted: {' and '.join(str(folder / point) for point in mounted)}")
            say(f"When done: cd {folder} && {' '.join(SHARDFS)} umount {' '.join(mounted)} && cd / && rm -r {folder}")
        else:
            if mounted:
                say(f"\n$ shardfs umount {' '.join(mounted)}")
                subprocess.run([*SHARDFS, "umount", *mounted], check=True, timeout=60, cwd=folder)
            shutil.rmtree(folder)
    say("\nDone: nothing is left mounted or running." if not keep else "")
    return 0


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
    raise SystemExit(main())
