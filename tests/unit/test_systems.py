"""What docs/SYSTEMS.md says: each name on the page is there, and each example of the systems' documents is a test."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from shardfs import open_store
from shardfs.browse import Browser
from shardfs.commands.arguments import build_parser
from shardfs.opening import driver_options
from shardfs.store import Store
from shardfs.superduper import EMPTY, Artifact, FileArtifact, artifact, file, insert, lazy_artifact
from tests.conformance import superduper_stores

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "SYSTEMS.md").read_text(encoding="utf-8")

MODULES = {
    "Squirrel": ("shardfs", "shardfs.squirrel", "shardfs.iterstream"),
    "Streaming": ("shardfs", "shardfs.streaming", "shardfs.streaming_readers"),
    "mltraq": ("shardfs", "shardfs.mltraq", "shardfs.errors"),
    "Superduper": ("shardfs", "shardfs.superduper"),
    "WebDataset": ("shardfs",),
    "Converting": ("shardfs",),
}

WORDS = {
    "Squirrel": "zst cat info convert",
    "Streaming": "br snappy mds csv json tsv float int str jpeg png pkl off index.json codecs hashes convert",
    "mltraq": "C01 arrow bin npy png tar unsafe_pickle mltraq.datastore datastore a b c url_a url_b",
    "Superduper": "DataType ObjectId __ artifact_store artifacts bin convert dill dtype filedict npy pil_image pkl png"
    " pt shape str torch x pymongo sqlite3 value",
    "WebDataset": "__key__ __url__ a a.b a.b.jpg class cls cls2 count gz id index inx none npy tar tar.gz tar.zst tgz"
    " txt zst json jpg seg.png sync wids",
    "Converting": "gz zst squirrel streaming webdataset __key__ pil json csv tsv",
}
"""What stands in code beside names: formats, columns, file names, words of other programs. Nothing else may."""


def sections() -> dict[str, str]:
    parts = PAGE.split("\n## ")[1:]
    return {part.partition("\n")[0]: part for part in parts}


def spans(section: str) -> Iterator[str]:
    """What stands in code in the text, and in tables but in the column that has the system's own words."""
    for line in section.splitlines():
        if line.startswith("    "):
            continue
        told = line
        if line.startswith("| "):
            told = " | ".join(re.split(r" \| ", line.strip("| "))[1:])
        yield from re.findall(r"`([^`]+)`", told)


def parsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = [one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return dict(action.choices)


def options() -> set[str]:
    return {word for parser in parsers().values() for one in parser._actions for word in one.option_strings}


def has(thing: Any, path: list[str]) -> bool:
    for part in path:
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


def parameters(modules: list[ModuleType]) -> set[str]:
    """Arguments and attributes that calls and classes of these modules have."""
    found = set(dir(Store))
    for driver in ("squirrel", "streaming", "webdataset", "superduper", "mltraq"):
        found |= driver_options(ROOT, driver)
    for module in modules:
        for thing in vars(module).values():
            if inspect.isclass(thing) and thing.__module__.startswith("shardfs"):
                found |= {name for name in dir(thing) if not name.startswith("_")}
                found |= set(inspect.signature(thing.__init__).parameters)
                methods = [method for _, method in inspect.getmembers(thing, inspect.isfunction)]
                found |= {name for method in methods for name in inspect.signature(method).parameters}
                found |= set(re.findall(r"self\.([a-z]\w*)\b", inspect.getsource(thing)))
            elif inspect.isfunction(thing):
                found |= set(inspect.signature(thing).parameters)
    return found


def exists(name: str, modules: list[ModuleType], known: set[str]) -> bool:
    parts = name.split(".")
    if parts[0] == "shardfs":
        for at in range(len(parts), 0, -1):
            try:
                return has(importlib.import_module(".".join(parts[:at])), parts[at:])
            except ImportError:
                continue
    if any(has(module, parts) for module in modules):
        return True
    # `document.unpack`, `store.get`: of whatever class
    return parts[-1] in known or (parts[0] in ("document", "store") and parts[-1] in known | set(dir(Store)))


@pytest.mark.parametrize("section", MODULES)
def test_each_name_on_the_page_is_there(section: str) -> None:
    modules = [importlib.import_module(name) for name in MODULES[section]]
    modules.append(importlib.import_module("shardfs.values"))
    if section == "Superduper":
        modules.append(importlib.import_module("shardfs.drivers.superduper_python"))
    known, allowed = parameters(modules), set(WORDS[section].split())
    checked = 0
    for span in spans(sections()[section]):
        name = re.match(r"([A-Za-z_]\w*(?:\.\w+)*)(?=\(|$)", span)
        if name is not None and name[1] not in allowed:
            assert exists(name[1], modules, known), f"{section}: `{span}`"
            checked += 1
        for word in re.findall(r"(?:^|\s)(--[a-z-]+)", span):
            assert word in options(), f"{section}: `{span}`"
            checked += 1
        command = re.match(r"shardfs ([a-z]+)", span)
        if command is not None:
            assert command[1] in parsers(), f"{section}: `{span}`"
            checked += 1
        if span.startswith("tests/"):
            assert (ROOT / span.partition("::")[0]).exists(), span
            checked += 1
        for option in re.findall(r"[(,] ?([a-z_]+)=", span) if span.startswith("open_store(") else ():
            assert option in known, f"{section}: `{span}`"
            checked += 1
    assert checked > 3


def test_each_example_is_a_test() -> None:
    table = sections()["Examples of the systems' documents"]
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", table)
    assert len(named) == table.count("| `tests/") > 8
    for path, test in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert test in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}, (path, test)


TERMS = {
    "Squirrel": (
        "squirrel.store squirrel.serialization squirrel.driver squirrel.iterstream Store.set Store.get Store.keys shard"
        " SquirrelStore SquirrelSerializer StoreDriver MessagepackSerializer MessagepackDriver"
        " .store key url serializer IterableSource async_map flatten collect join buffer driver"
    ),
    "mltraq": (
        "DataStore DataStoreIO attribute url datastore.url experiment run.fields persist() deleted wiped folder"
        " third-party a b c url_a url_b serialize_write write read read_deserialize delete"
        " relative_path_prefix undefined self_managed numpy.ndarray Series int bytes mltraq.datastore"
    ),
    "Superduper": (
        "encodable artifact lazy_artifact DataType Document superduper( Table Schema mongomock://test filesystem://"
        " artifact_store encoder decoder pickle.dumps pickle.loads identifier db.apply insert_one .execute() find_one"
        " db.databackend.conn.test &:blob: _fold _id _schema _builds _files _blobs iconv unpack LazyArtifact"
        " uuid datatype plugins upstream info shape directory bytes_encoding intermediate_type media_type uri <EMPTY>"
        " test_copy cp"
    ),
    "Streaming": (
        "Reader dirname split compression hashes samples size_limit 100kb decode_sample evict get_item get_max_size"
        " get_persistent_size keep_zip get_raw_size get_sample_data get_zip_size set_up_local"
        " listing safe_keep_zip size"
    ),
}
"""Terms of the systems' documents, by the section that says what stands for them."""


@pytest.mark.parametrize("section", TERMS)
def test_each_term_of_the_documents_is_on_the_page(section: str) -> None:
    text = sections()[section] + sections()["Examples of the systems' documents"]
    assert [term for term in TERMS[section].split() if term not in text] == []


def test_the_libraries_that_were_tested_with_are_those_on_the_page() -> None:
    page = sections()["What was tested with which libraries"]
    known = ("squirrel-core", "mosaicml-streaming", "mltraq", "superduper-framework", "superduper_sql", "webdataset")
    pins = [f"interop-{name}" for name in ("squirrel", "streaming", "mltraq", "superduper", "superduper3")]
    texts = [(ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8") for name in (*pins, "constraints")]
    found = {tuple(line.split("==")) for text in texts for line in text.split() if "==" in line}
    tested = {(name, version) for name, version in found if name in known}
    assert {name for name, _ in tested} == set(known)
    for name, version in tested:
        assert re.search(rf"{name}[^|]* {re.escape(version)}\b", page), (name, version)


# --- examples that have no other place ------------------------------------------------------------------------------


def content(store: Store, path: str) -> bytes:
    return b"".join(Browser(store).read(path))


def test_the_experiment_of_the_datastore_example() -> None:
    """Two DataStores in a run's fields, an array, a Series and an int, as the library has persisted them."""
    store = open_store(f"mltraq+sqlite:///{ROOT}/tests/data/mltraq/basic/exp.db")
    (key,) = [key for key in store.keys() if key == "My Exp-1"]  # noqa: SIM118 a Store is no mapping
    names = [line.name for line in Browser(store).list(key)]
    assert any(re.fullmatch(r"[0-9a-f-]{36}\.ds\.\w+\.npy", name) for name in names), names
    run = next(name.partition(".")[0] for name in names if ".ds." in name)
    assert b'"ds": {' in content(store, f"{key}/{run}.json")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of 0.3.0, the release of the document, in the working directory; its table has `art` where the document
    has `x`."""
    shutil.copytree(superduper_stores.DATA / "0.3.0", tmp_path / "s")
    monkeypatch.chdir(tmp_path / "s")
    return open_store(superduper_stores.url_of(tmp_path / "s"))


def find_one(store: Store, my_id: str) -> Any:
    (found,) = [document for document in store.get("my_collection") if document["id"] == my_id]
    return found


ARTIFACT = "866cf8526595d3620d6045172fb16d1efefac4b1"
"""The document's own."""


def test_superduper_artifact_example(store: Store) -> None:
    my_id = str(uuid.uuid4())
    insert(store, "my_collection", {"id": my_id, "art": artifact("This is a test")})
    eager = open_store(superduper_stores.url_of(Path.cwd()), encodable="artifact")
    r = find_one(eager, my_id)
    assert r["art"] == "This is a test"
    assert r["_fold"] in ("train", "valid")
    with sqlite3.connect("db.sqlite") as db:  # the native query finds the data missing
        (stored,) = db.execute("SELECT art FROM my_collection WHERE id = ?", (my_id,)).fetchone()
    db.close()
    assert stored == f"&:blob:{ARTIFACT}"
    shown = Path("artifacts", ARTIFACT).read_bytes()  # as `iconv` reads it
    assert b"This is a test" in shown
    assert content(store, f"my_collection/{my_id}.art.pkl") == shown


def test_superduper_lazy_artifact_example(store: Store) -> None:
    my_id = str(uuid.uuid4())
    insert(store, "my_collection", {"id": my_id, "lazy": lazy_artifact("This is a test")})
    r = find_one(store, my_id)
    assert isinstance(r["lazy"], Artifact)
    assert r["lazy"].x is EMPTY
    assert repr(r["lazy"].x) == "<EMPTY>"
    assert "x=<EMPTY>" in repr(r)
    r = r.unpack()
    assert r["lazy"] == "This is a test"


def test_superduper_directory_example(store: Store) -> None:
    Path("test/inner").mkdir(parents=True)
    Path("test/a.txt").write_text("a")
    np.save("test/inner/b.npy", np.arange(3))
    shutil.copytree("test", "test_copy")  # cp -r test test_copy
    my_id = str(uuid.uuid4())
    insert(store, "my_collection", {"id": my_id, "d": file("./test_copy")})
    shutil.rmtree("test_copy")
    r = find_one(store, my_id)
    assert isinstance(r["d"], FileArtifact)
    path = r.unpack()["d"]
    assert re.fullmatch(r"(.*/)?artifacts/[0-9a-f]{40}/test_copy", path)
    assert np.load(Path(path, "inner/b.npy")).tolist() == [0, 1, 2]
    assert content(store, f"my_collection/{my_id}.d/test_copy/a.txt") == b"a"
