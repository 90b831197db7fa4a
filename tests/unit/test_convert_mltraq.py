"""mltraq stores into those of the other systems: equal files, or a list of what the other has no word for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardfs.browse import Browser
from shardfs.converting import Report, convert_all
from shardfs.mltraq import DataStoreIO
from shardfs.opening import open_store
from shardfs.store import Store

DATA = Path(__file__).parents[1] / "data/mltraq"
RUN = "f3e5c0d4-3823-449e-96c4-d4b904171683"


def converted(case: str, target: Path, driver: str) -> tuple[Report, Store, Store]:
    source = open_store(f"mltraq+sqlite:///{DATA / case}/exp.db")
    made = open_store(target, driver)
    report = convert_all(source.driver, made.driver, jobs=2, keep_going=True)
    return report, source, made


def files(store: Store, key: str, stem: str) -> dict[str, bytes]:
    browser = Browser(store)
    listed = [line.name for line in browser.list(key) if line.name.startswith(f"{stem}.")]
    return {name.partition(".")[2]: b"".join(browser.read(f"{key}/{name}")) for name in listed}


@pytest.mark.parametrize("driver", ["squirrel", "streaming"])
def test_runs_have_the_same_files(tmp_path: Path, driver: str) -> None:
    report, source, made = converted("basic", tmp_path, driver)
    assert report.failed == {}
    assert ("when", "datetime", "text") in report.changes
    theirs, ours = files(source, "My Exp-1", RUN), files(made, "My Exp-1", RUN)
    assert theirs.keys() == ours.keys()
    assert {name: data for name, data in theirs.items() if name != "json"} == {
        name: data for name, data in ours.items() if name != "json"
    }
    # an experiment's own fields are no row of a table
    apart = ("experiment", "the experiment's own fields", "nothing: they have no columns")
    assert (apart in report.changes) == (driver == "streaming")


def test_all_types_into_squirrel(tmp_path: Path) -> None:
    report, source, made = converted("types", tmp_path, "squirrel")
    assert report.failed == {}
    told = {was for _, was, _ in report.changes}
    assert {"int of more than 64 bits", "UUID", "datetime", "set"} <= told
    got, expected = made.get("types")[1]["ds"], source.get("types")[1]["ds"]
    for name in ("int", "float", "str", "bytes", "big_bytes", "bunch", "series", "df", "many", "dict", "none"):
        assert got[name] == expected[name], name
    assert got["shared"] == tuple(expected["shared"]), "squirrel-core gives lists as tuples"
    assert got["bigint"] == str(expected["bigint"])
    assert got["uuid"] == str(expected["uuid"])
    assert np.array_equal(got["nd_F"], expected["nd_F"])


@pytest.mark.parametrize("driver", ["squirrel-jsonl", "streaming"])
def test_what_a_target_cannot_hold_is_told(tmp_path: Path, driver: str) -> None:
    report, _, made = converted("types", tmp_path, driver)
    if report.failed:
        assert list(report.failed) == ["types"]
        assert "588b58f7-7af5-4887-ad6d-76880381a70d" in report.failed["types"]
    else:
        assert made.keys() == ["types"]


def test_lone_values_of_a_directory(tmp_path: Path) -> None:
    DataStoreIO.serialize_write(np.arange(3), "p", datastore=tmp_path / "d")
    DataStoreIO.write(b"raw", "q", datastore=tmp_path / "d")
    source = open_store(tmp_path / "d", "mltraq")
    made = open_store(tmp_path / "s", "squirrel")
    report = convert_all(source.driver, made.driver, jobs=1)
    assert report.failed == {}
    assert ("", "name of a lone value", "number") in report.changes
    assert made.get("p")[0].tolist() == [0, 1, 2]
    assert made.get("q")[:] == [b"raw"]
