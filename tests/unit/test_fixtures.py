"""The data of tests/data and its manifests: the files that they speak of, what was put in, and who looks at what."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs.opening import open_store
from tests.conformance import manifests, superduper_stores

DATA = Path(__file__).parents[1] / "data"
ROOT = DATA.parents[1]
CASES = sorted(str(path.parent.relative_to(DATA)) for path in DATA.glob("*/*/manifest.json"))


def described(case: str) -> dict[str, tuple[int | None, str, str]]:
    """Each file that a manifest speaks of, by its path in the case: bytes, name of the hash, hash."""
    manifest = manifests.load_manifest(DATA / case)
    system = case.partition("/")[0]
    if system == "squirrel":
        return {
            shard["file"]: (shard["compressed_len"], "sha256", shard["compressed_sha256"])
            for shard in manifest["shards"].values()
        }
    if system == "streaming":
        return {
            str(Path("data", split, name)): (said["bytes"], "sha256", said["sha256"])
            for split, part in manifest["splits"].items()
            for name, said in part["files"].items()
        }
    if system == "mltraq":
        store = manifest["datastore"]
        return {
            f"{store}/{name}": (said["len"], "sha256", said["sha256"])
            for name, said in manifest["datastore_files"].items()
        }
    # blobs that no row refers to, with code of the library in them, are left out of the data
    needed = {reference["ref"].rpartition(":")[2] for reference in manifest["references"]}
    return {
        f"artifacts/{name}": (said.get("bytes"), "sha1", said["sha1"])
        for name, said in manifest["artifact_tree"].items()
        if "sha1" in said and (name.partition("/")[0] in needed or (DATA / case / "artifacts" / name).exists())
    }


@pytest.mark.parametrize("case", CASES)
def test_each_file_is_the_one_that_its_manifest_speaks_of(case: str) -> None:
    told = described(case)
    for name, (length, kind, digest) in told.items():
        data = (DATA / case / name).read_bytes()
        assert hashlib.new(kind, data).hexdigest() == digest, name
        assert length in (None, len(data)), name
    folders = {"squirrel": "store", "streaming": "data", "mltraq": "mltraq.datastore", "superduper": "artifacts"}
    folder = DATA / case / folders[case.partition("/")[0]]
    there = {str(path.relative_to(DATA / case)) for path in folder.rglob("*") if path.is_file()}
    assert there == set(told)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("squirrel/")])
def test_squirrels_raw_bytes_are_as_many_as_the_manifest_says(case: str) -> None:
    driver = open_store(DATA / case / "store").driver
    for key, shard in manifests.load_manifest(DATA / case)["shards"].items():
        if "decompressed_len" in shard and shard.get("expect") != "EIO":
            assert len(driver.load(driver.entry(key), lambda _: None).raw) == shard["decompressed_len"]


WITH_TRUTH = [
    case for case in superduper_stores.CASES if "truth" in manifests.load_manifest(DATA / "superduper" / case)
]


@pytest.mark.parametrize("case", WITH_TRUTH)
def test_documents_are_what_was_inserted(case: str) -> None:
    """Not only what the library makes of them again. In 0.10 all pictures of one class have one id, and the last one's
    bytes: that column is what the store has, and not what was put in."""
    folder = DATA / "superduper" / case
    manifest = manifests.load_manifest(folder)
    (table,) = open_store(superduper_stores.url_of(folder)).keys()
    documents = open_store(superduper_stores.url_of(folder)).get(table)
    checked = 0
    for document, truth in zip(documents, manifest["truth"], strict=True):
        plain = document.unpack()
        for column, want in truth.items():
            if column == "img" and case == "0.10.0":
                continue
            assert_inserted(plain[column], want, column)
            checked += 1
    assert checked > 20


def assert_inserted(got: Any, want: Any, column: str) -> None:
    if not isinstance(want, dict) or column == "js":
        assert got == want, column
    elif "pixels_sha256" in want:
        manifests.check_image(got, want, column)
    elif "shape" in want:
        data = got.tobytes() if isinstance(got, np.ndarray) else got
        assert hashlib.sha256(data).hexdigest() == want["sha256"], column
    elif "json" in want or "value" in want:
        assert (list(got) if isinstance(got, tuple) else got) == want.get("json", want.get("value")), column
    elif "source" in want:
        assert Path(got).name == Path(want["source"]).name, column
        if "sha256" in want:
            assert hashlib.sha256(Path(got).read_bytes()).hexdigest() == want["sha256"], column
    else:
        assert {name: Path(path).name for name, path in got.items()} == {
            name: Path(path).name for name, path in want.items()
        }, column


def test_the_page_says_who_looks_at_which_data() -> None:
    page = (DATA / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    named = {pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row[0])}
    for case in CASES:
        assert named & {case, f"{case.partition('/')[0]}/*"}, case
    tests = {word for row in rows for word in re.findall(r"`(tests/[^`]+)`", row[2])}
    assert len(tests) > 15
    for test in tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), test
        assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test
