"""What was just written to a store far away, at hand for who wrote it. Knows nothing of stores.

Whoever stores a shard looks at it once more, and another may have replaced it by then: without these bytes nobody could
say of the write that it was done. They are in files without a name.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import BinaryIO

from shardfs import config
from shardfs.model import Version
from shardfs.storage.local_reader import LocalReader


class Written:
    """The last config.REMOTE_WRITTEN objects, config.REMOTE_WRITTEN_BYTES of them at most. Thread-safe."""

    def __init__(self) -> None:
        self._files: OrderedDict[tuple[str, Version], tuple[int, int]] = OrderedDict()
        """Descriptor and size."""
        self._lock = threading.Lock()

    def keep(self, name: str, version: Version, file: BinaryIO, size: int) -> None:
        """Have a version at hand whose content is that of a file, which may be closed then and must not change."""
        if size > config.REMOTE_WRITTEN_BYTES:
            return
        file.flush()
        with self._lock:
            self._forget(name, version)
            self._files[name, version] = os.dup(file.fileno()), size
            while (
                len(self._files) > config.REMOTE_WRITTEN
                or sum(size for _, size in self._files.values()) > config.REMOTE_WRITTEN_BYTES
            ):
                self._forget(*next(iter(self._files)))

    def open(self, name: str, version: Version) -> LocalReader | None:
        """A reader of its own; None for what is not here."""
        with self._lock:
            found = self._files.get((name, version))
            if found is None:
                return None
            # not a duplicate: that would share the writer's position, and be writable
            descriptor = os.open(f"/proc/self/fd/{found[0]}", os.O_RDONLY | os.O_CLOEXEC)
        return LocalReader(descriptor, name, os.fstat(descriptor))

    def _forget(self, name: str, version: Version) -> None:
        found = self._files.pop((name, version), None)
        if found is not None:
            os.close(found[0])

    def close(self) -> None:
        with self._lock:
            while self._files:
                self._forget(*next(iter(self._files)))

    def __del__(self) -> None:
        self.close()
