"""docs/SEMANTICS.md, statement by statement: reading a mount that cannot be changed, whose files are opened without a
request; and where they are opened by request all the same."""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections import Counter
from pathlib import Path

import pytest

from shardfs import config, daemon, open_store
from tests.conformance.trees import fails, wait_for
from tests.mount.conftest import mount_point, mounting, run
from tests.mount.test_lifecycle import serving

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

SIZE, SAMPLES = 5000, 30
ASKED = ("open", "read", "release")


def asked(path: Path) -> Counter[str]:
    """Requests so far, as the mount itself counts them; to ask is a read, and an opening where those are asked for."""
    lines = (path / ".shardfs/metrics").read_text().splitlines()
    told = {line.split('"')[1]: int(line.split()[-1]) for line in lines if line.startswith("shardfs_requests_total")}
    return Counter(told)


def bytes_of(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.glob("k/*.bin"))]


def mapped(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert os.fstat(file.fileno()).st_size == len(pages)
        return pages[:]


def drop(path: Path) -> None:
    """Have the kernel drop what it has of a file's content."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = open_store(tmp_path / "store", driver="squirrel")
    made.set([{"x": os.urandom(SIZE), "label": at} for at in range(SAMPLES)], "k")
    made.set([{"x": os.urandom(SIZE)}], "other")
    return tmp_path / "store"


def descriptors(path: Path) -> int:
    record = daemon.find(str(path))
    assert record is not None
    held = [os.readlink(f"/proc/{record.pid}/fd/{number}") for number in os.listdir(f"/proc/{record.pid}/fd")]
    return sum("/store/" in each for each in held)


def check_documents(path: Path) -> None:
    """A document that is open is what it was, whatever became of it since; and no state is kept for good."""
    document = path / ".shardfs/status.json"
    with document.open("rb") as opened:
        before = opened.read()
        for _ in range(config.CONTROL_STATES + 20):
            assert json.loads(document.read_bytes())["health"] == "serving"
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        opened.seek(0)
        assert opened.read() == before


def check_raw(store: Path, path: Path) -> None:
    """A stored shard that is read is kept open, and given back when the kernel has forgotten it."""
    raw, stored = path / ".shardfs/raw/k", (store / "k.gz").read_bytes()
    with raw.open("rb") as opened:
        assert opened.read() == stored
        assert descriptors(path) == 1
        open_store(store, driver="squirrel").set([{"label": 1}], "k")
        drop(raw)
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        opened.seek(0)
        assert opened.read() == stored
    wait_for(lambda: raw.read_bytes() != stored or refreshed(path))
    wait_for(lambda: descriptors(path) <= 1)
    assert raw.read_bytes() == (store / "k.gz").read_bytes()


def refreshed(path: Path) -> bool:
    """Have the store compared with what is shown."""
    assert run("refresh", path).returncode == 0
    return False


def content_of(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None


class TestReadingWithoutRw:
    def test_who_reads_again_asks_nothing(self, store: Path) -> None:
        with mounting(store, "--refresh", "manual") as path:
            first = bytes_of(path)
            assert {len(each) for each in first} == {SIZE}
            before = asked(path)
            assert before["open"] == 1
            assert before["release"] == 0
            assert bytes_of(path) == first
            assert mapped(path / "k/000003.x.bin") == first[3]
            since = asked(path) - before
            assert {name: since[name] for name in ASKED} == {"open": 0, "read": 1, "release": 0}, "the read is our own"
            with pytest.raises(OSError, match="Read-only"):
                (path / "k/000003.x.bin").write_bytes(b"")
            drop(path / "k/000003.x.bin")
            assert mapped(path / "k/000003.x.bin") == first[3]
            check_documents(path)
            check_raw(store, path)

    def test_a_replaced_file_is_old_or_estale_without_its_name(self, store: Path) -> None:
        """Names are what leads to the new version; a directory that is open is that of the old one, and says so."""
        with mounting(store, "--memory", "1") as path:
            old = (path / "k/000000.x.bin").read_bytes()
            inside = os.open(path / "k", os.O_RDONLY | os.O_DIRECTORY)
            held = os.open(path / "k/000001.x.bin", os.O_RDONLY)
            new = os.urandom(SIZE)
            open_store(store, driver="squirrel").set([{"x": new}], "k")
            wait_for(lambda: content_of(path / "k/000000.x.bin") == new)
            assert content_of(path / "other/000000.x.bin")

            def through() -> bytes | int:
                try:
                    descriptor = os.open("000000.x.bin", os.O_RDONLY, dir_fd=inside)
                except OSError as error:
                    return error.errno or 0
                try:
                    return os.read(descriptor, SIZE)
                except OSError as error:
                    return error.errno or 0
                finally:
                    os.close(descriptor)

            assert through() in (old, errno.ESTALE)
            wait_for(lambda: through() == errno.ESTALE)
            with fails(errno.ESTALE):
                os.pread(held, 10, 0)
            os.close(inside)
            os.close(held)


@pytest.mark.parametrize("words", [("--rw",), ("--trace", "trace")])
def test_opens_are_asked_for_where_somebody_wants_to_see_them(store: Path, words: tuple[str, ...]) -> None:
    words = tuple(str(store.parent / word) if word == "trace" else word for word in words)
    with mounting(store, *words) as path:
        before = asked(path)
        assert bytes_of(path) == bytes_of(path)
        wait_for(lambda: (asked(path) - before)["release"] >= 2 * SAMPLES)
        assert (asked(path) - before)["open"] >= 2 * SAMPLES


@pytest.mark.parametrize(
    "wrong",
    [
        "open_requests._OPEN = 99",
        "open_requests.SCOPES.clear()",
    ],
)
def test_where_pyfuse3_is_not_what_it_must_be_files_are_opened_by_request(store: Path, wrong: str) -> None:
    with mount_point(made=True) as path, serving(store, path, f"from shardfs import open_requests\n{wrong}\n"):
        before = asked(path)
        assert bytes_of(path) == bytes_of(path)
        assert (asked(path) - before)["open"] >= 2 * SAMPLES
