"""What the tree must be, said once for every way of serving it. Subclasses provide `serve`."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import random
import stat
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import PIL.Image
import pytest

from shardfs import layout
from shardfs.opening import open_store
from tests.conformance import manifests
from tests.conformance.trees import Tree, fails, wait_for

DATA = Path(__file__).parent.parent / "data"
GOLDEN = Path(__file__).parent.parent / "golden"
SQUIRREL = sorted(path.parent.name for path in (DATA / "squirrel").glob("*/manifest.json"))
MLTRAQ = sorted(path.parent.name for path in (DATA / "mltraq").glob("*/manifest.json"))
STREAMING = sorted(path.parent.name for path in (DATA / "streaming").glob("mds_*/manifest.json"))


def case_paths(system: str, case: str) -> tuple[Path, Path | str]:
    folder = DATA / system / case
    if system == "mltraq":
        return folder, f"mltraq+sqlite:///{folder / 'exp.db'}"
    return folder, folder / ("store" if system == "squirrel" else "data")


def golden_lines(tree: Tree, path: str = "") -> list[str]:
    """One line a file: size, the beginning of its SHA-256, path; `EIO` for a key that cannot be listed."""
    lines = []
    for name in sorted(tree.names(path)):
        below = f"{path}/{name}" if path else name
        found = tree.stat(below)
        if not found.is_dir:
            lines.append(f"{found.size:>8} {hashlib.sha256(tree.read(below)).hexdigest()[:16]} {below}")
            continue
        try:
            lines += golden_lines(tree, below)
        except OSError as error:
            lines.append(f"{errno.errorcode[error.errno or 0]:>8} {'':16} {below}")
    return lines


def write_msgpack(path: Path, samples: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(b"".join(msgpack.packb(sample) for sample in samples), 1))


def array(value: np.ndarray[Any, Any]) -> dict[bytes, Any]:
    """An array as msgpack-numpy writes it."""
    return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}


def or_stale(tree: Tree, path: str) -> bytes | None:
    """A file's content; None while the change of its shard is just being noticed."""
    try:
        return tree.read(path)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None


class TreeSuite:
    """Tests of what is shown; each opens its own tree."""

    def serve(self, store: Path | str, **options: Any) -> AbstractContextManager[Tree]:
        """A tree over a store. Options: driver, budget (bytes), arrays."""
        raise NotImplementedError

    # --- the fixtures -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("case", SQUIRREL)
    def test_squirrel_fixture_is_right_file_by_file(self, case: str) -> None:
        folder, store = case_paths("squirrel", case)
        manifest = manifests.load_manifest(folder)
        with self.serve(store) as tree:
            assert sorted(tree.names("")) == sorted(manifest["shards"])
            for key, shard in manifest["shards"].items():
                manifests.check_squirrel_key(tree, key, shard)

    @pytest.mark.parametrize("case", STREAMING)
    def test_streaming_fixture_is_right_file_by_file(self, case: str) -> None:
        folder, data = case_paths("streaming", case)
        manifest = manifests.load_manifest(folder)
        with self.serve(data) as tree:
            for split, part in manifest["splits"].items():
                manifests.check_streaming_split(tree, split, part, manifest["columns"])

    @pytest.mark.parametrize("case", MLTRAQ)
    def test_mltraq_fixture_is_right_file_by_file(self, case: str) -> None:
        folder = DATA / "mltraq" / case
        manifest = manifests.load_manifest(folder)
        with self.serve(f"mltraq+sqlite:///{folder / manifest['db']}") as tree:
            manifests.check_mltraq(tree, folder, manifest)

    @pytest.mark.parametrize("case", MLTRAQ)
    def test_mltraq_datastore_without_its_database_is_right_file_by_file(self, case: str) -> None:
        folder = DATA / "mltraq" / case
        manifest = manifests.load_manifest(folder)
        directories = {name.rpartition("/")[0] for name in manifest["datastore_files"]}
        with self.serve(folder / manifest["datastore"], driver="mltraq") as tree:
            assert set(tree.names("")) == {directory.partition("/")[0] for directory in directories}
            for directory in directories:
                manifests.check_mltraq_directory(tree, directory, folder, manifest)

    @pytest.mark.parametrize(
        ("system", "case"),
        [("squirrel", case) for case in SQUIRREL]
        + [("streaming", case) for case in STREAMING]
        + [("mltraq", case) for case in MLTRAQ],
    )
    def test_fixture_has_the_golden_listing(self, system: str, case: str) -> None:
        golden = GOLDEN / f"{system}-{case}.txt"
        with self.serve(case_paths(system, case)[1]) as tree:
            lines = golden_lines(tree)
        if os.environ.get("SHARDFS_UPDATE_GOLDEN") == "1":
            golden.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
        assert lines == golden.read_text(encoding="utf-8").splitlines()

    # --- names and attributes -----------------------------------------------------------------------------------

    def test_root_lists_keys_and_nothing_else(self, tmp_path: Path) -> None:
        for key in ("b", "a", "train/0", "train/1", "deep/er/x"):
            write_msgpack(tmp_path / f"{key}.gz", [{"i": 1}])
        (tmp_path / "README.md").write_text("not a shard")
        with self.serve(tmp_path) as tree:
            assert sorted(tree.names("")) == ["a", "b", "deep", "train"]
            assert sorted(tree.names("train")) == ["0", "1"]
            assert tree.names("deep") == ["er"]
            assert tree.names("deep/er/x") == ["000000.json"]
            assert tree.read("deep/er/x/000000.json") == b'{"i": 1}\n'

    def test_key_that_is_also_the_way_to_another_key(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "a.gz", [{"i": 1}])
        write_msgpack(tmp_path / "a/b.gz", [{"i": 2}])
        with self.serve(tmp_path) as tree:
            assert sorted(tree.names("")) == ["a", "a~2"]
            assert tree.read("a~2/000000.json") == b'{"i": 1}\n'
            assert tree.read("a/b/000000.json") == b'{"i": 2}\n'

    def test_modes_times_and_links(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "k.gz", [{"i": 1, "x": b"abc"}])
        os.utime(tmp_path / "k.gz", ns=(1, 1_600_000_000_123_456_789))
        with self.serve(tmp_path) as tree:
            for path, mode in (("", 0o555), ("k", 0o555), ("k/000000.json", 0o444), ("k/000000.x.bin", 0o444)):
                found = tree.stat(path)
                assert stat.S_IMODE(found.mode) == mode
                assert found.mtime_ns == 1_600_000_000_123_456_789
                assert found.nlink == 1

    def test_inode_numbers_are_unique_and_stable(self, tmp_path: Path) -> None:
        for number in range(3):
            write_msgpack(tmp_path / f"k{number}.gz", [{"i": i, "x": os.urandom(70_000)} for i in range(20)])
        with self.serve(tmp_path, budget=100_000) as tree:  # each key evicts the others
            seen = {}
            for _ in range(2):
                for key in tree.names(""):
                    for path in [key, *(f"{key}/{name}" for name in tree.names(key))]:
                        ino = tree.stat(path).ino
                        assert seen.setdefault(path, ino) == ino
                        tree.read(path, 0, 10) if "/" in path else None
            assert len(set(seen.values())) == len(seen) == 3 + 3 * 40

    def test_missing_names(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "k.gz", [{"i": 1}])
        with self.serve(tmp_path) as tree:
            for path in ("x", "k/000001.json", "k/0.json", "k/000000.jso", "k/000000", "k/.x", "x/y"):
                with fails(errno.ENOENT):
                    tree.stat(path)

    def test_samples_with_keys_of_their_own_are_named_by_them(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "k.gz", [{"__key__": name, "x": b"1"} for name in ("n01.a", "b/c", "~x")])
        write_msgpack(tmp_path / "twice.gz", [{"__key__": "a"}, {"__key__": "a"}])
        with self.serve(tmp_path) as tree:
            assert tree.names("k") == [
                *("n01%2Ea.x.bin", "n01%2Ea.json", "b%2Fc.x.bin", "b%2Fc.json", "%7Ex.x.bin", "%7Ex.json")
            ]
            assert tree.read("k/b%2Fc.json") == b'{"__key__": "b/c"}\n'
            assert tree.names("twice") == ["000000.json", "000001.json"]

    def test_hostile_field_names_are_escaped(self, tmp_path: Path) -> None:
        fields = ["a/b", "", ".", "..", ".hidden", "$v", "~", "%41", "nul\0", "new\nline", "x" * 300, "A", "a", "é"]
        write_msgpack(tmp_path / "k.gz", [{name: name.encode() for name in fields}])
        with self.serve(tmp_path) as tree:
            files = manifests.key_files(tree, "k")
            assert {name.partition(".")[2] for name in files} >= {
                *("a%2Fb.bin", "%.bin", "%2E.bin", "%2E..bin", "%2Ehidden.bin", "%24v.bin", "%7E.bin"),
                *("%2541.bin", "nul%00.bin", "new%0Aline.bin", "A.bin", "a~2.bin", "é.bin", "json"),
            }
            assert all(len(os.fsencode(name)) <= 255 for name in files)
            explained = json.loads(files["000000.json"])["$fields"]
            assert explained["a~2.bin"] == "a"
            assert "x" * 300 in explained.values()

    # --- content ------------------------------------------------------------------------------------------------

    def test_pictures_are_lossless_png_unless_told_otherwise(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        pixels = {f"c{c}": rng.integers(0, 256, (37, 53, c), dtype=np.uint8) for c in (1, 3, 4)}
        pixels["big"] = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
        write_msgpack(tmp_path / "k.gz", [{name: array(value) for name, value in pixels.items()}])
        with self.serve(tmp_path) as tree:
            files = manifests.key_files(tree, "k")
        assert sorted(files) == ["000000.big.png", "000000.c1.npy", "000000.c3.png", "000000.c4.png"]
        for name in ("c3", "c4", "big"):
            with PIL.Image.open(io.BytesIO(files[f"000000.{name}.png"])) as image:
                assert np.array_equal(np.asarray(image), pixels[name])
        with self.serve(tmp_path, arrays="npy") as tree:
            files = manifests.key_files(tree, "k")
        assert sorted(files) == ["000000.big.npy", "000000.c1.npy", "000000.c3.npy", "000000.c4.npy"]
        for name, value in pixels.items():
            assert np.array_equal(np.load(io.BytesIO(files[f"000000.{name}.npy"])), value)

    def test_text_fields_as_files_on_request(self, tmp_path: Path) -> None:
        sample = {"caption": "a wörd 😀\n", "n": 1, "inner": {"t": "stays"}, "empty": ""}
        write_msgpack(tmp_path / "k.gz", [sample, "lone", {"only": "text"}])
        with self.serve(tmp_path, arrays="png+text") as tree:
            files = manifests.key_files(tree, "k")
        assert files == {
            "000000.caption.txt": "a wörd 😀\n".encode(),
            "000000.empty.txt": b"",
            "000000.json": b'{"n": 1, "inner": {"t": "stays"}}\n',
            "000001.$value.txt": b"lone",
            "000002.only.txt": b"text",
        }
        read = [layout.read_back(by_stem) for by_stem in manifests.by_sample(files).values()]
        assert read == [sample, "lone", {"only": "text"}]

    def test_any_part_of_a_file_is_the_same_bytes(self, tmp_path: Path) -> None:
        rng = random.Random(1)
        picture = np.arange(2 * 300 * 300 * 3, dtype=np.uint32).astype(np.uint8).reshape(600, 300, 3)
        sample = {
            "raw": rng.randbytes(300_001),
            "f": array(np.arange(50_000.0)),
            "p": array(picture),
            "t": "x" * 99_999,
        }
        write_msgpack(tmp_path / "k.gz", [sample])
        with self.serve(tmp_path) as tree:
            for name, data in manifests.key_files(tree, "k").items():
                for _ in range(20):
                    offset, size = rng.randrange(len(data) + 10), rng.choice((1, 100, 4096, 131_072, 500_000))
                    assert tree.read(f"k/{name}", offset, size) == data[offset : offset + size]

    def test_samples_that_are_no_dicts(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "k.gz", [5, "text", [1, b"x"], None, b"bytes", array(np.arange(3)), {}])
        with self.serve(tmp_path) as tree:
            files = manifests.key_files(tree, "k")
        assert files["000000.json"] == b'{"$value": 5}\n'
        assert files["000001.json"] == b'{"$value": "text"}\n'
        assert files["000002.json"] == b'{"$value": [1, {"$file": "$value.1.bin"}]}\n'
        assert files["000002.$value.1.bin"] == b"x"
        assert files["000003.json"] == b'{"$value": null}\n'
        assert files["000004.$value.bin"] == b"bytes"
        assert np.array_equal(np.load(io.BytesIO(files["000005.$value.npy"])), np.arange(3))
        assert files["000006.json"] == b"{}\n"
        assert len(files) == 8

    def test_store_with_zstd_and_jsonl_shards(self, tmp_path: Path) -> None:
        open_store(tmp_path, driver="squirrel", compression="zst").set([{"i": 1}], "z")
        open_store(tmp_path, driver="squirrel-jsonl").set([{"i": 2}, {"a": np.arange(3)}], "j")
        open_store(tmp_path, driver="squirrel").set([], "empty")
        with self.serve(tmp_path) as tree:
            assert sorted(tree.names("")) == ["empty", "j", "z"]
            assert tree.names("empty") == []
            assert tree.read("z/000000.json") == b'{"i": 1}\n'
            assert tree.read("j/000000.json") == b'{"i": 2}\n'
            assert np.load(io.BytesIO(tree.read("j/000001.a.npy"))).tolist() == [0, 1, 2]

    # --- trouble ------------------------------------------------------------------------------------------------

    def test_damaged_shard_is_eio_and_the_rest_works(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "good.gz", [{"i": 1}])
        whole = gzip.compress(msgpack.packb({"x": os.urandom(5000)}))
        (tmp_path / "bad.gz").write_bytes(whole[:-20])
        with self.serve(tmp_path) as tree:
            assert sorted(tree.names("")) == ["bad", "good"]
            assert tree.stat("bad").is_dir
            for _ in range(2):
                for look in (lambda: tree.names("bad"), lambda: tree.stat("bad/000000.x.bin")):
                    with fails(errno.EIO):
                        look()
            assert tree.read("good/000000.json") == b'{"i": 1}\n'

    def test_shard_replaced_before_it_was_touched_shows_the_new_one(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "k.gz", [{"i": 1}])
        with self.serve(tmp_path) as tree:
            assert tree.names("") == ["k"]
            open_store(tmp_path, driver="squirrel").set([{"i": 22}, {"i": 3}], "k")
            assert tree.names("k") == ["000000.json", "000001.json"]
            assert tree.read("k/000000.json") == b'{"i": 22}\n'

    def test_shard_replaced_while_open_is_estale_and_never_other_bytes(self, tmp_path: Path) -> None:
        big, new = os.urandom(400_000), os.urandom(400_000)
        write_msgpack(tmp_path / "k.gz", [{"x": big}])
        write_msgpack(tmp_path / "other.gz", [{"x": os.urandom(200_000)}])
        with self.serve(tmp_path, budget=1) as tree:
            opened = tree.open("k/000000.x.bin")
            assert opened.read_at(0, 10) == big[:10]
            open_store(tmp_path, driver="squirrel").set([{"x": new}], "k")
            tree.read("other/000000.x.bin")  # takes the place of k
            with fails(errno.ESTALE):
                opened.read_at(390_000, 10)
            wait_for(lambda: or_stale(tree, "k/000000.x.bin") == new)
            with fails(errno.ESTALE):
                opened.read_at(390_000, 10)
            opened.close()

    def test_changes_of_the_store_appear(self, tmp_path: Path) -> None:
        store = open_store(tmp_path, driver="squirrel")
        store.set([{"i": 1}], "a")
        store.set([{"i": 1}], "old")
        with self.serve(tmp_path) as tree:
            assert sorted(tree.names("")) == ["a", "old"]
            assert tree.read("a/000000.json") == b'{"i": 1}\n'
            with fails(errno.ENOENT):
                tree.stat("deep/new/000000.json")
            before = tree.stat("a/000000.json")
            store.set([{"i": 22}, {"i": 3}], "a")
            store.set([{"i": 4}], "deep/new")
            store.delete("old")
            wait_for(lambda: sorted(tree.names("")) == ["a", "deep"])
            assert tree.names("deep") == ["new"]
            assert tree.read("deep/new/000000.json") == b'{"i": 4}\n'
            wait_for(lambda: or_stale(tree, "a/000000.json") == b'{"i": 22}\n')
            assert sorted(tree.names("a")) == ["000000.json", "000001.json"]
            assert tree.stat("a/000000.json").ino != before.ino
            with fails(errno.ENOENT):
                tree.names("old")

    def test_shard_overwritten_in_place_is_noticed(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "k.gz", [{"i": 1}])
        with self.serve(tmp_path) as tree:
            assert tree.read("k/000000.json") == b'{"i": 1}\n'
            write_msgpack(tmp_path / "k.gz", [{"i": 333}])  # the same inode
            wait_for(lambda: or_stale(tree, "k/000000.json") == b'{"i": 333}\n')
            assert tree.stat("k/000000.json").size == len(b'{"i": 333}\n')

    def test_store_is_never_written_to(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "k.gz", [{"i": 1, "x": b"1"}])
        before = [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.gz")]
        folder = tmp_path.stat().st_mtime_ns
        with self.serve(tmp_path) as tree:
            manifests.key_files(tree, "k")
        assert [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*")] == before
        assert tmp_path.stat().st_mtime_ns == folder
