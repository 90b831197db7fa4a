"""What the tree of a WebDataset store must be, said once for every way of serving it. Subclasses provide `serve`."""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import stat
import tarfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import webdataset
import zstandard
from webdataset import tariterators

from tests.conformance.manifests import key_files
from tests.conformance.trees import Tree, fails, wait_for


def written(path: Path, samples: list[dict[str, Any]]) -> Path:
    """A tar by the library's own writer, compressed as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    with webdataset.TarWriter(file, mtime=1_600_000_000) as writer:
        for sample in samples:
            writer.write(sample)
    data = file.getvalue()
    if path.name.endswith("gz"):
        data = gzip.compress(data)
    elif path.name.endswith(".zst"):
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


def members(path: Path) -> dict[str, bytes]:
    """What tarfile makes of a tar."""
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar if info.isreg()}  # type: ignore[union-attr]


def library(path: Path) -> list[dict[str, Any]]:
    """The samples of a tar as the real library gives them, not decoded."""
    data = path.read_bytes()
    if path.name.endswith(".zst"):
        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    elif path.name.endswith("gz"):
        data = gzip.decompress(data)
    source = [{"url": str(path), "stream": io.BytesIO(data)}]
    found = tariterators.group_by_keys(tariterators.tar_file_expander(source))
    return [{name: value for name, value in one.items() if name != "__url__"} for one in found]


SAMPLES = [
    {"__key__": f"train/im{at:03d}", "jpg": b"\xff\xd8\xff" + os.urandom(at * 100), "cls": at, "json": {"label": at}}
    for at in range(30)
]


class WebDatasetSuite:
    """The behaviour of a read-only tree of tars."""

    def serve(self, store: Path, **options: Any) -> AbstractContextManager[Tree]:
        raise NotImplementedError

    @pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".tar.zst"])
    def test_what_the_library_wrote_are_the_files(self, tmp_path: Path, ending: str) -> None:
        plain = written(tmp_path / "plain.tar", SAMPLES)
        written(tmp_path / f"store/a/shard-000{ending}", SAMPLES)
        with self.serve(tmp_path / "store") as tree:
            assert tree.names("") == ["a"]
            assert tree.names("a") == ["shard-000"]
            files = key_files(tree, "a/shard-000")
        assert files == {name.replace("/", "%2F"): data for name, data in members(plain).items()}

    def test_any_part_of_a_member_is_the_same_bytes(self, tmp_path: Path) -> None:
        rng = random.Random(2)
        sizes = (0, 1, 511, 512, 513, 131_073, 1_000_000)
        content = {f"{at}.bin": rng.randbytes(size) for at, size in enumerate(sizes)}
        samples = [{"__key__": name[:-4], "bin": data} for name, data in content.items()]
        for name in ("raw.tar", "gz.tar.gz"):
            written(tmp_path / name, samples)
        with self.serve(tmp_path, budget=1) as tree:
            for key in ("raw", "gz"):
                for name, data in content.items():
                    assert tree.stat(f"{key}/{name}").size == len(data)
                    for _ in range(8):
                        offset, size = rng.randrange(len(data) + 10), rng.choice((1, 100, 4096, 131_072, 500_000))
                        assert tree.read(f"{key}/{name}", offset, size) == data[offset : offset + size]

    def test_modes_times_and_missing_names(self, tmp_path: Path) -> None:
        path = written(tmp_path / "k.tar", SAMPLES[:2])
        os.utime(path, ns=(1, 1_600_000_000_123_456_789))
        with self.serve(tmp_path) as tree:
            found = tree.stat("k/train%2Fim001.jpg")
            assert (stat.S_IMODE(found.mode), found.size) == (0o444, 103)
            assert found.mtime_ns == 1_600_000_000_123_456_789
            for name in ("train%2Fim001.png", "train%2Fim002.jpg", "train", "000000.jpg", "train%2Fim001"):
                with fails(errno.ENOENT):
                    tree.stat(f"k/{name}")

    def test_a_tar_that_is_cut_off_is_eio_and_the_others_live(self, tmp_path: Path) -> None:
        written(tmp_path / "good.tar", SAMPLES)
        for number, end in (("0", 20), ("1", 512 * 5 + 3), ("2", 512 * 12 + 100)):
            written(tmp_path / f"bad{number}.tar", SAMPLES)
            os.truncate(tmp_path / f"bad{number}.tar", end)
        with self.serve(tmp_path) as tree:
            assert sorted(tree.names("")) == ["bad0", "bad1", "bad2", "good"]
            for number in range(3):
                for look in (lambda n=number: tree.names(f"bad{n}"), lambda n=number: tree.stat(f"bad{n}/x.jpg")):
                    with fails(errno.EIO):
                        look()
            assert len(tree.names("good")) == 90

    def test_tars_named_by_braces_are_listed_in_that_order(self, tmp_path: Path) -> None:
        for at in range(5):
            written(tmp_path / f"s-{at}.tar", SAMPLES[at : at + 1])
        with self.serve(tmp_path / "s-{3..1}.tar") as tree:
            assert tree.names("") == ["s-3", "s-2", "s-1"]
            assert tree.read("s-2/train%2Fim002.cls") == b"2"
            with fails(errno.ENOENT):
                tree.stat("s-4")

    def test_a_tar_replaced_while_open_is_estale_and_then_the_new_one(self, tmp_path: Path) -> None:
        written(tmp_path / "k.tar", [{"__key__": "a", "bin": b"1" * 300_000}])
        with self.serve(tmp_path, budget=1) as tree:
            opened = tree.open("k/a.bin")
            assert opened.read_at(0, 3) == b"111"
            written(tmp_path / "new", [{"__key__": "a", "bin": b"2" * 300_000}])
            os.rename(tmp_path / "new", tmp_path / "k.tar")
            wait_for(lambda: _or_none(tree, "k/a.bin") == b"2" * 300_000)

            def is_stale() -> bool:
                """Until its bytes are dropped, a moment after it was replaced, they are the old ones."""
                try:
                    assert opened.read_at(200_000, 10) == b"1" * 10
                except OSError as error:
                    return error.errno == errno.ESTALE
                return False

            wait_for(is_stale)
            opened.close()

    def test_the_store_is_never_written_to(self, tmp_path: Path) -> None:
        for name in ("a.tar", "b.tar.gz"):
            written(tmp_path / name, SAMPLES)
        before = [(path.name, path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(tmp_path.iterdir())]
        with self.serve(tmp_path) as tree:
            for key in ("a", "b"):
                key_files(tree, key)
        after = [(path.name, path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(tmp_path.iterdir())]
        assert before == after


def _or_none(tree: Tree, path: str) -> bytes | None:
    """The content, or None while what was there before is being forgotten."""
    try:
        return tree.read(path)
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.ENOENT):
            raise
        return None
