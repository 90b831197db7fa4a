"""Loaders that know only files, each reading what it is pointed at: run in the environment `loaders`.

    python loaders_side.py NAME ROOT [ARGUMENT...]     prints one JSON object: version, and the samples it found

The packages are the real ones. torchvision's compiled operators are not used (its wheel on PyPI is for another build of
torch), so the two that its import asks for are declared before.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _pixels(image: Any) -> str:
    return _hash(f"{image.mode} {image.size} ".encode() + image.tobytes())


def _torchvision() -> Any:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    torchvision.the_library = library  # its end would take the operators away
    return torchvision


class _Hashed:
    """A transform that processes of a DataLoader can be given."""

    def __call__(self, image: Any) -> str:
        return _pixels(image)


def torchvision(root: str, workers: str) -> Found:
    """ImageFolder, read by a DataLoader of so many worker processes."""
    package = _torchvision()
    from torch.utils.data import DataLoader

    folder = package.datasets.ImageFolder(root, transform=_Hashed())
    names = [[os.path.relpath(path, root), folder.classes[label]] for path, label in folder.samples]
    loader = DataLoader(folder, batch_size=7, num_workers=int(workers))
    read = [
        [pixels, folder.classes[int(label)]]
        for batch, labels in loader
        for pixels, label in zip(batch, labels, strict=True)
    ]
    return {"version": package.__version__, "samples": [[*name, *one] for name, one in zip(names, read, strict=True)]}


def timm(root: str) -> Found:
    _torchvision()
    import timm
    from PIL import Image
    from timm.data.readers.reader_factory import create_reader

    reader = create_reader("", root)
    samples = []
    for number in range(len(reader)):
        file, label = reader[number]
        with file, Image.open(file) as image:
            samples.append([reader.filename(number, basename=False, absolute=False), label, _pixels(image)])
    return {"version": timm.__version__, "samples": samples}


def keras(root: str) -> Found:
    """The walk of `image_dataset_from_directory` (its result is a TensorFlow data set) and Keras' own image reader."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras
    from keras.src.utils.dataset_utils import index_directory

    formats = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
    paths, labels, classes = index_directory(root, labels="inferred", formats=formats, shuffle=False, verbose=False)
    samples = [
        [os.path.relpath(path, root), classes[label], _pixels(keras.utils.load_img(path))]
        for path, label in zip(paths, labels, strict=True)
    ]
    return {"version": keras.__version__, "samples": samples}


def datasets(root: str, kind: str) -> Found:
    """`imagefolder` over a directory, or `json` over a file of lines."""
    import datasets

    datasets.disable_progress_bars()
    where = {"data_dir": root} if kind == "imagefolder" else {"data_files": root}
    with tempfile.TemporaryDirectory() as cache:
        found = datasets.load_dataset(kind, split="train", cache_dir=cache, **where)
        samples = []
        for row in found:
            said = dict(row)
            for name, value in list(said.items()):
                feature = found.features[name]
                if isinstance(feature, datasets.ClassLabel):
                    said[name] = feature.int2str(value)
                elif isinstance(feature, datasets.Image):
                    said[name] = _pixels(value)
            samples.append(said)
    return {"version": datasets.__version__, "samples": samples}


def webdataset(root: str) -> Found:
    import webdataset

    tars = sorted(str(path) for path in Path(root).glob("*.tar"))
    samples = [
        [sample["__key__"], {name: _hash(value) for name, value in sample.items() if isinstance(value, bytes)}]
        for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
    ]
    return {"version": webdataset.__version__, "samples": samples}


def wids(root: str) -> Found:
    """Random access by an index of the tars: backwards, as every other order than theirs needs it."""
    import wids

    shards = [
        {"url": str(path), "nsamples": int(count)}
        for path, count in (
            (path, len({name.split(".")[0] for name in _members(path)})) for path in sorted(Path(root).glob("*.tar"))
        )
    ]
    with tempfile.TemporaryDirectory() as cache:
        found = wids.ShardListDataset(shards, cache_dir=cache, keep=True, transformations=[])
        samples = []
        for number in reversed(range(len(found))):
            sample = found[number]
            content = {
                name[1:]: _hash(value.getvalue()) for name, value in sample.items() if hasattr(value, "getvalue")
            }
            samples.append([sample["__key__"], content])
    return {"version": _version("webdataset"), "samples": samples[::-1]}


def _members(path: Path) -> list[str]:
    done = subprocess.run(["tar", "-tf", str(path)], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines()


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def yolo(root: str) -> Found:
    """How Ultralytics finds labels: `images` becomes `labels` in the path, and the extension `.txt`."""
    samples = []
    for image in sorted(Path(root, "images").rglob("*.jpg")):
        label = Path(str(image.with_suffix(".txt")).replace("/images/", "/labels/"))
        samples.append([image.name, _hash(image.read_bytes()), label.read_text() if label.exists() else None])
    return {"version": "", "samples": samples}


def duckdb(path: str) -> Found:
    import duckdb

    read = "read_parquet" if path.endswith(".parquet") else "read_json"
    rows = duckdb.sql(f"select key, sample, label, id from {read}('{path}') order by key, sample").fetchall()
    return {"version": duckdb.__version__, "samples": [list(row) for row in rows]}


def polars(path: str) -> Found:
    import polars

    table = polars.read_parquet(path) if path.endswith(".parquet") else polars.read_ndjson(path)
    rows = table.select("key", "sample", "label", "id").sort("key", "sample").rows()
    return {"version": polars.__version__, "samples": [list(row) for row in rows]}


def pandas(path: str) -> Found:
    import pandas

    table = pandas.read_parquet(path) if path.endswith(".parquet") else pandas.read_json(path, lines=True, dtype=False)
    rows = table[["key", "sample", "label", "id"]].sort_values(["key", "sample"]).values.tolist()
    return {"version": pandas.__version__, "samples": rows}


def pyarrow(path: str) -> Found:
    import pyarrow
    from pyarrow import dataset

    table = dataset.dataset(path, format="parquet" if path.endswith(".parquet") else "json").to_table()
    rows = table.select(["key", "sample", "label", "id"]).sort_by([("key", "ascending"), ("sample", "ascending")])
    return {"version": pyarrow.__version__, "samples": [list(row.values()) for row in rows.to_pylist()]}


def ffmpeg(root: str) -> Found:
    """image2 over a pattern: the hash of each decoded frame."""
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    command = [program, "-v", "error", "-f", "image2", "-pattern_type", "glob", "-i", f"{root}/*.jpg"]
    done = subprocess.run(
        [*command, "-f", "framemd5", "-"], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    frames = [line.rpartition(",")[2].strip() for line in done.stdout.splitlines() if not line.startswith("#")]
    return {"version": imageio_ffmpeg.get_ffmpeg_version(), "samples": frames}


LOADERS: dict[str, Callable[..., Found]] = {
    made.__name__: made
    for made in (torchvision, timm, keras, datasets, webdataset, wids, yolo, duckdb, polars, pandas, pyarrow, ffmpeg)
}

if __name__ == "__main__":
    print(json.dumps(LOADERS[sys.argv[1]](*sys.argv[2:])))
