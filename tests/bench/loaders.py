"""Loaders of images with JPEG decoding, measured: `python -m tests.bench.loaders`.

The same pictures of about 110 KB, read by a DataLoader of 0, 2 and 4 worker processes:

    view        torchvision's ImageFolder over `shardfs mount --view by:label`, of a Squirrel store of gzip shards
    loose       the same ImageFolder over loose files
    streaming   MosaicML Streaming over a local MDS data set
    webdataset  webdataset over local tars
    litdata     litData over its own local chunks

Each in a process of its own in the environment that `./run interop` makes for it, with what it reads out of the page
cache before; two epochs, cold and then warm. All take their turn in a round, in the next in reverse; ratios are taken
within rounds, and the median is told. Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageFilter

from shardfs import open_store
from tests.bench import machine
from tests.bench.forms import say

_SECONDS = 600
_LABELS = 20
_PER_SHARD = 200
_SIDE = Path(__file__).with_name("loaders_side.py")
_ENVIRONMENTS = {
    "view": "loaders",
    "loose": "loaders",
    "streaming": "streaming",
    "webdataset": "loaders",
    "litdata": "loaders",
}


def picture(number: int) -> bytes:
    """A JPEG of 500 x 375 points: soft shapes and grain, about 110 KB."""
    rng = random.Random(number)
    shapes = Image.frombytes("RGB", (25, 19), rng.randbytes(25 * 19 * 3)).resize((500, 375), Image.Resampling.BICUBIC)
    grain = Image.frombytes("RGB", (500, 375), rng.randbytes(500 * 375 * 3)).filter(ImageFilter.GaussianBlur(0.6))
    made = io.BytesIO()
    Image.blend(shapes, grain, 0.3).save(made, "JPEG", quality=91)
    return made.getvalue()


def python_of(name: str) -> str:
    python = machine.REPOSITORY / ".venv-interop" / _ENVIRONMENTS[name] / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"bench: {python} is missing: ./run interop makes it")
    return str(python)


def side(name: str, *words: str) -> Any:
    done = subprocess.run(
        [python_of(name), str(_SIDE), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        env={**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
    )
    if done.returncode != 0:
        raise SystemExit(f"bench: {name}: {done.stderr[-2000:]}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else None


def make(data: Path, count: int) -> Path:
    """All forms of the same pictures, once."""
    folder = data / f"images{count}"
    if (folder / ".done").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    say(f"making {count} pictures in {folder}")
    store, mds, tars = (open_store(folder / name, driver) for name, driver in _FORMS.items())
    for shard in range(0, count, _PER_SHARD):
        rows = [{"jpg": picture(at), "label": at % _LABELS} for at in range(shard, min(count, shard + _PER_SHARD))]
        key = f"part-{shard // _PER_SHARD:04}"
        store.set([{**row, "label": f"{row['label']:02}"} for row in rows], key)
        mds.set(rows, f"shard.{shard // _PER_SHARD:05}")
        tars.set([{"__key__": f"{at:06}", "jpg": row["jpg"], "cls": row["label"]} for at, row in enumerate(rows)], key)
        for at, row in enumerate(rows):
            place = folder / "loose" / f"{row['label']:02}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{key}-{at:06}.jpg").write_bytes(row["jpg"])
    side("litdata", "litdata-write", str(folder / "loose"), str(folder / "litdata"))
    (folder / ".done").touch()
    return folder


_FORMS = {"store": "squirrel", "mds": "streaming", "tars": "webdataset"}


@contextlib.contextmanager
def view(folder: Path) -> Iterator[Path]:
    """The store, mounted with the index of an earlier mount."""
    path = Path(tempfile.mkdtemp(prefix="loaders-")) / "mnt"
    cache = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    program = [sys.executable, "-m", "shardfs"]
    words = {"stdin": subprocess.DEVNULL, "check": True, "timeout": _SECONDS, "cwd": machine.REPOSITORY, "env": cache}
    if not (folder / "cache").exists():
        subprocess.run([*program, "index", "--light", str(folder / "store")], capture_output=True, **words)  # type: ignore[call-overload]
    log = str(path.with_name("log"))
    mount = [*program, "mount", str(folder / "store"), str(path), "--view", "by:label", "--log", log]
    subprocess.run(mount, capture_output=True, **words)  # type: ignore[call-overload]
    try:
        yield path
    finally:
        subprocess.run([*program, "umount", str(path)], capture_output=True, **words)  # type: ignore[call-overload]
        shutil.rmtree(path.parent)


def measured(folder: Path, name: str, workers: int) -> list[list[float]]:
    """(seconds, images, sum) of each epoch."""
    stored = {"view": "store", "loose": "loose", "streaming": "mds", "webdataset": "tars", "litdata": "litdata"}[name]
    machine.make_cold(folder / stored)
    if name == "view":
        with view(folder) as path:
            found = side(name, "image_folder", str(path), str(workers))
    else:
        loader = "image_folder" if name == "loose" else name
        found = side(name, loader, str(folder / stored), str(workers))
    epochs: list[list[float]] = found["epochs"]
    return epochs


def _round(folder: Path, count: int, workers: int, number: int) -> dict[str, list[float]]:
    """Images a second of both epochs, of each loader."""
    names = list(_ENVIRONMENTS) if number % 2 else list(reversed(_ENVIRONMENTS))
    found: dict[str, list[list[float]]] = {}
    for name in names:
        found[name] = measured(folder, name, workers)
        say(f"round {number}, {workers} workers, {name}: {[round(images / took) for took, images, _ in found[name]]}/s")
    sums = {(images, seen) for epochs in found.values() for _, images, seen in epochs}
    if {images for images, _ in sums} != {count} or len(sums) != 1:
        raise SystemExit(f"bench: the loaders did not see the same pictures: {found}")
    return {name: [images / took for took, images, _ in epochs] for name, epochs in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.loaders", description="Measures loaders of images.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", default="0,2,4")
    parser.add_argument(
        "--data", metavar="DIR", help="where the data is kept (default: ~/.cache/shardfs-bench/loaders)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    arguments = parser.parse_args()
    data = Path(arguments.data or os.path.expanduser("~/.cache/shardfs-bench/loaders")).resolve()
    folder = make(data, arguments.images)
    records: dict[str, list[dict[str, list[float]]]] = {}
    for number in range(1, arguments.rounds + 1):
        for workers in arguments.workers.split(","):
            records.setdefault(workers, []).append(_round(folder, arguments.images, int(workers), number))
    facts = {**machine.facts(data), "images": arguments.images, "rounds": arguments.rounds}
    facts["load at the end"] = os.getloadavg()[0]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"machine": facts, "records": records}, indent=1))
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), end="\n\n")
    print(f"{'workers':8}{'loader':12}{'epoch':7}{'images/s':>10}{'view / it':>11}")
    for workers, rounds in records.items():
        for name in _ENVIRONMENTS:
            for epoch, which in enumerate(("cold", "warm")):
                rate = statistics.median(one[name][epoch] for one in rounds)
                ratio = statistics.median(one["view"][epoch] / one[name][epoch] for one in rounds)
                print(f"{workers:8}{name:12}{which:7}{rate:10.0f}{ratio:11.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
