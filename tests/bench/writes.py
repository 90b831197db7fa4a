"""The works that write: a directory of files into one key, and how many bytes reach the store for it.

Copies stay until the end of the benchmark: ext4 takes a minute or more to find inodes where many files were removed
just before, and whoever came next would pay for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.targets import store_of

if TYPE_CHECKING:
    from tests.bench.works import Cell

_SECONDS = 600.0
_WRITES = "write,writev,pwrite64,pwritev,pwritev2,sendfile,copy_file_range,splice"
_WRITTEN = re.compile(r"(?:p?write(?:64|v|v2)?)\(\d+<([^>]*)>.* = (\d+)$")
_RENAMED = re.compile(r"renameat2?\(\d+<([^>]*)>")


def _source(cell: Cell) -> Path:
    """The files of 50 KB alone, as links to the loose ones."""
    data, made = cell.place.data, cell.place.root / "heavy"
    if made.exists():
        return made
    fresh = Path(tempfile.mkdtemp(prefix="heavy-", dir=cell.place.root))
    for name in os.scandir(cell.place.path("loose") / cell.place.layout("loose").key.format(0)):
        if name.name.endswith(f".{data.suffix}"):
            os.link(name.path, fresh / name.name)
    fresh.rename(made)
    return made


def _command(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)


def _look(cell: Cell, source: Path, copy: Path) -> None:
    """What was written is compared, a file in a hundred."""
    names = sorted(os.listdir(source))
    if sorted(os.listdir(copy)) != names:
        raise ValueError(f"{copy} has other files than {source}")
    for name in names[::100]:
        if (copy / name).read_bytes() != (source / name).read_bytes():
            raise ValueError(f"{copy / name} holds something else than it should")


def _write(cell: Cell) -> dict[str, dict[str, Any]]:
    """`cp -r` of all files into a new directory: until it ends, and until all is on disk (where it is a key, in the
    store), by `sync` of the directory or of ext4. The source is read before."""
    source = _source(cell)
    for path in source.iterdir():
        path.read_bytes()
    os.sync()
    mounted = cell.served.pid is not None
    where = cell.served.root if mounted else Path(tempfile.mkdtemp(prefix="ext4-", dir=cell.bench.scratch))
    begun, before = time.perf_counter(), cell.spent()
    _command("cp", "-r", source, where / "new")
    copied = time.perf_counter()
    spent = cell.spent() - before
    _command("sync", *([] if mounted else ["-f"]), where / "new")
    ended = time.perf_counter()
    facts = {"bytes": sum(path.stat().st_size for path in source.iterdir()), "files": len(os.listdir(source))}
    _look(cell, source, where / "new")
    return {
        "copied": {"seconds": copied - begun, "daemon_cpu": spent, **facts},
        "stored": {"seconds": ended - begun, "daemon_cpu": cell.spent() - before, **facts},
    }


def _written(cell: Cell) -> dict[str, dict[str, Any]]:
    """The same under strace, without the time: bytes written to files of the store, as a share of the shard's."""
    if shutil.which("strace") is None or cell.served.pid is None:
        raise ValueError("strace is not found")
    source, store = _source(cell), store_of(cell.served.root)
    log = cell.bench.scratch / "strace"
    words = ["strace", "-f", "-y", "-s", "0", "-e", f"trace={_WRITES},renameat,renameat2,linkat", "-o", str(log)]
    tracer = subprocess.Popen([*words, "-p", str(cell.served.pid)], stderr=subprocess.DEVNULL)
    try:
        while not _traced(cell.served.pid):
            if tracer.poll() is not None:
                raise ValueError("strace may not trace the daemon")
            time.sleep(0.01)
        _command("cp", "-r", source, cell.served.root / "new")
        _command("sync", cell.served.root / "new")
    finally:
        with contextlib.suppress(ProcessLookupError):
            tracer.send_signal(signal.SIGINT)
        tracer.wait(30)
    _look(cell, source, cell.served.root / "new")
    (shard,) = store.rglob("new.*")
    lines = log.read_text(errors="replace").splitlines()
    written = sum(int(found[2]) for line in lines if (found := _WRITTEN.search(line)) and _in(found[1], store))
    sets = sum(bool((found := _RENAMED.search(line)) and _in(found[1], store)) for line in lines)
    sets += sum("linkat(" in line and str(store) in line for line in lines)
    size = shard.stat().st_size
    if sets != 1:
        raise ValueError(f"{sets} files were given their names in the store instead of one")
    return {"cold": {"seconds": 0.0, "ratio": written / size, "written": written, "stored": size, "sets": sets}}


def _in(path: str, store: Path) -> bool:
    return path == str(store) or path.startswith(f"{store}/")


def _traced(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return "TracerPid:\t0\n" not in status


KINDS: dict[str, Callable[[Cell], dict[str, dict[str, Any]]]] = {"write": _write, "written": _written}

__all__ = ["KINDS"]
