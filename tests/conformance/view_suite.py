"""What every view must be, whatever it shows: exact sizes, the samples' own files, one name for each entry, the same
order each time. Subclasses provide `serve`."""

from __future__ import annotations

import errno
import gzip
import io
import os
import random
import stat
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from shardfs.opening import open_store
from tests.conformance.superduper_stores import url_of
from tests.conformance.tree_suite import DATA, MLTRAQ, SQUIRREL, STREAMING, array, case_paths, write_msgpack
from tests.conformance.trees import Tree, fails, wait_for
from tests.conformance.webdataset_suite import written

VIEWS = ("by:label", "by:split,label", "flat", "tree", "hf", "yolo", "wds", "raw")
SUPERDUPER = DATA / "superduper" / "0.10.0"
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(50))


def picture(number: int) -> bytes:
    return JPEG + bytes([number]) * (number * 7 % 50)


def write_mixed(store: Path) -> None:
    """Keys with all that views have to do with: several fields, lists of files, values that are no good names."""
    labels = ["cat", "dog", "", ".hidden", "a/b", "__missing__", 3, True, None, 0.5, ["x", 1], "x" * 300]
    write_msgpack(
        store / "train/shard.00.gz",
        [
            {"image": picture(at), "label": label, "split": "train", "text": "ä\n" * at}
            for at, label in enumerate(labels)
        ],
    )
    boxes = [[[0, 0.5, 0.5, 1.0, 1.0], [1.0, 0.25, 0.25, 0.5, 0.5]], "0 0.1 0.2 0.3 0.4\n", "a caption", 7, []]
    write_msgpack(
        store / "train-shard-00.gz",  # the same name as the first one's where all keys are in one directory
        [
            {"image": picture(at), "mask": array(np.zeros((2, 3, 4), np.uint8)), "label": box}
            for at, box in enumerate(boxes)
        ],
    )
    write_msgpack(
        store / "named.gz",
        [{"__key__": name, "frames": [picture(1), picture(2)], "file_name": name} for name in ("a-b", "c.d", "~e")],
    )
    write_msgpack(store / "light.gz", [{"label": "cat"}, {"label": "dog", "split": "val"}, {}])
    write_msgpack(store / "empty.gz", [])


def walk(tree: Tree, path: str) -> Iterator[tuple[str, Any]]:
    """Everything below a path, each with its stat; directories before what is in them."""
    for name in tree.names(path):
        below = f"{path}/{name}"
        found = tree.stat(below)
        yield below, found
        if found.is_dir:
            yield from walk(tree, below)


def check_view(tree: Tree, view: str, plain: dict[int, str]) -> dict[str, bytes]:
    """Look at everything in a view; its files. `plain` has the paths of the plain tree's by their inode numbers."""
    top = f".shardfs/views/{view}"
    entries = list(walk(tree, top))
    assert [path for path, _ in entries] == [path for path, _ in walk(tree, top)], "the order is another"
    assert len({path for path, _ in entries}) == len(entries), "a name stands twice"
    folders = [found.ino for _, found in entries if found.is_dir]
    assert len(set(folders)) == len(folders)
    assert not set(folders) & set(plain)
    files = {}
    for path, found in entries:
        assert (found.nlink, stat.S_IMODE(found.mode)) == (1, 0o555 if found.is_dir else 0o444)
        assert len(os.fsencode(path.rpartition("/")[2])) <= 255
        if not found.is_dir:
            data = files[path.removeprefix(f"{top}/")] = tree.read(path)
            assert len(data) == found.size, path
            if found.ino in plain:
                assert data == tree.read(plain[found.ino]), path
                assert found.mtime_ns == tree.stat(plain[found.ino]).mtime_ns
            else:
                assert view in ("hf", "yolo", "wds", "raw"), path
    return files


def plain_files(tree: Tree) -> dict[int, str]:
    found: dict[int, str] = {}
    for name in tree.names(""):
        try:
            for path, one in walk(tree, name):
                if not one.is_dir:
                    found.setdefault(one.ino, path)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
    return found


class ViewSuite:
    """Tests of all views; each opens its own tree."""

    def serve(self, store: Path | str, **options: Any) -> AbstractContextManager[Tree]:
        """A tree over a store. Options: driver, budget (bytes), view and heavy."""
        raise NotImplementedError

    @pytest.mark.parametrize(
        ("system", "case"),
        [
            *(("squirrel", case) for case in SQUIRREL),
            *(("streaming", case) for case in STREAMING),
            *(("mltraq", case) for case in MLTRAQ),
        ],
    )
    def test_every_view_of_a_fixture_shows_the_samples_own_files(self, system: str, case: str) -> None:
        with self.serve(case_paths(system, case)[1]) as tree:
            plain = plain_files(tree)
            for view in VIEWS:
                if view == "wds" and case == "msgpack_damaged":
                    continue  # its tars are EIO, as below
                files = check_view(tree, view, plain) if case != "msgpack_damaged" or view in ("flat", "raw") else {}
                if view == "flat":
                    assert len(files) == sum(len(tree.names(key)) for key in _keys(tree)) or system == "mltraq"

    def test_every_view_of_rows_with_directories_in_them(self) -> None:
        with self.serve(url_of(SUPERDUPER)) as tree:
            plain = plain_files(tree)
            for view in ("flat", "tree", "hf", "yolo", "wds", "by:id"):
                files = check_view(tree, view, plain)
                if view in ("flat", "tree"):
                    assert sorted(files.values()) == sorted(tree.read(path) for path in _paths(tree))

    def test_every_view_of_stored_tars(self, tmp_path: Path) -> None:
        samples = [
            {"__key__": f"s-{at}.x/y", "jpg": picture(at), "cls": at % 2, "json": {"n": at}, "txt": "0 1 1 1 1"}
            for at in range(6)
        ]
        written(tmp_path / "t.tar", samples)
        with self.serve(tmp_path) as tree:
            plain = plain_files(tree)
            for view in VIEWS:
                check_view(tree, view, plain)
            by = tree.names(".shardfs/views/by:cls")
            assert by == ["0", "1"]
            assert tree.names(".shardfs/views/by:n")[:2] == ["0", "1"]
            (name, *_) = tree.names(".shardfs/views/by:cls/1")
            assert tree.read(f".shardfs/views/by:cls/1/{name}") == picture(1)
            labels = tree.names(".shardfs/views/yolo/labels")
            assert tree.read(f".shardfs/views/yolo/labels/{labels[0]}") == b"0 1 1 1 1"
            assert tree.stat(f".shardfs/views/yolo/labels/{labels[0]}").ino in plain
            assert tree.names(".shardfs/views/raw") == ["t.tar"]
            assert tree.read(".shardfs/views/raw/t.tar") == (tmp_path / "t.tar").read_bytes()

    @pytest.mark.parametrize("view", VIEWS)
    def test_every_view_of_whatever_samples(self, view: str, tmp_path: Path) -> None:
        write_mixed(tmp_path)
        with self.serve(tmp_path, budget=1) as tree:
            files = check_view(tree, view, plain_files(tree))
            for path, data in files.items():
                for _ in range(3):
                    offset, size = random.randrange(len(data) + 10), random.choice((1, 100, 4096))
                    assert tree.read(f".shardfs/views/{view}/{path}", offset, size) == data[offset : offset + size]
            for name in ("x", "a-000000.jpg", ".", "train-shard-00-000099.jpg", "%", "named-zz.frames.0.jpg"):
                for below in ("", *{path.rpartition("/")[0] for path in files}):
                    if name not in (".",) and below:
                        with fails(errno.ENOENT):
                            tree.stat(f".shardfs/views/{view}/{below}/{name}")

    def test_values_are_directories(self, tmp_path: Path) -> None:
        write_mixed(tmp_path)
        with self.serve(tmp_path) as tree:
            top = ".shardfs/views/by:label"
            assert set(tree.names(top)) >= {"cat", "dog", "%", "%2Ehidden", "a%2Fb", "3", "true", "0.5", "7", "[]"}
            assert tree.names(f"{top}/__missing__~2") == ["train-shard-00~2-000005.jpg"]
            assert tree.names(f"{top}/cat") == ["light-000000.json", "train-shard-00~2-000000.jpg"]
            missing = tree.names(f"{top}/__missing__")
            assert missing == [
                *("light-000002.json", "named-a-b.jpg", "named-c%2Ed.jpg", "named-%7Ee.jpg"),
                "train-shard-00~2-000008.jpg",
            ]
            nested = ".shardfs/views/by:split,label"
            assert tree.names(nested) == ["__missing__", "train", "val"]
            assert tree.names(f"{nested}/val/dog") == ["light-000001.json"]
            assert tree.read(f"{nested}/train/dog/train-shard-00~2-000001.jpg") == picture(1)

    def test_the_heavy_field_is_chosen(self, tmp_path: Path) -> None:
        write_mixed(tmp_path)
        with self.serve(tmp_path, view="by:label", heavy="mask") as tree:
            assert tree.names("7") == ["train-shard-00-000003.png"]
            assert "cat" not in tree.names("")
            lines = tree.read(".shardfs/views/hf/train-shard-00/metadata.jsonl").splitlines()
            assert lines[3] == b'{"file_name": "000003.mask.png", "label": 7}'
        with self.serve(tmp_path, view="flat", heavy="frames") as tree:
            assert "light-000000.json" in tree.names("")
            shown = tree.names(".shardfs/views/by:file_name/a-b")
            assert shown == ["named-a-b.0.jpg", "named-a-b.1.jpg"]

    def test_metadata_is_what_the_folder_loader_wants(self, tmp_path: Path) -> None:
        write_mixed(tmp_path)
        with self.serve(tmp_path) as tree:
            hf = ".shardfs/views/hf"
            (first, *_) = tree.read(f"{hf}/train/shard.00/metadata.jsonl").decode().splitlines()
            assert first == '{"file_name": "000000.image.jpg", "label": "cat", "split": "train", "text": ""}'
            (first, *_) = tree.read(f"{hf}/train-shard-00/metadata.jsonl").decode().splitlines()
            assert first.startswith('{"image_file_name": "000000.image.jpg", "mask_file_name": "000000.mask.png", "la')
            (first, *_) = tree.read(f"{hf}/named/metadata.jsonl").decode().splitlines()
            assert first.startswith('{"file_names": ["a-b.frames.0.jpg", "a-b.frames.1.jpg"], "__key__": "a-b", "fra')
            assert '"file_name": "a-b"' in first
            assert tree.names(f"{hf}/light") == ["metadata.jsonl"]
            assert tree.read(f"{hf}/light/metadata.jsonl").splitlines()[0] == b'{"label": "cat"}'

    def test_labels_are_those_with_boxes(self, tmp_path: Path) -> None:
        write_mixed(tmp_path)
        with self.serve(tmp_path) as tree:
            labels = ".shardfs/views/yolo/labels"
            assert tree.names(labels) == [
                *(f"train-shard-00-00000{at}.txt" for at in (0, 1, 4)),
                "train-shard-00~2-000002.txt",  # of no text: a picture with nothing on it
            ]
            assert tree.read(f"{labels}/train-shard-00-000000.txt") == b"0 0.5 0.5 1.0 1.0\n1 0.25 0.25 0.5 0.5\n"
            assert tree.read(f"{labels}/train-shard-00-000001.txt") == b"0 0.1 0.2 0.3 0.4\n"
            assert tree.read(f"{labels}/train-shard-00-000004.txt") == b""
            assert "train-shard-00-000000.jpg" in tree.names(".shardfs/views/yolo/images")

    def test_a_label_too_long_for_the_index_is_whole(self, tmp_path: Path) -> None:
        text = "12 0.25 0.25 0.5 0.5\n" * 1000
        write_msgpack(tmp_path / "k.gz", [{"image": JPEG, "labels": text}, {"image": JPEG, "labels": "1 2 3 4 5"}])
        with self.serve(tmp_path) as tree:
            assert tree.stat(".shardfs/views/yolo/labels/k-000000.txt").size == len(text)
            assert tree.read(".shardfs/views/yolo/labels/k-000000.txt") == text.encode()
            assert text.replace("\n", "\\n").encode() in tree.read(".shardfs/views/hf/k/metadata.jsonl")

    def test_tars_hold_the_files_of_their_keys(self, tmp_path: Path) -> None:
        long = "n" * 200
        write_msgpack(tmp_path / "train/a.gz", [{"image": picture(at), "i": at, long: JPEG} for at in range(30)])
        with self.serve(tmp_path) as tree:
            tar = ".shardfs/views/wds/train/a.tar"
            assert tree.names(".shardfs/views/wds/train") == ["a.tar"]
            data = tree.read(tar)
            with tarfile.open(fileobj=io.BytesIO(data)) as opened:
                assert opened.getnames() == tree.names("train/a")
                for member in opened:
                    content = opened.extractfile(member)
                    assert content is not None
                    assert content.read() == tree.read(f"train/a/{member.name}")
            for offset in range(0, len(data), 997):
                assert tree.read(tar, offset, 1500) == data[offset : offset + 1500]

    def test_a_damaged_shard_is_left_out_of_what_shows_all(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "good.gz", [{"image": JPEG, "label": "cat"}])
        (tmp_path / "bad.gz").write_bytes(gzip.compress(msgpack.packb({"x": os.urandom(5000)}))[:-20])
        with self.serve(tmp_path) as tree:
            views = ".shardfs/views"
            for _ in range(2):
                assert tree.names(f"{views}/by:label/cat") == ["good-000000.jpg"]
                assert tree.names(f"{views}/flat") == ["good-000000.image.jpg", "good-000000.json"]
                assert sorted(tree.names(f"{views}/wds")) == ["bad.tar", "good.tar"]
                with fails(errno.EIO):
                    tree.stat(f"{views}/wds/bad.tar")
                with fails(errno.EIO):
                    tree.names(f"{views}/hf/bad")
                assert tree.names(f"{views}/tree/good/000000") == ["image.jpg", "000000.json"]

    def test_changes_of_the_store_appear(self, tmp_path: Path) -> None:
        store = open_store(tmp_path, driver="squirrel")
        store.set([{"image": JPEG, "label": "cat"}], "a")
        store.set([{"image": JPEG, "label": "dog"}], "b")
        with self.serve(tmp_path) as tree:
            views = ".shardfs/views"
            assert tree.names(f"{views}/by:label") == ["cat", "dog"]
            cat = tree.stat(f"{views}/by:label/cat")
            before = tree.stat(f"{views}/by:label/cat/a-000000.jpg")
            tar = tree.open(f"{views}/wds/a.tar")
            assert tar.read_at(0, 8) == b"000000.i"
            for view in VIEWS:
                assert tree.names(f"{views}/{view}")
            store.set([{"image": JPEG + b"new", "label": "cat"}, {"image": JPEG, "label": "eel"}], "a")
            store.delete("b")
            wait_for(lambda: tree.names(f"{views}/by:label") == ["cat", "eel"])
            wait_for(lambda: tree.names(f"{views}/by:label/cat") == ["a-000000.jpg"])
            after = tree.stat(f"{views}/by:label/cat/a-000000.jpg")
            assert (after.size, tree.stat(f"{views}/by:label/cat").ino) == (len(JPEG) + 3, cat.ino)
            assert after.ino != before.ino
            assert tree.read(f"{views}/by:label/cat/a-000000.jpg") == JPEG + b"new"
            assert tree.names(f"{views}/wds") == ["a.tar"]
            with fails(errno.ESTALE):
                tar.read_at(512, 10)
            tar.close()
            assert tree.names(f"{views}/tree/a") == ["000000", "000001"]
            with fails(errno.ENOENT):
                tree.stat(f"{views}/by:label/dog")

    def test_a_shard_overwritten_in_place_is_noticed(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "k.gz", [{"image": JPEG, "label": 1}])
        with self.serve(tmp_path) as tree:
            path = ".shardfs/views/by:label/1/k-000000.jpg"
            assert tree.read(path) == JPEG
            write_msgpack(tmp_path / "k.gz", [{"image": JPEG + b"more", "label": 1}])  # the same inode

            def new() -> bool:
                try:
                    return tree.read(path) == JPEG + b"more"
                except OSError as error:
                    if error.errno != errno.ESTALE:
                        raise
                    return False

            wait_for(new)
            assert tree.stat(path).size == len(JPEG) + 4

    def test_there_are_no_other_views(self, tmp_path: Path) -> None:
        write_msgpack(tmp_path / "k.gz", [{"image": JPEG, "label": 1}])
        with self.serve(tmp_path) as tree:
            assert sorted(tree.names(".shardfs/views")) == ["flat", "hf", "raw", "tree", "wds", "yolo"]
            assert "views" not in tree.names(".shardfs")
            for name in ("x", "by", "by:", "by:a,a", "flat:x", "by:a:b", "by:%zz", "by:" + ",".join("abcdefghi")):
                with fails(errno.ENOENT):
                    tree.stat(f".shardfs/views/{name}")
            with fails(errno.ENOTDIR):
                tree.names(".shardfs/views/wds/k.tar")

    def test_the_root_shows_a_view_and_its_directories_are_its_own(self, tmp_path: Path) -> None:
        write_mixed(tmp_path)
        for view in VIEWS:
            with self.serve(tmp_path, view=view) as tree:
                top = tree.names("")
                assert top == tree.names(f".shardfs/views/{view}")
                for name in top:
                    one, other = tree.stat(name), tree.stat(f".shardfs/views/{view}/{name}")
                    generated = view in ("wds",)
                    assert (one.ino == other.ino) == (not one.is_dir and not generated), name
                    assert one.size == other.size
                with fails(errno.ENOENT):
                    tree.stat("nothing")


def _paths(tree: Tree) -> list[str]:
    """The files of the plain tree, all names of each."""
    return [path for name in tree.names("") for path, found in walk(tree, name) if not found.is_dir]


def _keys(tree: Tree, path: str = "") -> Iterator[str]:
    """The directories that hold files."""
    for name in tree.names(path):
        below = f"{path}/{name}" if path else name
        try:
            inside = tree.names(below)
        except OSError:
            continue
        if any(not tree.stat(f"{below}/{one}").is_dir for one in inside[:1]):
            yield below
        else:
            yield from _keys(tree, below)
