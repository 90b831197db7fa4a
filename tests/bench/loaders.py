"""Loaders of images with JPEG decoding, measured: `python -m tests.bench.loaders`.

The same pictures of about 110 KB, read by a DataLoader of 0, 2 and 4 worker processes:

    view-gz     torchvision's ImageFolder over `shardfs mount --view by:label`, of a Squirrel store of gzip shards
    view-mds    the same over the very MDS data set that Streaming reads, which is read in place
    view-tars   `--view by:cls` over the very tars that webdataset reads, which are, too
    loose       the same ImageFolder over loose files
    streaming   MosaicML Streaming over a local MDS data set
    webdataset  webdataset over local tars
    litdata     litData over its own local chunks

Each in a process of its own in the environment that `./run interop` makes for it, with what it reads out of the page
cache before; two epochs, cold and then warm. All take their turn in a round, in the next in reverse; ratios are taken
within rounds, and the median is told: of each view to each other loader, and to the best of the libraries in that
round. Beside it is the processor time of the view's daemon. Progress goes to stderr.
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
from dataclasses import asdict, dataclass
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
    "view-gz": "loaders",
    "view-mds": "loaders",
    "view-tars": "loaders",
    "loose": "loaders",
    "streaming": "streaming",
    "webdataset": "loaders",
    "litdata": "loaders",
}


_STORED = {
    "view-gz": "store",
    "view-mds": "mds",
    "view-tars": "tars",
    "loose": "loose",
    "streaming": "mds",
    "webdataset": "tars",
    "litdata": "litdata",
}
_VIEWS = {"view-gz": "by:label", "view-mds": "by:label", "view-tars": "by:cls"}
_LIBRARIES = ("streaming", "webdataset", "litdata")
_BEST = "best library"
_EPOCHS = ("cold", "warm")


def picture(number: int) -> bytes:
    """A JPEG of 500 x 375 points: soft shapes and grain, about 110 KB."""
    rng = random.Random(number)
    shapes = Image.frombytes("RGB", (25, 19), rng.randbytes(25 * 19 * 3)).resize((500, 375), Image.Resampling.BICUBIC)
    grain = Image.frombytes("RGB", (500, 375), rng.randbytes(500 * 375 * 3)).filter(ImageFilter.GaussianBlur(0.6))
    made = io.BytesIO()
    Image.blend(shapes, grain, 0.33).save(made, "JPEG", quality=94)
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
    folder = data / f"pictures{count}"
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
def view(folder: Path, name: str) -> Iterator[tuple[Path, int]]:
    """A store, mounted with the index of an earlier mount; and the process that serves it."""
    path = Path(tempfile.mkdtemp(prefix="loaders-")) / "mnt"
    cache = {**os.environ, "XDG_CACHE_HOME": str(folder / f"cache-{name}")}
    program, store = [sys.executable, "-m", "shardfs"], str(folder / _STORED[name])
    words = {"stdin": subprocess.DEVNULL, "check": True, "timeout": _SECONDS, "cwd": machine.REPOSITORY, "env": cache}
    if not (folder / f"cache-{name}").exists():
        subprocess.run([*program, "index", "--light", store], capture_output=True, **words)  # type: ignore[call-overload]
    machine.make_cold(folder / _STORED[name])
    log = str(path.with_name("log"))
    mount = [*program, "mount", store, str(path), "--view", _VIEWS[name], "--log", log]
    subprocess.run(mount, capture_output=True, **words)  # type: ignore[call-overload]
    try:
        yield path, int(json.loads((path / ".shardfs" / "status.json").read_text())["pid"])
    finally:
        subprocess.run([*program, "umount", str(path)], capture_output=True, **words)  # type: ignore[call-overload]
        shutil.rmtree(path.parent)


@dataclass(frozen=True, slots=True)
class Read:
    """What one loader did: images a second of each epoch, and the processor time of the daemon in both together."""

    rates: list[float]
    daemon: float | None = None


def measured(folder: Path, name: str, workers: int, count: int) -> Read:
    """One loader, cold and then again."""
    stored = folder / _STORED[name]
    if name in _VIEWS:
        with view(folder, name) as (path, pid):
            before = machine.usage(pid)
            found = side(name, "image_folder", str(path), str(workers))
            after = machine.usage(pid)
        daemon = after.user + after.system - before.user - before.system
    else:
        machine.make_cold(stored)
        found, daemon = side(name, "image_folder" if name == "loose" else name, str(stored), str(workers)), None
    seen = {(images, total) for _, images, total in found["epochs"]}
    if {images for images, _ in seen} != {count}:
        raise SystemExit(f"bench: {name} did not see all {count} pictures: {found}")
    _SEEN.update(total for _, total in seen)
    if len(_SEEN) != 1:
        raise SystemExit(f"bench: {name} saw other pictures than the others: {found}")
    return Read([images / took for took, images, _ in found["epochs"]], daemon)


_SEEN: set[int] = set()
"""Sums over labels and pixels, which must all be the same."""


def _round(folder: Path, count: int, names: list[str], workers: int, number: int) -> dict[str, Read]:
    found: dict[str, Read] = {}
    for name in names if number % 2 else reversed(names):
        found[name] = measured(folder, name, workers, count)
        spent = "" if found[name].daemon is None else f", daemon {found[name].daemon:.2f} s"
        say(f"round {number}, {workers} workers, {name}: {[round(rate) for rate in found[name].rates]}/s{spent}")
    return found


def _compared(rounds: list[dict[str, Read]], names: list[str], workers: str) -> Iterator[str]:
    """Lines of the table for one number of workers."""
    views = [name for name in names if name in _VIEWS]
    libraries = [name for name in names if name in _LIBRARIES]
    for name in [*names, *([_BEST] if libraries else [])]:
        for epoch, which in enumerate(_EPOCHS):
            rates = [
                max(one[library].rates[epoch] for library in libraries) if name == _BEST else one[name].rates[epoch]
                for one in rounds
            ]
            ratios = [
                statistics.median(one[shown].rates[epoch] / rate for one, rate in zip(rounds, rates, strict=True))
                for shown in views
            ]
            spent = [one[name].daemon for one in rounds] if name in _VIEWS else []
            told = f"{statistics.median(value for value in spent if value is not None):.2f}" if spent else ""
            line = f"{workers:8}{name:14}{which:6}{statistics.median(rates):10.0f}{told if not epoch else '':>10}"
            yield line + "".join(f"{ratio:16.2f}" for ratio in ratios)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.loaders", description="Measures loaders of images.")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", default="0,2,4")
    parser.add_argument("--targets", default=",".join(_ENVIRONMENTS), help="which loaders (default: all)")
    parser.add_argument(
        "--data", metavar="DIR", help="where the data is kept (default: ~/.cache/shardfs-bench/loaders)"
    )
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    names = [name for name in arguments.targets.split(",") if name]
    if unknown := set(names) - _ENVIRONMENTS.keys():
        raise SystemExit(f"bench: no loader {', '.join(sorted(unknown))}; there are {', '.join(_ENVIRONMENTS)}")
    data = Path(arguments.data or os.path.expanduser("~/.cache/shardfs-bench/loaders")).resolve()
    folder = make(data, arguments.images)
    records: dict[str, list[dict[str, Read]]] = {}
    for number in range(1, arguments.rounds + 1):
        for workers in arguments.workers.split(","):
            found = _round(folder, arguments.images, names, int(workers), number)
            records.setdefault(workers, []).append(found)
    facts = {**machine.facts(data), "images": arguments.images, "rounds": arguments.rounds}
    facts["load at the end"] = os.getloadavg()[0]
    if arguments.json:
        plain = {
            workers: [{name: asdict(read) for name, read in one.items()} for one in rounds]
            for workers, rounds in records.items()
        }
        Path(arguments.json).write_text(json.dumps({"machine": facts, "records": plain}, indent=1))
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), end="\n\n")
    shown = "".join(f"{f'{name} / it':>16}" for name in names if name in _VIEWS)
    print(f"{'workers':8}{'loader':14}{'epoch':6}{'images/s':>10}{'daemon s':>10}{shown}")
    for workers, rounds in records.items():
        print("\n".join(_compared(rounds, names, workers)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
