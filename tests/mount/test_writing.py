"""Writable mounts: ordinary tools write, and what they wrote is there, before it is stored and after."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from shardfs import daemon, open_store
from tests.conformance.trees import fails as refused
from tests.conformance.trees import wait_for
from tests.mount.conftest import mount_point, mounting
from tests.mount.conftest import run as shardfs

pytestmark = [pytest.mark.mount, pytest.mark.timeout(90)]

JPEG = b"\xff\xd8\xff\xe0"
Mounted = Callable[..., AbstractContextManager[Path]]


def run(*command: str | Path, cwd: Path | None = None, status: int = 0) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, cwd=cwd)
    assert done.returncode == status, f"{command}: {done.returncode}: {done.stderr}"
    return done.stdout + done.stderr


def sync(path: Path) -> None:
    run("sync", path)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three keys with three samples each."""
    path = tmp_path / "store"
    opened = open_store(path, driver="squirrel")
    for key in ("a", "b", "train/c"):
        opened.set([{"x": bytes([number]) * 100, "label": number, "key": key} for number in range(3)], key)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Ten samples of two files each, as other programs have them."""
    path = tmp_path / "source"
    path.mkdir()
    for number in range(10):
        (path / f"{number:06d}.img.jpg").write_bytes(JPEG + os.urandom(20_000 + number))
        (path / f"{number:06d}.json").write_text(json.dumps({"label": number}) + "\n")
    return path


@pytest.fixture
def mnt(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A writable mount that stores only when it is asked to."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with mounting(store, "--rw", "--write-back", "off") as path:
        yield path


@pytest.fixture
def free(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """One that allows everything."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with mounting(store, "--rw", "--write-back", "off", "--allow-delete", "--allow-overwrite") as path:
        yield path


def same(one: Path, two: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def stored(store: Path, key: str) -> list[object]:
    return list(open_store(store).get(key))


# --- new keys -------------------------------------------------------------------------------------------------------


def test_cp_makes_a_key_that_is_there_before_and_after_it_is_stored(mnt: Path, store: Path, source: Path) -> None:
    run("cp", "-r", source, mnt / "new")
    same(source, mnt / "new")
    assert not (store / "new.gz").exists()
    sync(mnt / "new")
    same(source, mnt / "new")
    samples = stored(store, "new")
    assert samples[3] == {"label": 3, "img": (source / "000003.img.jpg").read_bytes()}
    assert len(samples) == 10


def test_cp_p_keeps_times_and_modes_while_staged(mnt: Path, source: Path) -> None:
    os.utime(source / "000001.json", ns=(10**18, 10**18 + 7))
    os.chmod(source / "000001.json", 0o600)
    run("cp", "-rp", source, mnt / "new")
    status = os.stat(mnt / "new/000001.json")
    assert (status.st_mtime_ns, status.st_mode & 0o7777) == (10**18 + 7, 0o600)
    sync(mnt / "new")
    same(source, mnt / "new")


def test_tar_extracts_into_a_key(mnt: Path, store: Path, source: Path, tmp_path: Path) -> None:
    run("tar", "-C", source, "-cf", tmp_path / "all.tar", ".")
    (mnt / "new").mkdir()
    run("tar", "-C", mnt / "new", "-xf", tmp_path / "all.tar")
    same(source, mnt / "new")
    sync(mnt / "new")
    same(source, mnt / "new")
    assert len(stored(store, "new")) == 10


@pytest.mark.parametrize("words", [(), ("--inplace",)])
def test_rsync_twice_copies_nothing_the_second_time(mnt: Path, source: Path, words: tuple[str, ...]) -> None:
    run("rsync", "-a", *words, f"{source}/", mnt / "new")
    same(source, mnt / "new")
    assert run("rsync", "-ai", *words, f"{source}/", mnt / "new") == ""
    sync(mnt / "new")
    same(source, mnt / "new")
    said = run("rsync", "-a", "--stats", "--size-only", *words, f"{source}/", mnt / "new")
    assert "Number of regular files transferred: 0" in said


def test_the_rename_of_a_temporary_directory_stores_it(mnt: Path, store: Path, source: Path) -> None:
    (mnt / "train/deep").mkdir()
    run("mkdir", "-p", mnt / "train/deep/x.tmp/sub")
    run("cp", *source.iterdir(), mnt / "train/deep/x.tmp/")
    run("mv", "-T", mnt / "train/deep/x.tmp", mnt / "train/deep/x", status=1)  # a key has no directories
    (mnt / "train/deep/x.tmp/sub").rmdir()
    assert not (store / "train/deep/x.gz").exists()
    run("mv", "-T", mnt / "train/deep/x.tmp", mnt / "train/deep/x")
    assert (store / "train/deep/x.gz").exists()
    assert os.listdir(mnt / "train/deep") == ["x"]
    same(source, mnt / "train/deep/x")


def test_a_temporary_directory_takes_an_empty_ones_place_and_no_stored_ones(
    mnt: Path, store: Path, source: Path
) -> None:
    run("cp", "-r", source, mnt / "new.partial")
    with refused(errno.EEXIST):
        os.rename(mnt / "new.partial", mnt / "a")
    same(source, mnt / "new.partial")
    assert len(stored(store, "a")) == 3
    (mnt / "new").mkdir()
    os.rename(mnt / "new.partial", mnt / "new")
    assert len(stored(store, "new")) == 10
    same(source, mnt / "new")


def test_with_allow_overwrite_a_rename_replaces_a_stored_key(free: Path, store: Path, source: Path) -> None:
    assert (free / "a/000000.json").read_text()
    run("cp", "-r", source, free / "a.tmp")
    os.rename(free / "a.tmp", free / "a")
    same(source, free / "a")
    assert sorted(os.listdir(free)) == ["a", "b", "train"]
    assert len(stored(store, "a")) == 10


def test_a_rename_that_fails_leaves_the_empty_directory_it_was_to_replace(mnt: Path) -> None:
    (mnt / "new").mkdir()
    (mnt / "new/000000.json").write_text("{}")
    (mnt / "new/000000.json").unlink()
    (mnt / "x.tmp/inside").mkdir(parents=True)
    with refused(errno.EINVAL):
        os.rename(mnt / "x.tmp", mnt / "new")
    assert (mnt / "new").is_dir()
    (mnt / "new/000000.json").write_text("{}")
    (mnt / "x.tmp/inside").rmdir()
    shutil.rmtree(mnt / "new")
    os.rename(mnt / "x.tmp", mnt / "new")


def test_a_rename_that_cannot_be_stored_changes_nothing_and_can_be_repeated(mnt: Path, store: Path) -> None:
    (mnt / "x.tmp").mkdir()
    (mnt / "x.tmp/000000.json").write_text("{")
    with refused(errno.EINVAL):
        os.rename(mnt / "x.tmp", mnt / "x")
    assert "x.tmp" in os.listdir(mnt)
    assert "x" not in os.listdir(mnt)
    (mnt / "x.tmp/000000.json").write_text('{"n": 1}')
    os.rename(mnt / "x.tmp", mnt / "x")
    assert stored(store, "x") == [{"n": 1}]


def test_a_key_that_somebody_else_has_stored_meanwhile_is_not_replaced(mnt: Path, store: Path, source: Path) -> None:
    run("cp", "-r", source, mnt / "x.tmp")
    open_store(store).set([{"label": 1}], "x")
    for _ in range(2):
        with refused(errno.EEXIST):
            os.rename(mnt / "x.tmp", mnt / "x")
        same(source, mnt / "x.tmp")
        assert not [name for name in os.listdir(mnt) if "conflict" in name]
    assert stored(store, "x") == [{"label": 1}]
    run("rm", "-r", mnt / "x.tmp")


def test_whoever_works_in_a_key_goes_on_over_a_seal(mnt: Path, store: Path, source: Path) -> None:
    (mnt / "new").mkdir()
    command = "for f in ../../source/*; do cp $f . || exit 1; sync . || exit 2; pwd >/dev/null || exit 3; done; ls"
    said = subprocess.run(
        ["sh", "-c", command.replace("../../source", str(source))],
        cwd=mnt / "new",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (said.returncode, said.stderr) == (0, "")
    same(source, mnt / "new")
    assert len(stored(store, "new")) == 10


def test_np_save_and_pil_and_datasets_of_ordinary_files(mnt: Path, store: Path) -> None:
    (mnt / "new").mkdir()
    array = np.arange(1000, dtype=np.float32).reshape(10, 100)
    np.save(mnt / "new/000000.matrix.npy", array)
    picture = PIL.Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    picture.save(mnt / "new/000000.pic.png")
    (mnt / "new/cat.cls").write_text("7")
    sync(mnt / "new")
    assert np.array_equal(np.load(mnt / "new/000000.matrix.npy"), array)
    with PIL.Image.open(mnt / "new/000000.pic.png") as read:
        assert read.tobytes() == picture.tobytes()
    samples = stored(store, "new")
    assert isinstance(samples[0], dict)
    assert np.array_equal(samples[0]["matrix"], array)
    assert samples[1] == {"cls": 7, "__key__": "cat"}


# --- edits ----------------------------------------------------------------------------------------------------------


def test_editors_and_shells_change_a_label(mnt: Path, store: Path) -> None:
    key = mnt / "a"
    run("sed", "-i", 's/"label": 0/"label": 10/', key / "000000.json")
    run("sh", "-c", 'echo \'{"label": 11, "key": "a"}\' > 000001.json', cwd=key)
    run("vim", "-es", "-u", "NONE", "-c", 's/"label": 2/"label": 12/', "-c", "wq", key / "000002.json")
    run("sh", "-c", "echo '{\"label\": 13}' >> 000003.json", cwd=key)
    assert [json.loads((key / f"{n:06d}.json").read_text())["label"] for n in range(4)] == [10, 11, 12, 13]
    sync(key)
    assert [json.loads((key / f"{n:06d}.json").read_text())["label"] for n in range(4)] == [10, 11, 12, 13]
    samples = stored(store, "a")
    assert [sample["label"] for sample in samples] == [10, 11, 12, 13]  # type: ignore[index]
    assert samples[2] == {"x": b"\2" * 100, "label": 12, "key": "a"}


def test_vim_with_a_backup_by_renaming_changes_a_label(mnt: Path, store: Path) -> None:
    run(
        *("vim", "-es", "-u", "NONE", "--cmd", "set nobackup writebackup backupcopy=no backupskip="),
        *("-c", 's/"label": 2/"label": 12/', "-c", "wq", mnt / "b/000002.json"),
    )
    assert json.loads((mnt / "b/000002.json").read_text())["label"] == 12
    sync(mnt / "b")
    assert stored(store, "b")[2] == {"x": b"\2" * 100, "label": 12, "key": "b"}


def test_ed_dd_and_truncate_change_bytes_in_place(mnt: Path, store: Path, tmp_path: Path) -> None:
    key = mnt / "b"
    subprocess.run(["ed", "-s", key / "000001.json"], input="s/1/21/\nw\nq\n", text=True, check=True, timeout=60)
    (tmp_path / "piece").write_bytes(b"PIECE")
    run("dd", f"if={tmp_path}/piece", f"of={key}/000000.x.bin", "bs=1", "seek=50", "conv=notrunc")
    run("truncate", "-s", "10", key / "000001.x.bin")
    run("truncate", "-s", "200", key / "000002.x.bin")
    expected = [bytes(50) + b"PIECE" + bytes(45), b"\1" * 10, b"\2" * 100 + bytes(100)]
    assert [(key / f"{n:06d}.x.bin").read_bytes() for n in range(3)] == expected
    sync(key)
    assert [(key / f"{n:06d}.x.bin").read_bytes() for n in range(3)] == expected
    assert stored(store, "b") == [{"x": x, "label": n, "key": "b"} for x, n in zip(expected, (0, 21, 2), strict=True)]


def test_a_shared_mapping_is_written(mnt: Path, store: Path) -> None:
    path = mnt / "a/000001.x.bin"
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[10:15] = b"HELLO"
        mapped.flush()
        assert path.read_bytes()[10:15] == b"HELLO"
    sync(mnt / "a")
    assert path.read_bytes() == b"\1" * 10 + b"HELLO" + b"\1" * 85
    assert stored(store, "a")[1]["x"] == path.read_bytes()  # type: ignore[index]


def test_two_processes_append_and_no_line_is_lost(mnt: Path) -> None:
    path = mnt / "a/log.txt"
    command = "for i in $(seq 200); do echo $0 $i >> " + str(path) + "; done"
    both = [subprocess.Popen(["sh", "-c", command, name]) for name in ("one", "two")]
    assert [process.wait(60) for process in both] == [0, 0]
    lines = path.read_text().split("\n")[:-1]
    assert sorted(lines) == sorted(f"{name} {i}" for name in ("one", "two") for i in range(1, 201))
    path.unlink()


def test_a_file_that_was_removed_is_written_and_read_by_who_has_it_open(mnt: Path) -> None:
    with open(mnt / "a/t.tmp", "w+b") as file:
        os.unlink(mnt / "a/t.tmp")
        file.write(b"x" * 100_000)
        file.flush()
        assert os.fstat(file.fileno()).st_size == 100_000
        file.seek(0)
        assert file.read() == b"x" * 100_000


def test_many_small_files_are_changed_removed_and_stored(mnt: Path, store: Path) -> None:
    """Behind the first few they lie in one file on disk; root's own mount looks at no modes but x."""
    path = mnt / "new"
    path.mkdir()
    files = {f"{number:06d}.x.bin": bytes([number]) * (5_000 + number) for number in range(60)}
    for name, content in files.items():
        (path / name).write_bytes(content)
    reader, removed = os.open(path / "000040.x.bin", os.O_RDONLY), os.open(path / "000043.x.bin", os.O_RDWR)
    with open(path / "000040.x.bin", "r+b") as file:
        file.write(b"changed")
    with open(path / "000041.x.bin", "ab") as file:
        file.write(b"appended")
    os.truncate(path / "000042.x.bin", 100)
    os.unlink(path / "000043.x.bin")
    os.rename(path / "000044.x.bin", path / "000045.x.bin")
    files["000040.x.bin"] = b"changed" + files["000040.x.bin"][7:]
    files["000041.x.bin"] += b"appended"
    files["000042.x.bin"] = files["000042.x.bin"][:100]
    gone, files["000045.x.bin"] = files.pop("000043.x.bin"), files.pop("000044.x.bin")
    assert {one.name: one.read_bytes() for one in path.iterdir()} == files
    assert [os.access(path / "000001.x.bin", mode) for mode in (os.R_OK | os.W_OK, os.X_OK)] == [True, False]
    assert os.access(path, os.R_OK | os.W_OK | os.X_OK)
    os.chmod(path / "000001.x.bin", 0o755)
    assert os.access(path / "000001.x.bin", os.X_OK)
    sync(path)
    assert [len(sample["x"]) for sample in stored(store, "new")] == [len(files[name]) for name in sorted(files)]
    assert os.read(reader, 10_000) == files["000040.x.bin"]
    assert os.read(removed, 10_000) == gone
    assert os.write(removed, b"more") == 4
    assert os.pread(removed, 100, len(gone)) == b"more"
    os.close(reader)
    os.close(removed)


def test_a_stored_file_that_was_renamed_and_replaced_is_read_by_who_has_it_open(free: Path) -> None:
    key = free / "a"
    os.rename(key / "000001.x.bin", key / "000005.x.bin")
    with open(key / "000005.x.bin", "rb", buffering=0) as file:
        os.rename(key / "000002.x.bin", key / "000005.x.bin")
        assert file.read() == bytes([1]) * 100
        sync(key)
        with contextlib.suppress(OSError):  # its bytes may be gone with the version that had them
            assert os.pread(file.fileno(), 100, 0) == bytes([1]) * 100
    assert {path.read_bytes() for path in key.glob("*.x.bin")} == {bytes(100), bytes([2]) * 100}


def test_a_reader_keeps_what_it_opened_over_a_seal(mnt: Path) -> None:
    with (
        open(mnt / "a/000000.x.bin", "rb", buffering=0) as unchanged,
        open(mnt / "a/000001.json", "rb", buffering=0) as changed,
    ):
        (mnt / "a/000002.json").write_text('{"label": 5}')
        (mnt / "a/000001.json").write_text('{"label": 6}')
        sync(mnt / "a")
        assert unchanged.read() == bytes(100)
        with contextlib.suppress(OSError):  # or ESTALE, and nothing else
            assert changed.read() in (b'{"label": 1, "key": "a"}\n', b'{"label": 6}')
    assert (mnt / "a/000001.json").read_text() == '{"label": 6}\n'


def test_mv_within_and_between_keys_and_mounts(mnt: Path, store: Path, source: Path, tmp_path: Path) -> None:
    run("mv", source / "000000.img.jpg", mnt / "a/000000.img.jpg")
    run("mv", mnt / "a/000000.img.jpg", mnt / "a/000001.img.jpg")
    run("mv", mnt / "a/000001.img.jpg", mnt / "b/000002.img.jpg")
    assert sorted(os.listdir(mnt / "a")) == sorted(f"{n:06d}.{s}" for n in range(3) for s in ("json", "x.bin"))
    content = (mnt / "b/000002.img.jpg").read_bytes()
    run("mv", mnt / "b/000002.img.jpg", tmp_path / "out.jpg")
    assert (tmp_path / "out.jpg").read_bytes() == content
    run("mv", mnt / "b/000002.x.bin", mnt / "b/000002.y.bin")
    sync(mnt / "b")
    assert stored(store, "b")[2] == {"y": b"\2" * 100, "label": 2, "key": "b"}


def test_a_new_key_is_renamed_before_it_is_stored(mnt: Path, store: Path, source: Path) -> None:
    run("cp", "-r", source, mnt / "one")
    run("mv", "-T", mnt / "one", mnt / "two")
    same(source, mnt / "two")
    sync(mnt / "two")
    assert sorted(os.listdir(mnt)) == ["a", "b", "train", "two"]
    same(source, mnt / "two")
    assert not (store / "one.gz").exists()


# --- removing -------------------------------------------------------------------------------------------------------


def test_what_is_staged_is_removed_and_what_is_stored_is_not(mnt: Path, store: Path, source: Path) -> None:
    run("cp", "-r", source, mnt / "new")
    run("rm", "-r", mnt / "new")
    assert "new" not in os.listdir(mnt)
    for name in ("000000.json", "000000.x.bin"):
        with refused(errno.EPERM):
            os.unlink(mnt / "a" / name)
    (mnt / "a/000000.json").write_text('{"label": 1}')
    with refused(errno.EPERM):
        os.unlink(mnt / "a/000000.json")
    os.rename(mnt / "a/000001.x.bin", mnt / "a/other.x.bin")
    with refused(errno.EPERM):
        os.unlink(mnt / "a/other.x.bin")
    (mnt / "a/other.x.bin").write_bytes(b"changed")
    with refused(errno.EPERM):
        os.unlink(mnt / "a/other.x.bin")
    os.rename(mnt / "a/other.x.bin", mnt / "a/000001.x.bin")
    assert len(stored(store, "a")) == 3


def test_with_allow_delete_samples_and_keys_are_removed(free: Path, store: Path) -> None:
    run("rm", free / "a/000001.json", free / "a/000001.x.bin")
    assert sorted(os.listdir(free / "a")) == ["000000.json", "000000.x.bin", "000002.json", "000002.x.bin"]
    sync(free / "a")
    assert [sample["label"] for sample in stored(store, "a")] == [0, 2]  # type: ignore[index]
    wait_for(lambda: sorted(os.listdir(free / "a"))[-1] == "000001.x.bin")
    assert json.loads((free / "a/000001.json").read_text())["label"] == 2
    run("rm", "-r", free / "b", free / "train")
    assert os.listdir(free) == ["a"]
    assert open_store(store).keys() == ["a"]


def test_a_removed_key_can_be_made_again(free: Path, store: Path, source: Path) -> None:
    run("rm", "-r", free / "a")
    run("cp", "-r", source, free / "a")
    sync(free / "a")
    same(source, free / "a")
    assert len(stored(store, "a")) == 10


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_cannot_be_in_a_store_is_refused(mnt: Path) -> None:
    with refused(errno.EPERM):
        (mnt / "file").write_text("x")
    with refused(errno.EPERM):
        (mnt / "train/file").write_text("x")
    with refused(errno.EPERM):
        (mnt / "a/sub").mkdir()
    with refused(errno.EPERM):
        os.symlink("x", mnt / "a/link")
    with refused(errno.EPERM):
        os.link(mnt / "a/000000.json", mnt / "a/hard")
    with refused(errno.EPERM):
        os.mkfifo(mnt / "a/fifo")
    with refused(errno.ENOTEMPTY):
        os.rmdir(mnt / "a")
    with refused(errno.EINVAL):
        os.mkdir(mnt / "a~2")
    with refused(errno.EXDEV):
        os.rename(mnt / "a", mnt / "z")
    os.mkdir(mnt / "empty")
    os.rmdir(mnt / "empty")
    os.chmod(mnt / "a/000000.json", 0o755)
    os.utime(mnt / "a/000000.json")
    assert sorted(os.listdir(mnt)) == ["a", "b", "train"]


def test_a_sync_says_busy_while_a_file_is_written(mnt: Path, store: Path) -> None:
    with open(mnt / "a/000003.json", "w") as file:
        file.write('{"label": 3}')
        file.flush()
        assert "busy" in run("sync", mnt / "a", status=1)
        os.fsync(file.fileno())
        assert len(stored(store, "a")) == 3
    sync(mnt / "a")
    assert len(stored(store, "a")) == 4


def test_a_file_that_does_not_parse_is_said_at_the_sync_and_stays(mnt: Path, store: Path) -> None:
    (mnt / "a/000001.json").write_text("{no json")
    assert "Invalid argument" in run("sync", mnt / "a", status=1)
    assert (mnt / "a/000001.json").read_text() == "{no json"
    (mnt / "a/000001.json").write_text('{"label": 5}')
    sync(mnt / "a")
    assert stored(store, "a")[1] == {"x": b"\1" * 100, "label": 5}


def test_without_rw_every_change_is_refused(store: Path, mounted: Mounted) -> None:
    with mounted(store) as path:
        for change in (
            lambda: (path / "a/000000.json").write_text("x"),
            lambda: (path / "new").mkdir(),
            lambda: (path / "a/000000.json").unlink(),
            lambda: os.rename(path / "a", path / "z"),
            lambda: os.truncate(path / "a/000000.json", 0),
        ):
            with refused(errno.EROFS):
                change()
    for option in ("--allow-delete", "--allow-overwrite", "--write-back=3", "--size-limit=1mb"):
        done = shardfs("mount", store, path, option)
        assert (done.returncode, "--rw" in done.stderr) == (2, True), done.stderr


def test_an_option_of_another_systems_stores_is_refused(store: Path, tmp_path: Path) -> None:
    for words in (("--size-limit", "64mb"), ("-o", "size_limit=64mb")):
        done = shardfs("mount", "--rw", *words, store, tmp_path / "mnt", XDG_STATE_HOME=str(tmp_path))
        assert (done.returncode, "--size-limit" in done.stderr) == (2, True), done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "mnt").exists()


# --- by itself, at the end, and again --------------------------------------------------------------------------------


def test_umount_stores_what_was_written_and_says_what_it_does_not(
    store: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    words = ("--rw", "--write-back", "off", "--log", str(tmp_path / "log"))
    path = tmp_path / "mnt"
    try:
        assert shardfs("mount", store, path, *words).returncode == 0
        run("cp", "-r", source, path / "new")
        run("cp", "-r", source, path / "later.tmp")
        (path / "a/000000.json").write_text("{")
        done = shardfs("umount", path)
        assert done.returncode == 4
        assert "stays staged: later.tmp" in done.stderr
        assert "not stored: a/000000.json: " in done.stderr
        assert "stays mounted" in done.stderr
        assert len(stored(store, "new")) == 10
        assert (path / "a/000000.json").read_text() == "{", "to be mended"
        assert shardfs("umount", "--force", path).returncode == 1
        assert shardfs("mount", store, path, *words).returncode == 0
        same(source, path / "new")
        same(source, path / "later.tmp")
        assert (path / "a/000000.json").read_text() == "{"
        os.rename(path / "later.tmp", path / "later")
        (path / "a/000000.json").write_text('{"label": 4}')
        assert shardfs("umount", path).stderr == ""
        assert stored(store, "a")[0] == {"x": bytes(100), "label": 4}
        assert len(stored(store, "later")) == 10
    finally:
        shardfs("umount", "--force", path)


def test_a_signal_that_ends_the_daemon_stores_what_was_written(
    store: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with mount_point() as path:
        assert shardfs("mount", "--rw", store, path, "--log", str(tmp_path / "log")).returncode == 0
        run("cp", "-r", source, path / "new")
        record = daemon.find(str(path))
        assert record is not None
        os.kill(record.pid, signal.SIGTERM)
        assert daemon.wait_until_gone(record, 30)
    assert len(stored(store, "new")) == 10


def test_a_key_is_stored_after_some_quiet(
    store: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with mounting(store, "-o", "rw,write_back=0.5") as path:
        run("cp", "-r", source, path / "new")
        wait_for(lambda: (store / "new.gz").exists())
        same(source, path / "new")
        for number in range(30):  # in the middle of seals
            (path / f"new/{number:06d}.note.bin").write_bytes(b"%d" % number)
            time.sleep(0.05)
        assert [(path / f"new/{n:06d}.note.bin").read_bytes() for n in range(30)] == [b"%d" % n for n in range(30)]
    assert [sample["note"] for sample in stored(store, "new")] == [b"%d" % n for n in range(30)]  # type: ignore[index]


def test_what_was_written_is_there_again_after_the_daemon_was_killed(
    store: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with mount_point() as path:
        words = ("--rw", "--write-back", "off", "--log", str(tmp_path / "log"))
        assert shardfs("mount", store, path, *words).returncode == 0
        run("cp", "-r", source, path / "new")
        (path / "a/000001.json").write_text('{"label": 5}')
        record = daemon.find(str(path))
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        assert daemon.wait_until_gone(record)
        assert shardfs("mount", store, path, *words).returncode == 0
        same(source, path / "new")
        assert (path / "a/000001.json").read_text() == '{"label": 5}'
        assert shardfs("umount", path).stderr == ""
    assert len(stored(store, "new")) == 10
    assert stored(store, "a")[1] == {"x": b"\1" * 100, "label": 5}


def test_a_second_writable_mount_of_a_store_is_refused(mnt: Path, store: Path, tmp_path: Path) -> None:
    done = shardfs("mount", "--rw", store, tmp_path / "second")
    assert (done.returncode, "is writing to" in done.stderr) == (6, True), done.stderr


def test_threads_write_different_keys_and_one(mnt: Path, store: Path) -> None:
    failures: list[BaseException] = []

    def write(thread: int) -> None:
        try:
            own = mnt / f"own{thread}"
            own.mkdir()
            for number in range(40):
                for folder, name in ((own, f"{number:06d}"), (mnt / "b", f"{1000 * thread + number + 1000:06d}")):
                    data = b"%d %d" % (thread, number) * 500
                    (folder / f"{name}.v.bin").write_bytes(data)
                    assert (folder / f"{name}.v.bin").read_bytes() == data
                if number % 10 == 9:
                    sync(own)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    sync(mnt / "b")
    assert len(stored(store, "b")) == 3 + 8 * 40
    for thread in range(8):
        assert [s["v"] for s in stored(store, f"own{thread}")] == [  # type: ignore[index]
            b"%d %d" % (thread, number) * 500 for number in range(40)
        ]


def test_a_listing_names_every_file_once_while_files_are_removed(free: Path) -> None:
    (free / "many").mkdir()
    for number in range(2000):
        (free / f"many/{number:06d}.n.bin").write_bytes(b"x")
    seen = []
    with os.scandir(free / "many") as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == [f"{number:06d}.n.bin" for number in range(2000)]
    (free / "many").rmdir()


def test_the_store_changed_meanwhile_and_both_versions_are_kept(mnt: Path, store: Path) -> None:
    (mnt / "a/000000.json").write_text('{"label": 77}')
    open_store(store).set([{"label": 88}], "a")
    assert "Stale" in run("sync", mnt / "a", status=1)
    assert stored(store, "a") == [{"label": 88}]
    wait_for(lambda: (mnt / "a/000000.json").read_text() == '{"label": 88}\n')
    (conflict,) = [name for name in os.listdir(mnt) if ".conflict-" in name]
    assert (mnt / conflict / "000000.json").read_text() == '{"label": 77}'
    shutil.rmtree(mnt / conflict)


def test_free_space_is_that_of_the_staging_disk(mnt: Path, tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    shown = os.statvfs(mnt)
    assert abs(free.f_bavail * free.f_frsize - shown.f_bavail * shown.f_frsize) < 1 << 28


def test_a_key_is_stored_right_behind_more_closes_than_the_kernel_sends_at_once(mnt: Path, store: Path) -> None:
    (mnt / "many").mkdir()
    opened = [os.open(mnt / f"many/{number:06d}.x.bin", os.O_WRONLY | os.O_CREAT) for number in range(600)]
    for descriptor in opened:
        os.write(descriptor, b"x")
    for descriptor in opened:
        os.close(descriptor)
    sync(mnt / "many")
    assert len(open_store(store).get("many")) == 600
