"""Small files given to the kernel when they are opened: right bytes, once, and never where a read is under way."""

from __future__ import annotations

import concurrent.futures
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import trio

from shardfs import config, open_store
from shardfs.vfs import Vfs, build_vfs

Mounted = Callable[..., AbstractContextManager[Path]]

SIZES = (1, 4095, 4096, 4097, 60_000, config.GIFT, config.GIFT + 1)
KEYS = ("k0", "k1", "k2")
SAMPLES = 40


def content(key: str, at: int) -> bytes:
    size = SIZES[at % len(SIZES)]
    return random.Random(f"{key}/{at}").randbytes(size - 1) + b"."


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gifts") / "store"
    made = open_store(root, "squirrel")
    for key in KEYS:
        made.set([{"data": content(key, at), "label": at} for at in range(SAMPLES)], key)
    return root


@pytest.fixture
def vfs(store: Path) -> Callable[[Callable[[Vfs], object]], None]:
    def run(work: Callable[[Vfs], object]) -> None:
        async def main() -> None:
            made = build_vfs(open_store(store), budget=1 << 30, arrays="png", uid=0, gid=0)
            with trio.fail_after(20):
                async with made.running():
                    await work(made)  # type: ignore[misc]

        trio.run(main)

    return run


async def inode_of(vfs: Vfs, key: str, name: bytes) -> int:
    folder = await vfs.lookup(1, key.encode())
    return (await vfs.lookup(folder.inode, name)).inode


def test_a_file_is_given_once_and_to_its_only_opener(vfs: Callable[[Callable[[Vfs], object]], None]) -> None:
    async def work(vfs: Vfs) -> None:
        inode = await inode_of(vfs, "k0", b"000001.data.bin")
        first = await vfs.open(inode, os.O_RDONLY)
        second = vfs.open_now(inode, os.O_RDONLY)
        assert second == inode
        assert vfs.gift(inode) is None, "somebody else may be reading it"
        vfs.release(first)
        vfs.release(second)
        assert vfs.open_now(inode, os.O_RDONLY) is not None
        gift = vfs.gift(inode)
        assert gift is not None
        assert bytes(gift) == content("k0", 1)
        vfs.release(inode)
        assert vfs.open_now(inode, os.O_RDONLY) is not None
        assert vfs.gift(inode) is None, "the kernel has it"

    vfs(work)


@pytest.mark.parametrize("at", range(len(SIZES)))
def test_gifts_are_whole_files_of_the_right_size(vfs: Callable[[Callable[[Vfs], object]], None], at: int) -> None:
    async def work(vfs: Vfs) -> None:
        names = [f"{at:06d}.data.bin", f"{at:06d}.json"]
        for name in names:
            inode = await inode_of(vfs, "k1", name.encode())
            await vfs.open(inode, os.O_RDONLY)
            gift = vfs.gift(inode)
            size = SIZES[at]
            if name.endswith(".bin") and size > config.GIFT:
                assert gift is None
            else:
                assert bytes(gift or b"") == (content("k1", at) if name.endswith(".bin") else b'{"label": %d}\n' % at)

    vfs(work)


def test_nothing_is_given_that_is_not_at_hand(store: Path) -> None:
    async def main() -> None:
        made = build_vfs(open_store(store), budget=1, arrays="png", uid=0, gid=0)
        async with made.running():
            inode = await inode_of(made, "k0", b"000000.data.bin")
            await inode_of(made, "k1", b"000000.data.bin")  # which evicts k0
            await made.open(inode, os.O_RDONLY)
            assert made.gift(inode) is None

    trio.run(main)


def drop_caches() -> None:
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("1\n")


def read_all(mnt: Path, seed: int) -> int:
    """All files in some order: read, or mapped; the number of right ones."""
    wanted = [(key, at) for key in KEYS for at in range(SAMPLES)]
    random.Random(seed).shuffle(wanted)
    right = 0
    for number, (key, at) in enumerate(wanted):
        with (mnt / key / f"{at:06d}.data.bin").open("rb", buffering=0) as file:
            if number % 3:
                got = b"".join(iter(lambda: file.read(50_000), b""))
            else:
                with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                    got = mapped[:]
        right += got == content(key, at)
        right += (mnt / key / f"{at:06d}.json").read_bytes() == b'{"label": %d}\n' % at
    return right


@pytest.mark.parametrize("off", [False, True])
def test_many_who_open_the_same_files_at_once_get_them_right(store: Path, mounted: Mounted, off: bool) -> None:
    """While the page cache is emptied under them again and again: a gift must never wait for a read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARDFS_NO_PREFILL", "1" if off else "0")
        with mounted(store) as mnt, concurrent.futures.ThreadPoolExecutor(8) as pool:
            for _ in range(4):
                readers = [pool.submit(read_all, mnt, seed) for seed in range(8)]
                drop_caches()
                assert [reader.result(timeout=40) for reader in readers] == [2 * len(KEYS) * SAMPLES] * 8


def test_a_reader_that_is_killed_between_open_and_read_leaves_no_trace(store: Path, mounted: Mounted) -> None:
    code = "import os, sys, time; f = os.open(sys.argv[1], os.O_RDONLY); print('open', flush=True); time.sleep(60)"
    with mounted(store) as mnt:
        path = mnt / "k2" / "000004.data.bin"
        for _ in range(3):
            process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            process.kill()
            process.wait(timeout=20)
            process.stdout.close()
            assert path.read_bytes() == content("k2", 4)
