"""docs/SEMANTICS.md, statement by statement: what is visible when, and what is durable when. The rest of the page is in
`test_semantics_rules.py` and `test_semantics_errors.py`; here is also the test that all of it is tested."""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shardfs import config, daemon, open_store
from shardfs.staging import ROOT
from shardfs.writable import open_area
from tests.conformance.trees import wait_for
from tests.mount.conftest import REPOSITORY, mount_point, mounting
from tests.mount.conftest import run as shardfs
from tests.mount.semantics import (
    JPEG,
    WORDS,
    World,
    command,
    contents,
    fill,
    kill,
    label,
    labels,
    refused,
    samples,
    stored_key,
    sync,
)

pytestmark = [pytest.mark.mount, pytest.mark.timeout(60)]


def test_each_statement_has_a_test_and_each_test_a_statement() -> None:
    page, wanted, section = (REPOSITORY / "docs/SEMANTICS.md").read_text(), set(), ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = "Test" + "".join(word.capitalize() for word in re.findall(r"\w+", line))
        elif line.startswith("* "):
            title = re.match(r"\* \*\*(.+?)\.\*\* ", line)
            assert title is not None, f"a statement without a title: {line}"
            name = (section, "test_" + "_".join(re.findall(r"[a-z0-9]+", title[1].lower())))
            assert name not in wanted, f"two statements are called {title[1]}"
            wanted.add(name)
    found = {
        (group.name, test.name)
        for path in sorted(Path(__file__).parent.glob("test_semantics*.py"))
        for group in ast.parse(path.read_text()).body
        if isinstance(group, ast.ClassDef)
        for test in group.body
        if isinstance(test, ast.FunctionDef) and test.name.startswith("test_")
    }
    assert sorted(wanted - found) == [], "statements without a test"
    assert sorted(found - wanted) == [], "tests without a statement"


class TestWhatIsVisibleWhen:
    def test_a_write_is_seen_at_once(self, world: World) -> None:
        key = world.mnt / world.name()
        key.mkdir()
        with open(key / "000000.x.bin", "wb", buffering=0) as file:
            for size in (1, 5000, 200_000):
                file.write(b"a" * size)
                assert (key / "000000.x.bin").stat().st_size == file.tell()
                assert (key / "000000.x.bin").read_bytes() == b"a" * file.tell()
                assert command("wc", "-c", key / "000000.x.bin").split()[0] == str(file.tell())
        assert command("ls", key) == "000000.x.bin\n"
        os.rename(key / "000000.x.bin", key / "000001.x.bin")
        assert command("ls", key) == "000001.x.bin\n"
        command("rm", "-r", key)
        assert not key.exists()

    def test_another_mount_shows_a_seal_and_not_a_write(self, world: World) -> None:
        key = world.key()
        there = world.other / key.name
        wait_for(there.exists)
        before = contents(there)
        label(key, 1, 7)
        assert contents(there) == before
        sync(key)
        wait_for(lambda: contents(there) != before)
        assert contents(there) == contents(key)

    def test_a_library_reader_has_whole_shards_only(self, world: World) -> None:
        key, seen, ended = world.key(), [], threading.Event()

        def read() -> None:
            while not ended.is_set():
                seen.append(tuple(labels(world.store, key)))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            for value in range(10, 15):
                for number in range(3):
                    label(key, number, value)
                sync(key)
        finally:
            ended.set()
            reader.join()
        assert set(seen) <= {(0, 1, 2), *((value,) * 3 for value in range(10, 15))}

    def test_a_seal_keeps_the_bytes_of_files(self, world: World) -> None:
        key = world.mnt / world.name()
        key.mkdir()
        for number in range(20):
            (key / f"{number:06d}.pic.jpg").write_bytes(JPEG + os.urandom(3000))
            (key / f"{number:06d}.raw.bin").write_bytes(b"raw" * number)
        before = contents(key)
        sync(key)
        assert contents(key) == before

    def test_a_json_is_written_anew_by_a_seal(self, world: World) -> None:
        key = world.key()
        (key / "000001.json").write_text('{\n  "label" : 5,\n  "more": "\\u00e4"}')
        sync(key)
        assert (key / "000001.json").read_text() == '{"label": 5, "more": "\u00e4"}\n'

    def test_a_light_file_becomes_part_of_the_json(self, world: World) -> None:
        key = world.mnt / world.name()
        key.mkdir()
        (key / "cat.cls").write_text("7")
        sync(key)
        assert os.listdir(key) == ["cat.json"]
        assert json.loads((key / "cat.json").read_text())["cls"] == 7

    def test_an_extension_alone_is_the_name_of_a_field(self, world: World) -> None:
        key = world.mnt / world.name()
        key.mkdir()
        (key / "000000.jpg").write_bytes(JPEG)
        sync(key)
        assert world.samples(key) == [{"jpg": JPEG}]
        (name,) = os.listdir(key)
        assert name.startswith("000000.jpg")
        assert (key / name).read_bytes() == JPEG

    def test_a_name_that_is_no_number_stays_with_its_sample(self, world: World) -> None:
        key = world.mnt / world.name()
        key.mkdir()
        (key / "cat.x.bin").write_bytes(b"cat")
        (key / "dog.x.bin").write_bytes(b"dog")
        sync(key)
        assert world.samples(key) == [{"__key__": "cat", "x": b"cat"}, {"__key__": "dog", "x": b"dog"}]
        assert (key / "dog.x.bin").read_bytes() == b"dog"

    def test_a_seal_numbers_the_samples_of_a_squirrel_key_from_0(self, free: World) -> None:
        key = free.key()
        command("rm", key / "000000.json", key / "000000.x.bin")
        assert sorted(os.listdir(key)) == ["000001.json", "000001.x.bin", "000002.json", "000002.x.bin"]
        sync(key)
        wait_for(lambda: not (key / "000002.json").exists())
        assert sorted(os.listdir(key)) == ["000000.json", "000000.x.bin", "000001.json", "000001.x.bin"]
        assert (key / "000000.x.bin").read_bytes() == b"\1" * 100

    def test_after_a_seal_a_file_has_the_time_and_mode_of_its_shard(self, world: World) -> None:
        key, path = world.mnt / world.name(), "000000.x.bin"
        key.mkdir()
        fill(key)
        os.utime(key / path, ns=(10**18, 10**18 + 7))
        os.chmod(key / path, 0o600)
        before = (key / path).stat()
        assert (before.st_mtime_ns, before.st_mode & 0o7777) == (10**18 + 7, 0o600)
        sync(key)
        after = (key / path).stat()
        assert after.st_mtime_ns == (world.store / f"{key.name}.gz").stat().st_mtime_ns
        assert after.st_mode & 0o7777 == 0o644
        assert after.st_ino != before.st_ino

    def test_the_directory_of_a_key_stays_the_same_over_a_seal(self, world: World) -> None:
        key = world.mnt / world.name()
        key.mkdir()
        number = key.stat().st_ino
        program = "for n in 0 1 2 3; do echo $n > 00000$n.n.bin; sync . || exit 1; pwd -P > /dev/null || exit 2; done"
        done = subprocess.run(["sh", "-c", program], cwd=key, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
        assert key.stat().st_ino == number
        assert len(world.samples(key)) == 4

    def test_a_reader_keeps_what_it_opened(self, free: World) -> None:
        key = free.key()
        names = ("000000.x.bin", "000001.json", "000002.json")
        with contextlib.ExitStack() as stack:
            same, changed, removed = (stack.enter_context(open(key / name, "rb", buffering=0)) for name in names)
            label(key, 1, 7)
            os.unlink(key / names[2])
            sync(key)
            assert same.read() == bytes(100)
            for file, old, new in ((changed, b'{"label": 1}\n', b'{"label": 7}\n'), (removed, b'{"label": 2}\n', b"")):
                with contextlib.suppress(OSError):
                    assert file.read() in (old, new)
        assert (key / names[1]).read_bytes() == b'{"label": 7}\n'

    def test_a_listing_names_each_file_that_stays_once(self, world: World) -> None:
        key, seen = world.key(), []
        for number in range(3, 500):
            (key / f"{number:06d}.n.bin").write_bytes(b"x")
        with os.scandir(key) as entries:
            for entry in entries:
                seen.append(entry.name)
                if entry.name.endswith(".n.bin") and int(entry.name[:6]) % 2:
                    os.unlink(entry.path)
                    (key / f"{int(entry.name[:6]) + 10_000:06d}.n.bin").write_bytes(b"x")
        stays = {*os.listdir(key)} - {name for name in os.listdir(key) if name >= "01"}
        assert len(seen) == len(set(seen))
        assert stays <= set(seen)

    def test_names_are_right_within_a_second_after_a_seal(self, free: World) -> None:
        name, half = free.name(), config.NAMES_TOLD // 2 + 1
        open_store(free.store).set([{"x": b"%d" % n, "label": n} for n in range(half)], name)
        key, last = free.mnt / name, f"{half - 1:06d}.json"
        wait_for(key.exists)
        command("ls", "-l", key)
        assert (key / last).exists()
        worker = "import os, sys; sys.stdin.readline(); print(os.getcwd(), len(os.listdir('.')))"
        with subprocess.Popen(
            [sys.executable, "-c", worker], cwd=key, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as inside:
            command("rm", key / "000000.json", key / "000000.x.bin")
            sync(key)
            assert len(command("ls", key).split()) == 2 * half - 2
            wait_for(lambda: not (key / last).exists(), 5)
            assert json.loads((key / "000000.json").read_text())["label"] == 1
            assert inside.communicate("\n", timeout=20)[0] == f"{key} {2 * half - 2}\n"

    def test_what_others_store_is_seen_within_a_second(self, world: World) -> None:
        key = world.key()
        assert (key / "000001.json").read_text() == '{"label": 1}\n'
        opened = open_store(world.store)
        opened.set([{"label": 8}], key.name)
        opened.set([{"label": 9}], f"{key.name}-new")
        for mnt in (world.mnt, world.other):
            wait_for(lambda mnt=mnt: os.listdir(mnt / key.name) == ["000000.json"])  # type: ignore[misc]
            wait_for((mnt / f"{key.name}-new").exists)
            assert (mnt / key.name / "000000.json").read_text() == '{"label": 8}\n'

    def test_a_mapping_is_written_when_it_is_synced_or_closed(self, world: World) -> None:
        key = world.key()
        path = key / "000001.x.bin"
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[10:15] = b"HELLO"
            mapped.flush()
            assert b"HELLO" in path.read_bytes()
            mapped[20:25] = b"LATER"
        sync(key)
        assert world.samples(key)[1]["x"] == b"\1" * 10 + b"HELLO" + b"\1" * 5 + b"LATER" + b"\1" * 75


class TestWhatIsDurableWhen:
    def test_what_a_system_call_did_outlives_the_daemon(self, alone: Path) -> None:
        with mount_point() as path:
            assert shardfs("mount", alone, path, *WORDS).returncode == 0
            key = stored_key(path)
            with open(key / "000003.x.bin", "wb", buffering=0) as file:
                file.write(b"not closed")
                label(key, 1, 7)
                os.rename(key / "000000.x.bin", key / "000000.y.bin")
                (path / "x.tmp/deep").mkdir(parents=True)
                expected = contents(key)
                kill(path)
                with contextlib.suppress(OSError):
                    file.close()
            assert shardfs("mount", alone, path, *WORDS).returncode == 0
            assert contents(key) == expected
            assert (path / "x.tmp/deep").is_dir()
            (path / "x.tmp/deep").rmdir()
            (path / "x.tmp").rmdir()
            assert shardfs("umount", path).returncode == 0
        assert samples(alone, key)[0] == {"label": 0, "y": bytes(100)}

    def test_the_fsync_of_a_file_stores_nothing(self, world: World) -> None:
        key = world.key()
        with open(key / "000001.json", "w") as file:
            file.write('{"label": 5}')
            file.flush()
            os.fsync(file.fileno())
            os.fdatasync(file.fileno())
        assert labels(world.store, key) == [0, 1, 2]
        assert (key / "000001.json").read_text() == '{"label": 5}'

    def test_the_fsync_of_a_plain_directory_stores_nothing(self, world: World) -> None:
        plain = world.mnt / f"{world.name()}.tmp"
        (plain / "deep").mkdir(parents=True)
        fill(plain)
        sync(plain)
        sync(plain / "deep")
        sync(world.mnt)
        assert plain.name not in [name.removesuffix(".gz") for name in os.listdir(world.store)]
        command("rm", "-r", plain)

    def test_the_fsync_of_a_key_stores_it(self, world: World) -> None:
        key = world.mnt / world.name()
        key.mkdir()
        fill(key)
        assert not (world.store / f"{key.name}.gz").exists()
        command("sync", key)
        assert labels(world.store, key) == [0, 1, 2]

    def test_a_rename_to_a_key_stores_it(self, world: World) -> None:
        key = world.mnt / world.name()
        plain = key.with_name(f"{key.name}.tmp")
        plain.mkdir()
        fill(plain)
        command("mv", "-T", plain, key)
        assert labels(world.store, key) == [0, 1, 2]
        label(key, 1, 5)
        os.rename(key / "000001.json", key / "000001.json.tmp")
        os.rename(key / "000001.json.tmp", key / "000001.json")
        assert labels(world.store, key) == [0, 1, 2]

    def test_a_commit_stores_one_key_or_all(self, alone: Path) -> None:
        with mounting(alone, *WORDS) as path:
            one, two = stored_key(path), stored_key(path)
            label(one, 1, 7)
            label(two, 1, 8)
            assert shardfs("commit", path, one.name).returncode == 0
            assert (labels(alone, one), labels(alone, two)) == ([0, 7, 2], [0, 1, 2])
            (one / "000000.json").write_text("{")
            done = shardfs("commit", path)
            assert (done.returncode, one.name in done.stderr) == (1, True)
            assert labels(alone, two) == [0, 8, 2]
            label(one, 0, 9)

    def test_the_end_of_a_mount_stores_all_keys(self, alone: Path) -> None:
        with mount_point() as path:
            assert shardfs("mount", alone, path, *WORDS).returncode == 0
            key = stored_key(path)
            label(key, 1, 7)
            (path / "x.tmp").mkdir()
            fill(path / "x.tmp")
            done = shardfs("umount", path)
            assert "stays staged: x.tmp" in done.stderr
            assert labels(alone, key) == [0, 7, 2]
            assert shardfs("mount", alone, path, *WORDS).returncode == 0
            label(key, 1, 8)
            record = daemon.find(str(path))
            assert record is not None
            os.kill(record.pid, signal.SIGTERM)
            assert daemon.wait_until_gone(record, 30)
            assert labels(alone, key) == [0, 8, 2]

    def test_some_quiet_stores_a_key(self, alone: Path) -> None:
        with mounting(alone, "--rw", "--write-back", "0.5") as path:
            key = stored_key(path)
            with open(key / "000001.json", "w") as file:
                file.write('{"label": 5}')
                file.flush()
                label(path / "there", 0, 6)
                wait_for(lambda: labels(alone, path / "there") == [6])
                assert labels(alone, key) == [0, 1, 2], "a file is open"
            wait_for(lambda: labels(alone, key) == [0, 5, 2])
            (key / "000001.json").write_text("{")
            wait_for(lambda: "000001.json" in (path.parent / "log").read_text())
            label(key, 1, 6)
            wait_for(lambda: labels(alone, key) == [0, 6, 2])

    def test_quiet_gives_no_sample_another_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of three keys that are written at once, those are stored whose samples keep their names."""
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        mds, squirrel = tmp_path / "mds", tmp_path / "squirrel"
        open_store(mds, driver="streaming").set([{"label": number} for number in range(3)], "a")
        open_store(squirrel, driver="squirrel").set([{"label": number} for number in range(3)], "a")
        words = ("--rw", "--write-back", "0.3", "--allow-delete")
        with mounting(mds, *words) as one, mounting(squirrel, *words) as two:
            (one / "new").mkdir()
            label(one / "new", 0, 10)
            (two / "a/000001.json").unlink()
            (two / "new").mkdir()
            label(two / "new", 0, 11)
            for mnt in (one, two):
                wait_for(lambda mnt=mnt: "samples would have other numbers" in (mnt.parent / "log").read_text())
            wait_for(lambda: "new" in open_store(squirrel))
            for mnt in (one, two):
                assert "samples would have other numbers" in shardfs("status", mnt).stdout
            assert list(open_store(mds)) == ["a"]
            label(one / "new", 3, 13)
            (two / "a/000002.json").unlink()
            for mnt in (one, two):
                assert shardfs("commit", mnt).returncode == 0
        assert labels(mds, one / "new") == [10, 13]
        assert labels(squirrel, two / "a") == [0]

    def test_a_sync_of_everything_stores_nothing(self, world: World) -> None:
        key = world.key()
        label(key, 1, 7)
        command("sync", "-f", key)
        os.sync()
        assert labels(world.store, key) == [0, 1, 2]

    def test_what_a_power_loss_may_have_torn_waits_for_a_word(
        self, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(config, "boot_id", lambda: "an earlier run of the machine")
            with (
                contextlib.closing(open_area(open_store(alone))) as area,
                area.create("torn").create(ROOT, b"000000.json") as file,
            ):
                file.pwrite(b'{"label": 4}', 0)
        with mounting(alone, *WORDS) as path:
            assert (path / "torn/000000.json").read_text() == '{"label": 4}'
            done = shardfs("commit", path, "torn")
            assert (done.returncode, "staging trust" in done.stderr) == (1, True), done.stderr
            assert not (alone / "torn.gz").exists()
            assert shardfs("staging", "trust", alone, "torn").returncode == 0
            assert shardfs("commit", path, "torn").returncode == 0
        assert labels(alone, path / "torn") == [4]

    def test_what_is_staged_can_be_listed_copied_and_stored_without_a_mount(self, alone: Path, tmp_path: Path) -> None:
        with mount_point() as path:
            assert shardfs("mount", alone, path, *WORDS).returncode == 0
            key = path / "new"
            key.mkdir()
            fill(key)
            expected = contents(key)
            kill(path)
        assert shardfs("staging", "list", alone).stdout.splitlines()[1].split()[:3] == ["new", "staged", "6"]
        assert shardfs("staging", "recover", alone, "new", "--to", tmp_path / "copy").returncode == 0
        assert contents(tmp_path / "copy") == expected
        assert shardfs("staging", "recover", alone).returncode == 0
        assert labels(alone, key) == [0, 1, 2]


class TestCrashes:
    def test_a_killed_daemon_loses_nothing(self, alone: Path) -> None:
        with mount_point() as path:
            assert shardfs("mount", alone, path, *WORDS).returncode == 0
            key = stored_key(path)
            label(key, 1, 7)
            record = daemon.find(str(path))
            assert record is not None
            os.kill(record.pid, signal.SIGKILL)
            assert daemon.wait_until_gone(record)
            with refused(107):  # ENOTCONN
                os.listdir(path)
            assert shardfs("mount", alone, path, *WORDS).returncode == 0
            assert (key / "000001.json").read_text() == '{"label": 7}\n'
            assert shardfs("umount", path).returncode == 0
        assert labels(alone, key) == [0, 7, 2]

    def test_a_plain_umount_is_safe(self, alone: Path) -> None:
        with mount_point() as path:
            assert shardfs("mount", alone, path, *WORDS).returncode == 0
            key = stored_key(path)
            label(key, 1, 7)
            record = daemon.find(str(path))
            assert record is not None
            command(*(("umount",) if os.geteuid() == 0 else ("fusermount3", "-u")), path)
            assert daemon.wait_until_gone(record, 30)
        assert labels(alone, key) == [0, 7, 2]
        with gzip.open(alone / f"{key.name}.gz") as file:
            assert file.read()
