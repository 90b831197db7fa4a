"""Headers of tars against Python's tarfile and GNU tar, and whatever bytes may stand in their place."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shardfs import config
from shardfs.drivers.tar_headers import Listing, ending, header, listing, padding
from shardfs.errors import BadSettingError, DamagedShardError

RELAXED = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def listed(data: bytes) -> Listing:
    view = memoryview(data)
    return listing(lambda start, end: view[start:end], len(data))


def contents(data: bytes) -> dict[str, bytes]:
    return {one.name: data[one.offset : one.offset + one.length] for one in listed(data).members}


def tarred(files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 12.5
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def untarred(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {}
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None
            found[info.name] = file.read()
        return found


names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40), min_size=1, max_size=9
).map("/".join)
odd_names = names | names.map(lambda name: name + "\udcff\udc80") | st.text("ab/", min_size=1, max_size=300)
files = st.dictionaries(
    odd_names.filter(lambda name: not name.endswith("/") and name.strip("./") != ""),
    st.binary(max_size=2000),
    max_size=6,
)


@RELAXED
@given(files, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_members_are_those_that_tarfile_wrote(written: dict[str, bytes], form: int) -> None:
    data = tarred(written, form)
    assert contents(data) == untarred(data)
    assert contents(data) == written
    found = listed(data)
    assert (found.notes, found.unkept) == ([], None)
    ends = [one.end for one in found.members]
    assert [one.start for one in found.members] == [0, *ends][: len(ends)]


@RELAXED
@given(files)
def test_tarfile_reads_what_is_written_here(written: dict[str, bytes]) -> None:
    data = b"".join(header(name, len(content)) + content + padding(len(content)) for name, content in written.items())
    data += ending(len(data))
    assert len(data) % (20 * 512) == 0
    assert untarred(data) == written
    assert contents(data) == written


@settings(RELAXED, max_examples=300)
@given(files, st.data())
def test_any_damage_is_damage_or_other_names_and_never_anything_else(
    written: dict[str, bytes], data: st.DataObject
) -> None:
    raw = bytearray(tarred(written, data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(raw) - 1, 4000)))
        raw[at] = data.draw(st.sampled_from([0, 32, 48, 57, 0x80, 0xFF]) | st.integers(0, 255))
    block = data.draw(st.integers(0, len(raw) // 512 - 1)) * 512
    if data.draw(st.booleans()):  # with a good checksum
        head = bytearray(raw[block : block + 512])
        head[148:156] = b" " * 8
        raw[block + 148 : block + 156] = b"%06o\0 " % sum(head)
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    try:
        found = listed(bytes(raw))
    except DamagedShardError:
        return
    assert all(0 <= one.offset <= one.offset + one.length <= len(raw) for one in found.members)


def test_gnu_tar_reads_what_is_written_here_and_the_other_way(tmp_path: Path) -> None:
    written = {
        "a.jpg": b"1",
        "d/" * 90 + "long name.txt": b"2" * 600,
        "e" * 240: b"",
        "grün/日本.txt": b"3",
        "f" * 101: b"4",
    }
    data = b"".join(header(name, len(content)) + content + padding(len(content)) for name, content in written.items())
    (tmp_path / "x.tar").write_bytes(data + ending(len(data)))
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "x.tar", "-C", tmp_path / "out"], check=True, capture_output=True)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in written} == written
    for form in ("gnu", "posix", "oldgnu"):
        again = tmp_path / f"{form}.tar"
        subprocess.run(["tar", "cf", again, f"--format={form}", "."], cwd=tmp_path / "out", check=True)
        assert contents(again.read_bytes()) == {f"./{name}": content for name, content in written.items()}


def test_headers_are_the_same_whoever_writes_them() -> None:
    data = header("a.txt", 3)
    assert len(data) == 512
    info = tarfile.TarInfo.frombuf(data, "utf-8", "surrogateescape")
    assert (info.name, info.size, info.mode, info.uid, info.gid, info.mtime) == ("a.txt", 3, 0o444, 0, 0, 0)
    assert header("a.txt", 3) == data
    assert len(header("d" * 60 + "/" + "e" * 90, 0)) == 512, "ustar has room for it in two parts"
    assert len(header("d" * 101, 0)) == 3 * 512


def test_a_size_above_8_gib_is_in_an_extended_header_or_to_base_256() -> None:
    size = 9 << 30
    info = tarfile.TarInfo("big.bin")
    info.size = size
    for data in (header("big.bin", size), info.tobuf(tarfile.GNU_FORMAT), info.tobuf(tarfile.PAX_FORMAT)):

        def read(start: int, end: int, data: bytes = data) -> memoryview:
            return memoryview(data[start:end].ljust(end - start, b"\0"))

        (member,) = listing(read, len(data) + size).members
        assert (member.name, member.length, member.offset) == ("big.bin", size, len(data))


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800"])
def test_names_that_no_tar_can_hold(name: str) -> None:
    with pytest.raises(BadSettingError, match="cannot be called"):
        header(name, 1)


# --- what is no plain file ------------------------------------------------------------------------------------------


def test_links_and_special_files_are_noted_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"content")
    os.link(tmp_path / "a.txt", tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "d.txt")
    (tmp_path / "sub").mkdir()
    tar = tmp_path / "x.tar"
    subprocess.run(["tar", "cf", tar, "a.txt", "b.txt", "c.txt", "d.txt", "sub"], cwd=tmp_path, check=True)
    found = listed(tar.read_bytes())
    assert contents(tar.read_bytes()) == {"a.txt": b"content", "b.txt": b"content"}
    assert [one.link for one in found.members] == [False, True]
    assert found.notes == [
        "b.txt is a hard link: shown as a.txt",
        "c.txt is a symbolic link: not shown",
        "d.txt is a FIFO: not shown",
    ]
    assert found.unkept == found.notes[0]


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_a_sparse_file_is_noted(tmp_path: Path, form: str) -> None:
    with open(tmp_path / "s.bin", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x" * 5000)
    (tmp_path / "t.bin").write_bytes(b"behind it")
    tar = tmp_path / "x.tar"
    subprocess.run(["tar", "cSf", tar, f"--format={form}", "s.bin", "t.bin"], cwd=tmp_path, check=True)
    data = tar.read_bytes()
    assert len(data) < 1 << 19, "it is sparse"
    assert contents(data) == {"t.bin": b"behind it"}
    assert listed(data).notes == ["s.bin is a sparse file: not shown"] or "sparse" in listed(data).notes[0]


# --- ends -----------------------------------------------------------------------------------------------------------


def test_a_tar_without_an_end_is_whole_and_one_that_is_cut_off_is_damaged() -> None:
    data = tarred({"a.txt": b"x" * 700, "b.txt": b"y" * 10})
    whole = listed(data).members
    for end in (whole[0].end, whole[1].end, whole[1].offset + 10):
        found = listed(data[:end])
        assert found.notes == ["the tar has no end: it may have had more members"]
        assert found.unkept is None
    assert listed(b"").members == []
    for end in (1, 511, 512, 600, whole[0].offset + 699, whole[1].start + 100, whole[1].offset + 9):
        with pytest.raises(DamagedShardError, match="cut off"):
            listed(data[:end])


def test_what_stands_behind_the_end_is_noted() -> None:
    one, two = tarred({"a.txt": b"1"}), tarred({"b.txt": b"2"})
    found = listed(one + two)
    assert [member.name for member in found.members] == ["a.txt"] == list(untarred(one + two))
    assert "behind the end" in (found.unkept or "")
    assert listed(one + bytes(50_000)).unkept is None


def test_damage_in_the_middle_says_where() -> None:
    data = bytearray(tarred({"a.txt": b"1", "b.txt": b"2"}))
    data[1024 + 5] ^= 1
    with pytest.raises(DamagedShardError, match="at byte 1024: no header of a member"):
        listed(bytes(data))


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tarred({f"{at}.txt": b"" for at in range(20)})
    monkeypatch.setattr(config, "TAR_MEMBERS", 19)
    with pytest.raises(DamagedShardError, match="more than 19 members"):
        listed(data)
    monkeypatch.setattr(config, "TAR_HEADER", 100)
    with pytest.raises(DamagedShardError, match="an extended header of"):
        listed(tarred({"n" * 300: b""}))


def test_only_headers_are_read() -> None:
    data = memoryview(tarred({f"{at}.bin": bytes(300_000) for at in range(20)}, tarfile.USTAR_FORMAT))
    asked = []

    def read(start: int, end: int) -> memoryview:
        asked.append(end - start)
        return data[start:end]

    assert len(listing(read, len(data)).members) == 20
    assert sum(asked) < 20 * 512 + 2 * config.TAR_WINDOW + 20 * 512
