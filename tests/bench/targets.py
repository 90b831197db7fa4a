"""What is measured and what it is compared with: name, form that it reads, and the command that serves it."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.datasets import Layout
from tests.bench.forms import Place
from tests.bench.machine import REPOSITORY

Command = Callable[[Place, Path], list[str]]
"""The words that serve a data set on a mount point, staying in the foreground."""

_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Target:
    """`serve` for what is mounted, `folder` for a directory that is there, `library` for a reader without a mount."""

    name: str
    form: str
    serve: Command | None = None
    folder: Callable[[Place], Path] | None = None
    library: Callable[[Place], list[str]] | None = None
    refill: str | None = None
    """The form that a daemon reads through the page cache, for it to be filled again when that was emptied."""
    patience: float = _SECONDS
    """Seconds for one pass of reading; slower ones are stopped and their rate so far counts."""
    ours: bool = False

    def layout(self, place: Place) -> Layout:
        return place.layout(self.form)


@dataclass(frozen=True, slots=True)
class Tools:
    """Programs that were found or built."""

    passthrough: list[str] | None
    ratarmount: str | None


def shardfs_command() -> list[str]:
    """shardfs of this checkout: started in it, so that its package comes before an installed one."""
    return [sys.executable, "-m", "shardfs"]


def _shardfs(form: str) -> Target:
    def serve(place: Place, mountpoint: Path) -> list[str]:
        return [*shardfs_command(), "mount", "-f", str(place.path(form)), str(mountpoint)]

    return Target(f"shardfs-{form}", form, serve, refill=form, ours=True)


def store_of(mountpoint: Path) -> Path:
    """The store that a writable mount is over: an empty one beside its mount point."""
    return mountpoint.with_name(f"{mountpoint.name}-store")


def _shardfs_rw() -> Target:
    def serve(place: Place, mountpoint: Path) -> list[str]:
        store_of(mountpoint).mkdir()
        words = ["--rw", "--write-back", "off", "--driver", "squirrel"]
        return [*shardfs_command(), "mount", "-f", *words, str(store_of(mountpoint)), str(mountpoint)]

    return Target("shardfs-rw", "loose", serve)


def _ratarmount(tools: Tools, form: str, patience: float) -> Target:
    def serve(place: Place, mountpoint: Path) -> list[str]:
        index = ["--index-file", str(place.index(form))]
        return [str(tools.ratarmount), "-f", *index, str(place.path(form)), str(mountpoint)]

    name = "ratarmount" if form == "tar" else f"ratarmount-{form}"
    return Target(name, form, serve, refill=form, patience=patience)


def index_command(tools: Tools, place: Place, form: str) -> list[str] | None:
    """What makes ratarmount's index of an archive; None where it is there."""
    index = place.index(form)
    if index.exists():
        return None
    return [str(tools.ratarmount), "--no-mount", "-c", "--index-file", str(index), str(place.path(form))]


def _library(name: str, form: str) -> Target | None:
    python = REPOSITORY / ".venv-interop" / name / "bin" / "python"
    script = Path(__file__).with_name("peers") / f"{name}_epoch.py"
    if not python.exists():
        return None
    return Target(name, form, library=lambda place: [str(python), str(script), str(place.path(form))])


def known_targets(tools: Tools) -> dict[str, Target]:
    """All that can be measured on this machine."""
    found: list[Target | None] = [Target("ext4", "loose", folder=lambda place: place.path("loose"))]
    if tools.passthrough is not None:
        words = tools.passthrough
        serve: Command = lambda place, mountpoint: [*words, str(place.path("loose")), str(mountpoint)]  # noqa: E731
        found.append(Target("passthrough", "loose", serve, refill="loose"))
    found += [_shardfs(form) for form in ("gz", "zst", "mds", "mdszst")]
    found.append(_shardfs_rw())
    if shutil.which("squashfuse_ll") and shutil.which("mksquashfs"):
        found.append(_program("squashfuse", "squashfs", ["squashfuse_ll", "-f"]))
    if shutil.which("fuse-zip"):
        found.append(_program("fuse-zip", "zip", ["fuse-zip", "-f", "-r"]))
    if tools.ratarmount is not None:
        found += [_ratarmount(tools, "tar", 20.0), _ratarmount(tools, "targz", 8.0)]
    found += [_library("squirrel", "gz"), _library("streaming", "mds")]
    return {target.name: target for target in found if target is not None}


def _program(name: str, form: str, words: list[str]) -> Target:
    return Target(name, form, lambda place, mnt: [*words, str(place.path(form)), str(mnt)], refill=form)


# --- given on the command line ---------------------------------------------------------------------------------------


def folder_target(text: str) -> Target:
    """`NAME=PATH`: PATH/SET shows what the loose files of that set are, or PATH itself if it has no such directory."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise ValueError(f"{text!r}: expected NAME=PATH")

    def folder(place: Place) -> Path:
        below = Path(path) / place.data.name
        return below if below.is_dir() else Path(path)

    return Target(name, "loose", folder=folder)


def command_target(text: str) -> Target:
    """`NAME=COMMAND`: mounts in the foreground. {mnt}, {set} and the forms ({gz}, {zst}, ...) are filled in.

    The form that it names, or else the loose files, says what the tree looks like.
    """
    name, _, command = text.partition("=")
    if not name or not command:
        raise ValueError(f"{text!r}: expected NAME=COMMAND")
    forms = ("gz", "zst", "mds", "mdszst", "tar", "targz", "zip", "squashfs", "loose")
    form = next((form for form in forms if f"{{{form}}}" in command), "loose")

    def serve(place: Place, mountpoint: Path) -> list[str]:
        values = {name: str(place.path(name)) for name in forms}
        return [word.format(mnt=mountpoint, set=place.data.name, **values) for word in shlex.split(command)]

    return Target(name, form, serve, refill=form)
