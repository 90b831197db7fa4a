"""Runs in mosaicml-streaming's own environment. `DIR COMPRESSION HASHES` makes a data set with splits, `dump DIR HASH`
takes the one that is there; both read it with the library and print descriptions: {split: [sample, ...]}. `hold DIR
HASH` opens it (as a LocalDataset, too, if it is not compressed), reads one sample, and the rest when it gets a line."""

import json
import pathlib
import sys
import tempfile
from decimal import Decimal

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import numpy as np
from describe import describe
from PIL import Image
from streaming import LocalDataset, MDSWriter, StreamingDataset

COLUMNS = {
    "raw": "bytes",
    "text": "str",
    "int": "int",
    "u8": "uint8",
    "i64": "int64",
    "f16": "float16",
    "f64": "float64",
    "big": "str_int",
    "sfloat": "str_float",
    "dec": "str_decimal",
    "any": "ndarray",
    "typed": "ndarray:float32",
    "shaped": "ndarray:int16:3,4",
    "pixels": "ndarray:uint8",
    "pil_rgb": "pil",
    "pil_1": "pil",
    "pil_p": "pil",
    "pil_f": "pil",
    "pil_16": "pil",
    "jpg": "jpeg",
    "png": "png",
    "jpgs": "list[jpeg]",
    "pngs": "list[png]",
    "pils": "list[pil]",
    "doc": "json",
}


def sample(number):
    rng = np.random.RandomState(number)
    rgb = Image.fromarray(rng.randint(0, 255, (20, 30, 3)).astype("u1"))
    return {
        "raw": rng.bytes(number * 10),
        "text": f"sample {number} ✓",
        "int": -number,
        "u8": np.uint8(number),
        "i64": np.int64(-number),
        "f16": np.float16(number / 3),
        "f64": np.float64(number / 7),
        "big": 10**30 + number,
        "sfloat": number / 9,
        "dec": Decimal(number) / 8,
        "any": rng.randint(0, 99, (number + 1, 2)).astype("i4"),
        "typed": rng.rand(2, number + 1).astype("f4"),
        "shaped": rng.randint(0, 99, (3, 4)).astype("i2"),
        "pixels": rng.randint(0, 255, (5, 6, 3)).astype("u1"),
        "pil_rgb": rgb,
        "pil_1": rgb.convert("1"),
        "pil_p": rgb.convert("P"),
        "pil_f": rgb.convert("F"),
        "pil_16": Image.fromarray(rng.randint(0, 65535, (4, 7)).astype("u2")),
        "jpg": rgb,
        "png": rgb.convert("RGBA"),
        "jpgs": [rgb] * (number % 3),
        "pngs": [rgb.convert("L")] * (number % 2),
        "pils": [rgb, rgb.convert("L")],
        "doc": {"n": number, "l": [1, 2.5, None, True], "é": "ü"},
    }


def write(folder, compression, hashes):
    for split, count in (("train", 11), ("val", 3)):
        with MDSWriter(
            out=f"{folder}/{split}",
            columns=COLUMNS,
            compression=None if compression == "none" else compression,
            hashes=[] if hashes == "none" else hashes.split(","),
            size_limit=60_000,
        ) as writer:
            for number in range(count):
                writer.write(sample(number))


def dump(folder, validate_hash):
    """All splits, read as a remote data set: hashes are checked when a shard is fetched."""
    out = {}
    with tempfile.TemporaryDirectory() as local:
        for index in sorted(pathlib.Path(folder).glob("*/index.json")):
            split = index.parent.name
            data = StreamingDataset(
                local=local, remote=folder, split=split, batch_size=1, shuffle=False, validate_hash=validate_hash
            )
            out[split] = [{name: describe(value) for name, value in data[at].items()} for at in range(data.size)]
    return out


def hold(folder, validate_hash):
    """The texts of all samples, by data sets that were opened, and had read one sample, before somebody changed it."""
    with tempfile.TemporaryDirectory() as local:
        opened = [
            StreamingDataset(
                local=local, remote=folder, split="train", batch_size=1, shuffle=False, validate_hash=validate_hash
            )
        ]
        if list(pathlib.Path(folder, "train").glob("shard.00000*.mds")):
            opened.append(LocalDataset(folder, "train"))
        assert all(data[0]["int"] == 0 for data in opened)
        print("opened", flush=True)
        sys.stdin.readline()
        return {"texts": [[data[at]["text"] for at in range(data.size)] for data in opened]}


def main():
    if sys.argv[1] == "hold":
        _, _, folder, validate_hash = sys.argv
        json.dump(hold(folder, None if validate_hash == "none" else validate_hash), sys.stdout)
        return
    if sys.argv[1] == "dump":
        _, _, folder, validate_hash = sys.argv
    else:
        folder, compression, hashes = sys.argv[1:]
        write(folder, compression, hashes)
        validate_hash = None if hashes == "none" else hashes.split(",")[0]
    json.dump(dump(folder, None if validate_hash == "none" else validate_hash), sys.stdout)


main()
