"""The benchmark's own programs, compiled into the data directory, and peers that are looked for there and in PATH."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.bench.forms import say
from tests.bench.targets import Tools

_HERE = Path(__file__).parent
_RATARMOUNT = "ratarmount==1.3.0"


def _compile(source: str, folder: Path, *flags: str) -> Path | None:
    """The program made from a file here; None where it cannot be made."""
    text = (_HERE / source).read_bytes()
    program = folder / f"{source.removesuffix('.c')}-{hashlib.sha256(text).hexdigest()[:12]}"
    compiler = shutil.which("gcc") or shutil.which("cc")
    if program.exists():
        return program
    if compiler is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    fresh = program.with_name(f"{program.name}.{os.getpid()}")
    words = [compiler, "-O2", "-pthread", "-o", str(fresh), str(_HERE / source), *flags]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        say(f"{source} does not compile: {done.stderr.strip()[-300:]}")
        return None
    fresh.replace(program)
    return program


def client(data: Path) -> list[str]:
    """The command of the reader."""
    program = _compile("client.c", data / "bin")
    if program is not None:
        return [str(program)]
    say("no C compiler: reading with Python processes, so small files will look slower than they are")
    return [sys.executable, str(_HERE / "client.py")]


def find_tools(data: Path, passthrough: str | None) -> Tools:
    """What there is to compare with. `passthrough`: a program used like `PROGRAM SOURCE MOUNTPOINT` instead of ours."""
    words = None if passthrough is None else shlex.split(passthrough)
    if words is None and (flags := _fuse_flags()):
        ours = _compile("passthrough.c", data / "bin", *flags)
        words = None if ours is None else [str(ours)]
    own = data / "peers" / "bin" / "ratarmount"
    return Tools(words, str(own) if own.exists() else shutil.which("ratarmount"))


def _fuse_flags() -> list[str]:
    try:
        done = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split()


def install_peers(data: Path) -> None:
    """ratarmount, into a virtual environment of the benchmark's own."""
    venv = data / "peers"
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=300)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "-q", _RATARMOUNT]
    subprocess.run(pip, check=True, timeout=900)
    missing = [name for name in ("squashfuse_ll", "mksquashfs", "fuse-zip") if shutil.which(name) is None]
    if missing:
        say(f"{', '.join(missing)} not found; Debian has them as squashfuse, squashfs-tools and fuse-zip")
