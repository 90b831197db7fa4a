"""Which cached files are to stay: a directory with a file for each pin, of a store and a pattern of names. Knows
nothing of the cached files."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
from pathlib import Path

from shardfs.errors import BadSettingError


class Pins:
    """Those noted in a directory, which is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, store: str, glob: str) -> None:
        """Let the files of a store whose names fit a pattern stay, those that come later too. OSError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = self._folder / f".{os.getpid()}"
        made.write_text(json.dumps({"store": store, "glob": glob}))
        os.rename(made, self._folder / _pin_name(store, glob))

    def remove(self, store: str, glob: str) -> None:
        """Take a pin away. BadSettingError if there is none."""
        try:
            os.unlink(self._folder / _pin_name(store, glob))
        except FileNotFoundError as error:
            raise BadSettingError(f"{glob} of {store} is not pinned") from error

    def all(self) -> list[tuple[str, str]]:
        """Store and pattern of each pin."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._folder):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    told = json.loads(Path(entry.path).read_text())
                    found.append((str(told["store"]), str(told["glob"])))
        return found


def is_pinned(pins: list[tuple[str, str]], store: str, name: str) -> bool:
    return any(pinned == store and fnmatch.fnmatchcase(name, glob) for pinned, glob in pins)


def _pin_name(store: str, glob: str) -> str:
    return hashlib.blake2b(f"{store}\0{glob}".encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
