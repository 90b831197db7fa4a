"""The documents as a new user pastes them: every shell block of the README and of what it leads to, in its order, in a
home of its own, on a real mount; those that need a server against servers of this test; and the pictures, made anew.

A block is fenced as `sh`, or as `python` for Python. What it needs beyond this machine stands behind that
(`sh needs=cloud`), and `status=0,1` where the last command may end with either.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import obstore
import PIL.Image
import pytest

from shardfs import daemon
from shardfs.opening import open_store
from shardfs.storage.urls import open_remote
from tests.conformance.superduper_stores import DATA as SUPERDUPER
from tests.mount.conftest import REPOSITORY, wipe
from tests.servers import Server, nginx_server

pytestmark = [pytest.mark.mount, pytest.mark.timeout(180)]

DOCUMENTS = (
    "README.md",
    *(f"docs/{name}.md" for name in ("OPERATIONS", "VIEWS", "TABLES", "LOADERS", "CONTAINERS")),
)
SERVER = "server"
"""What a block needs that is pasted by itself, against servers of this test."""
NEEDS = {
    "packages": "installs packages, as root or out of a network",
    "root": "changes the machine: fstab, systemd, /etc",
    "cloud": "speaks to a service that is not there",
    "container": "needs Docker or Kubernetes",
    "terminal": "runs until somebody ends it",
    "browser": "opens a window",
}
"""What a block may need that keeps it from being pasted here, and why."""

COMMAND = re.compile(r"\s*(\$ |(sudo |\S*/)?(shardfs|mount|umount|systemctl|docker|kubectl|pip|apt-get|getfattr)\s)")
"""The beginning of a line that somebody would paste."""

OTHERS = ("text", "yaml", "json", "toml", "ini", "")
"""Languages of blocks that nobody pastes into a shell."""

GETFATTR = """#!/bin/sh
for last; do :; done
exec python3 -c 'import os, sys; [print(n, os.getxattr(sys.argv[1], n)) for n in os.listxattr(sys.argv[1])]' $last
"""
"""For a machine without the package attr."""


@dataclass(frozen=True)
class Block:
    document: str
    line: int
    language: str
    needs: str | None
    statuses: tuple[int, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(document: str) -> list[Block]:
    """All fenced blocks of a document, and as `text` the indented ones."""
    found: list[Block] = []
    lines = (REPOSITORY / document).read_text(encoding="utf-8").splitlines()
    opened: tuple[int, str] | None = None
    body: list[str] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("```"):
            if opened is None:
                opened, body = (number, line[3:].strip()), []
                continue
            language, *words = opened[1].split() or [""]
            said = dict(word.partition("=")[::2] for word in words)
            statuses = tuple(int(status) for status in said.pop("status", "0").split(","))
            needs = said.pop("needs", None)
            assert not said, f"{document}:{opened[0]}: {said}"
            found.append(Block(document, opened[0], language, needs, statuses, "\n".join(body) + "\n"))
            opened = None
        elif opened is not None:
            body.append(line)
        elif line.startswith("    ") and line.strip():
            found.append(Block(document, number, "indented", None, (0,), line + "\n"))
    assert opened is None, f"{document}: a block without an end"
    return found


ALL = [block for document in DOCUMENTS for block in blocks(document)]
PASTED = [block for block in ALL if block.language in ("sh", "python") and block.needs is None]
SERVED = [block for block in ALL if block.needs == SERVER]
LEFT_OUT = [block for block in ALL if block.needs not in (None, SERVER)]


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.place)
def test_a_block_says_what_it_is(block: Block) -> None:
    """A command that no test pastes is one that says why."""
    if block.language in ("sh", "python"):
        assert block.needs in (None, SERVER, *NEEDS), f"{block.place}: needs={block.needs}"
        return
    assert block.language in (*OTHERS, "indented"), f"{block.place}: {block.language}"
    commands = [line for line in block.text.splitlines() if COMMAND.match(line)]
    assert not commands, f"{block.place}: fence it as sh, or as sh needs=...: {commands}"


def test_what_is_not_pasted_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert PASTED
    assert LEFT_OUT
    with capsys.disabled():
        for block in LEFT_OUT:
            print(f"\nnot pasted, {NEEDS[str(block.needs)]}: {block.place}: {block.text.splitlines()[0]}", end="")


def script(pasted: list[Block], places: dict[str, str]) -> str:
    """One shell's input: blocks in their order, each with a line that says where it is from; with real `places`."""
    made = ["set -e -o pipefail"]
    for block in pasted:
        text = block.text
        for shown, real in places.items():
            text = re.sub(rf"(?<!\w){re.escape(shown)}", lambda _, real=real: real, text)  # not inside of a URL
        made.append(f"echo '>>> {block.place}' >&2")
        if block.language == "python":
            made += ["python3 - <<'END OF BLOCK'", text, "END OF BLOCK"]
        elif block.statuses == (0,):
            made.append(text)
        else:
            allowed = " || ".join(f"[ $status = {status} ]" for status in block.statuses)
            made.append(f"set +e\n{text}status=$?\nset -e\n{allowed}")
    return "\n".join(made) + "\n"


def paste(folder: Path, pasted: list[Block], places: dict[str, str], **more: str) -> str:
    """What a shell says on standard output that blocks are pasted into, in a home of its own below `folder`. All must
    go well."""
    home, programs = folder / "home", folder / "bin"
    home.mkdir(exist_ok=True)
    programs.mkdir()
    for name, words in (("shardfs", "-m shardfs"), ("python3", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (programs / name).chmod(0o755)
    if shutil.which("getfattr") is None:
        (programs / "getfattr").write_text(GETFATTR)
        (programs / "getfattr").chmod(0o755)
    environment = {
        "HOME": str(home),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"],
        "LANG": "C.UTF-8",
        **more,
    }
    try:
        done = subprocess.run(
            ["bash"], input=script(pasted, places), cwd=home, env=environment, capture_output=True, text=True,
            timeout=150,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        pytest.fail(f"it takes too long: {(late.stderr or b'')[-1000:].decode()}")
    assert done.returncode == 0, f"{done.stderr[-3000:]}\n{done.stdout[-2000:]}"
    assert "Traceback" not in done.stderr
    said = [line.removeprefix(">>> ") for line in done.stderr.splitlines() if line.startswith(">>> ")]
    assert said == [block.place for block in pasted]
    return done.stdout


@pytest.mark.parametrize("documents", [DOCUMENTS[:2], DOCUMENTS[2:]], ids=["service", "views"])
def test_every_block_works_when_it_is_pasted(tmp_path: Path, documents: tuple[str, ...]) -> None:
    """All begin with the store of the first minute, which is the README's first block."""
    tour = tmp_path / "home/shardfs-tour"
    pasted = [block for block in PASTED if block is PASTED[0] or block.document in documents]
    try:
        paste(tmp_path, pasted, {"/data/": f"{tour}/", "/mnt/store": f"{tour}/mnt"})
        assert daemon.mounted_at(f"{tour}/mnt") is None, "the documents leave something mounted"
    finally:
        wipe(tour / "mnt")


MOUNTED = ("train", "set", "s3", "minio", "tars")


def test_every_block_that_needs_a_server_works_with_one(moto: Server, tmp_path: Path) -> None:
    """Stores of three systems at an S3 server and a web server, under the names that the documents have."""
    web, points = tmp_path / "web", [tmp_path / "mnt" / name for name in MOUNTED]
    fill(web, moto.endpoint)
    (tmp_path / "mnt").mkdir()
    shutil.copytree(SUPERDUPER / "0.10.0", tmp_path / "data")
    with nginx_server(web, tmp_path / "nginx") as server:
        places = {"/data/": f"{tmp_path}/data/", "/mnt/": f"{tmp_path}/mnt/", "http://minio:9000": moto.endpoint}
        places["https://host"] = server.endpoint
        environment = {**moto.environment, "SHARDFS_ENDPOINT": moto.endpoint}
        try:
            said = paste(tmp_path, SERVED, places, **environment)
            assert [path.name for path in points if daemon.mounted_at(str(path)) is not None] == list(MOUNTED)
            shown = {path.name: sorted(os.listdir(path)) for path in points}
            assert (shown["set"], shown["s3"], shown["minio"]) == (["train", "val"], ["a"], ["train"])
            assert len(shown["train"]) == len(shown["tars"]) == 100
            assert json.loads((points[2] / "a/000000.json").read_text()) == {"label": 1}
            assert sorted(os.listdir(tmp_path / "data/train/train")) == ["a.gz", "b.gz"]
            assert list((tmp_path / "data/tars").iterdir())
            assert '"bad": 0' in said
            umount = [sys.executable, "-m", "shardfs", "umount", *points]
            subprocess.run(umount, check=True, capture_output=True, timeout=60)
        finally:
            for path in points:
                wipe(path)


def fill(web: Path, endpoint: str) -> None:
    """What the documents find at `https://host` and in `s3://bucket`."""
    web.mkdir()
    with tarfile.open(web / "train-000.tar", "w") as tar:
        member = tarfile.TarInfo("0.cls")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"7"))
    tars = open_remote("s3://bucket/tars", endpoint=endpoint).store
    for number in range(100):
        name = f"{number:03}.tar"
        if number:
            os.link(web / "train-000.tar", web / f"train-{name}")
        obstore.put(tars, f"shard-{name}", (web / "train-000.tar").read_bytes())
    for split in ("train", "val"):
        open_store(web / "set" / split, driver="streaming").set([{"label": 1}], "shard.00000")
    for store, keys in (("data/train", "a"), ("train", ("train/a", "train/b")), ("store", ("train/a",))):
        for key in keys:
            open_store(f"s3://bucket/{store}", "squirrel", endpoint=endpoint).set([{"label": 1}], key)


PICTURES = REPOSITORY / "docs/pictures"


def lines(path: Path) -> list[str]:
    """What a picture of a terminal says, but for times and places."""
    texts = [one.text or "" for one in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]
    return [re.sub(r"/tmp/\S+|\d+ \w+ +\d+ [\d:]+|\d[\d.]*K", "", text) for text in texts]


def test_the_pictures_are_those_of_the_program_that_makes_them() -> None:
    source = (PICTURES / "make.py").read_text(encoding="utf-8")
    commands = ast.literal_eval(source.split("COMMANDS = ", 1)[1].split("\nCOLUMNS", 1)[0])
    assert [line[2:] for line in lines(PICTURES / "session.svg") if line.startswith("$ ")] == list(commands)
    with PIL.Image.open(PICTURES / "thumbnails.png") as image:
        image.load()
        assert image.size == (660, 322)
    for name in ("session.svg", "thumbnails.png"):
        assert f"docs/pictures/{name}" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
        assert (PICTURES / name).stat().st_size < 100_000


@pytest.mark.skipif(os.environ.get("SHARDFS_ALL_FEATURES") != "1", reason="SHARDFS_ALL_FEATURES=1 makes them anew")
def test_the_pictures_are_made_of_a_real_mount(tmp_path: Path) -> None:
    """What is committed shows what the commands print today."""
    subprocess.run([sys.executable, PICTURES / "make.py", tmp_path], check=True, capture_output=True, timeout=60)
    assert lines(tmp_path / "session.svg") == lines(PICTURES / "session.svg")
    with PIL.Image.open(tmp_path / "thumbnails.png") as made, PIL.Image.open(PICTURES / "thumbnails.png") as image:
        assert made.size == image.size
