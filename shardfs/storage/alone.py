"""One thread at a time for each name, in this process. Knows nothing of what is done with a name."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Alone:
    """Locks by name, each there for as long as somebody has it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def with_name(self, name: str) -> Iterator[None]:
        with self._lock:
            lock, count = self._locks.get(name, (threading.Lock(), 0))
            self._locks[name] = lock, count + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, count = self._locks.pop(name)
                if count > 1:
                    self._locks[name] = lock, count - 1
