"""mltraq stores: names of keys, databases in all their states, and what was made to harm who reads it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import multiprocessing
import os
import resource
import shutil
import sqlite3
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs import open_store, table_building
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    KeyExistsError,
    NotWritableError,
    StaleShardError,
    StorageError,
)
from shardfs.mltraq import DataStoreIO
from shardfs.store import Store
from tests.conformance.mltraq_stores import ID, RUN, Experiments, dumps, npy, packed

DATA = Path(__file__).parent.parent / "data/mltraq"
OWN = "93c29379-71d9-48a2-84ec-f2852f494fb2"


@pytest.fixture
def experiments(tmp_path: Path) -> Experiments:
    return Experiments(tmp_path)


def notes(store: Store, key: str = "e") -> dict[str, str]:
    table = table_building.build(store.driver.load(store.entry(key), lambda _: None), "png")
    return {note.file: note.reason for note in table.notes}


def names(store: Store, key: str = "e") -> list[str]:
    table = table_building.build(store.driver.load(store.entry(key), lambda _: None), "png")
    return [name.decode() for name, _, _ in table.listing(0)]


# --- keys and places -------------------------------------------------------------------------------------------------


def test_keys_are_experiments_and_directories_told_apart(experiments: Experiments) -> None:
    experiments.add("undefined")
    experiments.file(f"{OWN}/0", dumps({}))
    experiments.file("undefined/a", b"raw")
    experiments.file("self/managed/b", b"raw")
    experiments.file("11111111-2222-3333-4444-555555555555/c", dumps({"x": 1}))
    experiments.file("loose", b"x")
    store = experiments.open()
    orphan = "11111111-2222-3333-4444-555555555555"
    assert store.keys() == ["undefined", orphan, "self/managed", "undefined@datastore"]
    assert store.get("undefined@datastore")[:] == [b"raw"]
    assert store.get(orphan)[:] == [{"x": 1}]
    assert len(store.driver.problems) == 1


def test_experiments_that_share_a_table(experiments: Experiments) -> None:
    experiments.add("A b", {"x": 1})
    experiments.add("a-b", {"x": 2}, id_experiment="f" * 32)
    store = experiments.open()
    assert [store.get(key)[1:] for key in ("A b", "a-b")] == [[{"x": 1}], [{"x": 2}]]


@pytest.mark.parametrize("name", ["a/b", "..", "/", "%41", "日本", "", "x" * 300, ".hidden", "a~2"])
def test_any_name_of_an_experiment_is_shown(experiments: Experiments, name: str) -> None:
    experiments.add(name, {"x": 1})
    assert experiments.open().get(name)[1] == {"x": 1}


def test_native_columns_have_their_types(experiments: Experiments) -> None:
    cells = {"flag": 1, "when": "2024-01-02 03:04:05.000678", "day": "2024-01-02", "no": None, "blob": b"\x80\x05N."}
    experiments.add("e", cells, serialised=(), flag="bool", when="datetime", day="date", blob="bytes")
    (_, run) = experiments.open().get("e")
    assert run["flag"] is True
    assert (run["when"].isoformat(), run["day"].isoformat()) == ("2024-01-02T03:04:05.000678", "2024-01-02")
    assert (run["no"], run["blob"]) == (None, b"\x80\x05N.")


def test_runs_of_one_id_or_none_are_told_apart(experiments: Experiments) -> None:
    experiments.add("e", {"x": 1}, run=None)
    with experiments.writing() as database:
        database.executemany("INSERT INTO experiment_e VALUES (?, ?, 2)", [(ID, RUN), (ID, RUN), (ID, "experiment")])
    stems = {name.partition(".")[0] for name in names(experiments.open())}
    dashed = "f3e5c0d4-3823-449e-96c4-d4b904171683"
    assert stems == {"experiment", "None", dashed, f"{dashed}~2", "experiment~2"}


def test_a_database_is_found_by_three_and_four_slashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Experiments(tmp_path).add()
    monkeypatch.chdir(tmp_path)
    urls = ["mltraq+sqlite:///exp.db", f"mltraq+sqlite://{tmp_path}/exp.db", f"mltraq+sqlite:///{tmp_path}/exp.db"]
    stores = [open_store(url) for url in urls]
    assert [store.keys() for store in stores] == [["e"]] * 3
    assert len({store.identity for store in stores}) == 1
    assert {store.place for store in stores} == {tmp_path / "mltraq.datastore"}


def test_a_datastore_elsewhere(tmp_path: Path) -> None:
    experiments = Experiments(tmp_path)
    url = experiments.file("p/x", dumps({"x": 1}))
    experiments.add("e", {"ds": dumps(packed("mltraq.DataStore-0", url))})
    os.rename(experiments.datastore, tmp_path / "moved here")
    store = open_store(f"mltraq+sqlite:///{experiments.path}?datastore={tmp_path}/moved%20here")
    assert store.get("e")[1] == {"ds": {"x": 1}}
    with pytest.raises(BadStoreError, match="no directory"):
        open_store(f"mltraq+sqlite:///{experiments.path}?datastore={tmp_path}/nowhere")


@pytest.mark.parametrize(
    "url",
    ["mltraq+sqlite:///nowhere.db", "mltraq+mysql://x/y", "mltraq+sqlite://", "mltraq+sqlite:///{}?x=1", "mltraq+x"],
)
def test_urls_that_make_no_sense_are_told(experiments: Experiments, url: str) -> None:
    with pytest.raises(BadStoreError):
        open_store(url.format(experiments.path))


# --- databases in use ------------------------------------------------------------------------------------------------


def folder_of(path: Path) -> dict[str, Any]:
    return {
        str(found): (found.stat().st_mtime_ns, hashlib.sha256(found.read_bytes()).hexdigest())
        for found in sorted(path.rglob("*"))
        if found.is_file() and not found.name.endswith("-shm")
    }


@pytest.mark.parametrize("case", ["basic", "types", "datastoreio"])
def test_reading_leaves_no_trace(tmp_path: Path, case: str) -> None:
    shutil.copytree(DATA / case, tmp_path / case)
    before = folder_of(tmp_path)
    store = open_store(f"mltraq+sqlite:///{tmp_path}/{case}/exp.db")
    for key in store:
        store.get(key)[:]
        store.driver.mark(store.entry(key))
    assert folder_of(tmp_path) == before


def test_a_write_ahead_log_in_use_is_read_and_left(experiments: Experiments) -> None:
    experiments.add("e", {"x": 1})
    writer = experiments.connect()
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("UPDATE experiment_e SET x = 2")
    writer.commit()
    store = experiments.open()
    before = folder_of(experiments.path.parent)
    assert store.get("e")[1] == {"x": 2}
    first = store.entry("e")
    assert folder_of(experiments.path.parent) == before
    writer.execute("UPDATE experiment_e SET x = 3")
    assert store.get("e")[1] == {"x": 2}, "what is not committed is not there"
    writer.commit()
    assert store.driver.changed()
    assert store.entry("e").version != first.version
    with pytest.raises(StaleShardError):
        store.driver.load(first, lambda _: None)
    assert store.get("e")[1] == {"x": 3}
    writer.close()


def test_a_write_ahead_log_that_a_crash_left_is_read_in_a_copy(tmp_path: Path) -> None:
    experiments = Experiments(tmp_path)
    experiments.add("e", {"x": 1})
    writer = experiments.connect()
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("UPDATE experiment_e SET x = 2")
    writer.commit()
    (tmp_path / "left").mkdir()
    for name in ("exp.db", "exp.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / "left" / name)
    writer.close()
    before = folder_of(tmp_path / "left")
    assert open_store(f"mltraq+sqlite:///{tmp_path}/left/exp.db").get("e")[1] == {"x": 2}
    assert folder_of(tmp_path / "left") == before
    assert not (tmp_path / "left/exp.db-shm").exists()


def test_a_database_closed_with_a_write_ahead_log_leaves_no_files(experiments: Experiments) -> None:
    experiments.add("e", {"x": 1})
    writer = experiments.connect()
    writer.execute("PRAGMA journal_mode=WAL")
    writer.close()
    assert experiments.open().get("e")[1] == {"x": 1}
    assert sorted(path.name for path in experiments.path.parent.iterdir()) == ["exp.db", "mltraq.datastore"]


def _die_in_a_transaction(path: str) -> None:
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA cache_size=1")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE experiment_e SET x = zeroblob(500000)")
    os._exit(0)


def test_a_rollback_that_a_crash_left_is_made_in_a_copy(experiments: Experiments) -> None:
    experiments.add("e", {"x": "before"}, serialised=())
    died = multiprocessing.get_context("spawn").Process(target=_die_in_a_transaction, args=(str(experiments.path),))
    died.start()
    died.join(30)
    assert (experiments.path.parent / "exp.db-journal").stat().st_size > 0
    before = folder_of(experiments.path.parent)
    assert experiments.open().get("e")[1] == {"x": "before"}
    assert folder_of(experiments.path.parent) == before


def test_a_database_that_another_keeps_is_busy(experiments: Experiments, monkeypatch: pytest.MonkeyPatch) -> None:
    experiments.add("e", {"x": 1})
    monkeypatch.setattr("shardfs.config.DATABASE_WAIT", 0.05)
    store = experiments.open()
    writer = sqlite3.connect(experiments.path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    assert store.get("e")[1] == {"x": 1}, "one who only prepares to write stops nobody"
    writer.execute("ROLLBACK")
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError) as caught:
        store.get("e")
    assert caught.value.errno == errno.EBUSY
    writer.execute("ROLLBACK")
    assert store.get("e")[1] == {"x": 1}
    writer.close()


def test_what_is_no_database_of_experiments_is_told(tmp_path: Path) -> None:
    for name, data in (("a.db", b"no database at all" * 100), ("b.db", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadStoreError):
            open_store(f"mltraq+sqlite:///{tmp_path}/{name}")


def test_sql_in_the_database_is_not_run(experiments: Experiments) -> None:
    """A view in the place of a table could compute for ever."""
    experiments.add("e", {"x": 1})
    with experiments.writing() as database:
        database.execute("DROP TABLE experiment_e")
        endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c"
        database.execute(f"CREATE VIEW experiment_e AS SELECT '{ID}' AS id_experiment, ({endless}) AS id_run")
    with pytest.raises(DamagedShardError, match="missing"):
        experiments.open().get("e")


# --- damage ----------------------------------------------------------------------------------------------------------


def test_a_persist_that_failed_is_a_damaged_key_and_the_rest_lives(experiments: Experiments) -> None:
    experiments.add("bad", table="experiment_bad")
    experiments.add("good", {"x": 1}, id_experiment="f" * 32, table="experiment_good")
    with experiments.writing() as database:
        database.execute("DROP TABLE experiment_bad")
    store = experiments.open()
    with pytest.raises(DamagedShardError, match="not persisted to the end"):
        store.get("bad")
    assert store.get("good")[1] == {"x": 1}


@pytest.mark.parametrize("blob", [None, b"", b"\x80\x05.", dumps([1]), dumps({"runs": 5})])
def test_a_meta_that_says_nothing_is_damage(experiments: Experiments, blob: bytes | None) -> None:
    experiments.add("e", {"x": 1})
    with experiments.writing() as database:
        database.execute("UPDATE experiments SET meta = ?", (blob,))
    with pytest.raises(DamagedShardError, match="meta"):
        experiments.open().get("e")


class _Attack:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/shardfs-was-attacked",)


def _loop() -> bytes:
    made: list[Any] = []
    made.append(made)
    return dumps(made)


def _laughs() -> bytes:
    value: Any = ["x" * 1000]
    for _ in range(60):
        value = [value, value]
    return dumps(value)


def _deep_key() -> bytes:
    return b"\x80\x05}" + b")" + b"\x85" * 200_000 + b"K\x01s."


def _wide_key() -> bytes:
    return b"\x80\x05})" + b"".join(b"q\x00h\x00\x86" for _ in range(60)) + b"K\x01s."


HOSTILE = {
    "runs a program": dumps(_Attack()),
    "names a function": b"\x80\x05\x8c\x02os\x8c\x06system\x93.",
    "names it as text": b"cos\nsystem\n(S'true'\ntR.",
    "holds itself": _loop(),
    "holds one list a million times over": _laughs(),
    "a key of many levels": _deep_key(),
    "a key of many parts": _wide_key(),
    "keys of one hash": dumps({at * ((1 << 61) - 1): 0 for at in range(3_000)}),
    "nested deeply": b"\x80\x05" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "cut off": dumps({"a": b"x" * 1000})[:-300],
    "nothing": b"",
    "a length beyond its end": b"\x80\x05\x8e" + b"\xff" * 8 + b".",
    "a text beyond its end": b"\x80\x05\x8d" + b"\x7f" * 8 + b".",
    "a value that was not remembered": b"\x80\x05h\x07.",
    "nothing on the stack": b"\x80\x05s.",
    "two values": b"\x80\x05NN.",
    "something behind it": dumps(1) + b"x",
    "an int of many digits": b"\x80\x05\x8b" + (1 << 20).to_bytes(4, "little") + b"\x01" * (1 << 20) + b".",
    "a persistent id": b"\x80\x05K\x01Q.",
    "a buffer from elsewhere": b"\x80\x05\x97.",
    "compressed and broken": b"C01" + zlib.compress(dumps([1]))[:-3],
    "compressed and nothing": b"C01",
    "compressed with something behind": b"C01" + zlib.compress(dumps([1])) + b"x",
    "a list as a key": b"\x80\x05}]K\x01s.",
    "a mark as a value": b"\x80\x05(.",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("blob", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("where", ["cell", "datastore", "fields"])
def test_hostile_blobs_are_shown_as_bytes_and_the_rest_lives(experiments: Experiments, blob: bytes, where: str) -> None:
    url = experiments.file(f"{OWN}/x", blob)
    cells = {"bad": blob if where == "cell" else dumps(packed("mltraq.DataStore-0", url)), "good": dumps([1])}
    if where == "fields":
        experiments.add("e", {"good": dumps([1])}, fields=blob)
    else:
        experiments.add("e", cells)
    store = experiments.open()
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fields, run = store.get("e")
    assert run["good"] == [1]
    assert (fields["fields"] if where == "fields" else run["bad"]) == blob
    assert len(notes(store)) == 1, "the reason is told"
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10
    assert not os.path.exists("/tmp/shardfs-was-attacked")


def test_a_zlib_bomb_is_shown_as_it_lies(experiments: Experiments) -> None:
    packer = zlib.compressobj(9)
    bomb = b"C01" + b"".join(packer.compress(bytes(1 << 20)) for _ in range(400)) + packer.flush()
    experiments.add("e", {"bomb": bomb, "good": dumps([1])})
    store = experiments.open()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert store.get("e")[1] == {"bomb": bomb, "good": [1]}
    assert "MiB come out" in next(iter(notes(store).values()))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10


def test_what_the_library_compressed_and_cannot_read_is_read(experiments: Experiments) -> None:
    value = {"x": 1, "a": packed("numpy.ndarray-0", npy(np.arange(1000)))}
    url = experiments.file(f"{OWN}/x", b"C01" + zlib.compress(dumps(value)))
    cells = {"ds": dumps(packed("mltraq.DataStore-0", url)), "cell": b"C01" + zlib.compress(dumps([1, 2]))}
    experiments.add("e", cells, fields=b"C01" + zlib.compress(dumps({"note": "n"})))
    fields, run = experiments.open().get("e")
    assert (fields, run["cell"], run["ds"]["x"]) == ({"note": "n"}, [1, 2], 1)
    assert run["ds"]["a"].tolist() == list(range(1000))
    file = experiments.datastore / OWN / "x"
    assert DataStoreIO(f"file:///{OWN}/x", datastore=experiments.datastore).read_deserialize()["x"] == 1
    assert file.read_bytes()[:3] == b"C01"


@pytest.mark.parametrize(
    "url",
    [
        "file:///../secret",
        "file:////etc/passwd",
        "file:///p/../../secret",
        "file:///link",
        "file:///linked/secret",
        "file:///p",
        "file:///p/none",
        "http://localhost/x",
        "file:///",
        "file:///p/\0x",
        "/etc/passwd",
        "file:///fifo",
    ],
)
@pytest.mark.parametrize("kind", ["mltraq.DataStore-0", "mltraq.ArchiveStore-0"])
def test_urls_that_lead_nowhere_good_are_refused(experiments: Experiments, url: str, kind: str) -> None:
    secret = experiments.path.parent / "secret"
    secret.write_bytes(dumps({"secret": 1}))
    experiments.file("p/x", dumps({"x": 1}))
    (experiments.datastore / "link").symlink_to(secret)
    (experiments.datastore / "linked").symlink_to(secret.parent)
    os.mkfifo(experiments.datastore / "fifo")
    cell = dumps(packed(kind, url))
    cells = {"bad": cell, "inside": dumps([packed(kind, url), 1]), "good": 1}
    experiments.add("e", cells, serialised=("bad", "inside"))
    store = experiments.open()
    run = store.get("e")[1]
    assert run == {"bad": cell, "inside": [packed(kind, url), 1], "good": 1}
    assert list(notes(store)) == ["f3e5c0d4-3823-449e-96c4-d4b904171683.bad.bin"]
    assert store.keys() == ["e", "p"]


def test_files_of_a_directory_are_no_way_out(experiments: Experiments) -> None:
    secret = experiments.path.parent / "secret"
    secret.write_bytes(b"secret")
    experiments.file("p/x", b"raw")
    (experiments.datastore / "p/link").symlink_to(secret)
    (experiments.datastore / "p/hard.bin").symlink_to("/etc/passwd")
    os.mkfifo(experiments.datastore / "p/fifo")
    store = open_store(experiments.datastore, driver="mltraq")
    assert names(store, "p") == ["x.$value.bin"]


@pytest.mark.parametrize("name", ["a?b/x", "a#b/x", "a%20b/x", "a b;c/x", "a%2e%2e/x"])
def test_urls_are_read_as_they_are_written(experiments: Experiments, name: str) -> None:
    """The library writes `?` and `#` and then reads something else; percent signs mean themselves."""
    url = experiments.file(name, dumps({"x": 1}))
    experiments.add("e", {"ds": dumps(packed("mltraq.DataStore-0", url))})
    assert experiments.open().get("e")[1] == {"ds": {"x": 1}}


def test_a_datastore_that_refers_to_itself_ends(experiments: Experiments) -> None:
    url = f"file:///{OWN}/x"
    again = packed("mltraq.DataStore-0", url)
    experiments.file(f"{OWN}/x", dumps({"a": again, "b": dict(again), "n": 1}))
    experiments.add("e", {"ds": dumps(again), "good": 1}, serialised=("ds",))
    run = experiments.open().get("e")[1]
    assert run["good"] == 1
    assert isinstance(run["ds"], bytes) or run["ds"]["n"] == 1


def test_many_runs_that_refer_to_one_large_file_end(experiments: Experiments) -> None:
    url = experiments.file("p/x", dumps({"x": list(range(300_000))}))
    experiments.add("e", {"ds": dumps(packed("mltraq.DataStore-0", url))})
    with experiments.writing() as database:
        database.execute(
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000)"
            " INSERT INTO experiment_e SELECT id_experiment, id_run || n, ds FROM experiment_e, c"
        )
    began = time.process_time()
    with pytest.raises(DamagedShardError, match="more values"):
        experiments.open().get("e")
    assert time.process_time() - began < 30


def test_archives_and_sequences_are_shown_as_they_lie(experiments: Experiments) -> None:
    """An ArchiveStore is a file of the datastore, which the library would extract; nothing is extracted here."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        member = tarfile.TarInfo("../escaped")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"out"))
    arrow = b"ARROW1\0\0 of a frame ARROW1"
    url = experiments.file(f"{OWN}/tar", tar.getvalue())
    cells = {
        "inline": dumps(packed("mltraq.Archive-0", tar.getvalue())),
        "stored": dumps(packed("mltraq.ArchiveStore-0", url)),
        "steps": dumps(packed("mltraq.Sequence-0", packed("pandas.DataFrame-0", arrow))),
        "inside": dumps(packed("mltraq.Bunch-0", {"a": packed("mltraq.Archive-0", b"no tar"), "b": 1})),
    }
    experiments.add("e", cells)
    store = experiments.open()
    run = "f3e5c0d4-3823-449e-96c4-d4b904171683"
    files = [f"{run}.{name}" for name in ("inline.tar", "stored.tar", "steps.arrow", "inside.a.tar", "json")]
    assert names(store)[1:] == files
    got = store.get("e")[1]
    assert (got["inline"], got["stored"], got["steps"]) == (tar.getvalue(), tar.getvalue(), arrow)
    assert got["inside"] == {"a": b"no tar", "b": 1}
    assert not (experiments.path.parent / "escaped").exists()
    assert notes(store) == {}


USERS = [
    {"DATAPAK-0": "of my own", "value": 1},
    {"DATAPAK-0": "numpy.ndarray-0", "value": "no bytes"},
    {"DATAPAK-0": "uuid.UUID-0", "value": "no uuid"},
    {"DATAPAK-0": "numpy.datetime64-0", "value": 1 << 64},
    {"DATAPAK-0": "mltraq.Bunch-0", "value": 5},
    {"DATAPAK-0": ["a list"], "value": {"x": 1}},
    {"DATAPAK-0": "numpy.ndarray-0", "value": b"x", "more": 1},
]


@pytest.mark.parametrize("value", USERS, ids=str)
def test_a_users_own_dict_that_looks_packed_is_a_dict(experiments: Experiments, value: Any) -> None:
    experiments.add("e", {"x": dumps([value])})
    assert experiments.open().get("e")[1] == {"x": [value]}


@pytest.mark.parametrize(
    "npy",
    [b"", b"\x93NUMPY", npy(np.arange(5))[:-1], npy(np.arange(5)) + b"x", b"\x93NUMPY\1\0\xff\xff" + b"(" * 65_535],
    ids=["empty", "a magic", "cut off", "too long", "brackets"],
)
def test_an_array_that_is_none_is_shown_as_bytes(experiments: Experiments, npy: bytes) -> None:
    objects = io.BytesIO()
    np.save(objects, np.array([_Attack()]), allow_pickle=True)
    cells = {"x": dumps(packed("numpy.ndarray-0", npy)), "o": dumps(packed("numpy.ndarray-0", objects.getvalue()))}
    experiments.add("e", cells)
    store = experiments.open()
    assert store.get("e")[1] == {"x": npy, "o": objects.getvalue()}
    assert len(notes(store)) == 2
    assert not os.path.exists("/tmp/shardfs-was-attacked")


# --- large things, changes -------------------------------------------------------------------------------------------


def test_files_stay_where_they_are(experiments: Experiments) -> None:
    """A datastore of 300 MB is opened, and one of its files read, without holding it."""
    value = {"a": packed("numpy.ndarray-0", npy(np.arange(5_000_000))), "n": 1}
    data = dumps(value)
    urls = [experiments.file(f"{OWN}/{at}", data) for at in range(8)]
    del value, data
    experiments.add("e", {f"ds{at}": dumps(packed("mltraq.DataStore-0", url)) for at, url in enumerate(urls)})
    store = experiments.open()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shard = store.driver.load(store.entry("e"), lambda _: None)
    table = table_building.build(shard, "png")
    assert shard.size > 320_000_000
    assert shard.held < 1 << 20
    file = table.find(b"f3e5c0d4-3823-449e-96c4-d4b904171683.ds7.a.npy")
    assert file is not None
    _, offset, length = table.slice_of(file) or (b"", 0, 0)
    assert length == 40_000_000
    assert bytes(shard.fetch(offset + length - 8, offset + length)) == (4_999_999).to_bytes(8, "little")
    light = table.find(b"f3e5c0d4-3823-449e-96c4-d4b904171683.json")
    assert light is not None
    assert json.loads(table.render(light, shard, "png"))["ds0"] == {"a": {"$file": "ds0.a.npy"}, "n": 1}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_versions_change_with_the_database_and_the_files(experiments: Experiments) -> None:
    url = experiments.file(f"{OWN}/x", dumps({"x": 1}))
    experiments.add("e", {"ds": dumps(packed("mltraq.DataStore-0", url))})
    store = experiments.open()
    shard, first = store.get("e"), store.entry("e")
    assert shard[1] == {"ds": {"x": 1}}
    experiments.file(f"{OWN}/x", dumps({"x": 22}))
    assert store.entry("e").version != first.version
    with pytest.raises(StaleShardError):
        store.driver.load(first, lambda _: None)
    with pytest.raises(StaleShardError):
        shard[1]
    assert store.get("e")[1] == {"ds": {"x": 22}}


def test_a_file_in_another_directory_is_part_of_the_version(experiments: Experiments) -> None:
    url = experiments.file("undefined/x", dumps({"x": 1}))
    experiments.add("e", {"ds": dumps(packed("mltraq.DataStore-0", url))})
    store = experiments.open()
    assert store.get("e")[1] == {"ds": {"x": 1}}
    first = store.entry("e")
    assert store.entry("e").version == first.version
    experiments.file("undefined/x", dumps({"x": 22}))
    assert store.entry("e").version != first.version
    assert store.get("e")[1] == {"ds": {"x": 22}}


# --- writing ---------------------------------------------------------------------------------------------------------


def test_store_set_writes_a_directory_of_values(experiments: Experiments) -> None:
    experiments.add("e", {"x": 1})
    store = experiments.open()
    store.set([{"a": np.arange(3), "n": 1}, [1, 2]], "made/here")
    assert [type(sample) for sample in store.get("made/here")] == [dict, list]
    got = DataStoreIO("file:///made/here/000001", datastore=experiments.datastore).read_deserialize()
    assert got == [1, 2]
    store.set([5], "made/here")
    assert store.get("made/here")[:] == [5]
    store.delete("made/here")
    assert store.keys() == ["e"]
    with pytest.raises(NotWritableError):
        store.set([1], "e")
    with pytest.raises(NotWritableError):
        store.set([1], OWN)
    with pytest.raises(NotWritableError):
        store.delete("e")
    with pytest.raises(BadSettingError):
        store.set([object()], "made")
    assert list(experiments.datastore.rglob(".shardfs-tmp-*")) == []


def test_a_write_that_died_is_settled(experiments: Experiments) -> None:
    """Before it was ready nothing of it stays; from then on all of it comes to be."""
    experiments.file("p/old", b"old")
    experiments.file("p/gone", b"gone")

    class Died(BaseException):
        pass

    store = open_store(experiments.datastore, driver="mltraq")
    driver: Any = store.driver
    for dies_at in (1, 2, 3):
        base = store.entry("p")
        noted: list[str] = []

        def note(text: str, dies_at: int = dies_at, noted: list[str] = noted) -> None:
            noted.append(text)
            if len(noted) == dies_at:
                raise Died

        put = [("new", b"new"), ("old", b"newer")]
        with contextlib.suppress(Died):
            driver.write_files("p", iter(put), ["gone"], base=base, note=note)
        settled = driver.settle("p", noted[-1])
        files = {path.name: path.read_bytes() for path in (experiments.datastore / "p").iterdir()}
        if dies_at == 1:
            assert settled is None
            assert files == {"old": b"old", "gone": b"gone"}
        else:
            assert settled is not None
            assert settled.version == store.entry("p").version
            assert files == {"old": b"newer", "new": b"new"}


def test_a_write_over_what_has_changed_is_stale(experiments: Experiments) -> None:
    experiments.file("p/old", b"old")
    store = open_store(experiments.datastore, driver="mltraq")
    driver: Any = store.driver
    base = store.entry("p")
    experiments.file("p/theirs", b"theirs")
    with pytest.raises(StaleShardError):
        driver.write_files("p", iter([("new", b"new")]), [], base=base, note=lambda _: None)
    assert sorted(path.name for path in (experiments.datastore / "p").iterdir()) == ["old", "theirs"]


def test_a_new_directory_that_another_has_made_meanwhile_is_told_as_that(experiments: Experiments) -> None:
    """It was told as a store that cannot be written to."""
    store = open_store(experiments.datastore, driver="mltraq")
    driver: Any = store.driver
    experiments.file("p/theirs", b"theirs")
    with pytest.raises(KeyExistsError):
        driver.write_files("p", iter([("new", b"new")]), [], base=None, note=lambda _: None)
    assert [path.name for path in (experiments.datastore / "p").iterdir()] == ["theirs"]


def test_a_new_experiment_is_told_of_though_another_was_looked_at_first(experiments: Experiments) -> None:
    """To look at one took the new state for known: a mount that was in use did not list what had come."""
    experiments.add("e")
    os.utime(experiments.datastore, ns=(1, 1_600_000_000 * 10**9))  # a directory of this moment counts as changed
    store = experiments.open()
    assert store.keys() == ["e"]
    experiments.add("f", id_experiment="0" * 32, table="experiment_f")
    assert store.entry("e").key == "e"
    assert store.driver.changed()
    assert store.keys() == ["e", "f"]
    assert not store.driver.changed()


def test_files_of_a_directory_are_shown_under_their_own_names(experiments: Experiments) -> None:
    for name in ("cat.jpg", "cat.left.png", "cat.txt", "b.YAML", ".hidden", "no_extension", "a~b.bin"):
        experiments.file(f"p/{name}", b"raw")
    store = open_store(experiments.datastore, driver="mltraq")
    expected = {"cat.jpg", "cat.left.png", "cat.txt", "b.YAML", "%2Ehidden.$value.bin", "no_extension.$value.bin"}
    assert set(names(store, "p")) == {*expected, "a%7Eb.bin"}
    # two that would be one field: the .json tells them apart
    experiments.file("p/cat.left.jpg", b"raw")
    assert set(names(store, "p")) == {*expected, "a%7Eb.bin", "cat.left.jpg", "cat.json"}
