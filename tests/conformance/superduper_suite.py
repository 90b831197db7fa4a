"""What the tree of a Superduper store must be, said once for every way of serving it. Subclasses provide `serve`."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import os
import random
import shutil
import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from shardfs.superduper import plain_pickle
from tests.conformance import manifests
from tests.conformance.superduper_stores import CASES, DATA, Made, Opens, table_of, url_of
from tests.conformance.tree_suite import GOLDEN, golden_lines, or_stale
from tests.conformance.trees import Tree, fails, wait_for


def walk(tree: Tree, path: str) -> dict[str, bytes]:
    """All files below a directory, by path; a directory without anything as its path with a `/`."""
    found: dict[str, bytes] = {}
    names = tree.names(path)
    assert len(set(names)) == len(names), names
    for name in names:
        below = f"{path}/{name}"
        if tree.stat(below).is_dir:
            inside = walk(tree, below)
            found |= {f"{name}/{inner}": data for inner, data in inside.items()} or {f"{name}/": b""}
        else:
            data = tree.read(below)
            assert tree.stat(below).size == len(data), below
            found[name] = data
    return found


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class SuperduperSuite:
    """Tests of what is shown; each opens its own tree."""

    def serve(self, store: Path | str, **options: Any) -> AbstractContextManager[Tree]:
        raise NotImplementedError

    # --- the fixtures -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("case", CASES)
    def test_fixture_is_right_file_by_file(self, case: str) -> None:
        manifest = manifests.load_manifest(DATA / case)
        decoded = {row["id"]["value"]: row for row in manifest["decoded_by_library"]}
        table = table_of(manifest)
        with self.serve(url_of(DATA / case)) as tree:
            assert tree.names("") == [table]
            files = walk(tree, table)
        assert {name.partition(".")[0] for name in files} == set(decoded)
        shown = 0
        for row, columns in decoded.items():
            light = json.loads(files[f"{row}.json"])
            mine = {name.partition(".")[2]: data for name, data in files.items() if name.startswith(f"{row}.")}
            for column, want in columns.items():
                shown += _check_column(column, want, light, mine, manifest, row)
        assert shown == sum(len(row) for row in decoded.values())

    @pytest.mark.parametrize("case", CASES)
    def test_every_reference_of_the_manifest_is_a_file_with_its_bytes(self, case: str) -> None:
        manifest = manifests.load_manifest(DATA / case)
        known = manifest["artifact_tree"]
        with self.serve(url_of(DATA / case)) as tree:
            for reference in manifest["references"]:
                table, row, *path = reference["path"]
                kind, identifier = reference["ref"][:7], reference["ref"].rpartition(":")[2]
                stem = ".".join((row, *path))
                if kind == "&:blob:":
                    (name,) = [name for name in tree.names(table) if name.rpartition(".")[0] == stem]
                    data = tree.read(f"{table}/{name}")
                    assert hashlib.sha1(data).hexdigest() == known[identifier]["sha1"]
                    assert len(data) == known[identifier]["bytes"]
                else:
                    for inner, data in walk(tree, f"{table}/{stem}").items():
                        assert hashlib.sha1(data).hexdigest() == known[f"{identifier}/{inner}"]["sha1"]

    @pytest.mark.parametrize("case", CASES)
    def test_fixture_has_the_golden_listing(self, case: str) -> None:
        golden = GOLDEN / f"superduper-{case}.txt"
        with self.serve(url_of(DATA / case)) as tree:
            lines = golden_lines(tree)
        if os.environ.get("SHARDFS_UPDATE_GOLDEN") == "1":
            golden.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogateescape")
        assert lines == golden.read_text(encoding="utf-8").splitlines()

    @pytest.mark.parametrize("case", CASES)
    def test_directory_of_artifacts_alone(self, case: str) -> None:
        folder = DATA / case / "artifacts"
        with self.serve(folder, driver="superduper") as tree:
            assert tree.names("") == ["artifacts"]
            files = walk(tree, "artifacts")
        expected = {}
        for path in folder.rglob("*"):
            if path.is_file():
                identifier, _, inner = str(path.relative_to(folder)).partition("/")
                expected[f"{identifier}.file/{inner}" if inner else f"{identifier}.blob.bin"] = path.read_bytes()
        assert files == expected

    # --- directories inside a key -------------------------------------------------------------------------------

    def test_directories_inside_a_key(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "n": "int", "d": "file"})
        inner = {"box/b/x": b"x", "box/b/deep/er/y": b"yy", "box/a": b"a", "box/empty/": b"", "box/.hidden": b"h"}
        made.row(id="one", n=1, d=made.file("f1", inner))
        made.row(id="two", n=2, d=made.file("f2", {"w.v1.bin": b"weights"}))
        made.row(id="three", n=3)
        with self.serve(made.url) as tree:
            listed = tree.names("t")
            assert sorted(listed) == ["one.d", "one.json", "three.json", "two.d", "two.json"]
            assert sorted(tree.names("t/one.d")) == ["box"]
            assert sorted(tree.names("t/one.d/box")) == [".hidden", "a", "b", "empty"]
            assert tree.names("t/one.d/box/empty") == []
            assert walk(tree, "t/one.d") == inner
            assert tree.read("t/two.d/w.v1.bin") == b"weights"
            assert json.loads(tree.read("t/one.json")) == {"id": "one", "n": 1}
            for path in ("t/one.d", "t/one.d/box", "t/one.d/box/empty", "t/one.d/box/b/deep"):
                assert tree.stat(path).is_dir
            for path in ("t/none.d", "t/one.e", "t/one.d/b", "t/one.d/box/c", "t/three.d", "t/one.d/box/b/deep/y"):
                with fails(errno.ENOENT):
                    tree.stat(path)
            for path in ("t/one.json/x", "t/one.d/box/a/x"):
                with fails(errno.ENOTDIR):
                    tree.stat(path)
            with fails(errno.ENOTDIR):
                tree.names("t/one.d/box/a")

    def test_large_directories_inside_a_key(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "d": "file"})
        many = {f"box/{number:05d}/f": str(number).encode() for number in range(600)}
        made.row(id="a", d=made.file("f", many | {f"box/g{number:05d}": b"" for number in range(600)}))
        for number in range(700):
            made.row(id=f"r{number}", d="&:file:f")
        with self.serve(made.url) as tree:
            assert sorted(tree.names("t/a.d/box")) == sorted(
                [f"{n:05d}" for n in range(600)] + [f"g{n:05d}" for n in range(600)]
            )
            assert len(tree.names("t")) == len(set(tree.names("t"))) == 2 * 701
            for number in random.Random(1).sample(range(600), 20):
                assert tree.read(f"t/r{number}.d/box/{number:05d}/f") == str(number).encode()

    def test_inode_numbers_are_stable_and_shared_by_shared_bytes(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "x": "pickle", "y": "pickle", "d": "file"})
        shared, folder = made.blob("b1", b"shared"), made.file("f", {"box/a": b"1", "box/b": b"2"})
        made.row(id="r1", x=shared, d=folder)
        made.row(id="r2", x=made.blob("b2", b"shared"), y=shared, d=folder)
        with self.serve(made.url) as tree:
            seen: dict[str, int] = {}
            for _ in range(2):
                pending = ["t"]
                while pending:
                    path = pending.pop()
                    found = tree.stat(path)
                    assert seen.setdefault(path, found.ino) == found.ino
                    pending += [f"{path}/{name}" for name in tree.names(path)] if found.is_dir else []
            assert seen["t/r1.x.pkl"] == seen["t/r2.y.pkl"] != seen["t/r2.x.pkl"]
            assert seen["t/r1.d/box/a"] == seen["t/r2.d/box/a"] != seen["t/r1.d/box/b"]
            assert len({seen[path] for path in ("t", "t/r1.d", "t/r2.d", "t/r1.d/box", "t/r2.d/box")}) == 5
            assert tree.stat("t/r1.x.pkl").nlink == 1

    def test_names_that_are_told_apart_and_shortened(self, tmp_path: Path) -> None:
        long = "c" * 250
        made = Made(tmp_path, {"id": "str", "json": "file", "d": "filedict", long: "file", "v": "file"})
        text = made.file("x", {"n": b"1"})
        both = json.dumps({"F": text, "f": text})
        made.row(**{"id": "a.b/c", "json": text, "d": both, long: text, "v": made.file("y", {"%~$": b"2"})})
        with self.serve(made.url) as tree:
            names = tree.names("t")
            assert all(len(os.fsencode(name)) <= 255 for name in names)
            stem = "a%2Eb%2Fc"
            assert {f"{stem}.json", f"{stem}.json~2", f"{stem}.d.F", f"{stem}.d.f~2", f"{stem}.v"} < set(names)
            light = json.loads(tree.read(f"t/{stem}.json"))
            assert light["$fields"]["json~2"] == "json"
            assert long in light["$fields"].values()
            assert light["d"] == {"F": {"$file": "d.F/n"}, "f": {"$file": "d.f~2/n"}}
            assert all(tree.read(f"t/{stem}.{name}/n") == b"1" for name in ("json~2", "d.F", "d.f~2"))
            assert walk(tree, f"t/{stem}.v") == {"%~$": b"2"}

    @pytest.mark.skipif(os.fsencode("\udcff") != b"\xff", reason="a locale without surrogateescape")
    def test_names_inside_an_artifact_are_its_own_whatever_they_are(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "d": "file"})
        names = ["plain", "..dots..", " space ", "tab\t", "nl\n", "\udcff\udcfe", "ünï", "%2F", "a~2", "$x", "A", "a"]
        made.row(id="r", d=made.file("f", {f"box/{name}": os.fsencode(name) for name in names}))
        with self.serve(made.url) as tree:
            assert walk(tree, "t/r.d/box") == {name: os.fsencode(name) for name in names}

    # --- values -------------------------------------------------------------------------------------------------

    def test_values_of_all_types(self, tmp_path: Path) -> None:
        image = io.BytesIO()
        PIL.Image.new("RGB", (3, 2), (1, 2, 3)).save(image, "PNG")
        array = np.arange(6, dtype="<f4").reshape(2, 3)
        made = Made(
            tmp_path,
            {
                "id": "str",
                "b": "bool",
                "text": "str",
                "js": "json",
                "arr": "array[float32:2x3]",
                "bad": "array[int8:9]",
                "vec": "vector[float32:6]",
                "art": "array[float32:2x3]",
                "enc": "pickleencoder",
                "raw": "bytes",
                "img": "superduper_pillow.encoder.pil_image",
                "nothing": "pickle",
                "own": "my.module.Encoder",
            },
        )
        encoded = base64.b64encode(array.tobytes()).decode()
        blob = made.blob("0x53961bbab216afaa", array.tobytes())
        inner = {"a": [1, {"b": blob}], "big": 1 << 80, "nan": "&:blob:missing", "s": json.dumps({"in": blob})}
        made.row(
            id="r",
            b=1,
            text=blob,
            js=json.dumps(inner),
            arr=encoded,
            bad=encoded,
            vec=encoded,
            art=blob,
            raw=b"\x00raw",
            enc=base64.b64encode(b"\x80\x04N.").decode(),
            img=base64.b64encode(image.getvalue()).decode(),
            own=blob,
        )
        with self.serve(made.url) as tree:
            files = {name.partition(".")[2]: data for name, data in walk(tree, "t").items()}
        light = json.loads(files.pop("json"))
        assert light["text"] == blob, "a plain column's text is no reference"
        assert light["b"] is True
        assert light["nothing"] is None
        assert light["js"] == {
            "a": [1, {"b": {"$file": "js.a.1.b.bin"}}],
            "big": 1 << 80,
            "nan": "&:blob:missing",
            "s": {"in": {"$file": "js.s.in.bin"}},
        }
        for name in ("arr.npy", "vec.npy", "art.npy"):
            shown = np.load(io.BytesIO(files.pop(name)))
            assert (shown.dtype, shown.ravel().tolist()) == (array.dtype, array.ravel().tolist()), name
        assert files == {
            "bad.bin": array.tobytes(),
            "enc.pkl": b"\x80\x04N.",
            "raw.bin": b"\x00raw",
            "img.png": image.getvalue(),
            "own.bin": array.tobytes(),
            "js.a.1.b.bin": array.tobytes(),
            "js.s.in.bin": array.tobytes(),
        }

    def test_rows_whose_ids_are_not_unique_are_numbered(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "n": "int"})
        for number, name in enumerate(["x", "x", None]):
            made.row(id=name, n=number)
        with self.serve(made.url) as tree:
            assert sorted(tree.names("t")) == ["000000.json", "000001.json", "000002.json"]

    def test_any_part_of_a_large_blob_is_the_same_bytes(self, tmp_path: Path) -> None:
        made, rng = Made(tmp_path, {"id": "str", "x": "pickle", "d": "file"}), random.Random(2)
        data = rng.randbytes(3_000_001)
        made.row(id="r", x=made.blob("b", data), d=made.file("f", {"w": data[::-1]}))
        with self.serve(made.url, budget=1 << 20) as tree:
            for path, whole in (("t/r.x.pkl", data), ("t/r.d/w", data[::-1])):
                assert tree.read(path) == whole
                for _ in range(20):
                    offset, size = rng.randrange(len(data) + 10), rng.choice((1, 100, 4096, 131_072, 500_000))
                    assert tree.read(path, offset, size) == whole[offset : offset + size]

    # --- lazily -------------------------------------------------------------------------------------------------

    def test_listing_opens_no_blob_and_reading_opens_its_own(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "x": "pickle", "y": "my.module.Encoder", "d": "file"})
        for number in range(40):
            made.row(
                id=f"r{number}",
                x=made.blob(f"x{number}", b"x" * 100),
                y=made.blob(f"y{number}", b"\x89PNG\r\n\x1a\n"),
                d=made.file(f"f{number}", {"box/inner": b"i"}),
            )
        opens = Opens(made.artifacts)
        try:
            with self.serve(made.url) as tree:
                for name in tree.names("t"):
                    tree.stat(f"t/{name}")
                assert tree.names("t/r7.d/box") == ["inner"]
                assert tree.stat("t/r7.d/box/inner").size == 1
                tree.read("t/r7.json")
                assert opens.files() == []
                tree.read("t/r7.x.pkl")
                assert set(opens.files()) == {"x7"}
        finally:
            opens.close()

    def test_store_is_never_written_to(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "x": "pickle", "d": "file"})
        made.row(id="r", x=made.blob("b", b"1"), d=made.file("f", {"a": b"1"}))
        with made.writing() as db:
            db.execute("PRAGMA journal_mode = WAL")

        def state() -> list[tuple[Path, int, bytes]]:
            return [(p, p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in tmp_path.rglob("*")]

        before = state()
        with self.serve(made.url) as tree:
            walk(tree, "t")
        assert state() == before

    def test_rows_in_a_write_ahead_log_are_shown_and_nothing_is_written(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "n": "int"})
        with made.writing() as db:
            db.execute("PRAGMA journal_mode = WAL")
        with contextlib.closing(made_open := _writer(made)), self.serve(made.url) as tree:
            made_open.execute("INSERT INTO t VALUES ('in the log', 1)")
            made_open.commit()
            assert (tmp_path / "db.sqlite-wal").stat().st_size > 0
            wait_for(lambda: tree.names("t") == ["in the log.json"])
            names = sorted(path.name for path in tmp_path.iterdir())
            assert names == ["artifacts", "db.sqlite", "db.sqlite-shm", "db.sqlite-wal"]

    # --- change -------------------------------------------------------------------------------------------------

    def test_new_rows_appear(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "x": "pickle"})
        made.row(id="r1", x=made.blob("b1", b"1"))
        with self.serve(made.url) as tree:
            assert sorted(tree.names("t")) == ["r1.json", "r1.x.pkl"]
            made.row(id="r2", x=made.blob("b2", b"22"))
            wait_for(lambda: len(tree.names("t")) == 4)
            wait_for(lambda: or_stale(tree, "t/r2.x.pkl") == b"22")
            Made(tmp_path, {"id": "str"}, "another").row(id="x")
            wait_for(lambda: sorted(tree.names("")) == ["another", "t"])

    def test_a_change_of_another_table_disturbs_nobody(self, tmp_path: Path) -> None:
        made, other = Made(tmp_path, {"id": "str", "x": "pickle"}), Made(tmp_path, {"id": "str"}, "other")
        made.row(id="r", x=made.blob("b", b"b" * 300_000))
        with self.serve(made.url) as tree:
            opened, before = tree.open("t/r.x.pkl"), tree.stat("t/r.x.pkl")
            other.row(id="new")
            wait_for(lambda: tree.names("other") == ["new.json"])
            assert opened.read_at(200_000, 10) == b"b" * 10
            assert tree.stat("t/r.x.pkl").ino == before.ino
            opened.close()

    def test_blob_changed_in_place_is_estale_and_then_the_new_one(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "x": "pickle"})
        made.row(id="r", x=made.blob("b", b"old" * 100_000))
        made.row(id="s", x=made.blob("c", b"other"))
        with self.serve(made.url) as tree:
            opened = tree.open("t/r.x.pkl")
            assert opened.read_at(0, 3) == b"old"
            made.blob("b", b"newer" * 100_000)
            with fails(errno.ESTALE):
                opened.read_at(299_000, 10)
            wait_for(lambda: or_stale(tree, "t/r.x.pkl") == b"newer" * 100_000)
            assert tree.stat("t/r.x.pkl").size == 500_000
            wait_for(lambda: or_stale(tree, "t/s.x.pkl") == b"other")
            opened.close()

    def test_blob_that_vanished_is_an_error_and_then_the_text_that_names_it(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "x": "pickle", "d": "file"})
        made.row(id="r", x=made.blob("b", b"1" * 200_000), d=made.file("f", {"inner": b"i"}))
        with self.serve(made.url) as tree:
            assert sorted(tree.names("t")) == ["r.d", "r.json", "r.x.pkl"]
            (made.artifacts / "b").unlink()
            with fails(errno.ESTALE):
                tree.read("t/r.x.pkl")
            wait_for(lambda: sorted(tree.names("t")) == ["r.d", "r.json"])
            wait_for(lambda: b"&:blob:b" in (or_stale(tree, "t/r.json") or b""))
            assert tree.read("t/r.d/inner") == b"i"

    # --- trouble ------------------------------------------------------------------------------------------------

    def test_damaged_blob_is_eio_and_the_rest_works(self, tmp_path: Path) -> None:
        shutil.copytree(DATA / "0.3.0", tmp_path, dirs_exist_ok=True)
        blob = tmp_path / "artifacts" / "866cf8526595d3620d6045172fb16d1efefac4b1"
        data = bytearray(blob.read_bytes())
        data[-3] ^= 1
        blob.write_bytes(data)
        with self.serve(url_of(tmp_path)) as tree:
            with fails(errno.EIO):
                tree.read("my_collection/doc0.art.pkl")
            assert len(tree.read("my_collection/doc0.lazy.pkl")) == 220
            assert tree.read("my_collection/doc0.d/test_copy/a.txt") == b"hello\n"

    def test_references_cannot_lead_out_of_the_store(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"secret")
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "file").write_bytes(b"secret")
        made = Made(tmp_path / "store", {"id": "str", "x": "pickle", "d": "file"})
        os.symlink(tmp_path / "secret", made.artifacts / "link")
        os.symlink(tmp_path / "outside", made.artifacts / "folder")
        made.file("inside", {"box/ok": b"ok"})
        os.symlink(tmp_path / "secret", made.artifacts / "inside" / "box" / "link")
        os.symlink(tmp_path / "outside", made.artifacts / "inside" / "box" / "folder")
        os.mkfifo(made.artifacts / "fifo")
        names = ["../secret", "..", ".", "", "/etc/passwd", "link", "a/b", "b\0c", "fifo", "x" * 300, "\x7f", "inside"]
        for number, name in enumerate(names):
            made.row(id=f"r{number}", x=f"&:blob:{name}", d=None)
        for number, name in enumerate(("../outside", "folder", "..", ".", "link", "fifo")):
            made.row(id=f"f{number}", d=f"&:file:{name}")
        made.row(id="good", d="&:file:my__name:inside")
        made.row(id="../../etc", x="&:blob:link")
        with self.serve(made.url) as tree:
            listed = sorted(name for name in tree.names("t") if not name.endswith(".json"))
            assert listed == ["good.d"]
            assert walk(tree, "t/good.d") == {"box/ok": b"ok"}
            assert b"&:blob:link" in tree.read("t/%2E%2E%2F%2E%2E%2Fetc.json")
            assert len(tree.names("t")) == len(names) + 6 + 3

    def test_json_that_nests_without_end_is_a_text(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str", "js": "json", "fd": "filedict"})
        deep = "[" * 100_000 + '"&:blob:b"' + "]" * 100_000
        inner: Any = "&:blob:b"
        for _ in range(60):
            inner = json.dumps({"a": inner}) if len(json.dumps(inner)) < 5_000 else {"a": inner}
        made.blob("b", b"1")
        made.row(id="deep", js=deep, fd=deep)
        made.row(id="inner", js=json.dumps(inner))
        made.row(id="bad", js='{"a": NaN, "b": 1e999, "c": [1,', fd="{&:blob:b}")
        with self.serve(made.url) as tree:
            assert json.loads(tree.read("t/deep.json"))["js"] == deep
            assert tree.read("t/bad.json")
            assert tree.read("t/inner.json")

    def test_table_that_computes_is_not_shown(self, tmp_path: Path) -> None:
        made = Made(tmp_path, {"id": "str"})
        with made.writing() as db:
            db.execute(
                "CREATE VIEW endless AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT x FROM r"
            )
        made.row(id="r")
        with self.serve(made.url) as tree:
            assert tree.names("") == ["t"]
            assert tree.names("t") == ["r.json"]


def _writer(made: Made) -> sqlite3.Connection:
    return sqlite3.connect(made.folder / "db.sqlite", check_same_thread=False)


def _check_column(
    column: str,
    want: dict[str, Any],
    light: dict[str, Any],
    files: dict[str, bytes],
    manifest: dict[str, Any],
    row: str,
) -> int:
    """One column of one row against what the library decoded. 1, for counting."""
    kind = want["type"]
    if kind == "file":
        data = files[f"{column}/{want['path'].rpartition('/')[2]}"]
        assert (len(data), sha256(data)) == (want["bytes"], want["sha256"])
    elif kind == "directory":
        base = f"{column}/{want['path'].rpartition('/')[2]}/"
        inside = {name.removeprefix(base): sha256(data) for name, data in files.items() if name.startswith(base)}
        assert inside == want["files"]
    elif kind == "filedict":
        for name, item in want["items"].items():
            data = files[light[column][name]["$file"]]
            assert (len(data), sha256(data)) == (item["bytes"], item["sha256"])
    elif kind.startswith("PIL."):
        manifests.check_image(files[f"{column}.png"], want, column)
    elif kind == "ndarray":
        if f"{column}.npy" in files:
            array = np.load(io.BytesIO(files[f"{column}.npy"]))
            assert (str(array.dtype), list(array.shape)) == (want["dtype"], want["shape"])
            assert sha256(array.tobytes()) == want["sha256"]
        else:  # a type whose name does not say what it is
            assert sha256(files[f"{column}.bin"]) == want["sha256"]
    elif (data := files.get(f"{column}.pkl", files.get(f"{column}.bin"))) is not None:  # .bin: a type of the user's own
        value = plain_pickle(data)
        expected = want["value"] if "value" in want else want["json"]
        assert (list(value) if isinstance(value, tuple) else value) == expected
        assert type(value).__name__ == kind
    else:
        assert light[column] == (want["value"] if "value" in want else want["json"]), (row, column)
    return 1
