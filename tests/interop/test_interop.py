"""The real libraries, each in a virtual environment of its own: what they write we read equal, and what we write they
read equal. `./run interop` makes the environments and names them in the environment of this process."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bson
import mongomock
import numpy as np
import pytest

from shardfs import open_store, table_building
from shardfs.converting import convert_all
from shardfs.drivers.base import Value
from shardfs.drivers.hashes import HASHES
from shardfs.drivers.streaming_settings import LEVELS
from shardfs.drivers.superduper import SuperduperDriver
from shardfs.drivers.superduper_mongo import MongoTables
from shardfs.model import Key
from shardfs.sealing import Base, Changed, Source, Stored, seal
from shardfs.storage.local import LocalStorage
from shardfs.store import Store
from shardfs.streaming import readers
from shardfs.streaming_readers import FileReader
from shardfs.superduper import artifact, file, insert, lazy_artifact, orphans

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import superduper3_side  # noqa: E402
import superduper_side  # noqa: E402
from describe import describe, opened  # noqa: E402
from samples import JSONL, MSGPACK  # noqa: E402


def library(name: str, folder: Path, *args: str) -> Any:
    """Run a script in a library's environment and return the JSON that it prints. Its temporary files go into
    `folder`: mosaicml-streaming leaves lock files behind."""
    python = os.environ.get(f"SHARDFS_INTEROP_{name.upper()}")
    if not python:
        pytest.skip(f"SHARDFS_INTEROP_{name.upper()} is not set: use ./run interop")
    script = str(HERE / f"{name}_side.py")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TMPDIR": str(folder)}
    done = subprocess.run([python, script, *args], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index("{") :])


def through_json(description: Any) -> Any:
    return json.loads(json.dumps(description))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["msgpack", "jsonl"])
def test_squirrel_core_and_we_read_each_other(tmp_path: Path, form: str) -> None:
    store = open_store(tmp_path, driver=f"squirrel-{form}")
    store.set(JSONL if form == "jsonl" else MSGPACK, "ours")
    library("squirrel", tmp_path, "write", str(tmp_path), form)
    theirs = library("squirrel", tmp_path, "dump", str(tmp_path), form)
    assert sorted(theirs) == store.keys() == ["ours", "theirs"]
    assert theirs["ours"] == theirs["theirs"], "what we wrote reads differently from what the library wrote"
    for key in store:
        mine = [through_json(describe(sample)) for sample in store.get(key)]
        assert mine == theirs[key], key


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["msgpack", "jsonl"])
def test_squirrel_cores_serializers_read_our_zstd_shards(tmp_path: Path, form: str) -> None:
    """Its store looks for .gz alone: they are given a file system that undoes zstd. One shard has several frames."""
    samples = JSONL if form == "jsonl" else MSGPACK
    large = large_samples() if form == "msgpack" else [{"n": at, "t": str(at) * 500} for at in range(5_000)]
    store = open_store(tmp_path, driver=f"squirrel-{form}", compression="zst")
    store.set(samples, "ours")
    store.set(large, "large")
    open_store(tmp_path, driver=f"squirrel-{form}").set(samples, "gz")
    expected = library("squirrel", tmp_path, "dump", str(tmp_path), form)["gz"]
    theirs = library("squirrel", tmp_path, "zst", str(tmp_path), form)
    assert theirs == {"ours": expected, "large": [through_json(describe(sample)) for sample in large]}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["msgpack", "jsonl"])
def test_squirrel_core_finds_its_keys_beside_our_zstd_shards(tmp_path: Path, form: str) -> None:
    open_store(tmp_path, driver=f"squirrel-{form}", compression="zst").set([{"i": 1}], "z")
    open_store(tmp_path, driver=f"squirrel-{form}").set([{"i": 2}], "g")
    assert library("squirrel", tmp_path, "dump", str(tmp_path), form) == {
        "g": [["dict", [[["str", "i"], ["int", "2"]]]]]
    }
    assert open_store(tmp_path).keys() == ["g", "z"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("compression", "hashes"),
    [
        *(("none", "sha1,xxh64"), ("zstd", "none"), ("zstd:7", "xxh3_64"), ("gz", "md5"), ("gz:1", "none")),
        *(("bz2", "blake2b"), ("br", "xxh128"), ("snappy", "sha3_256,xxh32")),
    ],
)
def test_what_mosaicml_streaming_writes_we_read_equal(tmp_path: Path, compression: str, hashes: str) -> None:
    theirs = library("streaming", tmp_path, str(tmp_path / "set"), compression, hashes)
    store = open_store(tmp_path / "set")
    assert len(store) > 2, "the set should have several shards"
    for split, samples in theirs.items():
        mine = [sample for key in store if key.startswith(f"{split}/") for sample in store.get(key)]
        assert len(mine) == len(samples) > 0
        for got, expected in zip(mine, samples, strict=True):
            assert sorted(got) == sorted(expected)
            for name, value in got.items():
                assert through_json(describe(as_library(name, value))) == expected[name], name


def large_samples() -> list[dict[str, Any]]:
    """Five megabytes: several members or frames of a shard."""
    rng = random.Random(3)
    return [
        {"n": at, "text": " ".join(f"w{rng.randrange(999)}" for _ in range(9_000)), "raw": rng.randbytes(60_000)}
        for at in range(50)
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("level", [None, 1, 6])
def test_squirrel_core_reads_shards_of_many_members(tmp_path: Path, level: int | None) -> None:
    open_store(tmp_path, driver="squirrel", level=level).set(large_samples(), "large")
    theirs = library("squirrel", tmp_path, "dump", str(tmp_path), "msgpack")
    assert theirs["large"] == [through_json(describe(sample)) for sample in large_samples()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("compression", ["none", "zstd", "gz", "gz:1", "zstd:9", "bz2", "br:1", "snappy"])
def test_mosaicml_streaming_reads_what_was_converted(tmp_path: Path, compression: str) -> None:
    source = open_store(tmp_path / "s", driver="squirrel")
    source.set(large_samples(), "train/a")
    source.set(large_samples()[:3], "train/b")
    target = open_store(tmp_path / "t", driver="streaming", compression=compression)
    report = convert_all(source.driver, target.driver, jobs=2)
    assert report.failed == {}
    theirs = library("streaming", tmp_path, "dump", str(tmp_path / "t"), "none")
    expected = [*large_samples(), *large_samples()[:3]]
    assert theirs["train"] == [
        {name: through_json(describe(value)) for name, value in sample.items()} for sample in expected
    ]


@pytest.mark.timeout(300)
def test_squirrel_core_reads_what_was_converted_from_mosaicml_streaming(tmp_path: Path) -> None:
    source = open_store(HERE.parent / "data/streaming/mds_zstd_hash_splits/data")
    target = open_store(tmp_path, driver="squirrel")
    assert convert_all(source.driver, target.driver, jobs=2).failed == {}
    theirs = library("squirrel", tmp_path, "dump", str(tmp_path), "msgpack")
    for key, samples in theirs.items():
        assert samples == [through_json(describe(sample)) for sample in target.get(key)]


Files = list[tuple[bytes, Source]]


def files_of(driver: Any, entry: Any) -> tuple[Base, Files]:
    """All files of a stored shard, as they are."""
    shard = driver.load(entry, lambda _: None)
    base = Base(shard, table_building.build(shard, "png"), "png")
    table = base.table
    return base, [(table.name(at), Stored(table.sample_of(at), at)) for at in range(table.files)]


def written_again(base: Base, files: Files) -> Files:
    """The same as somebody would copy them."""
    made: Files = []
    for name, source in files:
        assert isinstance(source, Stored)
        data = base.content(source.file)
        made.append((name, Changed(lambda data=data: data, len(data))))
    return made


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("compression", "hashes"),
    [
        *(("none", "sha1,xxh64"), ("zstd:7", "xxh3_64"), ("gz", "none")),
        *(("bz2:1", "sha512"), ("br:3", "xxh64"), ("snappy", "md5,sha1")),
    ],
)
def test_mosaicml_streaming_reads_the_shards_that_we_add_and_change(
    tmp_path: Path, compression: str, hashes: str
) -> None:
    theirs = library("streaming", tmp_path, str(tmp_path / "set"), compression, hashes)
    driver = open_store(tmp_path / "set").driver
    entries = [entry for entry in driver.entries() if entry.key.startswith("train/")]
    # a key that is a copy of another, from its files alone
    base, files = files_of(driver, entries[0])
    driver.write_records(Key("train/zz"), seal(written_again(base, files)).records(), base=None)
    # one changed text in a shard in the middle
    base, files = files_of(driver, entries[1])
    name, source = next(file for file in files if file[0].endswith(b".json"))
    assert isinstance(source, Stored)
    document = json.loads(base.content(source.file))
    document["text"] = "changed ✓"
    data = json.dumps(document).encode()
    edited: Files = [(old, Changed(lambda: data, len(data)) if old == name else kept) for old, kept in files]
    driver.write_records(entries[1].key, seal(edited, base).records(), base=entries[1])
    # and a split of its own, whose columns nobody declared
    driver.write_records(Key("new/shard.00000"), [Value({"a": 1, "b": b"x", "c": [1, "é"]}, "0")], base=None)

    now = library("streaming", tmp_path, "dump", str(tmp_path / "set"), "none")
    if hashes != "none":
        shutil.rmtree(tmp_path / "set" / "new")  # has no hashes
        checked = library("streaming", tmp_path, "dump", str(tmp_path / "set"), hashes.split(",")[0])
        assert checked == {split: now[split] for split in ("train", "val")}
    first = entries[0].samples or 0
    theirs["train"][first]["text"] = describe("changed ✓")
    expected = {**theirs, "train": [*theirs["train"], *theirs["train"][:first]]}
    expected["new"] = [{"a": describe(1), "b": describe(b"x"), "c": describe([1, "é"])}]
    assert now == through_json(expected)


ROWS = [
    *(("json", "none", "sha1,xxh64"), ("json", "br", "none"), ("csv", "gz", "md5"), ("csv", "snappy", "xxh3_128")),
    *(("tsv", "bz2:3", "none"), ("tsv", "zstd:9", "sha256"), ("xsv", "none", "none"), ("xsv", "zstd", "blake2s")),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("form", "compression", "hashes"), ROWS)
def test_mosaicml_streaming_and_we_read_each_others_rows(
    tmp_path: Path, form: str, compression: str, hashes: str
) -> None:
    theirs = library("streaming", tmp_path, "rows", str(tmp_path / "set"), form, compression, hashes)
    demanded = None if hashes == "none" else hashes.split(",")[0]
    store = open_store(tmp_path / "set", validate_hash=demanded)
    assert len(store) > 3, "the set should have several shards"
    mine: dict[str, list[Any]] = {"train": [], "val": []}
    for key in store:
        mine[key.partition("/")[0]] += store.get(key)
    described = {split: [described_row(sample) for sample in samples] for split, samples in mine.items()}
    assert described == theirs
    # a key behind the last one, and a changed one with the rows in another order
    store.set(mine["train"], "train/new")
    first = list(store.get(store.keys()[0]))
    store.set(first[::-1], store.keys()[0])
    now = library("streaming", tmp_path, "dump", str(tmp_path / "set"), demanded or "none")
    count = len(first)
    train = [*theirs["train"][:count][::-1], *theirs["train"][count:], *theirs["train"]]
    assert now == {**theirs, "train": train}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("form", "compression"), [("json", "none"), ("csv", "zstd:3"), ("tsv", "snappy"), ("xsv:||", "br")]
)
def test_mosaicml_streaming_reads_rows_of_a_data_set_that_we_made(tmp_path: Path, form: str, compression: str) -> None:
    samples = [{"a": at, "b": f"täxt {at}", "c": at / 3} for at in range(50)]
    store = open_store(tmp_path / "set", driver="streaming", format=form, compression=compression, size_limit="1kb")
    store.set(samples, "train/shard.00000")
    assert len(store) > 1
    theirs = library("streaming", tmp_path, "dump", str(tmp_path / "set"), "none")
    assert theirs == {"train": [described_row(sample) for sample in samples]}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["json", "csv", "tsv", "xsv: | "])
def test_mosaicml_streaming_reads_rows_that_were_converted(tmp_path: Path, form: str) -> None:
    source = open_store(tmp_path / "s", driver="squirrel-jsonl")
    samples = [{"a": 10**20 + at, "b": f'täxt "{at}"', "c": at / 3 if at % 2 else at} for at in range(50)]
    source.set(samples[:30], "train/a")
    source.set(samples[30:], "train/b")
    target = open_store(tmp_path / "t", driver="streaming", format=form, compression="gz")
    assert convert_all(source.driver, target.driver, jobs=2).failed == {}
    theirs = library("streaming", tmp_path, "dump", str(tmp_path / "t"), "none")
    expected = [{**sample, "c": float(sample["c"])} for sample in samples]  # a column of floats, as is told
    assert theirs == {"train": [described_row(sample) for sample in expected]}


def described_row(sample: dict[str, Any]) -> Any:
    return {name: through_json(describe(value)) for name, value in sample.items()}


CASES = sorted(str(path / "data") for path in (HERE.parent / "data" / "streaming").iterdir())


def all_readers(folder: str) -> dict[str, FileReader]:
    """By split and number."""
    found = {}
    for index_file in sorted(Path(folder).rglob("index.json")):
        split = str(index_file.parent.relative_to(folder)).removeprefix(".")
        found |= {f"{split}:{at}": reader for at, reader in enumerate(readers(folder, split))}
    return found


@pytest.mark.timeout(300)
def test_hashes_and_compressions_are_the_librarys(tmp_path: Path) -> None:
    levelled = {f"{name}:{level}" for name, levels in LEVELS.items() for level in levels}
    theirs = library("streaming", tmp_path, "words")
    assert theirs == {"hashes": sorted(HASHES), "compressions": sorted({*LEVELS, *levelled})}


@pytest.mark.timeout(300)
def test_readers_have_the_librarys_sizes(tmp_path: Path) -> None:
    for folder, theirs in library("streaming", tmp_path, "sizes", *CASES).items():
        mine = {
            name: {
                "size": reader.size,
                "len": len(reader),
                "raw": reader.get_raw_size(),
                "zip": reader.get_zip_size(),
                "max": reader.get_max_size(),
                "persistent": [reader.get_persistent_size(keep) for keep in (False, True)],
                "size_limit": reader.size_limit,
            }
            for name, reader in all_readers(folder).items()
        }
        assert mine == theirs


@pytest.mark.timeout(300)
def test_readers_say_what_the_library_says_is_present_and_delete_nothing(tmp_path: Path) -> None:
    """In each state that files can be in. Where the library deletes what it cannot do without (a raw shard whose
    compressed form is missing), or does not count what could be read, the bytes that are there are told."""
    states = 0
    for folder, answers in library("streaming", tmp_path, "present", *CASES).items():
        mine = all_readers(folder)
        before = {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
        for state, theirs in answers.items():
            split, at, chosen, keep = json.loads(state)
            reader = mine[f"{split}:{at}"]
            size = reader.set_up_local({os.path.join(folder, split, name) for name in chosen}, keep)
            raw = [pair[0].basename in chosen for pair in reader.file_pairs]
            zipped = [pair[1] is not None and pair[1].basename in chosen for pair in reader.file_pairs]
            if theirs == 0 and all(one or other for one, other in zip(raw, zipped, strict=True)):
                assert all(raw) or not all(zipped), state
                assert size > 0, state
            else:
                assert size == theirs, state
            states += 1
        assert {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()} == before
    assert states > 100


def shardfs(*words: str | Path, home: Path) -> str:
    """Run the real program; what it says on standard error."""
    environment = {**os.environ, "XDG_STATE_HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    command = [sys.executable, "-m", "shardfs", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stderr
    return done.stderr


def tool(*words: str | Path) -> None:
    subprocess.run([*map(str, words)], check=True, timeout=60)


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.environ.get("SHARDFS_NO_FUSE") == "1", reason="SHARDFS_NO_FUSE=1")
@pytest.mark.parametrize(("compression", "hashes"), [("none", "sha1,xxh64"), ("zstd:7", "xxh3_64")])
def test_mosaicml_streaming_reads_what_a_mount_has_stored(tmp_path: Path, compression: str, hashes: str) -> None:
    """What it opens then, and what it had open before: the old versions, whose files gc takes only later."""
    folder, path, chosen = tmp_path / "set", tmp_path / "mnt", hashes.split(",")[0]
    theirs = library("streaming", tmp_path, str(folder), compression, hashes)["train"]
    keys = [key for key in open_store(folder) if key.startswith("train/")]
    sizes = [len(open_store(folder).get(key)) for key in keys]
    command = [os.environ["SHARDFS_INTEROP_STREAMING"], str(HERE / "streaming_side.py"), "hold", str(folder), chosen]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "TMPDIR": str(tmp_path)}
    held = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == "opened\n"
        shardfs("mount", "--rw", "--size-limit", "100kb", folder, path, home=tmp_path / "home")
        second, last, new = path / keys[1], path / keys[-1], path / "train/zz"
        tool("sed", "-i", "s/sample/changed/", *second.glob("*.json"))
        for file in list((path / keys[0]).glob("000000.*")):  # one more sample in the last key
            tool("cp", file, last / file.name.replace("000000", f"{sum(sizes):06d}"))
        tool("cp", "-r", path / keys[0], path / "train/zz.tmp")
        tool("mv", "-T", path / "train/zz.tmp", new)
        assert len(list(new.glob("*.json"))) > 0
        said = shardfs("umount", path, home=tmp_path / "home")
        assert said == ""
        output, _ = held.communicate("go on\n", timeout=120)
    finally:
        held.kill()
        held.wait()
        if os.path.ismount(path):
            subprocess.run(["fusermount3", "-u", str(path)], check=False)
    texts = [sample["text"] for sample in theirs]
    for seen in json.loads(output[output.index("{") :])["texts"]:
        assert [describe(text) for text in seen] == texts, "who had it open sees what was there"
    expected = [dict(sample) for sample in theirs]
    for at in range(sizes[0], sizes[0] + sizes[1]):
        expected[at]["text"] = describe(f"changed {at} ✓")
    expected += [theirs[0], *theirs[: sizes[0]]]
    assert library("streaming", tmp_path, "dump", str(folder), chosen)["train"] == through_json(expected)
    before = len(list(folder.rglob("shard.*")))
    shardfs("gc", folder, "--older-than", "0", "--yes", home=tmp_path / "home")
    assert len(list(folder.rglob("shard.*"))) < before
    assert library("streaming", tmp_path, "dump", str(folder), chosen)["train"] == through_json(expected)


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.environ.get("SHARDFS_NO_FUSE") == "1", reason="SHARDFS_NO_FUSE=1")
def test_mosaicml_streaming_reads_a_data_set_that_was_made_through_a_mount(tmp_path: Path) -> None:
    folder, path, home = tmp_path / "set", tmp_path / "mnt", tmp_path / "home"
    folder.mkdir()
    shardfs("mount", "--rw", "--driver", "streaming", "-o", "size_limit=2kb", folder, path, home=home)
    try:
        for split in ("train", "val"):
            (path / split / "shard.00000").mkdir(parents=True)
            for number in range(20):
                document = {"n": number, "text": f"é{number}", "parts": [number, None], "ratio": number / 4}
                (path / split / f"shard.00000/{number:06d}.json").write_text(json.dumps(document))
                (path / split / f"shard.00000/{number:06d}.raw.bin").write_bytes(bytes([number]) * 200)
    finally:
        shardfs("umount", path, home=home)
    expected = [
        {"n": n, "text": f"é{n}", "parts": [n, None], "ratio": np.float64(n / 4), "raw": bytes([n]) * 200}
        for n in range(20)
    ]
    described = [{name: describe(value) for name, value in sample.items()} for sample in expected]
    found = library("streaming", tmp_path, "dump", str(folder), "none")
    assert found == through_json({"train": described, "val": described})
    assert len(list((folder / "train").glob("shard.*.mds"))) > 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("form", ["msgpack", "jsonl"])
def test_squirrel_core_reads_what_we_seal(tmp_path: Path, form: str) -> None:
    before = library("squirrel", tmp_path, "write", str(tmp_path), form)["theirs"]
    driver = open_store(tmp_path).driver
    entry = driver.entry(Key("theirs"))
    base, files = files_of(driver, entry)
    added: Files = [(base.table.stem(0) + b".added.txt", Changed(lambda: b"text", 4))]
    driver.write_records(Key("theirs"), seal([*files, *added], base).records(), base=entry)
    after = library("squirrel", tmp_path, "dump", str(tmp_path), form)["theirs"]
    before[0][1].append([["str", "added"], ["str", "text"]])
    assert after == before


def as_library(column: str, value: Any) -> Any:
    """jpeg and png are bytes from shardfs and images from the library."""
    if column in ("jpg", "png"):
        return opened(value)
    return [opened(item) for item in value] if column in ("jpgs", "pngs") else value


@pytest.mark.timeout(300)
def test_superduper_and_we_read_each_other(tmp_path: Path) -> None:
    theirs = library("superduper", tmp_path, "write", str(tmp_path))
    store = open_store(f"superduper+sqlite://{tmp_path}/db.sqlite?artifacts={tmp_path}/artifacts")
    assert store.keys() == ["docs"]
    assert documents_of(store) == theirs
    row = next(superduper_side.rows(tmp_path / "source2"))
    insert(
        store,
        "docs",
        row
        | {
            "id": "ours",
            "art": artifact(row["art"]),
            "lazy": lazy_artifact(row["lazy"]),
            "enc": pickle.dumps(row["enc"], 4),
            "f": file(row["f"]),
            "d": file(row["d"]),
            "fd": {name: file(path) for name, path in row["fd"].items()},
        },
    )
    again = library("superduper", tmp_path, "dump", str(tmp_path))
    assert again == documents_of(store)
    assert {**again["ours"], "id": 0} == {**theirs["doc0"], "id": 0}, "what we wrote reads as what the library wrote"
    assert [one.name for one in orphans(store)] == []


@pytest.mark.timeout(300)
def test_superduper_0_3_and_we_read_each_other(tmp_path: Path) -> None:
    theirs = library("superduper3", tmp_path, "write", str(tmp_path))
    store = open_store(f"superduper+sqlite://{tmp_path}/db.sqlite?artifacts={tmp_path}/artifacts")
    assert documents_of(store, COLUMNS) == theirs
    row = next(superduper3_side.rows(tmp_path / "source2"))
    made = {"id": "ours", "x": artifact(row["x"]), "lazy": lazy_artifact(row["lazy"])}
    insert(store, "docs", row | made | {"f": file(row["f"]), "d": file(row["d"])})
    again = library("superduper3", tmp_path, "dump", str(tmp_path))
    assert again == documents_of(store, COLUMNS)
    assert {**again["ours"], "id": 0} == {**theirs["doc0"], "id": 0}, "what we wrote reads as what the library wrote"
    assert [one.name for one in orphans(store)] == []


@pytest.mark.timeout(300)
def test_documents_that_superduper_0_3_keeps_in_mongodb(tmp_path: Path) -> None:
    """The library's own documents; mongomock stands in for the server on both sides."""
    theirs = library("superduper3", tmp_path, "mongo", str(tmp_path))
    database = mongomock.MongoClient().test
    for path in tmp_path.glob("*.bson"):
        documents = bson.decode_all(path.read_bytes())
        if documents:
            database[path.stem].insert_many(documents)
    driver = SuperduperDriver(LocalStorage(tmp_path / "artifacts"), tables=MongoTables(database))
    store = Store("superduper+mongodb://test", driver)
    assert store.keys() == ["docs"]
    assert documents_of(store, COLUMNS) == theirs
    assert [one.name for one in orphans(store)] == []


COLUMNS = ("id", "n", "s", *superduper3_side.TYPES)


def documents_of(store: Store, columns: Iterable[str] = tuple(superduper_side.FIELDS)) -> dict[str, Any]:
    """All documents as the library's own side describes its own."""
    documents = [document.unpack() for document in store.get("docs")]
    return {
        row["id"]: through_json({name: superduper_side.described(row[name]) for name in columns}) for row in documents
    }
