"""Runs in mosaicml-streaming's own environment. `DIR COMPRESSION HASHES` makes a data set of MDS with splits, `rows DIR
FORMAT COMPRESSION HASHES` one of JSON, CSV, TSV or XSV, `dump DIR HASH` takes the one that is there; these read it with
the library and print descriptions: {split: [sample, ...]}. `hold DIR HASH` opens it (as a LocalDataset, too, if it is
not compressed), reads one sample, and the rest when it gets a line. `sizes DIR...` prints what its readers say of
the sizes of shards, `present DIR...` what they say is present of them, by directory; `words` what hashes and
compressions it has."""

import itertools
import json
import os
import pathlib
import shutil
import sys
import tempfile
from decimal import Decimal

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import numpy as np
from describe import describe
from PIL import Image
from streaming import CSVWriter, JSONWriter, LocalDataset, MDSWriter, StreamingDataset, TSVWriter, XSVWriter
from streaming.base.compression import get_compressions
from streaming.base.format import reader_from_json
from streaming.base.hashing import get_hashes

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


def settings(compression, hashes):
    return {
        "compression": None if compression == "none" else compression,
        "hashes": [] if hashes == "none" else hashes.split(","),
    }


def write(folder, compression, hashes):
    for split, count in (("train", 11), ("val", 3)):
        with MDSWriter(
            out=f"{folder}/{split}",
            columns=COLUMNS,
            size_limit=60_000,
            **settings(compression, hashes),
        ) as writer:
            for number in range(count):
                writer.write(sample(number))


def write_rows(folder, form, compression, hashes):
    writers = {"json": JSONWriter, "csv": CSVWriter, "tsv": TSVWriter, "xsv": XSVWriter}
    own = {"separator": "||"} if form == "xsv" else {}
    for split, count in (("train", 60), ("val", 3)):
        columns = {"text": "str", "n": "int", "x": "float"}
        how = {**own, **settings(compression, hashes), "size_limit": "1kb", "columns": columns}
        with writers[form](out=f"{folder}/{split}", **how) as writer:
            for at in range(count):
                writer.write({"text": f'"sämple" {at} ✓', "n": at - 7, "x": at / 7 if at else float("nan")})


def shards(folder):
    for index in sorted(pathlib.Path(folder).rglob("index.json")):
        split = str(index.parent.relative_to(folder))
        for at, shard in enumerate(json.loads(index.read_bytes())["shards"]):
            yield ("" if split == "." else split), at, shard


def sizes(folder):
    out = {}
    for split, at, shard in shards(folder):
        reader = reader_from_json(folder, split, shard)
        out[f"{split}:{at}"] = {
            "size": reader.size,
            "len": len(reader),
            "raw": reader.get_raw_size(),
            "zip": reader.get_zip_size(),
            "max": reader.get_max_size(),
            "persistent": [reader.get_persistent_size(keep) for keep in (False, True)],
            "size_limit": reader.size_limit,
        }
    return out


def present(folder):
    """Of each shard: which files are listed and whether zip is kept -> what `set_up_local` returns, on a copy that it
    may delete from."""
    out = {}
    for split, at, shard in shards(folder):
        names = sorted(shard[name]["basename"] for name in shard if name[:4] in ("raw_", "zip_") and shard[name])
        for count in range(len(names) + 1):
            for chosen in itertools.combinations(names, count):
                for keep in (False, True):
                    with tempfile.TemporaryDirectory() as copy:
                        shutil.copytree(folder, f"{copy}/set")
                        listing = {os.path.join(f"{copy}/set", split, name) for name in chosen}
                        for name in listing:
                            pathlib.Path(name).touch()
                        reader = reader_from_json(f"{copy}/set", split, shard)
                        out[json.dumps([split, at, list(chosen), keep])] = reader.set_up_local(listing, keep)
    return out


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
    command, *words = sys.argv[1:]
    if command == "words":
        json.dump({"hashes": sorted(get_hashes()), "compressions": sorted(get_compressions())}, sys.stdout)
        return
    if command in ("sizes", "present"):
        look = {"sizes": sizes, "present": present}[command]
        json.dump({folder: look(folder) for folder in words}, sys.stdout)
        return
    if command == "hold":
        folder, validate_hash = words
        json.dump(hold(folder, None if validate_hash == "none" else validate_hash), sys.stdout)
        return
    if command == "dump":
        folder, validate_hash = words
    elif command == "rows":
        folder, form, compression, hashes = words
        write_rows(folder, form, compression, hashes)
        validate_hash = hashes.split(",")[0]
    else:
        folder, compression, hashes = command, *words
        write(folder, compression, hashes)
        validate_hash = hashes.split(",")[0]
    json.dump(dump(folder, None if validate_hash == "none" else validate_hash), sys.stdout)


main()
