"""Runs in mosaicml-streaming's own environment: `write DIR COMPRESSION HASHES` makes a data set with splits, reads it
back with the library and prints descriptions: {split: [sample, ...]}."""

import json
import pathlib
import shutil
import sys
import tempfile
from decimal import Decimal

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import numpy as np
from describe import describe
from PIL import Image
from streaming import MDSWriter, StreamingDataset

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


def main():
    folder, compression, hashes = sys.argv[1:]
    out = {}
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
    with tempfile.TemporaryDirectory() as copy:  # the library decompresses into what it reads
        shutil.copytree(folder, f"{copy}/data")
        for split in ("train", "val"):
            data = StreamingDataset(local=f"{copy}/data", split=split, batch_size=1, shuffle=False)
            out[split] = [{name: describe(value) for name, value in data[at].items()} for at in range(data.size)]
    json.dump(out, sys.stdout)


main()
