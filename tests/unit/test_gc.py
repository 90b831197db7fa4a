"""`shardfs gc`: what is superseded goes, and nothing that anybody could need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardfs import open_store
from shardfs.cli import main
from shardfs.drivers.base import NewRecord, Value
from shardfs.drivers.garbage import Collecting
from shardfs.drivers.squirrel import SquirrelDriver
from shardfs.drivers.streaming import StreamingDriver
from shardfs.errors import BadStoreError, StaleShardError, StorageError
from shardfs.model import Key
from shardfs.storage.local import TEMPORARY, LocalStorage
from shardfs.store import Store


def values(start: int, end: int) -> list[NewRecord]:
    return [Value({"n": number, "text": f"t{number}"}, f"{number:06d}") for number in range(start, end)]


@pytest.fixture(params=["none", "zstd"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Two keys, the first of them rewritten twice."""
    made = open_store(tmp_path / "set", driver="streaming", compression=request.param)
    for number in range(2):
        made.driver.write_records(Key(f"train/shard.{number:05d}"), values(3 * number, 3 * number + 3), base=None)
    for value in (10, 20):
        key = Key("train/shard.00000")
        made.driver.write_records(key, values(value, value + 3), base=made.entry(key))
    return made


def files(store: Store) -> list[str]:
    assert store.place is not None
    return sorted(str(path.relative_to(store.place)) for path in store.place.rglob("*") if path.is_file())


def shards(store: Store) -> list[str]:
    return [name.split("/")[-1].removesuffix(".zstd").removesuffix(".mds") for name in files(store) if ".mds" in name]


def gc(capsys: pytest.CaptureFixture[str], store: Store | Path, *words: str, status: int = 0) -> dict[str, Any]:
    path = store.place if isinstance(store, Store) else store
    assert main(["gc", str(path), "--json", *words]) == status
    said = capsys.readouterr()
    found: dict[str, Any] = json.loads(said.out) if said.out else {"error": said.err}
    return found


def states(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["name"]: (one["kind"], one["state"]) for one in found["garbage"]}


def test_superseded_shards_are_listed_and_removed_when_they_are_old_enough(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert store.driver.name == "streaming"
    before, samples = files(store), [list(store.get(key)) for key in store]
    assert shards(store) == ["shard.00000", "shard.00000.r2", "shard.00000.r3", "shard.00001"]
    assert {what for _, what in states(gc(capsys, store)).values()} == {"kept"}, "a reader may have begun a minute ago"
    assert gc(capsys, store, "--yes")["removed"] == 0
    listed = gc(capsys, store, "--older-than", "0")
    assert [kind for kind, _ in states(listed).values()] == ["superseded"] * 2
    assert (listed["removable"], listed["removed"]) == (2, 0)
    assert gc(capsys, store, "--older-than", "0", "-n")["removable"] == 2
    assert files(store) == before, "only --yes removes"
    assert gc(capsys, store, "--older-than", "0", "--yes")["removed"] == 2
    assert shards(store) == ["shard.00000.r3", "shard.00001"]
    assert [list(open_store(store.url).get(key)) for key in store] == samples
    assert gc(capsys, store, "--older-than", "0", "--yes")["garbage"] == []


def test_its_age_is_that_of_what_replaced_it(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="streaming")
    store.set([{"n": 1}], "a")
    store.set([{"n": 2}], "a")
    driver = store.driver
    assert isinstance(driver, Collecting)
    os.utime(tmp_path / "a.r2.mds", ns=(1, 4_000_000_000 * 10**9))
    (found,) = driver.garbage()
    assert found.since_ns == 4_000_000_000 * 10**9 > (tmp_path / "a.mds").stat().st_ctime_ns


def test_for_people(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", str(store.place), "--older-than", "0"]) == 0
    said = capsys.readouterr()
    assert "shard.00000.r3.mds" in said.out
    assert "say --yes" in said.err
    assert main(["gc", str(store.place), "--older-than", "0", "--yes"]) == 0
    assert "removed 2 of 2" in capsys.readouterr().err
    assert main(["gc", str(store.place)]) == 0
    assert "nothing to remove" in capsys.readouterr().err


def test_what_an_index_names_or_nobody_knows_stays(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.place is not None
    train = store.place / "train"
    (train / "shard.00000.notes.txt").write_text("mine")
    (train / "shard.00000.r1.mds").write_bytes(b"somebody's own, and no shard")
    (train / ".shardfs-tmp-mine").write_bytes(b"not as ours are called")
    (store.place / "elsewhere").mkdir()
    shutil.copy(next(train.glob("shard.00000.r2.*")), store.place / "elsewhere")  # no index there, nor above
    ours = [name for name in files(store) if name.startswith(("train/shard.00000.r2.", "train/shard.00000.mds"))]
    before = files(store)
    assert gc(capsys, store, "--older-than", "0", "--yes")["removed"] == 2
    assert files(store) == [name for name in before if name not in ours]


def test_both_forms_of_a_superseded_shard_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The library decompresses beside the compressed file."""
    store = open_store(tmp_path, driver="streaming", compression="zstd")
    store.set([{"n": 1}], "a")
    raw = store.driver.load(store.entry("a"), lambda _: None).raw
    (tmp_path / "a.mds").write_bytes(raw)
    store.set([{"n": 2}], "a")
    assert gc(capsys, store, "--older-than", "0", "--yes")["removed"] == 2
    assert files(store) == ["a.r2.mds.zstd", "index.json"]


def test_a_shard_that_nothing_has_superseded_needs_a_word_of_its_own(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    store.delete("train/shard.00001")
    (left,) = [name for name in files(store) if "shard.00001" in name]
    assert states(gc(capsys, store, "--older-than", "0", "--yes"))[left] == ("unnamed", "kept")
    assert left in files(store)
    assert states(gc(capsys, store, "--older-than", "0", "--yes", "--unnamed")) == {left: ("unnamed", "removed")}
    assert left not in files(store)


@pytest.mark.parametrize("text", ["{", '{"version": 2, "shards": [{"version": 2}]}'])
def test_an_index_that_cannot_be_read_stops_it(store: Store, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert store.place is not None
    (store.place / "val").mkdir()
    (store.place / "val/index.json").write_text(text)
    before = files(store)
    assert "val/index.json" in gc(capsys, store, "--older-than", "0", "--yes", status=3)["error"]
    assert files(store) == before


def test_an_index_that_is_a_link_stops_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.place is not None
    (store.place / "all.json").write_text("{}")
    (store.place / "index.json").symlink_to("all.json")
    assert "link" in gc(capsys, store, "--older-than", "0", "--yes", status=3)["error"]


def test_what_a_merged_index_above_the_store_names_stays(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert store.place is not None
    index = json.loads((store.place / "train/index.json").read_text())
    for shard in index["shards"]:
        for part in ("raw_data", "zip_data"):
            if shard[part] is not None:
                shard[part]["basename"] = "set/train/" + shard[part]["basename"].replace(".r3", ".r2")
    (store.place.parent / "index.json").write_text(json.dumps(index))
    found = gc(capsys, store.place / "train", "--older-than", "0", "--yes")
    assert found["removed"] == 1
    assert shards(store) == ["shard.00000.r2", "shard.00000.r3", "shard.00001"]
    (store.place.parent / "index.json").write_text("{")
    assert "cannot be read" in gc(capsys, store.place / "train", "--yes", status=3)["error"]
    (store.place.parent / "index.json").write_text('{"of": "something else"}')
    assert gc(capsys, store.place / "train", "--older-than", "0", "--yes")["removed"] == 1


def test_a_store_of_another_kind_has_temporary_files_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path, driver="squirrel")
    store.set([{"n": 1}], "way/a")
    dead = tmp_path / "way" / f"{TEMPORARY}0123456789abcdef"
    dead.write_bytes(b"half a shard")
    assert states(gc(capsys, store)) == {f"way/{dead.name}": ("unfinished", "kept")}
    os.utime(dead, (1, 1))
    assert states(gc(capsys, store)) == {f"way/{dead.name}": ("unfinished", "kept")}, "times can be set back"
    assert gc(capsys, store, "--older-than", "0", "--yes")["removed"] == 1
    assert files(store) == ["way/a.gz"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no shards" in gc(capsys, empty, status=3)["error"]


@pytest.mark.parametrize("words", [("--older-than", "-1"), ("--older-than", "nan"), ("--yes", "-n")])
def test_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    open_store(tmp_path, driver="squirrel").set([{"n": 1}], "a")
    assert len(gc(capsys, tmp_path, *words, status=2)["error"].splitlines()) == 1


# --- who is still writing -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", [SquirrelDriver, StreamingDriver])
def test_what_is_being_written_is_told_of_and_not_removed(tmp_path: Path, system: type) -> None:
    """A shard before its index, and a temporary file: of a writer in this process, and so of one in another."""
    driver, other = system(LocalStorage(tmp_path)), system(LocalStorage(tmp_path))
    assert isinstance(other, Collecting)
    driver.write_records(Key("a"), values(0, 2), base=None)
    storage, seen = driver.storage, []
    put = storage.put

    def watched(name: str, write: Any, **options: Any) -> Any:
        def wrote(file: Any) -> None:
            write(file)
            file.flush()
            for one in other.garbage():
                with pytest.raises(StorageError, match="just being written"):
                    other.discard(one)
                seen.append((one.kind, one.name.rpartition("/")[2][:13]))

        return put(name, wrote, **options)

    storage.put = watched
    driver.write_records(Key("a"), values(5, 7), base=driver.entry(Key("a")))
    if system is StreamingDriver:
        # the shard, then the index while the shard waits for it; and not the old one, which is in the index till then
        assert seen == [("unfinished", TEMPORARY), ("unfinished", TEMPORARY), ("unfinished", "a.r2.mds")]
        assert [(one.kind, one.name) for one in other.garbage()] == [("superseded", "a.mds")]
    else:
        assert seen == [("unfinished", TEMPORARY)]
        assert other.garbage() == []
    assert [sample["n"] for sample in open_store(tmp_path).get("a")] == [5, 6]


_DIES = """
import os, sys
from pathlib import Path
from shardfs import open_store
import shardfs.storage.renaming as renaming
real = renaming.rename
def rename(directory, old, new, replace):
    if new == "index.json":
        os._exit(9)
    real(directory, old, new, replace)
renaming.rename = rename
open_store(sys.argv[1]).set([{"n": 7}], "a")
"""


def test_what_a_killed_writer_left_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = open_store(tmp_path, driver="streaming")
    store.set([{"n": 1}], "a")
    here = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", _DIES, str(tmp_path)], cwd=here, timeout=60)
    assert done.returncode == 9
    found = gc(capsys, store, "--older-than", "0", "--yes")
    assert sorted(one["kind"] for one in found["garbage"]) == ["unfinished", "unfinished"]
    assert (found["removed"], files(store)) == (2, ["a.mds", "index.json"])
    assert list(store.get("a")) == [{"n": 1}]


def test_what_has_changed_since_it_was_listed_is_left_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path, driver="streaming")
    store.set([{"n": 1}], "a")
    store.set([{"n": 2}], "a")
    driver = store.driver
    assert isinstance(driver, Collecting)
    (found,) = driver.garbage()
    index = (tmp_path / "index.json").read_text()
    (tmp_path / "index.json").write_text(index.replace("a.r2.mds", "a.mds"))
    with pytest.raises(StaleShardError, match="names"):
        driver.discard(found)
    (tmp_path / "index.json").write_text(index)
    os.utime(tmp_path / "a.mds")
    with pytest.raises(StaleShardError, match="another file"):
        driver.discard(found)
    assert (tmp_path / "a.mds").exists()


def test_a_directory_without_any_index_is_none_of_its_business(tmp_path: Path) -> None:
    """The library writes its shards first and the index last."""
    (tmp_path / "shard.00000.mds").write_bytes(b"")
    with pytest.raises(BadStoreError, match="nobody knows"):
        StreamingDriver(LocalStorage(tmp_path)).garbage()
