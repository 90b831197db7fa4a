"""Every fault between here and an S3 server: right bytes, or the errno that is documented, by the deadline."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

from shardfs import config
from shardfs.errors import BadSettingError, MissingExtraError, StorageError
from shardfs.opening import open_store
from shardfs.storage.cache_files import CacheFiles
from shardfs.storage.disk_cache import cached
from shardfs.storage.remote import RemoteStorage
from shardfs.storage.requests import Requests
from shardfs.storage.urls import open_remote
from tests.conformance.trees import wait_for
from tests.fault_proxy import FAULTS, FaultProxy, fault_proxy
from tests.servers import Server, nginx_server

pytestmark = pytest.mark.timeout(120)

DATA = os.urandom(1 << 16)
BIG = os.urandom(1 << 20) * 17
SLACK = 1.5
"""Seconds beyond the deadline that a busy machine may take to say so."""

SECONDS = {"latency": 0.2, "drip": 0.05}
ALWAYS = {
    "refuse": errno.ETIMEDOUT, "black-hole": errno.ETIMEDOUT, "latency": None, "drip": errno.ETIMEDOUT,
    "reset": errno.ETIMEDOUT, "reset-mid-body": errno.ETIMEDOUT, "early-end": errno.ETIMEDOUT,
    "status": errno.ETIMEDOUT, "flip": errno.EIO, "short": errno.EIO, "page": errno.EIO,
}  # fmt: skip
"""What becomes of a read when the fault does not pass. Damage is EIO after a few repetitions, or ETIMEDOUT where the
deadline comes first."""


@pytest.fixture(scope="module")
def moto(moto: Server) -> Server:
    """With two objects in it."""
    storage = open_remote("s3://bucket/x", endpoint=moto.endpoint)
    obstore.put(storage.store, "k", DATA)
    obstore.put(storage.store, "big", BIG, use_multipart=False)  # or its ETag would be no MD5
    return moto


@pytest.fixture
def proxy(moto: Server) -> Iterator[FaultProxy]:
    with fault_proxy(moto.endpoint) as made:
        yield made


def far(proxy: FaultProxy, deadline: float, **more: Any) -> RemoteStorage:
    return open_remote("s3://bucket/x", endpoint=proxy.endpoint, deadline=deadline, **more)


def whole(storage: Any, name: str, version: Any) -> bytes:
    pieces = []
    with storage.open(name, version) as reader:
        while piece := reader.read(1 << 24):
            pieces.append(piece)
    return b"".join(pieces)


def clean(folder: Path) -> None:
    """Nothing is left of what did not come."""
    assert CacheFiles(folder, 1 << 40).verify() == []
    left = {path.name for path in folder.glob("??/*")}
    assert all(name.endswith((".data", ".about")) for name in left), left


def ends(call: Callable[[], object], deadline: float, *codes: int) -> StorageError:
    """It must fail so, in time."""
    begun = time.monotonic()
    with pytest.raises(StorageError) as raised:
        call()
    assert time.monotonic() - begun < deadline + SLACK
    assert raised.value.errno in codes, raised.value
    return raised.value


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_does_not_pass(proxy: FaultProxy, tmp_path: Path, kind: str, kept: bool) -> None:
    plain = far(proxy, 1.0)
    storage: Any = cached(plain, "s", cache_dir=tmp_path, min_free=0) if kept else plain
    version = plain.stat("k").version
    proxy.fail(kind, seconds=SECONDS.get(kind, 0))
    expected = ALWAYS[kind]
    if expected is None:
        assert whole(storage, "k", version) == DATA
    else:
        ends(lambda: whole(storage, "k", version), 1.0, expected, errno.ETIMEDOUT)
    clean(tmp_path)
    if kept:
        assert storage.health()["cache"]["bytes"] in (0, len(DATA))  # what did not come takes no room
    proxy.heal()
    wait_for(lambda: not plain.requests.breaker.told()["since"] or bool(plain.stat("k")))
    assert whole(storage, "k", version) == DATA
    assert whole(plain, "k", version) == DATA


@pytest.mark.parametrize("name", ["k", "big"])
@pytest.mark.parametrize("kind", [kind for kind in FAULTS if kind not in ("refuse", "drip")])
def test_a_fault_that_passes(proxy: FaultProxy, tmp_path: Path, kind: str, name: str) -> None:
    plain = far(proxy, 20.0)
    storage = cached(plain, "s", cache_dir=tmp_path, min_free=0)
    version = plain.stat(name).version
    read = {"k": DATA, "big": BIG}[name]
    client_gives_up = kind == "black-hole"
    if client_gives_up:
        plain = far(proxy, 6.0)
        storage = cached(plain, "s", cache_dir=tmp_path, min_free=0)
    proxy.fail(kind, 1, seconds=SECONDS.get(kind, 0))
    assert whole(storage, name, version) == read
    clean(tmp_path)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_that_is_busy_is_asked_again(proxy: FaultProxy, status: int) -> None:
    storage = far(proxy, 20.0)
    version = storage.stat("k").version
    proxy.fail("status", 3, status=status)
    assert whole(storage, "k", version) == DATA
    assert storage.requests.repeated == 3


@pytest.mark.parametrize("kind", ["black-hole", "drip", "status", "refuse", "page"])
def test_names_and_writing_have_the_same_deadline(proxy: FaultProxy, kind: str) -> None:
    storage = far(proxy, 1.0)
    assert storage.stat("k").size == len(DATA)
    proxy.fail(kind, seconds=0.05)
    codes = errno.ETIMEDOUT, errno.EIO
    ends(lambda: storage.list(("",)), 1.0, *codes)
    if kind == "drip":
        return  # of a HEAD nothing drips
    ends(lambda: storage.stat("k"), 1.0, *codes)
    ends(lambda: storage.put("new", lambda file: file.write(b"x") and None), 1.0, *codes)


def test_a_page_of_html_is_no_listing_of_nothing(proxy: FaultProxy) -> None:
    """It parses as one: the mount would show an empty directory, and whoever mirrors it would delete his copy."""
    proxy.fail("page")
    ends(lambda: far(proxy, 5.0).list(("",)), 5.0, errno.EIO, errno.ETIMEDOUT)
    proxy.fail("page", 1)
    assert [listed.name for listed in far(proxy, 5.0).list(("k", "big"))] == ["big", "k"]
    proxy.heal()
    assert open_remote("s3://bucket/nothing", endpoint=proxy.endpoint).list(("",)) == []


def test_parts_that_drip_have_one_deadline_together(proxy: FaultProxy) -> None:
    """Each of them would come in its own time: latency, as often as there are parts."""
    storage = far(proxy, 1.5)
    version = storage.stat("big").version
    proxy.fail("latency", seconds=0.4, only=lambda method, target: method == "GET")
    reader = storage.open("big", version)
    begun = time.monotonic()
    with pytest.raises(StorageError) as raised:  # noqa: PT012
        for _ in range(40):
            reader._parts.clear()  # as an object of so many parts would have them
            reader.read(1)
    assert raised.value.errno == errno.ETIMEDOUT
    assert time.monotonic() - begun < 1.5 + SLACK


def test_a_reader_who_takes_his_time_is_not_late(proxy: FaultProxy) -> None:
    storage = far(proxy, 1.0)
    version = storage.stat("big").version
    with storage.open("big", version) as reader:
        first = reader.read(1 << 20)
        threading.Event().wait(1.2)  # it is time itself that must pass here
        rest = b""
        while piece := reader.read(1 << 24):
            rest += piece
    assert first + rest == BIG


def test_waiting_for_another_that_brings_it_counts(proxy: FaultProxy, tmp_path: Path) -> None:
    plain = far(proxy, 1.0)
    storage = cached(plain, "s", cache_dir=tmp_path, min_free=0)
    version = plain.stat("k").version
    proxy.fail("black-hole")
    codes: list[int] = []
    begun = time.monotonic()

    def read() -> None:
        try:
            whole(storage, "k", version)
        except StorageError as error:
            codes.append(error.errno)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - begun < 1.0 + SLACK
    assert codes == [errno.ETIMEDOUT] * 4
    clean(tmp_path)


def test_a_large_body_may_take_longer_to_send_than_a_stall(proxy: FaultProxy) -> None:
    """A client counts from when it begins to send: 64 MiB would have to go out within ten seconds."""
    storage = far(proxy, 3.0)
    proxy.fail("latency", seconds=1.5, only=lambda method, target: method == "PUT")
    before = len(proxy.requests)
    storage.put("sent", lambda file: file.write(BIG[: 3 << 20]) and None)
    assert [method for method, _ in proxy.requests[before:]] == ["PUT", "HEAD"]


# --- a second request, and none ---------------------------------------------------------------------------------------


def test_a_read_that_stalls_is_asked_twice(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HEDGE_LEAST", 0.2)
    storage = far(proxy, 20.0)
    version = storage.stat("k").version
    proxy.fail("black-hole", 1)
    begun = time.monotonic()
    assert whole(storage, "k", version) == DATA
    assert time.monotonic() - begun < 5  # the first alone would have stalled for 6.7 s
    assert (storage.requests.hedging.asked, storage.requests.hedging.won) == (1, 1)


def test_writes_and_listings_are_never_asked_twice(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HEDGE_LEAST", 0.1)
    storage = far(proxy, 20.0)
    proxy.fail("latency", seconds=0.5)
    before = len(proxy.requests)
    storage.put("once", lambda file: file.write(b"x") and None)
    storage.list(("",))
    assert storage.requests.hedging.asked == 0
    assert [method for method, _ in proxy.requests[before:]] == ["PUT", "HEAD", "GET"]


def test_only_a_small_share_is_asked_twice(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HEDGE_LEAST", 0.05)
    storage = far(proxy, 20.0)
    monkeypatch.setattr(storage.requests.hedging, "took", lambda seconds: None)
    version = storage.stat("k").version
    proxy.fail("latency", seconds=0.15)
    for _ in range(config.HEDGE_FREE + 4):
        assert whole(storage, "k", version) == DATA
    assert storage.requests.hedging.asked == config.HEDGE_FREE


def test_a_store_that_does_not_answer_is_not_waited_for(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "BREAKER_WAIT", 0.3)
    storage = far(proxy, 0.6)
    version = storage.stat("k").version
    proxy.fail("black-hole")
    for _ in range(config.BREAKER_FAILURES):
        ends(lambda: whole(storage, "k", version), 0.6, errno.ETIMEDOUT)
    before = len(proxy.requests)
    begun = time.monotonic()
    for _ in range(20):
        error = ends(lambda: whole(storage, "k", version), 0.6, errno.ETIMEDOUT)
    assert time.monotonic() - begun < 0.6
    assert "does not answer since" in str(error)
    assert len(proxy.requests) == before
    told = storage.health()
    assert not told["answers"]
    assert "reading k in s3://bucket/x" in told["error"]
    proxy.heal()
    monkeypatch.setattr(storage.requests.breaker, "_next", 0.0)
    assert whole(storage, "k", version) == DATA
    assert storage.health()["answers"]


def test_errors_of_the_store_are_answers(proxy: FaultProxy) -> None:
    storage = far(proxy, 0.6)
    version = storage.stat("k").version
    proxy.fail("status")
    for _ in range(config.BREAKER_FAILURES + 1):
        ends(lambda: whole(storage, "k", version), 0.6, errno.ETIMEDOUT)
    assert storage.health()["answers"]


def test_threads_of_requests_that_hang_are_bounded_and_end(proxy: FaultProxy) -> None:
    requests = Requests("here", deadline=0.2, at_once=4)
    gate = threading.Event()
    for _ in range(3):
        with pytest.raises(StorageError):
            requests.run("hanging", gate.wait, until=requests.now() + 0.05)
    assert requests._threads._count <= 3
    gate.set()
    requests.breaker.heard()
    assert requests.run("again", lambda: 1) == 1


# --- without the store ------------------------------------------------------------------------------------------------


def test_offline_asks_nothing(proxy: FaultProxy, tmp_path: Path) -> None:
    where: dict[str, Any] = {"endpoint": proxy.endpoint, "cache_dir": tmp_path, "min_free": 0}
    writer = open_store("s3://bucket/offline", "squirrel", **where)
    writer.set([{"a": 1}], "one")
    writer.set([{"a": 2}], "two")
    first = open_store("s3://bucket/offline", **where)
    assert list(first.get("one")) == [{"a": 1}]
    before = len(proxy.requests)
    store = open_store("s3://bucket/offline", **where, offline=True)
    assert store.keys() == ["one", "two"]
    assert list(store.get("one")) == [{"a": 1}]
    with pytest.raises(StorageError, match="--offline") as raised:
        store.get("two")
    assert raised.value.errno == errno.ENETUNREACH
    with pytest.raises(StorageError, match="--offline"):
        store.set([], "three")
    assert len(proxy.requests) == before


def test_what_was_known_is_used_while_the_store_is_silent_at_the_start(
    proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "BREAKER_PROBE", 0.3)
    where: dict[str, Any] = {"endpoint": proxy.endpoint, "cache_dir": tmp_path, "min_free": 0, "deadline": 1.0}
    open_store("s3://bucket/silent", "squirrel", **where).set([{"a": 1}], "k")
    assert open_store("s3://bucket/silent", **where).keys() == ["k"]
    proxy.fail("refuse")
    begun = time.monotonic()
    store = open_store("s3://bucket/silent", **where)
    assert store.keys() == ["k"]
    assert time.monotonic() - begun < 1.0 + SLACK  # one deadline, and not one for each question
    assert "what was known of the store at" in caplog.text
    proxy.heal()
    wait_for(lambda: not _silent(store))
    open_store("s3://bucket/silent", **where).set([{"a": 2}], "new")
    assert store.keys() == ["k", "new"]
    proxy.fail("refuse")
    with pytest.raises(StorageError):
        store.keys()  # what was heard since is not taken back


def _silent(store: Any) -> bool:
    store.keys()
    return bool(store.health()["since"])


def test_what_is_known_of_another_store_or_damaged_is_not_used(proxy: FaultProxy, tmp_path: Path) -> None:
    far(proxy, 1.0, known_dir=tmp_path).list(("",))
    with pytest.raises(StorageError):
        open_remote("s3://bucket/other", endpoint=proxy.endpoint, offline=True, known_dir=tmp_path).list(("",))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StorageError):
        far(proxy, 1.0, known_dir=tmp_path, offline=True).list(("",))


def test_deadlines_that_make_no_sense() -> None:
    for seconds in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(BadSettingError, match="deadline"):
            open_remote("s3://bucket", deadline=seconds)


# --- credentials ------------------------------------------------------------------------------------------------------


def test_secrets_in_urls_reach_the_server_and_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "k").write_bytes(b"hello")
    with nginx_server(tmp_path / "data", tmp_path / "state") as server, fault_proxy(server.endpoint) as proxy:
        plain = proxy.endpoint
        for url in (plain.replace("://", "://user:s3cr3t@"), f"{plain}/?token=s3cr3t"):
            storage = open_remote(url, deadline=0.6)
            assert storage.read("k", 10) == b"hello"
            said = [str(storage.root), str(storage.health())]
            for fault in ({"status": 400}, {"status": 403}, {"status": 503}):
                proxy.fail("status", **fault)
                with pytest.raises(StorageError) as raised:
                    storage.stat("k")
                said += [str(raised.value), repr(raised.value.__cause__)]
            for kind in ("reset", "black-hole"):
                proxy.fail(kind)
                with pytest.raises(StorageError) as raised:
                    storage.read("k", 10)
                said += [str(raised.value), repr(raised.value.__cause__)]
            proxy.heal()
            assert "s3cr3t" not in "\n".join([*said, caplog.text])
        assert ("GET", "/k?token=s3cr3t") in proxy.requests


def test_secrets_in_settings_are_in_no_text(proxy: FaultProxy) -> None:
    secret = {"aws_secret_access_key": "s3cr3t", "aws_access_key_id": "name"}
    storage = open_remote("s3://bucket/x", endpoint=proxy.endpoint, deadline=0.6, storage_options=secret)
    proxy.fail("status", status=403)
    with pytest.raises(StorageError) as raised:
        storage.stat("k")
    assert raised.value.errno == errno.EACCES
    assert "s3cr3t" not in str(raised.value) + repr(raised.value.__cause__)
    with pytest.raises(Exception, match="cannot be opened") as other:
        open_remote("s3://bucket/x", storage_options={**secret, "no_such": "s3cr3t"})
    assert "s3cr3t" not in str(other.value) + repr(other.value.__cause__)


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of AWS's with the profile `work`, and nothing in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = work-key\naws_secret_access_key = s3cr3t\n")
    (tmp_path / "config").write_text("[profile work]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


def test_a_profile_is_used(proxy: FaultProxy, profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "work")
    storage = open_remote("s3://bucket/x", endpoint=proxy.endpoint, deadline=10)
    assert whole(storage, "k", storage.stat("k").version) == DATA
    assert "eu-west-1" in str(storage.store.config)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(BadSettingError, match="AWS_PROFILE=nobody"):
        open_remote("s3://bucket/x", endpoint=proxy.endpoint)
    with pytest.raises(StorageError) as raised:  # the server lets nobody in without a signature
        open_remote("s3://bucket/x", endpoint=proxy.endpoint, anonymous=True).stat("k")
    assert raised.value.errno == errno.EACCES


def test_a_profile_without_boto3(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "boto3", None)
    monkeypatch.setenv("AWS_PROFILE", "work")
    with pytest.raises(MissingExtraError, match="pip install boto3"):
        open_remote("s3://bucket/x")
    monkeypatch.delenv("AWS_PROFILE")
    open_remote("s3://bucket/x")
