"""Every store of every system into every format that can be written: equal files, or a printed word on what is not."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardfs import cli, config, values
from shardfs.browse import Browser
from shardfs.converting import Report, convert_all
from shardfs.drivers import superduper_python
from shardfs.errors import BadStoreError
from shardfs.opening import open_store
from shardfs.store import Store
from shardfs.superduper import Artifact, FileArtifact
from tests.conformance import superduper_stores
from tests.conformance.superduper_stores import Made
from tests.conformance.tree_suite import MLTRAQ, SQUIRREL, STREAMING, case_paths
from tests.conformance.webdataset_suite import SAMPLES, library, written

SOURCES = [
    *(f"squirrel/{case}" for case in SQUIRREL),
    *(f"streaming/{case}" for case in STREAMING),
    *(f"mltraq/{case}" for case in MLTRAQ),
    *(f"superduper/{case}" for case in superduper_stores.CASES),
    "webdataset/made",
]
TARGETS = {
    "msgpack-gz": ("squirrel", {}),
    "msgpack-zst": ("squirrel", {"compression": "zst"}),
    "jsonl": ("squirrel-jsonl", {}),
    "mds": ("streaming", {"compression": "zstd"}),
    "json": ("streaming", {"format": "json"}),
    "csv": ("streaming", {"format": "csv", "compression": "gz"}),
    "tsv": ("streaming", {"format": "tsv"}),
    "xsv": ("streaming", {"format": "xsv:||"}),
    "webdataset": ("webdataset", {}),
}

Sample = dict[str, Any]
"""What a sample's files say: content by suffix, members of its `.json` by `json:` and their name."""


def source_store(source: str, folder: Path) -> Store:
    system, _, case = source.partition("/")
    if system == "superduper":
        return open_store(superduper_stores.url_of(superduper_stores.DATA / case))
    if system == "webdataset":
        written(folder / "made" / "shard-000.tar", SAMPLES[:5])
        return open_store(folder / "made")
    return open_store(case_paths(system, case)[1])


def files(store: Store, key: str, without: set[str]) -> dict[str, Sample]:
    """Each sample's files by its name, in order, but those of the fields `without`."""
    browser = Browser(store)
    made: dict[str, Sample] = {}
    for line in browser.list(key):
        stem, _, suffix = line.name.partition(".")
        found = made.setdefault(stem, {})
        if suffix.partition(".")[0] in without or any(suffix.startswith(f"{name}.") for name in without):
            continue
        data = b"".join(browser.read(f"{key}/{line.name}"))
        assert len(data) == line.size
        if suffix != "json":
            found[suffix.replace("%24value", "$value")] = data  # a tar has no lone values, but names like these
            continue
        said = json.loads(data)
        for name, value in (said if isinstance(said, dict) else {"": said}).items():
            if name not in without and name != "$fields":
                found[f"json:{name}"] = value
    return made


def expected_files(store: Store, key: str, report: Report, target: str) -> list[Sample]:
    """What SYSTEMS.md says that a target has of a key, but the fields that the printed list has."""
    found = files(store, key, told(report))
    if ("experiment", "the experiment's own fields", "nothing: they have no columns") in report.changes:
        found = {stem: sample for stem, sample in found.items() if stem != "experiment" or len(found) == 1}
    if store.driver.name == "webdataset" and target != "webdataset":
        for sample in found.values():
            sample["json:cls"] = int(sample.pop("cls"))
    return list(found.values())


def told(report: Report) -> set[str]:
    """Fields of which the printed list says that they are not what they were."""
    return {name for name, _, _ in report.changes}


def unlike(ours: list[Sample], theirs: list[Sample], named: bool) -> list[str]:
    """Where the samples of a target say something else than those of its source."""
    found = [] if len(ours) == len(theirs) else [f"{len(ours)} samples instead of {len(theirs)}"]
    for number, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        mine = {name: value for name, value in mine.items() if not (named and name == "json:__key__")}
        other = {name: value for name, value in other.items() if not (named and name == "json:__key__")}
        found += [f"{number}: {name}" for name in mine.keys() ^ other.keys()]
        found += [f"{number}: {name}" for name in mine.keys() & other.keys() if mine[name] != other[name]]
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", SOURCES)
def test_files_are_equal_or_it_is_told(source: str, target: str, tmp_path: Path) -> None:
    store = source_store(source, tmp_path)
    driver, options = TARGETS[target]
    made = open_store(tmp_path / "target", driver, **options)
    report = convert_all(store.driver, made.driver, jobs=2, keep_going=True)
    assert report.converted + len(report.failed) == report.keys == len(store)
    keys = set(made.keys()) if report.converted else set()
    assert keys == set(store.keys()) - set(report.failed)
    named = source.startswith(("mltraq/", "superduper/", "webdataset/"))
    for key in keys:
        ours = list(files(made, key, told(report)).values())
        assert unlike(ours, expected_files(store, key, report, target), named) == [], (key, report.changes)
    for reason in report.failed.values():  # of a sample and its field, or of the whole shard
        assert re.match(
            r"(sample \S+( cannot be written as (msgpack|JSON))?: |sample \S+ has no fields|field |shard is damaged "
            r"|no samples)",
            reason,
        )


@pytest.mark.parametrize("compression", ["none", "gz"])
@pytest.mark.parametrize("source", ["squirrel/msgpack_basic", "streaming/mds_zstd_hash_splits", "mltraq/types"])
def test_webdataset_itself_reads_the_tars(source: str, compression: str, tmp_path: Path) -> None:
    store = source_store(source, tmp_path)
    made = open_store(tmp_path / "target", "webdataset", compression=compression)
    assert convert_all(store.driver, made.driver, jobs=2).failed == {}
    for key in made:
        url = str(tmp_path / "target" / made.driver.objects(made.entry(key))[0][0])  # type: ignore[attr-defined]
        theirs = library(Path(url))
        mine = files(open_store(tmp_path / "target"), key, set())
        assert len(theirs) == len(mine) > 0
        for sample, ours in zip(theirs, mine.values(), strict=True):
            light = {name: json.loads(data) for name, data in sample.items() if name == "json"}.get("json", {})
            heavy = {name.lower(): data for name, data in ours.items() if not name.startswith("json:")}
            assert {name: data for name, data in sample.items() if not name.startswith("__") and name != "json"} == {
                name.replace("$value", "%24value"): data for name, data in heavy.items()
            }
            assert {f"json:{name}": value for name, value in light.items() if name != "$fields"} == {
                name: value for name, value in ours.items() if name.startswith("json:")
            }


# --- Superduper's artifacts ---------------------------------------------------------------------------------------


def same_value(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, np.ndarray):
        return isinstance(ours, np.ndarray) and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
    return bool(ours == theirs)


def in_target(value: Any) -> Any:
    """What a value of `store.get(table)` is in msgpack."""
    if isinstance(value, Artifact):
        return value.read() if value.ext != "npy" else value.unpack()
    if isinstance(value, FileArtifact):
        if value.path.is_file():
            return value.path.read_bytes()
        return {
            f"{value.path.name}/{path.relative_to(value.path)}" + "/" * path.is_dir(): b""
            if path.is_dir()
            else path.read_bytes()
            for path in value.path.rglob("*")
            if not path.is_dir() or not list(path.iterdir())
        }
    if isinstance(value, dict):
        return {name: in_target(item) for name, item in value.items()}
    if isinstance(value, values.Pickle):
        return value.data
    return tuple(map(in_target, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("case", superduper_stores.CASES)
def test_documents_of_superduper_come_with_their_artifacts(case: str, tmp_path: Path) -> None:
    source = open_store(superduper_stores.url_of(superduper_stores.DATA / case))
    target = open_store(tmp_path, "squirrel")
    report = convert_all(source.driver, target.driver, jobs=1)
    (table,) = source.keys()
    shard = source.driver.load(source.entry(table), lambda _: None)
    columns = 0
    for document, row, stem in zip(source.get(table), target.get(table), shard.stems(), strict=True):
        assert row.pop("__key__") == stem
        assert list(row) == list(document)
        for name, value in document.items():
            if (name, "directory", "bytes of a tar") in report.changes:
                assert unpacked(row[name]) == in_target(value)
            elif (name, "pickle", "bytes") in report.changes and not isinstance(value, Artifact):
                assert superduper_python.decoded(row[name], "pkl", b"") == value  # bytes in the row itself
            else:
                assert same_value(row[name], in_target(value)), name
            columns += 1
    assert columns == sum(len(document) for document in source.get(table)) > 0


def unpacked(data: bytes) -> dict[str, bytes]:
    """What a tar holds; the path of a directory ends in `/`."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {
            info.name + "/" * info.isdir(): b"" if info.isdir() else tar.extractfile(info).read()  # type: ignore[union-attr]
            for info in tar
        }


def command(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    status = cli.main(["convert", *map(str, words)])
    return status, capsys.readouterr().err


def made_store(folder: Path) -> Made:
    made = Made(folder, {"id": "str", "blob": "bytes", "one": "file", "many": "file"})
    tree = {"d/a": b"1", "d/deep/er/b": b"2" * 600, "d/empty/": b"", "d/\udcff": b"3"}
    made.row(id="r.1", blob=made.blob("b", b"plain"), one=made.file("f1", {"w.bin": b""}), many=made.file("f2", tree))
    return made


def test_what_becomes_of_files_and_directories_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_store(tmp_path / "s")
    for driver in ("squirrel", "streaming", "webdataset"):
        status, err = command(capsys, made.url, tmp_path / driver, "--driver", driver)
        assert status == 0, err
        assert "one    file       bytes, without its name  1" in err
        assert "many   directory  bytes of a tar           1" in err
    row = open_store(tmp_path / "squirrel").get("t")[0]
    assert (row["blob"], row["one"]) == (b"plain", b"")
    assert unpacked(row["many"]) == {"d/a": b"1", "d/deep/er/b": b"2" * 600, "d/empty/": b"", "d/\udcff": b"3"}
    assert open_store(tmp_path / "streaming").get("t")[0]["many"] == row["many"]
    browser = Browser(open_store(tmp_path / "webdataset"))
    assert [line.name for line in browser.list("t")] == [
        f"r%252E1.{name}" for name in ("blob.bin", "one.bin", "many.tar", "json")
    ]
    assert b"".join(browser.read("t/r%252E1.blob.bin")) == b"plain"
    assert b"".join(browser.read("t/r%252E1.many.tar")) == row["many"]


@pytest.mark.parametrize("target", ["squirrel", "streaming", "webdataset"])
def test_an_artifact_that_is_not_what_its_hash_is_of_is_not_copied(target: str, tmp_path: Path) -> None:
    """Larger ones are not compared when they are opened."""
    shutil.copytree(superduper_stores.DATA / "0.3.0", tmp_path / "s")
    source = open_store(superduper_stores.url_of(tmp_path / "s"))
    (table,) = source.keys()
    blob = next(value for value in source.get(table)[0].values() if isinstance(value, Artifact))
    large = bytes(config.LINKED_CHECKED + 1)
    named = hashlib.sha1(large).hexdigest()
    (blob.path.parent / named).write_bytes(large[:-1] + b"\1")
    with sqlite3.connect(tmp_path / "s/db.sqlite") as db:
        db.execute(f'UPDATE "{table}" SET art = ?', (f"&:blob:{named}",))
    db.close()
    source = open_store(superduper_stores.url_of(tmp_path / "s"))
    report = convert_all(source.driver, open_store(tmp_path / "t", target).driver, jobs=1)
    assert f"{named} does not hold what its SHA-1 is of" in report.failed[table]


@pytest.mark.parametrize("field", ["blob", "many"])
def test_a_sample_too_large_for_one_record_is_told(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path / "s", {"id": "str", "blob": "bytes", "many": "file"})
    made.row(
        id="1", blob=made.blob("b", bytes(3 << 20)), many=made.file("f", {f"d/{at}": bytes(1 << 20) for at in range(3)})
    )
    monkeypatch.setattr(config, "GATHERED_SAMPLE", 2 << 20 if field == "blob" else 5 << 20)
    report = convert_all(open_store(made.url).driver, open_store(tmp_path / "t", "squirrel").driver, jobs=1)
    assert "too large for one record" in report.failed["t"]


@pytest.mark.parametrize("inside", ["artifacts", "artifacts/t", "."])
def test_a_target_among_the_artifacts_of_the_source_is_refused(
    inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target in the directory of artifacts was written to."""
    made = made_store(tmp_path / "s")
    before = sorted(tmp_path.rglob("*"))
    status, err = command(capsys, made.url, tmp_path / "s" / inside, "--driver", "squirrel")
    assert status == 2
    assert "one is the other, or lies in it" in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["DST", "--driver", "superduper"], "superduper"),
        (["DST", "--driver", "mltraq"], "mltraq"),
        (["superduper+sqlite:///db.sqlite"], "superduper"),
        (["mltraq+sqlite:///exp.db", "--driver", "mltraq"], "mltraq"),
    ],
    ids=str,
)
def test_systems_that_are_no_targets_are_told_in_one_line(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = superduper_stores.DATA.parent / "squirrel/msgpack_basic/store"
    status, err = command(capsys, source, *(word.replace("DST", str(tmp_path / "t")) for word in words))
    assert status == 2
    assert err.startswith(f"shardfs: {named} cannot be converted into: use squirrel, squirrel-jsonl, ")
    assert err.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_artifacts_that_are_nowhere_are_told_when_they_are_named(tmp_path: Path) -> None:
    """Such a store was shown with the references as texts."""
    made = made_store(tmp_path / "s")
    with pytest.raises(BadStoreError, match="none is no directory: it is to be the artifact store of"):
        open_store(made.url.partition("?")[0] + f"?artifacts={tmp_path}/none")
