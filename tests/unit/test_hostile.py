"""Shards made to attack: each is told as damaged, soon, in little memory, runs nothing, and leaves the others alone.

All of them lie in one store and are asked for, one after the other, through one ShardCache in a process of its own,
which measures itself; the tests look at what it measured.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import pickle
import random
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import trio
import zstandard

from shardfs import config
from shardfs.errors import DamagedShardError, MissingKeyError, ShardfsError, StorageError
from shardfs.opening import open_store
from shardfs.shard_cache import ShardCache
from shardfs.storage import local

ROOT = Path(__file__).parents[2]
SECONDS = 10
MEMORY = 256 * config.MIB
GOOD = [{"label": at, "image": bytes([at]) * 1000, "array": np.arange(at)} for at in range(20)]
GOOD_JSON = b"".join(b'{"label": %d, "text": "some text"}\n' % at for at in range(20))


# --- how they are made ------------------------------------------------------------------------------------------


def long_gz(piece: bytes, mib: int, before: bytes = b"", behind: bytes = b"", level: int = 9) -> bytes:
    """A gzip file of `piece` over and over, so many MiB of it, without compressing more than two."""
    piece = piece * (config.MIB // len(piece))
    deflate = zlib.compressobj(level, wbits=-15)
    first, again, last = (
        deflate.compress(data) + deflate.flush(zlib.Z_FULL_FLUSH) for data in (before + piece, piece, behind)
    )
    checksum, size = zlib.crc32(before), len(before) + mib * len(piece) + len(behind)
    for _ in range(mib):
        checksum = zlib.crc32(piece, checksum)
    trailer = struct.pack("<II", zlib.crc32(behind, checksum), size & 0xFFFFFFFF)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + first + again * (mib - 1) + last + deflate.flush() + trailer


def zeros_gz(mib: int, level: int) -> bytes:
    return long_gz(b"\0", mib, level=level)


def zeros_zst(mib: int, **options: Any) -> bytes:
    stream = zstandard.ZstdCompressor(**options).compressobj()
    return b"".join([*(stream.compress(bytes(config.MIB)) for _ in range(mib)), stream.flush()])


def packed(value: Any) -> bytes:
    made: bytes = msgpack.packb(value, default=_array)
    return made


def _array(value: np.ndarray[Any, Any]) -> Any:
    return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}


def array(**changes: Any) -> bytes:
    parts = {"nd": True, "type": "<f4", "kind": b"", "shape": [2], "data": bytes(8), **changes}
    return packed({"fine": 1, "array": {name.encode(): value for name, value in parts.items()}})


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def gz(raw: bytes, level: int = 6) -> bytes:
    return gzip.compress(raw, level, mtime=0)


def spellings() -> bytes:
    words = ("".join(chr(97 - 32 * (number >> bit & 1)) for bit in range(15)) for number in range(1 << 15))
    return b"\xdf" + struct.pack(">I", 1 << 15) + b"".join(b"\xaf" + word.encode() + b"\xc4\x00" for word in words)


def streams(good: bytes) -> dict[str, bytes]:
    """Damaged compressed streams."""
    stored, frame = gz(good), zstandard.compress(good)
    return {
        "truncated_gz.gz": stored[:-20],
        "truncated_trailer.gz": stored[:-1],
        "truncated_zst.zst": frame[:-20],
        "header_only.gz": stored[:10],
        "header_only.zst": frame[:5],
        "not_gzip.gz": b"this is no gzip",
        "not_zstd.zst": b"this is no zstd",
        "zstd_named_gz.gz": frame,
        "garbage_behind.gz": stored + b"garbage",
        "wrong_crc.gz": stored[:-8] + bytes(4) + stored[-4:],
        "wrong_size.gz": stored[:-4] + bytes(4),
        "huge_window.zst": b"\x28\xb5\x2f\xfd\x00\xf8" + (1 << 3 | 1).to_bytes(3, "little") + b"x",
        "claims_a_tebibyte.zst": b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x09\0\0x",
        "claims_a_tebibyte_and_goes_on.zst": b"\x28\xb5\x2f\xfd\xc0\x00" + (1 << 40).to_bytes(8, "little") + frame,
    }


def bombs() -> dict[str, bytes]:
    """Little that becomes much."""
    return {
        "gib_of_zeros.gz": zeros_gz(1024, 9),
        "gib_of_zeros_made_fast.gz": zeros_gz(1024, 1),
        "gib_of_zeros.zst": zeros_zst(1024),
        "gib_of_zeros_large_window.zst": zeros_zst(1024, level=19),
        "nested.gz": gz(zeros_gz(1024, 9) * 40),
        "members.gz": zeros_gz(1, 9) * 1024,
        "frames.zst": zeros_zst(1) * 1024,
        "zeros_below_the_floor.gz": zeros_gz(config.BOMB_FLOOR // config.MIB - 2, 9),
        "zeros_190_mib.gz": zeros_gz(190, 9),
        "empty_members_and_garbage.gz": gz(b"") * 250_000 + b"garbage",
        "digits.gz": long_gz(b"1", 100),
        "text_with_an_emoji.gz": long_gz(b"a", 100, b"\xdb" + struct.pack(">I", (100 << 20) + 4), "🎉".encode()),
        "name_of_slashes.gz": long_gz(b"/", 30, b"\x81\xdb" + struct.pack(">I", 30 << 20), b"\x00"),
        "name_of_bytes.gz": long_gz(b"\xff", 60, b"\x81\xc6" + struct.pack(">I", 60 << 20), b"\x00"),
        "million_files.gz": gz(b"\xdd" + struct.pack(">I", 999_000) + b"\xc4\x00" * 999_000),
        "million_maps.gz": gz(b"\xdd" + struct.pack(">I", 990_000) + b"\x80" * 990_000 + b"\xc1"),
        "million_samples.gz": gz(b"".join(b"\xcd" + struct.pack(">H", at % 1000) for at in range(999_000))),
        "json_list.gz": long_gz(b"0,", 90, b"[", b"0]\n"),
        "json_lists.gz": long_gz(b"[],{},[], [],{},", 90, b"[", b"0]\n"),
        "json_text.gz": long_gz(b"a", 100, b'"', "🎉".encode() + b'"\n'),
        "json_lines.gz": long_gz(b"0\n", 90),
    }


def objects(marker: Path) -> dict[str, bytes]:
    """Damaged msgpack, and pickles that would write `marker`."""
    command = f"touch {marker}"
    attacks = {
        f"pickle_{name}_{protocol}.gz": gz(array(kind=b"O", type="|O", data=pickle.dumps(call, protocol)))
        for protocol in (0, 2, 4)
        for name, call in (("system", Calls(os.system, command)), ("eval", Calls(eval, f"open({str(marker)!r}, 'w')")))
    }
    lengths = {
        f"absurd_{name}.gz": gz(b"\x01" + bytes([code]) + b"\xff\xff\xff\xff" + b"\x05abc")
        for name, code in (("array32", 0xDD), ("map32", 0xDF), ("bin32", 0xC6), ("str32", 0xDB), ("ext32", 0xC9))
    }
    damaged = {
        "truncated_msgpack": packed(GOOD[:3])[:-5],
        "no_code": packed({"a": 1}) + b"\xc1",
        "bad_utf8": b"\xa2\xff\xff",
        "nested_lists": b"\x91" * 100_000 + b"\x00",
        "nested_maps": b"\x81\xa1a" * 100_000 + b"\x00",
        "nested_names": b"\x81\x91" * 100_000 + b"\x00",
        "twice": b"\x82\xa1a\x01\xa1a\x02",
        "twice_inside": b"\x81\xa1x\x91\x82\xa1a\x01\xa1a\x02",
        "object_dtype": array(type="O"),
        "object_dtype_with_bar": array(type="|O", shape=[1]),
        "object_in_structure": array(type=[["a", "|O"]], kind=b"V", shape=[1]),
        "object_scalar": packed({b"nd": False, b"type": "O", b"data": bytes(8)}),
        "pickle_cut_off": array(kind=b"O", type="|O", data=b"\x80\x02]q"),
        "pickle_of_opcodes": array(kind=b"O", type="|O", data=b"N" * (30 << 20) + b"."),
        "too_few_bytes": array(data=bytes(7)),
        "too_many_bytes": array(data=bytes(9)),
        "negative_shape": array(shape=[-1, -2]),
        "huge_shape": array(shape=[1 << 40, 1 << 40]),
        "huge_empty_shape": array(shape=[0, 1 << 62], data=b""),
        "too_many_dimensions": array(shape=[1] * 100 + [2]),
        "no_shape": array(shape="2"),
        "itemsize_zero": array(type="V0", shape=[1 << 40], data=b""),
        "text_without_size": array(type="<U0", shape=[1 << 40], data=b""),
        "huge_dtype": array(type="<U500000000", shape=[0], data=b"x"),
        "structure_of_a_huge_shape": array(type=[["a", "<f8", [1 << 30, 1 << 30]]], kind=b"V"),
        "letters_that_are_none": packed({b"nd": False, b"type": "<U1", b"data": b"\xff" * 4}),
        "reserved_extension": b"\xd4\x80x",
        "timestamp": b"\xd7\xff" + b"\xff" * 8,
    }
    return attacks | lengths | {f"{name}.gz": gz(raw) for name, raw in damaged.items()}


def lines() -> dict[str, bytes]:
    """Damaged JSON lines."""
    raws = {
        "json_truncated": GOOD_JSON[:-10],
        "json_nested_lists": b"[" * 100_000 + b"]" * 100_000 + b"\n",
        "json_nested_dicts": b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"\n",
        "json_nested_above_the_limit": b"[" * 500 + b"]" * 500 + b"\n",
        "json_twice": b'{"a": 1, "b": 2, "a": 3}\n',
        "json_twice_inside": b'{"x": [{"a": 1, "a": 2}]}\n',
        "json_bad_utf8": b'{"a": "\xff"}\n',
        "json_long_number": b'{"a": ' + b"1" * 100_000 + b"}\n",
        "json_no_json": b'{"a": 1}\n{"b": \n',
    }
    return {f"{name}.gz": gz(raw) for name, raw in raws.items()}


def harmless() -> dict[str, bytes]:
    """What looks hostile and is fine: to be shown, in bounded memory."""
    many = b",".join([b'"b"'] * 200)
    plain = np.array([1, "a", None], object)
    return {
        "fine_objects.gz": gz(array(kind=b"O", type="|O", shape=[3], data=plain.dumps())),
        "fine_huge_dtype_in_json.gz": gz(b'{"data": [""], "type": "<U1000000000", "shape": [1]}\n'),
        "fine_long_text_in_json.gz": gz(
            b'{"data": ["' + b"a" * (4 << 20) + b'",' + many + b'], "type": "<U1", "shape": [201]}'
        ),
        "fine_spellings.gz": gz(spellings()),
        "fine_blank.gz": long_gz(b"\0", 100, b"\xc6" + struct.pack(">I", 100 << 20)),
        "fine_empty_members.gz": gz(b"") * 200_000,
        "fine_empty.gz": b"",
    }


def make_store(root: Path, marker: Path) -> dict[str, list[str]]:
    good = b"".join(map(packed, GOOD))
    groups = {
        "streams": streams(good),
        "bombs": bombs(),
        "objects": objects(marker),
        "lines": lines(),
        "harmless": harmless(),
        "good": {"good.gz": gz(good), "good_zstd.zst": zstandard.compress(good), "good_json.gz": gz(GOOD_JSON)},
    }
    for files in groups.values():
        for name, data in files.items():
            (root / name).write_bytes(data)
    return {group: [name.rpartition(".")[0] for name in files] for group, files in groups.items()}


# --- the process that asks for them -----------------------------------------------------------------------------


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # then the peaks of the shards before count too
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


async def _ask(root: str, keys: list[str], executed: list[str]) -> dict[str, Any]:
    store = open_store(root, driver="squirrel")
    cache = ShardCache(store.driver, 1 << 30, "png")
    results: dict[str, Any] = {}
    async with cache.running():
        good = [store.entry(key) for key in ("good", "good_zstd", "good_json")]
        for entry in good:
            await cache.table(entry)
        for key in keys:
            entry = store.entry(key)
            _forget_peak()
            before, began, executed[:] = _status("VmRSS"), time.monotonic(), []
            try:
                table = await cache.table(entry)
                outcome, names = "ok", [table.name(file).decode() for file in range(min(table.files, 3))]
            except ShardfsError as error:
                outcome, names = type(error).__name__, [str(error), errno.errorcode[error.errno]]
            seconds, peak = time.monotonic() - began, _status("VmHWM") - before
            loaded = [await cache.shard(entry) for entry in good]
            results[key] = {
                "outcome": outcome,
                "names": names,
                "seconds": seconds,
                "memory": peak,
                "executed": list(executed),
                "others": [shard.table.samples for shard in loaded],
            }
            if outcome == "ok":
                cache.drop(entry)
    return results


def main(root: str, keys: list[str]) -> None:
    executed: list[str] = []
    watched = (
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "subprocess.Popen",
        "pickle.find_class",
        "socket.connect",
    )

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in watched or (event == "open" and "w" in str(arguments[1])):
            executed.append(event)

    sys.addaudithook(audit)
    print(json.dumps(trio.run(_ask, root, keys, executed)))


# --- the tests --------------------------------------------------------------------------------------------------


class Answers:
    def __init__(self, root: Path) -> None:
        self.marker = root / "executed"
        (root / "store").mkdir()
        self.groups = make_store(root / "store", self.marker)
        self.before = {path: path.stat() for path in (root / "store").iterdir()}
        keys = [key for group, keys in self.groups.items() if group != "good" for key in keys]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, str(root / "store")]
        done = subprocess.run(
            command, input="\n".join(keys), capture_output=True, text=True, env=environment, timeout=110, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        self.of: dict[str, Any] = json.loads(done.stdout)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("group", ["streams", "bombs", "objects", "lines"])
def test_each_is_damaged(answers: Answers, group: str) -> None:
    keys = answers.groups[group]
    wrong = {key: answers.of[key] for key in keys if "EIO" not in answers.of[key]["names"]}
    assert wrong == {}
    assert {answers.of[key]["outcome"] for key in keys} <= {"DamagedShardError", "OverfullShardError"}
    assert [key for key in keys if key not in answers.of[key]["names"][0]] == []  # the reason names the shard


def test_what_only_looks_hostile_is_shown(answers: Answers) -> None:
    outcomes = {key: answers.of[key]["outcome"] for key in answers.groups["harmless"]}
    assert set(outcomes.values()) == {"ok"}, outcomes
    assert answers.of["fine_objects"]["names"] == ["000000.array.pkl", "000000.json"]
    assert answers.of["fine_huge_dtype_in_json"]["names"] == ["000000.json"]


def test_each_answer_comes_soon(answers: Answers) -> None:
    slow = {key: answer["seconds"] for key, answer in answers.of.items() if answer["seconds"] > SECONDS}
    assert slow == {}


def test_each_takes_little_memory(answers: Answers) -> None:
    large = {key: answer["memory"] >> 20 for key, answer in answers.of.items() if answer["memory"] > MEMORY}
    assert large == {}


def test_none_runs_or_writes_anything(answers: Answers) -> None:
    assert {key: answer["executed"] for key, answer in answers.of.items() if answer["executed"]} == {}
    assert not answers.marker.exists()
    for path, status in answers.before.items():
        now = path.stat()
        assert (now.st_size, now.st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert set(answers.before) == set(next(iter(answers.before)).parent.iterdir())


def test_the_other_keys_stay_readable(answers: Answers) -> None:
    assert {tuple(answer["others"]) for answer in answers.of.values()} == {(20, 20, 20)}


@pytest.mark.parametrize("made", ["gz", "zst"])
def test_a_flipped_bit_is_damage_or_the_same_samples(tmp_path: Path, made: str) -> None:
    good = b"".join(map(packed, GOOD))
    checked = zstandard.ZstdCompressor(write_checksum=True)
    stored = gz(good) if made == "gz" else checked.compress(good)
    path = tmp_path / f"key.{made}"
    path.write_bytes(stored)
    store = open_store(tmp_path)
    expected = [sample["image"] for sample in store.get("key")]
    damaged = 0
    for bit in random.Random(5).sample(range(len(stored) * 8), 200):
        flipped = bytearray(stored)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert [sample["image"] for sample in store.get("key")] == expected
        except DamagedShardError:
            damaged += 1
    assert damaged > 150


def test_what_is_no_regular_file_is_no_key_and_hangs_nobody(tmp_path: Path) -> None:
    (tmp_path / "good.gz").write_bytes(gz(packed(1)))
    os.mkfifo(tmp_path / "fifo.gz")
    (tmp_path / "link.gz").symlink_to("good.gz")
    (tmp_path / "outside.gz").symlink_to("/etc/passwd")
    (tmp_path / "loop.gz").symlink_to("loop.gz")
    (tmp_path / "device.gz").symlink_to("/dev/zero")
    (tmp_path / "directory.gz").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.gz"))
        store = open_store(tmp_path)
        assert store.keys() == ["good"]
        for key in ("fifo", "link", "outside", "loop", "device", "directory", "socket"):
            with pytest.raises(MissingKeyError):
                store.get(key)
    assert list(store.get("good")) == [1]


@pytest.mark.parametrize("replace", [os.mkfifo, lambda path: os.symlink("/etc/passwd", path), os.mkdir])
def test_a_file_replaced_by_something_else_after_the_listing_hangs_nobody(
    tmp_path: Path, replace: Callable[[Path], None]
) -> None:
    (tmp_path / "key.gz").write_bytes(gz(packed(1)))
    store = open_store(tmp_path)
    entry = store.entry("key")
    (tmp_path / "key.gz").unlink()
    replace(tmp_path / "key.gz")
    with pytest.raises(ShardfsError):
        store.driver.load(entry, lambda _: None)


def test_a_file_that_may_not_be_read_is_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("secret", "good"):
        (tmp_path / f"{key}.gz").write_bytes(gz(packed(1)))
    real = os.open

    def opening(path: Any, *arguments: Any, **others: Any) -> int:
        if path == "secret.gz":  # root may read whatever the mode says
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *arguments, **others)

    monkeypatch.setattr(local.os, "open", opening)
    store = open_store(tmp_path)
    assert store.keys() == ["good", "secret"]
    with pytest.raises(StorageError, match="Permission denied") as caught:
        store.get("secret")
    assert caught.value.errno == errno.EACCES
    assert list(store.get("good")) == [1]


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.read().split("\n"))
