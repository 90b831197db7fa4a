"""The command line without a mount: words, sizes, output, errors as one line, exit statuses."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from shardfs import cli, commands, config, daemon
from shardfs.commands import explain, mount8, options, said
from shardfs.commands.arguments import COMMANDS
from shardfs.errors import (
    BadSettingError,
    BadStoreError,
    DamagedShardError,
    MissingExtraError,
    MissingKeyError,
    MissingSystemError,
    MountError,
    StagingError,
    StorageError,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    (path / "deep").mkdir(parents=True)
    for key in ("a", "deep/b"):
        with gzip.open(path / f"{key}.gz", "wb") as file:
            for number in range(3):
                file.write(msgpack.packb({"x": bytes([number]) * 10, "label": number}))
    (path / "bad.gz").write_bytes(b"\x1f\x8b\x08\x00nonsense")
    return path


def shardfs(*words: str | Path, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **settings.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "shardfs", *map(str, words)],
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings},
        timeout=60,
        env=environment,
    )


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    status = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def one_line(text: str) -> str:
    assert re.fullmatch(r"shardfs: [^\n]+\n", text), text
    return text


# --- looking without a mount ------------------------------------------------------------------------------------------


def test_ls(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    assert run(capsys, "ls", store) == (0, "a\nbad\ndeep\n", "")
    assert run(capsys, "ls", store, "deep") == (0, "b\n", "")
    status, out, _ = run(capsys, "ls", store, "a")
    assert status == 0
    assert sorted(out.split()) == [f"00000{number}.{kind}" for number in range(3) for kind in ("json", "x.bin")]
    assert run(capsys, "ls", store, "/a/000000.json/") == (0, "000000.json\n", "")


def test_ls_long(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    os.utime(store / "a.gz", (86_400, 86_400))
    status, out, _ = run(capsys, "ls", store, "-l")
    assert status == 0
    sizes = [str((store / name).stat().st_size) for name in ("a.gz", "bad.gz")]
    rows = [line.split() for line in out.splitlines()]
    assert [(row[0], row[1], row[4]) for row in rows] == [
        ("k", sizes[0], "a"),
        ("k", sizes[1], "bad"),
        ("d", "0", "deep"),
    ]
    assert rows[0][2].startswith("1970-01-")
    assert all(line[:2] == "- " for line in run(capsys, "ls", store, "a", "-l")[1].splitlines())


def test_ls_json(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    status, out, _ = run(capsys, "ls", store, "--json")
    assert status == 0
    rows = json.loads(out)
    assert [(row["name"], row["kind"]) for row in rows] == [("a", "key"), ("bad", "key"), ("deep", "dir")]
    found = (store / "a.gz").stat()
    assert (rows[0]["size"], rows[0]["mtime_ns"]) == (found.st_size, found.st_mtime_ns)


def test_cat_writes_bytes(store: Path) -> None:
    done = shardfs("cat", store, "a/000002.x.bin", "deep/b/000001.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\2" * 10 + b'{"label": 1}\n', b"")


def test_cat_goes_on_after_a_failure(store: Path) -> None:
    done = shardfs("cat", store, "a/none", "bad/000000.json", "a", "a/000000.json")
    assert (done.returncode, done.stdout) == (1, b'{"label": 0}\n')
    assert [line.startswith(b"shardfs: ") for line in done.stderr.splitlines()] == [True] * 3


def test_info(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    status, out, _ = run(capsys, "info", store, "--json")
    assert status == 0
    facts = json.loads(out)
    assert (facts["driver"], facts["keys"], facts["store"]) == ("squirrel", 3, str(store))
    status, out, _ = run(capsys, "info", store, "a")
    assert status == 0
    assert re.search(r"^samples +3$", out, re.M)
    assert run(capsys, "info", store, "a/000000.json")[0] == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["ls", "{store}", "none"], 1, "none"),
        (["ls", "{store}", "bad"], 1, "bad"),
        (["info", "{store}", "a/none"], 1, "a/none"),
        (["cat", "{store}", "none"], 1, "none"),
        (["ls", "{store}/nowhere"], 3, "no store at"),
        (["ls", "{store}/deep/.."], 0, ""),
        (["ls", "sftp://bucket/x"], 5, "sftp://bucket/x"),  # fsspec knows it, and lacks a package for it
        (["ls", "nosuch://bucket/x"], 3, "nosuch://bucket/x"),
        (["ls", "{store}", "--driver", "none"], 2, "none"),
        (["ls"], 2, "STORE"),
        (["ls", "{store}", "--frob"], 2, "--frob"),
        (["ls", "{store}", "--arrays", "tiff"], 2, "tiff"),
        (["frob", "{store}"], 2, "frob"),
        ([], 2, "COMMAND"),
        (["umount"], 2, "MNT"),
        (["mount", "{store}"], 2, "MNT"),
        (["mount", "{store}", "m", "--allow-delete"], 2, "give --rw, too"),
        (["mount", "{store}", "m", "--rw", "--write-back", "soon"], 2, "'soon' is no time to wait"),
        (["mount", "{store}", "m", "-o", "ro,rw"], 2, "choose one"),
        (["mount", "{store}", "m", "-o", "memroy=1G"], 2, "did you mean memory="),
        (["statsu"], 2, "there is no statsu; did you mean status?"),
        (["mount", "{store}", "m", "--profile", "trian"], 2, "did you mean train?"),
        (
            ["mount", "{store}", "m", "-o", "frobnicate"],
            2,
            "known are: driver=, arrays=, text=, profile=",
        ),
        (["mount", "{store}", "m", "-o", "memory=lots"], 2, "-o memory=lots: 'lots' is no size"),
        (["mount", "{store}", "m", "-o", "arrays=tiff"], 2, "-o arrays=tiff: choose one of png, npy"),
        (["umount", "/proc"], 4, "no shardfs"),
        (["umount", "{store}"], 4, "nothing is mounted"),
        (["commit"], 2, "MNT"),
        (["commit", "{store}"], 4, "no shardfs mount at"),
        (["commit", "/proc", "k"], 4, "no shardfs mount at /proc"),
        (["commit", "{store}", "--force"], 2, "--force"),
        (["status", "{store}"], 4, "no shardfs mount at"),
        (["status", "a", "b"], 2, "b"),
        (["staging"], 2, "WORK"),
        (["staging", "frob"], 2, "frob"),
        (["staging", "list", "a", "b"], 2, "b"),
        (["staging", "recover"], 2, "STORE"),
        (["staging", "recover", "{store}", "--to", "x"], 2, "--to needs a KEY"),
        (["staging", "recover", "{store}"], 1, "nothing is staged for"),
        (["staging", "discard", "{store}"], 2, "KEY"),
        (["staging", "discard", "{store}", "k", "--yes"], 1, "nothing is staged for"),
        (["staging", "trust", "{store}", "k"], 1, "nothing is staged for"),
        (["staging", "trust", "{store}"], 2, "KEY"),
    ],
)
def test_errors_are_one_line_and_a_status(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    store: Path,
    words: list[str],
    status: int,
    said: str,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(store.parent / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(store.parent))
    got, out, err = run(capsys, *[word.format(store=store) for word in words])
    assert got == status, err
    if status:
        assert out == ""
        assert said in one_line(err)


def test_names_are_utf8_in_any_locale(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with gzip.open(tmp_path / "s/ключ.gz", "wb") as file:
        file.write(msgpack.packb({"label": "é"}))
    for env in ({"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}):
        done = shardfs("ls", tmp_path / "s", env=env)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ключ\n".encode(), b"")


# --- what the user may do to us ---------------------------------------------------------------------------------------


def test_help_names_every_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--help")
    assert (status, err) == (0, "")
    for number, meaning in commands.EXIT_STATUS.items():
        assert re.search(rf"^ *{number}  {re.escape(meaning)}$", out, re.M)
    for command in COMMANDS:
        assert run(capsys, command, "--help")[0] == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, "shardfs 0.1.0\n", "")


def test_help_imports_nothing_heavy() -> None:
    """What `import shardfs` itself brings is another matter: the package is put in place without running it."""
    script = """
import sys, types
package = types.ModuleType("shardfs"); package.__path__ = [sys.argv[1]]; sys.modules["shardfs"] = package
from shardfs import cli
try: cli.main(["--help"])
finally: print([name for name in ("numpy", "msgpack", "trio", "pyfuse3", "json", "dataclasses", "logging", "subprocess")
                if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script, REPOSITORY / "shardfs"], capture_output=True, timeout=60)
    assert done.stderr.decode().strip() == "[]"


def test_nobody_reads_the_output(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.gz", "wb") as file:
        for number in range(5_000):
            file.write(msgpack.packb({"x": b"0123456789" * 20, "label": number}))
    for words in (["ls", tmp_path, "a"], ["cat", tmp_path, *[f"a/{n:06d}.x.bin" for n in range(900)]]):
        process = subprocess.Popen(
            [sys.executable, "-m", "shardfs", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()
        process.stderr.close()
        assert (process.wait(60), said) == (141, b"")


def test_full_disk_is_one_line(store: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = shardfs("ls", store, stdout=full)
    assert done.returncode == 1
    assert "No space left on device" in one_line(done.stderr.decode())


def test_closed_stdout(store: Path) -> None:
    command = f"exec {sys.executable} -m shardfs ls {store} >&-"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, timeout=60, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert done.returncode == 1
    one_line(done.stderr.decode())


def test_interrupt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", lambda _: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with it ignored
    try:
        assert run(capsys, "ls", "x") == (130, "", "")
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_unexpected_error_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> int:
        raise ValueError("two\nlines \x1b[31m")

    monkeypatch.setattr(cli, "_run", fails)
    status, _, err = run(capsys, "ls", "x")
    assert status == 1
    assert one_line(err) == "shardfs: unexpected ValueError: two lines  [31m (a bug in shardfs; -vv shows where)\n"
    status, _, err = run(capsys, "ls", "x", "-vv")
    assert status == 1
    assert err.startswith("Traceback (most recent call last)")
    assert err.endswith("shardfs: unexpected ValueError: two lines  [31m\n")


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (BadStoreError("no store"), 3, "no store"),
        (BadSettingError("no such"), 2, "no such"),
        (MissingExtraError("install it"), 5, "install it"),
        (MissingSystemError("no device"), 5, "no device"),
        (MountError("busy"), 4, "busy"),
        (StagingError("open", errno.EBUSY), 6, "open"),
        (MissingKeyError("no key"), 1, "no key"),
        (StorageError("no answer", errno.ETIMEDOUT), 1, "no answer"),
        (DamagedShardError("bad", 3, "k"), 1, "shard 'k' is damaged at byte 3: bad"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 1, "/x: No such file"),
        (FileNotFoundError(errno.ENOENT, "No such file", b"/x\xff"), 1, "/x : No such file"),
        (OSError("odd"), 1, "odd"),
        (MemoryError(), 1, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ExceptionGroup("one", [ExceptionGroup("in one", [MountError("deep")])]), 4, "deep"),
    ],
)
def test_explain(error: BaseException, status: int, text: str) -> None:
    assert explain(error) == (status, text)


# --- options and sizes ------------------------------------------------------------------------------------------------


def words(*given: str, from_mount8: bool = False) -> dict[str, str | bool]:
    found, _ = said.from_words(given, from_mount8)
    return {one.setting.name: one.text for one in found}


def test_words_that_are_ours() -> None:
    assert words("ro,allow_other,nonempty", "driver=squirrel,memory=1G", "arrays=npy") == {
        **{"rw": False, "allow_other": True, "nonempty": True},
        **{"driver": "squirrel", "memory": "1G", "arrays": "npy"},
    }


def test_words_of_fstab_are_ignored() -> None:
    harmless = "defaults,_netdev,nofail,noauto,auto,user,users,dev,nodev,suid,nosuid,exec,noexec,relatime,noatime"
    odd = "x-systemd.automount,x-systemd.idle-timeout=1min,X-mount.mkdir,comment=x,default_permissions,,"
    assert words(harmless, odd) == {}
    assert said.from_words(["rw,dev,suid"], from_mount8=True) == ([], True)
    assert words("rw,dev", "write_back=3", from_mount8=True) == {"rw": True, "write_back": "3"}
    assert words("rw,allow_delete") == {"rw": True, "allow_delete": True}
    assert [options.parse_write_back(text) for text in ("off", "0", "0.5")] == [None, None, 0.5]


@pytest.mark.parametrize("word", ["allow_root", "driver", "memory", "max_read=4096", "rO", "remount", "x"])
def test_other_words_are_errors_that_name_them(word: str) -> None:
    with pytest.raises(BadSettingError, match=re.escape(f"-o {word}: ")):
        words(word)


def test_two_arguments_and_o_mean_mount() -> None:
    words = ["store", "mnt", "-o", "ro"]
    assert mount8.is_its_form(words, COMMANDS)
    assert mount8.words_of(words) == ["mount", "store", "mnt", "-o", "ro"]
    for words in (
        ["store"],
        ["store", "mnt"],
        ["mount", "s", "m", "-o", "ro"],
        ["-f", "m", "-o", "ro"],
        ["ls", "-o"],
        [],
    ):
        assert not mount8.is_its_form(words, COMMANDS)


def test_as_mount_shardfs() -> None:
    assert [mount8.is_helper(name) for name in ("/sbin/mount.shardfs", "mount.fuse.shardfs", "/bin/shardfs")] == [
        *(True, True, False)
    ]
    words = ["store", "mnt", "-n", "-s", "-v", "-o", "rw", "-t", "shardfs"]
    assert mount8.words_of(words) == ["mount", "store", "mnt", "-v", "-o", "rw"]
    assert mount8.words_of(["-sv", "-orw", "store", "mnt", "-o", ""]) == [
        *("mount", "store", "mnt", "-v", "-o", "rw", "-o", "")
    ]
    assert mount8.words_of(["mount", "mnt"]) == ["mount", "mount", "mnt"]
    assert mount8.words_of(["store", "mnt", "-sf"]) is None
    for words in ([], ["store"], ["store", "mnt", "x"], ["store", "mnt", "-q"], ["store", "mnt", "-o"]):
        with pytest.raises(BadSettingError, match=r"usage: mount\.shardfs STORE MNT"):
            mount8.words_of(words)


def test_exit_statuses_of_mount8(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["/sbin/mount.shardfs"])
    assert [mount8.status_of(status) for status in (0, 2, 130, 3, 4, 5)] == [0, 1, 8, 32, 32, 32]
    nowhere = str(tmp_path / "nowhere")
    for given, status, told in (
        ([], 1, "a store and a mount point are wanted"),
        ([nowhere, nowhere, "-o", "alow_other"], 1, "did you mean allow_other"),
        ([nowhere, nowhere, "-o", "_netdev,nofail,noauto,user,user=me,x-systemd.automount,rw"], 32, "no store at"),
        ([nowhere, nowhere, "-f"], 0, None),
        (["--help"], 0, None),
    ):
        code, _, err = run(capsys, *given)
        assert code == status, given
        assert told is None or told in err


def test_mount8s_fake_mounts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "store", "mnt", "-f", "-o", "rw") == (0, "", "")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1000000", 1_000_000),
        ("512k", 512 << 10),
        ("500M", 500 << 20),
        ("2G", 2 << 30),
        ("1.5GiB", 3 << 29),
        ("1T", 1 << 40),
        (" 64 mib ", 64 << 20),
        ("500MB", 500_000_000),
        ("1KB", 1000),
        ("100B", 100),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert options.parse_size(text) == size


def test_shares_of_memory() -> None:
    assert options.parse_size("25%") == config.memory_available() // 4
    assert options.parse_size("100%") == config.memory_available()


@pytest.mark.parametrize(
    "text", ["", "0", "0%", "101%", "-1", "G", "1.5.2G", "1X", "1e9", "0x10", "٣G", "1G2", "inf", "1.G"]
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(BadSettingError):
        options.parse_size(text)


# --- the mount table, records, readiness ------------------------------------------------------------------------------


def test_mount_table(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"22 1 0:21 / / rw shared:1 - ext4 /dev/vda rw\n"
        b"40 22 0:36 / /mnt/a\\040b\\134040 ro,nosuid shared:5 master:2 - fuse.shardfs /s\\011\xff ro,user_id=7\n"
        b"\n41 nonsense\n"
    )
    first, second = daemon.mounts(str(table))
    assert (first.path, first.fstype, first.source, first.owner) == ("/", "ext4", "/dev/vda", None)
    assert (second.path, second.fstype, second.owner) == ("/mnt/a b\\040", "fuse.shardfs", 7)
    assert os.fsencode(second.source) == b"/s\t\xff"


def test_the_last_of_several_mounts_is_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [daemon.Mounted("/m", "0:1", "tmpfs", "x", None), daemon.Mounted("/m", "0:2", "fuse.shardfs", "s", 0)]
    monkeypatch.setattr(daemon, "mounts", lambda: table)
    assert daemon.mounted_at("/m") is table[1]
    assert daemon.mounted_at("/n") is None


def test_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert daemon.find("/m") is None
    with daemon.recorded("/m", "store"):
        record = daemon.find("/m")
        assert record is not None
        assert (record.pid, record.mountpoint, record.store) == (os.getpid(), "/m", "store")
        assert daemon.find("/n") is None
        (file,) = (tmp_path / "shardfs").iterdir()
        assert (tmp_path / "shardfs").stat().st_mode & 0o777 == 0o700
    assert daemon.find("/m") is None
    assert not file.exists()


def test_all_records_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with daemon.recorded("/n", "store"), daemon.recorded("/m", "store", writable=True):
        (tmp_path / "shardfs" / "0.json").write_text("{")
        ours = [record for record in daemon.records() if record.pid == os.getpid()]
        assert [(record.mountpoint, record.writable) for record in ours] == [("/m", True), ("/n", False)]
    assert [record for record in daemon.records() if record.pid == os.getpid()] == []


def test_what_a_daemon_has_left_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with daemon.recorded("/m", "store"):
        daemon.leave_word("/m", {}, {})
        assert daemon.hear_word("/m") == ({}, {})
        daemon.leave_word("/m", {"k": "why"}, {"x.tmp": "plain"})
        assert daemon.hear_word("/n") == ({}, {})
        assert daemon.hear_word("/m") == ({"k": "why"}, {"x.tmp": "plain"})
        assert daemon.hear_word("/m") == ({}, {})
        (tmp_path / "shardfs" / (daemon.file_name("/m") + ".left")).write_text("[1]")
        assert daemon.hear_word("/m") == ({}, {})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_text("{"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text(file.read_text().replace('"started": ', '"started": 1')),
        lambda file: file.parent.chmod(0o777),
        lambda file: (file.rename(file.parent / "x"), file.symlink_to("x")),
        lambda file: (file.unlink(), os.mkfifo(file)),
    ],
    ids=["broken", "a list", "a pid used again", "open to all", "a link", "a FIFO"],
)
def test_records_that_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with daemon.recorded("/m", "store"):
        (file,) = (tmp_path / "shardfs").iterdir()
        spoil(file)
        assert daemon.find("/m") is None


def test_waiting_for_a_process() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    started = daemon._started(process.pid)
    assert started is not None
    record = daemon.Record(process.pid, started, "/m", "s")
    assert not daemon.wait_until_gone(record, 0.01)
    assert daemon.wait_until_gone(daemon.Record(process.pid, started + 1, "/m", "s"), 0)
    process.stdin.close()
    assert daemon.wait_until_gone(record, 30), "a corpse counts as gone"
    process.wait()
    assert daemon.wait_until_gone(record, 0)


def test_a_background_process_that_dies_is_told_of() -> None:
    """In a process of its own: start() forks, and a test process may have threads."""
    script = """
import os, signal, sys
from shardfs import background
from shardfs.commands import explain
from shardfs.errors import MountError
def dies(ready): os.kill(os.getpid(), signal.SIGKILL)
def fails(ready): raise MountError("not here")
def leaves(ready): pass
for serve in (dies, fails, leaves): print(background.start(serve, explain, None))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    died, failed, left = done.stdout.splitlines()
    assert "code=1" in died
    assert "signal 9" in died
    assert failed == "Failure(code=4, text='not here')"
    assert "exit status 0" in left
    assert done.stderr == ""


def test_index_says_when_nothing_could_be_kept(store: Path) -> None:
    command = [sys.executable, "-m", "shardfs", "index", str(store)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": "/proc"}
    done = subprocess.run(command, capture_output=True, timeout=60, env=environment, text=True)
    assert done.returncode == 1
    assert "nothing was kept" in done.stderr
    assert "bug in shardfs" not in done.stderr


def test_index_builds_keeps_exports_and_checks(store: Path, tmp_path: Path) -> None:
    def index(*words: str) -> dict[str, object]:
        command = [sys.executable, "-m", "shardfs", "index", str(store), "--json", *words]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, timeout=60, env=environment, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        facts: dict[str, object] = json.loads(done.stdout)
        return facts

    (store / "bad.gz").unlink()  # with a damaged shard the exit status is 1
    first = index()
    assert first["built"] == first["shards"]
    assert index()["built"] == 0
    checked = index("--check", "--export", str(tmp_path / "out.sqlite"))
    assert (checked["differing"], checked["exported"]) == ([], first["shards"])
    assert (tmp_path / "out.sqlite").stat().st_size > 0
