"""What a cached file is, as a line of JSON beside it: which object's, how large, with which hash, and under which boot
of the machine it was brought. Knows nothing of when files are brought or removed."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shardfs import config

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


def describe(path: Path, about: About, size: int, content: str) -> None:
    """Write down what a file is, whose content has that hash. OSError."""
    told = {
        "store": about.store, "name": about.name, "version": about.version, "form": about.form,
        "size": size, "hash": content, "boot": config.boot_id(),
    }  # fmt: skip
    made = path.with_suffix(f"{ENDING}-{os.getpid()}-{threading.get_ident()}")
    made.write_text(json.dumps(told))
    os.rename(made, beside(path))


def told_of(path: Path) -> dict[str, Any] | None:
    """What is written beside a file; None where that is nothing that makes sense."""
    try:
        told = json.loads(beside(path).read_text())
        return {**told, "size": int(told["size"]), "boot": str(told["boot"]), "hash": str(told["hash"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def about_of(told: dict[str, Any]) -> About:
    return About(*(str(told.get(word)) for word in ("store", "name", "version", "form")))


def content_hash(file: BinaryIO) -> str:
    """Of all bytes of a file."""
    made = hashlib.blake2b(digest_size=16)
    file.seek(0)
    while piece := file.read(config.READ_SLICE):
        made.update(piece)
    return made.hexdigest()
