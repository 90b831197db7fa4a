"""docs/SEMANTICS.md, statement by statement: what is left of older versions, and disks that fail.

Each is shown once here; `tests/unit/test_gc.py`, `test_faults.py` and `test_crash.py` go through all the ways."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shardfs import open_store
from shardfs.drivers.base import Value
from shardfs.drivers.garbage import Collecting
from shardfs.model import Key
from tests.conformance.trees import wait_for
from tests.mount.conftest import SECONDS, SlowStore, mount_point, mounting
from tests.mount.conftest import run as shardfs
from tests.mount.crashing import ONE_WORKER, Victim, injecting, need_strace, stored, temporaries, victim
from tests.mount.semantics import WORDS, command, refused, sync
from tests.mount.test_crash import HURRIED, PATIENT, hanging_seal, terminate
from tests.mount.test_faults import fill, make_store, mounted_disk, remount, write_key

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]

OFF = ("--write-back", "off", "--no-index")


@pytest.fixture
def rewritten(tmp_path: Path) -> Path:
    """A data set of two shards, the first of which was written three times."""
    store = tmp_path / "set"
    for value in (0, 1, 2):
        open_store(store, driver="streaming").set([{"label": value}], "a")
    open_store(store).set([{"label": 7}], "b")
    return store


def gc(store: Path, *words: str, status: int = 0) -> dict[str, Any]:
    done = shardfs("gc", store, "--json", *words)
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout or "{}")
    return found


def rest_of(file: Any) -> bytes | None:
    """What is left to be read; None for a file whose version is gone."""
    try:
        return b"".join(iter(lambda: file.read(1 << 16), b""))
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None


def shards(store: Path) -> list[str]:
    return sorted(path.name for path in store.glob("*.mds"))


class TestWhatIsLeftOfOlderVersions:
    def test_gc_lists_what_belongs_to_no_key(self, rewritten: Path) -> None:
        (rewritten / (".shardfs-tmp-" + "0" * 16)).write_bytes(b"of a writer that died")
        before = sorted(os.listdir(rewritten))
        listed = gc(rewritten, "--older-than", "0")
        assert [(one["name"], one["kind"]) for one in listed["garbage"]] == [
            (".shardfs-tmp-" + "0" * 16, "unfinished"),
            ("a.mds", "superseded"),
            ("a.r2.mds", "superseded"),
        ]
        assert sorted(os.listdir(rewritten)) == before
        assert gc(rewritten, "--older-than", "0", "--yes")["removed"] == 3
        assert sorted(os.listdir(rewritten)) == ["a.r3.mds", "b.mds", "index.json"]
        assert list(open_store(rewritten).get("a")) == [{"label": 2}]

    def test_gc_leaves_what_an_index_names(self, rewritten: Path) -> None:
        (rewritten / "a.r1.mds").write_bytes(b"called like a shard, and none")
        index = json.loads((rewritten / "index.json").read_text())
        for shard in index["shards"]:
            shard["raw_data"]["basename"] = "set/" + shard["raw_data"]["basename"].replace(".r3", ".r2")
        (rewritten.parent / "index.json").write_text(json.dumps(index))
        assert gc(rewritten, "--older-than", "0", "--yes")["removed"] == 1
        assert shards(rewritten) == ["a.r1.mds", "a.r2.mds", "a.r3.mds", "b.mds"]

    def test_gc_leaves_what_somebody_is_writing(self, rewritten: Path) -> None:
        """A shard is in no index until it is there as a whole."""
        said: list[dict[str, Any]] = []
        driver = open_store(rewritten).driver
        assert isinstance(driver, Collecting)
        put = driver.storage.put  # type: ignore[attr-defined]

        def watched(name: str, write: Callable[[Any], None], **how: Any) -> Any:
            def wrote(file: Any) -> None:
                write(file)
                file.flush()
                said.extend(gc(rewritten, "--older-than", "0", "--yes", "--unnamed")["garbage"])

            return put(name, wrote, **how)

        driver.storage.put = watched  # type: ignore[attr-defined]
        driver.write_records(Key("c"), [Value({"label": 3}, "0")], base=None)
        kept = [one for one in said if one["kind"] != "superseded"]
        assert {one["state"] for one in kept} == {"kept"}
        assert all("just being written" in one["kept"] for one in kept)
        assert "c.mds" in {one["name"] for one in kept}
        assert list(open_store(rewritten).get("c")) == [{"label": 3}]

    def test_gc_leaves_what_is_young(self, rewritten: Path) -> None:
        for words in ((), ("--older-than", "3600")):
            listed = gc(rewritten, "--yes", *words)
            assert (listed["removed"], {one["state"] for one in listed["garbage"]}) == (0, {"kept"})
        assert shards(rewritten) == ["a.mds", "a.r2.mds", "a.r3.mds", "b.mds"]

    def test_gc_removes_what_nothing_has_superseded_with_unnamed_only(self, rewritten: Path) -> None:
        open_store(rewritten).delete("b")
        assert gc(rewritten, "--older-than", "0", "--yes")["removed"] == 2
        assert shards(rewritten) == ["a.r3.mds", "b.mds"]
        assert gc(rewritten, "--older-than", "0", "--yes", "--unnamed")["removed"] == 1
        open_store(rewritten).set([{"label": 8}], "b")
        assert shards(rewritten) == ["a.r3.mds", "b.mds"]

    def test_gc_stops_at_an_index_that_it_cannot_read(self, rewritten: Path) -> None:
        (rewritten / "val").mkdir()
        (rewritten / "val/index.json").write_text("{")
        assert gc(rewritten, "--older-than", "0", "--yes", status=3) == {}
        (rewritten / "val/index.json").unlink()
        (rewritten.parent / "index.json").symlink_to("set/index.json")
        assert gc(rewritten.parent, "--older-than", "0", "--yes", status=3) == {}
        assert shards(rewritten) == ["a.mds", "a.r2.mds", "a.r3.mds", "b.mds"]

    def test_a_mount_goes_on_beside_gc(self, tmp_path: Path) -> None:
        store = tmp_path / "set"
        open_store(store, driver="streaming").set([{"x": bytes([n]) * 300_000, "label": n} for n in range(2)], "a")
        with mounting(store, "--no-index") as mnt:
            with open(mnt / "a/000000.x.bin", "rb", buffering=0) as held:
                assert held.read(10) == bytes(10)
                open_store(store).set([{"x": b"new", "label": n} for n in range(2)], "a")
                assert gc(store, "--older-than", "0", "--yes")["removed"] == 1
                wait_for(lambda: (mnt / "a/000000.x.bin").read_bytes() == b"new")
                os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert rest_of(held) in (bytes(299_990), None), "never other bytes"
            assert (mnt / "a/000001.x.bin").read_bytes() == b"new"


@contextmanager
def on_a_disk(tmp_path: Path, size: str) -> Iterator[tuple[Path, Victim]]:
    """A store on a disk of its own, and a mount of it that has not been started."""
    with mounted_disk(tmp_path / "disk", f"size={size}") as disk:
        store = make_store(disk / "store")
        with victim(store, tmp_path, *OFF) as mount:
            yield disk, mount


def each_way(mount: Victim, code: int) -> None:
    """`sync`, the rename and the commit fail with one error, and change nothing."""
    with refused(code):
        sync(mount.path / "new")
    with refused(code):
        os.rename(mount.path / "moved.tmp", mount.path / "moved")
    done = shardfs("commit", mount.path, "new")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "new" in done.stderr
    for name in ("new", "moved.tmp"):
        assert (mount.path / name / "000000.json").read_text() == '{"label": 7}'
    assert stored(mount.store, "new") is None


def then_stored(mount: Victim) -> None:
    """The cause is gone: all of it is stored."""
    sync(mount.path / "new")
    os.rename(mount.path / "moved.tmp", mount.path / "moved")
    assert stored(mount.store, "new") == stored(mount.store, "moved") == [{"label": 7}]
    mount.end()
    assert mount.staged() == {}


class TestWhenADiskFailsOrTheStoreIsAway:
    def test_what_could_not_be_stored_is_stored_once_it_can_be(self, tmp_path: Path) -> None:
        store, away = make_store(tmp_path / "store"), tmp_path / "away"
        with victim(store, tmp_path, "--write-back", "0.2", "--no-index") as mount:
            mount.start()
            write_key(mount.path / "first")
            wait_for(lambda: stored(store, "first") == [{"label": 7}])
            store.rename(away)
            write_key(mount.path / "new")
            wait_for(lambda: "new is not sealed, and stays staged" in mount.said)
            assert (mount.path / "new/000000.json").read_text() == '{"label": 7}'
            away.rename(store)
            wait_for(lambda: stored(store, "new") == [{"label": 7}])
            mount.end()
            assert mount.staged() == {}

    def test_enospc_means_that_the_staging_disk_has_no_room(self, tmp_path: Path) -> None:
        store = make_store(tmp_path / "store")
        with mounted_disk(tmp_path / "disk", "size=8m") as disk, victim(store, tmp_path, *OFF, state=disk) as mount:
            mount.start()
            write_key(mount.path / "new")
            write_key(mount.path / "gone")
            write_key(mount.path / "b")
            open_store(store).set([{"label": 99}], "b")
            fill(disk)
            with refused(errno.ENOSPC):
                (mount.path / "new/000001.x.bin").write_bytes(bytes(100_000))
            with refused(errno.ENOSPC):
                write_key(mount.path / "more")
            command("rm", "-r", mount.path / "gone")
            (mount.path / "new/000001.x.bin").unlink(missing_ok=True)
            sync(mount.path / "new")
            assert stored(store, "new") == [{"label": 7}]
            with refused(errno.ESTALE):
                sync(mount.path / "b")
            (aside,) = mount.path.glob("b.conflict-*")
            command("rm", "-r", aside)
            (disk / "filler").unlink()
            mount.end()

    def test_eio_means_that_the_staging_disk_has_failed(self, tmp_path: Path) -> None:
        need_strace()
        store = make_store(tmp_path / "store")
        with victim(store, tmp_path, *OFF, script=ONE_WORKER) as mount:
            mount.start()
            write_key(mount.path / "new")
            once = "fsync:error=EIO:when=1"
            with (
                injecting(mount.pid, tmp_path / "trace", once) as injection,
                refused(errno.EIO),
                open(mount.path / "new/000000.json", "r+b") as file,
            ):
                os.fsync(file.fileno())
            assert injection.injected()
            with open(mount.path / "new/000000.json", "r+b") as file:
                os.fsync(file.fileno())
            with injecting(mount.pid, tmp_path / "trace2", once), refused(errno.EIO):
                sync(mount.path / "new")
            assert stored(store, "new") is None
            sync(mount.path / "new")
            assert stored(store, "new") == [{"label": 7}]
            mount.end()

    def test_enospc_means_that_the_disk_of_the_store_is_full(self, tmp_path: Path) -> None:
        with on_a_disk(tmp_path, "2m") as (disk, mount):
            mount.start()
            write_key(mount.path / "new")
            write_key(mount.path / "moved.tmp")
            fill(disk)
            each_way(mount, errno.ENOSPC)
            (disk / "filler").unlink()
            then_stored(mount)

    def test_erofs_means_that_the_disk_of_the_store_has_become_read_only(self, tmp_path: Path) -> None:
        with on_a_disk(tmp_path, "8m") as (disk, mount):
            mount.start()
            write_key(mount.path / "new")
            write_key(mount.path / "moved.tmp")
            remount(disk, "ro")
            each_way(mount, errno.EROFS)
            remount(disk, "rw")
            then_stored(mount)

    def test_a_store_that_is_read_only_is_not_mounted_for_writing(self, tmp_path: Path) -> None:
        with mounted_disk(tmp_path / "disk", "size=8m") as disk, mount_point() as path:
            store = make_store(disk / "store")
            remount(disk, "ro")
            done = shardfs("mount", "--rw", store, path, XDG_STATE_HOME=str(tmp_path / "state"))
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
            assert "Read-only file system" in done.stderr

    @pytest.mark.parametrize("instead", ["nothing", "an empty directory"])
    def test_eio_means_that_the_directory_of_the_store_is_gone(self, tmp_path: Path, instead: str) -> None:
        store, away = make_store(tmp_path / "store"), tmp_path / "away"
        with victim(store, tmp_path, *OFF) as mount:
            mount.start()
            assert (mount.path / "a/000000.json").read_text()
            write_key(mount.path / "new")
            write_key(mount.path / "moved.tmp")
            store.rename(away)
            if instead != "nothing":
                store.mkdir()
            with refused(errno.EIO):
                sync(mount.path / "new")
            with refused(errno.EIO):
                os.rename(mount.path / "moved.tmp", mount.path / "moved")
            assert shardfs("commit", mount.path, "new").returncode == 1
            if instead != "nothing":
                store.rmdir()  # which says that nothing is in it
            assert not store.exists()
            away.rename(store)
            then_stored(mount)

    def test_unfinished_writes_of_the_dead_are_removed(self, tmp_path: Path) -> None:
        store = make_store(tmp_path / "store")
        script = """
import os, signal, sys
from shardfs import open_store
def samples():
    yield {"label": 1}
    print(flush=True)
    if sys.stdin.readline() == "die\\n":
        os.kill(os.getpid(), signal.SIGKILL)
open_store(sys.argv[1]).set(samples(), sys.argv[2])
"""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        dead, alive = (
            subprocess.Popen([sys.executable, "-c", script, store, key], **pipes)  # type: ignore[call-overload]
            for key in ("dead", "alive")
        )
        for writer in (dead, alive):
            assert writer.stdout.readline() == b"\n"
        dead.communicate(b"die\n", timeout=SECONDS)
        assert dead.returncode == -signal.SIGKILL
        assert len(temporaries(store)) == 2
        with mounting(store) as path:
            assert sorted(os.listdir(path)) == ["a", "b"]
        assert len(temporaries(store)) == 2
        with mounting(store, *WORDS, XDG_STATE_HOME=str(tmp_path / "state")):
            assert len(temporaries(store)) == 1
        alive.communicate(b"go on\n", timeout=SECONDS)
        assert stored(store, "alive") == [{"label": 1}]
        assert temporaries(store) == []

    @pytest.mark.parametrize("again", [False, True])
    def test_a_store_that_hangs_holds_the_end_of_a_mount_up_for_half_a_minute(
        self, slow_store: SlowStore, tmp_path: Path, again: bool
    ) -> None:
        """Half a minute is a second here; or a second signal ends it at once."""
        with hanging_seal(slow_store, tmp_path, PATIENT if again else HURRIED, terminate) as mount:
            if again:
                assert not mount.gone()
                os.kill(mount.pid, signal.SIGTERM)
            wait_for(mount.gone, 15)
            assert again or "new is not stored, and stays staged: not stored within 1 s" in mount.said
