"""What a cached file is, as a line of JSON beside it: which object's, how large, with which CRC-32, and under which
boot of the machine it was brought. Knows nothing of when files are brought or removed.

A CRC tells what a machine that died, or a disk that goes bad, has made of a file, for a tenth of the time that a
cryptographic hash takes; who could write there on purpose could write its description, too.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from shardfs import config


def _fastest_crc() -> Callable[[bytes | memoryview, int], int]:
    """isal's twin of zlib's, where it is installed: 23 GB/s in place of 4."""
    try:
        made: Callable[[bytes | memoryview, int], int] = importlib.import_module("isal.isal_zlib").crc32
    except ImportError:
        return zlib.crc32
    return made


crc32 = _fastest_crc()
ENDING = ".about"


@dataclass(frozen=True, slots=True)
class About:
    """What a cached file is."""

    store: str
    name: str
    version: str
    form: str
    """`stored` bytes, or `raw`: decompressed."""

    @property
    def id(self) -> str:
        text = "\0".join((self.store, self.name, self.version, self.form))
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def beside(path: Path) -> Path:
    """Where the description of a file is."""
    return path.with_suffix(ENDING)


def describe(path: Path, about: About, size: int, crc: int) -> None:
    """Write down what a file is, whose content has that CRC-32. OSError."""
    told = {
        "store": about.store, "name": about.name, "version": about.version, "form": about.form,
        "size": size, "crc": crc, "boot": config.boot_id(),
    }  # fmt: skip
    made = path.with_suffix(f"{ENDING}-{os.getpid()}-{threading.get_ident()}")
    made.write_text(json.dumps(told))
    os.rename(made, beside(path))


def told_of(path: Path) -> dict[str, Any] | None:
    """What is written beside a file; None where that is nothing that makes sense."""
    try:
        told = json.loads(beside(path).read_text())
        return {**told, "size": int(told["size"]), "boot": str(told["boot"]), "crc": int(told["crc"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def about_of(told: dict[str, Any]) -> About:
    return About(*(str(told.get(word)) for word in ("store", "name", "version", "form")))


class Takes(Protocol):
    """What `Summed` writes into."""

    def write(self, data: memoryview, /) -> int | None: ...


class Summed:
    """A file without a buffer of its own, and size and CRC-32 of what was written to it."""

    def __init__(self, file: Takes) -> None:
        self._file = file
        self.size = 0
        self.sum = 0

    def write(self, data: bytes | memoryview) -> int:
        """All of it, whatever the system takes at a time. OSError."""
        view = memoryview(data)
        # while it is in the processor's cache
        self.sum = crc32(view, self.sum)
        self.size += len(view)
        left = view
        while left:
            left = left[self._file.write(left) or 0 :]
        return len(view)


def content_sum(file: BinaryIO) -> int:
    """The CRC-32 of all bytes of a file."""
    made = 0
    file.seek(0)
    while piece := file.read(config.READ_SLICE):
        made = crc32(piece, made)
    return made
