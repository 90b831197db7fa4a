"""`shardfs find`: what fits, in the order of a mount, and that no shard is read in vain."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest

from shardfs import cli, open_store
from shardfs.browse import Browser
from tests.conformance.superduper_stores import Made, Opens

Run = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes]) -> Run:
    def find(*words: str | Path) -> tuple[int, list[str], str]:
        status = cli.main(["find", *map(str, words)])
        out, err = capsysbinary.readouterr()
        return status, out.decode().splitlines(), err.decode()

    return find


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    (path / "deep").mkdir(parents=True)
    for key, size in (("a", 10), ("b", 2_000), ("deep/c", 10)):
        samples = [{"x": bytes(size), "label": number} for number in range(3)]
        (path / f"{key}.gz").write_bytes(gzip.compress(b"".join(map(msgpack.packb, samples))))
    return path


def everything(store: Path) -> list[str]:
    """All paths, as `ls` has them."""
    browser = Browser(open_store(store))
    found = []
    for one in browser.list(""):
        found.append(one.name)
        for two in browser.list(one.name):
            found.append(f"{one.name}/{two.name}")
            if two.kind == "key":
                found += [f"{one.name}/{two.name}/{three.name}" for three in browser.list(f"{one.name}/{two.name}")]
    return found


def test_all_of_it_is_what_ls_shows(run: Run, store: Path) -> None:
    assert run(store) == (0, everything(store), "")
    assert run(store, "--no-index")[1] == everything(store)
    assert len(everything(store)) == 4 + 3 * 6


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        (["--type", "k"], ["a", "b", "deep/c"]),
        (["--type", "d"], ["a", "b", "deep", "deep/c"]),
        (["deep/*", "--type", "d"], ["deep/c"]),
        (["--name", "000001.*"], [f"{key}/000001.{end}" for key in ("a", "b", "deep/c") for end in ("x.bin", "json")]),
        (["*/000002.json"], ["a/000002.json", "b/000002.json", "deep/c/000002.json"]),
        (["--key", "deep/*", "--name", "*.json", "--type", "f"], [f"deep/c/00000{at}.json" for at in range(3)]),
        (["--size", "+1k"], [f"b/00000{at}.x.bin" for at in range(3)]),
        (["--size", "2000", "--name", "000000*"], ["b/000000.x.bin"]),
        (["--size", "-11", "--key", "a"], [f"a/00000{at}.x.bin" for at in range(3)]),
        (["nothing*"], []),
    ],
    ids=" ".join,
)
def test_what_fits(run: Run, store: Path, words: list[str], paths: list[str]) -> None:
    status, found, said = run(store, *words)
    assert (status, sorted(found), said) == (0, sorted(paths), "")


def test_lines_of_json_and_null_bytes(run: Run, store: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    _, lines, _ = run(store, "--key", "b", "--json")
    key, first, *_ = map(json.loads, lines)
    assert (key["path"], key["type"], key["size"]) == ("b", "key", (store / "b.gz").stat().st_size)
    assert (first["path"], first["type"], first["key"], first["sample"]) == ("b/000000.x.bin", "file", "b", "000000")
    assert (first["size"], first["mtime_ns"]) == (2_000, key["mtime_ns"])
    assert cli.main(["find", str(store), "--type", "k", "-0"]) == 0
    assert capsysbinary.readouterr().out == b"a\0b\0deep/c\0"


def test_only_shards_are_read_in_which_a_file_may_fit_and_damage_is_told(run: Run, store: Path) -> None:
    (store / "b.gz").write_bytes(b"no gzip")
    for words in (["a/*"], ["--key", "deep/*"], ["--type", "k"], ["deep/c/000000*"]):
        status, found, said = run(store, *words)
        assert (status, bool(found), said) == (0, True, ""), words
    status, found, said = run(store, "--name", "*.json")
    assert (status, len(found), said.count("\n")) == (1, 6, 1)
    assert "'b' is damaged" in said


def test_the_index_is_used_and_added_to(run: Run, store: Path) -> None:
    opens = Opens(store)
    assert run(store, "--key", "a")[0] == 0
    assert opens.files() == ["a.gz"]
    assert run(store)[1] == everything(store)
    opens.files()
    assert run(store, "--name", "*.bin")[0] == 0
    assert opens.files() == []
    assert run(store, "--name", "*.bin", "--no-index")[0] == 0
    assert sorted(set(opens.files())) == ["a.gz", "b.gz", "c.gz"]
    opens.close()


def test_directories_inside_a_key(run: Run, tmp_path: Path) -> None:
    made = Made(tmp_path, {"id": "str", "doc": "fileencoder"})
    made.row(id="one", doc=made.file("f" * 40, {"top/a.txt": b"12", "top/deep/b.txt": b"345"}))
    assert run(made.url, "--type", "f")[1] == ["t/one.doc/top/a.txt", "t/one.doc/top/deep/b.txt", "t/one.json"]
    assert run(made.url, "--type", "d")[1] == ["t", "t/one.doc", "t/one.doc/top", "t/one.doc/top/deep"]
    (found,) = map(json.loads, run(made.url, "--name", "b.txt", "--json")[1])
    assert (found["sample"], found["size"], found["key"]) == ("one", 3, "t")


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--type", "x"], "--type x: write d"), (["--size", "much"], "--size much: write"), (["--size", "+5%"], "--size")],
)
def test_words_that_make_no_sense(run: Run, store: Path, words: list[str], said: str) -> None:
    status, found, told = run(store, *words)
    assert (status, found, told.count("\n")) == (2, [], 1)
    assert said in told
