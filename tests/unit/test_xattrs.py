"""Extended attributes where no mount is needed: what is refused, and headers that are none of ours."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import trio

from shardfs import config, open_store, values
from shardfs.errors import StorageError
from shardfs.vfs import build_vfs
from shardfs.xattrs import Xattrs, _shape


def test_a_file_that_is_too_large_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path, "squirrel")
    store.set([{"photo": bytes(1001), "label": 1}], "k")

    async def main() -> None:
        vfs = build_vfs(store, budget=1 << 30, arrays="png", uid=0, gid=0)
        xattrs = Xattrs(vfs)
        async with vfs.running():
            key = await vfs.lookup(1, b"k")
            small = await vfs.lookup(key.inode, b"000000.json")
            large = await vfs.lookup(key.inode, b"000000.photo.bin")
            assert b"user.shardfs.sha256" in await xattrs.names(small.inode)
            assert b"user.shardfs.sha256" not in await xattrs.names(large.inode)
            with pytest.raises(StorageError, check=lambda error: error.errno == errno.EFBIG):
                await xattrs.value(large.inode, b"user.shardfs.sha256")

    monkeypatch.setattr(config, "XATTR_HASHED", 1000)
    trio.run(main)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("<f4", (3,)), (">i8", (1, 2, 3)), ("<U7", ()), ([("a\u20ac", "<f4"), ("b", "i1", (2,))], (4,))],
)
def test_a_header_tells_type_and_shape(dtype: object, shape: tuple[int, ...]) -> None:
    made = np.dtype(dtype)  # type: ignore[call-overload]
    assert _shape(values.npy_header(made, shape)).decode() == f"{made} {shape}"


@pytest.mark.parametrize(
    "header", [b"", b"\x93NUMPY\1\0\0\0{", b"\x93NUMPY\1\0\0\0{'descr': 1}", b"\x93NUMPY\1\0\0\0" + b"{" * 100_000]
)
def test_a_header_of_an_index_from_elsewhere_tells_nothing(header: bytes) -> None:
    assert _shape(header) == b""
