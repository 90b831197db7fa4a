"""Data sets as they lie on disk: stores, loose files, archives. Made once each, outside the checkout, and kept.

Every form is deterministic. A form is complete when its mark is there, and is made again when the mark says otherwise.
"""

from __future__ import annotations

import gzip
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardfs import open_store
from tests.bench import mds_writer
from tests.bench.datasets import MDS, SQUIRREL, DataSet, Layout

_VERSION = "3"
"""To be changed with whatever changes the content of a form."""
_SHUFFLE_SEED = 7
_SECONDS = 1800


def say(text: str) -> None:
    """Progress; results alone go to stdout."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one data set's forms are."""

    data: DataSet
    root: Path

    def path(self, form: str) -> Path:
        return self.root / _NAMES.get(form, form)

    def index(self, form: str) -> Path:
        """Where ratarmount's index of an archive is kept."""
        path = self.path(form)
        return path.with_name(f"{path.name}.sqlite")

    def layout(self, form: str) -> Layout:
        return MDS if form.startswith("mds") else SQUIRREL

    def make(self, form: str) -> Path:
        """The form's path, after making it and the loose files it is made from, if that is due."""
        path, mark = self.path(form), self.root / f".{form}.done"
        stamp = f"{_VERSION} {self.data.shards} {self.data.samples} {self.data.elements}"
        if mark.exists() and mark.read_text() == stamp:
            return path
        if form in _FROM_LOOSE:
            self.make("loose")
        self.root.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        self.index(form).unlink(missing_ok=True)
        begun = time.monotonic()
        _MAKERS[form](self, path)
        os.sync()
        mark.write_text(stamp)
        say(f"made {self.data.name} as {form} in {time.monotonic() - begun:.0f} s")
        return path

    # --- what is to be read -------------------------------------------------------------------------------------

    def sizes(self) -> list[list[int]]:
        """Sizes of the files of each sample, in the order of shards and samples; made together with the loose files."""
        lines = (self.root / "sizes").read_text().splitlines()
        return [[int(word) for word in line.split()] for line in lines]

    def list_file(self, folder: Path, layout: Layout, shuffled: bool, suffix: str = "") -> tuple[Path, int, int]:
        """A file with the paths to be read, in order or shuffled by sample; how many they are, and their bytes.

        `suffix` limits them to files whose names end so.
        """
        data, sizes = self.data, self.sizes()
        path = folder / f"{data.name}-{layout.name}-{'shuffled' if shuffled else 'order'}{suffix}"
        samples = [(shard, number) for shard in range(data.shards) for number in range(data.samples)]
        if shuffled:
            random.Random(_SHUFFLE_SEED).shuffle(samples)
        lines, total = [], 0
        for shard, number in samples:
            files = zip(layout.paths(data, shard, number), sizes[shard * data.samples + number], strict=True)
            for name, size in files:
                if name.endswith(suffix):
                    lines.append(name + "\n")
                    total += size
        path.write_text("".join(lines))
        return path, len(lines), total


# --- makers ----------------------------------------------------------------------------------------------------------


def _loose(place: Place, path: Path) -> None:
    data, sizes = place.data, []
    for shard in range(data.shards):
        for number, sample in enumerate(data.shard(shard)):
            names, contents = SQUIRREL.paths(data, shard, number), data.files(sample)
            for name, content in zip(names, contents, strict=True):
                file = path / name
                if number == 0:
                    file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            sizes.append(" ".join(str(len(content)) for content in contents) + "\n")
    (place.root / "sizes").write_text("".join(sizes))


def _squirrel(compression: str) -> Callable[[Place, Path], None]:
    def make(place: Place, path: Path) -> None:
        path.mkdir()
        level = 1 if place.data.elements and compression == "gz" else None
        store = open_store(path, driver="squirrel", compression=compression, level=level)
        for shard in range(place.data.shards):
            store.set(place.data.shard(shard), SQUIRREL.key.format(shard))

    return make


def _mds(compressed: bool) -> Callable[[Place, Path], None]:
    def make(place: Place, path: Path) -> None:
        path.mkdir()
        mds_writer.write(path, (place.data.shard(shard) for shard in range(place.data.shards)), compressed)

    return make


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    return info


def _tar(place: Place, path: Path) -> None:
    loose = place.path("loose")
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name in sorted(os.listdir(loose)):  # what is below is added sorted
            archive.add(loose / name, name, filter=_plain)


def _targz(place: Place, path: Path) -> None:
    with place.make("tar").open("rb") as source, gzip.GzipFile(path, "wb", 6, mtime=0) as target:
        shutil.copyfileobj(source, target, 1 << 20)


def _zip(place: Place, path: Path) -> None:
    loose = place.path("loose")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1 if place.data.elements else 6) as archive:
        for file in sorted(loose.rglob("*")):
            archive.write(file, file.relative_to(loose))


def _squashfs(place: Place, path: Path) -> None:
    words = ["mksquashfs", str(place.path("loose")), str(path), "-comp", "zstd", "-Xcompression-level", "3"]
    words += ["-noappend", "-no-progress", "-quiet", "-all-time", "0", "-mkfs-time", "0"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=_SECONDS)


_MAKERS: dict[str, Callable[[Place, Path], None]] = {
    "loose": _loose,
    "gz": _squirrel("gz"),
    "zst": _squirrel("zst"),
    "mds": _mds(False),
    "mdszst": _mds(True),
    "tar": _tar,
    "targz": _targz,
    "zip": _zip,
    "squashfs": _squashfs,
}
_FROM_LOOSE = {"tar", "targz", "zip", "squashfs"}
_NAMES = {"tar": "all.tar", "targz": "all.tar.gz", "zip": "all.zip", "squashfs": "all.squashfs"}
