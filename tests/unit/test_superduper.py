"""Superduper in Python: documents and artifacts, writing, what nothing refers to, MongoDB's documents, bad settings."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mongomock
import numpy as np
import pytest

from shardfs import open_store, values
from shardfs.drivers.superduper import SuperduperDriver
from shardfs.drivers.superduper_mongo import MongoTables
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    KeyExistsError,
    MissingExtraError,
    MissingKeyError,
    NotWritableError,
    StaleShardError,
    StorageError,
)
from shardfs.model import Key
from shardfs.storage.local import LocalStorage
from shardfs.store import Store
from shardfs.superduper import EMPTY, Artifact, FileArtifact, artifact, file, insert, lazy_artifact, orphans, put
from tests.conformance import manifests
from tests.conformance.superduper_stores import CASES, DATA, Made, Opens, table_of, url_of

TEST = "866cf8526595d3620d6045172fb16d1efefac4b1"
"""SHA-1 of pickle.dumps('This is a test'): the id in Superduper's own documents."""


@pytest.fixture
def old(tmp_path: Path) -> Store:
    """A store of 0.3.0 that may be written to."""
    shutil.copytree(DATA / "0.3.0", tmp_path / "old")
    return open_store(url_of(tmp_path / "old"))


@pytest.fixture
def new(tmp_path: Path) -> Store:
    """The same of 0.10.0."""
    shutil.copytree(DATA / "0.10.0", tmp_path / "new")
    return open_store(url_of(tmp_path / "new"))


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_documents_are_what_the_library_decodes(case: str) -> None:
    manifest = manifests.load_manifest(DATA / case)
    store = open_store(url_of(DATA / case))
    table = table_of(manifest)
    assert store.keys() == [table]
    documents = store.get(table)
    assert len(documents) == len(manifest["decoded_by_library"])
    for document, expected in zip(documents, manifest["decoded_by_library"], strict=True):
        plain = document.unpack()
        assert {*plain} - {"_fold"} == set(expected)
        for column, want in expected.items():
            _check(plain[column], want, column)


def _check(got: Any, want: dict[str, Any], column: str) -> None:
    kind = want["type"]
    if kind in ("file", "directory"):
        assert got.endswith(want["path"].removeprefix("./"))
        if kind == "file":
            assert hashlib.sha256(Path(got).read_bytes()).hexdigest() == want["sha256"]
        else:
            assert {
                str(path.relative_to(got)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in Path(got).rglob("*")
                if path.is_file()
            } == want["files"]
    elif kind == "filedict":
        for name, item in want["items"].items():
            _check(got[name], item, column)
    elif kind == "ndarray":
        data = got.tobytes() if isinstance(got, np.ndarray) else got
        assert hashlib.sha256(data).hexdigest() == want["sha256"]
    elif kind.startswith("PIL."):
        assert got[:4] == b"\x89PNG"
    else:
        assert type(got).__name__ == kind, column
        assert (list(got) if isinstance(got, tuple) else got) == want.get("value", want.get("json")), column


def test_the_document_of_the_manual() -> None:
    document = open_store(url_of(DATA / "0.3.0")).get("my_collection")[0]
    x = document["art"]
    assert isinstance(x, Artifact)
    assert (x.id, x.x) == (TEST, EMPTY)
    assert "x=<EMPTY>" in repr(x)
    assert x.path == DATA / "0.3.0" / "artifacts" / TEST
    assert x.unpack() == "This is a test"
    assert x.x == "This is a test"
    assert x.read() == pickle.dumps("This is a test", 4)
    assert document.unpack()["art"] == "This is a test"
    assert isinstance(document["d"], FileArtifact)
    assert document["d"].unpack().endswith("/artifacts/b8be77d2b4255f9e38d097db5ed71df9ab25ab04/test_copy")
    assert sorted(document["d"].files) == ["test_copy/a.txt", "test_copy/sub/b.bin", "test_copy/sub/deep/c.json"]


def test_getting_documents_opens_no_blob_unless_they_are_to_come_with_what_they_hold(tmp_path: Path) -> None:
    shutil.copytree(DATA / "0.10.0", tmp_path / "s")
    opens = Opens(tmp_path / "s" / "artifacts")
    try:
        document = open_store(url_of(tmp_path / "s")).get("my_collection")[0]
        assert opens.files() == []
        document["art"].unpack()
        assert set(opens.files()) == {document["art"].id}
        eager = open_store(url_of(tmp_path / "s"), encodable="artifact").get("my_collection")
        assert opens.files() == []
        assert eager[0]["art"] == "This is a test"
        assert opens.files() != []
    finally:
        opens.close()


class _Bad:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/shardfs-was-here",)


def test_a_pickle_of_more_than_plain_values_stays_its_bytes_and_is_never_run(tmp_path: Path) -> None:
    made = Made(tmp_path, {"id": "str", "x": "pickle", "y": "my.Type", "z": "dillencoder"})
    data = pickle.dumps({"a": _Bad()})
    made.row(id="r", x=made.blob("b", data), y=made.blob("c", data), z=None)
    document = open_store(made.url).get("t")[0].unpack()
    assert isinstance(document["x"], values.Pickle)
    assert document["x"].data == data
    assert document["y"] == data
    assert not os.path.exists("/tmp/shardfs-was-here")


@pytest.mark.parametrize(
    "value",
    [None, True, 1 << 90, 1.5, "é\udcff", b"\x00\xff", [1, [2, (3, {4})]], {"a": {"b": []}, (1, 2): frozenset({3})}],
)
def test_plain_values_come_back_as_they_were(tmp_path: Path, value: Any) -> None:
    made = Made(tmp_path, {"id": "str", "x": "pickle"})
    insert(store := open_store(made.url), "t", {"id": "r", "x": artifact(value)})
    assert store.get("t")[0]["x"].unpack() == value


def test_an_artifact_that_was_changed_or_damaged_is_never_other_bytes(old: Store) -> None:
    document = old.get("my_collection")[0]
    path = document["art"].path
    data = path.read_bytes()
    path.write_bytes(data[:-3] + b"X" + data[-2:])
    with pytest.raises(StaleShardError):
        document["art"].unpack()
    with pytest.raises(DamagedShardError, match="SHA-1"):
        old.get("my_collection")[0]["art"].unpack()
    path.unlink()
    with pytest.raises(StaleShardError):
        document["art"].read()
    assert old.get("my_collection")[0]["art"] == f"&:blob:{TEST}", "what is not there stays the text that names it"


# --- writing ----------------------------------------------------------------------------------------------------------


def test_artifacts_are_named_by_their_content_and_stored_once(old: Store, new: Store) -> None:
    assert put(old, artifact("This is a test")) == f"&:blob:{TEST}"
    assert isinstance(new.driver, SuperduperDriver)
    reference = put(new, b"some bytes")
    assert reference == f"&:blob:{hashlib.sha256(b'some bytes').hexdigest()}"
    path = new.driver.storage.root / reference.rpartition(":")[2]
    assert path.stat().st_mode & 0o777 == 0o777
    before = path.stat()
    assert put(new, b"some bytes") == reference
    assert path.stat().st_ino == before.st_ino
    path.write_bytes(b"damaged")
    with pytest.raises(DamagedShardError):
        put(new, b"some bytes")
    assert path.read_bytes() == b"damaged", "what is there is never written over"


def test_files_and_directories_are_copied_whole(old: Store, new: Store, tmp_path: Path) -> None:
    folder = tmp_path / "my.folder"
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "a").write_bytes(b"a")
    os.symlink(folder / "a", folder / "sub" / "link")
    for store, middle in ((old, "my__folder:"), (new, "")):
        assert isinstance(store.driver, SuperduperDriver)
        reference = put(store, file(folder))
        identifier = reference.rpartition(":")[2]
        assert reference == f"&:file:{middle}{identifier}"
        root = store.driver.storage.root
        assert os.listdir(root / identifier) == ["my.folder"]
        assert (root / identifier / "my.folder" / "sub" / "link").read_bytes() == b"a"
        assert not (root / identifier / "my.folder" / "sub" / "link").is_symlink()
        assert (root / identifier / "my.folder" / "sub" / "empty").is_dir()
        assert put(store, file(folder)) == reference
        (folder / "a").write_bytes(b"other")
        assert put(store, file(folder)) != reference
        (folder / "a").write_bytes(b"a")
        assert [name for name in os.listdir(root) if name.startswith(".")] == []
    (tmp_path / "my__file").write_bytes(b"1")
    with pytest.raises(BadSettingError, match="__"):
        put(old, file(tmp_path / "my__file"))
    assert put(new, file(tmp_path / "my__file"))
    with pytest.raises(StorageError):
        put(new, file(tmp_path / "missing"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BadSettingError):
        put(new, file(tmp_path / "fifo"))


def test_rows_refer_to_what_was_stored_before_them(old: Store, new: Store, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    insert(
        new,
        "my_collection",
        {
            "id": "mine",
            "n": np.int64(7),
            "art": artifact("This is a test"),
            "lazy": lazy_artifact([1, 2]),
            "arr": array,
            "js": {"a": [1, None]},
            "f": file(tmp_path / "w.bin"),
            "fd": {"k": file(tmp_path / "w.bin")},
            "enc": pickle.dumps((1, "t"), 4),
        },
    )
    document = new.get("my_collection")[-1].unpack()
    assert np.array_equal(document.pop("arr"), array)
    assert Path(document["f"]).read_bytes() == b"weights"
    assert document.pop("fd") == {"k": document.pop("f")}
    assert {name: value for name, value in document.items() if value is not None} == {
        "id": "mine",
        "n": 7,
        "art": "This is a test",
        "lazy": [1, 2],
        "js": {"a": [1, None]},
        "enc": (1, "t"),
    }
    insert(old, "my_collection", {"id": "mine", "art": artifact("This is a test"), "arr": array.tobytes()})
    document = old.get("my_collection")[-1]
    assert document["_fold"] in ("train", "valid")
    assert document["art"].id == TEST
    assert document["arr"] == array.tobytes()


def test_rows_that_do_not_fit_are_refused_and_nothing_is_added(new: Store) -> None:
    before = len(new.get("my_collection"))
    for document, error in (
        ({"id": "doc0"}, KeyExistsError),
        ({"n": 1}, BadSettingError),
        ({"id": "x", "no_such": 1}, BadSettingError),
        ({"id": "x", "arr": np.zeros((3, 3), np.float32)}, BadSettingError),
        ({"id": "x", "js": object()}, BadSettingError),
        ({"id": "x", "art": new.get("my_collection")[0]["art"]}, BadSettingError),
    ):
        with pytest.raises(error):
            insert(new, "my_collection", document)
    with pytest.raises(MissingKeyError):
        insert(new, "nothing", {"id": "x"})
    with pytest.raises(BadSettingError, match="plain"):
        artifact(object())
    assert len(new.get("my_collection")) == before
    for call in (lambda: new.set([{"id": 1}], "my_collection"), lambda: new.delete("my_collection")):
        with pytest.raises(NotWritableError):
            call()


def test_references_to_files_are_what_each_release_reads(tmp_path: Path) -> None:
    (tmp_path / "my__w.bin").write_bytes(b"w")
    for case in ("0.4.0", "0.5.0"):
        shutil.copytree(DATA / case, tmp_path / case)
        store = open_store(url_of(tmp_path / case))
        reference = put(store, file(tmp_path / "my__w.bin"))
        assert reference.count(":") == 2, "no name in it, from 0.4 on"
        insert(store, "docs", {"id": "mine", "f": reference, "x": artifact("This is a test")})
        document = store.get("docs")[-1]
        assert document["f"].files == ["my__w.bin"]
        assert document["x"].id == TEST


def test_a_writer_that_is_killed_leaves_no_half_artifact(tmp_path: Path) -> None:
    """Killed at each of its system calls that could be seen: what is there under a name is whole."""
    made = Made(tmp_path / "s", {"id": "str"})
    folder = tmp_path / "box"
    folder.mkdir()
    (folder / "a").write_bytes(b"a" * 100_000)
    program = (
        "import sys; from shardfs import open_store; from shardfs.superduper import put, file\n"
        "import os, signal\n"
        "real = os.rename\n"
        "def rename(*args, **named):\n"
        "    if sys.argv[3] == 'before': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(*args, **named)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.rename = rename\n"
        "put(open_store(sys.argv[1]), file(sys.argv[2]))\n"
    )
    for when in ("before", "after"):
        done = subprocess.run([sys.executable, "-c", program, made.url, str(folder), when], timeout=60)
        assert done.returncode == -9
        whole = [path for path in made.artifacts.iterdir() if not path.name.startswith(".shardfs-tmp-")]
        assert [len((path / "box" / "a").read_bytes()) for path in whole] == ([] if when == "before" else [100_000])
        left = [one.kind for one in orphans(open_store(made.url))]
        assert left == (["unfinished"] if when == "before" else ["unfinished", "unnamed"])


# --- what nothing refers to -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_orphans_are_what_no_row_and_no_component_names(case: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / case, tmp_path / "s")
    store = open_store(url_of(tmp_path / "s"))
    manifest = manifests.load_manifest(DATA / case)
    named = {reference["ref"].rpartition(":")[2] for reference in manifest["references"]}
    known = {one.name for one in orphans(store)}
    assert not known & named
    lost = put(store, b"nobody wants me").rpartition(":")[2]
    (found,) = [one for one in orphans(store) if one.name not in known]
    assert (found.name, found.kind, found.size) == (lost, "unnamed", 15)
    assert isinstance(store.driver, SuperduperDriver)
    column = manifest["references"][0]["path"][2]
    insert(store, table_of(manifest), {"id": "wants", column: f"&:blob:{lost}"})
    assert {one.name for one in orphans(store)} == known
    with pytest.raises(StaleShardError):
        store.driver.discard(found)
    assert (store.driver.storage.root / lost).exists()


def test_gc_lists_orphans_and_removes_them_when_told(new: Store) -> None:
    assert isinstance(new.driver, SuperduperDriver)
    root = new.driver.storage.root
    lost = root / put(new, b"nobody wants me").rpartition(":")[2]
    folder = root / put(new, file(DATA)).rpartition(":")[2]

    def gc(*words: str) -> Any:
        command = [sys.executable, "-m", "shardfs", "gc", new.url, "--json", "--older-than", "0", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    listed = {one["name"]: one for one in gc()["garbage"]}
    assert {lost.name, folder.name} <= set(listed)
    assert listed[lost.name]["reason"] == "no row and no component refers to it"
    assert listed[lost.name]["state"] == "kept"
    gc("--yes")
    assert lost.exists()
    assert folder.exists()
    gc("--yes", "--unnamed")
    assert not lost.exists()
    assert not folder.exists()
    assert gc("--unnamed")["garbage"] == []
    assert len(new.get("my_collection")[0].unpack()["lazy"]) == 100


def test_a_directory_of_artifacts_alone_cannot_tell_what_is_needed() -> None:
    with pytest.raises(BadStoreError, match="database"):
        orphans(open_store(DATA / "0.3.0" / "artifacts", driver="superduper"))


# --- MongoDB's documents ----------------------------------------------------------------------------------------------


@pytest.fixture
def mongo(tmp_path: Path) -> tuple[Store, Any]:
    """Documents as 0.3.0 has them, in mongomock: the code is that for MongoDB, behind the connection."""
    shutil.copytree(DATA / "0.3.0" / "artifacts", tmp_path / "artifacts")
    database = mongomock.MongoClient().test
    database["_objects"].insert_many(
        [
            {
                "type_id": "datatype",
                "identifier": "my-artifact",
                "uuid": "u1",
                "version": 0,
                "dict": {"encodable": "lazy_artifact", "media_type": None, "uuid": "u1"},
            },
            {
                "type_id": "datatype",
                "identifier": "numpy-float32[4x3]",
                "uuid": "u2",
                "version": 0,
                "encodable": "encodable",
                "shape": [4, 3],
            },
            {
                "type_id": "schema",
                "identifier": "schema",
                "uuid": "u3",
                "version": 0,
                "fields": {
                    "id": "?String",
                    "x": "&:component:datatype:my-artifact:u1",
                    "arr": "&:component:datatype:numpy-float32[4x3]:u2",
                },
            },
            {
                "type_id": "table",
                "identifier": "docs",
                "uuid": "u4",
                "version": 0,
                "primary_id": "id",
                "schema": "&:component:schema:schema:u3",
            },
        ]
    )
    database.docs.insert_one(
        {
            "id": "a9a01284",
            "x": f"&:blob:{TEST}",
            "arr": np.arange(12, dtype=np.float32).tobytes(),
            "deep": {
                "list": [{"y": f"&:blob:{TEST}"}],
                "f": "&:file:weights__v1__bin:a38613c636f7dd89ef4a0c4770d8cf3f0ebc508b",
            },
            "_fold": "train",
            "_schema": "schema",
            "_builds": {},
            "_files": {},
            "_blobs": {},
        }
    )
    driver = SuperduperDriver(LocalStorage(tmp_path / "artifacts"), tables=MongoTables(database))
    return Store("superduper+mongodb://test", driver), database


def test_documents_of_mongodb(mongo: tuple[Store, Any]) -> None:
    store, database = mongo
    assert store.keys() == ["docs"]
    document = store.get("docs")[0]
    assert document["x"].unpack() == "This is a test"
    assert document["arr"].shape == (4, 3)
    assert document["deep"]["list"][0]["y"].unpack() == "This is a test"
    assert document["deep"]["f"].unpack().endswith("/weights.v1.bin")
    assert document["_id"] == str(database.docs.find_one()["_id"])
    assert document["_schema"] == "schema"


def test_changes_in_mongodb_are_other_versions(mongo: tuple[Store, Any]) -> None:
    store, database = mongo
    before = store.entry("docs")
    assert store.entry("docs").version == before.version
    insert(store, "docs", {"id": "second", "x": artifact("This is a test"), "deep": {"k": [1]}})
    assert store.entry("docs").version != before.version
    assert [document["id"] for document in store.get("docs")] == ["a9a01284", "second"]
    stored = database.docs.find_one({"id": "second"})
    assert stored["x"] == f"&:blob:{TEST}"
    assert (stored["_schema"], stored["_builds"], stored["_fold"] in ("train", "valid")) == ("schema", {}, True)
    with pytest.raises(KeyExistsError):
        insert(store, "docs", {"id": "second"})
    assert TEST not in {one.name for one in orphans(store)}


def test_release_0_10_in_mongodb(tmp_path: Path) -> None:
    (tmp_path / "0x1").write_bytes(b"\x80\x04N.")
    database = mongomock.MongoClient().test
    database.Table.insert_many(
        [
            {"identifier": "Table", "fields": {}, "path": "superduper.components.table.Table", "version": 0},
            {"identifier": "docs", "fields": {"x": "pickle"}, "primary_id": "pk", "path": None, "version": 0},
        ]
    )
    database.docs.insert_one({"pk": "one", "x": "&:blob:0x1", "js": {"a": ["&:blob:0x1"]}})
    store = Store("x", SuperduperDriver(LocalStorage(tmp_path), tables=MongoTables(database)))
    assert store.keys() == ["docs"]
    document = store.get("docs")[0]
    assert document["x"].unpack() is None
    assert document["js"]["a"][0].id == "0x1"


def test_mongodb_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardfs.config.DATABASE_WAIT", 0.2)
    with pytest.raises(StorageError, match="MongoDB"):
        open_store("superduper+mongodb://127.0.0.1:1/db?artifacts=/tmp")


def test_without_pymongo_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymongo", None)
    with pytest.raises(MissingExtraError, match="shardfs\\[mongodb\\]"):
        open_store("superduper+mongodb://host/db?artifacts=/tmp")


# --- bad settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "error", "said"),
    [
        ("superduper+sqlite:///nowhere/db.sqlite?artifacts=/tmp", BadStoreError, "no SQLite file"),
        (f"superduper+sqlite://{__file__}?artifacts=/tmp", BadStoreError, "is no SQLite file"),
        (f"superduper+sqlite://{DATA}/0.3.0/db.sqlite?artefacts=/tmp", BadSettingError, "artefacts"),
        ("superduper+redis://host/0", BadStoreError, "can be opened"),
        ("superduper+mongodb://host/db", BadSettingError, "artifacts=DIR"),
        ("superduper+mongodb://host/?artifacts=/tmp", BadSettingError, "name one database"),
    ],
)
def test_urls_that_make_no_sense_say_why(url: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        open_store(url)


def test_settings_of_a_store() -> None:
    with pytest.raises(BadSettingError, match="encodable"):
        open_store(DATA / "0.3.0" / "artifacts", driver="superduper", encodable="eager")
    with pytest.raises(BadSettingError, match="it has: encodable"):
        open_store(DATA / "0.3.0" / "artifacts", driver="superduper", tables=1)
    beside = open_store(f"superduper+sqlite://{DATA}/0.3.0/db.sqlite")  # artifacts/ beside it
    assert beside.get("my_collection")[0]["art"].unpack() == "This is a test"
    four = open_store(f"superduper+sqlite:///{DATA}/0.3.0/db.sqlite?artifacts=filesystem://{DATA}/0.3.0/artifacts")
    assert four.get("my_collection")[0]["art"].unpack() == "This is a test"
    with pytest.raises(BadSettingError, match="no store of Superduper"):
        put(open_store(DATA, driver="squirrel"), b"")


def test_passwords_are_in_no_message() -> None:
    for url in ("superduper+mongodb://me:secret@host/db", "superduper+nothing://me:secret@host/db?artifacts=/x"):
        with pytest.raises((BadSettingError, BadStoreError)) as raised:
            open_store(url)
        assert "secret" not in str(raised.value)
        assert "host" in str(raised.value)


def test_a_table_that_cannot_be_read_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    made, other = Made(tmp_path, {"id": "str"}), Made(tmp_path, {"id": "str"}, "other")
    made.row(id="r")
    other.row(id="r")
    store = open_store(made.url)
    assert len(store.get("t")) == len(store.get("other")) == 1
    many = made.artifacts / "many"
    many.mkdir()
    with made.writing() as db:
        db.execute("ALTER TABLE t ADD COLUMN d")
        db.execute("UPDATE t SET d = '&:file:many'")
    (many / "deep").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardfs.config.FOLDER_FILES", 3)
        for number in range(10):
            (many / "deep" / str(number)).touch()
        assert store.keys() == ["t", "other"]
        with pytest.raises(DamagedShardError):
            store.get("t")
        assert len(store.get("other")) == 1
    assert len(store.get("t")) == 1


# --- the command line -------------------------------------------------------------------------------------------------


def shardfs(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shardfs", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def test_ls_cat_and_info_look_into_directories() -> None:
    url = url_of(DATA / "0.10.0")
    assert shardfs("ls", url, "my_collection/doc0.d/test_copy").stdout.split() == ["a.txt", "sub"]
    assert shardfs("ls", url, "my_collection/doc0.d/test_copy/a.txt").stdout == "doc0.d/test_copy/a.txt\n"
    assert shardfs("cat", url, "my_collection/doc0.d/test_copy/a.txt").stdout == "hello\n"
    told = json.loads(shardfs("info", "--json", url, "my_collection/doc0.d/test_copy").stdout)
    assert told == {"path": "my_collection/doc0.d/test_copy", "kind": "dir", "entries": 2}
    told = json.loads(shardfs("info", "--json", url, "my_collection/doc0.d/test_copy/a.txt").stdout)
    assert (told["kind"], told["size"], told["sample"]) == ("file", 6, "doc0")
    failed = shardfs("cat", url, "my_collection/doc0.d")
    assert failed.returncode != 0
    assert failed.stderr == "shardfs: my_collection/doc0.d is a directory\n"


def test_the_index_of_a_store_is_built_and_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = url_of(DATA / "0.10.0")
    assert json.loads(shardfs("index", "--json", url).stdout)["built"] == 1
    assert json.loads(shardfs("index", "--json", url).stdout)["kept"] == 1
    assert json.loads(shardfs("index", "--json", "--check", url).stdout)["differing"] == []


def test_descriptors_are_bounded_for_all_tables_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardfs.config.LINKED_OPEN", 5)
    tables = [Made(tmp_path, {"id": "str", "x": "pickle"}, name) for name in ("a", "b")]
    for made in tables:
        for number in range(20):
            made.row(id=str(number), x=made.blob(f"{made.name}{number}", f"{made.name}{number}".encode()))
    driver = open_store(tables[0].url).driver
    shards = [driver.load(driver.entry(Key(made.name)), lambda _: None) for made in tables]
    before = len(os.listdir("/proc/self/fd"))
    for made, shard in zip(tables, shards, strict=True):
        for number, record in enumerate(shard.records()):
            leaf = record.tree["x"]
            assert bytes(shard.fetch(leaf.offset, leaf.offset + leaf.length)) == f"{made.name}{number}".encode()
            assert bytes(shard.part(leaf.offset, leaf.offset + leaf.length) or b"?") in (
                b"?",
                f"{made.name}{number}".encode(),
            )
            assert len(os.listdir("/proc/self/fd")) <= before + 5
