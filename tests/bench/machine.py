"""The machine: what it is, its caches, its mount table, and what processes have used. Linux only."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
_PACKAGES = ("shardfs", "pyfuse3", "trio", "msgpack", "zstandard", "numpy")


def _output(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, cwd=REPOSITORY)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def facts(data: Path) -> dict[str, object]:
    """What figures depend on, for the report."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_mib": _memory_mib(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libfuse": _output("pkg-config", "--modversion", "fuse3"),
        "file system of the data": _output("stat", "-f", "-c", "%T", str(data)),
        "root": os.geteuid() == 0,
        "versions": versions,
        "commit": _output("git", "rev-parse", "--short=12", "HEAD"),
        "changed files": len(_output("git", "status", "--porcelain", "--", "shardfs").splitlines()),
        "load at start": os.getloadavg()[0],
        "command": sys.argv[1:],
    }


# --- caches ----------------------------------------------------------------------------------------------------------


def can_drop() -> bool:
    return os.geteuid() == 0 and os.access("/proc/sys/vm/drop_caches", os.W_OK)


def make_cold(stored: Path | None) -> None:
    """Empty the kernel's caches; without the right to, at least of what is stored at `stored`."""
    if can_drop():
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return
    if stored is None:
        return
    for file in [stored] if stored.is_file() else stored.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def drop_pages() -> None:
    """Empty the page cache and leave names and attributes. Only where `can_drop`."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")


# --- mounts ----------------------------------------------------------------------------------------------------------


def is_mounted(path: Path) -> bool:
    wanted = str(path).replace(" ", "\\040")
    with open("/proc/self/mountinfo") as table:
        return any(line.split(" ", 5)[4] == wanted for line in table)


def unmount(path: Path) -> None:
    """Unmount, if need be by detaching. Never raises: it is used where something has failed already."""
    words = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    for option in ([], ["-l" if os.geteuid() == 0 else "-z"]):
        if not is_mounted(path):
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run([*words, *option, str(path)], capture_output=True, timeout=30)


# --- processes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all its descendants: seconds of processor so far, and the sum of their peaks of memory."""

    user: float
    system: float
    peak_mib: float


def _family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1]
                children.setdefault(int(parent), []).append(int(name))
    found, ahead = [], [pid]
    while ahead:
        found.append(ahead.pop())
        ahead += children.get(found[-1], [])
    return found


def usage(pid: int) -> Usage:
    user = system = peak = 0.0
    for member in _family(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            user += (int(words[11]) + int(words[13])) / _TICKS
            system += (int(words[12]) + int(words[14])) / _TICKS
            for line in Path(f"/proc/{member}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak += int(line.split()[1]) / 1024
    return Usage(user, system, peak)
