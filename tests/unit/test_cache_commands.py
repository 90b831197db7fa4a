"""`shardfs cache`, `warm`, `pin` and `unpin` on a store in an S3 server."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from shardfs import cli
from shardfs.opening import open_store
from tests.servers import Server

pytestmark = pytest.mark.timeout(90)
Said = tuple[int, str, str]


@pytest.fixture
def url(moto: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    url = f"s3://bucket/{request.node.name.partition('[')[0]}"
    store = open_store(url, "squirrel", endpoint=moto.endpoint, cache_size=0)
    for key in ("a", "b", "train/c"):
        store.set([{"key": key, "data": b"x" * 100}], key)
    return url


@pytest.fixture
def say(moto: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    def run(*words: str, far: bool = True) -> Said:
        more = ["--endpoint", moto.endpoint] if far else []
        status = cli.main([*words, *more, "--cache-dir", str(tmp_path / "cache")])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def info(say: Callable[..., Said]) -> dict[str, object]:
    status, out, err = say("cache", "info", "--json", far=False)
    assert (status, err) == (0, "")
    return dict(json.loads(out))


def test_an_empty_cache(say: Callable[..., Said]) -> None:
    assert info(say)["stores"] == []
    assert say("cache", "prune", far=False)[0] == 0
    assert say("cache", "verify", far=False) == (0, "", "")


def test_what_is_warmed_is_there(say: Callable[..., Said], url: str, moto: Server, tmp_path: Path) -> None:
    status, out, err = say("warm", url, "train/*", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert (told["keys"], told["failed"]) == (1, 0)
    [store] = info(say)["stores"]  # type: ignore[misc]
    assert store == {
        "store": f"{url} at {moto.endpoint}",
        "files": 1,
        "bytes": told["fetched_bytes"],
        "pinned_bytes": 0,
    }
    assert json.loads(say("warm", url, "--json")[1])["keys"] == 3
    again = json.loads(say("warm", url, "--json")[1])
    assert again == {"keys": 3, "fetched_bytes": 0, "failed": 0}
    status, out, _ = say("cache", "info", far=False)
    assert url in out
    assert "of" in out


def test_patterns_from_a_file_and_from_stdin(
    say: Callable[..., Said], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").write_text("a\n\nb\n")
    assert json.loads(say("warm", url, "--from", str(tmp_path / "keys"), "--json")[1])["keys"] == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("train/c\n"))
    assert json.loads(say("warm", url, "--from", "-", "--json")[1])["keys"] == 1


def test_pins(say: Callable[..., Said], url: str) -> None:
    assert say("warm", url)[0] == 0
    assert say("pin", url, "a", "train/*") == (0, "", "")
    assert {pin["keys"] for pin in info(say)["pins"]} == {"a", "train/*"}  # type: ignore[attr-defined]
    status, _, err = say("cache", "clear", far=False)
    assert status == 0
    assert "what is pinned stays" in err
    [store] = info(say)["stores"]  # type: ignore[misc]
    assert store["files"] == 2
    assert say("unpin", url, "a", "train/*") == (0, "", "")
    status, _, err = say("unpin", url, "a")
    assert (status, err.count("\n")) == (2, 1)
    assert "not pinned" in err
    assert say("cache", "clear", url)[0] == 0
    assert info(say)["stores"] == []


def test_verify_removes_what_is_damaged(say: Callable[..., Said], url: str, tmp_path: Path) -> None:
    say("warm", url)
    damaged = next((tmp_path / "cache").rglob("*.data"))
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    status, _, err = say("cache", "verify", far=False)
    assert (status, err.count("\n")) == (1, 1)
    assert "has been removed" in err
    assert say("cache", "verify", far=False)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["warm", "{url}", "none"], "has no key that none fits"),
        (["warm", "{local}"], "on this machine"),
        (["warm", "{url}", "--from", "/nowhere"], "/nowhere"),
        (["warm", "{url}", "--cache-size", "0"], "without a cache"),
        (["warm", "{url}", "--cache-size", "big"], "big"),
    ],
)
def test_errors_are_one_line(words: list[str], said: str, say: Callable[..., Said], url: str, tmp_path: Path) -> None:
    local = tmp_path / "local"
    open_store(local, "squirrel").set([1], "k")
    status, out, err = say(*(word.format(url=url, local=local) for word in words), far="{local}" not in words)
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
