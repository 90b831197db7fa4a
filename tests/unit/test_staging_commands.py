"""`shardfs staging`, `commit` and what `umount` does before it unmounts: what is told, and that nothing gets lost."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from shardfs import cli, config, daemon, table_building
from shardfs.commands import storing, tabular, umount
from shardfs.commands.arguments import build_parser
from shardfs.control import error_as_json
from shardfs.errors import (
    BadSampleError,
    MissingKeyError,
    MountError,
    ShardfsError,
    StagingError,
    StaleShardError,
    UnknownCommandError,
)
from shardfs.opening import open_store
from shardfs.staging import ROOT, StagedDirectory, StagingArea
from tests.unit.control_serving import serving

REPOSITORY = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def area(store: Path) -> Iterator[StagingArea]:
    """To be closed by the test, before a command wants it."""
    opened = StagingArea.open(str(store))
    yield opened
    opened.close()


def stage(area: StagingArea, key: str, **files: bytes) -> StagedDirectory:
    directory = area.create(key)
    for name, content in files.items():
        with directory.create(ROOT, name.replace("_", ".").encode(), mode=0o640) as file:
            file.pwrite(content, 0)
    return directory


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    status = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


Capsys = pytest.CaptureFixture[str]


# --- list -------------------------------------------------------------------------------------------------------------


def test_nothing_is_staged(capsys: Capsys, store: Path, tmp_path: Path) -> None:
    assert run(capsys, "staging", "list") == (0, "", "shardfs: nothing is staged\n")
    assert run(capsys, "staging", "list", store) == (0, "", f"shardfs: nothing is staged for {store}\n")
    assert run(capsys, "staging", "list", store, "--json") == (
        0,
        f'[\n  {{\n    "store": "{store}",\n    "staged": []\n  }}\n]\n',
        "",
    )
    assert not (tmp_path / "state").exists(), "looking makes nothing"


def test_list_for_people(capsys: Capsys, store: Path, area: StagingArea) -> None:
    stage(area, "train/a", x_txt=b"12345", y_txt=b"1" * 2000)
    area.create("b.tmp", "plain")
    area.park(stage(area, "p\x1b[31m", z_txt=b""), "the store\nhas another one")
    status, out, err = run(capsys, "staging", "list", store)
    assert (status, err) == (0, "")
    head, *rows = out.splitlines()
    assert head.split() == ["key", "state", "files", "size", "age", "reason"]
    assert re.fullmatch(r"train/a +staged +2 +2\.0 KiB +\d+ s", rows[0])
    assert re.fullmatch(r"b\.tmp +plain +0 +0 B +\d+ s", rows[1])
    assert re.fullmatch(r"p \[31m\.conflict-\w+ +parked +1 +0 B +\d+ s +the store has another one", rows[2])
    assert len({line.index(line.split()[1]) for line in (head, *rows[:2])}) == 1, "columns"
    assert run(capsys, "staging", "list")[1] == f"{store}\n{out}"


def test_list_as_json_beside_a_living_owner(capsys: Capsys, store: Path, area: StagingArea) -> None:
    directory = stage(area, "a", x_txt=b"12345")
    status, out, _ = run(capsys, "staging", "list", "--json")
    assert status == 0
    (said,) = json.loads(out)
    assert said["store"] == str(store)
    (one,) = said["staged"]
    assert one == {
        "id": directory.id,
        "key": "a",
        "kind": "key",
        "state": "staged",
        "reason": None,
        "files": 1,
        "data_bytes": 5,
        "created_ns": directory.created_ns,
    }


def test_a_store_is_found_by_each_of_its_names(
    capsys: Capsys, store: Path, area: StagingArea, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(area, "a", x_txt=b"1")
    (tmp_path / "link").symlink_to(store)
    monkeypatch.chdir(tmp_path)
    for name in (store, f"{store}/", f"file://{store}", "store", "link"):
        assert "a  " in run(capsys, "staging", "list", name)[1], name


def test_a_broken_area_does_not_hide_the_others(capsys: Capsys, store: Path, area: StagingArea, tmp_path: Path) -> None:
    stage(area, "good", x_txt=b"1")
    bad = stage(area, "bad", x_txt=b"1")
    area.close()
    journal = area.path / bad.id / "journal"
    journal.write_bytes(b"nonsense" * 100)
    status, out, err = run(capsys, "staging", "list", store)
    assert (status, err) == (0, ""), "told in the table, once"
    assert re.search(r"^good +staged", out, re.M)
    assert re.search(rf"^{bad.id} +damaged", out, re.M), "by its id, as its key is lost"


# --- copying out ------------------------------------------------------------------------------------------------------


def test_files_are_copied_out_whatever_their_state(
    capsys: Capsys, store: Path, area: StagingArea, tmp_path: Path
) -> None:
    directory = stage(area, "k", a_txt=b"one", b_txt=b"")
    (found,) = [entry for entry in directory.children() if entry.name == b"a.txt"]
    directory.set_attributes(found.id, mtime_ns=1_000_000_000_000_000_007)
    parked = area.park(directory, "another one is there")
    for target in (tmp_path / "out", tmp_path / "out2"):  # beside a living owner, and then without
        status, out, err = run(capsys, "staging", "recover", store, parked, "--to", target)
        assert (status, out, err) == (0, f"copied {parked} to {target}: 2 files, 3 B\n", "")
        assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a.txt": b"one", "b.txt": b""}
        status_of = (target / "a.txt").stat()
        assert (stat.S_IMODE(status_of.st_mode), status_of.st_mtime_ns) == (0o640, 1_000_000_000_000_000_007)
        area.close()
    assert [one.key for one in StagingArea.open(str(store), read_only=True).directories()] == [parked], "all stays"


def test_plain_directories_are_copied_with_all_that_is_in_them(
    capsys: Capsys, store: Path, area: StagingArea, tmp_path: Path
) -> None:
    directory = area.create("d.tmp", "plain")
    deep = directory.mkdir(directory.mkdir(ROOT, b"x").id, b"y\xff")
    with directory.create(deep.id, b"f") as file:
        file.pwrite(b"deep", 0)
    assert run(capsys, "staging", "recover", store, "d.tmp", "--to", tmp_path / "out")[0] == 0
    assert Path(os.fsdecode(bytes(tmp_path / "out") + b"/x/y\xff/f")).read_bytes() == b"deep"


def test_stored_files_that_were_taken_over_are_copied_from_the_store(
    capsys: Capsys, store: Path, area: StagingArea, tmp_path: Path
) -> None:
    opened = open_store(store, "squirrel")
    opened.set([{"x": b"\1" * 10, "label": 1}, {"x": b"\2" * 10, "label": 2}], "k")
    directory = area.create("k", base_version=opened.entry("k").version)
    table = table_building.build(opened.driver.load(opened.entry("k"), lambda _: None), "png")
    number = table.find(b"000001.x.bin")
    assert number is not None
    directory.adopt(b"renamed.bin", number, table.size(number), 0o644, 0, 0, 0)
    with directory.create(ROOT, b"new.bin") as file:
        file.pwrite(b"new", 0)
    status, _, err = run(capsys, "staging", "recover", store, "k", "--to", tmp_path / "out")
    assert (status, err) == (0, "")
    assert (tmp_path / "out/renamed.bin").read_bytes() == b"\2" * 10
    opened.set([{"x": b"\3" * 10}], "k")
    status, out, err = run(capsys, "staging", "recover", store, "k", "--to", tmp_path / "out2")
    assert status == 1
    assert re.fullmatch(r"shardfs: not copied: renamed\.bin: [^\n]*replaced[^\n]*\n", err)
    assert "1 file," in out
    assert os.listdir(tmp_path / "out2") == ["new.bin"]


def test_damaged_ones_are_copied_as_far_as_they_can_be_read(
    capsys: Capsys, store: Path, area: StagingArea, tmp_path: Path
) -> None:
    directory = stage(area, "k", **{f"{name}_txt": name.encode() for name in "abcdef"})
    area.close()
    journal = area.path / directory.id / "journal"
    content = bytearray(journal.read_bytes())
    content[-80] ^= 0xFF  # in one of the last records, with good ones behind it
    journal.write_bytes(content)
    (area.path / directory.id / "data" / "2").unlink()
    assert re.search(r"^k +damaged", run(capsys, "staging", "list", store)[1], re.M)
    status, _, err = run(capsys, "staging", "recover", store, "k", "--to", tmp_path / "out")
    assert status == 1
    assert re.fullmatch(r"shardfs: not copied: b\.txt: [^\n]*No such file[^\n]*\n", err)
    copied = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert {"a.txt": "a", "c.txt": "c"}.items() <= copied.items()
    assert all(text == name[0] for name, text in copied.items())
    assert "f.txt" not in copied or "e.txt" not in copied


def test_names_that_lead_elsewhere_are_not_followed(
    capsys: Capsys, store: Path, area: StagingArea, tmp_path: Path
) -> None:
    """A damaged journal may say anything: nothing is written outside of the new directory."""
    directory = stage(area, "k", a_txt=b"one", b_txt=b"two")
    for entry, name in zip(directory.children(), (b"../outside", b"/tmp/outside"), strict=True):
        directory._ledger.record("rename", entry.id, ROOT, name, None, 0)
    status, _, err = run(capsys, "staging", "recover", store, "k", "--to", tmp_path / "out")
    assert status == 1
    assert len(re.findall(r"^shardfs: not copied: [^\n]*: no file can have this name$", err, re.M)) == 2
    assert os.listdir(tmp_path / "out") == []
    assert not (tmp_path / "outside").exists()


def test_nothing_is_copied_over_anything(capsys: Capsys, store: Path, area: StagingArea, tmp_path: Path) -> None:
    stage(area, "k", a_txt=b"one")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("precious")
    status, _, err = run(capsys, "staging", "recover", store, "k", "--to", tmp_path / "full")
    assert (status, err) == (2, f"shardfs: {tmp_path}/full is not empty: name a new directory\n")
    assert (tmp_path / "full" / "a.txt").read_text() == "precious"
    assert run(capsys, "staging", "recover", store, "k", "--to", tmp_path / "no" / "such")[0] == 1


# --- settling ---------------------------------------------------------------------------------------------------------


def test_discard_asks_unless_it_is_told_not_to(capsys: Capsys, store: Path, area: StagingArea) -> None:
    stage(area, "k", a_txt=b"one")
    area.close()
    status, _, err = run(capsys, "staging", "discard", store, "k")
    assert (status, err) == (2, "shardfs: removing cannot be undone: say --yes\n")
    assert [one.key for one in StagingArea.open(str(store), read_only=True).directories()] == ["k"]
    assert run(capsys, "staging", "discard", store, "k", "--yes") == (0, "discarded k: 1 file, 3 B\n", "")
    assert StagingArea.open(str(store), read_only=True).directories() == []
    assert run(capsys, "staging", "discard", store, "k", "--yes")[0] == 1


@pytest.mark.parametrize(("answer", "left"), [("y", []), ("no", ["k"]), ("", ["k"])])
def test_discard_on_a_terminal(store: Path, area: StagingArea, answer: str, left: list[str]) -> None:
    stage(area, "k", a_txt=b"one")
    area.close()
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "shardfs", "staging", "discard", str(store), "k"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    _, err = process.communicate(timeout=40)
    os.close(ours)
    assert b"remove what is staged for k (1 file, 3 B), which is nowhere else? [y/N]" in err
    assert process.returncode == (1 if left else 0)
    assert [one.key for one in StagingArea.open(str(store), read_only=True).directories()] == left


def test_who_else_has_it_is_told(capsys: Capsys, store: Path, area: StagingArea) -> None:
    stage(area, "k", a_txt=b"one")
    for words in (["discard", store, "k", "--yes"], ["recover", store, "k"]):
        status, out, err = run(capsys, "staging", *words)
        assert (status, out) == (6, "")
        assert re.fullmatch(rf"shardfs: process {os.getpid()} is writing to {store}: end it[^\n]*\n", err)
    assert run(capsys, "staging", "trust", store, "k")[1:] == ("", "shardfs: k is not in doubt\n")


def test_a_mount_that_has_it_is_asked(capsys: Capsys, store: Path, area: StagingArea) -> None:
    stage(area, "k", a_txt=b"one")
    asked: list[Any] = []

    async def ping(arguments: dict[str, Any]) -> Any:
        return {}

    async def discard(arguments: dict[str, Any]) -> Any:
        asked.append(arguments)

    async def commit(arguments: dict[str, Any]) -> Any:
        return {"stored": [{"key": "k", "stored_bytes": 12, "left": False}], "failed": [], "nothing": [], "staged": []}

    with daemon.recorded("/m", str(store)), serving({"ping": ping, "discard": discard, "commit": commit}):
        status, out, err = run(capsys, "staging", "discard", store, "k", "--yes")
        assert (status, out, err) == (0, "discarded k: 1 file, 3 B\n", "")
        assert asked == [{"key": "k"}]
        assert run(capsys, "staging", "recover", store) == (0, "stored k: 12 B\n", "")
    with daemon.recorded("/m", str(store)), serving({}):
        status, _, err = run(capsys, "staging", "discard", store, "k", "--yes")
        assert status == 4
        assert "end that mount first: shardfs umount /m" in err


def test_trust(capsys: Capsys, store: Path, area: StagingArea) -> None:
    directory = stage(area, "k", a_txt=b"one")
    area.close()
    for path in (area.path / directory.id / "data").iterdir():
        path.unlink()
    StagingArea.open(str(store)).close()  # finds that the data is missing
    assert re.search(r"^k +doubtful", run(capsys, "staging", "list", store)[1], re.M)
    assert run(capsys, "staging", "trust", store, "k") == (0, "trusted k: it can be stored now\n", "")
    assert re.search(r"^k +staged", run(capsys, "staging", "list", store)[1], re.M)


# --- recover ----------------------------------------------------------------------------------------------------------


def test_recover_stores_what_is_staged(capsys: Capsys, store: Path, area: StagingArea) -> None:
    stage(area, "deep/k", **{"000000_json": b'{"label": 7}', "000000_x_bin": b"\1\2"})
    stage(area, "other", **{"cat_jpg": b"\xff\xd8\xff"})
    area.create("d.tmp", "plain")
    area.close()
    status, out, err = run(capsys, "staging", "recover", store, "deep/k", "--driver", "squirrel")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"stored deep/k: \d+ B\n", out)
    assert open_store(store).get("deep/k")[0] == {"label": 7, "x": b"\1\2"}
    status, out, err = run(capsys, "staging", "recover", store)
    assert (status, err) == (0, "")
    assert re.fullmatch(r"stored other: \d+ B\n", out)
    assert open_store(store).keys() == ["deep/k", "other"]
    assert re.fullmatch(r"key[^\n]*\nd\.tmp +plain[^\n]*\n", run(capsys, "staging", "list", store)[1])
    assert run(capsys, "staging", "recover", store) == (0, "", "shardfs: there is nothing to store\n")


def test_recover_goes_on_after_a_file_that_does_not_parse(capsys: Capsys, store: Path, area: StagingArea) -> None:
    stage(area, "a", **{"000000_json": b'{"label": '})
    stage(area, "b", **{"000000_json": b'{"label": 7}'})
    area.close()
    status, out, err = run(capsys, "staging", "recover", store, "--driver", "squirrel")
    assert status == 1
    assert out.startswith("stored b: ")
    assert re.fullmatch(r"shardfs: not stored: a/000000\.json: [^\n]*; mend or remove that file[^\n]*\n", err)
    assert open_store(store).keys() == ["b"]
    assert re.search(r"^a +staged", run(capsys, "staging", "list", store)[1], re.M)


def test_recover_keeps_both_versions_of_what_was_changed_meanwhile(
    capsys: Capsys, store: Path, area: StagingArea, tmp_path: Path
) -> None:
    opened = open_store(store, "squirrel")
    opened.set([{"label": 1}], "k")
    directory = area.create("k", base_version=opened.entry("k").version)
    directory.hide(0)
    with directory.create(ROOT, b"000000.json") as file:
        file.pwrite(b'{"label": 2}', 0)
    area.close()
    opened.set([{"label": 3}], "k")
    status, out, err = run(capsys, "staging", "recover", store)
    assert (status, out) == (1, "")
    assert re.fullmatch(r"shardfs: not stored: [^\n]*k\.conflict-[^\n]*\n", err)
    assert opened.get("k")[0] == {"label": 3}
    (parked,) = re.findall(r"^(k\.conflict-\S+) +parked", run(capsys, "staging", "list", store)[1], re.M)
    assert run(capsys, "staging", "recover", store, parked, "--to", tmp_path / "mine")[0] == 0
    assert (tmp_path / "mine/000000.json").read_bytes() == b'{"label": 2}'


def test_recover_shows_samples_as_whoever_staged_over_them_saw_them(
    capsys: Capsys, store: Path, area: StagingArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of stored files mean others where samples are shown otherwise."""
    monkeypatch.setenv("SHARDFS_TEXT", "json")  # which is said for mounts, and not for what one of them has left
    opened = open_store(store, "squirrel")
    opened.set([{"note": "one", "x": b"\1" * 9}, {"note": "two", "x": b"\2" * 9}], "k")
    table = table_building.build(opened.driver.load(opened.entry("k"), lambda _: None), "png+text")
    removed = table.find(b"000001.x.bin")
    assert removed is not None
    area.shown(f"{opened.driver.name} {opened.driver.reading} png+text")
    area.create("k", base_version=opened.entry("k").version).hide(removed)
    area.close()
    assert run(capsys, "staging", "recover", store, "--text", "json")[0] == 1, "refused: that would be another file"
    assert run(capsys, "staging", "recover", store)[0] == 0
    assert list(opened.get("k")) == [{"note": "one", "x": b"\1" * 9}, {"note": "two"}]


# --- commit -----------------------------------------------------------------------------------------------------------


def answering(*answers: Any) -> dict[str, Any]:
    """Handlers of a mount that gives these answers to `commit`, one after the other."""
    left = list(answers)

    async def ping(arguments: dict[str, Any]) -> Any:
        return {}

    async def commit(arguments: dict[str, Any]) -> Any:
        said = left.pop(0)
        if isinstance(said, Exception):
            raise said
        return {"stored": [], "failed": [], "nothing": [], "staged": [], **said}

    return {"ping": ping, "commit": commit}


def failing(key: str, error: ShardfsError) -> dict[str, Any]:
    return {"failed": [{"key": key, "error": error_as_json(error)}]}


def report(key: str, state: str = "staged", reason: str | None = None, files: int = 2) -> dict[str, Any]:
    kind = "plain" if key.endswith(".tmp") else "key"
    held = {"files": files, "data_bytes": 1024 * files}
    return {"id": "0" * 16, "key": key, "kind": kind, "state": state, "reason": reason, **held}


BUSY = StagingError("k: a seal runs, or a file is open for writing", errno.EBUSY)
UNREADABLE = BadSampleError("000001.json", "no JSON: line 1")
STALE = StaleShardError("k was changed in the store")


def test_commit_tells_what_was_stored(capsys: Capsys) -> None:
    said = {
        "stored": [{"key": "a", "stored_bytes": 2048, "left": False}, {"key": "b", "stored_bytes": 5, "left": True}]
    }
    with serving(answering(said, {"nothing": ["a"]}, {})):
        status, out, err = run(capsys, "commit", "/m")
        assert (status, err) == (0, "")
        first, second = out.splitlines()
        assert first == "stored a: 2.0 KiB"
        assert re.fullmatch(r"stored b: 5 B; what was changed meanwhile.* is staged still", second)
        assert run(capsys, "commit", "/m", "a/") == (0, "", "shardfs: there is nothing to store\n")
        assert run(capsys, "commit", "/m") == (0, "", "shardfs: there is nothing to store\n")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (BUSY, 6, "not stored: k: a seal runs, or a file is open for writing; close what is open"),
        (UNREADABLE, 1, "not stored: k/000001.json: no JSON: line 1; mend or remove that file"),
        (STALE, 1, "not stored: k: k was changed in the store; the store's own version is there"),
        (StagingError("no room", errno.ENOSPC), 1, "not stored: k: no room; it stays staged"),
    ],
    ids=["EBUSY", "EINVAL", "ESTALE", "ENOSPC"],
)
def test_commit_tells_why_not(capsys: Capsys, error: ShardfsError, status: int, line: str) -> None:
    with serving(answering(failing("k", error))):
        got, out, err = run(capsys, "commit", "/m", "k")
    assert (got, out) == (status, "")
    assert re.fullmatch(rf"shardfs: {re.escape(line)}[^\n]*\n", err)


def test_commit_of_several_keys_goes_on_after_a_failure(capsys: Capsys) -> None:
    stored = {"stored": [{"key": "c", "stored_bytes": 1, "left": False}]}
    with serving(answering(failing("a", BUSY), MissingKeyError("nothing is staged for b"), stored)):
        status, out, err = run(capsys, "commit", "/m", "a", "b", "c")
    assert (status, out) == (1, "stored c: 1 B\n")
    assert [line.split(":")[0] for line in err.splitlines()] == ["shardfs", "shardfs"]
    assert "not stored: nothing is staged for b" in err


def test_commit_as_json(capsys: Capsys) -> None:
    with serving(answering({**failing("k", UNREADABLE), "staged": [report("k")]})):
        status, out, _ = run(capsys, "commit", "/m", "--json")
    assert status == 1
    said = json.loads(out)
    (failed,) = said["failed"]
    assert (failed["key"], failed["errno"], failed["fields"]) == (
        "k",
        errno.EINVAL,
        {"file": "000001.json", "reason": "no JSON: line 1"},
    )
    assert [one["key"] for one in said["staged"]] == ["k"]


def test_commit_waits_for_no_mount_that_is_silent(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    async def ping(arguments: dict[str, Any]) -> Any:
        await trio.to_thread.run_sync(go.wait, 20)

    monkeypatch.setattr(config, "CONTROL_ANSWER", 0.1)
    with serving({"ping": ping}):
        status, _, err = run(capsys, "commit", "/m")
        go.set()
    assert (status, err) == (4, "shardfs: the mount at /m does not answer\n")


def test_the_key_is_always_named() -> None:
    assert storing.why("a", StagingError("a file is open", errno.EBUSY)).startswith("a: a file is open; ")


def test_doubtful_and_damaged_ones_say_what_to_do() -> None:
    error = StagingError("k: the machine went down", errno.EIO)
    assert "staging trust" in storing.why("k", error, "doubtful")
    assert "recover --to DIR" in storing.why("k", error, "damaged")


# --- before unmounting ------------------------------------------------------------------------------------------------


def test_umount_stores_first(capsys: Capsys) -> None:
    with serving(answering({"stored": [{"key": "a", "stored_bytes": 1, "left": False}]})):
        assert umount._store("/m", None, set()) == 0
    assert capsys.readouterr().err == ""


def test_umount_keeps_a_mount_that_cannot_store_unless_it_is_told_not_to(capsys: Capsys) -> None:
    said = {
        **failing("k", UNREADABLE),
        "staged": [report("k"), report("d.tmp"), report("p", "parked", "another one"), report("e", files=0)],
    }
    with serving(answering(said, said)):
        with pytest.raises(MountError, match=r"stays mounted, as 1 key could not be stored; .*--force"):
            umount._store("/m", None, set())
        assert capsys.readouterr().err.splitlines() == [
            "shardfs: not stored: k/000001.json: no JSON: line 1; mend or remove that file and commit again",
            "shardfs: stays staged: d.tmp (2 files, 2.0 KiB): no key until it is renamed to one",
            "shardfs: stays staged: p (2 files, 2.0 KiB): another one",
        ]
        assert umount._store("/m", 1.0, set()) == 1


def test_what_is_never_sealed_by_itself_does_not_keep_a_mount(capsys: Capsys) -> None:
    with serving(answering({"staged": [report(f"{number}.tmp") for number in range(30)]})):
        assert umount._store("/m", None, set()) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == config.STAYING_TOLD + 1
    assert lines[-1] == "shardfs: 10 more stay staged: shardfs staging list"


def test_umount_of_a_mount_that_takes_no_commands(capsys: Capsys) -> None:
    with pytest.raises(MountError, match=r"cannot be stored: --force"):
        umount._store("/m", None, set())
    assert umount._store("/m", 1.0, set()) == 1
    with serving({"ping": answering()["ping"]}):
        assert umount._store("/m", None, set()) == 0
    with serving(answering(UnknownCommandError("what?"))):
        assert umount._store("/m", None, set()) == 0


# --- for people -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1 << 20, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (1 << 70, "1048576.0 PiB"),
    ],
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert tabular.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (200_000, "2 d")],
)
def test_ages_for_people(seconds: int, text: str) -> None:
    assert tabular.age(0, seconds * 1_000_000_000) == text


def test_parser_of_umount_knows_force() -> None:
    parsed: argparse.Namespace = build_parser().parse_args(["umount", "m", "--force", "--lazy"])
    assert (parsed.force, parsed.lazy) == (True, True)
