"""Objects in an S3 server on loopback: names, bytes of one version, parts, ranges, and writing under conditions."""

from __future__ import annotations

import errno
import os
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qs, urlsplit

import obstore
import pytest

from shardfs import config
from shardfs.errors import BadSettingError, BadStoreError, KeyExistsError, StaleShardError, StorageError
from shardfs.model import Key, Version
from shardfs.opening import open_store
from shardfs.storage.etags import Etags
from shardfs.storage.obstore_objects import _listed
from shardfs.storage.remote import RemoteStorage
from shardfs.storage.urls import open_remote, without_secrets
from shardfs.storage.versions import parse_version
from tests.servers import CREDENTIALS, Server

pytestmark = pytest.mark.timeout(60)
BIG = os.urandom(1 << 20) * 25


@pytest.fixture
def storage(moto: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> RemoteStorage:
    return opened(moto, monkeypatch, request.node.name)


def opened(server: Server, monkeypatch: pytest.MonkeyPatch, prefix: str) -> RemoteStorage:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return open_remote(f"s3://bucket/{prefix}", endpoint=server.endpoint)


def writing(data: bytes) -> object:
    def write(file: BinaryIO) -> None:
        file.write(data)

    return write


def whole(storage: RemoteStorage, name: str, step: int = 3_000_000) -> bytes:
    with storage.open(name) as reader:
        pieces = []
        while piece := reader.read(step):
            pieces.append(piece)
    return b"".join(pieces)


def test_names_are_listed_below_the_prefix(storage: RemoteStorage) -> None:
    for name in ("b.gz", "a/c.gz", "other.txt"):
        storage.put(name, writing(b"x"))  # type: ignore[arg-type]
    assert [listed.name for listed in storage.list((".gz",))] == ["a/c.gz", "b.gz"]
    assert storage.list((".gz",))[0] == storage.stat("a/c.gz")


def test_more_names_than_one_answer_holds(storage: RemoteStorage) -> None:
    for number in range(1100):
        obstore.put(storage.store, f"{number:04}.gz", b"x")
    assert [listed.name for listed in storage.list((".gz",))] == [f"{number:04}.gz" for number in range(1100)]


def test_large_objects_come_in_parts_and_are_whole(storage: RemoteStorage) -> None:
    storage.put("big", writing(BIG))  # type: ignore[arg-type]
    before = storage.requests.asked
    assert whole(storage, "big") == BIG
    assert storage.requests.asked - before == 1 + -(-len(BIG) // config.REMOTE_PART)
    buffer = bytearray(len(BIG))
    with storage.open("big") as reader:
        at = 0
        while count := reader.readinto(memoryview(buffer)[at:]):
            at += count
    assert bytes(buffer) == BIG


def test_ranges(storage: RemoteStorage) -> None:
    storage.put("big", writing(BIG))  # type: ignore[arg-type]
    with storage.open("big") as reader:
        edge = config.REMOTE_PART - 5
        assert reader.read_at(edge, 10) == BIG[edge : edge + 10]
        assert reader.tail(7) == BIG[-7:]
        assert reader.read_at(0, 0) == b""
        with pytest.raises(StaleShardError):
            reader.read_at(len(BIG) - 1, 2)


def test_a_small_object_is_fetched_once_whatever_is_asked_of_it(storage: RemoteStorage) -> None:
    listed = storage.put("small", writing(b"0123456789"))  # type: ignore[arg-type]
    before = storage.requests.asked
    with storage.open("small", listed.version) as reader:
        assert (reader.tail(4), reader.read_at(0, 3), reader.read(100), reader.read(1)) == (
            b"6789",
            b"012",
            b"0123456789",
            b"",
        )
    assert storage.requests.asked - before == 1


def test_an_empty_object(storage: RemoteStorage) -> None:
    storage.put("empty", writing(b""))  # type: ignore[arg-type]
    assert whole(storage, "empty") == b""


@pytest.mark.parametrize("data", [b"other bytes", BIG[::-1]])
def test_a_replaced_object_is_stale_and_never_a_mixture(storage: RemoteStorage, data: bytes) -> None:
    listed = storage.put("k", writing(BIG))  # type: ignore[arg-type]
    reader = storage.open("k", listed.version)
    assert reader.read(100) == BIG[:100]
    storage.put("k", writing(data))  # type: ignore[arg-type]
    far = config.REMOTE_PART * config.REMOTE_AHEAD
    for start in (far, 5):
        try:
            assert reader.read_at(start, 10) == BIG[start : start + 10]
        except StaleShardError:
            continue
    with pytest.raises(StaleShardError):
        storage.open("k", listed.version).read(10)


def test_what_is_not_there(storage: RemoteStorage) -> None:
    for call in (lambda: storage.stat("no"), lambda: storage.open("no"), lambda: storage.remove("no")):
        with pytest.raises(StorageError) as raised:
            call()
        assert raised.value.errno == errno.ENOENT


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch, moto: Server) -> None:
    storage = opened(moto, monkeypatch, "x")
    gone = open_remote("s3://nobodys-bucket/x", endpoint=moto.endpoint)
    with pytest.raises(StorageError, match="nobodys-bucket"):
        gone.list((".gz",))
    assert storage.list((".gz",)) == []


# --- writing ----------------------------------------------------------------------------------------------------------


def test_conditions(storage: RemoteStorage) -> None:
    first = storage.put("k", writing(b"one"), replace=False)  # type: ignore[arg-type]
    with pytest.raises(StorageError) as raised:
        storage.put("k", writing(b"two"), replace=False)  # type: ignore[arg-type]
    assert raised.value.errno == errno.EEXIST
    second = storage.put("k", writing(b"three"), expected=first.version)  # type: ignore[arg-type]
    with pytest.raises(StaleShardError):
        storage.put("k", writing(b"four"), expected=first.version)  # type: ignore[arg-type]
    assert whole(storage, "k") == b"three"
    assert storage.stat("k") == second


def test_the_mark_is_what_a_local_storage_says_of_the_same_bytes(storage: RemoteStorage, tmp_path: Path) -> None:
    marks: list[str] = []
    storage.put("k", writing(b"bytes"), marked=marks.append)  # type: ignore[arg-type]
    (tmp_path / "k.gz").write_bytes(b"bytes")
    local = open_store(tmp_path, "squirrel").driver
    assert marks == [storage.mark("k")] == [local.mark(local.entry(Key("k")))]


def test_what_writing_raises_leaves_the_old_object(storage: RemoteStorage) -> None:
    storage.put("k", writing(b"old"))  # type: ignore[arg-type]

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise ValueError("cannot")

    with pytest.raises(ValueError, match="cannot"):
        storage.put("k", write)
    assert whole(storage, "k") == b"old"
    assert [listed.name for listed in storage.list(("",))] == ["k"]


def test_a_store_that_keeps_to_conditions_is_told_from_one_that_does_not(
    storage: RemoteStorage, rclone: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert storage.compares()
    assert storage.list(("",)) == []
    other = opened(rclone, monkeypatch, "probe")
    assert not other.compares()
    assert other.list(("",)) == []


def test_a_server_that_answers_ranges_with_everything_is_asked_for_everything(
    rclone: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = opened(rclone, monkeypatch, "ranges")
    storage.put("big", writing(BIG))  # type: ignore[arg-type]
    with storage.open("big") as reader:
        assert reader.read_at(20_000_000, 10) == BIG[20_000_000:20_000_010]
    assert whole(storage, "big") == BIG
    assert not storage.gives_ranges  # it was noticed, and not that each part was all of it


def test_an_object_has_one_version_whether_it_is_listed_or_asked_for(
    rclone: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that lists milliseconds, and ETags without quotation marks: `warm` and `verify` took each object for one
    that was replaced since it was listed."""
    storage = opened(rclone, monkeypatch, "versions")
    storage.put("k", writing(b"x"))  # type: ignore[arg-type]
    (listed,) = storage.list(("",))
    assert listed == storage.stat("k")
    with storage.open("k", listed.version) as reader:
        assert reader.read(10) == b"x"


def test_credentials_that_are_refused(rclone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = opened(rclone, monkeypatch, "x")
    storage.put("k", writing(b"x"))  # type: ignore[arg-type]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError) as raised:
        open_remote("s3://bucket/x", endpoint=rclone.endpoint).stat("k")
    assert raised.value.errno == errno.EACCES
    assert "wrong" not in str(raised.value)


# --- stores -----------------------------------------------------------------------------------------------------------


def test_a_squirrel_store_far_away(moto: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(moto, monkeypatch, "")
    store = open_store("s3://bucket/squirrel", "squirrel", endpoint=moto.endpoint)
    store.set([{"a": 1}, {"a": 2}], "k")
    store.set([{"b": b"x"}], "deep/k")
    again = open_store("s3://bucket/squirrel", endpoint=moto.endpoint)
    assert again.keys() == ["deep/k", "k"]
    assert list(again.get("k")) == [{"a": 1}, {"a": 2}]
    base = again.entry("k")
    store.set([{"a": 3}], "k")
    with pytest.raises(StaleShardError):
        again.driver.write_records(Key("k"), [], base=base)
    with pytest.raises(KeyExistsError):
        again.driver.write_records(Key("k"), [], base=None)
    again.delete("k")
    assert store.keys() == ["deep/k"]


def test_urls_that_cannot_be_opened() -> None:
    with pytest.raises(BadStoreError):
        open_store("s3://", "squirrel")


def test_secrets_of_a_url_are_not_shown() -> None:
    assert without_secrets("https://user:pass@host/a/b/?token=abc#x") == "https://host/a/b"


def test_a_time_that_is_told_later_makes_no_other_version_of_what_has_a_strong_etag() -> None:
    """rclone says the time of an upload first, and the file's a moment later: seals ended with ESTALE."""

    def told(etag: str | None, second: int) -> Version:
        when = datetime.fromtimestamp(second, UTC)
        return _listed({"path": "k", "size": 7, "e_tag": etag, "last_modified": when}).version

    assert told('"abc"', 1) == told('"abc"', 2) == told("abc", 3)
    assert told('"abc"', 1) != told('"abd"', 1)
    for weak in ('W/"abc"', None):
        assert told(weak, 1) != told(weak, 2)


# --- damage on the way ------------------------------------------------------------------------------------------------


class Flipping:
    """obstore's functions with a byte of each body flipped, at the same place of each answer."""

    def __init__(self, storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.left = times
        get = storage._get

        def flipped(*words: object) -> memoryview:
            data = get(*words)  # type: ignore[arg-type]
            if self.left <= 0:
                return data
            self.left -= 1
            damaged = bytearray(data)
            damaged[7] ^= 1
            return memoryview(damaged)

        monkeypatch.setattr(storage, "_get", flipped)


def test_a_flipped_byte_is_fetched_again(storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    version = storage.put("k", writing(b"0123456789" * 10)).version  # type: ignore[arg-type]
    Flipping(storage, monkeypatch, 1)
    assert storage.open("k", version).read(100) == b"0123456789" * 10


def test_bytes_that_are_always_flipped_are_an_error(storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    version = storage.put("k", writing(b"0123456789" * 10)).version  # type: ignore[arg-type]
    storage.requests._sleep = lambda seconds: None
    Flipping(storage, monkeypatch, 1000)
    with pytest.raises(StorageError, match="MD5"):
        storage.open("k", version).read(100)


def test_a_flipped_byte_of_a_large_object_is_an_error_at_its_end(
    storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = storage.put("big", writing(BIG)).version  # type: ignore[arg-type]
    Flipping(storage, monkeypatch, 1)
    with pytest.raises(StorageError, match="MD5"):
        storage.mark("big", version)
    assert whole(storage, "big") == BIG


def test_etags_that_are_no_md5_are_let_be(storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    etags = Etags()
    asked: list[str] = []

    def again() -> str:
        asked.append("again")
        return "a" * 32

    assert etags.fits(f'"{"0" * 32}"', "a" * 32, again)
    assert etags.told(f'"{"0" * 32}"') is None
    assert etags.fits(f'"{"1" * 32}"', "b" * 32, again)
    assert asked == ["again"]
    assert Etags().fits('"abc-3"', "a" * 32, again)


def test_etags_that_were_md5_once_are_believed() -> None:
    etags = Etags()
    assert etags.fits("a" * 32, "a" * 32, lambda: "never")
    assert not etags.fits("b" * 32, "c" * 32, lambda: "never")


def test_what_a_condition_is_too_large_for_is_efbig_and_nothing_is_stored(
    storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "REMOTE_CONDITIONAL", 1000)
    with pytest.raises(StorageError) as caught:
        storage.put("k", writing(b"x" * 1001), replace=False)  # type: ignore[arg-type]
    assert caught.value.errno == errno.EFBIG
    assert storage.list(("",)) == []
    storage.put("k", writing(b"x" * 1001))  # type: ignore[arg-type]


def test_what_was_written_with_an_account_of_it_can_be_read_when_it_was_replaced(storage: RemoteStorage) -> None:
    marks: list[str] = []
    first = storage.put("k", writing(b"mine"), marked=marks.append)  # type: ignore[arg-type]
    storage.put("k", writing(b"another's"), expected=first.version)  # type: ignore[arg-type]
    before = storage.requests.asked
    for _ in range(2):
        with storage.open("k", first.version) as reader:
            assert (reader.read(10), reader.read_at(1, 2), reader.size) == (b"mine", b"in", 4)
    assert storage.requests.asked == before
    for number in range(config.REMOTE_WRITTEN):
        storage.put(f"other{number}", writing(b"x"), marked=marks.append)  # type: ignore[arg-type]
    with storage.open("k", first.version) as reader, pytest.raises(StaleShardError):
        reader.read(10)


def test_an_object_that_is_replaced_in_the_moment_after_is_the_one_that_was_written(
    storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = storage.stat

    def late(name: str) -> object:
        obstore.put(storage.store, name, b"another's")
        return stat(name)

    marks: list[str] = []
    monkeypatch.setattr(storage, "stat", late)
    listed = storage.put("k", writing(b"mine"), marked=marks.append)  # type: ignore[arg-type]
    monkeypatch.undo()
    assert listed.size == 4
    assert listed.version != storage.stat("k").version
    with storage.open("k", listed.version) as reader:
        assert reader.read(10) == b"mine"


def test_a_small_object_is_read_whichever_version_it_has(
    storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: an index.json that was replaced between the two requests was an error for who wanted any."""
    storage.put("index.json", writing(b"old"))  # type: ignore[arg-type]
    fetch, times = storage.fetch, []

    def replaced(*what: object) -> bytes:
        if not times:
            times.append(1)
            obstore.put(storage.store, "index.json", b"newer")
        return fetch(*what)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "fetch", replaced)
    assert storage.read("index.json", 100) == b"newer"


def test_a_put_on_a_condition_has_no_parts_that_could_be_left(
    storage: RemoteStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "REMOTE_UPLOAD_PART", 5 << 20)
    whole = storage.put("k", writing(BIG), replace=False)  # type: ignore[arg-type]
    again = storage.put("k", writing(BIG), expected=whole.version)  # type: ignore[arg-type]
    parts = storage.put("k", writing(BIG))  # type: ignore[arg-type]
    tags = [parse_version(listed.version)[2] for listed in (whole, again, parts)]
    assert ["-" in tag for tag in tags] == [False, False, True]  # S3's for what was put in parts


def test_tars_that_a_url_names_are_just_these(moto: Server, storage: RemoteStorage, tmp_path: Path) -> None:
    """As on a web server, and on this machine; of any store that lists."""
    url, where = storage.root, {"endpoint": moto.endpoint, "cache_size": 0}
    writer = open_store(f"{url}/t", "webdataset", **where)  # type: ignore[arg-type]
    for number in range(4):
        writer.set([{"__key__": "a", "txt": str(number)}], f"s-{number}")
    store = open_store(f"{url}/t/s-{{1..3}}.tar", **where)  # type: ignore[arg-type]
    assert store.keys() == ["s-1", "s-2", "s-3"]
    assert not store.driver.writable
    assert open_store(f"{url}/t/s-0.tar", **where).keys() == ["s-0"]  # type: ignore[arg-type]
    with pytest.raises(BadStoreError, match=r"s-4\.tar: there is no such tar"):
        open_store(f"{url}/t/s-{{3..4}}.tar", **where)  # type: ignore[arg-type]
    for other, driver in ((f"{url}/t/s-{{1,1}}.tar", None), (f"{url}/t/s-0.tar", "squirrel")):
        with pytest.raises(BadSettingError):
            open_store(other, driver, **where)  # type: ignore[arg-type]


def test_names_that_no_object_can_have(storage: RemoteStorage) -> None:
    """Regression: obstore's ValueError passed through."""
    for name in ("../k", "a//b", "."):
        with pytest.raises(StorageError) as raised:
            storage.stat(name)
        assert raised.value.errno == errno.ENOENT
        with pytest.raises(StorageError) as raised:
            storage.put(name, writing(b"x"))  # type: ignore[arg-type]
        assert raised.value.errno == errno.EINVAL


class _Paged(BaseHTTPRequestHandler):
    """A bucket of KEYS objects `s/000000.gz` and so on, 1,000 of which are told at a time."""

    protocol_version = "HTTP/1.1"
    KEYS = 100_000
    asked: list[int] = []  # noqa: RUF012

    def log_message(self, *words: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        begin = int(parse_qs(urlsplit(self.path).query).get("continuation-token", ["0"])[0])
        self.asked.append(begin)
        told = "".join(
            f"<Contents><Key>s/{number:06}.gz</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{number:032x}&quot;</ETag><Size>10</Size></Contents>"
            for number in range(begin, begin + 1000)
        )
        last = begin + 1000 >= self.KEYS
        more = "" if last else f"<NextContinuationToken>{begin + 1000}</NextContinuationToken>"
        body = f"<ListBucketResult><IsTruncated>{str(not last).lower()}</IsTruncated>{told}{more}</ListBucketResult>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


def test_a_hundred_thousand_keys_are_listed_by_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    _Paged.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Paged) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            store = open_store("s3://b/s", "squirrel", endpoint=f"http://127.0.0.1:{server.server_port}", cache_size=0)
            assert store.keys() == [f"{number:06}" for number in range(_Paged.KEYS)]
        finally:
            server.shutdown()
    assert _Paged.asked == list(range(0, _Paged.KEYS, 1000))
