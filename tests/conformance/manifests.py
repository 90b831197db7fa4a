"""The fixtures' manifests against files: is each file of a key what the real library says the sample holds?

Looks at names, sizes, bytes and decoded values, with Pillow and numpy as independent readers.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import PIL.Image

from shardfs import layout, names
from tests.conformance.trees import Tree, fails


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def key_files(tree: Tree, key: str) -> dict[str, bytes]:
    """All files of a key, each read whole and as long as stat said."""
    files = {}
    for name in tree.names(key):
        found = tree.stat(f"{key}/{name}")
        data = tree.read(f"{key}/{name}")
        assert found.size == len(data), f"{key}/{name}: stat says {found.size}, reading gave {len(data)}"
        files[name] = data
    return files


def by_sample(files: dict[str, bytes]) -> dict[str, dict[str, bytes]]:
    grouped: dict[str, dict[str, bytes]] = {}
    for name, data in files.items():
        stem, _, suffix = name.partition(".")
        grouped.setdefault(stem, {})[suffix] = data
    return grouped


def check_squirrel_key(tree: Tree, key: str, shard: dict[str, Any]) -> None:
    """One key of a Squirrel fixture against its part of the manifest."""
    if shard.get("expect") == "EIO":
        for look in (lambda: tree.names(key), lambda: tree.stat(f"{key}/000000.json")):
            with fails(errno.EIO):
                look()
        return
    samples = by_sample(key_files(tree, key))
    assert list(samples) == [f"{number:06d}" for number in range(shard["nsamples"])]
    for number, expected in enumerate(shard["samples"]):
        got = layout.read_back(samples[f"{number:06d}"])
        check_tagged(expected, got, f"{key}[{number}]")


def check_tagged(expected: dict[str, Any], got: Any, where: str) -> None:
    """A value against the manifest's tagged form; numpy scalars are plain numbers in files."""
    kind = expected["t"]
    if kind == "dict":
        pairs = [(plain_key(key), value) for key, value in expected["v"]]
        assert isinstance(got, dict), where
        assert set(got) == {key for key, _ in pairs}, where
        for key, value in pairs:
            check_tagged(value, got[key], f"{where}.{key!r}")
    elif kind in ("list", "tuple"):
        assert isinstance(got, list), where
        assert len(got) == len(expected["v"]), where
        for at, value in enumerate(expected["v"]):
            check_tagged(value, got[at], f"{where}[{at}]")
    elif kind == "ndarray":
        assert isinstance(got, np.ndarray), where
        assert dtype_text(got.dtype) == expected["dtype"], where
        assert (list(got.shape), sha(got.tobytes("C"))) == (expected["shape"], expected["sha256"]), where
    elif kind == "npscalar":
        dtype = np.dtype(expected["dtype"])
        assert sha(np.array(got, dtype).tobytes()) == expected["sha256"], where
    elif kind == "ndarray_object":
        assert type(got).__name__ == "Pickle", where
        assert got.data[:1] == b"\x80", where  # the pickle as stored, never run
    else:
        check_plain(kind, expected, got, where)


def dtype_text(dtype: np.dtype[Any]) -> str:
    return str(dtype.descr) if dtype.fields else dtype.str


def plain_key(expected: dict[str, Any]) -> Any:
    kind = expected["t"]
    if kind == "bytes":
        return bytes.fromhex(expected["hex"])
    return int(expected["v"]) if kind == "int" else expected["v"]


def check_plain(kind: str, expected: dict[str, Any], got: Any, where: str) -> None:
    if kind == "float":
        want = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.get(expected["v"])
        want = float.fromhex(expected["v"]) if want is None else want
        assert type(got) is float, where
        assert got == want or (math.isnan(got) and math.isnan(want)), where
    elif kind == "bytes":
        assert (len(got), sha(got)) == (expected["len"], expected["sha256"]), where
    elif kind == "ext":
        assert got == msgpack.ExtType(expected["code"], bytes.fromhex(expected["hex"])), where
    elif kind == "timestamp":
        assert got == msgpack.Timestamp(expected["s"], expected["ns"]), where
    elif kind == "complex":
        assert got == complex(expected["v"]), where
    else:
        want = {"none": lambda: None, "bool": lambda: expected["v"], "int": lambda: int(expected["v"])}
        value = want.get(kind, lambda: expected["v"])()
        assert (type(got), got) == (type(value), value), where


# --- mltraq -------------------------------------------------------------------------------------------------------


def check_mltraq(tree: Tree, folder: Path, manifest: dict[str, Any]) -> None:
    """All keys of an mltraq fixture, opened with its database: experiments, and directories that are none's."""
    own = {found["id_experiment"] for found in manifest["experiments"].values()}
    files = manifest["datastore_files"]
    others = {name.rpartition("/")[0] for name in files} - own
    assert set(tree.names("")) == {key.partition("/")[0] for key in [*manifest["experiments"], *others]}
    for name, experiment in manifest["experiments"].items():
        samples = by_sample(key_files(tree, name))
        assert sorted(samples) == sorted(["experiment", *experiment["runs"]])
        check_mltraq_value(experiment["fields"], layout.read_back(samples["experiment"]), f"{name}.experiment")
        for run, expected in experiment["runs"].items():
            check_mltraq_value(expected, layout.read_back(samples[run]), f"{name}.{run}")
    for directory in others:
        check_mltraq_directory(tree, directory, folder, manifest)


def check_mltraq_directory(tree: Tree, directory: str, folder: Path, manifest: dict[str, Any]) -> None:
    """One directory of a datastore: each file is a sample, its value where the library can read it, else its bytes."""
    samples = by_sample(key_files(tree, directory))
    files = {name: of for name, of in manifest["datastore_files"].items() if name.rpartition("/")[0] == directory}
    assert sorted(samples) == sorted(name.rpartition("/")[2] for name in files)
    for name, expected in files.items():
        got = layout.read_back(samples[name.rpartition("/")[2]])
        if "decoded" in expected:
            check_mltraq_value(expected["decoded"], got, name)
        else:
            assert got == (folder / manifest["datastore"] / name).read_bytes(), name


def check_mltraq_value(expected: dict[str, Any], got: Any, where: str) -> None:
    """A value against the manifest's tagged form, with mltraq's own kinds."""
    kind = expected["t"]
    if kind in ("dict", "datastore", "bunch"):
        assert isinstance(got, dict), where
        pairs = [(mltraq_key(key), value) for key, value in expected["v"]]
        assert set(got) == {key for key, _ in pairs}, where
        for key, value in pairs:
            check_mltraq_value(value, got[key], f"{where}.{key!r}")
    elif kind in ("list", "tuple"):
        assert type(got) is {"list": list, "tuple": tuple}[kind], where
        assert len(got) == len(expected["v"]), where
        for at, value in enumerate(expected["v"]):
            check_mltraq_value(value, got[at], f"{where}[{at}]")
    elif kind == "set":
        assert got == {mltraq_key(item) for item in expected["v"]}, where
    elif kind in ("series", "dataframe", "table", "sequence"):
        assert (got[:8], got[-6:]) == (b"ARROW1\0\0", b"ARROW1"), where
    elif kind == "uuid":
        assert got.hex == expected["v"], where
    elif kind == "datetime64":
        assert np.datetime64(got, "us").astype(np.int64) == expected["us"], where
    elif kind == "datetime":
        assert got.isoformat() == expected["v"], where
    else:
        check_tagged(expected, got, where)


def mltraq_key(expected: dict[str, Any]) -> Any:
    if expected["t"] == "tuple":
        return tuple(mltraq_key(item) for item in expected["v"])
    return None if expected["t"] == "none" else plain_key(expected)


# --- Streaming ----------------------------------------------------------------------------------------------------


def check_streaming_split(tree: Tree, split: str, manifest: dict[str, Any], columns: dict[str, str]) -> None:
    """One split of an MDS fixture: every shard's key, every sample, every column."""
    prefix = f"{split}/" if split else ""
    by_shard: dict[int, list[dict[str, Any]]] = {}
    for sample in manifest["samples"]:
        by_shard.setdefault(sample["shard"], []).append(sample)
    for shard in range(manifest["num_shards"]):
        samples = by_sample(key_files(tree, f"{prefix}shard.{shard:05d}"))
        expected = by_shard.get(shard, [])
        assert list(samples) == [f"{sample['index']:06d}" for sample in expected]
        for sample in expected:
            files = samples[f"{sample['index']:06d}"]
            light = json.loads(files.get("json", b"{}"))
            for column, value in sample["values"].items():
                check_column(files, light, column, columns[column], value)


def check_column(files: dict[str, bytes], light: dict[str, Any], column: str, encoding: str, want: Any) -> None:
    kind = want["type"]
    if kind == "list[image]":
        lifted = [item["$file"] for item in light[column]]
        assert len(lifted) == len(want["items"])
        for name, item in zip(lifted, want["items"], strict=True):
            check_image(files[name], item, column)
    elif kind.startswith("PIL."):
        found = [name for name in files if names.field_part(name) == column]
        assert len(found) == 1, found
        assert found[0].rpartition(".")[2] in {"jpeg": ["jpg"], "png": ["png"], "pil": ["png", "tif"]}[encoding], found
        check_image(files[found[0]], want, column)
    elif kind == "ndarray":
        name = next(name for name in files if names.field_part(name) == column)
        array = layout.file_value(name, files[name])
        assert (str(array.dtype), list(array.shape)) == (want["dtype"], want["shape"])
        assert sha(array.tobytes("C")) == want["sha256"]
    elif kind == "bytes":
        name = next(name for name in files if names.field_part(name) == column)
        assert (len(files[name]), sha(files[name])) == (want["len"], want["sha256"])
    elif encoding == "pkl":
        # the file's bytes are compared with the record's in the driver's own test: here it must exist, as .pkl
        assert files[names.file_suffix(column, (), "pkl", 255)][:1] == b"\x80"
    else:
        check_scalar(light[column], want, column)


def check_image(data: bytes, want: dict[str, Any], where: str) -> None:
    with PIL.Image.open(io.BytesIO(data)) as image:
        assert (image.mode, list(image.size)) == (want["mode"], want["size"]), where
        assert sha(image.tobytes()) == want["pixels_sha256"], where


def check_scalar(got: Any, want: dict[str, Any], where: str) -> None:
    kind = want["type"]
    if "json" in want:
        assert got == want["json"], where
    elif kind == "str":
        assert sha(got.encode("utf-8")) == want["sha256"], where
    elif kind == "int":
        assert (type(got), got) == (int, int(want["value"])), where
    elif kind == "Decimal":
        assert Decimal(got["$decimal"]) == Decimal(want["value"]), where
    elif kind == "float" or "float" in kind:
        number = float(got["$float"]) if isinstance(got, dict) else got
        assert repr(number) == repr(float(want["value"])) or number == float(want["value"]), where
    else:
        assert got == int(want["value"]), where


def load_manifest(case: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((case / "manifest.json").read_text(encoding="utf-8"))
    return manifest
